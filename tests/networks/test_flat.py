"""A network as one vector: views, not copies, and gradients that are torch's own."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from fedmpi.config import ConfigError
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import BatchNorm
from tests.small import sorts

SHAPE, CLASSES = (2, 8, 8), 3


@pytest.fixture
def flat() -> Flat:
    """Stages of all sorts; a norm's parameters are no weights to prune."""
    return Flat(sorts(CLASSES))


def batch(size: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *SHAPE, generator=generator)
    return x, torch.randint(CLASSES, (size,), generator=generator)


def vector(flat: Flat, seed: int) -> Tensor:
    return torch.randn(flat.size, generator=torch.Generator().manual_seed(seed)) / 10


def plain(flat: Flat, w: Tensor) -> nn.Sequential:
    """A network with parameters of its own, set to w [n] by torch."""
    network = copy.deepcopy(flat.stages)
    nn.utils.vector_to_parameters(w.clone(), network.parameters())
    return network


def test_the_vector_is_torchs(flat: Flat) -> None:
    wanted = nn.utils.parameters_to_vector(flat.stages.parameters())
    assert torch.equal(flat.initial, wanted)
    assert flat.size == len(wanted) == 72 + 4 + 8 + 1280 + 5 + 15 + 3


def test_views_are_the_vector(flat: Flat) -> None:
    w = torch.arange(float(flat.size))
    views = [piece.of(w) for piece in flat.parameters]
    assert [view.shape for view in views] == [p.shape for p in flat.stages.parameters()]
    assert torch.equal(torch.cat([view.reshape(-1) for view in views]), w)
    w[3] = -1
    views[-1][-1] = -2
    assert (views[0].reshape(-1)[3], w[-1]) == (-1, -2)


def test_a_network_has_its_parameters_in_the_vector(flat: Flat) -> None:
    w = flat.initial.clone()
    network = flat.network(w)
    x, _ = batch()
    assert torch.equal(network(x), flat.stages(x))
    start, stop = w.data_ptr(), w.data_ptr() + 4 * flat.size
    assert all(start <= p.data_ptr() < stop for p in network.parameters())
    w.copy_(vector(flat, 5))
    assert torch.equal(network(x), plain(flat, w)(x)), "the vector moves the network"
    with torch.no_grad():
        next(iter(network.parameters())).zero_()
    assert not w[:72].any(), "the network moves the vector"
    assert torch.equal(flat.initial, nn.utils.parameters_to_vector(flat.stages.parameters()))


def test_prunable_are_the_weights_of_convolutions_and_linear_layers(flat: Flat) -> None:
    wanted = [m.weight for m in flat.stages.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    marks = flat.prunable()
    assert (marks.dtype, marks.shape) == (torch.bool, (flat.size,))
    for parameter, view in zip(
        flat.stages.parameters(), [piece.of(marks) for piece in flat.parameters], strict=True
    ):
        assert bool(view.all()) == any(parameter is weight for weight in wanted)
        assert view.all() == view.any()
    assert int(marks.sum()) == 72 + 1280 + 15


def test_cuts_are_all_stages_but_the_last(flat: Flat) -> None:
    assert flat.cuts() == ["conv", "dense"]


@pytest.mark.parametrize(("cut", "size"), [("conv", 84), ("dense", 1369)])
def test_the_front_is_a_prefix_and_the_back_the_rest(flat: Flat, cut: str, size: int) -> None:
    front, back = flat.split(cut)
    assert (front.size, back.size) == (size, flat.size - size)
    assert torch.equal(torch.cat([front.initial, back.initial]), flat.initial)
    assert torch.equal(torch.cat([front.prunable(), back.prunable()]), flat.prunable())
    w, (x, _) = vector(flat, 3), batch()
    one, other = front.network(w[:size]), back.network(w[size:])
    assert torch.equal(other(one(x)), flat.network(w)(x))
    assert [*dict(one.named_children()), *dict(other.named_children())] == ["conv", "dense", "head"]


@pytest.mark.parametrize("cut", ["head", "conv2", "", "0", "conv.0"])
def test_a_missing_cut_is_an_error_that_names_the_possible(flat: Flat, cut: str) -> None:
    with pytest.raises(ConfigError, match=f"cut = '{cut}': .* there are: conv, dense$"):
        flat.split(cut)


def test_one_stage_has_no_cut() -> None:
    alone = Flat(nn.Sequential(OrderedDict(head=nn.Linear(3, 2))))
    with pytest.raises(ConfigError, match="no split point: it is a single stage"):
        alone.split("head")


def test_statistics_are_in_the_vector_and_do_not_move() -> None:
    norm = BatchNorm(2)
    stages = OrderedDict(
        conv=nn.Sequential(nn.Conv2d(1, 2, 3), norm),
        head=nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    )
    flat = Flat(nn.Sequential(stages))
    names = [piece.name for piece in flat.statistics]
    assert names == ["conv.1.running_mean", "conv.1.running_var"]
    assert (flat.count, flat.size, len(flat.local_stats)) == (20 + 4 + 219, 20 + 4 + 4 + 219, 0)
    assert [piece.start for piece in flat.statistics] == [24, 26], "module by module"
    assert flat.moving.tolist() == [1.0] * 24 + [0.0] * 4 + [1.0] * 219
    assert flat.initial[24:28].tolist() == [0, 0, 1, 1]
    front, back = flat.split("conv")
    assert torch.equal(torch.cat([front.initial, back.initial]), flat.initial)
    assert (front.size, front.count) == (28, 24)

    w = flat.initial.clone()
    network = flat.network(w)
    network(torch.randn(4, 1, 8, 8))
    assert torch.equal(w[24:26], network.conv[1].running_mean)
    assert w[24:28].tolist() != flat.initial[24:28].tolist(), "they are views"
    assert not flat.prunable()[20:28].any()


def test_local_statistics_are_aside() -> None:
    stages = OrderedDict(conv=nn.Sequential(nn.Conv2d(1, 2, 3), BatchNorm(2)), head=nn.Flatten())
    flat = Flat(nn.Sequential(stages), is_local=True)
    assert (flat.size, flat.count, flat.moving) == (24, 24, None)
    assert flat.local_stats.tolist() == [0, 0, 1, 1]
    w, local_stats = flat.initial.clone(), flat.local_stats.clone()
    flat.network(w, local_stats)(torch.randn(4, 1, 8, 8))
    assert torch.equal(w, flat.initial)
    assert local_stats.tolist() != flat.local_stats.tolist()
    flat.network(w)(torch.randn(4, 1, 8, 8))
    assert flat.local_stats.tolist() == [0, 0, 1, 1], "without a place of its own it gets a copy"


def test_only_float_buffers_that_are_saved_are_statistics() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.register_buffer("known", torch.ones(2))
            self.register_buffer("unsaved", torch.ones(2), persistent=False)
            self.register_buffer("counter", torch.zeros((), dtype=torch.int64))
            self.register_buffer("absent", None)

    flat = Flat(nn.Sequential(Odd()))
    assert [piece.name for piece in flat.parameters] == ["0.weight"]
    assert [piece.name for piece in flat.statistics] == ["0.known"]
    assert flat.initial.tolist() == [0, 0, 0, 1, 1]
