"""Sub-models against networks that are built narrow, and against full ones with zeros."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.config import ConfigError
from fedmpi.networks import narrow
from fedmpi.networks.attention import Heads
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import BatchNorm, OptionA
from fedmpi.networks.narrow import Narrow, Scale, SubModels
from tests.small import reads, small, smooth, sorts
from tests.suites.test_rows import FAMILIES

CLASSES = 5

WITHOUT_STREAMS = [case for case in FAMILIES if case[0] not in ("vit", "bert")]
"""A LayerNorm normalises over what is left of a token, and so does not see zeros."""
STREAMS = [case for case in FAMILIES if case not in WITHOUT_STREAMS]
families = pytest.mark.parametrize(
    ("name", "shape", "words"), FAMILIES, ids=lambda value: value if isinstance(value, str) else ""
)


def built(name: str, shape: tuple[int, ...], *words: str) -> Flat:
    """A network of a family."""
    settings = small(f"model.name={name}", *words)
    return Flat(models.build(settings.model, shape, CLASSES, 1, reads(name)))


def samples(name: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if reads(name) == "symbols":
        return torch.randint(CLASSES, (4, *shape), generator=generator).byte()
    return torch.randn(4, *shape, generator=generator)


def outputs(flat: Flat, w: Tensor, x: Tensor) -> Tensor:
    return flat.network(w).train(False)(x).detach()


def amid_zeros(flat: Flat, part: Narrow) -> Tensor:
    """The sub-model of the initial model, in a whole one."""
    w = torch.zeros(flat.size)
    w[part.positions] = flat.initial[part.positions]
    return w


def test_which_channels_are_chosen() -> None:
    assert narrow.prefix(0.5)(7).tolist() == [0, 1, 2, 3]
    assert narrow.window(0.5, 5)(7).tolist() == [0, 1, 5, 6]
    assert narrow.window(0.5, 12)(7).tolist() == [0, 1, 5, 6], "windows go round"
    some = narrow.drawn(0.5, np.random.default_rng(1))
    found = [some(100) for _ in range(2)]
    assert all(len(stays) == 50 and (stays.diff() > 0).all() for stays in found)
    assert not torch.equal(*found)


@families
def test_all_channels_are_the_network_itself(
    name: str, shape: tuple[int, ...], words: tuple[str, ...]
) -> None:
    flat = built(name, shape, *words)
    part = SubModels(flat, shape).narrow(narrow.prefix(1.0))
    assert part.flat is flat
    assert torch.equal(part.positions, torch.arange(flat.size))


@pytest.mark.parametrize(("name", "shape", "words"), WITHOUT_STREAMS)
def test_first_channels_compute_what_they_do_amid_zeros(
    name: str, shape: tuple[int, ...], words: tuple[str, ...]
) -> None:
    flat = built(name, shape, *words)
    part = SubModels(flat, shape).narrow(narrow.prefix(0.5))
    assert part.flat.size < 0.3 * flat.size
    assert (part.positions.diff() > 0).all()
    assert torch.equal(part.flat.initial, flat.initial[part.positions])
    x = samples(name, shape)
    wanted = outputs(flat, amid_zeros(flat, part), x)
    torch.testing.assert_close(outputs(part.flat, part.flat.initial, x), wanted)


WITHOUT_GROUPS = [
    case for case in WITHOUT_STREAMS if "model.norm=group" not in case[2] and case[0] != "resnet"
] + [("resnet", (3, 16, 16), ("model.norm=static", "model.depth=18"))]


@pytest.mark.parametrize(("name", "shape", "words"), WITHOUT_GROUPS)
@pytest.mark.parametrize("kind", ["window", "drawn"])
def test_any_channels_compute_what_they_do_amid_zeros(
    kind: str, name: str, shape: tuple[int, ...], words: tuple[str, ...]
) -> None:
    flat = built(name, shape, *words)
    choose = narrow.window(0.4, 9)
    if kind == "drawn":
        choose = narrow.drawn(0.4, np.random.default_rng(2))
    part = SubModels(flat, shape).narrow(choose)
    x = samples(name, shape)
    wanted = outputs(flat, amid_zeros(flat, part), x)
    found = outputs(part.flat, flat.initial[part.positions], x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shape", "words"), STREAMS)
def test_some_heads_and_hidden_units_compute_what_they_do_amid_zeros(
    name: str, shape: tuple[int, ...], words: tuple[str, ...]
) -> None:
    """Tokens stay as wide as they are."""
    flat = built(name, shape, *words)
    models = SubModels(flat, shape)
    inner = [space for space in models.hidden if space[1] in (4, 64)]
    assert len(inner) == 4, "heads and hidden units of two blocks"
    random = np.random.default_rng(2)
    part = models.having({space: narrow.drawn(0.4, random)(space[1]) for space in inner})
    assert [module.heads for module in part.flat.stages.modules() if isinstance(module, Heads)] == [
        *(2, 2),
    ]
    noise = torch.randn(flat.size, generator=torch.Generator().manual_seed(1)) / 5
    w, x = torch.zeros(flat.size), samples(name, shape)
    w[part.positions] = (flat.initial + noise)[part.positions]
    found = outputs(part.flat, w[part.positions], x)
    torch.testing.assert_close(found, outputs(flat, w, x), rtol=1e-4, atol=1e-5)


def test_heads_and_layer_norms_are_cut_by_hand() -> None:
    """Two of four heads of four numbers, and some numbers of a token of 16."""
    flat = built("vit", (3, 8, 8), "model.width=16", "model.depth=1", "model.heads=4")
    models = SubModels(flat, (3, 8, 8))
    space = models.topology.space
    tokens, heads = torch.tensor([0, 3, 7]), torch.tensor([1, 3])
    chosen = {space("block1.attention.output"): tokens, space("block1.attention.heads"): heads}
    part = models.having(chosen)
    pieces = {p.name: p.of(torch.arange(flat.size)) for p in flat.parameters}
    found = {p.name: p.of(part.positions) for p in part.flat.parameters}
    rows = torch.tensor([4, 5, 6, 7, 12, 13, 14, 15])
    attention = "block1.attention"
    for own in ("query", "key", "value"):
        name = f"{attention}.heads.{own}"
        assert torch.equal(found[f"{name}.weight"], pieces[f"{name}.weight"][rows][:, tokens])
        assert torch.equal(found[f"{name}.bias"], pieces[f"{name}.bias"][rows])
    name = f"{attention}.output.weight"
    assert torch.equal(found[name], pieces[name][tokens][:, rows])
    assert torch.equal(found["embed.token.weight"], pieces["embed.token.weight"][:, tokens])
    assert torch.equal(found["block1.norm2.bias"], pieces["block1.norm2.bias"][tokens])
    assert part.flat.stages.get_submodule("head.norm").normalized_shape == (3,)


@pytest.mark.parametrize(
    ("name", "shape", "wide", "thin"),
    [
        ("mlp", (6, 5), "model.hidden=[12,8]", "model.hidden=[6,4]"),
        ("cnn", (1, 12, 12), "model.hidden=20", "model.hidden=10"),
        ("lenet", (3, 32, 32), "model.hidden=[10,8]", "model.hidden=[5,4]"),
        ("rnn", (9,), "model.hidden=12", "model.hidden=6"),
        ("vit", (3, 8, 8), "model.width=16", "model.width=8"),
        ("bert", (9,), "model.width=16", "model.width=8"),
    ],
)
def test_a_sub_model_is_the_network_that_is_built_narrow(
    name: str, shape: tuple[int, ...], wide: str, thin: str
) -> None:
    half = {
        "cnn": "model.channels=[16,32]",
        "lenet": "model.channels=[3,8]",
        "rnn": "model.embedding=4",
        "vit": "model.heads=2",
        "bert": "model.heads=2",
    }
    more = ("model.heads=4", "model.depth=2") if name in ("vit", "bert") else ()
    part = SubModels(built(name, shape, wide, *more), shape).narrow(narrow.prefix(0.5))
    wanted = built(name, shape, *more, thin, *([half[name]] if name in half else []))
    pieces = [[(p.name, p.shape) for p in flat.parameters] for flat in (part.flat, wanted)]
    assert pieces[0] == pieces[1]
    x = samples(name, shape)
    w = part.flat.initial
    torch.testing.assert_close(outputs(part.flat, w, x), outputs(wanted, w, x))


def test_rows_and_columns_are_those_of_the_channels_by_hand() -> None:
    """A convolution of four channels, of which two stay, and what a flattening makes of them."""
    flat = Flat(sorts(3))
    part = SubModels(flat, (2, 8, 8)).narrow(narrow.window(0.5, 1))
    pieces = {p.name: p.of(torch.arange(flat.size)) for p in flat.parameters}
    two, three = [1, 2], [1, 2, 3]
    pixels = [64 * channel + pixel for channel in two for pixel in range(64)]
    wanted = [
        *(pieces["conv.0.weight"][two], pieces["conv.0.bias"][two]),
        *(pieces["conv.1.weight"][two], pieces["conv.1.bias"][two]),
        *(pieces["dense.1.weight"][three][:, pixels], pieces["dense.1.bias"][three]),
        *(pieces["head.weight"][:, three], pieces["head.bias"]),
    ]
    assert torch.equal(part.positions, torch.cat([tensor.flatten() for tensor in wanted]))
    norm = part.flat.stages.get_submodule("conv.1")
    assert (norm.num_groups, norm.num_channels) == (1, 2), "groups of two, as before"


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_all_gates_of_a_cell_stay(cell: str) -> None:
    flat = built("rnn", (9,), f"model.cell={cell}", "model.hidden=6", "model.layers=1")
    part = SubModels(flat, (9,)).narrow(narrow.prefix(0.5))
    pieces = {p.name: p.of(torch.arange(flat.size)) for p in flat.parameters}
    gates = 4 if cell == "lstm" else 3
    rows = [6 * gate + cell for gate in range(gates) for cell in range(3)]
    found = set(part.positions.tolist())
    for kind, columns in (("input", 4), ("recurrent", 3)):
        tensor = pieces[f"recurrent1.1.{kind}.weight"]
        assert found & set(tensor.flatten().tolist()) == set(
            tensor[rows][:, :columns].flatten().tolist()
        )


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_a_shortcut_without_parameters_takes_its_channels_along(rate: float) -> None:
    """Option A by hand: an output has the input of its own number, or zeros."""
    inputs, outs = narrow.window(rate, 13)(16), narrow.window(rate, 13)(32)
    layer = OptionA(2, 16)
    x = torch.randn(2, 16, 4, 4)
    masked = torch.zeros_like(x)
    masked[:, inputs] = x[:, inputs]
    wanted = layer(masked)[:, outs]
    assert wanted.any()
    assert torch.equal(layer.narrowed(inputs, outs)(x[:, inputs]), wanted)


@pytest.mark.parametrize("depth", [20, 18, 50])
def test_what_is_added_has_the_same_channels(depth: int) -> None:
    """All blocks of a group of a residual network are one space; those inside a block are not."""
    flat = built("resnet", (3, 8, 8), f"model.depth={depth}")
    sub_models = SubModels(flat, (3, 8, 8))
    groups = sub_models.topology.groups
    last = "residual.3" if depth != 50 else "residual.6"
    assert groups[f"group1_block1.{last}"] == groups[f"group1_block2.{last}"]
    assert groups["group1_block1.residual.0"] != groups[f"group1_block1.{last}"]
    assert groups["group1_block1.residual.0"] != groups["group1_block2.residual.0"]
    # Without parameters in shortcuts all groups of blocks are added in the end.
    same = groups[f"group1_block1.{last}"] == groups[f"group2_block1.{last}"]
    assert same == (depth == 20)
    part = sub_models.narrow(narrow.drawn(0.3, np.random.default_rng(1)))
    part.flat.network(torch.zeros(sub_models.narrow(narrow.prefix(0.3)).flat.size))


def test_training_a_sub_model_is_masked_training() -> None:
    """Where no norm sees zeros: a step of the small network, and one of the whole under a mask."""
    flat = built("cnn", (1, 12, 12), "model.hidden=9", "model.channels=[5,6]")
    part = SubModels(flat, (1, 12, 12)).narrow(narrow.window(0.5, 4))
    x, y = torch.randn(6, 1, 12, 12), torch.arange(6) % CLASSES
    small_w, whole_w = flat.initial[part.positions].clone(), amid_zeros(flat, part)
    gradients = []
    for shape, w in ((part.flat, small_w), (flat, whole_w)):
        network = shape.network(w)
        loss = cross_entropy(network(x), y)
        found = torch.autograd.grad(loss, list(network.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]))
    torch.testing.assert_close(gradients[0], gradients[1][part.positions], rtol=1e-4, atol=1e-6)


def test_scales_stand_behind_hidden_layers_and_work_in_training_alone() -> None:
    flat = built("mlp", (6, 5), "model.hidden=[12,8]")
    part = SubModels(flat, (6, 5)).narrow(narrow.prefix(0.5), factor=2.0)
    plain = SubModels(flat, (6, 5)).narrow(narrow.prefix(0.5))
    assert torch.equal(part.positions, plain.positions)
    network = part.flat.network(part.flat.initial)
    assert sum(isinstance(module, Scale) for module in network.modules()) == 2
    x = torch.randn(3, 6, 5)
    network.train(False)
    judged = plain.flat.network(plain.flat.initial)
    assert torch.equal(network(x), judged(x))
    network.train(True)
    layers = [module for module in judged.modules() if isinstance(module, nn.Linear)]
    wanted = x.flatten(1)
    for layer in layers[:-1]:
        wanted = (2 * layer(wanted)).relu()
    torch.testing.assert_close(network(x), layers[-1](wanted))


def test_networks_of_one_shape_are_one() -> None:
    sub_models = SubModels(built("mlp", (6, 5)), (6, 5))
    some = [sub_models.narrow(narrow.window(0.5, start)) for start in (0, 3)]
    assert some[0].flat is some[1].flat
    assert not torch.equal(some[0].positions, some[1].positions)
    assert sub_models.narrow(narrow.prefix(0.25)).flat is not some[0].flat
    assert sub_models.narrow(narrow.prefix(0.5), 2.0).flat is not some[0].flat


@pytest.mark.parametrize("is_local", [False, True])
def test_statistics_go_with_their_channels(is_local: bool) -> None:
    network = smooth(small().model, (1, 8, 8), 3, 1)
    flat = Flat(network, is_local)
    part = SubModels(flat, (1, 8, 8)).narrow(narrow.prefix(0.5))
    assert len(part.positions) == part.flat.size
    assert len(part.local_stats) == len(part.flat.local_stats) == (2 * (2 + 3) if is_local else 0)
    names = {p.name: p for p in flat.statistics}
    mean = names["conv.1.running_mean"].of(
        torch.arange(len(flat.local_stats if is_local else flat.moving))
    )
    stays = set((part.local_stats if is_local else part.positions).tolist())
    assert [place in stays for place in mean.tolist()] == [True, True, False, False]


def test_classes_are_rows_of_the_last_layer() -> None:
    sub_models = SubModels(built("mlp", (6, 5), "model.hidden=[4]"), (6, 5))
    hidden = 30 * 4 + 4
    assert (sub_models.topology.classes[:hidden] == -1).all()
    rows = [c for c in range(CLASSES) for _ in range(4)]
    assert sub_models.topology.classes[hidden:].tolist() == [*rows, *range(CLASSES)]
    positions = torch.tensor([0, hidden, hidden + 4, hidden + 20, hidden + 21])
    inside = sub_models.topology.inside(positions, torch.tensor([0]))
    assert inside.tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 3, groups=2), nn.LayerNorm([6, 6]), nn.Bilinear(2, 2, 2)], ids=repr
)
def test_layers_that_nobody_knows_are_refused(layer: nn.Module) -> None:
    stages = OrderedDict(first=nn.Conv2d(2, 4, 3), odd=layer, head=nn.Linear(6, 3))
    with pytest.raises(ConfigError, match=r"the model's layer 'odd' is a .* possible are"):
        SubModels(Flat(nn.Sequential(stages)), (2, 8, 8))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_layer_norm_over_pixels_is_refused(channels: int) -> None:
    """Each of its inputs is a pixel of all channels, and none is a channel."""
    stages = OrderedDict(first=nn.Conv2d(2, channels, 3), odd=nn.LayerNorm(6), head=nn.Linear(6, 3))
    with pytest.raises(ConfigError, match="layer 'odd' has inputs that mix channels"):
        SubModels(Flat(nn.Sequential(stages)), (2, 8, 8))


def test_channels_that_are_mixed_are_refused() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] + x[:, 2:]

    stages = OrderedDict(a=nn.Conv2d(2, 4, 3), b=Mixed(), c=nn.Conv2d(2, 3, 3), d=BatchNorm(3))
    with pytest.raises(ConfigError, match="layer 'c' has inputs that mix channels"):
        SubModels(Flat(nn.Sequential(stages)), (2, 8, 8))
