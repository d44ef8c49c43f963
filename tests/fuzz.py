"""Random command lines and files: `python -m tests.fuzz N [SEED [FIRST]]` tries so many of them.

Whatever a user writes, a command does it, or says in a sentence what is wrong: exit code 0 or 2, no
traceback, nothing that does not end, and nothing outside of the folders that it names. Each case
follows from the seed and its number, so that a finding can be tried again: `1 SEED NUMBER`.
"""

import os
import random
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
import h5py
import numpy as np
from click.testing import CliRunner

from analysis import (
    along,
    claims,
    compare,
    convergence,
    newcomers,
    paired,
    slices,
    targets,
    tradeoff,
    trajectory,
)
from fedmpi import config
from fedmpi.__main__ import main
from fedmpi.data import files
from fedmpi.runs import launch

QUICK = {
    "data.name": "synthetic",
    "data.samples": "120",
    "data.test_samples": "20",
    "data.shape": "[1,4,4]",
    "model.hidden": "[6]",
    "clients": "3",
    "rounds": "1",
    "epochs": "1",
}
"""Settings of a run that takes a blink."""
PATIENCE = 120
"""Seconds in which a command ends; most take a hundredth of one."""
ODD = (
    *("", " ", "'", '"', "''", "'x'", '"x"', "[", "]", "[]", "[[]]", "{", "{}", "{a=1}", "{a}"),
    *("nan", "inf", "-inf", "-1", "0", "1", "2", "3", "0.5", ".5", "1.", "1e3", "1e400", "-0.0"),
    *("0x10", "0b1", "1_0", "١", "9" * 400, "9" * 5000, "0x" + "f" * 5000, "1e-400", "+1", "--1"),
    *("true", "True", "false", "yes", "on", "absent", "none", "None", "null", "2024-05-01"),
    *(
        "07:30",
        "é",
        "日本",
        "\x07",
        "\udcff",
        "a\nb",
        "a\x00b",
        "#",
        "# x",
        "~",
        "~nobody/x",
        "/",
        "..",
    ),
    *(
        ".",
        "=",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "no/such/place",
        "x" * 300,
        "%s",
        "{0}",
    ),
    *(
        "$HOME",
        "*",
        "cpu",
        "cuda",
        "cuda:99",
        "mps",
        "[1,2,3]",
        "[1",
        "['a'",
        "[8,]",
        "[a,b]",
        "[1, 2.5]",
    ),
    *(
        "[8,8]",
        "-",
        "[" * 200,
        "[" * 400 + "]" * 400,
        "{a=" * 150 + "1" + "}" * 150,
        "'''",
        "a,b",
        "0,90",
    ),
    *("[{}]", "[{name='a'}]", "[{share=1}]", "[{link={kind='fixed'}}]", "[{link={kind='x'}}]"),
    *("up_bytes:1kB", "up_bytes:x", "0" * 64, "a.csv", "a.npz", "a.npy", "a.h5", "a.toml", "here"),
)
"""Values, of which few settings take any."""
TEXTS = tuple(text for text in ODD if "\x00" not in text)
"""Those that can stand on a command line."""


@dataclass
class Case:
    """A command and the files that lie beside it.

    Attributes:
        program: the command's name: `fedmpi`, or a module of `analysis`.
        words: behind it.
        files: contents by name.
    """

    program: str
    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


PROGRAMS: dict[str, click.Command] = {
    "fedmpi": main,
    **{"compare": compare.main, "along": along.main, "targets": targets.main},
    **{"tradeoff": tradeoff.main, "trajectory": trajectory.main, "newcomers": newcomers.main},
    **{"slices": slices.main, "claims": claims.main, "paired": paired.main},
    **{"convergence": convergence.main},
}


@cache
def settings() -> dict[str, tuple[Any, str]]:
    """Every setting's type, and the word that makes it one, by its path."""
    found = {name: (one.annotation, "") for name, one in config.Settings.model_fields.items()}
    for table, one in config.Settings.model_fields.items():
        kinds = {"": one.annotation}
        if table in config.AXES:
            kinds = {n: config.schema(table, n) for n in config.names(table)}
        for name, kind in kinds.items():
            for leaf, inner in getattr(kind, "model_fields", {}).items():
                word = f"{table}.name={name}" if name else ""
                found[f"{table}.{leaf}"] = (inner.annotation, word)
    return found


def good(rng: random.Random, kind: Any) -> str:
    """A small value that a setting of that type may well take."""
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        return good(rng, inner[0])
    if get_origin(kind) is Literal:
        return str(rng.choice(inner))
    if get_origin(kind) is tuple:
        return f"[{','.join(good(rng, inner[0]) for _ in range(rng.choice((0, 1, 2))))}]"
    if type(None) in inner:
        return rng.choice(("absent", good(rng, inner[0])))
    if kind is bool:
        return rng.choice(("true", "false", "True"))
    if kind is int:
        return rng.choice(("1", "2", "3", "4"))
    if kind is float:
        return rng.choice(("0", "0.1", ".5", "0.9", "1.0", "1e-3"))
    return rng.choice(("absent", "hidden1", "here", "cpu", *TEXTS))


def word(rng: random.Random) -> list[str]:
    """A setting, perhaps with the word that makes it one; or what is none."""
    if rng.random() < 0.1:
        return [rng.choice(("lr", "=1", "paper:dgc", "paper:x", "x.y.z=1", "lr.x=1", "rouds=3"))]
    path = rng.choice(list(settings()))
    kind, named = settings()[path]
    value = good(rng, kind) if rng.random() < 0.4 else rng.choice(TEXTS)
    equals = rng.choice(("=",) * 12 + (" = ", "==", ".x=", ".0="))
    words = [named] if named and rng.random() < 0.9 else []
    return [*words, f"{path}{equals}{value}"]


def sound(rng: random.Random) -> list[str]:
    """Settings that are there, each with a value that it may well take."""
    method, partition = (rng.choice(config.names(table)) for table in ("method", "partition"))
    kinds = {"": config.Settings, "method.": config.schema("method", method)}
    if rng.random() < 0.3:
        kinds["partition."] = config.schema("partition", partition)
    for name, one in config.Settings.model_fields.items():
        if config.is_table(one.annotation) and name not in config.AXES:
            kinds[f"{name}."] = one.annotation  # type: ignore[assignment]
    fields = {
        f"{table}{name}": field.annotation
        for table, kind in kinds.items()
        for name, field in kind.model_fields.items()
        if name not in ("name", "threads") and not config.is_table(field.annotation)
    }
    named = [f"method.name={method}", f"partition.name={partition}"]
    own = [path for path in fields if path.startswith(("method.", "partition."))]
    chosen = rng.sample(list(fields), rng.choice((0, 1, 1, 2))) + rng.sample(own, min(1, len(own)))
    return [*named[: len(named) if "partition." in kinds else 1]] + [
        f"{path}={good(rng, fields[path])}" for path in dict.fromkeys(chosen)
    ]


def words(rng: random.Random) -> list[str]:
    """Those of a quick run, with some on top of them."""
    quick, luck = dict(QUICK), rng.random()
    extra = sound(rng) if luck < 0.8 else []
    if luck > 0.5:
        extra += [one for _ in range(rng.choice((1, 1, 2))) for one in word(rng)]
    for one in extra:
        table, _, rest = one.partition(".")
        if rest.startswith("name="):
            quick = {path: v for path, v in quick.items() if not path.startswith(f"{table}.")}
    return [*(f"{path}={value}" for path, value in quick.items()), *extra]


def toml(rng: random.Random, given: list[str]) -> str:
    """Words as lines of a file, most of them rightly."""
    lines = []
    once = given if rng.random() < 0.1 else {one.partition("=")[0]: one for one in given}.values()
    for one in once:
        path, equals, value = one.partition("=")
        is_bare = value[:1] in "[{0123456789.-+" or value in ("true", "false")
        lines.append(f"{path}{equals}{value if is_bare or rng.random() < 0.1 else repr(value)}")
    return "\n".join(lines)


def sweep(rng: random.Random) -> str:
    """A file of a sweep, most of them right."""
    lines = ["[base]", toml(rng, words(rng)), "[[grid]]"]
    for _ in range(rng.choice((0, 1, 1, 2))):
        path = rng.choice((*settings(), "method.name", "seed", "lr"))
        values = [good(rng, settings()[path][0]) for _ in range(rng.choice((1, 2)))]
        shown = [v if v[:1].isdigit() or v in ("true", "false") else repr(v) for v in values]
        lines.append(f"{path!r} = [{', '.join(shown)}]" if rng.random() < 0.9 else f"{path} = 1")
    return "\n".join(lines + ["[x]"] * (rng.random() < 0.05))


def mangled(rng: random.Random, content: bytes) -> bytes:
    """A file that something befell."""
    place = rng.randrange(len(content) + 1)
    noise = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 40))))
    text = content.decode("utf-8", "replace")
    return rng.choice(
        (
            content[:place],
            b"",
            content[:place] + noise + content[place + len(noise) :],
            content[:place] + noise + content[place:],
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            content + content,
            content.replace(b"\n", b"\r\n"),
            content + b"\n\n \n",
            noise,
        )
    )


@cache
def whole(name: str) -> bytes:
    """A result, a partition or an agent as the program writes it."""
    quick = [f"{path}={value}" for path, value in QUICK.items()]
    make = {
        "a.h5": ["run", *quick, "--out", "a.h5"],
        "a.npz": ["partition", *quick, "--freeze", "a.npz"],
        "a.npy": ["agent", *quick, "model.hidden=[6,6]", "--episodes", "25", "--out", "a.npy"],
    }[name]
    with tempfile.TemporaryDirectory() as place, inside(Path(place)):
        result = CliRunner().invoke(main, make, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return Path(name).read_bytes()


def result(rng: random.Random) -> bytes:
    """A result, perhaps a damaged one, or one with strange attributes and tables."""
    content = whole("a.h5")
    luck = rng.random()
    if luck < 0.4:
        return content
    if luck < 0.6:
        return content[: rng.randrange(len(content))]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "a.h5")
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            name = rng.choice([*file.attrs, *(one for one in file if one != "model")])
            if luck < 0.7:
                del (file.attrs if name in file.attrs else file)[name]
            elif name in file.attrs:
                file.attrs[name] = rng.choice(("", "{}", "[]", "x", 3, np.nan, [1, 2], "{"))
            else:
                data = file[name][:]
                del file[name]
                file[name] = rng.choice((data[:0], data[[*data.dtype.names[:1]]], np.arange(3)))
        return path.read_bytes()


def trace(rng: random.Random) -> bytes:
    """A trace of three clients, most of them right."""
    ends = ("0", "1", "2", "5", "-1", "x", "", "9" * 30, "1.5", "2147483648")
    rows = ["client,first,last", "0,0,5"]
    for _ in range(rng.choice((0, 1, 3))):
        rows.append(",".join(rng.choice(ends) for _ in range(rng.choice((3, 3, 3, 2, 4)))))
    return "\n".join(rows).encode()


def case(seed: int, number: int) -> Case:
    """The case of that number."""
    rng = random.Random(f"{seed}-{number}")
    kinds: dict[Callable[[random.Random], Case], int] = {
        _run: 40, _sweep: 14, _show: 10, _list: 8, _analysis: 14, _other: 8, _noise: 6,
    }  # fmt: skip
    (made,) = rng.choices(list(kinds), list(kinds.values()))
    found = made(rng)
    beside = {"a.csv": trace, "a.h5": result, "a.npz": lambda _: whole("a.npz")}
    beside |= {"a.npy": lambda _: whole("a.npy")}
    for name, content in beside.items():
        if name not in found.files and any(name in one for one in found.words):
            found.files[name] = content(rng)
            if rng.random() < 0.2:
                found.files[name] = mangled(rng, found.files[name])
    return found


def _out(rng: random.Random) -> list[str]:
    places = ("r", "a.h5", "b.h5", "b.HDF5", "a.toml/x", "lr=0.1", "", "here", "/dev/null")
    return ["--out", rng.choice(places)] if rng.random() < 0.6 else []


def _run(rng: random.Random) -> Case:
    """A run, or something else that takes settings."""
    command = rng.choice(("run",) * 6 + ("partition",) * 3 + ("agent",))
    given, file = words(rng), {}
    luck = rng.random()
    if luck < 0.3:
        split = rng.randrange(len(given) + 1)
        name = rng.choice(("a.toml", "lr=0.1.toml", "x/lr=0.1/a.toml", "a.h5", "no.toml", "a"))
        content = toml(rng, given[:split]).encode("utf-8", "surrogateescape")
        file = {name: content if rng.random() < 0.7 else mangled(rng, content)}
        given = [name if rng.random() < 0.95 else "lost.toml", *given[split:]]
    elif luck < 0.4:
        given = ["a.h5", *given[len(QUICK) :]]
    options = {
        "run": [*_out(rng), *rng.choice(([],) * 8 + (["--ranks", "2"], ["--ranks", "0"]))],
        "partition": rng.choice(([], ["--plot", "p.png"], ["--plot", "p"], ["--freeze", "p.npz"])),
        "agent": ["--episodes", "25", "--out", rng.choice(("b.npy", "no/b.npy", "here", ""))],
    }[command]
    return Case("fedmpi", [command, *given, *options], file)


def _sweep(rng: random.Random) -> Case:
    content = sweep(rng).encode("utf-8", "surrogateescape")
    content = content if rng.random() < 0.8 else mangled(rng, content)
    some = rng.choice(([], ["--dry-run"], ["--dry-run"], ["--count"], ["--only", "0"]))
    extra = word(rng) if rng.random() < 0.3 else []
    file = rng.choice(("a.toml",) * 9 + ("lost.toml",))
    return Case("fedmpi", ["sweep", file, *extra, *_out(rng), *some], {"a.toml": content})


def _show(rng: random.Random) -> Case:
    path = rng.choice(("a.h5", "a.h5", "a.h5", "here", ".", "a.toml", "lost", *TEXTS[:6]))
    found = Case("fedmpi", ["show", path], {"here/a.h5": result(rng), "here/b.H5": result(rng)})
    return found


def _list(rng: random.Random) -> Case:
    what = rng.choice(("methods", "data", "models", "partitions", "exchanges", "settings", "x"))
    names = (*settings(), *config.names("method"), *config.names("model"), *TEXTS)
    return Case("fedmpi", ["list", what, *rng.choice(([], [rng.choice(names)]))])


def _analysis(rng: random.Random) -> Case:
    program = rng.choice([name for name in PROGRAMS if name != "fedmpi"])
    options = {
        "compare": ([], ["--json"], ["--csv", "a.csv"], ["--by", "lr"], ["--at", "best"]),
        "claims": ([], ["--markdown"], ["--csv", "a.csv"], ["--claims", "here"]),
        "paired": (
            *(
                ["--against", "fedavg"],
                ["--against", "x"],
                [],
                ["--against", "fedavg", "--at", "x"],
            ),
            ["--against", "fedavg", "--column", "bytes_total", "--csv", "a.csv"],
        ),
        "along": (["--along", "lr"], ["--along", "x"], []),
        "newcomers": ([], ["--out", "p.svg"]),
        **dict.fromkeys(("slices", "convergence"), ([], ["--x"])),
        "targets": (["--target", "0.1"], ["--target", "2"], []),
        "tradeoff": ([], ["--out", "p.svg"], ["--out", "p"]),
        "trajectory": ([], ["--x", "rounds"], ["--x", "bytes"], ["--target", "0.5"]),
    }[program]
    path = rng.choice(("here", "here", "here/a.h5", "lost", "."))
    there = {f"here/{name}": result(rng) for name in ("a.h5", "b.h5", "c.HDF5")}
    return Case(program, [path, *rng.choice(options)], there)


def _other(rng: random.Random) -> Case:
    names = (*config.names("data"), *TEXTS)
    return Case(
        "fedmpi",
        rng.choice(
            (
                ["data", "fetch", rng.choice(names), "--to", "here"],
                ["data", rng.choice(TEXTS)],
                ["doctor", rng.choice(("packages", "hdf5", "data", "x")), *_out(rng)],
                ["bench", rng.choice(("scale", "x", "codec", "round")), rng.choice(("-h", "--x"))],
                ["bench", "scale", rng.choice(TEXTS) + "x=1"],
                ["bench", rng.choice(TEXTS)],
                ["--version"],
            )
        ),
    )


def _noise(rng: random.Random) -> Case:
    commands = ("run", "sweep", "partition", "show", "list", "agent", "--help", "-x", "rn", "doctr")
    rest = (*TEXTS, "--out", "--ranks", "--lr=0.1", "-h", "lr=1", "a.toml", "lr", "method=topk")
    count = rng.choice((1, 2, 3))
    return Case("fedmpi", [rng.choice(commands), *(rng.choice(rest) for _ in range(count))])


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """A folder as the current one, and as everything that the environment names."""
    before, known = Path.cwd(), dict(os.environ)
    hooks = sys.excepthook, launch.start, files.USUAL, socket.socket.connect
    os.chdir(folder)
    for name in (*launch.RANK_VARIABLES, "FEDMPI_DATA", "SLURM_STEP_NUM_TASKS"):
        os.environ.pop(name, None)
    os.environ |= {"HOME": str(folder), "FEDMPI_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    files.USUAL = ("data",)

    def start(ranks: int, words: Sequence[str]) -> int:
        """One process does what ranks would."""
        return CliRunner().invoke(main, words).exit_code

    launch.start = start

    def offline(*_: Any) -> None:
        raise OSError("no network here")

    socket.socket.connect = offline  # type: ignore[method-assign]
    try:
        yield
    finally:
        sys.excepthook, launch.start, files.USUAL, connect = hooks
        socket.socket.connect = connect  # type: ignore[method-assign]
        os.chdir(before)
        os.environ.clear()
        os.environ |= known


def fault(given: Case) -> str:
    """What is wrong with what becomes of a case; nothing if all is well."""
    wanted = (0, 1, 2) if given.words[:1] == ["doctor"] else (0, 2)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "inside")
        (folder / "here").mkdir(parents=True)
        for name, content in given.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        with inside(folder):
            signal.signal(signal.SIGALRM, _late)
            signal.alarm(PATIENCE)
            try:
                found = CliRunner().invoke(PROGRAMS[given.program], given.words)
            finally:
                signal.alarm(0)
        if found.exc_info is not None and not isinstance(found.exception, SystemExit | None):
            return "".join(traceback.format_exception(*found.exc_info))
        if found.exit_code not in wanted:
            return f"exit code {found.exit_code}: {found.output}"
        if found.exit_code == 2 and not found.stderr.strip():
            return "refused without a word"
        beside = sorted(path.name for path in Path(place).iterdir())
        return "" if beside == ["inside"] else f"something beside the folder: {beside}"


def _late(*_: Any) -> None:
    raise TimeoutError(f"not done in {PATIENCE} s")


def run(count: int, seed: int = 0, first: int = 0) -> int:
    """Tries cases one after the other; prints faults, and how many there are."""
    faults = 0
    for number in range(first, first + count):
        given = case(seed, number)
        said = fault(given)
        if said:
            faults += 1
            print(f"--- {seed} {number}: {given.program} {given.words!r:.600}")
            print(said[-1500:], flush=True)
        if count > 1 and (number + 1) % 500 == 0:
            print(f"{number + 1 - first} tried, {faults} faults", flush=True)
    print(f"{count} tried, {faults} faults")
    return faults


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(1 if run(*map(int, sys.argv[1:])) else 0)
