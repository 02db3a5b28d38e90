"""Write the configuration reference from the schema: `python -m config.reference`.

A test keeps docs/configuration.md equal to what this writes.
"""

from pathlib import Path

from common.files import atomic_write
from config.loading import CONFIG_DIR, entries, groups_of
from config.schema import (
    DemoConfig,
    DiagnoseConfig,
    EvaluateConfig,
    OwnPuzzlesConfig,
    TrainConfig,
)

REFERENCE = CONFIG_DIR.parent / "docs" / "configuration.md"
ENTRY_POINTS = (
    ("train", "train_arc_tiny_corrupt.py", TrainConfig),
    ("evaluate", "evaluate.py", EvaluateConfig),
    ("diagnose", "diagnose.py", DiagnoseConfig),
    ("predict", "predict.py", OwnPuzzlesConfig),
    ("demo", "demo.py", DemoConfig),
)


def reference() -> str:
    """The page, in Markdown."""
    lines = [
        "# Configuration",
        "",
        "Made from the schema by `python -m config.reference`; `--help` of each script says the "
        "same. Overrides are `key=value`. In paths `~` and `$NAME` mean what they do in a shell.",
    ]
    for name, script, schema in ENTRY_POINTS:
        lines += ["", f"## {script}", ""]
        for group, options in groups_of(name).items():
            lines.append(f"- `{group}=` {', '.join(f'`{option}`' for option in options)}")
        lines += ["", "| key | default | meaning |", "|---|---|---|"]
        for entry in entries(name, schema):
            meaning = entry.meaning.replace("|", "\\|")
            lines.append(f"| `{entry.key}` | `{entry.default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    atomic_write(Path(REFERENCE), reference())


if __name__ == "__main__":
    main()
