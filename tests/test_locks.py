"""One process at a time writes a folder; the lock of a killed one is none."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import evaluate
import train_arc_tiny_corrupt
from common.errors import UserError
from common.locks import exclusive
from conftest import REPOSITORY
from dataset import build_arc_dataset, build_nqueens_dataset
from runs import run_training, train_arguments

fcntl = pytest.importorskip("fcntl")

HOLD = """
import subprocess, sys
from pathlib import Path
from common.locks import exclusive

with exclusive(Path(sys.argv[1]), "run_dir"):
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process owns `path`, and has a child, until the end or until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=REPOSITORY, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate(timeout=60)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_is_told_who_holds_a_folder_and_the_lock_of_a_killed_process_is_none(
    tmp_path: Path,
) -> None:
    """Though a child of it lives. By whatever path: it is the folder that is locked."""
    path = tmp_path / "run"
    with held(path) as process:
        (tmp_path / "other").symlink_to(path)
        named = rf"run_dir={re.escape(str(path))} is in use by process {process.pid} on .* since 2"
        for same in (path, tmp_path / "other"):
            with pytest.raises(UserError, match=named), exclusive(same, "run_dir"):
                pass
        with exclusive(tmp_path / "run2", "run_dir"):  # Another folder is another lock.
            pass
        process.kill()
        process.wait(timeout=60)
        with exclusive(path, "run_dir"):
            assert names(tmp_path) == [".run.lock", "other"]
    assert names(tmp_path) == ["other"]


def test_the_owner_clears_away_what_killed_owners_have_left_and_nothing_else(
    tmp_path: Path,
) -> None:
    """Whatever process it was of: in a container, its id may be this process's, or another's."""
    path = tmp_path / "run"
    left = [
        tmp_path / f"run.{os.getpid()}.partial",
        tmp_path / f"run.{os.getppid()}.partial",
        path / "checkpoints" / "step_00000100.7.partial",
    ]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (path / "config.yaml.7.partial").touch()
    kept = [tmp_path / "run.mine.partial", tmp_path / "run2.7.partial", path / "metrics.jsonl"]
    for file in kept:
        file.touch()
    with exclusive(path, "run_dir"):
        assert names(tmp_path) == [".run.lock", "run", "run.mine.partial", "run2.7.partial"]
        assert names(path) == ["checkpoints", "metrics.jsonl"]
        assert names(path / "checkpoints") == []


def test_a_folder_that_cannot_be_made_is_refused_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"run_dir .* cannot be created"),
        exclusive(tmp_path / "file" / "run", "run_dir"),
    ):
        pass
    with exclusive(tmp_path / "new" / "deep" / "run", "run_dir"):
        assert names(tmp_path / "new" / "deep") == [".run.lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_where_there_are_no_locks_that_is_said_and_nothing_cleared_away(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = tmp_path / "run.7.partial"
    left.mkdir()
    with exclusive(tmp_path / "run", "run_dir"):
        assert left.exists()
    assert f"run cannot be locked ({os.strerror(number)})" in caplog.text


def test_a_lock_that_its_owner_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking: two processes would each lock a file of their own."""
    real, removed = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            (tmp_path / ".run.lock").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(tmp_path / "run", "run_dir"):
        assert ".run.lock" in names(tmp_path)
        monkeypatch.undo()
        with pytest.raises(UserError, match="is in use"), exclusive(tmp_path / "run", "run_dir"):
            pass


@pytest.mark.parametrize("program", ["train", "evaluate", "recount", "build", "boards"])
def test_a_program_does_not_touch_a_folder_that_another_one_writes(
    tiny_dataset: Path,
    kaggle_prefix: str,
    tmp_path: Path,
    refused_in_process: Callable[..., str],
    program: str,
) -> None:
    """Whatever is asked for: also a run that could be gone on with."""
    out, run = tmp_path / "out", tmp_path / "run"
    if program in ("evaluate", "recount"):
        run_training(tiny_dataset, run, "train.max_steps=3", "train.eval_every=null")
    checkpoint, flag = (f"checkpoint={run}", f"output_dir={out}"), ("--output-dir", out)
    kaggle = ("--input-file-prefix", kaggle_prefix, "--subsets", "training")
    main, *arguments = {
        "train": (train_arc_tiny_corrupt.main, *train_arguments(tiny_dataset, out), "resume=auto"),
        "evaluate": (evaluate.main, *checkpoint, "device=cpu"),
        "recount": (evaluate.main, f"predictions={run / 'predictions.npz'}", checkpoint[1]),
        "build": (build_arc_dataset.main, *kaggle, "--test-set-name", "training", *flag),
        "boards": (build_nqueens_dataset.main, *flag),
    }[program]
    with exclusive(out, "it"):
        line = refused_in_process(main, *arguments)
    assert re.search(r"(run_dir|output_dir|--output-dir)=.*out is in use by process \d+ on ", line)
    assert not out.exists()
