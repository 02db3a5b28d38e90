"""How many predictions does voting need?

    python evaluate.py checkpoint=RUN
    python -m benchmarks.voting --predictions RUN/evaluation_STEP/predictions.npz

Replays voting that stops early on predictions of all variants, over random orders of each test
input's variants. The first row is full voting; each further one is a rule of `evaluation.stopping`
that decides the first one or two places and is asked after every round of variants.

"Passes" is the share of the predictions that voting takes. "Unchanged" is the share of (test input,
order) in which the first answer, or the set of the first two, is that of full voting with its ties;
"large ones kept", in which those of full voting's first two that have at least --min-share of the
votes are still among them. pass@k are means over the orders.
"""

import argparse
import sys
from collections.abc import Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks.measure import Results, machine, positive
from common.errors import CommandParser, UserError, exit_cleanly
from dataset.storage import TEST_PUZZLES_FILE
from dataset.tasks import Grid, Task, load_tasks
from evaluate import recorded_data_path
from evaluation.predictions import Predictions, load_predictions
from evaluation.rounds import VARIANTS_A_ROUND, answer_keys
from evaluation.scoring import score, solution_place
from evaluation.stopping import MAX_PLACES, ExactRule, RunningVote, SequentialRule, StoppingRule
from evaluation.voting import Ranking, TestInput, count_votes, rank_answers, rows_by_test_input

COLUMNS = ("voting", "places", "error", "round", "passes", "first two unchanged", "first unchanged",
           "large ones kept", "pass@1", "pass@2")  # fmt: skip


@dataclass(frozen=True)
class Stopping:
    """A rule, and how often it is asked: one row."""

    name: str
    rule: StoppingRule
    places: int
    error: float | None
    round_size: int


def stoppings(
    errors: Sequence[float], round_sizes: Sequence[int], min_share: float
) -> list[Stopping]:
    """All rows but the first."""
    found = []
    for round_size in round_sizes:
        for places in range(MAX_PLACES, 0, -1):
            found.append(Stopping("exact", ExactRule(places), places, None, round_size))
            for error in errors:
                rule = SequentialRule(error, places)
                found.append(Stopping("sequential", rule, places, error, round_size))
        for error in errors:
            rule = SequentialRule(error, min_share=min_share)
            name = f"sequential, share {min_share}"
            found.append(Stopping(name, rule, MAX_PLACES, error, round_size))
    return found


def spend(
    answers: Sequence[Hashable | None], rules: Sequence[StoppingRule], round_size: int
) -> list[int]:
    """Variants that each rule takes of the answers in their order, as `stopping.simulate` does."""
    vote = RunningVote(len(answers))
    spent: dict[int, int] = {}
    while len(spent) < len(rules):
        for number, rule in enumerate(rules):
            if number not in spent and rule.decided(vote):
                spent[number] = vote.seen
        vote.add(answers[vote.seen : vote.seen + round_size])
    return [spent[number] for number in range(len(rules))]


class Replay(NamedTuple):
    """What happened to one test input; K stoppings, R orders."""

    variants: int
    spent: npt.NDArray[np.int64]
    """[K, R]"""
    first_unchanged: npt.NDArray[np.bool_]
    """[K, R]"""
    set_unchanged: npt.NDArray[np.bool_]
    """[K, R]"""
    large_kept: npt.NDArray[np.bool_]
    """[K, R]"""
    place: npt.NDArray[np.float64]
    """[K, R] of the solution among the first two answers; infinite if it is not there."""


def replay(
    test_input: tuple[Predictions, Grid | None],
    cases: Sequence[Stopping],
    orders: int,
    min_share: float,
    seed: int,
) -> Replay:
    """Vote on one test input in random orders of its variants."""
    predictions, solution = test_input
    rng = np.random.default_rng([seed, *str(predictions.task_id[0]).encode()])
    answers = answer_keys(predictions)
    full = first_two(rank_answers(predictions))
    is_large = full.votes >= min_share * len(answers)
    large = {key for key, is_so in zip(keys(full), is_large, strict=True) if is_so}
    shape = (len(cases), orders)
    result = Replay(
        len(answers),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=bool),
        np.zeros(shape, dtype=bool),
        np.zeros(shape, dtype=bool),
        np.full(shape, np.inf),
    )
    for r in range(orders):
        order = rng.permutation(len(answers))
        shuffled = [answers[row] for row in order]
        for round_size in {case.round_size for case in cases}:
            asked = [k for k, case in enumerate(cases) if case.round_size == round_size]
            result.spent[asked, r] = spend(shuffled, [cases[k].rule for k in asked], round_size)
        for count in np.unique(result.spent[:, r]):
            stopped = first_two(rank_answers(predictions.select(order[:count])))
            there = result.spent[:, r] == count
            result.first_unchanged[there, r] = keys(stopped)[:1] == keys(full)[:1]
            result.set_unchanged[there, r] = set(keys(stopped)) == set(keys(full))
            result.large_kept[there, r] = large <= set(keys(stopped))
            if solution is not None:
                result.place[there, r] = solution_place(stopped, solution)
    return result


def first_two(ranking: Ranking) -> Ranking:
    grids, votes, confidences = ranking
    return Ranking(grids[:MAX_PLACES], votes[:MAX_PLACES], confidences[:MAX_PLACES])


def keys(ranking: Ranking) -> list[tuple[object, ...]]:
    return [(grid.shape, grid.tobytes()) for grid in ranking.grids]


def voting_rows(
    predictions: Predictions,
    tasks: Sequence[Task],
    cases: Sequence[Stopping],
    orders: int,
    min_share: float,
    workers: int,
) -> list[dict[str, Any]]:
    """The table: full voting, then every case."""
    replays = replay_all(predictions, tasks, cases, orders, min_share, workers)
    scores = score(count_votes(predictions), tasks)
    total = sum(one.variants for one in replays.values())
    full = ("full", None, None, None, 1.0, 1.0, 1.0, 1.0)
    table = [[*full, *(scores.over_tasks[p] if scores else None for p in (1, 2))]]
    for k, case in enumerate(cases):
        spent = sum(one.spent[k].mean() for one in replays.values())
        first = np.mean([one.first_unchanged[k] for one in replays.values()])
        both = np.mean([one.set_unchanged[k] for one in replays.values()])
        large = np.mean([one.large_kept[k] for one in replays.values()])
        places = {key: one.place[k] for key, one in replays.items()}
        solved = (mean_pass(places, tasks, p) if scores else None for p in (1, 2))
        about = (case.name, case.places, case.error, case.round_size)
        shares = (float(share) for share in (spent / total, both, first, large))
        table.append([*about, *shares, *solved])
    return [dict(zip(COLUMNS, row, strict=True)) for row in table]


def replay_all(
    predictions: Predictions,
    tasks: Sequence[Task],
    cases: Sequence[Stopping],
    orders: int,
    min_share: float,
    workers: int,
) -> dict[TestInput, Replay]:
    """Vote on every test input that was predicted."""
    solutions = {(t.task_id, i): pair.output for t in tasks for i, pair in enumerate(t.test)}
    rows = rows_by_test_input(predictions.task_id, predictions.test_index)
    if unknown := set(rows) - set(solutions):
        raise UserError(
            f"--predictions: task '{min(unknown)[0]}' is not in the test set: --data must name the "
            f"dataset that was predicted"
        )
    work = [(predictions.select(rows[key]), solutions[key]) for key in rows]
    vote = partial(replay, cases=cases, orders=orders, min_share=min_share, seed=0)
    if workers == 1:
        return dict(zip(rows, tqdm(map(vote, work), "voting", len(work)), strict=True))
    with ProcessPoolExecutor(workers, get_context("spawn")) as executor:
        results = tqdm(executor.map(vote, work), "voting", len(work))
        return dict(zip(rows, results, strict=True))


def mean_pass(
    places: dict[TestInput, npt.NDArray[np.float64]], tasks: Sequence[Task], k: int
) -> float:
    """pass@k over tasks, as `evaluation.scoring` has it, mean over the orders."""
    nowhere = np.array([np.inf])
    of_tasks = []
    for task in tasks:
        known = [i for i, pair in enumerate(task.test) if pair.output is not None]
        solved = [(places.get((task.task_id, i), nowhere) <= k).mean() for i in known]
        if solved:
            of_tasks.append(np.mean(solved))
    return float(np.mean(of_tasks))


def probability(text: str) -> float:
    """The value of --error: an argparse `type`."""
    if not 0 < (number := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 1")
    return number


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.voting", description=__doc__)
    add = parser.add_argument
    add("--predictions", required=True, type=Path,
        help="predictions.npz of evaluate.py, of all variants")  # fmt: skip
    add("--data", type=Path, help="dataset; default: the one that was predicted")
    add("--error", type=probability, nargs="+", default=[0.01, 0.05],
        help="error probabilities of the sequential rule")  # fmt: skip
    add("--min-share", type=probability, default=0.1,
        help="share of the votes below which a second answer need not be known")  # fmt: skip
    add("--round-sizes", type=positive, nargs="+", default=[VARIANTS_A_ROUND, 8],
        help="variants between two looks at the votes")  # fmt: skip
    add("--orders", type=positive, default=20, help="random orders of each test input's variants")
    add("--workers", type=positive, help="processes; default: the cores here")
    add("--output", type=Path, default=Path("benchmark_output/voting.json"))
    add("--tiny", action="store_true", help="2 orders: shows that it works")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.orders = 2
    return arguments


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    predictions = load_predictions(arguments.predictions)
    data = arguments.data or recorded_data_path(arguments.predictions)
    tasks = load_tasks(data / TEST_PUZZLES_FILE)
    facts = machine(torch.device("cpu"))
    cases = stoppings(arguments.error, arguments.round_sizes, arguments.min_share)
    workers = arguments.workers or facts["cores"] or 1
    rows = voting_rows(predictions, tasks, cases, arguments.orders, arguments.min_share, workers)
    facts |= {"predictions": str(arguments.predictions), "variants": len(predictions)}
    test_inputs = rows_by_test_input(predictions.task_id, predictions.test_index)
    facts |= {"test inputs": len(test_inputs), "orders": arguments.orders}
    Results(
        question="How many predictions does voting need?",
        command=f"python -m benchmarks.voting {' '.join(sys.argv[1:])}",
        machine=facts,
        rows=rows,
    ).write(arguments.output)


if __name__ == "__main__":
    main()
