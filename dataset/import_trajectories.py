r"""Trajectories: grids between a pair's input and its solution, computed elsewhere.

A solver or a language model has worked out how a pair's output comes about; every example of the
pair is then supervised along that way (DIS, arXiv 2511.16886 §4: a Phi that is read from a file).

    python -m dataset.import_trajectories --trajectories steps.json \
        --dataset data/arc1concept-aug-1000 --output data/trajectories.npz

`steps.json` is `{task_id: [[grid, grid, ...] or null, ...]}`: for each task its pairs in order,
train pairs before test pairs, and for each pair the grids that lead from its input to its output,
in the task's own colours and orientation; null where there are none. The command checks them,
reports what is wrong with a trajectory and leaves it out, leads one that does not end at the
solution there by one more frame, and writes what `data.trajectories` names to the trainer:

    task_id    str [M]           the task of each trajectory
    pair       int32 [M]         which of the task's pairs in the train half
    projected  bool [M]          whether projection changes it, for information
    offsets    int64 [M + 1]     of the trajectories' frames
    frames     uint8 [N, cells]  the input, what lies between, and the solution, as given: canvases
                                 of unaugmented grids at the top-left

An example shows each frame as its variant would, and the frames are then projected to a monotone
path: a cell that has reached the solution's token keeps it. Only there, since frames may differ in
size, and where they lie over each other depends on the variant.
"""

import logging
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.errors import UserError, exit_cleanly
from common.files import atomic_file, read_arrays, require_creatable
from common.flags import parse_flags
from common.json_files import read_object
from common.progress import follow
from common.settings import AnyPath, Settings
from common.tokens import MISSING, PAD
from dataset.augmentation import augment, parse_variant_name
from dataset.canvas import COLOUR_OFFSET, EOS, VOCAB_SIZE, Canvases, canvas_side, place, read_back
from dataset.splits import Split, open_split, require_square
from dataset.storage import IDENTIFIERS_FILE, load_identifiers, require
from dataset.tasks import Grid, parse_grid

IMPORT_AGAIN = "import them for this dataset with 'python -m dataset.import_trajectories'"
MAX_PROBLEMS = 50
"""Lines of the report; what is beyond is only counted."""

log = logging.getLogger(__name__)


class ImportOptions(Settings):
    """The command's flags."""

    trajectories: AnyPath = Field(
        title="STEPS.json",
        description="for each task its pairs in order, for each pair its grids, or null",
    )
    dataset: AnyPath = Field(
        title="PATH", description="the dataset folder to train on, in either layout"
    )
    output: AnyPath = Field(title="PATH.npz", description="the file to write")


def import_trajectories(
    trajectories: Path, dataset: Path, output: Path
) -> tuple[dict[str, int], list[str]]:
    """Write `output`; return what was counted, and what was wrong, a sentence each.

    Raises:
        UserError: source or dataset are damaged, the output exists, or no trajectory is left.
    """
    if output.exists():
        raise UserError(f"--output {output} exists already: remove it or choose another")
    require_creatable(output, "--output")
    source = read_object(trajectories, "correct --trajectories")
    split = open_split(dataset, "train", option="--dataset ")
    require_square(split, f"--dataset {dataset}")
    side, pairs = canvas_side(split.metadata.seq_len), read_pairs(split, source.keys())
    known = [task_id for task_id in source if task_id in pairs]
    kept: dict[tuple[str, int], list[Grid]] = {}
    problems, num_untrained = [], 0
    for task_id in follow(known, "checking", "task"):
        if not isinstance(source[task_id], list):
            problems.append(f"task '{task_id}': must be a list, an entry for each pair")
            continue
        for index, frames in enumerate(source[task_id]):
            if frames is not None and index >= len(pairs[task_id]):
                num_untrained += 1  # A held-out test pair, which must not be trained on.
            elif frames is not None:
                where = f"task '{task_id}', pair {index}"
                try:
                    pair = pairs[task_id][index]
                    kept[task_id, index] = check_frames(frames, *pair, side, where)
                except UserError as error:
                    problems.append(str(error))
    # Whole subsets may be missing on purpose: that must not crowd out what is wrong.
    report = problems + [
        f"task '{task_id}': is not in the dataset's train half"
        for task_id in source
        if task_id not in pairs
    ]
    if not kept:
        raise UserError(
            f"--trajectories {trajectories}: none can be used with {dataset}; "
            f"{next(iter(report), 'it holds none for a pair that is trained on')}"
        )
    counts = {
        "tasks": len({task_id for task_id, _ in kept}),
        "trajectories": len(kept),
        "frames": sum(len(grids) - 1 for grids in kept.values()),
        "solutions appended": sum(
            source[task_id][index][-1] != grids[-1].tolist()
            for (task_id, index), grids in kept.items()
        ),
        "changed by projection": _save(output, kept, side),
        "dropped as invalid": len(problems),
        "of pairs that are not trained on": num_untrained,
        "tasks not in the dataset": len(source) - len(known),
    }
    return counts, report


def check_frames(raw: Any, start: Grid, solution: Grid, side: int, where: str) -> list[Grid]:
    """Input, frames and solution as grids; a first frame that is the input is not repeated.

    Raises:
        UserError: not a list of grids that fit the canvas; the message starts with `where`.
    """
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
    if not np.array_equal(grids[-1], solution):
        grids.append(solution)
    if len(grids) > 1 and np.array_equal(grids[0], start):
        del grids[0]
    return [start, *grids]


def _save(path: Path, kept: dict[tuple[str, int], list[Grid]], side: int) -> int:
    """Write the file in one step; return how many trajectories the projection changes."""
    task_ids, pairs = zip(*kept, strict=True)
    frames = [
        np.concatenate([place(grid[None], side) for grid in grids]) for grids in kept.values()
    ]
    projected = [not np.array_equal(project(canvases), canvases) for canvases in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            task_id=np.array(task_ids, dtype=np.str_),
            pair=np.array(pairs, dtype=np.int32),
            projected=np.array(projected),
            offsets=np.cumsum([0, *map(len, frames)], dtype=np.int64),
            frames=np.concatenate(frames),
        )
    return sum(projected)


def read_pairs(split: Split, task_ids: Collection[str]) -> dict[str, list[tuple[Grid, Grid]]]:
    """Inputs and outputs of the pairs that a train half holds of the given tasks, unaugmented.

    Tasks that it does not hold are left out.
    """
    pairs = {}
    for puzzle, name in enumerate(puzzle_names(split)):
        if name in task_ids:  # Else a variant, or another task.
            canvases = split.read(np.arange(*split.puzzle_indices[puzzle : puzzle + 2]))
            inputs, outputs = ([read_grid(c, split.path) for c in half] for half in canvases)
            pairs[name] = list(zip(inputs, outputs, strict=True))
    return pairs


def read_grid(canvas: npt.NDArray[np.uint8], source: object) -> Grid:
    """The grid that a canvas [cells] shows anywhere; UserError that names `source` without one."""
    # What wraps around as the first colour is moved to the front is PAD.
    grid = read_back(np.roll(canvas, -np.argmax(canvas >= COLOUR_OFFSET)))
    if grid is None:
        raise UserError(f"{source}: a canvas shows no grid; it is damaged, make it again")
    return grid


def puzzle_names(split: Split) -> list[str]:
    """The name of each puzzle of a split; UserError if `identifiers.json` lacks some."""
    dataset_path, identifiers = split.path.parent, split.puzzle_identifiers
    names = load_identifiers(dataset_path)
    require(
        identifiers.max() < len(names),
        f"{dataset_path / IDENTIFIERS_FILE}: {len(names)} names, but {split.path} has a puzzle "
        f"with the identifier {identifiers.max()}",
    )
    return [names[identifier] for identifier in identifiers.tolist()]


class Trajectories:
    """Targets along the trajectories of a file, for the examples of a split.

    What the file holds beyond the split is not used.

    Raises:
        UserError: the file is missing, damaged or for another canvas, none of its tasks is in the
            split, or their inputs and outputs are others there.
    """

    def __init__(self, path: Path, split: Split) -> None:
        source, num_cells = f"data.trajectories={path}", split.metadata.seq_len
        require_square(split, source)
        trajectories = load_file(path)
        pairs = read_pairs(split, {task_id for task_id, _ in trajectories})
        self.split = split
        self.side = canvas_side(num_cells)
        self._names = puzzle_names(split)
        # As stacks [n, rows, columns] of successive frames of one size: quicker than one by one.
        self._stacks: dict[tuple[str, int], list[Grid]] = {}
        for (task_id, pair), frames in trajectories.items():
            if frames.shape[1] != num_cells:
                raise UserError(
                    f"{source} is for canvases of {frames.shape[1]} cells, {split.path} has "
                    f"{num_cells}: {IMPORT_AGAIN}"
                )
            if not 0 <= pair < len(pairs.get(task_id, ())):
                continue
            grids = [read_grid(frame, source) for frame in frames]
            if not all(map(np.array_equal, (grids[0], grids[-1]), pairs[task_id][pair])):
                raise UserError(
                    f"{source}: in {split.path} pair {pair} of task '{task_id}' is another one: "
                    f"{IMPORT_AGAIN}"
                )
            self._stacks[task_id, pair] = [
                np.stack(list(alike)) for _, alike in groupby(grids, key=np.shape)
            ]
        if not self._stacks:
            num_tasks = len({task_id for task_id, _ in trajectories})
            raise UserError(
                f"{source}: none of its {num_tasks} tasks is in {split.path}: {IMPORT_AGAIN}"
            )

    def targets(
        self, examples: npt.NDArray[np.int64], origins: npt.NDArray[np.int64], num_steps: int
    ) -> npt.NDArray[np.uint8]:
        """y†_1 ... y†_S of examples [n] whose grids are at `origins` [n, 2]: [n, S, cells].

        Of a trajectory's frames, 0 the input and F the solution, y†_s is number ceil(s * F / S).
        MISSING in all cells of an example whose pair has no trajectory.
        """
        puzzles = np.searchsorted(self.split.puzzle_indices, examples, side="right") - 1
        pairs = examples - self.split.puzzle_indices[puzzles]
        targets = np.full((len(examples), num_steps, self.side, self.side), MISSING, np.uint8)
        for target, puzzle, pair, origin in zip(
            targets, puzzles.tolist(), pairs.tolist(), origins.tolist(), strict=True
        ):
            task_id, dihedral, permutation = parse_variant_name(self._names[puzzle])
            if stacks := self._stacks.get((task_id, pair)):
                shown = [
                    show(augment(stack, dihedral, permutation), self.side, origin)
                    for stack in stacks
                ]
                frames = project(np.concatenate(shown))
                # Rounded up, so that the last is the solution, and the first is not the input.
                target[:] = frames[-(-np.arange(1, num_steps + 1) * (len(frames) - 1) // num_steps)]
        return targets.reshape(len(examples), num_steps, -1)


def load_file(path: Path) -> dict[tuple[str, int], Canvases]:
    """(task, pair) -> the frames [F + 1, cells] of its trajectory, input and solution among them.

    Raises:
        UserError: the file is missing or damaged, or an array is missing or has another form.
    """
    source, names = f"data.trajectories={path}", ("task_id", "pair", "offsets", "frames")
    arrays = read_arrays(path, names, source, IMPORT_AGAIN)
    task_id, pair, offsets, frames = (arrays[name] for name in names)
    is_sound = (
        (task_id.dtype.kind, pair.dtype.kind, offsets.dtype.kind, frames.dtype)
        == ("U", "i", "i", np.uint8)
        and pair.ndim == 1
        and len(pair) > 0
        and pair.shape == task_id.shape
        and offsets.shape == (len(task_id) + 1,)
        and frames.ndim == 2
        and (offsets[0], offsets[-1]) == (0, len(frames))
        # An input and a solution at least.
        and bool((np.diff(offsets) >= 2).all())
        and bool((frames < VOCAB_SIZE).all())
    )
    if not is_sound:
        raise UserError(f"{source}: the arrays do not fit each other: {IMPORT_AGAIN}")
    keys = zip(task_id.tolist(), pair.tolist(), strict=True)
    return dict(zip(keys, np.split(frames, offsets[1:-1]), strict=True))


def show(grids: Grid, side: int, origin: list[int]) -> Canvases:
    """Canvases [n, side, side] that show grids [n, rows, columns] with their top-left at `origin`.

    Unlike `place` it cuts off what would be over the canvas's edge: a frame may be larger than
    input and output, whose sizes limit how far a pair is moved.
    """
    canvases = np.full((len(grids), side, side), PAD, dtype=np.uint8)
    # From here on slices end where the canvas does.
    room = canvases[:, origin[0] :, origin[1] :]
    rows, cols = grids.shape[1:]
    room[:, :rows, :cols] = grids[:, : room.shape[1], : room.shape[2]] + np.uint8(COLOUR_OFFSET)
    room[:, rows : rows + 1, :cols] = EOS
    room[:, :rows, cols : cols + 1] = EOS
    return canvases


def project(canvases: Canvases) -> Canvases:
    """Canvases [F, ...] in which a cell keeps the last one's token from where it first has it.

    So each is at least as close to the last as the one before, on any part of the canvas.
    """
    reached = np.logical_or.accumulate(canvases == canvases[-1], axis=0)
    return np.where(reached, canvases[-1], canvases)


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_flags(ImportOptions, "python -m dataset.import_trajectories", __doc__)
    counts, problems = import_trajectories(**dict(options))
    for problem in problems[:MAX_PROBLEMS]:
        log.warning("%s", problem)
    if len(problems) > MAX_PROBLEMS:
        log.warning("... and %d more", len(problems) - MAX_PROBLEMS)
    log.info("Wrote %s", options.output)
    for what, count in counts.items():
        log.info("  %s: %s", what, f"{count:,}")


if __name__ == "__main__":
    main()
