"""What is kept of a record, what its numbers are known to, and the table of all.

records/rows/0001.json   the row, the score of every task, and the log: configuration, metrics
                         of training and of the evaluation, versions
records/README.md        the rules, and the table, which `write_table` makes from the rows
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from common.files import atomic_write
from common.json_files import read_object
from common.settings import Settings, validate
from evaluation.uncertainty import mean_share

RESAMPLES: Final = 10_000
"""Of the tasks, for a test."""

TRACKS: Final = {"tiny": 300_000, "small": 1_200_000, "medium": 8_000_000, "large": 20_000_000}
"""Most parameters of a network in a track, its puzzle embeddings included."""


class Record(Settings):
    """A row, and what belongs to it."""

    date: str
    track: str
    seed: int
    pass_at_1: dict[str, float] = Field(description="task -> share of its test inputs solved")
    pass_at_2: dict[str, float]
    minutes: float = Field(description="of the whole command, from its start to the score")
    training_minutes: float
    device: str
    parameters: int = Field(description="puzzle embeddings included")
    network_parameters: int
    examples: int = Field(description="that took their last supervision step")
    data: str
    data_sha256: str
    commit: str
    log: dict[str, Any]

    @property
    def score(self) -> float:
        """Mean pass@2 over tasks."""
        return float(np.mean(list(self.pass_at_2.values())))


def paired_test(scores: dict[str, float], before: dict[str, float]) -> float:
    """How likely the mean would rise this much or more if neither were better: one-sided p.

    By flipping, at random, which of the two a task's scores belong to. Both must be of the same
    tasks. A claim has a direction, and tasks weigh by how much of them changed, unlike in
    `evaluation.uncertainty.sign_test`.
    """
    assert scores.keys() == before.keys(), "of the same tasks"
    differences = np.array([scores[task] - before[task] for task in scores])
    rng = np.random.default_rng(0)
    flips = rng.choice([-1.0, 1.0], (RESAMPLES, len(differences)))
    # The observed one counts as a flip, so that p is never 0.
    as_large = (flips @ differences >= differences.sum() - 1e-9).sum()
    return float((1 + as_large) / (1 + RESAMPLES))


def read_rows(folder: Path) -> dict[int, Record]:
    """All rows by number."""
    return {
        int(path.stem): validate(Record, read_object(path, "restore it"), str(path))
        for path in sorted(folder.glob("*.json"))
    }


def add_row(folder: Path, record: Record) -> int:
    """Write a row under the next number, which is returned."""
    number = max(read_rows(folder), default=0) + 1
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{number:04}.json", json.dumps(record.model_dump(mode="json"), indent=1))
    return number


def write_table(page: Path, rows: dict[int, Record]) -> None:
    """Put the table between the page's markers."""
    text = page.read_text(encoding="utf-8")
    pattern = r"(<!-- begin table -->\n).*(<!-- end table -->)"
    table = table_of(rows)
    filled = re.sub(pattern, lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
    atomic_write(page, filled)


def table_of(rows: dict[int, Record]) -> str:
    """Markdown: by track, in the order they were made; p is against the best row before."""
    if not rows:
        return "No record has been made yet."
    head = ["#", "date", "track", "pass@2 (95%)", "pass@1", "minutes", "of training", "device",
            "parameters (network)", "examples", "examples/s", "data", "seed", "commit",
            "p, against"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for track in TRACKS:
        best: int | None = None
        for number, row in rows.items():
            if row.track != track:
                continue
            mean = mean_share([*row.pass_at_2.values()])
            against = ""
            if best is not None and rows[best].pass_at_2.keys() == row.pass_at_2.keys():
                p = paired_test(row.pass_at_2, rows[best].pass_at_2)
                against = f"{p:.3f}, #{best}"
            lines.append([
                str(number), row.date, track, f"{row.score:.3f} ({mean.low:.3f}–{mean.high:.3f})",
                f"{np.mean(list(row.pass_at_1.values())):.3f}", f"{row.minutes:.1f}",
                f"{row.training_minutes:.1f}", row.device,
                f"{row.parameters:,} ({row.network_parameters:,})", f"{row.examples:,}",
                f"{row.examples / row.training_minutes / 60:,.0f}",
                f"{row.data}, sha256 {row.data_sha256[:12]}", str(row.seed),
                row.commit[:10] + row.commit[40:],
                against,
            ])  # fmt: skip
            if best is None or row.score > rows[best].score:
                best = number
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
