"""SCAFFOLD's algebra: c is the mean of all c_k, and c_k the mean gradient of its last pass."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import models
from fedmpi.engine import Engine
from tests.plain import play, train
from tests.small import run, small, smooth

WORDS = ("method.name=scaffold", "epochs=3", "rounds=6", "lr_decay=0.9")


def controls(engine: Engine) -> Tensor:
    """All c_k, [clients, n]."""
    return torch.stack(
        [engine.clients.variates.of(client) for client in range(engine.settings.clients)]
    )


@pytest.mark.parametrize("participation", [0.2, 0.6, 1.0])
def test_c_is_the_mean_of_all_c_k_under_partial_and_full_participation(
    participation: float,
) -> None:
    engine = Engine(small(*WORDS, f"participation={participation}"))
    for _ in play(engine):
        own = controls(engine)
        assert float(own.abs().max()) > 1e-3
        np.testing.assert_allclose(engine.server.control, own.mean(0), atol=1e-6)
    moved = own.abs().amax(1) > 0
    assert moved.sum() > 1


@pytest.mark.parametrize(
    "words", [("participation=0.6",), ("participation=1.0", "rows=5")], ids=["few", "rows"]
)
def test_c_k_is_the_mean_gradient_of_the_last_pass_and_corrects_the_next(
    words: tuple[str, ...],
) -> None:
    """Held against plain training that follows g + c - c_k, and remembers g."""
    engine = Engine(small(*WORDS, *words))
    w, c, own = engine.server.w.clone(), torch.zeros(engine.flat.size), controls(engine)
    for t, _ in enumerate(play(engine)):
        total, samples, before = torch.zeros_like(w), 0, c.clone()
        for client in engine.population.sample(t):
            seen: list[Tensor] = []
            drift = before - own[client]

            def change(g: Tensor, seen: list[Tensor] = seen, drift: Tensor = drift) -> Tensor:
                seen.append(g.clone())
                return g + drift

            local, _ = train(engine, t, client, w, change=change)
            size = len(engine.population.shards[client])
            total, samples = total + size * (local - w), samples + size
            mean = torch.stack(seen).mean(0)
            c = c + (mean - own[client]) / engine.settings.clients
            own[client] = mean
        free = w + total / samples
        np.testing.assert_allclose(engine.server.w, free, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(controls(engine), own, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(engine.server.control, c, rtol=1e-3, atol=2e-4)
        w = engine.server.w.clone()


def test_statistics_have_no_control_variates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    engine = Engine(small(*WORDS, "participation=0.6"))
    stat_positions = engine.flat.stat_positions
    list(play(engine))
    assert len(stat_positions) and engine.server.control.any()
    assert (
        not engine.server.control[stat_positions].any()
        and not controls(engine)[:, stat_positions].any()
    )


def test_what_is_lost_of_a_c_k_is_missing_in_c() -> None:
    """Its client does not know, and goes on from the c_k that it has."""
    tiers = ("devices.tiers=[{gflops=1.0}]", "devices.dropouts=0.4")
    engine = Engine(small(*WORDS, *tiers))
    missing, before = torch.zeros(engine.flat.size), controls(engine)
    for outcome in play(engine):
        own, rows = controls(engine), outcome.tables["clients"]
        lost = rows["client"][rows["lost"]].tolist()
        missing += (own - before)[lost].sum(0) / 5
        before = own
        np.testing.assert_allclose(engine.server.control + missing, own.mean(0), atol=1e-5)
    assert float(missing.abs().max()) > 1e-3


def test_the_first_round_of_full_participation_is_fedavgs() -> None:
    words = ("rounds=1",)
    assert run(small("method.name=scaffold", *words)).sha256 == run(small(*words)).sha256
    words = ("rounds=2",)
    assert run(small("method.name=scaffold", *words)).sha256 != run(small(*words)).sha256
