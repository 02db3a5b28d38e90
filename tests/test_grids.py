"""Grids as pictures, in ARC's colours, and as text."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dataset.canvas import place
from dataset.tasks import Grid
from evaluation.grids import canvas_text, changed_cells, draw_grid, grid_text, mistakes

# By hand, from the ARC site: black, blue, red, green, yellow, grey, magenta, orange, sky, maroon.
HEX = "000000 0074D9 FF4136 2ECC40 FFDC00 AAAAAA F012BE FF851B 7FDBFF 870C25"
COLOURS = [tuple(bytes.fromhex(colour)) for colour in HEX.split()]


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


def centre_colours(image: Image.Image, shape: tuple[int, int]) -> list[list[tuple[int, ...]]]:
    """Of each cell."""
    pixels = image.convert("RGB")
    side = (image.width - 1) // shape[1]
    assert image.size == (shape[1] * side + 1, shape[0] * side + 1)
    rows, cols = ([cell * side + side // 2 for cell in range(count)] for count in shape)
    return [[tuple(pixels.getpixel((x, y))) for x in cols] for y in rows]


@pytest.mark.parametrize("shape", [(1, 1), (2, 10), (11, 7), (30, 30), (30, 1)])
def test_a_grid_is_drawn_in_the_standard_colours_at_most_151_pixels_wide(
    shape: tuple[int, int],
) -> None:
    cells = (np.arange(shape[0] * shape[1]).reshape(shape) * 7 % 10).astype(np.uint8)
    image = draw_grid(cells)
    assert centre_colours(image, shape) == [[COLOURS[cell] for cell in row] for row in cells]
    assert max(image.size) <= 151
    line = image.convert("RGB").crop((0, 0, image.width, 1))
    assert line.getcolors() == [(image.width, (0x70, 0x70, 0x70))]


def test_the_dot_stands_out_on_every_colour() -> None:
    (dots,) = centre_colours(draw_grid(grid("0123456789"), np.ones((1, 10), dtype=bool)), (1, 10))
    for number, (colour, dot) in enumerate(zip(COLOURS, dots, strict=True)):
        lighter, darker = sorted((luminance(colour), luminance(dot)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, f"colour {number}"


def luminance(colour: tuple[int, ...]) -> float:
    """WCAG's relative luminance."""
    linear = [
        channel / 3294.6 if channel <= 10 else ((channel / 255 + 0.055) / 1.055) ** 2.4
        for channel in colour
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_only_cells_that_changed_carry_a_dot() -> None:
    changed: npt.NDArray[np.bool_] = changed_cells(grid("12", "34"), grid("129", "354"))
    assert changed.tolist() == [[False, False, True], [False, True, True]]
    assert changed_cells(None, grid("12")).all()
    found = centre_colours(draw_grid(grid("129", "354"), changed), (2, 3))
    plain = [[COLOURS[cell] for cell in row] for row in ((1, 2, 9), (3, 5, 4))]
    is_dotted = [[found[y][x] != plain[y][x] for x in range(3)] for y in range(2)]
    assert is_dotted == changed.tolist()


def test_the_text_of_a_grid_is_its_rows() -> None:
    assert grid_text(grid("012", "345")) == "012/345"
    assert grid_text(grid("7")) == "7"


def test_a_canvas_shows_what_stands_in_each_cell_of_a_frame() -> None:
    """A border or nothing is no colour, and neither ends what is shown."""
    canvas = place(grid("12", "34")[None], 4)[0]
    assert canvas_text(canvas, (3, 4)) == "12../34../...."
    assert canvas_text(canvas, (1, 1)) == "1"


def test_mistakes_are_said_in_words() -> None:
    assert mistakes(grid("12"), grid("12")) == "0 cells wrong"
    assert mistakes(grid("12"), grid("13")) == "1 cell wrong"
    assert mistakes(grid("12", "34"), grid("12")) == "wrong size, 2 × 2"
