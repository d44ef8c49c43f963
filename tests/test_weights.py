"""Files of weights: bytes as the format's page describes them, and files that are none."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import weights
from fedmpi.errors import BadInput


def content(header: Any, values: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


def read(folder: Path, some: bytes) -> dict[str, np.ndarray]:
    (folder / "a.safetensors").write_bytes(some)
    return weights.read("model.initial", folder / "a.safetensors")


def about(kind: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}


def test_floats_of_all_widths_are_read_and_whole_numbers_are_not(tmp_path: Path) -> None:
    values = [1.5, -2.0, 0.25]
    halves = struct.pack("<3e", *values)
    singles, doubles = struct.pack("<3f", *values), struct.pack("<3d", *values)
    brains = b"".join(struct.pack("<f", one)[2:] for one in values)  # the upper half of a float32
    header = {
        "__metadata__": {"format": "pt"},
        "a": about("F16", [3], 0, 6),
        "b": about("BF16", [1, 3], 6, 12),
        "c": about("F32", [3, 1], 12, 24),
        "d": about("F64", [3], 24, 48),
        "steps": about("I64", [], 48, 56),
    }
    text = json.dumps(header).encode()
    for pad in range(4):  # values that begin anywhere
        found = read(
            tmp_path,
            content(text + b" " * pad, halves + brains + singles + doubles + struct.pack("<q", 7)),
        )
        assert {name: one.shape for name, one in found.items()} == {
            "a": (3,), "b": (1, 3), "c": (3, 1), "d": (3,)
        }  # fmt: skip
        for one in found.values():
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one.reshape(-1), values)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    some = {"a.weight": np.arange(6, dtype="f4").reshape(2, 3), "b": np.array(2.5, "f4")}
    found = read(tmp_path, weights.written(some, {"source": "here"}))
    assert found.keys() == some.keys()
    for name, one in some.items():
        np.testing.assert_array_equal(found[name], one)
        assert found[name].shape == one.shape


GOOD = {"a": about("F32", [2], 0, 8)}


@pytest.mark.parametrize(
    "some",
    [
        b"",
        b"\x01",
        b"PK\x03\x04 an archive of pickles",
        content(GOOD, b"\0" * 8, length=1 << 40),
        content(GOOD, b"\0" * 8, length=1000),
        content(b"[1, 2]", b""),
        content(b"{", b""),
        content(b"[" * 100_000, b""),
        content({"a": 3}, b""),
        content({"a": {"dtype": "F32"}}, b""),
        content(GOOD, b"\0" * 4),
        content({"a": about("F32", [3], 0, 8)}, b"\0" * 8),
        content({"a": about("F32", [-2], 0, -8)}, b"\0" * 8),
        content({"a": about("F32", [2], -8, 0)}, b"\0" * 8),
        content({"a": about("F32", [2.0], 0, 8)}, b"\0" * 8),  # type: ignore[list-item]
        content({"a": about("F32", [2], 0.0, 8)}, b"\0" * 8),  # type: ignore[arg-type]
        content({"a": {**about("F32", [2], 0, 8), "dtype": []}}, b"\0" * 8),
    ],
)
def test_files_that_are_no_weights_are_refused(tmp_path: Path, some: bytes) -> None:
    with pytest.raises(BadInput, match=r"^model\.initial = .*wanted a file of weights"):
        read(tmp_path, some)


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/dev/null")):
        with pytest.raises(BadInput, match=r"^model\.initial = .*; wanted|: wanted"):
            weights.read("model.initial", path)
