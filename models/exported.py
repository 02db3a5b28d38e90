"""An exported model: one folder in the form of the Hugging Face hub, with all it takes to predict.

    OUT/model.safetensors   the network's weights and the puzzle embeddings (a table under
                            "puzzle_embedding.weight")
    OUT/config.json         what the network is, what it was trained towards, which puzzles it knows
    OUT/README.md           the model card, for people

`export.py` writes it of a run, `import_checkpoint.py` of another code base's checkpoint. It is a
checkpoint without what resuming needs: evaluation and `init_from` read it too.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from common.errors import UserError
from common.json_files import read_object
from common.settings import validate
from models.build import ComputeConfig
from models.pretrained import PretrainedModel, StoredModel
from models.recursive import ArchConfig, TinyRecursiveModel
from models.supervision import SupervisionConfig
from models.weights import CONFIG_FILE, MODEL_FILE, read_tensors, save_tensors

MODEL_TYPE = "tiny_recursive_model"
"""By which a config.json is known as an exported model's."""
CARD_FILE = "README.md"
TABLE_NAME = "puzzle_embedding.weight"
EXPORT_AGAIN = "export the model again, or copy the folder again"


class ExportedConfig(BaseModel):
    """An exported model's config.json, as far as predicting needs it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    arch: ArchConfig
    supervision: SupervisionConfig
    weights: Literal["raw", "ema"]
    dataset: dict[str, Any]
    tasks: dict[str, int] = {}


def write_exported(folder: Path, stored: StoredModel, more: dict[str, Any], card: str) -> None:
    """Fill a folder with an exported model.

    Args:
        folder: empty.
        stored: the model.
        more: what config.json holds besides, for people and other programs.
        card: the text of its README.md.
    """
    config = {
        "architectures": [TinyRecursiveModel.__name__],
        "model_type": MODEL_TYPE,
        "weights": stored.kind,
        "arch": stored.arch.model_dump(mode="json"),
        "supervision": stored.supervision.model_dump(mode="json"),
        "dataset": stored.dataset,
        "tasks": stored.tasks,
        **more,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")
    table = {} if stored.table is None else {TABLE_NAME: stored.table}
    save_tensors(stored.weights | table, folder / MODEL_FILE)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def is_exported(config: dict[str, Any], source: Path) -> bool:
    """Whether a config.json is an exported model's; that of a checkpoint is not.

    Raises:
        UserError: it is of another program.
    """
    if "model_type" not in config and "architectures" not in config:
        return False
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(
            f"{source.parent} is a model of another program (its {source.name} says model_type "
            f"{config.get('model_type')!r}), not one of this project: give a run folder, a "
            f"checkpoint or a folder that export.py or import_checkpoint.py wrote"
        )
    return True


def read_exported(folder: Path) -> StoredModel:
    """Read an exported model.

    Raises:
        UserError: there is none, or a file is damaged.
    """
    path, source = folder / CONFIG_FILE, f"exported model {folder}"
    if not path.is_file():
        raise UserError(
            f"{folder} is no exported model, it has no {CONFIG_FILE}: 'python export.py RUN OUT' "
            f"makes one of a run; one on a hub is to be downloaded first, and its folder named"
        )
    values = read_object(path, EXPORT_AGAIN)
    if not is_exported(values, path):
        raise UserError(
            f"{folder} is a checkpoint and no exported model: 'python export.py {folder} OUT' "
            f"makes one of it"
        )
    config = validate(ExportedConfig, values, str(path))
    weights = read_tensors(folder / MODEL_FILE, "weights", EXPORT_AGAIN)
    table = None if config.arch.is_factored else weights.pop(TABLE_NAME, None)
    if table is None and not config.arch.is_factored:
        raise UserError(f"{folder / MODEL_FILE} has no '{TABLE_NAME}'; {EXPORT_AGAIN}")
    return StoredModel(
        config.arch, config.supervision, weights, config.weights, table, config.dataset,
        config.tasks, source,
    )  # fmt: skip


def load_pretrained(folder: Path, device: torch.device, precision: str) -> PretrainedModel:
    """See `TinyRecursiveModel.from_pretrained`."""
    options = {"precision": precision, "compile": "off"}
    compute = validate(ComputeConfig, options, "from_pretrained")
    return read_exported(folder).build(compute, device)
