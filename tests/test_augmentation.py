"""Augmentation: eight transforms by hand, an exact inverse, and variants that all differ."""

from itertools import permutations as arrangements
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import UserError
from dataset.augmentation import (
    DRAWING_ROUNDS,
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
from dataset.tasks import Pair, Task, load_subset

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
    grid = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    assert transform(grid, dihedral).tolist() == expected
    # A stack of grids is transformed grid by grid.
    assert transform(np.stack([grid, grid + 1]), dihedral)[1].tolist() == [
        [cell + 1 for cell in row] for row in expected
    ]


def test_the_inverse_transforms_are_the_specified_ones() -> None:
    assert INVERSE_DIHEDRAL == (0, 3, 2, 1, 4, 5, 6, 7)


def test_a_ninth_transform_does_not_exist() -> None:
    with pytest.raises(AssertionError, match="0 to 7, got 8"):
        transform(np.zeros((1, 1), dtype=np.uint8), 8)


def test_colours_are_replaced_through_the_permutation() -> None:
    permutation = np.array([0, 2, 3, 1, 4, 5, 6, 7, 9, 8], dtype=np.uint8)
    grid = np.array([[0, 1], [2, 8]], dtype=np.uint8)
    assert augment(grid, 0, permutation).tolist() == [[0, 2], [3, 9]]
    assert invert(grid, 0, permutation).tolist() == [[0, 3], [1, 9]]


@given(grids, dihedrals, colour_permutations)
def test_inverting_an_augmented_grid_gives_the_grid(
    grid: np.ndarray, dihedral: int, permutation: np.ndarray
) -> None:
    there_and_back = invert(augment(grid, dihedral, permutation), dihedral, permutation)
    assert there_and_back.dtype == np.uint8
    assert np.array_equal(there_and_back, grid)


def test_names_are_the_published_ones() -> None:
    swapped = np.array([0, 2, 1, 3, 4, 5, 6, 7, 8, 9], dtype=np.uint8)
    variants = Variants(
        np.array([0, 3, 0, 6], dtype=np.uint8),
        np.array([IDENTITY_PERMUTATION, swapped, swapped, IDENTITY_PERMUTATION]),
    )
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
    "name",
    [
        "a|||t8|||0123456789",
        "a|||t-1|||0123456789",
        "a|||tx|||0123456789",
        "a|||t1|||012345678",
        "a|||t1|||0123456788",
        "a|||t1|||012345678x",
        "a|||t1",
        "a|||t1|||0123456789|||more",
    ],
)
def test_a_name_of_another_form_is_refused_as_it_stands(name: str) -> None:
    with pytest.raises(UserError) as error:
        parse_variant_name(name)
    assert f"'{name}'" in str(error.value)


def test_the_first_variant_is_the_original_and_black_stays_black(kaggle_prefix: str) -> None:
    for task in load_subset(kaggle_prefix, "training"):
        variants = draw_variants(task, 50, np.random.default_rng(0))
        assert variants.dihedrals[0] == 0
        assert variants.permutations[0].tolist() == list(range(10))
        assert (variants.permutations[:, 0] == 0).all()
        assert (np.sort(variants.permutations, axis=1) == np.arange(10)).all()
        assert len(variants.permutations) == len(variants.dihedrals) == 51


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


def test_the_draw_is_a_function_of_the_generator(kaggle_prefix: str) -> None:
    task = load_subset(kaggle_prefix, "training")[0]
    first, again, other = (
        draw_variants(task, 30, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.permutations, again.permutations)
    assert np.array_equal(first.dihedrals, again.dihedrals)
    assert not np.array_equal(first.permutations, other.permutations)


def test_asking_for_no_variants_gives_the_original_alone(kaggle_prefix: str) -> None:
    variants = draw_variants(load_subset(kaggle_prefix, "training")[0], 0, np.random.default_rng(0))
    assert variants.dihedrals.tolist() == [0]
    assert variants.permutations.tolist() == [list(range(10))]


@pytest.mark.parametrize(
    ("task", "distinct"),
    [
        # Nothing but black: every variant looks alike.
        (task_of([[0]], [[0, 0], [0, 0]]), 1),
        # One colour on squares: it can become nine colours, and no transform shows.
        (task_of([[0]], [[4, 4], [4, 4]]), 9),
        # One colour on a row: nine colours, lying or standing.
        (task_of([[4]], [[4, 4]]), 18),
        # Two colours on a row: 9 * 8 ordered choices, lying or standing; a flip of the row is a
        # swap of the colours and gives nothing new.
        (task_of([[0]], [[1, 2]]), 144),
        # Black and a colour on a row: the flip is new, since black cannot be swapped.
        (task_of([[0]], [[0, 2]]), 36),
        # A flip that shows in one pair counts, even if the others are symmetric.
        (task_of([[5]], [[5]], [[5]], [[5, 0]]), 36),
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


def test_no_more_than_five_draws_are_spent_for_each_variant() -> None:
    sizes = []

    def integers(low: int, high: int, size: int) -> np.ndarray:
        sizes.append(size)
        return np.zeros(size, dtype=np.int64)

    rng = SimpleNamespace(integers=integers, permuted=lambda values, axis: values)
    variants = draw_variants(task_of([[1]], [[2]]), 7, rng)
    assert sizes == [9, 9, 9, 8]
    assert sum(sizes) == 5 * 7
    assert len(variants.dihedrals) == 1, "only the original was ever drawn"


def test_drawing_ends_with_the_round_that_completes_the_variants() -> None:
    sizes = []

    def integers(low: int, high: int, size: int) -> np.ndarray:
        sizes.append(size)
        # A transform of its own for each round: one new variant in each.
        return np.full(size, len(sizes))

    rng = SimpleNamespace(integers=integers, permuted=lambda values, axis: values)
    variants = draw_variants(task_of([[1, 2], [3, 4]], [[5, 6, 7]]), 3, rng)
    assert sizes == [4, 4, 4]
    assert variants.dihedrals.tolist() == [0, 1, 2, 3]
    assert DRAWING_ROUNDS == 4


def test_variants_come_in_the_order_in_which_they_were_drawn() -> None:
    drawn = iter([0, 4, 4, 1, 0, 6, 5, 3, 2, 7, 0, 0, 0, 0, 0])
    rng = SimpleNamespace(
        integers=lambda low, high, size: np.array([next(drawn) for _ in range(size)]),
        permuted=lambda values, axis: values,
    )
    task = task_of([[1, 2], [3, 4]], [[5, 6, 7]])
    # Rounds of four: what the second one draws again is known from the first.
    assert draw_variants(task, 3, rng).dihedrals.tolist() == [0, 4, 1, 6]


def test_sizes_are_transformed_as_the_grids_are() -> None:
    grid = np.zeros((2, 5), dtype=np.uint8)
    dihedrals = np.arange(8)
    expected = [transform(grid, int(dihedral)).shape for dihedral in dihedrals]
    sizes = np.tile([2, 5], (8, 1))
    assert transformed_sizes(sizes, dihedrals).tolist() == [list(shape) for shape in expected]
    both = np.stack([sizes, sizes[:, ::-1]], axis=1)  # [8, 2, 2]
    assert transformed_sizes(both, dihedrals)[:, 0].tolist() == [list(s) for s in expected]
    assert transformed_sizes(both, dihedrals)[:, 1].tolist() == [list(s[::-1]) for s in expected]
