"""Tiny ImageNet: 110,000 photographs, 64x64 RGB, 200 classes.

Made of ImageNet for Stanford's course CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip;
ImageNet's terms: for research and teaching, not for commerce. Reads the official folder, with
`wnids.txt`, `train` and `val`. 500 images of each class are training samples. The 10,000 validation
images are test samples, because the labels of the official test set are not public. A class is its
index among the *sorted* names of `wnids.txt`. Grey images become RGB. Fewer classes or images are
possible, too. The official folders of images are `train/CLASS/images` and `val/images`. Also read
are the forms into which tools sort them: images in `train/CLASS`, `val/CLASS` or
`val/CLASS/images`. Test samples are in the order of `val/val_annotations.txt`, or else of the
numbers in their names, which is the same in the official set. Pictures that are left
where no others are read from are an error.

Decoded it takes 5.4 GB of the cache, and once as much memory. Changes are detected by the two text
files and the folders: an image that is added, removed or renamed is noticed, but not one whose
content changes in place, because a run should not look at 110,000 files before it begins.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import DataError, Source, contents, find, missing
from fedmpi.data.layouts import jpeg

MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
"""Mean and standard deviation of the training pixels, by channel, scaled to 0 .. 1.

They are the values in common use.
"""

SIZE = 64
"""Pixels on each side."""
NAMES, NOTES = "wnids.txt", "val/val_annotations.txt"
"""File with the names of the classes, and file with the labels of validation images."""

SOURCES = (
    Source(
        ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
        "tiny-imagenet-200",
        "90528d7ca1a48142e341f4ef8d21d0de",
    ),
)


class Config(config.Images):
    """Folder of the files; by default one of the usual places."""


def where(config: Config) -> Path:
    """Returns the folder that has `wnids.txt`, `train` and `val`.

    Raises:
        DataError: if there is none.
    """

    def holds(folder: Path) -> bool:
        return os.path.isfile(folder / NAMES) and os.path.isdir(folder / "train")

    folder = find(config.root, ("", "tiny-imagenet-200"), holds)
    if folder is None:
        raise missing(
            "Tiny ImageNet",
            config.root,
            "wnids.txt beside the folders train and val",
            "fedmpi data fetch tiny-imagenet, or "
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked",
            [source.name for source in SOURCES],
        )
    return folder


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (3, 64, 64); `seed` has no effect.

    Raises:
        DataError: if it is missing, or a file or folder is missing or damaged.
    """
    folder = where(config)
    names = _names(folder / NAMES)
    trained = {_inner(folder / "train" / name): label for label, name in enumerate(names)}
    tested = {
        _inner(folder / "val" / name): label
        for label, name in enumerate(names)
        if os.path.isdir(folder / "val" / name)
    }
    sources = [folder / NAMES, folder / "train", *trained, *(inner.parent for inner in trained)]
    loose = [path for path in (folder / "val", folder / "val/images") if os.path.isdir(path)]
    sources += [folder / "val", *(tested or [folder / NOTES, folder / "val/images"]), *loose]

    def decode() -> Dataset:
        for place in loose if tested else []:
            _none_left(place, tested)
        for inner in trained:
            if inner.name == "images":
                _none_left(inner.parent, [inner])
        moments = config.moments(MEAN, STD)
        train_x, train_y = _decoded(_labelled(trained), *moments)
        by_number = sorted(_labelled(tested), key=lambda one: (_number(one[0]), one[0].name))
        test_x, test_y = _decoded(by_number or _noted(folder / NOTES, names), *moments)
        return Dataset(train_x, train_y, test_x, test_y, len(names))

    return cache.decoded(config, sources, {}, decode)


def _inner(folder: Path) -> Path:
    """Returns the folder of a class's images: `images` in its folder, or that itself."""
    images = folder / "images"
    return folder if os.path.isdir(folder) and not os.path.isdir(images) else images


def _none_left(folder: Path, read: Collection[Path]) -> None:
    """Checks that the pictures in a folder, if it has any, are also in the folders `read`.

    Raises:
        DataError: naming how many are not, and one of them.
    """
    try:
        known = {name for inner in read for name in os.listdir(inner)}
        left = sorted(filter(_is_picture, set(os.listdir(folder)) - known))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from None
    if left:
        raise DataError(
            f"{folder}: wanted all pictures in folders like {min(read)}, found {len(left)} beside "
            f"them, such as {left[0]}"
        )


def _labelled(folders: Mapping[Path, int]) -> list[tuple[Path, int]]:
    """Returns the images in some folders, with the folders' labels."""
    return [(path, label) for inner, label in folders.items() for path in _pictures(inner)]


def _number(picture: Path) -> int:
    """Returns the number in a name like `val_17.JPEG`; 0 if there is none."""
    found = re.search(r"\d+", picture.stem)
    return int(found[0]) if found else 0


def _decoded(
    pictures: list[tuple[Path, int]], mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images float32 [N, 3, 64, 64] and labels int64 [N]."""
    paths, labels = zip(*pictures, strict=True)
    return jpeg.read_all(paths, SIZE, mean, std), np.array(labels, np.int64)


def _lines(path: Path) -> list[str]:
    """Returns the lines of a text file that are not empty.

    Raises:
        DataError: if there is none.
    """
    lines = [line for line in contents(path).decode("latin1").split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{path}: wanted lines of text, found none")
    return [line.rstrip("\r") for line in lines]


def _names(path: Path) -> list[str]:
    """Returns the names of the classes, sorted.

    Raises:
        DataError: if a name is malformed, or is there twice.
    """
    names = sorted(_lines(path))
    for name, after in zip(names, [*names[1:], ""], strict=True):
        if not re.fullmatch(r"n\d{8}", name):
            raise DataError(f"{path}: wanted names like n01443537, found {name!r}")
        if name == after:
            raise DataError(f"{path}: wanted each name once, found {name} twice")
    return names


def _pictures(folder: Path) -> list[Path]:
    """Returns the images in a folder, sorted by name.

    Raises:
        DataError: if there is none.
    """
    try:
        found = sorted(folder / name for name in os.listdir(folder) if _is_picture(name))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None
    if not found:
        raise DataError(f"{folder}: wanted pictures *.JPEG, found none")
    return found


def _is_picture(name: str) -> bool:
    return name.endswith(".JPEG") and not name.startswith(".")  # such as macOS leaves behind


def _noted(path: Path, names: list[str]) -> list[tuple[Path, int]]:
    """Returns the validation images and their labels, from the file of annotations.

    Raises:
        DataError: if a line is not an image's name, a tab, and a class among `names`.
    """
    labels = {name: label for label, name in enumerate(names)}
    found = []
    for number, line in enumerate(_lines(path), 1):
        picture, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in labels or not re.fullmatch(r"\w+\.JPEG", picture):
            raise DataError(
                f"{path}: wanted a picture, a tab and a class of {NAMES}, found {line!r} in line "
                f"{number}"
            )
        found.append((path.parent / "images" / picture, labels[name]))
    return found
