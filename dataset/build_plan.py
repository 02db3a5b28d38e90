"""What is to be built: the options, the tasks, and where each of their pairs goes."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from common.errors import UserError, require_in_range
from common.files import require_new_directory
from dataset.canvas import CANVAS_SIDE
from dataset.tasks import Pair, Task, load_subset

Layout = Literal["full", "compact"]
"""Every example as canvases, or the original pairs and how each variant is made from them."""


@dataclass(frozen=True)
class BuildOptions:
    """The command line, as parsed and checked."""

    input_file_prefix: str
    output_dir: Path
    subsets: tuple[str, ...]
    test_set_names: tuple[str, ...]
    num_aug: int = 1000
    seed: int = 42
    puzzle_identifiers_start: int = 1
    canvas_side: int = CANVAS_SIDE
    task_ids: tuple[str, ...] = ()
    allow_leakage: bool = False
    layout: Layout = "full"
    workers: int = 1


@dataclass(frozen=True)
class Source:
    """A task and where its pairs go."""

    task: Task
    pairs: dict[str, tuple[Pair, ...]]
    """Split name -> pairs; the test split is empty for a task outside the test sets."""


@dataclass
class Summary:
    """What was built; printed, and kept in `build.json` beside the options."""

    tasks: int = 0
    test_tasks: int = 0
    test_inputs: int = 0
    variants: int = 0
    train_examples: int = 0
    test_examples: int = 0
    tasks_with_too_few_variants: int = 0
    tasks_left_out_as_too_large: int = 0
    tasks_met_again_in_a_later_subset: int = 0
    test_pairs_among_training_pairs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    hidden_test_sets: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """One line of text for each count."""
        for key, value in asdict(self).items():
            if isinstance(value, list):
                text = ", ".join(value) or "none"
            else:
                text = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
            yield f"  {key.replace('_', ' ')}: {text}"


def check_options(options: BuildOptions) -> None:
    """Raise UserError for a flag out of its range, or an output folder that exists."""
    flags = ("--test-set-name", "--test-set-name2")
    for flag, name in zip(flags, options.test_set_names, strict=False):
        if name not in options.subsets:
            raise UserError(f"{flag} {name} is not among --subsets {' '.join(options.subsets)}")
    limits = (
        ("--num-aug", options.num_aug, 0),
        ("--puzzle-identifiers-start", options.puzzle_identifiers_start, 1),
        ("--canvas-side", options.canvas_side, 1, CANVAS_SIDE),
        ("--workers", options.workers, 1),
        ("--seed", options.seed, 0),
    )
    for limit in limits:
        require_in_range(*limit)
    require_new_directory(options.output_dir, "--output-dir", "remove it or choose another folder")


def load_sources(options: BuildOptions, summary: Summary) -> list[Source]:
    """Tasks in the order of the subsets, each once, with the split of every pair decided.

    What is met on the way (too large, met again, hidden, leaked) is counted in `summary`.

    Raises:
        UserError: bad input files, a test task in another subset, or no test task left.
    """
    subsets = {
        name: load_subset(options.input_file_prefix, name)
        for name in tqdm(dict.fromkeys(options.subsets), desc="reading", unit="subset")
    }
    wanted = set(options.task_ids)
    if missing := wanted - {task.task_id for tasks in subsets.values() for task in tasks}:
        raise UserError(f"--task-ids: '{min(missing)}' is in none of the subsets")
    test_ids = {t.task_id for name in options.test_set_names for t in subsets.get(name, [])}
    sources: dict[str, Source] = {}
    # Test sets first: if leakage is allowed at all, a task stays what its test set makes of it.
    for name in sorted(subsets, key=lambda name: name not in options.test_set_names):
        is_test = name in options.test_set_names
        if is_test and any(pair.output is None for task in subsets[name] for pair in task.test):
            summary.hidden_test_sets.append(name)
        for task in subsets[name]:
            if wanted and task.task_id not in wanted:
                continue
            if not is_test and task.task_id in test_ids and not options.allow_leakage:
                raise UserError(
                    f"--subsets {name}: task '{task.task_id}' of {name} is also in the test set, "
                    f"training on it would leak test answers; leave {name} out, or pass "
                    f"--allow-leakage to train on everything in {name} but such tasks' test pairs"
                )
            if task.task_id in sources:
                summary.tasks_met_again_in_a_later_subset += 1
            elif task.max_side > options.canvas_side:
                summary.tasks_left_out_as_too_large += 1
            else:
                known_tests = tuple(pair for pair in task.test if pair.output is not None)
                train = task.train if is_test else task.train + known_tests
                sources[task.task_id] = Source(
                    task, {"train": train, "test": task.test if is_test else ()}
                )
    if not any(source.pairs["test"] for source in sources.values()):
        raise UserError("no test task is left: check --task-ids and --canvas-side")
    order = {task.task_id: i for i, task in enumerate(t for ts in subsets.values() for t in ts)}
    ordered = sorted(sources.values(), key=lambda source: order[source.task.task_id])
    summary.test_pairs_among_training_pairs = _count_leaked_pairs(ordered)
    return ordered


def _count_leaked_pairs(sources: list[Source]) -> int:
    """Test pairs that stand, under another task's name, among the training pairs."""

    def key(pair: Pair) -> tuple[object, ...]:
        assert pair.output is not None
        return (pair.input.shape, pair.input.tobytes(), pair.output.shape, pair.output.tobytes())

    training = {key(pair) for source in sources for pair in source.pairs["train"]}
    return sum(
        pair.output is not None and key(pair) in training
        for source in sources
        for pair in source.pairs["test"]
    )
