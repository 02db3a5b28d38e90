"""The tiny recursive network (TRM, arXiv 2510.04871; DIS, arXiv 2511.16886).

    paper            here
    f                `TinyRecursiveModel.blocks`: one network for both updates
    f_L, f_H (HRM)   `blocks` for z and `answer_blocks` for y, with separate_networks
    x, y, z          embedded question, answer state, latent state
    n                num_latent_updates: times z is updated before y is
    T                num_recursions: cycles, of which the last ones have a gradient
    N_sup            num_supervision_steps

- one supervision step is one `forward`: embed, recurse, read out
- a step of n latent updates and one answer update, T times, calls f T * (n + 1) times
- a halting logit (TRM) predicts whether the answer is correct; see `models.halting`
- (y, z) are detached on the way out: no gradient crosses supervision steps
- the puzzle's embedding comes in as an argument (see `models.puzzle_embedding`); "0.86M parameters"
  does not count it
- sequences stand one after another (see `common.packed`), each of a prefix and the cells that are
  shown of its canvas, which keep their places there in the rotary embedding

Shape letters: N tokens of all sequences, prefixes included, B sequences, P prefix, L cells of the
whole canvas, D width, V vocabulary.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from common.errors import UserError
from common.packed import PackedBatch
from common.settings import Settings
from models.attention import attention_kernel, varlen
from models.layers import (
    Attention,
    Block,
    Embedding,
    HaltingHead,
    Linear,
    RotaryEmbedding,
    Sequences,
    flat_angles,
    grid_angles,
)
from models.puzzle_embedding import NUM_COLOURS, FactoredPuzzleEmbedding

if TYPE_CHECKING:
    from models.pretrained import PretrainedModel


class ArchConfig(Settings):
    """Shape of the network and of its recursion; the defaults are DIS-compact."""

    name: str = Field("compact", description="name of this architecture, used in run folders")
    hidden_size: int = Field(256, gt=0, le=2**16, description="width D")
    num_layers: int = Field(1, gt=0, le=1000, description="transformer blocks in f")
    num_heads: int = Field(8, gt=0, description="attention heads; hidden_size / num_heads is even")
    expansion: float = Field(
        4.0, gt=0, le=1000, description="SwiGLU expansion before the factor 2/3"
    )
    num_recursions: int = Field(1, gt=0, description="T: cycles per supervision step")
    num_recursions_with_gradient: int = Field(
        1, gt=0, description="of the T cycles, the last ones that a gradient goes through"
    )
    num_latent_updates: int = Field(2, gt=0, description="n: updates of z before each update of y")
    num_supervision_steps: int = Field(
        6,
        gt=0,
        le=10_000,
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
    puzzle_embedding: Literal["table", "factored"] = Field(
        "table",
        description="table: a vector for each variant of each task; factored: one for each task, "
        "modulated by the dihedral transform and the colours (models/puzzle_embedding.py)",
    )
    short_convolution: bool = Field(
        False,
        description="mix each token in SwiGLU with the one before it (URM, arXiv 2512.14693)",
    )
    prefix_length: int = Field(
        16, gt=0, le=10_000, description="positions before the canvas, first the puzzle's"
    )
    rotary: Literal["flat", "grid"] = Field(
        "flat",
        description="positions: flat: the place in the sequence; grid: half of each head's "
        "frequencies turn with the row, half with the column",
    )
    rope_base: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the RMSNorm")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ArchConfig":
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"arch.hidden_size={self.hidden_size} must be a multiple of twice "
                f"arch.num_heads={self.num_heads} (rotary embeddings need an even head dimension)"
            )
        if self.rotary == "grid" and self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"arch.rotary=grid: arch.hidden_size={self.hidden_size} must be a multiple of four "
                f"times arch.num_heads={self.num_heads}, as rows and columns share the frequencies"
            )
        if self.is_factored and self.hidden_size < NUM_COLOURS:
            raise ValueError(
                f"arch.puzzle_embedding=factored: arch.hidden_size={self.hidden_size} must be at "
                f"least {NUM_COLOURS}, a slot for each colour"
            )
        if self.num_recursions_with_gradient > self.num_recursions:
            raise ValueError(
                f"arch.num_recursions_with_gradient={self.num_recursions_with_gradient} is more "
                f"than arch.num_recursions={self.num_recursions}"
            )
        return self

    @property
    def is_factored(self) -> bool:
        """Whether puzzle embeddings are part of the model, and no table beside it."""
        return self.puzzle_embedding == "factored"

    @property
    def network_calls(self) -> int:
        """Evaluations of f until the last answer: N_sup * T * (n + 1)."""
        return self.num_supervision_steps * self.num_recursions * (self.num_latent_updates + 1)

    @property
    def network_calls_with_gradient(self) -> int:
        """Of these, the ones that a backward pass goes through."""
        return self.network_calls // self.num_recursions * self.num_recursions_with_gradient


class RecursiveState(NamedTuple):
    """What is carried from one supervision step to the next, without gradient."""

    y: Tensor
    """Answer [N, D]."""
    z: Tensor
    """Latent [N, D]."""


class StepOutput(NamedTuple):
    """Result of one supervision step."""

    state: RecursiveState
    conditional_logits: Tensor
    """l_c [N, V], fp32: the readout after the step; in prefixes it means nothing."""
    reference_logits: Tensor | None
    """l_u [N, V], fp32: the readout of the incoming answer; None unless asked for."""
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
        num_tasks: int = 0,
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
        self.rotary = RotaryEmbedding(rotary_angles(config, seq_len))
        # Fixed, but part of the weights: a checkpoint means nothing without them.
        self.register_buffer("y_init", torch.randn(width))
        self.register_buffer("z_init", torch.randn(width))
        self.seq_len = seq_len
        self.puzzle_embedding = (
            FactoredPuzzleEmbedding(num_tasks, width) if config.is_factored else None
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        precision: Literal["auto", "bf16", "fp32"] = "auto",
    ) -> "PretrainedModel":
        """A model that `export.py` or `import_checkpoint.py` wrote, ready to predict.

        That is the network with its puzzle embeddings and what its steps read, see
        `models.pretrained`; the form of the files is in `models.exported`.

        Args:
            folder: on this machine; nothing is downloaded.
            device: where the model shall be.
            precision: of activations; auto: bf16 on CUDA, fp32 on a CPU.

        Raises:
            UserError: there is no such model, or a file is damaged.
        """
        from models.exported import load_pretrained  # Which builds upon this module.

        return load_pretrained(Path(folder), torch.device(device), precision)

    def _new_network(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            Block(
                config.hidden_size,
                config.num_heads,
                config.expansion,
                config.norm_eps,
                config.short_convolution,
            )
            for _ in range(config.num_layers)
        )

    def use_kernels_of(self, device: torch.device) -> None:
        """Let attention be computed by the quickest kernel of a device."""
        head_dim = self.config.hidden_size // self.config.num_heads
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = attention_kernel(device, self.compute_dtype, head_dim)

    @property
    def is_capturable(self) -> bool:
        """Whether a call never waits for the device, so that CUDA graphs can hold it."""
        attention = (module for module in self.modules() if isinstance(module, Attention))
        return all(module.kernel is varlen for module in attention)

    @property
    def longest_sequence(self) -> int:
        """Tokens of a sequence that shows the whole canvas."""
        return self.config.prefix_length + self.seq_len

    @property
    def num_parameters(self) -> int:
        """Trained numbers in the network, puzzle embeddings not counted."""
        of_puzzles = self.puzzle_embedding.num_parameters if self.puzzle_embedding else 0
        return sum(parameter.numel() for parameter in self.parameters()) - of_puzzles

    def initial_state(self, num_tokens: int) -> RecursiveState:
        """The two fixed random vectors at every token."""
        shape = (num_tokens, self.config.hidden_size)
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
        cells: Tensor,
        sequence: Tensor,
        offsets: Tensor,
        with_reference: bool = False,
    ) -> StepOutput:
        """One supervision step.

        Args:
            state: what the step before left, or `initial_state`.
            inputs: int64 [N] tokens, NO_TOKEN in prefixes.
            puzzle_vectors: [B, D] the puzzles' embeddings.
            supervision_step: int64, 1..N_sup; beyond that, the last is used. A scalar for all
                sequences (a tensor, so that one compiled graph serves all steps), or [B].
            cells: int64 [N], see `PackedBatch`.
            sequence: int64 [N], the same.
            offsets: int32 [B + 1], the same.
            with_reference: also read out the incoming answer.
        """
        reference_logits = self.read_out(state.y) if with_reference else None
        # Where a sequence is empty, at the end of the batch, there is no first token; the last one
        # of all is then of a sequence that fills up, and what it holds makes no difference.
        starts = offsets[:-1].long().clamp(max=len(inputs) - 1)
        x = self.embed(inputs, puzzle_vectors, supervision_step, sequence, starts)
        rotation = self.rotary(cells + self.config.prefix_length)
        is_first = cells == -self.config.prefix_length
        sequences = Sequences(rotation, is_first, offsets, self.longest_sequence)
        y, z = state
        with_gradient = self.config.num_recursions_with_gradient
        with torch.no_grad():
            for _ in range(self.config.num_recursions - with_gradient):
                y, z = self.latent_recursion(x, y, z, sequences)
        for _ in range(with_gradient):
            y, z = self.latent_recursion(x, y, z, sequences)
        return StepOutput(
            RecursiveState(y.detach(), z.detach()),
            self.read_out(y),
            reference_logits,
            self.halting_head(y[starts]) if self.halting_head is not None else None,
        )

    def embed(
        self,
        inputs: Tensor,
        puzzle_vectors: Tensor,
        supervision_step: Tensor,
        sequence: Tensor,
        starts: Tensor,
    ) -> Tensor:
        """x [N, D]: prefixes (puzzle, then zeros) and cells, plus the step, times sqrt(D)."""
        x = self.token_embedding(inputs).index_add(0, starts, puzzle_vectors)
        if self.step_embedding is not None:
            step = supervision_step.clamp(max=self.config.num_supervision_steps) - 1
            # The same for all tokens, or each its sequence's.
            x = x + self.step_embedding(step if step.ndim == 0 else step[sequence])
        return (x * math.sqrt(self.config.hidden_size)).to(self.compute_dtype)

    def latent_recursion(
        self, x: Tensor, y: Tensor, z: Tensor, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        """n times z = f(z + (y + x)), then y = f(y + z)."""
        question_and_answer = y + x
        for _ in range(self.config.num_latent_updates):
            z = apply_network(self.blocks, z + question_and_answer, sequences)
        y = apply_network(self.answer_blocks or self.blocks, y + z, sequences)
        return y, z

    def read_out(self, y: Tensor) -> Tensor:
        """Logits [N, V] in fp32 of an answer state."""
        return self.readout(y).float()


def rotary_angles(config: ArchConfig, seq_len: int) -> Tensor:
    """Angles [P + L, head_dim / 2] of all positions.

    Raises:
        UserError: rows and columns of a canvas that has none.
    """
    head_dim = config.hidden_size // config.num_heads
    if config.rotary == "flat":
        return flat_angles(head_dim, config.prefix_length + seq_len, config.rope_base)
    side = math.isqrt(seq_len)
    if side * side != seq_len:
        raise UserError(
            f"arch.rotary=grid: the dataset's canvases have {seq_len} cells, which is no square; "
            f"use arch.rotary=flat"
        )
    return grid_angles(head_dim, config.prefix_length, side, config.rope_base)


def apply_network(blocks: nn.ModuleList, h: Tensor, sequences: Sequences) -> Tensor:
    """f: [N, D] -> [N, D]."""
    for block in blocks:
        h = block(h, sequences)
    return h


def run_step(
    network: nn.Module,
    puzzle_vectors: Tensor,
    state: RecursiveState,
    inputs: Tensor,
    supervision_step: Tensor,
    batch: PackedBatch,
    with_reference: bool = False,
) -> StepOutput:
    """Call the network for one supervision step of a batch; see `TinyRecursiveModel.forward`."""
    output: StepOutput = network(
        state,
        inputs,
        puzzle_vectors,
        supervision_step,
        batch.cells,
        batch.sequence,
        batch.offsets,
        with_reference,
    )
    return output
