r"""Build an augmented dataset from Kaggle-format files.

    python -m dataset.build_arc_dataset --input-file-prefix kaggle/combined/arc-agi \
        --output-dir data/arc1concept-aug-1000 \
        --subsets training evaluation concept --test-set-name evaluation

A task's train pairs, and the test pairs of subsets that are not a test set, go to `train/`; the
test pairs of the test sets go to `test/`. With --validation-tasks, the test pairs of some tasks
outside the test sets go to `validation/` in place of `train/`. A variant has the same identifier in
all of them. With --exclude-tasks-of, tasks of one subset are left out of the others:

    --subsets training2 evaluation concept --test-set-name evaluation --exclude-tasks-of evaluation

Plan, draw, write: `dataset.build_plan` decides where every pair goes; then every task's variants
are drawn, which fixes all offsets and what both layouts share. For the full layout each variant is
rendered and written to its place; the compact one keeps the original pairs and how each variant is
made from them. All that is random about a task comes from (seed, task id), so the bytes do not
depend on the number of workers. Memory grows with the variants by their draws and names alone (some
50 bytes each); of the canvases no process ever holds more than one chunk of one task.
"""

import json
import logging
import time
from concurrent.futures import Executor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import exit_cleanly
from common.files import atomic_directory
from common.flags import parse_flags
from common.locks import exclusive
from common.processes import worker_processes
from common.progress import EXAMPLE, follow
from common.tokens import PAD
from dataset.augmentation import (
    ORIGINAL,
    Variants,
    augment,
    draw_variants,
    transformed_sizes,
    variant_names,
)
from dataset.build_plan import FOR_ORIGINS, FOR_VARIANTS, BuildOptions, Source, load_sources
from dataset.canvas import VOCAB_SIZE, Canvases, place
from dataset.manifest import write_manifest
from dataset.storage import (
    BLANK_NAME,
    BUILD_FILE,
    IDENTIFIERS_FILE,
    ORIGINALS,
    TEST_SETS_KEY,
    VARIANTS,
    create_array,
    puzzles_file,
    save_array,
    write_index,
    write_rows,
)
from dataset.task_files import FILLERS_KEY, hidden_places, save_tasks
from dataset.tasks import Pair, Task

CHUNK_VARIANTS = 1024
"""Variants rendered at a time: bounds a worker's memory whatever --num-aug is."""

log = logging.getLogger(__name__)


def build(options: BuildOptions) -> dict[str, Any]:
    """Build the dataset; `options.output_dir` appears only when it is complete.

    Returns what was built: counts by name, as the command prints them.

    Raises:
        UserError: as `load_sources`.
    """
    started = time.monotonic()
    sources, met = load_sources(options)
    test_sets = {key: met.pop(key) for key in [TEST_SETS_KEY] if key in met}
    fill_in = options.hidden_solutions == "filler"
    with (
        exclusive(options.output_dir, "--output-dir"),
        atomic_directory(options.output_dir) as folder,
        # Workers end before the folder is renamed or, after an error, removed.
        worker_processes(options.workers) as executor,
    ):
        results = executor.map(partial(draw, options=options), sources, chunksize=8)
        drawn = (
            (source._replace(variants=variants), names)
            for source, (variants, names) in zip(sources, results, strict=True)
        )
        found = list(follow(drawn, "drawing", "task", len(sources), lambda d: d[0].num_examples))
        sources = [source for source, _ in found]
        write_identifiers(folder, [names for _, names in found], options)
        for split in options.splits:
            (folder / split).mkdir()
            if split != "train":
                save_tasks(folder / puzzles_file(split), tasks_of(sources, split), fill_in)
            write_split_index(folder, split, sources, options)
            if options.layout == "compact":
                write_originals(folder, split, sources, options)
        if options.layout == "full":
            write_canvases(folder, sources, options, executor)
        summary = count(sources, options) | met
        summary["bytes"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        record = {"options": options.model_dump(mode="json"), "summary": summary, **test_sets}
        if fill_in:
            record[FILLERS_KEY] = hidden_places(tasks_of(sources, "test"))
        (folder / BUILD_FILE).write_text(json.dumps(record, indent=1))
        write_manifest(folder)
    return summary | {"seconds": round(time.monotonic() - started, 1)}


def tasks_of(sources: list[Source], split: str) -> list[Task]:
    """The tasks of which some pairs are in a split."""
    return [source.task for source in sources if source.pairs[split]]


def count(sources: list[Source], options: BuildOptions) -> dict[str, Any]:
    """What is built from the sources."""
    counts: dict[str, Any] = {"tasks": len(sources)}
    for split in options.splits[1:]:
        tasks = tasks_of(sources, split)
        counts[f"{split}_tasks"] = len(tasks)
        counts[f"{split}_inputs"] = sum(len(task.test) for task in tasks)
    counts["variants"] = sum(source.num_variants for source in sources)
    for split in options.splits:
        counts[f"{split}_examples"] = first_rows(sources, split)[-1]
    too_few = sum(source.num_variants <= options.num_aug for source in sources)
    return counts | {"tasks_with_too_few_variants": too_few}


# ---- draw ------------------------------------------------------------------------------------


def draw(source: Source, options: BuildOptions) -> tuple[Variants, str]:
    """The variants of one task, and their names as they stand in a JSON list, without brackets."""
    rng = _generator(source.task, options, FOR_VARIANTS)
    variants = draw_variants(source.task, options.num_aug, rng)
    return variants, json.dumps(variant_names(source.task.task_id, variants))[1:-1]


def draw_origins(
    pairs: tuple[Pair, ...], variants: Variants, side: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions [V, pairs, 2] of the grids' top-left; one pair of each variant stays at (0, 0)."""
    count = len(variants.dihedrals)
    uniform = rng.random((count, len(pairs), 2))
    stays = rng.integers(0, len(pairs), size=count)
    sizes = np.array([np.max([grid.shape for grid in pair.grids()], axis=0) for pair in pairs])
    room = side - transformed_sizes(np.tile(sizes, (count, 1, 1)), variants.dihedrals)
    origins = np.floor(uniform * (room + 1)).astype(np.int64)
    origins[np.arange(count), stays] = 0
    return origins


def _generator(task: Task, options: BuildOptions, stream: int) -> np.random.Generator:
    """A task's own random numbers, whatever else was drawn."""
    return np.random.default_rng([options.seed, stream, *task.task_id.encode()])


# ---- render ----------------------------------------------------------------------------------


def render(
    pairs: tuple[Pair, ...], variants: Variants, origins: npt.NDArray[np.int64], side: int
) -> tuple[Canvases, Canvases]:
    """Inputs and labels [V * pairs, side * side], variant by variant, grids at their origins."""
    count = len(variants.dihedrals)
    canvases = np.empty((2, count, len(pairs), side * side), dtype=np.uint8)
    for dihedral in np.unique(variants.dihedrals):
        rows = np.flatnonzero(variants.dihedrals == dihedral)
        for p, pair in enumerate(pairs):
            top, left = origins[rows, p, 0], origins[rows, p, 1]
            for half, grid in enumerate((pair.input, pair.output)):
                if grid is None:  # A hidden solution.
                    canvases[half, rows, p] = PAD
                else:
                    shown = augment(grid, int(dihedral), variants.permutations[rows])
                    canvases[half, rows, p] = place(shown, side, top, left)
    inputs, labels = canvases.reshape(2, count * len(pairs), side * side)
    return inputs, labels


# ---- write -----------------------------------------------------------------------------------


def first_rows(sources: list[Source], split: str) -> list[int]:
    """Row of each task's first example in a split, and at the end the number of all examples."""
    return list(accumulate((s.num_variants * len(s.pairs[split]) for s in sources), initial=0))


def write_identifiers(folder: Path, names: list[str], options: BuildOptions) -> None:
    blanks = [json.dumps(BLANK_NAME)] * options.puzzle_identifiers_start
    content = f"[{', '.join([*blanks, *names])}]"
    (folder / IDENTIFIERS_FILE).write_text(content, encoding="utf-8")


def write_split_index(
    folder: Path, split: str, sources: list[Source], options: BuildOptions
) -> None:
    """Write what both layouts share: a split's identifiers, offsets and metadata."""
    counts = np.array([source.num_variants for source in sources])
    pairs = np.array([len(source.pairs[split]) for source in sources])
    # How many examples each puzzle, of all tasks, has in this split.
    examples = np.repeat(pairs, counts)
    write_index(
        folder / split,
        options.puzzle_identifiers_start + np.flatnonzero(examples),
        examples[examples > 0],
        counts[pairs > 0],
        vocab_size=VOCAB_SIZE,
        seq_len=options.canvas_side**2,
        num_puzzle_identifiers=options.puzzle_identifiers_start + len(examples),
    )


def write_originals(folder: Path, split: str, sources: list[Source], options: BuildOptions) -> None:
    """Write a split's pairs as they are, and how each of its puzzles is made from them."""
    path = folder / split
    members = [source for source in sources if source.pairs[split]]
    pairs = tuple(pair for source in members for pair in source.pairs[split])
    origins = np.zeros((1, len(pairs), 2), dtype=np.int64)
    inputs, labels = render(pairs, ORIGINAL, origins, options.canvas_side)
    save_array(path, "inputs", inputs, prefix=ORIGINALS)
    save_array(path, "labels", labels, prefix=ORIGINALS)
    dihedrals = np.concatenate([source.variants.dihedrals for source in members])
    permutations = np.concatenate([source.variants.permutations for source in members])
    save_array(path, "dihedrals", dihedrals, prefix=VARIANTS)
    save_array(path, "permutations", permutations, prefix=VARIANTS)


def write_canvases(
    folder: Path, sources: list[Source], options: BuildOptions, executor: Executor
) -> None:
    """Reserve the space for all examples, then render and write them."""
    jobs, total = [], 0
    for split in options.splits:
        *rows, num_examples = first_rows(sources, split)
        for name in ("inputs", "labels"):
            create_array(folder / split, name, "uint8", (num_examples, options.canvas_side**2))
        jobs += [(s, split, row) for s, row in zip(sources, rows, strict=True) if s.pairs[split]]
        total += num_examples
    written = executor.map(partial(write_examples, folder, options), *zip(*jobs, strict=True))
    for _ in follow(written, "writing", EXAMPLE, total, int):
        pass


def write_examples(
    folder: Path, options: BuildOptions, source: Source, split: str, first_row: int
) -> int:
    """Render and write all variants of one task's pairs in one split; how many examples."""
    pairs, variants, side = source.pairs[split], source.variants, options.canvas_side
    origins = np.zeros((source.num_variants, len(pairs), 2), dtype=np.int64)
    if split == "train":
        origins = draw_origins(pairs, variants, side, _generator(source.task, options, FOR_ORIGINS))
    for start in range(0, source.num_variants, CHUNK_VARIANTS):
        chunk = slice(start, start + CHUNK_VARIANTS)
        part = Variants(variants.dihedrals[chunk], variants.permutations[chunk])
        inputs, labels = render(pairs, part, origins[chunk], side)
        row = first_row + start * len(pairs)
        write_rows(folder / split, "inputs", row, inputs)
        write_rows(folder / split, "labels", row, labels)
    return source.num_variants * len(pairs)


# ---- the command -----------------------------------------------------------------------------


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_flags(BuildOptions, "python -m dataset.build_arc_dataset", __doc__)
    summary = build(options)
    log.info("Built %s:", options.output_dir)
    for key, value in summary.items():
        if isinstance(value, dict):  # By subset, or by reason.
            value = [f"{number:,} ({name})" for name, number in value.items()]
        text = ", ".join(value) or "none" if isinstance(value, list) else f"{value:,}"
        log.info("  %s: %s", key.replace("_", " "), text)
    for split in options.splits[1:]:
        if leaked := summary[f"{split}_pairs_among_training_pairs"]:
            log.warning(
                "Note: %d %s pair(s) also stand among the training pairs of other tasks.",
                leaked,
                split,
            )


if __name__ == "__main__":
    main()
