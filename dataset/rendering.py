"""From a task's pairs and variants to canvases: where each grid goes, and what it looks like."""

import numpy as np
import numpy.typing as npt

from dataset.augmentation import NUM_DIHEDRALS, Variants, transform
from dataset.canvas import place
from dataset.tasks import Grid, Pair


def draw_translations(
    pairs: tuple[Pair, ...], variants: Variants, side: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions [V, pairs, 2] of the grids' top-left; one pair of each variant stays at (0, 0)."""
    count = len(variants.dihedrals)
    uniform = rng.random((count, len(pairs), 2))
    stays = rng.integers(0, len(pairs), size=count)
    extents = np.array(
        [
            [np.maximum(*(transform(g, d).shape for g in _both(pair))) for pair in pairs]
            for d in range(NUM_DIHEDRALS)
        ]
    )
    room = side - extents[variants.dihedrals]
    translations = np.floor(uniform * (room + 1)).astype(np.int64)
    translations[np.arange(count), stays] = 0
    return translations


def render(
    pairs: tuple[Pair, ...], variants: Variants, translations: npt.NDArray[np.int64], side: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Inputs and labels [V * pairs, side * side], variant by variant."""
    count = len(variants.dihedrals)
    canvases = np.zeros((2, count, len(pairs), side * side), dtype=np.uint8)
    for dihedral in np.unique(variants.dihedrals):
        rows = np.flatnonzero(variants.dihedrals == dihedral)
        permutations = variants.permutations[rows]
        for p, pair in enumerate(pairs):
            top, left = translations[rows, p, 0], translations[rows, p, 1]
            for half, grid in enumerate((pair.input, pair.output)):
                if grid is None:  # A hidden solution: its label stays PAD throughout.
                    continue
                recoloured = permutations[:, transform(grid, int(dihedral))]
                canvases[half, rows, p] = place(recoloured, side, top, left)
    inputs, labels = canvases.reshape(2, count * len(pairs), side * side)
    return inputs, labels


def _both(pair: Pair) -> tuple[Grid, Grid]:
    assert pair.output is not None, "training pairs have outputs"
    return pair.input, pair.output
