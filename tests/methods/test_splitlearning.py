"""Split learning's algebra: one back, and a front that travels from client to client."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.split.lockstep import Lockstep
from fedmpi.split.sides import Said
from fedmpi.streams import Purpose, stream
from tests import plain
from tests.plain import CNN, network, optimiser, play, vector
from tests.small import run, small

SGD = ("momentum=0.9", "weight_decay=0.01", "participation=0.6", "rounds=3", "epochs=2", "seed=2")
worlds = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])
tails = pytest.mark.parametrize("tail", [(), ("method.tail=head",)], ids=["", "tail"])


def relay(*words: str) -> Engine:
    """An engine that has not begun."""
    return Engine(small("method.name=splitlearning", *words))


def turns(engine: Engine, t: int) -> list[int]:
    """The clients of round t in the order of their turns."""
    draw = stream(engine.settings.seed, Purpose.ORDER, t).permutation(engine.settings.clients)
    return sorted(engine.population.sample(t), key=lambda client: draw[client])


def learn(engine: Engine, t: int, client: int, whole: nn.Module, sgds: Sequence) -> None:
    """A client's turn, on torch's modules and optimisers."""
    feed = engine.trainer.feed
    for positions in plain.positions(engine, t, client):
        for sgd in sgds:
            sgd.zero_grad()
        cross_entropy(whole(feed.x[positions]), feed.y[positions]).backward()
        for sgd in sgds:
            sgd.step()


def plain_round(engine: Engine, t: int, w: Tensor) -> dict[int, Tensor]:
    """The model after each client's turn in round t.

    The back's optimiser goes on from client to client; that of front and tail is a client's own.
    """
    whole, after = network(engine, w), {}
    back = whole[1:-1] if engine.settings.method.tail else whole[1:]
    theirs = nn.ModuleList([whole[:1], *([whole[-1:]] if engine.settings.method.tail else [])])
    of_back = optimiser(engine, back, t)
    for client in turns(engine, t):
        learn(engine, t, client, whole, [of_back, optimiser(engine, theirs, t)])
        after[client] = vector(whole)
    return after


@worlds
@tails
def test_rounds_equal_plain_training(words: tuple[str, ...], tail: tuple[str, ...]) -> None:
    engine = relay(*SGD, *words, *tail)
    w = engine.server.w.clone()
    for t, outcome in enumerate(play(engine)):
        after = plain_round(engine, t, w)
        w = engine.server.w.clone()
        np.testing.assert_allclose(w, list(after.values())[-1], rtol=1e-4, atol=2e-5)
        for row in outcome.tables["clients"]:
            shard = engine.population.test_shards[int(row["client"])]
            x, y = engine.evaluation.test_x[shard], engine.evaluation.test_y[shard]
            wanted = plain.accuracy(network(engine, after[int(row["client"])]), x, y)
            assert row["personal"] == pytest.approx(wanted, abs=1e-6)


@worlds
@tails
def test_one_client_is_central_training_over_rounds(
    words: tuple[str, ...], tail: tuple[str, ...]
) -> None:
    """Its optimiser starts afresh each round, as everywhere."""
    given = ("clients=1", "rounds=3", "epochs=2", "momentum=0.9", "weight_decay=0.01")
    engine = relay(*given, *words, *tail)
    list(play(engine))
    whole = network(engine, engine.flat.initial)
    for t in range(3):
        learn(engine, t, 0, whole, [optimiser(engine, whole, t)])
    np.testing.assert_allclose(engine.server.w, vector(whole), rtol=1e-4, atol=2e-5)


def test_without_momentum_many_clients_are_one_after_the_other() -> None:
    """Then no optimiser has a state, and the round is central training on batch after batch."""
    engine = relay("rounds=2")
    list(play(engine))
    whole = network(engine, engine.flat.initial)
    for t in range(2):
        for client in turns(engine, t):
            learn(engine, t, client, whole, [optimiser(engine, whole, t)])
    np.testing.assert_allclose(engine.server.w, vector(whole), rtol=1e-4, atol=2e-5)


def test_the_back_keeps_its_optimisers_state_from_client_to_client() -> None:
    """And not from round to round."""
    engine, speeds = relay("momentum=0.9", "rounds=2", "local_steps=3"), []
    take = engine.server.step_last

    def watch(backs: Lockstep, told: Said) -> list[Message]:
        speeds.append(float(backs.descent.velocity.norm()))
        return take(backs, told)

    engine.server.step_last = watch
    list(play(engine))
    assert len(speeds) == 2 * 5 * 3
    assert [at for at, speed in enumerate(speeds) if speed == 0] == [0, 15]


@tails
def test_what_a_client_leaves_behind_is_what_the_next_one_gets(tail: tuple[str, ...]) -> None:
    """In the order that is drawn, bit for bit; the first gets what the last round ended with."""
    engine, said = relay("rounds=2", "participation=0.8", *tail), []
    send, upload = engine.server.send, engine.clients.upload

    def sent(t: int, client: int) -> list[Block]:
        said.append(("down", client, (blocks := send(t, client))[0].values.copy()))
        return blocks

    def uploaded(t: int, client: int, w: Tensor) -> list[Block]:
        said.append(("up", client, (blocks := upload(t, client, w))[0].values.copy()))
        return blocks

    engine.server.send, engine.clients.upload = sent, uploaded
    list(play(engine))
    order = [client for t in range(2) for client in turns(engine, t)]
    assert order != sorted(order[: len(order) // 2]) + sorted(order[len(order) // 2 :])
    assert [(way, c) for way, c, _ in said] == [(w, c) for c in order for w in ("down", "up")]
    for (_, _, one), (_, _, other) in zip(said[1:-1:2], said[2::2], strict=True):
        assert np.array_equal(one, other)
    for (_, _, one), (_, _, other) in zip(said[::2], said[1::2], strict=True):
        assert not np.array_equal(one, other)


def test_what_is_lost_on_its_way_is_not_passed_on() -> None:
    """The next client begins where the lost one began; the back has learnt all the same."""
    engine = relay()
    server = engine.server
    server.broadcast(0)
    start = server.relay.clone()
    for client in (1, 3):
        server.open(0, [(client,)])
        server.backs.first_row.add_(1)
        if client == 1:
            assert server.personal(1) is None
        else:
            block = sparse.block(Kind.MODEL, start + 5)
            server.absorb(0, Message(3, [block], 1.0))
        (block,) = server.send(0, 4)
        assert torch.equal(sparse.values(block), start + (0 if client == 1 else 5))
    server.step(0)
    size = len(start)
    torch.testing.assert_close(server.w[:size], start + 5)
    torch.testing.assert_close(server.w[size:], engine.flat.initial[size:] + 2)
    assert torch.equal(server.personal(3), server.w)


@tails
def test_bytes(tail: tuple[str, ...]) -> None:
    found = run(small("method.name=splitlearning", "local_steps=3", "batch=8", *tail))
    front, _, end = (p.size for p in found.engine.settings.method.parts(found.engine.flat))
    for row in found.tables["clients"]:
        batches = plain.positions(found.engine, int(row["round"]), int(row["client"]))
        samples = sum(map(len, batches))
        wanted = {
            "up_activation": 4 * 12 * samples,
            "up_label": 0 if tail else samples,
            "up_gradient": 4 * 8 * samples if tail else 0,
            "up_model": 4 * (front + end),
            "down_gradient": 4 * 12 * samples,
            "down_activation": 4 * 8 * samples if tail else 0,
            "down_model": 4 * (front + end),
        }
        for name in row.dtype.names:
            if name.startswith(("up_", "down_")) and not name.endswith("_header"):
                assert row[name] == wanted.get(name, 0), name


def test_it_is_another_method_than_splitfed() -> None:
    words = ("method.name=splitfed", "method.version=v2")
    found = [run(small(*w, "rounds=1")).model for w in (("method.name=splitlearning",), words)]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    alone = [
        run(small(*w, "rounds=2", "clients=1", "momentum=0.9")).model
        for w in (("method.name=splitlearning",), words)
    ]
    np.testing.assert_allclose(*alone, rtol=1e-4, atol=1e-6)
