"""Prediction over a test split written by hand, with a stub that looks the answers up.

Three tasks on a canvas of 3x3 in the compact layout, eight examples in the order of the split:

    row  identifier  puzzle                    test input
    0-1  1           aaa                       0, 1
    2-3  2           aaa turned by t1          0, 1
    4    3           bbb                       0
    5    4           bbb, colours 1 and 2 exchanged
    6    5           bbb turned by t6
    7    6           ccc, its solution hidden

Inputs are a single cell. Solutions are grids of 2x2: with the EOS around them eight cells count,
and the corner is PAD. With its prefix of 1 a whole canvas is 10 tokens.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from common.distributed import Ranks
from common.errors import UserError
from common.packed import PackedBatch
from dataset.augmentation import augment, parse_variant_name
from dataset.canvas import VOCAB_SIZE, place
from dataset.loading import NUM_FILLERS
from dataset.storage import BLANK_IDENTIFIER
from dataset.task_files import save_tasks
from dataset.tasks import Pair, Task
from evaluation import predict as predicting
from evaluation.metrics import mean_metrics
from evaluation.predict import Answers, Batch, Predictor, one_behind, predict
from evaluation.predictions import predictions_of
from evaluation.summary import summarise
from evaluation.test_set import ArcTestSet, open_test_set
from evaluation.voting import count_votes
from models.puzzle_embedding import PuzzleTable
from models.recursive import ArchConfig, TinyRecursiveModel
from models.steps import Improvement, TrainedModel
from models.supervision import SupervisionConfig
from runs import eval_config

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
EIGHT_CANVASES = 81
"""Tokens that all rows take, and one that could fill up."""
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
INPUTS = [3, 4, 3, 4, 1, 2, 1, 7]
"""The colour of each row's cell."""


@pytest.fixture(autouse=True)
def _short_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of tokens decides on canvases of nine cells too."""
    monkeypatch.setattr(predicting, "TYPICAL_TOKENS", 5)


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
    def task(task_id: str, colours: list[int], outputs: list[Any]) -> Task:
        pairs = zip(colours, outputs, strict=True)
        test = tuple(Pair(shown_grid(1, 1, colour), output) for colour, output in pairs)
        return Task(task_id, (Pair(shown_grid(1, 1, 0), shown_grid(1, 1, 0)),), test)

    solved = {key: [np.array(grid, np.uint8) for grid in grids] for key, grids in ANSWERS.items()}
    return [
        task("aaa", [3, 4], solved["aaa"]),
        task("bbb", [1], solved["bbb"]),
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
    variants = [parse_variant_name(name)[1:] for name in NAMES[1:]]
    originals = [0, 1, 4, 7]
    arrays = {
        "originals__inputs": [[2 + INPUTS[row], 1, 0, 1, *[0] * 5] for row in originals],
        "originals__labels": labels()[originals],
        "variants__dihedrals": [dihedral for dihedral, _ in variants],
        "variants__permutations": [permutation for _, permutation in variants],
    }
    for name, array in arrays.items():
        np.save(path / "test" / f"{name}.npy", np.array(array, dtype=np.uint8))
    indices = {
        "puzzle_identifiers": [1, 2, 3, 4, 5, 6],
        "puzzle_indices": [0, 2, 4, 5, 6, 7, 8],
        "group_indices": [0, 2, 5, 6],
    }
    for name, index in indices.items():
        np.save(path / "test" / f"all__{name}.npy", np.array(index, dtype=np.int32))
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


class Stub:
    """Stands in for `TrainedModel`; notes what it is shown, which is checked."""

    trained_steps = 2
    device = CPU
    model = SimpleNamespace(config=SimpleNamespace(prefix_length=1))

    def __init__(self) -> None:
        self.batches: list[PackedBatch] = []
        self.seen: list[tuple[int, list[int]]] = []
        """Of every example of every batch: the row, and the cells that were shown."""

    def improve(self, batch: PackedBatch, num_steps: int, *asked: Any) -> Iterator[Improvement]:
        assert (num_steps, *asked) == (self.trained_steps, 1.0, False)
        assert not torch.is_grad_enabled()
        # Puzzle and input tell the row.
        first = batch.to_canvas(batch.inputs, 9)[:, 0] - 2
        told = list(zip(batch.puzzle_ids.tolist(), first.tolist(), strict=True))
        known = list(zip(IDENTIFIERS, INPUTS, strict=True))
        is_example = batch.is_example.tolist()
        rows = [known.index(x) if e else 0 for x, e in zip(told, is_example, strict=True)]
        self.batches.append(batch)
        for number in range(sum(is_example)):
            cells = batch.cells[batch.is_cell & (batch.sequence == number)]
            self.seen.append((rows[number], cells.tolist()))
        yield from self.steps(batch, torch.tensor(rows))

    def steps(self, batch: PackedBatch, rows: Tensor) -> Iterator[Improvement]:
        raise NotImplementedError

    def seen_whole(self) -> set[int]:
        return {row for row, cells in self.seen if len(cells) == 9}


def improvement(answers: Tensor, heights: Tensor) -> Improvement:
    """Logits [N, V] that are 0 but for the answer's token."""
    logits = heights.unsqueeze(-1) * one_hot(answers, VOCAB_SIZE)
    return Improvement(logits, logits, None)


class LookedUp(Stub):
    """Two steps, of which the second gives the solution.

    After the first step the rows of even number are wrong in two of their eight counted cells, the
    others only where nothing is counted. Where the solution is hidden no grid is shown.

    Logits are 9 in the first cell, 20 in cells of colour, else 99: by stablemax over 12 tokens the
    probabilities are 10/21, 21/32 and 100/111. What stands in prefixes means nothing.
    """

    def steps(self, batch: PackedBatch, rows: Tensor) -> Iterator[Improvement]:
        answers = torch.from_numpy(labels()).long()[rows]
        first, even = answers.clone(), rows % 2 == 0
        first[even, :2] = 1
        first[~even, 8] = 7
        for canvases in (first, answers):
            heights = torch.where(canvases >= 2, 20.0, 99.0)
            heights[:, 0] = 9.0
            yield improvement(batch.from_canvas(canvases, 5), batch.from_canvas(heights, 1000))


def answer(
    dataset: Path,
    batch_tokens: int = EIGHT_CANVASES,
    stub: Stub | None = None,
    canvas: str = "whole",
    max_variants: int | None = None,
    progress: Any = None,
    static: bool | None = None,
) -> Answers:
    """What the stub (or else `LookedUp`) answers to the dataset."""
    test_set = ArcTestSet(dataset, max_variants)
    config = eval_config(batch_tokens=batch_tokens, canvas=canvas)
    predictor = Predictor(cast(Any, stub or LookedUp()), test_set, config, static)
    return predictor.answer(np.arange(len(test_set)), progress)


def assert_same(found: Answers, expected: Answers) -> None:
    for name in ("rows", "canvases", "confidence", "followed", "steps"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert np.array_equal(found.metrics, expected.metrics, equal_nan=True)
    assert found.whole_canvas_again == expected.whole_canvas_again


def sums(
    answers: Answers, names: Iterable[str] = ("exact_accuracy", "cell_accuracy")
) -> dict[str, list[float]]:
    """Metrics summed over the rows that have a solution, by step."""
    known = answers.metrics[~np.isnan(answers.metrics[:, -1, 0])]
    means = mean_metrics(answers.metrics, answers.metric_names)
    num_steps = answers.metrics.shape[1]
    return {
        name: [round(len(known) * means[f"{name}_step{s}"], 4) for s in range(1, num_steps + 1)]
        for name in names
    }


@pytest.mark.parametrize(
    ("batch_tokens", "sizes"),
    [(1, [1] * 8), (31, [3, 3, 2]), (50, [4, 4]), (71, [7, 1]), (1000, [8])],
)
@pytest.mark.parametrize("static", [False, True])
def test_every_row_says_what_was_predicted_for_what(
    dataset: Path, batch_tokens: int, sizes: list[int], static: bool
) -> None:
    """And how sure, and after which step; what fills a batch up never shows up."""
    stub, test_set = LookedUp(), ArcTestSet(dataset, None)
    answers = answer(dataset, batch_tokens, stub, static=static)
    assert [int(batch.is_example.sum()) for batch in stub.batches] == sizes
    shapes = {(len(batch.inputs), batch.num_sequences) for batch in stub.batches}
    if static:
        # As many sequences as there is room for canvases of 10 tokens, and those that fill up.
        tokens = max(batch_tokens, 11)
        assert shapes == {(tokens, tokens // 10 + NUM_FILLERS + -(-tokens // 10))}
    else:
        assert shapes == {(10 * size, size) for size in sizes}
    # Seven rows have a solution. After step 1 rows 1, 3, 5 are correct, the other four 6/8.
    assert sums(answers) == {"exact_accuracy": [3, 7], "cell_accuracy": [3 + 4 * 6 / 8, 7]}
    # Of the eight cells the first has a probability of 10/21, three 21/32, and four 100/111. After
    # step 1, in the four rows, the first two are left 1/21 and 1/111.
    others = 2 * math.log(32 / 21) + 4 * math.log(1.11)
    right = (math.log(2.1) + math.log(32 / 21) + others) / 8
    wrong = (math.log(21) + math.log(111) + others) / 8
    loss = sums(answers, ["loss"])["loss"]
    assert loss == pytest.approx([3 * right + 4 * wrong, 7 * right], abs=1e-3)
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
    assert together is not None
    assert together.rows.tolist() == list(range(8))
    assert_same(together, answer(dataset, canvas=canvas))


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


def test_each_split_is_opened_with_its_own_tasks(validated_dataset: Path, tmp_path: Path) -> None:
    sets = [ArcTestSet(validated_dataset, None, name) for name in ("validation", "test")]
    files = [validated_dataset / f"{name}_puzzles.json" for name in ("validation", "test")]
    for test_set, file in zip(sets, files, strict=True):
        task_ids = set(json.loads(file.read_text()))
        assert {task.task_id for task in test_set.tasks} == set(test_set.task_ids) == task_ids
    assert [len(test_set.tasks) for test_set in sets] == [2, 4]
    assert sets[0].fingerprint == sets[1].fingerprint
    # Both files there, each with the other's tasks.
    data = shutil.copytree(validated_dataset, tmp_path / "mixed")
    shutil.copy(files[1], data / files[0].name)
    with pytest.raises(
        UserError, match=r"one of the validation split and validation_puzzles\.json"
    ):
        ArcTestSet(data, None, "validation")
    assert len(ArcTestSet(data, None, "test")) == len(sets[1])


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
    np.save(dataset / "test" / "originals__labels.npy", np.zeros((4, 9), np.uint8))
    with_tasks(dataset, lambda task: with_solution(task, None))
    metrics = summarise(ArcTestSet(dataset, None), answer(dataset))
    assert metrics == {"whole_canvas_again": 0}


# ---- windows ---------------------------------------------------------------------------------

GREY = 7
"""A token."""


Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Answers [N] from each token's row, cell, and whether the whole canvas is shown."""


class Seen(Stub):
    """Answers by a rule, in one step; the probability of the answer's token is 10/21."""

    trained_steps = 1

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def steps(self, batch: PackedBatch, rows: Tensor) -> Iterator[Improvement]:
        is_whole = (batch.offsets.diff() == 10)[batch.sequence]
        answers = self.rule(rows[batch.sequence], batch.cells.clamp(min=0), is_whole)
        yield improvement(answers, torch.full(answers.shape, 9.0))


def grid_of(height: int, width: int) -> Rule:
    """Always the same grey grid, as far as its cells and its border are shown, on 3x3."""
    canvas = torch.from_numpy(on_canvas(height, width)).long()
    return lambda row, cell, is_whole: canvas[cell]


def on_canvas(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Canvas [9] of a grey grid."""
    return place(shown_grid(height, width, GREY - 2)[None], 3)[0]


def in_windows(dataset: Path, stub: Stub, *arguments: Any, **more: Any) -> Answers:
    return answer(dataset, *(arguments or (EIGHT_CANVASES,)), stub=stub, canvas="window", **more)


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


def test_a_window_has_room_for_a_large_input_of_few_outputs(roomy_compact_dataset: Path) -> None:
    """On real tasks, the input as it is found on its canvas."""
    test_set = ArcTestSet(roomy_compact_dataset, None)
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


def test_windows_need_the_compact_layout(tiny_dataset: Path) -> None:
    assert open_test_set(tiny_dataset, None, "whole").boxes is None
    with pytest.raises(UserError, match=r"^eval\.canvas=window needs .* compact layout"):
        open_test_set(tiny_dataset, None, "window")


def test_what_is_answered_in_a_window_stands_at_its_place_on_the_canvas(dataset: Path) -> None:
    stub = Seen(lambda row, cell, is_whole: torch.where(cell == 0, 1, 2 + cell))
    result = in_windows(dataset, stub)
    # A window of 2x2 on 3x3. The first cell is EOS, so that no grid is shown that could fill it.
    canvas = [1, 3, 0, 5, 6, 0, 0, 0, 0]
    assert result.canvases.tolist() == [canvas] * 8
    assert result.steps.tolist() == [[canvas]] * 4
    assert result.confidence.tolist() == [0] * 8
    assert result.whole_canvas_again == 0
    assert sorted(stub.seen) == [(row, [0, 1, 3, 4]) for row in range(8)]


@pytest.mark.parametrize("batch_tokens", [1, 25, 1000])
def test_an_answer_that_fills_its_window_is_predicted_again_on_the_whole_canvas(
    dataset: Path, batch_tokens: int
) -> None:
    """In its window the answer to even rows is 1x1, to odd rows 2x2, which reaches the edge."""
    with_demonstrated_outputs(dataset, {"bbb": (1, 2)})

    def rule(row: Tensor, cell: Tensor, is_whole: Tensor) -> Tensor:
        asked = row, cell, is_whole
        odd = torch.where(is_whole, grid_of(3, 2)(*asked), grid_of(2, 2)(*asked))
        return torch.where(row % 2 == 1, odd, grid_of(1, 1)(*asked))

    stub = Seen(rule)
    result = in_windows(dataset, stub, batch_tokens)
    assert result.canvases.tolist() == [on_canvas(1, 1).tolist(), on_canvas(3, 2).tolist()] * 4
    # Every odd row was seen whole, and nothing else was; rows 1 and 7 are originals.
    assert stub.seen_whole() == {1, 3, 5, 7}
    assert result.steps[[1, 3], 0].tolist() == [on_canvas(3, 2).tolist()] * 2
    metrics = summarise(ArcTestSet(dataset, None), result)
    assert metrics["whole_canvas_again"] == 4 / 8


def test_the_second_answer_counts_even_if_it_would_fit(dataset: Path) -> None:
    """And it is asked for once, though it fills the window again."""
    stub = Seen(grid_of(2, 2))
    result = in_windows(dataset, stub)
    assert [len(cells) for _, cells in stub.seen] == [4] * 8 + [9] * 8
    assert result.canvases[:, 8].tolist() == [0] * 8
    assert result.canvases[:, [2, 5, 6, 7]].tolist() == [[1] * 4] * 8, "the border"
    small, large = grid_of(1, 1), grid_of(2, 2)
    stub = Seen(
        lambda row, cell, whole: torch.where(whole, *(x(row, cell, whole) for x in (small, large)))
    )
    assert in_windows(dataset, stub).canvases.tolist() == [on_canvas(1, 1).tolist()] * 8


def test_an_answer_that_fills_the_canvas_itself_is_final(dataset: Path) -> None:
    """Its lower edge is that of the canvas, beyond which it cannot grow."""
    with_demonstrated_outputs(dataset, dict.fromkeys(("aaa", "bbb", "ccc"), (2, 1)))
    stub = Seen(grid_of(3, 1))
    result = in_windows(dataset, stub)
    # Windows of 3x2 (or 2x3, on its side: there a grid of 3x1 is cut off, and predicted again).
    assert result.whole_canvas_again == 3
    assert stub.seen_whole() == {2, 3, 6}
    assert (result.canvases == on_canvas(3, 1)).all()


def test_cells_of_the_solution_outside_the_window_count_as_wrong(dataset: Path) -> None:
    """The solutions have four cells of colour and four of EOS; the window shows the four.

    The answer is right in the first cell and has EOS beside it: a grid of 1x1, one right cell.
    """
    solutions = torch.from_numpy(labels()).long()
    rule: Rule = lambda row, cell, _: torch.where(cell == 0, solutions[row, cell], 1)  # noqa: E731
    result = in_windows(dataset, Seen(rule))
    assert sums(result) == {"exact_accuracy": [0], "cell_accuracy": [7 * 1 / 8]}
    # Of its eight cells one has a probability of 10/21, three 1/21, and four are not shown.
    of_row = (math.log(2.1) + 3 * math.log(21) + 4 * 24 * math.log(2)) / 8
    assert sums(result, ["loss"])["loss"] == pytest.approx([7 * of_row], abs=1e-3)
    # The probability is that of the one cell that the grid has.
    assert result.confidence.tolist() == pytest.approx([10 / 21] * 7 + [0])
    whole = answer(dataset, stub=Seen(rule))
    assert sums(whole)["cell_accuracy"] == [7 * 5 / 8], "there its border is correct, too"
    of_row = (5 * math.log(2.1) + 3 * math.log(21)) / 8
    assert sums(whole, ["loss"])["loss"] == pytest.approx([7 * of_row], abs=1e-3)


def test_the_solution_decides_nothing(dataset: Path) -> None:
    """Other solutions, of another size, or none: the same cells are shown and answered."""

    def observed() -> tuple[Any, ...]:
        stub = Seen(lambda row, cell, _: 2 + (row + cell) % 10)
        result = in_windows(dataset, stub)
        return stub.seen, result.canvases.tolist(), result.confidence.tolist()

    before = observed()
    for solution in (shown_grid(3, 3, 4), shown_grid(1, 2, 4), None):
        canvas = np.zeros(9, np.uint8) if solution is None else place(solution[None], 3)[0]
        np.save(dataset / "test" / "originals__labels.npy", np.tile(canvas, (4, 1)))
        with_tasks(dataset, lambda task, solution=solution: with_solution(task, solution))  # type: ignore[misc]
        assert observed() == before


@pytest.mark.parametrize("batch_tokens", [1, 25, 40, 1000])
@pytest.mark.parametrize("static", [False, True])
def test_results_do_not_depend_on_how_rows_are_packed(
    dataset: Path, batch_tokens: int, static: bool
) -> None:
    """Windows of four, six and nine cells; some answers are predicted again."""
    with_demonstrated_outputs(dataset, {"aaa": (2, 1), "bbb": (2, 2)})

    def rule(row: Tensor, cell: Tensor, is_whole: Tensor) -> Tensor:
        return torch.where(cell < 3 + row % 4, 2 + (row + cell) % 10, 1)

    stub = Seen(rule)
    found = in_windows(dataset, stub, batch_tokens, static=static)
    expected = in_windows(dataset, Seen(rule))
    assert {len(cells) for _, cells in stub.seen} == {4, 6, 9}
    assert all(len(batch.inputs) <= max(batch_tokens, 11) for batch in stub.batches)
    if static:
        assert len({(len(batch.inputs), batch.num_sequences) for batch in stub.batches}) == 1
        assert not any(batch.is_example.all() for batch in stub.batches), "something fills up"
    assert 0 < found.whole_canvas_again < 8
    assert_same(found, expected)


def test_a_network_answers_the_same_however_rows_are_packed(roomy_compact_dataset: Path) -> None:
    """To rounding: no sequence sees another, nor what fills up."""
    test_set = ArcTestSet(roomy_compact_dataset, 2)
    arch = ArchConfig(hidden_size=16, num_heads=2, num_supervision_steps=2, prefix_length=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyRecursiveModel(arch, VOCAB_SIZE, 100)
    table = PuzzleTable(test_set.split.metadata.num_puzzle_identifiers, 16)
    table.weight.normal_(generator=torch.Generator().manual_seed(0))
    trained = TrainedModel(model, table, SupervisionConfig())

    def answers(batch_tokens: int, static: bool) -> Answers:
        config = eval_config(
            batch_tokens=batch_tokens, canvas="window", diagnostics=True, guidance_weight=2.0
        )  # fmt: skip
        return Predictor(trained, test_set, config, static).answer(np.arange(len(test_set)))

    alone = answers(1, static=False)
    margins = alone.metrics[..., alone.metric_names.index("margin")]
    assert len(np.unique(margins)) == margins.size, "rows differ"
    for batch_tokens, static in ((1, True), (500, False), (500, True)):
        together = answers(batch_tokens, static)
        np.testing.assert_allclose(together.confidence, alone.confidence, rtol=1e-4)
        np.testing.assert_allclose(together.metrics, alone.metrics, rtol=1e-3, atol=1e-4)


def test_progress_is_told_the_rows_of_each_pass_and_of_each_batch(dataset: Path) -> None:
    told: list[int] = []

    def progress(batches: Iterable[Batch], num_rows: int) -> Iterable[Batch]:
        sizes = []
        for batch in batches:
            yield batch
            sizes.append(len(batch[0]))
        assert sum(sizes) == num_rows
        told.append(len(sizes))

    for batch_tokens in (31, 41):
        answer(dataset, batch_tokens, progress=progress)
    assert told == [3, 2]
    # Six windows of five tokens stand in a batch of three canvases of ten.
    for size in (1, 2):  # The second time they are full: all is predicted again.
        in_windows(dataset, Seen(grid_of(size, size)), 31, progress=progress)
    assert told[2:] == [2, 2, 3]


def test_with_the_blank_identifier_the_network_is_told_no_puzzle_and_votes_count_as_before(
    dataset: Path,
) -> None:
    class Blind(LookedUp):
        def improve(self, batch: PackedBatch, num_steps: int, *_: Any) -> Iterator[Improvement]:
            told.append(batch.puzzle_ids[batch.is_example].tolist())
            return self.steps(batch, batch.rows)

    told: list[list[int]] = []
    voting = []
    test_set = ArcTestSet(dataset, None)
    for puzzle_id in ("own", "blank"):
        config = eval_config(batch_tokens=EIGHT_CANVASES, puzzle_id=puzzle_id)
        answers = Predictor(cast(Any, Blind()), test_set, config).answer(np.arange(8))
        voting.append(predictions_of(test_set, answers).identifier.tolist())
    assert voting[0] == voting[1] != []
    assert [sorted(ids) for ids in told] == [IDENTIFIERS, [BLANK_IDENTIFIER] * 8]


def test_cells_are_shown_as_in_training_unless_asked_otherwise() -> None:
    for trained in ("whole", "window"):
        for asked, shown in (("auto", trained), ("whole", "whole"), ("window", "window")):
            resolved = eval_config(canvas=asked, split="test").resolved(trained)
            assert resolved == eval_config(canvas=shown, split="test")


@pytest.mark.parametrize(
    ("asked", "scored"), [("auto", "validation"), ("test", "test"), ("validation", "validation")]
)
def test_the_split_that_is_due_is_scored_unless_asked_otherwise(asked: str, scored: str) -> None:
    assert eval_config(split=asked).resolved("whole", "validation").split == scored
    assert eval_config().resolved("whole").split == "test", "outside training"
