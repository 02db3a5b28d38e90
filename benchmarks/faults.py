"""Run a program, and kill it with SIGKILL at its Nth fault point.

    python -m benchmarks.faults N train_arc_tiny_corrupt.py resume=auto ...
    python -m benchmarks.faults N dataset.build_arc_dataset --num-aug 10 ...

A fault point is before or after a call that changes files: between each write, flush and rename. A
program that comes to its end says how many there were.
"""

import atexit
import itertools
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

OF_THE_SYSTEM = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "truncate")
CHANGES: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in OF_THE_SYSTEM),
    *((Path, name) for name in ("write_text", "write_bytes", "touch")),
    (shutil, "rmtree"),
    (np, "save"),
    (np, "savez"),
    (np, "savez_compressed"),
    (safetensors.torch, "save_file"),
)
SAID = "fault points: "


def main() -> None:
    fatal, program, *arguments = sys.argv[1:]
    reached = itertools.count(1)

    def fault_point() -> None:
        if next(reached) == int(fatal):
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in CHANGES:
        setattr(owner, name, _between(fault_point, getattr(owner, name)))
    atexit.register(lambda: sys.stderr.write(f"{SAID}{next(reached) - 1}\n"))
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).resolve().parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _between(fault_point: Callable[[], None], change: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(change)
    def call(*arguments: Any, **named: Any) -> Any:
        fault_point()
        result = change(*arguments, **named)
        fault_point()
        return result

    return call


if __name__ == "__main__":
    main()
