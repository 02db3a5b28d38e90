"""Networks small enough for a test: width 16, a canvas of 4x4 cells, three supervision steps."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from common.distributed import Ranks
from common.packed import NO_TOKEN, PackedBatch
from common.tokens import PAD
from dataset.canvas import ARC_COLOURS, VOCAB_SIZE
from models.build import build_supervision
from models.puzzle_embedding import PuzzleEmbedding, PuzzleTable
from models.randomness import CellRandom
from models.recursive import ArchConfig, TinyRecursiveModel
from models.supervision import Supervision, SupervisionConfig
from models.targets import TargetRequest
from training.optimizers import OptimConfig

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, device=CPU)
CANVAS_SIDE = 4
SEQ_LEN = CANVAS_SIDE**2
PREFIX = 3
NUM_TASKS = 2
"""Of factored puzzle embeddings."""


def tiny_arch(**changes: Any) -> ArchConfig:
    values = {
        "name": "tiny",
        "hidden_size": 16,
        "num_heads": 2,
        "expansion": 2,
        "num_supervision_steps": 3,
        "prefix_length": PREFIX,
    }
    return ArchConfig(**{**values, **changes})


def tiny_model(
    seed: int = 0, compute_dtype: torch.dtype = torch.float32, **changes: Any
) -> TinyRecursiveModel:
    """A model of its own seed; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        arch = tiny_arch(**changes)
        return TinyRecursiveModel(arch, VOCAB_SIZE, SEQ_LEN, compute_dtype, NUM_TASKS)


def tiny_optim(**changes: Any) -> OptimConfig:
    return OptimConfig(**{"lr": 0.01, "warmup_steps": 0, **changes})


def random_tokens(seed: int, rows: int = 2, lowest: int = 0) -> Tensor:
    """Canvases [rows, 16] of tokens from `lowest` to 11."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(lowest, VOCAB_SIZE, (rows, SEQ_LEN), generator=generator)


def random_table(seed: int = 0, num_puzzles: int = 5, width: int = 16) -> PuzzleTable:
    """A table of normal rows: the zeros of a new one would hide what it is good for."""
    table = PuzzleTable(num_puzzles, width)
    table.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return table


def packed(
    inputs: Tensor,
    labels: Tensor | None = None,
    cells: Sequence[Sequence[int]] | None = None,
    fill: Sequence[int] = (),
    **more: Tensor,
) -> PackedBatch:
    """Canvases [E, L] of which some cells are shown, None: all; and sequences that fill up.

    `fill` has the lengths of these. Example e is of puzzle e % 5 and has the place e in the global
    batch, unless `more` says otherwise.
    """
    count = len(inputs)
    shown = cells if cells is not None else [range(inputs.shape[1])] * count
    places = [[*range(-PREFIX, 0), *row] for row in shown]
    places += [list(range(-PREFIX, length - PREFIX)) for length in fill]
    lengths = torch.tensor([len(row) for row in places])
    sequence = torch.arange(len(places)).repeat_interleave(lengths)
    cell = torch.tensor(list(chain(*places)))
    is_cell = (cell >= 0) & (sequence < count)

    def at_cells(canvases: Tensor, elsewhere: int) -> Tensor:
        taken = canvases[sequence.clamp(max=count - 1), cell.clamp(min=0)]
        return taken.masked_fill(~is_cell, elsewhere)

    def filled_up(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(len(fill), *values.shape[1:])])

    of_examples = {"puzzle_ids": torch.arange(count) % 5, "rows": torch.arange(count), **more}
    return PackedBatch(
        at_cells(inputs, NO_TOKEN),
        at_cells(inputs if labels is None else labels, PAD),
        cell,
        sequence,
        torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
        torch.arange(len(places)) < count,
        **{name: filled_up(values) for name, values in of_examples.items()},
    )


def tiny_supervision(
    model: TinyRecursiveModel,
    table: PuzzleEmbedding,
    batch_size: int,
    diagnostics: bool = False,
    **config: Any,
) -> Supervision:
    """A scheme for global batches of so many examples."""
    supervision = SupervisionConfig(**config)
    return build_supervision(supervision, model, table, ARC_COLOURS, diagnostics, batch_size)


def cell_random(
    rows: int, seed: int = 0, first_row: int = 0, num_cells: int = SEQ_LEN
) -> CellRandom:
    """Random numbers of whole canvases that stand one after the other in the global batch."""
    return CellRandom(seed, first_row + torch.arange(rows), torch.arange(num_cells))


def target_request(
    inputs: Tensor, solution: Tensor, num_steps: int, random: CellRandom, **more: Any
) -> TargetRequest:
    """What a generator is asked, with ARC's colours unless others are given."""
    return TargetRequest(inputs, solution, num_steps, random, **{"colours": ARC_COLOURS, **more})
