"""A checkpoint of the published TRM or DIS code computes here what it computes there.

None lies in the repository: `published_state` makes a state dict of that form, and `Reference`
computes from it, under its own names, what the papers say. The rows of the table are random.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import evaluate
import import_checkpoint
import train_arc_tiny_corrupt
from common.errors import UserError
from common.packed import pack_whole
from dataset.storage import load_identifiers
from models.layers import swiglu_width
from models.published import Recursion, convert, expansion_of
from models.recursive import TinyRecursiveModel, run_step
from models.steps import TrainedModel
from models.supervision import SupervisionConfig
from runs import call, checkpoint_tensors, read_results, run_evaluation, run_training
from runs import train_arguments as arguments_of_training

WIDTH, HEADS, LAYERS, INNER, PREFIX, STEPS = 16, 2, 2, 256, 16, 3
CYCLES, UPDATES = 2, 3
"""T and n."""
NUM_PUZZLES, CELLS = 64, 36
"""Of `tiny_dataset`."""
COMPILED = "_orig_mod.model.inner."
LAYER = "L_level.layers.1."
CONFIG = {
    "arch": {
        "num_heads": HEADS,
        "H_cycles": CYCLES,
        "L_cycles": UPDATES,
        "halt_max_steps": STEPS,
        "puzzle_emb_len": PREFIX,
        "name": "whatever",
    },
    "epochs": 1,
}
State = dict[str, Tensor]


def published_state(code: str, prefix: str = COMPILED) -> State:
    """As `step_N` files hold it; every tensor is of its own random numbers."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    state = {
        "embed_tokens.embedding_weight": normal(12, WIDTH, std=WIDTH**-0.5),
        "lm_head.weight": normal(12, WIDTH, std=WIDTH**-0.5),
        "H_init": normal(WIDTH).bfloat16(),
        "L_init": normal(WIDTH).bfloat16(),
        "q_head.weight": normal(2, WIDTH),
        "q_head.bias": normal(2),
        "puzzle_emb.weights": normal(NUM_PUZZLES, WIDTH, std=WIDTH**-0.5),
    }
    for i in range(LAYERS):
        layer = f"L_level.layers.{i}."
        state |= {
            f"{layer}self_attn.qkv_proj.weight": normal(3 * WIDTH, WIDTH, std=WIDTH**-0.5),
            f"{layer}self_attn.o_proj.weight": normal(WIDTH, WIDTH, std=WIDTH**-0.5),
            f"{layer}mlp.gate_up_proj.weight": normal(2 * INNER, WIDTH, std=WIDTH**-0.5),
            f"{layer}mlp.down_proj.weight": normal(WIDTH, INNER, std=INNER**-0.5),
        }
    if code == "DIS":
        state["timestep_embed.embedding_weight"] = normal(STEPS + 2, WIDTH, std=WIDTH**-0.5)
    return {prefix + name: tensor for name, tensor in state.items()}


class Reference:
    """The published network by its own names, dense, without any of this project's parts."""

    def __init__(self, state: State) -> None:
        self.state = {name.removeprefix(COMPILED): value.float() for name, value in state.items()}

    def norm(self, h: Tensor) -> Tensor:
        return h * (h.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()

    def turned(self, x: Tensor) -> Tensor:
        """[B, H, T, d] rotated by place: the first half of a head with the second."""
        half = x.shape[-1] // 2
        place = torch.arange(x.shape[-2]).float()
        angle = place[:, None] * 10000.0 ** -(torch.arange(half).float() / half)
        a, b = x[..., :half], x[..., half:]
        return torch.cat(
            [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1
        )

    def attention(self, h: Tensor, layer: str) -> Tensor:
        rows = h @ self.state[f"{layer}self_attn.qkv_proj.weight"].T
        q, k, v = (
            rows[..., i * WIDTH : (i + 1) * WIDTH].unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for i in range(3)
        )
        scores = self.turned(q) @ self.turned(k).transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return mixed @ self.state[f"{layer}self_attn.o_proj.weight"].T

    def swiglu(self, h: Tensor, layer: str) -> Tensor:
        both = h @ self.state[f"{layer}mlp.gate_up_proj.weight"].T
        gate, up = both[..., :INNER], both[..., INNER:]
        return (F.silu(gate) * up) @ self.state[f"{layer}mlp.down_proj.weight"].T

    def network(self, h: Tensor) -> Tensor:
        for i in range(LAYERS):
            layer = f"L_level.layers.{i}."
            h = self.norm(h + self.attention(h, layer))
            h = self.norm(h + self.swiglu(h, layer))
        return h

    def run(self, inputs: Tensor, puzzle_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [S, B, L, V] and halting logits [S, B], each step reading the question."""
        x = torch.zeros(len(inputs), PREFIX + CELLS, WIDTH)
        x[:, 0] = self.state["puzzle_emb.weights"][puzzle_ids]
        x[:, PREFIX:] = self.state["embed_tokens.embedding_weight"][inputs]
        y, z = (self.state[name].expand_as(x) for name in ("H_init", "L_init"))
        logits, halting = [], []
        for s in range(1, STEPS + 1):
            told = self.state.get("timestep_embed.embedding_weight")
            shown = (x if told is None else x + told[s]) * math.sqrt(WIDTH)
            for _ in range(CYCLES):
                for _ in range(UPDATES):
                    z = self.network(z + y + shown)
                y = self.network(y + z)
            logits.append(y[:, PREFIX:] @ self.state["lm_head.weight"].T)
            q = y[:, 0] @ self.state["q_head.weight"].T + self.state["q_head.bias"]
            halting.append(q[:, 0])
        return torch.stack(logits), torch.stack(halting)


def write(folder: Path, state: Any, config: Any = CONFIG, name: str = "step_200") -> Path:
    """A file as it lies in a published run's folder, and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    if config is not None:
        (folder / "all_config.yaml").write_text(yaml.safe_dump(config))
    return folder / name


def import_to(out: Path, file: Path, data: Path, *flags: object) -> Path:
    call(import_checkpoint.main, str(file), str(out), "--data", str(data), *map(str, flags))
    return out


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Callable[..., Path]:
    """The exported model that the checkpoint of a code became. Read-only."""
    folder = tmp_path_factory.mktemp("imported")

    def made(code: str) -> Path:
        out = folder / code
        if not out.exists():
            import_to(out, write(folder / "theirs" / code, published_state(code)), tiny_dataset)
        return out

    return made


def questions() -> tuple[Tensor, Tensor]:
    """Canvases [5, 36] and the identifiers of their puzzles."""
    generator = torch.Generator().manual_seed(6)
    return torch.randint(0, 12, (5, CELLS), generator=generator), torch.tensor([1, 9, 0, 63, 30])


@torch.no_grad()
def outputs_of(trained: TrainedModel) -> tuple[Tensor, Tensor | None]:
    """As `Reference.run`: every step of the model reads the question."""
    inputs, puzzle_ids = questions()
    batch = pack_whole(inputs, PREFIX)
    vectors = trained.puzzle_embedding.lookup(puzzle_ids).detach()
    state = trained.model.initial_state(len(batch.inputs))
    logits, halting = [], []
    for s in range(1, STEPS + 1):
        output = run_step(trained.model, vectors, state, batch.inputs, torch.tensor(s), batch)
        logits.append(output.conditional_logits[batch.is_cell].unflatten(0, (len(inputs), -1)))
        if output.halting_logits is not None:
            halting.append(output.halting_logits)
        state = output.state
    return torch.stack(logits), torch.stack(halting) if halting else None


# ---- it computes the same ----


@pytest.mark.parametrize("code", ["TRM", "DIS"])
def test_an_imported_network_computes_what_theirs_does(
    imported: Callable[..., Path], code: str
) -> None:
    model = TinyRecursiveModel.from_pretrained(imported(code))
    logits, halting = outputs_of(model)
    expected, expected_halting = Reference(published_state(code)).run(*questions())
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    if code == "TRM":
        assert halting is not None
        torch.testing.assert_close(halting, expected_halting, atol=1e-4, rtol=0)
    else:
        assert halting is None


def swapped(name: str, *order: int) -> Callable[[State], None]:
    """Exchange the equal parts of a tensor's rows."""

    def change(state: State) -> None:
        parts = state[COMPILED + name].chunk(len(order))
        state[COMPILED + name] = torch.cat([parts[i] for i in order])

    return change


def exchanged(one: str, other: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        a, b = COMPILED + one, COMPILED + other
        state[a], state[b] = state[b], state[a]

    return change


MISTAKES = {
    "gate and up": swapped(f"{LAYER}mlp.gate_up_proj.weight", 1, 0),
    "queries and values": swapped(f"{LAYER}self_attn.qkv_proj.weight", 2, 1, 0),
    "keys and values": swapped(f"{LAYER}self_attn.qkv_proj.weight", 0, 2, 1),
    "y and z": exchanged("H_init", "L_init"),
    "the two layers": exchanged(
        f"{LAYER}self_attn.o_proj.weight", "L_level.layers.0.self_attn.o_proj.weight"
    ),
    "embedding and readout": exchanged("embed_tokens.embedding_weight", "lm_head.weight"),
    "steps": lambda s: s.update(
        {COMPILED + "timestep_embed.embedding_weight":
         s[COMPILED + "timestep_embed.embedding_weight"].roll(1, dims=0)}
    ),
    "halting": swapped("q_head.bias", 1, 0),
    "puzzles": swapped("puzzle_emb.weights", 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_order_would_be_noticed(mistake: str) -> None:
    """Each exchange of what has the same shape changes what is computed; so each place is right."""
    code = "DIS" if mistake == "steps" else "TRM"
    state = published_state(code)
    before = Reference(state).run(*questions())
    MISTAKES[mistake](state)
    after = Reference(state).run(*questions())
    changed = [not torch.allclose(a, b, atol=1e-2) for a, b in zip(before, after, strict=True)]
    assert any(changed)


def test_every_tensor_has_its_place_and_nothing_is_left_over() -> None:
    recursion = Recursion(
        num_heads=HEADS, num_recursions=CYCLES, num_latent_updates=UPDATES,
        num_supervision_steps=STEPS, prefix_length=PREFIX,
    )  # fmt: skip
    for code, prefix in (("TRM", "model.inner."), ("DIS", COMPILED)):
        state = published_state(code, prefix)
        found = convert(state, recursion, "it")
        theirs = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        own = dict(found.weights)
        pairs = {
            "token_embedding.weight": theirs.pop("embed_tokens.embedding_weight"),
            "readout.weight": theirs.pop("lm_head.weight"),
            "y_init": theirs.pop("H_init"),
            "z_init": theirs.pop("L_init"),
        }
        q_weight, q_bias = theirs.pop("q_head.weight"), theirs.pop("q_head.bias")
        if code == "TRM":
            pairs |= {"halting_head.weight": q_weight[0], "halting_head.bias": q_bias[0]}
        else:
            steps = theirs.pop("timestep_embed.embedding_weight")
            pairs["step_embedding.weight"] = steps[1 : STEPS + 1]
        for i in range(LAYERS):
            pairs |= {
                f"blocks.{i}.{ours}.weight": theirs.pop(f"L_level.layers.{i}.{name}.weight")
                for ours, name in (
                    ("attention.qkv", "self_attn.qkv_proj"),
                    ("attention.out", "self_attn.o_proj"),
                    ("swiglu.gate_and_up", "mlp.gate_up_proj"),
                    ("swiglu.down", "mlp.down_proj"),
                )
            }
        for name, tensor in pairs.items():
            taken = own.pop(name)
            assert taken.dtype == torch.float32
            assert torch.equal(taken, tensor.float()), name
        assert torch.equal(found.table, theirs.pop("puzzle_emb.weights"))
        assert not own and not theirs
        assert found.left_out == (["q_head.bias", "q_head.weight"] if code == "DIS" else [])
        assert (found.arch.hidden_size, found.arch.num_layers) == (WIDTH, LAYERS)
        assert (found.arch.num_recursions, found.arch.num_latent_updates) == (CYCLES, UPDATES)
        assert (found.arch.num_supervision_steps, found.arch.prefix_length) == (STEPS, PREFIX)
        assert found.arch.step_embedding == (code == "DIS") != found.arch.halting_head
        read = "answer" if code == "DIS" else "question"
        assert (found.supervision.next_input, found.supervision.halting) == (read, code == "TRM")


@pytest.mark.parametrize(
    ("width", "inner", "expansion"), [(512, 1536, 4), (256, 768, 4), (16, 256, 1), (512, 512, 1)]
)
def test_the_expansion_is_the_one_that_makes_swiglu_so_wide(
    width: int, inner: int, expansion: int
) -> None:
    """As published: 4, at both widths."""
    found = expansion_of(width, inner, "it")
    assert found == expansion
    assert swiglu_width(width, found) == inner


# ---- it is used like any other ----


@pytest.mark.parametrize("code", ["TRM", "DIS"])
def test_it_is_scored_with_its_puzzle_embeddings(
    imported: Callable[..., Path], tiny_dataset: Path, tmp_path: Path, code: str
) -> None:
    out = imported(code)
    scored = run_evaluation(tmp_path / "scored", f"checkpoint={out}", f"data.path={tiny_dataset}")
    (facts,) = read_results(scored)["checkpoints"]
    assert facts["puzzle_embedding_parameters"] == NUM_PUZZLES * WIDTH
    assert facts["network_calls_per_answer"] == STEPS * CYCLES * (UPDATES + 1)
    model = TinyRecursiveModel.from_pretrained(out)
    table = published_state(code)[f"{COMPILED}puzzle_emb.weights"]
    names = load_identifiers(tiny_dataset)
    (row,) = model.vectors_of([names[1]])
    assert torch.equal(row, table[1])
    inputs, puzzle_ids = questions()
    given = model.answer(inputs, table[puzzle_ids])
    as_question = replace(model, supervision=SupervisionConfig())
    logits, _ = outputs_of(as_question)
    assert (given[:, 0] == logits[0].argmax(dim=-1).numpy()).all()


def test_a_run_starts_from_it(
    imported: Callable[..., Path], tiny_dataset: Path, tmp_path: Path
) -> None:
    """From its very weights: with rates next to zero they are still there after a batch."""
    run = run_training(
        tiny_dataset, tmp_path / "run", f"init_from={imported('DIS')}", "train.max_steps=3",
        f"arch.num_layers={LAYERS}", f"arch.prefix_length={PREFIX}", "train.eval_every=null",
        f"arch.num_recursions={CYCLES}", f"arch.num_latent_updates={UPDATES}", "optim.lr=1e-30",
        "optim.puzzle_lr=1e-30", "optim.ema_decay=null",
    )  # fmt: skip
    kept = checkpoint_tensors(run / "checkpoints" / "step_00000003")
    for name, tensor in load_file(imported("DIS") / "model.safetensors").items():
        if name == "puzzle_embedding.weight":
            assert torch.equal(kept["puzzle_embedding.safetensors:weight"], tensor)
        else:
            assert torch.equal(kept[f"model.safetensors:{name}"], tensor)


def test_the_card_says_whose_it_is_and_claims_no_score(imported: Callable[..., Path]) -> None:
    front, text = (imported("TRM") / "README.md").read_text().split("---\n", 2)[1:]
    values = yaml.safe_load(front)
    assert values["license"] == "other"
    assert "model-index" not in values
    assert "Imported from a checkpoint of the published TRM code, step_200" in text
    assert "Not measured." in text
    assert "| optimizer steps | 200 |" in text
    config = json.loads((imported("TRM") / "config.json").read_text())
    assert config["imported"] == {"code": "TRM", "file": "step_200"}


def test_flags_stand_in_for_the_configuration_and_before_it(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    flags = ("--num-heads", 4, "--num-recursions", 5, "--num-latent-updates", 6)
    for config, expected in ((None, (4, 5, 6, 16, 16)), (CONFIG, (4, 5, 6, STEPS, PREFIX))):
        folder = tmp_path / str(config is None)
        out = import_to(folder / "o", write(folder, published_state("TRM"), config), tiny_dataset,
                        *flags)  # fmt: skip
        arch = TinyRecursiveModel.from_pretrained(out).model.config
        assert expected == (
            arch.num_heads, arch.num_recursions, arch.num_latent_updates,
            arch.num_supervision_steps, arch.prefix_length,
        )  # fmt: skip


def test_the_command_as_it_is_typed(
    run_command: Callable[..., Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "theirs", published_state("DIS", "model.inner."))
    out = tmp_path / "ours"
    process = run_command("import_checkpoint.py", file, out, "--data", tiny_dataset)
    assert process.returncode == 0, process.stderr
    assert "Left out, as DIS does not halt: q_head.bias, q_head.weight" in process.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


# ---- what cannot be imported ----


def without(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(COMPILED + name)


def with_tensor(name: str, *shape: int) -> Callable[[State], None]:
    return lambda state: state.update({COMPILED + name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("H_init"), "has no 'H_init': it is no complete TRM or DIS"),
        (without("q_head.bias"), "has no 'q_head.bias'"),
        (without(f"{LAYER}mlp.down_proj.weight"), f"has no '{LAYER}mlp.down_proj.weight'"),
        (with_tensor("H_level.layers.0.mlp.down_proj.weight", 2),
         r"no place here for 'H_level\..*' \(1 such tensors\): it is of a variant"),
        (with_tensor("embed_pos.embedding_weight", 2), "no place here for 'embed_pos"),
        (with_tensor("lm_head.weight", 12, 8), r"'lm_head.weight' has .* \[12, 8\].*\[12, 16\]"),
        (with_tensor("lm_head.weight", 11, 16), r"'lm_head.weight' has the shape \[11, 16\]"),
        (with_tensor(f"{LAYER}self_attn.qkv_proj.weight", 32, 16), r"shape \[32, 16\].*\[48, 16\]"),
        (with_tensor("puzzle_emb.weights", 64, 8), r"'puzzle_emb.weights' has the shape \[64, 8\]"),
        (with_tensor("puzzle_emb.weights", 64), "'puzzle_emb.weights' .* 2 dimensions is needed"),
        (with_tensor("H_init"), r"'H_init' has the shape \[\], where one of 1"),
        (with_tensor("L_level.layers.0.mlp.down_proj.weight", 16, 200), "is 200 wide, .* 256"),
        (with_tensor("puzzle_emb.weights", 63, 16), "has 63 puzzle identifiers, --data .* has 64"),
        (lambda s: s.update({"optimizer": torch.ones(1)}), "'optimizer' is no tensor of the net"),
        (lambda s: s.update({COMPILED + "H_init": 3}), "H_init' is no tensor of real numbers"),
    ],
)  # fmt: skip
def test_a_state_of_another_form_is_refused_by_its_tensor(
    tiny_dataset: Path,
    tmp_path: Path,
    refused_in_process: Callable[..., str],
    change: Callable[[State], None],
    message: str,
) -> None:
    state = published_state("TRM")
    change(state)
    file = write(tmp_path / "theirs", state)
    line = refused_in_process(
        import_checkpoint.main, file, tmp_path / "out", "--data", tiny_dataset
    )
    with pytest.raises(UserError, match=message):
        raise UserError(line)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["theirs"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "--num-heads is needed: there is no .*all_config.yaml"),
        ({"arch": {}}, "--num-heads is needed: .*all_config.yaml lacks it"),
        ([1], "--num-heads is needed: .*all_config.yaml lacks it"),
        (CONFIG | {"arch": {**CONFIG["arch"], "H_cycles": "3"}},  # type: ignore[dict-item]
         "--num-recursions is needed: .*says arch.H_cycles='3'"),
        (CONFIG | {"arch": {**CONFIG["arch"], "puzzle_emb_len": 0}},  # type: ignore[dict-item]
         "--prefix-length is needed: .*says arch.puzzle_emb_len=0"),
        (CONFIG | {"arch": {**CONFIG["arch"], "num_heads": 3}},  # type: ignore[dict-item]
         "arch.hidden_size=16 must be a multiple of twice arch.num_heads=3"),
    ],
)  # fmt: skip
def test_what_the_tensors_do_not_say_must_be_said(
    tiny_dataset: Path,
    tmp_path: Path,
    refused_in_process: Callable[..., str],
    config: Any,
    message: str,
) -> None:
    file = write(tmp_path / "theirs", published_state("TRM"), config)
    line = refused_in_process(
        import_checkpoint.main, file, tmp_path / "out", "--data", tiny_dataset
    )
    with pytest.raises(UserError, match=message):
        raise UserError(line)


def test_files_of_other_kinds_are_refused(
    tiny_dataset: Path, tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    good = write(tmp_path / "theirs", published_state("TRM"))
    (text := tmp_path / "text").write_text("step")
    (half := tmp_path / "half").write_bytes(good.read_bytes()[:5000])
    another = write(tmp_path / "another", {"weight": torch.ones(2)})
    code = write(tmp_path / "code", {"run": Reference})  # No plain data.
    (tmp_path / "bad").mkdir()
    bad = write(tmp_path / "bad", published_state("TRM"))
    bad.with_name("all_config.yaml").write_text("{a: [")
    for file, message in (
        (text, "is damaged, or no file of torch.save"),
        (half, "is damaged, or no file of torch.save"),
        (code, "is damaged, or no file of torch.save that holds tensors alone"),
        (another, "is no checkpoint of the published TRM or DIS code"),
        (tmp_path / "nothing", "FILE .*nothing: Path does not point to a file"),
        (bad, "all_config.yaml is no YAML file"),
    ):
        line = refused_in_process(
            import_checkpoint.main, file, tmp_path / "out", "--data", tiny_dataset
        )
        with pytest.raises(UserError, match=message):
            raise UserError(line)
        assert not (tmp_path / "out").exists()


# ---- checkpoint= and init_from= know what it is ----


def test_checkpoint_and_init_from_say_what_a_published_one_is_and_the_command(
    tiny_dataset: Path, tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    """Of a file, and of a folder, of which it is the newest."""
    folder = tmp_path / "their run"
    for step in (900, 1000):
        file = write(folder, published_state("TRM"), name=f"step_{step}")
    command = f"'python import_checkpoint.py '{file}' OUT --data DATASET' makes a model of it"
    kinds = {
        file: "it is a checkpoint of the published TRM or DIS code; ",
        folder: "it is a run of the published TRM or DIS code; ",
    }
    for path, what in kinds.items():
        line = refused_in_process(evaluate.main, f'checkpoint="{path}"', "device=cpu")
        assert line.startswith(f"error: checkpoint={path}: {what}{command}")
        arguments = arguments_of_training(tiny_dataset, tmp_path / "run", f'init_from="{path}"')
        line = refused_in_process(train_arc_tiny_corrupt.main, *arguments)
        assert line.startswith(f"error: init_from={path}: {what}{command}")
        line = refused_in_process(
            evaluate.main, f'checkpoint="{path}"', "device=cpu", "eval.best=true"
        )
        assert line.startswith(f"error: checkpoint={path}: {what}{command}")


def test_what_is_of_another_program_is_called_so(
    tmp_path: Path, refused_in_process: Callable[..., str], imported: Callable[..., Path]
) -> None:
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama", "architectures": ["Llama"]}')
    sharded = tmp_path / "whole"
    sharded.mkdir()
    (sharded / "config.json").write_text('{"architectures": ["Bert"]}')
    save_file({"weight": torch.ones(2)}, sharded / "model.safetensors")
    weights = write(tmp_path / "torch", {"weight": torch.ones(2)}, None, "pytorch_model.bin")
    bare = write(tmp_path / "lost", {}, CONFIG).with_name("all_config.yaml").parent
    (bare / "step_200").unlink()
    (text := tmp_path / "text.pt").write_text("none of these")
    of_torch = "it is a PyTorch file of another program, and no checkpoint of this project"
    for path, message in (
        (llama, "is a model of another program .*its config.json says model_type 'llama'"),
        (sharded, "is a model of another program .*says model_type None"),
        (weights, of_torch),
        (bare, "it holds the all_config.yaml of the published TRM or DIS code and none of its"),
        (text, "no checkpoint there; give a run folder"),
        (imported("TRM") / "model.safetensors", "it is a file of a model: name its folder, .*/TRM"),
    ):
        line = refused_in_process(evaluate.main, f"checkpoint={path}", "device=cpu")
        with pytest.raises(UserError, match=message):
            raise UserError(line)
