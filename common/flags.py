"""The flags of a command, made from its options: a `Settings` class that says everything once.

A field `num_aug: int = Field(1000, ge=0, description="variants per task")` is the flag `--num-aug`.
Its description is the help text, to which the default is added; a field without a default must be
given. A field's `title` is what stands for its value in the usage, a word for each of several. What
is annotated with POSITIONAL is no flag but an argument, named by its title.
"""

from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.errors import CommandParser, UserError
from common.files import require_new_directory
from common.settings import AnyPath, SettingsType

POSITIONAL = "positional"
"""Annotates a field whose value is given by its place: `Annotated[AnyPath, POSITIONAL]`."""


def parse_flags(
    options: type[SettingsType],
    prog: str,
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> SettingsType:
    """The options that a command line gives, that of this process by default.

    Raises:
        UserError: a flag is unknown or missing, or its value is of another type or out of range;
            the message names flag, value and limit.
    """
    parser = CommandParser(prog=prog, description=description, argument_default=SUPPRESS)
    for name, field in options.model_fields.items():
        behaviour = _behaviour(field)
        if POSITIONAL not in field.metadata:
            behaviour["required"] = field.is_required()
        parser.add_argument(name if POSITIONAL in field.metadata else _flag(name), **behaviour)
    try:
        return options.model_validate(vars(parser.parse_args(arguments)))
    except ValidationError as error:
        sentences = [_sentence(problem, options) for problem in error.errors()]
        raise UserError("; ".join(sentences)) from error


def _flag(name: object) -> str:
    return f"--{str(name).replace('_', '-')}"


def _behaviour(field: FieldInfo) -> dict[str, Any]:
    """What argparse must know of a field; types and limits are left to pydantic."""
    default = field.get_default(call_default_factory=True)
    text = field.description or ""
    if default is not False and default not in (PydanticUndefined, None, ()):
        shown = " ".join(default) if isinstance(default, tuple) else default
        text += f" (default: {shown})"
    if field.annotation is bool:
        assert default is False, "a flag can turn a choice on, not off"
        return {"action": "store_true", "help": text}
    # `X | None` takes what X takes.
    optional = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    kind = optional[0] if NoneType in get_args(field.annotation) else field.annotation
    members = get_args(kind)
    metavar: Any = field.title
    if get_origin(kind) is Literal:
        metavar = f"{{{','.join(members)}}}"
    if get_origin(kind) is not tuple:
        return {"metavar": metavar, "help": text}
    if Ellipsis in members:
        # Given again, a flag adds to what it was given before, which is not lost.
        return {"nargs": "+", "action": "extend", "metavar": metavar, "help": text}
    if metavar and len(members) == len(metavar.split()):
        metavar = tuple(metavar.split())
    return {"nargs": len(members), "metavar": metavar, "help": text}


def _sentence(problem: Any, options: type[SettingsType]) -> str:
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if not problem["loc"]:  # A combination of flags, which the validator's message names.
        return str(message)
    given = problem["input"]
    shown = " ".join(map(str, given)) if isinstance(given, list) else given
    name = problem["loc"][0]
    field = options.model_fields.get(name)
    is_flag = field is None or POSITIONAL not in field.metadata
    return f"{_flag(name) if is_flag or field is None else field.title} {shown}: {message}"


def _require_new(path: Path) -> Path:
    require_new_directory(path, "--output-dir", "remove it or choose another folder")
    return path


NewFolder = Annotated[
    AnyPath, AfterValidator(_require_new), Field(description="folder to create; must not exist")
]
"""Of the field `output_dir`: refused where something is already."""
