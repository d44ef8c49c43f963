"""FedDyn's fixed point, and what it refuses; `oracles` has a reference of its rounds."""

import numpy as np
import pytest

from fedmpi.engine import Engine
from tests.plain import play
from tests.small import refusal, small
from tests.suites.oracles.reference import Reference


@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_it_ends_where_the_objective_of_its_weights_is_least(weights: str) -> None:
    """Many local steps do not drag it to the clients' own minima, as they do FedAvg."""
    words = ("model.hidden=[]", "batch=1000", "epochs=20", "lr=0.5", "rounds=150")
    words += ("weight_decay=0.05", f"aggregation.weights={weights}", "partition.alpha=0.2")
    sizes, slopes = [], {}
    for name in (("method.name=feddyn", "method.alpha=0.3"), ("method.name=fedavg",)):
        engine = Engine(small(*name, *words, "evaluate.every=150"))
        list(play(engine))
        reference = Reference(engine)
        w, sizes = engine.server.w.double().numpy(), np.array(reference.sizes)
        each = [reference.gradient(w, shard) for shard in engine.population.shards]
        shares = sizes / sizes.sum() if weights == "samples" else np.full(5, 0.2)
        slopes[name[0]] = np.linalg.norm(shares @ np.array(each) + 0.05 * w)
    assert slopes["method.name=feddyn"] < 1e-4
    assert slopes["method.name=fedavg"] > 1e-2


def test_a_second_proximal_term_is_refused() -> None:
    said = refusal("method.name=feddyn", "proximal=0.1")
    assert "proximal = 0.1: wanted 0 beside method.name = 'feddyn'" in said
