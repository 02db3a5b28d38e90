"""Check a built dataset: its files, their shapes, and what every example shows.

    python -m dataset.verify data/arc1concept-aug-1000

In either layout, whoever built it; of boards what applies to them. Canvases are read in chunks:
memory grows with the puzzles' names and indices alone. Nothing is changed.

1. Files: sizes and CRC-32 as in `manifest.json`, where the builder wrote one.
2. Index: shapes, offsets, identifiers; each puzzle stands once in a split, a task in one group.
3. Examples: every canvas shows one grid with its EOS border and PAD elsewhere, input and label at
   the same place, and inverts to its task's own pair.
4. Held-out pairs: the test and validation halves hold what `test_puzzles.json` says, the train half
   of these tasks their demonstrations and nothing else, and hidden solutions are all PAD.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from common.errors import CommandParser, UserError, exit_cleanly
from common.progress import EXAMPLE, follow
from common.settings import expanded_path
from common.tokens import PAD
from dataset.boards import keeps_given, puzzle_of, rules_of
from dataset.canvas import VOCAB_SIZE
from dataset.compact import CompactSplit
from dataset.findings import Findings
from dataset.manifest import MANIFEST_FILE, compare, read_manifest
from dataset.splits import Split, open_split
from dataset.verify_tasks import verify_tasks

SPLITS = ("train", "validation", "test")
CHUNK_BOARDS = 4096

log = logging.getLogger(__name__)


def verify(path: Path) -> None:
    """Check everything, and say line by line what was checked and found.

    Raises:
        UserError: there is no dataset, or something is wrong with it.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder")
    found = Findings()
    with found.told("files") as facts:
        _check_files(path, found, facts)
    splits: dict[str, Split] = {}
    for name in SPLITS:
        if name != "validation" or (path / name).exists():
            with found.told(f"{name}, index") as facts:
                split = splits[name] = open_split(path, name, option="")
                _check_metadata(split, next(iter(splits.values())), found, facts)
    with found.collecting():
        puzzle = puzzle_of(path)
        if puzzle is None and {s.metadata.vocab_size for s in splits.values()} == {VOCAB_SIZE}:
            verify_tasks(path, splits, found)
        else:
            _verify_boards(puzzle, splits, found)
    found.require_none(path)
    log.info("%s: all is well", path)


def _check_files(path: Path, found: Findings, facts: list[str]) -> None:
    manifest = read_manifest(path)
    if manifest is None:
        facts.append(
            f"there is no {MANIFEST_FILE}, as of an earlier version or another code base: sizes "
            f"and checksums were not compared"
        )
        return
    problems, beyond = compare(path, manifest)
    for problem in problems:
        found.add(problem)
    size = sum(record.bytes for record in manifest.values())
    facts.append(f"{len(manifest)} files of {size:,} bytes, by CRC-32")
    if beyond:
        facts.append(f"not in {MANIFEST_FILE}: {', '.join(beyond)}")


def _check_metadata(split: Split, first: Split, found: Findings, facts: list[str]) -> None:
    """That `dataset.json` counts what there is, and is of the same dataset as the first split's."""
    metadata, where = split.metadata, split.path / "dataset.json"
    num_puzzles, num_groups = len(split.puzzle_identifiers), len(split.group_indices) - 1
    counts = {"total_groups": num_groups, "total_puzzles": num_puzzles}
    for key, count in counts.items():
        if getattr(metadata, key) not in (None, count):
            found.add(f"{where}: {key} is {getattr(metadata, key)}, there are {count}")
    for key in ("seq_len", "vocab_size", "num_puzzle_identifiers"):
        value, others = getattr(metadata, key), getattr(first.metadata, key)
        if value != others:
            found.add(f"{where}: {key} is {value}, that of {first.path} is {others}")
    layout = "compact" if isinstance(split, CompactSplit) else "full"
    facts.append(
        f"{num_groups:,} groups, {num_puzzles:,} puzzles, {split.num_examples:,} examples of "
        f"{metadata.seq_len} cells; {layout} layout"
    )


def _verify_boards(puzzle: str | None, splits: dict[str, Split], found: Findings) -> None:
    """Tokens, and where the rules are known that labels are solutions of their inputs."""
    rules = None if puzzle is None else rules_of(puzzle)
    boards: dict[str, set[bytes]] = {}
    for name, split in splits.items():
        with found.told(f"{name}, boards") as facts:
            facts.append(f"{split.num_examples:,} boards by the rules of {puzzle or 'none known'}")
            starts = range(0, split.num_examples, CHUNK_BOARDS)
            chunks = [np.arange(s, min(s + CHUNK_BOARDS, split.num_examples)) for s in starts]
            for rows in follow(chunks, f"verifying {name}", EXAMPLE, split.num_examples, len):
                inputs, labels = split.read(rows)
                boards.setdefault(name, set()).update(map(bytes, inputs))
                if rules is None:
                    continue
                for bad, problem in (
                    ((inputs == PAD).any(axis=1), "has a cell of PAD"),
                    (~keeps_given(rules, inputs, labels), "its label changes a given cell"),
                    (~rules.is_valid(inputs, labels), "its label is no solution"),
                ):
                    if bad.any():
                        row = int(rows[bad.argmax()])
                        found.add(f"{split.path}: board {row}: {problem}", int(bad.sum()))
    if shared := len(boards.get("train", set()) & boards.get("test", set())):
        log.info("NOTE: %d test boards are training boards", shared)


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = CommandParser(prog="python -m dataset.verify", description=__doc__)
    parser.add_argument("dataset", metavar="DIR", type=expanded_path, help="the dataset's folder")
    torch.set_num_threads(1)  # Arrays are small here: threads would wait for each other.
    verify(parser.parse_args().dataset)


if __name__ == "__main__":
    main()
