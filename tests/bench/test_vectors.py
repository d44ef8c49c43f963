"""Benchmarks of sparse vectors: what is compared is equal, and a difference is found."""

import json
from collections.abc import Callable

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from fedmpi import bench
from fedmpi.__main__ import main
from fedmpi.bench import pack, unpack
from fedmpi.bench import select as choice
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind

REFERENCES = {
    "select": ["copy", "topk"],
    "pack": ["copy", "packbits", "pickle"],
    "unpack": ["copy", "unpackbits", "pickle"],
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SIZES", {"S": 5000, "M": 6000, "L": 7001, "XL": 0})


@pytest.mark.parametrize("name", REFERENCES)
def test_cases_and_references(name: str) -> None:
    before = torch.get_num_threads()
    try:
        words = ["bench", name, "--sparsity", "0.5", "--sparsity", "0.99", "--json"]
        found = CliRunner().invoke(main, [*words, "--repeats", "1"])
    finally:
        torch.set_num_threads(before)
    assert found.exit_code == 0, found.output
    results = [json.loads(line) for line in found.output.splitlines()]
    steps = 2 if name == "unpack" else 1
    cases = [(case["size"], case["sparsity"]) for case in (r["case"] for r in results)]
    assert cases == [(size, s) for size in "SML" for s in (0.5, 0.99) for _ in range(steps)]
    assert [list(r["against"]) for r in results][::steps] == [REFERENCES[name]] * 6
    if name == "unpack":
        assert [list(r["against"]) for r in results][1::2] == [["copy", "index_add"]] * 6


@pytest.mark.parametrize("positions", pack.CODED)
def test_every_encoding_is_measured(positions: str) -> None:
    for measure in (pack.measure, unpack.read, unpack.add):
        assert measure("S", 5000, 0.9, positions, 1).seconds > 0


def test_no_such_size() -> None:
    found = CliRunner().invoke(main, ["bench", "select", "--size", "H"])
    assert (found.exit_code, "there are: S, M, L, XL" in found.output) == (2, True)


def test_the_last_values_are_not_the_first() -> None:
    x = choice.vector(5000)
    good = choice.ours(x, 100)
    choice.check(good, x, 100)
    with pytest.raises(AssertionError):
        choice.check(choice.ours(-1 / x, 100), x, 100)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.indices.__setitem__(0, found.indices[0] + 1),
        lambda found: found.values.__setitem__(0, 9.0),
    ],
    ids=["positions", "values"],
)
def test_differences_are_found(change: Callable[[Block], None]) -> None:
    wanted, found = (pack.sparse(5000, 0.99, "auto") for _ in range(2))
    pack.check(found, wanted)
    change(found)
    with pytest.raises(AssertionError):
        pack.check(found, wanted)


def test_a_sum_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(target: Tensor, block: Block, weight: float) -> None:
        target[sparse.indices(block)] = 1.0

    monkeypatch.setattr(unpack.blocks, "add", add)
    with pytest.raises(AssertionError):
        unpack.add("S", 5000, 0.9, "auto", 1)


@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_a_choice_of_other_values_is_noticed(count: int) -> None:
    """Of values that tie, the first ones are to be chosen; a sort of all says which."""
    x = torch.tensor([1.0, -2.0, 1.0, -1.0, 0.0])
    order = sorted(range(5), key=lambda place: (-abs(float(x[place])), place))
    right = torch.tensor(sorted(order[:count]), dtype=torch.int64)
    choice.check(sparse.block(Kind.GRADIENT, x[right], 5, right), x, count)
    if 0 < count < 5:
        wrong = torch.tensor(sorted([*order[: count - 1], order[count]]))
        with pytest.raises(AssertionError):
            choice.check(sparse.block(Kind.GRADIENT, x[wrong], 5, wrong), x, count)
