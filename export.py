"""Export a trained model to share it: one folder in the form of the Hugging Face hub.

    python export.py runs/compact-seed0 exported/compact
    python export.py runs/compact-seed0/checkpoints/step_00010000 exported/compact --weights raw

RUN is a run folder, of which the checkpoint with the best score is taken (without scores the newest
one), or one checkpoint. OUT receives model.safetensors, config.json and README.md, the model card:
parameters, data, training, and the scores that evaluations of this checkpoint have left in the run
folder. `TinyRecursiveModel.from_pretrained(OUT)` reads it; so do evaluate.py and diagnose.py as
checkpoint=OUT, and the trainer as init_from=OUT.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from common.errors import UserError, exit_cleanly
from common.files import atomic_directory, require_new_directory
from common.flags import POSITIONAL, parse_flags
from common.locks import exclusive
from common.settings import AnyPath, Settings
from config.schema import TrainConfig
from dataset.factors import unaugmented_puzzles
from dataset.storage import fingerprint, read_metadata
from evaluation.model_card import CardFacts, Measured, measured_beside, shown, write_card
from evaluation.test_set import split_while_training
from models.build import ComputeConfig
from models.exported import write_exported
from models.pretrained import StoredModel
from models.weights import MODEL_FILE
from training.checkpoints import (
    STATE_FILE,
    load_checkpoint,
    load_stored,
    load_training_state,
    require_same_dataset,
    stored_config,
)
from training.run_folder import CHECKPOINTS_FOLDER, STEP_PREFIX, checkpoints_of
from training.scores import best_checkpoint, read_score

CPU = torch.device("cpu")
OF_THE_MACHINE = {
    "arch": True,  # These two are written apart.
    "supervision": True,
    "run_dir": True,
    "resume": True,
    "init_from": True,
    "device": True,
    "wandb": True,
    "train": {"profile", "dry_run"},
}
"""Keys of a run's configuration that mean nothing to whom a model is given."""
REMEDY = "remove it or choose another folder"

log = logging.getLogger(__name__)


class ExportOptions(Settings):
    """The command's arguments."""

    run: Annotated[AnyPath, POSITIONAL] = Field(
        title="RUN", description="run folder (its best checkpoint, or its newest) or checkpoint"
    )
    out: Annotated[AnyPath, POSITIONAL] = Field(
        title="OUT", description="folder to create; must not exist"
    )
    weights: Literal["auto", "raw", "ema"] = Field(
        "auto", description="which weights; auto: the running mean if there is one, else raw"
    )
    data: AnyPath | None = Field(
        None,
        title="PATH",
        description="dataset folder of the training, which names the tasks that a table of puzzle "
        "embeddings knows (default: where the run found it)",
    )


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_flags(ExportOptions, "python export.py", __doc__)
    require_new_directory(options.out, "OUT", REMEDY)
    with exclusive(options.out, "OUT"):
        require_new_directory(options.out, "OUT", REMEDY)
        export(options)


def export(options: ExportOptions) -> None:
    """Write the folder.

    Raises:
        UserError: there is no checkpoint, or a part of it is damaged.
    """
    path = chosen_checkpoint(options.run)
    log.info("Exporting %s", path)
    if load_checkpoint(path).exported is not None:
        raise UserError(f"RUN {path} is an exported model already: copy the folder")
    config = stored_config(path, TrainConfig)
    stored = load_stored(path, config.arch, config.supervision, options.weights)
    if stored.table is not None:
        stored = with_task_names(stored, options.data, config.data.path)
    # Everything is put together once: what does not fit is found here, not by whom it is given to.
    sizes = stored.build(ComputeConfig(compile="off"), CPU).sizes()
    run_dir = path.parent.parent if path.parent.name == CHECKPOINTS_FOLDER else path.parent
    measured = [*measured_beside(run_dir, path, stored.kind), *while_training(path, stored, config)]
    facts = CardFacts(options.out.resolve().name, sizes, measured, training_facts(path, config))
    with atomic_directory(options.out) as folder:
        write_exported(folder, stored, shared_config(config), write_card(stored, facts))
    log.info("%s weights, %s", stored.kind, ", ".join(f"{k} {v:,}" for k, v in sizes.items()))
    for found in measured:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
        log.info("%s, %s (%s): %s", found.name, found.split, found.how, scores)
    if not measured:
        log.info("Not measured: no evaluation of this checkpoint lies in %s", run_dir)
    log.info("Wrote %s", options.out)


def chosen_checkpoint(run: Path) -> Path:
    """The checkpoint that RUN means."""
    if (run / MODEL_FILE).is_file():
        return run
    found = checkpoints_of(run, "RUN")
    return best_checkpoint(found) or found[-1]


def with_task_names(
    stored: StoredModel, asked: Path | None, trained_on: Path | None
) -> StoredModel:
    """With the identifiers of the tasks, if the dataset is there.

    Raises:
        UserError: the dataset that is asked for is another one.
    """
    path = asked or trained_on
    assert path is not None, "the schema requires a path to train on"
    try:
        found = fingerprint(path, read_metadata(path / "train"))
        require_same_dataset(stored.dataset, found, stored.source)
    except UserError as error:
        if asked is not None:
            raise
        log.warning("Tasks get no names in the exported model, --data PATH adds them: %s", error)
        return stored
    return replace(stored, tasks=unaugmented_puzzles(path))


def while_training(path: Path, stored: StoredModel, config: TrainConfig) -> list[Measured]:
    """The score that the checkpoint got in its run, if it is one of these weights."""
    score, data = read_score(path), config.data.path
    assert data is not None, "the schema requires a path to train on"
    if score is None or score.weights != stored.kind:
        return []
    metrics = shown({name.removeprefix("eval/"): value for name, value in score.metrics.items()})
    split: str = config.eval.split
    if split == "auto":
        split = split_while_training(data) if data.is_dir() else "validation, or test without one"
    variants = config.eval.max_variants
    votes = "all variants" if variants is None else f"up to {variants} variants of a task"
    how = f"while training, {votes} vote" if "pass@1" in metrics else "while training"
    return [Measured(data.name, split, how, metrics)] if metrics else []


def training_facts(path: Path, config: TrainConfig) -> dict[str, str]:
    """How the model was trained, as far as the checkpoint tells."""
    step = path.name.removeprefix(STEP_PREFIX)
    facts = {"optimizer steps": f"{int(step):,}"} if step.isdigit() else {}
    state = load_training_state(path) if (path / STATE_FILE).is_file() else {}
    # Earlier versions did not take the time.
    seconds = state.get("seconds") if isinstance(state, dict) else None
    if isinstance(seconds, float):
        facts["minutes of training"] = f"{seconds / 60:.1f}"
    if config.init_from is not None:
        facts["started from"] = f"the weights of another run, {config.init_from.name}"
    supervision, optim = config.supervision, config.optim
    decay = optim.ema_decay
    return facts | {
        "examples per batch": f"{config.train.global_batch_size:,}",
        "optimizer": f"{optim.name}, lr {optim.lr:g}, puzzle_lr {optim.puzzle_lr:g}, "
        f"weight_decay {optim.weight_decay:g}, update {optim.update}",
        "running mean of the weights": "none" if decay is None else f"decay {decay:g}",
        "supervision": f"targets {supervision.targets}, objective {supervision.objective}, "
        f"next_input {supervision.next_input}, pad_cells {supervision.pad_cells}, "
        f"step_weights {supervision.step_weights}, halting {str(supervision.halting).lower()}",
        "cells": f"canvas {config.data.canvas}",
        "seed": str(config.seed),
    }


def shared_config(config: TrainConfig) -> dict[str, Any]:
    """What config.json holds of the run's configuration: nothing of this machine."""
    values = config.model_dump(mode="json", exclude=OF_THE_MACHINE)  # type: ignore[arg-type]
    values["data"] |= {"path": None, "trajectories": None}
    return values


if __name__ == "__main__":
    main()
