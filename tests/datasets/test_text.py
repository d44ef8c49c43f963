"""Texts of one's own: their files, their columns, and tokens by a plain reference."""

import gzip
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.config import ConfigError
from fedmpi.data import Dataset
from fedmpi.data.files import DataError
from fedmpi.datasets import text
from fedmpi.datasets.text import Config, load, tokens_of

pytest.importorskip("tokenizers", reason="no tokenizers beside this Python")

WORDS = ["the", "a", "cat", "dog", "sat", "un", "##able", "##s", "##t", "t", "s", "!", ",", "."]
VOCABULARY = ["[PAD]", *WORDS, "[UNK]", "[CLS]", "[SEP]", "e"]
TRAIN = [
    ("the cat sat.", "7", "ann"),
    ("The DOGS sat!", "10", "bob"),
    ('a "cat", unable', "7", "ann"),
]
TEST = [("cats", "10", "cid")]


def folder(root: Path, form: str = "csv", names: str = "text label owner") -> Path:
    """A set of three and one texts."""
    columns = names.split()
    for part, rows in (("train", TRAIN), ("test", TEST)):
        if form == "jsonl":
            lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        else:
            mark = "," if form == "csv" else "\t"
            quoted = [['"' + field.replace('"', '""') + '"' for field in row] for row in rows]
            lines = [mark.join(columns), *(mark.join(row) for row in quoted)]
        (root / f"{part}.{form}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return root


def settings_of(root: Path, **words: object) -> Config:
    return Config(name="text", root=str(root), cache=str(root / "cache"), **words)


def pieces(word: str) -> list[str]:
    """The longest tokens that a word begins with, one after the other."""
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            token = ("##" if start else "") + word[start:end]
            if token in VOCABULARY:
                break
        else:
            return ["[UNK]"]
        found.append(token)
        start = end
    return found


def plain(texts: tuple[str, ...], length: int) -> list[int]:
    """A sample's symbols, as the paper's code makes them."""
    cut = []
    for one in texts:
        bare = unicodedata.normalize("NFD", one.lower())
        bare = "".join(c for c in bare if unicodedata.category(c) != "Mn")
        spaced = "".join(f" {c} " if not c.isalnum() and not c.isspace() else c for c in bare)
        cut.append([token for word in spaced.split() for token in pieces(word)])
    while sum(map(len, cut)) > length - 1 - len(cut):
        max(reversed(cut), key=len).pop()
    tokens = ["[CLS]"]
    for some in cut:
        tokens += [*some, "[SEP]"]
    tokens += ["[PAD]"] * (length - len(tokens))
    return [VOCABULARY.index(token) for token in tokens]


def is_the_set(found: Dataset, length: int = 64) -> None:
    assert found.train_x.tolist() == [plain(row[:1], length) for row in TRAIN]
    assert found.test_x.tolist() == [plain(row[:1], length) for row in TEST]
    assert found.train_x.dtype == np.int32
    assert (found.kind, found.shape, found.symbols) == ("symbols", (length,), len(VOCABULARY))
    assert found.train_y.tolist() == [0, 1, 0], "7 comes before 10"
    assert (found.test_y.tolist(), found.classes) == ([1], 2)


@pytest.mark.parametrize("form", text.FORMS)
def test_a_set_is_read_in_every_form(tmp_path: Path, form: str) -> None:
    found = load(settings_of(folder(tmp_path, form), owner="owner"), 0)
    is_the_set(found)
    assert found.train_owners is not None and found.test_owners is not None
    assert (found.train_owners.tolist(), found.test_owners.tolist()) == ([0, 1, 0], [2])


def test_columns_and_length_are_chosen(tmp_path: Path) -> None:
    root = folder(tmp_path, "csv", "sentence class who")
    found = load(settings_of(root, text="sentence", label="class", length=5), 0)
    is_the_set(found, 5)
    assert found.train_owners is found.test_owners is None


def test_files_may_be_compressed_and_the_vocabulary_elsewhere(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for part in text.PARTS:
        path = root / f"{part}.csv"
        (root / f"{part}.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    other = tmp_path / "other" / "words"
    other.parent.mkdir()
    (root / "vocab.txt").rename(other)
    is_the_set(load(settings_of(root, vocabulary=str(other)), 0))


ALPHABET = "theacdogsunbl!., é\tZ"


@given(st.lists(st.tuples(st.text(ALPHABET, min_size=1, max_size=12)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_tokens_are_those_of_a_plain_reference(rows: list[tuple[str]]) -> None:
    words = {token: number for number, token in enumerate(VOCABULARY)}
    encode = text.encoder(Config(name="text", length=8), words)
    texts = [one for (one,) in rows]
    assert encode(texts, []).tolist() == [plain((one,), 8) for one in texts]


def test_pairs_stand_behind_each_other() -> None:
    words = {token: number for number, token in enumerate(VOCABULARY)}
    encode = text.encoder(Config(name="text", length=9), words)
    pairs = [("the cat sat", "a dog"), ("the", "a dog sat a dog sat a"), ("cat", "dog")]
    found = encode(*map(list, zip(*pairs, strict=True)))
    assert found.tolist() == [plain(pair, 9) for pair in pairs]


def test_case_may_stay() -> None:
    words = {token: number for number, token in enumerate(VOCABULARY)}
    encode = text.encoder(Config(name="text", length=4, lowercase=False), words)
    assert encode(["The"], [])[0, 1] == words["[UNK]"]
    assert encode(["the"], [])[0, 1] == words["the"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", "text,label\nthe,1\n,2\n", "column 'text' of row 2, found nothing"),
        ("train.csv", "words,label\nthe,1\n", "column 'text' of row 1.* words, label"),
        ("train.csv", "text,label\nthe,1,3\n", "wanted 2 values in row 1, found 3"),
        ("train.csv", "text,label\n", "wanted rows of texts, found none"),
        ("train.csv", 'text,label\n"the,1\n', "after line 1: unexpected end of data"),
        ("test.csv", "text,label\nthe,3\n", "found '3' in row 1"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n", "found no \\[SEP\\]"),
        ("vocab.txt", "[PAD]\n[UNK]\nthe\nthe\n", "'the' in lines 3 and 4"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: str, message: str) -> None:
    root = folder(tmp_path)
    (root / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        load(settings_of(root), 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "the"}', "column 'label' of row 1, found nothing"),
        ('{"text": "the", "label": 1.5}', "found 1.5"),
        ('{"text": "the", "label": true}', "found True"),
        ('["the", 1]', "wanted an object in line 1"),
        ('{"text": ', "line 1: Expecting value"),
    ],
)
def test_what_is_wrong_with_json_is_said(tmp_path: Path, line: str, message: str) -> None:
    root = folder(tmp_path, "jsonl")
    (root / "train.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"train.jsonl.*{message}"):
        load(settings_of(root), 0)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no texts; wanted train"):
        load(settings_of(tmp_path), 0)
    root = folder(tmp_path)
    (root / "vocab.txt").unlink()
    with pytest.raises(DataError, match="found neither"):
        load(settings_of(root), 0)


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="wanted the package tokenizers"):
        load(settings_of(folder(tmp_path)), 0)


def test_a_vocabulary_is_numbered_by_lines(tmp_path: Path) -> None:
    path = folder(tmp_path) / "vocab.txt"
    assert list(tokens_of(path)) == VOCABULARY
