"""The voting benchmark: voting that stops, replayed beside full voting."""

import json
import math
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import voting
from benchmarks.voting import Stopping
from dataset.canvas import place
from dataset.storage import TEST_PUZZLES_FILE
from dataset.tasks import Pair, Task, save_tasks
from evaluation.predictions import PREDICTIONS_FILE, Predictions, concatenate
from evaluation.scoring import score
from evaluation.stopping import ExactRule, RunningVote, SequentialRule, simulate
from evaluation.voting import count_votes


class After:
    """Stops once so many votes are seen."""

    def __init__(self, count: int) -> None:
        self.count = count

    def decided(self, vote: RunningVote) -> bool:
        return vote.remaining == 0 or vote.seen >= self.count


def predictions_of(answers: list[int], task_id: str = "task") -> Predictions:
    """One variant for each answer, a 1x1 grid of that colour, all with equal confidence."""
    count = len(answers)
    canvases = place(np.array(answers, dtype=np.uint8).reshape(-1, 1, 1), 3)
    return Predictions(
        task_id=np.array([task_id] * count),
        test_index=np.zeros(count, dtype=np.int32),
        identifier=np.arange(count, dtype=np.int32),
        dihedral=np.zeros(count, dtype=np.int8),
        colour_permutation=np.tile(np.arange(10, dtype=np.uint8), (count, 1)),
        canvas=canvases,
        confidence=np.full(count, 0.5, dtype=np.float32),
        checkpoint=np.zeros(count, dtype=np.int16),
    )


def one_cell(colour: int) -> np.ndarray:
    return np.array([[colour]], dtype=np.uint8)


@given(
    answers=st.lists(st.sampled_from(["a", "a", "a", "b", "c", None]), min_size=1, max_size=60),
    round_size=st.sampled_from([1, 8, 32]),
)
def test_rules_asked_together_stop_where_each_stops_alone(
    answers: list[Hashable | None], round_size: int
) -> None:
    rules = [ExactRule(), ExactRule(1), SequentialRule(0.05), SequentialRule(0.4, 1)]
    together = voting.spend(answers, rules, round_size)
    assert together == [simulate(rule, answers, round_size) for rule in rules]


def test_a_replay_compares_with_full_voting() -> None:
    """Six of 1, three of 2, one of 3; the solution is 2. After one vote one answer is known."""
    predictions = predictions_of([1] * 6 + [2] * 3 + [3])
    cases = [Stopping("", After(10), 2, None, 1), Stopping("", After(1), 2, None, 1)]
    result = voting.replay((predictions, one_cell(2)), cases, orders=200, min_share=0.1, seed=0)
    full, stopped = 0, 1
    assert (result.spent[full] == 10).all() and (result.spent[stopped] == 1).all()
    assert result.set_unchanged[full].all() and result.first_unchanged[full].all()
    assert (result.place[full] == 2).all()
    assert not result.set_unchanged[stopped].any(), "a set of one"
    assert result.first_unchanged[stopped].mean() == pytest.approx(0.6, abs=0.1)
    assert set(result.place[stopped]) == {1, math.inf}
    assert (result.place[stopped] == 1).mean() == pytest.approx(0.3, abs=0.1)


def test_the_set_may_be_unchanged_where_its_order_is_not() -> None:
    predictions = predictions_of([1, 1, 1, 2, 2])
    cases = [Stopping("", After(3), 2, None, 3)]
    result = voting.replay((predictions, None), cases, orders=100, min_share=0.1, seed=0)
    # Three votes of five: 2 leads in 3 of the 10 choices, 1 alone is seen in one of them.
    assert result.first_unchanged.mean() == pytest.approx(0.7, abs=0.15)
    assert result.set_unchanged.mean() == pytest.approx(0.9, abs=0.1)
    assert np.isinf(result.place).all(), "no solution is known"


def test_rows_of_full_voting_and_of_a_rule_that_never_stops_are_alike() -> None:
    first, second = predictions_of([1, 1, 2], "first"), predictions_of([3, 3, 3, 4], "second")
    joined = concatenate([first, second])
    tasks = [
        Task("first", (), (Pair(one_cell(0), one_cell(2)), Pair(one_cell(0), one_cell(9)))),
        Task("second", (), (Pair(one_cell(0), one_cell(3)),)),
        Task("hidden", (), (Pair(one_cell(0), None),)),
    ]
    cases = [Stopping("never", After(99), 2, None, 2), Stopping("soon", After(1), 2, 0.1, 1)]
    full, never, soon = voting.voting_rows(
        joined, tasks, cases, orders=50, min_share=0.1, workers=1
    )
    scores = score(count_votes(joined), tasks)
    assert scores is not None
    # "first" has a second test input, never predicted: half of it can be solved.
    assert (full["pass@1"], full["pass@2"]) == (0.5, 0.75)
    assert (scores.over_tasks[1], scores.over_tasks[2]) == (0.5, 0.75)
    assert never == {**full, "voting": "never", "places": 2, "round": 2}
    assert soon["passes"] == pytest.approx(2 / 7)
    assert soon["pass@1"] == soon["pass@2"], "one vote names one answer"
    assert soon["first two unchanged"] == 0 < soon["first unchanged"] < 1


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Predictions of two test inputs, one of them solved, beside the dataset that has them."""
    rng = np.random.default_rng(0)
    parts = [
        predictions_of(rng.choice([1, 2, 3], size=40, p=shares).tolist(), task_id)
        for task_id, shares in (("first", (0.7, 0.2, 0.1)), ("second", (0.5, 0.3, 0.2)))
    ]
    (tmp_path / "data").mkdir()
    shown = (Pair(one_cell(0), one_cell(0)),)
    tasks = [Task(name, shown, (Pair(one_cell(0), one_cell(colour)),))
             for name, colour in (("first", 1), ("second", 9))]  # fmt: skip
    save_tasks(tmp_path / "data" / TEST_PUZZLES_FILE, tasks)
    concatenate(parts).save(tmp_path / PREDICTIONS_FILE)
    return tmp_path / PREDICTIONS_FILE


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: object) -> dict:
    """What the command wrote."""
    flags = [*arguments, "--workers", 1, "--round-sizes", 1, 8, "--tiny", "--output", output]
    monkeypatch.setattr("sys.argv", ["voting", *map(str, flags)])
    voting.main()
    document: dict = json.loads(output.read_text())
    return document


def test_the_command_measures_every_way_to_stop(
    tmp_path: Path,
    predicted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, data = tmp_path / "new" / "voting.json", tmp_path / "data"
    document = run(monkeypatch, output, "--predictions", predicted, "--data", data)
    full, *rows = document["rows"]
    assert full["voting"] == "full" and full["passes"] == 1
    assert (full["pass@1"], full["pass@2"]) == (0.5, 0.5)
    # Two sizes of rounds; exact and two sequential rules for two places and for one, and again
    # the sequential ones that do not wait for a small second place.
    of_round = ["exact", "sequential", "sequential"] * 2 + ["sequential, share 0.1"] * 2
    assert [row["voting"] for row in rows] == of_round * 2
    assert [row["places"] for row in rows] == [2, 2, 2, 1, 1, 1, 2, 2] * 2
    assert [row["error"] for row in rows] == [None, 0.01, 0.05, None, 0.01, 0.05, 0.01, 0.05] * 2
    assert [row["round"] for row in rows] == [1] * 8 + [8] * 8
    for row in rows:
        assert 0 < row["passes"] <= 1 and 0 <= row["pass@1"] <= row["pass@2"] <= 1
        if row["voting"] == "exact":
            unchanged = "first two unchanged" if row["places"] == 2 else "first unchanged"
            assert row[unchanged] == 1
        if row["voting"] == "exact" and row["places"] == 2:
            assert (row["pass@1"], row["pass@2"]) == (full["pass@1"], full["pass@2"])
        assert row["first two unchanged"] <= row["large ones kept"] <= 1
    assert rows[3]["passes"] < 1, "the first task's winner is clear before the end"
    assert document["machine"]["variants"] == 80 and document["machine"]["test inputs"] == 2
    assert "| full |" in capsys.readouterr().out


def test_the_dataset_is_the_one_that_the_predictions_name(
    tmp_path: Path, predicted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {"test_set": {"dataset": str(tmp_path / "data")}}
    predicted.with_name("metrics.json").write_text(json.dumps(metrics))
    named = run(monkeypatch, tmp_path / "a.json", "--predictions", predicted)
    flags = ["--predictions", predicted, "--data", tmp_path / "data"]
    assert run(monkeypatch, tmp_path / "b.json", *flags)["rows"] == named["rows"]


def test_what_cannot_be_replayed_is_refused(
    tmp_path: Path, predicted: Path, refused_in_process: Callable[..., str]
) -> None:
    assert "--predictions" in refused_in_process(voting.main)
    missing = tmp_path / "missing"
    assert str(missing) in refused_in_process(voting.main, "--predictions", missing)
    named = ["--predictions", predicted]
    assert "metrics.json" in refused_in_process(voting.main, *named)
    error = refused_in_process(voting.main, *named, "--error", 2)
    assert "argument --error: 2.0 is not between 0 and 1" in error
    error = refused_in_process(voting.main, *named, "--orders", 0)
    assert "argument --orders: 0 is not 1 or more" in error
    pair = Pair(one_cell(0), one_cell(0))
    save_tasks(tmp_path / TEST_PUZZLES_FILE, [Task("other", (pair,), (pair,))])
    error = refused_in_process(voting.main, *named, "--data", tmp_path)
    assert "task 'first' is not in the test set" in error
