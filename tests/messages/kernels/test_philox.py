"""Philox4x32-10: its published known answers, and draws that are a function of their position."""

import numpy as np
import pytest

from fedmpi.messages import kernels
from fedmpi.messages.kernels import philox
from fedmpi.streams import Purpose, key
from tests import coded

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0"),
]
"""Counters and keys of Random123's `kat_vectors`."""
ANSWERS = [
    "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "408f276d 41c83b0e a20bc7c6 6d5451fd",
    "d16cfe09 94fdcceb 5001e420 24126ea1",
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("given", "answer"), list(zip(KNOWN, ANSWERS, strict=True)))
def test_known_answers(given: tuple[str, str], answer: str) -> None:
    """Of the kernel, and of the plain one that other tests compare with."""
    counter, secret = (words(text) for text in given)
    assert coded.philox(counter, secret) == words(answer)
    # The counter's lower half is the block, its upper half belongs to our key.
    block = counter[0] | counter[1] << 32
    pair = [secret[0] | secret[1] << 32, counter[2] | counter[3] << 32]
    if block < 2**61:
        found = np.empty(4, np.uint32)
        philox.fill(np.array(pair, np.uint64), 4 * block, found)
        assert found.tolist() == words(answer)


@pytest.mark.parametrize("first", [0, 4, 2**34 - 8, 2**34, 2**40 + 12])
@pytest.mark.parametrize("count", [4, 12, 64, 100])
def test_draws_are_those_of_plain_python(first: int, count: int) -> None:
    """Beside a word's end, too: block 2^32 has a second word."""
    secret = key(7, Purpose.ROUND, 3, 4)
    low, high = (int(half) for half in secret)
    wanted: list[int] = []
    for block in range(first // 4, (first + count) // 4):
        counter = [block % 2**32, block >> 32, high % 2**32, high >> 32]
        wanted += coded.philox(counter, [low % 2**32, low >> 32])
    found = np.empty(count, np.uint32)
    philox.fill(secret, first, found)
    assert found.tolist() == wanted


@pytest.mark.parametrize("count", [0, 1, 3, 2047, 2048, 2049, 5001])
def test_uniform_numbers_are_the_draws(count: int) -> None:
    secret = key(7, Purpose.ROUND, 3, 4)
    found = philox.uniform(secret, count)
    np.testing.assert_array_equal(found, coded.draws(secret, count))
    assert found.dtype == float and (found > 0).all() and (found < 1).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_uniform_numbers_depend_on_no_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, count = key(1, Purpose.ROUND, 0, 0), 10_001
    alone = philox.uniform(secret, count)
    monkeypatch.setattr(kernels, "LEAST", 1)
    kernels.use_threads(threads)
    try:
        assert len(kernels.parts(count)) == threads
        np.testing.assert_array_equal(philox.uniform(secret, count), alone)
    finally:
        kernels.use_threads(1)


def test_uniform_numbers_are_uniform() -> None:
    """Moments and a histogram within five standard deviations; neighbours are uncorrelated."""
    count = 200_000
    found = philox.uniform(key(1, Purpose.ROUND, 0, 0), count)
    assert abs(found.mean() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5
    assert abs((found**2).mean() - 1 / 3) < 5 * (4 / 45 / count) ** 0.5
    boxes = np.bincount((found * 64).astype(int), minlength=64)
    assert np.abs(boxes - count / 64).max() < 5 * (count / 64) ** 0.5
    for lag in range(1, 9):
        assert abs(np.corrcoef(found[lag:], found[:-lag])[0, 1]) < 5 / count**0.5
    other = philox.uniform(key(1, Purpose.ROUND, 0, 1), count)
    assert abs(np.corrcoef(found, other)[0, 1]) < 5 / count**0.5
