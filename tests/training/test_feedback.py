"""Error feedback, in every method that has it: nothing is lost or made up, and little waits."""

import itertools

import pytest
import torch
from torch import Tensor

from fedmpi import config, models
from fedmpi.engine import Engine
from fedmpi.messages.codec import Message, pack, unpack
from fedmpi.training.feedback import Feedback
from tests.plain import METHODS
from tests.small import small, smooth

every_method = pytest.mark.parametrize("name", METHODS)


def remembering(name: str, *words: str, is_on: bool = True) -> Engine | None:
    """An engine of the method with its error feedback on or off; None if there is none.

    Without the momentum that some have of their own: what goes in is the update then.
    """
    fields = config.module("method", name).Config.model_fields
    wanted = {"error_feedback": str(is_on).lower(), "momentum": "0.0", "sparsity": "0.8"}
    own = [f"method.{key}={value}" for key, value in wanted.items() if key in fields]
    engine = Engine(small(f"method.name={name}", *own, *words))
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
