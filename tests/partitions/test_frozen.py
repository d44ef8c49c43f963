"""A frozen partition is the one it was frozen from; whatever else a file may be is refused."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi import config
from fedmpi.clients.population import Population
from fedmpi.config import ConfigError
from fedmpi.errors import BadInput
from fedmpi.partitions import frozen
from tests.small import run, small

WORLD = MPI.COMM_WORLD
KINDS = [
    ("partition.name=iid",),
    ("partition.name=dirichlet", "partition.minimum=5", "validation=0"),
    ("partition.name=shards", "clients=9"),
    ("partition.name=quantity", "validation=0.333", "data.test_samples=3"),
]


def population(*words: str) -> tuple[Population, tuple[np.ndarray, np.ndarray]]:
    """The clients of the small run with these words, and the labels of both sets."""
    settings = small(*words)
    data = config.module("data", settings.data.name).load(settings.data, settings.seed)
    return Population(settings, data), (data.train_y, data.test_y)


def freeze(path: Path, *words: str) -> Population:
    drawn, labels = population(*words)
    frozen.freeze(path, drawn.held_out, drawn.shards, drawn.test_shards, *labels)
    return drawn


def thaw(path: Path, *words: str) -> Population:
    kept = (word for word in words if not word.startswith("partition."))
    return population(*kept, "partition.name=frozen", f"partition.file={path}")[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A frozen partition of the small run."""
    freeze(tmp_path / "a.npz")
    return tmp_path / "a.npz"


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("words", KINDS)
def test_what_comes_back_is_what_was_frozen(words: tuple[str, ...], tmp_path: Path) -> None:
    path = Path(WORLD.bcast(str(tmp_path))) / "new" / "a.npz"
    first = population(*words)[0]
    if WORLD.rank == 0:
        assert freeze(path, *words).fingerprint == first.fingerprint
        assert [one.name for one in path.parent.iterdir()] == ["a.npz"], "nothing unfinished"
    WORLD.Barrier()
    again = thaw(path, *words)
    assert set(WORLD.allgather(again.fingerprint)) == {first.fingerprint}
    assert thaw(path, *words, "seed=7").fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.held_out, first.held_out)
    for one, other in ((first.shards, again.shards), (first.test_shards, again.test_shards)):
        assert len(one) == len(other)
        assert all(map(np.array_equal, one, other))
        assert {shard.dtype for shard in other} == {np.dtype(np.int64)}
    np.testing.assert_array_equal(again.sizes, first.sizes)
    WORLD.Barrier()


def test_a_run_on_it_is_the_same_run(file: Path) -> None:
    words = ("partition.name=frozen", f"partition.file={file}")
    assert run(small(*words)).sha256 == run(small()).sha256


def test_the_same_partition_is_the_same_file(file: Path, tmp_path: Path) -> None:
    freeze(tmp_path / "b.npz")
    assert (tmp_path / "b.npz").read_bytes() == file.read_bytes()


OTHERS = {
    "clients": (("clients=6",), "a.npz: holds 5 clients, but clients = 6; wanted the same number"),
    "more data": (
        ("data.samples=301",),
        "a.npz: was made for 300 training and 60 test samples, but the data set has 301 training",
    ),
    "other test data": (("data.test_samples=61",), "but the data set has 300 training and 61 test"),
    "other labels": (("data.classes=9",), "a.npz: was made for other labels than the data set"),
    "validation": (
        ("validation=0.2",),
        "validation = 0.2: wanted 60 of 300 samples held out, found 30 in partition.name = "
        "'frozen'; possible is 0.1",
    ),
    "another hash": (
        (f"partition.sha256={'0' * 64}",),
        f"partition.sha256 = {'0' * 64}: ",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_settings_are_refused(case: str, file: Path) -> None:
    words, said = OTHERS[case]
    base = ("partition.name=frozen", f"partition.file={file}")
    with pytest.raises(ConfigError) as caught:
        population(*base, *words)
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1


def test_its_own_hash_is_accepted(file: Path) -> None:
    sha256 = population()[0].fingerprint
    words = ("partition.name=frozen", f"partition.file={file}", f"partition.sha256={sha256}")
    assert population(*words)[0].fingerprint == sha256
    with pytest.raises(ConfigError, match=r"partition\.sha256 = 'abc': wanted 64 hex"):
        small("partition.name=frozen", "partition.sha256=abc")


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"partition\.file: wanted a partition .* found none"):
        population("partition.name=frozen")
    with pytest.raises(BadInput, match=r"x\.npz: no such file.*wanted a partition \(\.npz\)"):
        thaw(tmp_path / "x.npz")
    with pytest.raises(BadInput, match="it is a folder; wanted a partition"):
        thaw(tmp_path)


def test_foreign_files(file: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "b.npz"
    for content, found in (
        (b"", "an empty file"),
        (b"my thesis", "a text of 9 bytes"),
        (bytes(7), "another file of 7 bytes"),
        (b"PK\x03\x04" + bytes(40), "a zip archive or .npz file that is damaged"),
        (file.read_bytes()[:500], "a zip archive or .npz file that is damaged"),
    ):
        foreign.write_bytes(content)
        with pytest.raises(BadInput) as caught:
            thaw(foreign)
        wanted = "wanted a partition (.npz) that fedmpi partition --freeze wrote, found " + found
        assert f"b.npz: {wanted}" in str(caught.value)
        assert "pickle" not in str(caught.value)
    np.savez(foreign, x=np.arange(3))
    with pytest.raises(ConfigError, match="wanted 'fedmpi partition 1', found 'another file' with"):
        thaw(foreign)
    np.savez(foreign, **arrays(file) | {"format": "fedmpi partition 2"})
    with pytest.raises(ConfigError, match="wanted 'fedmpi partition 1', found 'fedmpi partition 2"):
        thaw(foreign)
    with foreign.open("wb") as opened:
        np.save(opened, np.arange(3))
    with pytest.raises(ConfigError, match=r"wanted a partition .*, found one array, int64 \(3,\)"):
        thaw(foreign)


def test_nothing_in_a_file_is_run(file: Path) -> None:
    np.savez(file, **arrays(file) | {"train": np.array([print], dtype=object)})
    with pytest.raises(BadInput, match="or holds other things than numbers"):
        thaw(file)


BROKEN = {
    "a sample moved": ("train", lambda a: np.concatenate([a[1:], a[:1]]), "its content's"),
    "another hash": ("sha256", lambda a: np.array("0" * 64), f"its hash is {'0' * 64}"),
    "beyond the last sample": ("train", lambda a: a + 1, "do not fit together"),
    "below the first": ("held_out", lambda a: a - 300, "do not fit together"),
    "too few": ("test", lambda a: a[1:], "do not fit together"),
    "a client without samples": (
        "train_sizes", lambda a: np.array([a.sum(), *[0] * (len(a) - 1)]), "do not fit",
    ),
    "a negative size": (
        "test_sizes", lambda a: np.array([-1, a.sum() + 1, *[0] * (len(a) - 2)]), "do not fit",
    ),
    "other clients in the test set": (
        "test_sizes", lambda a: np.array([*a, 0]), "do not fit together",
    ),
    "no clients": ("train_sizes", lambda a: a[:0], "do not fit together"),
    "floats": ("train", lambda a: a * 1.0, "do not fit together"),
    "a table": ("samples", lambda a: a[None], "do not fit together"),
    "three sets": ("samples", lambda a: np.append(a, 1), "do not fit together"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_files(case: str, file: Path) -> None:
    name, damage, said = BROKEN[case]
    found = arrays(file)
    np.savez(file, **found | {name: damage(found[name])})
    with pytest.raises(ConfigError, match=r"a\.npz: damaged: ") as caught:
        thaw(file)
    assert said in str(caught.value)


def test_a_sample_twice_with_the_right_hash(file: Path) -> None:
    drawn, labels = population()
    drawn.shards[1][0] = drawn.shards[0][0]
    frozen.freeze(file, drawn.held_out, drawn.shards, drawn.test_shards, *labels)
    with pytest.raises(
        ConfigError, match=r"'frozen': wanted each .* in one place, found 1 in seve"
    ):
        thaw(file)
    drawn = population()[0]
    drawn.held_out[0] = drawn.shards[2][0]
    frozen.freeze(file, drawn.held_out, drawn.shards, drawn.test_shards, *labels)
    with pytest.raises(ConfigError, match="in: held out, client 2"):
        thaw(file)


def test_a_byte_that_flips(file: Path) -> None:
    """It is noticed, or it changes nothing, such as a date; never a traceback."""
    whole, sha256 = file.read_bytes(), population()[0].fingerprint
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 300, replace=False):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.integers(8)
        file.write_bytes(flipped)
        with suppress(BadInput):
            assert thaw(file).fingerprint == sha256


def test_freezing_where_nothing_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"a\.npz: "):
        freeze(tmp_path / "file" / "a.npz")
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(BadInput, match=r"b\.npz: it is no plain file"):
        freeze(tmp_path / "b.npz")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b.npz", "file"]
