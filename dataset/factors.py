"""Of which task each puzzle of a dataset is a variant, and which, by the puzzles' names."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.puzzles import NO_TASK, PuzzleFactors
from dataset.augmentation import parse_variant_names
from dataset.storage import (
    BLANK_NAME,
    IDENTIFIERS_FILE,
    DatasetMetadata,
    fingerprint,
    load_identifiers,
)
from dataset.tasks import SEPARATOR


def puzzle_factors(dataset_path: Path, metadata: DatasetMetadata) -> PuzzleFactors:
    """The factors of a dataset's puzzles, whoever built it.

    Where no puzzle has a name, as of boards, each identifier is a task of its own.

    Raises:
        UserError: a name is of another form, or there are more or fewer than puzzles.
    """
    count = metadata.num_puzzle_identifiers
    identifiers = [BLANK_NAME] * count
    if (dataset_path / IDENTIFIERS_FILE).is_file():
        identifiers = load_identifiers(dataset_path, count)
    if all(name == BLANK_NAME for name in identifiers):
        identifiers = [str(identifier) for identifier in range(count)]
    task_ids, variants = parse_variant_names(identifiers)
    names = tuple(dict.fromkeys(task_id for task_id in task_ids if task_id != BLANK_NAME))
    place = {name: number for number, name in enumerate(names)} | {BLANK_NAME: NO_TASK}
    return PuzzleFactors(
        names,
        torch.tensor([place[task_id] for task_id in task_ids]),
        torch.from_numpy(variants.dihedrals.astype(np.int64)),
        torch.from_numpy(variants.permutations.astype(np.int64)),
    )


def identity_of(
    dataset_path: Path, metadata: DatasetMetadata, factored: bool
) -> tuple[dict[str, Any], PuzzleFactors | None]:
    """What a checkpoint's puzzle embeddings depend on, and for factored ones the factors.

    The fingerprint of the dataset (see `dataset.storage`); with factors also its `tasks`, in order.
    """
    found = fingerprint(dataset_path, metadata)
    if not factored:
        return found, None
    factors = puzzle_factors(dataset_path, metadata)
    return found | {"tasks": list(factors.task_names)}, factors


def unaugmented_puzzles(dataset_path: Path) -> dict[str, int]:
    """A task's id -> the identifier of the task as it is; empty where no puzzle has a name."""
    if not (dataset_path / IDENTIFIERS_FILE).is_file():
        return {}
    names = load_identifiers(dataset_path)
    return {
        name: identifier
        for identifier, name in enumerate(names)
        if name != BLANK_NAME and SEPARATOR not in name
    }
