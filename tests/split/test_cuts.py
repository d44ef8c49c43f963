"""Networks in two or three parts: each stage lies on one side, and shapes fit."""

import pytest
import torch

from fedmpi.networks.flat import Flat
from fedmpi.split.cuts import Cut, shape_behind
from tests.small import sorts

CASES = [
    (Cut(), ["conv"], ["dense", "head"], []),
    (Cut(cut="dense"), ["conv", "dense"], ["head"], []),
    (Cut(tail="head"), ["conv"], ["dense"], ["head"]),
]


@pytest.mark.parametrize(("cut", "front", "back", "tail"), CASES, ids=["", "cut", "tail"])
def test_each_stage_is_in_one_part(
    cut: Cut, front: list[str], back: list[str], tail: list[str]
) -> None:
    flat = Flat(sorts(3))
    parts = cut.parts(flat)
    assert [[name for name, _ in part.stages.named_children()] for part in parts] == [
        front,
        back,
        tail,
    ]
    assert torch.equal(torch.cat([part.initial for part in parts]), flat.initial)
    x = torch.randn(4, 2, 8, 8)
    whole = flat.network(flat.initial)(x)
    for part in parts:
        x = part.network(part.initial)(x)
    assert torch.equal(x, whole)


def test_what_clients_hold_lies_as_its_parts_do_one_after_the_other() -> None:
    for cut in (Cut(), Cut(tail="head")):
        flat = Flat(sorts(3))
        front, _, tail = cut.parts(flat)
        held = cut.held(flat)
        assert torch.equal(held.initial, torch.cat([front.initial, tail.initial]))
        names = [piece.name for part in (front, tail) for piece in part.parameters]
        starts = [0, *(piece.stop for piece in held.parameters)]
        assert [piece.name for piece in held.parameters] == names
        assert [piece.start for piece in held.parameters] == starts[:-1]


@pytest.mark.parametrize("cut", [Cut(), Cut(tail="head")], ids=["", "tail"])
def test_what_clients_hold_and_a_back_are_the_model(cut: Cut) -> None:
    flat = Flat(sorts(3))
    sections, w = cut.sections(flat), flat.initial.clone()
    held = sections.held(w)
    assert torch.equal(held, cut.held(flat).initial)
    assert len(held) == sections.size
    front, back, tail = sections.split(w)
    assert torch.equal(sections.join(held, back), w)
    assert [part.tolist() for part in sections.split_held(held)] == [front.tolist(), tail.tolist()]
    back.zero_()
    assert int((w == 0).sum()) >= sections.back, "parts are views"


def test_the_end_is_where_samples_come_back() -> None:
    flat = Flat(sorts(3))
    assert Cut().end(flat) is None
    until, tail = Cut(tail="head").end(flat) or (flat, flat)
    assert (until.size + tail.size, tail.count) == (flat.size, 5 * 3 + 3)


@pytest.mark.parametrize("norm", [False, True])
def test_shapes_behind_parts(norm: bool) -> None:
    front, back, tail = Cut(tail="head").parts(Flat(sorts(3)))
    before = front.initial.clone()
    x = torch.zeros(7, 2, 8, 8)
    assert shape_behind([front], x) == (4, 8, 8)
    assert shape_behind([front, back], x) == (5,)
    assert shape_behind([front, back, tail], x) == (3,)
    assert torch.equal(front.initial, before)
