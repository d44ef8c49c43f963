"""Values in words: what stands behind `key=`, read as what its setting wants; and sentences on it.

A value on a command line is a `Word` until the type of its setting is known. A text is taken as it
stands, so that a folder may be called `2024`; a number is read as people write it (`.1`, `1e-3`,
`1_000`), a switch as `true` or `false` in any case, lists and tables as in TOML. `absent` takes a
setting back that need not be there; in a file so does "absent", where no text is wanted.
"""

import codecs
import difflib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fedmpi import config
from fedmpi.config import ABSENT, LARGEST, MOST

LONGEST = 80
"""Characters of a value that a sentence repeats."""


def decoded(content: bytes) -> str:
    """The text of a file that people write: UTF-8, with or without the mark that editors put first.

    Raises:
        UnicodeError: naming what it is instead.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnicodeError("UTF-16; wanted UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnicodeError("not UTF-8") from None


def unread(word: Any) -> str:
    """Why a word that begins like a list or a table is none; nothing if it does not."""
    if not isinstance(word, Word) or word.strip()[:1] not in ("[", "{") or _toml(word) is not None:
        return ""
    try:
        tomllib.loads(f"value = {word}")
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(" (at ")[0].lower()
        return f"; not TOML ({reason}): texts in a list or table need quotes"
    return ""


class Word(str):
    """A value as it stands on a command line."""


class Gone(Word):
    """The word `absent` in the place of a value that was written before."""


def opened(word: str) -> Any:
    """The list or table that a word writes, as in TOML; the word itself if it writes neither.

    The items of a list need no quotes, which shells take away: `[crop, flip]`.
    """
    value = _toml(word)
    if isinstance(value, list | dict):
        return value
    text = word.strip()
    if value is None and text[:1] == "[" and text[-1:] == "]" and not set(text[1:-1]) & set("[]{}"):
        return [Word(item.strip()) for item in text[1:-1].strip().removesuffix(",").split(",")]
    return word


def _toml(text: str) -> Any:
    """The value that a text is in TOML; None if it is none."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return None
    return found["value"] if len(found) == 1 else None


def meant(kind: Any, value: Any) -> Any:
    """A value whose words are read as what a setting of a type wants.

    A word stays one if it is nothing of that type, and so does what belongs to no setting.

    Args:
        kind: the type: an annotation of a setting, or a table.
        value: a tree, a list, a word, or a value that is left as it is.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return meant(inner[0], value)
    if origin in (tuple, dict) or config.is_table(kind) or config.kinds(kind):
        value = opened(value) if isinstance(value, Word) else value
    if config.kinds(kind) and isinstance(value, Mapping):
        kind = config.kinds(kind).get(_text(value.get("kind")), kind)
    if config.is_table(kind) and isinstance(value, Mapping):
        fields = kind.model_fields
        return {
            name: meant(fields[name].annotation, one) if name in fields else one
            for name, one in value.items()
        }
    if origin is dict and isinstance(value, Mapping):
        return {name: meant(inner[1], one) for name, one in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        rest = value[len(kinds) :]
        return [*(meant(*pair) for pair in zip(kinds, value, strict=False)), *rest]
    if (
        value == ABSENT
        and type(None) in inner
        and (isinstance(value, Word) or not _may_be_text(inner))
    ):
        return None
    if not isinstance(value, Word):
        return value
    if origin in (Union, UnionType):
        found = (meant(one, value) for one in inner)
        return next((one for one in found if not isinstance(one, Word)), value)
    if origin is Literal:
        choices = (meant(type(one), value) for one in inner)
        return next((one for one in choices if one in inner), _text(value))
    try:
        return READ[kind](value) if kind in READ else value
    except ValueError:
        return value


def _may_be_text(kinds: Sequence[Any]) -> bool:
    """Whether one of several types is that of any text, or of texts of a certain form."""
    return any(one is str or get_args(one)[:1] == (str,) for one in kinds)


def _text(value: Any) -> Any:
    """A word as a text: as it stands, or without its quotes if it has some; else the value."""
    if not isinstance(value, Word):
        return value
    quoted = _toml(value) if value[:1] in ("'", '"') else None
    return quoted if isinstance(quoted, str) else str(value)


def _whole(word: Word) -> int:
    try:
        return int(word)
    except ValueError:
        return int(word, 0)  # hexadecimal, say


def _finite(word: Word) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError
    return value


READ: dict[Any, Callable[[Word], Any]] = {
    str: _text,
    int: _whole,
    float: _finite,
    bool: lambda word: {"true": True, "false": False}.get(word.strip().lower(), word),
}
"""How a word is read as a value of each type."""

FORMS = {
    config.BUDGET: "bytes such as up_bytes:50MB, down_bytes:2.5GB or total_bytes:1TB",
    config.TARGET: "an accuracy such as accuracy:0.97, shard_mean:0.8 or personal_mean:9e-1",
    config.DEVICE: "cpu, cuda or cuda:K",
    config.SHA256: "64 hexadecimal digits in lower case",
    config.PLACE: "a path",
    config.BITS: "numbers of bits from 2 to 16",
    config.LABEL: "1 to 16 letters, digits, dots, dashes and underscores",
}
"""What texts of a certain form look like, by the pattern of their settings."""


def want(kind: Any, bounds: Sequence[Any] = (), found: Any = None) -> str:
    """What a setting may be, in words.

    Args:
        kind: its type.
        bounds: its metadata.
        found: the value that is no such thing.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        # A bound stands there as it is, or inside of what pydantic's `Field` gives.
        inside = [b for one in inner[1:] for b in getattr(one, "metadata", [one])]
        return want(inner[0], [*inside, *bounds], found)
    if origin in (Union, UnionType):
        parts = [want(one, bounds, found) for one in inner if one is not type(None)]
        return ", or ".join(parts + [ABSENT] * (type(None) in inner))
    if origin is Literal:
        choices = [said(one) for one in inner]
        close = difflib.get_close_matches(str(found), map(str, inner), 1)
        guess = f" (did you mean '{close[0]}'?)" if close and isinstance(inner[0], str) else ""
        return either(choices) + guess
    if origin is tuple:
        count = _least(bounds) if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"a list of {count}{_many(inner[0])}"
    if origin is dict:
        return f"a table of {want(inner[0])}, each with {want(inner[1])}"
    if kind in NUMBERS:
        return f"{NUMBERS[kind][0]}{_range(bounds, found)}"
    if kind is bool:
        return "true or false"
    if kind is str:
        pattern = next((b.pattern for b in bounds if getattr(b, "pattern", None)), None)
        return "a text" if pattern is None else FORMS[pattern]
    return "a table"


NUMBERS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}


def _least(bounds: Sequence[Any]) -> str:
    least = next((b.min_length for b in bounds if hasattr(b, "min_length")), 0)
    return f"at least {least} " if least else ""


def _many(kind: Any) -> str:
    """Items of a list, in words."""
    one = want(kind)
    for single, several in NUMBERS.values():
        if one.startswith(single):
            return several + one.removeprefix(single)
    return {"a table": "tables", "a text": "texts"}.get(one, one)


def _range(bounds: Sequence[Any], found: Any) -> str:
    """The range of a number, in words; nothing if there is none."""
    limits = {name: getattr(b, name) for b in bounds for name in SIGNS if hasattr(b, name)}
    if limits.get("le") in (MOST, LARGEST) and not _is_huge(found):
        del limits["le"]  # what hardly anybody reaches is no news
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']} to {limits['le']}"
    words = [f"{SIGNS[name]} {limits[name]}" for name in SIGNS if name in limits]
    words += [f"in steps of {b.multiple_of}" for b in bounds if hasattr(b, "multiple_of")]
    return f" {' and '.join(words)}" if words else ""


def _is_huge(found: Any) -> bool:
    """Whether it is a number, but none to be reached, such as infinity."""
    try:
        return not abs(float(found)) < MOST
    except OverflowError:
        return True
    except (TypeError, ValueError):
        return False


SIGNS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def either(choices: Sequence[str]) -> str:
    """Texts as "a, b or c"."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last


def said(value: Any) -> str:
    """A value as sentences have it: a word as it was written, others as in TOML, none too long."""
    if isinstance(value, Word) and value.strip() == value != "":
        text = str(value)
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, bool) or value is None:
        text = ABSENT if value is None else str(value).lower()
    elif isinstance(value, Mapping):
        inside = (f"{name} = {said(one)}" for name, one in value.items() if one is not None)
        text = f"{{{', '.join(inside)}}}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(said, value))}]"
    else:
        # Python refuses to write thousands of decimals.
        text = hex(value) if isinstance(value, int) and value.bit_length() > 999 else str(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."
