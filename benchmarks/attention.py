"""Attention kernels side by side, on packed sequences of the real mix's lengths.

    python -m benchmarks.gpu --only "attention kernels" --data data/arc1concept-aug-1000

Forward and backward pass. The first row is what training uses on this device. The rows with other
heads are of the same width; "dense" is one call on sequences that are all as long as their mean,
which no batch is: what a kernel without any offsets would take.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import time_in_turns
from common.distributed import Ranks
from config.loading import load_config
from config.schema import TrainConfig
from dataset.batches import TrainingBatches
from dataset.loading import BatchLoader
from dataset.splits import open_split
from models.attention import attention_kernel, grouped

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def real_offsets(data: Path, tokens: int, device: torch.device) -> Tensor:
    """Offsets of windows of the training mix, as many as fit into `tokens`."""
    config = load_config(
        "train", TrainConfig, __doc__ or "", [f"data.path={data}", "data.canvas=window"]
    )
    assert config.data.path is not None, "it was given"
    batches = TrainingBatches(open_split(config.data.path, "train"), 512, seed=0)
    loader = BatchLoader(
        batches, config.data, Ranks(0, 1, torch.device("cpu")), config.arch.prefix_length, 10**9
    )
    lengths: list[int] = []
    for sample in batches:
        lengths += loader.maker.lengths(loader.share(sample).boxes).tolist()
        if sum(lengths) > tokens:
            break
    ends = np.cumsum([0, *lengths])
    return torch.from_numpy(ends[ends <= tokens].astype(np.int32)).to(device)


def flex(offsets: Tensor, device: torch.device) -> Attention:
    """Block-sparse attention with a mask that keeps sequences apart; compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    num_tokens = int(offsets[-1])
    sequence = torch.repeat_interleave(offsets.diff())

    def within(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sequence[query] == sequence[key]

    mask = create_block_mask(
        within, None, None, num_tokens, num_tokens, device=str(device), _compile=True
    )
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
        attended: Tensor = compiled(q, k, v, block_mask=mask)
        return attended.squeeze(0).transpose(0, 1)

    return attend


def dense(offsets: Tensor) -> Attention:
    """PyTorch's own choice for sequences of one length, the mean."""
    count = len(offsets) - 1

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        used = len(q) // count * count
        q, k, v = (t[:used].unflatten(0, (count, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)

    return attend


def kernels(offsets: Tensor, longest: int, device: torch.device, dtype: torch.dtype,
            width: int, heads: int) -> dict[str, tuple[int, Attention]]:  # fmt: skip
    """Name -> heads and function."""
    ours = attention_kernel(device, dtype, width // heads)
    rows: dict[str, tuple[int, Attention]] = {}

    def add(name: str, num_heads: int, attend: Attention) -> None:
        rows[f"{name}, {num_heads} heads of {width // num_heads}"] = (num_heads, attend)

    add(ours.__name__, heads, lambda q, k, v: ours(q, k, v, offsets, longest))
    add(ours.__name__, heads // 2, lambda q, k, v: ours(q, k, v, offsets, longest))
    add("dense", heads, dense(offsets))
    if ours is not grouped:
        add("flex", heads, flex(offsets, device))
        add("grouped", heads, lambda q, k, v: grouped(q, k, v, offsets, longest))
    return rows


def measure(data: Path, tokens: int, width: int, heads: int, repeats: int,
            device: torch.device) -> list[dict[str, Any]]:  # fmt: skip
    """Time the kernels in turns; one that fails says why in its row."""
    offsets = real_offsets(data, tokens, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    num_tokens, longest = int(offsets[-1]), int(offsets.diff().max())
    works: dict[str, Callable[[], Any]] = {}
    table: dict[str, dict[str, Any]] = {}
    for name, (num_heads, attend) in kernels(offsets, longest, device, dtype, width, heads).items():
        shape = (num_tokens, num_heads, width // num_heads)
        tensors = [torch.randn(shape, device=device, dtype=dtype) for _ in range(4)]
        work = partial(_forward_and_backward, attend, *tensors)
        try:
            work()
        except Exception as error:  # Whatever a kernel raises: the others are measured.
            table[name] = {"kernel": name, "error": str(error).partition("\n")[0][:200]}
            continue
        works[name] = work
    lengths = offsets.diff().double()
    flops = 14 * width * float((lengths**2).sum())  # 2 products forward, 5 backward.
    for name, times in time_in_turns(works, 2 + repeats, device).items():
        seconds = statistics.median(times[2:])
        table[name] = {
            "kernel": name,
            "ms": 1e3 * seconds,
            "TFLOP/s": None if name.startswith("dense") else flops / seconds / 1e12,
            "ns per token": 1e9 * seconds / num_tokens,
        }
    return list(table.values())


def _forward_and_backward(attend: Attention, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> None:
    q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
    attended = attend(q, k, v)
    attended.backward(g[: len(attended)])
