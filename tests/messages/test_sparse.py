"""From vectors to blocks and back: which values travel, and how far they are from the originals."""

import warnings
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message, Scale, WireError, pack, unpack
from fedmpi.networks import flat, layers

some = settings(max_examples=200, deadline=None)

floats = st.floats(-(2.0**100), 2.0**100, width=32)
vectors = st.lists(floats, min_size=1, max_size=60).map(
    lambda numbers: torch.tensor(numbers, dtype=torch.float32)
)


def travel(block: Block) -> Block:
    """The block as it comes out at the other end of the wire."""
    return unpack(pack([Message(0, [block])]).data)[0][0].blocks[0]


def random(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@given(vectors, st.data())
@some
def test_top_are_the_largest(vector: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(vector)))
    found = sparse.top(vector, count)
    assert (found.dtype, found.shape) == (torch.int64, (count,))
    assert (found.diff() > 0).all()
    left = torch.ones(len(vector), dtype=torch.bool)
    left[found] = False
    if 0 < count < len(vector):
        assert vector[found].abs().min() >= vector[left].abs().max()


@pytest.mark.parametrize("share", [1e-5, 0.001, 0.01, 0.1, 0.3, 1])
@pytest.mark.parametrize("kind", ["random", "equal", "few", "ascending", "periodic", "nan"])
def test_top_of_a_long_vector_is_exact(kind: str, share: float) -> None:
    """Also where a sample misleads, or has nothing to tell."""
    size = 5 * sparse.SAMPLE + 17
    vector = {
        "random": lambda: random(size),
        "equal": lambda: torch.ones(size),
        "few": lambda: torch.zeros(size).index_fill_(0, torch.arange(7, 900), -2.0),
        "ascending": lambda: torch.arange(size) - size / 3,
        "periodic": lambda: (torch.arange(size) % 5 == 0) * random(size),
        "nan": lambda: random(size).index_fill_(0, torch.tensor([5, 77]), torch.nan),
    }[kind]()
    count = max(1, int(size * share))
    found = sparse.top(vector, count)
    assert found.shape == (count,)
    assert (found.diff() > 0).all()
    wanted = vector.abs().sort(descending=True).values[:count]
    torch.testing.assert_close(
        vector[found].abs().sort(descending=True).values, wanted, rtol=0, atol=0, equal_nan=True
    )


def test_top_looks_at_absolute_values() -> None:
    assert sparse.top(torch.tensor([1.0, -5.0, 3.0, -0.5, 4.0]), 3).tolist() == [1, 2, 4]


@pytest.mark.parametrize("count", range(7))
def test_ties_do_not_change_the_count(count: int) -> None:
    vector = torch.tensor([2.0, -2.0, 2.0, 2.0, -2.0, 3.0])
    found = sparse.top(vector, count).tolist()
    assert len(set(found)) == count
    assert count == 0 or 5 in found
    assert found == sparse.top(vector.clone(), count).tolist(), "the same each time"


@given(st.data(), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
@some
def test_tops_are_the_largest_of_each_part(data: st.DataObject, rows: int, sparsity: float) -> None:
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    x = random(rows * (sum(sizes) + 2), 3).view(rows, -1)
    bounds = np.cumsum([1, *sizes])
    spans = [range(a, b) for a, b in pairwise(bounds)]
    found = sparse.tops(x, spans, sparsity)
    chosen = torch.zeros(x.numel()).index_fill_(0, found, 1).view(x.shape)
    assert (found.diff() > 0).all()
    assert not chosen[:, 0].any() and not chosen[:, -1].any(), "in no part"
    for span in spans:
        size = len(span)
        count = min(size, max(1, -(-size * round(10 * (1 - sparsity)) // 10)))
        for row, whole in zip(chosen, x, strict=True):
            where, part = row[span.start : span.stop].bool(), whole[span.start : span.stop].abs()
            assert int(where.sum()) == count
            if 0 < count < size:
                assert part[where].min() >= part[~where].max()


def test_parts_are_pieces_of_a_network_and_statistics_are_in_none() -> None:
    stages = torch.nn.Sequential(torch.nn.Linear(3, 4), layers.BatchNorm(4), torch.nn.Linear(4, 2))
    shape = flat.Flat(stages)
    found = sparse.tops(random(2 * shape.size).view(2, -1), shape.parameters, 0.5)
    assert not set((found % shape.size).tolist()) & set(shape.stat_positions.tolist())
    assert len(found) == 2 * (6 + 2 + 2 + 2 + 4 + 1)


@pytest.mark.parametrize("size", [50, 2 * sparse.SAMPLE + 1])
def test_tops_do_not_depend_on_who_stands_beside(size: int) -> None:
    """Nor where values are equal."""
    x = (random(3 * size) * 2).round().view(3, size)
    spans = [range(20), range(20, size)]
    together = sparse.tops(x, spans, 0.9).view(3, -1)
    for number, row in enumerate(x):
        assert torch.equal(together[number] - number * size, sparse.tops(row[None], spans, 0.9))


def test_random_tops_without_chance_are_tops() -> None:
    x = random(300).view(5, 60)
    for count in (1, 7, 60):
        found = sparse.random_tops(x, count, 0.0, np.random.default_rng(0))
        assert torch.equal(found, sparse.tops(x, [range(60)], 1 - count / 60))
    assert len(sparse.random_tops(x, 60, 0.3, np.random.default_rng(0))) == 300


def test_random_tops_are_drawn_one_after_the_other() -> None:
    """Against all orders of drawing 2 of 5, written out; within 5 standard deviations."""
    draws, alpha, row = 40_000, 0.4, torch.tensor([0.1, -3.0, 0.2, 2.0, 0.0])
    weight = [alpha / 3, (1 - alpha) / 2, alpha / 3, (1 - alpha) / 2, alpha / 3]
    wanted: dict[tuple[int, ...], float] = {}
    for a, b in permutations(range(5), 2):
        both = tuple(sorted((a, b)))
        wanted[both] = wanted.get(both, 0) + weight[a] * weight[b] / (1 - weight[a])
    assert sum(wanted.values()) == pytest.approx(1)
    found = sparse.random_tops(row.expand(draws, 5), 2, alpha, np.random.default_rng(4))
    pairs = (found.view(draws, 2) - 5 * torch.arange(draws)[:, None]).tolist()
    seen = Counter(map(tuple, pairs))
    for both, p in wanted.items():
        assert abs(seen[both] / draws - p) < 5 * (p * (1 - p) / draws) ** 0.5


def test_random_tops_follow_their_stream() -> None:
    x = random(300).view(5, 60)
    first, again, other = (
        sparse.random_tops(x, 9, 0.3, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.diff() > 0).all() and (first.view(5, 9) // 60).unique(dim=1).shape == (5, 1)


def test_values_at_agreed_positions_need_none() -> None:
    """A dropout across the cut: both sides draw the same, and only what survives travels."""
    a = random(32 * 20).view(32, 20)
    here, there = (sparse.survivors(640, 0.3, np.random.default_rng(5)) for _ in range(2))
    block = travel(sparse.block(Kind.ACTIVATION, a.view(-1)[here] / 0.7, 640))
    assert block.indices is None
    found = sparse.vector(block, 640, torch.device("cpu"), there).view(a.shape)
    mask = torch.zeros(640).index_fill_(0, here, 1).view(a.shape)
    torch.testing.assert_close(found, a * mask / 0.7, rtol=0, atol=0)
    data = pack([Message(0, [block])])
    assert data.bytes[0, Kind.ACTIVATION] == 4 * len(here) and not data.bytes[0, Kind.MASK]


def test_survivors_are_a_share_drawn_anew() -> None:
    n, share = 100_000, 0.3
    found = [sparse.survivors(n, share, np.random.default_rng(seed)) for seed in range(3)]
    for each in found:
        assert abs(len(each) - 0.7 * n) < 5 * (n * share * (1 - share)) ** 0.5
        assert (each.diff() > 0).all() and each[-1] < n and each.dtype == torch.int64
    both = np.intersect1d(found[0], found[1])
    assert abs(len(both) - 0.49 * n) < 5 * (n * 0.49 * 0.51) ** 0.5
    assert torch.equal(sparse.survivors(9, 0.0, np.random.default_rng(0)), torch.arange(9))
    assert sparse.survivors(0, 0.5, np.random.default_rng(0)).shape == (0,)


def test_features_are_right_on_average() -> None:
    """Means over draws within 5 of their standard deviations, whatever the probabilities."""
    x = random(16 * 40).view(16, 40) * torch.linspace(0, 3, 40) + 1
    x[:, 7] = 5  # does not vary, and counts nevertheless
    rng, draws = np.random.default_rng(0), 4000
    total, count, shares = torch.zeros_like(x), 0, torch.zeros(40)
    for _ in range(draws):
        kept, share = sparse.features(x, 4, rng)
        assert kept.dtype == torch.int64 and share.dtype == torch.float32
        shares[kept] = share
        total[:, kept] += x[:, kept] / share
        count += len(kept)
    assert shares.sum() == pytest.approx(10, rel=1e-5), "each was kept once, at least"
    assert abs(count / draws - 10) < 5 * (10 / draws) ** 0.5
    deviation = x.abs() * ((1 - shares) / shares / draws).sqrt()
    assert ((total / draws - x).abs() <= 5 * deviation + 1e-4).all()
    spread = x.std(0, correction=0)
    weight = spread + 0.1 * spread.mean()
    free = shares < 1
    ratio = shares[free] / weight[free]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)


def test_features_that_vary_most_are_certain() -> None:
    x = random(16 * 20).view(16, 20)
    x[:, [3, 11]] *= 1000
    for seed in range(20):
        kept, share = sparse.features(x, 4, np.random.default_rng(seed))
        chance = dict(zip(kept.tolist(), share.tolist(), strict=True))
        assert chance[3] == chance[11] == 1
        assert all(value < 1 for place, value in chance.items() if place not in (3, 11))


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.floats(0.01, 1))
@some
def test_inclusion_adds_up(weights: list[float], share: float) -> None:
    wanted = share * len(weights)
    found = sparse._inclusion(np.array(weights), wanted)
    assert found.sum() == pytest.approx(wanted, rel=1e-6)
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found[np.argsort(weights)]) >= -1e-12).all()


@pytest.mark.parametrize("x", [torch.zeros(4, 50), torch.full((4, 50), 2.5), torch.ones(1, 50)])
def test_features_that_do_not_vary_are_alike(x: Tensor) -> None:
    kept, share = sparse.features(x, 5, np.random.default_rng(0))
    assert 0 < len(kept) < 50
    torch.testing.assert_close(share, torch.full_like(share, 0.2))


def test_features_that_are_no_numbers_are_kept() -> None:
    x = random(80).view(4, 20)
    x[0, 4], x[1, 9] = torch.nan, torch.inf
    for seed in range(10):
        kept, share = sparse.features(x, 20, np.random.default_rng(seed))
        assert {4, 9} <= set(kept.tolist()) and share.isfinite().all()
    kept, share = sparse.features(x, 1, np.random.default_rng(0))
    assert len(kept) == 20 and (share == 1).all()
    assert len(sparse.features(torch.empty(3, 0), 2, np.random.default_rng(0))[0]) == 0


def test_a_block_of_kept_values_is_exact_where_it_gives_some() -> None:
    vector = random(500)
    positions = sparse.top(vector, 50)
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
    codes, scale = sparse.quantize(vector.numpy(), bits)
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
    codes, scale = sparse.quantize(vector.numpy(), bits, np.random.default_rng(seed))
    exact = vector.numpy().astype(np.float64)
    found = scale.low + scale.step * codes.astype(np.float64)
    rounding = 2**-22 * (np.abs(exact).max() + np.ptp(exact))
    assert (np.abs(found - exact) <= scale.step + rounding + 1e-40).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_stochastic_rounding_is_right_on_average(bits: int) -> None:
    """A mean of 20,000 draws is within 5 of its standard deviations; the nearest would not be."""
    draws, step = 20_000, 1.0 / (2**bits - 1)
    values = np.array([0.0, 0.07, 0.3, 0.49, 0.81, 1.0], "f4")
    rng = np.random.default_rng(bits)
    many = np.tile(values, (draws, 1))
    codes, scale = sparse.quantize(many.ravel(), bits, rng)
    found = (scale.low + scale.step * codes).reshape(draws, -1)
    fraction = (values / step) % 1
    deviation = step * np.sqrt(fraction * (1 - fraction) / draws)
    assert (np.abs(found.mean(0) - values) <= 5 * deviation + 1e-6).all()
    nearest, _ = sparse.quantize(values, bits)
    assert (np.abs(scale.step * nearest - values) > 5 * deviation + 1e-6).any()
    assert (found.std(0)[[0, -1]] == 0).all(), "the ends of the range are exact"


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_stochastic_rounding_keeps_to_the_codes(bits: int) -> None:
    """The largest value is never rounded up to a code that there is not."""
    values = np.ones(100_000, "f4")
    values[0] = 0
    codes, _ = sparse.quantize(values, bits, np.random.default_rng(0))
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
        codes, low, step = sparse.quantize_parts(
            np.concatenate([np.empty(0, "f4"), *parts]), lengths, bits
        )
    assert codes.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert low.dtype == step.dtype == np.float32
    for part, mine, a, s in zip(
        parts, np.split(codes, np.cumsum(lengths)), low, step, strict=False
    ):
        wanted, scale = sparse.quantize(part, bits)
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
    first, again, other = (
        sparse.quantize(values, 3, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
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
    positions = sparse.top(vector, 20)
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
