"""Records: what a score is known to, pieces whose minutes add up, and the table."""

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from config.loading import load_config
from config.schema import TrainConfig
from conftest import REPOSITORY
from dataset.splits import open_split
from models.recursive import TinyRecursiveModel
from records import run as command
from records.rows import (
    TRACKS,
    Record,
    add_row,
    paired_test,
    read_rows,
    table_of,
    write_table,
)
from runs import run_evaluation, run_training
from training import clock

PRESETS = {"tiny": ("record_tiny", 178), "small": ("record", 960)}
"""Track -> its preset, and tasks of its data."""


def record(pass_at_2: dict[str, float], **changes: Any) -> Record:
    values = {
        "date": "2026-01-31",
        "track": "small",
        "seed": 0,
        "pass_at_1": dict.fromkeys(pass_at_2, 0.0),
        "pass_at_2": pass_at_2,
        "minutes": 8.04,
        "training_minutes": 5.0,
        "device": "a card",
        "parameters": 1_100_000,
        "network_parameters": 860_000,
        "examples": 60_000,
        "data": "all",
        "data_sha256": "ab" * 32,
        "commit": "cd" * 20,
        "log": {},
    }
    return Record(**{**values, **changes})


def test_the_paired_test_by_hand() -> None:
    """Five tasks gained and none lost: all five flips must fall one way, 1 of 32."""
    tasks = [f"t{i}" for i in range(20)]
    before = dict.fromkeys(tasks, 0.0)
    after = before | dict.fromkeys(tasks[:5], 1.0)
    assert paired_test(after, before) == pytest.approx(1 / 32, abs=0.006)
    assert paired_test(before, after) > 0.99
    assert paired_test(before, before) == 1.0


def test_rows_are_numbered_and_a_row_is_compared_with_the_best_of_its_track(tmp_path: Path) -> None:
    tasks = [f"t{i}" for i in range(8)]
    shares = {name: dict.fromkeys(tasks, 0.0) | dict.fromkeys(tasks[:solved], 1.0)
              for name, solved in (("none", 0), ("two", 2), ("six", 6))}  # fmt: skip
    rows = tmp_path / "rows"
    for name in ("two", "none", "six"):
        add_row(rows, record(shares[name]))
    assert add_row(rows, record(shares["two"], track="medium")) == 4
    read = read_rows(rows)
    assert [row.score for row in read.values()] == [0.25, 0.0, 0.75, 0.25]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]]
             for line in table_of(read).splitlines()]  # fmt: skip
    assert [line[0] for line in lines[2:]] == ["1", "2", "3", "4"]
    assert lines[2][3] == "0.250 (0.071–0.591)"
    assert [line[-1] for line in lines[2:]] == ["", "1.000, #1", lines[4][-1], ""]
    # Four tasks gained, none lost: 1 of 16.
    p, against = lines[4][-1].split(", ")
    assert against == "#1" and float(p) == pytest.approx(1 / 16, abs=0.01)
    assert lines[2][10] == "200", "60,000 examples in 300 s"
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin table -->\nold\n<!-- end table -->\nb\n")
    write_table(page, read)
    assert page.read_text() == (
        f"a\n<!-- begin table -->\n{table_of(read)}\n<!-- end table -->\nb\n"
    )


def test_the_page_shows_the_rows() -> None:
    page = command.PAGE.read_text()
    assert f"<!-- begin table -->\n{table_of(read_rows(command.ROWS))}\n<!-- end" in page
    assert REPOSITORY / "records" / "rows" == command.ROWS


@pytest.mark.parametrize("track", PRESETS)
def test_the_presets_keep_within_their_tracks(track: str) -> None:
    preset, num_tasks = PRESETS[track]
    config = load_config("train", TrainConfig, "", [f"experiment={preset}"])
    model = TinyRecursiveModel(config.arch, 12, 900, num_tasks=num_tasks)
    assert model.puzzle_embedding is not None
    assert model.num_parameters + model.puzzle_embedding.num_parameters <= TRACKS[track]


# ---- the command ----


def arguments(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> Any:
    words = ["--minutes", "5", "--track", "tiny", "--output-dir", str(folder), *more]
    monkeypatch.setattr("sys.argv", ["records.run", *words])
    return command.parse_arguments()


def test_minutes_of_pieces_add_up_also_of_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "record"
    asked = arguments(monkeypatch, folder)
    state = command.claim(folder, asked)
    assert state["minutes"] == 0
    # Killed two minutes after it began; nothing was written after that.
    state["started"] -= 3600
    (folder / command.STATE_FILE).write_text(json.dumps(state))
    (folder / "metrics.jsonl").write_text("")
    for file in folder.iterdir():
        os.utime(file, (state["started"] + 120,) * 2)
    assert command.claim(folder, asked)["minutes"] == pytest.approx(2.0)
    # A piece may be stopped earlier or later, but is of the same record.
    assert command.claim(folder, arguments(monkeypatch, folder, "--stop-after-minutes", "2"))
    with pytest.raises(UserError, match="holds another record"):
        command.claim(folder, arguments(monkeypatch, folder, "--seed", "1"))


def test_a_piece_killed_before_its_first_checkpoint_has_trained_no_minutes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert command.trained_minutes(tmp_path) == 0


def test_a_piece_that_could_never_vote_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused_in_process: Callable[..., str],
    tiny_compact_dataset: Path,
) -> None:
    """A fifth of an hour is for voting, less what it takes to start."""
    (tmp_path / "data").symlink_to(tiny_compact_dataset)
    words = ["--minutes", "60", "--track", "tiny", "--output-dir", str(tmp_path)]
    said = refused_in_process(command.main, *words, "--stop-after-minutes", "12")
    assert re.search(r"--stop-after-minutes 12: voting .* gets 11\.\d minutes", said)


def test_several_processes_are_started_by_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(command, "run", lambda *words: started.append([str(w) for w in words]))
    for processes in ("1", "2"):
        asked = arguments(monkeypatch, tmp_path, "--processes", processes)
        command.train(tmp_path, asked, budget=1.0, stop_after=None)
        command.vote(tmp_path, asked)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert [words[: words.index(script)] for words, script in zip(
        started, 2 * ("train_arc_tiny_corrupt.py", "evaluate.py"), strict=True
    )] == [[], [], torchrun, torchrun]  # fmt: skip


def test_rows_are_no_changes_of_the_commit_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(command, "REPOSITORY", tmp_path)
    for name in ("README.md", "rows/0001.json"):
        (tmp_path / "records" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "records" / name).write_text("new")
    assert command.git(*command.CHANGES) == ""
    (tmp_path / "records" / "run.py").write_text("new")
    assert command.git(*command.CHANGES) != ""


def test_a_record_in_two_pieces_leaves_one_row_of_what_was_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_compact_dataset: Path
) -> None:
    """Training and evaluation are real, in this process; training's clock moves on by a minute
    whenever it is read, so that the first piece of two minutes takes one batch.
    """
    folder, words_run = tmp_path / "record", []

    def fake_run(*words: Any) -> None:
        given = [str(word) for word in words]
        words_run.append(given)
        values = dict(word.split("=", 1) for word in given if "=" in word)
        if "dataset.build_arc_dataset" in given:
            (folder / "data").symlink_to(tiny_compact_dataset)
        elif given[0] == "train_arc_tiny_corrupt.py":
            # As short as the minutes are, a batch is taken.
            run_training(
                folder / "data", folder / "run", "resume=auto", "train.eval_every=null",
                "train.max_steps=1000000", "arch.puzzle_embedding=factored",
                f"train.max_minutes={values['train.max_minutes']}",
                *([f"train.stop_after_minutes={values['train.stop_after_minutes']}"]
                  if "train.stop_after_minutes" in values else []),
            )  # fmt: skip
        elif given[0] == "evaluate.py":
            run_evaluation(
                folder / "evaluation", f"checkpoint={folder / 'run'}", "eval.max_variants=2"
            )

    monkeypatch.setattr(command, "run", fake_run)
    monkeypatch.setattr(command, "START_MINUTES", 0.0)
    monkeypatch.setattr(clock, "perf_counter", count(0, 60).__next__)
    rows = tmp_path / "rows"
    given = ("--minutes", "30", "--rows", str(rows), "--share-for-voting", "0", "--num-aug", "7",
             "--votes", "5", "optim.muon_lr=2e-3")  # fmt: skip
    arguments(monkeypatch, folder, *given, "--stop-after-minutes", "2")
    command.main()
    imported, built, trained = words_run
    assert imported[1] == "dataset.import_arc"
    assert built[built.index("--num-aug") :] == [
        "--num-aug", "7", "--layout", "compact", "--subsets", "training",
        "--test-set-name", "training", "--canvas-side", "10",
    ]  # fmt: skip
    assert {"experiment=record_tiny", "seed=0", "optim.muon_lr=2e-3"} < set(trained)
    assert not rows.exists()
    assert command.trained_minutes(folder) == 2, "the batch, and waiting for its metrics"
    used = json.loads((folder / command.STATE_FILE).read_text())["minutes"]
    assert used > 0
    # A line that a killed process has not finished is none.
    with (folder / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step"')
    arguments(monkeypatch, folder, *given)
    started = time.monotonic()
    command.main()
    assert words_run[-1] == [
        "evaluate.py", f"checkpoint={folder / 'run'}", f"output_dir={folder / 'evaluation'}",
        "eval.max_variants=5",
    ]  # fmt: skip
    row = read_rows(rows)[1]
    assert used < row.minutes <= used + (time.monotonic() - started) / 60
    last = command.last_metrics(folder)
    budget = json.loads((folder / command.STATE_FILE).read_text())["training_minutes"]
    assert row.training_minutes == last["minutes"] >= budget > 0
    assert row.track == "tiny"
    assert row.examples == last["step"] // 3 * 8
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert row.score == pytest.approx(metrics["pass@2"])
    assert row.log["evaluation"]["num_predictions"] == metrics["num_predictions"]
    assert row.parameters > row.network_parameters
    with pytest.raises(SystemExit):
        command.main()  # It is done.


def test_a_network_too_large_for_its_track_is_refused_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_compact_dataset: Path
) -> None:
    """And a table of puzzle embeddings counts."""
    (tmp_path / "data").symlink_to(tiny_compact_dataset)
    asked = arguments(monkeypatch, tmp_path)
    config = command.require_recipe(asked)
    network, of_puzzles = command.require_track(tmp_path, asked, config)
    assert (network, of_puzzles) == (113_600, (9 + 8) * 96 + 10 * 9 + 2 * 32 * 192)
    asked.overrides = ["arch.hidden_size=192"]
    with pytest.raises(UserError, match=r"is for up to 300,000 parameters.* network has [4-9]"):
        command.require_track(tmp_path, asked, command.require_recipe(asked))
    asked.overrides = ["arch.puzzle_embedding=table"]
    table = command.require_track(tmp_path, asked, command.require_recipe(asked))
    num_puzzles = open_split(tiny_compact_dataset, "train").metadata.num_puzzle_identifiers
    assert table == (network, num_puzzles * 96)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--track", "small"], "--input-file-prefix .*there is no .*training_challenges.json"),
        (["--input-file-prefix", "missing"], "--input-file-prefix missing: there is no"),
        (["train.max_steps=9"], r"train\.max_steps: .* as long as its minutes"),
        (["train.epochs=9"], r"train\.epochs: a record"),
        (["init_from=elsewhere"], r"init_from: a record is from scratch"),
        (["device=cpu"], "device: a record"),
        (["--share-for-voting", "1"], "--share-for-voting.* 1 is not from 0 to below 1"),
        (["optim.muon_lr=0"], r"optim\.muon_lr=0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_noted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused_in_process: Callable[..., str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(command, "DEFAULT_PREFIX", str(tmp_path / "nowhere"))
    words = ["--minutes", "5", "--track", "tiny", "--output-dir", str(tmp_path / "record"), *more]
    assert re.search(message, refused_in_process(command.main, *words))
    assert not (tmp_path / "record").exists()


def test_a_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text(content)
    (tmp_path / "b" / "sub" / "file").rename(tmp_path / "b" / "sub" / "other")
    digests = [command.digest(tmp_path / name) for name in "abc"]
    assert len(set(digests)) == 3 and command.digest(tmp_path / "a") == digests[0]


def test_the_record_that_ci_makes_has_a_network_that_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is smaller than its preset, and fails after ten minutes if it is none."""
    script = (REPOSITORY / ".ci" / "run").read_text().replace("\\\n", " ")
    (line,) = [line for line in script.splitlines() if "records.run" in line]
    words = shlex.split(line)
    monkeypatch.setattr("sys.argv", words[words.index("records.run") :])
    assert command.require_recipe(command.parse_arguments()).arch.hidden_size == 32


def test_a_row_does_not_say_where_on_the_machine_its_run_lay(tmp_path: Path) -> None:
    document = {
        "run_dir": str(tmp_path / "out" / "run"),
        "deep": [{"data": f"{tmp_path}/out/data"}],
    }
    assert command.within(tmp_path / "out", document) == {
        "run_dir": "run",
        "deep": [{"data": "data"}],
    }
