"""How does a training step scale with batch, tokens, width and ranks?

    python -m benchmarks.scaling
    python -m benchmarks.scaling --batches 64 128 256 --widths 256 512 --cells 225 900 --ranks 1 4

Each sweep varies one of the four; the others stay at the middle of their lists. A step is what the
trainer does for one supervision step: forward and backward pass, both optimizers. It works on
random canvases, so that a sequence is as long as asked. All points are timed in turns; "times the
first" relates a point to the first of its sweep, in seconds and in model FLOPs: a step that scales
by its work has the two alike.

Ranks are processes of torchrun that share one global batch, each with one thread on a CPU and one
GPU on CUDA; launches of the different numbers of ranks take turns.
"""

import argparse
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from benchmarks.measure import (
    ActivationMemory,
    Results,
    machine,
    matmul_peak,
    step_flops,
    time_in_turns,
)
from common.distributed import Ranks, start_ranks, wrap_for_ranks
from common.errors import CommandParser, UserError, exit_cleanly
from common.segments import Segment
from config.loading import load_config
from config.schema import TrainConfig
from dataset.canvas import VOCAB_SIZE
from dataset.loading import BatchLoader
from models.build import build_model
from models.puzzle_embedding import PuzzleEmbedding
from models.supervision import DeepImprovementSupervision
from train_arc_tiny_corrupt import Run, batch_seed, take_step
from training.optimizers import build_optimizer
from training.sign_sgd import SparseSignSGD
from training.state import TrainingState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPOSITORY = Path(__file__).resolve().parent.parent
HEAD_DIM = 32
"""As in the compact model, at any width."""
NUM_PUZZLES = 1000
LAUNCHES = 3
"""Of each number of ranks, in turns."""
PLOT_FILE, RESULTS_FILE = "scaling.png", "scaling.json"

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


@dataclass(frozen=True)
class Measured:
    """What was found at a point."""

    seconds: float
    """Of a supervision step."""
    flops: float
    """Model FLOPs of that step, over all ranks."""
    peak: float
    """FLOP/s of large products, over all ranks."""
    activations: int
    """Bytes that the step saves for its backward pass, on one rank."""
    device_memory: int | None
    """Largest allocation on CUDA, in bytes, on one rank."""


class NoData:
    """The place in the data of a run without."""

    position = (0, 0)


class Case:
    """A model of the point's size, its optimizers and a random batch."""

    def __init__(self, point: Point, overrides: Sequence[str], ranks: Ranks) -> None:
        heads = max(point.width // HEAD_DIM, 1)
        shape = (f"arch.hidden_size={point.width}", f"arch.num_heads={heads}")
        config = load_config("train", TrainConfig, "", [*shape, *overrides, "data.path=none"])
        self.ranks = ranks
        self.arch, precision = config.arch, config.train.precision
        torch.manual_seed(config.seed)
        build = (config.arch, VOCAB_SIZE, point.cells, ranks.device, precision)
        model = build_model(*build, config.train.compile, config.train.attention)
        table = PuzzleEmbedding(NUM_PUZZLES, point.width, ranks.device)
        optimizer = build_optimizer(config.optim, model)
        state = TrainingState(model, table, optimizer, None, NoData(), {})
        sparse = SparseSignSGD(table, config.optim.puzzle_weight_decay, ranks)
        # Steps are taken on the batch below: there is no loader.
        self.run = Run(config, ranks, state, cast(BatchLoader, None), sparse, total_steps=1)
        self.supervision = DeepImprovementSupervision(
            config.supervision, model, wrap_for_ranks(model, ranks), table
        )
        # A twin that is not compiled: what it saves is what the method needs.
        eager = build_model(*build, "off", config.train.attention)
        self.eager = DeepImprovementSupervision(config.supervision, eager, eager, table)
        self.batch = [random_segment(point, ranks)]
        self.flops = step_flops(config.arch, [point.cells] * point.batch)

    def train_on_the_batch(self) -> None:
        """All supervision steps, as the trainer takes them."""
        for result in self.supervision.run(self.batch, batch_seed(self.run)):
            take_step(self.run, result)

    def measured(self, seconds_a_batch: float, peak: float) -> Measured:
        """What is known once the batch was timed."""
        device, device_memory = self.ranks.device, None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.train_on_the_batch()
            device_memory = torch.cuda.max_memory_allocated(device)
        with ActivationMemory(list(self.eager.model.parameters())) as memory:
            next(self.eager.run(self.batch, seed=0))
        seconds = seconds_a_batch / self.arch.num_supervision_steps
        return Measured(seconds, self.flops, peak, memory.bytes, device_memory)


def random_segment(point: Point, ranks: Ranks) -> Segment:
    """This rank's share of a batch of random canvases without PAD."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randint(
        1, VOCAB_SIZE, (2, point.batch, point.cells), generator=generator
    )
    puzzle_ids = torch.randint(1, NUM_PUZZLES, (point.batch,), generator=generator)
    size = point.batch // ranks.world_size
    mine = slice(ranks.rank * size, (ranks.rank + 1) * size)
    rows = torch.arange(point.batch)
    return Segment(*(part[mine].to(ranks.device) for part in (inputs, labels, puzzle_ids, rows)))


def measure_here(
    points: Sequence[Point], arguments: argparse.Namespace, ranks: Ranks
) -> dict[Point, Measured]:
    """Time points in turns in this process (or, under torchrun, in these)."""
    cases = {point: Case(point, arguments.overrides, ranks) for point in points}
    names = {point: repr(point) for point in points}
    works: dict[str, Callable[[], Any]] = {
        names[point]: case.train_on_the_batch for point, case in cases.items()
    }
    seconds = time_in_turns(works, arguments.warmup, arguments.repeats, ranks.device)
    dtype = next(iter(cases.values())).run.state.model.compute_dtype
    peak = torch.tensor(matmul_peak(ranks.device, dtype), dtype=torch.float64)
    total_peak = float(ranks.sum(peak.to(ranks.device)))
    return {
        point: case.measured(seconds[names[point]], total_peak) for point, case in cases.items()
    }


def measure_ranks(
    points: Sequence[Point], arguments: argparse.Namespace, launches: int
) -> dict[Point, Measured]:
    """Time points by torchrun: one launch after another, in turns."""
    found: dict[Point, list[Measured]] = {point: [] for point in points}
    for _ in range(launches):
        for point in points:
            log.info("torchrun with %d rank(s)", point.ranks)
            found[point].append(launch(point, arguments))
    return {
        point: sorted(all_of_it, key=lambda one: one.seconds)[len(all_of_it) // 2]
        for point, all_of_it in found.items()
    }


def launch(point: Point, arguments: argparse.Namespace) -> Measured:
    """One launch of torchrun on this module."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "measured.json"
        numbers = {"batches": point.batch, "cells": point.cells, "widths": point.width,
                   "repeats": arguments.repeats, "warmup": arguments.warmup}  # fmt: skip
        flags = [text for name, n in numbers.items() for text in (f"--{name}", str(n))]
        process = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc_per_node={point.ranks}", "-m", "benchmarks.scaling", *flags,
             "--device", arguments.device, "--as-rank-write", str(output), *arguments.overrides],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if process.returncode:
            errors = [line for line in process.stderr.splitlines() if line.startswith("error:")]
            if errors:
                raise UserError(f"--ranks {point.ranks}: {errors[0].removeprefix('error: ')}")
            raise RuntimeError(f"torchrun failed:\n{process.stderr}")
        return Measured(**json.loads(output.read_text()))


def be_a_rank(arguments: argparse.Namespace) -> None:
    """What a process of torchrun does: time one point, and have the main rank write it."""
    with start_ranks(arguments.device) as ranks:
        batch, cells, width = arguments.batches[0], arguments.cells[0], arguments.widths[0]
        point = Point(batch, cells, width, ranks.world_size)
        measured = measure_here([point], arguments, ranks)[point]
        if ranks.is_main:
            arguments.as_rank_write.write_text(json.dumps(asdict(measured)))


def sweeps(arguments: argparse.Namespace) -> dict[str, list[Point]]:
    """What is varied -> the points."""
    batch, cells, width = (
        middle(values) for values in (arguments.batches, arguments.cells, arguments.widths)
    )
    return {
        "batch": [Point(value, cells, width) for value in arguments.batches],
        "cells": [Point(batch, value, width) for value in arguments.cells],
        "width": [Point(batch, cells, value) for value in arguments.widths],
        "ranks": [Point(batch, cells, width, value) for value in arguments.ranks],
    }


def middle(values: Sequence[int]) -> int:
    return sorted(values)[(len(values) - 1) // 2]


def rows(swept: dict[str, list[Point]], measured: dict[Point, Measured]) -> list[dict[str, Any]]:
    """The table: each point beside the first of its sweep."""
    table = []
    for varied, points in swept.items():
        first = measured[points[0]]
        for point in points:
            here = measured[point]
            row = {
                "varied": varied,
                "batch": point.batch,
                "cells": point.cells,
                "width": point.width,
                "ranks": point.ranks or "this process",
                "ms a step": 1e3 * here.seconds,
                "times the first": here.seconds / first.seconds,
                "FLOPs, times the first": here.flops / first.flops,
                "examples/s": point.batch / here.seconds,
                "model GFLOP/s": here.flops / here.seconds / 1e9,
                "share of matmul peak": here.flops / here.seconds / here.peak,
                "activations, MB": here.activations / 1e6,
            }
            if here.device_memory is not None:
                row["device memory, MB"] = here.device_memory / 1e6
            table.append(row)
    return table


LABELS = {
    "batch": "batch (examples)",
    "cells": "sequence (canvas cells)",
    "width": "width D",
    "ranks": "ranks (same global batch)",
}


def draw(table: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Two small plots for each sweep: time above, activation memory below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    # The part of a figure that readers look at is small: fonts that stay legible in it.
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 9}):
        figure, axes = pyplot.subplots(
            2, len(LABELS), figsize=(12, 5.4), sharey="row", layout="constrained", squeeze=False
        )
        for column, (varied, label) in enumerate(LABELS.items()):
            points = [row for row in table if row["varied"] == varied]
            values = [row[varied] for row in points]
            times = [row["ms a step"] for row in points]
            work = [times[0] * row["FLOPs, times the first"] for row in points]
            if varied == "ranks":
                work = [times[0] * values[0] / value for value in values]
            ideal = "divided by ranks" if varied == "ranks" else "as model FLOPs"
            _plot(axes[0, column], values, times, work, ideal)
            _plot(axes[1, column], values, [row["activations, MB"] for row in points])
            axes[1, column].set_xlabel(label)
            axes[0, column].legend(fontsize=8, frameon=False)
        axes[0, 0].set_ylabel("training step (ms)")
        axes[1, 0].set_ylabel("saved activations\non one rank (MB)")
        figure.suptitle(title, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def _plot(
    axes: "Axes",
    values: Sequence[int],
    measured: Sequence[float],
    ideal: Sequence[float] | None = None,
    ideal_label: str = "",
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if ideal is not None:
        axes.plot(values, ideal, "--", color="0.6", label=ideal_label)
    axes.plot(values, measured, "o-", color="C0", label="measured")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m benchmarks.scaling",
        description="Measure how a training step scales with batch, tokens, width and ranks.",
    )
    add = parser.add_argument
    add("--batches", type=int, nargs="+", default=[4, 8, 16], help="examples, over all ranks")
    add("--cells", type=int, nargs="+", default=[100, 225, 400, 900], help="of a canvas")
    add("--widths", type=int, nargs="+", default=[64, 128, 256])
    add("--ranks", type=int, nargs="+", default=[1, 2], help="processes of torchrun")
    add("--warmup", type=int, default=1, help="batches before the clock runs")
    add("--repeats", type=int, default=7, help="timed batches at each point")
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
    for name in ("batches", "cells", "widths", "ranks", "repeats"):
        values = getattr(arguments, name)
        if bad := [v for v in (values if isinstance(values, list) else [values]) if v < 1]:
            raise UserError(f"--{name} {bad[0]}: must be 1 or more")
    for name in ("batches", "cells", "widths", "ranks"):
        setattr(arguments, name, sorted(set(getattr(arguments, name))))
    if bad := [count for count in arguments.ranks if middle(arguments.batches) % count]:
        raise UserError(
            f"--ranks {bad[0]}: does not divide the batch of {middle(arguments.batches)}, the "
            f"middle one of --batches"
        )
    return arguments


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    if arguments.as_rank_write is not None:
        be_a_rank(arguments)
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing: pip install -r requirements-dev.txt")
    swept = sweeps(arguments)
    with start_ranks(arguments.device) as ranks:
        facts = machine(ranks.device)
        gpus = torch.cuda.device_count()
        if ranks.device.type == "cuda" and max(arguments.ranks) > gpus:
            log.warning("only %d GPU(s) here: more ranks are left out", gpus)
            swept["ranks"] = [point for point in swept["ranks"] if (point.ranks or 1) <= gpus]
        here = dict.fromkeys(p for points in swept.values() for p in points if p.ranks is None)
        measured = measure_here(list(here), arguments, ranks)
    measured |= measure_ranks(swept["ranks"], arguments, 1 if arguments.tiny else LAUNCHES)
    table = rows({varied: points for varied, points in swept.items() if points}, measured)
    results = Results(
        question="How does a training step scale with batch, tokens, width and ranks?",
        command=f"python -m benchmarks.scaling {' '.join(sys.argv[1:])}".strip(),
        machine=facts,
        rows=table,
    )
    results.write(arguments.output_dir / RESULTS_FILE)
    title = f"DIS training step, {facts.get('gpu', facts['cpu'])}, torch {facts['torch']}"
    draw(table, arguments.output_dir / PLOT_FILE, title)
    sys.stdout.write(f"Wrote {arguments.output_dir / PLOT_FILE}\n")


if __name__ == "__main__":
    main()
