"""The recursive network: its size, its cost, and one step against the algorithm written out."""

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from tiny import SEQ_LEN, random_tokens, tiny_arch, tiny_model
from torch import Tensor, nn

from common.errors import UserError
from common.settings import validate
from config.loading import load_config
from config.schema import TrainConfig
from models.attention import BACKENDS, AttentionFunction
from models.build import build_model, choose_attention, describe
from models.layers import Attention
from models.recursive import ArchConfig, RecursiveState, TinyRecursiveModel

WITH_HALTING = ("trm", "trm_compact", "hrm")
CPU = torch.device("cpu")


def published_arch(name: str) -> ArchConfig:
    """As the trainer composes it: the head goes with the supervision that trains it."""
    supervision = "trm" if name in WITH_HALTING else "dis"
    overrides = [f"arch={name}", f"supervision={supervision}", "data.path=data"]
    return load_config("train", TrainConfig, "", overrides).arch


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Question(NamedTuple):
    """Arguments of one supervision step."""

    state: RecursiveState
    inputs: Tensor
    puzzle_vectors: Tensor
    supervision_step: Tensor
    cells: Tensor | None = None


def question(step: int = 2, batch: int = 2) -> Question:
    """Some state in the middle of a run, for `tiny_model` without any change of width."""
    return Question(
        RecursiveState(normal(batch, 3 + SEQ_LEN, 16, seed=1), normal(batch, 3 + SEQ_LEN, 16)),
        random_tokens(3, batch),
        normal(batch, 16, seed=4),
        torch.tensor(step),
    )


def window(given: Question, *cells: list[int]) -> Question:
    """The same question, each example seen at some cells of its canvas only, in that order."""
    chosen = torch.tensor(cells)
    places = torch.cat([torch.arange(3).expand(len(chosen), 3), 3 + chosen], dim=1)
    state = RecursiveState(*(part.take_along_dim(places[:, :, None], 1) for part in given.state))
    inputs = given.inputs.take_along_dim(chosen, 1)
    return given._replace(state=state, inputs=inputs, cells=chosen)


ALL_CELLS = list(range(SEQ_LEN))
WINDOWS = ([0, 1, 4, 5, 13], [15, 2, 10, 3, 7])
"""A window for each of two examples: in order, and not."""


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


def test_trm_has_6828545_parameters() -> None:
    """Those of medium without steps, plus a halting head: a weight for each number, and a bias."""
    model = TinyRecursiveModel(published_arch("trm"), vocab_size=12, seq_len=900)
    attention = 4 * 512 * 512
    swiglu = 3 * 512 * 1536
    expected = 12 * 512 + 2 * (attention + swiglu) + 512 * 12 + (512 + 1)
    assert model.num_parameters == expected == 6_828_545


def test_trm_compact_has_858369_parameters() -> None:
    model = TinyRecursiveModel(published_arch("trm_compact"), vocab_size=12, seq_len=900)
    expected = 12 * 256 + 4 * 256 * 256 + 3 * 256 * 768 + 256 * 12 + (256 + 1)
    assert model.num_parameters == expected == 858_369


def test_hrm_has_27275777_parameters() -> None:
    """Two networks of four blocks each: the 27M that HRM is known for."""
    model = TinyRecursiveModel(published_arch("hrm"), vocab_size=12, seq_len=900)
    of_network = 4 * (4 * 512 * 512 + 3 * 512 * 1536)
    assert model.num_parameters == 12 * 512 + 2 * of_network + 512 * 12 + (512 + 1) == 27_275_777


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
    state = model.initial_state(1, SEQ_LEN)
    with torch.no_grad():
        for s in range(1, steps + 1):
            state = model(state, random_tokens(0, 1), torch.zeros(1, 16), torch.tensor(s)).state
    assert len(counted) == calls


@pytest.mark.parametrize(
    ("name", "calls", "with_gradient"),
    [
        ("compact", 18, 18),  # 6 * 1 * (2 + 1)
        ("medium", 18, 18),
        ("trm", 336, 112),  # 16 * 3 * (6 + 1), a third of them with a gradient
        ("trm_compact", 48, 48),  # 16 * 1 * (2 + 1)
        ("hrm", 96, 48),  # 16 * 2 * (2 + 1)
    ],
)
def test_what_an_answer_of_the_published_configurations_costs(
    name: str, calls: int, with_gradient: int
) -> None:
    arch = published_arch(name)
    assert (arch.network_calls, arch.network_calls_with_gradient) == (calls, with_gradient)


def test_the_calls_with_a_gradient_are_those_of_the_last_cycles() -> None:
    model = tiny_model(num_recursions=3, num_latent_updates=2, separate_networks=True)
    recorded = []
    for blocks in (model.blocks, model.answer_blocks):
        blocks[0].register_forward_hook(lambda *call: recorded.append(call[2].requires_grad))
    for step in (1, 2, 3):
        model(*question(step=step))
    assert recorded == ([False] * 6 + [True] * 3) * 3, "earlier cycles leave no graph behind"
    assert len(recorded) == model.config.network_calls
    assert sum(recorded) == model.config.network_calls_with_gradient


def dense_attention(layer: Attention, h: Tensor, positions: Tensor) -> Tensor:
    """Softmax over all pairs of `positions` [B, T]; pairs of numbers turn as complex ones."""
    half = h.shape[-1] // layer.num_heads // 2
    frequencies = 10_000.0 ** (-torch.arange(half) / half)
    turn = torch.polar(torch.ones(half), positions[:, :, None, None] * frequencies)

    def heads(weight: Tensor) -> Tensor:
        return (h @ weight.T).unflatten(-1, (layer.num_heads, 2 * half))

    def turned(x: Tensor) -> Tensor:
        number = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([number.real, number.imag], dim=-1)

    q, k, v = map(heads, layer.qkv.weight.chunk(3))
    scores = torch.einsum("bihd,bjhd->bhij", turned(q), turned(k)) / math.sqrt(2 * half)
    attended = torch.einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), v)
    return attended.flatten(-2) @ layer.out.weight.T


def written_out(model: TinyRecursiveModel, given: Question) -> tuple[Tensor, Tensor, Tensor]:
    """One supervision step as the specification words it: y, z and logits; no gradient is cut."""
    config = model.config
    width = config.hidden_size
    step_vector = torch.zeros(width)
    if model.step_embedding is not None:
        step_vector = model.step_embedding.weight[given.supervision_step - 1]
    sequences = []
    for tokens, puzzle in zip(given.inputs.tolist(), given.puzzle_vectors, strict=True):
        prefix = [puzzle] + [torch.zeros(width)] * (config.prefix_length - 1)
        of_cells = [model.token_embedding.weight[token] for token in tokens]
        sequence = torch.stack([p + step_vector for p in prefix + of_cells])
        sequences.append(sequence * math.sqrt(width))
    x = torch.stack(sequences)
    cells = torch.arange(SEQ_LEN).expand_as(given.inputs) if given.cells is None else given.cells
    positions = torch.stack([torch.tensor([0, 1, 2, *(3 + row).tolist()]) for row in cells])

    def norm(h: Tensor) -> Tensor:
        return h / (h.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()

    def f(h: Tensor, blocks: nn.ModuleList) -> Tensor:
        for block in blocks:
            h = norm(h + dense_attention(block.attention, h, positions))
            h = norm(h + block.swiglu(h))
        return h

    y, z = given.state
    for cycle in range(config.num_recursions):
        if cycle == config.num_recursions - 1:
            y, z = y.detach(), z.detach()
        for _ in range(config.num_latent_updates):
            z = f(z + (y + x), model.blocks)
        y = f(y + z, model.blocks if model.answer_blocks is None else model.answer_blocks)
    return y, z, y[:, config.prefix_length :] @ model.readout.weight.T


@pytest.mark.parametrize("changes", [{}, {"separate_networks": True}, {"step_embedding": False}])
@pytest.mark.parametrize(
    ("recursions", "updates", "layers"), [(1, 2, 1), (1, 1, 2), (2, 2, 1), (3, 1, 2)]
)
def test_a_step_is_the_algorithm_of_the_specification(
    recursions: int, updates: int, layers: int, changes: dict[str, bool]
) -> None:
    model = tiny_model(
        num_recursions=recursions, num_latent_updates=updates, num_layers=layers, **changes
    )
    y, z, logits = written_out(model, question())
    output = model(*question())
    assert torch.allclose(output.state.y, y, atol=1e-4)
    assert torch.allclose(output.state.z, z, atol=1e-4)
    assert torch.allclose(output.conditional_logits, logits, atol=1e-4)
    assert output.conditional_logits.shape == (2, SEQ_LEN, 12)


@pytest.mark.parametrize(("recursions", "layers"), [(1, 1), (2, 1), (1, 2)])
def test_a_step_over_a_window_is_the_algorithm_on_its_cells_alone(
    recursions: int, layers: int
) -> None:
    """Each token at its place on the canvas, and as if the dropped cells had never been."""
    model = tiny_model(num_recursions=recursions, num_layers=layers)
    given = window(question(), *WINDOWS)
    output = model(*given, with_reference=True)
    y, z, logits = written_out(model, given)
    assert torch.allclose(output.state.y, y, atol=1e-4)
    assert torch.allclose(output.state.z, z, atol=1e-4)
    assert torch.allclose(output.conditional_logits, logits, atol=1e-4)
    assert output.conditional_logits.shape == output.reference_logits.shape == (2, 5, 12)
    reference = given.state.y[:, 3:] @ model.readout.weight.T
    assert torch.allclose(output.reference_logits, reference, atol=1e-5)
    # What the dropped cells said has been heard by the others where they were there.
    of_whole = model(*question()).conditional_logits
    kept = of_whole.take_along_dim(torch.tensor(WINDOWS)[:, :, None], 1)
    assert (kept - logits).abs().max() > 0.01


def test_all_cells_in_order_are_the_whole_canvas() -> None:
    model, given = tiny_model(num_recursions=2, num_layers=2), question()
    whole, listed = model(*given), model(*window(given, ALL_CELLS, ALL_CELLS))
    torch.testing.assert_close(
        listed.conditional_logits, whole.conditional_logits, atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(listed.state.y, whole.state.y, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(listed.state.z, whole.state.z, atol=1e-6, rtol=1e-6)


def test_listing_the_cells_in_another_order_lists_the_logits_in_that_order() -> None:
    model, given = tiny_model(num_layers=2), question()
    order = torch.stack(
        [torch.randperm(SEQ_LEN, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    )
    logits = model(*window(given, *order.tolist())).conditional_logits
    expected = model(*given).conditional_logits.take_along_dim(order[:, :, None], 1)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not torch.allclose(logits[0], expected[1], atol=0.1)


def test_the_same_tokens_at_other_cells_are_another_question() -> None:
    """Their distance counts, and, by the prefix, so does where on the canvas they are."""
    model, given = tiny_model(), question()
    some = window(given, [0, 1, 4, 5], [0, 1, 4, 5])
    here = model(*some).conditional_logits
    for name, cells in (("spread", [0, 3, 12, 15]), ("moved", [10, 11, 14, 15])):
        there = model(*some._replace(cells=torch.tensor([cells, cells]))).conditional_logits
        assert (there - here).abs().max() > 0.01, name


def test_dropped_cells_are_missed_by_attention_alone() -> None:
    """With nothing attended to, each cell goes its own way, whatever else is there."""
    model, given = tiny_model(num_recursions=2, num_layers=2), question()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight.zero_()
    logits = model(*window(given, *WINDOWS)).conditional_logits
    whole = model(*given).conditional_logits
    kept = whole.take_along_dim(torch.tensor(WINDOWS)[:, :, None], 1)
    assert torch.allclose(logits, kept, atol=1e-6)


def test_an_examples_window_is_no_matter_of_the_others_in_the_batch() -> None:
    model, given = tiny_model(), window(question(), *WINDOWS)
    together = model(*given).conditional_logits
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = model(
            RecursiveState(*(part[one] for part in given.state)),
            given.inputs[one],
            given.puzzle_vectors[one],
            given.supervision_step,
            given.cells[one],
        )
        assert torch.allclose(together[one], alone.conditional_logits, atol=1e-5)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("recursions", [1, 2, 3])
def test_only_the_last_cycle_has_a_gradient(recursions: int, windows: bool, separate: bool) -> None:
    """As if the state were detached before it; embeddings enter every cycle and count once."""
    model = tiny_model(num_recursions=recursions, separate_networks=separate)
    weights = list(model.parameters())
    given = window(question(), *WINDOWS) if windows else question()
    target = normal(*given.inputs.shape, 12, seed=9)
    ours = torch.autograd.grad((model(*given).conditional_logits * target).sum(), weights)
    expected = torch.autograd.grad((written_out(model, given)[2] * target).sum(), weights)
    for gradient, reference in zip(ours, expected, strict=True):
        assert torch.allclose(gradient, reference, atol=1e-3, rtol=1e-3)
        assert reference.abs().max() > 0.01


def test_one_network_thinks_and_the_other_answers() -> None:
    """Where there are two: n updates of z by `blocks`, then one of y by `answer_blocks`."""
    model = tiny_model(separate_networks=True, num_latent_updates=3, num_recursions=2)
    assert model.answer_blocks is not None
    called = []
    model.blocks[0].register_forward_hook(lambda *_: called.append("z"))
    model.answer_blocks[0].register_forward_hook(lambda *_: called.append("y"))
    output = model(*question())
    assert "".join(called) == "zzzyzzzy"
    # The answer's network has no part in z before there is a y, and does not share its weights.
    one_cycle = tiny_model(separate_networks=True)
    before = one_cycle(*question())
    with torch.no_grad():
        for parameter in one_cycle.answer_blocks.parameters():
            parameter.mul_(1.5)
    after = one_cycle(*question())
    assert torch.equal(before.state.z, after.state.z)
    assert (before.state.y - after.state.y).abs().max() > 0.01
    with torch.no_grad():
        for parameter in one_cycle.blocks.parameters():
            parameter.mul_(1.5)
    assert (one_cycle(*question()).state.z - before.state.z).abs().max() > 0.01
    assert output.halting_logits is None
    assert tiny_model().answer_blocks is None


def test_the_state_that_is_carried_on_is_detached() -> None:
    output = tiny_model()(*question())
    assert not output.state.y.requires_grad
    assert not output.state.z.requires_grad
    assert output.conditional_logits.requires_grad


def test_the_puzzle_vector_stands_at_position_0_and_the_rest_of_the_prefix_is_empty() -> None:
    model = tiny_model()
    _, inputs, puzzle, step, _ = question(step=2)
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


def test_without_a_step_embedding_every_step_is_the_same() -> None:
    model = tiny_model(step_embedding=False)
    first, second, beyond = (model(*question(step=s)).conditional_logits for s in (1, 2, 100))
    assert torch.equal(first, second)
    assert torch.equal(first, beyond)
    assert not any("step" in name for name in model.state_dict())
    x = model.embed(*question()[1:4])
    assert torch.equal(x[:, 1:3], torch.zeros(2, 2, 16)), "nor has the empty prefix any content"


@pytest.mark.parametrize("windows", [False, True])
def test_examples_at_steps_of_their_own_are_answered_as_in_batches_of_one_step(
    windows: bool,
) -> None:
    """As with halting; a step beyond the last counts as the last."""
    model = tiny_model(halting_head=True)
    model.halting_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    given = question(batch=4)
    if windows:
        given = window(given, *WINDOWS, *WINDOWS)
    steps = [2, 1, 3, 7]
    mixed = model(*given._replace(supervision_step=torch.tensor(steps)))
    for row, step in enumerate(steps):
        alike = model(*given._replace(supervision_step=torch.tensor(step)))
        assert torch.allclose(mixed.conditional_logits[row], alike.conditional_logits[row])
        assert torch.allclose(mixed.halting_logits[row], alike.halting_logits[row])
        assert torch.allclose(mixed.state.z[row], alike.state.z[row])
        other = model(*given._replace(supervision_step=torch.tensor(step % 3 + 1)))
        assert (other.conditional_logits[row] - alike.conditional_logits[row]).abs().max() > 0.01


def test_every_example_and_position_starts_from_the_same_two_random_vectors() -> None:
    model = tiny_model(hidden_size=256)
    y, z = model.initial_state(2, SEQ_LEN)
    assert y.shape == z.shape == (2, 3 + SEQ_LEN, 256)
    assert torch.equal(y, model.y_init.expand_as(y))
    assert torch.equal(z, model.z_init.expand_as(z))
    # Std 1: of 256 draws it is off by less than 4 * 1 / sqrt(512) = 0.18.
    assert abs(y[0, 0].std() - 1) < 0.18
    assert abs(z[0, 0].std() - 1) < 0.18
    assert (y - z).abs().mean() > 0.5


def test_the_state_of_a_window_is_as_long_as_the_window() -> None:
    model = tiny_model()
    y, z = model.initial_state(2, 5)
    assert y.shape == z.shape == (2, 3 + 5, 16)
    assert torch.equal(y, model.y_init.expand_as(y))
    assert torch.equal(z, model.z_init.expand_as(z))
    assert y.is_contiguous() and z.is_contiguous()


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
    output = low(low.initial_state(2, SEQ_LEN), inputs, puzzle, step, with_reference=True)
    assert {output.state.y.dtype, output.state.z.dtype} == {torch.bfloat16}
    assert output.conditional_logits.dtype == output.reference_logits.dtype == torch.float32
    output.conditional_logits.square().sum().backward()
    for tensor in (*low.parameters(), puzzle):
        assert tensor.dtype == tensor.grad.dtype == torch.float32
    expected = full(full.initial_state(2, SEQ_LEN), inputs, puzzle, step).conditional_logits
    difference = (output.conditional_logits - expected).abs().max().item()
    assert 1e-5 < difference < 0.2, "bf16 differs from fp32, by little"


def test_a_window_in_bf16_is_computed_in_bf16_and_is_near_the_one_in_fp32() -> None:
    low, full = tiny_model(compute_dtype=torch.bfloat16), tiny_model()
    cells = torch.tensor(WINDOWS)
    inputs, puzzle, step = random_tokens(3)[:, :5], normal(2, 16), torch.tensor(1)
    output = low(low.initial_state(2, 5), inputs, puzzle, step, cells)
    assert {output.state.y.dtype, output.state.z.dtype} == {torch.bfloat16}
    assert output.conditional_logits.dtype == torch.float32
    expected = full(full.initial_state(2, 5), inputs, puzzle, step, cells).conditional_logits
    error = (output.conditional_logits - expected).norm() / expected.norm()
    # bf16 has eight bits, and a few dozen operations follow each other.
    assert 1e-4 < error.item() < 0.1


@pytest.mark.parametrize("backend", ["default", "flash", "matmul"])
def test_the_chosen_backend_computes_the_attention_of_every_block(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = tiny_model(num_layers=2), question()
    expected, calls = written_out(model, given)[2], []
    for name, attend in list(BACKENDS.items()):
        recorded = partial(_record, calls, name, attend)
        monkeypatch.setitem(BACKENDS, name, recorded)
    model.use_attention(backend)
    assert torch.allclose(model(*given).conditional_logits, expected, atol=1e-4)
    assert calls == [backend] * 6, "two blocks, three calls"


def _record(calls: list[str], name: str, attend: AttentionFunction, *qkv: Tensor) -> Tensor:
    calls.append(name)
    return attend(*qkv)


def test_the_model_attends_by_the_backend_it_is_built_with() -> None:
    model = build_model(tiny_arch(num_layers=2), 12, SEQ_LEN, CPU, "auto", "off", "matmul")
    assert [block.attention.backend for block in model.blocks] == ["matmul", "matmul"]


@pytest.mark.parametrize(("asked", "used"), [("auto", "default"), ("matmul", "matmul")])
def test_on_a_cpu_attention_is_as_asked_and_nothing_is_timed(
    asked: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.build.fastest_backend", None)
    assert choose_attention(asked, tiny_arch(), SEQ_LEN, "auto", CPU) == used


def test_on_a_gpu_the_fastest_attention_for_the_heads_and_length_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def fastest(*arguments: object) -> str:
        asked.append(arguments)
        return "matmul"

    monkeypatch.setattr("models.build.fastest_backend", fastest)
    cuda = torch.device("cuda")
    assert choose_attention("auto", tiny_arch(), 20, "auto", cuda) == "matmul"
    assert asked == [((64, 2, 3 + 20, 8), torch.bfloat16, cuda)]


def test_attention_that_does_not_run_here_is_refused() -> None:
    with pytest.raises(UserError, match=r"attention=cudnn: .* on cpu .* attention=auto"):
        choose_attention("cudnn", tiny_arch(), SEQ_LEN, "auto", CPU)


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
    model = build_model(tiny_arch(), 12, SEQ_LEN, CPU, precision, "off", "default")
    assert model.compute_dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_weights_are_a_function_of_the_global_seed() -> None:
    built = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        built.append(
            build_model(tiny_arch(), 12, SEQ_LEN, CPU, "auto", "auto", "default").state_dict()
        )
    for name, tensor in built[0].items():
        assert torch.equal(tensor, built[1][name])
        assert not torch.equal(tensor, built[2][name])


def test_a_model_is_described_by_its_two_kinds_of_parameters_and_its_calls() -> None:
    model = tiny_model()
    sizes = describe(model, num_puzzles=1000)
    assert sizes["puzzle_embedding_parameters"] == 16_000
    assert sizes["network_calls_per_answer"] == 9
    assert sizes["network_calls_with_gradient"] == 9
    # Tokens, steps, readout; attention; SwiGLU of inner width 256.
    expected = (12 + 3 + 12) * 16 + 4 * 16 * 16 + 3 * 16 * 256
    assert sizes["network_parameters"] == expected
