"""Checkpoints are whole or not there, and what cannot be used is refused before it is used."""

import errno
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError
from tiny import tiny_model

from common.errors import UserError
from training.checkpoints import (
    Checkpoint,
    CheckpointFolder,
    Score,
    load_checkpoint,
    load_table,
    load_training_state,
    load_weights,
    require_same_dataset,
    rng_state,
    set_rng_state,
)
from training.run_folder import complete_checkpoints, find_checkpoint, find_start, write_run_config

CPU = torch.device("cpu")
NEWEST = "step_00000300"


def contents(value: float = 1.0, ema: bool = False) -> Checkpoint:
    return Checkpoint(
        model={"weight": torch.full((2, 3), value)},
        ema={"weight": torch.full((2, 3), -value)} if ema else None,
        puzzle_embedding=torch.full((4, 3), 10 * value),
        config={"seed": 7, "arch": {"name": "tiny"}},
        dataset={"seq_len": 4},
    )


def save(
    run_dir: Path, *steps: int, keep: int = 10, scores: dict[int, tuple[float, ...]] | None = None
) -> CheckpointFolder:
    folder = CheckpointFolder(run_dir, keep)
    for step in steps:
        figures = (scores or {}).get(step)
        score = None if figures is None else Score(figures, "ema")
        folder.save(step, contents(), {"step": step}, score)
    return folder


def steps_in(run_dir: Path) -> list[int]:
    folders = sorted((run_dir / "checkpoints").glob("step_*"))
    return [int(folder.name.removeprefix("step_")) for folder in folders]


def everything_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path, 3).save(1200, contents(2.0, ema=True), {"a": [1]}, None)
    assert path == tmp_path / "checkpoints" / "step_00001200"
    stored = load_checkpoint(path)
    assert stored.model["weight"].tolist() == [[2.0] * 3] * 2
    assert stored.ema is not None
    assert stored.ema["weight"].tolist() == [[-2.0] * 3] * 2
    assert stored.puzzle_embedding.tolist() == [[20.0] * 3] * 4
    assert stored.config == {"seed": 7, "arch": {"name": "tiny"}}
    assert load_training_state(path) == {"a": [1]}


def test_without_an_average_there_is_no_file_of_it(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path, 3).save(1, contents(), {}, None)
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json",
        "dataset.json",
        "model.safetensors",
        "puzzle_embedding.safetensors",
        "training_state.pt",
    ]
    assert load_checkpoint(path).ema is None


def test_a_model_goes_through_a_checkpoint_unchanged(tmp_path: Path) -> None:
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    table = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    written = Checkpoint(model.state_dict(), None, table, {}, {})
    stored = load_checkpoint(CheckpointFolder(tmp_path, 1).save(1, written, {}, None))
    load_weights(other, stored.model, "stored")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert torch.equal(stored.puzzle_embedding, table)


def test_others_may_read_the_weights_as_they_may_the_config(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path, 1).save(1, contents(ema=True), {}, None)
    modes = {file.stat().st_mode for file in path.iterdir()}
    assert len(modes) == 1


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 100, 200, 300, 400, keep=2)
    assert steps_in(tmp_path) == [300, 400]


def test_the_best_is_kept_besides_the_newest(tmp_path: Path) -> None:
    scores = {100: (0.2, 0.9), 200: (0.3, 0.1), 300: (0.3, 0.05), 400: (0.1, 1.0)}
    save(tmp_path, 100, 200, 300, 400, 500, 600, keep=2, scores=scores)
    # 200: the highest first figure, and of the two that share it the higher second one.
    assert steps_in(tmp_path) == [200, 500, 600]
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"checkpoint": "step_00000200", "score": [0.3, 0.1], "weights": "ema"}


def test_a_new_best_frees_the_old_one(tmp_path: Path) -> None:
    scores = {100: (0.2,), 300: (0.3,)}
    save(tmp_path, 100, 200, 300, 400, 500, keep=1, scores=scores)
    assert steps_in(tmp_path) == [300, 500]


def test_the_best_is_remembered_over_a_restart(tmp_path: Path) -> None:
    save(tmp_path, 100, keep=1, scores={100: (0.5,)})
    save(tmp_path, 200, 300, keep=1, scores={200: (0.4,)})
    assert steps_in(tmp_path) == [100, 300]


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("function", "error", "raised"),
    [
        ("save_file", OSError(errno.ENOSPC, "No space left on device"), OSError),
        # What safetensors makes of a full disk, and of anything else.
        ("save_file", SafetensorError(FULL), OSError),
        ("save_file", SafetensorError("something else"), SafetensorError),
        ("torch.save", RuntimeError("unexpected pos 576 vs 534"), RuntimeError),
        ("json.dumps", TypeError("not serializable"), TypeError),
    ],
)
def test_a_failed_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error: Exception,
    raised: type[Exception],
) -> None:
    folder = save(tmp_path, 100, 200, keep=2, scores={100: (0.5,)})
    before = everything_in(tmp_path)

    def fail(*arguments: Any, **_: Any) -> None:
        if isinstance(arguments[-1], Path):  # As on a full disk: some of the file is there.
            arguments[-1].write_bytes(b"half")
        raise error

    monkeypatch.setattr(f"training.checkpoints.{function}", fail)
    with pytest.raises(raised) as caught:
        folder.save(300, contents(), {}, (0.9,))
    if isinstance(caught.value, OSError):
        assert caught.value.errno == errno.ENOSPC
    assert everything_in(tmp_path) == before
    assert steps_in(tmp_path) == [100, 200]


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
    before = everything_in(tmp_path)
    with pytest.raises(OSError, match=r"File too large.*training_state\.pt"):
        folder.save(200, contents(), {"state": torch.zeros(100_000)}, None)
    assert everything_in(tmp_path) == before


def test_what_a_killed_run_left_half_written_does_not_disturb_the_next_save(
    tmp_path: Path,
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    partial = tmp_path / "checkpoints" / f"step_00000100.{gone.pid}.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "garbage").write_bytes(b"")
    save(tmp_path, 100)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000100"]
    assert not (tmp_path / "checkpoints" / "step_00000100" / "garbage").exists()


def test_complete_checkpoints_are_the_step_folders_oldest_first(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in (
        "step_00000200",
        "step_00000100",
        "step_00000300.partial",
        "step_latest",
        "step_",
        "other_00000400",
    ):
        (folder / name).mkdir(parents=True)
    (folder / "step_00000500").write_text("a file")
    names = [path.name for path in complete_checkpoints(folder)]
    assert names == ["step_00000100", "step_00000200"]
    assert complete_checkpoints(tmp_path / "nowhere") == []


def test_a_run_a_checkpoint_and_a_folder_of_checkpoints_all_name_a_checkpoint(
    tmp_path: Path,
) -> None:
    save(tmp_path, 100, 300, 200)
    folder = tmp_path / "checkpoints"
    for named in (tmp_path, folder, folder / NEWEST):
        assert find_checkpoint(named, "checkpoint") == folder / NEWEST
    older = folder / "step_00000100"
    assert find_checkpoint(older, "checkpoint") == older


@pytest.mark.parametrize("what", ["nowhere", "empty"])
def test_no_checkpoint_is_an_error_with_key_and_path(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    path = tmp_path / what
    with pytest.raises(UserError, match=rf"init_from={path}: no checkpoint there"):
        find_checkpoint(path, "init_from")


def test_weights_of_another_width_are_refused_by_name_and_shapes_and_nothing_is_copied() -> None:
    model = tiny_model(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wider = tiny_model(seed=2, hidden_size=32).state_dict()
    with pytest.raises(
        UserError,
        match=r"run/step_1 is of another architecture: 'y_init' has shape \[32\], this model needs "
        r"\[16\]",
    ):
        load_weights(model, wider, "run/step_1")
    # Also where only a late tensor is of another shape.
    almost = tiny_model(seed=2).state_dict()
    almost["readout.weight"] = torch.zeros(11, 16)
    with pytest.raises(UserError, match=r"'readout.weight' has shape \[11, 16\]"):
        load_weights(model, almost, "other")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("own", "stored"), [(1, 2), (2, 1)])
def test_weights_of_another_depth_are_refused_by_the_name_of_a_tensor(
    own: int, stored: int
) -> None:
    with pytest.raises(UserError, match=r"'blocks\.1\.attention\.out\.weight' is in only one"):
        load_weights(
            tiny_model(num_layers=own), tiny_model(num_layers=stored).state_dict(), "other"
        )


@pytest.mark.parametrize("shape", [(5, 3), (4, 2)])
def test_a_table_of_another_size_is_refused_and_the_own_stays(shape: tuple[int, int]) -> None:
    table = torch.zeros(4, 3)
    with pytest.raises(
        UserError,
        match=rf"run/step_1: .*\[{shape[0]}, {shape[1]}\], .*need \[4, 3\]; rebuild it",
    ):
        load_table(table, torch.ones(shape), "run/step_1", "rebuild it")
    assert table.tolist() == [[0.0] * 3] * 4
    load_table(table, torch.ones(4, 3), "run/step_1", "rebuild it")
    assert table.tolist() == [[1.0] * 3] * 4


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A good checkpoint, to be damaged."""
    return CheckpointFolder(tmp_path, 1).save(100, contents(ema=True), {"step": 100}, None)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model_ema.safetensors", "puzzle_embedding.safetensors"]
)
@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_weights_are_refused_by_the_files_name(
    damaged: Path, name: str, kept: int
) -> None:
    (damaged / name).write_bytes((damaged / name).read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"{name} is damaged .*use the checkpoint before"):
        load_checkpoint(damaged)


@pytest.mark.parametrize("name", ["model.safetensors", "puzzle_embedding.safetensors"])
def test_missing_weights_are_refused_by_the_files_name(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(UserError, match=rf"{name} does not exist"):
        load_checkpoint(damaged)


@pytest.mark.parametrize("content", ["", '{"seed": ', None])
def test_a_damaged_config_is_refused(damaged: Path, content: str | None) -> None:
    (damaged / "config.json").unlink()
    if content is not None:
        (damaged / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_checkpoint(damaged)


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_truncated_training_state_is_refused(damaged: Path, kept: int) -> None:
    file = damaged / "training_state.pt"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(
        UserError, match=r"(?s)training_state\.pt is damaged .* the checkpoint before"
    ):
        load_training_state(damaged)


def test_a_training_state_of_zeros_is_refused(damaged: Path) -> None:
    """What a power cut leaves of a file whose length was written before its content."""
    file = damaged / "training_state.pt"
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(
        UserError, match=r"(?s)training_state\.pt is damaged .* the checkpoint before"
    ):
        load_training_state(damaged)


def test_a_checkpoint_without_training_state_can_be_scored_but_not_resumed(damaged: Path) -> None:
    (damaged / "training_state.pt").unlink()
    assert load_checkpoint(damaged).config["seed"] == 7
    with pytest.raises(UserError, match="can be scored but not resumed"):
        load_training_state(damaged)


def draws() -> list[Any]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),  # noqa: NPY002
        float(np.random.normal()),  # noqa: NPY002
        torch.rand(3).tolist(),
    ]


def test_random_draws_repeat_from_a_stored_state(tmp_path: Path) -> None:
    start = rng_state(CPU)
    random.gauss(0, 1)  # Python and numpy hold back every other normal: part of the state.
    np.random.normal()  # noqa: NPY002
    path = CheckpointFolder(tmp_path, 1).save(1, contents(), {"rng": rng_state(CPU)}, None)
    first = draws()
    assert draws() != first
    set_rng_state(load_training_state(path)["rng"], CPU)
    assert draws() == first
    set_rng_state(start, CPU)


CONFIG = {"seed": 3, "arch": {"name": "tiny"}}


def saved_config(run_dir: Path) -> Any:
    return yaml.safe_load((run_dir / "config.yaml").read_text())


def test_the_config_makes_the_run_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "new"
    write_run_config(run_dir, CONFIG)
    assert saved_config(run_dir) == CONFIG
    write_run_config(run_dir, {"seed": 4})
    assert saved_config(run_dir) == {"seed": 4}


def test_looking_for_the_start_changes_nothing(tmp_path: Path) -> None:
    for resume in ("none", "auto"):
        assert find_start(tmp_path / "runs" / "new", resume) is None
    (tmp_path / "empty").mkdir()
    assert find_start(tmp_path / "empty", "none") is None
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_existing_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    save(tmp_path, 300)
    with pytest.raises(UserError, match=rf"run_dir {tmp_path} exists .*resume=auto"):
        find_start(tmp_path, "none")


def test_auto_never_takes_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=rf"run_dir {tmp_path} exists"):
        find_start(tmp_path, "auto")


def test_auto_starts_again_what_was_lost_before_its_first_checkpoint(tmp_path: Path) -> None:
    write_run_config(tmp_path, CONFIG)
    assert find_start(tmp_path, "auto") is None


def test_auto_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    write_run_config(tmp_path, CONFIG)
    save(tmp_path, 100, 300, 200)
    (tmp_path / "checkpoints" / "step_00000900.1.partial").mkdir()
    assert find_start(tmp_path, "auto") == tmp_path / "checkpoints" / NEWEST


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999, 100_000_000)
    assert find_checkpoint(tmp_path, "resume").name == "step_100000000"


def test_a_path_goes_on_from_another_run_in_a_folder_of_its_own(tmp_path: Path) -> None:
    old = tmp_path / "old"
    save(old, 100, 300)
    assert find_start(tmp_path / "new", str(old)) == old / "checkpoints" / NEWEST
    older = old / "checkpoints" / "step_00000100"
    assert find_start(tmp_path / "newer", str(older)) == older


def test_two_runs_never_mix_in_one_folder(tmp_path: Path) -> None:
    save(tmp_path / "one", 100)
    save(tmp_path / "two", 50)
    with pytest.raises(UserError, match=rf"run_dir {tmp_path / 'two'} exists"):
        find_start(tmp_path / "two", str(tmp_path / "one"))


def test_a_path_to_the_own_newest_checkpoint_goes_on(tmp_path: Path) -> None:
    save(tmp_path, 100, 300)
    newest = tmp_path / "checkpoints" / NEWEST
    assert find_start(tmp_path, str(newest)) == newest


def test_going_on_from_an_older_checkpoint_would_overwrite_newer_ones(tmp_path: Path) -> None:
    save(tmp_path, 100, 300)
    older = tmp_path / "checkpoints" / "step_00000100"
    with pytest.raises(UserError, match=rf"resume={older}: .*the newer {NEWEST}"):
        find_start(tmp_path, str(older))


def test_a_path_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"resume={tmp_path / 'lost'}: no checkpoint"):
        find_start(tmp_path / "new", str(tmp_path / "lost"))


def test_another_dataset_is_told_by_what_its_identifiers_mean() -> None:
    """The same number of puzzles is not the same puzzles."""
    stored = {"identifiers_sha256": "a", "num_puzzle_identifiers": 5, "seq_len": 900}
    require_same_dataset(stored, dict(stored), "it")
    for key in stored:
        with pytest.raises(UserError, match=rf"it was trained on another dataset: its {key}"):
            require_same_dataset(stored, {**stored, key: "other"}, "it")


def test_a_damaged_best_file_is_named(tmp_path: Path) -> None:
    save(tmp_path, 100)
    (tmp_path / "checkpoints" / "best.json").write_text("{")
    with pytest.raises(UserError, match=r"best\.json is damaged"):
        save(tmp_path, 200)
