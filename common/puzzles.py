"""What the puzzles of a dataset are: variants of tasks."""

from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError

NO_TASK = -1
"""Task of an identifier that means no puzzle."""


class PuzzleFactors(NamedTuple):
    """Of which task each of P puzzles is a variant, and which variant, by identifier."""

    task_names: tuple[str, ...]
    tasks: Tensor
    """int64 [P] places in `task_names`, or NO_TASK."""
    dihedrals: Tensor
    """int64 [P] 0-7."""
    permutations: Tensor
    """int64 [P, 10]: colour c becomes permutations[p, c]."""

    def numbered_as(self, task_names: tuple[str, ...], source: str) -> "PuzzleFactors":
        """The same with the tasks numbered by another list, that of `source`.

        Raises:
            UserError: a task is not in that list.
        """
        place = {name: number for number, name in enumerate(task_names)}
        if missing := [name for name in self.task_names if name not in place]:
            raise UserError(
                f"{source} was not trained on task '{missing[0]}' ({len(missing)} of "
                f"{len(self.task_names)} tasks of data.path), so it has no vectors for it: use a "
                f"dataset of the tasks that it was trained on"
            )
        # One more at the end, which NO_TASK picks.
        numbers = torch.tensor([*(place[name] for name in self.task_names), NO_TASK])
        return self._replace(task_names=task_names, tasks=numbers[self.tasks])
