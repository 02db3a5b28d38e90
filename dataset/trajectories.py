"""Trajectories: grids between a pair's input and its solution, computed elsewhere.

A solver or a language model has worked out how a pair's output comes about; every example of the
pair is then supervised along that way (DIS, arXiv 2511.16886 §4: a Phi that is read from a file).
`dataset.import_trajectories` makes the file from JSON:

    task_id    str [M]           the task of each trajectory
    pair       int32 [M]         which of the task's pairs in the train half
    projected  bool [M]          whether a cell, once right, is to stay right
    offsets    int64 [M + 1]     of the trajectories' frames
    frames     uint8 [N, cells]  the input, what lies between, and the solution: canvases of
                                 unaugmented grids at the top-left

Frames are grids, which may differ in size, and an example shows each as its variant would. So
what is right about a frame depends on the variant, and it is only there that frames are projected.
"""

import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.files import atomic_file
from common.segments import MISSING
from dataset.augmentation import parse_variant_name, transform
from dataset.canvas import (
    COLOUR_OFFSET,
    EOS,
    PAD,
    VOCAB_SIZE,
    Canvases,
    canvas_side,
    read_back,
    read_extents,
)
from dataset.splits import Split, require_square
from dataset.storage import IDENTIFIERS_FILE, load_identifiers, require
from dataset.tasks import Pair
from dataset.windows import shown_boxes

IMPORT_AGAIN = "import them for this dataset with 'python -m dataset.import_trajectories'"

# TypeError: it is an .npy file. RuntimeError: damage that looks like an unusual zip.
_NOT_AN_NPZ = (ValueError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class TrajectoryFile:
    """The arrays of the file, see the module docstring."""

    task_id: npt.NDArray[np.str_]
    pair: npt.NDArray[np.int32]
    projected: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    frames: Canvases

    def save(self, path: Path) -> None:
        """Write the file, compressed, in one step."""
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})


def load_file(path: Path) -> TrajectoryFile:
    """Read and check a file of trajectories.

    Raises:
        UserError: it is missing or damaged, an array is missing or has another form.
    """
    source = f"data.trajectories={path}"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, npt.NDArray[Any]] = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist: {IMPORT_AGAIN}") from error
    except _NOT_AN_NPZ as error:
        raise UserError(f"{source} is damaged or no .npz file ({error}): {IMPORT_AGAIN}") from error
    for field in fields(TrajectoryFile):
        if field.name not in arrays:
            raise UserError(f"{source} has no array '{field.name}': {IMPORT_AGAIN}")
    trajectories = TrajectoryFile(**{f.name: arrays[f.name] for f in fields(TrajectoryFile)})
    if not _is_sound(trajectories):
        raise UserError(f"{source}: the arrays do not fit each other: {IMPORT_AGAIN}")
    return trajectories


def _is_sound(file: TrajectoryFile) -> bool:
    count, frames, offsets = len(file.task_id), file.frames, file.offsets
    return (
        file.task_id.dtype.kind == "U"
        and file.pair.dtype.kind in "iu"
        and file.projected.dtype == np.bool_
        and file.pair.shape == file.projected.shape == (count,)
        and frames.dtype == np.uint8
        and frames.ndim == 2
        and round(frames.shape[1] ** 0.5) ** 2 == frames.shape[1]
        and bool((frames < VOCAB_SIZE).all())
        and bool((read_extents(frames)[0] > 0).all())
        and offsets.dtype.kind in "iu"
        and offsets.shape == (count + 1,)
        and offsets[0] == 0
        and offsets[-1] == len(frames)
        # An input and a solution at least.
        and bool((np.diff(offsets) >= 2).all())
    )


class Trajectories:
    """Targets along the trajectories of a file, for the examples of a split.

    What the file holds beyond the split is not used.

    Raises:
        UserError: the file is missing, damaged or for another canvas, none of its tasks is in the
            split, or their inputs and outputs are others there.
    """

    def __init__(self, path: Path, split: Split) -> None:
        source = f"data.trajectories={path}"
        require_square(split, source)
        self.split = split
        self._file = load_file(path)
        num_cells, frames = split.metadata.seq_len, self._file.frames
        self.side = canvas_side(num_cells)
        if frames.shape[1] != num_cells:
            raise UserError(
                f"{source} is for canvases of {frames.shape[1]} cells, {split.path} has "
                f"{num_cells}: {IMPORT_AGAIN}"
            )
        self._frames = frames.reshape(-1, self.side, self.side)
        self._sizes = np.stack(read_extents(frames), axis=1)
        self._names = puzzle_names(split)
        self._numbers = self._match(source)

    def _match(self, source: str) -> dict[tuple[str, int], int]:
        """(task, pair) -> the number of its trajectory, for those that the split holds."""
        task_ids, pairs = self._file.task_id.tolist(), self._file.pair.tolist()
        stored = read_pairs(self.split, set(task_ids))
        numbers = {}
        for number, (task_id, index) in enumerate(zip(task_ids, pairs, strict=True)):
            if not 0 <= index < len(stored.get(task_id, ())):
                continue
            pair = stored[task_id][index]
            first, end = self._file.offsets[number : number + 2]
            for frame, grid in ((first, pair.input), (end - 1, pair.output)):
                rows, cols = self._sizes[frame]
                shown = self._frames[frame, :rows, :cols] - COLOUR_OFFSET
                if grid is None or not np.array_equal(shown, grid):
                    raise UserError(
                        f"{source}: in {self.split.path} pair {index} of task '{task_id}' is "
                        f"another one: {IMPORT_AGAIN}"
                    )
            numbers[task_id, index] = number
        if not numbers:
            raise UserError(
                f"{source}: none of its {len(set(task_ids))} tasks is in {self.split.path}: "
                f"{IMPORT_AGAIN}"
            )
        return numbers

    def targets(
        self, examples: npt.NDArray[np.int64], origins: npt.NDArray[np.int64], num_steps: int
    ) -> npt.NDArray[np.uint8]:
        """y†_1 ... y†_S of examples [n] whose grids are at `origins` [n, 2]: [n, S, cells].

        Of a trajectory's frames, 0 the input and F the solution, y†_s is number ceil(s * F / S).
        MISSING in all cells of an example whose pair has no trajectory.
        """
        puzzles = np.searchsorted(self.split.puzzle_indices, examples, side="right") - 1
        pairs = examples - self.split.puzzle_indices[puzzles]
        variants = {p: parse_variant_name(self._names[p]) for p in set(puzzles.tolist())}
        targets = np.full((len(examples), num_steps, self.side, self.side), MISSING, np.uint8)
        for target, puzzle, pair, origin in zip(
            targets, puzzles.tolist(), pairs.tolist(), origins.tolist(), strict=True
        ):
            task_id, dihedral, permutation = variants[puzzle]
            number = self._numbers.get((task_id, pair))
            if number is not None:
                target[:] = self._show(number, dihedral, permutation, origin, num_steps)
        return targets.reshape(len(examples), num_steps, -1)

    def _show(
        self,
        number: int,
        dihedral: int,
        permutation: npt.NDArray[np.uint8],
        origin: list[int],
        num_steps: int,
    ) -> Canvases:
        """A trajectory's targets [S, side, side] in one variant and place."""
        first, end = self._file.offsets[number : number + 2]
        # Rounded up, so that the last is the solution, and the first is not the input.
        chosen = -(-np.arange(1, num_steps + 1) * (end - 1 - first) // num_steps)
        projected = self._file.projected[number]
        wanted = slice(first, end) if projected else first + chosen
        shown = show_frames(
            self._frames[wanted], self._sizes[wanted], dihedral, permutation, origin
        )
        return project(shown)[chosen] if projected else shown


def show_frames(
    frames: Canvases,
    sizes: npt.NDArray[np.int64],
    dihedral: int,
    permutation: npt.NDArray[np.uint8],
    origin: list[int],
) -> Canvases:
    """Unaugmented frames [n, side, side] as a variant shows them, their top-left at `origin`.

    What would be over the edge of the canvas is cut off: a frame may be larger than input and
    output, whose sizes limit how far a pair is moved. `sizes` [n, 2] are the frames' rows and
    columns.
    """
    tokens = np.arange(VOCAB_SIZE, dtype=np.uint8)
    tokens[COLOUR_OFFSET:] = permutation + COLOUR_OFFSET
    canvases = np.full_like(frames, PAD)
    row, col = origin
    # From here on slices end where the canvas does.
    room = canvases[:, row:, col:]
    heights, widths = sizes.T.tolist()
    for height, width in dict.fromkeys(zip(heights, widths, strict=True)):
        alike: Any = slice(None)
        if heights.count(height) < len(heights) or widths.count(width) < len(widths):
            alike = np.flatnonzero((sizes == (height, width)).all(axis=1))
        grids = tokens[transform(frames[alike, :height, :width], dihedral)]
        rows, cols = grids.shape[1:]
        room[alike, :rows, :cols] = grids[:, : room.shape[1], : room.shape[2]]
        room[alike, rows : rows + 1, :cols] = EOS
        room[alike, :rows, cols : cols + 1] = EOS
    return canvases


def project(canvases: Canvases) -> Canvases:
    """Canvases [F, ...] in which a cell keeps the last one's token from where it first has it.

    So each is at least as close to the last as the one before, on any part of the canvas.
    """
    reached = canvases == canvases[-1]
    # Twice as quick as `np.logical_or.accumulate`, and this is done for every example of a batch.
    for before, after in pairwise(reached):
        after |= before
    return np.where(reached, canvases[-1], canvases)


def puzzle_names(split: Split) -> list[str]:
    """The name of each puzzle of a split, from the dataset's `identifiers.json`.

    Raises:
        UserError: it is missing or damaged, or names fewer puzzles than there are.
    """
    dataset_path = split.path.parent
    names = load_identifiers(dataset_path)
    identifiers = split.puzzle_identifiers
    require(
        identifiers.max() < len(names),
        f"{dataset_path / IDENTIFIERS_FILE}: {len(names)} names, but {split.path} has a puzzle "
        f"with the identifier {identifiers.max()}",
    )
    return [names[identifier] for identifier in identifiers.tolist()]


def read_pairs(split: Split, task_ids: Collection[str]) -> dict[str, list[Pair]]:
    """The pairs that a split holds of the given tasks, unaugmented: those of the original variant.

    Tasks without one are left out. An output is None where the solution is hidden.
    """
    side = canvas_side(split.metadata.seq_len)
    tasks = {}
    for puzzle, name in enumerate(puzzle_names(split)):
        if name not in task_ids:  # A variant, or another task.
            continue
        inputs, labels = split.read(np.arange(*split.puzzle_indices[puzzle : puzzle + 2]))
        origins = shown_boxes(inputs, labels, side)[:, :2]
        tasks[name] = [
            _read_pair(split, inputs[i].reshape(side, side), labels[i].reshape(side, side), origin)
            for i, origin in enumerate(origins.tolist())
        ]
    return tasks


def _read_pair(split: Split, inputs: Canvases, labels: Canvases, origin: list[int]) -> Pair:
    # Nothing is lost: all that goes over the edge is the PAD above the grid and to its left.
    shift = (-origin[0], -origin[1])
    before, after = (
        read_back(np.roll(canvas, shift, axis=(0, 1)).reshape(-1)) for canvas in (inputs, labels)
    )
    require(before is not None, f"{split.path}: an input shows no grid")
    assert before is not None, "checked"
    return Pair(before, after)
