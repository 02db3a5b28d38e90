"""A strip of grids in a row, with names above and notes below: one picture of an answer's way."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from dataset.tasks import Grid
from evaluation.grids import draw_grid

MARGIN, GAP, LINE = 8, 12, 16  # Pixels.
INK, PAPER, FAINT = "#1d1f21", "#ffffff", "#8a8f96"
EMPTY_SIZE = (101, 61)
"""Of the box in place of a grid that is not there."""


@dataclass(frozen=True)
class Frame:
    """One place of a strip."""

    name: str
    grid: Grid | None
    note: str = ""
    empty: str = "no grid"
    """What stands in place of a grid that is not there."""
    below: Grid | None = None
    """A second grid, such as what a step is trained towards."""


def draw_strip(frames: Sequence[Frame]) -> Image.Image:
    """Draw the frames from left to right."""
    font = ImageFont.load_default(size=11)
    upper = [_picture(frame.grid, frame.empty, font) for frame in frames]
    lower = [None if f.below is None else _picture(f.below, "", font) for f in frames]
    widths = [
        max(
            above.width,
            below.width if below else 0,
            *(round(font.getlength(text)) for text in (frame.name, frame.note)),
        )
        for frame, above, below in zip(frames, upper, lower, strict=True)
    ]
    middle = LINE + max(image.height for image in upper) + LINE
    bottom = middle + max((image.height + LINE for image in lower if image), default=0)
    size = (2 * MARGIN + sum(widths) + GAP * (len(frames) - 1), 2 * MARGIN + bottom)
    strip = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(strip)
    left = MARGIN
    for frame, above, below, width in zip(frames, upper, lower, widths, strict=True):
        draw.text((left, MARGIN), frame.name, INK, font)
        strip.paste(above, (left, MARGIN + LINE))
        draw.text((left, MARGIN + LINE + above.height + 2), frame.note, FAINT, font)
        if below is not None:
            draw.text((left, MARGIN + middle), "target", FAINT, font)
            strip.paste(below, (left, MARGIN + middle + LINE))
        left += width + GAP
    return strip


def _picture(
    grid: Grid | None, empty: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    if grid is not None:
        return draw_grid(grid).convert("RGB")
    box = Image.new("RGB", EMPTY_SIZE, PAPER)
    draw = ImageDraw.Draw(box)
    draw.rectangle((0, 0, EMPTY_SIZE[0] - 1, EMPTY_SIZE[1] - 1), outline=FAINT)
    draw.text((8, EMPTY_SIZE[1] // 2 - 8), empty, FAINT, font)
    return box
