"""The paper's path in random order, and the ablation without a path."""

from torch import Tensor

from models.targets.request import TargetRequest, path_to_solution


class LinearTargets:
    """From the input to the solution in random order (the paper's Figure 7)."""

    def __call__(self, request: TargetRequest) -> Tensor:
        inputs, solution, num_steps, random, *_ = request
        return path_to_solution(inputs, solution, random.uniform(), num_steps)


class FinalTargets:
    """The solution at every step: plain deep supervision, the ablation."""

    def __call__(self, request: TargetRequest) -> Tensor:
        return request.solution.unsqueeze(1).expand(-1, request.num_steps, -1)
