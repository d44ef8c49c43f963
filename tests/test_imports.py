"""Who may know whom, held by reading every import statement.

Torch stops at `codec`, MPI starts at `wire`, HDF5 at `record`. A module that is not in the table
fails the test: whoever adds one says what it may know.
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

ROOM = Path(__file__).parent.parent

LAW = {
    # module: (packages, modules of fedmpi); a folder's own module stands before those in it
    "__init__": ("", ""),
    "errors": ("", ""),
    "clock": ("numpy", ""),
    "streams": ("numpy", ""),
    "codec": ("numpy", ""),
    "tables": ("numpy", "codec"),
    "config": ("pydantic", "errors"),
    "memory": ("", ""),
    "provenance": ("", ""),
    "launch": ("", "config errors provenance"),
    "wire": ("mpi4py numpy", "clock"),
    "record": ("h5py numpy", "errors"),
    "files": ("", "errors"),
    "data": ("numpy", "files"),
    "layouts": ("", ""),
    "layouts/*": ("PIL numpy", "data files layouts provenance"),
    "fetch": ("rich", "config files"),
    "cache": ("filelock numpy platformdirs", "config data files layouts"),
    "data/*": ("numpy pydantic sklearn", "cache config data files layouts streams"),
    "partitions": ("numpy", "config"),
    "partitions/*": ("numpy pydantic", "config heterogeneity partitions"),
    "heterogeneity": ("numpy", ""),
    "trace": ("numpy", "config"),
    "population": ("numpy", "config data heterogeneity partitions streams trace"),
    "skew": ("numpy", "config data population streams"),
    "layers": ("torch", "config"),
    "recurrent": ("torch", ""),
    "devices": ("numpy", "config population streams"),
    "models": ("torch", "config layers streams"),
    "models/*": ("pydantic torch", "config layers recurrent"),
    "flat": ("torch", "config layers"),
    "submodels": ("", ""),
    "submodels/channels": ("torch", "flat layers recurrent sparse"),
    "submodels/topology": ("torch", "recurrent"),
    "submodels/slicing": ("torch", "flat layers models submodels"),
    "burden": ("torch", "config devices flat"),
    "submodels/pruning": ("numpy torch", "flat"),
    "submodels/powered": ("torch", "recurrent"),
    "submodels/narrow": ("numpy torch", "config flat layers recurrent"),
    "sparse": ("numpy torch", "codec"),
    "quantized": ("numpy torch", "codec config sparse"),
    "submodels/compress": ("torch", "codec flat recurrent sparse submodels"),
    "store": ("torch", "config errors"),
    "feedback": ("torch", "config store"),
    "distance": ("numpy pydantic torch", "config"),
    "variates": ("torch", "config store"),
    "aggregation": ("torch", "codec config methods streams"),
    "feed": ("numpy torch", "config data population skew streams"),
    "rows": ("torch", "config feed flat layers recurrent"),
    "stacked": ("numpy torch", "config feed flat layers rows"),
    "descent": ("torch", "config rows"),
    "submodels/nested": ("torch", "config feed flat rows"),
    "train": (
        "numpy torch",
        "config data descent feed flat population rows stacked store submodels",
    ),
    "cuts": ("torch", "codec config flat"),
    "lockstep": ("torch", "codec descent flat rows train"),
    "sides": ("torch", "codec cuts feed lockstep sparse train"),
    "dropping": ("pydantic torch", "codec cuts sides sparse streams"),
    "submodels/taylor": ("torch", "config devices flat sparse store submodels"),
    "submodels/narrowed": ("torch", "config descent feed flat lockstep rows submodels"),
    "links": ("numpy torch", "codec cuts sides sparse streams"),
    "submodels/agent": ("numpy torch", "burden config flat submodels"),
    "submodels/selection": ("numpy pydantic torch", "config store streams submodels train"),
    "methods/*": (
        "numpy pydantic torch",
        "burden codec config cuts devices distance dropping feed feedback flat links lockstep "
        "methods quantized sides sparse store streams submodels train variates",
    ),
    "measure": (
        "numpy torch",
        "burden clock codec config data devices methods population tables train wire",
    ),
    "post": ("numpy", "clock codec measure population wire"),
    "engine": (
        "torch",
        "burden clock codec config devices flat hardware lockstep measure methods models "
        "population post train wire",
    ),
    "hardware": ("torch", "config provenance rows wire"),
    "pretrain": ("numpy torch", "config flat models population streams submodels train"),
    "sweep": ("", "config errors launch record"),
    "picture": ("matplotlib numpy", "config heterogeneity"),
    "survey": ("numpy rich", "config data heterogeneity partitions picture population show skew"),
    "show": ("numpy rich", "config errors files models record tables"),
    # It examines packages, so it imports them, each where it is examined.
    "doctor": ("h5py rich torch", "cache config errors files launch provenance"),
    "bench": ("click", "config"),
    "bench/*": (
        "click numpy torch",
        "bench burden clock config engine flat launch memory methods models submodels train wire",
    ),
    # Where MPI and HDF5 meet, as modules of ours.
    "job": (
        "numpy rich",
        "clock config engine errors heterogeneity launch memory provenance record show sweep "
        "tables wire",
    ),
    "__main__": (
        "click",
        "bench config doctor engine errors fetch job launch pretrain record show survey sweep",
    ),
}

HEAVY = ("torch", "mpi4py", "h5py", "pandas", "matplotlib", "sklearn")


def name(path: Path, folder: Path) -> str:
    """`engine`, `methods/fedavg`; `data` for `data/__init__.py`."""
    found = path.relative_to(folder).with_suffix("").as_posix()
    return found.removesuffix("/__init__")


PACKAGE = ROOM / "fedmpi"
FILES = {name(path, PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}

every_module = pytest.mark.parametrize("module", FILES)


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


def entry(module: str) -> str:
    """The line of the table for a module: its own, else that of its folder."""
    lines = [line for line in LAW if line == module or fnmatchcase(module, line)]
    assert lines, f"fedmpi/{module}.py is not in the table; what may it know?"
    return min(lines, key=lambda line: line != module)


@every_module
def test_modules_know_only_whom_they_may(module: str) -> None:
    may_packages, may_ours = (set(words.split()) for words in LAW[entry(module)])
    assert packages(FILES[module]) <= may_packages
    assert {other.partition("/")[0] for other in ours(FILES[module])} <= may_ours


def test_no_line_of_the_table_is_stale() -> None:
    used = {entry(module) for module in FILES}
    assert used == set(LAW)
    rooms = {module.partition("/")[0] for module in FILES}
    assert {word for _, words in LAW.values() for word in words.split()} <= rooms


def test_the_map_names_every_room() -> None:
    rooms = (fedmpi.__doc__ or "").partition("The rooms")[2]
    named = {word.rstrip("/") for word in re.findall(r"[\w/]+", rooms)}
    assert {module.partition("/")[0] for module in FILES} - {"__init__"} <= named


def test_one_module_knows_mpi_and_one_hdf5() -> None:
    for package, known in (("mpi4py", {"wire"}), ("h5py", {"record", "doctor"})):
        assert {line for line, (words, _) in LAW.items() if package in words.split()} == known
        assert {m for m, path in FILES.items() if package in packages(path)} == known


def test_methods_meet_only_in_messages() -> None:
    """Neither ranks, files, clocks nor the round."""
    knows = set(LAW["methods/*"][1].split())
    assert not knows & {"wire", "record", "clock", "engine", "measure", "job", "population"}


def test_torch_stops_at_codec_and_mpi_starts_at_wire() -> None:
    for module in ("codec", "wire", "record", "tables", "config", "population"):
        assert "torch" not in LAW[module][0]


def test_there_are_no_circles() -> None:
    graph = {module: ours(path) - {module} for module, path in FILES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("codec") < order.index("engine") < order.index("__main__")


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
        ("launch", HEAVY),
        ("codec", HEAVY),
        ("sweep", ("torch", "mpi4py")),
        ("survey", ("torch", "mpi4py", "matplotlib")),
        ("record", ("torch", "mpi4py")),
        ("data.tiny_imagenet", ("torch", "mpi4py", "PIL")),
        ("fetch", HEAVY),
        ("wire", ("torch", "h5py")),
        ("methods.fedavg", ("mpi4py", "h5py", "fedmpi.wire", "fedmpi.engine", "fedmpi.clock")),
        ("engine", ("h5py", "fedmpi.record")),
    ],
)
def test_what_is_known_through_others(module: str, never: tuple[str, ...]) -> None:
    """The table speaks of statements; this of what is really loaded in the end."""
    program = f"import sys, fedmpi.{module}; print([m for m in {never!r} if m in sys.modules])"
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOM, capture_output=True, text=True, timeout=120)
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
