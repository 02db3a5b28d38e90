"""What is to be built: the options, the tasks, and where each of their pairs goes."""

from collections.abc import Collection
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, computed_field, model_validator

from common.errors import UserError
from common.flags import NewFolder
from common.processes import num_cpus
from common.progress import follow
from common.settings import PathText, Settings
from dataset.augmentation import ORIGINAL, Variants
from dataset.canvas import CANVAS_SIDE
from dataset.storage import TEST_SETS_KEY
from dataset.task_files import load_subset
from dataset.tasks import LeftOut, Pair, Task, count_left_out

FOR_VARIANTS, FOR_ORIGINS, FOR_VALIDATION = range(3)
"""Independent streams of random numbers; of the first two each task has its own."""


class BuildOptions(Settings):
    """The command's flags; what the bytes do not depend on is excluded from `build.json`."""

    input_file_prefix: PathText = Field(
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
    # The next four are recorded only where they are used: other datasets keep their bytes.
    validation_tasks: int = Field(
        0,
        ge=0,
        exclude_if=lambda count: not count,
        description="tasks outside the test sets whose test pairs are held out of training too, as "
        "a validation split; drawn with the seed",
    )
    exclude_tasks_of: tuple[str, ...] = Field(
        (),
        exclude_if=lambda names: not names,
        title="SUBSET",
        description="leave out of every other subset the tasks whose id stands in one of these, "
        "which need not be among --subsets, e.g. evaluation with --subsets training2 evaluation2",
    )
    skip_invalid: bool = Field(
        False,
        exclude_if=lambda skips: not skips,
        description="leave out tasks that cannot be used, and count them by what is wrong",
    )
    hidden_solutions: Literal["omit", "filler"] = Field(
        "omit",
        exclude_if=lambda choice: choice == "omit",
        description="what test_puzzles.json holds in place of a hidden solution: omit: nothing; "
        "filler: the grid [[0]], as other code bases read it",
    )
    allow_leakage: bool = Field(
        False, description="accept subsets that contain tasks of the test set"
    )
    layout: Literal["full", "compact"] = Field(
        "full",
        description="full: every example as canvases, which other code bases read too; compact: "
        "the original pairs and a table of variants, a hundredth of the size",
    )
    workers: int = Field(
        default_factory=num_cpus,
        ge=0,
        exclude=True,
        description="processes; 0: none besides this one, for a few tasks",
    )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def test_set_names(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.test_set_name, self.test_set_name2)))

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that are written."""
        return ("train", "validation", "test") if self.validation_tasks else ("train", "test")

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
    """Split -> pairs; none where the task has no part in the split."""
    variants: Variants = ORIGINAL

    @property
    def num_variants(self) -> int:
        return len(self.variants.dihedrals)

    @property
    def num_examples(self) -> int:
        return self.num_variants * sum(map(len, self.pairs.values()))


def load_sources(options: BuildOptions) -> tuple[list[Source], dict[str, Any]]:
    """Tasks in the order of the subsets, each once, and what was met on the way, counted.

    A task that is met again stands where it was met last; a test set's version comes first.

    Raises:
        UserError: bad input files, a test task in another subset, no test task left, or fewer tasks
            than are to be held out for validation.
    """
    subsets, excluded, left_out = _read_subsets(options)
    test_sets = {
        task_id: name
        for name in options.test_set_names
        for task_id in (*(task.task_id for task in subsets[name]), *left_out[name])
    }
    wanted = set(options.task_ids)
    invalid = count_left_out(
        [
            error
            for name in options.subsets
            for task_id, error in left_out[name].items()
            if not wanted or task_id in wanted
        ]
    )
    sources: dict[str, Source] = {}
    too_large = met_again = 0
    for name, tasks in subsets.items():
        is_test = name in options.test_set_names
        for task in tasks:
            if wanted and task.task_id not in wanted:
                continue
            if not is_test and task.task_id in test_sets and not options.allow_leakage:
                raise _leakage(name, task.task_id, test_sets[task.task_id])
            if task.max_side > options.canvas_side:
                too_large += 1
                continue
            known = tuple(pair for pair in task.test if pair.output is not None)
            training, held_out = (task.train, task.test) if is_test else (task.train + known, ())
            source = Source(task, {"train": training, "validation": (), "test": held_out})
            if before := sources.pop(task.task_id, None):
                met_again += 1
                source = before if before.pairs["test"] or not is_test else source
            sources[task.task_id] = source
    if not any(source.pairs["test"] for source in sources.values()):
        raise UserError(
            "no test task is left: check --task-ids, --canvas-side and --exclude-tasks-of"
        )
    validation_ids = _hold_out(sources, sources.keys() - test_sets.keys(), options)
    met: dict[str, Any] = {
        "tasks_left_out_as_too_large": too_large,
        "tasks_met_again_in_a_later_subset": met_again,
        "test_pairs_among_training_pairs": _count_leaked_pairs(sources.values(), "test"),
        "hidden_test_sets": [
            name
            for name in subsets
            if name in options.test_set_names
            and any(pair.output is None for task in subsets[name] for pair in task.test)
        ],
    }
    if options.test_set_name2 is not None:
        met[TEST_SETS_KEY] = {
            name: [id_ for id_, s in sources.items() if s.pairs["test"] and test_sets[id_] == name]
            for name in options.test_set_names
        }
    if options.skip_invalid:
        met["tasks_left_out_as_invalid"] = invalid
    if options.exclude_tasks_of:
        met["tasks_left_out_as_excluded"] = excluded
    if validation_ids:
        leaked = _count_leaked_pairs(sources.values(), "validation")
        met["validation_pairs_among_training_pairs"] = leaked
        met["validation_task_ids"] = validation_ids
    return list(sources.values()), met


def _read_subsets(
    options: BuildOptions,
) -> tuple[dict[str, list[Task]], dict[str, int], dict[str, LeftOut]]:
    """Each subset without the tasks that are excluded; of which how many are, if any.

    And of each subset that is read the tasks that cannot be used, if these are to be left out.

    Raises:
        UserError: bad input files, or a task that is asked for is in none of the subsets.
    """
    named = dict.fromkeys(options.subsets + options.exclude_tasks_of)
    left_out: dict[str, LeftOut] = {name: {} for name in named}
    read = {
        name: load_subset(
            options.input_file_prefix,
            name,
            is_test=name in options.test_set_names,
            left_out=left_out[name] if options.skip_invalid else None,
        )
        for name in follow(named, "reading", "subset")
    }
    others = {task.task_id for name in options.exclude_tasks_of for task in read[name]}
    others.update(*(left_out[name] for name in options.exclude_tasks_of))
    wanted = set(options.task_ids)
    subsets: dict[str, list[Task]] = {}
    excluded: dict[str, int] = {}
    for name in options.subsets:
        out = set() if name in options.exclude_tasks_of else others
        subsets[name] = [task for task in read[name] if task.task_id not in out]
        found = {task.task_id for task in read[name]} & out
        if count := len(found & wanted if wanted else found):
            excluded[name] = count
    if missing := wanted - {task.task_id for tasks in subsets.values() for task in tasks}:
        reasons = ["is in none of the subsets"]
        if options.exclude_tasks_of:
            reasons.append(f"left out by --exclude-tasks-of {' '.join(options.exclude_tasks_of)}")
        if options.skip_invalid:
            reasons.append("cannot be used")
        raise UserError(f"--task-ids: '{min(missing)}' {', or '.join(reasons)}")
    return subsets, excluded, left_out


def _leakage(subset: str, task_id: str, test_set: str) -> UserError:
    return UserError(
        f"--subsets {subset}: task '{task_id}' of {subset} is also in the test set, training on it "
        f"would leak test answers; leave {subset} out, or pass --exclude-tasks-of {test_set} to "
        f"leave out such tasks, or --allow-leakage to train on everything in {subset} but such "
        f"tasks' test pairs"
    )


def _hold_out(
    sources: dict[str, Source], outside: Collection[str], options: BuildOptions
) -> list[str]:
    """Move the test pairs of some tasks from training to validation, and return their ids.

    They are drawn of those `outside` the test sets that have train pairs, and test pairs with known
    outputs: by the seed and the ids of these alone. Fewer are always among more.

    Raises:
        UserError: there are not so many.
    """
    eligible = sorted(
        task_id
        for task_id in outside
        if (task := sources[task_id].task).train
        and task.test
        and all(pair.output is not None for pair in task.test)
    )
    count = options.validation_tasks
    if count > len(eligible):
        raise UserError(
            f"--validation-tasks {count}: only {len(eligible)} of the tasks outside the test sets "
            f"have train pairs and known test outputs; hold out at most {len(eligible)} or add "
            f"subsets"
        )
    order = np.random.default_rng([options.seed, FOR_VALIDATION]).permutation(len(eligible))
    drawn = sorted(eligible[place] for place in order[:count])
    for task_id in drawn:
        task = sources[task_id].task
        pairs = {"train": task.train, "validation": task.test, "test": ()}
        sources[task_id] = sources[task_id]._replace(pairs=pairs)
    return drawn


def _count_leaked_pairs(sources: Collection[Source], held_out: str) -> int:
    """Pairs of a held-out split that stand, under another task's name, among those of training."""

    def content(split: str) -> list[tuple[object, ...]]:
        return [
            (p.input.shape, p.input.tobytes(), p.output.shape, p.output.tobytes())
            for source in sources
            for p in source.pairs[split]
            if p.output is not None
        ]

    training = set(content("train"))
    return sum(pair in training for pair in content(held_out))
