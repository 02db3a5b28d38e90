"""Looking before and while training: the dry run and the profile."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import train_arc_tiny_corrupt
from runs import losses, run_training, train_arguments


def test_a_profile_is_a_trace_and_a_table_and_changes_nothing(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    steps = ("train.max_steps=24", "train.eval_every=null")
    folder = tmp_path / "profile"
    with_profile = run_training(tiny_dataset, tmp_path / "a", *steps, f"train.profile={folder}")
    without = run_training(tiny_dataset, tmp_path / "b", *steps)
    assert losses(with_profile) == losses(without)
    trace = json.loads((folder / "trace.json").read_text())
    assert any("mm" in event.get("name", "") for event in trace["traceEvents"])
    assert "Self CPU" in (folder / "kernels.txt").read_text()


def test_a_folder_that_cannot_be_made_is_refused(
    tiny_dataset: Path, tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    (tmp_path / "file").touch()
    overrides = train_arguments(tiny_dataset, tmp_path / "run", f"train.profile={tmp_path}/file/x")
    assert "train.profile=" in refused_in_process(train_arc_tiny_corrupt.main, *overrides)


def test_a_dry_run_says_what_would_be_and_leaves_nothing(
    tiny_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run_training(tiny_dataset, tmp_path / "run", "train.dry_run=true")
    assert not (tmp_path / "run").exists()
    for said in ("arch tiny", "examples an epoch", "memory: about", "12 steps", "Dry run"):
        assert said in caplog.text
    assert re.search(
        r"first step: nothing is compiled, then at least [\d.e-]+ s a step", caplog.text
    )


def test_a_dry_run_finds_what_is_wrong(
    tiny_dataset: Path, tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    given = train_arguments(tiny_dataset, tmp_path / "run", "train.dry_run=true")
    wrong = [*given, "train.micro_batch_tokens=20"]
    assert "train.micro_batch_tokens=20" in refused_in_process(train_arc_tiny_corrupt.main, *wrong)
    wrong = [*given, "data.canvas=window"]
    assert "--layout compact" in refused_in_process(train_arc_tiny_corrupt.main, *wrong)
