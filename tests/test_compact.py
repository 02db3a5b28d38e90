"""The compact layout against the full one of the same options, and `expand` against the canvases
that the specification draws.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arc_oracles import canvas_of, find_grid
from torch import Tensor

from common.errors import UserError
from dataset import build_arc_dataset
from dataset.augmentation import Variants, augment
from dataset.build_arc_dataset import build
from dataset.build_plan import BuildOptions
from dataset.canvas import place, read_extents
from dataset.compact import CompactSplit, Originals, Recipes, expand
from dataset.rendering import render
from dataset.splits import open_split
from dataset.storage import PuzzleSplit, fingerprint
from dataset.tasks import Pair, Task, load_subset

SHARED = ("puzzle_identifiers", "puzzle_indices", "group_indices")


def build_in_process(prefix: str, folder: Path, **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_arc_dataset, "worker_processes", lambda workers: ThreadPoolExecutor(1))
        options = {"layout": "compact", **options}
        build(BuildOptions(prefix, folder, ("training", "evaluation"), ("evaluation",), **options))
    return folder


@pytest.fixture(scope="module")
def compact_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """What `small_dataset` is, in the compact layout. Read-only."""
    return build_in_process(kaggle_prefix, tmp_path_factory.mktemp("compact") / "out", num_aug=20)


@pytest.fixture(scope="module")
def tasks(kaggle_prefix: str) -> list[Task]:
    return load_subset(kaggle_prefix, "training") + load_subset(kaggle_prefix, "evaluation")


def opened(dataset: Path, split: str) -> CompactSplit:
    compact = open_split(dataset, split)
    assert isinstance(compact, CompactSplit)
    return compact


def opened_full(dataset: Path, split: str) -> PuzzleSplit:
    full = open_split(dataset, split)
    assert isinstance(full, PuzzleSplit)
    return full


def contents(dataset: Path) -> dict[str, bytes]:
    """Every file but the description of the build, which differs in the layout's name."""
    return {
        str(path.relative_to(dataset)): path.read_bytes()
        for path in dataset.rglob("*")
        if path.is_file() and path.name != "build.json"
    }


def originals_of(pairs: tuple[Pair, ...], side: int = 30) -> Originals:
    """The pairs as the builder would store them, without the builder."""
    halves = [
        [
            np.zeros(side * side, np.uint8) if grid is None else place(grid[None], side)[0]
            for grid in grids
        ]
        for grids in ([p.input for p in pairs], [p.output for p in pairs])
    ]
    sizes = [[p.input.shape, (0, 0) if p.output is None else p.output.shape] for p in pairs]
    inputs, labels = (torch.from_numpy(np.array(half)) for half in halves)
    return Originals(inputs, labels, torch.tensor(sizes))


def every_variant(pairs: tuple[Pair, ...], side: int = 30) -> tuple[Variants, np.ndarray]:
    """All transforms four times over, with random colours and origins: some in each corner."""
    rng = np.random.default_rng(0)
    dihedrals = np.tile(np.arange(8, dtype=np.uint8), 4)
    permutations = np.tile(np.arange(10, dtype=np.uint8), (32, 1))
    permutations[:, 1:] = rng.permuted(permutations[:, 1:], axis=1)
    sizes = np.array(
        [np.max([g.shape for g in (p.input, p.output) if g is not None], axis=0) for p in pairs]
    )
    transposed = np.isin(dihedrals, (1, 3, 6, 7))[:, None, None]
    room = side - np.where(transposed, sizes[:, ::-1], sizes)
    origins = rng.integers(0, room + 1)
    # The last round of eight touches the lower and the right border, the one before a corner each.
    origins[24:] = room[24:]
    origins[16:20, :, 0], origins[20:24, :, 1] = 0, room[20:24, :, 1]
    return Variants(dihedrals, permutations), origins


def recipes_of(variants: Variants, origins: np.ndarray) -> Recipes:
    """Every pair of every variant, variant by variant."""
    count, num_pairs, _ = origins.shape
    return Recipes(
        torch.arange(num_pairs).repeat(count),
        torch.from_numpy(np.repeat(variants.dihedrals.astype(np.int64), num_pairs)),
        torch.from_numpy(np.repeat(variants.permutations, num_pairs, axis=0)),
        torch.from_numpy(origins.reshape(-1, 2)),
    )


def to(recipes: Recipes, device: str) -> Recipes:
    return Recipes(*(tensor.to(device) for tensor in recipes))


# ---- expand ----------------------------------------------------------------------------------


def test_real_pairs_are_expanded_to_what_the_renderer_makes_of_them(tasks: list[Task]) -> None:
    for task in tasks:
        pairs = (*task.train, *task.test)
        variants, origins = every_variant(pairs)
        expected = render(pairs, variants, origins, 30)
        shown = expand(originals_of(pairs), recipes_of(variants, origins))
        for ours, theirs in zip(shown, expected, strict=True):
            assert ours.dtype == torch.int64
            assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("dihedral", range(8))
def test_a_pair_is_expanded_to_the_canvas_of_the_specification(dihedral: int) -> None:
    """On a canvas of 4: everywhere that a 2 x 3 and a 3 x 1 grid can be, by the oracle."""
    first = np.array([[1, 2, 3], [4, 0, 9]], dtype=np.uint8)
    second = np.array([[5], [6], [7]], dtype=np.uint8)
    pairs = (Pair(first, second),)
    permutation = np.array([0, 3, 1, 2, 9, 8, 7, 6, 5, 4], dtype=np.uint8)
    for origin in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        recipes = Recipes(
            torch.tensor([0]), torch.tensor([dihedral]), torch.tensor(permutation[None]),
            torch.tensor([origin]),
        )  # fmt: skip
        for shown, grid in zip(
            expand(originals_of(pairs, 4), recipes), (first, second), strict=True
        ):
            variant = augment(grid, dihedral, permutation)
            assert np.array_equal(shown.reshape(4, 4).numpy(), canvas_of(variant, 4, *origin))


def test_a_hidden_label_stays_empty(tasks: list[Task]) -> None:
    pairs = (*tasks[0].train, Pair(tasks[0].test[0].input, None))
    variants, origins = every_variant(pairs)
    expected = render(pairs, variants, origins, 30)
    shown = expand(originals_of(pairs), recipes_of(variants, origins))
    hidden = len(pairs) - 1
    assert not shown[1][hidden :: len(pairs)].any()
    for ours, theirs in zip(shown, expected, strict=True):
        assert np.array_equal(ours.numpy(), theirs)


def test_chosen_cells_are_those_of_the_whole_canvas(tasks: list[Task]) -> None:
    pairs = tasks[1].train
    variants, origins = every_variant(pairs)
    originals, recipes = originals_of(pairs), recipes_of(variants, origins)
    cells = torch.randint(0, 900, (len(recipes.pairs), 70), generator=torch.Generator())
    for some, whole in zip(
        expand(originals, recipes, cells), expand(originals, recipes), strict=True
    ):
        assert some.dtype == torch.int64
        assert torch.equal(some, whole.gather(1, cells))


def test_colours_may_be_given_as_wide_integers(tasks: list[Task]) -> None:
    variants, origins = every_variant(tasks[2].train)
    originals, recipes = originals_of(tasks[2].train), recipes_of(variants, origins)
    wide = recipes._replace(permutations=recipes.permutations.long())
    for ours, theirs in zip(expand(originals, wide), expand(originals, recipes), strict=True):
        assert torch.equal(ours, theirs)


def test_the_host_never_waits_for_a_value(tasks: list[Task]) -> None:
    """Tensors of the meta device have none: to ask for one is an error."""
    variants, origins = every_variant(tasks[0].train)
    recipes = to(recipes_of(variants, origins), "meta")
    count = len(recipes.pairs)
    inputs, labels = expand(originals_of(tasks[0].train).to("meta"), recipes)
    assert inputs.shape == labels.shape == (count, 900)
    cells = torch.zeros((count, 5), dtype=torch.int64, device="meta")
    assert expand(originals_of(tasks[0].train).to("meta"), recipes, cells)[1].shape == (count, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_expands_alike_and_without_synchronisation(tasks: list[Task]) -> None:
    variants, origins = every_variant(tasks[0].train)
    originals, recipes = originals_of(tasks[0].train), recipes_of(variants, origins)
    there = (originals.to("cuda"), to(recipes, "cuda"))
    cells = torch.arange(0, 900, 7).expand(len(recipes.pairs), -1)
    cells_there = cells.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole, some = expand(*there), expand(*there, cells_there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected: tuple[tuple[Tensor, Tensor], ...] = (
        expand(originals, recipes), expand(originals, recipes, cells)
    )  # fmt: skip
    for ours, theirs in zip((*whole, *some), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(ours.cpu(), theirs)


# ---- the folder ------------------------------------------------------------------------------


def test_all_but_the_canvases_is_the_full_layout_byte_for_byte(
    compact_dataset: Path, small_dataset: Path
) -> None:
    compact, full = contents(compact_dataset), contents(small_dataset)
    shared = {"identifiers.json", "test_puzzles.json"} | {
        f"{split}/{name}"
        for split in ("train", "test")
        for name in ("dataset.json", *(f"all__{array}.npy" for array in SHARED))
    }
    assert {name for name in full if compact.get(name) == full[name]} == shared
    assert set(full) - shared == {
        f"{split}/all__{half}.npy" for split in ("train", "test") for half in ("inputs", "labels")
    }
    assert set(compact) - shared == {
        f"{split}/{name}.npy"
        for split in ("train", "test")
        for name in (
            "originals__inputs", "originals__labels",
            "variants__dihedrals", "variants__permutations",
        )
    }  # fmt: skip
    metadata = [open_split(path, "train").metadata for path in (compact_dataset, small_dataset)]
    assert fingerprint(compact_dataset, metadata[0]) == fingerprint(small_dataset, metadata[1])


def test_arrays_have_the_documented_types_and_every_pair_once(compact_dataset: Path) -> None:
    # Ten tasks with 45 training pairs, four with 6 test pairs; 21 variants each.
    for split, pairs, num_puzzles in (("train", 45, 210), ("test", 6, 84)):
        arrays = {
            name: np.load(compact_dataset / split / f"{name}.npy")
            for name in (
                "originals__inputs", "originals__labels",
                "variants__dihedrals", "variants__permutations",
            )
        }  # fmt: skip
        assert {array.dtype.name for array in arrays.values()} == {"uint8"}
        assert [array.shape for array in arrays.values()] == [
            (pairs, 900), (pairs, 900), (num_puzzles,), (num_puzzles, 10)
        ]  # fmt: skip


def test_a_split_says_the_same_of_its_examples_in_both_layouts(
    compact_dataset: Path, small_dataset: Path
) -> None:
    for split in ("train", "test"):
        compact, full = opened(compact_dataset, split), opened_full(small_dataset, split)
        for name in SHARED:
            assert np.array_equal(getattr(compact, name), getattr(full, name))
        assert compact.metadata == full.metadata
        assert compact.num_examples == full.num_examples == len(full.inputs)
        assert compact.examples_per_epoch == full.examples_per_epoch


def test_every_test_example_is_read_as_the_full_layout_stores_it(
    compact_dataset: Path, small_dataset: Path
) -> None:
    compact, full = opened(compact_dataset, "test"), opened_full(small_dataset, "test")
    rows = np.arange(full.num_examples)
    # In any order, with repetitions.
    rows = np.concatenate([rows, np.random.default_rng(0).permutation(rows)[:50]])
    for ours, theirs in zip(compact.read(rows), full.read(rows), strict=True):
        assert ours.dtype == np.uint8
        assert np.array_equal(ours, theirs)


def test_every_training_example_is_the_stored_one_at_its_place(
    compact_dataset: Path, small_dataset: Path
) -> None:
    compact, full = opened(compact_dataset, "train"), opened_full(small_dataset, "train")
    rows = np.arange(full.num_examples)
    origins = np.array([find_grid(canvas)[1] for canvas in full.inputs.reshape(-1, 30, 30)])
    assert origins.any()
    inputs, labels = expand(compact.originals, compact.recipes(rows, origins))
    assert np.array_equal(inputs.numpy(), full.inputs)
    assert np.array_equal(labels.numpy(), full.labels)


def test_extents_are_those_of_the_grids_that_the_variants_show(
    compact_dataset: Path, small_dataset: Path
) -> None:
    compact, full = opened(compact_dataset, "train"), opened_full(small_dataset, "train")
    rows = np.random.default_rng(0).permutation(full.num_examples)
    shapes = [
        [find_grid(canvas.reshape(30, 30))[0].shape for canvas in half[rows]]
        for half in (full.inputs, full.labels)
    ]
    assert compact.extents(rows).tolist() == np.stack(shapes, axis=1).tolist()


def test_the_largest_outputs_are_over_all_pairs_of_the_puzzle(compact_dataset: Path) -> None:
    split = opened(compact_dataset, "train")
    rows = np.arange(split.num_examples)
    outputs = split.extents(rows)[:, 1]
    first = split.puzzle_indices[:-1]
    largest = np.repeat(np.maximum.reduceat(outputs, first), np.diff(split.puzzle_indices), axis=0)
    assert (largest > outputs).any()
    order = np.random.default_rng(0).permutation(rows)
    assert split.largest_outputs(order).tolist() == largest[order].tolist()


def test_recipes_have_the_documented_types(compact_dataset: Path) -> None:
    split = opened(compact_dataset, "train")
    recipes = split.recipes(np.array([3, 0]), np.array([[1, 2], [0, 0]]))
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in recipes] == [
        (torch.int64, (2,)), (torch.int64, (2,)), (torch.uint8, (2, 10)), (torch.int64, (2, 2))
    ]  # fmt: skip
    assert split.originals.sizes.dtype == torch.int64


def test_a_hidden_test_set_has_empty_labels_of_no_size(tmp_path: Path, kaggle_prefix: str) -> None:
    for name in ("training_challenges", "training_solutions", "evaluation_challenges"):
        content = Path(f"{kaggle_prefix}_{name}.json").read_bytes()
        (tmp_path / f"arc_{name}.json").write_bytes(content)
    compact, full = (
        build_in_process(str(tmp_path / "arc"), tmp_path / layout, num_aug=3, layout=layout)
        for layout in ("compact", "full")
    )
    split = opened(compact, "test")
    rows = np.arange(split.num_examples)
    inputs, labels = split.read(rows)
    assert np.array_equal(inputs, np.load(full / "test" / "all__inputs.npy"))
    assert not labels.any()
    assert (split.extents(rows)[:, 0] > 0).all()
    assert not split.extents(rows)[:, 1].any()
    assert not split.largest_outputs(rows).any()


def test_a_smaller_canvas_is_expanded_too(
    tmp_path: Path, kaggle_prefix: str, tiny_dataset: Path
) -> None:
    out = build_in_process(kaggle_prefix, tmp_path / "out", num_aug=6, canvas_side=6)
    compact, full = opened(out, "test"), opened_full(tiny_dataset, "test")
    rows = np.arange(full.num_examples)
    for ours, theirs in zip(compact.read(rows), full.read(rows), strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(compact.extents(rows)[:, 0].T, read_extents(full.read(rows)[0]))


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, kaggle_prefix: str, compact_dataset: Path
) -> None:
    build(
        BuildOptions(
            kaggle_prefix, tmp_path / "out", ("training", "evaluation"), ("evaluation",),
            num_aug=20, layout="compact", workers=3,
        )
    )  # fmt: skip
    assert contents(tmp_path / "out") == contents(compact_dataset)


def test_the_builder_does_without_torch(run_command: Callable[..., Any]) -> None:
    code = "import sys, dataset.build_arc_dataset; sys.exit('torch' in sys.modules)"
    assert run_command("-c", code).returncode == 0, f"{sys.executable} imported torch"


# ---- damage ----------------------------------------------------------------------------------


def change(name: str, to: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(split: Path) -> None:
        path = split / f"{name}.npy"
        np.save(path, to(np.load(path)))

    return damage


def put(name: str, where: tuple[int, ...], value: int) -> Callable[[Path], None]:
    def to(array: np.ndarray) -> np.ndarray:
        array[where] = value
        return array

    return change(name, to)


def truncate(name: str) -> Callable[[Path], None]:
    return lambda split: os.truncate(split / f"{name}.npy", 200)


def remove(name: str) -> Callable[[Path], None]:
    return lambda split: (split / f"{name}.npy").unlink()


def narrow(split: Path) -> None:
    """Canvases of eight cells, and metadata that agree."""
    for half in ("inputs", "labels"):
        change(f"originals__{half}", lambda array: array[:, :8])(split)
    metadata = split / "dataset.json"
    metadata.write_text(metadata.read_text().replace('"seq_len":36', '"seq_len":8'))


@pytest.fixture
def damageable(tmp_path: Path, kaggle_prefix: str) -> Path:
    """Nine tasks with four puzzles each, on a canvas of 6."""
    return build_in_process(kaggle_prefix, tmp_path / "out", num_aug=3, canvas_side=6)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (remove("originals__inputs"), r"originals__inputs\.npy does not exist"),
        (remove("originals__labels"), r"originals__labels\.npy does not exist"),
        (remove("variants__dihedrals"), r"variants__dihedrals\.npy does not exist"),
        (remove("all__puzzle_indices"), r"all__puzzle_indices\.npy does not exist"),
        (truncate("originals__labels"), r"originals__labels\.npy is truncated"),
        (truncate("variants__permutations"), r"variants__permutations\.npy is truncated"),
        (change("originals__labels", lambda a: a[1:]), r"\d+ inputs but \d+ labels"),
        (change("originals__inputs", lambda a: a[:, :9]), r"inputs\.npy: shape .*, expected"),
        (narrow, "seq_len 8 is no square"),
        (put("originals__labels", (2, 3), 12), "holds a token outside its vocabulary of 12"),
        (put("originals__inputs", (2, 0), 0), r"inputs\.npy: has a canvas without a grid"),
        (put("all__puzzle_indices", (1,), 2), r"puzzle_indices\.npy: must give all puzzles"),
        (put("all__puzzle_indices", (1,), 0), r"puzzle_indices\.npy: must rise strictly from 0;"),
        (put("all__group_indices", (1,), 0), r"group_indices\.npy: must rise strictly from 0 to"),
        (change("all__puzzle_identifiers", lambda a: a[1:]), "35 puzzle identifiers for 36"),
        (put("variants__dihedrals", (5,), 8), r"dihedrals\.npy: must hold a number from 0 to 7"),
        (change("variants__dihedrals", lambda a: a[1:]), "for each of 36 puzzles"),
        (put("variants__permutations", (5, 9), 10), r"permutations\.npy: must hold a permutation"),
        (put("variants__permutations", (0, 9), 8), r"permutations\.npy: must hold a permutation"),
        (change("variants__permutations", lambda a: a[:, :9]), "must hold a permutation"),
    ],
)  # fmt: skip
def test_damage_is_found_when_the_dataset_is_opened(
    damageable: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    damage(damageable / "train")
    with pytest.raises(UserError, match=complaint) as error:
        open_split(damageable, "train")
    assert str(damageable / "train") in str(error.value)


def test_as_many_originals_as_the_groups_have_pairs(damageable: Path) -> None:
    for half in ("inputs", "labels"):
        change(f"originals__{half}", lambda array: array[:-1])(damageable / "train")
    with pytest.raises(UserError, match=r"puzzle_indices\.npy: must give all .* as there are orig"):
        open_split(damageable, "train")
