"""From records to the plots of RESULTS.md."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # Only files are written: no display is needed.

from matplotlib import pyplot

from study.grid import Comparison, Grid
from study.points import Record
from study.tables import diagnoses, select, step_measure


@contextmanager
def _figure(path: Path, rows: int, columns: int) -> Iterator[Any]:
    """Axes [rows][columns] of a figure that is written to `path` at the end."""
    figure, axes = pyplot.subplots(
        rows,
        columns,
        squeeze=False,
        figsize=(3.7 * columns, 2.9 * rows),
        layout="constrained",
    )
    yield axes
    # Without the time of drawing, so that the same records give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def draw_curves(grid: Grid, comparison: Comparison, records: Sequence[Record], path: Path) -> None:
    """Each task's measure against optimizer steps, network calls and training time.

    Lines are means over seeds, shades reach from the lowest to the highest.
    """
    with _figure(path, len(comparison.tasks), 3) as axes:
        for row, task in zip(axes, comparison.tasks, strict=True):
            measure = grid.tasks[task].measure
            for index, key in enumerate(comparison.variants):
                runs = select(records, task, key)
                if not runs:
                    continue
                evaluations = list(zip(*(run.curve for run in runs), strict=False))
                values = [[point[measure] for point in points] for points in evaluations]
                steps = [points[0]["step"] for points in evaluations]
                calls = [step * runs[0].calls_per_step for step in steps]
                seconds = [statistics.mean(p["seconds"] for p in points) for points in evaluations]
                for plot, x in zip(row, (steps, calls, seconds), strict=True):
                    colour = f"C{index}"
                    means = [statistics.mean(v) for v in values]
                    plot.plot(x, means, color=colour, label=grid.variants[key].title)
                    low, high = [min(v) for v in values], [max(v) for v in values]
                    plot.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            row[0].set_ylabel(f"{grid.tasks[task].title}\n{measure.replace('_', ' ')}")
            for plot, label in zip(
                row, ("optimizer steps", "network calls", "training time, s"), strict=True
            ):
                plot.set_xlabel(label)
                plot.grid(alpha=0.3)
        if axes[0][0].lines:
            axes[0][0].legend(fontsize=7)


def draw_factors(grid: Grid, keys: Sequence[str], records: Sequence[Record], path: Path) -> None:
    """For each comparison and task, a dot for every seed's final measure and a bar at the mean."""
    panels = [(key, task) for key in keys for task in grid.comparisons[key].tasks]
    with _figure(path, -(-len(panels) // 3), 3) as axes:
        places = axes.flatten()
        for plot in places:
            plot.set_axis_off()
        for plot, (key, task) in zip(places, panels, strict=False):
            plot.set_axis_on()
            variants, measure = grid.comparisons[key].variants, grid.tasks[task].measure
            for row, variant in enumerate(variants):
                values = [r.final[measure] for r in select(records, task, variant)]
                if values:
                    plot.plot(values, [row] * len(values), "o", color=f"C{row}", alpha=0.6)
                    plot.plot(statistics.mean(values), row, "|k", markersize=14)
            titles = [grid.variants[variant].title for variant in variants]
            plot.set_yticks(range(len(titles)), titles, fontsize=7)
            plot.set_ylim(len(titles) - 0.5, -0.5)
            # From 0, so that small differences look small.
            plot.set_xlim(0, 1.05 * plot.get_xlim()[1])
            plot.grid(alpha=0.3)
            plot.set_title(f"{key.replace('_', ' ')}: {grid.tasks[task].title}", fontsize=8)
            plot.set_xlabel(measure.replace("_", " "), fontsize=8)


def draw_diagnoses(grid: Grid, variant: str, records: Sequence[Record], path: Path) -> None:
    """For each task: measure and margin by step, and the measure under guidance; a line a seed."""
    tasks = [task for task in grid.tasks if diagnoses(records, task, variant)]
    with _figure(path, len(tasks), 3) as axes:
        for (by_step, margins, guidance), task in zip(axes, tasks, strict=True):
            found = diagnoses(records, task, variant)
            measure, of_steps = grid.tasks[task].measure, step_measure(grid, task, found)
            for index, diagnosis in enumerate(found):
                rows, line = diagnosis["steps"], {"color": f"C{index}", "marker": "."}
                steps = [row["step"] for row in rows]
                by_step.plot(steps, [row[of_steps] for row in rows], **line)
                margins.plot(steps, [row["margin"] for row in rows], **line)
                weights = [row["guidance_weight"] for row in diagnosis["guidance"]]
                guidance.plot(weights, [row[measure] for row in diagnosis["guidance"]], **line)
            for plot in (by_step, margins):
                plot.axvline(found[0]["trained_steps"], color="0.7", linestyle="--", zorder=0)
                plot.set_xlabel("improvement steps at test time")
            margins.axhline(0, color="0.7", zorder=0)
            by_step.set_ylabel(f"{grid.tasks[task].title}\n{of_steps.replace('_', ' ')}")
            margins.set_ylabel("advantage margin")
            guidance.set_xlabel("guidance weight w")
            guidance.set_ylabel(measure.replace("_", " "))
            for plot in (by_step, margins, guidance):
                plot.grid(alpha=0.3)
