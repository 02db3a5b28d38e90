"""Target generators: laws that hold for every canvas, and the randomness behind them."""

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import cell_random
from torch import Tensor

from models.randomness import CellRandom
from models.targets import TARGETS, FinalTargets, LinearTargets


class Case(NamedTuple):
    inputs: Tensor
    solution: Tensor
    num_steps: int
    random: CellRandom


@st.composite
def cases(draw: Any) -> Case:
    """One to three canvases of up to twelve cells; of few tokens, so that some cells agree."""
    rows, cells = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    canvas = st.lists(st.integers(0, 3), min_size=cells, max_size=cells)
    canvases = st.lists(canvas, min_size=rows, max_size=rows)
    seed = draw(st.integers(0, 2**31))
    return Case(
        torch.tensor(draw(canvases)),
        torch.tensor(draw(canvases)),
        draw(st.integers(1, 7)),
        cell_random(rows, seed, num_cells=cells),
    )


def distances(frames: Tensor, solution: Tensor) -> Tensor:
    """Cells [B, S] in which each frame differs from the solution."""
    return (frames != solution.unsqueeze(1)).sum(dim=2)


@pytest.mark.parametrize("name", sorted(TARGETS))
@given(case=cases())
@settings(max_examples=60)
def test_every_generator_ends_at_the_solution_and_never_moves_away_from_it(
    name: str, case: Case
) -> None:
    frames = TARGETS[name](*case)
    assert frames.shape == (len(case.inputs), case.num_steps, case.inputs.shape[1])
    assert torch.equal(frames[:, -1], case.solution)
    start = case.inputs.unsqueeze(1)
    assert (distances(torch.cat([start, frames], dim=1), case.solution).diff(dim=1) <= 0).all()
    of_either = (frames == start) | (frames == case.solution.unsqueeze(1))
    assert of_either.all()


@given(case=cases())
@settings(max_examples=100)
def test_linear_frame_s_of_n_has_replaced_floor_of_s_k_over_n_cells(case: Case) -> None:
    frames = LinearTargets()(*case)
    for row, inputs, solution in zip(frames, case.inputs, case.solution, strict=True):
        k = int((inputs != solution).sum())
        replaced = [int((frame != inputs).sum()) for frame in row]
        assert replaced == [s * k // case.num_steps for s in range(1, case.num_steps + 1)]


@given(case=cases())
@settings(max_examples=100)
def test_a_replaced_cell_stays_replaced(case: Case) -> None:
    frames = LinearTargets()(*case)
    replaced = (frames != case.inputs.unsqueeze(1)).int()
    assert (replaced.diff(dim=1) >= 0).all()


def test_the_average_distance_falls_strictly_while_there_is_distance_left() -> None:
    inputs = torch.zeros(2, 12, dtype=torch.long)
    solution = torch.ones(2, 12, dtype=torch.long)
    frames = LinearTargets()(inputs, solution, 6, cell_random(2, num_cells=12))
    assert distances(frames, solution).tolist() == [[10, 8, 6, 4, 2, 0]] * 2


def test_cells_of_the_solution_that_the_input_shows_already_take_no_share_of_the_steps() -> None:
    inputs = torch.tensor([[4, 4, 4, 4, 4, 4]])
    solution = torch.tensor([[4, 7, 4, 4, 7, 4]])
    for seed in range(20):
        frames = LinearTargets()(inputs, solution, 2, cell_random(1, seed, num_cells=6))
        assert distances(frames, solution).tolist() == [[1, 0]]


def test_every_order_of_replacement_is_equally_likely() -> None:
    """Three cells, three steps: 6 orders; 6000 examples, each order 1000 times within 4 sigma."""
    rows = 6000
    inputs = torch.zeros(rows, 3, dtype=torch.long)
    frames = LinearTargets()(inputs, inputs + 1, 3, cell_random(rows, num_cells=3))
    # The step at which each cell is replaced, from the number of frames that show it so.
    orders = Counter(map(tuple, (4 - frames.sum(dim=1)).tolist()))
    assert len(orders) == 6
    assert max(abs(count - 1000) for count in orders.values()) < 4 * (6000 * 1 / 6 * 5 / 6) ** 0.5


def test_the_path_is_drawn_afresh_for_each_seed_and_place_and_is_a_function_of_them() -> None:
    inputs = torch.zeros(1, 30, dtype=torch.long)

    def path(seed: int, row: int) -> list[list[list[int]]]:
        random = cell_random(1, seed, first_row=row, num_cells=30)
        frames: list[list[list[int]]] = LinearTargets()(inputs, inputs + 1, 6, random).tolist()
        return frames

    first = path(seed=1, row=0)
    assert path(seed=1, row=0) == first
    assert path(seed=2, row=0) != first
    assert path(seed=1, row=1) != first


def test_two_slices_of_a_batch_get_what_the_whole_batch_gets() -> None:
    inputs = torch.zeros(6, 30, dtype=torch.long)
    solution = torch.arange(6 * 30).reshape(6, 30) % 5
    whole = LinearTargets()(inputs, solution, 4, cell_random(6, 11, num_cells=30))
    parts = [
        LinearTargets()(
            inputs[first : first + 3],
            solution[first : first + 3],
            4,
            cell_random(3, 11, first_row=first, num_cells=30),
        )
        for first in (0, 3)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(parts[0], parts[1])


@given(case=cases(), data=st.data())
@settings(max_examples=60)
def test_cells_that_agree_can_be_left_out_without_a_change_to_the_path_of_the_rest(
    case: Case, data: st.DataObject
) -> None:
    """Not even the order matters in which the others are listed."""
    whole = LinearTargets()(*case)
    for row in range(len(case.inputs)):
        differs = case.inputs[row] != case.solution[row]
        kept = [cell for cell in range(len(differs)) if differs[cell] or data.draw(st.booleans())]
        cells = torch.tensor(data.draw(st.permutations(kept)), dtype=torch.int64)
        one = slice(row, row + 1)
        random = CellRandom(case.random.seed, case.random.rows[one], cells.unsqueeze(0))
        inputs, solution = case.inputs[one, cells], case.solution[one, cells]
        frames = LinearTargets()(inputs, solution, case.num_steps, random)
        assert torch.equal(frames[0], whole[row][:, cells])


def test_final_shows_the_solution_at_every_step() -> None:
    inputs, solution = torch.tensor([[1, 2]]), torch.tensor([[3, 2]])
    frames = FinalTargets()(inputs, solution, 3, cell_random(1, num_cells=2))
    assert frames.tolist() == [[[3, 2], [3, 2], [3, 2]]]


def test_a_solution_equal_to_its_input_is_the_target_throughout() -> None:
    canvas = torch.tensor([[5, 0, 2]])
    random = cell_random(1, num_cells=3)
    assert LinearTargets()(canvas, canvas, 3, random).tolist() == [[[5, 0, 2]] * 3]


def test_the_registry_has_the_names_that_users_select_by() -> None:
    assert {name: type(generator) for name, generator in TARGETS.items()} == {
        "linear": LinearTargets,
        "final": FinalTargets,
    }
