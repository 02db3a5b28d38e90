r"""Do two checkouts compute the same? Datasets, training and predictions, compared bit for bit.

    git clone . ../before && git -C ../before checkout REVISION
    python -m benchmarks.golden --before ../before

For a change that should change nothing, such as moving code. Both checkouts run the commands that
users type, on this machine, on the CPU, in fp32 and on one thread: they build the demo's dataset
and 8-queens, train for 60 optimizer steps with each scheme, and predict with the last checkpoint.
What is compared are the files that these commands write. Nothing is recorded: another processor
rounds otherwise, so only two runs on one machine can be equal.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.measure import REPOSITORY, run_python
from common.errors import CommandParser, exit_cleanly
from config.schema import DemoConfig

STEPS = 60
TRM = ("supervision=trm", "arch.halting_head=true", "arch.step_embedding=false")
RUNS: dict[str, tuple[str, ...]] = {
    "arc dis": ("supervision=dis",),
    "arc dual": ("supervision=dual",),
    "arc trm": TRM,
    "nqueens dis": ("supervision=dis",),
}
"""Dataset and scheme -> the trainer's overrides."""

log = logging.getLogger(__name__)


def run_checkout(checkout: Path, folder: Path) -> None:
    """Build, train and predict with the code of `checkout`; everything goes into `folder`."""
    run = partial(run_python, checkout=checkout, OMP_NUM_THREADS="1", PYTHONPATH=str(checkout))
    demo = DemoConfig()
    prefix, data = folder / "kaggle" / "arc", folder / "data"
    run("-m", "dataset.import_arc", "--output-prefix", prefix, "--subsets", "training")
    run(
        "-m", "dataset.build_arc_dataset", "--input-file-prefix", prefix,
        "--output-dir", data / "arc", "--subsets", "training", "--test-set-name", "training",
        "--num-aug", demo.num_aug, "--canvas-side", demo.canvas_side, "--task-ids", *demo.task_ids,
    )  # fmt: skip
    run("-m", "dataset.build_nqueens_dataset", "--output-dir", data / "nqueens")
    for name, overrides in RUNS.items():
        run_dir = folder / name.replace(" ", "-")
        run(
            "train_arc_tiny_corrupt.py", "experiment=demo", *overrides, "device=cpu",
            f"data.path={data / name.split()[0]}", f"run_dir={run_dir}",
            f"train.max_steps={STEPS}", "train.log_every=1", "train.eval_every=null",
            "train.precision=fp32", "wandb.mode=disabled",
        )  # fmt: skip
        run(
            "evaluate.py", f"checkpoint={run_dir}", f"output_dir={run_dir}-evaluation",
            "precision=fp32", "report=false", "device=cpu", "eval.batch_size=64",
        )  # fmt: skip


def results(folder: Path) -> Iterator[tuple[str, Any]]:
    """Everything in `folder` that must not change: arrays, or what a file says, each by name."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".npy":
            yield name, np.load(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                yield from ((f"{name}: {key}", arrays[key]) for key in sorted(arrays.files))
        elif path.suffix == ".safetensors":
            yield from ((f"{name}: {key}", array) for key, array in sorted(load_file(path).items()))
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for key in ("train/loss", "train/grad_norm"):
                yield f"{name}: {key}", np.array([line[key] for line in lines])
        elif path.name in ("identifiers.json", "submission.json"):
            yield name, np.array(json.loads(path.read_text()), dtype=object)


def differences(before: Path, after: Path) -> tuple[int, list[str]]:
    """How many results are equal, and a line for each that is not."""
    then, now = dict(results(before)), dict(results(after))
    complaints = [
        f"{name}: only {'before' if name in then else 'now'}" for name in then.keys() ^ now
    ]
    equal = 0
    for name in then.keys() & now:
        a, b = then[name], now[name]
        if a.dtype == b.dtype and np.array_equal(a, b):
            equal += 1
        elif a.shape == b.shape and a.dtype.kind == "f":
            complaints.append(f"{name}: differs by up to {np.abs(a - b).max():.3g}")
        else:
            complaints.append(f"{name}: differs")
    return equal, sorted(complaints)


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = CommandParser(prog="python -m benchmarks.golden", description=__doc__)
    parser.add_argument("--before", required=True, type=Path, help="the checkout to compare with")
    parser.add_argument("--after", type=Path, default=REPOSITORY, help="default: this one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / side for side in ("before", "after")]
        for checkout, folder in zip((arguments.before, arguments.after), folders, strict=True):
            log.info("running %s", checkout)
            run_checkout(checkout.resolve(), folder)
        equal, complaints = differences(*folders)
    for line in complaints:
        log.info("%s", line)
    log.info("%d results are equal bit for bit, %d are not", equal, len(complaints))
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
