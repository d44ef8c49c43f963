"""Every method beside every setting of local training, of sampling and of losses.

Each pair learns without NaN, or is refused by a sentence that names the setting. So does a method
beside all settings at once that it takes.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.plain import METHODS
from tests.small import refusal, run, small

DIGITS = (
    *("data.name=digits", "partition.name=dirichlet", "partition.alpha=1.0", "rounds=12"),
    *("clients=3", "local_steps=10", "evaluate.every=12", "model.hidden=[32]", "lr=0.2"),
)
"""Twelve rounds of a few steps: what learns at all is far above chance."""
CHANCE = 0.1
SETTINGS = {
    "momentum": ("momentum=0.9", "lr=0.05"),
    "optimizer": ("optimizer=adam", "lr=0.01"),
    "clip": ("clip=1.0",),
    "aggregation.clip": ("aggregation.clip=5.0",),
    "model.norm": (
        *("model.name=cnn", "model.channels=[4,8]", "model.kernel=3", "model.hidden=16"),
        "model.norm=batch",
    ),
    "participation": ("participation=0.5",),
    "devices.dropouts": ("devices.dropouts=0.3",),
}
"""Words by the setting that they are about."""
TOGETHER = [name for name in SETTINGS if name != "optimizer"]
"""Settings that can all stand beside each other: momentum is SGD's."""
EASIER = {
    "clientmask": ("method.sparsity=0.2",),
    "dgc": ("method.sparsity=0.5", "method.warmup=0"),
    "randomk": ("method.sparsity=0.5",),
    "stc": ("method.sparsity=0.9",),
    "sparsyfed": ("method.sparsity=0.2",),
}
"""More words, for methods whose defaults learn too little in so few rounds, whatever the others."""


COMBINED = {
    "aggregation.clip": ("aggregation.clip=2.0",),
    "aggregation.server": ("aggregation.server=adam",),
    "control": ("control=mean",),
    "devices.deadline": ("devices.tiers=[{}]", "devices.deadline=9.0"),
    "epochs_to": ("epochs_to=4",),
    "proximal": ("proximal=0.1",),
}
"""Words by a setting in the table of `docs/methods.md` that says which methods take it."""
DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


def words(method: str, *settings: str) -> tuple[str, ...]:
    """Words of a run on digits; of a setting that is given twice the last one counts."""
    given = [*DIGITS, f"method.name={method}", *EASIER.get(method, ())]
    given += [word for name in settings for word in SETTINGS[name]]
    return tuple(dict(word.partition("=")[::2] for word in given).items())


def learns(method: str, *settings: str) -> None:
    """The method ends above chance after all rounds, and nothing is NaN on the way."""
    found = run(small(*("=".join(word) for word in words(method, *settings))))
    rounds = found.tables["rounds"][found.tables["rounds"]["round"] >= 0]
    assert len(rounds) == 12
    assert np.isfinite(rounds["loss"]).all()
    assert np.isfinite(found.model).all()
    ways = [rounds[way][-1] for way in ("accuracy", "shard_mean", "personal_mean")]
    judged = next(way for way in ways if np.isfinite(way))
    assert judged > 2 * CHANCE, ways


def refused(method: str, *settings: str) -> str:
    """Why it cannot be run; empty if it can."""
    return refusal(*("=".join(word) for word in words(method, *settings)))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_beside_a_setting_or_refuses_it(method: str, setting: str) -> None:
    if why := refused(method, setting):
        assert setting.rpartition(".")[2] in why and "wanted" in why
        return
    learns(method, setting)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_beside_all_settings_that_it_takes(method: str) -> None:
    taken = [name for name in TOGETHER if not refused(method, name)]
    assert not refused(method, *taken)
    assert len(taken) >= 4
    learns(method, *taken)


@pytest.mark.parametrize("setting", COMBINED)
def test_the_table_of_what_can_be_combined_is_true(setting: str) -> None:
    lines = DOCS.read_text().partition("## What can be combined")[2].splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("|")]
    (told,) = (methods for settings, methods in rows if f"`{setting}`" in settings)
    named = set(re.findall(r"`([^`]+)`", told)) & set(METHODS)
    taken = {name for name in METHODS if not refusal(f"method.name={name}", *COMBINED[setting])}
    if "not `" in told or not named:
        named = set(METHODS) - named
    assert taken == named
