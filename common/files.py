"""Crash-safe output: written aside, flushed to disk, then renamed into place.

A reader therefore sees either nothing or the whole thing, and an error leaves nothing behind.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError


def require_new_directory(path: Path, what: str, remedy: str) -> None:
    """Raise UserError if `path` exists as anything but an empty folder."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise UserError(f"{what} {path} exists already and is kept as it is: {remedy}")
    require_creatable(path, what)


def require_creatable(path: Path, what: str) -> None:
    """Raise UserError unless `path`, and the folders above it that are missing, can be created."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"{what} {path} cannot be created, {above} is no folder that you may write to: "
            f"choose another place"
        )


@contextmanager
def atomic_directory(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a folder beside `path` to fill; rename it to `path` when the block ends without error.

    With `sync` every file is flushed to disk before the rename, so that the folder survives a
    power cut whole; without it only a crash of the process is covered.
    """
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Left over from a run that was killed: by its name it was never complete.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if sync:
            for file in partial.rglob("*"):
                _flush(file)
            _flush(partial)
        os.rename(partial, path)
        if sync:
            _flush(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def atomic_write(path: Path, content: str) -> None:
    """Replace the file `path` by `content` in one step."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(content, encoding="utf-8")
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Name the file in an OSError, which the system leaves out once a file is open."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
