"""What split links do to a batch and to its gradients, by plain formulas on what was said."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.split.cuts import Crossing
from fedmpi.split.links import Link
from tests.plain import CNN, play
from tests.small import Run, refusal, run, small

WORLD = MPI.COMM_WORLD
VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])
TAIL = "method.tail=head"

OFF = {
    "splitquant": ("method.bits=32",),
    "randtopk": ("method.sparsity=0.0",),
    "splitfc": ("method.ratio=1.0", "method.bits=32", "method.gradient_bits=32"),
    "fedlite": ("method.centroids=65536", "method.correction=1.0"),
    "splitcom": ("method.threshold=1.0",),
}
"""Nothing is left out, and nothing rounded."""
SOME = {
    "splitquant": ("method.gradient_bits=4", "method.rounding=random"),
    "randtopk": ("method.sparsity=0.6", "method.alpha=0.3"),
    "splitfc": ("method.ratio=2.0", "method.bits=6"),
    "fedlite": ("method.vectors=4", "method.groups=2", "method.centroids=5"),
    "splitcom": ("method.threshold=0.9", "method.gradient_threshold=0.8"),
}
every_link = pytest.mark.parametrize("name", SOME)


def words(name: str, *more: str) -> tuple[str, ...]:
    """The settings of a link, and some more."""
    return (f"method.name={name}", *more)


class Heard:
    """What crossed cuts in a run: as it was encoded, in blocks, and as it was decoded."""

    def __init__(self, *given: str) -> None:
        self.engine = Engine(small(*given))
        self.there: dict[Crossing, Tensor] = {}
        self.blocks: dict[Crossing, Sequence[Block]] = {}
        self.here: dict[Crossing, Tensor] = {}
        for half in (self.engine.server, self.engine.clients):
            self.watch(half)

    def watch(self, half: Any) -> None:
        encode, decode = half.encode, half.decode

        def encoded(crossing: Crossing, x: Tensor) -> list[Block]:
            self.there[crossing] = x.detach().flatten(1).clone()
            self.blocks[crossing] = blocks = encode(crossing, x)
            return blocks

        def decoded(crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
            found = decode(crossing, blocks)
            self.here[crossing] = found.reshape(self.there[crossing].shape).clone()
            return found

        half.encode, half.decode = encoded, decoded

    def play(self) -> "Heard":
        """Runs to the end."""
        list(play(self.engine))
        return self

    def of(self, kind: Kind) -> Iterator[tuple[Crossing, np.ndarray, np.ndarray]]:
        """Crossings, with what was encoded and what was decoded, [B, D]."""
        for crossing, x in self.there.items():
            if crossing.kind == kind:
                yield crossing, x.numpy(), self.here[crossing].numpy()


@VERSIONS
@every_link
@pytest.mark.parametrize("more", [(), ("momentum=0.9", "participation=0.6"), CNN], ids=str)
def test_what_leaves_out_nothing_is_splitfed(
    name: str, more: tuple[str, ...], version: str
) -> None:
    """Bit for bit."""
    given = (f"method.version={version}", *more)
    found, wanted = (run(small(*words(*w, *given))) for w in ((name, *OFF[name]), ("splitfed",)))
    assert found.sha256 == wanted.sha256
    for column in ("loss", "accuracy", "personal"):
        one, other = (some.tables["clients"][column] for some in (found, wanted))
        np.testing.assert_array_equal(one, other)


@VERSIONS
@every_link
def test_what_leaves_out_something_is_not(name: str, version: str) -> None:
    given = (f"method.version={version}",)
    found, wanted = (run(small(*words(*w, *given))) for w in ((name, *SOME[name]), ("splitfed",)))
    assert found.sha256 != wanted.sha256
    for way in ("up", "down"):
        ours, theirs = (some.tables["rounds"][way].sum() for some in (found, wanted))
        assert ours < theirs or (name, way) == ("fedlite", "down"), way


def steps(x: np.ndarray, bits: int, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The least value and the width of a code, of each part, in float64."""
    x = x.astype(np.float64)
    low, high = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    return low, np.broadcast_to((high - low) / (2**bits - 1), x.shape)


@VERSIONS
@pytest.mark.parametrize("ranges", ["sample", "tensor"])
@pytest.mark.parametrize("bits", [(8, 32), (2, 4), (32, 3)], ids=str)
def test_splitquant_rounds_to_the_nearest_code(
    bits: tuple[int, int], ranges: str, version: str
) -> None:
    given = (f"method.bits={bits[0]}", f"method.gradient_bits={bits[1]}")
    more = (f"method.ranges={ranges}", f"method.version={version}", "rounds=1")
    heard = Heard(*words("splitquant", *given, *more)).play()
    axis = 1 if ranges == "sample" else None
    for kind, count in zip((Kind.ACTIVATION, Kind.GRADIENT), bits, strict=True):
        for crossing, x, found in heard.of(kind):
            if count == 32:
                np.testing.assert_array_equal(found, x)
                continue
            low, step = steps(x, count, axis)
            wanted = low + step * np.rint((x - low) / np.where(step > 0, step, 1))
            # At the middle between two codes either is nearest.
            assert (np.abs(found - x) <= 0.5001 * step + 1e-6).all(), crossing
            assert (np.abs(found - wanted) < 1e-5).mean() > 0.999


def test_splitquant_at_random_is_right_on_average() -> None:
    """Over many steps' streams; a value's variance is at most a quarter of its code's square."""
    engine = Engine(small(*words("splitquant", "method.bits=2", "method.rounding=random")))
    x, total, draws = torch.randn(6, 12), 0.0, 3000
    for step in range(draws):
        crossing = Crossing(Kind.ACTIVATION, 0, 0, 1, step)
        blocks = engine.clients.encode(crossing, x)
        total = total + engine.server.decode(crossing, blocks).double().view(6, 12).numpy()
    _, step = steps(x.numpy(), 2, 1)
    assert (np.abs(total / draws - x.numpy()) <= 5 * step / 2 / draws**0.5 + 1e-6).all()


@VERSIONS
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_randtopk_sends_few_of_each_sample(alpha: float, version: str) -> None:
    given = ("method.sparsity=0.6", f"method.alpha={alpha}", f"method.version={version}")
    heard = Heard(*words("randtopk", *given)).play()
    largest = chosen = 0
    for crossing, x, found in heard.of(Kind.ACTIVATION):
        (block,) = heard.blocks[crossing]
        where = np.zeros(x.size, bool)
        where[sparse.indices(block)] = True
        where = where.reshape(x.shape)
        assert (where.sum(1) == round(12 * 0.4)).all()
        np.testing.assert_array_equal(found, np.where(where, x, 0))
        # Those that are as large as the fifth: there may be ties, at zero.
        top = np.abs(x) >= np.sort(np.abs(x), 1)[:, -5:-4]
        largest, chosen = largest + (where & top).sum(), chosen + where.sum()
    assert largest == chosen if alpha == 0 else 0.5 * chosen < largest < 0.95 * chosen


@VERSIONS
@pytest.mark.parametrize("tail", [(), (TAIL,)], ids=["", "tail"])
@pytest.mark.parametrize("name", ["randtopk", "splitfc"])
def test_gradients_come_back_where_activations_went(
    name: str, tail: tuple[str, ...], version: str
) -> None:
    """And nowhere else, though the back has gradients there."""
    if tail and version == "v2":
        return
    exact = ("method.gradient_bits=32",) if name == "splitfc" else ()
    given = (*SOME[name], *exact, *tail, f"method.version={version}")
    heard, elsewhere, most = Heard(*words(name, *given)).play(), 0, 1.0
    for crossing, g, found in heard.of(Kind.GRADIENT):
        forward = crossing._replace(kind=Kind.ACTIVATION)
        a, there = heard.there[forward].numpy(), heard.here[forward].numpy()
        block = heard.blocks[forward][-1]
        went = np.zeros(block.size, bool)  # of each value, or of each column
        went[sparse.indices(block)] = True
        went = np.broadcast_to(went.reshape(-1, a.shape[1]), a.shape)
        assert not found[~went].any()
        elsewhere += np.count_nonzero(g[~went])
        if name == "randtopk":
            np.testing.assert_array_equal(found[went], g[went])
            continue
        for column in np.flatnonzero(went[0] & g.any(0)):
            # Gradients are divided by the same as values, which are codes away from that.
            ratios = found[:, column][g[:, column] != 0] / g[:, column][g[:, column] != 0]
            np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
            half = np.ptp(there[:, column]) / (2**6 - 1) / 2
            wrong = np.abs(there[:, column] - ratios[0] * a[:, column])
            assert (wrong <= 1.01 * half + 1e-5).all()
            most = max(most, ratios[0])
    assert elsewhere > 100
    assert name != "splitfc" or most > 1.2


def test_splitfc_is_right_on_average_in_both_directions() -> None:
    given = ("method.ratio=2.0", "method.bits=32", "method.gradient_bits=32")
    engine = Engine(small(*words("splitfc", *given)))
    torch.manual_seed(1)
    x, g, draws = torch.randn(6, 12) + 0.5, torch.randn(6, 12), 4000
    sums, kept = [torch.zeros(6, 12, dtype=torch.float64) for _ in range(2)], 0
    for step in range(draws):
        forward = Crossing(Kind.ACTIVATION, 0, 0, 1, step)
        blocks = engine.clients.encode(forward, x)
        kept += blocks[-1].count
        sums[0] += engine.server.decode(forward, blocks).double()
        back = forward._replace(kind=Kind.GRADIENT)
        blocks = engine.server.encode(back, g)
        sums[1] += engine.clients.decode(back, blocks).double()
    assert kept / draws == pytest.approx(6, abs=0.2)
    # A feature goes with a probability of a twentieth at least.
    for total, wanted in zip(sums, (x, g), strict=True):
        assert ((total / draws - wanted).abs() <= 5 * wanted.abs() * (20 / draws) ** 0.5).all()


@pytest.mark.parametrize("bits", [8, 32])
def test_splitfc_bytes_are_those_of_the_features_that_went(bits: int) -> None:
    given = ("method.ratio=3.0", f"method.bits={bits}", "method.gradient_bits=4")
    found = Heard(*words("splitfc", *given))
    outcomes = list(play(found.engine))
    wanted: dict[tuple[int, int], np.ndarray] = {}
    for crossing, x, _ in found.of(Kind.ACTIVATION):
        kept = found.blocks[crossing][-1].count
        values = 4 * len(x) * kept if bits == 32 else -(-len(x) * kept * bits // 8) + 8 * kept
        back = -(-len(x) * kept * 4 // 8) + 8 * kept
        key = crossing.t, crossing.client
        each = np.array([values, min(4 * kept, 2), back])
        wanted[key] = wanted.get(key, 0) + each
    for outcome in outcomes:
        for row in outcome.tables["clients"]:
            names = ("up_activation", "up_mask", "down_gradient")
            ours = [row[name] for name in names]
            assert ours == wanted[int(row["round"]), int(row["client"])].tolist()


def clustered(x: np.ndarray, books: np.ndarray, vectors: int, groups: int) -> np.ndarray:
    """Each vector's nearest centroid, one by one."""
    size = x.shape[1] // vectors
    books, there = books.reshape(groups, -1, size), np.empty_like(x)
    for sample, values in enumerate(x):
        for vector in range(vectors):
            mine = slice(vector * size, (vector + 1) * size)
            book = books[vector * groups // vectors]
            there[sample, mine] = book[np.square(book - values[mine]).sum(1).argmin()]
    return there


@VERSIONS
@pytest.mark.parametrize("correction", [0.0, 0.3])
def test_fedlite_sends_centroids_and_corrects_what_comes_back(
    correction: float, version: str
) -> None:
    more = (f"method.correction={correction}", f"method.version={version}", "rounds=1")
    heard, off = Heard(*words("fedlite", *SOME["fedlite"], *more)).play(), 0
    for crossing, x, found in heard.of(Kind.GRADIENT):
        forward = crossing._replace(kind=Kind.ACTIVATION)
        a, there = heard.there[forward].numpy(), heard.here[forward].numpy()
        books = sparse.values(heard.blocks[forward][0]).numpy()
        wanted = clustered(a, books, 4, 2)
        # Of centroids that are as near either may be.
        errors = [np.square(some - a).sum(1) for some in (there, wanted)]
        np.testing.assert_allclose(*errors, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found, x + correction * (a - there), rtol=1e-5, atol=1e-7)
        off += np.count_nonzero(np.abs(a - there) > 1e-3)
    assert off > 100


def test_fedlites_correction_is_the_gradient_of_a_distance() -> None:
    """The term is lambda / 2 ||a - a'||^2: a step against it brings centroids nearer."""
    given = (*SOME["fedlite"], "method.correction=0.3")
    engine = Engine(small(*words("fedlite", *given)))
    crossing = Crossing(Kind.ACTIVATION, 0, 0, 1, 0)
    a = torch.randn(6, 12, requires_grad=True)
    blocks = engine.clients.encode(crossing, a)
    there = engine.server.decode(crossing, blocks).view(6, 12)
    back = crossing._replace(kind=Kind.GRADIENT)
    found = engine.clients.decode(back, engine.server.encode(back, torch.zeros(6, 12)))
    (0.3 / 2 * (a - there).square().sum()).backward()
    torch.testing.assert_close(found, a.grad)


@every_link
@pytest.mark.parametrize("given", [(), ("method.version=v2",), (TAIL,)], ids=str)
def test_nothing_is_remembered_beyond_a_step(name: str, given: tuple[str, ...]) -> None:
    engine = Engine(small(*words(name, *SOME[name], *given)))
    most = 0
    for half in (engine.server, engine.clients):
        assert isinstance(half, Link)
    backward, links = engine.clients.backward, (engine.server, engine.clients)

    def watch(*args: Any) -> None:
        nonlocal most
        most = max(most, len(engine.clients._open))
        backward(*args)
        assert not engine.clients._open

    engine.clients.backward = watch
    list(play(engine))
    assert most == 5
    assert not any(half._open for half in links)


@every_link
def test_with_a_tail_both_cuts_are_links(name: str) -> None:
    """In both directions the same bytes a value as at one cut; labels stay."""
    tail = Heard(*words(name, *SOME[name], TAIL)).play()
    for kind in (Kind.ACTIVATION, Kind.GRADIENT):
        cuts = {crossing.cut for crossing, *_ in tail.of(kind)}
        assert cuts == {0, 1}
        sizes = {(crossing.cut, x.shape[1]) for crossing, x, _ in tail.of(kind)}
        assert sizes == {(0, 12), (1, 8)}
    changed = {
        crossing.cut
        for crossing, x, found in tail.of(Kind.ACTIVATION)
        if not np.array_equal(x, found)
    }
    assert changed == {0, 1}


@every_link
def test_what_is_not_finite_stays_so(name: str) -> None:
    engine = Engine(small(*words(name, *SOME[name])))
    batch = min(16, int(engine.population.sizes[1]))
    crossing, x = Crossing(Kind.ACTIVATION, 0, 0, 1, 0), torch.randn(batch, 12)
    x[:, 3] = torch.nan
    found = engine.server.decode(crossing, engine.clients.encode(crossing, x))
    assert found.isnan().any()


def test_draws_differ_by_client_step_round_and_way() -> None:
    engine = Engine(small(*words("splitquant", "method.bits=2", "method.rounding=random")))
    x = torch.rand(6, 12)
    base = Crossing(Kind.ACTIVATION, 0, 1, 2, 3)
    changes: list[dict[str, Any]] = [{}, {"t": 2}, {"client": 3}, {"step": 4}, {"cut": 1}]
    found = {
        sparse.values(engine.clients.encode(base._replace(**change), x)[0]).numpy().tobytes()
        for change in changes
    }
    assert len(found) == len(changes)


@pytest.mark.parallel([1, 2, 3])
@VERSIONS
@every_link
def test_ranks_agree(name: str, version: str) -> None:
    given = (*SOME[name], f"method.version={version}", "participation=0.6", "rounds=3")
    found = run(small(*words(name, *given)), WORLD)
    if WORLD.rank == 0:
        wanted = run(small(*words(name, *given)))
        assert found.sha256 == wanted.sha256
        for way in ("up", "down"):
            columns = [column(each, way) for each in (found, wanted)]
            np.testing.assert_array_equal(*columns)


def column(found: Run, way: str) -> np.ndarray:
    """A client's bytes in one direction, all kinds together."""
    clients = found.tables["clients"]
    names = [name for name in clients.dtype.names if name.startswith(f"{way}_")]
    return sum(clients[name] for name in names)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("fedlite", "method.vectors=5"), "vectors = 5: wanted a divisor of 12, .*: 1, 2, 3, 4, 6"),
        (("fedlite", "method.vectors=6", "method.groups=4"), "groups = 4: .* of 6, .*: 1, 2, 3, 6"),
        (("fedlite", "method.vectors=6", TAIL), "vectors = 6: wanted a divisor of 8, .*: 1, 2, 4"),
        (
            ("splitquant", "method.bits=32", "method.ranges=tensor"),
            "ranges = 'tensor': wanted bits",
        ),
        (("splitquant", "method.bits=32", "method.rounding=random"), "rounding = 'random': wanted"),
        (
            ("randtopk", "method.sparsity=0.0", "method.alpha=0.5"),
            "alpha = 0.5: .*sparsity above 0",
        ),
        *(((name, TAIL, "method.version=v2"), "wanted version = 'v1'") for name in SOME),
    ],
)
def test_what_cannot_be_is_refused(given: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Engine(small(*words(*given)))


@pytest.mark.parametrize("bits", [1, 0, 17, 31, 33, "true"])
@pytest.mark.parametrize("name", ["splitquant", "splitfc"])
def test_bits_are_those_of_codes_or_of_floats(name: str, bits: object) -> None:
    for setting in ("bits", "gradient_bits"):
        with pytest.raises(ConfigError, match=f"method.{setting}"):
            small(*words(name, f"method.{setting}={bits}"))


def test_what_is_possible_is_not_refused() -> None:
    assert not refusal(*words("fedlite", "method.vectors=4", "method.groups=4", TAIL))
    assert not refusal(*words("splitquant", "method.bits=32", "method.gradient_bits=2"))
