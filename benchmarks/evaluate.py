"""How fast are predictions?

    python -m benchmarks.evaluate --checkpoint runs/compact-seed0 --batch-size 8

Predicts one random sample of the test set's variants in several ways, timed in turns, with the
model and the `Predictor` of `evaluate.py`. The first row is the plain way: whole canvas, eager,
fp32. The last but one is the row before it in bf16, the last one also measures the diagnostics.

"Same answer as plain" is the share of variants whose answer is the first row's, "predicted again"
that of answers which outgrew their window. "Real" is the share of the cells computed that belong to
the sample: the rest fills up the last batch of each shape, of which a sample has many and a whole
test set few. So compare ways at a batch size well below the sample.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import evaluate
from benchmarks.measure import Results, machine, positive, time_in_turns
from common.distributed import Ranks, start_ranks
from common.errors import CommandParser, exit_cleanly
from config.loading import load_config
from config.schema import EvaluateConfig
from evaluation.predict import Predictor
from evaluation.results import RankResult
from evaluation.rounds import answer_keys
from evaluation.test_set import EvaluationSet, Rows
from models.steps import ImprovementSteps
from training.run_folder import find_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """A way to predict: one row."""

    canvas: str
    compiled: bool
    precision: str = "fp32"
    diagnostics: bool = False

    @property
    def name(self) -> str:
        cells = "whole canvas" if self.canvas == "whole" else "windows"
        more = ", diagnostics" if self.diagnostics else ""
        return f"{cells}, {'compiled' if self.compiled else 'eager'}, {self.precision}{more}"


def ways(compiled: bool) -> list[Way]:
    """The rows, the plain one first; `compiled`: those with the compiler too."""
    compilers = (False, True) if compiled else (False,)
    in_fp32 = [Way(canvas, compiler) for canvas in ("whole", "window") for compiler in compilers]
    in_bf16 = replace(in_fp32[-1], precision="bf16")
    return [*in_fp32, in_bf16, replace(in_bf16, diagnostics=True)]


class CountingPredictor(Predictor):
    """A predictor that counts the cells that it computes, and those of them that were asked for."""

    computed = real = 0

    def _prepare(self, rows: Rows, length: int) -> Any:
        segment, cells = super()._prepare(rows, length)
        self.computed += len(segment.rows) * length
        self.real += len(rows) * length
        return segment, cells


def load_models(
    ways: Sequence[Way],
    overrides: Sequence[str],
    path: Path,
    data: Path,
    test_set: EvaluationSet,
    ranks: Ranks,
) -> tuple[dict[Way, ImprovementSteps], dict[str, Any]]:
    """The checkpoint's model for each way, as `evaluate.py` loads it, and the facts about it."""
    models: dict[Way, ImprovementSteps] = {}
    facts: dict[str, Any] = {}
    for way in ways:
        either = _loaded_as(way)
        if either not in models:
            switch = "on" if way.compiled else "off"
            fixed = (f"compile={switch}", f"precision={way.precision}")
            config = load_config("evaluate", EvaluateConfig, __doc__ or "", [*overrides, *fixed])
            steps, facts = evaluate.load_model(config, config.eval, path, data, test_set, ranks)
            # One table for all: it may be larger than everything else together.
            for other in models.values():
                steps.puzzle_embedding = other.puzzle_embedding
            models[either] = steps
    return {way: models[_loaded_as(way)] for way in ways}, facts


def _loaded_as(way: Way) -> Way:
    """The way without what a model need not be loaded anew for."""
    return replace(way, canvas="either", diagnostics=False)


def rows(
    predictors: dict[Way, CountingPredictor], sample: Rows, repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """Time all ways in turns and relate them to the first."""
    results: dict[Way, RankResult] = {}
    for way, predictor in predictors.items():
        log.info("warming up: %s", way.name)
        # With the whole sample, so that whatever is to be compiled is.
        results[way] = predictor.predict(sample)
    works = {way: partial(predictor.predict, sample) for way, predictor in predictors.items()}
    seconds = time_in_turns(works, 0, repeats, device)
    plain = next(iter(predictors))
    plain_answers = answer_keys(results[plain].predictions)
    table = []
    for way, predictor in predictors.items():
        answers, figures = answer_keys(results[way].predictions), results[way].figures
        same = sum(a == b for a, b in zip(answers, plain_answers, strict=True))
        means = figures.means() if figures.num_scored else {}
        table.append(
            {
                "way": way.name,
                "variants/s": len(sample) / seconds[way],
                "times plain": seconds[plain] / seconds[way],
                "exact accuracy": means.get("exact_accuracy"),
                "cell accuracy": means.get("cell_accuracy"),
                "same answer as plain": same / len(sample),
                "predicted again": results[way].whole_canvas_again / len(sample),
                "real": predictor.real / predictor.computed,
            }
        )
    return table


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.evaluate", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="run folder or checkpoint")
    add("--data", type=Path, help="dataset; default: the one that was trained on")
    add("--sample", type=positive, default=512, help="variants to predict")
    add("--batch-size", type=positive, default=64, help="as eval.batch_size")
    add("--repeats", type=positive, default=3, help="timed predictions of the sample in each way")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--no-compile", action="store_true", help="leave out the compiled ways")
    add("--output", type=Path, default=Path("benchmark_output/evaluate.json"))
    add("--tiny", action="store_true", help="16 variants, once: shows that it works")
    add("overrides", nargs="*", help="evaluate.py's key=value, e.g. eval.max_variants=64")
    arguments = parser.parse_intermixed_args()
    if arguments.tiny:
        arguments.sample, arguments.batch_size, arguments.repeats = 16, 8, 1
    return arguments


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    path = find_checkpoint(arguments.checkpoint, "--checkpoint")
    data = arguments.data or evaluate.trained_on(path)
    overrides = [f"checkpoint={path}", *arguments.overrides]
    config = load_config("evaluate", EvaluateConfig, __doc__ or "", overrides)
    test_set = EvaluationSet(data, config.eval.max_variants)
    count = min(arguments.sample, len(test_set))
    sample = np.sort(np.random.default_rng(0).choice(len(test_set), count, replace=False))
    # A graph that is compiled no more, as the limit is reached, must not be timed as if it were.
    strictly = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
    with strictly, start_ranks(arguments.device) as ranks:
        chosen = ways(not arguments.no_compile)
        models, facts = load_models(chosen, overrides, path, data, test_set, ranks)
        predictors = {
            way: CountingPredictor(
                models[way], test_set, arguments.batch_size, way.canvas, way.diagnostics
            )
            for way in chosen
        }
        facts = {**machine(ranks.device), **facts, "sample": count, "variants": len(test_set)}
        Results(
            question="How fast are predictions?",
            command=f"python -m benchmarks.evaluate {' '.join(sys.argv[1:])}",
            machine={**facts, "batch_size": arguments.batch_size},
            rows=rows(predictors, sample, arguments.repeats, ranks.device),
        ).write(arguments.output)


if __name__ == "__main__":
    main()
