"""Docs: recipes run from their first line to their last, and what a page names is there."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import diagnose
import evaluate
import train_arc_tiny_corrupt
from common.settings import fields_of
from conftest import REPOSITORY
from dataset import build_arc_dataset, build_nqueens_dataset, build_plan, import_arc, verify
from runs import TINY, call
from study import plot
from test_docs import PAGES, README, SCRIPTS, commands_of, write_subsets


def section_of(page: str, title: str) -> str:
    (section,) = re.findall(rf"^## {title}$(.*?)(?=^## |\Z)", PAGES[page], re.M | re.S)
    return section


SMALL = (
    *TINY, "train.compile=off", "train.max_steps=3", "train.checkpoint_every=3",
    "train.eval_every=null",
)  # fmt: skip
"""What makes a training command one for a test; written behind it, so that it holds."""
RUNNERS: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "dataset.build_nqueens_dataset": (
        build_nqueens_dataset.main,
        ("--num-train", "8", "--num-test", "4"),
    ),
    "dataset.build_arc_dataset": (build_arc_dataset.main, ("--num-aug", "2", "--workers", "1")),
    "dataset.verify": (verify.main, ()),
    "train_arc_tiny_corrupt.py": (train_arc_tiny_corrupt.main, SMALL),
    "evaluate.py": (
        evaluate.main,
        ("device=cpu", "eval.max_variants=2", "report=false", "wandb.mode=disabled"),
    ),
    "diagnose.py": (
        diagnose.main,
        ("device=cpu", "eval.max_variants=2", "guidance_weights=[1]", "num_steps=1"),
    ),
    "study.plot": (plot.main, ()),
}
"""Program -> how a test runs it, and what is written behind its arguments."""
ELSEWHERE = {
    "doctor": "tests/test_doctor.py",
    "demo.py": "tests/test_demo.py",
    "records.run": "tests/test_records.py",
    "dataset.import_arc": "tests/test_import_arc.py",
}
"""Programs of these sections that other tests run."""


@pytest.mark.parametrize(
    ("page", "section"),
    [
        ("recipes.md", "A laptop"),
        ("recipes.md", "One GPU"),
        ("recipes.md", "Colab, and machines that are lent by the hour"),
        ("extending.md", "A dataset"),
    ],
)
def test_a_recipe_that_fits_the_machine_runs_from_its_first_line_to_its_last(
    page: str,
    section: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kaggle_prefix: str,
) -> None:
    """Each command with its own words, on a few small tasks, with a tiny network."""
    monkeypatch.chdir(tmp_path)
    done = []
    for command in commands_of(section_of(page, section)):
        _, *words = shlex.split(command)
        program, *arguments = words[1:] if words[0] == "-m" else words
        if program == "dataset.import_arc":
            write_subsets(Path(arguments[arguments.index("--output-prefix") + 1]), kaggle_prefix)
        elif program not in ELSEWHERE:
            main, more = RUNNERS[program]
            call(main, *arguments, *more)
        done.append(program)
    assert {"train_arc_tiny_corrupt.py"} < set(done)
    for pieces in ELSEWHERE.values():
        assert (REPOSITORY / pieces).is_file()


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_every_program_that_a_page_names_exists(page: str) -> None:
    """In commands and in the text."""
    text = README if page == "README.md" else PAGES[page]
    modules = set(re.findall(r"python -m ((?:dataset|doctor|study|evaluation|records|benchmarks|"
                             r"config)[\w.]*)", text))  # fmt: skip
    for module in modules:
        assert importlib.util.find_spec(module) is not None, module
    scripts = set(re.findall(r"(?:python|torchrun)[^`\n]*? (\w+\.py)", text))
    for script in scripts:
        assert (REPOSITORY / script).is_file(), script


@pytest.mark.parametrize("page", ["recipes.md", "extending.md", "questions.md", "running.md"])
def test_every_key_and_flag_that_a_page_names_exists(page: str) -> None:
    keys = {key for _, schema, _ in SCRIPTS for key, _ in fields_of(schema)}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    spelled = re.findall(r"`([a-z_]+\.[a-z_.0-9]+)(?:=[^`]*)?`", PAGES[page])
    for key in spelled:
        if key.partition(".")[0] in sections and not key.endswith((".py", ".npz", ".json")):
            assert key in keys, key
    names = build_plan.BuildOptions.model_fields.keys() | import_arc.ImportOptions.model_fields
    for flag in re.findall(r"`--([a-z-]+)", PAGES[page]):
        if flag not in ("help", "kills", "nnodes"):
            assert flag.replace("-", "_") in names, flag


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page]):
        file, _, anchor = link.partition("#")
        target = REPOSITORY / "docs" / file if file else REPOSITORY / "docs" / page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.M)
            anchors = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
            assert anchor in anchors, link
