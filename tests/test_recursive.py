"""The recursive network: its size, its cost, and one step against the algorithm written out."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.packed import PackedBatch
from common.settings import validate
from config.loading import load_config
from config.schema import TrainConfig
from models.attention import grouped, varlen
from models.build import ComputeConfig, build_model, describe
from models.layers import Attention
from models.puzzle_embedding import PuzzleTable
from models.recursive import ArchConfig, RecursiveState, StepOutput, TinyRecursiveModel, run_step
from tiny import CPU, PREFIX, SEQ_LEN, packed, random_tokens, tiny_arch, tiny_model

WITH_HALTING = ("trm", "trm_compact", "hrm")


def published_arch(name: str) -> ArchConfig:
    """As the trainer composes it: the head goes with the supervision that trains it."""
    supervision = "trm" if name in WITH_HALTING else "dis"
    overrides = [f"arch={name}", f"supervision={supervision}"]
    return load_config("train", TrainConfig, "", overrides).arch


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WINDOWS = [[0, 1, 4, 5, 13], [15, 2, 10, 3, 7, 9], [8], [3, 2, 1, 0, 12]]
"""The cells that are shown of each of four examples: in order, and not."""
FILL = (11, 0, 0)
"""Lengths of sequences that fill a batch up."""


class Question(NamedTuple):
    """Some state in the middle of a run, for `tiny_model` without any change of width."""

    batch: PackedBatch
    state: RecursiveState
    vectors: Tensor
    step: Tensor

    def asked(self, model: TinyRecursiveModel, with_reference: bool = False) -> StepOutput:
        state, inputs = self.state, self.batch.inputs
        return run_step(model, self.vectors, state, inputs, self.step, self.batch, with_reference)

    def parts(self, values: Tensor) -> list[Tensor]:
        """Values [N, ...] by sequence."""
        return list(values.split(self.batch.offsets.diff().tolist()))


def question(
    rows: Sequence[int] = (0, 1),
    step: int | list[int] = 2,
    windows: bool = False,
    fill: Sequence[int] = (),
) -> Question:
    """Some of four examples, on whole canvases or in windows; what fills up has some state too."""
    chosen = list(rows)
    cells = [WINDOWS[row] for row in chosen] if windows else None
    batch = packed(random_tokens(3, 4)[chosen], cells=cells, fill=fill)
    whose = torch.tensor(chosen + [0] * len(fill))
    states = normal(2, 4, PREFIX + SEQ_LEN, 16, seed=1)
    state = RecursiveState(*states[:, whose[batch.sequence], batch.cells + PREFIX])
    return Question(batch, state, normal(4, 16, seed=4)[whose], torch.tensor(step))


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
        question(step=s).asked(model)
    without, with_gradient = [False] * (updates + 1) * (recursions - 1), [True] * (updates + 1)
    assert recorded == (without + with_gradient) * steps, "earlier cycles leave no graph behind"
    assert len(recorded) == model.config.network_calls == calls
    assert sum(recorded) == model.config.network_calls_with_gradient


# ---- one step --------------------------------------------------------------------------------


def angles_of(config: ArchConfig, cells: Tensor) -> Tensor:
    """How far pairs of numbers [T, head_dim / 2] turn at the `cells` [T] of a 4x4 canvas."""
    half = config.hidden_size // config.num_heads // 2
    if config.rotary == "flat":
        frequencies = 10_000.0 ** (-torch.arange(half) / half)
        return (cells + config.prefix_length)[:, None] * frequencies
    frequencies = 10_000.0 ** (-torch.arange(half // 2) / (half // 2))
    rows, columns = (torch.where(cells < 0, 0, part) for part in (cells // 4, cells % 4))
    return torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)


def dense_attention(layer: Attention, h: Tensor, angles: Tensor) -> Tensor:
    """Softmax over all pairs of tokens [T]; pairs of numbers turn by `angles` as complex ones."""
    half = angles.shape[1]
    turn = torch.polar(torch.ones(half), angles.unsqueeze(1))

    def heads(weight: Tensor) -> Tensor:
        return (h @ weight.T).unflatten(-1, (layer.num_heads, 2 * half))

    def turned(x: Tensor) -> Tensor:
        number = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([number.real, number.imag], dim=-1)

    q, k, v = map(heads, layer.qkv.weight.chunk(3))
    scores = torch.einsum("ihd,jhd->hij", turned(q), turned(k)) / math.sqrt(2 * half)
    attended = torch.einsum("hij,jhd->ihd", scores.softmax(dim=-1), v)
    return attended.flatten(-2) @ layer.out.weight.T


def written_out(
    model: TinyRecursiveModel, given: Question, row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One example's step as the specification words it, alone: y, z and logits [T, ...].

    No gradient is cut.
    """
    config, width = model.config, model.config.hidden_size
    step_vector = torch.zeros(width)
    if model.step_embedding is not None:
        step_vector = model.step_embedding.weight[given.step - 1]
    tokens, cells = given.parts(given.batch.inputs)[row], given.parts(given.batch.cells)[row]
    prefix = [given.vectors[row]] + [torch.zeros(width)] * (config.prefix_length - 1)
    of_cells = [model.token_embedding.weight[token] for token in tokens[config.prefix_length :]]
    x = torch.stack([p + step_vector for p in prefix + of_cells]) * math.sqrt(width)
    angles = angles_of(config, cells)

    def norm(h: Tensor) -> Tensor:
        return h / (h.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()

    def f(h: Tensor, blocks: nn.ModuleList) -> Tensor:
        for block in blocks:
            h = norm(h + dense_attention(block.attention, h, angles))
            gate, up = (h @ block.swiglu.gate_and_up.weight.T).chunk(2, dim=-1)
            inner = F.silu(gate) * up
            if (convolution := block.swiglu.convolution) is not None:
                before = torch.cat([torch.zeros_like(inner[:1]), inner[:-1]])
                inner = F.silu(convolution.weight[0] * before + convolution.weight[1] * inner)
            h = norm(h + inner @ block.swiglu.down.weight.T)
        return h

    y, z = (given.parts(part)[row] for part in given.state)
    for cycle in range(config.num_recursions):
        if cycle == config.num_recursions - config.num_recursions_with_gradient:
            y, z = y.detach(), z.detach()
        for _ in range(config.num_latent_updates):
            z = f(z + (y + x), model.blocks)
        y = f(y + z, model.blocks if model.answer_blocks is None else model.answer_blocks)
    return y, z, y @ model.readout.weight.T


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"separate_networks": True},
        {"step_embedding": False},
        {"rotary": "grid", "short_convolution": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("recursions", "with_gradient", "updates", "layers"),
    [(1, 1, 2, 1), (1, 1, 1, 2), (2, 1, 2, 1), (3, 1, 1, 2), (2, 2, 2, 1), (3, 2, 1, 1)],
)
def test_a_step_is_the_algorithm_of_the_specification(
    recursions: int,
    with_gradient: int,
    updates: int,
    layers: int,
    changes: dict[str, Any],
    windows: bool,
) -> None:
    """In a window: each token at its place, and as if the dropped cells had never been.

    Only the last cycles have a gradient; embeddings enter every cycle and count once. A convolution
    never reaches into another sequence.
    """
    model = tiny_model(
        num_recursions=recursions,
        num_recursions_with_gradient=with_gradient,
        num_latent_updates=updates,
        num_layers=layers,
        **changes,
    )
    for name, parameter in model.named_parameters():
        if "convolution" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    weights = list(model.parameters())
    given = question(windows=windows)
    given.vectors.requires_grad_()
    output, plain = given.asked(model, with_reference=True), given.asked(model)
    one, other = (written_out(model, given, row) for row in (0, 1))
    y, z, logits = (torch.cat(parts) for parts in zip(one, other, strict=True))
    assert torch.allclose(output.conditional_logits, logits, atol=1e-4)
    assert torch.allclose(output.state.y, y, atol=1e-4)
    assert torch.allclose(output.state.z, z, atol=1e-4)
    assert not (output.state.y.requires_grad or output.state.z.requires_grad)
    # The reference is the readout of the incoming answer, if it is asked for.
    reference = given.state.y @ model.readout.weight.T
    assert torch.allclose(output.reference_logits, reference, atol=1e-5)
    assert plain.reference_logits is None
    assert torch.equal(plain.conditional_logits, output.conditional_logits)
    target = normal(*logits.shape, seed=9)
    ours, expected = (
        torch.autograd.grad((of * target).sum(), [*weights, given.vectors])
        for of in (output.conditional_logits, logits)
    )
    for gradient, other in zip(ours, expected, strict=True):
        assert torch.allclose(gradient, other, atol=1e-3, rtol=1e-3)
        assert other.abs().max() > 0.01


# ---- several sequences -----------------------------------------------------------------------


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 1)])
@pytest.mark.parametrize("fill", [(), (19,), FILL])
def test_a_sequences_answer_depends_neither_on_its_neighbours_nor_on_their_order_nor_on_fill_up(
    windows: bool, order: tuple[int, ...], fill: tuple[int, ...]
) -> None:
    model = restless()
    together = question(order, windows=windows, fill=fill)
    output = together.asked(model)
    for place, row in enumerate(order):
        lonely = question([row], windows=windows)
        expected = lonely.asked(model)
        for ours, theirs in zip(output.state, expected.state, strict=True):
            torch.testing.assert_close(together.parts(ours)[place], theirs, atol=1e-4, rtol=1e-4)
        logits = together.parts(output.conditional_logits)[place]
        torch.testing.assert_close(logits, expected.conditional_logits, atol=1e-4, rtol=1e-4)
        halting = output.halting_logits[place], expected.halting_logits[0]
        assert halting[0].item() == pytest.approx(halting[1].item(), abs=1e-4)


def restless() -> TinyRecursiveModel:
    """A model whose halting logit depends on what it sees."""
    model = tiny_model(halting_head=True, num_recursions=2)
    model.halting_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("windows", [False, True])
def test_a_puzzles_vector_has_a_gradient_from_its_own_sequence_alone(windows: bool) -> None:
    """And what fills a batch up has none from the examples."""
    model, given = tiny_model(), question((0, 1, 2), windows=windows, fill=FILL)
    given.vectors.requires_grad_()
    logits = given.parts(given.asked(model).conditional_logits)
    for row in range(3):
        loss = logits[row].square().sum()
        (gradient,) = torch.autograd.grad(loss, given.vectors, retain_graph=True)
        assert (gradient != 0).any(dim=1).tolist() == [row == other for other in range(6)]


def test_what_stands_in_for_the_vectors_of_empty_sequences_changes_no_example() -> None:
    model, given = restless(), question(fill=FILL)
    expected = given.asked(model)
    given.vectors[3:] = 1e3
    output = given.asked(model)
    assert torch.equal(output.halting_logits[:2], expected.halting_logits[:2])
    for row in (0, 1):
        ours, theirs = (given.parts(of.conditional_logits)[row] for of in (output, expected))
        assert torch.equal(ours, theirs)


def test_what_dropped_cells_say_is_heard_where_they_are_there() -> None:
    model = tiny_model()
    whole, window = question([0]), question([0], windows=True)
    kept = whole.asked(model).conditional_logits[PREFIX:][WINDOWS[0]]
    assert (kept - window.asked(model).conditional_logits[PREFIX:]).abs().max() > 0.01


@pytest.mark.parametrize("windows", [False, True])
def test_sequences_at_steps_of_their_own_are_answered_as_in_batches_of_one_step(
    windows: bool,
) -> None:
    """As with halting; a step beyond the last counts as the last."""
    model, steps = restless(), [2, 1, 3, 7]
    given = question(range(4), steps, windows)
    mixed = given.asked(model)
    for row, step in enumerate(steps):
        alike = given._replace(step=torch.tensor(step)).asked(model)
        torch.testing.assert_close(mixed.halting_logits[row], alike.halting_logits[row])
        ours, same = (given.parts(of.conditional_logits)[row] for of in (mixed, alike))
        torch.testing.assert_close(ours, same)
        other = given._replace(step=torch.tensor(step % 3 + 1)).asked(model)
        assert (given.parts(other.conditional_logits)[row] - same).abs().max() > 0.01


# ---- its parts -------------------------------------------------------------------------------


def test_the_halting_head_reads_the_first_position_of_each_answer_by_hand() -> None:
    model = restless()
    model.halting_head.bias.data.fill_(0.25)
    given = question((0, 1, 2), windows=True)
    output = given.asked(model)
    first, second = (
        torch.stack([part[place] for part in given.parts(output.state.y)]) for place in (0, 1)
    )
    weight = model.halting_head.weight
    assert torch.allclose(output.halting_logits, first @ weight + 0.25)
    assert (output.halting_logits - second @ weight - 0.25).abs().max() > 0.01
    assert given.asked(tiny_model()).halting_logits is None


def test_one_network_thinks_and_the_other_answers() -> None:
    """Where there are two: n updates of z by `blocks`, then one of y by `answer_blocks`."""
    model = tiny_model(separate_networks=True, num_latent_updates=3, num_recursions=2)
    called = []
    model.blocks[0].register_forward_hook(lambda *_: called.append("z"))
    model.answer_blocks[0].register_forward_hook(lambda *_: called.append("y"))
    question().asked(model)
    assert "".join(called) == "zzzyzzzy"


def test_the_two_networks_share_no_weights() -> None:
    """The answer's has no part in z before there is a y."""
    model = tiny_model(separate_networks=True)
    before = question().asked(model).state
    for network, changes_z in ((model.answer_blocks, False), (model.blocks, True)):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)
        after = question().asked(model).state
        assert torch.equal(before.z, after.z) != changes_z
        assert (before.y - after.y).abs().max() > 0.01
    assert tiny_model().answer_blocks is None


def test_the_step_changes_the_answer_and_steps_beyond_the_last_count_as_the_last() -> None:
    model = tiny_model()  # of three supervision steps
    first, second, third, *beyond = (
        question(step=s).asked(model).conditional_logits for s in (1, 2, 3, 4, 100)
    )
    assert (first - second).abs().max() > 0.01
    assert (second - third).abs().max() > 0.01
    assert all(torch.equal(third, logits) for logits in beyond)


def test_without_a_step_embedding_every_step_is_the_same() -> None:
    model = tiny_model(step_embedding=False)
    first, *others = (question(step=s).asked(model).conditional_logits for s in (1, 2, 100))
    assert all(torch.equal(first, logits) for logits in others)
    assert not any("step" in name for name in model.state_dict())


def test_every_token_starts_from_the_same_two_random_vectors() -> None:
    model = tiny_model(hidden_size=256)
    y, z = model.initial_state(11)
    assert y.shape == z.shape == (11, 256)
    assert torch.equal(y, model.y_init.expand_as(y))
    assert torch.equal(z, model.z_init.expand_as(z))
    assert y.is_contiguous() and z.is_contiguous()
    # Std 1: of 256 draws it is off by less than 4 * 1 / sqrt(512) = 0.18.
    assert abs(y[0].std() - 1) < 0.18
    assert abs(z[0].std() - 1) < 0.18
    assert (y - z).abs().mean() > 0.5
    # Stored with the weights but not trained.
    assert {"y_init", "z_init"} <= set(model.state_dict())
    assert not {"y_init", "z_init"} & {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("windows", [False, True])
def test_bf16_compute_keeps_fp32_weights_gradients_and_logits(windows: bool) -> None:
    low, full = tiny_model(compute_dtype=torch.bfloat16), tiny_model()
    given = question(step=1, windows=windows)
    given.vectors.requires_grad_()
    count = len(given.batch.inputs)
    output = given._replace(state=low.initial_state(count)).asked(low, with_reference=True)
    assert {output.state.y.dtype, output.state.z.dtype} == {torch.bfloat16}
    assert output.conditional_logits.dtype == output.reference_logits.dtype == torch.float32
    output.conditional_logits.square().sum().backward()
    for tensor in (*low.parameters(), given.vectors):
        assert tensor.dtype == tensor.grad.dtype == torch.float32
    expected = given._replace(state=full.initial_state(count)).asked(full).conditional_logits
    difference = output.conditional_logits - expected
    assert 1e-5 < difference.abs().max().item() < 0.2, "bf16 differs from fp32, by little"
    # bf16 has eight bits, and a few dozen operations follow each other.
    assert 1e-4 < (difference.norm() / expected.norm()).item() < 0.1


# ---- how it is built -------------------------------------------------------------------------


def built(seed: int = 0, num_layers: int = 1, **compute: str) -> TinyRecursiveModel:
    torch.manual_seed(seed)
    return build_model(tiny_arch(num_layers=num_layers), 12, SEQ_LEN, ComputeConfig(**compute), CPU)


def test_every_block_attends_by_the_kernel_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    model = built(num_layers=2, precision="bf16")
    assert [block.attention.kernel for block in model.blocks] == [grouped, grouped]
    model.use_kernels_of(torch.device("cuda"))
    assert [block.attention.kernel for block in model.blocks] == [varlen, varlen]
    assert built().blocks[0].attention.kernel is grouped, "and no other model's"


def test_rows_and_columns_take_a_square_canvas_and_a_head_of_four_numbers() -> None:
    with pytest.raises(UserError, match=r"arch\.rotary=grid: .* have 15 cells, which is no square"):
        TinyRecursiveModel(tiny_arch(rotary="grid"), 12, 15)
    values = {**tiny_arch().model_dump(), "rotary": "grid", "num_heads": 8}
    with pytest.raises(UserError, match=r"rotary=grid: arch\.hidden_size=16 .*num_heads=8"):
        validate(ArchConfig, values, "a test")


def test_factored_puzzle_embeddings_take_a_width_with_a_slot_for_each_colour() -> None:
    values = {**tiny_arch().model_dump(), "hidden_size": 8, "puzzle_embedding": "factored"}
    with pytest.raises(UserError, match=r"puzzle_embedding=factored: arch\.hidden_size=8 .*10"):
        validate(ArchConfig, values, "a test")


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


def test_the_weights_are_a_function_of_the_global_seed_alone() -> None:
    one, same, other = (
        built(seed, precision=precision).state_dict()
        for seed, precision in ((5, "fp32"), (5, "bf16"), (6, "fp32"))
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        assert not torch.equal(tensor, other[name])


def test_a_model_is_described_by_its_two_kinds_of_parameters_and_its_calls() -> None:
    model, table = tiny_model(num_recursions=2), PuzzleTable(1000, 16)
    assert describe(model, table) == {
        "network_parameters": weights(16, 256, 1) + 3 * 16,
        "puzzle_embedding_parameters": 16_000,
        "network_calls_per_answer": 18,
        "network_calls_with_gradient": 9,
    }
    # As many steps as asked for at test time.
    assert describe(model, table, num_steps=5)["network_calls_per_answer"] == 30
