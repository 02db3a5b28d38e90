"""Random numbers as a function of (seed, example, cell): no generator, hence no order of drawing.

What an example gets depends on its place in the global batch, not on the number of ranks, on
micro-batches, on the cells that are shown, or on the device.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

# The constants of SplitMix64 (Steele, Lea, Flood 2014), as the signed numbers that torch has.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST_FACTOR = 0xBF58476D1CE4E5B9 - 2**64
_SECOND_FACTOR = 0x94D049BB133111EB - 2**64

_CELL_BITS = 12
_ROW_BITS = 24


def batch_seed(seed: int, step: int) -> int:
    """Seed of a batch's targets: a function of the run's seed and the step that it begins at."""
    sequence = np.random.SeedSequence([seed, step])
    # Torch's integers are signed.
    return int(sequence.generate_state(1, np.uint64)[0]) & (2**63 - 1)


@dataclass(frozen=True)
class CellRandom:
    """Random numbers for the cells of some examples of a batch."""

    seed: int
    """Of this batch, a signed 64-bit number."""
    rows: Tensor
    """int64 [B] places of the examples in the global batch, below 2**24."""
    cells: Tensor
    """int64 [B, L] or [L] cells of the canvas, below 2**12."""

    def uniform(self, stream: int = 0) -> Tensor:
        """[B, L] float64 in [0, 1); another stream is another set of numbers."""
        row = (stream << _ROW_BITS) + self.rows.unsqueeze(-1)
        bits = _splitmix64(self.seed + _GOLDEN * ((row << _CELL_BITS) + self.cells))
        return _shift_right(bits, 11).double() * 2.0**-53


def _splitmix64(state: Tensor) -> Tensor:
    """Mix the bits of int64 numbers; products wrap around, as they should."""
    state = (state ^ _shift_right(state, 30)) * _FIRST_FACTOR
    state = (state ^ _shift_right(state, 27)) * _SECOND_FACTOR
    return state ^ _shift_right(state, 31)


def _shift_right(number: Tensor, count: int) -> Tensor:
    """Shift zeros in from the left; torch would repeat the sign."""
    shifted: Tensor = (number >> count) & ((1 << (64 - count)) - 1)
    return shifted
