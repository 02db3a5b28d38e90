"""The compact layout against the full one of the same options, and `expand` against the canvases
that the specification draws.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arc_oracles import canvas_of, change, contents, find_grid, put, remove, truncate
from common.errors import UserError
from dataset.augmentation import augment
from dataset.canvas import place, read_back
from dataset.compact import Originals, Recipes, expand, expand_whole
from dataset.splits import open_split
from dataset.storage import fingerprint
from training.checkpoints import require_same_dataset

SHARED = ("puzzle_identifiers", "puzzle_indices", "group_indices")
OWN = ("originals__inputs", "originals__labels", "variants__dihedrals", "variants__permutations")

Build = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def made(small_compact_dataset: Path) -> tuple[Originals, Recipes]:
    """Training pairs of all tasks, and a part of their variants."""
    split = open_split(small_compact_dataset, "train")
    rows = np.arange(0, split.num_examples, 5)
    return split.originals, split.recipes(rows, np.zeros((len(rows), 2), dtype=np.int64))


# ---- expand ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dihedral", range(8))
def test_a_pair_is_expanded_to_the_canvas_of_the_specification(dihedral: int) -> None:
    """On a canvas of 4: everywhere that a 2 x 3 and a 3 x 1 grid can be, by the oracle.

    Colours may be given as wide integers.
    """
    pair = np.uint8([[1, 2, 3], [4, 0, 9]]), np.uint8([[5], [6], [7]])
    permutation = np.array([0, 3, 1, 2, 9, 8, 7, 6, 5, 4])
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    recipes = Recipes(
        torch.zeros(4, dtype=torch.int64), torch.full((4,), dihedral),
        torch.tensor(np.tile(permutation, (4, 1))), torch.tensor(corners),
    )  # fmt: skip
    stored = (torch.from_numpy(place(grid[None], 4)) for grid in pair)
    originals = Originals(*stored, torch.tensor([[grid.shape for grid in pair]]))
    for shown, grid in zip(expand_whole(originals, recipes), pair, strict=True):
        variant = augment(grid, dihedral, permutation.astype(np.uint8))
        expected = [canvas_of(variant, 4, *corner).ravel() for corner in corners]
        assert np.array_equal(shown, expected)


@pytest.fixture(scope="module")
def tokens(made: tuple[Originals, Recipes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples [N] and cells [N] in any order, each example as often as comes."""
    generator = torch.Generator().manual_seed(0)
    num_examples = len(made[1].pairs)
    return tuple(torch.randint(most, (5000,), generator=generator) for most in (num_examples, 900))


def test_chosen_cells_are_those_of_the_whole_canvas(
    made: tuple[Originals, Recipes], tokens: tuple[torch.Tensor, torch.Tensor]
) -> None:
    for some, whole in zip(expand(*made, *tokens), expand_whole(*made), strict=True):
        assert some.dtype == torch.int64
        assert torch.equal(some, whole[tokens])


def test_there_is_nothing_before_the_first_cell(made: tuple[Originals, Recipes]) -> None:
    """Grids are at the top-left, so that a cell too early would be seen."""
    example = torch.arange(len(made[1].pairs)).repeat_interleave(40)
    cells = torch.arange(-40, 0).repeat(len(made[1].pairs))
    for shown in expand(*made, example, cells):
        assert not shown.any()


def test_the_host_never_waits_for_a_value(
    made: tuple[Originals, Recipes], tokens: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Tensors of the meta device have none: to ask for one is an error."""
    originals, recipes = made[0].to("meta"), Recipes(*(t.to("meta") for t in made[1]))
    inputs, labels = expand(originals, recipes, *(t.to("meta") for t in tokens))
    assert inputs.shape == labels.shape == tokens[0].shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_expands_alike_and_without_synchronisation(
    made: tuple[Originals, Recipes], tokens: tuple[torch.Tensor, torch.Tensor]
) -> None:
    originals, recipes = made[0].to("cuda"), Recipes(*(t.to("cuda") for t in made[1]))
    there = [t.to("cuda") for t in tokens]
    torch.cuda.set_sync_debug_mode("error")
    try:
        shown = expand(originals, recipes, *there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(shown, expand(*made, *tokens), strict=True):
        assert torch.equal(ours.cpu(), theirs)


# ---- the folder ------------------------------------------------------------------------------


def test_all_but_the_canvases_is_the_full_layout_byte_for_byte(
    small_compact_dataset: Path, small_dataset: Path
) -> None:
    compact, full = contents(small_compact_dataset), contents(small_dataset)
    shared, canvases, own = (
        {f"{split}/{name}" for split in ("train", "test") for name in names}
        for names in (
            ["dataset.json", *(f"all__{name}.npy" for name in SHARED)],
            ["all__inputs.npy", "all__labels.npy"],
            [f"{name}.npy" for name in OWN],
        )
    )
    shared |= {"identifiers.json", "test_puzzles.json"}
    assert {name for name in full if compact.get(name) == full[name]} == shared
    assert set(full) - shared == {"build.json", "manifest.json"} | canvases
    assert set(compact) - shared == {"build.json", "manifest.json"} | own
    theirs, ours = (
        fingerprint(path, open_split(path, "train").metadata)
        for path in (small_dataset, small_compact_dataset)
    )
    assert ours != theirs, "the layout is among the words"
    require_same_dataset(theirs, ours, "a checkpoint")  # Which are exchangeable.


def test_arrays_have_the_documented_types_and_every_pair_once(small_compact_dataset: Path) -> None:
    # Ten tasks with 45 training pairs, four with 6 test pairs; 21 variants each.
    for split, pairs, num_puzzles in (("train", 45, 210), ("test", 6, 84)):
        arrays = [np.load(small_compact_dataset / split / f"{name}.npy") for name in OWN]
        assert {array.dtype.name for array in arrays} == {"uint8"}
        assert [array.shape for array in arrays] == [
            (pairs, 900), (pairs, 900), (num_puzzles,), (num_puzzles, 10)
        ]  # fmt: skip
    compact = open_split(small_compact_dataset, "train")
    recipes = compact.recipes(np.array([3, 0]), np.array([[1, 2], [0, 0]]))
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in recipes] == [
        (torch.int64, (2,)), (torch.int64, (2,)), (torch.uint8, (2, 10)), (torch.int64, (2, 2))
    ]  # fmt: skip
    assert compact.originals.sizes.dtype == torch.int64


@pytest.mark.parametrize("size", ["small", "tiny"])
@pytest.mark.parametrize("half", ["train", "test"])
def test_a_split_says_the_same_of_its_examples_in_both_layouts(
    request: pytest.FixtureRequest, size: str, half: str
) -> None:
    full, compact = (
        open_split(request.getfixturevalue(f"{size}_{name}"), half)
        for name in ("dataset", "compact_dataset")
    )
    for name in (*SHARED, "metadata", "num_examples", "examples_per_epoch"):
        assert np.array_equal(getattr(compact, name), getattr(full, name))
    # In any order, with repetitions.
    rows = np.random.default_rng(0).integers(full.num_examples, size=2 * full.num_examples)
    side = round(full.metadata.seq_len**0.5)
    stored = full.read(rows)
    grids = [[find_grid(canvas.reshape(side, side)) for canvas in part] for part in stored]
    origins = np.array([origin for _, origin in grids[0]])
    assert origins.any() == (half == "train")
    shown = expand_whole(compact.originals, compact.recipes(rows, origins))
    for ours, theirs in zip(shown, stored, strict=True):
        assert np.array_equal(ours, theirs)
    if half == "test":
        for ours, theirs in zip(compact.read(rows), stored, strict=True):
            assert ours.dtype == np.uint8
            assert np.array_equal(ours, theirs)
    shapes = [[grid.shape for grid, _ in part] for part in grids]
    assert np.array_equal(compact.extents(rows), np.stack(shapes, axis=1))


def test_a_validation_split_is_as_the_test_split_is(tmp_path: Path, build_small: Build) -> None:
    compact, full = (
        build_small(output_dir=tmp_path / name, layout=name, validation_tasks=3)[0]
        for name in ("compact", "full")
    )
    files = [{path.name for path in (compact / name).iterdir()} for name in ("validation", "test")]
    assert files[0] == files[1]
    ours, theirs = contents(compact), contents(full)
    for file in ("validation_puzzles.json", *(f"validation/all__{name}.npy" for name in SHARED)):
        assert ours[file] == theirs[file]
    split, stored = open_split(compact, "validation"), open_split(full, "validation")
    rows = np.arange(stored.num_examples)
    for shown, expected in zip(split.read(rows), stored.read(rows), strict=True):
        assert expected.any(axis=1).all()
        assert np.array_equal(shown, expected)


def test_a_hidden_test_set_has_empty_labels_of_no_size(
    tmp_path: Path, hidden_prefix: str, build_small: Build
) -> None:
    compact, full = (
        build_small(input_file_prefix=hidden_prefix, output_dir=tmp_path / name, layout=name)[0]
        for name in ("compact", "full")
    )
    split = open_split(compact, "test")
    rows = np.arange(split.num_examples)
    inputs, labels = split.read(rows)
    assert np.array_equal(inputs, np.load(full / "test" / "all__inputs.npy"))
    assert not labels.any()
    assert (split.extents(rows)[:, 0] > 0).all()
    assert not split.extents(rows)[:, 1].any()
    assert not split.largest_outputs(rows).any()


def test_the_builder_does_without_torch(run_command: Callable[..., Any]) -> None:
    code = "import sys, dataset.build_arc_dataset; sys.exit('torch' in sys.modules)"
    assert run_command("-c", code).returncode == 0, f"{sys.executable} imported torch"


# ---- damage ----------------------------------------------------------------------------------


def fewer_originals(split: Path) -> None:
    for half in ("inputs", "labels"):
        change(f"originals__{half}", lambda array: array[:-1])(split)


def narrow(split: Path) -> None:
    """Canvases of eight cells, and metadata that agree."""
    for half in ("inputs", "labels"):
        change(f"originals__{half}", lambda array: array[:, :8])(split)
    metadata = split / "dataset.json"
    metadata.write_text(metadata.read_text().replace('"seq_len":36', '"seq_len":8'))


@pytest.fixture
def damageable(build_small: Build) -> Path:
    """Nine tasks with four puzzles each, on a canvas of 6."""
    return build_small(layout="compact", canvas_side=6)[0]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (remove("originals__inputs.npy"), r"originals__inputs\.npy does not exist"),
        (remove("variants__dihedrals.npy"), r"variants__dihedrals\.npy does not exist"),
        (remove("all__puzzle_indices.npy"), r"all__puzzle_indices\.npy does not exist"),
        (truncate("originals__labels.npy", 0.5), r"originals__labels\.npy is truncated"),
        (truncate("variants__permutations.npy", 0.5), r"variants__permutations\.npy is truncated"),
        (change("originals__labels", lambda a: a[1:]), r"labels\.npy: shape .*, expected"),
        (change("originals__inputs", lambda a: a[:, :9]), r"inputs\.npy: shape .*, expected"),
        (narrow, "seq_len 8 is no square"),
        (fewer_originals, r"puzzle_indices\.npy: must give all .* as there are originals"),
        (put("originals__labels", (2, 3), 12), "holds a token outside its vocabulary of 12"),
        (put("originals__inputs", (2, 0), 0), r"inputs\.npy: has a canvas without a grid"),
        (put("all__puzzle_indices", (1,), 2), r"puzzle_indices\.npy: must give all puzzles"),
        (put("all__puzzle_indices", (1,), 0), r"puzzle_indices\.npy: must rise strictly from 0;"),
        (put("all__group_indices", (1,), 0), r"group_indices\.npy: must rise strictly from 0 to"),
        (change("all__puzzle_identifiers", lambda a: a[1:]), r"shape \(35,\), expected \[36\]"),
        (put("variants__dihedrals", (5,), 8), r"dihedrals\.npy: must hold numbers from 0 to 7"),
        (change("variants__dihedrals", lambda a: a[1:]), r"dihedrals\.npy: shape \(35,\)"),
        (put("variants__permutations", (5, 9), 10), r"permutations\.npy: must hold numbers"),
        (put("variants__permutations", (0, 9), 8), r"permutations\.npy: must hold permutations"),
        (change("variants__permutations", lambda a: a[:, :9]), r"ations\.npy: shape \(36, 9\)"),
    ],
)  # fmt: skip
def test_damage_is_found_when_the_dataset_is_open_split(
    damageable: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    damage(damageable / "train")
    with pytest.raises(UserError, match=complaint) as error:
        open_split(damageable, "train")
    assert str(damageable / "train") in str(error.value)


# ---- labels that come later ------------------------------------------------------------------


def test_labels_can_be_hidden_and_given_later(small_compact_dataset: Path) -> None:
    """Then the split is what it was; what is larger than the canvas stays hidden."""
    split = open_split(small_compact_dataset, "test")
    rows = np.arange(split.num_examples)
    outputs = [read_back(canvas) for canvas in split.originals.labels.numpy()]
    hidden = split.with_labels([None] * len(outputs))
    assert not hidden.read(rows)[1].any()
    assert not hidden.originals.sizes[:, 1].any()
    again = hidden.with_labels(outputs)
    for name in Originals._fields:
        assert torch.equal(getattr(again.originals, name), getattr(split.originals, name)), name
    large = hidden.with_labels([np.ones((31, 1), dtype=np.uint8), *outputs[1:]])
    assert not large.originals.labels[0].any()
    assert torch.equal(large.originals.labels[1:], split.originals.labels[1:])
