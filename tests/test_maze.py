"""Mazes: rules and count of shortest paths against writing every shortest path down."""

from typing import Any

import numpy as np
import pytest

from boards import marked, random_maze, shortest_paths, solved_mazes
from dataset import maze
from dataset.boards import keeps_given


def tokens(*rows: str) -> np.ndarray:
    """A maze [1, cells] as a CSV file has it."""
    return np.array([[1 + "# SGo".index(cell) for cell in "".join(rows)]], dtype=np.uint8)


def test_the_tokens_are_the_characters_in_the_published_order() -> None:
    assert maze.ALPHABET == {"#": 1, " ": 2, "S": 3, "G": 4, "o": 5}
    assert list(maze.RULES.solution_tokens) == [1, 2, 3, 4, 5]
    assert maze.RULES.empty == 2


@pytest.mark.parametrize("side", [2, 3, 5, 7])
def test_shortest_paths_are_those_written_down_all_are_valid_and_keep_what_is_given(
    side: int,
) -> None:
    rng = np.random.default_rng(side)
    mazes = np.stack([random_maze(side, rng) for _ in range(200)])
    steps, numbers = maze.shortest_paths(mazes)
    written = [shortest_paths(board) for board in mazes]
    assert numbers.tolist() == [len(paths) for paths in written]
    assert steps.tolist() == [len(paths[0]) - 1 if paths else 0 for paths in written]
    assert maze.RULES.exact_ceiling(mazes).tolist() == [1 / n if n else 0 for n in numbers]
    assert 0 in numbers
    assert side < 5 or numbers.max() > 2
    inputs = np.repeat(mazes, numbers.astype(int), axis=0)
    paths = [path for paths in written for path in paths]
    answers = np.stack([marked(*pair) for pair in zip(inputs, paths, strict=True)])
    assert maze.RULES.is_valid(inputs, answers).all()
    assert keeps_given(maze.RULES, inputs, answers).all()


def test_an_open_board_has_as_many_paths_as_ways_to_order_the_steps() -> None:
    board = np.full((1, 900), 2, dtype=np.uint8)
    board[0, 0], board[0, -1] = 3, 4
    steps, numbers = maze.shortest_paths(board)
    assert (steps.tolist(), numbers.tolist()) == ([58], [30067266499541040])


def test_an_answer_that_differs_in_a_cell_is_valid_only_if_it_is_another_shortest_path() -> None:
    rng = np.random.default_rng(2)
    inputs, labels, _ = solved_mazes()
    answers = np.repeat(labels, 20, axis=0)
    rows = np.arange(len(answers))
    answers[rows, rng.integers(36, size=len(rows))] = rng.integers(0, 7, size=len(rows))
    # Two cells exchanged keep the number of marked cells.
    exchanged = np.repeat(labels, 20, axis=0)
    for answer in exchanged:
        cells = rng.choice(36, 2, replace=False)
        answer[cells] = answer[cells[::-1]]
    right = [{marked(m, path).tobytes() for path in shortest_paths(m)} for m in inputs]
    for changed in (answers, exchanged):
        expected = [answer.tobytes() in right[row // 20] for row, answer in enumerate(changed)]
        valid = maze.RULES.is_valid(np.repeat(inputs, 20, axis=0), changed)
        assert valid.tolist() == expected
        assert set(expected) == {True, False}


@pytest.mark.parametrize(
    ("answer", "is_valid"),
    [
        (("SooG", "    ", " ## ", "    "), True),
        (("S  G", "oooo", " ## ", "    "), False),
        (("SooG", "o   ", " ## ", "    "), False),
        (("So G", "    ", " ## ", "    "), False),
        (("SooG", "    ", " #  ", "    "), False),
        (("S  G", "    ", " ## ", "    "), False),
        (("oooG", "    ", " ## ", "    "), False),
        (("S oG", " o  ", " ## ", "    "), False),
    ],
    ids=["path", "detour", "more", "less", "wall gone", "none", "start gone", "torn"],
)
def test_the_path_is_the_shortest_and_all_and_nothing_else(answer: Any, is_valid: bool) -> None:
    board = tokens("S  G", "    ", " ## ", "    ")
    assert maze.RULES.is_valid(board, tokens(*answer)).tolist() == [is_valid]


@pytest.mark.parametrize(
    ("board", "is_valid"),
    [("S##G", False), ("   G", False), ("S   ", False), ("SS G", False), ("SG G", False),
     ("SG##", True)],
)  # fmt: skip
def test_only_a_board_with_a_way_between_two_ends_has_a_valid_answer(
    board: str, is_valid: bool
) -> None:
    """Neighbouring ends need no path, which leaves a single answer."""
    assert maze.RULES.is_valid(tokens(board), tokens(board)).tolist() == [is_valid]
    assert not is_valid or maze.RULES.exact_ceiling(tokens(board)).tolist() == [1]


def test_variants_are_all_the_looks_of_a_maze_but_itself() -> None:
    inputs, labels, _ = solved_mazes()
    pair = np.stack([inputs[0], labels[0]])
    grids = pair.reshape(2, 6, 6)
    looks = [np.rot90(g, k, (1, 2)) for g in (grids, grids[..., ::-1]) for k in range(4)]
    expected = {look.tobytes() for look in looks} - {pair.tobytes()}
    assert len(expected) == 7
    for seeds, count in ((range(1), 7), (range(60), 1)):
        drawn = [maze.draw_variants(pair, count, np.random.default_rng(seed)) for seed in seeds]
        variants = np.concatenate(drawn)
        assert {variant.tobytes() for variant in variants} == expected
        assert maze.RULES.is_valid(variants[:, 0], variants[:, 1]).all()
