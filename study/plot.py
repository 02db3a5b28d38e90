"""Draw the curves of one or several runs, from their metrics.jsonl.

    python -m study.plot runs/compact-seed0
    python -m study.plot runs/*-seed? --output compared.png
    python -m study.plot runs/a runs/b --keys train/loss eval/loss --over minutes

RUN is a run's folder. Runs whose names differ by the seed alone are one line, their mean, in a band
from the lowest to the highest. Curves are drawn over examples; over optimizer steps if a run is of
an earlier version, which recorded no others.
"""

import argparse
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_file, require_creatable
from common.settings import expanded_path
from training.run_log import METRICS_FILE, read_metrics
from training.wandb_run import AXES, without_seed

LOSS, ACCURACY = "train/loss", "train/exact_accuracy"
SCORES = ("eval/pass@2", "eval/solved", "eval/exact_accuracy")
"""The first that a run has is drawn unless others are asked for."""
HALVES = {"train": "training", "eval": "evaluations"}
LABELS = {"step": "optimizer steps", "examples": "examples", "minutes": "minutes of training"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Okabe and Ito's, which colour-blind people tell apart; then they repeat, with another line."""
LINES = ("-", "--", ":")
GREY = "#5f6368"

log = logging.getLogger(__name__)

Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Places on the axis, which rise, and values there."""


class Run(NamedTuple):
    """What a run has recorded."""

    group: str
    """Its name without the seed."""
    lines: list[dict[str, Any]]

    def has(self, key: str) -> bool:
        return any(key in line for line in self.lines)

    def curve(self, key: str, axis: str) -> Curve:
        """Where it has the key, and a number there."""
        points = {
            line[axis]: line[key]
            for line in self.lines
            if axis in line and isinstance(line.get(key), int | float) and math.isfinite(line[key])
        }
        xs = np.array(sorted(points), dtype=np.float64)
        return xs, np.array([points[x] for x in sorted(points)], dtype=np.float64)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """What the runs have recorded.

    Raises:
        UserError: one has recorded nothing.
    """
    runs = []
    for path, name in zip(paths, names_of(paths), strict=True):
        file = path / METRICS_FILE
        if not file.is_file():
            raise UserError(f"{path}: there is no {METRICS_FILE} in it, name the folder of a run")
        if not (lines := read_metrics(file)):
            raise UserError(f"{file} holds no metrics yet: wait for the run's first ones")
        runs.append(Run(without_seed(name).strip("/"), lines))
    return runs


def names_of(paths: Sequence[Path]) -> list[str]:
    """What tells the folders apart: their paths from the folder that all are in."""
    absolute = [path.resolve() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(shared).as_posix() for path in absolute]


def chosen_keys(runs: Sequence[Run], asked: Sequence[str] | None) -> list[str]:
    """The metrics to draw.

    Raises:
        UserError: no run has one that was asked for.
    """
    known = sorted({key for run in runs for line in run.lines for key in line} - {*AXES})
    if asked is None:
        scores = [key for key in SCORES if key in known][:1]
        return [key for key in (LOSS, ACCURACY) if key in known] + scores or known[:1]
    if missing := [key for key in asked if key not in known]:
        raise UserError(f"--keys {missing[0]}: no run has it; there are {', '.join(known)}")
    return list(asked)


def common_axis(runs: Sequence[Run], asked: str) -> str:
    """The axis that was asked for, or steps if not all runs have it."""
    if all(run.has(asked) for run in runs):
        return asked
    log.info("Not all runs have recorded %s: drawn over optimizer steps.", LABELS[asked])
    return "step"


def mean_and_band(curves: Sequence[Curve]) -> tuple[Curve, Curve]:
    """Mean of the curves, where all of them are and on lines between points; lowest and highest."""
    first, last = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    every = np.unique(np.concatenate([xs for xs, _ in curves]))
    shared = every[(every >= first) & (every <= last)]
    values = np.stack([np.interp(shared, xs, ys) for xs, ys in curves])
    return (shared, values.mean(axis=0)), (values.min(axis=0), values.max(axis=0))


def draw(runs: Sequence[Run], keys: Sequence[str], axis: str) -> Figure:
    """A panel for each key, a colour for each group."""
    groups = list(dict.fromkeys(run.group for run in runs))
    size = (4.2 * len(keys), 3.3 + 0.22 * len(groups))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(keys), squeeze=False, sharex=True)[0]
    for panel, key in zip(panels, keys, strict=True):
        for number, group in enumerate(groups):
            curves = [run.curve(key, axis) for run in runs if run.group == group]
            curves = [curve for curve in curves if len(curve[0])]
            if curves:
                draw_group(panel, curves, number, group)
        decorate(panel, key, axis)
    drawn = {text: line for panel in panels for line, text in zip(*handles(panel), strict=True)}
    columns = max(1, min(len(drawn), len(keys)))
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=columns,
                  frameon=False, fontsize=9)  # fmt: skip
    return figure


def draw_group(panel: Axes, curves: Sequence[Curve], number: int, group: str) -> None:
    """One line, and a band if it stands for several runs."""
    (xs, means), (lowest, highest) = mean_and_band(curves)
    colour = COLOURS[number % len(COLOURS)]
    style = LINES[number // len(COLOURS) % len(LINES)]
    seeds = f" (mean of {len(curves)} seeds, lowest to highest)" if len(curves) > 1 else ""
    marker = "o" if len(xs) < 30 else ""
    panel.plot(xs, means, style, color=colour, linewidth=1.8, marker=marker, markersize=3.5,
               label=f"{group}{seeds}")  # fmt: skip
    if seeds:
        panel.fill_between(xs, lowest, highest, color=colour, alpha=0.18, linewidth=0)


def decorate(panel: Axes, key: str, axis: str) -> None:
    """Title, axes and grid; the eye is to go to the curves."""
    half, _, name = key.rpartition("/")
    where = HALVES.get(half, half)
    panel.set_title(
        f"{name.replace('_', ' ')} ({where})" if where else name, loc="left", fontsize=11
    )
    panel.set_xlabel(LABELS[axis], color=GREY)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.tick_params(colors=GREY, labelsize=9)
    panel.grid(color="#e3e5e8", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#c4c7cc")
    panel.margins(x=0.02)
    if "loss" not in key:
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))


def handles(panel: Axes) -> tuple[list[Any], list[Any]]:
    """Of the legend."""
    lines, texts = panel.get_legend_handles_labels()
    return list(lines), list(texts)


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m study.plot", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=expanded_path, metavar="RUN", help="folder of a run")
    add("--output", type=expanded_path, default=Path("curves.png"), metavar="FILE.png",
        help="picture to write, over what is there (default: curves.png)")  # fmt: skip
    add("--keys", nargs="+", metavar="KEY",
        help="metrics to draw (default: loss, exact accuracy, score of evaluations)")  # fmt: skip
    add("--over", choices=list(LABELS), default="examples", help="horizontal axis")
    return parser.parse_args()


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    if arguments.output.suffix != ".png":
        raise UserError(f"--output {arguments.output}: pictures are PNG, name a file.png")
    require_creatable(arguments.output, "--output")
    runs = read_runs(arguments.runs)
    keys = chosen_keys(runs, arguments.keys)
    figure = draw(runs, keys, common_axis(runs, arguments.over))
    with atomic_file(arguments.output) as partial:
        # Without the time of drawing, so that the same records give the same bytes.
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
    log.info("Wrote %s: %s", arguments.output, ", ".join(keys))


if __name__ == "__main__":
    main()
