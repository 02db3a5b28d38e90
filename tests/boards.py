"""What tests of both builders of boards look at."""

from pathlib import Path

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
