"""The evaluator from end to end: a trained checkpoint in, votes, scores and files out."""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import InProcess, torchrun

import evaluate
from dataset.augmentation import invert
from dataset.canvas import read_back
from dataset.tasks import load_tasks
from evaluation import evaluator, rounds
from evaluation.stopping import RunningVote

SCHEMA = {
    "task_id": ("U", 1),
    "test_index": ("i4", 1),
    "identifier": ("i4", 1),
    "dihedral": ("i1", 1),
    "colour_permutation": ("u1", 2),
    "canvas": ("u1", 2),
    "confidence": ("f4", 1),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A short run at a high learning rate: its answers are mostly wrong, but they differ."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return InProcess(monkeypatch).train(
            tiny_dataset,
            tmp_path_factory.mktemp("runs") / "trained",
            "train.max_steps=120",
            "train.checkpoint_every=60",
            "train.eval_every=null",
            "optim.lr=1e-2",
            "optim.puzzle_lr=3e-2",
        )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """The evaluation of `trained` on all variants. Read-only."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        output_dir = tmp_path_factory.mktemp("results") / "full"
        return InProcess(monkeypatch).evaluate(output_dir, f"checkpoint={trained}")


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory, roomy_compact_dataset: Path) -> Path:
    """A run on windows of a compact dataset, whose answers differ, too."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return InProcess(monkeypatch).train(
            roomy_compact_dataset,
            tmp_path_factory.mktemp("runs") / "windowed",
            "data.canvas=window",
            "data.whole_canvas_share=0.2",
            "train.max_steps=120",
            "train.checkpoint_every=120",
            "train.eval_every=null",
            "optim.lr=1e-2",
            "optim.puzzle_lr=3e-2",
        )


@pytest.fixture(scope="module")
def windowed_results(tmp_path_factory: pytest.TempPathFactory, windowed: Path) -> Path:
    """The evaluation of `windowed` on all variants, on the dataset of its training. Read-only."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        output_dir = tmp_path_factory.mktemp("results") / "windowed"
        return InProcess(monkeypatch).evaluate(output_dir, f"checkpoint={windowed}")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    torch.set_num_threads(1)
    return InProcess(monkeypatch)


def read_metrics(output_dir: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((output_dir / "metrics.json").read_text())
    return metrics


def test_every_variant_of_every_test_input_is_predicted_once(
    results: Path, tiny_dataset: Path
) -> None:
    """predictions.npz has one row a test example, with the documented arrays and dtypes."""
    with np.load(results / "predictions.npz") as file:
        arrays = dict(file)
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
    with np.load(results / "predictions.npz") as file:
        arrays = dict(file)
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
    assert read_metrics(results)["pass@2"] == pytest.approx(expected)


def test_votes_are_not_all_for_one_answer(results: Path) -> None:
    """Guards the recount: with one answer for everything it would prove nothing."""
    with np.load(results / "predictions.npz") as file:
        assert len(np.unique(file["canvas"], axis=0)) > 5
        assert len(np.unique(file["confidence"])) > 5


def test_the_score_names_what_was_scored(results: Path, trained: Path) -> None:
    """metrics.json says which checkpoint, which weights, which test set, how many parameters."""
    metrics = read_metrics(results)
    about = metrics["checkpoints"][0]
    assert about["checkpoint"].endswith("step_00000120")
    assert about["weights"] == "ema"
    assert about["network_parameters"] > 0
    assert about["puzzle_embedding_parameters"] % 16 == 0
    assert metrics["test_set"]["name"] == "evaluation"
    assert metrics["test_set"]["tasks"] == 4
    assert {f"exact_accuracy_step{s}" for s in (1, 2, 3)} <= set(metrics)
    for k in (1, 2, 5, 10, 100, 1000):
        assert metrics[f"pass@{k}"] <= metrics["pass@1000"]
        assert f"pass@{k}_test_inputs" in metrics


def test_the_submission_has_two_attempts_for_every_test_input_in_order(
    results: Path, tiny_dataset: Path
) -> None:
    submission = json.loads((results / "submission.json").read_text())
    tasks = load_tasks(tiny_dataset / "test_puzzles.json")
    assert list(submission) == [task.task_id for task in tasks]
    for task in tasks:
        assert len(submission[task.task_id]) == len(task.test)
        for entry in submission[task.task_id]:
            assert list(entry) == ["attempt_1", "attempt_2"]


def test_the_report_shows_every_test_input(results: Path, tiny_dataset: Path) -> None:
    """One page, and each test input's heading is on it."""
    texts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = texts.append  # type: ignore[method-assign]
    parser.feed((results / "report.html").read_text())
    text = " ".join(texts)
    for task in load_tasks(tiny_dataset / "test_puzzles.json"):
        assert text.count(task.task_id) >= len(task.test)


def assert_same_results(left: Path, right: Path) -> None:
    """The same answers, scores and submission; in any order, and confidence to rounding."""
    with np.load(left / "predictions.npz") as one, np.load(right / "predictions.npz") as two:
        order_one = np.lexsort((one["test_index"], one["identifier"]))
        order_two = np.lexsort((two["test_index"], two["identifier"]))
        for name in (*SCHEMA, "checkpoint"):
            if name != "confidence":
                assert np.array_equal(one[name][order_one], two[name][order_two]), name
        np.testing.assert_allclose(
            one["confidence"][order_one], two["confidence"][order_two], rtol=1e-4
        )
    figures = [
        {key: value for key, value in read_metrics(folder).items() if isinstance(value, float)}
        for folder in (left, right)
    ]
    # What only one of them gives is left to other tests: see those on voting that stops.
    common = set(figures[0]) & set(figures[1]) - {"seconds"}
    assert {"pass@1", "pass@2", "predicted_share", "whole_canvas_again"} <= common
    for key in common:
        assert figures[0][key] == pytest.approx(figures[1][key]), key
    assert (left / "submission.json").read_text() == (right / "submission.json").read_text()


def test_votes_are_recounted_without_a_model(
    scripts: InProcess, results: Path, tmp_path: Path
) -> None:
    """The same scores and submission from predictions.npz alone."""
    again = scripts.evaluate(tmp_path / "again", f"predictions={results / 'predictions.npz'}")
    assert (again / "submission.json").read_text() == (results / "submission.json").read_text()
    before, after = read_metrics(results), read_metrics(again)
    assert {k: v for k, v in before.items() if k.startswith("pass@")} == {
        k: v for k, v in after.items() if k.startswith("pass@")
    }


def test_several_checkpoints_pool_their_votes(
    scripts: InProcess, results: Path, trained: Path, tmp_path: Path
) -> None:
    """Twice the predictions, each checkpoint's own score beside the pooled one."""
    folder = trained / "checkpoints"
    both = f"checkpoint=[{folder / 'step_00000060'},{folder / 'step_00000120'}]"
    pooled = scripts.evaluate(tmp_path / "pooled", both)
    metrics = read_metrics(pooled)
    assert metrics["num_predictions"] == 2 * read_metrics(results)["num_predictions"]
    # A mean over both would be neither's: what belongs to one stands with it.
    assert "exact_accuracy" not in metrics
    assert all("exact_accuracy" in about for about in metrics["checkpoints"])
    assert [about["checkpoint"][-2:] for about in metrics["checkpoints"]] == ["60", "20"]
    assert metrics["checkpoints"][1]["pass@2"] == read_metrics(results)["pass@2"]
    with np.load(pooled / "predictions.npz") as file:
        assert np.unique(file["checkpoint"]).tolist() == [0, 1]


def test_variants_are_capped_for_each_task(
    scripts: InProcess, trained: Path, tmp_path: Path
) -> None:
    """eval.max_variants=3 keeps the original and the next two of each task."""
    capped = scripts.evaluate(
        tmp_path / "capped", f"checkpoint={trained}", "eval.max_variants=3", "report=false"
    )
    with np.load(capped / "predictions.npz") as file:
        for task_id in np.unique(file["task_id"]):
            of_task = file["task_id"] == task_id
            assert len(np.unique(file["identifier"][of_task])) == 3
            assert ((file["dihedral"] == 0) & of_task).any()
    assert not (capped / "report.html").exists()


@pytest.mark.parametrize(
    "override", ["eval.guidance_weight=3.0", "eval.num_supervision_steps=1", "eval.weights=raw"]
)
def test_a_dial_changes_the_answers(
    scripts: InProcess, results: Path, trained: Path, tmp_path: Path, override: str
) -> None:
    """Guidance, number of steps and choice of weights each reach the model."""
    turned = scripts.evaluate(tmp_path / "turned", f"checkpoint={trained}", override)
    with (
        np.load(results / "predictions.npz") as before,
        np.load(turned / "predictions.npz") as after,
    ):
        assert not np.array_equal(before["confidence"], after["confidence"])
    metrics = read_metrics(turned)
    if "num_supervision_steps" in override:
        assert "exact_accuracy_step2" not in metrics
    if "weights" in override:
        assert metrics["checkpoints"][0]["weights"] == "raw"


def test_a_recount_can_be_capped_and_not_turned_otherwise(
    scripts: InProcess, results: Path, refuse: Callable[..., str], tmp_path: Path
) -> None:
    """eval.max_variants applies to saved predictions; what would need a model is refused."""
    saved = f"predictions={results / 'predictions.npz'}"
    capped = scripts.evaluate(tmp_path / "capped", saved, "eval.max_variants=1")
    with np.load(capped / "predictions.npz") as file:
        assert (file["dihedral"] == 0).all()
        assert len(np.unique(file["identifier"])) == read_metrics(results)["test_set"]["tasks"]
    for prediction in (
        "guidance_weight=2.0",
        "weights=raw",
        "canvas=window",
        "voting=exact",
        "diagnostics=true",
    ):
        assert "only eval.max_variants" in refuse(saved, f"eval.{prediction}")


def test_more_steps_than_trained_are_possible(
    scripts: InProcess, trained: Path, tmp_path: Path
) -> None:
    longer = scripts.evaluate(
        tmp_path / "longer", f"checkpoint={trained}", "eval.num_supervision_steps=5"
    )
    assert "exact_accuracy_step5" in read_metrics(longer)
    with np.load(longer / "step_answers.npz") as file:
        assert file["canvas"].shape[1] == 5


# ---- windows, layouts, rounds ----


def test_a_checkpoint_is_evaluated_on_the_cells_that_it_was_trained_on(
    scripts: InProcess, windowed: Path, windowed_results: Path, results: Path, tmp_path: Path
) -> None:
    """metrics.json says on which, and eval.canvas overrules it."""
    assert read_metrics(results)["checkpoints"][0]["canvas"] == "whole"
    metrics = read_metrics(windowed_results)
    assert metrics["checkpoints"][0]["canvas"] == "window"
    assert 0 <= metrics["whole_canvas_again"] < 1
    assert metrics["predicted_share"] == 1
    whole = scripts.evaluate(tmp_path / "whole", f"checkpoint={windowed}", "eval.canvas=whole")
    assert read_metrics(whole)["checkpoints"][0]["canvas"] == "whole"
    assert read_metrics(whole)["whole_canvas_again"] == 0
    with (
        np.load(windowed_results / "predictions.npz") as in_windows,
        np.load(whole / "predictions.npz") as on_canvases,
    ):
        assert (in_windows["confidence"] != on_canvases["confidence"]).any()


def test_a_checkpoint_of_one_layout_is_evaluated_on_the_other(
    scripts: InProcess,
    trained: Path,
    results: Path,
    tiny_compact_dataset: Path,
    windowed: Path,
    windowed_results: Path,
    roomy_dataset: Path,
    tmp_path: Path,
) -> None:
    """Their puzzles are the same, and so are the answers."""
    compact = scripts.evaluate(
        tmp_path / "compact", f"checkpoint={trained}", f"data.path={tiny_compact_dataset}"
    )
    assert_same_results(results, compact)
    full = scripts.evaluate(
        tmp_path / "full", f"checkpoint={windowed}", f"data.path={roomy_dataset}"
    )
    assert_same_results(windowed_results, full)


@pytest.mark.parametrize("round_size", [1, 2])
def test_exact_rounds_submit_what_all_votes_submit(
    scripts: InProcess,
    trained: Path,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    round_size: int,
) -> None:
    """Both attempts, in their order, and hence the same pass@1 and pass@2."""
    monkeypatch.setattr(rounds, "VARIANTS_A_ROUND", round_size)
    exact = scripts.evaluate(tmp_path / "exact", f"checkpoint={trained}", "eval.voting=exact")
    assert (exact / "submission.json").read_text() == (results / "submission.json").read_text()
    full_metrics, metrics = read_metrics(results), read_metrics(exact)
    for k in (1, 2):
        assert metrics[f"pass@{k}"] == full_metrics[f"pass@{k}"]
    share = metrics["num_predictions"] / full_metrics["num_predictions"]
    assert metrics["predicted_share"] == share < 1
    assert metrics["options"]["voting"] == "exact"


def test_two_ranks_predict_what_one_rank_predicts(
    windowed: Path, windowed_results: Path, tmp_path: Path
) -> None:
    """The same rows, answers and score, whoever predicted them: under the real launcher.

    In windows and in rounds, of which there is but one for seven variants a test input.
    """
    output_dir = tmp_path / "two"
    arguments = [f"checkpoint={windowed}", f"output_dir={output_dir}", "device=cpu"]
    arguments += ["eval.batch_size=16", "eval.voting=exact"]
    process = torchrun(2, "evaluate.py", *arguments)
    assert process.returncode == 0, process.stderr
    assert_same_results(windowed_results, output_dir)
    metrics = read_metrics(output_dir)
    assert metrics["num_ranks"] == 2
    # Voting may have stopped anywhere: what it did not decide is not given.
    assert not {"pass@5", "exact_accuracy", "cell_accuracy"} & set(metrics)


def test_originals_that_were_not_predicted_are_missing_and_nothing_else_is(
    scripts: InProcess,
    trained: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Voting stopped after one variant each: some have no step answers, all have attempts."""

    class AfterOneVariant:
        def decided(self, vote: RunningVote) -> bool:
            return vote.seen > 0

    monkeypatch.setattr(rounds, "VARIANTS_A_ROUND", 1)
    monkeypatch.setattr(evaluator, "stopping_rule", lambda config: AfterOneVariant())
    stopped = scripts.evaluate(tmp_path / "stopped", f"checkpoint={trained}")
    metrics = read_metrics(stopped)
    assert metrics["num_predictions"] == metrics["test_set"]["test_inputs"]
    assert metrics["predicted_share"] == pytest.approx(1 / 7)
    with np.load(stopped / "step_answers.npz") as file:
        assert len(file["canvas"]) < metrics["test_set"]["test_inputs"]
        assert file["canvas"].shape[1:] == (3, 36)
    page = (stopped / "report.html").read_text()
    for task in load_tasks(tiny_dataset / "test_puzzles.json"):
        assert page.count(task.task_id) >= len(task.test)


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


def test_an_existing_output_folder_is_kept(refuse: Refused, trained: Path, results: Path) -> None:
    before = (results / "metrics.json").read_bytes()
    line = refuse(f"checkpoint={trained}", f"output_dir={results}")
    assert "exists already" in line
    assert (results / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("override", ["checkpoint=[]", "predictions=[]"])
def test_an_empty_list_is_refused(refuse: Refused, override: str) -> None:
    assert "at least 1 item" in refuse(override)


@pytest.mark.parametrize("content", ["[]", "{}", "", '{"data": 3}'])
def test_a_checkpoint_with_a_foreign_config_is_refused(
    refuse: Refused, trained: Path, tmp_path: Path, content: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained / "checkpoints" / "step_00000120", copy)
    (copy / "config.json").write_text(content)
    assert "config.json" in refuse(f"checkpoint={copy}") or "data.path" in refuse(
        f"checkpoint={copy}"
    )


def test_neither_or_both_sources_are_refused(refuse: Refused, trained: Path, results: Path) -> None:
    assert "give either checkpoint=" in refuse()
    both = refuse(f"checkpoint={trained}", f"predictions={results / 'predictions.npz'}")
    assert "not both" in both


def test_a_checkpoint_of_another_dataset_is_refused(
    refuse: Refused, trained: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """More puzzles than the checkpoint's table has rows: an error, never a fresh table."""
    data = tmp_path / "larger"
    shutil.copytree(tiny_dataset, data)
    path = data / "test" / "dataset.json"
    metadata = json.loads(path.read_text())
    metadata["num_puzzle_identifiers"] += 1
    path.write_text(json.dumps(metadata))
    names = json.loads((data / "identifiers.json").read_text())
    (data / "identifiers.json").write_text(json.dumps([*names, "extra"]))
    line = refuse(f"checkpoint={trained}", f"data.path={data}")
    assert "trained on another dataset" in line
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_architecture_is_refused(
    refuse: Refused, trained: Path, tmp_path: Path
) -> None:
    """A config.json that does not fit the weights beside it."""
    copy = tmp_path / "copy"
    shutil.copytree(trained / "checkpoints" / "step_00000120", copy)
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"num_layers": 1', '"num_layers": 2'))
    assert "another architecture" in refuse(f"checkpoint={copy}")


def test_a_checkpoint_without_an_average_cannot_score_it(
    refuse: Refused, trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained / "checkpoints" / "step_00000120", copy)
    (copy / "model_ema.safetensors").unlink()
    assert "eval.weights=ema" in refuse(f"checkpoint={copy}", "eval.weights=ema")


def test_a_missing_checkpoint_is_named(refuse: Refused, tmp_path: Path) -> None:
    assert "no checkpoint there" in refuse(f"checkpoint={tmp_path / 'nowhere'}")


def test_damaged_predictions_are_named(refuse: Refused, results: Path, tmp_path: Path) -> None:
    cut = tmp_path / "predictions.npz"
    shutil.copy(results / "predictions.npz", cut)
    os.truncate(cut, cut.stat().st_size // 2)
    assert "predictions.npz is damaged" in refuse(f"predictions={cut}")


def test_a_full_disk_leaves_no_half_results(
    refuse: Refused, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(np, "savez_compressed", full)
    assert "disk is full" in refuse(f"checkpoint={trained}")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_the_script_itself_ends_with_exit_code_2(refused: Refused) -> None:
    """As a user starts it."""
    assert "no checkpoint there" in refused("evaluate.py", "checkpoint=nowhere", "device=cpu")


def test_training_and_scoring_agree_on_the_score(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path
) -> None:
    """The trainer's own evaluation of its last weights is the evaluator's."""
    run_dir = scripts.train(tiny_dataset, tmp_path / "run", "train.max_steps=6")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    validation = next(x for x in map(json.loads, lines) if "eval/exact_accuracy" in x)
    scored = read_metrics(
        scripts.evaluate(tmp_path / "out", f"checkpoint={run_dir}", "eval.max_variants=2")
    )
    for key in ("pass@2", "exact_accuracy", "cell_accuracy"):
        assert scored[key] == pytest.approx(validation[f"eval/{key}"]), key


def test_checkpoints_cannot_be_pooled_where_each_stops_voting_on_its_own(
    refuse: Refused, trained: Path
) -> None:
    both = f"checkpoint=[{trained},{trained}]"
    assert "2 checkpoints: each would stop on its own" in refuse(both, "eval.voting=exact")


def test_the_first_variants_of_a_vote_that_stopped_are_not_there_to_be_recounted(
    scripts: InProcess, refuse: Refused, trained: Path, tmp_path: Path
) -> None:
    stopped = scripts.evaluate(tmp_path / "stopped", f"checkpoint={trained}", "eval.voting=exact")
    saved = f"predictions={stopped / 'predictions.npz'}"
    assert "eval.voting=exact" in refuse(saved, "eval.max_variants=1")
    again = scripts.evaluate(tmp_path / "again", saved)
    assert read_metrics(again)["pass@2"] == read_metrics(stopped)["pass@2"]


def test_an_attention_that_does_not_run_here_is_refused(refuse: Refused, trained: Path) -> None:
    assert "attention=cudnn" in refuse(f"checkpoint={trained}", "attention=cudnn")
