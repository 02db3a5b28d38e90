"""torch.compile of the network: same numbers, and no more graphs than there are uses."""

import pytest
import torch
import torch._dynamo.testing
from tiny import SEQ_LEN, VOCAB_SIZE, tiny_model

from models.recursive import StepOutput, TinyRecursiveModel
from models.supervision import run_step

pytestmark = pytest.mark.long


def steps(model: TinyRecursiveModel, inputs: torch.Tensor) -> list[StepOutput]:
    state, outputs = model.initial_state(len(inputs)), []
    vectors = torch.ones(len(inputs), model.config.hidden_size)
    for s in range(1, 4):
        outputs.append(run_step(model, vectors, state, inputs, s, with_reference=False))
        state = outputs[-1].state
    return outputs


def test_the_compiled_network_computes_the_same_in_one_graph_for_all_steps() -> None:
    """Training and evaluation make a graph each; the supervision step and the state make none."""
    torch._dynamo.reset()
    inputs = torch.randint(VOCAB_SIZE, (3, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    model = tiny_model()
    expected = steps(model, inputs)
    compiled = tiny_model()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled.compile(backend=graphs)
    for _ in range(2):
        for output, reference in zip(steps(compiled, inputs), expected, strict=True):
            torch.testing.assert_close(output.conditional_logits, reference.conditional_logits)
    assert graphs.frame_count == 1
    with torch.no_grad():
        steps(compiled, inputs)
    assert graphs.frame_count == 2
