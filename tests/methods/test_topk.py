"""Top-k's algebra: the largest values travel, the rest waits, and nothing is lost or made up."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Message
from fedmpi.messages.counts import keep_round
from tests.methods.test_fedavg import TINY
from tests.plain import play
from tests.small import run, small, smooth


def halved(*words: str) -> Engine:
    """Four parameters, two of which travel; the model is zero."""
    engine = Engine(small(*TINY, "method.name=topk", "method.sparsity=0.5", *words))
    engine.server.w.zero_()
    engine.clients.start.zero_()
    return engine


def say(engine: Engine, client: int, *update: float) -> Block:
    """A client's upload after an update of its local model."""
    (block,) = engine.clients.upload(0, client, torch.tensor(update))
    return block


def read(block: Block) -> tuple[list[int], list[float]]:
    """Positions and values."""
    return sparse.indices(block).tolist(), sparse.values(block).tolist()


def test_what_is_left_out_comes_with_the_next_update() -> None:
    engine = halved()
    assert read(say(engine, 0, 0.5, -3, 1, 2)) == ([1, 3], [-3, 2])
    assert engine.clients.feedback.residuals[0].tolist() == [0.5, 0, 1, 0]
    assert read(say(engine, 0, 0.5, 0, 1, 0.5)) == ([0, 2], [1, 2])
    assert engine.clients.feedback.residuals[0].tolist() == [0, 0, 0, 0.5]
    assert read(say(engine, 0, 0.25, 0, 8, -0.5)) == ([0, 2], [0.25, 8])
    rest = engine.clients.feedback.residuals[0]
    assert rest.tolist() == [0, 0, 0, 0], "an update may cancel what waits"


def test_each_client_has_its_own_residual() -> None:
    engine = halved()
    say(engine, 0, 1, 2, 3, 4)
    assert read(say(engine, 1, 0.5, 0, 0.25, 0)) == ([0, 2], [0.5, 0.25])
    assert engine.clients.feedback.residuals[0].tolist() == [1, 2, 0, 0]
    assert engine.clients.feedback.residuals[1].tolist() == [0, 0, 0, 0]


def test_without_error_feedback_nothing_is_remembered() -> None:
    engine = halved("feedback=none")
    assert not engine.settings.feeds_back
    for _ in range(2):
        assert read(say(engine, 0, 0.5, -3, 1, 2)) == ([1, 3], [-3, 2])
    assert engine.clients.feedback.residuals == {}
    assert halved().settings.feeds_back


def test_the_server_moves_only_where_values_came() -> None:
    engine = halved()
    engine.server.absorb(0, Message(0, [say(engine, 0, 0.5, -3, 1, 2)], 3.0))
    engine.server.absorb(0, Message(1, [say(engine, 1, 0, 5, 0, -4)], 1.0))
    engine.server.step(0)
    assert engine.server.w.tolist() == [0, -1, 0, 0.5]


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("feedback", ["classic", "none"])
def test_a_run_conserves_every_update(
    sparsity: float, feedback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent + residual = update + what was left before: in every bit, round after round."""
    words = ("method.name=topk", f"method.sparsity={sparsity}", "rounds=5", "participation=0.6")
    engine = Engine(small(*words, f"feedback={feedback}"))
    clients, n = engine.clients, engine.flat.size
    count = max(1, round(n * (1 - sparsity)))
    waiting: dict[int, Tensor] = defaultdict(lambda: torch.zeros(n))
    rounds: dict[int, list[int]] = defaultdict(list)
    upload = clients.upload

    def watch(t: int, client: int, w: Tensor) -> list[Block]:
        whole = w - clients.start + waiting[client]
        (block,) = blocks = upload(t, client, w)
        positions, sent = sparse.indices(block), sparse.vector(block, n, torch.device("cpu"))
        assert block.count == len(positions) == count
        assert torch.equal(sent[positions], whole[positions])
        rest = whole.clone()
        rest[positions] = 0
        assert sent[positions].abs().min() >= rest.abs().max()
        if feedback == "classic":
            assert torch.equal(sent + clients.feedback.residuals[client], whole)
            assert torch.equal(clients.feedback.residuals[client], rest)
            waiting[client] = rest
        rounds[client].append(t)
        return blocks

    monkeypatch.setattr(clients, "upload", watch)
    list(play(engine))
    assert set(clients.feedback.residuals) == (set(rounds) if feedback == "classic" else set())
    gaps = [later - earlier for ts in rounds.values() for earlier, later in itertools.pairwise(ts)]
    assert max(gaps) > 1, "a residual has waited for its client's next round"


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99, 0.999])
def test_bytes(sparsity: float) -> None:
    found = run(small("method.name=topk", f"method.sparsity={sparsity}"))
    rows, n = found.tables["clients"], found.engine.flat.size
    count = max(1, round(n * (1 - sparsity)))
    places = min(4 * count, -(-n // 8))
    assert (rows["up_gradient"] == 4 * count).all()
    assert (rows["up_mask"] == places).all()
    assert (rows["up_header"] == 48 + -4 * count % 8 + -places % 8).all()
    assert (rows["down_model"] == 4 * n).all()


def test_error_feedback_sends_in_the_end_what_it_left_out() -> None:
    """What is sent adds up to all updates with it, and falls short without."""
    ends = {}
    for feedback in ("classic", "none"):
        engine = halved(f"feedback={feedback}")
        sent = torch.zeros(4)
        for _ in range(8):
            sent += sparse.vector(say(engine, 0, 4, 3, 2, 1), 4, torch.device("cpu"))
        ends[feedback] = sent
    total = torch.tensor([32.0, 24.0, 16.0, 8.0])
    assert (ends["classic"] - total).abs().max() <= 8
    assert ends["none"].tolist() == [32, 24, 0, 0]
    assert (ends["classic"] > 0).all()


def test_sparsity_slows_learning_down_and_error_feedback_helps() -> None:
    def loss(*words: str) -> float:
        found = run(small(*words, "rounds=12", "lr=0.3", "data.separation=6.0"))
        return float(found.tables["rounds"]["loss"][-1])

    dense = loss("method.name=fedavg")
    with_feedback = loss("method.name=topk", "method.sparsity=0.95")
    without = loss("method.name=topk", "method.sparsity=0.95", "feedback=none")
    assert np.isfinite([dense, with_feedback, without]).all()
    assert dense < with_feedback < without


def test_statistics_all_travel_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would compete with parameters, and a leftover could make a variance negative."""
    monkeypatch.setattr(models, "build", smooth)
    words = ("method.name=topk", "method.sparsity=0.9", "rounds=6", "epochs=3", "momentum=0.9")
    found = run(small(*words))
    flat, rows = found.engine.flat, found.tables["clients"]
    stat_positions = flat.stat_positions.numpy()
    assert len(stat_positions) == flat.size - flat.count == 20
    kept = keep_round(flat.count, 1 - 0.9)
    assert kept != keep_round(flat.size, 1 - 0.9)
    assert set(rows["up_gradient"].tolist()) == {4 * kept + 4 * 20}
    variances = [p for p in flat.statistics if p.name.endswith("running_var")]
    for piece in variances:
        assert (piece.of(found.engine.server.w) > 0).all()
    for residual in found.engine.clients.feedback.residuals.values():
        assert not residual.numpy()[stat_positions].any()
        assert residual.numpy().any()
    # They are averaged as FedAvg does it.
    one, other = (run(small("rounds=1", *name)) for name in (("method.name=topk",), ()))
    np.testing.assert_allclose(
        one.model[stat_positions], other.model[stat_positions], rtol=1e-5, atol=1e-7
    )
    assert (one.model != other.model).any()
