"""What is to be built: the options, the tasks, and where each of their pairs goes."""

from collections.abc import Collection
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, computed_field, model_validator
from tqdm import tqdm

from common.errors import UserError
from common.flags import NewFolder
from common.processes import num_cpus
from common.settings import Settings
from dataset.augmentation import ORIGINAL, Variants
from dataset.canvas import CANVAS_SIDE
from dataset.tasks import Pair, Task, load_subset


class BuildOptions(Settings):
    """The command's flags; what the bytes do not depend on is excluded from `build.json`."""

    input_file_prefix: str = Field(
        exclude=True,
        title="PREFIX",
        description="reads PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json",
    )
    output_dir: NewFolder = Field(exclude=True)
    subsets: tuple[str, ...] = Field(description="subsets to build from, e.g. training concept")
    test_set_name: str = Field(exclude=True, description="the subset whose test pairs are held out")
    test_set_name2: str | None = Field(None, exclude=True, description="a second held-out subset")
    num_aug: int = Field(1000, ge=0, description="variants per task besides the original")
    seed: int = Field(42, ge=0, description="same seed, same bytes")
    puzzle_identifiers_start: int = Field(1, ge=1, description="identifier of the first puzzle")
    canvas_side: int = Field(
        CANVAS_SIDE,
        ge=1,
        le=CANVAS_SIDE,
        description="side of the canvas in cells; tasks with larger grids are left out",
    )
    task_ids: tuple[str, ...] = Field((), description="build only these tasks")
    allow_leakage: bool = Field(
        False, description="accept subsets that contain tasks of the test set"
    )
    layout: Literal["full", "compact"] = Field(
        "full",
        description="full: every example as canvases, which other code bases read too; compact: "
        "the original pairs and a table of variants, a hundredth of the size",
    )
    workers: int = Field(default_factory=num_cpus, ge=1, exclude=True, description="processes")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def test_set_names(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.test_set_name, self.test_set_name2)))

    @model_validator(mode="after")
    def _test_sets_are_built(self) -> Self:
        for flag, name in zip(
            ("--test-set-name", "--test-set-name2"), self.test_set_names, strict=False
        ):
            if name not in self.subsets:
                raise ValueError(f"{flag} {name} is not among --subsets {' '.join(self.subsets)}")
        return self


class Source(NamedTuple):
    """A task, where its pairs go, and the variants that were drawn of it."""

    task: Task
    pairs: dict[str, tuple[Pair, ...]]
    """Split -> pairs; the test split has none of a task outside the test sets."""
    variants: Variants = ORIGINAL

    @property
    def num_variants(self) -> int:
        return len(self.variants.dihedrals)


def load_sources(options: BuildOptions) -> tuple[list[Source], dict[str, Any]]:
    """Tasks in the order of the subsets, each once, and what was met on the way, counted.

    A task that is met again stands where it was met last; a test set's version comes first.

    Raises:
        UserError: bad input files, a test task in another subset, or no test task left.
    """
    subsets = {
        name: load_subset(options.input_file_prefix, name)
        for name in tqdm(options.subsets, desc="reading", unit="subset")
    }
    wanted = set(options.task_ids)
    if missing := wanted - {task.task_id for tasks in subsets.values() for task in tasks}:
        raise UserError(f"--task-ids: '{min(missing)}' is in none of the subsets")
    test_ids = {task.task_id for name in options.test_set_names for task in subsets[name]}
    sources: dict[str, Source] = {}
    too_large = met_again = 0
    for name, tasks in subsets.items():
        is_test = name in options.test_set_names
        for task in tasks:
            if wanted and task.task_id not in wanted:
                continue
            if not is_test and task.task_id in test_ids and not options.allow_leakage:
                raise UserError(
                    f"--subsets {name}: task '{task.task_id}' of {name} is also in the test set, "
                    f"training on it would leak test answers; leave {name} out, or pass "
                    f"--allow-leakage to train on everything in {name} but such tasks' test pairs"
                )
            if task.max_side > options.canvas_side:
                too_large += 1
                continue
            known = tuple(pair for pair in task.test if pair.output is not None)
            source = Source(
                task,
                {"train": task.train, "test": task.test}
                if is_test
                else {"train": task.train + known, "test": ()},
            )
            if before := sources.pop(task.task_id, None):
                met_again += 1
                source = before if before.pairs["test"] or not is_test else source
            sources[task.task_id] = source
    if not any(source.pairs["test"] for source in sources.values()):
        raise UserError("no test task is left: check --task-ids and --canvas-side")
    return list(sources.values()), {
        "tasks_left_out_as_too_large": too_large,
        "tasks_met_again_in_a_later_subset": met_again,
        "test_pairs_among_training_pairs": _count_leaked_pairs(sources.values()),
        "hidden_test_sets": [
            name
            for name in subsets
            if name in options.test_set_names
            and any(pair.output is None for task in subsets[name] for pair in task.test)
        ],
    }


def _count_leaked_pairs(sources: Collection[Source]) -> int:
    """Test pairs that stand, under another task's name, among the training pairs."""

    def content(split: str) -> list[tuple[object, ...]]:
        return [
            (p.input.shape, p.input.tobytes(), p.output.shape, p.output.tobytes())
            for source in sources
            for p in source.pairs[split]
            if p.output is not None
        ]

    training = set(content("train"))
    return sum(pair in training for pair in content("test"))
