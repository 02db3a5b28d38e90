"""The trainer from end to end: tiny networks, real tasks, real processes."""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from runs import HALTING, InProcess, checkpoint_tensors, read_metrics, torchrun, train_arguments

import train_arc_tiny_corrupt
from config.schema import TrainConfig
from dataset.build_arc_dataset import build
from dataset.build_plan import BuildOptions
from evaluation import evaluator
from training import checkpoints
from training.checkpoints import Score
from training.run_folder import complete_checkpoints


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    torch.set_num_threads(1)
    return InProcess(monkeypatch)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A run of 12 steps with checkpoints at 6 and 12. Read-only."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_dir = tmp_path_factory.mktemp("runs") / "finished"
        return InProcess(monkeypatch).train(tiny_dataset, run_dir)


@pytest.mark.parametrize(
    ("found", "score"),
    [
        ({"pass@2": 0.5, "exact_accuracy": 0.25, "cell_accuracy": 0.9}, (0.5, 0.25)),
        ({"pass@2": 0.5}, (0.5, 0.0)),
        ({"solved": 0.75, "exact_accuracy": 0.25}, (0.75, 0.25)),
        ({"exact_accuracy": 0.25}, (0.25, 0.25)),
        ({"predicted_share": 1.0}, None),
    ],
    ids=["tasks", "voting stopped", "boards", "boards without rules", "hidden solutions"],
)
def test_checkpoints_are_rated_by_what_matters_most(
    found: dict[str, float], score: tuple[float, float] | None
) -> None:
    run: Any = SimpleNamespace(scored_weights="ema")
    rated = train_arc_tiny_corrupt.rating(run, {f"eval/{k}": v for k, v in found.items()})
    assert rated == (None if score is None else Score(score, "ema"))


def test_a_run_leaves_config_metrics_and_whole_checkpoints(finished_run: Path) -> None:
    """The run folder holds what the README lists, and nothing half-written."""
    assert {path.name for path in finished_run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
    }
    newest = finished_run / "checkpoints" / "step_00000012"
    assert {path.name for path in newest.iterdir()} == {
        "model.safetensors",
        "model_ema.safetensors",
        "puzzle_embedding.safetensors",
        "config.json",
        "dataset.json",
        "training_state.pt",
    }
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert TrainConfig.model_validate(config).arch.name == "tiny"
    assert json.loads((newest / "config.json").read_text()) == config
    best = json.loads((finished_run / "checkpoints" / "best.json").read_text())
    assert best["weights"] == "ema"
    assert best["checkpoint"] in (
        "step_00000006",
        "step_00000012",
    )


def test_metrics_are_recorded_at_their_steps(finished_run: Path) -> None:
    """Training metrics every 3 steps, evaluations at 6 and 12."""
    lines = read_metrics(finished_run)
    assert [line["step"] for line in lines if "train/loss" in line] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if "eval/pass@2" in line] == [6, 12]
    first = lines[0]
    assert math.isfinite(first["train/grad_norm"])
    assert first["train/grad_norm"] > 0
    assert first["train/lr"] == pytest.approx(1e-4)  # Warm-up is over after 2 steps.
    assert set(first) >= {
        f"train/{name}_accuracy{suffix}"
        for name in ("cell", "exact")
        for suffix in ("", "_step1", "_step2", "_step3")
    }
    # A batch of eight examples serves three optimizer steps.
    assert first["train/examples_per_second"] / first["train/steps_per_second"] == pytest.approx(
        8 / 3
    )


DIAGNOSED = {
    f"{name}{suffix}"
    for name in (
        "distance_to_solution",
        "distance_to_target",
        "cells_changed",
        "margin",
        "margin_positive",
    )
    for suffix in ("", "_step1", "_step2", "_step3")
}


def diagnosed(run_dir: Path, prefix: str) -> list[dict[str, float]]:
    """The diagnostics of each line that has any figures of that kind."""
    return [
        {
            key.removeprefix(prefix): value
            for key, value in line.items()
            if key.removeprefix(prefix) in DIAGNOSED
        }
        for line in read_metrics(run_dir)
        if f"{prefix}exact_accuracy" in line
    ]


@pytest.mark.parametrize("scheme", [(), HALTING], ids=["dis", "trm"])
def test_diagnostics_are_recorded_for_every_step_where_they_are_asked_for(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path, scheme: tuple[str, ...]
) -> None:
    """While training, while evaluating, in both or in neither; and they change nothing else."""
    losses = []
    for train, evaluation in ((False, False), (True, False), (False, True), (True, True)):
        run_dir = scripts.train(
            tiny_dataset,
            tmp_path / f"{train}-{evaluation}",
            *scheme,
            f"train.diagnostics={str(train).lower()}",
            f"eval.diagnostics={str(evaluation).lower()}",
            "train.max_steps=6",
        )
        trained, evaluated = diagnosed(run_dir, "train/"), diagnosed(run_dir, "eval/")
        assert len(evaluated) == 1
        # The last line: by then slots have reached the last step.
        assert set(trained[-1]) == (DIAGNOSED if train else set())
        assert set(evaluated[0]) == (DIAGNOSED if evaluation else set())
        for figures in (*trained, *evaluated):
            for name, value in figures.items():
                if "margin" not in name:
                    assert 0 <= value <= 36, name
                assert "positive" not in name or 0 <= value <= 1, name
        losses.append([x["train/loss"] for x in read_metrics(run_dir) if "train/loss" in x])
    assert losses == [losses[0]] * 4


def test_diagnostics_are_of_all_ranks(
    tiny_dataset: Path, scripts: InProcess, tmp_path: Path
) -> None:
    overrides = ("train.diagnostics=true", "eval.diagnostics=true", "train.max_steps=6")
    one = scripts.train(tiny_dataset, tmp_path / "one", *overrides)
    arguments = train_arguments(tiny_dataset, tmp_path / "two", *overrides)
    process = torchrun(2, "train_arc_tiny_corrupt.py", *arguments)
    assert process.returncode == 0, process.stderr
    for prefix in ("train/", "eval/"):
        expected, found = diagnosed(one, prefix)[-1], diagnosed(tmp_path / "two", prefix)[-1]
        assert set(found) == DIAGNOSED
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("scheme", "steps"), [((), 6), (HALTING, 4)], ids=["dis", "trm"])
def test_a_run_is_as_long_as_the_batches_that_its_optimizer_steps_take(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path, scheme: tuple[str, ...], steps: int
) -> None:
    """Four optimizer steps are two batches of three steps, or with halting four batches."""
    arguments = ("train.max_steps=4", "train.eval_every=null")
    run_dir = scripts.train(tiny_dataset, tmp_path / "run", *scheme, *arguments)
    (newest,) = complete_checkpoints(run_dir / "checkpoints")
    assert newest.name == f"step_{steps:08}"
    assert read_metrics(run_dir)[-1]["step"] == steps


@pytest.mark.parametrize("arch", ["trm", "trm_compact", "hrm"])
def test_the_baselines_train_and_are_scored(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path, arch: str
) -> None:
    """The published recursion and networks, on a width and a number of steps of a test's size."""
    run_dir = scripts.train(
        tiny_dataset, tmp_path / "run", f"arch={arch}", "supervision=trm", "train.max_steps=4"
    )
    last = [line for line in read_metrics(run_dir) if "train/loss" in line][-1]
    assert math.isfinite(last["train/loss"])
    assert "train/steps_taken_step1" not in last, "of step 1 it is 1"
    assert {"train/exact_accuracy_step1", "train/halting_accuracy_step1"} <= set(last)
    scored = [line for line in read_metrics(run_dir) if "eval/pass@2" in line]
    assert [line["step"] for line in scored] == [4]
    assert {f"eval/exact_accuracy_step{s}" for s in (1, 2, 3)} <= set(scored[0])


def test_the_raw_and_averaged_weights_differ(finished_run: Path) -> None:
    """Both are kept, and the average is not a copy."""
    tensors = checkpoint_tensors(finished_run / "checkpoints" / "step_00000012")
    raw = tensors["model.safetensors:readout.weight"]
    assert not torch.equal(raw, tensors["model_ema.safetensors:readout.weight"])
    assert tensors["puzzle_embedding.safetensors:weight"].abs().max() > 0


def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(
    scripts: InProcess, finished_run: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Lose the machine after the checkpoint at 6, resume, and every bit of step 12 is the same."""
    run_dir = tmp_path / "resumed"
    shutil.copytree(finished_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_00000012")
    torch.manual_seed(12345)  # The state that the process happens to be in must not matter.
    scripts.train(tiny_dataset, run_dir, "resume=auto")
    expected = checkpoint_tensors(finished_run / "checkpoints" / "step_00000012")
    resumed = checkpoint_tensors(run_dir / "checkpoints" / "step_00000012")
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    before, after = (
        checkpoints.load_training_state(path / "checkpoints" / "step_00000012")
        for path in (finished_run, run_dir)
    )
    assert before["position"] == after["position"]
    for key, moments in before["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, after["optimizer"]["state"][key][name])
    assert torch.equal(before["rng_states"][0]["torch"], after["rng_states"][0]["torch"])
    # Lines after the checkpoint were forgotten and written again: no step stands there twice.
    losses = [(x["step"], x["train/loss"]) for x in read_metrics(run_dir) if "train/loss" in x]
    assert losses == [
        (x["step"], x["train/loss"]) for x in read_metrics(finished_run) if "train/loss" in x
    ]


# Windows of 64 to 96 of 100 cells, and some whole canvases: several segments a batch.
WINDOW = ("data.canvas=window", "data.whole_canvas_share=0.2")


@pytest.fixture(scope="module")
def roomy_runs(
    tmp_path_factory: pytest.TempPathFactory, roomy_dataset: Path, roomy_compact_dataset: Path
) -> dict[str, Path]:
    """Runs of 12 steps by layout and canvas. Read-only."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        scripts = InProcess(monkeypatch)
        return {
            f"{layout} {canvas}": scripts.train(data, folder / layout / canvas, *overrides)
            for layout, data in (("full", roomy_dataset), ("compact", roomy_compact_dataset))
            for canvas, overrides in (("whole", ()), ("window", WINDOW))
        }


@pytest.mark.parametrize("kind", ["full window", "compact whole", "compact window"])
def test_windows_and_the_compact_layout_train_and_resume_to_the_bit(
    scripts: InProcess, roomy_runs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Though what they show was drawn at random, a batch ahead."""
    finished, run_dir = roomy_runs[kind], tmp_path / "resumed"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_00000012")
    data = Path(yaml.safe_load((finished / "config.yaml").read_text())["data"]["path"])
    overrides = WINDOW if "window" in kind else ()
    scripts.train(data, run_dir, "resume=auto", *overrides)
    expected = checkpoint_tensors(finished / "checkpoints" / "step_00000012")
    resumed = checkpoint_tensors(run_dir / "checkpoints" / "step_00000012")
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    before, after = read_metrics(finished), read_metrics(run_dir)
    assert [x["train/loss"] for x in before if "train/loss" in x] == [
        x["train/loss"] for x in after if "train/loss" in x
    ]
    evaluations = [x for x in after if "eval/pass@2" in x]
    assert [x["step"] for x in evaluations] == [6, 12]
    assert all(0 <= x["eval/whole_canvas_again"] <= 1 for x in evaluations)
    assert all(x["eval/predicted_share"] == 1 for x in evaluations)


def test_what_is_shown_is_what_was_asked_for(roomy_runs: dict[str, Path]) -> None:
    """Four runs of one seed that saw the same pairs, and each other cells of them."""
    readouts = [
        checkpoint_tensors(run / "checkpoints" / "step_00000012")[
            "model.safetensors:readout.weight"
        ]
        for run in roomy_runs.values()
    ]
    for number, readout in enumerate(readouts):
        assert not any(torch.equal(readout, other) for other in readouts[:number])
        torch.testing.assert_close(readout, readouts[0], atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [((), "whole"), (WINDOW, "window"), ((*WINDOW, "eval.canvas=whole"), "whole")],
)
def test_a_run_is_validated_on_the_cells_that_it_is_trained_on(
    scripts: InProcess,
    roomy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    shown: str,
) -> None:
    """Unless eval.canvas asks for others."""
    asked = []
    real = evaluator.evaluate

    def spy(steps: Any, test_set: Any, config: Any, canvas: str, *rest: Any) -> Any:
        asked.append(canvas)
        return real(steps, test_set, config, canvas, *rest)

    monkeypatch.setattr(evaluator, "evaluate", spy)
    scripts.train(roomy_dataset, tmp_path / "run", "train.max_steps=3", *overrides)
    assert asked == [shown]


def test_two_ranks_equal_one_rank_in_windows_too(
    roomy_runs: dict[str, Path], roomy_dataset: Path, tmp_path: Path
) -> None:
    """Each rank cuts its share into segments of its own, seldom as many as the other."""
    run_dir = tmp_path / "two"
    arguments = train_arguments(roomy_dataset, run_dir, *WINDOW)
    process = torchrun(2, "train_arc_tiny_corrupt.py", *arguments)
    assert process.returncode == 0, process.stderr
    one = checkpoint_tensors(roomy_runs["full window"] / "checkpoints" / "step_00000012")
    two = checkpoint_tensors(run_dir / "checkpoints" / "step_00000012")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    figures = [
        {(x["step"], k): x[k] for x in read_metrics(run) for k in x if k.startswith("eval/")}
        for run in (roomy_runs["full window"], run_dir)
    ]
    assert figures[0] == pytest.approx(figures[1])


def test_resuming_with_nothing_to_resume_starts_and_a_finished_run_stays(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path
) -> None:
    """resume=auto is safe to put into a start script: it starts, goes on, or has nothing to do."""
    run_dir = tmp_path / "run"
    scripts.train(tiny_dataset, run_dir, "resume=auto", "train.max_steps=6")
    before = checkpoint_tensors(run_dir / "checkpoints" / "step_00000006")
    scripts.train(tiny_dataset, run_dir, "resume=auto", "train.max_steps=6")
    after = checkpoint_tensors(run_dir / "checkpoints" / "step_00000006")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [line["step"] for line in read_metrics(run_dir) if "eval/pass@2" in line] == [6]


def test_a_resumed_run_follows_the_hyperparameters_it_is_given(
    scripts: InProcess,
    finished_run: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What changes is used, not what the optimizer's saved state holds, and it is said."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    with caplog.at_level("INFO"):
        changed = ("resume=auto", "optim.weight_decay=0.5", "train.max_steps=15")
        scripts.train(tiny_dataset, run_dir, *changed)
    assert "Resuming with optim.weight_decay=0.5 instead of 0.1" in caplog.text
    state = checkpoints.load_training_state(run_dir / "checkpoints" / "step_00000015")
    (group,) = state["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5


def test_a_fork_is_a_run_of_its_own(
    scripts: InProcess, finished_run: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """resume=PATH from another folder goes on there and leaves the first run alone."""
    before = sorted(finished_run.rglob("*"))
    run_dir = scripts.train(
        tiny_dataset, tmp_path / "fork", f"resume={finished_run}", "train.max_steps=15"
    )
    assert [line["step"] for line in read_metrics(run_dir) if "train/loss" in line] == [15]
    assert sorted(finished_run.rglob("*")) == before


def test_every_evaluation_leaves_its_checkpoint(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path
) -> None:
    """The best by validation can only be kept if what was scored was saved."""
    run_dir = scripts.train(
        tiny_dataset, tmp_path / "run", "train.eval_every=3", "train.checkpoint_every=1000"
    )
    saved = [path.name for path in complete_checkpoints(run_dir / "checkpoints")]
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())
    assert {"step_00000006", "step_00000009", "step_00000012"} <= set(saved)
    assert best["checkpoint"] in saved
    assert best["weights"] == "ema"


def test_the_newest_checkpoints_and_the_best_are_kept(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path
) -> None:
    """keep_checkpoints=1 leaves the last and, if that is another, the best by validation."""
    run_dir = scripts.train(
        tiny_dataset, tmp_path / "run", "train.keep_checkpoints=1", "train.max_steps=18"
    )
    kept = {path.name for path in complete_checkpoints(run_dir / "checkpoints")}
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())["checkpoint"]
    assert kept == {"step_00000018", best}


def test_two_ranks_equal_one_rank_to_rounding(
    scripts: InProcess, finished_run: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """The same global batch split over two processes (gloo) trains the same weights."""
    run_dir = tmp_path / "two"
    arguments = train_arguments(tiny_dataset, run_dir)
    process = torchrun(2, "train_arc_tiny_corrupt.py", *arguments)
    assert process.returncode == 0, process.stderr
    one = checkpoint_tensors(finished_run / "checkpoints" / "step_00000012")
    two = checkpoint_tensors(run_dir / "checkpoints" / "step_00000012")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    # Two ranks saved two random states, and validated on the same predictions.
    state = checkpoints.load_training_state(run_dir / "checkpoints" / "step_00000012")
    assert len(state["rng_states"]) == 2
    loss = {line["step"]: line for line in read_metrics(run_dir) if "train/loss" in line}
    for line in read_metrics(finished_run):
        if "train/loss" in line:
            assert loss[line["step"]]["train/loss"] == pytest.approx(line["train/loss"], rel=1e-5)


def test_clipping_bounds_the_gradient_and_not_the_norm_that_is_logged(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    real = torch.optim.AdamW.step

    def spy(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad for p in optimizer.param_groups[0]["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return real(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    settings = ("train.max_steps=3", "train.eval_every=null")
    scripts.train(tiny_dataset, tmp_path / "free", *settings)
    free, norms = norms, []
    run_dir = scripts.train(tiny_dataset, tmp_path / "clipped", *settings, "optim.grad_clip=0.1")
    assert min(free) > 0.1
    assert norms == pytest.approx([0.1] * 3, rel=1e-3)
    assert read_metrics(run_dir)[0]["train/grad_norm"] > 0.1


def test_a_tiny_model_overfits_one_puzzle(
    scripts: InProcess, kaggle_prefix: str, tmp_path: Path
) -> None:
    """All of it together learns: after 900 steps the demonstrations of one task are exact."""
    data = tmp_path / "one"
    options = BuildOptions(
        kaggle_prefix,
        data,
        ("training",),
        ("training",),
        num_aug=0,
        task_ids=("25ff71a9",),
        canvas_side=4,
    )
    build(options)
    run_dir = scripts.train(
        data,
        tmp_path / "run",
        "arch.hidden_size=32",
        "optim.lr=3e-3",
        "optim.puzzle_lr=3e-2",
        "optim.ema_decay=null",
        "train.max_steps=900",
        "train.log_every=90",
        "train.checkpoint_every=900",
        "train.eval_every=null",
    )
    last = read_metrics(run_dir)[-1]
    assert last["step"] == 900
    assert last["train/exact_accuracy"] > 0.9, last


def test_weights_of_another_run_can_be_the_start(
    scripts: InProcess, finished_run: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """init_from takes the averaged weights and the table, and starts at step 0."""
    run_dir = scripts.train(
        tiny_dataset,
        tmp_path / "next",
        f"init_from={finished_run}",
        "optim.lr=1e-12",
        "optim.puzzle_lr=0",
        "train.max_steps=3",
        "train.eval_every=null",
    )
    start = checkpoint_tensors(finished_run / "checkpoints" / "step_00000012")
    end = checkpoint_tensors(run_dir / "checkpoints" / "step_00000003")
    average = start["model_ema.safetensors:readout.weight"]
    torch.testing.assert_close(end["model.safetensors:readout.weight"], average)
    table = "puzzle_embedding.safetensors:weight"
    assert torch.equal(start[table], end[table])


def test_wandb_runs_offline_without_a_login(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode auto without credentials writes a real offline run that can be synced later."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run_dir = scripts.train(tiny_dataset, tmp_path / "run", "wandb.mode=auto", "train.max_steps=3")
    assert list(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    state = checkpoints.load_training_state(run_dir / "checkpoints" / "step_00000003")
    assert state["wandb_run_id"]


def test_a_dataset_of_another_code_base_trains(
    scripts: InProcess, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Wide integers, extra metadata and no build.json, as other builders write them."""
    data = tmp_path / "foreign"
    shutil.copytree(tiny_dataset, data)
    (data / "build.json").unlink()
    for path in data.glob("*/all__*.npy"):
        array = np.load(path)
        np.save(path, array.astype(np.int64) if "ind" in path.name else array)
    for path in data.glob("*/dataset.json"):
        metadata = json.loads(path.read_text())
        del metadata["total_puzzles"]  # Nothing needs it.
        path.write_text(json.dumps({**metadata, "made_by": "another"}))
    scripts.train(data, tmp_path / "scored", "train.max_steps=3")
    # Without an evaluation the train half is enough.
    shutil.rmtree(data / "test")
    (data / "test_puzzles.json").unlink()
    unscored = ("train.max_steps=3", "train.eval_every=null")
    run_dir = scripts.train(data, tmp_path / "run", *unscored)
    assert (run_dir / "checkpoints" / "step_00000003").is_dir()


def test_a_hidden_test_set_trains_and_is_not_scored(
    scripts: InProcess, kaggle_prefix: str, tmp_path: Path
) -> None:
    """Without solutions there is no validation figure, and no best checkpoint."""
    hidden = tmp_path / "kaggle" / "arc"
    hidden.parent.mkdir()
    for subset in ("training", "evaluation"):
        for path in Path(kaggle_prefix).parent.glob(f"*_{subset}_challenges.json"):
            shutil.copy(path, f"{hidden}_{subset}_challenges.json")
    shutil.copy(f"{kaggle_prefix}_training_solutions.json", f"{hidden}_training_solutions.json")
    data = tmp_path / "data"
    build(BuildOptions(str(hidden), data, ("training", "evaluation"), ("evaluation",), num_aug=4))
    run_dir = scripts.train(data, tmp_path / "run", "train.max_steps=3")
    assert not any("pass@2" in key for line in read_metrics(run_dir) for key in line)
    assert not (run_dir / "checkpoints" / "best.json").exists()


# ---- what goes wrong ----

Refused = Callable[..., str]


@pytest.fixture
def refuse(refused_in_process: Refused, tiny_dataset: Path, tmp_path: Path) -> Refused:
    """The trainer must end with exit code 2 and one line; return it."""

    def run(*overrides: str) -> str:
        arguments = train_arguments(tiny_dataset, tmp_path / "run", *overrides)
        return refused_in_process(train_arc_tiny_corrupt.main, *arguments)

    return run


def test_a_missing_dataset_is_named_before_anything_is_written(
    refuse: Refused, tmp_path: Path
) -> None:
    line = refuse(f"data.path={tmp_path / 'nowhere'}")
    assert "nowhere" in line
    assert "build_arc_dataset" in line
    assert not (tmp_path / "run").exists()


def test_a_half_written_dataset_is_refused(
    refuse: Refused, tiny_dataset: Path, tmp_path: Path
) -> None:
    data = tmp_path / "half"
    shutil.copytree(tiny_dataset, data)
    (data / "test" / "dataset.json").unlink()
    assert "dataset.json" in refuse(f"data.path={data}")


def test_a_token_that_is_met_ahead_ends_the_run_with_one_line(
    refuse: Refused, tiny_dataset: Path, tmp_path: Path
) -> None:
    """The thread that loads the batches meets it, and the run ends as for any other error."""
    data = tmp_path / "damaged"
    shutil.copytree(tiny_dataset, data)
    path = data / "train" / "all__labels.npy"
    labels = np.load(path)
    labels[:, 5] = 12
    np.save(path, labels)
    assert "holds a token outside its vocabulary" in refuse(f"data.path={data}")


def test_a_truncated_array_is_refused(refuse: Refused, tiny_dataset: Path, tmp_path: Path) -> None:
    data = tmp_path / "cut"
    shutil.copytree(tiny_dataset, data)
    path = data / "train" / "all__inputs.npy"
    os.truncate(path, path.stat().st_size - 100)
    line = refuse(f"data.path={data}")
    assert "all__inputs.npy" in line
    assert "truncated" in line


def test_a_vocabulary_that_bytes_cannot_hold_is_refused(
    refuse: Refused, tiny_dataset: Path, tmp_path: Path
) -> None:
    data = tmp_path / "words"
    shutil.copytree(tiny_dataset, data)
    path = data / "train" / "dataset.json"
    path.write_text(path.read_text().replace('"vocab_size":12', '"vocab_size":256'))
    line = refuse(f"data.path={data}")
    assert "vocab_size 256" in line
    assert "expected 2 to 255" in line


def test_an_existing_run_folder_is_kept(
    refuse: Refused, finished_run: Path, tmp_path: Path
) -> None:
    before = sorted(finished_run.rglob("*"))
    line = refuse(f"run_dir={finished_run}")
    assert "resume=auto" in line
    assert sorted(finished_run.rglob("*")) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resuming_with_another_architecture_is_refused(
    refuse: Refused, finished_run: Path, tmp_path: Path
) -> None:
    """And the run is left as it was, its config.yaml included."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    before = contents(run_dir)
    line = refuse("resume=auto", "arch.hidden_size=32")
    assert "arch" in line
    assert "init_from" in line
    assert contents(run_dir) == before


def test_a_start_that_fails_leaves_no_run_folder(refuse: Refused, tmp_path: Path) -> None:
    """So that the corrected command does not find the folder taken."""
    assert "no checkpoint there" in refuse(f"init_from={tmp_path / 'tpyo'}")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_puzzles_is_not_resumed(
    refuse: Refused, finished_run: Path, kaggle_prefix: str, tmp_path: Path
) -> None:
    """The same tasks with another seed have as many puzzles, and other ones."""
    data = tmp_path / "reseeded"
    subsets = ("training", "evaluation")
    build(BuildOptions(kaggle_prefix, data, subsets, subsets[1:], 6, seed=1, canvas_side=6))
    shutil.copytree(finished_run, tmp_path / "run")
    line = refuse("resume=auto", f"data.path={data}")
    assert "trained on another dataset: its identifiers_sha256" in line


def test_a_folder_that_is_no_run_is_not_taken(refuse: Refused, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    assert "exists already" in refuse("resume=auto")
    assert os.listdir(tmp_path / "run") == ["thesis.txt"]


def test_scoring_an_average_needs_one(refuse: Refused) -> None:
    assert "optim.ema_decay" in refuse("eval.weights=ema", "optim.ema_decay=null")


def test_starting_from_another_architecture_names_the_tensor(
    refuse: Refused, finished_run: Path
) -> None:
    line = refuse(f"init_from={finished_run}", "arch.hidden_size=32")
    assert "another architecture" in line
    assert "token_embedding.weight" in line or "shape" in line


def test_a_puzzle_table_of_another_size_is_never_replaced(
    refuse: Refused, finished_run: Path, kaggle_prefix: str, tmp_path: Path
) -> None:
    """init_from on another dataset says so, and says how to leave the table out."""
    data = tmp_path / "other"
    build(BuildOptions(kaggle_prefix, data, ("training",), ("training",), num_aug=1))
    line = refuse(f"data.path={data}", f"init_from={finished_run}")
    assert "trained on another dataset" in line
    assert "init_puzzle_embedding=false" in line


def test_init_from_and_resume_exclude_each_other(refuse: Refused, finished_run: Path) -> None:
    line = refuse(f"init_from={finished_run}", f"resume={finished_run}")
    assert "exclude each other" in line


def test_a_missing_checkpoint_is_named(refuse: Refused, tmp_path: Path) -> None:
    assert "no checkpoint" in refuse(f"resume={tmp_path / 'nothing'}")


def test_a_damaged_checkpoint_is_named(refuse: Refused, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step_00000012" / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    line = refuse("resume=auto")
    assert "model.safetensors" in line
    assert "damaged" in line


def test_a_batch_larger_than_a_pass_says_how_to_mend_it(refuse: Refused) -> None:
    line = refuse("train.global_batch_size=1000", "data.epochs_per_pass=1")
    assert "data.epochs_per_pass to at least" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(refuse: Refused) -> None:
    assert "no CUDA device" in refuse("device=cuda")


def test_a_diverging_run_stops_before_it_saves_broken_weights(
    refuse: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite ends the run at the next reading, and no checkpoint holds it."""
    real = train_arc_tiny_corrupt.take_step

    def poisoned(run: Any, result: Any) -> torch.Tensor:
        if run.state.step == 8:
            result = result._replace(loss=result.loss * float("nan"))
        return real(run, result)

    monkeypatch.setattr(train_arc_tiny_corrupt, "take_step", poisoned)
    line = refuse()
    assert "diverged" in line
    assert "between optimizer steps 6 and 9" in line
    kept = complete_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == ["step_00000006"]


@pytest.mark.parametrize("file", ["model.safetensors", "training_state.pt"])
def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    refuse: Refused, finished_run: Path, small_disk: Callable[[int], Path], file: str
) -> None:
    """The second checkpoint does not fit, up to one file or the other: the first stays whole."""
    size = folder_size(finished_run / "checkpoints" / "step_00000012")
    first_of_second = {"model.safetensors": 0.1, "training_state.pt": 0.9}[file]
    disk = small_disk(round(size * (1 + first_of_second)) + 16_384)
    line = refuse(f"run_dir={disk / 'run'}")
    assert "disk is full" in line
    assert file in line
    left = [path.name for path in (disk / "run" / "checkpoints").iterdir() if path.is_dir()]
    assert left == ["step_00000006"]
    assert folder_size(disk / "run" / "checkpoints" / left[0]) == size


def folder_size(folder: Path) -> int:
    """Bytes that the files of a folder take on disk, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many bytes; skip where that is not allowed."""
    mounted = tmp_path / "disk"
    mounted.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(mounted)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs is not permitted")
        return mounted

    yield mount
    subprocess.run(["umount", str(mounted)], capture_output=True, check=False)


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """Under the launcher, too: one clear line from rank 0, no traceback of ours."""
    arguments = train_arguments(tiny_dataset, tmp_path / "run", "train.global_batch_size=9")
    process = torchrun(2, "train_arc_tiny_corrupt.py", *arguments)
    assert process.returncode != 0
    lines = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "train.global_batch_size=9 is not divisible by the 2 ranks" in lines[0]
    assert not (tmp_path / "run").exists()


def test_the_script_itself_ends_with_exit_code_2(
    refused: Refused, tiny_dataset: Path, tmp_path: Path
) -> None:
    """As a user starts it: `python train_arc_tiny_corrupt.py` with a misspelt key."""
    line = refused("train_arc_tiny_corrupt.py", "train.max_step=3")
    assert "train.max_step=3" in line
    assert "did you mean train.max_steps?" in line
