"""What the builder writes: what both layouts share, and the examples of each.

All that is random about a task comes from (seed, task id) and from what it is drawn for.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.augmentation import ORIGINAL, Variants, draw_variants, variant_names
from dataset.build_plan import BuildOptions, Source
from dataset.canvas import PAD, VOCAB_SIZE
from dataset.rendering import draw_translations, render
from dataset.storage import (
    BLANK_IDENTIFIER,
    BLANK_NAME,
    IDENTIFIERS_FILE,
    METADATA_FILE,
    ORIGINALS,
    SET_NAME,
    VARIANTS,
    DatasetMetadata,
    create_array,
    save_array,
    write_rows,
)
from dataset.tasks import Task

SPLITS = ("train", "test")
PURPOSES = ("variants", "translations")
"""What random numbers are drawn for."""
CHUNK_VARIANTS = 1024
"""Variants rendered at a time: bounds a worker's memory whatever --num-aug is."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one task."""

    variants: Variants
    names: str
    """The variants' names as they stand in a JSON list, without its brackets."""

    @property
    def count(self) -> int:
        return len(self.variants.dihedrals)


@dataclass(frozen=True)
class Placement:
    """Where one task's examples start on disk, and the options its rendering needs."""

    source: Source
    variants: Variants
    folder: Path
    options: BuildOptions
    first_example: dict[str, int]


def _generator(task: Task, options: BuildOptions, purpose: str) -> np.random.Generator:
    """A task's own random numbers for its `purpose`, whatever else was drawn."""
    return np.random.default_rng([options.seed, PURPOSES.index(purpose), *task.task_id.encode()])


def draw(source: Source, options: BuildOptions) -> Drawn:
    """Draw the variants of one task and form their names."""
    rng = _generator(source.task, options, "variants")
    variants = draw_variants(source.task, options.num_aug, rng)
    return Drawn(variants, json.dumps(variant_names(source.task.task_id, variants))[1:-1])


def num_examples(sources: list[Source], drawn: list[Drawn], split: str) -> int:
    return sum(n.count * len(s.pairs[split]) for s, n in zip(sources, drawn, strict=True))


def write_identifiers(folder: Path, drawn: list[Drawn], options: BuildOptions) -> None:
    blanks = ", ".join([json.dumps(BLANK_NAME)] * options.puzzle_identifiers_start)
    with (folder / IDENTIFIERS_FILE).open("w", encoding="utf-8") as file:
        file.write("[" + ", ".join([blanks, *(task.names for task in drawn)]) + "]")


def write_index(
    folder: Path, split: str, sources: list[Source], drawn: list[Drawn], options: BuildOptions
) -> None:
    """Write what both layouts share: a split's identifiers, offsets and metadata."""
    counts = np.array([task.count for task in drawn])
    pairs = np.array([len(source.pairs[split]) for source in sources])
    members = counts[pairs > 0]
    identifiers = options.puzzle_identifiers_start + np.arange(counts.sum())
    ends = np.cumsum(np.repeat(pairs, counts)[np.repeat(pairs > 0, counts)])
    arrays = {
        "puzzle_identifiers": identifiers[np.repeat(pairs > 0, counts)],
        "puzzle_indices": np.concatenate([[0], ends]),
        "group_indices": np.concatenate([[0], np.cumsum(members)]),
    }
    for name, array in arrays.items():
        save_array(folder / split, name, array.astype(np.int32))
    metadata = DatasetMetadata(
        pad_id=PAD,
        ignore_label_id=PAD,
        blank_identifier_id=BLANK_IDENTIFIER,
        vocab_size=VOCAB_SIZE,
        seq_len=options.canvas_side**2,
        num_puzzle_identifiers=options.puzzle_identifiers_start + int(counts.sum()),
        total_groups=len(members),
        mean_puzzle_examples=int(ends[-1]) / len(ends),
        total_puzzles=len(ends),
        sets=[SET_NAME],
    )
    (folder / split / METADATA_FILE).write_text(metadata.model_dump_json())


def write_originals(
    folder: Path, split: str, sources: list[Source], drawn: list[Drawn], options: BuildOptions
) -> None:
    """Write a split's pairs as they are, and how each of its puzzles is made from them."""
    members = [
        (source.pairs[split], task.variants)
        for source, task in zip(sources, drawn, strict=True)
        if source.pairs[split]
    ]
    canvases = [
        render(pairs, ORIGINAL, np.zeros((1, len(pairs), 2), np.int64), options.canvas_side)
        for pairs, _ in members
    ]
    for name, arrays in zip(("inputs", "labels"), zip(*canvases, strict=True), strict=True):
        save_array(folder / split, name, np.concatenate(arrays), prefix=ORIGINALS)
    for name in Variants._fields:
        tables = [getattr(variants, name) for _, variants in members]
        save_array(folder / split, name, np.concatenate(tables), prefix=VARIANTS)


def create_canvases(
    folder: Path, sources: list[Source], drawn: list[Drawn], options: BuildOptions
) -> None:
    """Create the arrays of the full layout's examples at their final size."""
    for split in SPLITS:
        shape = (num_examples(sources, drawn, split), options.canvas_side**2)
        create_array(folder / split, "inputs", "uint8", shape)
        create_array(folder / split, "labels", "uint8", shape)


def place_tasks(
    folder: Path, sources: list[Source], drawn: list[Drawn], options: BuildOptions
) -> Iterator[Placement]:
    example = dict.fromkeys(SPLITS, 0)
    for source, task in zip(sources, drawn, strict=True):
        yield Placement(source, task.variants, folder, options, dict(example))
        for split in SPLITS:
            example[split] += task.count * len(source.pairs[split])


def write_examples(placement: Placement) -> None:
    """Render and write all variants of one task."""
    source, options, variants = placement.source, placement.options, placement.variants
    count = len(variants.dihedrals)
    for split in SPLITS:
        pairs = source.pairs[split]
        if not pairs:
            continue
        translations = np.zeros((count, len(pairs), 2), dtype=np.int64)
        if split == "train":
            rng = _generator(source.task, options, "translations")
            translations = draw_translations(pairs, variants, options.canvas_side, rng)
        for start in range(0, count, CHUNK_VARIANTS):
            chunk = slice(start, start + CHUNK_VARIANTS)
            part = Variants(variants.dihedrals[chunk], variants.permutations[chunk])
            inputs, labels = render(pairs, part, translations[chunk], options.canvas_side)
            row = placement.first_example[split] + start * len(pairs)
            write_rows(placement.folder / split, "inputs", row, inputs)
            write_rows(placement.folder / split, "labels", row, labels)
