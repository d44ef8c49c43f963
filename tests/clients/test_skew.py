"""Skew: whose samples are changed, how, by how much, and what stays as it was."""

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi import config
from fedmpi.clients.population import Population
from fedmpi.clients.skew import Traits
from fedmpi.config import ConfigError, Settings
from fedmpi.data import Dataset
from fedmpi.engine import Engine
from fedmpi.training.feed import PADDING
from tests import plain
from tests.plain import play
from tests.small import alike, run, small

IMAGES = ("data.shape=[3,6,6]", "partition.name=iid", "data.samples=500", "data.test_samples=200")
ALL = (
    *("skew.rotations=[0,90,180,270]", "skew.colour=0.5", "skew.noise=2.0"),
    *("skew.labels=0.1", "skew.labels_to=0.6"),
)
FEW = ("clients=40", "partition.name=dirichlet", "partition.alpha=0.1", "partition.minimum=1")
"""More clients than the test set can serve: some test shards are empty."""


class World:
    """All that there is before a run, and what skew makes of it."""

    def __init__(self, *words: str) -> None:
        self.settings = small(*words)
        self.data = load(self.settings)
        self.population = Population(self.settings, self.data)
        self.traits = Traits(self.settings, self.data)
        self.x, self.y = self.traits.train(self.data, self.population)
        self.seen = self.traits.test(self.data, self.population)

    def pairs(self, part: str = "train") -> list[tuple[np.ndarray, np.ndarray]]:
        """Each client's samples, clean and skewed."""
        if part == "train":
            return [(self.data.train_x[shard], self.x[shard]) for shard in self.population.shards]
        shards = self.population.test_shards
        assert self.seen is not None
        pieces = np.split(self.seen, np.cumsum([len(shard) for shard in shards])[:-1])
        return [
            (self.data.test_x[shard], piece) for shard, piece in zip(shards, pieces, strict=True)
        ]


def load(settings: Settings) -> Dataset:
    data: Dataset = config.module("data", settings.data.name).load(settings.data, settings.seed)
    return data


def turned(x: np.ndarray, angle: int) -> np.ndarray:
    """Images rotated counter-clockwise, in plain indexing."""
    size = x.shape[-1]
    found = x.copy()
    for _ in range(angle // 90):
        last = found.copy()
        for row in range(size):
            for column in range(size):
                found[..., row, column] = last[..., column, size - 1 - row]
    return found


def test_without_skew_nothing_is_copied() -> None:
    world = World(*IMAGES)
    assert world.x is world.data.train_x
    assert world.y is world.data.train_y
    assert world.seen is None
    engine = Engine(small(*IMAGES))
    assert engine.evaluation.seen is None
    labels = World(*IMAGES, "skew.labels=0.5")
    assert labels.x is labels.data.train_x and labels.seen is None, "only what changes is"
    noise = World(*IMAGES, "skew.noise=0.5")
    assert noise.y is noise.data.train_y


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_are_rotated(part: str) -> None:
    world = World(*IMAGES, "clients=10", "skew.rotations=[0,90,180,270]")
    for (clean, found), angle in zip(world.pairs(part), world.traits.angles, strict=True):
        np.testing.assert_array_equal(found, turned(clean, int(angle)))


def test_a_quarter_turn_is_counter_clockwise() -> None:
    """What is at the right comes to the top."""
    world = World(*IMAGES, "clients=1", "skew.rotations=[90]")
    np.testing.assert_array_equal(
        world.x[world.population.shards[0]][..., 0, :],
        world.data.train_x[world.population.shards[0]][..., :, -1],
    )


def test_angles_are_spread_evenly_and_at_random() -> None:
    for angles, wanted in (
        ([0, 90, 180, 270], [3, 3, 2, 2]),
        ([90, 270], [5, 5]),
        ([0, 0, 0, 180], [8, 2]),
    ):
        words = (*IMAGES, "clients=10", f"skew.rotations={angles}")
        drawn = [Traits(small(*words, f"seed={seed}"), World(*IMAGES).data) for seed in range(30)]
        for traits in drawn:
            assert [(traits.angles == angle).sum() for angle in sorted(set(angles))] == wanted
        assert len({traits.angles.tobytes() for traits in drawn}) > 20


@pytest.mark.parametrize("part", ["train", "test"])
def test_channels_are_rescaled(part: str) -> None:
    """The factor and the addition are found again, one of each for a client's channel."""
    world = World(*IMAGES, "clients=10", "skew.colour=0.5")
    contrasts, brightnesses = [], []
    for client, (clean, found) in enumerate(world.pairs(part)):
        for channel in range(3):
            fit = np.polyfit(clean[:, channel].ravel(), found[:, channel].ravel(), 1, full=True)
            (contrast, brightness), residual = fit[0], fit[1]
            assert residual.sum() < 1e-8
            assert contrast == pytest.approx(world.traits.contrasts[client, channel], abs=1e-5)
            assert brightness == pytest.approx(world.traits.brightnesses[client, channel], abs=1e-5)
            contrasts.append(contrast)
            brightnesses.append(brightness)
    for values, middle in ((contrasts, 1), (brightnesses, 0)):
        assert len(set(np.round(values, 6))) == 30, "clients and channels differ"
        assert np.abs(np.array(values) - middle).max() < 0.5
        # Thirty uniform numbers of variance 1/12; their mean is that far off once in a million.
        assert abs(np.mean(values) - middle) < 5 / np.sqrt(12 * 30)
        assert np.ptp(values) > 0.7


@pytest.mark.parametrize("part", ["train", "test"])
def test_noise_grows_with_the_client(part: str) -> None:
    world = World(*IMAGES, "clients=8", "skew.noise=3.0")
    for client, (clean, found) in enumerate(world.pairs(part), 1):
        noise = (found - clean).astype(np.float64)
        # Of n Gaussian numbers the variance is known to sqrt(2 / n), the mean to 1 / sqrt(n).
        variance, count = 3.0 * client / 8, noise.size
        assert noise.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / count))
        assert abs(noise.mean()) < 5 * np.sqrt(variance / count)
        fourth = (noise**4).mean() / variance**2
        assert fourth == pytest.approx(3, abs=5 * np.sqrt(96 / count)), "Gaussian, not uniform"
        assert found.dtype == np.float32


def test_noise_is_a_samples_own_and_always_the_same() -> None:
    world, again = (World(*IMAGES, "skew.noise=1.0", *words) for words in ((), ("batch=3", "lr=9")))
    np.testing.assert_array_equal(world.x, again.x)
    noise = [(found - clean)[:20].ravel() for clean, found in world.pairs()]
    noise += [(found - clean)[:20].ravel() for clean, found in world.pairs("test")]
    correlations = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(correlations).max() < 5 / np.sqrt(noise[0].size)
    rows = (world.x - world.data.train_x)[world.population.shards[0]].reshape(-1, 108)
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 6.5 / np.sqrt(108)
    other = World(*IMAGES, "skew.noise=1.0", "seed=2")
    assert not np.allclose(other.x - other.data.train_x, world.x - world.data.train_x)


def test_an_image_is_rotated_then_coloured_then_noisy() -> None:
    words = (*IMAGES, "skew.colour=0.5", "skew.rotations=[90,180]")
    everything, noise = World(*words, "skew.noise=1.0"), World(*IMAGES, "skew.noise=1.0")
    traits = everything.traits
    for part in ("train", "test"):
        pairs = zip(everything.pairs(part), noise.pairs(part), strict=True)
        for client, ((clean, found), (_, noisy)) in enumerate(pairs):
            contrast, brightness = traits.contrasts[client], traits.brightnesses[client]
            wanted = turned(clean, int(traits.angles[client])) * contrast[:, None, None]
            wanted = wanted + brightness[:, None, None] + (noisy - clean)
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_client_is_the_same_among_others() -> None:
    few, many = (World(*IMAGES, *ALL, f"clients={count}").traits for count in (4, 9))
    np.testing.assert_array_equal(many.contrasts[:4], few.contrasts)
    np.testing.assert_array_equal(many.brightnesses[:4], few.brightnesses)
    np.testing.assert_array_equal(many.shares[:4], few.shares)


@pytest.mark.parametrize(("share", "clients"), [(0.3, 7), (1.0, 7), (0.02, 9), (0.0, 3)])
def test_the_share_of_wrong_labels_is_exact(share: float, clients: int) -> None:
    world = World(*IMAGES, f"skew.labels={share}", f"clients={clients}")
    for client, shard in enumerate(world.population.shards):
        wrong = int((world.y[shard] != world.data.train_y[shard]).sum())
        assert wrong == round(share * len(shard)) == world.traits.replaced(client, len(shard))
    assert world.y.dtype == np.int64


def test_wrong_labels_are_any_other_class_alike() -> None:
    world = World("data.samples=9000", "data.shape=[2]", "data.classes=4", "skew.labels=0.5")
    ours = np.concatenate(world.population.shards)
    true, found = world.data.train_y[ours], world.y[ours]
    table = np.zeros((4, 4))
    np.add.at(table, (true, found), 1)
    for label in range(4):
        others = np.delete(table[label], label)
        count = others.sum()
        assert np.abs(others - count / 3).max() < 5 * np.sqrt(count * 2 / 9)
        # Which samples are wrong depends neither on their labels nor on their places.
        assert abs(count - len(ours) / 8) < 5 * np.sqrt(len(ours) / 16)
    for shard in world.population.shards:
        wrong = world.y[shard] != world.data.train_y[shard]
        half = wrong[: len(shard) // 2].sum()
        assert abs(half - len(shard) / 4) < 5 * np.sqrt(len(shard) / 16)


def test_clients_may_differ_in_their_wrong_labels() -> None:
    words = ("partition.name=iid", "clients=40", "data.samples=4000", "data.shape=[2]")
    world = World(*words, "skew.labels=0.2", "skew.labels_to=0.8")
    true, y = world.data.train_y, world.y
    found = np.array([(y[shard] != true[shard]).mean() for shard in world.population.shards])
    np.testing.assert_allclose(found, world.traits.shares, atol=0.5 / 90)
    assert 0.2 <= world.traits.shares.min() < 0.3 and 0.7 < world.traits.shares.max() <= 0.8
    assert len(set(world.traits.shares)) == 40
    # Uniform between them: variance 0.6^2 / 12.
    assert abs(found.mean() - 0.5) < 5 * 0.6 / np.sqrt(12 * 40)
    even = World(*words, "skew.labels_to=0.4", "skew.labels=0.4")
    assert set(even.traits.shares) == {0.4}


def test_what_is_no_clients_stays() -> None:
    """Held-out samples, the whole test set, all test labels, and what heterogeneity is of."""
    engine, world = Engine(small(*IMAGES, *ALL)), World(*IMAGES)
    data, out = world.data, world.population.held_out
    assert len(out) == 50
    np.testing.assert_array_equal(engine.evaluation.test_x, data.test_x)
    np.testing.assert_array_equal(engine.evaluation.test_y, data.test_y)
    np.testing.assert_array_equal(engine.evaluation.held_x, data.train_x[out])
    np.testing.assert_array_equal(engine.evaluation.held_y, data.train_y[out])
    np.testing.assert_array_equal(engine.population.counts, world.population.counts)
    assert engine.population.fingerprint == world.population.fingerprint
    feed, skewed = engine.trainer.feed, World(*IMAGES, *ALL)
    np.testing.assert_array_equal(feed.x, skewed.x)
    np.testing.assert_array_equal(feed.y, skewed.y)
    assert (feed.y.numpy() != data.train_y).mean() > 0.1
    # The data set itself is whole: others may have it.
    np.testing.assert_array_equal(skewed.data.train_x, data.train_x)
    np.testing.assert_array_equal(skewed.data.train_y, data.train_y)


@pytest.mark.parametrize("words", [(), FEW], ids=["", "empty shards"])
def test_accuracies_are_on_clean_samples_and_on_what_clients_see(words: tuple[str, ...]) -> None:
    """By plain torch; the accuracies on clean shards are others."""
    lessons = ("rounds=3", "lr=0.2", "data.separation=6.0", "skew.noise=0.2", "skew.colour=0.5")
    settings = (*IMAGES, *words, *lessons, "skew.rotations=[90,180]", "skew.labels=0.2")
    engine, world = Engine(small(*settings)), World(*settings)
    shards = [
        (torch.from_numpy(found), torch.from_numpy(world.data.test_y[shard]))
        for (_, found), shard in zip(world.pairs("test"), world.population.test_shards, strict=True)
    ]
    positions = world.population.test_shards
    w, differs = engine.server.w.clone(), False
    for t, outcome in enumerate(play(engine)):
        assert outcome is not None
        (row,), clients = outcome.tables["rounds"], outcome.tables["clients"]
        for client in clients["client"].tolist():
            trained = plain.network(engine, plain.train(engine, t, client, w)[0])
            wanted = plain.accuracy(trained, *shards[client])
            assert clients["personal"][client] == pytest.approx(wanted, abs=1e-6, nan_ok=True)
        w = engine.server.w.clone()
        module = plain.network(engine, w)
        theirs = np.array([plain.accuracy(module, *shard) for shard in shards])
        np.testing.assert_allclose(clients["accuracy"], theirs, atol=1e-6)
        test = torch.from_numpy(world.data.test_x), torch.from_numpy(world.data.test_y)
        assert row["accuracy"] == pytest.approx(plain.accuracy(module, *test), abs=1e-6)
        assert row["shard_mean"] == pytest.approx(np.nanmean(theirs), abs=1e-6)
        clean = [plain.accuracy(module, *(of[s] for of in test)) for s in positions]
        differs = differs or np.nanmax(np.abs(theirs - clean)) > 0.05
    assert differs
    assert np.isnan(theirs).any() == bool(words)


def test_edges_of_cropped_images_are_as_black_as_the_clean_ones() -> None:
    engine = Engine(small(*IMAGES, "skew.noise=100.0", "augment=['crop']"))
    black = World(*IMAGES).data.train_x.min(axis=(0, 2, 3))
    feed = engine.trainer.feed
    np.testing.assert_array_equal(feed.black, black)
    far = torch.tensor([[2 * PADDING, 0, 0]])
    x, _ = feed.take(torch.tensor([0]), far)
    np.testing.assert_array_equal(x[0, :, -1, 0], black)


REFUSED = {
    "a vector rotated": (
        "data.shape=[20] skew.rotations=[90]",
        r"skew.rotations = \[90\]: wanted images, found samples of shape \(20,\)",
    ),
    "a sequence coloured": (
        "data.shape=[2,20] skew.colour=0.1",
        r"skew.colour = 0.1: wanted images, found samples of shape \(2, 20\)",
    ),
    "a wide image": (
        "data.shape=[1,4,6] skew.rotations=[0,270]",
        r"skew.rotations = \[0, 270\]: wanted square images, found .*\(1, 4, 6\); .* 0 and 180",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_samples_is_refused(case: str) -> None:
    words, said = REFUSED[case]
    with pytest.raises(ConfigError, match=said):
        Engine(small(*words.split(" ")))


def test_what_fits_the_samples_is_not() -> None:
    for words in (
        ("data.shape=[1,4,6]", "skew.rotations=[0,180]"),
        ("data.shape=[1,4,6]", "skew.colour=0.1"),
        ("data.shape=[20]", "skew.noise=1.0", "skew.labels=0.5"),
    ):
        Engine(small(*words))


@pytest.mark.parametrize("name", ["rotations=[90]", "colour=0.1", "noise=0.1"])
def test_symbols_are_neither_rotated_coloured_nor_noisy(name: str) -> None:
    settings = small(*IMAGES, f"skew.{name}")
    data = load(settings)
    symbols = Dataset(
        *(data.train_x.astype(np.int64), data.train_y, data.test_x, data.test_y, data.classes)
    )
    with pytest.raises(ConfigError, match=r"skew\.\w+ = .*: wanted samples of real .* found int64"):
        Traits(settings, symbols)
    Traits(small(*IMAGES, "skew.labels=0.5"), symbols)


SHIFT = (*("data.shape=[1,6,6]", "rounds=4", "evaluate.every=1", "clients=3"), "partition.name=iid")


def test_a_skew_that_begins_late_is_none_before_and_whole_afterwards() -> None:
    """Clean rounds are those of a run without skew; later ones have that skew's samples."""
    late = Engine(small(*SHIFT, "skew.rotations=[90]", "skew.labels=0.5", "skew.since=2"))
    clean = Engine(small(*SHIFT))
    skewed = Engine(small(*SHIFT, "skew.rotations=[90]", "skew.labels=0.5"))
    rounds = zip(play(late), play(clean), strict=True)
    for t, (found, wanted) in enumerate(rounds):
        like = skewed if t >= 2 else clean
        feed, other = late.trainer.feed, like.trainer.feed
        assert torch.equal(feed.x, other.x) and torch.equal(feed.y, other.y)
        for client in range(3):
            mine, theirs = late.evaluation.shard(client), like.evaluation.shard(client)
            assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
        assert torch.equal(late.server.w, clean.server.w) == (t < 2)
        if t < 2:
            for name in ("accuracy", "validation", "shard_mean", "personal_mean", "loss"):
                assert found.tables["rounds"][name] == wanted.tables["rounds"][name]
    assert not torch.equal(clean.trainer.feed.x, skewed.trainer.feed.x)
    last = late.server.w
    theirs = [late.evaluation.shard(client) for client in range(3)]
    hits = [late.evaluation._right(x, y, last, None).mean() for x, y in theirs]
    assert found.tables["rounds"]["shard_mean"][0] == pytest.approx(np.mean(hits))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("method", ["fedavg", "ssfl", "splitfed", "local"])
def test_a_late_skew_is_the_same_on_all_ranks(method: str) -> None:
    words = (f"method.name={method}", "skew.colour=0.5", "skew.since=1", "rounds=3")
    settings = small(*SHIFT[:1], *words, "evaluate.final=evaluate")
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alike(found, run(settings), but=("ranks", "clients"))


def test_a_late_skew_begins_with_an_agreement_of_its_round() -> None:
    """So that a mask which is found again is found on what came."""
    words = ("method.name=ssfl", "method.rediscover=[2]", "skew.rotations=[90]")
    late, other = (Engine(small(*SHIFT, *words, f"skew.since={t}")) for t in (2, 3))
    for first, second in zip(play(late), play(other), strict=True):
        t = int(first.tables["rounds"]["round"][0])
        assert torch.equal(late.server.mask, other.server.mask) == (t < 2), t
        assert second is not None


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("skew.since=1",), "skew.since = 1: wanted a skew, found none"),
        (("skew.since=1", "skew.rotations=[0]"), "skew.since = 1: wanted a skew, found none"),
        (("skew.since=4", "skew.colour=0.5"), "skew.since = 4: wanted less than rounds = 4"),
    ],
)
def test_a_skew_that_never_comes_is_refused(words: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        small(*SHIFT, *words)
