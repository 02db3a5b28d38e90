"""The builder's benchmark: a table that says what was measured."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import build


def test_the_command_prints_and_writes_a_table_that_adds_up(
    tmp_path: Path,
    kaggle_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "output" / "build.json"
    arguments = ["--input-file-prefix", kaggle_prefix, "--subsets", "training", "evaluation"]
    arguments += ["--workers", "2", "--tiny", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["build", *arguments])
    build.main()
    rows = json.loads(output.read_text())["rows"]
    single, several, compact = rows
    names = [row["builder"] for row in rows]
    assert names == ["full, 1 worker", "full, 2 workers", "compact"]
    assert several["identical files"] == "16 of 16"
    assert compact["identical files"] == "10 of 10"
    assert single["examples"] == several["examples"] == compact["examples"] > 0
    assert compact["on disk, MB"] < single["on disk, MB"]
    for row in rows:
        assert row["examples/s"] == pytest.approx(row["examples"] / row["seconds"])
        assert row["times one worker"] == pytest.approx(single["seconds"] / row["seconds"])
        assert 1 < row["largest process, MB"] < 1000, "not that of the tests, which hold torch"
        assert row["by CPU"] > 0
        assert "times published (303 s)" not in row, "it is another line"
    assert list(output.parent.iterdir()) == [output], "the datasets are gone"
    assert "| full, 1 worker |" in capsys.readouterr().out


def test_files_that_differ_or_are_missing_are_not_counted_as_identical() -> None:
    reference = build.Case(
        "full, 1 worker", (), digests={"a": "1", "b": "2", "train/x__inputs.npy": "3"}
    )
    other = build.Case("full, 2 workers", (), digests={"a": "1", "b": "other"})
    compact = build.Case("compact", ("compact",), digests={"a": "1", "b": "2", "c": "4"})
    assert other.identical_files(reference) == "1 of 3"
    assert compact.identical_files(reference) == "2 of 2"


def test_the_published_line_is_related_to_its_figure() -> None:
    cases = [
        build.Case(name, (), [(s, cpu, 1), (2 * s, cpu, 2), (99.0, cpu, 1)], 100)
        for name, s, cpu in (("full, 1 worker", 5.0, 10.0), ("compact", 2.5, 1.0))
    ]
    table = build.rows(cases, published=True)
    assert [row["seconds"] for row in table] == [10, 5]
    assert [row["times published (303 s)"] for row in table] == [30.3, 60.6]
    assert [row["times one worker"] for row in table] == [1, 2]
    assert [row["by CPU"] for row in table] == [1, 10]
    assert [row["largest process, MB"] for row in table] == [2e-6] * 2


def test_what_the_builder_refuses_is_refused(
    tmp_path: Path, kaggle_prefix: str, refused_in_process: Callable[..., str]
) -> None:
    common = ["--input-file-prefix", kaggle_prefix, "--output", tmp_path / "build.json", "--tiny"]
    for flags, complaint in (
        (["--subsets", "evaluation", "nonsense"], "nonsense_challenges.json"),
        (["--subsets", "training"], "evaluation"),
        (["--repeats", 0], "argument --repeats: 0 is not 1 or more"),
    ):
        assert complaint in refused_in_process(build.main, *common, *flags)
