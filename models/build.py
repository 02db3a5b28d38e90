"""A model on its device, in its precision, compiled or not: as every entry point wants it."""

from typing import Any

import torch

from models.recursive import ArchConfig, TinyRecursiveModel


def build_model(
    arch: ArchConfig,
    vocab_size: int,
    seq_len: int,
    device: torch.device,
    precision: str,
    compile_network: str,
) -> TinyRecursiveModel:
    """Build the model; weights are drawn from torch's global generator, on the CPU.

    Args:
        arch: shape of the network.
        vocab_size: tokens V.
        seq_len: canvas cells L.
        device: where it computes.
        precision: "auto" (bf16 on CUDA, fp32 on CPU), "bf16" or "fp32"; of activations only.
        compile_network: "auto" (on CUDA only), "on" or "off".
    """
    on_cuda = device.type == "cuda"
    bf16 = precision == "bf16" or (precision == "auto" and on_cuda)
    dtype = torch.bfloat16 if bf16 else torch.float32
    # Drawn on the CPU so that a seed means the same weights on every device.
    model = TinyRecursiveModel(arch, vocab_size, seq_len, dtype).to(device)
    if compile_network == "on" or (compile_network == "auto" and on_cuda):
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
