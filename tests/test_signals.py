"""Signals end a training run with a checkpoint, from which it goes on as if nothing had been."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train_arc_tiny_corrupt
from common.distributed import Ranks
from conftest import REPOSITORY
from runs import checkpoint_tensors, read_metrics, run_training, torchrun_command, train_arguments
from training.engine import Engine
from training.run_folder import complete_checkpoints, step_of
from training.scores import read_score
from training.signals import Interrupted, Request, SignalRequests

ALONE = Ranks(0, 1, torch.device("cpu"))


def saved_in(run_dir: Path) -> list[int]:
    return [step_of(path) for path in complete_checkpoints(run_dir / "checkpoints")]


def lines(run_dir: Path) -> list[tuple[int, bool]]:
    """Steps of the log, and whether each is an evaluation's."""
    return [(line["step"], "eval/pass@2" in line) for line in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A run of 12 steps, of which three are a batch, evaluated at 6 and 12. Read-only."""
    return run_training(tiny_dataset, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def resumed_is_whole(tiny_dataset: Path, whole: Path) -> Callable[[Path], None]:
    """Go on with a run, which must then be as if nothing had been."""

    def check(run_dir: Path) -> None:
        run_training(tiny_dataset, run_dir, "resume=auto")
        assert lines(run_dir) == lines(whole)
        last = "checkpoints/step_00000012"
        ours, theirs = checkpoint_tensors(run_dir / last), checkpoint_tensors(whole / last)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert read_score(run_dir / last) == read_score(whole / last)

    return check


@pytest.fixture
def send_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Have a signal come while an optimizer step is taken."""

    def arrange(number: int, at: int) -> None:
        real = Engine.step

        def step(engine: Engine, lr_factor: float) -> None:
            if engine.state.step == at:
                os.kill(os.getpid(), number)
            real(engine, lr_factor)

        monkeypatch.setattr(Engine, "step", step)

    return arrange


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_run_that_is_told_to_end_saves_at_the_end_of_the_batch_and_goes_on_bit_for_bit(
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    send_at: Callable[[int, int], None],
    resumed_is_whole: Callable[[Path], None],
    name: str,
) -> None:
    before = signal.getsignal(getattr(signal, name))
    send_at(getattr(signal, name), 7)
    with caplog.at_level("INFO"):
        run_dir = run_training(tiny_dataset, tmp_path / "run")
    assert saved_in(run_dir) == [6, 9]
    assert "Stopped at step 9; the same command with resume=auto goes on" in caplog.messages
    assert signal.getsignal(getattr(signal, name)) == before
    monkeypatch.undo()
    resumed_is_whole(run_dir)


def test_a_warning_saves_and_training_goes_on(
    tiny_dataset: Path, tmp_path: Path, send_at: Callable[[int, int], None]
) -> None:
    send_at(signal.SIGUSR1, 7)
    run_dir = run_training(tiny_dataset, tmp_path / "run")
    assert saved_in(run_dir) == [6, 9, 12]


def test_before_a_first_batch_there_is_nothing_to_save(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run ends while it compiles, which may take longer than it is given."""

    def prepare(engine: Engine) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(Engine, "prepare", prepare)
    run_dir = run_training(tiny_dataset, tmp_path / "run")
    assert saved_in(run_dir) == []


@pytest.mark.parametrize("failure", ["told to end", "crash"])
@pytest.mark.parametrize("at", [6, 12])
def test_an_evaluation_that_does_not_come_to_its_end_costs_nothing(
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resumed_is_whole: Callable[[Path], None],
    failure: str,
    at: int,
) -> None:
    """The step is saved before it, and the resumed run makes up for it."""
    real = train_arc_tiny_corrupt.predict

    def predict(trained: Any, *arguments: Any) -> Any:
        if len(read_metrics(tmp_path / "run")) < (2 if at == 6 else 5):
            return real(trained, *arguments)
        if failure == "crash":
            raise RuntimeError("out of memory")
        os.kill(os.getpid(), signal.SIGTERM)
        return time.sleep(60)

    monkeypatch.setattr(train_arc_tiny_corrupt, "predict", predict)
    if failure == "crash":
        with pytest.raises(RuntimeError, match="out of memory"):
            run_training(tiny_dataset, tmp_path / "run")
    else:
        run_training(tiny_dataset, tmp_path / "run")
    *_, newest = complete_checkpoints(tmp_path / "run" / "checkpoints")
    assert step_of(newest) == at
    assert read_score(newest) is None
    monkeypatch.undo()
    resumed_is_whole(tmp_path / "run")


def test_a_score_that_was_not_recorded_any_more_is_recorded_by_the_resumed_run(
    whole: Path, tmp_path: Path, resumed_is_whole: Callable[[Path], None]
) -> None:
    """The process was killed between the two; or it was not, and the line is there once."""
    for name, cut in (("cut", True), ("uncut", False)):
        run_dir = shutil.copytree(whole, tmp_path / name)
        log = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run_dir / "metrics.jsonl").write_text("".join(log[:-1] if cut else log))
        resumed_is_whole(run_dir)


REPEATED = """
import os, signal, sys, time, torch
from common.distributed import Ranks
from training import signals

signals.ECHO_SECONDS = float(sys.argv[1])
with signals.SignalRequests(Ranks(0, 1, torch.device("cpu"))) as requests:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    print(requests.agreed().name)
"""


@pytest.mark.parametrize(("echo", "code", "said"), [(60, 0, "STOP\n"), (0, -signal.SIGTERM, "")])
def test_a_second_signal_ends_at_once_unless_it_is_an_echo_of_the_first(
    echo: float, code: int, said: str
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", REPEATED, str(echo)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stdout) == (code, said), process.stderr


def test_requests_are_kept_until_they_are_asked_for_and_a_warning_is_over_then() -> None:
    with SignalRequests(ALONE) as requests:
        assert requests.agreed() is Request.NOTHING
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [requests.agreed(), requests.agreed()] == [Request.SAVE, Request.NOTHING]
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [requests.agreed(), requests.agreed()] == [Request.STOP, Request.STOP]


def test_a_rank_that_waits_for_one_that_has_ended_ends_as_well() -> None:
    """If it was told to; otherwise what the other's end looks like is an error."""
    with SignalRequests(ALONE) as requests:

        def wait(told: bool) -> None:
            with requests.interruptible():
                if told:
                    # The handler runs when the call that waits returns.
                    requests._noted = Request.STOP
                raise RuntimeError("closed by peer")

        with pytest.raises(RuntimeError, match="closed by peer"):
            wait(told=False)
        with pytest.raises(Interrupted):
            wait(told=True)


def wait_for(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_there():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_all_ranks_save_when_the_launcher_is_told_to_end(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """torchrun hands SIGTERM on, and kills its workers half a minute later."""
    run_dir = tmp_path / "run"
    arguments = train_arguments(
        tiny_dataset, run_dir, "train.max_steps=1000000", "train.eval_every=null",
        "train.checkpoint_every=1000000",
    )  # fmt: skip
    process = subprocess.Popen(
        torchrun_command(2, "train_arc_tiny_corrupt.py", *arguments), cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        metrics = run_dir / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and bool(metrics.read_text()))
        process.terminate()
        told = time.monotonic()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - told < 20, output
    (step,) = saved_in(run_dir)
    assert f"Stopped at step {step}; the same command with resume=auto goes on" in output
    assert 'train_arc_tiny_corrupt.py", line' not in output, "no traceback of a rank"


def test_a_builder_that_is_told_to_end_leaves_nothing_half_written(
    kaggle_prefix: str, tmp_path: Path
) -> None:
    """Nor a traceback of its workers."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "dataset.build_arc_dataset", "--input-file-prefix", kaggle_prefix,
            "--output-dir", str(tmp_path / "out"), "--subsets", "training", "evaluation",
            "--test-set-name", "evaluation", "--num-aug", "100000", "--workers", "2",
        ],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_for(lambda: any(tmp_path.glob("out.*.partial")))
        process.terminate()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [(), ("--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0")],
    ids=["default rendezvous", "c10d"],
)
def test_ranks_that_the_launcher_starts_again_go_on(
    tiny_dataset: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """From the newest checkpoint, when one of them was killed."""
    run_dir = tmp_path / "run"
    arguments = train_arguments(
        tiny_dataset, run_dir, "train.max_steps=300", "train.eval_every=null", "resume=auto"
    )
    process = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
            "--max_restarts=1", *flags, "train_arc_tiny_corrupt.py", *arguments,
        ],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_for(lambda: bool(saved_in(run_dir)))
        os.kill(rank_of(process.pid, "1"), signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "Resumed from " in output
    assert saved_in(run_dir)[-1] == 300


@pytest.mark.long
def test_two_nodes_train_together(tiny_dataset: Path, tmp_path: Path) -> None:
    """Two agents on the loopback, a rank each, as on two machines that share a disk."""
    run_dir = tmp_path / "run"
    arguments = train_arguments(tiny_dataset, run_dir, "train.eval_every=null", "resume=auto")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    agents = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
                "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}", "--rdzv_id=test",
                "train_arc_tiny_corrupt.py", *arguments,
            ],
            cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        outputs = [agent.communicate(timeout=200)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum("Done: " in output for output in outputs) == 1, "the main rank alone speaks"
    assert saved_in(run_dir)[-1] == 12


def rank_of(launcher: int, rank: str) -> int:
    """The process of a rank among the children of a launcher."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise AssertionError(f"there is no rank {rank}")
