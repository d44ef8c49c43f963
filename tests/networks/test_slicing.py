"""Sliced networks: smaller, and equal in what they say to masked ones, by hooks and plain torch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi import loading, models
from fedmpi.networks.attention import Heads
from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.slicing import Channels, Joined, Normed, Spread, sliced, trace
from fedmpi.networks.topology import Topology
from tests.small import reads, sorts

TRANSFORMER = {"width": 16, "heads": 4, "depth": 2}
NETWORKS = {
    "mlp": ((1, 8, 8), {"name": "mlp", "hidden": [12, 8]}),
    "mlp dropout": ((1, 8, 8), {"name": "mlp", "hidden": [12, 8], "dropout": 0.5}),
    "cnn": ((3, 12, 12), {"name": "cnn", "channels": [6, 8], "hidden": 16}),
    "cnn1d": ((6, 64), {"name": "cnn1d", "channels": [8, 10], "hidden": 16, "kernel": 5}),
    "lenet": ((3, 32, 32), {"name": "lenet"}),
    "vgg group": ((3, 32, 64), {"name": "vgg", "norm": "group"}),
    "vgg batch": ((3, 32, 32), {"name": "vgg", "norm": "batch", "hidden": []}),
    "resnet group": ((3, 16, 16), {"name": "resnet", "depth": 20}),
    "resnet batch": ((3, 16, 16), {"name": "resnet", "depth": 20, "norm": "batch"}),
    "resnet static": ((3, 16, 16), {"name": "resnet", "depth": 20, "norm": "static"}),
    "resnet18": ((3, 16, 16), {"name": "resnet", "depth": 18}),
    "vit": ((3, 8, 8), {"name": "vit", **TRANSFORMER, "dropout": 0.1}),
    "vit mean": ((3, 8, 8), {"name": "vit", **TRANSFORMER, "pooling": "mean"}),
    "bert": ((9,), {"name": "bert", **TRANSFORMER, "pad": 0, "separator": 1}),
    "bert mean": ((9,), {"name": "bert", **TRANSFORMER, "pad": 0, "pooling": "mean"}),
}


def flat_of(name: str) -> tuple[Flat, tuple[int, ...]]:
    shape, words = NETWORKS[name]
    settings = loading.load({"model": words}).model
    return Flat(models.build(settings, shape, 10, 1, reads(settings.name))), shape


def samples(shape: tuple[int, ...], count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if shape == (9,):
        return torch.randint(10, (count, *shape), generator=generator)
    return torch.randn(count, *shape, generator=generator)


def front_of(flat: Flat, cut: int) -> Flat:
    return flat.split(flat.cuts()[cut])[0]


def channels_of(flat: Flat, shape: tuple[int, ...]) -> Channels:
    return Channels(Topology(flat, shape), torch.device("cpu"))


def lively(flat: Flat) -> Tensor:
    """A model whose norms scale and shift, whose statistics are no zeros and ones, and whose
    layers do not lose what comes in on the way: the first ones matter.
    """
    w = torch.where(flat.prunable(), 6**0.5 * flat.initial, flat.initial)
    noise = torch.rand(flat.size, generator=torch.Generator().manual_seed(3))
    some = flat.normalising()
    return torch.where(some, 0.5 + noise, w)


def some_of(channels: Channels, share: float) -> Tensor:
    scores = torch.rand(channels.count, generator=torch.Generator().manual_seed(4))
    return channels.overall(scores, 1 - share)


def masked(flat: Flat, w: Tensor, channels: Channels, chosen: Tensor) -> nn.Module:
    """The whole network, in which hooks make channels zero behind their layer and its norm."""
    network = flat.network(w).train(False)

    def hook(kept: Tensor) -> Callable:
        def mask(module: nn.Module, __: tuple, output: Tensor) -> Tensor:
            if isinstance(module, nn.Linear):
                return output * kept
            if isinstance(module, Heads):
                return output * kept.repeat_interleave(module.size)
            return output * kept.view(1, -1, *(1,) * (output.dim() - 2))

        return mask

    for layer in channels.layers:
        kept = torch.zeros(layer.count)
        for i in chosen.tolist():
            if layer.first <= i < layer.first + layer.count:
                kept[i - layer.first] = 1
        for name in filter(None, (layer.name, layer.norm)):
            network.get_submodule(name).register_forward_hook(hook(kept))
    return network


def flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    return forward(Flat(nn.Sequential(network)), shape).all


@pytest.mark.parametrize(
    ("name", "cut", "share"),
    [*((name, -1, 0.4) for name in NETWORKS), ("cnn", 0, 0.2), ("resnet batch", 3, 0.7)],
)
def test_it_says_what_the_masked_network_says(name: str, cut: int, share: float) -> None:
    flat, shape = flat_of(name)
    channels = channels_of(front_of(flat, cut), shape)
    chosen, w = some_of(channels, share), lively(flat)
    network = sliced(flat, w, channels, chosen, shape)
    x = samples(shape, 3)
    with torch.no_grad():
        wanted = masked(flat, w, channels, chosen)(x)
        found = network(x)
        again = flat.network(channels.masked(w, chosen)).train(False)(x)
        whole = flat.network(w).train(False)(x)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(again, wanted, rtol=1e-3, atol=1e-4 * scale)
    assert float((whole - wanted).abs().max()) > 1e-2 * scale, "the mask does something"
    assert sum(p.numel() for p in network.parameters()) < flat.count


@pytest.mark.parametrize("name", NETWORKS)
def test_all_channels_are_the_whole_network(name: str) -> None:
    flat, shape = flat_of(name)
    channels = channels_of(front_of(flat, -1), shape)
    network = sliced(flat, lively(flat), channels, torch.arange(channels.count), shape)
    assert not any(isinstance(module, Spread) for module in network.modules())
    assert sum(p.numel() for p in network.parameters()) == flat.count
    x = samples(shape, 2)
    with torch.no_grad():
        wanted = flat.network(lively(flat)).train(False)(x)
        torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 0.0), (1.0, 100.0)])
def test_a_norm_of_some_channels_counts_the_others_as_zeros(scale: float, shift: float) -> None:
    """By numpy, in float64: with all channels there, of which the missing ones are zero."""
    random = np.random.default_rng(2)
    norm = nn.GroupNorm(3, 12)
    kept, x = np.array([0, 1, 3, 5, 8, 9, 10, 11]), shift + scale * random.normal(size=(4, 8, 5, 6))
    with torch.no_grad():
        for one in (norm.weight, norm.bias):
            one.copy_(torch.from_numpy(random.normal(size=12)))
        found = Normed(norm, torch.from_numpy(kept))(torch.from_numpy(x).float())
    whole = np.zeros((4, 12, 5, 6))
    whole[:, kept] = x.astype(np.float32)
    groups = whole.reshape(4, 3, -1)
    mean, variance = groups.mean(2)[..., None], groups.var(2)[..., None]
    normed = ((groups - mean) / np.sqrt(variance + norm.eps)).reshape(whole.shape)
    weight, bias = (one.detach().double().numpy() for one in (norm.weight, norm.bias))
    wanted = normed * weight[:, None, None] + bias[:, None, None]
    # A shift of 100 leaves float32 digits for a share of 1e-5 of it.
    near = 1e-5 if not shift else 2e-4
    np.testing.assert_allclose(found, wanted[:, kept], rtol=near, atol=near)


def test_branches_with_other_channels_are_added_where_they_belong() -> None:
    x = torch.randn(2, 6, 3, 3)
    summed = Joined(torch.tensor([1, 4]))(x, 2 * x[:, :2])
    wanted = x.numpy().copy()
    wanted[:, [1, 4]] += 2 * x.numpy()[:, :2]
    np.testing.assert_allclose(summed, wanted)


def test_flops_of_a_chain_fall_with_both_ends_of_a_layer() -> None:
    flat, shape = flat_of("cnn")
    channels = channels_of(front_of(flat, -1), shape)
    chosen = channels.evenly(torch.arange(channels.count).float(), 0.5)
    network = sliced(flat, flat.initial, channels, chosen, shape)
    # 12x12 pixels, then 6x6, then 3x3 of each channel; windows of 5x5.
    wanted = 2 * (144 * 3 * 25 * 3 + 36 * 4 * 25 * 3 + 4 * 9 * 8 + 8 * 10)
    assert flops(network, shape) == wanted
    assert flops(flat.network(flat.initial), shape) == 2 * (
        144 * 6 * 25 * 3 + 36 * 8 * 25 * 6 + 8 * 9 * 16 + 16 * 10
    )


def test_flops_of_a_transformer_fall_with_heads_and_hidden_units() -> None:
    """Half of each: an attention of half the products, and two linear layers of half the units."""
    flat, shape = flat_of("vit mean")
    channels = channels_of(flat, shape)
    inner = [layer for layer in channels.layers if ".heads" in layer.name or "hidden" in layer.name]
    every = torch.arange(channels.count)
    for layer in inner:
        every = every[(every < layer.first) | (every >= layer.first + layer.count // 2)]
    network = sliced(flat, flat.initial, channels, every, shape)
    tokens, width = 4, 16
    block = tokens * (4 * width * width // 2 + 2 * width * 32) + 2 * 8 * tokens * tokens
    assert flops(network, shape) == 2 * (tokens * 3 * 16 * width + 2 * block + width * 10)
    assert not any(isinstance(module, Spread) for module in network.modules())


def test_branches_with_the_same_channels_need_no_zeros() -> None:
    """One set for a whole stream: the shortcuts then add what is there."""
    flat, shape = flat_of("resnet group")
    channels = channels_of(front_of(flat, -1), shape)
    chosen = torch.cat([layer.first + torch.arange(8) for layer in channels.layers])
    network = sliced(flat, flat.initial, channels, chosen, shape)
    # Only behind the last block, in front of the head, which is whole: its columns are cut instead.
    assert not any(isinstance(module, Spread) for module in network.modules())


def test_a_layer_that_has_to_see_all_gets_zeros() -> None:
    stages = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.LayerNorm(5), nn.Linear(5, 3))
    flat = Flat(stages)
    channels = channels_of(flat, (6,))
    chosen = torch.tensor([0, 3, *range(5, 8)])
    network = sliced(flat, flat.initial, channels, chosen, (6,))
    x = torch.randn(4, 6)
    wanted = flat.network(channels.masked(flat.initial, chosen)).train(False)(x)
    torch.testing.assert_close(network(x), wanted)
    assert sum(isinstance(module, Spread) for module in network.modules()) == 1


# ---- masks and choices


@pytest.fixture
def flat() -> Flat:
    """A convolution of four channels, two linear layers of five and three, and a norm."""
    return Flat(sorts(3))


@pytest.fixture
def channels(flat: Flat) -> Channels:
    return channels_of(flat, (2, 8, 8))


def test_masked_channels_are_zero_behind_their_norms(flat: Flat, channels: Channels) -> None:
    torch.manual_seed(2)
    w = torch.randn(flat.size)
    masked = channels.masked(w, torch.tensor([0, 2, *range(4, 12)]))
    x = torch.randn(1, 2, 8, 8)
    for depth in (1, 2):  # the convolution, and its norm
        said = flat.network(masked).get_submodule("conv")[:depth](x)[0]  # type: ignore[index]
        assert (said != 0).flatten(1).any(1).tolist() == [True, False, True, False]
    assert torch.equal(channels.masked(w, torch.arange(12)), w)
    longer = torch.cat([w, w])
    assert torch.equal(channels.masked(longer, torch.tensor([0]))[flat.size :], w)


def test_positions_are_of_the_chosen_and_of_nobodys() -> None:
    flat = Flat(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.GroupNorm(1, 3), nn.Linear(3, 2)))
    channels = channels_of(flat, (2,))
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
    channels = channels_of(flat, (2, 4))
    norms = channels.norms(flat.initial)
    for chosen in (channels.evenly(norms, 0.5), channels.overall(norms, 0.5)):
        assert chosen.tolist() == []
        assert channels.positions(chosen).tolist() == [0, 1, 2, 3]


def test_a_graph_says_what_its_network_says() -> None:
    network = sorts(3).train(False)
    x = torch.randn(5, 2, 8, 8)
    torch.testing.assert_close(trace(network, torch.zeros(1, 2, 8, 8))(x), network(x))


@pytest.mark.parametrize("name", ["cnn", "vgg group"])
def test_of_equal_channels_the_first_are_chosen(name: str) -> None:
    channels = channels_of(*flat_of(name))
    scores = torch.ones(channels.count)
    counts = [1 + layer.count // 3 for layer in channels.layers]
    pairs = zip(channels.layers, counts, strict=True)
    wanted = [layer.first + place for layer, count in pairs for place in range(count)]
    assert channels.largest(scores, counts).tolist() == wanted
    # One of each layer, and the first of all others.
    firsts = [layer.first for layer in channels.layers]
    others = [place for place in range(channels.count) if place not in firsts]
    few = channels.overall(scores, 0.5)
    wanted = sorted(firsts + others[: len(few) - len(firsts)])
    assert few.tolist() == wanted
    assert len(few) == round(channels.count / 2)


def test_each_layer_keeps_a_channel_whatever_the_scores() -> None:
    channels = channels_of(*flat_of("cnn"))
    scores = torch.zeros(channels.count)
    scores[:7] = torch.inf
    assert {layer.first for layer in channels.layers} <= set(channels.overall(scores, 0.7).tolist())
