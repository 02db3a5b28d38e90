"""From what was evaluated to what its page says: scores, charts, and a case for each test input."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from common.tokens import PAD
from dataset.canvas import canvas_side, read_back
from dataset.tasks import Grid, Pair, Task
from evaluation import figures
from evaluation.boards import is_solved
from evaluation.gallery import (
    BOARD_OUTCOMES,
    OUTCOMES,
    Answers,
    Attempt,
    Case,
    Gallery,
    outcome_of,
)
from evaluation.grids import canvas_text, plural
from evaluation.kinds import KINDS
from evaluation.page_charts import (
    attempts_charts,
    calibration_charts,
    kind_bars,
    step_charts,
    votes_charts,
)
from evaluation.predict import Answers as Predicted
from evaluation.report import Page, Score
from evaluation.submission import ATTEMPTS
from evaluation.summary import HEADLINES
from evaluation.test_set import BoardTestSet
from evaluation.uncertainty import mean_share, share_of
from evaluation.voting import Ranking, Votes, shares_within, solution_places

REPORTED_BOARDS = 100
"""How many boards the page shows: the first ones."""
SUBSET = "subset"
FILTER_TITLES = {key: kind.title for key, kind in KINDS.items()} | {SUBSET: "Test set"}
SCORES = ("pass@1", "pass@2", "solved")
"""Headlines that stand at the top, not among the facts."""
Document = Mapping[str, Any]
"""What `metrics.json` holds."""
Arrays = Mapping[str, npt.NDArray[Any]]
"""What an .npz file holds."""


# ---- tasks whose variants vote ----


def arc_page(
    tasks: Sequence[Task],
    votes: Votes,
    step_answers: Arrays | None,
    document: Document,
    subsets: Mapping[str, str],
) -> Page:
    """The page of an evaluation on ARC tasks; what is not known is left out.

    Args:
        tasks: of the test set.
        votes: counted.
        step_answers: see `evaluation.results.step_answers_of`.
        document: the metrics.
        subsets: task -> test set, as far as it is known.
    """
    cases = arc_cases(tasks, votes, step_answers, subsets)
    places = solution_places(votes, tasks)
    scores = []
    for k in (2, 1) if places else ():
        share = mean_share([*shares_within(places, k).values()])
        scores.append(Score(f"pass@{k}", share, f"over {plural(share.total, 'task')}"))
    by_votes, bars = figures.by_variants(votes, tasks, (1, 2)), None
    if places:
        kinds = figures.by_kind(tasks, shares_within(places, ATTEMPTS), subsets)
        bars = kind_bars(kinds)
    return Page(
        title=f"Answers on {document['test_set']['name']}",
        summary=summary_of(cases, "test input"),
        gallery=Gallery(cases, OUTCOMES, FILTER_TITLES),
        scores=scores,
        facts=facts_of(document),
        charts=[
            *attempts_charts({"pass@k": figures.pass_at_k(votes, tasks)}),
            *votes_charts({f"pass@{k}": by_votes[k] for k in (2, 1)}),
            *step_charts(document),
            *calibration_charts(votes, tasks),
        ],
        bars=bars,
    )


def arc_cases(
    tasks: Sequence[Task],
    votes: Mapping[tuple[str, int], Ranking],
    step_answers: Arrays | None,
    subsets: Mapping[str, str],
) -> list[Case]:
    """One case for each test input of each task, in order."""
    rows = {}
    if step_answers is not None:
        named = zip(step_answers["task_id"], step_answers["test_index"], strict=True)
        rows = {(str(task_id), int(index)): row for row, (task_id, index) in enumerate(named)}
    cases = []
    for task in tasks:
        kinds = {key: kind.name_of(task) for key, kind in KINDS.items()}
        if task.task_id in subsets:
            kinds[SUBSET] = subsets[task.task_id]
        for index, pair in enumerate(task.test):
            answers = answers_of(votes.get((task.task_id, index)))
            row = rows.get((task.task_id, index))
            steps, targets = _steps(step_answers, row, pair)
            cases.append(
                Case(
                    task_id=task.task_id,
                    test_index=index,
                    demonstrations=task.train,
                    test_input=pair.input,
                    solution=pair.output,
                    answers=(answers,),
                    outcome=outcome_of(answers.attempts, pair.output),
                    step_answers=steps,
                    step_targets=targets,
                    kinds=kinds,
                )
            )
    return cases


def answers_of(ranking: Ranking | None, name: str = "") -> Answers:
    """The attempts, of all that was answered to a test input."""
    if ranking is None:
        return Answers((), 0, name)
    ranked = zip(ranking.grids, ranking.votes, ranking.confidences, strict=True)
    attempts = tuple(Attempt(grid, int(votes), float(mean)) for grid, votes, mean in ranked)
    return Answers(attempts[:ATTEMPTS], int(ranking.votes.sum()), name)


def _steps(
    step_answers: Arrays | None, row: int | None, pair: Pair
) -> tuple[tuple[Grid | None, ...], tuple[str, ...]]:
    """A test input's answers after each step, and the texts of the steps' targets."""
    if step_answers is None or row is None:
        return (), ()
    answers = tuple(map(read_back, step_answers["canvas"][row]))
    # Results of earlier versions have no targets.
    if pair.output is None or "targets" not in step_answers:
        return answers, ()
    shape = pair.output.shape
    return answers, tuple(canvas_text(target, shape) for target in step_answers["targets"][row])


# ---- boards, on which nothing votes ----


def board_page(
    test_set: BoardTestSet,
    answers: Predicted,
    inputs: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    document: Document,
) -> Page:
    """The page of an evaluation on boards."""
    cases = board_cases(test_set, answers, inputs, labels)
    scores = []
    if "solved" in document:
        count = len(answers.rows)
        share = share_of(document["solved"] * count, count)
        scores.append(Score("solved", share, f"of {plural(count, 'board')}"))
    summary = summary_of(cases, "board")
    if len(cases) < len(inputs):
        summary = f"of the first, which are shown, {summary}"
    return Page(
        title=f"Answers on {document['test_set']['name']}",
        summary=summary,
        gallery=Gallery(cases, BOARD_OUTCOMES),
        scores=scores,
        facts=facts_of(document),
        charts=step_charts(document),
    )


def board_cases(
    test_set: BoardTestSet,
    answers: Predicted,
    inputs: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
) -> list[Case]:
    """The first boards; where an answer is right, it is the solution that is shown."""
    side = canvas_side(inputs.shape[1])

    def grid(board: npt.NDArray[np.uint8]) -> Grid:
        # PAD and empty cells are black, what stands on the board has ARC's colours.
        return (np.maximum(board, 1) - 1).reshape(side, side)

    cases = []
    solved = is_solved(test_set, answers)
    for index in range(min(len(inputs), REPORTED_BOARDS)):
        answer = grid(answers.canvases[index])
        is_hidden = bool((labels[index] == PAD).all())
        solution = answer if solved[index] else None if is_hidden else grid(labels[index])
        attempts = (Attempt(answer, 1, float(answers.confidence[index])),)
        cases.append(
            Case(
                task_id=f"board {index + 1}",
                test_index=None,
                demonstrations=(),
                test_input=grid(inputs[index]),
                solution=solution,
                answers=(Answers(attempts, num_attempts=1),),
                outcome=outcome_of(attempts, solution),
                step_answers=tuple(map(grid, answers.steps[index])),
            )
        )
    return cases


# ---- both ----


def summary_of(cases: Sequence[Case], noun: str) -> str:
    """How many test inputs or boards are right, in a sentence."""
    counts = Gallery(cases, OUTCOMES).counts
    hidden = counts.pop("hidden", 0)
    right, scored = sum(counts.values()) - counts.get("unsolved", 0), sum(counts.values())
    parts = [f"{right} of {plural(scored, noun)} right"] if scored else []
    parts += [f"{hidden} not scored"] if hidden else []
    return ", ".join(parts)


def facts_of(document: Document) -> dict[str, str]:
    """The table at the top of the page."""
    shown = [key for key in HEADLINES if key in document and key not in SCORES]
    facts = {key.replace("_", " "): f"{document[key]:.3f}" for key in shown}
    facts["test set"] = document["test_set"]["name"]
    if adaptation := document.get("adaptation"):
        steps = f", {adaptation['steps']:,} steps" if adaptation["steps"] else ""
        facts["adapted"] = f"{adaptation['weights']}{steps}"
    facts["predictions"] = f"{document['num_predictions']:,}"
    for number, checkpoint in enumerate(document.get("checkpoints", []), start=1):
        weights = f"{checkpoint['weights']} weights"
        facts[f"checkpoint {number}"] = f"{checkpoint['checkpoint']} ({weights})"
    return facts
