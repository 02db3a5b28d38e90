"""A profile of a few batches: what runs on the device, for how long, and where it waits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from common.errors import UserError

SKIPPED = 2
"""Batches before those that are profiled."""
PROFILED = 3
TABLE_ROWS = 60


@contextmanager
def profiled_batches(folder: Path | None, device: torch.device) -> Iterator[Callable[[], None]]:
    """Profile batches, each ending with a call of what is yielded; nothing without a folder.

    The folder receives `trace.json` and, by time on the device, the table `kernels.txt`.
    """
    if folder is None:
        yield lambda: None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"train.profile={folder}: {error.strerror}; choose another folder"
        ) from error
    activities = [ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        order = "self_cuda_time_total"

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(folder / "trace.json"))
        table = profiler.key_averages().table(
            sort_by=order, row_limit=TABLE_ROWS, max_name_column_width=80
        )
        (folder / "kernels.txt").write_text(table)

    plan = schedule(wait=SKIPPED - 1, warmup=1, active=PROFILED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
