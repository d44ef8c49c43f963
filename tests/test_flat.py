"""A network as one vector: views, not copies, and gradients that are torch's own."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi.config import ConfigError
from fedmpi.flat import Flat, Rows

CPU = torch.device("cpu")
SHAPE, CLASSES, LINE = (2, 8, 8), 3, 64


@pytest.fixture
def flat() -> Flat:
    """Stages of all sorts; a norm's parameters are no weights to prune."""
    torch.manual_seed(0)
    stages = OrderedDict(
        conv=nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()),
        dense=nn.Sequential(nn.Flatten(), nn.Linear(256, 5), nn.Tanh()),
        head=nn.Linear(5, CLASSES),
    )
    return Flat(nn.Sequential(stages))


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


def gradient(network: nn.Sequential) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in network.parameters()])


def test_the_vector_is_torchs(flat: Flat) -> None:
    wanted = nn.utils.parameters_to_vector(flat.stages.parameters())
    assert torch.equal(flat.initial, wanted)
    assert flat.size == len(wanted) == 72 + 4 + 8 + 1280 + 5 + 15 + 3


def test_views_are_the_vector(flat: Flat) -> None:
    w = torch.arange(float(flat.size))
    views = flat.views(w)
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
    for parameter, view in zip(flat.stages.parameters(), flat.views(marks), strict=True):
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
    with pytest.raises(ConfigError, match="there are: none"):
        alone.split("head")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_rows_are_models_of_their_own(flat: Flat, count: int) -> None:
    rows = Rows(flat, count, CPU)
    assert len(rows) == count
    assert rows.w.shape == rows.g.shape == (count, flat.size)
    w = torch.stack([vector(flat, row) for row in range(count)])
    rows.w.copy_(w)
    x, _ = batch()
    for row in range(count):
        assert torch.equal(rows.networks[row](x), plain(flat, w[row])(x))


@pytest.mark.parametrize("size", [1, 15, 16, 17])
def test_rows_begin_at_cache_lines(size: int) -> None:
    rows = Rows(Flat(nn.Sequential(nn.Linear(size, 1, bias=False))), 3, CPU)
    for matrix in (rows.w, rows.g):
        assert all(row.data_ptr() % LINE == 0 for row in matrix)


def test_no_rows_are_no_models(flat: Flat) -> None:
    assert len(Rows(flat, 0, CPU)) == 0


@pytest.mark.parametrize("row", [0, 2])
def test_gradients_are_torchs(flat: Flat, row: int) -> None:
    rows = Rows(flat, 3, CPU)
    rows.w.copy_(torch.stack([vector(flat, seed) for seed in range(3)]))
    rows.g.fill_(7)
    before = rows.w.clone()
    x, y = batch()
    network = plain(flat, rows.w[row])
    wanted = cross_entropy(network(x), y)
    wanted.backward()
    loss = rows.loss(row, x, y)
    assert torch.equal(loss, wanted)
    assert not loss.requires_grad
    torch.testing.assert_close(rows.g[row], gradient(network), rtol=1e-5, atol=1e-7)
    others = [other for other in range(3) if other != row]
    assert (rows.g[others] == 7).all(), "other rows keep their gradients"
    assert torch.equal(rows.w, before)


def test_gradients_replace_and_do_not_add(flat: Flat) -> None:
    rows = Rows(flat, 1, CPU)
    rows.w.copy_(flat.initial)
    rows.loss(0, *batch())
    first = rows.g.clone()
    rows.loss(0, *batch())
    assert torch.equal(rows.g, first)


def test_a_step_on_the_rows_moves_the_networks(flat: Flat) -> None:
    rows = Rows(flat, 1, CPU)
    rows.w.copy_(flat.initial)
    network = plain(flat, flat.initial)
    descent = torch.optim.SGD(network.parameters(), lr=0.5)
    for seed in range(3):
        x, y = batch(seed=seed)
        descent.zero_grad()
        cross_entropy(network(x), y).backward()
        descent.step()
        rows.loss(0, x, y)
        rows.w.add_(rows.g, alpha=-0.5)
    wanted = nn.utils.parameters_to_vector(network.parameters())
    torch.testing.assert_close(rows.w[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", ["conv", "dense"])
def test_a_split_pass_is_the_whole_pass(flat: Flat, cut: str) -> None:
    """Front, gradient at the cut from the back (`also`), and back through the front with it."""
    front, back = (Rows(part, 2, CPU) for part in flat.split(cut))
    w, (x, y) = vector(flat, 4), batch()
    front.w[1], back.w[1] = w[: front.flat.size], w[front.flat.size :]

    a = front.networks[1](x)
    there = a.detach().requires_grad_()
    loss = cross_entropy(back.networks[1](there), y)
    (at_cut,) = back.backward(1, loss, also=(there,))
    assert front.backward(1, a, at_cut) == ()

    network = plain(flat, w)
    cross_entropy(network(x), y).backward()
    found = torch.cat([front.g[1], back.g[1]])
    torch.testing.assert_close(found, gradient(network), rtol=1e-5, atol=1e-7)
    assert not front.g[0].any()
    assert not back.g[0].any()


def test_several_tensors_beside_the_parameters(flat: Flat) -> None:
    rows = Rows(flat, 1, CPU)
    rows.w.copy_(flat.initial)
    x, y = batch()
    x.requires_grad_()
    scale = torch.tensor(3.0, requires_grad=True)
    loss = scale * cross_entropy(rows.networks[0](x), y)
    by_x, by_scale = rows.backward(0, loss, also=(x, scale))
    again = cross_entropy(plain(flat, flat.initial)(x), y)
    torch.testing.assert_close(by_scale, again.detach())
    (wanted,) = torch.autograd.grad(3 * again, x)
    torch.testing.assert_close(by_x, wanted)
