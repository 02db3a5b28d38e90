"""Several runs by one command, one after another: `-m seed=0,1,2 arch=compact,medium`.

Hydra's own launcher would run them in one process, where what a run leaves behind (ranks, W&B,
compiled code) would be the next one's. Here each is a process of its own.
"""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from common.children import run_child
from common.errors import UserError

FLAGS = {"-m", "--multirun"}

log = logging.getLogger(__name__)


def combinations(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of each run: every choice of one value from each list `key=a,b,c`.

    Hydra's `range(...)`, `choice(...)` and globs are lists too; the last one varies quickest.

    Raises:
        UserError: an override is none, or none of them has several values.
    """
    choices = []
    for argument in arguments:
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException as error:
            raise UserError(f"'{argument}': overrides are key=value, lists key=a,b,c") from error
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={text}" for text in override.sweep_string_iterator()])
        else:
            choices.append([argument])
    if all(len(values) == 1 for values in choices):
        raise UserError("--multirun: no key has several values, as in seed=0,1,2")
    return [list(overrides) for overrides in product(*choices)]


def run_all(program: str, runs: Sequence[Sequence[str]]) -> int:
    """Run a program with each of several lists of overrides; how many of them failed.

    Raises:
        UserError: under a launcher, each of whose processes would start all of them.
    """
    if "RANK" in os.environ:
        raise UserError("--multirun starts processes itself: use plain python, or torchrun for "
                        "each run")  # fmt: skip
    failed = 0
    for number, overrides in enumerate(runs, start=1):
        log.info("\n[%d of %d] python %s", number, len(runs), shlex.join([program, *overrides]))
        failed += run_child([sys.executable, program, *overrides]) != 0
    if failed:
        log.warning("%d of %d runs failed, see above.", failed, len(runs))
    return failed
