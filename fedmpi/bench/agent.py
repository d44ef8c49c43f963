"""Selections of channels at equal FLOPs: SPATL's agent, equal shares, random search and CEM.

A network is trained centrally. Each selection keeps channels of the largest norms; they differ in
how many of each layer, and all save the same share of the sliced network's FLOPs, as far as whole
channels can. Agent, random search and the cross-entropy method try out equally many selections, on
samples that are held out. The agent that comes with the project tries none: like `policy`, the
agent's answer where it may not try, it is the mean action alone. The result is the loss on the test
set, for the mean of all seeds.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from fedmpi.bench import JSON, Result, chosen
from fedmpi.methods.spatl import agent
from fedmpi.methods.spatl.pretrain import Lab

DIGITS = {"data": {"name": "digits"}, "validation": 0.4, "batch": 32, "lr": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "mlp": {**DIGITS, "rounds": 15, "model": {"name": "mlp", "hidden": [64] * 4}},
    "cnn": {
        **DIGITS,
        "rounds": 15,
        "model": {"name": "cnn", "channels": [16, 32], "kernel": 3, "hidden": 64},
    },
    "resnet8": {
        **DIGITS,
        "rounds": 16,
        "epochs": 1,
        "model": {"name": "resnet", "depth": 8, "norm": "group", "groups": 4},
    },
}
"""Settings of the networks, which learn the digits that come with scikit-learn."""
ELITE = 0.2
"""Share of a batch's actions from which the cross-entropy method makes its next distribution."""


def random_search(game: agent.Game, count: int, random: np.random.Generator) -> Tensor:
    """Returns the best of so many actions around equal shares, [layers]."""
    actions = [_noise(game, random, agent.FIRST) for _ in range(count)]
    return max(actions, key=game.gain)


def cross_entropy_method(game: agent.Game, count: int, random: np.random.Generator) -> Tensor:
    """Returns the mean of the last distribution, [layers].

    R. Y. Rubinstein, *The Cross-Entropy Method for Combinatorial and Continuous Optimization*,
    Methodology and Computing in Applied Probability, 1999. Each batch's best actions give mean and
    deviation of the next one.
    """
    mean = torch.zeros(len(game.seen))
    deviation = torch.full_like(mean, agent.FIRST)
    for _ in range(count // agent.TRIALS):
        tries = torch.stack(
            [mean + deviation * _noise(game, random, 1.0) for _ in range(agent.TRIALS)]
        )
        gains = torch.tensor([game.gain(action) for action in tries])
        best = tries[gains.topk(int(ELITE * agent.TRIALS)).indices]
        mean, deviation = best.mean(0), best.std(0, correction=0).clamp(min=1e-3)
    return mean


def _noise(game: agent.Game, random: np.random.Generator, deviation: float) -> Tensor:
    return deviation * torch.from_numpy(random.standard_normal(len(game.seen))).float()


def losses(lab: Lab, saved: float, seed: int, episodes: int) -> tuple[dict[str, float], float]:
    """Returns the test loss of each selection, and the seconds in which the agent learned.

    Raises:
        AssertionError: if a selection saves less than it should.
    """
    game, other, mind = lab.game(saved), lab.game(saved), agent.born(seed)
    began = perf_counter()
    agent.train(mind, [game], episodes // agent.TRIALS, np.random.default_rng(seed))
    seconds = perf_counter() - began
    selections = {
        "agent": agent.choose(mind, game),
        "policy": agent.choose(mind, other),
        "shipped": agent.choose(agent.shipped(), other),
        "uniform": game.equal(),
        "random": game.choose(random_search(game, episodes, np.random.default_rng(seed))),
        "cem": game.choose(cross_entropy_method(game, episodes, np.random.default_rng(seed))),
    }
    for name, selected in selections.items():
        if lab.scene.saved(selected) < saved:
            raise AssertionError(f"{name} saves {lab.scene.saved(selected):.3f}, not {saved}")
    every = torch.arange(lab.channels.count)
    found = {name: lab.found(one, lab.test)[0] for name, one in selections.items()}
    return found | {"dense": lab.found(every, lab.test)[0]}, seconds


def measure(name: str, shares: Sequence[float], seeds: int, episodes: int) -> Iterator[Result]:
    """Yields one result for each share of FLOPs to save."""
    labs = [Lab({**CASES[name], "seed": seed}) for seed in range(1, seeds + 1)]
    for saved in shares:
        each = [losses(lab, saved, seed, episodes) for seed, lab in enumerate(labs, 1)]
        table = {key: np.array([found[key] for found, _ in each]) for key in each[0][0]}
        seconds = [taken for _, taken in each]
        also = {f"{key}_test_loss": float(values.mean()) for key, values in table.items()}
        also["seeds_below_uniform"] = float((table["agent"] < table["uniform"]).sum())
        against = {
            key: float(table["agent"].mean() / table[key].mean())
            for key in ("uniform", "random", "cem")
        }
        case = {"model": name, "saved": saved, "seeds": seeds, "episodes": episodes}
        spread = min(seconds), max(seconds)
        yield Result("agent", case, float(np.median(seconds)), spread, against, also)


@click.command()
@click.option("--model", "names", multiple=True, help="Only this network. Can be repeated.")
@click.option(
    "--saved",
    "shares",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    default=(0.4, 0.6),
    show_default=True,
    help="Share of the FLOPs to save. Can be repeated.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Number of seeds."
)
@click.option(
    "--episodes",
    type=click.IntRange(min=agent.TRIALS),
    default=1000,
    show_default=True,
    help="Number of selections that are tried out.",
)
@JSON
def command(
    names: tuple[str, ...], shares: tuple[float, ...], seeds: int, episodes: int, as_json: bool
) -> None:
    """Compare selections of channels at equal FLOPs, by the loss on the test set.

    The time is that in which the agent learned. Ratios are of the agent's loss to the others'.
    """
    for name in chosen(names, CASES):
        for result in measure(name, shares, seeds, episodes):
            result.say(as_json)
