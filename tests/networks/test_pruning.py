"""How many weights stay, which, and what grows instead, against formulas and plain loops."""

from math import cos, pi

import numpy as np
import pytest
import torch

from fedmpi import models
from fedmpi.messages.counts import keep_floor
from fedmpi.networks import pruning
from fedmpi.networks.flat import Flat
from tests.small import small, sorts


def flat() -> Flat:
    """A convolution and two linear layers: 72, 1280 and 15 weights."""
    return Flat(sorts(3))


def split(mask: torch.Tensor, network: Flat) -> list[int]:
    """Weights that a mask keeps in each layer."""
    return [int(piece.of(mask).sum()) for piece in pruning.weights(network)]


def test_weights_are_what_can_be_pruned_layer_by_layer() -> None:
    assert [p.name for p in pruning.weights(flat())] == [
        *("conv.0.weight", "dense.1.weight", "head.weight"),
    ]


def test_uniform_layers_are_as_sparse() -> None:
    assert pruning.uniform(flat(), 0.9) == [7, 128, 1]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8, 0.95, 0.99, 0.9999])
@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet", "resnet"])
def test_erk_sums_to_the_target_in_proportion_to_dimensions(name: str, sparsity: float) -> None:
    settings = small(f"model.name={name}").model
    network = Flat(models.build(settings, (1, 32, 32), 10, seed=1))
    shapes = [piece.shape for piece in pruning.weights(network)]
    sizes = np.array([shape.numel() for shape in shapes])
    counts = np.array(pruning.erk(network, sparsity))
    assert counts.sum() == keep_floor(int(sizes.sum()), 1 - sparsity)
    assert (counts >= 0).all() and (counts <= sizes).all()
    # One factor for all that are not dense, up to the rounding of a single weight.
    sums = np.array([sum(shape) for shape in shapes])
    free = counts < sizes
    if free.any():
        scale = counts[free].sum() / sums[free].sum()
        assert (np.abs(counts[free] - scale * sums[free]) <= 1 + 1e-9).all()
        assert (scale * sums[~free] >= sizes[~free] - 1).all(), "who is dense would be more than so"


def test_erk_of_a_small_network() -> None:
    """Sums of dimensions are 4 + 2 + 3 + 3, 5 + 256 and 3 + 5; a tenth of 1367 is 136."""
    wanted = np.array([12, 261, 8]) * 136 / 281
    assert pruning.erk(flat(), 0.9) == [6, 126, 4]
    assert wanted.round(2).tolist() == [5.81, 126.32, 3.87]


def test_the_largest_of_each_layer_and_the_first_of_ties() -> None:
    network = flat()
    scores = torch.zeros(network.size)
    head = pruning.weights(network)[2]
    scores[head.start + 3], scores[head.start + 9] = 1.0, 2.0
    mask = pruning.largest(network, scores, [5, 0, 3])
    assert split(mask, network) == [5, 0, 3]
    assert mask[:5].all(), "of zeros the first"
    assert (mask[head.start : head.stop].nonzero().squeeze(1)).tolist() == [0, 3, 9]
    assert mask[~network.prunable()].all()


def test_random_masks_keep_what_they_should_anywhere() -> None:
    network = flat()
    random = np.random.default_rng(5)
    masks = torch.stack([pruning.drawn(network, [7, 128, 1], random) for _ in range(300)])
    assert all(split(mask, network) == [7, 128, 1] for mask in masks)
    assert masks[:, ~network.prunable()].all()
    share = masks[:, :72].float().mean(0)
    assert (share - 7 / 72).abs().max() < 5 * (0.1 * 0.9 / 300) ** 0.5, "all alike"
    masks = torch.stack([pruning.anywhere(network, 136, random) for _ in range(300)])
    counts = np.array([split(mask, network) for mask in masks])
    assert (counts.sum(1) == 136).all()
    assert len({tuple(row) for row in counts.tolist()}) > 30
    np.testing.assert_allclose(counts.mean(0), 136 * np.array([72, 1280, 15]) / 1367, rtol=0.1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_regrowing_is_pruning_and_growing_layer_by_layer(share: float) -> None:
    network, random = flat(), np.random.default_rng(1)
    counts = [20, 300, 6]
    mask = pruning.drawn(network, counts, random)
    w = torch.from_numpy(random.normal(size=network.size)).float() * mask
    growth = torch.from_numpy(random.normal(size=network.size)).float()
    found = pruning.regrown(network, w, growth, mask, counts, share)
    assert split(found, network) == counts
    assert found[~network.prunable()].all()
    for piece, count in zip(pruning.weights(network), counts, strict=True):
        old = [i for i in range(piece.start, piece.stop) if mask[i]]
        goes = sorted(old, key=lambda i: abs(float(w[i])))[: int(share * count)]
        stays = set(old) - set(goes)
        rest = [i for i in range(piece.start, piece.stop) if i not in stays]
        grown = sorted(rest, key=lambda i: -abs(float(growth[i])))[: len(goes)]
        here = found[piece.start : piece.stop].nonzero().squeeze(1) + piece.start
        assert set(here.tolist()) == stays | set(grown)


def test_regrowing_reaches_the_count_from_above_and_below() -> None:
    network, random = flat(), np.random.default_rng(1)
    w, growth = torch.ones(network.size), torch.ones(network.size)
    for before in ([10, 100, 2], [40, 900, 15]):
        mask = pruning.drawn(network, before, random)
        found = pruning.regrown(network, w, growth, mask, [20, 300, 6], 0.5)
        assert split(found, network) == [20, 300, 6]


def test_the_share_is_half_a_cosine() -> None:
    assert pruning.annealed(0.4, 0, 10) == 0.4
    assert pruning.annealed(0.4, 5, 10) == pytest.approx(0.2)
    assert pruning.annealed(0.4, 3, 10) == pytest.approx(0.2 * (1 + cos(0.3 * pi)))
    assert pruning.annealed(0.4, 10, 10) == pruning.annealed(0.4, 11, 10) == 0
