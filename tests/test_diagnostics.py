"""What a step did to an answer: by hand, against derivatives, and where it is recorded."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.packed import PackedBatch
from dataset.canvas import ARC_COLOURS, VOCAB_SIZE
from evaluation.metrics import LOSS_NOT_SHOWN, StepMetrics, mean_metrics, metric_names
from evaluation.predict import Predictor
from evaluation.test_set import ArcTestSet
from models.diagnostics import (
    ACCURACY,
    DIAGNOSTICS,
    accuracy,
    advantage_margin,
    margins,
    movement,
)
from models.objective import IGNORE, log_stablemax
from models.recursive import TinyRecursiveModel, run_step
from models.steps import Improvement, TrainedModel
from models.supervision import SupervisionConfig, step_targets
from runs import eval_config
from tiny import (
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


def offsets_of(*lengths: int) -> Tensor:
    """Where sequences of these lengths begin and end."""
    return torch.tensor([0, *lengths]).cumsum(0)


def logits_pair(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """l_u, l_c [10, 7] in float64 and a solution [10]."""
    generator = torch.Generator().manual_seed(seed)
    reference, conditional = 3 * torch.randn(2, 10, 7, generator=generator, dtype=torch.float64)
    return reference, conditional, torch.randint(7, (10,), generator=generator)


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
    conditional = torch.tensor([[math.log(2), 0.0], [math.log(2), 0.0]])
    reference = torch.tensor([[-1.0, 0.0], [-1.0, 0.0]])
    raised = math.log(2) + 1
    margin = advantage_margin(reference, conditional, torch.tensor([0, 1]))
    assert margin.tolist() == pytest.approx([raised / 3, -raised * 2 / 3])
    # At weight 0 the policy is the reference's: 1 to e.
    share = math.exp(-1) / (math.exp(-1) + 1)
    margin = advantage_margin(reference, conditional, torch.tensor([0, 1]), 0.0)
    assert margin.tolist() == pytest.approx([raised * (1 - share), -raised * share])


def test_margins_are_means_over_the_counted_cells_by_hand() -> None:
    """The right token is 0: cell 0 gains, cell 1 loses, others are not counted and gain much."""
    raised = math.log(2)
    gains, loses, ignored = [raised, 0.0], [0.0, raised], [50.0, 0.0]
    conditional = torch.tensor([gains, loses, ignored, gains, ignored])
    reference = torch.zeros(5, 2)
    solution, of = torch.tensor([0, 0, I, 0, I]), offsets_of(3, 1, 1, 0)
    metrics = margins(reference, conditional, solution, of)
    up, down = raised / 3, -raised * 2 / 3
    assert metrics["margin"].tolist() == pytest.approx([(up + down) / 2, up, 0, 0])
    assert metrics["margin_positive"].tolist() == [0.5, 1, 0, 0]
    guided = margins(reference, conditional, solution, of, guidance_weight=0.0)
    assert guided["margin"].tolist() == pytest.approx([0, raised / 2, 0, 0])
    assert set(metrics) | set(movement(*[solution] * 4, of)) == set(DIAGNOSTICS)


def test_movement_by_hand() -> None:
    previous = torch.tensor([2, 3, 4, 5, 9, 9])
    answer = torch.tensor([2, 3, 5, 6, 9, 9])
    target = torch.tensor([2, 4, I, 7, 9, I])
    solution = torch.tensor([3, 4, 4, I, I, I])
    metrics = movement(previous, answer, target, solution, offsets_of(4, 2, 0))
    assert metrics["distance_to_target"].tolist() == [2, 0, 0]
    assert metrics["distance_to_solution"].tolist() == [3, 0, 0]
    assert metrics["cells_changed"].tolist() == [1, 0, 0]


def test_an_answer_is_exact_if_every_counted_cell_is_right_by_hand() -> None:
    answer = torch.tensor([2, 3, 4, 2, 3, 4, 2, 2, 3])
    solution = torch.tensor([2, 3, I, 2, 9, 4, I, 9, 9])
    metrics = accuracy(answer, solution, offsets_of(3, 3, 1, 0, 2))
    assert set(metrics) == set(ACCURACY)
    assert metrics["cell_accuracy"].tolist() == pytest.approx([1, 2 / 3, 0, 0, 0])
    assert metrics["exact_accuracy"].tolist() == [1, 0, 0, 0, 0], "what is unknown is never right"


# ---- in training -----------------------------------------------------------------------------

WINDOWS = [[0, 1, 2, 4, 5, 6, 15], [3, 14, 9, 1, 8]]


@pytest.mark.parametrize("cells", [None, WINDOWS], ids=["whole", "window"])
@pytest.mark.parametrize("next_input", ["question", "answer"])
@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_training_records_what_each_step_did(
    objective: str, next_input: str, cells: list[list[int]] | None
) -> None:
    """Against metrics computed from one forward pass after the other, and no more than asked."""
    inputs, labels = random_tokens(1), random_tokens(2)
    shown = cells or [list(range(SEQ_LEN))] * 2
    for row in (0, 1):  # Cells that are dropped are PAD.
        dropped = [cell for cell in range(SEQ_LEN) if cell not in shown[row]]
        inputs[row, dropped] = labels[row, dropped] = 0
    batch = packed(inputs, labels, cells, puzzle_ids=PUZZLES)
    choices = {"objective": objective, "next_input": next_input}
    recorded = []
    for diagnostics in (True, False):
        supervision = tiny_supervision(tiny_model(), random_table(), 2, diagnostics, **choices)
        progress = supervision.begin(batch, 5, None)
        recorded.append([supervision.step(progress).metrics for _ in range(3)])
    request = target_request(inputs, labels, 3, cell_random(2, seed=5))
    targets = step_targets(SupervisionConfig(**choices), request)
    targets = targets[batch.sequence, :, batch.cells].masked_fill(~batch.is_cell[:, None], I)
    solution = batch.labels.masked_fill(batch.labels == 0, I)
    model, vectors, of = tiny_model(), random_table().weight[PUZZLES], batch.offsets
    state, read, previous = model.initial_state(len(solution)), batch.inputs, batch.inputs
    for s, (metrics, fewer) in enumerate(zip(*recorded, strict=True), start=1):
        output = run_step(model, vectors, state, read, torch.tensor(s), batch)
        answer = output.conditional_logits.argmax(dim=-1)
        reference = model.read_out(state.y)
        expected = {
            **accuracy(answer, solution, of),
            **movement(previous, answer, targets[:, s], solution, of),
            **margins(reference, output.conditional_logits, solution, of),
        }
        assert expected.keys() == {*ACCURACY, *DIAGNOSTICS}
        torch.testing.assert_close(metrics, expected)
        assert not any(values.requires_grad for values in metrics.values())
        assert fewer.keys() == {*ACCURACY}
        assert all(torch.equal(values, metrics[name]) for name, values in fewer.items())
        state, previous = output.state, answer
        read = torch.where(batch.is_cell, answer, read) if next_input == "answer" else read


@pytest.mark.parametrize("objective", ["dis", "dual"])
def test_watching_a_step_changes_neither_loss_nor_gradient(objective: str) -> None:
    gradients = []
    for diagnostics in (False, True):
        model = tiny_model()
        supervision = tiny_supervision(model, random_table(), 2, diagnostics, objective=objective)
        batch = packed(random_tokens(1), random_tokens(2))
        result = supervision.step(supervision.begin(batch, 5, None))
        gradients.append([result.loss, *(p.grad for p in model.parameters())])
    for left, right in zip(*gradients, strict=True):
        assert torch.equal(left, right)


# ---- in evaluation ---------------------------------------------------------------------------


def roomy_model(config: SupervisionConfig) -> TrainedModel:
    """For the 10x10 canvases of `roomy_compact_dataset`, whose windows leave cells out.

    Drawn here, as the model's own weights differ from version to version of torch: some answers
    must outgrow their windows, and some must not.
    """
    with torch.random.fork_rng():
        model = TinyRecursiveModel(tiny_model().config, VOCAB_SIZE, 100)
    generator = torch.Generator().manual_seed(0)
    for weight in model.state_dict().values():
        weight.normal_(std=0.25, generator=generator)
    return TrainedModel(model, random_table(num_puzzles=500), config)


@pytest.mark.parametrize("next_input", ["question", "answer"])
@pytest.mark.parametrize("guidance_weight", [1.0, 1.7])
@pytest.mark.parametrize("canvas", ["whole", "window"])
def test_evaluation_records_what_each_step_did(
    roomy_compact_dataset: Path, canvas: str, guidance_weight: float, next_input: str
) -> None:
    """Batches of rows against one row after the other through the model by hand."""
    trained = roomy_model(SupervisionConfig(next_input=next_input))
    test_set = ArcTestSet(roomy_compact_dataset, 2)
    rows = np.arange(len(test_set))
    plain, watched = (
        Predictor(
            trained,
            test_set,
            eval_config(canvas=canvas, guidance_weight=guidance_weight, diagnostics=diagnostics),
        )
        for diagnostics in (False, True)
    )
    shown: list[Tensor] = []
    trained.model.register_forward_pre_hook(lambda _, arguments: shown.append(arguments[4]))
    expected, in_windows, again = [], 0, 0
    for row in rows:
        shown.clear()
        plain.answer(rows[[row]])
        in_windows += len(shown[0]) < 103
        again += shown[0] is not shown[-1]
        expected.append(by_hand(test_set, row, trained, guidance_weight, shown[-1][3:]))
    answers, fewer = watched.answer(rows), plain.answer(rows)
    assert answers.whole_canvas_again == again
    assert (in_windows > again) == (canvas == "window"), (in_windows, again, len(rows))
    assert answers.metrics == pytest.approx(np.stack(expected), rel=1e-4, abs=1e-4)
    assert np.array_equal(fewer.metrics, answers.metrics[:, :, : len(metric_names(False))])
    assert np.array_equal(fewer.canvases, answers.canvases)
    margin = answers.metrics[:, :, metric_names(True).index("margin")].sum(axis=0)
    assert len(set(np.round(margin, 6))) == 3, "each step counts for itself"


def by_hand(
    test_set: ArcTestSet, row: int, trained: TrainedModel, guidance_weight: float, cells: Tensor
) -> Tensor:
    """Metrics [S, K] of one row that is seen at `cells`."""
    example = test_set.examples.rows[[row]]
    inputs, labels = (torch.from_numpy(a).long() for a in test_set.split.read(example))
    solution = labels[0].masked_fill(labels[0] == 0, I)
    request = target_request(inputs, labels, 3, cell_random(1, 0, int(row), 100))
    targets = step_targets(trained.supervision, request)[0]
    batch = packed(inputs, labels, [cells.tolist()])
    puzzle = test_set.examples.puzzle_ids[[row]]
    vectors, model = trained.puzzle_embedding.weight[puzzle], trained.model
    state, read, previous = model.initial_state(len(batch.inputs)), batch.inputs, inputs[0]
    w, taken = guidance_weight, []
    for s in (1, 2, 3):
        with torch.no_grad():
            output = run_step(model, vectors, state, read, torch.tensor(s), batch)
            reference, conditional = model.read_out(state.y)[3:], output.conditional_logits[3:]
        guided = (1 - w) * reference + w * conditional
        tokens = guided.argmax(dim=-1)
        answer = torch.zeros_like(previous).scatter(0, cells, tokens)
        metrics = {
            **accuracy(answer, solution, offsets_of(100)),
            "loss": solution_loss(guided, cells, solution),
            **movement(previous, answer, targets[s], solution, offsets_of(100)),
            **margins(reference, conditional, solution[cells], offsets_of(len(cells)), w),
        }
        taken.append(torch.cat([metrics[name] for name in metric_names(diagnostics=True)]))
        state, previous = output.state, answer
        if trained.supervision.next_input == "answer":
            read = torch.cat([read[:3], tokens])
    return torch.stack(taken)


def solution_loss(logits: Tensor, cells: Tensor, solution: Tensor) -> Tensor:
    """The loss [1] of logits [cells, V] that are given for some of a canvas's cells."""
    costs = torch.full((100, VOCAB_SIZE), LOSS_NOT_SHOWN)
    costs[cells] = -log_stablemax(logits)
    counted = (solution != I).nonzero().squeeze(1)
    return costs[counted, solution[counted]].mean().reshape(1)


def improved(batch: PackedBatch, labels: Tensor) -> np.ndarray:
    """Metrics of five steps of a model of three."""
    trained = TrainedModel(tiny_model(), random_table(), SupervisionConfig())
    measured = StepMetrics(batch, labels, trained, ARC_COLOURS, 1.0, diagnostics=True)
    with torch.no_grad():
        for step in trained.improve(batch, 5, with_reference=True):
            measured.add(step, batch.to_canvas(step.logits.argmax(dim=-1), SEQ_LEN))
    return measured.values().numpy()


def test_metrics_where_the_solution_is_hidden_count_nowhere() -> None:
    labels = random_tokens(2, lowest=1)
    labels[1] = 0
    values = improved(packed(random_tokens(1), labels), labels)
    assert values.shape == (2, 5, len(metric_names(diagnostics=True))), "also beyond those trained"
    assert not np.isnan(values[0]).any()
    assert np.isnan(values[1]).all()
    of_name = dict(zip(metric_names(diagnostics=True), values[0].T, strict=True))
    # From the last step that was trained on, the target is the solution.
    to_target, to_solution = of_name["distance_to_target"], of_name["distance_to_solution"]
    assert np.array_equal(to_target[2:], to_solution[2:])
    both = mean_metrics(values, metric_names(True))
    assert both.keys() > {*ACCURACY, *DIAGNOSTICS}
    assert both == mean_metrics(values[:1], metric_names(True))
    assert mean_metrics(values[1:], metric_names(True)) == {}


def test_means_are_named_by_step_and_after_the_last_by_hand() -> None:
    values = np.zeros((2, 2, 3), np.float32)
    values[0] = [[0.5, 0, 2], [1, 1, 0.5]]  # Accuracies and loss after steps 1 and 2.
    values[1] = [[0.25, 0, 5], [0.5, 0, 3.5]]
    assert mean_metrics(values, metric_names(False)) == {
        "cell_accuracy": 0.75,
        "exact_accuracy": 0.5,
        "loss": 2.0,
        "cell_accuracy_step1": 0.375,
        "cell_accuracy_step2": 0.75,
        "exact_accuracy_step1": 0,
        "exact_accuracy_step2": 0.5,
        "loss_step1": 3.5,
        "loss_step2": 2.0,
    }


def test_the_solutions_loss_is_a_mean_over_counted_cells_shown_or_not_by_hand() -> None:
    """What stands in prefixes, where nothing counts, and of what fills up makes no difference.

    A logit of 9 among twelve has s = 10 of 21: a right cell costs ln 2.1, a wrong one ln 21. A cell
    that is not shown costs 24 ln 2, as if 2**-24 had been left to it.
    """
    labels = torch.zeros(5, SEQ_LEN, dtype=torch.int64)
    labels[0, :3] = torch.tensor([3, 4, 5])  # Shown, and one of them wrong.
    labels[1, :4] = torch.tensor([6, 7, 8, 9])  # Two are not shown, the third is wrong.
    labels[2, 5] = 3  # It is not shown.
    cells = [[0, 1, 2, 3], [1, 2], [0], [4, 5]]  # The last example's solution is hidden.
    batch = packed(torch.full((4, SEQ_LEN), 2), labels[:4], cells, fill=(6,))
    answered = labels.clone()
    answered[0, 1] = answered[1, 2] = 10
    logits = 9.0 * torch.nn.functional.one_hot(batch.from_canvas(answered, 0).clamp(min=0), 12)
    logits[~batch.is_cell] = torch.nan
    trained = TrainedModel(tiny_model(), random_table(), SupervisionConfig())
    measured = StepMetrics(batch, labels, trained, ARC_COLOURS, 1.0, diagnostics=False)
    measured.add(Improvement(logits, torch.zeros_like(logits), None), answered)
    loss = measured.values()[:, 0, metric_names(False).index("loss")]
    right, wrong, unseen = math.log(2.1), math.log(21), 24 * math.log(2)
    expected = [(2 * right + wrong) / 3, (right + wrong + 2 * unseen) / 4, unseen]
    assert loss[:3].tolist() == pytest.approx(expected)
    assert loss[3:].isnan().all()


def test_distances_at_test_time_are_to_the_path_that_the_model_was_trained_towards() -> None:
    labels = random_tokens(2, lowest=1)
    batch = packed(random_tokens(1), labels)
    right = {}
    for power in (1.0, 1000.0):
        config = SupervisionConfig(path_power=power)
        trained = TrainedModel(tiny_model(), random_table(), config)
        measured = StepMetrics(batch, labels, trained, ARC_COLOURS, 1.0, diagnostics=True)
        assert measured.targets is not None
        right[power] = [bool(frame.all()) for frame in (measured.targets == labels[:, None])[0]]
    assert right == {1.0: [False, False, False, True], 1000.0: [False, True, True, True]}
