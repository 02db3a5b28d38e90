"""What a step did to an answer: by hand, against derivatives, and where it is recorded."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    SEQ_LEN,
    cell_random,
    random_table,
    random_tokens,
    target_request,
    tiny_model,
    tiny_supervision,
)
from torch import Tensor

from common.segments import Segment
from dataset.canvas import ARC_COLOURS, VOCAB_SIZE, read_extents
from evaluation.figures import Measurement, add_figures, figure_names, sum_figures
from evaluation.predict import Predictor
from evaluation.test_set import EvaluationSet
from models.diagnostics import (
    ACCURACY,
    DIAGNOSTICS,
    accuracy,
    advantage_margin,
    margins,
    movement,
)
from models.objective import IGNORE, guided_logits
from models.puzzle_embedding import PuzzleEmbedding
from models.recursive import TinyRecursiveModel, run_step
from models.steps import ImprovementSteps
from models.supervision import DeepImprovementSupervision, step_targets

I = IGNORE  # noqa: E741
PUZZLES = torch.tensor([1, 3])


def logits_pair(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """l_u, l_c [2, 5, 7] in float64 and a solution [2, 5]."""
    generator = torch.Generator().manual_seed(seed)
    reference, conditional = 3 * torch.randn(2, 2, 5, 7, generator=generator, dtype=torch.float64)
    return reference, conditional, torch.randint(7, (2, 5), generator=generator)


@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.5, 1.0, 2.0, 3.5])
def test_the_margin_is_minus_the_derivative_of_the_loss_by_the_guidance_weight(
    weight: float,
) -> None:
    """Prop. 4.1 against a central difference of L(w) = -log softmax((1 - w) l_u + w l_c)[y*]."""
    reference, conditional, solution = logits_pair()

    def loss(w: float) -> Tensor:
        mixed = (1 - w) * reference + w * conditional
        return -mixed.log_softmax(dim=-1).gather(-1, solution.unsqueeze(-1)).squeeze(-1)

    h = 1e-5
    slope = (loss(weight + h) - loss(weight - h)) / (2 * h)
    margin = advantage_margin(reference, conditional, solution, weight)
    assert torch.allclose(margin, -slope, atol=1e-8)
    assert slope.abs().max() > 0.1


def test_the_margin_by_hand() -> None:
    """Policy (2/3, 1/3) under l_c; the step raised the right token's logit by ln 2 + 1."""
    conditional = torch.tensor([[[math.log(2), 0.0], [math.log(2), 0.0]]])
    reference = torch.tensor([[[-1.0, 0.0], [-1.0, 0.0]]])
    raised = math.log(2) + 1
    margin = advantage_margin(reference, conditional, torch.tensor([[0, 1]]))
    assert margin[0].tolist() == pytest.approx([raised / 3, -raised * 2 / 3])
    # At weight 0 the policy is the reference's: 1 to e.
    share = math.exp(-1) / (math.exp(-1) + 1)
    margin = advantage_margin(reference, conditional, torch.tensor([[0, 1]]), 0.0)
    assert margin[0].tolist() == pytest.approx([raised * (1 - share), -raised * share])


def test_the_expected_advantage_under_the_policy_is_no_advantage() -> None:
    """Weighted by the policy itself, the margins of all tokens add up to zero."""
    reference, conditional, _ = logits_pair()
    for weight in (0.0, 1.0, 2.5):
        policy = guided_logits(reference, conditional, weight).softmax(dim=-1)
        of_tokens = torch.stack(
            [
                advantage_margin(reference, conditional, torch.full((2, 5), token), weight)
                for token in range(7)
            ],
            dim=-1,
        )
        assert torch.allclose((policy * of_tokens).sum(dim=-1), torch.zeros(2, 5).double())


def test_a_step_that_adds_the_same_to_all_logits_has_no_margin() -> None:
    reference, _, solution = logits_pair()
    assert torch.allclose(
        advantage_margin(reference, reference + 4, solution), torch.zeros(2, 5).double()
    )


def test_margins_are_means_over_the_counted_cells_by_hand() -> None:
    """The right token is 0: cell 0 gains, cell 1 loses, cell 2 is not counted and gains much."""
    raised = math.log(2)
    conditional = torch.tensor([[[raised, 0.0], [0.0, raised], [50.0, 0.0]]] * 3)
    reference = torch.zeros(3, 3, 2)
    solution = torch.tensor([[0, 0, I], [0, I, I], [I, I, I]])
    figures = margins(reference, conditional, solution, guidance_weight=1.0)
    up, down = raised / 3, -raised * 2 / 3
    assert figures["margin"].tolist() == pytest.approx([(up + down) / 2, up, 0])
    assert figures["margin_positive"].tolist() == [0.5, 1, 0]
    guided = margins(reference, conditional, solution, guidance_weight=0.0)
    assert guided["margin"].tolist() == pytest.approx([0, raised / 2, 0])
    assert set(figures) | set(movement(*[solution] * 4)) == set(DIAGNOSTICS)


def test_movement_by_hand() -> None:
    previous = torch.tensor([[2, 3, 4, 5], [9, 9, 9, 9]])
    answer = torch.tensor([[2, 3, 5, 6], [9, 9, 9, 9]])
    target = torch.tensor([[2, 4, I, 7], [9, 9, 9, I]])
    solution = torch.tensor([[3, 4, 4, I], [I, I, I, I]])
    figures = movement(previous, answer, target, solution)
    assert figures["distance_to_target"].tolist() == [2, 0]
    assert figures["distance_to_solution"].tolist() == [3, 0]
    assert figures["cells_changed"].tolist() == [1, 0]


def test_an_answer_is_exact_if_every_counted_cell_is_right_by_hand() -> None:
    answer = torch.tensor([[2, 3, 4], [2, 3, 4], [2, 3, 4], [2, 3, 4]])
    solution = torch.tensor([[2, 3, I], [2, 9, 4], [I, I, I], [9, 9, 9]])
    figures = accuracy(answer, solution)
    assert set(figures) == set(ACCURACY)
    assert figures["cell_accuracy"].tolist() == pytest.approx([1, 2 / 3, 0, 0])
    assert figures["exact_accuracy"].tolist() == [1, 0, 0, 0], "what is unknown is never right"


@pytest.mark.parametrize("answer", [0, 2, 5])
def test_what_an_answer_shows_where_the_solution_does_not_count_changes_no_figure(
    answer: int,
) -> None:
    solution = random_tokens(1, lowest=1)
    solution[:, ::3] = I
    shown = random_tokens(2)
    other = shown.masked_fill(solution == I, answer)
    for name, values in accuracy(shown, solution).items():
        assert torch.equal(accuracy(other, solution)[name], values)
    before = movement(shown, shown, solution, solution)
    after = movement(shown, other, solution, solution)
    for name, values in before.items():
        assert torch.equal(values, after[name])


# ---- in training -----------------------------------------------------------------------------

CELLS = torch.tensor([[0, 1, 2, 4, 5, 6, 15], [3, 14, 9, 1, 8, 12, 0]])


@pytest.mark.parametrize("cells", [None, CELLS], ids=["whole", "window"])
@pytest.mark.parametrize("next_input", ["question", "answer"])
@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_training_records_what_each_step_did(
    objective: str, next_input: str, cells: Tensor | None
) -> None:
    """Against figures computed from one forward pass after the other."""
    model, table = tiny_model(), random_table()
    config = tiny_supervision(objective=objective, next_input=next_input)
    inputs, labels = random_tokens(1), random_tokens(2)
    request = target_request(inputs, labels, 3, cell_random(2, seed=5))
    if cells is not None:  # Cells that are dropped are PAD.
        seen = torch.zeros(2, SEQ_LEN, dtype=torch.bool).scatter(1, cells, True)
        request = request._replace(
            inputs=inputs.masked_fill(~seen, 0), solution=labels.masked_fill(~seen, 0)
        )
    targets = step_targets(config, request)
    if cells is not None:
        targets = targets.take_along_dim(cells.unsqueeze(1), 2)
        inputs, labels = inputs.gather(1, cells), labels.gather(1, cells)
    segment = Segment(inputs, labels, PUZZLES, torch.arange(2), cells)
    recorded = [
        [
            result.figures
            for result in DeepImprovementSupervision(
                config, model, model, table, ARC_COLOURS, diagnostics
            ).run([segment], seed=5)
        ]
        for diagnostics in (True, False)
    ]
    assert [set(figures) for figures in recorded[1]] == [set(ACCURACY)] * 3
    solution = labels.masked_fill(labels == 0, I)
    state, read, previous = model.initial_state(*inputs.shape), inputs, inputs
    for s, (figures, fewer) in enumerate(zip(*recorded, strict=True), start=1):
        output = run_step(model, table.weight[PUZZLES], state, read, s, cells)
        answer = output.conditional_logits.argmax(dim=-1)
        reference = model.read_out(state.y)
        expected = {
            **accuracy(answer, solution),
            **movement(previous, answer, targets[:, s], solution),
            **margins(reference, output.conditional_logits, solution, 1.0),
        }
        assert figures.keys() == expected.keys() == {*ACCURACY, *DIAGNOSTICS}
        for name, values in expected.items():
            torch.testing.assert_close(figures[name], values, msg=name)
            assert not figures[name].requires_grad, name
        for name, values in fewer.items():
            assert torch.equal(figures[name], values)
        state, previous = output.state, answer
        read = answer if next_input == "answer" else inputs


@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_watching_a_step_changes_neither_loss_nor_gradient(objective: str) -> None:
    gradients = []
    for diagnostics in (False, True):
        model = tiny_model()
        supervision = DeepImprovementSupervision(
            tiny_supervision(objective=objective),
            model,
            model,
            random_table(),
            ARC_COLOURS,
            diagnostics,
        )
        segment = Segment(random_tokens(1), random_tokens(2), PUZZLES, torch.arange(2))
        result = next(supervision.run([segment], seed=5))
        result.loss.backward()
        gradients.append([result.loss.detach(), *(p.grad for p in model.parameters())])
    for left, right in zip(*gradients, strict=True):
        assert torch.equal(left, right)


# ---- in evaluation ---------------------------------------------------------------------------


def roomy_model() -> tuple[TinyRecursiveModel, PuzzleEmbedding]:
    """For the 10x10 canvases of `roomy_dataset`, whose windows leave cells out.

    Drawn here, as the model's own weights differ from version to version of torch: some answers
    must outgrow their windows, and some must not.
    """
    with torch.random.fork_rng():
        model = TinyRecursiveModel(tiny_model().config, VOCAB_SIZE, 100)
    generator = torch.Generator().manual_seed(0)
    for weight in model.state_dict().values():
        weight.normal_(std=0.25, generator=generator)
    return model, random_table(num_puzzles=500)


@pytest.mark.parametrize("next_input", ["question", "answer"])
@pytest.mark.parametrize("guidance_weight", [1.0, 1.7])
@pytest.mark.parametrize("canvas", ["whole", "window"])
def test_evaluation_records_what_each_step_did(
    roomy_dataset: Path, canvas: str, guidance_weight: float, next_input: str
) -> None:
    """Sums over rows, against one row after the other through the model by hand."""
    model, table = roomy_model()
    test_set = EvaluationSet(roomy_dataset, 2)
    config = tiny_supervision(next_input=next_input)
    steps = ImprovementSteps(model, table, config, None, guidance_weight)
    rows = np.arange(len(test_set))
    expected = dict.fromkeys((*ACCURACY, *DIAGNOSTICS), np.zeros(3))
    again, in_windows = 0, 0
    for row in rows:
        shown = window_of(test_set, row) if canvas == "window" else None
        figures, outgrew = by_hand(test_set, row, steps, shown)
        in_windows += shown is not None
        if outgrew:
            figures, _ = by_hand(test_set, row, steps, None)
            again += 1
        expected = {name: expected[name] + figures[name] for name in expected}
    result = Predictor(steps, test_set, 4, canvas, diagnostics=True).predict(rows)
    assert result.whole_canvas_again == again
    assert (in_windows > again) == (canvas == "window"), (in_windows, again, len(rows))
    assert result.figures.num_scored == len(rows)
    assert result.figures.sums.keys() == expected.keys()
    for name, sums in expected.items():
        assert result.figures.sums[name] == pytest.approx(sums, rel=1e-4, abs=1e-4), name
    plain = Predictor(steps, test_set, 4, canvas).predict(rows)
    assert set(plain.figures.sums) == set(ACCURACY)
    for name, sums in plain.figures.sums.items():
        assert np.array_equal(sums, result.figures.sums[name])
    assert np.array_equal(plain.predictions.canvas, result.predictions.canvas)
    # Each step counts for itself.
    assert len(set(np.round(result.figures.sums["margin"], 6))) == 3


def window_of(test_set: EvaluationSet, row: int) -> Tensor | None:
    """The cells that `Predictor` shows of a row alone; None: all."""
    looked: list[Tensor | None] = []

    class Looks:
        num_steps = 1
        device = torch.device("cpu")

        def run(self, inputs: Tensor, _: Tensor, cells: Tensor | None, more: bool) -> Any:
            looked.append(cells)
            raise StopAsyncIteration

    stub: Any = Looks()
    with pytest.raises(StopAsyncIteration):
        Predictor(stub, test_set, 1, "window").predict(np.array([row]))
    return looked[0]


def by_hand(
    test_set: EvaluationSet, row: int, steps: ImprovementSteps, cells: Tensor | None
) -> tuple[dict[str, Any], bool]:
    """Figures [S] of one row by name, and whether its answer fills its window."""
    example = test_set.examples.rows[[row]]
    inputs, labels = (torch.from_numpy(a).long() for a in test_set.split.read(example))
    solution = labels.masked_fill(labels == 0, I)
    targets = step_targets(
        steps.supervision,
        target_request(inputs, labels, 3, cell_random(1, 0, int(row), 100)),
    )
    places = torch.arange(100).expand(1, -1) if cells is None else cells
    vectors = steps.puzzle_embedding.weight[test_set.examples.puzzle_ids[[row]]]
    state = steps.model.initial_state(1, places.shape[1])
    read, previous = inputs.gather(1, places), inputs
    taken = []
    with torch.no_grad():
        for s in (1, 2, 3):
            output = run_step(steps.model, vectors, state, read, s, places)
            reference = steps.model.read_out(state.y)
            w = steps.guidance_weight
            mixed = (1 - w) * reference + w * output.conditional_logits
            tokens = mixed.argmax(dim=-1)
            answer = torch.zeros_like(inputs).scatter(1, places, tokens)
            of_window = margins(reference, output.conditional_logits, solution.gather(1, places), w)
            taken.append(
                {
                    **accuracy(answer, solution),
                    **movement(previous, answer, targets[:, s], solution),
                    **of_window,
                }
            )
            state, previous = output.state, answer
            read = tokens if steps.supervision.next_input == "answer" else read
    figures = {name: np.array([float(step[name]) for step in taken]) for name in taken[0]}
    return figures, cells is not None and fills(answer, test_set.boxes[row])


def fills(answer: Tensor, box: Any) -> bool:
    """Whether the grid of an answer ends where its window does, and not at the canvas's edge."""
    heights, widths = read_extents(answer.numpy().astype(np.uint8))
    size = np.array([heights[0], widths[0]])
    shown = box[2:] - box[:2]
    return bool(((size >= shown) & (shown < 10)).any())


def test_figures_of_hidden_solutions_count_nowhere() -> None:
    labels = random_tokens(2, lowest=1)
    labels[1] = 0
    segment = Segment(random_tokens(1), labels, PUZZLES, torch.arange(2))
    steps = ImprovementSteps(tiny_model(), random_table(), tiny_supervision())
    measured = Measurement(segment, steps, ARC_COLOURS, diagnostics=True)
    with torch.no_grad():
        for step in steps.run(segment.inputs, PUZZLES, None, with_reference=True):
            measured.add(step.logits.argmax(dim=-1), step, None)
    values = measured.values()
    names = figure_names(diagnostics=True)
    assert values.shape == (2, 3, len(names))
    assert not values[0].isnan().any()
    assert values[1].isnan().all()
    both = sum_figures(values.numpy(), diagnostics=True)
    alone = sum_figures(values[:1].numpy(), diagnostics=True)
    assert both.num_scored == alone.num_scored == 1
    assert all(np.array_equal(both.sums[name], alone.sums[name]) for name in names)
    hidden = sum_figures(values[1:].numpy(), diagnostics=True)
    assert hidden.num_scored == 0
    joined = add_figures([alone, hidden, alone])
    assert joined.num_scored == 2
    assert all(np.array_equal(joined.sums[name], 2 * alone.sums[name]) for name in names)


def test_means_are_named_by_step_and_after_the_last_by_hand() -> None:
    values = np.zeros((2, 2, 2), np.float32)
    values[0] = [[0.5, 0], [1, 1]]  # Cell and exact accuracy after steps 1 and 2.
    values[1] = [[0.25, 0], [0.5, 0]]
    assert sum_figures(values, diagnostics=False).means() == {
        "cell_accuracy": 0.75,
        "exact_accuracy": 0.5,
        "cell_accuracy_step1": 0.375,
        "cell_accuracy_step2": 0.75,
        "exact_accuracy_step1": 0,
        "exact_accuracy_step2": 0.5,
    }
