"""One self-contained HTML page that shows what a model answered on ARC tasks.

The page needs no network and no script to be read: grids are PNG images inside it, and the few
lines of script only filter the cases. `report.html.j2` holds its markup and its looks; this file
decides what the page says.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from common.files import atomic_write
from dataset.tasks import NUM_COLOURS, Grid, Pair

MAX_IMAGE_SIDE, MAX_CELL_SIDE = 150, 20  # Pixels; the grid line that closes an image is on top.

ARC_COLOURS = "000000 0074D9 FF4136 2ECC40 FFDC00 AAAAAA F012BE FF851B 7FDBFF 870C25"
PALETTE = bytes.fromhex(f"{ARC_COLOURS} 707070 FFFFFF")
BLACK, LINE, WHITE = 0, NUM_COLOURS, NUM_COLOURS + 1
DOT_ON = np.array([WHITE, WHITE, *[BLACK] * 7, WHITE], dtype=np.uint8)
"""[10] whether a dot on a colour is black or white: either alone would vanish on some."""


@dataclass(frozen=True)
class Attempt:
    """One of the two answers that would be submitted."""

    grid: Grid
    votes: float
    confidence: float


@dataclass(frozen=True)
class ReportCase:
    """One test input with what the model answered; `test_index` counts from 0."""

    task_id: str
    test_index: int
    demonstrations: tuple[Pair, ...]
    test_input: Grid
    solution: Grid | None  # None: hidden.
    attempts: tuple[Attempt, ...]  # At most two, best first.
    step_answers: tuple[Grid | None, ...]
    """The unaugmented input's answer after steps 1..S; None where the canvas shows no grid."""
    num_attempts: int = 2
    """How many answers there could have been."""


class Verdict(StrEnum):
    RIGHT = "right"
    WRONG = "wrong"
    NOT_SCORED = "not scored"


@dataclass(frozen=True)
class Figure:
    """A captioned image; where there is none, `alt` stands in its place."""

    label: str
    alt: str
    data_uri: str | None = None
    size: tuple[int, int] = (0, 0)  # Width and height in pixels.
    verdict: Verdict | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class CaseView:
    """What the template shows of a case."""

    task_id: str
    name: str
    verdict: Verdict
    answers: list[Figure]
    steps: list[Figure]
    demonstrations: list[tuple[Figure, Figure]]


def write_report(
    path: Path, title: str, facts: Mapping[str, str], cases: Sequence[ReportCase]
) -> None:
    """Write the page for `cases` to `path`, with the table of `facts` under its title."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    views = [_view(case) for case in cases]
    counts = {verdict.value: sum(view.verdict == verdict for view in views) for verdict in Verdict}
    template = environment.get_template("report.html.j2")
    atomic_write(path, template.render(title=title, facts=facts, cases=views, counts=counts))


def _view(case: ReportCase) -> CaseView:
    assert len(case.attempts) <= 2, f"{case.task_id}: {len(case.attempts)} attempts, two at most"
    attempts = [_attempt(number, a, case.solution) for number, a in enumerate(case.attempts, 1)]
    unused = [
        Figure(f"attempt {number}", "no answer")
        for number in range(len(attempts) + 1, case.num_attempts + 1)
    ]
    verdict, solution = Verdict.NOT_SCORED, Figure("solution", alt="hidden")
    if case.solution is not None:
        solution = _figure("solution", case.solution)
        solved = any(attempt.verdict is Verdict.RIGHT for attempt in attempts)
        verdict = Verdict.RIGHT if solved else Verdict.WRONG
    return CaseView(
        task_id=case.task_id,
        name=f"test input {case.test_index + 1}",
        verdict=verdict,
        answers=[_figure("test input", case.test_input), *attempts, *unused, solution],
        steps=_steps(case.step_answers, case.solution),
        demonstrations=[
            (_figure(f"input {number}", pair.input), _figure(f"output {number}", pair.output))
            for number, pair in enumerate(case.demonstrations, 1)
        ],
    )


def _attempt(number: int, attempt: Attempt, solution: Grid | None) -> Figure:
    notes = [_plural(attempt.votes, "vote"), f"mean confidence {attempt.confidence:.2f}"]
    verdict = None
    if solution is not None:
        right = np.array_equal(attempt.grid, solution)
        verdict = Verdict.RIGHT if right else Verdict.WRONG
        notes += [] if right else [_mistakes(attempt.grid, solution)]
    return _figure(f"attempt {number}", attempt.grid, notes, verdict)


def _steps(answers: Sequence[Grid | None], solution: Grid | None) -> list[Figure]:
    figures = []
    for step, answer in enumerate(answers, start=1):
        notes, changed = [], None
        if answer is not None and step > 1:
            previous = answers[step - 2]
            changed = changed_cells(previous, answer)
            notes.append(_plural(int(changed.sum()), "cell") + " changed")
            if previous is not None and previous.shape != answer.shape:
                notes.append("size changed")
        if answer is not None and solution is not None:
            notes.append(_mistakes(answer, solution))
        figures.append(_figure(f"step {step}", answer, notes, changed=changed))
    return figures


def changed_cells(previous: Grid | None, grid: Grid) -> npt.NDArray[np.bool_]:
    """Mark the cells of `grid` that `previous` does not have or has in another colour."""
    changed = np.ones(grid.shape, dtype=bool)
    if previous is not None:
        rows, cols = np.minimum(previous.shape, grid.shape)
        changed[:rows, :cols] = previous[:rows, :cols] != grid[:rows, :cols]
    return changed


def _mistakes(grid: Grid, solution: Grid) -> str:
    if grid.shape != solution.shape:
        return f"wrong size, {grid.shape[0]} × {grid.shape[1]}"
    return _plural(int((grid != solution).sum()), "cell") + " wrong"


def _figure(
    label: str,
    grid: Grid | None,
    notes: Sequence[str] = (),
    verdict: Verdict | None = None,
    changed: npt.NDArray[np.bool_] | None = None,
) -> Figure:
    if grid is None:
        return Figure(label, alt="no grid")
    image = draw_grid(grid, changed)
    png = io.BytesIO()
    image.save(png, format="PNG", optimize=True)
    data_uri = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode('ascii')}"
    alt = f"{label}, {_plural(grid.shape[0], 'row')} by {_plural(grid.shape[1], 'column')}"
    return Figure(label, alt, data_uri, image.size, verdict, notes)


def draw_grid(grid: Grid, changed: npt.NDArray[np.bool_] | None = None) -> Image.Image:
    """Draw a grid in ARC's colours between grey lines, with a dot on each cell in `changed`."""
    cell = min(MAX_CELL_SIDE, MAX_IMAGE_SIDE // max(grid.shape))
    pixels = np.full([side * cell + 1 for side in grid.shape], LINE, dtype=np.uint8)
    one_cell = np.ones((cell, cell), dtype=np.uint8)
    pixels[:-1, :-1] = np.kron(grid, one_cell)
    if changed is not None:
        width = (cell - 1) // 3
        width += (cell - 1 - width) % 2  # As odd or even as the room between the lines: centred.
        margin = (cell + 1 - width) // 2
        dot = np.pad(np.ones((width, width), dtype=bool), (margin, cell - width - margin))
        dots = np.kron(changed, dot)
        pixels[:-1, :-1][dots] = np.kron(DOT_ON[grid], one_cell)[dots]
    pixels[::cell] = pixels[:, ::cell] = LINE
    image = Image.fromarray(pixels)
    image.putpalette(PALETTE)
    return image


def _plural(count: float, noun: str) -> str:
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"
