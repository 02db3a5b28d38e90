"""In every path that a user can name, as a flag or as a key, ~ and $NAME mean what they do."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from common.errors import UserError
from common.flags import parse_flags
from common.settings import expanded_path, fields_of
from config.loading import load_config
from config.schema import DemoConfig, DiagnoseConfig, EvaluateConfig, OwnPuzzlesConfig, TrainConfig
from dataset import (
    build_maze_dataset,
    build_nqueens_dataset,
    build_plan,
    build_sudoku_dataset,
    import_arc,
    import_trajectories,
)

OPTIONS: tuple[type[BaseModel], ...] = (
    TrainConfig, EvaluateConfig, DiagnoseConfig, OwnPuzzlesConfig, DemoConfig,
    build_plan.BuildOptions, build_nqueens_dataset.BuildOptions, build_sudoku_dataset.BuildOptions,
    build_maze_dataset.BuildOptions, import_arc.ImportOptions, import_trajectories.ImportOptions,
)  # fmt: skip
TEXTS = ("resume", "input_file_prefix", "output_prefix")
"""Paths, or the beginnings of paths, that are kept as text."""


def holds_paths(kind: Any) -> bool:
    return kind is Path or any(map(holds_paths, get_args(kind)))


PATHS = {
    f"{options.__module__}.{options.__name__}.{key}": field
    for options in OPTIONS
    for key, field in fields_of(options)
    if holds_paths(field.annotation) or key in TEXTS
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOTHING", raising=False)
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize("field", PATHS.values(), ids=PATHS)
def test_home_and_variables_are_put_in_everywhere(field: FieldInfo, home: Path) -> None:
    alone = create_model("Alone", path=(field.annotation, field))
    is_tuple = get_args(field.annotation)[-1:] == (...,)

    def read(path: str) -> str:
        found = alone(path=[path] if is_tuple else path).path
        return str(found[0] if is_tuple else found)

    name = "new" if "must not exist" in (field.description or "") else "file"
    assert read(f"~/{name}") == read(f"${{HOME}}/{name}") == str(home / name)
    with pytest.raises(ValidationError, match="there is none of that name"):
        read("$NOTHING/a")


def test_overrides_may_begin_with_the_home_folder_with_quotes_or_without(home: Path) -> None:
    """Hydra alone takes a bare ~ for no value at all."""

    def evaluated(*overrides: str) -> EvaluateConfig:
        return load_config("evaluate", EvaluateConfig, "", overrides)

    for override in ("checkpoint=~/a b", 'checkpoint="~/a b"', "checkpoint='$HOME/a b'"):
        assert evaluated(override).checkpoint == home / "a b"
    pooled = evaluated("checkpoint=[~/a,$SCRATCH/b,c]").checkpoint
    assert pooled == [home / "a", home / "scratch" / "b", Path("c")]
    for override in ("checkpoint=~nobody_of_this_name/a", "checkpoint=[b,$NOTHING/a]"):
        with pytest.raises(UserError, match=r"^configuration: checkpoint=.*: '~' and '\$' stand"):
            evaluated(override)


def test_a_flag_is_refused_by_name_where_there_is_no_such_home_or_variable(home: Path) -> None:
    for place in ("~nobody_of_this_name/out", "$NOTHING/out"):
        with pytest.raises(UserError, match=r"^--output-dir [~$]\w+/out: '~' and '\$' stand"):
            parse_flags(build_nqueens_dataset.BuildOptions, "", None, ["--output-dir", place])
    assert expanded_path("~/a") == home / "a"
