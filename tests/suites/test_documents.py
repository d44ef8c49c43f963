"""README, CONTRIBUTING and docs: commands run, links lead somewhere, lists are whole.

The blocks of a document are executed in order, in a folder of its own. A shell parses the lines as
it would for a reader, but starts nothing: it records the commands, and the rules below run them in
this process. What would take long runs in a smaller form.
"""

import atexit
import functools
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from configparser import ConfigParser
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner

from fedmpi import config
from fedmpi.__main__ import main
from tests.small import refusal
from tests.test_costs import machine

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STYLE = re.compile(r"bash|python|text|(toml|csv) [\w.-]+")
"""What may stand behind the opening of a block: its language, and the file that it is."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
RECORDER = """
record() { printf '%s\\0' "$#" "$@" >> "$RECORD"; }
command_not_found_handle() { record "$@"; [[ " $* " != *" --count "* ]] || echo 3; }
source() { record source "$@"; }
"""
"""For a shell whose PATH is empty: every program is one that it does not find."""
SMALL = ("rounds=2", "local_steps=1", "evaluate.every=1")
"""Settings that make a run small."""
PICTURES = (
    *("data.name=synthetic", "data.shape=[3,16,16]", "data.samples=1500", "data.test_samples=20"),
    *("rounds=1", "local_steps=1", "batch=4"),
)
"""The same where a data set is named that may not be on this machine."""

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        style: what stands behind its opening.
        text: its lines.
    """

    style: str
    text: str


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, in their order."""
    return [Block(*found.groups()) for found in BLOCK.finditer(path.read_text())]


def lines(text: str) -> Iterator[str]:
    """A shell's lines, with those that are continued in one piece."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            yield line


def commands(line: str) -> list[list[str]]:
    """The words of each command that a shell would start for a line, innermost first.

    Programs are meant that lie in `.venv/bin`, with or without that folder.
    """
    record, nothing = Path("record").resolve(), Path("nothing").resolve()
    nothing.mkdir(exist_ok=True)
    record.write_bytes(b"")
    done = subprocess.run(
        ["/bin/bash", "-c", f"{RECORDER}\n{line.replace('.venv/bin/', '')}"],
        env={"PATH": str(nothing), "RECORD": str(record)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"a shell does not understand {line!r}: {done.stderr}"
    fields = record.read_bytes().decode().split("\0")[:-1]
    found = []
    while fields:
        count = int(fields[0])
        found.append(fields[1 : count + 1])
        del fields[: count + 1]
    return found


def invoke(command: click.Command, words: Sequence[str]) -> str:
    """Runs a command of click's in this process; returns what it printed."""
    found = CliRunner().invoke(command, list(words))
    problem = "" if isinstance(found.exception, SystemExit) else repr(found.exception)
    assert found.exit_code == 0, f"{shlex.join(words)}: {problem}\n{found.output}"
    return found.output


def parsed(*words: str) -> dict[str, object]:
    """The parameters that a command of `fedmpi` takes from words, which have to be valid."""
    command: click.Command = main
    rest = list(words)
    while isinstance(command, click.Group):
        below = command.get_command(click.Context(command), rest.pop(0)) if rest else None
        assert below is not None, f"fedmpi has no command {shlex.join(words)}"
        command = below
    try:
        return command.make_context("fedmpi", rest).params
    except click.UsageError as error:
        raise AssertionError(f"fedmpi {shlex.join(words)}: {error.format_message()}") from error


def smaller(words: Sequence[str], text: str = "") -> tuple[str, ...]:
    """Settings that make a run of these words small.

    Args:
        words: of the command line.
        text: more that says which data set is meant.
    """
    name = re.search(r'data\.name ?= ?"?([\w-]+)', " ".join([*words, text]))
    if name is not None and name[1] not in ("digits", "synthetic"):
        return PICTURES
    if re.search(r"\b(rediscover|warmup|since) ?=", " ".join([*words, text])):
        return SMALL[1:]  # they name rounds
    if "epochs" in " ".join([*words, text]):
        return *SMALL[::2], "epochs=1"  # each client has its own number of them
    if any(word.startswith("method.agent=") for word in words):
        return *SMALL, "method.tuned=0"
    return SMALL


def run(words: list[str]) -> None:
    """One rank instead of several, and few steps."""
    found = parsed(*words[1:])
    given = found["words"]
    assert isinstance(given, tuple)
    invoke(main, ["run", *given, *smaller(given), "--out", str(found["out"])])


def resume(words: list[str]) -> None:
    """What a command before it has finished is done already, and nothing is left to do."""
    invoke(main, words[1:])


def sweep(words: list[str]) -> None:
    """Lists are made as they are; of the runs a few: each method's first, and one that differs."""
    found = parsed(*words[1:])
    file, given, only = str(found["file"]), found["words"], found["only"]
    assert isinstance(given, tuple) and isinstance(only, tuple)
    size = ["--size", str(found["size"])] if found["size"] else []
    if Path(file).exists() and "[sizes.smoke]" in Path(file).read_text():
        smoke = ["--size", "smoke", "--only", "0", "--out", str(found["out"])]
        assert invoke(main, ["sweep", file, *given, *size, "--count"])
        invoke(main, ["sweep", file, *smoke])
        return
    if found["dry_run"] or found["count"]:
        assert invoke(main, words[1:])
        return
    if not only:
        runs: dict[str, list[int]] = {}
        for line in invoke(main, ["sweep", file, *size, "--dry-run"]).splitlines():
            method = re.search(r"method(?:\.name)?=([\w-]+)", line)
            assert method is not None, f"{file}: no method in {line!r}"
            runs.setdefault(method[1], []).append(int(line.split()[0]))
        only = (*(numbers[0] for numbers in runs.values()), max(runs.values(), key=len)[-1])
    less = smaller(given, Path(file).read_text())
    chosen = [word for number in only for word in ("--only", str(number))]
    command = ["sweep", file, *given, *less, *size, "--out", str(found["out"]), *chosen]
    # Several documents have the same sweep: what one of them made is found finished by the next.
    out, kept = Path(str(found["out"])), made(shlex.join(command), Path(file).read_text())
    is_new = not out.exists()
    if is_new:
        shutil.copytree(kept, out)
    invoke(main, command)
    if is_new:
        shutil.copytree(out, kept, dirs_exist_ok=True)


@functools.cache
def made(command: str, text: str) -> Path:
    """A folder for the results of a sweep, for as long as this process lives.

    Args:
        command: that makes them.
        text: of the sweep's file.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def real(words: list[str]) -> None:
    """As it is."""
    invoke(main, words[1:])


def doctor(words: list[str]) -> None:
    """Those checks alone that start no ranks; the options of all."""
    check = parsed(*words[1:])["check"]
    invoke(main, ["doctor", "data" if check == "data" else "packages"])


def fetch(words: list[str]) -> None:
    """Nothing is fetched, but there has to be such a set."""
    invoke(main, ["list", "data", str(parsed(*words[1:])["name"])])


def agent(words: list[str]) -> None:
    """One update, on a network that has hardly learnt."""
    found = parsed(*words[1:])
    given = found["words"]
    assert isinstance(given, tuple)
    invoke(main, ["agent", *given, *SMALL, "--episodes", "25", "--out", str(found["out"])])


def pretrain(words: list[str]) -> None:
    """A model that has hardly learnt."""
    found = parsed(*words[1:])
    given = found["words"]
    assert isinstance(given, tuple)
    invoke(main, ["pretrain", *given, *smaller(given), "--to", str(found["to"])])


def bench(words: list[str]) -> None:
    """Nothing is timed, but options have to be valid, and what they name has to be there.

    What writes a file for the commands that follow does so, with few and small messages.
    """
    found = parsed(*words[1:])
    if words[2] == "mpi" and found["out"]:
        small = ("--bytes", "4096", "--bytes", "65536", "--repeats", "1")
        invoke(main, [*words[1:], *small, "--clients", "1", "--sparsity", "0.9"])
        return
    if words[2] == "predict":  # of a made-up machine, in place of a measured one
        Path("model.json").write_text(replace(machine(), about={"per_node": 2}).text())
        rest = [word for word in words[1:] if not word.endswith(".h5")]
        invoke(main, [*rest, "--model", "model.json"])
        return
    module = importlib.import_module(f"fedmpi.bench.{words[2]}")
    for option, names in (("models", "MODELS"), ("names", "MODELS"), ("workloads", "WORKLOADS")):
        chosen = found.get(option) or ()
        assert isinstance(chosen, tuple)
        assert not set(chosen) - set(getattr(module, names, chosen)), f"{words}: no such case"


def analysis(words: list[str]) -> None:
    """As it is, on what the commands before it have left."""
    command = importlib.import_module(words[2]).main
    invoke(command, words[3:])
    if "--out" in words:
        assert Path(words[words.index("--out") + 1]).stat().st_size > 0


def suite(words: list[str]) -> None:
    """Nothing is tested, but options have to be valid, and files to be there."""
    for word in words[3:]:
        assert not word.startswith("tests") or (ROOT / word).exists(), f"{word} does not exist"
    if "parallel[match]" in words:  # a mark that mpi-pytest adds to the tests that it collects
        at = words.index("parallel[match]")
        assert words[at - 1] == "-m", f"wanted -m in front of parallel[match], found {words}"
        words = words[: at - 1] + words[at + 1 :]
    nothing = ("-p", "no:cacheprovider", "--noconftest", "--co", "--ignore-glob=*")
    done = subprocess.run(
        [sys.executable, *words[1:], *nothing],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 5), f"{words}: {done.stderr}"  # 5: nothing was collected


def make(words: list[str]) -> None:
    """Make says what it would do."""
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def pip(words: list[str]) -> None:
    """Nothing is installed, but versions have to be those of the Makefile and files to be there."""
    for option, value in pairwise(words):
        assert option not in ("-c", "-e") or (ROOT / value).exists(), f"{value} does not exist"
    for word in words:
        package, _, wanted = word.partition("==")
        assert not wanted or f"{package.upper()} ?= {wanted}" in re.sub(
            r" +", " ", (ROOT / "Makefile").read_text()
        ), f"{word} is not what the Makefile installs"


def launcher(words: list[str]) -> None:
    """What a launcher would start on several ranks runs on one."""
    rest = words[1:]
    while rest and rest[0].startswith("-"):
        if rest.pop(0) == "-n":
            assert int(rest.pop(0)) > 0
    perform(rest)


def hosts(words: list[str]) -> None:
    """What ranks on several hosts would do runs on one, without root."""
    assert (ROOT / words[1]).is_file(), f"{words[1]} does not exist"
    rest = words[2:]
    while rest[0].startswith("--"):
        option = rest.pop(0)
        assert f"\n#   {option} " in (ROOT / words[1]).read_text(), f"no option {option}"
        rest.pop(0)
    perform(rest)


def sbatch(words: list[str]) -> None:
    """What the script would start."""
    options = [word for word in words[1:] if word.startswith("--")]
    script, *rest = [word for word in words[1:] if word not in options]
    assert (ROOT / script).is_file(), f"{script} does not exist"
    if script == "jobs/fedmpi.sbatch":
        perform(["fedmpi", "run", *rest])
        return
    assert script == "jobs/sweep.sbatch" and len(rest) in (1, 2), f"unknown script: {words}"
    assert re.fullmatch(r"--array=0-\d+", options[0]), f"wanted --array=0-LAST, found {options}"
    perform(["fedmpi", "sweep", rest[0], "--dry-run"])


def nothing(words: list[str]) -> None:
    """It only prepares a shell."""


RULES: dict[str, Callable[[list[str]], None]] = {
    r"fedmpi run\b.*": run,
    r"fedmpi resume .*": resume,
    r"fedmpi sweep .*": sweep,
    r"fedmpi (list|show|partition|evaluate|export|watch)\b.*": real,
    r"fedmpi doctor\b.*": doctor,
    r"fedmpi data fetch .*": fetch,
    r"fedmpi agent\b.*": agent,
    r"fedmpi pretrain\b.*": pretrain,
    r"fedmpi bench \w+.*": bench,
    r"python -m analysis\.\w+ .*": analysis,
    r"python -m pytest\b.*": suite,
    r"make \w+.*": make,
    r"pip install .*": pip,
    r"(mpirun|mpiexec|srun) .*": launcher,
    r"sbatch .*": sbatch,
    r"sudo jobs/hosts\.sh .*": hosts,
    r"source activate": nothing,
}
"""What is done with a command, by the pattern of its line; a command has one rule."""


def perform(words: list[str]) -> None:
    """Executes a command by its rule."""
    line = shlex.join(words)
    found = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, line)]
    assert found, f"no rule in {Path(__file__).name} knows the command {line!r}: add one to RULES"
    assert len(found) == 1, f"several rules know the command {line!r}"
    found[0](words)


def execute(block: Block) -> None:
    """Executes a block, or writes the file that it is."""
    language, _, name = block.style.partition(" ")
    if name:
        Path(name).write_text(block.text)
    elif language == "bash":
        for line in lines(block.text):
            for words in commands(line):
                perform(words)
    elif language == "python" and block.text.startswith("class Config("):
        assert block.text in inspect.getsource(config.module("method", "fedrep"))
    elif language == "python":
        exec(compile(block.text, "block", "exec"), {})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder in which nothing is but the jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a run replaces it
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    return tmp_path


@every_document
def test_blocks_are_of_one_style(path: Path) -> None:
    styles = [block.style for block in blocks(path)]
    assert not [style for style in styles if not STYLE.fullmatch(style)]
    rest = BLOCK.sub("", path.read_text())
    assert not re.findall(r"^(```|~~~).*", rest, re.MULTILINE)
    indented = re.findall(r"\n\n {4,}\S.*", rest)
    assert not indented, f"wanted a fenced block, found indented lines: {indented}"


@every_document
def test_every_command_runs(path: Path, here: Path) -> None:
    for block in blocks(path):
        execute(block)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["fedmpi", "dance"], "no rule .* knows the command 'fedmpi dance'"),
        (["curl", "example.org"], "no rule"),
        (["fedmpi", "run", "--rank", "3"], "No such option"),
        (["fedmpi", "run", "method.name=topk", "method.sparsty=0.9"], "no setting 'sparsty'"),
        (["fedmpi", "sweep", "jobs/sweeps/none.toml"], "no such file"),
        (["fedmpi", "bench", "round", "--workload", "none"], "no such case"),
        (["fedmpi", "bench", "none"], "no command"),
        (["python", "-m", "analysis.compare", "results"], "exit|results"),
        (["python", "-m", "pytest", "tests/none.py"], "does not exist"),
        (["python", "-m", "pytest", "--none"], "unrecognized arguments"),
        (["make", "none"], "No rule to make target"),
        (["pip", "install", "torch==1.0"], "not what the Makefile installs"),
        (["sbatch", "jobs/none.sbatch"], "does not exist"),
        (["sudo", "jobs/hosts.sh", "--host", "2", "fedmpi", "run"], "no option --host"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_would_fail_is_found(words: list[str], problem: str, here: Path) -> None:
    with pytest.raises(AssertionError, match=problem):
        perform(words)


def test_a_shell_takes_lines_apart(here: Path) -> None:
    (here / "one.h5").touch()
    assert commands("fedmpi show *.h5  # a comment") == [["fedmpi", "show", "one.h5"]]
    assert commands('.venv/bin/python -m x "a b" && make y') == [
        ["python", "-m", "x", "a b"],
        ["make", "y"],
    ]
    inner, outer = commands("sbatch --array=0-$(( $(fedmpi sweep a --count) - 1 )) b")
    assert inner == ["fedmpi", "sweep", "a", "--count"]
    assert outer == ["sbatch", "--array=0-2", "b"]
    assert commands("# nothing") == []
    with pytest.raises(AssertionError, match="does not understand"):
        commands("fedmpi run )")


def slug(heading: str) -> str:
    """The anchor that a heading has."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@every_document
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", path.read_text())):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        other = path.parent / file if file else path
        assert other.exists(), f"{path.name}: {target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)", BLOCK.sub("", other.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path.name}: {target} is no heading there"


@every_document
def test_every_path_exists(path: Path) -> None:
    text = BLOCK.sub("", path.read_text())
    for name in re.findall(r"`((?:fedmpi|tests|analysis|jobs|docs)/[\w./]*)`", text):
        assert (ROOT / name).exists(), f"{path.name}: {name} does not exist"


def test_every_picture_and_page_is_linked() -> None:
    texts = [path.read_text() for path in DOCUMENTS]
    linked = {
        Path(target.partition("#")[0]).name for text in texts for target in LINK.findall(text)
    }
    pages = {path.name for path in (ROOT / "docs").rglob("*.*")}
    assert pages <= linked, f"nothing links to {pages - linked}"


def test_every_sweep_has_its_command() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    for path in (ROOT / "jobs" / "sweeps").rglob("*.toml"):
        assert f"fedmpi sweep {path.relative_to(ROOT)} " in text


def rows(path: Path, heading: str) -> list[str]:
    """The name in front of each row of the tables whose first heading is given."""
    tables = re.findall(
        rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\|\n((?:\|.*\n)*)", path.read_text(), re.MULTILINE
    )
    return [name for rest in tables for name in re.findall(r"^\| `([\w-]+)`", rest, re.MULTILINE)]


@pytest.mark.parametrize(
    ("table", "page"),
    [
        ("method", "methods"),
        ("model", "methods"),
        ("data", "data"),
        ("partition", "data"),
        ("exchange", "exchanges"),
    ],
)
def test_tables_are_whole(table: str, page: str) -> None:
    found = rows(ROOT / "docs" / f"{page}.md", f"`{table}.name`")
    assert sorted(found) == config.names(table)


@pytest.mark.parametrize(
    ("table", "name"), [(config.Settings, "feedback"), (config.Codec, "positions")]
)
def test_tables_of_choices_are_whole(table: type[config.Table], name: str) -> None:
    heading = f"`{name}`" if table is config.Settings else f"`codec.{name}`"
    found = rows(ROOT / "docs" / "methods.md", heading)
    assert sorted(found) == sorted(get_args(table.model_fields[name].annotation))


def test_lists_of_methods_are_whole() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("\n## Methods\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][1:]
    assert sorted(re.findall(r"`([\w-]+)`", "".join(cells))) == config.names("method")
    text = (ROOT / "docs" / "methods.md").read_text()
    assert sorted(re.findall(r"^\* `([\w-]+)`: ", text, re.MULTILINE)) == config.names("method")


def test_the_citation_has_the_version_and_the_licence() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {setup['metadata']['version']}\n" in text
    assert f"\nlicense: {setup['metadata']['license']}\n" in text


COMPOSED = {
    "`aggregation.rule`, `clip`": ("aggregation.rule=median",),
    "`aggregation.server`": ("aggregation.server=adam",),
    "`proximal`": ("proximal=0.1",),
    "`control`": ("control=mean",),
    "`devices.deadline`": ("devices.deadline=9", "devices.tiers=[{gflops=1.0}]"),
    "`evaluate.link`": ("evaluate.link=link",),
    "`evaluate.theory`": ("evaluate.theory=true",),
    "`codec.down`": ("codec.down.values=f2",),
    "`codec.values`": ("codec.values=uniform",),
}


def test_the_table_of_compositions_is_what_is_refused() -> None:
    """A letter for each setting says why not; every method has a line."""
    text = (ROOT / "docs" / "methods.md").read_text()
    start = text.index(f"| method | {' | '.join(COMPOSED)} |")
    lines = text[start : text.index("\n\n", start)].splitlines()[2:]
    rows = {cells[0].strip("`"): cells[1:] for cells in (line[2:-2].split(" | ") for line in lines)}
    assert sorted(rows) == config.names("method")
    for name, cells in rows.items():
        refused = [refusal(f"method.name={name}", "rounds=12", *w) for w in COMPOSED.values()]
        wanted = [
            "yes" if not said else letter for said, letter in zip(refused, "abcdefghi", strict=True)
        ]
        assert cells == wanted, name
