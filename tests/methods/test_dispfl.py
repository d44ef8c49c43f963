"""DisPFL: whom clients hear, what they make of it, how their masks change, and what travels."""

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.networks import pruning
from tests.plain import CNN, EVERYTHING, network, play, positions, train
from tests.small import run, small, smooth

DISPFL = ("method.name=dispfl", "method.sparsity=0.6")
networks = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])


def gradient(engine: Engine, t: int, client: int, w: Tensor) -> Tensor:
    """On the round's last batch, by plain torch."""
    *_, last = positions(engine, t, client)
    module = network(engine, w)
    feed = engine.trainer.feed
    cross_entropy(module(feed.x[last]), feed.y[last]).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


@networks
@pytest.mark.parametrize("topology", ["random", "ring", "full"])
def test_rounds_are_means_over_those_who_have_a_weight(
    words: tuple[str, ...], topology: str
) -> None:
    given = (*words, *EVERYTHING, "participation=0.6", "rounds=4", "clients=4")
    engine = Engine(small(*DISPFL, f"method.topology={topology}", *given))
    method, flat, seed = engine.settings.method, engine.flat, engine.settings.seed
    counts = pruning.erk(flat, 0.6)
    masks = {c: method.mask(flat, seed, c) for c in range(4)}
    own = {c: (flat.initial * masks[c], masks[c]) for c in range(4)}
    for t, _ in enumerate(play(engine)):
        fresh = {}
        for client in engine.population.sample(t):
            around = [client, *method.neighbours_of(engine.settings, t, client)]
            votes = sum(own[c][1].float() for c in around)
            start = sum(own[c][0] for c in around) / votes.clamp(min=1) * masks[client]
            kept = masks[client]
            local, _ = train(engine, t, client, start, change=lambda g, kept=kept: g * kept)
            found, mask = engine.clients.models[client]
            assert torch.equal(mask, kept)
            np.testing.assert_allclose(found, local, rtol=1e-3, atol=5e-5)
            fresh[client] = found.clone(), mask.clone()
            g = gradient(engine, t, client, found)
            share = 0.25 * (1 + np.cos(np.pi * t / 4))
            wanted = pruning.regrown(flat, found, g, kept, counts, share)
            masks[client] = engine.clients.next[client]
            assert int((wanted != masks[client]).sum()) <= 2, "but for roundings"
            for piece, count in zip(pruning.weights(flat), counts, strict=True):
                assert int(piece.of(masks[client]).sum()) == count
            assert not torch.equal(masks[client], kept)
        own |= fresh
        for client, (model, mask) in own.items():
            theirs = engine.server.models[client]
            assert torch.equal(theirs[0], model) and torch.equal(theirs[1], mask)
    assert torch.equal(engine.server.w, flat.initial), "there is no global model"


def test_models_are_zero_off_their_masks() -> None:
    engine = Engine(small(*DISPFL, "method.growth=random", "rounds=4"))
    masks = set()
    for _ in play(engine):
        for client in range(5):
            model, mask = engine.clients.models[client]
            assert (model[~mask] == 0).all()
            masks.add(mask.numpy().tobytes())
    assert len(masks) > 15, "clients differ, and change"


def test_without_neighbours_masks_and_changes_it_is_local_training() -> None:
    alone = ("method.topology=random", "clients=1", "method.sparsity=0.0", "rounds=3")
    engine, other = (
        Engine(small(*alone, *DISPFL[:1])),
        Engine(small("method.name=local", "clients=1", "rounds=3")),
    )
    list(play(engine))
    list(play(other))
    np.testing.assert_allclose(
        engine.clients.models[0][0], other.clients.models[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("method.topology=ring",), {0: [1, 5], 3: [2, 4], 5: [0, 4]}),
        (("method.topology=full",), {2: [0, 1, 3, 4, 5]}),
        (("method.neighbours=5",), {1: [0, 2, 3, 4, 5]}),
    ],
)
def test_whom_clients_hear(words: tuple[str, ...], wanted: dict[int, list[int]]) -> None:
    settings = small("method.name=dispfl", "clients=6", *words)
    for client, others in wanted.items():
        assert settings.method.neighbours_of(settings, 3, client) == others


def test_neighbours_are_drawn_anew() -> None:
    settings = small("method.name=dispfl", "clients=6", "method.neighbours=2")
    found = [tuple(settings.method.neighbours_of(settings, t, 1)) for t in range(200)]
    assert all(len(set(some)) == 2 and 1 not in some for some in found)
    counts = np.bincount(np.array(found).ravel(), minlength=6)
    assert counts[1] == 0
    assert (np.abs(np.delete(counts, 1) - 80) < 5 * np.sqrt(200 * 0.4 * 0.6)).all()


@pytest.mark.parametrize("topology", ["ring", "full"])
def test_neighbours_models_travel_with_their_masks(topology: str) -> None:
    found = run(small("method.name=dispfl", "method.sparsity=0.9", f"method.topology={topology}"))
    flat, rows = found.engine.flat, found.tables["clients"]
    d, kept = int(flat.prunable().sum()), sum(pruning.erk(flat, 0.9))
    values, mask = 4 * (kept + flat.size - d), min(4 * kept, -(-d // 8))
    heard = 2 if topology == "ring" else 4
    assert set(rows["up_model"].tolist()) == {values}
    assert set(rows["up_mask"].tolist()) == {mask}
    assert set(rows["down_model"].tolist()) == {heard * values}
    assert set(rows["down_mask"].tolist()) == {heard * mask}
    assert np.isnan(found.tables["rounds"]["accuracy"]).all()
    assert np.isfinite(found.tables["rounds"]["personal_mean"]).all()


def test_what_is_lost_is_heard_as_it_was() -> None:
    words = ("devices.tiers=[{gflops=1.0}]", "devices.dropouts=0.5", "rounds=4")
    engine = Engine(small(*DISPFL, *words))
    for t, outcome in enumerate(play(engine)):
        for row in outcome.tables["clients"]:
            client = int(row["client"])
            same = torch.equal(engine.server.models[client][0], engine.clients.models[client][0])
            assert same == (not row["lost"]), t


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_it_does_not_depend_on_ranks(statistics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no global model, so that every model that the server knows is compared."""
    monkeypatch.setattr(models, "build", smooth)
    words = ("rounds=4", "participation=0.6", "momentum=0.5", f"statistics={statistics}")
    settings = small(*DISPFL, *words)
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alone = run(settings)
        for client in range(5):
            for one, other in zip(
                found.engine.server.models[client], alone.engine.server.models[client], strict=True
            ):
                assert torch.equal(one, other)
        np.testing.assert_array_equal(
            found.tables["clients"]["personal"], alone.tables["clients"]["personal"]
        )
