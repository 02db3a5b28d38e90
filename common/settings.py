"""Base class of every config section, and pydantic's complaints as sentences a user can act on."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from common.errors import UserError


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


# A folder may be named by a number, which a command line hands over as one.
AnyPath = Annotated[Path, BeforeValidator(lambda v: str(v) if isinstance(v, int | float) else v)]


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
