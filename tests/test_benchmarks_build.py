"""The builders' benchmark: an honest plain builder, and a table that says what was measured."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import build, plain_builder
from dataset.augmentation import augment, parse_variant_name
from dataset.canvas import place
from dataset.splits import open_split
from dataset.storage import PuzzleSplit, load_identifiers
from dataset.tasks import Pair, load_subset
from evaluation.test_set import EvaluationSet

NUM_AUG = 12


@pytest.fixture(scope="module")
def plain_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """What the plain builder makes of the ten tasks. Read-only."""
    folder = tmp_path_factory.mktemp("plain") / "dataset"
    tasks = plain_builder.read_tasks(kaggle_prefix, ["training", "evaluation"], "evaluation")
    plain_builder.build_plainly(tasks, folder, NUM_AUG, seed=0)
    return folder


def open_full(folder: Path, split: str) -> PuzzleSplit:
    opened = open_split(folder, split)
    assert isinstance(opened, PuzzleSplit)
    return opened


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_plain_builder_renders_the_pairs_of_each_variant_that_its_name_says(
    plain_dataset: Path, kaggle_prefix: str, split: str
) -> None:
    pairs_of: dict[str, tuple[Pair, ...]] = {}
    for subset in ("training", "evaluation"):
        for task in load_subset(kaggle_prefix, subset):
            if subset == "evaluation":
                pairs_of[task.task_id] = task.train if split == "train" else task.test
            elif split == "train":
                pairs_of[task.task_id] = task.train + task.test
    names, opened = load_identifiers(plain_dataset), open_full(plain_dataset, split)
    seen = set()
    for identifier, (start, end) in zip(
        opened.puzzle_identifiers, pairwise(opened.puzzle_indices), strict=True
    ):
        task_id, dihedral, permutation = parse_variant_name(names[identifier])
        seen.add(task_id)
        pairs = pairs_of[task_id]
        assert end - start == len(pairs)
        origins = []
        for row, pair in zip(range(start, end), pairs, strict=True):
            coloured = opened.inputs[row].reshape(30, 30) >= 2
            top, left = coloured.any(axis=1).argmax(), coloured.any(axis=0).argmax()
            origins.append((top, left))
            for canvas, grid in (
                (opened.inputs[row], pair.input),
                (opened.labels[row], pair.output),
            ):
                assert grid is not None
                expected = place(augment(grid, dihedral, permutation)[None], 30, top, left)
                np.testing.assert_array_equal(canvas, expected[0])
        at_the_corner = [origin == (0, 0) for origin in origins]
        assert any(at_the_corner) if split == "train" else all(at_the_corner)
    assert seen == set(pairs_of)


def test_the_plain_builder_makes_distinct_variants_and_moves_them(plain_dataset: Path) -> None:
    names, train = load_identifiers(plain_dataset), open_full(plain_dataset, "train")
    contents = set()
    for start, end in pairwise(train.puzzle_indices):
        content = train.inputs[start:end].tobytes() + train.labels[start:end].tobytes()
        contents.add(content)
    assert len(contents) == len(train.puzzle_identifiers) == len(names) - 1
    sizes = np.diff(train.group_indices)
    assert len(sizes) == 10 and sizes.max() == NUM_AUG + 1
    assert len(EvaluationSet(plain_dataset, None).tasks) > 0, "it can be evaluated on"
    assert (train.inputs.reshape(-1, 30, 30)[:, 0, 0] == 0).any(), "some grid is elsewhere"


def test_the_plain_builder_stops_drawing_where_a_task_has_no_more_variants() -> None:
    pair = (np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    task = plain_builder.PlainTask("one", {}, [pair], 1)
    variants = plain_builder.draw_variants(task, 100, np.random.default_rng(0))
    shown = sorted(int(grids[0][1][0, 0]) for _, grids in variants)
    assert shown == list(range(1, 10)), "one for each colour"


def test_the_command_prints_and_writes_a_table_that_adds_up(
    tmp_path: Path,
    kaggle_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, work_dir = tmp_path / "output" / "build.json", tmp_path / "work"
    arguments = ["--input-file-prefix", kaggle_prefix, "--subsets", "training", "evaluation"]
    arguments += ["--plain-tasks", "3", "--workers", "2", "--tiny"]
    arguments += ["--work-dir", str(work_dir), "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["build", *arguments])
    build.main()
    document = json.loads(output.read_text())
    plain, single, several, compact = document["rows"]
    names = [row["builder"] for row in document["rows"]]
    assert names == ["plain", "full, 1 worker", "full, 2 workers", "compact"]
    assert several["identical files"] == "15 of 15"
    assert compact["identical files"] == "10 of 10"
    assert single["examples"] == several["examples"] == compact["examples"] > plain["examples"]
    assert plain["tasks"] == 3 and single["tasks"] == 10
    assert compact["on disk, MB"] < single["on disk, MB"]
    for row in document["rows"]:
        assert row["examples/s"] == pytest.approx(row["examples"] / row["seconds"])
        assert row["times plain"] == pytest.approx(row["examples/s"] / plain["examples/s"])
        assert 1 < row["largest process, MB"] < 1000, "not that of the tests, which hold torch"
        assert row["times plain, by CPU"] > 0
        assert "times published (303 s)" not in row, "it is another line"
    assert list(work_dir.iterdir()) == [], "the datasets are gone"
    assert "| plain | 3 |" in capsys.readouterr().out


def test_files_that_differ_or_are_missing_are_not_counted_as_identical() -> None:
    reference = build.Case(
        "full, 1 worker", (), 1, digests={"a": "1", "b": "2", "train/x__inputs.npy": "3"}
    )
    other = build.Case("full, 2 workers", (), 1, digests={"a": "1", "b": "other"})
    compact = build.Case("compact", (), 1, digests={"a": "1", "b": "2", "c": "4"})
    assert other.identical_files(reference) == "1 of 3"
    assert compact.identical_files(reference) == "2 of 2"


def test_the_published_line_is_related_to_its_figure() -> None:
    cases = [
        build.Case(name, (), 1, seconds=[s, 2 * s, 99.0], cpu_seconds=[cpu], examples=n)
        for name, s, cpu, n in (
            ("plain", 1.0, 1.0, 10),
            ("full, 1 worker", 5.0, 10.0, 100),
            ("compact", 2.5, 1.0, 100),
        )
    ]
    table = build.rows(cases, published=True)
    # The plain one took 2 s for a tenth of the examples.
    published = [row["times published (303 s)"] for row in table]
    assert published == pytest.approx([303 / 20, 303 / 10, 303 / 5])
    assert [row["times plain"] for row in table] == [1, 2, 4]
    assert [row["times plain, by CPU"] for row in table] == [1, 1, 10]


def test_what_the_builder_refuses_is_refused(
    tmp_path: Path, kaggle_prefix: str, refused_in_process: Callable[..., str]
) -> None:
    common = ["--input-file-prefix", kaggle_prefix, "--output", tmp_path / "build.json", "--tiny"]
    error = refused_in_process(build.main, *common, "--subsets", "training", "nonsense")
    assert "nonsense_challenges.json" in error
    error = refused_in_process(build.main, *common, "--subsets", "training")
    assert "--test-set-name evaluation" in error
    error = refused_in_process(build.main, *common, "--repeats", 0)
    assert "argument --repeats: 0 is not 1 or more" in error
