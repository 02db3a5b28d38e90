"""Curves of runs: what is drawn of which lines, and who shares a colour."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from study import plot
from study.plot import Run, chosen_keys, common_axis, draw, mean_and_band, names_of, read_runs


def write_run(folder: Path, *lines: dict[str, Any], damaged: str = "") -> Path:
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + damaged)
    return folder


def line(step: int, loss: float, **more: float) -> dict[str, Any]:
    return {"step": step, "examples": 100 * step, "minutes": step / 60, "train/loss": loss, **more}


def test_runs_that_differ_by_the_seed_are_one_group(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, line(1, 1.0)) for name in ("a-seed0", "a-seed1", "b")]
    assert [run.group for run in read_runs(folders)] == ["a", "a", "b"]


def test_runs_of_a_study_are_told_apart_by_the_folder_above() -> None:
    """Each of its folders is named by the seed alone."""
    paths = [Path(f"study/queens/{name}/seed{seed}") for name in ("dis", "trm") for seed in (0, 1)]
    assert names_of(paths) == ["dis/seed0", "dis/seed1", "trm/seed0", "trm/seed1"]
    assert names_of([Path("runs/mine")]) == ["mine"]


def test_a_line_that_was_cut_off_and_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", line(1, 2.0), line(2, float("nan")), line(3, 1.0), {"step": 4},
        damaged='{"step": 5, "train/lo',
    )  # fmt: skip
    (run,) = read_runs([folder])
    xs, ys = run.curve("train/loss", "examples")
    assert xs.tolist() == [100, 300]
    assert ys.tolist() == [2.0, 1.0]


def test_the_mean_of_seeds_is_where_all_of_them_are() -> None:
    """One was logged twice as often, and one ended early."""
    often = (np.array([0.0, 1, 2, 3, 4]), np.array([0.0, 2, 4, 6, 8]))
    early = (np.array([0.0, 2]), np.array([2.0, 2]))
    (xs, means), (lowest, highest) = mean_and_band([often, early])
    assert xs.tolist() == [0, 1, 2]
    assert means.tolist() == [1, 2, 3]
    assert (lowest.tolist(), highest.tolist()) == ([0, 2, 2], [2, 2, 4])


def test_a_run_of_an_earlier_version_is_drawn_over_steps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    new, old = Run("new", [line(1, 1.0)]), Run("old", [{"step": 1, "train/loss": 1.0}])
    assert common_axis([new], "examples") == "examples"
    with caplog.at_level("INFO"):
        assert common_axis([new, old], "examples") == "step"
    assert "Not all runs have recorded examples" in caplog.text


def test_the_score_that_there_is_is_drawn(tmp_path: Path) -> None:
    boards = Run("boards", [line(1, 1.0, **{"eval/solved": 0.5, "eval/exact_accuracy": 0.25})])
    assert chosen_keys([boards], None) == ["train/loss", "eval/solved"]
    assert chosen_keys([boards], ["eval/exact_accuracy"]) == ["eval/exact_accuracy"]
    with pytest.raises(UserError, match="--keys eval/loss: no run has it; there are eval/exact"):
        chosen_keys([boards], ["eval/loss"])


def test_a_colour_stands_for_a_group_in_every_panel() -> None:
    def run(group: str, start: float) -> Run:
        return Run(group, [line(s, start / s, **{"eval/pass@2": s / 10}) for s in (1, 2, 3)])

    figure = draw([run("a", 1), run("a", 2), run("b", 3)], ["train/loss", "eval/pass@2"], "step")
    for panel in figure.axes:
        assert [drawn.get_color() for drawn in panel.lines] == list(plot.COLOURS[:2])
        assert len(panel.collections) == 1, "a band, of the group with two runs"
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["a (mean of 2 seeds, lowest to highest)", "b"]


def test_the_command_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", line(1, 2.0), line(2, 1.0))
    output = tmp_path / "curves.png"
    monkeypatch.setattr(sys, "argv", ["study.plot", str(folder), "--output", str(output)])
    plot.main()
    with Image.open(output) as image:
        assert image.format == "PNG" and image.width > 500
    first = output.read_bytes()
    plot.main()
    assert output.read_bytes() == first, "the same records, the same bytes"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{empty}"], "there is no metrics.jsonl in it"),
        (["{silent}"], "holds no metrics yet"),
        (["{run}", "--output", "curves.pdf"], "--output curves.pdf: pictures are PNG"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], said: str, tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "silent", damaged='{"st')
    write_run(tmp_path / "run", line(1, 1.0))
    folders = {path.name: path for path in tmp_path.iterdir()}
    assert said in refused_in_process(plot.main, *(word.format(**folders) for word in words))
