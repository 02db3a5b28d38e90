"""Building blocks: each equals its formula, worked by hand or written out the slow way."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers import (
    Attention,
    Block,
    Embedding,
    HaltingHead,
    Linear,
    RotaryEmbedding,
    Sequences,
    ShortConvolution,
    SwiGLU,
    flat_angles,
    grid_angles,
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


def test_an_embedding_is_a_look_up_that_has_zeros_and_no_gradient_for_what_is_no_row() -> None:
    layer = Embedding(5, 4)
    index = torch.tensor([3, 0, 3, -1, 4])
    looked_up = layer(index)
    assert torch.equal(looked_up[[0, 1, 2, 4]], layer.weight[[3, 0, 3, 4]])
    assert looked_up[3].tolist() == [0.0] * 4
    assert torch.equal(layer(torch.tensor(2)), layer.weight[2])
    looked_up.backward(torch.arange(5.0).unsqueeze(1).expand(5, 4))
    assert layer.weight.grad[:, 0].tolist() == [1, 0, 0, 0 + 2, 4]


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
    rotation = RotaryEmbedding(flat_angles(4, 3, 10_000.0))(torch.tensor([2, 2, 0]))
    unit = torch.eye(4)
    turned = rotate(torch.stack([unit[0], unit[1], unit[1]]).unsqueeze(1), rotation).squeeze(1)
    assert torch.allclose(turned[0], torch.tensor([math.cos(2), 0, math.sin(2), 0]))
    assert torch.allclose(turned[1], torch.tensor([0, math.cos(0.02), 0, math.sin(0.02)]))
    assert torch.equal(turned[2], unit[1])


def test_query_times_key_depends_on_the_distance_of_their_positions_only() -> None:
    rotation = RotaryEmbedding(flat_angles(8, 20, 100.0))(torch.arange(20))
    query, key = (normal(8, seed=seed).expand(20, 3, 8) for seed in (1, 2))
    scores = rotate(query, rotation)[:, 1] @ rotate(key, rotation)[:, 1].T
    for distance in (-7, -1, 0, 1, 12):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    # ... and on its sign: the key two places on scores unlike the key two places back.
    assert abs(scores[5, 7] - scores[5, 3]) > 0.01


def test_rotary_answers_in_the_dtype_of_its_input() -> None:
    rotation = RotaryEmbedding(flat_angles(8, 5, 10_000.0))(torch.arange(5))
    x = normal(5, 1, 8).bfloat16()
    assert rotate(x, rotation).dtype == torch.bfloat16
    assert torch.equal(rotate(x, rotation), rotate(x.float(), rotation).bfloat16())


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
    answer = layer(torch.tensor([[1.0, 3.0]]), torch.tensor([True]))
    assert torch.allclose(answer, torch.tensor([[0.0, 4.3863514]]))


def sequences(*lengths: int) -> Sequences:
    """Of eight numbers a head, each counted from 0."""
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.cat([torch.arange(length) for length in lengths])
    rotation = RotaryEmbedding(flat_angles(8, 6, 100.0))(positions)
    return Sequences(rotation, positions == 0, offsets, longest=6)


def test_heads_are_split_and_joined_as_if_written_out() -> None:
    """The queries, keys and values of each head, and back, to the bit; see test_attention.py."""
    torch.manual_seed(0)
    layer, given = Attention(16, num_heads=2), sequences(4, 2)
    x, handed = normal(6, 16), []

    def attend(*arguments: object) -> object:
        handed.extend(arguments)
        return arguments[2]

    layer.kernel = attend
    answer = layer(x, given)
    q, k, v = layer.qkv(x).view(6, 3, 2, 8).unbind(1)
    for ours, expected in zip(
        handed[:3], (rotate(q, given.rotation), rotate(k, given.rotation), v), strict=True
    ):
        assert ours.shape == (6, 2, 8)
        assert torch.equal(ours, expected)
    assert handed[3] is given.offsets and handed[4] == 6
    assert torch.equal(answer, layer.out(v.flatten(-2)))


@pytest.mark.parametrize("eps", [1e-5, 3.0])
def test_a_block_normalises_after_each_residual_addition(eps: float) -> None:
    torch.manual_seed(0)
    block, given = Block(16, 2, 4.0, eps), sequences(4, 6)
    x = normal(10, 16) * (100 if eps < 1 else 1)
    h = x + block.attention(x, given)
    h = h / (h.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    h = h + block.swiglu(h, given.is_first)
    h = h / (h.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    answer = block(x, given)
    assert torch.allclose(answer, h, atol=1e-5)
    rms = answer.square().mean(dim=-1).sqrt()
    if eps < 1:
        assert torch.allclose(rms, torch.ones(10), atol=1e-4)
    else:
        assert rms.max() < 0.9


def test_a_block_computes_in_the_dtype_of_its_input_and_keeps_fp32_weights() -> None:
    torch.manual_seed(0)
    block, given = Block(16, 2, 4.0, 1e-5), sequences(4, 6)
    x = normal(10, 16)
    low, full = block(x.bfloat16(), given), block(x, given)
    assert (low.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    assert torch.allclose(low.float(), full, atol=0.1)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}


def test_the_convolution_mixes_a_token_with_the_one_before_it_in_its_sequence_by_hand() -> None:
    layer = ShortConvolution(2)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    is_first = torch.tensor([True, False, True])
    # At first the tokens before play no part: SiLU alone.
    assert torch.equal(layer(x, is_first), F.silu(x))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[10.0, 0.5], [1.0, 2.0]]))
    mixed = torch.tensor([[1.0, 4.0], [10 + 3.0, 1 + 8.0], [5.0, 12.0]])
    assert torch.equal(layer(x, is_first), F.silu(mixed))


def test_the_convolution_stands_between_the_product_with_the_gate_and_the_way_down() -> None:
    torch.manual_seed(0)
    plain, layer = SwiGLU(4, 2), SwiGLU(4, 2, convolution=True)
    layer.load_state_dict(plain.state_dict(), strict=False)
    x, is_first = normal(3, 4), torch.tensor([True, False, False])
    layer.convolution.weight.data.normal_()
    gate, up = layer.gate_and_up(x).chunk(2, dim=-1)
    inner = layer.convolution(F.silu(gate) * up, is_first)
    assert torch.equal(layer(x, is_first), layer.down(inner))
    assert not torch.allclose(layer(x, is_first), plain(x, is_first))


def test_by_row_and_column_half_of_the_frequencies_turn_with_each_and_the_prefix_not() -> None:
    # Head dimension 8: per axis two frequencies, 1 and 100 ** (-2/4) = 0.1; a canvas of 3 x 3.
    angles = grid_angles(8, prefix_length=2, side=3, base=100.0)
    assert angles.shape == (2 + 9, 4)
    assert not angles[:2].any()
    # Cell 7 is in row 2, column 1.
    assert angles[2 + 7].tolist() == pytest.approx([2, 0.2, 1, 0.1])
    assert angles[2 + 3].tolist() == pytest.approx([1, 0.1, 0, 0])


def test_by_row_and_column_query_times_key_depends_on_relative_rows_and_columns_alone() -> None:
    side = 5
    rotation = RotaryEmbedding(grid_angles(8, 1, side, 100.0))(torch.arange(1 + side * side))
    query, key = (normal(8, seed=seed).expand(1 + side * side, 3, 8) for seed in (1, 2))
    scores = (rotate(query, rotation)[:, 1] @ rotate(key, rotation)[:, 1].T)[1:, 1:]
    scores = scores.view(side, side, side, side)  # Row and column of the query, then of the key.
    for down, right in ((0, 0), (1, -2), (-3, 1)):
        same = torch.stack(
            [
                scores[row, col, row + down, col + right]
                for row in range(max(0, -down), side - max(0, down))
                for col in range(max(0, -right), side - max(0, right))
            ]
        )
        assert torch.allclose(same, same[0].expand_as(same), atol=1e-5)
    # Along the flat index both of these are five places on: to the next row, or not.
    assert abs(scores[1, 1, 2, 1] - scores[0, 0, 0, 4]) > 0.01


def test_the_halting_head_starts_at_minus_5_whatever_it_sees() -> None:
    head = HaltingHead(8)
    assert head(3 * normal(5, 8)).tolist() == [-5.0] * 5
    assert head(normal(5, 8).bfloat16()).dtype == torch.float32
    assert sum(p.numel() for p in head.parameters()) == 9
