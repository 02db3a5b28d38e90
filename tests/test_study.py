"""The study: its grid, what is kept of a run, its tables and plots, and the page with them."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.errors import UserError
from config.loading import load_config
from config.schema import DemoConfig, TrainConfig
from study import __main__ as command
from study.grid import GRID_FILE, Comparison, Grid, Point, TaskSpec, Variant, load_grid
from study.points import Record, build_dataset, read_curve, recorded, train_command
from study.tables import blocks, comparison_table, fill, mean_and_spread

GRID = load_grid(GRID_FILE)


def small_grid(**changes: Any) -> Grid:
    """Two variants on one task, the second for two seeds as well."""
    values = {
        "seeds": [0, 1],
        "tasks": {
            "queens": TaskSpec(
                title="Queens",
                experiment="study_nqueens",
                steps=4,
                evaluations=2,
                measure="solved",
                beside=["exact_accuracy"],
                build=[
                    "dataset.build_nqueens_dataset --output-dir {data} --num-train 16 --num-test 4"
                ],
            )
        },
        "variants": {
            "dis": Variant(title="DIS", overrides=[], diagnose=True),
            "trm": Variant(title="TRM", overrides=["arch.num_recursions=3"]),
        },
        "comparisons": {
            "methods": Comparison(tasks=["queens"], variants=["dis", "trm"], curves=True)
        },
    }
    return Grid(**{**values, **changes})


def record(variant: str, seed: int, solved: float, seconds: float = 10, **more: Any) -> Record:
    values = {
        "command": "train",
        "parameters": 1234,
        "calls_per_answer": 48,
        "calls_per_step": 12 if variant == "trm" else 3,
        "calls_with_gradient_per_step": 3,
        "curve": [
            {"step": 500, "seconds": seconds / 2, "examples": 600} | figures(0.0),
            {"step": 1000, "seconds": seconds, "examples": 1200} | figures(solved),
        ],
        "diagnosis": None,
    }
    return Record("queens", variant, seed, **{**values, **more})


def figures(solved: float) -> dict[str, float]:
    return {"solved": solved, "exact_accuracy": solved / 2}


def diagnosis(solved: float) -> dict[str, Any]:
    of_step = {
        "cell_accuracy": 0.5,
        "distance_to_solution": 8.0,
        "distance_to_target": 4.0,
        "cells_changed": 2.0,
        "margin": 0.25,
        "margin_positive": 0.75,
    }
    return {
        "trained_steps": 1,
        "steps": [{"step": s, "solved": solved / s, **of_step} for s in (1, 2)],
        "guidance": [
            {"guidance_weight": w, "solved": w * solved, "margin": -w} for w in (1.0, 1.5)
        ],
        "variants": [],
    }


@pytest.mark.parametrize("point", list(GRID.points())[: len(list(GRID.points())) // 3])
def test_every_point_is_a_valid_configuration(point: Point) -> None:
    """Those of the first seed; the others differ by it alone."""
    arguments = train_command(GRID, point, Path("study_output"))[1:]
    config = load_config("train", TrainConfig, "", arguments)
    assert config.seed == point.seed
    assert config.train.eval_every is not None


def test_every_point_is_run_once_and_the_first_seeds_come_first() -> None:
    points = list(GRID.points())
    assert len(points) == len(set(points))
    seeds = [point.seed for point in points]
    assert seeds == sorted(seeds)
    assert len(GRID.seeds) >= 3
    for key, comparison in GRID.comparisons.items():
        for task in comparison.tasks:
            for variant in comparison.variants:
                assert Point(task, variant, GRID.seeds[-1]) in points, key


def test_all_variants_of_a_task_differ(tmp_path: Path) -> None:
    """Two variants with the same configuration would be compared with themselves."""
    for task in GRID.tasks:
        configs = {}
        for point in GRID.points():
            if point.task == task and point.seed == 0:
                arguments = [*train_command(GRID, point, tmp_path)[1:], "run_dir=x"]
                config = load_config("train", TrainConfig, "", arguments).model_dump_json()
                assert config not in configs, (point.variant, configs[config])
                configs[config] = point.variant


def test_every_method_has_the_same_compute() -> None:
    """A call of f with its backward pass costs three without."""
    for task in GRID.tasks:
        budgets = {}
        for variant in GRID.comparisons["methods"].variants:
            arguments = train_command(GRID, Point(task, variant, 0), Path("x"))[1:]
            config = load_config("train", TrainConfig, "", arguments)
            steps = config.train.max_steps
            assert steps is not None
            arch = config.arch
            calls = arch.network_calls + 2 * arch.network_calls_with_gradient
            budgets[variant] = steps * calls / arch.num_supervision_steps
        assert max(budgets.values()) < 1.01 * min(budgets.values()), (task, budgets)


def test_the_arc_tasks_are_the_demos() -> None:
    (build,) = (c for c in GRID.tasks["arc"].build if "build_arc_dataset" in c)
    assert build.split("--task-ids ")[1].split() == load_config("demo", DemoConfig, "", []).task_ids


def test_a_comparison_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no 'chess'"):
        small_grid(comparisons={"a": Comparison(tasks=["chess"], variants=["dis"])})


def test_a_curve_has_a_row_for_each_evaluation_and_counts_training_seconds_alone(
    tmp_path: Path,
) -> None:
    """100 steps at 10 a second and 100 at 5 are 30 s; an evaluation in between takes none.

    In them, 10 * 80 and 20 * 20 examples were done with.
    """
    lines = [
        {"step": 100, "train/steps_per_second": 10.0, "train/examples_per_second": 80.0},
        {"step": 100, "eval/solved": 0.25, "eval/solved_step1": 0.5},
        {"step": 200, "train/steps_per_second": 5.0, "train/examples_per_second": 20.0},
        {"step": 200, "eval/solved": 0.75},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_curve(path) == [
        {"step": 100, "seconds": 10.0, "examples": 800, "solved": 0.25},
        {"step": 200, "seconds": 30.0, "examples": 1200, "solved": 0.75},
    ]


def test_means_and_spreads_are_those_of_the_seeds() -> None:
    assert mean_and_spread([0.25]) == "0.250"
    assert mean_and_spread([0.1, 0.2, 0.3]) == "0.200 ± 0.100"


def test_a_table_by_hand() -> None:
    """Standard deviation 0.3 * sqrt(2) of each, so a standard error of 0.3 * sqrt(2)."""
    records = [
        record("trm", 1, 0.7),
        record("dis", 0, 0.2),
        record("trm", 0, 0.1),
        record("dis", 1, 0.8, seconds=30),
    ]
    grid = small_grid()
    table = comparison_table(grid, grid.comparisons["methods"], "queens", records)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0][:3] == ["variant", "solved", "exact accuracy"]
    assert rows[2] == ["DIS", "0.500 ± 0.424", "0.250 ± 0.212", "", "2", "1,234", "48", "1,000",
                       "1,200", "3.0 (3.0)", "20"]  # fmt: skip
    assert rows[3] == ["TRM", "0.400 ± 0.424", "0.200 ± 0.212", "-0.100 ± 0.424", "2", "1,234",
                       "48", "1,000", "1,200", "12.0 (3.0)", "10"]  # fmt: skip


def test_diagnoses_become_tables_by_step_and_by_guidance_weight() -> None:
    records = [record("dis", s, 0.5, diagnosis=diagnosis(v)) for s, v in enumerate((0.4, 0.6))]
    texts = blocks(small_grid(), [*records, record("trm", 0, 0.5)])
    assert texts["extent"] == "3 runs, 0.0 hours of training on one thread in all"
    assert set(texts) == {
        "extent",
        "methods on queens",
        "guidance of dis on queens",
        "steps of dis on queens",
    }
    assert "| 1.5 | 0.750 ± 0.212 | -1.500 ± 0.000 |" in texts["guidance of dis on queens"]
    steps = texts["steps of dis on queens"].splitlines()
    assert steps[2].startswith("| 1 (last trained) | 0.500 ± 0.141 |")
    assert steps[3].startswith("| 2 | 0.250 ± 0.071 |")


def test_the_extent_is_the_training_of_all_runs() -> None:
    records = [record("dis", seed, 0.5, seconds=1000 * (seed + 1)) for seed in (0, 1, 2)]
    expected = "3 runs, 1.7 hours of training on one thread in all"
    assert blocks(small_grid(), records)["extent"] == expected


def test_votes_become_a_table_where_variants_vote() -> None:
    votes = [{"variants": n, "pass@1": n / 10, "pass@2": n / 5} for n in (1, 2)]
    records = [record("dis", 0, 0.5, diagnosis=diagnosis(0.5) | {"variants": votes})]
    table = blocks(small_grid(), records)["votes of dis on queens"].splitlines()
    assert table[0] == "| variants that vote | pass@1 | pass@2 |"
    assert table[2:] == ["| 1 | 0.100 | 0.200 |", "| 2 | 0.200 | 0.400 |"]


def test_only_what_stands_between_markers_is_replaced() -> None:
    page = "a <!-- begin t -->old\n<!-- end t --> b"
    assert fill(page, {"t": "new"}) == "a <!-- begin t -->\nnew\n<!-- end t --> b"
    with pytest.raises(UserError, match="nothing is known of 't'"):
        fill(page, {"u": "new"})


def test_results_are_written_and_reported_again_from_the_records_alone(tmp_path: Path) -> None:
    grid, page, folder = small_grid(), tmp_path / "RESULTS.md", tmp_path / "results"
    page.write_text("<!-- begin methods on queens --><!-- end methods on queens -->")
    records = [record("dis", s, 0.5, diagnosis=diagnosis(0.5)) for s in (0, 1)]
    records += [record("trm", 0, 0.25)]
    command.write_results(grid, records, {"cpu": "x"}, page, folder)
    text = page.read_text()
    assert "| DIS | 0.500 ± 0.000 |" in text
    for name in ("methods.png", "diagnosis_dis.png"):
        with Image.open(folder / name) as image:
            assert len(image.convert("L").getcolors()) > 2, "something is drawn"
    read, facts = command.read_records(folder)
    assert (read, facts) == (records, {"cpu": "x"})
    command.write_results(grid, read, facts, page, folder)
    assert page.read_text() == text


def test_reporting_before_anything_ran_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the grid first"):
        command.read_records(tmp_path)


SHORT = [
    "arch.hidden_size=16",
    "arch.num_heads=2",
    "arch.num_supervision_steps=2",
    "train.global_batch_size=8",
    "train.log_every=2",
    "wandb.mode=disabled",
    "device=cpu",
]


def test_a_point_is_trained_diagnosed_and_recorded_once(tmp_path: Path) -> None:
    """By the real commands; the second time its record is read, another command is refused."""
    variants = {"dis": Variant(title="DIS", overrides=SHORT, diagnose=True)}
    comparisons = {"methods": Comparison(tasks=["queens"], variants=["dis"])}
    grid = small_grid(variants=variants, comparisons=comparisons, seeds=[3])
    (found,), complaints = command.run_grid(grid, list(grid.points()), tmp_path, workers=1)
    assert complaints == []
    assert str(tmp_path) not in found.command, "what is kept names no folder of this machine"
    assert [row["step"] for row in found.curve] == [2, 4]
    assert set(found.final) >= {"seconds", "solved", "exact_accuracy", "exact_ceiling"}
    assert (found.calls_per_step, found.calls_with_gradient_per_step) == (3, 3)
    assert found.diagnosis is not None
    assert [row["step"] for row in found.diagnosis["steps"]] == [1, 2, 3, 4]
    folder = tmp_path / "queens" / "dis" / "seed3"
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    (again,), _ = command.run_grid(grid, list(grid.points()), tmp_path, workers=1)
    assert again == found
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before
    other = {"dis": Variant(title="DIS", overrides=[*SHORT, "optim.lr=2e-3"], diagnose=True)}
    changed = small_grid(variants=other, comparisons=comparisons, seeds=[3])
    records, (complaint,) = command.run_grid(changed, list(changed.points()), tmp_path, workers=1)
    assert records == []
    assert "holds a run of another configuration" in complaint


def test_results_so_far_are_of_the_points_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of none: the page is written, and nothing is run."""
    page = tmp_path / "page.md"
    page.write_text("<!-- begin machine --><!-- end machine -->")
    folders = {"--output": tmp_path / "out", "--page": page, "--results": tmp_path / "results"}
    flags = [word for flag, path in folders.items() for word in (flag, str(path))]
    monkeypatch.setattr("sys.argv", ["study", "--so-far", *flags])
    command.main()
    assert "threads 1 a run, 2 runs at a time" in page.read_text()
    assert command.read_records(tmp_path / "results")[0] == []
    assert not (tmp_path / "out").exists()


def test_records_are_kept_where_the_page_asks_for_what_is_missing(tmp_path: Path) -> None:
    grid, page, folder = small_grid(), tmp_path / "page.md", tmp_path / "results"
    page.write_text("<!-- begin methods on queens --><!-- end methods on queens -->")
    command.write_results(grid, [record("dis", 0, 0.5)], {}, page, folder)
    page.write_text("<!-- begin steps of dis on queens --><!-- end steps of dis on queens -->")
    with pytest.raises(UserError, match="nothing is known of 'steps of dis on queens'"):
        command.write_results(grid, [], {}, page, folder)
    assert command.read_records(folder)[0] == [record("dis", 0, 0.5)]


def test_a_dataset_of_other_commands_is_refused(tmp_path: Path) -> None:
    """Also one that was built by hand in the same place."""
    (tmp_path / "data" / "queens").mkdir(parents=True)
    with pytest.raises(UserError, match="built by other commands"):
        build_dataset(small_grid(), "queens", tmp_path)


def test_a_record_lacks_a_diagnosis_that_the_grid_asks_for(tmp_path: Path) -> None:
    grid = small_grid()
    for variant in ("dis", "trm"):
        folder = tmp_path / "queens" / variant / "seed0"
        folder.mkdir(parents=True)
        (folder / "point.json").write_text(json.dumps(asdict(record(variant, 0, 0.5))))
    assert recorded(grid, Point("queens", "dis", 0), tmp_path) is None
    assert recorded(grid, Point("queens", "trm", 0), tmp_path) == record("trm", 0, 0.5)
    assert recorded(grid, Point("queens", "trm", 1), tmp_path) is None


def test_an_experiment_alone_is_as_long_as_in_the_grid() -> None:
    for task in GRID.tasks.values():
        config = load_config("train", TrainConfig, "", [f"experiment={task.experiment}"])
        assert config.train.max_steps == task.steps
        assert config.train.eval_every == task.steps // task.evaluations


def test_a_run_that_fails_says_where_its_log_is(tmp_path: Path) -> None:
    variants = {"dis": Variant(title="DIS", overrides=[*SHORT, "init_from=nowhere"])}
    comparisons = {"methods": Comparison(tasks=["queens"], variants=["dis"])}
    grid = small_grid(variants=variants, comparisons=comparisons, seeds=[3])
    records, (complaint,) = command.run_grid(grid, list(grid.points()), tmp_path, workers=1)
    assert records == []
    assert re.search(r"failed, see .*seed3.log.txt: error: .*nowhere", complaint)


def test_the_list_shows_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused_in_process: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["study", "--list", "--only", "nqueens/final/seed1"])
    command.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "nqueens/final/seed1: python train_arc_tiny_corrupt.py experiment=study_nqueens "
        "supervision=final train.max_steps="
    )
    assert "no point's name starts so" in refused_in_process(command.main, "--only", "chess")


def test_the_page_shows_what_the_records_say(tmp_path: Path) -> None:
    """RESULTS.md and docs/results/points.json belong together: no table is typed by hand."""
    page = command.RESULTS_PAGE
    records, facts = command.read_records(command.RESULTS_FOLDER)
    copy = tmp_path / "RESULTS.md"
    copy.write_text(page.read_text())
    command.write_results(GRID, records, facts, copy, tmp_path)
    assert copy.read_text() == page.read_text()
