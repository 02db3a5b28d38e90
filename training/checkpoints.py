"""Checkpoints: whole or not there, and enough to go on bit for bit.

    RUN/checkpoints/step_00001200/
        model.safetensors             the network's raw weights
        model_ema.safetensors         their running mean, if there is one
        puzzle_embedding.safetensors  the table, under "weight"; none with factored embeddings
        config.json                   the run's resolved configuration
        dataset.json                  which dataset the puzzle embeddings belong to
        training_state.pt             optimizer, place in the data, RNG of every rank, W&B run, ...
        score.json                    what its evaluation found, once there was one

A folder is written aside, flushed and renamed, so any folder of that name is complete.
"""

import errno
import io
import json
import logging
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError
from common.files import (
    atomic_directory,
    named_in_errors,
    remove_directory,
)
from common.json_files import read_object
from common.puzzles import PuzzleFactors
from common.settings import SettingsType, select, validate_stored
from models.build import ComputeConfig, build_model, puzzle_embedding_of
from models.puzzle_embedding import PuzzleTable
from models.recursive import ArchConfig, TinyRecursiveModel
from models.steps import TrainedModel
from models.supervision import SupervisionConfig
from training.run_folder import (
    CHECKPOINTS_FOLDER,
    MODEL_FILE,
    STEP_PREFIX,
    complete_checkpoints,
)
from training.scores import Score, best_checkpoint, write_score

EMA_FILE = "model_ema.safetensors"
PUZZLE_EMBEDDING_FILE = "puzzle_embedding.safetensors"
CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"
STATE_FILE = "training_state.pt"
REMEDY = "use another checkpoint"

REMOVED_KEYS = dict.fromkeys(
    ("eval.voting", "eval.voting_error", "eval.voting_min_share", "eval.voting_seed"), "0.2.0"
) | dict.fromkeys(("data.epochs_per_pass", "train.attention", "eval.batch_size"), "0.3.0")
"""Keys of stored configurations that there are no more -> the version that dropped them.

When a field of a config class goes, its key comes here, so that old checkpoints stay readable; the
name is not used again. The default of a new field must mean what was done before there was one.
tests/fixtures holds a checkpoint of each format.
"""

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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds besides the training state."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    puzzle_embedding: Tensor | None
    """The table; None: factored ones are among the model's weights."""
    config: dict[str, Any]
    dataset: dict[str, Any]
    """Fingerprint of the dataset that the puzzle embeddings belong to; `tasks` of factored ones."""


class CheckpointFolder:
    """The checkpoints of one run, of which the newest `keep` are kept, and the best."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.path = run_dir / CHECKPOINTS_FOLDER
        self.keep = keep

    def save(self, step: int, checkpoint: Checkpoint, training_state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step`, and drop those that need not be kept.

        Raises:
            OSError: the disk is full; the checkpoints that were there before are untouched.
        """
        path = self._path_of(step)
        with atomic_directory(path) as folder:
            (folder / CONFIG_FILE).write_text(json.dumps(checkpoint.config, indent=1))
            (folder / DATASET_FILE).write_text(json.dumps(checkpoint.dataset, indent=1))
            _save_tensors(checkpoint.model, folder / MODEL_FILE)
            if checkpoint.ema is not None:
                _save_tensors(checkpoint.ema, folder / EMA_FILE)
            if (table := checkpoint.puzzle_embedding) is not None:
                _save_tensors({"weight": table}, folder / PUZZLE_EMBEDDING_FILE)
            # By way of memory: torch hides the reason when it cannot write to a file.
            state_bytes = io.BytesIO()
            torch.save(training_state, state_bytes)
            with named_in_errors(folder / STATE_FILE):
                (folder / STATE_FILE).write_bytes(state_bytes.getbuffer())
        self._prune()
        return path

    def rate(self, step: int, score: Score) -> None:
        """Record the score of the checkpoint of `step`; a former best one need not be kept now."""
        write_score(self._path_of(step), score)
        self._prune()

    def best_or_newest(self) -> Path:
        """Of the checkpoints that there are: the one with the best score, else the newest."""
        checkpoints = complete_checkpoints(self.path)
        return best_checkpoint(checkpoints) or checkpoints[-1]

    def _path_of(self, step: int) -> Path:
        return self.path / f"{STEP_PREFIX}{step:08d}"

    def _prune(self) -> None:
        checkpoints = complete_checkpoints(self.path)
        best = best_checkpoint(checkpoints)
        for old in checkpoints[: -self.keep]:
            if old != best:
                remove_directory(old)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read weights and configuration; tensors stay on the CPU.

    Raises:
        UserError: a file is missing or damaged.
    """
    ema_path = path / EMA_FILE
    config = read_object(path / CONFIG_FILE, REMEDY)
    table = None
    if select(config, "arch.puzzle_embedding", "table") == "table":
        tensors = _load_tensors(path / PUZZLE_EMBEDDING_FILE)
        if "weight" not in tensors:
            raise UserError(f"checkpoint {path} is not one that the trainer wrote")
        table = tensors["weight"]
    return Checkpoint(
        model=_load_tensors(path / MODEL_FILE),
        ema=_load_tensors(ema_path) if ema_path.is_file() else None,
        puzzle_embedding=table,
        config=config,
        dataset=read_object(path / DATASET_FILE, REMEDY),
    )


def stored_config(path: Path, schema: type[SettingsType]) -> SettingsType:
    """The configuration that a checkpoint was trained with, as an object of today's `schema`.

    Raises:
        UserError: the file is missing or damaged, or holds a key that there never was.
    """
    file = path / CONFIG_FILE
    return validate_stored(schema, read_object(file, REMEDY), str(file), REMOVED_KEYS)


def load_trained(
    path: Path,
    arch: ArchConfig,
    supervision: SupervisionConfig,
    dataset: dict[str, Any],
    factors: Callable[[], PuzzleFactors],
    weights: str,
    compute: ComputeConfig,
    device: torch.device,
) -> tuple[TrainedModel, dict[str, str]]:
    """A checkpoint's model, ready to predict, and facts that go with its score.

    Args:
        path: of the checkpoint.
        arch: of its network, see `stored_config`.
        supervision: that it was trained by.
        dataset: fingerprint of the dataset to predict on.
        factors: tells the factors of its puzzles, for a model that needs them.
        weights: "raw", "ema" (the running mean), or "auto": the running mean if there is one.
        compute: how the network is computed.
        device: where the model shall be.

    Raises:
        UserError: the checkpoint is damaged, was not trained on this dataset (with factored puzzle
            embeddings: on its tasks), has another architecture than it says, or lacks the running
            mean that is asked for.
    """
    stored = load_checkpoint(path)
    source = f"checkpoint {path}"
    numbered: PuzzleFactors | None = None
    required = stored.dataset
    if arch.is_factored:
        # Any variants of the tasks that it was trained on will do.
        tasks = stored.dataset.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
            raise UserError(f"{path / DATASET_FILE} does not name the tasks; {REMEDY}")
        numbered = factors().numbered_as(tuple(tasks), source)
        kept = ("seq_len", "vocab_size", "description")
        required = {key: value for key, value in stored.dataset.items() if key in kept}
    require_same_dataset(required, dataset, source)
    if weights == "ema" and stored.ema is None:
        raise UserError(f"eval.weights=ema: {path} holds no running mean, only raw weights")
    averaged = stored.ema if weights != "raw" else None
    found = stored.model if averaged is None else averaged
    sizes = dataset["vocab_size"], dataset["seq_len"]
    with torch.device("meta"):  # Only an outline: a damaged size may be beyond all memory.
        num_tasks = 0 if numbered is None else len(numbered.task_names)
        outline = TinyRecursiveModel(arch, *sizes, torch.float32, num_tasks)
    require_fitting(outline, found, str(path))
    model = build_model(arch, *sizes, compute, device, numbered)
    load_weights(model, found, str(path))
    embedding = puzzle_embedding_of(model, dataset["num_puzzle_identifiers"])
    if isinstance(embedding, PuzzleTable):
        remedy = "data.path must name the dataset that the checkpoint was trained on"
        load_table(embedding.weight, stored.puzzle_embedding, str(path), remedy)
    facts = {
        "checkpoint": str(path),
        "weights": "raw" if averaged is None else "ema",
    }
    return TrainedModel(model, embedding, supervision), facts


def require_same_dataset(stored: dict[str, Any], dataset: dict[str, Any], source: str) -> None:
    """Raise UserError if the puzzle embeddings of a checkpoint are of another dataset.

    Two datasets may have the same number of puzzles and mean other puzzles by them. Descriptions
    are told, and not compared: checkpoints of earlier versions have none.
    """
    for key, value in stored.items():
        if key != "description" and dataset.get(key) != value:
            raise UserError(
                f"{source} was trained on another dataset: its {key} is {value}, that of "
                f"data.path is {dataset.get(key)}; it was trained on {_in_words(stored)}, "
                f"data.path is {_in_words(dataset)}; use the dataset that it was trained on"
            )


def _in_words(fingerprint: dict[str, Any]) -> str:
    words = fingerprint.get("description")
    if not isinstance(words, dict) or not words:
        return "a dataset without a description (of an earlier version or another code base)"
    texts = {
        name: " ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in words.items()
    }
    return f"({', '.join(f'{name} {text}' for name, text in texts.items())})"


def load_training_state(path: Path) -> dict[str, Any]:
    """Read what resuming needs besides the weights."""
    file = path / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist: {path} can be scored but not resumed") from error
    except NOT_A_TORCH_FILE as error:
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
    require_fitting(network, weights, source)
    network.load_state_dict(weights)


def require_fitting(network: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
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
