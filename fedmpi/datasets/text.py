"""Labelled texts of your own in CSV or JSON lines, as tokens of a WordPiece vocabulary.

A folder holds `train` and `test`, each as `.csv`, `.tsv` or `.jsonl` (or `.gz` of these), in UTF-8,
and a vocabulary: a file with a token in each line, such as the `vocab.txt` of a published BERT. A
CSV file has the names of its columns in the first line; a line of JSON is an object. Natural
clients: what the column `data.owner` says, if it is named.

A text becomes `[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]`, as in J. Devlin, M.-W. Chang,
K. Lee, K. Toutanova, *BERT*, NAACL 2019, arXiv 1810.04805. Words are cut into the longest tokens of
the vocabulary that they begin with; a word that has none is `[UNK]`. What is longer than
`data.length` tokens is cut off, of a pair the longer text first, and what is shorter is filled up
with `[PAD]`. The package tokenizers does it; it is optional (`pip install 'fedmpi[text]'`).

Samples are symbols, numbers of lines of the vocabulary. Labels are numbered in the order of their
values, of numbers as numbers, else as texts. A label, a text or an owner must not be empty.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.data import Dataset, cache
from fedmpi.data.files import DataError, contents, either, find, missing, places

FORMS = ("csv", "tsv", "jsonl")
"""Suffixes of files of texts."""
PARTS = ("train", "test")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""Tokens that a vocabulary must have."""
MOST = 2**20
"""Characters of a field of CSV."""


class Config(config.Data):
    text: str = "text"
    """Column of the texts."""
    pair: str | None = None
    """Column of second texts, for tasks about pairs of texts. If absent, samples are single
    texts."""
    label: str = "label"
    """Column of the labels."""
    owner: str | None = None
    """Column that says whose a text is, for natural clients. If absent, nobody knows."""
    vocabulary: str = "vocab.txt"
    """File of the vocabulary, a token in each line; in the folder of the texts, or a path."""
    length: int = Field(64, ge=3, le=2**16)
    """Tokens of a sample, with those that mark its beginning and its end."""
    lowercase: bool = True
    """Whether case and accents are removed, as vocabularies called uncased want it."""


class Rows(NamedTuple):
    """What the rows of a file have in the columns that are wanted.

    Attributes:
        texts: the texts.
        pairs: second texts; empty if samples are single texts.
        labels: the labels, as they are written.
        owners: whose the texts are; empty if nobody knows.
    """

    texts: list[str]
    pairs: list[str]
    labels: list[str]
    owners: list[str]


def where(config: Config) -> Path:
    """Returns the folder of the texts.

    Raises:
        DataError: if there is none.
    """
    wanted = " and ".join(f"{part}.csv, .tsv or .jsonl" for part in PARTS)
    folder = find(config.root, ("", "text"), lambda path: all(_file(path, part) for part in PARTS))
    if folder is None:
        raise missing("texts", config.root, wanted, "texts of your own, in such files")
    return folder


def _file(folder: Path, part: str) -> Path | None:
    """Returns the file of a part of the set, the first one of `FORMS`; None if there is none."""
    found = (either(folder, f"{part}.{form}") for form in FORMS)
    return next((path for path in found if path is not None), None)


def vocabulary(config: Config, folder: Path) -> Path:
    """Returns the file of the vocabulary.

    Raises:
        DataError: if it is neither in the folder nor at that path.
    """
    beside, path = folder / config.vocabulary, places(config.vocabulary)[0]
    for found in (beside, path):
        if found.is_file():
            return found
    raise DataError(
        f"data.vocabulary = '{config.vocabulary}': wanted a file with a token in each line, such "
        f"as the vocab.txt of a published BERT; found neither {beside} nor {path}"
    )


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (data.length,); `seed` has no effect.

    Raises:
        ConfigError: if the package tokenizers is missing.
        DataError: if files are missing or damaged.
    """
    folder = where(config)
    paths = [path for part in PARTS if (path := _file(folder, part)) is not None]
    words = vocabulary(config, folder)

    def decode() -> Dataset:
        tokens = tokens_of(words)
        encode = encoder(config, tokens)
        train, test = (rows(path, config) for path in paths)
        names = ordered(set(train.labels))
        number = {name: place for place, name in enumerate(names)}
        for row, label in enumerate(test.labels, 1):
            if label not in number:
                raise DataError(
                    f"{paths[1]}: wanted a label of the training set, found '{label}' in row {row}"
                )
        people = sorted({*train.owners, *test.owners})
        known = {name: place for place, name in enumerate(people)}
        x = [encode(part.texts, part.pairs) for part in (train, test)]
        y = [np.array([number[label] for label in part.labels]) for part in (train, test)]
        found = Dataset(x[0], y[0], x[1], y[1], len(names), symbols=len(tokens))
        if config.owner is None:
            return found
        owners = [np.array([known[name] for name in part.owners]) for part in (train, test)]
        return replace(found, train_owners=owners[0], test_owners=owners[1])

    return cache.decoded(config, [*paths, words], {}, decode)


def ordered(labels: set[str]) -> list[str]:
    """Returns labels in the order of their numbers, if all are whole numbers; else by letters."""
    try:
        return sorted(labels, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(labels)


def rows(path: Path, config: Config) -> Rows:
    """Reads a file of texts.

    Raises:
        DataError: if it is not such a file, has no rows, or lacks a column or a value.
    """
    try:
        text = contents(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: wanted text in UTF-8, found: {error}") from None
    name = path.name.removesuffix(".gz")
    found = Rows([], [], [], [])
    wanted = (config.text, config.pair, config.label, config.owner)
    columns = [(each, into) for each, into in zip(wanted, found, strict=True) if each is not None]
    lines = _objects(path, text) if name.endswith(".jsonl") else _table(path, text, name)
    for number, row in lines:
        for column, into in columns:
            value = row.get(column)
            if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
                has = f"its columns are: {', '.join(map(str, row))}"
                raise DataError(
                    f"{path}: wanted a text or a whole number in column '{column}' of row "
                    f"{number}, found {'nothing' if value in (None, '') else repr(value)}; {has}"
                )
            into.append(str(value))
    if not found.texts:
        raise DataError(f"{path}: wanted rows of texts, found none")
    return found


def _table(path: Path, text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the rows of CSV below its first line, numbered from 1, by column."""
    csv.field_size_limit(MOST)
    reader = csv.DictReader(
        StringIO(text, newline=""), delimiter="\t" if name.endswith(".tsv") else ",", strict=True
    )
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                raise DataError(
                    f"{path}: wanted {len(row) - 1} values in row {number}, found "
                    f"{len(row) - 1 + len(row[None])}"
                )
            yield number, row
    except csv.Error as error:
        raise DataError(f"{path}: after line {reader.line_num}: {error}") from None


def _objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the objects of JSON lines, numbered from 1; blank lines are left out."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: wanted an object in line {number}, found {line[:40]!r}")
        yield number, row


def tokens_of(path: Path) -> dict[str, int]:
    """Reads a vocabulary: the number of each token, that of its line.

    Raises:
        DataError: if a token stands there twice, or one of `SPECIAL` is missing.
    """
    try:
        lines = contents(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: wanted text in UTF-8, found: {error}") from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines):
        if line in found:
            raise DataError(
                f"{path}: wanted a token once, found '{line}' in lines {found[line] + 1} and "
                f"{number + 1}"
            )
        found[line] = number
    gone = [token for token in SPECIAL if token not in found]
    if gone:
        raise DataError(f"{path}: wanted the tokens {', '.join(SPECIAL)}, found no {gone[0]}")
    return found


def encoder(
    config: Config, tokens: Mapping[str, int]
) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """Returns a function that maps texts, and second texts if any, to symbols, int32 [N, length].

    Raises:
        ConfigError: if the package tokenizers is missing.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    except ImportError:
        raise ConfigError(
            "data.name = 'text': wanted the package tokenizers, found none; "
            "possible is pip install tokenizers, or the extra 'text' of fedmpi"
        ) from None
    pad, unknown, first, end = SPECIAL
    found = Tokenizer(models.WordPiece(dict(tokens), unk_token=unknown))
    found.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.post_processor = processors.BertProcessing((end, tokens[end]), (first, tokens[first]))
    found.enable_truncation(config.length)
    found.enable_padding(length=config.length, pad_id=tokens[pad], pad_token=pad)

    def encode(texts: Sequence[str], pairs: Sequence[str]) -> np.ndarray:
        given = list(zip(texts, pairs, strict=True)) if pairs else list(texts)
        return np.array([each.ids for each in found.encode_batch(given)], np.int32)

    return encode
