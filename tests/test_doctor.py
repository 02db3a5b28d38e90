"""What the doctor says of machines that lack something, and what it lets one run next."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor import cpp_builder, exc

from conftest import REPOSITORY
from doctor import checks, cost, facts
from doctor.__main__ import DEFAULT_DATA
from doctor.checks import CHECKS, Finding, run_check

GPU = torch.device("cuda", 0)
NO_DATA = Path("no/such/dataset")


def found(name: str, data: Path = NO_DATA) -> Finding:
    (finding,) = run_check(CHECKS[name], data)
    return finding


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, free: float = 80e9, count: int = 1) -> None:
    """As far as the checks can tell; nothing can be computed there."""
    for module in (checks, cost, facts):
        monkeypatch.setattr(module, "device_here", lambda: GPU, raising=False)
    monkeypatch.setattr(checks, "driver_version", lambda: "580.65")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(free), int(143e9)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr("models.flops.matmul_peak", lambda *_: 790e12)


def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checks, cost, facts):
        monkeypatch.setattr(module, "device_here", lambda: torch.device("cpu"), raising=False)
    monkeypatch.setattr("models.flops.matmul_peak", lambda *_: 0.2e12)


# ---- packages ----


def run_without(package: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['doctor']; "
        "runpy.run_module('doctor', run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("package", ["torch", "pydantic", "tqdm"])
def test_without_a_package_that_training_needs_it_still_runs_and_says_so(package: str) -> None:
    process = run_without(package)
    assert process.returncode == 1, process.stderr
    assert f"FAIL  packages   {package} cannot be imported (ModuleNotFoundError" in process.stdout
    assert f"-> pip install {package}==" in process.stdout
    assert "not checked: import of" in process.stdout
    assert process.stdout.endswith("Next: mend what is marked FAIL, then python -m doctor\n")
    assert not process.stderr


def test_without_wandb_a_run_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    missing, others = run_check(CHECKS["packages"], NO_DATA)
    assert missing.sign == "note" and "metrics.jsonl alone" in missing.text
    assert missing.remedy.startswith("pip install wandb==")
    assert others.sign == "ok"
    assert found("W&B").text.startswith("not checked: import of wandb halted")


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1.26.0", "torch": "2.11.1+cu130"}
    real = checks.metadata.version
    monkeypatch.setattr(checks.metadata, "version", lambda name: versions.get(name) or real(name))
    finding = found("packages")
    assert finding.sign == "note" and "numpy 1.26.0 (tested: " in finding.text
    assert "torch" not in finding.text, "several of its versions were tested"


# ---- device, attention, compiler ----


def test_a_gpu_is_told_with_its_driver_and_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, count=4)
    finding = found("device")
    assert finding.sign == "ok"
    assert finding.text.startswith("4 x NVIDIA H200, 80 of 143 GB free, driver 580.65, torch 2.")
    assert finding.text.endswith("for CUDA 13.0")


@pytest.mark.parametrize(
    ("driver", "built_for", "sign", "said"),
    [
        (None, None, "ok", "no NVIDIA driver"),
        ("580.65", None, "note", "build for CPUs"),
        ("470.10", "13.0", "note", "torch sees no device (driver 470.10"),
    ],
)
def test_why_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, driver: str, built_for: str, sign: str, said: str
) -> None:
    monkeypatch.setattr(checks, "driver_version", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = found("device")
    assert finding.sign == sign and said in finding.text
    assert bool(finding.remedy) == (sign == "note")


def test_without_its_tool_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert facts.driver_version() is None


def test_an_attention_kernel_that_computes_something_else_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_a_cpu(monkeypatch)
    assert found("attention").text.startswith("grouped in float32")

    def wrong(q: Any, k: Any, v: Any, offsets: Any, longest: int) -> Any:
        return q + k + v

    monkeypatch.setattr("models.attention.attention_kernel", lambda *_, **__: wrong)
    finding = found("attention")
    assert finding.sign == "FAIL" and "train.precision=fp32" in finding.remedy


def test_a_compiler_is_needed_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_found() -> str:
        raise exc.InvalidCxxCompiler

    on_a_cpu(monkeypatch)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert found("compiler").sign == "note"
    on_a_gpu(monkeypatch)
    finding = found("compiler")
    assert finding.sign == "FAIL" and "train.compile=off" in finding.remedy


# ---- room ----


@pytest.mark.parametrize(("free", "sign"), [(0.5e9, "FAIL"), (3e9, "note"), (9e9, "ok")])
def test_a_disk_that_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, free: float, sign: str
) -> None:
    """876,695 embeddings of 256 numbers are 0.9 GB: five checkpoints 4.6 GB."""
    usage = shutil.disk_usage(".")._replace(free=int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    finding = found("disk")
    assert finding.sign == sign
    assert "4.6 GB of checkpoints" in finding.text
    assert ("run_dir=" in finding.remedy) == (sign != "ok")


def test_memory_that_is_too_small_is_said_with_what_would_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_a_cpu(monkeypatch)
    monkeypatch.setattr(checks, "free_memory", lambda: 64 * 10**9)
    assert found("memory").sign == "ok"
    monkeypatch.setattr(checks, "free_memory", lambda: 6 * 10**9)
    finding = found("memory")
    assert finding.sign == "note", "a CPU may swap"
    assert finding.remedy.startswith("train.micro_batch_tokens=")
    monkeypatch.setattr(checks, "free_memory", lambda: None)
    assert found("memory").sign == "ok"
    on_a_gpu(monkeypatch, free=6e9)
    finding = found("memory")
    assert finding.sign == "FAIL", "the trainer would refuse"
    assert finding.remedy.startswith("train.micro_batch_tokens=")


# ---- data and W&B ----


def test_a_dataset_is_opened_and_compared(tiny_compact_dataset: Path, tmp_path: Path) -> None:
    finding = found("dataset", tiny_compact_dataset)
    assert finding.sign == "ok" and "bytes as they were written" in finding.text
    assert found("dataset").sign == "FAIL" and "build it" in found("dataset").remedy
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_compact_dataset, damaged)
    file = next((damaged / "train").glob("originals__inputs.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    finding = found("dataset", damaged)
    assert finding.sign == "FAIL" and "CRC-32" in finding.text
    file.unlink()
    assert found("dataset", damaged).sign == "FAIL"
    assert facts.data_facts(damaged) == facts.DataFacts(), "only one check complains"


@pytest.mark.parametrize(
    ("mode", "login", "sign", "said"),
    [
        ("", True, "ok", "logged in"),
        ("", False, "note", "no login"),
        ("offline", False, "ok", "offline"),
    ],
)
def test_wandb_is_asked_for_its_login(
    monkeypatch: pytest.MonkeyPatch, mode: str, login: bool, sign: str, said: str
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "login", lambda **_: login)
    finding = found("W&B")
    assert finding.sign == sign and said in finding.text


def test_a_check_that_breaks_does_not_end_the_others() -> None:
    def broken(data: Path) -> Any:
        raise RuntimeError("no such thing\nsecond line")

    (finding,) = run_check(broken, NO_DATA)
    assert (finding.sign, finding.text) == ("FAIL", "RuntimeError: no such thing")


# ---- the next command ----


def next_command(data: Path = DEFAULT_DATA, is_damaged: bool = False) -> str:
    step = cost.next_step(data, DEFAULT_DATA, is_damaged)
    assert step.cost
    return step.command


def test_the_next_command_is_the_first_that_is_still_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_compact_dataset: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    on_a_gpu(monkeypatch, count=6)
    assert next_command().startswith("python -m dataset.import_arc --output-prefix kaggle/")
    Path("kaggle/combined").mkdir(parents=True)
    Path("kaggle/combined/arc-agi_training_challenges.json").touch()
    assert "build_arc_dataset" in next_command() and " concept " not in next_command()
    Path("kaggle/combined/arc-agi_concept_challenges.json").touch()
    assert "--subsets training evaluation concept --test-set-name evaluation" in next_command()
    shutil.copytree(tiny_compact_dataset, DEFAULT_DATA)
    assert next_command(is_damaged=True) == f"python -m dataset.verify {DEFAULT_DATA}"
    assert next_command() == "torchrun --nproc_per_node=4 train_arc_tiny_corrupt.py", "4 of 6"
    other = next_command(tiny_compact_dataset)
    assert other.endswith(f"train_arc_tiny_corrupt.py data.path={tiny_compact_dataset}")


def test_a_cpu_is_for_the_demo_and_then_for_an_hour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_compact_dataset: Path, tiny_dataset: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    on_a_cpu(monkeypatch)
    assert next_command() == "python demo.py"
    Path("demo_output/evaluation").mkdir(parents=True)
    windows = next_command(tiny_compact_dataset)
    assert windows.endswith("data.canvas=window train.max_minutes=60")
    assert "data.canvas" not in next_command(tiny_dataset), "of the compact layout alone"


def test_the_cost_of_the_published_run_is_its_flops_at_the_share_that_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,556,250 steps of 11.16 TFLOP at a quarter of 790 TFLOP/s: 24 hours."""
    on_a_gpu(monkeypatch)
    seconds, how = cost.whole_run(NO_DATA)
    np.testing.assert_allclose(seconds, 1_556_250 * 11.16e12 / (0.25 * 790e12), rtol=1e-3)
    assert "An estimate: 1,556,250 steps of 11.2 TFLOP, at 25% of the 790 TFLOP/s" in how


def test_the_cost_of_the_demo_is_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cpu(monkeypatch)
    assert cost.demo_cost().startswith("about 4 min. An estimate: 2,400 steps at 14% of the 0.2 T")


def test_a_real_run_ends_with_the_next_command_and_its_cost(
    run_command: Callable[..., subprocess.CompletedProcess[str]], tiny_compact_dataset: Path
) -> None:
    process = run_command("-m", "doctor", "--data", tiny_compact_dataset)
    assert process.returncode == 0, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    named = [line[6:16].strip() for line in lines if line[:4] in ("ok  ", "note")]
    assert list(dict.fromkeys(named)) == list(CHECKS)
    assert lines[-2].startswith("Next: python ")
    assert lines[-1].startswith("Cost: ") and "An estimate" in lines[-1]
