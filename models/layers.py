"""Building blocks of the network (TRM, arXiv 2510.04871 §4): post-norm transformer layers.

- no biases and no learned norm gains
- RMSNorm after each residual addition, computed in fp32
- full (non-causal) attention with rotary positions, along the flat sequence or by row and column
- SwiGLU feed-forward, with a short convolution along the sequence if that is asked for
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
    """What layers must know of the sequences of a batch."""

    rotation: Rotation
    is_first: Tensor
    """bool [N] whether a token is the first of its sequence."""
    offsets: Tensor
    """int32 [B + 1] where they begin and end."""
    longest: int
    """No sequence has more tokens."""


def flat_angles(head_dim: int, num_positions: int, base: float) -> Tensor:
    """Angles [T, head_dim / 2] that turn with the place in the sequence."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)


def grid_angles(head_dim: int, prefix_length: int, side: int, base: float) -> Tensor:
    """Angles [P + side * side, head_dim / 2]: half turn with the row, half with the column.

    The prefix, which is nowhere on the canvas, is not turned.
    """
    along = flat_angles(head_dim // 2, side, base)  # [side, head_dim / 4]
    by_row, by_column = along.repeat_interleave(side, dim=0), along.repeat(side, 1)
    of_cells = torch.cat([by_row, by_column], dim=-1)
    return torch.cat([torch.zeros(prefix_length, head_dim // 2), of_cells])


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (arXiv 2104.09864) by `angles` [T, head_dim / 2] of positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, angles: Tensor) -> None:
        super().__init__()
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
        rotation, offsets, longest = sequences.rotation, sequences.offsets, sequences.longest
        q, k, v = rearrange(self.qkv(x), "n (qkv h d) -> qkv n h d", qkv=3, h=self.num_heads)
        q, k = rotate(q, rotation), rotate(k, rotation)
        attended = self.kernel(q, k, v, offsets, longest)
        return self.out(rearrange(attended, "n h d -> n (h d)"))


def swiglu_width(width: int, expansion: float) -> int:
    """Inner width of SwiGLU: `expansion * D * 2/3`, up to a multiple of 256."""
    return math.ceil(round(expansion * width * 2 / 3) / 256) * 256


class ShortConvolution(nn.Module):
    """Each channel mixes a token with the one before it in its sequence, then SiLU.

    Starts as SiLU alone. (URM, arXiv 2512.14693, has it in its SwiGLU.)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([torch.zeros(width), torch.ones(width)]))

    def forward(self, x: Tensor, is_first: Tensor) -> Tensor:
        before, own = self.weight.to(x.dtype)
        shifted = F.pad(x, (0, 0, 1, 0))[:-1].masked_fill(is_first.unsqueeze(1), 0)
        return F.silu(before * shifted + own * x)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); with a convolution, it stands before `down`."""

    def __init__(self, width: int, expansion: float, convolution: bool = False) -> None:
        super().__init__()
        inner = swiglu_width(width, expansion)
        self.gate_and_up = Linear(width, 2 * inner)
        self.convolution = ShortConvolution(inner) if convolution else None
        self.down = Linear(inner, width)

    def forward(self, x: Tensor, is_first: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        h = F.silu(gate) * up
        if self.convolution is not None:
            h = self.convolution(h, is_first)
        return self.down(h)


class Block(nn.Module):
    """h = norm(h + attention(h)); h = norm(h + swiglu(h))."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        expansion: float,
        norm_eps: float,
        convolution: bool = False,
    ) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.attention = Attention(width, num_heads)
        self.swiglu = SwiGLU(width, expansion, convolution)

    def forward(self, h: Tensor, sequences: Sequences) -> Tensor:
        h = rms_norm(h + self.attention(h, sequences), self.norm_eps)
        return rms_norm(h + self.swiglu(h, sequences.is_first), self.norm_eps)


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
