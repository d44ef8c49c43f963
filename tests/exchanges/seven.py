"""Checks on as many ranks as start it: `mpiexec -n 7 python -m tests.exchanges.seven`."""

import os

import numpy as np

from fedmpi.messages import wire
from fedmpi.messages.wire import abort_on_exception
from tests.exchanges.added import WORLD, both, close
from tests.exchanges.test_exchanges import DENSITIES, merged, whole


def main() -> None:
    """Sums of whole numbers, and runs, on two and three nodes; slices do not depend on nodes."""
    wire.join()
    abort_on_exception()
    for name, nodes in (("sparse", "2"), ("sparse", "3"), ("sharded", "1")):
        os.environ[wire.NODES] = nodes
        for density in DENSITIES.values():
            mine = whole(WORLD.rank, 999, density(WORLD.rank))
            (found, _) = merged(name, [mine, np.ones(1)])
            wanted = sum(whole(rank, 999, density(rank)) for rank in range(WORLD.size))
            assert WORLD.rank > 0 or (found == wanted).all()
        words = ("method.name=topk", "rounds=1", "epochs=1", "server=shared")
        _, _, ours, theirs = both(f"exchange.name={name}", *words)
        if WORLD.rank == 0:
            close(ours, theirs, 5)


if __name__ == "__main__":
    main()
