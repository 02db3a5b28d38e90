"""Augmentation of a task: eight dihedral transforms times permutations of the colours 1-9.

Every pair of a task is transformed alike, so the variant is a puzzle of its own, named
`{task_id}|||t{dihedral}|||{the permutation as ten digits}`; the original keeps its bare id.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from dataset.tasks import NUM_COLOURS, Grid, Task

NUM_DIHEDRALS = 8
INVERSE_DIHEDRAL = (0, 3, 2, 1, 4, 5, 6, 7)
IDENTITY_PERMUTATION = np.arange(NUM_COLOURS, dtype=np.uint8)
DRAWS_PER_VARIANT = 5
"""Draws that may be spent for each variant asked for, before a task counts as exhausted."""

_SEPARATOR = "|||"


class Variants(NamedTuple):
    """Variants of one task, row 0 the original."""

    dihedrals: npt.NDArray[np.uint8]
    """[V], 0-7."""
    permutations: npt.NDArray[np.uint8]
    """[V, 10]: colour c becomes permutations[v, c]; 0 stays 0."""


def transform(grids: Grid, dihedral: int) -> Grid:
    """Apply one dihedral transform to the last two axes of `grids` [..., rows, cols].

    0 identity; 1, 2, 3 rot90 counter-clockwise once, twice, three times; 4 fliplr; 5 flipud;
    6 transpose; 7 fliplr of rot90.
    """
    match dihedral:
        case 0 | 1 | 2 | 3:
            return np.rot90(grids, dihedral, axes=(-2, -1))
        case 4:
            return np.flip(grids, axis=-1)
        case 5:
            return np.flip(grids, axis=-2)
        case 6:
            return np.swapaxes(grids, -2, -1)
        case 7:
            return np.flip(np.rot90(grids, axes=(-2, -1)), axis=-1)
    raise AssertionError(f"dihedral transforms are 0 to 7, got {dihedral}")


def augment(grid: Grid, dihedral: int, permutation: npt.NDArray[np.uint8]) -> Grid:
    """The grid as the variant (dihedral, permutation) shows it."""
    return permutation[transform(grid, dihedral)]


def invert(grid: Grid, dihedral: int, permutation: npt.NDArray[np.uint8]) -> Grid:
    """The inverse of `augment`: from the variant's grid back to the task's own."""
    return transform(np.argsort(permutation).astype(np.uint8)[grid], INVERSE_DIHEDRAL[dihedral])


def variant_name(task_id: str, dihedral: int, permutation: npt.NDArray[np.uint8]) -> str:
    """The puzzle's name in `identifiers.json`; the bare id for the identity."""
    if dihedral == 0 and np.array_equal(permutation, IDENTITY_PERMUTATION):
        return task_id
    digits = "".join(map(str, permutation.tolist()))
    return f"{task_id}{_SEPARATOR}t{dihedral}{_SEPARATOR}{digits}"


def parse_variant_name(name: str) -> tuple[str, int, npt.NDArray[np.uint8]]:
    """Task id, dihedral and permutation [10] of a puzzle's name.

    Raises:
        UserError: the name has the separator but not this form.
    """
    task_id, *parts = name.split(_SEPARATOR)
    if not parts:
        return task_id, 0, IDENTITY_PERMUTATION
    try:
        dihedral_part, digits = parts
        dihedral = int(dihedral_part.removeprefix("t"))
        permutation = np.array([int(digit) for digit in digits], dtype=np.uint8)
    except ValueError:
        dihedral, permutation = -1, IDENTITY_PERMUTATION
    if not 0 <= dihedral < NUM_DIHEDRALS or sorted(permutation) != list(range(NUM_COLOURS)):
        raise UserError(
            f"puzzle name '{name}' is not of the form task|||t<0-7>|||<ten digits>: "
            f"the dataset's identifiers.json comes from another kind of builder"
        )
    return task_id, dihedral, permutation


def draw_variants(task: Task, num_variants: int, rng: np.random.Generator) -> Variants:
    """The original and up to `num_variants` variants, distinct in what all pairs together show.

    At most `5 * num_variants` draws are spent; a task of few colours or much symmetry may yield
    fewer. Needs no rendered grid: see `_content_keys`.
    """
    draws = DRAWS_PER_VARIANT * num_variants
    dihedrals = np.zeros(draws + 1, dtype=np.uint8)
    dihedrals[1:] = rng.integers(0, NUM_DIHEDRALS, size=draws)
    permutations = np.tile(IDENTITY_PERMUTATION, (draws + 1, 1))
    permutations[1:, 1:] = rng.permuted(permutations[1:, 1:], axis=1)
    # np.unique reports the first draw of each content; sorting restores the order of drawing.
    _, first = np.unique(_content_keys(task, dihedrals, permutations), return_index=True)
    kept = np.sort(first)[: num_variants + 1]
    return Variants(dihedrals[kept], permutations[kept])


def _content_keys(
    task: Task, dihedrals: npt.NDArray[np.uint8], permutations: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """A number [V] for each variant, equal for two of them exactly if all their grids are equal.

    Relabel the colours of a transformed task in order of first appearance. Two variants are equal
    if and only if these relabelled grids are equal (few classes, one a dihedral at most) and the
    colours that stand behind the labels are (at most ten digits): exact, without any hash.
    """
    classes: dict[bytes, int] = {}
    class_of = np.zeros(NUM_DIHEDRALS, dtype=np.int64)
    # Colours in order of first appearance; a task may use fewer than ten, the rest count as 0.
    appearance = np.zeros((NUM_DIHEDRALS, NUM_COLOURS), dtype=np.int64)
    used = 0
    for dihedral in range(NUM_DIHEDRALS):
        transformed = [transform(grid, dihedral) for grid in task.grids()]
        cells = np.concatenate([grid.ravel() for grid in transformed])
        colours, first = np.unique(cells, return_index=True)
        order = colours[np.argsort(first)]
        used = len(order)
        relabel = np.zeros(NUM_COLOURS, dtype=np.uint8)
        relabel[order] = np.arange(used)
        shapes = np.array([grid.shape for grid in transformed], dtype=np.uint8)
        pattern = shapes.tobytes() + relabel[cells].tobytes()
        class_of[dihedral] = classes.setdefault(pattern, len(classes))
        appearance[dihedral, :used] = order
    behind = np.take_along_axis(permutations, appearance[dihedrals][:, :used], axis=1)
    powers = NUM_COLOURS ** np.arange(used, dtype=np.int64)
    return class_of[dihedrals] * NUM_COLOURS**NUM_COLOURS + behind.astype(np.int64) @ powers
