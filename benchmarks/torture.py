"""Kill building, training and evaluation again and again, and compare what is left in the end.

    python -m benchmarks.torture --kills 100

Every process is killed with SIGKILL, at a random moment or at a random fault point (see
`benchmarks.faults`), and the same command started again, until it comes to its end. What it leaves
must equal what one that was never killed leaves: the dataset byte for byte; of the run the
checkpoints bit for bit, every line of its metrics and every step in W&B; of the evaluation its
predictions and scores. Nothing half-written may be left beside.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.faults import SAID
from benchmarks.measure import REPOSITORY, positive
from benchmarks.wandb_files import history_of, offline_files, records_of
from common.errors import CommandParser, UserError, exit_cleanly
from common.settings import expanded_path
from training.metrics import is_of_the_machine

TASKS = ("25ff71a9", "6150a2bd", "67a3c6ac", "68b16354", "74dd1130", "a85d4709")
"""Of ARC-AGI-1's training set: all of their grids are small."""
TRAINING = (
    "arch.hidden_size=16", "arch.num_heads=2", "arch.num_supervision_steps=3",
    "arch.prefix_length=2", "optim.ema_decay=0.9", "train.max_steps=48",
    "train.global_batch_size=8", "train.log_every=3", "train.checkpoint_every=6",
    "train.eval_every=12", "eval.max_variants=2", "device=cpu", "wandb.mode=offline",
)  # fmt: skip
"""In names of metrics: what no two runs have in common."""

log = logging.getLogger(__name__)


class Stage:
    """A command, and what it takes to be killed at any moment of it.

    Args:
        words: the program and its arguments.
        output: the folder that the command makes, of the run that is not killed.
        at_once: whether that folder appears when it is complete.
    """

    def __init__(
        self, words: Callable[[Path], Sequence[str]], output: Path, at_once: bool = True
    ) -> None:
        self.words = words
        self.output = output
        self.at_once = at_once
        started = time.monotonic()
        _, said = start(words(output))
        self.seconds = time.monotonic() - started
        self.fault_points = int(said.rpartition(SAID)[2])

    def run(self, output: Path, dice: random.Random | None) -> bool:
        """Start the command, to be killed if there are dice; whether it was before its end."""
        fatal, seconds = 0, None
        if dice is not None and dice.random() < 0.5:
            fatal = dice.randint(1, self.fault_points)
        elif dice is not None:
            seconds = dice.uniform(0, self.seconds)
        return start(self.words(output), fatal, seconds)[0]

    def is_complete(self, output: Path) -> bool:
        """Whether a process that was killed had come to its end before."""
        return self.at_once and output.exists()

    def require_refusal(self, output: Path) -> None:
        """The command must keep what is complete, and clear away what lies beside it."""
        try:
            start(self.words(output))
        except UserError as error:
            if "exists already" in str(error):
                return
            raise
        raise UserError(f"{self.words(output)[0]} wrote over {output}")


def start(words: Sequence[str], fatal: int = 0, seconds: float | None = None) -> tuple[bool, str]:
    """Run a program to its end, or kill it at a fault point, or after so many seconds.

    Returns whether it was killed, and what it said.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.faults", str(fatal), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, stderr = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise UserError(f"{words[0]} failed: {stderr[-2000:]}")
    return process.returncode != 0, stderr


def torture(
    stage: Stage, kills: int, compare: Callable[[Path, Path], None], dice: random.Random
) -> int:
    """Kill a command so many times, over as many runs of it as that takes; the number of runs.

    Raises:
        UserError: a run that was killed and gone on with is not as the one that was not.
    """
    survived = rounds = 0
    output = stage.output.with_name(f"{stage.output.name}_killed")
    while survived < kills:
        rounds += 1
        while not stage.is_complete(output):
            if not stage.run(output, dice if survived < kills else None):
                break
            survived += 1
        if stage.at_once:
            stage.require_refusal(output)
        _require_tidy(output)
        compare(stage.output, output)
        log.info("%s: run %d is as it should be, after %d kills of %d in all",
                 stage.output.name, rounds, survived, kills)  # fmt: skip
        shutil.rmtree(output)
    return rounds


def _require_tidy(output: Path) -> None:
    beside = [path for path in output.parent.glob(f"*{output.name}.*") if path.suffix != ".lock"]
    if left := [*beside, *output.rglob("*.partial")]:
        raise UserError(f"{left[0]} was left behind")


# ---- what must be equal ----------------------------------------------------------------------


def compare_files(expected: Path, found: Path) -> None:
    """Every file, byte for byte."""
    digests = [
        {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (expected, found)
    ]
    _require_equal("files", *digests)


def compare_runs(expected: Path, found: Path) -> None:
    """Checkpoints, metrics and W&B's steps."""
    files = [
        sorted(path.relative_to(run) for path in (run / "checkpoints").rglob("*"))
        for run in (expected, found)
    ]
    _require_equal("checkpoints", *files)
    for file in files[0]:
        if file.suffix == ".safetensors":
            ours = load_file(found / file)
            for key, tensor in load_file(expected / file).items():
                if not torch.equal(tensor, ours[key]):
                    raise UserError(f"{file}: {key} differs")
    _require_equal("metrics", *map(metrics_of, (expected, found)))
    _require_equal("steps in W&B", *map(wandb_steps, (expected, found)))


def compare_results(expected: Path, found: Path) -> None:
    """Predictions and scores."""
    documents = []
    for folder in (expected, found):
        document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        documents.append({k: v for k, v in document.items() if k != "seconds"})
    _require_equal("metrics.json", *documents)
    arrays = [np.load(folder / "predictions.npz") for folder in (expected, found)]
    for name in arrays[0].files:
        if not np.array_equal(arrays[0][name], arrays[1][name]):
            raise UserError(f"predictions: {name} differs")


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without what is of the machine."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not is_of_the_machine(k)} for line in lines
    ]


def wandb_steps(run: Path) -> dict[int, float]:
    """Step -> training loss, of all processes of a run together, as W&B has recorded them."""
    losses: dict[int, float] = {}
    for file in offline_files(run):
        for items in map(history_of, records_of(file)):
            if "train/loss" in items:
                losses[items["_step"]] = items["train/loss"]
    return losses


def _require_equal(what: str, expected: Any, found: Any) -> None:
    if expected != found:
        raise UserError(f"{what} differ: {expected} were expected, and {found} are there")


# ---- the command -----------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("--kills", type=positive, default=100, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of where they come")
    parser.add_argument("--output-dir", type=expanded_path, default=Path("torture_output"))
    return parser.parse_args()


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parse_arguments()
    folder, dice = arguments.output_dir.resolve(), random.Random(arguments.seed)
    folder.mkdir(parents=True)
    prefix, data = folder / "kaggle" / "arc-agi", folder / "data"
    start(["dataset.import_arc", "--output-prefix", str(prefix), "--subsets", "training"])
    build = Stage(
        lambda output: [
            "dataset.build_arc_dataset", "--input-file-prefix", str(prefix),
            "--output-dir", str(output), "--subsets", "training", "--test-set-name", "training",
            "--num-aug", "20", "--workers", "1", "--task-ids", *TASKS,
        ],
        data,
    )  # fmt: skip
    rounds = {"build": torture(build, arguments.kills // 5, compare_files, dice)}
    train = Stage(
        lambda output: [
            "train_arc_tiny_corrupt.py", f"data.path={data}", f"run_dir={output}", "resume=auto",
            "wandb.run_name=tortured", *TRAINING,
        ],
        folder / "run",
        at_once=False,
    )  # fmt: skip
    evaluate = Stage(
        lambda output: [
            "evaluate.py", f"checkpoint={folder / 'run'}", f"output_dir={output}", "device=cpu",
            "wandb.mode=disabled",
        ],
        folder / "evaluation",
    )  # fmt: skip
    rounds["evaluate"] = torture(evaluate, arguments.kills // 5, compare_results, dice)
    left = arguments.kills - 2 * (arguments.kills // 5)
    rounds["train"] = torture(train, left, compare_runs, dice)
    log.info("%d kills survived, in %s", arguments.kills, rounds)


if __name__ == "__main__":
    main()
