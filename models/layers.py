"""Building blocks of the network (TRM, arXiv 2510.04871 §4): post-norm transformer layers.

- no biases and no learned norm gains
- RMSNorm after each residual addition, computed in fp32
- full (non-causal) attention with rotary positions over the flat sequence
- SwiGLU feed-forward
- weights stay fp32; every layer casts them to the dtype of its input, which is the compute dtype

Shape letters: B batch, T sequence positions, D width, H heads.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.attention import BACKENDS

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
        return F.embedding(index, self.weight)


Rotation = tuple[Tensor, Tensor]
"""Cosines and sines that rotate a sequence: [T, head_dim], or [B, 1, T, head_dim]."""


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

    def forward(self, positions: Tensor | None) -> Rotation:
        """The rotation of sequences at `positions` [B, T]; None: all positions in order."""
        if positions is None:
            return self.cos, self.sin
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys [B, H, T, head_dim] by their positions, in fp32."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Full multi-head self-attention [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = "default"
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b t (qkv h d) -> qkv b h t d", qkv=3, h=self.num_heads)
        attended = BACKENDS[self.backend](rotate(q, rotation), rotate(k, rotation), v)
        return self.out(rearrange(attended, "b h t d -> b t (h d)"))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); inner width `expansion * D * 2/3`, up to a multiple of 256."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = math.ceil(round(expansion * width * 2 / 3) / 256) * 256
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

    def forward(self, h: Tensor, rotation: Rotation) -> Tensor:
        h = rms_norm(h + self.attention(h, rotation), self.norm_eps)
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
