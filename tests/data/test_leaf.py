"""LEAF's sets: its json with users, the text of roles, and what may be wrong with either."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import config, data
from fedmpi.data.files import DataError
from fedmpi.data.layouts import leaf
from fedmpi.datasets import femnist, shakespeare
from fedmpi.engine import Engine
from tests.small import run, small

Users = dict[str, tuple[list[Any], list[Any]]]


pytestmark = pytest.mark.usefixtures("nowhere")


def packed(users: Users, spare: int = 0, /, **changes: Any) -> str:
    """A file in LEAF's layout."""
    whole = {
        "users": list(users),
        "num_samples": [len(y) + spare for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }
    return json.dumps(whole | changes)


def write(folder: Path, train: dict[str, str], test: dict[str, str]) -> Path:
    """A set's files by their names."""
    for part, files in (("train", train), ("test", test)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / part / name).write_text(content)
    return folder


def images(count: int, seed: int = 0, first: int = 0) -> tuple[list[Any], list[Any]]:
    """Pixels as LEAF writes them, and labels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 784)) / 255
    return pixels.tolist(), [(first + i) % 62 for i in range(count)]


def texts(count: int, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Windows of 80 characters, and next characters."""
    random = np.random.default_rng(seed)
    drawn = random.choice(list(shakespeare.LETTERS), (count, 81))
    return ["".join(row[:80]) for row in drawn], [str(row[80]) for row in drawn]


# ---- FEMNIST


def test_femnist(root: Path) -> None:
    """Users of all files together; owners are numbered by their names, in both parts alike."""
    ann, bea, cas = images(3, 1), images(2, 2, 60), images(4, 3, 7)
    folder = write(
        root / "femnist" / "data",
        {"all_data_1.json": packed({"cas": cas}), "all_data_0.json": packed({"ann": ann})},
        {"a.json": packed({"cas": images(1, 4), "bea": bea})},
    )
    settings = femnist.Config(root=str(root))
    assert femnist.where(settings) == folder
    found = femnist.load(settings, 1)
    assert found.shape == (1, 28, 28) and found.classes == 62 and found.kind == "numbers"
    assert (found.train_x.dtype, found.train_y.dtype) == (np.float32, np.int64)
    wanted = np.array(ann[0] + cas[0], np.float32).reshape(-1, 1, 28, 28)
    np.testing.assert_array_equal(found.train_x, wanted)
    assert found.train_y.tolist() == [0, 1, 2, 7, 8, 9, 10]
    assert found.test_y.tolist() == [0, 60, 61]
    assert found.train_owners is not None and found.test_owners is not None
    assert found.train_owners.tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert found.test_owners.tolist() == [2, 1, 1], "bea has test samples only"
    assert found.train_owners.dtype == found.test_owners.dtype == np.int64


def test_whole_numbers_are_pixels_too(root: Path) -> None:
    x, y = femnist.take([[0] * 783 + [1]], [61])
    assert x.dtype == np.float32 and (x.sum(), x[0, 0, 27, 27], y.tolist()) == (1, 1, [61])


GOOD = images(2)
BAD_IMAGES: dict[str, tuple[str, str]] = {
    "no json": ("not json", "wanted whole json, found: Expecting value"),
    "cut": (packed({"a": GOOD})[:-9], "wanted whole json"),
    "empty": ("", "wanted whole json"),
    "deep": ("[" * 100_000, "wanted whole json"),
    "a list": ("[1]", r"wanted an object with the keys \['users', 'num_samples', 'user_data'\], f"),
    "no users": (
        '{"num_samples": [], "user_data": {}}',
        r"found the keys \['num_samples', 'user_data'\]",
    ),
    "users": (packed({"a": GOOD}, users="a"), "wanted a list of names as users"),
    "names": (packed({"a": GOOD}, users=[1]), "wanted a list of names as users"),
    "num_samples": (packed({"a": GOOD}, num_samples=2), "wanted num_samples of 1 users, found som"),
    "many counts": (packed({"a": GOOD}, num_samples=[2, 2]), "num_samples of 1 users, found 2"),
    "user_data": (packed({"a": GOOD}, user_data=[]), "wanted an object as user_data, found list"),
    "nobody": (packed({"a": GOOD}, user_data={"b": {}}), "user 'a': wanted lists x and y, found s"),
    "no y": (packed({"a": GOOD}, user_data={"a": {"x": []}}), "user 'a': wanted lists x and y"),
    "a number": (packed({"a": GOOD}, user_data={"a": 1}), "user 'a': wanted lists x and y"),
    "labels": (packed({"a": (GOOD[0], [1])}), "user 'a': wanted a label for each of 2 samples, f"),
    "count": (packed({"a": GOOD}, num_samples=[3]), "'a': wanted 3 samples, as num_samples says, "),
    "count of others": (packed({"a": GOOD}, 79), "wanted 81 samples, as num_samples says, found 2"),
    "twice": (packed({"a": GOOD}, users=["a", "a"], num_samples=[2, 2]), "wanted each user once"),
    "short": (packed({"a": ([[0.5] * 783], [1])}), "'a': wanted 784 numbers a sample"),
    "ragged": (packed({"a": ([[0.5] * 784, [0.5]], [1, 1])}), "wanted 784 numbers a sample"),
    "strings": (packed({"a": ([["0.5"] * 784], [1])}), "wanted 784 numbers a sample"),
    "nothing": (packed({"a": ([[None] * 784], [1])}), "wanted 784 numbers a sample"),
    "images": (packed({"a": ([[[0.5] * 28] * 28], [1])}), "wanted 784 numbers a sample"),
    "bytes": (packed({"a": ([[0.0] * 784, [255] * 784], [1, 1])}), "found 255.0 to 255.0 in sam"),
    "negative": (packed({"a": ([[-0.5] * 784], [1])}), "wanted pixels from 0 to 1, found -0.5"),
    "NaN": (packed({"a": ([[float("nan")] * 784], [1])}), "wanted pixels from 0 to 1, found nan"),
    "label": (packed({"a": (GOOD[0], [1, 62])}), "wanted labels 0 to 61, found 62 in sample 1"),
    "below": (packed({"a": (GOOD[0], [-1, 2])}), "wanted labels 0 to 61, found -1 in sample 0"),
    "fraction": (packed({"a": (GOOD[0], [1, 2.0])}), "wanted labels 0 to 61, found 2.0"),
    "letter": (packed({"a": (GOOD[0], [1, "2"])}), "wanted labels 0 to 61, found '2'"),
    "no samples": (packed({"a": ([], [])}), "wanted samples of a user, found none"),
}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_wrong_images(root: Path, case: str, part: str) -> None:
    content, match = BAD_IMAGES[case]
    whole = {"a.json": packed({"a": GOOD})}
    write(root, whole, whole)
    (root / part / "a.json").write_text(content)
    with pytest.raises(DataError, match=match) as error:
        femnist.load(femnist.Config(root=str(root)), 1)
    assert str(error.value).startswith(str(root / part / "a.json"))


def test_bytes_that_are_no_text(root: Path) -> None:
    write(root, {"a.json": packed({"a": GOOD})}, {"a.json": ""})
    (root / "test" / "a.json").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(DataError, match="wanted whole json"):
        femnist.load(femnist.Config(root=str(root)), 1)


def test_what_macos_leaves_behind_is_no_file_of_a_set(root: Path) -> None:
    """An archive that was made there has a hidden file beside each."""
    write(
        root / "femnist",
        {"a.json": packed({"ann": images(3, 1)})},
        {"a.json": packed({"ann": images(2, 2)})},
    )
    before = femnist.load(femnist.Config(root=str(root)), 1).sha256
    write(root / "__MACOSX" / "femnist", {"._a.json": "\0\5"}, {"._a.json": "\0\5"})
    write(root / "femnist", {"._a.json": "\0\5"}, {"._b.json": "\0\5"})
    assert femnist.load(femnist.Config(root=str(root)), 1).sha256 == before
    write_roles(root / "by_play_and_character", HAMLET="word " * 200)
    (root / "by_play_and_character" / "._HAMLET.txt").write_bytes(b"\0\xff")
    assert len(shakespeare.load(shakespeare.Config(root=str(root)), 1).train_y)


def test_files_of_two_preparations(root: Path) -> None:
    whole = {"a_0.json": packed({"a": GOOD}), "a_0_keep_64.json": packed({"b": GOOD, "a": GOOD})}
    write(root, whole, {"a.json": packed({"a": GOOD})})
    pattern = r"a_0_keep_64\.json: wanted each user once, found 'a' in a_0\.json, too"
    with pytest.raises(DataError, match=pattern):
        femnist.load(femnist.Config(root=str(root)), 1)


def test_users_without_samples_are_nobody(root: Path) -> None:
    """LEAF leaves them in `user_data`, and may name them."""
    one = {"a": GOOD, "b": ([], [])}
    write(root, {"a.json": packed(one)}, {"a.json": packed({"a": GOOD})})
    paths, _ = leaf.paths(root)
    found = leaf.read(paths, femnist.take)
    assert (found.users, found.counts, len(found.x)) == (["a"], [2], 2)
    unnamed = json.loads(packed(one))
    unnamed["users"], unnamed["num_samples"] = ["a"], [2]
    paths[0].write_text(json.dumps(unnamed))
    assert leaf.read(paths, femnist.take).users == ["a"]


@pytest.mark.parametrize(
    ("below", "fits"),
    [
        ("femnist", True),
        ("leaf/data/femnist/data", True),
        ("leaf/femnist/data", True),
        ("shakespeare/FEMNIST", True),
        ("femnist/shakespeare", False),
        ("celeba/data", False),
        ("numbers", False),
    ],
)
def test_the_path_says_which_set(root: Path, below: str, fits: bool) -> None:
    """Unless the setting is the very folder."""
    one = {"a.json": packed({"a": GOOD})}
    folder = write(root / "sets" / below, one, one)
    settings = femnist.Config(root=str(root / "sets"))
    if fits:
        assert femnist.where(settings) == folder
    else:
        with pytest.raises(DataError, match="no FEMNIST; wanted folders train and test"):
            femnist.where(settings)
    assert femnist.where(femnist.Config(root=str(folder))) == folder


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_part_is_missing(root: Path, part: str) -> None:
    one = {"a.json": packed({"a": GOOD})}
    write(root / "femnist", one, one)
    (root / "femnist" / part / "a.json").unlink()
    with pytest.raises(DataError, match=r"preprocess\.sh .* in data/femnist of https"):
        femnist.where(femnist.Config(root=str(root)))


# ---- Shakespeare


def test_the_vocabulary() -> None:
    letters = shakespeare.LETTERS
    assert len(letters) == len(set(letters)) == 80
    assert shakespeare.numbers(letters).tolist() == list(range(80))
    assert (letters.find("a"), letters.find("A"), letters.find("}")) == (53, 25, 79)
    # LEAF's -1 for all others picks the last place.
    assert shakespeare.numbers("~_é’\U0001f600\ud800\x7f\0").tolist() == [79] * 8


def test_shakespeare(root: Path) -> None:
    one, other = texts(4, 1), texts(3, 2)
    folder = write(
        root / "shakespeare" / "data",
        {"all_data_niid_0_train_8.json": packed({"HAMLET": one})},
        {"all_data_niid_0_test_8.json": packed({"HAMLET": other}, 79)},
    )
    found = shakespeare.load(shakespeare.Config(root=str(root)), 1)
    assert shakespeare.where(shakespeare.Config(root=str(root))) == folder
    assert found.shape == (80,) and found.classes == 80 and found.kind == "symbols"
    assert (found.train_x.dtype, found.train_y.dtype) == (np.uint8, np.int64)
    letters = np.array(list(shakespeare.LETTERS))
    for (x, y), xs, ys in (
        (one, found.train_x, found.train_y),
        (other, found.test_x, found.test_y),
    ):
        assert ["".join(row) for row in letters[xs]] == x
        assert letters[ys].tolist() == y
    assert found.train_owners is not None and found.train_owners.tolist() == [0] * 4


ONE = texts(2)
BAD_TEXTS: dict[str, tuple[str, str]] = {
    "short": (packed({"a": ([ONE[0][0][:79]], ["b"])}), "wanted 80 characters, found 79 in sampl"),
    "long": (packed({"a": (ONE[0], ["b", "cd"])}), "wanted 1 characters, found 2 in sample 1"),
    "no label": (packed({"a": (ONE[0], ["b", ""])}), "wanted 1 characters, found 0 in sample 1"),
    "numbers": (packed({"a": ([[1] * 80], ["b"])}), r"wanted 80 characters, found \[1, 1"),
    "a label": (packed({"a": (ONE[0], ["b", 3])}), "wanted 1 characters, found 3 in sample 1"),
    "spare": (packed({"a": ONE}, 79), "wanted 81 samples, as num_samples says, found 2"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_wrong_texts(root: Path, case: str) -> None:
    """LEAF counts too many samples in its test files alone."""
    content, match = BAD_TEXTS[case]
    write(root, {"a.json": content}, {"a.json": packed({"a": ONE})})
    with pytest.raises(DataError, match=match) as error:
        shakespeare.load(shakespeare.Config(root=str(root)), 1)
    assert str(error.value).startswith(f"{root / 'train' / 'a.json'}: user 'a': ")


# ---- roles as text


def speech(length: int, seed: int = 0) -> str:
    """A role's text, without neighbouring spaces."""
    drawn = np.random.default_rng(seed).choice(list(shakespeare.LETTERS[2:]), length)
    return "".join(drawn)


def write_roles(folder: Path, **roles: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in roles.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    return folder


@pytest.mark.parametrize(
    "below", ["", "raw_data", "shakespeare/data/raw_data", "a/b", "a/b/data/raw_data"]
)
def test_roles(root: Path, below: str) -> None:
    """Every window that lies in one of both parts, once; none has characters of both."""
    said = {"ANN": speech(700, 1), "BEA": speech(480, 2), "CAS": speech(481, 3)}
    folder = write_roles(root / below / "by_play_and_character", **said)
    assert shakespeare.where(shakespeare.Config(root=str(root))) == folder
    found = shakespeare.load(shakespeare.Config(root=str(root)), 1)
    assert found.shape == (80,) and found.classes == 80 and found.kind == "symbols"
    assert found.train_owners is not None and found.test_owners is not None
    for owner, role in ((0, "ANN"), (2, "CAS")):
        symbols, windows = shakespeare.numbers(said[role]), len(said[role]) - 80
        first = 4 * windows // 5
        for x, y, owners, positions in (
            (found.train_x, found.train_y, found.train_owners, range(first)),
            (found.test_x, found.test_y, found.test_owners, range(first + 80, windows)),
        ):
            mine = owners == owner
            assert mine.sum() == len(positions)
            np.testing.assert_array_equal(x[mine], [symbols[i : i + 80] for i in positions])
            np.testing.assert_array_equal(y[mine], symbols[[i + 80 for i in positions]])
        assert first - 1 + 80 < first + 80, "the last label of training is before all of testing"
    # 400 windows of 480 characters: nothing would be left to test.
    assert set(found.train_owners) == set(found.test_owners) == {0, 2}


def test_no_character_is_in_both_parts() -> None:
    """Told by characters of which each is there once, as far as the vocabulary goes."""
    for length in (481, 500, 1234):
        train, test = shakespeare.split(speech(length, length))
        symbols = shakespeare.numbers(speech(length, length))
        used = len(train) + 80
        np.testing.assert_array_equal(train[-1], symbols[used - 81 : used])
        np.testing.assert_array_equal(test[0], symbols[used : used + 81])
        np.testing.assert_array_equal(test[-1], symbols[-81:])


@pytest.mark.parametrize("length", [0, 1, 80, 81, 480])
def test_roles_that_say_too_little(root: Path, length: int) -> None:
    folder = write_roles(root, ANN=speech(length), BEA="")
    pattern = "wanted a role with more than 480 characters, found none in the 2 files"
    with pytest.raises(DataError, match=pattern) as error:
        shakespeare.load(shakespeare.Config(root=str(folder)), 1)
    assert str(error.value).startswith(str(folder / "ANN.txt"))


def test_lines_and_spaces(root: Path) -> None:
    text = "to be\n  or   not\r\nto be\r?  " + speech(600)
    folder = write_roles(root, ANN="\ufeff" + text)
    found = shakespeare.load(shakespeare.Config(root=str(folder)), 1)
    start = "".join(shakespeare.LETTERS[symbol] for symbol in found.train_x[0])
    assert start.startswith("to be or not to be ? " + speech(600)[:20])


def test_roles_in_another_encoding(root: Path) -> None:
    (root / "ANN.txt").write_bytes(speech(500).encode() + b"\xe9")
    with pytest.raises(DataError, match=r"ANN\.txt: wanted text in UTF-8, found: .*0xe9"):
        shakespeare.load(shakespeare.Config(root=str(root)), 1)


def test_json_comes_first(root: Path) -> None:
    write_roles(root / "shakespeare/data/raw_data/by_play_and_character", ANN=speech(500))
    one = {"a.json": packed({"a": ONE})}
    folder = write(root / "shakespeare" / "data", one, one)
    settings = shakespeare.Config(root=str(root / "shakespeare"))
    assert shakespeare.where(settings) == folder
    assert len(shakespeare.load(settings, 1).train_y) == 2


@pytest.mark.parametrize("module", [femnist, shakespeare])
def test_missing(nowhere: Path, module: Any) -> None:
    with pytest.raises(DataError, match=r"github\.com/TalwalkarLab/leaf") as error:
        module.where(module.Config())
    assert f"{nowhere / 'data'} (no such folder)" in str(error.value)


# ---- runs


def test_a_run_on_text(root: Path) -> None:
    write_roles(root / "by_play_and_character", ANN="abcdefgh" * 80, BEA="fghabcde" * 70)
    words = ("data.name=shakespeare", f"data.root={root}", "partition.name=iid", "clients=3")
    model = ("model.name=rnn", "model.hidden=12", "model.layers=1")
    found = run(small(*words, *model, "lr=0.05", "optimizer=adam", "rounds=3"))
    assert found.tables["rounds"]["accuracy"][-1] > 0.9, "each letter tells the next one"
    with pytest.raises(config.ConfigError, match="found samples of symbols; models for those are"):
        run(small(*words, "model.name=mlp"))


def test_text_wants_no_augmentation(root: Path) -> None:
    write_roles(root / "by_play_and_character", ANN=speech(600))
    words = ("data.name=shakespeare", f"data.root={root}", "model.name=rnn", "clients=2")
    with pytest.raises(config.ConfigError, match=r"wanted images, found samples of shape \(80,\)"):
        run(small(*words, "partition.name=iid", "augment=['crop']"))


def test_a_model_of_symbols_wants_text() -> None:
    with pytest.raises(config.ConfigError, match="wanted samples of symbols, found samples of num"):
        run(small("data.shape=[80]", "model.name=rnn"))


def test_a_set_knows_what_it_is_made_of() -> None:
    y = np.zeros(2, np.int64)
    for kind, wanted in ((np.uint8, "symbols"), (np.float32, "numbers")):
        x = np.zeros((2, 5), kind)
        assert data.Dataset(x, y, x, y, 2).kind == wanted


def test_roles_are_natural_clients(root: Path) -> None:
    write_roles(root / "by_play_and_character", ANN="abcdefgh" * 80, BEA="fghabcde" * 70)
    words = ("data.name=shakespeare", f"data.root={root}", "partition.name=natural", "clients=2")
    settings = small(*words, "model.name=rnn", "validation=0")
    found = Engine(settings).population
    theirs = {(len(x), len(y)) for x, y in zip(found.shards, found.test_shards, strict=True)}
    assert theirs == {(448, 560 - 448 - 80), (384, 480 - 384 - 80)}
