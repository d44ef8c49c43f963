"""Lists of modules and of their settings: `fedmpi list`."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from inspect import cleandoc
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from rich.console import Console, Group, RenderableType
from rich.text import Text

from fedmpi import config
from fedmpi.config import LARGEST, MOST, ConfigError, Table
from fedmpi.data.files import DataError
from fedmpi.terminal.style import console, grid, prose


class Setting(NamedTuple):
    """A setting in words.

    Attributes:
        path: as it is written before the `=`.
        kind: its type and range.
        default: as it is written behind the `=`; "absent" if there is none.
        text: what it does.
    """

    path: str
    kind: str
    default: str
    text: str


KIND = 28
"""Longest type that others are aligned with."""
INDENT = "    "
EXAMPLES = {
    "1x28x28": ((1, 28, 28), 10, "numbers"),
    "3x32x32": ((3, 32, 32), 10, "numbers"),
    "6x128": ((6, 128), 10, "numbers"),
    "text": ((80,), 80, "symbols"),
}
"""Samples for which a model's parameters are counted: shape, classes, and what they are made of."""
CONVENTION = (
    "FLOPs are those of one sample's way forward: of convolutions and matrix products, a "
    "multiplication and an addition being two. Floats are what a sample sends at the cut."
)


def show_list(what: str, name: str | None) -> None:
    """Prints the modules of a folder, or one of them, or the settings.

    Args:
        what: a table of `config.AXES` or its folder, or "settings".
        name: a module's name; of the settings, a table or a single setting.

    Raises:
        ConfigError: if there is nothing of that name.
    """
    out = console()
    if what == "settings":
        for title, rows in _chosen(name):
            out.print(Text(title, "bold"), *_settings(rows, out), "", sep="\n")
        return
    table = next(table for table, (folder, _) in config.AXES.items() if what in (table, folder))
    if name is not None:
        _known(f"no {table}", name, config.names(table))
        _show_one(out, table, name)
        return
    entries = grid("", "", left=(0, 1))
    entries.show_header = False
    entries.columns[1].no_wrap, entries.columns[1].overflow = False, "fold"
    for entry in config.names(table):
        entries.add_row(Text(entry, "bold"), _brief(table, entry))
    out.print(entries)
    out.print(Text(f"\nOne of them, with its settings: fedmpi list {what} NAME", "dim"))


def _show_one(out: Console, table: str, name: str) -> None:
    """All that a module says of itself, and all of its settings."""
    out.print(Text.assemble((name, "bold"), (_is_default(table, name), "dim")))
    for text in paragraphs(config.module(table, name)):
        out.print(prose(text), "", sep="\n")
    facts = list(_facts(table, name, whole=True))
    if facts:
        out.print(*map(prose, facts), "", sep="\n")
    if table == "model":
        out.print(*_cuts(name), "", sep="\n")
    rows = list(_own(table, name, common=True))
    paper = config.paper_of(name) if table == "method" else {}
    if rows:
        said = {path: config.written(value) for path, value in paper.items()}
        out.print(Text("settings", "bold"), *_settings(rows, out, said), sep="\n")
    else:
        out.print("It has no settings.")
    if table == "method":
        _values(out, "The name stands for", config.module(table, name).Config.implies)
        others = {path: v for path, v in paper.items() if not path.startswith("method.")}
        _values(out, f"paper:{name} takes the values of the paper, and of its runs", others)


def _values(out: Console, title: str, values: Mapping[str, Any]) -> None:
    """Words that a method's name, or its paper, stands for, below a title."""
    if values:
        given = "  ".join(f"{path}={config.written(value)}" for path, value in values.items())
        out.print("", prose(f"{title}: {given}"), sep="\n")


def _is_default(table: str, name: str) -> str:
    return " (the default)" if name == config.AXES[table][1] else ""


def _brief(table: str, name: str) -> Text:
    """Yields the lines below a module's name in a list."""
    first, *_ = paragraphs(config.module(table, name))
    facts = "".join(f"\n{fact}" for fact in _facts(table, name))
    return Text.assemble(prose(first), (_is_default(table, name), "dim"), (facts, "dim"))


def _facts(table: str, name: str, whole: bool = False) -> Iterator[str]:
    """Yields facts of a module beyond its docstring and settings."""
    if table == "data":
        yield _whereabouts(name, whole)
    if table == "model":
        yield from _anatomy(name)


def _whereabouts(name: str, whole: bool) -> str:
    try:
        folder = config.module("data", name).where(config.schema("data", name)())
    except DataError as error:
        return str(error) if whole else f"not here; fedmpi list data {name} says how to get it"
    return "needs no files" if folder is None else f"found in {folder}"


def _anatomy(name: str) -> Iterator[str]:
    """A model's split points and sizes with its default settings."""
    sizes, cuts, classes = [], [], 0
    for samples, parts in _fronts(name):
        cuts, classes = [part.name for part in parts[:-1]], parts[-1].floats
        sizes.append(f"{parts[-1].parameters:,} for {samples} samples")
    yield f"split points: {', '.join(cuts) or 'none'} (with the default settings)"
    yield f"parameters: {', '.join(sizes)} of {classes} classes"


def _cuts(name: str) -> Iterator[RenderableType]:
    """For each shape of samples, what a model has in front of its split points, and in all."""
    for samples, parts in _fronts(name):
        table = grid("in front of", "parameters", "FLOPs", "floats there")
        for part in parts:
            numbers = (f"{count:,}" for count in (part.parameters, part.flops, part.floats))
            is_whole = part is parts[-1]
            table.add_row(
                "the output" if is_whole else f"cut {part.name}",
                *numbers,
                style="bold" if is_whole else "",
            )
        yield Group(Text(f"a {samples} sample", "bold"), table, "")
    yield Text(CONVENTION, "dim")


def _fronts(name: str) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yields the `EXAMPLES` that fit a model, each with the sizes in front of its cuts."""
    # Here, because torch takes a second that other lists should not cost.
    from fedmpi.models import build
    from fedmpi.networks.flat import Flat
    from fedmpi.networks.flops import forward

    settings: Any = config.schema("model", name)()
    for samples, (shape, classes, kind) in EXAMPLES.items():
        with suppress(ConfigError):
            network = build(settings, shape, classes, 1, kind)
            yield samples, forward(Flat(network), shape).fronts


def _own(table: str, name: str, common: bool = False) -> Iterator[Setting]:
    """A module's settings under their paths; with those of all modules of its table if `common`."""
    shared = {"name"} if common else _base(table).model_fields.keys()
    kind = config.schema(table, name)
    for row in describe(kind, f"{table}."):
        own = row.path.removeprefix(f"{table}.")
        if own not in shared and not _is_table(kind.model_fields[own]):
            yield row
    for _, path, below in inner(kind, table) if common else ():
        yield from describe(below, f"{path}.")


def _base(table: str) -> Any:
    return config.Settings.model_fields[table].annotation


def _chosen(name: str | None) -> list[tuple[str, Sequence[Setting]]]:
    """All settings by table, or those whose path is `name` or begins with it."""
    every = list(_tree())
    if name is None:
        return every
    paths = dict.fromkeys(row.path for _, rows in every for row in rows)
    table = name.partition(".")[0]
    if "." in name and _is_table(config.Settings.model_fields.get(table)):
        possible = [path for path in paths if path.startswith(f"{table}.")]
    else:
        possible = list(config.Settings.model_fields)
    _known("no setting", name, possible)
    chosen = {t: [r for r in rows if f"{r.path}.".startswith(f"{name}.")] for t, rows in every}
    return [(title, rows) for title, rows in chosen.items() if rows]


def _tree() -> Iterator[tuple[str, Sequence[Setting]]]:
    """The settings of a run, table by table."""
    fields = config.Settings.model_fields
    plain = (row for row in describe(config.Settings) if not _is_table(fields[row.path]))
    yield "settings of every run", list(plain)
    for table in (name for name, field in fields.items() if _is_table(field)):
        base = _base(table)
        rows = describe(base, f"{table}.")
        if table not in config.AXES:
            yield f"[{table}]", rows
            yield from _below(base, table)
            continue
        names, default = config.names(table), config.AXES[table][1]
        choice = f"{cleandoc(base.__doc__ or '').splitlines()[0]} There are: {', '.join(names)}."
        yield f"[{table}]", [Setting(f"{table}.name", "str", default, choice), *rows[1:]]
        yield from _below(base, table)
        for name in names:
            settings = list(_own(table, name))
            if settings:
                yield f"[{table}] with name = {name}", settings


def _below(kind: type[Table], path: str) -> Iterator[tuple[str, Sequence[Setting]]]:
    """The settings of the tables inside of the table at that path."""
    for title, below, one in inner(kind, path):
        rows = describe(one, f"{below}.")
        yield title, [row for row in rows if row.path != f"{below}.kind"]


def _is_table(field: Any) -> bool:
    return config.is_table(getattr(field, "annotation", None))


def _settings(
    rows: Iterable[Setting], out: Console, paper: Mapping[str, str] | None = None
) -> Iterator[Text]:
    """Each setting on a line, and what it does below; in columns unless a line is too long.

    Args:
        rows: the settings.
        out: says how wide a line may be.
        paper: the values of a paper, by path; they have a column of their own.
    """
    rows, paper = list(rows), {} if paper is None else dict(paper)
    heads = Setting("setting", "type", "default", "")
    if any(row.path in paper for row in rows):
        paper[heads.path] = "paper"
    every = [heads, *rows]
    places = [
        max(len(row.path) for row in every),
        max(len(row.kind) for row in every if len(row.kind) <= KIND),
        max(len(row.default) for row in every),
    ]
    for row in every:
        words, own = [*row[:3], paper.get(row.path, "")], ""
        padded = [word.ljust(place) for word, place in zip(words, places, strict=False)]
        if len("  ".join([*padded, words[3]]).rstrip()) <= out.width:
            words = [*padded, words[3]]
        elif len("  ".join(words)) > out.width:
            words[3], own = "", words[3]
        colours = zip(words, ("cyan", "", "green", "green"), strict=True)
        line = Text("  ").join(Text(*both) for both in colours)
        line.rstrip()
        if row is heads:
            yield Text(line.plain, "dim")
            continue
        yield line
        if own:
            yield Text.assemble(INDENT, "paper: ", (own, "green"))
        for part in prose(row.text).wrap(out, out.width - len(INDENT)):
            part.rstrip()
            yield Text(INDENT) + part


def _known(what: str, name: str, names: Sequence[str]) -> None:
    """Refuses a name that is not in `names`."""
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        guess = f" (did you mean '{close[0]}'?)" if close else ""
        raise ConfigError(f"{what} '{name}'{guess}; there are: {', '.join(names)}")


def paragraphs(module: ModuleType) -> list[str]:
    """The paragraphs of a module's docstring, each on one line but for its remarks."""
    texts = cleandoc(module.__doc__ or "").split("\n\n")
    return [
        re.sub(r"\n(?!Differs from|Reconstruction|Values of|[ -])", " ", text) for text in texts
    ]


def describe(kind: type[Table], prefix: str = "") -> list[Setting]:
    """The settings of a table, their paths beginning with a prefix."""
    rows = []
    for name, field in kind.model_fields.items():
        text = _type(field.annotation, field.metadata)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, Table):
            default = default.model_dump(exclude_defaults=True)
        about = " ".join((field.description or "").split())
        if config.MACHINE in field.metadata:
            about += " It belongs to the machine and is no part of a run's identity."
        rows.append(Setting(f"{prefix}{name}", text, config.written(default), about))
    return rows


def inner(kind: type[Table], path: str) -> Iterator[tuple[str, str, type[Table]]]:
    """The tables inside of the table at that path, at any depth: heading, path and settings."""
    for name, field in kind.model_fields.items():
        below, (item, *_) = f"{path}.{name}", (*get_args(field.annotation), None)
        if get_origin(field.annotation) is tuple and config.is_table(item):
            yield f"[[{below}]]", below, item
            yield from inner(item, below)
        if config.is_table(field.annotation):
            yield f"[{below}]", below, field.annotation  # type: ignore[misc]
        for choice, table in config.kinds(field.annotation).items():
            yield f"[{below}] with kind = {choice}", below, table


def _runs(values: Sequence[Any]) -> list[str]:
    """Values as text; whole numbers, three or more of which follow each other, as a range."""
    found: list[list[Any]] = []
    for value in values:
        if found and type(value) is int and value - 1 == found[-1][-1]:
            found[-1].append(value)
        else:
            found.append([value])
    ranges = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run) for run in found]
    return [text for texts in ranges for text in texts]


def _type(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """A setting's type and range, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(_runs(inner))
    if origin is Annotated:
        # A bound stands there as it is, or inside of what pydantic's `Field` gives.
        return _type(inner[0], [b for one in inner[1:] for b in getattr(one, "metadata", [one])])
    if config.kinds(annotation):
        return f"table: {' | '.join(config.kinds(annotation))}"
    if origin in (Union, UnionType):
        return " | ".join(_type(one, bounds) for one in inner if one is not type(None))
    if origin is dict:
        return f"table of {_type(inner[1])}"
    if origin is tuple:
        if config.is_table(inner[0]):
            return "list of tables"
        length = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"list of {length}{_type(inner[0])}"
    text = getattr(annotation, "__name__", str(annotation))
    limits = {name: getattr(b, name) for b in bounds for name in SIGNS if hasattr(b, name)}
    if limits.get("le") in (MOST, LARGEST):  # what hardly anybody reaches is no news
        del limits["le"]
    low = next((name for name in ("gt", "ge") if name in limits), None)
    high = next((name for name in ("lt", "le") if name in limits), None)
    if low and high:
        return f"{limits[low]} {SIGNS[low].replace('>', '<')} {text} {SIGNS[high]} {limits[high]}"
    return " ".join([text, *(f"{SIGNS[name]} {limits[name]}" for name in limits)])


SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
