"""Windows: boxes by hand on small canvases, and against the canvases that they are cut from."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arc_oracles import canvas_of
from dataset.windows import areas, boxes_around, widen


def test_a_box_holds_the_grids_and_their_border_as_far_as_the_canvas_reaches() -> None:
    origins, extents = np.array([[1, 0], [0, 0], [3, 2]]), np.array([[2, 3], [5, 1], [2, 2]])
    boxes = boxes_around(origins, extents, 5)
    assert boxes.tolist() == [[1, 0, 4, 4], [0, 0, 5, 2], [3, 2, 5, 5]]
    assert areas(boxes).tolist() == [12, 10, 6]


def test_edges_move_outwards_within_the_canvas() -> None:
    boxes = np.array([[2, 1, 3, 4], [0, 0, 5, 5], [2, 2, 3, 3]])
    margins = np.array([[1, 2, 0, 3], [1, 1, 1, 1], [0, 1, 2, 0]])
    assert widen(boxes, margins, 5).tolist() == [[1, 0, 3, 5], [0, 0, 5, 5], [2, 1, 5, 3]]
    assert areas(boxes).tolist() == [3, 25, 1]


@given(st.data())
def test_a_box_is_the_smallest_that_holds_what_the_canvases_show(data: st.DataObject) -> None:
    """Of two grids at one place, whose larger extents it is around."""
    side = data.draw(st.integers(1, 8))
    extent = st.integers(1, side)
    shapes = [(data.draw(extent), data.draw(extent)) for _ in range(2)]
    extents = np.max(shapes, axis=0)
    origin = [data.draw(st.integers(0, int(side - size))) for size in extents]
    shown = sum(canvas_of(np.zeros(shape, np.uint8), side, *origin) for shape in shapes)
    places = np.argwhere(shown)
    expected = [*places.min(axis=0), *places.max(axis=0) + 1]
    (box,) = boxes_around(np.array([origin]), extents[None], side)
    assert box.tolist() == expected
