"""Programmed orders of editing the input into the solution: no randomness, the same every time.

Cells are replaced in the order that the class says, evenly over the steps: a unit (row, component,
colour) that is larger than a step's share is spread over steps, small ones share a step. Cells that
become PAD are emptied in the same order beside: where PAD is not counted, they would otherwise use
up whole steps in which nothing that counts changes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.targets.request import PAD, TargetRequest, path_to_solution

MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""To the neighbours that share an edge, as (row, column)."""


class RowEdits:
    """Row by row from the top, each from left to right."""

    def __call__(self, request: TargetRequest) -> Tensor:
        return _edit(request, _places(request.inputs))


class ColourEdits:
    """One colour of the solution at a time, from the lowest token up, each from the top."""

    def __call__(self, request: TargetRequest) -> Tensor:
        _, solution, *_ = request
        return _edit(request, solution * solution.shape[1] + _places(solution))


class ComponentEdits:
    """One connected component of the cells to edit at a time, in the order of their first cells.

    Cells are connected if they share an edge, both differ from the solution, and the solution's
    colour is the same there. Looking for components waits for the device, a few times a batch.
    """

    def __call__(self, request: TargetRequest) -> Tensor:
        inputs, solution, *_ = request
        first = first_cells(inputs != solution, solution)
        return _edit(request, first * inputs.shape[1] + _places(inputs))


def _edit(request: TargetRequest, priority: Tensor) -> Tensor:
    """The path [B, S, L] that replaces cells of low priority [B, L] first."""
    inputs, solution, num_steps, *_ = request
    is_emptied = solution <= PAD
    filling, emptying = (
        path_to_solution(inputs, torch.where(takes_part, solution, inputs), priority, num_steps)
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
    count, cells = member.shape
    side = round(cells**0.5)
    assert side * side == cells, f"components need a square canvas, {cells} cells are none"
    # A colour of their own keeps cells outside all components apart, and cells beyond the edge.
    outside = torch.iinfo(colour.dtype).max
    kind = colour.masked_fill(~member, outside).view(count, side, side)
    first = _places(member).view(count, side, side)
    is_member = member.view(count, side, side)
    connected = [is_member & (_neighbour(kind, move, fill=outside) == kind) for move in MOVES]
    while True:
        lowest = first
        for move, joined in zip(MOVES, connected, strict=True):
            offered = _neighbour(first, move, fill=cells)
            lowest = torch.where(joined, torch.minimum(lowest, offered), lowest)
        # Following the cell that was found doubles the reach of every round.
        lowest = lowest.flatten(1).gather(1, lowest.flatten(1)).view_as(first)
        if torch.equal(lowest, first):
            return first.flatten(1)
        first = lowest


def _neighbour(grid: Tensor, move: tuple[int, int], fill: int) -> Tensor:
    """Each cell's neighbour at (row, column) + move, `fill` beyond the edge."""
    side = grid.shape[-1]
    padded = F.pad(grid, (1, 1, 1, 1), value=fill)
    row, col = 1 + move[0], 1 + move[1]
    return padded[:, row : row + side, col : col + side]
