"""The benchmark of predictions: ways to predict beside the plain way."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import run_training

from benchmarks import evaluate
from evaluation.test_set import open_test_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, roomy_compact_dataset: Path) -> Path:
    """A short run on windows at a high learning rate: mostly wrong answers, but they differ."""
    return run_training(
        roomy_compact_dataset,
        tmp_path_factory.mktemp("runs") / "trained",
        "data.canvas=window",
        "train.max_steps=24",
        "train.checkpoint_every=24",
        "train.eval_every=null",
        "optim.lr=1e-2",
        "optim.puzzle_lr=3e-2",
    )


EAGER = [
    "whole canvas, eager, fp32",
    "windows, eager, fp32",
    "windows, eager, bf16",
    "windows, eager, bf16, diagnostics",
]


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: object) -> dict:
    """What the command wrote, its rows checked."""
    flags = ["--tiny", "--device", "cpu", "--output", output, *arguments]
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, flags)])
    evaluate.main()
    document: dict = json.loads(output.read_text())
    rows = document["rows"]
    assert rows[0]["times plain"] == 1 == rows[0]["same answer as plain"]
    for row in rows:
        assert row["times plain"] == pytest.approx(row["variants/s"] / rows[0]["variants/s"])
        shares = ("exact accuracy", "cell accuracy", "same answer as plain", "predicted again")
        assert all(0 <= row[key] <= 1 for key in shares)
        if row["way"].startswith("whole canvas"):
            assert row["cell accuracy"] == rows[0]["cell accuracy"]
            assert row["predicted again"] == 0
    return document


def test_the_command_measures_ways_to_predict(
    tmp_path: Path,
    trained: Path,
    roomy_compact_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "new" / "evaluate.json"
    document = run(monkeypatch, output, "--checkpoint", trained, "--no-compile")
    assert [row["way"] for row in document["rows"]] == EAGER
    facts = document["machine"]
    variants = len(open_test_set(roomy_compact_dataset, None, "auto"))
    assert (facts["sample"], facts["variants"], facts["batch_size"]) == (16, variants, 8)
    assert "| whole canvas, eager, fp32 |" in capsys.readouterr().out

    flags = ["--checkpoint", trained, "--no-compile", "eval.max_variants=1"]
    facts = run(monkeypatch, output, *flags)["machine"]
    assert facts["variants"] == facts["sample"] == 6


def test_the_compiler_has_rows_of_its_own_and_the_last_ones_add_bf16_and_diagnostics() -> None:
    assert [way.name for way in evaluate.ways(compiled=True)] == [
        "whole canvas, eager, fp32",
        "whole canvas, compiled, fp32",
        "windows, eager, fp32",
        "windows, compiled, fp32",
        "windows, compiled, bf16",
        "windows, compiled, bf16, diagnostics",
    ]


@pytest.mark.long
def test_the_command_measures_compiled_ways(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, tmp_path / "evaluate.json", "--checkpoint", trained)


def test_a_missing_checkpoint_is_refused(
    tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    assert "--checkpoint" in refused_in_process(evaluate.main)
    missing = tmp_path / "missing"
    assert str(missing) in refused_in_process(evaluate.main, "--checkpoint", missing)
