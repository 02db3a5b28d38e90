"""Optimizer steps: however a batch is cut, rehearsed, not finite, clipped, and without waiting."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import UserError
from common.packed import PackedBatch
from common.puzzles import PuzzleFactors
from models.attention import Kernel, grouped, varlen
from models.puzzle_embedding import PuzzleEmbedding
from models.supervision import StepResult
from tiny import (
    ALONE,
    CPU,
    SEQ_LEN,
    packed,
    random_table,
    random_tokens,
    tiny_model,
    tiny_optim,
    tiny_supervision,
)
from training.engine import ALIGNMENT, Engine, Gradients, is_captured
from training.metrics import MetricSums
from training.optimizers import WeightAverage, build_optimizers
from training.state import TrainingState

BATCH = 6
PUZZLES = torch.tensor([1, 3, 1, 0, 4, 3])
CELLS = [list(range(SEQ_LEN)), [0, 1, 2, 4, 5, 6, 15], [3, 14, 9, 1], [7], list(range(8)), [5, 6]]
ONE = ((0, 1, 2, 3, 4, 5),)
THREE = ((0, 4), (1, 3, 5), (2,))
"""The examples of a batch in one or in three micro-batches."""
HALTING = {"targets": "final", "halting": True}
EXPECTED = {"targets": "expected", "objective": "dual"}
QUICK = {
    "puzzle_embedding": "factored",
    "rotary": "grid",
    "short_convolution": True,
    "num_recursions": 2,
    "num_recursions_with_gradient": 2,
}
FIVE_PUZZLES = PuzzleFactors(
    ("a", "b"),
    torch.tensor([-1, 0, 0, 1, 1]),
    torch.tensor([0, 0, 5, 0, 2]),
    torch.arange(10).repeat(5, 1),
)


def batch(
    number: int,
    cut: tuple[tuple[int, ...], ...] = ONE,
    fill: tuple[int, ...] = (),
    whole: bool = False,
) -> list[PackedBatch]:
    """The micro-batches of a global batch, each filled up alike."""
    inputs, labels = random_tokens(number, BATCH), random_tokens(number + 100, BATCH, lowest=1)
    parts = []
    for rows in map(list, cut):
        cells = None if whole else [CELLS[row] for row in rows]
        places = {"puzzle_ids": PUZZLES[rows], "rows": torch.tensor(rows)}
        parts.append(packed(inputs[rows], labels[rows], cells, fill, **places))
    return parts


def build(
    optim: dict[str, Any] | None = None,
    diagnostics: bool = False,
    arch: dict[str, Any] | None = None,
    **supervision: Any,
) -> Engine:
    """On a tiny model, as if it were compiled: so that `prepare` has something to do."""
    config = tiny_optim(**{"lr": 1e-3, "ema_decay": 0.9, **(optim or {})})
    model = tiny_model(halting_head=supervision.get("halting", False), **(arch or {}))
    table: PuzzleEmbedding = random_table()
    if model.puzzle_embedding is not None:
        table = model.puzzle_embedding
        model.puzzle_embedding.use(FIVE_PUZZLES)
    scheme = tiny_supervision(model, table, BATCH, diagnostics, **supervision)
    average = WeightAverage(model, config.ema_decay) if config.ema_decay is not None else None
    state = TrainingState(model, table, build_optimizers(config, model), average, dataset={})
    metrics = MetricSums(scheme.metric_names, scheme.num_steps, CPU, flops=lambda *_: 0.0)
    return Engine(scheme, state, config, metrics, ALONE, compiled=True, captured=False)


def trained(engine: Engine) -> dict[str, Tensor]:
    """A copy of all that is trained."""
    state = engine.state
    tensors = {f"model {name}": tensor for name, tensor in state.model.state_dict().items()}
    if state.table is not None:
        tensors["table"] = state.table
    if state.average is not None:
        tensors |= {f"average {name}": tensor for name, tensor in state.average.weights.items()}
    for kind, optimizer in enumerate(state.optimizers):
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer {kind} {number} {k}": v for k, v in moments.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def take(engine: Engine, parts: list[PackedBatch], seed: int = 0, count: int | None = None) -> None:
    """All steps of a batch, or so many."""
    engine.begin(parts, seed)
    for _ in range(engine.supervision.steps_per_batch if count is None else count):
        engine.step(1.0)


# ---- however a batch is cut ------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", [{"objective": "dual", "next_input": "answer"}, EXPECTED, HALTING]
)
@pytest.mark.parametrize(
    ("cut", "fill"), [(THREE, ()), (ONE, (9, 0, 0)), (THREE, (19, 4, 0))], ids=str
)
def test_micro_batches_and_what_fills_them_up_train_as_one_exact_batch_does(
    cut: tuple[tuple[int, ...], ...], fill: tuple[int, ...], scheme: dict[str, Any]
) -> None:
    engines = [build(diagnostics=True, **scheme) for _ in range(2)]
    whole = "halting" in scheme
    for number in range(3):
        means = []
        for engine, parts in zip(
            engines,
            (batch(number, whole=whole), batch(number, cut, fill, whole)),
            strict=True,
        ):
            engine.metrics.begin_batch()
            take(engine, parts, number)
            means.append(engine.metrics.read(ALONE))
        exact, ours = means
        assert (ours.loss, ours.grad_norm) == pytest.approx((exact.loss, exact.grad_norm), rel=1e-4)
        assert ours.finished == pytest.approx(exact.finished, rel=1e-3, abs=1e-4)
        assert ours.skipped_steps == 0
    for (name, one), other in zip(
        trained(engines[0]).items(), trained(engines[1]).values(), strict=True
    ):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=2e-5, msg=name)
    assert (engines[0].state.puzzle_embedding.weight[2] == random_table().weight[2]).all()


def test_gradients_lie_in_one_stretch_by_hand() -> None:
    network = nn.ParameterList([torch.ones(2, 3), torch.ones(65), torch.ones(())])
    gradients = Gradients(network, num_vectors=4, width=2)
    assert [p.grad.shape for p in network] == [(2, 3), (65,), ()]
    assert len(gradients.of_network) == ALIGNMENT + 2 * ALIGNMENT + ALIGNMENT
    for number, parameter in enumerate(network, start=1):
        parameter.grad += number
    assert gradients.of_network.sum() == 6 * 1 + 65 * 2 + 3
    nothing = torch.zeros(2)
    for rows, values in (([2, 0], [[1.0, 2.0], [9.0, 9.0]]), ([0, 0], [[3.0, 4.0], [8.0, 8.0]])):
        given = packed(torch.ones(1, 1).long(), fill=(1,))._replace(rows=torch.tensor(rows))
        result = StepResult(torch.tensor(0.5), torch.tensor(values), nothing, nothing, {})
        gradients.add(given, result)
    # The second is a later supervision step of other examples and of the first again.
    result = result._replace(puzzle_gradient=torch.tensor([[10.0, 20.0], [7.0, 7.0]]))
    gradients.add(given, result)
    assert gradients.of_puzzles[:3].tolist() == [[13, 24], [0, 0], [1, 2]]
    assert gradients.loss == 1.5
    assert gradients.flat[-1] == 1.5 and gradients.flat[-9:-3].tolist() == [13, 24, 0, 0, 1, 2]
    # With factored embeddings there is nothing to keep for puzzles.
    gradients = Gradients(network, num_vectors=0, width=2)
    gradients.add(given, result._replace(puzzle_gradient=None))
    assert gradients.loss == 0.5 and gradients.of_puzzles.numel() == 0


def test_the_table_follows_the_dense_reference() -> None:
    """Puzzles 1 and 3 stand in the batch twice: their step is the sign of a sum."""
    config = {"puzzle_lr": 0.25, "puzzle_weight_decay": 0.5}
    engine, twin = build(config), build(config)
    before = engine.state.puzzle_embedding.weight.clone()
    (whole,) = batch(0)
    result = twin.supervision.step(twin.supervision.begin(whole, 0, None))
    total = torch.zeros_like(before).index_add_(0, PUZZLES, result.puzzle_gradient)
    take(engine, batch(0, THREE), count=1)
    expected = before * (1 - 0.25 * 0.5) - 0.25 * total.sign()
    expected[2] = before[2]  # Not in the batch.
    torch.testing.assert_close(engine.state.puzzle_embedding.weight, expected)


@pytest.mark.parametrize("cut", [ONE, THREE], ids=str)
def test_one_update_a_batch_is_by_the_sum_over_its_supervision_steps_by_hand(
    cut: list[list[int]],
) -> None:
    """The weights stay as they are until all steps are taken; then one update of everything."""
    config = {"puzzle_lr": 0.25, "puzzle_weight_decay": 0.5, "lr": 0.01, "beta1": 0.0}
    engine, twin = build({**config, "update": "batch"}), build(config)
    assert (engine.updates_per_batch, twin.updates_per_batch) == (1, 3)
    start, table = trained(engine), engine.state.puzzle_embedding.weight.clone()
    (whole,) = batch(0)
    progress = twin.supervision.begin(whole, 0, None)
    results = [twin.supervision.step(progress) for _ in range(3)]  # No update in between.
    total = torch.zeros_like(table)
    for result in results:
        total.index_add_(0, PUZZLES, result.puzzle_gradient)
    take(engine, batch(0, cut), count=1)
    expected = table * (1 - 0.25 * 0.5) - 0.25 * total.sign()
    expected[2] = table[2]  # Not in the batch.
    torch.testing.assert_close(engine.state.puzzle_embedding.weight, expected)
    # AdamW's first step, without a mean over time, goes against the sign of the sum.
    for (name, ours), parameter in zip(
        engine.supervision.model.named_parameters(),
        twin.supervision.model.parameters(),
        strict=True,
    ):
        large = parameter.grad.abs() > 1e-4
        moved = (ours - start[f"model {name}"] * (1 - 0.01 * 0.1)) / 0.01
        torch.testing.assert_close(moved[large], -parameter.grad.sign()[large], rtol=0, atol=2e-3)
    read = engine.metrics.read(ALONE)
    assert read.loss == pytest.approx(sum(r.loss.item() for r in results) / 3, rel=1e-5)


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_clipping_is_pytorchs_and_the_norm_that_is_recorded_is_that_before(limit: float) -> None:
    engine, twin = build({"grad_clip": limit}), build()
    (whole,) = batch(0)
    twin.supervision.step(twin.supervision.begin(whole, 0, None))
    norm = nn.utils.clip_grad_norm_(twin.supervision.model.parameters(), limit)
    clipped: list[Tensor] = []
    (optimizer,) = engine.state.optimizers
    real = optimizer.step

    def spy() -> None:
        clipped.extend(p.grad.clone() for p in engine.supervision.model.parameters())
        real()

    optimizer.step = spy
    take(engine, batch(0, THREE), count=1)
    for ours, parameter in zip(clipped, twin.supervision.model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-6)
    assert engine.metrics.read(ALONE).grad_norm == pytest.approx(norm.item(), rel=1e-4)


# ---- rehearsed -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [{"next_input": "answer"}, HALTING], ids=["dis", "halting"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize(
    ("name", "arch"), [("adamw", {}), ("adam_atan2", {}), ("muon", QUICK)], ids=str
)
def test_of_a_rehearsal_nothing_remains(
    name: str, arch: dict[str, Any], ema_decay: float | None, scheme: dict[str, Any]
) -> None:
    """But the optimizer's state, all zero; and training goes on as if there had been none."""
    optim = {"name": name, "ema_decay": ema_decay}
    engine, twin = (build(optim, arch=arch, **scheme) for _ in range(2))
    for number in range(2):  # The second as of a run that is resumed.
        parts = batch(number, THREE, fill=(5, 0), whole=True)
        for each in (engine, twin):
            each.begin(parts, number)
        before = trained(engine)
        progress = [tensor.clone() for p in engine.under_way for tensor in p.tensors()]
        engine.prepare()
        after = trained(engine)
        new = {name for name in after if name not in before}
        assert bool(new) == (number == 0)
        assert not any(after.pop(name).any() for name in new)
        assert same(before, after)
        assert not engine.gradients.flat.any()
        now = [tensor for p in engine.under_way for tensor in p.tensors()]
        assert all(torch.equal(*pair) for pair in zip(progress, now, strict=True))
        for each in (engine, twin):
            for _ in range(each.supervision.steps_per_batch):
                each.step(1.0)
        for own, other in zip(engine.metrics.tensors(), twin.metrics.tensors(), strict=True):
            assert torch.equal(own, other)
        assert same(trained(engine), trained(twin))


def test_where_nothing_is_compiled_or_captured_nothing_is_rehearsed() -> None:
    engine = build()
    engine.compiled = False
    engine.begin(batch(0), 0)
    engine.prepare()
    assert not any(optimizer.state for optimizer in engine.state.optimizers)


# ---- not finite ------------------------------------------------------------------------------


def spoil(engine: Engine, what: str, value: float) -> Callable[[], None]:
    """Make the next steps' loss or gradient not finite, until what is returned is called."""
    real = engine.supervision.step

    def spoiled(progress: Any) -> StepResult:
        result = real(progress)
        if what == "loss":
            return result._replace(loss=result.loss * value)
        if what == "all":
            for parameter in engine.supervision.model.parameters():
                parameter.grad.fill_(value)
            return result._replace(puzzle_gradient=result.puzzle_gradient * value)
        engine.supervision.model.readout.weight.grad[3, 2] = value
        return result

    engine.supervision.step = spoiled
    return lambda: setattr(engine.supervision, "step", real)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient", "all"])
@pytest.mark.parametrize("name", ["adamw", "adam_atan2"])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_trains(
    name: str, what: str, value: float
) -> None:
    """It is counted, and no mean has it; whether it is the first or a later one."""
    engine, twin = (build({"name": name, "grad_clip": 1.0}) for _ in range(2))
    for number in range(2):
        before = trained(engine)
        mend = spoil(engine, what, value)
        take(engine, batch(9, THREE), count=1)
        mend()
        after = trained(engine)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        assert not engine.gradients.flat.any()
        # What follows is as if it had never been.
        for each in (engine, twin):
            take(each, batch(number))
        assert same(trained(engine), trained(twin))
        assert not same(before, trained(engine))
    engine.metrics.begin_batch()
    means, expected = engine.metrics.read(ALONE), twin.metrics.read(ALONE)
    assert (means.skipped_steps, expected.skipped_steps) == (2, 0)
    assert (means.loss, means.grad_norm) == (expected.loss, expected.grad_norm)


# ---- without waiting for the device ----------------------------------------------------------


class WithoutWaiting(TorchDispatchMode):
    """Fails at what would make the host wait for a GPU, or cannot be captured as a graph."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "masked_select",
        "is_nonzero",
        "equal",
        "lift_fresh",  # torch.tensor(...): a copy from the host.
    )

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            # A mask as an index is looked through for what is true.
            assert not any(i is not None and i.dtype == torch.bool for i in arguments[1]), name
        if name == "repeat_interleave":
            assert (keywords or {}).get("output_size") is not None, name
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: torch.tensor(3.0) * x,
        lambda x: torch.unique(x),
        lambda x: x.long().repeat_interleave(x.long()),
    ],
)
def test_the_detector_of_waiting_detects_it(waits: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError), WithoutWaiting():
        waits(torch.ones(3))


@pytest.mark.parametrize("diagnostics", [False, True])
@pytest.mark.parametrize(
    "scheme", [{}, {"objective": "dual", "next_input": "answer"}, EXPECTED, HALTING], ids=str
)
@pytest.mark.parametrize("arch", [{}, QUICK], ids=["plain", "quick"])
@pytest.mark.parametrize("name", ["adamw", "adam_atan2", "muon"])
def test_no_step_waits_for_the_device(
    name: str, arch: dict[str, Any], scheme: dict[str, Any], diagnostics: bool
) -> None:
    """Attention on a CPU reads the offsets, as no kernel on a GPU does: values stand in for it."""
    update = "batch" if arch and not scheme.get("halting") else "step"
    optim = {"name": name, "grad_clip": 1.0, "update": update}
    engine = build(optim, diagnostics, arch, **scheme)
    for block in engine.state.model.blocks:
        block.attention.kernel = lambda q, k, v, offsets, longest: v
    parts = batch(0, THREE, fill=(7, 0), whole=True)
    engine.begin(parts, 0)
    engine.step(1.0)  # The optimizers make their state.
    more = batch(1, THREE, fill=(7, 0), whole=True)
    before = trained(engine)
    with WithoutWaiting():
        engine.begin(more, 1)
        engine.step(0.5)
    assert not same(before, trained(engine))


@pytest.mark.parametrize(
    ("graphs", "kernel", "captured"),
    [("auto", varlen, True), ("on", varlen, True), ("off", varlen, False),
     ("auto", grouped, False), ("off", grouped, False)],
)  # fmt: skip
def test_steps_are_captured_where_attention_waits_for_nothing_unless_that_is_off(
    graphs: str, kernel: Kernel, captured: bool
) -> None:
    model = tiny_model(num_layers=2)
    for block in model.blocks:
        block.attention.kernel = kernel
    assert is_captured(graphs, model) == captured


def test_graphs_are_refused_where_there_are_none() -> None:
    with pytest.raises(UserError, match=r"train\.graphs=on: .*float32 on cpu"):
        is_captured("on", tiny_model())
