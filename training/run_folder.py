"""The run folder: where things are in it, and which checkpoint a path means.

- RUN/config.yaml: the resolved configuration
- RUN/metrics.jsonl: see `training.run_log`
- RUN/checkpoints/step_00001200/: see `training.checkpoints`
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from common.distributed import Ranks
from common.errors import UserError
from common.files import atomic_write, require_new_directory
from models.weights import MODEL_FILE
from training.foreign import what_it_is

log = logging.getLogger(__name__)

RUN_CONFIG_FILE = "config.yaml"
CHECKPOINTS_FOLDER = "checkpoints"
STEP_PREFIX = "step_"


def find_start(run_dir: Path, resume: str) -> Path | None:
    """Check the run folder and find the checkpoint to go on from; changes nothing on disk.

    Args:
        run_dir: the run's folder.
        resume: "none"; "auto", the newest checkpoint in `run_dir` if any; or the path of a
            checkpoint or run folder.

    Raises:
        UserError: the folder holds something that was not asked for, there is no checkpoint at the
            path, or going on from it would overwrite a newer one.
    """
    complete = complete_checkpoints(run_dir / CHECKPOINTS_FOLDER)
    remedy = "resume=auto goes on with a run, another run_dir starts elsewhere"
    if resume == "none":
        require_new_directory(run_dir, "run_dir", remedy)
        return None
    if resume == "auto":
        if not (run_dir / RUN_CONFIG_FILE).is_file():  # No run has started here.
            require_new_directory(run_dir, "run_dir", remedy)
        return complete[-1] if complete else None
    found = find_checkpoint(Path(resume), "resume")
    if not is_inside(found, run_dir):  # A fork: its own folder, so that no two runs mix.
        require_new_directory(run_dir, "run_dir", remedy)
    elif complete and step_of(complete[-1]) > step_of(found):
        raise UserError(
            f"resume={resume}: run_dir={run_dir} holds the newer {complete[-1].name}, which would "
            f"be overwritten; remove the checkpoints after {found.name} or choose another run_dir"
        )
    return found


def agree_on_start(run_dir: Path, resume: str, ranks: Ranks) -> Path | None:
    """What `find_start` finds on the main rank: on a shared file system others may lag behind.

    Raises:
        UserError: as `find_start`, or not all ranks see the checkpoint.
    """
    start = ranks.from_main(lambda: find_start(run_dir, resume))
    if start is not None and (blind := ranks.without(start)):
        raise UserError(
            f"resume={resume}: {start} is not there for {_named(blind)}; all nodes must see the "
            f"run folder, put it on a file system that they share"
        )
    return start


def write_run_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Make the run folder if need be and save the resolved configuration in it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(run_dir / RUN_CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))


def begin_run(run_dir: Path, config: dict[str, Any], ranks: Ranks) -> None:
    """Write the run's configuration from the main rank, and say so if not all ranks see it."""
    ranks.from_main(lambda: write_run_config(run_dir, config))
    if blind := ranks.without(run_dir / RUN_CONFIG_FILE):
        log.warning(
            "run_dir=%s is not there for %s: nodes do not share it. Checkpoints will be on the "
            "main rank's node alone, and several nodes cannot resume from them.",
            run_dir, _named(blind),
        )  # fmt: skip


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def is_inside(checkpoint: Path, run_dir: Path) -> bool:
    """Whether a checkpoint is one of the run in `run_dir`."""
    return checkpoint.resolve().is_relative_to(run_dir.resolve())


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a `checkpoints` folder, oldest first."""
    found = [
        path
        for path in folder.glob(f"{STEP_PREFIX}*")
        if path.is_dir() and path.name.removeprefix(STEP_PREFIX).isdigit()
    ]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint folder is named by."""
    return int(checkpoint.name.removeprefix(STEP_PREFIX))


def find_checkpoint(path: Path, key: str) -> Path:
    """The checkpoint that `key=path` means: a checkpoint, or the newest one of a run folder.

    Raises:
        UserError: there is none.
    """
    if (path / MODEL_FILE).is_file():
        return path
    return checkpoints_of(path, key)[-1]


def checkpoints_of(path: Path, key: str) -> list[Path]:
    """The checkpoints of the run folder that `key=path` names, oldest first; one or more.

    Raises:
        UserError: there is none.
    """
    found = complete_checkpoints(path / CHECKPOINTS_FOLDER) or complete_checkpoints(path)
    if not found:
        if known := what_it_is(path):
            raise UserError(f"{key}={path}: {known}")
        hint = "; eval.best=true scores the best of a run folder" if path.name == "best" else ""
        raise UserError(
            f"{key}={path}: no checkpoint there; give a run folder or one of its "
            f"{CHECKPOINTS_FOLDER}/{STEP_PREFIX}* folders{hint}"
        )
    return found


def run_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint is in, or whatever folder it has been moved to."""
    folder = checkpoint.parent
    return folder.parent if folder.name == CHECKPOINTS_FOLDER else folder


def default_output_dir(found: Sequence[Path], kind: str, split: str) -> Path:
    """Where results go: in the first checkpoint's run folder, named by `kind` and checkpoint.

    And by the split that was scored, unless that is test.
    """
    run_dir = run_of(found[0])
    pooled = f"_and_{len(found) - 1}_more" if len(found) > 1 else ""
    other_split = "" if split == "test" else f"_{split}"
    return run_dir / f"{kind}{other_split}_{found[0].name}{pooled}"


@contextmanager
def new_output(output_dir: Path, ranks: Ranks) -> Iterator[None]:
    """Own the folder where results are to go; all ranks must call this.

    Raises:
        UserError: there is something, or another process is about to write it.
    """
    remedy = "remove it or set output_dir=..."
    with ranks.exclusive(output_dir, "output_dir"):
        ranks.from_main(lambda: require_new_directory(output_dir, "output_dir", remedy))
        yield
