"""SplitFed's algebra: what crosses the cut, who trains which back, and how backs become one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message
from fedmpi.split.cuts import Crossing
from fedmpi.split.lockstep import Lockstep
from fedmpi.split.sides import Said
from fedmpi.training.feed import Batch
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
    server, taken = engine.server, {}
    learn = server.step_last

    def watch(backs: Lockstep, told: Said) -> list[Message]:
        taken.setdefault(backs.done, []).extend(told)
        return learn(backs, told)

    server.step_last = watch
    for t, _ in enumerate(play(engine)):
        yield t, list(taken.values())
        taken.clear()


def plain_round(engine: Engine, t: int, w: Tensor, clients: Sequence[int]) -> Tensor:
    """A round on torch's modules and optimisers, the chain rule applied by hand at the cut.

    With v1 each client has a back; with v2 there is one, and in each step the clients take their
    turns at it in that order.
    """
    alone = engine.settings.method.version == "v2"
    shared = halves(engine, w)[1]
    shared_sgd = optimiser(engine, shared, t)
    fronts, backs, samples = 0.0, 0.0, 0
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
                values[batches[step]] for values in (engine.trainer.feed.x, engine.trainer.feed.y)
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
        assert len({steps(t, client) for client in clients}) > 1, "some clients are done earlier"
        w = plain_round(engine, t, w, clients)
        np.testing.assert_allclose(engine.server.w, w, rtol=1e-4, atol=2e-5)
        w = engine.server.w.clone()


def test_the_one_back_meets_all_clients_in_one_order_whatever_the_window() -> None:
    words = ("model.hidden=[1024]", "momentum=0.9", "method.name=splitfed", "method.version=v2")
    narrow, wide = (run(small(*words, f"exchange.window={mib}")) for mib in (1, 256))
    assert narrow.sha256 == wide.sha256
    assert [found.engine.width for found in (narrow, wide)] == [5, 5]
    assert split("v1", "model.hidden=[1024]", "exchange.window=1").width == 3


def test_copies_of_the_back_are_averaged_by_samples() -> None:
    engine = split("v1")
    server, size = engine.server, engine.server.sections.front
    server.open(0, [(1,), (3,)])
    server.w.zero_()
    server.backs.of(1).fill_(4)
    server.backs.of(3).fill_(8)
    for client, value, weight in ((1, 1.0, 3.0), (3, 5.0, 1.0)):
        front = sparse.block(Kind.GRADIENT, torch.full((size,), value))
        server.absorb(0, Message(client, [front], weight))
    server.step(0)
    assert set(server.w[:size].tolist()) == {2.0}
    assert set(server.w[size:].tolist()) == {5.0}


def test_one_back_is_not_averaged() -> None:
    engine = split("v2")
    server, size = engine.server, engine.server.sections.front
    server.open(0, [(1,), (3,)])
    assert [len(descent.rows) for descent in server.backs.descents] == [1]
    server.backs.first_row.fill_(7)
    assert server.backs.of(1).data_ptr() == server.backs.of(3).data_ptr()
    for client in (1, 3):
        front = sparse.block(Kind.GRADIENT, torch.zeros(size))
        server.absorb(0, Message(client, [front], 2.0))
    server.step(0)
    assert set(server.w[size:].tolist()) == {7.0}


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
        assert all(step == engine.trainer.ordered(0, step) for step in heard), t


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
    (talk,) = clients.open(0, [(0,)])
    (message,) = next(talk)
    positions = next(plain.positions(engine, 0, 0))
    assert torch.equal(sparse.values(message.blocks[1]), engine.trainer.feed.y[positions])
    assert engine.trainer.feed.y[positions].max() > 255


@THREE_STAGES
def test_what_comes_back_is_the_gradient_at_the_cut(words: tuple[str, ...]) -> None:
    engine = split("v1", *words)
    server, clients, seen = engine.server, engine.clients, []
    forward, backward = clients.forward, clients.backward

    def speak(fronts: Lockstep, some: Sequence[int], batches: Sequence[Batch]) -> list[Message]:
        messages = forward(fronts, some, batches)
        models = [torch.cat([clients.fronts.of(c), server.backs.of(c)]) for c in some]
        seen.append(list(zip(messages, models, strict=True)))
        return messages

    def listen(fronts: Lockstep, told: Said) -> None:
        for question, w in seen[-1]:
            a, y = (sparse.values(block) for block in question.blocks)
            a = a.view(len(y), *server.shape).requires_grad_()
            cross_entropy(network(engine, w)[1:](a), y).backward()
            (answer,) = told[question.client]
            np.testing.assert_allclose(
                sparse.values(answer), a.grad.reshape(-1), rtol=1e-4, atol=1e-7
            )
            assert [block.kind for block in question.blocks] == [Kind.ACTIVATION, Kind.LABEL]
            assert answer.kind == Kind.GRADIENT
        backward(fronts, told)

    clients.forward, clients.backward = speak, listen
    list(play(engine))
    assert len(seen) > 2


def test_activations_are_those_of_the_front_on_the_clients_batch() -> None:
    engine = split("v1")
    clients, front = engine.clients, halves(engine, engine.flat.initial)[0]
    clients.receive(0, [0, 1], engine.server.broadcast(0))
    (talk,) = clients.open(0, [(0, 1)])
    for message in next(talk):
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
    shape, size = (5, clients.held.size), clients.held.size
    order = engine.trainer.ordered(0, range(5))
    assert seen == [(*order, shape, shape)] * 6
    # Two rounds of three steps by a half, for every client alike.
    wanted = engine.flat.initial[:size] - 3
    np.testing.assert_allclose(engine.server.w[:size], wanted, atol=1e-5)


@VERSIONS
def test_the_servers_optimiser_keeps_its_state_over_the_batches(version: str) -> None:
    """And not longer: a round starts at rest. (The authors' code makes a new one each batch.)"""
    engine = split(version, "momentum=0.9", "rounds=2")
    server = engine.server
    speeds: list[float] = []
    learn = server.step_last

    def watch(backs: Lockstep, told: Said) -> list[Message]:
        speeds.append(float(backs.descent.velocity.norm()))
        return learn(backs, told)

    server.step_last = watch
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
        front, back = engine.clients.fronts.of(client), server.backs.of(client)
        module = halves(engine, engine.flat.initial)
        vector_to_parameters(front.clone(), module[0].parameters())
        vector_to_parameters(back.clone(), module[1].parameters())
        shard = engine.population.test_shards[client]
        x, y = engine.evaluation.test_x[shard], engine.evaluation.test_y[shard]
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


def tailed(*words: str) -> Engine:
    """An engine whose network's head is the client's, as its first stage is."""
    return split("v1", "method.tail=head", *words)


@THREE_STAGES
@pytest.mark.parametrize("more", [(), ("participation=0.6", "momentum=0.9", "epochs=2")], ids=str)
def test_a_tail_changes_nothing_but_what_travels(words: tuple[str, ...], more: tuple[str]) -> None:
    """Bit for bit: it is the same step, which crosses one more cut."""
    found, wanted = (
        run(small("method.name=splitfed", *tail, *words, *more))
        for tail in (("method.tail=head",), ())
    )
    assert found.sha256 == wanted.sha256
    for column in ("loss", "accuracy", "personal", "steps"):
        one, other = (some.tables["clients"][column] for some in (found, wanted))
        np.testing.assert_array_equal(one, other)


def test_a_tail_keeps_labels_at_home() -> None:
    """Activations and gradients cross both cuts, in both directions; labels none."""
    engine = tailed("local_steps=3", "batch=8", "rounds=1")
    front, _, tail = (part.size for part in engine.settings.method.parts(engine.flat))
    for row in next(play(engine)).tables["clients"]:
        samples = sum(map(len, plain.positions(engine, 0, int(row["client"]))))
        there, back = 4 * 12 * samples, 4 * 8 * samples
        wanted = {
            "up_activation": there,
            "down_activation": back,
            "up_gradient": back + 4 * (front + tail),
            "down_gradient": there,
            "down_model": 4 * (front + tail),
        }
        for name in row.dtype.names:
            if name.startswith(("up_", "down_")) and not name.endswith("_header"):
                assert row[name] == wanted.get(name, 0), name
        assert row["up_header"] == (2 * 3 + 1) * 48


def test_what_a_tail_sends_is_the_gradient_at_its_cut() -> None:
    engine = tailed("rounds=1", "local_steps=1")
    start, seen = engine.server.w.clone(), {}
    forward, backward = engine.server.forward, engine.server.backward

    def watch(name: str, hook: Callable) -> Callable:
        def watched(backs: Lockstep, told: Said) -> list[Message]:
            heard = {client: sparse.values(block) for client, (block,) in told.items()}
            answers = hook(backs, told)
            said = {answer.client: sparse.values(answer.blocks[0]) for answer in answers}
            seen[name] = heard, said
            return answers

        return watched

    engine.server.forward = watch("forward", forward)
    engine.server.backward = watch("backward", backward)
    list(play(engine))
    whole, feed = network(engine, start), engine.trainer.feed
    for client in range(5):
        positions = next(plain.positions(engine, 0, client))
        a = whole[:1](feed.x[positions]).detach().requires_grad_()
        b = whole[1:2](a)
        b.retain_grad()
        cross_entropy(whole[2:](b), feed.y[positions]).backward()
        found = [some[client] for name in ("forward", "backward") for some in seen[name]]
        for values, wanted in zip(found, (a, b, b.grad, a.grad), strict=True):
            np.testing.assert_allclose(values, wanted.detach().reshape(-1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("method.tail=hidden1",), "behind 'hidden2', the server's first; there are: head$"),
        (("method.tail=hidden2",), "behind 'hidden2', the server's first; there are: head$"),
        (("method.tail=head", "method.cut=hidden2"), "behind 'head', .*there are: none$"),
        (("method.tail=head", "method.version=v2"), "'head': wanted version = 'v1', found 'v2'"),
    ],
)
def test_a_tail_that_cannot_be_is_refused(words: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Engine(small("method.name=splitfed", *words))


@pytest.mark.parametrize("tail", [(), ("method.tail=head",)], ids=["", "tail"])
def test_both_sides_know_what_crosses_a_cut(tail: tuple[str, ...]) -> None:
    """What is encoded on one side is decoded on the other, with the same round, client and step."""
    engine = split("v1", "rounds=2", "local_steps=2", "participation=0.6", *tail)
    there: dict[str, list[Crossing]] = {}
    values: dict[tuple[str, Crossing], Tensor] = {}

    def tap(side: str, half: Any) -> None:
        encode, decode = half.encode, half.decode

        def encoded(crossing: Crossing, a: Tensor) -> list[Block]:
            there.setdefault(f"{side} encodes", []).append(crossing)
            values[side, crossing] = a.detach().reshape(-1).clone()
            return encode(crossing, a)

        def decoded(crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
            other = {"server": "clients", "clients": "server"}[side]
            there.setdefault(f"{side} decodes", []).append(crossing)
            found = decode(crossing, blocks)
            assert torch.equal(values[other, crossing], found)
            return found

        half.encode, half.decode = encoded, decoded

    tap("server", engine.server)
    tap("clients", engine.clients)
    list(play(engine))
    everyone = [(t, client) for t in range(2) for client in engine.population.sample(t)]
    for one, other, kinds in (
        ("clients", "server", [(Kind.ACTIVATION, 0), (Kind.GRADIENT, 1)]),
        ("server", "clients", [(Kind.GRADIENT, 0), (Kind.ACTIVATION, 1)]),
    ):
        wanted = [
            Crossing(kind, cut, t, client, step)
            for t, client in everyone
            for step in range(2)
            for kind, cut in kinds[: 1 + len(tail)]
        ]
        assert sorted(there[f"{one} encodes"]) == sorted(wanted)
        assert sorted(there[f"{other} decodes"]) == sorted(wanted)


def test_weights_may_be_equal() -> None:
    """As in the authors' code; by plain torch."""
    engine = split("v1", "rounds=1", "aggregation.weights=equal")
    start = engine.server.w.clone()
    list(play(engine))
    models = [plain.train(engine, 0, client, start)[0] for client in range(5)]
    torch.testing.assert_close(engine.server.w, torch.stack(models).mean(0))
    assert not torch.allclose(engine.server.w, plain.average(engine, 0, start))


def test_one_back_has_no_median() -> None:
    """It moves in each step, and no clip would hold it."""
    for word in ("aggregation.rule=median", "aggregation.clip=1.0"):
        with pytest.raises(ConfigError, match="upload whole updates"):
            Engine(small("method.name=splitfed", "method.version=v2", word))
        Engine(small("method.name=splitfed", word))
