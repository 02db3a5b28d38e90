"""One optimizer step: forward and backward pass of every micro-batch, exchange, update.

    per micro-batch   `Supervision.step`: gradients add up in one stretch of memory
    all ranks         one sum over that stretch, which also holds the loss
    update            network, puzzle embeddings, average, metrics; nothing if not finite

With `optim.update=batch` all supervision steps of a batch come before one exchange and update.

On CUDA the first and the last are captured as graphs, so that the host launches two or three things
a step and not hundreds; the same functions are called as they are on a CPU, or with
`train.graphs=off`. The exchange stands between them.
"""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch._dynamo.utils
from torch import Tensor, nn

from common.distributed import Ranks
from common.errors import UserError
from common.packed import PackedBatch
from models.puzzle_embedding import PuzzleTable
from models.recursive import TinyRecursiveModel
from models.supervision import Progress, StepResult, Supervision
from training.metrics import MetricSums
from training.optimizers import OptimConfig, SparseSignSGD, scale_lr
from training.state import TrainingState

ALIGNMENT = 64
"""Numbers that the gradient of each parameter is a multiple of, for kernels that load several."""
REHEARSALS = 3
"""Steps before a graph is captured: libraries choose their kernels, and memory is laid out."""

log = logging.getLogger(__name__)


def is_captured(graphs: str, model: TinyRecursiveModel) -> bool:
    """Whether steps are replayed as CUDA graphs, as `train.graphs` ("auto", "on", "off") says.

    Raises:
        UserError: they are asked for where there are none.
    """
    if graphs == "on" and not model.is_capturable:
        raise UserError(
            f"train.graphs=on: graphs need a CUDA device and its attention for packed sequences, "
            f"which is for bf16 and heads of 8, 16, ... 256 numbers; this is "
            f"{model.compute_dtype} on {model.y_init.device.type}"
        )
    return graphs != "off" and model.is_capturable


class Gradients:
    """Gradients of network and puzzle vectors, and the loss, as one tensor: one exchange for all.

    Args:
        network: whose parameters get views of it as their gradients.
        num_vectors: rows for the vectors of a table of puzzle embeddings: one more than the
            examples G of a global batch, see `places_in`; 0 without a table.
        width: D of a puzzle vector.
    """

    def __init__(self, network: nn.Module, num_vectors: int, width: int) -> None:
        parameters = list(network.parameters())
        sizes = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters]
        device = parameters[0].device
        self.flat = torch.zeros(sum(sizes) + num_vectors * width + 1, device=device)
        self.of_network = self.flat[: sum(sizes)]
        """[n], zero between the parameters."""
        self.of_puzzles = self.flat[sum(sizes) : -1].view(num_vectors, width)
        """[num_vectors, D] of the examples' puzzle vectors."""
        self.loss = self.flat[-1]
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        for parameter, (start, _) in zip(parameters, pairwise(ends), strict=True):
            gradient = self.flat[start : start + parameter.numel()]
            parameter.grad = gradient.view_as(parameter)

    def add(self, batch: PackedBatch, result: StepResult) -> None:
        """Add what is not in the parameters' gradients already."""
        if result.puzzle_gradient is not None:
            # To each place goes one example's in a supervision step, whatever the order.
            places = places_in(self.of_puzzles, batch)
            self.of_puzzles.index_add_(0, places, result.puzzle_gradient)
        self.loss += result.loss


def places_in(table: Tensor, batch: PackedBatch) -> Tensor:
    """The rows [B] of a global batch's `table` [G + 1, ...] that sequences of a batch belong to.

    The last row is for those that only fill up.
    """
    return torch.where(batch.is_example, batch.rows, len(table) - 1)


class Engine:
    """Takes optimizer steps.

    Args:
        supervision: what a step is trained towards.
        state: what is trained.
        config: clipping, the rate of the puzzle embeddings, and when there is an update.
        metrics: that each step adds to.
        ranks: whose gradients are summed.
        compiled: the network is compiled when it is first called.
        captured: steps are replayed as CUDA graphs, see `is_captured`.
    """

    def __init__(
        self,
        supervision: Supervision,
        state: TrainingState,
        config: OptimConfig,
        metrics: MetricSums,
        ranks: Ranks,
        compiled: bool,
        captured: bool,
    ) -> None:
        self.supervision = supervision
        self.state = state
        self.config = config
        self.metrics = metrics
        self.ranks = ranks
        self.compiled = compiled
        self.captured = captured
        model, device = supervision.model, ranks.device
        self.batch_size = supervision.global_batch_size
        self.puzzle_optimizer: SparseSignSGD | None = None
        if isinstance(state.puzzle_embedding, PuzzleTable):
            self.puzzle_optimizer = SparseSignSGD(
                state.puzzle_embedding, config.puzzle_weight_decay, self.batch_size
            )
        num_vectors = self.batch_size + 1 if self.puzzle_optimizer else 0
        self.gradients = Gradients(model, num_vectors, model.config.hidden_size)
        self.steps_per_update = supervision.steps_per_batch if config.update == "batch" else 1
        self.puzzle_lr = torch.zeros((), device=device)
        self.is_rehearsal = torch.zeros((), dtype=torch.bool, device=device)
        """Where it is true, a step changes nothing that is trained."""
        self.found_inf = torch.zeros((), device=device)
        for optimizer in state.optimizers:
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        self.under_way: list[Progress] = []
        self.carried: dict[str, Tensor] = {}
        """Of a checkpoint, until the first batch takes it up."""
        self._accumulate: list[Callable[[], None]] = []
        self._update: Callable[[], None] = self._apply
        self._num_parts = 0
        self._is_prepared = False
        self._pool: Any = None

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps that one batch serves."""
        return self.supervision.steps_per_batch // self.steps_per_update

    # ---- a batch -----------------------------------------------------------------------------

    def begin(self, parts: Sequence[PackedBatch], seed: int) -> None:
        """Lay out the supervision of a rank's share of a batch; `seed` is the global batch's."""
        before: list[Progress | None] = [*self.under_way]
        if self.carried:
            before = [self.supervision.resumed(part, self.carried) for part in parts]
            self.carried = {}
        before += [None] * (len(parts) - len(before))
        fresh = [
            self.supervision.begin(part, seed, old)
            for part, old in zip(parts, before, strict=False)
        ]
        if self.captured:
            # Graphs read and write where the first batch lay.
            for own, new in zip(self.under_way, fresh, strict=False):
                own.copy_(new)
            self.under_way += fresh[len(self.under_way) :]
        else:
            self.under_way = fresh
            self._accumulate = [self._accumulation(progress) for progress in fresh]
        self._num_parts = len(parts)
        self._begin_puzzles()

    def prepare(self) -> None:
        """Compile and capture what steps need, on the batch that has begun; it stays as it is.

        Where nothing is compiled or captured there is nothing to do.
        """
        if not (self.compiled or self.captured):
            return
        started = time.perf_counter()
        log.info("Preparing the training step; compiling takes up to a minute ...")
        if self.captured:
            self._capture()
        else:
            self._rehearse(self.under_way)
        self._is_prepared = True
        log.info("... ready after %.0f s.", time.perf_counter() - started)

    def step(self, lr_factor: float) -> None:
        """One optimizer step at `lr_factor` times the peak learning rates."""
        scale_lr(self.state.optimizers, lr_factor)
        self.puzzle_lr.fill_(self.config.puzzle_lr * lr_factor)
        if self.captured and len(self._accumulate) < self._num_parts:
            self._capture()  # A batch that needs one micro-batch more than those before.
        graphs = _compiled_graphs()
        for accumulate in self._accumulate[: self._num_parts]:
            for _ in range(self.steps_per_update):
                accumulate()
        if self._is_prepared and _compiled_graphs() > graphs:
            _warn_of_recompilation()
        self.ranks.sum(self.gradients.flat)
        self._update()
        self.metrics.num_steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """What the next batch depends on, of this rank's examples."""
        parts = [self.supervision.carried(p) for p in self.under_way[: self._num_parts]]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    # ---- its pieces --------------------------------------------------------------------------

    def _begin_puzzles(self) -> None:
        """Tell the puzzles of the global batch to their optimizer."""
        if self.puzzle_optimizer is None:
            return
        ids = torch.zeros(self.batch_size + 1, dtype=torch.int64, device=self.ranks.device)
        for progress in self.under_way[: self._num_parts]:
            ids.index_copy_(0, places_in(ids, progress.batch), progress.puzzle_ids)
        self.puzzle_optimizer.begin(self.ranks.sum(ids)[:-1])

    def _accumulation(self, progress: Progress) -> Callable[[], None]:
        def accumulate() -> None:
            result = self.supervision.step(progress)
            self.gradients.add(progress.batch, result)
            batch = progress.batch
            self.metrics.add(result, batch.is_example, batch.offsets.diff())

        return accumulate

    @torch.no_grad()
    def _apply(self) -> None:
        """One update of all that is trained from the gradients, which are zero afterwards."""
        gradients, average = self.gradients, self.state.average
        puzzles = gradients.of_puzzles[:-1]
        norm = torch.linalg.vector_norm(gradients.of_network)
        is_finite = gradients.loss.isfinite() & norm.isfinite() & puzzles.isfinite().all()
        # In place of reading the flag, which would make the host wait at every step: where it is
        # false, all updates come to nothing.
        counts = is_finite.logical_and(~self.is_rehearsal).float()
        if self.config.grad_clip is not None:
            # As torch.nn.utils.clip_grads_with_norm_ does.
            gradients.of_network.mul_((self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        self.found_inf.copy_(1 - counts)
        for optimizer in self.state.optimizers:
            optimizer.step()
        if self.puzzle_optimizer is not None:
            puzzles = torch.where(counts > 0, puzzles, 0.0)
            self.puzzle_optimizer.step(puzzles, self.puzzle_lr * counts)
        if average is not None:
            average.update(self.state.model, counts)
        # Of a supervision step, however many an update is for.
        self.metrics.add_update(gradients.loss / self.steps_per_update, norm, is_finite)
        gradients.flat.zero_()

    def _rehearse(self, under_way: Sequence[Progress]) -> None:
        """Take steps from which nothing remains, neither in what is trained nor elsewhere."""
        touched = [*self.metrics.tensors(), *(t for p in under_way for t in p.tensors())]
        kept = [tensor.clone() for tensor in touched]
        self.is_rehearsal.fill_(True)
        for _ in range(REHEARSALS if self.captured else 1):
            for progress in under_way:
                self._accumulation(progress)()
            self._apply()
            # After each: there may be fewer supervision steps than rehearsals.
            for tensor, value in zip(touched, kept, strict=True):
                tensor.copy_(value)
        self.is_rehearsal.fill_(False)

    def _capture(self) -> None:
        """Record the graphs that are missing."""
        missing = self.under_way[len(self._accumulate) :]
        self._rehearse_aside(missing)
        if not self._accumulate:
            self._update = self._recorded(self._apply)
        self._accumulate += [self._recorded(self._accumulation(p)) for p in missing]

    def _rehearse_aside(self, under_way: Sequence[Progress]) -> None:
        """On a stream of its own, as PyTorch asks for before something is captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._rehearse(under_way)
        torch.cuda.current_stream().wait_stream(stream)

    def _recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does again on the device what `work` does now."""
        graph = torch.cuda.CUDAGraph()
        # One pool of memory for all graphs, as they never run at the same time; and what the
        # loader's thread asks of CUDA meanwhile is none of the graph's business.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._pool = graph.pool()
        return graph.replay


def _warn_of_recompilation() -> None:
    compiled = torch._dynamo.utils.get_compilation_metrics()
    # The last entry may be the backward pass's, which has no reason of its own.
    reasons = [entry.recompile_reason for entry in compiled if entry.recompile_reason]
    log.warning("The network was compiled again in the middle of the run: %s", reasons[-1:])


def _compiled_graphs() -> int:
    graphs: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return graphs
