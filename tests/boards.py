"""What tests of both builders of boards look at."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from dataset.splits import open_split
from dataset.storage import PuzzleSplit


def opened(folder: Path, half: str) -> PuzzleSplit:
    split = open_split(folder, half)
    assert isinstance(split, PuzzleSplit)
    return split


def boards_of(folder: Path, half: str) -> list[bytes]:
    """The inputs of a half, one after the other."""
    return [tokens.tobytes() for tokens in opened(folder, half).inputs]


def contents(folder: Path) -> dict[str, bytes]:
    """All files by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def options_are_refused(
    refused_in_process: Callable[..., str],
    main: Callable[[], None],
    folder: Path,
    arguments: Sequence[object],
    complaint: str,
) -> None:
    """Assert that bad options end in one line with the complaint, and that nothing is built."""
    line = refused_in_process(main, "--output-dir", folder / "out", *arguments)
    assert complaint in line
    assert os.listdir(folder) == []


def existing_folder_is_kept(build: Callable[[], Any], folder: Path) -> None:
    """Assert that building into a folder that exists is refused and leaves it as it is."""
    folder.mkdir()
    (folder / "mine").write_text("content")
    with pytest.raises(UserError, match=r"--output-dir .* exists already"):
        build()
    assert os.listdir(folder) == ["mine"]
