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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from dataset.augmentation import augment, parse_variant_name
from dataset.canvas import VOCAB_SIZE, place
from dataset.tasks import Pair, Task, save_tasks
from evaluation import evaluator
from evaluation.predict import EvaluationSet, RankResult, join, predict
from evaluation.predictions import Predictions
from evaluation.report_cases import report_cases

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
    others only where nothing is counted. Where the solution is hidden no grid is shown. Padding
    is answered by a large grid of colour 9, which nothing should ever show.
    """

    num_steps = 2
    device = CPU

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def run(self, inputs: Tensor, puzzle_ids: Tensor) -> Iterator[Tensor]:
        self.batch_sizes.append(len(inputs))
        assert not torch.is_grad_enabled()
        rows = inputs[:, 0] - 2
        answers = torch.from_numpy(labels()).long()[rows.clamp(min=0)]
        answers[rows < 0] = 11
        for row, identifier in zip(rows.tolist(), puzzle_ids.tolist(), strict=True):
            assert identifier == (IDENTIFIERS[row] if row >= 0 else 0)
        first = answers.clone()
        first[rows % 2 == 0, :2] = 1
        first[rows % 2 == 1, 8] = 7
        yield self.logits(first)
        yield self.logits(answers)

    def logits(self, answers: Tensor) -> Tensor:
        """0 but for the answer's token: 9 in the first cell, 20 in cells of colour, else 99.

        By stablemax over 12 tokens their probabilities are 10/21, 21/32 and 100/111.
        """
        heights = torch.where(answers >= 2, 20.0, 99.0)
        heights[:, 0] = 9.0
        return heights.unsqueeze(-1) * torch.nn.functional.one_hot(answers, VOCAB_SIZE)


def predicted(
    dataset: Path, batch_size: int = 3, ranks: Ranks = ALONE, max_variants: int | None = None
) -> RankResult:
    stub: Any = LookedUp()
    return predict(stub, EvaluationSet(dataset, max_variants), batch_size, ranks)


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


def test_padding_keeps_the_shape_of_the_last_batch_and_never_shows_up(dataset: Path) -> None:
    stub: Any = LookedUp()
    result = predict(stub, EvaluationSet(dataset, None), 5, ALONE)
    assert stub.batch_sizes == [5, 5]
    assert len(result.predictions) == 8
    assert 0 not in result.predictions.identifier
    assert not (result.predictions.canvas == 11).all(axis=1).any()
    assert result.accuracy.num_scored == 7


@pytest.mark.parametrize("batch_size", [3, 8])
def test_accuracy_by_step_by_hand(dataset: Path, batch_size: int) -> None:
    accuracy = predicted(dataset, batch_size).accuracy
    # Seven rows have a solution. After step 1 rows 1, 3, 5 are right, the other four 6/8.
    assert accuracy.num_scored == 7
    assert accuracy.exact.tolist() == [3, 7]
    assert accuracy.cell.tolist() == [3 + 4 * 6 / 8, 7]


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
    assert together.accuracy.num_scored == 7
    assert together.accuracy.exact.tolist() == alone.accuracy.exact.tolist()
    assert together.accuracy.cell.tolist() == alone.accuracy.cell.tolist()
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
    predict(stub, EvaluationSet(dataset, None), 3, ALONE, progress)
    predict(stub, EvaluationSet(dataset, None), 4, ALONE, progress)
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
    outcome = evaluator.evaluate(stub, EvaluationSet(dataset, None), 3, ALONE)
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
    }


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
    outcome = evaluator.evaluate(stub, EvaluationSet(dataset, None), 3, ALONE)
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
