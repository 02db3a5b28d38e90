"""The recursive network: its size, its cost, and one step against the algorithm written out."""

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from tiny import SEQ_LEN, random_tokens, tiny_arch, tiny_model
from torch import Tensor, nn

from common.distributed import Ranks
from common.errors import UserError
from common.settings import validate
from config.loading import load_config
from config.schema import TrainConfig
from models import build
from models.attention import BACKENDS, AttentionFunction
from models.build import ComputeConfig, build_model, choose_attention, describe
from models.layers import Attention
from models.recursive import ArchConfig, RecursiveState, TinyRecursiveModel

WITH_HALTING = ("trm", "trm_compact", "hrm")
CPU = torch.device("cpu")
RANKS = Ranks(rank=0, world_size=1, device=CPU)


def published_arch(name: str) -> ArchConfig:
    """As the trainer composes it: the head goes with the supervision that trains it."""
    supervision = "trm" if name in WITH_HALTING else "dis"
    overrides = [f"arch={name}", f"supervision={supervision}"]
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


def weights(width: int, inner: int, blocks: int) -> int:
    """Of tokens and readout, and of so many blocks: query, key, value, output; gate, up, down."""
    return 2 * 12 * width + blocks * (4 * width * width + 3 * width * inner)


@pytest.mark.parametrize(
    ("name", "by_hand", "total", "calls", "with_gradient"),
    [
        # Six supervision steps of 1 * (2 + 1) calls.
        ("compact", weights(256, 768, 1) + 6 * 256, 859_648, 18, 18),
        ("medium", weights(512, 1536, 2) + 6 * 512, 6_831_104, 18, 18),
        # No steps, but a halting head: a weight for each number, and a bias.
        # Calls: 16 * 3 * (6 + 1), and 16 * 1 * (2 + 1).
        ("trm", weights(512, 1536, 2) + 512 + 1, 6_828_545, 336, 112),
        ("trm_compact", weights(256, 768, 1) + 256 + 1, 858_369, 48, 48),
        # Two networks of four blocks each: the 27M that HRM is known for. Calls: 16 * 2 * (2 + 1).
        ("hrm", weights(512, 1536, 2 * 4) + 512 + 1, 27_275_777, 96, 48),
    ],
)
def test_the_published_architectures_have_the_published_sizes(
    name: str, by_hand: int, total: int, calls: int, with_gradient: int
) -> None:
    arch = published_arch(name)
    model = TinyRecursiveModel(arch, vocab_size=12, seq_len=900)
    assert model.num_parameters == by_hand == total
    assert (arch.network_calls, arch.network_calls_with_gradient) == (calls, with_gradient)


@pytest.mark.parametrize(
    ("recursions", "updates", "steps", "calls"),
    [(1, 2, 6, 18), (3, 6, 16, 336)],  # 6*1*(2+1), as DIS; 16*3*(6+1), as TRM
)
@pytest.mark.parametrize("separate", [False, True])
def test_a_batch_costs_steps_times_cycles_times_updates_calls_of_the_network(
    recursions: int, updates: int, steps: int, calls: int, separate: bool
) -> None:
    """Of these, the calls of each step's last cycle have a gradient."""
    model = tiny_model(
        num_recursions=recursions,
        num_latent_updates=updates,
        num_supervision_steps=steps,
        separate_networks=separate,
    )
    recorded = []
    for blocks in (model.blocks, model.answer_blocks or []):
        for block in blocks:
            block.register_forward_hook(lambda *call: recorded.append(call[2].requires_grad))
    for s in range(1, steps + 1):
        model(*question(step=s))
    without, with_gradient = [False] * (updates + 1) * (recursions - 1), [True] * (updates + 1)
    assert recorded == (without + with_gradient) * steps, "earlier cycles leave no graph behind"
    assert len(recorded) == model.config.network_calls == calls
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


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("changes", [{}, {"separate_networks": True}, {"step_embedding": False}])
@pytest.mark.parametrize(
    ("recursions", "updates", "layers"), [(1, 2, 1), (1, 1, 2), (2, 2, 1), (3, 1, 2)]
)
def test_a_step_is_the_algorithm_of_the_specification(
    recursions: int, updates: int, layers: int, changes: dict[str, bool], windows: bool
) -> None:
    """In a window: each token at its place, and as if the dropped cells had never been."""
    model = tiny_model(
        num_recursions=recursions, num_latent_updates=updates, num_layers=layers, **changes
    )
    given = window(question(), *WINDOWS) if windows else question()
    y, z, logits = written_out(model, given)
    output = model(*given, with_reference=True)
    assert output.conditional_logits.shape == (*given.inputs.shape, 12)
    assert torch.allclose(output.conditional_logits, logits, atol=1e-4)
    assert torch.allclose(output.state.y, y, atol=1e-4)
    assert torch.allclose(output.state.z, z, atol=1e-4)
    assert output.conditional_logits.requires_grad
    assert not (output.state.y.requires_grad or output.state.z.requires_grad)
    # The reference is the readout of the incoming answer, if it is asked for.
    reference = given.state.y[:, 3:] @ model.readout.weight.T
    assert torch.allclose(output.reference_logits, reference, atol=1e-5)
    plain = model(*given)
    assert plain.reference_logits is None
    assert torch.equal(plain.conditional_logits, output.conditional_logits)


def test_what_dropped_cells_say_is_heard_where_they_are_there() -> None:
    model, given = tiny_model(), question()
    kept = model(*given).conditional_logits.take_along_dim(torch.tensor(WINDOWS)[:, :, None], 1)
    assert (kept - model(*window(given, *WINDOWS)).conditional_logits).abs().max() > 0.01


def test_all_cells_in_order_are_the_whole_canvas() -> None:
    model, given = tiny_model(num_recursions=2, num_layers=2), question()
    whole, listed = model(*given), model(*window(given, ALL_CELLS, ALL_CELLS))
    torch.testing.assert_close(
        listed.conditional_logits, whole.conditional_logits, atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(listed.state.y, whole.state.y, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(listed.state.z, whole.state.z, atol=1e-6, rtol=1e-6)


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
    called = []
    model.blocks[0].register_forward_hook(lambda *_: called.append("z"))
    model.answer_blocks[0].register_forward_hook(lambda *_: called.append("y"))
    model(*question())
    assert "".join(called) == "zzzyzzzy"


def test_the_two_networks_share_no_weights() -> None:
    """The answer's has no part in z before there is a y."""
    model = tiny_model(separate_networks=True)
    before = model(*question()).state
    for network, changes_z in ((model.answer_blocks, False), (model.blocks, True)):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)
        after = model(*question()).state
        assert torch.equal(before.z, after.z) != changes_z
        assert (before.y - after.y).abs().max() > 0.01
    assert tiny_model().answer_blocks is None


def test_the_step_changes_the_answer_and_steps_beyond_the_last_count_as_the_last() -> None:
    model = tiny_model()  # of three supervision steps
    first, second, third, *beyond = (
        model(*question(step=s)).conditional_logits for s in (1, 2, 3, 4, 100)
    )
    assert (first - second).abs().max() > 0.01
    assert (second - third).abs().max() > 0.01
    assert all(torch.equal(third, logits) for logits in beyond)


def test_without_a_step_embedding_every_step_is_the_same() -> None:
    model = tiny_model(step_embedding=False)
    first, *others = (model(*question(step=s)).conditional_logits for s in (1, 2, 100))
    assert all(torch.equal(first, logits) for logits in others)
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


@pytest.mark.parametrize("num_cells", [SEQ_LEN, 5])
def test_every_example_and_position_starts_from_the_same_two_random_vectors(num_cells: int) -> None:
    """On as many positions as a window has."""
    model = tiny_model(hidden_size=256)
    y, z = model.initial_state(2, num_cells)
    assert y.shape == z.shape == (2, 3 + num_cells, 256)
    assert torch.equal(y, model.y_init.expand_as(y))
    assert torch.equal(z, model.z_init.expand_as(z))
    assert y.is_contiguous() and z.is_contiguous()
    # Std 1: of 256 draws it is off by less than 4 * 1 / sqrt(512) = 0.18.
    assert abs(y[0, 0].std() - 1) < 0.18
    assert abs(z[0, 0].std() - 1) < 0.18
    assert (y - z).abs().mean() > 0.5
    # Stored with the weights but not trained.
    assert {"y_init", "z_init"} <= set(model.state_dict())
    assert not {"y_init", "z_init"} & {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("windows", [False, True])
def test_bf16_compute_keeps_fp32_weights_gradients_and_logits(windows: bool) -> None:
    low, full = tiny_model(compute_dtype=torch.bfloat16), tiny_model()
    puzzle, step = normal(2, 16).requires_grad_(), torch.tensor(1)
    inputs, cells = random_tokens(3), None
    if windows:
        inputs, cells = inputs[:, :5], torch.tensor(WINDOWS)
    start = low.initial_state(*inputs.shape)
    output = low(start, inputs, puzzle, step, cells, with_reference=True)
    assert {output.state.y.dtype, output.state.z.dtype} == {torch.bfloat16}
    assert output.conditional_logits.dtype == output.reference_logits.dtype == torch.float32
    output.conditional_logits.square().sum().backward()
    for tensor in (*low.parameters(), puzzle):
        assert tensor.dtype == tensor.grad.dtype == torch.float32
    start = full.initial_state(*inputs.shape)
    expected = full(start, inputs, puzzle, step, cells).conditional_logits
    difference = output.conditional_logits - expected
    assert 1e-5 < difference.abs().max().item() < 0.2, "bf16 differs from fp32, by little"
    # bf16 has eight bits, and a few dozen operations follow each other.
    assert 1e-4 < (difference.norm() / expected.norm()).item() < 0.1


@pytest.mark.parametrize("backend", ["default", "flash", "matmul"])
def test_the_chosen_backend_computes_the_attention_of_every_block(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(num_layers=2)
    expected, calls = written_out(model, question())[2], []
    for name, attend in list(BACKENDS.items()):
        monkeypatch.setitem(BACKENDS, name, partial(_record, calls, name, attend))
    model.use_attention(backend)
    assert torch.allclose(model(*question()).conditional_logits, expected, atol=1e-4)
    assert calls == [backend] * 6, "two blocks, three calls"


def _record(calls: list[str], name: str, attend: AttentionFunction, *qkv: Tensor) -> Tensor:
    calls.append(name)
    return attend(*qkv)


def built(seed: int = 0, num_layers: int = 1, **compute: str) -> TinyRecursiveModel:
    torch.manual_seed(seed)
    config = ComputeConfig(**compute)
    return build_model(tiny_arch(num_layers=num_layers), 12, SEQ_LEN, config, RANKS)


def test_the_model_attends_by_the_backend_it_is_built_with() -> None:
    model = built(num_layers=2, attention="matmul")
    assert [block.attention.backend for block in model.blocks] == ["matmul", "matmul"]
    assert model.attention_backend == "matmul"


@pytest.mark.parametrize(("typical_length", "positions"), [(None, 3 + SEQ_LEN), (7, 3 + 7)])
def test_attention_is_chosen_for_the_heads_and_a_typical_length(
    typical_length: int | None, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen_for: list[object] = []

    def choose(*arguments: object) -> str:
        chosen_for.append(arguments)
        return "matmul"

    monkeypatch.setattr(build, "choose_attention", choose)
    config = ComputeConfig(attention="auto", precision="bf16")
    model = build_model(tiny_arch(), 12, SEQ_LEN, config, RANKS, typical_length)
    assert chosen_for == [("auto", (64, 2, positions, 8), torch.bfloat16, CPU)]
    assert model.attention_backend == "matmul"


SHAPE = (64, 2, 23, 8)


@pytest.mark.parametrize(("attention", "used"), [("auto", "default"), ("matmul", "matmul")])
def test_on_a_cpu_attention_is_as_asked_and_nothing_is_timed(
    attention: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "fastest_backend", None)
    assert choose_attention(attention, SHAPE, torch.float32, CPU) == used


def test_on_a_gpu_the_fastest_attention_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    times = {(SHAPE, torch.bfloat16, cuda): "matmul"}
    monkeypatch.setattr(build, "fastest_backend", lambda *arguments: times[arguments])
    assert choose_attention("auto", SHAPE, torch.bfloat16, cuda) == "matmul"


def test_attention_that_does_not_run_here_is_refused() -> None:
    with pytest.raises(UserError, match=r"attention=cudnn: .* on cpu .* attention=auto"):
        choose_attention("cudnn", SHAPE, torch.float32, CPU)


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
    model = built(precision=precision)
    assert model.compute_dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_weights_are_a_function_of_the_global_seed_whatever_attention_is_timed() -> None:
    one, same, other = (
        built(seed, attention=attention).state_dict()
        for seed, attention in ((5, "auto"), (5, "matmul"), (6, "auto"))
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        assert not torch.equal(tensor, other[name])


def test_a_model_is_described_by_its_two_kinds_of_parameters_and_its_calls() -> None:
    model = tiny_model(num_recursions=2)
    assert describe(model, num_puzzles=1000) == {
        "network_parameters": weights(16, 256, 1) + 3 * 16,
        "puzzle_embedding_parameters": 16_000,
        "network_calls_per_answer": 18,
        "network_calls_with_gradient": 9,
    }
    # As many steps as asked for at test time.
    assert describe(model, 1000, num_steps=5)["network_calls_per_answer"] == 30
