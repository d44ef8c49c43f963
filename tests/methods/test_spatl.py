"""SPATL's algebra: who owns what, what travels, and what the server makes of it."""

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.datasets import synthetic
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Message
from fedmpi.methods.spatl.selection import Select
from tests.plain import CNN, RNN, accuracy, network, play, train, vector
from tests.results.test_final import on_shard, tuned
from tests.small import alike, refusal, run, small, smooth, text

FEW = ("participation=0.6", "rounds=5", "epochs=3", "lr_decay=0.9")
NET = ("model.name=cnn", "model.channels=[8,12]", "model.kernel=3", "model.hidden=16")


ENDS = ("final", "slices")
"""Tables that differ by what is measured in the end."""


def engine_of(*words: str) -> Engine:
    return Engine(small("method.name=spatl", *words))


def encoder(engine: Engine) -> Tensor:
    """Which positions are shared: bool [n]."""
    found = torch.zeros(engine.flat.size, dtype=torch.bool)
    found[engine.clients.shared] = True
    return found


def listen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[Tensor, Tensor]]:
    """What the server hears in a round, client by client: where [n], bool, and changes of c_k."""
    heard: dict[int, tuple[Tensor, Tensor]] = {}
    absorb, size = engine.server.absorb, engine.flat.size

    def hear(t: int, message: Message) -> None:
        if message.blocks:
            _, chosen, change = message.blocks
            sent = engine.server.channels.positions(sparse.indices(chosen))
            where = torch.zeros(size, dtype=torch.bool)
            where[sent] = True
            values = torch.zeros(size)
            values[sent] = sparse.values(change)
            heard[message.client] = where, values
        absorb(t, message)

    monkeypatch.setattr(engine.server, "absorb", hear)
    return heard


def chosen_by_hand(engine: Engine, ranked: Tensor, sparsity: float) -> Tensor:
    """Positions of the filters of largest norm in each layer of the encoder: bool [n].

    By marking whole filters in a module, and reading it out as a vector.

    Args:
        engine: has the model.
        ranked: the values whose norms count, [n].
        sparsity: share of the filters that are left out.
    """
    module, mark = network(engine, ranked), network(engine, torch.zeros(engine.flat.size))
    stages = list(zip(module.children(), mark.children(), strict=True))[:-1]
    with torch.no_grad():
        for stage, marks in stages:
            for layer, own in zip(stage.modules(), marks.modules(), strict=True):
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    norms = [float(filter.square().sum()) for filter in layer.weight]
                    kept = max(1, round(len(norms) * (1 - sparsity)))
                    for channel in sorted(range(len(norms)), key=lambda i: -norms[i])[:kept]:
                        own.weight[channel], own.bias[channel] = 1, 1
    return vector(mark) > 0


@pytest.mark.parametrize(
    ("sparsity", "aggregation", "salience"),
    [
        (0.0, "index", "update"),
        (0.5, "index", "update"),
        (0.8, "index", "weight"),
        (0.5, "zero-average", "weight"),
        (0.8, "zero-average", "update"),
    ],
)
@pytest.mark.parametrize("words", [(), NET], ids=["mlp", "cnn"])
def test_rounds_are_those_of_plain_torch(
    words: tuple[str, ...], aggregation: str, sparsity: float, salience: str
) -> None:
    """Encoders follow g + c - c_k, predictors g; each value is averaged over those who send it."""
    given = (f"method.sparsity={sparsity}", f"method.aggregation={aggregation}")
    given += (f"method.salience={salience}",)
    engine = engine_of(*words, *given, *FEW)
    shared, size = encoder(engine), engine.flat.size
    w, c = engine.server.w.clone(), torch.zeros(size)
    c_k, own = torch.zeros(5, size), engine.flat.initial.repeat(5, 1)
    share = torch.from_numpy(engine.population.sizes / engine.population.sizes.sum()).float()
    for t, _ in enumerate(play(engine)):
        before, weight = c.clone(), torch.zeros(size)
        total, samples = torch.zeros(size), 0
        for client in engine.population.sample(t):
            seen: list[Tensor] = []
            drift = before - c_k[client]

            def change(g: Tensor, seen: list[Tensor] = seen, drift: Tensor = drift) -> Tensor:
                seen.append(g.clone())
                return g + drift

            start = torch.where(shared, w, own[client])
            local, _ = train(engine, t, client, start, change=change)
            ranked = local - start if salience == "update" else local
            sent = chosen_by_hand(engine, ranked, sparsity)
            mean = torch.stack(seen).mean(0)
            c += sent * (mean - c_k[client]) * share[client]
            n = len(engine.population.shards[client])
            total, samples, weight = total + n * sent * local, samples + n, weight + n * sent
            c_k[client], own[client] = torch.where(sent, mean, c_k[client]), local
        np.testing.assert_array_equal(engine.server.sum.weights, 0)
        if aggregation == "index":
            w = torch.where(weight > 0, total / weight, w)
        else:
            w = torch.where(shared, total / samples, w)
        found = torch.stack([engine.clients.variates.of(client) for client in range(5)])
        np.testing.assert_allclose(engine.server.w, w, rtol=1e-3, atol=5e-5)
        np.testing.assert_allclose(engine.server.control, c, rtol=1e-2, atol=5e-4)
        np.testing.assert_allclose(found, c_k, rtol=1e-2, atol=5e-4)
        for client, mine in engine.clients.own.items():
            np.testing.assert_allclose(mine, own[client][~shared], rtol=1e-3, atol=5e-5)
            own[client][~shared] = mine
        w, c, c_k = engine.server.w.clone(), engine.server.control.clone(), found
    assert c_k[:, shared].abs().max() > 1e-3
    assert not c_k[:, ~shared].any()


def test_what_nobody_sends_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(*NET, *FEW, "method.sparsity=0.8")
    heard, shared = listen(engine, monkeypatch), encoder(engine)
    w, c = engine.server.w.clone(), engine.server.control.clone()
    for _ in play(engine):
        anyone = torch.stack([where for where, _ in heard.values()]).any(0)
        heard.clear()
        assert 0 < int(anyone.sum()) < int(shared.sum())
        assert torch.equal(engine.server.w[~anyone], w[~anyone])
        assert torch.equal(engine.server.control[~anyone], c[~anyone])
        assert (engine.server.w != w)[anyone].float().mean() > 0.9
        w, c = engine.server.w.clone(), engine.server.control.clone()
    assert torch.equal(w[~shared], engine.flat.initial[~shared])


@pytest.mark.parametrize("words", [(), ("momentum=0.9", "lr=0.02")], ids=["sgd", "momentum"])
@pytest.mark.parametrize("control", ["mean", "niid"])
@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_c_is_the_mean_of_all_c_k(weights: str, control: str, words: tuple[str, ...]) -> None:
    """Whatever was sent of their changes, because they move only where it was."""
    given = (f"aggregation.weights={weights}", f"control={control}", "method.sparsity=0.8")
    engine = engine_of(*FEW, "rounds=6", *given, *words)
    sizes = engine.population.sizes if weights == "samples" else np.ones(5)
    for _ in play(engine):
        own = torch.stack([engine.clients.variates.of(client) for client in range(5)]).double()
        mean = sizes @ own.numpy() / sizes.sum()
        np.testing.assert_allclose(engine.server.control, mean, atol=1e-6)
    assert float(own.abs().max()) > 1e-2


def test_new_clients_have_no_weight_in_c() -> None:
    engine = engine_of(*FEW, "newcomers=2", "evaluate.final=evaluate", "participation=1.0")
    for _ in play(engine):
        own = torch.stack([engine.clients.variates.of(client) for client in range(3)]).double()
        sizes = engine.population.sizes[:3]
        mean = sizes @ own.numpy() / sizes.sum()
        np.testing.assert_allclose(engine.server.control, mean, atol=1e-6)


def test_it_is_known_which_channels_were_ever_sent() -> None:
    """By norms of updates more of them are than by norms of weights, which hardly change."""
    words = (*NET, "method.sparsity=0.8", "rounds=8", "participation=0.6")
    covered = {}
    for salience in ("update", "weight"):
        engine = engine_of(*words, f"method.salience={salience}")
        sent = torch.zeros(36, dtype=torch.bool)
        select = engine.clients.select

        def watch(*given: object, select: Select = select, sent: Tensor = sent) -> Tensor:
            chosen = select(*given)
            sent[chosen] = True
            return chosen

        engine.clients.select = watch
        for outcome in play(engine):
            (share,) = outcome.tables["rounds"]["covered"]
            assert share == pytest.approx(float(sent.float().mean()))
        covered[salience] = share
    assert covered["update"] > covered["weight"] + 0.1
    assert np.isnan(run(small("rounds=1")).tables["rounds"]["covered"]).all()


def test_without_gradient_control_it_is_sparse_fedper() -> None:
    """No c is sent, and what is sent are updates alone."""
    found, both = (
        run(small("method.name=spatl", *NET, *words)).tables["clients"]
        for words in (("control=none",), ())
    )
    assert (2 * found["up_gradient"] == both["up_gradient"]).all()
    assert not found["down_gradient"].any()
    assert (found["down_model"] == both["down_model"]).all()


def test_all_channels_in_the_first_round_are_fedpers() -> None:
    """No control variates yet, and nothing is left out."""
    words = ("rounds=1", "momentum=0.5", *NET)
    ours = run(small("method.name=spatl", "method.sparsity=0.0", *words))
    theirs = run(small("method.name=fedper", *words))
    np.testing.assert_allclose(ours.model, theirs.model, rtol=1e-5, atol=1e-6)
    for column in ("loss", "personal"):
        np.testing.assert_array_equal(*(f.tables["clients"][column] for f in (ours, theirs)))


# ---- Ablations

OFF = ("control=none", "method.predictor=shared", "method.sparsity=0.0")
"""Without gradient control, without predictors of clients' own, and without selection."""


@pytest.mark.parametrize("down", ["changes", "dense"])
def test_without_all_of_its_parts_it_is_fedavg(down: str) -> None:
    words = (*NET, *FEW, "momentum=0.5", "proximal=0.1")
    ours = run(small("method.name=spatl", *OFF, f"method.down={down}", *words))
    theirs = run(small("method.name=fedavg", *words))
    np.testing.assert_allclose(ours.model, theirs.model, rtol=1e-4, atol=1e-6)
    for column in ("accuracy", "validation", "shard_mean", "density"):
        both = (found.tables["rounds"][column] for found in (ours, theirs))
        np.testing.assert_allclose(*both, atol=0.02)


def test_a_shared_predictor_always_travels_and_makes_the_model_global() -> None:
    found = run(small("method.name=spatl", "method.predictor=shared", *NET, "rounds=3"))
    clients, rounds = found.tables["clients"], found.tables["rounds"]
    layers = [(8, 9 + 1), (12, 8 * 9 + 1), (16, 12 * 2 * 2 + 1)]  # channels, and values of one
    values = sum(count // 2 * each for count, each in layers) + 16 * 10 + 10
    assert set(clients["up_gradient"].tolist()) == {2 * 4 * values}
    assert np.isfinite(rounds["accuracy"]).all()
    x, y = found.engine.evaluation.test_x, found.engine.evaluation.test_y
    wanted = accuracy(network(found.engine, torch.from_numpy(found.model)), x, y)
    assert rounds["accuracy"][-1] == pytest.approx(wanted, abs=1e-6)
    assert not found.engine.clients.variates.of(0)[-170:].eq(0).all(), "it has control variates"


@pytest.mark.parametrize(
    ("selection", "control", "predictor"),
    [
        ("uniform", "none", "own"),
        ("l2", "niid", "shared"),
        ("random", "mean", "shared"),
        ("agent", "none", "shared"),
        ("agent", "niid", "own"),
    ],
)
def test_ablations_compose_with_every_selection(
    selection: str, control: str, predictor: str
) -> None:
    """Both ways down lead to one model, which has moved, and which clients can slice."""
    words = (f"method.selection={selection}", f"control={control}", "rounds=2", "epochs=1")
    words += (f"method.predictor={predictor}", "participation=0.6", "method.saved=0.3", *NET)
    ends = ("evaluate.final=slice", "evaluate.final_epochs=1")
    one = run(small("method.name=spatl", *words, *ends))
    other = run(small("method.name=spatl", *words, "method.down=dense"))
    assert one.sha256 == other.sha256
    assert np.isfinite(one.model).all()
    assert (one.model != one.engine.flat.initial.numpy()).mean() > 0.2
    rows = one.tables["slices"]
    assert (1 - rows["flops"] / rows["whole_flops"] >= 0.3).all()


def test_newcomers_train_all_of_a_shared_model() -> None:
    engine = engine_of("method.predictor=shared", "newcomers=1", "evaluate.final=tune", "rounds=1")
    list(play(engine))
    clients, w = engine.clients, engine.server.w
    assert torch.equal(clients.owned(0, 4, w), w)
    (found,) = clients.tune(0, (4,), w.view(1, -1).clone())
    assert (found != w).float().mean() > 0.9


def test_only_a_global_model_has_a_proximal_term() -> None:
    assert "wanted a method whose clients train the global model" in refusal(
        "method.name=spatl", "proximal=0.1"
    )
    assert not refusal("method.name=spatl", "proximal=0.1", "method.predictor=shared")


# ---- Slicing after training

SLICE = ("evaluate.final=slice", "evaluate.final_epochs=2", "rounds=2", "lr=0.3")


def flops_of(channels: list[int]) -> int:
    """FLOPs of a sample's way through NET with so many channels of each layer, by hand.

    Two convolutions of 3x3 over 8x8 and 4x4 pixels, each with a pooling behind it, and two linear
    layers; a multiplication and an addition are two.
    """
    first, second, hidden = channels
    convolutions = 8 * 8 * first * 9 + 4 * 4 * second * first * 9
    return 2 * (convolutions + hidden * second * 2 * 2 + 10 * hidden)


@pytest.mark.parametrize("salience", ["update", "weight"])
def test_a_slice_is_the_masked_model_that_a_client_has(salience: str) -> None:
    """By plain torch: masked by weights' norms, and trained with zeros at what is masked."""
    words = (f"method.salience={salience}", "method.sparsity=0.75", "data.separation=8.0")
    engine = engine_of(*NET, *SLICE, *words, "newcomers=1", "rounds=6", "epochs=4", "lr=0.2")
    list(play(engine))
    tables = engine.final()
    rows, w, free = tables["slices"], engine.server.w, torch.ones(engine.flat.size)
    assert rows["client"].tolist() == list(range(5))
    assert rows["newcomer"].tolist() == [False] * 4 + [True]
    np.testing.assert_array_equal(rows["whole_accuracy"], tables["final"]["accuracy"])
    moved = 0
    for row in rows:
        client = int(row["client"])
        model = engine.clients.owned(5, client, w)
        kept = chosen_by_hand(engine, model, 0.75) | ~encoder(engine)
        free = kept & ~encoder(engine) if row["newcomer"] else kept
        after = tuned(engine, 5, client, model * kept, 2, free.float())
        for column, one in (("accuracy", model * kept), ("tuned", after)):
            assert row[column] == pytest.approx(on_shard(engine, client, one), abs=1e-6)
        moved += row["tuned"] != row["accuracy"]
        assert row["channels"] == 0.25
        assert row["whole_flops"] == flops_of([8, 12, 16])
        assert row["flops"] == flops_of([2, 3, 4])
        for name in ("whole_seconds", "seconds", "whole_batch_seconds", "batch_seconds"):
            assert row[name] > 0
    assert moved and (rows["accuracy"] != rows["whole_accuracy"]).any()
    assert set(rows["batch"].tolist()) == {16}


@pytest.mark.parametrize("norm", ["group", "batch", "static"])
def test_a_slice_of_a_network_with_norms_is_the_masked_one(norm: str) -> None:
    words = ("model.name=resnet", "model.depth=8", f"model.norm={norm}", "epochs=1", "rounds=1")
    engine = engine_of(*words, "method.sparsity=0.4", *SLICE[:2])
    list(play(engine))
    rows, clients = engine.final()["slices"], engine.clients
    for row in rows[:2]:
        client = int(row["client"])
        model = clients.owned(0, client, engine.server.w)
        channels, chosen = clients.keep(0, client, model)
        masked = channels.masked(model, chosen)
        (found,) = engine.evaluation.on_shards([(client, masked)]).values()
        assert row["accuracy"] == pytest.approx(found)
        assert row["flops"] < 0.8 * row["whole_flops"]


def test_an_agents_slice_saves_what_it_is_to_save_and_teaches_it_nothing() -> None:
    words = ("method.selection=agent", "method.saved=0.4", "participation=0.4", "method.tuned=1")
    engine = engine_of(*NET, *SLICE, *words)
    list(play(engine))
    agents = engine.clients.select.agents
    before = {client: mind.clone() for client, mind in agents.items()}
    rows = engine.final()["slices"]
    assert (1 - rows["flops"] / rows["whole_flops"] >= 0.4).all()
    assert before.keys() == agents.keys() and len(agents) < 5, "some never took part"
    assert all(torch.equal(agents[client], mind) for client, mind in before.items())


@pytest.mark.parallel([1, 3])
def test_any_ranks_slice_the_same() -> None:
    settings = small("method.name=spatl", *NET, *SLICE, "participation=0.6")
    found, wanted = run(settings, MPI.COMM_WORLD), run(settings)
    if MPI.COMM_WORLD.rank == 0:
        rows, others = (one.tables["slices"] for one in (found, wanted))
        for column in rows.dtype.names:
            if "seconds" not in column:
                np.testing.assert_array_equal(rows[column], others[column])


def test_slicing_changes_no_book() -> None:
    words = ("method.name=spatl", *NET, "rounds=2")
    alike(run(small(*words, *SLICE[:2])), run(small(*words, "evaluate.final=evaluate")), ENDS)


def test_what_cannot_be_sliced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "found method.name = 'fedper'" in refusal("method.name=fedper", SLICE[0])
    local = ("statistics=local", "model.name=resnet", "model.norm=batch")
    assert "wanted statistics = 'averaged'" in refusal("method.name=spatl", SLICE[0], *local)
    monkeypatch.setattr(synthetic, "load", text)
    assert "found none" in refusal("method.name=spatl", SLICE[0], *RNN)


# ---- Bytes


def test_bytes_are_values_of_channels_and_a_list_of_them() -> None:
    """Two values for each parameter of a channel that is sent, and a bitmap; both parts down."""
    found = run(small("method.name=spatl", *NET, "rounds=2", "method.down=dense"))
    clients = found.tables["clients"]
    layers = [(8, 9 + 1), (12, 8 * 9 + 1), (16, 12 * 2 * 2 + 1)]  # channels, and values of one
    values = sum(count // 2 * each for count, each in layers)
    shared = sum(count * each for count, each in layers)
    assert set(clients["up_gradient"].tolist()) == {2 * 4 * values}
    assert set(clients["up_mask"].tolist()) == {-(-36 // 8)}
    assert set(clients["up_model"].tolist()) == {0}
    assert set(clients["down_model"].tolist()) == {4 * shared}
    assert set(clients["down_gradient"].tolist()) == {4 * shared}
    # One message of three blocks, and padding to 8 bytes.
    assert set(clients["up_header"].tolist()) == {16 + 3 * 32 + 2 * (-4 * values % 8) + 8 - 5}
    personal = found.engine.flat.size - shared
    assert personal == 16 * 10 + 10, "the predictor never travels"


def test_half_of_the_channels_cost_little_more_than_half_of_scaffolds_bytes() -> None:
    words = ("model.name=cnn", "rounds=1", "local_steps=1")
    ours, theirs = (run(small(f"method.name={name}", *words)) for name in ("spatl", "scaffold"))
    shares = ours.tables["rounds"]["up"] / theirs.tables["rounds"]["up"]
    assert (shares <= 0.55).all()
    assert (shares > 0.45).all()


# ---- Selection


def counts(engine: Engine, chosen: Tensor) -> list[int]:
    """How many channels of each layer are chosen."""
    layers = engine.clients.channels.layers
    return [int(((chosen >= one.first) & (chosen < one.first + one.count)).sum()) for one in layers]


def test_l2_ranks_the_channels_of_all_layers_together() -> None:
    engine = engine_of(*NET, "method.selection=l2", "method.sparsity=0.5")
    w, channels = engine.flat.initial.clone(), engine.clients.channels
    channels.layers[1].weights[0].of(w).mul_(100)
    chosen = engine.clients.select(0, 0, w, w)
    assert counts(engine, chosen)[1] == 12
    assert len(chosen) == 18
    assert (chosen[1:] > chosen[:-1]).all()
    channels.layers[0].weights[0].of(w).zero_()
    assert counts(engine, engine.clients.select(0, 0, w, w)) == [1, 12, 5], "one of each at least"


def test_chance_takes_the_same_share_of_each_layer_and_other_channels() -> None:
    engine = engine_of(*NET, "method.selection=random", "method.sparsity=0.75")
    w, select = engine.flat.initial, engine.clients.select
    draws = [select(t, client, w, w) for t in range(3) for client in range(3)]
    assert all(counts(engine, chosen) == [2, 3, 4] for chosen in draws)
    assert len({tuple(chosen.tolist()) for chosen in draws}) == 9
    assert torch.equal(select(1, 2, w + 1, w), draws[5]), "whatever the model is"
    union = torch.cat([select(t, 0, w, w) for t in range(40)]).unique()
    assert len(union) == 36


@pytest.mark.parametrize("selection", ["uniform", "l2", "random"])
def test_every_selection_runs(selection: str) -> None:
    found = run(small("method.name=spatl", f"method.selection={selection}", *CNN, *FEW))
    assert np.isfinite(found.model).all()
    assert found.tables["clients"]["up_mask"].min() > 0


def test_norms_travel_with_their_channels_and_statistics_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "build", smooth)
    engine = engine_of(*FEW, "method.sparsity=0.75")
    heard, stat_positions = listen(engine, monkeypatch), engine.flat.stat_positions
    for _ in play(engine):
        for where, change in heard.values():
            assert int(where.sum()) == 1 * (10 + 2) + 2 * (37 + 2) + 2 * (4 + 6)
            assert where[stat_positions].all()
            assert not change[stat_positions].any()
    assert not engine.server.control[stat_positions].any()
    assert (engine.server.w[stat_positions] != engine.flat.initial[stat_positions]).all()


def test_without_channels_all_of_the_encoder_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent layers have none."""
    monkeypatch.setattr(synthetic, "load", text)
    for selection in ("uniform", "l2", "random"):
        found = run(small("method.name=spatl", f"method.selection={selection}", *RNN, "epochs=1"))
        shared = len(found.engine.clients.shared)
        assert set(found.tables["clients"]["up_gradient"].tolist()) == {2 * 4 * shared}


# ---- New clients


def test_a_new_clients_predictor_is_trained_on_the_encoder_as_it_is() -> None:
    """Plain torch that is told of the predictor alone, weight decay and momentum included."""
    words = ("newcomers=1", "evaluate.final=tune", "evaluate.final_epochs=2", "rounds=2")
    engine = engine_of(*words, "momentum=0.9", "weight_decay=0.5")
    list(play(engine))
    start, shared = engine.server.w.clone(), encoder(engine)
    start[~shared] = engine.flat.initial[~shared]
    module = network(engine, start)
    steps = torch.optim.SGD(module.head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    feed = engine.trainer.feed
    for pick in feed.picks(1, 4, 2):
        steps.zero_grad()
        cross_entropy(module(feed.x[pick.positions]), feed.y[pick.positions]).backward()
        steps.step()
    wanted = vector(module)
    clients = engine.clients
    (found,) = clients.tune(1, (4,), clients.owned(1, 4, engine.server.w).view(1, -1))
    assert torch.equal(found[shared], start[shared])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert sorted(clients.variates.own) == [0, 1, 2, 3]


def test_running_statistics_of_the_encoder_rest_for_new_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "build", smooth)
    engine = engine_of("newcomers=2", "evaluate.final=tune", "momentum=0.9", "rounds=2")
    list(play(engine))
    clients, shared = engine.clients, encoder(engine)
    for client in range(5):
        model = clients.owned(1, client, engine.server.w)
        (found,) = clients.tune(1, (client,), model.view(1, -1).clone())
        assert torch.equal(found[shared], model[shared]) == (client >= 3)
        assert not torch.equal(found[~shared], model[~shared])
