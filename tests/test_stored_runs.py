"""Runs that earlier versions wrote are read, scored and resumed.

Each folder `fixtures/checkpoint_VERSION` holds a run and the tasks that its dataset is made from. A
version that changes what a checkpoint or its configuration looks like adds one of its own.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import train_arc_tiny_corrupt
from arc_oracles import arc_options
from common.settings import fields_of, select
from config.schema import TrainConfig
from conftest import REPOSITORY
from dataset.build_arc_dataset import build
from runs import call, read_metrics, read_results, run_evaluation
from training.checkpoints import REMOVED_KEYS
from training.run_folder import complete_checkpoints

STORED = sorted((REPOSITORY / "tests" / "fixtures").glob("checkpoint_*"))
ABSENT = object()


@pytest.fixture(params=STORED, ids=lambda folder: folder.name)
def config(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_process: None,
) -> dict[str, Any]:
    """The stored configuration; a copy of the run, and its dataset, lie in the working folder."""
    folder: Path = request.param
    shutil.copytree(folder / "run", tmp_path / "run")
    prefix = str(folder / "tasks")
    options = {"subsets": ("made-up",), "test_set_name": "made-up", "num_aug": 0, "canvas_side": 4}
    build(arc_options(prefix, tmp_path / "dataset", **options))
    monkeypatch.chdir(tmp_path)
    stored: dict[str, Any] = yaml.safe_load(Path("run/config.yaml").read_text())
    return stored


def removed_keys(config: dict[str, Any]) -> str:
    """What the log says of keys that there are no more."""
    found = [key for key in REMOVED_KEYS if select(config, key, ABSENT) is not ABSENT]
    return ", ".join(f"{key} (dropped in {REMOVED_KEYS[key]})" for key in found)


@pytest.mark.usefixtures("config")
def test_a_stored_run_is_scored() -> None:
    metrics = read_results(run_evaluation(Path("scored"), "checkpoint=run", "data.path=dataset"))
    assert 0 <= metrics["pass@1"] <= 1
    assert metrics["num_predictions"] == 2
    assert metrics["checkpoints"][0]["weights"] == "ema"


def test_a_stored_run_is_resumed(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """With the configuration that it was started with, as far as its keys are still there."""
    values = {key: select(config, key, ABSENT) for key, _ in fields_of(TrainConfig)}
    given = [f"{key}={json.dumps(v)}" for key, v in values.items() if v is not ABSENT]
    with caplog.at_level("INFO"):
        call(train_arc_tiny_corrupt.main, *given, "resume=auto", "train.max_steps=8")
    steps = [path.name for path in complete_checkpoints(Path("run/checkpoints"))]
    assert steps == ["step_00000004", "step_00000008"]
    assert [line["step"] for line in read_metrics(Path("run"))] == [2, 4, 6, 8]
    stored = "run/checkpoints/step_00000004"
    assert f"Resumed from {stored} at step 4" in caplog.messages
    # Before 0.3.0 a place in the data meant something else.
    is_place_lost = any("going on at the start of an epoch" in m for m in caplog.messages)
    assert is_place_lost == ("epochs_per_pass" in config["data"])
    ignored = [line for line in caplog.messages if "ignoring keys" in line]
    expected = f"{stored}/config.json: ignoring keys that there are no more: "
    assert ignored == [expected + keys for keys in [removed_keys(config)] if keys]
    changed = [line for line in caplog.messages if "Resuming with" in line]
    assert changed == ["Resuming with train.max_steps=8 instead of 4"]


def test_the_first_format_had_keys_that_there_are_no_more() -> None:
    """So the fixture shows what the table of removed keys is for."""
    config = yaml.safe_load((STORED[0] / "run" / "config.yaml").read_text())
    assert STORED[0].name == "checkpoint_0.1.0"
    dropped = {
        "0.2.0": ("eval.voting", "eval.voting_error", "eval.voting_min_share", "eval.voting_seed"),
        "0.3.0": ("data.epochs_per_pass", "train.attention", "eval.batch_size"),
    }
    expected = [f"{key} (dropped in {version})" for version in dropped for key in dropped[version]]
    assert removed_keys(config) == ", ".join(expected)
