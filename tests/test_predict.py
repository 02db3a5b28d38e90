"""Prediction over a test split written by hand, with a stub that looks the answers up.

Three tasks on a canvas of 3x3, eight examples in the order of the split:

    row  identifier  puzzle                    test input
    0-1  1           aaa                       0, 1
    2-3  2           aaa turned by t1          0, 1
    4    3           bbb                       0
    5    4           bbb, colours 1 and 2 exchanged
    6    5           bbb turned by t6
    7    6           ccc, its solution hidden

The first cell of row i's input is token 2 + i. Solutions are grids of 2x2: with the EOS around
them eight cells count, and the corner is PAD.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import eval_config
from tiny import ALONE, CPU
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from dataset import windows
from dataset.augmentation import augment, parse_variant_name
from dataset.canvas import VOCAB_SIZE, place
from dataset.tasks import Pair, Task, save_tasks
from evaluation.metrics import mean_metrics
from evaluation.predict import Answers, one_behind, predict
from evaluation.predictions import predictions_of
from evaluation.summary import summarise
from evaluation.test_set import ArcTestSet
from evaluation.voting import count_votes
from models.steps import Improvement

NAMES = [
    "<blank>",
    "aaa",
    "aaa|||t1|||0123456789",
    "bbb",
    "bbb|||t0|||0213456789",
    "bbb|||t6|||0123456789",
    "ccc",
]
ANSWERS: dict[str, list[Any]] = {
    "aaa": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
    "bbb": [[[1, 2], [2, 9]]],
}
IDENTIFIERS = [1, 1, 2, 2, 3, 4, 5, 6]
TEST_INDICES = [0, 1, 0, 1, 0, 0, 0, 0]


def labels() -> npt.NDArray[np.uint8]:
    """[8, 9] the solution of every row; the last one's is hidden."""
    rows = np.zeros((8, 9), dtype=np.uint8)
    for row, (identifier, index) in enumerate(zip(IDENTIFIERS[:7], TEST_INDICES, strict=False)):
        task_id, dihedral, permutation = parse_variant_name(NAMES[identifier])
        grid = np.array(ANSWERS[task_id][index], dtype=np.uint8)
        rows[row] = place(augment(grid, dihedral, permutation)[None], 3)[0]
    return rows


def shown_grid(height: int, width: int, colour: int) -> npt.NDArray[np.uint8]:
    return np.full((height, width), colour, np.uint8)


def tasks() -> list[Task]:
    """The originals show a cell of the colour of their row."""

    def task(task_id: str, rows: list[int], outputs: list[Any]) -> Task:
        pairs = zip(rows, outputs, strict=True)
        test = tuple(Pair(shown_grid(1, 1, row), output) for row, output in pairs)
        return Task(task_id, (Pair(shown_grid(1, 1, 0), shown_grid(1, 1, 0)),), test)

    solved = {key: [np.array(grid, np.uint8) for grid in grids] for key, grids in ANSWERS.items()}
    return [
        task("aaa", [0, 1], solved["aaa"]),
        task("bbb", [4], solved["bbb"]),
        task("ccc", [7], [None]),
    ]


def with_tasks(dataset: Path, change: Callable[[Task], Task]) -> None:
    save_tasks(dataset / "test_puzzles.json", [change(task) for task in tasks()])


def with_solution(task: Task, solution: npt.NDArray[np.uint8] | None) -> Task:
    """The same solution (or none) for every test input."""
    return replace(task, test=tuple(Pair(pair.input, solution) for pair in task.test))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "dataset"
    (path / "test").mkdir(parents=True)
    inputs = np.zeros((8, 9), dtype=np.uint8)
    inputs[:, 0] = 2 + np.arange(8)
    arrays = {
        "inputs": inputs,
        "labels": labels(),
        "puzzle_identifiers": np.array([1, 2, 3, 4, 5, 6], dtype=np.int32),
        "puzzle_indices": np.array([0, 2, 4, 5, 6, 7, 8], dtype=np.int32),
        "group_indices": np.array([0, 2, 5, 6], dtype=np.int32),
    }
    for name, array in arrays.items():
        np.save(path / "test" / f"all__{name}.npy", array)
    metadata = {
        "pad_id": 0,
        "ignore_label_id": 0,
        "blank_identifier_id": 0,
        "vocab_size": 12,
        "seq_len": 9,
        "num_puzzle_identifiers": len(NAMES),
        "total_groups": 3,
        "mean_puzzle_examples": 8 / 6,
        "total_puzzles": 6,
        "sets": ["all"],
    }
    (path / "test" / "dataset.json").write_text(json.dumps(metadata))
    (path / "identifiers.json").write_text(json.dumps(NAMES))
    save_tasks(path / "test_puzzles.json", tasks())
    return path


class LookedUp:
    """Stands in for `TrainedModel`: two steps, of which the second gives the solution.

    After the first step the rows of even number are wrong in two of their eight counted cells, the
    others only where nothing is counted. Where the solution is hidden no grid is shown.
    """

    trained_steps = 2
    device = CPU

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def improve(
        self, inputs: Tensor, puzzle_ids: Tensor, num_steps: int, *asked: Any
    ) -> Iterator[Improvement]:
        assert (num_steps, *asked) == (2, 1.0, None, False)
        self.batch_sizes.append(len(inputs))
        assert not torch.is_grad_enabled()
        rows = inputs[:, 0] - 2
        answers = torch.from_numpy(labels()).long()[rows]
        assert puzzle_ids.tolist() == [IDENTIFIERS[row] for row in rows.tolist()]
        first = answers.clone()
        first[rows % 2 == 0, :2] = 1
        first[rows % 2 == 1, 8] = 7
        yield self.improvement(first)
        yield self.improvement(answers)

    def improvement(self, answers: Tensor) -> Improvement:
        """0 but for the answer's token: 9 in the first cell, 20 in cells of colour, else 99.

        By stablemax over 12 tokens their probabilities are 10/21, 21/32 and 100/111.
        """
        heights = torch.where(answers >= 2, 20.0, 99.0)
        heights[:, 0] = 9.0
        logits = heights.unsqueeze(-1) * torch.nn.functional.one_hot(answers, VOCAB_SIZE)
        return Improvement(logits, logits, None)


def answer(
    dataset: Path,
    batch_size: int = 3,
    stub: Any = None,
    canvas: str = "whole",
    max_variants: int | None = None,
    progress: Any = None,
) -> Answers:
    """What the stub (or else `LookedUp`) answers to the dataset."""
    test_set = ArcTestSet(dataset, max_variants)
    config = eval_config(batch_size=batch_size, canvas=canvas)
    answers = predict(stub or cast(Any, LookedUp()), test_set, config, ALONE, progress)
    assert answers is not None, "this is the main rank"
    return answers


def sums(answers: Answers) -> dict[str, list[float]]:
    """Metrics summed over the rows that have a solution, by step."""
    known = answers.metrics[~np.isnan(answers.metrics[:, -1, 0])]
    means = mean_metrics(answers.metrics, answers.metric_names)
    num_steps = answers.metrics.shape[1]
    return {
        name: [round(len(known) * means[f"{name}_step{s}"], 4) for s in range(1, num_steps + 1)]
        for name in ("exact_accuracy", "cell_accuracy")
    }


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 8), (3, [3, 3, 2]), (5, [5, 4]), (7, [7, 1]), (50, [8])]
)
def test_every_row_says_what_was_predicted_for_what(
    dataset: Path, batch_size: int, sizes: list[int]
) -> None:
    """And how sure, and after which step; that the last batch is padded never shows up."""
    stub, test_set = LookedUp(), ArcTestSet(dataset, None)
    answers = answer(dataset, batch_size, stub)
    assert stub.batch_sizes == sizes
    # Seven rows have a solution. After step 1 rows 1, 3, 5 are correct, the other four 6/8.
    assert sums(answers) == {"exact_accuracy": [3, 7], "cell_accuracy": [3 + 4 * 6 / 8, 7]}
    predictions = predictions_of(test_set, answers)
    assert predictions.task_id.tolist() == ["aaa"] * 4 + ["bbb"] * 3 + ["ccc"]
    assert predictions.identifier.tolist() == IDENTIFIERS
    assert predictions.test_index.tolist() == TEST_INDICES
    assert predictions.dihedral.tolist() == [0, 0, 1, 1, 0, 0, 6, 0]
    identity, exchanged = list(range(10)), [0, 2, 1, 3, 4, 5, 6, 7, 8, 9]
    assert predictions.colour_permutation.tolist() == [identity] * 5 + [exchanged] + [identity] * 2
    assert np.array_equal(predictions.canvas, labels())
    assert predictions.checkpoint.tolist() == [0] * 8
    # The mean over the shown grid alone; in the last row no grid is shown.
    of_grid = (10 / 21 + 3 * 21 / 32) / 4
    assert predictions.confidence.tolist() == pytest.approx([of_grid] * 7 + [0])
    # After each step the answers to the originals are kept.
    assert answers.followed.tolist() == [0, 1, 4, 7]
    first = labels()[[0, 1, 4, 7]]
    first[[0, 2], :2] = 1  # rows 0 and 4
    first[[1, 3], 8] = 7  # rows 1 and 7
    assert np.array_equal(answers.steps[:, 0], first)
    assert np.array_equal(answers.steps[:, 1], labels()[[0, 1, 4, 7]])


def test_a_batch_is_used_when_the_next_one_has_been_started() -> None:
    made: list[int] = []
    items = (made.append(number) or number for number in range(4))  # type: ignore[func-returns-value]
    assert [(item, len(made)) for item in one_behind(items)] == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_behind([])) == []


@pytest.mark.parametrize(
    ("max_variants", "rows"),
    [(1, [0, 1, 4, 7]), (2, [0, 1, 2, 3, 4, 5, 7]), (3, range(8)), (99, range(8))],
)
def test_the_first_variants_of_each_task_are_predicted(
    dataset: Path, max_variants: int, rows: Any
) -> None:
    answers = answer(dataset, max_variants=max_variants)
    assert np.array_equal(answers.canvases, labels()[rows])
    assert len(ArcTestSet(dataset, max_variants)) == len(rows)


class Rank(Ranks):
    """One of several, whose last gathers what all have given."""

    given: list[Any] = []  # noqa: RUF012

    def gather_objects(self, value: Any) -> list[Any] | None:
        self.given.append(value)
        return self.given if self.rank == self.world_size - 1 else None


@pytest.mark.parametrize("canvas", ["whole", "window"])
@pytest.mark.parametrize("world_size", [2, 3, 11])
def test_the_ranks_together_predict_each_row_once(
    dataset: Path, world_size: int, canvas: str
) -> None:
    """Also where a rank has nothing to do; the main rank has everything in order, others None."""
    test_set, Rank.given = ArcTestSet(dataset, None), []
    for rank in range(world_size):
        me, stub = Rank(rank, world_size, CPU), cast(Any, LookedUp())
        together = predict(stub, test_set, eval_config(canvas=canvas), me)
        assert (together is None) == (rank < world_size - 1)
    sizes = [len(share.rows) for share in Rank.given]
    assert max(sizes) - min(sizes) <= 1
    alone = answer(dataset, canvas=canvas)
    assert together is not None
    assert together.rows.tolist() == list(range(8))
    for name in ("canvases", "confidence", "followed", "steps"):
        assert np.array_equal(getattr(together, name), getattr(alone, name)), name
    assert np.array_equal(together.metrics, alone.metrics, equal_nan=True)
    assert together.whole_canvas_again == alone.whole_canvas_again


BAD_NAME = [*NAMES[:2], "aaa|||x", *NAMES[3:]]
AAA, *OTHERS = tasks()


@pytest.mark.parametrize(
    ("names", "of_tasks", "message"),
    [
        ([*NAMES, "ddd"], tasks(), r"identifiers\.json names 8 puzzles, dataset\.json .* 7"),
        (BAD_NAME, tasks(), r"'aaa\|\|\|x' is not of the form"),
        ([name.replace("|||", "_") for name in NAMES], tasks(), "other puzzle names"),
        (NAMES, OTHERS, "task 'aaa' is in only one of"),
        (
            NAMES,
            [replace(AAA, test=AAA.test[::-1]), *OTHERS],
            "test input 0 of task 'aaa' is another in the test split",
        ),
    ],
)
def test_names_split_and_tasks_that_do_not_go_together_are_refused(
    dataset: Path, names: list[str], of_tasks: list[Task], message: str
) -> None:
    (dataset / "identifiers.json").write_text(json.dumps(names))
    save_tasks(dataset / "test_puzzles.json", of_tasks)
    with pytest.raises(UserError, match=message):
        ArcTestSet(dataset, None)
    if names is BAD_NAME:  # It is not read where that variant does not vote.
        assert len(ArcTestSet(dataset, 1)) == 4


def test_an_evaluation_predicts_votes_and_scores(dataset: Path) -> None:
    test_set, answers = ArcTestSet(dataset, None), answer(dataset)
    votes = count_votes(predictions_of(test_set, answers), test_set.tasks)
    counted = {
        key: [(grid.tolist(), int(n)) for grid, n in zip(r.grids, r.votes, strict=True)]
        for key, r in votes.items()
    }
    assert counted == {
        ("aaa", 0): [(ANSWERS["aaa"][0], 2)],
        ("aaa", 1): [(ANSWERS["aaa"][1], 2)],
        ("bbb", 0): [(ANSWERS["bbb"][0], 3)],
        ("ccc", 0): [],
    }
    metrics = summarise(test_set, answers)
    assert metrics["pass@1"] == metrics["pass@1000_test_inputs"] == 1
    assert {key: metrics[key] for key in metrics if "accuracy" in key} == {
        "exact_accuracy": 1.0,
        "cell_accuracy": 1.0,
        "exact_accuracy_step1": 3 / 7,
        "exact_accuracy_step2": 1.0,
        "cell_accuracy_step1": (3 + 4 * 6 / 8) / 7,
        "cell_accuracy_step2": 1.0,
    }
    assert metrics["whole_canvas_again"] == 0
    assert summarise(test_set, None) == {}, "other ranks score nothing"


def test_of_a_test_set_without_solutions_nothing_is_scored(dataset: Path) -> None:
    np.save(dataset / "test" / "all__labels.npy", np.zeros((8, 9), np.uint8))
    with_tasks(dataset, lambda task: with_solution(task, None))
    metrics = summarise(ArcTestSet(dataset, None), answer(dataset))
    assert metrics == {"whole_canvas_again": 0}


# ---- windows ---------------------------------------------------------------------------------

GREY = 7
"""A token."""


class Seen:
    """Answers from what it sees by a rule, in one step, and notes what that was."""

    trained_steps = 1
    device = CPU

    def __init__(self, rule: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.rule = rule
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def improve(
        self,
        inputs: Tensor,
        puzzle_ids: Tensor,
        num_steps: int,
        guidance_weight: float,
        cells: Tensor | None,
        with_reference: bool,
    ) -> Iterator[Improvement]:
        everything = torch.arange(inputs.shape[1]).expand_as(inputs)
        places = everything if cells is None else cells
        self.calls.append((inputs, places, cells is None))
        answers = self.rule(inputs, places)
        # By stablemax the probability of the answer's token is 10/21.
        logits = 9.0 * torch.nn.functional.one_hot(answers, VOCAB_SIZE)
        yield Improvement(logits, logits, None)

    def seen(self) -> list[tuple[bool, dict[int, int]]]:
        """Of every row of every batch: whether all was shown, and token by cell."""
        return [
            (whole, dict(zip(cells.tolist(), tokens.tolist(), strict=True)))
            for inputs, places, whole in self.calls
            for tokens, cells in zip(inputs, places, strict=True)
        ]


def grid_of(height: int, width: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Always the same grey grid, as far as its cells and its border are shown, on 3x3."""
    canvas = torch.from_numpy(on_canvas(height, width)).long()
    return lambda inputs, places: canvas[places]


def on_canvas(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Canvas [9] of a grey grid."""
    return place(shown_grid(height, width, GREY - 2)[None], 3)[0]


def in_windows(dataset: Path, stub: Seen, batch_size: int = 3, progress: Any = None) -> Answers:
    """In windows of four and six cells: on 3x3 the usual lengths show the whole canvas."""
    with patch.object(windows, "_LENGTHS", (4, 6)):
        return answer(dataset, batch_size, stub, "window", progress=progress)


def with_demonstrated_outputs(dataset: Path, shapes: dict[str, tuple[int, int]]) -> None:
    def change(task: Task) -> Task:
        cell = shown_grid(1, 1, 0)
        output = shown_grid(*shapes.get(task.task_id, (1, 1)), 0)
        return replace(task, train=(Pair(cell, output), Pair(cell, cell)))

    with_tasks(dataset, change)


def test_a_window_has_room_for_the_input_and_the_largest_demonstrated_output(
    dataset: Path,
) -> None:
    """As each variant shows them: t1 and t6 are on their side."""
    with_demonstrated_outputs(dataset, {"aaa": (2, 1), "bbb": (1, 3)})
    boxes = ArcTestSet(dataset, None).boxes
    aaa, aaa_turned = [0, 0, 3, 2], [0, 0, 2, 3]
    bbb, bbb_turned = [0, 0, 2, 3], [0, 0, 3, 2]
    expected = [aaa, aaa, aaa_turned, aaa_turned, bbb, bbb, bbb_turned, [0, 0, 2, 2]]
    assert boxes.tolist() == expected


def test_a_window_has_room_for_a_large_input_of_few_outputs(roomy_dataset: Path) -> None:
    """On real tasks, the input as it is found on its canvas."""
    test_set = ArcTestSet(roomy_dataset, None)
    inputs, _ = test_set.split.read(test_set.examples.rows)
    largest = {
        task.task_id: np.max([pair.output.shape for pair in task.train], axis=0)
        for task in test_set.tasks
    }
    for row, canvas in enumerate(inputs.reshape(-1, 10, 10)):
        shown = np.argwhere(canvas >= 2).max(axis=0) + 1
        on_its_side = test_set.dihedrals[row] in (1, 3, 6, 7)
        output = largest[test_set.task_ids[row]][:: -1 if on_its_side else 1]
        expected = np.minimum(np.maximum(shown, output) + 1, 10)
        assert test_set.boxes[row].tolist() == [0, 0, *expected]


def test_what_is_answered_in_a_window_stands_at_its_place_on_the_canvas(dataset: Path) -> None:
    stub = Seen(lambda inputs, places: torch.where(places == 0, 1, 2 + places))
    result = in_windows(dataset, stub)
    # A window of 2x2 on 3x3. The first cell is EOS, so that no grid is shown that could fill it.
    canvas = [1, 3, 0, 5, 6, 0, 0, 0, 0]
    assert result.canvases.tolist() == [canvas] * 8
    assert result.steps.tolist() == [[canvas]] * 4
    assert result.confidence.tolist() == [0] * 8
    assert result.whole_canvas_again == 0
    assert {whole for whole, _ in stub.seen()} == {False}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 50])
def test_an_answer_that_fills_its_window_is_predicted_again_on_the_whole_canvas(
    dataset: Path, batch_size: int
) -> None:
    """In its window the answer to even rows is 1x1, to odd rows 2x2, which reaches the edge."""
    with_demonstrated_outputs(dataset, {"bbb": (1, 2)})

    def rule(inputs: Tensor, places: Tensor) -> Tensor:
        odd = (inputs[:, :1] % 2 == 1).expand_as(places)
        whole = places.shape[1] == 9
        large = grid_of(3, 2) if whole else grid_of(2, 2)
        return torch.where(odd, large(inputs, places), grid_of(1, 1)(inputs, places))

    stub = Seen(rule)
    result = in_windows(dataset, stub, batch_size)
    assert result.canvases.tolist() == [on_canvas(1, 1).tolist(), on_canvas(3, 2).tolist()] * 4
    # Every odd row was seen whole, and nothing else was; rows 1 and 7 are originals.
    assert {tokens[0] - 2 for whole, tokens in stub.seen() if whole} == {1, 3, 5, 7}
    assert result.steps[[1, 3], 0].tolist() == [on_canvas(3, 2).tolist()] * 2
    metrics = summarise(ArcTestSet(dataset, None), result)
    assert metrics["whole_canvas_again"] == 4 / 8


def test_the_second_answer_counts_even_if_it_would_fit(dataset: Path) -> None:
    """And it is asked for once, though it fills the window again."""
    stub = Seen(grid_of(2, 2))
    result = in_windows(dataset, stub, 8)
    assert [whole for _, _, whole in stub.calls] == [False, True]
    assert result.canvases[:, 8].tolist() == [0] * 8
    assert result.canvases[:, [2, 5, 6, 7]].tolist() == [[1] * 4] * 8, "the border"
    stub = Seen(lambda i, p: (grid_of(1, 1) if p.shape[1] == 9 else grid_of(2, 2))(i, p))
    assert in_windows(dataset, stub).canvases.tolist() == [on_canvas(1, 1).tolist()] * 8


def test_an_answer_that_fills_the_canvas_itself_is_final(dataset: Path) -> None:
    """Its lower edge is that of the canvas, beyond which it cannot grow."""
    with_demonstrated_outputs(dataset, dict.fromkeys(("aaa", "bbb", "ccc"), (2, 1)))
    stub = Seen(grid_of(3, 1))
    result = in_windows(dataset, stub)
    # Windows of 3x2 (or 2x3, on its side: there a grid of 3x1 is cut off, and predicted again).
    assert result.whole_canvas_again == 3
    assert {tokens[0] - 2 for whole, tokens in stub.seen() if whole} == {2, 3, 6}
    assert (result.canvases == on_canvas(3, 1)).all()


def test_cells_of_the_solution_outside_the_window_count_as_wrong(dataset: Path) -> None:
    """The solutions have four cells of colour and four of EOS; the window shows the four.

    The answer is right in the first cell and has EOS beside it: a grid of 1x1, one right cell.
    """

    def rule(inputs: Tensor, places: Tensor) -> Tensor:
        solution = torch.from_numpy(labels()).long()[inputs[:, 0] - 2].gather(1, places)
        return torch.where(places == 0, solution, 1)

    result = in_windows(dataset, Seen(rule))
    assert sums(result) == {"exact_accuracy": [0], "cell_accuracy": [7 * 1 / 8]}
    # The probability is that of the one cell that the grid has.
    assert result.confidence.tolist() == pytest.approx([10 / 21] * 7 + [0])
    whole = answer(dataset, stub=Seen(rule))
    assert sums(whole)["cell_accuracy"] == [7 * 5 / 8], "there its border is correct, too"


def test_the_solution_decides_nothing(dataset: Path) -> None:
    """Other solutions, of another size, or none: the same cells are shown and answered."""

    def observed() -> tuple[Any, ...]:
        stub = Seen(lambda inputs, places: 2 + (inputs + places) % 10)
        result = in_windows(dataset, stub)
        return stub.seen(), result.canvases.tolist(), result.confidence.tolist()

    before = observed()
    for solution in (shown_grid(3, 3, 4), shown_grid(1, 2, 4), None):
        canvas = np.zeros(9, np.uint8) if solution is None else place(solution[None], 3)[0]
        np.save(dataset / "test" / "all__labels.npy", np.tile(canvas, (8, 1)))
        with_tasks(dataset, lambda task, solution=solution: with_solution(task, solution))  # type: ignore[misc]
        assert observed() == before


@pytest.mark.parametrize("batch_size", [1, 2, 8, 50])
def test_results_do_not_depend_on_how_rows_are_batched(dataset: Path, batch_size: int) -> None:
    """Windows of four, six and nine cells; some answers are predicted again."""
    with_demonstrated_outputs(dataset, {"aaa": (2, 1), "bbb": (2, 2)})

    def rule(inputs: Tensor, places: Tensor) -> Tensor:
        number = inputs[:, :1]
        return torch.where(places < 3 + number % 4, 2 + (number + places) % 10, 1)

    stub = Seen(rule)
    found, expected = in_windows(dataset, stub, batch_size), in_windows(dataset, Seen(rule), 3)
    assert {places.shape[1] for _, places, _ in stub.calls} == {4, 6, 9}
    # At most as many cells as on the whole canvas, and no more shapes than powers of two.
    for inputs, _, _ in stub.calls:
        most = batch_size * 9 // inputs.shape[1]
        assert len(inputs) in {most, *(2**n for n in range(10) if 2**n < most)}
    assert 0 < found.whole_canvas_again == expected.whole_canvas_again < 8
    for name in ("canvases", "confidence", "steps"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert np.array_equal(found.metrics, expected.metrics, equal_nan=True)


def test_progress_is_told_the_number_of_batches_of_each_pass(dataset: Path) -> None:
    told: list[int] = []

    def progress(batches: Iterable[Any], total: int) -> Iterable[Any]:
        told.append(total)
        return batches

    for batch_size in (3, 4):
        answer(dataset, batch_size, progress=progress)
    assert told == [3, 2]
    # Six windows of four cells stand in a batch of three canvases of nine.
    for height in (1, 2):  # The second time they are full: all is predicted again.
        in_windows(dataset, Seen(grid_of(height, height)), progress=progress)
    assert told[2:] == [2, 2, 3]


def test_cells_are_shown_as_in_training_unless_asked_otherwise() -> None:
    for trained in ("whole", "window"):
        for asked, shown in (("auto", trained), ("whole", "whole"), ("window", "window")):
            assert eval_config(canvas=asked).resolved(trained) == eval_config(canvas=shown)
