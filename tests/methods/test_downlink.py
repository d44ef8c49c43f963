"""SPATL's downlink: who is told what changed has what one has who is told all, for fewer bytes."""

from math import ceil

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi import config, models
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Message
from tests.plain import CNN, play
from tests.small import alike, run, small, smooth

NET = ("model.name=cnn", "model.channels=[8,12]", "model.kernel=3", "model.hidden=16")
LAYERS = [(8, 9 + 1), (12, 8 * 9 + 1), (16, 12 * 2 * 2 + 1)]
"""Channels of each layer of the encoder, and values of one."""
FEW = ("method.name=spatl", "participation=0.4", "rounds=7", "local_steps=2")
LOSSY = ("devices.tiers=[{gflops=1.0}]", "devices.dropouts=0.4")
DOWN = ("down_model", "down_gradient", "down_mask", "down_header")
CASES = {
    "index": (),
    "few channels": ("method.sparsity=0.8", "method.salience=weight"),
    "zero-average": ("method.aggregation=zero-average", "method.salience=weight"),
    "without control": ("control=none",),
    "niid": ("control=niid", "momentum=0.5"),
    "lost uploads": LOSSY,
    "shared": ("method.predictor=shared", "method.salience=weight"),
    "rows": ("rows=2",),
}


def ways(*words: str) -> list[Engine]:
    """Runs of both ways down, whose models and tables are alike but for the bytes down."""
    found = [run(small(*FEW, *words, f"method.down={way}")) for way in ("changes", "dense")]
    for one in found:
        for column in DOWN:
            one.tables["clients"][column] = 0
        one.tables["rounds"]["down"] = one.tables["ranks"]["down"] = 0
        for column in one.tables["clients"].dtype.names:
            if column.startswith("sim_"):  # the more bytes, the more of these
                one.tables["clients"][column] = 0
        for column in ("sim_seconds", "sim_joules"):
            one.tables["rounds"][column] = 0
    alike(*found)
    return [one.engine for one in found]


@pytest.mark.parametrize("case", CASES)
def test_both_ways_lead_to_the_same_bits(case: str) -> None:
    engines = ways(*NET, *CASES[case])
    assert (engines[0].server.w != engines[0].flat.initial).any()
    if engines[0].server.control is not None:
        assert torch.equal(*(engine.server.control for engine in engines))


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_running_statistics_come_every_time(
    statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "build", smooth)
    ways("method.sparsity=0.8", f"statistics={statistics}", "method.salience=weight")


def test_waves_change_neither_bits_nor_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """C moves as the uploads of a first wave come in; the second wave is told that of before."""
    words = (*FEW, *NET, "participation=1.0", "method.sparsity=0.8")
    wanted = run(small(*words))
    monkeypatch.setattr(config.Method, "width", lambda self, capacity, clients: 2)
    found = run(small(*words))
    assert len(found.engine.placement.waves(0)) == 3
    assert wanted.sha256 == found.sha256
    assert torch.equal(wanted.engine.server.control, found.engine.server.control)
    for column in DOWN:
        both = (one.tables["clients"][column] for one in (found, wanted))
        np.testing.assert_array_equal(*both)


@pytest.mark.parallel([1, 3])
def test_any_ranks_tell_the_same() -> None:
    found, wanted = run(small(*FEW, *CNN), MPI.COMM_WORLD), run(small(*FEW, *CNN))
    if MPI.COMM_WORLD.rank == 0:
        alike(found, wanted, ("ranks", "clients"))
        for column in DOWN:
            both = (one.tables["clients"][column] for one in (found, wanted))
            np.testing.assert_array_equal(*both)


@pytest.mark.parametrize(
    "words", [(), ("control=none",), LOSSY, ("method.aggregation=zero-average",)], ids=str
)
def test_bytes_are_those_of_the_channels_that_others_sent_meanwhile(words: tuple[str, ...]) -> None:
    """By hand: the union of what arrived since the client's last turn; all of it in its first."""
    given = ("method.sparsity=0.8", "method.salience=weight", "rounds=9")
    engine = Engine(small(*FEW, *NET, *given, *words))
    absorb, arrived, everything = engine.server.absorb, [], frozenset(range(36))
    zero_average = "method.aggregation=zero-average" in words

    def watch(t: int, message: Message) -> None:
        arrived.append((t, frozenset(sparse.indices(message.blocks[1]).tolist())))
        absorb(t, message)

    engine.server.absorb = watch
    values = np.repeat([each for _, each in LAYERS], [count for count, _ in LAYERS])
    last: dict[int, int] = {}
    fewer = 0
    for t, outcome in enumerate(play(engine)):
        for row in outcome.tables["clients"]:
            client = int(row["client"])
            since = last.get(client)
            before = [sent for round, sent in arrived if since is not None and since <= round < t]
            news = frozenset().union(*before) if since is not None else everything
            if zero_average and before:
                news = everything
            count = int(values[sorted(news)].sum())
            where = min(4 * len(news), ceil(36 / 8))
            vectors = 1 if "control=none" in words else 2
            assert row["down_model"] == 4 * count
            assert row["down_gradient"] == 4 * count * (vectors - 1)
            padding = vectors * (-4 * count % 8) + -where % 8
            if words != LOSSY:  # there some are told of lost uploads, too
                assert row["down_mask"] == where
                # A message of its own, and one to all, which is empty.
                assert row["down_header"] == 2 * 16 + (vectors + 1) * 32 + padding
            fewer += len(news) < 36
        for row in outcome.tables["clients"]:
            last[int(row["client"])] = t
    assert fewer > 3 or zero_average


def test_a_client_holds_the_servers_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has put together of news is what the server had when it told them."""
    engine = Engine(small(*FEW, *NET, "method.sparsity=0.8", "method.salience=weight"))
    send, clients = engine.server.send, engine.clients
    told: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(t: int, client: int) -> list:
        told[client] = engine.server.w.clone(), engine.server.control.clone()
        return send(t, client)

    monkeypatch.setattr(engine.server, "send", watch)
    for t, _ in enumerate(play(engine)):
        for client in engine.population.sample(t):
            for vector, name in zip(told[client], ("encoder", "control"), strict=True):
                held = clients.copies.stores[name][client]
                assert torch.equal(held, vector[clients.shared])
    assert len(told) > 3
