"""`benchmarks.step` and its like run, tiny: every row is there and means something."""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks import attention, loading, step, windows
from common.distributed import Ranks

ARCH = (
    "arch.hidden_size=16",
    "arch.num_heads=2",
    "arch.prefix_length=2",
    "arch.num_supervision_steps=2",
    "train.compile=off",
)


def run(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    torch.set_num_threads(1)
    module.main()  # type: ignore[attr-defined]


def test_the_step_benchmark_measures_every_change(
    monkeypatch: pytest.MonkeyPatch, small_compact_dataset: Path, tmp_path: Path
) -> None:
    output = tmp_path / "step.json"
    run(
        monkeypatch, step, *ARCH, "--data", small_compact_dataset, "--batch-size", 4,
        "--repeats", 1, "--device", "cpu", "--output", output,
    )  # fmt: skip
    rows = json.loads(output.read_text())["rows"]
    assert [row["change"] for row in rows] == [change.name for change in step.changes("cpu")]
    assert rows[0]["times plain"] == 1
    for before, row in pairwise(rows):
        ratio = row["times plain"] / before["times plain"]
        assert row["times the row before"] == pytest.approx(ratio)
    for row in rows:
        numbers = [value for value in row.values() if not isinstance(value, str)]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
    cells = {row["change"]: row["cells per example"] for row in rows}
    assert cells["plain"] == 900
    assert cells["+ cropped to the grids"] < 900


def test_each_row_keeps_the_changes_before_it_and_cuda_has_one_with_graphs() -> None:
    for device in ("cpu", "cuda"):
        rows = step.changes(device)
        for before, row in pairwise(rows):
            assert row.overrides[:-1] == before.overrides
    assert "train.graphs=on" in step.changes("cuda")[-1].overrides
    assert "train.graphs=on" not in step.changes("cpu")[-1].overrides


def test_a_run_is_measured_and_extrapolated_to_its_end(small_compact_dataset: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    overrides = ("data.canvas=window", "train.max_steps=3600", "train.global_batch_size=4")
    case = step.build_case(small_compact_dataset, (*ARCH, *overrides), ranks)
    result = step.measure_run(case, 0.01, 1e9)
    assert result["recompiled"] == result["filled up"] == 0, "on a CPU nothing is filled up"
    assert result["examples/s"] == pytest.approx(4000 / result["ms per step"])
    # An hour has 3,600 s: so many steps take as many hours as one takes seconds.
    assert result["GPU-hours, whole run"] == pytest.approx(result["ms per step"] / 1000)
    assert len(case.cells) == 4 * result["batches"]


def test_the_loader_is_timed_piece_by_piece(small_compact_dataset: Path) -> None:
    rows = loading.measure(small_compact_dataset, 4, 1, Ranks(0, 1, torch.device("cpu")))
    assert [row["canvas"] for row in rows] == ["window", "whole"]
    assert all(row[key] > 0 for row in rows for key in row if key.endswith("ms"))


def test_attention_kernels_are_timed_on_real_lengths(small_compact_dataset: Path) -> None:
    device = torch.device("cpu")
    rows = attention.measure(small_compact_dataset, 1500, 16, 2, 1, device)
    names = ["grouped, 2 heads of 8", "grouped, 1 heads of 16", "dense, 2 heads of 8"]
    assert [row["kernel"] for row in rows] == names
    assert all(row["ms"] > 0 for row in rows)
    offsets = attention.real_offsets(small_compact_dataset, 1500, device)
    assert 1500 - 916 < offsets[-1] <= 1500
    assert (offsets.diff() > 16).all()


def test_a_kernel_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, small_compact_dataset: Path
) -> None:
    def refuse(*_: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such kernel\nand more")

    monkeypatch.setattr(attention, "dense", lambda _: refuse)
    rows = attention.measure(small_compact_dataset, 1500, 16, 2, 1, torch.device("cpu"))
    assert {row["kernel"]: row["error"] for row in rows if "error" in row} == {
        "dense, 2 heads of 8": "no such kernel"
    }


def test_the_window_study_trains_and_scores_both_ways(
    monkeypatch: pytest.MonkeyPatch, kaggle_prefix: str, tmp_path: Path
) -> None:
    run(
        monkeypatch, windows, *ARCH, "train.max_steps=4", "train.global_batch_size=4", "device=cpu",
        "--input-file-prefix", kaggle_prefix, "--output-dir", tmp_path / "out",
        "--num-aug", 2, "--seeds", 0, "--max-side", 6, "--canvas-side", 9,
    )  # fmt: skip
    rows = json.loads((tmp_path / "out" / "windows.json").read_text())["rows"]
    assert [row["canvas"] for row in rows] == ["whole", "window"]
    for row in rows:
        assert 0 <= row["pass@2"] <= 1
        assert 0 <= row["size right"] <= 1
    assert rows[0]["whole canvas again"] == 0
