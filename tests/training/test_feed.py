"""What steps learn from: batches, crops and keys, from streams of the client and the round."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.streams import Purpose, stream
from fedmpi.training.feed import PADDING, Pick
from tests import plain
from tests.small import small


def batches(engine: Engine, t: int, client: int) -> list[list[int]]:
    """Positions in each of the client's steps."""
    return [positions.tolist() for positions in plain.positions(engine, t, client)]


def flat(some: list[list[int]]) -> list[int]:
    """The positions in all batches, in their order."""
    return [position for batch in some for position in batch]


def test_a_pass_covers_the_shard_exactly_once() -> None:
    engine = Engine(small("epochs=3", "batch=16"))
    for client, shard in enumerate(engine.population.shards):
        found, each = batches(engine, 0, client), -(-len(shard) // 16)
        assert len(found) == 3 * each == engine.population.steps(0, client)
        passes = [found[at : at + each] for at in range(0, len(found), each)]
        for some in passes:
            assert sorted(flat(some)) == shard.tolist()
            assert [len(batch) for batch in some[:-1]] == [16] * (each - 1)
            assert len(some[-1]) == (len(shard) - 1) % 16 + 1, "the last may be smaller"
        if len(shard) > 4:
            assert passes[0] != passes[1] != passes[2], "each pass has its own order"


def test_a_batch_larger_than_the_shard_is_the_shard() -> None:
    engine = Engine(small("epochs=2", "batch=1000"))
    for client, shard in enumerate(engine.population.shards):
        assert [sorted(batch) for batch in batches(engine, 0, client)] == [shard.tolist()] * 2


def test_local_steps_cycle_through_the_shard() -> None:
    engine = Engine(small("local_steps=5", "batch=16", "partition.name=iid", "clients=13"))
    for client, shard in enumerate(engine.population.shards):
        assert 16 < len(shard) < 32
        found = batches(engine, 3, client)
        rest = len(shard) - 16
        assert [len(batch) for batch in found] == [16, rest, 16, rest, 16]
        for first, second in (found[:2], found[2:4]):
            assert sorted(first + second) == shard.tolist()
        assert set(found[4]) <= set(shard.tolist())


def test_fewer_steps_are_the_beginning_of_more() -> None:
    one, many = (Engine(small(f"local_steps={steps}")) for steps in (2, 9))
    for client in range(5):
        assert batches(one, 1, client) == batches(many, 1, client)[:2]


def test_the_order_is_the_clients_and_the_rounds_own() -> None:
    engine = Engine(small("partition.name=iid"))
    shard = engine.population.shards[2]
    first = stream(1, Purpose.BATCH, 4, 2).permutation(len(shard))
    assert flat(batches(engine, 4, 2))[: len(shard)] == shard[first].tolist()
    places = {
        tuple(np.searchsorted(engine.population.shards[client], batches(engine, t, client)[0]))
        for t in range(3)
        for client in range(3)
    }
    assert len(places) == 9
    torch.manual_seed(7)
    again = Engine(small("partition.name=iid"))
    np.random.default_rng(7).permutation(3)
    assert batches(again, 4, 2) == batches(engine, 4, 2)
    # Two that are read in turns do not disturb each other.
    one, other = plain.positions(engine, 4, 2), plain.positions(engine, 4, 2)
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_orders_that_were_drawn_before_are_the_same() -> None:
    engine = Engine(small("epochs=2"))
    feed = engine.trainer.feed
    plainly = [batches(engine, 3, client) for client in range(5)]
    feed.draw(3, range(5))
    assert [batches(engine, 3, client) for client in range(5)] == plainly
    assert feed.drawn == {}, "each is used once"
    assert batches(engine, 3, 2) == plainly[2]
    feed.draw(4, range(5))
    assert batches(engine, 3, 1) == plainly[1], "of another round they are not"


def test_batches_are_the_picks_with_their_samples() -> None:
    """However many steps are gathered at once, and of however many passes."""
    for steps, passes in (("epochs=3", None), ("local_steps=7", None), ("local_steps=7", 3)):
        engine = Engine(small(steps, "batch=9", "model.dropout=0.5", "augment=['crop','flip']"))
        feed = engine.trainer.feed
        for slab in (1, 2, 3, 1000):
            feed.slab = slab
            for client in range(5):
                found = list(feed.batches(1, client, passes))
                wanted = list(feed.picks(1, client, passes))
                assert len(found) == len(wanted) == engine.population.steps(0, client, passes)
                for batch, pick in zip(found, wanted, strict=True):
                    x, y = feed.take(pick.positions, pick.shifts)
                    assert torch.equal(batch.x, x)
                    assert torch.equal(batch.y, y)
                    assert batch.key == pick.key


IMAGES = ("data.shape=[3, 8, 6]", "model.name=mlp", "partition.name=iid")


def picks(engine: Engine, t: int = 0, client: int = 0) -> list[Pick]:
    return list(engine.trainer.feed.picks(t, client))


def by_hand(engine: Engine, position: int, shift: list[int]) -> Tensor:
    """A sample padded, cropped and mirrored, in plain indexing."""
    x = engine.trainer.feed.x
    height, width = x.shape[2:]
    black = x.amin((0, 2, 3))
    wide = black.view(-1, 1, 1).expand(-1, height + 2 * PADDING, width + 2 * PADDING).clone()
    wide[:, PADDING : PADDING + height, PADDING : PADDING + width] = x[position]
    down, right, flips = shift
    found = wide[:, down : down + height, right : right + width]
    return found.flip(2) if flips else found


@pytest.mark.parametrize("augment", [["crop"], ["flip"], ["crop", "flip"]], ids="-".join)
def test_images_are_cropped_and_flipped(augment: list[str]) -> None:
    engine = Engine(small(*IMAGES, f"augment={augment}"))
    feed, seen = engine.trainer.feed, set()
    for pick in picks(engine):
        x, y = feed.take(pick.positions, pick.shifts)
        assert torch.equal(y, feed.y[pick.positions])
        assert x.shape == (len(pick.positions), 3, 8, 6)
        for row, shift in enumerate(pick.shifts.tolist()):
            assert torch.equal(x[row], by_hand(engine, int(pick.positions[row]), shift))
            seen.add(tuple(shift))
    flips = {flip for *_, flip in seen}
    places = {tuple(place) for *place, _ in seen}
    assert flips == ({0, 1} if "flip" in augment else {0})
    if "crop" in augment:
        assert len(places) > 20
        assert {down for down, _ in places} | {right for _, right in places} == set(range(9))
    else:
        assert places == {(PADDING, PADDING)}


def test_samples_of_several_rows_are_taken_at_once() -> None:
    engine = Engine(small(*IMAGES, "augment=['crop','flip']", "batch=4"))
    some = [picks(engine, client=client)[0] for client in range(3)]
    positions, shifts = (torch.stack([pick[part] for pick in some]) for part in range(2))
    together, labels = engine.trainer.feed.take(positions, shifts)
    for row, pick in enumerate(some):
        x, y = engine.trainer.feed.take(*pick[:2])
        assert torch.equal(together[row], x)
        assert torch.equal(labels[row], y)


def test_without_augmentation_samples_are_as_they_are() -> None:
    engine = Engine(small(*IMAGES))
    for pick in picks(engine):
        assert pick.shifts is None
        x, _ = engine.trainer.feed.take(*pick[:2])
        assert torch.equal(x, engine.trainer.feed.x[pick.positions])


def test_augmentation_changes_neither_order_nor_keys() -> None:
    plain, other = (
        picks(Engine(small(*IMAGES, "model.dropout=0.5", *words)))
        for words in ((), ("augment=['crop']",))
    )
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one.positions, two.positions)
        assert one.key == two.key


def test_draws_are_the_clients_and_the_rounds_own() -> None:
    engine = Engine(small(*IMAGES, "augment=['crop', 'flip']", "model.dropout=0.5"))
    again = Engine(small(*IMAGES, "augment=['crop', 'flip']", "model.dropout=0.5"))
    drawn = {}
    for t in range(3):
        for client in range(3):
            found, same = picks(engine, t, client), picks(again, t, client)
            assert all(torch.equal(a.shifts, b.shifts) for a, b in zip(found, same, strict=True))
            assert [pick.key for pick in found] == [pick.key for pick in same]
            drawn[t, client] = (found[0].key, tuple(found[0].shifts.reshape(-1).tolist()))
            assert len({pick.key for pick in found}) == len(found), "each step its own"
    assert len(set(drawn.values())) == 9
    assert len({key for key, _ in drawn.values()}) == 9


def test_keys_are_drawn_for_those_who_need_them() -> None:
    assert {pick.key for pick in picks(Engine(small()))} == {0}
    feed = Engine(small("model.dropout=0.5")).trainer.feed
    keys, random = feed.keys(2, 1), stream(1, Purpose.DROPOUT, 2, 1)
    assert [next(keys) for _ in range(5)] == [int(random.integers(1 << 63)) for _ in range(5)]


def test_only_images_are_augmented() -> None:
    with pytest.raises(ConfigError, match=r"augment = \['flip'\]: wanted images, found .*\(20,\)"):
        Engine(small("augment=['flip']", "data.shape=[20]"))
