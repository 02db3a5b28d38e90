"""Draw how answers improve beside what their steps were trained towards, as an animated picture.

    python -m evaluation.animate demo_output/evaluation --tasks d511f180 --output improving.gif

RESULTS is a results folder of evaluate.py. A row for each task shows its (first) test input, the
answer after each step, the target of that step, and the solution: those of the unaugmented variant
alone, without votes. The file is a GIF, or with .png an animated PNG.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_file, read_arrays, require_creatable
from common.settings import expanded_path
from dataset.canvas import Canvases
from dataset.storage import puzzles_file
from dataset.task_files import load_tasks
from dataset.tasks import Grid
from evaluation.grids import WHITE, draw_grid, visible
from evaluation.results import STEP_ANSWERS_FILE, recorded_test_set

FORMATS = {".gif": "GIF", ".png": "PNG"}
FIRST_MS, STEP_MS, LAST_MS = 1200, 1000, 2600
"""How long the question alone is shown, an answer, and the last one."""
SIDE = 164
"""Pixels of a grid's longer side, or fewer, as a cell's side is a whole number of them."""
MARGIN, GAP, LINE = 16, 24, 24  # Pixels.
INK, FAINT, RIGHT, PAPER, EDGE = "#1d1f21", "#6b7075", "#1a7f37", "#ffffff", "#d0d4d9"
"""On paper of its own: a page may be light or dark."""

log = logging.getLogger(__name__)


class Story(NamedTuple):
    """How the answer to a test input developed."""

    question: Grid
    answers: list[Grid]
    """After each step, in the solution's shape."""
    targets: list[Grid]
    solution: Grid


def read_stories(results: Path, data: Path | None, task_ids: Sequence[str]) -> list[Story]:
    """Of each task its first test input.

    Raises:
        UserError: the folder does not tell, or a task is not in it.
    """
    remedy = "evaluate again, with a dataset whose solutions are known"
    names = ["task_id", "test_index", "canvas", "targets"]
    path = results / STEP_ANSWERS_FILE
    if not path.is_file():
        raise UserError(f"{results}: there is no {STEP_ANSWERS_FILE} in it, name a results folder")
    found = read_arrays(path, names, str(path), remedy)
    recorded = recorded_test_set(results)
    if data is None and "dataset" not in recorded:
        raise UserError(f"--data is needed: {results} does not say which dataset was scored")
    folder = data or Path(recorded["dataset"])
    loaded = load_tasks(folder / puzzles_file(recorded.get("split", "test")))
    tasks = {task.task_id: task for task in loaded}
    stories = []
    for task_id in task_ids:
        rows = np.flatnonzero((found["task_id"] == task_id) & (found["test_index"] == 0))
        if not len(rows):
            known = ", ".join(sorted(set(found["task_id"].tolist()))[:8])
            raise UserError(f"--tasks {task_id}: is not in {path}, which has {known} ...")
        pair = tasks[task_id].test[0]
        if pair.output is None:
            raise UserError(f"--tasks {task_id}: its solution is hidden, choose another")
        answers, targets = (_grids(found[name][rows[0]], pair.output) for name in names[2:])
        stories.append(Story(pair.input, answers, targets, pair.output))
    return stories


def _grids(canvases: Canvases, solution: Grid) -> list[Grid]:
    return [visible(canvas, solution.shape) for canvas in canvases]


def draw_frames(stories: Sequence[Story]) -> list[Image.Image]:
    """The questions alone, then a picture after each step; all of one size."""
    return [_draw(stories, step) for step in range(len(stories[0].answers) + 1)]


def _draw(stories: Sequence[Story], step: int) -> Image.Image:
    font, small = (ImageFont.load_default(size=size) for size in (15, 13))
    rows = [[_picture(grid) for grid in _grids_after(story, step)] for story in stories]
    widths = [max(SIDE, *(images[column].width for images in rows)) for column in range(4)]
    heights = [images[-1].height for images in rows]
    lefts = [MARGIN + sum(widths[:column]) + GAP * column for column in range(4)]
    size = (lefts[-1] + widths[-1] + MARGIN, 2 * MARGIN + LINE + sum(heights) + LINE * len(rows))
    frame = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(frame)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=EDGE)
    after = f" after step {step}" if step else ""
    titles = ("question", f"answer{after}", f"target{after.replace('after', 'of')}", "solution")
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, MARGIN - 2), title, INK, font)
    top = MARGIN + LINE
    for story, images, height in zip(stories, rows, heights, strict=True):
        for left, image in zip(lefts, images, strict=True):
            frame.paste(image, (left, top))
        if step:
            wrong = int((story.answers[step - 1] != story.solution).sum())
            said = f"{wrong} of {story.solution.size} cells wrong" if wrong else "right"
            draw.text((lefts[1], top + height + 3), said, FAINT if wrong else RIGHT, small)
        top += height + LINE
    return frame


def _grids_after(story: Story, step: int) -> list[Grid]:
    """Question, answer, target and solution; before the first step the two between are empty."""
    empty = np.full_like(story.solution, WHITE)
    answer, target = (story.answers[step - 1], story.targets[step - 1]) if step else (empty, empty)
    return [story.question, answer, target, story.solution]


def _picture(grid: Grid) -> Image.Image:
    return draw_grid(grid, cell=(SIDE - 1) // max(grid.shape)).convert("RGB")


def write_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write the frames so that they play again and again."""
    times = [FIRST_MS, *[STEP_MS] * (len(frames) - 2), LAST_MS]
    # One palette for all, so that nothing flickers.
    palette = frames[-1].quantize(64, dither=Image.Dither.NONE)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with atomic_file(path) as partial:
        flat[0].save(
            partial, format=FORMATS[path.suffix], save_all=True, append_images=flat[1:],
            duration=times, loop=0, optimize=True,
        )  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m evaluation.animate", description=__doc__)
    add = parser.add_argument
    add("results", type=expanded_path, metavar="RESULTS", help="results folder of evaluate.py")
    add("--tasks", nargs="+", required=True, metavar="ID", help="a row each")
    add("--output", type=expanded_path, default=Path("improving.gif"), metavar="FILE",
        help="picture to write, over what is there (default: improving.gif)")  # fmt: skip
    add("--data", type=expanded_path, metavar="DIR",
        help="the dataset, if it is no longer where metrics.json says")  # fmt: skip
    return parser.parse_args()


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    path = arguments.output
    if path.suffix not in FORMATS:
        raise UserError(f"--output {path}: name a file that ends in {' or '.join(FORMATS)}")
    require_creatable(path, "--output")
    stories = read_stories(arguments.results, arguments.data, arguments.tasks)
    write_animation(draw_frames(stories), path)
    log.info("Wrote %s, %s kB", path, f"{path.stat().st_size / 1000:.0f}")


if __name__ == "__main__":
    main()
