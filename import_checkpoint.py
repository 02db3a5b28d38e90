"""Import a checkpoint of the published TRM or DIS code, its puzzle embeddings included.

    python import_checkpoint.py checkpoints/step_72385 imported/trm --data data/arc1concept-aug-1000

FILE is a file `step_N`; `all_config.yaml` beside it says how the network is used, or the flags do.
`--data` is the dataset folder that it was trained on, as that code's builder wrote it: puzzle
embeddings mean something with its identifiers alone. OUT becomes an exported model (see export.py):
evaluate.py takes it as checkpoint=OUT, the trainer as init_from=OUT.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import Field

from common.errors import UserError, exit_cleanly
from common.files import atomic_directory, require_new_directory
from common.flags import POSITIONAL, parse_flags
from common.locks import exclusive
from common.settings import AnyPath, InputFile, Settings, select, validate
from dataset.batches import DataConfig
from dataset.factors import unaugmented_puzzles
from dataset.storage import fingerprint, read_metadata
from evaluation.model_card import CardFacts, write_card
from models.build import ComputeConfig
from models.exported import write_exported
from models.pretrained import StoredModel
from models.published import Converted, Recursion, convert, is_published
from training.foreign import PUBLISHED_CONFIG
from training.torch_files import NOT_A_TORCH_FILE, load_mapped

KEYS = {
    "num_heads": "arch.num_heads",
    "num_recursions": "arch.H_cycles",
    "num_latent_updates": "arch.L_cycles",
    "num_supervision_steps": "arch.halt_max_steps",
    "prefix_length": "arch.puzzle_emb_len",
}
"""Of the published configuration -> what the tensors do not say."""
DEFAULTS = {"num_supervision_steps": 16, "prefix_length": 16}
"""As published, where the configuration does not say."""
REMEDY = "remove it or choose another folder"

log = logging.getLogger(__name__)


class ImportOptions(Settings):
    """The command's arguments."""

    file: Annotated[InputFile, POSITIONAL] = Field(title="FILE", description="a file step_N")
    out: Annotated[AnyPath, POSITIONAL] = Field(
        title="OUT", description="folder to create; must not exist"
    )
    data: AnyPath = Field(
        title="PATH", description="dataset folder that the network was trained on"
    )
    num_heads: int | None = Field(None, gt=0, description=f"instead of {KEYS['num_heads']}")
    num_recursions: int | None = Field(
        None, gt=0, description=f"T, instead of {KEYS['num_recursions']}"
    )
    num_latent_updates: int | None = Field(
        None, gt=0, description=f"n, instead of {KEYS['num_latent_updates']}"
    )
    num_supervision_steps: int | None = Field(
        None,
        gt=0,
        description=f"of TRM, instead of {KEYS['num_supervision_steps']}, without either 16; those "
        f"of DIS are in its tensors",
    )
    prefix_length: int | None = Field(
        None, gt=0, description=f"instead of {KEYS['prefix_length']}, without either 16"
    )


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_flags(ImportOptions, "python import_checkpoint.py", __doc__)
    with exclusive(options.out, "OUT"):
        require_new_directory(options.out, "OUT", REMEDY)
        import_checkpoint(options)


def import_checkpoint(options: ImportOptions) -> None:
    """Write the folder.

    Raises:
        UserError: the file is none of the published code's, or does not fit configuration or data.
    """
    metadata = read_metadata(options.data / "train")
    network = convert(read_state(options.file), recursion_of(options), str(options.file))
    sizes = {
        "tokens": (len(network.weights["token_embedding.weight"]), metadata.vocab_size),
        "puzzle identifiers": (len(network.table), metadata.num_puzzle_identifiers),
    }
    for what, (own, of_data) in sizes.items():
        if own != of_data:
            raise UserError(
                f"{options.file} has {own:,} {what}, --data {options.data} has {of_data:,}: name "
                f"the dataset that it was trained on"
            )
    stored = StoredModel(
        network.arch, network.supervision, network.weights, "raw", network.table,
        fingerprint(options.data, metadata), unaugmented_puzzles(options.data), str(options.file),
    )  # fmt: skip
    counted = stored.build(ComputeConfig(compile="off"), torch.device("cpu")).sizes()
    facts = CardFacts(
        options.out.resolve().name, counted, (), training_facts(options.file, network),
        imported_from=f"a checkpoint of the published {network.code} code, {options.file.name}",
    )  # fmt: skip
    more = {
        "data": DataConfig().model_dump(mode="json"),
        "imported": {"code": network.code, "file": options.file.name},
    }
    with atomic_directory(options.out) as folder:
        write_exported(folder, stored, more, write_card(stored, facts))
    if network.left_out:
        log.info("Left out, as DIS does not halt: %s", ", ".join(network.left_out))
    log.info("%s: %s", network.code, ", ".join(f"{k} {v:,}" for k, v in counted.items()))
    log.info("Wrote %s; 'python evaluate.py checkpoint=%s data.path=%s' scores it",
             options.out, options.out, options.data)  # fmt: skip


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The state dict in a published checkpoint; UserError if that is not what the file is."""
    try:
        state = load_mapped(file)
    except NOT_A_TORCH_FILE as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"FILE {file} is damaged, or no file of torch.save that holds tensors alone ({reason})"
        ) from error
    if not is_published(state):
        raise UserError(f"FILE {file} is no checkpoint of the published TRM or DIS code")
    return dict(state)


def recursion_of(options: ImportOptions) -> Recursion:
    """What the tensors do not say: by the flags, or else the configuration beside the file.

    Raises:
        UserError: neither says it, or the configuration is damaged.
    """
    path = options.file.with_name(PUBLISHED_CONFIG)
    config = read_yaml(path) if path.is_file() else {}
    found: dict[str, int] = {}
    for name, key in KEYS.items():
        given = getattr(options, name)
        value = select(config, key, DEFAULTS.get(name)) if given is None else given
        if type(value) is not int or value <= 0:
            said = f"says {key}={value!r}" if path.is_file() and value is not None else "lacks it"
            where = f"{path} {said}" if path.is_file() else f"there is no {path}"
            raise UserError(f"--{name.replace('_', '-')} is needed: {where}")
        found[name] = value
    return validate(Recursion, found, str(options.file))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; UserError if it is none."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is no YAML file ({reason}); correct it, or move it away and give the flags"
        ) from error


def training_facts(file: Path, network: Converted) -> dict[str, str]:
    """What is known of how it was trained."""
    step = file.name.rpartition("_")[2]
    facts = {"optimizer steps": f"{int(step):,}"} if step.isdigit() else {}
    return {"code": f"the published {network.code} code", **facts}


if __name__ == "__main__":
    main()
