"""Augmentation of a task: eight dihedral transforms times permutations of the colours 1-9.

Every pair of a task is transformed alike, so the variant is a puzzle of its own, named
`{task_id}|||t{dihedral}|||{the permutation as ten digits}`; the original keeps its bare id.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from dataset.tasks import NUM_COLOURS, SEPARATOR, Grid, Task

NUM_DIHEDRALS = 8
DIHEDRALS = (
    (False, False, False),  # 0 identity
    (True, False, True),  # 1 rot90, counter-clockwise
    (False, True, True),  # 2 rot90 twice
    (True, True, False),  # 3 rot90 three times
    (False, False, True),  # 4 fliplr
    (False, True, False),  # 5 flipud
    (True, False, False),  # 6 transpose
    (True, True, True),  # 7 fliplr of rot90
)
"""Each transform as (transpose, flip rows, flip columns); the flips come first."""
INVERSE_DIHEDRAL = (0, 3, 2, 1, 4, 5, 6, 7)
IDENTITY_PERMUTATION = np.arange(NUM_COLOURS, dtype=np.uint8)
DRAWS_PER_VARIANT = 5
"""Draws that may be spent for each variant asked for, before a task counts as exhausted."""
DRAWING_ROUNDS = 4
"""Equal parts in which they are spent: the first suffices for most tasks, one more is seldom."""

_DIGITS = sorted("0123456789")
_SUFFIX = f"{SEPARATOR}t0{SEPARATOR}0123456789"


class Variants(NamedTuple):
    """Variants of one task, row 0 the original."""

    dihedrals: npt.NDArray[np.uint8]
    """[V], 0-7."""
    permutations: npt.NDArray[np.uint8]
    """[V, 10]: colour c becomes permutations[v, c]; 0 stays 0."""


ORIGINAL = Variants(np.zeros(1, dtype=np.uint8), IDENTITY_PERMUTATION[None])
"""The task as it is."""


def transformed_sizes(
    sizes: npt.NDArray[np.int64], dihedrals: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """Rows and columns [N, ..., 2] of grids of `sizes` after the dihedrals [N]."""
    transposes = np.array([transpose for transpose, _, _ in DIHEDRALS])[dihedrals]
    transposes = transposes.reshape(len(dihedrals), *[1] * (sizes.ndim - 1))
    return np.where(transposes, sizes[..., ::-1], sizes)


def transform(grids: npt.NDArray[Any], dihedral: int) -> npt.NDArray[Any]:
    """One dihedral transform of the last two axes of `grids` [..., rows, cols], as a view."""
    assert 0 <= dihedral < NUM_DIHEDRALS, f"dihedral transforms are 0 to 7, got {dihedral}"
    transpose, flip_rows, flip_cols = DIHEDRALS[dihedral]
    flipped = grids[..., :: -1 if flip_rows else 1, :: -1 if flip_cols else 1]
    return np.swapaxes(flipped, -2, -1) if transpose else flipped


def augment(grid: Grid, dihedral: int, permutations: npt.NDArray[np.uint8]) -> Grid:
    """The grid as a variant shows it; with permutations [N, 10] a stack of N variants."""
    return permutations[..., transform(grid, dihedral)]


def invert(grid: Grid, dihedral: int, permutation: npt.NDArray[np.uint8]) -> Grid:
    """The inverse of `augment`: from the variant's grid back to the task's own."""
    return transform(np.argsort(permutation).astype(np.uint8)[grid], INVERSE_DIHEDRAL[dihedral])


def variant_names(task_id: str, variants: Variants) -> list[str]:
    """The puzzles' names in `identifiers.json`; the bare id for row 0, the original."""
    characters = np.tile(np.frombuffer(_SUFFIX.encode(), np.uint8), (len(variants.dihedrals), 1))
    characters[:, len(SEPARATOR) + 1] += variants.dihedrals
    characters[:, -NUM_COLOURS:] = ord("0") + variants.permutations
    # Rows of bytes read as strings: a million names in a moment, where a loop takes seconds.
    suffixes = characters.view(f"S{len(_SUFFIX)}")[:, 0].astype(str).tolist()
    return [task_id, *(task_id + suffix for suffix in suffixes[1:])]


def parse_variant_name(name: str) -> tuple[str, int, npt.NDArray[np.uint8]]:
    """Task id, dihedral and permutation [10] of a puzzle's name.

    Raises:
        UserError: the name has the separator but not this form.
    """
    task_id, *parts = name.split(SEPARATOR)
    if not parts:
        return task_id, 0, IDENTITY_PERMUTATION
    if len(parts) == 2 and re.fullmatch("t[0-7]", parts[0]) and sorted(parts[1]) == _DIGITS:
        permutation = np.array([int(digit) for digit in parts[1]], dtype=np.uint8)
        return task_id, int(parts[0][1]), permutation
    raise UserError(
        f"puzzle name '{name}' is not of the form task|||t<0-7>|||<ten digits>: "
        f"the dataset's identifiers.json comes from another kind of builder"
    )


def parse_variant_names(names: Sequence[str]) -> tuple[list[str], Variants]:
    """Task ids and variants [N] of puzzles' names: a million of them in seconds.

    Raises:
        UserError: see `parse_variant_name`.
    """
    task_ids = [name.partition(SEPARATOR)[0] for name in names]
    suffixes = [
        name[len(task_id) :] or _SUFFIX for name, task_id in zip(names, task_ids, strict=True)
    ]
    for name, suffix in zip(names, suffixes, strict=True):
        if len(suffix) != len(_SUFFIX) or not suffix.isascii():
            parse_variant_name(name)  # Says what is wrong with it.
    letters = np.array(suffixes, dtype="S").view(np.uint8).reshape(len(names), len(_SUFFIX))
    variants = Variants(
        letters[:, len(SEPARATOR) + 1] - ord("0"), letters[:, -NUM_COLOURS:] - ord("0")
    )
    frame = letters.copy()
    frame[:, len(SEPARATOR) + 1] = frame[:, -NUM_COLOURS:] = ord("0")
    expected = np.frombuffer(_SUFFIX.encode(), np.uint8).copy()
    expected[-NUM_COLOURS:] = ord("0")
    is_right = (
        (frame == expected).all(axis=1)
        & (variants.dihedrals < NUM_DIHEDRALS)
        & (np.sort(variants.permutations, axis=1) == IDENTITY_PERMUTATION).all(axis=1)
    )
    for row in np.flatnonzero(~is_right).tolist():
        parse_variant_name(names[row])
    return task_ids, variants


def draw_variants(task: Task, num_variants: int, rng: np.random.Generator) -> Variants:
    """The original and up to `num_variants` variants, distinct in what all pairs together show.

    At most `5 * num_variants` draws are spent; a task of few colours or much symmetry may yield
    fewer variants.
    """
    patterns, places = _contents(task)
    draws, kept = ORIGINAL, np.zeros(1, dtype=np.int64)
    left = DRAWS_PER_VARIANT * num_variants
    round_size = -(-left // DRAWING_ROUNDS)
    while left and len(kept) <= num_variants:
        size = min(round_size, left)
        left -= size
        dihedrals = rng.integers(0, NUM_DIHEDRALS, size=size).astype(np.uint8)
        permutations = np.tile(IDENTITY_PERMUTATION, (size, 1))
        permutations[:, 1:] = rng.permuted(permutations[:, 1:], axis=1)
        draws = Variants(
            np.concatenate([draws.dihedrals, dihedrals]),
            np.concatenate([draws.permutations, permutations]),
        )
        digits = places[draws.dihedrals] * draws.permutations
        contents = patterns[draws.dihedrals] + digits.sum(axis=1)
        # np.unique reports the first draw of each content; sorting restores the order of drawing.
        _, first = np.unique(contents, return_index=True)
        kept = np.sort(first)[: num_variants + 1]
    return Variants(draws.dihedrals[kept], draws.permutations[kept])


def _contents(task: Task) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers that tell what a variant shows, without rendering it: patterns [8], places [8, 10].

    For dihedral d and permutation p, patterns[d] + sum of places[d, c] * p[c] over the colours c is
    equal for two variants exactly if all their grids are. Relabel the colours of a transformed task
    in order of first appearance: two variants are equal if and only if these relabelled grids are
    equal (few patterns, one a dihedral at most) and the colours that stand behind the labels are
    (digits, each at its label's place of a decimal number). That is exact, without any hash.
    """
    grids = task.grids()
    colours = set(b"".join(grid.tobytes() for grid in grids))
    numbers: dict[tuple[object, ...], int] = {}
    patterns = np.zeros(NUM_DIHEDRALS, dtype=np.int64)
    places = np.zeros((NUM_DIHEDRALS, NUM_COLOURS), dtype=np.int64)
    for dihedral in range(NUM_DIHEDRALS):
        transformed = [transform(grid, dihedral) for grid in grids]
        cells = b"".join(grid.tobytes() for grid in transformed)
        order = sorted(colours, key=cells.index)
        relabelled = cells.translate(bytes.maketrans(bytes(order), bytes(range(len(order)))))
        pattern = (relabelled, *(grid.shape for grid in transformed))
        patterns[dihedral] = numbers.setdefault(pattern, len(numbers)) * 10**NUM_COLOURS
        places[dihedral, order] = 10 ** np.arange(len(order))
    return patterns, places
