"""Mistakes end in one line and exit code 2, settings complain in sentences, files appear whole."""

import copy
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from common.errors import CommandParser, UserError, exit_cleanly
from common.files import (
    atomic_directory,
    atomic_file,
    atomic_write,
    read_arrays,
    remove_directory,
    require_creatable,
    require_new_directory,
)
from common.settings import Settings, validate, validate_stored

# ---- errors ----


def raising(error: BaseException) -> Callable[[], None]:
    @exit_cleanly
    def main() -> None:
        raise error

    return main


FREE = "free some space or choose another folder"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("key a=1:\n  must be   2"), 2, "error: key a=1: must be 2\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.npy"),
            2,
            f"error: the disk is full while writing a.npy: {FREE}\n",
        ),
        # What a terminal would obey, and bytes that are no text, are shown and not sent.
        (UserError("no file '\x1b[31mé\udcff'"), 2, "error: no file '\\x1b[31mé\\udcff'\n"),
        (OSError(errno.EDQUOT, "Quota exceeded"), 2, f"error: the disk is full: {FREE}\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npy"),
            2,
            "error: a.npy: No such file or directory; check the path and its permissions\n",
        ),
        # As a shell's: a program that was interrupted.
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        raising(error)()
    assert exit_info.value.code == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("a bug"), PermissionError(errno.EACCES, "a bug")])
def test_bugs_and_what_the_system_says_of_no_file_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"):
        raising(error)()


@pytest.fixture
def as_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Take the place of a rank that torchrun has launched."""
    monkeypatch.setattr(os, "_exit", sys.exit)

    def take_place(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        error_file = tmp_path / str(rank) / "error.json"
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file))

    return take_place


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(UserError("bad"), 2, "error: bad\n"), (ValueError("a bug"), 1, "ValueError: a bug\n")],
)
@pytest.mark.parametrize("first", [0, 3])
def test_of_several_ranks_the_first_that_fails_says_why(
    as_rank: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    text: str,
    first: int,
) -> None:
    """Whichever it is: the launcher ends all ranks when it ends. The others have the same to say,
    or fail because it has failed.
    """
    as_rank(first)
    with pytest.raises(SystemExit) as exit_info:
        raising(error)()
    assert exit_info.value.code == code
    told = capsys.readouterr().err
    assert told.endswith(text)
    assert told.startswith("[rank 3] ") == (first == 3)
    as_rank(1)
    with pytest.raises(SystemExit) as exit_info:
        raising(RuntimeError("connection closed by peer"))()
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == ""


def test_a_rank_does_not_end_before_another_has_said_why(
    as_rank: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "telling").touch()
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "told").touch()

    monkeypatch.setattr("time.sleep", wait)
    as_rank(0)
    with pytest.raises(SystemExit):
        raising(UserError("bad"))()
    assert len(waits) == 3


def test_sigterm_ends_an_entry_point_as_an_exception_does() -> None:
    """So that what it has begun is undone; and the handler is that of before afterwards."""
    undone = []

    @exit_cleanly
    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            undone.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 128 + signal.SIGTERM
    assert undone == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_open_progress_bar_ends_its_line_before_the_error_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def progress_bar() -> Iterator[int]:
        sys.stderr.write("50%")
        try:
            yield 1
        finally:
            sys.stderr.write("\n")

    @exit_cleanly
    def main() -> None:
        for _ in progress_bar():
            raise UserError("bad")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "50%\nerror: bad\n"


def test_an_entry_point_that_succeeds_returns() -> None:
    calls = []
    exit_cleanly(lambda: calls.append("done"))()
    assert calls == ["done"]


def test_a_command_line_that_does_not_parse_is_one_sentence() -> None:
    parser = CommandParser()
    parser.add_argument("--number", type=int)
    with pytest.raises(UserError, match=r"--number: invalid int value: 'x'; --help lists"):
        parser.parse_args(["--number", "x"])


# ---- settings ----


class Inner(Settings):
    size: int = Field(1, ge=1, le=4)
    name: str = "a"

    @field_validator("name")
    @classmethod
    def _lower(cls, name: str) -> str:
        if name != name.lower():
            raise ValueError("write it in lower case")
        return name

    @model_validator(mode="after")
    def _has_room(self) -> "Inner":
        if len(self.name) > self.size:
            raise ValueError(f"inner.name={self.name} is longer than inner.size={self.size}")
        return self


class Outer(Settings):
    inner: Inner
    ratio: float = 0.5

    @model_validator(mode="after")
    def _fits(self) -> "Outer":
        if self.ratio > self.inner.size:
            raise ValueError(f"ratio={self.ratio} is above inner.size={self.inner.size}")
        return self


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "key 'inner' is missing"),
        ({"inner": {}, "rato": 1}, "unknown key 'rato' (given 1)"),
        ({"inner": {"sise": 2}}, "unknown key 'inner.sise' (given 2)"),
        (
            {"inner": {"size": 5}},
            "inner.size=5 is not allowed, it should be less than or equal to 4",
        ),
        (
            {"inner": {"size": "big"}},
            "inner.size='big' is not allowed, it should be a valid integer, unable to parse "
            "string as an integer",
        ),
        ({"inner": {"name": "A"}}, "inner.name='A': write it in lower case"),
        ({"inner": {}, "ratio": 2}, "ratio=2.0 is above inner.size=1"),
        ({"inner": {"name": "ab"}}, "inner.name=ab is longer than inner.size=1"),
        (
            {"inner": {"size": 0, "name": "A"}},
            "inner.size=0 is not allowed, it should be greater than or equal to 1; "
            "inner.name='A': write it in lower case",
        ),
    ],
)
def test_each_bad_setting_is_a_sentence_with_key_value_and_limit(
    values: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        validate(Outer, values, "run.yaml")
    assert str(error.value) == f"run.yaml: {sentence}"


def test_good_settings_are_kept_and_cannot_be_changed() -> None:
    settings = validate(Outer, {"inner": {"size": 3}}, "run.yaml")
    assert (settings.inner.size, settings.ratio) == (3, 0.5)
    with pytest.raises(ValidationError, match="frozen"):
        settings.ratio = 1.0  # type: ignore[misc]


REMOVED = {"inner.colour": "0.3", "depth": "0.1", "inner.never_stored": "0.2"}


@pytest.mark.parametrize(
    ("stored", "lines"),
    [
        ({"inner": {"size": 3, "name": "b"}, "ratio": 0.25}, []),
        (
            {"inner": {"size": 3}},
            ["run.json: keys that it lacks take their defaults: inner.name=a, ratio=0.5"],
        ),
        (
            {"inner": {"size": 3, "name": "b", "colour": "red"}, "ratio": 0.25, "depth": None},
            [
                "run.json: ignoring keys that there are no more: "
                "inner.colour (dropped in 0.3), depth (dropped in 0.1)"
            ],
        ),
    ],
    ids=["complete", "older", "newer"],
)
def test_stored_settings_lack_keys_or_have_removed_ones_which_is_said_in_a_line(
    stored: dict[str, Any], lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = copy.deepcopy(stored)
    with caplog.at_level("INFO"):
        settings = validate_stored(Outer, stored, "run.json", REMOVED)
    assert settings.inner == Inner(size=3, name=stored["inner"].get("name", "a"))
    assert settings.ratio == stored.get("ratio", 0.5)
    assert caplog.messages == lines
    assert stored == before


def test_a_stored_key_that_there_never_was_is_still_an_error() -> None:
    with pytest.raises(UserError, match=r"^run.json: unknown key 'inner.color' \(given 'red'\)$"):
        validate_stored(Outer, {"inner": {"color": "red"}, "depth": 1}, "run.json", REMOVED)


# ---- files ----


def test_only_a_new_or_an_empty_folder_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_new_directory(tmp_path / "a" / "b", "--out", "move it")
    require_new_directory(Path("a_relative_folder_that_is_not_there"), "--out", "move it")
    (tmp_path / "empty").mkdir()
    require_new_directory(tmp_path / "empty", "--out", "move it")
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "file"
    file.write_text("mine")
    # Nothing can be renamed over a mount point.
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    for path, reason in (
        (file.parent, r"/folder exists already .* kept.*: move it"),
        (file, r"/folder/file exists already .* kept.*: move it"),
        (file / "a" / "b", r"file/a/b cannot be created, .*/file is no folder"),
        (tmp_path, "mount point: name a folder inside it"),
    ):
        with pytest.raises(UserError, match=f"--out .*{reason}"):
            require_new_directory(path, "--out", "move it")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="locked is no folder that you may write to"):
        require_creatable(tmp_path / "locked" / "a", "--out")


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    with atomic_directory(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("content")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "content"
    assert os.listdir(target.parent) == ["out"]


def test_an_error_leaves_nothing_of_a_folder_behind(tmp_path: Path) -> None:
    def work() -> None:
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_of_the_same_id_has_left_is_no_obstacle(tmp_path: Path) -> None:
    """In a container every restart has the same process id."""
    left = tmp_path / f"out.{os.getpid()}.partial"
    for write in (True, False):
        left.mkdir()
        (left / "old").write_text("half")
        if write:
            with atomic_directory(tmp_path / "out") as folder:
                (folder / "file").write_text("whole")
            assert os.listdir(tmp_path / "out") == ["file"]
        else:
            remove_directory(tmp_path / "out")
            assert os.listdir(tmp_path) == []


def test_a_folder_that_came_into_being_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work() -> None:
        with atomic_directory(out):
            out.mkdir()
            (out / "file").write_text("theirs")

    with pytest.raises(OSError, match="not empty"):
        work()
    assert os.listdir(tmp_path) == ["out"]
    assert (out / "file").read_text() == "theirs"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to name open files")
def test_files_are_flushed_before_the_folder_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []

    def fsync(descriptor: int) -> None:
        if not (tmp_path / "out").exists():
            names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "inner").write_text("a")
        (folder / "file").write_text("a")
    assert set(names) == {"file", "sub", "inner", f"out.{os.getpid()}.partial"}


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("old")
    return path


def test_a_file_is_replaced_in_one_step_when_it_is_complete_and_flushed(
    old_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(old_file.read_text()))
    with atomic_file(old_file) as partial:
        partial.write_text("new")
        assert old_file.read_text() == "old"
    assert flushed == ["old"]
    assert old_file.read_text() == "new"
    atomic_write(old_file, "newest é")
    assert old_file.read_bytes() == "newest é".encode()
    assert os.listdir(old_file.parent) == ["file"]


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_while_a_file_is_written_leaves_the_old_one(
    old_file: Path, writes: bool, error: type[BaseException]
) -> None:
    """Whether or not there is a new one yet. What the system says gets the file's name."""

    def work() -> None:
        with atomic_file(old_file) as partial:
            if writes:
                partial.write_text("half")
            raise error(errno.ENOSPC, "full")  # As of a file that is open: without its name.

    with pytest.raises(error) as raised:
        work()
    if isinstance(raised.value, OSError):
        assert raised.value.filename == f"{old_file}.{os.getpid()}.partial"
    assert os.listdir(old_file.parent) == ["file"]
    assert old_file.read_text() == "old"


def test_an_npz_file_is_read_or_refused_by_the_key_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    with pytest.raises(UserError, match=r"^key=it does not exist: again"):
        read_arrays(path, ["a"], "key=it", "again")
    np.savez(path, a=np.arange(3), b=np.zeros(1))
    assert {name: a.tolist() for name, a in read_arrays(path, ["a"], "", "").items()} == {
        "a": [0, 1, 2], "b": [0.0]
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^key=it has no array 'c': again"):
        read_arrays(path, ["a", "c"], "key=it", "again")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"^key=it is damaged or no .npz file .*: again"):
        read_arrays(path, ["a"], "key=it", "again")
