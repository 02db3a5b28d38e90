"""Whether a dataset of ARC tasks shows what its names say, and trains on nothing held out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from common.progress import follow
from dataset.augmentation import ORIGINAL, Variants, parse_variant_names
from dataset.compact import CompactSplit
from dataset.findings import Findings
from dataset.inversion import ANOTHER_GRID, FINE, NO_GRID, compare_variants, read_original
from dataset.splits import Split, require_square
from dataset.storage import BLANK_NAME, load_identifiers, puzzles_file
from dataset.task_files import load_tasks
from dataset.tasks import Grid, Pair

CHUNK_PUZZLES = 1024
"""Variants of a task that are read at a time."""
MAX_EXPANDED = 32
"""Variants of a task that are expanded in the compact layout, which stores none of them."""

Pairs = dict[str, list[Pair | None]]
"""Task id -> its pairs in a split, unaugmented; None where the canvases show none."""


class Names(NamedTuple):
    """What identifiers mean, by identifier."""

    puzzles: list[str]
    task_ids: list[str]
    variants: Variants


def verify_tasks(path: Path, splits: dict[str, Split], found: Findings) -> None:
    """Check names, examples and held-out pairs of the dataset at `path`."""
    num_identifiers = next(iter(splits.values())).metadata.num_puzzle_identifiers
    names = None
    with found.told("names") as facts:
        puzzles = load_identifiers(path, num_identifiers)
        names = Names(puzzles, *parse_variant_names(puzzles))
        repeated = [n for n, count in Counter(puzzles).items() if count > 1 and n != BLANK_NAME]
        for name in repeated:
            found.add(f"identifiers.json: '{name}' stands twice")
        facts.append(
            f"{len(puzzles):,} identifiers of {len({*names.task_ids} - {BLANK_NAME}):,} tasks"
        )
    if names is None:
        return
    pairs: dict[str, Pairs] = {}
    for name, split in splits.items():
        with found.told(f"{name}, identifiers"):
            _check_identifiers(split, names, splits.get("train"), found)
        with found.told(f"{name}, examples") as facts:
            pairs[name] = _check_examples(split, names, found, facts)
    for name in pairs.keys() - {"train"}:
        with found.told(f"{name}, held out") as facts:
            _check_held_out(path / puzzles_file(name), pairs[name], pairs.get("train", {}), found,
                            facts)  # fmt: skip


def _check_identifiers(split: Split, names: Names, train: Split | None, found: Findings) -> None:
    """That each puzzle stands once, each task in one group, and nothing that is not trained on."""
    where, identifiers = split.path, split.puzzle_identifiers
    values, counts = np.unique(identifiers, return_counts=True)
    for identifier in values[counts > 1].tolist():
        found.add(f"{where}: identifier {identifier} stands twice")
    numbers = {task_id: number for number, task_id in enumerate(dict.fromkeys(names.task_ids))}
    tasks = np.array([numbers[task_id] for task_id in names.task_ids])[identifiers]
    if BLANK_NAME in numbers and (tasks == numbers[BLANK_NAME]).any():
        found.add(f"{where}: a puzzle has an identifier that means no puzzle")
    groups = np.repeat(np.arange(len(split.group_indices) - 1), np.diff(split.group_indices))
    of_groups = tasks[split.group_indices[:-1]]
    for puzzle in np.flatnonzero(tasks != of_groups[groups]).tolist():
        name = names.puzzles[identifiers[puzzle]]
        found.add(f"{where}: puzzle {puzzle}, '{name}', stands in the group of another task")
    if len(np.unique(of_groups)) < len(of_groups):
        found.add(f"{where}: the puzzles of one task stand in two groups")
    if train is not None and len(untrained := np.setdiff1d(values, train.puzzle_identifiers)):
        found.add(f"{where}: identifier {untrained[0]} is not in the train half", len(untrained))
    if isinstance(split, CompactSplit):
        differs = (split.dihedrals != names.variants.dihedrals[identifiers]) | (
            split.permutations != names.variants.permutations[identifiers]
        ).any(axis=1)
        for puzzle in np.flatnonzero(differs).tolist():
            name = names.puzzles[identifiers[puzzle]]
            found.add(f"{where}: puzzle {puzzle} is another variant than its name '{name}' says")


def _check_examples(split: Split, names: Names, found: Findings, facts: list[str]) -> Pairs:
    """That every example shows its task's pair as its variant; return these pairs."""
    require_square(split, "its tasks cannot be verified")
    pairs: Pairs = {}
    num_examples = 0
    groups = zip(split.group_indices[:-1], split.group_indices[1:], strict=True)
    for first, end in follow(list(groups), f"verifying {split.path.name}", "task"):
        sizes = np.diff(split.puzzle_indices[first : end + 1])
        task_id = names.task_ids[split.puzzle_identifiers[first]]
        if (sizes != sizes[0]).any():
            problem = f"not all puzzles of task '{task_id}' have equally many examples"
            found.add(f"{split.path}: {problem}")
            continue
        puzzles = np.arange(first, end)
        if isinstance(split, CompactSplit):
            puzzles = np.unique(np.linspace(first, end - 1, MAX_EXPANDED).astype(np.int64))
        with found.collecting():
            pairs[task_id] = _original_pairs(split, names, int(first), found)
            for start in range(0, len(puzzles), CHUNK_PUZZLES):
                chunk = puzzles[start : start + CHUNK_PUZZLES]
                _check_puzzles(split, names, chunk, pairs[task_id], found)
                num_examples += len(chunk) * len(pairs[task_id])
    facts.append(f"{num_examples:,} of {split.num_examples:,} inverted to their tasks' pairs")
    if num_examples < split.num_examples:
        facts.append("the rest are the same pairs by the table of variants, which is as the names")
    return pairs


def _original_pairs(split: Split, names: Names, puzzle: int, found: Findings) -> list[Pair | None]:
    """The pairs of a group's task, by its first puzzle, which need not be the original."""
    rows = np.arange(*split.puzzle_indices[puzzle : puzzle + 2])
    identifier = split.puzzle_identifiers[puzzle]
    if isinstance(split, CompactSplit):  # As they are stored: expanding them draws all borders.
        stored = slice(*split.pair_indices[split.puzzle_groups[puzzle] :][:2])
        canvases = tuple(half[stored].numpy() for half in split.originals[:2])
        dihedral, permutation = (table[0] for table in ORIGINAL)
    else:
        canvases = split.read(rows)
        dihedral, permutation = (table[identifier] for table in names.variants)

    def read(canvas: npt.NDArray[np.uint8]) -> Grid | None:
        return read_original(canvas, int(dihedral), permutation)

    pairs: list[Pair | None] = []
    for row, question, answer in zip(rows.tolist(), *canvases, strict=True):
        is_hidden = not answer.any()
        grid, output = read(question), None if is_hidden else read(answer)
        if grid is None or (output is None and not is_hidden):
            found.add(
                f"{split.path}: example {row}, of '{names.puzzles[identifier]}', shows no grid "
                f"with its EOS border as input or as label"
            )
            pairs.append(None)
        else:
            pairs.append(Pair(grid, output))
    return pairs


def _check_puzzles(
    split: Split,
    names: Names,
    puzzles: npt.NDArray[np.int64],
    pairs: Sequence[Pair | None],
    found: Findings,
) -> None:
    """Compare the examples of some puzzles of one task with its pairs."""
    first = split.puzzle_indices[puzzles]
    inputs, labels = split.read((first[:, None] + np.arange(len(pairs))).reshape(-1))
    identifiers = split.puzzle_identifiers[puzzles]
    variants = Variants(*(table[identifiers] for table in names.variants))

    def tell(bad: npt.NDArray[np.bool_], number: int, problem: str) -> None:
        if bad.any():
            example = first[bad][0] + number
            name = names.puzzles[identifiers[bad][0]]
            found.add(f"{split.path}: example {example}, of '{name}': {problem}", int(bad.sum()))

    for number, pair in enumerate(pairs):
        if pair is None:
            continue
        shown = []
        for what, canvases, grid in (("input", inputs, pair.input), ("label", labels, pair.output)):
            shown.append(compare_variants(canvases[number :: len(pairs)], variants, grid))
            verdicts = shown[-1].verdicts
            tell(verdicts == NO_GRID, number, f"its {what} shows no grid of its size and border")
            tell(verdicts == ANOTHER_GRID, number, f"its {what} does not invert to its task's")
        # What does not show its grid has been told.
        fine = (shown[0].verdicts == FINE) & (shown[1].verdicts == FINE)
        places = [one.origins for one in shown]
        if pair.output is not None:
            apart = fine & (places[0] != places[1])
            tell(apart, number, "its input and label are at different places")
        if split.path.name != "train":
            tell(fine & (places[0] != 0), number, "it is not at the canvas's top-left")


def _check_held_out(
    tasks_path: Path, held_out: Pairs, train: Pairs, found: Findings, facts: list[str]
) -> None:
    """That a half is that of its file of tasks, and no held-out pair stands in the train half."""
    tasks = {task.task_id: task for task in load_tasks(tasks_path)}
    for task_id in sorted(tasks.keys() ^ held_out.keys()):
        found.add(f"task '{task_id}' is in only one of {tasks_path.name} and the examples")
    trained = {content for pairs in train.values() for pair in pairs if (content := _content(pair))}
    num_hidden = elsewhere = 0
    for task_id, pairs in held_out.items():
        if task_id not in tasks:
            continue
        own = [_content(pair) for pair in train.get(task_id, [])]
        demonstrations = [_content(pair) for pair in tasks[task_id].train]
        for number, pair in enumerate(own):
            if pair is not None and pair not in demonstrations:
                found.add(f"training pair {number} of task '{task_id}' is no demonstration of "
                          f"it in {tasks_path.name}")  # fmt: skip
        if len(own) != len(demonstrations):
            found.add(f"task '{task_id}' has {len(own)} training pairs, {tasks_path.name} has "
                      f"{len(demonstrations)} demonstrations")  # fmt: skip
        if list(map(_content, pairs)) != list(map(_content, tasks[task_id].test)):
            found.add(f"the held-out pairs of task '{task_id}' are others in {tasks_path.name}")
        for number, held in enumerate(pairs):
            content = _content(held)
            num_hidden += held is not None and held.output is None
            if content is not None and content in own:
                found.add(f"held-out pair {number} of task '{task_id}' is one to train on")
            elif content is not None and held is not None and held.output is not None:
                elsewhere += content in trained
    facts.append(f"{len(held_out):,} tasks, {sum(map(len, held_out.values())):,} test inputs")
    if num_hidden:
        facts.append(f"{num_hidden} hidden solutions, all PAD")
    if elsewhere:
        facts.append(f"NOTE: {elsewhere} held-out pair(s) also stand among other tasks' training "
                     f"pairs")  # fmt: skip


def _content(pair: Pair | None) -> tuple[object, ...] | None:
    if pair is None:
        return None
    grids = (pair.input, pair.output)
    return tuple(None if grid is None else (grid.shape, grid.tobytes()) for grid in grids)
