"""Conformance: what is true of every method, found by glob, so that a new file is a tested file."""

import ast
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fedmpi import config
from fedmpi.engine import Engine
from fedmpi.messages.codec import Block, Message, pack, unpack
from fedmpi.methods import fedavg
from fedmpi.training.store import Store
from tests.plain import CHOICES, CNN, EVERYTHING, FILES, METHODS, allowed, named, play
from tests.small import Run, alike, refusal, run, small

CASES = [(name,) for name in METHODS]
CASES += [("splitfed", "method.version=v2"), ("topk", "feedback=none")]
CASES += [("feddst", "method.every=1", "method.end=1.0"), ("prunefl", "method.every=1")]
EASY = (
    *("rounds=15", "lr=0.3", "data.classes=4", "data.separation=8.0", "data.samples=400"),
    *("model.hidden=[24,16]", "partition.alpha=1.0"),
)
"""What any method learns within seconds."""
FEW = ("data.samples=100", "data.test_samples=20")
"""For models that are large, where it is their size that matters."""

every_file = pytest.mark.parametrize("path", FILES, ids=named)
every_case = pytest.mark.parametrize("case", CASES, ids=" ".join)


def words(case: tuple[str, ...], *more: str) -> config.Settings:
    """The small run with a method, its own words and some more."""
    return small(*allowed(f"method.name={case[0]}", *case[1:], *more))


@cache
def usual(case: tuple[str, ...]) -> Run:
    """A run that several tests look at, and none changes: some clients of each round."""
    return run(words(case, "participation=0.6", "rounds=3"))


def sound(found: Run) -> None:
    """The run has moved a model, to something finite."""
    start, method = found.engine.flat.initial.numpy(), found.engine.method
    assert np.isfinite(found.model).all()
    assert not method.is_global or not np.array_equal(found.model, start)
    rounds = found.tables["rounds"]
    rounds = rounds[rounds["round"] >= 0]
    assert len(rounds) == found.engine.settings.rounds
    assert np.isfinite(rounds["loss"]).all()
    assert (rounds["loss"] > 0).all()


@every_file
def test_a_method_is_a_config_and_two_halves(path: Path) -> None:
    method = config.module("method", named(path))
    assert issubclass(method.Config, config.Method)
    for half, wanted in ((method.Server, "broadcast absorb step"), (method.Clients, "work upload")):
        assert isinstance(half, type)
        assert all(callable(getattr(half, name)) for name in wanted.split())
    assert named(path).replace("_", "-") in config.names("method")


@every_file
def test_docstring_names_the_method_the_paper_and_the_differences(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text is not None
    first, *rest = text.split("\n")
    assert re.fullmatch(r"[A-Z][^.]*\.", first), "the first line is one sentence"
    assert rest[:1] == [""], "a blank line follows the first"
    flat = " ".join(text.split())
    assert re.search(r"arXiv \d{4}\.\d{4,5}|doi 10\.\d{4}|\b(19|20)\d\d\b", flat), "no paper"
    for opening, formed in (
        ("Differs from", r"^Differs from the (paper|code): \S"),
        ("Reconstruction", r"^Reconstruction: \S"),
    ):
        assert len(re.findall(opening, text)) == len(re.findall(formed, text, re.MULTILINE))


@every_case
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("participation=0.4", "rounds=3", "local_steps=3", "batch=8"),
        ("clients=1", "validation=0.0"),
        (*EVERYTHING, *CNN, "batch=1000"),
    ],
    ids=["plain", "few", "one client", "all"],
)
def test_it_runs_and_moves_the_model(case: tuple[str, ...], more: tuple[str, ...]) -> None:
    found = run(words(case, *more))
    sound(found)
    clients = found.tables["clients"]
    clients = clients[clients["round"] >= 0]
    if "participation=0.4" in more:
        assert np.bincount(clients["round"]).tolist() == [2, 2, 2]
        assert (clients["steps"] == 3).all()


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_every_choice_runs_or_says_what_it_wants(choice: tuple[str, ...]) -> None:
    setting, _, value = choice[1].partition("=")
    if why := refusal(*choice):
        assert f"{setting} = '{value}'" in why
        return
    sound(run(small(*choice)))


TELLS = ("codec.down.values=f4", "codec.down.sparsity=0.9", "participation=0.6", "rounds=3")


@pytest.mark.parametrize("name", METHODS)
def test_the_server_sends_changes_or_the_method_is_refused_by_name(name: str) -> None:
    """Where it can, it sends the whole model otherwise, with which the clients begin."""
    method, module = f"method.name={name}", config.module("method", name)
    whole = module.Server.broadcast is fedavg.Server.broadcast
    begins = module.Clients.receive is fedavg.Clients.receive
    own = module.Config.sends_changes
    can = bool(module.Config.broadcasts) and whole and begins and not own
    assert module.Config.can_send_changes == can
    if not can:
        assert f"found method.name = '{name}'" in refusal(method, *TELLS)
        return
    found = run(small(method, *TELLS))
    sound(found)
    down, up = (found.tables["rounds"][way].astype(float) for way in ("down", "up"))
    plain = run(small(method, *TELLS[2:])).tables["rounds"]
    np.testing.assert_array_equal(up, plain["up"])
    model = 3 * 4 * found.engine.flat.size
    assert down[-1] < plain["down"][-1] - 0.8 * model


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_the_server_that_sends_changes_only_adds_to_its_model(name: str) -> None:
    """It is taken from a model of zeros. So a run whose changes leave out next to nothing is almost
    one without: one value of a thousand waits a round.
    """
    if not config.module("method", name).Config.can_send_changes:
        return
    words = (f"method.name={name}", "rounds=3", "participation=0.6")
    changes = ("codec.down.values=f4", "codec.down.sparsity=0.001")
    found, wanted = run(small(*words, *changes)).model, run(small(*words)).model
    moved = np.linalg.norm(wanted - Engine(small(*words)).flat.initial.numpy())
    assert 0 < np.linalg.norm(found - wanted) < 0.1 * moved


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_codec_or_is_named(name: str) -> None:
    """Where it does, an update takes a quarter of its bytes; the model is near the one without."""
    method = config.module("method", name).Config
    more = (f"method.name={name}", "participation=0.6")
    coded = (*more, "codec.values=uniform", "codec.bits=8")
    if method.uploads != "updates":
        why = refusal(*coded)
        assert f"found method.name = '{name}', which " in why
        assert all(line.startswith("codec.values = 'uniform'") for line in why.split("\n"))
        return
    found, plain = run(small(*coded)), run(small(*more))
    sound(found)
    if found.engine.method.is_global:
        moved = np.abs(plain.model - plain.engine.flat.initial.numpy()).max()
        assert 0 < np.abs(found.model - plain.model).max() < 0.5 * moved
    rows = [one.tables["clients"] for one in (found, plain)]
    here = rows[0]["round"] >= 0
    sent = [table["up_gradient"][here].sum() for table in rows]
    assert sent[0] == sent[1] / 4
    for column in ("up_mask", "up_model", "up_activation", "down_model", "down_gradient"):
        np.testing.assert_array_equal(*(table[column] for table in rows))


@every_case
def test_every_result_has_three_accuracies(case: tuple[str, ...]) -> None:
    """Of the global model on all test samples, and on clients' own; of clients' own models there.

    Shards tile the test set. Where there is no global model the first is unknown, and the second is
    of what clients have after a round, if they have a model then.
    """
    found = usual(case)
    engine = found.engine
    for row in found.tables["rounds"][found.tables["rounds"]["round"] >= 0]:
        rows = found.tables["clients"][found.tables["clients"]["round"] == row["round"]]
        assert ((rows["personal"] >= 0) & (rows["personal"] <= 1)).all()
        assert row["personal_mean"] == pytest.approx(np.nanmean(rows["personal"]), abs=1e-6)
        ours = [row[name] for name in ("accuracy", "shard_mean", "shard_std", "shard_min")]
        assert np.isfinite(ours[0]) == engine.method.is_global
        are_known = engine.method.is_global or engine.clients.deployed is not None
        assert np.isfinite([*ours[1:], *rows["accuracy"]]).all() == are_known
        assert np.isnan([*ours[1:], *rows["accuracy"]]).all() != are_known
    if engine.method.is_global:
        sizes = np.array([len(shard) for shard in engine.population.test_shards])
        assert sizes.sum() == len(engine.evaluation.test_y)
        shards = engine.evaluation.evaluate(engine.server.w, engine.server.variants(2)).shards
        wanted = [shards @ sizes / sizes.sum(), shards.mean(), shards.std(), shards.min()]
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
        np.testing.assert_allclose(rows["accuracy"], shards[rows["client"]], atol=1e-6)


@every_case
def test_it_learns(case: tuple[str, ...]) -> None:
    found = run(words(case, *EASY))
    rounds = found.tables["rounds"]
    rounds = rounds[rounds["round"] >= 0]
    clients = found.tables["clients"]
    # Of most clients, and once: where devices fit the model to themselves, some have hardly any,
    # and a part of it that rolls on may be a fresh one.
    first, *later = (np.median(clients["loss"][clients["round"] == t]) for t in rounds["round"])
    assert min(later) < 0.5 * first
    judged = "accuracy" if found.engine.method.is_global else "personal_mean"
    assert rounds[judged][-1] > 0.8, "a quarter is chance"


@every_case
def test_bytes_are_charged_to_clients(case: tuple[str, ...]) -> None:
    found = usual(case)
    tables, says = found.tables, found.engine.method.uploads != "nothing"
    for row in tables["rounds"]:
        clients = tables["clients"][tables["clients"]["round"] == row["round"]]
        for way in ("up", "down"):
            columns = [name for name in clients.dtype.names if name.startswith(f"{way}_")]
            each = sum(clients[name] for name in columns)
            assert (each > 0).all()
            assert (each % 8 == 0).all()
            content = each - clients[f"{way}_header"]
            assert ((content > 0) == says).all()
            assert each.sum() == row[way]


@every_case
def test_it_repeats_itself_and_only_itself(case: tuple[str, ...]) -> None:
    once, given = usual(case), ("participation=0.6", "rounds=3")
    alike(once, run(words(case, *given)))
    assert run(words(case, *given, "seed=2")).sha256 != once.sha256


def same(one: Block, other: Block) -> None:
    """Two blocks are equal in every bit."""
    shapes = [(b.kind, b.size, b.coding, b.bits, b.scale, b.count) for b in (one, other)]
    assert shapes[0] == shapes[1]
    for left, right in ((one.values, other.values), (one.indices, other.indices)):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            assert left.tobytes() == right.tobytes()


@every_case
def test_blocks_survive_the_wire(case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, blocks = Engine(words(case)), []

    def listen(half: object, name: str) -> None:
        spoken = getattr(half, name)

        def speak(*args: object) -> list[Block]:
            blocks.extend(found := spoken(*args))
            return found

        monkeypatch.setattr(half, name, speak)

    listen(engine.server, "broadcast")
    listen(engine.clients, "upload")
    if engine.settings.sends:
        listen(engine.server, "send")
    if -1 in engine.population.agreements:
        listen(engine.server, "agreement")
    rounds = len(list(play(engine)))
    says = engine.method.uploads != "nothing"
    assert len(blocks) >= rounds * (1 + engine.settings.clients) * says
    message = Message(7, blocks, 3.5)
    data, account = pack([message])
    (found,), counted = unpack(data)
    assert (found.client, found.weight) == (7, 3.5)
    np.testing.assert_array_equal(account, counted)
    assert int(account.sum()) + 24 == len(data)
    for one, other in zip(blocks, found.blocks, strict=True):
        same(one, other)


@every_case
def test_where_clients_vectors_wait_does_not_change_the_result(
    case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in memory; some, of 302 KiB each, in memory; all in the file."""
    waiting, put = set(), Store.__setitem__
    monkeypatch.setattr(Store, "__setitem__", lambda *given: (waiting.add(given[1]), put(*given)))
    more = (*FEW, "model.hidden=[1024]", "participation=0.8", "rounds=3")
    whole = run(words(case, *more, "state.memory=1024"))
    for mib in (1, 0) if waiting else ():
        alike(whole, run(words(case, *more, f"state.memory={mib}")))


@pytest.mark.parametrize(
    ("name", "units", "width"),
    [*((name, 1024, 3) for name in METHODS), ("fedavg", 3000, 1), ("splitfed", 3000, 1)],
)
def test_waves_do_not_change_the_result(name: str, units: int, width: int) -> None:
    given = (*FEW, f"model.hidden=[{units}]", *EVERYTHING)
    whole, waves = (run(words((name,), *given, f"exchange.window={mib}")) for mib in (256, 1))
    assert waves.engine.width in (width, 1, 5), "but for those that take one, or all"
    # Each wave has buffers of its own, with headers, and a message to all is one per wave.
    alike(whole, waves, but=("ranks",))
