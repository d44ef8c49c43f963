"""The exchange that a machine's costs choose: made-up costs, results, and runs that go on."""

import json
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner

from fedmpi import config, costs
from fedmpi.__main__ import main
from fedmpi.config import Settings
from fedmpi.costs import Law, Load, Model
from fedmpi.engine import Engine
from fedmpi.errors import BadInput
from fedmpi.exchanges import auto
from fedmpi.messages import wire
from fedmpi.results import record
from fedmpi.runs.job import Job
from tests.exchanges.added import ADDING, WORLD
from tests.small import refusal, run, small
from tests.test_costs import machine

AUTO = "exchange.name=auto"
DEAR = Law("once", "once", (inf,), (1.0,), (1.0,))
FREE = Law("once", "once", (inf,), (0.0,), (0.0,))
BY_BYTES = Law("once", "once", (inf,), (0.0,), (1e-3,))
CHEAP: dict[str, dict[str, Law]] = {
    "star": {"gather": FREE},
    "reduce": {"reduce": FREE},
    "tree": {"near": FREE},
    "sparse": {"reduce": BY_BYTES, "pair": FREE},
    "sharded": {"bcast": FREE, "alltoall": FREE, "reduce": BY_BYTES, "gather": BY_BYTES},
}
"""What is not dear on a machine on which an exchange is the fastest."""
LOAD = Load(16, 5, 5, 10_000, 0.9, ready=True)


def made(name: str) -> Model:
    """A machine on which an exchange is the fastest, by far."""
    found = machine()
    cheap = CHEAP[name] | {"meet": FREE}
    for collective in costs.USUAL:
        for level in costs.LEVELS:
            found.laws[f"{collective} {level}"] = cheap.get(collective, DEAR)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The root's folder, the same for all ranks."""
    return Path(WORLD.bcast(str(tmp_path)))


@pytest.fixture
def kept(folder: Path) -> Callable[[str], Path]:
    """Keeps what a made-up machine takes, in place of what was kept before."""
    path = folder / "costs.json"

    def keep(name: str) -> Path:
        if WORLD.rank == 0:
            path.write_text(made(name).text(), encoding="utf-8")
        return path

    return keep


@pytest.mark.parametrize("name", CHEAP)
def test_the_fastest_is_taken(name: str, kept: Callable[[str], Path]) -> None:
    found, seconds = auto.chosen(small(AUTO, f"exchange.costs={kept(name)}"), LOAD)
    assert found == name
    assert set(seconds) == set(CHEAP) == set(config.exchanges())
    least = seconds.pop(name)
    assert 0 < least < min(seconds.values())
    steps = config.module("exchange", name).steps(LOAD)
    assert least == pytest.approx(sum(made(name).parts(name, steps, 5).values()))


def test_of_equal_ones_it_is_the_first_by_name(
    kept: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "predicted", lambda model, names, load: dict.fromkeys(names, 1.0))
    assert auto.chosen(small(AUTO, f"exchange.costs={kept('star')}"), LOAD)[0] == "reduce"


def test_this_users_file_is_read_if_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    costs.place().parent.mkdir()
    costs.place().write_text(made("tree").text(), encoding="utf-8")
    assert auto.chosen(small(AUTO), LOAD)[0] == "tree"


def test_a_machine_that_nothing_is_known_of_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    settings = small(AUTO, f"exchange.costs={path}")
    wanted = "exchange.name = 'auto' needs what fedmpi bench predict keeps"
    with pytest.raises(BadInput, match=f"{path}: no such file.*{wanted}"):
        auto.chosen(settings, LOAD)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match=f"{path}: wanted a model of costs.*{wanted}"):
        auto.chosen(settings, LOAD)
    known = made("star")
    for name in list(known.laws):
        if name.endswith(" far"):
            del known.laws[name]
    path.write_text(known.text(), encoding="utf-8")
    assert auto.chosen(settings, LOAD)[0] == "star"
    with pytest.raises(BadInput, match="wanted measurements between nodes, found none"):
        auto.chosen(settings, Load(16, 5, 1, 10_000, 0.9))


@pytest.mark.parametrize(
    "words",
    [
        ("method.name=dispfl",),
        ("method.name=splitfed",),
        ("aggregation.rule=median",),
        ("aggregation.clip=1.0",),
        ("method.name=topk", "feedback=ef21"),
    ],
)
def test_where_each_upload_is_needed_only_star_is_possible(words: tuple[str, ...]) -> None:
    """Nothing is read; that no file is there does not matter."""
    assert auto.chosen(small(AUTO, *words, "exchange.costs=/none"), LOAD) == ("star", {})
    with pytest.raises(BadInput, match=r"wanted one of star, which serve.*found 'reduce'"):
        auto.named(small(AUTO, *words), "reduce")


def test_on_one_rank_nothing_is_read() -> None:
    assert auto.chosen(small(AUTO, "exchange.costs=/none"), Load(5, 1, 1, 1000, 0.0))[0] == "star"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("method.name=qsgd",), "method.name = 'qsgd'"),
        (("method.name=sparsyfed",), "method.name = 'sparsyfed'"),
        (("method.name=heterofl",), "method.name = 'heterofl'"),
        (("codec.values=f2",), "'f2' and 'auto'"),
        (("method.name=topk", "codec.positions=delta"), "'f4' and 'delta'"),
    ],
)
def test_what_cannot_be_predicted_is_refused(words: tuple[str, ...], found: str) -> None:
    why = refusal(AUTO, *words)
    assert why.startswith("exchange.name = 'auto': wanted") and f"found {found}" in why
    assert "possible are reduce, sharded, sparse, star, tree" in why


def test_what_all_exchanges_have_is_as_it_was() -> None:
    settings = small(AUTO, "exchange.window=7", "exchange.down=node", "exchange.costs=/x")
    found = auto.named(settings, "tree")
    assert found == small("exchange.name=tree", "exchange.window=7", "exchange.down=node").exchange


def predicted_uploads(name: str) -> list[str]:
    """The words of a method whose uploads are predicted; nothing of another one."""
    words = [f"method.name={name}", "rounds=3", "epochs=1", "participation=0.6"]
    return [] if refusal(AUTO, *words) else words


@pytest.mark.parametrize("name", [name for name in ADDING if predicted_uploads(name)])
@pytest.mark.parametrize("control", [(), ("control=mean",)], ids=["", "control"])
def test_uploads_are_as_long_as_predicted(name: str, control: tuple[str, ...]) -> None:
    """Against the bytes of the last round; all sizes are known before the first one."""
    words = (*predicted_uploads(name), *control)
    if refusal(*words):
        pytest.skip("it has no control variates")
    found = run(small(*words))
    rows = found.tables["clients"]
    rows = rows[rows["round"] == 2]
    load = Engine(small(*words)).load([0])
    assert load.clients == len(rows)
    columns = [column for column in rows.dtype.names if column.startswith("up_")]
    for row in rows:
        sent = sum(int(row[column]) for column in columns)
        assert sent == pytest.approx(load.upload, abs=64 * (1 + len(control)))


def test_loads_of_shared_servers_and_of_nodes() -> None:
    load = Engine(small("server=shared", "clients=9")).load([0, 0, 1, 1, 1])
    assert (load.ranks, load.nodes, load.near, load.mine) == (5, 2, 3, 2)
    assert Engine(small("clients=9")).load([0, 0, 1, 1, 1]).mine == 3


def done(settings: Settings, folder: Path) -> dict[str, Any]:
    """Runs settings on all ranks; returns the attributes of the result, on the root."""
    Job().run(settings, folder / "a.h5")
    if WORLD.rank:
        return {}
    with h5py.File(folder / "a.h5") as file:
        return dict(file.attrs)


WORDS = ("rounds=3", "method.name=topk", "server=shared")


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("name", ["star", "reduce", "tree", "sparse", "sharded"])
def test_a_run_is_that_of_the_exchange_that_is_taken(
    name: str,
    nodes: int,
    folder: Path,
    kept: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bits; other ranks have no file. The result says what was taken, and why."""
    if nodes == 2 and name == "tree":
        pytest.skip("with one rank on a node nothing is near")
    monkeypatch.setenv(wire.NODES, str(nodes))
    path = kept(name)
    settings = small(*WORDS, AUTO, f"exchange.costs={path if WORLD.rank == 0 else '/none'}")
    found = done(settings, folder)
    wanted = run(small(*WORDS, f"exchange.name={name}"), WORLD)
    if WORLD.rank > 0:
        return
    assert (found["exchange"], found["model_sha256"]) == (name, wanted.sha256)
    seconds = json.loads(found["predicted_uplink_seconds"])
    assert min(seconds, key=seconds.get) == name and set(seconds) == set(CHEAP)
    assert json.loads(found["settings"])["exchange"]["name"] == "auto"
    said = CliRunner().invoke(main, ["show", str(folder / "a.h5")]).output
    text = " ".join(said.split())
    assert f"exchange {name}; predicted uplinks of a round: reduce " in text


@pytest.mark.parallel([1, 2])
def test_a_method_that_needs_each_upload_runs_with_star(folder: Path) -> None:
    words = ("rounds=1", "method.name=dispfl")
    found = done(small(*words, AUTO, "exchange.costs=/none"), folder)
    wanted = run(small(*words), WORLD)
    if WORLD.rank == 0:
        assert (found["exchange"], found["predicted_uplink_seconds"]) == ("star", "{}")
        assert found["model_sha256"] == wanted.sha256
        assert "exchange star, the only one that was possible" in " ".join(
            CliRunner().invoke(main, ["show", str(folder / "a.h5")]).output.split()
        )


@pytest.mark.parallel([2, 3])
def test_a_run_that_goes_on_keeps_its_exchange(
    folder: Path, kept: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the machine would take another one now."""
    more = ("checkpoint.every=1", "checkpoint.memory=0")
    settings = small(*WORDS, AUTO, f"exchange.costs={kept('reduce')}", *more)
    outcome = Engine.outcome

    def cut(engine: Engine, t: int, *rest: Any) -> Any:
        found = outcome(engine, t, *rest)
        if t == 1:
            raise KeyError("cut off")
        return found

    monkeypatch.setattr(Engine, "outcome", cut)
    with pytest.raises(KeyError):
        done(settings, folder)
    monkeypatch.setattr(Engine, "outcome", outcome)
    kept("star")
    taken, take = [], Engine.take
    monkeypatch.setattr(
        Engine, "take", lambda engine, found: taken.append(found.name) or take(engine, found)
    )
    found = done(settings, folder)
    wanted = run(small(*WORDS, "exchange.name=reduce"), WORLD)
    assert taken[:2] == ["auto", "reduce"]
    if WORLD.rank == 0:
        assert (found["exchange"], found["model_sha256"]) == ("reduce", wanted.sha256)
        assert len(record.resumes(found)) == 1


@pytest.mark.parallel([2, 3])
def test_without_a_file_all_ranks_refuse(folder: Path) -> None:
    settings = small(*WORDS, AUTO, f"exchange.costs={folder / 'none.json'}")
    with pytest.raises(BadInput) as caught:
        Job().run(settings, folder)
    assert ("none.json: no such file" in str(caught.value)) == (WORLD.rank == 0)
    WORLD.Barrier()
    assert not list(folder.glob("*.h5"))
