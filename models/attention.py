"""Full attention by one of several backends, and which of them is the fastest here.

PyTorch picks a kernel by rules of its own, which are not always the fastest for a small head
dimension: cuDNN's has to be asked for, and on a CPU two plain products in bf16 beat the fused
kernel on short sequences. On a GPU the choice can be made by timing, once, before the network is
built: eagerly, forward and backward, on sequences of a typical length.

Shape letters: B batch, H heads, T sequence positions.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values [B, H, T, head_dim] -> attended values of the same shape."""


def matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two products and a softmax; holds the scores [B, H, T, T] for the backward pass."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1) @ v


def _sdpa_by(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


BACKENDS: dict[str, AttentionFunction] = {
    "default": F.scaled_dot_product_attention,
    "flash": partial(_sdpa_by, SDPBackend.FLASH_ATTENTION),
    "cudnn": partial(_sdpa_by, SDPBackend.CUDNN_ATTENTION),
    "efficient": partial(_sdpa_by, SDPBackend.EFFICIENT_ATTENTION),
    "matmul": matmul_attention,
}


def time_backends(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, repeats: int = 5
) -> dict[str, float]:
    """Median seconds of forward and backward pass for every backend that runs here.

    Args:
        shape: [B, H, T, head_dim].
        dtype: of queries, keys and values.
        device: where to time; backends that it does not have are left out.
        repeats: timed passes, after two that are not.
    """
    seconds = {}
    for name in BACKENDS:
        if (times := _times(name, shape, dtype, device, 2 + repeats)) is not None:
            seconds[name] = statistics.median(times[2:])
    return seconds


def fastest_backend(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> str:
    """Name of the backend with the shortest forward and backward pass, see `time_backends`."""
    seconds = time_backends(shape, dtype, device)
    return min(seconds, key=lambda name: seconds[name])


def runs_here(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether a backend has a kernel, forward and backward, for such queries here."""
    return _times(name, shape, dtype, device, repeats=1) is not None


def _times(
    name: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
) -> list[float] | None:
    """Seconds of each pass, or None where the backend does not run."""
    # A generator of its own: timing must not change the weights that are drawn afterwards.
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, gradient = torch.randn((4, *shape), dtype=dtype, device=device, generator=generator)
    q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
    try:
        return [_time_once(BACKENDS[name], (q, k, v), gradient) for _ in range(repeats)]
    except RuntimeError:  # "No available kernel", or out of memory for the score matrix.
        return None


def _time_once(
    attend: AttentionFunction, qkv: tuple[Tensor, Tensor, Tensor], gradient: Tensor
) -> float:
    _wait_for(gradient.device)
    start = time.perf_counter()
    attend(*qkv).backward(gradient)
    _wait_for(gradient.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
