"""Free oracles: settings under which one method must be another, or plain SGD on all the data."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedmpi.engine import Engine
from fedmpi.split.lockstep import Lockstep
from fedmpi.split.sides import Said
from tests import plain
from tests.plain import CNN, EVERYTHING, average, network, optimiser, play, train, vector
from tests.small import run, small

SGD = ("momentum=0.9", "weight_decay=0.01", "epochs=2", "lr_decay=0.9")
"""Local training without the clip: a split network sees the norms of its two parts."""

worlds = pytest.mark.parametrize(
    "words",
    [(), EVERYTHING, (*CNN, *EVERYTHING), ("participation=0.6", "local_steps=3", "rounds=4")],
    ids=["plain", "sgd", "cnn", "participation"],
)


def near(found: np.ndarray | torch.Tensor, wanted: np.ndarray | torch.Tensor) -> None:
    """Two models agree to the roundings of float32, as they add up over some dozens of steps."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-4, atol=2e-5)


@worlds
def test_fedprox_without_its_term_is_fedavg(words: tuple[str, ...]) -> None:
    prox = run(small("method.name=fedprox", "proximal=0.0", *words))
    assert prox.sha256 == run(small(*words)).sha256


@worlds
@pytest.mark.parametrize("feedback", ["classic", "none"])
def test_topk_without_sparsity_is_fedavg(words: tuple[str, ...], feedback: str) -> None:
    mine = ("method.name=topk", "method.sparsity=0.0", f"feedback={feedback}")
    assert run(small(*mine, *words)).sha256 == run(small(*words)).sha256


@worlds
@pytest.mark.parametrize("spans", ["whole", "tensor"])
def test_a_codec_of_signs_is_signsgd(words: tuple[str, ...], spans: str) -> None:
    """With estimates, which the server adds in one go, in every bit."""
    words = (*words, "feedback=ef21")
    signs = run(small("method.name=signsgd", f"method.spans={spans}", *words))
    codec = run(small("codec.values=sign", f"codec.scales={spans}", *words))
    assert codec.sha256 == signs.sha256


@worlds
def test_ssfl_without_sparsity_is_fedavg(words: tuple[str, ...]) -> None:
    """To rounding: the server adds at positions, which rounds the product, and not in one go."""
    ssfl = run(small("method.name=ssfl", "method.sparsity=0.0", *words))
    near(ssfl.model, run(small(*words)).model)


def test_ssfl_without_sparsity_trains_as_fedavg_does() -> None:
    """Bit for bit, up to where the server adds: the mask of ones changes no gradient."""
    words = (*EVERYTHING, "rounds=1")
    ssfl, plain = (
        run(small(*mine, *words)).tables["clients"]
        for mine in (("method.name=ssfl", "method.sparsity=0.0"), ())
    )
    ssfl = ssfl[ssfl["round"] == 0]
    np.testing.assert_array_equal(ssfl["loss"], plain["loss"])
    np.testing.assert_array_equal(ssfl["personal"], plain["personal"])


@pytest.mark.parametrize(
    "words",
    [("name=fedavg",), ("name=splitfed", "version=v1"), ("name=splitfed", "version=v2")],
    ids=" ".join,
)
def test_one_client_is_central_training(words: tuple[str, ...]) -> None:
    given = ("clients=1", "rounds=1", "epochs=5", "lr=0.1", "momentum=0.9", "weight_decay=0.01")
    found = run(small(*[f"method.{word}" for word in words], *given))
    engine = found.engine
    module = network(engine, engine.flat.initial)
    steps = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    losses = []
    for positions in plain.positions(engine, 0, 0):
        steps.zero_grad()
        loss = cross_entropy(
            module(engine.trainer.feed.x[positions]), engine.trainer.feed.y[positions]
        )
        loss.backward()
        steps.step()
        losses.append(loss.item())
    assert len(losses) == 5 * -(-270 // 16)
    near(found.model, vector(module))
    np.testing.assert_allclose(found.tables["rounds"]["loss"], np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize("words", [SGD, (*SGD, *CNN)], ids=["mlp", "cnn"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_splitfed_with_one_client_is_central_training_step_for_step(
    version: str, words: tuple[str, ...]
) -> None:
    """After each step, not only at the end, front and back are where the whole network is."""
    mine = ("method.name=splitfed", f"method.version={version}", "clients=1")
    engine = Engine(small(*mine, *words, "rounds=3"))
    server, clients, steps = engine.server, engine.clients, []
    turn = clients.backward

    def watch(fronts: Lockstep, told: Said) -> None:
        turn(fronts, told)
        steps.append((fronts.t, torch.cat([clients.fronts.of(0), server.backs.of(0)])))

    clients.backward = watch
    list(play(engine))
    module, taken = network(engine, engine.flat.initial), iter(steps)
    for t in range(3):
        steps = optimiser(engine, module, t)
        for positions in plain.positions(engine, t, 0):
            steps.zero_grad()
            x, y = engine.trainer.feed.x[positions], engine.trainer.feed.y[positions]
            cross_entropy(module(x), y).backward()
            steps.step()
            when, w = next(taken)
            assert when == t
            near(w, vector(module))
    assert next(taken, None) is None
    near(server.w, vector(module))


@pytest.mark.parametrize(
    "words", [("local_steps=1",), SGD, (*SGD, *CNN)], ids=["fedsgd", "sgd", "cnn"]
)
def test_splitfed_v1_is_fedavg(words: tuple[str, ...]) -> None:
    """A front and its own copy of the back are one network; one step of it each is FedSGD."""
    split = run(small("method.name=splitfed", *words, "rounds=4"))
    whole = run(small(*words, "rounds=4"))
    near(split.model, whole.model)
    for column in ("loss", "accuracy", "personal"):
        near(split.tables["clients"][column], whole.tables["clients"][column])


@pytest.mark.parametrize("words", [SGD, (*SGD, *CNN)], ids=["mlp", "cnn"])
def test_splitfed_v1_does_not_depend_on_the_cut(words: tuple[str, ...]) -> None:
    cuts = ("conv1", "conv2", "dense") if words[-4:] == CNN else ("hidden1", "hidden2")
    runs = [run(small("method.name=splitfed", f"method.cut={cut}", *words)) for cut in cuts]
    sent = {tuple(found.tables["rounds"]["up"]) for found in runs}
    assert len(sent) == len(cuts), "the cuts are different ones"
    for found in runs[1:]:
        near(found.model, runs[0].model)


def test_splitfed_versions_agree_on_one_client_and_on_no_more() -> None:
    def model(version: str, clients: int) -> np.ndarray:
        mine = ("method.name=splitfed", f"method.version={version}", f"clients={clients}")
        return run(small(*mine, *SGD)).model

    near(model("v1", 1), model("v2", 1))
    assert np.abs(model("v1", 3) - model("v2", 3)).max() > 1e-3


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_full_batches_are_gradient_descent_on_the_union(partition: str) -> None:
    """One step each: the mean of gradients, weighted by samples, is the gradient of the mean."""
    words = (f"partition.name={partition}", "batch=1000", "epochs=1", "rounds=5", "lr=0.5")
    found = run(small(*words))
    engine = found.engine
    equal = len(set(engine.population.sizes.tolist())) == 1
    assert equal == (partition == "iid"), "equal shards, and unequal ones"
    union = torch.from_numpy(np.sort(np.concatenate(engine.population.shards)))
    module = network(engine, engine.flat.initial)
    for t in range(5):
        steps = optimiser(engine, module, t)
        steps.zero_grad()
        cross_entropy(module(engine.trainer.feed.x[union]), engine.trainer.feed.y[union]).backward()
        steps.step()
    near(found.model, vector(module))


@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_rounds_are_averages_of_plain_training(mu: float) -> None:
    """FedAvg and FedProx as `torch.optim.SGD` makes them, the term a part of the loss."""
    found = run(small(f"proximal={mu}", *EVERYTHING, "participation=0.6", "rounds=3"))
    w = found.engine.flat.initial
    for t in range(3):
        rows = found.tables["clients"][found.tables["clients"]["round"] == t]
        wanted = [train(found.engine, t, client, w, mu)[1] for client in rows["client"].tolist()]
        np.testing.assert_allclose(rows["loss"], wanted, rtol=1e-5)
        w = average(found.engine, t, w, mu)
    near(found.model, w)


@pytest.mark.parametrize(
    "words",
    [
        ("schedule=restarts", "lr_min=0.01"),
        ("optimizer=adam", "lr=0.01", "model.dropout=0.3"),
        ("model.dropout=0.3", "momentum=0.9", "weight_decay=0.01"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_split_network_trains_like_a_whole_one(version: str, words: tuple[str, ...]) -> None:
    """With one client: rates and dropped units are the same on both sides of the cut."""
    given = ("clients=1", "epochs=3", *words)
    split = run(small("method.name=splitfed", f"method.version={version}", *given))
    whole = run(small(*given))
    np.testing.assert_allclose(split.model, whole.model, rtol=1e-3, atol=1e-5)
