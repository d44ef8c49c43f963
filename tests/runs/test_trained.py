"""What is kept of a run's models: the tensors, gathered from all ranks, within a limit."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi.engine import Engine
from fedmpi.results.kept import Kept, read
from fedmpi.runs import launch, trained
from fedmpi.runs.job import Job
from fedmpi.runs.trained import Trained
from tests.small import Run, refusal, run, small

WORLD = MPI.COMM_WORLD
MEMBERS = {
    "fedavg": (),
    "ditto": ("method.name=ditto",),
    "dispfl": ("method.name=dispfl",),
    "fedper": ("method.name=fedper", "participation=0.5", "rounds=1"),
    "ssfl": ("method.name=ssfl",),
    "statistics": (
        *("method.name=fedrep", "model.name=cnn", "model.norm=batch", "statistics=local"),
        *("participation=0.5", "rounds=1"),
    ),
}


def gathered(settings: object, comm: MPI.Intracomm) -> tuple[Run, Kept | None]:
    """A run on the ranks of a communicator, and what is kept of it."""
    found = run(settings, comm)  # type: ignore[arg-type]
    return found, Trained(found.engine).gather()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_rank_gives_what_its_clients_have(
    member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turns of one client, too: the same as on one rank alone."""
    settings = small(*MEMBERS[member])
    _, wanted = gathered(settings, MPI.COMM_SELF)
    monkeypatch.setattr(trained, "TURN", 1)
    _, found = gathered(settings, WORLD)
    if WORLD.rank:
        assert found is None
        return
    assert found is not None and wanted is not None
    assert found.round == wanted.round == settings.rounds - 1
    for group in ("model", "mask", "own", "own_mask"):
        ours, theirs = getattr(found, group), getattr(wanted, group)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def vector(engine: Engine, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The vector [n] of tensors by name, in the network's own order of names."""
    state = engine.flat.network(torch.zeros(engine.flat.size)).state_dict()
    return np.concatenate([np.ravel(tensors[name]) for name in state if name in tensors])


def test_tensors_are_those_of_the_network() -> None:
    """Their names, shapes and values; and of the clients what their stores hold."""
    found, kept = gathered(small("method.name=ditto"), MPI.COMM_SELF)
    assert kept is not None
    engine = found.engine
    shapes = {name: tuple(t.shape) for name, t in engine.flat.stages.state_dict().items()}
    assert {name: values.shape for name, values in kept.model.items()} == shapes
    assert {n: v.shape for n, v in kept.own.items()} == {n: (5, *s) for n, s in shapes.items()}
    np.testing.assert_array_equal(vector(engine, dict(kept.model)), found.model)
    for client in range(5):
        own = {name: values[client] for name, values in kept.own.items()}
        np.testing.assert_array_equal(vector(engine, own), engine.clients.models[client].numpy())


def test_a_mask_says_which_values_stay() -> None:
    found, kept = gathered(small("method.name=ssfl", "method.sparsity=0.8"), MPI.COMM_SELF)
    assert kept is not None and kept.mask.keys() == kept.model.keys()
    mask = vector(found.engine, dict(kept.mask))
    assert mask.dtype == bool and not found.model[~mask].any()
    assert 0.1 < mask[found.engine.flat.prunable().numpy()].mean() < 0.3


def test_each_client_s_mask_is_kept_with_its_model() -> None:
    """Before the masks of the next round: weights that are regrown are zero in the model."""
    found, kept = gathered(small("method.name=dispfl", "method.sparsity=0.8"), MPI.COMM_SELF)
    assert kept is not None and kept.own_mask.keys() == kept.own.keys()
    prunable, masks = found.engine.flat.prunable().numpy(), []
    for client in range(5):
        model, mask = (
            vector(found.engine, {name: values[client] for name, values in group.items()})
            for group in (kept.own, kept.own_mask)
        )
        assert mask.dtype == bool and not model[~mask].any()
        assert 0.1 < mask[prunable].mean() < 0.3 and (model[mask] != 0).mean() > 0.9
        masks.append(mask)
    assert any((mask != masks[0]).any() for mask in masks)


def test_statistics_of_clients_that_never_trained_are_unknown() -> None:
    found, kept = gathered(small(*MEMBERS["statistics"]), MPI.COMM_SELF)
    assert kept is not None
    trained = set(found.tables["clients"]["client"].tolist())
    assert 0 < len(trained) < 5
    for name, values in kept.own.items():
        unknown = np.isnan(values).reshape(5, -1).all(axis=1)
        is_statistic = "running" in name
        assert unknown.tolist() == [is_statistic and c not in trained for c in range(5)], name


@pytest.mark.parametrize(
    ("words", "groups", "said"),
    [
        ((), {"model"}, ""),
        (("keep=none",), set(), ""),
        (("keep=best",), {"model"}, ""),
        (("method.name=ssfl",), {"model", "mask"}, ""),
        (("method.name=ditto",), {"model", "own"}, ""),
        (("method.name=dispfl",), {"model", "own", "own_mask"}, ""),
        (("method.name=ditto", "keep=best"), {"model"}, ""),
        (
            ("method.name=ditto", "model.hidden=[700,230]"),
            {"model"},
            "what clients have of their own, 4.18 MB",
        ),
        (("model.hidden=[1500,120]",), set(), "model of 1.12 MB is not kept: it is more than"),
    ],
)
def test_what_a_result_keeps(
    words: tuple[str, ...],
    groups: set[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")
    Job().run(small("keep_limit=1", *words), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert {name for name, item in file.items() if isinstance(item, h5py.Group)} == groups
        assert ("kept_round" in file.attrs) == bool(groups)
    lines = [line for line in capsys.readouterr().err.splitlines() if "keep_limit" in line]
    assert len(lines) == bool(said)
    assert said in "".join(lines)


def test_a_best_model_needs_a_global_one_and_samples_to_choose_by() -> None:
    assert "keep = 'best': wanted a method with a global model" in refusal(
        "keep=best", "method.name=fedper"
    )
    assert "validation = 0.0" in refusal("keep=best", "validation=0.0")


def test_keeping_is_no_part_of_a_run(tmp_path: Path) -> None:
    assert len({small(word).identity() for word in ("keep=none", "keep=best", "keep_limit=5")}) == 1


def test_the_best_model_outlives_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job dies after the best round; the one that goes on has the model from the checkpoint."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")
    at_once = ("checkpoint.every=5", "checkpoint.memory=0")
    settings = small("rounds=7", "keep=best", "lr=2.0", "seed=3", "epochs=1", *at_once)
    Job().run(settings, tmp_path / "whole.h5")
    outcome = Engine.outcome

    def dies(engine: Engine, t: int, waves: object) -> object:
        if t == 6:
            raise ZeroDivisionError
        return outcome(engine, t, waves)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "outcome", dies)
    with pytest.raises(ZeroDivisionError):
        Job().run(settings, tmp_path / "cut.h5")
    monkeypatch.undo()
    monkeypatch.setenv(launch.PROGRESS, "0")
    Job().run(settings, tmp_path / "cut.h5")
    found, wanted = (read(tmp_path / name) for name in ("cut.h5", "whole.h5"))
    assert found.round == wanted.round == 4
    for name in wanted.model:
        np.testing.assert_array_equal(found.model[name], wanted.model[name])
    assert "resumed" in found.about
