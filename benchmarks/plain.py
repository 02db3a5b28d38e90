"""The plain way to do what the trainer does, piece by piece: what `benchmarks.step` starts from.

Each piece stands for one thing that implementations of this family do: it costs time and changes no
result beyond rounding.
"""

from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor, nn

from common.segments import Segment
from dataset.loading import BatchLoader
from models.recursive import RecursiveState, StepOutput
from models.supervision import DeepImprovementSupervision, StepResult, segment_targets
from training.optimizers import SparseSignSGD


def run_redrawing_targets(
    supervision: DeepImprovementSupervision, batch: Sequence[Segment], seed: int
) -> Iterator[StepResult]:
    """`supervision.run`, but all S targets are drawn at each of the S steps, and one is used."""
    num_steps, num_cells = supervision.num_steps, supervision.model.seq_len
    for s, result in enumerate(supervision.run(batch, seed), start=1):
        yield result
        for segment in batch if s < num_steps else ():
            segment_targets(
                supervision.config, segment, num_steps, num_cells, supervision.colours, seed
            )


class DoubleLogits(nn.Module):
    """The network, with logits in float64 for the loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: RecursiveState, *arguments: Tensor) -> StepOutput:
        output: StepOutput = self.network(state, *arguments)
        return output._replace(conditional_logits=output.conditional_logits.double())


class UniqueSignSGD(SparseSignSGD):
    """Finds the distinct puzzles of a batch with `unique`, for whose size the host must wait."""

    @torch.no_grad()
    def step(self, puzzle_ids: Tensor, gradients: Tensor, lr: float) -> None:
        distinct, which = self.ranks.concatenate(puzzle_ids).unique(return_inverse=True)
        summed = gradients.new_zeros(len(distinct), gradients.shape[1])
        summed.index_add_(0, which, self.ranks.concatenate(gradients))
        rows = self.embedding.weight[distinct] * (1 - lr * self.weight_decay)
        self.embedding.weight[distinct] = rows - lr * summed.sign()


class SynchronousLoader(BatchLoader):
    """Makes each batch when it is asked for."""

    def __iter__(self) -> Generator[list[Segment], None, None]:
        for sample in self.batches:
            yield [self.maker.to_device(segment) for segment in self._prepare(sample)]
