"""What a log can show besides numbers."""

from collections.abc import Mapping
from typing import NamedTuple

from PIL import Image

Cell = str | int | float | None | Image.Image


class Table(NamedTuple):
    """Rows of text, numbers and pictures."""

    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


Media = Mapping[str, Table | list[Image.Image]]
"""By the name of its panel; a picture's caption is in its `info`, under "caption"."""
