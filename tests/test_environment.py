"""What a machine lacks is said in one line, before anything is written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._inductor import cpp_builder, exc

import train_arc_tiny_corrupt
from common.errors import UserError
from conftest import REPOSITORY
from models.build import compute_dtype, require_compiler
from runs import train_arguments

GPU = torch.device("cuda")


def test_without_a_compiler_nothing_is_compiled_and_no_run_folder_made(
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused_in_process: Callable[..., str],
) -> None:
    def none_found() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    arguments = train_arguments(tiny_dataset, tmp_path / "run", "train.compile=on")
    line = refused_in_process(train_arc_tiny_corrupt.main, *arguments)
    assert "install one, or set compile=off" in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("found", [None, "gcc"])
def test_on_a_gpu_it_is_a_compiler_for_c_that_is_needed(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    def which(name: str) -> str | None:
        return name if name == found else None

    monkeypatch.setattr(shutil, "which", which)
    if found is None:
        with pytest.raises(UserError, match="needs a C and C"):
            require_compiler(GPU)
    else:
        require_compiler(GPU)


def test_a_gpu_without_bf16_is_named_with_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_supported(including_emulation: bool) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    for precision in ("auto", "bf16"):
        with pytest.raises(UserError, match=r"V100 does not compute in bf16.*precision=fp32"):
            compute_dtype(precision, GPU)
    assert compute_dtype("fp32", GPU) is torch.float32


def make(folder: Path, python: Path) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(REPOSITORY / name, folder)
    return subprocess.run(
        ["make", "setup", f"PYTHON={python}"],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_old_python_sets_nothing_up(tmp_path: Path) -> None:
    """It is asked for its version, and answers with the exit code."""
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    process = make(tmp_path, old)
    assert process.returncode == 2
    assert f"error: Python 3.11 or newer is needed, and {old} is none" in process.stderr
    assert not (tmp_path / ".venv").exists()


def test_programs_say_so_too() -> None:
    program = "import sys; sys.version_info = (3, 10); import common"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: Python 3.11 or newer is needed, this is ")
    assert len(process.stderr.splitlines()) == 1


def test_nothing_that_only_unix_has_is_needed_to_import_the_programs() -> None:
    program = (
        "import sys; sys.modules.update(fcntl=None, resource=None); "
        "import train_arc_tiny_corrupt, evaluate, demo, dataset.build_arc_dataset"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, timeout=120, check=True)
