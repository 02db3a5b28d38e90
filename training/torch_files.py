"""Files of `torch.save`: read without running what they may hold, as tensors and plain data."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

NOT_A_TORCH_FILE = (
    RuntimeError,
    OSError,
    EOFError,
    pickle.UnpicklingError,
    struct.error,
    # Of a pickle of other instructions, in torch's reader:
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What torch raises of files that are none of its own, or damaged."""


def is_torch_archive(path: Path) -> bool:
    """Whether a file has the form that `torch.save` has written since 2020."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def load_mapped(path: Path) -> Any:
    """Read a file of `torch.save`, its tensors only where they are used.

    Raises:
        NOT_A_TORCH_FILE: it is none, is damaged, or holds more than tensors and plain data.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
