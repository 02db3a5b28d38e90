"""How much memory training takes, before it starts.

    weights           the network in fp32 four times: itself, gradients, two moments; its average
    puzzle embedding  the table in fp32; factored ones as the weights
    batch             states, targets and places of all tokens of a rank's share, twice: as they are
                      made and where a step reads them
    activations       what the backward pass needs of the tokens that are computed at a time

An activation is counted as the compiler's partitioner keeps them; tests/test_memory.py counts them
there. Libraries, the CUDA context and what is free between blocks are not counted.
"""

import logging
from typing import NamedTuple

import torch

from common.errors import UserError
from models.layers import swiglu_width
from models.recursive import ArchConfig
from training.state import TrainingState

log = logging.getLogger(__name__)

USABLE = 0.92
"""Of a device's free memory: the rest goes to what is not counted."""


class MemoryEstimate(NamedTuple):
    """Bytes on one device."""

    weights: int
    puzzle_embedding: int
    batch: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name.replace('_', ' ')} {size / 1e9:.2f}" for name, size in self._asdict().items()
        )
        return f"about {self.total / 1e9:.1f} GB ({parts})"


def bytes_per_token(arch: ArchConfig, dtype: torch.dtype) -> int:
    """Of activations that are kept for the backward pass of one supervision step."""
    width = arch.hidden_size
    calls = arch.num_latent_updates + 1
    # Of each block: its input, queries, keys and values before and after the rotation, what
    # attention gives, the sums that are normalised; gate and up of SwiGLU, their product, and its
    # convolution before and after SiLU.
    inner = 5 if arch.short_convolution else 3
    kept = 11.5 * width + inner * swiglu_width(width, arch.expansion)
    cycles = arch.num_recursions_with_gradient
    return round(cycles * calls * arch.num_layers * kept * dtype.itemsize)


def estimate_memory(
    arch: ArchConfig,
    dtype: torch.dtype,
    *,
    num_parameters: int,
    puzzle_parameters: int,
    is_averaged: bool,
    batch_tokens: int,
    tokens_at_a_time: int,
) -> MemoryEstimate:
    """What one rank needs.

    Args:
        arch: shape of the network.
        dtype: of activations.
        num_parameters: of the network.
        puzzle_parameters: of the puzzle embedding.
        is_averaged: whether there is a running mean of the weights.
        batch_tokens: of a rank's share of a batch.
        tokens_at_a_time: of its largest micro-batch.
    """
    copies = 5 if is_averaged else 4
    frames = arch.num_supervision_steps + 1
    # States y and z; targets (int64) and their shares (fp32); seven whole numbers.
    per_token = 2 * arch.hidden_size * dtype.itemsize + frames * 12 + 7 * 8
    return MemoryEstimate(
        weights=num_parameters * 4 * copies,
        puzzle_embedding=puzzle_parameters * 4 * (copies if arch.is_factored else 1),
        batch=2 * per_token * batch_tokens,
        activations=tokens_at_a_time * bytes_per_token(arch, dtype),
    )


def check_memory(
    state: TrainingState,
    batch_tokens: int,
    tokens_at_a_time: int,
    longest: int,
    device: torch.device,
) -> None:
    """Say what training takes on a device.

    Args:
        state: what is trained.
        batch_tokens: see `estimate_memory`.
        tokens_at_a_time: see there.
        longest: see `require_memory`.
        device: where the state lies already.

    Raises:
        UserError: it is a GPU that has not so much.
    """
    model = state.model
    estimate = estimate_memory(
        model.config,
        model.compute_dtype,
        num_parameters=model.num_parameters,
        puzzle_parameters=state.puzzle_embedding.num_parameters,
        is_averaged=state.average is not None,
        batch_tokens=batch_tokens,
        tokens_at_a_time=tokens_at_a_time,
    )
    log.info("memory: %s, %s tokens at a time", estimate, f"{tokens_at_a_time:,}")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_allocated(device)  # The network and the table are there.
        require_memory(estimate, tokens_at_a_time, longest, free + held)


def require_memory(
    estimate: MemoryEstimate, tokens_at_a_time: int, longest: int, available: int
) -> None:
    """Raise UserError unless the estimate fits into `available` bytes, saying what would.

    Args:
        estimate: for `tokens_at_a_time`.
        tokens_at_a_time: of the largest micro-batch.
        longest: tokens of a whole canvas, which a micro-batch must have room for.
        available: free memory of the device.
    """
    usable = int(available * USABLE)
    if estimate.total <= usable:
        return
    room = usable - (estimate.total - estimate.activations)
    fitting = int(room * tokens_at_a_time / estimate.activations)
    remedy = f"train.micro_batch_tokens={fitting} would fit"
    if fitting <= longest:
        remedy = "not even one sequence at a time would fit: choose a smaller arch or dataset"
    raise UserError(
        f"train.micro_batch_tokens: training takes {estimate} on each device, and "
        f"{available / 1e9:.1f} GB are free there; {remedy}"
    )
