"""predictions.npz: read as it was written, and refused if it is anything else."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from evaluation.predictions import Predictions, concatenate, load_predictions


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


def arrays_of(predictions: Predictions) -> dict[str, Any]:
    return {field.name: getattr(predictions, field.name) for field in fields(predictions)}


def assert_equal(left: Predictions, right: Predictions) -> None:
    for name, array in arrays_of(left).items():
        assert array.dtype == arrays_of(right)[name].dtype, name
        assert np.array_equal(array, arrays_of(right)[name]), name


def test_what_was_saved_is_loaded_again_with_its_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    some().save(path)
    assert_equal(load_predictions(path), some())
    with np.load(path) as file:
        forms = {name: (file[name].dtype, file[name].shape) for name in file.files}
    assert forms.pop("task_id")[0].kind == "U"
    assert forms == {
        "test_index": (np.int32, (3,)),
        "identifier": (np.int32, (3,)),
        "dihedral": (np.int8, (3,)),
        "colour_permutation": (np.uint8, (3, 10)),
        "canvas": (np.uint8, (3, 16)),
        "confidence": (np.float32, (3,)),
        "checkpoint": (np.int16, (3,)),
    }


def test_an_empty_set_of_predictions_is_legal(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    some().select(slice(0, 0)).save(path)
    assert len(load_predictions(path)) == 0


def test_without_checkpoint_numbers_all_come_from_one(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    arrays = arrays_of(some())
    del arrays["checkpoint"]
    np.savez(path, **arrays)
    loaded = load_predictions(path)
    assert loaded.checkpoint.tolist() == [0, 0, 0]
    assert loaded.checkpoint.dtype == np.int16


@pytest.mark.parametrize("name", [f.name for f in fields(Predictions) if f.name != "checkpoint"])
def test_a_missing_array_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "predictions.npz"
    arrays = arrays_of(some())
    del arrays[name]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=f"predictions={path} has no array '{name}'"):
        load_predictions(path)


@pytest.mark.parametrize("name", [f.name for f in fields(Predictions) if f.name != "task_id"])
def test_an_array_of_another_length_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "predictions.npz"
    replace(some(), **{name: arrays_of(some(4))[name]}).save(path)
    with pytest.raises(UserError, match=f"'{name}' has not 3 rows"):
        load_predictions(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("canvas", np.full((3, 16), 12, dtype=np.uint8)),
        ("canvas", np.zeros(3, dtype=np.uint8)),
        ("colour_permutation", np.full((3, 10), 10, dtype=np.uint8)),
        ("colour_permutation", np.zeros((3, 9), dtype=np.uint8)),
        ("dihedral", np.full(3, 8, dtype=np.int8)),
        ("dihedral", np.full(3, -1, dtype=np.int8)),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "predictions.npz"
    replace(some(), **{name: value}).save(path)
    with pytest.raises(UserError, match=f"predictions={path} holds a value out of range"):
        load_predictions(path)


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_predictions(tmp_path / "predictions.npz")


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "folder", "npy", "pickled"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "predictions.npz"
    match kind:
        case "text":
            path.write_text("{}")
        case "empty":
            path.touch()
        case "truncated":
            some().save(path)
            path.write_bytes(path.read_bytes()[:-200])
        case "folder":
            path.mkdir()
        case "npy":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        case "pickled":
            np.savez(path, task_id=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(UserError, match=f"predictions={path} is damaged or no .npz file"):
        load_predictions(path)


def test_altered_bytes_are_refused_wherever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    some(20, cells=900).save(path)
    sound, refused = path.read_bytes(), 0
    for place in range(60, len(sound) - 60, len(sound) // 50):
        path.write_bytes(sound[:place] + bytes([255 - sound[place]]) + sound[place + 1 :])
        message = None
        try:
            loaded = load_predictions(path)
        except UserError as error:
            message = str(error)
        if message is None:  # A byte of the archive that carries nothing, such as a date.
            assert_equal(loaded, some(20, cells=900))
            continue
        assert message.startswith(f"predictions={path}")
        refused += 1
    assert refused > 40


def test_selecting_and_joining_keep_the_columns_together() -> None:
    whole = some(5)
    parts = [whole.select(np.array([3, 1])), whole.select(slice(0, 0)), whole.select([4])]
    joined = concatenate(parts)
    assert len(joined) == 3
    assert_equal(joined, whole.select(np.array([3, 1, 4])))
    assert joined.task_id.tolist() == ["task3", "task1", "task4"]
    assert joined.identifier.tolist() == [103, 101, 104]
