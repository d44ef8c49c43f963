"""The server's word as changes of its model, with what they leave out in the next one.

F. Sattler et al., *Robust and Communication-Efficient Federated Learning from Non-IID Data*,
algorithm 2, lines of the server. Three of five clients take part in a round, so that most have
missed some changes.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy import ndarray

from tests.suites.oracles.reference import BASE, Reference, agree, trajectory
from tests.suites.oracles.test_compressors import (
    SPANS,
    Compress,
    Memory,
    pieces,
    signs,
    ternary,
    top,
    with_feedback,
)


def uniform(vector: ndarray, bits: int, spans: list[slice], mask: ndarray) -> ndarray:
    """Codes of the values in the mask between the least and the greatest of them in their span."""
    found = np.zeros_like(vector)
    for part in spans:
        kept = vector[part][mask[part]]
        low, step = kept.min(), np.ptp(kept) / (2**bits - 1)
        found[part][mask[part]] = low + step * np.floor((kept - low) / step + 0.5)
    return found


def rounded(vector: ndarray, bits: int) -> ndarray:
    """Float32 of which so many bits of the fraction are left, rounded to the nearest even one."""
    words = vector.astype("<f4").view("<u4").astype(np.int64)
    cut = 23 - bits
    words += (1 << cut - 1) - 1 + (words >> cut & 1)
    return (words >> cut << cut).astype("<u4").view("<f4").astype(float)


CODINGS: dict[str, tuple[tuple[str, ...], Callable[[ndarray, list[slice]], ndarray]]] = {
    "f4": (("sparsity=0.9",), lambda v, parts: top(v, 0.1, parts)),
    "f2": (("sparsity=0.5",), lambda v, parts: top(v, 0.5, parts).astype("<f2").astype(float)),
    "bf16": (("sparsity=0.5",), lambda v, parts: rounded(top(v, 0.5, parts), 7)),
    "uniform": (
        ("bits=3", "sparsity=0.8"),
        lambda v, parts: uniform(v, 3, parts, top(v, 0.2, parts) != 0),
    ),
    "sign": ((), signs),
    "sign of few": (("sparsity=0.9", "positions=golomb"), lambda v, parts: ternary(v, 0.1, parts)),
}


def down(values: str, spans: str) -> tuple[str, ...]:
    """The words of a coding."""
    words = [f"values={values.split()[0]}", *CODINGS[values][0]]
    if any(word.startswith("sparsity") for word in words):
        words.append(f"spans={spans}")
    if values.split()[0] in ("uniform", "sign"):
        words.append(f"scales={spans}")
    return tuple(f"codec.down.{word}" for word in words)


@SPANS
@pytest.mark.parametrize("values", CODINGS)
def test_fedavg(values: str, spans: str) -> None:
    engine, found = trajectory(*BASE, *down(values, spans))
    reference = Reference(engine)
    parts = pieces(reference, spans)
    server = Memory(lambda v: CODINGS[values][1](v, parts))
    wanted = with_feedback(reference, lambda update: update, server)
    # Codes of values that lie in the middle of two may differ.
    agree(found, wanted, reference.start, 2e-4 if values in ("uniform", "f2", "bf16") else 2e-5)


@pytest.mark.parametrize("bits", [2, 8])
def test_codes_of_all_values(bits: int) -> None:
    words = ("codec.down.values=uniform", f"codec.down.bits={bits}")
    engine, found = trajectory(*BASE, *words)
    reference = Reference(engine)
    parts, everything = pieces(reference, "whole"), np.ones(len(reference.start), bool)
    server = Memory(lambda v: uniform(v, bits, parts, everything))
    agree(found, with_feedback(reference, lambda update: update, server), reference.start, 2e-4)


@SPANS
def test_topk_both_ways(spans: str) -> None:
    """Each side has what it left out itself."""
    words = ("method.name=topk", "method.sparsity=0.9", f"method.spans={spans}")
    engine, found = trajectory(*BASE, *words, *down("f4", spans))
    reference = Reference(engine)
    where = pieces(reference, spans)
    compress: Compress = lambda v: top(v, 0.1, where)  # noqa: E731
    agree(found, with_feedback(reference, compress, Memory(compress)), reference.start)


def test_a_servers_momentum() -> None:
    """What is compressed is the change of the model, after the momentum."""
    words = ("method.name=fedopt", "aggregation.server=momentum", "aggregation.server_lr=0.5")
    engine, found = trajectory(*BASE, *words, *down("f4", "whole"))
    reference = Reference(engine)
    where, velocity = pieces(reference, "whole"), np.zeros_like(reference.start)
    memory = Memory(lambda v: top(v, 0.1, where))

    def server(update: ndarray) -> ndarray:
        nonlocal velocity
        velocity = 0.9 * velocity + update
        return memory(0.5 * velocity)

    agree(found, with_feedback(reference, lambda update: update, server), reference.start)
    rest = engine.server.words.rest.double().numpy()
    np.testing.assert_allclose(rest, memory.rest, rtol=0, atol=2e-5)
    assert torch.count_nonzero(engine.server.words.rest) > 0.8 * len(rest)
