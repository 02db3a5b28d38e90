"""Augmentation: eight transforms by hand, an exact inverse, and variants that all differ."""

import re
from itertools import permutations as arrangements
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import UserError
from dataset.augmentation import (
    IDENTITY_PERMUTATION,
    INVERSE_DIHEDRAL,
    Variants,
    augment,
    draw_variants,
    invert,
    parse_variant_name,
    transform,
    transformed_sizes,
    variant_names,
)
from dataset.task_files import load_subset
from dataset.tasks import Pair, Task

grids = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9))
)
dihedrals = st.integers(0, 7)
colour_permutations = st.permutations(range(1, 10)).map(
    lambda order: np.array([0, *order], dtype=np.uint8)
)


def task_of(*grids: object) -> Task:
    """A task whose pairs are grids 0 and 1, grids 2 and 3 and so on; the last one is the test."""
    arrays = [np.array(grid, dtype=np.uint8) for grid in grids]
    pairs = [Pair(*both) for both in zip(arrays[::2], arrays[1::2], strict=True)]
    return Task("task", tuple(pairs[:-1]), tuple(pairs[-1:]))


def rendered(task: Task, dihedral: int, permutation: np.ndarray) -> tuple[object, ...]:
    """Everything a variant shows, as a value that can be compared."""
    shown = [augment(grid, int(dihedral), permutation) for grid in task.grids()]
    return tuple((grid.shape, grid.tobytes()) for grid in shown)


UNLIKE = task_of([[1, 2], [3, 4]], [[5, 6, 7]])
"""A task of which every transform shows something else."""


@pytest.mark.parametrize(
    ("dihedral", "expected"),
    [
        (0, [[1, 2, 3], [4, 5, 6]]),
        (1, [[3, 6], [2, 5], [1, 4]]),
        (2, [[6, 5, 4], [3, 2, 1]]),
        (3, [[4, 1], [5, 2], [6, 3]]),
        (4, [[3, 2, 1], [6, 5, 4]]),
        (5, [[4, 5, 6], [1, 2, 3]]),
        (6, [[1, 4], [2, 5], [3, 6]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
    ],
)
def test_the_eight_transforms_turn_and_flip_as_the_specification_numbers_them(
    dihedral: int, expected: list[list[int]]
) -> None:
    """A stack of grids is transformed grid by grid, and sizes as the grids are."""
    grid = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    assert transform(grid, dihedral).tolist() == expected
    assert transform(np.array(expected), INVERSE_DIHEDRAL[dihedral]).tolist() == grid.tolist()
    stack = transform(np.stack([grid, grid + 1]), dihedral)
    assert stack.tolist() == [expected, (np.array(expected) + 1).tolist()]
    sizes = transformed_sizes(np.array([[[2, 3], [7, 4]]]), np.array([dihedral]))
    turned = len(expected) == 3
    assert sizes.tolist() == [[[3, 2], [4, 7]] if turned else [[2, 3], [7, 4]]]


def test_colours_are_replaced_through_the_permutation() -> None:
    permutation = np.array([0, 2, 3, 1, 4, 5, 6, 7, 9, 8], dtype=np.uint8)
    grid = np.array([[0, 1], [2, 8]], dtype=np.uint8)
    assert augment(grid, 0, permutation).tolist() == [[0, 2], [3, 9]]
    both = augment(grid, 0, np.stack([permutation, IDENTITY_PERMUTATION]))
    assert both.tolist() == [[[0, 2], [3, 9]], grid.tolist()]
    assert invert(grid, 0, permutation).tolist() == [[0, 3], [1, 9]]


@given(grids, dihedrals, colour_permutations)
def test_inverting_an_augmented_grid_gives_the_grid(
    grid: np.ndarray, dihedral: int, permutation: np.ndarray
) -> None:
    there_and_back = invert(augment(grid, dihedral, permutation), dihedral, permutation)
    assert there_and_back.dtype == np.uint8
    assert np.array_equal(there_and_back, grid)


def test_names_are_the_published_ones() -> None:
    swapped = np.array([0, 2, 1, *range(3, 10)], dtype=np.uint8)
    permutations = np.array([IDENTITY_PERMUTATION, swapped, swapped, IDENTITY_PERMUTATION])
    variants = Variants(np.array([0, 3, 0, 6], dtype=np.uint8), permutations)
    assert variant_names("007bbfb7", variants) == [
        "007bbfb7",
        "007bbfb7|||t3|||0213456789",
        "007bbfb7|||t0|||0213456789",
        "007bbfb7|||t6|||0123456789",
    ]


@given(
    st.sampled_from(["007bbfb7", "Count3", "a|b", 'é"']),
    st.lists(st.tuples(dihedrals, colour_permutations)),
)
def test_a_name_says_exactly_which_variant_it_is(
    task_id: str, drawn: list[tuple[int, np.ndarray]]
) -> None:
    every = [(0, IDENTITY_PERMUTATION), *drawn]
    numbers, permutations = (
        np.array(column, dtype=np.uint8) for column in zip(*every, strict=True)
    )
    names = variant_names(task_id, Variants(numbers, permutations))
    for name, (dihedral, permutation) in zip(names, every, strict=True):
        parsed = parse_variant_name(name)
        assert parsed[:2] == (task_id, dihedral)
        assert np.array_equal(parsed[2], permutation)


@pytest.mark.parametrize(
    "variant",
    [
        "t8|||0123456789",
        "t-1|||0123456789",
        "tx|||0123456789",
        "t1|||012345678",
        "t1|||0123456788",
        "t1|||012345678x",
        "t1",
        "t1|||0123456789|||more",
    ],
)
def test_a_name_of_another_form_is_refused_as_it_stands(variant: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"'a|||{variant}'")):
        parse_variant_name(f"a|||{variant}")


@pytest.mark.parametrize("num_variants", [0, 50])
def test_the_first_variant_is_the_original_and_black_stays_black(
    kaggle_prefix: str, num_variants: int
) -> None:
    for task in load_subset(kaggle_prefix, "training"):
        variants = draw_variants(task, num_variants, np.random.default_rng(0))
        assert variants.dihedrals[0] == 0
        assert variants.permutations[0].tolist() == list(range(10))
        assert (variants.permutations[:, 0] == 0).all()
        assert (np.sort(variants.permutations, axis=1) == np.arange(10)).all()
        assert len(variants.permutations) == len(variants.dihedrals) == num_variants + 1


def test_all_transforms_and_many_permutations_are_drawn(kaggle_prefix: str) -> None:
    task = load_subset(kaggle_prefix, "training")[0]
    variants = draw_variants(task, 400, np.random.default_rng(0))
    shares = np.bincount(variants.dihedrals[1:], minlength=8) / 400
    # Eight transforms, a share of 1/8 each within four standard deviations of 400 draws.
    assert np.abs(shares - 1 / 8).max() < 4 * np.sqrt(1 / 8 * 7 / 8 / 400)
    # Each of the colours 1-9 becomes each of 1-9 about equally often.
    for colour in range(1, 10):
        counts = np.bincount(variants.permutations[1:, colour], minlength=10)
        assert counts[0] == 0
        assert np.abs(counts[1:] / 400 - 1 / 9).max() < 4 * np.sqrt(1 / 9 * 8 / 9 / 400)


@pytest.mark.parametrize(
    ("task", "distinct"),
    [
        # Nothing but black: every variant looks alike.
        (task_of([[0]], [[0, 0], [0, 0]]), 1),
        # Two colours on a row: 9 * 8 ordered choices, lying or standing; a flip of the row is a
        # swap of the colours and gives nothing new.
        (task_of([[0]], [[1, 2]]), 144),
        # Four different corners: 8 transforms times 9 * 8 * 7 * 6 colourings, of which each
        # content can be had in 8 ways, since a transform permutes the corners.
        (task_of([[0]], [[1, 2], [3, 4]]), 9 * 8 * 7 * 6),
    ],
)
def test_an_exhausted_task_yields_each_distinct_content_once(task: Task, distinct: int) -> None:
    variants = draw_variants(task, 10_000, np.random.default_rng(0))
    contents = [rendered(task, *variant) for variant in zip(*variants, strict=True)]
    assert len(contents) == len(set(contents)) == distinct


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
            lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 3, 7]))
        ),
        min_size=4,
        max_size=4,
    ),
    st.integers(0, 2**32),
)
def test_distinct_means_that_all_rendered_grids_together_differ(
    content: list[np.ndarray], seed: int
) -> None:
    """Against brute force: render every transform with every colouring of the two colours."""
    task = task_of(*content)
    possible = set()
    for dihedral in range(8):
        for three, seven in arrangements(range(1, 10), 2):
            rest = iter({*range(1, 10)} - {three, seven})
            mapping = {0: 0, 3: three, 7: seven}
            permutation = [mapping[c] if c in mapping else next(rest) for c in range(10)]
            possible.add(rendered(task, dihedral, np.array(permutation, dtype=np.uint8)))
    # 15,000 draws meet each of at most 576 contents but with a probability of 3e-9.
    variants = draw_variants(task, 3000, np.random.default_rng(seed))
    contents = [rendered(task, *variant) for variant in zip(*variants, strict=True)]
    assert len(contents) == len(set(contents))
    assert set(contents) == possible


@pytest.mark.parametrize(
    ("task", "num_variants", "rounds", "sizes", "drawn"),
    [
        # Only the original is ever drawn: no more than five draws are spent for each variant.
        (task_of([[1]], [[2]]), 7, [[0] * 9] * 3 + [[0] * 8], [9, 9, 9, 8], [0]),
        # One new variant in each round: drawing ends with the round that completes them.
        (UNLIKE, 3, [[1] * 4, [2] * 4, [3] * 4], [4, 4, 4], [0, 1, 2, 3]),
        # Variants come in the order in which they were drawn; what comes again is known.
        (UNLIKE, 3, [[0, 4, 4, 1], [0, 6, 5, 3]], [4, 4], [0, 4, 1, 6]),
    ],
    ids=["never", "one a round", "order"],
)
def test_variants_are_drawn_in_rounds_until_there_are_enough(
    task: Task, num_variants: int, rounds: list[list[int]], sizes: list[int], drawn: list[int]
) -> None:
    """With a generator that draws the transforms given, and changes no colour."""
    asked: list[int] = []

    def integers(low: int, high: int, size: int) -> np.ndarray:
        asked.append(size)
        return np.array(rounds[len(asked) - 1])

    rng: Any = SimpleNamespace(integers=integers, permuted=lambda values, axis: values)
    assert draw_variants(task, num_variants, rng).dihedrals.tolist() == drawn
    assert asked == sizes
