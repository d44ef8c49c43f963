"""Channels of networks of all sorts, against what perturbing a channel does to a layer's output."""

import pytest
import torch
from torch import Tensor, nn

from fedmpi.networks.channels import Channels
from fedmpi.networks.flat import Flat
from fedmpi.networks.recurrent import Recurrent
from tests.small import sorts

CPU = torch.device("cpu")


@pytest.fixture
def flat() -> Flat:
    """A convolution of four channels, two linear layers of five and three, and a norm."""
    return Flat(sorts(3))


@pytest.fixture
def channels(flat: Flat) -> Channels:
    return Channels(flat, CPU)


def outputs(flat: Flat, w: Tensor, name: str) -> Tensor:
    """What the layer of that name says to a sample, [count, ...]."""
    heard, network = [], flat.network(w)
    layer = network.get_submodule(name)
    layer.register_forward_hook(lambda _, __, output: heard.append(output[0].detach()))
    torch.manual_seed(1)
    network(torch.randn(1, 2, 8, 8))
    return heard[0]


def test_they_are_numbered_layer_by_layer(channels: Channels) -> None:
    assert channels.count == 12
    assert [layer.first for layer in channels.layers] == [0, 4, 9]
    assert [layer.count for layer in channels.layers] == [4, 5, 3]


def test_what_a_channel_owns_moves_its_output_alone(flat: Flat, channels: Channels) -> None:
    for layer in channels.layers:
        before = outputs(flat, flat.initial.clone(), layer.name)
        for own in range(layer.count):
            mine = channels.owner == layer.first + own
            w = flat.initial + mine
            after = outputs(flat, w, layer.name)
            moved = (before != after).reshape(layer.count, -1).any(1)
            assert moved.tolist() == [other == own for other in range(layer.count)]
            extra = 2 if layer.norm else 0
            assert int(mine.sum()) == layer.weight.shape[1:].numel() + 1 + extra


def test_a_norm_directly_behind_belongs_to_the_channels(flat: Flat, channels: Channels) -> None:
    assert [layer.norm for layer in channels.layers] == ["conv.1", None, None]
    for piece in flat.parameters:
        if piece.name.startswith("conv.1"):
            assert channels.owner[piece.start : piece.stop].tolist() == [0, 1, 2, 3]
    assert (channels.owner >= 0).all()


def test_a_norm_elsewhere_is_nobodys() -> None:
    stages = (nn.Linear(4, 4), nn.Tanh(), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    flat = Flat(nn.Sequential(*stages))
    channels = Channels(flat, CPU)
    assert [layer.norm for layer in channels.layers] == [None, None]
    assert torch.equal(channels.owner == -1, flat.normalising())


def test_masked_channels_are_zero_behind_their_norms(flat: Flat, channels: Channels) -> None:
    torch.manual_seed(2)
    w = torch.randn(flat.size)
    masked = channels.masked(w, torch.tensor([0, 2, *range(4, 12)]))
    for name in ("conv.0", "conv.1"):
        said = outputs(flat, masked, name)
        assert (said != 0).flatten(1).any(1).tolist() == [True, False, True, False]
    assert torch.equal(channels.masked(w, torch.arange(12)), w)
    longer = torch.cat([w, w])
    assert torch.equal(channels.masked(longer, torch.tensor([0]))[flat.size :], w)


def test_recurrent_layers_have_none() -> None:
    flat = Flat(nn.Sequential(Recurrent("lstm", 3, 4), nn.Linear(4, 2)))
    channels = Channels(flat, CPU)
    assert [layer.name for layer in channels.layers] == ["1"]
    assert int((channels.owner >= 0).sum()) == 2 * 5


def test_positions_are_of_the_chosen_and_of_nobodys() -> None:
    flat = Flat(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.GroupNorm(1, 3), nn.Linear(3, 2)))
    channels = Channels(flat, CPU)
    chosen, norm = torch.tensor([1, 4]), list(range(9, 15))
    assert channels.positions(chosen).tolist() == [2, 3, 7, *norm, 18, 19, 20, 22]
    assert channels.positions(chosen[:0]).tolist() == norm
    assert channels.positions(torch.arange(5)).tolist() == list(range(flat.size))


def test_norms_leave_biases_out(flat: Flat, channels: Channels) -> None:
    torch.manual_seed(2)
    w = torch.randn(flat.size)
    norms = channels.norms(w)
    for layer in channels.layers:
        weight = flat.network(w).get_parameter(f"{layer.name}.weight").detach()
        for own in range(layer.count):
            assert norms[layer.first + own].item() == pytest.approx(float(weight[own].norm()))


def test_choices(channels: Channels) -> None:
    scores = torch.tensor([1.0, 4, 3, 2, *(50, 10, 20, 40, 30), *(0.1, 0.3, 0.2)])
    assert channels.largest(scores, [2, 1, 3]).tolist() == [1, 2, 4, 9, 10, 11]
    assert channels.evenly(scores, 0.5).tolist() == [1, 2, 4, 7, 10, 11]
    assert channels.evenly(scores, 0.99).tolist() == [1, 4, 10], "one of each at least"
    assert channels.overall(scores, 0.5).tolist() == [1, 4, 6, 7, 8, 10]
    assert channels.overall(scores, 0.99).tolist() == [1, 4, 10]
    assert channels.overall(scores, 0.0).tolist() == list(range(12))


def test_without_layers_there_is_no_choice() -> None:
    flat = Flat(nn.Sequential(nn.GroupNorm(1, 2)))
    channels = Channels(flat, CPU)
    norms = channels.norms(flat.initial)
    for chosen in (channels.evenly(norms, 0.5), channels.overall(norms, 0.5)):
        assert chosen.tolist() == []
        assert channels.positions(chosen).tolist() == [0, 1, 2, 3]
