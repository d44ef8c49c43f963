"""What of a model trains: the rest never moves or travels, in every method, and costs nothing.

References are written in torch's own layers and optimizer, or as closed forms.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import fedmpi
from fedmpi import config, models, weights
from fedmpi.clients.burden import Burden, activations
from fedmpi.config import ConfigError, Settings
from fedmpi.engine import Engine
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from fedmpi.networks import adapters
from fedmpi.networks.flops import forward
from fedmpi.results import kept
from fedmpi.runs import launch
from fedmpi.runs.job import Job
from fedmpi.runs.measure import measure
from tests.plain import CNN, METHODS, positions
from tests.small import refusal, run, small

LORA = ("model.train=adapters", "model.lora.rank=2", "model.lora.alpha=3.0")
NORMS = (*CNN, "model.norm=batch", "model.train=[conv2,head]")
VIT = ("model.name=vit", "model.width=12", "model.depth=2", "model.heads=3", "clients=3")
KINDS = {
    "head": ("model.train=head",),
    "bias": ("model.train=bias",),
    "names": ("model.train=[hidden1.1.weight,hidden2]",),
    "lora": LORA,
    "fixed": (*LORA, "model.lora.fixed=true"),
    "bottleneck": ("model.train=adapters", "model.bottleneck.width=3"),
    "norms": NORMS,
    "transformer": (*VIT, *LORA, "model.lora.layers=[query,value]"),
    "blocks": (*VIT, "model.train=[block2,head]"),
}
"""What trains, and what is put in."""
kinds = pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
RESHAPING = ("federated-dropout", "fedrolex", "fjord", "heterofl", "hetiot", "spatl")
"""Methods that train other networks than the model."""


def built(settings: Settings) -> nn.Sequential:
    """The model as it is before the run."""
    data = settings.data
    return models.build(settings.model, tuple(data.shape), 10, settings.seed)


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and statistics of a network."""
    return {name: one.detach().clone() for name, one in network.state_dict().items()}


def state(engine: Engine) -> dict[str, Tensor]:
    """The whole model of the server, by name."""
    assert engine.server is not None
    return tensors(engine.flat.network(engine.server.w.clone()))


# ---- every method


@pytest.mark.parametrize("method", [name for name in METHODS if name not in RESHAPING])
def test_what_is_frozen_stays_bit_by_bit_in_every_method(method: str) -> None:
    """On the server and in the networks that train; what trains moves, and alone is in messages."""
    settings = small("rounds=1", f"method.name={method}", *LORA)
    found = run(settings)
    flat, before = found.engine.flat, tensors(built(settings))
    own = {name: tensor for name, tensor in before.items() if name in flat.frozen}
    assert own.keys() == {f"hidden{i}.1.base.{end}" for i in (1, 2) for end in ("weight", "bias")}
    rows = found.engine.trainer.rows
    networks = [state(found.engine), *(tensors(one) for one in rows.networks)]
    for network in networks:
        for name, tensor in own.items():
            assert torch.equal(network[name], tensor)
    assert flat.size == 2 * (64 + 12) + 2 * (12 + 8) + 8 * 10 + 10
    sent = found.tables["clients"]
    assert all(
        (sent[f"up_{kind}"] < 4 * (flat.size + flat.frozen_size)).all() for kind in ("model",)
    )
    assert not torch.equal(rows.w[0], flat.initial)


@pytest.mark.parametrize("method", RESHAPING)
@pytest.mark.parametrize("words", [("model.train=head",), LORA], ids=["head", "lora"])
def test_methods_that_reshape_the_model_are_refused_by_name(
    method: str, words: tuple[str, ...]
) -> None:
    found = refusal(f"method.name={method}", *words)
    assert "wanted a method that leaves the model's layers as they are" in found
    assert f"found method.name = '{method}'" in found


def test_pruned_channels_are_refused_and_pruned_weights_are_not() -> None:
    words = ("method.name=fedsl", "model.train=bias")
    assert "found method.name = 'fedsl'" in refusal(*words, "method.structured=channels")
    assert refusal(*words) == ""


# ---- against plain torch


def shard(engine: Engine, client: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of a client in round 0."""
    feed = engine.trainer.feed
    return [(feed.x[some], feed.y[some]) for some in positions(engine, 0, client)]


def averaged(
    engine: Engine, train: Callable[[list[tuple[Tensor, Tensor]]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The mean of what clients' training leaves of each tensor, weighted by samples, in float64."""
    total: dict[str, Tensor] = {}
    sizes = [len(engine.population.shards[c]) for c in range(engine.settings.clients)]
    for client, size in enumerate(sizes):
        for name, tensor in train(shard(engine, client)).items():
            part = tensor.detach().double() * (size / sum(sizes))
            total[name] = total.get(name, 0) + part
    return total


def compare(engine: Engine, wanted: dict[str, Tensor]) -> None:
    found = state(engine)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("train", "moving"),
    [
        ("head", ["head.1.weight", "head.1.bias"]),
        ("bias", ["hidden1.1.bias", "hidden2.1.bias", "head.1.weight", "head.1.bias"]),
        ("[hidden1]", ["hidden1.1.weight", "hidden1.1.bias"]),
        ("[hidden1.1.weight,bias]", ["hidden1.1.weight", "hidden1.1.bias", "hidden2.1.bias",
                                     "head.1.weight", "head.1.bias"]),
    ],
)  # fmt: skip
def test_training_is_that_of_torch_without_gradients_of_the_rest(
    train: str, moving: list[str]
) -> None:
    settings = small("rounds=1", f"model.train={train}", "momentum=0.9", "weight_decay=0.01")
    found = run(settings)

    def once(batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        own = nn.Sequential(
            OrderedDict(
                hidden1=nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU()),
                hidden2=nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU()),
                head=nn.Sequential(nn.Flatten(), nn.Linear(8, 10)),
            )
        )
        own.load_state_dict(tensors(built(small())))
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(name in moving)
        some = [p for p in own.parameters() if p.requires_grad]
        steps = torch.optim.SGD(some, settings.lr, momentum=0.9, weight_decay=0.01)
        for x, y in batches:
            steps.zero_grad()
            cross_entropy(own(x), y).backward()
            steps.step()
        return dict(own.named_parameters())

    wanted = averaged(found.engine, once)
    compare(found.engine, wanted)
    assert {piece.name for piece in found.engine.flat.parameters} == set(moving)


def test_frozen_norms_use_their_running_statistics_and_others_move_theirs() -> None:
    """The norm of conv1 is frozen, that of conv2 trains: as torch's, in evaluation and training."""
    settings = small("rounds=1", *NORMS)
    found = run(settings)

    def once(batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        own = nn.Sequential(
            OrderedDict(
                conv1=nn.Sequential(
                    nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)
                ),
                conv2=nn.Sequential(
                    nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
                ),
                dense=nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.ReLU()),
                head=nn.Linear(10, 10),
            )
        )
        own.load_state_dict(tensors(built(settings)), strict=False)
        own.requires_grad_(False)
        own.conv2.requires_grad_(True)
        own.head.requires_grad_(True)
        own.conv1.eval()
        some = [p for p in own.parameters() if p.requires_grad]
        steps = torch.optim.SGD(some, settings.lr)
        for x, y in batches:
            steps.zero_grad()
            cross_entropy(own(x), y).backward()
            steps.step()
        return {n: one for n, one in own.state_dict().items() if "num_batches" not in n}

    wanted = averaged(found.engine, once)
    compare(found.engine, wanted)
    flat = found.engine.flat
    assert {piece.name for piece in flat.statistics} == {
        "conv2.1.running_mean",
        "conv2.1.running_var",
    }
    assert not torch.equal(wanted["conv2.1.running_mean"], torch.zeros(4).double())
    assert {"conv1.1.running_mean", "conv1.1.running_var"} <= flat.frozen.keys()


@pytest.mark.parametrize("is_fixed", [False, True], ids=["both", "B"])
def test_low_rank_products_train_as_their_formula(is_fixed: bool) -> None:
    """Y = W x + b + alpha / rank * B A x with B = 0 at first; with fixed, A stays as it is."""
    settings = small("rounds=1", *LORA, f"model.lora.fixed={str(is_fixed).lower()}")
    found = run(settings)
    before = tensors(built(settings))
    layers = ("hidden1", "hidden2")
    for name in layers:
        assert not before[f"{name}.1.up.weight"].any()
        assert before[f"{name}.1.down.weight"].std() > 0

    def once(batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        own = {name: tensor.clone() for name, tensor in before.items()}
        ends = ("up.weight",) if is_fixed else ("up.weight", "down.weight")
        some = [own[f"{name}.1.{end}"].requires_grad_() for name in layers for end in ends]
        some += [own["head.1.weight"].requires_grad_(), own["head.1.bias"].requires_grad_()]
        for x, y in batches:
            h = x.flatten(1)
            for name in layers:
                weight, bias = own[f"{name}.1.base.weight"], own[f"{name}.1.base.bias"]
                up, down = own[f"{name}.1.up.weight"], own[f"{name}.1.down.weight"]
                h = linear(h, weight + 3.0 / 2 * up @ down, bias).relu()
            loss = cross_entropy(linear(h, own["head.1.weight"], own["head.1.bias"]), y)
            gradients = torch.autograd.grad(loss, some)
            with torch.no_grad():
                for parameter, gradient in zip(some, gradients, strict=True):
                    parameter.sub_(gradient, alpha=settings.lr)
        return own

    compare(found.engine, averaged(found.engine, once))


# ---- what it costs


@kinds
def test_messages_have_what_trains_and_nothing_else(words: tuple[str, ...]) -> None:
    """A message is that of the whole model without four bytes for each frozen value."""
    model = tuple(word for word in words if word[:12] not in ("model.train=",))
    plain = tuple(w for w in model if not w.startswith(("model.lora", "model.bottleneck")))
    part, whole = run(small("rounds=1", *words)), run(small("rounds=1", *plain))
    assert (
        0
        < part.engine.flat.size
        < sum(t.numel() for t in tensors(built(part.engine.settings)).values())
    )
    for way in ("up", "down"):
        found, full = (one.tables["rounds"][way][0] for one in (part, whole))
        clients = part.engine.settings.clients
        assert full - found == 4 * clients * (whole.engine.flat.size - part.engine.flat.size)
    assert (part.tables["rounds"]["base"] == 0).all()


def test_flops_are_those_of_the_gradients_that_are_needed() -> None:
    """Forward all layers; back those of weights that train, and of inputs behind the first one."""
    ahead = [2 * a * b for a, b in pairwise((64, 12, 8, 10))]
    wanted = {
        "head": ahead[2],
        "[hidden2]": ahead[1] + ahead[2],
        "[hidden2,head]": ahead[1] + 2 * ahead[2],
        "bias": ahead[1] + 2 * ahead[2],
        "all": 2 * sum(ahead),
    }
    for train, back in wanted.items():
        found = forward(Engine(small(f"model.train={train}")).flat, (1, 8, 8))
        assert (found.all, found.back) == (sum(ahead), back), train


def test_flops_under_a_mask_are_those_of_what_it_keeps() -> None:
    """Of a weight that trains a half is kept: half of its way forward, and of its gradients."""
    engine = Engine(small("model.train=[hidden2,head]"))
    ahead = [2 * a * b for a, b in pairwise((64, 12, 8, 10))]
    kept = torch.ones(engine.flat.size)
    half, head = (p for p in engine.flat.parameters if p.name.endswith("weight"))
    half.of(kept)[:4] = 0
    head.of(kept)[:5] = 0
    found = engine.meter.flops(Burden(engine.flat, 3, 16, kept))
    assert found == 3 * (ahead[0] + ahead[1] / 2 * 2 + ahead[2] / 2 * 3)


def test_memory_has_gradients_and_optimiser_of_what_trains_alone() -> None:
    engine = Engine(small("model.train=[hidden2,head]", "optimizer=adam"))
    x = torch.zeros(16, 1, 8, 8)
    trained, frozen = 12 * 8 + 8 + 8 * 10 + 10, 64 * 12 + 12
    found = engine.meter.memory(Burden(engine.flat, 1, 16)).total * 2**20
    assert found == 16 * trained + 4 * frozen + activations(engine.flat, x)
    # Inputs of hidden2 and head, as autograd keeps them, and their ReLU; none of the frozen front.
    assert activations(engine.flat, x) <= 4 * 16 * (12 + 8 + 8 + 64)


# ---- at a cut

SPLITTING = [name for name in METHODS if config.module("method", name).Config.converses]


@pytest.mark.parametrize(
    "words",
    [(f"method.name={name}",) for name in SPLITTING]
    + [(f"method.name={name}", "rows=2") for name in ("splitfed", "epsl", "cse-fsl")],
)
def test_no_gradient_comes_back_to_a_frozen_front_and_nothing_runs_back_there(
    words: tuple[str, ...],
) -> None:
    cut = "cuts=[hidden1]" if "method.name=splitft" in words else "cut=hidden1"
    words = (*words, "model.train=head", f"method.{cut}", "rounds=1")
    clients = run(small(*words)).tables["clients"]
    assert clients["up_activation"].all()
    assert not clients["down_gradient"].any()
    ahead, batches = 2 * 64 * 12, clients["samples"] * 2  # epochs
    head = 0
    if "method.name=cse-fsl" in words:  # the auxiliary head trains beside the front, on the client
        head = 2 * 2 * 12 * 10
    np.testing.assert_array_equal(clients["flops"], batches * (ahead + head))


@pytest.mark.parametrize(
    "words",
    [
        ("model.train=head",),
        ("model.train=[hidden1]",),
        ("model.train=bias",),
        ("model.train=head", "method.tail=head"),
        ("model.train=[hidden2]", "method.tail=head"),
        ("model.train=[hidden1]", "method.tail=head"),
        LORA,
    ],
)
def test_a_split_model_learns_what_the_whole_one_learns(words: tuple[str, ...]) -> None:
    """Frozen in front of a cut, between two, or behind them: SplitFed's v1 is FedAvg."""
    whole = run(small("rounds=1", *(w for w in words if not w.startswith("method."))))
    split = run(small("rounds=1", "method.name=splitfed", *words))
    np.testing.assert_allclose(split.model, whole.model, rtol=1e-4, atol=1e-6)
    moved = np.abs(whole.model - whole.engine.flat.initial.numpy()).max()
    assert moved > 1e-3


# ---- the same on ranks and in rows


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("words", [LORA, NORMS, (*LORA, "method.name=splitfed")])
def test_ranks_change_no_bit(words: tuple[str, ...]) -> None:
    settings = small(*words, "participation=0.6")
    one, several = run(settings), run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        assert one.sha256 == several.sha256
        np.testing.assert_array_equal(one.tables["rounds"]["up"], several.tables["rounds"]["up"])


@kinds
def test_stacked_rows_learn_what_single_rows_learn(words: tuple[str, ...]) -> None:
    one, both = (run(small("rounds=1", *words, f"rows={rows}")) for rows in (1, 2))
    np.testing.assert_allclose(both.model, one.model, rtol=1e-3, atol=1e-5)
    assert one.engine.flat.frozen


def test_copies_of_a_network_share_what_is_frozen() -> None:
    """The rows' networks, on one device, have one memory for it."""
    trainer = Engine(small("model.train=head", "clients=3", "rows=1")).trainer
    rows = trainer.descent_of(trainer.flat, 3).rows
    places = {network.get_parameter("hidden1.1.weight").data_ptr() for network in rows.networks}
    assert places == {trainer.flat.frozen["hidden1.1.weight"].data_ptr()}


# ---- kept, measured, resumed


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")


def exported(folder: Path, *words: str) -> Path:
    """A file of weights: the model of a small run."""
    Job().run(small("rounds=1", *words), folder / "upstream.h5")
    kept.export(folder / "upstream.h5", folder / "upstream.safetensors")
    return folder / "upstream.safetensors"


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("words", [("model.train=head",), LORA, NORMS], ids=["head", "lora", "cnn"])
def test_the_kept_model_is_whole_without_the_file_that_it_began_with(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    upstream = tuple(w for w in words if not w.startswith(("model.train", "model.lora")))
    file = exported(tmp_path, *upstream, "seed=5", "lr=0.3")
    given = weights.read("file", file)
    path = tmp_path / "a.h5"
    run_words = (*words, f"model.initial={file}", "model.fresh=head")
    Job().run(small(*run_words), path)
    wanted = run(small(*run_words))
    file.unlink()
    network = fedmpi.model(path)
    x = wanted.engine.trainer.feed.x[:7]
    ours = wanted.engine.flat.network(torch.from_numpy(wanted.model)).train(False)
    torch.testing.assert_close(network(x), ours(x), rtol=0, atol=0)
    for name, tensor in wanted.engine.flat.frozen.items():
        there = name.replace(".base.", ".")
        if there in given:
            np.testing.assert_array_equal(network.state_dict()[name], given[there])
            np.testing.assert_array_equal(tensor.detach(), given[there])
    found = measure(path)
    assert found.now["accuracy"] == found.recorded["accuracy"]


def test_a_model_of_other_parts_is_not_measured(tmp_path: Path, plain: None) -> None:
    Job().run(small("rounds=1", "model.train=head"), tmp_path / "a.h5")
    with pytest.raises(ConfigError, match=r"wanted hidden1\.1\.weight of shape \(13, 64\)"):
        measure(tmp_path / "a.h5", ("model.hidden=[13,8]",))


def test_a_run_goes_on_with_the_same_base_and_counts_it_once(tmp_path: Path, plain: None) -> None:
    file = exported(tmp_path)
    words = ("rounds=4", "participation=0.4", *LORA, f"model.initial={file}", "model.fresh=head")
    settings = small(*words)
    whole = run(settings)
    stopped, again = Engine(settings), Engine(settings)
    tables = [o.tables for o in islice(stopped.rounds(*alone()), 2) if o is not None]
    again.restore(stopped.state())
    tables += [o.tables for o in again.rounds(*alone(), 2) if o is not None]
    assert again.model_sha256() == whole.sha256
    for name in ("base", "down", "up"):
        found = np.concatenate([some["clients"][name] if name == "base" else some["rounds"][name]
                                for some in tables])  # fmt: skip
        table = "clients" if name == "base" else "rounds"
        np.testing.assert_array_equal(found, whole.tables[table][name])
    clients = whole.tables["clients"]
    frozen = 4 * (64 * 12 + 12 + 12 * 8 + 8)
    for client in np.unique(clients["client"]):
        own = clients["base"][clients["client"] == client]
        assert own.tolist() == [frozen] + [0] * (len(own) - 1)
    assert whole.tables["rounds"]["base"].sum() == frozen * len(np.unique(clients["client"]))


def alone() -> tuple[Wire, Clock]:
    """A wire of this rank alone, and its clock."""
    clock = Clock()
    return Wire(clock, MPI.COMM_SELF), clock


def test_devices_receive_the_base_in_their_first_round(tmp_path: Path, plain: None) -> None:
    """Simulated seconds of receiving: the base's bits at the link's rate, once."""
    file = exported(tmp_path)
    tier = "devices.tiers=[{name='a', link={kind='fixed', down=0.001, up=1.0, latency=0.0}}]"
    words = ("rounds=2", "model.train=head", tier)
    base = run(small(*words, f"model.initial={file}", "model.fresh=head"))
    drawn = run(small(*words))
    spent, plain_spent = (one.tables["clients"]["sim_down"] for one in (base, drawn))
    first = base.tables["clients"]["round"] == 0
    more = 8 * 4 * (64 * 12 + 12 + 12 * 8 + 8) / 1000
    np.testing.assert_allclose((spent - plain_spent)[first], more)
    np.testing.assert_array_equal(spent[~first], plain_spent[~first])


# ---- adapters


def test_a_network_with_adapters_begins_as_it_was_and_merges_to_what_it_is() -> None:
    x = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = built(small())
    for words in (LORA, KINDS["bottleneck"]):
        torch.testing.assert_close(built(small(*words))(x), before(x), rtol=0, atol=0)
    found = run(small(*LORA, "lr=0.3"))
    network = found.engine.flat.network(torch.from_numpy(found.model))
    merged = adapters.merged(network)
    assert [name for name, _ in merged.named_parameters()] == [
        name for name, _ in before.named_parameters()
    ]
    torch.testing.assert_close(merged(x), network(x), rtol=1e-5, atol=1e-6)
    weight = found.engine.flat.frozen["hidden1.1.base.weight"].detach().double()
    own = {name: one.double() for name, one in state(found.engine).items()}
    product = own["hidden1.1.up.weight"] @ own["hidden1.1.down.weight"]
    torch.testing.assert_close(
        merged.get_parameter("hidden1.1.weight").double(),
        weight + 1.5 * product,
        rtol=1e-6,
        atol=1e-7,
    )
    with pytest.raises(ConfigError, match="cannot be merged"):
        adapters.merged(built(small(*KINDS["bottleneck"])))


def test_layers_with_adapters_are_named() -> None:
    def found(*words: str) -> list[str]:
        network = built(small("model.train=adapters", *words))
        return [n for n, m in network.named_modules() if isinstance(m, adapters.Adapter)]

    assert found("model.lora.rank=1") == ["hidden1.1", "hidden2.1"]
    assert found("model.lora.rank=1", "model.lora.layers=hidden2") == ["hidden2.1"]
    assert found("model.bottleneck.width=1", "model.bottleneck.layers=[hidden1.1]") == ["hidden1.1"]
    assert "no linear layer 'head'; possible are: hidden1.1, hidden2.1" in refusal(
        "model.train=adapters", "model.lora.rank=1", "model.lora.layers=head"
    )
    assert "no linear layer before its last stage" in refusal(
        "model.train=adapters", "model.lora.rank=1", "model.hidden=[]"
    )


def test_recurrent_layers_are_left_alone() -> None:
    """Their gates use the weights of linear layers, and never call them."""
    settings = small("model.name=rnn", "model.hidden=9").model
    network = models.build(settings, (9,), 7, 1, "symbols")
    assert adapters.names(network) == []


# ---- settings


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("model.train=[]",), "wanted all, head, bias, adapters or names, found none"),
        (("model.train=[all,head]",), "wanted all by itself"),
        (("model.train=adapters",), "wanted model.lora.rank or model.bottleneck.width above 0"),
        (("model.lora.rank=2",), "model.lora.rank = 2: wanted model.train = 'adapters'"),
        (("model.lora.alpha=2.0",), "model.lora.alpha = 2.0: wanted model.lora.rank above 0"),
        ((*LORA, "model.bottleneck.width=2"), "wanted one kind of adapters"),
        (("model.fresh=head",), "model.fresh = ['head']: wanted model.initial, found none"),
        (("model.train=hidden3",), "no parameters of the name 'hidden3'; possible are all, head"),
        (("model.train=[hidden1.0]",), "no parameters of the name 'hidden1.0'"),
    ],
)
def test_what_cannot_be_is_said(words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refusal(*words)


def test_one_name_needs_no_list() -> None:
    assert small("model.train=head").model.train == ("head",)
    assert small("model.train=[head]").identity() == small("model.train=head").identity()
    assert small("model.train=bias").identity() != small("model.train=head").identity()


def test_runs_that_train_all_have_the_identity_that_they_had_without_these_settings() -> None:
    settings = small("model.hidden=[9]")
    tree = settings.tree()
    for name in ("train", "lora", "bottleneck", "initial", "fresh"):
        del tree["model"][name]
    assert config.identity(tree, {}) == settings.identity()
    for words in (LORA, ("model.train=head",)):
        assert small("model.hidden=[9]", *words).identity() != settings.identity()
