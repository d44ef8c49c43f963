"""The picture of a partition: what is in it, and that nothing covers anything."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fedmpi.errors import BadInput
from fedmpi.terminal.picture import draw, picture


def skewed(classes: int, clients: int, size: int = 600) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.multinomial(size, rng.dirichlet(np.full(classes, 0.3), clients)).T


def texts(figure: Figure) -> list[Text]:
    """All that is written and seen."""
    figure.draw_without_rendering()
    beyond = set()
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            beyond |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    found = figure.findobj(Text)
    return [text for text in found if text.get_visible() and text.get_text() and text not in beyond]


@pytest.mark.parametrize("classes", [2, 10, 25, 26, 100])
@pytest.mark.parametrize("clients", [1, 2, 10, 16, 25, 26, 60, 61, 100, 1000])
def test_nothing_covers_anything(classes: int, clients: int) -> None:
    name = f"frozen  file={'/a/very/long/path' * 9}.npz"
    figure = picture(skewed(classes, clients), name)
    seen = texts(figure)
    words = " ".join(text.get_text() for text in seen)
    assert "total variation: mean" in words and "path.npz" in words
    assert {"client", "class", "samples"} <= {text.get_text() for text in seen}
    boxes = [(text.get_text(), text.get_window_extent()) for text in seen]
    for (one, box), (other, another) in combinations(boxes, 2):
        assert not box.padded(-0.5).overlaps(another.padded(-0.5)), (one, other)
    for word, box in boxes:
        assert figure.bbox.padded(1).contains(*box.min), word
        assert figure.bbox.padded(1).contains(*box.max), word


def test_cells_are_shares_and_numbers_are_counts() -> None:
    counts = np.array([[3, 0], [1, 20]])
    figure = picture(counts, "shards")
    above, below = figure.axes[:2]
    assert [bar.get_height() for bar in above.patches] == [4, 20]
    np.testing.assert_allclose(below.collections[0].get_array(), [[0.75, 0], [0.25, 1]])
    assert {(*text.get_position(), text.get_text()) for text in below.texts} == {
        (0, 0, "3"), (0, 1, "1"), (1, 1, "20"),
    }  # fmt: skip


@pytest.mark.parametrize(("clients", "size", "written"), [(10, 60_000, True), (40, 600, False)])
def test_numbers_are_written_where_there_is_room(clients: int, size: int, written: bool) -> None:
    assert bool(picture(skewed(10, clients, size), "iid").axes[1].texts) == written


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_files(suffix: str, magic: bytes, tmp_path: Path) -> None:
    first, second = (tmp_path / "new" / f"{name}{suffix}" for name in "ab")
    for path in (first, second):
        draw(skewed(10, 100), "iid", path)
    assert first.read_bytes().startswith(magic)
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) < 200_000
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"x\.png: "):
        draw(skewed(2, 2), "iid", tmp_path / "file" / "x.png")
