"""The evaluator from end to end: a trained checkpoint in, votes, scores and files out."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import evaluate
from dataset.augmentation import invert
from dataset.canvas import COLOUR_OFFSET, EOS, read_back
from dataset.task_files import load_tasks
from evaluation.results import recorded_test_set
from runs import call, read_metrics, read_results, run_evaluation, run_training, torchrun

SCHEMA = {
    "task_id": ("U", 1),
    "test_index": ("i4", 1),
    "identifier": ("i4", 1),
    "dihedral": ("i1", 1),
    "colour_permutation": ("u1", 2),
    "canvas": ("u1", 2),
    "confidence": ("f4", 1),
    "checkpoint": ("i2", 1),
}
SHORT = ("train.max_steps=12", "train.eval_every=null")
WINDOW = ("data.canvas=window", "data.whole_canvas_share=0.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs and results of this module lie."""
    return tmp_path_factory.mktemp("evaluated")


def echoing(run_dir: Path, as_borders: int = 0) -> Path:
    """Let a run's networks read out what they read: answers are grids, and differ.

    What they were trained to answer may be the same everywhere, or no grid. So many colours are
    taken for borders, where a grid ends.
    """
    for path in run_dir.glob("checkpoints/*/model*.safetensors"):
        tensors = load_file(path)
        vectors = tensors["token_embedding.weight"]
        borders = slice(COLOUR_OFFSET, COLOUR_OFFSET + as_borders)
        vectors[borders] = vectors[EOS]
        tensors["readout.weight"] = (0.9 if "ema" in path.name else 1.0) * vectors
        tensors["readout.weight"][borders] *= 0.5
        save_file(tensors, path)
    return run_dir


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_dataset: Path) -> Path:
    """A short run with checkpoints at 6 and 12 that echo. Read-only."""
    return echoing(run_training(tiny_dataset, folder / "trained", *SHORT))


@pytest.fixture(scope="module")
def results(folder: Path, trained: Path) -> Path:
    """The evaluation of `trained` on all variants. Read-only."""
    return run_evaluation(folder / "results", f"checkpoint={trained}")


@pytest.fixture(scope="module")
def windowed(folder: Path, roomy_compact_dataset: Path) -> Path:
    """A run on windows of a compact dataset. Read-only."""
    run = run_training(roomy_compact_dataset, folder / "windowed", *SHORT, *WINDOW)
    return echoing(run, as_borders=5)


@pytest.fixture(scope="module")
def windowed_results(folder: Path, windowed: Path) -> Path:
    """The evaluation of `windowed` on all variants, on the dataset of its training. Read-only."""
    return run_evaluation(folder / "windowed_results", f"checkpoint={windowed}")


def predicted(output_dir: Path) -> dict[str, Any]:
    with np.load(output_dir / "predictions.npz") as file:
        return dict(file)


def test_every_variant_of_every_test_input_is_predicted_once(
    results: Path, tiny_dataset: Path
) -> None:
    """predictions.npz has one row a test example, with the documented arrays and dtypes."""
    arrays = predicted(results)
    labels = np.load(tiny_dataset / "test" / "all__labels.npy")
    for name, (dtype, ndim) in SCHEMA.items():
        assert len(arrays[name]) == len(labels), name
        assert arrays[name].ndim == ndim, name
        assert arrays[name].dtype.str.lstrip("<|").startswith(dtype), name
    assert arrays["canvas"].shape[1] == labels.shape[1]
    rows = set(zip(arrays["identifier"].tolist(), arrays["test_index"].tolist(), strict=True))
    assert len(rows) == len(labels)


def test_anyone_can_recount_the_votes(results: Path, tiny_dataset: Path) -> None:
    """A plain recount of predictions.npz, cell by cell, gives the submission and the pass@k."""
    arrays = predicted(results)
    for name in ("canvas", "confidence"):
        assert len(np.unique(arrays[name], axis=0)) > 5, "with one answer it would prove nothing"
    votes: dict[tuple[str, int], Counter[bytes]] = defaultdict(Counter)
    confidences: dict[tuple[str, int, bytes], list[float]] = defaultdict(list)
    grids: dict[bytes, list[list[int]]] = {}
    for i in range(len(arrays["task_id"])):
        shown = read_back(arrays["canvas"][i])
        if shown is None:
            continue
        grid = invert(shown, int(arrays["dihedral"][i]), arrays["colour_permutation"][i])
        key = bytes(grid.shape) + grid.tobytes()
        grids[key] = grid.tolist()
        where = (str(arrays["task_id"][i]), int(arrays["test_index"][i]))
        votes[where][key] += 1
        confidences[(*where, key)].append(float(arrays["confidence"][i]))
    submission = json.loads((results / "submission.json").read_text())
    solved: dict[str, list[bool]] = defaultdict(list)
    for task in load_tasks(tiny_dataset / "test_puzzles.json"):
        for index, pair in enumerate(task.test):
            where = (task.task_id, index)
            mean = {k: float(np.mean(confidences[(*where, k)])) for k in votes[where]}
            ranked = sorted(votes[where], key=lambda k: (-votes[where][k], -mean[k]))
            entry = submission[task.task_id][index]
            for attempt, key in zip(("attempt_1", "attempt_2"), ranked, strict=False):
                assert entry[attempt] == grids[key]
            assert pair.output is not None
            solved[task.task_id].append(pair.output.tolist() in [grids[k] for k in ranked[:2]])
    expected = float(np.mean([np.mean(of_task) for of_task in solved.values()]))
    assert read_results(results)["pass@2"] == pytest.approx(expected)


def test_the_score_names_what_was_scored(results: Path) -> None:
    """metrics.json says which checkpoint, which weights, which test set, how many parameters."""
    metrics = read_results(results)
    (facts,) = metrics["checkpoints"]
    assert facts["checkpoint"].endswith("step_00000012")
    assert (facts["weights"], facts["canvas"]) == ("ema", "whole")
    assert facts["network_parameters"] > 0
    assert facts["puzzle_embedding_parameters"] % 16 == 0
    assert (metrics["test_set"]["name"], metrics["test_set"]["tasks"]) == ("evaluation", 4)
    assert {f"exact_accuracy_step{s}" for s in (1, 2, 3)} <= set(metrics)
    for k in (1, 2, 5, 10, 100, 1000):
        assert metrics[f"pass@{k}"] <= metrics["pass@1000"]
        assert f"pass@{k}_test_inputs" in metrics
    low, high = metrics["pass@2_interval"]
    assert low <= metrics["pass@2"] <= high


def test_submission_and_report_have_every_test_input(results: Path, tiny_dataset: Path) -> None:
    """Two attempts each in the order of the tasks, and a heading each on the page."""
    submission = json.loads((results / "submission.json").read_text())
    texts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = texts.append  # type: ignore[method-assign]
    parser.feed((results / "report.html").read_text())
    assert {"Score against votes", "Accuracy by step", "Score by kind of task"} <= set(texts)
    tasks = load_tasks(tiny_dataset / "test_puzzles.json")
    assert list(submission) == [task.task_id for task in tasks]
    for task in tasks:
        attempts = [list(entry) for entry in submission[task.task_id]]
        assert attempts == [["attempt_1", "attempt_2"]] * len(task.test)
        assert " ".join(texts).count(task.task_id) >= len(task.test)


def assert_same_results(left: Path, right: Path) -> None:
    """The same answers, scores and submission; in any order, and confidence to rounding."""
    arrays = [predicted(left), predicted(right)]
    orders = [np.lexsort((a["test_index"], a["identifier"])) for a in arrays]
    for name in SCHEMA:
        one, two = (a[name][order] for a, order in zip(arrays, orders, strict=True))
        if name == "confidence":
            np.testing.assert_allclose(one, two, rtol=1e-4)
        else:
            assert np.array_equal(one, two), name
    one, two = (
        {k: v for k, v in read_results(f).items() if isinstance(v, float) and k != "seconds"}
        for f in (left, right)
    )
    assert {"pass@1", "pass@2", "exact_accuracy", "loss", "whole_canvas_again"} <= set(one)
    assert one == pytest.approx(two)
    assert (left / "submission.json").read_text() == (right / "submission.json").read_text()


def test_saved_predictions_are_recounted_without_a_model(
    results: Path, refuse: Callable[..., str], tmp_path: Path
) -> None:
    """The same scores and submission; capped by eval.max_variants. What was predicted is fixed."""
    saved = f"predictions={results / 'predictions.npz'}"
    again = run_evaluation(tmp_path / "again", saved)
    assert (again / "submission.json").read_text() == (results / "submission.json").read_text()
    before, after = (
        {k: v for k, v in read_results(folder).items() if k.startswith("pass@")}
        for folder in (results, again)
    )
    assert before == after
    capped = predicted(run_evaluation(tmp_path / "capped", saved, "eval.max_variants=1"))
    assert (capped["dihedral"] == 0).all()
    assert len(np.unique(capped["identifier"])) == read_results(results)["test_set"]["tasks"]
    for asked in ("guidance_weight=2.0", "weights=raw", "canvas=window", "diagnostics=true"):
        assert "only eval.max_variants and eval.split say" in refuse(saved, f"eval.{asked}")


def test_several_checkpoints_pool_their_votes(results: Path, trained: Path, tmp_path: Path) -> None:
    """Twice the predictions, each checkpoint's own score beside the pooled one."""
    both = ",".join(str(trained / "checkpoints" / f"step_{n:08}") for n in (6, 12))
    pooled = run_evaluation(tmp_path / "pooled", f"checkpoint=[{both}]")
    metrics = read_results(pooled)
    assert metrics["num_predictions"] == 2 * read_results(results)["num_predictions"]
    # A mean over both would be neither's: what belongs to one stands with it.
    assert "exact_accuracy" not in metrics
    assert all("exact_accuracy" in facts for facts in metrics["checkpoints"])
    assert [facts["checkpoint"][-2:] for facts in metrics["checkpoints"]] == ["06", "12"]
    assert metrics["checkpoints"][1]["pass@2"] == read_results(results)["pass@2"]
    assert np.unique(predicted(pooled)["checkpoint"]).tolist() == [0, 1]
    newest = run_evaluation(tmp_path / "newest", f"checkpoint={trained}", "eval.pool_last=2")
    for name, array in predicted(pooled).items():
        assert np.array_equal(predicted(newest)[name], array), name


def test_variants_are_capped_for_each_task_and_the_page_is_a_choice(
    trained: Path, tmp_path: Path
) -> None:
    """eval.max_variants=3 keeps the original and the next two of each task."""
    overrides = (f"checkpoint={trained}", "eval.max_variants=3", "report=false")
    capped = run_evaluation(tmp_path / "capped", *overrides)
    arrays = predicted(capped)
    for task_id in np.unique(arrays["task_id"]):
        of_task = arrays["task_id"] == task_id
        assert len(np.unique(arrays["identifier"][of_task])) == 3
        assert ((arrays["dihedral"] == 0) & of_task).any()
    assert not (capped / "report.html").exists()


@pytest.mark.parametrize(
    ("override", "num_steps", "weights"),
    [
        ("eval.guidance_weight=3.0", 3, "ema"),
        ("eval.num_supervision_steps=1", 1, "ema"),
        ("eval.num_supervision_steps=5", 5, "ema"),  # More than it was trained with.
        ("eval.weights=raw", 3, "raw"),
    ],
)
def test_a_dial_changes_the_answers(
    results: Path, trained: Path, tmp_path: Path, override: str, num_steps: int, weights: str
) -> None:
    """Guidance, number of steps and choice of weights each reach the model."""
    turned = run_evaluation(tmp_path / "turned", f"checkpoint={trained}", override)
    assert not np.array_equal(predicted(results)["confidence"], predicted(turned)["confidence"])
    metrics = read_results(turned)
    assert f"exact_accuracy_step{num_steps}" in metrics
    assert f"exact_accuracy_step{num_steps + 1}" not in metrics
    assert metrics["checkpoints"][0]["weights"] == weights
    with np.load(turned / "step_answers.npz") as file:
        assert file["canvas"].shape[1] == num_steps
        assert file["targets"].shape == file["canvas"].shape


# ---- windows, layouts, ranks ----


def test_a_checkpoint_is_evaluated_on_the_cells_that_it_was_trained_on(
    windowed: Path, windowed_results: Path, tmp_path: Path
) -> None:
    """metrics.json says on which, and eval.canvas overrules it."""
    whole = run_evaluation(tmp_path / "whole", f"checkpoint={windowed}", "eval.canvas=whole")
    metrics, on_canvases = read_results(windowed_results), read_results(whole)
    assert metrics["checkpoints"][0]["canvas"] == "window"
    assert 0 < metrics["whole_canvas_again"] < 1
    assert on_canvases["checkpoints"][0]["canvas"] == "whole"
    assert on_canvases["whole_canvas_again"] == 0
    confidences = [predicted(folder)["confidence"] for folder in (windowed_results, whole)]
    assert (confidences[0] != confidences[1]).any()


def test_a_checkpoint_of_one_layout_is_evaluated_on_the_other(
    trained: Path, results: Path, tiny_compact_dataset: Path, tmp_path: Path
) -> None:
    """Their puzzles are the same, and so are the answers."""
    data = f"data.path={tiny_compact_dataset}"
    assert_same_results(results, run_evaluation(tmp_path / "other", f"checkpoint={trained}", data))


def test_where_there_are_no_windows_none_are_claimed(
    refuse: Callable[..., str], windowed: Path, roomy_dataset: Path
) -> None:
    """On the full layout, whether windows are asked for or what the model was trained on."""
    for canvas in ("window", "auto"):
        line = refuse(
            f"checkpoint={windowed}", f"data.path={roomy_dataset}", f"eval.canvas={canvas}"
        )
        assert "eval.canvas=window needs ARC tasks in the compact layout" in line


def test_two_ranks_predict_what_one_rank_predicts(
    windowed: Path, windowed_results: Path, tmp_path: Path
) -> None:
    """The same rows, answers and score, whoever predicted them: under the real launcher."""
    output_dir = tmp_path / "two"
    arguments = [f"checkpoint={windowed}", f"output_dir={output_dir}", "device=cpu"]
    process = torchrun(2, "evaluate.py", *arguments, "eval.batch_tokens=500")
    assert process.returncode == 0, process.stderr
    assert_same_results(windowed_results, output_dir)
    assert read_results(output_dir)["num_ranks"] == 2


def test_training_and_scoring_agree_on_the_score(tiny_dataset: Path, tmp_path: Path) -> None:
    """The trainer's own evaluation of its last weights is the evaluator's."""
    run_dir = run_training(tiny_dataset, tmp_path / "run", "train.max_steps=6")
    validation = next(line for line in read_metrics(run_dir) if "eval/exact_accuracy" in line)
    overrides = (f"checkpoint={run_dir}", "eval.max_variants=2")
    scored = read_results(run_evaluation(tmp_path / "out", *overrides))
    for key in ("pass@2", "exact_accuracy", "cell_accuracy", "loss", "loss_step1"):
        assert scored[key] == pytest.approx(validation[f"eval/{key}"]), key


# ---- the validation split ----


@pytest.fixture(scope="module")
def validated(folder: Path, validated_dataset: Path) -> Path:
    """A run on a dataset with validation tasks, scored on them where the default is. Read-only."""
    run = run_training(validated_dataset, folder / "validated", *SHORT)
    call(evaluate.main, f"checkpoint={run}", "device=cpu", "eval.split=validation")
    return run


def test_the_test_split_is_scored_unless_validation_is_asked_for(
    validated: Path, validated_dataset: Path, tmp_path: Path
) -> None:
    """And its results lie elsewhere."""
    call(evaluate.main, f"checkpoint={validated}", "device=cpu")
    found = {
        split: validated / f"evaluation{name}_step_00000012"
        for split, name in (("test", ""), ("validation", "_validation"))
    }
    names = {"test": "evaluation", "validation": "validation tasks of training"}
    for split, results in found.items():
        tasks = json.loads((validated_dataset / f"{split}_puzzles.json").read_text())
        assert json.loads((results / "submission.json").read_text()).keys() == tasks.keys()
        described = read_results(results)["test_set"]
        assert (described["split"], described["name"]) == (split, names[split])
        assert f"Answers on {names[split]}<" in (results / "report.html").read_text()


@pytest.mark.parametrize("recorded", [5, [], {"dataset": 5, "split": ["test"]}])
def test_what_the_recorded_test_set_does_not_say_in_words_it_does_not_say(
    tmp_path: Path, recorded: Any
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"test_set": recorded}))
    assert recorded_test_set(tmp_path) == {}


def test_a_recount_is_over_the_split_that_was_predicted(
    validated: Path, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    """As the metrics.json beside the predictions says; without one it must be named."""
    results = validated / "evaluation_validation_step_00000012"
    predictions = results / "predictions.npz"
    again = run_evaluation(tmp_path / "again", f"predictions={predictions}")
    assert read_results(again)["test_set"] == read_results(results)["test_set"]
    assert (again / "submission.json").read_text() == (results / "submission.json").read_text()
    alone = f"predictions={shutil.copy(predictions, tmp_path)}"
    data = f"data.path={read_results(results)['test_set']['dataset']}"
    assert "data.path is needed" in refuse(alone)
    assert "eval.split its split" in refuse(alone, data)
    named = run_evaluation(tmp_path / "named", alone, data, "eval.split=validation")
    assert read_results(named)["test_set"] == read_results(results)["test_set"]


def test_what_an_earlier_version_predicted_is_the_test_split(results: Path, tmp_path: Path) -> None:
    """Its metrics.json says nothing of a split."""
    metrics = read_results(results)
    del metrics["test_set"]["split"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    shutil.copy(results / "predictions.npz", tmp_path)
    again = run_evaluation(tmp_path / "again", f"predictions={tmp_path / 'predictions.npz'}")
    assert read_results(again)["test_set"] == read_results(results)["test_set"]


# ---- what goes wrong ----

Refused = Callable[..., str]


@pytest.fixture
def refuse(refused_in_process: Refused, tmp_path: Path) -> Refused:
    """The evaluator must end with exit code 2 and one line; return it."""

    def run(*overrides: str) -> str:
        return refused_in_process(
            evaluate.main, f"output_dir={tmp_path / 'out'}", "device=cpu", *overrides
        )

    return run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("", "give either checkpoint="),
        ("checkpoint=TRAINED predictions=RESULTS/predictions.npz", "not both"),
        ("checkpoint=[]", "at least 1 item"),
        ("predictions=[]", "at least 1 item"),
        ("checkpoint=TRAINED output_dir=RESULTS", "exists already"),
        ("checkpoint=TRAINED/nowhere", "no checkpoint there"),
        ("predictions=RESULTS/metrics.json", "is damaged or no .npz file"),
        ("checkpoint=TRAINED precision=fp8", "precision='fp8'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_and_results_are_kept(
    refuse: Refused, trained: Path, results: Path, overrides: str, message: str
) -> None:
    before = (results / "metrics.json").read_bytes()
    named = overrides.replace("TRAINED", str(trained)).replace("RESULTS", str(results))
    assert message in refuse(*named.split())
    assert (results / "metrics.json").read_bytes() == before


def with_config(content: str) -> Callable[[Path], Any]:
    return lambda checkpoint: (checkpoint / "config.json").write_text(content)


def with_two_layers(checkpoint: Path) -> None:
    config = (checkpoint / "config.json").read_text()
    with_config(config.replace('"num_layers": 1', '"num_layers": 2'))(checkpoint)


def without_average(checkpoint: Path) -> None:
    (checkpoint / "model_ema.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_config(""), "config.json is not valid JSON"),
        (with_config("[]"), "config.json must hold a JSON object"),
        (with_config("{}"), "data.path"),
        (with_config('{"data": 3}'), "config.json: data=3"),
        # A config.json that does not fit the weights beside it.
        (with_two_layers, "another architecture"),
        (without_average, "eval.weights=ema"),
    ],
)
def test_a_checkpoint_whose_files_do_not_serve_is_refused(
    refuse: Refused, trained: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    copy = shutil.copytree(trained / "checkpoints" / "step_00000012", tmp_path / "copy")
    damage(copy)
    assert message in refuse(f"checkpoint={copy}", "eval.weights=ema")


def test_a_checkpoint_of_another_dataset_is_refused(
    refuse: Refused, trained: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """More puzzles than the checkpoint's table has rows: an error, never a fresh table."""
    data = shutil.copytree(tiny_dataset, tmp_path / "larger")
    path = data / "test" / "dataset.json"
    metadata = json.loads(path.read_text())
    metadata["num_puzzle_identifiers"] += 1
    path.write_text(json.dumps(metadata))
    names = json.loads((data / "identifiers.json").read_text())
    (data / "identifiers.json").write_text(json.dumps([*names, "extra"]))
    line = refuse(f"checkpoint={trained}", f"data.path={data}")
    assert "trained on another dataset" in line
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_results(
    refuse: Refused, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(np, "savez_compressed", full)
    assert "disk is full" in refuse(f"checkpoint={trained}")
    # What was predicted is kept for the next try.
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.unfinished"]


def test_the_script_itself_ends_with_exit_code_2(refused: Refused) -> None:
    """As a user starts it."""
    assert "no checkpoint there" in refused("evaluate.py", "checkpoint=nowhere", "device=cpu")
