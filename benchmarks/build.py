r"""How long does it take to build a dataset, and how much memory?

    python -m benchmarks.build --input-file-prefix kaggle/combined/arc-agi \
        --subsets training evaluation concept --test-set-name evaluation

The full layout by one worker and by several, and the compact layout. Every case runs as its users
run it, as a process of its own, in turns with the others; its time is that of the whole process,
with its imports and with flushing everything to disk.

"Times one worker" compares seconds; "by CPU" those of CPU time of all of a case's processes, which
is less disturbed by what else the machine runs. "Largest process" is the peak resident memory of
the process or of its largest worker. "Identical files" counts those that are byte for byte as the
single worker wrote them, among those that must be: all of the full layout's; of the compact one's,
those that both layouts share.

Known figure: the TRM builder takes 303 s and 15.5 GB of memory for the line above with 1000
variants, on a two-core machine. For that line the table relates each case to the 303 s.
"""

import argparse
import hashlib
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, positive, run_python, write_results
from common.errors import CommandParser, exit_cleanly
from common.settings import expanded, expanded_path
from dataset.manifest import MANIFEST_FILE
from dataset.storage import BUILD_FILE

PUBLISHED_LINE = (["training", "evaluation", "concept"], 1000)
PUBLISHED_SECONDS = 303.0
OF_FULL_LAYOUT = ("inputs.npy", "labels.npy", BUILD_FILE, MANIFEST_FILE)
"""Endings of the files that are another or none in the compact layout."""

log = logging.getLogger(__name__)


@dataclass
class Case:
    """A builder and what was measured of it."""

    name: str
    command: tuple[str, ...]
    """Arguments of `python`, without those that all cases share."""
    usage: list[tuple[float, float, int]] = field(default_factory=list)
    """Seconds, CPU seconds and peak memory in bytes of each build."""
    examples: int = 0
    """Of the compact layout, those that it stands for."""
    digests: dict[str, str] = field(default_factory=dict)
    """Path in the dataset -> SHA-256."""
    bytes: int = 0

    def inspect(self, folder: Path) -> None:
        """Take down what was built."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        offsets = [np.load(path) for path in folder.glob("*/all__puzzle_indices.npy")]
        self.examples = sum(int(ends[-1]) for ends in offsets)
        self.digests = {str(path.relative_to(folder)): _sha256(path) for path in files}
        self.bytes = sum(path.stat().st_size for path in files)

    def identical_files(self, reference: "Case") -> str:
        """How many of the files that must be as the reference's are."""
        must = set(reference.digests)
        if "compact" in self.command:
            must -= {file for file in must if file.endswith(OF_FULL_LAYOUT)}
        equal = sum(self.digests.get(file) == reference.digests[file] for file in must)
        return f"{equal} of {len(must)}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(cases: list[Case], shared: list[str], repeats: int, folder: Path) -> None:
    """Build with every case, `repeats` times in turns, each dataset removed before the next."""

    def build(case: Case, *more: str) -> None:
        command = ["-m", "benchmarks.usage", *case.command, "--output-dir", folder, *shared, *more]
        case.usage.append(json.loads(run_python(*command)))

    build(cases[0], "--num-aug", "1")  # Warms up the system's cache of the program and the tasks.
    cases[0].usage.clear()
    shutil.rmtree(folder)
    for _ in range(repeats):
        for case in cases:
            build(case)
            log.info("%s: %.1f s, %.1f of CPU", case.name, *case.usage[-1][:2])
            if not case.digests:
                case.inspect(folder)
            shutil.rmtree(folder)


def rows(cases: list[Case], published: bool) -> list[dict[str, Any]]:
    """The table: every case beside the single worker."""
    reference = cases[0]
    medians = [np.median(case.usage, axis=0)[:2] for case in cases]
    table = []
    for case, (seconds, cpu_seconds) in zip(cases, medians, strict=True):
        row = {
            "builder": case.name,
            "examples": case.examples,
            "seconds": seconds,
            "examples/s": case.examples / seconds,
            "times one worker": medians[0][0] / seconds,
            "by CPU": medians[0][1] / cpu_seconds,
            "largest process, MB": max(peak for _, _, peak in case.usage) / 1e6,
            "on disk, MB": case.bytes / 1e6,
            "identical files": case.identical_files(reference) if case is not reference else None,
        }
        if published:
            row["times published (303 s)"] = PUBLISHED_SECONDS / seconds
        table.append(row)
    return table


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.build", description=__doc__)
    add = parser.add_argument
    add("--input-file-prefix", type=expanded, required=True, metavar="PREFIX",
        help="reads PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json")  # fmt: skip
    add("--subsets", nargs="+", default=PUBLISHED_LINE[0])
    add("--test-set-name", default="evaluation")
    add("--num-aug", type=int, default=PUBLISHED_LINE[1], help="variants per task")
    add("--workers", type=positive, help="of the case with several; default: the cores here")
    add("--repeats", type=positive, default=3, help="builds of each case; medians are reported")
    add("--output", type=expanded_path, default=Path("benchmark_output/build.json"),
        help="file of results; the datasets stand beside it until they are measured")  # fmt: skip
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
    shared = ["--input-file-prefix", prefix, "--test-set-name", arguments.test_set_name]
    shared += ["--num-aug", str(arguments.num_aug), "--subsets", *arguments.subsets]
    one = ("-m", "dataset.build_arc_dataset", "--workers", "1")
    several = (*one[:-1], str(workers))
    cases = [
        Case("full, 1 worker", one),
        Case(f"full, {workers} workers", several),
        Case("compact", (*several, "--layout", "compact")),
    ]
    beside = arguments.output.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=beside) as scratch:
        measure(cases, shared, arguments.repeats, Path(scratch) / "dataset")
    published = (arguments.subsets, arguments.num_aug) == PUBLISHED_LINE
    write_results(arguments.output, facts, rows(cases, published))


if __name__ == "__main__":
    main()
