"""The machine: results do not depend on the settings that belong to it, nor on the environment.

Where uploads are in waves, and where clients' vectors wait, is tested for every method in
`test_methods`, the server's threads in `training.test_hardware`. Here are compositions with other
settings, folders, and threads.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import models
from tests import PATIENCE
from tests.made import write_idx
from tests.plain import CNN, EVERYTHING, FAMILIES, allowed, families, member
from tests.small import Run, alike, run, small, smooth

ROOM = Path(__file__).parents[2]
FEW = ("data.samples=150", "data.test_samples=30")
COMPOSED = [
    ("aggregation.rule=median",),
    ("aggregation.rule=trimmed", "aggregation.trim=0.3"),
    ("aggregation.clip=0.5", "aggregation.noise=0.1"),
    ("aggregation.server=adam", "control=mean", "devices.dropouts=0.4"),
    ("aggregation.server=fedexp", "sampling=samples", "proximal=0.1"),
    ("method.name=topk", "devices.dropouts=0.4", "skew.noise=0.5", "evaluate.final=tune"),
    ("method.name=stc", "budget=up_bytes:40kB", "participation=0.6"),
    ("method.name=fedrolex", "devices.tiers=[{share=0.5,keep=0.5},{share=0.5,name='b'}]"),
    ("method.name=splitfed", "method.tail=head", "devices.dropouts=0.4", "epochs_to=3"),
    ("method.name=splitfed", "method.version=v2", "aggregation.weights=equal"),
    ("method.name=fedlite", "evaluate.link=link", "newcomers=1", "evaluate.final=evaluate"),
    ("method.name=spatl", "evaluate.final=tune", "newcomers=1"),
    ("method.name=splitlearning", "devices.dropouts=0.4"),
]


@pytest.mark.parametrize("words", COMPOSED, ids=" ".join)
def test_waves_and_vectors_in_files_beside_other_settings(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With running statistics that stay with the clients, too."""
    given = allowed(*FEW, "rounds=3", *EVERYTHING, *words)
    whole = run(small("model.hidden=[1024,8]", *given))
    waves = run(small("model.hidden=[1024,8]", *given, "exchange.window=1", "state.memory=0"))
    assert waves.engine.width in (1, 3, 5)
    alike(whole, waves, but=("ranks",))


@pytest.mark.parametrize("family", ["fedavg", "scaffold", "splitfed"])
def test_waves_of_stacked_rows(family: str) -> None:
    """To rounding: other rows are stacked together."""
    given = (*FAMILIES[family], *FEW, "model.hidden=[1024,8]", "rows=5", "rounds=1")
    whole, waves = (run(small(*given, f"exchange.window={mib}")) for mib in (256, 1))
    assert waves.engine.width == 3
    np.testing.assert_allclose(whole.model, waves.model, rtol=1e-4, atol=1e-6)


@families
def test_local_statistics_in_files(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    given = (*member(family), *FEW, "statistics=local", "participation=0.6", "rounds=3")
    alike(run(small(*given)), run(small(*given, "state.memory=0")))


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files at two places, by relative paths and links, decoded anew or not."""
    for place in ("a", "b/c"):
        write_idx(tmp_path / place, [0, 1, 2, 3] * 10, [0, 1, 2, 3] * 2)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    given = ("data.name=mnist", "clients=2", "partition.name=iid", "model.hidden=[4]")
    found: list[Run] = []
    for root in (f"{tmp_path}/a", "a", "./link", "b", "a"):
        for cache in ("one", "two"):
            for umask in (0o022, 0o077):
                before = os.umask(umask)
                try:
                    found.append(run(small(*given, f"data.root={root}", f"data.cache={cache}")))
                finally:
                    os.umask(before)
    for other in found[1:]:
        alike(found[0], other)
        assert other.engine.settings.identity() == found[0].engine.settings.identity()
        assert other.engine.about_data == found[0].engine.about_data


LAUNCHED = ("OMPI_", "PMI", "PRTE_", "MPI", "SLURM_")
"""Beginnings of the names of variables that launchers set."""
HASHES = """
from tests.small import run, small
for name in ("dispfl", "heterofl", "splitfed"):
    found = run(small(f"method.name={name}", "rounds=1", "data.samples=100", "sampling=samples"))
    print(found.sha256, found.engine.population.fingerprint, found.engine.settings.identity())
    for table in ("rounds", "clients", "ranks"):
        columns = found.tables[table]
        print(*(columns[name].tolist() for name in columns.dtype.names if "seconds" not in name))
"""


def test_hashes_of_texts_locale_and_zone() -> None:
    """The order of a set is another one in each process, unless $PYTHONHASHSEED says which."""
    said = set()
    for more in (
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    ):
        # Under mpiexec the process would take itself for another rank.
        kept = {name: text for name, text in os.environ.items() if not name.startswith(LAUNCHED)}
        words = [sys.executable, "-c", HASHES]
        about: dict[str, Any] = {"cwd": ROOM, "env": kept | more, "timeout": PATIENCE}
        done = subprocess.run(words, capture_output=True, text=True, check=True, **about)
        assert done.stdout.count("\n") == 12
        said.add(done.stdout)
    assert len(said) == 1


@pytest.mark.parametrize("model", [(), CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("family", ["fedavg", "splitfed"])
def test_threads(family: str, model: tuple[str, ...]) -> None:
    """To rounding: threads add up in another order, on some processors in any product."""
    given = (*member(family, *model), *FEW, "rounds=1", "epochs=1", "evaluate.every=9")
    one, two = (run(small(*given, f"threads={count}")) for count in (1, 2))
    np.testing.assert_allclose(one.model, two.model, rtol=1e-4, atol=1e-6)
    for table, column in (("clients", "loss"), ("rounds", "loss")):
        np.testing.assert_allclose(*(each.tables[table][column] for each in (one, two)), rtol=1e-4)
    for column in ("up_gradient", "down_model", "up_header"):
        np.testing.assert_array_equal(*(each.tables["clients"][column] for each in (one, two)))
