"""Every method beside every setting of local training, of sampling and of losses.

A method refuses a setting by a sentence that names it, or learns beside it without NaN: beside all
settings at once that it takes, and beside either half of them. So each setting is there and absent
with each method, and each two are there at once. Each alone would prove no more of what a method
and a setting are to each other, in twice as many runs.
"""

from functools import cache

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
MIXES = {
    "all": tuple(name for name in SETTINGS if name != "optimizer"),
    "one half": ("momentum", "aggregation.clip", "participation"),
    "the other": ("optimizer", "clip", "devices.dropouts"),
}
"""Settings that can stand beside each other: momentum is SGD's. Convolutions take the longest."""
LEAST = {"all": 4, "one half": 1, "the other": 1}
"""How many of them every method takes."""
EASIER = {
    "clientmask": ("method.sparsity=0.2",),
    "dgc": ("method.sparsity=0.5", "method.warmup=0"),
    "randomk": ("method.sparsity=0.5",),
    "stc": ("method.sparsity=0.9",),
    "sparsyfed": ("method.sparsity=0.2",),
}
"""More words, for methods whose defaults learn too little in so few rounds, whatever the others."""


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


@cache
def refused(method: str, *settings: str) -> str:
    """Why it cannot be run; empty if it can."""
    return refusal(*("=".join(word) for word in words(method, *settings)))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_refuses_a_setting_by_its_name_or_runs(method: str) -> None:
    """What is not refused here is run below."""
    for setting in SETTINGS:
        if why := refused(method, setting):
            assert setting.rpartition(".")[2] in why and "wanted" in why


@pytest.mark.parametrize("beside", MIXES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_beside_settings(method: str, beside: str) -> None:
    """All that it takes at once; and either half, so that each setting is also absent once."""
    taken = [name for name in MIXES[beside] if not refused(method, name)]
    assert not refused(method, *taken)
    assert len(taken) >= LEAST[beside]
    learns(method, *taken)
