"""STC's algebra: both sides conserve what they leave out, and hold the same compressed model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Kind, Message, pack, rice, unpack
from fedmpi.messages.counts import keep_round
from fedmpi.methods.stc import Config
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, key
from fedmpi.training.downlink import Changes
from tests.plain import play, train
from tests.small import run, small, smooth

STC = ("method.name=stc", "method.sparsity=0.9", "rounds=8", "participation=0.4", "clients=10")


TWELVE = Flat(nn.Sequential(nn.Linear(3, 3)))
"""Of so many values."""
CPU, KEY = torch.device("cpu"), key(1, Purpose.ROUND, 0)


def check_ternary(sent: Tensor, given: Tensor, sparsity: float) -> None:
    """The largest values of what was given, as often as asked, at their mean size; with ties."""
    chosen = sent != 0
    wanted = round(len(given) * (1 - sparsity))
    assert int(chosen.sum()) == min(wanted, int((given.abs() > 1e-6).sum()))
    assert given[chosen].abs().min() >= given[~chosen].abs().max() - 1e-5
    mean = given[chosen].abs().mean()
    np.testing.assert_allclose(sent[chosen], given[chosen].sign() * mean, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("down", [0.9, 0.5])
def test_rounds_against_algorithm_2(down: float) -> None:
    engine = Engine(small(*STC, f"method.sparsity_down={down}"))
    w, rest = engine.server.w.clone(), torch.zeros(engine.flat.size)
    kept: dict[int, Tensor] = {}
    for t, _ in enumerate(play(engine)):
        total, samples = torch.zeros_like(w), 0
        for client in engine.population.sample(t):
            given = train(engine, t, client, w)[0] - w + kept.get(client, 0)
            kept[client] = engine.clients.feedback.residuals[client].clone()
            sent = torch.where(kept[client] == given, 0, given - kept[client])
            sent[sent.abs() < 1e-5] = 0
            check_ternary(sent, given, 0.9)
            size = len(engine.population.shards[client])
            total, samples = total + size * sent, samples + size
        given = total / samples + rest
        moved = engine.server.w - w
        moved[moved.abs() < 1e-6] = 0
        check_ternary(moved, given, down)
        np.testing.assert_allclose(moved + engine.server.words.rest, given, rtol=1e-3, atol=1e-5)
        w, rest = engine.server.w.clone(), engine.server.words.rest.clone()
    assert len(kept) > 4


def compressed(update: np.ndarray, sparsity: float) -> np.ndarray:
    """Algorithm 1 in float64: of equal values those at the lowest positions are sent."""
    count = max(1, round(len(update) * (1 - sparsity)))
    kept = np.argsort(-np.abs(update), kind="stable")[:count]
    sent = np.zeros_like(update)
    sent[kept] = np.sign(update[kept]) * np.abs(update[kept]).mean()
    return sent


@pytest.mark.parametrize("seed", range(3))
def test_the_server_chooses_among_equals_by_position(seed: int) -> None:
    """Clients' values are +mu or -mu each, so that most of the mean's tie; two rounds, with what
    the first one left out. Weights and magnitudes are powers of two: equal means are equal bits.
    """
    engine = Engine(small(*STC, "method.sparsity_down=0.93"))
    server, size = engine.server, engine.flat.size
    source = np.random.default_rng(seed)
    w, rest = server.w.double().numpy(), np.zeros(size)
    for t in range(2):
        total = np.zeros(size)
        for client in range(3):
            where = np.sort(source.permutation(size)[: size // 10])
            values = np.where(source.random(len(where)) < 0.5, -1.0, 1.0) * 2.0**-client
            total[where] += values
            signs = torch.from_numpy(values).float(), [len(values)], size, torch.from_numpy(where)
            server.absorb(t, Message(client, quantized.signs(Kind.GRADIENT, *signs), 1.0))
        server.sum.weight = 4.0
        server.advance(t)
        given = total / 4 + rest
        sent = compressed(given, 0.93)
        least = np.abs(given[sent != 0]).min()
        assert (np.abs(given) == least).sum() > (np.abs(given[sent != 0]) == least).sum(), "ties"
        w, rest = w + sent, given - sent
        np.testing.assert_allclose(server.w.numpy(), w, rtol=0, atol=1e-6)
        np.testing.assert_allclose(server.words.rest.numpy(), rest, rtol=0, atol=1e-6)
        rest = server.words.rest.double().numpy()


@pytest.mark.parametrize("has_statistics", [False, True])
@pytest.mark.parametrize("spans", ["whole", "tensor"])
def test_a_client_trains_on_the_very_model_of_the_server(
    spans: str, has_statistics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, however many rounds it has missed."""
    if has_statistics:
        monkeypatch.setattr(models, "build", smooth)
    engine = Engine(small(*STC, "method.sparsity=0.95", f"method.spans={spans}"))
    clients, gaps, last = engine.clients, set(), {}
    work = clients.work

    def watch(t: int, some: tuple[int, ...]) -> Tensor:
        assert torch.equal(clients.start, engine.server.w)
        for client in some:
            gaps.add(t - last.get(client, t))
            last[client] = t
        return work(t, some)

    monkeypatch.setattr(clients, "work", watch)
    list(play(engine))
    assert gaps >= {0, 1, 2}


def test_bytes() -> None:
    found = run(small(*STC, "participation=1.0"))
    n, rows = found.engine.flat.size, found.tables["clients"]
    count = round(0.1 * n)
    later, first = rows[rows["round"] > 0], rows[rows["round"] == 0]
    assert set(rows["up_gradient"].tolist()) == {-(-count // 8)}
    assert set(later["down_gradient"].tolist()) == {-(-count // 8)}
    assert (first["down_model"] == 4 * n).all() and not later["down_model"].any()
    bits = rice(n, count)
    assert bits == 3
    wanted = bits + 1 / (1 - 0.9 ** (2**bits))
    found_bits = 8 * rows["up_mask"].mean() / count
    assert found_bits == pytest.approx(wanted, rel=0.1), "positions are not quite random"


numbers = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@given(
    st.lists(numbers, min_size=12, max_size=12),
    st.sampled_from([0.0, 0.3, 0.5, 0.8]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_decoded_is_what_was_encoded(vector: list[float], sparsity: float) -> None:
    """Over the wire, in every bit: +mu or -mu at the largest values, and zeros elsewhere; and
    ||v - T(v)||^2 = ||v||^2 - k mu^2.
    """
    values = torch.tensor(vector)
    (block,) = Changes(Config().ternary(sparsity), TWELVE, CPU).encode(values, KEY)
    (message,), _ = unpack(pack([Message(0, [block])]).data)
    found, said = (sparse.vector(b, 12, CPU) for b in (message.blocks[0], block))
    assert torch.equal(found, said)
    order = values.abs().sort(descending=True).values[: keep_round(12, 1 - sparsity)]
    order = order[order > 0]
    mean = float(order.mean()) if len(order) else 0.0
    assert int((found != 0).sum()) == len(order)
    np.testing.assert_allclose(found.abs().sum(), len(order) * mean, rtol=1e-5)
    assert ((found == 0) | (found.sign() == values.sign())).all()
    rest = (values - found).double().square().sum()
    wanted = values.double().square().sum() - len(order) * mean**2
    np.testing.assert_allclose(rest, wanted, rtol=1e-3, atol=1e-3 * mean**2)


def test_who_has_missed_too_much_gets_the_model() -> None:
    engine = Engine(small(*STC, "method.sparsity=0.5", "rounds=40", "participation=0.2"))
    list(play(engine))
    server = engine.server
    words = server.words
    assert words.forgotten > 0
    words.knows[3] = words.forgotten
    assert {block.kind for block in server.send(40, 3)} == {Kind.GRADIENT}
    words.knows[3] = words.forgotten - 1
    assert [block.kind for block in server.send(40, 3)] == [Kind.MODEL]
    assert server.send(40, 3) == [], "it knows the latest now"


def test_bytes_of_tensors() -> None:
    """Below a bit a value there is a scale for each tensor, whether or not anything is sent."""
    found = run(small(*STC, "participation=1.0", "method.spans=tensor"))
    pieces = [piece.stop - piece.start for piece in found.engine.flat.parameters]
    count = sum(int(np.ceil(round(0.1 * size, 6))) for size in pieces)
    assert set(found.tables["clients"]["up_gradient"].tolist()) == {
        -(-count // 8) + 4 * len(pieces)
    }


def test_signs_of_ternary_values() -> None:
    given = torch.tensor([2.0, -4.0]), [2], 10, torch.tensor([3, 9])
    (block,) = quantized.signs(Kind.GRADIENT, *given)
    assert sparse.vector(block, 10, CPU).tolist() == [0, 0, 0, 3, 0, 0, 0, 0, 0, -3]
