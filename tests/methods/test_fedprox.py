"""FedProx's algebra: the term's gradient is mu * (w - w_t), and it draws minimisers to w_t."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from fedmpi.engine import Engine
from tests.plain import EVERYTHING, average, network, play
from tests.small import refusal, run, small

CONVEX = ("model.hidden=[]", "batch=1000", "epochs=1", "lr=0.3")
"""Logistic regression with full batches: with the term, strongly convex."""


def local(engine: Engine, client: int) -> Tensor:
    """The client's model after its training in round 0."""
    engine.clients.receive(0, [client], engine.server.broadcast(0))
    return engine.clients.work(0, (client,))[0].clone()


def test_the_first_step_does_not_feel_it() -> None:
    words = ("local_steps=1", "rounds=3")
    prox = run(small("method.name=fedprox", "proximal=5.0", *words))
    assert prox.sha256 == run(small(*words)).sha256
    two = run(small("method.name=fedprox", "proximal=5.0", "local_steps=2"))
    assert two.sha256 != run(small("local_steps=2")).sha256


def test_the_larger_mu_the_nearer_to_the_start() -> None:
    distances = []
    for mu in (0.0, 0.1, 1.0, 3.0):
        words = ("method.name=fedprox", f"proximal={mu}", *CONVEX, "local_steps=100")
        engine = Engine(small(*words))
        distances.append(float((local(engine, 0) - engine.flat.initial).norm()))
    assert all(further > 1.5 * nearer for further, nearer in itertools.pairwise(distances))


@pytest.mark.parametrize("mu", [0.2, 1.0])
def test_training_ends_where_the_term_balances_the_loss(mu: float) -> None:
    """At the minimiser of F(w) + mu/2 ||w - w_t||^2 the loss pulls with -mu * (w - w_t)."""
    words = ("method.name=fedprox", f"proximal={mu}", *CONVEX, "local_steps=400")
    engine = Engine(small(*words))
    w, shard = local(engine, 1), engine.population.shards[1]
    module = network(engine, w)
    loss = cross_entropy(module(engine.trainer.feed.x[shard]), engine.trainer.feed.y[shard])
    slope = parameters_to_vector(torch.autograd.grad(loss, list(module.parameters())))
    pull = mu * (w - engine.flat.initial)
    assert float(pull.norm()) > 0.1, "the loss does pull"
    np.testing.assert_allclose(slope, -pull, atol=1e-5)


def test_rounds_equal_plain_training_with_the_term_in_the_loss() -> None:
    words = ("method.name=fedprox", "proximal=0.5", "participation=0.6", "rounds=3")
    engine = Engine(small(*words, *EVERYTHING))
    w = engine.server.w.clone()
    for t, _ in enumerate(play(engine)):
        free = average(engine, t, w)
        w = average(engine, t, w, mu=0.5)
        assert float((free - w).abs().max()) > 1e-3, "it makes a difference"
        np.testing.assert_allclose(engine.server.w, w, rtol=1e-4, atol=2e-5)
        w = engine.server.w.clone()


WITH = ("topk", "stc", "qsgd", "scaffold", "ssfl", "fedopt", "heterofl")


@pytest.mark.parametrize("name", WITH)
def test_the_term_beside_other_methods(name: str) -> None:
    """Nothing changes in the first step; a stronger term makes later ways shorter."""
    words = (f"method.name={name}", "rounds=1", "lr=0.05")
    one = [run(small(*words, "local_steps=1", f"proximal={mu}")).sha256 for mu in (0.0, 4.0)]
    assert one[0] == one[1]
    engines = [Engine(small(*words, "local_steps=60", f"proximal={mu}")) for mu in (0.0, 1.0, 4.0)]
    ways = []
    for engine in engines:
        list(play(engine))
        w = engine.server.w
        ways.append(float((w - engine.flat.initial)[w != 0].norm()))
    assert ways[0] > 1.1 * ways[1] > 1.1**2 * ways[2]


@pytest.mark.parametrize("name", ["local", "fedper", "spatl", "dispfl", "splitfed", "fedsl"])
def test_without_a_global_model_there_is_nothing_to_be_near(name: str) -> None:
    said = refusal(f"method.name={name}", "proximal=0.1")
    assert "proximal = 0.1: wanted a method whose clients train the global model alone" in said
    assert f"found method.name = '{name}'" in said
