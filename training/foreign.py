"""What a path without a checkpoint is: of other code bases, with the way to use it here."""

import shlex
import zipfile
from pathlib import Path

from common.json_files import read_object
from models.exported import is_exported
from models.published import is_published
from models.weights import CONFIG_FILE, MODEL_FILE
from training.torch_files import NOT_A_TORCH_FILE, is_torch_archive, load_mapped

PUBLISHED_CONFIG = "all_config.yaml"
"""Beside the checkpoints of the published TRM and DIS code."""
PUBLISHED_PREFIX = "step_"


def published_checkpoints(folder: Path) -> list[Path]:
    """The files `step_N` of a run of the published code, oldest first."""
    found = [
        path
        for path in folder.glob(f"{PUBLISHED_PREFIX}*")
        if path.is_file() and path.name.removeprefix(PUBLISHED_PREFIX).isdigit()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PUBLISHED_PREFIX)))


def what_it_is(path: Path) -> str | None:
    """What a path is that is no checkpoint, and what to do; None: nothing that is known.

    Raises:
        UserError: a folder with the model of another program.
    """
    if path.is_dir():
        if found := published_checkpoints(path):
            return f"it is a run of the published TRM or DIS code; {import_command(found[-1])}"
        if (path / PUBLISHED_CONFIG).is_file():
            return (
                f"it holds the {PUBLISHED_CONFIG} of the published TRM or DIS code and none of its "
                f"checkpoints ({PUBLISHED_PREFIX}N), which could be imported"
            )
        if (config := path / CONFIG_FILE).is_file():
            is_exported(read_object(config, "use another checkpoint"), config)
        return None
    if not path.is_file():
        return None
    if path.name == MODEL_FILE:
        return f"it is a file of a model: name its folder, {path.parent}"
    return _what_file(path)


def import_command(file: Path) -> str:
    """How a published checkpoint gets usable."""
    command = f"python import_checkpoint.py {shlex.quote(str(file))} OUT --data DATASET"
    return f"'{command}' makes a model of it that can be used here"


def _what_file(path: Path) -> str | None:
    another = (
        "it is a PyTorch file of another program, and no checkpoint of this project or of the "
        "published TRM or DIS code"
    )
    try:
        state = load_mapped(path) if is_torch_archive(path) else None
    except (*NOT_A_TORCH_FILE, zipfile.BadZipFile):
        return another
    if is_published(state):
        return f"it is a checkpoint of the published TRM or DIS code; {import_command(path)}"
    return None if state is None else another
