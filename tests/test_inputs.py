"""Whatever a setting names as a file: it is read as a whole, or refused, and never waited for."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmpi import config, inputs
from fedmpi.engine import Engine
from fedmpi.errors import BadInput
from tests import PATIENCE
from tests.small import small

NAMED = {
    "trace": ("sampling=trace",),
    "partition.file": ("partition.name=frozen",),
    "model.initial": (),
    "method.agent": ("method.name=spatl", "method.selection=agent", "model.name=cnn"),
}
"""Every setting that names a file to read, and the words that it needs beside it."""


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """What waits for a pipe is ended."""

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(round(PATIENCE))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_no_setting_is_forgotten() -> None:
    found = set(config.marked(config.Settings, config.READ))
    for table in config.AXES:
        for name in config.names(table):
            own = getattr(config.module(table, name), "Config", config.Table)
            found |= {f"{table}.{path}" for path in config.marked(own, config.READ)}
    assert found == set(NAMED)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
def test_what_is_no_plain_file(name: str, kind: str, tmp_path: Path) -> None:
    path, reason = tmp_path / "x", "it is no plain file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path, reason = tmp_path, "it is a folder"
    else:
        reason = "no such file or folder, or a link that leads nowhere"
    settings = small(*NAMED[name], f"{name}={path}")
    assert name not in settings.contents()
    with pytest.raises(BadInput) as caught:
        Engine(settings)
    assert str(caught.value).startswith(f"{name} = {path}: {reason}; wanted a")


def test_a_plain_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert inputs.plain(tmp_path / "b") == b"abc"
