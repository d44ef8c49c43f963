"""FlexLoRA: the mean of products in float64, its factors, and how far averages of factors are."""

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi.engine import Engine
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from fedmpi.methods import flexlora
from tests.plain import play
from tests.small import refusal, run, small

LORA = ("model.train=adapters", "model.lora.rank=2", "lr=0.3", "rounds=1")
LAYERS = ("hidden1.1", "hidden2.1")


def parts(engine: Engine, w: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a vector by name, in float64."""
    pieces = engine.flat.parameters
    return {p.name: w[p.start : p.stop].reshape(p.shape).astype("f8") for p in pieces}


def trained(settings_words: tuple[str, ...]) -> tuple[Engine, dict[int, np.ndarray]]:
    """What each client uploads in round 0, as its model; and an engine that has not begun."""
    engine = Engine(small(*settings_words))
    start, found = engine.flat.initial.clone(), {}
    engine.trainer.feed.draw(0, range(5))
    for client in range(5):
        found[client] = engine.trainer.train(0, (client,), start)[0].numpy().copy()
    return engine, found


@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_factors_are_the_best_of_the_mean_product_and_the_rest_is_averaged(weights: str) -> None:
    words = (*LORA, "method.name=flexlora", f"aggregation.weights={weights}")
    engine, models = trained(words)
    found = run(small(*words))
    sizes = np.array([len(engine.population.shards[client]) for client in range(5)], "f8")
    shares = np.full(5, 0.2) if weights == "equal" else sizes / sizes.sum()
    theirs = [parts(engine, models[client]) for client in range(5)]
    mean = {
        name: sum(share * one[name] for share, one in zip(shares, theirs, strict=True))
        for name in theirs[0]
    }
    ours, length, bias, lost = parts(engine, found.model), 0.0, 0.0, 0.0
    for name in LAYERS:
        up, down = f"{name}.up.weight", f"{name}.down.weight"
        pairs = zip(shares, theirs, strict=True)
        product = sum(share * one[up] @ one[down] for share, one in pairs)
        left, values, right = np.linalg.svd(product)
        best = (left[:, :2] * values[:2]) @ right[:2]
        np.testing.assert_allclose(ours[up] @ ours[down], best, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours[down] @ ours[down].T, np.eye(2), atol=1e-5)
        length += (product**2).sum()
        bias += ((product - mean[up] @ mean[down]) ** 2).sum()
        lost += (values[2:] ** 2).sum()
    for end in ("weight", "bias"):
        np.testing.assert_allclose(
            ours[f"head.1.{end}"], mean[f"head.1.{end}"], rtol=1e-4, atol=1e-6
        )
    row = found.tables["rounds"][0]
    np.testing.assert_allclose(row["lora_bias"], np.sqrt(bias / length), rtol=1e-3)
    np.testing.assert_allclose(row["lora_lost"], np.sqrt(lost / length), rtol=1e-2)
    assert row["lora_bias"] > 1e-3 and row["lora_lost"] > 1e-3


def test_one_client_is_fedavg_up_to_the_choice_of_factors() -> None:
    """Its product has the rank, so that nothing is cut off, and there is nobody to differ from."""
    alone = (*LORA, "clients=1", "partition.name=iid")
    one, other = run(small(*alone, "method.name=flexlora")), run(small(*alone))
    ours, theirs = (parts(found.engine, found.model) for found in (one, other))
    for name in LAYERS:
        both = (p[f"{name}.up.weight"] @ p[f"{name}.down.weight"] for p in (ours, theirs))
        np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-6)
    row = one.tables["rounds"][0]
    assert row["lora_bias"] < 1e-5 and row["lora_lost"] < 1e-5


@pytest.mark.parametrize("words", [(), (*LORA, "model.lora.fixed=true")], ids=["none", "fixed"])
def test_without_two_factors_it_is_fedavg(words: tuple[str, ...]) -> None:
    one, other = run(small(*words, "method.name=flexlora")), run(small(*words))
    assert one.sha256 == other.sha256
    assert np.isnan(one.tables["rounds"]["lora_bias"]).all()


def test_a_round_whose_uploads_are_lost_has_no_figures() -> None:
    words = (*LORA, "method.name=flexlora", "devices.dropouts=1.0")
    found = run(small(*words))
    assert np.isnan(found.tables["rounds"]["lora_bias"]).all()
    np.testing.assert_array_equal(found.model, found.engine.flat.initial)


def test_products_of_zeros_and_ranks_beyond_the_layer_have_factors() -> None:
    """A is left alone beside B = 0, or no gradient would ever move either of them."""
    down, up = torch.randn(5, 3), torch.randn(2, 5)
    before = down.clone()
    assert flexlora.split(torch.zeros(2, 3), down, up) == 0.0
    assert torch.equal(down, before) and not up.any()
    product = torch.randn(2, 3)
    assert flexlora.split(product, down, up) == 0.0
    torch.testing.assert_close(up @ down, product)


def test_it_learns_and_goes_on_from_its_state() -> None:
    settings = small(*LORA[:-1], "rounds=4", "method.name=flexlora", "participation=0.6")
    whole = run(settings)
    stopped, again = Engine(settings), Engine(settings)
    outcomes = play(stopped)
    for _ in range(2):
        next(outcomes)
    again.restore(stopped.state())
    clock = Clock()
    list(again.rounds(Wire(clock, MPI.COMM_SELF), clock, 2))
    assert again.model_sha256() == whole.sha256
    losses = whole.tables["rounds"]["loss"]
    assert losses[-1] < losses[0]


def test_the_server_can_send_its_change() -> None:
    """The model moves by what is sent: with nothing left out, to the same factors."""
    words = (*LORA[:-1], "rounds=2", "method.name=flexlora")
    sent = run(small(*words, "codec.down.values=f4", "codec.down.sparsity=0.001"))
    np.testing.assert_allclose(sent.model, run(small(*words)).model, rtol=1e-3, atol=1e-5)


def test_what_has_no_meaning_beside_it_is_refused() -> None:
    for words in (("feedback=classic", "codec.values=bf16"), ("aggregation.server=adam",),
                  ("aggregation.rule=median",), ("exchange.name=reduce",),
                  ):  # fmt: skip
        assert "flexlora" in refusal(*LORA, "method.name=flexlora", *words), words
