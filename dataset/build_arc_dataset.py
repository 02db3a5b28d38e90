r"""Build an augmented dataset from Kaggle-format files.

    python -m dataset.build_arc_dataset --input-file-prefix kaggle/combined/arc-agi \
        --output-dir data/arc1concept-aug-1000 \
        --subsets training evaluation concept --test-set-name evaluation

A task's train pairs, and the test pairs of subsets that are not a test set, go to `train/`; the
test pairs of the test sets go to `test/`. Both halves of one variant share an identifier.

First every task's variants are drawn, which fixes all offsets and what both layouts share. Then the
full layout has every variant rendered and written to its place, while the compact one keeps the
original pairs and how each variant is made from them. All that is random about a task comes from
(seed, task id), so the bytes do not depend on the number of workers. Memory grows with the variants
by their draws and names alone (some 50 bytes each); of the canvases no process ever holds more than
one chunk of one task.
"""

import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

from tqdm import tqdm

from common.errors import CommandParser, exit_cleanly
from common.files import atomic_directory
from common.processes import num_cpus, worker_processes
from dataset.build_layouts import (
    SPLITS,
    create_canvases,
    draw,
    num_examples,
    place_tasks,
    write_examples,
    write_identifiers,
    write_index,
    write_originals,
)
from dataset.build_plan import BuildOptions, Layout, Source, Summary, check_options, load_sources
from dataset.canvas import CANVAS_SIDE
from dataset.storage import BUILD_FILE, TEST_PUZZLES_FILE
from dataset.tasks import save_tasks

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def build(options: BuildOptions) -> Summary:
    """Build the dataset; `options.output_dir` appears only when it is complete.

    Raises:
        UserError: bad options or input files, or an output folder that exists.
    """
    started = time.monotonic()
    check_options(options)
    summary = Summary()
    sources = load_sources(options, summary)
    with (
        worker_processes(options.workers) as executor,
        atomic_directory(options.output_dir) as folder,
    ):
        _fill(folder, sources, options, executor, summary)
    summary.seconds = time.monotonic() - started
    return summary


def _fill(
    folder: Path,
    sources: list[Source],
    options: BuildOptions,
    executor: Executor,
    summary: Summary,
) -> None:
    """Write the whole dataset into `folder`, and into `summary` what was written."""
    results = executor.map(partial(draw, options=options), sources, chunksize=8)
    drawn = list(_progress(results, sources, "drawing"))
    write_identifiers(folder, drawn, options)
    test_tasks = [source.task for source in sources if source.pairs["test"]]
    save_tasks(folder / TEST_PUZZLES_FILE, test_tasks)
    for split in SPLITS:
        (folder / split).mkdir()
        write_index(folder, split, sources, drawn, options)
        if options.layout == "compact":
            write_originals(folder, split, sources, drawn, options)
    if options.layout == "full":
        create_canvases(folder, sources, drawn, options)
        written = executor.map(write_examples, place_tasks(folder, sources, drawn, options))
        for _ in _progress(written, sources, "writing"):
            pass
    summary.tasks = len(sources)
    summary.test_tasks = len(test_tasks)
    summary.test_inputs = sum(len(task.test) for task in test_tasks)
    summary.variants = sum(task.count for task in drawn)
    summary.train_examples = num_examples(sources, drawn, "train")
    summary.test_examples = num_examples(sources, drawn, "test")
    summary.tasks_with_too_few_variants = sum(task.count < options.num_aug + 1 for task in drawn)
    summary.bytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    # Only what the bytes depend on: the same options and tasks give the same folder.
    described = asdict(options)
    for irrelevant in ("input_file_prefix", "output_dir", "workers"):
        del described[irrelevant]
    counted = asdict(summary)
    del counted["seconds"]
    build_record = {"options": described, "summary": counted}
    (folder / BUILD_FILE).write_text(json.dumps(build_record, indent=1))


def _progress(results: Iterator[Result], sources: list[Source], what: str) -> Iterator[Result]:
    return iter(tqdm(results, total=len(sources), desc=what, unit="task", smoothing=0.05))


def parse_arguments() -> BuildOptions:
    parser = CommandParser(
        prog="python -m dataset.build_arc_dataset",
        description="Build an augmented ARC dataset from Kaggle-format JSON files.",
    )
    add = parser.add_argument
    add("--input-file-prefix", required=True, metavar="PREFIX",
        help="reads PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json")  # fmt: skip
    add("--output-dir", required=True, type=Path, help="folder to create; must not exist")
    add("--subsets", required=True, nargs="+", help="subsets to build from, e.g. training concept")
    add("--test-set-name", required=True, help="the subset whose test pairs are held out")
    add("--test-set-name2", help="a second held-out subset")
    add("--num-aug", type=int, default=1000, help="variants per task besides the original")
    add("--seed", type=int, default=42, help="same seed, same bytes")
    add("--puzzle-identifiers-start", type=int, default=1, help="identifier of the first puzzle")
    add("--canvas-side", type=int, default=CANVAS_SIDE,
        help="side of the canvas in cells; tasks with larger grids are left out")  # fmt: skip
    add("--task-ids", nargs="+", default=[], help="build only these tasks")
    add("--allow-leakage", action="store_true",
        help="accept subsets that contain tasks of the test set")  # fmt: skip
    add("--layout", choices=get_args(Layout), default="full",
        help="full: every example as canvases, which other code bases read too; compact: the "
        "original pairs and a table of variants, a hundredth of the size")  # fmt: skip
    add("--workers", type=int, default=num_cpus(), help="processes")
    args = parser.parse_args()
    return BuildOptions(
        input_file_prefix=args.input_file_prefix,
        output_dir=args.output_dir,
        subsets=tuple(dict.fromkeys(args.subsets)),
        test_set_names=tuple(filter(None, (args.test_set_name, args.test_set_name2))),
        num_aug=args.num_aug,
        seed=args.seed,
        puzzle_identifiers_start=args.puzzle_identifiers_start,
        canvas_side=args.canvas_side,
        task_ids=tuple(args.task_ids),
        allow_leakage=args.allow_leakage,
        layout=args.layout,
        workers=args.workers,
    )


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_arguments()
    summary = build(options)
    log.info("Built %s:", options.output_dir)
    for line in summary.lines():
        log.info(line)
    if summary.test_pairs_among_training_pairs:
        log.warning(
            "Note: %d test pair(s) also stand among the training pairs of other tasks.",
            summary.test_pairs_among_training_pairs,
        )


if __name__ == "__main__":
    main()
