"""Workers are spawned, as many as there are CPUs by default, and outlive nobody."""

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing import util
from typing import Any

import pytest

from common.errors import UserError
from common.processes import num_cpus, worker_processes
from conftest import REPOSITORY

# One worker is at work and another waits for some.
COMMAND = """
import os, time
from common.processes import worker_processes

with worker_processes(2) as workers:
    workers.submit(time.sleep, 600)
    print(workers.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_cpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert num_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert num_cpus() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_cpus() == 1


def test_work_is_done_in_processes_that_are_no_copies_of_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What this process has patched, a fork would have too."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(10**6), raising=False)
    assert num_cpus() == 10**6
    with worker_processes(1) as workers:
        assert workers.submit(os.getpid).result() != os.getpid()
        assert workers.submit(num_cpus).result() < 10**6


def test_without_workers_the_work_is_done_in_this_process() -> None:
    with worker_processes(0) as workers:
        assert workers.submit(os.getpid).result() == os.getpid()


def test_workers_end_when_their_parent_is_killed() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND], cwd=REPOSITORY, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert int(process.stdout.readline()) != process.pid
        process.kill()
        # The workers have the pipe too: it is at its end when the last of them is gone.
        process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_worker_that_is_killed_is_a_mistake_that_is_named() -> None:
    with pytest.raises(UserError, match="try fewer --workers"), worker_processes(1) as workers:
        workers.submit(_kill_myself).result()


def _kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_signal_waits_until_a_process_has_started(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Between its two halves, when it is there and waits to be told what to do."""
    real, started = util.spawnv_passfds, list[int]()

    def interrupted(*arguments: Any) -> int:
        started.append(real(*arguments))
        signal.raise_signal(signal.SIGTERM)
        return started[-1]

    def end(number: int, _: Any) -> None:
        raise SystemExit(number)

    monkeypatch.setattr(util, "spawnv_passfds", interrupted)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit), worker_processes(1) as workers:
            workers.submit(os.getpid)
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    for process in started:
        with contextlib.suppress(ChildProcessError):  # Else it was waited for.
            os.waitpid(process, 0)
    assert "Traceback" not in capfd.readouterr().err
