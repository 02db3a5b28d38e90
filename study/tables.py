"""From records to the tables of RESULTS.md, which stand there between markers.

    <!-- begin NAME -->
    ...written by `python -m study`...
    <!-- end NAME -->

What stands outside the markers is written by hand.
"""

import re
import statistics
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from study.grid import Comparison, Grid
from study.points import Record


def select(records: Sequence[Record], task: str, variant: str) -> list[Record]:
    """The records of one variant, ordered by seed."""
    found = [r for r in records if (r.task, r.variant) == (task, variant)]
    return sorted(found, key=lambda record: record.seed)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation over seeds, as the tables show them."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def difference(values: Sequence[float], first: Sequence[float]) -> str:
    """Difference of two means, and its standard error."""
    means = statistics.mean(values) - statistics.mean(first)
    if min(len(values), len(first)) == 1:
        return f"{means:+.3f}"
    error = sum(statistics.variance(side) / len(side) for side in (values, first)) ** 0.5
    return f"{means:+.3f} ± {error:.3f}"


def comparison_table(
    grid: Grid, comparison: Comparison, task: str, records: Sequence[Record]
) -> str:
    """One row for each variant that has been run."""
    spec = grid.tasks[task]
    measures = [spec.measure, *spec.beside]
    first = [r.final[spec.measure] for r in select(records, task, comparison.variants[0])]
    head = [
        "variant",
        *(_spaced(measure) for measure in measures),
        "difference to the first (standard error)",
        "seeds",
        "parameters",
        "calls an answer",
        "optimizer steps",
        "examples",
        "network calls (with gradient), thousands",
        "training, s",
    ]
    rows = []
    for key in comparison.variants:
        runs = select(records, task, key)
        if not runs:
            continue
        values = [r.final[spec.measure] for r in runs]
        steps = runs[0].final["step"]
        calls = steps * runs[0].calls_per_step / 1000
        with_gradient = steps * runs[0].calls_with_gradient_per_step / 1000
        is_first = key == comparison.variants[0]
        cells = [
            grid.variants[key].title,
            *(mean_and_spread([r.final[measure] for r in runs]) for measure in measures),
            "" if is_first or not first else difference(values, first),
            str(len(runs)),
            f"{runs[0].parameters:,}",
            str(runs[0].calls_per_answer),
            f"{steps:,.0f}",
            f"{statistics.median(r.final['examples'] for r in runs):,.0f}",
            f"{calls:.1f} ({with_gradient:.1f})",
            f"{statistics.median(r.final['seconds'] for r in runs):.0f}",
        ]
        rows.append(cells)
    return markdown(head, rows)


def guidance_table(grid: Grid, task: str, variant: str, records: Sequence[Record]) -> str:
    """The task's measure and the last step's margin under each guidance weight."""
    measure = grid.tasks[task].measure
    found = diagnoses(records, task, variant)
    rows = []
    for index, row in enumerate(found[0]["guidance"]):
        of_seeds = [of["guidance"][index] for of in found]
        cells = [mean_and_spread([of[name] for of in of_seeds]) for name in (measure, "margin")]
        rows.append([f"{row['guidance_weight']:g}", *cells])
    return markdown(["w", _spaced(measure), "margin of the last step"], rows)


def variants_table(task: str, variant: str, records: Sequence[Record]) -> str:
    """Scores against the number of variants that vote."""
    found = diagnoses(records, task, variant)
    rows = []
    for index, row in enumerate(found[0]["variants"]):
        of_seeds = [of["variants"][index] for of in found]
        cells = [mean_and_spread([of[name] for of in of_seeds]) for name in ("pass@1", "pass@2")]
        rows.append([str(row["variants"]), *cells])
    return markdown(["variants that vote", "pass@1", "pass@2"], rows)


def steps_table(grid: Grid, task: str, variant: str, records: Sequence[Record]) -> str:
    """What happens at each improvement step."""
    found = diagnoses(records, task, variant)
    shown = [step_measure(grid, task, found), "cell_accuracy", "distance_to_solution"]
    shown += ["distance_to_target", "cells_changed", "margin", "margin_positive"]
    rows = []
    for index, row in enumerate(found[0]["steps"]):
        last = " (last trained)" if row["step"] == found[0]["trained_steps"] else ""
        of_seeds = [of["steps"][index] for of in found]
        cells = [mean_and_spread([of[name] for of in of_seeds]) for name in shown]
        rows.append([f"{row['step']}{last}", *cells])
    return markdown(["step", *map(_spaced, shown)], rows)


def diagnoses(records: Sequence[Record], task: str, variant: str) -> list[dict[str, Any]]:
    """What diagnose.py found of a variant, ordered by seed."""
    return [r.diagnosis for r in select(records, task, variant) if r.diagnosis is not None]


def step_measure(grid: Grid, task: str, found: Sequence[dict[str, Any]]) -> str:
    """The task's measure where it is known of each step, else exact accuracy (votes are not)."""
    measure = grid.tasks[task].measure
    return measure if measure in found[0]["steps"][0] else "exact_accuracy"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def blocks(grid: Grid, records: Sequence[Record]) -> dict[str, str]:
    """All that goes between markers: name -> Markdown."""
    found = {"extent": extent(records)}
    found |= {
        f"{key} on {task}": comparison_table(grid, comparison, task, records)
        for key, comparison in grid.comparisons.items()
        for task in comparison.tasks
    }
    for task in grid.tasks:
        for key in grid.variants:
            if diagnoses(records, task, key):
                found[f"guidance of {key} on {task}"] = guidance_table(grid, task, key, records)
                found[f"steps of {key} on {task}"] = steps_table(grid, task, key, records)
                if diagnoses(records, task, key)[0]["variants"]:  # Nothing votes on boards.
                    found[f"votes of {key} on {task}"] = variants_table(task, key, records)
    return found


def extent(records: Sequence[Record]) -> str:
    """How much work the records are."""
    hours = sum(record.final["seconds"] for record in records) / 3600
    return f"{len(records)} runs, {hours:.1f} hours of training on one thread in all"


def fill(page: str, texts: dict[str, str]) -> str:
    """The page with everything between markers replaced.

    Raises:
        UserError: the page asks for something that is not there.
    """

    def replacement(match: "re.Match[str]") -> str:
        name = match["name"]
        if name not in texts:
            raise UserError(f"the page of results: nothing is known of '{name}'; there are: "
                            f"{', '.join(texts)}")  # fmt: skip
        return f"<!-- begin {name} -->\n{texts[name]}\n<!-- end {name} -->"

    return re.sub(
        r"<!-- begin (?P<name>[^>]*?) -->.*?<!-- end (?P=name) -->", replacement, page, flags=re.S
    )
