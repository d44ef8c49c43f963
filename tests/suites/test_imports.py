"""Who may know whom, held by reading every import statement.

Rooms stand on floors, and know only what is below them, and themselves. Torch stops at `codec`, MPI
starts at `wire`, HDF5 at `record`. A room that is not in the table fails the test: whoever adds one
says where it stands. A module in a room there is needs no line.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fedmpi
from tests import PATIENCE

ROOM = Path(__file__).parents[2]

LAW = {
    # room: (floor, packages); rooms on the same floor do not know each other
    "errors": (-1, ""),
    "draft": (0, ""),
    "inputs": (0, "numpy"),
    "weights": (1, "h5py numpy"),
    "streams": (0, "numpy"),
    "units": (0, ""),
    "turns": (0, ""),
    "provenance": (0, ""),
    "config": (1, "pydantic"),
    "words": (2, ""),
    "loading": (3, "pydantic"),
    "costs": (3, "numpy platformdirs"),
    "messages": (2, "mpi4py numba numpy platformdirs torch zstandard"),
    "partitions": (2, "numpy pydantic"),
    "networks": (4, "numpy torch"),
    "data": (4, "PIL filelock numpy platformdirs rich"),
    "models": (5, "pydantic torch"),
    "datasets": (5, "numpy pydantic tokenizers"),
    "clients": (5, "numpy torch"),
    "training": (6, "numpy pydantic torch"),
    "split": (7, "numpy torch"),
    "results": (7, "h5py numpy torch xxhash"),
    "methods": (8, "numpy pydantic torch"),
    "exchanges": (8, "numpy"),
    "engine": (9, "numpy torch"),
    "runs": (10, "numpy rich torch"),
    "terminal": (11, "h5py matplotlib numpy rich torch"),
    "bench": (11, "click numpy pfl torch"),
    "__main__": (12, "click"),
    "__init__": (12, "torch"),
}

ALONE = {
    # package: the modules of a room that may know it, where not all of them may
    "mpi4py": ("messages/wire",),
    "numba": ("messages/kernels",),
    "zstandard": ("messages/lossless",),
    # The doctor examines packages, so it imports them, each where it is examined. A model is read
    # from a result far below `record`, which alone writes results.
    "h5py": ("results/record", "terminal/doctor", "weights"),
    "matplotlib": ("terminal/picture",),
}

TORCHLESS = (
    "messages/codec",
    "messages/lossless",
    "messages/wire",
    "messages/clock",
    "results/record",
    "results/tables",
    "results/checkpoint",
    "results/keeper",
)
"""Modules without torch in rooms that have it; of the clients it is `burden` alone that has it."""

HEAVY = ("torch", "mpi4py", "h5py", "pandas", "matplotlib", "sklearn", "numba", "zstandard")


def name(path: Path, folder: Path) -> str:
    """`engine`, `methods/fedavg`; `data` for `data/__init__.py`."""
    found = path.relative_to(folder).with_suffix("").as_posix()
    return found.removesuffix("/__init__")


PACKAGE = ROOM / "fedmpi"
FILES = {name(path, PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}

every_module = pytest.mark.parametrize("module", FILES)


def room(module: str) -> str:
    """Where a module is: its folder, or itself if it lies in none."""
    return module.partition("/")[0]


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports, anywhere in it, as ("torch",), ("fedmpi", "config") and the like."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                yield (*node.module.split("."), alias.name)


def ours(path: Path) -> set[str]:
    """The modules of fedmpi that a file imports, as in `FILES`."""
    found = set()
    for package, *steps in imports(path):
        if package != "fedmpi":
            continue
        # The last step may be a name in a module.
        both = ("/".join(steps), "/".join(steps[:-1]))
        module = next((module for module in both if module in FILES), None)
        assert module is not None, f"{path} imports fedmpi.{'.'.join(steps)}, which is no module"
        found.add(module)
    return found


def packages(path: Path) -> set[str]:
    """What a file imports that is neither ours nor the standard library's."""
    return {first for first, *_ in imports(path)} - {"fedmpi"} - sys.stdlib_module_names


@every_module
def test_rooms_know_only_what_is_below_them(module: str) -> None:
    own = room(module)
    assert own in LAW, f"fedmpi/{own} is on no floor; what may it know?"
    floor, known = LAW[own]
    others = {other for other in ours(FILES[module]) if room(other) != own}
    assert {other for other in others if LAW[room(other)][0] >= floor} == set()
    assert packages(FILES[module]) <= set(known.split())


def test_no_line_of_the_table_is_stale() -> None:
    assert {room(module) for module in FILES} == set(LAW)
    for own, (_, known) in LAW.items():
        found = set().union(*(packages(FILES[m]) for m in FILES if room(m) == own))
        assert found == set(known.split()), own
    assert set(TORCHLESS) <= set(FILES)


def test_the_map_names_every_room() -> None:
    rooms = (fedmpi.__doc__ or "").partition("The rooms")[2]
    named = {word.rstrip("/") for word in re.findall(r"[\w/]+", rooms)}
    assert {room(module) for module in FILES} - {"__init__"} <= named


def test_the_map_names_every_module_of_the_machinery() -> None:
    """Those of an axis are many, and need not be known one by one."""
    rooms = (fedmpi.__doc__ or "").partition("The rooms")[2]
    named = set(re.findall(r"\w+", rooms))
    axes = ("methods", "models", "datasets", "partitions", "exchanges", "bench", "data/layouts")
    plain = [module for module in FILES if not module.startswith(axes)]
    assert {module.rpartition("/")[2] for module in plain} - {"__init__"} <= named


@pytest.mark.parametrize("package", ALONE)
def test_one_module_knows_mpi_and_one_writes_hdf5(package: str) -> None:
    assert {m for m, path in FILES.items() if package in packages(path)} == set(ALONE[package])


def test_methods_meet_only_in_messages() -> None:
    """Neither ranks, files, clocks nor the round; but what trains an agent beforehand is a run."""
    never = (
        "messages/wire",
        "messages/clock",
        "clients/population",
        "data",
        "datasets/*",
        "results/*",
    )
    for module in (m for m in FILES if room(m) == "methods" and not m.endswith("/pretrain")):
        for other in ours(FILES[module]):
            assert not any(fnmatchcase(other, pattern) for pattern in never), (module, other)


def test_torch_stops_at_codec_and_mpi_starts_at_wire() -> None:
    clients = {m for m in FILES if room(m) == "clients"} - {"clients/burden"}
    kernels = {m for m in FILES if m.startswith("messages/kernels")}
    for module in (*TORCHLESS, *sorted(clients | kernels)):
        assert "torch" not in packages(FILES[module]), module


def test_there_are_no_circles() -> None:
    graph = {module: ours(path) - {module} for module, path in FILES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("messages/codec") < order.index("engine") < order.index("__main__")


def test_parts_of_a_folder_do_not_know_what_it_is_made_of() -> None:
    """A method that is a folder knows its parts; one of them that knew it would be a circle."""
    for module, path in FILES.items():
        folder, _, _ = module.rpartition("/")
        if folder.startswith("methods/"):
            known = {other for other in ours(path) if room(other) == "methods"}
            assert {other.partition("/")[2].partition("/")[0] for other in known} <= {
                folder.removeprefix("methods/")
            }
            assert folder not in known, module


def test_only_config_imports_by_name() -> None:
    """What is imported by its name escapes this test; it happens in one place."""
    calls = {"import_module", "__import__", "exec", "eval"}
    found = {
        module
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", None)) in calls
    }
    assert found == {"config"}


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("__main__", HEAVY),
        ("config", HEAVY),
        ("loading", HEAVY),
        ("terminal.catalogue", ("torch", "mpi4py", "pandas", "matplotlib")),
        ("runs.launch", HEAVY),
        ("messages.codec", HEAVY),
        ("runs.sweep", ("torch", "mpi4py")),
        ("terminal.survey", ("torch", "mpi4py", "matplotlib")),
        ("results.record", ("torch", "mpi4py")),
        ("datasets.tiny_imagenet", ("torch", "mpi4py", "PIL")),
        ("data.fetch", HEAVY),
        ("messages.wire", ("torch", "h5py", "numba")),
        (
            "methods.fedavg",
            ("mpi4py", "h5py", "fedmpi.messages.wire", "fedmpi.messages.clock", "fedmpi.engine"),
        ),
        ("engine", ("h5py", "fedmpi.results.record")),
    ],
)
def test_what_is_known_through_others(module: str, never: tuple[str, ...]) -> None:
    """The table speaks of statements; this of what is really loaded in the end."""
    program = f"import sys, fedmpi.{module}; print([m for m in {never!r} if m in sys.modules])"
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOM, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_results_outlive_the_code() -> None:
    """The analysis reads files and knows nothing of those who wrote them."""
    files = list((ROOM / "analysis").rglob("*.py"))
    allowed = {"analysis", "click", "h5py", "matplotlib", "numpy", "pandas", "rich"}
    for path in files:
        assert {first for first, *_ in imports(path)} <= allowed | sys.stdlib_module_names, path


def test_login_nodes_have_the_standard_library_only() -> None:
    for path in (ROOM / "jobs").rglob("*.py"):
        assert {first for first, *_ in imports(path)} <= {"jobs"} | sys.stdlib_module_names, path
