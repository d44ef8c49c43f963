"""Which weights and channels are worth least, and networks without them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import models
from fedmpi.config import State
from fedmpi.engine import Engine
from fedmpi.methods.fedsl.fronts import NarrowedWaveParts
from fedmpi.methods.fedsl.importance import Channels, Memory, Weights
from fedmpi.networks.flat import Flat
from fedmpi.training.descent import Descent
from fedmpi.training.inner import Inner
from fedmpi.training.store import Stores
from tests.plain import CNN
from tests.small import small

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
FRONTS = {
    "mlp": ((), "hidden2", [12]),
    "cnn": (CNN, "conv2", [3]),
    "flattened": (CNN, "dense", [3, 4]),
    "resnet": (("model.name=resnet", "model.depth=8"), "group2_block1", [16, 32]),
    "bottlenecks": (("model.name=resnet", "model.depth=50", "model.width=8"), "group1_block2", []),
}
fronts = pytest.mark.parametrize("case", FRONTS)


def front_of(case: str) -> Flat:
    words, cut, _ = FRONTS[case]
    whole = Flat(models.build(small(*words).model, SHAPE, 10, 1))
    return whole.split(cut)[0]


def random(size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@fronts
def test_what_comes_out_of_a_front_stays(case: str) -> None:
    flat = front_of(case)
    found = Channels(flat, CPU, SHAPE)
    if FRONTS[case][2]:
        assert found.widths == FRONTS[case][2]
    few = found.narrowed(found.choose(random(flat.size), 0.5)).flat
    assert few.size < flat.size
    x = torch.randn(2, *SHAPE)
    outputs = [f.network(f.initial.clone()).train(False)(x) for f in (few, flat)]
    assert outputs[0].shape == outputs[1].shape


@fronts
def test_a_channels_worth_is_the_sum_over_all_that_makes_it(case: str) -> None:
    """Each position is one channel's or nobody's; without it, what it owns is not there."""
    flat = front_of(case)
    found = Channels(flat, CPU, SHAPE)
    for channel in range(found.count):
        others = torch.tensor([c for c in range(found.count) if c != channel])
        own = found.owners == channel
        assert own.any()
        assert (found.mask(others)[own] == 0).all()
    change = random(flat.size)
    worth = torch.stack([change[found.owners == c].square().sum() for c in range(found.count)])
    kept, first = found.choose(change, 0.4), 0
    for width in found.widths:
        own = worth[first : first + width]
        count = int(np.ceil(round(0.6 * width, 6)))
        wanted = first + own.argsort(descending=True)[:count].sort().values
        assert torch.equal(kept[(kept >= first) & (kept < first + width)], wanted)
        first += width


@pytest.mark.parametrize("case", ["mlp", "cnn", "flattened"])
def test_a_narrowed_front_says_and_learns_what_the_masked_one_does(case: str) -> None:
    """Rows of several widths beside each other, and of the same one with other channels."""
    words, cut, _ = FRONTS[case]
    engine = Engine(small(*words, "method.name=splitfed", f"method.cut={cut}"))
    flat = engine.clients.held
    found = Channels(flat, CPU, SHAPE)
    kept = [found.choose(random(flat.size, seed), 0.5) for seed in range(2)]
    choices = [None, *kept, found.choose(random(flat.size), 0.3)]
    parts = NarrowedWaveParts(engine.trainer, flat)
    (party,) = parts.open(0, [range(4)], flat.initial)
    number = {client: row for row, client in enumerate(party.order)}
    parts.narrow(lambda client: found.narrowed(choices[number[client]]))
    plain = engine.trainer.descent_of(flat, 4).rows
    masks = [torch.ones(flat.size) if c is None else found.mask(c) for c in choices]
    for row, mask in enumerate(masks):
        party.rows.w[row] = plain.w[row] = (flat.initial + random(flat.size, row) / 10) * mask
    for count in (4, 2):
        xs = [torch.randn(3 + row, *SHAPE) for row in range(count)]
        outputs = [rows.forward(xs) for rows in (party.rows, plain)]
        for one, other in zip(*outputs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        cotangents = [torch.randn(output.shape) for output in outputs[0]]
        for rows in (party.rows, plain):
            rows.backward(cotangents)
        for row in range(count):
            wanted = plain.head(count)[1][row] * masks[row]
            torch.testing.assert_close(party.rows.head(count)[1][row], wanted)


def test_narrowed_networks_are_kept_for_the_next_round_and_no_longer() -> None:
    engine = Engine(small("method.name=splitfed", "method.cut=hidden2"))
    flat = engine.clients.held
    found, parts = Channels(flat, CPU, SHAPE), NarrowedWaveParts(engine.trainer, flat)
    inner: list[object] = []
    for rate in (0.5, 0.5, 0.2):
        (party,) = parts.open(0, [range(3)], flat.initial)
        part = found.narrowed(found.choose(random(flat.size), rate))
        parts.narrow(lambda client, part=part: part)
        assert isinstance(party.rows, Inner) and isinstance(party.descent, Descent)
        inner += party.rows.inner.values()
    assert inner[0] is inner[1] and inner[1] is not inner[2]
    assert len(inner) == 3


def test_weights_go_by_their_change_and_all_else_stays() -> None:
    flat = front_of("cnn")
    found, change = Weights(flat, CPU), random(flat.size)
    prunable = flat.prunable()
    mask = found.mask(found.choose(change, 0.25))
    assert (mask[~prunable] == 1).all()
    assert int(mask[prunable].sum()) == round(0.75 * int(prunable.sum()))
    some, rest = change.abs()[prunable & (mask == 0)], change.abs()[prunable & (mask == 1)]
    assert some.max() < rest.min()
    assert torch.equal(found.beyond(None, flat.size + 3), torch.ones(flat.size + 3))
    beyond = found.beyond(found.choose(change, 0.25), flat.size + 3)
    assert torch.equal(beyond, torch.cat([mask, torch.ones(3)]))


@pytest.mark.parametrize("kind", ["weights", "channels"])
def test_what_was_cut_out_is_remembered_by_its_last_gradient(kind: str) -> None:
    """A channel has none while it is not there; a weight has one all the time."""
    flat = front_of("mlp")
    pruner = Weights(flat, CPU) if kind == "weights" else Channels(flat, CPU, SHAPE)
    memory = Memory(pruner, flat.size, flat.size, Stores(State()), by_magnitude=False)
    gradients = [random(flat.size, seed) for seed in range(2)]
    for g in gradients:
        memory.release()
        memory.begin(7, flat.initial, 0.5)
        memory.observe(7, g)
        memory.end(7, flat.initial, True)
    mask = memory.mask(7)
    assert 0 < int(mask.sum()) < flat.size
    old = (mask == 0) & (torch.tensor(kind == "channels"))
    wanted = torch.where(old, *(g.square() for g in gradients))
    assert torch.equal(memory.squares[7], wanted)
    assert torch.equal(memory.own[7], flat.initial)


@pytest.mark.parametrize("smoothing", [0.0, 0.75])
def test_squares_are_a_running_mean_over_steps_and_rounds(smoothing: float) -> None:
    """By numpy: the first step is taken as it is, later ones by their share; nothing is cut."""
    flat = front_of("mlp")
    memory = Memory(Weights(flat, CPU), flat.size, flat.size, Stores(State()), smoothing)
    wanted = None
    for t in range(3):
        memory.release()
        memory.begin(7, flat.initial, 0.5)
        for step in range(2):
            g = random(flat.size, 2 * t + step)
            memory.observe(7, g)
            square = np.square(g.double().numpy())
            wanted = square if wanted is None else smoothing * wanted + (1 - smoothing) * square
        memory.end(7, flat.initial, True)
    np.testing.assert_allclose(memory.squares[7], wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["weights", "channels"])
def test_without_a_gradient_the_smallest_are_pruned(kind: str) -> None:
    """By magnitude, against a sort; and channels that were cut out so may come back."""
    flat = front_of("mlp")
    pruner = Weights(flat, CPU) if kind == "weights" else Channels(flat, CPU, SHAPE)
    memory, w = Memory(pruner, flat.size, flat.size, Stores(State())), random(flat.size)
    memory.begin(7, w, 0.5)
    mask, worth, prunable = memory.mask(7), w.double().square(), flat.prunable()
    if kind == "weights":
        limit = worth[prunable].sort().values[int(prunable.sum()) // 2]
        assert torch.equal(mask > 0, ~prunable | (worth >= limit))
    else:
        owners = Channels(flat, CPU, SHAPE).owners
        each = torch.stack([worth[owners == c].sum() for c in range(12)])
        assert torch.equal(memory.kept(7), each.argsort(descending=True)[:6].sort().values)
    assert memory.taken(7) == pytest.approx(float(worth[mask == 0].sum()), rel=1e-9)
    memory.observe(7, random(flat.size, 2) * (mask if kind == "channels" else 1))
    memory.end(7, w, True)
    assert (memory.squares[7] > 0).all(), "what is cut out has a chance, too"
    again = Memory(pruner, flat.size, flat.size, Stores(State()), by_magnitude=False)
    assert torch.equal(again.begin(7, w, 0.5), w)


def test_of_equal_channels_the_first_are_kept() -> None:
    found = Channels(front_of("flattened"), CPU, SHAPE)
    kept = found.choose(torch.zeros(front_of("flattened").size), 0.5)
    assert kept.tolist() == [0, 1, 3, 4]
