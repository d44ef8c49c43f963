"""SSFL's algebra: the mask that the scores make, the same for all, and a model that lives on it."""

import copy
import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Coding, Kind
from fedmpi.methods.ssfl import saliency
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, stream
from tests.plain import CNN, EVERYTHING, average, network, place, play
from tests.small import run, small, smooth

WORLD = MPI.COMM_WORLD
FEW = ("participation=0.2", "rounds=4")
networks = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])


def ssfl(*words: str, sparsity: float = 0.5) -> Engine:
    """An engine that has not begun."""
    return Engine(small("method.name=ssfl", f"method.sparsity={sparsity}", *words))


def agreed(engine: Engine) -> Tensor:
    """The mask after round -1, bool [n]."""
    next(play(engine))
    return engine.clients.mask.bool()


def scores(engine: Engine) -> tuple[Tensor, Tensor]:
    """Sample-weighted |g * w| by torch's modules and autograd, and what may be pruned: [n]."""
    total, weights = torch.zeros(engine.flat.size), 0
    for client, shard in enumerate(engine.population.shards):
        module = network(engine, engine.flat.initial)
        random = stream(engine.settings.seed, Purpose.SALIENCY, client)
        some = random.choice(shard, min(engine.settings.batch, len(shard)), replace=False)
        cross_entropy(module(engine.trainer.feed.x[some]), engine.trainer.feed.y[some]).backward()
        saliency = [(p.grad * p.detach()).abs().flatten() for p in module.parameters()]
        total += len(shard) * torch.cat(saliency)
        weights += len(shard)
    prunable = [
        torch.full((parameter.numel(),), name.endswith("weight"))
        for name, parameter in network(engine, engine.flat.initial).named_parameters()
    ]
    return total / weights, torch.cat(prunable)


@networks
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.99])
def test_the_mask_is_the_global_top_of_the_scores(words: tuple[str, ...], sparsity: float) -> None:
    engine = ssfl(*words, *FEW, sparsity=sparsity)
    mask, (wanted, prunable) = agreed(engine), scores(engine)
    values = wanted[prunable].double()
    count = int(np.floor((1 - sparsity) * len(values) + 1e-9))
    threshold = values.sort(descending=True).values[count - 1]
    # Next to the threshold roundings decide; a sure tie is a score of zero (a unit that is dead).
    near = (values - threshold).abs() <= 1e-5 * threshold
    assert near.sum() < 4 or threshold == 0
    kept = mask[prunable]
    assert torch.equal(kept[~near], (values > threshold)[~near])
    assert int(kept.sum()) == count
    assert mask[~prunable].all(), "biases stay"


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_grasp_is_the_weight_times_a_product_with_the_hessian(norm: str) -> None:
    """By torch's own product in float64, beside convolutions, pooling and normalisation."""
    words = (*CNN, f"model.norm={norm}", *(["model.groups=1"] if norm == "group" else []))
    engine = ssfl(*words, "method.saliency=grasp", "clients=1")
    trainer, flat = engine.trainer, engine.flat
    part = engine.population.shards[0][:20]
    found = saliency.scores("grasp", trainer, 0, flat.initial, [part])
    x, y = trainer.feed.x[part].double(), trainer.feed.y[part]
    module = copy.deepcopy(flat.stages).double().eval()
    names = [name for name, _ in module.named_parameters()]
    values = tuple(parameter.detach() for parameter in module.parameters())

    def loss(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return cross_entropy(torch.func.functional_call(module, given, (x,)), y)

    slopes = torch.autograd.functional.jacobian(loss, values)
    _, products = torch.autograd.functional.hvp(loss, values, slopes)
    for piece, value, product in zip(flat.parameters, values, products, strict=True):
        wanted = (value * product).numpy()
        assert np.abs(wanted).max() > 0 or piece.name.endswith("bias")
        np.testing.assert_allclose(
            piece.of(found), wanted, rtol=1e-3, atol=1e-5 * max(1e-3, np.abs(wanted).max())
        )


def test_the_density_is_recorded() -> None:
    """Of the whole model before the mask, and of what the mask keeps afterwards."""
    found = run(small("method.name=ssfl", "method.sparsity=0.7", "method.warmup=1", "rounds=4"))
    size = int(found.engine.flat.prunable().sum())
    wanted = [1, *[int(0.3 * size + 1e-6) / size] * 3]
    assert found.tables["rounds"]["density"].tolist() == wanted
    local = run(small("method.name=local"))
    assert np.isnan(local.tables["rounds"]["density"]).all()


def test_scores_are_weighted_by_samples() -> None:
    """The weights decide which parameters are kept, so a plain mean would be found out."""
    engine = ssfl()
    agreed(engine)
    wanted, prunable = scores(engine)
    found = engine.server.scores.total / engine.population.sizes.sum()
    np.testing.assert_allclose(found, wanted[prunable], rtol=1e-4, atol=1e-8)


def test_only_weights_of_convolutions_and_linear_layers_are_prunable() -> None:
    stages = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3)),
    )
    found = Flat(stages).prunable()
    wanted = [True] * 36 + [False] * 4 + [False] * 8 + [True] * 48 + [False] * 3
    assert found.tolist() == wanted


def test_of_equal_scores_as_many_are_kept_as_asked() -> None:
    """The first ones; also where all others are zero, as beside units that are dead."""
    engine = ssfl(sparsity=0.9)
    server = engine.server
    size = len(server.scores.total)
    server.scores.total[:] = torch.arange(size) % 4
    (block,) = server.agreement()
    # A tenth of them is asked for, but a quarter has the best score.
    assert sparse.indices(block).tolist() == list(range(3, size, 4))[: size // 10]
    server.scores.total[:] = torch.arange(size) == 5
    (block,) = server.agreement()
    assert sparse.indices(block).tolist() == [*range(size // 10)]
    server.prunable[:] = False  # as in a network of which nothing can be pruned
    server.scores.total = torch.empty(0)
    (block,) = server.agreement()
    assert not block.count
    assert block.coding == Coding.NONE
    assert block.kind == Kind.MASK


@pytest.mark.parametrize(
    ("sparsity", "size", "wanted"),
    [(0.9, 1000, 100), (0.7, 10, 3), (0.5, 5, 2), (0.999, 100, 0), (0.0, 7, 7)],
)
def test_the_count_is_the_floor_of_the_exact_product(
    sparsity: float, size: int, wanted: int
) -> None:
    """(1 - 0.9) * 1000 is a hair under 100 in floats."""
    server = ssfl("model.hidden=[20]", sparsity=sparsity).server
    server.prunable = torch.arange(len(server.w)) < size
    server.scores.total = 1 + torch.arange(size, dtype=torch.float32)
    (block,) = server.agreement()
    assert sparse.indices(block).tolist() == list(range(size - wanted, size))


def test_the_model_is_pruned_by_the_agreement() -> None:
    engine = ssfl(sparsity=0.8)
    mask = agreed(engine)
    w, start = engine.server.w, engine.flat.initial
    assert (w[~mask] == 0).all()
    assert torch.equal(w[mask], start[mask])
    assert torch.equal(engine.server.active, mask.nonzero().squeeze(1))


@networks
def test_the_model_never_leaves_the_mask(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, steps = ssfl(*words, *EVERYTHING, "participation=0.6", sparsity=0.7), []
    clients = engine.clients
    adjust, upload = clients.adjust, clients.upload

    def watch(some: Sequence[int], w: Tensor, g: Tensor) -> None:
        outside = clients.mask == 0
        assert (w[:, outside] == 0).all()
        assert (g[:, outside] != 0).any(), "it is the method that keeps it there"
        adjust(some, w, g)
        assert (g[:, outside] == 0).all()
        steps.append(some)

    def say(t: int, client: int, w: Tensor) -> list[Block]:
        assert t < 0 or (w[clients.mask == 0] == 0).all()
        return upload(t, client, w)

    monkeypatch.setattr(clients, "adjust", watch)
    monkeypatch.setattr(clients, "upload", say)
    for _ in play(engine):
        outside = clients.mask == 0
        assert 0 < outside.sum() < engine.flat.size
        assert (engine.server.w[outside] == 0).all()
        assert (clients.start[outside] == 0).all() or not steps
    assert steps
    moved = engine.server.w != engine.flat.initial
    assert moved[clients.mask == 1].float().mean() > 0.9, "inside it has moved"


@networks
def test_rounds_are_fedavg_on_the_pruned_model(words: tuple[str, ...]) -> None:
    """Local training is `torch.optim.SGD` with masked gradients; the clip sees the masked ones."""
    engine = ssfl(*words, *EVERYTHING, "participation=0.6", "rounds=2")
    rounds = play(engine)
    next(rounds)
    mask, w = engine.clients.mask, engine.server.w.clone()
    for t, _ in enumerate(rounds):
        w = average(engine, t, w, change=lambda g: g * mask)
        np.testing.assert_allclose(engine.server.w, w, rtol=1e-4, atol=2e-5)
        w = engine.server.w.clone()


def test_everyone_is_asked_once_and_a_sample_afterwards() -> None:
    found = run(small("method.name=ssfl", *FEW))
    rows = found.tables["clients"]
    assert rows["client"][rows["round"] == -1].tolist() == [0, 1, 2, 3, 4]
    assert found.tables["rounds"]["sampled"].tolist() == [5, 1, 1, 1, 1]
    assert found.tables["rounds"]["round"].tolist() == [-1, 0, 1, 2, 3]
    first = rows[rows["round"] == -1]
    assert np.isnan(first["loss"]).all()
    assert np.isnan(first["personal"]).all()
    assert (first["steps"] == 0).all()


@networks
@pytest.mark.parametrize("sparsity", [0.5, 0.95])
def test_bytes(words: tuple[str, ...], sparsity: float) -> None:
    found = run(small("method.name=ssfl", f"method.sparsity={sparsity}", *words, *FEW))
    n, d = found.engine.flat.size, int(found.engine.flat.prunable().sum())
    active = int(found.engine.clients.mask.sum())
    salient = active - (n - d)
    assert salient < d
    columns = ("up_gradient", "down_model", "up_mask", "down_mask")
    for row in found.tables["clients"]:
        got = tuple(int(row[name]) for name in columns)
        if row["round"] == -1:
            assert got == (4 * d, 4 * n, 0, min(4 * salient, -(-d // 8)))
        else:
            assert got == (4 * active, 4 * active, 0, 0), "positions never travel again"
        assert all(
            row[f"{way}_{kind}"] == 0 for way in ("up", "down") for kind in ("label", "activation")
        )


@pytest.mark.parametrize("batches", [2, 100])
def test_scores_of_several_batches_are_averaged(batches: int) -> None:
    """As far as a client has samples; the last batch may be smaller, and counts as much."""
    engine = ssfl(f"method.batches={batches}")
    agreed(engine)
    total = torch.zeros(engine.flat.size)
    for client, shard in enumerate(engine.population.shards):
        count = min(16 * batches, len(shard))
        random = stream(engine.settings.seed, Purpose.SALIENCY, client)
        some = torch.from_numpy(random.choice(shard, count, replace=False))
        each = []
        for part in some.split(16):
            module = network(engine, engine.flat.initial)
            x, y = engine.trainer.feed.x[part], engine.trainer.feed.y[part]
            cross_entropy(module(x), y).backward()
            each.append(torch.cat([(p.grad * p.data).abs().flatten() for p in module.parameters()]))
        total += len(shard) * torch.stack(each).mean(0)
    np.testing.assert_allclose(engine.server.scores.total, total[engine.server.prunable], rtol=1e-4)
    assert batches == 2 or len({-(-n // 16) for n in engine.population.sizes.tolist()}) > 1


def test_a_warm_up_is_fedavg_and_then_the_mask_takes_a_round() -> None:
    words = ("method.warmup=2", "rounds=4", "participation=0.4")
    engine, dense = ssfl(*words), Engine(small("rounds=2", "participation=0.4"))
    list(play(dense))
    outcomes, masks, found = [], [], []
    for outcome in play(engine):
        outcomes.append(outcome)
        masks.append(engine.clients.mask.clone())
        found.append(engine.server.w.clone())
    assert [int(o.tables["rounds"]["round"][0]) for o in outcomes] == [0, 1, 2, 3]
    assert [len(o.tables["clients"]) for o in outcomes] == [2, 2, 5, 2]
    assert masks[1].all()
    np.testing.assert_allclose(found[1], dense.server.w, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[2][masks[2]], found[1][masks[2]]), "nobody trains"
    assert (found[2][~masks[2]] == 0).all()
    assert (found[3][~masks[2]] == 0).all()
    rows, n = outcomes[2].tables["clients"], engine.flat.size
    assert (rows["steps"] == 0).all() and np.isnan(rows["loss"]).all()
    assert np.isnan(rows["personal"]).all(), "scores are no models"
    assert np.isfinite(outcomes[2].tables["rounds"]["accuracy"]).all()
    assert set(rows["down_model"].tolist()) == {4 * n}
    assert set(rows["up_gradient"].tolist()) == {4 * int(engine.server.prunable.sum())}
    assert (rows["down_mask"] > 0).all()
    assert (outcomes[1].tables["clients"]["down_mask"] == 0).all()


def test_a_mask_that_is_found_again_brings_initial_weights_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = ssfl("method.rediscover=[2]", "rounds=4", "lr=0.5", sparsity=0.7)
    masks, found, said = {}, {}, dict[int, Tensor]()
    upload, prunable = engine.clients.upload, engine.server.prunable

    def watch(t: int, client: int, w: Tensor) -> list[Block]:
        said[client] = w[prunable].clone()
        return upload(t, client, w)

    monkeypatch.setattr(engine.clients, "upload", watch)
    for outcome in play(engine):
        t = int(outcome.tables["rounds"]["round"][0])
        masks[t], found[t] = engine.clients.mask.clone(), engine.server.w.clone()
        assert torch.equal(masks[t], engine.server.mask)
        if t == 2:
            assert (outcome.tables["clients"]["down_model"] == 4 * engine.flat.size).all()
            sizes = engine.population.sizes.tolist()
            wanted = sum(size * said[client] for client, size in enumerate(sizes))
            np.testing.assert_allclose(
                engine.server.scores.total, wanted, rtol=1e-4, err_msg="older ones"
            )
    assert torch.equal(masks[-1], masks[1])
    assert torch.equal(masks[2], masks[3])
    fresh, stays = masks[2] & ~masks[1], masks[2] & masks[1]
    assert fresh.any() and stays.any()
    assert torch.equal(found[2][fresh], engine.flat.initial[fresh])
    assert torch.equal(found[2][stays], found[1][stays])
    assert (found[2][~masks[2]] == 0).all()
    assert int(masks[2].sum()) == int(masks[1].sum())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("method.warmup=3", "rounds=3"), "method.warmup = 3: wanted less than rounds = 3"),
        (("method.rediscover=[1,3]", "rounds=3"), r"below rounds = 3, found \[3\]"),
        (("method.rediscover=[1]", "method.warmup=1"), r"above method.warmup = 1 .* found \[1\]"),
    ],
)
def test_agreements_that_never_come_are_refused(words: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ssfl(*words)


@pytest.mark.parametrize(("kind", "times"), [("grasp", 2), ("gradient", 1), ("magnitude", 0)])
def test_a_score_costs_its_gradients(kind: str, times: int) -> None:
    words = ("method.name=ssfl", "devices.tiers=[{gflops=0.001}]", "rounds=1")
    snip, other = (
        run(small(*words, f"method.saliency={one}")).tables["clients"] for one in ("snip", kind)
    )
    first = snip["round"] == -1
    assert (snip["flops"][first] > 0).all()
    assert other["flops"][first].tolist() == (times * snip["flops"][first]).tolist()
    assert other["up_gradient"][first].tolist() == snip["up_gradient"][first].tolist()


@pytest.mark.parametrize("batches", [1, 2, 100])
def test_an_agreement_costs_all_of_its_minibatches(batches: int) -> None:
    """Forward and back on the dense model, for as many samples as a client has at most."""
    tiers = "devices.tiers=[{gflops=0.001}]"
    settings = small("method.name=ssfl", f"method.batches={batches}", tiers, "rounds=1")
    rows = run(settings).tables["clients"]
    rows = rows[rows["round"] == -1]
    each = 3 * 2 * (64 * 12 + 12 * 8 + 8 * 10)
    wanted = [each * min(16 * batches, int(samples)) for samples in rows["samples"]]
    assert rows["flops"].tolist() == wanted
    assert rows["sim_compute"].tolist() == pytest.approx([flops / 1e6 for flops in wanted])


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_late_agreements_do_not_depend_on_ranks(
    statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on whose statistics were there last; no upload of an agreement is lost."""
    monkeypatch.setattr(models, "build", smooth)
    words = ("method.warmup=1", "method.rediscover=[3]", "rounds=5", "participation=0.6")
    tiers = ("devices.tiers=[{gflops=1.0}]", "devices.dropouts=0.4")
    settings = small("method.name=ssfl", *words, *tiers, f"statistics={statistics}")
    found = run(settings, WORLD)
    if WORLD.rank == 0:
        assert found.sha256 == run(settings).sha256
        rows = found.tables["clients"]
        agreed = np.isin(rows["round"], (1, 3))
        assert agreed.sum() == 10
        assert not rows["lost"][agreed].any()
        assert rows["lost"][~agreed].any()


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
def test_the_mask_is_the_same_on_all_ranks(server: str) -> None:
    settings = ssfl(*FEW, f"server={server}", sparsity=0.7).settings
    engine = Engine(settings, place(WORLD))
    for _ in play(engine, WORLD):
        pass
    mask = engine.clients.mask.numpy()
    digest = np.frombuffer(hashlib.sha256(mask.tobytes()).digest(), np.uint8).copy()
    wanted = digest.copy()
    WORLD.Bcast(wanted)
    same = np.array([int((digest == wanted).all() and 0 < mask.sum() < len(mask))])
    everywhere = np.zeros_like(same)
    WORLD.Allreduce(same, everywhere, MPI.MIN)
    assert everywhere[0] == 1
    if WORLD.rank == 0:
        np.testing.assert_array_equal(np.flatnonzero(mask), engine.server.active)
        alone = ssfl(*FEW, sparsity=0.7)
        np.testing.assert_array_equal(agreed(alone), mask)
