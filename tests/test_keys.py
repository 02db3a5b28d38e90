"""Every configuration key is read by the program that offers it: recorded while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import demo
import diagnose
import evaluate
import predict
import train_arc_tiny_corrupt
from common.settings import Settings
from config.schema import (
    DemoConfig,
    DiagnoseConfig,
    EvaluateConfig,
    OwnPuzzlesConfig,
    TrainConfig,
)
from runs import HALTING, call, run_evaluation, run_training

Read = set[tuple[str, str]]
"""Class and field of every read."""


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, read: Read) -> Iterator[None]:
    """Note each field of a config section that is read; dumping a whole section reads none."""

    def getattribute(section: Settings, name: str) -> Any:
        if name in type(section).model_fields:
            read.add((type(section).__name__, name))
        return object.__getattribute__(section, name)

    with monkeypatch.context() as patched:
        patched.setattr(Settings, "__getattribute__", getattribute, raising=False)
        yield


def watch(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, read: Read) -> None:
    """Record during `function` alone: what validators read does not count."""
    real: Callable[..., Any] = getattr(module, function)

    def watched(*arguments: Any) -> Any:
        with recorded(monkeypatch, read):
            return real(*arguments)

    monkeypatch.setattr(module, function, watched)


def leaves(schema: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation)
        else:
            yield schema.__name__, name


def test_trainer_evaluator_diagnoser_and_predictor_read_every_key(
    monkeypatch: pytest.MonkeyPatch, tiny_compact_dataset: Path, tmp_path: Path
) -> None:
    """Training from scratch, then from these weights for some epochs on windows, then with halting,
    by Muon.

    The last on another schedule. Only then do the settings of each matter. What a script's `main`
    reads before the part that is watched is given. What `diagnose.py` says of predictions is read
    from the `EvalConfig` that it makes of it.
    """
    read: Read = {("TrainConfig", "device")}
    watch(monkeypatch, train_arc_tiny_corrupt, "train", read)
    first = run_training(tiny_compact_dataset, tmp_path / "first", "train.max_steps=3")
    windows = ("train.epochs=1", "data.canvas=window", "wandb.mode=offline")
    source = (f"init_from={first}", "train.max_steps=null")
    run_training(tiny_compact_dataset, tmp_path / "second", *source, *windows)
    scheme = (*HALTING, "optim=muon", "optim.schedule=linear_tail")
    run_training(tiny_compact_dataset, tmp_path / "third", "train.max_steps=1", *scheme)
    assert set(leaves(TrainConfig)) - read == set()

    read = {("EvaluateConfig", name) for name in ("device", "checkpoint", "predictions")}
    watch(monkeypatch, evaluate, "evaluate_checkpoints", read)
    run_evaluation(tmp_path / "scored", f"checkpoint={first}", "wandb.mode=offline")
    assert set(leaves(EvaluateConfig)) - read == set()

    read = {("DiagnoseConfig", "device")}
    watch(monkeypatch, diagnose, "diagnose", read)
    output = (f"output_dir={tmp_path / 'diagnosed'}", "device=cpu", "guidance_weights=[1]")
    call(diagnose.main, f"checkpoint={first}", *output)
    read |= {("PredictConfig", name) for section, name in read if section == "EvalConfig"}
    assert set(leaves(DiagnoseConfig)) - read == set()

    read = {("OwnPuzzlesConfig", "device")}
    watch(monkeypatch, predict, "answer_puzzles", read)
    puzzles = f"puzzles={tiny_compact_dataset / 'test_puzzles.json'}"
    given = (puzzles, f"output_dir={tmp_path / 'own'}", "adapt.max_steps=3", "num_aug=1")
    call(predict.main, f"checkpoint={first}", "device=cpu", *given)
    assert set(leaves(OwnPuzzlesConfig)) - read == set()


def test_the_demo_reads_every_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its stages are only noted here, and its report is left out."""
    read: Read = set()
    monkeypatch.setattr(demo, "run", lambda *_: None)
    monkeypatch.setattr(demo, "report", lambda *_: None)
    with recorded(monkeypatch, read):
        call(demo.main, f"output_dir={tmp_path / 'out'}")
    assert set(leaves(DemoConfig)) - read == set()
