"""Factored puzzle embeddings: vectors by hand, unseen variants, and the names they come from."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from arc_oracles import arc_options
from common.errors import UserError
from common.puzzles import NO_TASK, PuzzleFactors
from config.schema import TrainConfig
from dataset import build_nqueens_dataset
from dataset.augmentation import Variants, parse_variant_name, parse_variant_names, variant_names
from dataset.build_arc_dataset import build
from dataset.factors import puzzle_factors
from dataset.splits import open_split
from dataset.storage import load_identifiers
from evaluation.test_set import open_test_set
from models.puzzle_embedding import FactoredPuzzleEmbedding
from runs import checkpoint_tensors, read_results, run_evaluation, run_training
from tiny import CPU, random_table
from training.checkpoints import load_trained, stored_config

FACTORED = ("arch.puzzle_embedding=factored", "optim.puzzle_lr=0.01", "data.canvas=window")

TWO_TASKS = PuzzleFactors(
    task_names=("a", "b"),
    tasks=torch.tensor([NO_TASK, 1, 0]),
    dihedrals=torch.tensor([0, 3, 0]),
    permutations=torch.tensor([range(10), [0, 2, 1, *range(3, 10)], range(10)]),
)
"""The blank identifier, a variant of b, and a as it is."""


def random_factors(num_tasks: int = 2, width: int = 23) -> FactoredPuzzleEmbedding:
    # In double precision, as sums by hand add in another order.
    embedding = FactoredPuzzleEmbedding(num_tasks, width).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return embedding


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def by_hand(weights: dict[str, Tensor], task: int, dihedral: int, becomes: Sequence[int]) -> Tensor:
    """(1 + gamma) * e + beta, number by number."""
    e, variant = weights["task"][task].tolist(), weights["dihedral"][dihedral].tolist()
    width, slot = len(e), len(e) // 10
    for colour, to in enumerate(becomes):
        for place in range(slot):
            variant[slot * colour + place] += weights["colour"][to, place].item()
    hidden = [dot(row, e + variant) for row in weights["down"].tolist()]
    modulation = [dot(row, hidden) for row in weights["up"].tolist()]
    vector = [(1 + modulation[d]) * e[d] + modulation[width + d] for d in range(width)]
    return torch.tensor(vector, dtype=weights["task"].dtype)


def test_a_vector_is_the_tasks_modulated_by_the_variants_by_hand() -> None:
    embedding = random_factors()
    embedding.use(TWO_TASKS)
    with torch.no_grad():
        vectors = embedding.lookup(torch.tensor([1, 2, 0]))
    weights = {name.removesuffix(".weight"): w for name, w in embedding.named_parameters()}
    expected = by_hand(weights, 1, 3, [0, 2, 1, *range(3, 10)])
    torch.testing.assert_close(vectors[0], expected)
    torch.testing.assert_close(vectors[1], by_hand(weights, 0, 0, range(10)))
    assert not vectors[2].any(), "the blank identifier is no puzzle"


def test_each_factor_gets_the_gradient_of_the_puzzles_that_have_it() -> None:
    embedding = random_factors(num_tasks=3)
    embedding.use(TWO_TASKS)
    embedding.lookup(torch.tensor([1, 0, 1])).sum().backward()
    assert embedding.task.weight.grad.any(dim=1).tolist() == [False, True, False]
    assert embedding.dihedral.weight.grad.any(dim=1).nonzero().flatten().tolist() == [3]
    assert embedding.colour.weight.grad.any(dim=1).all(), "a permutation has every colour"
    assert embedding.down.weight.grad.any() and embedding.up.weight.grad.any()


def test_a_permutation_of_colours_permutes_the_code_and_another_has_another_vector() -> None:
    embedding = random_factors()
    swapped = [0, 2, 1, *range(3, 10)]
    embedding.use(TWO_TASKS._replace(permutations=torch.tensor([range(10), swapped, range(10)])))
    before = embedding.lookup(torch.tensor([1]))
    with torch.no_grad():
        embedding.colour.weight.copy_(embedding.colour.weight[swapped])
    embedding.use(TWO_TASKS._replace(permutations=torch.tensor([list(range(10))] * 3)))
    torch.testing.assert_close(embedding.lookup(torch.tensor([1])), before)
    embedding.use(TWO_TASKS)
    assert not torch.allclose(embedding.lookup(torch.tensor([1])), before)


def test_training_starts_as_with_the_table_all_vectors_are_zero() -> None:
    embedding = FactoredPuzzleEmbedding(2, 20)
    embedding.use(TWO_TASKS)
    assert not embedding.lookup(torch.arange(3)).any()
    assert embedding.num_parameters == (2 + 8) * 20 + 10 * 2 + 2 * 32 * 40
    assert random_table(num_puzzles=3, width=4).num_parameters == 12


def test_tasks_are_found_by_their_names_wherever_they_stand() -> None:
    numbered = TWO_TASKS.numbered_as(("c", "b", "a"), "a checkpoint")
    assert numbered.tasks.tolist() == [NO_TASK, 1, 2]
    with pytest.raises(UserError, match=r"a checkpoint was not trained on task 'a' \(1 of 2 tasks"):
        TWO_TASKS.numbered_as(("b", "c"), "a checkpoint")


# ---- names ----


def test_many_names_are_parsed_as_each_is_alone() -> None:
    rng = np.random.default_rng(0)
    permutations = np.array([[0, *rng.permutation(np.arange(1, 10))] for _ in range(40)])
    variants = Variants(rng.integers(0, 8, 40).astype(np.uint8), permutations.astype(np.uint8))
    names = [*variant_names("a task", variants), *variant_names("b", variants)]
    task_ids, parsed = parse_variant_names(names)
    for name, task_id, dihedral, permutation in zip(names, task_ids, *parsed, strict=True):
        expected = parse_variant_name(name)
        assert (task_id, dihedral) == expected[:2]
        assert np.array_equal(permutation, expected[2])


@pytest.mark.parametrize(
    "name",
    [
        "a|||t8|||0123456789",
        "a|||t1|||0123456788",
        "a|||t1|||012345678",
        "a|||x",
        "a||||1|||0123456789",
        "a|||t1|||012345678é",
        "a|||t1|||01234567890",
    ],
)
def test_a_name_of_another_form_is_refused_among_many(name: str) -> None:
    with pytest.raises(UserError, match="is not of the form"):
        parse_variant_names(["b", name, "b|||t1|||0213456789"])


def test_the_factors_of_a_dataset_are_those_of_its_names_whatever_the_layout(
    tiny_dataset: Path, tiny_compact_dataset: Path
) -> None:
    """Other code bases write the full layout, with the same names."""
    metadata = open_split(tiny_dataset, "train").metadata
    factors = puzzle_factors(tiny_dataset, metadata)
    names = load_identifiers(tiny_dataset)
    assert factors.tasks[0] == NO_TASK
    for puzzle, name in enumerate(names[1:], start=1):
        task_id, dihedral, permutation = parse_variant_name(name)
        assert factors.task_names[factors.tasks[puzzle]] == task_id
        assert factors.dihedrals[puzzle] == dihedral
        assert factors.permutations[puzzle].tolist() == permutation.tolist()
    other = puzzle_factors(tiny_compact_dataset, metadata)
    assert other.task_names == factors.task_names
    assert all(torch.equal(*pair) for pair in zip(other[1:], factors[1:], strict=True))


def test_where_puzzles_have_no_names_each_is_a_task(tiny_dataset: Path, tmp_path: Path) -> None:
    """As the boards of a puzzle, which share one embedding."""
    metadata = open_split(tiny_dataset, "train").metadata
    boards = tmp_path / "boards"
    options = {"output_dir": boards, "num_train": 8, "num_test": 2}
    build_nqueens_dataset.build(build_nqueens_dataset.BuildOptions(**options))
    factors = puzzle_factors(boards, open_split(boards, "train").metadata)
    assert factors.tasks.tolist() == [0] and factors.task_names == ("0",)
    # Other builders write no names at all.
    factors = puzzle_factors(tmp_path, metadata.model_copy(update={"num_puzzle_identifiers": 2}))
    assert factors.tasks.tolist() == [0, 1] and factors.task_names == ("0", "1")
    assert factors.permutations.tolist() == [list(range(10))] * 2
    (tmp_path / "identifiers.json").write_text(json.dumps(["<blank>", "a"]))
    with pytest.raises(UserError, match=r"names 2 puzzles, dataset\.json counts 3"):
        puzzle_factors(tmp_path, metadata.model_copy(update={"num_puzzle_identifiers": 3}))


# ---- from training to a score ----


@pytest.fixture(scope="module")
def factored_run(tmp_path_factory: pytest.TempPathFactory, roomy_compact_dataset: Path) -> Path:
    """Twelve steps with checkpoints at 6 and 12. Read-only."""
    run_dir = tmp_path_factory.mktemp("runs") / "factored"
    return run_training(roomy_compact_dataset, run_dir, *FACTORED)


def test_the_factors_are_saved_and_averaged_with_the_network(factored_run: Path) -> None:
    newest = factored_run / "checkpoints" / "step_00000012"
    assert "puzzle_embedding.safetensors" not in os.listdir(newest)
    tensors = checkpoint_tensors(newest)
    raw, ema = (
        tensors[f"{file}.safetensors:puzzle_embedding.task.weight"]
        for file in ("model", "model_ema")
    )
    assert raw.abs().max() > ema.abs().max() > 0
    tasks = json.loads((newest / "dataset.json").read_text())["tasks"]
    assert raw.shape == (len(tasks), 16)


def test_variants_that_were_not_seen_in_training_are_scored(
    factored_run: Path, kaggle_prefix: str, tmp_path: Path, in_process: None
) -> None:
    """On a dataset of other variants, of fewer of the tasks, and in another order."""
    data = tmp_path / "other"
    options = {"num_aug": 9, "seed": 7, "canvas_side": 10, "layout": "compact"}
    build(arc_options(kaggle_prefix, data, subsets=("evaluation",), **options))
    out = run_evaluation(tmp_path / "out", f"checkpoint={factored_run}", f"data.path={data}")
    test_set = open_test_set(data, None, "window")
    assert read_results(out)["num_predictions"] == len(test_set)
    path = factored_run / "checkpoints" / "step_00000012"
    config = stored_config(path, TrainConfig)
    trained, _ = load_trained(
        path, config.arch, config.supervision, test_set.fingerprint, test_set.puzzle_factors,
        "raw", config.train, CPU,
    )  # fmt: skip
    tensors = checkpoint_tensors(path)
    weights = {
        factor: tensors[f"model.safetensors:puzzle_embedding.{factor}.weight"]
        for factor in ("task", "dihedral", "colour", "down", "up")
    }
    tasks = json.loads((path / "dataset.json").read_text())["tasks"]
    names = load_identifiers(data)
    for puzzle in (1, 5, len(names) - 1):
        task_id, number, permutation = parse_variant_name(names[puzzle])
        expected = by_hand(weights, tasks.index(task_id), number, permutation)
        vectors = trained.puzzle_embedding.lookup(torch.tensor([puzzle]))
        torch.testing.assert_close(vectors[0].detach(), expected)


def test_a_task_that_was_not_trained_on_is_refused(
    factored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor can a checkpoint be read that does not say on which it was."""
    run_dir = shutil.copytree(factored_run, tmp_path / "run")
    path = run_dir / "checkpoints" / "step_00000012" / "dataset.json"
    stored = json.loads(path.read_text())
    for tasks, complaint in (
        (["another", *stored["tasks"][1:]], "was not trained on task"),
        (None, f"{path.parent} does not name its tasks"),
        ([["another"]], f"{path.parent} does not name its tasks"),
    ):
        path.write_text(json.dumps({**stored, "tasks": tasks}))
        with pytest.raises(SystemExit) as exit_info:
            run_evaluation(tmp_path / "out", f"checkpoint={run_dir}")
        assert exit_info.value.code == 2
        assert complaint in capsys.readouterr().err


def test_a_new_run_starts_from_the_network_with_or_without_its_factors(
    factored_run: Path, roomy_compact_dataset: Path, tmp_path: Path
) -> None:
    name = "puzzle_embedding.task.weight"
    averaged = checkpoint_tensors(factored_run / "checkpoints" / "step_00000012")
    unlike = ("arch.puzzle_embedding=table", "init_puzzle_embedding=false", "train.max_steps=3")
    run_dir = run_training(
        roomy_compact_dataset, tmp_path / "table", f"init_from={factored_run}", *unlike,
        "optim.lr=1e-12", "train.eval_every=null",
    )  # fmt: skip
    tensors = checkpoint_tensors(run_dir / "checkpoints" / "step_00000003")
    torch.testing.assert_close(
        tensors["model.safetensors:readout.weight"],
        averaged["model_ema.safetensors:readout.weight"],
    )
    for taken in (True, False):
        run_dir = run_training(
            roomy_compact_dataset, tmp_path / str(taken), *FACTORED, f"init_from={factored_run}",
            f"init_puzzle_embedding={taken}".lower(), "optim.lr=1e-12", "optim.puzzle_lr=0",
            "train.max_steps=3", "train.eval_every=null",
        )  # fmt: skip
        tensors = checkpoint_tensors(run_dir / "checkpoints" / "step_00000003")
        for key in ("readout.weight", name):
            expected = averaged[f"model_ema.safetensors:{key}"]
            if key == name and not taken:
                expected = torch.zeros_like(expected)
            torch.testing.assert_close(tensors[f"model.safetensors:{key}"], expected)
