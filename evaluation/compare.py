"""Compare two evaluations of one test set, task by task, and write a page and the numbers.

    python -m evaluation.compare runs/a/evaluation_step_00010000 runs/b/evaluation_step_00010000

A and B are results folders of evaluate.py. A task is gained where B solves more of its test inputs
than A in two attempts, and lost where it solves less. Whether the balance is more than chance says
the exact two-sided sign test over the tasks that differ: p is how likely a balance this uneven
would be if neither were better. With one seed each that is about two networks, not about recipes.
"""

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_directory, require_new_directory
from common.locks import exclusive
from common.settings import expanded_path
from dataset.storage import puzzles_file
from dataset.task_files import load_tasks
from dataset.tasks import Task
from evaluation import figures
from evaluation.gallery import Case, Gallery, Outcome, outcome_of
from evaluation.grids import plural
from evaluation.kinds import KINDS
from evaluation.page_charts import attempts_charts, votes_charts
from evaluation.pages import FILTER_TITLES, SUBSET, answers_of
from evaluation.predictions import PREDICTIONS_FILE, load_predictions
from evaluation.report import Page, Score, write_page
from evaluation.results import METRICS_FILE, recorded_test_set, subsets_of
from evaluation.submission import ATTEMPTS
from evaluation.uncertainty import mean_share, sign_test
from evaluation.voting import Votes, count_votes, shares_within, solution_places

PAGE_FILE, NUMBERS_FILE = "compare.html", "compare.json"
DECIDING = f"pass@{ATTEMPTS}"
LEAST_P = 0.001
"""That is written out: below it the exact number is only in `compare.json`."""
GAINED, LOST, BOTH, NEITHER, HIDDEN = "gained", "lost", "both", "neither", "hidden"
OUTCOMES = {
    GAINED: Outcome("Gained", "right", "+"),
    LOST: Outcome("Lost", "wrong", "−"),
    BOTH: Outcome("Solved by both", "plain", "="),
    NEITHER: Outcome("By neither", "plain", "="),
    HIDDEN: Outcome("Not scored", "plain", "–"),
}

log = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """One of the two."""

    name: str
    """A or B."""
    path: Path
    dataset: Path
    split: str
    tasks: list[Task]
    votes: Votes

    def shares(self, k: int) -> dict[str, float]:
        """For each task with a known solution, the share of its test inputs solved in k answers."""
        return shares_within(solution_places(self.votes, self.tasks), k)


def parse_arguments() -> Namespace:
    parser = CommandParser(prog="python -m evaluation.compare", description=__doc__)
    for name in ("A", "B"):
        parser.add_argument(name, type=expanded_path, help="results folder of an evaluation")
    parser.add_argument(
        "--output-dir",
        type=expanded_path,
        metavar="DIR",
        help="folder to create; must not exist (default: beside B, named after A)",
    )
    parser.add_argument(
        "--dataset",
        type=expanded_path,
        metavar="DIR",
        help="the dataset of both, if it is no longer where their metrics.json says",
    )
    return parser.parse_args()


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    asked = parse_arguments()
    output_dir = asked.output_dir or default_output_dir(asked.A, asked.B)
    with exclusive(output_dir, "--output-dir"):
        require_new_directory(output_dir, "--output-dir", "remove it or choose another folder")
        a = load_evaluation("A", asked.A, asked.dataset)
        b = load_evaluation("B", asked.B, asked.dataset)
        require_same_tasks(a, b)
        document = compare(a, b)
        with atomic_directory(output_dir) as folder:
            (folder / NUMBERS_FILE).write_text(json.dumps(document, indent=1))
            write_page(folder / PAGE_FILE, page_of(a, b, document))
    for line in sentences(document):
        log.info("%s", line)
    log.info("Wrote %s", output_dir)


def default_output_dir(a: Path, b: Path) -> Path:
    """Beside B, named after A; by its run folder too if both have one name."""
    a, b = a.resolve(), b.resolve()
    name = a.name if a.name != b.name else f"{a.parent.name}_{a.name}"
    return b.parent / f"{b.name}_against_{name}"


def load_evaluation(name: str, path: Path, dataset: Path | None) -> Evaluation:
    """Read a results folder, and count its votes.

    Raises:
        UserError: it is none, is of boards, or its dataset is not there.
    """
    if not (path / PREDICTIONS_FILE).is_file():
        is_other = (path / METRICS_FILE).is_file()
        reason = "are of boards, on which nothing votes" if is_other else "are not there"
        raise UserError(
            f"{name}={path}: predictions {reason}; name a folder of evaluate.py with "
            f"{PREDICTIONS_FILE} in it"
        )
    recorded = recorded_test_set(path)
    found = dataset or (Path(recorded["dataset"]) if "dataset" in recorded else None)
    # Earlier versions predicted no other split, and did not record it.
    split = recorded.get("split", "test")
    if found is None or not (found / puzzles_file(split)).is_file():
        where = f"{found} has no {puzzles_file(split)}" if found else f"{METRICS_FILE} names none"
        raise UserError(f"{name}={path}: {where}; say with --dataset DIR where its dataset is")
    tasks = load_tasks(found / puzzles_file(split))
    log.info("Counting the votes of %s, %s", name, path)
    votes = count_votes(load_predictions(path / PREDICTIONS_FILE), tasks)
    return Evaluation(name, path, found, split, tasks, votes)


def require_same_tasks(a: Evaluation, b: Evaluation) -> None:
    """Raise UserError unless both are of the same test inputs, of which a solution is known."""
    remedy = "evaluate both on one dataset and split"
    if a.split != b.split:
        raise UserError(f"A is of the {a.split} split and B of the {b.split} split; {remedy}")
    inputs = [
        {(task.task_id, index): pair for task in each.tasks for index, pair in enumerate(task.test)}
        for each in (a, b)
    ]
    if different := set(inputs[0]) ^ set(inputs[1]):
        task_id, index = min(different)
        whose = "A" if (task_id, index) in inputs[0] else "B"
        raise UserError(
            f"test input {index} of task '{task_id}' is only in {whose} ({len(different)} such in "
            f"all): the test sets differ; {remedy}"
        )
    for (task_id, index), pair in inputs[0].items():
        grids = [[grid.tolist() for grid in p.grids()] for p in (pair, inputs[1][task_id, index])]
        if grids[0] != grids[1]:
            raise UserError(
                f"test input {index} of task '{task_id}' is another in A than in B; {remedy}"
            )
    if not a.shares(1):
        raise UserError(f"no solution is known for {a.dataset}, {a.split} split: nothing is scored")


def compare(a: Evaluation, b: Evaluation) -> dict[str, Any]:
    """What `compare.json` holds."""
    document: dict[str, Any] = {"A": {"path": str(a.path)}, "B": {"path": str(b.path)}}
    for k in range(1, ATTEMPTS + 1):
        of_a, of_b = a.shares(k), b.shares(k)
        for each, shares in ((a, of_a), (b, of_b)):
            mean = mean_share([*shares.values()])
            document[each.name][f"pass@{k}"] = mean.value
            document[each.name][f"pass@{k}_interval"] = [mean.low, mean.high]
        gained = [task for task in of_a if of_b[task] > of_a[task]]
        lost = [task for task in of_a if of_b[task] < of_a[task]]
        document[f"pass@{k}"] = {
            "difference": float(np.mean([of_b[task] - of_a[task] for task in of_a])),
            "gained": gained,
            "lost": lost,
            "same": len(of_a) - len(gained) - len(lost),
            "p": sign_test(len(gained), len(lost)),
        }
    of_a, of_b = a.shares(ATTEMPTS), b.shares(ATTEMPTS)
    document["tasks"] = {task: {"A": of_a[task], "B": of_b[task]} for task in of_a}
    return document


def sentences(document: Mapping[str, Any]) -> list[str]:
    """The comparison in words, for the terminal."""
    lines = []
    for name in ("A", "B"):
        each = document[name]
        shown = []
        for key in (DECIDING, "pass@1"):
            low, high = each[f"{key}_interval"]
            shown.append(f"{key} {each[key]:.3f} ({low:.3f}–{high:.3f})")
        lines.append(f"{name}: {', '.join(shown)}, {each['path']}")
    return [*lines, *(balance(key, document[key]) for key in (DECIDING, "pass@1"))]


def balance(key: str, found: Mapping[str, Any]) -> str:
    """What B gained and lost against A, and what chance says of it."""
    gained, lost = len(found["gained"]), len(found["lost"])
    chance = f"p = {found['p']:.3f}" if found["p"] >= LEAST_P else f"p < {LEAST_P}"
    return (
        f"{key}: B against A {100 * found['difference']:+.1f} points; {plural(gained, 'task')} "
        f"gained, {lost} lost, {found['same']} the same; sign test, two-sided: {chance}"
    )


# ---- the page ----


def page_of(a: Evaluation, b: Evaluation, document: Mapping[str, Any]) -> Page:
    """Both scores, the balance, and each test input with the attempts of both."""
    subsets = subsets_of(a.dataset, a.split, a.tasks)
    scores = [
        Score(f"{each.name}, pass@{k}", mean, f"over {plural(mean.total, 'task')}")
        for k in (ATTEMPTS, 1)
        for each in (a, b)
        for mean in [mean_share([*each.shares(k).values()])]
    ]
    attempts, by_votes = {}, {}
    for each in (a, b):
        attempts[each.name] = figures.pass_at_k(each.votes, each.tasks)
        curves = figures.by_variants(each.votes, each.tasks, (ATTEMPTS,))
        by_votes[f"{each.name}, {DECIDING}"] = curves[ATTEMPTS]
    test_set = " + ".join(sorted(set(subsets.values())))
    found = document[DECIDING]
    gained, lost = len(found["gained"]), len(found["lost"])
    return Page(
        title=f"B against A on {test_set}",
        summary=f"{plural(gained, 'task')} gained, {lost} lost, {found['same']} the same",
        gallery=Gallery(cases_of(a, b, subsets), OUTCOMES, FILTER_TITLES),
        scores=scores,
        verdict=[balance(key, document[key]) for key in (DECIDING, "pass@1")]
        + ["p is how likely a balance this uneven would be if neither were better."],
        facts={
            "A": str(a.path),
            "B": str(b.path),
        },
        charts=[*attempts_charts(attempts), *votes_charts(by_votes)],
    )


def cases_of(a: Evaluation, b: Evaluation, subsets: Mapping[str, str]) -> list[Case]:
    """Every test input, with what either answered."""
    cases = []
    for task in a.tasks:
        kinds = {key: kind.name_of(task) for key, kind in KINDS.items()}
        kinds |= {SUBSET: subsets[task.task_id]} if task.task_id in subsets else {}
        for index, pair in enumerate(task.test):
            key = (task.task_id, index)
            answers = tuple(answers_of(each.votes.get(key), each.name) for each in (a, b))
            solved = [outcome_of(each.attempts, pair.output) for each in answers]
            cases.append(
                Case(
                    task_id=task.task_id,
                    test_index=index,
                    demonstrations=task.train,
                    test_input=pair.input,
                    solution=pair.output,
                    answers=answers,
                    outcome=ended(solved),
                    kinds=kinds,
                )
            )
    return cases


def ended(solved: Sequence[str]) -> str:
    """How a test input ended, from how it did in A and B: a key of OUTCOMES."""
    if HIDDEN in solved:
        return HIDDEN
    by_a, by_b = (each != "unsolved" for each in solved)
    return {(False, True): GAINED, (True, False): LOST, (True, True): BOTH}.get(
        (by_a, by_b), NEITHER
    )


if __name__ == "__main__":
    main()
