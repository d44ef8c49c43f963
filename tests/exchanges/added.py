"""What exchanges that add up on the way are held against: sums by `star` on one rank."""

from dataclasses import dataclass, field

import numpy as np
from mpi4py import MPI
from torch import Tensor

from fedmpi import config
from fedmpi.engine import Engine
from tests.plain import METHODS
from tests.small import Run, run, small

WORLD = MPI.COMM_WORLD
ADDING = [name for name in METHODS if config.module("method", name).Config.adds]
CASES = {
    "control": ("method.name=scaffold", "control=niid", "participation=0.6"),
    "control on a shared part": ("method.name=fedper", "control=mean"),
    "rate by lengths": ("aggregation.server=fedexp",),
    "statistics": ("method.name=topk",),
    "waves": ("model.hidden=[1024]", "exchange.window=1"),
    "stacked": ("rows=3",),
    "waits": ("method.name=topk", "method.sparsity=0.8"),
    "codes": ("codec.values=uniform", "codec.bits=6", "feedback=classic", "control=mean"),
    "changes down": ("codec.down.values=f4", "codec.down.sparsity=0.5"),
    "one client": ("clients=1", "validation=0.0"),
}
LOST = (
    "devices.tiers=[{name='a', share=1.0, link={kind='wireless'}}]",
    "devices.spectrum.outage=0.4",
    "devices.spectrum.failed=drop",
)


@dataclass
class Seen:
    """What a server was about to step with, round by round, and what it was made of.

    Attributes:
        vectors: the sums' vectors, each [n].
        numbers: the sums' numbers.
        sizes: for each vector the sum of its terms' absolute values, as far as they were added
            here.
    """

    vectors: list[list[np.ndarray]] = field(default_factory=list)
    numbers: list[list[float]] = field(default_factory=list)
    sizes: list[list[np.ndarray]] = field(default_factory=list)


def copies(vectors: list[Tensor]) -> list[np.ndarray]:
    """Vectors that stay as they are."""
    return [vector.numpy().astype(np.float64) for vector in vectors]


def watched(seen: Seen):
    """Prepares an engine so that its sums are seen."""

    def prepare(engine: Engine) -> None:
        server, now = engine.server, []
        if server is None:
            return
        absorb, merge = server.absorb, engine.merge

        def absorbing(t: int, message: object) -> None:
            before = copies(server.addends(t).vectors)
            absorb(t, message)
            after = copies(server.addends(t).vectors)
            now.append([abs(b - a) for a, b in zip(before, after, strict=True)])

        def merging(t: int) -> None:
            merge(t)
            found = server.addends(t)
            seen.vectors.append(copies(found.vectors))
            seen.numbers.append([number for each in found.sums for number in each.numbers])
            seen.sizes.append([sum(each) for each in zip(*now, strict=True)])
            now.clear()

        server.absorb, engine.merge = absorbing, merging

    return prepare


def both(exchange: str, *words: str) -> tuple[Run, Run, Seen, Seen]:
    """The same run with an exchange on all ranks, and with `star` on one."""
    ours, theirs = Seen(), Seen()
    found = run(small(*words, exchange), WORLD, watched(ours))
    wanted = run(small(*words), MPI.COMM_SELF, watched(theirs)) if WORLD.rank == 0 else found
    return found, wanted, ours, theirs


def close(ours: Seen, theirs: Seen, clients: int) -> None:
    """Two orders of adding up float32: each is within C 2^-24 of the sum of absolute values."""
    assert len(ours.vectors) == len(theirs.vectors) > 0
    for t, vectors in enumerate(theirs.vectors):
        np.testing.assert_allclose(ours.numbers[t], theirs.numbers[t], rtol=1e-12)
        for found, wanted, size in zip(ours.vectors[t], vectors, theirs.sizes[t], strict=True):
            assert (abs(found - wanted) <= 2 * clients * 2**-24 * size).all()
        assert any(vector.any() for vector in vectors)


def bytes_of(found: Run) -> dict[str, np.ndarray]:
    """The columns of clients' bytes."""
    rows = found.tables["clients"]
    return {name: rows[name] for name in rows.dtype.names if name.startswith(("up_", "down_"))}
