"""Attention within packed sequences, against a dense reference in fp64; on CUDA: tests/cuda."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import attention
from models.attention import attention_kernel, grouped, varlen


class Elsewhere(torch.Tensor):
    """Says that it is not on a CPU."""

    device = torch.device("cuda")  # type: ignore[assignment]


@pytest.fixture
def written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as where PyTorch's fused kernel for CPUs is not, in the dtype of the queries."""

    def off_the_cpu(compute: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> Any:
        computed = compute(*(tensor.as_subclass(Elsewhere) for tensor in tensors))
        return tuple(tensor.as_subclass(Tensor) for tensor in computed)

    for name in ("_forward", "_backward"):
        compute = getattr(attention, name)
        monkeypatch.setattr(attention, name, partial(off_the_cpu, compute))
    monkeypatch.setattr(attention, "_compute_dtype", lambda q: q.dtype)


def drawn(lengths: Sequence[int], dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values [N, 2, 8], a gradient of the attended values, and the offsets."""
    generator = torch.Generator().manual_seed(0)
    *qkv, gradient = torch.randn(4, sum(lengths), 2, 8, generator=generator).to(dtype)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return [tensor.requires_grad_() for tensor in qkv], gradient, offsets


def dense(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each query's weights over all keys, 0 for those of other sequences, in fp64."""
    q, k, v = (tensor.double() for tensor in (q, k, v))
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    same = (sequence[:, None] == sequence).double()
    weights = (torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])).exp() * same
    return torch.einsum("hij,jhd->ihd", weights / weights.sum(dim=-1, keepdim=True), v)


def agrees(lengths: Sequence[int], dtype: torch.dtype, tolerance: float) -> None:
    """Attended values and all three gradients."""
    qkv, gradient, offsets = drawn(lengths, dtype)
    attended, reference = grouped(*qkv, offsets, 1000), dense(*qkv, lengths)
    assert attended.dtype == dtype and attended.is_contiguous()
    ours = [attended, *torch.autograd.grad(attended, qkv, gradient)]
    theirs = [reference, *torch.autograd.grad(reference, qkv, gradient.double())]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other.double(), rtol=tolerance, atol=tolerance)


LENGTHS = {
    "one alone": [916],
    "empty ones": [17, 0, 40, 40, 0, 0],
    "a run that an empty one parts": [0, 21, 0, 21, 21],
    "a batch": [17, 17, 916, 100, 100, 100, 23, 0, 0],
}
# Numbers around 1 of 8 bits: results are rounded once in bf16, or all between them too.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.02}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_the_grouped_kernel_is_dense_softmax_attention_within_each_sequence(
    lengths: list[int], dtype: torch.dtype
) -> None:
    agrees(lengths, dtype, TOLERANCES[dtype])


@pytest.mark.usefixtures("written_out")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_so_is_what_it_computes_off_the_cpu(lengths: list[int], dtype: torch.dtype) -> None:
    agrees(lengths, dtype, 3 * TOLERANCES[dtype])


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any))
def test_however_a_batch_is_cut_into_sequences(lengths: list[int]) -> None:
    agrees(lengths, torch.float64, 1e-12)


@pytest.mark.usefixtures("written_out")
def test_large_scores_do_not_overflow_off_the_cpu() -> None:
    """The softmax of 14,000 and 14,000: neither exponential is a number."""
    q = torch.full((2, 1, 2), 100.0)
    v = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    attended = grouped(q, q, v, torch.tensor([0, 2], dtype=torch.int32), 2)
    torch.testing.assert_close(
        attended, torch.tensor([2.0, 3.0]).expand(2, 1, 2), rtol=1e-3, atol=0
    )


def test_the_grouped_kernel_is_a_well_behaved_operator_to_the_compiler() -> None:
    """Its schema, its shapes without data, and its gradient under tracing are what it says."""
    qkv, _, offsets = drawn([5, 3, 3, 0], torch.float32)
    torch.library.opcheck(attention._grouped, (*qkv, offsets))


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "kernel"),
    [
        ("cuda", torch.bfloat16, 32, varlen),
        ("cuda", torch.float16, 64, varlen),
        ("cuda", torch.float32, 32, grouped),
        ("cuda", torch.bfloat16, 12, grouped),  # The flash kernel takes multiples of 8 ...
        ("cuda", torch.bfloat16, 264, grouped),  # ... up to 256.
        ("cpu", torch.bfloat16, 32, grouped),
    ],
)
def test_the_kernel_of_a_device(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    kernel: attention.Kernel,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert attention_kernel(torch.device(device), dtype, head_dim) is kernel


def test_cards_before_ampere_have_no_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert attention_kernel(torch.device("cuda"), torch.float16, 32) is grouped
