"""What users can write is checked before any work, explained by --help, and used by the code."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from common.errors import UserError
from common.settings import fields_of, select
from config import reference
from config.loading import CONFIG_DIR, config_groups, load_config
from config.schema import (
    DemoConfig,
    DiagnoseConfig,
    EvaluateConfig,
    OwnPuzzlesConfig,
    TrainConfig,
)

ENTRY_POINTS: dict[str, type[BaseModel]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": OwnPuzzlesConfig,
    "diagnose": DiagnoseConfig,
    "demo": DemoConfig,
}
CHOICES = [
    f"{group}={path.stem}"
    for group in config_groups()
    for path in sorted((CONFIG_DIR / group).glob("*.yaml"))
]
TRM = "arch=trm supervision=trm "
HALTING = ("arch.halting_head=true", "supervision.halting=true", "supervision.targets=final")
"""The head, and what trains it: neither goes without the other."""


def train(*overrides: str) -> TrainConfig:
    return load_config("train", TrainConfig, "", overrides)


def evaluate(*overrides: str) -> EvaluateConfig:
    return load_config("evaluate", EvaluateConfig, "", overrides)


def test_the_defaults_of_the_trainer_are_the_published_recipe_of_the_compact_model() -> None:
    config = train()
    arch, optim, loop = config.arch, config.optim, config.train
    assert (arch.hidden_size, arch.num_layers, arch.num_heads, arch.expansion) == (256, 1, 8, 4)
    assert (arch.num_recursions, arch.num_latent_updates, arch.num_supervision_steps) == (1, 2, 6)
    assert (arch.prefix_length, arch.rope_base, arch.norm_eps) == (16, 10_000, 1e-5)
    assert (optim.name, optim.lr, optim.beta1, optim.beta2) == ("adamw", 1e-4, 0.9, 0.95)
    assert (optim.weight_decay, optim.warmup_steps) == (0.1, 2000)
    assert (optim.schedule, optim.lr_min_ratio) == ("cosine", 1.0), "which is constant"
    assert (optim.puzzle_lr, optim.puzzle_weight_decay) == (1e-2, 0.1)
    assert (loop.global_batch_size, loop.epochs, loop.max_steps) == (512, 200_000, None)
    assert (loop.max_minutes, loop.stop_after_minutes) == (None, None)
    assert (config.supervision.targets, config.supervision.objective) == ("linear", "dis")
    assert config.eval.guidance_weight == 1
    # What only saves time is off: all cells are seen.
    assert (config.data.canvas, config.eval.canvas) == ("whole", "auto")
    assert config.run_dir == Path("runs/compact-seed0")


def test_the_medium_model_is_trained_on_larger_batches() -> None:
    for experiment in ("arc1_medium", "arc2_medium"):
        config = train(f"experiment={experiment}")
        assert (config.arch.hidden_size, config.arch.num_layers) == (512, 2)
        assert config.train.global_batch_size == 768


def test_the_two_readings_of_the_method_are_a_choice_each() -> None:
    dis, published = train().supervision, train("supervision=published_code").supervision
    assert (dis.next_input, dis.pad_cells) == ("question", "ignored")
    assert (published.next_input, published.pad_cells) == ("answer", "counted_until_replaced")


def test_the_baseline_is_configured_as_published() -> None:
    """T=3, n=6, up to 16 steps; loss weight 0.5, exploration 0.1; nobody tells it the step."""
    config = train(*TRM.split())
    arch, supervision = config.arch, config.supervision
    assert (arch.hidden_size, arch.num_layers) == (512, 2)
    assert (arch.num_recursions, arch.num_latent_updates, arch.num_supervision_steps) == (3, 6, 16)
    assert (supervision.halting_loss_weight, supervision.halting_exploration) == (0.5, 0.1)
    assert (supervision.targets, supervision.objective) == ("final", "dis")
    assert (supervision.next_input, supervision.pad_cells) == ("question", "ignored")
    assert not arch.step_embedding and not arch.separate_networks
    assert train("arch=trm_compact", "supervision=trm").arch.hidden_size == 256
    hrm = train("arch=hrm", "supervision=trm").arch
    assert (hrm.separate_networks, hrm.num_recursions, hrm.num_latent_updates) == (True, 2, 2)


@pytest.mark.parametrize(
    ("name", "overrides", "changed"),
    [
        # Training evaluates quickly and has a dataset; Hydra puts values into the run's name.
        ("train", [], {"eval.max_variants", "data.path", "run_dir"}),
        ("evaluate", ["checkpoint=a"], {"checkpoint"}),
        ("diagnose", ["checkpoint=a"], {"checkpoint"}),
        ("demo", [], set()),
    ],
)
def test_hydra_composes_what_the_classes_say(
    name: str, overrides: list[str], changed: set[str]
) -> None:
    schema = ENTRY_POINTS[name]
    composed, defaults = load_config(name, schema, "", overrides), schema.model_construct()
    keys = [key for key, _ in fields_of(schema)]
    assert {key for key in keys if select(composed, key) != select(defaults, key)} == changed


def lines_of(preset: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a YAML file, without the presets that it builds on."""
    for name, value in preset.items():
        if isinstance(value, dict):
            yield from lines_of(value, f"{prefix}{name}.")
        elif name != "defaults":
            yield f"{prefix}{name}", value


@pytest.mark.parametrize("choice", CHOICES)
def test_a_preset_takes_effect_and_spells_only_what_it_changes(
    choice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without its lines, every key that they name has another value.

    A file that stands for the defaults needs a line to be a file at all: the one that names it.
    """
    group, _, option = choice.partition("=")
    preset = yaml.safe_load((CONFIG_DIR / group / f"{option}.yaml").read_text())
    lines = dict(lines_of(preset, "" if group == "experiment" else f"{group}."))
    halts = any("halting" in key for key in lines)
    with_lines = train(choice, *(HALTING if halts else ())).model_dump(mode="json")

    shutil.copytree(CONFIG_DIR, tmp_path / "config")
    package = "# @package _global_\n" if group == "experiment" else ""
    bare = package + yaml.safe_dump({"defaults": preset.get("defaults", [])})
    (tmp_path / "config" / group / f"{option}.yaml").write_text(bare)
    monkeypatch.setattr("config.loading.CONFIG_DIR", tmp_path / "config")
    # A trainer needs a dataset, which may be what the lines name.
    without_lines = train(choice, "data.path=another").model_dump(mode="json")

    for key, value in lines.items():
        assert select(with_lines, key) == value or "${" in str(value), key
    changed = {key for key in lines if select(with_lines, key) != select(without_lines, key)}
    stands_for_the_defaults = choice in ("arch=compact", "optim=adamw", "supervision=dis")
    assert changed == (set() if stands_for_the_defaults else set(lines))
    assert len(lines) == 1 or not stands_for_the_defaults


def test_the_evaluator_needs_no_more_than_a_checkpoint_or_predictions() -> None:
    assert evaluate("checkpoint=runs/a").checkpoint == Path("runs/a")
    pooled = evaluate("checkpoint=[runs/a,runs/b]").checkpoint
    assert pooled == [Path("runs/a"), Path("runs/b")]
    assert evaluate("predictions=a.npz").predictions == Path("a.npz")
    with pytest.raises(UserError, match=r"give either checkpoint=.* or predictions=[^,]*$"):
        evaluate()
    with pytest.raises(UserError, match="not both"):
        evaluate("checkpoint=runs/a", "predictions=a.npz")


def test_overrides_are_plain_key_value() -> None:
    config = train(
        "arch=medium",
        "arch.num_heads=4",
        "optim.grad_clip=0.5",
        "seed=7",
        "train.eval_every=null",
        "wandb.run_name=mine",
    )
    assert (config.arch.hidden_size, config.arch.num_heads) == (512, 4)
    assert (config.optim.grad_clip, config.train.eval_every) == (0.5, None)
    assert config.wandb.run_name == "mine"
    assert config.run_dir == Path("runs/medium-seed7"), "composed from what was overridden"
    # Quotes help where the error says so.
    assert train('run_dir="runs/a=b"').run_dir == Path("runs/a=b")
    # A run that was started from old weights can be resumed itself.
    assert train("init_from=runs/a", "resume=auto").init_from == Path("runs/a")


def test_a_config_survives_being_stored_with_a_checkpoint() -> None:
    config = train("experiment=demo")
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        # Keys that there are not.
        ("arch.hiden_size=64", ["arch.hiden_size", "did you mean arch.hidden_size?"]),
        ("batch_tokens=64", ["batch_tokens=64", "did you mean eval.batch_tokens?"]),
        ("+train.more=1", ["train.more", "key=value"]),
        ("--resume", ["--resume", "key=value"]),
        ("arch=huge", ["arch", "huge"]),
        # Types.
        ("train.global_batch_size=many", ["train.global_batch_size", "'many'", "integer"]),
        ("arch.num_layers=1.5", ["arch.num_layers", "1.5", "integer"]),
        ("optim.lr=null", ["optim.lr", "None", "number"]),
        ("init_puzzle_embedding=7", ["init_puzzle_embedding", "7", "boolean"]),
        # Ranges.
        ("seed=-1", ["seed", "-1", "greater than or equal to 0"]),
        ("optim.beta2=1.0", ["optim.beta2", "1.0", "less than 1"]),
        ("optim.lr_min_ratio=1.5", ["optim.lr_min_ratio", "1.5", "less than or equal to 1"]),
        ("optim.tail_share=0", ["optim.tail_share", "0", "greater than 0"]),
        ("optim.tail_share=1.5", ["optim.tail_share", "1.5", "less than or equal to 1"]),
        ("eval.batch_tokens=0", ["eval.batch_tokens", "0", "greater than 0"]),
        ("train.micro_batch_tokens=0", ["train.micro_batch_tokens", "0", "greater than 0"]),
        ("data.window_margin=-1", ["data.window_margin", "-1", "greater than or equal to 0"]),
        ("data.whole_canvas_share=1.1", ["data.whole_canvas_share", "1.1", "less than or equal"]),
        ("train.max_steps=0", ["train.max_steps", "0", "greater than 0"]),
        ("train.max_minutes=0", ["train.max_minutes", "0", "greater than 0"]),
        ("train.max_minutes=inf", ["train.max_minutes", "inf", "finite number"]),
        ("train.stop_after_minutes=-1", ["train.stop_after_minutes", "-1", "greater than 0"]),
        ("train.stop_after_minutes=true", ["stop_after_minutes=True", "are no values here"]),
        ("supervision.halting_exploration=1.1", ["halting_exploration", "1.1", "less than or eq"]),
        ("supervision.halting_loss_weight=-1", ["halting_loss_weight", "-1", "greater than or"]),
        # Choices.
        ("device=tpu", ["device", "'tpu'", "auto, cpu, cuda, or cuda:N"]),
        ("device=mps", ["device='mps'", "Apple's GPUs are not supported, use device=cpu"]),
        ("wandb.mode=on", ["wandb.mode"]),
        ("optim.schedule=linear", ["optim.schedule", "'constant', 'cosine' or 'linear_tail'"]),
        ("data.canvas=auto", ["data.canvas", "'auto'", "'whole' or 'window'"]),
        ("train.graphs=yes", ["train.graphs", "'auto', 'on' or 'off'"]),
        ("supervision.targets=blur", ["supervision.targets", "'blur'", "final, linear"]),
        # Combinations.
        ("arch.num_heads=7", ["arch.hidden_size=256", "arch.num_heads=7"]),
        (
            "arch.num_recursions_with_gradient=2",
            ["arch.num_recursions_with_gradient=2", "arch.num_recursions=1"],
        ),
        ("arch.num_heads=256", ["arch.hidden_size=256", "arch.num_heads=256", "even"]),
        ("data.path=null", ["data.path=null"]),
        ("supervision.targets=file", ["supervision.targets=file", "data.trajectories=None"]),
        ("data.trajectories=a.npz", ["supervision.targets=linear", "data.trajectories=a.npz"]),
        (
            "supervision.targets=mask supervision.pad_cells=counted_until_replaced",
            ["targets=mask", "pad_cells=ignored"],
        ),
        ("eval.weights=ema", ["eval.weights=ema", "optim.ema_decay"]),
        ("init_from=runs/a resume=runs/b", ["init_from=runs/a and resume=runs/b exclude each"]),
        # Halting: the head and what trains it go together, and with little else.
        ("arch.halting_head=true", ["supervision.halting", "arch.halting_head", "both"]),
        ("arch=trm", ["supervision.halting", "arch.halting_head", "both"]),
        ("supervision=trm", ["supervision.halting", "arch.halting_head", "both"]),
        ("supervision.halting=true", ["halting=true", "targets=linear", "targets=final"]),
        (TRM + "supervision.targets=mask", ["targets=mask", "needs supervision.targets=final"]),
        (TRM + "supervision.objective=dual", ["objective=dual", "objective=dis"]),
        (TRM + "data.canvas=window", ["data.canvas=whole", "not window", "equally long"]),
        (TRM + "arch.halting_head=false", ["arch.halting_head", "both"]),
        (TRM + "supervision.halting=false", ["supervision.halting", "both"]),
        # Several at once.
        ("seed=-1 device=tpu", ["seed=-1", "; ", "device='tpu'"]),
        # Hydra's own grammar.
        ("run_dir=runs/a=b", ["runs/a=b", "quotes"]),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_limit(overrides: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        train(*overrides.split())
    for part in parts:
        assert part in str(refused.value)
    assert "errors.pydantic.dev" not in str(refused.value)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_prints_the_groups_and_every_key_with_default_and_meaning_and_exits_0(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        load_config(name, ENTRY_POINTS[name], "What it does.", ["seed=1", "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("What it does.\n")
    groups = re.findall(r"^(\w+)=\w+(?: \| \w+)*$", printed, re.M)
    assert groups == (config_groups() if name == "train" else [])
    for key, field in fields_of(ENTRY_POINTS[name]):
        assert field.description, key
        meaning = re.escape(field.description)
        assert re.search(rf"^{re.escape(key)}  \[.+\]\n    {meaning}$", printed, re.M), key


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_begins_with_five_keys_that_there_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = ENTRY_POINTS[name]
    with pytest.raises(SystemExit):
        load_config(name, schema, "What it does.", ["--help"])
    before, _, _ = capsys.readouterr().out.partition("All keys")
    shown = re.findall(r"^  ([\w.]+)(?:  \[.+\])?\n      (.+)$", before, re.M)
    known = {key: field.description for key, field in fields_of(schema)}
    assert len(shown) == 5
    assert tuple(key for key, _ in shown) == schema.first  # type: ignore[attr-defined]
    for key, text in shown:
        assert "compact, hrm, medium" in text if key == "arch" else text.endswith(known[key])
    usage, _, _ = before.partition("  " + shown[0][0])
    assert usage == "What it does.\n\nOverrides are key=value. Most people change:\n\n"


def test_the_reference_page_is_what_the_schema_says() -> None:
    assert reference.REFERENCE.read_text() == reference.reference(), (
        "run python -m config.reference"
    )
