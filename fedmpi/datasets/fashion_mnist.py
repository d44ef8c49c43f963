"""Fashion-MNIST: 70,000 images of clothes, 28x28 grey, 10 classes.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv 1708.07747; https://github.com/zalandoresearch/fashion-mnist, MIT licence. Its
files have the names of MNIST's, so that the folder's path must contain "fashion".
"""

from pathlib import Path

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import Source, missing
from fedmpi.data.layouts import idx

MEAN, STD = (0.2860,), (0.3530,)
"""Mean and standard deviation of the training pixels, scaled to 0 .. 1, as in common use."""

MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

SOURCES = tuple(
    Source(
        (f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}",),
        f"fashion-mnist/{name}",
        digest,
    )
    for name, digest in MD5.items()
)


class Config(config.Images):
    """Folder of the files; by default one of the usual places."""


def where(config: Config) -> Path:
    """Returns the folder of the four files.

    Raises:
        DataError: if there is none.
    """
    folder = idx.search(config.root, _fits)
    if folder is None:
        raise missing(
            "Fashion-MNIST",
            config.root,
            "train-images-idx3-ubyte or train-images.idx3-ubyte, with or without .gz "
            "(in a path that says 'fashion', unless "
            "data.root is the very folder of the files)",
            "fedmpi data fetch fashion-mnist, or "
            "Debian's package dataset-fashion-mnist, or four files from "
            "https://github.com/zalandoresearch/fashion-mnist, kept together in one folder",
        )
    return folder


def _fits(folder: Path) -> bool:
    """Whether the last name of a set in the path, links followed or not, is this one's."""
    for path in (folder, folder.resolve()):
        parts = [part.lower() for part in path.parts]
        names = [part for part in parts if "fashion" in part or "mnist" in part]
        if names and "fashion" in names[-1]:
            return True
    return False


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (1, 28, 28); `seed` has no effect.

    Raises:
        DataError: if it is missing, or a file is damaged.
    """
    paths = idx.paths(where(config))
    sources = [*paths, *(copy for path in paths for copy in idx.copies(path))]
    moments = config.moments(MEAN, STD)
    known = idx.known(MD5)
    return cache.decoded(config, sources, known, lambda: idx.images(paths, *moments))
