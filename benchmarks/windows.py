"""Does dropping PAD cost accuracy? The same training on the whole canvas and on windows.

    python -m benchmarks.windows --input-file-prefix kaggle/combined/arc-agi

Takes the ARC-AGI-1 training tasks whose grids all have at most --max-side rows and columns and in
all of whose demonstrations the output is larger than the input, and the demo's recolouring tasks,
on a canvas of --canvas-side. Trains with the same examples, steps and seeds both ways; the tasks'
own test inputs are held out. What could suffer is the size of the answer, as a window says
something about it, and most of all where outputs are larger than inputs: so scores are given for
these tasks apart, and beside them the share of predictions whose size is right.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Results, machine
from common.errors import CommandParser, UserError, exit_cleanly
from config.loading import load_config
from config.schema import DemoConfig
from dataset.augmentation import INVERSE_DIHEDRAL, transform
from dataset.build_arc_dataset import build
from dataset.build_plan import BuildOptions
from dataset.canvas import read_extents
from dataset.storage import TEST_PUZZLES_FILE
from dataset.tasks import Task, load_subset, load_tasks
from evaluation.predictions import PREDICTIONS_FILE, Predictions, load_predictions
from evaluation.scoring import score
from evaluation.voting import count_votes

REPOSITORY = Path(__file__).resolve().parent.parent
WAYS = {
    "whole canvas": ("data.canvas=whole",),
    "window": ("data.canvas=window",),
}


def build_dataset(arguments: argparse.Namespace, folder: Path) -> None:
    """The chosen tasks, each with its test inputs held out."""
    tasks = load_subset(arguments.input_file_prefix, "training")
    growing = {task.task_id for task in larger_outputs(tasks)}
    recolouring = set(load_config("demo", DemoConfig, "", []).task_ids)
    chosen = tuple(
        task.task_id
        for task in tasks
        if task.max_side <= arguments.max_side and task.task_id in growing | recolouring
    )
    build(
        BuildOptions(
            arguments.input_file_prefix,
            folder,
            ("training",),
            ("training",),
            num_aug=arguments.num_aug,
            canvas_side=arguments.canvas_side,
            task_ids=chosen[: arguments.max_tasks],
            layout="compact",
        )
    )


def run(script: str, *arguments: object) -> None:
    """Run one of the project's scripts; its last line of complaint becomes ours.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, str(REPOSITORY / script), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        complaint = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise UserError(f"{script}: {complaint[-1]}")


def outcome(name: str, seed: int, evaluation: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """One row: scores over all tasks, and over those with larger outputs."""
    predictions = load_predictions(evaluation / PREDICTIONS_FILE)
    metrics = json.loads((evaluation / "metrics.json").read_text())
    row = {"trained on": name, "seed": seed, "exact": metrics["exact_accuracy"]}
    rankings = count_votes(predictions)
    for label, chosen in (("", list(tasks)), (", larger outputs", larger_outputs(tasks))):
        scores = score(rankings, chosen)
        row[f"pass@2{label}"] = scores.over_tasks[2] if scores else float("nan")
        row[f"size right{label}"] = share_of_right_sizes(predictions, chosen)
    row["whole canvas again"] = metrics["whole_canvas_again"]
    return row


def larger_outputs(tasks: Sequence[Task]) -> list[Task]:
    """Tasks in all of whose demonstrations the output has more cells than the input."""
    return [
        task
        for task in tasks
        if all(
            pair.output is not None and pair.output.size > pair.input.size for pair in task.train
        )
    ]


def share_of_right_sizes(predictions: Predictions, tasks: Sequence[Task]) -> float:
    """Share of the predictions for `tasks` that show a grid of the solution's size."""
    shapes = {
        (task.task_id, index): pair.output.shape
        for task in tasks
        for index, pair in enumerate(task.test)
        if pair.output is not None
    }
    extents = np.stack(read_extents(predictions.canvas), axis=1)
    right = [
        transform(np.empty(extent), INVERSE_DIHEDRAL[dihedral]).shape == shapes[task_id, index]
        for task_id, index, dihedral, extent in zip(
            predictions.task_id.tolist(),
            predictions.test_index.tolist(),
            predictions.dihedral.tolist(),
            extents.tolist(),
            strict=True,
        )
        if (task_id, index) in shapes
    ]
    return float(np.mean(right)) if right else float("nan")


def study(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and evaluate each way with each seed; finished runs are taken as they are."""
    dataset = arguments.output_dir / "dataset"
    if not dataset.exists():
        build_dataset(arguments, dataset)
    tasks = load_tasks(dataset / TEST_PUZZLES_FILE)
    rows = []
    for seed in arguments.seeds:
        for name in arguments.ways or WAYS:
            run_dir = arguments.output_dir / f"{name.replace(' ', '_')}_seed{seed}"
            run(
                "train_arc_tiny_corrupt.py", f"experiment={arguments.experiment}",
                f"data.path={dataset}", f"run_dir={run_dir}", f"seed={seed}", "resume=auto",
                "wandb.mode=disabled", *WAYS[name], *arguments.overrides,
            )  # fmt: skip
            evaluation = run_dir / "evaluation"
            if not evaluation.exists():
                run(
                    "evaluate.py",
                    f"checkpoint={run_dir}",
                    f"output_dir={evaluation}",
                    "report=false",
                )
            rows.append(outcome(name, seed, evaluation, tasks))
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.windows", description=__doc__)
    add = parser.add_argument
    add("--input-file-prefix", required=True, metavar="PREFIX")
    add("--output-dir", type=Path, default=Path("benchmark_output/windows"))
    add("--max-side", type=int, default=6, help="of the tasks' grids")
    add("--canvas-side", type=int, default=12)
    add("--max-tasks", type=int, help="only the first so many tasks")
    add("--num-aug", type=int, default=31)
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("--ways", nargs="+", choices=WAYS, default=[], help="only these")
    add("--experiment", default="windows")
    add("overrides", nargs="*", help="the trainer's key=value, for all runs")
    return parser.parse_intermixed_args()


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    Results(
        question="Does dropping PAD cost accuracy?",
        command=f"python -m benchmarks.windows {' '.join(sys.argv[1:])}",
        machine=machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        rows=study(arguments),
    ).write(arguments.output_dir / "windows.json")


if __name__ == "__main__":
    main()
