"""How fast are predictions?

    python -m benchmarks.evaluate --checkpoint runs/compact-seed0 --batch-size 8

Predicts one random sample of the test set's variants in several ways, timed in turns, with the
model and the `Predictor` of `evaluate.py`. The first row is the plain way: whole canvas, eager,
fp32. The last but one is the row before it in bf16, the last one also measures the diagnostics.

"Same answer as plain" is the share of variants whose answer is the first row's, "predicted again"
that of answers which outgrew their window. Copies of an example fill up the last batch of each
shape, of which a sample has many and a whole test set few: so compare ways at a batch size well
below the sample.
"""

import argparse
import logging
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import machine, positive, time_in_turns, write_results
from common.distributed import Ranks, start_ranks
from common.errors import CommandParser, exit_cleanly
from config.loading import load_config
from config.schema import EvaluateConfig, TrainConfig
from dataset.windows import typical_length
from evaluation.metrics import mean_metrics
from evaluation.predict import Answers, Predictor
from evaluation.predictions import predictions_of
from evaluation.test_set import ArcTestSet, Rows, open_test_set
from evaluation.voting import invert_canvases
from models.steps import TrainedModel
from training.checkpoints import load_trained, stored_config
from training.run_folder import find_checkpoint

log = logging.getLogger(__name__)


class Way(NamedTuple):
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
    in_bf16 = in_fp32[-1]._replace(precision="bf16")
    return [*in_fp32, in_bf16, in_bf16._replace(diagnostics=True)]


def build_predictors(
    ways: Sequence[Way], path: Path, test_set: ArcTestSet, config: EvaluateConfig, ranks: Ranks
) -> tuple[dict[Way, Predictor], dict[str, Any]]:
    """What predicts with the checkpoint `path` in each way, and the facts about it."""
    trained_as = stored_config(path, TrainConfig)
    models: dict[tuple[bool, str], TrainedModel] = {}
    predictors: dict[Way, Predictor] = {}
    for way in ways:
        key = way.compiled, way.precision
        if key not in models:
            switch = "on" if way.compiled else "off"
            models[key], facts = load_trained(
                path,
                trained_as.arch,
                trained_as.supervision,
                test_set.fingerprint,
                config.eval.weights,
                config.model_copy(update={"compile": switch, "precision": way.precision}),
                ranks,
                typical_length(way.canvas, test_set.split.metadata.seq_len),
            )
            # One table for all: it may be larger than everything else together.
            models[key].puzzle_embedding = next(iter(models.values())).puzzle_embedding
        asked = {"diagnostics": way.diagnostics, "canvas": way.canvas}
        options = config.eval.model_copy(update=asked)
        predictors[way] = Predictor(models[key], test_set, options)
    return predictors, facts


def rows(
    predictors: dict[Way, Predictor], test_set: ArcTestSet, sample: Rows, repeats: int
) -> list[dict[str, Any]]:
    """Time all ways in turns and relate them to the first."""
    answered: dict[Way, Answers] = {}
    for way, predictor in predictors.items():
        log.info("warming up: %s", way.name)
        # With the whole sample, so that whatever is to be compiled is.
        answered[way] = predictor.answer(sample)
    works = {way: partial(predictor.answer, sample) for way, predictor in predictors.items()}
    plain = next(iter(predictors))
    timed = time_in_turns(works, repeats, predictors[plain].trained.device)
    seconds = {way: statistics.median(times) for way, times in timed.items()}
    plain_squares = squares(test_set, answered[plain])
    table = []
    for way, answers in answered.items():
        metrics = mean_metrics(answers.metrics, answers.metric_names)
        same = squares(test_set, answers) == plain_squares
        table.append(
            {
                "way": way.name,
                "variants/s": len(sample) / seconds[way],
                "times plain": seconds[plain] / seconds[way],
                "exact accuracy": metrics.get("exact_accuracy"),
                "cell accuracy": metrics.get("cell_accuracy"),
                "same answer as plain": float(same.all(axis=(1, 2)).mean()),
                "predicted again": answers.whole_canvas_again / len(sample),
            }
        )
    return table


def squares(test_set: ArcTestSet, answers: Answers) -> npt.NDArray[np.uint8]:
    """The answers [n, side, side] as they would vote."""
    predictions = predictions_of(test_set, answers)
    return invert_canvases(predictions.canvas, predictions.dihedral, predictions.colour_permutation)


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.evaluate", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="run folder or checkpoint")
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
    given = [f"checkpoint={path}", f"eval.batch_size={arguments.batch_size}", *arguments.overrides]
    config = load_config("evaluate", EvaluateConfig, __doc__ or "", given)
    data_path = config.data.resolved(stored_config(path, TrainConfig))
    test_set = open_test_set(data_path, config.eval.max_variants, "window")
    assert isinstance(test_set, ArcTestSet), "boards have no windows"
    count = min(arguments.sample, len(test_set))
    sample = np.sort(np.random.default_rng(0).choice(len(test_set), count, replace=False))
    # A graph that is compiled no more, as the limit is reached, must not be timed as if it were.
    strictly = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
    with strictly, start_ranks(arguments.device) as ranks:
        chosen = ways(not arguments.no_compile)
        predictors, facts = build_predictors(chosen, path, test_set, config, ranks)
        sizes = {"sample": count, "variants": len(test_set), "batch_size": config.eval.batch_size}
        table = rows(predictors, test_set, sample, arguments.repeats)
        write_results(arguments.output, {**machine(ranks.device), **facts, **sizes}, table)


if __name__ == "__main__":
    main()
