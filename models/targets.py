"""Target generators: a target for every improvement step (DIS, arXiv 2511.16886 §4).

    paper         here
    x, y*         `TargetRequest.inputs`, `.solution`
    Phi           `TARGETS[name].generate`
    y†_1..y†_S    what it returns, int64 [B, S, L]
    floor(s*k/S)  `num_replaced`, how far a path is at step s; `path_power` bends it

The last target is y*, and each is at least as close to it (Hamming distance) as the one before. To
add a generator, write a function of a `TargetRequest` here and give it a line in TARGETS, with what
it requires; `supervision.targets=<name>` selects it.

Shape letters: B batch, S supervision steps, L canvas cells.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from common.tokens import MISSING, PAD
from models.randomness import CellRandom

ROUNDING = 1e-9
"""A number of cells that is so close below a whole one is meant to be that."""
MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""To the neighbours that share an edge, as (row, column)."""


class TargetRequest(NamedTuple):
    """Whole canvases to lay a path on."""

    inputs: Tensor
    """int64 [B, L] x."""
    solution: Tensor
    """int64 [B, L] y*; with `pad_cells=counted_until_replaced` its PAD is IGNORE (-100), which is a
    token like others here, but no index."""
    num_steps: int
    """S."""
    random: CellRandom
    """Random numbers [B, L], the same whenever this batch is seen."""
    colours: range
    """Tokens that cells with content may have: what random colours are drawn from."""
    stored: Tensor | None = None
    """uint8 [B, S, L] trajectories read from a file, MISSING throughout where there is none."""
    path_power: float = 1.0
    """p > 0 of the curve that paths follow, see `num_replaced`."""


def num_replaced(num_differing: Tensor, num_steps: int, power: float) -> Tensor:
    """How many of k cells [B] that differ are the solution's in frame s: [B, S].

    floor(k * share_s) with share_s = 1 - (1 - s/S)^p. The power p = 1 is the paper's, evenly over
    the steps: floor(s * k / S). A larger one replaces more at the first steps, in the limit all.
    """
    steps = torch.arange(1, num_steps + 1, device=num_differing.device)
    shares = 1 - (1 - steps.double() / num_steps) ** power
    return (num_differing.unsqueeze(-1) * shares + ROUNDING).long()


def path_to_solution(
    start: Tensor, solution: Tensor, priority: Tensor, request: TargetRequest
) -> Tensor:
    """Cells of `start` turn into the solution's one after the other, at the request's pace.

    Args:
        start: int64 [B, L] canvases before the first step.
        solution: int64 [B, L].
        priority: [B, L] the lowest are replaced first.
        request: for S, and for how many cells each step replaces, see `num_replaced`.

    Returns:
        [B, S, L].
    """
    differs = start != solution
    highest = torch.finfo if priority.is_floating_point() else torch.iinfo
    # Cells that differ come first and have ranks 0 .. k-1.
    order = priority.masked_fill(~differs, highest(priority.dtype).max).argsort(dim=1)
    places = torch.arange(start.shape[1], device=start.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    count = num_replaced(differs.sum(dim=1), request.num_steps, request.path_power)
    replaced = rank.unsqueeze(1) < count.unsqueeze(2)  # [B, S, L]
    return torch.where(replaced, solution.unsqueeze(1), start.unsqueeze(1))


# ---- random order ----------------------------------------------------------------------------


def linear(request: TargetRequest) -> Tensor:
    """From the input to the solution in random order (the paper's Figure 7)."""
    order = request.random.uniform()
    return path_to_solution(request.inputs, request.solution, order, request)


def expected(request: TargetRequest) -> Tensor:
    """The likeliest frames of the linear path; the loss is the mean over all of them.

    No network can know the random order. So its target is the mixture of solution and input that
    `linear_certainty` says (docs/targets.md), and these frames are for the diagnostics.
    """
    is_likelier = linear_certainty(request).unsqueeze(2) > 0.5
    return torch.where(is_likelier, request.solution.unsqueeze(1), request.inputs.unsqueeze(1))


def linear_certainty(request: TargetRequest) -> Tensor:
    """a_s [B, S]: the probability that the linear path has replaced a cell that differs by step s.

    floor(k * share_s) / k, where k counts the cells of the whole canvas that differ, PAD or not;
    0 where none does, which is as good as any other number there.
    """
    num_differing = (request.inputs != request.solution).sum(dim=1)
    count = num_replaced(num_differing, request.num_steps, request.path_power)
    return count / num_differing.clamp(min=1).unsqueeze(1)


def final(request: TargetRequest) -> Tensor:
    """The solution at every step: plain deep supervision, the ablation."""
    return request.solution.unsqueeze(1).expand(-1, request.num_steps, -1)


# ---- noise that lifts ------------------------------------------------------------------------
# Frame s hides the share beta_s = (1 - s/S)^p of the cells, nested: no cell is hidden again.
# The question plays no part: unlike on the linear path, the first frames tell nothing of it.


def mask(request: TargetRequest) -> Tensor:
    """The solution with hidden cells, which are PAD: "not known yet"."""
    blank = torch.full_like(request.solution, PAD)
    order = request.random.uniform()
    return path_to_solution(blank, request.solution, order, request)


def replace(request: TargetRequest) -> Tensor:
    """The solution with cells of random colours, a grid's border among them; PAD stays PAD."""
    solution, colours = request.solution, request.colours
    drawn = colours.start + (request.random.uniform(stream=1) * len(colours)).long()
    noisy = torch.where(solution > PAD, drawn, solution)
    return path_to_solution(noisy, solution, request.random.uniform(), request)


# ---- programmed orders of editing ------------------------------------------------------------
# Cells are replaced in a fixed order, by p = 1 evenly over the steps: a unit (row, component,
# colour) that is larger than a step's share is spread over steps, small ones share a step.


def edits_by_row(request: TargetRequest) -> Tensor:
    """Row by row from the top, each from left to right."""
    return edit_in_order(request, _places(request.inputs))


def edits_by_colour(request: TargetRequest) -> Tensor:
    """One colour of the solution at a time, from the lowest token up, each from the top."""
    solution = request.solution
    return edit_in_order(request, solution * solution.shape[1] + _places(solution))


def edits_by_component(request: TargetRequest) -> Tensor:
    """One connected component of the cells to edit at a time, in the order of their first cells.

    Cells are connected if they share an edge, both differ from the solution, and the solution's
    colour is the same there. Looking for components waits for the device, a few times a batch.
    """
    inputs, solution = request.inputs, request.solution
    first = first_cells(inputs != solution, solution)
    return edit_in_order(request, first * inputs.shape[1] + _places(inputs))


def edit_in_order(request: TargetRequest, priority: Tensor) -> Tensor:
    """The path [B, S, L] from input to solution that replaces cells of low priority [B, L] first.

    Cells that become PAD are emptied in the same order beside: where PAD is not counted, they would
    otherwise use up whole steps in which nothing that counts changes.
    """
    inputs, solution = request.inputs, request.solution
    is_emptied = solution <= PAD
    filling, emptying = (
        path_to_solution(inputs, torch.where(takes_part, solution, inputs), priority, request)
        for takes_part in (~is_emptied, is_emptied)
    )
    return torch.where(is_emptied.unsqueeze(1), emptying, filling)


def _places(canvases: Tensor) -> Tensor:
    """0 .. L-1 for each of the canvases [B, L]."""
    return torch.arange(canvases.shape[1], device=canvases.device).expand_as(canvases)


def first_cells(member: Tensor, colour: Tensor) -> Tensor:
    """The first cell [B, L] of each cell's component; its own where it is no member.

    Args:
        member: bool [B, L] cells of square canvases that belong to components.
        colour: int64 [B, L] neighbours of different colours are not connected.
    """
    cells = member.shape[1]
    side = round(cells**0.5)
    assert side * side == cells, f"components need a square canvas, {cells} cells are none"

    def to_grid(canvases: Tensor) -> Tensor:
        return rearrange(canvases, "b (row col) -> b row col", row=side)

    # A colour of their own keeps cells outside all components apart, and cells beyond the edge.
    outside = torch.iinfo(colour.dtype).max
    kind = to_grid(colour.masked_fill(~member, outside))
    first, is_member = to_grid(_places(member)), to_grid(member)
    connected = [is_member & (_neighbour(kind, move, fill=outside) == kind) for move in MOVES]
    while True:
        lowest = first
        for move, joined in zip(MOVES, connected, strict=True):
            offered = _neighbour(first, move, fill=cells)
            lowest = torch.where(joined, torch.minimum(lowest, offered), lowest)
        # Following the cell that was found doubles the reach of every round.
        lowest = to_grid(lowest.flatten(1).gather(1, lowest.flatten(1)))
        if torch.equal(lowest, first):
            return first.flatten(1)
        first = lowest


def _neighbour(grid: Tensor, move: tuple[int, int], fill: int) -> Tensor:
    """Each cell's neighbour at (row, column) + move, `fill` beyond the edge."""
    side = grid.shape[-1]
    padded = F.pad(grid, (1, 1, 1, 1), value=fill)
    row, col = 1 + move[0], 1 + move[1]
    return padded[:, row : row + side, col : col + side]


# ---- computed elsewhere ----------------------------------------------------------------------


def from_file(request: TargetRequest) -> Tensor:
    """The trajectory of the file, and the linear path for examples that have none."""
    path = linear(request)
    if request.stored is None:  # At test time there are no trajectories.
        return path
    # Where the solution is not a token but a sign not to count the cell, it stays that.
    is_token = (request.solution >= 0).unsqueeze(1)
    stored = torch.where(is_token, request.stored.to(path.dtype), path)
    is_missing = (request.stored[:, -1:, :1] == MISSING).expand_as(path)
    return torch.where(is_missing, path, stored)


# ---- the registry ----------------------------------------------------------------------------


class TargetGenerator(NamedTuple):
    """A Phi, and what it requires."""

    generate: Callable[[TargetRequest], Tensor]
    square_canvas: bool = False
    """Canvases must be squares."""
    trajectories: bool = False
    """Reads `data.trajectories`, as no other does."""
    pad_ignored: bool = False
    """Cells whose solution is PAD must not count."""
    is_constant: bool = False
    """All steps have the same target, so that any of them may be an example's last."""
    certainty: Callable[[TargetRequest], Tensor] | None = None
    """Probability [B, S] that a cell's target is the solution's token and not the input's: the loss
    is the mean over both, and `generate` gives the likelier one. None: the target is certain."""


TARGETS: dict[str, TargetGenerator] = {
    "linear": TargetGenerator(linear),
    "expected": TargetGenerator(expected, pad_ignored=True, certainty=linear_certainty),
    "final": TargetGenerator(final, is_constant=True),
    "mask": TargetGenerator(mask, pad_ignored=True),
    "replace": TargetGenerator(replace),
    "edits_by_row": TargetGenerator(edits_by_row),
    "edits_by_component": TargetGenerator(edits_by_component, square_canvas=True),
    "edits_by_colour": TargetGenerator(edits_by_colour),
    "file": TargetGenerator(from_file, trajectories=True),
}
