"""What is fetched is whole and right, or not there, however the network behaves."""

import gzip
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.io import savemat

from fedmpi import config, loading
from fedmpi.__main__ import main
from fedmpi.data import fetch, files
from fedmpi.data.files import DataError, Source
from fedmpi.datasets import cifar100, fashion_mnist, mnist, tiny_imagenet, usc_had
from tests.made import binary, idx, images, read, write_cifar100, write_tiny_imagenet

pytestmark = pytest.mark.usefixtures("nowhere")


class Server:
    """A web server on this machine, with habits that a test may choose.

    Attributes:
        files: what it has, by name.
        cuts: for a name, after how many bytes it hangs up; each time the next number, then never.
        ranges: whether it can go on in the middle.
        asked: what it was asked for: name, and where to begin.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ranges = True
        self.says_length = True
        self.asked: list[tuple[str, int]] = []
        ours = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                ours.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        wanted = request.headers.get("Range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.asked.append((name, start))
        if name not in self.files:
            return request.send_error(404)
        content = self.files[name]
        if self.ranges and start >= len(content) > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        if self.ranges and start:
            request.send_response(206)
            last = len(content) - 1
            request.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            content = content[start:]
        else:
            request.send_response(200)
        if self.says_length:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        cuts = self.cuts.get(name)
        request.wfile.write(content[: cuts.pop(0)] if cuts else content)
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    made = Server()
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


PAGE = b"You have to log in."
CONTENT = np.random.default_rng(1).bytes(300_000)


@pytest.fixture
def made(server: Server, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A set of one file, "made", which is fetched to `folder`."""
    module = SimpleNamespace(
        Config=config.Data,
        where=lambda settings: files.places(settings.root)[0],
        SOURCES=(Source((f"{server.url}/file",), "made/file", md5(CONTENT)),),
    )
    server.files["file"] = CONTENT
    monkeypatch.setattr(loading, "load", lambda tree: None)
    monkeypatch.setattr(config, "module", lambda table, name: module)
    module.folder = Path("data").absolute() / "made"
    return module


def part(made: SimpleNamespace, content: bytes) -> Path:
    made.folder.mkdir(parents=True)
    path = made.folder / "file.part"
    path.write_bytes(content)
    return path


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- one file


@pytest.mark.parametrize("says_length", [True, False])
def test_a_file(
    made: SimpleNamespace, server: Server, says_length: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server.says_length = says_length
    fetch.fetch("made")
    assert (made.folder / "file").read_bytes() == CONTENT
    assert left(made.folder) == ["file"]
    said = capsys.readouterr().out
    assert f"{made.folder}/file: fetched from {server.url}/file, has the known MD5" in said
    assert f"made is in {made.folder.parent}; runs that start here find it" in said
    assert server.asked == [("file", 0)]
    fetch.fetch("made")
    assert f"{made.folder}/file: there already\n" in capsys.readouterr().out
    assert len(server.asked) == 1


def test_it_goes_on_where_it_was(made: SimpleNamespace, server: Server) -> None:
    part(made, CONTENT[:1000])
    fetch.fetch("made")
    assert (made.folder / "file").read_bytes() == CONTENT
    assert server.asked == [("file", 1000)]


def test_a_connection_that_is_cut(made: SimpleNamespace, server: Server) -> None:
    server.cuts["file"] = [100_000, 0, 0, 50_000, 0, 1]
    fetch.fetch("made")
    assert (made.folder / "file").read_bytes() == CONTENT
    starts = [start for _, start in server.asked]
    assert starts == [0, *[100_000] * 3, *[150_000] * 2, 150_001]


def test_a_connection_that_is_cut_too_often(made: SimpleNamespace, server: Server) -> None:
    server.cuts["file"] = [1000] + [0] * 99
    with pytest.raises(DataError, match="the connection was cut after 1000 of 300000 bytes"):
        fetch.fetch("made")
    assert left(made.folder) == ["file.part"]
    assert len(server.asked) == 1 + fetch.TRIES
    server.cuts.clear()
    fetch.fetch("made")
    assert server.asked[-1] == ("file", 1000)
    assert left(made.folder) == ["file"]


def test_a_server_that_cannot_go_on(made: SimpleNamespace, server: Server) -> None:
    server.ranges = False
    part(made, b"x" * 1000)
    fetch.fetch("made")
    assert (made.folder / "file").read_bytes() == CONTENT
    assert server.asked == [("file", 1000)]


def test_it_does_not_go_round_for_ever(made: SimpleNamespace, server: Server) -> None:
    """A server that begins anew each time, and gets about as far."""
    server.ranges = False
    server.cuts["file"] = [5000, 4000] * 99
    with pytest.raises(DataError, match="the connection was cut after"):
        fetch.fetch("made")
    assert len(server.asked) == 1 + fetch.TRIES


@pytest.mark.parametrize("content", [CONTENT, CONTENT + b"more", b"x" * len(CONTENT)])
def test_a_part_that_is_whole_or_too_much(
    made: SimpleNamespace, server: Server, content: bytes
) -> None:
    part(made, content)
    fetch.fetch("made")
    assert (made.folder / "file").read_bytes() == CONTENT


def test_a_part_of_another_file(made: SimpleNamespace, server: Server) -> None:
    part(made, b"x" * 1000)
    fetch.fetch("made")
    assert (made.folder / "file").read_bytes() == CONTENT
    assert server.asked == [("file", 1000), ("file", 0)]


def test_a_wrong_checksum(made: SimpleNamespace, server: Server) -> None:
    server.files["file"] = PAGE
    with pytest.raises(DataError, match=f"wanted MD5 {md5(CONTENT)}, found {md5(PAGE)}"):
        fetch.fetch("made")
    assert left(made.folder) == []


def test_a_checksum_that_nobody_knows(
    made: SimpleNamespace, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    made.SOURCES = (Source((f"{server.url}/file",), "made/file"),)
    fetch.fetch("made")
    assert "no MD5 is known of it" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [None, PAGE])
def test_another_address(made: SimpleNamespace, server: Server, answer: bytes | None) -> None:
    urls = (f"{server.url}/old", f"{server.url}/file")
    made.SOURCES = (Source(urls, "made/file", md5(CONTENT)),)
    if answer is not None:
        server.files["old"] = answer
    fetch.fetch("made")
    assert (made.folder / "file").read_bytes() == CONTENT
    assert server.asked == [("old", 0), ("file", 0)], "404 is not asked again"


def test_a_server_that_is_gone(made: SimpleNamespace, server: Server) -> None:
    server.httpd.shutdown()
    server.httpd.server_close()
    with pytest.raises(DataError) as error:
        fetch.fetch("made", "~/sets")
    text, place = str(error.value), Path.home() / "sets"
    assert f"{server.url}/file: [Errno 111] Connection refused" in text
    assert f"place\n  {server.url}/file\n    as {place}/made/file\n" in text
    assert f"fedmpi data fetch made --to {place} again" in text


def test_a_wrong_part(made: SimpleNamespace, server: Server, monkeypatch: Any) -> None:
    """A server that sends other bytes than it was asked for."""
    real = Server.answer

    def shifted(ours: Server, request: BaseHTTPRequestHandler) -> None:
        send = request.send_header
        request.send_header = lambda name, value: send(name, value.replace("bytes 1000", "bytes 9"))
        real(ours, request)

    monkeypatch.setattr(Server, "answer", shifted)
    part(made, CONTENT[:1000])
    with pytest.raises(DataError, match="wanted bytes from 1000 on, found 'bytes 9-"):
        fetch.fetch("made")
    assert left(made.folder) == ["file.part"]


def test_a_folder_that_cannot_be_made(made: SimpleNamespace) -> None:
    Path("data").write_text("a file")
    with pytest.raises(DataError, match="name another folder with --to"):
        fetch.fetch("made")


def test_a_file_that_differs(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody placed it; it is his."""
    part(made, b"").rename(made.folder / "file")
    fetch.fetch("made")
    assert "there already, but its MD5 is not the known one" in capsys.readouterr().out
    assert (made.folder / "file").read_bytes() == b""


# ---- archives


def tar(names: dict[str, bytes | str], mode: str = "w:gz") -> bytes:
    """An archive of files; of links if what is in them is text."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(names: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return file.getvalue()


def offer(made: SimpleNamespace, server: Server, name: str, content: bytes) -> None:
    server.files[name] = content
    made.SOURCES = (Source((f"{server.url}/{name}",), "made", md5(content)),)


GOOD = {"made/a": b"1", "made/b/c": b"2"}


@pytest.mark.parametrize(
    ("name", "content"), [("x.tar.gz", tar(GOOD)), ("x.zip", zipped({**GOOD, "other/d": b"3"}))]
)
def test_an_archive(made: SimpleNamespace, server: Server, name: str, content: bytes) -> None:
    offer(made, server, name, content)
    for _ in range(2):
        fetch.fetch("made")
    assert left(Path("data")) == ["made/a", "made/b/c"]
    assert len(server.asked) == 1
    assert made.folder.stat().st_mode & 0o777 == Path("data").stat().st_mode & 0o777


def test_an_archive_that_somebody_placed(made: SimpleNamespace, server: Server) -> None:
    """There is no network, so it came by another way."""
    offer(made, server, "x.zip", zipped(GOOD))
    Path("data").mkdir()
    Path("data/x.zip").write_bytes(zipped(GOOD))
    fetch.fetch("made")
    assert left(Path("data")) == ["made/a", "made/b/c"] and not server.asked
    other = Path("other").absolute()
    other.mkdir()
    (other / "x.zip").write_bytes(b"half")
    with pytest.raises(DataError, match=rf"{other}/x\.zip: wanted MD5 .*; remove it"):
        fetch.fetch("made", "other")
    assert left(other) == ["x.zip"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("x.tar.gz", tar({**GOOD, "../out": b"!"}), r"wanted names inside of it, found '\.\./out'"),
        ("x.tar.gz", tar({**GOOD, "made/../../out": b"!"}), "wanted names inside of it"),
        ("x.tar.gz", tar({**GOOD, "made/l": "../../..", "made/l/out": b"!"}), "a link or a dev"),
        ("x.tar.gz", tar({**GOOD, "made/l": "/etc"}), "found 'made/l', a link or"),
        ("x.zip", zipped({**GOOD, "../out": b"!"}), r"wanted names inside of it, found '\.\./out'"),
        ("x.zip", zipped({**GOOD, "made/../../out": b"!"}), "wanted names inside of it"),
        ("x.zip", zipped({**GOOD, "/out": b"!"}), "wanted names inside of it, found '/out'"),
        ("x.tar.gz", tar(GOOD)[:60], "wanted a whole archive"),
        ("x.tar.gz", b"no archive", "wanted a whole archive"),
        ("x.tar.gz", gzip.compress(b"no archive"), "wanted a whole archive"),
        ("x.zip", zipped(GOOD)[:60], "wanted a whole archive, found: File is not a zip"),
        (
            "x.zip",
            zipped({"made/a": b"12345" * 99}).replace(b"made/a", b"made/b", 1),
            "wanted a wh",
        ),
        ("x.tar.gz", tar({"other/a": b"1"}), "wanted a folder made in it, found other"),
        ("x.zip", zipped({}), "wanted a folder made in it, found nothing"),
    ],
    # Archives hold the time at which they were made, and tests want the same names everywhere.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_archive(
    made: SimpleNamespace, server: Server, name: str, content: bytes, match: str
) -> None:
    offer(made, server, name, content)
    before = Path("/out").exists()
    with pytest.raises(DataError, match=match) as error:
        fetch.fetch("made")
    assert str(error.value).startswith(str(Path("data").absolute() / name))
    assert "no network" not in str(error.value)
    assert left(Path("data")) == [name], "and nothing of what was in it"
    assert not list(Path().absolute().parent.glob("out")) and Path("/out").exists() == before


def test_an_archive_without_room(made: SimpleNamespace, server: Server, monkeypatch: Any) -> None:
    offer(made, server, "x.zip", zipped(GOOD))
    monkeypatch.setattr(fetch, "disk_usage", lambda place: SimpleNamespace(free=1))
    with pytest.raises(DataError, match="unpacked it has 2 bytes, 1 are free"):
        fetch.fetch("made")


# ---- the real sets, from this machine

SETS = {
    "mnist": 6,
    "fashion-mnist": 4,
    "cifar10": 1,
    "cifar100": 1,
    "tiny-imagenet": 1,
    "usc-had": 1,
}


def moved(module: Any, server: Server, monkeypatch: pytest.MonkeyPatch, **contents: bytes) -> None:
    """Has a module's files on the server, with other content."""
    sources = []
    for source in module.SOURCES:
        content = contents.get("archive") or made_file(source.name)
        server.files[source.name] = content
        sources.append(Source((f"{server.url}/{source.name}",), source.path, md5(content)))
    monkeypatch.setattr(module, "SOURCES", tuple(sources))


def made_file(name: str) -> bytes:
    if "labels-idx1" in name:
        return gzip.compress(idx(np.array([1, 2])))
    if "labels-idx2" in name:
        rows = np.zeros((2, 8), np.int32)
        rows[:, 0], rows[:, 2] = [1, 2], [7, 8]
        return gzip.compress(idx(rows))
    return gzip.compress(idx(images(2)))


@pytest.mark.parametrize("module", [mnist, fashion_mnist])
def test_files_of_a_set_are_found(
    module: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(module, server, monkeypatch)
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    fetch.fetch(name)
    found = read(module)
    assert found.train_y.tolist() == [1, 2]
    assert (found.train_owners is not None) == (module is mnist)
    fetch.fetch(name, "elsewhere")
    assert read(module, Path("elsewhere").absolute()).test_y.tolist() == [1, 2]


def write_usc_had(folder: Path) -> None:
    for name in product(range(1, 15), range(1, 13), range(1, 6)):
        path = folder / f"Subject{name[0]}" / "a{}t{}.mat".format(*name[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {usc_had.KEY: np.ones((128, 6))})


@pytest.mark.parametrize(
    ("module", "write"),
    [
        (cifar100, lambda folder: write_cifar100(folder, binary, ".bin")),
        (tiny_imagenet, write_tiny_imagenet),
        (usc_had, write_usc_had),
    ],
)
def test_archives_of_a_set_are_found(
    module: Any, write: Any, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = module.SOURCES
    write(root / source.path)
    names = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    packed = zipped(names) if source.name.endswith(".zip") else tar(names)
    moved(module, server, monkeypatch, archive=packed)
    fetch.fetch(module.__name__.rpartition(".")[2].replace("_", "-"))
    assert len(read(module).train_y) > 0


@pytest.mark.parametrize("name", config.names("data"))
def test_sources(name: str) -> None:
    """Official addresses, and a digest wherever one is known."""
    sources = getattr(config.module("data", name), "SOURCES", ())
    assert len(sources) == SETS.get(name, 0)
    for source in sources:
        assert all(url.startswith(("http://", "https://")) for url in source.urls)
        assert {url.rpartition("/")[2] for url in source.urls} == {source.name}
        assert (source.md5 is None) == (name == "usc-had")
        assert source.md5 is None or len(source.md5) == 32
        assert source.is_archive == (Path(source.path).name != source.name)


def test_what_is_there_after_all(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch.fetch("digits")
    fetch.fetch("synthetic-fedprox")
    assert capsys.readouterr().out == "digits: needs no files\nsynthetic-fedprox: needs no files\n"


def test_a_set_that_has_no_address(nowhere: Path) -> None:
    """LEAF's come from its own scripts, as the set says itself."""
    with pytest.raises(DataError, match=r"no FEMNIST[\s\S]*To get it: "):
        fetch.fetch("femnist")


# ---- the command


def test_the_command(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(*words: str) -> Any:
        return CliRunner().invoke(main, ["data", "fetch", *words])

    moved(mnist, server, monkeypatch)
    found = say("mnist", "--to", "sets")
    assert found.exit_code == 0
    place = Path("sets").absolute()
    assert f"mnist is in {place}/mnist; data.root={place} finds it\n" in found.stdout
    found = say("mnist")
    here = Path("data/mnist").absolute()
    assert f"mnist is in {here}; runs that start here find it by themselves\n" in found.stdout
    monkeypatch.setenv("FEDMPI_DATA", "theirs")
    server.files.clear()
    found = say("mnist")
    assert found.exit_code == 2
    name = "train-images-idx3-ubyte.gz"
    assert f"{server.url}/{name}: 404 Not Found" in found.stderr
    assert f"as {Path('theirs').absolute()}/mnist/{name}" in found.stderr
    found = say("mnits")
    assert found.exit_code == 2
    assert "data.name = 'mnits': no such data (did you mean 'mnist'?)" in found.stderr
    assert files.places(None)[0] == Path("theirs").absolute()
