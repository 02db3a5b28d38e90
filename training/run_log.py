"""The run's log: metrics as JSON lines, mirrored to Weights & Biases.

W&B never stops a run: without a login or a network it records offline, and what it raises is
logged once. It is imported only when a run is logged with it, so a machine without it can train.
Only the main rank logs; the others get a log that does nothing.
"""

import importlib
import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Collection, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from common.files import atomic_write
from common.settings import Settings
from training.scores import Score

METRICS_FILE = "metrics.jsonl"
WANDB_TIMEOUT_SECONDS = 30

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class WandbConfig(Settings):
    """Where the metrics go besides the run folder."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto",
        description="auto: what WANDB_MODE says, or else online if logged in, else offline (sync "
        "later with `wandb sync`)",
    )
    project: str = Field("deep-improvement-supervision", description="W&B project")
    run_name: str | None = Field(None, description="W&B run name; null: the run folder's name")


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
        score: what the evaluation at that step found, which is recorded anew.
        wandb_run_id: id of the W&B run to go on with, from the checkpoint.
    """

    def __init__(
        self,
        run_dir: Path,
        config: WandbConfig,
        run_config: dict[str, Any],
        resume_step: int = 0,
        score: Score | None = None,
        wandb_run_id: str | None = None,
    ) -> None:
        self.path = run_dir / METRICS_FILE
        before: list[dict[str, Any]] = []
        if self.path.exists():
            scored = set() if score is None else score.metrics.keys()
            before = _drop_lines_after(self.path, resume_step, scored)
        self._file = self.path.open("a", encoding="utf-8")
        self.wandb_run_id = wandb_run_id
        self._run = self._start_wandb(run_dir, config, run_config)
        self._mirror_missing(before)
        # The process that found it may have been lost before it could record it.
        if score is not None:
            self.write(resume_step, score.metrics)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of one optimizer step."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        self._mirror(step, metrics)

    def _mirror(self, step: int, metrics: dict[str, float]) -> None:
        run = self._run
        if run is not None and not _attempt("record", lambda: _record(run, step, metrics)):
            self._run = None

    def _mirror_missing(self, lines: Sequence[dict[str, Any]]) -> None:
        """Record what an earlier process has logged, unless W&B has it.

        A killed process takes with it what was not written yet. And what is recorded offline is a
        folder for each process, of which the newest is to hold the whole run: one of them is
        synced, over another.
        """
        run = self._run
        if run is None or (next_step := _attempt("tell its step", lambda: int(run.step))) is None:
            return
        for line in lines:
            if line["step"] >= next_step:
                self._mirror(line["step"], {k: v for k, v in line.items() if k != "step"})

    def close(self) -> None:
        self._file.close()
        if self._run is not None:
            _attempt("finish", self._run.finish)

    def _start_wandb(self, run_dir: Path, config: WandbConfig, run_config: dict[str, Any]) -> Any:
        mode = config.mode if config.mode != "auto" else _mode_of_environment()
        if mode == "disabled":
            return None
        wandb = _attempt("be imported", lambda: importlib.import_module("wandb"))
        if wandb is None:
            return None

        def start(mode: Literal["online", "offline"], run_id: str) -> Any:
            settings = wandb.Settings(
                silent=True,
                console="off",
                init_timeout=WANDB_TIMEOUT_SECONDS,
                finish_timeout=WANDB_TIMEOUT_SECONDS,
            )
            return wandb.init(
                dir=run_dir,
                mode=mode,
                project=config.project,
                name=config.run_name or run_dir.resolve().name,
                id=run_id,
                resume="allow" if mode == "online" else None,
                config=run_config,
                settings=settings,
            )

        run_id = self.wandb_run_id = self.wandb_run_id or secrets.token_hex(4)
        if mode != "offline":
            # Looks for credentials as W&B does, without the network and without asking for them;
            # going online without any would make W&B ask.
            if _attempt("log in", lambda: wandb.login(prompt=False, verify=False)):
                run = _attempt("start online", lambda: start("online", run_id))
                if run is not None:
                    return run
                # The attempt that failed still holds its id. The checkpoints keep it, so that the
                # run is found again when it is next resumed with a network.
                run_id = secrets.token_hex(4)
            elif mode == "online":
                log.warning("wandb.mode=online, but there is no login: recording offline instead.")
        return _attempt("start offline", lambda: start("offline", run_id))


def _mode_of_environment() -> str:
    """What `wandb.mode=auto` means: what W&B's variable says, or else to look for a login."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    return mode if mode in ("online", "offline", "disabled") else "auto"


def _record(run: Any, step: int, metrics: dict[str, float]) -> bool:
    run.log(metrics, step=step)
    return True


def _attempt(what: str, call: Callable[[], Result]) -> Result | None:
    """The result of a call of W&B; None if it fails, which is said and not held against the run."""
    try:
        return call()
    except Exception as error:
        # Not only wandb.Error: it also raises types that it does not publish, and whatever it is,
        # training matters more.
        log.warning("W&B could not %s (%s); training goes on.", what, str(error).split("\n")[0])
        return None


class NoLog:
    """The log of a rank that does not log."""

    wandb_run_id: str | None = None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


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
