"""Voting in rounds: what is predicted, by whom, until a rule says that it is decided.

A stand-in for the model answers with a colour that is a function of the puzzle, on four real tasks
of seven variants each.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import eval_config
from torch import Tensor

from common.distributed import Ranks
from dataset.augmentation import invert
from dataset.canvas import VOCAB_SIZE, place, read_back
from evaluation import evaluator, rounds
from evaluation.evaluator import Outcome, stopping_rule
from evaluation.predict import Predictor
from evaluation.report import write_report
from evaluation.report_cases import report_cases
from evaluation.results import join
from evaluation.rounds import answer_keys, predict_until_decided, shuffled_rows
from evaluation.stopping import ExactRule, RunningVote, SequentialRule, simulate
from evaluation.test_set import EvaluationSet
from models.steps import Improvement

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, device=CPU)
NO_GRID = 10
FIVE_TO_TWO = (3, 4, 3, 3, 3, 4, 3)


class Votes:
    """Answers every input with a square of one colour, that its puzzle votes for; one step.

    `votes` are those of each task's seven variants, the original first: a colour, or NO_GRID. The
    k-th task votes for the colours k further on, and a variant shows them in its own.
    """

    num_steps = 1
    device = CPU

    def __init__(self, test_set: EvaluationSet, votes: Sequence[int], side: int = 1) -> None:
        num_puzzles = test_set.split.metadata.num_puzzle_identifiers
        self.canvas = torch.zeros(num_puzzles, 100, dtype=torch.int64)
        for k, task_id in enumerate(np.unique(test_set.task_ids)):
            rows = np.flatnonzero(test_set.task_ids == task_id)
            identifiers = test_set.examples.puzzle_ids[rows]
            for puzzle, vote in zip(np.unique(identifiers), votes, strict=True):
                if vote != NO_GRID:
                    permutation = test_set.permutations[rows[identifiers == puzzle][0]]
                    square = np.full((1, side, side), permutation[(vote + k) % 10])
                    self.canvas[puzzle] = torch.from_numpy(place(square, 10)[0])

    def run(
        self,
        inputs: Tensor,
        puzzle_ids: Tensor,
        cells: Tensor | None = None,
        with_reference: bool = False,
    ) -> Iterator[Improvement]:
        answers = self.canvas[puzzle_ids]
        if cells is not None:
            answers = answers.gather(1, cells)
        logits = 9.0 * torch.nn.functional.one_hot(answers, VOCAB_SIZE)
        yield Improvement(logits, logits, None)


@pytest.fixture(scope="module", name="test_set")
def opened(roomy_dataset: Path) -> EvaluationSet:
    return EvaluationSet(roomy_dataset, None)


@pytest.fixture(autouse=True)
def two_variants_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "VARIANTS_A_ROUND", 2)


def evaluated(
    test_set: EvaluationSet,
    votes: Sequence[int],
    ranks: Ranks = ALONE,
    canvas: str = "whole",
    side: int = 1,
    **changes: Any,
) -> Outcome | None:
    stub: Any = Votes(test_set, votes, side)
    return evaluator.evaluate(stub, test_set, eval_config(**changes), canvas, ranks)


def certain(outcome: Outcome | None) -> Outcome:
    assert outcome is not None
    return outcome


def first_two(outcome: Outcome) -> dict[tuple[str, int], list[Any]]:
    return {
        key: [grid.tolist() for grid in ranking.grids[:2]]
        for key, ranking in outcome.rankings.items()
    }


def test_the_rule_is_the_one_that_is_named() -> None:
    assert stopping_rule(eval_config(voting="full")) is None
    assert isinstance(stopping_rule(eval_config(voting="exact")), ExactRule)
    rules = [stopping_rule(eval_config(voting="sequential", voting_error=e)) for e in (0.01, 0.5)]
    assert all(isinstance(rule, SequentialRule) for rule in rules)
    vote = RunningVote(1000)
    vote.add(["a", "b"] * 9 + ["c"])
    assert [rule.decided(vote) for rule in rules if rule is not None] == [False, True]
    one_answer = RunningVote(1000)
    one_answer.add(["a"] * 100)
    shares = [
        stopping_rule(eval_config(voting="sequential", voting_min_share=share))
        for share in (0.0, 0.1)
    ]
    assert [rule.decided(one_answer) for rule in shares if rule is not None] == [False, True]


def test_every_test_input_has_its_rows_in_an_order_of_the_seed_alone(
    test_set: EvaluationSet,
) -> None:
    orders = [shuffled_rows(test_set, seed) for seed in (0, 0, 1)]
    for queues in orders:
        assert sorted(np.concatenate(list(queues.values()))) == list(range(len(test_set)))
        for (task_id, index), rows in queues.items():
            assert set(test_set.task_ids[rows]) == {task_id}
            assert set(test_set.examples.test_indices[rows]) == {index}
            assert len(rows) == 7
    first, second, other = ([rows.tolist() for rows in q.values()] for q in orders)
    assert first == second
    assert first != other
    assert all(rows != sorted(rows) for rows in first), "they are shuffled"


def test_a_key_stands_for_the_grid_that_is_voted_for(test_set: EvaluationSet) -> None:
    """Of real canvases: equal keys are equal grids, by `invert` of what `read_back` finds."""
    stub: Any = Votes(test_set, (0, 4, NO_GRID, 0, 4, NO_GRID, 0))
    predictions = (
        Predictor(stub, test_set, 8, "whole").predict(np.arange(len(test_set))).predictions
    )
    grids = [read_back(canvas) for canvas in predictions.canvas]
    keys = answer_keys(predictions)
    assert [key is None for key in keys] == [grid is None for grid in grids]
    pairs = set()
    for key, grid, d, p in zip(
        keys, grids, predictions.dihedral, predictions.colour_permutation, strict=True
    ):
        if grid is not None:
            pairs.add((key, str(invert(grid, int(d), p).tolist())))
    # Four tasks vote for 0 to 3 and for 4 to 7.
    assert sorted(grid for _, grid in pairs) == [f"[[{colour}]]" for colour in range(8)]
    assert len({key for key, _ in pairs}) == 8


@pytest.mark.parametrize("seed", [0, 3])
def test_what_is_decided_early_is_not_predicted(test_set: EvaluationSet, seed: int) -> None:
    """Each test input stops where the rule would stop on its votes alone, in rounds of two."""
    outcome = certain(evaluated(test_set, FIVE_TO_TWO, voting="exact", voting_seed=seed))
    seen = {key: int(ranking.votes.sum()) for key, ranking in outcome.rankings.items()}
    puzzles = test_set.examples.puzzle_ids
    for (task_id, index), rows in shuffled_rows(test_set, seed).items():
        of_task = np.unique(puzzles[test_set.task_ids == task_id])
        votes = [FIVE_TO_TWO[variant] for variant in np.searchsorted(of_task, puzzles[rows])]
        assert seen[task_id, index] == simulate(ExactRule(), votes, 2)
    # With one to come 4 to 2 is decided; 5 to 1 is not, as the last may be for a third answer.
    assert set(seen.values()) == {6, 7}
    figures = evaluator.metrics(outcome)
    assert figures["predicted_share"] == sum(seen.values()) / (7 * len(seen)) < 1
    assert len(outcome.predictions) == sum(seen.values())
    tasks = np.unique(test_set.task_ids).tolist()
    for (task_id, _), grids in first_two(outcome).items():
        k = tasks.index(task_id)
        assert grids == [[[3 + k]], [[4 + k]]]


@pytest.mark.parametrize(
    "votes",
    [
        FIVE_TO_TWO,
        (1, 1, 1, 1, 2, 2, 5),
        (1, 2, 3, 4, 5, 6, 7),
        (1, 1, 1, NO_GRID, NO_GRID, 2, 2),
        (3,) * 7,
        (NO_GRID,) * 7,
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_rounds_end_with_the_first_two_of_full_voting(
    test_set: EvaluationSet, votes: Sequence[int], seed: int
) -> None:
    """In their order; confidence and what breaks ties after it included."""
    full = certain(evaluated(test_set, votes))
    exact = certain(evaluated(test_set, votes, voting="exact", voting_seed=seed))
    assert full.passes["predicted_share"] == 1
    assert first_two(exact) == first_two(full)
    assert exact.scores is not None
    assert full.scores is not None
    assert {k: exact.scores.over_tasks[k] for k in (1, 2)} == {
        k: full.scores.over_tasks[k] for k in (1, 2)
    }


def test_no_row_is_predicted_twice_and_rounds_take_the_queues_in_order(
    test_set: EvaluationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[int]] = []
    real = Predictor.predict

    def spy(predictor: Predictor, rows: Any, *rest: Any) -> Any:
        taken.append(rows.tolist())
        return real(predictor, rows, *rest)

    monkeypatch.setattr(Predictor, "predict", spy)
    evaluated(test_set, FIVE_TO_TWO, voting="exact", voting_seed=3)
    queues = shuffled_rows(test_set, 3)
    assert taken[0] == []
    for number, rows in enumerate(taken[1:]):
        next_of = [queue[2 * number : 2 * number + 2].tolist() for queue in queues.values()]
        assert set(rows) <= {row for pair in next_of for row in pair}
        if number < 3:
            assert len(rows) == 2 * len(queues)
    everything = [row for rows in taken for row in rows]
    assert len(everything) == len(set(everything)) < len(test_set)


@pytest.mark.parametrize(("side", "again"), [(1, 0), (9, 1)])
def test_rounds_see_windows_too(test_set: EvaluationSet, side: int, again: int) -> None:
    """A square of one cell fills no window, and one of 9x9 all; of what was predicted at all."""
    shown = [
        certain(evaluated(test_set, FIVE_TO_TWO, canvas=canvas, side=side, voting="exact"))
        for canvas in ("whole", "window")
    ]
    whole, window = shown
    assert whole.passes["predicted_share"] < 1
    assert whole.passes["whole_canvas_again"] == 0
    assert window.passes == {**whole.passes, "whole_canvas_again": again}
    assert first_two(window) == first_two(whole)


class Threads:
    """Ranks as threads of this process: what `Ranks` does over gloo, by a barrier."""

    def __init__(self, world_size: int) -> None:
        self.values: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=60)

    def run(self, work: Callable[[Ranks], Any]) -> list[Any]:
        results: list[Any] = [None] * len(self.values)

        def start(rank: int) -> None:
            results[rank] = work(ThreadRanks(rank, len(results), CPU, self))

        threads = [threading.Thread(target=start, args=(r,)) for r in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results


class ThreadRanks(Ranks):
    def __init__(self, rank: int, world_size: int, device: torch.device, shared: Threads) -> None:
        super().__init__(rank, world_size, device)
        object.__setattr__(self, "shared", shared)

    def _exchange(self, value: Any) -> list[Any]:
        shared: Threads = self.shared  # type: ignore[attr-defined]
        shared.values[self.rank] = value
        shared.barrier.wait()
        values = list(shared.values)
        shared.barrier.wait()
        return values

    def gather_objects(self, value: Any) -> list[Any] | None:
        values = self._exchange(value)
        return values if self.is_main else None

    def broadcast_object(self, value: Any) -> Any:
        return self._exchange(value)[0]


@pytest.mark.parametrize("world_size", [2, 20])
@pytest.mark.parametrize("voting", ["full", "exact"])
def test_ranks_together_find_what_one_alone_finds(
    test_set: EvaluationSet, world_size: int, voting: str
) -> None:
    """The same rows, also where a rank has none; 20 ranks are more than a round has rows."""
    alone = certain(evaluated(test_set, FIVE_TO_TWO, voting=voting))
    found = Threads(world_size).run(
        lambda ranks: evaluated(test_set, FIVE_TO_TWO, ranks, voting=voting)
    )
    together = certain(found[0])
    assert found[1:] == [None] * (world_size - 1)

    def rows(outcome: Outcome) -> list[Any]:
        p = outcome.predictions
        columns = (p.identifier, p.test_index, p.confidence, p.canvas)
        return sorted(zip(*(column.tolist() for column in columns), strict=True))

    assert rows(together) == rows(alone)
    assert first_two(together) == first_two(alone)
    assert together.passes == alone.passes
    assert evaluator.metrics(together) == pytest.approx(evaluator.metrics(alone))


def test_a_report_has_cases_whose_original_was_never_predicted(
    test_set: EvaluationSet, tmp_path: Path
) -> None:
    """They have attempts and no steps, and the page is written."""

    class AfterOneRound:
        def decided(self, vote: RunningVote) -> bool:
            return vote.seen > 0

    stub: Any = Votes(test_set, (3,) * 7)
    predictor = Predictor(stub, test_set, 8, "whole")
    result = predict_until_decided(predictor, AfterOneRound(), 0, ALONE)
    voted = evaluator.vote(result.predictions, test_set.tasks)
    outcome = voted._replace(step_answers=join([result]).step_answers)
    cases = report_cases(test_set.tasks, outcome)
    with_steps = [bool(case.step_answers) for case in cases]
    assert set(with_steps) == {True, False}
    assert all(case.attempts for case in cases)
    write_report(tmp_path / "report.html", "a run", {}, cases)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="steps"') == sum(with_steps)
