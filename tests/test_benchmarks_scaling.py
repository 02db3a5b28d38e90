"""The scaling benchmark: points that differ in one thing, and a table and plots of them."""

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import scaling
from benchmarks.scaling import Point
from common.distributed import Ranks

CPU = torch.device("cpu")


def test_each_sweep_varies_one_thing_and_holds_the_middle_of_the_others() -> None:
    arguments = Namespace(
        batches=[4, 8, 16], cells=[100, 225, 400, 900], widths=[64, 128], ranks=[1]
    )
    swept = scaling.sweeps(arguments)
    assert swept["batch"] == [Point(batch, 225, 64) for batch in (4, 8, 16)]
    assert swept["cells"] == [Point(8, cells, 64) for cells in (100, 225, 400, 900)]
    assert swept["width"] == [Point(8, 225, width) for width in (64, 128)]
    assert swept["ranks"] == [Point(8, 225, 64, 1)]


def test_ranks_share_one_batch_between_them() -> None:
    point = Point(batch=6, cells=16, width=16, ranks=3)
    whole = scaling.random_segment(point, Ranks(0, 1, CPU))
    shares = [scaling.random_segment(point, Ranks(rank, 3, CPU)) for rank in range(3)]
    assert [len(share.inputs) for share in shares] == [2, 2, 2]
    for name in ("inputs", "labels", "puzzle_ids", "rows"):
        joined = torch.cat([getattr(share, name) for share in shares])
        assert torch.equal(joined, getattr(whole, name))
    assert whole.labels.min() > 0, "no PAD: every cell counts"


def test_a_point_trains_and_knows_its_work() -> None:
    ranks = Ranks(0, 1, CPU)
    small, large = (scaling.Case(Point(batch, 16, 16), [], ranks) for batch in (2, 4))
    before = [parameter.clone() for parameter in small.run.state.model.parameters()]
    small.train_on_the_batch()
    after = list(small.run.state.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert small.run.state.step == 6, "one for each supervision step"
    one, two = small.row(12.0, peak=1e9), large.row(12.0, peak=1e9)
    assert (one["batch"], one["cells"], one["width"], one["ranks"]) == (2, 16, 16, "this process")
    assert one["ms a step"] == 2000 and one["examples/s"] == 1
    assert one["share of matmul peak"] == pytest.approx(one["GFLOPs a rank"] / 2)
    assert two["GFLOPs a rank"] == 2 * one["GFLOPs a rank"]
    assert one["activations, MB"] < two["activations, MB"] <= 2 * one["activations, MB"]


def test_the_table_relates_each_point_to_the_first_of_its_sweep() -> None:
    first, second = Point(4, 100, 64), Point(8, 100, 64)
    measured = {
        first: {"ms a step": 500.0, "GFLOPs a rank": 1.0},
        second: {"ms a step": 750.0, "GFLOPs a rank": 2.0},
    }
    one, two = scaling.rows({"batch": [first, second]}, measured)
    assert one["varied"] == two["varied"] == "batch"
    assert (one["times the first"], two["times the first"]) == (1, 1.5)
    assert (one["FLOPs, times the first"], two["FLOPs, times the first"]) == (1, 2)


def run(
    monkeypatch: pytest.MonkeyPatch, output_dir: Path, *arguments: object
) -> dict[str, list[dict]]:
    """The rows of each sweep that the command wrote, after the checks that hold for all."""
    torch.set_num_threads(1)
    flags = ["--tiny", "--device", "cpu", "--output-dir", output_dir, *arguments]
    monkeypatch.setattr("sys.argv", ["scaling", *map(str, flags)])
    scaling.main()
    document = json.loads((output_dir / "scaling.json").read_text())
    assert document["machine"]["torch"] == torch.__version__
    with Image.open(output_dir / "scaling.png") as picture:
        assert picture.width > 1000 and len(picture.convert("L").getcolors() or []) > 10
    swept: dict[str, list[dict]] = {}
    for row in document["rows"]:
        swept.setdefault(row["varied"], []).append(row)
        assert all(math.isfinite(v) and v > 0 for v in row.values() if isinstance(v, float))
        assert row["examples/s"] == pytest.approx(1e3 * row["batch"] / row["ms a step"])
    return swept


def test_the_command_prints_a_table_and_writes_it_with_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept = run(monkeypatch, tmp_path / "new", "--ranks")
    assert list(swept) == ["batch", "cells", "width"]
    for varied, rows in swept.items():
        assert rows[0][varied] < rows[1][varied]
        assert rows[1]["FLOPs, times the first"] > 1
    assert "| batch | 2 | 16 | 16 | this process |" in capsys.readouterr().out


@pytest.mark.long
def test_ranks_are_measured_by_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launches, which take most of this test's time."""
    swept = run(monkeypatch, tmp_path)
    assert list(swept) == ["batch", "cells", "width", "ranks"]
    one, two = swept["ranks"]
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert two["activations, MB"] < one["activations, MB"], "each has half the batch"
    assert two["FLOPs, times the first"] == pytest.approx(0.5)


def test_what_cannot_be_measured_is_refused(refused_in_process: Callable[..., str]) -> None:
    error = refused_in_process(scaling.main, "--batches", 3, "--ranks", 2)
    assert "--ranks 2: does not divide the batch of 3" in error
    error = refused_in_process(scaling.main, "--cells", 0)
    assert "argument --cells: 0 is not 1 or more" in error
    error = refused_in_process(scaling.main, "--tiny", "--device", "cpu", "arch.widht=3")
    assert "arch.widht" in error
