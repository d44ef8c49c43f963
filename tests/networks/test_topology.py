"""The graph of a network: which layer feeds which."""

from collections import OrderedDict

import torch
from torch import nn

from fedmpi import loading
from fedmpi.models import resnet
from fedmpi.networks.topology import feeders, trace
from tests.small import sorts


def named(network: nn.Module) -> list[str]:
    kinds = (nn.Conv2d, nn.Linear)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def test_a_chain() -> None:
    network = sorts(3)
    traced = trace(network, torch.zeros(1, 2, 8, 8))
    assert feeders(traced, named(network)) == {
        "conv.0": (),
        "dense.1": ("conv.0",),
        "head": ("dense.1",),
    }
    assert feeders(traced, ["head", "conv.0"]) == {"conv.0": (), "head": ("conv.0",)}


def test_shapes_are_those_of_a_pass() -> None:
    traced = trace(sorts(3), torch.zeros(1, 2, 8, 8))
    shapes = {str(node.target): node.meta["shape"] for node in traced.graph.nodes}
    assert shapes["conv.0"] == (1, 4, 8, 8)
    assert shapes["dense.0"] == (1, 256)
    assert shapes["head"] == (1, 3)


def test_shortcuts_join_branches() -> None:
    settings = loading.load({"model": {"name": "resnet", "depth": 20}}).model
    network = nn.Sequential(OrderedDict(resnet.stages(settings, (3, 8, 8), 10)))
    found = feeders(trace(network, torch.zeros(1, 3, 8, 8)), named(network))
    block = "group1_block{}.residual.{}"
    assert found["stem.0"] == ()
    assert found[block.format(1, 0)] == ("stem.0",)
    assert found[block.format(1, 3)] == (block.format(1, 0),)
    assert found[block.format(2, 0)] == (block.format(1, 3), "stem.0")
    assert len(found["head.2"]) == 1 + 9


def test_what_it_says_is_what_the_network_says() -> None:
    network = sorts(3).train(False)
    x = torch.randn(5, 2, 8, 8)
    torch.testing.assert_close(trace(network, torch.zeros(1, 2, 8, 8))(x), network(x))
