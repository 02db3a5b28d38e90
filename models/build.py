"""A model on its device, in its precision, compiled or not: as every entry point wants it."""

import logging
from typing import Any

import torch

from models.attention import fastest_backend
from models.recursive import ArchConfig, TinyRecursiveModel

ATTENTION_ROWS = 64
"""Rows of the batch that attention backends are timed on: enough to fill a GPU."""
COMPILED_GRAPHS = 32
"""How many graphs of the network there may be; beyond that, PyTorch goes on without compiling.

Its own limit of 8 is too low: windows and whole canvases, of one example and of several, with a
gradient and without, have a graph each, or two.
"""

log = logging.getLogger(__name__)


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
        attention: "auto" (the fastest here on CUDA, PyTorch's own choice on CPU), or one of
            `models.attention.BACKENDS`.
    """
    on_cuda = device.type == "cuda"
    bf16 = precision == "bf16" or (precision == "auto" and on_cuda)
    dtype = torch.bfloat16 if bf16 else torch.float32
    # Drawn on the CPU so that a seed means the same weights on every device.
    model = TinyRecursiveModel(arch, vocab_size, seq_len, dtype).to(device)
    if attention == "auto" and on_cuda:
        heads, head_dim = arch.num_heads, arch.hidden_size // arch.num_heads
        shape = (ATTENTION_ROWS, heads, arch.prefix_length + seq_len, head_dim)
        attention = fastest_backend(shape, dtype, device)
        log.info("attention by %s, the fastest on %s here", attention, list(shape))
    model.use_attention("default" if attention == "auto" else attention)
    if compile_network == "on" or (compile_network == "auto" and on_cuda):
        torch._dynamo.config.recompile_limit = COMPILED_GRAPHS
        model.compile()
    return model


def describe(model: TinyRecursiveModel, num_puzzles: int) -> dict[str, Any]:
    """Sizes that go with every claim: the two kinds of parameters apart, and network calls."""
    config = model.config
    return {
        "network_parameters": model.num_parameters,
        "puzzle_embedding_parameters": num_puzzles * config.hidden_size,
        "network_calls_per_batch": config.network_calls,
    }
