"""Whether a run is there already: it is known by what its file records, and not by the name."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedmpi.__main__ import main
from fedmpi.config import Settings
from fedmpi.results import record, tables
from fedmpi.runs import earlier
from fedmpi.runs.job import Job
from tests.small import small

QUICK = """
[base]
rounds = 2
clients = 3
threads = 2
data = { name = "synthetic", samples = 200, test_samples = 40, shape = [1, 4, 4] }
model.hidden = [8]
[[grid]]
seed = [1, 2, 3]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; nothing is known of files."""
    monkeypatch.chdir(tmp_path)
    earlier._identity.cache_clear()
    return tmp_path


def fedmpi(*words: str) -> Result:
    return CliRunner().invoke(main, words, catch_exceptions=False)


def former(settings: Settings, contents: dict[str, str] | None = None) -> str:
    """The identity of the version before: of every setting, those of the machine included."""
    known: Any = [settings.tree(), contents] if contents else settings.tree()
    text = json.dumps(known, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(settings: Settings, status: str = record.DONE, name: str = "", **about: Any) -> Path:
    """A result of the version before, named after its identity if no name is given."""
    identity = former(settings)
    path = Path("results") / (name or f"{settings.method.name}-{identity}.h5")
    held = record.begin(path)
    record.Record(held, settings.tree(), identity, about, tables.TABLES).close(status)
    return path


def test_a_result_that_was_recorded_with_other_settings_of_the_machine() -> None:
    """Those of the version before are in a folder of other results, and of what is none."""
    path = write(small("threads=3", "state.memory=5", "data.root=/x"))
    for words in (("lr=0.5",), ("seed=2",), ("method.name=topk",)):
        write(small(*words))
    (path.parent / "fedavg-0.h5").write_text("no result")
    (path.parent / "fedavg-1.h5").mkdir()
    for words in ((), ("threads=1",), ("exchange.window=9", "state.memory=0", "data.cache=/y")):
        settings = small(*words)
        assert earlier.place(Path("results"), settings) == path
        assert earlier.state(path, settings) == record.DONE
    other = small("rounds=5")
    assert earlier.place(Path("results"), other) == Path(f"results/fedavg-{other.identity()}.h5")
    assert earlier.place(Path("none"), other) == Path(f"none/fedavg-{other.identity()}.h5")
    assert earlier.place(Path("a.h5"), small()) == Path("a.h5"), "where it is wanted"


def test_a_finished_one_before_others_and_its_own_name_before_all() -> None:
    write(small("threads=2"), record.FAILED, "fedavg-a.h5")
    assert earlier.place(Path("results"), small()) == Path("results/fedavg-a.h5")
    write(small("threads=3"), record.DIVERGED, "fedavg-b.h5")
    assert earlier.place(Path("results"), small()) == Path("results/fedavg-b.h5")
    own = write(small(), record.RUNNING, f"fedavg-{small().identity()}.h5")
    assert earlier.place(Path("results"), small()) == own


def test_a_replaced_file_is_read_anew() -> None:
    path = write(small("threads=2"), name="fedavg-a.h5")
    assert earlier.place(Path("results"), small()) == path
    write(small("seed=2"), name=path.name)
    assert earlier.place(Path("results"), small()) != path
    assert earlier.place(Path("results"), small("seed=2")) == path


def test_a_file_that_has_changed_in_place_is_not_the_run() -> None:
    """As behind a link: what was once read of it says no more which run it holds."""
    write(small("threads=2"), name="fedavg-a.h5").rename("elsewhere.h5")
    Path("results/fedavg-b.h5").symlink_to(Path("elsewhere.h5").absolute())
    assert earlier.place(Path("results"), small()) == Path("results/fedavg-b.h5")
    write(small("seed=2"), name="fedavg-a.h5").rename("elsewhere.h5")
    assert earlier.place(Path("results"), small()).name == f"fedavg-{small().identity()}.h5"


def test_a_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each run of a sweep; and not at all where a run's own file is there."""
    for seed in range(10, 20):
        write(small(f"seed={seed}"))
    opened: list[Path] = []
    real = record.open_result
    monkeypatch.setattr(record, "open_result", lambda path: opened.append(path) or real(path))
    for seed in range(20):
        earlier.place(Path("results"), small(f"seed={seed}", "lr=0.3"))
    assert len(opened) == len(set(opened)) == 10


def test_a_file_that_cannot_be_read_now_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be one that another job is just writing to."""
    path = write(small("threads=2"))
    with monkeypatch.context() as patch:
        patch.setattr(record, "identity_of", lambda about: about["gone"])
        assert earlier.place(Path("results"), small()) != path
    assert earlier.place(Path("results"), small()) == path


def test_of_files_that_settings_name_the_content_counts() -> None:
    """Earlier versions hashed their paths, too; the first ones recorded the trace's hash alone."""
    text = "client,first,last\n0,0,9\n"
    Path("a.csv").write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    words = ("sampling=trace", f"trace={Path('a.csv').absolute()}")
    contents = json.dumps({"trace": sha256})
    for name, about in (
        ("a", {"files_sha256": contents}),
        ("b", {"trace_sha256": sha256}),
    ):
        path = write(small(*words), name=f"fedavg-{name}.h5", **about)
        assert earlier.place(Path("results"), small("sampling=trace", "trace=a.csv")) == path
        path.unlink()
        earlier._identity.cache_clear()
    path = write(small(*words), files_sha256=contents)
    Path("a.csv").write_text(f"{text}1,0,9\n")
    assert earlier.place(Path("results"), small("sampling=trace", "trace=a.csv")) != path


def test_earlier_results_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the commands, alone and in sweeps, with and without ranks; and they say which file."""
    Path("a.toml").write_text(QUICK)
    assert fedmpi("sweep", "a.toml").exit_code == 0
    # As the version before would have named them.
    for path in Path("results").iterdir():
        path.rename(path.with_name(f"fedavg-{hashlib.md5(path.name.encode()).hexdigest()[:16]}.h5"))
    there = {path: path.read_bytes() for path in Path("results").iterdir()}
    assert len(there) == 3
    monkeypatch.setattr(Job, "_record", lambda *_: pytest.fail("it was run again"))
    for words in ((), ("threads=1",), ("exchange.window=3",)):
        listed = fedmpi("sweep", "a.toml", *words, "--dry-run").stdout.splitlines()
        assert [line.split()[1] for line in listed] == ["done"] * 3
        for more in ((), ("--ranks", "2")):
            assert fedmpi("sweep", "a.toml", *words, *more).exit_code == 0
        found = fedmpi("run", str(next(iter(there))), *words)
        assert found.exit_code == 0
        assert found.stderr == f"{next(iter(there))}: done already\n"
    assert {path: path.read_bytes() for path in Path("results").iterdir()} == there
