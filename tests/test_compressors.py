"""The algebra of methods that compress updates: right on average, or contracting with feedback."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import quantized, sparse
from fedmpi.codec import Block, Kind, pack
from fedmpi.engine import Engine
from fedmpi.methods import powersgd, randomk
from tests.plain import play
from tests.small import run, small

BYTES = 24 + 16 + 32
"""Headers of a buffer with one message of one block."""
CPU = torch.device("cpu")


def engine(*words: str) -> Engine:
    return Engine(small(*words))


def sent(found: Engine, client: int, update: Tensor, t: int = 0) -> Tensor:
    """What the server makes of a client's upload after that update: [n]."""
    blocks = found.clients.upload(t, client, found.clients.start + update)
    found.server.total.zero_()
    found.server.add(t, client, blocks, 1.0)
    return found.server.total.clone()


def noise(found: Engine, seed: int = 0) -> Tensor:
    return torch.randn(found.flat.size, generator=torch.Generator().manual_seed(seed))


FEEDBACK: dict[str, tuple[str, ...]] = {
    "topk": (),
    "randomk": ("method.error_feedback=true",),
    "signsgd": (),
    "powersgd": (),
}


@pytest.mark.parametrize("name", FEEDBACK)
def test_what_is_sent_and_what_is_kept_is_what_was_to_be_sent(name: str) -> None:
    found = engine(f"method.name={name}", *FEEDBACK[name])
    kept = torch.zeros(found.flat.size)
    for t in range(4):
        update = noise(found, t)
        arrived = sent(found, 3, update, t)
        residual = found.clients.feedback.residuals[3]
        np.testing.assert_allclose(arrived + residual, update + kept, atol=1e-5)
        kept = residual.clone()
        assert float(kept.norm()) > 0.1 * float(update.norm()), "something is left out"


@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback_keeps_the_error_bounded(name: str) -> None:
    """A contraction's residuals do not grow without end: after many rounds of the same update the
    mean of what arrived is that update.
    """
    found = (
        engine(f"method.name={name}", *FEEDBACK[name], "method.sparsity=0.5")
        if name
        in (
            "topk",
            "randomk",
        )
        else engine(f"method.name={name}", *FEEDBACK[name])
    )
    update, total = noise(found), torch.zeros(found.flat.size)
    for t in range(300):
        total += sent(found, 1, update, t)
    error = float((total / 300 - update).norm() / update.norm())
    assert error < 0.2


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


@pytest.mark.parametrize("feedback", ["true", "false"])
def test_randomk_without_sparsity_is_fedavg(feedback: str) -> None:
    words = ("method.name=randomk", "method.sparsity=0.0", f"method.error_feedback={feedback}")
    np.testing.assert_allclose(run(small(*words)).model, run(small()).model, rtol=1e-4, atol=2e-5)


# ---- QSGD


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("bucket", [1, 7, 128, 5000])
def test_levels_are_those_beside_a_value(bits: int, bucket: int) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    codes, norms = quantized.levels(Kind.GRADIENT, values, bits, bucket, np.random.default_rng(0))
    found = quantized.leveled(codes, norms, bucket, CPU)
    parts = values.split(bucket)
    wanted = torch.stack([part.norm() for part in parts])
    np.testing.assert_allclose(sparse.values(norms), wanted, rtol=1e-6)
    step = wanted.repeat_interleave(bucket)[:1000] / (2 ** (bits - 1) - 1)
    assert ((found - values).abs() <= step * (1 + 1e-5)).all()
    assert ((found == 0) | (found.sign() == values.sign())).all()
    # No more variance than lemma 3.1 (ii) of the paper allows.
    if bucket == 128 and bits == 3:
        rng = np.random.default_rng(1)
        errors = []
        for _ in range(200):
            pair = quantized.levels(Kind.GRADIENT, values, bits, bucket, rng)
            errors.append(float((quantized.leveled(*pair, bucket, CPU) - values).square().sum()))
        s = 2 ** (bits - 1) - 1
        bound = min(bucket / s**2, bucket**0.5 / s) * float(values.square().sum())
        assert np.mean(errors) < bound


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_levels_of_what_is_no_number(wrong: float) -> None:
    values = torch.ones(10)
    values[3] = wrong
    pair = quantized.levels(Kind.GRADIENT, values, 4, 5, np.random.default_rng(0))
    found = quantized.leveled(*pair, 5, CPU)
    assert not torch.isfinite(found[:5]).any() and torch.isfinite(found[5:]).all()


def test_levels_of_nothing_and_zeros() -> None:
    for values in (torch.empty(0), torch.zeros(9)):
        pair = quantized.levels(Kind.GRADIENT, values, 4, 5, np.random.default_rng(0))
        assert torch.equal(quantized.leveled(*pair, 5, CPU), values)


@pytest.mark.parametrize("bits", [2, 8, 11])
def test_bytes_of_qsgd(bits: int) -> None:
    found = run(small("method.name=qsgd", f"method.bits={bits}", "method.bucket=64"))
    n, rows = found.engine.flat.size, found.tables["clients"]
    wanted = -(-n * bits // 8) + 4 * -(-n // 64)
    assert set(rows["up_gradient"].tolist()) == {wanted}
    assert not rows["up_mask"].any()


# ---- signs


def test_signs() -> None:
    block = sparse.signs(Kind.GRADIENT, torch.tensor([3.0, -1.0, 0.0, -4.0]), 4)
    assert sparse.values(block).tolist() == [2.0, -2.0, 2.0, -2.0]
    assert len(pack_one(block)) == BYTES + 8


def pack_one(*blocks: Block) -> Any:
    from fedmpi.codec import Message

    return pack([Message(0, blocks)]).data


def test_signs_contract_as_the_paper_says() -> None:
    """||v - C(v)||^2 = ||v||^2 - ||v||_1^2 / n: lemma 8 of Karimireddy et al."""
    v = torch.randn(500, generator=torch.Generator().manual_seed(3))
    rest = v - sparse.values(sparse.signs(Kind.GRADIENT, v, 500))
    wanted = v.square().sum() - v.abs().sum().square() / 500
    assert float(rest.square().sum()) == pytest.approx(float(wanted), rel=1e-4)


# ---- DGC


def test_dgc_without_momentum_and_warmup_is_topk() -> None:
    words = ("method.sparsity=0.9", "rounds=4", "participation=0.6")
    dgc = run(small("method.name=dgc", "method.momentum=0.0", "method.warmup=0", *words))
    assert dgc.sha256 == run(small("method.name=topk", *words)).sha256


def test_dgc_against_algorithm_1() -> None:
    found = engine("method.name=dgc", "method.sparsity=0.9", "method.warmup=2")
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


def test_powersgd_comes_to_the_best_rank() -> None:
    """The same update again and again, without feedback: subspace iteration finds the first
    singular vectors.
    """
    found = engine("method.name=powersgd", "method.rank=2", "method.error_feedback=false")
    update = noise(found)
    for t in range(60):
        arrived = sent(found, 0, update, t)
    for matrix, rank2 in zip(matrices(found, update), matrices(found, arrived), strict=True):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        best = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
        assert float((rank2 - best).norm()) < 0.05 * float(best.norm())
        assert float((rank2 - matrix).norm()) <= float(matrix.norm())


def test_bytes_of_powersgd() -> None:
    found = run(small("method.name=powersgd", "method.rank=1"))
    # 12 x 64, 8 x 12 and 10 x 8 as factors; biases of 12, 8 and 10.
    wanted = 4 * ((12 + 64) + (8 + 12) + (10 + 8) + 12 + 8 + 10)
    assert set(found.tables["clients"]["up_gradient"].tolist()) == {wanted}


@pytest.mark.parametrize("name", ["randomk", "qsgd", "signsgd", "dgc", "powersgd"])
def test_compressors_learn(name: str) -> None:
    found = small(f"method.name={name}", "rounds=12", "data.separation=8.0", "partition.name=iid")
    losses = [float(o.tables["rounds"]["loss"][0]) for o in play(Engine(found)) if o is not None]
    assert losses[-1] < 0.6 * losses[0]
