"""FLOPs of a sample's way through a network against closed forms, by layer and by front."""

import pytest

from fedmpi import models
from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import forward
from tests.small import small, sorts


def test_flops_of_a_convolution_and_of_linear_layers() -> None:
    """Two for each weight and place of the output; biases and norms count nothing."""
    flat = Flat(sorts(3))
    found = forward(flat, (2, 8, 8))
    wanted = {"conv.0.weight": 2 * 9 * 2 * 4 * 64, "dense.1.weight": 2 * 256 * 5}
    wanted["head.weight"] = 2 * 5 * 3
    assert {piece.name: flops for piece, flops in found.layers} == wanted
    assert found.all == sum(wanted.values())


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet", "resnet", "vgg"])
def test_all_flops_of_the_models_are_their_layers(name: str) -> None:
    """Nothing is left that a mask could not reach, and the last front is the whole network."""
    settings = small(f"model.name={name}").model
    network = models.build(settings, (1, 32, 32), 10, seed=1)
    found = forward(Flat(network), (1, 32, 32))
    assert found.all == found.fronts[-1].flops
    assert found.all == sum(flops for _, flops in found.layers)
