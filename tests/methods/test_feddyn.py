"""FedDyn: clients and server in the paper's terms, against ours."""

import numpy as np
import pytest
from numpy import ndarray

from fedmpi.engine import Engine
from tests.plain import play
from tests.small import refusal, small
from tests.suites.oracles.reference import BASE, Reference, agree, trajectory

LOCAL = [
    pytest.param(("lr=0.1",), id="sgd"),
    pytest.param(("lr=0.02", "momentum=0.9", "weight_decay=0.01", "clip=2.0"), id="momentum"),
]


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.parametrize("weights", ["equal", "samples"])
def test_feddyn(weights: str, local: tuple[str, ...]) -> None:
    """Algorithm 1 with the server's h; by samples each client has an alpha of its own."""
    alpha = 0.3
    words = ("method.name=feddyn", f"method.alpha={alpha}", f"aggregation.weights={weights}")
    engine, found = trajectory(*BASE, *words, *local)
    reference, count = Reference(engine), 5
    sizes = np.array(reference.sizes)
    strengths = alpha * sizes.mean() / sizes if weights == "samples" else np.full(count, alpha)
    slopes = [np.zeros_like(reference.start) for _ in range(count)]
    scaled = np.zeros_like(reference.start)  # h / alpha, where all alphas are one

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        nonlocal scaled
        models = []
        for client in shares:

            def change(
                g: ndarray, v: ndarray, a: float = strengths[client], h: ndarray = slopes[client]
            ) -> ndarray:
                return g - h + a * (v - w)

            models.append(reference.train(w, t, client, change))
            slopes[client] = slopes[client] - strengths[client] * (models[-1] - w)
        scaled = scaled - sum(model - w for model in models) / count
        return sum(models) / len(models) - scaled

    agree(found, reference.rounds(turn), reference.start, within=5e-5)
    for client in range(count):
        ours = engine.clients.pull(client).double().numpy()
        np.testing.assert_allclose(ours, slopes[client], rtol=1e-3, atol=1e-4)


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
