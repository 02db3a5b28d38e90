"""The benchmark of predictions: ways to predict beside the plain way."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import InProcess

from benchmarks import evaluate
from benchmarks.evaluate import Way
from evaluation.test_set import EvaluationSet


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, roomy_compact_dataset: Path) -> Path:
    """A short run on windows at a high learning rate: mostly wrong answers, but they differ."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return InProcess(monkeypatch).train(
            roomy_compact_dataset,
            tmp_path_factory.mktemp("runs") / "trained",
            "data.canvas=window",
            "train.max_steps=24",
            "train.checkpoint_every=24",
            "train.eval_every=null",
            "optim.lr=1e-2",
            "optim.puzzle_lr=3e-2",
        )


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: object) -> dict:
    """What the command wrote."""
    flags = ["--tiny", "--device", "cpu", "--output", output, *arguments]
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, flags)])
    evaluate.main()
    document: dict = json.loads(output.read_text())
    return document


def check(rows: list[dict], ways: list[Way]) -> None:
    plain = rows[0]
    assert [row["way"] for row in rows] == [way.name for way in ways]
    assert plain["times plain"] == 1 == plain["same answer as plain"]
    assert plain["predicted again"] == 0
    for row in rows:
        assert row["times plain"] == pytest.approx(row["variants/s"] / plain["variants/s"])
        shares = ("exact accuracy", "cell accuracy", "same answer as plain", "predicted again")
        assert all(0 <= row[key] <= 1 for key in shares)
        assert 0 < row["real"] <= 1
    for row in rows:
        if row["way"].startswith("whole canvas"):
            assert row["cell accuracy"] == plain["cell accuracy"]


def test_the_first_way_is_the_plain_one_and_the_last_ones_add_bf16_and_diagnostics() -> None:
    names = [way.name for way in evaluate.ways(compiled=True)]
    assert names == [
        "whole canvas, eager, fp32",
        "whole canvas, compiled, fp32",
        "windows, eager, fp32",
        "windows, compiled, fp32",
        "windows, compiled, bf16",
        "windows, compiled, bf16, diagnostics",
    ]
    assert [way.name for way in evaluate.ways(compiled=False)] == [
        "whole canvas, eager, fp32",
        "windows, eager, fp32",
        "windows, eager, bf16",
        "windows, eager, bf16, diagnostics",
    ]


def test_the_command_measures_ways_to_predict(
    tmp_path: Path,
    trained: Path,
    roomy_compact_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "new" / "evaluate.json"
    document = run(monkeypatch, output, "--checkpoint", trained, "--no-compile")
    check(document["rows"], evaluate.ways(compiled=False))
    assert document["rows"][0]["real"] == 1, "16 rows of one shape, in two full batches"
    assert document["machine"]["sample"] == 16
    variants = len(EvaluationSet(roomy_compact_dataset, None))
    assert document["machine"]["variants"] == variants
    assert "| whole canvas, eager, fp32 |" in capsys.readouterr().out

    flags = ["--checkpoint", trained, "--no-compile", "eval.max_variants=1"]
    document = run(monkeypatch, output, *flags)
    assert document["machine"]["variants"] == document["machine"]["sample"] == 6
    assert document["rows"][0]["real"] == 6 / 8, "a batch of 6 is filled up to 8"


@pytest.mark.long
def test_the_command_measures_compiled_ways(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = run(monkeypatch, tmp_path / "evaluate.json", "--checkpoint", trained)
    check(document["rows"], evaluate.ways(compiled=True))


def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    assert "--checkpoint" in refused_in_process(evaluate.main)
    missing = tmp_path / "missing"
    error = refused_in_process(evaluate.main, "--checkpoint", missing)
    assert str(missing) in error
    error = refused_in_process(evaluate.main, "--checkpoint", missing, "--sample", 0)
    assert "argument --sample: 0 is not 1 or more" in error
