"""Crash-safe output: written aside, flushed to disk, then renamed into place. And files read.

A reader therefore sees either nothing or the whole thing, and an error leaves nothing behind.
"""

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError

PARTIAL_SUFFIX = ".partial"
NOT_NUMPY = (
    ValueError,
    OSError,
    EOFError,
    TypeError,  # An .npy file in place of an .npz file, or a shape that is none.
    OverflowError,  # A shape beyond all numbers,
    MemoryError,  # or beyond all memory.
    TokenError,  # A header that ends in the middle.
    RuntimeError,  # Damage that looks like an unusual zip.
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy raises of .npy and .npz files that are none, or damaged."""


def require_new_directory(path: Path, what: str, remedy: str) -> None:
    """Raise UserError if `path` exists as anything but an empty folder, or cannot be made."""
    path = path.resolve()
    if path.is_mount():
        raise UserError(f"{what} {path} is a mount point: name a folder inside it")
    if any(path.iterdir()) if path.is_dir() else path.exists():
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
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` to fill; rename it to `path` when the block ends without error.

    Every file is flushed to disk before the rename, so that even a power cut leaves the whole
    folder or none.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one folder apart: the first to end gets the name.
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)  # Of a killed process that had the same id.
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            _flush(file)
        _flush(partial)
        os.rename(partial, path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_directory(path: Path) -> None:
    """Remove a folder so that, killed half-way, it leaves none that looks whole."""
    doomed = _partial(path)
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")


def remove_partials(path: Path) -> None:
    """Clear away what killed processes have left of the folder `path`, and half-written in it.

    For its owner alone, see `common.locks`: what another process is writing looks the same.
    """
    name = re.compile(rf"{re.escape(path.name)}\.\d+{re.escape(PARTIAL_SUFFIX)}")
    beside = [other for other in path.parent.iterdir() if name.fullmatch(other.name)]
    for partial in [*beside, *path.rglob(f"*{PARTIAL_SUFFIX}")]:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to; it replaces `path` when the block ends.

    Not if the block ends with an error: then the new file is removed and an old one stays.
    """
    partial = _partial(path)
    try:
        with named_in_errors(partial):
            yield partial
            _flush(partial)
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: str) -> None:
    """Replace the file `path` by `content` in one step."""
    with atomic_file(path) as partial:
        partial.write_text(content, encoding="utf-8")


def read_arrays(
    path: Path, names: Collection[str], source: str, remedy: str
) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an .npz file; UserError that begins with `source` if it lacks one of `names`.

    And if the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asanyarray(file[name]) for name in file.files}  # Or other bytes.
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist: {remedy}") from error
    except NOT_NUMPY as error:
        raise UserError(f"{source} is damaged or no .npz file ({error}): {remedy}") from error
    if missing := set(names) - set(arrays):
        raise UserError(f"{source} has no array '{min(missing)}': {remedy}")
    return arrays


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
