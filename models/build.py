"""A model on its device, in its precision, compiled or not: as every entry point wants it."""

import os
import shutil
from typing import Literal

import torch
from pydantic import Field

from common.errors import UserError
from common.puzzles import PuzzleFactors
from common.settings import Settings
from models.halting import HaltingSupervision
from models.puzzle_embedding import PuzzleEmbedding, PuzzleTable
from models.recursive import ArchConfig, TinyRecursiveModel
from models.supervision import DeepImprovementSupervision, Supervision, SupervisionConfig


class ComputeConfig(Settings):
    """How the network is computed; nothing here changes a result beyond rounding."""

    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="dtype of activations (weights stay fp32); auto: bf16 on CUDA, fp32 on CPU",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile the network; auto: on CUDA only"
    )


def build_model(
    arch: ArchConfig,
    vocab_size: int,
    seq_len: int,
    compute: ComputeConfig,
    device: torch.device,
    factors: PuzzleFactors | None = None,
) -> TinyRecursiveModel:
    """Build the model on a device, with its kernels, compiled if that is asked for.

    Args:
        arch: shape of the network.
        vocab_size: tokens V.
        seq_len: cells L of the whole canvas.
        compute: precision and compiler.
        device: where it shall be.
        factors: of the puzzles; only needed for arch.puzzle_embedding=factored.
    """
    dtype = compute_dtype(compute.precision, device)
    num_tasks = len(factors.task_names) if factors is not None else 0
    # Drawn on the CPU so that a seed means the same weights on every device.
    model = TinyRecursiveModel(arch, vocab_size, seq_len, dtype, num_tasks).to(device)
    if model.puzzle_embedding is not None:
        assert factors is not None, "factored puzzle embeddings are of some puzzles"
        model.puzzle_embedding.use(factors)
    model.use_kernels_of(device)
    if is_compiled(compute, device):
        require_compiler(device)
        # On a GPU shapes are static; on a CPU, where nothing fills a batch up, any will come.
        model.compile(dynamic=device.type != "cuda")
    return model


def puzzle_embedding_of(model: TinyRecursiveModel, num_puzzles: int) -> PuzzleEmbedding:
    """The model's own, or else a table for so many puzzles, on its device."""
    if model.puzzle_embedding is not None:
        return model.puzzle_embedding
    return PuzzleTable(num_puzzles, model.config.hidden_size, model.y_init.device)


def is_compiled(compute: ComputeConfig, device: torch.device) -> bool:
    """Whether the network is compiled."""
    return compute.compile == "on" or (compute.compile == "auto" and device.type == "cuda")


def require_compiler(device: torch.device) -> None:
    """Raise UserError without the compiler that torch.compile writes code for: C++, on a GPU C."""
    if device.type == "cuda":  # As Triton looks for one.
        is_there = any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
    else:
        from torch._inductor.cpp_builder import get_cpp_compiler  # Slow to import.

        try:
            get_cpp_compiler()
            is_there = True
        except RuntimeError:
            is_there = False
    if not is_there:
        raise UserError(
            "compiling the network needs a C and C++ compiler, and none was found (CC, CXX, gcc, "
            "clang): install one, or set compile=off (of the trainer train.compile=off)"
        )


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of activations that "auto", "bf16" or "fp32" means on a device.

    Raises:
        UserError: bf16 on a GPU that has none.
    """
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name(device)} does not compute in bf16, which is the default "
            f"on a GPU: set precision=fp32 (of the trainer train.precision=fp32)"
        )
    return torch.bfloat16


def build_supervision(
    config: SupervisionConfig,
    model: TinyRecursiveModel,
    puzzle_embedding: PuzzleEmbedding,
    colours: range,
    diagnostics: bool,
    global_batch_size: int,
) -> Supervision:
    """The scheme that `config` asks for; see `Supervision`."""
    scheme = HaltingSupervision if config.halting else DeepImprovementSupervision
    return scheme(config, model, puzzle_embedding, colours, diagnostics, global_batch_size)


def describe(
    model: TinyRecursiveModel, puzzle_embedding: PuzzleEmbedding, num_steps: int | None = None
) -> dict[str, int]:
    """Sizes that go with every claim: the two kinds of parameters apart, and network calls.

    Args:
        model: bare.
        puzzle_embedding: the table, or the model's own.
        num_steps: improvement steps until the last answer; None for as many as trained.
    """
    config = model.config
    steps = num_steps or config.num_supervision_steps
    calls = config.network_calls, config.network_calls_with_gradient
    per_answer, with_gradient = (n // config.num_supervision_steps * steps for n in calls)
    return {
        "network_parameters": model.num_parameters,
        "puzzle_embedding_parameters": puzzle_embedding.num_parameters,
        "network_calls_per_answer": per_answer,
        "network_calls_with_gradient": with_gradient,
    }
