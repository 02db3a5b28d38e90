"""The run's log: metrics as JSON lines, mirrored to Weights & Biases.

Only the main rank logs; the others get a log that does nothing.
"""

import json
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from common.files import atomic_write
from common.media import Media
from training.wandb_run import AXES, WandbConfig, WandbRun

METRICS_FILE = "metrics.jsonl"


def configure_logging(is_main: bool) -> None:
    """Text to stderr: everything from the main rank, only warnings from the others."""
    logging.basicConfig(level=logging.INFO if is_main else logging.WARNING, format="%(message)s")


class RunLog:
    """Writes `run_dir/metrics.jsonl` and a W&B run.

    Args:
        run_dir: the run's folder; must exist.
        config: W&B options.
        run_config: the resolved configuration, as shown in W&B.
        resume_step: optimizer step that the run goes on from; lines of later steps are dropped.
        found: metrics of the evaluation at that step, which are recorded anew.
        wandb_run_id: id of the W&B run to go on with, from the checkpoint.
        media_of: what an evaluation at a step has to show in W&B; None: nothing.
    """

    def __init__(
        self,
        run_dir: Path,
        config: WandbConfig,
        run_config: dict[str, Any],
        resume_step: int = 0,
        found: Mapping[str, float] | None = None,
        wandb_run_id: str | None = None,
        media_of: Callable[[int], Media] | None = None,
    ) -> None:
        self.path = run_dir / METRICS_FILE
        self._media_of = media_of
        before: list[dict[str, Any]] = []
        if self.path.exists():
            scored = (found or {}).keys() - set(AXES)
            before = _drop_lines_after(self.path, resume_step, scored)
        self._file = self.path.open("a", encoding="utf-8")
        name = run_dir.resolve().name
        self._wandb = WandbRun(run_dir, config, run_config, "train", name, wandb_run_id)
        self._mirror_missing(before)
        # The process that found them may have been lost before it could record them.
        if found is not None:
            self.write(resume_step, found)

    @property
    def wandb_run_id(self) -> str | None:
        return self._wandb.run_id

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one optimizer step."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        self._mirror(step, metrics)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Say in W&B's table of runs what the run has come to."""
        self._wandb.summarise(values)

    def attach(self, path: Path, kind: str) -> None:
        """Keep a file or folder with the run in W&B."""
        self._wandb.attach(path, kind)

    def close(self) -> None:
        self._file.close()
        self._wandb.finish()

    def _mirror(self, step: int, metrics: Mapping[str, float]) -> None:
        is_evaluation = any(name.startswith("eval/") for name in metrics)
        is_shown = is_evaluation and self._wandb.is_recording
        media = self._media_of(step) if self._media_of is not None and is_shown else {}
        self._wandb.record(step, metrics, media)

    def _mirror_missing(self, lines: Sequence[dict[str, Any]]) -> None:
        """Record what an earlier process has logged, unless W&B has it.

        A killed process takes with it what was not written yet. And what is recorded offline is a
        folder for each process, of which the newest is to hold the whole run: one of them is
        synced, over another.
        """
        if (next_step := self._wandb.next_step) is None:
            return
        for line in lines:
            if line["step"] >= next_step:
                self._mirror(line["step"], {k: v for k, v in line.items() if k != "step"})


class NoLog:
    """The log of a rank that does not log."""

    wandb_run_id: str | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def summarise(self, values: Mapping[str, Any]) -> None:
        pass

    def attach(self, path: Path, kind: str) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """What a run has recorded, a dictionary for each line; those that are damaged are left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return list(filter(None, map(_parsed, lines)))


def _drop_lines_after(path: Path, step: int, scored: Collection[str]) -> list[dict[str, Any]]:
    """Forget what a lost run recorded after the checkpoint it is resumed from; what is left.

    And at its step, where a line holds metrics that are `scored`.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    parsed = [_parsed(line) for line in lines]
    at = [metrics.get("step", math.inf) for metrics in parsed]
    is_kept = [
        place < step or (place == step and not metrics.keys() & scored)
        for place, metrics in zip(at, parsed, strict=True)
    ]
    atomic_write(path, "".join(line + "\n" for line in compress(lines, is_kept)))
    return list(compress(parsed, is_kept))


def _parsed(line: str) -> dict[str, Any]:
    """What a line records; nothing where a killed process or a power cut has left only a part."""
    try:
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    is_whole = isinstance(metrics, dict) and isinstance(metrics.get("step"), int)
    return metrics if is_whole else {}
