"""A dataset on disk opens whoever built it, and a damaged one is refused by the file's name."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_oracles import Damage, change, put, remove, truncate
from common.errors import UserError
from dataset.splits import open_split
from dataset.storage import (
    create_array,
    load_identifiers,
    read_build,
    save_array,
    write_index,
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
    assert isinstance(split.inputs, np.memmap)
    assert isinstance(split.labels, np.memmap)


def test_labels_that_are_all_fillers_are_hidden(foreign: Path) -> None:
    """As other code bases write hidden solutions: the grid [[0]], on a canvas of two by two."""
    filler = np.array([2, 1, 1, 0])
    (foreign / "train").rename(foreign / "test")
    change("all__labels", lambda labels: np.broadcast_to(filler, labels.shape))(foreign / "test")
    _, labels = open_split(foreign, "test").read(np.arange(7))
    assert (labels.shape, labels.any()) == ((7, 4), False)
    # One solution is known: the first task's original has it as its second, the others do not.
    put("all__labels", (1, 0), 3)(foreign / "test")
    _, labels = open_split(foreign, "test").read(np.arange(7))
    assert labels.tolist() == [[2, 1, 1, 0], [3, 1, 1, 0], *[[2, 1, 1, 0]] * 5]
    # What is trained on is what it is.
    change("all__labels", lambda labels: np.broadcast_to(filler, labels.shape))(foreign / "test")
    (foreign / "test").rename(foreign / "train")
    assert open_split(foreign, "train").read(np.arange(7))[1].any()


def change_metadata(**values: Any) -> Damage:
    def damage(split: Path) -> None:
        path = split / "dataset.json"
        changed = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({k: v for k, v in changed.items() if v != "removed"}))

    return damage


def empty(split: Path) -> None:
    """No examples at all, though each file agrees with the others."""
    for name in ("inputs", "labels", "puzzle_identifiers"):
        change(f"all__{name}", lambda array: array[:0])(split)
    change("all__puzzle_indices", lambda array: array[:1])(split)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (remove("dataset.json"), r"train/dataset\.json does not exist"),
        (truncate("dataset.json", 0.5), r"dataset\.json is not valid JSON"),
        (change_metadata(seq_len="removed"), r"dataset\.json: key 'seq_len' is missing"),
        (change_metadata(seq_len="long"), r"dataset\.json: seq_len='long' is not allowed"),
        (change_metadata(vocab_size=1), "vocab_size=1 .* greater than or equal to 2"),
        (change_metadata(vocab_size=256), "vocab_size=256 .* less than or equal to 255"),
        (change_metadata(pad_id=1), "pad_id=1 is not allowed, it should be 0"),
        (change_metadata(ignore_label_id=1), "ignore_label_id=1 is not allowed, it should be 0"),
        (change_metadata(blank_identifier_id=1), "blank_identifier_id=1 .* it should be 0"),
        (change_metadata(sets=["all", "more"]), r"sets=\['all', 'more'\] .* at most 1 item"),
        (change_metadata(seq_len=9), r"all__inputs\.npy: shape \(7, 4\), expected \[\*, 9\]"),
        (change_metadata(num_puzzle_identifiers=12), "must hold numbers from 0 to 11"),
        (remove("all__inputs.npy"), r"all__inputs\.npy does not exist"),
        (remove("all__group_indices.npy"), r"all__group_indices\.npy does not exist"),
        (truncate("all__inputs.npy", 0.9), r"all__inputs\.npy is truncated"),
        (truncate("all__labels.npy", 0), r"all__labels\.npy is truncated"),
        (truncate("all__puzzle_indices.npy", 0.9), r"all__puzzle_indices\.npy is truncated"),
        (empty, r"all__puzzle_indices\.npy: must rise strictly from 0 to 0"),
        (change("all__labels", lambda a: a[:6]), r"labels\.npy: shape \(6, 4\), expected \[7, 4\]"),
        (change("all__labels", lambda a: a[:, :3]), r"all__labels\.npy: shape \(7, 3\)"),
        (change("all__inputs", lambda a: a.ravel()), r"all__inputs\.npy: shape \(28,\)"),
        (change("all__inputs", lambda a: a * 0.5), r"all__inputs\.npy: dtype float64"),
        *((change("all__puzzle_indices", lambda a, rows=rows: a[rows]), "rise strictly from 0 to 7")
          for rows in ([0, 2, 1, 3], [0, 1, 1, 3], [0, 1, 2], [1, 2, 3], [0])),
        (change("all__group_indices", lambda a: a[:2]), r"indices\.npy: must rise .* from 0 to 3"),
        (change("all__puzzle_identifiers", lambda a: a[:2]), r"shape \(2,\), expected \[3\]"),
        (change("all__puzzle_identifiers", lambda a: -a), r"identifiers\.npy: must hold numbers"),
    ],
)  # fmt: skip
def test_damage_is_found_when_the_dataset_is_opened(
    foreign: Path, damage: Damage, complaint: str
) -> None:
    damage(foreign / "train")
    with pytest.raises(UserError, match=complaint) as error:
        open_split(foreign, "train")
    assert str(foreign / "train") in str(error.value)


def header(text: str) -> Damage:
    """Another header of the inputs."""

    def damage(split: Path) -> None:
        padded = text.encode().ljust(117) + b"\n"
        (split / "all__inputs.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + padded + bytes(28))

    return damage


OTHER_SHAPE = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"


@pytest.mark.parametrize(
    "text",
    [
        OTHER_SHAPE[:40],
        OTHER_SHAPE.format("|u1", f"({2**70},)"),
        OTHER_SHAPE.format("|u1", "(True, 4)"),
        OTHER_SHAPE.format("|u1", "(10**12,)"),
        OTHER_SHAPE.format("<i9", "(7, 4)"),
        OTHER_SHAPE.format("|u1", "(-7, 4)"),
        # Of these numpy's memory map would end the process.
        OTHER_SHAPE.format("|V0", "(-1,)"),
        OTHER_SHAPE.format("<U0", "(-1,)"),
    ],
)
def test_a_header_that_describes_no_array_is_refused(foreign: Path, text: str) -> None:
    header(OTHER_SHAPE.format("|u1", "(7, 4)"))(foreign / "train")
    assert open_split(foreign, "train").num_examples == 7
    header(text)(foreign / "train")
    with pytest.raises(UserError, match=r"all__inputs\.npy is truncated or no \.npy file"):
        open_split(foreign, "train")


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ([], "must hold a JSON object, not a list"),
        ({"puzzle": ["maze"]}, "puzzle="),
        ({"options": "seed"}, "options='seed' is not allowed"),
        ({"options": {"subsets": 5}}, "options.subsets=5 is not allowed"),
        ({"fillers": [1]}, "fillers="),
        ({"fillers": {"t": [None]}}, "fillers.t.0=None"),
    ],
)
def test_a_damaged_record_of_the_build_is_refused_by_its_key(
    tmp_path: Path, record: Any, complaint: str
) -> None:
    assert read_build(tmp_path).fillers == {}, "there need not be one"
    (tmp_path / "build.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"build\.json:? .*{re.escape(complaint)}"):
        read_build(tmp_path)


@pytest.mark.parametrize("name", ["inputs", "labels"])
@pytest.mark.parametrize("token", [12, 255, -1])
def test_a_token_outside_the_vocabulary_is_found_when_it_is_read(
    foreign: Path, name: str, token: int
) -> None:
    put(f"all__{name}", (5, 2), token)(foreign / "train")
    split = open_split(foreign, "train")
    split.read(np.array([0, 4, 6]))
    with pytest.raises(UserError, match="train holds a token outside its vocabulary of 12"):
        split.read(np.array([0, 5]))


def test_a_missing_dataset_is_named_with_the_commands_that_make_one(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    with pytest.raises(UserError, match=f"^data.path={path}: no dataset there") as error:
        open_split(path, "test")
    assert f"no folder {path / 'test'};" in str(error.value)
    for puzzle in ("arc", "nqueens", "sudoku", "maze"):
        assert f"build_{puzzle}_dataset" in str(error.value)
    with pytest.raises(UserError, match=f"^--dataset {path}: no dataset there"):
        open_split(path, "test", option="--dataset ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "does not exist"),
        (b"[", "is not valid JSON"),
        (b"\xff\xff", "is not valid JSON"),
        (b'{"a": 1}', "must be a list of puzzle names"),
        (b'["<blank>", 1]', "must be a list of puzzle names"),
    ],
)
def test_bad_identifiers_are_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "identifiers.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"identifiers\.json.*{complaint}"):
        load_identifiers(tmp_path)


def test_an_index_is_written_from_sizes(foreign: Path) -> None:
    """The one of `foreign`, once more."""

    def index() -> dict[str, list[int]]:
        files = (foreign / "train").glob("all__*_i*.npy")
        return {path.name: np.load(path).tolist() for path in files}

    expected, metadata_file = index(), foreign / "train" / "dataset.json"
    metadata = json.loads(metadata_file.read_text())
    sizes = np.array([10, 11, 12]), np.array([2, 2, 3]), np.array([2, 1])
    write_index(foreign / "train", *sizes, vocab_size=12, seq_len=4, num_puzzle_identifiers=13)
    assert index() == expected
    del metadata["made_by"]
    assert json.loads(metadata_file.read_text()) == metadata
    assert np.load(foreign / "train" / "all__puzzle_indices.npy").dtype == np.int32


def test_arrays_are_saved_whole_or_row_by_row_where_the_rows_belong(tmp_path: Path) -> None:
    rows = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    create_array(tmp_path, "inputs", "uint8", (5, 3))
    write_rows(tmp_path, "inputs", 3, rows[:2])
    write_rows(tmp_path, "inputs", 0, rows[2:])
    save_array(tmp_path, "labels", rows.T)
    save_array(tmp_path, "permutations", rows, prefix="variants")
    create_array(tmp_path, "puzzle_indices", "int32", (4,))
    write_rows(tmp_path, "puzzle_indices", 1, np.array([70_000, 80_000], dtype=np.int32))
    nothing = np.zeros_like(rows[:2])
    for name, expected in {
        "all__inputs": np.concatenate([rows[2:], nothing, rows[:2]]),
        "all__labels": rows.T,
        "variants__permutations": rows,
        "all__puzzle_indices": np.array([0, 70_000, 80_000, 0], dtype=np.int32),
    }.items():
        array = np.load(tmp_path / f"{name}.npy")
        assert (array.dtype, array.tolist()) == (expected.dtype, expected.tolist())


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
