"""Clients are rows: one by one or stacked, on any row, beside anyone, they come out the same.

Dense networks do so in every bit, others to rounding. Every method is run with all that training
can do, in a plain network and in one of convolutions and layers that look beyond a sample; a member
of each family also in all that one may want or not.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedmpi import config, models
from fedmpi.datasets import synthetic
from fedmpi.engine import Engine
from fedmpi.messages.codec import Block
from fedmpi.models import resnet
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import BatchNorm, Dropout
from fedmpi.split.cuts import Crossing
from fedmpi.split.sides import Side
from fedmpi.training.descent import descent
from fedmpi.training.rows import Networks, OneByOne, Rows
from fedmpi.training.stacked import GRAPHS, Stacked, graph_size, loaded
from tests.plain import (
    BERT,
    CHOICES,
    CNN,
    CODECS,
    EVERYTHING,
    METHODS,
    RNN,
    VIT,
    allowed,
    codecs,
    families,
    member,
    play,
)
from tests.small import Run, alike, reads, refusal, run, small, smooth, sorts, text

CPU = torch.device("cpu")
SHAPE, CLASSES, LINE = (2, 8, 8), 3, 64
kinds = pytest.mark.parametrize("kind", [OneByOne, Stacked])
networks = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])

RESNET = ("model.name=resnet", "model.norm=batch", "model.depth=20", "lr=0.02")
ALL = (*EVERYTHING, "batch=7", "data.samples=150")
CASES = {
    "plain": (),
    "dropout": (*ALL, "model.dropout=0.4"),
    "cnn": (*ALL, *CNN, "model.dropout=0.3"),
    "adam": ("optimizer=adam", "lr=0.01", "schedule=restarts", "weight_decay=0.01", "clip=1.0"),
    "augment": (*ALL, *CNN, "augment=['crop', 'flip']"),
}
"""Everything that local training can do, with shards and last batches of all sizes."""


@pytest.fixture
def flat() -> Flat:
    """Stages of all sorts."""
    return Flat(sorts(CLASSES))


def made(kind: type[Rows], flat: Flat, count: int, *words: str) -> Rows:
    """Rows with models of their own."""
    rows = kind(flat, count, CPU, small(*words))
    for row in range(count):
        rows.w[row] = flat.initial + vector(flat, row)
    return rows


def vector(flat: Flat, seed: int) -> Tensor:
    return torch.randn(flat.size, generator=torch.Generator().manual_seed(seed)) / 10


def batches(sizes: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(9)
    xs = [torch.randn(size, *SHAPE, generator=generator) for size in sizes]
    return xs, [torch.randint(CLASSES, (size,), generator=generator) for size in sizes]


def module(flat: Flat, w: Tensor) -> nn.Sequential:
    """Plain torch with the parameters w."""
    network = flat.network(w.clone())
    vector_to_parameters(w.clone(), network.parameters())
    return network


@kinds
@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_models_of_their_own(kind: type[Rows], flat: Flat, count: int) -> None:
    rows = made(kind, flat, count)
    assert len(rows) == count
    assert rows.w.shape == rows.g.shape == (count, flat.size)
    xs, _ = batches((6, 2, 5)[:count])
    for output, x, w in zip(rows.forward(xs), xs, rows.w, strict=True):
        torch.testing.assert_close(output, module(flat, w)(x), rtol=1e-5, atol=1e-6)


@kinds
@pytest.mark.parametrize("size", [1, 15, 16, 17])
def test_rows_begin_at_cache_lines(kind: type[Rows], size: int) -> None:
    flat = Flat(nn.Sequential(nn.Linear(size, 1, bias=False)))
    rows = kind(flat, 3, CPU, small())
    for matrix in (rows.w, rows.g):
        assert all(row.data_ptr() % LINE == 0 for row in matrix)


@kinds
def test_no_rows_are_no_models(kind: type[Rows], flat: Flat) -> None:
    assert len(kind(flat, 0, CPU, small())) == 0


@kinds
@pytest.mark.parametrize("sizes", [(4, 4, 4), (6, 3, 1), (5, 5)], ids=str)
def test_losses_and_gradients_are_torchs(
    kind: type[Rows], flat: Flat, sizes: tuple[int, ...]
) -> None:
    rows = made(kind, flat, 3)
    rows.g.fill_(7)
    before = rows.w.clone()
    xs, ys = batches(sizes)
    for _ in range(2):  # gradients replace and do not add
        losses, inputs = rows.losses(xs, ys, ())
    found = rows.head(3)[1]
    assert losses.shape == (len(sizes),)
    assert not losses.requires_grad
    assert inputs == []
    for row, (x, y) in enumerate(zip(xs, ys, strict=True)):
        network = module(flat, rows.w[row])
        loss = cross_entropy(network(x), y)
        wanted = parameters_to_vector(torch.autograd.grad(loss, list(network.parameters())))
        torch.testing.assert_close(losses[row], loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-6)
    assert (found[len(sizes) :] == 7).all(), "rows without a batch keep their gradients"
    assert torch.equal(rows.w, before)


@kinds
@pytest.mark.parametrize("cut", ["conv", "dense"])
def test_a_split_pass_is_the_whole_pass(kind: type[Rows], flat: Flat, cut: str) -> None:
    """Fronts forward, backs with the gradient at their inputs, fronts backward with it."""
    front, back = (kind(part, 3, CPU, small()) for part in flat.split(cut))
    w = flat.initial + torch.stack([vector(flat, row) for row in range(3)])
    front.w.copy_(w[:, : front.flat.size])
    back.w.copy_(w[:, front.flat.size :])
    xs, ys = batches((5, 2, 2))
    there = [a.detach().clone().requires_grad_() for a in front.forward(xs)]
    _, gradients = back.losses(there, ys, ())
    assert [gradient.shape for gradient in gradients] == [a.shape for a in there]
    front.backward([gradient.reshape(-1) for gradient in gradients])
    whole = kind(flat, 3, CPU, small())
    whole.w.copy_(w)
    whole.losses(xs, ys, ())
    found = torch.cat([part.head(3)[1] for part in (front, back)], 1)
    torch.testing.assert_close(found, whole.head(3)[1], rtol=1e-4, atol=1e-6)


@kinds
@pytest.mark.parametrize("looked", [False, True])
def test_moving_is_the_same_whether_somebody_looked_at_gradients(
    kind: type[Rows], flat: Flat, looked: bool
) -> None:
    rows, other = made(kind, flat, 3), made(kind, flat, 3)
    xs, ys = batches((4, 3))
    for _ in range(2):
        for some in (rows, other):
            some.losses(xs, ys, ())
        if looked:
            rows.head(2)
        before = rows.w.clone()
        rows.move(2, 0.5)
        w, g = other.head(2)
        w.sub_(g, alpha=0.5)
        torch.testing.assert_close(rows.w, other.w, rtol=1e-6, atol=1e-7)
        assert torch.equal(rows.w[2], before[2])
        assert (rows.w[:2] != before[:2]).any(1).all()


@kinds
def test_bfloat16_is_near(kind: type[Rows], flat: Flat) -> None:
    xs, ys = batches((6, 3))
    found = []
    for words in ((), ("precision=bf16",)):
        rows = made(kind, flat, 2, *words)
        losses, _ = rows.losses(xs, ys, ())
        outputs = rows.forward(xs)
        assert {t.dtype for t in (*rows.head(2), losses, *outputs)} == {torch.float32}
        found.append((losses, rows.head(2)[1].clone(), torch.cat(outputs)))
    for exact, rough in zip(*found, strict=True):
        apart = float((exact - rough).detach().norm() / exact.detach().norm())
        assert 1e-5 < apart < 0.05


TRANSFORMER = ("model.width=16", "model.depth=2", "model.heads=4")
FAMILIES = [
    ("cnn", (1, 12, 12), ("model.dropout=0.3",)),
    ("cnn1d", (6, 128), ()),
    ("lenet", (3, 32, 32), ()),
    ("mlp", (6, 5), ()),
    *[("rnn", (9,), (f"model.cell={cell}", "model.hidden=16")) for cell in ("lstm", "gru")],
    *[("resnet", (3, 16, 16), (f"model.norm={norm}",)) for norm in ("group", "batch", "static")],
    *[("vgg", (3, 32, 32), (f"model.norm={n}",)) for n in ("none", "group", "batch", "static")],
    ("vit", (3, 8, 8), (*TRANSFORMER, "model.dropout=0.2")),
    ("vit", (3, 8, 8), (*TRANSFORMER, "model.pooling=mean")),
    ("bert", (9,), (*TRANSFORMER, "model.pad=0", "model.vocabulary=8")),
    ("bert", (9,), (*TRANSFORMER, "model.pooling=mean", "model.pooler=false")),
]


def test_every_family_is_compared() -> None:
    assert {name for name, *_ in FAMILIES} == set(config.names("model"))


def same_step(name: str, shape: tuple[int, ...], words: tuple[str, ...], most: float) -> None:
    """Alone and stacked, with batches of unequal length, a family's rows differ by `most`."""
    settings = small(f"model.name={name}", *words)
    kind = reads(name)
    flat = Flat(models.build(settings.model, shape, CLASSES, 1, kind))
    generator = torch.Generator().manual_seed(4)
    xs = [torch.randn(size, *shape, generator=generator) for size in (5, 3)]
    if kind == "symbols":
        xs = [torch.randint(CLASSES, x.shape, generator=generator).byte() for x in xs]
    ys = [torch.randint(CLASSES, (len(x),), generator=generator) for x in xs]
    found = []
    for kind in (OneByOne, Stacked):
        rows = kind(flat, 2, CPU, settings)
        for row, w in enumerate(rows.w):
            w.copy_(flat.initial * (1 + row / 10))
        before = rows.w.clone()
        losses, _ = rows.losses(xs, ys, (11, 12))
        gradient = rows.head(2)[1].clone()
        rows.move(2, 0.01)
        rows.train_mode(False)
        judged = torch.cat([output.detach() for output in rows.forward(xs)])
        found.append((losses, gradient, rows.w - before, judged))
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all() and one.any()
        assert float((one - other).norm() / one.norm()) < most


@pytest.mark.parametrize(("name", "shape", "words"), FAMILIES)
def test_every_family_makes_the_same_step_to_rounding(
    name: str, shape: tuple[int, ...], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kinks, at which rounding would choose another branch and grow: tanh, mean pooling."""
    smooth = {"ReLU": nn.Tanh, "MaxPool1d": nn.AvgPool1d, "MaxPool2d": nn.AvgPool2d}
    for kink, layer in smooth.items():
        monkeypatch.setattr(nn, kink, layer)
    monkeypatch.setattr(resnet, "relu", torch.tanh)
    same_step(name, shape, words, 1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "words"), {case[0]: case for case in reversed(FAMILIES)}.values()
)
def test_every_family_makes_the_same_step_with_kinks(
    name: str, shape: tuple[int, ...], words: tuple[str, ...]
) -> None:
    same_step(name, shape, words, 0.02)


def apart(found: Run, wanted: Run) -> float:
    """Distance of two final models as a share of the way that one of them went; 0 at rest."""
    way = np.linalg.norm(wanted.model - wanted.engine.flat.initial.numpy())
    distance = float(np.linalg.norm(found.model - wanted.model))
    return distance / float(way) if way or distance else 0.0


def same_codes(engine: Engine, seen: dict[Crossing, Tensor]) -> None:
    """Who compresses what crosses a cut gets in a second run what it got in the first.

    A choice of values jumps: a rounding before it may change all that follows. So what is to be
    compressed has to be the same to rounding, crossing by crossing, and no rounding gets beyond.
    """
    for half in (engine.server, engine.clients):
        encode = getattr(type(half), "encode", None)
        if not isinstance(half, Side) or encode is Side.encode:
            continue

        def watched(crossing: Crossing, x: Tensor, encode: Any = half.encode) -> list[Block]:
            wanted = seen.setdefault(crossing, x.detach().clone())
            far = float((x.detach() - wanted).norm()), float(wanted.norm())
            assert far[0] <= 1e-3 * far[1] + 1e-6, crossing
            return encode(crossing, wanted)

        half.encode = watched


def same_updates(engine: Engine, seen: dict[tuple[int, int], Tensor]) -> None:
    """A codec gets in a second run what it got in the first, for the same reason."""
    clients = engine.clients

    def watched(t: int, client: int, update: Tensor, encode: Any = clients.encode_update) -> Any:
        wanted = seen.setdefault((t, client), update.clone())
        assert float((update - wanted).norm()) <= 1e-3 * float(wanted.norm()) + 1e-7, (t, client)
        return encode(t, client, update.copy_(wanted))

    if engine.settings.codec.is_lossy:
        clients.encode_update = watched


def compare(settings: Sequence[str], rows: int) -> None:
    """A run with stacked rows against the run one by one; a dense network also against its own."""
    seen: dict[Crossing, Tensor] = {}
    updates: dict[tuple[int, int], Tensor] = {}

    def prepare(engine: Engine) -> None:
        same_codes(engine, seen)
        same_updates(engine, updates)
        if (engine.settings.rows or 1) > 1:  # as on a GPU
            engine.trainer.is_dense = False
            widen(engine, 1)

    single, stacked = (
        run(small(*allowed(*settings, *more)), prepare=prepare)
        for more in (("rows=1",), (f"rows={rows}",))
    )
    if single.engine.trainer.is_dense:
        alike(run(small(*allowed(*settings, f"rows={rows}"))), single)
    sizes = single.engine.population.sizes
    assert len(set(sizes.tolist())) > 2, "unequal shards"
    assert isinstance(single.engine.trainer.rows, Networks)
    assert isinstance(stacked.engine.trainer.rows, Stacked)
    assert apart(stacked, single) < 1e-3
    clients = [found.tables["clients"] for found in (stacked, single)]
    np.testing.assert_allclose(*(table["loss"] for table in clients), rtol=1e-3)
    for column in ("client", "steps", "up_gradient", "down_model", "up_activation"):
        # How short compressed values are depends on their last bits.
        near = 0.02 if single.engine.settings.codec.values == "zstd" else 0.0
        np.testing.assert_allclose(*(table[column] for table in clients), rtol=near, atol=0)
    for column in ("accuracy", "personal"):
        np.testing.assert_allclose(*(table[column] for table in clients), atol=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_stacked_equals_one_by_one(name: str) -> None:
    compare((f"method.name={name}", *ALL), 5)


@pytest.mark.parametrize("name", METHODS)
def test_stacked_equals_one_by_one_beyond_a_sample(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a smooth network: at a ReLU's kink rounding would grow from layer to layer."""
    monkeypatch.setattr(models, "build", smooth)
    # Fewer samples make gradients so large that a rounding grows from client to client.
    compare((f"method.name={name}", *ALL, "data.samples=300"), 3)


@pytest.mark.parametrize("case", CASES)
@families
def test_stacked_equals_one_by_one_in_every_case(family: str, case: str) -> None:
    compare(member(family, *CASES[case]), 2)


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_stacked_equals_one_by_one_in_every_choice(choice: tuple[str, ...]) -> None:
    """Choices that want another setting, too, are seen through in `test_methods`."""
    if not refusal(*choice):
        compare((*choice, *ALL), 3)


@codecs
def test_stacked_equals_one_by_one_with_every_codec(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "build", smooth)
    compare((*CODECS[codec], *ALL), 3)


@families
def test_stacked_equals_one_by_one_with_statistics_of_their_own(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "build", smooth)
    compare(member(family, *ALL, "statistics=local"), 3)


@families
def test_stacked_equals_one_by_one_with_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "load", text)
    compare(member(family, *RNN, "lr=0.1", "momentum=0.9", "batch=7"), 3)


HALF = "method.rates=[1.0, 0.5]"
"""A LayerNorm of one or two numbers would make any rounding large."""


@families
def test_stacked_equals_one_by_one_with_transformers(family: str) -> None:
    more = (HALF,) if family == "heterofl" else ()
    compare(member(family, *VIT, *more, "model.dropout=0.2", "momentum=0.9", "batch=7"), 3)


@pytest.mark.parametrize("family", ["fedavg", "heterofl", "splitfed"])
def test_stacked_equals_one_by_one_with_transformers_of_texts(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "load", text)
    more = (HALF,) if family == "heterofl" else ()
    compare(member(family, *BERT, *more, "model.pooling=mean", "momentum=0.9", "batch=7"), 3)


def widen(engine: Engine, count: int) -> None:
    """Gives the trainer so many rows."""
    engine.trainer.descent = engine.trainer.descent_of(engine.flat, count)


@networks
def test_a_chunk_is_its_clients_one_by_one_bit_for_bit(words: tuple[str, ...]) -> None:
    """Without stacking, as split methods train on a CPU, and dense networks with any method."""
    engine = Engine(small(*words, *EVERYTHING))
    trainer, clients = engine.trainer, engine.clients
    clients.start = engine.flat.initial
    order = trainer.ordered(0, range(5))
    alone = [clients.work(1, (client,))[0].clone() for client in order]
    losses = [trainer.loss(client) for client in order]
    trainer.begin(0)
    widen(engine, 5)
    together = clients.work(1, order)
    assert together.shape == (5, engine.flat.size)
    for row, wanted in zip(together, alone, strict=True):
        assert torch.equal(row, wanted)
    assert [trainer.loss(client) for client in order] == pytest.approx(losses, rel=1e-6)
    assert len({tuple(row[:9].tolist()) for row in alone}) == 5, "no two clients are alike"


@networks
def test_a_result_does_not_depend_on_the_row(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words, *EVERYTHING, "local_steps=3"))
    assert engine.flat.size % 16, "rows that follow each other closely would not be aligned"
    widen(engine, 4)
    found: dict[int, Tensor] = {}
    engine.clients.start = engine.flat.initial
    for clients in ((0, 1, 2, 3), (3, 0, 4, 1), (4, 4, 4, 4), (2, 3, 1, 0)):
        for client, row in zip(clients, engine.clients.work(0, clients), strict=True):
            assert torch.equal(row, found.setdefault(client, row.clone()))


@kinds
def test_a_row_that_is_done_stays(kind: type[Rows]) -> None:
    """Its statistics, too, though batches go on beside it."""
    engine = Engine(small(*RESNET, "clients=3", "data.samples=90", "momentum=0.9"))
    rows = kind(engine.flat, 3, CPU, engine.settings)
    moves = descent(engine.settings, rows)
    moves.reset(engine.flat.initial)
    lessons = [next(rows.lessons(engine.trainer.feed, 0, client)) for client in range(3)]
    for busy in (3, 1, 1):
        before = rows.w.clone()
        rows.backprop(engine.trainer.feed, lessons[:busy])
        moves.step(busy, 0.1)
        assert torch.equal(rows.w[busy:], before[busy:])
        assert all((row != old).any() for row, old in zip(rows.w[:busy], before, strict=False))
        marks = engine.flat.moving == 0
        assert (rows.w[:busy, marks] != before[:busy, marks]).any(1).all()


@pytest.mark.parametrize("name", METHODS)
def test_adjusting_rows_together_is_adjusting_each(name: str) -> None:
    """A method's hook gets [C, n]: it must be elementwise or row-wise."""
    engine = Engine(small(f"method.name={name}"))
    clients, n = engine.clients, engine.flat.size
    adjust = clients.hooks.adjust
    if adjust is None:
        return
    list(play(engine))  # so that whoever keeps something has it
    size = len(clients.start) if not engine.method.converses else clients.held.size
    random = torch.Generator().manual_seed(9)
    clients.start = torch.randn(size, generator=random)
    w, g = (torch.randn(3, size, generator=random) for _ in range(2))
    assert size <= n
    together = g.clone()
    adjust((4, 0, 2), w.clone(), together)
    for row, client in enumerate((4, 0, 2)):
        part = g[row : row + 1].clone()
        adjust((client,), w[row : row + 1].clone(), part)
        assert torch.equal(part[0], together[row])


@kinds
def test_layers_are_told_when_they_are_judged(kind: type[Rows]) -> None:
    stages = OrderedDict(a=nn.Sequential(BatchNorm(2), Dropout(0.5)), head=nn.Flatten())
    rows = kind(Flat(nn.Sequential(stages)), 2, CPU, small())

    def training() -> dict[str, bool]:
        return {type(m).__name__: m.training for m in rows.modules if not list(m.children())}

    assert training() == {"BatchNorm": True, "Dropout": True, "Flatten": True}
    rows.train_mode(False)
    assert training() == {"BatchNorm": False, "Dropout": False, "Flatten": False}
    rows.train_mode(False, batch_statistics=True)
    assert training() == {"BatchNorm": True, "Dropout": False, "Flatten": False}
    rows.train_mode(True)
    assert training() == {"BatchNorm": True, "Dropout": True, "Flatten": True}


def test_picks_are_padded_with_nothing() -> None:
    feed = Engine(small(*CNN, "augment=['crop']", "model.dropout=0.5")).trainer.feed
    picks = [next(feed.picks(0, client)) for client in range(2)]
    picks[1] = picks[1]._replace(positions=picks[1].positions[:3], shifts=picks[1].shifts[:3])
    batch = loaded(picks, 4, 20)
    assert [tuple(tensor.shape) for tensor in batch] == [(4, 20), (4, 20), (4, 20, 3), (4,)]
    assert batch.present.sum(1).tolist() == [16, 3, 0, 0]
    assert torch.equal(batch.positions[0, :16], picks[0].positions)
    assert torch.equal(batch.shifts[1, :3], picks[1].shifts)
    assert batch.keys.tolist() == [picks[0].key, picks[1].key, 0, 0]
    assert [len(tensor) for tensor in batch.head(2)] == [2] * 4


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 50, 64, 1000])
def test_few_graphs_serve_all_numbers_of_rows(rows: int) -> None:
    sizes = [graph_size(count, rows) for count in range(1, rows + 1)]
    assert all(count <= size <= rows for count, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= GRAPHS
    assert max(size - count for count, size in enumerate(sizes, 1)) <= rows / GRAPHS
    assert sizes[-1] == rows
