"""Errors that the user can fix, as sentences. Any other exception is a defect, with a traceback.

`BadInput` is found before the work begins, and `Failure` while it is under way. What the system
refuses is turned into either of them in one place, `told`.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

REASONS = {
    errno.ENOSPC: ("no space is left on the disk", "make room"),
    errno.EDQUOT: ("your disk quota is used up", "make room or ask for more"),
    errno.EFBIG: ("larger than a file may be here (ulimit -f)", "raise the limit"),
    errno.EACCES: ("permission denied", "have its owner allow it"),
    errno.EPERM: ("not permitted", "have its owner allow it"),
    errno.EROFS: ("the file system is read-only", ""),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("links lead in a circle", "remove them"),
    errno.EIO: ("the disk reports an input/output error", "tell who runs this machine"),
    errno.ESTALE: ("the file was removed on another machine (stale handle)", "start again"),
    errno.EEXIST: ("what has that name is no folder", ""),
    errno.ENOTDIR: ("a part of the path is a file, no folder", ""),
    errno.EISDIR: ("it is a folder", ""),
    errno.ENOENT: ("no such file or folder, or a link that leads nowhere", ""),
    errno.ENOLCK: ("the file system has no locks", ""),
    errno.EMFILE: ("too many open files (ulimit -n)", "raise the limit"),
    errno.ENFILE: ("too many open files on this machine", "tell who runs it"),
    errno.ETIMEDOUT: ("the file server does not answer", "start again later"),
    errno.ENXIO: ("it is no plain file", ""),
}
"""What the system may refuse: in words, and what to do about it besides going elsewhere."""


LOCK = "unable to lock file"
"""What HDF5 says of a lock of its own, which fedmpi asks for only if the environment insists."""
UNLOCK = "set HDF5_USE_FILE_LOCKING=FALSE: results have locks of their own"


class BadInput(ValueError):
    """Settings, files or data that cannot be used; the command line ends with exit code 2."""


class Failure(Exception):
    """What the machine refuses while a run is under way; the exit code is 1."""


def number(error: BaseException) -> int | None:
    """Returns the error number of what the system refused; None if there is none.

    HDF5 raises errors of other types, and names the number in their text.
    """
    found = getattr(error, "errno", None)
    if found is None and (named := re.search(r"errno = (\d+)", str(error))):
        found = int(named[1])
    return found


def sentence(path: str | os.PathLike[str], error: BaseException, instead: str = "") -> str:
    """Returns what was refused at a path in one sentence, and what to do about it.

    Args:
        path: file or folder.
        error: an OSError, or an error of HDF5.
        instead: how to choose another place, such as "name another folder with --out".
    """
    code = number(error)
    if code is None:
        words, mend = " ".join(str(error).split()) or type(error).__name__, ""
    elif LOCK in str(error):
        is_held = code in (errno.EAGAIN, errno.EACCES)
        held, none = "another program holds HDF5's lock of it", "HDF5 cannot lock files here"
        words, mend = held if is_held else none, UNLOCK
    else:
        words, mend = REASONS.get(code, (os.strerror(code).lower(), ""))
    advice = " or ".join(filter(None, (mend, instead)))
    return f"{os.fspath(path)}: {words}" + (f"; {advice}" if advice else "")


@contextmanager
def told(
    path: str | os.PathLike[str], instead: str = "", kind: type[Exception] = BadInput
) -> Iterator[None]:
    """Raises `kind` with a sentence in place of what the system, or HDF5, refuses in here.

    Args:
        path: file or folder that is named.
        instead: how to choose another place.
        kind: `BadInput` or an error that is one, or `Failure`.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and number(error) is None:
            raise
        raise kind(sentence(path, error, instead)) from None


FULL = ("allocate", "out of memory", "array is too big", "Maximum allowed dimension")
"""What numpy and torch say, in errors of several types, of what takes more memory than there is."""


@contextmanager
def fitting() -> Iterator[None]:
    """Raises `BadInput` with a sentence in place of what takes too much memory in here."""
    try:
        yield
    except BadInput:
        raise
    except (MemoryError, RuntimeError, ValueError) as error:
        if not (isinstance(error, MemoryError) or any(text in str(error) for text in FULL)):
            raise
        found = re.search(r"allocate (\d[\d.]* \w+)", str(error))
        raise BadInput(
            f"more memory than there is{f', {found[1]} at once' if found else ''}; wanted fewer or "
            "smaller samples, a smaller model, or fewer rows"
        ) from None
