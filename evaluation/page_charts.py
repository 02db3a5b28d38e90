"""The charts of a page: what they are called, what they say, and the numbers that they show.

Each function gives a list: of one chart, or of none where its numbers are not known.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from dataset.tasks import Task
from evaluation import figures
from evaluation.charts import (
    Axis,
    Bars,
    Chart,
    Series,
    Table,
    draw_bars,
    draw_chart,
    interval_text,
    percent,
)
from evaluation.uncertainty import Share
from evaluation.voting import Votes

Curves = Mapping[str, figures.Curve]
"""By the name that a legend has."""


def attempts_charts(curves: Curves) -> list[Chart]:
    """Score against the number of attempts; a single curve has its interval as a band."""
    points = _points(curves)
    if len(points) < 2:
        return []
    band = ", with its 95% interval" if len(curves) == 1 else ""
    return [
        draw_chart(
            "Score against attempts",
            f"pass@k over tasks{band}: how often the solution is among the first k answers. Where "
            f"it ends, more attempts would not help.",
            Axis("attempts k", points, True),
            [_series(name, curve, has_band=len(curves) == 1) for name, curve in curves.items()],
            curve_table("k", curves),
        )
    ]


def votes_charts(curves: Curves) -> list[Chart]:
    """Score against the number of variants that vote."""
    points = _points(curves)
    if len(points) < 2:
        return []
    return [
        draw_chart(
            "Score against votes",
            "When only the first n variants of each task vote, the original first.",
            Axis("variants that vote", points, True),
            [_series(name, curve) for name, curve in curves.items()],
            curve_table("variants", curves),
        )
    ]


def step_charts(document: Mapping[str, Any]) -> list[Chart]:
    """Accuracy of single answers after each step; of the first checkpoint where several vote."""
    curves, whose = figures.by_step(document), ""
    if not curves and document.get("checkpoints"):
        curves, whose = figures.by_step(document["checkpoints"][0]), " Of checkpoint 1."
    if not curves:
        return []
    steps = range(1, len(next(iter(curves.values()))) + 1)
    names = {figures.STEP_METRICS[key]: values for key, values in curves.items()}
    rows = [(f"{s}", *(percent(values[s - 1]) for values in names.values())) for s in steps]
    return [
        draw_chart(
            "Accuracy by step",
            f"Of single answers, after each improvement step.{whose}",
            Axis("improvement step", steps),
            [Series(name, list(zip(steps, values, strict=True))) for name, values in names.items()],
            Table(("step", *names), rows),
        )
    ]


def calibration_charts(votes: Votes, tasks: Sequence[Task]) -> list[Chart]:
    """How often the first answer is right, against its share of the votes; if any is known."""
    bins = figures.calibration(votes, tasks)
    if not bins:
        return []
    series = Series(
        "first answer",
        [(b.mean_share, b.right.value) for b in bins],
        [(b.right.low, b.right.high) for b in bins],
        is_joined=False,
    )
    rows = [
        (percent(b.mean_share), percent(b.right.value), interval_text(b.right), f"{b.right.total}")
        for b in bins
    ]
    return [
        draw_chart(
            "What a share of the votes is worth",
            "How often the first answer is right, by the share of the votes that it got. On the "
            "dotted line the share is the chance of being right.",
            Axis("share of the votes", (0, 0.2, 0.4, 0.6, 0.8, 1), is_share=True),
            [series],
            Table(("share of votes", "right", "95%", "test inputs"), rows),
            has_diagonal=True,
        )
    ]


def kind_bars(kinds: Mapping[str, Mapping[str, Share]]) -> Bars:
    """Score by kind of task."""
    return draw_bars(
        "Score by kind of task",
        "pass@2 with its 95% interval and the number of tasks. Sizes and colours are those that "
        "the demonstrations show; the longest side is that of all known grids.",
        {title: dict(table) for title, table in kinds.items()},
    )


def _points(curves: Curves) -> list[int]:
    """Where any of the curves has one."""
    return sorted({x for curve in curves.values() for x, _ in curve})


def _series(name: str, curve: figures.Curve, has_band: bool = False) -> Series:
    """A curve as it is drawn, with its intervals if it is to have a band."""
    intervals = [(share.low, share.high) for _, share in curve] if has_band else []
    return Series(name, [(x, share.value) for x, share in curve], intervals)


def curve_table(x_name: str, curves: Curves) -> Table:
    """Curves as numbers; nothing where only others have a point."""
    by_x = [dict(curve) for curve in curves.values()]
    rows = []
    for x in _points(curves):
        found = [curve.get(x) for curve in by_x]
        cells = [(percent(s.value), interval_text(s)) if s else ("", "") for s in found]
        rows.append((f"{x}", *chain.from_iterable(cells)))
    return Table((x_name, *chain.from_iterable((name, "95%") for name in curves)), rows)
