"""Does cropping to the grids cost accuracy? The same training on the whole canvas and on windows.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, run_python, write_results
from common.errors import CommandParser, exit_cleanly
from common.settings import expanded, expanded_path
from config.schema import DemoConfig
from dataset.build_arc_dataset import build
from dataset.build_plan import BuildOptions
from dataset.storage import puzzles_file
from dataset.task_files import load_subset, load_tasks
from dataset.tasks import Task
from evaluation.predictions import PREDICTIONS_FILE, Predictions, load_predictions
from evaluation.results import METRICS_FILE
from evaluation.voting import OUTSIDE, count_votes, invert_canvases, score

CANVASES = ("whole", "window")


def build_dataset(arguments: argparse.Namespace, folder: Path) -> None:
    """The chosen tasks, each with its test inputs held out."""
    tasks = load_subset(arguments.input_file_prefix, "training")
    wanted = {task.task_id for task in larger_outputs(tasks)} | set(DemoConfig().task_ids)
    chosen = [t.task_id for t in tasks if t.task_id in wanted and t.max_side <= arguments.max_side]
    build(
        BuildOptions(
            input_file_prefix=arguments.input_file_prefix,
            output_dir=folder,
            subsets=("training",),
            test_set_name="training",
            num_aug=arguments.num_aug,
            canvas_side=arguments.canvas_side,
            task_ids=tuple(chosen),
            layout="compact",
        )
    )


def larger_outputs(tasks: Sequence[Task]) -> list[Task]:
    """Tasks in all of whose demonstrations the output has more cells than the input."""
    return [
        task
        for task in tasks
        if all(
            pair.output is not None and pair.output.size > pair.input.size for pair in task.train
        )
    ]


def study(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Train and evaluate both ways with each seed; finished runs are taken as they are."""
    dataset = folder / "dataset"
    if not dataset.exists():
        build_dataset(arguments, dataset)
    tasks = load_tasks(dataset / puzzles_file("test"))
    rows = []
    for seed in arguments.seeds:
        for canvas in CANVASES:
            run_dir = folder / f"{canvas}_seed{seed}"
            run_python(
                "train_arc_tiny_corrupt.py", "experiment=windows", f"data.path={dataset}",
                f"run_dir={run_dir}", f"seed={seed}", "resume=auto", "wandb.mode=disabled",
                f"data.canvas={canvas}", *arguments.overrides,
            )  # fmt: skip
            output = run_dir / "evaluation"
            if not output.exists():
                run_python(
                    "evaluate.py",
                    f"checkpoint={run_dir}",
                    f"output_dir={output}",
                    "report=false",
                    "wandb.mode=disabled",
                )
            rows.append({"canvas": canvas, "seed": seed, **outcome(output, tasks)})
    return rows


def outcome(evaluation: Path, tasks: Sequence[Task]) -> dict[str, float]:
    """Scores over all tasks, and over those with larger outputs."""
    predictions = load_predictions(evaluation / PREDICTIONS_FILE)
    metrics = json.loads((evaluation / METRICS_FILE).read_text())
    votes = count_votes(predictions, tasks)
    row = {"exact": metrics["exact_accuracy"]}
    for label, chosen in (("", tasks), (", larger outputs", larger_outputs(tasks))):
        scores = score(votes, chosen)
        row[f"pass@2{label}"] = scores.over_tasks[2] if scores else float("nan")
        row[f"size right{label}"] = share_of_right_sizes(predictions, chosen)
    return row | {"whole canvas again": metrics["whole_canvas_again"]}


def share_of_right_sizes(predictions: Predictions, tasks: Sequence[Task]) -> float:
    """Share of the predictions for `tasks` that show a grid of the solution's size."""
    shapes = {
        (task.task_id, index): pair.output.shape
        for task in tasks
        for index, pair in enumerate(task.test)
        if pair.output is not None
    }
    squares = invert_canvases(
        predictions.canvas, predictions.dihedral, predictions.colour_permutation
    )
    shown = squares != OUTSIDE
    predicted = zip(shown[:, :, 0].sum(axis=1), shown[:, 0].sum(axis=1), strict=True)
    keys = zip(predictions.task_id.tolist(), predictions.test_index.tolist(), strict=True)
    right = [
        shape == shapes[key] for key, shape in zip(keys, predicted, strict=True) if key in shapes
    ]
    return float(np.mean(right)) if right else float("nan")


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.windows", description=__doc__)
    add = parser.add_argument
    add("--input-file-prefix", type=expanded, required=True, metavar="PREFIX")
    add("--output-dir", type=expanded_path, default=Path("benchmark_output/windows"))
    add("--max-side", type=int, default=6, help="of the tasks' grids")
    add("--canvas-side", type=int, default=12)
    add("--num-aug", type=int, default=31)
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("overrides", nargs="*", help="the trainer's key=value, for all runs")
    return parser.parse_intermixed_args()


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    folder = arguments.output_dir.absolute()
    rows = study(arguments, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write_results(folder / "windows.json", machine(device), rows)


if __name__ == "__main__":
    main()
