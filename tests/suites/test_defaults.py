"""Every method at its defaults does what its name says: the run is not that of what it builds on.

The federation is small, but has the default number of rounds, because what comes every so many
rounds must come within a default run.
"""

import numpy as np
import pytest

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages.codec import Kind
from fedmpi.results import tables
from tests.plain import METHODS
from tests.small import Run, run, small

WORDS = (f"rounds={Settings.model_fields['rounds'].default}", "epochs=1", "evaluate.every=5")
NORMS = ("model.name=cnn", "model.channels=[4,4]", "model.kernel=3", "model.hidden=8")
NORMS = (*NORMS, "model.norm=batch", "data.samples=150")
"""A model with normalization, for methods that treat it in a way of their own."""
NEEDS = {
    "fedbn": NORMS,
    "flexlora": ("model.train=adapters", "model.lora.rank=2", "lr=0.3"),
}
LEAST = 1e-4
"""Relative difference of models, and difference of accuracies, that no rounding makes here."""


def base(name: str) -> str:
    """The method that another one builds on."""
    converses = config.module("method", name).Config.converses
    return "splitfed" if converses and name != "splitfed" else "fedavg"


def differ(one: Run, other: Run) -> bool:
    """Whether models, bytes, personal accuracies or tables do; headers are no content."""
    header = Kind.HEADER.name.lower()
    ours, theirs = (
        rows[rows["round"] >= 0] for rows in (one.tables["clients"], other.tables["clients"])
    )
    if one.tables.keys() != other.tables.keys():
        return True
    if any((ours[n] != theirs[n]).any() for n in tables.BYTES if not n.endswith(header)):
        return True
    if np.linalg.norm(one.model - other.model) > LEAST * np.linalg.norm(other.model):
        return True
    pairs = np.nan_to_num(ours["personal"]), np.nan_to_num(theirs["personal"])
    return bool(np.abs(pairs[0] - pairs[1]).max() > LEAST)


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, ...], Run]:
    """Runs of the methods that others build on."""
    return {}


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"fedavg"}))
def test_a_default_run_is_its_own(name: str, known: dict[tuple[str, ...], Run]) -> None:
    words = (f"method.name={base(name)}", *WORDS, *NEEDS.get(name, ()))
    if words not in known:
        known[words] = run(small(*words))
    found = run(small(f"method.name={name}", *WORDS, *NEEDS.get(name, ())))
    assert differ(found, known[words])


def test_what_does_nothing_is_found_out() -> None:
    """There are no norms that FedBN could leave at home, and PruneFL's first change is too late."""
    wanted = run(small(*WORDS))
    assert not differ(run(small("method.name=fedbn", *WORDS)), wanted)
    late = ("rounds=4", *WORDS[1:])
    assert not differ(run(small("method.name=prunefl", *late)), run(small(*late)))
