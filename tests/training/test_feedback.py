"""Error feedback, in every method that has it: nothing is lost or made up, and little waits."""

import itertools

import pytest
import torch
from torch import Tensor

from fedmpi import config, models
from fedmpi.engine import Engine
from fedmpi.messages.codec import Message, pack, unpack
from fedmpi.training.feedback import Feedback
from tests.plain import METHODS, play
from tests.small import run, small, smooth

every_method = pytest.mark.parametrize("name", METHODS)


def remembering(name: str, *words: str, is_on: bool = True) -> Engine | None:
    """An engine of the method with its error feedback on or off; None if there is none.

    Without the momentum that some have of their own: what goes in is the update then.
    """
    fields = config.module("method", name).Config.model_fields
    wanted = {"error_feedback": str(is_on).lower(), "momentum": "0.0", "sparsity": "0.8"}
    own = [f"method.{key}={value}" for key, value in wanted.items() if key in fields]
    engine = Engine(small(f"method.name={name}", *own, *words, "rounds=10"))
    has = isinstance(getattr(engine.clients, "feedback", None), Feedback)
    assert has or "error_feedback" not in fields
    return engine if has else None


def random(engine: Engine, *seed: int) -> Tensor:
    """An update of what a client has, [n]."""
    number = 1000 * seed[0] + sum(seed[1:])
    return torch.randn(len(engine.clients.start), generator=torch.Generator().manual_seed(number))


def sent(engine: Engine, t: int, client: int, update: Tensor) -> Tensor:
    """What the server makes of a client's upload, as the wire brings it: [n]."""
    server = engine.server
    server.sum.total.zero_()
    if engine.method.converses:
        server.open(t, [(client,)])
    blocks = engine.clients.upload(t, client, engine.clients.start + update)
    (message,), _ = unpack(pack([Message(client, blocks, 1.0)]).data)
    server.absorb(t, message)
    return (server.updates[client] if engine.method.converses else server.sum.total).clone()


@every_method
def test_what_is_sent_and_what_waits_is_the_update_and_what_waited(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client by client; of running statistics, which all travel, nothing waits."""
    monkeypatch.setattr(models, "build", smooth)
    engine = remembering(name)
    if engine is None:
        return
    size, stat_positions = len(engine.clients.start), []
    waiting = {3: torch.zeros(size), 1: torch.zeros(size)}
    for t, client in itertools.product(range(4), waiting):
        update = random(engine, t, client)
        arrived = sent(engine, t, client, update)
        rest = engine.clients.feedback.residuals[client].clone()
        torch.testing.assert_close(arrived + rest, update + waiting[client], rtol=0, atol=2e-5)
        assert float(rest.norm()) > 0.1 * float(update.norm()), "something is left out"
        stat_positions.append(rest[engine.clients.stat_positions])
        waiting[client] = rest
    assert not torch.stack(stat_positions).any()


@every_method
def test_without_it_nothing_waits(name: str) -> None:
    engine = remembering(name, is_on=False)
    if engine is None or "error_feedback" not in type(engine.settings.method).model_fields:
        return
    for t in range(2):
        sent(engine, t, 1, random(engine, t))
    assert not engine.clients.feedback.residuals


@every_method
def test_compressors_contract_so_that_in_the_end_all_is_sent(name: str) -> None:
    """What waits is shorter than what was to be sent; the mean of what came nears the update."""
    engine = remembering(name)
    if engine is None:
        return
    update = random(engine, 0)
    total = torch.zeros_like(update)
    rest = torch.zeros_like(total)
    for t in range(300):
        wanted = float((update + rest).norm())
        total += sent(engine, t, 1, update)
        rest = engine.clients.feedback.residuals[1].clone()
        assert float(rest.norm()) < wanted
    assert float((total / 300 - update).norm()) < 0.2 * float(update.norm())


@every_method
def test_a_lost_upload_waits_as_a_whole(name: str) -> None:
    """Its client hears of it with the server's next word, and adds all of it to its next update."""
    engine = remembering(name, "devices.dropouts=0.5")
    if engine is None:
        return
    residuals = engine.clients.feedback.residuals
    waiting = torch.zeros(len(engine.clients.start))
    for t in range(6):
        update = random(engine, t)
        arrived, is_lost = sent(engine, t, 1, update), t % 3 != 0
        if is_lost:
            engine.trainer.lose(1)
            arrived = torch.zeros_like(arrived)
        rest = residuals[1].clone()
        torch.testing.assert_close(arrived + rest, update + waiting, rtol=0, atol=5e-5)
        waiting = rest


def test_momentum_correction_of_a_lost_upload_goes_on() -> None:
    """DGC sets u and v to zero where values were sent, but not if they were lost."""
    engine = Engine(small("method.name=dgc", "method.momentum=0.5", "devices.dropouts=0.5"))
    one, two = random(engine, 1), random(engine, 2)
    for update in (one, two):
        sent(engine, 9, 1, update)
        engine.trainer.lose(1)
    u = 0.5 * one + two
    torch.testing.assert_close(engine.clients.velocities.residuals[1], 0.5 * u)
    torch.testing.assert_close(engine.clients.feedback.residuals[1], one + u)


def test_clients_are_told_of_losses_when_they_take_part_again() -> None:
    """A message with their numbers, here as a bitmap, goes to all; none where nothing was lost."""
    words = ("method.name=topk", "devices.dropouts=0.4", "rounds=6", "participation=0.6")
    engine = Engine(small(*words))
    lose, told = engine.trainer.lose, []
    engine.trainer.lose = lambda client: (told.append(client), lose(client))
    unheard, expected = set[int](), list[list[int]]()
    for outcome in play(engine):
        rows = outcome.tables["clients"]
        here = set(rows["client"].tolist())
        expected.append(sorted(unheard & here))
        assert sorted(told) == expected[-1]
        assert (rows["down_mask"] > 0).all() == bool(told)
        assert not told or set(rows["down_mask"].tolist()) == {1}
        assert not told or set(rows["down_header"].tolist()) == {48 + 48 + 7}
        unheard = (unheard - here) | {int(one) for one in rows["client"][rows["lost"]]}
        told.clear()
    assert sum(map(len, expected)) > 1
    plain = run(small(*words[1:])).tables["clients"]
    assert not plain["down_mask"].any(), "FedAvg's clients keep nothing that depends on it"
