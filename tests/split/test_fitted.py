"""`method.cut = fit`: the last split point whose front fits the devices' memory."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.runs import launch
from fedmpi.runs.job import Job
from tests.plain import METHODS
from tests.small import alike, refusal, run, small

SPLITTING = [
    name for name in METHODS if config.module("method", name).Config.converses and name != "splitft"
]
"""Methods that have one cut for all clients."""
DEEP = ("model.hidden=[8,16,20,24]", "rounds=1", "optimizer=adam")
CUTS = ("hidden1", "hidden2", "hidden3", "hidden4")


def tiers(memory: float, *more: str) -> str:
    """Two kinds of devices, of which the second one is small."""
    tiny = ",".join(["name='tiny',share=0.4", f"memory={memory}", *more])
    return f"devices.tiers=[{{name='big',share=0.6}},{{{tiny}}}]"


def needs(*words: str) -> float:
    """MiB of the client that needs most, as the tiers' clients measure it without a limit."""
    found = run(small(*DEEP, tiers(1e6), *words)).tables["clients"]
    return float(found["memory"][found["tier"] == b"tiny"].max())


def between(method: str, cut: int, *words: str) -> float:
    """A memory that the front up to that cut fits, and no deeper one."""
    some = [
        needs(f"method.name={method}", f"method.cut={name}", *words) for name in CUTS[cut : cut + 2]
    ]
    assert some[0] < some[1]
    return sum(some) / 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_it_is_the_last_one_that_fits(place: int) -> None:
    limit = between("splitfed", place)
    words = (*DEEP, tiers(limit), "method.name=splitfed")
    found = run(small(*words, "method.cut=fit"))
    assert found.engine.method.cut == CUTS[place]
    assert (found.tables["clients"]["memory"] <= found.tables["clients"]["whole_memory"]).all()
    alike(found, run(small(*words, f"method.cut={CUTS[place]}")))
    assert "wanted at most its memory" in refusal(*words, f"method.cut={CUTS[place + 1]}")


@pytest.mark.parametrize("name", SPLITTING)
def test_every_split_method_has_it(name: str) -> None:
    """With the bits of the same cut, named; an auxiliary head takes memory, too."""
    limit = needs(f"method.name={name}", "method.cut=hidden2") * 1.01
    words = (*DEEP, tiers(limit), f"method.name={name}")
    found = run(small(*words, "method.cut=fit"))
    chosen = found.engine.method.cut
    assert chosen in CUTS
    alike(found, run(small(*words, f"method.cut={chosen}")))
    if name != "fedsl":  # its masks and few bits are not foreseen
        assert chosen == "hidden2"


def test_the_server_keeps_a_stage_in_front_of_the_tail() -> None:
    words = (*DEEP, "method.name=splitfed", "method.cut=fit", "method.tail=hidden4")
    assert Engine(small(*words, tiers(1e6))).method.cut == "hidden2"
    front = needs("method.name=splitfed", "method.cut=hidden1", "method.tail=hidden4")
    assert Engine(small(*words, tiers(front))).method.cut == "hidden1", "the tail counts, too"
    without = needs("method.name=splitfed", "method.cut=hidden2")
    assert Engine(small(*words, tiers(max(front, without)))).method.cut == "hidden1"


def test_devices_too_small_for_any_cut_do_not_count() -> None:
    words = (*DEEP, "method.name=splitfed", "method.cut=fit")
    assert "wanted at most its memory, 1e-06 MiB" in refusal(*words, tiers(1e-6))
    assert Engine(small(*words, tiers(1e-6), "devices.unfit=rest")).method.cut == "hidden1"
    limit = between("splitfed", 2)
    three = (
        "devices.tiers=[{name='big',share=0.4},{name='tiny',share=0.2,memory=1e-6},"
        f"{{name='mid',share=0.4,memory={limit}}}]"
    )
    engine = Engine(small(*words, three, "devices.unfit=rest"))
    assert engine.method.cut == "hidden3" and len(engine.population.excluded) == 1


def test_a_frozen_front_fits_where_one_that_trains_does_not() -> None:
    words = (*DEEP, "method.name=splitfed", "method.cut=fit", tiers(needs("method.name=splitfed")))
    assert Engine(small(*words)).method.cut == "hidden1"
    assert Engine(small(*words, "model.train=head")).method.cut in CUTS[1:]


def test_where_nothing_decides_it_is_refused() -> None:
    for name in ("splitfed", "sgcfl"):
        for some in ((), ("devices.tiers=[{}]",)):
            with pytest.raises(
                ConfigError, match=r"wanted devices\.tiers with a memory, found none"
            ):
                small(f"method.name={name}", "method.cut=fit", *some)
    assert "no such split point; there are: hidden1, " in refusal(
        "method.name=fedper", "method.cut=fit", tiers(1.0)
    )


def test_the_result_says_which_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")
    words = (*DEEP, "method.name=splitfed", tiers(between("splitfed", 1)))
    Job().run(small(*words, "method.cut=fit"), tmp_path / "a.h5")
    Job().run(small(*words, "method.cut=hidden1"), tmp_path / "b.h5")
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert a.attrs["cut"] == "hidden2" and "cut" not in b.attrs
        assert a.attrs["identity"] == small(*words, "method.cut=fit").identity()


@pytest.mark.parallel([2, 3])
def test_all_ranks_have_the_same() -> None:
    words = (*DEEP, "method.name=splitfed", "method.cut=fit", tiers(between("splitfed", 1)))
    found = run(small(*words), MPI.COMM_WORLD)
    assert found.engine.method.cut == "hidden2"
    if MPI.COMM_WORLD.rank == 0:
        assert found.sha256 == run(small(*words)).sha256
        assert np.isfinite(found.tables["clients"]["memory"]).all()
