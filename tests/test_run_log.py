"""The run's log: lines on disk whatever happens, and a W&B that never stops a run."""

import logging
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest
import wandb

from runs import read_metrics
from training.run_log import NoLog, RunLog, WandbConfig


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """In place of the module `wandb`: there is a login, and everything works."""
    fake = Mock()
    fake.init.return_value.step = 0
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def refuse_to_start(fake: Mock, error: Exception, *in_modes: str) -> None:
    run = fake.init.return_value

    def init(mode: str, **_: Any) -> Mock:
        if mode in in_modes:
            raise error
        return run

    fake.init.side_effect = init


def modes(fake: Mock) -> list[str]:
    """In which W&B runs were started."""
    return [call.kwargs["mode"] for call in fake.init.call_args_list]


def calls(fake: Mock) -> list[Any]:
    """What the run was told, besides which metrics there are."""
    return [c for c in fake.init.return_value.mock_calls if c[0] != "define_metric"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "my-run").mkdir()
    return tmp_path / "my-run"


def record(run_dir: Path, mode: Any = "disabled", *steps: int, **more: Any) -> RunLog:
    """A log that has recorded `{"loss": 1 / step}` at each step, and was closed."""
    log = RunLog(run_dir, WandbConfig(mode=mode), {}, **more)
    for step in steps:
        log.write(step, {"loss": 1 / step})
    log.close()
    return log


# ---- lines ----


def test_every_write_is_one_line_at_once(run_dir: Path) -> None:
    log = RunLog(run_dir, WandbConfig(mode="disabled"), {})
    log.write(6, {"train/loss": 1.5})
    assert read_metrics(run_dir) == [{"step": 6, "train/loss": 1.5}], "before the log is closed"
    log.write(12, {"train/loss": 1.25, "eval/pass@2": 0.5})
    log.close()
    assert read_metrics(run_dir)[1:] == [{"step": 12, "train/loss": 1.25, "eval/pass@2": 0.5}]


def test_a_resumed_run_forgets_what_was_recorded_after_its_checkpoint(run_dir: Path) -> None:
    # An evaluation has a line of its own.
    record(run_dir, "disabled", 2, 4, 4, 8)
    record(run_dir, "disabled", 16, resume_step=4)
    assert [line["step"] for line in read_metrics(run_dir)] == [2, 4, 4, 16]
    # A run started anew in its folder starts an empty log.
    record(run_dir, "disabled")
    assert read_metrics(run_dir) == []


@pytest.mark.parametrize("cut", ["", "{", '{"step": 18, "lo', '{"step": 18'])
def test_a_last_line_cut_short_is_dropped(run_dir: Path, cut: str) -> None:
    (run_dir / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n' + cut)
    record(run_dir, "disabled", 4, resume_step=600)
    assert read_metrics(run_dir) == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.25}]


@pytest.mark.parametrize(
    "damage",
    ["{\0}", "\0" * 40, '{"loss": 1}', '{"step": "x"}', "[1]", '{"step": 1', "{" * 99_999 + "}"],
)
def test_a_line_that_records_nothing_is_dropped(run_dir: Path, damage: str) -> None:
    """In the middle, as a power cut leaves it."""
    record(run_dir, "disabled", 1, 2)
    path = run_dir / "metrics.jsonl"
    first, second = path.read_text().splitlines()
    path.write_bytes(f"{first}\n{damage}\n{second}\n\n".encode() + b"\xff\n")
    record(run_dir, resume_step=4)
    assert path.read_text().splitlines() == [first, second]


def test_the_log_of_the_other_ranks_does_nothing() -> None:
    log = NoLog()
    log.write(6, {"loss": 1.0})
    log.close()
    assert log.wandb_run_id is None


# ---- W&B itself ----


def test_without_a_login_a_run_is_really_recorded_offline_on_disk(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty home folder, so no login and no settings; nobody is asked for a login."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(run_dir.parent))
    for function in ("builtins.input", "getpass.getpass"):
        monkeypatch.setattr(function, lambda *_, **__: pytest.fail("W&B asked for a login"))
    log = record(run_dir, "auto", 2)
    (recorded,) = (run_dir / "wandb").glob("offline-run-*")
    assert log.wandb_run_id is not None
    file = recorded / f"run-{log.wandb_run_id}.wandb"
    # The service process writes it after it has said that the run is finished.
    deadline = time.monotonic() + 20
    while b"loss" not in file.read_bytes():
        assert time.monotonic() < deadline, "nothing was recorded"
        time.sleep(0.05)
    assert read_metrics(run_dir) == [{"step": 2, "loss": 0.5}]


# ---- a stand-in for W&B ----


@pytest.mark.parametrize(
    ("mode", "logged_in", "started", "warnings"),
    [
        ("auto", True, ["online"], 0),
        ("auto", False, ["offline"], 0),  # Content with either.
        ("online", True, ["online"], 0),
        ("online", False, ["offline"], 1),
        ("offline", True, ["offline"], 0),
        ("disabled", True, [], 0),
    ],
)
def test_runs_are_online_where_there_is_a_login_and_it_is_wanted(
    run_dir: Path,
    fake: Mock,
    caplog: pytest.LogCaptureFixture,
    mode: Any,
    logged_in: bool,
    started: list[str],
    warnings: int,
) -> None:
    fake.login.return_value = logged_in
    log = record(run_dir, mode, 2)
    assert modes(fake) == started
    run = [call.log({"step": 2, "loss": 0.5}, step=2), call.finish()]
    assert calls(fake) == (run if started else [])
    assert (log.wandb_run_id is not None) == bool(started)
    asked = [call(prompt=False, verify=False)] if mode in ("auto", "online") else []
    assert fake.login.mock_calls == asked
    assert ["no login" in message for message in caplog.messages] == [True] * warnings


def test_the_run_is_named_and_described_and_found_again_when_it_is_resumed(
    run_dir: Path, fake: Mock
) -> None:
    log = RunLog(run_dir, WandbConfig(mode="offline", project="p"), {"seed": 3})
    RunLog(run_dir, WandbConfig(mode="offline", run_name="mine"), {"seed": 4})
    resumed = record(run_dir, "online", wandb_run_id="abc123", resume_step=12)
    first, second, third = (call.kwargs for call in fake.init.call_args_list)
    assert (first["project"], first["dir"], first["config"]) == ("p", run_dir, {"seed": 3})
    assert (first["name"], second["name"]) == ("my-run", "mine")
    assert first["id"] == log.wandb_run_id != second["id"]
    assert third["id"] == resumed.wandb_run_id == "abc123"
    assert (first["resume"], third["resume"]) == (None, "allow")


@pytest.mark.parametrize(
    "error",
    [
        wandb.errors.CommError("no route\nto host"),
        wandb.errors.AuthenticationError("bad key"),
        wandb.errors.UsageError("bad project"),
        OSError("no network"),
        OSError(),
    ],
)
@pytest.mark.parametrize("fails", ["login", "init"])
def test_what_fails_online_is_recorded_offline(
    run_dir: Path, fake: Mock, caplog: pytest.LogCaptureFixture, error: Exception, fails: str
) -> None:
    if fails == "login":
        fake.login.side_effect = error
    else:
        refuse_to_start(fake, error, "online")
    log = record(run_dir, "auto", 2, wandb_run_id="abc")
    assert modes(fake) == (["offline"] if fails == "login" else ["online", "offline"])
    # A failed attempt still holds the run's id, which a later resumption may find online again.
    assert log.wandb_run_id == "abc"
    assert (fake.init.call_args.kwargs["id"] == "abc") == (fails == "login")
    run = [call.log({"step": 2, "loss": 0.5}, step=2), call.finish()]
    assert calls(fake) == run
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "W&B could not" in warning.getMessage()
    assert "\n" not in warning.getMessage()


def test_a_wandb_that_does_not_start_at_all_leaves_the_lines(
    run_dir: Path, fake: Mock, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_to_start(fake, wandb.errors.CommError("broken"), "online", "offline")
    record(run_dir, "online", 2)
    assert modes(fake) == ["online", "offline"]
    assert len(caplog.records) == 2
    assert read_metrics(run_dir) == [{"step": 2, "loss": 0.5}]


@pytest.mark.parametrize(
    ("mode", "warnings"), [("auto", 1), ("online", 1), ("offline", 1), ("disabled", 0)]
)
def test_where_wandb_cannot_be_imported_there_is_one_warning_and_no_run_of_it(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    warnings: int,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = record(run_dir, mode, 2, 4)
    said = [message.startswith("W&B could not be imported (") for message in caplog.messages]
    assert said == [True] * warnings
    assert log.wandb_run_id is None
    assert [path.name for path in run_dir.iterdir()] == ["metrics.jsonl"]
    assert [line["step"] for line in read_metrics(run_dir)] == [2, 4]


@pytest.mark.parametrize("steps", [(2, 4), ()], ids=["while recording", "at the end"])
@pytest.mark.parametrize(
    "error", [wandb.errors.CommError("gone"), ConnectionResetError("its process was killed")]
)
def test_a_wandb_that_breaks_down_is_reported_once_and_the_run_goes_on(
    run_dir: Path,
    fake: Mock,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    steps: tuple[int, ...],
) -> None:
    fake.init.return_value.log.side_effect = fake.init.return_value.finish.side_effect = error
    record(run_dir, "offline", *steps)
    assert [line["step"] for line in read_metrics(run_dir)] == list(steps)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("variable", "mode", "started"),
    [
        ("disabled", "auto", []),
        ("offline", "auto", ["offline"]),
        ("online", "auto", ["online"]),
        # What is said on the command line, or in a file, is meant for this run.
        ("disabled", "offline", ["offline"]),
        ("offline", "disabled", []),
    ],
)
def test_the_variable_of_wandb_is_obeyed_unless_the_configuration_says_otherwise(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake: Mock,
    variable: str,
    mode: str,
    started: list[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    record(run_dir, mode)
    assert modes(fake) == started


@pytest.mark.parametrize(("next_step", "recorded"), [(0, [2, 4, 4, 12]), (4, [4, 4, 12])])
def test_what_wandb_does_not_have_is_recorded_again_when_a_run_is_resumed(
    run_dir: Path, fake: Mock, next_step: int, recorded: list[int]
) -> None:
    """Online that may be the last steps of a process that was killed; offline it is all."""
    record(run_dir, "disabled", 2, 4, 4, 8)
    fake.init.return_value.step = next_step
    record(run_dir, "offline", 12, resume_step=4)
    calls = fake.init.return_value.log.call_args_list
    assert [call.kwargs["step"] for call in calls] == recorded
    logged = [{"step": step, "loss": 1 / step} for step in recorded]
    assert [call.args for call in calls] == [(metrics,) for metrics in logged]
    assert [line["step"] for line in read_metrics(run_dir)] == [2, 4, 4, 12]
