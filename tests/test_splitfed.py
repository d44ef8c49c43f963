"""SplitFed's algebra: what crosses the cut, who trains which back, and how backs become one."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from fedmpi import sparse
from fedmpi.codec import Coding, Kind, Message
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from tests import plain
from tests.plain import CNN, network, optimiser, play, vector
from tests.small import run, small

SGD = ("momentum=0.9", "weight_decay=0.01", "participation=0.6", "rounds=3", "epochs=2", "seed=2")
"""Seed 2: clients have 46 to 65 samples, and in each round some are done before the others."""
THREE_STAGES = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])
VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])


def split(version: str, *words: str) -> Engine:
    """An engine that has not begun."""
    return Engine(small("method.name=splitfed", f"method.version={version}", *words))


def halves(engine: Engine, w: Tensor) -> tuple[nn.Sequential, nn.Sequential]:
    """Front and back with the parameters w [n], cut behind the first stage."""
    whole = network(engine, w)
    return whole[:1], whole[1:]


def orders(engine: Engine) -> Iterator[tuple[int, list[list[int]]]]:
    """Runs; for each round, each step's clients in the order in which the server takes them."""
    server, heard = engine.server, []
    exchange = server.exchange

    def watch(t: int, messages: Sequence[Message]) -> list[Message]:
        answers = exchange(t, messages)
        heard.append([answer.client for answer in answers])
        return answers

    server.exchange = watch
    for t, _ in enumerate(play(engine)):
        yield t, heard.copy()
        heard.clear()


def plain_round(engine: Engine, t: int, w: Tensor, waves: Sequence[Sequence[int]]) -> Tensor:
    """A round on torch's modules and optimisers, the chain rule applied by hand at the cut.

    With v1 each client has a back; with v2 there is one, and in each step of a wave the clients
    take their turns at it in the order of `waves`.
    """
    alone = engine.settings.method.version == "v2"
    shared = halves(engine, w)[1]
    shared_sgd = optimiser(engine, shared, t)
    fronts, backs, samples = 0.0, 0.0, 0
    for clients in waves:
        own = {}
        for client in clients:
            front, back = halves(engine, w)
            back, back_sgd = (shared, shared_sgd) if alone else (back, optimiser(engine, back, t))
            batches = list(plain.positions(engine, t, client))
            own[client] = (front, optimiser(engine, front, t), back, back_sgd, batches)
        for step in range(max(len(batches) for *_, batches in own.values())):
            for front, front_sgd, back, back_sgd, batches in own.values():
                if step >= len(batches):
                    continue
                x, y = (
                    values[batches[step]]
                    for values in (engine.trainer.feed.x, engine.trainer.feed.y)
                )
                sent = front(x)
                arrived = sent.detach().requires_grad_()
                back_sgd.zero_grad()
                cross_entropy(back(arrived), y).backward()
                front_sgd.zero_grad()
                sent.backward(arrived.grad)
                back_sgd.step()
                front_sgd.step()
        for client, (front, _, back, _, _) in own.items():
            size = len(engine.population.shards[client])
            fronts, backs, samples = (
                fronts + size * vector(front),
                backs + size * vector(back),
                samples + size,
            )
    back = vector(shared) if alone else backs / samples
    return torch.cat([fronts / samples, back])


@VERSIONS
@THREE_STAGES
def test_rounds_equal_plain_training(version: str, words: tuple[str, ...]) -> None:
    engine = split(version, *SGD, *words)
    steps = engine.population.steps
    w = engine.server.w.clone()
    for t, heard in orders(engine):
        clients = heard[0]
        assert sorted(clients) == list(engine.population.sample(t))
        assert len({steps(client) for client in clients}) > 1, "some clients are done earlier"
        w = plain_round(engine, t, w, [clients])
        np.testing.assert_allclose(engine.server.w, w, rtol=1e-4, atol=2e-5)
        w = engine.server.w.clone()


def test_in_waves_the_one_back_meets_the_waves_one_after_the_other() -> None:
    """So with v2, unlike v1, the window is a part of what a run computes."""
    words = ("model.hidden=[1024]", "exchange.window=1", "rounds=1", "momentum=0.9")
    engine = split("v2", *words)
    start = engine.server.w.clone()
    ((_, heard),) = orders(engine)
    first = [client for client in heard[0] if client < 3]
    second = next(clients for clients in heard if max(clients) >= 3)
    assert sorted(first) == [0, 1, 2]
    assert sorted(second) == [3, 4]
    wanted = plain_round(engine, 0, start, [first, second])
    np.testing.assert_allclose(engine.server.w, wanted, rtol=1e-4, atol=2e-5)
    whole = split("v2", *words, "exchange.window=256")
    list(play(whole))
    assert (whole.server.w - engine.server.w).abs().max() > 1e-4


def test_copies_of_the_back_are_averaged_by_samples() -> None:
    engine = split("v1")
    server = engine.server
    server.open(0, (1, 3))
    server.w.zero_()
    server.back(1).fill_(4)
    server.back(3).fill_(8)
    for client, value, weight in ((1, 1.0, 3.0), (3, 5.0, 1.0)):
        front = sparse.block(Kind.GRADIENT, torch.full((server.front,), value))
        server.absorb(0, Message(client, [front], weight))
    server.step(0)
    assert set(server.w[: server.front].tolist()) == {2.0}
    assert set(server.w[server.front :].tolist()) == {5.0}


def test_one_back_is_not_averaged() -> None:
    engine = split("v2")
    server = engine.server
    server.open(0, (1, 3))
    assert len(server.copies.rows) == 1
    server.copies.rows.w[0] = 7.0
    for client in (1, 3):
        front = sparse.block(Kind.GRADIENT, torch.zeros(server.front))
        server.absorb(0, Message(client, [front], 2.0))
    server.step(0)
    assert set(server.w[server.front :].tolist()) == {7.0}


def test_the_order_of_v2_is_drawn_each_round_and_repeats_with_the_seed() -> None:
    words = ("clients=5", "rounds=6", "epochs=2")
    runs = [dict(orders(split("v2", *words, f"seed={seed}"))) for seed in (1, 1, 2)]
    for t, heard in runs[0].items():
        for step in heard:
            assert step == [client for client in heard[0] if client in step], "one order a round"
        assert sorted(heard[0]) == [0, 1, 2, 3, 4]
        assert runs[1][t] == heard
    firsts = [tuple(heard[0]) for heard in runs[0].values()]
    assert len(set(firsts)) > 3
    assert firsts != [tuple(heard[0]) for heard in runs[2].values()]


def test_the_order_of_v1_does_not_matter() -> None:
    engine = split("v1", "rounds=2")
    for t, heard in orders(engine):
        assert all(step == engine.trainer.ordered(step) for step in heard), t


@VERSIONS
@THREE_STAGES
def test_bytes(version: str, words: tuple[str, ...]) -> None:
    given = ("local_steps=3", "batch=8", "participation=0.6")
    found = run(small("method.name=splitfed", f"method.version={version}", *given, *words))
    engine, rows = found.engine, found.tables["clients"]
    front, back = (vector(half).numel() for half in halves(engine, engine.flat.initial))
    values = halves(engine, engine.flat.initial)[0](engine.trainer.feed.x[:1]).numel()
    assert front + back == engine.flat.size
    assert len(rows) == 6
    for row in rows:
        batches = list(plain.positions(engine, int(row["round"]), int(row["client"])))
        samples = sum(map(len, batches))
        wanted = {
            "up_activation": 4 * values * samples,
            "up_label": samples,
            "up_gradient": 4 * front,
            "down_gradient": 4 * values * samples,
            "down_model": 4 * front,
        }
        for name in rows.dtype.names:
            if name.startswith(("up_", "down_")) and not name.endswith("_header"):
                assert row[name] == wanted.get(name, 0), name


@pytest.mark.parametrize(
    ("classes", "coding"),
    [(2, Coding.U1), (256, Coding.U1), (257, Coding.U2), (65536, Coding.U2), (65537, Coding.U4)],
)
def test_labels_take_the_narrowest_coding(classes: int, coding: Coding) -> None:
    y = torch.tensor([0, classes - 1, 1])
    block = sparse.labels(y, classes)
    assert (block.kind, block.coding, block.indices) == (Kind.LABEL, coding, None)
    assert torch.equal(sparse.values(block), y)


def test_more_than_256_classes_arrive_whole() -> None:
    engine = split("v1", "data.classes=300", "data.samples=900", "partition.name=iid", "clients=2")
    clients = engine.clients
    clients.receive(0, [0], engine.server.broadcast(0))
    clients.open(0, (0,))
    (message,) = clients.forward(0)
    positions = next(plain.positions(engine, 0, 0))
    assert torch.equal(sparse.values(message.blocks[1]), engine.trainer.feed.y[positions])
    assert engine.trainer.feed.y[positions].max() > 255


@THREE_STAGES
def test_what_comes_back_is_the_gradient_at_the_cut(words: tuple[str, ...]) -> None:
    engine = split("v1", *words)
    server, clients, seen = engine.server, engine.clients, []
    forward, backward = clients.forward, clients.backward

    def speak(t: int) -> list[Message]:
        front, back = clients.fronts.rows.w.clone(), server.copies.rows.w.clone()
        seen.append((front, back, messages := forward(t)))
        return messages

    def listen(t: int, messages: Sequence[Message]) -> None:
        front, back, asked = seen[-1]
        answers = {message.client: message for message in messages}
        for question in asked:
            answer = answers[question.client]
            slot = clients.fronts.order.index(question.client)
            assert server.copies.order[slot] == question.client
            whole = network(engine, torch.cat([front[slot], back[slot]]))
            a = sparse.values(question.blocks[0])
            y = sparse.values(question.blocks[1])
            a = a.view(len(y), *server.shape).requires_grad_()
            cross_entropy(whole[1:](a), y).backward()
            found = sparse.values(answer.blocks[0])
            np.testing.assert_allclose(found, a.grad.reshape(-1), rtol=1e-4, atol=1e-7)
            assert question.blocks[0].kind == Kind.ACTIVATION
            assert question.blocks[1].kind == Kind.LABEL
            assert answer.blocks[0].kind == Kind.GRADIENT
        backward(t, messages)

    clients.forward, clients.backward = speak, listen
    list(play(engine))
    assert len(seen) > 2


def test_activations_are_those_of_the_front_on_the_clients_batch() -> None:
    engine = split("v1")
    clients, front = engine.clients, halves(engine, engine.flat.initial)[0]
    clients.receive(0, [0, 1], engine.server.broadcast(0))
    clients.open(0, (0, 1))
    for message in clients.forward(0):
        positions = next(plain.positions(engine, 0, message.client))
        a = front(engine.trainer.feed.x[positions]).detach().reshape(-1)
        np.testing.assert_allclose(sparse.values(message.blocks[0]), a, rtol=1e-5, atol=1e-6)


def test_a_methods_hook_changes_the_fronts_gradients() -> None:
    """As in `fedavg`, before each step; split methods that override it rely on that."""
    engine = split("v1", "local_steps=3", "lr=0.5")
    clients, seen = engine.clients, []

    def ones(some: Sequence[int], w: Tensor, g: Tensor) -> None:
        seen.append((*some, w.shape, g.shape))
        g.fill_(1)

    clients.adjust = ones
    list(play(engine))
    shape = (5, clients.front.size)
    assert seen == [(*clients.fronts.order, shape, shape)] * 6
    assert sorted(clients.fronts.order) == list(range(5))
    # Two rounds of three steps by a half, for every client alike.
    wanted = engine.flat.initial[: clients.front.size] - 3
    np.testing.assert_allclose(engine.server.w[: clients.front.size], wanted, atol=1e-5)


@VERSIONS
def test_the_servers_optimiser_keeps_its_state_over_the_batches(version: str) -> None:
    """And not longer: a round starts at rest. (The authors' code makes a new one each batch.)"""
    engine = split(version, "momentum=0.9", "rounds=2")
    server = engine.server
    speeds: list[float] = []
    exchange = server.exchange

    def watch(t: int, messages: Sequence[Message]) -> list[Message]:
        speeds.append(float(server.copies.descent.velocity.norm()))
        return exchange(t, messages)

    server.exchange = watch
    starts = []
    for _ in play(engine):
        starts.append(len(speeds))
    assert speeds[0] == 0
    assert speeds[starts[0]] == 0
    assert all(speed > 0 for at, speed in enumerate(speeds) if at not in (0, starts[0]))


@VERSIONS
def test_own_models_are_measured_whole(version: str) -> None:
    """A client's own model is its front and its back (v1), or the one that there is (v2)."""
    engine = split(version, "rounds=1", "lr=0.5", "epochs=4", "data.separation=8.0")
    server = engine.server
    (outcome,) = play(engine)
    for row in outcome.tables["clients"]:
        client = int(row["client"])
        front, back = engine.clients.fronts.of(client), server.copies.rows.w[0]
        if version == "v1":
            back = server.copies.of(client)
        module = halves(engine, engine.flat.initial)
        vector_to_parameters(front.clone(), module[0].parameters())
        vector_to_parameters(back.clone(), module[1].parameters())
        shard = engine.population.test_shards[client]
        x, y = engine.observer.test_x[shard], engine.observer.test_y[shard]
        right = (module[1](module[0](x)).argmax(1) == y).float().mean()
        assert row["personal"] == pytest.approx(float(right), abs=1e-6)
    assert len(set(outcome.tables["clients"]["personal"].tolist())) > 1


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("method.cut=head",), "method.cut = 'head'.*hidden1, hidden2"),
        (("method.cut=nowhere",), "method.cut = 'nowhere'.*hidden1, hidden2"),
        (("model.hidden=[]",), "no split point"),
    ],
)
def test_a_cut_that_is_not_there_is_refused(words: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        split("v1", *words)


def test_the_first_split_point_is_the_default() -> None:
    found, wanted = (
        run(small("method.name=splitfed", *cut)) for cut in ((), ("method.cut=hidden1",))
    )
    assert found.sha256 == wanted.sha256
    assert found.tables["rounds"]["up"].tolist() == wanted.tables["rounds"]["up"].tolist()
