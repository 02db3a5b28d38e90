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

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
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
from models.build import ComputeConfig
from models.exported import is_exported, read_exported
from models.pretrained import StoredModel
from models.recursive import ArchConfig
from models.steps import TrainedModel
from models.supervision import SupervisionConfig
from models.weights import CONFIG_FILE, MODEL_FILE, read_tensors, save_tensors
from training.run_folder import CHECKPOINTS_FOLDER, STEP_PREFIX, complete_checkpoints
from training.scores import Score, best_checkpoint, write_score
from training.torch_files import NOT_A_TORCH_FILE

EMA_FILE = "model_ema.safetensors"
PUZZLE_EMBEDDING_FILE = "puzzle_embedding.safetensors"
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


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint, or an exported model, holds besides the training state."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    puzzle_embedding: Tensor | None
    """The table; None: factored ones are among the model's weights."""
    config: dict[str, Any]
    dataset: dict[str, Any]
    """Fingerprint of the dataset that the puzzle embeddings belong to; `tasks` of factored ones."""
    exported: StoredModel | None = None
    """Of an exported model, which has one kind of weights: here they are `model`, whichever."""

    def chosen(self, weights: str, path: Path) -> tuple[dict[str, Tensor], Literal["raw", "ema"]]:
        """The weights that "raw", "ema" or "auto" (the running mean if there is one) means.

        Raises:
            UserError: there are none such.
        """
        if self.exported is not None:
            if weights not in ("auto", self.exported.kind):
                raise UserError(
                    f"eval.weights={weights}: {path} is an exported model and holds only "
                    f"{self.exported.kind} weights"
                )
            return self.model, self.exported.kind
        if weights == "ema" and self.ema is None:
            raise UserError(f"eval.weights=ema: {path} holds no running mean, only raw weights")
        if weights == "raw" or self.ema is None:
            return self.model, "raw"
        return self.ema, "ema"


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
            save_tensors(checkpoint.model, folder / MODEL_FILE)
            if checkpoint.ema is not None:
                save_tensors(checkpoint.ema, folder / EMA_FILE)
            if (table := checkpoint.puzzle_embedding) is not None:
                save_tensors({"weight": table}, folder / PUZZLE_EMBEDDING_FILE)
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
    """Read weights and configuration, also of an exported model; tensors stay on the CPU.

    Raises:
        UserError: a file is missing or damaged, or of another program.
    """
    ema_path = path / EMA_FILE
    config = read_object(path / CONFIG_FILE, REMEDY)
    if is_exported(config, path / CONFIG_FILE):
        exported = read_exported(path)
        weights, table = exported.weights, exported.table
        return Checkpoint(weights, None, table, config, exported.dataset, exported)
    table = None
    if select(config, "arch.puzzle_embedding", "table") == "table":
        tensors = _read_tensors(path / PUZZLE_EMBEDDING_FILE)
        if "weight" not in tensors:
            raise UserError(f"checkpoint {path} is not one that the trainer wrote")
        table = tensors["weight"]
    return Checkpoint(
        model=_read_tensors(path / MODEL_FILE),
        ema=_read_tensors(ema_path) if ema_path.is_file() else None,
        puzzle_embedding=table,
        config=config,
        dataset=read_object(path / DATASET_FILE, REMEDY),
    )


def stored_config(path: Path, schema: type[SettingsType]) -> SettingsType:
    """The configuration that a checkpoint was trained with, as an object of today's `schema`.

    Raises:
        UserError: the file is missing, damaged or of another program, or holds a key that there
            never was.
    """
    file = path / CONFIG_FILE
    values = read_object(file, REMEDY)
    is_exported(values, file)  # Says so of another program's.
    return validate_stored(schema, values, str(file), REMOVED_KEYS)


def load_stored(
    path: Path, arch: ArchConfig, supervision: SupervisionConfig, weights: str
) -> StoredModel:
    """A checkpoint's or exported model's parts; its `build` makes a model without a dataset.

    Args:
        path: of the checkpoint or exported model.
        arch: of its network, see `stored_config`.
        supervision: that it was trained by.
        weights: "raw", "ema" (the running mean), or "auto": the running mean if there is one.

    Raises:
        UserError: it is damaged, or lacks the weights that are asked for.
    """
    stored = load_checkpoint(path)
    chosen, kind = stored.chosen(weights, path)
    tasks = {} if stored.exported is None else stored.exported.tasks
    return StoredModel(
        arch, supervision, chosen, kind, stored.puzzle_embedding, stored.dataset, tasks,
        source=f"checkpoint {path}",
    )  # fmt: skip


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
    """A checkpoint's or exported model's model, ready to predict on a dataset.

    Args:
        path: see `load_stored`, as of the next two and `weights`.
        arch: of its network.
        supervision: that it was trained by.
        dataset: fingerprint of the dataset to predict on.
        factors: tells the factors of its puzzles, for a model that needs them.
        weights: which.
        compute: how the network is computed.
        device: where the model shall be.

    Returns:
        The model, and facts that go with its score.

    Raises:
        UserError: the checkpoint is damaged, was not trained on this dataset (with factored puzzle
            embeddings: on its tasks), has another architecture than it says, or lacks the running
            mean that is asked for.
    """
    stored = load_stored(path, arch, supervision, weights)
    numbered: PuzzleFactors | None = None
    required = stored.dataset
    if arch.is_factored:
        # Any variants of the tasks that it was trained on will do.
        tasks = stored.dataset.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
            raise UserError(f"{stored.source} does not name its tasks; {REMEDY}")
        numbered = factors().numbered_as(tuple(tasks), stored.source)
        kept = ("seq_len", "vocab_size", "description")
        required = {key: value for key, value in stored.dataset.items() if key in kept}
    require_same_dataset(required, dataset, stored.source)
    model = stored.network(dataset["vocab_size"], dataset["seq_len"], compute, device, numbered)
    remedy = "data.path must name the dataset that the checkpoint was trained on"
    embedding = stored.embedding(model, dataset["num_puzzle_identifiers"], remedy)
    return TrainedModel(model, embedding, supervision), {
        "checkpoint": str(path),
        "weights": stored.kind,
    }


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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    remedy = f"remove {path.parent} and use the checkpoint before"
    return read_tensors(path, "checkpoint file", remedy)
