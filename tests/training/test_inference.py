"""Inference: medians of turns of both networks, for one sample of the batch."""

from itertools import count

import pytest
import torch
from torch import Tensor, nn

from fedmpi import loading, models, turns
from fedmpi.networks.flat import Flat
from fedmpi.networks.slicing import Channels
from fedmpi.networks.topology import Topology
from fedmpi.training import inference
from fedmpi.training.inference import BATCH, Slice, accuracy


@pytest.fixture
def slice_() -> Slice:
    words = {"name": "cnn", "channels": [4, 6], "kernel": 3, "hidden": 8}
    flat = Flat(models.build(loading.load({"model": words}).model, (1, 8, 8), 10, 1))
    channels = Channels(Topology(flat.split(flat.cuts()[-1])[0], (1, 8, 8)), torch.device("cpu"))
    chosen = channels.evenly(channels.norms(flat.initial), 0.5)
    return Slice(flat, flat.initial, channels, chosen, (1, 8, 8))


class Clock:
    """A clock that each sample through a network moves on, by the network's speed in that turn."""

    def __init__(self, slice: Slice) -> None:
        self.now, self.order = 0.0, list[str]()
        for name in ("whole", "small"):
            getattr(slice, name).register_forward_hook(self.hook(name))

    def hook(self, name: str):
        """Moves the clock by one, two, ... for each sample, a pass more each time."""
        number = count(1)

        def move(_: nn.Module, given: tuple[Tensor], __: Tensor) -> None:
            self.now += (2 if name == "whole" else 1) * next(number) * len(given[0])
            self.order.append(name)

        return move


def test_seconds_are_medians_of_turns(slice_: Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(slice_)
    monkeypatch.setattr(inference, "perf_counter", lambda: clock.now)
    # The first turn warms up; then passes 2 to 6 of 7 samples, of which the fourth is in between.
    assert slice_.seconds(torch.zeros(7, 1, 8, 8)) == (2 * 4 * 7, 4 * 7)
    assert clock.order == ["whole", "small"] * (inference.REPEATS + 1)
    clock.order.clear()
    # Then turns of five passes with a single sample: 12 to 16, 17 to 21, 22 to 26, ...
    assert slice_.seconds(torch.zeros(1, 1, 8, 8)) == (2 * 24, 24)
    assert clock.order == (["whole"] * 5 + ["small"] * 5) * (inference.REPEATS + 1)
    assert turns.take_turns is inference.take_turns


def test_an_accuracy_is_over_all_batches(slice_: Slice) -> None:
    x = torch.randn(2 * BATCH + 3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = slice_.whole(x).argmax(1)
    y[:100] = (y[:100] + 1) % 10
    assert accuracy(slice_.whole, x, y) == pytest.approx(1 - 100 / len(x))
    found = accuracy(slice_.whole, x[:0], y[:0])
    assert found != found


def test_flops_are_those_of_the_smaller_network(slice_: Slice) -> None:
    """Two convolutions of 3x3 over 8x8 and 4x4 pixels, and two linear layers."""

    def by_hand(first: int, second: int, hidden: int) -> int:
        convolutions = 64 * first * 9 + 16 * first * second * 9
        return 2 * (convolutions + second * 4 * hidden + 10 * hidden)

    assert slice_.flops() == (by_hand(4, 6, 8), by_hand(2, 3, 4))
