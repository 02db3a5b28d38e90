"""The Weights & Biases run: what it is told, and that it never stops training.

Without a login or a network it records offline, and what it raises is logged once. It is imported
only when a run is recorded with it, so a machine without it can train. `docs/dashboard.md` says
what each chart shows.
"""

import importlib
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image
from pydantic import Field

from common.media import Media, Table
from common.settings import Settings
from training.metrics import is_of_the_machine

TIMEOUT_SECONDS = 30

AXES = ("step", "examples", "minutes")
"""What charts are drawn over: each line of metrics holds all three."""
CHARTS = {
    "eval*": "examples",
    "train*": "step",
    "speed/*": "minutes",
}
"""Names of metrics -> the axis that makes runs comparable in them; W&B lets one choose another."""
BEST = {"max": ("eval/pass@2", "eval/solved", "eval/exact_accuracy"), "min": ("eval/loss",)}
"""Of these the run's table shows the best value and not the last."""

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
    group: str | None = Field(
        None, description="W&B group; null: the name without its seed, so that seeds fold together"
    )


class TrainWandbConfig(WandbConfig):
    """Of the trainer."""

    save_checkpoint: bool = Field(
        False,
        description="at the end of the run keep its best checkpoint, or without scores the newest, "
        "as an artifact in W&B",
    )


class WandbRun:
    """A run of W&B, or none.

    Args:
        folder: where it records.
        config: options.
        run_config: what the run is, as shown beside its charts.
        job_type: "train" or "evaluate".
        default_name: where `config` has none.
        run_id: of the run to go on with; None for a new one.
    """

    def __init__(
        self,
        folder: Path,
        config: WandbConfig,
        run_config: Mapping[str, Any],
        job_type: str,
        default_name: str,
        run_id: str | None = None,
    ) -> None:
        self.run_id = run_id
        """To find the run again; None: there never was one."""
        self._wandb: Any = None
        about = {
            "dir": folder,
            "project": config.project,
            "name": config.run_name or default_name,
            "group": config.group or without_seed(default_name),
            "job_type": job_type,
            "config": dict(run_config),
        }
        self._run = self._start(config.mode, about)
        self._do("describe its charts", self._define_metrics)

    @property
    def is_recording(self) -> bool:
        """Whether anything becomes of what is recorded."""
        return self._run is not None

    @property
    def next_step(self) -> int | None:
        """The first that it has not recorded yet; None: it records nothing."""
        return self._do("tell its step", lambda run: int(run.step))

    def record(self, step: int, metrics: Mapping[str, float], media: Media) -> None:
        """Record what belongs to an optimizer step."""
        values = {panel_of(name): value for name, value in metrics.items()}

        def record(run: Any) -> None:
            shown = {name: self._as_wandb(item) for name, item in media.items()}
            run.log({"step": step, **values, **shown}, step=step)

        self._do("record", record)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Set columns of the table of runs."""
        self._do("summarise", lambda run: run.summary.update(dict(values)))

    def attach(self, path: Path, kind: str) -> None:
        """Keep a file or folder with the run, as an artifact named by the run and its `kind`."""

        def keep(run: Any) -> None:
            artifact = self._wandb.Artifact(f"{kind}-{run.id}", type=kind)
            (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
            run.log_artifact(artifact)

        self._do(f"keep {path.name}", keep)

    def finish(self) -> None:
        self._do("finish", lambda run: run.finish())

    def _do(self, what: str, call: Callable[[Any], Result]) -> Result | None:
        """Call the run, which is given up if it fails."""
        if self._run is None:
            return None
        try:
            return call(self._run)
        except Exception as error:
            _complain(what, error)
            self._run = None
            return None

    def _as_wandb(self, item: Table | list[Image.Image]) -> Any:
        def picture(image: Image.Image) -> Any:
            return self._wandb.Image(image, caption=image.info.get("caption"))

        if isinstance(item, list):
            return [picture(image) for image in item]
        rows = [[picture(c) if isinstance(c, Image.Image) else c for c in row] for row in item.rows]
        return self._wandb.Table(columns=list(item.columns), data=rows)

    @staticmethod
    def _define_metrics(run: Any) -> None:
        for axis in AXES:
            run.define_metric(axis, hidden=True)
        for pattern, axis in CHARTS.items():
            run.define_metric(pattern, step_metric=axis)
        for summary, names in BEST.items():
            for metric in names:
                run.define_metric(metric, step_metric="examples", summary=summary)

    def _start(self, mode: str, about: Mapping[str, Any]) -> Any:
        mode = mode_of_environment() if mode == "auto" else mode
        if mode == "disabled":
            return None
        wandb = self._wandb = _attempt("be imported", lambda: importlib.import_module("wandb"))
        if wandb is None:
            return None

        def start(mode: Literal["online", "offline"], run_id: str) -> Any:
            settings = wandb.Settings(
                silent=True,
                console="off",
                init_timeout=TIMEOUT_SECONDS,
                finish_timeout=TIMEOUT_SECONDS,
            )
            return wandb.init(
                mode=mode,
                id=run_id,
                resume="allow" if mode == "online" else None,
                settings=settings,
                **about,
            )

        # Of an agent of a sweep the run has an id already.
        run_id = self.run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self.run_id = run_id
        if mode != "offline":
            if has_login(wandb):  # Going online without one would make W&B ask.
                run = _attempt("start online", lambda: start("online", run_id))
                if run is not None:
                    return run
                # The attempt that failed still holds its id. The checkpoints keep it, so that the
                # run is found again when it is next resumed with a network.
                run_id = secrets.token_hex(4)
            elif mode == "online":
                log.warning("wandb.mode=online, but there is no login: recording offline instead.")
        return _attempt("start offline", lambda: start("offline", run_id))


def panel_of(name: str) -> str:
    """Where W&B draws a metric: it makes a section of what stands before the slash.

    The steps of one metric stand side by side, and what the machine does apart from learning.
    """
    of_step = re.fullmatch(r"(\w+)/(.+)_step(\d+)", name)
    if of_step:
        half, metric, step = of_step.groups()
        return f"{half} {metric} by step/{step}"
    if name not in AXES and is_of_the_machine(name):
        return f"speed/{name.rpartition('/')[2]}"
    return name


def without_seed(name: str) -> str:
    """The name of a run without what tells its seed, e.g. "compact" of "compact-seed0"."""
    return re.sub(r"[-_]?seed[-_=]?\d+", "", name) or name


def has_login(wandb: Any) -> bool:
    """Whether W&B finds credentials where it looks for them: without the network, or asking."""
    return bool(_attempt("log in", lambda: wandb.login(prompt=False, verify=False)))


def mode_of_environment() -> str:
    """What `wandb.mode=auto` means: what W&B's variable says, or else to look for a login."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    return mode if mode in ("online", "offline", "disabled") else "auto"


def _attempt(what: str, call: Callable[[], Result]) -> Result | None:
    """The result of a call of W&B; None if it fails."""
    try:
        return call()
    except Exception as error:
        _complain(what, error)
        return None


def _complain(what: str, error: Exception) -> None:
    """Say what failed; it is not held against the run.

    Not only wandb.Error: W&B also raises types that it does not publish, and whatever it is,
    training matters more.
    """
    log.warning("W&B could not %s (%s); all else goes on.", what, str(error).split("\n")[0])
