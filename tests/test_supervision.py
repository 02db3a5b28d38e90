"""The inner loop: what each step sees, what it is trained towards, and what its loss is."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SEQ_LEN, cell_random, random_table, random_tokens, target_request, tiny_model
from torch import Tensor, nn

from common.distributed import Ranks
from common.errors import UserError
from common.segments import MISSING, Segment
from common.settings import validate
from dataset.canvas import ARC_COLOURS
from models.objective import IGNORE, stablemax_cross_entropy
from models.puzzle_embedding import PuzzleEmbedding
from models.randomness import CellRandom
from models.recursive import RecursiveState, StepOutput, run_step
from models.steps import TrainedModel
from models.supervision import (
    DeepImprovementSupervision,
    StepResult,
    SupervisionConfig,
    segment_targets,
    step_targets,
    step_weights,
)
from models.targets import TARGETS
from training.optimizers import SparseSignSGD

I = IGNORE  # noqa: E741
PUZZLES = torch.tensor([1, 3])
SEED = 8
READINGS = ["ignored", "counted_until_replaced"]


class Call(NamedTuple):
    """One call of the network, its arguments as they were."""

    state: RecursiveState
    inputs: Tensor
    vectors: Tensor
    step: int
    cells: Tensor | None
    with_reference: bool
    output: StepOutput


class Training:
    """A tiny model under supervision, watched, on two examples without PAD in the solution."""

    def __init__(self, **supervision: Any) -> None:
        self.calls: list[Call] = []
        self.readouts = 0
        self.model = tiny_model()
        self.model.register_forward_hook(self._record)
        self.model.readout.register_forward_hook(self._count)
        self.table = random_table()
        self.config = SupervisionConfig(**supervision)
        self.inputs, self.labels = random_tokens(1), random_tokens(2, lowest=1)
        self.supervision = DeepImprovementSupervision(
            self.config, self.model, self.model, self.table, ARC_COLOURS, diagnostics=False
        )

    def _record(self, _: nn.Module, arguments: tuple[Any, ...], output: StepOutput) -> None:
        state, inputs, vectors, step, *others = arguments
        vectors = vectors.detach().clone()
        self.calls.append(Call(state, inputs.clone(), vectors, int(step), *others, output))

    def _count(self, *_: Any) -> None:
        self.readouts += 1

    def whole(self) -> Segment:
        return Segment(self.inputs, self.labels, PUZZLES, torch.arange(2))

    def run(self, *segments: Segment) -> Any:
        """The given segments, or else the two examples on the whole canvas."""
        return self.supervision.run(segments or [self.whole()], seed=SEED)

    def targets(self) -> Tensor:
        """What `run` trains towards: drawn from the same seed."""
        random = cell_random(2, seed=SEED)
        return step_targets(self.config, target_request(self.inputs, self.labels, 3, random))

    def decode(
        self,
        num_steps: int = 3,
        guidance_weight: float = 1.0,
        cells: Tensor | None = None,
    ) -> list[Tensor]:
        """Logits of every step at test time."""
        trained = TrainedModel(self.model, self.table, self.config)
        inputs = self.inputs if cells is None else self.inputs.take_along_dim(cells, 1)
        with torch.no_grad():
            steps = trained.improve(inputs, PUZZLES, num_steps, guidance_weight, cells)
            return [step.logits for step in steps]


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


# ---- the loop --------------------------------------------------------------------------------


def test_run_yields_one_result_a_step_in_order() -> None:
    training = Training()
    results = list(training.run())
    assert training.supervision.steps_per_batch == 3
    assert [call.step for call in training.calls] == [1, 2, 3]
    for s, result in enumerate(results, start=1):
        assert result.supervision_steps.tolist() == [s, s]
        assert result.finished.tolist() == [s == 3] * 2
        assert result.loss.shape == ()
        assert torch.equal(result.puzzle_ids, PUZZLES)
    assert training.supervision.state_dict() == {}, "a batch is done when its steps are"


def test_the_state_is_carried_from_step_to_step() -> None:
    training = Training()
    list(training.run())
    start = training.model.initial_state(2, SEQ_LEN)
    assert torch.equal(training.calls[0].state.y, start.y)
    assert torch.equal(training.calls[0].state.z, start.z)
    for before, after in zip(training.calls, training.calls[1:], strict=False):
        assert after.state is before.output.state


@pytest.mark.parametrize("next_input", ["question", "answer"])
def test_a_step_reads_the_question_or_the_models_own_answer(next_input: str) -> None:
    training = Training(next_input=next_input)
    list(training.run())
    assert torch.equal(training.calls[0].inputs, training.inputs)
    for before, after in zip(training.calls, training.calls[1:], strict=False):
        answer = before.output.conditional_logits.argmax(dim=-1)
        assert not torch.equal(answer, training.inputs)
        assert torch.equal(after.inputs, answer if next_input == "answer" else training.inputs)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("weights", ["uniform", "rising"])
@pytest.mark.parametrize("pad_cells", READINGS)
@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_the_loss_is_the_cross_entropy_with_the_steps_own_target(
    objective: str, pad_cells: str, weights: str, windows: bool
) -> None:
    """With the dual objective, also of the incoming answer with the target before.

    In a window, the targets are those of the whole canvas at its cells.
    """
    training = Training(objective=objective, step_weights=weights, pad_cells=pad_cells)
    dropped = [[3, 7, 8, 11], [0, 1, 2, 3]]
    for row, empty in enumerate(dropped):
        training.labels[row, empty] = training.inputs[row, empty] = 0
    targets, segment = training.targets(), training.whole()
    if windows:
        cells = torch.tensor([[c for c in range(16) if c not in empty] for empty in dropped])
        targets = targets.take_along_dim(cells.unsqueeze(1), dim=2)
        segment = window(segment, [0, 1], cells)
    factors = {"uniform": [1, 1, 1], "rising": [0.5, 1, 1.5]}[weights]
    for s, result in enumerate(training.run(segment), start=1):
        call = training.calls[-1]

        def loss(logits: Tensor, step: int) -> float:
            return stablemax_cross_entropy(logits, targets[:, step]).mean().item()

        expected = loss(call.output.conditional_logits, s)
        # The frames differ so much that another step's would not do.
        assert abs(loss(call.output.conditional_logits, 0) - expected) > 0.01
        if objective == "dual":
            expected += loss(training.model.read_out(call.state.y), s - 1)
        assert result.loss.item() == pytest.approx(factors[s - 1] * expected)
        assert call.with_reference == (objective == "dual"), "the reference costs a readout"


def test_the_dual_objective_trains_the_readout_of_the_incoming_answer() -> None:
    gradients = {}
    for objective in ("dis", "dual"):
        training = Training(objective=objective)
        next(training.run()).loss.backward()
        gradients[objective] = training.model.readout.weight.grad
    assert (gradients["dual"] - gradients["dis"]).abs().max() > 1e-3


def test_a_step_sees_the_weights_that_the_step_before_has_changed() -> None:
    training = Training()
    run = training.run()
    first = next(run)
    before = training.table.weight[PUZZLES].clone()
    training.table.weight[1] += 1
    with torch.no_grad():
        training.model.readout.weight.zero_()
    second = next(run)
    assert torch.equal(training.calls[0].vectors, before)
    assert torch.equal(training.calls[1].vectors, before + torch.tensor([[1.0], [0.0]]))
    assert training.calls[1].output.conditional_logits.abs().max() == 0
    assert first.puzzle_vectors is not second.puzzle_vectors


def test_the_gradient_of_the_puzzles_is_collected_by_the_vectors_not_by_the_table() -> None:
    training = Training()
    result: StepResult = next(training.run())
    result.loss.backward()
    assert result.puzzle_vectors.grad.shape == (2, 16)
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


# ---- segments and windows --------------------------------------------------------------------


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
        assert set(whole.metrics) == {"cell_accuracy", "exact_accuracy"}
        for name, values in whole.metrics.items():
            torch.testing.assert_close(cut.metrics[name], values[ORDER])
        for training, result in ((one, whole), (two, cut)):
            training.model.zero_grad()
            result.loss.backward()
        assert torch.equal(cut.puzzle_ids, whole.puzzle_ids[ORDER])
        assert torch.equal(cut.puzzle_vectors, two.table.weight[cut.puzzle_ids])
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
    calls = training.calls
    steps = [call.step for call in calls]
    assert steps == [1, 1, 2, 2, 3, 3], "all segments take a step before the weights change"
    assert [call.inputs.shape for call in calls] == [(3, 16), (2, 7)] * 3
    assert calls[1].state.y.shape == (2, 3 + 7, 16)
    for before, after in zip(calls, calls[2:], strict=False):
        assert after.state is before.output.state
        assert torch.equal(after.inputs, before.output.conditional_logits.argmax(dim=-1))
    assert [call.cells for call in calls[0::2]] == [None] * 3
    assert all(torch.equal(call.cells, cells) for call in calls[1::2])


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
    [
        (name, reading)
        for name, reading in product(sorted(TARGETS), READINGS)
        if reading == "ignored" or not TARGETS[name].pad_ignored
    ],
)
@given(case=windowed_canvases(), seed=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=25)
def test_the_targets_of_a_window_are_those_of_the_whole_canvas_at_its_cells(
    name: str, pad_cells: str, case: tuple[Segment, Tensor], seed: int
) -> None:
    config = SupervisionConfig(targets=name, pad_cells=pad_cells)
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
    config = SupervisionConfig(pad_cells=pad_cells)
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
    config = SupervisionConfig(targets="final", step_weights="rising")
    supervision = DeepImprovementSupervision(
        config, tiny_model(), network, random_table(), ARC_COLOURS, diagnostics=False
    )
    results = list(supervision.run([one, two], seed=0))
    of_examples = [right, (2 * right + wrong) / 3, right]
    for weight, result in zip((0.5, 1, 1.5), results, strict=True):
        assert result.loss.item() == pytest.approx(weight * sum(of_examples) / 3)
        assert result.metrics["cell_accuracy"].tolist() == pytest.approx([1, 2 / 3, 1])
        assert result.metrics["exact_accuracy"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("pad_cells", READINGS)
def test_accuracy_is_measured_against_the_solution_not_the_steps_target(pad_cells: str) -> None:
    """Half of the eight counted cells of one of the two examples are wrong, at every step."""
    labels = random_tokens(2, lowest=1)
    labels[:, 8:] = 0
    answers = labels.clone()
    answers[0, :4] = labels[0, :4] % 11 + 1
    answers[:, 8:] = 5  # not counted
    config, network = SupervisionConfig(pad_cells=pad_cells), ByLength(answers.tolist())
    supervision = DeepImprovementSupervision(
        config, tiny_model(), network, random_table(), ARC_COLOURS, diagnostics=False
    )
    batch = [Segment(random_tokens(1), labels, PUZZLES, torch.arange(2))]
    for result in supervision.run(batch, seed=0):
        assert result.metrics["exact_accuracy"].tolist() == [0, 1]
        assert result.metrics["cell_accuracy"].tolist() == [0.5, 1]


# ---- at test time ----------------------------------------------------------------------------

WINDOW = torch.tensor([[0, 1, 2, 4, 5, 6, 15], [3, 14, 9, 1, 8, 12, 0]])
"""Seven cells of each of the two examples: in order, and not."""
shown = pytest.mark.parametrize("cells", [None, WINDOW], ids=["whole", "window"])


@shown
@pytest.mark.parametrize("next_input", ["question", "answer"])
def test_plain_decoding_repeats_the_forward_passes_of_training(
    next_input: str, cells: Tensor | None
) -> None:
    trained, decoded = Training(next_input=next_input), Training(next_input=next_input)
    whole = trained.whole()
    list(trained.run(whole if cells is None else window(whole, [0, 1], cells)))
    answers = decoded.decode(cells=cells)
    for logits, call, same in zip(answers, trained.calls, decoded.calls, strict=True):
        assert torch.equal(logits, call.output.conditional_logits)
        assert call.cells is same.cells is cells
    assert len(answers) == decoded.readouts == 3, "a reference would cost a readout"
    if cells is not None:
        elsewhere = Training(next_input=next_input).decode(cells=(cells + 1) % SEQ_LEN)
        assert (elsewhere[0] - answers[0]).abs().max() > 0.01


def test_decoding_all_cells_in_order_is_decoding_the_whole_canvas() -> None:
    all_cells = torch.arange(SEQ_LEN).expand(2, -1)
    for weight in (1.0, 2.0):
        whole = Training(next_input="answer").decode(guidance_weight=weight)
        listed = Training(next_input="answer").decode(guidance_weight=weight, cells=all_cells)
        torch.testing.assert_close(listed, whole, atol=1e-5, rtol=1e-5)


@shown
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_guided_logits_mix_the_readouts_before_and_after_the_step(
    weight: float, cells: Tensor | None
) -> None:
    training = Training()
    answers = training.decode(guidance_weight=weight, cells=cells)
    assert training.readouts == 3 + 1, "after the first, it is what the step before read out"
    for logits, call in zip(answers, training.calls, strict=True):
        reference = training.model.read_out(call.state.y)
        expected = (1 - weight) * reference + weight * call.output.conditional_logits
        assert torch.allclose(logits, expected, atol=1e-5)
        assert not call.with_reference


def test_the_guided_answer_is_the_next_input_where_answers_are() -> None:
    training = Training(next_input="answer")
    answers = training.decode(guidance_weight=0.0)
    for logits, before, after in zip(answers, training.calls, training.calls[1:], strict=False):
        assert torch.equal(after.inputs, logits.argmax(dim=-1))
        # At weight 0 the answer is the reference's, which is not the conditional's.
        plain = before.output.conditional_logits.argmax(dim=-1)
        assert not torch.equal(after.inputs, plain)


def test_more_and_fewer_steps_than_trained_can_be_taken() -> None:
    training = Training()
    five = training.decode(num_steps=5)
    assert [call.step for call in training.calls] == [1, 2, 3, 4, 5]
    assert (five[4] - five[3]).abs().max() > 1e-4, "the state goes on"
    for n in (1, 2, 3):
        fewer = Training().decode(num_steps=n)
        assert all(torch.equal(left, right) for left, right in zip(five[:n], fewer, strict=True))


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


@pytest.mark.parametrize("key", ["targets", "objective", "next_input", "pad_cells", "step_weights"])
def test_an_unknown_choice_is_refused_with_its_key_and_value(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}='nonsense'"):
        validate(SupervisionConfig, {key: "nonsense"}, "supervision")
