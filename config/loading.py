"""From the command line to a checked configuration: Hydra composes, pydantic validates.

The defaults are those of the config classes; YAML files hold only what a preset changes. Overrides
are plain `key=value`. What is wrong with them becomes one sentence.
"""

import difflib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from common.errors import UserError
from common.settings import SettingsType, fields_of, validate
from config.multirun import FLAGS, combinations, run_all

CONFIG_DIR = Path(__file__).resolve().parent


def load_config(
    name: str, schema: type[SettingsType], description: str, arguments: Sequence[str]
) -> SettingsType:
    """Compose the defaults of `schema`, `config/{name}.yaml` and overrides, and check the result.

    With `--help` among the arguments, print every key and leave. With `--multirun`, run this
    program for each combination of values, see `config.multirun`, and leave.

    Raises:
        UserError: an unknown key or option, a value out of range, an impossible combination.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(help_text(name, schema, description))
        sys.exit(0)
    if FLAGS & set(arguments):
        sys.exit(_run_each(name, schema, [word for word in arguments if word not in FLAGS]))
    arguments = [_quote_home(argument) for argument in arguments]
    groups = groups_of(name)
    known = [key for key, _ in fields_of(schema)]
    for argument in arguments:
        _check_override(argument, known, groups)
    try:
        composed = _compose(name, schema, arguments)
        values = OmegaConf.to_container(composed, resolve=True)
    except OverrideParseException as error:
        reason = str(error).partition("See https")[0].strip()
        raise UserError(
            f"'{error.override}': {reason}; a value with '=', ',', '~' or blanks needs quotes, as "
            f"in 'key=\"...\"'"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error).partition("Config search path")[0].partition("See https")[0]
        raise UserError(f"configuration: {reason.strip()}; --help lists all keys") from error
    return validate(schema, values, source="configuration")


def _run_each(name: str, schema: type[BaseModel], arguments: Sequence[str]) -> int:
    """Check the configurations of all runs, then run them; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs = combinations(arguments)
    folders: dict[str, list[str]] = {}
    for overrides in runs:
        config = load_config(name, schema, "", overrides)
        folder = str(getattr(config, "run_dir", None) or getattr(config, "output_dir", None))
        if folder in folders and folder != "None":  # Else it is named by what is scored.
            raise UserError(
                f"--multirun: {' '.join(folders[folder])} and {' '.join(overrides)} are both to go "
                f"into {folder}: name what differs, as in 'run_dir=runs/lr${{optim.lr}}-${{seed}}'"
            )
        folders[folder] = overrides
    return 1 if run_all(sys.argv[0], runs) else 0


def _compose(name: str, schema: type[BaseModel], overrides: Sequence[str]) -> DictConfig:
    """Defaults of the classes, then `config/{name}.yaml` if there is one, then the overrides."""
    has_presets = (CONFIG_DIR / f"{name}.yaml").is_file()
    defaults = schema.model_construct().model_dump(mode="json", warnings=False)
    # The first entry of the YAML's defaults list, which the groups and the file itself override.
    store_as = f"{name}_defaults" if has_presets else name
    ConfigStore.instance().store(store_as, defaults)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def _quote_home(argument: str) -> str:
    """With quotes around paths that begin with ~, which Hydra takes for no value without them."""
    key, equals, value = argument.partition("=")
    if not re.search("[\"']", value):
        value = re.sub(r"^~.*|(?<=[\[,])~[^,\]]*", r'"\g<0>"', value)
    return f"{key}{equals}{value}"


def _check_override(argument: str, known: list[str], groups: dict[str, list[str]]) -> None:
    """Raise UserError for what Hydra would refuse at length, or take for something else."""
    key, equals, value = argument.partition("=")
    if key in groups and equals:
        if value not in groups[key] and not (key == "experiment" and value == "null"):
            raise UserError(f"{key}={value}: there is no such option, {key} may be "
                            f"{', '.join(groups[key])}")  # fmt: skip
        return
    sections_or_keys = {*known, *(key.rpartition(".")[0] for key in known if "." in key)}
    if not equals or key not in sections_or_keys:
        close = difflib.get_close_matches(key.lstrip("+~"), [*known, *groups], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"'{argument}': {hint}overrides are key=value, --help lists all keys")
    if "," in value and value[0] not in "[\"'":
        raise UserError(f"'{argument}': a list is written [a,b]; a value with ',' needs quotes, "
                        f"'{key}=\"{value}\"'")  # fmt: skip


def config_groups() -> list[str]:
    """Names of the groups of alternatives, each a folder of YAML files."""
    return sorted(path.name for path in CONFIG_DIR.iterdir() if any(path.glob("*.yaml")))


class Entry(NamedTuple):
    """One key as help and reference show it."""

    key: str
    default: str
    meaning: str


def entries(name: str, schema: type[BaseModel]) -> list[Entry]:
    """All keys of an entry point, with the values that they have without any override."""
    composed = _compose(name, schema, [])
    values = [OmegaConf.select(composed, key) for key, _ in fields_of(schema)]
    return [
        Entry(key, "null" if value is None else str(value), field.description or "")
        for (key, field), value in zip(fields_of(schema), values, strict=True)
    ]


def groups_of(name: str) -> dict[str, list[str]]:
    """The groups in the defaults list of `config/{name}.yaml`, with their options."""
    path = CONFIG_DIR / f"{name}.yaml"
    values: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    defaults = values.get("defaults", [])
    named = {group for entry in defaults if not isinstance(entry, str) for group in entry}
    return {
        group: sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
        for group in config_groups()
        if group in named
    }


def help_text(name: str, schema: type[BaseModel], description: str) -> str:
    """What `--help` prints: usage, the schema's `first` keys, groups with options, all keys."""
    groups = groups_of(name)
    known = {entry.key: entry for entry in entries(name, schema)}
    lines = [description.strip(), "", "Overrides are key=value. Most people change:", ""]
    for key in first_of(schema):
        if key in groups:
            lines.append(f"  {key}\n      one of {', '.join(groups[key])}")
        else:
            lines.append(f"  {key}  [{known[key].default}]\n      {known[key].meaning}")
    if groups:
        lines += ["", "Groups, each a file of presets:", ""]
        lines += [f"{group}={' | '.join(options)}" for group, options in groups.items()]
    lines += ["", "All keys, with their defaults:", ""]
    for entry in known.values():
        lines.append(f"{entry.key}  [{entry.default}]\n    {entry.meaning}")
    return "\n".join(lines) + "\n"


def first_of(schema: type[BaseModel]) -> tuple[str, ...]:
    """The five keys or groups of an entry point that people change, its class attribute `first`."""
    first: tuple[str, ...] = getattr(schema, "first", ())
    return first
