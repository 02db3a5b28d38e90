"""The run's log: lines on disk whatever happens, and a W&B that never stops a run."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import wandb

from training.run_log import NoLog, RunLog, WandbConfig

QUIET = WandbConfig(mode="disabled", project="test", run_name=None)


class FakeRun:
    """What `wandb.init` returns, as far as the log uses it."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False
        self.error: Exception | None = None

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self.error is not None:
            raise self.error
        self.logged.append((step, metrics))

    def finish(self) -> None:
        if self.error is not None:
            raise self.error
        self.finished = True


class FakeWandb:
    """Stands in for `wandb.login` and `wandb.init`: remembers calls, and fails in given modes."""

    def __init__(self) -> None:
        self.logged_in: bool | Exception = True
        self.logins: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.failures: dict[str, Exception] = {}
        self.run = FakeRun()

    def login(self, **options: Any) -> bool:
        self.logins.append(options)
        if isinstance(self.logged_in, Exception):
            raise self.logged_in
        return self.logged_in

    def init(self, **options: Any) -> FakeRun:
        self.calls.append(options)
        if options["mode"] in self.failures:
            raise self.failures[options["mode"]]
        return self.run

    @property
    def modes(self) -> list[str]:
        return [call["mode"] for call in self.calls]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setattr(wandb, "init", fake.init)
    monkeypatch.setattr(wandb, "login", fake.login)
    return fake


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder: no login, no settings."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "my-run"
    path.mkdir()
    return path


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_every_write_is_one_line_at_once(run_dir: Path) -> None:
    log = RunLog(run_dir, QUIET, {})
    log.write(6, {"train/loss": 1.5})
    assert lines_of(run_dir) == [{"step": 6, "train/loss": 1.5}], "before the log is closed"
    log.write(12, {"train/loss": 1.25, "eval/pass@2": 0.5})
    log.close()
    assert lines_of(run_dir)[1:] == [{"step": 12, "train/loss": 1.25, "eval/pass@2": 0.5}]


def test_a_resumed_run_forgets_what_was_recorded_after_its_checkpoint(run_dir: Path) -> None:
    first = RunLog(run_dir, QUIET, {})
    for step in (6, 12, 18):
        first.write(step, {"loss": float(step)})
    first.write(12, {"eval/pass@1": 0.5})  # An evaluation has a line of its own.
    first.close()
    resumed = RunLog(run_dir, QUIET, {}, resume_step=12)
    resumed.write(18, {"loss": -1.0})
    resumed.close()
    assert lines_of(run_dir) == [
        {"step": 6, "loss": 6.0},
        {"step": 12, "loss": 12.0},
        {"step": 12, "eval/pass@1": 0.5},
        {"step": 18, "loss": -1.0},
    ]


@pytest.mark.parametrize("cut", ["", "{", '{"step": 18, "lo', '{"step": 18'])
def test_a_last_line_cut_short_is_dropped(run_dir: Path, cut: str) -> None:
    (run_dir / "metrics.jsonl").write_text('{"step": 6, "loss": 1.0}\n' + cut)
    log = RunLog(run_dir, QUIET, {}, resume_step=600)
    log.write(12, {"loss": 0.5})
    log.close()
    assert lines_of(run_dir) == [{"step": 6, "loss": 1.0}, {"step": 12, "loss": 0.5}]


def test_a_run_started_anew_in_its_folder_starts_an_empty_log(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text('{"step": 6, "loss": 1.0}\n')
    RunLog(run_dir, QUIET, {}).close()
    assert lines_of(run_dir) == []


@pytest.mark.usefixtures("home")
def test_offline_really_records_a_run_on_disk(run_dir: Path) -> None:
    log = RunLog(run_dir, WandbConfig(mode="offline", project="test", run_name=None), {"seed": 3})
    log.write(6, {"train/loss": 1.5})
    log.close()
    (recorded,) = (run_dir / "wandb").glob("offline-run-*")
    assert log.wandb_run_id is not None
    file = recorded / f"run-{log.wandb_run_id}.wandb"
    # The service process writes it after it has said that the run is finished.
    deadline = time.monotonic() + 20
    while b"train/loss" not in file.read_bytes():
        assert time.monotonic() < deadline, "nothing was recorded"
        time.sleep(0.05)
    assert lines_of(run_dir) == [{"step": 6, "train/loss": 1.5}]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_login_nobody_is_asked_for_one(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def asked(*_: object, **__: object) -> None:
        pytest.fail("W&B asked for a login")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("getpass.getpass", asked)
    log = RunLog(
        run_dir, WandbConfig.model_validate({"mode": mode, "project": "p", "run_name": None}), {}
    )
    log.close()
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("mode", "logged_in", "started"),
    [
        ("auto", True, "online"),
        ("auto", False, "offline"),
        ("online", True, "online"),
        ("online", False, "offline"),
        ("offline", True, "offline"),
    ],
)
def test_runs_are_online_where_there_is_a_login_and_it_is_wanted(
    run_dir: Path, fake: FakeWandb, mode: str, logged_in: bool, started: str
) -> None:
    fake.logged_in = logged_in
    config = WandbConfig.model_validate({"mode": mode, "project": "p", "run_name": None})
    RunLog(run_dir, config, {}).close()
    assert fake.modes == [started]
    assert all(options["prompt"] is False for options in fake.logins)
    assert len(fake.logins) == (mode != "offline")


def test_online_without_a_login_is_told_to_the_user(
    run_dir: Path, fake: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    fake.logged_in = False
    RunLog(run_dir, WandbConfig(mode="auto", project="test", run_name=None), {}).close()
    assert caplog.records == [], "auto is content with either"
    RunLog(run_dir, WandbConfig(mode="online", project="test", run_name=None), {}).close()
    (record,) = caplog.records
    assert "no login" in record.getMessage()


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
    run_dir: Path,
    fake: FakeWandb,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    fails: str,
) -> None:
    if fails == "login":
        fake.logged_in = error
    else:
        fake.failures = {"online": error}
    log = RunLog(
        run_dir, WandbConfig(mode="auto", project="test", run_name=None), {}, wandb_run_id="abc"
    )
    log.write(6, {"loss": 1.0})
    log.close()
    assert fake.modes == (["offline"] if fails == "login" else ["online", "offline"])
    # A failed attempt still holds the run's id, which a later resumption may find online again.
    assert log.wandb_run_id == "abc"
    assert (fake.calls[-1]["id"] == "abc") == (fails == "login")
    assert fake.run.logged == [(6, {"loss": 1.0})]
    assert fake.run.finished
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "W&B could not" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_wandb_that_does_not_start_at_all_leaves_the_lines(
    run_dir: Path, fake: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    error = wandb.errors.CommError("broken")
    fake.failures = {"online": error, "offline": error}
    log = RunLog(run_dir, WandbConfig(mode="online", project="test", run_name=None), {})
    log.write(6, {"loss": 1.0})
    log.close()
    assert fake.modes == ["online", "offline"]
    assert len(caplog.records) == 2
    assert lines_of(run_dir) == [{"step": 6, "loss": 1.0}]


@pytest.mark.parametrize(
    "error", [wandb.errors.CommError("gone"), ConnectionResetError("its process was killed")]
)
def test_a_wandb_that_breaks_down_is_reported_once_and_the_run_goes_on(
    run_dir: Path, fake: FakeWandb, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    log = RunLog(run_dir, WandbConfig(mode="offline", project="test", run_name=None), {})
    fake.run.error = error
    log.write(6, {"loss": 1.0})
    log.write(12, {"loss": 0.5})
    log.close()
    assert [line["step"] for line in lines_of(run_dir)] == [6, 12]
    assert len(caplog.records) == 1


def test_a_wandb_that_cannot_finish_does_not_fail_the_run(
    run_dir: Path, fake: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog(run_dir, WandbConfig(mode="offline", project="test", run_name=None), {})
    fake.run.error = ConnectionResetError("its process was killed")
    log.close()
    assert len(caplog.records) == 1


def test_disabled_never_starts_wandb(run_dir: Path, fake: FakeWandb) -> None:
    log = RunLog(run_dir, QUIET, {})
    log.write(6, {"loss": 1.0})
    log.close()
    assert fake.calls == []
    assert log.wandb_run_id is None
    assert not (run_dir / "wandb").exists()


def test_the_run_is_named_and_described(run_dir: Path, fake: FakeWandb) -> None:
    log = RunLog(run_dir, WandbConfig(mode="offline", project="p", run_name=None), {"seed": 3})
    RunLog(run_dir, WandbConfig(mode="offline", project="p", run_name="mine"), {"seed": 4})
    first, second = fake.calls
    assert (first["project"], first["dir"], first["config"]) == ("p", run_dir, {"seed": 3})
    assert (first["name"], second["name"]) == ("my-run", "mine")
    assert first["id"] == log.wandb_run_id
    assert first["id"] != second["id"]


def test_a_resumed_run_goes_on_with_its_wandb_run(run_dir: Path, fake: FakeWandb) -> None:
    config = WandbConfig(mode="online", project="p", run_name=None)
    log = RunLog(run_dir, config, {}, resume_step=12, wandb_run_id="abc123")
    assert log.wandb_run_id == "abc123"
    (call,) = fake.calls
    assert (call["id"], call["resume"]) == ("abc123", "allow")


def test_the_log_of_the_other_ranks_does_nothing(tmp_path: Path) -> None:
    log = NoLog()
    log.write(6, {"loss": 1.0})
    log.close()
    assert log.wandb_run_id is None
    assert list(tmp_path.iterdir()) == []
