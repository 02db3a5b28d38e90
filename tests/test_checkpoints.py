"""Checkpoints are whole or not there, and what cannot be used is refused before it is used."""

import errno
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError

from arc_oracles import contents
from common.errors import UserError
from models.weights import load_table, load_weights
from tiny import tiny_model
from training.checkpoints import (
    Checkpoint,
    CheckpointFolder,
    load_checkpoint,
    load_training_state,
    require_same_dataset,
)
from training.run_folder import complete_checkpoints, find_checkpoint, find_start, write_run_config
from training.scores import Score, best_checkpoint, read_score


def checkpoint(ema: bool = False) -> Checkpoint:
    return Checkpoint(
        model={"weight": torch.full((2, 3), 2.0)},
        ema={"weight": torch.full((2, 3), -2.0)} if ema else None,
        puzzle_embedding=torch.full((4, 3), 20.0),
        config={"seed": 7, "arch": {"name": "tiny"}},
        dataset={"seq_len": 4},
    )


def score(pass_at_2: float, exact: float = 0.0) -> Score:
    return Score("ema", {"eval/pass@2": pass_at_2, "eval/exact_accuracy": exact})


def save(
    run_dir: Path, *steps: int, keep: int = 10, scores: dict[int, tuple[float, ...]] | None = None
) -> CheckpointFolder:
    folder = CheckpointFolder(run_dir, keep)
    for step in steps:
        folder.save(step, checkpoint(), {"step": step})
        if values := (scores or {}).get(step):
            folder.rate(step, score(*values))
    return folder


NOT_OURS = "is not one that the trainer wrote"


# ---- written and read ----


@pytest.mark.parametrize("ema", [True, False])
def test_what_was_saved_is_loaded_again(tmp_path: Path, ema: bool) -> None:
    """Without an average there is no file of it."""
    path = CheckpointFolder(tmp_path, 3).save(1200, checkpoint(ema), {"a": [1]})
    assert path == tmp_path / "checkpoints" / "step_00001200"
    assert {file.name for file in path.iterdir()} == {
        "config.json",
        "dataset.json",
        "model.safetensors",
        *(["model_ema.safetensors"] if ema else []),
        "puzzle_embedding.safetensors",
        "training_state.pt",
    }
    stored = load_checkpoint(path)
    assert stored.model["weight"].tolist() == [[2.0] * 3] * 2
    average = None if stored.ema is None else stored.ema["weight"].tolist()
    assert average == ([[-2.0] * 3] * 2 if ema else None)
    assert stored.puzzle_embedding.tolist() == [[20.0] * 3] * 4
    assert stored.config == {"seed": 7, "arch": {"name": "tiny"}}
    assert stored.dataset == {"seq_len": 4}
    assert load_training_state(path) == {"a": [1]}
    # Others may read the weights as they may the config.
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1


# ---- kept ----


@pytest.mark.parametrize(
    ("keep", "scores", "left"),
    [
        (2, {}, [500, 600]),
        # 200: the highest first value, of those that share it the highest second one, and first.
        (2, {100: (0.2, 0.9), 200: (0.3, 0.1), 300: (0.3, 0.05), 400: (0.3, 0.1)}, [200, 500, 600]),
        # A new best frees the old one.
        (1, {100: (0.2,), 300: (0.3,), 400: (0.1,)}, [300, 600]),
        (1, {600: (0.2,)}, [600]),
    ],
)
def test_the_newest_are_kept_and_the_best(
    tmp_path: Path, keep: int, scores: dict[int, tuple[float, ...]], left: list[int]
) -> None:
    """Also over a restart."""
    save(tmp_path, 100, 200, 300, keep=keep, scores=scores)
    save(tmp_path, 400, 500, 600, keep=keep, scores=scores)
    kept = complete_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == [f"step_{step:08}" for step in left]
    best = best_checkpoint(kept)
    assert best == (kept[0] if scores else None)
    if best is not None:
        assert read_score(best) == score(*scores[left[0]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"weights": "ema"}', NOT_OURS),
        ('{"weights": ["ema"], "metrics": {}}', NOT_OURS),
        ('{"weights": "ema", "metrics": []}', NOT_OURS),
        ('{"weights": "ema", "metrics": {"eval/pass@2": "high"}}', NOT_OURS),
    ],
)
def test_a_damaged_score_is_named(tmp_path: Path, content: str, message: str) -> None:
    save(tmp_path, 100)
    (tmp_path / "checkpoints" / "step_00000100" / "score.json").write_text(content)
    with pytest.raises(UserError, match=rf"score\.json {message}.*remove"):
        save(tmp_path, 200)


# ---- failed and half-written ----

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("models.weights.save_file", OSError(errno.ENOSPC, "No space left on device")),
        # What safetensors makes of a full disk, and of anything else.
        ("models.weights.save_file", SafetensorError(FULL)),
        ("models.weights.save_file", SafetensorError("something else")),
        ("training.checkpoints.torch.save", RuntimeError("unexpected pos 576 vs 534")),
        ("training.checkpoints.json.dumps", TypeError("not serializable")),
    ],
)
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    """Whatever says that the disk is full, it is an OSError that says so."""
    folder = save(tmp_path, 100, 200, keep=2, scores={100: (0.5,)})
    before = contents(tmp_path)

    def fail(*arguments: Any, **_: Any) -> None:
        if isinstance(arguments[-1], Path):  # As on a full disk: some of the file is there.
            arguments[-1].write_bytes(b"half")
        raise error

    monkeypatch.setattr(function, fail)
    is_full = "No space" in str(error)
    with pytest.raises(OSError if is_full else type(error)) as caught:
        folder.save(300, checkpoint(), {})
    assert getattr(caught.value, "errno", None) == (errno.ENOSPC if is_full else None)
    assert contents(tmp_path) == before


@pytest.fixture
def no_file_over_64_kib() -> Iterator[None]:
    """The nearest thing to a full disk that needs no disk: the system refuses to write more."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("no_file_over_64_kib")
def test_a_training_state_that_does_not_fit_is_an_os_error_with_its_file(tmp_path: Path) -> None:
    """As the entry points, and the other ranks, expect it; torch's own error says neither."""
    folder = save(tmp_path, 100)
    before = contents(tmp_path)
    with pytest.raises(OSError, match=r"File too large.*training_state\.pt"):
        folder.save(200, checkpoint(), {"state": torch.zeros(100_000)})
    assert contents(tmp_path) == before


# ---- damaged ----


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A good checkpoint, to be damaged."""
    return CheckpointFolder(tmp_path, 1).save(100, checkpoint(ema=True), {"step": 100})


WEIGHTS = (load_checkpoint, "is damaged .*use the checkpoint before", "does not exist")
OBJECT = (load_checkpoint, "is not valid JSON .*use another checkpoint", "does not exist")
STATE = (load_training_state, "is damaged .* the checkpoint before", "scored but not resumed")


@pytest.mark.parametrize(
    ("name", "read", "message", "missing"),
    [
        ("model.safetensors", *WEIGHTS),
        ("model_ema.safetensors", *WEIGHTS[:2], None),
        ("puzzle_embedding.safetensors", *WEIGHTS),
        ("config.json", *OBJECT),
        ("dataset.json", *OBJECT),
        ("training_state.pt", *STATE),
    ],
)
def test_a_truncated_or_missing_file_is_refused_by_its_name(
    damaged: Path, name: str, read: Callable[[Path], Any], message: str, missing: str | None
) -> None:
    file = damaged / name
    content = file.read_bytes()
    # Zeros: what a power cut leaves of a file whose length was written before its content.
    for bad in (b"", content[:4], content[: len(content) // 2], content[:-1], bytes(len(content))):
        file.write_bytes(bad)
        with pytest.raises(UserError, match=f"(?s){name} {message}"):
            read(damaged)
    if read is load_training_state:
        assert load_checkpoint(damaged).config["seed"] == 7, "it can be scored"
    file.unlink()
    if missing is None:
        assert load_checkpoint(damaged).ema is None
    else:
        with pytest.raises(UserError, match=f"(?s){name} .*{missing}"):
            read(damaged)


def test_a_training_state_of_other_instructions_is_refused(damaged: Path) -> None:
    """A pickle that takes from where nothing is, in a sound archive."""
    file = damaged / "training_state.pt"
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for instructions in (b"\x80\x02u.", b"\x80\x02K\x01s.", b"\x80\x02h\x05.", b"\x80\x02X\x01"):
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in entries.items():
                is_pickle = name.endswith("data.pkl")
                archive.writestr(name, instructions if is_pickle else content)
        with pytest.raises(UserError, match=r"training_state\.pt is damaged"):
            load_training_state(damaged)


# ---- of something else ----


@pytest.mark.parametrize(
    ("own", "stored", "difference"),
    [
        ({}, {"hidden_size": 32}, r"'y_init' has shape \[32\], this .* \[16\]"),
        ({"num_layers": 1}, {"num_layers": 2}, r"'blocks\.1\..*' is in only one"),
        ({"num_layers": 2}, {"num_layers": 1}, r"'blocks\.1\..*' is in only one"),
        # Also where only a late tensor is of another shape.
        ({}, {"readout.weight": torch.zeros(11, 16)}, r"'readout.weight' has shape \[11, 16\]"),
    ],
)
def test_weights_of_another_network_are_refused_by_a_tensor_and_nothing_is_copied(
    own: dict[str, Any], stored: dict[str, Any], difference: str
) -> None:
    model = tiny_model(seed=1, **own)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    late = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
    weights = tiny_model(seed=2, **({} if late else stored)).state_dict() | late
    with pytest.raises(UserError, match=f"run/step_1 is of another architecture: {difference}"):
        load_weights(model, weights, "run/step_1")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("shape", [(5, 3), (4, 2)])
def test_a_table_of_another_size_is_refused_and_the_own_stays(shape: tuple[int, int]) -> None:
    table = torch.zeros(4, 3)
    message = rf"run/step_1: .*\[{shape[0]}, {shape[1]}\], .*need \[4, 3\]; rebuild it"
    with pytest.raises(UserError, match=message):
        load_table(table, torch.ones(shape), "run/step_1", "rebuild it")
    assert table.tolist() == [[0.0] * 3] * 4
    load_table(table, torch.ones(4, 3), "run/step_1", "rebuild it")
    assert table.tolist() == [[1.0] * 3] * 4


def test_another_dataset_is_told_by_what_its_identifiers_mean() -> None:
    """The same number of puzzles is not the same puzzles."""
    stored = {"identifiers_sha256": "a", "num_puzzle_identifiers": 5, "seq_len": 900}
    require_same_dataset(stored, dict(stored), "it")
    for key in stored:
        with pytest.raises(UserError, match=rf"it was trained on another dataset: its {key}"):
            require_same_dataset(stored, {**stored, key: "other"}, "it")


def test_descriptions_of_datasets_are_told_and_decide_nothing() -> None:
    """A checkpoint of an earlier version has none, nor has another code base's dataset."""
    older = {"identifiers_sha256": "a"}
    built = {**older, "description": {"subsets": ["training", "concept"], "seed": 3}}
    for stored, dataset in ((older, built), (built, older), (built, {**built, "description": {}})):
        require_same_dataset(stored, dataset, "it")
    with pytest.raises(UserError) as error:
        require_same_dataset(older, {**built, "identifiers_sha256": "b"}, "it")
    assert str(error.value) == (
        "it was trained on another dataset: its identifiers_sha256 is a, that of data.path is b; "
        "it was trained on a dataset without a description (of an earlier version or another code "
        "base), data.path is (subsets training concept, seed 3); use the dataset that it was "
        "trained on"
    )


# ---- found ----

NEWEST = "run/checkpoints/step_100000000"
OLDER = "run/checkpoints/step_00000200"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A run, one that was lost before its first checkpoint, and folders of other things."""
    write_run_config(tmp_path / "run", {"seed": 3})
    save(tmp_path / "run", 99_999_999, 100_000_000, 200)
    for name in ("step_00000300.partial", "step_latest", "step_", "other_00000400"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
    (tmp_path / "run" / "checkpoints" / "step_900000000").write_text("a file")
    write_run_config(tmp_path / "lost", {})
    save(tmp_path / "other", 50)
    (tmp_path / "empty").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    return tmp_path


def test_complete_checkpoints_are_the_step_folders_by_their_number(folders: Path) -> None:
    found = complete_checkpoints(folders / "run" / "checkpoints")
    assert [path.name for path in found] == ["step_00000200", "step_99999999", "step_100000000"]


@pytest.mark.parametrize(
    ("named", "found"),
    [("run", NEWEST), ("run/checkpoints", NEWEST), (NEWEST, NEWEST), (OLDER, OLDER)],
)
def test_a_run_a_checkpoint_and_a_folder_of_checkpoints_all_name_a_checkpoint(
    folders: Path, named: str, found: str
) -> None:
    assert find_checkpoint(folders / named, "checkpoint") == folders / found
    with pytest.raises(UserError, match=r"init_from=.*/empty: no checkpoint there"):
        find_checkpoint(folders / "empty", "init_from")


def start(folders: Path, run_dir: str, resume: str) -> Path | None:
    named = resume if resume in ("none", "auto") else str(folders / resume)
    return find_start(folders / run_dir, named)


@pytest.mark.parametrize(
    ("run_dir", "resume", "found"),
    [
        # There is nothing to go on from, or it is not asked for.
        ("new", "none", None),
        ("new", "auto", None),
        ("empty", "none", None),
        ("lost", "auto", None),
        ("run", "auto", NEWEST),
        # A path: from another run, in a folder of its own, or from the newest of the own run.
        ("new", "run", NEWEST),
        ("new", OLDER, OLDER),
        ("run", NEWEST, NEWEST),
    ],
)
def test_a_run_starts_where_it_is_told_to_and_looking_changes_nothing(
    folders: Path, run_dir: str, resume: str, found: str | None
) -> None:
    before = sorted(folders.rglob("*"))
    assert start(folders, run_dir, resume) == (None if found is None else folders / found)
    assert sorted(folders.rglob("*")) == before


@pytest.mark.parametrize(
    ("run_dir", "resume", "message"),
    [
        ("new", "nowhere", "resume=.*/nowhere: no checkpoint there"),
        ("new", "empty", "resume=.*/empty: no checkpoint there"),
        # Nothing is overwritten unasked.
        ("run", "none", "run_dir .*/run exists .*resume=auto"),
        ("thesis", "auto", "run_dir .*/thesis exists"),
        ("other", "run", "run_dir .*/other exists"),
        ("run", OLDER, f"resume=.*{OLDER}: .*the newer {Path(NEWEST).name}"),
    ],
)
def test_a_start_that_is_not_there_or_would_overwrite_something_is_refused(
    folders: Path, run_dir: str, resume: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        start(folders, run_dir, resume)


def test_the_config_makes_the_run_folder_and_is_replaced(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "new"
    for config in ({"seed": 3, "arch": {"name": "tiny"}}, {"seed": 4}):
        write_run_config(run_dir, config)
        assert yaml.safe_load((run_dir / "config.yaml").read_text()) == config
