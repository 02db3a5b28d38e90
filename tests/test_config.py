"""What users can write is checked before any work, explained by --help, and used by the code."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from common.errors import UserError
from config import reference
from config.loading import CONFIG_DIR, config_groups, keys, load_config
from config.schema import DemoConfig, DiagnoseConfig, EvaluateConfig, TrainConfig

REPOSITORY = CONFIG_DIR.parent
ENTRY_POINTS: dict[str, type[BaseModel]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "diagnose": DiagnoseConfig,
    "demo": DemoConfig,
}
CHOICES = [
    f"{group}={path.stem}"
    for group in config_groups()
    for path in sorted((CONFIG_DIR / group).glob("*.yaml"))
]

GO_TOGETHER = ("arch.halting_head=true", "supervision.halting=true", "supervision.targets=final")
"""The baseline's halting: the head, and what trains it."""


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
    assert (optim.weight_decay, optim.warmup_steps, optim.lr_min_ratio) == (0.1, 2000, 1.0)
    assert (optim.puzzle_lr, optim.puzzle_weight_decay) == (1e-2, 0.1)
    assert (loop.global_batch_size, loop.epochs, loop.max_steps) == (512, 200_000, None)
    assert (config.supervision.targets, config.supervision.objective) == ("linear", "dis")
    assert config.eval.guidance_weight == 1
    # What only saves time is off: all cells are seen, and all variants vote.
    assert (config.data.canvas, config.eval.canvas, config.eval.voting) == ("whole", "auto", "full")
    assert config.run_dir == Path("runs/compact-seed0")


def test_the_medium_model_is_trained_on_larger_batches() -> None:
    for experiment in ("arc1_medium", "arc2_medium"):
        config = train(f"experiment={experiment}")
        assert (config.arch.hidden_size, config.arch.num_layers) == (512, 2)
        assert config.train.global_batch_size == 768


def test_the_two_readings_of_the_method_are_a_choice_each() -> None:
    for choice, expected in [
        ("dis", ("question", "ignored")),
        ("published_code", ("answer", "counted_until_replaced")),
    ]:
        supervision = train(f"supervision={choice}").supervision
        assert (supervision.next_input, supervision.pad_cells) == expected


def test_the_evaluator_needs_no_more_than_a_checkpoint_or_predictions() -> None:
    assert evaluate("checkpoint=runs/a").checkpoint == Path("runs/a")
    pooled = evaluate("checkpoint=[runs/a,runs/b]").checkpoint
    assert pooled == [Path("runs/a"), Path("runs/b")]
    assert evaluate("predictions=a.npz").predictions == Path("a.npz")


def test_the_defaults_of_the_demo_are_valid() -> None:
    config = load_config("demo", DemoConfig, "", [])
    assert f"experiment={config.experiment}" in CHOICES


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


@pytest.mark.parametrize("choice", CHOICES)
def test_every_file_of_every_group_composes_validates_and_takes_effect(choice: str) -> None:
    group, _, option = choice.partition("=")
    written = yaml.safe_load((CONFIG_DIR / group / f"{option}.yaml").read_text())
    together = GO_TOGETHER if written.get("halting_head") or written.get("halting") else ()
    config = train(*{choice, *together}).model_dump(mode="json")
    section = config if group == "experiment" else config[group]

    def check(values: dict[str, Any], found: dict[str, Any], where: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                check(value, found[key], f"{where}{key}.")
            elif "${" not in str(value) and key != "defaults":
                assert found[key] == value, f"{where}{key}"

    check(written, section, "")


def test_a_config_survives_being_stored_with_a_checkpoint() -> None:
    config = train("experiment=demo")
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        train().arch.hidden_size = 7


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # Keys that there are not.
        ("arch.hiden_size=64", ["arch.hiden_size", "did you mean arch.hidden_size?"]),
        ("batch_size=64", ["batch_size=64", "did you mean eval.batch_size?"]),
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
        ("eval.batch_size=0", ["eval.batch_size", "0", "greater than 0"]),
        ("data.epochs_per_pass=0", ["data.epochs_per_pass", "0", "greater than or equal to 1"]),
        ("data.window_margin=-1", ["data.window_margin", "-1", "greater than or equal to 0"]),
        ("data.whole_canvas_share=1.1", ["data.whole_canvas_share", "1.1", "less than or equal"]),
        ("eval.voting_error=1", ["eval.voting_error", "1", "less than 1"]),
        ("eval.voting_error=0", ["eval.voting_error", "0", "greater than 0"]),
        ("train.max_steps=0", ["train.max_steps", "0", "greater than 0"]),
        # Choices.
        ("device=tpu", ["device", "'tpu'", "'auto', 'cpu' or 'cuda'"]),
        ("wandb.mode=on", ["wandb.mode"]),
        ("data.canvas=auto", ["data.canvas", "'auto'", "'whole' or 'window'"]),
        ("eval.voting=some", ["eval.voting", "'some'", "'full', 'exact' or 'sequential'"]),
        ("train.attention=fast", ["train.attention", "'fast'", "'efficient' or 'matmul'"]),
        (
            "supervision.targets=blur",
            ["supervision.targets", "'blur'", "final, linear"],
        ),
        # Combinations.
        ("arch.num_heads=7", ["arch.hidden_size=256", "arch.num_heads=7"]),
        ("arch.num_heads=256", ["arch.hidden_size=256", "arch.num_heads=256", "even"]),
        ("data.path=null", ["data.path=null"]),
        ("arch.halting_head=true", ["supervision.halting", "arch.halting_head", "both"]),
        ("arch=trm", ["supervision.halting", "arch.halting_head", "both"]),
        ("supervision=trm", ["supervision.halting", "arch.halting_head", "both"]),
        ("supervision.halting=true", ["halting=true", "targets=linear", "targets=final"]),
        ("supervision.targets=file", ["supervision.targets=file", "data.trajectories=None"]),
        ("data.trajectories=a.npz", ["supervision.targets=linear", "data.trajectories=a.npz"]),
        ("eval.diagnostics=true eval.voting=exact", ["diagnostics=true", "eval.voting=exact"]),
        (
            "supervision.targets=mask supervision.pad_cells=counted_until_replaced",
            ["targets=mask", "pad_cells=ignored"],
        ),
        # Hydra's own grammar.
        ("run_dir=runs/a=b", ["runs/a=b", "quotes"]),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_limit(override: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        train(*override.split())
    for part in parts:
        assert part in str(refused.value)
    assert "errors.pydantic.dev" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("supervision.targets=linear", ["targets=linear", "needs supervision.targets=final"]),
        ("supervision.targets=mask", ["targets=mask", "needs supervision.targets=final"]),
        ("supervision.objective=dual", ["objective=dual", "objective=dis"]),
        ("data.canvas=window", ["data.canvas=whole", "not window", "equally long"]),
        ("arch.halting_head=false", ["arch.halting_head", "both"]),
        ("supervision.halting=false", ["supervision.halting", "both"]),
        ("supervision.halting_exploration=1.1", ["halting_exploration", "1.1", "less than or eq"]),
        ("supervision.halting_loss_weight=-1", ["halting_loss_weight", "-1", "greater than or"]),
    ],
)
def test_halting_is_refused_with_what_it_cannot_go_with(override: str, parts: list[str]) -> None:
    baseline = ("arch=trm", "supervision=trm")
    assert train(*baseline).supervision.halting
    with pytest.raises(UserError) as refused:
        train(*baseline, override)
    for part in parts:
        assert part in str(refused.value)


def test_the_baseline_is_configured_as_published() -> None:
    """T=3, n=6, up to 16 steps; loss weight 0.5, exploration 0.1; nobody tells it the step."""
    config = train("arch=trm", "supervision=trm")
    arch, supervision = config.arch, config.supervision
    assert (arch.hidden_size, arch.num_layers) == (512, 2)
    assert (arch.num_recursions, arch.num_latent_updates, arch.num_supervision_steps) == (3, 6, 16)
    assert (supervision.halting_loss_weight, supervision.halting_exploration) == (0.5, 0.1)
    assert (supervision.targets, supervision.objective) == ("final", "dis")
    assert (supervision.next_input, supervision.pad_cells) == ("question", "ignored")
    assert not arch.step_embedding and not arch.separate_networks
    assert train("arch=trm_compact", "supervision=trm").arch.hidden_size == 256
    assert train("arch=hrm", "supervision=trm").arch.separate_networks


def test_quotes_help_where_the_error_says_so() -> None:
    assert train('run_dir="runs/a=b"').run_dir == Path("runs/a=b")


def test_several_problems_are_named_at_once() -> None:
    with pytest.raises(UserError, match=r"seed=-1.*; .*device='tpu'|device='tpu'.*; .*seed=-1"):
        train("seed=-1", "device=tpu")


def test_a_new_run_from_old_weights_cannot_resume_another() -> None:
    with pytest.raises(UserError, match=r"init_from=runs/a and resume=runs/b exclude each other"):
        train("init_from=runs/a", "resume=runs/b")
    # A run that was started from old weights can be resumed itself.
    assert train("init_from=runs/a", "resume=auto").init_from == Path("runs/a")


def test_the_evaluator_takes_a_checkpoint_or_predictions_not_both() -> None:
    with pytest.raises(UserError, match=r"give either checkpoint=.* or predictions=[^,]*$"):
        evaluate()
    with pytest.raises(UserError, match="not both"):
        evaluate("checkpoint=runs/a", "predictions=a.npz")


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_prints_every_key_with_default_and_meaning_and_exits_0(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        load_config(name, ENTRY_POINTS[name], "What it does.", ["seed=1", "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("What it does.\n")
    for key, field in keys(ENTRY_POINTS[name]):
        assert re.search(
            rf"^{re.escape(key)}  \[.+\]\n    {re.escape(field.description)}$", printed, re.M
        ), key


def test_help_lists_the_groups_of_the_trainer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {}
    for name, schema in ENTRY_POINTS.items():
        with pytest.raises(SystemExit):
            load_config(name, schema, "", ["-h"])
        printed = capsys.readouterr().out
        listed[name] = re.findall(r"^(\w+)=\w+(?: \| \w+)*$", printed, re.M)
    assert listed == {"train": config_groups(), "evaluate": [], "diagnose": [], "demo": []}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_key_has_a_meaning(name: str) -> None:
    for key, field in keys(ENTRY_POINTS[name]):
        assert field.description, key


def test_the_reference_page_is_what_the_schema_says() -> None:
    assert reference.REFERENCE.read_text() == reference.reference(), (
        "run python -m config.reference"
    )
