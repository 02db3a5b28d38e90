"""A dataset on disk opens whoever built it, and a damaged one is refused by the file's name."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from dataset.splits import open_split
from dataset.storage import (
    create_array,
    load_identifiers,
    read_json,
    save_array,
    write_rows,
)

WriteSplit = Callable[[list[list[int]]], Path]


@pytest.fixture
def foreign(write_split: WriteSplit) -> Path:
    """Two groups: puzzles of 2 and 2 examples, and one puzzle of 3."""
    return write_split([[2, 2], [3]])


def test_a_dataset_of_another_builder_opens(foreign: Path) -> None:
    """Wider integers and unknown keys are no obstacle."""
    split = open_split(foreign, "train")
    assert split.puzzle_identifiers.tolist() == [10, 11, 12]
    assert split.puzzle_indices.tolist() == [0, 2, 4, 7]
    assert split.group_indices.tolist() == [0, 2, 3]
    assert (split.metadata.seq_len, split.metadata.total_groups) == (4, 2)
    # Of three puzzles with 7 examples an epoch shows two.
    assert split.num_examples == 7
    assert split.examples_per_epoch == pytest.approx(2 * 7 / 3)
    inputs, labels = split.read(np.array([6, 0]))
    assert inputs.tolist() == [[0, 0, 0, 6], [0, 0, 0, 0]]
    assert labels.tolist() == [[1, 1, 1, 7], [1, 1, 1, 1]]
    # Whatever is on disk, a batch has the types that batches have.
    assert (inputs.dtype, labels.dtype) == (np.uint8, np.uint8)
    assert split.puzzle_identifiers.dtype == np.int32


def test_our_own_dataset_opens(small_dataset: Path) -> None:
    train, test = (open_split(small_dataset, split) for split in ("train", "test"))
    assert train.metadata.num_puzzle_identifiers == test.metadata.num_puzzle_identifiers
    assert (train.metadata.total_groups, test.metadata.total_groups) == (10, 4)
    names = load_identifiers(small_dataset)
    assert names[0] == "<blank>"
    assert len(names) == train.metadata.num_puzzle_identifiers


def test_examples_are_memory_mapped(foreign: Path) -> None:
    split = open_split(foreign, "train")
    assert isinstance(split.inputs, np.memmap)
    assert isinstance(split.labels, np.memmap)


def change_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(split: Path) -> None:
        path = split / f"all__{name}.npy"
        np.save(path, change(np.load(path)))

    return damage


def change_metadata(**values: Any) -> Callable[[Path], None]:
    def damage(split: Path) -> None:
        path = split / "dataset.json"
        changed = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({k: v for k, v in changed.items() if v != "removed"}))

    return damage


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    def damage(split: Path) -> None:
        path = split / name
        os.truncate(path, int(path.stat().st_size * keep))

    return damage


def empty(split: Path) -> None:
    """No examples at all, though each file agrees with the others."""
    for name in ("inputs", "labels", "puzzle_identifiers"):
        change_array(name, lambda array: array[:0])(split)
    change_array("puzzle_indices", lambda array: array[:1])(split)


def remove(name: str) -> Callable[[Path], None]:
    return lambda split: (split / name).unlink()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (remove("dataset.json"), r"train/dataset\.json does not exist"),
        (truncate("dataset.json", 0.5), r"dataset\.json is not valid JSON"),
        (change_metadata(seq_len="removed"), r"dataset\.json: key 'seq_len' is missing"),
        (change_metadata(seq_len="long"), r"dataset\.json: seq_len='long' is not allowed"),
        (change_metadata(vocab_size=1), "vocab_size 1 and pad_id 0, expected 2 to 255 and 0"),
        (change_metadata(vocab_size=256), "vocab_size 256 and pad_id 0, expected 2 to 255 and 0"),
        (change_metadata(pad_id=1), "vocab_size 12 and pad_id 1, expected 2 to 255 and 0"),
        (change_metadata(sets=["all", "more"]), r"sets \['all', 'more'\], only \['all'\]"),
        (change_metadata(seq_len=9), r"all__inputs\.npy: shape \(7, 4\), expected \[\*, 9\]"),
        (change_metadata(num_puzzle_identifiers=12), "all below num_puzzle_identifiers=12"),
        (remove("all__inputs.npy"), r"all__inputs\.npy does not exist"),
        (remove("all__group_indices.npy"), r"all__group_indices\.npy does not exist"),
        (truncate("all__inputs.npy", 0.9), r"all__inputs\.npy is truncated"),
        (truncate("all__labels.npy", 0.1), r"all__labels\.npy is truncated"),
        (truncate("all__labels.npy", 0), r"all__labels\.npy is truncated"),
        (truncate("all__puzzle_indices.npy", 0.9), r"all__puzzle_indices\.npy is truncated"),
        (empty, r"all__puzzle_indices\.npy: must rise strictly from 0 to 0"),
        (change_array("labels", lambda a: a[:6]), "7 inputs but 6 labels"),
        (change_array("labels", lambda a: a[:, :3]), r"all__labels\.npy: shape \(7, 3\)"),
        (change_array("inputs", lambda a: a.ravel()), r"all__inputs\.npy: shape \(28,\)"),
        (change_array("inputs", lambda a: a * 0.5), r"all__inputs\.npy: dtype float64"),
        (
            change_array("puzzle_indices", lambda a: a[[0, 2, 1, 3]]),
            r"all__puzzle_indices\.npy: must rise strictly from 0 to 7",
        ),
        (
            change_array("puzzle_indices", lambda a: a[[0, 1, 1, 3]]),
            "must rise strictly from 0 to 7",
        ),
        (change_array("puzzle_indices", lambda a: a[:3]), "must rise strictly from 0 to 7"),
        (change_array("puzzle_indices", lambda a: a[1:]), "must rise strictly from 0 to 7"),
        (change_array("puzzle_indices", lambda a: a[:1]), "must rise strictly from 0 to 7"),
        (
            change_array("group_indices", lambda a: a[:2]),
            r"all__group_indices\.npy: must rise strictly from 0 to 3",
        ),
        (change_array("puzzle_identifiers", lambda a: a[:2]), "2 puzzle identifiers for 3 puzzles"),
        (change_array("puzzle_identifiers", lambda a: -a), r"puzzle_identifiers\.npy: must name"),
    ],
)  # fmt: skip
def test_damage_is_found_when_the_dataset_is_opened(
    foreign: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    damage(foreign / "train")
    with pytest.raises(UserError, match=complaint) as error:
        open_split(foreign, "train")
    assert str(foreign / "train") in str(error.value)


@pytest.mark.parametrize("name", ["inputs", "labels"])
@pytest.mark.parametrize("token", [12, 255, -1])
def test_a_token_outside_the_vocabulary_is_found_when_it_is_read(
    foreign: Path, name: str, token: int
) -> None:
    path = foreign / "train" / f"all__{name}.npy"
    array = np.load(path)
    array[5, 2] = token
    np.save(path, array)
    split = open_split(foreign, "train")
    split.read(np.array([0, 4, 6]))
    with pytest.raises(UserError, match="train holds a token outside its vocabulary of 12"):
        split.read(np.array([0, 5]))


@pytest.mark.parametrize(
    ("option", "named"), [({}, "data.path="), ({"option": "--dataset "}, "--dataset ")]
)
def test_a_missing_dataset_is_named_with_the_commands_that_make_one(
    tmp_path: Path, option: dict[str, str], named: str
) -> None:
    path = tmp_path / "nowhere"
    with pytest.raises(UserError) as error:
        open_split(path, "test", **option)
    assert str(error.value).startswith(f"{named}{path}: no dataset there")
    assert f"no folder {path / 'test'};" in str(error.value)
    for builder in ("dataset.build_arc_dataset", "build_nqueens_dataset", "build_sudoku_dataset"):
        assert builder in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "does not exist"),
        ("[", "is not valid JSON"),
        ('{"a": 1}', "must be a list of puzzle names"),
        ('["<blank>", 1]', "must be a list of puzzle names"),
    ],
)
def test_bad_identifiers_are_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "identifiers.json").write_text(content)
    with pytest.raises(UserError, match=rf"identifiers\.json.*{complaint}"):
        load_identifiers(tmp_path)


def test_json_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_rows_are_written_where_they_belong_and_nowhere_else(tmp_path: Path) -> None:
    create_array(tmp_path, "inputs", "uint8", (5, 3))
    write_rows(tmp_path, "inputs", 3, np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8))
    write_rows(tmp_path, "inputs", 0, np.array([[7, 8, 9]], dtype=np.uint8))
    array = np.load(tmp_path / "all__inputs.npy")
    assert array.dtype == np.uint8
    assert array.tolist() == [[7, 8, 9], [0, 0, 0], [0, 0, 0], [1, 2, 3], [4, 5, 6]]
    create_array(tmp_path, "puzzle_indices", "int32", (4,))
    write_rows(tmp_path, "puzzle_indices", 1, np.array([70_000, 80_000], dtype=np.int32))
    offsets = np.load(tmp_path / "all__puzzle_indices.npy")
    assert (offsets.dtype, offsets.tolist()) == (np.int32, [0, 70_000, 80_000, 0])


def test_a_whole_array_is_saved_under_the_prefix_it_is_given(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(3, 2)
    save_array(tmp_path, "permutations", array, prefix="variants")
    save_array(tmp_path, "inputs", array.T)
    for name, expected in (("variants__permutations", array), ("all__inputs", array.T)):
        saved = np.load(tmp_path / f"{name}.npy")
        assert saved.dtype == np.uint8
        assert np.array_equal(saved, expected)


@pytest.mark.parametrize("rows", [np.zeros((1, 3), np.int64), np.zeros((1, 4), np.uint8)])
def test_rows_of_another_kind_are_never_written(tmp_path: Path, rows: np.ndarray) -> None:
    create_array(tmp_path, "inputs", "uint8", (5, 3))
    with pytest.raises(AssertionError, match="other rows"):
        write_rows(tmp_path, "inputs", 0, rows)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate here")
def test_an_array_reserves_its_space_when_it_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_array(tmp_path, "inputs", "uint8", (1000, 900))
    # A sparse file would occupy next to nothing.
    assert (tmp_path / "all__inputs.npy").stat().st_blocks * 512 >= 900_000

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as error:
        create_array(tmp_path, "labels", "uint8", (1000, 900))
    assert error.value.filename == str(tmp_path / "all__labels.npy")
