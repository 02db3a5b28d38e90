"""The dataset on disk, in the layout that the HRM, TRM and URM code bases read and write.

    OUT/identifiers.json                      list: identifier -> puzzle name, 0 is "<blank>"
    OUT/test_puzzles.json                     the test tasks in Kaggle form, outputs filled in
    OUT/validation_puzzles.json               likewise; only where there is a validation split
    OUT/{train,test}/dataset.json             DatasetMetadata
    OUT/{train,test}/all__inputs.npy          uint8 [examples, cells]
    OUT/{train,test}/all__labels.npy          uint8 [examples, cells]
    OUT/{train,test}/all__puzzle_identifiers.npy  int32 [puzzles]
    OUT/{train,test}/all__puzzle_indices.npy  int32 [puzzles + 1], example offsets
    OUT/{train,test}/all__group_indices.npy   int32 [groups + 1], puzzle offsets

OUT/validation/, where there is one, is as OUT/test/; other code bases do not look at it.

A puzzle is one variant of a task, a group is a task with all its variants. Inputs and labels are
only ever memory-mapped: a dataset may be far larger than memory.

That is the full layout. The compact one, ours alone, has what inputs and labels are made from in
their place: see `dataset.compact`.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from common.errors import UserError
from common.files import NOT_NUMPY, named_in_errors
from common.json_files import read_json, read_object
from common.settings import validate
from common.tokens import MISSING, PAD

BLANK_IDENTIFIER: Final = 0
BLANK_NAME = "<blank>"
SET_NAME: Final = "all"
ORIGINALS = "originals"
VARIANTS = "variants"
IDENTIFIERS_FILE = "identifiers.json"
METADATA_FILE = "dataset.json"
TEST_SETS_KEY = "test_sets"
"""Of `build.json`, where there are several test sets."""
BUILD_FILE = "build.json"
"""Ours alone, and optional: the builder's options and summary, and for boards whose rules hold."""
REBUILD = "rebuild the dataset or copy it again"


class DatasetMetadata(BaseModel):
    """Contents of `dataset.json`; tokens and names can only be ours.

    Keys that other builders add are ignored.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    pad_id: Literal[0]
    ignore_label_id: Literal[0] | None
    blank_identifier_id: Literal[0]
    vocab_size: int = Field(ge=2, le=MISSING)
    """Tokens are bytes, and the last one is kept for what is missing."""
    seq_len: int
    num_puzzle_identifiers: int
    total_groups: int
    mean_puzzle_examples: float
    total_puzzles: int | None = None
    sets: tuple[Literal["all"]]


class BuildWords(BaseModel):
    """The options in `build.json` by which a person tells datasets apart; a builder has some."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    subsets: tuple[str, ...] | None = None
    test_set_names: tuple[str, ...] | None = None
    num_train: int | None = None
    num_test: int | None = None
    num_aug: int | None = None
    seed: int | None = None
    layout: str | None = None
    canvas_side: int | None = None


class BuildRecord(BaseModel):
    """Contents of `build.json`, as far as they are read again; empty where there is none."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    puzzle: str | None = None
    options: BuildWords = BuildWords()
    fillers: dict[str, tuple[int, ...]] = {}
    """Task id -> the test inputs whose solution in `test_puzzles.json` is none."""
    test_sets: dict[str, tuple[str, ...]] = {}
    """Where there are several: name of a test set -> ids of its tasks."""


@dataclass(frozen=True)
class SplitIndex:
    """What both layouts know of a split: which examples belong to which puzzle."""

    path: Path
    metadata: DatasetMetadata
    puzzle_identifiers: npt.NDArray[np.int32]
    puzzle_indices: npt.NDArray[np.int64]
    group_indices: npt.NDArray[np.int64]

    @property
    def num_examples(self) -> int:
        return int(self.puzzle_indices[-1])

    @property
    def examples_per_epoch(self) -> float:
        """Expected number: each group gives one of its puzzles."""
        num_puzzles, num_groups = len(self.puzzle_identifiers), len(self.group_indices) - 1
        return num_groups * self.num_examples / num_puzzles


@dataclass(frozen=True)
class PuzzleSplit(SplitIndex):
    """A split in the full layout, opened and checked."""

    inputs: npt.NDArray[np.uint8]
    """[examples, cells], memory-mapped."""
    labels: npt.NDArray[np.uint8]
    """[examples, cells], memory-mapped; all PAD where a test output is hidden."""
    are_hidden: bool = False
    """Whether the labels only stand in for hidden test outputs: they are read as PAD."""

    def read(
        self, examples: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Inputs and labels [n, cells] of the given rows, copied to memory.

        Raises:
            UserError: a token outside the vocabulary (checked here, where the rows are in memory
                anyway, since a whole dataset is too large to scan when it is opened).
        """
        inputs, labels = self.inputs[examples], self.labels[examples]
        require_tokens(self.path, self.metadata.vocab_size, inputs, labels)
        if self.are_hidden:
            labels = np.zeros_like(labels)
        # Another builder's arrays may be of a wider type.
        return inputs.astype(np.uint8, copy=False), labels.astype(np.uint8, copy=False)


def read_metadata(path: Path) -> DatasetMetadata:
    """Of a split's folder; UserError if it is missing, incomplete or says what cannot be read."""
    source = path / METADATA_FILE
    return validate(DatasetMetadata, read_json(source, REBUILD), source=str(source))


def read_build(dataset_path: Path) -> BuildRecord:
    """What the builder recorded; UserError if that is damaged."""
    path = dataset_path / BUILD_FILE
    record = read_object(path, REBUILD) if path.is_file() else {}
    return validate(BuildRecord, record, source=str(path))


def open_canvases(
    path: Path, metadata: DatasetMetadata, prefix: str = SET_NAME
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Inputs and labels of a split's folder, memory-mapped, as wide as they say.

    Raises:
        UserError: they are missing, truncated or of another shape.
    """
    inputs = open_array(path, "inputs", (None, metadata.seq_len), prefix)
    return inputs, open_array(path, "labels", inputs.shape, prefix)


def open_index(path: Path, metadata: DatasetMetadata, num_examples: int | None) -> SplitIndex:
    """The index of a split's folder, for so many examples if that is known.

    Raises:
        UserError: its arrays are missing, truncated or do not fit each other.
    """
    puzzle_indices = _open_offsets(path, "puzzle_indices", end=num_examples)
    num_puzzles = len(puzzle_indices) - 1
    group_indices = _open_offsets(path, "group_indices", end=num_puzzles)
    identifiers = open_array(
        path, "puzzle_identifiers", (num_puzzles,), limit=metadata.num_puzzle_identifiers
    )
    puzzle_identifiers = np.array(identifiers, dtype=np.int32)
    return SplitIndex(path, metadata, puzzle_identifiers, puzzle_indices, group_indices)


def _open_offsets(path: Path, name: str, end: int | None) -> npt.NDArray[np.int64]:
    offsets = np.array(open_array(path, name, (None,)), dtype=np.int64)
    require(
        len(offsets) > 1
        and offsets[0] == 0
        and end in (None, offsets[-1])
        and bool((np.diff(offsets) > 0).all()),
        f"{array_path(path, name)}: must rise strictly from 0"
        + ("" if end is None else f" to {end}"),
    )
    return offsets


def require_tokens(path: Path, vocab_size: int, *arrays: npt.NDArray[Any]) -> None:
    """Raise UserError unless all tokens are below `vocab_size`."""
    lowest = min(array.min(initial=0) for array in arrays)
    highest = max(array.max(initial=0) for array in arrays)
    require(
        lowest >= 0 and highest < vocab_size,
        f"{path} holds a token outside its vocabulary of {vocab_size}: the file is damaged",
    )


def puzzles_file(split: str) -> str:
    """Name of the file with the tasks of a split that is scored, "validation" or "test"."""
    return f"{split}_puzzles.json"


def load_identifiers(dataset_path: Path, num_puzzles: int | None = None) -> list[str]:
    """Puzzle names by identifier, as many as `num_puzzles` if that is known."""
    names = read_json(dataset_path / IDENTIFIERS_FILE, REBUILD)
    require(
        isinstance(names, list) and all(isinstance(name, str) for name in names),
        f"{dataset_path / IDENTIFIERS_FILE}: must be a list of puzzle names",
    )
    if num_puzzles not in (None, len(names)):
        raise UserError(
            f"{dataset_path}: {IDENTIFIERS_FILE} names {len(names)} puzzles, dataset.json counts "
            f"{num_puzzles}: the files are of different datasets"
        )
    return names


def fingerprint(dataset_path: Path, metadata: DatasetMetadata) -> dict[str, Any]:
    """What a checkpoint's puzzle embeddings depend on: which puzzle each identifier means.

    And, to be read and not compared, the dataset's `description`: what its builder recorded.
    """
    path = dataset_path / IDENTIFIERS_FILE
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    record = read_build(dataset_path)
    words = {"puzzle": record.puzzle, **record.options.model_dump(mode="json")}
    return {
        "identifiers_sha256": digest,
        "num_puzzle_identifiers": metadata.num_puzzle_identifiers,
        "seq_len": metadata.seq_len,
        "vocab_size": metadata.vocab_size,
        "description": {name: value for name, value in words.items() if value is not None},
    }


def write_index(
    split_path: Path,
    puzzle_identifiers: npt.NDArray[np.integer],
    puzzle_sizes: npt.NDArray[np.integer],
    group_sizes: npt.NDArray[np.integer],
    *,
    vocab_size: int,
    seq_len: int,
    num_puzzle_identifiers: int,
) -> None:
    """Write `dataset.json` and the index of a split: all but its examples.

    Sizes are the examples of each puzzle, and the puzzles of each group.
    """
    num_puzzles = len(puzzle_identifiers)
    arrays = {
        "puzzle_identifiers": puzzle_identifiers,
        "puzzle_indices": np.concatenate([[0], np.cumsum(puzzle_sizes)]),
        "group_indices": np.concatenate([[0], np.cumsum(group_sizes)]),
    }
    for name, array in arrays.items():
        save_array(split_path, name, array.astype(np.int32))
    metadata = DatasetMetadata(
        pad_id=PAD,
        ignore_label_id=PAD,
        blank_identifier_id=BLANK_IDENTIFIER,
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_puzzle_identifiers=num_puzzle_identifiers,
        total_groups=len(group_sizes),
        mean_puzzle_examples=int(np.sum(puzzle_sizes)) / num_puzzles,
        total_puzzles=num_puzzles,
        sets=(SET_NAME,),
    )
    (split_path / METADATA_FILE).write_text(metadata.model_dump_json())


def save_array(
    split_path: Path, name: str, array: npt.NDArray[Any], prefix: str = SET_NAME
) -> None:
    """Write the whole of `{prefix}__{name}.npy`."""
    create_array(split_path, name, array.dtype.name, array.shape, prefix)
    write_rows(split_path, name, 0, array, prefix)


def create_array(
    split_path: Path, name: str, dtype: str, shape: tuple[int, ...], prefix: str = SET_NAME
) -> None:
    """Create `{prefix}__{name}.npy` with its final size and reserve the disk space for it.

    Raises:
        OSError: ENOSPC at once, rather than in the middle of the work.
    """
    path = array_path(split_path, name, prefix)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    del array
    if hasattr(os, "posix_fallocate"):  # Not on macOS, where the file simply stays sparse.
        with named_in_errors(path), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def write_rows(
    split_path: Path, name: str, first_row: int, rows: npt.NDArray[Any], prefix: str = SET_NAME
) -> None:
    """Write `rows` into `{prefix}__{name}.npy` from `first_row` on.

    Plain writes, not a memory map: on a full disk they fail with an error that can be handled,
    where a mapped page kills the process, and they do not count as this process's memory.
    """
    path = array_path(split_path, name, prefix)
    array = np.load(path, mmap_mode="r")
    assert array.dtype == rows.dtype and array.shape[1:] == rows.shape[1:], "other rows"
    row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))
    with named_in_errors(path), path.open("r+b") as file:
        file.seek(array.offset + first_row * row_bytes)
        file.write(np.ascontiguousarray(rows).data)


def array_path(split_path: Path, name: str, prefix: str = SET_NAME) -> Path:
    return split_path / f"{prefix}__{name}.npy"


def open_array(
    split_path: Path,
    name: str,
    shape: tuple[int | None, ...],
    prefix: str = SET_NAME,
    limit: int | None = None,
) -> npt.NDArray[Any]:
    """Memory-map an array of integers; where its shape may be any, `shape` has None.

    Raises:
        UserError: it is missing, truncated or of another kind or shape, or, if there is a `limit`
            (which takes reading it all), a number is below 0 or not below the limit.
    """
    path = array_path(split_path, name, prefix)
    try:
        _require_sizes(path)
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: half-written dataset; {REBUILD}") from error
    except NOT_NUMPY as error:
        raise UserError(f"{path} is truncated or no .npy file ({error}); {REBUILD}") from error
    require(array.dtype.kind in "iu", f"{path}: dtype {array.dtype}, expected integers")
    expected = ", ".join("*" if length is None else str(length) for length in shape)
    require(
        array.ndim == len(shape)
        and all(want in (None, length) for want, length in zip(shape, array.shape, strict=True)),
        f"{path}: shape {array.shape}, expected [{expected}]",
    )
    require(
        limit is None or (array.min(initial=0) >= 0 and array.max(initial=0) < limit),
        f"{path}: must hold numbers from 0 to {limit and limit - 1}",
    )
    return array


def _require_sizes(path: Path) -> None:
    """Raise ValueError if a header gives sizes of which numpy's memory map ends the process."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version in readers:
            shape, _, dtype = readers[version](file)
            if not dtype.itemsize or min(shape, default=0) < 0:
                raise ValueError(f"no array of shape {shape} and dtype {dtype}")


def require(condition: bool, message: str) -> None:
    """Raise UserError with the message and the remedy for damaged datasets."""
    if not condition:
        raise UserError(f"{message}; {REBUILD}")
