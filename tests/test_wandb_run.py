"""What a real run tells a real W&B, read back from the files that it writes offline."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.wandb_files import history_of, offline_files
from conftest import REPOSITORY
from runs import read_metrics, read_results, run_evaluation, run_training, wait_for_wandb
from training.scores import read_score
from training.wandb_run import AXES, CHARTS, WandbConfig, WandbRun, panel_of, without_seed


class Recorded:
    """What the newest file of a run holds."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = offline_files(run_dir)[-1].parent / "files"
        records = wait_for_wandb(run_dir)[-1]

        def of_kind(kind: str) -> list[Any]:
            return [r for r in records if r.WhichOneof("record_type") == kind]

        self.history = [history_of(record) for record in of_kind("history")]
        metrics = [record.metric for record in of_kind("metric")]
        self.axes = {m.glob_name or m.name: m.step_metric for m in metrics if m.step_metric}
        (self.run,) = [record.run for record in of_kind("run")]
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}
        self.artifacts = [record.artifact for record in of_kind("artifact")]
        self.summary = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for record in of_kind("summary")
            for item in record.summary.update
        }


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """Twelve steps with two evaluations, the second after a resumption. Read-only."""
    folder = tmp_path_factory.mktemp("wandb") / "tiny-seed0"
    for more in ("train.max_steps=6", "train.max_steps=12"):
        run_training(
            tiny_dataset, folder, "wandb.mode=offline", "resume=auto", more,
            "wandb.save_checkpoint=true",
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def recorded(run_dir: Path) -> Recorded:
    return Recorded(run_dir)


def test_the_newest_file_holds_the_whole_run_under_one_id(
    run_dir: Path, recorded: Recorded
) -> None:
    assert len(offline_files(run_dir)) == 2
    first, second = ({r.run.run_id for r in of} - {""} for of in wait_for_wandb(run_dir))
    assert first == second
    steps = [line["step"] for line in read_metrics(run_dir)]
    assert sorted({line["step"] for line in recorded.history}) == sorted(set(steps))


def test_what_is_logged_is_what_the_run_folder_holds_by_panel(
    run_dir: Path, recorded: Recorded
) -> None:
    merged: dict[int, dict[str, float]] = {}
    for line in read_metrics(run_dir):
        merged.setdefault(line["step"], {}).update({panel_of(k): v for k, v in line.items()})
    shown = {"answers/table", "answers/steps"}
    for line in recorded.history:
        plain = {
            key: value
            for key, value in line.items()
            if key[0] != "_" and not any(key.startswith(name) for name in shown)
        }
        assert plain == pytest.approx(merged[line["step"]]), line["step"]


def test_charts_have_an_axis_that_every_line_holds(recorded: Recorded) -> None:
    assert CHARTS.items() <= recorded.axes.items()
    for line in recorded.history:
        assert set(AXES) <= set(line)
        for key in line:
            if "/" in key and not key.startswith(("answers/", "_")):
                assert any(key.startswith(name.rstrip("*")) for name in CHARTS), key


def test_everything_that_is_logged_is_in_the_docs(recorded: Recorded) -> None:
    """docs/dashboard.md lists each panel and what it is good for: nothing is logged for nobody."""
    documented = re.findall(
        r"^\| `(.+?)`", (REPOSITORY / "docs" / "dashboard.md").read_text(), re.M
    )
    patterns = [re.escape(name).replace(r"\*", ".+") for name in documented]
    logged = {key for line in recorded.history for key in line if not key.startswith("_")}
    # Media have several entries each.
    logged = {
        key if not key.startswith("answers/") else "/".join(key.split("/")[:2]) for key in logged
    }
    for key in logged:
        assert any(re.fullmatch(pattern, key) for pattern in patterns), key


def test_the_run_is_described_grouped_and_summed_up(run_dir: Path, recorded: Recorded) -> None:
    assert (recorded.run.display_name, recorded.run.run_group) == ("tiny-seed0", "tiny")
    assert recorded.run.job_type == "train"
    assert recorded.config["arch"]["name"] == "tiny"
    assert (
        recorded.config["network_parameters"] > 0 < recorded.config["puzzle_embedding_parameters"]
    )
    assert recorded.config["dataset"]["description"]["num_aug"] == 6
    best = Path(recorded.summary["best checkpoint"])
    assert best.parent == run_dir / "checkpoints"
    score = read_score(best)
    assert score is not None
    assert recorded.summary["eval/pass@2"] == {"max": score.metrics["eval/pass@2"]}


def test_the_best_checkpoint_is_kept_where_that_is_asked_for(recorded: Recorded) -> None:
    (artifact,) = [a for a in recorded.artifacts if a.type == "checkpoint"]
    files = {entry.path for entry in artifact.manifest.contents}
    assert {"model.safetensors", "config.json", "score.json"} <= files


def test_answers_are_shown_as_strips_and_in_a_table(run_dir: Path, recorded: Recorded) -> None:
    lines = [line for line in recorded.history if any("answers/" in key for key in line)]
    assert [line["step"] for line in lines] == [6, 12]
    folder = run_dir / "answers"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000006", "step_00000012"]
    strips = sorted(folder.glob("step_00000012/*.png"))
    table = json.loads((folder / "step_00000012" / "table.json").read_text())
    assert len(strips) == len(table) > 0
    media = Counter(path.suffix for path in recorded.folder.rglob("*") if path.is_file())
    assert media[".png"] >= len(strips)
    (stored,) = sorted(recorded.folder.glob("media/table/answers/table_12_*.json"))
    document = json.loads(stored.read_text())
    assert document["columns"][0] == "test input" and document["columns"][-1] == "steps"
    assert [row[:-1] for row in document["data"]] == table
    for path in strips:
        with Image.open(path) as image:
            assert image.width > image.height > 60


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("compact-seed0", "compact"),
        ("seed12-compact", "-compact"),
        ("compact_seed=3_lr1", "compact_lr1"),
        ("seed3", "seed3"),
        ("mine", "mine"),
    ],
)
def test_seeds_fold_together(name: str, group: str) -> None:
    assert without_seed(name) == group


@pytest.mark.parametrize(
    ("name", "panel"),
    [
        ("train/loss", "train/loss"),
        ("train/exact_accuracy_step3", "train exact_accuracy by step/3"),
        ("eval/loss_step12", "eval loss by step/12"),
        ("train/examples_per_second", "speed/examples_per_second"),
        ("train/device_hours_left", "speed/device_hours_left"),
        ("minutes", "minutes"),
        ("examples", "examples"),
    ],
)
def test_metrics_are_put_into_sections(name: str, panel: str) -> None:
    assert panel_of(name) == panel


def test_an_agent_of_a_sweep_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    run = WandbRun(tmp_path, WandbConfig(mode="offline", group="mine"), {}, "train", "x")
    run.finish()
    assert run.run_id == "abc123"
    assert Recorded(tmp_path).run.run_group == "mine"


def test_an_evaluation_is_a_run_beside_that_of_the_training_and_keeps_its_page(
    run_dir: Path, tmp_path: Path
) -> None:
    results = run_evaluation(tmp_path / "results", f"checkpoint={run_dir}", "wandb.mode=offline")
    recorded = Recorded(results)
    assert (recorded.run.run_group, recorded.run.job_type) == ("tiny", "evaluate")
    assert recorded.run.display_name == "tiny-seed0 results"
    (line,) = recorded.history
    assert line["eval/pass@2"] == read_results(results)["pass@2"]
    (artifact,) = [artifact for artifact in recorded.artifacts if artifact.type == "report"]
    assert [entry.path for entry in artifact.manifest.contents] == ["report.html"]
