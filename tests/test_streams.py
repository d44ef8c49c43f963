"""Private streams: one for each purpose and ids, the same for ever, and none like another."""

import itertools

import numpy as np
import pytest

from fedmpi.streams import Purpose, key, stream, torch_seed

IDS = {
    Purpose.MODEL: 0,
    Purpose.VALIDATION: 0,
    Purpose.PARTITION: 0,
    Purpose.SAMPLE: 1,
    Purpose.BATCH: 2,
    Purpose.SALIENCY: 1,
    Purpose.ORDER: 1,
    Purpose.DATA: 0,
    Purpose.AUGMENT: 2,
    Purpose.DROPOUT: 2,
    Purpose.DEVICE: 0,
    Purpose.CHANNEL: 2,
    Purpose.FATE: 2,
    Purpose.ROTATION: 0,
    Purpose.COLOUR: 1,
    Purpose.NOISE: 2,
    Purpose.SHARE: 1,
    Purpose.MISLABEL: 1,
    Purpose.POSITIONS: 2,
    Purpose.SKETCH: 1,
    Purpose.MASK: 2,
    Purpose.NEIGHBOUR: 2,
    Purpose.BLUR: 1,
    Purpose.KEEP: 0,
    Purpose.WIDTH: 2,
    Purpose.CHANNELS: 2,
    Purpose.SALIENT: 2,
    Purpose.RESERVE: 1,
    Purpose.BIRTH: 0,
    Purpose.AGENT: 2,
    Purpose.SURVIVOR: 4,
    Purpose.LINK: 4,
    Purpose.CHOICE: 4,
    Purpose.EPOCHS: 2,
    Purpose.HEAD: 0,
    Purpose.OUTAGE: 2,
    Purpose.ROUND: 2,
    Purpose.ROUND_CUT: 4,
    Purpose.ROUND_STEP: 3,
    Purpose.ADAPTER: 0,
    Purpose.PART: 0,
}
"""How many ids the streams of each purpose have."""


def test_a_stream_can_be_had_again() -> None:
    one, other = (stream(7, Purpose.BATCH, 3, 4) for _ in range(2))
    np.testing.assert_array_equal(one.random(100), other.random(100))


def test_what_was_drawn_before_does_not_matter() -> None:
    stream(7, Purpose.BATCH, 3, 4).random(1000)
    np.random.default_rng(1).random(10)
    np.random.seed(0)
    assert stream(7, Purpose.BATCH, 3, 4).integers(1 << 62) == 2472114483294518079


def test_the_number_of_ids_matters() -> None:
    """A seed's trailing zeros count for nothing; id -1 is such a zero."""
    found = [stream(1, Purpose.BATCH, *[-1] * count).integers(1 << 62) for count in range(4)]
    assert len(set(found)) == 4


def test_no_two_streams_of_a_run_are_alike() -> None:
    """All purposes, rounds -1 to 8 and ten clients, for a few seeds."""
    first: dict[int, tuple] = {}
    for seed, purpose in itertools.product((0, 1, 2, 2**32 - 1, 2**40), Purpose):
        for ids in itertools.product(range(-1, 9), repeat=IDS[purpose]):
            number = torch_seed(seed, purpose, *ids)
            assert number not in first, f"{(seed, purpose, ids)} is like {first.get(number)}"
            first[number] = (seed, purpose, ids)


def test_no_two_keys_of_a_run_are_alike() -> None:
    """Nor are the halves of keys."""
    purposes = (Purpose.ROUND, Purpose.ROUND_CUT, Purpose.ROUND_STEP)
    found = [
        key(seed, purpose, *ids)
        for seed, purpose in itertools.product((0, 1, 2**40), purposes)
        for ids in itertools.product(range(-1, 5), repeat=IDS[purpose])
    ]
    halves = np.concatenate(found)
    assert halves.dtype == np.uint64 and len(np.unique(halves)) == len(halves) > 5000


def test_golden_keys() -> None:
    assert key(1, Purpose.ROUND, -1, 5).tolist() == [11998448728605182210, 14033908560421701872]
    assert key(2**40, Purpose.ROUND_CUT, 1, 2, 3, 0).tolist() == [
        17717692357665441785,
        8478129561127650835,
    ]
    with pytest.raises(ValueError, match="non-negative"):
        key(1, Purpose.ROUND, -2, 0)


def test_streams_are_not_correlated() -> None:
    """Neighbours in seed, round and client differ as much as any two."""
    draws = 4000
    base = stream(1, Purpose.BATCH, 0, 0).standard_normal(draws)
    for other in (
        stream(2, Purpose.BATCH, 0, 0),
        stream(1, Purpose.BATCH, 0, 1),
        stream(1, Purpose.BATCH, 1, 0),
        stream(1, Purpose.ROUND, 0, 0),
    ):
        assert abs(np.corrcoef(base, other.standard_normal(draws))[0, 1]) < 5 / np.sqrt(draws)


def test_ids_are_ordered() -> None:
    assert torch_seed(1, Purpose.BATCH, 2, 3) != torch_seed(1, Purpose.BATCH, 3, 2)


def test_the_round_before_the_first_is_the_least() -> None:
    stream(1, Purpose.SAMPLE, -1).random()
    with pytest.raises(ValueError, match="non-negative"):
        stream(1, Purpose.SAMPLE, -2)


def test_every_purpose_is_tested() -> None:
    assert IDS.keys() == set(Purpose)


def test_purposes_are_never_renumbered() -> None:
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "MODEL": 1,
        "VALIDATION": 2,
        "PARTITION": 3,
        "SAMPLE": 4,
        "BATCH": 5,
        "SALIENCY": 6,
        "ORDER": 7,
        "DATA": 9,
        "AUGMENT": 10,
        "DROPOUT": 11,
        "DEVICE": 12,
        "CHANNEL": 13,
        "FATE": 14,
        "ROTATION": 15,
        "COLOUR": 16,
        "NOISE": 17,
        "SHARE": 18,
        "MISLABEL": 19,
        "POSITIONS": 20,
        "SKETCH": 21,
        "MASK": 22,
        "NEIGHBOUR": 23,
        "BLUR": 24,
        "KEEP": 25,
        "WIDTH": 26,
        "CHANNELS": 27,
        "SALIENT": 28,
        "RESERVE": 29,
        "BIRTH": 30,
        "AGENT": 31,
        "SURVIVOR": 34,
        "LINK": 37,
        "CHOICE": 38,
        "EPOCHS": 40,
        "HEAD": 41,
        "OUTAGE": 42,
        "ROUND": 43,
        "ROUND_CUT": 44,
        "ROUND_STEP": 45,
        "ADAPTER": 46,
        "PART": 47,
    }


@pytest.mark.parametrize(
    ("seed", "purpose", "ids", "wanted"),
    [
        (1, Purpose.MODEL, (), [518, 331, 362, 611]),
        (1, Purpose.PARTITION, (), [446, 14, 820, 136]),
        (0, Purpose.DATA, (), [258, 567, 223, 985]),
        (1, Purpose.SAMPLE, (0,), [59, 442, 215, 167]),
        (2**40, Purpose.SAMPLE, (19,), [475, 388, 20, 541]),
        (1, Purpose.BATCH, (0, 0), [260, 217, 554, 398]),
        (1, Purpose.BATCH, (0, 1), [784, 528, 934, 608]),
        (1, Purpose.SALIENCY, (3,), [735, 959, 233, 141]),
        (1, Purpose.DROPOUT, (-1, 5), [895, 842, 791, 844]),
    ],
)
def test_golden_numbers(seed: int, purpose: Purpose, ids: tuple, wanted: list[int]) -> None:
    """Otherwise every result of the past would change, and nobody would know."""
    assert stream(seed, purpose, *ids).integers(1000, size=4).tolist() == wanted


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**32 - 1, 2**32, 2**40])
@pytest.mark.parametrize("ids", [(), (-1,), (0, 0), (7, 2**32 - 2), (7, 2**32 - 1)])
def test_a_stream_is_numpys_for_its_key(seed: int, ids: tuple[int, ...]) -> None:
    """Whether or not all numbers of the key fit into words."""
    key = (seed, int(Purpose.BATCH), len(ids), *(number + 1 for number in ids))
    wanted = np.random.default_rng(key).bit_generator.state
    assert stream(seed, Purpose.BATCH, *ids).bit_generator.state == wanted


def test_golden_seeds_for_torch() -> None:
    assert torch_seed(1, Purpose.MODEL) == 3060982538960348687
    assert 0 <= torch_seed(0, Purpose.BATCH, -1, 0) < 2**63
