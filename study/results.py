"""What is compared (`grids/*.yaml`), what is kept of a run, and RESULTS.md made from both.

Tables stand in RESULTS.md between markers; what stands outside of them is written by hand.

    <!-- begin GRID: NAME -->
    ...written by `python -m study GRID`...
    <!-- end GRID: NAME -->
"""

import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.settings import Settings

Row = dict[str, float]


class TaskSpec(Settings):
    """A dataset and its measure; `study.yaml` says what each key means, here and below."""

    title: str
    experiment: str
    steps: int
    measure: str
    beside: list[str]
    build: list[str]


class Variant(Settings):
    """One way to train."""

    title: str
    overrides: list[str]
    cost: float = 1
    diagnose: bool = False


class Comparison(Settings):
    """Variants side by side."""

    tasks: list[str]
    variants: list[str]
    seeds: list[int] | None = None
    curves: bool = False
    equal_time: bool = False


class Grid(Settings):
    """All that is compared."""

    name: str
    seeds: list[int]
    evaluations: int
    tasks: dict[str, TaskSpec]
    variants: dict[str, Variant]
    comparisons: dict[str, Comparison]

    def seeds_of(self, comparison: Comparison) -> list[int]:
        return comparison.seeds or self.seeds


@dataclass(frozen=True)
class Record:
    """What is kept of a run; enough for every table and plot."""

    task: str
    variant: str
    seed: int
    command: str
    parameters: int  # Of the network, puzzle embeddings not counted.
    calls_per_answer: int  # Evaluations of f until the last answer at test time.
    calls_per_step: int  # Evaluations of f in one optimizer step, ...
    calls_with_gradient_per_step: int  # ... and those that a backward pass goes through.
    # For each evaluation its metrics, and until then `step`, `seconds` of training and `examples`
    # that took their last supervision step.
    curve: list[Row]
    diagnosis: dict[str, Any] | None  # What diagnose.py found, if the variant asks for it.

    @property
    def final(self) -> Row:
        return self.curve[-1]


def select(records: Sequence[Record], task: str, variant: str) -> list[Record]:
    """The records of one variant, ordered by seed."""
    found = [r for r in records if (r.task, r.variant) == (task, variant)]
    return sorted(found, key=lambda record: record.seed)


def within(grid: Grid, comparison: Comparison, records: Sequence[Record]) -> list[Record]:
    """Those of a comparison's seeds: another may have run some of its variants more often."""
    return [record for record in records if record.seed in grid.seeds_of(comparison)]


def diagnoses(records: Sequence[Record], task: str, variant: str) -> list[dict[str, Any]]:
    """What diagnose.py found of a variant, ordered by seed."""
    return [r.diagnosis for r in select(records, task, variant) if r.diagnosis is not None]


def step_measure(grid: Grid, task: str, diagnosis: dict[str, Any]) -> str:
    """The task's measure where it is known of each step, else exact accuracy (votes are not)."""
    measure = grid.tasks[task].measure
    return measure if measure in diagnosis["steps"][0] else "exact_accuracy"


def spaced(name: str) -> str:
    return name.replace("_", " ")


# ---- tables ----------------------------------------------------------------------------------


def fill(page: str, grid: str, texts: dict[str, str]) -> str:
    """The page with everything between the markers of a grid replaced."""
    return re.sub(
        rf"(<!-- begin {grid}: (.*?) -->\n).*?(<!-- end {grid}: \2 -->)",
        lambda match: f"{match[1]}{texts.get(match[2], 'not run yet')}\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def tables(grid: Grid, records: Sequence[Record]) -> dict[str, str]:
    """All that can go between markers: name -> Markdown."""
    hours = sum(record.final["seconds"] for record in records) / 3600
    extent = f"{len(records)} runs, {hours:.1f} hours of training on one thread in all"
    texts = {"extent": extent}
    for key, comparison in grid.comparisons.items():
        compared = within(grid, comparison, records)
        for task in comparison.tasks:
            name = f"{key} on {task}"
            texts[name] = comparison_table(grid, comparison, task, compared)
            texts[f"spread of {name}"] = pooled_spread(grid, comparison, task, compared)
    for task, spec in grid.tasks.items():
        for variant in grid.variants:
            if not (found := diagnoses(records, task, variant)):
                continue
            what = f"of {variant} on {task}"
            shown = [step_measure(grid, task, found[0]), "cell_accuracy", "distance_to_solution"]
            shown += ["distance_to_target", "cells_changed", "margin", "margin_positive"]
            texts[f"steps {what}"] = diagnosis_table(found, "steps", "step", shown)
            shown = [spec.measure, "margin"]
            texts[f"guidance {what}"] = diagnosis_table(found, "guidance", "guidance_weight", shown)
            if found[0]["variants"]:  # Nothing votes on boards.
                shown = ["pass@1", "pass@2"]
                texts[f"votes {what}"] = diagnosis_table(found, "variants", "variants", shown)
    return texts


def comparison_table(
    grid: Grid, comparison: Comparison, task: str, records: Sequence[Record]
) -> str:
    """One row for each variant that has been run."""
    spec, rows, variants = grid.tasks[task], [], comparison.variants
    of_first = select(records, task, variants[0])
    first = [r.final[spec.measure] for r in of_first]
    for key in variants:
        if not (runs := select(records, task, key)):
            continue
        run, steps = runs[0], runs[0].final["step"]
        finals = {name: [r.final[name] for r in runs] for name in run.final}
        calls, with_gradient = (
            f"{steps * per_step / 1000:.1f}"
            for per_step in (run.calls_per_step, run.calls_with_gradient_per_step)
        )
        row = {"variant": grid.variants[key].title}
        for name in (spec.measure, *spec.beside):
            row[spaced(name)] = mean_and_spread(finals[name])
        row |= {
            "difference to the first (standard error)": difference(finals[spec.measure], first)
            if first and key != variants[0]
            else "",
        }
        if comparison.equal_time and of_first:
            seconds = quickest(of_first)
            until = steps * seconds / quickest(runs)
            values = [value_at(run.curve, until, spec.measure) for run in runs]
            row[f"{spaced(spec.measure)} after {seconds:.0f} s"] = mean_and_spread(values)
        row |= {
            "seeds": str(len(runs)),
            "parameters": f"{run.parameters:,}",
            "calls per answer": str(run.calls_per_answer),
            "optimizer steps": f"{steps:,.0f}",
            "examples": f"{statistics.median(finals['examples']):,.0f}",
            "network calls (with gradient), thousands": f"{calls} ({with_gradient})",
            "training, s": f"{quickest(runs):.0f}",
        }
        rows.append(row)
    return markdown(list(rows[0]), [list(row.values()) for row in rows]) if rows else "not run yet"


def pooled_spread(grid: Grid, comparison: Comparison, task: str, records: Sequence[Record]) -> str:
    """Standard deviation of the measure over seeds, from all variants together.

    With few seeds it is better known than that of each variant alone.
    """
    measure = grid.tasks[task].measure
    runs_of = (select(records, task, variant) for variant in comparison.variants)
    values = [[run.final[measure] for run in runs] for runs in runs_of]
    repeated = [of_variant for of_variant in values if len(of_variant) > 1]
    freedom = sum(len(of_variant) - 1 for of_variant in repeated)
    if not freedom:
        return "not known, as no variant was run twice"
    squares = sum(statistics.variance(v) * (len(v) - 1) for v in repeated)
    return f"{(squares / freedom) ** 0.5:.3f} ({freedom} degrees of freedom)"


def quickest(runs: Sequence[Record]) -> float:
    """Seconds of training of the quickest run: what else a machine does makes runs only slower."""
    return min(run.final["seconds"] for run in runs)


def value_at(curve: Sequence[Row], step: float, measure: str) -> float:
    """The measure at that step, between two evaluations on a line.

    Before the first evaluation it is that one's, after the last the last one's.
    """
    steps, values = ([row[name] for row in curve] for name in ("step", measure))
    return float(np.interp(step, steps, values))


def diagnosis_table(
    found: Sequence[dict[str, Any]], section: str, name: str, shown: Sequence[str]
) -> str:
    """Means over diagnoses for each row of a section, which `name` tells from the others."""
    rows = []
    for of_seeds in zip(*(diagnosis[section] for diagnosis in found), strict=True):
        value = of_seeds[0][name]
        is_last = (name, value) == ("step", found[0]["trained_steps"])
        cells = [mean_and_spread([row[metric] for row in of_seeds]) for metric in shown]
        rows.append([f"{value:g}{' (last trained)' * is_last}", *cells])
    titles = {"guidance_weight": "w", "variants": "variants that vote"}
    if section == "guidance":
        titles["margin"] = "margin of the last step"
    return markdown([titles.get(key, spaced(key)) for key in (name, *shown)], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation over seeds, as the tables show them."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def difference(values: Sequence[float], first: Sequence[float]) -> str:
    """Difference of two means, and its standard error."""
    means = statistics.mean(values) - statistics.mean(first)
    if min(len(values), len(first)) == 1:
        return f"{means:+.3f}"
    error = sum(statistics.variance(side) / len(side) for side in (values, first)) ** 0.5
    return f"{means:+.3f} ± {error:.3f}"


# ---- plots -----------------------------------------------------------------------------------


def draw(grid: Grid, records: Sequence[Record], folder: Path) -> None:
    """All plots of the page."""
    panels = []
    for key, comparison in grid.comparisons.items():
        if comparison.curves:
            compared = within(grid, comparison, records)
            draw_curves(grid, comparison, compared, folder / f"{key}.png")
        else:
            panels += [(key, task) for task in comparison.tasks]
    if panels:
        draw_factors(grid, panels, records, folder / "factors.png")
    for variant in grid.variants:
        tasks = [task for task in grid.tasks if diagnoses(records, task, variant)]
        if tasks:
            draw_diagnoses(grid, variant, tasks, records, folder / f"diagnosis_{variant}.png")


@contextmanager
def _figure(path: Path, rows: int) -> Iterator[Any]:
    """Axes [rows][3] of a figure that is written to `path` at the end."""
    figure = Figure(figsize=(11.1, 2.9 * rows), layout="constrained")
    yield figure.subplots(rows, 3, squeeze=False)
    # Without the time of drawing, so that the same records give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_curves(grid: Grid, comparison: Comparison, records: Sequence[Record], path: Path) -> None:
    """Each task's measure against optimizer steps, network calls and training time.

    Lines are means over seeds, shades reach from the lowest to the highest.
    """
    with _figure(path, len(comparison.tasks)) as axes:
        for row, task in zip(axes, comparison.tasks, strict=True):
            measure = grid.tasks[task].measure
            for index, variant in enumerate(comparison.variants):
                if not (runs := select(records, task, variant)):
                    continue
                # By evaluation, the rows of all seeds.
                evaluations = list(zip(*(run.curve for run in runs), strict=False))
                values = [[point[measure] for point in points] for points in evaluations]
                steps = [points[0]["step"] for points in evaluations]
                calls = [step * runs[0].calls_per_step for step in steps]
                seconds = [step * quickest(runs) / runs[0].final["step"] for step in steps]
                means = [statistics.mean(v) for v in values]
                low, high = [min(v) for v in values], [max(v) for v in values]
                colour, title = f"C{index}", grid.variants[variant].title
                for plot, x in zip(row, (steps, calls, seconds), strict=True):
                    plot.plot(x, means, color=colour, label=title)
                    plot.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            row[0].set_ylabel(f"{grid.tasks[task].title}\n{spaced(measure)}")
            labels = ("optimizer steps", "network calls", "training time, s")
            for plot, label in zip(row, labels, strict=True):
                plot.set_xlabel(label)
                plot.grid(alpha=0.3)
        if axes[0][0].lines:
            axes[0][0].legend(fontsize=7)


def draw_factors(
    grid: Grid, panels: Sequence[tuple[str, str]], records: Sequence[Record], path: Path
) -> None:
    """For each comparison and task, a dot for every seed's final measure and a bar at the mean."""
    with _figure(path, -(-len(panels) // 3)) as axes:
        for plot in axes.flat[len(panels) :]:
            plot.set_axis_off()
        for plot, (key, task) in zip(axes.flat, panels, strict=False):
            comparison, measure = grid.comparisons[key], grid.tasks[task].measure
            variants, compared = comparison.variants, within(grid, comparison, records)
            for row, variant in enumerate(variants):
                values = [r.final[measure] for r in select(compared, task, variant)]
                plot.plot(values, [row] * len(values), "o", color=f"C{row}", alpha=0.6)
                if values:
                    plot.plot(statistics.mean(values), row, "|k", markersize=14)
            titles = [grid.variants[variant].title for variant in variants]
            plot.set_yticks(range(len(titles)), titles, fontsize=7)
            plot.set_ylim(len(titles) - 0.5, -0.5)
            # From 0, so that small differences look small.
            plot.set_xlim(0, 1.05 * plot.get_xlim()[1])
            plot.grid(alpha=0.3)
            plot.set_title(f"{spaced(key)}: {grid.tasks[task].title}", fontsize=8)
            plot.set_xlabel(spaced(measure), fontsize=8)


def draw_diagnoses(
    grid: Grid, variant: str, tasks: Sequence[str], records: Sequence[Record], path: Path
) -> None:
    """For each task: measure and margin by step, and the measure under guidance; a line a seed."""
    with _figure(path, len(tasks)) as axes:
        for (by_step, margins, guidance), task in zip(axes, tasks, strict=True):
            found = diagnoses(records, task, variant)
            measure, of_steps = grid.tasks[task].measure, step_measure(grid, task, found[0])
            for plot, section, x, y in (
                (by_step, "steps", "step", of_steps),
                (margins, "steps", "step", "margin"),
                (guidance, "guidance", "guidance_weight", measure),
            ):
                for diagnosis in found:
                    rows = diagnosis[section]
                    plot.plot([row[x] for row in rows], [row[y] for row in rows], marker=".")
                plot.grid(alpha=0.3)
            for plot in (by_step, margins):
                plot.axvline(found[0]["trained_steps"], color="0.7", linestyle="--", zorder=0)
                plot.set_xlabel("improvement steps at test time")
            margins.axhline(0, color="0.7", zorder=0)
            by_step.set_ylabel(f"{grid.tasks[task].title}\n{spaced(of_steps)}")
            margins.set_ylabel("advantage margin")
            guidance.set_xlabel("guidance weight w")
            guidance.set_ylabel(spaced(measure))
