"""Full attention within each sequence of a packed batch.

    device      dtype        kernel
    CUDA        bf16, fp16   `torch.nn.attention.varlen`: one launch for all (Ampere and later)
    otherwise                `grouped`: one dense call for each run of equally long sequences

Either is one operator to the compiler, so a graph is the same however a batch is cut. The grouped
kernel reads the offsets on the host, and computes in at least fp32. On a CPU it is PyTorch's fused
one, whose bf16 form is no quicker where the processor has no instructions for it.

Shape letters: N tokens, B sequences, H heads, T tokens of one sequence.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""Queries, keys, values [N, H, head_dim], offsets int32 [B + 1], most tokens of a sequence."""


def attention_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """The quickest kernel that there is for queries of this kind."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return grouped
    has_kernel = dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256
    return varlen if has_kernel else grouped


def varlen(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """Attended values [N, H, head_dim] by the flash kernel for sequences of any length.

    A sequence longer than `longest` would leave rows unwritten.
    """
    # The seven positional arguments alone: the keywords changed between torch 2.11 and 2.12.
    attended = varlen_attn(q, k, v.contiguous(), offsets, offsets, longest, longest)
    assert isinstance(attended, Tensor), "nothing else was asked for"
    return attended


def grouped(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """Attended values [N, H, head_dim] by dense calls; of use where `varlen` has no kernel."""
    attended: Tensor = _grouped(q, k, v, offsets)[0]
    return attended


@torch.library.custom_op("dis::grouped_attention", mutates_args=())
def _grouped(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Attended values, and the log of each query's sum of exponentials [N, H] for the backward."""
    dtype = _compute_dtype(q)
    attended = torch.empty_like(q, memory_format=torch.contiguous_format)
    logsumexp = torch.empty(q.shape[:2], dtype=dtype, device=q.device)
    for part, rows in _runs(offsets):
        dense = (_dense(tensor[part], rows, dtype) for tensor in (q, k, v))
        out, lse = _forward(*dense)
        attended[part] = _packed(out)
        logsumexp[part] = _packed(lse.unsqueeze(-1)).squeeze(-1)
    return attended, logsumexp


@_grouped.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    attended = torch.empty_like(q, memory_format=torch.contiguous_format)
    return attended, q.new_empty(q.shape[:2], dtype=_compute_dtype(q))


@torch.library.custom_op("dis::grouped_attention_backward", mutates_args=())
def _grouped_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    logsumexp: Tensor,
    offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _compute_dtype(q)
    gradients = tuple(torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3))
    for part, rows in _runs(offsets):
        run = (gradient, q, k, v, attended, logsumexp.unsqueeze(-1))
        dg, dq, dk, dv, out, lse = (_dense(tensor[part], rows, dtype) for tensor in run)
        of_run = _backward(dg, dq, dk, dv, out, lse.squeeze(-1))
        for whole, dense in zip(gradients, of_run, strict=True):
            whole[part] = _packed(dense)
    return gradients[0], gradients[1], gradients[2]


@_grouped_backward.register_fake
def _(gradient: Tensor, q: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3))
    return dq, dk, dv


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...],
          output: tuple[Tensor, Tensor]) -> None:  # fmt: skip
    q, k, v, offsets = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)


def _differentiate(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor,
                   _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # fmt: skip
    return (*_grouped_backward(gradient, *ctx.saved_tensors), None)  # type: ignore[attr-defined]


_grouped.register_autograd(_differentiate, setup_context=_save)


def _runs(offsets: Tensor) -> Iterator[tuple[slice, int]]:
    """Neighbouring sequences of one length: their tokens, and how many sequences they are."""
    ends = offsets.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    start = 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and lengths[end] == lengths[start]:
            end += 1
        if lengths[start]:
            yield slice(ends[start], ends[end]), end - start
        start = end


def _dense(tokens: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """[rows * T, H, head_dim] -> [rows, H, T, head_dim]."""
    return tokens.unflatten(0, (rows, -1)).transpose(1, 2).to(dtype)


def _packed(dense: Tensor) -> Tensor:
    """[rows, H, T, head_dim] -> [rows * T, H, head_dim]."""
    return dense.transpose(1, 2).flatten(0, 1)


def _compute_dtype(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attended values [rows, H, T, head_dim] and logsumexp [rows, H, T]."""
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        attended, logsumexp = flash(q, k, v)
        return attended, logsumexp
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)


def _backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = flash(gradient, q, k, v, attended, logsumexp, 0.0, False)
        return dq, dk, dv
    scale = q.shape[-1] ** -0.5
    shares = ((q * scale) @ k.transpose(-2, -1) - logsumexp.unsqueeze(-1)).exp()
    mean = (gradient * attended).sum(dim=-1, keepdim=True)
    d_scores = shares * (gradient @ v.transpose(-2, -1) - mean) * scale
    return d_scores @ k, d_scores.transpose(-2, -1) @ q, shares.transpose(-2, -1) @ gradient
