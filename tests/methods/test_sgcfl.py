"""Sparse-gradient collaborative learning's algebra: SGQ, DQ, distances and the weights by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis import frames
from fedmpi import models
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages.codec import Block, Kind, Message, pack, unpack
from fedmpi.results import tables
from fedmpi.results.record import DONE, Record, begin
from fedmpi.split.cuts import Crossing
from tests import plain
from tests.plain import CNN, network, optimiser, play, vector
from tests.small import Run, alike, refusal, run, small, smooth

OFF = ("cut_gradient=false", "model_gradient=false")
NOTHING = (*(f"method.{word}" for word in OFF), "method.weight_rule=fedavg")
SGD = ("momentum=0.9", "weight_decay=0.01", "participation=0.6", "rounds=3", "epochs=2", "seed=2")
RULES = ("inv_dist", "exp_dist", "prop_dist", "fedavg")
WORLDS = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])
TAILS = pytest.mark.parametrize("tail", [(), ("method.tail=head",)], ids=["", "tail"])


def words(*more: str) -> tuple[str, ...]:
    return "method.name=sgcfl", *more


def engine_of(*more: str) -> Engine:
    """An engine that has not begun."""
    return Engine(small(*words(*more)))


def coded(g: np.ndarray, sizes: Sequence[int], sparsity: float, bits: int) -> np.ndarray:
    """DQ(SGQ(g)) by its formulas, tensor by tensor."""
    found = np.zeros_like(g)
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        part = g[start : start + size]
        count = max(1, ceil(round((1 - sparsity) * size, 6)))
        mask = np.sort(np.argsort(-np.abs(part), kind="stable")[:count])
        v = part[mask]
        if bits < 32 and v.max() > v.min():
            s = (v.max() - v.min()) / (2**bits - 1)
            v = v.min() + s * np.round((v - v.min()) / s)
        found[start + mask] = v
    return found


@WORLDS
@TAILS
@pytest.mark.parametrize(
    "more", [(), SGD, ("devices.dropouts=0.4", "rounds=4"), ("aggregation.weights=equal",)], ids=str
)
def test_with_nothing_on_it_is_splitfed(
    words: tuple[str, ...], tail: tuple[str, ...], more: tuple[str, ...]
) -> None:
    """Bit for bit, and the bytes are the same."""
    found = run(small("method.name=sgcfl", *NOTHING, *words, *tail, *more))
    wanted = run(small("method.name=splitfed", *words, *tail, *more))
    assert found.sha256 == wanted.sha256
    for column in ("loss", "accuracy", "personal", *tables.BYTES):
        np.testing.assert_array_equal(*(some.tables["clients"][column] for some in (found, wanted)))


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_with_nothing_on_it_is_splitfed_with_batch_norm(
    statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding: statistics are added up by themselves."""
    monkeypatch.setattr(models, "build", smooth)
    found = run(small("method.name=sgcfl", *NOTHING, f"statistics={statistics}"))
    wanted = run(small("method.name=splitfed", f"statistics={statistics}"))
    np.testing.assert_allclose(found.model, wanted.model, rtol=1e-5, atol=1e-6)


def test_keeping_all_as_it_is_is_splitfed() -> None:
    """On, but without loss: nothing is left out, and no value is rounded."""
    given = ("method.sparsity=0.0", "method.bits=32", "method.weight_rule=fedavg", "rounds=3")
    found, wanted = run(small(*words(*given))), run(small("method.name=splitfed", "rounds=3"))
    assert found.sha256 == wanted.sha256


@dataclass
class Local:
    """What a client did in a round: how the whole model changed, its update as it came."""

    change: np.ndarray
    samples: int


def learned(engine: Engine, t: int, client: int, w: Tensor) -> Local:
    """A client's round on torch's modules and optimisers, the chain rule applied by hand."""
    method, feed = engine.settings.method, engine.trainer.feed
    whole = network(engine, w)
    parts = [whole[:1], whole[1:-1], whole[-1:]] if method.tail else [whole[:1], whole[1:]]
    before = [vector(part) for part in parts]
    sgds = [optimiser(engine, part, t) for part in parts]
    for positions in plain.positions(engine, t, client):
        outputs, inputs = [], [feed.x[positions]]
        for sgd, part in zip(sgds, parts, strict=True):
            sgd.zero_grad()
            outputs.append(part(inputs[-1]))
            inputs.append(outputs[-1].detach().requires_grad_())
        cross_entropy(outputs[-1], feed.y[positions]).backward()
        for output, given in reversed(list(zip(outputs[:-1], inputs[1:-1], strict=True))):
            g = given.grad.numpy().reshape(-1)
            if method.cut_gradient:
                g = coded(g, [len(g)], method.sparsity, method.bits)
            output.backward(torch.from_numpy(g).view_as(output))
        for sgd in sgds:
            sgd.step()
    changes = [(vector(part) - start).numpy() for part, start in zip(parts, before, strict=True)]
    if method.model_gradient:
        for place in (0, 2)[: len(parts) - 1]:
            sizes = [parameter.numel() for parameter in parts[place].parameters()]
            changes[place] = coded(changes[place], sizes, method.sparsity, method.bits)
    return Local(np.concatenate(changes), len(engine.population.shards[client]))


def shares(rule: str, samples: Sequence[int], distances: Sequence[float]) -> np.ndarray:
    """Weights by their formulas."""
    p, d = np.array(samples) / sum(samples), np.array(distances)
    raw = {
        "inv_dist": p / (d + 1e-8),
        "exp_dist": p * np.exp(-d / d.mean()),
        "prop_dist": p * d,
        "fedavg": p,
    }[rule]
    return raw / raw.sum()


@WORLDS
@TAILS
@pytest.mark.parametrize(
    "own",
    [
        *((f"method.weight_rule={rule}",) for rule in RULES),
        *((f"method.weight_rule={rule}", "method.per_step=true") for rule in RULES[:3]),
        ("method.cut_gradient=false",),
        ("method.model_gradient=false",),
        ("method.sparsity=0.5",),
    ],
    ids=str,
)
def test_rounds_equal_plain_training(
    own: tuple[str, ...], tail: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """With codes of 16 bits, for where rounding chooses another code it matters little then."""
    engine = engine_of("method.bits=16", *own, *tail, *SGD, *words)
    rule = engine.settings.method.weight_rule
    w = engine.server.w.clone()
    for t, outcome in enumerate(play(engine)):
        clients = engine.population.sample(t)
        locals_ = [learned(engine, t, client, w) for client in clients]
        distances = [float(np.linalg.norm(local.change.astype("f8"))) for local in locals_]
        steps = [2 * ceil(local.samples / 16) for local in locals_]
        each = np.divide(distances, steps if engine.settings.method.per_step else 1).tolist()
        weights = shares(rule, [local.samples for local in locals_], each)
        wanted = w.numpy() + sum(
            a * local.change for a, local in zip(weights, locals_, strict=True)
        )
        np.testing.assert_allclose(engine.server.w, wanted, rtol=1e-3, atol=5e-5)
        rows = outcome.tables["clients"]
        np.testing.assert_allclose(rows["distance"], distances, rtol=1e-3)
        np.testing.assert_allclose(rows["weight"], weights, rtol=1e-3)
        w = engine.server.w.clone()


@pytest.mark.parametrize("bits", [2, 5, 8, 16, 32])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.999])
@TAILS
def test_what_arrives_is_dq_of_sgq(tail: tuple[str, ...], sparsity: float, bits: int) -> None:
    """At the cut, of a batch as one tensor; of an update, of each parameter. By the wire."""
    engine = engine_of(f"method.sparsity={sparsity}", f"method.bits={bits}", *tail)
    server, clients = engine.server, engine.clients
    g = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(5))
    for cut, one, other in ((0, server, clients), (1, clients, server)):
        crossing = Crossing(Kind.GRADIENT, cut, 0, 2, 1)
        found = other.decode(crossing, sent(one.encode(crossing, g)))
        wanted = coded(g.numpy().reshape(-1), [g.numel()], sparsity, bits)
        np.testing.assert_allclose(found.view(-1), wanted, rtol=1e-5, atol=1e-6)
        if bits == 32:
            assert set(found.view(-1).tolist()) <= {0.0, *g.view(-1).tolist()}
        crossing = crossing._replace(kind=Kind.ACTIVATION)
        (block,) = one.encode(crossing, g)
        assert torch.equal(other.decode(crossing, [block]).view_as(g), g), "dense"
    clients.start = torch.zeros(len(clients.start))
    update = torch.randn(len(clients.start), generator=torch.Generator().manual_seed(6))
    found = server.dense(0, 2, sent(clients.upload(0, 2, update)))
    front, _, end = engine.settings.method.parts(engine.flat)
    sizes = [p.stop - p.start for part in (front, end) for p in part.parameters]
    wanted = coded(update.numpy(), sizes, sparsity, bits)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def sent(blocks: list[Block]) -> Sequence[Block]:
    """Blocks as they come from the wire."""
    (message,), _ = unpack(pack([Message(0, blocks, 1.0)]).data)
    return message.blocks


def test_rounding_at_random_is_drawn_for_each_step_and_cut() -> None:
    engine = engine_of("method.stochastic=true", "method.bits=3", "method.sparsity=0.0")
    g, found = torch.randn(400, generator=torch.Generator().manual_seed(5)), []
    for ids in ((0, 1, 2, 3), (1, 1, 2, 3), (0, 0, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4)):
        crossing = Crossing(Kind.GRADIENT, *ids)
        one, again = (engine.server.encode(crossing, g)[0].values for _ in range(2))
        np.testing.assert_array_equal(one, again)
        found.append(tuple(one.tolist()))
    assert len(set(found)) == 5
    crossings = [Crossing(Kind.GRADIENT, 0, t, 2, 3) for t in range(2000)]
    some = [engine.server.decode(c, engine.server.encode(c, g)) for c in crossings]
    step = float(g.max() - g.min()) / 7
    assert float((torch.stack(some).mean(0) - g).abs().max()) < 5 * step / 2 / 2000**0.5


def test_what_a_residual_leaves_is_sent_later() -> None:
    """Sent + residual = update + old residual, over a run, for every client."""
    engine = engine_of("feedback=classic", "participation=0.6", "rounds=5")
    clients, server = engine.clients, engine.server
    assert engine.settings.feeds_back
    upload, absorb = clients.upload, server.absorb
    owed: dict[int, Tensor] = {}

    def watch(t: int, client: int, w: Tensor) -> list[Block]:
        owed[client] = owed.get(client, 0) + w - clients.start
        return upload(t, client, w)

    def listen(t: int, message: Message) -> None:
        absorb(t, message)
        client = message.client
        owed[client] = owed[client] - server.updates[client]
        np.testing.assert_allclose(clients.feedback.residuals[client], owed[client], atol=1e-6)

    clients.upload, server.absorb = watch, listen
    list(play(engine))
    assert len(owed) > 3


@TAILS
def test_what_a_residual_at_the_cut_leaves_is_sent_later(tail: tuple[str, ...]) -> None:
    """Of each sample: sent + residual = gradients + old residual, per unit of its own loss."""
    engine = engine_of("method.cut_feedback=true", "participation=0.6", "rounds=3", *tail)
    assert engine.method.keeps_state == bool(tail)
    owed: dict[tuple[int, int], Tensor] = {}
    sides = {0: engine.server, 1: engine.clients}

    def watch(side: Any, encode: Any, crossing: Crossing, values: Tensor) -> list[Block]:
        blocks = encode(crossing, values)
        if crossing.kind != Kind.GRADIENT:
            return blocks
        steps = list(engine.trainer.feed.picks(crossing.t, crossing.client))
        samples = steps[crossing.step].positions.tolist()
        assert len(samples) == len(values)
        arrived = side.decode(crossing, sent(blocks)).view(len(values), -1)
        rests = len(values) * (values.flatten(1) - arrived)
        for sample, rest in zip(samples, rests, strict=True):
            owed[crossing.cut, sample] = owed.get((crossing.cut, sample), 0) + rest
        return blocks

    for side in sides.values():
        side.encode = partial(watch, side, side.encode)
    list(play(engine))
    assert {cut for cut, _ in owed} == ({0, 1} if tail else {0})
    for (cut, sample), rest in owed.items():
        np.testing.assert_allclose(sides[cut].residuals.store[sample], rest, atol=1e-5)


@pytest.mark.parallel([1, 2, 3])
@TAILS
def test_residuals_at_the_cut_do_not_depend_on_ranks(tail: tuple[str, ...]) -> None:
    more = ("method.cut_feedback=true", "method.codes=magnitude", "participation=0.6", "rounds=3")
    settings = small(*words(*more, *tail))
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alike(found, run(settings), but=("ranks", "clients"))
        plainly = run(small(*words("participation=0.6", "rounds=3", *tail)))
        assert found.sha256 != plainly.sha256
        columns = ("up_gradient", "down_gradient", "up_mask", "down_mask")
        for column in columns:
            np.testing.assert_array_equal(
                *(some.tables["clients"][column] for some in (found, plainly))
            )


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("method.cut_gradient=false",), "method.cut_feedback = true: wanted method.cut_gradient"),
        (
            ("method.bits=32", "method.sparsity=0.0"),
            "method.cut_feedback = true: wanted method.sparsity above 0 or method.bits below 32",
        ),
        (("augment=[flip]",), "method.cut_feedback = true: wanted no augment"),
    ],
)
def test_residuals_at_the_cut_of_nothing_are_refused(more: tuple[str, ...], match: str) -> None:
    assert match in refusal(*words("method.cut_feedback=true", *more))


def test_codes_of_nothing_are_refused() -> None:
    for more in (("method.bits=32",), (f"method.{OFF[0]}", f"method.{OFF[1]}")):
        said = refusal(*words("method.codes=magnitude", *more))
        assert "method.codes = 'magnitude': wanted method." in said


def gradient(found: Run, way: str) -> int:
    """Bytes of gradients and their positions in a direction, in the first round."""
    rows = found.tables["clients"][found.tables["clients"]["round"] == 0]
    return int(rows[f"{way}_gradient"].sum() + rows[f"{way}_mask"].sum())


def test_gradients_take_a_fifteenth() -> None:
    """At a sparsity of 0.9 in 8 bits; on the way up of updates, down of gradients at the cut."""
    given = ("model.hidden=[64,8]", "local_steps=2", "rounds=1")
    found, wanted = (run(small(f"method.name={name}", *given)) for name in ("sgcfl", "splitfed"))
    for way in ("up", "down"):
        assert gradient(wanted, way) > 15 * gradient(found, way)
    for name in ("up_activation", "up_label", "down_model"):
        np.testing.assert_array_equal(*(some.tables["clients"][name] for some in (found, wanted)))


@pytest.mark.parametrize("rule", RULES)
def test_where_nobody_moves_samples_decide(rule: str) -> None:
    engine = engine_of(f"method.weight_rule={rule}", "lr=1e-30", "rounds=1")
    (outcome,) = play(engine)
    rows = outcome.tables["clients"]
    assert not rows["distance"].any()
    np.testing.assert_allclose(rows["weight"], rows["samples"] / rows["samples"].sum())
    assert torch.equal(engine.server.w, engine.flat.initial)


@pytest.mark.parametrize("rule", RULES)
def test_who_is_lost_has_no_weight(rule: str) -> None:
    """Neither in the mean, nor in the mean distance; and others' share is as if it were not."""
    given = ("devices.dropouts=0.5", "rounds=5", "method.bits=16")
    engine = engine_of(f"method.weight_rule={rule}", *given)
    w, some = engine.server.w.clone(), 0
    for t, outcome in enumerate(play(engine)):
        rows = outcome.tables["clients"]
        there = rows[~rows["lost"]]
        assert np.isnan(rows[rows["lost"]]["distance"]).all()
        assert np.isnan(rows[rows["lost"]]["weight"]).all()
        some += 0 < len(there) < 5
        if len(there):
            clients = there["client"].tolist()
            changes = [learned(engine, t, client, w).change for client in clients]
            wanted = shares(rule, there["samples"].tolist(), np.linalg.norm(changes, axis=1))
            np.testing.assert_allclose(there["weight"], wanted, rtol=1e-3)
            np.testing.assert_allclose(
                engine.server.w, w.numpy() + wanted @ np.stack(changes), rtol=1e-3, atol=1e-5
            )
        w = engine.server.w.clone()
    assert some > 2


def test_what_was_known_is_not_told_again() -> None:
    """Where all uploads of a round were lost, nothing is known of it."""
    engine = engine_of("devices.dropouts=0.75", "rounds=12", "clients=3", "seed=3")
    lost = []
    for outcome in play(engine):
        rows = outcome.tables["clients"]
        np.testing.assert_array_equal(np.isnan(rows["weight"]), rows["lost"])
        lost.append(bool(rows["lost"].all()))
    assert True in lost[lost.index(False) :], "a round without uploads follows one with some"


def test_what_is_no_number_ends_the_run() -> None:
    found = run(small(*words("lr=1e30", "rounds=4")))
    assert not np.isfinite(found.model).all()
    assert len(found.tables["rounds"]) < 4
    assert np.isnan(found.tables["clients"]["weight"][-5:]).any()


@pytest.mark.parametrize("rule", RULES)
@TAILS
def test_statistics_count_by_samples(
    tail: tuple[str, ...], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of front and back, whole and as they are; distances are those of parameters."""
    monkeypatch.setattr(models, "build", smooth)
    engine = engine_of(f"method.weight_rule={rule}", "rounds=3", "participation=0.6", *tail)
    server, clients, own = engine.server, engine.clients, {}
    absorb, upload, held = server.absorb, clients.upload, clients.stat_positions
    before = server.w.clone()

    def watch(t: int, client: int, w: Tensor) -> list[Block]:
        own[client] = w.clone()
        return upload(t, client, w)

    def listen(t: int, message: Message) -> None:
        absorb(t, message)
        client = message.client
        wanted = (own[client] - clients.start)[held]
        torch.testing.assert_close(server.updates[client][held], wanted)
        front, end = server.sections.split_held(own[client])
        own[client] = torch.cat([front, server.backs.of(client), end])
        update = (server.personal(client) - before)[engine.flat.moving > 0]
        norms[client] = float(update.norm())

    clients.upload, server.absorb = watch, listen
    norms: dict[int, float] = {}
    for outcome in play(engine):
        rows = outcome.tables["clients"]
        p = torch.tensor(rows["samples"] / rows["samples"].sum(), dtype=torch.float32)
        wanted = p @ torch.stack([own[int(client)] for client in rows["client"]])
        stat_positions = engine.flat.stat_positions
        torch.testing.assert_close(
            server.w[stat_positions], wanted[stat_positions], rtol=1e-4, atol=1e-6
        )
        far = [norms[int(client)] for client in rows["client"]]
        np.testing.assert_allclose(rows["distance"], far, rtol=1e-4)
        before = server.w.clone()


def test_distances_and_weights_are_in_the_result(tmp_path: Path) -> None:
    """And in frames made of it; of methods that do not weigh by distance they are unknown."""
    for name in ("sgcfl", "splitfed"):
        engine = Engine(small(f"method.name={name}", "rounds=3", "participation=0.6"))
        path, settings = tmp_path / f"{name}.h5", engine.settings
        record = Record(begin(path), settings.tree(), settings.identity(), {}, tables.TABLES)
        for outcome in play(engine):
            record.append(outcome.tables)
        record.close(DONE)
        rows = frames.clients(path)
        assert len(rows) == 9
        if name == "splitfed":
            assert rows[["distance", "weight"]].isna().all(axis=None)
            continue
        assert (rows["distance"] > 0).all()
        np.testing.assert_allclose(rows.groupby("round")["weight"].sum(), 1)
        p = rows["samples"] / rows.groupby("round")["samples"].transform("sum")
        wanted = p / rows["distance"]
        wanted /= wanted.groupby(rows["round"]).transform("sum")
        np.testing.assert_allclose(rows["weight"], wanted, rtol=1e-6)


def test_updates_wait_for_all_of_a_round_and_no_longer() -> None:
    """Whatever the window, whose waves have backs of their own."""
    given = ("model.hidden=[1024]", "exchange.window=1", "data.samples=100")
    engine = engine_of(*given)
    assert engine.width < 5
    step, waited = engine.server.step, []

    def watch(t: int) -> None:
        waited.append(len(engine.server.waiting.updates))
        step(t)

    engine.server.step = watch
    list(play(engine))
    assert waited == [5, 5]
    assert not engine.server.waiting.updates


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("temperature=0.5",), "method.temperature = 0.5: wanted method.weight_rule = 'exp_dist'"),
        (("epsilon=0.1", "weight_rule=fedavg"), "method.epsilon = 0.1: wanted .*'inv_dist'"),
        (("stochastic=true", "bits=32"), "method.stochastic = true: wanted method.bits below 32"),
        (("sparsity=0.5", *OFF), "sparsity = 0.5: wanted .* or method.model_gradient"),
        (("bits=4", *OFF), "method.bits = 4: wanted"),
        (("bits=1",), "method.bits"),
        (("bits=17",), "method.bits"),
        (("cut=nowhere",), "method.cut = 'nowhere'.*hidden1, hidden2"),
    ],
)
def test_what_means_nothing_is_refused(given: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        engine_of(*(f"method.{word}" for word in given))


@pytest.mark.parametrize(
    "given", [("method.model_gradient=false",), ("method.bits=32", "method.sparsity=0.0")]
)
def test_feedback_of_nothing_is_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"feedback = 'classic': wanted codec\.values other"):
        engine_of("feedback=classic", *given)


def test_medians_are_refused() -> None:
    with pytest.raises(ConfigError, match="possible is the mean without a clip"):
        engine_of("aggregation.rule=median")
