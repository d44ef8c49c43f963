"""Feedback, in every method that can have it: nothing is lost or made up, and little waits."""

import itertools

import pytest
import torch
from torch import Tensor

from fedmpi import config, models
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Message, pack, unpack
from tests.plain import CNN, METHODS, play
from tests.small import refusal, run, small, smooth

CLASSIC, EF21 = (
    [name for name in METHODS if kind in config.module("method", name).Config.feedbacks]
    for kind in ("classic", "ef21")
)
every_classic = pytest.mark.parametrize("name", CLASSIC)
every_ef21 = pytest.mark.parametrize("name", EF21)


def compressing(name: str) -> list[str]:
    """Words by which a method compresses: its own way, or by a codec if it has none.

    Without the momentum that some have of their own: what goes in is the update then.
    """
    method = config.schema("method", name)
    wanted = {"momentum": "0.0", "sparsity": "0.8"}
    if name == "qsgd":
        wanted["bits"] = "7"  # fewer do not contract in buckets of 512
    own = [f"method.{key}={value}" for key, value in wanted.items() if key in method.model_fields]
    codes = ["codec.values=uniform", "codec.bits=3"]
    words = [f"method.name={name}", "control=none", *own]
    return [*words, *([] if method().loses else codes)]


def remembering(name: str, kind: str, *words: str) -> Engine:
    """An engine of the method that compresses with feedback."""
    return Engine(small(*compressing(name), f"feedback={kind}", *words, "rounds=10"))


def random(engine: Engine, *seed: int) -> Tensor:
    """An update of what a client has, zero where the method changes nothing: [n]."""
    number = 1000 * seed[0] + sum(seed[1:])
    clients = engine.clients
    found = torch.randn(len(clients.start), generator=torch.Generator().manual_seed(number))
    if clients.private is not None:
        found[clients.private] = 0
    if hasattr(clients, "mask"):
        found[~clients.mask] = 0
    return found


def sent(engine: Engine, t: int, client: int, update: Tensor) -> Tensor:
    """What the server takes for a client's update, as the wire brings it: [n]."""
    server, theirs, found = engine.server, engine.clients.theirs, []
    server.sum.total.zero_()
    if engine.method.converses:
        server.open(t, [(client,)])
    blocks = engine.clients.upload(t, client, engine.clients.start + update)
    (message,), _ = unpack(pack([Message(client, blocks, 1.0)]).data)
    add = server.add

    def listen(t, client, blocks, update, where, weight) -> None:
        found.append(sparse.vector(update, theirs.size, torch.device("cpu"), where))
        add(t, client, blocks, update, where, weight)

    server.add = listen
    server.absorb(t, message)
    server.add = add
    if not found:
        return server.updates[client].clone()
    if server.has_statistics:
        found[0][theirs.stat_positions] = sparse.values(message.blocks[-1])
    return found[0]


@every_classic
def test_what_is_sent_and_what_waits_is_the_update_and_what_waited(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client by client; of running statistics, which all travel, nothing waits."""
    monkeypatch.setattr(models, "build", smooth)
    engine = remembering(name, "classic")
    size, stat_positions = len(engine.clients.start), []
    waiting = {3: torch.zeros(size), 1: torch.zeros(size)}
    for t, client in itertools.product(range(4), waiting):
        update = random(engine, t, client)
        arrived = sent(engine, t, client, update)
        rest = engine.clients.feedback.residuals[client].clone()
        torch.testing.assert_close(arrived + rest, update + waiting[client], rtol=0, atol=2e-5)
        assert float(rest.norm()) > 0.1 * float(update.norm()), "something is left out"
        stat_positions.append(rest[engine.clients.theirs.stat_positions])
        waiting[client] = rest
    assert not torch.stack(stat_positions).any()


@pytest.mark.parametrize("name", sorted({*CLASSIC} - {"dgc"}))
def test_without_it_nothing_waits(name: str) -> None:
    engine = remembering(name, "none")
    for t in range(2):
        sent(engine, t, 1, random(engine, t))
    assert not engine.clients.feedback.residuals
    assert not engine.settings.feeds_back


@every_classic
def test_compressors_contract_so_that_in_the_end_all_is_sent(name: str) -> None:
    """What waits is shorter than what was to be sent; the mean of what came nears the update."""
    engine = remembering(name, "classic")
    update = random(engine, 0)
    total = torch.zeros_like(update)
    rest = torch.zeros_like(total)
    for t in range(100):
        wanted = float((update + rest).norm())
        total += sent(engine, t, 1, update)
        rest = engine.clients.feedback.residuals[1].clone()
        assert float(rest.norm()) < wanted
    assert float((total / 100 - update).norm()) < 0.2 * float(update.norm())


@every_classic
def test_a_lost_upload_waits_as_a_whole(name: str) -> None:
    """Its client hears of it with the server's next word, and adds all of it to its next update."""
    engine = remembering(name, "classic", "devices.dropouts=0.5")
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


@every_ef21
def test_both_sides_have_the_same_estimates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; an upload that is lost moves neither. Running statistics have none."""
    monkeypatch.setattr(models, "build", smooth)
    engine = remembering(name, "ef21", "devices.dropouts=0.5")
    theirs, mine = engine.clients.feedback.store, engine.server.estimates.store
    exact = engine.clients.theirs.stat_positions
    for t, client in itertools.product(range(4), (3, 1)):
        update = random(engine, t, client)
        is_lost = (t + client) % 3 == 0
        if is_lost:
            before = theirs[client].clone() if client in theirs else torch.zeros_like(update)
            engine.clients.upload(t, client, engine.clients.start + update)
            engine.trainer.lose(client)
            assert torch.equal(theirs[client], before)
            continue
        arrived = sent(engine, t, client, update)
        assert torch.equal(theirs[client], mine[client])
        torch.testing.assert_close(arrived[exact], update[exact])
        arrived[exact] = 0
        assert torch.equal(arrived, mine[client]), "the server takes the estimate for the update"
        assert not theirs[client][exact].any()


@every_ef21
def test_estimates_come_to_an_update_that_stays_the_same(name: str) -> None:
    engine = remembering(name, "ef21")
    update = random(engine, 0)
    errors = [float((sent(engine, t, 1, update) - update).norm()) for t in range(40)]
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize("name", METHODS)
def test_feedback_that_a_method_cannot_have_is_refused(name: str) -> None:
    possible = config.module("method", name).Config.feedbacks
    for kind in {"none", "classic", "ef21"} - {*possible}:
        assert f"feedback = '{kind}': wanted '" not in refusal(f"method.name={name}")
        found = refusal(f"method.name={name}", f"feedback={kind}")
        assert f"feedback = '{kind}': wanted {' or '.join(possible)}, which" in found


def test_feedback_of_nothing_is_refused() -> None:
    for name in ("fedavg", "topk method.sparsity=0.0"):
        words = f"method.name={name} feedback=ef21".split()
        assert "feedback = 'ef21': wanted codec.values other than 'f4'" in refusal(*words)
    assert not refusal("method.name=topk", "method.sparsity=0.0"), "it is implied there"
    assert not refusal("feedback=ef21", "codec.values=bf16")


def test_the_old_name_says_the_new_one() -> None:
    found = refusal("method.name=topk", "method.error_feedback=true")
    wanted = "it is feedback now, which is none, classic or ef21"
    assert found == f"no setting 'error_feedback' in [method]; {wanted}"


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


@pytest.mark.parametrize("memory", [1, 0])
def test_an_update_is_added_where_the_residual_is_kept(memory: int) -> None:
    """In memory; from the file it comes into the update. The difference is rounded first."""
    engine = remembering("topk", "classic", f"state.memory={memory}")
    feedback, update = engine.clients.feedback, random(engine, 1)
    before = random(engine, 3)
    assert torch.equal(feedback.add(2, update, before), update - before)
    feedback.remember(2, update, update)
    more = update + random(engine, 2)
    found = feedback.add(2, more, before)
    assert torch.equal(found, update + (more - before))
    more = found - update
    assert (found.data_ptr() == feedback.residuals[2].data_ptr()) == bool(memory)
    feedback.remember(2, found.mul_(0.5), found)
    assert torch.equal(feedback.residuals[2], (update + more) / 2)


@every_classic
def test_running_statistics_are_in_no_residual(name: str) -> None:
    """Those of a lost upload would come twice with the next one: variances became negative."""
    words = (*CNN, "model.norm=batch", "devices.dropouts=0.6", "participation=1.0")
    engine = remembering(name, "classic", *words)
    residuals, seen = engine.clients.feedback.residuals, 0
    for _ in itertools.islice(play(engine), 4):
        for store in (residuals.arrived, residuals.lost):
            for client in store:
                assert not store[client][engine.clients.theirs.stat_positions].any()
                seen += int(store[client].count_nonzero())
    assert seen and len(engine.clients.theirs.stat_positions)
