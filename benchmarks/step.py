"""How fast is a training step, and what does each change bring?

    python -m benchmarks.step --data data/arc1concept-aug-1000 --batch-size 16
    python -m benchmarks.step --data data/arc1concept-aug-1000 arch=medium --batch-size 512

The first row is the plain way: whole canvas, eager, fp32, see `benchmarks.plain`. Each further row
makes one more change, down to the trainer's own path, cropped to the grids, and at last with
its diagnostics on. All rows see the same examples, drawn from the real mix, and are timed in turns,
batch by batch. A batch serves all supervision steps; "examples/s" counts it once for each, as
published figures do. Times are totals over the timed batches, as batches of windows differ in size.
"""

import argparse
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo.utils

from benchmarks.measure import (
    machine,
    matmul_peak,
    positive,
    step_flops,
    time_in_turns,
    write_results,
)
from benchmarks.plain import (
    DoubleLogits,
    SynchronousLoader,
    UniqueSignSGD,
    run_redrawing_targets,
)
from common.distributed import Ranks, start_ranks
from common.errors import CommandParser, UserError, exit_cleanly
from common.segments import Segment
from config.loading import load_config
from config.schema import TrainConfig
from models.supervision import DeepImprovementSupervision
from train_arc_tiny_corrupt import Run, batch_seed, build_run, open_batches, take_step
from training.metrics import MetricSums

SETTLED_BATCHES = 8
"""Batches of windows in a row that were trained on without compiling anything, before timing."""
PLAIN_OVERRIDES = ("train.precision=fp32", "train.compile=off", "train.attention=default")
PLAIN = frozenset({"targets", "loss", "waiting", "optimizer", "loading"})


class Change(NamedTuple):
    """One row: what is changed, as configuration, and which pieces are still plain."""

    name: str
    overrides: tuple[str, ...]
    plain: frozenset[str]


def changes(device: str) -> list[Change]:
    """The rows, each with all changes of the rows above it."""
    rows = [Change("plain", PLAIN_OVERRIDES, PLAIN)]

    def add(name: str, *overrides: str, done: str | None = None) -> None:
        before = rows[-1]
        rows.append(Change(name, (*before.overrides, *overrides), before.plain - {done}))

    add("+ targets once per batch", done="targets")
    add("+ loss in fp32, not float64", done="loss")
    add("+ no waiting: no unique, no reading", done="waiting")
    add("+ multi-tensor optimizer", done="optimizer")
    add("+ next batch made meanwhile", done="loading")
    add("+ bf16", "train.precision=bf16")
    add("+ compiled", "train.compile=on")
    if device == "cuda":
        add("+ fastest attention", "train.attention=auto")
    add("+ cropped to the grids", "data.canvas=window")
    if device == "cpu":
        # On short sequences alone: on the whole canvas the scores do not fit the cache.
        add("+ attention by two products", "train.attention=matmul")
    # What it costs to watch: the one row that should bring nothing and take little.
    add("and diagnostics on", "train.diagnostics=true")
    return rows


@dataclass
class Case:
    """A row at work."""

    change: Change
    run: Run
    supervision: DeepImprovementSupervision
    stream: Generator[list[Segment], None, None]
    metrics: MetricSums
    lengths: list[int] = field(default_factory=list)
    """Cells of each example that was trained on."""

    def train_on_next_batch(self) -> None:
        """What the trainer does for a batch."""
        batch = next(self.stream)
        self.lengths += [s.inputs.shape[1] for s in batch for _ in range(len(s.inputs))]
        redraws = "targets" in self.change.plain
        supervise = run_redrawing_targets if redraws else DeepImprovementSupervision.run
        for result in supervise(self.supervision, batch, batch_seed(self.run)):
            grad_norm = take_step(self.run, result)
            if "waiting" in self.change.plain:
                result.loss.item(), grad_norm.item()
                result.metrics["exact_accuracy"].mean().item()
            else:
                self.metrics.add(result, grad_norm)


def build_case(
    change: Change, arguments: argparse.Namespace, ranks: Ranks, first: Case | None
) -> Case:
    """The trainer's parts as configured, with the plain ones put in their place."""
    overrides = [
        f"data.path={arguments.data}",
        f"train.global_batch_size={arguments.batch_size}",
        "train.eval_every=null",
        *change.overrides,
        *arguments.overrides,
    ]
    config = load_config("train", TrainConfig, __doc__ or "", overrides)
    run = build_run(config, ranks, open_batches(config, ranks))
    plain, state, supervision = change.plain, run.state, run.supervision
    if not isinstance(supervision, DeepImprovementSupervision):
        raise UserError("supervision.halting=true: the rows are of the loop without halting")
    if first is not None:  # One table for all: it may be larger than everything else together.
        table = first.run.state.puzzle_embedding
        state.puzzle_embedding = supervision.puzzle_embedding = table
        run.puzzle_optimizer.embedding = table
    if "loss" in plain:
        supervision.network = DoubleLogits(state.model)
    if "waiting" in plain:
        decay = config.optim.puzzle_weight_decay
        run.puzzle_optimizer = UniqueSignSGD(state.puzzle_embedding, decay, ranks)
    if "optimizer" in plain:
        state.optimizer.param_groups[0].update(foreach=False, fused=False)
    if "loading" in plain:
        run.loader = SynchronousLoader(run.loader.batches, config.data, ranks.device)
    metrics = MetricSums(config.arch.num_supervision_steps, ranks.device)
    return Case(change, run, supervision, iter(run.loader), metrics)


def warm_up(case: Case, batches: int) -> None:
    """Train on some batches, then go back to the first.

    Where windows are compiled, until so many batches have needed no new graph: they come in many
    shapes, some of them rare, and what is compiled later would count as work.
    """
    needed = SETTLED_BATCHES if case.run.config.data.canvas == "window" else batches
    graphs = torch._dynamo.utils.counters["stats"]
    settled = 0
    while settled < needed:
        before = graphs["unique_graphs"]
        case.train_on_next_batch()
        settled = settled + 1 if graphs["unique_graphs"] == before else 0
    case.stream.close()
    case.run.loader.position = (0, 0)
    case.stream = iter(case.run.loader)
    case.lengths.clear()


def rows(cases: list[Case], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all cases in turns and relate them to the first and to the one before."""
    device = cases[0].run.ranks.device
    for case in cases:
        warm_up(case, arguments.warmup)
    works = {case.change.name: case.train_on_next_batch for case in cases}
    seconds = [sum(times) for times in time_in_turns(works, arguments.repeats, device).values()]
    peaks = {dtype: matmul_peak(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    table = []
    before = seconds[0]
    for case, took in zip(cases, seconds, strict=True):
        arch = case.run.config.arch
        steps = arguments.repeats * arch.num_supervision_steps
        flops = step_flops(arch, case.lengths) * arch.num_supervision_steps / took
        table.append(
            {
                "change": case.change.name,
                "ms per step": 1e3 * took / steps,
                "examples/s": arguments.batch_size * steps / took,
                "times plain": seconds[0] / took,
                "times the row before": before / took,
                "cells per example": sum(case.lengths) / len(case.lengths),
                "model GFLOP/s": flops / 1e9,
                "share of matmul peak": flops / peaks[case.run.state.model.compute_dtype],
            }
        )
        before = took
    return table


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.step", description=__doc__)
    add = parser.add_argument
    add("--data", required=True, type=Path, help="dataset folder, of either layout")
    add("--batch-size", type=positive, default=16)
    add("--warmup", type=positive, default=1,
        help="batches before the clock runs, at least; more of windows")  # fmt: skip
    add("--repeats", type=positive, default=8, help="timed batches")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--output", type=Path, default=Path("benchmark_output/step.json"))
    add("overrides", nargs="*", help="the trainer's key=value, for all rows")
    return parser.parse_intermixed_args()


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    with start_ranks(arguments.device) as ranks:
        cases: list[Case] = []
        for change in changes(ranks.device.type):
            cases.append(build_case(change, arguments, ranks, cases[0] if cases else None))
        facts = {**machine(ranks.device), "arch": cases[0].run.config.arch.name}
        write_results(arguments.output, facts, rows(cases, arguments))


if __name__ == "__main__":
    main()
