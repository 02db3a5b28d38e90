"""The whole path on real ARC-AGI-1 tasks in minutes: import, build, train, vote, write a page.

    python demo.py

Each stage is the command that a researcher would type, and is shown before it runs. A stage whose
result is there already is skipped, and training goes on where it stopped: after an interruption
simply start the demo again.
"""

import json
import logging
import re
import shlex
import sys
import time
from pathlib import Path

from common.children import run_child
from common.errors import UserError, exit_cleanly
from common.files import atomic_write, require_new_directory
from common.locks import exclusive
from config.loading import load_config
from config.schema import DemoConfig

REPOSITORY = Path(__file__).resolve().parent
OPTIONS_FILE = "demo.json"

log = logging.getLogger(__name__)


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config = load_config("demo", DemoConfig, __doc__ or "", sys.argv[1:])
    started = time.monotonic()
    folder = config.output_dir.resolve()
    if folder.is_relative_to(REPOSITORY):  # Where the commands run: short paths read better.
        folder = folder.relative_to(REPOSITORY)
    with exclusive(REPOSITORY / folder, "output_dir"):
        make(folder, config, started)


def make(folder: Path, config: DemoConfig, started: float) -> None:
    """All stages, into a folder that no other process uses."""
    claim(folder, config)
    prefix, data = folder / "kaggle" / "arc-agi", folder / "dataset"
    run_dir, results = folder / "run", folder / "evaluation"
    if not (REPOSITORY / data).exists():
        run("dataset.import_arc", "--output-prefix", prefix, "--subsets", "training")
        run(
            "dataset.build_arc_dataset",
            *("--input-file-prefix", prefix, "--output-dir", data),
            *("--subsets", "training", "--test-set-name", "training"),
            *("--num-aug", config.num_aug, "--canvas-side", config.canvas_side),
            *("--task-ids", *config.task_ids),
        )
    finished_earlier = (REPOSITORY / results).exists()
    if not finished_earlier:
        length = [] if config.max_steps is None else [f"train.max_steps={config.max_steps}"]
        run(
            "train_arc_tiny_corrupt.py",
            f"experiment={config.experiment}",
            override("data.path", data),
            override("run_dir", run_dir),
            "resume=auto",
            *length,
        )
        run("evaluate.py", override("checkpoint", run_dir), override("output_dir", results))
    report(results)
    if not finished_earlier:
        log.info("This took %d min %02d s.", *divmod(round(time.monotonic() - started), 60))


def claim(folder: Path, config: DemoConfig) -> None:
    """Note the options in the demo's folder.

    Raises:
        UserError: the folder holds a demo with other options, whose results would pass for these.
    """
    options = config.model_dump_json(exclude={"output_dir"}, indent=1)
    path = REPOSITORY / folder / OPTIONS_FILE
    if not path.is_file():
        require_new_directory(path.parent, "output_dir", "choose another output_dir")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, options)
    elif path.read_text() != options:
        raise UserError(f"output_dir={folder} holds a demo with other options: remove it first")


def override(key: str, path: Path) -> str:
    """An override for Hydra, quoted where its grammar would see more than a path."""
    plain = re.fullmatch(r"[\w./-]+", str(path))
    return f"{key}={path}" if plain else f'{key}="{path}"'


def run(program: str, *arguments: object) -> None:
    """Show a command and run it in the repository.

    Raises:
        SystemExit: it failed; its own message stands above, its exit code is passed on.
    """
    module = [program] if program.endswith(".py") else ["-m", program]
    words = [*module, *map(str, arguments)]
    log.info("\n$ python %s", shlex.join(words))
    if exit_code := run_child([sys.executable, *words], cwd=REPOSITORY):
        log.info("\nThe demo stopped: %s failed, see above.", program)
        sys.exit(exit_code)


def report(results: Path) -> None:
    """Say what came out, and where to look at it."""
    metrics = json.loads((REPOSITORY / results / "metrics.json").read_text())
    total = metrics["test_set"]["test_inputs"]
    solved = round(metrics["pass@2_test_inputs"] * total)
    log.info(
        "\n%d of %d unseen test inputs are right in two attempts (pass@2 over tasks: %.3f).",
        solved,
        total,
        metrics["pass@2"],
    )
    log.info("Open %s to see the answers.", results / "report.html")


if __name__ == "__main__":
    main()
