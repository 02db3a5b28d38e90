"""What only a GPU can show: its kernels, compiled and captured steps, against the plain way.

Skipped where there is no CUDA; `python -m benchmarks.gpu` runs these where there is.
"""

import gc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from common.packed import PackedBatch
from config.loading import load_config
from config.schema import TrainConfig
from evaluation.predict import EvalConfig, Predictor
from evaluation.test_set import open_test_set
from models.attention import grouped, varlen
from models.build import build_model
from models.puzzle_embedding import PuzzleTable
from models.randomness import batch_seed
from models.steps import TrainedModel
from runs import losses, run_training
from train_arc_tiny_corrupt import Run, build_run, open_batches, take_steps
from training.memory import estimate_memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SMALL = (
    "arch.hidden_size=64",
    "arch.num_heads=4",
    "train.global_batch_size=32",
    "train.eval_every=null",
    "data.canvas=window",
    "optim.warmup_steps=0",
    "optim.lr=1e-3",
    "optim.ema_decay=0.9",
)
EAGER = ("train.compile=off", "train.graphs=off")
QUICK = (
    "arch.puzzle_embedding=factored",
    "arch.rotary=grid",
    "arch.short_convolution=true",
    "arch.num_recursions=2",
    "arch.num_recursions_with_gradient=2",
    "optim=muon",
)


def ranks(device: str = "cuda") -> Ranks:
    return Ranks(0, 1, torch.device(device))


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    """Graphs of one function are limited in number; beyond that it runs without compiling."""
    torch._dynamo.reset()
    yield
    gc.collect()  # An engine is in a cycle of references, and its graphs hold memory.


def start(data: Path, *overrides: str, device: str = "cuda") -> Run:
    given = [f"data.path={data}", *SMALL, *overrides]
    config = load_config("train", TrainConfig, "", given)
    return build_run(config, ranks(device), open_batches(config, ranks(device)))


def train(run: Run, batches: int) -> list[float]:
    """Losses, each the mean over one batch's steps."""
    losses = []
    for number, parts in enumerate(islice(iter(run.loader), batches)):
        run.engine.begin(parts, batch_seed(run.config.seed, run.state.step))
        if number == 0:
            run.engine.prepare()
        run.metrics.begin_batch()
        take_steps(run)
        losses.append(run.metrics.read(run.ranks).loss)
    return losses


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("kernel", [varlen, grouped])
@pytest.mark.parametrize("heads", [4, 8])
@pytest.mark.parametrize(
    "lengths", [[916], [17, 64, 300, 0, 128, 17], [916, 17, 500, 33], [40] * 9 + [0, 0]]
)
def test_attention_is_that_of_a_dense_reference(
    kernel: Any, heads: int, lengths: list[int]
) -> None:
    ends = torch.tensor([0, *lengths], device="cuda").cumsum(0)
    offsets, count, width = ends.int(), int(ends[-1]), 256 // heads
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = torch.randn((4, count, heads, width), device="cuda", generator=generator)
    q, k, v, gradient = tensors.bfloat16().unbind()
    q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
    kernel(q, k, v, offsets, 916).backward(gradient)
    attended = kernel(q, k, v, offsets, 916)
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    sequence = torch.repeat_interleave(torch.tensor(lengths, device="cuda"))
    apart = sequence[:, None] != sequence
    scores = torch.einsum("nhd,mhd->hnm", exact[0], exact[1]) * width**-0.5
    reference = torch.einsum(
        "hnm,mhd->nhd", scores.masked_fill(apart, -torch.inf).softmax(-1), exact[2]
    )
    reference.backward(gradient.double())
    assert relative(attended, reference) < 1e-2
    for tensor, of_reference in zip((q, k, v), exact, strict=True):
        assert tensor.grad is not None
        assert of_reference.grad is not None
        assert relative(tensor.grad, of_reference.grad) < 2e-2


@pytest.mark.parametrize("canvas", ["whole", "window"])
def test_a_batch_is_the_same_on_the_cpu_and_on_the_gpu(
    small_compact_dataset: Path, canvas: str
) -> None:
    """Index by index, for what is not there to fill up."""

    def examples(device: str) -> list[tuple[Tensor, ...]]:
        run = start(small_compact_dataset, f"data.canvas={canvas}", device=device)
        return [own_part(batch) for parts in islice(iter(run.loader), 3) for batch in parts]

    for of_cpu, of_gpu in zip(examples("cpu"), examples("cuda"), strict=True):
        for a, b in zip(of_cpu, of_gpu, strict=True):
            assert torch.equal(a, b.cpu())


def own_part(batch: PackedBatch) -> tuple[Tensor, ...]:
    count = int(batch.is_example.sum())
    tokens = int(batch.offsets[count])
    per_token = (batch.inputs, batch.labels, batch.cells, batch.sequence)
    per_sequence = (batch.offsets, batch.puzzle_ids, batch.rows)
    return (*(t[:tokens] for t in per_token), *(t[:count] for t in per_sequence))


def assert_alike(plain: list[float], other: list[float]) -> None:
    """The first batch's losses differ by rounding alone, and later ones by what became of it."""
    assert other[0] == pytest.approx(plain[0], rel=0.01)
    assert other == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("supervision=dual", "optim=adam_atan2"),
        ("arch.num_supervision_steps=1",),
        QUICK,
        ("supervision.targets=expected", "optim.update=batch", "arch.puzzle_embedding=factored"),
    ],
)
@pytest.mark.parametrize("way", [("train.graphs=off",), ("train.compile=off",), ()])
def test_compiled_and_captured_steps_are_the_plain_ones(
    small_compact_dataset: Path, way: tuple[str, ...], more: tuple[str, ...]
) -> None:
    plain = start(small_compact_dataset, *EAGER, *more)
    other = start(small_compact_dataset, *way, *more)
    assert_alike(train(plain, 4), train(other, 4))
    assert plain.state.step == other.state.step
    if plain.state.table is None:
        return
    assert torch.equal(other.state.table.any(dim=1), plain.state.table.any(dim=1))


def test_where_attention_waits_for_the_host_nothing_is_captured(
    small_compact_dataset: Path,
) -> None:
    for wide in ("train.precision=fp32", "arch.num_heads=16"):
        run = start(small_compact_dataset, wide)
        assert not run.engine.captured
        assert np.isfinite(train(run, 1)).all()
        with pytest.raises(UserError, match=r"train.graphs=on: graphs need"):
            start(small_compact_dataset, wide, "train.graphs=on")


def test_an_evaluation_between_steps_is_no_recompilation(
    small_compact_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = ("device=cuda", "data.canvas=window", "train.max_steps=24", "train.eval_every=6")
    run_training(small_compact_dataset, tmp_path / "run", *shared)
    assert "compiled again" not in caplog.text


def test_fp32_on_the_gpu_is_fp32_on_the_cpu(small_compact_dataset: Path) -> None:
    fp32 = ("train.precision=fp32", *EAGER)
    on_gpu = train(start(small_compact_dataset, *fp32), 2)
    on_cpu = train(start(small_compact_dataset, *fp32, device="cpu"), 2)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def test_halting_slots_are_captured_too(small_compact_dataset: Path) -> None:
    trm = ("supervision=trm", "arch.halting_head=true", "data.canvas=whole")
    plain, captured = (start(small_compact_dataset, *trm, *way) for way in (EAGER, ()))
    assert_alike(train(plain, 6), train(captured, 6))


def test_several_micro_batches_are_captured_and_give_the_same(small_compact_dataset: Path) -> None:
    whole = start(small_compact_dataset, "data.canvas=whole")
    parts = start(small_compact_dataset, "data.canvas=whole", "train.micro_batch_tokens=6000")
    assert_alike(train(whole, 3), train(parts, 3))
    assert len(parts.engine.under_way) > 1 == len(whole.engine.under_way)


@pytest.fixture
def default_mode_afterwards() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("default_mode_afterwards")
@pytest.mark.parametrize("more", [(), QUICK])
def test_a_step_never_waits_for_the_device(
    small_compact_dataset: Path, more: tuple[str, ...]
) -> None:
    watched = ("train.diagnostics=true", "optim.grad_clip=1.0")
    run = start(small_compact_dataset, *EAGER, *watched, *more)
    batches = list(islice(iter(run.loader), 2))
    run.engine.begin(batches[0], batch_seed(run.config.seed, run.state.step))
    run.engine.prepare()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    run.engine.begin(batches[1], batch_seed(run.config.seed, run.state.step))
    take_steps(run)


def test_a_resumed_run_goes_on_to_rounding(small_compact_dataset: Path, tmp_path: Path) -> None:
    """Not bit for bit: flash attention adds up gradients by atomics, in any order."""
    shared = ("device=cuda", "train.max_steps=24", "train.log_every=3", "data.canvas=window")
    run_training(small_compact_dataset, tmp_path / "whole", *shared)
    run_training(small_compact_dataset, tmp_path / "parts", *shared[:1], *shared[2:])
    run_training(small_compact_dataset, tmp_path / "parts", *shared, "resume=auto")
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for step, loss in whole.items():
        assert parts[step] == pytest.approx(loss, rel=0.02)


def test_predictions_are_those_of_the_cpu(small_compact_dataset: Path) -> None:
    def answers(device: str) -> np.ndarray[Any, Any]:
        config = load_config(
            "train", TrainConfig, "", [f"data.path={small_compact_dataset}", *SMALL]
        )
        compute = config.train.model_copy(update={"precision": "fp32", "compile": "off"})
        torch.manual_seed(0)
        model = build_model(config.arch, 12, 900, compute, torch.device(device))
        test_set = open_test_set(small_compact_dataset, None, "window")
        count = test_set.split.metadata.num_puzzle_identifiers
        table = PuzzleTable(count, config.arch.hidden_size, device)
        options = EvalConfig(canvas="window", batch_tokens=4000)
        predictor = Predictor(TrainedModel(model, table, config.supervision), test_set, options)
        return predictor.answer(np.arange(40)).canvases

    agree = answers("cuda") == answers("cpu")
    # Of an untrained network a few cells are ties but for rounding.
    assert agree.mean() > 0.99


def test_training_takes_about_the_memory_that_was_estimated(small_compact_dataset: Path) -> None:
    run = start(
        small_compact_dataset, "arch.hidden_size=256", "arch.num_heads=8",
        "train.global_batch_size=256", "data.canvas=whole",
    )  # fmt: skip
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(run, 1)
    of_table_and_weights = 4 * (run.state.puzzle_embedding.weight.numel() + 3 * 859_648)
    measured = torch.cuda.max_memory_allocated() - held + of_table_and_weights
    estimate = estimate_memory(
        run.config.arch,
        run.state.model.compute_dtype,
        num_parameters=run.state.model.num_parameters,
        puzzle_parameters=run.state.puzzle_embedding.num_parameters,
        is_averaged=True,
        batch_tokens=run.loader.batch_tokens,
        tokens_at_a_time=run.loader.tokens_at_a_time,
    )
    assert 0.65 < measured / estimate.total < 1.35
