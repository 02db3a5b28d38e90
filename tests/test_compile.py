"""torch.compile of the network: same numbers, and one graph for training, one for evaluation."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from common.packed import PackedBatch
from models.build import ComputeConfig, is_compiled
from models.recursive import TinyRecursiveModel
from models.steps import TrainedModel
from test_engine import BATCH, batch, build
from tiny import packed, random_table, random_tokens, tiny_model, tiny_supervision

TOKENS, SEQUENCES, LONGEST = 130, 14, 19
"""The one shape of static batches, and a whole canvas with its prefix."""


@pytest.fixture(autouse=True)
def no_graphs_yet() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def small_model(**changes: Any) -> TinyRecursiveModel:
    """As few calls of the network as there can be: they are all traced."""
    return tiny_model(num_latent_updates=1, **changes)


def varying(number: int, is_static: bool) -> PackedBatch:
    """Two to five windows of any size; `is_static`: filled up to one shape."""
    generator = torch.Generator().manual_seed(number)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    count = draw(2, 5)
    cells = [torch.randperm(16, generator=generator)[: draw(1, 16)].tolist() for _ in range(count)]
    fill: list[int] = []
    if is_static:
        missing = TOKENS - sum(3 + len(row) for row in cells)
        fill = [min(LONGEST, missing - done) for done in range(0, missing, LONGEST)]
        fill += [0] * (SEQUENCES - count - len(fill))
    tokens = random_tokens(number, count), random_tokens(number + 1, count, lowest=1)
    return packed(*tokens, cells, fill)


@pytest.mark.parametrize(
    "scheme",
    [{"objective": "dual", "next_input": "answer"}, {"targets": "final", "halting": True}],
    ids=["dis", "halting"],
)
@pytest.mark.parametrize("is_static", [True, False], ids=["static", "dynamic"])
def test_training_makes_one_graph_and_evaluation_another_whatever_a_batch_holds(
    is_static: bool, scheme: dict[str, Any]
) -> None:
    """Of 100 batches, at every step. What counts is what is traced: no code is generated."""
    model, table = small_model(halting_head="halting" in scheme), random_table()
    model.compile(backend="eager", dynamic=not is_static)
    # What is watched is read out beside the network: its graph has no pass for it.
    training = [tiny_supervision(model, table, 5, watch, **scheme) for watch in (False, True)]
    trained = TrainedModel(model, table, training[0].config)
    shapes = set()
    for number in range(100):
        given = varying(number, is_static)
        shapes.add((len(given.inputs), given.num_sequences))
        supervision = training[number % 2]
        progress = supervision.begin(given, number, None)
        for _ in range(supervision.steps_per_batch):
            supervision.step(progress)
    assert num_graphs() == 1
    assert (len(shapes) == 1) == is_static
    with torch.no_grad():
        for number in range(100, 200):
            list(trained.improve(varying(number, is_static), 4, guidance_weight=2.0))
    assert num_graphs() == 2


def test_preparing_compiles_and_what_is_compiled_later_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = build()
    engine.supervision.model.compile(backend="eager", dynamic=False)
    engine.begin(batch(0), 0)
    engine.prepare()
    assert num_graphs() == 1
    engine.step(1.0)
    assert "compiled again" not in caplog.text
    for _ in range(2):  # Another shape; it is said once.
        engine.begin(batch(1, fill=(5,)), 1)
        engine.step(1.0)
    assert num_graphs() == 2
    assert len([line for line in caplog.messages if "compiled again" in line]) == 1


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [("auto", "cpu", False), ("auto", "cuda", True), ("on", "cpu", True), ("off", "cuda", False)],
)
def test_the_network_is_compiled_on_cuda_or_where_that_is_asked_for(
    asked: str, device: str, expected: bool
) -> None:
    assert is_compiled(ComputeConfig(compile=asked), torch.device(device)) == expected


@pytest.mark.long
@pytest.mark.parametrize("is_static", [True, False], ids=["static", "dynamic"])
def test_the_compiled_network_computes_the_same(is_static: bool) -> None:
    """By the real compiler: losses and all gradients, of batches of any shape or of one."""
    changes = {"halting_head": True, "num_recursions": 2}
    model, compiled = small_model(**changes), small_model(**changes)
    compiled.compile(dynamic=not is_static)
    for number in range(3):
        given = varying(number, is_static)
        results = []
        for network in (model, compiled):
            network.zero_grad()
            scheme = {"targets": "final", "halting": True}
            supervision = tiny_supervision(network, random_table(), BATCH, **scheme)
            progress = supervision.begin(given, number, None)
            results.append([supervision.step(progress) for _ in range(3)])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-4, atol=1e-5)
            pair = ours.puzzle_gradient, theirs.puzzle_gradient
            torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert num_graphs() == 1
