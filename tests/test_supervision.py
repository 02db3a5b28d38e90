"""The steps of a batch: what each sees, what it is trained towards, and what its loss is."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.errors import UserError
from common.packed import NO_TOKEN, PackedBatch
from common.settings import validate
from common.tokens import MISSING
from dataset.canvas import ARC_COLOURS
from models.objective import IGNORE, stablemax_cross_entropy
from models.puzzle_embedding import PuzzleTable
from models.randomness import CellRandom
from models.recursive import RecursiveState, StepOutput
from models.steps import TrainedModel
from models.supervision import (
    Progress,
    StepResult,
    SupervisionConfig,
    packed_targets,
    step_certainty,
    step_targets,
    step_weights,
)
from models.targets import TARGETS
from tiny import (
    PREFIX,
    SEQ_LEN,
    cell_random,
    packed,
    random_table,
    random_tokens,
    target_request,
    tiny_model,
    tiny_supervision,
)

I = IGNORE  # noqa: E741
PUZZLES = torch.tensor([1, 3])
SEED = 8
READINGS = ["ignored", "counted_until_replaced"]
WINDOWS = [[0, 1, 2, 4, 5, 6, 15], [3, 14, 9, 1, 8]]
"""Cells of two examples: in order, and not."""


def two_examples(**choices: Any) -> PackedBatch:
    """Without PAD in their solutions."""
    labels = random_tokens(2, lowest=1)
    return packed(random_tokens(1), labels, **{"puzzle_ids": PUZZLES, **choices})


class Call(NamedTuple):
    """One call of the network, its arguments as they were."""

    state: RecursiveState
    inputs: Tensor
    vectors: Tensor
    step: int
    with_reference: bool
    output: StepOutput


class Training:
    """A tiny model under supervision, watched."""

    def __init__(
        self, batch: PackedBatch | None = None, batch_size: int = 2, **supervision: Any
    ) -> None:
        self.calls: list[Call] = []
        self.readouts = 0
        self.model = tiny_model()
        self.model.register_forward_hook(self._record)
        self.model.readout.register_forward_hook(self._count)
        self.table = random_table()
        self.batch = two_examples() if batch is None else batch
        self.supervision = tiny_supervision(self.model, self.table, batch_size, **supervision)

    def _record(self, _: nn.Module, arguments: tuple[Any, ...], output: StepOutput) -> None:
        state, inputs, vectors, step, *_, with_reference = arguments
        # Copies: a step writes what it leaves into the place of what it found.
        state = RecursiveState(*(part.clone() for part in state))
        vectors = vectors.detach().clone()
        self.calls.append(Call(state, inputs.clone(), vectors, int(step), with_reference, output))

    def _count(self, *_: Any) -> None:
        self.readouts += 1

    def run(self) -> Iterator[StepResult]:
        progress = self.supervision.begin(self.batch, SEED, None)
        for _ in range(self.supervision.steps_per_batch):
            yield self.supervision.step(progress)

    def decode(self, num_steps: int = 3, guidance_weight: float = 1.0) -> list[Tensor]:
        """Logits of every step at test time."""
        trained = TrainedModel(self.model, self.table, self.supervision.config)
        with torch.no_grad():
            steps = trained.improve(self.batch, num_steps, guidance_weight)
            return [step.logits for step in steps]


def answer(call: Call, batch: PackedBatch) -> Tensor:
    """The tokens [N] that a call's logits mean, NO_TOKEN in prefixes."""
    found = call.output.conditional_logits.argmax(dim=-1)
    return torch.where(batch.cells >= 0, found, NO_TOKEN)


# ---- targets and weights ---------------------------------------------------------------------


class ScriptedRandom(CellRandom):
    """Hands out the given numbers: the lower a cell's number, the sooner it is replaced."""

    def __init__(self, numbers: list[float]) -> None:
        super().__init__(0, torch.arange(1), torch.arange(len(numbers)))
        object.__setattr__(self, "numbers", torch.tensor([numbers]))

    def uniform(self, stream: int = 0) -> Tensor:
        numbers: Tensor = self.numbers  # type: ignore[attr-defined]
        return numbers


@pytest.mark.parametrize(
    ("readings", "labels", "order", "expected"),
    [
        # Cells 0 and 2 differ; cell 2 holds a colour that the solution leaves empty, cell 3 is
        # empty in both. Cell 2 is replaced first, and is never counted all the same.
        (
            READINGS[:1],
            [7, 3, 0, 0],
            [0.4, 0.3, 0.2, 0.1],
            [[5, 3, I, I], [5, 3, I, I], [5, 3, I, I], [7, 3, I, I]],
        ),
        # All cells whose solution is PAD differ, the empty cell 3 too: with cell 0 three cells to
        # replace in three steps, in the order 3, 0, 2. Until then the input's token is the target.
        (
            READINGS[1:],
            [7, 3, 0, 0],
            [0.2, 0.1, 0.4, 0.1],
            [[5, 3, 6, 0], [5, 3, 6, I], [7, 3, 6, I], [7, 3, I, I]],
        ),
        # Both agree on a solution without PAD.
        (
            READINGS,
            [7, 4, 6, 2],
            [0.3, 0.1, 0.2, 0.4],
            [[5, 3, 6, 0], [5, 4, 6, 0], [7, 4, 6, 0], [7, 4, 6, 2]],
        ),
    ],
)
def test_targets_by_hand(
    readings: list[str], labels: list[int], order: list[float], expected: list[list[int]]
) -> None:
    inputs, solution = torch.tensor([[5, 3, 6, 0]]), torch.tensor([labels])
    for reading in readings:
        config = SupervisionConfig(pad_cells=reading)
        request = target_request(inputs, solution, 3, ScriptedRandom(order))
        assert step_targets(config, request)[0].tolist() == expected


def test_uniform_weights_are_1_and_rising_weights_have_mean_1() -> None:
    assert step_weights("uniform", 4) == [1, 1, 1, 1]
    assert step_weights("rising", 3) == [0.5, 1, 1.5]
    assert step_weights("rising", 6) == pytest.approx([2 / 7, 4 / 7, 6 / 7, 8 / 7, 10 / 7, 12 / 7])
    assert step_weights("rising", 1) == [1]
    assert sum(step_weights("rising", 16)) == pytest.approx(16)


# ---- the steps -------------------------------------------------------------------------------


def test_a_batch_takes_all_steps_in_order() -> None:
    training = Training()
    for s, result in enumerate(training.run(), start=1):
        assert result.supervision_steps.tolist() == [s, s]
        assert result.finished.tolist() == [s == 3] * 2
        assert result.loss.shape == () and not result.loss.requires_grad
    assert [call.step for call in training.calls] == [1, 2, 3]
    progress = training.supervision.begin(training.batch, SEED, None)
    assert training.supervision.carried(progress) == {}, "a batch is done when its steps are"
    assert training.supervision.resumed(training.batch, {}) is None


def test_the_state_is_carried_from_step_to_step() -> None:
    training = Training()
    list(training.run())
    start = training.model.initial_state(len(training.batch.inputs))
    states = [start, *(call.output.state for call in training.calls)]
    for call, expected in zip(training.calls, states, strict=False):
        assert torch.equal(call.state.y, expected.y)
        assert torch.equal(call.state.z, expected.z)


@pytest.mark.parametrize("next_input", ["question", "answer"])
def test_a_step_reads_the_question_or_the_models_own_answer(next_input: str) -> None:
    batch = two_examples(cells=WINDOWS, fill=(7, 0))
    question = batch.inputs.clone()
    training = Training(batch, next_input=next_input)
    list(training.run())
    assert torch.equal(batch.inputs, question), "the batch stays as it is"
    assert torch.equal(training.calls[0].inputs, question)
    for before, after in zip(training.calls, training.calls[1:], strict=False):
        read = answer(before, batch) if next_input == "answer" else question
        assert not torch.equal(answer(before, batch), question)
        assert torch.equal(after.inputs[:-7], read[:-7])
        assert torch.equal(after.inputs[-7:], question[-7:]), "there is no cell"


@pytest.mark.parametrize("targets", ["linear", "expected"])
def test_all_that_a_step_reads_and_changes_stays_where_it_is_in_memory(targets: str) -> None:
    """As a captured CUDA graph needs it; also when another batch's progress is taken over."""
    training = Training(next_input="answer", objective="dual", targets=targets)
    progress, other = (training.supervision.begin(training.batch, seed, None) for seed in (1, 2))
    places = [tensor.data_ptr() for tensor in progress.tensors()]
    assert len(set(places)) == len(places) - 1, "the puzzles under way are the batch's"
    for _ in range(3):
        before = [tensor.clone() for tensor in progress.tensors()]
        training.supervision.step(progress)
        assert [tensor.data_ptr() for tensor in progress.tensors()] == places
        changed = zip(before, progress.tensors(), strict=True)
        assert sum(not torch.equal(old, new) for old, new in changed) == 5, "y, z, inputs, ..."
    progress.copy_(other)
    assert [tensor.data_ptr() for tensor in progress.tensors()] == places
    for own, new in zip(progress.tensors(), other.tensors(), strict=True):
        assert torch.equal(own, new)


def mean_loss(batch: PackedBatch, logits: Tensor, targets: Tensor, batch_size: int) -> float:
    """The mean over the global batch of the examples' means over their counted cells."""
    losses = stablemax_cross_entropy(logits, targets)
    means = []
    for example in range(int(batch.is_example.sum())):
        counted = (batch.sequence == example) & (targets != IGNORE)
        means.append(losses[counted].mean().item())
    return sum(means) / batch_size


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("weights", ["uniform", "rising"])
@pytest.mark.parametrize("pad_cells", READINGS)
@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_the_loss_is_the_cross_entropy_with_the_steps_own_target(
    objective: str, pad_cells: str, weights: str, windows: bool
) -> None:
    """With the dual objective, also of the incoming answer with the target before.

    In a window, the targets are those of the whole canvas at its cells. The batch is a part of a
    global one of five examples, and is filled up.
    """
    inputs, labels = random_tokens(1), random_tokens(2, lowest=1)
    for row, cells in enumerate(WINDOWS):
        empty = [cell for cell in range(SEQ_LEN) if cell not in cells]
        labels[row, empty] = inputs[row, empty] = 0
    cells = WINDOWS if windows else None
    batch = packed(inputs, labels, cells, fill=(4, 0), puzzle_ids=PUZZLES)
    choices = {"objective": objective, "step_weights": weights, "pad_cells": pad_cells}
    training = Training(batch, batch_size=5, **choices)
    request = target_request(inputs, labels, 3, cell_random(2, seed=SEED))
    frames = step_targets(training.supervision.config, request)
    factors = {"uniform": [1, 1, 1], "rising": [0.5, 1, 1.5]}[weights]

    def loss(logits: Tensor, step: int) -> float:
        at_cells = frames[batch.sequence.clamp(max=1), step, batch.cells]
        targets = at_cells.masked_fill((batch.cells < 0) | (batch.sequence > 1), IGNORE)
        return mean_loss(batch, logits, targets, batch_size=5)

    for s, result in enumerate(training.run(), start=1):
        call = training.calls[-1]
        expected = loss(call.output.conditional_logits, s)
        # Another frame's would not do: it differs by more than rounding.
        assert loss(call.output.conditional_logits, 0) != pytest.approx(expected, rel=1e-4)
        if objective == "dual":
            expected += loss(training.model.read_out(call.state.y), s - 1)
        assert result.loss.item() == pytest.approx(factors[s - 1] * expected, rel=1e-5)
        assert call.with_reference == (objective == "dual"), "the reference costs a readout"


def test_gradients_add_up_in_the_parameters_and_what_fills_up_has_none() -> None:
    once, twice = (Training(two_examples(fill=(5, 0))) for _ in range(2))
    result = next(once.run())
    assert result.puzzle_gradient.shape == (4, 16)
    assert (result.puzzle_gradient != 0).any(dim=1).tolist() == [True, True, False, False]
    assert not once.table.weight.requires_grad
    for _ in range(2):
        again = next(twice.run())
        torch.testing.assert_close(again.puzzle_gradient, result.puzzle_gradient)
    for one, two in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        assert torch.allclose(two.grad, 2 * one.grad)
        assert one.grad.abs().max() > 1e-4


def test_the_dual_objective_trains_the_readout_of_the_incoming_answer() -> None:
    gradients = {}
    for objective in ("dis", "dual"):
        training = Training(objective=objective)
        next(training.run())
        gradients[objective] = training.model.readout.weight.grad
    assert (gradients["dual"] - gradients["dis"]).abs().max() > 1e-3


def test_a_step_sees_the_weights_that_the_step_before_has_changed() -> None:
    training = Training()
    run = training.run()
    next(run)
    before = training.table.weight[PUZZLES].clone()
    training.table.weight[1] += 1
    with torch.no_grad():
        training.model.readout.weight.zero_()
    next(run)
    assert torch.equal(training.calls[0].vectors, before)
    assert torch.equal(training.calls[1].vectors, before + torch.tensor([[1.0], [0.0]]))
    assert training.calls[1].output.conditional_logits.abs().max() == 0


def test_a_new_table_is_zero_and_looks_rows_up_as_leaves() -> None:
    table = PuzzleTable(4, 3)
    assert table.weight.tolist() == [[0.0] * 3] * 4
    table.weight[2] = 5
    rows = table.lookup(torch.tensor([2, 0, 2]))
    assert rows.tolist() == [[5.0] * 3, [0.0] * 3, [5.0] * 3]
    assert rows.is_leaf
    assert rows.requires_grad
    with torch.no_grad():
        rows += 1
    assert table.weight[2].tolist() == [5.0] * 3, "a copy, not a view"


# ---- micro-batches and windows ---------------------------------------------------------------


@pytest.mark.parametrize("pad_cells", READINGS)
@pytest.mark.parametrize("next_input", ["question", "answer"])
@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_micro_batches_add_up_to_the_batch(objective: str, next_input: str, pad_cells: str) -> None:
    """Loss, metrics and all gradients of every step, in another order and filled up.

    Examples have their places in the global batch, which what is random hangs on.
    """
    inputs, labels = random_tokens(1, rows=5), random_tokens(2, rows=5, lowest=1)
    labels[1, 4:9] = 0
    cells = [list(range(SEQ_LEN)), *WINDOWS, [0], [4, 5, 6]]
    puzzles, places = torch.tensor([1, 3, 1, 0, 4]), torch.tensor([40, 0, 9, 2, 17])

    def part(*rows: int, fill: tuple[int, ...] = ()) -> PackedBatch:
        own, seen = list(rows), [cells[row] for row in rows]
        of_parts = {"puzzle_ids": puzzles[own], "rows": places[own]}
        return packed(inputs[own], labels[own], seen, fill, **of_parts)

    choices = {"objective": objective, "next_input": next_input, "pad_cells": pad_cells}
    whole, one, two = (
        Training(batch, 5, step_weights="rising", diagnostics=True, **choices)
        for batch in (part(0, 1, 2, 3, 4), part(3, 1, 4, fill=(6, 0)), part(0, 2))
    )
    for of_whole, *of_parts in zip(whole.run(), one.run(), two.run(), strict=True):
        torch.testing.assert_close(sum(part.loss for part in of_parts), of_whole.loss)
        for name, values in of_whole.metrics.items():
            metrics = torch.cat([of_parts[0].metrics[name][:3], of_parts[1].metrics[name]])
            torch.testing.assert_close(metrics, values[[3, 1, 4, 0, 2]], atol=1e-5, rtol=1e-4)
        gradient = torch.cat([of_parts[0].puzzle_gradient[:3], of_parts[1].puzzle_gradient])
        expected = of_whole.puzzle_gradient[[3, 1, 4, 0, 2]]
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-7)
        assert (expected.abs().amax(dim=1) > 1e-5).all()
        for tensors in zip(*(t.model.parameters() for t in (whole, one, two)), strict=True):
            gradients = [tensor.grad for tensor in tensors]
            assert gradients[0].abs().max() > 1e-4
            torch.testing.assert_close(sum(gradients[1:]), gradients[0], rtol=1e-3, atol=1e-6)
            step = 0.01 * gradients[0].sign()
            for tensor in tensors:  # The same step for all, so that rounding does not add up.
                tensor.data -= step
                tensor.grad = None


@st.composite
def windowed_canvases(draw: Any) -> tuple[Tensor, Tensor, list[list[int]], dict[str, Tensor]]:
    """Two canvases, and for each some cells: all that are not PAD in both, and some more."""
    seed = draw(st.integers(0, 2**31))
    inputs, labels = random_tokens(seed) % 3, random_tokens(seed + 1) % 3
    cells = []
    for row in range(2):
        shown = draw(st.sets(st.integers(0, SEQ_LEN - 1), min_size=1, max_size=10))
        dropped = sorted(set(range(SEQ_LEN)) - shown)
        inputs[row, dropped] = labels[row, dropped] = 0
        more = draw(st.sets(st.sampled_from(dropped)))
        cells.append(draw(st.permutations(sorted(shown | more))))
    parts = {"rows": torch.tensor([draw(st.integers(0, 767)) for _ in range(2)])}
    if draw(st.booleans()):
        # Trajectories as a file may have them, for one of the two, both or none.
        path = torch.stack([random_tokens(seed + s) for s in (2, 3, 4)] + [labels], dim=1)
        path[draw(st.lists(st.booleans(), min_size=2, max_size=2))] = MISSING
        parts["path"] = path.to(torch.uint8)
    return inputs, labels, cells, parts


@pytest.mark.parametrize(
    ("name", "pad_cells"),
    [
        (name, reading)
        for name, reading in product(sorted(TARGETS), READINGS)
        if reading == "ignored" or not TARGETS[name].pad_ignored
    ],
)
@given(case=windowed_canvases(), seed=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=25)
def test_the_targets_of_a_window_are_those_of_the_whole_canvas_at_its_cells(
    name: str, pad_cells: str, case: Any, seed: int
) -> None:
    config = SupervisionConfig(targets=name, pad_cells=pad_cells)
    inputs, labels, cells, parts = case
    batch = packed(inputs, labels, cells, fill=(5, 0), **parts)
    random = CellRandom(seed, parts["rows"], torch.arange(SEQ_LEN))
    request = target_request(inputs, labels, 4, random, stored=parts.get("path"))
    frames = step_targets(config, request)
    no_cell = torch.full((5, PREFIX), IGNORE)
    expected = [
        no_cell,
        frames[0][:, cells[0]],
        no_cell,
        frames[1][:, cells[1]],
        torch.full((5, 5), IGNORE),
    ]
    found, certainty = packed_targets(config, batch, 4, SEQ_LEN, ARC_COLOURS, seed)
    assert torch.equal(found, torch.cat(expected, dim=1))
    of_canvases = step_certainty(config, request)
    if of_canvases is None or certainty is None:
        assert certainty is of_canvases
    else:
        assert torch.equal(certainty, torch.cat([of_canvases, torch.zeros(2, 5)]).T)


@pytest.mark.parametrize(("pad_cells", "steps"), [(READINGS[0], {3}), (READINGS[1], {1, 2, 3})])
def test_dropped_pad_has_its_share_of_the_steps_where_it_is_counted(
    pad_cells: str, steps: set[int]
) -> None:
    """Of three cells, 0 differs, and 1 and 2 are PAD and not in the window.

    Where PAD is ignored, the one change comes last. Where it is counted, three cells change in
    three steps, in any order, whether they are seen or not.
    """
    config = SupervisionConfig(pad_cells=pad_cells)
    batch = packed(torch.tensor([[5, 0, 0]]), torch.tensor([[7, 0, 0]]), [[0]])
    changed_at = {
        packed_targets(config, batch, 3, 3, ARC_COLOURS, seed)[0][:, -1].tolist().index(7)
        for seed in range(30)
    }
    assert changed_at == steps


class Scripted(nn.Module):
    """A network that answers the given tokens [N]."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, state: RecursiveState, _: Tensor, vectors: Tensor, *more: Any) -> StepOutput:
        logits = 9.0 * nn.functional.one_hot(self.tokens, 12) + 0 * vectors.sum()
        return StepOutput(state, logits, None, None)


@pytest.mark.parametrize("pad_cells", READINGS)
def test_examples_weigh_alike_however_many_cells_they_count_by_hand(pad_cells: str) -> None:
    """Accuracies are against the solution, whatever the step's target."""
    # A logit of 9 among zeros has s = 10 of 21: a right cell costs ln 2.1, a wrong one ln 21.
    right, wrong = math.log(2.1), math.log(21)
    labels = torch.tensor([[3, 4, 0, 0], [5, 6, 7, 0], [5, 6, 7, 8]])
    # The last cell of the second is not counted, and wrong.
    answers = torch.tensor([[3, 4, 0, 0], [5, 6, 11, 9], [5, 6, 7, 8]])
    cells = [[0, 1], [0, 1, 2, 3], [3, 2, 1, 0]]
    batch = packed(torch.full((3, 4), 2), labels, cells, fill=(6, 0))
    training = Training(batch, 3, targets="final", step_weights="rising", pad_cells=pad_cells)
    scripted = Scripted(packed(answers, None, cells, (6, 0)).inputs.clamp(min=0))
    training.model.forward = scripted.forward
    training.model.seq_len = 4
    of_examples = [right, (2 * right + wrong) / 3, right]
    for weight, result in zip((0.5, 1, 1.5), training.run(), strict=True):
        assert result.loss.item() == pytest.approx(weight * sum(of_examples) / 3)
        assert result.metrics["cell_accuracy"].tolist() == pytest.approx([1, 2 / 3, 1, 0, 0])
        assert result.metrics["exact_accuracy"].tolist() == [1, 0, 1, 0, 0]


# ---- the linear path in expectation ----------------------------------------------------------

NUM_PATHS = 300
STANDARD_ERRORS = 4
"""How far a mean over paths may be from the expectation, in each of its numbers."""


class Fixed(nn.Module):
    """A network whose logits l_c and l_u are parameters, whatever it is asked."""

    def __init__(self, tokens: Tensor) -> None:
        """Logits [N, V] lean to the tokens [N], more or less from place to place."""
        super().__init__()
        places = torch.arange(len(tokens)).unsqueeze(1)
        lean = (1 + places % 5) * nn.functional.one_hot(tokens, 12)
        self.conditional = nn.Parameter(torch.sin(3.0 * places + torch.arange(12)) + lean)
        self.reference = nn.Parameter(torch.cos(2.0 * places + torch.arange(12)) + 2 * lean)

    def forward(self, state: RecursiveState, _: Tensor, vectors: Tensor, *more: Any) -> StepOutput:
        return StepOutput(state, self.conditional + 0 * vectors.sum(), self.reference, None)


class FixedTraining(Training):
    """Supervision of fixed logits."""

    def __init__(self, batch: PackedBatch, **supervision: Any) -> None:
        super().__init__(batch, **supervision)
        self.network = Fixed(batch.labels)
        self.model.forward = self.network.forward

    def measure(self, seed: int, certainty: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of each step the loss [S] and its gradient by all logits [S, ...]; of another a_s."""
        progress = self.supervision.begin(self.batch, seed, None)
        if certainty is not None:
            assert progress.certainty is not None
            progress.certainty[:, :2] = certainty
        losses, gradients = [], []
        for _ in range(3):
            self.network.zero_grad()
            losses.append(self.supervision.step(progress).loss)
            taken = [p.grad for p in self.network.parameters() if p.grad is not None]
            gradients.append(torch.stack(taken))
        return torch.stack(losses), torch.stack(gradients)


def path_batch() -> PackedBatch:
    """Two windows with 7 and 4 cells that differ, five of the 7 because their solution is PAD."""
    inputs, labels = torch.zeros(2, 2, SEQ_LEN, dtype=torch.int64)
    inputs[0, WINDOWS[0]] = torch.tensor([2, 3, 4, 5, 6, 7, 8])
    labels[0, WINDOWS[0]] = torch.tensor([4, 0, 0, 7, 0, 0, 0])
    inputs[1, WINDOWS[1]] = torch.tensor([2, 3, 4, 5, 6])
    labels[1, WINDOWS[1]] = torch.tensor([5, 6, 4, 8, 9])
    return packed(inputs, labels, WINDOWS, fill=(4, 0))


def agrees(samples: Tensor, expected: Tensor) -> bool:
    """Whether each mean over the first axis is within some standard errors of what is expected."""
    error = samples.std(dim=0) / len(samples) ** 0.5
    distance = (samples.mean(dim=0) - expected).abs()
    return bool((distance <= STANDARD_ERRORS * error + 1e-6).all())


def test_loss_and_gradient_of_expected_are_the_means_over_many_linear_paths() -> None:
    """And those of no other mixture: not without rounding down, not of the cells that count."""
    choices = {"objective": "dual", "step_weights": "rising"}  # Both terms at once.
    linear, expected = (
        FixedTraining(path_batch(), targets=name, **choices) for name in ("linear", "expected")
    )
    samples = [linear.measure(seed) for seed in range(NUM_PATHS)]
    losses, gradients = (torch.stack(values) for values in zip(*samples, strict=True))

    def judged(*of_examples: list[float]) -> tuple[bool, bool]:
        certainty = torch.tensor(of_examples).T if of_examples else None
        loss, gradient = expected.measure(0, certainty)
        return agrees(losses, loss), agrees(gradients, gradient)

    assert judged() == (True, True)
    assert judged([0, 2 / 7, 4 / 7, 1], [0, 1 / 4, 1 / 2, 1]) == (True, True), "the same by hand"
    assert judged([0, 1 / 3, 2 / 3, 1], [0, 1 / 3, 2 / 3, 1]) == (False, False)
    assert judged([0, 0 / 2, 1 / 2, 1], [0, 1 / 4, 1 / 2, 1]) == (False, False)


@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_the_loss_of_expected_mixes_those_of_question_and_solution(objective: str) -> None:
    """Of a network's own logits, in whole numbers of cells; the last target is certain."""
    batch = path_batch()
    training = Training(batch, targets="expected", objective=objective)
    solution = batch.labels.masked_fill(batch.labels == 0, IGNORE)
    question = batch.inputs.masked_fill(solution == IGNORE, IGNORE)
    of_examples = torch.tensor([[0, 2 / 7, 4 / 7, 1], [0, 1 / 4, 1 / 2, 1], [0] * 4, [0] * 4])

    def loss(logits: Tensor, step: int) -> float:
        share = of_examples[batch.sequence, step]
        right, unchanged = (stablemax_cross_entropy(logits, t) for t in (solution, question))
        losses = share * right + (1 - share) * unchanged
        means = [losses[(batch.sequence == n) & (solution != IGNORE)].mean() for n in (0, 1)]
        return sum(mean.item() for mean in means) / 2

    for s, result in enumerate(training.run(), start=1):
        call = training.calls[-1]
        expected = loss(call.output.conditional_logits, s)
        if objective == "dual":
            expected += loss(training.model.read_out(call.state.y), s - 1)
        assert result.loss.item() == pytest.approx(expected, rel=1e-5)


def test_nothing_about_expected_is_random_and_no_other_target_is_uncertain() -> None:
    batch = path_batch()

    def begun(name: str, seed: int) -> Progress:
        return Training(batch, targets=name).supervision.begin(batch, seed, None)

    one, other = begun("expected", 1), begun("expected", 2)
    assert all(torch.equal(*pair) for pair in zip(one.tensors(), other.tensors(), strict=True))
    uncertain = [name for name in sorted(TARGETS) if begun(name, 1).certainty is not None]
    assert uncertain == ["expected"]


def test_a_step_trains_towards_the_path_that_its_power_gives() -> None:
    """Of seven and four cells that differ, power 2 replaces floor(35/9) and floor(20/9) first."""
    batch = path_batch()
    for name in ("linear", "expected"):
        config = SupervisionConfig(targets=name, path_power=2)
        targets, certainty = packed_targets(config, batch, 3, SEQ_LEN, ARC_COLOURS, SEED)
        if certainty is not None:
            assert certainty[1, :2].tolist() == pytest.approx([3 / 7, 2 / 4])
        else:
            assert (targets[1] == batch.labels)[batch.sequence == 1].sum() == 1 + 2


# ---- at test time ----------------------------------------------------------------------------

shown = pytest.mark.parametrize("cells", [None, WINDOWS], ids=["whole", "window"])


@shown
@pytest.mark.parametrize("next_input", ["question", "answer"])
def test_plain_decoding_repeats_the_forward_passes_of_training(
    next_input: str, cells: list[list[int]] | None
) -> None:
    batch = two_examples(cells=cells, fill=(3, 0))
    trained, decoded = (Training(batch, next_input=next_input) for _ in range(2))
    list(trained.run())
    answers = decoded.decode()
    for logits, call in zip(answers, trained.calls, strict=True):
        assert torch.equal(logits, call.output.conditional_logits)
    assert len(answers) == decoded.readouts == 3, "a reference would cost a readout"


@shown
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_guided_logits_mix_the_readouts_before_and_after_the_step(
    weight: float, cells: list[list[int]] | None
) -> None:
    training = Training(two_examples(cells=cells))
    answers = training.decode(guidance_weight=weight)
    assert training.readouts == 3 + 1, "after the first, it is what the step before read out"
    for logits, call in zip(answers, training.calls, strict=True):
        reference = training.model.read_out(call.state.y)
        expected = (1 - weight) * reference + weight * call.output.conditional_logits
        assert torch.allclose(logits, expected, atol=1e-5)
        assert not call.with_reference


def test_the_guided_answer_is_the_next_input_where_answers_are() -> None:
    training = Training(next_input="answer")
    is_cell = training.batch.is_cell
    answers = training.decode(guidance_weight=0.0)
    for logits, before, after in zip(answers, training.calls, training.calls[1:], strict=False):
        assert torch.equal(after.inputs[is_cell], logits.argmax(dim=-1)[is_cell])
        assert (after.inputs[~is_cell] == NO_TOKEN).all()
        # At weight 0 the answer is the reference's, which is not the conditional's.
        assert not torch.equal(after.inputs, answer(before, training.batch))


def test_more_and_fewer_steps_than_trained_can_be_taken() -> None:
    training = Training()
    five = training.decode(num_steps=5)
    assert [call.step for call in training.calls] == [1, 2, 3, 4, 5]
    assert (five[4] - five[3]).abs().max() > 1e-4, "the state goes on"
    for n in (1, 2, 3):
        fewer = Training().decode(num_steps=n)
        assert all(torch.equal(left, right) for left, right in zip(five[:n], fewer, strict=True))


@pytest.mark.parametrize("key", ["targets", "objective", "next_input", "pad_cells", "step_weights"])
def test_an_unknown_choice_is_refused_with_its_key_and_value(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}='nonsense'"):
        validate(SupervisionConfig, {key: "nonsense"}, "supervision")
