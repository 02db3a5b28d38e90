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
from benchmarks.scaling import Measured, Point
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
    assert small.run.state.step == small.arch.num_supervision_steps == 6
    one, two = small.measured(12.0, peak=1.0), large.measured(12.0, peak=1.0)
    assert one.seconds == 2.0 and one.device_memory is None
    assert two.flops == 2 * one.flops
    assert one.activations < two.activations <= 2 * one.activations


def test_the_table_relates_each_point_to_the_first_of_its_sweep() -> None:
    first, second = Point(4, 100, 64), Point(8, 100, 64)
    measured = {
        first: Measured(0.5, 1e9, 4e9, 10**6, None),
        second: Measured(0.75, 2e9, 4e9, 2 * 10**6, 3 * 10**6),
    }
    one, two = scaling.rows({"batch": [first, second]}, measured)
    assert (one["times the first"], two["times the first"]) == (1, 1.5)
    assert two["FLOPs, times the first"] == 2
    assert two["examples/s"] == pytest.approx(8 / 0.75)
    assert two["share of matmul peak"] == pytest.approx(2 / 3)
    assert two["activations, MB"] == 2 and two["device memory, MB"] == 3
    assert "device memory, MB" not in one


def test_the_command_prints_a_table_and_writes_it_with_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two real launches of torchrun among them."""
    torch.set_num_threads(1)
    monkeypatch.setattr(
        "sys.argv", ["scaling", "--tiny", "--device", "cpu", "--output-dir", str(tmp_path / "new")]
    )
    scaling.main()
    document = json.loads((tmp_path / "new" / "scaling.json").read_text())
    rows = document["rows"]
    assert [row["varied"] for row in rows] == [
        name for name in ("batch", "cells", "width", "ranks") for _ in range(2)
    ]
    assert [row["ranks"] for row in rows[-2:]] == [1, 2]
    for row in rows:
        assert all(math.isfinite(v) and v > 0 for v in row.values() if isinstance(v, float))
        assert row["examples/s"] == pytest.approx(1e3 * row["batch"] / row["ms a step"])
    assert rows[-1]["activations, MB"] < rows[-2]["activations, MB"], "each has half the batch"
    assert document["machine"]["torch"] == torch.__version__
    with Image.open(tmp_path / "new" / "scaling.png") as picture:
        assert picture.width > 1000 and len(picture.convert("L").getcolors() or []) > 10
    assert "| batch | 2 | 16 | 16 | this process |" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(refused_in_process: Callable[..., str]) -> None:
    error = refused_in_process(scaling.main, "--batches", 3, "--ranks", 2)
    assert "--ranks 2: does not divide the batch of 3" in error
    assert "--cells 0" in refused_in_process(scaling.main, "--cells", 0)
    error = refused_in_process(scaling.main, "--tiny", "--device", "cpu", "arch.widht=3")
    assert "arch.widht" in error
