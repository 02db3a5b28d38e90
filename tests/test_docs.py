"""README and docs say what is so: commands parse and run, links lead on, tables are current."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from tiny import cell_random, target_request

from config.loading import load_config
from config.schema import DiagnoseConfig, EvaluateConfig, TrainConfig
from dataset import build_arc_dataset, build_nqueens_dataset, build_sudoku_dataset, import_arc
from models.targets.request import TargetRequest, path_to_solution
from study import __main__ as study

OUTPUTS = ("data", "demo_output", "kaggle", "runs", "wandb")
"""Folders that the programs make."""
README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
]


def commands(program: str) -> list[str]:
    return [command for command in COMMANDS if program in command]


def arguments_of(command: str, program: str) -> list[str]:
    words = shlex.split(command)
    return words[words.index(program) + 1 :]


@pytest.mark.parametrize("command", commands("train_arc_tiny_corrupt.py"))
def test_every_training_command_is_a_valid_configuration(command: str) -> None:
    arguments = arguments_of(command, "train_arc_tiny_corrupt.py")
    load_config("train", TrainConfig, "", arguments)


@pytest.mark.parametrize("command", commands("evaluate.py"))
def test_every_evaluation_command_is_a_valid_configuration(command: str) -> None:
    load_config("evaluate", EvaluateConfig, "", arguments_of(command, "evaluate.py"))


def test_the_diagnosis_command_is_a_valid_configuration() -> None:
    (arguments,) = re.findall(r"`python diagnose.py ([^`]*)`", README)
    load_config("diagnose", DiagnoseConfig, "", arguments.split())


@pytest.mark.parametrize(
    ("module", "program"),
    [
        (build_nqueens_dataset, "dataset.build_nqueens_dataset"),
        (build_sudoku_dataset, "dataset.build_sudoku_dataset"),
        (study, "study"),
    ],
)
def test_every_other_command_parses(
    module: Any, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = commands(f"-m {program}")
    assert found
    for command in found:
        monkeypatch.setattr(sys, "argv", [program, *arguments_of(command, program)])
        module.parse_arguments()


def test_the_generator_that_the_readme_adds_works() -> None:
    """Its class as printed, in a registry of one."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {"torch": torch, "TargetRequest": TargetRequest, "Tensor": torch.Tensor}
    exec(code, names | {"path_to_solution": path_to_solution}, found := {})
    inputs, solution = torch.full((1, 16), 2), torch.full((1, 16), 3)
    frames = found["BackwardEdits"]()(target_request(inputs, solution, 4, cell_random(1)))
    assert [(frame == 3).nonzero()[0].item() for frame in frames[0]] == [12, 8, 4, 0]


def test_training_without_overrides_is_the_compact_model_on_arc_1() -> None:
    config = load_config("train", TrainConfig, "", [])
    assert config.arch.name == "compact"
    assert str(config.data.path) == "data/arc1concept-aug-1000"


@pytest.mark.parametrize("command", commands("dataset.build_arc_dataset"))
def test_the_builder_commands_run_word_for_word(
    command: str, tmp_path: Path, kaggle_prefix: str
) -> None:
    """In a folder where the named files exist, here with a few small tasks in each subset."""
    folder = tmp_path / "kaggle" / "combined"
    folder.mkdir(parents=True)
    sources = {"training": "training", "evaluation": "evaluation"}
    sources |= {"training2": "training", "evaluation2": "evaluation"}
    for subset, source in sources.items():
        for half in ("challenges", "solutions"):
            shutil.copy(
                f"{kaggle_prefix}_{source}_{half}.json", folder / f"arc-agi_{subset}_{half}.json"
            )
    for half in ("challenges", "solutions"):
        (folder / f"arc-agi_concept_{half}.json").write_text("{}")
    process = subprocess.run(
        [sys.executable, *shlex.split(command)[1:], "--num-aug", "3"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    options = arguments_of(command, "dataset.build_arc_dataset")
    built = tmp_path / options[options.index("--output-dir") + 1]
    assert (built / "train" / "all__inputs.npy").is_file()


def test_the_import_command_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands("dataset.import_arc")
    arguments = arguments_of(command, "dataset.import_arc")
    monkeypatch.setattr(sys, "argv", ["import_arc", *arguments])
    assert str(import_arc.parse_arguments().output_prefix) == "kaggle/combined/arc-agi"
    (first, *_) = commands("dataset.build_arc_dataset")
    monkeypatch.setattr(sys, "argv", ["build", *arguments_of(first, "dataset.build_arc_dataset")])
    options = build_arc_dataset.parse_arguments()
    assert (options.num_aug, options.seed, options.puzzle_identifiers_start) == (1000, 42, 1)


def test_every_link_and_path_of_the_readme_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    paths = re.findall(r"`((?:\w+/)+\w*(?:\.\w+)?|\w+\.py)`", README)
    ours = [p for p in paths if p.split("/")[0] not in OUTPUTS]
    assert links
    assert ours
    for path in (*links, *ours):
        assert (REPOSITORY / path).exists(), path


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) < 250


def test_the_make_commands_are_the_plain_ones() -> None:
    """What README gives for people without make is what make runs."""
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "$(BIN)/python demo.py" in makefile
    assert "$(BIN)/python -m pytest -n 2" in makefile
    assert any(command.endswith(".venv/bin/python demo.py") for command in COMMANDS)
    assert any(command.endswith(".venv/bin/python -m pytest -n 2") for command in COMMANDS)
