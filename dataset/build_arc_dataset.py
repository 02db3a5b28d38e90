r"""Build an augmented dataset from Kaggle-format files.

    python -m dataset.build_arc_dataset --input-file-prefix kaggle/combined/arc-agi \
        --output-dir data/arc1concept-aug-1000 \
        --subsets training evaluation concept --test-set-name evaluation

A task's train pairs, and the test pairs of subsets that are not a test set, go to `train/`; the
test pairs of the test sets go to `test/`. Both halves of one variant share an identifier.

Two passes over the tasks, each task on its own: the first counts its distinct variants, which
fixes every offset; the second draws them again, renders them and writes them to their place. All
that is random about a task comes from (seed, task id), so the bytes do not depend on the number
of workers, and no process ever holds more than one chunk of one task, and of its variants no more
than their draws and names (some 0.5 kB each).
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_directory
from dataset.augmentation import Variants, draw_variants, variant_name
from dataset.build_plan import BuildOptions, Source, Summary, check_options, load_sources
from dataset.canvas import CANVAS_SIDE, PAD, VOCAB_SIZE
from dataset.rendering import draw_translations, render
from dataset.storage import (
    BLANK_IDENTIFIER,
    BLANK_NAME,
    BUILD_FILE,
    IDENTIFIERS_FILE,
    METADATA_FILE,
    SET_NAME,
    TEST_PUZZLES_FILE,
    DatasetMetadata,
    create_array,
    write_rows,
)
from dataset.tasks import Task, save_tasks

SPLITS = ("train", "test")
CHUNK_VARIANTS = 1024
"""Variants rendered at a time: bounds a worker's memory whatever --num-aug is."""

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Placement:
    """Where one task's variants start on disk, and the options its rendering needs."""

    source: Source
    folder: Path
    options: BuildOptions
    first_identifier: int
    first_puzzle: dict[str, int]
    first_example: dict[str, int]


def build(options: BuildOptions) -> Summary:
    """Build the dataset; `options.output_dir` appears only when it is complete.

    Raises:
        UserError: bad options or input files, or an output folder that exists.
    """
    started = time.monotonic()
    check_options(options)
    summary = Summary()
    sources = load_sources(options, summary)
    try:
        with (
            _executor(options.workers) as executor,
            atomic_directory(options.output_dir) as folder,
        ):
            _fill(folder, sources, options, executor, summary)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory: try fewer --workers"
        ) from error
    summary.seconds = time.monotonic() - started
    return summary


def _fill(
    folder: Path,
    sources: list[Source],
    options: BuildOptions,
    executor: Executor,
    summary: Summary,
) -> None:
    """Write the whole dataset into `folder` and count what was written."""
    drawn = executor.map(partial(_count_variants, options=options), sources, chunksize=4)
    counts = list(_progress(drawn, sources, "drawing"))
    _create(folder, sources, counts, options)
    names = executor.map(_write_task, _place_tasks(folder, sources, counts, options))
    _write_identifiers(folder, _progress(names, sources, "writing"), options)
    test_tasks = [source.task for source in sources if source.pairs["test"]]
    save_tasks(folder / TEST_PUZZLES_FILE, test_tasks)
    summary.tasks = len(sources)
    summary.test_tasks = len(test_tasks)
    summary.test_inputs = sum(len(task.test) for task in test_tasks)
    summary.variants = sum(counts)
    summary.train_examples = _num_examples(sources, counts, "train")
    summary.test_examples = _num_examples(sources, counts, "test")
    summary.tasks_with_too_few_variants = sum(n < options.num_aug + 1 for n in counts)
    summary.bytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    # Only what the bytes depend on: the same options and tasks give the same folder.
    described = asdict(options)
    for irrelevant in ("input_file_prefix", "output_dir", "workers"):
        del described[irrelevant]
    counted = asdict(summary)
    del counted["seconds"]
    build_record = {"options": described, "summary": counted}
    (folder / BUILD_FILE).write_text(json.dumps(build_record, indent=1))


def _generator(task: Task, options: BuildOptions) -> np.random.Generator:
    return np.random.default_rng([options.seed, *task.task_id.encode()])


def _count_variants(source: Source, options: BuildOptions) -> int:
    rng = _generator(source.task, options)
    return len(draw_variants(source.task, options.num_aug, rng).dihedrals)


def _write_task(placement: Placement) -> list[str]:
    """Render and write all variants of one task; return their names in order."""
    source, options = placement.source, placement.options
    rng = _generator(source.task, options)
    variants = draw_variants(source.task, options.num_aug, rng)
    count = len(variants.dihedrals)
    for split in SPLITS:
        pairs = source.pairs[split]
        if not pairs:
            continue
        translations = np.zeros((count, len(pairs), 2), dtype=np.int64)
        if split == "train":
            translations = draw_translations(pairs, variants, options.canvas_side, rng)
        for start in range(0, count, CHUNK_VARIANTS):
            chunk = slice(start, start + CHUNK_VARIANTS)
            part = Variants(variants.dihedrals[chunk], variants.permutations[chunk])
            inputs, labels = render(pairs, part, translations[chunk], options.canvas_side)
            row = placement.first_example[split] + start * len(pairs)
            write_rows(placement.folder / split, "inputs", row, inputs)
            write_rows(placement.folder / split, "labels", row, labels)
        identifiers = placement.first_identifier + np.arange(count, dtype=np.int32)
        ends = placement.first_example[split] + len(pairs) * np.arange(1, count + 1, dtype=np.int32)
        puzzle = placement.first_puzzle[split]
        write_rows(placement.folder / split, "puzzle_identifiers", puzzle, identifiers)
        # Offset 0 is the file's own zero: each task writes where its puzzles end.
        write_rows(placement.folder / split, "puzzle_indices", puzzle + 1, ends)
    return [
        variant_name(source.task.task_id, int(dihedral), permutation)
        for dihedral, permutation in zip(*variants, strict=True)
    ]


def _num_examples(sources: list[Source], counts: list[int], split: str) -> int:
    return sum(n * len(s.pairs[split]) for s, n in zip(sources, counts, strict=True))


def _create(folder: Path, sources: list[Source], counts: list[int], options: BuildOptions) -> None:
    """Create all arrays at their final size, and the metadata."""
    cells = options.canvas_side**2
    for split in SPLITS:
        path = folder / split
        path.mkdir()
        members = [n for s, n in zip(sources, counts, strict=True) if s.pairs[split]]
        examples = _num_examples(sources, counts, split)
        create_array(path, "inputs", "uint8", (examples, cells))
        create_array(path, "labels", "uint8", (examples, cells))
        create_array(path, "puzzle_identifiers", "int32", (sum(members),))
        create_array(path, "puzzle_indices", "int32", (sum(members) + 1,))
        create_array(path, "group_indices", "int32", (len(members) + 1,))
        write_rows(path, "group_indices", 1, np.cumsum(members, dtype=np.int32))
        metadata = DatasetMetadata(
            pad_id=PAD,
            ignore_label_id=PAD,
            blank_identifier_id=BLANK_IDENTIFIER,
            vocab_size=VOCAB_SIZE,
            seq_len=cells,
            num_puzzle_identifiers=options.puzzle_identifiers_start + sum(counts),
            total_groups=len(members),
            mean_puzzle_examples=examples / sum(members),
            total_puzzles=sum(members),
            sets=[SET_NAME],
        )
        (path / METADATA_FILE).write_text(metadata.model_dump_json())


def _place_tasks(
    folder: Path, sources: list[Source], counts: list[int], options: BuildOptions
) -> Iterator[Placement]:
    identifier = options.puzzle_identifiers_start
    puzzle, example = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for source, count in zip(sources, counts, strict=True):
        yield Placement(source, folder, options, identifier, dict(puzzle), dict(example))
        identifier += count
        for split in SPLITS:
            puzzle[split] += count if source.pairs[split] else 0
            example[split] += count * len(source.pairs[split])


def _write_identifiers(
    folder: Path, names_of_tasks: Iterator[list[str]], options: BuildOptions
) -> None:
    """Stream the names to a JSON list, task by task."""
    with (folder / IDENTIFIERS_FILE).open("w", encoding="utf-8") as file:
        file.write("[" + ", ".join([json.dumps(BLANK_NAME)] * options.puzzle_identifiers_start))
        for names in names_of_tasks:
            file.write("".join(f", {json.dumps(name)}" for name in names))
        file.write("]")


def _progress(results: Iterator[Result], sources: list[Source], what: str) -> Iterator[Result]:
    return iter(tqdm(results, total=len(sources), desc=what, unit="task", smoothing=0.05))


def _num_cpus() -> int:
    """CPUs that this process may use; macOS cannot tell, there it is all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _executor(workers: int) -> Executor:
    return ProcessPoolExecutor(
        max_workers=workers,
        mp_context=get_context("spawn"),
        initializer=_end_with_parent,
        initargs=(os.getpid(),),
    )


def _end_with_parent(parent: int) -> None:
    """Let a worker end when the builder is killed; by itself it would wait for tasks forever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    add("--workers", type=int, default=_num_cpus(), help="processes")
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
