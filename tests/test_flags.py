"""A command's options say once what its flags are called, mean, default to and may be."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, FilePath, field_validator, model_validator

from common.errors import UserError
from common.flags import POSITIONAL, NewFolder, parse_flags
from common.settings import Settings


class Options(Settings):
    output_dir: NewFolder
    num_aug: int = Field(3, ge=0, le=7, description="variants")
    files: tuple[FilePath, ...] = Field((), title="FILE", description="what to read")
    test_file: FilePath | None = Field(None, description="what to test on")
    names: tuple[str, ...] = Field(("a", "b"), description="who")
    clues: tuple[int, int] | None = Field(None, title="FEWEST MOST", description="clues")
    layout: Literal["full", "compact"] = Field("full", description="how")
    allow_leakage: bool = Field(False, description="accept it")
    seed: int = Field(0, description="of all draws")
    workers: int = Field(default_factory=lambda: 5, description="processes")

    @field_validator("clues")
    @classmethod
    def _rise(cls, clues: tuple[int, int] | None) -> tuple[int, int] | None:
        if clues and clues[0] > clues[1]:
            raise ValueError("the lower one comes first")
        return clues

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if self.test_file and not self.files:
            raise ValueError("--test-file needs --files")
        return self


def parse(*flags: object, output_dir: Path = Path("nowhere")) -> Options:
    arguments = ["--output-dir", str(output_dir), *map(str, flags)]
    return parse_flags(Options, "command", "What it does.", arguments)


def test_without_flags_the_options_have_their_defaults() -> None:
    assert parse() == Options(output_dir=Path("nowhere"))
    assert parse().workers == 5


def test_every_kind_of_flag_becomes_a_value_of_its_fields_type(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    found = parse(
        "--num-aug", 7, "--files", file, __file__, "--test-file", file, "--names", 1, "x",
        "--clues", 20, 30, "--layout", "compact", "--allow-leakage", "--seed", 6, "--workers", 2,
    )  # fmt: skip
    assert dict(found) == {
        "output_dir": Path("nowhere"), "num_aug": 7, "files": (file, Path(__file__)),
        "test_file": file, "names": ("1", "x"), "clues": (20, 30), "layout": "compact",
        "allow_leakage": True, "seed": 6, "workers": 2,
    }  # fmt: skip


def test_a_flag_of_several_values_may_be_given_again() -> None:
    assert parse("--names", "x", "--seed", 1, "--names", "y", "z").names == ("x", "y", "z")


def test_the_command_line_of_the_process_is_parsed_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["command", "--output-dir", "o"])
    assert parse_flags(Options, "command", None).output_dir == Path("o")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--num-aug", -1), "--num-aug -1: must be greater than or equal to 0"),
        (("--num-aug", 8), "--num-aug 8: must be less than or equal to 7"),
        (("--num-aug", "x"), "--num-aug x: must be a valid integer"),
        (("--num-aug", 8, "--workers", "y"), "--num-aug 8: .*; --workers y: must be"),
        (("--files", __file__, "no"), "--files no: Path does not point to a file"),
        (("--test-file", "no"), "--test-file no: Path does not point to a file"),
        (("--test-file", __file__), "^--test-file needs --files$"),
        (("--clues", 2), "--clues: expected 2 arguments"),
        (("--clues", 2, "x"), "--clues x: must be a valid integer"),
        (("--clues", 2, 1), "--clues 2 1: the lower one comes first"),
        (("--layout", "wide"), "--layout wide: must be 'full' or 'compact'"),
        (("--names",), "--names: expected at least one argument"),
        (("--colour", 1), "unrecognized arguments: --colour 1; --help lists the flags"),
    ],
)
def test_a_bad_flag_is_refused_with_its_name_value_and_limit(
    flags: tuple[object, ...], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        parse(*flags)


def test_a_missing_flag_and_a_folder_that_exists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="arguments are required: --output-dir"):
        parse_flags(Options, "command", None, [])
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match=r"--output-dir .* exists already .*: remove it or choose"):
        parse(output_dir=tmp_path)


def test_the_help_has_descriptions_defaults_and_what_stands_for_a_value(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "usage: command", "What it does.", "folder to create; must not exist",
        "variants (default: 3)", "--files FILE [FILE ...] what to read --test-file",
        "who (default: a b)", "--clues FEWEST MOST clues",
        "--layout {full,compact} how (default: full)", "--allow-leakage accept it --seed",
        "of all draws (default: 0)", "processes (default: 5)",
    ):  # fmt: skip
        assert part in text


class Arguments(Settings):
    source: Annotated[FilePath, POSITIONAL] = Field(title="FROM", description="what to read")
    count: Annotated[int, POSITIONAL] = Field(title="COUNT", ge=1, description="how often")
    names: tuple[str, ...] = Field((), description="who")


def test_values_are_also_given_by_their_place() -> None:
    found = parse_flags(Arguments, "command", None, ["--names", "a", "--", __file__, "2"])
    assert found == Arguments(source=Path(__file__), count=2, names=("a",))
    assert found == parse_flags(Arguments, "command", None, [__file__, "2", "--names", "a"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: FROM, COUNT; --help"),
        ([__file__], "required: COUNT; --help"),
        (["nowhere", "1"], "^FROM nowhere: Path does not point to a file"),
        ([__file__, "0"], "^COUNT 0: must be greater than or equal to 1"),
        ([__file__, "1", "2"], "unrecognized arguments: 2"),
    ],
)
def test_a_bad_argument_is_refused_by_what_stands_for_it(
    arguments: list[str], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_flags(Arguments, "command", None, arguments)
