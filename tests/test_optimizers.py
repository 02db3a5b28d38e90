"""Schedule, optimizers, average against scalar arithmetic; sign-SGD against a dense reference."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dataset.canvas import VOCAB_SIZE
from models.layers import Linear
from models.puzzle_embedding import PuzzleTable
from models.recursive import TinyRecursiveModel
from tiny import SEQ_LEN, random_table, tiny_arch, tiny_model, tiny_optim
from training.optimizers import (
    AdamAtan2,
    Muon,
    OptimConfig,
    SparseSignSGD,
    WeightAverage,
    build_optimizers,
    lr_schedule,
    scale_lr,
    weights_in_place,
)

# ---- schedule ----

COSINE = (1, 0.9657458, 0.8681981, 0.7222076, 0.55, 0.3777924, 0.2318019, 0.1342542)
"""0.1 + 0.9 * (1 + cos(pi * i / 8)) / 2 for i = 0 ... 7; then it stays at 0.1."""


@pytest.mark.parametrize(
    ("total", "warmup", "schedule", "expected"),
    [
        (12, 4, {}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (12, 4, {"lr_min_ratio": 0.1}, [0.25, 0.5, 0.75, 1, *COSINE, 0.1, 0.1]),
        (2, 0, {"lr_min_ratio": 0}, [1, 0.5, 0]),
        (3, 3, {"lr_min_ratio": 0.5}, [1 / 3, 2 / 3, 1, 1]),
        # A warm-up longer than the run never reaches the peak.
        (3, 10, {"lr_min_ratio": 0.1}, [0.1, 0.2, 0.3]),
        # The end of the cosine is no business of the others.
        (3, 2, {"schedule": "constant", "lr_min_ratio": 0.1}, [0.5, 1, 1, 1, 1]),
        (
            10,
            2,
            {"schedule": "linear_tail", "tail_share": 0.5, "lr_min_ratio": 0.1},
            [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0],
        ),
        (4, 0, {"schedule": "linear_tail", "tail_share": 1}, [1, 0.75, 0.5, 0.25, 0]),
        # By default over the last three tenths.
        (10, 0, {"schedule": "linear_tail"}, [1, 1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3, 0]),
    ],
)
def test_the_rate_rises_then_follows_its_schedule(
    total: int, warmup: int, schedule: dict[str, Any], expected: list[float]
) -> None:
    config = OptimConfig(warmup_steps=warmup, **schedule)
    factors = [lr_schedule(config, step, total) for step in range(len(expected))]
    assert factors == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # In steps, of 8 after 2 of warm-up: 0, 0, 0, 1/8, 1/4, 3/8, 1/2. With the time:
        # 0, 1/4, 1/4, 1/4, 5/8, 7/8, 1.
        ({"schedule": "constant"}, [0.5, 1, 1, 1, 1, 1, 1]),
        (
            {"schedule": "cosine", "lr_min_ratio": 0},
            # (1 + cos(pi * progress)) / 2, the second in the last step of the warm-up.
            [0.5, 0.8535534, 0.8535534, 0.8535534, 0.3086583, 0.0380602, 0],
        ),
        ({"schedule": "linear_tail", "tail_share": 0.5}, [0.5, 1, 1, 1, 0.75, 0.25, 0]),
    ],
)
def test_progress_is_that_of_steps_or_time_whichever_is_further(
    schedule: dict[str, Any], expected: list[float]
) -> None:
    config = OptimConfig(warmup_steps=2, **schedule)
    used = [0, 0.25, 0.25, 0.25, 0.625, 0.875, 1.5]
    factors = [lr_schedule(config, step, 10, share) for step, share in enumerate(used)]
    assert factors == pytest.approx(expected, abs=1e-7)
    # Time that is behind the steps changes nothing.
    by_steps = [lr_schedule(config, step, 10) for step in range(3, 12)]
    assert [lr_schedule(config, step, 10, 0.1) for step in range(3, 12)] == by_steps


@given(
    step=st.integers(0, 60),
    total=st.integers(1, 50),
    warmup=st.integers(0, 60),
    end=st.floats(0, 1, allow_subnormal=False),
)
def test_factors_are_bit_for_bit_what_they_were_when_the_cosine_was_all_there_was(
    step: int, total: int, warmup: int, end: float
) -> None:
    """So runs that earlier versions began go on as they would have."""
    progress = (step - warmup) / max(1, total - warmup)
    before = end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if step < warmup:
        before = (step + 1) / warmup
    config = OptimConfig(warmup_steps=warmup, lr_min_ratio=end)
    assert lr_schedule(config, step, total) == before


def two_groups() -> torch.optim.Optimizer:
    """Two peaks, 0.4 and 0.1, as of network and puzzle embeddings."""
    groups = [
        group_of([nn.Parameter(torch.ones(1))], peak, weight_decay=0.0) for peak in (0.4, 0.1)
    ]
    return AdamAtan2(groups, (0.9, 0.95))


def group_of(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
    """As `build_optimizers` makes them."""
    rate = torch.tensor(lr)
    return {"params": parameters, "lr": rate, "initial_lr": lr, "weight_decay": weight_decay}


def test_every_group_keeps_its_own_peak_through_the_schedule_and_a_checkpoint() -> None:
    # Two steps of warm-up, then a cosine to 0.5; after three steps the run is resumed.
    expected = [(0.2, 0.05), (0.4, 0.1), (0.4, 0.1), (0.3, 0.075), (0.2, 0.05)]
    optimizer, rates = two_groups(), []
    for step in range(5):
        if step == 3:
            stored = copy.deepcopy(optimizer.state_dict())
            optimizer = two_groups()
            optimizer.load_state_dict(stored)
        scale_lr([optimizer], lr_schedule(OptimConfig(warmup_steps=2, lr_min_ratio=0.5), step, 4))
        rates += [group["lr"].item() for group in optimizer.param_groups]
    assert rates == pytest.approx([rate for rates in expected for rate in rates])


# ---- the network's optimizers ----


def three_parameters() -> list[nn.Parameter]:
    """Of different shapes, in fp64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (5,), ()]
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def atan2_of(parameters: list[nn.Parameter], lr: float = 0.01, decay: float = 0.1) -> AdamAtan2:
    group = group_of(parameters, lr, decay)
    return AdamAtan2([group | {"lr": group["lr"].double()}], (0.9, 0.95))


def draw_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        size = 10.0 ** (seed % 5 - 2)
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = size * drawn.masked_fill(drawn.abs() < 0.3, 0)


@pytest.mark.parametrize("stored_step", [torch.as_tensor, int], ids=["tensor", "before 0.3.0"])
def test_adam_atan2_follows_its_formula_also_from_a_stored_state(stored_step: Any) -> None:
    """Against scalar arithmetic, number by number; a stored state brings its hyperparameters."""
    parameters = three_parameters()
    optimizer = atan2_of(parameters)
    numbers = [
        {"value": value, "mean": 0.0, "square": 0.0}
        for parameter in parameters
        for value in parameter.detach().flatten().tolist()
    ]
    for step in range(1, 8):
        if step == 4:
            stored = copy.deepcopy(optimizer.state_dict())
            for state in stored["state"].values():
                state["step"] = stored_step(state["step"])
            optimizer = atan2_of(parameters, 9.0, 9.0)
            optimizer.load_state_dict(stored)
        draw_gradients(parameters, step)
        gradients = torch.cat([parameter.grad.flatten() for parameter in parameters])
        for number, gradient in zip(numbers, gradients.tolist(), strict=True):
            number["mean"] = 0.9 * number["mean"] + 0.1 * gradient
            number["square"] = 0.95 * number["square"] + 0.05 * gradient**2
            root = math.sqrt(number["square"] / (1 - 0.95**step))
            update = math.atan2(number["mean"] / (1 - 0.9**step), root)
            number["value"] = number["value"] * (1 - 0.01 * 0.1) - 0.01 * update
        optimizer.step()
        values = torch.cat([parameter.detach().flatten() for parameter in parameters])
        # The powers of the betas are in fp32, as the steps are.
        assert values.tolist() == pytest.approx([n["value"] for n in numbers], rel=1e-6)


def test_parameters_without_a_gradient_are_left_alone() -> None:
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    used.grad = torch.ones(2)
    AdamAtan2([group_of([used, unused], 0.1, weight_decay=0.1)], (0.9, 0.95)).step()
    assert unused.tolist() == [1, 1]
    assert (used < 1).all()


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam_atan2", AdamAtan2)]
)
def test_the_optimizer_has_the_configs_values_for_every_parameter(
    name: str, kind: type[torch.optim.Optimizer]
) -> None:
    model = tiny_model()
    config = tiny_optim(name=name, lr=0.3, beta1=0.8, beta2=0.7, weight_decay=0.6)
    (optimizer,) = build_optimizers(config, model)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.7), 0.6)
    assert (group["lr"], group["initial_lr"]) == (torch.tensor(0.3), 0.3)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("infinite", [1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["adamw", "adam_atan2", "muon"])
def test_a_step_that_does_not_count_changes_nothing_but_makes_the_state(
    name: str, infinite: float
) -> None:
    """Neither first nor later; afterwards all goes on as if it had never been."""
    models = [tiny_model(), tiny_model()]
    start = [parameter.detach().clone() for parameter in models[0].parameters()]
    optimizers = [build_optimizers(tiny_optim(name=name), model) for model in models]
    for number, counts in enumerate([False, True, False, True]):
        for model, of_model, skips in zip(models, optimizers, (True, False), strict=True):
            generator = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.grad = drawn if counts else infinite * torch.ones_like(parameter)
            for optimizer in of_model if counts or skips else ():
                optimizer.found_inf = torch.tensor(0.0 if counts else 1.0)
                optimizer.step()
        if number == 0:
            states = [state for o in optimizers[0] for state in o.state.values()]
            assert len(states) == len(start)
            assert not any(tensor.any() for state in states for tensor in state.values())
            assert all(map(torch.equal, models[0].parameters(), start))
        assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    for ours, theirs in zip(*optimizers, strict=True):
        for one, other in zip(ours.state.values(), theirs.state.values(), strict=True):
            assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert not any(map(torch.equal, models[0].parameters(), start))


def test_muon_is_pytorchs_at_the_rate_of_the_moment() -> None:
    """Though it is never told that rate as a number."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((24, 8), (8, 8), (8, 20))]
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    optimizer = Muon([group_of(ours, 0.02, weight_decay=0.1)])
    plain = torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for factor in (0.5, 1.0, 0.25, 0.0, 0.7):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        scale_lr([optimizer], factor)
        plain.param_groups[0]["lr"] = 0.02 * factor
        optimizer.step()
        plain.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
            assert torch.equal(one.grad, other.grad)
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.014)


def test_muon_takes_the_matrices_of_the_blocks_adamw_the_rest_and_puzzles_have_their_rate() -> None:
    model = TinyRecursiveModel(
        tiny_arch(separate_networks=True, short_convolution=True, puzzle_embedding="factored"),
        VOCAB_SIZE, SEQ_LEN, num_tasks=3,
    )  # fmt: skip
    config = tiny_optim(
        name="muon", lr=0.3, muon_lr=0.2, puzzle_lr=0.1, weight_decay=0.6, puzzle_weight_decay=0.5
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = build_optimizers(config, model)
    assert (type(muon), type(adamw)) == (Muon, torch.optim.AdamW)
    (matrices,), (rest, puzzles) = muon.param_groups, adamw.param_groups
    assert [(g["initial_lr"], g["weight_decay"]) for g in (matrices, rest, puzzles)] == [
        (0.2, 0.6), (0.3, 0.6), (0.1, 0.5)
    ]  # fmt: skip
    of_matrices, of_rest, of_puzzles = (
        {names.pop(id(p)) for p in group["params"]} for group in (matrices, rest, puzzles)
    )
    layers = ("attention.qkv", "attention.out", "swiglu.gate_and_up", "swiglu.down")
    assert of_matrices == {
        f"{network}.0.{layer}.weight" for network in ("blocks", "answer_blocks") for layer in layers
    }
    assert of_puzzles == {
        f"puzzle_embedding.{part}.weight" for part in ("task", "dihedral", "colour", "down", "up")
    }
    assert "blocks.0.swiglu.convolution.weight" in of_rest and "readout.weight" in of_rest
    assert not names


# ---- averaging ----


def filled(value: float) -> Linear:
    layer = Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(value)
    return layer


def test_the_average_moves_by_1_minus_decay_of_the_way_by_hand() -> None:
    layer = filled(1.0)
    average = WeightAverage(layer, decay=0.75)
    assert average.weights["weight"].tolist() == [[1, 1]]
    with torch.no_grad():
        layer.weight.fill_(5.0)
    average.update(layer)
    assert average.weights["weight"].tolist() == [[2, 2]]  # 1 + (5 - 1) / 4
    average.update(layer, counts=torch.tensor(0.0))
    assert average.weights["weight"].tolist() == [[2, 2]], "a step that does not count"
    average.update(layer, counts=torch.tensor(1.0))
    assert average.weights["weight"].tolist() == [[2.75, 2.75]]  # 2 + (5 - 2) / 4
    assert layer.weight.tolist() == [[5, 5]]


def test_the_average_covers_all_that_a_checkpoint_of_the_model_holds() -> None:
    model = tiny_model()
    average = WeightAverage(model, 0.9)
    assert set(average.weights) == set(model.state_dict())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in average.weights.values()}


def test_averaged_weights_are_in_place_for_a_while_only_and_after_an_error_too() -> None:
    layer = filled(5.0)
    average = WeightAverage(filled(2.0), 0.75)

    def fail() -> None:
        with weights_in_place(layer, average):
            assert layer(torch.ones(1, 2)).item() == 4
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert layer(torch.ones(1, 2)).item() == 10
    assert average.weights["weight"].tolist() == [[2, 2]]
    with weights_in_place(layer, None):  # Without an average the own weights stay.
        assert layer.weight.tolist() == [[5, 5]]


# ---- sign-SGD of the puzzle embeddings ----


def dense(table: Tensor, ids: Tensor, gradients: Tensor, lr: float, decay: float) -> Tensor:
    """The table after one step: every gradient added up at its row, then the sign of the sum."""
    total = torch.zeros_like(table).index_add_(0, ids, gradients)
    updated = table * (1 - lr * decay) - lr * total.sign()
    touched = torch.isin(torch.arange(len(table)), ids).unsqueeze(1)
    return torch.where(touched, updated, table)


def stepped(
    table: PuzzleTable, ids: Tensor, gradients: Tensor, lr: float, decay: float
) -> PuzzleTable:
    """The table after one step, for a global batch of these puzzles."""
    optimizer = SparseSignSGD(table, decay, len(ids))
    optimizer.begin(ids)
    optimizer.step(gradients, torch.tensor(lr))
    return table


@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
    decay=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=100)
def test_a_sparse_step_equals_the_dense_reference(ids: list[int], seed: int, decay: float) -> None:
    table = random_table(seed, num_puzzles=5, width=3)
    # Whole numbers: their sums are exact in any order, and cancel now and then.
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randint(-2, 3, (len(ids), 3), generator=generator).float()
    expected = dense(table.weight, torch.tensor(ids), gradients, 0.5, decay)
    stepped(table, torch.tensor(ids), gradients, 0.5, decay)
    assert torch.allclose(table.weight, expected)


def test_a_sparse_step_by_hand() -> None:
    table = PuzzleTable(4, 2)
    table.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]))
    before = table.weight.clone()
    # Puzzle 2 stands in the batch twice: its gradients, of any size, add up to (-1e20, 0).
    ids = torch.tensor([2, 1, 2])
    gradients = torch.tensor([[1e20, 1e-7], [7.0, -1e-30], [-2e20, -1e-7]])
    stepped(table, ids, gradients, lr=0.1, decay=0.5)
    # Decay by 1 - 0.1 * 0.5 = 0.95, then 0.1 against the sign of the sum; the sum of 0 has none.
    expected = torch.tensor([[2 * 0.95 - 0.1, 2 * 0.95 + 0.1], [3 * 0.95 + 0.1, 3 * 0.95]])
    assert torch.allclose(table.weight[[1, 2]], expected)
    assert torch.equal(table.weight[2, 1], before[2, 1] * 0.95), "decay alone, bit for bit"
    assert torch.equal(table.weight[[0, 3]], before[[0, 3]]), "untouched rows, bit for bit"


def test_each_batch_has_its_own_puzzles_and_at_rate_0_none_is_touched() -> None:
    table = PuzzleTable(4, 1)
    optimizer = SparseSignSGD(table, weight_decay=0.5, batch_size=2)
    optimizer.begin(torch.tensor([1, 1]))
    for _ in range(2):
        optimizer.step(torch.tensor([[3.0], [-4.0]]), torch.tensor(0.25))
    optimizer.begin(torch.tensor([3, 0]))
    optimizer.step(torch.tensor([[-1.0], [1.0]]), torch.tensor(0.5))
    optimizer.step(torch.tensor([[-1.0], [1.0]]), torch.tensor(0.0))
    # 0.25, then 0.25 * (1 - 0.125) + 0.25.
    assert table.weight.flatten().tolist() == [-0.5, 0.46875, 0, 0.5]
