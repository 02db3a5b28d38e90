"""`benchmarks.step` and `benchmarks.windows` run, tiny: every row is there and means something."""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import step, windows
from benchmarks.plain import UniqueSignSGD
from common.distributed import Ranks
from models.puzzle_embedding import PuzzleEmbedding
from training.optimizers import SparseSignSGD

ARCH = (
    "arch.hidden_size=16",
    "arch.num_heads=2",
    "arch.prefix_length=2",
    "arch.num_supervision_steps=2",
    "data.epochs_per_pass=4",
    "train.compile=off",
)


def run(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    torch.set_num_threads(1)
    module.main()  # type: ignore[attr-defined]


def test_the_step_benchmark_measures_every_change(
    monkeypatch: pytest.MonkeyPatch, small_dataset: Path, tmp_path: Path
) -> None:
    output = tmp_path / "step.json"
    run(
        monkeypatch, step, *ARCH, "--data", small_dataset, "--batch-size", 4, "--repeats", 1,
        "--device", "cpu", "--output", output,
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


def test_each_row_has_one_plain_piece_less_and_cuda_one_with_the_fastest_attention() -> None:
    rows = step.changes("cuda")
    assert [len(row.plain) for row in rows] == [5, 4, 3, 2, 1, *[0] * (len(rows) - 5)]
    overrides = {row.name: row.overrides for row in rows}
    assert "train.attention=default" in overrides["plain"]
    assert overrides["+ fastest attention"][-1] == "train.attention=auto"


def test_the_plain_sparse_update_is_the_same_update() -> None:
    ids = torch.tensor([3, 1, 3, 0])
    gradients = torch.tensor([[1.0, -2.0], [0.5, 0.0], [-3.0, 1.0], [0.0, 4.0]])

    def after(kind: type[SparseSignSGD]) -> Tensor:
        table = PuzzleEmbedding(5, 2)
        table.weight.fill_(2.0)
        kind(table, 0.1, Ranks(0, 1, torch.device("cpu"))).step(ids, gradients, 0.5)
        return table.weight

    assert torch.equal(after(UniqueSignSGD), after(SparseSignSGD))


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
