"""Compressors: what travels, what it stands for, and that lifting is the adjoint of compressing."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.messages.codec import Coding
from fedmpi.methods.hetiot.compress import (
    Compressor,
    Factors,
    Local,
    LowRank,
    Prune,
    Quant,
    Width,
)
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, key
from tests.small import reads, small, smooth, sorts

CPU = torch.device("cpu")
SHAPE = (2, 8, 8)


@pytest.fixture
def flat() -> Flat:
    """A convolution, a norm and linear layers."""
    return Flat(sorts(3))


def all_of(flat: Flat) -> list[Compressor]:
    """One of each kind."""
    prunes = [Prune(flat, CPU, by_layer=by_layer) for by_layer in (False, True)]
    return [*prunes, Width(flat, CPU, SHAPE), Quant(flat, CPU), LowRank(flat, CPU)]


kinds = pytest.mark.parametrize("kind", range(5), ids=["prune", "layers", "width", "quant", "rank"])


@kinds
def test_a_share_of_one_leaves_a_model_as_it_is(kind: int, flat: Flat) -> None:
    some, w = all_of(flat)[kind], torch.randn(flat.size)
    local = some.local(some.blocks(w, 1.0), 1.0)
    assert torch.equal(local.whole(local.start, flat.size), w)
    assert local.part is None or local.part.flat is flat
    assert local.mask is None or bool(local.mask.all())
    update = torch.randn(flat.size)
    assert torch.allclose(lifted(local, update, flat), update, atol=1e-5)


def lifted(local: Local, update: Tensor, flat: Flat) -> Tensor:
    """What the server makes of an update of the values, [n]."""
    blocks = local.upload(update, key(1, Purpose.ROUND, 0, 0))
    return local.lifted(local.sent(blocks, CPU), flat.size)


@kinds
def test_lifting_is_the_adjoint(kind: int, flat: Flat) -> None:
    """<whole'(v), g> = <v, whole'^T g>: the change of the whole model by a small one of values."""
    some, w = all_of(flat)[kind], flat.initial
    local = some.local(some.blocks(w, 0.4), 0.4)
    step = 1e-3 * torch.randn(len(local.start))
    if local.mask is not None:
        step *= local.mask
    before, after = (local.whole(v, flat.size) for v in (local.start, local.start + step))
    near = 2e-6 if kind != 3 else 2e-6 + 1e-3 * 8 / 2**13  # quant rounds by its 13 bits
    torch.testing.assert_close(lifted(local, step, flat), after - before, rtol=1e-3, atol=near)


@pytest.mark.parametrize("by_layer", [False, True])
def test_the_largest_weights_stay(by_layer: bool, flat: Flat) -> None:
    some, w = Prune(flat, CPU, by_layer=by_layer), torch.randn(flat.size)
    local = some.local(some.blocks(w, 0.3), 0.3)
    prunable = flat.prunable()
    stays = local.start != 0
    assert stays[~prunable].all()
    assert torch.equal(local.start[stays], w[stays])
    assert torch.equal(local.mask, stays.float())
    pieces = [p for p in flat.parameters if prunable[p.start]]
    counts = [int(stays[p.start : p.stop].sum()) for p in pieces]
    sizes = [p.stop - p.start for p in pieces]
    if by_layer:
        assert counts == [round(0.3 * size) for size in sizes]
    assert sum(counts) == pytest.approx(0.3 * sum(sizes), abs=2)
    for piece in pieces if by_layer else []:
        part, kept = w[piece.start : piece.stop].abs(), stays[piece.start : piece.stop]
        assert part[kept].min() >= part[~kept].max()
    if not by_layer:
        part, kept = w[prunable].abs(), stays[prunable]
        assert part[kept].min() >= part[~kept].max()


@pytest.mark.parametrize(("keep", "bits"), [(0.5, 16), (0.25, 8), (0.1, 3), (0.01, 1)])
def test_codes_are_near(keep: float, bits: int, flat: Flat) -> None:
    some, w = Quant(flat, CPU), torch.randn(flat.size)
    blocks = some.blocks(w, keep)
    assert [(block.coding, block.bits) for block in blocks] == [
        (Coding.CODES, bits),
        (Coding.F4, 0),  # the least value and the step of each tensor
    ]
    assert blocks[1].count == 2 * len(flat.parameters)
    start = some.local(blocks, keep).start
    for piece in flat.parameters:
        exact, rough = (vector[piece.start : piece.stop] for vector in (w, start))
        step = (exact.max() - exact.min()) / (2**bits - 1)
        assert (exact - rough).abs().max() <= 0.51 * step + 1e-6
        assert len(rough.unique()) <= 2**bits


def test_statistics_are_not_quantized() -> None:
    flat = Flat(smooth(small().model, (1, 8, 8), 3, 1))
    w = torch.rand(flat.size)
    some = Quant(flat, CPU)
    start = some.local(some.blocks(w, 0.1), 0.1).start
    assert torch.equal(start[flat.stat_positions], w[flat.stat_positions])
    assert not torch.allclose(start, w, atol=1e-3)


def test_factors_are_the_best_of_their_rank(flat: Flat) -> None:
    factors = Factors(flat, 0.3)
    w = torch.randn(flat.size)
    found = factors.product(factors.split(w))
    sizes = {p.name: (p.shape[0], p.shape[1:].numel()) for p in flat.parameters if len(p.shape) > 1}
    ranks = {n: max(1, int(0.3 * o * i / (o + i))) for n, (o, i) in sizes.items()}
    for piece in flat.parameters:
        exact, rough = piece.of(w), piece.of(found)
        if piece.name in ranks and ranks[piece.name] * sum(sizes[piece.name]) < exact.numel():
            u, s, v = np.linalg.svd(exact.flatten(1).numpy(), full_matrices=False)
            rank = ranks[piece.name]
            wanted = (u[:, :rank] * s[:rank]) @ v[:rank]
            np.testing.assert_allclose(rough.flatten(1), wanted, rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(exact, rough)
    assert factors.flat.size < 0.5 * flat.size


@pytest.mark.parametrize(
    "name", ["cnn", "cnn1d", "resnet", "rnn", "vgg", "lenet", "mlp", "vit", "bert"]
)
def test_a_network_of_factors_is_the_network_of_products(name: str) -> None:
    shape = {"cnn1d": (6, 128), "rnn": (9,), "bert": (9,)}.get(name, (3, 32, 32))
    more = ("model.width=24", "model.heads=2", "model.depth=2") if name in ("vit", "bert") else ()
    settings, kind = small(f"model.name={name}", *more).model, reads(name)
    flat = Flat(models.build(settings, shape, 5, 1, kind))
    factors = Factors(flat, 0.2)
    values = factors.split(flat.initial)
    x = torch.randint(5, (2, *shape)) if kind == "symbols" else torch.randn(2, *shape)
    assert factors.flat.size < flat.size
    found, wanted = (
        some.network(w).train(False)(x)
        for some, w in ((factors.flat, values), (flat, factors.product(values)))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_gradients_of_factors_are_projections_of_the_gradient(flat: Flat) -> None:
    """dL/dB = G A^T and dL/dA = B^T G, where G is the gradient at the product."""
    factors = Factors(flat, 0.3)
    values = factors.split(flat.initial)
    x, y = torch.randn(5, *SHAPE), torch.arange(5) % 3

    def gradient(shape: Flat, w: Tensor) -> Tensor:
        network = shape.network(w)
        loss = cross_entropy(network(x), y)
        found = torch.autograd.grad(loss, list(network.parameters()))
        return torch.cat([g.flatten() for g in found])

    thin, whole = gradient(factors.flat, values), gradient(flat, factors.product(values))
    assert factors.pairs
    for piece, inside, outside in factors.pairs:
        g = piece.of(whole).flatten(1)
        a, b = inside.of(values).flatten(1), outside.of(values).flatten(1)
        near = {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(outside.of(thin).flatten(1), g @ a.T, **near)
        torch.testing.assert_close(inside.of(thin).flatten(1), b.T @ g, **near)
