"""The study: its grid, what is kept of a run, its tables and plots, and the page with them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.errors import UserError
from config.loading import load_config
from config.schema import DemoConfig, TrainConfig
from study import __main__ as command
from study.__main__ import Point, points_of, read_curve, train_command
from study.results import Grid, Record, comparison_table, fill, tables

GRIDS = {path.stem: command.load_grid(path.stem) for path in command.GRIDS.glob("*.yaml")}
GRID = GRIDS["study"]
KEPT = [name for name in GRIDS if (command.RESULTS_FOLDER / name / "points.json").is_file()]
BUILD = "dataset.build_nqueens_dataset --output-dir {data} --num-train 16 --num-test 4"
SHORT = [
    "arch.hidden_size=16",
    "arch.num_heads=2",
    "arch.num_supervision_steps=2",
    "train.global_batch_size=8",
    "train.log_every=2",
    "wandb.mode=disabled",
]


def small_grid(**changes: Any) -> Grid:
    """DIS against TRM on few 8-queens boards."""
    task = {
        "title": "Queens",
        "experiment": "study_nqueens",
        "steps": 4,
        "measure": "solved",
        "beside": ["exact_accuracy"],
    }
    methods = {"tasks": ["nqueens"], "variants": ["dis", "trm"], "curves": True}
    values = {
        "name": "small",
        "seeds": [0, 1],
        "evaluations": 2,
        "tasks": {"nqueens": {**task, "build": [BUILD]}},
        "variants": {
            "dis": {"title": "DIS", "overrides": SHORT, "diagnose": True},
            "trm": {"title": "TRM", "overrides": ["arch.num_recursions=3"]},
        },
        "comparisons": {
            "methods": methods,
            "factor": {"tasks": ["nqueens"], "variants": ["dis"]},
        },
    }
    return Grid(**{**values, **changes})


def grid_of_one(*overrides: str, diagnose: bool = False) -> Grid:
    variant = {"title": "DIS", "overrides": [*SHORT, *overrides], "diagnose": diagnose}
    comparisons = {"methods": {"tasks": ["nqueens"], "variants": ["dis"]}}
    return small_grid(seeds=[3], variants={"dis": variant}, comparisons=comparisons)


def record(variant: str, seed: int, solved: float, seconds: float = 10, **more: Any) -> Record:
    curve = [
        {"step": 500 * part, "seconds": seconds * part / 2, "examples": 600 * part, "solved": value,
         "exact_accuracy": value / 2}
        for part, value in ((1, 0.0), (2, solved))
    ]  # fmt: skip
    values = {
        "command": "train",
        "parameters": 1234,
        "calls_per_answer": 48,
        "calls_per_step": 12 if variant == "trm" else 3,
        "calls_with_gradient_per_step": 3,
        "curve": curve,
        "diagnosis": None,
    }
    return Record("nqueens", variant, seed, **{**values, **more})


def diagnosis(solved: float, votes: Any = ()) -> dict[str, Any]:
    shown = ("cell_accuracy", "distance_to_solution", "distance_to_target", "cells_changed")
    of_step = dict.fromkeys((*shown, "margin", "margin_positive"), 0.5)
    weights = (1.0, 1.5)
    return {
        "trained_steps": 1,
        "steps": [{"step": s, "solved": solved / s, **of_step} for s in (1, 2)],
        "guidance": [{"guidance_weight": w, "solved": w * solved, "margin": -w} for w in weights],
        "variants": list(votes),
    }


def config_of(point: Point, *more: str, grid: Grid = GRID) -> TrainConfig:
    arguments = [*train_command(grid, point, Path("x"))[1:], *more]
    return load_config("train", TrainConfig, "", arguments)


# ---- the grid --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_every_point_is_a_valid_configuration_and_differs_from_the_others(name: str) -> None:
    """Two variants with the same configuration would be compared with themselves.

    Each is run once for each seed, and the first seeds come first.
    """
    grid = GRIDS[name]
    points = points_of(grid)
    assert [point.seed for point in points] == sorted(point.seed for point in points)
    every = {
        Point(task, variant, seed)
        for comparison in grid.comparisons.values()
        for task in comparison.tasks
        for variant in comparison.variants
        for seed in comparison.seeds or grid.seeds
    }
    assert len(points) == len(every)
    assert set(points) == every
    used = {variant for _, variant, _ in every}
    assert used == set(grid.variants)
    seen = {}
    for point in (point for point in points if point.seed == grid.seeds[0]):
        config = config_of(point, "run_dir=x", grid=grid)
        assert config.seed == point.seed
        assert config.train.eval_every is not None
        content = config.model_dump_json()
        assert content not in seen, (point, seen[content])
        seen[content] = point


def test_every_method_has_the_same_compute() -> None:
    """A call of f with its backward pass costs three without."""
    for task in GRID.tasks:
        budgets = {}
        for variant in GRID.comparisons["methods"].variants:
            config = config_of(Point(task, variant, 0))
            assert config.train.max_steps is not None
            arch = config.arch
            calls = arch.network_calls + 2 * arch.network_calls_with_gradient
            budgets[variant] = config.train.max_steps * calls / arch.num_supervision_steps
        assert max(budgets.values()) < 1.01 * min(budgets.values()), (task, budgets)


def test_an_experiment_alone_is_as_long_as_in_the_grid_and_arc_has_the_demos_tasks() -> None:
    for grid in GRIDS.values():
        for task in grid.tasks.values():
            config = load_config("train", TrainConfig, "", [f"experiment={task.experiment}"])
            assert config.train.max_steps == task.steps
            assert config.train.eval_every == task.steps // grid.evaluations
    (build,) = (c for c in GRID.tasks["arc"].build if "build_arc_dataset" in c)
    assert build.split("--task-ids ")[1].split() == load_config("demo", DemoConfig, "", []).task_ids


# ---- tables and plots ------------------------------------------------------------------------


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_at_equal_time_slower_variants_are_read_from_their_curves_by_hand() -> None:
    """TRM takes 16 s for what DIS does in 10, where nothing else slows it down."""
    slowed = [record("dis", 1, 0.8, seconds=30), record("trm", 1, 0.6, seconds=80)]
    records = [record("dis", 0, 0.8), record("trm", 0, 0.6, seconds=16), *slowed]
    methods = small_grid().comparisons["methods"].model_copy(update={"equal_time": True})
    head, _, dis, trm = cells(comparison_table(small_grid(), methods, "nqueens", records))
    column = head.index("solved after 10 s")
    early, late = (row["solved"] for row in records[1].curve)
    assert dis[column] == "0.800 ± 0.000"
    # Evaluations at 8 and 16 s: a quarter of the way between them.
    assert trm[column] == f"{0.75 * early + 0.25 * late:.3f} ± 0.000"
    assert [row[-1] for row in (dis, trm)] == ["10", "16"]


def test_a_comparison_shows_its_own_seeds_though_another_has_run_more() -> None:
    """Else seed 2, which one variant alone was run with, would be taken for its merit."""
    factor = {"tasks": ["nqueens"], "variants": ["dis"], "seeds": [0, 1, 2]}
    methods = small_grid().comparisons["methods"]
    grid = small_grid(comparisons={"methods": methods, "factor": factor})
    records = [record(variant, seed, 0.5) for variant in ("dis", "trm") for seed in (0, 1)]
    texts = tables(grid, [*records, record("dis", 2, 0.2)])
    _, _, dis, trm = cells(texts["methods on nqueens"])
    assert dis[1] == "0.500 ± 0.000"
    assert trm[3] == "+0.000 ± 0.000"
    assert texts["spread of methods on nqueens"] == "0.000 (2 degrees of freedom)"
    assert cells(texts["factor on nqueens"])[2][1] == "0.400 ± 0.173"


def test_a_table_by_hand() -> None:
    """Standard deviation 0.3 * sqrt(2) of each, so a standard error of 0.3 * sqrt(2)."""
    solved = {("trm", 1): 0.7, ("dis", 0): 0.2, ("trm", 0): 0.1}
    records = [record(*run, value) for run, value in solved.items()]
    records.append(record("dis", 1, 0.8, seconds=30))
    grid = small_grid(seeds=[0, 1, 2])
    methods = grid.comparisons["methods"]
    rows = cells(comparison_table(grid, methods, "nqueens", records))
    assert rows[0][:3] == ["variant", "solved", "exact accuracy"]
    assert rows[2] == ["DIS", "0.500 ± 0.424", "0.250 ± 0.212", "", "2", "1,234", "48", "1,000",
                       "1,200", "3.0 (3.0)", "10"]  # fmt: skip
    assert rows[3] == ["TRM", "0.400 ± 0.424", "0.200 ± 0.212", "-0.100 ± 0.424", "2", "1,234",
                       "48", "1,000", "1,200", "12.0 (3.0)", "10"]  # fmt: skip
    # Squares from the means: 2 * 0.3 ** 2, and those of 0.1, 0.4 and 0.7.
    records.append(record("trm", 2, 0.4))
    assert tables(grid, records)["spread of methods on nqueens"] == (
        f"{(0.36 / 3) ** 0.5:.3f} (3 degrees of freedom)"
    )
    spread = tables(grid, records[:1])["spread of methods on nqueens"]
    assert spread == "not known, as no variant was run twice"


def test_diagnoses_become_tables_by_step_by_guidance_weight_and_by_votes() -> None:
    found = [
        record("dis", seed, 0.5, 1800, diagnosis=diagnosis(0.4 + 0.2 * seed)) for seed in (0, 1)
    ]
    texts = tables(small_grid(), [*found, record("trm", 0, 0.5, 1800)])
    assert texts["extent"] == "3 runs, 1.5 hours of training on one thread in all"
    compared = {"methods on nqueens", "factor on nqueens"}
    compared |= {f"spread of {name}" for name in compared}
    of_dis = {"guidance of dis on nqueens", "steps of dis on nqueens"}
    assert set(texts) == {"extent", *compared, *of_dis}
    guidance = texts["guidance of dis on nqueens"].splitlines()
    assert guidance[0] == "| w | solved | margin of the last step |"
    assert guidance[3] == "| 1.5 | 0.750 ± 0.212 | -1.500 ± 0.000 |"
    steps = texts["steps of dis on nqueens"].splitlines()
    assert steps[2].startswith("| 1 (last trained) | 0.500 ± 0.141 |")
    assert steps[3].startswith("| 2 | 0.250 ± 0.071 |")
    votes = [{"variants": n, "pass@1": n / 10, "pass@2": n / 5} for n in (1, 2)]
    texts = tables(small_grid(), [record("dis", 0, 0.5, diagnosis=diagnosis(0.5, votes))])
    table = texts["votes of dis on nqueens"].splitlines()
    assert table[0] == "| variants that vote | pass@1 | pass@2 |"
    assert table[2:] == ["| 1 | 0.100 | 0.200 |", "| 2 | 0.200 | 0.400 |"]


def test_only_what_stands_between_markers_is_replaced() -> None:
    page = "a <!-- begin g: t -->\nold\nolder\n<!-- end g: t --> b "
    page += "<!-- begin g: u -->\n<!-- end g: u -->"
    expected = "a <!-- begin g: t -->\nnew\n<!-- end g: t --> b "
    expected += "<!-- begin g: u -->\n{}\n<!-- end g: u -->"
    assert fill(page, "g", {"t": "new", "u": "more"}) == expected.format("more")
    assert fill(page, "g", {"t": "new"}) == expected.format("not run yet")
    assert fill(page, "another", {"t": "new"}) == page


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results, whose RESULTS.md asks for the tables of two grids."""
    monkeypatch.setattr(command, "RESULTS_FOLDER", tmp_path / "results")
    monkeypatch.setattr(command, "RESULTS_PAGE", tmp_path / "RESULTS.md")
    page = "\n".join(
        f"<!-- begin {grid.name}: {name} -->\n<!-- end {grid.name}: {name} -->"
        for grid in (small_grid(), GRID)
        for name in ("machine", *tables(grid, []))
    )
    (tmp_path / "RESULTS.md").write_text(page)
    return tmp_path


def test_results_are_written_and_reported_again_from_the_records_alone(results: Path) -> None:
    """Of an unfinished study as well."""
    records = [record("dis", s, 0.5, diagnosis=diagnosis(0.5)) for s in (0, 1)]
    command.write_results(small_grid(), records, {"cpu": "x", "cores": 2})
    text = (results / "RESULTS.md").read_text()
    assert "cpu x, cores 2" in text
    assert "| DIS | 0.500 ± 0.000 |" in text
    for name in ("methods.png", "factors.png", "diagnosis_dis.png"):
        with Image.open(results / "results" / "small" / name) as image:
            assert len(image.convert("L").getcolors()) > 2, "something is drawn"
    assert command.read_results(small_grid()) == (records, {"cpu": "x", "cores": 2})
    command.write_results(small_grid(), *command.read_results(small_grid()))
    assert (results / "RESULTS.md").read_text() == text


def test_results_without_a_place_on_the_page_are_not_lost_in_silence(results: Path) -> None:
    page = results / "RESULTS.md"
    page.write_text(page.read_text().replace("begin small: factor on nqueens", ""))
    with pytest.raises(UserError, match=r"no '<!-- begin small: factor on nqueens -->'"):
        command.write_results(small_grid(), [], {})
    assert not (results / "results").exists()


@pytest.mark.parametrize("name", GRIDS)
def test_the_page_has_a_place_for_every_comparison(name: str) -> None:
    command.require_places(GRIDS[name])


@pytest.mark.parametrize("name", KEPT)
def test_the_page_shows_what_the_records_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """RESULTS.md and the records belong together: no table is typed by hand."""
    grid = GRIDS[name]
    page, kept = command.RESULTS_PAGE.read_text(), command.read_results(grid)
    monkeypatch.setattr(command, "RESULTS_FOLDER", tmp_path)
    monkeypatch.setattr(command, "RESULTS_PAGE", tmp_path / "RESULTS.md")
    (tmp_path / "RESULTS.md").write_text(
        re.sub(rf"(begin {name}: .*? -->\n).*?(<!--)", r"\1\2", page, flags=re.S)
    )
    command.write_results(grid, *kept)
    assert (tmp_path / "RESULTS.md").read_text() == page
    linked = set(re.findall(rf"\(docs/results/{name}/(.*?)\)", page))
    assert linked == {path.name for path in tmp_path.glob(f"{name}/*.png")}


# ---- runs ------------------------------------------------------------------------------------


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


def test_a_point_is_trained_diagnosed_and_recorded_once(tmp_path: Path) -> None:
    """By the real commands; the second time its record is read, another command is refused."""
    grid = grid_of_one(diagnose=True)
    (found,), complaints = command.run_grid(grid, points_of(grid), tmp_path, workers=1)
    assert complaints == []
    assert str(tmp_path) not in found.command, "what is kept names no folder of this machine"
    assert [row["step"] for row in found.curve] == [2, 4]
    assert set(found.final) >= {"seconds", "solved", "exact_accuracy", "exact_ceiling"}
    assert (found.calls_per_step, found.calls_with_gradient_per_step) == (3, 3)
    assert found.diagnosis is not None
    assert [row["step"] for row in found.diagnosis["steps"]] == [1, 2, 3, 4]
    metrics = tmp_path / "nqueens" / "dis" / "seed3" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    (again,), _ = command.run_grid(grid, points_of(grid), tmp_path, workers=1)
    assert (again, metrics.stat().st_mtime_ns) == (found, before)
    for changed in (grid_of_one("optim.lr=2e-3", diagnose=True), grid_of_one()):
        with pytest.raises(UserError, match="seed3 is of another configuration"):
            command.run_grid(changed, points_of(changed), tmp_path, workers=1)


def test_a_run_that_fails_says_where_its_log_is_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of_one("init_from=nowhere")
    points = [Point("nqueens", "dis", seed) for seed in (3, 0)]
    run_point = command.run_point

    def run(grid: Grid, point: Point, *rest: Any) -> Record:
        return record("dis", 0, 0.5) if point.seed == 0 else run_point(grid, point, *rest)

    monkeypatch.setattr(command, "run_point", run)
    records, (complaint,) = command.run_grid(grid, points, tmp_path, workers=1)
    assert records == [record("dis", 0, 0.5)]
    assert re.search(r"failed, see .*seed3.log.txt: error: .*nowhere", complaint)


def test_a_dataset_of_other_commands_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "nqueens").mkdir(parents=True)
    command.build_dataset(small_grid(), "nqueens", tmp_path)
    task = small_grid().tasks["nqueens"].model_copy(update={"build": [BUILD, BUILD]})
    with pytest.raises(UserError, match="another configuration"):
        command.build_dataset(small_grid(tasks={"nqueens": task}), "nqueens", tmp_path)


# ---- the command -----------------------------------------------------------------------------


def test_results_so_far_are_of_the_runs_recorded(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of none: the page is written, and nothing is run."""
    monkeypatch.setattr("sys.argv", ["study", "--so-far", "--output", str(results / "out")])
    command.main()
    page = (results / "RESULTS.md").read_text()
    assert "threads 1 a run, 2 runs at a time" in page
    assert "begin study: methods on nqueens -->\nnot run yet" in page
    assert "begin small: methods on nqueens -->\n<!-- end" in page
    assert command.read_results(GRID)[0] == []
    assert not (results / "out").exists()


def test_the_list_shows_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused_in_process: Callable[..., str],
) -> None:
    monkeypatch.setattr("sys.argv", ["study", "--list", "--only", "nqueens/final/seed1"])
    command.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "nqueens/final/seed1: python train_arc_tiny_corrupt.py experiment=study_nqueens "
        "supervision=final train.max_steps="
    )
    assert "no run's name starts so" in refused_in_process(command.main, "--only", "chess")
