"""The TRM baseline: which example is in which slot when, what a step costs, what is saved."""

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from common.packed import PackedBatch
from models.diagnostics import ACCURACY, DIAGNOSTICS, accuracy, margins, movement
from models.halting import HaltingSupervision, SlotProgress
from models.objective import IGNORE, stablemax_cross_entropy
from models.recursive import RecursiveState, StepOutput, TinyRecursiveModel, run_step
from models.steps import TrainedModel
from models.supervision import DeepImprovementSupervision, StepResult, Supervision
from runs import (
    HALTING,
    checkpoint_tensors,
    read_metrics,
    run_training,
    torchrun,
    train_arguments,
)
from tiny import SEQ_LEN, packed, random_table, random_tokens, tiny_model, tiny_supervision
from training import checkpoints
from training.metrics import is_of_the_machine

SLOTS = 4
RIGHT = [[2, 2, 0, 1], [0, 2, 1, 2], [1, 0, 2, 2], [2, 2, 0, 0], [0, 0, 0, 0]]
LOGITS = [
    [1.0, -1.0, -2.0, 0.0],  # Slot 0 leaves; a logit of 0 is not above 0.
    [-1.0, 2.0, -1.0, -1.0],  # Slot 1 leaves.
    [-1.0, 3.0, -4.0, 1.0],  # Slots 1 and 3 leave, and slot 2 after its third step anyway.
    [-2.0, -1.0, -1.0, -1.0],  # Slot 0 after its third step.
    [-1.0, -1.0, -1.0, -1.0],
]
PUZZLES = [[0, 1, 2, 3], [4, 1, 2, 3], [4, 9, 2, 3], [4, 13, 14, 15], [16, 13, 14, 15]]
STEPS = [[1, 1, 1, 1], [1, 2, 2, 2], [2, 1, 3, 3], [3, 1, 1, 1], [1, 2, 2, 2]]
LEAVES = ["1000", "0100", "0111", "1000", "0000"]


FINAL = {"targets": "final", "halting": True, "halting_exploration": 0.0}


class Scripted(nn.Module):
    """Gives answers and halting logits by a script."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors: list[Tensor] = []

    def forward(
        self, state: RecursiveState, inputs: Tensor, vectors: Tensor, steps: Tensor, *_: Any
    ) -> StepOutput:
        number = len(self.vectors)
        assert steps.tolist() == STEPS[number]
        self.vectors.append(vectors.detach().clone())
        # With so many of the two counted cells right: tokens 3 and 4.
        shown = torch.full((SLOTS, SEQ_LEN), 11)
        for row, count in enumerate(RIGHT[number]):
            shown[row, :count] = torch.tensor([3, 4])[:count]
        logits = 9.0 * one_hot(packed(shown).inputs.clamp(min=0), 12) + 0 * vectors.sum()
        return StepOutput(state, logits, None, torch.tensor(LOGITS[number]))


def batch(number: int, rows: list[int] | None = None, fill: tuple[int, ...] = ()) -> PackedBatch:
    """Four examples of puzzles 4 * number + slot; all have two counted cells, tokens 3 and 4."""
    labels = torch.zeros(SLOTS, SEQ_LEN, dtype=torch.long)
    labels[:, :2] = torch.tensor([3, 4])
    own = torch.tensor(rows or range(SLOTS))
    tokens = random_tokens(number, SLOTS)
    return packed(tokens[own], labels[own], fill=fill, puzzle_ids=4 * number + own, rows=own)


class Taken(NamedTuple):
    """A step, and the puzzles that took it."""

    puzzles: list[int]
    result: StepResult


class Slots:
    """Batch after batch under halting supervision; nothing is explored unless asked for."""

    def __init__(
        self,
        model: TinyRecursiveModel | None = None,
        network: nn.Module | None = None,
        diagnostics: bool = False,
        **config: Any,
    ) -> None:
        model = model or tiny_model(halting_head=True)
        table = random_table(num_puzzles=40)
        self.supervision: Supervision = tiny_supervision(
            model, table, SLOTS, diagnostics, **{**FINAL, **config}
        )
        if network is not None:
            model.forward = network.forward  # type: ignore[method-assign]
        self.table = table.weight
        self.progress: SlotProgress | None = None
        self.number = 0

    def take(self, count: int) -> list[Taken]:
        """One step for each of so many batches."""
        taken = []
        for _ in range(count):
            self.progress = self.supervision.begin(batch(self.number), self.number, self.progress)
            result = self.supervision.step(self.progress)
            taken.append(Taken(self.progress.puzzle_ids.tolist(), result))
            self.number += 1
        return taken


def test_examples_leave_when_they_say_so_or_after_the_last_step_by_hand() -> None:
    """A fresh example comes from the same place of the next batch, and starts at step 1."""
    taken = Slots(network=Scripted()).take(5)
    assert [puzzles for puzzles, _ in taken] == PUZZLES
    assert [result.supervision_steps.tolist() for _, result in taken] == STEPS
    finished = ["".join(str(int(f)) for f in result.finished) for _, result in taken]
    assert finished == LEAVES
    for (_, result), steps in zip(taken, STEPS, strict=True):
        assert result.metrics["steps_taken"].tolist() == steps


@pytest.mark.parametrize("step_weights", ["uniform", "rising"])
@pytest.mark.parametrize("loss_weight", [0.0, 0.5, 2.0])
def test_the_loss_by_hand(loss_weight: float, step_weights: str) -> None:
    """Stablemax cross-entropy, weighted by step, plus the halting logit's cross-entropy."""
    choices = {"halting_loss_weight": loss_weight, "step_weights": step_weights}
    taken = Slots(network=Scripted(), **choices).take(5)
    # A logit of 9 among zeros has s = 10 of 21: a right cell costs ln 2.1, a wrong one ln 21.
    cost = [math.log(21), (math.log(21) + math.log(2.1)) / 2, math.log(2.1)]
    factors = {"uniform": (1, 1, 1), "rising": (0.5, 1, 1.5)}[step_weights]
    for right, logits, steps, (_, result) in zip(RIGHT, LOGITS, STEPS, taken, strict=True):
        expected = 0.0
        for count, q, step in zip(right, logits, steps, strict=True):
            is_right = count == 2
            halting = math.log(1 + math.exp(-q if is_right else q))
            expected += (factors[step - 1] * cost[count] + loss_weight * halting) / SLOTS
        assert result.loss.item() == pytest.approx(expected, rel=1e-5)
        assert result.metrics["cell_accuracy"].tolist() == [count / 2 for count in right]
        assert result.metrics["exact_accuracy"].tolist() == [count == 2 for count in right]
        assert result.metrics["halting_accuracy"].tolist() == [
            (q > 0) == (count == 2) for count, q in zip(right, logits, strict=True)
        ]
        assert set(result.metrics) == {*ACCURACY, "steps_taken", "halting_accuracy"}


def test_a_step_sees_the_table_that_the_step_before_has_changed() -> None:
    network = Scripted()
    slots = Slots(network=network)
    slots.take(1)
    before = slots.table.clone()
    slots.table[1] += 1
    slots.take(1)
    assert torch.equal(network.vectors[1], before[[4, 1, 2, 3]] + torch.eye(4)[1].unsqueeze(1))


class Eager(nn.Module):
    """Always wants to leave, with nothing right."""

    def forward(
        self, state: RecursiveState, inputs: Tensor, vectors: Tensor, *_: Any
    ) -> StepOutput:
        logits = torch.zeros(len(inputs), 12) + 0 * vectors.sum()
        return StepOutput(state, logits, None, torch.ones(len(vectors)))


@pytest.mark.parametrize(
    ("exploration", "num_steps", "left"), [(1.0, 4, {2, 3, 4}), (0.0, 4, {1}), (0.5, 1, {1})]
)
def test_an_explored_example_stays_until_its_earliest_step_however_eager_it_is(
    exploration: float, num_steps: int, left: set[int]
) -> None:
    model = tiny_model(halting_head=True, num_supervision_steps=num_steps)
    slots = Slots(model, Eager(), halting_exploration=exploration)
    left_after = set()
    for _ in range(8):
        ((_, result),) = slots.take(1)
        is_last = result.supervision_steps == num_steps
        earliest = slots.progress.earliest
        assert torch.equal(result.finished, (result.supervision_steps >= earliest) | is_last)
        left_after.update(result.supervision_steps[result.finished].tolist())
    assert left_after == left


def earliest_steps(rows: Tensor, exploration: float, num_steps: int, seed: int = 0) -> Tensor:
    """Drawn for examples at these places of the global batch."""
    model = tiny_model(halting_head=True, num_supervision_steps=num_steps, hidden_size=4)
    supervision = Slots(model, halting_exploration=exploration).supervision
    return supervision.begin(
        packed(torch.ones(len(rows), 1).long(), rows=rows), seed, None
    ).earliest


@pytest.mark.parametrize("exploration", [0.0, 0.25, 1.0])
def test_the_earliest_step_is_explored_as_often_as_asked_and_uniform_over_2_to_the_last(
    exploration: float,
) -> None:
    """Of 8000 examples, a fifth of those explored for each of the steps 2 to 6; in 4 sigma."""
    counts = Counter(earliest_steps(torch.arange(8000), exploration, num_steps=6).tolist())
    assert set(counts) <= {1, 2, 3, 4, 5, 6}
    for step in range(1, 7):
        share = 1 - exploration if step == 1 else exploration / 5
        sigma = (8000 * share * (1 - share)) ** 0.5
        assert abs(counts[step] - 8000 * share) <= 4 * sigma, step


def test_what_is_explored_depends_on_seed_and_place_and_not_on_the_number_of_ranks() -> None:
    whole = earliest_steps(torch.arange(64), 0.5, num_steps=6)
    parts = [earliest_steps(rows, 0.5, num_steps=6) for rows in torch.arange(64).chunk(2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(parts[0], parts[1])
    assert not torch.equal(earliest_steps(torch.arange(64), 0.5, 6, seed=1), whole)


# ---- with a network --------------------------------------------------------------------------


def restless_model(seed: int = 0, **changes: Any) -> TinyRecursiveModel:
    """Whose halting logit is above 0 for some examples and not for others."""
    model = tiny_model(seed, halting_head=True, **changes)
    assert model.halting_head is not None
    with torch.no_grad():
        generator = torch.Generator().manual_seed(9)
        model.halting_head.weight.normal_(generator=generator)
        model.halting_head.bias.zero_()
    return model


def test_the_gradient_of_the_head_by_hand() -> None:
    """Half of the mean of (sigmoid(q) - right) times what the head sees; nothing is right yet."""
    model = restless_model()
    slots = Slots(model, halting_loss_weight=0.5)
    ((_, result),) = slots.take(1)
    given = batch(0)
    start = model.initial_state(len(given.inputs))
    output = run_step(model, slots.table[:SLOTS], start, given.inputs, torch.tensor(1), given)
    error = 0.5 * torch.sigmoid(output.halting_logits.detach()) / SLOTS
    assert result.metrics["exact_accuracy"].tolist() == [0] * SLOTS
    assert torch.allclose(model.halting_head.bias.grad, error.sum())
    expected = error @ output.state.y[given.offsets[:-1]]
    assert torch.allclose(model.halting_head.weight.grad, expected, atol=1e-6)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("loss_weight", [0.0, 0.5])
def test_the_halting_loss_trains_the_network_too_and_not_at_weight_0(loss_weight: float) -> None:
    """Where no cell counts, halting is all there is to learn from; what fills up never counts."""
    model = restless_model()
    supervision = Slots(model, halting_loss_weight=loss_weight).supervision
    given = batch(0, fill=(5, 0))
    empty = given._replace(labels=torch.zeros_like(given.labels))
    result = supervision.step(supervision.begin(empty, 0, None))
    gradients = [p.grad.abs().max() for p in model.blocks.parameters()]
    reached = [gradient > 1e-5 for gradient in gradients]
    assert reached == [loss_weight > 0] * len(gradients)
    moved = (result.puzzle_gradient.abs() > 1e-6).any(dim=1)
    assert moved.tolist() == [loss_weight > 0] * SLOTS + [False] * 2
    assert not result.metrics["exact_accuracy"].any(), "nothing known, nothing right"


@pytest.mark.parametrize("next_input", ["question", "answer"])
@pytest.mark.parametrize("diagnostics", [False, True])
def test_every_slot_goes_its_way_as_if_it_were_alone(diagnostics: bool, next_input: str) -> None:
    """A real network, ten steps, against each slot on its own in a loop written out."""
    model = restless_model()
    slots = Slots(model, None, diagnostics, next_input=next_input, step_weights="rising")
    taken = slots.take(10)
    expected = [
        alone(model, slots.table, slot, next_input, diagnostics, count=10) for slot in range(SLOTS)
    ]
    left_early = 0
    for number, (puzzles, result) in enumerate(taken):
        of_slots = [steps[number] for steps in expected]
        for slot, step in enumerate(of_slots):
            assert puzzles[slot] == step["puzzle"]
            assert result.supervision_steps[slot] == step["step"]
            assert result.finished[slot] == step["leaves"]
            left_early += bool(step["leaves"]) and step["step"] < 3
            assert result.metrics.keys() == step["metrics"].keys()
            for name, value in step["metrics"].items():
                assert result.metrics[name][slot].item() == pytest.approx(value, abs=1e-4), name
        mean = sum(step["loss"] for step in of_slots) / SLOTS
        assert result.loss.item() == pytest.approx(mean, rel=1e-4)
    assert 0 < left_early < 30, "some leave when they like, and some after the last step"


def alone(
    model: TinyRecursiveModel,
    table: Tensor,
    slot: int,
    next_input: str,
    diagnostics: bool,
    count: int,
) -> list[dict[str, Any]]:
    """What becomes of one slot in so many steps, one example after the other."""
    steps: list[dict[str, Any]] = []
    while len(steps) < count:
        one = batch(len(steps), rows=[slot])
        question, of = one.inputs, one.offsets
        solution = one.labels.masked_fill(one.labels == 0, IGNORE)
        state, read, previous = model.initial_state(len(question)), question, question
        for s in (1, 2, 3):
            with torch.no_grad():
                output = run_step(model, table[one.puzzle_ids], state, read, torch.tensor(s), one)
                reference = model.read_out(state.y)
            answer = output.conditional_logits.argmax(dim=-1)
            q = output.halting_logits
            metrics = accuracy(answer, solution, of)
            is_right = metrics["exact_accuracy"]
            metrics |= {"steps_taken": [s], "halting_accuracy": [float((q > 0) == is_right)]}
            if diagnostics:
                metrics |= movement(previous, answer, solution, solution, of)
                metrics |= margins(reference, output.conditional_logits, solution, of)
                assert {*DIAGNOSTICS} <= set(metrics)
            counted = solution != IGNORE
            losses = stablemax_cross_entropy(output.conditional_logits, solution)
            loss = 0.5 * s * losses[counted].mean()
            loss = loss + 0.5 * binary_cross_entropy_with_logits(q, is_right)
            leaves = bool(q > 0) or s == 3
            steps.append(
                {
                    "puzzle": one.puzzle_ids.item(),
                    "step": s,
                    "leaves": leaves,
                    "loss": loss.item(),
                    "metrics": {name: float(value[0]) for name, value in metrics.items()},
                }
            )
            state, previous = output.state, answer
            if next_input == "answer":
                read = torch.where(one.is_cell, answer, read)
            if leaves:
                break
    return steps[:count]


def test_at_test_time_all_steps_are_taken_however_sure_the_network_is() -> None:
    model = tiny_model(halting_head=True)
    model.halting_head.bias.data.fill_(100.0)
    slots = Slots(model)
    trained = TrainedModel(model, slots.supervision.puzzle_embedding, slots.supervision.config)
    with torch.no_grad():
        found = [step.logits for step in trained.improve(batch(0), trained.trained_steps)]
    assert len(found) == 3
    assert not torch.equal(found[1], found[2])


def test_the_config_chooses_the_scheme() -> None:
    model, table = tiny_model(halting_head=True), random_table(num_puzzles=40)
    for halting, scheme, steps_per_batch in (
        (True, HaltingSupervision, 1),
        (False, DeepImprovementSupervision, 3),
    ):
        supervision = tiny_supervision(model, table, SLOTS, targets="final", halting=halting)
        assert type(supervision) is scheme
        assert supervision.steps_per_batch == steps_per_batch


# ---- what is carried from batch to batch -----------------------------------------------------


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])
def test_what_is_carried_is_all_that_the_next_batch_depends_on(interrupted_after: int) -> None:
    model = restless_model()
    through, first, second = (
        Slots(model, next_input="answer", halting_exploration=0.5) for _ in range(3)
    )
    expected = through.take(6)
    first.take(interrupted_after)
    carried = first.supervision.carried(first.progress)
    carried = {name: tensor.clone() for name, tensor in carried.items()}
    second.number = interrupted_after
    second.progress = second.supervision.resumed(batch(interrupted_after), carried)
    rest = second.take(6 - interrupted_after)
    for ours, theirs in zip(rest, expected[interrupted_after:], strict=True):
        assert ours.puzzles == theirs.puzzles
        for name in ("loss", "supervision_steps", "finished"):
            assert torch.equal(getattr(ours.result, name), getattr(theirs.result, name)), name


def test_a_batch_can_go_on_in_parts_that_are_filled_up() -> None:
    """As on another number of ranks, or with other micro-batches: by places in the batch."""
    slots = Slots(restless_model(), next_input="answer")
    slots.take(3)
    carried = slots.supervision.carried(slots.progress)
    assert carried["rows"].tolist() == [0, 1, 2, 3]
    assert carried["y"].shape == (SLOTS, 3 + SEQ_LEN, 16)
    ((puzzles, expected),) = slots.take(1)
    loss = 0.0
    for rows in ([3, 0], [1, 2]):
        part = batch(3, rows, fill=(7, 0))
        before = slots.supervision.resumed(part, carried)
        progress = slots.supervision.begin(part, 3, before)
        again = slots.supervision.carried(progress)
        assert again["rows"].tolist() == rows
        assert {len(tensor) for tensor in again.values()} == {2}
        result = slots.supervision.step(progress)
        loss += result.loss.item()
        assert progress.puzzle_ids.tolist() == [*(puzzles[row] for row in rows), 0, 0]
        assert torch.equal(result.supervision_steps[:2], expected.supervision_steps[rows])
        assert torch.equal(result.finished[:2], expected.finished[rows])
    assert loss == pytest.approx(expected.loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_a_state_goes_on_in_the_precision_of_the_model(
    before: torch.dtype, after: torch.dtype
) -> None:
    first, second = (Slots(restless_model(compute_dtype=dtype)) for dtype in (before, after))
    first.take(2)
    carried = first.supervision.carried(first.progress)
    assert {carried[name].dtype for name in "yz"} == {before}
    state = second.supervision.resumed(batch(2), carried).state
    assert {part.dtype for part in state} == {after}
    assert torch.equal(state.y, carried["y"].flatten(0, 1).to(after))


# ---- in the trainer --------------------------------------------------------------------------


EXPLORING = (*HALTING, "supervision.halting_exploration=0.7")


@pytest.fixture(scope="module")
def halting_runs(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> dict[str, Path]:
    """A start from which examples halt early, and a run of 12 steps from it. Read-only.

    The network would halt all at once: when an example leaves is decided by its exploration, a
    function of the seed, and by nothing that rounding may turn.
    """
    folder = tmp_path_factory.mktemp("halting")
    start = run_training(
        tiny_dataset, folder / "start", *HALTING, "train.max_steps=1", "train.eval_every=null"
    )
    newest = start / "checkpoints" / "step_00000001"
    for path in newest.glob("model*.safetensors"):
        tensors = load_file(path)
        tensors["halting_head.bias"].fill_(100)
        save_file(tensors, path)
    one = run_training(tiny_dataset, folder / "one", *EXPLORING, f"init_from={start}")
    return {"start": start, "one": one}


def training_state(run_dir: Path, step: int) -> dict[str, Any]:
    return checkpoints.load_training_state(run_dir / "checkpoints" / f"step_{step:08}")


def under_way(run_dir: Path, step: int) -> dict[str, Tensor]:
    """The examples in their slots when this checkpoint was written."""
    tensors: dict[str, Tensor] = training_state(run_dir, step)["carried"]
    return tensors


def test_a_batch_serves_one_optimizer_step_and_metrics_say_how_many_steps_examples_took(
    halting_runs: dict[str, Path],
) -> None:
    run = halting_runs["one"]
    assert training_state(run, 12)["step"] == 12
    slots = under_way(run, 12)
    assert {len(tensor) for tensor in slots.values()} == {8}
    assert slots["steps"].unique().numel() > 1, "slots are at steps of their own"
    lines = [line for line in read_metrics(run) if "train/loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    for line in lines:
        finished = {name for name in line if not name[-1].isdigit() and "accuracy" in name}
        assert finished == {f"train/{name}" for name in (*ACCURACY, "halting_accuracy")}
        assert 1 < line["train/steps_taken"] < 3
    assert "train/halting_accuracy_step3" in lines[-1]
    evaluations = [line for line in read_metrics(run) if "eval/exact_accuracy" in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    assert {f"eval/exact_accuracy_step{s}" for s in (1, 2, 3)} <= set(evaluations[0])


def test_a_resumed_run_ends_bit_identical_with_examples_under_way(
    halting_runs: dict[str, Path], tiny_dataset: Path, tmp_path: Path
) -> None:
    finished, run_dir = halting_runs["one"], tmp_path / "resumed"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_00000012")
    free = under_way(run_dir, 6)["free"]
    assert free.any() and not free.all()
    run_training(tiny_dataset, run_dir, *EXPLORING, "resume=auto")
    same(run_dir, finished, rounding=0)


def same(run_dir: Path, other: Path, rounding: float = 1.0) -> None:
    """The same examples in the same slots, and all numbers to rounding; 0: to the bit."""
    for name, tensor in under_way(other, 12).items():
        of_run = under_way(run_dir, 12)[name]
        tolerance = 1e-4 * rounding if name in ("y", "z") else 0
        torch.testing.assert_close(of_run, tensor, rtol=tolerance, atol=tolerance, msg=name)
    tensors, expected = (
        checkpoint_tensors(run / "checkpoints" / "step_00000012") for run in (run_dir, other)
    )
    torch.testing.assert_close(tensors, expected, rtol=1e-5 * rounding, atol=1e-6 * rounding)
    metrics = [
        {
            (line["step"], name): value
            for line in read_metrics(run)
            for name, value in line.items()
            if isinstance(value, float | int) and not is_of_the_machine(name)
        }
        for run in (run_dir, other)
    ]
    tolerance = {"rel": 1e-4 * rounding, "abs": 1e-6 * rounding, "nan_ok": True}
    assert metrics[0] == pytest.approx(metrics[1], **tolerance)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_two_ranks_equal_one_and_another_number_of_ranks_can_go_on(
    first: int,
    then: int,
    halting_runs: dict[str, Path],
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    for ranks, how in ((first, f"init_from={halting_runs['start']}"), (then, "resume=auto")):
        if ranks == 1:
            run_training(tiny_dataset, run_dir, *EXPLORING, how)
        else:
            arguments = train_arguments(tiny_dataset, run_dir, *EXPLORING, how)
            process = torchrun(2, "train_arc_tiny_corrupt.py", *arguments)
            assert process.returncode == 0, process.stderr
        same(run_dir, halting_runs["one"])
        shutil.rmtree(run_dir / "checkpoints" / "step_00000012")
