"""How fast is a training step, and what does each change bring?

    python -m benchmarks.step --data data/arc1concept-aug-1000 --batch-size 16
    python -m benchmarks.step --data data/arc1concept-aug-1000 arch=medium --batch-size 512

The first row is the plain way: whole canvas, eager, fp32, see `benchmarks.plain`. Each further row
makes one more change, down to the trainer's own path with cells of PAD dropped, and at last with
its diagnostics on. All rows see the same examples, drawn from the real mix, and are timed in turns,
batch by batch. A batch serves all supervision steps; "examples/s" counts it once for each, as
published figures do. Times are totals over the timed batches, as batches of windows differ in size.
"""

import argparse
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.utils
from torch import nn

from benchmarks.measure import (
    ActivationMemory,
    Results,
    machine,
    matmul_peak,
    positive,
    seconds_in_turns,
    step_flops,
)
from benchmarks.plain import DoubleLogits, RedrawnTargets, SynchronousLoader, UniqueSignSGD
from common.distributed import Ranks, start_ranks
from common.errors import CommandParser, UserError, exit_cleanly
from common.segments import Segment
from config.loading import load_config
from config.schema import TrainConfig
from dataset.batches import TrainingBatches
from dataset.rules import solution_tokens
from dataset.splits import open_split
from models.puzzle_embedding import PuzzleEmbedding
from models.supervision import DeepImprovementSupervision
from train_arc_tiny_corrupt import Run, batch_seed, build_run, take_step
from training.metrics import MetricSums

SETTLED_BATCHES = 8
"""Batches of windows in a row that were trained on without compiling anything, before timing."""
PLAIN_OVERRIDES = ("train.precision=fp32", "train.compile=off", "train.attention=default")
PLAIN = frozenset({"targets", "loss", "waiting", "optimizer", "loading"})


@dataclass(frozen=True)
class Change:
    """One row: what is changed, as configuration, and which pieces are still plain."""

    name: str
    overrides: tuple[str, ...] = ()
    plain: frozenset[str] = frozenset()


def changes(device: str) -> list[Change]:
    """The rows, each with all changes of the rows above it."""
    rows = [Change("plain", PLAIN_OVERRIDES, PLAIN)]

    def add(name: str, *overrides: str, done: str | None = None) -> None:
        before = rows[-1]
        rows.append(Change(name, (*before.overrides, *overrides), before.plain - {done}))

    add("+ targets once a batch", done="targets")
    add("+ loss in fp32, not float64", done="loss")
    add("+ no waiting: no unique, no reading", done="waiting")
    add("+ multi-tensor optimizer", done="optimizer")
    add("+ next batch made meanwhile", done="loading")
    add("+ bf16", "train.precision=bf16")
    add("+ compiled", "train.compile=on")
    if device == "cuda":
        add("+ fastest attention", "train.attention=auto")
    add("+ PAD dropped", "data.canvas=window")
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

    def train_on_a_batch(self) -> None:
        """What the trainer does for a batch."""
        batch = next(self.stream)
        self.lengths += [s.inputs.shape[1] for s in batch for _ in range(len(s.inputs))]
        for result in self.supervision.run(batch, batch_seed(self.run)):
            grad_norm = take_step(self.run, result)
            if "waiting" in self.change.plain:
                result.loss.item(), grad_norm.item()
                result.figures["exact_accuracy"].mean().item()
            else:
                self.metrics.add(result, grad_norm)

    def activation_bytes(self) -> int:
        """What one supervision step saves for its backward pass."""
        batch = next(self.stream)
        with ActivationMemory(list(self.run.state.model.parameters())) as memory:
            next(self.supervision.run(batch, batch_seed(self.run)))
        return memory.bytes


def build_case(
    change: Change, arguments: argparse.Namespace, ranks: Ranks, table: PuzzleEmbedding | None
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
    if config.supervision.halting:
        raise UserError("supervision.halting=true: the rows are of the loop without halting")
    assert config.data.path is not None, "it was given"
    batches = TrainingBatches(
        open_split(config.data.path, "train"),
        config.train.global_batch_size,
        config.data.epochs_per_pass,
        config.seed,
    )
    run = build_run(config, ranks, batches)
    plain, state = change.plain, run.state
    if table is not None:  # One for all cases: it may be larger than everything else together.
        state.puzzle_embedding = run.puzzle_optimizer.embedding = table
    if "waiting" in plain:
        decay = config.optim.puzzle_weight_decay
        run.puzzle_optimizer = UniqueSignSGD(state.puzzle_embedding, decay, ranks)
    if "optimizer" in plain:
        state.optimizer = torch.optim.AdamW(
            state.model.parameters(), lr=config.optim.lr, foreach=False, fused=False
        )
    if "loading" in plain:
        run.loader = SynchronousLoader(batches, config.data, ranks.device)
    network: nn.Module = DoubleLogits(state.model) if "loss" in plain else state.model
    scheme = RedrawnTargets if "targets" in plain else DeepImprovementSupervision
    colours = solution_tokens(arguments.data, batches.split.metadata.vocab_size)
    supervision = scheme(
        config.supervision,
        state.model,
        network,
        state.puzzle_embedding,
        colours,
        config.train.diagnostics,
    )
    metrics = MetricSums(config.arch.num_supervision_steps, ranks.device)
    return Case(change, run, supervision, iter(run.loader), metrics)


def rows(cases: list[Case], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all cases in turns and relate them to the first and to the one before."""
    device = cases[0].run.ranks.device
    works: dict[str, Callable[[], None]] = {c.change.name: c.train_on_a_batch for c in cases}
    memory = {case.change.name: case.activation_bytes() for case in cases}
    for case in cases:
        warm_up(case, arguments.warmup)
    seconds = {
        name: sum(times)
        for name, times in seconds_in_turns(works, 0, arguments.repeats, device).items()
    }
    peaks = {dtype: matmul_peak(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    table = []
    first = before = seconds[cases[0].change.name]
    for case in cases:
        name, arch = case.change.name, case.run.config.arch
        took, steps = seconds[name], arguments.repeats * arch.num_supervision_steps
        flops = step_flops(arch, case.lengths) * arch.num_supervision_steps / took
        table.append(
            {
                "change": name,
                "ms a step": 1e3 * took / steps,
                "examples/s": arguments.batch_size * steps / took,
                "times plain": first / took,
                "times the row before": before / took,
                "cells an example": sum(case.lengths) / len(case.lengths),
                "model GFLOP/s": flops / 1e9,
                "share of matmul peak": flops / peaks[case.run.state.model.compute_dtype],
                "activations, MB": memory[name] / 1e6,
            }
        )
        before = took
    return table


def warm_up(case: Case, batches: int) -> None:
    """Train on some batches, then go back to the first.

    Where windows are compiled, until so many batches have needed no new graph: they come in many
    shapes, some of them rare, and what is compiled later would count as work.
    """
    config = case.run.config
    needed = SETTLED_BATCHES if config.data.canvas == "window" else batches
    graphs = torch._dynamo.utils.counters["stats"]
    settled = 0
    while settled < needed:
        before = graphs["unique_graphs"]
        case.train_on_a_batch()
        settled = settled + 1 if graphs["unique_graphs"] == before else 0
    case.stream.close()
    case.run.loader.position = (0, 0)
    case.stream = iter(case.run.loader)
    case.lengths.clear()


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
            table = cases[0].run.state.puzzle_embedding if cases else None
            cases.append(build_case(change, arguments, ranks, table))
        config = cases[0].run.config
        Results(
            question="How fast is a training step, and what does each change bring?",
            command=f"python -m benchmarks.step {' '.join(sys.argv[1:])}",
            machine={**machine(ranks.device), "arch": config.arch.name},
            rows=rows(cases, arguments),
        ).write(arguments.output)


if __name__ == "__main__":
    main()
