"""Model FLOPs, what a supervision step multiplies however it is computed; and what a device can."""

import statistics
import time
from functools import cache

import torch

from models.layers import swiglu_width
from models.recursive import ArchConfig


def step_flops(
    arch: ArchConfig,
    vocab_size: int,
    num_sequences: float,
    num_tokens: float,
    num_squared: float,
) -> float:
    """FLOPs of one supervision step with its backward pass.

    Counted are the products of the linear maps, of attention and of the readout; the backward pass
    costs twice the forward pass; cycles without gradient have none.

    Args:
        arch: shape of network and recursion.
        vocab_size: tokens V that are read out.
        num_sequences: that take the step.
        num_tokens: of these, prefixes included.
        num_squared: sum of the squares of their lengths, which attention costs.
    """
    width, inner = arch.hidden_size, swiglu_width(arch.hidden_size, arch.expansion)
    with_gradient = arch.num_recursions_with_gradient
    passes = (arch.num_latent_updates + 1) * (arch.num_recursions + 2 * with_gradient)
    linear = num_tokens * (4 * width**2 + 3 * width * inner)
    attention = 2 * width * num_squared
    num_cells = num_tokens - num_sequences * arch.prefix_length
    return 2 * passes * arch.num_layers * (linear + attention) + 6 * num_cells * width * vocab_size


_PEAK_SIDES = {"cpu": (512,), "cuda": (4096, 8192)}
"""Sides of the square products that the peak is measured on."""


@cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest large square product here, the yardstick for "share of peak"."""
    return max(_product_rate(side, device, dtype) for side in _PEAK_SIDES[device.type])


def _product_rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    # Zeros would let a GPU save power, and run faster than it can with numbers.
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    # The median leaves out the first calls, which are slow.
    return 2 * side**3 / statistics.median(seconds)
