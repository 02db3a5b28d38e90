"""What does a batch cost before it is trained on?

    python -m benchmarks.gpu --only loading --data data/arc1concept-aug-1000

On the host, one core: drawing the examples, and deciding what each shows. On the device: making the
tokens. A batch serves all its supervision steps, and the host works on the next meanwhile.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import time_in_turns
from common.distributed import Ranks
from config.loading import load_config
from config.schema import TrainConfig
from dataset.loading import BatchLoader
from train_arc_tiny_corrupt import build_run, open_batches


def measure(data: Path, batch_size: int, repeats: int, ranks: Ranks) -> list[dict[str, Any]]:
    """Milliseconds a batch of each piece, means over `repeats` batches, cropped and whole."""
    torch.set_num_threads(1)
    rows = []
    for canvas in ("window", "whole"):
        overrides = [
            f"data.path={data}", f"data.canvas={canvas}", f"train.global_batch_size={batch_size}",
        ]  # fmt: skip
        config = load_config("train", TrainConfig, __doc__ or "", overrides)
        loader = build_run(config, ranks, open_batches(config, ranks)).loader
        rows.append({"canvas": canvas, "examples": batch_size, **time_pieces(loader, repeats)})
    return rows


def time_pieces(loader: BatchLoader, repeats: int) -> dict[str, float]:
    """Mean milliseconds a batch."""
    samples = iter(loader.batches)
    drawn = list(islice(samples, 1 + repeats))
    to_decide, to_make = iter(drawn), iter([loader.prepare(sample) for sample in drawn])
    works: dict[str, Callable[[], Any]] = {
        "host: draw, ms": lambda: next(samples),
        "host: decide, ms": lambda: loader.prepare(next(to_decide)),
        "device: make, ms": lambda: [loader.maker.to_device(part) for part in next(to_make)],
    }
    for work in works.values():
        work()
    times = time_in_turns(works, repeats, loader.ranks.device)
    return {name: 1e3 * sum(seconds) / repeats for name, seconds in times.items()}
