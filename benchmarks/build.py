r"""How long does it take to build a dataset, and how much memory?

    python -m benchmarks.build --input-file-prefix kaggle/combined/arc-agi \
        --subsets training evaluation concept --test-set-name evaluation

The first row is the plain way, see `benchmarks.plain_builder`, on every k-th task. Then come the
full layout by one worker and by several, and the compact layout. Every case runs as its users run
it, as a process of its own, in turns with the others; its time is that of the whole process, with
its imports and, for the builder, with flushing everything to disk, which the plain one does not do.

"Times plain" compares examples per second; "by CPU" the same per second of CPU time of all of a
case's processes, which is less disturbed by what else the machine runs. "Largest process" is the
peak resident memory of the process or of its largest worker. "Identical files" counts those that
are byte for byte as the single worker wrote them, among those that must be: all of the full
layout's; of the compact one's, those that both layouts share.

Known figure: the TRM builder takes 303 s and 15.5 GB of memory for the line above with 1000
variants, on a two-core machine. For that line the table relates each case to the 303 s.
"""

import argparse
import hashlib
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Results, machine, positive
from common.errors import CommandParser, UserError, exit_cleanly
from dataset.storage import BUILD_FILE
from dataset.tasks import load_subset

REPOSITORY = Path(__file__).resolve().parent.parent
PUBLISHED_LINE = (("training", "evaluation", "concept"), 1000)
PUBLISHED_SECONDS = 303.0
COMPACT = "compact"
OF_FULL_LAYOUT = ("inputs.npy", "labels.npy", BUILD_FILE)
"""Endings of the files that are another or none in the compact layout."""

# Peak memory includes that of the process that started the measured one, before the new program
# takes its place: so the starter must be small, unlike this process with its torch.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
seconds, cpu_seconds = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
print(json.dumps([seconds, cpu_seconds, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
RSS_UNIT = 1 if sys.platform == "darwin" else 1024

log = logging.getLogger(__name__)


@dataclass
class Case:
    """A builder and what was measured of it."""

    name: str
    command: tuple[str, ...]
    """Arguments of `python`, without those that all cases share."""
    tasks: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    largest_process: int = 0
    """Bytes."""
    examples: int = 0
    """Of the compact layout, those that it stands for."""
    bytes: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    """Path in the dataset -> SHA-256."""

    def build(self, shared: list[str], folder: Path) -> None:
        """Run the command as a process of its own; `folder` must not exist."""
        command = [sys.executable, *self.command, "--output-dir", str(folder), *shared]
        process = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *command],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, cpu_seconds, peak, exit_code = json.loads(process.stdout)
        if exit_code:
            last = process.stderr.strip().splitlines()[-1:] or [f"exit code {exit_code}"]
            raise UserError(f"{self.name}: {last[0].removeprefix('error: ')}")
        self.seconds.append(seconds)
        self.cpu_seconds.append(cpu_seconds)
        self.largest_process = max(self.largest_process, peak * RSS_UNIT)

    def inspect(self, folder: Path) -> None:
        """Take down what was built."""
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        self.bytes = sum(file.stat().st_size for file in files)
        self.digests = {str(file.relative_to(folder)): _sha256(file) for file in files}
        self.examples = sum(
            int(np.load(folder / split / "all__puzzle_indices.npy")[-1])
            for split in ("train", "test")
        )

    @property
    def rate(self) -> float:
        """Examples a second."""
        return self.examples / statistics.median(self.seconds)

    @property
    def rate_by_cpu(self) -> float:
        """Examples a second of CPU time."""
        return self.examples / statistics.median(self.cpu_seconds)

    def identical_files(self, reference: "Case") -> str:
        """How many of the files that must be as the reference's are."""
        must = set(reference.digests)
        if self.name == COMPACT:
            must -= {file for file in must if file.endswith(OF_FULL_LAYOUT)}
        equal = sum(self.digests.get(file) == reference.digests[file] for file in must)
        return f"{equal} of {len(must)}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(cases: list[Case], shared: list[str], repeats: int, work_dir: Path) -> None:
    """Build with every case, `repeats` times in turns, each dataset removed before the next."""
    folder = work_dir / "dataset"
    for case in cases[:2]:  # Warms up the system's cache of both programs and the tasks.
        Case(case.name, case.command, case.tasks).build([*shared, "--num-aug", "1"], folder)
        shutil.rmtree(folder)
    for repeat in range(repeats):
        for case in cases:
            case.build(shared, folder)
            log.info("%s: %.1f s, %.1f of CPU", case.name, case.seconds[-1], case.cpu_seconds[-1])
            if repeat == 0:
                case.inspect(folder)
            shutil.rmtree(folder)


def rows(cases: list[Case], published: bool) -> list[dict[str, Any]]:
    """The table: every case beside the plain one, and beside the single worker."""
    plain, reference = cases[:2]
    table = []
    for case in cases:
        row = {
            "builder": case.name,
            "tasks": case.tasks,
            "examples": case.examples,
            "seconds": statistics.median(case.seconds),
            "examples/s": case.rate,
            "times plain": case.rate / plain.rate,
            "times plain, by CPU": case.rate_by_cpu / plain.rate_by_cpu,
            "largest process, MB": case.largest_process / 1e6,
            "on disk, MB": case.bytes / 1e6,
            "identical files": None
            if case in (plain, reference)
            else case.identical_files(reference),
        }
        if published:  # The plain one's time is extrapolated to all examples.
            row["times published (303 s)"] = PUBLISHED_SECONDS * case.rate / reference.examples
        table.append(row)
    return table


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.build", description=__doc__)
    add = parser.add_argument
    add("--input-file-prefix", required=True, metavar="PREFIX",
        help="reads PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json")  # fmt: skip
    add("--subsets", nargs="+", default=list(PUBLISHED_LINE[0]))
    add("--test-set-name", default="evaluation")
    add("--num-aug", type=int, default=PUBLISHED_LINE[1], help="variants per task")
    add("--workers", type=positive, help="of the case with several; default: the cores here")
    add("--plain-tasks", type=positive, default=20, help="tasks that the plain builder builds")
    add("--repeats", type=positive, default=3, help="builds of each case; medians are reported")
    add("--work-dir", type=Path, help="for the datasets, which are removed; default: a temporary "
        "folder beside the output")  # fmt: skip
    add("--output", type=Path, default=Path("benchmark_output/build.json"))
    add("--tiny", action="store_true", help="8 variants, once: shows that it works, in seconds")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.num_aug, arguments.repeats = 8, 1
    return arguments


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    facts = machine(torch.device("cpu"))
    workers = arguments.workers or facts["cores"] or 1
    prefix = str(Path(arguments.input_file_prefix).absolute())
    tasks = sum(len(load_subset(prefix, subset)) for subset in arguments.subsets)
    every = max(tasks // arguments.plain_tasks, 1)
    shared = ["--input-file-prefix", prefix, "--test-set-name", arguments.test_set_name]
    shared += ["--num-aug", str(arguments.num_aug), "--subsets", *arguments.subsets]
    plain = ("-m", "benchmarks.plain_builder", "--every", str(every))
    one = ("-m", "dataset.build_arc_dataset", "--workers", "1")
    several = (*one[:-1], str(workers))
    cases = [
        Case("plain", plain, len(range(every // 2, tasks, every))),
        Case("full, 1 worker", one, tasks),
        Case(f"full, {workers} workers", several, tasks),
        Case(COMPACT, (*several, "--layout", "compact"), tasks),
    ]
    beside = arguments.work_dir or arguments.output.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=beside) as work_dir:
        measure(cases, shared, arguments.repeats, Path(work_dir))
    Results(
        question="How long does it take to build a dataset, and how much memory?",
        command=f"python -m benchmarks.build {' '.join(sys.argv[1:])}",
        machine=facts,
        rows=rows(cases, (tuple(arguments.subsets), arguments.num_aug) == PUBLISHED_LINE),
    ).write(arguments.output)


if __name__ == "__main__":
    main()
