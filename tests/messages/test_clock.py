"""Seconds by phase, on a clock of our own."""

from contextlib import suppress

import numpy as np
import pytest

from fedmpi.messages import clock
from fedmpi.messages.clock import OFF, Clock, Phase


class Time:
    """A clock that stands still unless it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "perf_counter", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def test_seconds_are_charged_to_their_phase_and_add_up(world: Time) -> None:
    ours = Clock()
    for phase, seconds in ((Phase.WAIT, 2), (Phase.TRAIN, 5), (Phase.WAIT, 1)):
        with ours(phase):
            world.passes(seconds)
        world.passes(10)
    wanted = np.zeros(len(Phase))
    wanted[Phase.WAIT], wanted[Phase.TRAIN] = 3, 5
    np.testing.assert_array_equal(ours.seconds, wanted)
    assert ours.elapsed() == 38


@pytest.mark.parametrize("phase", Phase)
def test_off_the_clock_is_no_part_of_the_round(world: Time, phase: Phase) -> None:
    ours = Clock()
    with ours(phase):
        world.passes(4)
    world.passes(1)
    assert ours.elapsed() == (1 if phase in OFF else 5)


def test_off_are_measuring_recording_and_saving() -> None:
    assert set(OFF) == {Phase.EVALUATE, Phase.RECORD, Phase.SAVE}


def test_reset_begins_a_round(world: Time) -> None:
    ours = Clock()
    with ours(Phase.EVALUATE):
        world.passes(3)
    ours.reset()
    assert not ours.seconds.any()
    world.passes(2)
    assert ours.elapsed() == 2


def test_a_phase_ends_with_an_error_too(world: Time) -> None:
    ours = Clock()

    def fails() -> None:
        with ours(Phase.PACK):
            world.passes(7)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    world.passes(1)
    assert ours.seconds[Phase.PACK] == 7


def test_a_phase_inside_of_another_takes_its_time_from_it(world: Time) -> None:
    """Two levels deep, two side by side, and one that fails: every second is charged once."""
    ours = Clock()
    with ours(Phase.TRAIN):
        world.passes(1)
        with ours(Phase.PACK):
            world.passes(2)
            with ours(Phase.WAIT):
                world.passes(4)
            world.passes(8)
        world.passes(16)
        with suppress(KeyError), ours(Phase.SERVE):
            world.passes(32)
            raise KeyError
        world.passes(64)
    with ours(Phase.TRAIN):
        world.passes(128)
    wanted = dict.fromkeys(Phase, 0) | {
        Phase.TRAIN: 1 + 16 + 64 + 128,
        Phase.PACK: 2 + 8,
        Phase.WAIT: 4,
        Phase.SERVE: 32,
    }
    assert ours.seconds.tolist() == [wanted[phase] for phase in Phase]
    assert ours.elapsed() == ours.seconds.sum() == 255


def test_what_is_off_the_clock_inside_of_a_phase_is_no_part_of_it(world: Time) -> None:
    ours = Clock()
    with ours(Phase.SERVE):
        world.passes(1)
        with ours(Phase.EVALUATE):
            world.passes(5)
    assert (ours.seconds[Phase.SERVE], ours.elapsed()) == (1, 1)


def test_real_time_passes() -> None:
    ours = Clock()
    with ours(Phase.SERVE):
        sum(range(10_000))
    assert 0 < ours.seconds[Phase.SERVE] <= ours.elapsed()


def test_phases_have_names_that_fit_the_table() -> None:
    assert all(len(phase.name) <= 8 for phase in Phase)
    assert [int(phase) for phase in Phase] == list(range(len(Phase)))


def test_seconds_before_a_round_are_credited_to_it_off_the_clock(world: Time) -> None:
    ours = Clock()
    with ours(Phase.TRAIN):
        world.passes(3)
    before = ours.elapsed()
    ours.credit(Phase.SAVE, 5.0)
    assert (ours.elapsed(), ours.seconds[Phase.SAVE]) == (before, 5.0)
