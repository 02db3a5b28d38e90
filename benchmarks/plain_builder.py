"""The plain way to build a dataset: what `dataset.build_arc_dataset` is measured against.

    python -m benchmarks.plain_builder --input-file-prefix PREFIX --output-dir OUT \
        --subsets training evaluation concept --test-set-name evaluation --every 48

One process takes one variant after another: draws it, transforms the grids of all pairs, knows
duplicates by a hash of these grids, pads every grid to a canvas, keeps everything in lists, and
stacks and saves them at the end. It writes a valid dataset in the full layout, of tasks that suit a
canvas of 30 x 30; nothing is checked, and its random numbers are not the builder's.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import CommandParser, UserError, exit_cleanly

SIDE = 30
DRAWS_PER_VARIANT = 5

Array = npt.NDArray[Any]
Grids = list[tuple[Array, Array]]
"""Input and output of each pair."""

TRANSFORMS: tuple[Callable[[Array], Array], ...] = (
    lambda grid: grid,
    lambda grid: np.rot90(grid),
    lambda grid: np.rot90(grid, 2),
    lambda grid: np.rot90(grid, 3),
    lambda grid: np.fliplr(grid),
    lambda grid: np.flipud(grid),
    lambda grid: np.transpose(grid),
    lambda grid: np.fliplr(np.rot90(grid)),
)


@dataclass
class PlainTask:
    """A task's pairs, those for the train split first."""

    task_id: str
    raw: dict[str, Any]
    pairs: Grids
    num_train: int


def read_tasks(prefix: str, subsets: list[str], test_set_name: str) -> list[PlainTask]:
    tasks = []
    for subset in subsets:
        challenges, solutions = (
            json.loads(Path(f"{prefix}_{subset}_{kind}.json").read_text())
            for kind in ("challenges", "solutions")
        )
        for task_id, raw in challenges.items():
            for pair, solution in zip(raw["test"], solutions[task_id], strict=True):
                pair["output"] = solution
            pairs = [
                (np.array(pair["input"], np.uint8), np.array(pair["output"], np.uint8))
                for pair in raw["train"] + raw["test"]
            ]
            num_train = len(raw["train"]) if subset == test_set_name else len(pairs)
            tasks.append(PlainTask(task_id, raw, pairs, num_train))
    return tasks


def draw_variants(
    task: PlainTask, num_aug: int, rng: np.random.Generator
) -> list[tuple[str, Grids]]:
    """Names and grids of the original and of up to `num_aug` distinct variants."""
    variants = [(task.task_id, task.pairs)]
    seen = {content_hash(task.pairs)}
    for _ in range(DRAWS_PER_VARIANT * num_aug):
        if len(variants) > num_aug:
            break
        which = int(rng.integers(len(TRANSFORMS)))
        colours = np.concatenate([[0], rng.permutation(np.arange(1, 10))]).astype(np.uint8)
        transform = TRANSFORMS[which]
        grids = [(colours[transform(a)], colours[transform(b)]) for a, b in task.pairs]
        digest = content_hash(grids)
        if digest not in seen:
            seen.add(digest)
            digits = "".join(map(str, colours))
            variants.append((f"{task.task_id}|||t{which}|||{digits}", grids))
    return variants


def content_hash(grids: Grids) -> bytes:
    content = hashlib.sha256()
    for pair in grids:
        for grid in pair:
            content.update(bytes(grid.shape) + grid.tobytes())
    return content.digest()


def canvas(grid: Array, top: int, left: int) -> Array:
    """The grid's tokens at (top, left) of a flat canvas, with EOS below and to the right."""
    rows, cols = grid.shape
    padded = np.pad(grid + 2, ((top, SIDE - top - rows), (left, SIDE - left - cols)))
    if top + rows < SIDE:
        padded[top + rows, left : left + cols] = 1
    if left + cols < SIDE:
        padded[top : top + rows, left + cols] = 1
    return padded.flatten()


@dataclass
class PlainSplit:
    """What is collected for a split."""

    inputs: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    identifiers: list[int] = field(default_factory=list)
    puzzle_indices: list[int] = field(default_factory=lambda: [0])
    group_indices: list[int] = field(default_factory=lambda: [0])

    def add(self, pairs: Grids, identifier: int, rng: np.random.Generator | None) -> None:
        """Render the pairs of one variant; with `rng` all but one are moved."""
        stays = rng.integers(len(pairs)) if rng else None
        for number, (question, answer) in enumerate(pairs):
            top = left = 0
            if rng and number != stays:
                rows, cols = np.maximum(question.shape, answer.shape)
                top, left = (int(rng.integers(SIDE - size + 1)) for size in (rows, cols))
            self.inputs.append(canvas(question, top, left))
            self.labels.append(canvas(answer, top, left))
        self.identifiers.append(identifier)
        self.puzzle_indices.append(len(self.inputs))

    def save(self, folder: Path, num_identifiers: int) -> None:
        folder.mkdir(parents=True)
        for name, canvases in (("inputs", self.inputs), ("labels", self.labels)):
            stacked = np.stack(canvases) if canvases else np.zeros((0, SIDE * SIDE), np.uint8)
            np.save(folder / f"all__{name}.npy", stacked)
        for name, numbers in (
            ("puzzle_identifiers", self.identifiers),
            ("puzzle_indices", self.puzzle_indices),
            ("group_indices", self.group_indices),
        ):
            np.save(folder / f"all__{name}.npy", np.array(numbers, np.int32))
        metadata = {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": 12,
            "seq_len": SIDE * SIDE,
            "num_puzzle_identifiers": num_identifiers,
            "total_groups": len(self.group_indices) - 1,
            "mean_puzzle_examples": len(self.inputs) / max(len(self.identifiers), 1),
            "total_puzzles": len(self.identifiers),
            "sets": ["all"],
        }
        (folder / "dataset.json").write_text(json.dumps(metadata))


def build_plainly(tasks: list[PlainTask], output_dir: Path, num_aug: int, seed: int = 0) -> None:
    """Build a dataset of the given tasks."""
    rng = np.random.default_rng(seed)
    train, test = PlainSplit(), PlainSplit()
    names, test_tasks = ["<blank>"], {}
    for task in tasks:
        held_out = task.num_train < len(task.pairs)
        for name, pairs in draw_variants(task, num_aug, rng):
            train.add(pairs[: task.num_train], len(names), rng)
            if held_out:
                test.add(pairs[task.num_train :], len(names), None)
            names.append(name)
        train.group_indices.append(len(train.identifiers))
        if held_out:
            test.group_indices.append(len(test.identifiers))
            test_tasks[task.task_id] = task.raw
    train.save(output_dir / "train", len(names))
    test.save(output_dir / "test", len(names))
    (output_dir / "identifiers.json").write_text(json.dumps(names))
    (output_dir / "test_puzzles.json").write_text(json.dumps(test_tasks))


@exit_cleanly
def main() -> None:
    parser = CommandParser(
        prog="python -m benchmarks.plain_builder", description="Build a dataset in the plain way."
    )
    add = parser.add_argument
    add("--input-file-prefix", required=True)
    add("--output-dir", required=True, type=Path, help="folder to create")
    add("--subsets", required=True, nargs="+")
    add("--test-set-name", required=True)
    add("--num-aug", type=int, default=1000)
    add("--every", type=int, default=1, metavar="K", help="build every K-th task only")
    args = parser.parse_args()
    if args.every < 1:
        raise UserError(f"--every {args.every}: must be 1 or more")
    tasks = read_tasks(args.input_file_prefix, args.subsets, args.test_set_name)
    build_plainly(tasks[args.every // 2 :: args.every], args.output_dir, args.num_aug)


if __name__ == "__main__":
    main()
