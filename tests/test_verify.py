"""A built dataset is sound, and each kind of damage is found and named."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_oracles import Damage, change, contents, put, remove, truncate, write_kaggle
from boards import solved_mazes
from common.errors import UserError
from dataset import maze, verify_tasks
from dataset.board_csv import write_csv
from dataset.build_maze_dataset import BuildOptions, build
from dataset.verify import main, verify

BuildSmall = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A dataset of 6x6 canvases in the full layout, or the fixture that is asked for, to damage."""
    name = getattr(request, "param", "tiny_dataset")
    return shutil.copytree(request.getfixturevalue(name), tmp_path / "copy")


@pytest.fixture
def verified(caplog: pytest.LogCaptureFixture) -> Callable[[Path], str]:
    """Verify a dataset that is sound, and return what is said."""

    def run(path: Path) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            verify(path)
        return caplog.text

    return run


def problems_of(path: Path, by_files: bool = False) -> str:
    """The error about a dataset, without its manifest unless it is `by_files`."""
    if not by_files:
        (path / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(UserError) as error:
        verify(path)
    assert str(error.value).endswith("; rebuild the dataset or copy it again")
    return str(error.value)


# ---- sound -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy",
    ["tiny_dataset", "roomy_compact_dataset", "validated_dataset", "small_dataset"],
    indirect=True,
)
def test_what_the_builder_writes_is_sound(copy: Path, verified: Callable[[Path], str]) -> None:
    """In both layouts, with translations, and whether or not there is a manifest; unchanged."""
    before = contents(copy)
    text = verified(copy)
    assert "PROBLEM" not in text
    assert f"{len(before) - 1} files of" in text
    for index in copy.glob("*/all__puzzle_indices.npy"):
        count = np.load(index)[-1]
        assert f"{index.parent.name}, examples: sound; {count} of {count} inverted" in text
    assert contents(copy) == before
    (copy / "manifest.json").unlink()
    (copy / "build.json").unlink()
    assert "there is no manifest.json, as of an earlier version" in verified(copy)


def test_another_builders_wider_integers_are_sound(
    copy: Path, verified: Callable[[Path], str]
) -> None:
    for file in copy.rglob("*.npy"):
        np.save(file, np.load(file).astype(np.int64))
    for file in ("manifest.json", "build.json"):
        (copy / file).unlink()
    assert "all is well" in verified(copy)


def test_hidden_solutions_are_sound_as_pad_and_nothing_else(
    build_small: BuildSmall, hidden_prefix: str, verified: Callable[[Path], str]
) -> None:
    out, _ = build_small(input_file_prefix=hidden_prefix, canvas_side=6)
    assert "hidden solutions, all PAD" in verified(out)
    put("all__labels", (-1, 3), 2)(out / "test")
    assert "its label does not invert to its task's" in problems_of(out)


def test_a_compact_layout_is_expanded_for_some_variants_and_says_so(
    tiny_compact_dataset: Path, verified: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_tasks, "MAX_EXPANDED", 2)
    text = verified(tiny_compact_dataset)
    assert "80 of 280 inverted" in text
    assert "the rest are the same pairs by the table of variants" in text


# ---- damaged files ---------------------------------------------------------------------------


def flip_a_bit(split: Path) -> None:
    path = split / "all__inputs.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)


def damage_manifest(path: Path) -> None:
    (path.parent / "manifest.json").write_text('{"train/dataset.json": 5}')


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip_a_bit, "train/all__inputs.npy has another CRC-32 than manifest.json says"),
        (truncate("all__labels.npy", 0.5), "train/all__labels.npy has "),
        (remove("dataset.json"), "train/dataset.json is missing"),
        (damage_manifest, "manifest.json: train/dataset.json=5 is not allowed"),
    ],
)
def test_a_file_that_is_not_as_it_was_built_is_named(
    copy: Path, damage: Damage, complaint: str
) -> None:
    damage(copy / "train")
    assert complaint in problems_of(copy, by_files=True)


def test_a_file_that_the_builder_did_not_write_is_named(
    copy: Path, verified: Callable[[Path], str]
) -> None:
    (copy / "train" / "notes.txt").write_text("mine")
    assert "not in manifest.json: train/notes.txt" in verified(copy)


# ---- damaged examples ------------------------------------------------------------------------


def last_example(name: str, token: range, to: int) -> Damage:
    """In the last example put `to` in place of its last cell with one of these tokens."""

    def changed(array: np.ndarray) -> np.ndarray:
        cell = np.flatnonzero(np.isin(array[-1], token))[-1]
        assert array[-1, cell] != to, "nothing would change"
        array[-1, cell] = to
        return array

    return change(f"all__{name}", changed)


COLOURS, EOS, PAD = range(2, 12), range(1, 2), range(1)


def moved(*names: str) -> Damage:
    """The grids of the last example one cell lower: on a canvas with room for it."""

    def damage(split: Path) -> None:
        for name in names:
            change(f"all__{name}", lambda a: np.vstack([a[:-1], np.roll(a[-1:], 10)]))(split)

    return damage


def of_first_task(split: Path) -> int:
    """How many puzzles the first task has."""
    return int(np.load(split / "all__group_indices.npy")[1])


def swap_identifiers(split: Path) -> None:
    change("all__puzzle_identifiers", lambda a: a[[0, 2, 1, *range(3, len(a))]])(split)


def swap_identifiers_of_tasks(split: Path) -> None:
    last = of_first_task(split) - 1
    order = [*range(last), last + 1, last]
    change("all__puzzle_identifiers", lambda a: a[[*order, *range(last + 2, len(a))]])(split)


@pytest.mark.parametrize("copy", ["roomy_dataset"], indirect=True)
@pytest.mark.parametrize(
    ("split", "damage", "complaint"),
    [
        ("train", last_example("labels", COLOURS, 12), "a token outside its vocabulary of 12"),
        ("train", last_example("inputs", EOS, 0), "its input shows no grid of its size and border"),
        ("train", last_example("labels", EOS, 2), "its label shows no grid of its size and border"),
        ("train", last_example("labels", COLOURS, 1), "its label shows no grid of its size"),
        ("test", last_example("inputs", PAD, 1), "its input shows no grid of its size and border"),
        ("test", last_example("labels", PAD, 2), "its label shows no grid of its size and border"),
        ("train", swap_identifiers, "its input does not invert to its task's"),
        ("train", swap_identifiers_of_tasks, "stands in the group of another task"),
        ("train", put("all__puzzle_identifiers", (0,), 2), "identifier 2 stands twice"),
        ("train", put("all__puzzle_identifiers", (0,), 0), "has an identifier that means no puzzl"),
        ("train", put("all__puzzle_identifiers", (0,), 9999), "must hold numbers from 0 to"),
        ("train", put("all__puzzle_indices", (1,), 1), "have equally many examples"),
        ("train", put("all__puzzle_indices", (1,), 0), "must rise strictly from 0"),
        ("test", moved("labels"), "its input and label are at different places"),
        ("test", moved("inputs", "labels"), "it is not at the canvas's top-left"),
    ],
)  # fmt: skip
def test_one_changed_value_is_found_and_named(
    copy: Path, split: str, damage: Damage, complaint: str
) -> None:
    damage(copy / split)
    problems = problems_of(copy)
    assert complaint in problems
    assert str(copy / split) in problems


def test_one_changed_colour_is_found_by_its_example_and_puzzle(copy: Path) -> None:
    """Also in the original, which all its variants are compared with."""
    path = copy / "train" / "all__labels.npy"
    last = len(np.load(path)) - 1
    name = json.loads((copy / "identifiers.json").read_text())[-1]

    def recolour(row: int) -> Damage:
        def changed(labels: np.ndarray) -> np.ndarray:
            cell = int((labels[row] >= 2).argmax())
            labels[row, cell] = 2 + (labels[row, cell] - 1) % 10
            return labels

        return change("all__labels", changed)

    recolour(last)(copy / "train")
    assert problems_of(copy) == (
        f"{copy} has 1 problem(s): {copy / 'train'}: example {last}, of '{name}': its label does "
        f"not invert to its task's; rebuild the dataset or copy it again"
    )
    recolour(0)(copy / "train")
    # Six variants differ from the original, and that from the demonstrations if it is scored.
    assert f"{copy} has 7 problem(s)" in problems_of(copy)


@pytest.mark.parametrize("copy", ["tiny_compact_dataset"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (change("variants__dihedrals", lambda a: (a + 1) % 8), "is another variant than its name"),
        (change("variants__permutations", lambda a: a[:, ::-1]), "is another variant than its nam"),
        (put("originals__inputs", (-1, 0), 0), "has a canvas without a grid at its top-left"),
        (change("originals__labels", lambda a: np.maximum(a, 1)), "shows no grid with its EOS"),
    ],
)
def test_damage_to_the_compact_layout_is_found(copy: Path, damage: Damage, complaint: str) -> None:
    damage(copy / "train")
    assert complaint in problems_of(copy)


def test_names_that_stand_twice_and_counts_that_do_not_fit_are_found(copy: Path) -> None:
    file = copy / "identifiers.json"
    names = json.loads(file.read_text())
    file.write_text(json.dumps([*names[:-1], names[-2]]))
    file = copy / "test" / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "total_groups": 3}))
    problems = problems_of(copy)
    assert f"identifiers.json: '{names[-2]}' stands twice" in problems
    assert "total_groups is 3, there are 4" in problems


def test_what_is_beyond_the_first_problems_is_counted(copy: Path) -> None:
    change("all__labels", np.zeros_like)(copy / "train")
    problems = problems_of(copy)
    assert problems.count("; ") == 6, "five problems, the rest and the remedy"
    assert " more; rebuild" in problems


# ---- held-out pairs --------------------------------------------------------------------------


def test_a_held_out_pair_among_a_tasks_own_training_pairs_is_found(copy: Path) -> None:
    """In all variants alike, so that everything inverts."""
    names = json.loads((copy / "identifiers.json").read_text())
    train, test = copy / "train", copy / "test"
    rows, held = [], []
    identifiers = np.load(train / "all__puzzle_identifiers.npy").tolist()
    for puzzle, identifier in enumerate(np.load(test / "all__puzzle_identifiers.npy").tolist()):
        if names[identifier].startswith("66e6c45b"):
            held.append(np.load(test / "all__puzzle_indices.npy")[puzzle])
            rows.append(np.load(train / "all__puzzle_indices.npy")[identifiers.index(identifier)])
    for half in ("inputs", "labels"):
        leaked = np.load(test / f"all__{half}.npy")[held]

        def leak(array: np.ndarray, leaked: np.ndarray = leaked) -> np.ndarray:
            array[rows] = leaked
            return array

        change(f"all__{half}", leak)(train)
    problems = problems_of(copy)
    assert "has 2 problem(s)" in problems
    assert "held-out pair 0 of task '66e6c45b' is one to train on" in problems
    assert "training pair 0 of task '66e6c45b' is no demonstration of it" in problems


def change_task(file: Path, task_id: str, what: str, *path: Any) -> None:
    tasks = json.loads(file.read_text())
    grid = tasks[task_id][what][0]["output"]
    grid[0][0] = (grid[0][0] + 1) % 10
    file.write_text(json.dumps(tasks))


@pytest.mark.parametrize("copy", ["validated_dataset"], indirect=True)
@pytest.mark.parametrize("half", ["test", "validation"])
def test_a_half_that_is_not_that_of_its_tasks_is_found(copy: Path, half: str) -> None:
    file = copy / f"{half}_puzzles.json"
    task_id = next(iter(json.loads(file.read_text())))
    change_task(file, task_id, "test")
    assert f"the held-out pairs of task '{task_id}' are others in {file.name}" in problems_of(copy)
    change_task(file, task_id, "train")
    assert f"training pair 0 of task '{task_id}' is no demonstration of it" in problems_of(copy)
    tasks = json.loads(file.read_text())
    del tasks[task_id]
    file.write_text(json.dumps(tasks))
    assert f"task '{task_id}' is in only one of {file.name} and the examples" in problems_of(copy)


def test_a_held_out_pair_under_another_tasks_name_is_noted_and_counted(
    build_small: BuildSmall, tmp_path: Path, verified: Callable[[Path], str]
) -> None:
    pairs = [{"input": [[1, 2]], "output": [[n]]} for n in range(3, 6)]
    prefix = tmp_path / "own"
    write_kaggle(prefix, "training", {"other": {"train": pairs[1:], "test": []}})
    write_kaggle(
        prefix,
        "evaluation",
        {"scored": {"train": pairs[:1], "test": [{"input": p["input"]} for p in pairs[1:]]}},
        {"scored": [p["output"] for p in pairs[1:]]},
    )
    out, summary = build_small(input_file_prefix=str(prefix), canvas_side=3)
    assert summary["test_pairs_among_training_pairs"] == 2
    assert "NOTE: 2 held-out pair(s) also stand among other tasks' training" in verified(out)


# ---- boards ----------------------------------------------------------------------------------


@pytest.fixture
def mazes(tmp_path: Path) -> Path:
    csv = tmp_path / "mazes.csv"
    write_csv(csv, solved_mazes(), maze.ALPHABET)
    out = tmp_path / "out"
    build(BuildOptions(output_dir=out, num_train=20, num_test=10, num_aug=3, csv=(csv,)))
    return out


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (put("all__inputs", (70, 5), 0), "board 70: has a cell of PAD"),
        (change("all__labels", lambda a: 6 - a), "board 0: its label changes a given cell (and 7"),
        (change("all__labels", lambda a: np.where(a == 5, 2, a)), "its label is no solution"),
        (put("all__labels", (70, 5), 6), "a token outside its vocabulary of 6"),
        (put("all__puzzle_identifiers", (3,), 1), "must hold numbers from 0 to 0"),
    ],
)
def test_boards_are_checked_by_their_rules(
    mazes: Path, damage: Damage, complaint: str, verified: Callable[[Path], str]
) -> None:
    assert "80 boards by the rules of maze" in verified(mazes)
    damage(mazes / "train")
    assert complaint.partition(" (and")[0] in problems_of(mazes)


# ---- the command -----------------------------------------------------------------------------


def test_the_command_ends_with_one_line_and_exit_code_2(
    copy: Path, tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    flip_a_bit(copy / "train")
    assert "all__inputs.npy has another CRC-32" in refused_in_process(main, copy)
    missing = tmp_path / "nowhere"
    assert refused_in_process(main, missing) == f"error: {missing}: there is no such folder"
    (tmp_path / "empty").mkdir()
    assert "no dataset there" in refused_in_process(main, tmp_path / "empty")
