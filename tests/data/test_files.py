"""The right files are found, and never those of another set."""

from pathlib import Path
from types import ModuleType

import pytest

from fedmpi.data import files
from fedmpi.data.files import DataError
from fedmpi.datasets import (
    cifar10,
    cifar100,
    fashion_mnist,
    femnist,
    mnist,
    shakespeare,
    tiny_imagenet,
    usc_had,
)
from tests.made import binary, read, write, write_cifar10, write_idx, write_tiny_imagenet

pytestmark = pytest.mark.usefixtures("nowhere")


def test_places(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.places("~/mine") == [nowhere / "mine"]
    usual = [
        nowhere / "data",
        nowhere.parent / "data",
        nowhere.parent / "shared" / "data",
        nowhere / "data",
        nowhere / ".cache" / "fedmpi",
    ]
    assert files.places(None) == usual
    monkeypatch.setenv("FEDMPI_DATA", "~/theirs")
    assert files.places(None) == [nowhere / "theirs", *usual]
    assert files.places("mine") == [nowhere / "mine"]


def test_the_first_place_wins(nowhere: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, place in enumerate((root, nowhere / "data", nowhere.parent / "shared" / "data"), 1):
        write_idx(place / "mnist", [0] * count, [0])
    assert len(read(mnist).train_y) == 2
    monkeypatch.setenv("FEDMPI_DATA", str(root))
    assert len(read(mnist).train_y) == 1
    assert len(read(mnist, nowhere.parent / "shared").train_y) == 3
    with pytest.raises(DataError, match="no MNIST"):
        read(mnist, nowhere / "elsewhere")


@pytest.mark.parametrize(
    "below", ["", "raw", "MNIST/raw", "mnist/MNIST/raw", "mnist", "sets/mnist"]
)
def test_folders_of_a_set(root: Path, below: str) -> None:
    write_idx(root / below, [3], [4], packed=True)
    assert mnist.where(mnist.Config(root=str(root))) == root / below
    assert read(mnist, root).train_y.tolist() == [3]


@pytest.mark.parametrize("below", ["a/b/c", "a/b/c/raw"])
def test_folders_too_deep(root: Path, below: str) -> None:
    write_idx(root / below, [3], [4])
    with pytest.raises(DataError, match="2 levels below"):
        read(mnist, root)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("mnist", "fashion-mnist"),
        ("MNIST/raw", "FashionMNIST/raw"),
        ("z", "a/Fashion"),
        ("numbers", "fashion_mnist/raw"),
    ],
)
def test_sets_with_the_same_files(root: Path, mine: str, theirs: str) -> None:
    write_idx(root / mine, [1], [1])
    write_idx(root / theirs, [2], [2])
    write_idx(root / "KMNIST" / "raw", [3], [3])
    assert read(mnist, root).train_y.tolist() == [1]
    assert read(fashion_mnist, root).train_y.tolist() == [2]


def test_a_set_never_stands_in_for_another(root: Path) -> None:
    # A project of this name holds both sets; MNIST's own folder must not pass for the other one.
    write_idx(root / "fashion" / "MNIST" / "raw", [1], [1])
    write_idx(root / "KMNIST", [3], [3])
    for module in (mnist, fashion_mnist):
        with pytest.raises(DataError, match="very folder of the files"):
            read(module, root)
    direct = root / "fashion" / "MNIST" / "raw"
    assert read(mnist, direct).train_y.tolist() == [1]
    assert read(fashion_mnist, direct).train_y.tolist() == [1]


def test_the_environment_is_not_the_user(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(root / "fashion", [2], [2])
    monkeypatch.setenv("FEDMPI_DATA", str(root / "fashion"))
    assert read(fashion_mnist).train_y.tolist() == [2]
    with pytest.raises(DataError, match="no MNIST"):
        read(mnist)


def test_links_are_followed(root: Path) -> None:
    write_idx(root / "far" / "fashion-mnist", [2], [2])
    (root / "near").mkdir()
    (root / "near" / "clothes").symlink_to(root / "far" / "fashion-mnist")
    assert read(fashion_mnist, root / "near").train_y.tolist() == [2]
    with pytest.raises(DataError, match="no MNIST"):
        read(mnist, root / "near")


def test_a_link_that_leads_nowhere(root: Path) -> None:
    (root / "a").symlink_to(root / "a")
    (root / "b").symlink_to(root / "c")
    write_idx(root / "mnist", [1], [1])
    assert read(mnist, root).train_y.tolist() == [1]


@pytest.mark.parametrize("kind", ["file", "device", "link"])
def test_what_is_no_folder(root: Path, kind: str) -> None:
    place = root / "a"
    if kind == "file":
        place.touch()
    elif kind == "device":
        place = Path("/dev/null")
    else:
        place.symlink_to(root / "b")
    with pytest.raises(DataError) as error:
        mnist.where(mnist.Config(root=str(place)))
    assert f"\n  {place} (it is no folder)\n" in str(error.value)


@pytest.mark.parametrize(
    "module",
    [cifar10, cifar100, fashion_mnist, femnist, mnist, shakespeare, tiny_imagenet, usc_had],
)
@pytest.mark.parametrize("root_text", ["9" * 400, "a/" * 3000])
def test_a_path_that_is_too_long(module: ModuleType, root_text: str) -> None:
    with pytest.raises(DataError, match=r"\(no such folder\)"):
        module.where(module.Config(root=root_text))


@pytest.mark.parametrize(
    ("module", "part", "name"),
    [
        (cifar10, "data_batch_4.bin", "cifar10"),
        (tiny_imagenet, "val", "tiny-imagenet"),
        (tiny_imagenet, "train/n00000001/images", "tiny-imagenet"),
    ],
)
def test_a_part_that_is_missing(root: Path, module: ModuleType, part: str, name: str) -> None:
    if module is cifar10:
        write_cifar10(root, binary, ".bin")
    else:
        write_tiny_imagenet(root)
    (root / part).rename(root / "away")
    if part.startswith("train"):
        (root / part).parent.rename(root / "gone")
    with pytest.raises(DataError) as error:
        read(module, root)
    assert str(error.value) == (
        f"{root / part}: No such file or directory; wanted every part of {name} in one folder: "
        f"fedmpi list data {name} says how to get it"
    )


@pytest.mark.parametrize(
    ("module", "wanted", "source"),
    [
        (mnist, "train-images-idx3-ubyte", "yann.lecun.com/exdb/mnist"),
        (fashion_mnist, "train-images-idx3-ubyte", "package dataset-fashion-mnist"),
        (cifar10, "data_batch_1.bin", "www.cs.toronto.edu/~kriz/cifar.html"),
    ],
)
def test_missing(
    nowhere: Path,
    root: Path,
    module: ModuleType,
    wanted: str,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (nowhere / "data" / "other").mkdir(parents=True)
    lost = str(root / "lost")
    monkeypatch.setenv("FEDMPI_DATA", lost)
    with pytest.raises(DataError) as error:
        module.where(module.Config())
    text = str(error.value)
    assert wanted in text and source in text and "data.root or $FEDMPI_DATA" in text
    assert all(f"\n  {place}" in text for place in files.places(None))
    assert f"{lost} (no such folder)" in text and f"{nowhere / 'data'}\n" in text
    with pytest.raises(DataError) as error:
        read(module, nowhere)
    assert lost not in str(error.value)


@pytest.mark.parametrize(
    ("module", "archive"),
    [
        (cifar10, "cifar-10-python.tar.gz"),
        (cifar100, "cifar-100-binary.tar.gz"),
        (tiny_imagenet, "tiny-imagenet-200.zip"),
        (usc_had, "USC-HAD.zip"),
    ],
)
def test_an_archive_that_is_not_unpacked_is_named(
    root: Path, module: ModuleType, archive: str
) -> None:
    with pytest.raises(DataError) as error:
        read(module, root)
    assert "unpack it" not in str(error.value)
    write(root / "sets" / archive, b"")
    with pytest.raises(DataError) as error:
        read(module, root)
    assert f"\n{root / 'sets' / archive}: unpack it\nTo get it: " in str(error.value)


# ---- whose they are


def test_origin(root: Path) -> None:
    """By the file, or by what is packed in it; a name that nobody knows counts for nothing."""
    write(root / "a", b"one")
    write(root / "b", b"two", packed=True)
    write(root / "c", b"three")
    a, b, c = root / "a", root / "b.gz", root / "c"
    known = {"a": "f97c5d29941bfb1b2fdab0874906ab82", "b": "b8a9f715dbb64fd5c56e7783c6820a61"}
    assert files.origin([a, b], known) == "official"
    assert files.origin([a, c], known) == files.origin([c], known) == "unknown"
    assert files.origin([a, b], {**known, "b.gz": "0"}) == "official"
    assert files.origin([a, b], {**known, "b": "0"}) == "not the official b.gz"
    assert files.origin([a, b, c], {"a": "0", "b.gz": "0"}) == "not the official a, b.gz"
