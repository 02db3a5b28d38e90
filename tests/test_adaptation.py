"""Adaptation: new puzzles start at the mean vector, and only what was asked for learns."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.packed import PackedBatch
from dataset.canvas import ARC_COLOURS
from models.build import ComputeConfig
from models.pretrained import StoredModel, unaugmented
from models.puzzle_embedding import PuzzleTable
from models.recursive import TinyRecursiveModel
from models.steps import TrainedModel
from models.supervision import SupervisionConfig
from tiny import (
    ALONE,
    NUM_TASKS,
    packed,
    random_table,
    random_tokens,
    tiny_arch,
    tiny_model,
    tiny_optim,
)
from training.adaptation import (
    TASK_VECTORS,
    AdaptConfig,
    Adapted,
    adapt,
    new_vectors,
    train_only,
    with_new_puzzles,
)
from training.optimizers import OptimConfig, build_optimizers


def endless_batches() -> Iterator[list[PackedBatch]]:
    """Four examples of puzzles 0 to 3."""
    inputs, labels = random_tokens(1, rows=4, lowest=2), random_tokens(2, rows=4, lowest=2)
    return itertools.repeat([packed(inputs, labels, rows=torch.arange(4))])


def trained_model(factored: bool) -> TrainedModel:
    embedding = "factored" if factored else "table"
    model = tiny_model(puzzle_embedding=embedding)
    if model.puzzle_embedding is None:
        return TrainedModel(model, random_table(), SupervisionConfig())
    torch.nn.init.normal_(model.puzzle_embedding.task.weight)
    factors = unaugmented(("a", "b"))._replace(
        tasks=torch.tensor([-1, 0, 0, 1]), dihedrals=torch.tensor([0, 0, 3, 5]),
        permutations=torch.arange(10).expand(4, -1),
    )  # fmt: skip
    model.puzzle_embedding.use(factors)
    return TrainedModel(model, model.puzzle_embedding, SupervisionConfig())


def run(trained: TrainedModel, trained_by: OptimConfig | None = None, **config: Any) -> Adapted:
    options = AdaptConfig(**{"max_steps": 6, "batch_size": 4, "warmup_steps": 0, **config})
    return adapt(
        trained, options, trained_by or tiny_optim(), ARC_COLOURS, endless_batches(), 0, ALONE,
        ComputeConfig(),
    )  # fmt: skip


def changed(trained: TrainedModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, t in tensors(trained).items() if not torch.equal(t, before[name])}


def tensors(trained: TrainedModel) -> dict[str, torch.Tensor]:
    """All numbers of a model, copied; those of a table as `table`."""
    found = dict(trained.model.state_dict())
    if isinstance(trained.puzzle_embedding, PuzzleTable):
        found["table"] = trained.puzzle_embedding.weight
    return {name: tensor.detach().clone() for name, tensor in found.items()}


# ---- new puzzles -----------------------------------------------------------------------------


def test_new_vectors_are_the_mean_of_the_trained_ones() -> None:
    """Rows of zeros are of puzzles that training has not met, and do not count."""
    trained = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert new_vectors(trained, 3).tolist() == [[2.0, 2.0]] * 3
    assert new_vectors(torch.zeros(4, 2), 2).tolist() == [[0.0, 0.0]] * 2


def stored_model(model: TinyRecursiveModel, table: torch.Tensor | None) -> StoredModel:
    return StoredModel(
        tiny_arch(), SupervisionConfig(), model.state_dict(), "raw", table, {}, {"x": 1}, "it"
    )


def test_of_a_table_every_new_puzzle_has_the_mean_and_the_network_is_kept() -> None:
    model, table = tiny_model(), random_table().weight
    fresh = with_new_puzzles(stored_model(model, table), 9, ())
    assert fresh.table is not None
    assert torch.equal(fresh.table, table.mean(dim=0).expand(9, -1))
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.weights[name], tensor)
    assert fresh.tasks == {}  # Its identifiers mean other puzzles now.


def test_of_factored_vectors_the_tasks_are_new_and_what_puzzles_share_is_kept() -> None:
    model = trained_model(factored=True).model
    fresh = with_new_puzzles(stored_model(model, None), 9, ("x", "y", "z"))
    before = model.state_dict()
    expected = before[TASK_VECTORS].mean(dim=0).expand(3, -1)
    assert torch.allclose(fresh.weights[TASK_VECTORS], expected)
    assert len(before[TASK_VECTORS]) == NUM_TASKS
    for name in before.keys() - {TASK_VECTORS}:
        assert torch.equal(fresh.weights[name], before[name])


@pytest.mark.parametrize("table", [None, torch.zeros(16), torch.zeros(0)])
def test_a_damaged_model_is_left_to_the_loader(table: torch.Tensor | None) -> None:
    """Which says what does not fit: here there are no vectors at all, or no table of them."""
    stored = stored_model(tiny_model(), table)
    assert with_new_puzzles(stored, 9, ("x",)) is stored


# ---- what learns -----------------------------------------------------------------------------


def test_of_a_table_the_vectors_alone_learn_and_no_other_number_changes() -> None:
    """Of the table those of the batch's puzzles: 0 to 3 of 5."""
    trained = trained_model(factored=False)
    before = tensors(trained)
    found = run(trained, weights="vectors")
    assert changed(trained, before) == {"table"}
    is_same = (trained.puzzle_embedding.weight == before["table"]).all(dim=1)  # type: ignore[attr-defined]
    assert is_same.tolist() == [False, False, False, False, True]
    assert (found.weights, found.steps, found.parameters) == ("vectors", 6, 5 * 16)


@pytest.mark.parametrize("name", ["adamw", "adam_atan2", "muon"])
def test_of_factored_ones_the_tasks_vectors_alone_learn(name: str) -> None:
    """Whatever the optimizer: what it does not train it does not decay either."""
    trained = trained_model(factored=True)
    before = tensors(trained)
    found = run(trained, tiny_optim(name=name, weight_decay=0.5), weights="vectors")
    assert changed(trained, before) == {TASK_VECTORS}
    assert found.parameters == NUM_TASKS * 16


@pytest.mark.parametrize("factored", [False, True])
def test_all_weights_learn_if_asked_for(factored: bool) -> None:
    trained = trained_model(factored)
    before = tensors(trained)
    found = run(trained, weights="all")
    fixed = {"y_init", "z_init"}  # No parameters: they stay as they were drawn.
    assert changed(trained, before) == before.keys() - fixed
    assert found.parameters == sum(t.numel() for n, t in before.items() if n not in fixed)


@pytest.mark.parametrize("factored", [False, True])
def test_what_learns_comes_closer_to_the_demonstrations(factored: bool) -> None:
    """Six of 120 steps against all; by the loss, whatever is answered."""
    losses = [
        run(trained_model(factored), weights="all", max_steps=steps).loss for steps in (6, 120)
    ]
    assert losses[1] is not None and losses[0] is not None
    assert losses[1] < losses[0]


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = trained_model(factored=False), trained_model(factored=False)
    for trained in (first, second):
        run(trained, weights="all")
    assert changed(first, tensors(second)) == set()


def test_weights_that_do_not_learn_have_no_optimizer() -> None:
    model = tiny_model()
    train_only(model, "vectors")
    assert build_optimizers(tiny_optim(), model) == []
    train_only(model, "all")
    assert len(build_optimizers(tiny_optim(), model)) == 1


# ---- how fast, and for how long --------------------------------------------------------------


def test_rates_are_multiples_of_those_of_the_training() -> None:
    trained_by = OptimConfig(lr=0.1, muon_lr=0.2, puzzle_lr=0.3, weight_decay=0.7, name="muon")
    config = AdaptConfig(lr_factor=0.5, puzzle_lr_factor=2.0, warmup_steps=3)
    optim = config.optim(trained_by)
    assert (optim.lr, optim.muon_lr, optim.puzzle_lr) == (0.05, 0.1, 0.6)
    assert (optim.name, optim.weight_decay, optim.warmup_steps) == ("muon", 0.7, 3)


def test_steps_are_rounded_up_to_whole_batches() -> None:
    assert run(trained_model(factored=False), max_steps=7).steps == 9


def test_minutes_end_it_at_the_end_of_a_batch() -> None:
    """However few: a batch is always taken."""
    assert run(trained_model(factored=False), max_steps=None, max_minutes=1e-9).steps == 3


def test_something_must_end_it() -> None:
    with pytest.raises(ValueError, match=r"adapt\.max_steps=null needs adapt\.max_minutes"):
        AdaptConfig(max_steps=None)


def test_an_adaptation_without_a_finite_step_is_an_error_with_a_remedy() -> None:
    trained = trained_model(factored=False)
    trained.puzzle_embedding.weight.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"diverged.*adapt\.lr_factor"):
        run(trained)
