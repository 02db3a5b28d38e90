"""Base class of every config section, and pydantic's complaints as sentences a user can act on.

Every field of a section has its default beside its meaning. So a configuration that was stored
before a field existed can still be read: it takes the default.
"""

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FilePath,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from common.errors import UserError

log = logging.getLogger(__name__)


class Settings(BaseModel):
    """A frozen config section: unknown keys, wrong types and out-of-range values are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(
                    f"{name}={value} is not allowed, true and false are no values here"
                )
        return values


def expanded(value: Any) -> Any:
    """A path's text, or each of a list, with `~` and `$NAME` replaced by what they stand for.

    Raises:
        ValueError: there is no such home folder or variable, which is a folder's name by mistake.
    """
    if isinstance(value, list):
        return [expanded(each) for each in value]
    # A folder may be named by a number, which a command line hands over as one.
    if not isinstance(value, str | Path | int | float):
        return value
    text = os.path.expandvars(os.path.expanduser(str(value)))
    if text.startswith("~") or "$" in text:
        raise ValueError(
            "'~' and '$' stand for a home folder and for environment variables, and there is none "
            "of that name"
        )
    return text


def expanded_path(text: str) -> Path:
    """For `argparse`: see `expanded`."""
    return Path(expanded(text))


AnyPath = Annotated[Path, BeforeValidator(expanded)]
InputFile = Annotated[FilePath, BeforeValidator(expanded)]
"""A file that exists."""
PathText = Annotated[str, BeforeValidator(expanded)]
"""The beginning of paths, or a path among other choices."""

SettingsType = TypeVar("SettingsType", bound=BaseModel)
_ABSENT = object()


def validate(settings_class: type[SettingsType], values: Any, source: str) -> SettingsType:
    """Build `settings_class` from `values`.

    Raises:
        UserError: one sentence naming `source` and, per problem, the key, the value and the limit.
    """
    try:
        return settings_class.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_sentence(problem) for problem in error.errors())
        raise UserError(f"{source}: {problems}") from error


def validate_stored(
    settings_class: type[SettingsType], values: Any, source: str, removed: Mapping[str, str]
) -> SettingsType:
    """Build `settings_class` from what an earlier version may have stored.

    Keys that are missing take their defaults, keys that were removed are ignored; either is said
    in one line of the log.

    Args:
        settings_class: of the whole configuration.
        values: as they were stored.
        source: what they are read from, for messages.
        removed: dotted keys that there were once -> the version that dropped them.

    Raises:
        UserError: as `validate`; a key that there never was is still an error.
    """
    values = copy.deepcopy(values)
    if dropped := [key for key in removed if _pop(values, key)]:
        versions = ", ".join(f"{key} (dropped in {removed[key]})" for key in dropped)
        log.info("%s: ignoring keys that there are no more: %s", source, versions)
    settings = validate(settings_class, values, source)
    defaults = [
        f"{key}={select(settings, key)}"
        for key, _ in fields_of(settings_class)
        if select(values, key, _ABSENT) is _ABSENT
    ]
    if defaults:
        log.info("%s: keys that it lacks take their defaults: %s", source, ", ".join(defaults))
    return settings


def fields_of(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All leaf fields of a schema by their dotted keys."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def select(values: Any, key: str, default: Any = None) -> Any:
    """The value at a dotted key of settings; or of nested dictionaries, `default` without one."""
    for part in key.split("."):
        if isinstance(values, BaseModel):
            values = getattr(values, part)
        elif isinstance(values, dict) and part in values:
            values = values[part]
        else:
            return default
    return values


def _pop(values: Any, key: str) -> bool:
    """Remove a dotted key from nested dictionaries; whether it was there."""
    section, _, name = key.rpartition(".")
    holder = select(values, section) if section else values
    return isinstance(holder, dict) and holder.pop(name, _ABSENT) is not _ABSENT


def _sentence(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}' (given {problem['input']!r})"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not key or (isinstance(problem["input"], dict) and problem["type"] == "value_error"):
        return message  # A combination of keys: the validator's own message names them.
    if problem["type"] == "value_error":
        return f"{key}={problem['input']!r}: {message}"
    return f"{key}={problem['input']!r} is not allowed, it should be {message}"
