"""Training runs and evaluations as tests start them: in this process, tiny, on real tasks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

import evaluate
import train_arc_tiny_corrupt
from benchmarks.wandb_files import offline_files, records_of
from conftest import REPOSITORY
from evaluation.predict import TYPICAL_TOKENS, EvalConfig

# Six optimizer steps are one batch: the smallest network that still has every part of the big one.
TINY = (
    "arch.name=tiny",
    "arch.hidden_size=16",
    "arch.num_heads=2",
    "arch.prefix_length=2",
    "arch.num_supervision_steps=3",
    "optim.warmup_steps=2",
    "optim.ema_decay=0.9",
    "train.global_batch_size=8",
    "train.log_every=3",
    "train.checkpoint_every=6",
    "train.eval_every=6",
    "eval.max_variants=2",
    "eval.batch_tokens=2048",
    "device=cpu",
    "wandb.mode=disabled",
)

HALTING = ("supervision=trm", "arch.halting_head=true")
"""Overrides for the TRM baseline on the tiny network."""


def train_arguments(data: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Command-line arguments of a tiny run of 12 optimizer steps."""
    return [f"data.path={data}", f"run_dir={run_dir}", *TINY, "train.max_steps=12", *overrides]


def eval_config(**changes: Any) -> EvalConfig:
    """Every variant votes, at most three variants at a time, on the whole canvas."""
    return EvalConfig(**{"batch_tokens": 3 * TYPICAL_TOKENS, "canvas": "whole", **changes})


def call(main: Callable[[], None], *arguments: str) -> None:
    """Call a script's `main` with arguments, as the command line would; on one thread."""
    torch.set_num_threads(1)
    with patch.object(sys, "argv", ["script", *arguments]):
        main()


def run_training(data: Path, run_dir: Path, *overrides: str) -> Path:
    """Train with `train_arguments`; returns the run's folder."""
    call(train_arc_tiny_corrupt.main, *train_arguments(data, run_dir, *overrides))
    return run_dir


def run_evaluation(output_dir: Path, *overrides: str) -> Path:
    """Evaluate on the CPU; returns the results' folder."""
    call(
        evaluate.main,
        f"output_dir={output_dir}",
        "device=cpu",
        "eval.batch_tokens=2048",
        "wandb.mode=disabled",
        *overrides,
    )
    return output_dir


def read_results(output_dir: Path) -> dict[str, Any]:
    """An evaluation's metrics.json."""
    results: dict[str, Any] = json.loads((output_dir / "metrics.json").read_text())
    return results


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> dict[int, float]:
    """Training loss by step."""
    return {x["step"]: x["train/loss"] for x in read_metrics(run_dir) if "train/loss" in x}


def checkpoint_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's safetensors files, by file and name."""
    return {
        f"{file.name}:{name}": tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def torchrun_command(ranks: int, *arguments: str) -> list[str]:
    """The real launcher's."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [sys.executable, *launcher, *arguments]


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script under the real launcher, one thread a rank."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        torchrun_command(ranks, *arguments),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def wait_for_wandb(run_dir: Path) -> list[list[Any]]:
    """The records of each process of a run; W&B writes the last after it has said that it did."""
    deadline = time.monotonic() + 60
    while True:
        of_files = [list(records_of(file)) for file in offline_files(run_dir)]
        if of_files and all(r and r[-1].WhichOneof("record_type") == "exit" for r in of_files):
            return of_files
        assert time.monotonic() < deadline, "W&B has not finished its file"
        time.sleep(0.05)
