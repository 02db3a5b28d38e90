"""Run a grid of training runs, or what is left of it, and write its tables and plots.

    python -m study                                # all of study/grids/study.yaml, then RESULTS.md
    python -m study screen                         # the same of study/grids/screen.yaml
    python -m study --list                         # the runs, and the command of each
    python -m study --only nqueens/dis             # some runs alone
    python -m study --so-far                       # tables and plots of the runs recorded so far
    python -m study --report                       # the same from the records kept

Every run is on one thread, --workers of them at a time; one that is recorded is not made again, and
an interrupted one goes on from its last checkpoint. What tables and plots show is kept in
docs/results/GRID/points.json, from which --report works on any machine.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from benchmarks.measure import machine, positive
from common.children import run_child
from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_write
from common.locks import exclusive
from common.progress import follow
from common.settings import expanded_path, validate
from config.loading import load_config
from config.schema import TrainConfig
from dataset.splits import open_split
from models.recursive import TinyRecursiveModel
from study.results import Grid, Record, Row, draw, fill, tables

REPOSITORY = Path(__file__).resolve().parent.parent
GRIDS = Path(__file__).with_name("grids")
DEFAULT_OUTPUT = Path("study_output")
RESULTS_PAGE = REPOSITORY / "RESULTS.md"
RESULTS_FOLDER = REPOSITORY / "docs" / "results"


class Point(NamedTuple):
    """One training run of the grid."""

    task: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Also the path of its folder."""
        return f"{self.task}/{self.variant}/seed{self.seed}"


def load_grid(name: str) -> Grid:
    """The grid that `study/grids/NAME.yaml` describes."""
    path = GRIDS / f"{name}.yaml"
    return validate(Grid, {"name": name, **yaml.safe_load(path.read_text("utf-8"))}, str(path))


def points_of(grid: Grid) -> list[Point]:
    """Every run that some comparison needs, each once; first seeds first."""
    points = [
        Point(task, variant, seed)
        for comparison in grid.comparisons.values()
        for seed in grid.seeds_of(comparison)
        for task in comparison.tasks
        for variant in comparison.variants
    ]
    return sorted(dict.fromkeys(points), key=lambda point: point.seed)


def train_command(grid: Grid, point: Point, output: Path) -> list[str]:
    """Words after `python` that train the point; also what to type to run it alone."""
    task, variant = grid.tasks[point.task], grid.variants[point.variant]
    steps = round(task.steps / variant.cost)
    return [
        "train_arc_tiny_corrupt.py",
        f"experiment={task.experiment}",
        *variant.overrides,
        f"train.max_steps={steps}",
        f"train.eval_every={steps // grid.evaluations}",
        f"seed={point.seed}",
        "device=cpu",
        f"data.path={output / 'data' / point.task}",
        f"run_dir={output / point.name}",
        "resume=auto",
    ]


def run_grid(
    grid: Grid, points: Sequence[Point], output: Path, workers: int
) -> tuple[list[Record], list[str]]:
    """Run the points, some at a time: the records in order, and what went wrong with the others.

    A run that fails (it may diverge) does not stop the others.

    Raises:
        UserError: a point is no configuration of the trainer, its folder is of another, or a
            dataset cannot be built.
    """
    # All of them before the first is run: a mistake should show now, and not in an hour. And here,
    # as Hydra works in one thread at a time.
    configs = [
        load_config("train", TrainConfig, "", train_command(grid, point, DEFAULT_OUTPUT)[1:])
        for point in points
    ]
    for point, config in zip(points, configs, strict=True):
        require_own(output / point.name, inputs_of(grid, point, config))
    for task in dict.fromkeys(point.task for point in points):
        build_dataset(grid, task, output)
    records, complaints = [], []
    threads = ThreadPoolExecutor(workers)
    try:
        runs = zip(points, configs, strict=True)
        futures = [threads.submit(run_point, grid, *run, output) for run in runs]
        for future in follow(futures, "study", "run"):
            try:
                records.append(future.result())
            except UserError as error:
                complaints.append(str(error))
    finally:  # Also when interrupted: what has not begun must not.
        threads.shutdown(cancel_futures=True)
    return records, complaints


def build_dataset(grid: Grid, task: str, output: Path) -> None:
    """Build a task's dataset unless it is there."""
    folder, commands = output / "data" / task, grid.tasks[task].build
    claim(folder, commands)
    if not folder.exists():
        for command in commands:
            _run(["-m", *(word.format(data=folder) for word in command.split())], folder)


def run_point(grid: Grid, point: Point, config: TrainConfig, output: Path) -> Record:
    """Train, diagnose and record a point; one that is recorded is only read.

    Raises:
        UserError: a command failed, or what is there is of another configuration.
    """
    folder, variant = output / point.name, grid.variants[point.variant]
    claim(folder, inputs_of(grid, point, config))
    if (folder / "point.json").is_file():
        return Record(**json.loads((folder / "point.json").read_text()))
    _run(train_command(grid, point, output), folder)
    diagnosis = None
    if variant.diagnose:
        found = folder / "diagnosis"
        if not found.exists():
            words = [f"checkpoint={folder}", f"output_dir={found}", "device=cpu"]
            _run(["diagnose.py", *words], folder)
        diagnosis = json.loads((found / "diagnosis.json").read_text())
        del diagnosis["checkpoint"]  # Its path is of this machine; the rest stands in the record.
    metadata = open_split(output / "data" / point.task, "train").metadata
    model = TinyRecursiveModel(config.arch, metadata.vocab_size, metadata.seq_len)
    num_steps = config.arch.num_supervision_steps
    is_each_step = config.optim.update == "step" or config.supervision.halting
    per_update = 1 if is_each_step else num_steps
    record = Record(
        *point,
        command=f"python {' '.join(train_command(grid, point, DEFAULT_OUTPUT))}",
        parameters=model.num_parameters,
        calls_per_answer=config.arch.network_calls,
        calls_per_step=config.arch.network_calls // num_steps * per_update,
        calls_with_gradient_per_step=config.arch.network_calls_with_gradient
        // num_steps
        * per_update,
        curve=read_curve(folder / "metrics.jsonl"),
        diagnosis=diagnosis,
    )
    atomic_write(folder / "point.json", json.dumps(asdict(record)))
    return record


def read_curve(metrics_path: Path) -> list[Row]:
    """One row for each evaluation, from a run's metrics.

    Seconds are those of training alone: steps over steps per second, line by line.
    """
    curve: list[Row] = []
    seconds, examples, before = 0.0, 0.0, 0
    for line in metrics_path.read_text().splitlines():
        metrics = json.loads(line)
        step = metrics.pop("step")
        if "train/steps_per_second" in metrics:
            taken = (step - before) / metrics["train/steps_per_second"]
            seconds += taken
            examples += taken * metrics["train/examples_per_second"]
            before = step
        evaluation = {
            key.removeprefix("eval/"): value
            for key, value in metrics.items()
            if key.startswith("eval/") and "_step" not in key
        }
        if evaluation:
            until = {"step": step, "seconds": round(seconds, 3), "examples": round(examples)}
            curve.append(until | evaluation)
    return curve


def inputs_of(grid: Grid, point: Point, config: TrainConfig) -> Any:
    """What a point's run depends on."""
    # The whole configuration, as a group's file may have changed while the command has not.
    of_run = config.model_dump(mode="json")
    return [of_run, grid.tasks[point.task].build, grid.variants[point.variant].diagnose]


def claim(folder: Path, made_by: Any) -> None:
    """Note beside a folder what it is made by; UserError if it was made by something else."""
    require_own(folder, made_by)
    folder.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(_note_of(folder), json.dumps(made_by, indent=1))


def require_own(folder: Path, made_by: Any) -> None:
    """Raise UserError if a folder was made by something else."""
    note = _note_of(folder)
    if note.is_file() and json.loads(note.read_text()) != made_by:
        raise UserError(
            f"{folder} is of another configuration: remove it, or choose another --output"
        )


def _note_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.made_by.json")


def _run(words: Sequence[str], folder: Path) -> None:
    """Run `python WORDS` on one thread, its output appended to a log beside the folder it makes.

    Raises:
        UserError: it failed; the log's last line says why.
    """
    log = folder.with_name(f"{folder.name}.log.txt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as file:
        exit_code = run_child(
            [sys.executable, *words], cwd=REPOSITORY, env=environment, stdout=file, stderr=file
        )
    if exit_code:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{' '.join(words)} failed, see {log}: {' '.join(last)}")


def write_results(grid: Grid, records: Sequence[Record], facts: dict[str, Any]) -> None:
    """Keep the records, draw the plots, and fill the page's tables; facts are of the machine."""
    require_places(grid)
    folder = RESULTS_FOLDER / grid.name
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": facts, "points": [asdict(record) for record in records]}
    atomic_write(folder / "points.json", json.dumps(document))
    draw(grid, records, folder)
    texts = tables(grid, records) | {"machine": ", ".join(f"{k} {v}" for k, v in facts.items())}
    atomic_write(RESULTS_PAGE, fill(RESULTS_PAGE.read_text(encoding="utf-8"), grid.name, texts))


def require_places(grid: Grid) -> None:
    """Raise UserError unless the page has a place for the table of every comparison."""
    page = RESULTS_PAGE.read_text(encoding="utf-8")
    for key, comparison in grid.comparisons.items():
        for task in comparison.tasks:
            if (begin := f"<!-- begin {grid.name}: {key} on {task} -->") not in page:
                raise UserError(f"{RESULTS_PAGE.name} has no place for a table: no '{begin}'")


def read_results(grid: Grid) -> tuple[list[Record], dict[str, Any]]:
    """The records that were kept, and the machine that they are of."""
    path = RESULTS_FOLDER / grid.name / "points.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Record(**point) for point in document["points"]], document["machine"]


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m study", description=__doc__)
    add = parser.add_argument
    names = sorted(path.stem for path in GRIDS.glob("*.yaml"))
    add("grid", nargs="?", choices=names, default="study", help="which runs")
    add("--output", type=expanded_path, default=DEFAULT_OUTPUT, help="datasets and runs")
    add("--workers", type=positive, default=2, help="runs at a time, each on one thread")
    add("--only", nargs="+", metavar="PREFIX", default=[""],
        help="only runs whose name starts so; writes no results")  # fmt: skip
    add("--list", action="store_true", help="show runs and commands, run nothing")
    add("--so-far", action="store_true", help="write results of what is recorded, run nothing")
    add("--report", action="store_true", help="only write tables and plots, from the records kept")
    return parser.parse_args()


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    grid = load_grid(arguments.grid)
    if arguments.report:
        write_results(grid, *read_results(grid))
        return
    prefixes, output = tuple(arguments.only), REPOSITORY / arguments.output
    points = [point for point in points_of(grid) if point.name.startswith(prefixes)]
    if not points:
        raise UserError(f"--only {' '.join(prefixes)}: no run's name starts so; see --list")
    if arguments.list:
        for point in points:
            words = train_command(grid, point, arguments.output)
            sys.stdout.write(f"{point.name}: python {' '.join(words)}\n")
        return
    is_whole = prefixes == ("",)
    if is_whole:
        require_places(grid)
    if arguments.so_far:
        points = [point for point in points if (output / point.name / "point.json").is_file()]
    with exclusive(output, "--output"):
        records, complaints = run_grid(grid, points, output, arguments.workers)
    if is_whole:
        facts = machine(torch.device("cpu"))
        facts |= {"threads": f"1 a run, {arguments.workers} runs at a time"}
        write_results(grid, records, facts)
    if complaints:
        raise UserError(f"{len(complaints)} of {len(points)} runs failed: {complaints[0]}")


if __name__ == "__main__":
    main()
