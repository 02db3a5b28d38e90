"""torch.compile of the network: same numbers, and no more graphs than there are uses."""

import pytest
import torch
import torch._dynamo.testing
from tiny import SEQ_LEN, random_table, random_tokens, tiny_arch, tiny_model
from torch import Tensor

from common.distributed import Ranks
from common.segments import Segment
from dataset.canvas import ARC_COLOURS
from models.build import COMPILED_GRAPHS, ComputeConfig, build_model
from models.recursive import StepOutput, TinyRecursiveModel, run_step
from models.steps import TrainedModel
from models.supervision import DeepImprovementSupervision, SupervisionConfig

pytestmark = pytest.mark.long


def steps(
    model: TinyRecursiveModel, inputs: Tensor, cells: Tensor | None = None
) -> list[StepOutput]:
    state, outputs = model.initial_state(*inputs.shape), []
    vectors = torch.ones(len(inputs), model.config.hidden_size)
    for s in range(1, 4):
        outputs.append(run_step(model, vectors, state, inputs, s, cells, with_reference=False))
        state = outputs[-1].state
    return outputs


@pytest.mark.parametrize("backend", ["default", "flash", "matmul"])
def test_the_compiled_network_computes_the_same_in_one_graph_for_all_steps(backend: str) -> None:
    """Training and evaluation make a graph each; the supervision step and the state make none."""
    torch._dynamo.reset()
    inputs = random_tokens(0, rows=3)
    model = tiny_model()
    expected = steps(model, inputs)
    compiled = tiny_model()
    compiled.use_attention(backend)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled.compile(backend=graphs)
    for _ in range(2):
        for output, reference in zip(steps(compiled, inputs), expected, strict=True):
            torch.testing.assert_close(output.conditional_logits, reference.conditional_logits)
    assert graphs.frame_count == 1
    with torch.no_grad():
        steps(compiled, inputs)
    assert graphs.frame_count == 2


@pytest.mark.parametrize("changes", [{}, {"separate_networks": True, "step_embedding": False}])
def test_the_compiled_baseline_computes_the_same_with_examples_at_steps_of_their_own(
    changes: dict[str, bool],
) -> None:
    """In one graph, whatever the steps are."""
    torch._dynamo.reset()
    model, compiled = (tiny_model(halting_head=True, num_recursions=2, **changes) for _ in "12")
    for network in (model, compiled):
        network.halting_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    graphs = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled.compile(backend=graphs)
    inputs, vectors = random_tokens(0, rows=3), torch.ones(3, model.config.hidden_size)
    state = model.initial_state(*inputs.shape)
    for at in ([1, 1, 1], [1, 2, 2], [3, 1, 3]):
        expected, output = (
            run_step(network, vectors, state, inputs, torch.tensor(at))
            for network in (model, compiled)
        )
        torch.testing.assert_close(output.conditional_logits, expected.conditional_logits)
        torch.testing.assert_close(output.halting_logits, expected.halting_logits)
        state = expected.state
    assert graphs.frame_count == 1


def window(rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens of as many cells, other ones for each row in any order, and which these are [B, L]."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(rows, SEQ_LEN, generator=generator).argsort(dim=1)[:, :length].contiguous()
    return random_tokens(seed, rows).take_along_dim(cells, 1), cells


def gradients(model: TinyRecursiveModel, outputs: list[StepOutput]) -> list[Tensor]:
    """Of the sum of squares of all logits, by every weight."""
    loss = torch.stack([output.conditional_logits.square().sum() for output in outputs]).sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_compiled_windows_of_any_length_and_batch_size_compute_the_same_in_two_graphs() -> None:
    """The first shape has a graph of its own, all that follow share one of any shape."""
    torch._dynamo.reset()
    model, compiled = tiny_model(), tiny_model()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled.compile(backend=graphs)
    counts = []
    for rows, length in ((3, 10), (2, 5), (4, 9), (6, SEQ_LEN), (2, 12), (3, 10)):
        given = window(rows, length)
        expected, outputs = steps(model, *given), steps(compiled, *given)
        for output, reference in zip(outputs, expected, strict=True):
            torch.testing.assert_close(
                output.conditional_logits, reference.conditional_logits, atol=1e-4, rtol=1e-4
            )
        pairs = zip(gradients(compiled, outputs), gradients(model, expected), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-3)
        counts.append(graphs.frame_count)
    assert counts == [1, 2, 2, 2, 2, 2]


def segment(rows: int, length: int) -> Segment:
    """A window on each of some examples; of all cells: the whole canvas."""
    inputs, cells = window(rows, length)
    return Segment(
        inputs,
        random_tokens(1, rows, lowest=1)[:, :length].contiguous(),
        torch.arange(rows) % 5,
        torch.arange(rows),
        None if length == SEQ_LEN else cells,
    )


def test_training_and_evaluating_shapes_of_all_kinds_makes_a_few_graphs_and_then_no_more() -> None:
    """Windows and whole canvases, of one example and several, with a gradient and without."""
    torch._dynamo.reset()
    model, table = tiny_model(), random_table()
    # What counts is what is traced; no need to generate code for it.
    graphs = torch._dynamo.testing.CompileCounterWithBackend("eager")
    model.compile(backend=graphs)
    config = SupervisionConfig(objective="dual", next_input="answer")
    supervision = DeepImprovementSupervision(
        config, model, model, table, ARC_COLOURS, diagnostics=False
    )
    trained = TrainedModel(model, table, config)

    def train(*shapes: tuple[int, int]) -> None:
        for result in supervision.run([segment(*shape) for shape in shapes], seed=0):
            result.loss.backward()

    def evaluate(*shapes: tuple[int, int]) -> None:
        for given in (segment(*shape) for shape in shapes):
            with torch.no_grad():
                list(trained.improve(given.inputs, given.puzzle_ids, 3, cells=given.cells))

    with torch._dynamo.config.patch(recompile_limit=COMPILED_GRAPHS):
        train((5, 6), (4, 9), (2, SEQ_LEN))
        train((1, 6), (5, 9), (3, SEQ_LEN))
        train((4, 6), (1, 9), (1, SEQ_LEN))
        train((3, SEQ_LEN))
        train((1, SEQ_LEN))
        evaluate((6, 9), (4, 8), (1, 8), (3, SEQ_LEN), (1, SEQ_LEN))
        few = graphs.frame_count
        assert 8 < few <= COMPILED_GRAPHS / 2, "more than PyTorch allows by itself"
        train((1, 3), (2, 4), (3, 5), (4, 8), (5, 10), (6, 12), (7, 14), (8, SEQ_LEN))
        train((9, 2), (1, 7), (1, SEQ_LEN))
        evaluate((2, SEQ_LEN), (7, 3), (1, 14), (8, 11), (5, SEQ_LEN))
        train((5, 7), (7, 12), (6, SEQ_LEN))
        assert graphs.frame_count == few


def test_watching_the_steps_makes_no_other_graph() -> None:
    """What is watched is read out beside the network: its graph has no pass for it."""
    torch._dynamo.reset()
    model, table = tiny_model(), random_table()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("eager")
    model.compile(backend=graphs)
    for diagnostics in (False, True):
        supervision = DeepImprovementSupervision(
            SupervisionConfig(), model, model, table, ARC_COLOURS, diagnostics
        )
        for result in supervision.run([segment(3, SEQ_LEN)], seed=0):
            result.loss.backward()
    assert graphs.frame_count == 1


def test_a_compiled_model_may_have_more_graphs_than_pytorch_allows_by_itself() -> None:
    ranks = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    with torch._dynamo.config.patch(recompile_limit=8):
        for compiled, limit in (("off", 8), ("auto", 8), ("on", COMPILED_GRAPHS)):
            build_model(tiny_arch(), 12, SEQ_LEN, ComputeConfig(compile=compiled), ranks)
            assert torch._dynamo.config.recompile_limit == limit
