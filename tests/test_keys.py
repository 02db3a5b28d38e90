"""Every configuration key is read by the program that offers it: recorded while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from runs import HALTING, InProcess

import demo
import diagnose
import evaluate
import train_arc_tiny_corrupt
from common.settings import Settings
from config.schema import DemoConfig, DiagnoseConfig, EvaluateConfig, TrainConfig

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


def test_the_trainer_reads_every_key(
    monkeypatch: pytest.MonkeyPatch, tiny_dataset: Path, tmp_path: Path
) -> None:
    """In a run from scratch and one that starts from its weights and counts its epochs.

    The second also trains on windows and votes in rounds, and the third lets examples halt: only
    then do their settings matter.
    `device` is read by `main`, before the part that is watched.
    """
    torch.set_num_threads(1)
    read: Read = {("TrainConfig", "device")}
    watch(monkeypatch, train_arc_tiny_corrupt, "train", read)
    scripts = InProcess(monkeypatch)
    first = scripts.train(tiny_dataset, tmp_path / "first", "train.max_steps=3")
    scripts.train(
        tiny_dataset,
        tmp_path / "second",
        f"init_from={first}",
        "train.max_steps=null",
        "train.epochs=1",
        "data.canvas=window",
        "eval.voting=sequential",
        "wandb.mode=offline",
    )
    scripts.train(tiny_dataset, tmp_path / "third", "train.max_steps=1", *HALTING)
    assert set(leaves(TrainConfig)) - read == set()


def test_the_evaluator_reads_every_key(
    monkeypatch: pytest.MonkeyPatch, tiny_dataset: Path, tmp_path: Path
) -> None:
    scripts = InProcess(monkeypatch)
    run_dir = scripts.train(tiny_dataset, tmp_path / "run", "train.max_steps=3")
    read: Read = {("EvaluateConfig", name) for name in ("device", "checkpoint", "predictions")}
    watch(monkeypatch, evaluate, "evaluate_checkpoints", read)
    scripts.evaluate(tmp_path / "out", f"checkpoint={run_dir}", "eval.voting=sequential")
    assert set(leaves(EvaluateConfig)) - read == set()


def test_the_diagnoser_reads_every_key(
    monkeypatch: pytest.MonkeyPatch, tiny_dataset: Path, tmp_path: Path
) -> None:
    """What it says of predictions is read from the `EvalConfig` that it makes of it."""
    run_dir = InProcess(monkeypatch).train(tiny_dataset, tmp_path / "run", "train.max_steps=3")
    read: Read = {("DiagnoseConfig", "device")}
    watch(monkeypatch, diagnose, "diagnose", read)
    arguments = [f"checkpoint={run_dir}", f"output_dir={tmp_path / 'out'}", "device=cpu"]
    monkeypatch.setattr("sys.argv", ["diagnose.py", *arguments, "guidance_weights=[1]"])
    diagnose.main()
    read |= {("PredictConfig", name) for section, name in read if section == "EvalConfig"}
    assert set(leaves(DiagnoseConfig)) - read == set()


def test_the_demo_reads_every_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its stages are only noted here, and its report is left out."""
    read: Read = set()
    monkeypatch.setattr(demo, "run", lambda *_: None)
    monkeypatch.setattr(demo, "report", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["demo.py", f"output_dir={tmp_path / 'out'}"])
    with recorded(monkeypatch, read):
        demo.main()
    assert set(leaves(DemoConfig)) - read == set()
