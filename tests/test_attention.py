"""Attention backends: all compute the same, and the one that is chosen is the fastest."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from models import attention
from models.attention import BACKENDS, fastest_backend, runs_here, time_backends
from models.build import ComputeConfig

CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]
SHAPE = (2, 3, 19, 8)
"""Batch, heads, positions, head dimension."""


def drawn(
    dtype: torch.dtype = torch.float32, device: str = "cpu", shape: tuple[int, ...] = SHAPE
) -> list[Tensor]:
    """Queries, keys, values, and a gradient of the attended values."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for _ in range(4)]
    q, k, v, gradient = (tensor.to(device, dtype) for tensor in tensors)
    return [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), gradient]


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query's weights over all keys, written out, in fp64."""
    q, k, v = (tensor.double() for tensor in (q, k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def backends_here(dtype: torch.dtype, device: str) -> list[str]:
    """Names of the backends that can compute forward and backward."""
    able = []
    for name, attend in BACKENDS.items():
        *qkv, gradient = drawn(dtype, device)
        try:
            attend(*qkv).backward(gradient)
        except RuntimeError:
            continue
        able.append(name)
    return able


def worst_error(
    name: str, dtype: torch.dtype, device: str, shape: tuple[int, ...] = SHAPE
) -> float:
    """Largest difference from the dense reference, of attended values and gradients alike."""
    *qkv, gradient = drawn(dtype, device, shape)
    answer, reference = BACKENDS[name](*qkv), dense(*qkv)
    assert (answer.dtype, answer.shape) == (dtype, shape)
    ours = [answer, *torch.autograd.grad(answer, qkv, gradient)]
    theirs = [reference, *torch.autograd.grad(reference, qkv, gradient.double())]
    return max(
        (mine.double() - other.double()).abs().max().item()
        for mine, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 2), (3, 2, 130, 32)])
def test_every_backend_of_a_cpu_is_dense_softmax_attention(shape: tuple[int, ...]) -> None:
    able = backends_here(torch.float32, "cpu")
    assert {"default", "matmul"} <= set(able)
    for name in able:
        assert worst_error(name, torch.float32, "cpu", shape) < 1e-5, name


@pytest.mark.parametrize("device", DEVICES)
def test_every_backend_is_dense_softmax_attention_up_to_the_rounding_of_bf16(device: str) -> None:
    able = backends_here(torch.bfloat16, device)
    assert {"default", "matmul"} <= set(able)
    for name in able:
        # Numbers around 1, rounded to 8 bits a few times.
        assert 1e-4 < worst_error(name, torch.bfloat16, device) < 0.05, name


def test_matmul_holds_up_where_scores_are_large() -> None:
    """The softmax of 14,000 and 14,000: neither exponential is a number."""
    q = torch.full((1, 1, 2, 2), 100.0)
    v = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert torch.allclose(BACKENDS["matmul"](q, q, v), torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("device", DEVICES)
def test_those_are_timed_that_run_and_no_others(device: str) -> None:
    """On a CPU, cuDNN's is not among them."""
    where = (SHAPE, torch.bfloat16, torch.device(device))
    seconds = time_backends(*where, repeats=1)
    assert list(seconds) == backends_here(torch.bfloat16, device)
    assert [name for name in BACKENDS if runs_here(name, *where)] == list(seconds)
    assert all(0 < value < 60 for value in seconds.values())
    assert device == "cuda" or "cudnn" not in seconds


@pytest.mark.parametrize("device", DEVICES)
def test_timing_leaves_the_global_random_state_as_it_was(device: str) -> None:
    """Weights that are drawn afterwards do not depend on which backends were tried."""
    generator = torch.cuda if device == "cuda" else torch
    before = generator.get_rng_state()
    fastest_backend(SHAPE, torch.float32, torch.device(device))
    assert runs_here("matmul", SHAPE, torch.float32, torch.device(device))
    assert torch.equal(generator.get_rng_state(), before)


def test_the_time_of_a_backend_is_the_median_without_the_first_two_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = {"a": [90.0, 80.0, 1.0, 30.0, 2.0], "b": [0.1, 0.1, 5.0, 4.0, 6.0]}
    times = {name: iter(clock) for name, clock in clocks.items()}
    monkeypatch.setattr(attention, "BACKENDS", {"a": "a", "b": "b"})
    monkeypatch.setattr(attention, "_time_once", lambda name, qkv, gradient: next(times[name]))
    assert time_backends(SHAPE, torch.float32, CPU, repeats=3) == {"a": 2.0, "b": 5.0}


class ForwardOnly(torch.autograd.Function):
    """A kernel whose backward pass does not fit the device."""

    @staticmethod
    def forward(ctx: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q + k + v

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_backend_that_fails_in_its_backward_pass_is_left_out_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKENDS, "default", ForwardOnly.apply)
    seconds = time_backends(SHAPE, torch.float32, CPU, repeats=1)
    assert "default" not in seconds
    assert "matmul" in seconds


@pytest.mark.parametrize("fastest", ["default", "flash", "matmul"])
def test_the_fastest_is_the_one_of_the_shortest_time(
    fastest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {**dict.fromkeys(("default", "flash", "matmul"), 2.0), fastest: 1.5}
    timed = {(SHAPE, torch.bfloat16, CPU): seconds}
    monkeypatch.setattr(attention, "time_backends", lambda *arguments: timed[arguments])
    assert fastest_backend(SHAPE, torch.bfloat16, CPU) == fastest


def test_the_choice_on_this_machine_is_one_that_runs() -> None:
    assert fastest_backend(SHAPE, torch.float32, CPU) in backends_here(torch.float32, "cpu")


def test_a_user_can_ask_for_every_backend_and_for_no_other() -> None:
    offered = get_args(ComputeConfig.model_fields["attention"].annotation)
    assert set(offered) == {"auto", *BACKENDS}
