"""Optimizers, learning-rate schedule and weight averaging (DIS §5, TRM §5).

The network is trained by AdamW, by Adam-atan2, or by Muon (the matrices of its blocks) and AdamW
(the rest); a table of puzzle embeddings by a sparse sign-SGD, factored ones with the network.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, assert_never

import torch
from pydantic import Field
from torch import Tensor, nn

from common.settings import Settings
from models.layers import Linear
from models.puzzle_embedding import PuzzleTable
from models.recursive import TinyRecursiveModel


class OptimConfig(Settings):
    """Both optimizers, the schedule they share, clipping and averaging."""

    name: Literal["adamw", "adam_atan2", "muon"] = Field(
        "adamw",
        description="optimizer of the network; muon: of the matrices of its blocks, and AdamW of "
        "the rest",
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate of the network")
    muon_lr: float = Field(
        1e-3,
        gt=0,
        description="with muon: peak learning rate of the matrices, on the scale of AdamW's",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's running mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the squared gradient's mean")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay of the network")
    puzzle_lr: float = Field(1e-2, ge=0, description="peak learning rate of puzzle embeddings")
    puzzle_weight_decay: float = Field(
        0.1,
        ge=0,
        description="decoupled weight decay of puzzle embeddings; of a table, those in the batch",
    )
    update: Literal["step", "batch"] = Field(
        "step",
        description="step: an optimizer step after each supervision step; batch: one for a whole "
        "batch, by the gradients of all its supervision steps, summed",
    )
    warmup_steps: int = Field(2000, ge=0, description="optimizer steps of linear warm-up")
    schedule: Literal["constant", "cosine", "linear_tail"] = Field(
        "cosine",
        description="after the warm-up: constant; cosine: half of one, down to "
        "optim.lr_min_ratio; linear_tail: constant, then linearly down to 0 (optim.tail_share)",
    )
    lr_min_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="end of the cosine, and of no other schedule, as a share of the peak; 1: "
        "constant",
    )
    tail_share: float = Field(
        0.3,
        gt=0,
        le=1,
        description="with schedule=linear_tail: share of the run since the warm-up over "
        "which rates fall",
    )
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm; null: no limit")
    ema_decay: float | None = Field(
        None, ge=0, lt=1, description="decay of the weights' running mean; null: no averaging"
    )


def lr_schedule(config: OptimConfig, step: int, total_steps: int, time_used: float = 0.0) -> float:
    """Factor on the peak learning rates for the optimizer step numbered `step` from 0.

    A linear rise over the warm-up, times what the schedule makes of the run's progress from 0 to 1:
    in steps since the warm-up or in time, whichever is further.

    Args:
        config: the schedule.
        step: of the run.
        total_steps: of the run.
        time_used: share of the run's budget of time; 0 without one.
    """
    warmup = config.warmup_steps
    rise = (step + 1) / warmup if step < warmup else 1.0
    progress = max((step - warmup) / max(1, total_steps - warmup), time_used)
    progress = min(max(progress, 0.0), 1.0)
    match config.schedule:
        case "constant":
            return rise
        case "cosine":
            end = config.lr_min_ratio
            return rise * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))
        case "linear_tail":
            return rise * min(1.0, (1 - progress) / config.tail_share)
        case other:
            assert_never(other)


def learning_rates(config: OptimConfig, factor: float) -> dict[str, float]:
    """The rates at a factor on their peaks, by the names of their keys."""
    rates = {"lr": config.lr, "puzzle_lr": config.puzzle_lr}
    if config.name == "muon":
        rates["muon_lr"] = config.muon_lr
    return {name: peak * factor for name, peak in rates.items()}


def build_optimizers(config: OptimConfig, model: TinyRecursiveModel) -> list[torch.optim.Optimizer]:
    """The model's optimizers; their learning rates follow the schedule, see `scale_lr`.

    Rates are tensors on the device, as a captured step reads them where they lie. A step does
    nothing where the tensor `optimizer.found_inf` is 1, as PyTorch's gradient scaler has it.
    Parameters that need no gradient have no optimizer; without any that do, there is none.
    """
    own = model.puzzle_embedding
    of_puzzles = [] if own is None else _trained(own.parameters())
    matrices = _trained(block_matrices(model)) if config.name == "muon" else []
    taken = {id(parameter) for parameter in (*of_puzzles, *matrices)}
    rest = [p for p in _trained(model.parameters()) if id(p) not in taken]
    device = model.y_init.device

    def group(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
        # Beside the rate of the moment, each group keeps its own peak, as PyTorch's schedulers do.
        rate = torch.tensor(lr, device=device)
        return {"params": parameters, "lr": rate, "initial_lr": lr, "weight_decay": weight_decay}

    groups = [group(rest, config.lr, config.weight_decay)] if rest else []
    if of_puzzles:
        groups.append(group(of_puzzles, config.puzzle_lr, config.puzzle_weight_decay))
    if not groups:
        return []
    betas = (config.beta1, config.beta2)
    if config.name == "adam_atan2":
        return [AdamAtan2(groups, betas)]
    # Of the forms that AdamW has, this alone takes a tensor as its rate on every device.
    adamw = torch.optim.AdamW(groups, betas=betas, fused=True, capturable=device.type == "cuda")
    if not matrices:
        return [adamw]
    return [Muon([group(matrices, config.muon_lr, config.weight_decay)]), adamw]


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def block_matrices(model: TinyRecursiveModel) -> list[nn.Parameter]:
    """The weights of the linear maps in the model's blocks."""
    blocks = [*model.blocks, *(model.answer_blocks or ())]
    return [
        module.weight
        for block in blocks
        for module in block.modules()
        if isinstance(module, Linear)
    ]


def scale_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times its own peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"].fill_(group["initial_lr"] * factor)


class Muon(torch.optim.Muon):
    """PyTorch's Muon (Jordan 2024), its updates as large as AdamW's (arXiv 2502.16982).

    It would wait for the device to read a rate that is a tensor. So it steps at the peak rate, a
    number, and the weights then go that share of the way that the schedule says: the same to
    rounding, as an update is linear in the rate. Nothing changes where `found_inf` is 1.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix."""
        assert closure is None, "no closure is needed or called"
        rates = [group["lr"] for group in self.param_groups]
        counts = torch.ones_like(rates[0]) if self.found_inf is None else 1 - self.found_inf
        parameters = [p for group in self.param_groups for p in group["params"]]
        momenta = [self._momentum(parameter) for parameter in parameters]
        gradients = [p.grad for p in parameters]
        before = [tensor.clone() for tensor in (*parameters, *momenta)]
        for parameter in parameters:
            assert parameter.grad is not None, "all matrices take part in every step"
            # A copy, in which no number is infinite.
            parameter.grad = torch.where(counts > 0, parameter.grad, 0.0)
        for group in self.param_groups:
            group["lr"] = group["initial_lr"]
        super().step()
        shares = []
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
            shares += [counts * rate / group["initial_lr"]] * len(group["params"])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for tensor, old, share in zip(
            (*parameters, *momenta), before, (*shares, *[counts] * len(momenta)), strict=True
        ):
            tensor.copy_(torch.lerp(old, tensor, share))

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Of a matrix; there from the start, so that a step that does not count leaves it."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


class AdamAtan2(torch.optim.Optimizer):
    """Adam without epsilon: the update is atan2(mean, sqrt(mean square)) (arXiv 2407.05872 §3.3).

    Scale-invariant, and bounded by pi/2 for each parameter; weight decay is decoupled. Parameters
    of a group are updated together, and not at all where `found_inf` is 1.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored state; before 0.3.0 its steps were numbers, not tensors."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state["step"] = torch.as_tensor(
                state["step"], dtype=torch.float32, device=parameter.device
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "no closure is needed or called"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        counts = torch.ones_like(lr) if self.found_inf is None else 1 - self.found_inf
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros_like(lr)
                self.state[parameter]["mean"] = torch.zeros_like(parameter)
                self.state[parameter]["mean_square"] = torch.zeros_like(parameter)
        steps, means, squares = (
            [self.state[parameter][name] for parameter in parameters]
            for name in ("step", "mean", "mean_square")
        )
        torch._foreach_add_(steps, [counts] * len(steps))
        step = steps[0]
        # One tensor of all, as there is no such function for several: an infinite gradient, whose
        # step does not count, must not get into the means as infinity times zero.
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        gradient = torch.where(counts > 0, gradient, 0)
        mean, square = (torch.cat([t.flatten() for t in of_all]) for of_all in (means, squares))
        mean += counts * (1 - beta1) * (gradient - mean)
        square += counts * (1 - beta2) * (gradient.square() - square)
        root = (square / (1 - beta2**step)).sqrt()
        update = torch.where(counts > 0, lr * torch.atan2(mean / (1 - beta1**step), root), 0)
        sizes = [p.numel() for p in parameters]
        torch._foreach_mul_(parameters, 1 - counts * lr * group["weight_decay"])
        for of_all, joined in ((means, mean), (squares, square)):
            _copy_parts(of_all, joined.split(sizes))
        torch._foreach_sub_(
            parameters, [u.view_as(p) for u, p in zip(update.split(sizes), parameters, strict=True)]
        )


def _copy_parts(tensors: list[Tensor], parts: Iterable[Tensor]) -> None:
    torch._foreach_copy_(tensors, [part.view_as(t) for t, part in zip(tensors, parts, strict=True)])


class SparseSignSGD:
    """Sign-SGD for a table of puzzle embeddings, on the rows of the batch alone (HRM; TRM §5).

    For each distinct puzzle of the global batch, with g the sum of its examples' gradients over the
    batch and all ranks: row = row * (1 - lr * weight_decay) - lr * sign(g). Other rows are not
    touched. There is no state, as the sign needs none; every rank does the same.

    Args:
        embedding: the table.
        weight_decay: decoupled.
        batch_size: examples G of a global batch.
    """

    def __init__(self, embedding: PuzzleTable, weight_decay: float, batch_size: int) -> None:
        self.embedding = embedding
        self.weight_decay = weight_decay
        device = embedding.weight.device
        self._ids = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._same = torch.zeros(batch_size, batch_size, device=device)
        self._first = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def begin(self, puzzle_ids: Tensor) -> None:
        """Note the puzzles [G] of the global batch that the next steps are for."""
        same = puzzle_ids[:, None] == puzzle_ids
        self._ids.copy_(puzzle_ids)
        self._same.copy_(same)
        self._first.copy_(same.int().argmax(dim=1))

    @torch.no_grad()
    def step(self, gradients: Tensor, lr: Tensor) -> None:
        """Apply the gradients [G, D] of the global batch's examples."""
        # A puzzle may stand in the batch several times: row i sums over all examples of its puzzle.
        # A product with a 0/1 matrix does that without waiting for the device, as torch.unique
        # would, and always in the same order, where index_add_ on CUDA is free to choose: a sum
        # near zero could else take another sign on another rank, and the ranks' tables drift apart.
        # All examples of a puzzle write the sum of its first one, so that they write the same.
        summed = (self._same @ gradients)[self._first]
        rows = self.embedding.weight[self._ids]
        self.embedding.weight[self._ids] = rows * (1 - lr * self.weight_decay) - lr * summed.sign()


class WeightAverage:
    """Exponential moving average of the network's weights, in fp32 on the network's device."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, counts: Tensor | float = 1.0) -> None:
        """average += (1 - decay) * (weights - average), or nothing where `counts` is 0."""
        current = network.state_dict()
        differences = torch._foreach_sub(
            [current[k] for k in self.weights], list(self.weights.values())
        )
        torch._foreach_mul_(differences, (1 - self.decay) * counts)
        torch._foreach_add_(list(self.weights.values()), differences)


@contextmanager
def weights_in_place(network: nn.Module, average: WeightAverage | None) -> Iterator[None]:
    """Let the network compute with averaged weights for a while, without a second network."""
    if average is None:
        yield
        return
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(average.weights)
    try:
        yield
    finally:
        network.load_state_dict(own)
