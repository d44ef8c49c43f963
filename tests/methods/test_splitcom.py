"""SplitCom against its rule written out for single samples, on all that crossed cuts in a run."""

from collections.abc import Iterator

import numpy as np
import pytest

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Kind
from fedmpi.split.cuts import Crossing
from tests.plain import play
from tests.small import refusal, run, small
from tests.split.test_links import Heard

NAME = "method.name=splitcom"
WIDTHS = 12, 8
"""Values of a sample at the two cuts."""


def samples(heard: Heard, crossing: Crossing) -> list[int]:
    """Those of a batch, as the client trained on them."""
    steps = list(heard.engine.trainer.feed.picks(crossing.t, crossing.client))
    return steps[crossing.step].positions.tolist()


def batches(heard: Heard) -> Iterator[tuple[Crossing, np.ndarray, np.ndarray, list[int] | None]]:
    """What crossed: values there and here [B, D], and the rows that were sent; None for all."""
    for crossing, x in heard.there.items():
        _, *places = heard.blocks[crossing]
        rows = sparse.indices(places[0]).tolist() if places else None
        yield crossing, x.numpy(), heard.here[crossing].numpy(), rows


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("method.threshold=0.9", "method.version=v2"),
        ("method.threshold=0.5", "method.gradient_threshold=0.7"),
        ("method.threshold=0.9", "method.gradient_threshold=-0.5", "method.tail=head"),
        ("method.threshold=1.0", "method.gradient_threshold=1.0"),
        ("method.threshold=1.0", "model.train=head"),
    ],
    ids=str,
)
def test_a_sample_is_sent_if_it_is_unlike_what_was_sent_last(more: tuple[str, ...]) -> None:
    heard = Heard(NAME, "rounds=3", "participation=0.6", "batch=7", *more).play()
    method, known = heard.engine.method, dict[tuple[int, Kind, int], np.ndarray]()
    counts = {kind: [0, 0] for kind in (Kind.ACTIVATION, Kind.GRADIENT)}
    for crossing, x, here, rows in batches(heard):
        is_gradient = crossing.kind == Kind.GRADIENT
        least = method.gradient_threshold if is_gradient else method.threshold
        if least is None:
            np.testing.assert_array_equal(here, x)
            assert rows is None
            continue
        scale, fresh = np.float32(len(x) if is_gradient else 1), []
        for row, sample in enumerate(samples(heard, crossing)):
            own, key = x[row] * scale, (crossing.cut, crossing.kind, sample)
            old = known.get(key, np.zeros_like(own))
            a, b = own.astype(float), old.astype(float)
            length = np.linalg.norm(a) * np.linalg.norm(b)
            is_like = least < 1 and length > 0 and a @ b / length >= least
            if is_like or (a == b).all():
                np.testing.assert_array_equal(here[row], old / scale)
            else:
                fresh.append(row)
                np.testing.assert_array_equal(here[row], x[row])
                known[key] = own
        assert (list(range(len(x))) if rows is None else rows) == fresh
        counts[crossing.kind][0] += len(fresh)
        counts[crossing.kind][1] += len(x) - len(fresh)
    sent, spared = counts[Kind.ACTIVATION]
    assert sent > 20
    assert spared > 20 or (method.threshold == 1 and "model.train=head" not in more)
    if method.gradient_threshold is not None:
        sent, spared = counts[Kind.GRADIENT]
        assert sent > 20
        assert spared > 20 or method.gradient_threshold == 1


def test_both_sides_have_the_same_of_every_sample() -> None:
    words = ("method.threshold=0.9", "method.gradient_threshold=0.8", "method.tail=head")
    engine = Engine(small(NAME, *words, "rounds=3", "participation=0.6"))
    list(play(engine))
    ours, theirs = engine.server.stores, engine.trainer.stores
    assert set(ours) == set(theirs) and len(ours) == 4
    for name in ours:
        assert dict.fromkeys(ours[name]) == dict.fromkeys(theirs[name])
        for sample in ours[name]:
            np.testing.assert_array_equal(ours[name][sample], theirs[name][sample])


def test_behind_a_frozen_front_every_sample_crosses_once() -> None:
    """The model is SplitFed's, bit for bit, and bytes of activations are those of one epoch."""
    more = ("model.train=head", "rounds=4", "epochs=2")
    found, wanted = run(small(NAME, *more)), run(small("method.name=splitfed", *more))
    assert found.sha256 == wanted.sha256
    rows, sizes = found.tables["clients"], found.engine.population.sizes
    for client, size in enumerate(sizes.tolist()):
        sent = rows["up_activation"][rows["client"] == client]
        assert 0.9 * 4 * WIDTHS[0] * size <= sent[0] <= 4 * WIDTHS[0] * size
        assert not sent[1:].any()
        later = rows[(rows["client"] == client) & (rows["round"] == 2)]
        assert not later["down_gradient"].any()
        # No place is sent, or a bit for each, whichever is shorter: nothing is fresh.
        assert not later["up_mask"].any()


def test_the_places_of_what_is_sent_cost_a_bit_a_sample_at_most() -> None:
    heard = Heard(NAME, "rounds=3", "batch=16", "method.threshold=0.9")
    outcomes = list(play(heard.engine))
    wanted: dict[tuple[int, int], list[int]] = {}
    for crossing, x, _, rows in batches(heard):
        if crossing.kind == Kind.ACTIVATION:
            one = wanted.setdefault((crossing.t, crossing.client), [0, 0])
            one[0] += 4 * x.shape[1] * (len(x) if rows is None else len(rows))
            one[1] += 0 if rows is None else min(-(-len(x) // 8), 4 * len(rows))
    for outcome in outcomes:
        for row in outcome.tables["clients"]:
            found = [row["up_activation"], row["up_mask"]]
            assert found == wanted[int(row["round"]), int(row["client"])]


@pytest.mark.parametrize(
    ("more", "values"),
    [
        ((), 12),
        (("method.gradient_threshold=0.9",), 24),
        (("method.tail=head",), 20),
        (("method.tail=head", "method.gradient_threshold=0.9"), 40),
        (("method.gradient_threshold=0.9", "model.train=head"), 12),
        (("method.cut=hidden2",), 8),
    ],
    ids=str,
)
def test_what_is_kept_of_samples_is_memory(more: tuple[str, ...], values: int) -> None:
    found = run(small(NAME, "rounds=1", "devices.tiers=[{name='a'}]", *more))
    sizes = found.engine.population.sizes
    for row in found.tables["clients"]:
        kept = 4 * values * sizes[row["client"]] / 2**20
        assert row["memory_samples"] == pytest.approx(kept)
        parts = sum(
            row[f"memory_{part}"] for part in ("weights", "gradients", "optimizer", "activations")
        )
        assert row["memory"] == pytest.approx(parts + kept)


def test_the_cut_that_fits_counts_what_is_kept_of_samples() -> None:
    """A sample has 2 values at the first cut and 200 at the second, and there are 540 a client."""
    model = ("model.hidden=[2,200]", "batch=4", "partition.name=iid", "data.samples=3000")

    def words(name: str, cut: str, memory: float) -> tuple[str, ...]:
        tiers = f"devices.tiers=[{{name='a',memory={memory}}}]"
        return (f"method.name={name}", f"method.cut={cut}", *model, tiers)

    for name, memory, wanted in (
        ("splitfed", 0.1, "hidden2"),
        ("splitcom", 0.1, "hidden1"),
        ("splitcom", 0.9, "hidden2"),
    ):
        assert Engine(small(*words(name, "fit", memory))).method.cut == wanted
    with pytest.raises(ConfigError, match=r"samples 0\.4"):
        Engine(small(*words("splitcom", "hidden2", 0.1)))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("method.threshold=1.1",), "method.threshold"),
        (("method.gradient_threshold=-2.0",), "method.gradient_threshold"),
        (("evaluate.link=link",), "evaluate.link"),
        (("method.tail=head", "method.version=v2"), "wanted version = 'v1'"),
    ],
)
def test_what_cannot_be_is_refused(more: tuple[str, ...], match: str) -> None:
    assert match in refusal(NAME, *more)
