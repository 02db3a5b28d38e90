"""Captured steps, without a GPU: what is recorded always works on the same memory.

In place of a CUDA graph, which replays kernels on fixed addresses, stands the recorded function
itself; all else is the engine's own. tests/cuda replays real graphs.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from config.loading import load_config
from config.schema import TrainConfig
from dataset.loading import BatchLoader
from models.randomness import batch_seed
from models.supervision import Progress
from tiny import ALONE
from train_arc_tiny_corrupt import Run, build_run, open_batches, take_steps
from training.engine import Engine

OVERRIDES = (
    "arch.hidden_size=16", "arch.num_heads=2", "arch.prefix_length=2",
    "arch.num_supervision_steps=3", "train.global_batch_size=8", "optim.warmup_steps=0",
    "optim.lr=1e-2", "optim.puzzle_lr=1e-5", "optim.ema_decay=0.9", "train.diagnostics=true",
)  # fmt: skip
QUICK = (
    "arch.puzzle_embedding=factored", "arch.rotary=grid", "arch.short_convolution=true",
    "optim.update=batch",
)  # fmt: skip
HALTING = ("supervision=trm", "arch.halting_head=true", "data.canvas=whole")


class Replayed(Engine):
    """Records functions in place of graphs; none runs while it is recorded, as with graphs."""

    recorded = 0

    def _rehearse_aside(self, under_way: Sequence[Progress]) -> None:
        self._rehearse(under_way)

    def _recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        return work


def start(data: Path, *overrides: str, captured: bool = True) -> Run:
    given = [f"data.path={data}", *OVERRIDES, "data.canvas=window", *overrides]
    config = load_config("train", TrainConfig, "", given)
    batches = open_batches(config, ALONE)
    run = build_run(config, ALONE, batches)
    if captured:
        engine = run.engine
        run.engine = Replayed(
            engine.supervision, run.state, config.optim, run.metrics, ALONE,
            compiled=False, captured=True,
        )  # fmt: skip
        run.loader = BatchLoader(
            batches, config.data, ALONE, 2, config.train.micro_batch_tokens, static=True
        )
    return run


def train(run: Run, batches: int) -> list[Any]:
    """Metrics of each batch."""
    measured = []
    for number, parts in enumerate(islice(iter(run.loader), batches)):
        run.engine.begin(parts, batch_seed(run.config.seed, run.state.step))
        if number == 0:
            run.engine.prepare()
        run.metrics.begin_batch()
        take_steps(run)
        means = run.metrics.read(ALONE)
        measured.append((means.loss, means.grad_norm, means.finished))
    return measured


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("supervision=dual", "supervision.next_input=answer", "optim=adam_atan2"),
        ("supervision.targets=expected", "supervision.path_power=2"),
        ("train.micro_batch_tokens=400", "data.canvas=whole"),
        ("arch.num_supervision_steps=1",),
        (*QUICK, "train.micro_batch_tokens=400", "data.canvas=whole"),
        HALTING,
        (*HALTING, "train.micro_batch_tokens=400"),
    ],
)
def test_steps_on_fixed_memory_are_the_plain_ones(
    roomy_compact_dataset: Path, more: tuple[str, ...]
) -> None:
    plain = start(roomy_compact_dataset, *more, captured=False)
    captured = start(roomy_compact_dataset, *more)
    for (a, b, c), (x, y, z) in zip(train(plain, 5), train(captured, 5), strict=True):
        assert (a, b) == pytest.approx((x, y), rel=1e-4)
        assert c == pytest.approx(z, rel=1e-4, abs=1e-4)
    for a, b in zip(plain.state.model.parameters(), captured.state.model.parameters(), strict=True):
        # Where a gradient is about zero, its rounding decides on the sign of Adam's update.
        assert (~torch.isclose(a, b, atol=1e-4)).float().mean() < 0.01
    # A sum of gradients next to zero may have another sign on either side, but few are.
    if plain.state.table is None:
        return
    tables = [run.state.table for run in (plain, captured)]
    assert tables[0].any()
    assert ((tables[0] - tables[1]).abs() > 1e-7).float().mean() < 0.01


def test_memory_stays_where_it_is_and_a_part_more_is_recorded_when_it_comes(
    roomy_compact_dataset: Path,
) -> None:
    run = start(roomy_compact_dataset)
    batches = list(islice(iter(run.loader), 3))
    engine = run.engine
    assert isinstance(engine, Replayed)
    engine.begin(batches[0], 1)
    engine.prepare()
    assert engine.recorded == 2, "one for the micro-batch, one for the update"
    places = [tensor.data_ptr() for tensor in engine.under_way[0].tensors()]
    take_steps(run)
    # As if the second batch did not fit into one micro-batch.
    engine.begin([*batches[1], *batches[2]], 2)
    take_steps(run)
    assert engine.recorded == 3
    engine.begin(batches[0], 3)
    take_steps(run)
    assert engine.recorded == 3
    assert [tensor.data_ptr() for tensor in engine.under_way[0].tensors()] == places
