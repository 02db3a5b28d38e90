"""Checkpoints: whole or not there, and enough to go on bit for bit.

    RUN/checkpoints/step_00001200/
        model.safetensors             the network's raw weights
        model_ema.safetensors         their running mean, if there is one
        puzzle_embedding.safetensors  the table, under "weight"
        config.json                   the run's resolved configuration
        dataset.json                  which dataset the puzzle embeddings belong to
        training_state.pt             optimizer, sampler position, RNG of every rank, W&B run, ...
    RUN/checkpoints/best.json         which checkpoint and weights scored best in validation

A folder is written aside, flushed and renamed, so any folder of that name is complete.
"""

import errno
import io
import json
import logging
import os
import pickle
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError
from common.files import (
    atomic_directory,
    atomic_write,
    named_in_errors,
    remove_directory,
)
from training.run_folder import (
    CHECKPOINTS_FOLDER,
    MODEL_FILE,
    STEP_PREFIX,
    complete_checkpoints,
)

EMA_FILE = "model_ema.safetensors"
PUZZLE_EMBEDDING_FILE = "puzzle_embedding.safetensors"
CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"
STATE_FILE = "training_state.pt"
BEST_FILE = "best.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds besides the training state."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    puzzle_embedding: Tensor
    config: dict[str, Any]
    dataset: dict[str, Any]
    """Fingerprint of the dataset that the puzzle embeddings belong to."""


class Score(NamedTuple):
    """How good a checkpoint is."""

    figures: tuple[float, ...]
    """Compared one after the other; higher is better."""
    weights: str
    """Which of its weights were scored: "raw" or "ema"."""


class CheckpointFolder:
    """The checkpoints of one run: writes, prunes and finds them."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.path = run_dir / CHECKPOINTS_FOLDER
        self.keep = keep

    def save(
        self,
        step: int,
        checkpoint: Checkpoint,
        training_state: dict[str, Any],
        score: Score | None,
    ) -> Path:
        """Write the checkpoint of `step`, keep the newest `keep` and the best, drop the rest.

        Args:
            score: the validation score of this checkpoint; None if not scored.

        Raises:
            OSError: the disk is full; what was there before is untouched.
        """
        path = self.path / f"{STEP_PREFIX}{step:08d}"
        with atomic_directory(path) as folder:
            (folder / CONFIG_FILE).write_text(json.dumps(checkpoint.config, indent=1))
            (folder / DATASET_FILE).write_text(json.dumps(checkpoint.dataset, indent=1))
            _save_tensors(checkpoint.model, folder / MODEL_FILE)
            if checkpoint.ema is not None:
                _save_tensors(checkpoint.ema, folder / EMA_FILE)
            _save_tensors({"weight": checkpoint.puzzle_embedding}, folder / PUZZLE_EMBEDDING_FILE)
            # By way of memory: torch hides the reason when it cannot write to a file.
            state_bytes = io.BytesIO()
            torch.save(training_state, state_bytes)
            with named_in_errors(folder / STATE_FILE):
                (folder / STATE_FILE).write_bytes(state_bytes.getbuffer())
        best = self._best()
        if score is not None and (best is None or score.figures > tuple(best["score"])):
            best = {"checkpoint": path.name, "score": score.figures, "weights": score.weights}
            atomic_write(self.path / BEST_FILE, json.dumps(best))
        for old in complete_checkpoints(self.path)[: -self.keep]:
            if best is None or old.name != best["checkpoint"]:
                remove_directory(old)
        return path

    def _best(self) -> dict[str, Any] | None:
        path = self.path / BEST_FILE
        if not path.is_file():
            return None
        try:
            best: dict[str, Any] = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged ({error}): remove it and resume") from error
        return best


def load_checkpoint(path: Path) -> Checkpoint:
    """Read weights and configuration; tensors stay on the CPU.

    Raises:
        UserError: a file is missing or damaged.
    """
    ema_path = path / EMA_FILE
    table = _load_tensors(path / PUZZLE_EMBEDDING_FILE)
    if "weight" not in table:
        raise UserError(f"checkpoint {path} is not one that the trainer wrote")
    return Checkpoint(
        model=_load_tensors(path / MODEL_FILE),
        ema=_load_tensors(ema_path) if ema_path.is_file() else None,
        puzzle_embedding=table["weight"],
        config=_load_object(path / CONFIG_FILE),
        dataset=_load_object(path / DATASET_FILE),
    )


def stored_config(path: Path) -> dict[str, Any]:
    """The configuration of a checkpoint, without its weights."""
    return _load_object(path / CONFIG_FILE)


def require_same_dataset(stored: dict[str, Any], dataset: dict[str, Any], source: str) -> None:
    """Raise UserError if the puzzle embeddings of a checkpoint are of another dataset.

    Two datasets may have the same number of puzzles and mean other puzzles by them.
    """
    for key, value in stored.items():
        if dataset.get(key) != value:
            raise UserError(
                f"{source} was trained on another dataset: its {key} is {value}, that of "
                f"data.path is {dataset.get(key)}; use the dataset that it was trained on"
            )


def _load_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"checkpoint file {path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"checkpoint file {path} is not one that the trainer wrote")
    return value


def load_training_state(path: Path) -> dict[str, Any]:
    """Read what resuming needs besides the weights."""
    file = path / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist: {path} can be scored but not resumed") from error
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]  # What follows is advice on torch.load.
        raise UserError(
            f"{file} is damaged ({reason}); remove the folder {path}, and resume=auto goes on from "
            f"the checkpoint before"
        ) from error
    return state


def load_weights(network: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy `weights` into `network`, insisting on the very same names and shapes.

    Raises:
        UserError: naming the first difference; nothing has been copied then.
    """
    own = network.state_dict()
    if missing := sorted(set(own) ^ set(weights)):
        raise UserError(
            f"{source} is of another architecture: '{missing[0]}' is in only one of it and this "
            f"model; use the arch group that it was trained with"
        )
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{source} is of another architecture: '{name}' has shape {list(tensor.shape)}, "
                f"this model needs {list(own[name].shape)}; use the arch that it was trained with"
            )
    network.load_state_dict(weights)


def load_table(table: Tensor, stored: Tensor, source: str, remedy: str) -> None:
    """Copy a stored puzzle-embedding table into `table`; another size is an error."""
    if stored.shape != table.shape:
        raise UserError(
            f"{source}: its puzzle embeddings are a table of {list(stored.shape)}, this dataset "
            f"and arch need {list(table.shape)}; {remedy}"
        )
    table.copy_(stored)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of this process's global random number generators."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, position, has_gauss, cached = numpy_state
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `rng_state` returned."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except safetensors.SafetensorError as error:
        # The one sign of a full disk that safetensors gives is in its text.
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    # safetensors lets only the owner read; checkpoints are as open as all other files here.
    shutil.copymode(path.with_name(CONFIG_FILE), path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint file {path} does not exist") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"checkpoint file {path} is damaged ({error}); remove {path.parent} and use the "
            f"checkpoint before"
        ) from error
