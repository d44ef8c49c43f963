"""FedSL's algebra: what is pruned, dropped, rounded, kept at home and averaged, by plain torch."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.clients.burden import Burden
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages.codec import Message
from fedmpi.streams import Purpose, key, stream
from tests import coded, plain
from tests.plain import CNN, EVERYTHING, network, play, vector
from tests.small import run, small, smooth
from tests.suites.test_rows import compare

NAME = "method.name=fedsl"
OFF = ("method.pruning=0.0", "method.bits=32", "method.dropout=0.0")
CHANNELS = ("method.structured=channels", "method.cut=hidden2", "method.pruning=0.5")
DEVICE = "devices.tiers=[{name='box'}]"


def engine(*words: str) -> Engine:
    return Engine(small(NAME, *words))


@pytest.mark.parametrize(
    "words",
    [
        ("momentum=0.9", "weight_decay=0.01", "clip=1.0", "epochs=2"),
        ("participation=0.6", "rounds=4"),
        ("method.tail=head", "optimizer=adam", "lr=0.01"),
        (*CNN, "method.cut=dense", "aggregation.weights=equal"),
        ("devices.dropouts=0.4", "rounds=3"),
    ],
    ids=" ".join,
)
def test_with_everything_off_it_is_splitfed_bit_for_bit(words: tuple[str, ...]) -> None:
    found, wanted = run(small(NAME, *OFF, *words)), run(small("method.name=splitfed", *words))
    assert found.sha256 == wanted.sha256
    for column in ("loss", "accuracy", "personal"):
        np.testing.assert_array_equal(*(r.tables["clients"][column] for r in (found, wanted)))


# ---- a plain loop


def rounded(g: Tensor, bits: int, draws: np.ndarray) -> Tensor:
    """One tensor's values at one of 2^b - 1 magnitudes, up with the probability of the rest."""
    if bits == 32:
        return g
    magnitudes = g.abs().double().numpy()
    low, high = magnitudes.min(), magnitudes.max()
    step = (high - low) / (2**bits - 2)
    if not step:
        return g
    below = np.floor((magnitudes - low) / step)
    up = draws >= 1 - ((magnitudes - low) / step - below)
    return torch.from_numpy((low + step * (below + up)) * np.sign(g.numpy())).float()


def masked(found: Engine, w: Tensor, square: Tensor | None) -> Tensor:
    """The mask of a front [f] that has the weights w and had the mean g^2; by magnitude if None."""
    method, worth = found.settings.method, w.double().square()
    if square is not None:
        worth *= square
    if method.structured == "weights":
        sizes = [64 * 12, 12, 12 * 8, 8][: 4 if method.cut == "hidden2" else 2]
        is_bias = torch.cat([torch.full((n,), i % 2 == 1) for i, n in enumerate(sizes)])
        weights = len(w) - int(is_bias.sum())
        order = worth.masked_fill(is_bias, torch.inf).argsort()
        return torch.ones(len(w)).index_fill(0, order[: round(method.pruning * weights)], 0)
    rows, shifts, _, last = worth.split([64 * 12, 12, 12 * 8, 8])
    each = rows.view(12, 64).sum(1) + shifts
    stays = torch.zeros(12)
    stays[each.argsort(descending=True)[: ceil((1 - method.pruning) * 12)]] = 1
    there = stays.expand(8, 12).reshape(-1)
    return torch.cat([stays.repeat_interleave(64), stays, there, torch.ones(len(last))])


def rounds(found: Engine) -> Iterator[Tensor]:
    """The model after each round, as the docstring says, on torch's modules."""
    settings, method = found.settings, found.settings.method
    stages = 2 if method.cut == "hidden2" else 1
    size = len(vector(network(found, found.flat.initial)[:stages]))
    w = found.flat.initial.clone()
    own: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}
    masks: dict[int, Tensor] = {}
    for t in range(settings.rounds):
        clients = found.population.sample(t)
        sizes = torch.tensor([float(len(found.population.shards[c])) for c in clients])
        backs = []
        for client in clients:
            front = w[:size].clone() if t % method.interval == 0 else own[client].clone()
            back = w[size:].clone()
            is_known = client in squares or method.first == "magnitude"
            if t % method.prune_every == 0 and is_known:
                masks[client] = masked(found, front, squares.get(client))
            mask, mean = masks.get(client, torch.ones(size)), squares.get(client)
            for step, some in enumerate(plain.positions(found, t, client)):
                module = network(found, torch.cat([front * mask, back]))
                a = module[:stages](found.trainer.feed.x[some])
                random = stream(settings.seed, Purpose.SURVIVOR, t, client, step, 0)
                z = random.random(a.numel(), np.float32) >= method.dropout
                z = torch.from_numpy(z).view_as(a) / (1 - method.dropout)
                loss = cross_entropy(module[stages:](a * z), found.trainer.feed.y[some])
                parameters = list(module.parameters())
                each = torch.autograd.grad(loss, parameters)
                ours = each[: 2 * stages]
                g = torch.cat([piece.reshape(-1) for piece in ours])
                beta, square = method.smoothing, g.double().square()
                mean = square if mean is None else beta * mean + (1 - beta) * square
                secret = key(settings.seed, Purpose.ROUND_STEP, t, client, step)
                ends = np.cumsum([o.numel() for o in ours])[:-1]
                draws = np.split(coded.draws(secret, size), ends)
                pairs = zip(ours, draws, strict=True)
                q = torch.cat([rounded(o.reshape(-1), method.bits, d) for o, d in pairs])
                front = front - settings.lr * mask * q
                theirs = torch.cat([piece.reshape(-1) for piece in each[2 * stages :]])
                back = back - settings.lr * theirs
            if method.structured == "channels":
                usual = mean[mask > 0].mean()
                mean = torch.where(mask > 0, mean, squares.get(client, usual))
            own[client], squares[client] = front, mean
            backs.append(back)
        w = torch.cat([w[:size], (sizes / sizes.sum()) @ torch.stack(backs)])
        if (t + 1) % method.interval == 0 or t + 1 == settings.rounds:
            kept = torch.stack([masks.get(client, torch.ones(size)) for client in clients])
            values = kept * torch.stack([own[client] for client in clients])
            weight = sizes @ kept
            if method.count_pruned_as_zero:
                w[:size] = sizes @ values / sizes.sum()
            else:
                w[:size] = torch.where(weight > 0, sizes @ values / weight.clamp(min=1), w[:size])
        yield w.clone()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("method.interval=3", "method.dropout=0.5"),
        ("method.interval=3", "participation=0.6", "method.bits=32"),
        ("method.prune_every=2", "method.pruning=0.6", "method.count_pruned_as_zero=true"),
        (*CHANNELS, "method.bits=32"),
        (*CHANNELS, "method.interval=2", "method.bits=4", "participation=0.6"),
        ("method.cut=hidden2", "method.pruning=0.5", "method.bits=2"),
        ("method.first=nothing", "method.smoothing=0.0"),
        (*CHANNELS, "method.first=nothing", "method.smoothing=0.5", "method.interval=2"),
    ],
    ids=" ".join,
)
def test_rounds_against_a_plain_loop(words: tuple[str, ...]) -> None:
    """Five rounds, of which with an interval of 3 the last ends one early.

    Of whole batches, so that hardly a unit is dead and all that it makes worth the same, nothing.
    """
    whole = ("partition.name=iid", "local_steps=3", "lr=0.2")
    found = engine(*words, *whole, "rounds=5")
    for _, wanted in zip(play(found), rounds(found), strict=True):
        np.testing.assert_allclose(found.server.w, wanted, rtol=1e-4, atol=2e-5)


# ---- masks


def history(found: Engine) -> list[dict[int, Tensor]]:
    """Each round's masks, by client."""
    memory = found.clients.memory
    return [
        {client: memory.mask(client).clone() for client in found.population.sample(t)}
        for t, _ in enumerate(play(found))
    ]


def test_pruned_weights_come_back() -> None:
    found = engine("rounds=6", "method.pruning=0.5", "lr=0.3")
    masks = history(found)
    for of_round in masks:
        for mask in of_round.values():
            assert int(mask[: 64 * 12].sum()) == 64 * 6
            assert (mask[64 * 12 :] == 1).all(), "biases stay"
    for one, other in pairwise(masks[1:]):
        assert all(((other[c] > one[c]) & (one[c] == 0)).any() for c in one)


def test_channels_come_back() -> None:
    found = engine(*CHANNELS, "rounds=10", "lr=0.3")
    masks = [torch.stack(list(each.values()))[:, 64 * 12 : 65 * 12] for each in history(found)]
    assert all((mask.sum(1) == 6).all() for mask in masks)
    assert any((other > one).any() for one, other in pairwise(masks[1:]))


def test_what_is_pruned_keeps_its_value_and_changes_nothing() -> None:
    """In a round where all prune alike: with one client, and the same masks for two rounds."""
    words = ("method.prune_every=2", "method.pruning=0.5", "method.first=nothing")
    found = engine("clients=1", "rounds=4", *words)
    before = found.server.w.clone()
    for t, _ in enumerate(play(found)):
        mask = found.clients.memory.mask(0)
        size, w = len(mask), found.server.w
        gone = mask == 0
        assert torch.equal(w[:size][gone], before[:size][gone])
        assert int(gone.sum()) == (0 if t < 2 else 64 * 6)
        assert (w[:size][~gone] != before[:size][~gone]).float().mean() > 0.5
        whole = found.server.personal(0)
        assert torch.equal(whole[:size][gone], torch.zeros(int(gone.sum())))
        before = w.clone()


@pytest.mark.parametrize("as_zero", ["true", "false"])
def test_a_mean_is_over_those_who_keep_a_value(as_zero: str) -> None:
    found = engine(f"method.count_pruned_as_zero={as_zero}")
    server, clients = found.server, found.clients
    size = server.sections.front
    server.open(0, [(1,), (3,)])
    clients.receive(0, [1, 3], server.broadcast(0))
    w = server.w.clone()
    kept = torch.ones(2, size)
    kept[0, :5], kept[1, 3:9] = 0, 0
    own = torch.randn(2, size, generator=torch.Generator().manual_seed(1)) * kept
    for row, (client, weight) in enumerate(((1, 3.0), (3, 1.0))):
        clients.memory.choices[client] = kept[row, : 64 * 12] > 0
        clients.memory.release()
        clients.memory.starts[client] = w[:size]
        blocks = clients.upload(0, client, own[row])
        server.absorb(0, Message(client, blocks, weight))
    server.step(0)
    shares = torch.tensor([3.0, 1.0])
    wanted = shares @ own / (4 if as_zero == "true" else (shares @ kept).clamp(min=1))
    if as_zero == "false":
        wanted[3:5] = w[3:5]
    torch.testing.assert_close(server.w[:size], wanted, rtol=1e-5, atol=1e-6)


def test_devices_say_how_much_they_keep() -> None:
    tiers = "devices.tiers=[{name='a',share=0.4},{name='b',share=0.6,keep=0.25}]"
    found = engine(tiers, "rounds=3")
    for masks in history(found):
        for client, mask in masks.items():
            keep = found.fleet.tier(client).keep or 1.0
            assert int(mask[: 64 * 12].sum()) == 64 * 12 * keep


@pytest.mark.parametrize("words", [("method.pruning=0.75",), CHANNELS], ids=["weights", "channels"])
@pytest.mark.parametrize("first", ["magnitude", "nothing"])
def test_flops_fall_once_something_is_pruned(first: str, words: tuple[str, ...]) -> None:
    """By half of the channels in front and behind them, or by three quarters of the weights."""
    found = run(small(NAME, *words, DEVICE, "rounds=3", f"method.first={first}"))
    dense = 64 * 12 + (12 * 8 if words is CHANNELS else 0)
    left = dense / 2 if words is CHANNELS else dense / 4
    for row in found.tables["clients"]:
        each = left if row["round"] or first == "magnitude" else dense
        assert row["flops"] == pytest.approx(3 * 2 * each * row["samples"] * 2)
    meter, clients = found.engine.meter, found.engine.clients
    whole = Burden(clients.held, 1, 16, bits=8)
    assert meter.memory(clients.burden(2, 0)).total < meter.memory(whole).total
    served = found.tables["rounds"]["server_flops"]
    assert len(set(served.tolist())) == 1, "whatever fronts are left, the server has as much to do"
    assert served[0] > 0


# ---- gradients


def test_gradients_are_right_on_average() -> None:
    """Over steps, that is over draws: each value within five of the largest standard errors."""
    found = engine("method.bits=3", "method.pruning=0.0")
    clients, size, draws = found.clients, found.clients.held.size, 800
    g = torch.randn(1, size, generator=torch.Generator().manual_seed(1))
    every = []
    for step in range(draws):
        found.trainer.at = step
        every.append(g.clone())
        clients.adjust((2,), g, every[-1])
    stacked = torch.cat(every)
    off = (stacked.mean(0) - g[0]).abs()
    assert off.max() <= 5 * stacked.std(0).max() / draws**0.5
    assert (stacked.std(0) > 1e-3).float().mean() > 0.9, "it is random"
    for start, stop in ((0, 64 * 12), (64 * 12, 65 * 12)):
        assert len(stacked[:, start:stop].abs().unique()) <= 7, "magnitudes of each tensor"
    assert torch.equal(stacked.sign(), g.sign().expand_as(stacked))


def test_what_is_pruned_has_no_step() -> None:
    found = engine("rounds=2", "momentum=0.9")
    list(play(found))
    mask = found.clients.memory.mask(1)
    g = torch.ones(1, len(mask))
    found.clients.adjust((1,), g, g)
    assert torch.equal(g[0] != 0, mask > 0)
    assert (mask == 0).any()


# ---- what is judged, and when


def test_nothing_is_dropped_where_a_model_is_judged() -> None:
    found = engine("rounds=2", "method.dropout=0.9")
    for outcome in play(found):
        module = network(found, found.server.w)
        x, y = found.evaluation.test_x, found.evaluation.test_y
        accuracy = plain.accuracy(module, x, y)
        assert outcome.tables["rounds"]["accuracy"][0] == pytest.approx(accuracy, abs=1e-6)


def test_between_two_means_only_the_back_moves() -> None:
    found = engine("method.interval=3", "rounds=6")
    size, before = found.server.sections.front, found.server.w.clone()
    for t, outcome in enumerate(play(found)):
        w, ends = found.server.w, t % 3 == 2
        assert torch.equal(w[:size], before[:size]) != ends
        assert not torch.equal(w[size:], before[size:])
        assert np.isnan(outcome.tables["clients"]["personal"]).all() != ends
        before = w.clone()


@pytest.mark.parametrize("sampling", ["uniform", "samples", "trace"])
@pytest.mark.parametrize("interval", [1, 3])
def test_who_goes_on_was_there_at_the_last_mean(
    interval: int, sampling: str, tmp_path: Path
) -> None:
    """Of five clients two take part: the same two from one mean to the next, and then others."""
    words = [f"method.interval={interval}", f"sampling={sampling}"]
    if sampling == "trace":
        spans = "0,0,3\n1,0,2\n2,1,4\n3,2,6\n4,5,6\n"
        (tmp_path / "trace.csv").write_text(f"client,first,last\n{spans}")
        words.append(f"trace={tmp_path / 'trace.csv'}")
    found = engine(*words, "participation=0.4", "rounds=12")
    drawn = [found.population.sample(t) for t in range(12)]
    for t in range(12):
        assert drawn[t] == drawn[t - t % interval]
    assert len(set(drawn)) > 1


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("interval", [1, 3])
def test_a_budget_ends_a_run_at_a_mean(interval: int) -> None:
    """A run that reaches its budget in round 1 is the run of 2, or with an interval of 3 rounds."""
    words = (NAME, f"method.interval={interval}", "participation=0.4")
    world = MPI.COMM_WORLD
    free, budget = run(small(*words, "rounds=9"), world), None
    if world.rank == 0:
        budget = f"up_bytes:{int(free.tables['rounds']['up'][:2].sum())}B"
    budget = world.bcast(budget)
    short = run(small(*words, "rounds=9", f"budget={budget}"), world)
    wanted = run(small(*words, f"rounds={3 if interval == 3 else 2}"), world)
    if world.rank == 0:
        assert short.sha256 == wanted.sha256
        for column in ("round", "up", "down", "loss", "accuracy"):
            found, other = (each.tables["rounds"][column] for each in (short, wanted))
            np.testing.assert_array_equal(found, other)


# ---- refusals


def refused(words: Sequence[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        engine(*words)


def test_what_is_refused() -> None:
    channels = "method.structured=channels"
    refused((channels,), r"method\.cut = 'hidden1': wanted .* there are: hidden2")
    refused((channels, "model.hidden=[9]"), "there are: none")
    idle = ("prune_every=2", "count_pruned_as_zero=true", "first=nothing", "smoothing=0.5")
    for word in (channels, *(f"method.{one}" for one in idle)):
        refused((word, "method.pruning=0.0"), "where nothing is pruned")
    for word in ("bits=17", "bits=1", "pruning=1.0", "dropout=1.0", "interval=0"):
        refused((f"method.{word}",), f"method.{word.partition('=')[0]}")
    refused(("aggregation.rule=median",), "whole updates")
    tiers = "devices.tiers=[{gflops=1.0,keep=0.5}]"
    refused(("method.pruning=0.7", tiers), r"method\.pruning = 0\.7: .* `keep`, which say it, too")
    tiers = "devices.tiers=[{gflops=1.0,bits=4}]"
    refused(("method.bits=16", tiers), r"method\.bits = 16: .* `bits`, which say it, too")


@pytest.mark.parametrize("words", [(), ("method.tail=head", "model.hidden=[12,8,6]")], ids=str)
def test_stacked_narrow_fronts_are_those_one_by_one(words: tuple[str, ...]) -> None:
    compare((NAME, *CHANNELS, *words, *EVERYTHING, "batch=7", "rounds=3"), 3)


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_statistics_of_narrow_fronts_are_trained(
    statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of channels that were cut out stay, where they travel."""
    monkeypatch.setattr(models, "build", smooth)
    words = ("method.cut=dense", "method.structured=channels", "method.pruning=0.5")
    found = engine(*words, f"statistics={statistics}", "clients=1", "rounds=3")
    front, before = found.clients.held, torch.empty(0)
    for t, _ in enumerate(play(found)):
        mask, w = found.clients.memory.mask(0), found.server.w[: front.size]
        stat_positions = front.stat_positions
        assert len(stat_positions) == (20 if statistics == "averaged" else 0)
        if t and len(stat_positions):
            assert torch.equal(
                w[stat_positions] != before[stat_positions], mask[stat_positions] > 0
            )
            assert (mask[stat_positions] == 0).any()
        before = w.clone()
    assert before.isfinite().all()


def test_a_tail_keeps_labels_at_home_and_leaks_no_more_than_a_front() -> None:
    """What survives at its cut is as much as at the front's: 8 values a sample instead of 12."""
    found = run(small(NAME, "method.tail=head", "method.dropout=0.5"))
    for row in found.tables["clients"]:
        samples = 2 * row["samples"]
        assert row["up_label"] == 0
        for name, values in (
            ("up_activation", 12),
            ("down_activation", 8),
            ("up_gradient", 8),
            ("down_gradient", 12),
        ):
            assert row[name] == pytest.approx(4 * samples * values / 2, rel=0.2)
