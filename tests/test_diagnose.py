"""`diagnose.py`: a checkpoint under other steps, guidance weights and numbers of variants."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diagnose
from dataset.augmentation import transform
from dataset.build_nqueens_dataset import BuildOptions, build
from dataset.canvas import place
from dataset.storage import puzzles_file
from dataset.task_files import load_tasks
from evaluation.predictions import load_predictions
from runs import call, read_results, run_evaluation, run_training, torchrun

SWEEP = ("device=cpu", "eval.batch_tokens=2048", "guidance_weights=[0,1,2]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, validated_dataset: Path) -> Path:
    """A tiny run of three supervision steps. Read-only."""
    return run_training(validated_dataset, tmp_path_factory.mktemp("diagnose") / "run")


@pytest.fixture(scope="module")
def results(run: Path) -> Path:
    """The evaluation of `run`. Read-only."""
    return run_evaluation(run.with_name("results"), f"checkpoint={run}")


def diagnosed(run: Path, output: Path, *more: str) -> Any:
    call(diagnose.main, f"checkpoint={run}", f"output_dir={output}", *SWEEP, *more)
    with Image.open(output / "diagnosis.png") as image:
        assert len(image.convert("L").getcolors()) > 2, "something is drawn"
    return json.loads((output / "diagnosis.json").read_text())


def test_each_step_weight_and_number_of_variants_agrees_with_an_evaluation(
    run: Path, results: Path, tmp_path: Path
) -> None:
    found = diagnosed(run, tmp_path / "d")
    assert found["trained_steps"] == 3
    assert [row["step"] for row in found["steps"]] == [1, 2, 3, 4, 5, 6], "twice as many"

    def evaluated(name: str, *overrides: str) -> dict[str, float]:
        return read_results(run_evaluation(tmp_path / name, f"checkpoint={run}", *overrides))

    longer = evaluated("longer", "eval.num_supervision_steps=5", "eval.diagnostics=true")
    for name in ("cell_accuracy", "distance_to_target", "margin"):
        by_step = [row[name] for row in found["steps"]]
        assert by_step[:5] == pytest.approx([longer[f"{name}_step{s}"] for s in range(1, 6)])
    # From the last trained step on, the target is the solution.
    assert all(r["distance_to_target"] == r["distance_to_solution"] for r in found["steps"][2:])
    assert found["steps"][0]["distance_to_target"] != found["steps"][0]["distance_to_solution"]
    for row in found["guidance"]:
        weight = row["guidance_weight"]
        guided = evaluated(f"guided{weight}", f"eval.guidance_weight={weight}")
        for name in ("pass@1", "pass@2", "cell_accuracy"):
            assert row[name] == pytest.approx(guided[name])
    plain, last = read_results(results), found["variants"][-1]
    assert (last["pass@1"], last["pass@2"]) == (plain["pass@1"], plain["pass@2"])
    assert last["pass@1_std"] == 0, "there is one way to choose all"
    assert [row["variants"] for row in found["variants"]] == [1, 2, 4, 7]


def test_the_test_split_is_diagnosed_unless_validation_is_asked_for(
    run: Path, results: Path, tmp_path: Path
) -> None:
    on_validation = run_evaluation(tmp_path / "v", f"checkpoint={run}", "eval.split=validation")
    asked = {"test": (results, ()), "validation": (on_validation, ("eval.split=validation",))}
    for split, (evaluated, overrides) in asked.items():
        found = diagnosed(run, tmp_path / split, "guidance_weights=[1]", *overrides)
        assert found["split"] == split
        for name in ("cell_accuracy", "pass@1"):
            assert found["guidance"][0][name] == pytest.approx(read_results(evaluated)[name])
    accuracies = [read_results(evaluated)["cell_accuracy"] for evaluated, _ in asked.values()]
    assert accuracies[0] != pytest.approx(accuracies[1]), "they can be told apart"


def test_two_ranks_find_what_one_rank_finds(run: Path, tmp_path: Path) -> None:
    """Under the real launcher, on windows, without the weight that is plain decoding."""
    more = ("eval.canvas=window", "guidance_weights=[0.5]", "num_steps=4", "eval.max_variants=5")
    alone = diagnosed(run, tmp_path / "one", *more)
    arguments = [f"checkpoint={run}", f"output_dir={tmp_path / 'two'}", *SWEEP, *more]
    process = torchrun(2, "diagnose.py", *arguments)
    assert process.returncode == 0, process.stderr
    together = json.loads((tmp_path / "two" / "diagnosis.json").read_text())
    assert together["variants"] == alone["variants"]
    assert [row["guidance_weight"] for row in together["guidance"]] == [0.5]
    for table in ("steps", "guidance"):
        for row, expected in zip(together[table], alone[table], strict=True):
            assert row == pytest.approx(expected, rel=1e-5)


def test_the_variants_of_each_task_are_told_apart() -> None:
    """Whatever order they were predicted in, each once."""
    rows: Any = SimpleNamespace(
        task_id=np.array(["b", "a", "b", "a", "a"]), identifier=np.array([5, 1, 2, 1, 7])
    )
    found = diagnose.variants_by_task(rows)
    assert [variants.tolist() for variants in found] == [[1, 7], [2, 5]]


def test_one_variant_votes_for_what_it_says_on_average(
    results: Path, validated_dataset: Path
) -> None:
    """Over many draws, pass@1 of one variant is the mean of all variants' being right."""
    predictions = load_predictions(results / "predictions.npz")
    tasks = load_tasks(validated_dataset / puzzles_file("test"))
    # The untrained network solves nothing: let every third row be right.
    solution = {(t.task_id, i): pair.output for t in tasks for i, pair in enumerate(t.test)}
    canvases = predictions.canvas.copy()
    side = round(canvases.shape[1] ** 0.5)
    for row in range(0, len(predictions), 3):
        key = (str(predictions.task_id[row]), int(predictions.test_index[row]))
        colours = predictions.colour_permutation[row][solution[key]]
        turned = transform(colours, int(predictions.dihedral[row]))
        canvases[row] = place(turned[None], side)[0]
    known = replace(predictions, canvas=canvases)
    one, *_, everyone = diagnose.votes_by_variants(known, tasks, num_draws=100)
    assert one["pass@1"] == pytest.approx(1 / 3, abs=0.08)
    assert one["pass@1_std"] > 0
    assert everyone["variants"] == 7


def test_boards_have_no_votes_to_count(tmp_path: Path) -> None:
    build(BuildOptions(output_dir=tmp_path / "queens", num_train=16, num_test=4))
    trained = run_training(tmp_path / "queens", tmp_path / "run")
    found = diagnosed(trained, tmp_path / "d")
    assert found["variants"] == []
    assert {"solved", "margin", "exact_accuracy"} <= set(found["steps"][0])
    assert "solved" in found["guidance"][0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.guidance_weight=2", "guidance_weight"),
        ("eval.diagnostics=false", "diagnostics"),
        ("guidance_weights=[]", "guidance_weights"),
        ("checkpoint=null", "checkpoint=RUN_OR_CHECKPOINT"),
    ],
)
def test_what_is_swept_is_no_key_and_a_checkpoint_and_weights_must_be_named(
    tmp_path: Path, refused_in_process: Any, override: str, message: str
) -> None:
    overrides = (f"checkpoint={tmp_path}", f"output_dir={tmp_path / 'd'}", override)
    assert message in refused_in_process(diagnose.main, *overrides)
