"""Codes of few bits: what they stand for, that they are right on average, and their bytes.

QSGD's levels are in `test_compressors`.
"""

import warnings
from collections.abc import Sequence
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmpi.config import EXACT, ConfigError
from fedmpi.messages import quantized, select, sparse
from fedmpi.messages.codec import (
    BLOCK,
    BUFFER,
    MESSAGE,
    Block,
    Coding,
    Kind,
    Message,
    WireError,
    pack,
    unpack,
)
from fedmpi.streams import Purpose, key
from tests import coded

some = settings(max_examples=100, deadline=None)

WHAT = Kind.ACTIVATION


@pytest.fixture(autouse=True)
def silence() -> None:
    """What is not finite is no reason to warn."""
    warnings.simplefilter("error")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def secret(seed: int = 0) -> np.ndarray:
    return key(seed, Purpose.ROUND, 0, 0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def travel(blocks: Sequence[Block]) -> list[Block]:
    """The blocks as they come out at the other end of the wire."""
    return list(unpack(pack([Message(0, blocks)]).data)[0][0].blocks)


def check_bytes(blocks: Sequence[Block], *sections: int, mask: int = 0) -> None:
    """What is packed is these sections, a mask, heads, and padding to 8 bytes."""
    packed = pack([Message(0, blocks)])
    account = packed.bytes[0]
    assert account[WHAT] == sum(sections)
    assert account[Kind.MASK] == mask
    padded = sum(-(-length // 8) * 8 for length in (*sections, mask))
    heads = BUFFER.size + MESSAGE.size + BLOCK.size * len(blocks)
    assert len(packed.data) == heads + padded


# ---- Ranges


@pytest.mark.parametrize("bits", [2, 4, 8, 11, 16])
@pytest.mark.parametrize("lengths", [[40], [10, 10, 10, 10], [1, 39], [7, 0, 20, 13]])
def test_ranges_err_by_half_a_step_of_their_part(bits: int, lengths: list[int]) -> None:
    x = normal(40) * torch.logspace(-3, 3, 40)
    blocks = quantized.ranges(WHAT, x, lengths, bits)
    check_bytes(blocks, ceil(40 * bits / 8), 8 * len(lengths))
    found = quantized.ranged(travel(blocks), lengths)
    for mine, part in zip(found.split(lengths), x.split(lengths), strict=True):
        if len(part):
            step = (part.max() - part.min()) / (2**bits - 1)
            assert (mine - part).abs().max() <= 0.5 * step + 2**-22 * part.abs().max()
            assert mine[part.argmin()] == part.min()
    assert torch.equal(found, quantized.ranged(blocks, lengths)), "the same on both sides"


def test_a_part_alone_is_a_block_of_one_scale() -> None:
    x = normal(8, 5)
    blocks = quantized.ranges(WHAT, x, [40], 8)
    one = sparse.block(WHAT, x, coding=Coding.CODES, bits=8)
    assert torch.equal(quantized.ranged(blocks, [40]), sparse.values(one))
    rows = quantized.ranged(quantized.ranges(WHAT, x, [5] * 8, 8), [5] * 8).view(8, 5)
    for row, sample in zip(rows, x, strict=True):
        alone = sparse.block(WHAT, sample, coding=Coding.CODES, bits=8)
        assert torch.equal(row, sparse.values(alone))


@pytest.mark.parametrize("bits", [2, 5, 16])
def test_ranges_are_right_on_average(bits: int) -> None:
    """A mean of draws is within 5 standard deviations; and the variance within its bound."""
    draws, x = 5000, torch.tensor([0.0, 0.1, 0.77, 1.0, -4.0, 3.3, 9.0, 9.0])
    lengths, many = [4, 4] * draws, x.repeat(draws)
    found = quantized.ranged(quantized.ranges(WHAT, many, lengths, bits, secret(bits)), lengths)
    found = found.view(draws, 8).double()
    step = torch.tensor([1.0] * 4 + [13.0] * 4) / (2**bits - 1)
    bound = step / 2
    rounding = 2**-22 * 13
    assert ((found.mean(0) - x).abs() <= 5 * bound / draws**0.5 + rounding).all()
    assert (found.var(0) <= 1.05 * bound**2 + rounding**2).all()
    nearest = quantized.ranged(quantized.ranges(WHAT, x, [4, 4], bits), [4, 4])
    assert bits == 16 or ((nearest - x).abs() > 5 * bound / draws**0.5 + rounding).any()
    again = quantized.ranges(WHAT, many, lengths, bits, secret(bits))
    assert torch.equal(quantized.ranged(again, lengths).view(draws, 8).double(), found)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_one_part_that_is_no_number_leaves_the_others_alone(wrong: float) -> None:
    for lengths in ([4, 4, 4], [3, 5, 4]):
        x = normal(12)
        x[6] = wrong
        for one in (None, secret()):
            found = quantized.ranged(quantized.ranges(WHAT, x, lengths, 8, one), lengths)
            wanted = [True, False, True]
            assert [bool(part.isfinite().all()) for part in found.split(lengths)] == wanted
            assert not found.split(lengths)[1].isfinite().any()


@pytest.mark.parametrize("bits", [2, 8, 16, EXACT])
def test_constants_zeros_lone_values_and_nothing_are_exact(bits: int) -> None:
    for x in (torch.full((4,), -3.7), torch.zeros(4), torch.tensor([1e-30] * 4), torch.empty(0)):
        for lengths in ([1] * len(x), [len(x)], [0, len(x), 0]):
            blocks = travel(quantized.ranges(WHAT, x, lengths, bits))
            assert torch.equal(quantized.ranged(blocks, lengths), x)
        draws = torch.from_numpy(rng().random(len(x)))
        assert torch.equal(quantized.unbiased(x, bits, draws), x)


def test_32_bits_are_exact_and_one_block() -> None:
    x = normal(12)
    blocks = quantized.ranges(WHAT, x, [3, 9], EXACT)
    check_bytes(blocks, 48)
    assert torch.equal(quantized.ranged(travel(blocks), [3, 9]), x)


@pytest.mark.parametrize(
    ("lengths", "text"),
    [([3, 8], "12 values, wanted 11"), ([3, 3, 6], "4 values of ranges, wanted 6")],
)
def test_ranges_of_other_parts_are_refused(lengths: list[int], text: str) -> None:
    blocks = quantized.ranges(WHAT, normal(12), [3, 9], 8)
    with pytest.raises(WireError, match=text):
        quantized.ranged(blocks, lengths)
    with pytest.raises(WireError, match="1 blocks, wanted codes and ranges"):
        quantized.ranged(blocks[:1], [3, 9])


# ---- SGQ and DQ


def plain(x: Tensor, spans: Sequence[range], sparsity: float, bits: int) -> Tensor:
    """DQ(SGQ(x)), written out in float64 for one part of one row after the other."""
    dense = torch.zeros(x.shape, dtype=torch.float64)
    for row in range(len(x)):
        for span in spans:
            part = x[row, span.start : span.stop].double().tolist()
            count = max(1, ceil(len(part) * round(1 - sparsity, 9)))
            where = sorted(range(len(part)), key=lambda i: -abs(part[i]))[:count]
            low, high = (f(part[i] for i in where) for f in (min, max))
            for i in where:
                dense[row, span.start + i] = part[i]
                if bits != EXACT and high > low:
                    s = (high - low) / (2**bits - 1)
                    dense[row, span.start + i] = low + s * round((part[i] - low) / s)
    return dense


@pytest.mark.parametrize("bits", [2, 4, 8, 13, EXACT])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    "spans", [[range(30)], [range(10), range(10, 20), range(20, 30)], [range(2, 9), range(11, 29)]]
)
def test_sgq_is_its_formula(spans: list[range], sparsity: float, bits: int) -> None:
    x = normal(3, 30) * torch.logspace(-1, 1, 30)
    blocks = quantized.strongest(WHAT, x, spans, sparsity, bits)
    found = quantized.restored(travel(blocks), (3, 30), spans, sparsity)
    wanted = plain(x, spans, sparsity, bits)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    if bits == EXACT:
        assert torch.equal(found.double(), wanted), "exact where values are kept"
    count = 3 * sum(max(1, ceil(len(span) * round(1 - sparsity, 9))) for span in spans)
    mask = min(4 * count, ceil(90 / 8)) if sparsity else 0
    if bits == EXACT:
        check_bytes(blocks, 4 * count, mask=mask)
    else:
        check_bytes(blocks, ceil(count * bits / 8), 8 * 3 * len(spans), mask=mask)


def test_sgq_of_one_tensor_has_the_bytes_of_its_formula() -> None:
    """ceil(n / 8) + ceil(k b / 8) + 8; beyond a sparsity of 31 / 32, 4 k for the first."""
    x = normal(1, 1000)
    for sparsity, mask in ((0.9, 125), (0.99, 40)):
        k = ceil(round(1000 * (1 - sparsity), 6))
        blocks = quantized.strongest(WHAT, x, [range(1000)], sparsity, 5)
        check_bytes(blocks, ceil(k * 5 / 8), 8, mask=mask)


def test_sgq_can_round_at_random() -> None:
    x, spans, draws = normal(1, 40), [range(25), range(25, 40)], 3000
    total = torch.zeros(1, 40)
    for draw in range(draws):
        blocks = quantized.strongest(WHAT, x, spans, 0.5, 2, secret(draw))
        total += quantized.restored(blocks, (1, 40), spans, 0.5)
    kept = quantized.restored(quantized.strongest(WHAT, x, spans, 0.5, EXACT), (1, 40), spans, 0.5)
    bound = 5 * (kept.max() - kept.min()) / 3 / 2 / draws**0.5
    assert (total / draws - kept).abs().max() <= bound
    nearest = quantized.restored(quantized.strongest(WHAT, x, spans, 0.5, 2), (1, 40), spans, 0.5)
    assert (nearest - kept).abs().max() > bound


def test_sgq_of_what_is_no_number_is_none() -> None:
    x = normal(2, 20)
    x[0, 3] = torch.nan
    blocks = quantized.strongest(WHAT, x, [range(10), range(10, 20)], 0.5, 8)
    found = quantized.restored(blocks, (2, 20), [range(10), range(10, 20)], 0.5)
    assert int(found[0, :10].isnan().sum()) == 5
    assert found[0, 10:].isfinite().all() and found[1].isfinite().all()


@pytest.mark.parametrize("bits", [2, 4, 8, 9, 16])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_sgq_by_sign_and_magnitude(sparsity: float, bits: int) -> None:
    """A bit for the sign, the others uniform between the least and the greatest magnitude."""
    spans = [range(2, 9), range(11, 29)]
    x = normal(3, 30) * torch.logspace(-1, 1, 30)
    blocks = quantized.strongest(WHAT, x, spans, sparsity, bits, by_sign=True)
    found = quantized.restored(travel(blocks), (3, 30), spans, sparsity, by_sign=True)
    sizes = plain(x.abs(), spans, sparsity, bits - 1).numpy()
    wanted = sizes * np.sign(x.double().numpy())
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    plainly = quantized.strongest(WHAT, x, spans, sparsity, bits)
    lengths = [pack([Message(0, some)]).bytes.sum() for some in (blocks, plainly)]
    assert lengths[0] == lengths[1]
    if sparsity == 0.9 and bits == 4:
        exact = plain(x, spans, sparsity, EXACT)
        coarse = quantized.restored(plainly, (3, 30), spans, sparsity)
        assert (found - exact).norm() < 0.7 * (coarse - exact).norm()


def test_sgq_by_sign_can_round_at_random_and_shows_what_is_no_number() -> None:
    x, spans, draws = normal(1, 40), [range(25), range(25, 40)], 3000
    total = torch.zeros(1, 40)
    for draw in range(draws):
        blocks = quantized.strongest(WHAT, x, spans, 0.5, 3, secret(draw), by_sign=True)
        total += quantized.restored(blocks, (1, 40), spans, 0.5, by_sign=True)
    kept = quantized.restored(quantized.strongest(WHAT, x, spans, 0.5, EXACT), (1, 40), spans, 0.5)
    bound = 5 * kept.abs().max() / 3 / 2 / draws**0.5
    assert (total / draws - kept).abs().max() <= bound
    x[0, 3] = torch.nan
    blocks = quantized.strongest(WHAT, x, spans, 0.5, 8, by_sign=True)
    found = quantized.restored(blocks, (1, 40), spans, 0.5, by_sign=True)
    assert int(found[0, :25].isnan().sum()) == 13
    assert found[0, 25:].isfinite().all()


def test_sgq_of_another_tensor_is_refused() -> None:
    blocks = quantized.strongest(WHAT, normal(2, 20), [range(20)], 0.5, 8)
    with pytest.raises(WireError, match="a tensor of 40, wanted 60"):
        quantized.restored(blocks, (3, 20), [range(20)], 0.5)
    with pytest.raises(WireError, match="20 values, wanted 4"):
        quantized.restored(blocks, (2, 20), [range(20)], 0.9)


# ---- Magnitudes


@given(
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=40),
    st.integers(2, 16),
    st.integers(0, 2**32),
)
@some
def test_magnitudes_are_those_beside_a_value(numbers: list[float], bits: int, seed: int) -> None:
    g = torch.tensor(numbers)
    draws = torch.from_numpy(rng(seed).random(len(g)))
    found, size = quantized.unbiased(g, bits, draws).double(), g.abs().double()
    low, step = size.min(), (size.max() - size.min()) / (2**bits - 2)
    rounding = 2**-21 * size.max() + 1e-40
    assert ((found - g).abs() <= step + rounding).all()
    assert ((found >= 0) == (g >= 0))[found != 0].all()
    level = (found.abs() - low) / step if step > 0 else torch.zeros(1)
    assert step == 0 or (level - level.round()).abs().max() * step <= rounding
    assert level.max() <= 2**bits - 2 + 1e-3


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_magnitudes_are_right_on_average(bits: int) -> None:
    draws, g = 20_000, torch.tensor([0.5, -0.61, 1.0, 0.77, -2.5, 2.0, 0.51])
    found = quantized.unbiased(
        g.expand(draws, 7), bits, torch.from_numpy(rng(bits).random((draws, 7)))
    ).double()
    step = 2.0 / (2**bits - 2)
    fraction = ((g.abs() - 0.5).double() / step) % 1
    deviation = step * (fraction * (1 - fraction)).sqrt()
    assert ((found.mean(0) - g).abs() <= 5 * deviation / draws**0.5 + 1e-6).all()
    assert (found.var(0) <= 1.05 * step**2 / 4 + 1e-9).all(), "the variance's bound"
    torch.testing.assert_close(found.std(0), deviation, rtol=0.1, atol=1e-4)
    assert torch.equal(found[:, [0, 4]], g[[0, 4]].double().expand(draws, 2)), "both ends"


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_magnitudes_of_what_is_no_number(wrong: float) -> None:
    g = normal(3, 10)
    g[1, 4] = wrong
    rows = quantized.unbiased(g, 8, torch.full(g.shape, 0.5, dtype=torch.float64))
    assert rows[[0, 2]].isfinite().all() and not rows[1].isfinite().any()
    assert quantized.unbiased(g, EXACT, torch.zeros(3, 10)) is g


def test_nothing_has_no_magnitudes() -> None:
    assert quantized.unbiased(torch.empty(2, 0), 8, torch.empty(2, 0)).shape == (2, 0)


# ---- Columns


@pytest.mark.parametrize("bits", [3, 8, EXACT])
def test_columns_have_a_range_each(bits: int) -> None:
    x = normal(16, 12) * torch.logspace(-3, 3, 12)
    kept = torch.tensor([0, 4, 5, 11])
    blocks = [*quantized.columns(WHAT, x[:, kept], 12, bits), sparse.places(kept, 12)]
    sections = [4 * 64] if bits == EXACT else [ceil(64 * bits / 8), 8 * 4]
    check_bytes(blocks, *sections, mask=2)
    *codes, places = travel(blocks)
    found = quantized.columned(codes, sparse.indices(places), (16, 12))
    for column in range(12):
        mine, wanted = found[:, column], x[:, column]
        if column not in kept:
            assert not mine.any()
        elif bits == EXACT:
            assert torch.equal(mine, wanted)
        else:
            one = sparse.block(WHAT, wanted, coding=Coding.CODES, bits=bits)
            assert torch.equal(mine, sparse.values(one))


def test_columns_that_are_kept_are_right_on_average() -> None:
    """SplitFC in one: dropped features and random rounding together."""
    x, random, draws = normal(8, 10) + 0.5, rng(2), 4000
    total = torch.zeros(8, 10)
    for draw in range(draws):
        kept, share = select.features(x, 2, random)
        blocks = quantized.columns(WHAT, x[:, kept] / share, 10, 4, secret(draw))
        total += quantized.columned(blocks, kept, (8, 10))
    # A column is kept with a probability of 0.05 at least: variance below x^2 / 0.05 + step^2 / 4.
    bound = 5 * ((x.square() / 0.05 + 1) / draws).sqrt()
    assert ((total / draws - x).abs() <= bound).all()


def test_no_columns_and_others() -> None:
    none = torch.empty(0, dtype=torch.int64)
    blocks = travel(quantized.columns(WHAT, torch.empty(4, 0), 5, 8))
    found = quantized.columned(blocks, none, (4, 5))
    assert torch.equal(found, torch.zeros(4, 5))
    blocks = quantized.columns(WHAT, normal(4, 2), 5, 8)
    with pytest.raises(WireError, match="a batch of 20, wanted 24"):
        quantized.columned(blocks, torch.tensor([1, 2]), (4, 6))
    with pytest.raises(WireError, match="8 values, wanted 4"):
        quantized.columned(blocks, torch.tensor([1]), (4, 5))


# ---- Clusters


@pytest.mark.parametrize(("vectors", "groups"), [(1, 1), (6, 1), (6, 6), (6, 2), (12, 3)])
@pytest.mark.parametrize("centroids", [2, 5, 16])
def test_each_part_becomes_its_nearest_centroid(vectors: int, groups: int, centroids: int) -> None:
    batch, size = 20, 24
    x, width = normal(batch, size), size // vectors
    blocks = quantized.clusters(WHAT, x, vectors, groups, centroids, rng())
    each = min(centroids, batch * vectors // groups)
    codes = ceil(batch * vectors * (each - 1).bit_length() / 8)
    check_bytes(blocks, 4 * groups * each * width, codes)
    found = quantized.clustered(travel(blocks), (batch, size), vectors, groups)
    books = sparse.values(blocks[0]).view(groups, each, width)
    for sample in range(batch):
        for vector in range(vectors):
            part = slice(vector * width, (vector + 1) * width)
            distance = (books[vector // (vectors // groups)] - x[sample, part]).square().sum(1)
            mine = (found[sample, part] - x[sample, part]).square().sum()
            torch.testing.assert_close(mine, distance.min(), rtol=1e-4, atol=1e-5)


def test_lloyd_is_his() -> None:
    """Against his algorithm written out: centroids are the means of their points, step by step."""
    x = normal(30, 6)
    points = x.view(30, 3, 2).reshape(90, 2)
    for steps in (0, 1, 2, 7):
        books = points[np.sort(rng(3).permutation(90)[:4])].clone()
        for _ in range(steps):
            near = torch.cdist(points, books).argmin(1)
            for one in range(4):
                if (near == one).any():
                    books[one] = points[near == one].mean(0)
        blocks = quantized.clusters(WHAT, x, 3, 1, 4, rng(3), steps)
        torch.testing.assert_close(sparse.values(blocks[0]).view(4, 2), books)


def test_clusters_that_are_apart_are_found() -> None:
    """And iterations only make it better."""
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (centres[torch.arange(60) % 3] + 0.1 * normal(60, 2)).repeat(1, 2)
    errors = []
    for steps in (0, 1, 3, 20):
        blocks = quantized.clusters(WHAT, x, 2, 1, 8, rng(0), steps)
        errors.append(float((quantized.clustered(blocks, (60, 4), 2, 1) - x).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 4, "120 points, and two values of a variance of 0.01"


def test_clusters_are_the_same_wherever_zero_is() -> None:
    x = (8 * normal(30, 6)).round() / 8
    here, there = (quantized.clusters(WHAT, x + far, 3, 1, 4, rng(), 0) for far in (0, 2**14))
    np.testing.assert_array_equal(here[1].values, there[1].values)  # type: ignore[arg-type]


def test_clusters_follow_their_stream() -> None:
    x = normal(30, 6)
    first, again, other = (quantized.clusters(WHAT, x, 3, 1, 4, rng(seed)) for seed in (1, 1, 2))
    assert pack([Message(0, first)]).data.tobytes() == pack([Message(0, again)]).data.tobytes()
    assert not torch.equal(sparse.values(first[0]), sparse.values(other[0]))


def test_many_distances_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(30, 6)
    whole = quantized.clustered(quantized.clusters(WHAT, x, 3, 3, 4, rng()), (30, 6), 3, 3)
    monkeypatch.setattr(quantized, "DISTANCES", 50)
    parts = quantized.clustered(quantized.clusters(WHAT, x, 3, 3, 4, rng()), (30, 6), 3, 3)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("x", [torch.zeros(6, 4), torch.full((6, 4), -2.5), normal(1, 4)])
def test_few_different_parts_are_exact(x: Tensor) -> None:
    for vectors, groups in ((1, 1), (2, 1), (2, 2)):
        blocks = travel(quantized.clusters(WHAT, x, vectors, groups, 3, rng()))
        assert torch.equal(quantized.clustered(blocks, (len(x), 4), vectors, groups), x)


def test_clusters_of_nothing() -> None:
    blocks = travel(quantized.clusters(WHAT, torch.empty(0, 4), 2, 1, 3, rng()))
    assert quantized.clustered(blocks, (0, 4), 2, 1).shape == (0, 4)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("steps", [0, 5])
def test_a_group_that_is_no_number(wrong: float, steps: int) -> None:
    x = normal(20, 6)
    x[3, 4] = wrong
    blocks = quantized.clusters(WHAT, x, 6, 2, 4, rng(), steps)
    found = quantized.clustered(blocks, (20, 6), 6, 2)
    assert found[:, :3].isfinite().all() and not found[:, 3:].isfinite().any()


@pytest.mark.parametrize(("vectors", "groups"), [(7, 1), (6, 4)])
def test_what_does_not_divide_is_refused(vectors: int, groups: int) -> None:
    with pytest.raises(ConfigError, match=f"{vectors} vectors in {groups} groups: wanted a div"):
        quantized.clusters(WHAT, normal(5, 24), vectors, groups, 4, rng())


def test_clusters_of_another_batch_are_refused() -> None:
    blocks = quantized.clusters(WHAT, normal(20, 6), 3, 1, 3, rng())
    with pytest.raises(WireError, match="wanted codebooks of"):
        quantized.clustered(blocks, (21, 6), 3, 1)
    wrong = coded.block(WHAT, 60, np.full(60, 3), 2)
    with pytest.raises(WireError, match="code 3 of a codebook of 3"):
        quantized.clustered([blocks[0], wrong], (20, 6), 3, 1)


@pytest.mark.parametrize("bits", [2, 5, 12])
def test_the_expected_error_is_that_of_many_draws(bits: int) -> None:
    """By numpy, and by the mean over draws, within five standard errors."""
    g = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    sizes, wanted = g.abs().numpy(), 0.0
    for row in sizes.astype(float):
        step = (row.max() - row.min()) / (2**bits - 2)
        up = (row - row.min()) / step % 1
        wanted += float((up * (1 - up)).sum()) * step**2
    found = quantized.expected_error(g, bits)
    assert found == pytest.approx(wanted, rel=1e-2 if bits == 12 else 1e-3)
    draws = torch.from_numpy(np.random.default_rng(1).random((400, 3, 40)))
    errors = [float((quantized.unbiased(g, bits, d) - g).square().sum()) for d in draws]
    assert abs(np.mean(errors) - found) < 5 * np.std(errors) / 20
    assert quantized.expected_error(torch.ones(7), bits) == 0
    assert np.isnan(quantized.expected_error(torch.tensor([1.0, np.inf]), bits))


def test_floats_have_no_error() -> None:
    assert quantized.expected_error(torch.randn(5), 32) == 0
