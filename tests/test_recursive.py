"""The recursive network: its size, its cost, and one step against the algorithm written out."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from tiny import SEQ_LEN, random_tokens, tiny_arch, tiny_model
from torch import Tensor

from common.errors import UserError
from common.settings import validate
from models.build import build_model, describe
from models.recursive import ArchConfig, RecursiveState, TinyRecursiveModel

CONFIG_DIR = Path(__file__).resolve().parent.parent / "config"
CPU = torch.device("cpu")


def published_arch(name: str) -> ArchConfig:
    return ArchConfig(**yaml.safe_load((CONFIG_DIR / "arch" / f"{name}.yaml").read_text()))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Question(NamedTuple):
    """Arguments of one supervision step."""

    state: RecursiveState
    inputs: Tensor
    puzzle_vectors: Tensor
    supervision_step: Tensor


def question(step: int = 2, batch: int = 2) -> Question:
    """Some state in the middle of a run, for `tiny_model` without any change of width."""
    return Question(
        RecursiveState(normal(batch, 3 + SEQ_LEN, 16, seed=1), normal(batch, 3 + SEQ_LEN, 16)),
        random_tokens(3, batch),
        normal(batch, 16, seed=4),
        torch.tensor(step),
    )


def test_compact_has_859648_parameters() -> None:
    model = TinyRecursiveModel(published_arch("compact"), vocab_size=12, seq_len=900)
    embeddings = 12 * 256 + 6 * 256  # tokens, supervision steps
    attention = 3 * 256 * 256 + 256 * 256  # query, key and value; output
    swiglu = 2 * 768 * 256 + 256 * 768  # gate and up; down
    readout = 256 * 12
    assert model.num_parameters == embeddings + attention + swiglu + readout == 859_648


def test_medium_has_6831104_parameters() -> None:
    model = TinyRecursiveModel(published_arch("medium"), vocab_size=12, seq_len=900)
    embeddings = 12 * 512 + 6 * 512
    attention = 4 * 512 * 512
    swiglu = 3 * 512 * 1536
    assert model.num_parameters == embeddings + 2 * (attention + swiglu) + 512 * 12 == 6_831_104


@pytest.mark.parametrize(
    ("recursions", "updates", "steps", "calls"),
    [(1, 2, 6, 18), (3, 6, 16, 336)],  # 6*1*(2+1), as DIS; 16*3*(6+1), as TRM
)
def test_a_batch_costs_steps_times_cycles_times_updates_calls_of_the_network(
    recursions: int, updates: int, steps: int, calls: int
) -> None:
    model = tiny_model(
        num_recursions=recursions, num_latent_updates=updates, num_supervision_steps=steps
    )
    assert model.config.network_calls == calls
    counted = []
    model.blocks[0].register_forward_hook(lambda *_: counted.append(1))
    state = model.initial_state(1)
    with torch.no_grad():
        for s in range(1, steps + 1):
            state = model(state, random_tokens(0, 1), torch.zeros(1, 16), torch.tensor(s)).state
    assert len(counted) == calls


def test_the_published_configurations_cost_18_calls() -> None:
    assert [published_arch(name).network_calls for name in ("compact", "medium")] == [18, 18]


def written_out(model: TinyRecursiveModel, given: Question) -> tuple[Tensor, Tensor, Tensor]:
    """One supervision step as the specification words it: y, z and logits; no gradient is cut."""
    config = model.config
    width = config.hidden_size
    step_vector = model.step_embedding.weight[given.supervision_step - 1]
    sequences = []
    for tokens, puzzle in zip(given.inputs.tolist(), given.puzzle_vectors, strict=True):
        prefix = [puzzle] + [torch.zeros(width)] * (config.prefix_length - 1)
        cells = [model.token_embedding.weight[token] for token in tokens]
        sequences.append(torch.stack([p + step_vector for p in prefix + cells]) * math.sqrt(width))
    x = torch.stack(sequences)

    def norm(h: Tensor) -> Tensor:
        return h / (h.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()

    def f(h: Tensor) -> Tensor:
        for block in model.blocks:
            h = norm(h + block.attention(h, model.rotary))
            h = norm(h + block.swiglu(h))
        return h

    y, z = given.state
    for cycle in range(config.num_recursions):
        if cycle == config.num_recursions - 1:
            y, z = y.detach(), z.detach()
        for _ in range(config.num_latent_updates):
            z = f(z + (y + x))
        y = f(y + z)
    return y, z, y[:, config.prefix_length :] @ model.readout.weight.T


@pytest.mark.parametrize(
    ("recursions", "updates", "layers"), [(1, 2, 1), (1, 1, 2), (2, 2, 1), (3, 1, 2)]
)
def test_a_step_is_the_algorithm_of_the_specification(
    recursions: int, updates: int, layers: int
) -> None:
    model = tiny_model(num_recursions=recursions, num_latent_updates=updates, num_layers=layers)
    y, z, logits = written_out(model, question())
    output = model(*question())
    assert torch.allclose(output.state.y, y, atol=1e-4)
    assert torch.allclose(output.state.z, z, atol=1e-4)
    assert torch.allclose(output.conditional_logits, logits, atol=1e-4)
    assert output.conditional_logits.shape == (2, SEQ_LEN, 12)


@pytest.mark.parametrize("recursions", [1, 2, 3])
def test_only_the_last_cycle_has_a_gradient(recursions: int) -> None:
    """As if the state were detached before it; embeddings enter every cycle and count once."""
    model = tiny_model(num_recursions=recursions)
    weights = list(model.parameters())
    target = normal(2, SEQ_LEN, 12, seed=9)
    ours = torch.autograd.grad((model(*question()).conditional_logits * target).sum(), weights)
    expected = torch.autograd.grad((written_out(model, question())[2] * target).sum(), weights)
    for gradient, reference in zip(ours, expected, strict=True):
        assert torch.allclose(gradient, reference, atol=1e-3, rtol=1e-3)
        assert reference.abs().max() > 0.01


def test_earlier_cycles_leave_no_graph_behind() -> None:
    model = tiny_model(num_recursions=3)
    recorded = []
    model.blocks[0].register_forward_hook(lambda *call: recorded.append(call[2].requires_grad))
    model(*question())
    assert recorded == [False] * 6 + [True] * 3


def test_the_state_that_is_carried_on_is_detached() -> None:
    output = tiny_model()(*question())
    assert not output.state.y.requires_grad
    assert not output.state.z.requires_grad
    assert output.conditional_logits.requires_grad


def test_the_puzzle_vector_stands_at_position_0_and_the_rest_of_the_prefix_is_empty() -> None:
    model = tiny_model()
    _, inputs, puzzle, step = question(step=2)
    x = model.embed(inputs, puzzle, step)
    of_step = model.step_embedding.weight[1]
    assert x.shape == (2, 3 + SEQ_LEN, 16)
    # Times sqrt(16).
    assert torch.allclose(x[:, 0], 4 * (puzzle + of_step))
    assert torch.allclose(x[:, 1:3], (4 * of_step).expand(2, 2, 16))
    for cell in (0, 7, SEQ_LEN - 1):
        tokens = model.token_embedding.weight[inputs[:, cell]]
        assert torch.allclose(x[:, 3 + cell], 4 * (tokens + of_step))


def test_the_puzzle_vector_changes_its_own_examples_answer_only() -> None:
    model = tiny_model()
    given = question()
    other = given.puzzle_vectors.clone()
    other[1] += 1
    before = model(*given).conditional_logits
    after = model(*given._replace(puzzle_vectors=other)).conditional_logits
    assert torch.allclose(before[0], after[0], atol=1e-6)
    assert (before[1] - after[1]).abs().max() > 0.01


def test_the_step_changes_the_answer_and_steps_beyond_the_last_count_as_the_last() -> None:
    model = tiny_model()  # of three supervision steps
    answers = {s: model(*question(step=s)).conditional_logits for s in (1, 2, 3, 4, 100)}
    assert (answers[1] - answers[2]).abs().max() > 0.01
    assert (answers[2] - answers[3]).abs().max() > 0.01
    assert torch.equal(answers[3], answers[4])
    assert torch.equal(answers[3], answers[100])


def test_every_example_and_position_starts_from_the_same_two_random_vectors() -> None:
    model = tiny_model(hidden_size=256)
    y, z = model.initial_state(2)
    assert y.shape == z.shape == (2, 3 + SEQ_LEN, 256)
    assert torch.equal(y, model.y_init.expand_as(y))
    assert torch.equal(z, model.z_init.expand_as(z))
    # Std 1: of 256 draws it is off by less than 4 * 1 / sqrt(512) = 0.18.
    assert abs(y[0, 0].std() - 1) < 0.18
    assert abs(z[0, 0].std() - 1) < 0.18
    assert (y - z).abs().mean() > 0.5


def test_the_start_vectors_are_stored_with_the_weights_but_not_trained() -> None:
    model = tiny_model()
    assert {"y_init", "z_init"} <= set(model.state_dict())
    assert not {"y_init", "z_init"} & {name for name, _ in model.named_parameters()}


def test_the_reference_logits_read_out_the_incoming_answer_at_the_cells() -> None:
    model, given = tiny_model(), question()
    assert model(*given).reference_logits is None
    output = model(*given, with_reference=True)
    expected = given.state.y[:, 3:] @ model.readout.weight.T
    assert torch.allclose(output.reference_logits, expected, atol=1e-5)
    assert torch.equal(output.conditional_logits, model(*given).conditional_logits)


def test_bf16_compute_keeps_fp32_weights_gradients_and_logits() -> None:
    low, full = tiny_model(compute_dtype=torch.bfloat16), tiny_model()
    puzzle = normal(2, 16).requires_grad_()
    inputs, step = random_tokens(3), torch.tensor(1)
    output = low(low.initial_state(2), inputs, puzzle, step, with_reference=True)
    assert {output.state.y.dtype, output.state.z.dtype} == {torch.bfloat16}
    assert output.conditional_logits.dtype == output.reference_logits.dtype == torch.float32
    output.conditional_logits.square().sum().backward()
    for tensor in (*low.parameters(), puzzle):
        assert tensor.dtype == tensor.grad.dtype == torch.float32
    expected = full(full.initial_state(2), inputs, puzzle, step).conditional_logits
    difference = (output.conditional_logits - expected).abs().max().item()
    assert 1e-5 < difference < 0.2, "bf16 differs from fp32, by little"


@pytest.mark.parametrize("heads", [3, 16])
def test_heads_must_divide_the_width_into_even_parts(heads: int) -> None:
    values = {**tiny_arch().model_dump(), "num_heads": heads}
    with pytest.raises(UserError, match=rf"hidden_size=16 .* arch\.num_heads={heads}"):
        validate(ArchConfig, values, "arch")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_auto_precision_is_fp32_on_a_cpu(precision: str, dtype: torch.dtype) -> None:
    model = build_model(tiny_arch(), 12, SEQ_LEN, CPU, precision, "off")
    assert model.compute_dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_weights_are_a_function_of_the_global_seed() -> None:
    built = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        built.append(build_model(tiny_arch(), 12, SEQ_LEN, CPU, "auto", "auto").state_dict())
    for name, tensor in built[0].items():
        assert torch.equal(tensor, built[1][name])
        assert not torch.equal(tensor, built[2][name])


def test_a_model_is_described_by_its_two_kinds_of_parameters_and_its_calls() -> None:
    model = tiny_model()
    sizes = describe(model, num_puzzles=1000)
    assert sizes["puzzle_embedding_parameters"] == 16_000
    assert sizes["network_calls_per_batch"] == 9
    # Tokens, steps, readout; attention; SwiGLU of inner width 256.
    expected = (12 + 3 + 12) * 16 + 4 * 16 * 16 + 3 * 16 * 256
    assert sizes["network_parameters"] == expected
