"""The algebra of methods that compress updates: right on average, or contracting with feedback."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.messages import quantized, select, sparse
from fedmpi.messages.codec import Block, Kind, Message, WireError, pack, unpack
from fedmpi.methods import powersgd, randomk
from fedmpi.streams import Purpose, key
from tests.methods.test_fedavg import TINY
from tests.plain import EVERYTHING, play
from tests.small import refusal, run, small, smooth

BYTES = 24 + 16 + 32
"""Headers of a buffer with one message of one block."""
CPU = torch.device("cpu")
few = settings(max_examples=40, deadline=None)
numbers = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
vectors = st.lists(numbers, min_size=1, max_size=40)


def engine(*words: str) -> Engine:
    return Engine(small(*words))


def sent(found: Engine, client: int, update: Tensor, t: int = 0) -> Tensor:
    """What the server makes of a client's upload after that update: [n]."""
    blocks = found.clients.upload(t, client, found.clients.start + update)
    found.server.sum.total.zero_()
    found.server.absorb(t, Message(client, blocks, 1.0))
    return found.server.sum.total.clone()


def noise(found: Engine, seed: int = 0) -> Tensor:
    return torch.randn(found.flat.size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["randomk", "qsgd"])
def test_without_feedback_it_is_right_on_average(name: str) -> None:
    """Over rounds, that is over draws: each value within five of the largest standard errors."""
    words: dict[str, tuple[str, ...]] = {
        "randomk": ("method.sparsity=0.75",),
        "qsgd": ("method.bits=3", "method.bucket=16"),
    }
    found = engine(f"method.name={name}", *words[name])
    update, draws = noise(found), 800
    every = torch.stack([sent(found, 2, update, t) for t in range(draws)])
    off = (every.mean(0) - update).abs()
    assert off.max() <= 5 * every.std(0).max() / draws**0.5
    assert off.mean() < 1.2 * (every.std(0) / draws**0.5).mean()
    assert (every.std(0) > 1e-3).float().mean() > 0.9, "it is random"


# ---- what values share a choice or a scale


def strongest(part: np.ndarray, count: int) -> np.ndarray:
    """Marks the largest values: of equal ones the first."""
    marks = np.zeros(len(part), bool)
    marks[np.argsort(-np.abs(part), kind="stable")[:count]] = True
    return marks


@pytest.mark.parametrize("spans", ["whole", "tensor"])
@pytest.mark.parametrize("name", ["topk", "dgc", "stc", "signsgd"])
def test_spans_against_the_papers(name: str, spans: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives and what is kept, by the formulas in float64: of all parameters as one vector,
    or of each tensor. Beside them are running statistics; some of the first values tie.
    """
    monkeypatch.setattr(models, "build", smooth)
    words = () if name == "signsgd" else ("method.sparsity=0.8",)
    found = engine(f"method.name={name}", f"method.spans={spans}", *words)
    server, clients, flat = found.server, found.clients, found.flat
    pieces = [np.arange(piece.start, piece.stop) for piece in flat.parameters]
    parts = pieces if spans == "tensor" else [np.concatenate(pieces)]
    assert len(flat.stat_positions) and len(pieces) > 6
    u, v = np.zeros(flat.size), np.zeros(flat.size)
    for t in range(3):
        update = (2 * noise(found)).round() if t == 0 else noise(found, t)
        blocks = clients.upload(t, 0, clients.start + update)
        server.sum.clear()
        server.absorb(t, Message(0, blocks, 1.0))
        arrived = server.sum.total.double().numpy()
        given = update.double().numpy()
        wanted = np.zeros(flat.size)
        wanted[flat.stat_positions] = given[flat.stat_positions]
        u = 0.9 * u + given if name == "dgc" else given
        v += u
        v[flat.stat_positions] = 0
        for part in parts:
            # The first round of a warm-up keeps a quarter.
            exact = round((0.25 if name == "dgc" and t == 0 else 0.2) * len(part), 6)
            kept = strongest(v[part], round(exact) if spans == "whole" else int(np.ceil(exact)))
            values = v[part]
            if name == "stc":
                kept &= values != 0
                values = np.sign(values) * np.abs(values[kept]).mean()
            if name == "signsgd":
                kept[:] = True
                values = np.where(values >= 0, 1, -1) * np.abs(values).mean()
            wanted[part[kept]] = values[kept]
            u[part[kept]] = 0
            v[part[kept]] -= values[kept]
        np.testing.assert_allclose(arrived, wanted, rtol=1e-5, atol=1e-6)
        rest = clients.feedback.residuals[0].numpy()
        np.testing.assert_allclose(rest, v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("topk method.sparsity=0.0 method.spans=tensor", "method.spans = 'tensor'"),
        ("dgc method.sparsity=0.0 method.spans=whole", "method.spans = 'whole'"),
        ("dgc method.sparsity=0.0 method.momentum=0.5", "method.momentum = 0.5"),
        ("dgc method.sparsity=0.75 method.warmup=9", "method.warmup = 9"),
    ],
)
def test_without_sparsity_what_says_how_it_is_made_is_refused(words: str, said: str) -> None:
    least = "0.75, found 0.75" if "0.75" in words else "0, found 0"
    name, *others = words.split()
    found = refusal(f"method.name={name}", *others)
    assert found.split("\n") == [f"{said}: wanted method.sparsity above {least}"]


def test_dgcs_momentum_takes_the_place_of_the_local_one() -> None:
    assert refusal("method.name=dgc", "momentum=0.9") == (
        "momentum = 0.9: wanted 0 beside method.momentum = 0.9, which takes its place"
    )
    assert not refusal("method.name=dgc", "momentum=0.9", "method.momentum=0.0")
    assert not refusal("method.name=dgc", "method.momentum=0.5")


# ---- top-k


@given(vectors, st.floats(0, 1))
@few
def test_topk_contracts_by_what_it_keeps(vector: list[float], share: float) -> None:
    """||v - top_k(v)||^2 <= (1 - k / n) ||v||^2: Stich et al., definition 2.1 of a contraction."""
    values, count = torch.tensor(vector), max(1, round(share * len(vector)))
    rest = values.clone()
    rest[select.top(values, count).positions] = 0
    square = float(values.double().square().sum())
    assert float(rest.double().square().sum()) <= (1 - count / len(vector)) * square * (1 + 1e-12)


# ---- random-k


def test_randomk_draws_anew_and_sends_no_positions() -> None:
    found = engine("method.name=randomk", "method.sparsity=0.9")
    count = round(0.1 * found.flat.count)
    seen = set()
    for t, client in itertools.product(range(3), range(3)):
        (block,) = found.clients.upload(t, client, noise(found))
        assert (block.indices, block.count) == (None, count)
        where = randomk.drawn(found.settings, found.flat, t, client)
        assert len(where) == count and (where.diff() > 0).all()
        seen.add(tuple(where.tolist()))
    assert len(seen) == 9


@pytest.mark.parametrize("feedback", ["classic", "none"])
def test_randomk_over_all_sets_of_positions(feedback: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four values. Scaled by n / k they are right on average, and vary by (n / k - 1) times
    the square; as they are they leave the share 1 - k / n of it.
    """
    mine = ("method.sparsity=0.5", f"feedback={feedback}")
    found, update = engine(*TINY, "method.name=randomk", *mine), torch.tensor([3.0, -1.0, 0.5, 2.0])
    sets = list(itertools.combinations(range(4), 2))
    # A client for each, so that none has a residual.
    monkeypatch.setattr(randomk, "drawn", lambda *given: torch.tensor(sets[given[-1]]))
    every = torch.stack([sent(found, client, update) for client in range(len(sets))])
    wanted = update / 2 if feedback == "classic" else update
    torch.testing.assert_close(every.mean(0), wanted)
    square = (every - update).square().sum(1).mean()
    left = 0.5 if feedback == "classic" else 1
    torch.testing.assert_close(square, update.square().sum() * left)


def test_randomk_takes_all_sets_of_positions_alike() -> None:
    """1200 draws of six sets: 200 each, give or take five standard deviations."""
    found = engine(*TINY, "method.name=randomk", "method.sparsity=0.5")
    counts = Counter(
        tuple(randomk.drawn(found.settings, found.flat, t, client).tolist())
        for t, client in itertools.product(range(400), range(3))
    )
    assert set(counts) == set(itertools.combinations(range(4), 2))
    assert all(abs(count - 200) < 5 * (1200 * 1 / 6 * 5 / 6) ** 0.5 for count in counts.values())


def test_randomk_draws_from_all_parameters_and_from_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "build", smooth)
    found = engine("method.name=randomk", "method.sparsity=0.5")
    flat, seen = found.flat, [randomk.drawn(found.settings, found.flat, t, 0) for t in range(40)]
    assert len(seen[0]) == round(flat.count / 2)
    assert torch.equal(torch.cat(seen).unique(), flat.movable)


def test_randomk_without_sparsity_is_fedavg() -> None:
    words = ("method.name=randomk", "method.sparsity=0.0")
    np.testing.assert_allclose(run(small(*words)).model, run(small()).model, rtol=1e-4, atol=2e-5)


# ---- QSGD


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("bucket", [1, 7, 128, 5000])
def test_levels_are_those_beside_a_value(bits: int, bucket: int) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    found, norms = leveled(values, bits, bucket)
    parts = values.split(bucket)
    wanted = torch.stack([part.norm() for part in parts])
    np.testing.assert_allclose(sparse.values(norms), wanted, rtol=1e-6)
    step = wanted.repeat_interleave(bucket)[:1000] / (2 ** (bits - 1) - 1)
    assert ((found - values).abs() <= step * (1 + 1e-5)).all()
    assert ((found == 0) | (found.sign() == values.sign())).all()


def leveled(values: Tensor, bits: int, bucket: int) -> tuple[Tensor, Block]:
    """What QSGD makes of values [n], and the block of norms."""
    secret = key(0, Purpose.ROUND, 0, 0)
    codes, norms = quantized.levels(Kind.GRADIENT, values, bits, bucket, secret)
    return sparse.values(quantized.leveled([codes, norms], bucket)), norms


DRAWS = 2000


def outcomes(values: Tensor, bits: int) -> Tensor:
    """What QSGD makes of values [n], a bucket, drawn again and again: [DRAWS, n]."""
    return leveled(values.repeat(DRAWS), bits, len(values))[0].view(DRAWS, -1).double()


@given(vectors, st.integers(2, 6))
@few
def test_levels_are_right_on_average(vector: list[float], bits: int) -> None:
    """E Q(v) = v (lemma 3.1 (i) of the paper), to six standard deviations of the mean."""
    values = torch.tensor(vector)
    step = float(values.double().norm()) / (2 ** (bits - 1) - 1)
    mean = outcomes(values, bits).mean(0)
    assert (mean - values).abs().max() <= step * (6 / 2 / DRAWS**0.5 + 1e-5)


@given(vectors, st.integers(2, 6))
@few
def test_levels_vary_no_more_and_are_as_few_as_the_paper_proves(
    vector: list[float], bits: int
) -> None:
    """E ||Q(v) - v||^2 <= min(n / s^2, sqrt(n) / s) ||v||^2, and on average at most s (s + sqrt(n))
    values are not zero (lemma 3.1 (ii) and (iii)).
    """
    values, n, s = torch.tensor(vector), len(vector), 2 ** (bits - 1) - 1
    found, square = outcomes(values, bits), float(values.double().square().sum())
    variance = float((found - values).square().sum(1).mean())
    # Six standard deviations of the mean of a sum of n terms between 0 and 1.
    off = 6 * n**0.5 / 2 / DRAWS**0.5
    assert variance <= (min(n / s**2, n**0.5 / s) * (1 + 1e-5) + off / s**2) * square
    assert float((found != 0).double().sum(1).mean()) <= s * (s + n**0.5) + off


def test_levels_of_different_clients_rounds_and_values_are_drawn_apart() -> None:
    found = engine("method.name=qsgd", "method.bits=2", "method.bucket=5000")
    update = torch.full((found.flat.size,), 0.3)
    drawn = {(t, c): sent(found, c, update, t) for t in range(2) for c in range(2)}
    for one, other in itertools.combinations(drawn.values(), 2):
        assert (one != other).any()
    for every in drawn.values():
        share = float((every != 0).float().mean())
        # Each value is one level up with the same probability.
        wanted = len(update) ** -0.5
        assert abs(share - wanted) < 5 * (wanted / len(update)) ** 0.5


def test_qsgd_with_a_norm_for_each_value_is_fedavg() -> None:
    """Then each value is its norm or minus that."""
    words = (*EVERYTHING, "participation=0.6")
    found = run(small("method.name=qsgd", "method.bits=2", "method.bucket=1", *words))
    np.testing.assert_allclose(found.model, run(small(*words)).model, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_levels_of_what_is_no_number(wrong: float) -> None:
    values = torch.ones(10)
    values[3] = wrong
    found, _ = leveled(values, 4, 5)
    assert not torch.isfinite(found[:5]).any() and torch.isfinite(found[5:]).all()


def test_levels_of_nothing_and_zeros() -> None:
    for values in (torch.empty(0), torch.zeros(9)):
        assert torch.equal(leveled(values, 4, 5)[0], values)


@pytest.mark.parametrize("bits", [2, 8, 11])
def test_bytes_of_qsgd(bits: int) -> None:
    found = run(small("method.name=qsgd", f"method.bits={bits}", "method.bucket=64"))
    n, rows = found.engine.flat.size, found.tables["clients"]
    wanted = -(-n * bits // 8) + 4 * -(-n // 64)
    assert set(rows["up_gradient"].tolist()) == {wanted}
    assert not rows["up_mask"].any()


# ---- signs


def test_signs() -> None:
    given = torch.tensor([3.0, -1.0, 0.0, -4.0])
    (block,) = quantized.signs(Kind.GRADIENT, given, [4], 4)
    assert sparse.values(block).tolist() == [2.0, -2.0, 2.0, -2.0]
    assert len(pack_one(block)) == BYTES + 8
    parts = quantized.signs(Kind.GRADIENT, given, [1, 0, 3], 4)
    assert sparse.values(quantized.signed(parts, [1, 0, 3])).tolist() == pytest.approx(
        [3.0, -5 / 3, 5 / 3, -5 / 3]
    )
    assert len(pack_one(*parts)) == BYTES + 8 + 32 + 16, "three scales, padded to eight bytes"
    for wrong in ([2, 2], [4], [1, 0, 2], [1, 0, 3, 0]):
        with pytest.raises(WireError, match="wanted"):
            quantized.signed(parts, wrong)


def test_ternary_values_are_zero_or_the_largest() -> None:
    """And right on average: six standard deviations of a mean of 40,000 draws."""
    draws, one = 40_000, torch.tensor([0.5, -2.0, 0.0, 1.5, -0.1, -4.0])
    secret = key(3, Purpose.ROUND, 0, 0)
    for lengths, tops in (([6], [4.0] * 6), ([2, 0, 4], [2.0] * 2 + [4.0] * 4)):
        given = one.repeat(draws)
        parts = lengths * draws if len(lengths) > 1 else [6 * draws]
        blocks = quantized.ternary(Kind.GRADIENT, given, parts, len(given), None, secret)
        found = sparse.values(quantized.signed(travel(blocks), parts)).view(draws, 6)
        top = torch.tensor(tops)
        assert ((found == 0) | (found == one.sign() * top)).all()
        assert not found[:, 2].any() and (found[:, 5] == -4).all()
        bound = 6 * top / 2 / draws**0.5
        assert ((found.double().mean(0) - one).abs() <= bound + 1e-6).all()
        assert blocks[0].bits == 2 and len(blocks) == min(2, len(parts))
    nearest = quantized.ternary(Kind.GRADIENT, one, [6], 6)
    assert sparse.values(nearest[0]).tolist() == [0, -4, 0, 0, 0, -4]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_ternary_values_of_what_is_no_number(wrong: float) -> None:
    given = torch.ones(10)
    given[3] = wrong
    blocks = quantized.ternary(Kind.GRADIENT, given, [5, 5], 10)
    found = sparse.values(quantized.signed(blocks, [5, 5]))
    assert found[:5].isnan().all() and found[5:].tolist() == [1] * 5
    for nothing in (torch.zeros(4), torch.empty(0)):
        blocks = quantized.ternary(Kind.GRADIENT, nothing, [len(nothing)], len(nothing))
        assert torch.equal(sparse.values(blocks[0]), nothing)


def travel(blocks: Sequence[Block]) -> Sequence[Block]:
    """The blocks as they come out at the other end of the wire."""
    return unpack(pack([Message(0, blocks)]).data)[0][0].blocks


def pack_one(*blocks: Block) -> Any:
    return pack([Message(0, blocks)]).data


def test_signs_contract_as_the_paper_says() -> None:
    """||v - C(v)||^2 = ||v||^2 - ||v||_1^2 / n: lemma 8 of Karimireddy et al."""
    v = torch.randn(500, generator=torch.Generator().manual_seed(3))
    rest = v - sparse.values(quantized.signs(Kind.GRADIENT, v, [500], 500)[0])
    wanted = v.square().sum() - v.abs().sum().square() / 500
    assert float(rest.square().sum()) == pytest.approx(float(wanted), rel=1e-4)


# ---- DGC


def test_dgc_without_momentum_and_warmup_is_topk() -> None:
    words = ("method.sparsity=0.9", "rounds=4", "participation=0.6")
    for spans in ("method.spans=whole", "method.spans=tensor"):
        same = (spans, *words)
        dgc = run(small("method.name=dgc", "method.momentum=0.0", "method.warmup=0", *same))
        assert dgc.sha256 == run(small("method.name=topk", *same)).sha256


def test_dgc_against_algorithm_1() -> None:
    words = ("method.sparsity=0.9", "method.warmup=2", "method.spans=whole")
    found = engine("method.name=dgc", *words)
    u, v = torch.zeros(found.flat.size), torch.zeros(found.flat.size)
    densities = []
    for t in range(5):
        update = noise(found, t)
        u = 0.9 * u + update
        v = v + u
        arrived = sent(found, 0, update, t)
        mask = arrived != 0
        densities.append(int(mask.sum()))
        np.testing.assert_allclose(arrived[mask], v[mask], rtol=1e-5)
        assert v[mask].abs().min() >= v[~mask].abs().max()
        u[mask] = v[mask] = 0
        np.testing.assert_allclose(found.clients.feedback.residuals[0], v, rtol=1e-4, atol=1e-6)
    n = found.flat.count
    assert densities == [round(n * d) for d in (0.25, 0.1, 0.1, 0.1, 0.1)]


# ---- PowerSGD


def matrices(found: Engine, vector: Tensor) -> list[Tensor]:
    shapes = powersgd.Shapes(found.flat, found.settings.method.rank)
    return [vector[p.start : p.stop].view(rows, columns) for p, rows, columns in shapes.matrices]


def test_powersgd_sends_low_ranks_exactly() -> None:
    found = engine("method.name=powersgd", "method.rank=2")
    update = noise(found)
    assert len(matrices(found, update)) == 3
    for matrix in matrices(found, update):
        left, right = torch.randn(len(matrix), 2), torch.randn(2, matrix.shape[1])
        matrix.copy_(left @ right)
    np.testing.assert_allclose(sent(found, 0, update), update, atol=1e-4)


def test_powersgd_of_full_rank_is_fedavg() -> None:
    """Factors that would be longer than their matrix are not made."""
    words = ("method.name=powersgd", "method.rank=12", *EVERYTHING, "participation=0.6")
    found = run(small(*words))
    np.testing.assert_allclose(found.model, run(small(*words[2:])).model, rtol=1e-4, atol=2e-5)
    assert (found.tables["clients"]["up_gradient"] == 4 * found.engine.flat.size).all()


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_powersgd_projects_and_so_contracts(rank: int) -> None:
    """What is left out of a matrix is orthogonal to what is sent of it, at the first draw already;
    at last no more than 1 - rank / (number of its rows) of the square, as of the best of that rank.
    """
    found = engine("method.name=powersgd", f"method.rank={rank}", "feedback=none")
    update = noise(found)
    for t in range(30):
        arrived = sent(found, 0, update, t)
        for whole, some in zip(matrices(found, update), matrices(found, arrived), strict=True):
            square = float(whole.square().sum())
            rest = float((whole - some).square().sum())
            assert float(some.square().sum()) + rest == pytest.approx(square, rel=1e-4)
            assert 0 < rest < square
    for whole, some in zip(matrices(found, update), matrices(found, arrived), strict=True):
        rest = float((whole - some).square().sum())
        assert rest <= (1 - rank / min(whole.shape)) * float(whole.square().sum())


def test_powersgd_of_nothing_is_nothing_and_does_no_harm() -> None:
    found = engine("method.name=powersgd", "method.rank=2")
    nothing = torch.zeros(found.flat.size)
    assert not sent(found, 0, nothing).any()
    update = noise(found)
    arrived = sent(found, 0, update, 1)
    assert arrived.isfinite().all()
    assert float((arrived - update).norm()) < float(update.norm())


def test_powersgd_comes_to_the_best_rank() -> None:
    """The same update again and again, without feedback: subspace iteration finds the first
    singular vectors.
    """
    found = engine("method.name=powersgd", "method.rank=2", "feedback=none")
    update = noise(found)
    for t in range(60):
        arrived = sent(found, 0, update, t)
    for matrix, rank2 in zip(matrices(found, update), matrices(found, arrived), strict=True):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        best = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
        assert float((rank2 - best).norm()) < 0.05 * float(best.norm())
        assert float((rank2 - matrix).norm()) <= float(matrix.norm())


def test_powersgds_clients_begin_at_factors_of_their_own() -> None:
    found = engine("method.name=powersgd", "method.rank=1")
    update = noise(found)
    assert not torch.equal(sent(found, 0, update), sent(found, 1, update))


@pytest.mark.parametrize("rank", [1, 5])
def test_bytes_of_powersgd(rank: int) -> None:
    """Factors where they are shorter: with rank 5 not those of 8 x 12 and of 10 x 8."""
    found = run(small("method.name=powersgd", f"method.rank={rank}"))
    # 12 x 64, 8 x 12 and 10 x 8 as factors; biases of 12, 8 and 10.
    matrices = [(12, 64), (8, 12), (10, 8)]
    values = [min(rank * (rows + columns), rows * columns) for rows, columns in matrices]
    wanted = 4 * (sum(values) + 12 + 8 + 10)
    assert set(found.tables["clients"]["up_gradient"].tolist()) == {wanted}


@pytest.mark.parametrize("name", ["randomk", "qsgd", "signsgd", "dgc", "powersgd"])
def test_compressors_learn(name: str) -> None:
    few = ("method.sparsity=0.9",) if name == "dgc" else ()
    words = ("rounds=12", "data.separation=8.0", "partition.name=iid", *few)
    found = small(f"method.name={name}", *words)
    losses = [float(o.tables["rounds"]["loss"][0]) for o in play(Engine(found)) if o is not None]
    assert losses[-1] < 0.6 * losses[0]
