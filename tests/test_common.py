"""Mistakes end in one line and exit code 2, settings complain in sentences, files appear whole."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from common.errors import CommandParser, UserError, exit_cleanly
from common.files import (
    atomic_directory,
    atomic_file,
    atomic_write,
    require_creatable,
    require_new_directory,
)
from common.settings import Settings, validate


def raising(error: BaseException) -> Callable[[], None]:
    @exit_cleanly
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("key a=1:\n  must be   2"), "error: key a=1: must be 2\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.npy"),
            "error: the disk is full while writing a.npy: free some space or choose another "
            "folder\n",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            "error: the disk is full: free some space or choose another folder\n",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        raising(error)()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == line


def test_only_rank_0_may_start_the_line_with_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the others wait, for the launcher ends all ranks when the first one ends."""
    monkeypatch.setenv("RANK", "3")
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(SystemExit):
        raising(UserError("bad"))()
    assert capsys.readouterr().err == "[rank 3] error: bad\n"
    assert waits


@pytest.mark.parametrize("error", [ValueError("a bug"), PermissionError(errno.EACCES, "a bug")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"):
        raising(error)()


def test_an_interrupt_exits_with_the_shells_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        raising(KeyboardInterrupt())()
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == ""


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


def test_a_new_or_an_empty_folder_may_be_written(tmp_path: Path) -> None:
    require_new_directory(tmp_path / "a" / "b", "--out", "move it")
    require_new_directory(Path("a_relative_folder_that_is_not_there"), "--out", "move it")
    (tmp_path / "empty").mkdir()
    require_new_directory(tmp_path / "empty", "--out", "move it")


def test_a_file_or_a_filled_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "file"
    file.write_text("mine")
    for path in (tmp_path / "folder", file):
        with pytest.raises(UserError, match=rf"--out {path} exists already .* kept.*: move it"):
            require_new_directory(path, "--out", "move it")


def test_a_place_below_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        UserError, match=r"--out .*file/a/b cannot be created, .*/file is no folder"
    ):
        require_creatable(tmp_path / "file" / "a" / "b", "--out")
    with pytest.raises(UserError, match="cannot be created"):
        require_new_directory(tmp_path / "file" / "a", "--out", "move it")


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


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def work() -> None:
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_killed_run_are_cleared_away(tmp_path: Path) -> None:
    """Of a process that is gone; what another one is writing just now is left alone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f"out.{gone.pid}.partial", f"out.{os.getppid()}.partial", "out.mine.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("half")
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "file").write_text("whole")
    left = {"out", f"out.{os.getppid()}.partial", "out.mine.partial"}
    assert set(os.listdir(tmp_path)) == left
    assert os.listdir(tmp_path / "out") == ["file"]


def test_a_folder_that_came_into_being_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def work() -> None:
        with atomic_directory(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "file").write_text("theirs")

    with pytest.raises(OSError, match="not empty"):
        work()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "theirs"


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


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")
    atomic_write(path, "new é")
    assert path.read_bytes() == "new é".encode()

    def fails(source: Path, target: Path) -> None:
        assert source.read_text(encoding="utf-8") == "newest"
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="full"):
        atomic_write(path, "newest")
    assert path.read_bytes() == "new é".encode()
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_appears_only_when_it_is_complete_and_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(path.read_text()))
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert flushed == ["old"]
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_while_a_file_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    """Whether or not there is a new one yet."""

    def work(writes: bool) -> None:
        with atomic_file(tmp_path / "file") as partial:
            if writes:
                partial.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "file").write_text("old")
    for writes in (True, False):
        with pytest.raises(KeyboardInterrupt):
            work(writes)
        assert os.listdir(tmp_path) == ["file"]
        assert (tmp_path / "file").read_text() == "old"


def test_a_disk_that_fills_up_while_a_file_is_written_is_reported_with_its_name(
    tmp_path: Path,
) -> None:
    def work() -> None:
        with atomic_file(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "full")  # As of a file that is open.

    with pytest.raises(OSError, match="full") as error:
        work()
    assert error.value.filename == str(tmp_path / f"file.{os.getpid()}.partial")


def test_a_mount_point_cannot_be_the_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing can be renamed over it: better said before the work than after."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(UserError, match="mount point: name a folder inside it"):
        require_new_directory(tmp_path, "--out", "move it")


def test_what_the_system_says_about_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @exit_cleanly
    def main() -> None:
        (tmp_path / "missing").read_text()

    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "missing: No such file or directory" in line


def test_an_error_of_the_system_about_no_file_is_a_bug_and_keeps_its_traceback() -> None:
    @exit_cleanly
    def main() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        main()


def test_a_command_line_that_does_not_parse_is_one_sentence() -> None:
    parser = CommandParser()
    parser.add_argument("--number", type=int)
    with pytest.raises(UserError, match=r"--number: invalid int value: 'x'; --help lists"):
        parser.parse_args(["--number", "x"])
