"""Terms of a bound on convergence, against closed forms of a quadratic, in numpy and float64."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from numpy import ndarray
from torch import Tensor, nn

from fedmpi import models
from fedmpi.config import Model
from fedmpi.engine import Engine
from fedmpi.messages.clock import OFF, Clock
from fedmpi.messages.wire import Wire
from fedmpi.streams import Purpose, stream
from fedmpi.training import probe, rows
from fedmpi.training.theory import OF_CLIENTS
from tests.plain import FAMILIES, METHODS, member, play
from tests.small import Run, alike, refusal, run, small, smooth

WORLD = MPI.COMM_WORLD
THEORY = "evaluate.theory=true"
COLUMNS = [f"theory_{name}" for name in OF_CLIENTS]
PLACES = [
    *(("rounds", column) for column in ("theory_objective", "theory_gradient")),
    *(("clients", column) for column in COLUMNS),
]


# ---- a quadratic: a linear network without a loss of its own, cut between weights and shifts


class Shift(nn.Module):
    """Adds a parameter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((size,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def linear(
    settings: Model, shape: tuple[int, ...], classes: int, seed: int, *_: str
) -> nn.Sequential:
    """In place of `models.build`: x -> W x + b."""
    torch.manual_seed(seed)
    inside = int(np.prod(shape))
    front = nn.Sequential(nn.Flatten(), nn.Linear(inside, classes, bias=False))
    return nn.Sequential(OrderedDict(front=front, back=Shift(classes)))


def squares(outputs: Tensor, labels: Tensor) -> Tensor:
    """In place of the cross-entropy: half the squared distance from the label's unit vector."""
    wanted = torch.nn.functional.one_hot(labels, outputs.shape[1])
    return (outputs - wanted).square().sum(1).mean() / 2


@pytest.fixture
def quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network is linear, and every loss a half square: F is a quadratic."""
    monkeypatch.setattr(models, "build", linear)
    monkeypatch.setattr(rows, "cross_entropy", squares)


WORDS = ("data.shape=[1,2,2]", "data.classes=3", "data.separation=2.0", "lr=0.1", THEORY)
"""Four values a sample, three classes: twelve weights in the front, three shifts in the back."""


class Quadratic:
    """F_k(w) = w'H w / 2 - c'w + d over some samples, from their values alone."""

    def __init__(self, engine: Engine, some: ndarray) -> None:
        feed = engine.trainer.feed
        x = feed.x.reshape(len(feed.x), -1).double().numpy()[some]
        wanted = np.eye(feed.classes)[feed.y.numpy()[some]]
        # Row by row: output o of a sample is the sum of W[o] x and b[o].
        along = np.concatenate([x, np.ones((len(x), 1))], 1)
        gram, mixed = along.T @ along / len(x), along.T @ wanted / len(x)
        classes, inside = feed.classes, x.shape[1]
        weights = [o * inside + i for o in range(classes) for i in range(inside)]
        size = classes * inside + classes
        self.hessian, self.linear = np.zeros((size, size)), np.zeros(size)
        for o in range(classes):
            own = [*weights[o * inside : (o + 1) * inside], classes * inside + o]
            self.hessian[np.ix_(own, own)] = gram
            self.linear[own] = mixed[:, o]
        self.constant = np.square(wanted).sum() / len(x) / 2

    def value(self, w: ndarray) -> float:
        return float(w @ self.hessian @ w / 2 - self.linear @ w + self.constant)

    def gradient(self, w: ndarray) -> ndarray:
        return self.hessian @ w - self.linear

    def descended(self, w: ndarray, mask: ndarray, rate: float, steps: int) -> ndarray:
        """The model after so many steps of masked gradient descent: a power of an affine map."""
        size = len(w)
        step = np.eye(size + 1)
        step[:size, :size] -= rate * mask[:, None] * self.hessian
        step[:size, size] = rate * mask * self.linear
        return (np.linalg.matrix_power(step, steps) @ np.append(w, 1.0))[:size]


def clients_of(engine: Engine) -> tuple[list[Quadratic], ndarray]:
    """Each client's objective, and the clients' shares of samples."""
    shards = engine.population.shards
    sizes = np.array([len(shard) for shard in shards])
    return [Quadratic(engine, shard) for shard in shards], sizes / sizes.sum()


def last(found: Run) -> tuple[Any, Any]:
    """The last round's rows of rounds and clients."""
    rounds, clients = found.tables["rounds"], found.tables["clients"]
    return rounds[-1], clients[clients["round"] == rounds["round"][-1]]


@pytest.mark.usefixtures("quadratic")
@pytest.mark.parametrize("method", ["fedavg", "splitfed"])
def test_drift_of_gradient_descent_on_a_quadratic(method: str) -> None:
    """Whole batches, so that clients' models are powers of affine maps; no minibatch differs."""
    found = run(small(f"method.name={method}", *WORDS, "batch=300", "local_steps=7", "rounds=1"))
    each, shares = clients_of(found.engine)
    start = found.engine.flat.initial.double().numpy()
    ends = [one.descended(start, np.ones(15), 0.1, 7) for one in each]
    mean = sum(share * end for share, end in zip(shares, ends, strict=True))
    (rounds, clients) = last(found)
    wanted = [np.square(end - mean).sum() for end in ends]
    np.testing.assert_allclose(clients["theory_drift"], wanted, rtol=1e-4)
    np.testing.assert_allclose(clients["theory_variance"], 0, atol=1e-12)
    assert np.isnan(clients["theory_pruning"]).all() and np.isnan(clients["theory_rounding"]).all()
    gradient = sum(s * one.gradient(mean) for s, one in zip(shares, each, strict=True))
    assert rounds["theory_gradient"] == pytest.approx(np.square(gradient).sum(), rel=1e-4)
    value = sum(s * one.value(mean) for s, one in zip(shares, each, strict=True))
    assert rounds["theory_objective"] == pytest.approx(value, rel=1e-6)


@pytest.mark.usefixtures("quadratic")
def test_terms_of_fedsl_on_a_quadratic() -> None:
    """Two rounds to an average; masks are by magnitude, of the same initial front for everyone."""
    words = ("method.interval=2", "method.prune_every=2", "method.pruning=0.5", "method.bits=32")
    found = run(
        small(
            "method.name=fedsl",
            "method.dropout=0.0",
            *words,
            *WORDS,
            "batch=300",
            "local_steps=5",
            "rounds=2",
        )
    )
    each, shares = clients_of(found.engine)
    start = found.engine.flat.initial.double().numpy()
    mask = np.ones(15)
    mask[np.argsort(np.abs(start[:12]))[:6]] = 0
    models = [start * mask for _ in each]
    for _ in range(2):
        models = [one.descended(w, mask, 0.1, 5) for one, w in zip(each, models, strict=True)]
        ends = models
        back = sum(share * w[12:] for share, w in zip(shares, models, strict=True))
        models = [np.append(w[:12], back) for w in models]
    mean = sum(share * w for share, w in zip(shares, ends, strict=True))
    first, (rounds, clients) = found.tables["clients"][:5], last(found)
    for column in COLUMNS:
        assert np.isnan(first[column]).all(), "no average ends round 0"
    drifts = [np.square(w - mean).sum() for w in ends]
    np.testing.assert_allclose(clients["theory_drift"], drifts, rtol=1e-4)
    taken = np.square(np.sort(np.abs(start[:12]))[:6]).sum()
    np.testing.assert_allclose(clients["theory_pruning"], taken, rtol=1e-6)
    np.testing.assert_array_equal(clients["theory_rounding"], 0)
    w = np.where(mask > 0, mean, start)
    np.testing.assert_allclose(found.model, w, atol=1e-6)
    gradient = sum(s * one.gradient(w) for s, one in zip(shares, each, strict=True))
    assert rounds["theory_gradient"] == pytest.approx(np.square(gradient).sum(), rel=1e-4)


def rounding(g: ndarray, bits: int) -> float:
    """E||Q(g) - g||^2 of one tensor: of each value the variance of a weighted coin."""
    sizes = np.abs(g.astype(np.float32)).astype(float)
    step = (sizes.max() - sizes.min()) / (2**bits - 2)
    up = (sizes - sizes.min()) / step % 1
    return float((up * (1 - up)).sum() * step**2)


@pytest.mark.usefixtures("quadratic")
@pytest.mark.parametrize("bits", [2, 5])
def test_variance_and_rounding_are_those_of_the_next_rounds_minibatches(bits: int) -> None:
    words = ("method.name=fedsl", f"method.bits={bits}", "rounds=2", "batch=7")
    found = run(small(*words, *WORDS))
    engine, (_, clients) = found.engine, last(found)
    w = found.model.astype(float)
    for row in clients:
        client = int(row["client"])
        shard = engine.population.shards[client]
        order = shard[stream(1, Purpose.BATCH, 2, client).permutation(len(shard))]
        batches = [order[at : at + 7] for at in range(0, len(order), 7)]
        parts = np.array([len(some) for some in batches]) / len(order)
        gradients = np.array([Quadratic(engine, some).gradient(w) for some in batches])
        whole = Quadratic(engine, shard).gradient(w)
        variance = parts @ np.square(gradients - whole).sum(1)
        assert row["theory_variance"] == pytest.approx(variance, rel=1e-4)
        errors = [rounding(g[:12], bits) for g in gradients]
        assert row["theory_rounding"] == pytest.approx(parts @ errors, rel=1e-3)


@pytest.mark.usefixtures("quadratic")
def test_variance_is_that_of_draws_without_replacement_on_average() -> None:
    """Over passes: (n - B) / (B (n - 1)) times the variance of single samples."""
    engine = Engine(small(*WORDS, "batch=10", "partition.name=iid", "validation=0.0"))
    w, n = engine.flat.initial.double().numpy(), 60
    assert len(engine.population.shards[0]) == n
    each = np.array(
        [Quadratic(engine, np.array([one])).gradient(w) for one in engine.population.shards[0]]
    )
    single = np.square(each - each.mean(0)).sum(1).mean()
    about = engine.flat.initial, engine.clients.rounded
    seen = [engine.theory._gradient(t, 0, *about)[2] for t in range(150)]
    deviation = np.std(seen) / np.sqrt(len(seen))
    assert abs(np.mean(seen) - (n - 10) / (10 * (n - 1)) * single) < 4 * deviation
    assert deviation < 0.05 * np.mean(seen)


# ---- which methods, when, and what it costs


def test_methods_without_a_global_model_are_refused() -> None:
    for method in METHODS:
        said = refusal(f"method.name={method}", THEORY)
        settings = small(f"method.name={method}")
        assert ("wanted a method with a global model" in said) != settings.method.is_global


GLOBAL = [name for name in METHODS if small(f"method.name={name}").method.is_global]


@pytest.mark.parametrize("method", GLOBAL)
def test_every_global_model_has_a_gradient_and_drift_and_nothing_else_changes(method: str) -> None:
    """Bytes, simulated costs and models are those of a run without."""
    words = (f"method.name={method}", "devices.tiers=[{name='a'}]", "participation=0.6")
    plain, found = run(small(*words)), run(small(*words, THEORY))
    rounds, clients = found.tables["rounds"], found.tables["clients"]
    is_round = rounds["round"] >= 0
    for column in ("theory_objective", "theory_gradient"):
        assert np.isfinite(rounds[column][is_round]).all() and (rounds[column][is_round] > 0).all()
        assert np.isnan(plain.tables["rounds"][column]).all()
    own = clients[clients["round"] >= 0]
    assert np.isfinite(own["theory_variance"]).all() and (own["theory_variance"] >= 0).all()
    assert np.isfinite(own["theory_drift"]).all() and (own["theory_drift"] >= 0).all()
    has_errors = method == "fedsl"
    for column in ("theory_pruning", "theory_rounding"):
        assert np.isfinite(own[column]).all() == has_errors
    for table, column in PLACES:
        found.tables[table][column] = plain.tables[table][column] = 0
    alike(found, plain)


def test_terms_are_measured_in_due_rounds() -> None:
    words = ("method.name=fedsl", "method.interval=2", "rounds=7", "evaluate.every=3", THEORY)
    rounds = run(small(*words)).tables["rounds"]
    measured = rounds["round"][np.isfinite(rounds["theory_gradient"])]
    assert measured.tolist() == [5, 6], "evaluated in 2, 5 and 6; averaged in 1, 3, 5 and 6"


def test_lost_uploads_have_no_drift_and_newcomers_no_share() -> None:
    words = ("devices.dropouts=0.5", "newcomers=1", "evaluate.final=evaluate", "rounds=4", THEORY)
    found = run(small(*words))
    clients = found.tables["clients"]
    assert clients["lost"].any() and not clients["lost"].all()
    np.testing.assert_array_equal(np.isnan(clients["theory_drift"]), clients["lost"])
    assert np.isfinite(clients["theory_variance"]).all()
    engine, w = found.engine, found.engine.server.w
    shards = engine.population.shards[:4]
    total = sum(
        len(shard) * probe.gradient(engine.trainer, client, w, shard).double().numpy()
        for client, shard in enumerate(shards)
    )
    wanted = np.square(total / sum(map(len, shards))).sum()
    assert found.tables["rounds"]["theory_gradient"][-1] == pytest.approx(wanted, rel=1e-5)


def test_waves_and_memory_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients one by one, and their models in a file, as if there were no memory."""
    words = ("method.name=splitfed", THEORY, "rounds=3")
    wanted, narrow = run(small(*words)), Engine(small(*words, "state.memory=0"))
    narrow.width = 2
    monkeypatch.setattr(narrow.theory, "_blocks", lambda clients: ([int(c)] for c in clients))
    outcomes = [outcome for outcome in play(narrow) if outcome is not None]
    for table, column in PLACES:
        found = np.concatenate([outcome.tables[table][column] for outcome in outcomes])
        np.testing.assert_array_equal(found, wanted.tables[table][column])


def test_stacked_rows_measure_the_same_terms() -> None:
    words = ("method.name=fedsl", THEORY, "rounds=3", "method.bits=4")
    one, stacked = run(small(*words)), run(small(*words, "rows=5"))
    for table, column in PLACES:
        pair = (found.tables[table][column] for found in (stacked, one))
        np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-6, err_msg=column)


@pytest.mark.parallel([1, 3])
def test_local_statistics_are_each_clients_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """F is the mean of what clients see with the statistics that they keep."""
    monkeypatch.setattr(models, "build", smooth)
    settings = small("statistics=local", THEORY, "rounds=3", "participation=0.6")
    ours, alone = run(settings, WORLD), run(settings)
    engine, w = alone.engine, alone.engine.server.w
    losses = [
        float(probe.loss(engine.trainer, client, w, torch.from_numpy(shard))[0]) * len(shard)
        for client, shard in enumerate(engine.population.shards)
    ]
    wanted = sum(losses) / sum(map(len, engine.population.shards))
    assert alone.tables["rounds"]["theory_objective"][-1] == pytest.approx(wanted, rel=1e-5)
    assert len(engine.trainer.statistics) > 0
    if WORLD.rank == 0:
        for table, column in PLACES:
            one, other = (found.tables[table][column] for found in (ours, alone))
            np.testing.assert_array_equal(one, other, err_msg=column)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "spatl"])
def test_ranks_do_not_matter(family: str) -> None:
    settings = small(*member(family, THEORY, "participation=0.6", "rounds=3"))
    ours, alone = run(settings, WORLD), run(settings)
    if WORLD.rank == 0:
        assert ours.sha256 == alone.sha256
        for table, column in PLACES:
            one, other = (found.tables[table][column] for found in (ours, alone))
            np.testing.assert_array_equal(one, other, err_msg=column)
        assert np.isfinite(ours.tables["rounds"]["theory_gradient"]).any()


def test_theory_is_off_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves 100 seconds with each gradient that is looked at."""
    engine, now = Engine(small("method.name=fedsl", THEORY)), 0.0
    loss = probe.loss

    def looking(*args: Any) -> tuple[Tensor, Tensor]:
        nonlocal now
        now += 100
        return loss(*args)

    monkeypatch.setattr(probe, "loss", looking)
    monkeypatch.setattr("fedmpi.messages.clock.perf_counter", lambda: now)
    clock = Clock()
    for outcome in engine.rounds(Wire(clock, MPI.COMM_SELF), clock):
        assert outcome is not None
        assert outcome.tables["rounds"]["seconds"][0] == 0
        assert clock.seconds[list(OFF)].sum() >= 100
