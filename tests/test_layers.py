"""Building blocks: each equals its formula, worked by hand or written out the slow way."""

import math

import pytest
import torch
from torch import Tensor

from models.attention import BACKENDS
from models.layers import (
    Attention,
    Block,
    Embedding,
    Linear,
    RotaryEmbedding,
    SwiGLU,
    rms_norm,
    rotate,
    truncated_normal_,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_truncated_normal_has_the_given_std_after_the_cut() -> None:
    torch.manual_seed(0)
    drawn = truncated_normal_(torch.empty(400_000), std=0.5)
    # Variance of a standard normal cut at 2: 1 - 2 * 2 * phi(2) / P(|v| < 2).
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    sigma = 0.5 / math.sqrt(1 - 4 * density / math.erf(math.sqrt(2)))
    assert drawn.std().item() == pytest.approx(0.5, rel=0.005)
    assert drawn.mean().item() == pytest.approx(0, abs=0.005)
    assert 1.99 * sigma < drawn.abs().max().item() <= 2 * sigma
    # Bell-shaped, not flat: 68.3% within one sigma, of the 95.4% that remain.
    assert (drawn.abs() < sigma).float().mean().item() == pytest.approx(0.683 / 0.9545, abs=0.005)


def test_linear_maps_and_embeddings_have_std_1_over_root_width_and_no_bias() -> None:
    torch.manual_seed(0)
    for layer in (Linear(64, 2000), Embedding(2000, 64)):
        assert [name for name, _ in layer.named_parameters()] == ["weight"]
        assert layer.weight.shape == (2000, 64)
        assert layer.weight.std().item() == pytest.approx(1 / 8, rel=0.01)
    index = torch.tensor([[3, 0], [3, 7]])
    assert torch.equal(layer(index), layer.weight[index])


def test_rms_norm_by_hand() -> None:
    # Mean square of (3, 4) is 12.5; with eps 12.5 the divisor is 5.
    x = torch.tensor([[3.0, 4.0], [-3.0, 4.0]])
    assert torch.allclose(rms_norm(x, 12.5), torch.tensor([[0.6, 0.8], [-0.6, 0.8]]))
    expected = torch.tensor([3 / math.sqrt(12.5), 4 / math.sqrt(12.5)])
    assert torch.allclose(rms_norm(x, 0.0)[0], expected)


def test_rms_norm_computes_in_fp32_whatever_its_input() -> None:
    # 300 squared is 90,000: beyond fp16, whose largest number is 65,504.
    x = torch.full((1, 8), 300.0, dtype=torch.float16)
    assert torch.equal(rms_norm(x, 1e-5), torch.ones(1, 8, dtype=torch.float16))
    # A bf16 input gives the fp32 result, rounded once at the end.
    x = normal(20, 64).bfloat16()
    expected = rms_norm(x.float(), 1e-5).bfloat16()
    assert rms_norm(x, 1e-5).dtype == torch.bfloat16
    assert torch.equal(rms_norm(x, 1e-5), expected)


def test_rotary_turns_pairs_half_a_head_apart_by_position_times_frequency() -> None:
    # Head dimension 4, base 10,000: frequencies 1 and 10000 ** (-2/4) = 0.01.
    rotation = RotaryEmbedding(4, 3, 10_000.0)(None)
    turned = [rotate(unit.expand(1, 1, 3, 4), rotation)[0, 0, 2] for unit in torch.eye(4)[:2]]
    assert torch.allclose(turned[0], torch.tensor([math.cos(2), 0, math.sin(2), 0]))
    assert torch.allclose(turned[1], torch.tensor([0, math.cos(0.02), 0, math.sin(0.02)]))


def test_query_times_key_depends_on_the_distance_of_their_positions_only() -> None:
    rotation = RotaryEmbedding(8, 20, 100.0)(None)
    query, key = (normal(8, seed=seed).expand(1, 1, 20, 8) for seed in (1, 2))
    scores = (rotate(query, rotation) @ rotate(key, rotation).mT)[0, 0]
    for distance in (-7, -1, 0, 1, 12):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    # ... and on its sign: the key two places on scores unlike the key two places back.
    assert abs(scores[5, 7] - scores[5, 3]) > 0.01


def test_rotary_answers_in_the_dtype_of_its_input() -> None:
    rotation = RotaryEmbedding(8, 5, 10_000.0)(None)
    x = normal(1, 1, 5, 8).bfloat16()
    assert rotate(x, rotation).dtype == torch.bfloat16
    assert torch.equal(rotate(x, rotation), rotate(x.float(), rotation).bfloat16())


def test_given_positions_turn_each_vector_as_its_place_in_the_full_sequence_would() -> None:
    rotary = RotaryEmbedding(8, 20, 100.0)
    positions = torch.tensor([[0, 7, 3, 19], [5, 5, 0, 1]])
    x = normal(2, 3, 4, 8)
    turned = rotate(x, rotary(positions))
    for row in range(2):
        for place, position in enumerate(positions[row].tolist()):
            full = torch.zeros(1, 3, 20, 8)
            full[0, :, position] = x[row, :, place]
            expected = rotate(full, rotary(None))[0, :, position]
            assert torch.equal(turned[row, :, place], expected)


@pytest.mark.parametrize(
    ("width", "inner"),
    [
        (256, 768),  # 4 * 256 * 2/3 = 682.7, rounded 683, up to 3 * 256
        (512, 1536),  # 1365.3, 1365, up to 6 * 256
        (96, 256),  # exactly 256 stays
        (97, 512),  # 258.7 goes up
    ],
)
def test_the_inner_width_of_swiglu_is_rounded_up_to_a_multiple_of_256(
    width: int, inner: int
) -> None:
    layer = SwiGLU(width, expansion=4)
    assert layer.gate_and_up.weight.shape == (2 * inner, width)
    assert layer.down.weight.shape == (width, inner)


def test_swiglu_by_hand() -> None:
    layer = SwiGLU(2, expansion=4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.gate_and_up.weight[0, 0] = 1  # gate of inner unit 0 reads x[0]
        layer.gate_and_up.weight[256, 1] = 1  # up of inner unit 0 reads x[1]
        layer.down.weight[1, 0] = 2
    # silu(1) = 1 / (1 + exp(-1)) = 0.7310586; times 3, times 2.
    answer = layer(torch.tensor([[1.0, 3.0]]))
    assert torch.allclose(answer, torch.tensor([[0.0, 4.3863514]]))


def test_heads_are_split_and_joined_as_if_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rearranged queries, keys and values of each head, and back, to the bit.

    What attention computes of them, and where, see test_attention.py and test_recursive.py.
    """
    torch.manual_seed(0)
    layer, rotation = Attention(16, num_heads=2), RotaryEmbedding(8, 6, 100.0)(None)
    attended: list[tuple[Tensor, ...]] = []

    def attend(*qkv: Tensor) -> Tensor:
        attended.append(qkv)
        return qkv[2]

    monkeypatch.setitem(BACKENDS, "default", attend)
    x = normal(3, 6, 16)
    answer = layer(x, rotation)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
    by_hand = rotate(q, rotation), rotate(k, rotation), v
    for ours, expected in zip(attended[0], by_hand, strict=True):
        assert ours.shape == (3, 2, 6, 8)
        assert torch.equal(ours, expected)
    assert torch.equal(answer, layer.out(v.transpose(1, 2).flatten(-2)))


@pytest.mark.parametrize("eps", [1e-5, 3.0])
def test_a_block_normalises_after_each_residual_addition(eps: float) -> None:
    torch.manual_seed(0)
    block, rotation = Block(16, 2, 4.0, eps), RotaryEmbedding(8, 6, 10_000.0)(None)
    x = normal(2, 6, 16) * (100 if eps < 1 else 1)
    h = x + block.attention(x, rotation)
    h = h / (h.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    h = h + block.swiglu(h)
    h = h / (h.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    answer = block(x, rotation)
    assert torch.allclose(answer, h, atol=1e-5)
    rms = answer.square().mean(dim=-1).sqrt()
    if eps < 1:
        assert torch.allclose(rms, torch.ones(2, 6), atol=1e-4)
    else:
        assert rms.max() < 0.9


def test_a_block_computes_in_the_dtype_of_its_input_and_keeps_fp32_weights() -> None:
    torch.manual_seed(0)
    block, rotation = Block(16, 2, 4.0, 1e-5), RotaryEmbedding(8, 6, 10_000.0)(None)
    x = normal(2, 6, 16)
    low, full = block(x.bfloat16(), rotation), block(x, rotation)
    assert (low.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    assert torch.allclose(low.float(), full, atol=0.1)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}
