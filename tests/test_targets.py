"""Target generators: laws that hold for every canvas, and the randomness behind them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import cell_random, random_tokens, target_request, tiny_supervision
from torch import Tensor

from models.objective import IGNORE
from models.randomness import CellRandom
from models.supervision import step_targets
from models.targets import TARGETS
from models.targets.edits import ColourEdits, ComponentEdits, RowEdits, first_cells
from models.targets.linear import FinalTargets, LinearTargets
from models.targets.noise import MaskTargets, ReplaceTargets
from models.targets.request import TargetRequest
from models.targets.stored import MISSING, StoredTargets

NAMES = sorted(TARGETS)
COLOURS = range(2, 5)
"""Fewer than ARC's: random ones often agree with the solution's."""


@st.composite
def cases(draw: Any) -> TargetRequest:
    """One to three canvases of up to 4x4 cells; of few tokens, so that some cells agree."""
    rows, cells = draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 9, 16]))
    canvas = st.lists(st.integers(0, 4), min_size=cells, max_size=cells)
    canvases = st.lists(canvas, min_size=rows, max_size=rows)
    inputs, solution = torch.tensor(draw(canvases)), torch.tensor(draw(canvases))
    num_steps = draw(st.integers(1, 7))
    random = cell_random(rows, draw(st.integers(0, 2**31)), num_cells=cells)
    stored = trajectories(solution, num_steps, draw(st.integers(0, 2**31)))
    has_none = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    stored[has_none] = MISSING
    return TargetRequest(inputs, solution, num_steps, random, COLOURS, stored)


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


def starting_points(name: str, request: TargetRequest) -> Tensor:
    """Whether a cell [B, S, L] of that token may be one that is still to be replaced."""
    frames = TARGETS[name](request)
    shows_input = frames == request.inputs.unsqueeze(1)
    shows_colour = (frames >= COLOURS.start) & (frames < COLOURS.stop)
    is_stored = frames == request.stored if request.stored is not None else shows_input
    return {
        "mask": frames == 0,
        "replace": shows_colour & (request.solution.unsqueeze(1) > 0),
        "file": shows_input | is_stored,
        "final": torch.zeros_like(shows_input),
    }.get(name, shows_input)


@pytest.mark.parametrize("name", NAMES)
@given(case=cases())
@settings(max_examples=60)
def test_every_generator_ends_at_the_solution_and_never_moves_away_from_it(
    name: str, case: TargetRequest
) -> None:
    frames = TARGETS[name](case)
    assert frames.dtype == torch.int64
    assert frames.shape == (len(case.inputs), case.num_steps, case.inputs.shape[1])
    assert torch.equal(frames[:, -1], case.solution)
    assert (distances(frames, case.solution).diff(dim=1) <= 0).all()
    is_solution = frames == case.solution.unsqueeze(1)
    assert (is_solution | starting_points(name, case)).all()
    assert (is_solution.int().diff(dim=1) >= 0).all(), "a cell that is right stays right"


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("edits") or n == "linear"])
@given(case=cases())
@settings(max_examples=60)
def test_paths_from_the_input_never_are_further_from_the_solution_than_it(
    name: str, case: TargetRequest
) -> None:
    first = TARGETS[name](case)[:, 0]
    is_emptied = case.solution <= 0
    # Edits empty cells beside the others, at the same pace.
    for cells in (is_emptied, ~is_emptied) if "edits" in name else (torch.ones_like(is_emptied),):
        before, after = (((c != case.solution) & cells).sum(dim=1) for c in (case.inputs, first))
        assert torch.equal(after, before - before // case.num_steps)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "final"])
def test_every_generator_but_final_comes_closer_on_average_at_every_step(name: str) -> None:
    inputs, solution = random_tokens(1, rows=64), random_tokens(2, rows=64)
    request = target_request(
        inputs, solution, 6, cell_random(64), stored=trajectories(solution, 6, seed=3)
    )
    mean = distances(TARGETS[name](request), solution).double().mean(dim=0)
    assert (mean.diff() < -0.3).all()
    assert mean[0] > 1


@pytest.mark.parametrize("name", NAMES)
@given(case=cases())
@settings(max_examples=30)
def test_an_examples_targets_are_no_matter_of_the_others_nor_of_the_number_of_ranks(
    name: str, case: TargetRequest
) -> None:
    whole = TARGETS[name](case)
    for row in range(len(case.inputs)):
        one = slice(row, row + 1)
        alone = case._replace(
            inputs=case.inputs[one],
            solution=case.solution[one],
            random=CellRandom(case.random.seed, case.random.rows[one], case.random.cells),
            stored=case.stored[one],
        )
        assert torch.equal(TARGETS[name](alone), whole[one])


@pytest.mark.parametrize("name", NAMES)
@given(case=cases())
@settings(max_examples=30)
def test_cells_whose_solution_is_pad_are_never_counted_where_pad_is_ignored(
    name: str, case: TargetRequest
) -> None:
    targets = step_targets(tiny_supervision(targets=name, pad_cells="ignored"), case)
    is_pad = (case.solution == 0).unsqueeze(1)
    assert torch.equal(targets == IGNORE, is_pad.expand_as(targets))
    shown = torch.cat([case.inputs.unsqueeze(1), TARGETS[name](case)], dim=1)
    assert torch.equal(targets.masked_fill(is_pad, 0), shown.masked_fill(is_pad, 0))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mask"])
@given(case=cases())
@settings(max_examples=30)
def test_pad_that_is_counted_until_replaced_is_out_for_good_then_and_at_the_last_step(
    name: str, case: TargetRequest
) -> None:
    config = tiny_supervision(targets=name, pad_cells="counted_until_replaced")
    targets = step_targets(config, case)
    is_pad = case.solution == 0
    out = targets == IGNORE
    assert torch.equal(out[:, -1], is_pad)
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


@given(case=cases())
@settings(max_examples=100)
def test_linear_frame_s_of_n_has_replaced_floor_of_s_k_over_n_cells(case: TargetRequest) -> None:
    frames = LinearTargets()(case)
    for row, inputs, solution in zip(frames, case.inputs, case.solution, strict=True):
        k = int((inputs != solution).sum())
        replaced = [int((frame != inputs).sum()) for frame in row]
        assert replaced == [s * k // case.num_steps for s in range(1, case.num_steps + 1)]


@given(case=cases())
@settings(max_examples=100)
def test_a_replaced_cell_stays_replaced(case: TargetRequest) -> None:
    frames = LinearTargets()(case)
    replaced = (frames != case.inputs.unsqueeze(1)).int()
    assert (replaced.diff(dim=1) >= 0).all()


def test_the_average_distance_falls_strictly_while_there_is_distance_left() -> None:
    inputs = torch.zeros(2, 12, dtype=torch.long)
    solution = torch.ones(2, 12, dtype=torch.long)
    frames = LinearTargets()(target_request(inputs, solution, 6, cell_random(2, num_cells=12)))
    assert distances(frames, solution).tolist() == [[10, 8, 6, 4, 2, 0]] * 2


def test_cells_of_the_solution_that_the_input_shows_already_take_no_share_of_the_steps() -> None:
    inputs = torch.tensor([[4, 4, 4, 4, 4, 4]])
    solution = torch.tensor([[4, 7, 4, 4, 7, 4]])
    for seed in range(20):
        frames = LinearTargets()(
            target_request(inputs, solution, 2, cell_random(1, seed, num_cells=6))
        )
        assert distances(frames, solution).tolist() == [[1, 0]]


def test_every_order_of_replacement_is_equally_likely() -> None:
    """Three cells, three steps: 6 orders; 6000 examples, each order 1000 times within 4 sigma."""
    rows = 6000
    inputs = torch.zeros(rows, 3, dtype=torch.long)
    frames = LinearTargets()(target_request(inputs, inputs + 1, 3, cell_random(rows, num_cells=3)))
    # The step at which each cell is replaced, from the number of frames that show it so.
    orders = Counter(map(tuple, (4 - frames.sum(dim=1)).tolist()))
    assert len(orders) == 6
    assert max(abs(count - 1000) for count in orders.values()) < 4 * (6000 * 1 / 6 * 5 / 6) ** 0.5


def test_the_path_is_drawn_afresh_for_each_seed_and_place_and_is_a_function_of_them() -> None:
    inputs = torch.zeros(1, 30, dtype=torch.long)

    def path(seed: int, row: int) -> list[list[list[int]]]:
        random = cell_random(1, seed, first_row=row, num_cells=30)
        request = target_request(inputs, inputs + 1, 6, random)
        frames: list[list[list[int]]] = LinearTargets()(request).tolist()
        return frames

    first = path(seed=1, row=0)
    assert path(seed=1, row=0) == first
    assert path(seed=2, row=0) != first
    assert path(seed=1, row=1) != first


@given(case=cases(), data=st.data())
@settings(max_examples=60)
def test_cells_that_agree_can_be_left_out_without_a_change_to_the_path_of_the_rest(
    case: TargetRequest, data: st.DataObject
) -> None:
    """Not even the order matters in which the others are listed."""
    whole = LinearTargets()(case)
    for row in range(len(case.inputs)):
        differs = case.inputs[row] != case.solution[row]
        kept = [cell for cell in range(len(differs)) if differs[cell] or data.draw(st.booleans())]
        cells = torch.tensor(data.draw(st.permutations(kept)), dtype=torch.int64)
        one = slice(row, row + 1)
        random = CellRandom(case.random.seed, case.random.rows[one], cells.unsqueeze(0))
        inputs, solution = case.inputs[one, cells], case.solution[one, cells]
        frames = LinearTargets()(target_request(inputs, solution, case.num_steps, random))
        assert torch.equal(frames[0], whole[row][:, cells])


def test_final_shows_the_solution_at_every_step() -> None:
    inputs, solution = torch.tensor([[1, 2]]), torch.tensor([[3, 2]])
    frames = FinalTargets()(target_request(inputs, solution, 3, cell_random(1, num_cells=2)))
    assert frames.tolist() == [[[3, 2], [3, 2], [3, 2]]]


def test_a_solution_equal_to_its_input_is_the_target_throughout() -> None:
    canvas = torch.tensor([[5, 0, 2]])
    request = target_request(canvas, canvas, 3, cell_random(1, num_cells=3))
    assert LinearTargets()(request).tolist() == [[[5, 0, 2]] * 3]


@given(case=cases())
@settings(max_examples=30)
def test_edits_are_the_same_whatever_the_seed_and_place(case: TargetRequest) -> None:
    other = case._replace(random=cell_random(len(case.inputs), 1, 77, case.inputs.shape[1]))
    for edits in (RowEdits(), ColourEdits(), ComponentEdits()):
        assert torch.equal(edits(case), edits(other))


Generator = Callable[[TargetRequest], Tensor]


def order_of_edits(edits: Generator, inputs: list[int], solution: list[int]) -> list[int]:
    """Cells in the order in which they are replaced, one a step."""
    differing = sum(a != b for a, b in zip(inputs, solution, strict=True))
    canvases = [torch.tensor([inputs]), torch.tensor([solution])]
    random = cell_random(1, num_cells=len(inputs))
    frames = edits(target_request(canvases[0], canvases[1], differing, random))
    before = torch.cat([canvases[0], frames[0, :-1]])
    changed = (before != frames[0]).nonzero()
    assert changed[:, 0].tolist() == list(range(differing)), "one cell a step"
    return [int(cell) for cell in changed[:, 1]]


GRID = [
    5, 2, 2, 3,
    5, 2, 4, 3,
    2, 2, 4, 4,
    3, 3, 2, 5,
]  # fmt: skip
"""Five components on a ground of 2."""


@pytest.mark.parametrize(
    ("edits", "order"),
    [
        (RowEdits(), [0, 3, 4, 6, 7, 10, 11, 12, 13, 15]),
        # The 3s, the 4s, the 5s.
        (ColourEdits(), [3, 7, 12, 13, 6, 10, 11, 0, 4, 15]),
        # By their first cells: 0, 3, 6, 12 and 15.
        (ComponentEdits(), [0, 4, 3, 7, 6, 10, 11, 12, 13, 15]),
    ],
)
def test_edits_by_hand(edits: Generator, order: list[int]) -> None:
    assert order_of_edits(edits, [2] * 16, GRID) == order


def test_cells_that_agree_take_no_part_and_part_components_by_hand() -> None:
    inputs = [2] * 16
    inputs[10] = 4  # The middle of the 4s: 6 and 11 are left, which touch at a corner.
    assert order_of_edits(ComponentEdits(), inputs, GRID) == [0, 4, 3, 7, 6, 11, 12, 13, 15]
    inputs[6] = inputs[7] = 9  # What the input shows makes no difference to the components.
    assert order_of_edits(ComponentEdits(), inputs, GRID) == [0, 4, 3, 7, 6, 11, 12, 13, 15]


def test_components_touch_at_edges_not_at_corners() -> None:
    solution = [
        2, 3, 4,
        3, 2, 2,
        3, 2, 2,
    ]  # fmt: skip
    assert order_of_edits(ComponentEdits(), [2] * 9, solution) == [1, 2, 3, 6]


def test_components_end_at_the_edge_of_the_canvas() -> None:
    """The last cell of a row is no neighbour of the first cell of the next."""
    solution = [
        2, 2, 3,
        3, 2, 4,
        3, 2, 2,
    ]  # fmt: skip
    assert order_of_edits(ComponentEdits(), [2] * 9, solution) == [2, 3, 6, 5]


@pytest.mark.parametrize("edits", [RowEdits(), ColourEdits(), ComponentEdits()])
def test_emptying_cells_uses_up_no_step_in_which_others_could_be_edited(edits: Generator) -> None:
    """Six cells to edit and ten to empty in two steps: three and five in the first."""
    solution = torch.tensor([[3, 4, 0, 0, 5, 6, 0, 0, 7, 8, 0, 0, 0, 0, 0, 0]])
    request = target_request(torch.full((1, 16), 2), solution, 2, cell_random(1))
    first = edits(request)[0, 0]
    assert ((first != 2) & (solution[0] != 0)).sum() == 3
    assert ((first != 2) & (solution[0] == 0)).sum() == 5
    counted = step_targets(tiny_supervision(targets="linear"), request)[0, 1] >= 0
    assert counted.sum() == 6


def test_edits_are_spread_evenly_over_fewer_steps_by_hand() -> None:
    """Ten cells in four steps: 2, 5, 7 and 10 of them."""
    inputs = torch.full((1, 16), 2)
    request = target_request(inputs, torch.tensor([GRID]), 4, cell_random(1))
    replaced = [[0, 3], [4, 6, 7], [10, 11], [12, 13, 15]]
    expected, frame = [], [2] * 16
    for cells in replaced:
        frame = [GRID[c] if c in cells else token for c, token in enumerate(frame)]
        expected.append(frame)
    assert RowEdits()(request)[0].tolist() == expected


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


def test_mask_hides_a_share_that_falls_linearly_behind_pad() -> None:
    solution = random_tokens(4, rows=3, lowest=1)
    solution[:, [0, 5, 6, 15]] = 0  # Twelve cells are left.
    request = target_request(random_tokens(5, rows=3), solution, 6, cell_random(3))
    frames = MaskTargets()(request)
    assert distances(frames, solution).tolist() == [[10, 8, 6, 4, 2, 0]] * 3
    is_hidden = frames != solution.unsqueeze(1)
    assert set(frames[is_hidden].tolist()) == {0}
    assert (is_hidden.int().diff(dim=1) <= 0).all(), "no cell is hidden again"


def test_which_cells_are_hidden_is_drawn_for_each_example() -> None:
    solution = torch.full((2, 16), 5)
    frames = MaskTargets()(target_request(solution, solution, 2, cell_random(2)))
    assert not torch.equal(frames[0], frames[1])


@pytest.mark.parametrize("name", ["mask", "replace"])
def test_behind_noise_nothing_tells_of_the_question(name: str) -> None:
    solution, random = random_tokens(4), cell_random(2)
    frames = [
        TARGETS[name](target_request(random_tokens(seed), solution, 4, random)) for seed in (1, 2)
    ]
    assert torch.equal(frames[0], frames[1])


def test_replace_draws_every_colour_of_the_range_equally_often_also_for_the_border() -> None:
    """6000 cells of EOS of which the first frames show none: 2000 of each within 4 sigma."""
    solution = torch.ones(60, 100, dtype=torch.long)
    request = target_request(solution, solution, 101, cell_random(60, num_cells=100))
    frames = ReplaceTargets()(request._replace(colours=range(3, 6)))
    counts = Counter(frames[:, 0].flatten().tolist())
    assert set(counts) == {3, 4, 5}
    assert max(abs(count - 2000) for count in counts.values()) < 4 * (6000 * 2 / 9) ** 0.5


def test_the_colour_of_a_replaced_cell_says_nothing_of_when_it_is_lifted() -> None:
    """Half-way 3000 of the 6000 cells are hidden, a third of them by each colour."""
    solution = torch.ones(60, 100, dtype=torch.long)
    request = target_request(solution, solution, 2, cell_random(60, num_cells=100))
    halfway = ReplaceTargets()(request._replace(colours=range(3, 6)))[:, 0]
    counts = Counter(halfway[halfway != 1].tolist())
    assert sum(counts.values()) == 3000
    assert max(abs(count - 1000) for count in counts.values()) < 4 * (3000 * 2 / 9) ** 0.5


def test_replace_leaves_pad_as_it_is_and_its_share_falls_linearly() -> None:
    solution = torch.ones(1, 16, dtype=torch.long)
    solution[0, :4] = 0
    frames = ReplaceTargets()(target_request(solution, solution, 4, cell_random(1)))
    assert (frames[:, :, :4] == 0).all()
    assert distances(frames, solution).tolist() == [[9, 6, 3, 0]]


def test_stored_trajectories_are_handed_on_and_examples_without_one_get_the_linear_path() -> None:
    inputs, solution = random_tokens(1, rows=3), random_tokens(2, rows=3)
    stored = trajectories(solution, 4, seed=6)
    stored[1] = MISSING
    request = target_request(inputs, solution, 4, cell_random(3), stored=stored)
    frames, linear = StoredTargets()(request), LinearTargets()(request)
    assert torch.equal(frames[[0, 2]], stored[[0, 2]].long())
    assert torch.equal(frames[1], linear[1])
    assert not torch.equal(frames[0], linear[0])
    # No file was read: at test time.
    assert torch.equal(StoredTargets()(request._replace(stored=None)), linear)


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
    config = tiny_supervision(targets="file", pad_cells="counted_until_replaced")
    assert step_targets(config, request)[0].tolist() == [
        [2, 4, 5, 6],
        [9, 4, 5, 6],
        [3, IGNORE, 8, 6],
        [3, IGNORE, 7, 6],
        [3, IGNORE, 7, IGNORE],
    ]
    config = tiny_supervision(targets="file", pad_cells="ignored")
    assert step_targets(config, request)[0, 1:, [0, 2]].tolist() == [[9, 5], [3, 8], [3, 7], [3, 7]]


def test_the_registry_has_the_names_that_users_select_by() -> None:
    assert {name: type(generator) for name, generator in TARGETS.items()} == {
        "linear": LinearTargets,
        "final": FinalTargets,
        "mask": MaskTargets,
        "replace": ReplaceTargets,
        "edits_by_row": RowEdits,
        "edits_by_component": ComponentEdits,
        "edits_by_colour": ColourEdits,
        "file": StoredTargets,
    }
