"""What all benchmarks share: timing, the machine, model FLOPs, memory, flags, and results.

On a shared machine a figure means little by itself. So all cases of a question are timed in turns,
one after another in each round, and compared by their medians; the first case is the plain way of
doing it, and every claim is a ratio to it.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.files import atomic_write
from models.recursive import ArchConfig

Name = TypeVar("Name", bound=Hashable)

_PEAK_SIDES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
"""Sides of the square products that the peak is measured on."""


def time_in_turns(
    cases: Mapping[Name, Callable[[], Any]], warmup: int, repeats: int, device: torch.device
) -> dict[Name, float]:
    """Median seconds of each case over `repeats` rounds, after `warmup` calls of each."""
    seconds = seconds_in_turns(cases, warmup, repeats, device)
    return {name: statistics.median(times) for name, times in seconds.items()}


def seconds_in_turns(
    cases: Mapping[Name, Callable[[], Any]], warmup: int, repeats: int, device: torch.device
) -> dict[Name, list[float]]:
    """Seconds of each case in each of `repeats` rounds, after `warmup` calls of each."""
    for work in cases.values():
        for _ in range(warmup):
            work()
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, work in cases.items():
            seconds[name].append(_seconds(work, device))
    return seconds


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest large square product here, the yardstick for "share of peak"."""
    rates = []
    for side in _PEAK_SIDES[device.type]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        work = {"": lambda a=a, b=b: a @ b}
        rates.append(2 * side**3 / time_in_turns(work, 2, 7, device)[""])
    return max(rates)


def step_flops(arch: ArchConfig, lengths: Sequence[int]) -> float:
    """Model FLOPs of one supervision step with its backward pass, for examples of `lengths` cells.

    Counted are the products of the linear maps, of attention and of the readout; the backward pass
    costs twice the forward pass; cycles without gradient have none.
    """
    width, blocks = arch.hidden_size, arch.num_layers
    inner = -(-round(arch.expansion * width * 2 / 3) // 256) * 256
    calls = arch.num_latent_updates + 1
    passes = calls * (arch.num_recursions - 1 + 3)
    total = 0.0
    for cells in lengths:
        positions = arch.prefix_length + cells
        linear = 4 * width**2 + 3 * width * inner
        attention = 2 * positions * width
        total += 2 * positions * blocks * (linear + attention) * passes
        total += 2 * cells * width * 12 * 3
    return total


class ActivationMemory:
    """Bytes of the distinct tensors that a block of code saves for the backward pass."""

    def __init__(self, parameters: Sequence[Tensor] = ()) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in parameters}
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> "ActivationMemory":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())


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


@dataclass
class Results:
    """Rows of one benchmark, printed as a table and written as JSON."""

    question: str
    command: str
    machine: dict[str, Any]
    rows: list[dict[str, Any]]

    def table(self) -> str:
        """The rows in Markdown; numbers with three digits."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for row in self.rows:
            lines.append("| " + " | ".join(_text(row.get(column)) for column in columns) + " |")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Print the table, under what was asked and where; write `path` as JSON."""
        facts = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        sys.stdout.write(f"{self.question}\n{facts}\n\n{self.table()}\n\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(vars(self), indent=1))
        sys.stdout.write(f"Wrote {path}\n")


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
