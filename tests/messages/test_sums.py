"""Median, trimmed mean, clip and noise against plain arithmetic; and every method under them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import config, models
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message, WireError
from fedmpi.messages.kernels import codes
from fedmpi.messages.sums import Held, Sum, aggregate, chosen
from tests.plain import METHODS, families, member, play, train
from tests.small import refusal, run, small, smooth

ROWS = torch.tensor([[1.0, 5.0, 0.0], [2.0, -9.0, 0.0], [9.0, 0.0, 0.0], [3.0, 1.0, 7.0]])


def test_by_hand() -> None:
    assert aggregate(ROWS, "mean", 0).tolist() == [3.75, -0.75, 1.75]
    assert aggregate(ROWS, "median", 0).tolist() == [2.5, 0.5, 0.0]
    assert aggregate(ROWS[:3], "median", 0).tolist() == [2.0, 0.0, 0.0]
    assert aggregate(ROWS, "trimmed", 0.25).tolist() == [2.5, 0.5, 0.0]
    assert aggregate(ROWS, "trimmed", 0.24).tolist() == [3.75, -0.75, 1.75]
    assert aggregate(ROWS[:1], "median", 0).tolist() == ROWS[0].tolist()


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_median_is_numpys(count: int) -> None:
    rows = torch.randn(count, 40, generator=torch.Generator().manual_seed(count))
    np.testing.assert_allclose(aggregate(rows, "median", 0), np.median(rows, axis=0), atol=1e-6)


def updates(engine: Engine, t: int, w: Tensor) -> Tensor:
    """The updates of round t's clients by plain training, [K, n]."""
    return torch.stack([train(engine, t, c, w)[0] - w for c in engine.population.sample(t)])


@pytest.mark.parametrize(
    "words",
    [
        ("aggregation.rule=median",),
        ("aggregation.rule=trimmed", "aggregation.trim=0.34"),
        ("aggregation.clip=0.3",),
        ("aggregation.clip=0.3", "aggregation.rule=median"),
    ],
    ids=" ".join,
)
def test_rounds_against_plain_training(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words, "participation=0.6", "rounds=3"))
    w, differs = engine.server.w.clone(), 0.0
    for t, _ in enumerate(play(engine)):
        rows = updates(engine, t, w)
        assert len(rows) == 3
        if "aggregation.clip=0.3" in words:
            norms = rows.norm(dim=1, keepdim=True)
            assert norms.max() > 0.3
            rows = rows * (0.3 / norms).clamp(max=1)
        wanted = rows.median(0).values if words[-1].endswith(("median", "0.34")) else rows.mean(0)
        np.testing.assert_allclose(engine.server.w, w + wanted, rtol=1e-4, atol=2e-5)
        differs = max(differs, float((wanted - updates(engine, t, w).mean(0)).abs().max()))
        w = engine.server.w.clone()
    assert differs > 1e-3, "it is not the mean"


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    words = ("aggregation.clip=0.3", "rounds=1", "clients=5")
    quiet = run(small(*words)).model
    noise = run(small(*words, "aggregation.noise=0.8")).model - quiet
    assert noise.std() == pytest.approx(0.8 * 0.3 / 5, rel=0.1)
    assert abs(noise.mean()) < 4 * noise.std() / len(noise) ** 0.5
    again = run(small(*words, "aggregation.noise=0.8")).model - quiet
    np.testing.assert_array_equal(again, noise)


def test_one_bad_client_moves_the_mean_but_not_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(*words: str) -> float:
        engine = Engine(small(*words, "rounds=1", "partition.name=iid"))
        work = engine.clients.work

        def worked(t: int, clients: tuple[int, ...]) -> Tensor:
            bad = torch.tensor(clients) == 3
            return work(t, clients) + 1000 * bad[:, None]

        monkeypatch.setattr(engine.clients, "work", worked)
        list(play(engine))
        return float((engine.server.w - engine.flat.initial).abs().max())

    assert moved() > 100
    assert moved("aggregation.rule=median") < 2
    assert moved("aggregation.rule=trimmed", "aggregation.trim=0.2") < 2


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_under_a_median_or_refuses_it(name: str) -> None:
    words = (f"method.name={name}", "participation=0.6", "aggregation.rule=median")
    if not config.module("method", name).Config().pools:
        with pytest.raises(ConfigError, match="wanted a method in which all clients upload whole"):
            Engine(small(*words))
        return
    found, plain = run(small(*words)), run(small(*words[:2]))
    assert np.isfinite(found.model).all()
    assert (found.sha256 != plain.sha256) == (found.engine.method.uploads != "nothing")


@pytest.mark.parallel([1, 3])
@families
def test_ranks_do_not_matter_to_a_median(family: str) -> None:
    from mpi4py import MPI

    words = (*member(family), "participation=0.6", "aggregation.rule=median")
    if not refusal(*words):
        settings = small(*words)
        found = run(settings, MPI.COMM_WORLD)
        if MPI.COMM_WORLD.rank == 0:
            assert found.sha256 == run(settings).sha256


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("aggregation.rule=trimmed",), "trim = 0.0: wanted a share above 0"),
        (("aggregation.trim=0.1",), "trim = 0.1: .* 0 beside others; found 'mean'"),
        (("aggregation.noise=1.0",), "noise = 1.0: wanted aggregation.clip above 0"),
    ],
)
def test_settings_that_do_not_go_together(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        small(*words)


def block(values: Tensor, size: int | None = None) -> Block:
    return sparse.block(Kind.GRADIENT, values, size)


def test_the_mean_is_over_those_who_have_a_value() -> None:
    """Two clients of weights 3 and 1: one has the positions 0 and 2, the other 2 and 3."""
    held = Held(5, torch.device("cpu"))
    held.add(block(torch.tensor([4.0, 8.0]), 5), 3.0, torch.tensor([0, 2]))
    held.add(block(torch.tensor([0.0, 6.0]), 5), 1.0, torch.tensor([2, 3]))
    assert [vector.tolist() for vector in held.vectors()] == [[12, 0, 24, 6, 0], [3, 0, 4, 1, 0]]
    assert held.mean().tolist() == [4, 0, 6, 6, 0]
    held.clear()
    assert all(not vector.any() for vector in held.vectors())


@pytest.mark.parametrize("kind", [Sum, Held])
def test_vectors_of_two_sums_add_up_to_those_of_all(kind: type[Sum]) -> None:
    """Which is what may be added up on the way to the server."""
    random = torch.Generator().manual_seed(4)
    halves, whole = [kind(6, torch.device("cpu")) for _ in range(2)], kind(6, torch.device("cpu"))
    for client in range(8):
        some, at = torch.randn(3, generator=random), torch.randperm(6, generator=random)[:3]
        for each in (halves[client % 2], whole):
            each.add(block(some, 6), client + 1.0, at)
    for one, other, both in zip(*(each.vectors() for each in (*halves, whole)), strict=True):
        np.testing.assert_allclose(one + other, both, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coding", ["f4", "codes"])
def test_values_where_all_agree_are_added_up_one_behind_the_other(coding: str) -> None:
    """The same bits as at their positions one by one, with any weights; nothing else is touched."""
    random, at = torch.Generator().manual_seed(1), torch.tensor([1, 4, 5, 7])
    total, wanted = Sum(9, torch.device("cpu")), torch.zeros(9)
    for weight in (3.1, 0.7, 11.0):
        given = block(torch.randn(4, generator=random), 9)
        if coding == "codes":
            grid = sparse.uniform(given.values, [4], 5)
            packed = codes.encode(given.values, grid)
            given = replace(given, coding=Coding.CODES, values=packed, bits=5, grid=grid)
        total.add(given, weight, at)
        sparse.add(wanted, given, weight, at)
    assert total.packed is not None and not total.whole.any()
    assert total.values(at)[0] is total.packed
    assert torch.equal(total.values(at)[0], wanted[at])
    assert torch.equal(total.total, wanted) and total.packed is None
    assert torch.equal(total.values(at)[0], wanted[at])
    total.clear()
    assert not total.total.any()


@pytest.mark.parametrize("size", [7, 5000])
def test_a_model_is_moved_where_all_agree_alone(size: int) -> None:
    """The same bits as by a dense vector; no dense vector is made."""
    random = torch.Generator().manual_seed(size)
    at = torch.randperm(size, generator=random)[: size // 3].sort().values
    ours, dense = (Sum(size, torch.device("cpu")) for _ in range(2))
    for weight in (3.1, 0.7):
        given = block(torch.randn(len(at), generator=random), size)
        for total in (ours, dense):
            total.add(given, weight, at)
            total.weight += weight
    moved = torch.randn(size, generator=random)
    wanted = moved.clone()
    assert dense.total.count_nonzero() == len(at)
    dense.move(wanted)
    ours.move(moved)
    assert torch.equal(moved, wanted)
    for total in (ours, dense):
        assert (total.weight, total.packed, total.whole.any()) == (0, None, False)


def test_no_zero_keeps_a_sign_where_all_agree() -> None:
    at, total = torch.tensor([0, 2]), Sum(3, torch.device("cpu"))
    total.add(block(torch.tensor([-0.0, 1.0]), 3), 2.0, at)
    assert total.values(at)[0].signbit().tolist() == [False, False]


def test_values_where_all_agree_are_as_many() -> None:
    at, total = torch.tensor([0, 2]), Sum(3, torch.device("cpu"))
    with pytest.raises(WireError, match="3 values, wanted 2"):
        total.add(block(torch.ones(3), 3), 1.0, at)


def test_values_at_other_positions_are_added_where_they_are() -> None:
    """Whatever came before: some that agree, other positions, all, a change in place, a clear."""
    one, other, every = torch.tensor([0, 2]), torch.tensor([2, 3]), torch.ones(4)
    total = Sum(4, torch.device("cpu"))
    total.add(block(torch.tensor([1.0, 2.0]), 4), 1.0, one)
    total.add(block(torch.tensor([10.0, 20.0]), 4), 1.0, other)
    total.add(block(torch.tensor([1.0, 2.0]), 4), 1.0, one)
    total.add(block(every, 4), 1.0)
    total.total[1] += 100
    assert total.vectors()[0].tolist() == [3, 101, 15, 21]
    total.clear()
    assert total.values(one)[0].tolist() == [0, 0]
    total.take(one, [torch.tensor([5.0, 6.0])])
    total.add(block(torch.tensor([1.0, 2.0]), 4), 2.0, one)
    assert not total.whole.any()
    total.scale(10)
    assert total.total.tolist() == [70, 0, 100, 0]
    total.take(one, [torch.tensor([5.0, 6.0])])
    assert total.total.tolist() == [5, 0, 6, 0]


def test_another_number_of_values_is_refused() -> None:
    total, at = Sum(4, torch.device("cpu")), torch.tensor([0, 2])
    with pytest.raises(WireError, match="1 values, wanted 2"):
        total.add(block(torch.tensor([1.0]), 4), 1.0, at)
    with pytest.raises(WireError, match="a block of a vector of 5, wanted 4"):
        total.add(block(torch.tensor([1.0, 2.0]), 5), 1.0, at)


def test_a_median_leaves_nothing_to_add_up_on_the_way() -> None:
    settings = small("aggregation.rule=median")
    with pytest.raises(ValueError, match=r"'median', clip = 0\.0: the server needs each client's"):
        chosen(settings, 4, torch.device("cpu"), torch.empty(0, dtype=torch.int64)).vectors()


RULES = {
    "median": ("aggregation.rule=median",),
    "trimmed": ("aggregation.rule=trimmed", "aggregation.trim=0.3"),
    "private": ("aggregation.clip=0.01", "aggregation.noise=5.0"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["fedavg", "topk", "qsgd", "signsgd", "scaffold", "splitfed"])
def test_statistics_are_averaged_under_every_rule(
    name: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not sorted, clipped or blurred: a variance could become negative."""
    monkeypatch.setattr(models, "build", smooth)
    words = (f"method.name={name}", "rounds=1", "aggregation.weights=equal")
    found = run(small(*words[:2], *RULES[rule]))
    plain, where = run(small(*words)).model, found.engine.flat.stat_positions
    np.testing.assert_allclose(found.model[where], plain[where], rtol=1e-5, atol=1e-6)
    assert np.abs(found.model - plain).max() > 1e-3


def test_the_clip_measures_parameters_alone() -> None:
    settings = small("aggregation.clip=1.0")
    total = chosen(settings, 4, torch.device("cpu"), torch.tensor([1]))
    for values in ([0.3, 50.0, 0.4, 0.0], [3.0, 70.0, 4.0, 0.0]):
        message = Message(0, [sparse.block(Kind.GRADIENT, torch.tensor(values))], 1.0)
        with total.taking(message) as taken:
            total.add(taken.blocks[0], taken.weight)
            total.weight += taken.weight
    total.close(0)
    wanted = [(0.3 + 0.6) / 2, 60.0, (0.4 + 0.8) / 2, 0.0]
    np.testing.assert_allclose(total.mean(), wanted, rtol=1e-5)
