"""A model on its device, in its precision, compiled or not: as every entry point wants it."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from common.distributed import Ranks
from common.errors import UserError
from common.settings import Settings
from models.attention import fastest_backend, runs_here
from models.halting import HaltingSupervision
from models.puzzle_embedding import PuzzleEmbedding
from models.recursive import ArchConfig, TinyRecursiveModel
from models.supervision import DeepImprovementSupervision, Supervision, SupervisionConfig

ATTENTION_ROWS = 64
"""Rows of the batch that attention backends are timed on: enough to fill a GPU."""
COMPILED_GRAPHS = 32
"""How many graphs of the network there may be; beyond that, PyTorch goes on without compiling.

Its own limit of 8 is too low: windows and whole canvases, of one example and of several, with a
gradient and without, have a graph each, or two.
"""


class ComputeConfig(Settings):
    """How the network is computed; nothing here changes a result beyond rounding."""

    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="dtype of activations (weights stay fp32); auto: bf16 on CUDA, fp32 on CPU",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile the network; auto: on CUDA only"
    )
    attention: Literal["auto", "default", "flash", "cudnn", "efficient", "matmul"] = Field(
        "auto",
        description="kernel of the attention (models/attention.py); auto: on CUDA the fastest for "
        "sequences of a typical length, timed at the start, on CPU PyTorch's own choice",
    )


def build_model(
    arch: ArchConfig,
    vocab_size: int,
    seq_len: int,
    compute: ComputeConfig,
    ranks: Ranks,
    typical_length: int | None = None,
) -> TinyRecursiveModel:
    """Build the model on this rank's device; all ranks must call it.

    Args:
        arch: shape of the network.
        vocab_size: tokens V.
        seq_len: canvas cells L.
        compute: precision, compiler and attention kernel.
        ranks: which share one choice of the attention kernel.
        typical_length: cells that sequences have, for timing attention; None: all.

    Raises:
        UserError: the attention kernel that is named does not run here.
    """
    device = ranks.device
    dtype = compute_dtype(compute.precision, device)
    # Drawn on the CPU so that a seed means the same weights on every device.
    model = TinyRecursiveModel(arch, vocab_size, seq_len, dtype).to(device)
    length = arch.prefix_length + (typical_length or seq_len)
    shape = (ATTENTION_ROWS, arch.num_heads, length, arch.hidden_size // arch.num_heads)
    # Timing is subject to noise: one rank chooses for all.
    model.use_attention(
        ranks.from_main(lambda: choose_attention(compute.attention, shape, dtype, device))
    )
    if compute.compile == "on" or (compute.compile == "auto" and device.type == "cuda"):
        torch._dynamo.config.recompile_limit = COMPILED_GRAPHS
        model.compile()
    return model


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of activations that "auto", "bf16" or "fp32" means on a device."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if bf16 else torch.float32


def choose_attention(
    attention: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> str:
    """The backend that `attention` means: for "auto" the fastest on CUDA, else PyTorch's own.

    Args:
        attention: "auto" or one of `models.attention.BACKENDS`.
        shape: [B, H, T, head_dim] to time backends on.
        dtype: of queries, keys and values.
        device: where it will run.

    Raises:
        UserError: the backend that is named does not run here.
    """
    if attention == "auto":
        return fastest_backend(shape, dtype, device) if device.type == "cuda" else "default"
    if not runs_here(attention, (1, *shape[1:]), dtype, device):
        raise UserError(
            f"attention={attention}: PyTorch has no such kernel for {dtype} on {device.type} with "
            f"{shape[3]} numbers per head; attention=auto takes one that runs"
        )
    return attention


def build_supervision(
    config: SupervisionConfig,
    model: TinyRecursiveModel,
    network: nn.Module,
    puzzle_embedding: PuzzleEmbedding,
    colours: range,
    diagnostics: bool,
) -> Supervision:
    """The scheme that `config` asks for; see `Supervision`."""
    scheme = HaltingSupervision if config.halting else DeepImprovementSupervision
    return scheme(config, model, network, puzzle_embedding, colours, diagnostics)


def describe(
    model: TinyRecursiveModel, num_puzzles: int, num_steps: int | None = None
) -> dict[str, int]:
    """Sizes that go with every claim: the two kinds of parameters apart, and network calls.

    Args:
        model: bare.
        num_puzzles: rows of the puzzle embedding.
        num_steps: improvement steps until the last answer; None for as many as trained.
    """
    config = model.config
    steps = num_steps or config.num_supervision_steps
    calls = config.network_calls, config.network_calls_with_gradient
    per_answer, with_gradient = (n // config.num_supervision_steps * steps for n in calls)
    return {
        "network_parameters": model.num_parameters,
        "puzzle_embedding_parameters": num_puzzles * config.hidden_size,
        "network_calls_per_answer": per_answer,
        "network_calls_with_gradient": with_gradient,
    }
