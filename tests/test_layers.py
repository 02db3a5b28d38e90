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


def rms(x: Tensor) -> Tensor:
    return x.double().square().mean(dim=-1).sqrt()


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


def test_the_weights_of_a_linear_map_have_std_1_over_root_fan_in_and_no_bias() -> None:
    torch.manual_seed(0)
    layer = Linear(64, 2000)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer.weight.shape == (2000, 64)
    assert layer.weight.std().item() == pytest.approx(1 / 8, rel=0.01)


def test_an_embedding_has_std_1_over_root_width() -> None:
    torch.manual_seed(0)
    table = Embedding(2000, 64)
    assert table.weight.std().item() == pytest.approx(1 / 8, rel=0.01)
    index = torch.tensor([[3, 0], [3, 7]])
    assert torch.equal(table(index), table.weight[index])


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
    rotary = RotaryEmbedding(4, 3, 10_000.0)
    first = rotate(torch.tensor([1.0, 0, 0, 0]).expand(1, 1, 3, 4), rotary(None))[0, 0, 2]
    assert torch.allclose(first, torch.tensor([math.cos(2), 0, math.sin(2), 0]))
    second = rotate(torch.tensor([0, 1.0, 0, 0]).expand(1, 1, 3, 4), rotary(None))[0, 0, 2]
    assert torch.allclose(second, torch.tensor([0, math.cos(0.02), 0, math.sin(0.02)]))


def test_rotary_leaves_position_0_alone_and_keeps_every_norm() -> None:
    x = normal(2, 3, 20, 8)
    turned = rotate(x, RotaryEmbedding(8, 20, 10_000.0)(None))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.allclose(turned[:, :, 1], x[:, :, 1], atol=0.01)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


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


def test_all_positions_in_order_are_the_full_sequence() -> None:
    rotary, x = RotaryEmbedding(8, 20, 100.0), normal(2, 3, 20, 8)
    given = rotate(x, rotary(torch.arange(20).expand(2, -1)))
    assert torch.equal(given, rotate(x, rotary(None)))


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


def naive_attention(layer: Attention, x: Tensor, positions: list[int], base: float) -> Tensor:
    """Softmax attention of one sequence [T, D], one head, one query and one key at a time."""
    length, width = x.shape
    head_dim = width // layer.num_heads
    half = head_dim // 2

    def turned(vector: Tensor, position: int) -> Tensor:
        angles = position * base ** (-torch.arange(half, dtype=torch.float64) / half)
        number = torch.complex(vector[:half], vector[half:]) * torch.polar(
            torch.ones(half, dtype=torch.float64), angles
        )
        return torch.cat([number.real, number.imag])

    weight = layer.qkv.weight.double()
    joined = torch.zeros(length, width, dtype=torch.float64)
    for head in range(layer.num_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        q, k, v = (x @ part[rows].T for part in weight.split(width))
        for i in range(length):
            scores = [
                turned(q[i], positions[i]) @ turned(k[j], positions[j]) / math.sqrt(head_dim)
                for j in range(length)
            ]
            joined[i, rows] = torch.stack(scores).softmax(dim=0) @ v
    return joined @ layer.out.weight.double().T


def test_attention_is_softmax_attention_over_all_positions() -> None:
    torch.manual_seed(0)
    layer = Attention(16, num_heads=2)
    x = normal(2, 6, 16)
    answer = layer(x, RotaryEmbedding(8, 6, 100.0)(None)).double()
    everywhere = list(range(6))
    expected = [naive_attention(layer, row.double(), everywhere, base=100.0) for row in x]
    assert torch.allclose(answer, torch.stack(expected), atol=1e-5)


def test_attention_over_some_positions_is_softmax_attention_among_these() -> None:
    torch.manual_seed(0)
    layer, rotary = Attention(16, num_heads=2), RotaryEmbedding(8, 30, 100.0)
    positions = [[0, 1, 7, 29], [3, 28, 2, 11]]
    x = normal(2, 4, 16)
    answer = layer(x, rotary(torch.tensor(positions))).double()
    expected = [
        naive_attention(layer, row.double(), places, base=100.0)
        for row, places in zip(x, positions, strict=True)
    ]
    assert torch.allclose(answer, torch.stack(expected), atol=1e-5)
    in_order = layer(x, RotaryEmbedding(8, 4, 100.0)(None)).double()
    assert not torch.allclose(answer, in_order, atol=1e-3)


@pytest.mark.parametrize("name", ["default", "flash", "matmul"])
def test_attention_is_computed_by_the_layers_backend(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, rotation = Attention(16, num_heads=2), RotaryEmbedding(8, 6, 100.0)(None)
    assert layer.backend == "default"
    x = normal(2, 6, 16)
    expected, calls = layer(x, rotation), []
    backend = BACKENDS[name]

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape)
        return backend(q, k, v)

    monkeypatch.setitem(BACKENDS, name, counted)
    layer.backend = name
    assert torch.allclose(layer(x, rotation), expected, atol=1e-6)
    assert calls == [(2, 2, 6, 8)]


def test_attention_is_not_causal() -> None:
    torch.manual_seed(0)
    layer, rotation = Attention(16, num_heads=2), RotaryEmbedding(8, 6, 100.0)(None)
    x = normal(1, 6, 16)
    changed = x.clone()
    changed[0, 5] += 1
    assert not torch.allclose(layer(x, rotation)[0, 0], layer(changed, rotation)[0, 0], atol=1e-3)


def test_a_block_normalises_after_each_residual_addition() -> None:
    torch.manual_seed(0)
    block, rotation = Block(16, 2, 4.0, 1e-5), RotaryEmbedding(8, 6, 10_000.0)(None)
    x = 100 * normal(2, 6, 16)
    answer = block(x, rotation)
    assert torch.allclose(rms(answer), torch.ones(2, 6, dtype=torch.float64), atol=1e-4)
    h = x + block.attention(x, rotation)
    h = h / (h.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    h = h + block.swiglu(h)
    h = h / (h.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(answer, h, atol=1e-5)


def test_the_epsilon_of_a_block_is_the_one_it_is_given() -> None:
    torch.manual_seed(0)
    block, rotation = Block(16, 2, 4.0, norm_eps=3.0), RotaryEmbedding(8, 6, 10_000.0)(None)
    assert rms(block(normal(1, 6, 16), rotation)).max() < 0.9


def test_a_block_computes_in_the_dtype_of_its_input_and_keeps_fp32_weights() -> None:
    torch.manual_seed(0)
    block, rotation = Block(16, 2, 4.0, 1e-5), RotaryEmbedding(8, 6, 10_000.0)(None)
    x = normal(2, 6, 16)
    low, full = block(x.bfloat16(), rotation), block(x, rotation)
    assert (low.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    assert torch.allclose(low.float(), full, atol=0.1)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}
