"""A packed batch and whole canvases: what is shown goes there and back, and nothing else does."""

from itertools import chain
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.packed import NO_TOKEN, PackedBatch, pack_whole

NUM_CELLS = 6
PREFIX = 2
Sequence = list[int] | int
"""The cells that an example shows, or how many tokens fill the batch up."""


def packed(sequences: list[Sequence], **more: Any) -> PackedBatch:
    """The batch of these sequences, whose inputs are the cells' numbers."""
    parts = [
        [*range(-PREFIX, 0), *shown]
        if isinstance(shown, list)
        else [*range(-PREFIX, shown - PREFIX)]
        for shown in sequences
    ]
    is_example = [isinstance(shown, list) for shown in sequences]
    lengths = torch.tensor([len(part) for part in parts])
    sequence = torch.arange(len(parts)).repeat_interleave(lengths)
    cells = torch.tensor(list(chain(*parts)), dtype=torch.int64)
    is_cell = (cells >= 0) & torch.tensor(is_example)[sequence]
    inputs = cells.masked_fill(~is_cell, NO_TOKEN)
    offsets = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    numbers = torch.arange(len(parts))
    batch = (inputs, inputs, cells, sequence, offsets, torch.tensor(is_example), numbers, numbers)
    return PackedBatch(*batch, **more)


BY_HAND = packed([[1, 3], [], [5, 0], 4, 0])
"""Three examples of 4, 2 and 4 tokens, and two sequences that fill up, of 4 and of none."""
NUMBERS = torch.arange(10, 24)


def test_values_go_to_their_cells_and_prefixes_and_what_fills_up_go_nowhere() -> None:
    assert BY_HAND.num_sequences == 5
    cells = [2, 3, 8, 9]
    assert BY_HAND.is_cell.nonzero().flatten().tolist() == cells
    assert BY_HAND.to_canvas(NUMBERS, NUM_CELLS).tolist() == [
        [0, 12, 0, 13, 0, 0], [0] * 6, [19, 0, 0, 0, 0, 18], [0] * 6, [0] * 6
    ]  # fmt: skip
    assert BY_HAND.to_canvas(NUMBERS / 2, NUM_CELLS, fill=-1)[0].tolist() == [
        -1,
        6,
        -1,
        6.5,
        -1,
        -1,
    ]


def test_tokens_take_what_is_at_their_cells_and_others_the_fill() -> None:
    canvases = 100 * torch.arange(5).unsqueeze(1) + torch.arange(NUM_CELLS)
    taken = [-9, -9, 1, 3, -9, -9, -9, -9, 205, 200, -9, -9, -9, -9]
    assert BY_HAND.from_canvas(canvases, fill=-9).tolist() == taken


def sequences() -> st.SearchStrategy[list[Sequence]]:
    """Examples, some without a cell, and then sequences that fill up, some of them empty."""
    places = st.permutations(range(NUM_CELLS))
    shown = st.tuples(places, st.integers(0, NUM_CELLS)).map(lambda drawn: drawn[0][: drawn[1]])
    examples = st.lists(shown, min_size=1, max_size=5)
    return st.tuples(examples, st.lists(st.integers(0, PREFIX + NUM_CELLS), max_size=3)).map(
        lambda x: [*x[0], *x[1]]
    )


@given(sequences(), st.integers(0, 2**32))
def test_one_undoes_the_other_wherever_a_cell_is_shown(drawn: list[Sequence], seed: int) -> None:
    batch, generator = packed(drawn), torch.Generator().manual_seed(seed)
    values = torch.randint(1, 99, batch.inputs.shape, generator=generator)
    there = batch.to_canvas(values, NUM_CELLS)
    assert torch.equal(batch.from_canvas(there, fill=-7), torch.where(batch.is_cell, values, -7))
    canvases = torch.randint(1, 99, (len(drawn), NUM_CELLS), generator=generator)
    back = batch.to_canvas(batch.from_canvas(canvases, fill=0), NUM_CELLS)
    is_shown = torch.zeros_like(canvases, dtype=torch.bool)
    for row, shown in enumerate(drawn):
        if isinstance(shown, list):
            is_shown[row, shown] = True
    assert torch.equal(back, torch.where(is_shown, canvases, 0))


@given(sequences(), st.integers(0, 2**32))
def test_a_path_is_taken_step_by_step(drawn: list[Sequence], seed: int) -> None:
    """Of [B, S, L] each step alone, as [S, N]."""
    generator = torch.Generator().manual_seed(seed)
    path = torch.randint(99, (len(drawn), 3, NUM_CELLS), generator=generator)
    batch = packed(drawn, path=path)
    by_step: list[Tensor] = [batch.from_canvas(path[:, s], fill=-7) for s in range(3)]
    assert torch.equal(batch.from_canvas(path, fill=-7), torch.stack(by_step))


def test_whole_canvases_are_packed_as_sequences_that_show_every_cell() -> None:
    canvases = torch.arange(NUM_CELLS).expand(3, -1)
    found, expected = pack_whole(canvases, PREFIX), packed([[*range(NUM_CELLS)]] * 3)
    for name, value in (
        expected._replace(labels=torch.zeros_like(expected.labels))._asdict().items()
    ):
        own = getattr(found, name)
        if value is None:
            assert own is None
        else:
            assert own.dtype == value.dtype, name
            assert torch.equal(own, value), name
