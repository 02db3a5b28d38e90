"""The solution behind noise that lifts (DIS §4): masked cells, or cells of random colours.

Frame s hides the share beta_s = 1 - s/S of the cells, nested, so that no cell is hidden again. The
question plays no part: unlike on the linear path, the first frames tell nothing of it.
"""

import torch
from torch import Tensor

from models.targets.request import PAD, TargetRequest, path_to_solution


class MaskTargets:
    """Hidden cells are PAD, which says "not known yet"."""

    def __call__(self, request: TargetRequest) -> Tensor:
        _, solution, num_steps, random, *_ = request
        blank = torch.full_like(solution, PAD)
        return path_to_solution(blank, solution, random.uniform(), num_steps)


class ReplaceTargets:
    """Hidden cells are of random colours, and so is the border of a grid; PAD stays as it is."""

    def __call__(self, request: TargetRequest) -> Tensor:
        _, solution, num_steps, random, colours, _ = request
        drawn = colours.start + (random.uniform(stream=1) * len(colours)).long()
        noisy = torch.where(solution > PAD, drawn, solution)
        return path_to_solution(noisy, solution, random.uniform(), num_steps)
