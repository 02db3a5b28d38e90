"""How does a training step scale with batch, tokens, width and ranks?

    python -m benchmarks.scaling
    python -m benchmarks.scaling --batches 64 128 256 --widths 256 512 --cells 225 900 --ranks 1 4

Each sweep varies one of the four; the others stay at the middle of their lists. A step is what the
trainer does for one supervision step: forward and backward pass, both optimizers. It works on
random canvases, so that a sequence is as long as asked. All points are timed in turns. "Times the
first" relates a point to the first of its sweep, in seconds and in each rank's model FLOPs: a step
that scales by its work has the two alike. Activations are what a step saves for its backward pass,
on one rank; the trainer's log has the peak memory of a GPU.

Ranks are processes of torchrun that share one global batch, each with one thread on a CPU and one
GPU on CUDA; launches of the different numbers of ranks take turns. `--ranks` without a number
leaves them out.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any, cast

import torch

from benchmarks.measure import (
    ActivationMemory,
    Results,
    machine,
    matmul_peak,
    positive,
    step_flops,
    time_in_turns,
)
from common.distributed import Ranks, start_ranks, wrap_for_ranks
from common.errors import CommandParser, UserError, exit_cleanly
from common.segments import Segment
from config.loading import load_config
from config.schema import TrainConfig
from dataset.canvas import ARC_COLOURS, VOCAB_SIZE
from dataset.loading import BatchLoader
from models.build import build_model, build_supervision, choose_attention
from models.puzzle_embedding import PuzzleEmbedding
from train_arc_tiny_corrupt import Run, batch_seed, take_step
from training.optimizers import build_optimizer
from training.sign_sgd import SparseSignSGD
from training.state import DataStream, TrainingState

REPOSITORY = Path(__file__).resolve().parent.parent
HEAD_DIM = 32
"""As in the compact model, at any width."""
NUM_PUZZLES = 1000
LAUNCHES = 3
"""Of each number of ranks, in turns."""
LABELS = {"batch": "examples", "cells": "canvas cells", "width": "width D", "ranks": "ranks"}

Row = dict[str, Any]
"""What was measured at a point, or a row of the table."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """What is timed."""

    batch: int
    """Examples over all ranks."""
    cells: int
    width: int
    ranks: int | None = None
    """Processes of torchrun; None: this one."""


def sweeps(arguments: argparse.Namespace) -> dict[str, list[Point]]:
    """What is varied -> the points."""
    batch, cells, width = map(median_low, (arguments.batches, arguments.cells, arguments.widths))
    swept = {
        "batch": [Point(value, cells, width) for value in arguments.batches],
        "cells": [Point(batch, value, width) for value in arguments.cells],
        "width": [Point(batch, cells, value) for value in arguments.widths],
        "ranks": [Point(batch, cells, width, value) for value in arguments.ranks],
    }
    return {varied: points for varied, points in swept.items() if points}


class Case:
    """A model of the point's size, its optimizers and a random batch."""

    def __init__(self, point: Point, overrides: Sequence[str], ranks: Ranks) -> None:
        heads = max(point.width // HEAD_DIM, 1)
        shape = (f"arch.hidden_size={point.width}", f"arch.num_heads={heads}")
        config = load_config("train", TrainConfig, "", [*shape, *overrides, "data.path=none"])
        train, optim = config.train, config.optim
        torch.manual_seed(config.seed)
        size = (config.arch, VOCAB_SIZE, point.cells, ranks.device)
        attention = choose_attention(
            train.attention, config.arch, point.cells, train.precision, ranks.device
        )
        model = build_model(*size, train.precision, train.compile, attention)
        table = PuzzleEmbedding(NUM_PUZZLES, point.width, ranks.device)
        # Steps are taken on one batch, made here: there is no data and no loader.
        data, loader = cast(DataStream, None), cast(BatchLoader, None)
        network = wrap_for_ranks(model, ranks)
        self.supervision = build_supervision(
            config.supervision, model, network, table, ARC_COLOURS, train.diagnostics
        )
        optimizer = build_optimizer(optim, model)
        state = TrainingState(model, table, optimizer, None, data, self.supervision, {})
        sparse = SparseSignSGD(table, optim.puzzle_weight_decay, ranks)
        self.point = point
        self.run = Run(config, ranks, state, loader, self.supervision, sparse, total_steps=1)
        self.batch = [random_segment(point, ranks)]

    def train_on_the_batch(self) -> None:
        """All supervision steps, as the trainer takes them."""
        for result in self.supervision.run(self.batch, batch_seed(self.run)):
            take_step(self.run, result)

    def row(self, seconds_a_batch: float, peak: float) -> Row:
        """What was measured; `peak` are the FLOP/s of large products, over all ranks."""
        point, arch = self.point, self.run.config.arch
        seconds = seconds_a_batch / arch.num_supervision_steps
        flops = step_flops(arch, [point.cells] * point.batch)
        with ActivationMemory(list(self.run.state.model.parameters())) as memory:
            next(self.supervision.run(self.batch, seed=0))
        return {
            **asdict(point),
            "ranks": point.ranks or "this process",
            "ms a step": 1e3 * seconds,
            "examples/s": point.batch / seconds,
            "GFLOPs a rank": flops / 1e9 / (point.ranks or 1),
            "share of matmul peak": flops / seconds / peak,
            "activations, MB": memory.bytes / 1e6,
        }


def random_segment(point: Point, ranks: Ranks) -> Segment:
    """This rank's share of a batch of random canvases without PAD."""
    generator = torch.Generator().manual_seed(0)
    canvases = torch.randint(1, VOCAB_SIZE, (2, point.batch, point.cells), generator=generator)
    puzzle_ids = torch.randint(1, NUM_PUZZLES, (point.batch,), generator=generator)
    whole = (*canvases, puzzle_ids, torch.arange(point.batch))
    return Segment(*(part.chunk(ranks.world_size)[ranks.rank].to(ranks.device) for part in whole))


def measure(
    points: Sequence[Point], arguments: argparse.Namespace, ranks: Ranks
) -> dict[Point, Row]:
    """Time points in turns in this process (or, under torchrun, in these)."""
    cases = {point: Case(point, arguments.overrides, ranks) for point in points}
    works = {point: case.train_on_the_batch for point, case in cases.items()}
    seconds = time_in_turns(works, arguments.warmup, arguments.repeats, ranks.device)
    dtype = cases[points[0]].run.state.model.compute_dtype
    one_peak = torch.tensor(matmul_peak(ranks.device, dtype), dtype=torch.float64)
    peak = float(ranks.sum(one_peak.to(ranks.device)))
    return {point: case.row(seconds[point], peak) for point, case in cases.items()}


def measure_by_torchrun(points: Sequence[Point], arguments: argparse.Namespace) -> dict[Point, Row]:
    """Time points one launch after another, in turns; the median launch of each counts."""
    found: dict[Point, list[Row]] = {point: [] for point in points}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        for point in [*points] * (1 if arguments.tiny else LAUNCHES):
            log.info("torchrun with %d rank(s)", point.ranks)
            process = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--standalone",
                 f"--nproc_per_node={point.ranks}", "-m", "benchmarks.scaling",
                 f"--batches={point.batch}", f"--cells={point.cells}", f"--widths={point.width}",
                 f"--ranks={point.ranks}", f"--repeats={arguments.repeats}",
                 f"--warmup={arguments.warmup}", f"--device={arguments.device}",
                 f"--as-rank-write={output}", *arguments.overrides],
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=False,
            )  # fmt: skip
            if process.returncode:
                raise UserError(f"--ranks {point.ranks}: torchrun failed, see above")
            found[point].append(json.loads(output.read_text()))
    return {
        point: sorted(launches, key=lambda row: row["ms a step"])[len(launches) // 2]
        for point, launches in found.items()
    }


def be_a_rank(arguments: argparse.Namespace) -> None:
    """What a process of torchrun does: time one point, and have the main rank write it."""
    with start_ranks(arguments.device) as ranks:
        (row,) = measure(sweeps(arguments)["ranks"], arguments, ranks).values()
        if ranks.is_main:
            arguments.as_rank_write.write_text(json.dumps(row))


def rows(swept: dict[str, list[Point]], measured: dict[Point, Row]) -> list[Row]:
    """The table: each point beside the first of its sweep."""
    table = []
    for varied, points in swept.items():
        first = measured[points[0]]
        for here in (measured[point] for point in points):
            ratios = {
                "times the first": here["ms a step"] / first["ms a step"],
                "FLOPs, times the first": here["GFLOPs a rank"] / first["GFLOPs a rank"],
            }
            table.append({"varied": varied, **here, **ratios})
    return table


def draw(table: Sequence[Row], path: Path, title: str) -> None:
    """Two small plots for each sweep: time above, activation memory below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    swept = list(dict.fromkeys(row["varied"] for row in table))
    # The part of a figure that readers look at is small: fonts that stay legible in it.
    with mpl.rc_context({"font.size": 9, "lines.marker": "o", "legend.frameon": False}):
        figure, axes = pyplot.subplots(
            2, len(swept), figsize=(12, 5.4), sharey="row", layout="constrained", squeeze=False
        )
        for (above, below), varied in zip(axes.T, swept, strict=True):
            points = [row for row in table if row["varied"] == varied]
            values = [point[varied] for point in points]
            times = [point["ms a step"] for point in points]
            work = [times[0] * point["FLOPs, times the first"] for point in points]
            above.plot(values, work, "--", color="0.6", marker="", label="as FLOPs of a rank")
            above.plot(values, times, color="C0", label="measured")
            below.plot(values, [point["activations, MB"] for point in points])
            below.set_xlabel(LABELS[varied])
            for plot in (above, below):
                plot.loglog()
                plot.set_xticks(values, map(str, values))
                plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                plot.yaxis.set_major_formatter("{x:g}")
                plot.minorticks_off()
                plot.grid(alpha=0.3)
        axes[0, 0].set_ylabel("training step (ms)")
        axes[0, 0].legend()
        axes[1, 0].set_ylabel("saved activations\non one rank (MB)")
        figure.suptitle(title, fontsize=9)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
    sys.stdout.write(f"Wrote {path}\n")


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.scaling", description=__doc__)
    add = parser.add_argument
    add("--batches", type=positive, nargs="+", default=[4, 8, 16], help="examples, over all ranks")
    add("--cells", type=positive, nargs="+", default=[100, 225, 400, 900], help="of a canvas")
    add("--widths", type=positive, nargs="+", default=[64, 128, 256])
    add("--ranks", type=positive, nargs="*", default=[1, 2], help="processes of torchrun")
    add("--warmup", type=int, default=1, help="batches before the clock runs")
    add("--repeats", type=positive, default=7, help="timed batches at each point")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--output-dir", type=Path, default=Path("benchmark_output/scaling"))
    add("--tiny", action="store_true", help="tiny sizes, once: shows that it works, in seconds")
    # Of the processes that this command starts by itself.
    add("--as-rank-write", type=Path, help=argparse.SUPPRESS)
    add("overrides", nargs="*", help="the trainer's key=value, e.g. arch.num_layers=2")
    arguments = parser.parse_intermixed_args()
    if arguments.tiny:
        arguments.batches, arguments.cells, arguments.widths = [2, 4], [16, 36], [16, 32]
        arguments.repeats = 1
    for name in ("batches", "cells", "widths", "ranks"):
        setattr(arguments, name, sorted(set(getattr(arguments, name))))
    batch = median_low(arguments.batches)
    if bad := [count for count in arguments.ranks if batch % count]:
        raise UserError(
            f"--ranks {bad[0]}: does not divide the batch of {batch}, the middle one of --batches"
        )
    return arguments


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    if arguments.as_rank_write is not None:
        be_a_rank(arguments)
        return
    with start_ranks(arguments.device) as ranks:
        facts = machine(ranks.device)
        gpus = torch.cuda.device_count()
        if ranks.device.type == "cuda" and max(arguments.ranks, default=1) > gpus:
            log.warning("only %d GPU(s) here: more ranks are left out", gpus)
            arguments.ranks = [count for count in arguments.ranks if count <= gpus]
        swept = sweeps(arguments)
        here = dict.fromkeys(p for points in swept.values() for p in points if p.ranks is None)
        measured = measure(list(here), arguments, ranks)
    measured |= measure_by_torchrun(swept.get("ranks", []), arguments)
    table = rows(swept, measured)
    Results(
        question="How does a training step scale with batch, tokens, width and ranks?",
        command=f"python -m benchmarks.scaling {' '.join(sys.argv[1:])}",
        machine=facts,
        rows=table,
    ).write(arguments.output_dir / "scaling.json")
    title = f"DIS training step, {facts.get('gpu', facts['cpu'])}, torch {facts['torch']}"
    draw(table, arguments.output_dir / "scaling.png", title)


if __name__ == "__main__":
    main()
