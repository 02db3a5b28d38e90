"""Building blocks of the network (TRM, arXiv 2510.04871 §4): post-norm transformer layers.

- no biases and no learned norm gains
- RMSNorm after each residual addition, computed in fp32
- full (non-causal) attention with rotary positions over the flat sequence
- SwiGLU feed-forward
- weights stay fp32; every layer casts them to the dtype of its input, which is the compute dtype

Shape letters: N tokens of all sequences, one after another, B sequences, D width, H heads, V
vocabulary.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.attention import Kernel, grouped

# Standard deviation of a standard normal truncated to [-2, 2].
_TRUNCATED_STD = 0.87962566103423978


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal cut at 2 sigma whose standard deviation after the cut is `std`."""
    sigma = std / _TRUNCATED_STD
    return nn.init.trunc_normal_(tensor, std=sigma, a=-2 * sigma, b=2 * sigma)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last axis, in fp32, back in the dtype of x."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=eps).to(x.dtype)


class Linear(nn.Module):
    """Bias-free linear map; weight std 1/sqrt(fan_in)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        truncated_normal_(self.weight, std=1 / math.sqrt(in_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Module):
    """Lookup table [num_embeddings, D]; std 1/sqrt(D), so times sqrt(D) it has unit std."""

    def __init__(self, num_embeddings: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, width))
        truncated_normal_(self.weight, std=1 / math.sqrt(width))

    def forward(self, index: Tensor) -> Tensor:
        """Rows of the table, zero where `index` is not one of them.

        By a product with ones and zeros: a dozen rows are soon looked up, but a look-up's backward
        pass would add up thousands of gradients to each by atomics, slowly and in any order.
        """
        rows = torch.arange(len(self.weight), device=index.device)
        return (index.unsqueeze(-1) == rows).to(self.weight.dtype) @ self.weight


Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [N, 1, head_dim] that rotate tokens by their places."""


class Sequences(NamedTuple):
    """What attention must know of the sequences of a batch."""

    rotation: Rotation
    offsets: Tensor
    """int32 [B + 1] where they begin and end."""
    longest: int
    """No sequence has more tokens."""


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (arXiv 2104.09864) for T positions of one head dimension."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, num_positions: int, base: float) -> None:
        super().__init__()
        frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, positions: Tensor) -> Rotation:
        """The rotation of tokens at `positions` [N] of their sequences."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys [N, H, head_dim] by their positions, in fp32."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Full multi-head self-attention within each sequence [N, D] -> [N, D]."""

    kernel: Kernel = staticmethod(grouped)

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        rotation, offsets, longest = sequences
        q, k, v = rearrange(self.qkv(x), "n (qkv h d) -> qkv n h d", qkv=3, h=self.num_heads)
        q, k = rotate(q, rotation), rotate(k, rotation)
        attended = self.kernel(q, k, v, offsets, longest)
        return self.out(rearrange(attended, "n h d -> n (h d)"))


def swiglu_width(width: int, expansion: float) -> int:
    """Inner width of SwiGLU: `expansion * D * 2/3`, up to a multiple of 256."""
    return math.ceil(round(expansion * width * 2 / 3) / 256) * 256


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = swiglu_width(width, expansion)
        self.gate_and_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """h = norm(h + attention(h)); h = norm(h + swiglu(h))."""

    def __init__(self, width: int, num_heads: int, expansion: float, norm_eps: float) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.attention = Attention(width, num_heads)
        self.swiglu = SwiGLU(width, expansion)

    def forward(self, h: Tensor, sequences: Sequences) -> Tensor:
        h = rms_norm(h + self.attention(h, sequences), self.norm_eps)
        return rms_norm(h + self.swiglu(h), self.norm_eps)


class HaltingHead(nn.Module):
    """The logit of "this answer is correct" from one position [B, D] -> [B] (TRM §2.3).

    Starts at -5 whatever it sees: nothing halts before it has learned when to.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ self.weight + self.bias
