"""How fast is a training step, and what does each change bring?

    python -m benchmarks.step --data data/arc1concept-aug-1000 --batch-size 16
    python -m benchmarks.step --data data/arc1concept-aug-1000 arch=medium --batch-size 512

The first row is the plain way: whole canvas, eager, fp32. Each further row makes one more change:
cropped to the grids (which needs the compact layout), which is all that a CPU does unless it is
told to; in bf16 and compiled, as a GPU does; and at last with diagnostics on. All rows see the same
examples, drawn from the real mix, and are timed in turns, batch by batch. A batch serves all
supervision steps; "examples/s" counts it once for each, as published figures do. Times are totals
over the timed batches, as batches differ in size.
"""

import argparse
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo.utils

from benchmarks.measure import (
    flops_of,
    machine,
    positive,
    synchronize,
    time_in_turns,
    write_results,
)
from common.distributed import Ranks, peak_memory, start_ranks
from common.errors import CommandParser, exit_cleanly
from common.packed import PackedBatch
from common.settings import expanded_path
from config.loading import load_config
from config.schema import TrainConfig
from models.flops import matmul_peak
from models.puzzle_embedding import PuzzleEmbedding, PuzzleTable
from models.randomness import batch_seed
from train_arc_tiny_corrupt import Run, build_run, open_batches, take_steps


class Change(NamedTuple):
    """One row: its name, and all of its configuration."""

    name: str
    overrides: tuple[str, ...]


def changes(device: str) -> list[Change]:
    """The rows, each with all changes of the rows above it."""
    plain = ("train.precision=fp32", "train.compile=off", "train.graphs=off", "data.canvas=whole")
    rows = [Change("plain", plain)]

    def add(name: str, *overrides: str) -> None:
        rows.append(Change(name, (*rows[-1].overrides, *overrides)))

    add("+ cropped to the grids", "data.canvas=window")
    add("+ bf16", "train.precision=bf16")
    add("+ compiled", "train.compile=on")
    if device == "cuda":
        add("+ captured as graphs", "train.graphs=on")
    # What it costs to watch: the one row that should bring nothing and take little.
    add("and diagnostics on", "train.diagnostics=true")
    return rows


@dataclass
class Case:
    """A run at work."""

    run: Run
    stream: Generator[list[PackedBatch], None, None]
    seen: list[PackedBatch] = field(default_factory=list)
    """What was trained on, without what is as long as its tokens."""

    def train_on_next_batch(self) -> None:
        """What the trainer does for a batch."""
        parts = next(self.stream)
        self.run.engine.begin(parts, batch_seed(self.run.config.seed, self.run.state.step))
        take_steps(self.run)
        nothing = torch.zeros(0)
        self.seen += [
            part._replace(inputs=nothing, labels=nothing, cells=nothing, sequence=nothing)
            for part in parts
        ]

    @property
    def cells(self) -> list[int]:
        """Of each example that was trained on; waits for the device."""
        prefix_length = self.run.config.arch.prefix_length
        lengths = [part.offsets.diff()[part.is_example] - prefix_length for part in self.seen]
        numbers: list[int] = torch.cat(lengths).tolist()
        return numbers

    @property
    def filled_up(self) -> float:
        """Tokens that only filled batches up, as a share of those of examples."""
        of_examples = sum(self.cells) + len(self.cells) * self.run.config.arch.prefix_length
        return sum(int(part.offsets[-1]) for part in self.seen) / of_examples - 1


def build_case(
    data: Path, overrides: tuple[str, ...], ranks: Ranks, table: PuzzleEmbedding | None = None
) -> Case:
    """The trainer's run as configured; with a `table` that it shares with others."""
    given = [f"data.path={data}", "train.eval_every=null", *overrides]
    config = load_config("train", TrainConfig, __doc__ or "", given)
    run = build_run(config, ranks, open_batches(config, ranks))
    optimizer = run.engine.puzzle_optimizer
    if isinstance(table, PuzzleTable) and optimizer is not None:
        # It may be larger than everything else together.
        run.state.puzzle_embedding = run.engine.supervision.puzzle_embedding = table
        optimizer.embedding = table
    return Case(run, iter(run.loader))


def warm_up(case: Case) -> float:
    """Compile and capture, as the trainer does before its first step, and train on two batches.

    Returns the seconds that it took until a first step was done.
    """
    engine, device = case.run.engine, case.run.ranks.device
    started = time.perf_counter()
    engine.begin(next(case.stream), batch_seed(case.run.config.seed, case.run.state.step))
    engine.prepare()
    engine.step(1.0)
    synchronize(device)
    seconds = time.perf_counter() - started
    for _ in range(2):
        case.train_on_next_batch()
    case.seen.clear()
    return seconds


def measure_run(case: Case, seconds: float, peak: float) -> dict[str, Any]:
    """What training costs once it runs, over batches for about so many `seconds`.

    `peak` is the rate of matrix products, in FLOP/s, that the share of it is given of.
    """
    run, device = case.run, case.run.ranks.device
    to_first_step = warm_up(case)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    steps = run.engine.supervision.steps_per_batch
    synchronize(device)
    started, batches = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        case.train_on_next_batch()
        batches += 1
    synchronize(device)
    took = (time.perf_counter() - started) / (batches * steps)
    batch_size = run.config.train.global_batch_size
    flops = flops_of(run.config.arch, case.cells) / batches / took
    num_updates = run.standing.total_steps * run.engine.steps_per_update
    return {
        "ms per step": 1e3 * took,
        "examples/s": batch_size / took,
        "share of matmul peak": flops / peak,
        "cells per example": sum(case.cells) / len(case.cells),
        "tokens at a time": run.loader.tokens_at_a_time,
        "filled up": case.filled_up,
        "GPU-hours, whole run": num_updates * took / 3600,
        "peak memory, GB": peak_memory(device) / 1e9,
        "s to the first step": to_first_step,
        "recompiled": torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs,
        "batches": batches,
    }


def rows(cases: dict[str, Case], repeats: int) -> list[dict[str, Any]]:
    """Time all cases in turns and relate them to the first and to the one before."""
    runs = [case.run for case in cases.values()]
    device = runs[0].ranks.device
    for case in cases.values():
        warm_up(case)
        # Back to the first examples, so that all see the same.
        case.stream.close()
        case.run.loader.position = (0, 0)
        case.stream = iter(case.run.loader)
    works = {name: case.train_on_next_batch for name, case in cases.items()}
    seconds = [sum(times) for times in time_in_turns(works, repeats, device).values()]
    dtypes = {run.state.model.compute_dtype for run in runs}
    peaks = {dtype: matmul_peak(device, dtype) for dtype in dtypes}
    table = []
    before = seconds[0]
    for (name, case), took in zip(cases.items(), seconds, strict=True):
        arch, batch_size = case.run.config.arch, case.run.config.train.global_batch_size
        steps = repeats * arch.num_supervision_steps
        flops = flops_of(arch, case.cells) * arch.num_supervision_steps / took
        table.append(
            {
                "change": name,
                "ms per step": 1e3 * took / steps,
                "examples/s": batch_size * steps / took,
                "times plain": seconds[0] / took,
                "times the row before": before / took,
                "cells per example": sum(case.cells) / len(case.cells),
                "model GFLOP/s": flops / 1e9,
                "share of matmul peak": flops / peaks[case.run.state.model.compute_dtype],
            }
        )
        before = took
    return table


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.step", description=__doc__)
    add = parser.add_argument
    add("--data", required=True, type=expanded_path, help="dataset folder in the compact layout")
    add("--batch-size", type=positive, default=16)
    add("--repeats", type=positive, default=8, help="timed batches")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--output", type=expanded_path, default=Path("benchmark_output/step.json"))
    add("overrides", nargs="*", help="the trainer's key=value, for all rows")
    return parser.parse_intermixed_args()


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    with start_ranks(arguments.device) as ranks:
        cases: dict[str, Case] = {}
        table: PuzzleEmbedding | None = None
        for name, overrides in changes(ranks.device.type):
            size = f"train.global_batch_size={arguments.batch_size}"
            given = (size, *overrides, *arguments.overrides)
            case = build_case(arguments.data, given, ranks, table)
            table, cases[name] = case.run.state.puzzle_embedding, case
        facts = {**machine(ranks.device), "arch": cases["plain"].run.config.arch.name}
        write_results(arguments.output, facts, rows(cases, arguments.repeats))


if __name__ == "__main__":
    main()
