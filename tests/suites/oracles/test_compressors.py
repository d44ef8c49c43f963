"""Methods whose clients compress their updates, and remember what they left out."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy import ndarray

from fedmpi.streams import Purpose, key, stream
from tests import coded
from tests.suites.oracles.reference import BASE, Reference, agree, largest, trajectory

Compress = Callable[[ndarray], ndarray]
SPANS = pytest.mark.parametrize("spans", ["whole", "tensor"])
"""What a choice or a scale is for: all parameters, or a tensor by itself."""


class Memory:
    """What a compressor has left out so far, which comes with the next vector."""

    def __init__(self, compress: Compress) -> None:
        self.compress, self.rest = compress, 0.0

    def __call__(self, vector: ndarray) -> ndarray:
        vector = vector + self.rest
        sent = self.compress(vector)
        self.rest = vector - sent
        return sent


def with_feedback(
    reference: Reference, compress: Compress, server: Compress = lambda update: update
) -> list[ndarray]:
    """Models where clients compress update + residual, and the server averages by samples."""
    memories = [Memory(compress) for _ in reference.sizes]

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        return w + server(
            sum(
                share * memories[client](reference.train(w, t, client) - w)
                for client, share in shares.items()
            )
        )

    return reference.rounds(turn)


class Estimate:
    """What a client and the server both take for the client's update (EF21, algorithm 2)."""

    def __init__(self, compress: Compress) -> None:
        self.compress, self.value = compress, 0.0

    def __call__(self, vector: ndarray) -> ndarray:
        self.value = self.value + self.compress(vector - self.value)
        return self.value


def fed_back(
    reference: Reference, kind: str, compress: Callable[[ndarray, int, int], ndarray]
) -> list[ndarray]:
    """Models of a run whose clients compress their updates, which also depends on round, client."""
    kept: dict[int, Compress] = {}
    at = [0]

    def of(client: int) -> Compress:
        def now(vector: ndarray) -> ndarray:
            return compress(vector, at[0], client)

        return {"none": lambda v: now(v), "classic": Memory(now), "ef21": Estimate(now)}[kind]

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        at[0], moved = t, w.copy()
        for client, share in shares.items():
            use = kept.setdefault(client, of(client))
            moved += share * use(reference.train(w, t, client) - w)
        return moved

    return reference.rounds(turn)


def pieces(reference: Reference, spans: str) -> list[slice]:
    """Where each span lies in a model."""
    if spans == "whole":
        return [slice(0, len(reference.start))]
    ends = np.cumsum([0, *(part.size for part in reference.parts(reference.start))]).tolist()
    return [slice(*both) for both in pairwise(ends)]


def chosen(vector: ndarray, share: float, spans: list[slice]) -> ndarray:
    """The mask of each span's largest values: rounded up in several, at least one in each."""
    mask = np.zeros(len(vector), bool)
    for part in spans:
        exact = len(vector[part]) * share
        count = round(exact) if len(spans) == 1 else math.ceil(round(exact, 6))
        mask[part] = largest(np.abs(vector[part]), max(1, count))
    return mask


def top(vector: ndarray, share: float, spans: list[slice]) -> ndarray:
    """The largest values, and zeros."""
    return vector * chosen(vector, share, spans)


def ternary(vector: ndarray, share: float, spans: list[slice]) -> ndarray:
    """The signs of the largest values times the mean of their sizes in their span, and zeros."""
    found = np.sign(vector) * chosen(vector, share, spans)
    for part in spans:
        if found[part].any():
            found[part] *= np.abs(vector[part][found[part] != 0]).mean()
    return found


def signs(vector: ndarray, spans: list[slice]) -> ndarray:
    """The signs of all values times the mean size in their span."""
    found = np.where(vector >= 0, 1.0, -1.0)
    for part in spans:
        found[part] *= np.abs(vector[part]).mean()
    return found


@SPANS
@pytest.mark.parametrize(("momentum", "rate"), [(0.0, 0.1), (0.9, 0.05)])
def test_topk(momentum: float, rate: float, spans: str) -> None:
    words = ("method.name=topk", "method.sparsity=0.9", f"method.spans={spans}")
    engine, found = trajectory(*BASE, *words, f"momentum={momentum}", f"lr={rate}")
    reference = Reference(engine)
    where = pieces(reference, spans)
    agree(found, with_feedback(reference, lambda v: top(v, 0.1, where)), reference.start)


def test_topk_without_error_feedback() -> None:
    words = ("method.name=topk", "method.sparsity=0.9", "feedback=none")
    engine, found = trajectory(*BASE, *words)
    reference = Reference(engine)
    where = pieces(reference, "whole")

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        updates = {client: reference.train(w, t, client) - w for client in shares}
        return w + sum(share * top(updates[k], 0.1, where) for k, share in shares.items())

    agree(found, reference.rounds(turn), reference.start)


@SPANS
def test_stc(spans: str) -> None:
    """F. Sattler et al., algorithm 2: the server compresses the mean update, too."""
    words = ("method.name=stc", "method.sparsity=0.9", "method.sparsity_down=0.9")
    engine, found = trajectory(*BASE, *words, f"method.spans={spans}")
    reference = Reference(engine)
    where = pieces(reference, spans)
    server = Memory(lambda v: ternary(v, 0.1, where))
    wanted = with_feedback(reference, lambda v: ternary(v, 0.1, where), server)
    agree(found, wanted, reference.start)


@SPANS
def test_signsgd(spans: str) -> None:
    """S. P. Karimireddy et al., algorithm 1; the authors' code has a scale for each tensor."""
    engine, found = trajectory(*BASE, "method.name=signsgd", f"method.spans={spans}")
    reference = Reference(engine)
    where = pieces(reference, spans)
    agree(found, with_feedback(reference, lambda v: signs(v, where)), reference.start)


@SPANS
@pytest.mark.parametrize("warmup", [0, 4])
def test_dgc(warmup: int, spans: str) -> None:
    """As synxlin's memory: momentum correction, and both vectors are cleared where one is sent."""
    factor, sparsity = 0.9, 0.99
    words = (f"method.momentum={factor}", f"method.sparsity={sparsity}", f"method.warmup={warmup}")
    engine, found = trajectory(*BASE, "method.name=dgc", *words, f"method.spans={spans}")
    reference = Reference(engine)
    where = pieces(reference, spans)
    momentum = [np.zeros_like(reference.start) for _ in reference.sizes]
    velocity = [np.zeros_like(reference.start) for _ in reference.sizes]

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        zeros = min(sparsity, 1 - 0.25 ** (t + 1)) if t < warmup else sparsity
        update = np.zeros_like(w)
        for client, share in shares.items():
            momentum[client] = factor * momentum[client] + reference.train(w, t, client) - w
            velocity[client] = velocity[client] + momentum[client]
            mask = chosen(velocity[client], 1 - zeros, where)
            update += share * velocity[client] * mask
            momentum[client] = momentum[client] * ~mask
            velocity[client] = velocity[client] * ~mask
        return w + update

    agree(found, reference.rounds(turn), reference.start)


def test_powersgd() -> None:
    """T. Vogels et al., algorithm 1, for each client by itself; the first factor is drawn."""
    rank = 2
    engine, found = trajectory(*BASE, "method.name=powersgd", f"method.rank={rank}")
    reference = Reference(engine)
    inputs, classes = reference.widths
    factors: dict[int, ndarray] = {}
    rest = [np.zeros_like(reference.start) for _ in reference.sizes]

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        total = np.zeros_like(w)
        for client, share in shares.items():
            update = rest[client] + reference.train(w, t, client) - w
            matrix = update[: classes * inputs].reshape(classes, inputs)
            if client not in factors:
                random = stream(reference.settings.seed, Purpose.SKETCH, client)
                factors[client] = random.standard_normal(rank * inputs, "f4").reshape(inputs, rank)
            left, _ = np.linalg.qr(matrix @ factors[client].astype(float))
            factors[client] = matrix.T @ left
            sent = update.copy()
            sent[: classes * inputs] = (left @ factors[client].T).ravel()
            rest[client] = update - sent
            total += share * sent
        return w + total

    agree(found, reference.rounds(turn), reference.start)


@pytest.mark.parametrize(("bits", "bucket"), [(4, 128), (2, 50)])
def test_qsgd(bits: int, bucket: int) -> None:
    """D. Alistarh et al., section 3: levels of each bucket's norm, rounded by the same draws."""
    words = ("method.name=qsgd", f"method.bits={bits}", f"method.bucket={bucket}")
    engine, found = trajectory(*BASE, *words)
    reference, levels = Reference(engine), 2 ** (bits - 1) - 1

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        total = np.zeros_like(w)
        for client, share in shares.items():
            update = reference.train(w, t, client) - w
            padded = np.pad(update, (0, -len(update) % bucket)).reshape(-1, bucket)
            norms = np.linalg.norm(padded, axis=1, keepdims=True)
            secret = key(reference.settings.seed, Purpose.ROUND, t, client)
            drawn = coded.draws(secret, padded.size).reshape(padded.shape)
            heights = levels * np.abs(padded) / norms + drawn
            sent = np.sign(padded) * np.floor(heights) * norms / levels
            total += share * sent.ravel()[: len(w)]
        return w + total

    agree(found, reference.rounds(turn), reference.start)


def test_server_optimizer_proximal_term_and_compressor_together() -> None:
    """FedAdam of what top-k sends of FedProx's updates."""
    words = ("method.name=topk", "method.sparsity=0.9", "proximal=0.2", "aggregation.server=adam")
    engine, found = trajectory(*BASE, *words, "aggregation.server_lr=0.03", "lr=0.05")
    reference = Reference(engine)
    where = pieces(reference, "whole")
    memories = [Memory(lambda v: top(v, 0.1, where)) for _ in reference.sizes]
    first, second = np.zeros_like(reference.start), np.full_like(reference.start, 1e-6)

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        nonlocal first, second
        delta = np.zeros_like(w)
        for client, share in shares.items():
            local = reference.train(w, t, client, lambda g, v: g + 0.2 * (v - w))
            delta += share * memories[client](local - w)
        first, second = 0.9 * first + 0.1 * delta, 0.99 * second + 0.01 * delta**2
        return w + 0.03 * first / (np.sqrt(second) + 1e-3)

    agree(found, reference.rounds(turn), reference.start, within=1e-4)


@pytest.mark.parametrize("name", ["topk", "signsgd"])
def test_ef21(name: str) -> None:
    """P. Richtarik et al., algorithm 2: estimates move by what is sent, and their mean is taken."""
    mine = {"topk": "method.sparsity=0.8", "signsgd": "method.spans=whole"}
    words = (*BASE, "seed=3")  # without ties of what is sent
    engine, found = trajectory(*words, f"method.name={name}", mine[name], "feedback=ef21")
    reference = Reference(engine)
    where = pieces(reference, "whole")
    compress = {"topk": lambda v: top(v, 0.2, where), "signsgd": lambda v: signs(v, where)}[name]
    agree(found, fed_back(reference, "ef21", lambda v, *_: compress(v)), reference.start)


def uniform(vector: ndarray, parts: list[slice], bits: int, draws: ndarray | float) -> ndarray:
    """Codes between the least and the greatest value of each part, decoded."""
    found = np.empty_like(vector)
    shifts = np.broadcast_to(draws, vector.shape)
    for part in parts:
        low, high = vector[part].min(), vector[part].max()
        step = (high - low) / (2**bits - 1)
        found[part] = low + step * np.floor((vector[part] - low) / step + shifts[part])
    return found


def tern(vector: ndarray, parts: list[slice], draws: ndarray) -> ndarray:
    """W. Wen et al., eq. 3: the sign times the largest magnitude, with the probability |v| / s."""
    found = np.empty_like(vector)
    for part in parts:
        top = np.abs(vector[part]).max()
        found[part] = np.sign(vector[part]) * top * (draws[part] >= 1 - np.abs(vector[part]) / top)
    return found


def buckets(size: int, each: int) -> list[slice]:
    return [slice(start, min(size, start + each)) for start in range(0, size, each)]


@pytest.mark.parametrize("kind", ["none", "classic", "ef21"])
@pytest.mark.parametrize("scales", ["whole", "tensor", "bucket"])
@pytest.mark.parametrize("values", ["uniform", "ternary", "sign"])
def test_codecs_with_feedback(values: str, scales: str, kind: str) -> None:
    """FedAvg through each codec, rounded by the same draws; two clients, several rounds."""
    if values == "ternary" and kind != "none":
        pytest.skip("its error can be larger than what is sent")
    words = [f"codec.values={values}", f"codec.scales={scales}", f"feedback={kind}", "clients=2"]
    words += ["codec.bits=4"] * (values == "uniform") + ["codec.bucket=100"] * (scales == "bucket")
    engine, found = trajectory(*BASE, *words, "participation=1.0")
    reference = Reference(engine)
    parts = pieces(reference, scales) if scales != "bucket" else buckets(len(reference.start), 100)

    def compress(vector: ndarray, t: int, client: int) -> ndarray:
        draws = coded.draws(key(reference.settings.seed, Purpose.ROUND, t, client), len(vector))
        if values == "uniform":
            return uniform(vector, parts, 4, draws)
        return tern(vector, parts, draws) if values == "ternary" else signs(vector, parts)

    agree(found, fed_back(reference, kind, compress), reference.start, within=5e-5)


def test_a_codec_of_the_largest_values() -> None:
    """What is left out by top-k and by the codec together comes with the next update."""
    words = ("codec.values=uniform", "codec.bits=3", "codec.rounding=nearest")
    engine, found = trajectory(*BASE, "method.name=topk", "method.sparsity=0.9", *words)
    reference = Reference(engine)
    where = pieces(reference, "whole")

    def compress(vector: ndarray, t: int, client: int) -> ndarray:
        mask = chosen(vector, 0.1, where)
        sent = np.zeros_like(vector)
        kept = vector[mask]
        sent[mask] = uniform(kept, [slice(0, len(kept))], 3, 0.5)
        return sent

    agree(found, fed_back(reference, "classic", compress), reference.start)
