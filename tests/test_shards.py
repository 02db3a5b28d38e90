"""A prediction that is cut off goes on after the shards that it has finished."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import evaluate
from common.errors import UserError
from evaluation import shards
from evaluation.predict import Answers
from evaluation.shards import predict_in_shards, unfinished_folder
from evaluation.test_set import Rows
from runs import read_results, run_evaluation, run_training
from tiny import ALONE

FACTS = {"checkpoint": "a"}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 3)


class Predictor:
    """Answers each row by its number; ends at a row that it is told of."""

    def __init__(self, fatal: int = -1) -> None:
        self.fatal = fatal
        self.asked: list[int] = []

    def __call__(self, rows: Rows) -> Answers:
        if self.fatal in rows:
            raise KeyboardInterrupt
        self.asked += rows.tolist()
        followed = rows[rows % 2 == 0]
        return Answers(
            rows,
            np.repeat(rows[:, None], 4, axis=1).astype(np.uint8),
            rows.astype(np.float32),
            ("a", "b"),
            np.zeros((len(rows), 2, 2), np.float32),
            followed,
            np.repeat(followed[:, None, None], 4, axis=2).astype(np.uint8),
            whole_canvas_again=1,
        )


def test_what_was_cut_off_goes_on_after_the_shards_that_are_done(tmp_path: Path) -> None:
    first = Predictor(fatal=7)
    with pytest.raises(KeyboardInterrupt):
        predict_in_shards(first, 10, tmp_path / "kept", FACTS, ALONE)
    second = Predictor()
    answers = predict_in_shards(second, 10, tmp_path / "kept", FACTS, ALONE)
    assert (first.asked, second.asked) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9])
    whole = Predictor()(np.arange(10))
    assert answers is not None
    for name in ("rows", "canvases", "confidence", "metrics", "followed", "steps"):
        assert np.array_equal(getattr(answers, name), getattr(whole, name)), name
        assert getattr(answers, name).dtype == getattr(whole, name).dtype, name
    assert answers.metric_names == ("a", "b")
    assert answers.whole_canvas_again == 4, "of all four shards"


def test_answers_of_something_else_are_dropped(tmp_path: Path) -> None:
    predict_in_shards(Predictor(), 10, tmp_path / "kept", FACTS, ALONE)
    other = Predictor()
    predict_in_shards(other, 10, tmp_path / "kept", {"checkpoint": "b"}, ALONE)
    assert other.asked == list(range(10))


def test_a_damaged_shard_is_named_with_the_remedy(tmp_path: Path) -> None:
    predict_in_shards(Predictor(), 10, tmp_path / "kept", FACTS, ALONE)
    (tmp_path / "kept" / "00002.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"00002\.npz is damaged .* is predicted again"):
        predict_in_shards(Predictor(), 10, tmp_path / "kept", FACTS, ALONE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A run. Read-only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return run_training(tiny_dataset, folder, "train.max_steps=3", "train.eval_every=null")


def test_an_evaluation_that_is_interrupted_ends_with_what_one_that_is_not_ends_with(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing beside its results."""
    whole = run_evaluation(tmp_path / "whole", f"checkpoint={trained}")
    real: Callable[..., Answers | None] = evaluate.predict
    predicted: list[int] = []

    def predict(*arguments: object) -> Answers | None:
        if len(predicted) == 2:
            raise KeyboardInterrupt
        predicted.append(1)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "predict", predict)
        with pytest.raises(SystemExit) as exit_info:
            run_evaluation(tmp_path / "cut", f"checkpoint={trained}")
    assert exit_info.value.code == 130
    kept = unfinished_folder(tmp_path / "cut") / "0"
    assert {path.name for path in kept.iterdir()} == {"facts.json", "00000.npz", "00001.npz"}
    cut = run_evaluation(tmp_path / "cut", f"checkpoint={trained}")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut"}
    with np.load(whole / "predictions.npz") as expected, np.load(cut / "predictions.npz") as found:
        for name in expected.files:
            assert np.array_equal(found[name], expected[name]), name
    assert read_results(cut)["pass@2"] == read_results(whole)["pass@2"]


def test_shards_that_a_killed_process_left_beside_its_results_go_with_the_next_try(
    trained: Path, tmp_path: Path
) -> None:
    results = run_evaluation(tmp_path / "out", f"checkpoint={trained}")
    unfinished_folder(results).mkdir()
    with pytest.raises(SystemExit):
        run_evaluation(results, f"checkpoint={trained}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (results / "metrics.json").is_file()
