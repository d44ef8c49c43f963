"""The sweeps of papers: their sizes can be run, and are what the papers say."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedmpi import loading, models
from fedmpi.__main__ import main
from fedmpi.engine import Engine
from fedmpi.networks.flat import Flat
from fedmpi.runs import sweep
from fedmpi.runs.sweep import Member
from tests.small import run

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "jobs" / "sweeps" / "papers").glob("*.toml"))
SHAPES = {"mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
PARAMETERS = {
    "fedsl-vgg19": {20_040_522},
    "hetiot-classes": {2_156_682},
    "mcmahan-table1": {199_210, 1_663_370},
    "mcmahan-table2": {1_663_370},
    "niid-bench-cifar10": {62_006},
    "sgcfl": {11_172_810, 11_173_962},
    "spatl-after": {9_750_922},
    "spatl-table1": {269_722, 464_154, 9_750_922},
    "ssfl-cifar10": {11_173_962},
    "ssfl-sparsity": {11_173_962},
}
"""Parameters of the networks in the papers' own sizes."""
TRAINING = (
    *("batch", "epochs", "lr", "lr_decay", "schedule", "momentum", "weight_decay", "clip"),
    *("clients", "participation", "augment", "rounds", "validation", "target"),
)
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@functools.cache
def members(file: Path, size: str | None = None) -> list[Member]:
    """The runs of a sweep file in a size."""
    return sweep.members(file, size=size)


def named(name: str) -> Path:
    """The sweep file of that name."""
    (file,) = (file for file in FILES if file.stem == name)
    return file


def kinds(found: list[Member]) -> Iterator[Member]:
    """One run for each method on each network, cut, partition and data set."""
    seen = set()
    for member in found:
        tree = member.settings.tree()
        tables = (tree["model"], tree["partition"], tree["data"], tree["method"].get("cut"))
        key = str((tree["method"]["name"], *tables))
        if key not in seen:
            seen.add(key)
            yield member


def test_each_file_has_its_parameters() -> None:
    assert PARAMETERS.keys() == {file.stem for file in FILES}


@every_file
def test_smoke(file: Path) -> None:
    """All runs of the smallest size learn something, in no time."""
    found = members(file, "smoke")
    assert 1 < len(found) <= 12
    for member in found:
        rounds = run(member.settings).tables["rounds"]
        assert np.isfinite(rounds["loss"][rounds["round"] >= 0]).all()
        judged = rounds[["accuracy", "shard_mean", "personal_mean"]][-1]
        assert any(np.isfinite(one) for one in judged.tolist())


def test_the_smallest_size_as_it_is_started(tmp_path: Path) -> None:
    words = ["--size", "smoke", "--out", str(tmp_path)]
    found = CliRunner().invoke(main, ["sweep", str(named("mcmahan-table1")), *words])
    assert found.exit_code == 0, found.output
    assert found.stderr.splitlines()[-1] == "4 runs: 4 done"
    assert len(list(tmp_path.glob("*.h5"))) == 4


@every_file
def test_sizes_have_the_methods_of_the_paper(file: Path) -> None:
    own, small, smoke = (members(file, size=size) for size in (None, "small", "smoke"))
    assert len(smoke) < len(small) <= len(own)
    found = [{one.settings.method.name for one in some} for some in (own, small, smoke)]
    assert found[0] == found[1] == found[2]
    assert {one.settings.data.name for one in small} <= {one.settings.data.name for one in own}
    assert len({one.settings.seed for one in small}) >= 3
    assert {one.settings.seed for one in small} <= {one.settings.seed for one in own}


@every_file
@pytest.mark.parametrize("size", [None, "small"])
def test_networks_and_settings_fit(file: Path, size: str | None) -> None:
    """A run of each method could begin, on made data of the same shape."""
    for member in kinds(members(file, size=size)):
        settings, shape = member.settings, list(SHAPES[member.settings.data.name])
        data = {"name": "synthetic", "shape": shape, "samples": 2000, "test_samples": 100}
        tree = settings.tree() | {"data": data}
        if settings.method.name == "fedavg" or size == "small":
            Engine(loading.load(tree))
        else:
            loading.load(tree)


@every_file
def test_networks_have_the_parameters_of_the_papers(file: Path) -> None:
    used = {str(one.settings.model): one.settings for one in members(file)}
    shapes = {name: SHAPES[name] for name in {one.settings.data.name for one in members(file)}}
    counts = {
        Flat(models.build(one.model, shape, 10, 1)).count
        for one in used.values()
        for shape in set(shapes.values())
    }
    assert counts == PARAMETERS[file.stem]


def training(member: Member) -> dict[str, object]:
    """What all methods of a table have in common."""
    tree = member.settings.tree()
    return {name: tree[name] for name in TRAINING}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "spatl-table1",
            {
                **{"clients": 10, "participation": 1.0, "epochs": 10, "batch": 64, "lr": 0.01},
                **{"momentum": 0.9, "weight_decay": 1e-5, "target": "shard_mean:0.8"},
            },
        ),
        (
            "niid-bench-cifar10",
            {
                **{"clients": 10, "participation": 1.0, "epochs": 10, "batch": 64, "lr": 0.01},
                **{"momentum": 0.9, "weight_decay": 1e-5, "rounds": 50, "target": None},
            },
        ),
        (
            "ssfl-cifar10",
            {
                **{"clients": 100, "participation": 0.1, "epochs": 5, "batch": 16, "lr": 0.1},
                **{"momentum": 0.0, "weight_decay": 5e-4, "rounds": 999, "clip": 10.0},
                **{"lr_decay": 0.998, "schedule": "decay"},
            },
        ),
    ],
)
def test_all_methods_of_a_table_train_alike(name: str, wanted: dict[str, object]) -> None:
    found = [training(member) for member in members(named(name))]
    assert all(one == found[0] for one in found)
    assert {name: found[0][name] for name in wanted} == wanted
    assert found[0]["validation"] == 0.0 and found[0]["augment"] == ["crop", "flip"]


def test_methods_are_those_of_their_papers() -> None:
    found = {one.settings.method.name: one.settings for one in members(named("spatl-table1"))}
    assert found.keys() == {"fedavg", "fednova", "fedprox", "scaffold", "spatl"}
    controls = {name: one.control for name, one in found.items()}
    assert controls == {
        **dict.fromkeys(("fedavg", "fednova", "fedprox"), "none"),
        **dict.fromkeys(("scaffold", "spatl"), "niid"),
    }
    assert {name: one.proximal for name, one in found.items() if one.proximal} == {"fedprox": 0.01}
    niid = members(named("niid-bench-cifar10"))
    assert {one.settings.control for one in niid if one.settings.method.name == "scaffold"} == {
        "niid"
    }
    (first, *_) = members(named("ssfl-cifar10"))
    plain = loading.load({"paper": "ssfl", "seed": 550}).tree()
    tree = first.settings.tree()
    assert {name for name in plain if plain[name] != tree[name]} == {"validation", "evaluate"}


def test_shards_are_whole_batches_where_the_paper_has_one_batch() -> None:
    """A batch of 600 is a client's whole shard: McMahan's B = infinity."""
    for name in ("mcmahan-table1", "mcmahan-table2"):
        for member in members(named(name)):
            assert 60_000 / member.settings.clients == 600 == member.settings.batch or (
                member.settings.batch in (10, 50)
            )
