"""Which layer feeds which, and whose channel each position of the vector is.

Channels are held against what changing their values does to the output of a layer.
"""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from fedmpi import loading
from fedmpi.models import resnet, vit
from fedmpi.networks.attention import Attention
from fedmpi.networks.flat import Flat
from fedmpi.networks.recurrent import Recurrent
from fedmpi.networks.topology import Topology
from tests.small import sorts

SHAPE = (2, 8, 8)


@pytest.fixture
def topology() -> Topology:
    """A convolution of four channels, two linear layers of five and three, and a norm."""
    return Topology(Flat(sorts(3)), SHAPE)


def named(network: nn.Module) -> list[str]:
    kinds = (nn.Conv2d, nn.Linear)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def outputs(flat: Flat, w: Tensor, name: str) -> Tensor:
    """What the layer of that name says to a sample, [count, ...]."""
    heard, network = [], flat.network(w)
    layer = network.get_submodule(name)
    layer.register_forward_hook(lambda _, __, output: heard.append(output[0].detach()))
    torch.manual_seed(1)
    network(torch.randn(1, *SHAPE))
    return heard[0]


# ---- who feeds whom


def test_a_chain(topology: Topology) -> None:
    assert topology.feeders(topology.makers) == {
        "conv.0": (),
        "dense.1": ("conv.0",),
        "head": ("dense.1",),
    }
    assert topology.feeders(["head", "conv.0"]) == {"conv.0": (), "head": ("conv.0",)}


def test_shapes_are_those_of_a_pass(topology: Topology) -> None:
    assert topology.traced.shapes == {
        "conv.0": (1, 4, 8, 8),
        "dense.1": (1, 5),
        "head": (1, 3),
    }


def test_shortcuts_join_branches() -> None:
    settings = loading.load({"model": {"name": "resnet", "depth": 20}}).model
    network = nn.Sequential(OrderedDict(resnet.stages(settings, (3, 8, 8), 10)))
    topology = Topology(Flat(network), (3, 8, 8))
    found = topology.feeders(named(network))
    block = "group1_block{}.residual.{}"
    assert found["stem.0"] == ()
    assert found[block.format(1, 0)] == ("stem.0",)
    assert found[block.format(1, 3)] == (block.format(1, 0),)
    assert found[block.format(2, 0)] == ("stem.0", block.format(1, 3))
    assert len(found["head.2"]) == 1 + 9


def test_recurrent_layers_are_passed_through_where_nobody_asks_for_them() -> None:
    flat = Flat(nn.Sequential(nn.Linear(3, 3), Recurrent("lstm", 3, 4), nn.Linear(4, 2)))
    topology = Topology(flat, (5, 3))
    assert topology.feeders(["0", "2"]) == {"0": (), "2": ("0",)}
    assert topology.feeders(["0", "1", "2"]) == {"0": (), "1": ("0",), "2": ("1",)}


# ---- whose positions are whose


def test_layers_are_numbered_in_their_order(topology: Topology) -> None:
    assert [layer.first for layer in topology.layers] == [0, 4, 9]
    assert [layer.count for layer in topology.layers] == [4, 5, 3]


def test_what_a_channel_owns_moves_its_output_alone(topology: Topology) -> None:
    flat, owner = topology.flat, topology.layer_owners()
    for layer in topology.layers:
        before = outputs(flat, flat.initial.clone(), layer.name)
        for own in range(layer.count):
            mine = owner == layer.first + own
            w = flat.initial + mine
            after = outputs(flat, w, layer.name)
            moved = (before != after).reshape(layer.count, -1).any(1)
            assert moved.tolist() == [other == own for other in range(layer.count)]
            extra = 2 if layer.norm else 0
            assert int(mine.sum()) == layer.weights[0].shape[1:].numel() + 1 + extra


def test_a_norm_directly_behind_belongs_to_the_channels(topology: Topology) -> None:
    owner = topology.layer_owners()
    assert [layer.norm for layer in topology.layers] == ["conv.1", None, None]
    for piece in topology.flat.parameters:
        if piece.name.startswith("conv.1"):
            assert owner[piece.start : piece.stop].tolist() == [0, 1, 2, 3]
    assert (owner >= 0).all()


def test_a_head_owns_its_rows_of_queries_keys_and_values() -> None:
    """And what it owns moves its own numbers alone."""
    flat = Flat(nn.Sequential(Attention(6, 3)))
    topology = Topology(flat, (4, 6))
    heads, output = topology.layers
    assert (heads.name, heads.count, output.first) == ("0.heads", 3, 3)
    assert [piece.shape for piece in heads.weights] == [(3, 2, 6)] * 3
    owner = topology.layer_owners()
    x = torch.randn(1, 4, 6)
    before = flat.stages[0].heads(x)
    for own in range(3):
        assert int((owner == own).sum()) == 3 * 2 * (6 + 1)
        after = flat.network(flat.initial + (owner == own))[0].heads(x)
        moved = (before != after).flatten(0, 1).any(0)
        assert moved.tolist() == [place // 2 == own for place in range(6)]


def test_heads_are_one_space_of_queries_keys_and_values_and_blocks_add_to_one() -> None:
    settings = loading.load({"model": {"name": "vit", "width": 8, "heads": 2, "depth": 2}}).model
    network = nn.Sequential(vit.stages(settings, (1, 8, 8), 3))
    topology = Topology(Flat(network), (1, 8, 8))
    stream = topology.groups["embed.patches"]
    assert [name for name, group in topology.groups.items() if group == stream] == [
        *("embed.patches", "embed.token", "embed.positions"),
        *(f"block1.{part}" for part in ("attention.output", "mlp.output")),
        *(f"block2.{part}" for part in ("attention.output", "mlp.output")),
    ]
    assert [width for _, width in topology.hidden] == [8, 2, 32, 2, 32]
    feeders = topology.feeders(topology.makers)
    assert feeders["block1.attention.output"] == ("block1.attention.heads",)
    # All that is read at the class token, to which patches come by attention alone.
    assert feeders["head.classes"] == ("embed.token", "embed.positions", *STREAM)


STREAM = [f"block{n}.{part}.output" for n in (1, 2) for part in ("attention", "mlp")]


def test_a_norm_elsewhere_is_nobodys_layer_by_layer_and_its_inputs_space_by_space() -> None:
    stages = (nn.Linear(4, 4), nn.Tanh(), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    flat = Flat(nn.Sequential(*stages))
    topology = Topology(flat, (4,))
    assert [layer.norm for layer in topology.layers] == [None, None]
    assert torch.equal(topology.layer_owners() == -1, flat.normalising())
    assert topology.hidden_owners()[flat.normalising()].tolist() == 2 * [0, 1, 2, 3]


def test_recurrent_layers_have_channels_in_spaces_alone() -> None:
    flat = Flat(nn.Sequential(Recurrent("lstm", 3, 4), nn.Linear(4, 2)))
    topology = Topology(flat, (5, 3))
    assert [layer.name for layer in topology.layers] == ["1"]
    assert int((topology.layer_owners() >= 0).sum()) == 2 * 5
    assert topology.hidden == [(0, 4)]


@pytest.mark.parametrize("depth", [20, 18, 50])
def test_what_is_added_is_one_space_and_yet_each_layer_has_its_own_channels(depth: int) -> None:
    settings = loading.load({"model": {"name": "resnet", "depth": depth}}).model
    network = nn.Sequential(OrderedDict(resnet.stages(settings, (3, 8, 8), 10)))
    topology = Topology(Flat(network), (3, 8, 8))
    last = "residual.3" if depth != 50 else "residual.6"
    one, other = (f"group1_block{n}.{last}" for n in (1, 2))
    assert topology.space(one) == topology.space(other)
    layers = {layer.name: layer for layer in topology.layers}
    assert layers[one].first != layers[other].first
    # Where both know of a channel, its values are the same ones.
    ours, spaces = topology.layer_owners(), topology.hidden_owners()
    for layer in topology.layers[:-1]:
        for number in (layer.first, layer.first + layer.count - 1):
            assert len(spaces[ours == number].unique()) == 1
