"""Optimizers, learning-rate schedule and weight averaging (DIS §5, TRM §5).

The network is trained by AdamW or Adam-atan2, the puzzle embeddings by a sparse sign-SGD.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, assert_never

import torch
from pydantic import Field
from torch import Tensor, nn

from common.distributed import Ranks
from common.settings import Settings
from models.puzzle_embedding import PuzzleEmbedding


class OptimConfig(Settings):
    """Both optimizers, the schedule they share, clipping and averaging."""

    name: Literal["adamw", "adam_atan2"] = Field("adamw", description="optimizer of the network")
    lr: float = Field(1e-4, gt=0, description="peak learning rate of the network")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's running mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the squared gradient's mean")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay of the network")
    puzzle_lr: float = Field(1e-2, ge=0, description="peak learning rate of puzzle embeddings")
    puzzle_weight_decay: float = Field(
        0.1, ge=0, description="decoupled weight decay of the puzzle embeddings in the batch"
    )
    warmup_steps: int = Field(2000, ge=0, description="optimizer steps of linear warm-up")
    lr_min_ratio: float = Field(
        1.0, ge=0, le=1, description="end of the cosine, as a share of the peak; 1: constant"
    )
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm; null: no limit")
    ema_decay: float | None = Field(
        None, ge=0, lt=1, description="decay of the weights' running mean; null: no averaging"
    )


def lr_schedule(step: int, total_steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Factor on the peak learning rate for the optimizer step numbered `step` from 0.

    Rises linearly over `warmup_steps`, then follows half a cosine down to `min_ratio` at
    `total_steps` (a constant 1 if that is 1).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(config: OptimConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The network's optimizer; its learning rates follow the schedule, see `scale_lr`."""
    parameters = list(network.parameters())
    # Beside the rate of the moment, each group keeps its own peak, as PyTorch's schedulers do.
    groups = [{"params": parameters, "lr": config.lr, "initial_lr": config.lr}]
    betas = (config.beta1, config.beta2)
    match config.name:
        case "adamw":
            fused = all(parameter.is_cuda for parameter in parameters)
            return torch.optim.AdamW(
                groups,
                betas=betas,
                weight_decay=config.weight_decay,
                fused=fused or None,
                foreach=None if fused else True,
            )
        case "adam_atan2":
            return AdamAtan2(groups, config.lr, betas, config.weight_decay)
        case other:
            assert_never(other)


def scale_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its own peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


class AdamAtan2(torch.optim.Optimizer):
    """Adam without epsilon: the update is atan2(mean, sqrt(mean square)) (arXiv 2407.05872 §3.3).

    Scale-invariant, and bounded by pi/2 for each parameter; weight decay is decoupled.
    """

    def __init__(
        self,
        parameters: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "no closure is needed or called"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["step"] = 0
                    self.state[parameter]["mean"] = torch.zeros_like(parameter)
                    self.state[parameter]["mean_square"] = torch.zeros_like(parameter)
                self.state[parameter]["step"] += 1
            states = [self.state[parameter] for parameter in parameters]
            means = [state["mean"] for state in states]
            mean_squares = [state["mean_square"] for state in states]
            gradients = [parameter.grad for parameter in parameters]
            beta1, beta2 = group["betas"]
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(mean_squares, beta2)
            torch._foreach_addcmul_(mean_squares, gradients, gradients, 1 - beta2)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, state in zip(parameters, states, strict=True):
                mean = state["mean"] / (1 - beta1 ** state["step"])
                root = (state["mean_square"] / (1 - beta2 ** state["step"])).sqrt_()
                parameter.sub_(torch.atan2(mean, root), alpha=group["lr"])


class SparseSignSGD:
    """Sign-SGD for the puzzle embeddings, on the rows of the batch alone (HRM; TRM §5).

    For each distinct puzzle of the global batch, with g the sum of its rows' gradients over the
    batch and all ranks: row = row * (1 - lr * weight_decay) - lr * sign(g). Other rows are not
    touched. There is no state, as the sign needs none; every rank does the same.
    """

    def __init__(self, embedding: PuzzleEmbedding, weight_decay: float, ranks: Ranks) -> None:
        self.embedding = embedding
        self.weight_decay = weight_decay
        self.ranks = ranks

    @torch.no_grad()
    def step(self, puzzle_ids: Tensor, gradients: Tensor, lr: float) -> None:
        """Apply the gradients [B, D] of the rows `puzzle_ids` [B] that this rank looked up."""
        puzzle_ids = self.ranks.concatenate(puzzle_ids)
        gradients = self.ranks.concatenate(gradients)
        # A puzzle may stand in the batch several times: row i sums over all rows of its puzzle. A
        # product with a 0/1 matrix does that without waiting for the device, as torch.unique would,
        # and always in the same order, where index_add_ on CUDA is free to choose: a sum near zero
        # could else take another sign on another rank, and the ranks' tables drift apart.
        same = puzzle_ids[:, None] == puzzle_ids
        summed = same.to(gradients.dtype) @ gradients
        # All rows of a puzzle write the sum of its first one, so that they write the same.
        summed = summed[same.int().argmax(dim=1)]
        rows = self.embedding.weight[puzzle_ids]
        self.embedding.weight[puzzle_ids] = rows * (1 - lr * self.weight_decay) - lr * summed.sign()


class WeightAverage:
    """Exponential moving average of the network's weights, in fp32 on the network's device."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """average += (1 - decay) * (weights - average)."""
        current = network.state_dict()
        torch._foreach_lerp_(
            list(self.weights.values()), [current[k] for k in self.weights], 1 - self.decay
        )


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
