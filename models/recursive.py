"""The tiny recursive network (TRM, arXiv 2510.04871; DIS, arXiv 2511.16886).

    paper            here
    f                `TinyRecursiveModel.blocks`: one network for both updates
    f_L, f_H (HRM)   `blocks` for z and `answer_blocks` for y, with separate_networks
    x, y, z          embedded question, answer state, latent state
    n                num_latent_updates: times z is updated before y is
    T                num_recursions: cycles, of which only the last has a gradient
    N_sup            num_supervision_steps

- one supervision step is one `forward`: embed, recurse, read out
- a step of n latent updates and one answer update, T times, calls f T * (n + 1) times
- a halting logit (TRM) predicts whether the answer is correct; see `models.halting`
- (y, z) are detached on the way out: no gradient crosses supervision steps
- the puzzle's embedding comes in as an argument; its table is no part of the network (see
  `models.puzzle_embedding`), which is why "0.86M parameters" does not count it
- the sequence need not be the whole canvas: given which `cells` its tokens are, each keeps its
  place on the canvas in the rotary embedding (see `dataset.windows`)

Shape letters: B batch, P prefix, L cells of the canvas, T = P + L sequence, D width, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from common.settings import Settings
from models.layers import (
    Attention,
    Block,
    Embedding,
    HaltingHead,
    Linear,
    RotaryEmbedding,
    Rotation,
)


class ArchConfig(Settings):
    """Shape of the network and of its recursion; the defaults are DIS-compact."""

    name: str = Field("compact", description="name of this architecture, used in run folders")
    hidden_size: int = Field(256, gt=0, description="width D")
    num_layers: int = Field(1, gt=0, description="transformer blocks in f")
    num_heads: int = Field(8, gt=0, description="attention heads; hidden_size / num_heads is even")
    expansion: float = Field(4.0, gt=0, description="SwiGLU expansion before the factor 2/3")
    num_recursions: int = Field(
        1, gt=0, description="T: cycles per supervision step, last with gradient"
    )
    num_latent_updates: int = Field(2, gt=0, description="n: updates of z before each update of y")
    num_supervision_steps: int = Field(
        6,
        gt=0,
        description="N_sup: improvement steps per answer; with supervision.halting at most",
    )
    separate_networks: bool = Field(
        False,
        description="two networks of num_layers blocks, one for z and one for y (as in HRM, "
        "arXiv 2506.21734), instead of one for both",
    )
    step_embedding: bool = Field(
        True, description="tell the network which supervision step it is at (DIS does, TRM not)"
    )
    halting_head: bool = Field(
        False,
        description="read a halting logit from the first position; supervision.halting trains it",
    )
    prefix_length: int = Field(
        16, gt=0, description="positions before the canvas, first the puzzle's"
    )
    rope_base: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the RMSNorm")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ArchConfig":
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"arch.hidden_size={self.hidden_size} must be a multiple of twice "
                f"arch.num_heads={self.num_heads} (rotary embeddings need an even head dimension)"
            )
        return self

    @property
    def network_calls(self) -> int:
        """Evaluations of f until the last answer: N_sup * T * (n + 1)."""
        return self.num_supervision_steps * self.num_recursions * (self.num_latent_updates + 1)

    @property
    def network_calls_with_gradient(self) -> int:
        """Of these, the ones that a backward pass goes through: N_sup * (n + 1)."""
        return self.network_calls // self.num_recursions


class RecursiveState(NamedTuple):
    """What is carried from one supervision step to the next, without gradient."""

    y: Tensor
    """Answer [B, T, D]."""
    z: Tensor
    """Latent [B, T, D]."""


class StepOutput(NamedTuple):
    """Result of one supervision step."""

    state: RecursiveState
    conditional_logits: Tensor
    """l_c [B, L, V], fp32: the readout after the step."""
    reference_logits: Tensor | None
    """l_u [B, L, V], fp32: the readout of the incoming answer; None unless asked for."""
    halting_logits: Tensor | None
    """[B], fp32: above 0 where the model predicts that its answer is correct; None without a
    head."""


class TinyRecursiveModel(nn.Module):
    """One improvement step: (y, z), question -> (y, z), logits."""

    y_init: Tensor
    z_init: Tensor

    def __init__(
        self,
        config: ArchConfig,
        vocab_size: int,
        seq_len: int,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        width = config.hidden_size
        self.token_embedding = Embedding(vocab_size, width)
        self.step_embedding = (
            Embedding(config.num_supervision_steps, width) if config.step_embedding else None
        )
        self.blocks = self._new_network()
        self.answer_blocks = self._new_network() if config.separate_networks else None
        self.readout = Linear(width, vocab_size)
        self.halting_head = HaltingHead(width) if config.halting_head else None
        self.rotary = RotaryEmbedding(
            width // config.num_heads, config.prefix_length + seq_len, config.rope_base
        )
        # Fixed, but part of the weights: a checkpoint means nothing without them.
        self.register_buffer("y_init", torch.randn(width))
        self.register_buffer("z_init", torch.randn(width))
        self.seq_len = seq_len
        self.attention_backend = "default"

    def _new_network(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            Block(config.hidden_size, config.num_heads, config.expansion, config.norm_eps)
            for _ in range(config.num_layers)
        )

    def use_attention(self, backend: str) -> None:
        """Compute attention by one of `models.attention.BACKENDS`."""
        self.attention_backend = backend
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    @property
    def num_parameters(self) -> int:
        """Trained numbers in the network, puzzle embeddings not counted."""
        return sum(parameter.numel() for parameter in self.parameters())

    def initial_state(self, batch_size: int, num_cells: int) -> RecursiveState:
        """The two fixed random vectors, broadcast over batch and positions."""
        shape = (batch_size, self.config.prefix_length + num_cells, self.config.hidden_size)
        return RecursiveState(
            # Contiguous as all later states are: other strides would be another compiled graph.
            y=self.y_init.to(self.compute_dtype).expand(shape).contiguous(),
            z=self.z_init.to(self.compute_dtype).expand(shape).contiguous(),
        )

    def forward(
        self,
        state: RecursiveState,
        inputs: Tensor,
        puzzle_vectors: Tensor,
        supervision_step: Tensor,
        cells: Tensor | None = None,
        with_reference: bool = False,
    ) -> StepOutput:
        """One supervision step.

        Args:
            state: what the step before left, or `initial_state`.
            inputs: [B, L] int64 tokens.
            puzzle_vectors: [B, D] the puzzles' embeddings.
            supervision_step: int64, 1..N_sup; beyond that, the last is used. A scalar for all
                examples (a tensor, so that one compiled graph serves all steps), or [B].
            cells: [B, L] int64, which cells of the canvas the tokens are; None: all, in order.
            with_reference: also read out the incoming answer.
        """
        reference_logits = self.read_out(state.y) if with_reference else None
        x = self.embed(inputs, puzzle_vectors, supervision_step)
        rotation = self.rotary(None if cells is None else self._positions(cells))
        y, z = state
        with torch.no_grad():
            for _ in range(self.config.num_recursions - 1):
                y, z = self.latent_recursion(x, y, z, rotation)
        y, z = self.latent_recursion(x, y, z, rotation)
        return StepOutput(
            RecursiveState(y.detach(), z.detach()),
            self.read_out(y),
            reference_logits,
            self.halting_head(y[:, 0]) if self.halting_head is not None else None,
        )

    def embed(self, inputs: Tensor, puzzle_vectors: Tensor, supervision_step: Tensor) -> Tensor:
        """x [B, T, D]: prefix (puzzle, then zeros) and cells, plus the step, times sqrt(D)."""
        cells = self.token_embedding(inputs)
        prefix = puzzle_vectors.new_zeros(
            len(inputs), self.config.prefix_length - 1, self.config.hidden_size
        )
        x = torch.cat([puzzle_vectors.unsqueeze(1), prefix, cells], dim=1)
        if self.step_embedding is not None:
            last_step = self.config.num_supervision_steps
            step = self.step_embedding(supervision_step.clamp(max=last_step) - 1)
            x = x + step.unsqueeze(-2)  # [D] or [B, D], the same at all positions.
        return (x * math.sqrt(self.config.hidden_size)).to(self.compute_dtype)

    def _positions(self, cells: Tensor) -> Tensor:
        """Positions [B, T] in the full sequence of the prefix and of some cells [B, L]."""
        prefix_length = self.config.prefix_length
        prefix = torch.arange(prefix_length, device=cells.device).expand(len(cells), -1)
        return torch.cat([prefix, prefix_length + cells], dim=1)

    def latent_recursion(
        self, x: Tensor, y: Tensor, z: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor]:
        """n times z = f(z + (y + x)), then y = f(y + z)."""
        question_and_answer = y + x
        for _ in range(self.config.num_latent_updates):
            z = apply_network(self.blocks, z + question_and_answer, rotation)
        y = apply_network(self.answer_blocks or self.blocks, y + z, rotation)
        return y, z

    def read_out(self, y: Tensor) -> Tensor:
        """Logits [B, L, V] in fp32 at the canvas positions of an answer state."""
        return self.readout(y[:, self.config.prefix_length :]).float()


def apply_network(blocks: nn.ModuleList, h: Tensor, rotation: Rotation) -> Tensor:
    """f: [B, T, D] -> [B, T, D]."""
    for block in blocks:
        h = block(h, rotation)
    return h


def run_step(
    network: nn.Module,
    puzzle_vectors: Tensor,
    state: RecursiveState,
    inputs: Tensor,
    supervision_step: int | Tensor,
    cells: Tensor | None = None,
    with_reference: bool = False,
) -> StepOutput:
    """Call the network (bare, compiled or wrapped by DDP) for one supervision step.

    See `TinyRecursiveModel.forward`; `supervision_step` may be a number, the same for all examples.
    """
    if isinstance(supervision_step, int):
        # A fill on the device: copying the number from the host would wait for the device.
        supervision_step = torch.full((), supervision_step, device=inputs.device)
    output: StepOutput = network(
        state, inputs, puzzle_vectors, supervision_step, cells, with_reference
    )
    return output
