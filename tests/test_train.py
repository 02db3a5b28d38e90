"""The trainer from end to end: tiny networks, real tasks, real processes."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml

import train_arc_tiny_corrupt
from arc_oracles import arc_options, contents
from config.schema import TrainConfig
from dataset.build_arc_dataset import build
from models.supervision import DeepImprovementSupervision, Progress, StepResult
from runs import (
    HALTING,
    checkpoint_tensors,
    losses,
    read_metrics,
    read_results,
    run_evaluation,
    run_training,
    torchrun,
    train_arguments,
)
from training import checkpoints
from training.engine import Engine
from training.run_folder import complete_checkpoints, step_of
from training.scores import best_checkpoint, read_score

UNSCORED = ("train.max_steps=3", "train.eval_every=null")
DIAGNOSTICS = ("train.diagnostics=true", "eval.diagnostics=true")
# Windows of 64 to 96 of 100 cells, and some whole canvases.
WINDOW = ("data.canvas=window", "data.whole_canvas_share=0.2", *DIAGNOSTICS)
# What may learn faster than the published recipe, all at once but for Muon: what it makes of
# directions in which there is next to no gradient is rounding alone.
QUICK = (
    "arch.puzzle_embedding=factored",
    "arch.rotary=grid",
    "arch.short_convolution=true",
    "arch.num_recursions=2",
    "arch.num_recursions_with_gradient=2",
    "optim.update=batch",
    "data.variants=cycled",
)
KINDS = {
    "full whole": (),
    "compact whole": (),
    "compact window": WINDOW,
    "compact window quick": (*WINDOW, *QUICK),
    "compact window muon": (*WINDOW, "optim=muon"),
}

NAMES = ("distance_to_solution", "distance_to_target", "cells_changed", "margin", "margin_positive")
DIAGNOSED = {name + suffix for name in NAMES for suffix in ("", "_step1", "_step2", "_step3")}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A run of 12 steps with checkpoints at 6 and 12. Read-only."""
    return run_training(tiny_dataset, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, roomy_dataset: Path, roomy_compact_dataset: Path
) -> dict[str, Path]:
    """As many steps on a roomier canvas, by layout and cells. Read-only."""
    folder = tmp_path_factory.mktemp("runs")
    data = {"full": roomy_dataset, "compact": roomy_compact_dataset}
    return {
        kind: run_training(data[kind.split()[0]], folder / kind.replace(" ", "_"), *overrides)
        for kind, overrides in KINDS.items()
    }


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of `finished_run`, to be gone on with."""
    return shutil.copytree(finished_run, tmp_path / "run")


def data_of(run_dir: Path) -> Path:
    return Path(yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["path"])


def at_step(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint_tensors(run_dir / "checkpoints" / f"step_{step:08}")


def state_at(run_dir: Path, step: int) -> dict[str, Any]:
    return checkpoints.load_training_state(run_dir / "checkpoints" / f"step_{step:08}")


def saved_in(run_dir: Path) -> list[int]:
    paths = complete_checkpoints(run_dir / "checkpoints")
    return [int(path.name.removeprefix("step_")) for path in paths]


def scores(run_dir: Path) -> dict[int, dict[str, float]]:
    """What evaluations found besides diagnostics, by step."""
    return {
        line["step"]: {
            key: value
            for key, value in line.items()
            if key.startswith("eval/") and key.removeprefix("eval/") not in DIAGNOSED
        }
        for line in read_metrics(run_dir)
        if "eval/pass@2" in line
    }


# ---- what a run leaves ----


def test_a_run_leaves_config_metrics_and_whole_checkpoints(finished_run: Path) -> None:
    """The run folder holds what the README lists, and nothing half-written."""
    files = {"config.yaml", "metrics.jsonl", "checkpoints", "answers"}
    assert set(os.listdir(finished_run)) == files
    newest = finished_run / "checkpoints" / "step_00000012"
    assert set(os.listdir(newest)) == {
        "model.safetensors",
        "model_ema.safetensors",
        "puzzle_embedding.safetensors",
        "config.json",
        "dataset.json",
        "training_state.pt",
        "score.json",
    }
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert TrainConfig.model_validate(config).arch.name == "tiny"
    assert json.loads((newest / "config.json").read_text()) == config
    tensors = checkpoint_tensors(newest)
    raw = tensors["model.safetensors:readout.weight"]
    assert not torch.equal(raw, tensors["model_ema.safetensors:readout.weight"])
    assert tensors["puzzle_embedding.safetensors:weight"].abs().max() > 0


def test_metrics_are_recorded_at_their_steps(finished_run: Path) -> None:
    """Training metrics every 3 steps, evaluations at 6 and 12."""
    assert list(losses(finished_run)) == [3, 6, 9, 12]
    assert list(scores(finished_run)) == [6, 12]
    first = read_metrics(finished_run)[0]
    assert 0 < first["train/grad_norm"] < math.inf
    assert first["train/lr"] == pytest.approx(1e-4)  # Warm-up is over after 2 steps.
    assert set(first) >= {
        f"train/{name}_accuracy{suffix}"
        for name in ("cell", "exact")
        for suffix in ("", "_step1", "_step2", "_step3")
    }
    # A batch of eight examples serves three optimizer steps.
    rates = first["train/examples_per_second"], first["train/steps_per_second"]
    assert rates[0] / rates[1] == pytest.approx(8 / 3)


def test_what_was_scored_is_saved_and_the_newest_and_the_best_are_kept(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """The best by validation can only be kept if every evaluation leaves its checkpoint."""
    every = ("train.eval_every=3", "train.checkpoint_every=1000", "train.keep_checkpoints=2")
    run_dir = run_training(tiny_dataset, tmp_path / "run", *every)
    assert list(scores(run_dir)) == [3, 6, 9, 12]
    kept = complete_checkpoints(run_dir / "checkpoints")
    best = best_checkpoint(kept)
    assert best is not None
    assert set(saved_in(run_dir)) == {9, 12, step_of(best)}
    for path in kept:
        score = read_score(path)
        assert score is not None
        assert score.weights == "ema"
        assert score.metrics == scores(run_dir)[step_of(path)]


def diagnosed(run_dir: Path, prefix: str) -> list[dict[str, float]]:
    """The diagnostics of each line that has any metrics of that kind."""
    return [
        {name: line[prefix + name] for name in DIAGNOSED if prefix + name in line}
        for line in read_metrics(run_dir)
        if f"{prefix}exact_accuracy" in line
    ]


@pytest.mark.parametrize("scheme", [(), HALTING], ids=["dis", "trm"])
def test_diagnostics_are_recorded_for_every_step_where_they_are_asked_for(
    tiny_dataset: Path, tmp_path: Path, scheme: tuple[str, ...]
) -> None:
    """While training, while evaluating, in both or in neither; and they change nothing else."""
    trained_alike = []
    for chosen in ((), DIAGNOSTICS[:1], DIAGNOSTICS[1:], DIAGNOSTICS):
        run_dir = tmp_path / str(len(trained_alike))
        run_training(tiny_dataset, run_dir, *scheme, *chosen, "train.max_steps=6")
        trained, evaluated = diagnosed(run_dir, "train/"), diagnosed(run_dir, "eval/")
        # The last line: by then slots have reached the last step.
        assert set(trained[-1]) == (DIAGNOSED if DIAGNOSTICS[0] in chosen else set())
        assert [set(e) for e in evaluated] == [DIAGNOSED if DIAGNOSTICS[1] in chosen else set()]
        for name, value in [x for metrics in (*trained, *evaluated) for x in metrics.items()]:
            assert "margin" in name or 0 <= value <= 36, name
            assert "positive" not in name or 0 <= value <= 1, name
        trained_alike.append(losses(run_dir))
    assert trained_alike == [trained_alike[0]] * 4


# ---- what a run does ----


def test_a_run_is_as_long_as_the_batches_that_its_optimizer_steps_take(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """Four optimizer steps are two batches of three steps."""
    overrides = ("train.max_steps=4", "train.eval_every=null")
    run_dir = run_training(tiny_dataset, tmp_path / "run", *overrides)
    assert saved_in(run_dir) == [6]
    assert read_metrics(run_dir)[-1]["step"] == 6


@pytest.mark.parametrize("arch", ["trm", "trm_compact", "hrm"])
def test_the_baselines_train_and_are_scored(tiny_dataset: Path, tmp_path: Path, arch: str) -> None:
    """The published recursion and networks, on a width and a number of steps of a test's size."""
    overrides = (f"arch={arch}", "supervision=trm", "train.max_steps=4")
    run_dir = run_training(tiny_dataset, tmp_path / "run", *overrides)
    last = [line for line in read_metrics(run_dir) if "train/loss" in line][-1]
    assert math.isfinite(last["train/loss"])
    assert "train/steps_taken_step1" not in last, "of step 1 it is 1"
    assert {"train/exact_accuracy_step1", "train/halting_accuracy_step1"} <= set(last)
    ((step, scored),) = scores(run_dir).items()
    assert step == 4, "with halting a batch serves one optimizer step"
    assert {f"eval/exact_accuracy_step{s}" for s in (1, 2, 3)} <= set(scored)


def test_a_tiny_model_overfits_one_puzzle(
    kaggle_prefix: str, tmp_path: Path, in_process: None
) -> None:
    """All of it together learns: within 900 steps the loss on one task falls to a fraction."""
    data, training = tmp_path / "one", {"subsets": ("training",), "test_set_name": "training"}
    small = {"num_aug": 0, "task_ids": ("25ff71a9",), "canvas_side": 4}
    build(arc_options(kaggle_prefix, data, **training, **small))
    run_dir = run_training(
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
    found = losses(run_dir)
    assert list(found)[-1] == 900
    assert found[900] < 0.25 * found[90], found


def test_what_is_shown_is_what_was_asked_for(runs: dict[str, Path]) -> None:
    """Runs of one seed that saw the same pairs, and each other cells of them."""
    published = (runs[kind] for kind in ("full whole", "compact whole", "compact window"))
    readouts = [at_step(run, 12)["model.safetensors:readout.weight"] for run in published]
    for number, readout in enumerate(readouts):
        assert not any(torch.equal(readout, other) for other in readouts[:number])
        torch.testing.assert_close(readout, readouts[0], atol=5e-3, rtol=0)


@pytest.mark.parametrize(("chosen", "shown"), [((), "window"), (("eval.canvas=whole",), "whole")])
def test_a_run_is_validated_on_the_cells_that_it_is_trained_on_unless_others_are_asked_for(
    roomy_compact_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: tuple[str, ...],
    shown: str,
) -> None:
    real = train_arc_tiny_corrupt.predict
    spy = Mock(side_effect=real)
    monkeypatch.setattr(train_arc_tiny_corrupt, "predict", spy)
    run_training(roomy_compact_dataset, tmp_path / "run", "train.max_steps=3", *WINDOW, *chosen)
    assert [call.args[2].canvas for call in spy.call_args_list] == [shown]


@pytest.mark.parametrize(
    ("data", "chosen", "scored"),
    [
        ("validated_dataset", (), "validation"),
        ("validated_dataset", ("eval.split=test",), "test"),
        ("tiny_compact_dataset", (), "test"),
    ],
)
def test_a_run_is_scored_on_validation_tasks_if_there_are_any_unless_test_is_asked_for(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    data: str,
    chosen: tuple[str, ...],
    scored: str,
) -> None:
    """Which it says; and that decides which checkpoint is the best."""
    with caplog.at_level("INFO"):
        run = run_training(
            request.getfixturevalue(data), tmp_path / "run", "train.max_steps=3", *chosen
        )
    (line,) = (message for message in caplog.messages if message.startswith("step 3, "))
    assert line.startswith(f"step 3, ema weights on the {scored} split: pass@1 ")
    ((_, found),) = scores(run).items()
    predicted = run_evaluation(
        tmp_path / "out", f"checkpoint={run}", "eval.max_variants=2", f"eval.split={scored}"
    )
    for key, value in found.items():
        assert value == pytest.approx(read_results(predicted)[key.removeprefix("eval/")]), key
    score = read_score(run / "checkpoints" / "step_00000003")
    assert score is not None
    assert score.rating == (found["eval/pass@2"], found["eval/exact_accuracy"])


@pytest.mark.parametrize(
    ("kind", "ranks", "tokens"),
    [
        ("compact window", 1, 250),
        ("compact window", 2, 131_072),
        ("compact window", 4, 110),
        ("compact window quick", 2, 250),
    ],
)
def test_ranks_and_micro_batches_change_nothing_but_rounding(
    runs: dict[str, Path], tmp_path: Path, kind: str, ranks: int, tokens: int
) -> None:
    """The same global batches over several processes (gloo), each with as many tokens at a time.

    In windows of unequal sizes; two of 66 to 102 tokens do not fit into 110.
    """
    whole, run_dir = runs[kind], tmp_path / "run"
    at_a_time = f"train.micro_batch_tokens={tokens}"
    arguments = train_arguments(data_of(whole), run_dir, *KINDS[kind], at_a_time)
    process = torchrun(ranks, "train_arc_tiny_corrupt.py", *arguments)
    assert process.returncode == 0, process.stderr
    found = at_step(run_dir, 12)
    for name, tensor in at_step(whole, 12).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert len(state_at(run_dir, 12)["rng_states"]) == ranks
    assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-5)
    one, all_ranks = scores(whole), scores(run_dir)
    assert list(all_ranks) == [6, 12]
    for step, values in all_ranks.items():
        assert values == pytest.approx(one[step])
    for prefix in ("train/", "eval/"):
        expected, diagnosed_there = diagnosed(whole, prefix)[-1], diagnosed(run_dir, prefix)[-1]
        assert diagnosed_there == pytest.approx(expected, rel=1e-3, abs=1e-4)


# ---- resumed ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(
    runs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Lose the machine after the checkpoint at 6, resume, and every bit of step 12 is the same.

    Though what windows and compact datasets show was drawn at random, a batch ahead.
    """
    finished = runs[kind]
    run_dir = shutil.copytree(finished, tmp_path / "resumed")
    shutil.rmtree(run_dir / "checkpoints" / "step_00000012")
    torch.manual_seed(12345)  # The state that the process happens to be in must not matter.
    run_training(data_of(finished), run_dir, "resume=auto", *KINDS[kind])
    expected, resumed = at_step(finished, 12), at_step(run_dir, 12)
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    before, after = state_at(finished, 12), state_at(run_dir, 12)
    assert before["next_example"] == after["next_example"]
    for one, other in zip(before["optimizers"], after["optimizers"], strict=True):
        for key, moments in one["state"].items():
            for name, value in moments.items():
                assert torch.equal(value, other["state"][key][name])
    assert torch.equal(before["rng_states"][0]["torch"], after["rng_states"][0]["torch"])
    # Lines after the checkpoint were forgotten and written again: no step stands there twice.
    assert len(read_metrics(run_dir)) == len(read_metrics(finished))
    assert losses(run_dir) == losses(finished)
    assert scores(run_dir) == scores(finished)
    assert all(0 <= x["eval/whole_canvas_again"] <= 1 for x in scores(run_dir).values())


def test_random_numbers_that_somebody_adds_go_on_where_they_were(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training draws none from torch's generator itself; what is added to it shall resume too."""
    drawn: list[float] = []
    step = Engine.step

    def noisy_step(engine: Engine, lr_factor: float) -> None:
        drawn.append(torch.rand(()).item())
        step(engine, lr_factor)

    monkeypatch.setattr(Engine, "step", noisy_step)
    run_dir = run_training(tiny_dataset, tmp_path / "run", "train.eval_every=null")
    shutil.rmtree(run_dir / "checkpoints" / "step_00000012")
    run_training(tiny_dataset, run_dir, "train.eval_every=null", "resume=auto")
    assert drawn[12:] == drawn[6:12]


def test_resuming_with_nothing_to_resume_starts_and_a_finished_run_stays(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """resume=auto is safe to put into a start script: it starts, goes on, or has nothing to do."""
    overrides = ("resume=auto", "train.max_steps=6")
    run_dir = run_training(tiny_dataset, tmp_path / "run", *overrides)
    before = contents(run_dir)
    run_training(tiny_dataset, run_dir, *overrides)
    assert contents(run_dir) == before
    assert list(scores(run_dir)) == [6]


def test_a_resumed_run_follows_the_hyperparameters_it_is_given(
    copy: Path, tiny_dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What changes is used, not what the optimizer's saved state holds, and it is said.

    A key that the checkpoint is too old to have is taken to have had its default.
    """
    stored = copy / "checkpoints" / "step_00000012" / "config.json"
    config = json.loads(stored.read_text())
    del config["arch"]["norm_eps"], config["optim"]["grad_clip"]
    stored.write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        changed = ("resume=auto", "optim.weight_decay=0.5", "train.max_steps=15")
        run_training(tiny_dataset, copy, *changed)
    assert [message for message in caplog.messages if "Resuming" in message] == [
        "Resuming with optim.weight_decay=0.5 instead of 0.1",
        "Resuming with train.max_steps=15 instead of 12",
    ]
    assert f"{stored}: keys that it lacks take their defaults: arch.norm_eps=1e-05" in caplog.text
    (group,) = state_at(copy, 15)["optimizers"][0]["param_groups"]
    assert group["weight_decay"] == 0.5


def test_weights_of_another_run_can_be_the_start(
    finished_run: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """init_from takes the averaged weights and the table, and starts at step 0."""
    frozen = ("optim.lr=1e-12", "optim.puzzle_lr=0", *UNSCORED)
    run_training(tiny_dataset, tmp_path / "next", f"init_from={finished_run}", *frozen)
    start, end = at_step(finished_run, 12), at_step(tmp_path / "next", 3)
    average = start["model_ema.safetensors:readout.weight"]
    torch.testing.assert_close(end["model.safetensors:readout.weight"], average)
    table = "puzzle_embedding.safetensors:weight"
    assert torch.equal(start[table], end[table])


def test_a_resumed_run_goes_on_with_its_wandb_run_and_a_fork_is_a_run_of_its_own(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resume=PATH from another folder goes on there and leaves the first run alone."""
    wandb = Mock()
    wandb.init.return_value.step = 0
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    scheme = ("wandb.mode=offline", "train.eval_every=null")
    run_dir = run_training(tiny_dataset, tmp_path / "run", *scheme, "train.max_steps=3")
    run_training(tiny_dataset, run_dir, *scheme, "train.max_steps=6", "resume=auto")
    before = contents(run_dir)
    fork = (f"resume={run_dir}", "train.max_steps=9")
    run_training(tiny_dataset, tmp_path / "fork", *scheme, *fork)
    assert contents(run_dir) == before
    assert (list(losses(run_dir)), list(losses(tmp_path / "fork"))) == ([3, 6], [9])
    first, resumed, forked = (call.kwargs["id"] for call in wandb.init.call_args_list)
    assert first == resumed != forked
    assert state_at(run_dir, 3)["wandb_run_id"] == first
    assert state_at(tmp_path / "fork", 9)["wandb_run_id"] == forked


def test_a_machine_without_wandb_trains(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run_dir = run_training(tiny_dataset, tmp_path / "run", *UNSCORED, "wandb.mode=auto")
    assert list(losses(run_dir)) == [3]
    assert state_at(run_dir, 3)["wandb_run_id"] is None


def test_the_trainer_imports_no_wandb_no_plots_and_no_page(
    run_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    program = "import sys, train_arc_tiny_corrupt; print(*sys.modules)"
    loaded = set(run_command("-c", program).stdout.split())
    assert {"evaluation.predict", "training.run_log"} <= loaded
    unwanted = {"wandb", "matplotlib", "evaluation.report", "evaluation.results"}
    assert loaded & unwanted == set()


# ---- other datasets ----


def test_a_dataset_of_another_code_base_trains(tiny_dataset: Path, tmp_path: Path) -> None:
    """Wide integers, extra metadata and no build.json, as other builders write them."""
    data = tmp_path / "foreign"
    shutil.copytree(tiny_dataset, data, ignore=shutil.ignore_patterns("build.json"))
    for path in data.glob("*/all__*.npy"):
        array = np.load(path)
        np.save(path, array.astype(np.int64) if "ind" in path.name else array)
    for path in data.glob("*/dataset.json"):
        metadata = json.loads(path.read_text())
        del metadata["total_puzzles"]  # Nothing needs it.
        path.write_text(json.dumps({**metadata, "made_by": "another"}))
    run_training(data, tmp_path / "scored", "train.max_steps=3")
    # Without an evaluation the train half is enough.
    shutil.rmtree(data / "test")
    (data / "test_puzzles.json").unlink()
    assert saved_in(run_training(data, tmp_path / "run", *UNSCORED)) == [3]


def test_a_hidden_test_set_trains_and_is_not_scored(
    hidden_prefix: str, tmp_path: Path, in_process: None
) -> None:
    """Without solutions there is no validation score, and no best checkpoint."""
    data = tmp_path / "data"
    build(arc_options(hidden_prefix, data, num_aug=4, canvas_side=6))
    run_dir = run_training(data, tmp_path / "run", "train.max_steps=3")
    assert any("eval/whole_canvas_again" in line for line in read_metrics(run_dir))
    assert scores(run_dir) == {}
    assert best_checkpoint(complete_checkpoints(run_dir / "checkpoints")) is None


# ---- what goes wrong ----

Refused = Callable[..., str]


@pytest.fixture
def refuse(refused_in_process: Refused, tiny_dataset: Path, tmp_path: Path) -> Refused:
    """The trainer must end with exit code 2 and one line; return it."""

    def run(*overrides: str) -> str:
        arguments = train_arguments(tiny_dataset, tmp_path / "run", *overrides)
        return refused_in_process(train_arc_tiny_corrupt.main, *arguments)

    return run


def with_token_12(path: Path) -> None:
    labels = np.load(path)
    labels[:, 5] = 12
    np.save(path, labels)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("test/dataset.json", Path.unlink, "test/dataset.json"),
        # The thread that loads the batches meets it, and the run ends as for any other error.
        ("train/all__labels.npy", with_token_12, "holds a token outside its vocabulary"),
    ],
)
def test_a_damaged_dataset_is_refused(
    refuse: Refused,
    tiny_dataset: Path,
    tmp_path: Path,
    file: str,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    data = shutil.copytree(tiny_dataset, tmp_path / "damaged")
    damage(data / file)
    assert message in refuse(f"data.path={data}")
    # Nothing was written, unless the damage only showed when a batch was loaded.
    assert (tmp_path / "run").exists() == (damage is with_token_12)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # So that the corrected command does not find the folder taken.
        ("init_from=tpyo", ["init_from=tpyo: no checkpoint there"]),
        ("resume=tpyo", ["resume=tpyo: no checkpoint there"]),
        ("eval.split=validation", ["no folder", "eval.split=test", "--validation-tasks N"]),
        ("train.micro_batch_tokens=38", ["micro_batch_tokens=38 has no room", "take 39 or more"]),
        ("train.graphs=on", ["train.graphs=on: graphs need a CUDA device"]),
        ("data.canvas=window", ["data.canvas=window needs", "--layout compact"]),
        ("init_from=FINISHED arch.hidden_size=32", ["another architecture", "shape"]),
        ("run_dir=FINISHED", ["resume=auto"]),
        pytest.param(
            "device=cuda",
            ["no CUDA device"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_a_start_that_fails_leaves_no_run_folder_and_other_runs_as_they_are(
    refuse: Refused, finished_run: Path, tmp_path: Path, override: str, parts: list[str]
) -> None:
    before = contents(finished_run)
    line = refuse(*override.replace("FINISHED", str(finished_run)).split())
    assert all(part in line for part in parts), line
    assert not (tmp_path / "run").exists()
    assert contents(finished_run) == before


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("arch.hidden_size=32", "arch.hidden_size=32"),
        ("arch.name=other", "arch.name=other"),
        ("seed=1", "seed=1"),
        ("optim.name=adam_atan2", "optim.name=adam_atan2"),
        ("optim.update=batch", "optim.update=batch"),
        ("data.variants=cycled", "data.variants=cycled"),
        (" ".join(HALTING), "arch.halting_head=True"),
        ("train.global_batch_size=4", "train.global_batch_size=4"),
    ],
)
def test_a_run_is_not_resumed_with_what_its_weights_and_place_in_the_data_hang_on(
    refuse: Refused, copy: Path, override: str, difference: str
) -> None:
    """And it is left as it was, its config.yaml included."""
    before = contents(copy)
    line = refuse("resume=auto", *override.split())
    assert f"resume: {difference} but" in line
    assert "init_from" in line
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, None),
        (None, {"step": 6}),
        ("step", "six"),
        ("step", float("inf")),
        ("optimizers", [{}]),
        ("optimizers", [{"state": {}, "param_groups": []}]),
        ("rng_states", [{"torch": torch.zeros(3)}]),
        ("next_example", (0, -1)),
        ("next_example", 5),
        ("carried", {"y": "text"}),
    ],
)
def test_a_training_state_of_another_form_is_refused_by_its_file(
    refuse: Refused, copy: Path, key: str | None, value: Any
) -> None:
    file = sorted(copy.glob("checkpoints/*/training_state.pt"))[-1]
    state = torch.load(file, weights_only=True)
    torch.save(value if key is None else {**state, key: value}, file)
    line = refuse("resume=auto")
    assert f"{file} is damaged or of another program" in line
    assert "goes on from the checkpoint before" in line


def test_a_checkpoint_of_other_puzzles_is_neither_resumed_nor_its_table_taken(
    refuse: Refused, copy: Path, kaggle_prefix: str, tmp_path: Path, in_process: None
) -> None:
    """The same tasks with another seed have as many puzzles, and other ones."""
    data = tmp_path / "reseeded"
    build(arc_options(kaggle_prefix, data, num_aug=6, seed=1, canvas_side=6))
    difference = "trained on another dataset: its identifiers_sha256"
    line = refuse(f"data.path={data}", f"init_from={copy}", f"run_dir={tmp_path / 'new'}")
    assert difference in line
    assert "init_puzzle_embedding=false" in line
    line = refuse("resume=auto", f"data.path={data}")
    assert difference in line
    # Both in words, by which a person sees what is other.
    told = "(subsets training evaluation, test_set_names evaluation, num_aug 6, seed {}, "
    assert f"it was trained on {told.format(42)}" in line
    assert f"data.path is {told.format(1)}" in line


def diverge(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the losses of these optimizer steps, from 1, not finite."""
    real, numbers = DeepImprovementSupervision.step, iter(range(1, 1000))

    def step(supervision: DeepImprovementSupervision, progress: Progress) -> StepResult:
        result = real(supervision, progress)
        factor = math.nan if next(numbers) in steps else 1.0
        return result._replace(loss=result.loss * factor)

    monkeypatch.setattr(DeepImprovementSupervision, "step", step)


def test_a_diverging_run_stops_and_saves_what_was_learned_before(
    refuse: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where between two readings no loss was finite: weights are those of the last good step."""
    diverge(monkeypatch, *range(7, 13))
    line = refuse()
    assert "training diverged: " in line
    assert "saved at step 9: go on with resume=auto and a lower optim.lr" in line
    assert saved_in(tmp_path / "run") == [6, 9]
    before, after = (at_step(tmp_path / "run", step) for step in (6, 9))
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert [line["step"] for line in read_metrics(tmp_path / "run")][-1] == 6, "nothing to report"


@pytest.mark.parametrize("scheme", [(), HALTING], ids=["dis", "trm"])
def test_bf16_learns_as_fp32_does(
    tiny_dataset: Path, tmp_path: Path, scheme: tuple[str, ...]
) -> None:
    """Mean losses of 15 steps each, over 150 steps of one seed."""
    found = {}
    for precision in ("fp32", "bf16"):
        run_dir = run_training(
            tiny_dataset, tmp_path / precision, *scheme, f"train.precision={precision}",
            "train.max_steps=150", "train.log_every=15", "train.eval_every=null",
            "train.checkpoint_every=150",
        )  # fmt: skip
        found[precision] = np.array(list(losses(run_dir).values()))
    assert found["fp32"][-1] < found["fp32"][0], "something was learned"
    np.testing.assert_allclose(found["bf16"], found["fp32"], rtol=0.05)


def test_a_step_that_is_not_finite_is_left_out_and_said(
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    diverge(monkeypatch, 8, 9, 11)
    run_dir = run_training(tiny_dataset, tmp_path / "run", "train.eval_every=null")
    skipped = {line["step"]: line["train/skipped_steps"] for line in read_metrics(run_dir)}
    assert skipped == {3: 0, 6: 0, 9: 2, 12: 1}
    assert all(math.isfinite(loss) for loss in losses(run_dir).values())
    assert "2 of the optimizer steps 7 to 9 changed nothing" in caplog.text
    assert "1 of the optimizer steps 10 to 12 changed nothing" in caplog.text
    assert state_at(run_dir, 12)["optimizers"][0]["state"][0]["step"] == 9


@pytest.mark.parametrize("file", ["model.safetensors", "training_state.pt"])
def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    refuse: Refused, finished_run: Path, small_disk: Callable[[int], Path], file: str
) -> None:
    """The second checkpoint does not fit, up to one file or the other: the first stays whole."""
    size = folder_size(finished_run / "checkpoints" / "step_00000012")
    first_of_second = {"model.safetensors": 0.1, "training_state.pt": 0.9}[file]
    disk = small_disk(round(size * (1 + first_of_second)) + 16_384)
    line = refuse(f"run_dir={disk / 'run'}", "train.show_tasks=[]")
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
