"""Base class of every config section, and pydantic's complaints as sentences a user can act on."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import UserError


class Settings(BaseModel):
    """A frozen config section: unknown keys, wrong types and out-of-range values are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SettingsType = TypeVar("SettingsType", bound=BaseModel)


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
