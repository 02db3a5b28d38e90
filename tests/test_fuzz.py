"""Whatever stands in a file or an override, it is read or ends in one line that says what is wrong.

Good files are damaged at random (see `damage.py`) and read as the programs read them. Nothing else
is raised, nothing is written beyond the output folder, and nothing takes long. Examples are the
same in every run; `-m long` tries twenty times as many.
"""

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evaluate
import export
import import_checkpoint
import train_arc_tiny_corrupt
from arc_oracles import contents
from boards import solved_mazes
from common.errors import UserError, exit_cleanly
from common.settings import fields_of, validate
from config.loading import load_config
from config.schema import DiagnoseConfig, EvaluateConfig, TrainConfig, TrainedAs
from conftest import REPOSITORY
from damage import ODD_TEXTS, ODD_VALUES, Change, damage
from dataset import maze, sudoku
from dataset.board_csv import draw_halves, write_csv
from dataset.build_boards import Half
from dataset.build_maze_dataset import BuildOptions as MazeOptions
from dataset.build_maze_dataset import build as build_mazes
from dataset.build_plan import BuildOptions, load_sources
from dataset.build_sudoku_dataset import BuildOptions as SudokuOptions
from dataset.factors import puzzle_factors
from dataset.import_arc import ImportOptions, import_subsets
from dataset.import_trajectories import Trajectories, import_trajectories
from dataset.splits import open_split
from dataset.verify import verify
from evaluation.test_set import open_test_set
from export import ExportOptions
from import_checkpoint import ImportOptions as ImportCheckpointOptions
from models.build import ComputeConfig
from models.recursive import TinyRecursiveModel
from records.rows import read_rows
from runs import TINY, run_evaluation, run_training
from test_import_checkpoint import published_state
from tiny import ALONE, CPU
from training.checkpoints import load_stored, load_trained, stored_config
from training.run_folder import complete_checkpoints, find_checkpoint
from training.run_log import RunLog
from training.scores import best_checkpoint
from training.wandb_run import WandbConfig

EXAMPLES = 500
"""Of the default suite, over all readers."""
LONG_FACTOR = 20
MOST_SECONDS = 10.0


class Reader(NamedTuple):
    """Reads some files as a program does."""

    files: str
    """The fixture that makes them: a folder."""
    read: Callable[[Path, Path], Any]
    """Of the folder and of one to write to, which is not there."""
    damaged: tuple[str, ...] = ("**/*.*",)
    """The files that are damaged, as patterns."""
    share: float = 1.0
    """Of the examples, relative to the others."""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A run of three steps, scored, its results, and the dataset."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny_dataset, folder / "data")
    run = run_training(
        folder / "data", folder / "run", "train.max_steps=3", "train.log_every=1",
        "eval.max_variants=1",
    )  # fmt: skip
    run_evaluation(folder / "results", f"checkpoint={run}", "report=false")
    return folder


@pytest.fixture(scope="module")
def factored_folder(tmp_path_factory: pytest.TempPathFactory, tiny_compact_dataset: Path) -> Path:
    """A run whose puzzle embeddings are factored, its dataset, and a row of the records."""
    folder = tmp_path_factory.mktemp("factored")
    shutil.copytree(tiny_compact_dataset, folder / "data")
    run_training(
        folder / "data", folder / "run", "train.max_steps=3", "train.eval_every=null",
        "arch.puzzle_embedding=factored",
    )  # fmt: skip
    shutil.copytree(REPOSITORY / "records" / "rows", folder / "rows")
    return folder


@pytest.fixture(scope="module")
def models_folder(
    tmp_path_factory: pytest.TempPathFactory, run_folder: Path, tiny_dataset: Path
) -> Path:
    """A model that was exported, and a checkpoint of the published code, with the dataset."""
    folder = tmp_path_factory.mktemp("models")
    export.export(ExportOptions(run=run_folder / "run", out=folder / "model"))
    shutil.copytree(tiny_dataset, folder / "data")
    torch.save(published_state("TRM"), folder / "theirs.pt")
    return folder


@pytest.fixture(scope="module")
def trajectories_folder(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    folder = tmp_path_factory.mktemp("trajectories")
    shutil.copytree(tiny_dataset, folder / "data")
    grids = [[[1, 2], [3, 4]], [[5]]]
    (folder / "steps.json").write_text(f'{{"6150a2bd": [{grids}, null], "6ea4a07e": [{grids}]}}')
    import_trajectories(folder / "steps.json", folder / "data", folder / "trajectories.npz")
    return folder


@pytest.fixture(scope="module")
def boards_folder(
    tmp_path_factory: pytest.TempPathFactory, generated_sudokus: tuple[np.ndarray, np.ndarray]
) -> Path:
    """A dataset of mazes, and two CSV files."""
    folder = tmp_path_factory.mktemp("boards")
    write_csv(folder / "mazes.csv", solved_mazes(), maze.ALPHABET)
    write_csv(folder / "sudokus.csv", Half(*generated_sudokus), sudoku.ALPHABET)
    options = {"num_train": 8, "num_test": 8, "num_aug": 1, "csv": (folder / "mazes.csv",)}
    build_mazes(MazeOptions(output_dir=folder / "data", **options))
    return folder


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory, kaggle_prefix: str) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for file in Path(kaggle_prefix).parent.iterdir():
        shutil.copy(file, folder)
    return folder


# ---- readers ---------------------------------------------------------------------------------


def read_tasks(folder: Path, out: Path) -> None:
    for skips in (True, False):
        subsets = ("training", "evaluation")
        options = {"subsets": subsets, "test_set_name": "evaluation", "skip_invalid": skips}
        load_sources(BuildOptions(input_file_prefix=f"{folder}/arc", output_dir=out, **options))


def import_tasks(folder: Path, out: Path) -> None:
    for name in ("training", "evaluation"):
        source = f"own={folder}/arc_{name}_challenges.json"
        options = {"sources": (source,), "skip_invalid": name == "evaluation"}
        import_subsets(ImportOptions(output_prefix=f"{out}/{name}/x", **options))


def read_dataset(folder: Path, out: Path) -> None:
    """As training and evaluation do."""
    split = open_split(folder, "train")
    split.read(np.arange(split.num_examples))
    puzzle_factors(folder, split.metadata)
    for name in ("test", "validation"):
        if (folder / name).exists():
            test_set = open_test_set(folder, None, "whole", name)
            test_set.split.read(test_set.examples.rows)
            evaluate.score_document({}, getattr(test_set, "tasks", []), folder, name)


def verify_dataset(folder: Path, out: Path) -> None:
    verify(folder)


def verify_without_manifest(folder: Path, out: Path) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)
    verify(folder)


def verify_boards(folder: Path, out: Path) -> None:
    verify_without_manifest(folder / "data", out)


def read_mazes(folder: Path, out: Path) -> None:
    read_dataset(folder / "data", out)


def read_csv(folder: Path, out: Path) -> None:
    values = {"num_train": 8, "num_test": 8, "output_dir": out}
    mazes = validate(MazeOptions, {**values, "csv": (folder / "mazes.csv",)}, "flags")
    draw_halves(mazes, maze.ALPHABET, maze.RULES)
    sudokus = validate(SudokuOptions, {**values, "csv": (folder / "sudokus.csv",)}, "flags")
    draw_halves(sudokus, sudoku.ALPHABET, sudoku.RULES, sudoku.CELLS)


def read_trajectories(folder: Path, out: Path) -> None:
    split = open_split(folder / "data", "train")
    trajectories = Trajectories(folder / "trajectories.npz", split)
    trajectories.targets(np.arange(9), np.zeros((9, 2), dtype=np.int64), 6)
    import_trajectories(folder / "steps.json", folder / "data", out / "trajectories.npz")


def recount(folder: Path, out: Path) -> None:
    path = folder / "results" / "predictions.npz"
    config = EvaluateConfig(predictions=path, report=False, eval={"max_variants": 5})
    evaluate.recount_and_write(config, [path], out)


def resume(folder: Path, out: Path) -> None:
    """Without a step: a dry run restores everything."""
    train_arc_tiny_corrupt.train(resuming(folder), ALONE)


@lru_cache
def resuming(folder: Path) -> TrainConfig:
    where = [f"data.path={folder / 'data'}", f"run_dir={folder / 'run'}"]
    return load_config(
        "train", TrainConfig, "", [*where, *TINY, "resume=auto", "train.dry_run=true"]
    )


def load_to_evaluate(folder: Path, out: Path) -> None:
    path = find_checkpoint(folder / "run", "checkpoint")
    config = stored_config(path, TrainConfig)
    test_set = open_test_set(folder / "data", None, "whole")
    compute = ComputeConfig()
    load_trained(path, config.arch, config.supervision, test_set.fingerprint,
                 test_set.puzzle_factors, "auto", compute, CPU)  # fmt: skip


def load_factored(folder: Path, out: Path) -> None:
    load_to_evaluate(folder, out)
    read_rows(folder / "rows")


def read_scores_and_log(folder: Path, out: Path) -> None:
    best_checkpoint(complete_checkpoints(folder / "run" / "checkpoints"))
    shutil.copytree(folder / "run", out)  # The log is cut where it is.
    RunLog(out, WandbConfig(mode="disabled"), {}, 2, {"eval/pass@2": 0.5}).close()


def export_run(folder: Path, out: Path) -> None:
    export.export(ExportOptions(run=folder / "run", out=out))


def load_exported(folder: Path, out: Path) -> None:
    model = TinyRecursiveModel.from_pretrained(folder / "model")
    model.vectors_of([*model.tasks][:1])
    assert model.mean_vector.shape == (model.model.config.hidden_size,)
    path = find_checkpoint(folder / "model", "checkpoint")
    config = stored_config(path, TrainedAs)
    load_stored(path, config.arch, config.supervision, "auto").build(ComputeConfig(), CPU)


def import_published(folder: Path, out: Path) -> None:
    flags = {"num_heads": 2, "num_recursions": 1, "num_latent_updates": 1}
    with suppress(UserError):
        find_checkpoint(folder / "theirs.pt", "checkpoint")
    given = {"file": folder / "theirs.pt", "out": out, "data": folder / "data", **flags}
    import_checkpoint.import_checkpoint(validate(ImportCheckpointOptions, given, "flags"))


CHECKPOINT = "run/checkpoints/*/"
READERS = {
    "tasks": Reader("tasks_folder", read_tasks),
    "import": Reader("tasks_folder", import_tasks),
    "full layout": Reader("tiny_dataset", read_dataset),
    "compact layout": Reader("validated_dataset", read_dataset),
    "verify": Reader("tiny_dataset", verify_dataset, share=0.5),
    "verify the content": Reader("tiny_dataset", verify_without_manifest),
    "verify the compact layout": Reader("validated_dataset", verify_without_manifest),
    "verify boards": Reader("boards_folder", verify_boards, ("data/**/*.*",)),
    "boards": Reader("boards_folder", read_mazes, ("data/**/*.*",)),
    "csv": Reader("boards_folder", read_csv, ("*.csv",)),
    "trajectories": Reader("trajectories_folder", read_trajectories, ("*.npz", "*.json"), 1.5),
    "predictions": Reader("run_folder", recount, ("results/predictions.npz", "results/metrics.json",
                          "data/test_puzzles.json", "data/build.json"), 1.5),
    "checkpoint": Reader("run_folder", load_to_evaluate, (f"{CHECKPOINT}*.*",), 1.5),
    "factored checkpoint": Reader("factored_folder", load_factored, (f"{CHECKPOINT}*.*", "rows/*")),
    "export": Reader("run_folder", export_run, (f"{CHECKPOINT}*.*",)),
    "exported": Reader("models_folder", load_exported, ("model/*.[js]*",), 1.5),
    "published": Reader("models_folder", import_published, ("*.pt", "data/train/dataset.json")),
    "training state": Reader("run_folder", resume, (f"{CHECKPOINT}*.*",), 1.5),
    "scores": Reader("run_folder", read_scores_and_log, (f"{CHECKPOINT}score.json",
                     "run/metrics.jsonl")),
}  # fmt: skip


# ---- the law ---------------------------------------------------------------------------------


class Workspace:
    """A copy of good files that are damaged, read and mended again."""

    def __init__(self, source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
        self.folder, self.out = folder / "files", folder / "out"
        self.elsewhere = folder / "cwd"
        self.elsewhere.mkdir()
        shutil.copytree(source, self.folder)
        self.files = contents(self.folder)
        found = {file for pattern in patterns for file in self.folder.glob(pattern)}
        named = {str(file.relative_to(self.folder)) for file in found if file.is_file()}
        self.chosen = sorted(name for name in named if not name.endswith(".yaml"))

    def read(self, change: Change, read: Callable[[Path, Path], Any]) -> None:
        """Assert that reading damaged files works or is refused in one line, in time."""
        try:
            for name, content in change.items():
                path = self.folder / name
                path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
            require_clean_end(lambda: read(self.folder, self.out))
            assert not list(self.elsewhere.iterdir()), "something was written elsewhere"
            there = {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()}
            assert there <= set(self.files), "something was written beside what is read"
        finally:
            shutil.rmtree(self.out, ignore_errors=True)
            for name in {*change, "manifest.json"} & set(self.files):
                (self.folder / name).write_bytes(self.files[name])


def require_clean_end(work: Callable[[], Any]) -> None:
    """Assert that it ends without an error, or as programs end that tell users of one."""
    told = io.StringIO()
    exit_code = 0
    started = time.monotonic()
    with redirect_stderr(told):
        try:
            exit_cleanly(work)()
        except SystemExit as end:
            exit_code = end.code
    assert time.monotonic() - started < MOST_SECONDS
    if exit_code:
        assert exit_code == 2
        # In place of a progress bar, if there is one.
        assert told.getvalue().splitlines()[-1].rpartition("\r")[2].startswith("error: ")


@pytest.fixture
def in_elsewhere(tmp_path: Path) -> Iterator[None]:
    """Relative paths lead into a folder that must stay empty."""
    before = Path.cwd()
    yield
    os.chdir(before)


def try_out(name: str, request: pytest.FixtureRequest, tmp_path: Path, factor: int) -> None:
    reader = READERS[name]
    space = Workspace(request.getfixturevalue(reader.files), tmp_path, reader.damaged)
    torch.set_num_threads(1)
    os.chdir(space.elsewhere)
    space.read({}, reader.read)
    count = round(EXAMPLES * 0.9 * reader.share / sum(r.share for r in READERS.values())) * factor

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def law(data: st.DataObject) -> None:
        space.read(data.draw(damage(space.files, space.chosen)), reader.read)

    law()


@pytest.mark.usefixtures("in_elsewhere")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    try_out(name, request, tmp_path, 1)


@pytest.mark.long
@pytest.mark.usefixtures("in_elsewhere")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_one_line_at_length(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    try_out(name, request, tmp_path, LONG_FACTOR)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [("num_layers", 2**31, "num_layers=2147483648 is not allowed"),
     ("hidden_size", 2**16, "another architecture"), ("num_layers", 3, "another architecture")],
)  # fmt: skip
def test_sizes_beyond_those_of_the_weights_are_refused_before_a_network_is_made(
    run_folder: Path, tmp_path: Path, key: str, value: int, complaint: str
) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "copy")
    (file,) = folder.glob(f"{CHECKPOINT}config.json")
    config = json.loads(file.read_text())
    config["arch"][key] = value
    file.write_text(json.dumps(config))
    started = time.monotonic()
    with pytest.raises(UserError, match=complaint):
        load_to_evaluate(folder, tmp_path / "out")
    assert time.monotonic() - started < MOST_SECONDS


# ---- overrides -------------------------------------------------------------------------------

SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig, "diagnose": DiagnoseConfig}
GROUPS = ("arch", "supervision", "optim", "experiment", "eval", "hydra", "defaults", "")
ODD_OVERRIDES = ("=", "a=b=c", "+seed=1", "~seed", "seed", "--multirun", "arch@x=compact", "\0=1")


@st.composite
def overrides(draw: st.DrawFn, name: str) -> list[str]:
    keys = [key for key, _ in fields_of(SCHEMAS[name])]
    key = st.sampled_from([*keys, *GROUPS]) | ODD_TEXTS
    written = st.one_of(
        ODD_VALUES.map(str),
        ODD_TEXTS,
        st.sampled_from(["[1,2]", "{a:1}", "${seed}", "${oc.env:HOME}", "${run_dir}", "1,2", "["]),
        st.text(max_size=8),
    )
    override = st.builds(lambda k, v: f"{k}={v}", key, written)
    return draw(st.lists(override | st.sampled_from(ODD_OVERRIDES) | ODD_TEXTS, max_size=3))


def try_overrides(name: str, count: int) -> None:
    @settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @given(overrides(name))
    def law(given_overrides: list[str]) -> None:
        require_clean_end(lambda: load_config(name, SCHEMAS[name], "", given_overrides))

    law()


@pytest.mark.parametrize("name", SCHEMAS)
def test_overrides_are_taken_or_refused_in_one_line(name: str) -> None:
    try_overrides(name, EXAMPLES // 30)


@pytest.mark.long
@pytest.mark.parametrize("name", SCHEMAS)
def test_overrides_are_taken_or_refused_in_one_line_at_length(name: str) -> None:
    try_overrides(name, EXAMPLES // 30 * LONG_FACTOR)
