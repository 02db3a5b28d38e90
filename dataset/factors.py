"""Of which task each puzzle of a dataset is a variant, and which, by the puzzles' names."""

from pathlib import Path

import numpy as np
import torch

from common.puzzles import NO_TASK, PuzzleFactors
from dataset.augmentation import IDENTITY_PERMUTATION, parse_variant_names
from dataset.storage import (
    BLANK_NAME,
    IDENTIFIERS_FILE,
    DatasetMetadata,
    load_identifiers,
    require,
)


def puzzle_factors(dataset_path: Path, metadata: DatasetMetadata) -> PuzzleFactors:
    """The factors of a dataset's puzzles, whoever built it.

    Where puzzles have no names, as boards, each is a task of its own.

    Raises:
        UserError: a name is of another form, or there are more or fewer than puzzles.
    """
    count = metadata.num_puzzle_identifiers
    if not (dataset_path / IDENTIFIERS_FILE).is_file():
        return PuzzleFactors(
            tuple(str(identifier) for identifier in range(count)),
            torch.arange(count),
            torch.zeros(count, dtype=torch.int64),
            torch.from_numpy(IDENTITY_PERMUTATION.astype(np.int64)).repeat(count, 1),
        )
    identifiers = load_identifiers(dataset_path)
    require(
        len(identifiers) == count,
        f"{dataset_path}: {IDENTIFIERS_FILE} names {len(identifiers)} puzzles, dataset.json counts "
        f"{count}",
    )
    task_ids, variants = parse_variant_names(identifiers)
    names = tuple(dict.fromkeys(task_id for task_id in task_ids if task_id != BLANK_NAME))
    place = {name: number for number, name in enumerate(names)} | {BLANK_NAME: NO_TASK}
    return PuzzleFactors(
        names,
        torch.tensor([place[task_id] for task_id in task_ids]),
        torch.from_numpy(variants.dihedrals.astype(np.int64)),
        torch.from_numpy(variants.permutations.astype(np.int64)),
    )
