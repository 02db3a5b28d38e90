"""Processes, ranks and devices. Everything here also works in a plain `python` process.

Under torchrun each process is one rank with one device; without a launcher there is one rank, and
the collectives return what they are given.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError
from common.locks import exclusive

PATIENCE = timedelta(minutes=30)
"""For so long a rank waits for another, which may be writing a checkpoint or predicting, before it
takes it for dead."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process's place among all processes of the run, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, value: int) -> int:
        """The largest of all ranks' values; from host to host, without a wait for a device."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def concatenate(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors of one shape [N, ...], joined in rank order [N * world_size, ...]."""
        if self.world_size == 1:
            return tensor
        shape = (len(tensor) * self.world_size, *tensor.shape[1:])
        joined = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
        dist.all_gather(list(joined.chunk(self.world_size)), tensor.contiguous())
        return joined

    def without(self, path: Path) -> list[int]:
        """The ranks for which there is nothing at `path`; all ranks must call this."""
        is_there = self.concatenate(torch.tensor([int(path.exists())]))
        return [rank for rank, found in enumerate(is_there.tolist()) if not found]

    def gather_objects(self, value: Any) -> list[Any] | None:
        """All ranks' values in rank order on the main rank, None elsewhere."""
        if self.world_size == 1:
            return [value]
        gathered = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, gathered)
        return gathered

    def from_main(self, compute: Callable[[], Result]) -> Result:
        """Call `compute()` on the main rank alone; every rank gets the result, or the UserError.

        So a bad folder or a full disk that only the main rank can notice ends all ranks at once,
        instead of leaving the others to wait for a collective that never comes.
        """
        if self.world_size == 1:
            return compute()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = compute()
            except (UserError, OSError) as caught:
                outcome[1] = caught
        dist.broadcast_object_list(outcome)
        result, error = outcome
        if error is not None:
            raise error
        final: Result = result
        return final

    @contextmanager
    def exclusive(self, path: Path, what: str) -> Iterator[None]:
        """Own a folder as `common.locks.exclusive`, all ranks together."""
        with ExitStack() as owned:
            self.from_main(lambda: owned.enter_context(exclusive(path, what)))
            yield


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the GPU by its tensors, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Not on every system.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kB.


@contextmanager
def start_ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun describes, or stand alone; leave it at the end.

    Args:
        device: "auto" (CUDA if there is any), "cpu", "cuda", or one GPU, as "cuda:1".

    Raises:
        UserError: CUDA was asked for and is not there, there are more local ranks than GPUs, or one
            GPU for several ranks; or its memory is full.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = _choose_device(device, local_rank, local_world_size)
    ranks = Ranks(rank=0, world_size=1, device=chosen)
    if "RANK" in os.environ:
        ranks = _join_ranks(chosen, local_world_size)
    try:
        yield ranks
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{chosen}: {reason} Try half the train.micro_batch_tokens (of predict.py "
            f"adapt.micro_batch_tokens), in evaluations eval.batch_tokens"
        ) from error
    if "RANK" in os.environ:
        # Not after an error: it would wait for ranks that wait for this one.
        dist.destroy_process_group()


def _choose_device(device: str, local_rank: int, local_world_size: int) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device(device)
    if not torch.cuda.is_available():
        raise UserError(
            f"device={device}: this PyTorch sees no CUDA device; use device=cpu or device=auto, or "
            f"install a CUDA build of torch and check nvidia-smi"
        )
    if device != "cuda" and local_world_size > 1:
        raise UserError(
            f"device={device}: each of several ranks takes a GPU of its own; use device=cuda, and "
            f"CUDA_VISIBLE_DEVICES to choose which GPUs there are"
        )
    index = local_rank if device == "cuda" else int(device.removeprefix("cuda:"))
    count = torch.cuda.device_count()
    if local_world_size > count:
        raise UserError(
            f"--nproc_per_node={local_world_size}: only {count} CUDA device(s) here; start at most "
            f"one rank for each"
        )
    if index >= count:
        raise UserError(f"device={device}: only {count} CUDA device(s) here, counted from 0")
    torch.cuda.set_device(index)
    return torch.device(f"cuda:{index}")


def _join_ranks(device: torch.device, local_world_size: int) -> Ranks:
    # Both backends, since collectives of Python objects and of CPU tensors go over gloo.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, world_size = next(iter(dist.rendezvous("env://")))
    if local_world_size == world_size:
        # The launcher's store outlives a restart, and addresses of the ranks before must not be
        # taken for those of now. (Only here: each node counts its own restarts.)
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE
    )
    return Ranks(rank=rank, world_size=world_size, device=device)
