"""Trajectories that were computed elsewhere and read from a file (see `dataset.trajectories`)."""

import torch
from torch import Tensor

from common.segments import MISSING
from models.targets.linear import LinearTargets
from models.targets.request import TargetRequest


class StoredTargets:
    """The stored trajectory, and the linear path for examples that have none."""

    def __call__(self, request: TargetRequest) -> Tensor:
        linear = LinearTargets()(request)
        if request.stored is None:  # At test time there are no trajectories.
            return linear
        # Where the solution is not a token but a sign not to count the cell, it stays that.
        stored = torch.where(
            (request.solution < 0).unsqueeze(1), linear, request.stored.to(linear.dtype)
        )
        is_missing = (request.stored[:, -1:, :1] == MISSING).expand_as(linear)
        return torch.where(is_missing, linear, stored)
