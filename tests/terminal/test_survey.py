"""`fedmpi partition`: the table, and the files that come with it."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedmpi import config, loading
from fedmpi.__main__ import main
from fedmpi.clients import heterogeneity
from fedmpi.clients.population import Population
from fedmpi.terminal import survey

WORDS = ("data.name=synthetic", "data.samples=300", "data.test_samples=60", "data.shape=[1,4,4]")
SKEWED = (*WORDS, "partition.name=dirichlet", "partition.alpha=0.5", "partition.minimum=2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; a run replaces the hook."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return tmp_path


def fedmpi(*words: str, columns: int = 120) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(main, words, catch_exceptions=False, prog_name="fedmpi")


def population(*words: str) -> Population:
    tree: config.Tree = {}
    loading.override(tree, words)
    settings = loading.load(tree)
    return Population(settings, config.module("data", "synthetic").load(settings.data, 1))


def rows(found: Result) -> list[list[str]]:
    return [line.split() for line in found.output.splitlines()]


def test_few_clients_are_listed() -> None:
    found = fedmpi("partition", *SKEWED, "clients=8")
    assert found.exit_code == 0, found.output
    drawn = population(*SKEWED, "clients=8")
    counts, table = drawn.counts, rows(found)
    assert np.all(counts.sum(axis=0) == drawn.sizes)
    head = table.index(["client", "samples", "test", "classes", "effective", "distance"])
    effective = heterogeneity.effective_classes(counts)
    distances = heterogeneity.total_variation(counts)
    assert table[head + 1 : head + 9] == [
        [
            str(client), str(drawn.sizes[client]), str(len(drawn.test_shards[client])),
            str(np.count_nonzero(counts[:, client])),
            f"{effective[client]:.2f}", f"{distances[client]:.3f}",
        ]
        for client in range(8)
    ]  # fmt: skip
    about = {words[0]: words[1:] for words in table[: head - 1]}
    assert about["partition"] == ["dirichlet", "alpha=0.5", "minimum=2"]
    assert " ".join(about["data"]) == (
        "synthetic: 270 training samples of 10 classes, 30 more held out; 60 test samples"
    )
    measures = heterogeneity.measures(counts)
    assert about["sha256"] == [drawn.fingerprint]
    assert about["sizes"] == ["Gini", "coefficient", f"{measures['partition_gini']:.3f}"]
    mean = f"{measures['partition_tv_mean']:.3f},"
    assert about["distance"][:4] == ["mean", mean, "largest", f"{distances.max():.3f}:"]
    assert about["effective"][:2] == ["mean", f"{effective.mean():.2f}"]


SKEWS = ("skew.rotations=[0,90]", "skew.colour=0.3", "skew.noise=0.8", "skew.labels=0.5")


def test_what_tells_clients_apart_besides() -> None:
    found = fedmpi("partition", *SKEWED, "clients=4", *SKEWS, columns=80)
    assert found.exit_code == 0, found.output
    drawn, table = population(*SKEWED, "clients=4"), rows(found)
    head = next(number for number, words in enumerate(table) if words[:1] == ["client"])
    assert table[head][-3:] == ["rotated", "noise", "wrong"]
    cells = [row[-3:] for row in table[head + 1 : head + 5]]
    assert sorted(turned for turned, _, _ in cells) == ["0°", "0°", "90°", "90°"]
    assert [noise for _, noise, _ in cells] == ["0.200", "0.400", "0.600", "0.800"]
    wrong = [round(size / 2) for size in drawn.sizes.tolist()]
    assert [int(count) for _, _, count in cells] == wrong
    about = {words[0]: " ".join(words[1:]) for words in table[:head] if words}
    assert about["rotated"] == "clients by angle: 0° 2, 90° 2"
    assert about["noise"] == "variance 0.20 to 0.80"
    assert about["wrong"].startswith(f"{sum(wrong)} training labels, 0.50 to 0.50 of a client's")
    assert about["colour"].startswith("contrast 0.") and "brightness" in about["colour"]
    many = fedmpi("partition", *SKEWED, "clients=40", "partition.minimum=1", *SKEWS, columns=80)
    assert "clients by angle: 0° 20, 90° 20" in many.output
    assert "rotated" not in fedmpi("partition", *SKEWED, "clients=4").output


@pytest.mark.parametrize("columns", [80, 120])
def test_many_clients_are_summed_up(columns: int) -> None:
    found = fedmpi("partition", *SKEWED, "clients=50", "partition.minimum=1", columns=columns)
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert len(lines) < 45 and max(map(len, lines)) <= columns
    sizes = population(*SKEWED, "clients=50", "partition.minimum=1").sizes
    table = {" ".join(words[:-5]): words[-5:] for words in rows(found) if len(words) > 5}
    for name, size in (("least", sizes.min()), ("most", sizes.max())):
        assert table[name][0] == str(size)
    assert table[f"smallest: {sizes.argmin()}"][0] == str(sizes.min())
    assert table[f"largest: {sizes.argmax()}"][0] == str(sizes.max())
    for name in ("smallest", "largest", "nearest", "furthest"):
        assert sum(key.startswith(name) for key in table) == 3


def test_the_clients_of_a_result() -> None:
    words = (*SKEWED, "clients=4", "rounds=1", "model.hidden=[4]")
    assert fedmpi("run", *words, "--out", "a.h5").exit_code == 0
    found = fedmpi("partition", "a.h5")
    with h5py.File("a.h5") as file:
        assert f"sha256     {file.attrs['partition_sha256']}" in found.output
        # What is recorded is what is said.
        assert f"Gini coefficient {file.attrs['partition_gini']:.3f}" in found.output


def test_from_settings_to_a_file_to_a_run(here: Path) -> None:
    found = fedmpi("partition", *SKEWED, "clients=4", "--freeze", "new/a.npz", "--plot", "a.svg")
    assert found.exit_code == 0, found.output
    said = "frozen: partition.name=frozen partition.file=new/a.npz"
    assert said in found.output and "drawn: a.svg" in found.output
    assert (here / "a.svg").read_bytes().startswith(b"<?xml")
    again = (*WORDS, "clients=4", *said.split()[1:], "rounds=1", "model.hidden=[4]")
    assert fedmpi("run", *again, "--out", "b.h5").exit_code == 0
    with h5py.File("b.h5") as file:
        fingerprint = population(*SKEWED, "clients=4").fingerprint
        assert file.attrs["partition_sha256"] == fingerprint
    thawed = fedmpi("partition", "b.h5")
    assert fingerprint in thawed.output
    assert "partition  frozen  file=new/a.npz" in thawed.output


def test_what_is_there_is_replaced_if_it_is_of_the_same_kind(here: Path) -> None:
    words = ("partition", *WORDS, "--freeze", "a.NPZ", "--plot")
    for picture in ("a.svg", "a.PNG"):
        for _ in range(2):
            found = fedmpi(*words, picture)
            assert found.exit_code == 0, found.output
    np.savez("other.npz", a=[1])
    Path("letter.svg").write_text("<?xml version='1.0'?><letter/>")
    before = {path: path.read_bytes() for path in here.iterdir()}
    for option, file in (("--freeze", "other.npz"), ("--plot", "letter.svg")):
        found = fedmpi("partition", *WORDS, option, file)
        assert found.exit_code == 2
        assert f"{file}: holds something else than {option} writes" in found.stderr
    assert {path: path.read_bytes() for path in here.iterdir()} == before


REFUSED = {
    "a picture": (["--plot", "a.gif"], "--plot a.gif: wanted a name that ends in .png or .svg"),
    "a frozen file": (["--freeze", "a.npy"], "--freeze a.npy: wanted a name that ends in .npz"),
    "settings": (["rouds=3"], "no setting 'rouds'"),
    "vectors": (["data.shape=[4]", "skew.rotations=[90]"], "skew.rotations = [90]: wanted images"),
    "clients": (["clients=999"], "clients = 999: wanted at most 270, the training samples"),
    "no file": (
        ["partition={name='frozen'}"],
        "partition.file: wanted a partition (.npz)",
    ),
    "missing file": (
        ["partition={name='frozen',file='x.npz'}"],
        "partition.file = x.npz: no such file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be(case: str, here: Path) -> None:
    words, said = REFUSED[case]
    found = fedmpi("partition", *WORDS, *words)
    assert found.exit_code == 2
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not list(here.iterdir())


def test_names_are_refused_before_anything_is_computed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "Population", None)
    for option, name in (("--freeze", "y"), ("--freeze", "y.npz.txt"), ("--plot", "y.pdf")):
        found = fedmpi("partition", *WORDS, option, name)
        assert (found.exit_code, found.stdout) == (2, "")
        assert f"{option} {name}: wanted a name that ends in" in found.stderr
    assert not list(here.iterdir())


def test_ends_of_names_in_any_case(here: Path) -> None:
    found = fedmpi("partition", *WORDS, "--freeze", "a.NPZ", "--plot", "a.PNG")
    assert found.exit_code == 0, found.output
    assert (here / "a.PNG").read_bytes().startswith(b"\x89PNG")
    thawed = fedmpi(
        "partition", *WORDS, "partition={name='frozen',file='a.NPZ'}", "--plot", "b.Svg"
    )
    assert thawed.exit_code == 0, thawed.output
    assert (here / "b.Svg").read_bytes().startswith(b"<?xml")
