"""Target generators: laws that hold for every canvas, orders by hand, and what each requires."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from common.settings import validate
from common.tokens import MISSING
from config.loading import load_config
from config.schema import TrainConfig
from models.objective import IGNORE
from models.randomness import CellRandom
from models.supervision import SupervisionConfig, step_certainty, step_targets
from models.targets import (
    TARGETS,
    TargetGenerator,
    TargetRequest,
    first_cells,
    linear_certainty,
    num_replaced,
)
from tiny import SEQ_LEN, cell_random, random_tokens, target_request
from train_arc_tiny_corrupt import open_batches

NAMES = sorted(TARGETS)
EDITS = [name for name in NAMES if name.startswith("edits")]
COLOURS = range(2, 5)
"""Fewer than ARC's: random ones often agree with the solution's."""


def generate(name: str, request: TargetRequest) -> Tensor:
    return TARGETS[name].generate(request)


@st.composite
def cases(draw: Any) -> TargetRequest:
    """One to three canvases of up to 4x4 cells; of few tokens, so that some cells agree.

    Paths follow any curve.
    """
    rows, cells = draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 9, 16]))
    canvas = st.lists(st.integers(0, 4), min_size=cells, max_size=cells)
    canvases = st.lists(canvas, min_size=rows, max_size=rows)
    inputs, solution = torch.tensor(draw(canvases)), torch.tensor(draw(canvases))
    num_steps = draw(st.integers(1, 7))
    random = cell_random(rows, draw(st.integers(0, 2**31)), num_cells=cells)
    stored = trajectories(solution, num_steps, draw(st.integers(0, 2**31)))
    has_none = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    stored[has_none] = MISSING
    power = draw(st.sampled_from([0.3, 1.0, 2.0, 100.0]))
    return TargetRequest(inputs, solution, num_steps, random, COLOURS, stored, power)


def trajectories(solution: Tensor, num_steps: int, seed: int) -> Tensor:
    """Some way [B, S, L] to the solution: cells are of any tokens, and stay right once they are."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(solution), num_steps, solution.shape[1])
    frames = torch.randint(0, 5, shape, generator=generator)
    frames[:, -1] = solution
    reached = (frames == solution.unsqueeze(1)).cumsum(dim=1) > 0
    return torch.where(reached, solution.unsqueeze(1), frames).to(torch.uint8)


def distances(frames: Tensor, solution: Tensor) -> Tensor:
    """Cells [B, S] in which each frame differs from the solution."""
    return (frames != solution.unsqueeze(1)).sum(dim=2)


# ---- laws ------------------------------------------------------------------------------------


def may_be_replaced_later(name: str, request: TargetRequest) -> Tensor:
    """Whether a cell [B, S, L] shows what this generator starts from."""
    frames = generate(name, request)
    shows_input = frames == request.inputs.unsqueeze(1)
    shows_colour = (frames >= COLOURS.start) & (frames < COLOURS.stop)
    return {
        "mask": frames == 0,
        "replace": shows_colour & (request.solution.unsqueeze(1) > 0),
        "file": shows_input | (frames == request.stored),
        "final": torch.zeros_like(shows_input),
    }.get(name, shows_input)


@pytest.mark.parametrize("name", NAMES)
@given(case=cases())
@settings(max_examples=60)
def test_every_generator_ends_at_the_solution_and_never_moves_away_from_it(
    name: str, case: TargetRequest
) -> None:
    frames = generate(name, case)
    assert frames.dtype == torch.int64
    assert frames.shape == (len(case.inputs), case.num_steps, case.inputs.shape[1])
    assert torch.equal(frames[:, -1], case.solution)
    assert (distances(frames, case.solution).diff(dim=1) <= 0).all()
    is_solution = frames == case.solution.unsqueeze(1)
    assert (is_solution | may_be_replaced_later(name, case)).all()
    assert (is_solution.int().diff(dim=1) >= 0).all(), "a cell that is right stays right"


@pytest.mark.parametrize("name", ["linear", *EDITS])
@given(case=cases())
@settings(max_examples=60)
def test_of_k_cells_to_replace_frame_s_of_n_has_replaced_floor_of_s_k_over_n(
    name: str, case: TargetRequest
) -> None:
    """Cells that agree take no share; edits empty cells beside the others, at the same pace."""
    case = case._replace(path_power=1.0)
    frames = generate(name, case)
    steps = torch.arange(1, case.num_steps + 1)
    is_emptied = case.solution == 0
    for cells in (is_emptied, ~is_emptied) if name in EDITS else (torch.ones_like(is_emptied),):
        k = ((case.inputs != case.solution) & cells).sum(dim=1, keepdim=True)
        replaced = ((frames != case.inputs.unsqueeze(1)) & cells.unsqueeze(1)).sum(dim=2)
        assert torch.equal(replaced, steps * k // case.num_steps)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("final", "expected")])
def test_every_generator_that_has_a_path_comes_closer_on_average_at_every_step(name: str) -> None:
    inputs, solution = random_tokens(1, rows=64), random_tokens(2, rows=64)
    request = target_request(
        inputs, solution, 6, cell_random(64), stored=trajectories(solution, 6, seed=3)
    )
    mean = distances(generate(name, request), solution).double().mean(dim=0)
    assert (mean.diff() < -0.3).all()
    assert mean[0] > 1


@pytest.mark.parametrize("name", NAMES)
@given(case=cases())
@settings(max_examples=30)
def test_an_examples_targets_depend_neither_on_the_others_nor_on_the_number_of_ranks(
    name: str, case: TargetRequest
) -> None:
    whole = generate(name, case)
    for row in range(len(case.inputs)):
        one = slice(row, row + 1)
        alone = case._replace(
            inputs=case.inputs[one],
            solution=case.solution[one],
            random=CellRandom(case.random.seed, case.random.rows[one], case.random.cells),
            stored=case.stored[one],
        )
        assert torch.equal(generate(name, alone), whole[one])


@pytest.mark.parametrize("name", NAMES)
@given(case=cases())
@settings(max_examples=30)
def test_cells_whose_solution_is_pad_are_never_counted_where_pad_is_ignored(
    name: str, case: TargetRequest
) -> None:
    targets = step_targets(SupervisionConfig(targets=name, pad_cells="ignored"), case)
    is_pad = (case.solution == 0).unsqueeze(1)
    shown = torch.cat([case.inputs.unsqueeze(1), generate(name, case)], dim=1)
    assert torch.equal(targets, torch.where(is_pad, IGNORE, shown))


@pytest.mark.parametrize("name", [n for n in NAMES if not TARGETS[n].pad_ignored])
@given(case=cases())
@settings(max_examples=30)
def test_pad_that_is_counted_until_replaced_is_out_for_good_then_and_at_the_last_step(
    name: str, case: TargetRequest
) -> None:
    config = SupervisionConfig(targets=name, pad_cells="counted_until_replaced")
    targets = step_targets(config, case)
    is_pad = case.solution == 0
    out = targets == IGNORE
    assert torch.equal(targets[:, -1], case.solution.masked_fill(is_pad, IGNORE))
    assert torch.equal(targets[:, 0], case.inputs)
    assert (out.int().diff(dim=1) >= 0).all(), "a cell that is out stays out"
    assert not out.masked_fill(is_pad.unsqueeze(1), False).any(), "no other cell ever is"
    assert not (targets == MISSING).any()
    if name not in ("replace", "file"):  # Their frames need not begin with the question.
        counted = is_pad.unsqueeze(1) & ~out
        shown = case.inputs.unsqueeze(1).expand_as(targets)
        assert torch.equal(targets[counted], shown[counted]), "counted towards the input's token"
    if name in ("final", "replace"):  # These show nothing but the solution where it is PAD.
        assert torch.equal(out[:, 1], is_pad)


# ---- the linear path ------------------------------------------------------------------------


def test_every_order_of_replacement_is_equally_likely() -> None:
    """Three cells, three steps: 6 orders; 6000 examples, each order 1000 times within 4 sigma."""
    rows = 6000
    inputs = torch.zeros(rows, 3, dtype=torch.long)
    request = target_request(inputs, inputs + 1, 3, cell_random(rows, num_cells=3))
    # The step at which each cell is replaced, from the number of frames that show it so.
    orders = Counter(map(tuple, (4 - generate("linear", request).sum(dim=1)).tolist()))
    assert len(orders) == 6
    assert max(abs(count - 1000) for count in orders.values()) < 4 * (6000 * 1 / 6 * 5 / 6) ** 0.5


def test_the_path_is_drawn_afresh_for_each_seed_and_place_and_is_a_function_of_them() -> None:
    inputs = torch.zeros(1, 30, dtype=torch.long)

    def path(seed: int, row: int) -> Tensor:
        random = cell_random(1, seed, first_row=row, num_cells=30)
        return generate("linear", target_request(inputs, inputs + 1, 6, random))

    assert torch.equal(path(seed=1, row=0), path(seed=1, row=0))
    assert not torch.equal(path(seed=2, row=0), path(seed=1, row=0))
    assert not torch.equal(path(seed=1, row=1), path(seed=1, row=0))


@given(case=cases(), data=st.data())
@settings(max_examples=60)
def test_cells_that_agree_can_be_left_out_without_a_change_to_the_path_of_the_rest(
    case: TargetRequest, data: st.DataObject
) -> None:
    """Not even the order matters in which the others are listed."""
    whole = generate("linear", case)
    for row in range(len(case.inputs)):
        differs = case.inputs[row] != case.solution[row]
        kept = [cell for cell in range(len(differs)) if differs[cell] or data.draw(st.booleans())]
        cells = torch.tensor(data.draw(st.permutations(kept)), dtype=torch.int64)
        one = slice(row, row + 1)
        random = CellRandom(case.random.seed, case.random.rows[one], cells.unsqueeze(0))
        inputs, solution = case.inputs[one, cells], case.solution[one, cells]
        asked = case._replace(inputs=inputs, solution=solution, random=random)
        assert torch.equal(generate("linear", asked)[0], whole[row][:, cells])


# ---- the linear path in expectation ----------------------------------------------------------


class Ordered(CellRandom):
    """Cells are replaced in a given order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__(0, torch.arange(1), torch.arange(len(order)))
        object.__setattr__(self, "order", torch.tensor([order]).double())

    def uniform(self, stream: int = 0) -> Tensor:
        order: Tensor = self.order  # type: ignore[attr-defined]
        return order


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("num_steps", [1, 3, 4, 7])
def test_over_all_orders_a_cell_is_the_solutions_as_often_as_expected_says(
    num_steps: int, power: float
) -> None:
    """Of six cells one agrees, and one of the five that differ becomes PAD: 720 orders."""
    request = target_request(
        torch.tensor([[2, 3, 4, 5, 6, 7]]),
        torch.tensor([[3, 3, 5, 0, 2, 2]]),
        num_steps,
        cell_random(1, num_cells=6),
        path_power=power,
    )
    orders = [Ordered(order) for order in permutations(range(6))]
    frames = torch.cat([generate("linear", request._replace(random=order)) for order in orders])
    is_solution = (frames == request.solution).double().mean(dim=0)[:, [0, 2, 3, 4, 5]]
    certainty = linear_certainty(request).T.double()
    assert torch.allclose(is_solution, certainty.expand_as(is_solution))
    assert certainty[-1] == 1


@given(case=cases())
@settings(max_examples=60)
def test_the_linear_path_has_replaced_the_share_that_expected_says_whatever_its_order(
    case: TargetRequest,
) -> None:
    differs = (case.inputs != case.solution).unsqueeze(1)
    replaced = ((generate("linear", case) == case.solution.unsqueeze(1)) & differs).sum(dim=2)
    assert torch.equal(replaced / differs.sum(dim=2).clamp(min=1), linear_certainty(case))
    certainty = step_certainty(SupervisionConfig(targets="expected"), case)
    assert certainty is not None
    assert torch.equal(certainty[:, 1:], linear_certainty(case))
    assert not certainty[:, 0].any(), "before the first step, the question"
    for name in NAMES:
        config = SupervisionConfig(targets=name)
        assert (step_certainty(config, case) is not None) == (name == "expected")


def test_the_likeliest_frames_by_hand() -> None:
    """Of 5, 2 and no cells that differ; of 2, both tokens are as likely at step 2 of 4."""
    inputs = torch.full((3, 6), 2)
    solution = torch.tensor([[3, 3, 3, 0, 3, 2], [2, 3, 2, 2, 2, 3], [2] * 6])
    request = target_request(inputs, solution, 4, cell_random(3, num_cells=6))
    assert linear_certainty(request).tolist() == [
        pytest.approx([1 / 5, 2 / 5, 3 / 5, 1]), [0, 1 / 2, 1 / 2, 1], [0, 0, 0, 0]
    ]  # fmt: skip
    frames = generate("expected", request)
    shows_solution = (frames == solution.unsqueeze(1)).all(dim=2)
    assert shows_solution.tolist() == [[False] * 2 + [True] * 2, [False] * 3 + [True], [True] * 4]
    assert torch.equal(frames[0, :2], inputs[:2])


def test_expected_says_why_pad_cannot_be_counted_until_replaced() -> None:
    given = {"targets": "expected", "pad_cells": "counted_until_replaced"}
    with pytest.raises(UserError, match=r"pad_cells=ignored: the order .* is random"):
        validate(SupervisionConfig, given, "supervision")


# ---- the curve of a path ---------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_cells_that_a_frame_has_replaced_are_those_of_whole_numbers(power: int) -> None:
    """floor(k * (1 - (1 - s/S)^p)) in integers; of power 1 floor(s * k / S), as in the paper.

    For every size of a canvas and many numbers of steps: no rounding decides about a cell.
    """
    cells = torch.arange(4097)
    for num_steps in (*range(1, 33), 64, 100):
        steps = torch.arange(1, num_steps + 1)
        share = num_steps**power - (num_steps - steps) ** power
        expected = cells.unsqueeze(1) * share // num_steps**power
        assert torch.equal(num_replaced(cells, num_steps, float(power)), expected)
        if power == 1:
            assert torch.equal(expected, steps * cells.unsqueeze(1) // num_steps)


def test_the_curve_by_hand() -> None:
    """Of 100 cells in four steps: 1 - (3/4)^2 = 0.4375 of them, 1 - sqrt(3/4) = 0.134, ..."""
    count = torch.tensor([100])
    assert num_replaced(count, 4, 2.0).tolist() == [[43, 75, 93, 100]]
    assert num_replaced(count, 4, 0.5).tolist() == [[13, 29, 50, 100]]


@pytest.mark.parametrize(
    ("name", "evenly", "bent"),
    [
        *((name, [6, 3, 0], [4, 1, 0]) for name in ("linear", "mask", "replace", *EDITS)),
        # Shares of 1/3 and 2/3, of 5/9 and 8/9: the likelier of two tokens changes at 1/2.
        ("expected", [9, 0, 0], [0, 0, 0]),
        ("final", [0, 0, 0], [0, 0, 0]),
        ("file", [7, 7, 0], [7, 7, 0]),
    ],
)
def test_every_path_follows_the_curve_and_nothing_else_does(
    name: str, evenly: list[int], bent: list[int]
) -> None:
    """Nine cells that differ, of which power 2 replaces 5, 8 and 9."""
    inputs, solution = torch.full((1, 9), 2), torch.full((1, 9), 3)
    stored = solution.unsqueeze(1).repeat(1, 3, 1).to(torch.uint8)
    stored[:, :2, 2:] = 4
    request = target_request(
        inputs, solution, 3, cell_random(1, num_cells=9), stored=stored, colours=range(20, 23)
    )
    for power, expected in ((1.0, evenly), (2.0, bent)):
        frames = generate(name, request._replace(path_power=power))
        assert distances(frames, solution).tolist() == [expected]
    if name == "linear":
        frames = generate(name, request._replace(path_power=1000.0))
        assert torch.equal(frames, generate("final", request))


@pytest.mark.parametrize("power", [0.0, -1.0, float("inf"), float("nan")])
def test_a_power_that_makes_no_path_is_refused(power: float) -> None:
    with pytest.raises(UserError, match="path_power="):
        validate(SupervisionConfig, {"path_power": power}, "supervision")


# ---- edits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDITS)
@given(case=cases())
@settings(max_examples=30)
def test_edits_are_the_same_whatever_the_seed_and_place(name: str, case: TargetRequest) -> None:
    other = case._replace(random=cell_random(len(case.inputs), 1, 77, case.inputs.shape[1]))
    assert torch.equal(generate(name, case), generate(name, other))


GROUND = [2] * 16
GRID = [
    5, 2, 2, 3,
    5, 2, 4, 3,
    2, 2, 4, 4,
    3, 3, 2, 5,
]  # fmt: skip
"""Five components on a ground of 2."""
PARTED = [4 if cell == 10 else 2 for cell in range(16)]
"""The middle of the 4s is there already: 6 and 11 are left, which touch at a corner."""
RECOLOURED = [9 if cell in (6, 7) else token for cell, token in enumerate(PARTED)]
CORNERS = [
    2, 3, 4,
    3, 2, 2,
    3, 2, 2,
]  # fmt: skip
WRAPPED = [
    2, 2, 3,
    3, 2, 4,
    3, 2, 2,
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "inputs", "solution", "order"),
    [
        ("edits_by_row", GROUND, GRID, [0, 3, 4, 6, 7, 10, 11, 12, 13, 15]),
        # The 3s, the 4s, the 5s.
        ("edits_by_colour", GROUND, GRID, [3, 7, 12, 13, 6, 10, 11, 0, 4, 15]),
        # By their first cells: 0, 3, 6, 12 and 15.
        ("edits_by_component", GROUND, GRID, [0, 4, 3, 7, 6, 10, 11, 12, 13, 15]),
        # Cells that agree take no part and part components ...
        ("edits_by_component", PARTED, GRID, [0, 4, 3, 7, 6, 11, 12, 13, 15]),
        # ... and what the input shows of the others makes no difference.
        ("edits_by_component", RECOLOURED, GRID, [0, 4, 3, 7, 6, 11, 12, 13, 15]),
        # Components touch at edges, not at corners.
        ("edits_by_component", [2] * 9, CORNERS, [1, 2, 3, 6]),
        # The last cell of a row is no neighbour of the first cell of the next.
        ("edits_by_component", [2] * 9, WRAPPED, [2, 3, 6, 5]),
    ],
)
def test_edits_by_hand(name: str, inputs: list[int], solution: list[int], order: list[int]) -> None:
    """Cells in the order in which they are replaced, one a step."""
    before, after = torch.tensor([inputs]), torch.tensor([solution])
    request = target_request(before, after, len(order), cell_random(1, num_cells=len(inputs)))
    frames = generate(name, request)[0]
    changed = (torch.cat([before, frames[:-1]]) != frames).nonzero()
    assert changed.tolist() == [[step, cell] for step, cell in enumerate(order)]


def flood_fill(member: list[bool], colour: list[int], side: int) -> list[int]:
    """The first cell of each cell's component, found by walking from cell to cell."""
    first = list(range(side * side))
    seen: set[int] = set()
    for start in range(side * side):  # So the first that is met is the lowest.
        waiting = [start] if member[start] and start not in seen else []
        seen.update(waiting)
        while waiting:
            cell = waiting.pop()
            first[cell] = start
            row, col = divmod(cell, side)
            for r, c in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                if 0 <= r < side and 0 <= c < side and r * side + c not in seen:
                    other = r * side + c
                    if member[other] and colour[other] == colour[start]:
                        seen.add(other)
                        waiting.append(other)
    return first


@given(side=st.integers(1, 6), seed=st.integers(0, 2**31), colours=st.integers(1, 3))
@settings(max_examples=100)
def test_components_are_those_of_a_flood_fill(side: int, seed: int, colours: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, side * side)
    member = torch.rand(shape, generator=generator) < 0.7
    # Also the number that stands for "not counted".
    colour = torch.randint(colours, shape, generator=generator).masked_fill_(
        torch.rand(shape, generator=generator) < 0.2, IGNORE
    )
    expected = [
        flood_fill(m, c, side) for m, c in zip(member.tolist(), colour.tolist(), strict=True)
    ]
    assert first_cells(member, colour).tolist() == expected


def test_a_component_that_winds_over_the_whole_canvas_is_one() -> None:
    """A snake, every second row joined at alternate ends, and mirrored so that its end is first."""
    snake = torch.zeros(30, 30, dtype=torch.bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    for canvas in (snake, snake.flip(0), snake.flip(1), snake.T):
        member = canvas.reshape(1, -1)
        first = first_cells(member, torch.ones_like(member, dtype=torch.long))
        lowest = int(member[0].nonzero()[0])
        assert first[member].tolist() == [lowest] * int(member.sum())
        assert torch.equal(first[~member], torch.arange(900)[~member[0]])


# ---- noise that lifts ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask", "replace"])
def test_of_the_cells_with_content_a_share_is_hidden_that_falls_linearly(name: str) -> None:
    """By PAD or by a colour that the solution does not have; PAD stays PAD, and has no share."""
    solution, empty = random_tokens(4, rows=3, lowest=1), [0, 5, 6, 15]
    solution[:, empty] = 0  # Twelve cells are left.
    colours = range(20, 23)
    inputs = random_tokens(5, rows=3)
    frames = generate(name, target_request(inputs, solution, 6, cell_random(3), colours=colours))
    assert distances(frames, solution).tolist() == [[10, 8, 6, 4, 2, 0]] * 3
    shown_instead = set(frames[frames != solution.unsqueeze(1)].tolist())
    assert shown_instead == {"mask": {0}, "replace": set(colours)}[name]
    assert (frames[:, :, empty] == 0).all()


@pytest.mark.parametrize("name", ["mask", "replace"])
def test_noise_is_drawn_for_each_example_and_tells_nothing_of_the_question(name: str) -> None:
    solution = torch.full((2, SEQ_LEN), 5)
    one, other = (
        generate(name, target_request(random_tokens(seed), solution, 4, cell_random(2)))
        for seed in (1, 2)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize(("num_steps", "count"), [(101, 6000), (2, 3000)])
def test_replace_draws_every_colour_equally_often_whenever_the_cell_is_lifted(
    num_steps: int, count: int
) -> None:
    """Of 6000 cells of EOS the first frame hides all, or half: a third by each, in 4 sigma."""
    solution = torch.ones(60, 100, dtype=torch.long)
    random = cell_random(60, num_cells=100)
    request = target_request(solution, solution, num_steps, random, colours=range(3, 6))
    first = generate("replace", request)[:, 0]
    counts = Counter(first[first != 1].tolist())
    assert set(counts) == {3, 4, 5}
    assert sum(counts.values()) == count
    assert max(abs(n - count / 3) for n in counts.values()) < 4 * (count * 2 / 9) ** 0.5


# ---- from a file -----------------------------------------------------------------------------


def test_stored_trajectories_are_handed_on_and_examples_without_one_get_the_linear_path() -> None:
    inputs, solution = random_tokens(1, rows=3), random_tokens(2, rows=3)
    stored = trajectories(solution, 4, seed=6)
    stored[1] = MISSING
    request = target_request(inputs, solution, 4, cell_random(3), stored=stored)
    frames, linear = generate("file", request), generate("linear", request)
    assert torch.equal(frames[[0, 2]], stored[[0, 2]].long())
    assert torch.equal(frames[1], linear[1])
    assert not torch.equal(frames[0], linear[0])
    # No file was read: at test time.
    assert torch.equal(generate("file", request._replace(stored=None)), linear)


def test_stored_trajectories_with_pad_counted_until_replaced_by_hand() -> None:
    """Cells 1 and 3 become PAD; of the four cells to replace, one a step, in the order of cells.

    Cells 0 and 2 are as stored. At 1 and 3 the linear path decides when they are out: it replaces
    cell 1 at step 2, and cell 3 at step 4. Until then they are counted towards the input.
    """

    class InOrder(CellRandom):
        def uniform(self, stream: int = 0) -> Tensor:
            return torch.tensor([[0.1, 0.2, 0.3, 0.4]])

    stored = torch.tensor([[[9, 9, 5, 9], [3, 0, 8, 0], [3, 0, 7, 0], [3, 0, 7, 0]]])
    request = target_request(
        torch.tensor([[2, 4, 5, 6]]),
        torch.tensor([[3, 0, 7, 0]]),
        4,
        InOrder(0, torch.arange(1), torch.arange(4)),
        stored=stored.to(torch.uint8),
    )
    config = SupervisionConfig(targets="file", pad_cells="counted_until_replaced")
    assert step_targets(config, request)[0].tolist() == [
        [2, 4, 5, 6],
        [9, 4, 5, 6],
        [3, IGNORE, 8, 6],
        [3, IGNORE, 7, 6],
        [3, IGNORE, 7, IGNORE],
    ]
    config = SupervisionConfig(targets="file", pad_cells="ignored")
    assert step_targets(config, request)[0, 1:, [0, 2]].tolist() == [[9, 5], [3, 8], [3, 7], [3, 7]]


# ---- what generators require -----------------------------------------------------------------


def test_the_registry_has_the_names_that_users_select_by_and_what_each_requires() -> None:
    requirements = TargetGenerator._fields[1:]
    assert {
        name: [field for field in requirements if getattr(generator, field)]
        for name, generator in TARGETS.items()
    } == {
        "linear": [],
        "expected": ["pad_ignored", "certainty"],
        "final": ["is_constant"],
        "mask": ["pad_ignored"],
        "replace": [],
        "edits_by_row": [],
        "edits_by_component": ["square_canvas"],
        "edits_by_colour": [],
        "file": ["trajectories"],
    }
    for name in TARGETS:
        assert SupervisionConfig(targets=name).targets == name


def register(monkeypatch: pytest.MonkeyPatch, **requirements: bool) -> None:
    """Make "new" a generator with these requirements."""
    generator = TargetGenerator(TARGETS["linear"].generate, **requirements)
    monkeypatch.setitem(TARGETS, "new", generator)


@pytest.mark.parametrize(
    ("requirement", "fitting", "overrides", "message"),
    [
        ("pad_ignored", False, "supervision.pad_cells=counted_until_replaced", "pad_cells=ignored"),
        ("is_constant", True, "supervision=trm arch=trm", "supervision.halting=true .*targets=new"),
        ("trajectories", True, "data.trajectories=a.npz", "targets=new .*trajectories=a.npz"),
        ("trajectories", False, "", "targets=new .*trajectories=None"),
    ],
)
def test_a_generator_goes_with_what_its_entry_in_the_registry_says_and_with_nothing_else(
    requirement: str, fitting: bool, overrides: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*overrides.split(), "supervision.targets=new"]
    register(monkeypatch, **{requirement: fitting})
    assert load_config("train", TrainConfig, "", arguments).supervision.targets == "new"
    register(monkeypatch, **{requirement: not fitting})
    with pytest.raises(UserError, match=message):
        load_config("train", TrainConfig, "", arguments)


def test_a_canvas_that_is_no_square_is_refused_for_a_generator_that_needs_one(
    write_split: Callable[[list[list[int]]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_split([[4], [4]])
    train = folder / "train"
    for name in ("inputs", "labels"):  # Four cells become three.
        path = train / f"all__{name}.npy"
        np.save(path, np.load(path)[:, :3])
    metadata = json.loads((train / "dataset.json").read_text())
    (train / "dataset.json").write_text(json.dumps(metadata | {"seq_len": 3}))
    register(monkeypatch, square_canvas=True)
    overrides = [f"data.path={folder}", "supervision.targets=new", "train.global_batch_size=2"]
    config = load_config("train", TrainConfig, "", overrides)
    ranks = Ranks(0, 1, torch.device("cpu"))
    with pytest.raises(UserError, match=r"supervision\.targets=new"):
        open_batches(config, ranks)
    register(monkeypatch, square_canvas=False)
    assert open_batches(config, ranks).split.metadata.seq_len == 3
