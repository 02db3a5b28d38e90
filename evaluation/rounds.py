"""Voting in rounds: predict a few variants of each test input, count, and stop where decided.

Every rank predicts its share of each round and learns all votes, so that all agree on what is left.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np

from common.distributed import Ranks
from evaluation.predict import Predictor, Progress
from evaluation.predictions import Predictions
from evaluation.results import RankResult, join
from evaluation.stopping import RunningVote, StoppingRule
from evaluation.test_set import EvaluationSet, Rows
from evaluation.voting import OUTSIDE, TestInput, invert_canvases, rows_by_test_input

VARIANTS_A_ROUND = 32
"""Variants of each undecided test input between two looks at the votes."""


def predict_until_decided(
    predictor: Predictor,
    rule: StoppingRule,
    seed: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> RankResult:
    """Predict variants in random order until the rule has decided every test input.

    Returns what this rank predicted. Progress is shown in test inputs.
    """
    queues = shuffled_rows(predictor.test_set, seed)
    votes = {test_input: RunningVote(len(rows)) for test_input, rows in queues.items()}
    # Nothing at first, so that a rank without a share of any round has a result as well.
    results = [predictor.predict(np.arange(0))]

    def decided_inputs() -> Iterator[TestInput]:
        """Play rounds; test inputs come out as they are decided."""
        undecided = list(votes)
        while undecided:
            taken = {
                key: queues[key][votes[key].seen : votes[key].seen + VARIANTS_A_ROUND]
                for key in undecided
            }
            results.append(_play_round(predictor, taken, votes, ranks))
            done = {key for key in undecided if rule.decided(votes[key])}
            yield from done
            undecided = [key for key in undecided if key not in done]

    decided = decided_inputs()
    for _ in decided if progress is None else progress(decided, len(votes)):
        pass
    return join(results)


def _play_round(
    predictor: Predictor,
    taken: Mapping[TestInput, Rows],
    votes: Mapping[TestInput, RunningVote],
    ranks: Ranks,
) -> RankResult:
    """Predict this rank's share of the rows taken; count the votes of all ranks."""
    rows = np.concatenate(list(taken.values()))
    result = predictor.predict(rows[ranks.rank :: ranks.world_size])
    shares = ranks.broadcast_object(ranks.gather_objects(answer_keys(result.predictions)))
    answers: list[Hashable | None] = [None] * len(rows)
    for rank, share in enumerate(shares):
        answers[rank :: ranks.world_size] = share
    start = 0
    for key, of_input in taken.items():
        votes[key].add(answers[start : start + len(of_input)])
        start += len(of_input)
    return result


def shuffled_rows(test_set: EvaluationSet, seed: int) -> dict[TestInput, Rows]:
    """The rows of each test input, in a random order that depends on the seed alone."""
    rng = np.random.default_rng(seed)
    rows = rows_by_test_input(test_set.task_ids, test_set.examples.test_indices)
    return {test_input: rng.permutation(of_input) for test_input, of_input in rows.items()}


def answer_keys(predictions: Predictions) -> Sequence[bytes | None]:
    """What each prediction votes for: equal keys are equal grids; None casts no vote."""
    squares = invert_canvases(
        predictions.canvas, predictions.dihedral, predictions.colour_permutation
    )
    return [square.tobytes() if square[0, 0] != OUTSIDE else None for square in squares]
