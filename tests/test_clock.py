"""Runs that are measured by time: with a clock that moves on as a test says."""

import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

import train_arc_tiny_corrupt
from arc_oracles import contents
from runs import checkpoint_tensors, read_metrics, run_training, torchrun, train_arguments
from tiny import ALONE
from training import checkpoints, clock
from training.clock import Clock
from training.engine import Engine
from training.metrics import is_of_the_machine
from training.run_folder import complete_checkpoints
from training.state import TrainingState

# ---- the clock itself ----


class TwoRanks:
    """One of two ranks, which is told what time it is on the other: 50 s more at every reading."""

    def __init__(self) -> None:
        self.told = count(0, 50)

    def from_main(self, read: Callable[[], float]) -> float:
        return next(self.told)


def at_times(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    monkeypatch.setattr(clock, "perf_counter", iter(seconds).__next__)


def test_laps_leave_out_pauses_and_what_was_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_times(monkeypatch, 100, 130, 135, 136, 156, 160, 180, 200, 300, 301)
    timer = Clock(ALONE, is_shared=False)
    assert timer.lap() == 0
    assert timer.lap() == 5
    with timer.paused():  # From 136 to 156.
        pass
    with timer.paused():  # From 160 to 180.
        pass
    assert timer.lap() == 200 - 135 - 20 - 20
    assert timer.lap() == 100
    assert timer.lap() == 1


def test_how_long_a_process_has_been_at_work_includes_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the end of the last lap: what is read in a pause decides nothing."""
    at_times(monkeypatch, 100, 159, 160, 200, 219, 220)
    timer = Clock(ALONE, is_shared=False)
    timer.lap()
    assert not timer.is_past(1)
    timer.lap()
    assert timer.is_past(1)
    with timer.paused():
        pass
    assert not timer.is_past(1.1)
    timer.lap()
    assert timer.is_past(2)
    assert not timer.is_past(2.01)
    assert not timer.is_past(None)


@pytest.mark.parametrize(("is_shared", "laps"), [(True, [0, 50, 50]), (False, [0, 7, 7])])
def test_ranks_go_by_the_main_ranks_time_where_it_matters_and_else_do_not_ask(
    monkeypatch: pytest.MonkeyPatch, is_shared: bool, laps: list[float]
) -> None:
    at_times(monkeypatch, *range(0, 70, 7))
    ranks: Any = TwoRanks()
    timer = Clock(ranks, is_shared)
    assert [timer.lap() for _ in range(3)] == laps
    with timer.paused():
        pass
    assert timer.lap() == 2 * laps[-1]
    assert next(ranks.told) == (350 if is_shared else 0), "seven readings"


# ---- runs ----


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that each part of a run takes, to be changed; the clock moves on for nothing else."""
    parts: list[tuple[Any, str, float]] = [
        (train_arc_tiny_corrupt, "open_batches", 30),
        (Engine, "prepare", 0),
        (Engine, "begin", 60),
        (train_arc_tiny_corrupt, "report_metrics", 0),
        (train_arc_tiny_corrupt, "evaluate", 1000),
        (TrainingState, "save", 10_000),
    ]
    seconds = {name: took for _, name, took in parts}
    now = [1000.0]
    monkeypatch.setattr(clock, "perf_counter", lambda: now[0])
    for owner, name, _ in parts:
        monkeypatch.setattr(owner, name, timed(name, getattr(owner, name), seconds, now))
    return seconds


def timed(
    name: str, real: Callable[..., Any], seconds: dict[str, float], now: list[float]
) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        now[0] += seconds[name]
        return real(*arguments)

    return call


def newest(run_dir: Path) -> Path:
    return complete_checkpoints(run_dir / "checkpoints")[-1]


def column(run_dir: Path, name: str) -> dict[int, float]:
    """A metric by step."""
    return {line["step"]: line[name] for line in read_metrics(run_dir) if name in line}


def lasting(run_dir: Path) -> list[dict[str, float]]:
    """The metrics that do not depend on the machine."""
    return [
        {k: v for k, v in line.items() if k == "minutes" or not is_of_the_machine(k)}
        for line in read_metrics(run_dir)
    ]


def require_same_end(one: Path, other: Path) -> None:
    """Of two runs, bit for bit: weights, optimizers and their rates, place in the data, metrics."""
    tensors, others = (checkpoint_tensors(newest(run_dir)) for run_dir in (one, other))
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    states = [checkpoints.load_training_state(newest(run_dir)) for run_dir in (one, other)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert lasting(one) == lasting(other)


LINE = ("optim.schedule=linear_tail", "optim.tail_share=1")
"""From the peak to 0 over the whole run."""


def test_a_run_ends_at_the_end_of_the_batch_that_reaches_its_minutes(
    tiny_dataset: Path, tmp_path: Path, takes: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    """Scored and saved; only batches count, and what is compiled for them; rates follow."""
    takes["prepare"] = 60.0
    given = ("train.max_minutes=3.2", "train.max_steps=300", *LINE, "resume=auto")
    with caplog.at_level("INFO"):
        run_dir = run_training(tiny_dataset, tmp_path / "run", *given)
    assert "300 steps or 3.2 minutes, whichever is first" in caplog.text
    assert column(run_dir, "minutes") == {3: 2, 6: 3, 9: 4}
    assert list(column(run_dir, "eval/pass@2")) == [6, 9]
    # Of what comes next: 1 - 2 / 3.2, 1 - 3 / 3.2, none.
    rates = list(column(run_dir, "train/lr").values())
    assert rates == pytest.approx([0.375e-4, 0.0625e-4, 0])
    assert newest(run_dir).name == "step_00000009"
    before = contents(run_dir)
    run_training(tiny_dataset, run_dir, *given)
    assert contents(run_dir) == before, "a run that has ended stays"


@pytest.mark.parametrize(
    "steps", [("train.max_steps=6",), ("train.max_steps=null", "train.epochs=5")]
)
def test_steps_end_a_run_that_has_minutes_left(
    tiny_dataset: Path, tmp_path: Path, takes: dict[str, float], steps: tuple[str, ...]
) -> None:
    """Its rates are those of a run without a limit of time, as steps are always further."""
    runs = [tmp_path / "timed", tmp_path / "free"]
    for run_dir, minutes in zip(runs, ("1000", "null"), strict=True):
        limit = f"train.max_minutes={minutes}"
        run_training(tiny_dataset, run_dir, limit, *steps, *LINE, "optim.warmup_steps=0")
    require_same_end(*runs)
    assert column(runs[0], "minutes").keys() > {3}


@pytest.mark.parametrize(
    ("length", "num_batches"),
    [
        (("optim.lr_min_ratio=0.1",), 4),
        # At the end of a batch that takes a minute.
        (("train.max_minutes=4.5", "train.max_steps=300", *LINE), 5),
        (("train.max_minutes=4.5", "train.max_steps=300", "optim.lr_min_ratio=0.1"), 5),
    ],
    ids=["steps", "minutes, linear", "minutes, cosine"],
)
@pytest.mark.parametrize(("batches", "minutes"), [(1, 0.1), (2, 2.5)])
def test_a_run_in_pieces_is_the_whole_run_bit_for_bit(
    tiny_dataset: Path,
    tmp_path: Path,
    takes: dict[str, float],
    caplog: pytest.LogCaptureFixture,
    length: tuple[str, ...],
    num_batches: int,
    batches: int,
    minutes: float,
) -> None:
    """Of one batch, though the time is up before it begins; or of two.

    Metrics wait for the device, also those at the end of a piece.
    """
    takes.update(validate=0.0, save=0.0, report_metrics=5.0)
    whole = run_training(tiny_dataset, tmp_path / "whole", *length)
    stop = f"train.stop_after_minutes={minutes}"
    run_dir = tmp_path / "pieces"
    with caplog.at_level("INFO"):
        caplog.clear()
        for piece in range(math.ceil(num_batches / batches)):
            torch.manual_seed(piece)  # The state of a process must not matter.
            run_training(tiny_dataset, run_dir, *length, stop, "resume=auto")
    said = [line for line in caplog.messages if line.startswith(("Stopped", "Done"))]
    steps = range(3 * batches, 3 * num_batches, 3 * batches)
    goes_on = "the same command with resume=auto goes on"
    assert said == [*(f"Stopped at step {s}; {goes_on}" for s in steps), f"Done: {run_dir}"]
    require_same_end(whole, run_dir)


def test_a_piece_is_as_long_as_all_that_its_process_does(
    tiny_dataset: Path, tmp_path: Path, takes: dict[str, float]
) -> None:
    """Set-up, checkpoints and evaluations too: only one that is due is made, and it is saved."""
    takes.update(begin=10.0, validate=100.0, save=100.0)
    # Set-up and three batches take 60 s; with a checkpoint and one more it is 170 s, of 150.
    given = ("train.checkpoint_every=9", "train.max_steps=300", "train.stop_after_minutes=2.5")
    run_dir = run_training(tiny_dataset, tmp_path / "run", *given, "train.eval_every=30")
    assert list(column(run_dir, "minutes").values()) == pytest.approx([1 / 6, 1 / 3, 0.5, 2 / 3])
    assert newest(run_dir).name == "step_00000012"
    assert not column(run_dir, "eval/pass@2")
    other = run_training(tiny_dataset, tmp_path / "other", *given, "train.eval_every=12")
    assert list(column(other, "eval/pass@2")) == [12]


@pytest.mark.parametrize(("minutes", "is_said"), [("null", False), ("2", True)])
def test_a_checkpoint_that_knows_no_time_starts_at_0(
    tiny_dataset: Path,
    tmp_path: Path,
    takes: dict[str, float],
    caplog: pytest.LogCaptureFixture,
    minutes: str,
    is_said: bool,
) -> None:
    """What earlier versions wrote; it is said where it matters."""
    run_dir = run_training(tiny_dataset, tmp_path / "run", "train.max_steps=6")
    before = newest(run_dir)
    state = checkpoints.load_training_state(before)
    assert state.pop("seconds") == 120
    torch.save(state, before / "training_state.pt")
    with caplog.at_level("INFO"):
        given = (f"train.max_minutes={minutes}", "train.max_steps=12", "resume=auto")
        run_training(tiny_dataset, run_dir, *given)
    said = f"{before} is of an earlier version: train.max_minutes counts from here"
    assert (said in caplog.messages) == is_said
    trained = [line["minutes"] for line in read_metrics(run_dir) if "train/loss" in line]
    assert trained == [1, 2, 1, 2]


# ---- processes ----


def test_a_piece_exits_with_0_and_says_how_to_go_on(
    tiny_dataset: Path, tmp_path: Path, run_command: Callable[..., CompletedProcess[str]]
) -> None:
    """The command line of each piece is the same; the last one ends the run."""
    stop = ("train.max_steps=6", "train.stop_after_minutes=0.001", "resume=auto")
    arguments = train_arguments(tiny_dataset, tmp_path / "run", *stop)
    said = []
    for _ in range(2):
        process = run_command("train_arc_tiny_corrupt.py", *arguments)
        assert process.returncode == 0, process.stderr
        said.append(process.stderr)
    assert "Stopped at step 3; the same command with resume=auto goes on" in said[0]
    assert "step_00000003 at step 3" in said[1]
    assert "Done: " in said[1]
    assert list(column(tmp_path / "run", "eval/pass@2")) == [6]


PROGRAM = """
import os, itertools, train_arc_tiny_corrupt
from training import clock

clock.perf_counter = itertools.count(0, 3600 if os.environ["RANK"] == "1" else 1).__next__
train_arc_tiny_corrupt.main()
"""


def test_ranks_whose_clocks_differ_stop_and_end_together(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second a reading on the main rank, an hour on the other: as one rank by the first.

    A lap ends with every batch, and another one when metrics were read.
    """
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    given = ("train.max_minutes=0.1", "train.max_steps=300", *LINE, "train.eval_every=null")
    pieces = (("train.stop_after_minutes=0.08",), ("resume=auto",))
    alone, together = tmp_path / "alone", tmp_path / "together"
    for piece in pieces:
        process = torchrun(
            2, str(program), *train_arguments(tiny_dataset, together, *given, *piece)
        )
        assert process.returncode == 0, process.stderr
        monkeypatch.setattr(clock, "perf_counter", count(0, 1).__next__)
        run_training(tiny_dataset, alone, *given, *piece)
    for name in ("minutes", "train/lr"):
        assert column(together, name) == column(alone, name)
    # Stopped 5 s after the start, when 1 + 1 + 1 s are counted; the second piece counts three more.
    minutes = {3: 1 / 60, 6: 3 / 60, 9: 6 / 60}
    assert column(together, "minutes") == pytest.approx(minutes)
    assert len(checkpoints.load_training_state(newest(together))["rng_states"]) == 2
    found = checkpoint_tensors(newest(together))
    for name, tensor in checkpoint_tensors(newest(alone)).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
