"""Voting in rounds: predict a few variants of each test input, count, and stop where decided.

Every rank predicts its share of each round and learns all votes, so that all agree on what is left.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from common.distributed import Ranks
from evaluation.predict import Predictor, RankResult, join
from evaluation.predictions import Predictions
from evaluation.stopping import RunningVote, StoppingRule
from evaluation.test_set import EvaluationSet, Rows
from evaluation.voting import OUTSIDE, TestInput, invert_canvases

VARIANTS_A_ROUND = 32
"""Variants of each undecided test input between two looks at the votes."""


def predict_until_decided(
    predictor: Predictor, test_set: EvaluationSet, rule: StoppingRule, seed: int, ranks: Ranks
) -> RankResult:
    """Predict variants in random order until the rule has decided every test input.

    Returns what this rank predicted.
    """
    queues = shuffled_rows(test_set, seed)
    votes = {test_input: RunningVote(len(rows)) for test_input, rows in queues.items()}
    # Nothing at first, so that a rank without a share of any round has a result as well.
    results = [predictor.predict(np.arange(0))]
    while undecided := [key for key, vote in votes.items() if not rule.decided(vote)]:
        taken = {
            key: queues[key][votes[key].seen : votes[key].seen + VARIANTS_A_ROUND]
            for key in undecided
        }
        this_round = np.concatenate(list(taken.values()))
        mine = this_round[ranks.rank :: ranks.world_size]
        results.append(predictor.predict(mine))
        keys = answer_keys(results[-1].predictions)
        shares = ranks.broadcast_object(ranks.gather_objects(keys))
        answers: list[Hashable | None] = [None] * len(this_round)
        for rank, share in enumerate(shares):
            answers[rank :: ranks.world_size] = share
        start = 0
        for key, rows in taken.items():
            votes[key].add(answers[start : start + len(rows)])
            start += len(rows)
    return join(results)


def shuffled_rows(test_set: EvaluationSet, seed: int) -> dict[TestInput, Rows]:
    """The rows of each test input, in a random order that depends on the seed alone."""
    order = np.lexsort((test_set.examples.test_indices, test_set.task_ids))
    names = test_set.task_ids[order], test_set.examples.test_indices[order]
    starts = np.flatnonzero(
        np.concatenate([[True], (names[0][1:] != names[0][:-1]) | (names[1][1:] != names[1][:-1])])
    )
    rng = np.random.default_rng(seed)
    return {
        (str(names[0][start]), int(names[1][start])): rng.permutation(rows)
        for start, rows in zip(starts, np.split(order, starts[1:]), strict=True)
    }


def answer_keys(predictions: Predictions) -> Sequence[bytes | None]:
    """What each prediction votes for: equal keys are equal grids; None casts no vote."""
    squares = invert_canvases(
        predictions.canvas, predictions.dihedral, predictions.colour_permutation
    )
    return [square.tobytes() if square[0, 0] != OUTSIDE else None for square in squares]
