"""What kind a task is, as its demonstrations show: how sizes change, its colours, its size."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dataset.tasks import MAX_GRID_SIDE, NUM_COLOURS, Task

SIDES = (10, 15, 20, MAX_GRID_SIDE)
COLOURS = (3, 5, 7, NUM_COLOURS)
"""Last ones of the bands that tasks are told apart by."""


def _band(value: int, ends: Sequence[int]) -> str:
    return _bands(ends)[int(np.searchsorted(ends, value))]


def _bands(ends: Sequence[int]) -> tuple[str, ...]:
    """A name for each of the bands that end at these values."""
    starts = [end + 1 for end in ends]
    between = zip(starts, ends[1:], strict=False)
    return (f"up to {ends[0]}", *(f"{start}–{end}" for start, end in between))


SAME, SMALLER, LARGER, VARIES = "as the input", "smaller", "larger", "varies"


def size_change(task: Task) -> str:
    """How large outputs are beside their inputs, in cells, in all demonstrations."""
    found = set()
    for pair in task.train:
        assert pair.output is not None, "demonstrations have outputs"
        if pair.output.shape == pair.input.shape:
            found.add(SAME)
        elif pair.output.size != pair.input.size:
            found.add(SMALLER if pair.output.size < pair.input.size else LARGER)
        else:
            found.add(VARIES)
    return found.pop() if len(found) == 1 else VARIES


def colours(task: Task) -> str:
    """How many colours the demonstrations have in all, black among them."""
    shown = {int(c) for pair in task.train for grid in pair.grids() for c in np.unique(grid)}
    return _band(max(len(shown), 1), COLOURS)


def largest_side(task: Task) -> str:
    """The longest side of any known grid of the task."""
    return _band(task.max_side, SIDES)


class Kind(NamedTuple):
    """A way to tell tasks apart."""

    title: str
    name_of: Callable[[Task], str]
    names: tuple[str, ...]
    """In the order in which they are shown."""


KINDS: dict[str, Kind] = {
    "change": Kind("Size of the output", size_change, (SAME, SMALLER, LARGER, VARIES)),
    "colours": Kind("Colours", colours, _bands(COLOURS)),
    "size": Kind("Longest side", largest_side, _bands(SIDES)),
}
"""By the key that a filter of the page has in the address."""
