"""Weights: to and from safetensors files, and into a network, which they must fit exactly."""

import errno
import os
import shutil
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError

MODEL_FILE = "model.safetensors"
"""The file by which a folder is known as a checkpoint or an exported model."""
CONFIG_FILE = "config.json"
"""Beside it, and written before it."""


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file into a folder that has its config file.

    Raises:
        OSError: the disk is full.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})  # As the Hugging Face hub wants it.
    except safetensors.SafetensorError as error:
        # The one sign of a full disk that safetensors gives is in its text.
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    # safetensors lets only the owner read; checkpoints are as open as all other files here.
    shutil.copymode(path.with_name(CONFIG_FILE), path)


def read_tensors(path: Path, what: str, remedy: str) -> dict[str, Tensor]:
    """Read a safetensors file, `what` in messages.

    Raises:
        UserError: it is missing or damaged; then the message ends with the remedy.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{what} {path} is damaged ({error}); {remedy}") from error


def load_weights(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy `weights` into `network`, insisting on the very same names and shapes.

    Raises:
        UserError: naming the first difference; nothing has been copied then.
    """
    require_fitting(network, weights, source)
    network.load_state_dict(weights)


def require_fitting(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless `weights` have the very names and shapes of the network's."""
    own = network.state_dict()
    if different := sorted(set(own) ^ set(weights)):
        raise UserError(
            f"{source} is of another architecture: '{different[0]}' is in only one of it and this "
            f"model; use the arch group that it was trained with"
        )
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{source} is of another architecture: '{name}' has shape {list(tensor.shape)}, "
                f"this model needs {list(own[name].shape)}; use the arch that it was trained with"
            )


def load_table(table: Tensor | None, stored: Tensor | None, source: str, remedy: str) -> None:
    """Copy a stored puzzle-embedding table into `table`; another size is an error.

    None is for factored embeddings, which are among the model's weights.
    """
    if table is None or stored is None:
        return
    if stored.shape != table.shape:
        raise UserError(
            f"{source}: its puzzle embeddings are a table of {list(stored.shape)}, this dataset "
            f"and arch need {list(table.shape)}; {remedy}"
        )
    table.copy_(stored)
