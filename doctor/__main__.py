"""Can this machine train, what is to be done where it cannot, and what would a run cost here?

    python -m doctor                     # before the first run
    python -m doctor --data data/mine    # with another dataset

A line for each check: `ok`, `note` (a run can start, but something could be better) or `FAIL` (it
cannot until that is mended), and after `->` what to do. At the end stand the command to run next
and what it will cost. The exit code is 1 after a FAIL, else 0.
"""

import sys
from pathlib import Path

from common.errors import CommandParser, exit_cleanly
from doctor.checks import CHECKS, run_check

DEFAULT_DATA = Path("data/arc1concept-aug-1000")


@exit_cleanly
def main() -> None:
    parser = CommandParser(prog="python -m doctor", description=__doc__)
    parser.add_argument(
        "--data", metavar="DIR", type=Path, default=DEFAULT_DATA,
        help=f"the dataset to train on (default: {DEFAULT_DATA})",
    )  # fmt: skip
    data = parser.parse_args().data
    failed = examine(data)
    tell_next(failed, data)
    sys.exit(1 if failed else 0)


def examine(data: Path) -> set[str]:
    """Make all checks and say what they find; the names of those that failed."""
    failed = set()
    for name, check in CHECKS.items():
        for finding in run_check(check, data):
            say(f"{finding.sign:<5} {name:<10} {finding.text}")
            if finding.remedy:
                say(f"{'':<16} -> {finding.remedy}")
            if finding.sign == "FAIL":
                failed.add(name)
    return failed


def tell_next(failed: set[str], data: Path) -> None:
    """Say what to run next and what it costs, where that can be told."""
    say("")
    if failed - {"dataset"}:
        say("Next: mend what is marked FAIL, then python -m doctor")
        return
    from doctor.cost import next_step  # It needs the packages.

    step = next_step(data, DEFAULT_DATA, is_damaged=data.is_dir() and bool(failed))
    say(f"Next: {step.command}")
    say(f"Cost: {step.cost}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
