"""The numbers behind the page's charts: functions of votes, tasks and metrics alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dataset.tasks import Task
from evaluation.kinds import KINDS
from evaluation.uncertainty import Share, mean_share, share_of
from evaluation.voting import (
    Ranking,
    TestInput,
    Votes,
    place_among_first,
    shares_within,
    solution_place,
    solution_places,
)

CURVE_AT = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Numbers of attempts that the curve of pass@k has a point at."""
NUM_BINS = 10
"""Of vote shares, equally wide."""

Curve = list[tuple[int, Share]]


def pass_at_k(votes: Mapping[TestInput, Ranking], tasks: Sequence[Task]) -> Curve:
    """Over tasks, against k, up to the most answers that a test input has; none without solutions.

    Beyond the last point the curve is level: what no variant answered, no attempt solves.
    """
    places = solution_places(votes, tasks)
    most = max((len(ranking.grids) for ranking in votes.values()), default=0)
    points = [k for k in CURVE_AT if k < most] + [k for k in CURVE_AT if k >= most][:1]
    return [(k, mean_share([*shares_within(places, k).values()])) for k in points if places]


def variant_counts(most: int) -> list[int]:
    """1, 2, 4, ... and at last all."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def by_variants(votes: Votes, tasks: Sequence[Task], attempts: Sequence[int]) -> dict[int, Curve]:
    """For each number of attempts, pass@k over tasks if only the first n variants had voted.

    The original comes first, then its variants by identifier, as with `eval.max_variants=n`; a task
    that has fewer votes with all of them. Empty if no solution is known.
    """
    found = {task_id: [place - 1 for place in of_task]
             for task_id, of_task in solution_places(votes, tasks).items()}  # fmt: skip
    known = {
        task.task_id: [i for i, pair in enumerate(task.test) if pair.output is not None]
        for task in tasks
    }
    most = max((_num_variants(ranking) for ranking in votes.values()), default=0)
    curves: dict[int, Curve] = {k: [] for k in attempts}
    for count in variant_counts(most) if found and most else ():
        places = {
            task_id: [
                place_among_first(votes[task_id, index], int(row), count)
                if np.isfinite(row)
                else row
                for index, row in zip(known[task_id], rows, strict=True)
            ]
            for task_id, rows in found.items()
        }
        for k, curve in curves.items():
            curve.append((count, mean_share([*shares_within(places, k).values()])))
    return curves


def _num_variants(ranking: Ranking) -> int:
    """Up to the last one that voted."""
    if ranking.voters is None:
        return 0
    return int(ranking.voters.variant.max(initial=-1)) + 1


STEP_METRICS = {
    "solved": "solved by the rules",
    "exact_accuracy": "the whole answer",
    "cell_accuracy": "of the cells",
}
"""Accuracies that are known after each step, and what they are called on the page."""


def by_step(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """Accuracies of single answers after steps 1..S, by name, as far as `metrics` has them."""
    curves = {}
    for name in STEP_METRICS:
        steps = [key for key in metrics if key.startswith(f"{name}_step")]
        if steps:
            curves[name] = [float(metrics[f"{name}_step{s}"]) for s in range(1, len(steps) + 1)]
    return curves


class Bin(NamedTuple):
    """Test inputs whose first answer has about the same share of the votes."""

    mean_share: float
    right: Share
    """How many of these first answers are right."""


def calibration(votes: Mapping[TestInput, Ranking], tasks: Sequence[Task]) -> list[Bin]:
    """Whether the first answer's share of the votes says how likely it is right; no empty bins."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for task in tasks:
        for index, pair in enumerate(task.test):
            ranking = votes.get((task.task_id, index))
            if pair.output is None or ranking is None or not ranking.grids:
                continue
            share = float(ranking.votes[0] / ranking.votes.sum())
            is_right = solution_place(ranking._replace(grids=ranking.grids[:1]), pair.output) == 1
            bins[min(int(share * NUM_BINS), NUM_BINS - 1)].append((share, is_right))
    return [
        Bin(
            float(np.mean([share for share, _ in found])),
            share_of(sum(is_right for _, is_right in found), len(found)),
        )
        for _, found in sorted(bins.items())
    ]


def by_kind(
    tasks: Sequence[Task], shares: Mapping[str, float], subsets: Mapping[str, str]
) -> dict[str, dict[str, Share]]:
    """Mean over the tasks of each kind, by title and name: what `kinds.KINDS` tells apart.

    Args:
        tasks: of the test set.
        shares: of the tasks that are scored, the share that each scores.
        subsets: task -> test set; a kind of its own if there are several.
    """
    scored = [task for task in tasks if task.task_id in shares]
    tables = {
        kind.title: {name: [t for t in scored if kind.name_of(t) == name] for name in kind.names}
        for kind in KINDS.values()
    }
    if len(names := sorted({subsets[t.task_id] for t in scored if t.task_id in subsets})) > 1:
        tables["Test set"] = {
            name: [t for t in scored if subsets.get(t.task_id) == name] for name in names
        }
    return {
        title: {
            name: mean_share([shares[task.task_id] for task in members])
            for name, members in table.items()
            if members
        }
        for title, table in tables.items()
    }
