"""Several runs by one command: which they are, and that each is a process of its own."""

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from common.errors import UserError
from config import multirun
from config.loading import load_config
from config.multirun import combinations
from config.schema import TrainConfig
from conftest import REPOSITORY
from runs import TINY, read_metrics

SWEEP = yaml.safe_load((REPOSITORY / "docs" / "sweep.yaml").read_text())


def test_every_choice_of_one_value_from_each_list_is_a_run() -> None:
    assert combinations(["seed=range(2)", "optim.lr=1e-3", "arch=compact,medium"]) == [
        ["seed=0", "optim.lr=1e-3", "arch=compact"],
        ["seed=0", "optim.lr=1e-3", "arch=medium"],
        ["seed=1", "optim.lr=1e-3", "arch=compact"],
        ["seed=1", "optim.lr=1e-3", "arch=medium"],
    ]
    assert combinations(["eval.x='a,b',c", "task_ids=[a,b]"]) == [
        ["eval.x='a,b'", "task_ids=[a,b]"],
        ["eval.x=c", "task_ids=[a,b]"],
    ]


@pytest.mark.parametrize("argument", ["seed", "seed=[0,1]", "--verbose"])
def test_what_is_no_list_is_refused(argument: str) -> None:
    with pytest.raises(UserError, match=re.escape("key=a,b,c") + "|seed=0,1,2"):
        combinations([argument])


def test_runs_that_would_share_a_folder_are_refused_before_any(refused: Callable[..., str]) -> None:
    line = refused("train_arc_tiny_corrupt.py", "-m", "optim.lr=1e-3,1e-4", "data.path=x")
    assert "are both to go into runs/compact-seed0" in line
    assert "run_dir=runs/lr${optim.lr}-${seed}" in line
    line = refused("train_arc_tiny_corrupt.py", "--multirun", "optim.lr=-1,1", "data.path=x")
    assert "optim.lr=-1" in line


def test_a_launcher_s_processes_do_not_start_all_runs_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="torchrun for each run"):
        multirun.run_all("train_arc_tiny_corrupt.py", [["seed=0"]])


def test_seeds_are_trained_one_after_another(
    tiny_dataset: Path, tmp_path: Path, run_command: Callable[..., CompletedProcess[str]]
) -> None:
    """The run that fails (its folder is taken by a file) stops no other, and is counted."""
    (tmp_path / "run1").write_text("")
    process = run_command(
        "train_arc_tiny_corrupt.py", "-m", "seed=0,1,2", f"data.path={tiny_dataset}", *TINY,
        f"run_dir={tmp_path}/run${{seed}}", "train.max_steps=3", "train.eval_every=null",
    )  # fmt: skip
    assert process.returncode == 1
    assert "[3 of 3] python train_arc_tiny_corrupt.py seed=2" in process.stderr
    assert "1 of 3 runs failed" in process.stderr
    first, third = (read_metrics(tmp_path / f"run{seed}") for seed in (0, 2))
    assert first[-1]["step"] == third[-1]["step"] == 3
    assert first[-1]["train/loss"] != third[-1]["train/loss"]


def sweep_choices() -> list[dict[str, Any]]:
    """Each parameter at each of its values, or at its limits."""
    parameters = SWEEP["parameters"]
    return [
        {name: choice}
        for name, options in parameters.items()
        for choice in options.get("values", [options.get("min"), options.get("max")])
    ]


@pytest.mark.parametrize("choice", sweep_choices(), ids=str)
def test_the_sample_sweep_is_of_keys_that_there_are(
    choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line of an agent, which sets the variable for the run that it starts."""
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    words = SWEEP["command"]
    assert words[:3] == ["${env}", "python", "${program}"]
    assert (REPOSITORY / SWEEP["program"]).is_file()
    given = [f"{name}={value}" for name, value in choice.items()]
    place = words.index("${args_no_hyphens}")
    config = load_config("train", TrainConfig, "", [*given, *words[place + 1 :]])
    assert config.run_dir == Path("runs/sweep-abc123")
    assert SWEEP["metric"]["name"] == "eval/pass@2"
