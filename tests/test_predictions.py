"""predictions.npz: read as it was written, and refused if it is anything else."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from evaluation.predictions import PREDICTIONS_FILE, Predictions, load_predictions, pool_predictions


def some(count: int = 3, cells: int = 16) -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        task_id=np.array([f"task{i}" for i in range(count)], dtype=np.str_),
        test_index=np.arange(count, dtype=np.int32),
        identifier=np.arange(count, dtype=np.int32) + 100,
        dihedral=(np.arange(count) % 8).astype(np.int8),
        colour_permutation=np.array([rng.permutation(10) for _ in range(count)], dtype=np.uint8),
        canvas=rng.integers(0, 12, (count, cells)).astype(np.uint8),
        confidence=rng.random(count).astype(np.float32),
        checkpoint=np.arange(count, dtype=np.int16),
    )


NAMES = list(some().arrays())


Save = Callable[[dict[str, Any]], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write arrays as a file of predictions."""

    def write(arrays: dict[str, Any]) -> Path:
        np.savez_compressed(tmp_path / PREDICTIONS_FILE, **arrays)
        return tmp_path / PREDICTIONS_FILE

    return write


def assert_equal(left: Predictions, right: Predictions) -> None:
    for name, array in left.arrays().items():
        assert array.dtype == right.arrays()[name].dtype, name
        assert np.array_equal(array, right.arrays()[name]), name


def without(name: str) -> dict[str, Any]:
    return {key: array for key, array in some().arrays().items() if key != name}


@pytest.mark.parametrize("rows", [slice(None), slice(0, 0)], ids=["three", "none"])
def test_what_was_saved_is_loaded_again_with_its_dtypes(save: Save, rows: slice) -> None:
    chosen = some().select(rows)
    assert_equal(load_predictions(save(chosen.arrays())), chosen)


def test_without_checkpoint_numbers_all_come_from_one(save: Save) -> None:
    path = save(without("checkpoint"))
    assert_equal(load_predictions(path), replace(some(), checkpoint=np.zeros(3, np.int16)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        *((without(name), f" has no array '{name}'") for name in NAMES if name != "checkpoint"),
        *(
            (without(name) | {name: some(4).arrays()[name]}, f": '{name}' has not 3 rows")
            for name in NAMES
            if name != "task_id"
        ),
        *(
            (without(name) | {name: value}, " holds a value out of range")
            for name, value in [
                ("canvas", np.full((3, 16), 12, dtype=np.uint8)),
                ("canvas", np.zeros(3, dtype=np.uint8)),
                ("colour_permutation", np.full((3, 10), 10, dtype=np.uint8)),
                ("colour_permutation", np.zeros((3, 9), dtype=np.uint8)),
                ("dihedral", np.full(3, 8, dtype=np.int8)),
                ("dihedral", np.full(3, -1, dtype=np.int8)),
                ("canvas", np.zeros((3, 0), dtype=np.uint8)),
                ("identifier", np.zeros((3, 1), dtype=np.int32)),
                ("test_index", np.zeros(3)),
                ("checkpoint", np.array(["a"] * 3)),
                ("confidence", np.array(["a"] * 3)),
                ("task_id", np.zeros(3)),
                ("task_id", np.array([["a"]] * 3)),
            ]
        ),
        (without("task_id") | {"task_id": np.array("a")}, ": 'task_id' has not any rows"),
        (without("canvas") | {"canvas": np.array(1)}, ": 'canvas' has not 3 rows"),
        ({"task_id": np.array([{"an": "object"}], dtype=object)}, " is damaged or no .npz file"),
    ],
)
def test_an_array_that_is_missing_or_of_another_form_is_refused(
    save: Save, arrays: dict[str, Any], message: str
) -> None:
    path = save(arrays)
    with pytest.raises(UserError, match=f"predictions={path}{message}"):
        load_predictions(path)


def npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("{}"), "is damaged or no .npz file"),
        (Path.touch, "is damaged or no .npz file"),
        (Path.mkdir, "is damaged or no .npz file"),
        (npy, "is damaged or no .npz file"),
    ],
    ids=["nothing", "text", "empty", "folder", "npy"],
)
def test_what_is_no_npz_is_refused(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    path = tmp_path / PREDICTIONS_FILE
    make(path)
    with pytest.raises(UserError, match=f"predictions={path} {message}"):
        load_predictions(path)


def test_what_is_no_array_in_an_archive_is_refused(save: Save) -> None:
    path = save(without("canvas"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("canvas.npy", "text")
    with pytest.raises(UserError, match="'canvas' has not 3 rows like the rest"):
        load_predictions(path)


def test_altered_bytes_are_refused_wherever_they_are(save: Save) -> None:
    whole = some(20, cells=900)
    path = save(whole.arrays())
    sound, refused = path.read_bytes(), 0
    for place in range(60, len(sound) - 60, len(sound) // 50):
        path.write_bytes(sound[:place] + bytes([255 - sound[place]]) + sound[place + 1 :])
        try:
            # A byte of the archive that carries nothing, such as a date, may be any.
            assert_equal(load_predictions(path), whole)
        except UserError as error:
            refused += str(error).startswith(f"predictions={path}")
    assert refused > 40
    path.write_bytes(sound[:-200])
    with pytest.raises(UserError, match=f"predictions={path} is damaged"):
        load_predictions(path)


def test_selecting_and_joining_keep_the_columns_together() -> None:
    whole = some(5)
    parts = [whole.select(np.array([3, 1])), whole.select(slice(0, 0)), whole.select([4])]
    joined = pool_predictions([replace(part, checkpoint=part.checkpoint * 0) for part in parts])
    expected = replace(whole.select([3, 1, 4]), checkpoint=np.array([0, 0, 2], np.int16))
    assert_equal(joined, expected)
    with pytest.raises(UserError, match="canvases of different sizes"):
        pool_predictions([whole, some(cells=25)])
