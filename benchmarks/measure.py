"""What all benchmarks share: timing, commands, the machine, model FLOPs, and results.

On a shared machine a number means little by itself. So all cases of a question are timed in turns,
one after another in each round; the first case is the plain way of doing it, and every claim is a
ratio to it.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.errors import UserError
from common.files import atomic_write
from dataset.canvas import VOCAB_SIZE
from models.flops import step_flops
from models.recursive import ArchConfig

Name = TypeVar("Name", bound=Hashable)

REPOSITORY = Path(__file__).resolve().parent.parent


def time_in_turns(
    cases: Mapping[Name, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[Name, list[float]]:
    """Seconds of each case in each of `repeats` rounds."""
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, work in cases.items():
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of(arch: ArchConfig, cells: Sequence[int]) -> float:
    """Model FLOPs of one supervision step for ARC examples of so many `cells`."""
    lengths = [arch.prefix_length + count for count in cells]
    squares = sum(length**2 for length in lengths)
    return step_flops(arch, VOCAB_SIZE, len(lengths), sum(lengths), squares)


def run_python(*words: object, checkout: Path = REPOSITORY, **variables: str) -> str:
    """Run `python WORDS` in a checkout, with more environment `variables`; what it prints.

    Raises:
        UserError: it failed; with its last line.
    """
    arguments = [str(word) for word in words]
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise UserError(f"{last[0].removeprefix('error: ')} (python {shlex.join(arguments)})")
    return process.stdout


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what something was measured."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def positive(text: str) -> int:
    """The value of a flag that must be 1 or more: an argparse `type`."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def write_results(path: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table in Markdown, under the command and `facts`; write all as JSON."""
    command = f"python -m benchmarks.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}"
    where = ", ".join(f"{key} {value}" for key, value in facts.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps({"command": command, "machine": facts, "rows": rows}, indent=1))
    sys.stdout.write(f"{command}\n{where}\n\n{markdown_table(rows)}\n\nWrote {path}\n")


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The rows under all of their keys."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, ["---"] * len(columns)]
    cells += [[_text(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _text(value: Any) -> str:
    """Numbers with three digits."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
