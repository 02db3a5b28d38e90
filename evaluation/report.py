"""Self-contained HTML pages: what stands on them, and how they are put together.

A page needs no network: its looks, its script and its data are inside. Without the script it still
says everything but the grids, which the script draws when they come into view. `page/` holds
markup, looks and script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from common.files import atomic_write
from evaluation.charts import BOX, Bars, Chart, interval_text, percent
from evaluation.gallery import Gallery, case_name
from evaluation.grids import ARC_COLOURS, DOT_ON, LINE_COLOUR, NUM_COLOURS, WHITE
from evaluation.uncertainty import Share


@dataclass(frozen=True)
class Score:
    """A headline: a share with its interval, and over what."""

    name: str
    share: Share
    over: str

    @property
    def value(self) -> str:
        return percent(self.share.value)

    @property
    def interval(self) -> str:
        return interval_text(self.share)


@dataclass(frozen=True)
class Page:
    """What a page says."""

    title: str
    summary: str
    gallery: Gallery
    scores: Sequence[Score] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    bars: Bars | None = None
    verdict: Sequence[str] = ()
    """Sentences below the scores."""


def write_page(path: Path, page: Page) -> None:
    """Write a page to `path`."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "page")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    colours = {
        "cells": [f"#{colour}" for colour in ARC_COLOURS.split()],
        "dots": ["#fff" if dot == WHITE else "#000" for dot in DOT_ON[:NUM_COLOURS]],
        "line": f"#{LINE_COLOUR}",
    }
    text = environment.get_template("page.html.j2").render(
        page=page,
        gallery=page.gallery,
        colours=colours,
        case_name=case_name,
        chart_box=BOX,
    )
    atomic_write(path, text)
