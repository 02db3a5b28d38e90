"""Run the study's grid, or what is left of it, and write its tables and plots.

    python -m study                                # all of study/grid.yaml, then RESULTS.md
    python -m study --list                         # the points, and the command of each
    python -m study --only nqueens/dis             # some points alone
    python -m study --so-far                       # tables and plots of the points recorded so far
    python -m study --report                       # the same from the records kept

Every point is one training run on one thread, --workers of them at a time; a point that is
recorded is not run again, and an interrupted one goes on from its last checkpoint. What tables and
plots show is kept in docs/results/points.json, from which --report works on any machine.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measure import machine, positive
from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_write
from study.grid import GRID_FILE, Grid, Point, load_grid
from study.plots import draw_curves, draw_diagnoses, draw_factors
from study.points import (
    DEFAULT_OUTPUT,
    REPOSITORY,
    Record,
    build_dataset,
    configuration,
    recorded,
    run_point,
    train_command,
)
from study.tables import blocks, fill

RESULTS_PAGE = REPOSITORY / "RESULTS.md"
RESULTS_FOLDER = REPOSITORY / "docs" / "results"
RECORDS_FILE = "points.json"


def run_grid(
    grid: Grid, points: Sequence[Point], output: Path, workers: int
) -> tuple[list[Record], list[str]]:
    """Run the points, some at a time: the records in order, and what went wrong with the others.

    A run that fails (it may diverge) does not stop the others.

    Raises:
        UserError: a point is no configuration of the trainer, or a dataset cannot be built.
    """
    # All of them before the first is run: a mistake should show now, and not in an hour.
    configs = [configuration(grid, point) for point in points]
    for task in dict.fromkeys(point.task for point in points):
        build_dataset(grid, task, output)
    records, complaints = [], []
    threads = ThreadPoolExecutor(workers)
    try:
        futures = [
            threads.submit(run_point, grid, point, config, output)
            for point, config in zip(points, configs, strict=True)
        ]
        for future in tqdm(futures, "study", unit="point"):
            try:
                records.append(future.result())
            except UserError as error:
                complaints.append(str(error))
    finally:  # Also when interrupted: what has not begun must not.
        threads.shutdown(cancel_futures=True)
    return records, complaints


def write_results(
    grid: Grid, records: Sequence[Record], facts: dict[str, Any], page: Path, folder: Path
) -> None:
    """Keep the records, draw the plots, and fill the page's tables.

    Raises:
        UserError: the page asks for what these records do not show; nothing is written then.
    """
    texts = blocks(grid, records) | {"machine": ", ".join(f"{k} {v}" for k, v in facts.items())}
    text = fill(page.read_text(encoding="utf-8"), texts)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": facts, "points": [asdict(record) for record in records]}
    atomic_write(folder / RECORDS_FILE, json.dumps(document))
    for key, comparison in grid.comparisons.items():
        if comparison.curves:
            draw_curves(grid, comparison, records, folder / f"{key}.png")
    factors = [key for key, comparison in grid.comparisons.items() if not comparison.curves]
    if factors:
        draw_factors(grid, factors, records, folder / "factors.png")
    for key, variant in grid.variants.items():
        if variant.diagnose and any(r.diagnosis for r in records if r.variant == key):
            draw_diagnoses(grid, key, records, folder / f"diagnosis_{key}.png")
    atomic_write(page, text)


def read_records(folder: Path) -> tuple[list[Record], dict[str, Any]]:
    """The records that were kept, and the machine that they are of.

    Raises:
        UserError: there are none.
    """
    path = folder / RECORDS_FILE
    if not path.is_file():
        raise UserError(f"--report: {path} does not exist; run the grid first")
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Record(**point) for point in document["points"]], document["machine"]


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m study", description=__doc__)
    add = parser.add_argument
    add("--grid", type=Path, default=GRID_FILE, help="what is compared with what")
    add("--output", type=Path, default=DEFAULT_OUTPUT, help="datasets and runs")
    add("--workers", type=positive, default=2, help="runs at a time, each on one thread")
    add(
        "--only",
        nargs="+",
        metavar="PREFIX",
        help="only points whose name starts so; writes no results",
    )
    add("--list", action="store_true", help="show points and commands, run nothing")
    add("--so-far", action="store_true", help="write results of what is recorded, run nothing")
    add("--report", action="store_true", help="only write tables and plots, from the records kept")
    add("--page", type=Path, default=RESULTS_PAGE, help="page whose tables are filled")
    add("--results", type=Path, default=RESULTS_FOLDER, help="folder of plots and records")
    return parser.parse_args()


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    grid = load_grid(arguments.grid)
    if arguments.report:
        records, facts = read_records(arguments.results)
        write_results(grid, records, facts, arguments.page, arguments.results)
        return
    points = list(grid.points())
    if arguments.only:
        points = [point for point in points if point.name.startswith(tuple(arguments.only))]
        if not points:
            raise UserError(
                f"--only {' '.join(arguments.only)}: no point's name starts so; see --list"
            )
    if arguments.list:
        for point in points:
            command = " ".join(train_command(grid, point, arguments.output))
            sys.stdout.write(f"{point.name}: python {command}\n")
        return
    if not arguments.only and not arguments.page.is_file():
        raise UserError(f"--page {arguments.page} does not exist: its tables are to be filled")
    output = REPOSITORY / arguments.output
    if arguments.so_far:
        points = [point for point in points if recorded(grid, point, output)]
    records, complaints = run_grid(grid, points, output, arguments.workers)
    if not arguments.only:
        facts = machine(torch.device("cpu"))
        facts |= {"threads": f"1 a run, {arguments.workers} runs at a time"}
        write_results(grid, records, facts, arguments.page, arguments.results)
    if complaints:
        raise UserError(f"{len(complaints)} of {len(points)} points failed: {complaints[0]}")


if __name__ == "__main__":
    main()
