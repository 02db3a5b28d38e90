"""The evaluation's benchmark: ways to predict, and voting that stops, beside the plain way."""

import json
import math
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import InProcess

from benchmarks import evaluate
from benchmarks.evaluate import Stopping
from dataset.canvas import place
from dataset.tasks import Pair, Task
from evaluation.predictions import Predictions, load_predictions
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
    together = evaluate.spend(answers, rules, round_size)
    assert together == [simulate(rule, answers, round_size) for rule in rules]


def test_a_replay_compares_with_full_voting() -> None:
    """Six of 1, three of 2, one of 3; the solution is 2. After one vote one answer is known."""
    predictions = predictions_of([1] * 6 + [2] * 3 + [3])
    cases = [Stopping("", After(10), 2, None, 1), Stopping("", After(1), 2, None, 1)]
    result = evaluate.replay((predictions, one_cell(2)), cases, orders=200, seed=0)
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
    result = evaluate.replay((predictions, None), cases, orders=100, seed=0)
    # Three votes of five: 2 leads in 3 of the 10 choices, 1 alone is seen in one of them.
    assert result.first_unchanged.mean() == pytest.approx(0.7, abs=0.15)
    assert result.set_unchanged.mean() == pytest.approx(0.9, abs=0.1)
    assert np.isinf(result.place).all(), "no solution is known"


def test_rows_of_full_voting_and_of_a_rule_that_never_stops_are_alike() -> None:
    first, second = predictions_of([1, 1, 2], "first"), predictions_of([3, 3, 3, 4], "second")
    joined = Predictions(
        **{k: np.concatenate([v, vars(second)[k]]) for k, v in vars(first).items()}
    )
    tasks = [
        Task("first", (), (Pair(one_cell(0), one_cell(2)), Pair(one_cell(0), one_cell(9)))),
        Task("second", (), (Pair(one_cell(0), one_cell(3)),)),
        Task("hidden", (), (Pair(one_cell(0), None),)),
    ]
    cases = [Stopping("never", After(99), 2, None, 2), Stopping("soon", After(1), 2, 0.1, 1)]
    full, never, soon = evaluate.voting_rows(joined, tasks, cases, orders=50, workers=1)
    scores = score(count_votes(joined), tasks)
    assert scores is not None
    # "first" has a second test input, never predicted: half of it can be solved.
    assert (full["pass@1"], full["pass@2"]) == (0.5, 0.75)
    assert (scores.over_tasks[1], scores.over_tasks[2]) == (0.5, 0.75)
    assert never == {**full, "voting": "never", "places": 2, "round": 2}
    assert soon["passes"] == pytest.approx(2 / 7)
    assert soon["pass@1"] == soon["pass@2"], "one vote names one answer"
    assert soon["first two unchanged"] == 0 < soon["first unchanged"] < 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, roomy_compact_dataset: Path) -> Path:
    """A short run on windows at a high learning rate: mostly wrong answers, but they differ."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return InProcess(monkeypatch).train(
            roomy_compact_dataset,
            tmp_path_factory.mktemp("runs") / "trained",
            "data.canvas=window",
            "train.max_steps=240",
            "train.checkpoint_every=240",
            "train.eval_every=null",
            "optim.lr=1e-2",
            "optim.puzzle_lr=3e-2",
        )


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: object) -> list[dict]:
    """The parts that the command wrote."""
    flags = [*arguments, "--tiny", "--device", "cpu", "--workers", 1, "--output", output]
    flags += ["--round-sizes", 1, 3]  # There are but seven variants.
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, flags)])
    evaluate.main()
    parts: list[dict] = json.loads(output.read_text())
    return parts


def check_predictions(rows: list[dict], names: list[str]) -> None:
    plain = rows[0]
    assert [row["way"] for row in rows[:-1]] == names
    assert rows[-1]["way"].endswith(", bf16")
    assert plain["times plain"] == 1 == plain["same answer as plain"]
    assert plain["predicted again"] == 0
    for row in rows:
        assert row["times plain"] == pytest.approx(row["variants/s"] / plain["variants/s"])
        assert all(0 <= row[key] <= 1 for key in ("exact accuracy", "cell accuracy"))
        assert 0 < row["real"] <= 1
    whole = [row for row in rows if "whole" in row["way"] and "bf16" not in row["way"]]
    assert all(row["cell accuracy"] == plain["cell accuracy"] for row in whole)


def check_voting(rows: list[dict]) -> None:
    full = rows[0]
    assert full["voting"] == "full" and full["passes"] == 1
    # Two sizes of rounds, two numbers of places, exact and two sequential rules.
    assert [row["voting"] for row in rows[1:]] == ["exact", "sequential", "sequential"] * 4
    assert [row["places"] for row in rows[1:]] == [2, 2, 2, 1, 1, 1] * 2
    assert [row["round"] for row in rows[1:]] == [1] * 6 + [3] * 6
    for row in rows[1:]:
        assert 0 < row["passes"] <= 1 and 0 <= row["pass@1"] <= row["pass@2"] <= 1
        if row["voting"] == "exact":
            unchanged = "first two unchanged" if row["places"] == 2 else "first unchanged"
            assert row[unchanged] == 1
        if row["voting"] == "exact" and row["places"] == 2:
            assert (row["pass@1"], row["pass@2"]) == (full["pass@1"], full["pass@2"])


def test_the_command_measures_ways_to_predict_and_voting(
    tmp_path: Path,
    trained: Path,
    roomy_compact_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """First without predictions, then with those that the first made."""
    output = tmp_path / "new" / "evaluate.json"
    ways, voting = run(monkeypatch, output, "--checkpoint", trained, "--no-compile")
    check_predictions(ways["rows"], ["plain: whole canvas, eager, fp32", "windows, eager"])
    check_voting(voting["rows"])
    assert ways["rows"][0]["real"] == 1 > ways["rows"][1]["real"], "16 rows, of several shapes"
    assert ways["machine"]["fastest"] in [row["way"] for row in ways["rows"]]
    assert ways["machine"]["variants"] == voting["machine"]["variants"]
    made = tmp_path / "new" / "evaluate_predictions.npz"
    assert voting["machine"]["predictions"] == f"{made}, made just now in the fastest way"
    assert len(load_predictions(made)) == voting["machine"]["variants"]
    printed = capsys.readouterr().out
    assert "| plain: whole canvas, eager, fp32 |" in printed and "| full |" in printed

    (again,) = run(
        monkeypatch, tmp_path / "again.json", "--predictions", made, "--data", roomy_compact_dataset
    )
    assert again["rows"] == voting["rows"]


@pytest.mark.long
def test_the_command_measures_compiled_ways(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways, voting = run(monkeypatch, tmp_path / "evaluate.json", "--checkpoint", trained)
    check_predictions(ways["rows"], [way.name for way in evaluate.WAYS])
    check_voting(voting["rows"])


def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    assert "--checkpoint RUN" in refused_in_process(evaluate.main)
    missing = tmp_path / "missing"
    error = refused_in_process(evaluate.main, "--checkpoint", missing)
    assert str(missing) in error
    error = refused_in_process(evaluate.main, "--predictions", missing, "--data", missing)
    assert str(missing) in error
    assert "--error 2.0" in refused_in_process(evaluate.main, "--checkpoint", "x", "--error", 2)
    assert "--orders 0" in refused_in_process(evaluate.main, "--checkpoint", "x", "--orders", 0)
