"""The TRM baseline: which example is in which slot when, what a step costs, what is saved."""

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    HALTING,
    checkpoint_tensors,
    read_metrics,
    run_training,
    torchrun,
    train_arguments,
)
from safetensors.torch import load_file, save_file
from tiny import SEQ_LEN, random_table, random_tokens, tiny_model
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from common.segments import Segment
from dataset.canvas import ARC_COLOURS
from models.build import build_supervision
from models.diagnostics import ACCURACY, DIAGNOSTICS, accuracy, diagnose
from models.halting import HaltingSupervision
from models.layers import HaltingHead
from models.objective import IGNORE, stablemax_cross_entropy
from models.recursive import RecursiveState, StepOutput, TinyRecursiveModel, run_step
from models.steps import TrainedModel
from models.supervision import StepResult, SupervisionConfig
from training import checkpoints

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
        logits = 9.0 * one_hot(answers(RIGHT[number]), 12)
        halting = torch.tensor(LOGITS[number], requires_grad=True)
        return StepOutput(state, logits.requires_grad_(), None, halting)


def answers(right: list[int]) -> Tensor:
    """Answers [4, 16] with so many of the two counted cells right: tokens 3 and 4."""
    shown = torch.full((len(right), SEQ_LEN), 11)
    for row, count in enumerate(right):
        shown[row, :count] = torch.tensor([3, 4])[:count]
    return shown


def batch(number: int) -> list[Segment]:
    """Four examples of puzzles 4 * number + slot; all have two counted cells, tokens 3 and 4."""
    labels = torch.zeros(SLOTS, SEQ_LEN, dtype=torch.long)
    labels[:, :2] = torch.tensor([3, 4])
    ids = 4 * number + torch.arange(SLOTS)
    return [Segment(random_tokens(number, SLOTS), labels, ids, torch.arange(SLOTS))]


def halting_supervision(
    network: nn.Module, model: TinyRecursiveModel | None = None, **changes: Any
) -> HaltingSupervision:
    """On `tiny_model`'s three steps, over a table of 40 puzzles; nothing is explored."""
    values = {"targets": "final", "halting": True, "halting_exploration": 0.0, **changes}
    diagnostics = values.pop("diagnostics", False)
    return HaltingSupervision(
        SupervisionConfig(**values),
        model or tiny_model(halting_head=True),
        network,
        random_table(num_puzzles=40),
        ARC_COLOURS,
        diagnostics,
    )


def taken(supervision: HaltingSupervision, count: int, first: int = 0) -> list[StepResult]:
    """One step for each of so many batches."""
    results = []
    for number in range(first, first + count):
        (result,) = supervision.run(batch(number), seed=number)
        results.append(result)
    return results


def test_examples_leave_when_they_say_so_or_after_the_last_step_by_hand() -> None:
    """A fresh example comes from the same place of the next batch, and starts at step 1."""
    results = taken(halting_supervision(Scripted()), 5)
    assert [result.puzzle_ids.tolist() for result in results] == PUZZLES
    assert [result.supervision_steps.tolist() for result in results] == STEPS
    finished = ["".join(str(int(f)) for f in result.finished) for result in results]
    assert finished == LEAVES
    for result, steps in zip(results, STEPS, strict=True):
        assert result.metrics["steps_taken"].tolist() == steps


@pytest.mark.parametrize("step_weights", ["uniform", "rising"])
@pytest.mark.parametrize("loss_weight", [0.0, 0.5, 2.0])
def test_the_loss_by_hand(loss_weight: float, step_weights: str) -> None:
    """Stablemax cross-entropy, weighted by step, plus the halting logit's cross-entropy."""
    supervision = halting_supervision(
        Scripted(), halting_loss_weight=loss_weight, step_weights=step_weights
    )
    results = taken(supervision, 5)
    # A logit of 9 among zeros has s = 10 of 21: a right cell costs ln 2.1, a wrong one ln 21.
    cost = [math.log(21), (math.log(21) + math.log(2.1)) / 2, math.log(2.1)]
    factors = {"uniform": (1, 1, 1), "rising": (0.5, 1, 1.5)}[step_weights]
    for right, logits, steps, result in zip(RIGHT, LOGITS, STEPS, results, strict=True):
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
    supervision = halting_supervision(network)
    (first,) = taken(supervision, 1)
    assert first.puzzle_vectors.is_leaf and first.puzzle_vectors.requires_grad
    before = supervision.puzzle_embedding.weight.clone()
    supervision.puzzle_embedding.weight[1] += 1
    taken(supervision, 1, first=1)
    changed = network.vectors[1]
    assert torch.equal(changed[1], before[1] + 1)
    assert torch.equal(changed[2], before[2])


class Eager(nn.Module):
    """Always wants to leave, with nothing right."""

    def forward(self, state: RecursiveState, inputs: Tensor, *_: Any) -> StepOutput:
        logits = torch.zeros(*inputs.shape, 12, requires_grad=True)
        return StepOutput(state, logits, None, torch.ones(len(inputs)))


@pytest.mark.parametrize(
    ("exploration", "num_steps", "left"), [(1.0, 4, {2, 3, 4}), (0.0, 4, {1}), (0.5, 1, {1})]
)
def test_an_explored_example_stays_until_its_earliest_step_however_eager_it_is(
    exploration: float, num_steps: int, left: set[int]
) -> None:
    model = tiny_model(halting_head=True, num_supervision_steps=num_steps)
    supervision = halting_supervision(Eager(), model, halting_exploration=exploration)
    left_after = set()
    for number in range(8):
        (result,) = taken(supervision, 1, first=number)
        is_last = result.supervision_steps == num_steps
        earliest = supervision.state_dict()["earliest"]
        assert torch.equal(result.finished, (result.supervision_steps >= earliest) | is_last)
        left_after.update(result.supervision_steps[result.finished].tolist())
    assert left_after == left


def earliest_steps(rows: Tensor, exploration: float, num_steps: int, seed: int = 0) -> Tensor:
    """Drawn for examples at these places of the global batch."""
    model = tiny_model(halting_head=True, num_supervision_steps=num_steps, hidden_size=4)
    table = random_table(num_puzzles=1, width=4)
    config = SupervisionConfig(targets="final", halting=True, halting_exploration=exploration)
    supervision = HaltingSupervision(config, model, Eager(), table, ARC_COLOURS, diagnostics=False)
    canvas = torch.ones(len(rows), 4, dtype=torch.long)
    list(supervision.run([Segment(canvas, canvas, torch.zeros_like(rows), rows)], seed))
    return supervision.state_dict()["earliest"]


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


# ---- the head --------------------------------------------------------------------------------


def restless_model(seed: int = 0, **changes: Any) -> TinyRecursiveModel:
    """Whose halting logit is above 0 for some examples and not for others."""
    model = tiny_model(seed, halting_head=True, **changes)
    assert model.halting_head is not None
    with torch.no_grad():
        generator = torch.Generator().manual_seed(9)
        model.halting_head.weight.normal_(generator=generator)
        model.halting_head.bias.zero_()
    return model


def test_the_head_starts_at_minus_5_whatever_it_sees() -> None:
    head = HaltingHead(8)
    assert head(3 * torch.randn(5, 8)).tolist() == [-5.0] * 5
    assert head(torch.randn(5, 8, dtype=torch.bfloat16)).dtype == torch.float32
    assert sum(p.numel() for p in head.parameters()) == 9


def test_the_head_reads_the_first_position_of_the_answer_by_hand() -> None:
    model = restless_model()
    model.halting_head.bias.data.fill_(0.25)
    output = taken_step(model)
    expected = output.state.y[:, 0] @ model.halting_head.weight + 0.25
    assert torch.allclose(output.halting_logits, expected)
    other = output.state.y[:, 1] @ model.halting_head.weight + 0.25
    assert (output.halting_logits - other).abs().max() > 0.01
    assert taken_step(tiny_model()).halting_logits is None


def taken_step(model: TinyRecursiveModel) -> StepOutput:
    vectors = random_table(num_puzzles=40).weight[:SLOTS]
    return run_step(model, vectors, model.initial_state(SLOTS, SEQ_LEN), batch(0)[0].inputs, 1)


def test_the_gradient_of_the_head_by_hand() -> None:
    """Half of the mean of (sigmoid(q) - right) times what the head sees; nothing is right yet."""
    model = restless_model()
    supervision = halting_supervision(model, model, halting_loss_weight=0.5)
    (result,) = taken(supervision, 1)
    result.loss.backward()
    output = taken_step(model)
    error = 0.5 * torch.sigmoid(output.halting_logits.detach()) / SLOTS
    assert result.metrics["exact_accuracy"].tolist() == [0] * SLOTS
    assert torch.allclose(model.halting_head.bias.grad, error.sum())
    expected = error @ output.state.y[:, 0]
    assert torch.allclose(model.halting_head.weight.grad, expected, atol=1e-6)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("loss_weight", [0.0, 0.5])
def test_the_halting_loss_trains_the_network_too_and_not_at_weight_0(loss_weight: float) -> None:
    """Where no cell counts, halting is all there is to learn from."""
    model = restless_model()
    supervision = halting_supervision(model, model, halting_loss_weight=loss_weight)
    (segment,) = batch(0)
    empty = segment._replace(labels=torch.zeros_like(segment.labels))
    (result,) = supervision.run([empty], seed=0)
    result.loss.backward()
    gradients = [p.grad.abs().max() for p in model.blocks.parameters()]
    reached = [gradient > 1e-5 for gradient in gradients]
    assert reached == [loss_weight > 0] * len(gradients)
    assert (result.puzzle_vectors.grad.abs().max() > 1e-6) == (loss_weight > 0)
    assert result.metrics["exact_accuracy"].tolist() == [0] * SLOTS, "nothing known, nothing right"


@pytest.mark.parametrize("next_input", ["question", "answer"])
@pytest.mark.parametrize("diagnostics", [False, True])
def test_every_slot_goes_its_way_as_if_it_were_alone(diagnostics: bool, next_input: str) -> None:
    """A real network, ten steps, against each slot on its own in a loop written out."""
    model, table = restless_model(), random_table(num_puzzles=40).weight
    supervision = halting_supervision(
        model, model, next_input=next_input, diagnostics=diagnostics, step_weights="rising"
    )
    with torch.no_grad():
        results = taken(supervision, 10)
    expected = [
        alone(model, table, slot, next_input, diagnostics, count=10) for slot in range(SLOTS)
    ]
    left_early = 0
    for number, result in enumerate(results):
        of_slots = [steps[number] for steps in expected]
        for slot, step in enumerate(of_slots):
            assert result.puzzle_ids[slot] == step["puzzle"]
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
        segment = batch(len(steps))[0]
        one = slice(slot, slot + 1)
        question, solution = segment.inputs[one], segment.labels[one]
        solution = solution.masked_fill(solution == 0, IGNORE)
        puzzle = segment.puzzle_ids[one]
        state, read, previous = model.initial_state(1, SEQ_LEN), question, question
        for s in (1, 2, 3):
            with torch.no_grad():
                output = run_step(model, table[puzzle], state, read, s)
                reference = model.read_out(state.y)
            answer = output.conditional_logits.argmax(dim=-1)
            q = output.halting_logits
            metrics = accuracy(answer, solution)
            is_right = metrics["exact_accuracy"]
            metrics |= {"steps_taken": [s], "halting_accuracy": [float((q > 0) == is_right)]}
            if diagnostics:
                logits = reference, output.conditional_logits
                metrics |= diagnose(previous, answer, solution, solution, *logits)
                assert {*DIAGNOSTICS} <= set(metrics)
            loss = 0.5 * s * stablemax_cross_entropy(output.conditional_logits, solution)
            loss = loss + 0.5 * binary_cross_entropy_with_logits(q, is_right)
            leaves = bool(q > 0) or s == 3
            steps.append(
                {
                    "puzzle": puzzle.item(),
                    "step": s,
                    "leaves": leaves,
                    "loss": loss.item(),
                    "metrics": {name: float(value[0]) for name, value in metrics.items()},
                }
            )
            state, previous = output.state, answer
            read = answer if next_input == "answer" else question
            if leaves:
                break
    return steps[:count]


def test_at_test_time_all_steps_are_taken_however_sure_the_network_is() -> None:
    model = tiny_model(halting_head=True)
    model.halting_head.bias.data.fill_(100.0)
    config = SupervisionConfig(targets="final", halting=True)
    trained = TrainedModel(model, random_table(num_puzzles=40), config)
    (segment,) = batch(0)
    with torch.no_grad():
        steps = trained.improve(segment.inputs, segment.puzzle_ids, trained.trained_steps)
        found = [step.logits for step in steps]
    assert len(found) == 3
    assert not torch.equal(found[1], found[2])


def test_the_config_chooses_the_scheme() -> None:
    model, table = tiny_model(halting_head=True), random_table(num_puzzles=40)
    for halting, steps_per_batch in ((True, 1), (False, 3)):
        config = SupervisionConfig(targets="final", halting=halting)
        supervision = build_supervision(config, model, model, table, ARC_COLOURS, False)
        assert isinstance(supervision, HaltingSupervision) == halting
        assert supervision.steps_per_batch == steps_per_batch


# ---- the state -------------------------------------------------------------------------------


def test_before_the_first_batch_there_is_no_state() -> None:
    supervision = halting_supervision(Eager())
    assert supervision.state_dict() == {}
    supervision.load_state_dict({})
    assert taken(supervision, 1)[0].puzzle_ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])
def test_the_state_is_all_that_the_next_batch_depends_on(interrupted_after: int) -> None:
    model = restless_model()
    through, first, second = (
        halting_supervision(model, model, next_input="answer", halting_exploration=0.5)
        for _ in range(3)
    )
    with torch.no_grad():
        expected = taken(through, 6)
        taken(first, interrupted_after)
        second.load_state_dict(
            {name: tensor.clone() for name, tensor in first.state_dict().items()}
        )
        rest = taken(second, 6 - interrupted_after, first=interrupted_after)
    for result, other in zip(rest, expected[interrupted_after:], strict=True):
        for name in ("loss", "puzzle_ids", "supervision_steps", "finished"):
            assert torch.equal(getattr(result, name), getattr(other, name)), name


@pytest.mark.parametrize(
    ("before", "after"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_a_state_goes_on_in_the_precision_of_the_model(
    before: torch.dtype, after: torch.dtype
) -> None:
    first, second = (
        halting_supervision(model, model)
        for model in (restless_model(compute_dtype=dtype) for dtype in (before, after))
    )
    with torch.no_grad():
        taken(first, 2)
        assert {first.state_dict()[name].dtype for name in "yz"} == {before}
        second.load_state_dict(first.state_dict())
        taken(second, 1, first=2)
    assert {second.state_dict()[name].dtype for name in "yz"} == {after}


# ---- in the trainer --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halting_runs(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> dict[str, Path]:
    """A start whose network halts some examples early, and a run of 12 steps from it. Read-only."""
    folder = tmp_path_factory.mktemp("halting")
    start = run_training(
        tiny_dataset, folder / "start", *HALTING, "train.max_steps=1", "train.eval_every=null"
    )
    newest = start / "checkpoints" / "step_00000001"
    for path in newest.glob("model*.safetensors"):
        tensors = load_file(path)
        generator = torch.Generator().manual_seed(1)
        tensors["halting_head.weight"].normal_(std=2, generator=generator)
        tensors["halting_head.bias"].zero_()
        save_file(tensors, path)
    one = run_training(tiny_dataset, folder / "one", *HALTING, f"init_from={start}")
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
    run_training(tiny_dataset, run_dir, *HALTING, "resume=auto")
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
    rates = ("per_second", "memory")
    metrics = [
        {
            (line["step"], name): value
            for line in read_metrics(run)
            for name, value in line.items()
            if isinstance(value, float | int) and not any(rate in name for rate in rates)
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
            run_training(tiny_dataset, run_dir, *HALTING, how)
        else:
            arguments = train_arguments(tiny_dataset, run_dir, *HALTING, how)
            process = torchrun(2, "train_arc_tiny_corrupt.py", *arguments)
            assert process.returncode == 0, process.stderr
        same(run_dir, halting_runs["one"])
        shutil.rmtree(run_dir / "checkpoints" / "step_00000012")
