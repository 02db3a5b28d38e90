"""The inner loop: what each step sees, what it is trained towards, and what its loss is."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import batch_random, random_table, random_tokens, tiny_model, tiny_supervision
from torch import Tensor, nn

from common.errors import UserError
from common.settings import validate
from models.objective import IGNORE, stablemax_cross_entropy
from models.puzzle_embedding import PuzzleEmbedding
from models.recursive import ArchConfig, RecursiveState, StepOutput
from models.supervision import (
    DeepImprovementSupervision,
    ImprovementSteps,
    StepResult,
    SupervisionConfig,
    accuracy,
    run_step,
    step_targets,
    step_weights,
)
from models.targets import TARGETS, BatchRandom

I = IGNORE  # noqa: E741
PUZZLES = torch.tensor([1, 3])


class ScriptedRandom(BatchRandom):
    """Hands out the given numbers: the lower a cell's number, the sooner it is replaced."""

    def __init__(self, numbers: list[list[float]]) -> None:
        super().__init__(torch.Generator(), 0, len(numbers))
        object.__setattr__(self, "numbers", torch.tensor(numbers))

    def uniform(self, rows: int, *shape: int) -> Tensor:
        numbers: Tensor = self.numbers  # type: ignore[attr-defined]
        assert numbers.shape == (rows, *shape)
        return numbers


class Spy(nn.Module):
    """Passes calls on to a network and remembers them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.states: list[RecursiveState] = []
        self.inputs: list[Tensor] = []
        self.vectors: list[Tensor] = []
        self.steps: list[int] = []
        self.asked_for_reference: list[bool] = []
        self.outputs: list[StepOutput] = []

    @property
    def config(self) -> ArchConfig:
        return self.network.config

    def initial_state(self, batch_size: int) -> RecursiveState:
        return self.network.initial_state(batch_size)

    def forward(
        self,
        state: RecursiveState,
        inputs: Tensor,
        puzzle_vectors: Tensor,
        supervision_step: Tensor,
        with_reference: bool = False,
    ) -> StepOutput:
        self.states.append(state)
        self.inputs.append(inputs.clone())
        self.vectors.append(puzzle_vectors.detach().clone())
        self.steps.append(int(supervision_step))
        self.asked_for_reference.append(with_reference)
        output: StepOutput = self.network(
            state, inputs, puzzle_vectors, supervision_step, with_reference
        )
        self.outputs.append(output)
        return output


class Training:
    """A tiny model under supervision, watched, on two examples without PAD in the solution."""

    def __init__(self, model_changes: dict[str, Any] | None = None, **supervision: Any) -> None:
        self.model = tiny_model(**(model_changes or {}))
        self.spy = Spy(self.model)
        self.table = random_table()
        self.config = tiny_supervision(**supervision)
        self.inputs, self.labels = random_tokens(1), random_tokens(2, lowest=1)
        self.supervision = DeepImprovementSupervision(self.config, self.model, self.spy, self.table)

    def run(self) -> Any:
        return self.supervision.run(self.inputs, self.labels, PUZZLES, batch_random(2, seed=7))

    def targets(self) -> Tensor:
        """What `run` trains towards: drawn from the same seed."""
        steps = self.model.config.num_supervision_steps
        return step_targets(self.config, self.inputs, self.labels, steps, batch_random(2, seed=7))


def frames(
    config: SupervisionConfig,
    inputs: list[int],
    labels: list[int],
    num_steps: int,
    order: list[float],
) -> list[list[int]]:
    targets = step_targets(
        config,
        torch.tensor([inputs]),
        torch.tensor([labels]),
        num_steps,
        ScriptedRandom([order]),
    )
    result: list[list[int]] = targets[0].tolist()
    return result


def test_ignored_pad_is_ignored_in_every_frame_by_hand() -> None:
    # Cells 0 and 2 differ; cell 2 holds a colour that the solution leaves empty, cell 3 is empty
    # in both. Cell 2 is replaced first, and is never counted all the same.
    config = tiny_supervision(pad_cells="ignored")
    assert frames(config, [5, 3, 6, 0], [7, 3, 0, 0], 2, [0.4, 0.3, 0.2, 0.1]) == [
        [5, 3, I, I],
        [5, 3, I, I],
        [7, 3, I, I],
    ]


def test_pad_counted_until_replaced_by_hand() -> None:
    # All cells whose solution is PAD differ, the empty cell 3 too: with cell 0 three cells to
    # replace in three steps, in the order 3, 0, 2. Until then the input's token is the target.
    config = tiny_supervision(pad_cells="counted_until_replaced")
    assert frames(config, [5, 3, 6, 0], [7, 3, 0, 0], 3, [0.2, 0.1, 0.4, 0.1]) == [
        [5, 3, 6, 0],
        [5, 3, 6, I],
        [7, 3, 6, I],
        [7, 3, I, I],
    ]


def test_the_two_readings_agree_on_solutions_without_pad() -> None:
    order = [0.3, 0.1, 0.2, 0.4]
    ignored, counted = (
        frames(tiny_supervision(pad_cells=reading), [5, 0, 6, 1], [7, 3, 6, 2], 3, order)
        for reading in ("ignored", "counted_until_replaced")
    )
    assert ignored == [[5, 0, 6, 1], [5, 3, 6, 1], [7, 3, 6, 1], [7, 3, 6, 2]]
    assert counted == ignored


@given(seed=st.integers(0, 2**31), reading=st.sampled_from(["ignored", "counted_until_replaced"]))
@settings(max_examples=40)
def test_the_last_frame_counts_exactly_the_solutions_cells(seed: int, reading: str) -> None:
    inputs = random_tokens(seed) % 3
    labels = random_tokens(seed + 1) % 3
    config = tiny_supervision(pad_cells=reading)
    targets = step_targets(config, inputs, labels, 4, batch_random(2, seed))
    assert targets.shape == (2, 5, 16)
    assert torch.equal(targets[:, 4], labels.masked_fill(labels == 0, IGNORE))
    ignored = targets == IGNORE
    assert (ignored.int().diff(dim=1) >= 0).all(), "a cell that is out stays out"
    shows_input = targets == inputs.unsqueeze(1)
    shows_solution = targets == labels.unsqueeze(1)
    assert (ignored | shows_input | shows_solution).all()
    if reading == "ignored":
        assert torch.equal(ignored, (labels == 0).unsqueeze(1).expand_as(ignored))
    else:
        assert torch.equal(targets[:, 0], inputs)


def test_uniform_weights_are_1_and_rising_weights_have_mean_1() -> None:
    assert step_weights("uniform", 4) == [1, 1, 1, 1]
    assert step_weights("rising", 3) == [0.5, 1, 1.5]
    assert step_weights("rising", 6) == pytest.approx([2 / 7, 4 / 7, 6 / 7, 8 / 7, 10 / 7, 12 / 7])
    assert step_weights("rising", 1) == [1]
    assert sum(step_weights("rising", 16)) == pytest.approx(16)


def test_run_yields_one_result_a_step_in_order() -> None:
    training = Training()
    results = list(training.run())
    assert [result.supervision_step for result in results] == [1, 2, 3]
    assert training.spy.steps == [1, 2, 3]
    for result in results:
        assert result.loss.shape == ()
        assert torch.equal(result.puzzle_ids, PUZZLES)


def test_the_state_is_carried_from_step_to_step() -> None:
    training = Training()
    list(training.run())
    start = training.model.initial_state(2)
    assert torch.equal(training.spy.states[0].y, start.y)
    assert torch.equal(training.spy.states[0].z, start.z)
    for s in (1, 2):
        assert training.spy.states[s] is training.spy.outputs[s - 1].state


@pytest.mark.parametrize("weights", ["uniform", "rising"])
@pytest.mark.parametrize("pad_cells", ["ignored", "counted_until_replaced"])
def test_the_dis_loss_is_the_cross_entropy_with_the_steps_own_target(
    weights: str, pad_cells: str
) -> None:
    training = Training(step_weights=weights, pad_cells=pad_cells)
    training.labels[0, :5] = 0
    targets = training.targets()
    factors = {"uniform": [1, 1, 1], "rising": [0.5, 1, 1.5]}[weights]
    for s, result in enumerate(training.run(), start=1):
        logits = training.spy.outputs[-1].conditional_logits
        of_examples = stablemax_cross_entropy(logits, targets[:, s])
        assert result.loss.item() == pytest.approx(factors[s - 1] * of_examples.mean().item())
        # The frames differ so much that another step's would not do.
        other = stablemax_cross_entropy(logits, targets[:, 0]).mean().item()
        assert abs(other - of_examples.mean().item()) > 0.01
    assert not any(training.spy.asked_for_reference)


def test_the_dual_loss_adds_the_incoming_answers_with_the_target_before() -> None:
    training = Training(objective="dual", step_weights="rising")
    targets = training.targets()
    assert torch.equal(targets[:, 0], training.inputs), "y†_0 = x"
    for s, result in enumerate(training.run(), start=1):
        conditional = training.spy.outputs[-1].conditional_logits
        reference = training.model.read_out(training.spy.states[-1].y)
        expected = stablemax_cross_entropy(conditional, targets[:, s]).mean()
        expected = expected + stablemax_cross_entropy(reference, targets[:, s - 1]).mean()
        assert result.loss.item() == pytest.approx(0.5 * s * expected.item())
    assert training.spy.asked_for_reference == [True] * 3


def test_the_dual_objective_trains_the_readout_of_the_incoming_answer() -> None:
    gradients = {}
    for objective in ("dis", "dual"):
        training = Training(objective=objective)
        next(training.run()).loss.backward()
        gradients[objective] = training.model.readout.weight.grad
    assert (gradients["dual"] - gradients["dis"]).abs().max() > 1e-3


def test_the_question_is_the_input_of_every_step() -> None:
    training = Training(next_input="question")
    list(training.run())
    for inputs in training.spy.inputs:
        assert torch.equal(inputs, training.inputs)


def test_the_models_own_answer_is_the_input_of_the_next_step() -> None:
    training = Training(next_input="answer")
    list(training.run())
    inputs, outputs = training.spy.inputs, training.spy.outputs
    assert torch.equal(inputs[0], training.inputs)
    for s in (1, 2):
        assert torch.equal(inputs[s], outputs[s - 1].conditional_logits.argmax(dim=-1))
        assert inputs[s].dtype == torch.int64
    assert not torch.equal(inputs[1], training.inputs)


def test_a_step_sees_the_weights_that_the_step_before_has_changed() -> None:
    training = Training()
    run = training.run()
    first = next(run)
    before = training.table.weight[PUZZLES].clone()
    assert torch.equal(training.spy.vectors[0], before)
    training.table.weight[1] += 1
    with torch.no_grad():
        training.model.readout.weight.zero_()
    second = next(run)
    changed = before + torch.tensor([[1.0], [0.0]])
    assert torch.equal(training.spy.vectors[1], changed)
    assert training.spy.outputs[1].conditional_logits.abs().max() == 0
    assert first.puzzle_vectors is not second.puzzle_vectors


def test_the_gradient_of_the_puzzles_is_collected_by_the_vectors_not_by_the_table() -> None:
    training = Training()
    result: StepResult = next(training.run())
    result.loss.backward()
    assert result.puzzle_vectors.shape == (2, 16)
    assert result.puzzle_vectors.grad is not None
    assert (result.puzzle_vectors.grad.abs().sum(dim=1) > 0).all()
    assert not training.table.weight.requires_grad


def test_a_new_table_is_zero_and_looks_rows_up_as_leaves() -> None:
    table = PuzzleEmbedding(4, 3)
    assert table.weight.tolist() == [[0.0] * 3] * 4
    table.weight[2] = 5
    rows = table.lookup(torch.tensor([2, 0, 2]))
    assert rows.tolist() == [[5.0] * 3, [0.0] * 3, [5.0] * 3]
    assert rows.is_leaf
    assert rows.requires_grad
    with torch.no_grad():
        rows += 1
    assert table.weight[2].tolist() == [5.0] * 3, "a copy, not a view"


def test_accuracy_by_hand() -> None:
    answer = torch.tensor([[2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 5]])
    solution = torch.tensor([[2, 3, 9, I], [2, 3, 4, I], [I, I, I, I], [9, 9, 9, 9]])
    cell, exact = accuracy(answer, solution)
    assert cell.tolist() == pytest.approx([2 / 3, 1, 0, 0])
    assert exact.tolist() == [0, 1, 0, 0]


class Scripted(nn.Module):
    """A network that answers the given canvases, step after step."""

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, state: RecursiveState, *rest: Any) -> StepOutput:
        logits = 9.0 * nn.functional.one_hot(self.answers[int(rest[2]) - 1], 12)
        return StepOutput(state, logits.requires_grad_(), None)


@pytest.mark.parametrize("pad_cells", ["ignored", "counted_until_replaced"])
def test_accuracy_is_measured_against_the_solution_not_the_steps_target(pad_cells: str) -> None:
    model, labels = tiny_model(), random_tokens(2, lowest=1)
    labels[:, 8:] = 0
    wrong = labels.clone()
    wrong[0, :4] = labels[0, :4] % 11 + 1
    wrong[:, 8:] = 5  # not counted
    supervision = DeepImprovementSupervision(
        tiny_supervision(pad_cells=pad_cells),
        model,
        Scripted([labels, wrong, labels]),
        random_table(),
    )
    results = list(supervision.run(random_tokens(1), labels, PUZZLES, batch_random(2)))
    assert [result.exact_accuracy.item() for result in results] == [1, 0.5, 1]
    # Half of the eight counted cells of one of the two examples are wrong.
    assert [result.cell_accuracy.item() for result in results] == [1, 0.75, 1]


def decode(
    training: Training, num_steps: int | None = None, guidance_weight: float = 1.0
) -> list[Tensor]:
    steps = ImprovementSteps(
        training.spy,
        training.table,
        training.config.next_input,
        num_steps,
        guidance_weight,
    )
    with torch.no_grad():
        return list(steps.run(training.inputs, PUZZLES))


@pytest.mark.parametrize("next_input", ["question", "answer"])
def test_plain_decoding_repeats_the_forward_passes_of_training(next_input: str) -> None:
    trained, decoded = Training(next_input=next_input), Training(next_input=next_input)
    list(trained.run())
    answers = decode(decoded)
    assert len(answers) == 3
    for logits, output in zip(answers, trained.spy.outputs, strict=True):
        assert torch.equal(logits, output.conditional_logits)
    assert not any(decoded.spy.asked_for_reference), "the reference costs a readout"


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_guided_logits_mix_the_readouts_before_and_after_the_step(weight: float) -> None:
    training = Training()
    answers = decode(training, guidance_weight=weight)
    for logits, state, output in zip(
        answers, training.spy.states, training.spy.outputs, strict=True
    ):
        reference = training.model.read_out(state.y)
        expected = (1 - weight) * reference + weight * output.conditional_logits
        assert torch.allclose(logits, expected, atol=1e-5)


def test_the_guided_answer_is_the_next_input_where_answers_are() -> None:
    training = Training(next_input="answer")
    answers = decode(training, guidance_weight=0.0)
    # At weight 0 the answer is the reference's, which is not the conditional's.
    plain = [output.conditional_logits.argmax(dim=-1) for output in training.spy.outputs]
    for s in (1, 2):
        assert torch.equal(training.spy.inputs[s], answers[s - 1].argmax(dim=-1))
        assert not torch.equal(training.spy.inputs[s], plain[s - 1])


def test_more_and_fewer_steps_than_trained_can_be_taken() -> None:
    training = Training()
    five = decode(training, num_steps=5)
    assert training.spy.steps == [1, 2, 3, 4, 5]
    assert (five[4] - five[3]).abs().max() > 1e-4, "the state goes on"
    three = decode(Training())
    assert all(torch.equal(left, right) for left, right in zip(five, three, strict=False))
    assert [len(decode(Training(), num_steps=n)) for n in (1, 2)] == [1, 2]


def test_the_step_is_handed_over_as_a_scalar_tensor_so_that_one_graph_serves_all() -> None:
    training = Training()
    state, vectors = training.model.initial_state(2), training.table.weight[PUZZLES]
    handed: list[Tensor] = []
    training.model.register_forward_pre_hook(lambda _, arguments: handed.append(arguments[3]))
    output = run_step(training.model, vectors, state, training.inputs, 2, with_reference=True)
    assert handed[0].shape == ()
    assert handed[0].dtype == torch.int64
    direct = training.model(state, training.inputs, vectors, torch.tensor(2), True)
    assert torch.equal(output.conditional_logits, direct.conditional_logits)
    assert torch.equal(output.reference_logits, direct.reference_logits)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("targets", "nonsense"),
        ("objective", "both"),
        ("next_input", "reply"),
        ("pad_cells", "counted"),
        ("step_weights", "falling"),
    ],
)
def test_an_unknown_choice_is_refused_with_its_key_and_value(key: str, value: str) -> None:
    values = {**tiny_supervision().model_dump(), key: value}
    with pytest.raises(UserError, match=f"{key}='{value}'"):
        validate(SupervisionConfig, values, "supervision")


def test_every_registered_generator_can_be_selected() -> None:
    for name in TARGETS:
        assert tiny_supervision(targets=name).targets == name
