"""The schedule factor by factor, both optimizers against scalar arithmetic, weight averaging."""

import copy
import math

import pytest
import torch
from tiny import tiny_model, tiny_optim
from torch import nn

from models.layers import Linear
from training.optimizers import (
    AdamAtan2,
    WeightAverage,
    build_optimizer,
    lr_factor,
    set_lr,
    weights_in_place,
)


def factors(total: int, warmup: int, min_ratio: float) -> list[float]:
    return [lr_factor(step, total, warmup, min_ratio) for step in range(total)]


def test_the_rate_rises_over_the_warm_up_and_then_stays() -> None:
    assert factors(12, warmup=4, min_ratio=1.0) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1, 1]


def test_the_cosine_falls_from_the_end_of_the_warm_up_to_its_floor_at_the_last_step() -> None:
    # 0.1 + 0.9 * (1 + cos(pi * i / 8)) / 2 for i = 0 ... 7.
    expected = [
        *(0.25, 0.5, 0.75, 1.0),
        *(1.0, 0.9657458, 0.8681981, 0.7222076, 0.55, 0.3777924, 0.2318019, 0.1342542),
    ]
    assert factors(12, warmup=4, min_ratio=0.1) == pytest.approx(expected, abs=1e-7)
    assert lr_factor(12, 12, 4, 0.1) == pytest.approx(0.1)
    assert lr_factor(1000, 12, 4, 0.1) == pytest.approx(0.1), "beyond the end it stays there"


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert lr_factor(0, 10, 0, 0.0) == 1
    assert lr_factor(10, 10, 0, 0.0) == pytest.approx(0)


def test_a_warm_up_longer_than_the_run_never_reaches_the_peak() -> None:
    assert factors(3, warmup=10, min_ratio=0.1) == pytest.approx([0.1, 0.2, 0.3])
    assert lr_factor(10, 10, 10, 0.5) == 1


def optimize(
    start: float, gradients: list[float], lr: float, weight_decay: float
) -> tuple[list[float], AdamAtan2]:
    """Values of a single parameter after each step."""
    parameter = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = AdamAtan2([parameter], lr, (0.9, 0.95), weight_decay)
    values = []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        values.append(parameter.item())
    return values, optimizer


def test_the_first_steps_of_adam_atan2_by_hand() -> None:
    # Whatever the size of the first gradient, mean and root agree: atan2(g, |g|) = +-pi/4.
    # 2 * (1 - 0.1 * 0.5) - 0.1 * pi/4 = 1.9 - 0.0785398.
    assert optimize(2.0, [0.3], 0.1, 0.5)[0] == pytest.approx([1.8214602])
    assert optimize(2.0, [-7.0], 0.1, 0.5)[0] == pytest.approx([1.9785398])
    # Without a gradient there is no direction: only decay.
    assert optimize(2.0, [0.0], 0.1, 0.5)[0] == pytest.approx([1.9])


def test_adam_atan2_follows_its_formula_over_many_steps() -> None:
    gradients = [0.5, -0.25, 0.125, 2.0, -1.0, 0.0, 0.3]
    value, mean, square, expected = 2.0, 0.0, 0.0, []
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        update = math.atan2(mean / (1 - 0.9**step), math.sqrt(square / (1 - 0.95**step)))
        value = value * (1 - 0.01 * 0.1) - 0.01 * update
        expected.append(value)
    assert optimize(2.0, gradients, 0.01, 0.1)[0] == pytest.approx(expected, rel=1e-12)


def test_adam_atan2_does_not_care_about_the_scale_of_the_loss() -> None:
    gradients = [0.5, -0.25, 0.125, 2.0]
    small = optimize(1.0, [1e-12 * gradient for gradient in gradients], 0.1, 0.0)[0]
    assert small == pytest.approx(optimize(1.0, gradients, 0.1, 0.0)[0], rel=1e-9)


def test_adam_atan2_goes_on_from_a_stored_state() -> None:
    gradients = [0.5, -0.25, 0.125, 2.0]
    whole, _ = optimize(1.0, gradients, 0.1, 0.1)
    half, optimizer = optimize(1.0, gradients[:2], 0.1, 0.1)
    stored = copy.deepcopy(optimizer.state_dict())
    parameter = nn.Parameter(torch.tensor([half[-1]], dtype=torch.float64))
    resumed = AdamAtan2([parameter], 9.0, (0.1, 0.1), 9.0)
    resumed.load_state_dict(stored)
    for gradient in gradients[2:]:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        resumed.step()
    assert parameter.item() == whole[-1]


def test_parameters_without_a_gradient_are_left_alone() -> None:
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    used.grad = torch.ones(2)
    AdamAtan2([used, unused], 0.1, (0.9, 0.95), 0.1).step()
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
    optimizer = build_optimizer(config, model)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.3, (0.8, 0.7), 0.6)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}


def test_the_first_step_of_adamw_is_the_rate_times_the_sign_after_decay() -> None:
    layer = Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    optimizer = build_optimizer(tiny_optim(lr=0.1, weight_decay=0.5), layer)
    layer.weight.grad = torch.tensor([[0.3]])
    optimizer.step()
    # 2 * (1 - 0.1 * 0.5) - 0.1 = 1.8.
    assert layer.weight.item() == pytest.approx(1.8)


def test_the_rate_is_set_in_every_group() -> None:
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)], lr=1.0
    )
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


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
    average.update(layer)
    assert average.weights["weight"].tolist() == [[2.75, 2.75]]  # 2 + (5 - 2) / 4
    assert layer.weight.tolist() == [[5, 5]]


def test_the_average_covers_all_that_a_checkpoint_of_the_model_holds() -> None:
    model = tiny_model()
    average = WeightAverage(model, 0.9)
    assert set(average.weights) == set(model.state_dict())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in average.weights.values()}


def test_averaged_weights_are_in_place_for_a_while_only() -> None:
    layer = filled(5.0)
    average = WeightAverage(filled(2.0), 0.75)
    x = torch.ones(1, 2)
    with weights_in_place(layer, average):
        assert layer(x).item() == 4
    assert layer(x).item() == 10
    assert average.weights["weight"].tolist() == [[2, 2]]


def test_the_own_weights_come_back_after_an_error_too() -> None:
    layer = filled(5.0)

    def fail() -> None:
        with weights_in_place(layer, WeightAverage(filled(2.0), 0.75)):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert layer.weight.tolist() == [[5, 5]]


def test_without_an_average_the_own_weights_stay() -> None:
    layer = filled(5.0)
    with weights_in_place(layer, None):
        assert layer.weight.tolist() == [[5, 5]]
    assert layer.weight.tolist() == [[5, 5]]
