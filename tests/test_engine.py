"""The round: who is asked, who is told what, when accuracies are measured, and how it ends."""

import hashlib
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from fedmpi import config
from fedmpi.config import ConfigError, Settings
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.clock import Clock
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.wire import Wire
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Config
from fedmpi.training.train import Trainer
from tests import plain
from tests.plain import METHODS, families, member, place, play
from tests.small import refusal, run, small

WORLD = MPI.COMM_WORLD


def letter(t: int, client: int) -> Tensor:
    """What the toy's server tells one client alone: the longer, the higher its number."""
    return torch.full((2 * client + 2,), 10.0 * t + client)


class Postman(fedavg.Server):
    """Sends each client a letter, and keeps what comes back."""

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.back: list[tuple[int, int, Tensor]] = []

    def send(self, t: int, client: int) -> list[Block]:
        """The letter."""
        return [sparse.block(Kind.MASK, letter(t, client))]

    def absorb(self, t: int, message: Message) -> None:
        """The same letter, if all is well."""
        self.back.append((t, message.client, sparse.values(message.blocks[0])))

    def step(self, t: int) -> None:
        """Nothing moves."""


class Readers(fedavg.Clients):
    """Send their letters back."""

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.letters: dict[int, Tensor] = {}
        self.log: list[tuple[str, int, int]] = []

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Keeps the letter."""
        self.log.append(("accept", t, client))
        self.letters[client] = sparse.values(blocks[0])

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """No training."""
        self.log += [("work", t, client) for client in clients]
        return self.start.expand(len(clients), -1)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """The letter."""
        return [sparse.block(Kind.GRADIENT, self.letters.pop(client))]


def teach(monkeypatch: pytest.MonkeyPatch, **halves: Any) -> None:
    """From now on every method consists of these halves, and FedAvg's where there is none."""
    module = config.module
    toy = SimpleNamespace(**{"Server": fedavg.Server, "Clients": fedavg.Clients} | halves)

    def find(table: str, name: str) -> ModuleType | SimpleNamespace:
        return toy if table == "method" else module(table, name)

    monkeypatch.setattr(config, "module", find)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
@pytest.mark.parametrize(
    "words", [(), ("model.hidden=[1024]", "exchange.window=1")], ids=["", "waves"]
)
def test_a_letter_reaches_its_client_alone(
    server: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(*words, f"server={server}", "participation=0.8", "rounds=3")
    monkeypatch.setattr(Config, "sends", True)
    teach(monkeypatch, Server=Postman, Clients=Readers)
    engine = Engine(settings, place(WORLD))
    outcomes = list(play(engine, WORLD))
    mine = engine.clients
    # Whatever this rank accepted it has worked for and sent back: nobody else had the letter.
    assert mine.letters == {}
    accepted, worked = (
        sorted((t, c) for what, t, c in mine.log if what == wanted) for wanted in ("accept", "work")
    )
    assert accepted == worked
    firsts = [mine.log.index(("accept", t, c)) < mine.log.index(("work", t, c)) for t, c in worked]
    assert all(firsts)
    if WORLD.rank > 0:
        assert outcomes == [None] * 3
        return
    asked = [(t, client) for t in range(3) for client in engine.population.sample(t)]
    assert [(t, client) for t, client, _ in engine.server.back] == asked, "in client order"
    assert all(torch.equal(back, letter(t, client)) for t, client, back in engine.server.back)
    for outcome in outcomes:
        for row in outcome.tables["clients"]:
            length = 4 * (2 * int(row["client"]) + 2)
            assert row["down_mask"] == length
            assert row["up_gradient"] == length
            assert row["down_model"] == 4 * engine.flat.size
            assert row["down_header"] == 2 * 48
            assert row["up_header"] == 48


@pytest.mark.parametrize("name", METHODS)
def test_there_is_a_round_before_the_first_exactly_if_a_method_agrees(name: str) -> None:
    engine = Engine(small(f"method.name={name}", "rounds=3", "participation=0.4"))
    first = -1 if -1 in engine.population.agreements else 0
    outcomes = list(play(engine))
    assert [int(o.tables["rounds"]["round"][0]) for o in outcomes] == list(range(first, 3))
    for outcome in outcomes:
        (row,), clients = outcome.tables["rounds"], outcome.tables["clients"]
        everyone = row["round"] < 0
        assert row["sampled"] == len(clients) == (5 if everyone else 2)
        assert row["warmup"] == (row["round"] <= 0)
        judged = "accuracy" if engine.method.is_global else "personal_mean"
        assert np.isnan(row[judged]) == everyone


def test_an_agreement_is_everyones(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told to all, charged to all, and the model does not step."""
    log: list[tuple[str, object]] = []

    class Chair(fedavg.Server):
        def absorb(self, t: int, message: Message) -> None:
            log.append(("absorb", (t, message.client)))

        def step(self, t: int) -> None:
            log.append(("step", t))

        def agreement(self) -> list[Block]:
            log.append(("agreement", None))
            return [sparse.places(torch.tensor([1, 2]), 64)]

    class Members(fedavg.Clients):
        def agree(self, blocks: Sequence[Block]) -> None:
            log.append(("agree", sparse.indices(blocks[0]).tolist()))

    settings = small("participation=0.2", "rounds=1")
    monkeypatch.setattr(Config, "agreements", lambda self, rounds: frozenset({-1}))
    teach(monkeypatch, Server=Chair, Clients=Members)
    engine = Engine(settings)
    before, first = play(engine)
    (only,) = engine.population.sample(0)
    asked = [("absorb", (-1, client)) for client in range(5)]
    ends = [("agreement", None), ("agree", [1, 2]), ("absorb", (0, only)), ("step", 0)]
    assert log == asked + ends
    rows = before.tables["clients"]
    # Two positions among 64 values: eight bytes, as positions or as bits.
    assert rows["down_mask"].tolist() == [8] * 5
    assert rows["down_header"].tolist() == [2 * 48] * 5
    assert first.tables["clients"]["down_mask"].tolist() == [0]


@pytest.mark.parametrize(("evaluate", "due"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (9, [4])])
def test_accuracies_are_measured_when_they_are_due(evaluate: int, due: list[int]) -> None:
    found = run(small("rounds=5", f"evaluate.every={evaluate}", "lr=0.5"))
    always = run(small("rounds=5", "lr=0.5"))
    assert found.sha256 == always.sha256, "looking does not change what is looked at"
    rounds, clients = found.tables["rounds"], found.tables["clients"]
    columns = [
        c for c in rounds.dtype.names if c.startswith(("accuracy", "valid", "shard", "pers"))
    ]
    assert len(columns) == 6
    for column in columns:
        assert np.flatnonzero(np.isfinite(rounds[column])).tolist() == due
        np.testing.assert_array_equal(rounds[column][due], always.tables["rounds"][column][due])
    for column in ("accuracy", "personal"):
        assert sorted(set(clients["round"][np.isfinite(clients[column])].tolist())) == due
    assert np.isfinite(rounds["loss"]).all()


def test_rounds_are_yielded_as_they_end() -> None:
    """Whoever reads them may stop; the model is that of the round."""
    engine = Engine(small("rounds=4"))
    rounds, models = play(engine), []
    for t in range(2):
        outcome = next(rounds)
        assert outcome.tables["rounds"]["round"].tolist() == [t]
        models.append(engine.model_sha256())
    rounds.close()
    assert models[0] != models[1]
    assert models[1] == run(small("rounds=2")).sha256


def test_uploads_come_in_client_order_and_are_weighted_by_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, heard = Engine(small("rounds=1")), []
    absorb = engine.server.absorb

    def watch(t: int, message: Message) -> None:
        heard.append((message.client, message.weight))
        absorb(t, message)

    monkeypatch.setattr(engine.server, "absorb", watch)
    list(play(engine))
    assert heard == [(client, float(n)) for client, n in enumerate(engine.population.sizes)]


@pytest.mark.parametrize("name", METHODS)
def test_uploads_count_alike_where_samples_decide_who_is_drawn(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an agreement of all their samples count: nobody was drawn."""
    words = (f"method.name={name}", "rounds=2", "participation=0.6", "sampling=samples")
    engine, heard = Engine(small(*words)), []
    absorb, sizes = engine.server.absorb, engine.population.sizes.tolist()

    def watch(t: int, message: Message) -> None:
        heard.append((t, message.client, message.weight))
        absorb(t, message)

    monkeypatch.setattr(engine.server, "absorb", watch)
    list(play(engine))
    first = [
        (-1, client, size)
        for client, size in enumerate(sizes)
        if -1 in engine.population.agreements
    ]
    drawn = [(t, client, 1) for t in range(2) for client in engine.population.sample(t)]
    assert sorted(heard) == first + drawn, "in split learning an order is drawn, too"


def test_a_mean_of_those_whom_samples_drew() -> None:
    """By plain torch: not weighted."""
    engine = Engine(small("rounds=1", "participation=0.6", "sampling=samples"))
    start = engine.server.w.clone()
    list(play(engine))
    models = [plain.train(engine, 0, c, start)[0] for c in engine.population.sample(0)]
    torch.testing.assert_close(engine.server.w, torch.stack(models).mean(0))
    assert not torch.allclose(engine.server.w, plain.average(engine, 0, start))


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
def test_who_hosts_clients(server: str) -> None:
    found = run(small(f"server={server}", "clients=9", "partition.name=iid"), WORLD)
    if WORLD.rank == 0:
        first = 1 if server == "dedicated" and WORLD.size > 1 else 0
        hosts = set(found.tables["clients"]["rank"].tolist())
        assert hosts == set(range(first, WORLD.size))
        assert sorted(found.tables["ranks"]["rank"].tolist()) == sorted([*range(WORLD.size)] * 2)


@pytest.mark.parallel([1, 2, 3])
def test_a_model_that_is_not_finite_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server says nothing, and all ranks know; bytes of that silence are nobody's."""

    class Bursting(fedavg.Server):
        def step(self, t: int) -> None:
            super().step(t)
            if t == 2:
                self.w[0] = torch.nan

    settings = small("rounds=9")
    teach(monkeypatch, Server=Bursting)
    clock = Clock()
    wire = Wire(clock, WORLD)
    engine = Engine(settings, wire.place)
    outcomes = list(engine.rounds(wire, clock))
    assert len(outcomes) == 3
    assert wire.down == 24, "an empty buffer"
    assert wire.up == 0
    if WORLD.rank == 0:
        assert [outcome.finite for outcome in outcomes] == [True, True, False]


def test_the_hash_is_that_of_the_parameters_in_their_order() -> None:
    engine = Engine(small(*plain.CNN, "rounds=1"))
    list(play(engine))
    parameters = list(plain.network(engine, engine.server.w).parameters())
    raw = b"".join(p.detach().numpy().astype("<f4").tobytes() for p in parameters)
    assert engine.model_sha256() == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    "word", ["exchange.pipeline=false", "server_threads=2", "server_device=cpu"]
)
def test_a_split_needs_a_method_that_splits(word: str) -> None:
    name, _, value = word.partition("=")
    with pytest.raises(
        ConfigError, match=rf"{name} = {value}: wanted a method .* found .*'fedavg'"
    ):
        Engine(small(word))
    Engine(small("method.name=splitfed", word))


@families
def test_bfloat16_is_rough_but_trains(family: str) -> None:
    """Everything that is kept and sent stays float32; see also `test_rows`."""
    words = member(family, "epochs=5", "lr=0.25", "data.separation=8.0")
    exact, rough = (run(small(*words, *precision)) for precision in ((), ("precision=bf16",)))
    assert rough.sha256 != exact.sha256 or not rough.engine.method.is_global
    for column in ("up_gradient", "down_model", "up_activation"):
        # Not halved; a number of values that depends on the model may be a little another.
        rows = (found.tables["clients"][column] for found in (exact, rough))
        np.testing.assert_allclose(*rows, rtol=0.1)
    losses = rough.tables["rounds"]["loss"]
    assert not np.array_equal(losses, exact.tables["rounds"]["loss"])
    assert losses[-1] < losses[-2]
    np.testing.assert_allclose(losses, exact.tables["rounds"]["loss"], rtol=0.1, atol=0.03)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("method", ["fedavg", "ssfl", "splitfed"])
def test_a_budget_ends_the_run_for_everyone(method: str) -> None:
    """After the round that reaches it, what comes once before the first round included."""
    words = (f"method.name={method}", "rounds=9")
    free = run(small(*words), MPI.COMM_WORLD)
    budget = None
    if MPI.COMM_WORLD.rank == 0:
        ups = free.tables["rounds"]["up"].cumsum()
        budget = f"up_bytes:{int(ups[4]) - 1}B"
    budget = MPI.COMM_WORLD.bcast(budget)
    short = run(small(*words, f"budget={budget}"), MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        for name in ("round", "up", "down", "loss", "accuracy"):
            wanted = free.tables["rounds"][name][:5]
            np.testing.assert_array_equal(short.tables["rounds"][name], wanted)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize(
    ("method", "accuracy", "more"),
    [
        ("fedavg", "accuracy", ()),
        ("ssfl", "shard_mean", ("evaluate.every=2",)),
        ("local", "personal_mean", ()),
        ("fedsl", "accuracy", ("method.interval=2", "lr=1.3")),
    ],
)
def test_a_target_ends_the_run_for_everyone(
    method: str, accuracy: str, more: tuple[str, ...]
) -> None:
    """After the first round that was measured with as much, and the next that is averaged."""
    world, target = MPI.COMM_WORLD, None
    for seed in range(1, 50):
        words = (f"method.name={method}", "rounds=9", *more, f"seed={seed}")
        free = run(small(*words), world)
        falls = method != "fedsl"
        if not falls and world.rank == 0:  # rounds 1, 3, 5, ... end with an average
            seen = free.tables["rounds"][accuracy]
            falls = seen[2] > max(*seen[:2], seen[3])
        if world.bcast(falls):
            break
    last = {"fedsl": 2, "ssfl": 5}.get(method, 4)
    if world.rank == 0:
        seen = free.tables["rounds"]
        due = seen[seen["round"] <= last]
        target = f"{accuracy}:{np.nanmax(due[accuracy]):.17f}"
    target = world.bcast(target)
    short = run(small(*words, f"target={target}"), world)
    if world.rank == 0:
        least = float(target.split(":")[1])
        ends = [t for t, found in zip(due["round"], due[accuracy], strict=True) if found >= least]
        end = ends[0]
        if method == "fedsl":
            assert seen[accuracy][2] > seen[accuracy][3], "the next average is no longer as good"
            end = 3
        assert short.tables["rounds"]["round"][-1] == end < 8
        for name in ("round", "up", "down", "loss", "accuracy"):
            wanted = seen[name][seen["round"] <= end]
            np.testing.assert_array_equal(short.tables["rounds"][name], wanted)


def test_a_target_that_is_never_measured_is_refused() -> None:
    """Where there is no such model, the run would go on without it."""
    for method in ("spatl", "fedper", "local", "dispfl"):
        said = refusal(f"method.name={method}", "target=accuracy:0.5")
        assert f"wanted a method with a global model, found method.name = '{method}'" in said
        said = refusal(f"method.name={method}", "target=shard_mean:0.5")
        assert ("possible is personal_mean" in said) == (method == "dispfl")
        assert not refusal(f"method.name={method}", "target=personal_mean:0.5")


@pytest.mark.parallel([3])
@pytest.mark.parametrize("name", METHODS)
def test_only_the_root_holds_the_servers_half(name: str) -> None:
    found = run(small(f"method.name={name}", "rounds=1"), WORLD)
    assert (found.engine.server is None) == (WORLD.rank > 0)
