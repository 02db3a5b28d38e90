"""The examination of a machine: stages apart, a failure is one of them, and nothing is lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu


def examine(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> dict[str, Any]:
    arguments = ["gpu", "--output-dir", str(folder), "--device", "cpu", *flags]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as exit_info:
        gpu.main()
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    assert bool(exit_info.value.code) == any("error" in outcome for outcome in results.values())
    return results


def stage(name: str, limit: float = 60) -> gpu.Stage:
    (found,) = [stage for stage in gpu.STAGES if stage.name == name]
    return found._replace(limit=limit)


def test_a_stage_that_fails_is_recorded_and_the_next_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One has nothing to build a dataset from, one has no time, and one is as it should be."""
    stages = (stage("dataset"), stage("profile", limit=0.01), stage("machine"))
    monkeypatch.setattr(gpu, "STAGES", stages)
    results = examine(monkeypatch, tmp_path)
    assert list(results) == ["dataset", "profile", "machine"]
    assert results["dataset"]["error"] == "exit code 2"
    assert "--input-file-prefix" in results["dataset"]["last lines"][-1]
    assert results["profile"]["error"] == "not done after 0 s"
    assert results["machine"]["result"]["matmul TFLOP/s"] > 0
    words = (tmp_path / "results.md").read_text()
    assert "No result: exit code 2.\n" in words
    assert "- device: cpu" in words


def test_what_there_is_no_time_for_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "MIN_SECONDS", 1000)
    results = examine(monkeypatch, tmp_path, "--minutes", "4")
    assert list(results) == [stage.name for stage in gpu.STAGES]
    assert all(outcome == {"skipped": "no time left"} for outcome in results.values())


def test_runs_of_training_stand_in_one_table() -> None:
    outcomes = {
        "a": {"seconds": 1, "result": {"ms per step": 2.0, "batches": 3}},
        "b": {"seconds": 1, "result": {"ms per step": 4.0, "batches": 5}},
        "c": {"seconds": 1, "result": [{"kernel": "k", "ms": 1.0}]},
    }
    words = gpu.in_words(outcomes)
    assert "| a | 2 | 3 |\n| b | 4 | 5 |" in words
    assert "## c\n\n| kernel | ms |" in words
