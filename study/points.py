"""Run one point of the grid, with the commands that a user would type, and keep what it showed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import atomic_write
from config.loading import load_config
from config.schema import TrainConfig
from dataset.splits import open_split
from models.recursive import TinyRecursiveModel
from study.grid import Grid, Point

REPOSITORY = Path(__file__).resolve().parent.parent
RECORD_FILE = "point.json"
IDENTITY_FILE = "identity.json"
LOG_FILE = "log.txt"
DEFAULT_OUTPUT = Path("study_output")

Row = dict[str, float]


@dataclass(frozen=True)
class Record:
    """What is kept of a point; enough for every table and plot."""

    task: str
    variant: str
    seed: int
    command: str
    parameters: int
    """Of the network, puzzle embeddings not counted."""
    calls_per_answer: int
    """Evaluations of f until the last answer at test time."""
    calls_per_step: int
    """Evaluations of f in one optimizer step, ..."""
    calls_with_gradient_per_step: int
    """... and those among them that a backward pass goes through."""
    curve: list[Row]
    """For each evaluation its figures, and until then `step`, `seconds` of training and `examples`
    that took their last supervision step."""
    diagnosis: dict[str, Any] | None
    """What diagnose.py found, if the variant asks for it."""

    @property
    def final(self) -> Row:
        return self.curve[-1]


def data_path(output: Path, task: str) -> Path:
    return output / "data" / task


def build_dataset(grid: Grid, task: str, output: Path) -> None:
    """Build a task's dataset unless it is there.

    Raises:
        UserError: a command failed, or the dataset was built by others.
    """
    folder, commands = data_path(output, task), grid.tasks[task].build
    built_by = folder.with_name(f"{task}.build.txt")
    if folder.exists():
        if not built_by.is_file() or built_by.read_text() != "\n".join(commands):
            raise UserError(f"{folder} was built by other commands: remove {output} or choose "
                            f"another --output")  # fmt: skip
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(built_by, "\n".join(commands))
    for command in commands:
        words = [word.format(data=folder) for word in command.split()]
        _run(["-m", *words], folder.with_name(f"{task}.{LOG_FILE}"))


def train_command(grid: Grid, point: Point, output: Path) -> list[str]:
    """Words after `python` that train the point; also what to type to run it alone."""
    task, variant = grid.tasks[point.task], grid.variants[point.variant]
    steps = round(task.steps / variant.cost)
    return [
        "train_arc_tiny_corrupt.py",
        f"experiment={task.experiment}",
        *variant.overrides,
        f"train.max_steps={steps}",
        f"train.eval_every={steps // task.evaluations}",
        f"seed={point.seed}",
        "device=cpu",
        f"data.path={data_path(output, point.task)}",
        f"run_dir={output / point.name}",
        "resume=auto",
    ]


def configuration(grid: Grid, point: Point) -> TrainConfig:
    """The trainer's configuration of a point, with paths that are not of this machine.

    Raises:
        UserError: the point's overrides are wrong.
    """
    return load_config("train", TrainConfig, "", train_command(grid, point, DEFAULT_OUTPUT)[1:])


def run_point(grid: Grid, point: Point, config: TrainConfig, output: Path) -> Record:
    """Train and record a point; one that is recorded is only read, or diagnosed if it was not.

    Args:
        grid: that the point is of.
        point: what to run.
        config: its `configuration` (not made here, as Hydra works in one thread at a time).
        output: folder of datasets and runs.

    Raises:
        UserError: a command failed, or what is there is of another configuration.
    """
    folder = output / point.name
    command = train_command(grid, point, output)
    # The whole configuration, as a group's file may have changed while the command has not.
    identity = [config.model_dump(mode="json"), grid.tasks[point.task].build]
    identity_path = folder.with_name(f"{folder.name}.{IDENTITY_FILE}")
    if identity_path.is_file() and json.loads(identity_path.read_text()) != identity:
        raise UserError(f"{folder} holds a run of another configuration: remove it, or choose "
                        f"another --output")  # fmt: skip
    if known := recorded(grid, point, output):
        return known
    identity_path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(identity_path, json.dumps(identity, indent=1))
    log = folder.with_name(f"{folder.name}.{LOG_FILE}")
    _run(command, log)
    diagnosis = diagnose(folder, log) if grid.variants[point.variant].diagnose else None
    metadata = open_split(data_path(output, point.task), "train").metadata
    model = TinyRecursiveModel(config.arch, metadata.vocab_size, metadata.seq_len)
    num_steps = config.arch.num_supervision_steps
    record = Record(
        task=point.task,
        variant=point.variant,
        seed=point.seed,
        command=f"python {' '.join(train_command(grid, point, DEFAULT_OUTPUT))}",
        parameters=model.num_parameters,
        calls_per_answer=config.arch.network_calls,
        calls_per_step=config.arch.network_calls // num_steps,
        calls_with_gradient_per_step=config.arch.network_calls_with_gradient // num_steps,
        curve=read_curve(folder / "metrics.jsonl"),
        diagnosis=diagnosis,
    )
    atomic_write(folder / RECORD_FILE, json.dumps(asdict(record)))
    return record


def diagnose(run_dir: Path, log: Path) -> dict[str, Any]:
    """What diagnose.py finds of a run."""
    folder = run_dir / "diagnosis"
    if not folder.exists():
        words = [f"checkpoint={run_dir}", f"output_dir={folder}", "device=cpu"]
        _run(["diagnose.py", *words], log)
    found: dict[str, Any] = json.loads((folder / "diagnosis.json").read_text())
    del found["checkpoint"]  # Its path is of this machine; the rest stands in the record.
    return found


def recorded(grid: Grid, point: Point, output: Path) -> Record | None:
    """The record of a point that has been run to its end, with all that the grid asks of it."""
    path = output / point.name / RECORD_FILE
    if not path.is_file():
        return None
    record = Record(**json.loads(path.read_text()))
    is_complete = record.diagnosis is not None or not grid.variants[point.variant].diagnose
    return record if is_complete else None


def read_curve(metrics_path: Path) -> list[Row]:
    """One row for each evaluation, from a run's metrics.

    Seconds are those of training alone: steps over steps a second, line by line.
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
        figures = {
            key.removeprefix("eval/"): value
            for key, value in metrics.items()
            if key.startswith("eval/") and "_step" not in key
        }
        if figures:
            until = {"step": step, "seconds": round(seconds, 3), "examples": round(examples)}
            curve.append(until | figures)
    return curve


def _run(words: Sequence[str], log: Path) -> None:
    """Run `python WORDS` on one thread, its output appended to `log`.

    Raises:
        UserError: it failed; its last line says why.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.run(
            [sys.executable, *words],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if process.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{' '.join(words)} failed, see {log}: {' '.join(last)}")
