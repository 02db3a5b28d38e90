"""README and docs say what is so: commands parse and run, links lead on, tables are current."""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import export
import import_checkpoint
from common.flags import parse_flags
from common.puzzles import NO_TASK, PuzzleFactors
from config.loading import load_config
from config.multirun import FLAGS, combinations
from config.schema import DiagnoseConfig, EvaluateConfig, OwnPuzzlesConfig, TrainConfig
from conftest import REPOSITORY
from dataset import (
    build_maze_dataset,
    build_nqueens_dataset,
    build_plan,
    build_sudoku_dataset,
    import_arc,
)
from evaluation import compare
from models import puzzle_embedding, targets
from models.exported import write_exported
from models.pretrained import StoredModel
from models.supervision import SupervisionConfig
from study import __main__ as study
from tiny import cell_random, target_request, tiny_arch, tiny_model
from training import optimizers

OUTPUTS = ("data", "demo_output", "exported", "imported", "kaggle", "runs", "wandb")
"""Folders that the programs make."""
README = (REPOSITORY / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted(REPOSITORY.glob("docs/*.md"))}
EXTENDING = PAGES["extending.md"]
EVERYWHERE = "\n".join([README, *PAGES.values()])


def commands_of(text: str) -> list[str]:
    """The lines of its shell blocks, without comments."""
    return [
        re.sub(r"(^| )#.*", "", line).strip()
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]


def arguments_of(program: str, text: str = README) -> list[list[str]]:
    """Of every command that runs the program; each once."""
    found = []
    for command in commands_of(text):
        words = shlex.split(command)
        if words[:3] == ["srun", "bash", "-c"]:  # Slurm starts a shell on each node.
            words = shlex.split(words[3])
        if program in words and (given := words[words.index(program) + 1 :]) not in found:
            found.append(given)
    return found


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


SCRIPTS = (
    ("train", TrainConfig, "train_arc_tiny_corrupt.py"),
    ("evaluate", EvaluateConfig, "evaluate.py"),
    ("diagnose", DiagnoseConfig, "diagnose.py"),
    ("predict", OwnPuzzlesConfig, "predict.py"),
)
CONFIGURED: list[tuple[str, Any, list[str]]] = [
    *(
        (name, schema, given)
        for name, schema, script in SCRIPTS
        for given in arguments_of(script, EVERYWHERE)
        if not FLAGS & set(given)
    ),
    *(
        ("diagnose", DiagnoseConfig, given.split())
        for given in re.findall(r"`python diagnose.py ([^`]*)`", README)
    ),
]
SWEEPS = [
    given for given in arguments_of("train_arc_tiny_corrupt.py", EVERYWHERE) if FLAGS & set(given)
]


def test_there_are_commands_of_each_script() -> None:
    assert {name for name, _, _ in CONFIGURED} == {"train", "evaluate", "predict", "diagnose"}


@pytest.mark.parametrize(("name", "schema", "arguments"), CONFIGURED)
def test_every_command_of_a_script_is_a_valid_configuration(
    name: str, schema: Any, arguments: list[str]
) -> None:
    load_config(name, schema, "", arguments)


@pytest.mark.parametrize("arguments", SWEEPS)
def test_every_run_of_a_sweep_is_a_valid_configuration(arguments: list[str]) -> None:
    runs = combinations([word for word in arguments if word not in FLAGS])
    assert len(runs) > 1
    for overrides in runs:
        load_config("train", TrainConfig, "", overrides)


def test_training_without_overrides_is_the_compact_model_on_arc_1() -> None:
    config = load_config("train", TrainConfig, "", [])
    assert config.arch.name == "compact"
    assert str(config.data.path) == "data/arc1concept-aug-1000"


@pytest.mark.parametrize(
    ("options", "program", "expected"),
    [
        (build_nqueens_dataset.BuildOptions, "dataset.build_nqueens_dataset", {}),
        (build_sudoku_dataset.BuildOptions, "dataset.build_sudoku_dataset", {}),
        (build_maze_dataset.BuildOptions, "dataset.build_maze_dataset", {}),
        (
            import_arc.ImportOptions,
            "dataset.import_arc",
            {"output_prefix": "kaggle/combined/arc-agi"},
        ),
        (
            build_plan.BuildOptions,
            "dataset.build_arc_dataset",
            {"num_aug": 1000, "seed": 42, "puzzle_identifiers_start": 1},
        ),
    ],
)
def test_every_other_command_parses(
    options: Any,
    program: str,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """In a folder where the CSVs exist."""
    monkeypatch.chdir(tmp_path)
    found = arguments_of(program, EVERYWHERE)
    assert found
    for arguments in found:
        for file in arguments:
            if file.endswith(".csv"):
                Path(file).touch()
        parsed = parse_flags(options, program, None, arguments)
        if arguments in arguments_of(program):  # The README's are the published ones.
            assert {key: getattr(parsed, key) for key in expected} == expected


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(REPOSITORY.glob("dataset/*.py")) if "__main__" in p.read_text()],
    ids=lambda path: path.stem,
)
def test_a_command_that_is_run_by_its_path_says_how_it_is_run(
    path: Path, refused: Callable[..., str]
) -> None:
    """As other code bases' READMEs do; it then finds none of the packages."""
    line = f"error: run it in the repository's folder, as python -m dataset.{path.stem}"
    assert refused(path) == line


def test_the_study_command_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    (arguments,) = arguments_of("study")
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    study.parse_arguments()


def test_the_comparison_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    (arguments,) = arguments_of("evaluation.compare")
    monkeypatch.setattr(sys, "argv", ["evaluation.compare", *arguments])
    parsed = compare.parse_arguments()
    assert parsed.A.parent.name == "compact-seed0" and parsed.B.parent.name == "compact-seed1"


def test_the_generator_that_is_added_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its function as printed, added to the module, and its line to the registry."""
    (code,) = [block for block in python_blocks(EXTENDING) if "def backwards" in block]
    (line,) = re.findall(r"`(\"backwards\": .*?),`", EXTENDING)
    exec(code, names := dict(vars(targets)))
    monkeypatch.setattr(targets, "TARGETS", targets.TARGETS | eval(f"{{{line}}}", names))
    inputs, solution = torch.full((1, 16), 2), torch.full((1, 16), 3)
    request = target_request(inputs, solution, 4, cell_random(1))
    frames = targets.TARGETS["backwards"].generate(request)
    assert [(frame == 3).nonzero()[0].item() for frame in frames[0]] == [12, 8, 4, 0]


def test_the_optimizer_that_is_added_follows_schedules_and_skips_what_is_not_finite() -> None:
    """Its lines as printed, in the place that the page names."""
    (lines,) = [block for block in python_blocks(EXTENDING) if '"adam"' in block]
    source = inspect.getsource(optimizers.build_optimizers)
    before = '    if config.name == "adam_atan2":\n'
    assert before in source
    exec(source.replace(before, lines + before), names := dict(vars(optimizers)))
    model = tiny_model()
    config = optimizers.OptimConfig.model_construct(name="adam", lr=0.5, weight_decay=0.0)
    (adam,) = names["build_optimizers"](config, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.scale_lr([adam], 0.5)
    weight = model.readout.weight
    start = weight.detach().clone()
    adam.found_inf = torch.ones(())
    adam.step()
    assert torch.equal(weight, start)
    adam.found_inf = torch.zeros(())
    adam.step()  # The first that counts: by the rate, whatever the gradient's size.
    torch.testing.assert_close(weight.detach(), start - 0.25)


def test_the_embedding_that_is_added_tells_tasks_and_not_variants() -> None:
    (code,) = [block for block in python_blocks(EXTENDING) if "class TaskEmbedding" in block]
    exec(code, names := dict(vars(puzzle_embedding)))
    embedding = names["TaskEmbedding"](2, 16)
    torch.nn.init.normal_(embedding.task.weight)
    tasks, dihedrals = torch.tensor([NO_TASK, 0, 0, 1]), torch.tensor([0, 0, 3, 0])
    permutations = torch.arange(10).expand(4, 10)
    embedding.use(PuzzleFactors(("a", "b"), tasks, dihedrals, permutations))
    blank, first, variant, other = embedding.lookup(torch.arange(4))
    assert not blank.any()
    assert torch.equal(first, variant)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("page", ["README.md", "docs/sharing.md"])
def test_the_lines_that_use_a_model_run_word_for_word(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder where the model lies that they name: here one that was never trained."""
    stored = StoredModel(
        tiny_arch(), SupervisionConfig(), tiny_model().state_dict(), "raw", torch.ones(2, 16),
        {"vocab_size": 12, "seq_len": 900, "num_puzzle_identifiers": 2}, {"007bbfb7": 1}, "it",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "exported" / "compact").mkdir(parents=True)
    write_exported(folder, stored, {}, "")
    (code,) = [
        block
        for block in python_blocks((REPOSITORY / page).read_text())
        if "from_pretrained" in block
    ]
    exec(code, names := {})
    assert names["answers"].shape == (1, 3, 900)
    assert capsys.readouterr().out.strip()


def test_the_commands_that_share_a_model_parse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a folder where the checkpoint exists."""
    monkeypatch.chdir(tmp_path)
    ((run, out),) = arguments_of("export.py")
    exported = parse_flags(export.ExportOptions, "export.py", None, [run, out])
    assert (str(exported.run), str(exported.out)) == ("runs/compact-seed0", "exported/compact")
    (arguments,) = arguments_of("import_checkpoint.py")
    (file := Path(arguments[0])).parent.mkdir()
    file.touch()
    imported = parse_flags(import_checkpoint.ImportOptions, "import", None, arguments)
    assert (imported.file, str(imported.out)) == (file, "imported/trm")


def write_subsets(prefix: Path, kaggle_prefix: str) -> None:
    """Kaggle files of a few small tasks, for every subset that a page names."""
    prefix.parent.mkdir(parents=True)
    for half in ("challenges", "solutions"):
        for subset in ("training", "evaluation", "training2", "evaluation2", "mini"):
            source = subset.removesuffix("2").replace("mini", "training")
            shutil.copy(f"{kaggle_prefix}_{source}_{half}.json", f"{prefix}_{subset}_{half}.json")
        Path(f"{prefix}_concept_{half}.json").write_text("{}")


@pytest.mark.parametrize("arguments", arguments_of("dataset.build_arc_dataset", EVERYWHERE))
def test_the_builder_commands_run_word_for_word(
    arguments: list[str], tmp_path: Path, kaggle_prefix: str
) -> None:
    """In a folder where the named files exist, here with a few small tasks in each subset."""
    prefix = tmp_path / arguments[arguments.index("--input-file-prefix") + 1]
    write_subsets(prefix, kaggle_prefix)
    process = subprocess.run(
        [sys.executable, "-m", "dataset.build_arc_dataset", *arguments, "--num-aug", "3"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    built = tmp_path / arguments[arguments.index("--output-dir") + 1]
    assert (built / "train" / "originals__inputs.npy").is_file()


def test_every_link_and_path_of_the_readme_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    paths = re.findall(r"`((?:\w+/)+\w*(?:\.\w+)?|\w+\.py)`", README)
    ours = [p for p in paths if p.split("/")[0] not in OUTPUTS]
    assert links
    assert ours
    for path in (*links, *ours):
        assert (REPOSITORY / path).exists(), path


def test_every_target_generator_is_named_where_users_look_for_it() -> None:
    page = (REPOSITORY / "docs" / "targets.md").read_text()
    (row,) = re.findall(r"^\| `supervision\.targets`.*$", README, flags=re.MULTILINE)
    for name in targets.TARGETS:
        assert f"`{name}`" in page
        assert f"`{name}`" in row


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) < 250


def test_the_make_commands_are_the_plain_ones() -> None:
    """What README gives for people without make is what make runs."""
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "$(BIN)/python demo.py" in makefile
    assert "$(BIN)/python -m pytest -n 2" in makefile
    commands = commands_of(README)
    assert any(command.endswith(".venv/bin/python demo.py") for command in commands)
    assert any(command.endswith(".venv/bin/python -m pytest -n 2") for command in commands)
