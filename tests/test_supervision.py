"""The inner loop: what each step sees, what it is trained towards, and what its loss is."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import (
    SEQ_LEN,
    cell_random,
    random_table,
    random_tokens,
    target_request,
    tiny_model,
    tiny_supervision,
)
from torch import Tensor, nn

from common.distributed import Ranks
from common.errors import UserError
from common.segments import Segment
from common.settings import validate
from dataset.canvas import ARC_COLOURS
from models.objective import IGNORE, stablemax_cross_entropy
from models.puzzle_embedding import PuzzleEmbedding
from models.randomness import CellRandom
from models.recursive import ArchConfig, RecursiveState, StepOutput, run_step
from models.steps import ImprovementSteps
from models.supervision import (
    DeepImprovementSupervision,
    StepResult,
    SupervisionConfig,
    segment_targets,
    step_targets,
    step_weights,
)
from models.targets import TARGETS
from models.targets.stored import MISSING
from training.sign_sgd import SparseSignSGD

I = IGNORE  # noqa: E741
PUZZLES = torch.tensor([1, 3])
SEED = 8
READINGS = ["ignored", "counted_until_replaced"]


class ScriptedRandom(CellRandom):
    """Hands out the given numbers: the lower a cell's number, the sooner it is replaced."""

    def __init__(self, numbers: list[list[float]]) -> None:
        super().__init__(0, torch.arange(len(numbers)), torch.arange(len(numbers[0])))
        object.__setattr__(self, "numbers", torch.tensor(numbers))

    def uniform(self, stream: int = 0) -> Tensor:
        numbers: Tensor = self.numbers  # type: ignore[attr-defined]
        return numbers


def window(segment: Segment, rows: Sequence[int], cells: Tensor) -> Segment:
    """Some examples of a segment of whole canvases, each seen at some cells [B, L] only."""
    chosen = torch.tensor(rows)
    return Segment(
        segment.inputs[chosen].take_along_dim(cells, 1),
        segment.labels[chosen].take_along_dim(cells, 1),
        segment.puzzle_ids[chosen],
        segment.rows[chosen],
        cells,
        None if segment.path is None else segment.path[chosen],
    )


def some(segment: Segment, rows: Sequence[int]) -> Segment:
    """Some examples of a segment, in the given order."""
    chosen = torch.tensor(rows)
    return Segment(*(None if part is None else part[chosen] for part in segment))


class Spy(nn.Module):
    """Passes calls on to a network and remembers them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.states: list[RecursiveState] = []
        self.inputs: list[Tensor] = []
        self.cells: list[Tensor | None] = []
        self.vectors: list[Tensor] = []
        self.steps: list[int] = []
        self.asked_for_reference: list[bool] = []
        self.outputs: list[StepOutput] = []
        self.readouts = 0

    @property
    def config(self) -> ArchConfig:
        return self.network.config

    def initial_state(self, batch_size: int, num_cells: int) -> RecursiveState:
        return self.network.initial_state(batch_size, num_cells)

    def read_out(self, y: Tensor) -> Tensor:
        self.readouts += 1
        return self.network.read_out(y)

    def forward(
        self,
        state: RecursiveState,
        inputs: Tensor,
        puzzle_vectors: Tensor,
        supervision_step: Tensor,
        cells: Tensor | None = None,
        with_reference: bool = False,
    ) -> StepOutput:
        self.states.append(state)
        self.inputs.append(inputs.clone())
        self.cells.append(cells)
        self.vectors.append(puzzle_vectors.detach().clone())
        self.steps.append(int(supervision_step))
        self.asked_for_reference.append(with_reference)
        output: StepOutput = self.network(
            state, inputs, puzzle_vectors, supervision_step, cells, with_reference
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
        self.supervision = DeepImprovementSupervision(
            self.config, self.model, self.spy, self.table, ARC_COLOURS, diagnostics=False
        )

    def run(self, *segments: Segment) -> Any:
        """The given segments, or else the two examples on the whole canvas."""
        whole = Segment(self.inputs, self.labels, PUZZLES, torch.arange(2))
        return self.supervision.run(segments or [whole], seed=SEED)

    def targets(self) -> Tensor:
        """What `run` trains towards: drawn from the same seed."""
        steps = self.model.config.num_supervision_steps
        random = cell_random(2, seed=SEED)
        return step_targets(self.config, target_request(self.inputs, self.labels, steps, random))


def frames(
    config: SupervisionConfig,
    inputs: list[int],
    labels: list[int],
    num_steps: int,
    order: list[float],
) -> list[list[int]]:
    targets = step_targets(
        config,
        target_request(
            torch.tensor([inputs]), torch.tensor([labels]), num_steps, ScriptedRandom([order])
        ),
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
    targets = step_targets(config, target_request(inputs, labels, 4, cell_random(2, seed)))
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
    assert [result.supervision_steps.tolist() for result in results] == [[1] * 2, [2] * 2, [3] * 2]
    assert [result.finished.tolist() for result in results] == [[False] * 2] * 2 + [[True] * 2]
    assert training.supervision.steps_per_batch == 3
    assert training.spy.steps == [1, 2, 3]
    for result in results:
        assert result.loss.shape == ()
        assert torch.equal(result.puzzle_ids, PUZZLES)


def test_the_state_is_carried_from_step_to_step() -> None:
    training = Training()
    list(training.run())
    start = training.model.initial_state(2, SEQ_LEN)
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


def five_examples() -> Segment:
    """Examples from here and there in the global batch; puzzle 1 stands there twice."""
    labels = random_tokens(2, rows=5, lowest=1)
    labels[1, 4:9] = 0
    return Segment(
        random_tokens(1, rows=5),
        labels,
        torch.tensor([1, 3, 1, 0, 4]),
        torch.tensor([40, 0, 9, 2, 17]),
    )


CUT = ([3, 1, 4], [0, 2])
"""The five examples in two segments, in another order."""
ORDER = [*CUT[0], *CUT[1]]


@pytest.mark.parametrize("pad_cells", READINGS)
@pytest.mark.parametrize("next_input", ["question", "answer"])
@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_a_batch_in_two_segments_is_trained_as_in_one(
    objective: str, next_input: str, pad_cells: str
) -> None:
    """Loss, accuracies and all gradients of every step, while the weights change in between."""
    choices = {"objective": objective, "next_input": next_input, "pad_cells": pad_cells}
    one, two = (Training(step_weights="rising", **choices) for _ in range(2))
    batch = five_examples()
    runs = zip(one.run(batch), two.run(*(some(batch, rows) for rows in CUT)), strict=True)
    for s, (whole, cut) in enumerate(runs, start=1):
        assert whole.supervision_steps.tolist() == cut.supervision_steps.tolist() == [s] * 5
        assert whole.finished.tolist() == cut.finished.tolist() == [s == 3] * 5
        torch.testing.assert_close(cut.loss, whole.loss)
        assert set(whole.figures) == {"cell_accuracy", "exact_accuracy"}
        for name, values in whole.figures.items():
            torch.testing.assert_close(cut.figures[name], values[ORDER])
        for training, result in ((one, whole), (two, cut)):
            training.model.zero_grad()
            result.loss.backward()
        assert torch.equal(cut.puzzle_ids, whole.puzzle_ids[ORDER])
        gradient = whole.puzzle_vectors.grad[ORDER]
        torch.testing.assert_close(cut.puzzle_vectors.grad, gradient, rtol=1e-4, atol=1e-7)
        assert (gradient.abs().amax(dim=1) > 1e-5).all()
        weights = zip(one.model.parameters(), two.model.parameters(), strict=True)
        for left, right in weights:
            torch.testing.assert_close(right.grad, left.grad, rtol=1e-3, atol=1e-6)
            assert left.grad.abs().max() > 1e-4
            with torch.no_grad():  # The same step for both, so that rounding does not add up.
                right -= 0.01 * left.grad.sign()
                left -= 0.01 * left.grad.sign()


def test_the_vectors_of_all_segments_are_one_leaf_in_the_order_of_their_identifiers() -> None:
    training, batch = Training(), five_examples()
    result: StepResult = next(training.run(*(some(batch, rows) for rows in CUT)))
    assert result.puzzle_ids.tolist() == [0, 3, 4, 1, 1]
    assert result.puzzle_vectors.is_leaf
    assert torch.equal(result.puzzle_vectors, training.table.weight[result.puzzle_ids])
    # Each segment has seen its own.
    assert torch.equal(training.spy.vectors[0], training.table.weight[[0, 3, 4]])
    assert torch.equal(training.spy.vectors[1], training.table.weight[[1, 1]])


def test_a_batch_in_segments_moves_the_table_by_the_rows_of_all_of_them() -> None:
    """Puzzle 1 stands in both segments: its step is the sign of the sum over both."""
    ranks = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    tables = []
    batch = five_examples()
    for cut in ([[0, 1, 2, 3, 4]], [[0, 1], [2, 3, 4]]):
        training = Training()
        before = training.table.weight.clone()
        result: StepResult = next(training.run(*(some(batch, rows) for rows in cut)))
        result.loss.backward()
        optimizer = SparseSignSGD(training.table, weight_decay=0.1, ranks=ranks)
        optimizer.step(result.puzzle_ids, result.puzzle_vectors.grad, lr=0.01)
        tables.append(training.table.weight)
        moved = (training.table.weight != before).any(dim=1)
        assert moved.tolist() == [True, True, False, True, True]
    assert torch.equal(*tables)


def test_segments_carry_their_own_states_inputs_and_cells_from_step_to_step() -> None:
    training, batch = Training(next_input="answer"), five_examples()
    cells = torch.stack([torch.arange(1, 8), torch.arange(9, 2, -1)])
    list(training.run(some(batch, CUT[0]), window(batch, CUT[1], cells)))
    spy = training.spy
    assert spy.steps == [1, 1, 2, 2, 3, 3], "all segments take a step before the weights change"
    assert [inputs.shape for inputs in spy.inputs] == [(3, 16), (2, 7)] * 3
    assert spy.states[1].y.shape == (2, 3 + 7, 16)
    for call in range(2, 6):
        assert spy.states[call] is spy.outputs[call - 2].state
        answer = spy.outputs[call - 2].conditional_logits.argmax(dim=-1)
        assert torch.equal(spy.inputs[call], answer)
    assert spy.cells[0::2] == [None] * 3
    assert all(torch.equal(given, cells) for given in spy.cells[1::2])


@st.composite
def windowed_canvases(draw: Any) -> tuple[Segment, Tensor]:
    """Two canvases, and for each as many cells: all that are not PAD in both, and some more."""
    content = [draw(st.sets(st.integers(0, SEQ_LEN - 1), max_size=10)) for _ in range(2)]
    length = draw(st.integers(max(1, *map(len, content)), SEQ_LEN))
    seed = draw(st.integers(0, 2**31))
    inputs, labels = random_tokens(seed) % 3, random_tokens(seed + 1) % 3
    cells = []
    for row, seen in enumerate(content):
        dropped = sorted(set(range(SEQ_LEN)) - seen)
        inputs[row, dropped] = labels[row, dropped] = 0
        more = draw(st.permutations(dropped))[: length - len(seen)]
        cells.append(draw(st.permutations(sorted(seen) + more)))
    rows = torch.tensor([draw(st.integers(0, 767)) for _ in range(2)])
    # Trajectories as a file may have them, for one of the two, both or none.
    path = torch.stack([random_tokens(seed + s) for s in (2, 3, 4)] + [labels], dim=1)
    path[draw(st.lists(st.booleans(), min_size=2, max_size=2))] = MISSING
    path = draw(st.sampled_from([path.to(torch.uint8), None]))
    return Segment(inputs, labels, PUZZLES, rows, path=path), torch.tensor(cells)


@pytest.mark.parametrize(
    ("name", "pad_cells"),
    [pair for pair in product(sorted(TARGETS), READINGS) if pair != ("mask", READINGS[1])],
)
@given(case=windowed_canvases(), seed=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=25)
def test_the_targets_of_a_window_are_those_of_the_whole_canvas_at_its_cells(
    name: str, pad_cells: str, case: tuple[Segment, Tensor], seed: int
) -> None:
    config = tiny_supervision(targets=name, pad_cells=pad_cells)
    whole, cells = case
    random = CellRandom(seed, whole.rows, torch.arange(SEQ_LEN))
    expected = step_targets(
        config, target_request(whole.inputs, whole.labels, 4, random, stored=whole.path)
    )
    assert torch.equal(segment_targets(config, whole, 4, SEQ_LEN, ARC_COLOURS, seed), expected)
    shown = window(whole, [0, 1], cells)
    seen = segment_targets(config, shown, 4, SEQ_LEN, ARC_COLOURS, seed)
    assert torch.equal(seen, expected.take_along_dim(cells.unsqueeze(1), dim=2))


@pytest.mark.parametrize(("pad_cells", "steps"), [(READINGS[0], {3}), (READINGS[1], {1, 2, 3})])
def test_dropped_pad_has_its_share_of_the_steps_where_it_is_counted(
    pad_cells: str, steps: set[int]
) -> None:
    """Of three cells, 0 differs, and 1 and 2 are PAD and not in the window.

    Where PAD is ignored, the one change comes last. Where it is counted, three cells change in
    three steps, in any order, whether they are seen or not.
    """
    config = tiny_supervision(pad_cells=pad_cells)
    changed_at = set()
    for seed in range(30):
        segment = Segment(
            torch.tensor([[5]]),
            torch.tensor([[7]]),
            torch.tensor([0]),
            torch.tensor([0]),
            torch.tensor([[0]]),
        )
        frames = segment_targets(config, segment, 3, 3, ARC_COLOURS, seed).flatten().tolist()
        changed_at.add(frames.index(7))
    assert changed_at == steps


@pytest.mark.parametrize("pad_cells", READINGS)
@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_the_loss_of_a_window_is_towards_the_whole_canvas_targets_at_its_cells(
    objective: str, pad_cells: str
) -> None:
    training = Training(objective=objective, pad_cells=pad_cells)
    training.labels[0, [3, 7, 8, 11]] = 0
    training.inputs[0, [3, 7, 8, 11]] = 0
    training.labels[1, [0, 1, 2, 3]] = 0
    training.inputs[1, [0, 1, 2, 3]] = 0
    whole = Segment(training.inputs, training.labels, PUZZLES, torch.arange(2))
    cells = torch.tensor([[c for c in range(16) if c not in (3, 7, 8, 11)], list(range(4, 16))])
    targets = training.targets().take_along_dim(cells.unsqueeze(1), dim=2)
    for s, result in enumerate(training.run(window(whole, [0, 1], cells)), start=1):
        output = training.spy.outputs[-1]
        expected = stablemax_cross_entropy(output.conditional_logits, targets[:, s]).mean()
        if objective == "dual":
            reference = training.model.read_out(training.spy.states[-1].y)
            expected = expected + stablemax_cross_entropy(reference, targets[:, s - 1]).mean()
        assert result.loss.item() == pytest.approx(expected.item())


class ByLength(nn.Module):
    """A network that answers the given tokens to a segment of that many cells."""

    def __init__(self, *answers: list[list[int]]) -> None:
        super().__init__()
        self.answers = {len(answer[0]): torch.tensor(answer) for answer in answers}

    def forward(self, state: RecursiveState, inputs: Tensor, *_: Any) -> StepOutput:
        logits = 9.0 * nn.functional.one_hot(self.answers[inputs.shape[1]], 12)
        return StepOutput(state, logits.requires_grad_(), None, None)


def test_segments_of_different_lengths_weigh_as_many_as_their_examples_by_hand() -> None:
    # A logit of 9 among zeros has s = 10 of 21: a right cell costs ln 2.1, a wrong one ln 21.
    right, wrong = math.log(2.1), math.log(21)
    one = Segment(
        torch.tensor([[2, 2]]),
        torch.tensor([[3, 4]]),
        torch.tensor([0]),
        torch.tensor([1]),
        torch.tensor([[5, 0]]),
    )
    # The last cell of the first example is not counted, and wrong.
    two = Segment(
        torch.tensor([[2, 2, 2, 2], [2, 2, 2, 2]]),
        torch.tensor([[5, 6, 7, 0], [5, 6, 7, 8]]),
        torch.tensor([1, 2]),
        torch.tensor([2, 0]),
        torch.tensor([[0, 1, 2, 3], [4, 5, 6, 15]]),
    )
    network = ByLength([[3, 4]], [[5, 6, 11, 9], [5, 6, 7, 8]])
    config = tiny_supervision(targets="final", step_weights="rising")
    supervision = DeepImprovementSupervision(
        config, tiny_model(), network, random_table(), ARC_COLOURS, diagnostics=False
    )
    results = list(supervision.run([one, two], seed=0))
    of_examples = [right, (2 * right + wrong) / 3, right]
    for weight, result in zip((0.5, 1, 1.5), results, strict=True):
        assert result.loss.item() == pytest.approx(weight * sum(of_examples) / 3)
        assert result.figures["cell_accuracy"].tolist() == pytest.approx([1, 2 / 3, 1])
        assert result.figures["exact_accuracy"].tolist() == [1, 0, 1]


class Scripted(nn.Module):
    """A network that answers the given canvases, step after step."""

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, state: RecursiveState, *rest: Any) -> StepOutput:
        logits = 9.0 * nn.functional.one_hot(self.answers[int(rest[2]) - 1], 12)
        return StepOutput(state, logits.requires_grad_(), None, None)


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
        ARC_COLOURS,
        diagnostics=False,
    )
    batch = [Segment(random_tokens(1), labels, PUZZLES, torch.arange(2))]
    results = list(supervision.run(batch, seed=0))
    assert [result.figures["exact_accuracy"].tolist() for result in results] == [
        [1, 1],
        [0, 1],
        [1, 1],
    ]
    # Half of the eight counted cells of one of the two examples are wrong.
    assert [result.figures["cell_accuracy"].tolist() for result in results] == [
        [1, 1],
        [0.5, 1],
        [1, 1],
    ]


def decode(
    training: Training,
    num_steps: int | None = None,
    guidance_weight: float = 1.0,
    cells: Tensor | None = None,
) -> list[Tensor]:
    steps = ImprovementSteps(
        training.spy,
        training.table,
        training.config,
        num_steps,
        guidance_weight,
    )
    inputs = training.inputs if cells is None else training.inputs.take_along_dim(cells, 1)
    with torch.no_grad():
        return [step.logits for step in steps.run(inputs, PUZZLES, cells)]


@pytest.mark.parametrize("next_input", ["question", "answer"])
def test_plain_decoding_repeats_the_forward_passes_of_training(next_input: str) -> None:
    trained, decoded = Training(next_input=next_input), Training(next_input=next_input)
    list(trained.run())
    answers = decode(decoded)
    assert len(answers) == 3
    for logits, output in zip(answers, trained.spy.outputs, strict=True):
        assert torch.equal(logits, output.conditional_logits)
    assert decoded.spy.readouts == 0, "the reference costs a readout"


WINDOW = torch.tensor([[0, 1, 2, 4, 5, 6, 15], [3, 14, 9, 1, 8, 12, 0]])
"""Seven cells of each of the two examples: in order, and not."""


@pytest.mark.parametrize("next_input", ["question", "answer"])
def test_a_window_is_decoded_by_the_forward_passes_it_is_trained_by(next_input: str) -> None:
    trained, decoded = Training(next_input=next_input), Training(next_input=next_input)
    whole = Segment(trained.inputs, trained.labels, PUZZLES, torch.arange(2))
    list(trained.run(window(whole, [0, 1], WINDOW)))
    answers = decode(decoded, cells=WINDOW)
    assert [answer.shape for answer in answers] == [(2, 7, 12)] * 3
    for logits, output in zip(answers, trained.spy.outputs, strict=True):
        assert torch.equal(logits, output.conditional_logits)
    for spy in (trained.spy, decoded.spy):
        assert all(torch.equal(cells, WINDOW) for cells in spy.cells)
        assert len(spy.cells) == 3
    elsewhere = decode(Training(next_input=next_input), cells=(WINDOW + 1) % SEQ_LEN)
    assert (elsewhere[0] - answers[0]).abs().max() > 0.01


def test_decoding_all_cells_in_order_is_decoding_the_whole_canvas() -> None:
    all_cells = torch.arange(SEQ_LEN).expand(2, -1)
    for weight in (1.0, 2.0):
        whole = decode(Training(next_input="answer"), guidance_weight=weight)
        listed = decode(Training(next_input="answer"), guidance_weight=weight, cells=all_cells)
        torch.testing.assert_close(listed, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cells", [None, WINDOW], ids=["whole", "window"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_guided_logits_mix_the_readouts_before_and_after_the_step(
    weight: float, cells: Tensor | None
) -> None:
    training = Training()
    answers = decode(training, guidance_weight=weight, cells=cells)
    for logits, state, output in zip(
        answers, training.spy.states, training.spy.outputs, strict=True
    ):
        reference = training.model.read_out(state.y)
        expected = (1 - weight) * reference + weight * output.conditional_logits
        assert torch.allclose(logits, expected, atol=1e-5)
    assert not any(training.spy.asked_for_reference)
    assert training.spy.readouts == 1, "after that, it is what the step before read out"


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
    state, vectors = training.model.initial_state(2, SEQ_LEN), training.table.weight[PUZZLES]
    cells = torch.arange(SEQ_LEN).flip(0).expand(2, -1)
    handed: list[Tensor] = []
    training.model.register_forward_pre_hook(lambda _, arguments: handed.append(arguments[3]))
    output = run_step(training.model, vectors, state, training.inputs, 2, cells, True)
    assert handed[0].shape == ()
    assert handed[0].dtype == torch.int64
    direct = training.model(state, training.inputs, vectors, torch.tensor(2), cells, True)
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
