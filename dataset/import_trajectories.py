r"""Check trajectories of grids that were computed elsewhere, and write what the loader reads.

    python -m dataset.import_trajectories --trajectories steps.json \
        --dataset data/arc1concept-aug-1000 --output data/trajectories.npz

`steps.json` is `{task_id: [[grid, grid, ...] or null, ...]}`: for each task its pairs in order,
train pairs before test pairs, and for each pair the grids that lead from its input to its output,
in the task's own colours and orientation; null where there are none. `dataset.trajectories` says
what is written; `data.trajectories` names it to the trainer.

What is wrong with a trajectory is reported, and it is left out. Two things are put right: one that
does not end at the solution is led there by one more frame, and one that goes astray (a frame is
further from the solution than the one before) is projected, a cell that was right staying right,
or left out if `--non-monotone drop` says so. Distance is the number of wrong cells, where the
solution is not PAD, as the network will see it: a trajectory whose frames differ in size can go
astray under one dihedral transform and not under another, and must not under any.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.errors import CommandParser, UserError, exit_cleanly
from common.files import require_creatable
from dataset.augmentation import IDENTITY_PERMUTATION, NUM_DIHEDRALS, transformed_sizes
from dataset.canvas import PAD, Canvases, canvas_side, place
from dataset.splits import open_split, require_square
from dataset.tasks import Grid, Pair, load_object, parse_grid
from dataset.trajectories import TrajectoryFile, read_pairs, show_frames

MAX_PROBLEMS = 50
"""Lines of the report; what is beyond is only counted."""
NON_MONOTONE = ("project", "drop")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportOptions:
    """The command line, as parsed."""

    trajectories: Path
    dataset: Path
    output: Path
    non_monotone: Literal["project", "drop"] = "project"


@dataclass
class Summary:
    """What became of the trajectories."""

    tasks: int = 0
    trajectories: int = 0
    frames: int = 0
    solutions_appended: int = 0
    projected: int = 0
    dropped_as_not_monotone: int = 0
    dropped_as_invalid: int = 0
    of_pairs_that_are_not_trained_on: int = 0
    tasks_not_in_the_dataset: int = 0

    def lines(self) -> Iterator[str]:
        """One line of text for each count."""
        for key, value in asdict(self).items():
            yield f"  {key.replace('_', ' ')}: {value:,}"


class Trajectory(NamedTuple):
    """One that is kept."""

    task_id: str
    pair: int
    projected: bool
    frames: Canvases
    """[n, cells]: input, ..., solution."""


def import_trajectories(options: ImportOptions) -> tuple[Summary, list[str]]:
    """Write `options.output`; return the counts and what was wrong, a sentence each.

    Raises:
        UserError: a file or the dataset is missing or damaged, the output exists, or no trajectory
            is left.
    """
    if not options.trajectories.is_file():
        raise UserError(f"--trajectories {options.trajectories} does not exist: check the path")
    if options.output.exists():
        raise UserError(f"--output {options.output} exists already: remove it or choose another")
    require_creatable(options.output, "--output")
    source = load_object(options.trajectories)
    split = open_split(options.dataset, "train", option="--dataset ")
    require_square(split, f"--dataset {options.dataset}")
    importer = _Importer(canvas_side(split.metadata.seq_len), options.non_monotone)
    tasks = read_pairs(split, source.keys())
    for task_id, raw in tqdm(source.items(), desc="checking", unit="task"):
        importer.add_task(task_id, raw, tasks.get(task_id))
    # Whole subsets may be missing on purpose: that must not crowd out what is wrong.
    problems = importer.problems + importer.unknown_tasks
    if not importer.kept:
        raise UserError(
            f"--trajectories {options.trajectories}: none can be used with {options.dataset}; "
            f"{next(iter(problems), 'it holds none for a pair that is trained on')}"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    _to_file(importer.kept).save(options.output)
    return importer.summary, problems


class _Importer:
    """Collects what is kept, counted and wrong."""

    def __init__(self, side: int, non_monotone: str) -> None:
        self.side = side
        self.non_monotone = non_monotone
        self.kept: list[Trajectory] = []
        self.summary = Summary()
        self.problems: list[str] = []
        self.unknown_tasks: list[str] = []

    def add_task(self, task_id: str, raw: Any, pairs: list[Pair] | None) -> None:
        where = f"task '{task_id}'"
        if pairs is None:
            self.summary.tasks_not_in_the_dataset += 1
            self.unknown_tasks.append(f"{where}: is not in the dataset's train half")
            return
        if not isinstance(raw, list):
            self.summary.dropped_as_invalid += 1
            self.problems.append(f"{where}: must be a list, an entry for each pair")
            return
        kept_before = len(self.kept)
        for index, frames in enumerate(raw):
            if frames is None:
                continue
            if index >= len(pairs):
                # A test task's test pairs, which must not be trained on.
                self.summary.of_pairs_that_are_not_trained_on += 1
                continue
            try:
                self._add(task_id, index, frames, pairs[index])
            except UserError as error:
                self.summary.dropped_as_invalid += 1
                self.problems.append(str(error))
        self.summary.tasks += len(self.kept) > kept_before

    def _add(self, task_id: str, index: int, raw: Any, pair: Pair) -> None:
        where = f"task '{task_id}', pair {index}"
        grids, appended = check_frames(raw, pair, self.side, where)
        frames = np.concatenate([place(grid[None], self.side) for grid in grids])
        sizes = np.array([grid.shape for grid in grids])
        rise = find_rise(frames.reshape(-1, self.side, self.side), sizes)
        if rise is not None:
            what = "projected" if self.non_monotone == "project" else "dropped"
            # As the user counts: the input may or may not have stood at the front.
            number = rise.frame + len(raw) + appended + 1 - len(grids)
            turned = f" under dihedral transform {rise.dihedral}" if rise.dihedral else ""
            self.problems.append(
                f"{where}, frame {number}: {rise.after} cells are wrong, {rise.before} were in the "
                f"frame before{turned}; {what}"
            )
            if self.non_monotone == "drop":
                self.summary.dropped_as_not_monotone += 1
                return
        self.summary.trajectories += 1
        self.summary.frames += len(grids) - 1
        self.summary.solutions_appended += appended
        self.summary.projected += rise is not None
        self.kept.append(Trajectory(task_id, index, rise is not None, frames))


def check_frames(raw: Any, pair: Pair, side: int, where: str) -> tuple[list[Grid], bool]:
    """Input, frames and solution as grids, and whether the solution was missing at the end.

    A first frame that is the input is not repeated.

    Raises:
        UserError: not a list of grids that fit the canvas, or there is no solution to lead to.
    """
    if pair.output is None:
        raise UserError(f"{where}: the dataset does not hold its solution")
    if not isinstance(raw, list) or not raw:
        raise UserError(f"{where}: must be a list of one grid or more, or null")
    grids = []
    for number, value in enumerate(raw, start=1):
        grid = parse_grid(value, f"{where}, frame {number}")
        if max(grid.shape) > side:
            raise UserError(
                f"{where}, frame {number}: {grid.shape[0]}x{grid.shape[1]} cells do not fit the "
                f"dataset's canvas of {side}x{side}"
            )
        grids.append(grid)
    appended = not np.array_equal(grids[-1], pair.output)
    if appended:
        grids.append(pair.output)
    if len(grids) > 1 and np.array_equal(grids[0], pair.input):
        del grids[0]
    return [pair.input, *grids], appended


class Rise(NamedTuple):
    """Where a trajectory goes astray."""

    frame: int
    """Counted from 0, the input."""
    before: int
    """Wrong cells of the frame before it."""
    after: int
    """And its own."""
    dihedral: int
    """The transform under which it is so."""


def find_rise(frames: Canvases, sizes: npt.NDArray[np.int64]) -> Rise | None:
    """The first frame [n, side, side] further from the last than the one before; None without any.

    Under any dihedral transform, and whether or not the canvas ends where the solution does, which
    then lacks EOS at the bottom or at the right. `sizes` [n, 2] are the frames' rows and columns.
    """
    for dihedral in range(NUM_DIHEDRALS):
        shown = show_frames(frames, sizes, dihedral, IDENTITY_PERMUTATION, [0, 0])
        wrong = (shown != shown[-1]) & (shown[-1] != PAD)
        ((rows, cols),) = transformed_sizes(sizes[-1:], np.array([dihedral])).tolist()
        for bottom, right in ((1, 1), (1, 0), (0, 1), (0, 0)):
            distances = wrong[:, : rows + bottom, : cols + right].sum(axis=(1, 2))
            rises = np.flatnonzero(np.diff(distances) > 0)
            if len(rises):
                first = int(rises[0])
                before, after = distances[first : first + 2].tolist()
                return Rise(first + 1, before, after, dihedral)
    return None


def _to_file(kept: list[Trajectory]) -> TrajectoryFile:
    task_ids, pairs, projected, frames = zip(*kept, strict=True)
    return TrajectoryFile(
        task_id=np.array(task_ids, dtype=np.str_),
        pair=np.array(pairs, dtype=np.int32),
        projected=np.array(projected, dtype=np.bool_),
        offsets=np.cumsum([0, *map(len, frames)], dtype=np.int64),
        frames=np.concatenate(frames),
    )


def parse_arguments() -> ImportOptions:
    parser = CommandParser(
        prog="python -m dataset.import_trajectories",
        description="Check trajectories of grids and write them for data.trajectories.",
    )
    add = parser.add_argument
    add("--trajectories", required=True, type=Path, metavar="STEPS.json",
        help="for each task its pairs in order, for each pair its grids, or null")  # fmt: skip
    add("--dataset", required=True, type=Path, metavar="PATH",
        help="the dataset folder to train on, in either layout")  # fmt: skip
    add("--output", required=True, type=Path, metavar="PATH.npz", help="the file to write")
    add("--non-monotone", choices=NON_MONOTONE, default="project",
        help="a trajectory with a frame further from the solution than the one before: "
        "project, a cell that was right stays right (the default), or drop")  # fmt: skip
    args = parser.parse_args()
    return ImportOptions(args.trajectories, args.dataset, args.output, args.non_monotone)


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_arguments()
    summary, problems = import_trajectories(options)
    for problem in problems[:MAX_PROBLEMS]:
        log.warning("%s", problem)
    if len(problems) > MAX_PROBLEMS:
        log.warning("... and %d more", len(problems) - MAX_PROBLEMS)
    log.info("Wrote %s", options.output)
    for line in summary.lines():
        log.info("%s", line)


if __name__ == "__main__":
    main()
