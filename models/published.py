"""Weights of the published TRM and DIS code in this project's terms: names, shapes, order of rows.

    theirs                                  here
    embed_tokens.embedding_weight           token_embedding.weight
    lm_head.weight                          readout.weight
    H_init, L_init                          y_init, z_init
    q_head.weight, q_head.bias: row 0       halting_head.weight, halting_head.bias
    puzzle_emb.weights                      the table of puzzle embeddings
    L_level.layers.I.self_attn.qkv_proj     blocks.I.attention.qkv
    L_level.layers.I.self_attn.o_proj       blocks.I.attention.out
    L_level.layers.I.mlp.gate_up_proj       blocks.I.swiglu.gate_and_up
    L_level.layers.I.mlp.down_proj          blocks.I.swiglu.down
    timestep_embed: rows 1 .. S of S + 2    step_embedding: rows 0 .. S - 1

Only DIS tells its network the step, and only TRM halts. Rows of queries, keys and values, of gate
and up, and the halves that the rotary embedding turns are in the same order. What is not of this
form (another network, HRM's two, one that mixes tokens otherwise) is refused by its first tensor.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from common.errors import UserError
from common.settings import Settings, validate
from models.layers import swiglu_width
from models.recursive import ArchConfig, TinyRecursiveModel
from models.supervision import SupervisionConfig

PREFIXES = ("_orig_mod.model.inner.", "model.inner.")
"""Before every name: of a compiled run, and of another."""
PUZZLES = "puzzle_emb.weights"
STEPS = "timestep_embed.embedding_weight"
HALTING = ("q_head.weight", "q_head.bias")
UNUSED_STEP_ROWS = 2
"""Of the published table of steps: the first row and the last."""
OF_NETWORK = {
    "embed_tokens.embedding_weight": "token_embedding.weight",
    "lm_head.weight": "readout.weight",
    "H_init": "y_init",
    "L_init": "z_init",
}
OF_LAYER = {
    "self_attn.qkv_proj.weight": "attention.qkv.weight",
    "self_attn.o_proj.weight": "attention.out.weight",
    "mlp.gate_up_proj.weight": "swiglu.gate_and_up.weight",
    "mlp.down_proj.weight": "swiglu.down.weight",
}
WIDTH_FROM, INNER_FROM = "H_init", "L_level.layers.0.mlp.down_proj.weight"
DIMENSIONS = {
    WIDTH_FROM: 1,
    INNER_FROM: 2,
    PUZZLES: 2,
    STEPS: 2,
    "embed_tokens.embedding_weight": 2,
    "q_head.weight": 2,
    "q_head.bias": 1,
}
"""Of the tensors that sizes are taken from, or rows."""


class Recursion(Settings):
    """What the tensors do not say about a network."""

    num_heads: int = Field(gt=0)
    num_recursions: int = Field(gt=0)
    num_latent_updates: int = Field(gt=0)
    num_supervision_steps: int | None = Field(gt=0, le=10_000)
    """None: as many as the table of steps has."""
    prefix_length: int = Field(gt=0, le=10_000)


class Converted(NamedTuple):
    """A published network as this project has it."""

    code: Literal["TRM", "DIS"]
    arch: ArchConfig
    supervision: SupervisionConfig
    weights: dict[str, Tensor]
    table: Tensor
    """[identifiers, D]"""
    left_out: list[str]
    """Tensors that the network does not use."""


def is_published(state: Any) -> bool:
    """Whether what a file holds is the state of such a network, as far as names tell."""
    if not isinstance(state, dict):
        return False
    needed = ("lm_head.weight", PUZZLES)
    return any(all(prefix + name in state for name in needed) for prefix in PREFIXES)


def convert(state: Mapping[str, Tensor], recursion: Recursion, source: str) -> Converted:
    """The network that a published state dict holds.

    Args:
        state: as it was read, names with their prefix.
        recursion: how it is used.
        source: for messages.

    Raises:
        UserError: a tensor is missing, is one too many, or has a shape that fits no such network.
    """
    theirs = _without_prefix(state, source)
    is_dis = STEPS in theirs
    names = _names(_num_layers(theirs))
    needed = {*names, PUZZLES, *([STEPS] if is_dis else HALTING)}
    left_out = sorted(set(theirs) & set(HALTING)) if is_dis else []
    if missing := sorted(needed - set(theirs)):
        raise UserError(f"{source} has no '{missing[0]}': it is no complete TRM or DIS checkpoint")
    if unknown := sorted(set(theirs) - needed - set(left_out)):
        raise UserError(
            f"{source}: there is no place here for '{unknown[0]}' ({len(unknown)} such tensors): "
            f"it is of a variant of TRM or DIS that cannot be imported"
        )
    arch = _arch_of(theirs, recursion, source)
    weights = {ours: theirs[name] for name, ours in names.items()}
    if is_dis:
        weights["step_embedding.weight"] = theirs[STEPS][1:-1]
    else:
        weights["halting_head.weight"] = theirs[HALTING[0]][0]
        weights["halting_head.bias"] = theirs[HALTING[1]][0]
    _require_shapes(arch, weights, theirs, source)
    # Copies, as some are a part of another tensor, or of the file.
    weights = {name: tensor.float().clone(memory_format=torch.contiguous_format)
               for name, tensor in weights.items()}  # fmt: skip
    code: Literal["TRM", "DIS"] = "DIS" if is_dis else "TRM"
    table = theirs[PUZZLES].float().contiguous()
    return Converted(code, arch, _supervision_of(code), weights, table, left_out)


def _without_prefix(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    prefix = next(p for p in PREFIXES if p + PUZZLES in state)
    for name, tensor in state.items():
        if not name.startswith(prefix):
            raise UserError(f"{source}: '{name}' is no tensor of the network, which are {prefix}*")
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError(f"{source}: '{name}' is no tensor of real numbers; it is damaged")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _arch_of(theirs: dict[str, Tensor], recursion: Recursion, source: str) -> ArchConfig:
    """Sizes by the tensors, the rest as it is given."""
    for name, ndim in DIMENSIONS.items():
        if name in theirs and (theirs[name].ndim != ndim or not theirs[name].numel()):
            raise UserError(
                f"{source}: '{name}' has the shape {list(theirs[name].shape)}, where one of {ndim} "
                f"dimensions is needed; it is no TRM or DIS checkpoint"
            )
    width, inner = len(theirs[WIDTH_FROM]), theirs[INNER_FROM].shape[1]
    is_dis = STEPS in theirs
    steps = len(theirs[STEPS]) - UNUSED_STEP_ROWS if is_dis else recursion.num_supervision_steps
    return validate(
        ArchConfig,
        {
            "name": "dis" if is_dis else "trm",
            "hidden_size": width,
            "num_layers": _num_layers(theirs),
            "expansion": expansion_of(width, inner, source),
            "step_embedding": is_dis,
            "halting_head": not is_dis,
            **recursion.model_dump(),
            "num_supervision_steps": steps,
        },
        source,
    )


def expansion_of(width: int, inner: int, source: str) -> float:
    """What makes SwiGLU `inner` wide: a whole number if one does, the smallest.

    Raises:
        UserError: nothing does.
    """
    for whole in range(1, 2 + 3 * inner // (2 * width)):
        if swiglu_width(width, whole) == inner:
            return float(whole)
    exact = 3 * inner / (2 * width)
    if swiglu_width(width, exact) != inner:
        raise UserError(f"{source}: SwiGLU is {inner} wide, which here is a multiple of 256")
    return exact


def _num_layers(theirs: dict[str, Tensor]) -> int:
    numbers = [re.match(r"L_level\.layers\.(\d+)\.", name) for name in theirs]
    return max(1, len({number[1] for number in numbers if number}))


def _names(num_layers: int) -> dict[str, str]:
    """Their name -> ours, of the tensors that are the same."""
    return OF_NETWORK | {
        f"L_level.layers.{i}.{theirs}": f"blocks.{i}.{ours}"
        for i in range(num_layers)
        for theirs, ours in OF_LAYER.items()
    }


def _require_shapes(
    arch: ArchConfig, weights: dict[str, Tensor], theirs: dict[str, Tensor], source: str
) -> None:
    """Raise UserError for the first tensor of another shape than the network needs."""
    vocab_size = len(theirs["embed_tokens.embedding_weight"])
    with torch.device("meta"):
        outline = TinyRecursiveModel(arch, vocab_size, seq_len=1).state_dict()  # Of any length.
    assert outline.keys() == weights.keys(), "every tensor has its place"
    needed = {ours: list(tensor.shape) for ours, tensor in outline.items()}
    named = {ours: name for name, ours in _names(arch.num_layers).items()}
    found = {ours: list(tensor.shape) for ours, tensor in weights.items()}
    needed[PUZZLES] = [len(theirs[PUZZLES]), arch.hidden_size]
    found[PUZZLES] = list(theirs[PUZZLES].shape)
    for ours, shape in needed.items():
        if found[ours] != shape:
            raise UserError(
                f"{source}: '{named.get(ours, ours)}' has the shape {found[ours]}, a network of "
                f"width {arch.hidden_size} and {arch.num_layers} layers needs {shape}"
            )


def _supervision_of(code: str) -> SupervisionConfig:
    """How the published code trains, which says what a step reads."""
    if code == "TRM":
        return SupervisionConfig(targets="final", halting=True)
    return SupervisionConfig(next_input="answer", pad_cells="counted_until_replaced")
