"""What the builders of boards share: options, variants of training puzzles, the files written.

The files are those of `dataset.storage`. All puzzles have the blank identifier, as there is no
task to name, and `build.json` says whose rules hold.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from common.errors import UserError
from common.files import atomic_directory
from common.flags import NewFolder
from common.locks import exclusive
from common.settings import InputFile, Settings
from dataset.boards import Boards
from dataset.manifest import write_manifest
from dataset.storage import (
    BLANK_IDENTIFIER,
    BLANK_NAME,
    BUILD_FILE,
    IDENTIFIERS_FILE,
    save_array,
    write_index,
)

log = logging.getLogger(__name__)

TRAIN, TEST, AUGMENTATION = range(3)
"""Independent streams of random numbers."""

Variants = Callable[[Boards, int, np.random.Generator], Boards]
"""Of boards [n, cells] and a count: random variants [count, n, cells], all n changed alike."""
Summary = Mapping[str, int | float]
"""What was built, by name; printed, and kept in `build.json` beside the options."""


class Half(NamedTuple):
    """The train or test half of a dataset, or the puzzles that it is made from."""

    inputs: Boards
    labels: Boards
    group_size: int = 1
    """Boards per group: a puzzle and its variants, one after the other."""


class BuildOptions(Settings):
    """The flags of every builder of boards."""

    output_dir: NewFolder = Field(exclude=True)
    num_train: int = Field(1000, ge=1, description="puzzles to train on")
    num_test: int = Field(1000, ge=1, description="puzzles to test on")
    seed: int = Field(42, ge=0, description="same seed, same bytes")


class PuzzleOptions(BuildOptions):
    """Of a builder that varies training puzzles and reads CSV files."""

    num_aug: int = Field(100, ge=0, description="variants per training puzzle besides itself")
    csv: tuple[InputFile, ...] = Field((), title="FILE", description="import these files' puzzles")
    test_csv: InputFile | None = Field(
        None,
        title="FILE",
        description="take the test half from this file, all of it if it has fewer than --num-test; "
        "without it both halves come from --csv",
    )
    puzzle_column: str = Field("question", description="the column with the puzzles")
    solution_column: str = Field("answer", description="and that of the solutions")

    @model_validator(mode="after")
    def _has_training_puzzles(self) -> Self:
        if self.test_csv and not self.csv:
            raise ValueError("--test-csv needs --csv FILE, the puzzles to train on")
        return self


def build_from_puzzles(
    options: PuzzleOptions, puzzle: str, vocab_size: int, train: Half, test: Half, draw: Variants
) -> Summary:
    """Write a dataset of training puzzles with their variants, and of test puzzles as they are.

    Raises:
        UserError: a test puzzle is a training puzzle or a variant of one.
    """
    summary = {"train_puzzles": len(train.inputs), "test_puzzles": len(test.inputs)}
    train = _with_variants(train, options, draw)
    # Variants could meet a test puzzle by chance, and a file may hold a puzzle and its variant.
    test_boards = {board.tobytes() for board in test.inputs}
    if any(board.tobytes() in test_boards for board in train.inputs):
        raise UserError(
            "a test puzzle is a training puzzle or one of its variants: choose another --seed, or "
            "leave it out of the file if all of its puzzles are taken"
        )
    summary["train_boards"] = len(train.inputs)
    return write_dataset(options, puzzle, vocab_size, (train, test), summary)


def _with_variants(puzzles: Half, options: PuzzleOptions, draw: Variants) -> Half:
    """Every puzzle followed by its variants, a group together."""
    groups = []
    for number, pair in enumerate(np.stack([puzzles.inputs, puzzles.labels], axis=1)):
        # One generator per puzzle: the first puzzles are the same however many there are.
        rng = np.random.default_rng([options.seed, AUGMENTATION, number])
        groups += [pair[None], draw(pair, options.num_aug, rng)]
    inputs, labels = np.concatenate(groups).swapaxes(0, 1)
    return Half(inputs, labels, options.num_aug + 1)


def write_dataset(
    options: BuildOptions,
    puzzle: str,
    vocab_size: int,
    halves: tuple[Half, Half],
    summary: Summary,
) -> Summary:
    """Write the train and the test half, complete or not at all, and print the summary."""
    with (
        exclusive(options.output_dir, "--output-dir"),
        atomic_directory(options.output_dir) as folder,
    ):
        for name, half in zip(("train", "test"), halves, strict=True):
            (folder / name).mkdir()
            num_boards, cells = half.inputs.shape
            save_array(folder / name, "inputs", half.inputs)
            save_array(folder / name, "labels", half.labels)
            write_index(
                folder / name,
                np.full(num_boards, BLANK_IDENTIFIER),
                np.ones(num_boards, dtype=np.int64),
                np.full(num_boards // half.group_size, half.group_size),
                vocab_size=vocab_size,
                seq_len=cells,
                num_puzzle_identifiers=1,
            )
        (folder / IDENTIFIERS_FILE).write_text(json.dumps([BLANK_NAME]))
        record = options.model_dump(mode="json")
        document = {"puzzle": puzzle, "options": record, "summary": summary}
        (folder / BUILD_FILE).write_text(json.dumps(document, indent=1))
        write_manifest(folder)
    log.info("Built %s:", options.output_dir)
    for name, value in summary.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
        log.info("  %s: %s", name.replace("_", " "), shown)
    return summary
