"""The tool that kills programs: it kills where it says, and sees what differs."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.torture import compare_files, compare_runs, wandb_steps
from common.errors import UserError
from conftest import REPOSITORY
from runs import run_training, wait_for_wandb
from training.run_log import RunLog, WandbConfig

WRITER = """
import sys
from pathlib import Path
from common.files import atomic_write
atomic_write(Path(sys.argv[1]), "whole")
"""


def run_to_fault(program: Path, output: Path, fatal: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.faults", str(fatal), str(program), str(output)]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_program_is_killed_at_each_of_its_fault_points_and_nowhere_else(tmp_path: Path) -> None:
    """A file is written aside, flushed and renamed: before the last of these it is not there."""
    program, output = tmp_path / "writer.py", tmp_path / "file"
    program.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{WRITER}")
    whole = run_to_fault(program, output, 0)
    assert whole.returncode == 0, whole.stderr
    assert "fault points: 6" in whole.stderr
    is_there = []
    for fatal in range(1, 7):
        output.unlink()
        assert run_to_fault(program, output, fatal).returncode == -signal.SIGKILL
        is_there.append(output.exists())
        output.touch()
    assert is_there == [False] * 5 + [True]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """Recorded by W&B, offline. Read-only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return run_training(tiny_dataset, folder, "wandb.mode=offline")


def test_losses_are_found_in_what_wandb_records(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert wandb_steps(run) == losses


def test_a_record_longer_than_a_block_is_read(tmp_path: Path) -> None:
    log = RunLog(tmp_path, WandbConfig(mode="offline"), {"text": "x" * 100_000})
    for step in range(3):
        log.write(step, {"train/loss": step / 2} | {f"train/{n}": 0.5 for n in range(3000)})
    log.close()
    wait_for_wandb(tmp_path)
    assert wandb_steps(tmp_path) == {0: 0.0, 1: 0.5, 2: 1.0}


def change_weights(run: Path) -> None:
    path = run / "checkpoints" / "step_00000006" / "model.safetensors"
    weights = load_file(path)
    weights["readout.weight"] = torch.nextafter(weights["readout.weight"], torch.tensor(9.0))
    save_file(weights, path)


def drop_a_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[1:]))


def drop_a_score(run: Path) -> None:
    (run / "checkpoints" / "step_00000006" / "score.json").unlink()


def forget_wandb(run: Path) -> None:
    shutil.rmtree(run / "wandb")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_weights, "model.safetensors: readout.weight differs"),
        (drop_a_line, "metrics differ"),
        (drop_a_score, "checkpoints differ"),
        (forget_wandb, "steps in W&B differ"),
    ],
)
def test_what_is_lost_is_noticed(
    run: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    other = shutil.copytree(run, tmp_path / "other", symlinks=True)
    compare_runs(run, other)
    damage(other)
    with pytest.raises(UserError, match=message):
        compare_runs(run, other)


def test_files_are_compared_by_name_and_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_bytes(b"1")
    compare_files(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "deep" / "file").write_bytes(b"2")
    with pytest.raises(UserError, match="files differ"):
        compare_files(tmp_path / "a", tmp_path / "b")
