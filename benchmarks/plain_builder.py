"""The plain way to build a dataset: what `dataset.build_arc_dataset` is measured against.

    python -m benchmarks.plain_builder --input-file-prefix PREFIX --output-dir OUT \
        --subsets training evaluation concept --test-set-name evaluation

One process takes one variant after another: draws it, transforms the grids of all pairs, knows
duplicates by a hash of these grids, pads every grid to a canvas, keeps everything in lists, and
joins and saves them at the end. The flags are the builder's, but there are no workers and only the
full layout. The dataset is valid; its random numbers are not the builder's.
"""

import hashlib
import json

import numpy as np
import numpy.typing as npt

from common.errors import exit_cleanly
from common.flags import parse_flags
from dataset.augmentation import (
    DRAWS_PER_VARIANT,
    IDENTITY_PERMUTATION,
    NUM_DIHEDRALS,
    Variants,
    augment,
    variant_names,
)
from dataset.build_arc_dataset import SPLITS, write_identifiers, write_split_index
from dataset.build_plan import BuildOptions, load_sources
from dataset.canvas import COLOUR_OFFSET, EOS
from dataset.storage import TEST_PUZZLES_FILE, array_path
from dataset.tasks import Grid, Task, save_tasks


def build_plainly(options: BuildOptions) -> None:
    """Build a dataset; all solutions must be known.

    Raises:
        UserError: bad input files, a test task in another subset, or no test task left.
    """
    sources, _ = load_sources(options)
    rng = np.random.default_rng(options.seed)
    names = []
    canvases: dict[str, tuple[list[npt.NDArray[np.uint8]], ...]] = {s: ([], []) for s in SPLITS}
    for index, source in enumerate(sources):
        variants, shown = draw_variants(source.task, options.num_aug, rng)
        names.append(json.dumps(variant_names(source.task.task_id, variants))[1:-1])
        sources[index] = source._replace(variants=variants)
        num_train = len(source.pairs["train"])
        for grids in shown:
            stays = rng.integers(num_train)
            for number, pair in enumerate(zip(grids[::2], grids[1::2], strict=True)):
                top = left = 0
                if number < num_train and number != stays:
                    room = options.canvas_side - np.maximum(pair[0].shape, pair[1].shape)
                    top, left = rng.integers(room + 1)
                inputs_and_labels = canvases["train" if number < num_train else "test"]
                for collected, grid in zip(inputs_and_labels, pair, strict=True):
                    collected.append(place_plainly(grid, options.canvas_side, top, left))
    for split in SPLITS:
        folder = options.output_dir / split
        folder.mkdir(parents=True)
        write_split_index(options.output_dir, split, sources, options)
        for name, collected in zip(("inputs", "labels"), canvases[split], strict=True):
            np.save(array_path(folder, name), np.array(collected))
    write_identifiers(options.output_dir, names, options)
    test_tasks = [source.task for source in sources if source.pairs["test"]]
    save_tasks(options.output_dir / TEST_PUZZLES_FILE, test_tasks)


def draw_variants(
    task: Task, num_variants: int, rng: np.random.Generator
) -> tuple[Variants, list[list[Grid]]]:
    """The original and up to `num_variants` distinct variants, and the grids that each shows."""
    original = task.grids()
    drawn, shown, seen = [(0, IDENTITY_PERMUTATION)], [original], {content_hash(original)}
    for _ in range(DRAWS_PER_VARIANT * num_variants):
        if len(shown) > num_variants:
            break
        dihedral = int(rng.integers(NUM_DIHEDRALS))
        colours = np.concatenate([[0], rng.permutation(np.arange(1, 10))]).astype(np.uint8)
        grids = [augment(grid, dihedral, colours) for grid in original]
        digest = content_hash(grids)
        if digest not in seen:
            seen.add(digest)
            drawn.append((dihedral, colours))
            shown.append(grids)
    dihedrals, permutations = zip(*drawn, strict=True)
    return Variants(np.array(dihedrals, np.uint8), np.stack(permutations)), shown


def content_hash(grids: list[Grid]) -> bytes:
    content = hashlib.sha256()
    for grid in grids:
        content.update(bytes(grid.shape) + grid.tobytes())
    return content.digest()


def place_plainly(grid: Grid, side: int, top: int, left: int) -> npt.NDArray[np.uint8]:
    """A canvas [side * side] of the grid's tokens at (top, left), EOS below and right of them."""
    bottom, right = top + grid.shape[0], left + grid.shape[1]
    tokens = grid + np.uint8(COLOUR_OFFSET)
    canvas = np.pad(tokens, ((top, side - bottom), (left, side - right)))
    canvas[bottom : bottom + 1, left:right] = EOS
    canvas[top:bottom, right : right + 1] = EOS
    return canvas.flatten()


@exit_cleanly
def main() -> None:
    build_plainly(parse_flags(BuildOptions, "python -m benchmarks.plain_builder", __doc__))


if __name__ == "__main__":
    main()
