"""Random numbers by place: SplitMix64 to the bit, evenly spread, and the same for any part."""

import pytest
import torch
from torch import Tensor

from models.randomness import CellRandom

SEEDS = [0, 1, 1234567, -1, -(2**63), 2**63 - 1, -987654321987654321]
PLACES = [(0, 0), (0, 1), (1, 0), (7, 899), (767, 4095), (2**24 - 1, 0), (2**24 - 1, 4095)]
"""Rows and cells: among them the first and the last that there may be."""

GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(state: int) -> int:
    """The output function of SplitMix64, in whole numbers modulo 2**64."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def expected(seed: int, row: int, cell: int, stream: int) -> float:
    """The number of a place: the highest 53 of its 64 bits, as a fraction."""
    counter = (stream * 2**24 + row) * 2**12 + cell
    return (splitmix64((seed + GOLDEN * counter) % 2**64) >> 11) / 2**53


def numbers(
    seed: int = 5, rows: int = 100, cells: int = 1000, stream: int = 0, first_row: int = 0
) -> Tensor:
    """A hundred thousand numbers [rows, cells], unless told otherwise."""
    random = CellRandom(seed, first_row + torch.arange(rows), torch.arange(cells))
    return random.uniform(stream)


def test_the_reference_is_splitmix64() -> None:
    """Its first outputs for seed 1234567, as published with other implementations of it."""
    outputs = [splitmix64((1234567 + GOLDEN * i) % 2**64) for i in (1, 2, 3, 4, 5)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("stream", [0, 1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_number_is_splitmix64_of_its_place_to_the_last_bit(seed: int, stream: int) -> None:
    rows = torch.tensor([row for row, _ in PLACES])
    cells = torch.tensor([[cell] for _, cell in PLACES])
    drawn = CellRandom(seed, rows, cells).uniform(stream)
    assert drawn.dtype == torch.float64
    assert drawn.flatten().tolist() == [expected(seed, *place, stream) for place in PLACES]


def test_no_two_places_streams_or_seeds_share_a_number() -> None:
    """At the edges of the rows, cells and streams too, where one could run into the next."""
    rows = torch.tensor([0, 1, 2**24 - 2, 2**24 - 1])
    cells = torch.tensor([0, 1, 4094, 4095])
    drawn = [
        CellRandom(seed, rows, cells).uniform(stream) for seed in SEEDS for stream in (0, 1, 2)
    ]
    assert torch.stack(drawn).unique().numel() == len(SEEDS) * 3 * 16


def test_numbers_are_spread_evenly_from_0_to_below_1() -> None:
    drawn = numbers()
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    count = drawn.numel()
    # A uniform number has the variance 1/12, its squared deviation 1/180; four sigma of the means.
    assert abs(drawn.mean() - 1 / 2) < 4 * (1 / 12 / count) ** 0.5
    assert abs(drawn.var() - 1 / 12) < 4 * (1 / 180 / count) ** 0.5
    # Chi-squared of 64 equal bins: mean 63, variance 126; five sigma.
    in_bins = torch.histc(drawn, 64, 0, 1)
    chi_squared = ((in_bins - count / 64) ** 2 / (count / 64)).sum()
    assert abs(chi_squared - 63) < 5 * 126**0.5


def correlation(one: Tensor, other: Tensor) -> float:
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


@pytest.mark.parametrize("distance", [1, 2, 7])
def test_neighbouring_cells_rows_seeds_and_streams_know_nothing_of_each_other(
    distance: int,
) -> None:
    drawn = numbers()
    pairs = {
        "cells": (drawn[:, distance:], drawn[:, :-distance]),
        "rows": (drawn, numbers(first_row=distance)),
        "seeds": (drawn, numbers(seed=5 + distance)),
        "streams": (drawn, numbers(stream=distance)),
    }
    # The correlation of n independent pairs has a standard deviation of 1 / sqrt(n); four of them.
    bound = 4 / drawn.numel() ** 0.5
    for name, pair in pairs.items():
        assert abs(correlation(*pair)) < bound, name


def test_some_rows_and_cells_get_what_they_get_in_the_whole() -> None:
    whole = numbers(rows=8, cells=900)
    rows = torch.tensor([6, 0, 3])
    assert torch.equal(CellRandom(5, rows, torch.arange(900)).uniform(), whole[rows])
    # Other cells of each row, in any order.
    cells = torch.tensor([[899, 5, 17], [0, 1, 2], [30, 29, 500]])
    assert torch.equal(CellRandom(5, rows, cells).uniform(), whole[rows[:, None], cells])
    # A row that stands there twice gets the same numbers twice.
    twice = CellRandom(5, torch.tensor([2, 2]), torch.arange(900)).uniform()
    assert torch.equal(twice, whole[[2, 2]])


def test_numbers_can_be_had_again_and_do_not_touch_the_global_generator() -> None:
    random = CellRandom(5, torch.arange(3), torch.arange(10))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = random.uniform()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(random.uniform(), first)
    assert not torch.equal(random.uniform(stream=1), first)
    assert torch.equal(random.uniform(stream=0), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_numbers_to_the_last_bit() -> None:
    rows, cells = torch.arange(100), torch.arange(1000)
    drawn = CellRandom(-5, rows.cuda(), cells.cuda()).uniform()
    assert torch.equal(drawn.cpu(), numbers(seed=-5))
