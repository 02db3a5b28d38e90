"""How fast are predictions, and how many of them does voting need?

    python -m benchmarks.evaluate --checkpoint runs/compact-seed0 --batch-size 8
    python -m benchmarks.evaluate --checkpoint RUN --predictions RUN/evaluation_STEP/predictions.npz
    python -m benchmarks.evaluate --predictions predictions.npz --data data/arc1concept-aug-1000

Part A predicts one random sample of variants in several ways, timed in turns, as `evaluate.py`
does. The first row is the plain way: whole canvas, eager, fp32. "Real" is the share of the cells
computed that belong to the sample: the rest fills up the last batch of each shape, of which a
sample has many and a whole test set few. So compare ways at a batch size well below the sample.

Part B replays voting that stops early on predictions of all variants, over random orders of each
test input's variants. The first row is full voting. "Unchanged" is the share of (test input, order)
in which the first answer, or the set of the first two, is that of full voting with its ties; pass@k
are means over the orders.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
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

import evaluate
from benchmarks.measure import Results, machine, time_in_turns, write_together
from common.distributed import Ranks, start_ranks
from common.errors import CommandParser, UserError, exit_cleanly
from config.loading import load_config
from config.schema import EvaluateConfig
from dataset.storage import TEST_PUZZLES_FILE
from dataset.tasks import Grid, Task, load_tasks
from dataset.windows import areas, lengths_for
from evaluation.predict import Predictor, RankResult
from evaluation.predictions import PREDICTIONS_FILE, Predictions, load_predictions
from evaluation.rounds import VARIANTS_A_ROUND, answer_keys
from evaluation.scoring import score, solution_place
from evaluation.stopping import MAX_PLACES, ExactRule, RunningVote, SequentialRule, StoppingRule
from evaluation.test_set import EvaluationSet, Rows
from evaluation.voting import Ranking, TestInput, count_votes, rank_answers
from models.supervision import ImprovementSteps
from training.run_folder import find_checkpoint

log = logging.getLogger(__name__)


# Part A: how fast are predictions?


@dataclass(frozen=True)
class Way:
    """A way to predict: one row."""

    name: str
    canvas: str
    compiled: bool
    precision: str = "fp32"


PLAIN = Way("plain: whole canvas, eager, fp32", "whole", compiled=False)
WAYS = (
    PLAIN,
    Way("whole canvas, compiled", "whole", compiled=True),
    Way("windows, eager", "window", compiled=False),
    Way("windows, compiled", "window", compiled=True),
)


class Models:
    """The checkpoint's model as `evaluate.py` loads it, once for each precision and compiler."""

    def __init__(
        self,
        overrides: Sequence[str],
        path: Path,
        test_set: EvaluationSet,
        data: Path,
        ranks: Ranks,
    ) -> None:
        self.overrides = overrides
        self.path = path
        self.test_set = test_set
        self.data = data
        self.ranks = ranks
        self._loaded: dict[tuple[bool, str], ImprovementSteps] = {}
        self.facts: dict[str, Any] = {}

    def steps(self, way: Way) -> ImprovementSteps:
        """The model that a way predicts with."""
        key = way.compiled, way.precision
        if key not in self._loaded:
            switch = "on" if way.compiled else "off"
            fixed = (f"compile={switch}", f"precision={way.precision}")
            config = load_evaluate_config([*self.overrides, *fixed])
            steps, self.facts = evaluate.load_model(
                config, self.path, self.data, self.test_set, self.ranks
            )
            # One table for all: it may be larger than everything else together.
            for other in self._loaded.values():
                steps.puzzle_embedding = other.puzzle_embedding
            self._loaded[key] = steps
        return self._loaded[key]


class TimedWay:
    """A way at work on a sample."""

    def __init__(self, way: Way, models: Models, sample: Rows, batch_size: int) -> None:
        self.way = way
        self.sample = sample
        self.predictor = Predictor(models.steps(way), models.test_set, batch_size, way.canvas)
        self.result: RankResult | None = None

    def warm_up(self) -> None:
        """Predict a row of each shape: compiles what is to be compiled."""
        _, first = np.unique(self._lengths(), return_index=True)
        self.predictor.predict(self.sample[first])

    def run(self) -> None:
        self.result = self.predictor.predict(self.sample)

    def row(self, seconds: float, plain: "TimedWay", plain_seconds: float) -> dict[str, Any]:
        """The table's row."""
        assert self.result is not None and plain.result is not None, "they ran"
        accuracy, count = self.result.accuracy, len(self.sample)
        exact, cell = (
            float(sums[-1]) / accuracy.num_scored if accuracy.num_scored else None
            for sums in (accuracy.exact, accuracy.cell)
        )
        answers, expected = (
            answer_keys(result.predictions) for result in (self.result, plain.result)
        )
        same = np.mean([a == b for a, b in zip(answers, expected, strict=True)])
        return {
            "way": self.way.name,
            "variants/s": count / seconds,
            "times plain": plain_seconds / seconds,
            "exact accuracy": exact,
            "cell accuracy": cell,
            "same answer as plain": float(same),
            "predicted again": self.result.whole_canvas_again / count,
            "real": self._real_share(self.result.whole_canvas_again),
        }

    def _lengths(self) -> npt.NDArray[np.int64]:
        """Cells [N] that each row of the sample is predicted from."""
        cells = self.predictor.num_cells
        if self.way.canvas == "whole":
            return np.full(len(self.sample), cells)
        ladder = lengths_for(cells)
        boxes = self.predictor.test_set.boxes[self.sample]
        return ladder[np.searchsorted(ladder, areas(boxes))]

    def _real_share(self, again: int) -> float:
        """Cells of the sample's rows among those of full batches."""
        cells = self.predictor.num_cells
        lengths, counts = np.unique(self._lengths(), return_counts=True)
        lengths, counts = np.append(lengths, cells), np.append(counts, again)
        sizes = self.predictor.batch_size * cells // lengths
        return float((lengths * counts).sum() / (lengths * -(-counts // sizes) * sizes).sum())


def prediction_rows(
    models: Models, sample: Rows, batch_size: int, repeats: int, compiled: bool
) -> tuple[list[dict[str, Any]], Way]:
    """Part A's rows, and the fastest way."""
    device = models.ranks.device

    def time_ways(ways: Sequence[TimedWay], repeats: int) -> dict[str, float]:
        works: dict[str, Callable[[], Any]] = {timed.way.name: timed.run for timed in ways}
        return time_in_turns(works, 0, repeats, device)

    def prepare(way: Way) -> TimedWay:
        log.info("preparing: %s", way.name)
        timed = TimedWay(way, models, sample, batch_size)
        timed.warm_up()
        return timed

    ways = [prepare(way) for way in WAYS if compiled or not way.compiled]
    seconds = time_ways(ways, 1)
    fastest = min(ways, key=lambda timed: seconds[timed.way.name]).way
    name = f"{fastest.name.removeprefix('plain: ').removesuffix(', fp32')}, bf16"
    ways.append(prepare(Way(name, fastest.canvas, fastest.compiled, "bf16")))
    seconds = time_ways(ways, repeats)
    plain = ways[0]
    table = [timed.row(seconds[timed.way.name], plain, seconds[plain.way.name]) for timed in ways]
    return table, min(ways, key=lambda timed: seconds[timed.way.name]).way


def load_evaluate_config(overrides: Sequence[str]) -> EvaluateConfig:
    return load_config("evaluate", EvaluateConfig, __doc__ or "", list(overrides))


# Part B: how many predictions does voting need?


@dataclass(frozen=True)
class Stopping:
    """A rule, and how often it is asked: one row."""

    name: str
    rule: StoppingRule
    places: int
    error: float | None
    round_size: int


def stoppings(errors: Sequence[float], round_sizes: Sequence[int]) -> list[Stopping]:
    """All rows but the first."""
    found = []
    for round_size in round_sizes:
        for places in range(MAX_PLACES, 0, -1):
            found.append(Stopping("exact", ExactRule(places), places, None, round_size))
            for error in errors:
                rule = SequentialRule(error, places)
                found.append(Stopping("sequential", rule, places, error, round_size))
    return found


class Replay(NamedTuple):
    """What happened to one test input; K stoppings, R orders."""

    variants: int
    spent: npt.NDArray[np.int64]
    """[K, R]"""
    first_unchanged: npt.NDArray[np.bool_]
    """[K, R]"""
    set_unchanged: npt.NDArray[np.bool_]
    """[K, R]"""
    place: npt.NDArray[np.float64]
    """[K, R] of the solution among the first two answers; infinite if it is not there."""


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


def replay(
    test_input: tuple[Predictions, Grid | None], cases: Sequence[Stopping], orders: int, seed: int
) -> Replay:
    """Vote on one test input in random orders of its variants."""
    predictions, solution = test_input
    rng = np.random.default_rng([seed, *str(predictions.task_id[0]).encode()])
    answers = answer_keys(predictions)
    total = len(answers)
    full = _first_two(rank_answers(predictions))
    shape = (len(cases), orders)
    result = Replay(
        total,
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=bool),
        np.zeros(shape, dtype=bool),
        np.full(shape, np.inf),
    )
    for r in range(orders):
        order = rng.permutation(total)
        shuffled = [answers[row] for row in order]
        rankings = {}
        for round_size in {case.round_size for case in cases}:
            asked = [k for k, case in enumerate(cases) if case.round_size == round_size]
            spent = spend(shuffled, [cases[k].rule for k in asked], round_size)
            result.spent[asked, r] = spent
            for k, count in zip(asked, spent, strict=True):
                if count not in rankings:
                    rankings[count] = _first_two(rank_answers(predictions.select(order[:count])))
                stopped = rankings[count]
                keys, full_keys = _keys(stopped), _keys(full)
                result.first_unchanged[k, r] = keys[:1] == full_keys[:1]
                result.set_unchanged[k, r] = set(keys) == set(full_keys)
                if solution is not None:
                    result.place[k, r] = solution_place(stopped, solution)
    return result


def _first_two(ranking: Ranking) -> Ranking:
    grids, votes, confidences = ranking
    return Ranking(grids[:MAX_PLACES], votes[:MAX_PLACES], confidences[:MAX_PLACES])


def _keys(ranking: Ranking) -> list[tuple[object, ...]]:
    return [(grid.shape, grid.tobytes()) for grid in ranking.grids]


def voting_rows(
    predictions: Predictions,
    tasks: Sequence[Task],
    cases: Sequence[Stopping],
    orders: int,
    workers: int,
) -> list[dict[str, Any]]:
    """Part B's rows."""
    scores = score(count_votes(predictions), tasks)
    solutions = {(t.task_id, i): pair.output for t in tasks for i, pair in enumerate(t.test)}
    named = by_test_input(predictions)
    if unknown := set(named) - set(solutions):
        raise UserError(
            f"--predictions: task '{min(unknown)[0]}' is not in the test set: --data must name the "
            f"dataset that was predicted"
        )
    work = [(predictions.select(rows), solutions[key]) for key, rows in named.items()]
    replays = dict(zip(named, _map(partial(replay, cases=cases, orders=orders, seed=0), work,
                                   workers), strict=True))  # fmt: skip
    total = sum(result.variants for result in replays.values())
    table: list[dict[str, Any]] = [
        {
            "voting": "full",
            "places": None,
            "error": None,
            "round": None,
            "passes": 1.0,
            "first two unchanged": 1.0,
            "first unchanged": 1.0,
            **{f"pass@{k}": scores.over_tasks[k] if scores else None for k in (1, 2)},
        }
    ]
    for k, case in enumerate(cases):
        of_case = list(replays.values())
        table.append(
            {
                "voting": case.name,
                "places": case.places,
                "error": case.error,
                "round": case.round_size,
                "passes": float(sum(one.spent[k].mean() for one in of_case) / total),
                "first two unchanged": float(np.mean([one.set_unchanged[k] for one in of_case])),
                "first unchanged": float(np.mean([one.first_unchanged[k] for one in of_case])),
                **{
                    f"pass@{p}": mean_pass(replays, tasks, k, p) if scores else None for p in (1, 2)
                },
            }
        )
    return table


def mean_pass(replays: dict[TestInput, Replay], tasks: Sequence[Task], case: int, k: int) -> float:
    """pass@k over tasks, as `evaluation.scoring` has it, mean over the orders."""
    of_tasks = []
    for task in tasks:
        known = [i for i, pair in enumerate(task.test) if pair.output is not None]
        solved = [
            float((replays[task.task_id, i].place[case] <= k).mean())
            if (task.task_id, i) in replays
            else 0.0
            for i in known
        ]
        if solved:
            of_tasks.append(np.mean(solved))
    return float(np.mean(of_tasks))


def by_test_input(predictions: Predictions) -> dict[TestInput, Rows]:
    """The rows of each test input."""
    keys = list(zip(predictions.task_id.tolist(), predictions.test_index.tolist(), strict=True))
    rows: dict[TestInput, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return {key: np.array(rows[key]) for key in sorted(rows)}


def _map(function: Callable[[Any], Replay], work: list[Any], workers: int) -> Iterator[Replay]:
    if workers == 1:
        yield from tqdm(map(function, work), "voting", len(work))
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as executor:
        yield from tqdm(executor.map(function, work), "voting", len(work))


# The command


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m benchmarks.evaluate",
        description="Measure predictions and voting that stops.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="run folder or checkpoint; without it part A is left out")
    add("--predictions", type=Path, help="predictions.npz of evaluate.py, of all variants, for "
        "part B; without it they are made first")  # fmt: skip
    add("--data", type=Path, help="dataset; default: the one that was trained on or predicted")
    add("--sample", type=int, default=512, help="variants that part A predicts")
    add("--batch-size", type=int, default=64, help="as eval.batch_size")
    add("--repeats", type=int, default=3, help="timed predictions of the sample in each way")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--no-compile", action="store_true", help="leave out the compiled ways")
    add("--error", type=float, nargs="+", default=[0.01, 0.05],
        help="error probabilities of the sequential rule")  # fmt: skip
    add("--round-sizes", type=int, nargs="+", default=[VARIANTS_A_ROUND, 8],
        help="variants between two looks at the votes")  # fmt: skip
    add("--orders", type=int, default=20, help="random orders of each test input's variants")
    add("--workers", type=int, help="processes for part B; default: the cores here")
    add("--output", type=Path, default=Path("benchmark_output/evaluate.json"))
    add("--tiny", action="store_true", help="16 variants, once, 2 orders: shows that it works")
    add("overrides", nargs="*", help="evaluate.py's key=value, e.g. eval.max_variants=64")
    arguments = parser.parse_intermixed_args()
    if arguments.tiny:
        arguments.sample, arguments.batch_size, arguments.repeats = 16, 8, 1
        arguments.orders = 2
    if arguments.checkpoint is None and arguments.predictions is None:
        raise UserError("give --checkpoint RUN, --predictions FILE, or both")
    for name in ("sample", "batch_size", "repeats", "orders"):
        if getattr(arguments, name) < 1:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(arguments, name)}: must be 1 or more")
    if bad := [error for error in arguments.error if not 0 < error < 1]:
        raise UserError(f"--error {bad[0]}: must be between 0 and 1")
    if bad := [size for size in arguments.round_sizes if size < 1]:
        raise UserError(f"--round-sizes {bad[0]}: must be 1 or more")
    return arguments


def prediction_part(
    arguments: argparse.Namespace, command: str, ranks: Ranks
) -> tuple[Results, Callable[[], Predictions]]:
    """Part A; and what predicts all variants in the fastest way, for part B."""
    overrides = [f"checkpoint={arguments.checkpoint}", *arguments.overrides]
    config = load_evaluate_config(overrides)
    test_set = EvaluationSet(arguments.data, config.eval.max_variants)
    path = find_checkpoint(arguments.checkpoint, "--checkpoint")
    models = Models(overrides, path, test_set, arguments.data, ranks)
    count = min(arguments.sample, len(test_set))
    sample = np.sort(np.random.default_rng(0).choice(len(test_set), count, replace=False))
    table, fastest = prediction_rows(
        models, sample, arguments.batch_size, arguments.repeats, not arguments.no_compile
    )
    about = {**machine(ranks.device), **models.facts}
    about |= {"sample": count, "variants": len(test_set), "batch_size": arguments.batch_size}
    about["fastest"] = fastest.name

    def predict_all() -> Predictions:
        log.info("predicting all %d variants: %s", len(test_set), fastest.name)
        steps = models.steps(fastest)
        predictor = Predictor(steps, test_set, arguments.batch_size, fastest.canvas)
        return predictor.predict(
            np.arange(len(test_set)), lambda batches, total: tqdm(batches, "predicting", total)
        ).predictions

    return Results("How fast are predictions?", command, about, table), predict_all


def voting_part(
    arguments: argparse.Namespace, command: str, predictions: Predictions, source: str
) -> Results:
    """Part B."""
    facts = machine(torch.device("cpu"))
    tasks = load_tasks(arguments.data / TEST_PUZZLES_FILE)
    cases = stoppings(arguments.error, arguments.round_sizes)
    workers = arguments.workers or facts["cores"] or 1
    table = voting_rows(predictions, tasks, cases, arguments.orders, workers)
    about = {**facts, "predictions": source, "variants": len(predictions)}
    about |= {"test inputs": len(by_test_input(predictions)), "orders": arguments.orders}
    return Results("How many predictions does voting need?", command, about, table)


def find_data(arguments: argparse.Namespace) -> Path:
    """The dataset that is named, or that was trained on, or predicted."""
    if arguments.data is not None:
        return Path(arguments.data)
    if arguments.checkpoint is not None:
        return evaluate.trained_on(find_checkpoint(arguments.checkpoint, "--checkpoint"))
    return evaluate.recorded_data_path(arguments.predictions)


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    arguments.data = find_data(arguments)
    command = f"python -m benchmarks.evaluate {' '.join(sys.argv[1:])}"
    parts: list[Results] = []
    predictions, source = None, str(arguments.predictions)
    if arguments.predictions is not None:  # First, so that a bad file shows at once.
        predictions = load_predictions(arguments.predictions)
    if arguments.checkpoint is not None:
        # Models of two precisions share one cache of graphs, where `evaluate.py` has one model; and
        # what is compiled no more, as the limit is reached, must not be timed as if it were.
        graphs = torch._dynamo.config.patch(recompile_limit=32, fail_on_recompile_limit_hit=True)
        with graphs, start_ranks(arguments.device) as ranks:
            part, predict_all = prediction_part(arguments, command, ranks)
            parts.append(part)
            if predictions is None:
                predictions = predict_all()
                path = arguments.output.with_name(f"{arguments.output.stem}_{PREDICTIONS_FILE}")
                path.parent.mkdir(parents=True, exist_ok=True)
                predictions.save(path)
                source = f"{path}, made just now in the fastest way"
    assert predictions is not None, "read or made"
    parts.append(voting_part(arguments, command, predictions, source))
    write_together(arguments.output, parts)


if __name__ == "__main__":
    main()
