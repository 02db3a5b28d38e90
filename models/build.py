"""A model on its device, in its precision, compiled or not: as every entry point wants it."""

from typing import Any

import torch
from torch import nn

from common.errors import UserError
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


def build_model(
    arch: ArchConfig,
    vocab_size: int,
    seq_len: int,
    device: torch.device,
    precision: str,
    compile_network: str,
    attention: str,
) -> TinyRecursiveModel:
    """Build the model; weights are drawn from torch's global generator, on the CPU.

    Args:
        arch: shape of the network.
        vocab_size: tokens V.
        seq_len: canvas cells L.
        device: where it computes.
        precision: "auto" (bf16 on CUDA, fp32 on CPU), "bf16" or "fp32"; of activations only.
        compile_network: "auto" (on CUDA only), "on" or "off".
        attention: one of `models.attention.BACKENDS`, see `choose_attention`.
    """
    # Drawn on the CPU so that a seed means the same weights on every device.
    dtype = compute_dtype(precision, device)
    model = TinyRecursiveModel(arch, vocab_size, seq_len, dtype).to(device)
    model.use_attention(attention)
    if compile_network == "on" or (compile_network == "auto" and device.type == "cuda"):
        torch._dynamo.config.recompile_limit = COMPILED_GRAPHS
        model.compile()
    return model


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of activations that "auto", "bf16" or "fp32" means on a device."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if bf16 else torch.float32


def choose_attention(
    attention: str, arch: ArchConfig, num_cells: int, precision: str, device: torch.device
) -> str:
    """The backend that `attention` means: for "auto" the fastest on CUDA, else PyTorch's own.

    Timing is subject to noise: with several ranks, one should choose for all.

    Args:
        attention: "auto" or one of `models.attention.BACKENDS`.
        arch: for the number and width of the heads.
        num_cells: how many cells a sequence typically has.
        precision: as for `build_model`.
        device: where it will run.

    Raises:
        UserError: the backend that is named does not run here.
    """
    if attention == "auto" and device.type != "cuda":
        return "default"
    dtype = compute_dtype(precision, device)
    length = arch.prefix_length + num_cells
    shape = (ATTENTION_ROWS, arch.num_heads, length, arch.hidden_size // arch.num_heads)
    if attention == "auto":
        return fastest_backend(shape, dtype, device)
    if not runs_here(attention, (1, *shape[1:]), dtype, device):
        raise UserError(
            f"attention={attention}: PyTorch has no such kernel for {dtype} on {device.type} with "
            f"{shape[3]} numbers a head; attention=auto takes one that runs"
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
    """The scheme that `config` asks for; see there and `DeepImprovementSupervision`."""
    if config.halting:
        return HaltingSupervision(config, model, network, puzzle_embedding, diagnostics)
    return DeepImprovementSupervision(
        config, model, network, puzzle_embedding, colours, diagnostics
    )


def describe(
    model: TinyRecursiveModel, num_puzzles: int, num_steps: int | None = None
) -> dict[str, Any]:
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
