"""From vectors to blocks and back: how far values are from the originals."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmpi.messages import quantized, select, sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message, Scale, WireError, pack, unpack
from fedmpi.streams import Purpose, key
from tests import coded

some = settings(max_examples=200, deadline=None)

floats = st.floats(-(2.0**100), 2.0**100, width=32)
vectors = st.lists(floats, min_size=1, max_size=60).map(
    lambda numbers: torch.tensor(numbers, dtype=torch.float32)
)


def travel(block: Block) -> Block:
    """The block as it comes out at the other end of the wire."""
    return unpack(pack([Message(0, [block])]).data)[0][0].blocks[0]


def quantize(values: np.ndarray, bits: int, seed: int | None = None) -> tuple[np.ndarray, Scale]:
    """The codes of a vector and their scale; with a seed they are rounded at random."""
    secret = None if seed is None else key(seed, Purpose.ROUND, 0, 0)
    vector = torch.from_numpy(values)
    block = sparse.block(Kind.MODEL, vector, coding=Coding.CODES, bits=bits, key=secret)
    return coded.codes_of(block), block.scale


def random(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_values_at_agreed_positions_need_none() -> None:
    """A dropout across the cut: both sides draw the same, and only what survives travels."""
    a = random(32 * 20).view(32, 20)
    here, there = (select.survivors(640, 0.3, np.random.default_rng(5)) for _ in range(2))
    block = travel(sparse.block(Kind.ACTIVATION, a.view(-1)[here] / 0.7, 640))
    assert block.indices is None
    found = sparse.vector(block, 640, torch.device("cpu"), there).view(a.shape)
    mask = torch.zeros(640).index_fill_(0, here, 1).view(a.shape)
    torch.testing.assert_close(found, a * mask / 0.7, rtol=0, atol=0)
    data = pack([Message(0, [block])])
    assert data.bytes[0, Kind.ACTIVATION] == 4 * len(here) and not data.bytes[0, Kind.MASK]


def test_a_block_of_kept_values_is_exact_where_it_gives_some() -> None:
    vector = random(500)
    positions = select.top(vector, 50).positions
    block = travel(sparse.block(Kind.GRADIENT, vector[positions], 500, positions))
    dense = sparse.vector(block, 500, torch.device("cpu"))
    assert torch.equal(dense[positions], vector[positions])
    assert int((dense != 0).sum()) == 50
    assert torch.equal(sparse.indices(block), positions)


@given(st.lists(st.floats(width=32), min_size=1, max_size=60))
@some
def test_f4_is_exact(numbers: list[float]) -> None:
    vector = torch.tensor(numbers, dtype=torch.float32)
    found = sparse.values(travel(sparse.block(Kind.MODEL, vector)))
    assert found.numpy().tobytes() == vector.numpy().tobytes()


@pytest.mark.parametrize(
    ("coding", "form"), [(Coding.F2, torch.float16), (Coding.BF16, torch.bfloat16)]
)
def test_halves_are_torchs(coding: Coding, form: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, 1e-8, 65504.0, 1e30, -torch.inf, torch.nan, 1 / 3])
    vector = torch.cat([special, random(1000)])
    found = sparse.values(travel(sparse.block(Kind.MODEL, vector, coding=coding)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, vector.to(form).float(), rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(found[8:], vector[8:])
    again = sparse.values(travel(sparse.block(Kind.MODEL, found, coding=coding)))
    torch.testing.assert_close(again, found, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("classes", "coding"), [(256, Coding.U1), (257, Coding.U2), (1 << 16, Coding.U2), (65537, 6)]
)
def test_labels_are_exact(classes: int, coding: Coding) -> None:
    y = torch.tensor([0, 1, classes // 2, classes - 1])
    block = travel(sparse.labels(y, classes))
    assert (block.kind, block.coding, block.size) == (Kind.LABEL, coding, 4)
    found = sparse.values(block)
    assert found.dtype == torch.int64
    assert torch.equal(found, y)


def test_places_are_positions_alone() -> None:
    block = travel(sparse.places(torch.tensor([0, 7, 31]), 32))
    assert (block.kind, block.coding, block.size, block.count) == (Kind.MASK, Coding.NONE, 32, 3)
    assert sparse.indices(block).tolist() == [0, 7, 31]
    with pytest.raises(WireError, match="positions alone"):
        sparse.values(block)


def test_shapes_are_flattened_and_gradients_left_behind() -> None:
    weight = random(24).view(4, 6).requires_grad_()
    block = sparse.block(Kind.MODEL, weight)
    assert (block.size, block.count) == (24, 24)
    np.testing.assert_array_equal(block.values, weight.detach().numpy().ravel())


@given(vectors, st.integers(1, 16))
@some
def test_quantize_errs_by_half_a_step(vector: Tensor, bits: int) -> None:
    codes, scale = quantize(vector.numpy(), bits)
    exact = vector.numpy().astype(np.float64)
    assert codes.max() < 2**bits
    assert scale.low == exact.min()
    step = (exact.max() - exact.min()) / (2**bits - 1)
    assert scale.step == pytest.approx(step, rel=1e-6, abs=1e-44)
    # Half a step, and what float32 loses on the way.
    found = scale.low + scale.step * codes.astype(np.float64)
    rounding = 2**-22 * (np.abs(exact).max() + np.ptp(exact))
    assert (np.abs(found - exact) <= 0.5 * step + rounding + 1e-40).all()


@given(vectors, st.integers(1, 16), st.integers(0, 2**32))
@some
def test_stochastic_rounding_errs_by_a_step(vector: Tensor, bits: int, seed: int) -> None:
    codes, scale = quantize(vector.numpy(), bits, seed)
    exact = vector.numpy().astype(np.float64)
    found = scale.low + scale.step * codes.astype(np.float64)
    rounding = 2**-22 * (np.abs(exact).max() + np.ptp(exact))
    assert (np.abs(found - exact) <= scale.step + rounding + 1e-40).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_stochastic_rounding_is_right_on_average(bits: int) -> None:
    """A mean of 20,000 draws is within 5 of its standard deviations; the nearest would not be."""
    draws, step = 20_000, 1.0 / (2**bits - 1)
    values = np.array([0.0, 0.07, 0.3, 0.49, 0.81, 1.0], "f4")
    many = np.tile(values, (draws, 1))
    codes, scale = quantize(many.ravel(), bits, 1)
    found = (scale.low + scale.step * codes).reshape(draws, -1)
    fraction = (values / step) % 1
    deviation = step * np.sqrt(fraction * (1 - fraction) / draws)
    assert (np.abs(found.mean(0) - values) <= 5 * deviation + 1e-6).all()
    nearest, _ = quantize(values, bits)
    assert (np.abs(scale.step * nearest - values) > 5 * deviation + 1e-6).any()
    assert (found.std(0)[[0, -1]] == 0).all(), "the ends of the range are exact"


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_stochastic_rounding_keeps_to_the_codes(bits: int) -> None:
    """The largest value is never rounded up to a code that there is not."""
    values = np.ones(100_000, "f4")
    values[0] = 0
    codes, _ = quantize(values, bits, 0)
    assert codes[0] == 0
    assert (codes[1:] >= 2**bits - 2).all(), "an error of float32 may cost a step, rarely"


@given(st.data(), st.integers(1, 16))
@some
def test_parts_are_quantized_one_by_one(data: st.DataObject, bits: int) -> None:
    lists = st.lists(st.floats(width=32), max_size=6)
    parts = [np.array(part, "f4") for part in data.draw(st.lists(lists, max_size=5))]
    lengths = [len(part) for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = torch.from_numpy(np.concatenate([np.empty(0, "f4"), *parts]))
        codes, scales = quantized.ranges(Kind.MODEL, whole, lengths, bits)
    low, step = sparse.values(scales).view(2, -1).numpy()
    every = np.split(coded.codes_of(codes), np.cumsum(lengths, dtype=int))
    for part, mine, a, s in zip(parts, every, low, step, strict=False):
        wanted, scale = quantize(part, bits)
        np.testing.assert_array_equal(mine, wanted)
        np.testing.assert_array_equal([a, s], np.array(scale, "f4"))


def test_32_bits_are_exact() -> None:
    vector = random(100)
    for where in (None, torch.arange(100)):
        given = sparse.block(Kind.MODEL, vector, 100, where, coding=Coding.CODES, bits=32)
        block = travel(given)
        assert block.coding == Coding.F4
        assert torch.equal(sparse.values(block), vector)


def test_stochastic_rounding_follows_its_stream() -> None:
    values = random(100).numpy()
    first, again, other = (quantize(values, 3, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("bits", [1, 8, 9, 16])
def test_constants_and_single_values_are_exact(bits: int) -> None:
    for vector in (torch.full((5,), -3.7), torch.tensor([1e-30]), torch.zeros(4)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            given = sparse.block(Kind.MODEL, vector, coding=Coding.CODES, bits=bits)
        assert torch.equal(sparse.values(travel(given)), vector)


@pytest.mark.parametrize("bits", [1, 7, 16])
def test_nothing_is_quantized_to_nothing(bits: int) -> None:
    block = travel(sparse.block(Kind.MODEL, torch.empty(0), coding=Coding.CODES, bits=bits))
    assert (block.count, block.scale) == (0, Scale(0.0, 0.0))
    assert sparse.values(block).shape == (0,)


@pytest.mark.parametrize("bits", [1, 4, 12])
@pytest.mark.parametrize(
    "numbers",
    [
        [torch.nan, 1.0],
        [torch.inf, 0.0],
        [0.0, -torch.inf],
        [torch.inf, -torch.inf],
        [torch.inf],
        [3.4e38, -3.4e38],
    ],
)
def test_what_is_not_finite_stays_so(numbers: list[float], bits: int) -> None:
    """A model that diverges must be seen to, whatever its values travel as."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block = sparse.block(Kind.MODEL, torch.tensor(numbers), coding=Coding.CODES, bits=bits)
    assert not sparse.values(travel(block)).isfinite().any()


@pytest.mark.parametrize("bits", [1, 5, 8, 11, 16])
def test_codes_of_some_values_add_to_their_positions(bits: int) -> None:
    vector = random(64)
    positions = select.top(vector, 20).positions
    given = sparse.block(
        Kind.GRADIENT, vector[positions], 64, positions, coding=Coding.CODES, bits=bits
    )
    block = travel(given)
    dense = sparse.vector(block, 64, torch.device("cpu"))
    assert (dense[positions] - vector[positions]).abs().max() <= 0.51 * block.scale.step
    left = torch.ones(64, dtype=torch.bool).index_fill_(0, positions, False)
    assert not dense[left].any()


@pytest.mark.parametrize("sized", ["dense", "positions", "agreed"])
def test_add_is_a_weighted_sum(sized: str) -> None:
    target, vector, where = random(30, 1), random(30, 2), torch.tensor([1, 4, 29])
    wanted, agreed = target.clone(), None
    if sized == "dense":
        block = sparse.block(Kind.MODEL, vector)
        wanted += 2.5 * vector
    else:
        wanted[where] += 2.5 * vector[where]
        agreed = where if sized == "agreed" else None
        places = where if sized == "positions" else None
        block = sparse.block(Kind.MODEL, vector[where], 30, places)
    sparse.add(target, travel(block), 2.5, agreed)
    torch.testing.assert_close(target, wanted)


@pytest.mark.parametrize("bits", [1, 4, 8, 11])
@pytest.mark.parametrize("sized", ["dense", "positions", "agreed"])
def test_codes_are_added_as_their_values_are(sized: str, bits: int) -> None:
    """With one scale, and with one for each part: product and sum are rounded, value by value."""
    target, vector, where = (
        random(3000, 1),
        random(3000, 2),
        select.top(random(3000, 3), 900).positions,
    )
    given = vector if sized == "dense" else vector[where]
    travels = where if sized == "positions" else None
    lengths = [100, 0, len(given) - 100]
    one = sparse.block(Kind.MODEL, given, 3000, travels, Coding.CODES, bits)
    many = quantized.ranges(Kind.MODEL, given, lengths, bits, None, 3000, travels)
    agreed = where if sized == "agreed" else None
    places = slice(None) if sized == "dense" else where
    for block in (travel(one), quantized.joined([travel(each) for each in many], lengths)):
        found, wanted = target.clone(), target.clone()
        wanted[places] += 0.3 * sparse.values(block)
        sparse.add(found, block, 0.3, agreed)
        assert torch.equal(found, wanted)


def test_means_are_over_those_who_have_a_position() -> None:
    """Each weighted; what nobody has is zero, and a weight below 1 is a weight."""
    total, weights = torch.zeros(4), torch.zeros(4)
    for weight, places, value in ((3.0, [0, 1], 2.0), (1.0, [1], 6.0), (0.25, [3], 5.0)):
        total[places] += weight * value
        weights[places] += weight
    assert sparse.mean(total, weights).tolist() == [2, 3, 0, 5]


def test_positions_of_its_own_come_before_agreed_ones() -> None:
    block = sparse.block(Kind.MODEL, torch.ones(2), 5, torch.tensor([0, 3]))
    found = sparse.vector(block, 5, torch.device("cpu"), torch.tensor([1, 2]))
    assert found.tolist() == [1, 0, 0, 1, 0]


@pytest.mark.parametrize("agreed", [None, [1, 2]])
@pytest.mark.parametrize("indices", [None, [0, 3]])
def test_a_vector_in_memory_that_is_there(
    agreed: list[int] | None, indices: list[int] | None
) -> None:
    """Nothing of what was there remains, and the buffer does not become part of it."""
    count = 2 if agreed or indices else 5
    where, known = (None if each is None else torch.tensor(each) for each in (indices, agreed))
    sent = sparse.block(Kind.MODEL, torch.arange(1.0, 1 + count), 5, where)
    block = unpack(pack([Message(0, [sent])]).data)[0][0].blocks[0]
    target = torch.full((5,), torch.nan)
    sparse.fill(target, block, known)
    wanted = [0.0] * 5
    for value, place in enumerate(indices or agreed or range(5), 1):
        wanted[place] = value
    assert target.tolist() == sparse.vector(block, 5, target.device, known).tolist() == wanted
    target.fill_(9)
    assert sparse.values(block).tolist() == list(range(1, 1 + count))


def test_values_can_be_changed_without_changing_the_buffer() -> None:
    data = pack([Message(0, [sparse.block(Kind.MODEL, torch.ones(4))])]).data
    block = unpack(data)[0][0].blocks[0]
    sparse.values(block).fill_(9)
    assert sparse.values(block).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("block", "size", "agreed", "text"),
    [
        (sparse.block(Kind.MODEL, torch.ones(4)), 5, None, "a vector of 4, wanted 5"),
        (sparse.block(Kind.MODEL, torch.ones(4), 5), 5, None, "4 values, wanted 5"),
        (sparse.block(Kind.MODEL, torch.ones(4), 5), 4, None, "a vector of 5, wanted 4"),
        (sparse.block(Kind.MODEL, torch.ones(4), 5), 5, [0, 1, 2], "4 values, wanted 3"),
        (sparse.block(Kind.MODEL, torch.ones(4)), 4, [0, 1, 2], "4 values, wanted 3"),
        (sparse.block(Kind.MODEL, torch.ones(2), 5, torch.tensor([0, 1])), 6, None, "wanted 6"),
        (sparse.places(torch.tensor([1]), 5), 5, None, "positions alone"),
    ],
)
def test_blocks_of_another_vector_are_refused(
    block: Block, size: int, agreed: list[int] | None, text: str
) -> None:
    where = None if agreed is None else torch.tensor(agreed)
    target = torch.zeros(size)
    with pytest.raises(WireError, match=text):
        sparse.add(target, block, 1.0, where)
    assert not target.any()
    with pytest.raises(WireError, match=text):
        sparse.vector(block, size, torch.device("cpu"), where)


def test_positions_are_wanted() -> None:
    with pytest.raises(WireError, match="without"):
        sparse.indices(sparse.block(Kind.MODEL, torch.ones(4)))
