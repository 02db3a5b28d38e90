"""What a checkpoint does at each step, and with other steps, guidance and numbers of variants.

    python diagnose.py checkpoint=runs/compact-seed0
    python diagnose.py checkpoint=runs/compact-seed0 guidance_weights=[0.5,1,1.5,2] num_steps=12

The output folder receives diagnosis.json and diagnosis.png:

- accuracy, distance to solution and to the step's target, cells changed, and the advantage margin
  (DIS prop. 4.1) after each step, for fewer steps than trained and for more
- the guidance weight w (DIS eq. 5) swept
- on tasks, pass@1 and pass@2 against the number of variants that vote
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from common.distributed import Ranks, start_ranks
from common.errors import exit_cleanly
from common.files import atomic_directory
from common.progress import follow
from config.loading import load_config
from config.schema import DiagnoseConfig, TrainedAs
from dataset.tasks import Task
from evaluation.predict import Answers, EvalConfig, predict
from evaluation.predictions import Predictions, predictions_of
from evaluation.summary import summarise
from evaluation.test_set import ArcTestSet, open_test_set
from evaluation.voting import Scores, count_votes, score
from training.checkpoints import load_trained, stored_config
from training.run_folder import default_output_dir, find_checkpoint, new_output
from training.run_log import configure_logging

Metrics = dict[str, float]
Rows = list[Metrics]

log = logging.getLogger(__name__)


@exit_cleanly
def main() -> None:
    config = load_config("diagnose", DiagnoseConfig, __doc__ or "", sys.argv[1:])
    with start_ranks(config.device) as ranks:
        configure_logging(ranks.is_main)
        diagnose(config, ranks)


def diagnose(config: DiagnoseConfig, ranks: Ranks) -> None:
    """Take all measurements of one checkpoint and write them."""
    assert config.checkpoint is not None, "the schema requires one"
    path = find_checkpoint(config.checkpoint, "checkpoint")
    trained_as = stored_config(path, TrainedAs)
    split = config.eval.resolved(trained_as.data.canvas).split
    output_dir = config.output_dir or default_output_dir([path], "diagnosis", split)
    with new_output(output_dir, ranks):
        measure(config, path, trained_as, output_dir, ranks)


def measure(
    config: DiagnoseConfig, path: Path, trained_as: TrainedAs, output_dir: Path, ranks: Ranks
) -> None:
    """Take all measurements of a checkpoint, trained as configured, and write them."""
    data_path = config.data.resolved(trained_as, path)
    shared = config.eval.resolved(trained_as.data.canvas)
    test_set = open_test_set(data_path, shared.max_variants, shared.canvas, shared.split)
    trained, facts = load_trained(
        path,
        trained_as.arch,
        trained_as.supervision,
        test_set.fingerprint,
        test_set.puzzle_factors,
        shared.weights,
        config,
        ranks.device,
    )

    def ask(num_steps: int, weight: float) -> tuple[Answers | None, Metrics]:
        """Answers and metrics after so many steps and under guidance; all ranks must call it."""
        asked = EvalConfig(
            **dict(shared),
            num_supervision_steps=num_steps,
            guidance_weight=weight,
            diagnostics=True,
        )
        answers = predict(trained, test_set, asked, ranks)
        return answers, summarise(test_set, answers)

    num_steps = config.num_steps or 2 * trained.trained_steps
    _, followed = ask(num_steps, 1.0)
    answers, plain = ask(trained.trained_steps, 1.0)
    guidance: Rows = []
    for weight in follow(config.guidance_weights, "guidance", "weight", is_shown=ranks.is_main):
        metrics = plain if weight == 1.0 else ask(trained.trained_steps, weight)[1]
        guidance.append({"guidance_weight": weight, **last_metrics(metrics)})
    if answers is None:  # All but the main rank have only helped.
        return
    variants: Rows = []
    if isinstance(test_set, ArcTestSet):
        predictions = predictions_of(test_set, answers)
        variants = votes_by_variants(predictions, test_set.tasks, config.variant_draws)
    document = {
        "checkpoint": {**facts, "canvas": shared.canvas, **trained.sizes()},
        "split": shared.split,
        "trained_steps": trained.trained_steps,
        "steps": by_step(followed, num_steps),
        "guidance": guidance,
        "variants": variants,
    }
    with atomic_directory(output_dir) as folder:
        (folder / "diagnosis.json").write_text(json.dumps(document, indent=1))
        draw(document, folder / "diagnosis.png")
    log.info("Wrote %s", output_dir)


def last_metrics(metrics: Metrics) -> Metrics:
    """Those after the last step, without those after each."""
    return {name: value for name, value in metrics.items() if "_step" not in name}


def by_step(metrics: Metrics, num_steps: int) -> Rows:
    """A row for each step from the metrics named `NAME_step{s}`."""
    rows: Rows = []
    for s in range(1, num_steps + 1):
        ending = f"_step{s}"
        of_step = {k.removesuffix(ending): v for k, v in metrics.items() if k.endswith(ending)}
        rows.append({"step": s, **of_step})
    return rows


def votes_by_variants(predictions: Predictions, tasks: Sequence[Task], num_draws: int) -> Rows:
    """Mean and standard deviation of pass@1 and pass@2 over random choices of the variants."""
    variants = variants_by_task(predictions)
    most = max(len(of_task) for of_task in variants)
    counts = [*(2**power for power in range(20) if 2**power < most), most]
    rng = np.random.default_rng(0)
    rows: Rows = []
    for count in counts:
        scores = []
        for _ in range(num_draws if count < most else 1):
            chosen = [rng.choice(of_task, min(count, len(of_task)), False) for of_task in variants]
            kept = np.isin(predictions.identifier, np.concatenate(chosen))
            votes = count_votes(predictions.select(kept), tasks)
            scores.append(score(votes, tasks))
        rows.append({"variants": count} | spread([s for s in scores if s is not None]))
    return rows


def variants_by_task(predictions: Predictions) -> list[npt.NDArray[np.int32]]:
    """The identifiers of each task's variants; no two tasks share one."""
    identifiers, first = np.unique(predictions.identifier, return_index=True)
    _, task_of = np.unique(predictions.task_id[first], return_inverse=True)
    order = np.argsort(task_of, kind="stable")
    return np.split(identifiers[order], np.flatnonzero(np.diff(task_of[order])) + 1)


def spread(scores: Sequence[Scores]) -> Metrics:
    """Mean and standard deviation of the first places' scores; nothing without scores."""
    metrics: Metrics = {}
    for k in (1, 2) if scores else ():
        values = [of_draw.over_tasks[k] for of_draw in scores]
        metrics |= {f"pass@{k}": float(np.mean(values)), f"pass@{k}_std": float(np.std(values))}
    return metrics


PANELS = (
    ("steps", "step", "improvement steps", ("solved", "exact_accuracy", "cell_accuracy")),
    (
        "steps",
        "step",
        "improvement steps",
        ("distance_to_solution", "distance_to_target", "cells_changed"),
    ),
    ("steps", "step", "improvement steps", ("margin", "margin_positive")),
    (
        "guidance",
        "guidance_weight",
        "guidance weight w",
        ("pass@1", "pass@2", "solved", "exact_accuracy"),
    ),
    ("variants", "variants", "variants that vote", ("pass@1", "pass@2")),
)
"""Table, horizontal key, label and curves of each plot."""


def draw(document: dict[str, Any], path: Path) -> None:
    """Plot every table that has rows."""
    mpl.use("Agg")  # Only files are written: no display is needed.
    from matplotlib import pyplot

    panels = [panel for panel in PANELS if document[panel[0]]]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.2), layout="constrained"
    )
    for plot, (table, key, label, names) in zip(axes, panels, strict=True):
        rows = document[table]
        for name in [name for name in names if name in rows[0]]:
            values = [row[name] for row in rows]
            plot.plot([row[key] for row in rows], values, marker=".", label=name.replace("_", " "))
        if table == "steps":
            plot.axvline(document["trained_steps"], color="0.7", linestyle="--", zorder=0)
        if table == "variants":
            plot.set_xscale("log", base=2)
        plot.set_xlabel(label)
        plot.grid(alpha=0.3)
        plot.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
