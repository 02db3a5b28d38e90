"""The builders' benchmark: an honest plain builder, and a table that says what was measured."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from arc_oracles import arc_options

from benchmarks import build
from benchmarks.plain_builder import build_plainly, draw_variants
from dataset.augmentation import augment, parse_variant_name
from dataset.build_arc_dataset import SPLITS
from dataset.build_plan import load_sources
from dataset.canvas import place
from dataset.splits import open_split
from dataset.storage import PuzzleSplit, load_identifiers
from dataset.tasks import Pair, Task
from evaluation.test_set import ArcTestSet, open_test_set

NUM_AUG = 12


def test_the_plain_builder_renders_distinct_variants_as_their_names_say(
    tmp_path: Path, kaggle_prefix: str
) -> None:
    folder = tmp_path / "dataset"
    options = arc_options(kaggle_prefix, folder, num_aug=NUM_AUG)
    build_plainly(options)
    names = load_identifiers(folder)
    assert isinstance(open_test_set(folder, None, "window"), ArcTestSet), "all fits together"
    for split in SPLITS:
        pairs_of = {s.task.task_id: s.pairs[split] for s in load_sources(options)[0]}
        opened = open_split(folder, split)
        assert isinstance(opened, PuzzleSplit)
        contents, moved = set(), 0
        for identifier, (start, end) in zip(
            opened.puzzle_identifiers, pairwise(opened.puzzle_indices), strict=True
        ):
            task_id, dihedral, permutation = parse_variant_name(names[identifier])
            inputs, labels = opened.inputs[start:end], opened.labels[start:end]
            contents.add(inputs.tobytes() + labels.tobytes())
            moved_here = 0
            for pair, *canvases in zip(pairs_of[task_id], inputs, labels, strict=True):
                coloured = canvases[0].reshape(30, 30) >= 2
                origin = coloured.any(axis=1).argmax(), coloured.any(axis=0).argmax()
                moved_here += origin != (0, 0)
                for canvas, grid in zip(canvases, (pair.input, pair.output), strict=True):
                    assert grid is not None
                    expected = place(augment(grid, dihedral, permutation)[None], 30, *origin)
                    np.testing.assert_array_equal(canvas, expected[0])
            assert moved_here < end - start, "one pair stays"
            moved += moved_here
        assert len(contents) == len(opened.puzzle_identifiers)
        assert np.diff(opened.group_indices).max() == NUM_AUG + 1
        assert (moved > 0) == (split == "train")


def test_the_plain_builder_stops_drawing_where_a_task_has_no_more_variants() -> None:
    pair = Pair(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    _, shown = draw_variants(Task("one", (pair,), ()), 100, np.random.default_rng(0))
    outputs = sorted(int(output[0, 0]) for _, output in shown)
    assert outputs == list(range(1, 10)), "one for each colour"


def test_the_command_prints_and_writes_a_table_that_adds_up(
    tmp_path: Path,
    kaggle_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "output" / "build.json"
    arguments = ["--input-file-prefix", kaggle_prefix, "--subsets", "training", "evaluation"]
    arguments += ["--plain-tasks", "3", "--workers", "2", "--tiny", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["build", *arguments])
    build.main()
    rows = json.loads(output.read_text())["rows"]
    plain, single, several, compact = rows
    names = [row["builder"] for row in rows]
    assert names == ["plain", "full, 1 worker", "full, 2 workers", "compact"]
    assert several["identical files"] == "15 of 15"
    assert compact["identical files"] == "10 of 10"
    assert single["examples"] == several["examples"] == compact["examples"] > plain["examples"]
    assert plain["tasks"] == 3 and single["tasks"] == 10
    assert compact["on disk, MB"] < single["on disk, MB"]
    for row in rows:
        assert row["examples/s"] == pytest.approx(row["examples"] / row["seconds"])
        assert row["times plain"] == pytest.approx(row["examples/s"] / plain["examples/s"])
        assert 1 < row["largest process, MB"] < 1000, "not that of the tests, which hold torch"
        assert row["times plain, by CPU"] > 0
        assert "times published (303 s)" not in row, "it is another line"
    assert list(output.parent.iterdir()) == [output], "the datasets are gone"
    assert "| plain | 3 |" in capsys.readouterr().out


def test_files_that_differ_or_are_missing_are_not_counted_as_identical() -> None:
    reference = build.Case(
        "full, 1 worker", (), 1, digests={"a": "1", "b": "2", "train/x__inputs.npy": "3"}
    )
    other = build.Case("full, 2 workers", (), 1, digests={"a": "1", "b": "other"})
    compact = build.Case("compact", ("compact",), 1, digests={"a": "1", "b": "2", "c": "4"})
    assert other.identical_files(reference) == "1 of 3"
    assert compact.identical_files(reference) == "2 of 2"


def test_the_published_line_is_related_to_its_figure() -> None:
    cases = [
        build.Case(name, (), 1, [(s, cpu, 1), (2 * s, cpu, 2), (99.0, cpu, 1)], n)
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
    assert [row["largest process, MB"] for row in table] == [2e-6] * 3


def test_what_the_builder_refuses_is_refused(
    tmp_path: Path, kaggle_prefix: str, refused_in_process: Callable[..., str]
) -> None:
    common = ["--input-file-prefix", kaggle_prefix, "--output", tmp_path / "build.json", "--tiny"]
    for flags, complaint in (
        (["--subsets", "training", "nonsense"], "nonsense_challenges.json"),
        (["--subsets", "training"], "--test-set-name evaluation"),
        (["--repeats", 0], "argument --repeats: 0 is not 1 or more"),
    ):
        assert complaint in refused_in_process(build.main, *common, *flags)
