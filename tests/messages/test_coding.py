"""The codec of updates: what the receiver gets, and how many bytes it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmpi.config import Codec
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message, WireError, pack, unpack
from fedmpi.messages.coding import Coder
from fedmpi.streams import Purpose, key
from tests.coded import wants_zstd

SPANS = [range(6), range(6, 10), range(13, 40)]
EXACT = torch.tensor([10, 11, 12])
"""Three tensors, and statistics between the second and the third."""
CODES = [
    Codec(values=values, scales=scales, bucket=bucket)
    for values in ("uniform", "ternary", "sign")
    for scales, bucket in (("whole", 512), ("tensor", 512), ("bucket", 7), ("bucket", 99))
]
ALL = [Codec(), Codec(values="f2"), Codec(values="bf16"), *CODES]
ZSTD = pytest.param(Codec(values="zstd"), marks=wants_zstd)
WHERE = [None, torch.tensor([0, 3, 9, 11, 12, 13, 39]), torch.tensor([1, 2])]
"""All values; some, with statistics among them; two."""


def ids(codec: Codec) -> str:
    return f"{codec.values}-{codec.scales}-{codec.bucket}"


every_codec = pytest.mark.parametrize("codec", [*ALL, ZSTD], ids=ids)


def coder(codec: Codec, apart: bool = False) -> Coder:
    return Coder(codec, SPANS, EXACT, 40, apart)


def travel(blocks: list[Block]) -> list[Block]:
    """Blocks as they come from the wire."""
    (message,), _ = unpack(pack([Message(0, blocks, 1.0)]).data)
    return list(message.blocks)


def given(where: torch.Tensor | None, seed: int = 0) -> torch.Tensor:
    count = 40 if where is None else len(where)
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def secret(seed: int = 5) -> np.ndarray:
    return key(seed, Purpose.ROUND, 0, 0)


@every_codec
@pytest.mark.parametrize("where", WHERE, ids=["all", "some", "two"])
def test_both_sides_read_the_same_and_statistics_are_exact(
    codec: Codec, where: torch.Tensor | None
) -> None:
    about, values = coder(codec), given(where)
    label = sparse.places(torch.tensor([1]), 3)
    blocks = about.encode([sparse.block(Kind.GRADIENT, values, 40), label], where, secret())
    assert len(blocks) == about.blocks + 1
    ours, theirs = about.decode(blocks, where), about.decode(travel(blocks), where)
    assert len(theirs) == 2
    assert theirs[0].size == 40
    heard = sparse.values(theirs[0])
    np.testing.assert_array_equal(sparse.values(ours[0]), heard)
    places = torch.arange(40) if where is None else where
    exact = torch.isin(places, EXACT)
    np.testing.assert_array_equal(heard[exact], values[exact])
    others, found = values[~exact], heard[~exact]
    worst = {"f2": 2e-3, "bf16": 2e-2, "uniform": 0.05, "ternary": 4.0, "sign": 4.0}
    assert float((others - found).abs().max()) <= worst.get(codec.values, 0.0)


@every_codec
def test_positions_that_travel(codec: Codec) -> None:
    """Statistics are not among what is read, for their method sends them by itself."""
    where = torch.tensor([2, 4, 9, 30, 39])
    block = sparse.block(Kind.GRADIENT, given(where), 40, where)
    read, lengths = {}, {}
    for positions in ("auto", "uint32", "bitmap", "delta", "golomb", "dense"):
        if positions == "dense" and codec.values == "sign":
            continue
        about = coder(codec.model_copy(update={"positions": positions}), apart=True)
        blocks = travel(about.encode([block], where, secret()))
        assert len(blocks) == about.blocks
        assert (blocks[0].indices is None) == (positions == "dense")
        lengths[positions] = pack([Message(0, blocks, 1.0)]).bytes[0, Kind.MASK]
        (found,) = about.decode(blocks, None if positions == "dense" else where)
        read[positions] = sparse.vector(found, 40, torch.device("cpu"))
    for positions in ("uint32", "bitmap", "delta", "golomb"):
        np.testing.assert_array_equal(read["auto"], read[positions])
    wanted = {"auto": 5, "uint32": 20, "bitmap": 5, "delta": 5, "golomb": 3, "dense": 0}
    assert lengths == {positions: wanted[positions] for positions in lengths}
    assert set(read["auto"].nonzero().squeeze(1).tolist()) <= set(where.tolist())
    if codec.values in ("f4", "zstd", "f2", "bf16"):
        np.testing.assert_array_equal(read["auto"], read["dense"])


def test_positions_of_statistics_are_dropped() -> None:
    """A method that has few values to send may name some; they are zero."""
    where = torch.tensor([3, 11, 20])
    values = torch.tensor([1.0, 0.0, -2.0])
    about = coder(Codec(values="sign"), apart=True)
    block = sparse.block(Kind.GRADIENT, values, 40, where)
    (found,) = about.decode(travel(about.encode([block], where, secret())), where)
    assert found.indices.tolist() == [3, 20]
    assert sparse.values(found).tolist() == [1.5, -1.5]


@pytest.mark.parametrize("codec", CODES, ids=ids)
@pytest.mark.parametrize("count", [0, 1, 37])
def test_bytes(codec: Codec, count: int) -> None:
    """The values of `bits` bits each, and their scales; all of one scale have it in the header."""
    spans = [range(count)]
    about = Coder(codec, spans, torch.empty(0, dtype=torch.int64), count, apart=False)
    values = torch.linspace(-1, 1, count)
    blocks = about.encode([sparse.block(Kind.GRADIENT, values)], None, secret())
    assert len(travel(blocks)) == about.blocks
    (account,) = pack([Message(0, blocks, 1.0)]).bytes
    bits = {"uniform": codec.bits, "ternary": 2, "sign": 1}[codec.values]
    parts = {"whole": 0, "tensor": 2, "bucket": max(2, -(-count // codec.bucket))}[codec.scales]
    each = 8 if codec.values == "uniform" else 4
    assert account[Kind.GRADIENT] == -(-count * bits // 8) + parts * each


@pytest.mark.parametrize("values", ["uniform", "ternary"])
def test_stochastic_codes_are_right_on_average(values: str) -> None:
    """Within five standard deviations of the mean of 4000 draws, each of at most s^2 variance."""
    about, update = (
        coder(Codec(values=values, **{"bits": 2} if values == "uniform" else {})),
        given(None),
    )
    total = torch.zeros(40, dtype=torch.float64)
    for draw in range(4000):
        blocks = about.encode([sparse.block(Kind.GRADIENT, update)], None, secret(draw))
        total += torch.from_numpy(about.decode(blocks, None)[0].values)
    bound = 5 * float(update.abs().max()) / 4000**0.5
    assert float((total / 4000 - update).abs().max()) < bound


def test_ternary_values_are_zero_or_the_largest() -> None:
    values = torch.tensor([0.0, -3.0, 1.0, 0.5, 0.0, -0.0])
    lengths = [3, 0, 2, 1]
    blocks = quantized.ternary(Kind.GRADIENT, values, lengths, 6, None, secret())
    found = sparse.values(quantized.signed(travel(blocks), lengths))
    assert set(found[:3].tolist()) <= {0.0, 3.0, -3.0}
    assert found[1] == -3
    assert found[3] == 0.5, "the largest of its part"
    assert found[[0, 4, 5]].tolist() == [0, 0, 0]


@every_codec
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible(codec: Codec, bad: float) -> None:
    values = given(None)
    values[2] = bad
    about = coder(codec)
    blocks = about.encode([sparse.block(Kind.GRADIENT, values)], None, secret())
    found = sparse.values(about.decode(travel(blocks), None)[0])
    assert not found[2].isfinite()


@pytest.mark.parametrize("codec", [*ALL[1:], ZSTD], ids=ids)
def test_blocks_that_are_no_such_update_are_refused(codec: Codec) -> None:
    about = coder(codec)
    blocks = about.encode([sparse.block(Kind.GRADIENT, given(None))], None, secret())
    for count in range(len(blocks)):
        with pytest.raises(WireError):
            about.decode(blocks[:count], None)
    for place, block in enumerate(blocks):
        about_count = {"count": block.count - 1} if block.coding == Coding.ZSTD else {"count": -1}
        short = replace(block, values=block.values[:-1], **about_count)
        with pytest.raises(WireError):
            about.decode([*blocks[:place], short, *blocks[place + 1 :]], None)


def test_a_codec_takes_float32_alone() -> None:
    codes = sparse.block(Kind.GRADIENT, given(None), coding=Coding.CODES, bits=4)
    with pytest.raises(WireError, match="a codec takes float32 values, found CODES"):
        coder(Codec(values="f2")).encode([codes], None, secret())
