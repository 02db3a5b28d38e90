"""What is compared with what: `grid.yaml`, checked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field, model_validator

from common.settings import Settings, validate

GRID_FILE = Path(__file__).with_name("grid.yaml")


class TaskSpec(Settings):
    """A dataset that variants are trained on, and how its runs are configured."""

    title: str = Field(description="as tables and plots call it")
    experiment: str = Field(description="the trainer's experiment group")
    steps: int = Field(gt=0, description="optimizer steps of a variant whose steps cost 1")
    evaluations: int = Field(gt=0, description="evaluations of each run, evenly over its steps")
    measure: str = Field(description="figure of an evaluation that is compared, e.g. solved")
    beside: list[str] = Field(description="further figures in the tables")
    build: list[str] = Field(
        description="commands that build the dataset, without `python -m`; {data} is its folder"
    )


class Variant(Settings):
    """One way to train."""

    title: str = Field(description="as tables and plots call it")
    overrides: list[str] = Field(description="the trainer's key=value")
    cost: float = Field(
        default=1,
        gt=0,
        description="compute of an optimizer step; a variant takes as many as make equal compute",
    )
    diagnose: bool = Field(default=False, description="also run diagnose.py on its checkpoints")


class Comparison(Settings):
    """Variants side by side; the first one is what the others are compared with."""

    tasks: list[str] = Field(min_length=1, description="names in `tasks`")
    variants: list[str] = Field(min_length=1, description="names in `variants`")
    curves: bool = Field(
        default=False, description="draw how runs develop, not only what they come to"
    )


@dataclass(frozen=True)
class Point:
    """One training run of the grid."""

    task: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Also the path of its folder."""
        return f"{self.task}/{self.variant}/seed{self.seed}"


class Grid(Settings):
    """The whole study."""

    seeds: list[int] = Field(min_length=1, description="of each point")
    tasks: dict[str, TaskSpec]
    variants: dict[str, Variant]
    comparisons: dict[str, Comparison]

    @model_validator(mode="after")
    def _names_exist(self) -> "Grid":
        for key, comparison in self.comparisons.items():
            unknown = {*comparison.tasks} - {*self.tasks} | (
                {*comparison.variants} - {*self.variants}
            )
            if unknown:
                raise ValueError(f"comparisons.{key}: there is no '{min(unknown)}'")
        return self

    def points(self) -> Iterator[Point]:
        """Every run that some comparison needs, each once; first seeds first."""
        wanted = dict.fromkeys(
            (task, variant)
            for comparison in self.comparisons.values()
            for task in comparison.tasks
            for variant in comparison.variants
        )
        for seed in self.seeds:
            for task, variant in wanted:
                yield Point(task, variant, seed)


def load_grid(path: Path) -> Grid:
    """Read a grid.

    Raises:
        UserError: what is wrong with it.
    """
    return validate(Grid, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
