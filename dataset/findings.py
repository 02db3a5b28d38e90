"""What a check of a dataset has found: told line by line, and in one error at the end."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from dataset.storage import REBUILD

MAX_NAMED = 5
"""Problems that the error names; those beyond are only counted."""

log = logging.getLogger(__name__)


class Findings:
    """What is wrong: the first problems in words, and how many there are."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.count = 0

    def add(self, problem: str, count: int = 1) -> None:
        """Add a problem, or the first of several like it."""
        if len(self.named) < MAX_NAMED:
            self.named.append(problem)
        self.count += count

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Add what a reader refuses."""
        try:
            yield
        except UserError as error:
            self.add(str(error).removesuffix(f"{REBUILD}").rstrip(":; "))

    @contextmanager
    def told(self, what: str) -> Iterator[list[str]]:
        """Say what a check of `what` has found, with the facts that it adds to the list."""
        before, facts = self.count, list[str]()
        with self.collecting():
            yield facts
        problems = self.count - before
        result = f"{problems:,} PROBLEM(S)" if problems else "sound"
        log.info("%s", "; ".join([f"{what}: {result}", *facts]))

    def require_none(self, path: Path) -> None:
        """Raise UserError if there is any."""
        if self.count:
            rest = self.count - len(self.named)
            more = f"; and {rest:,} more" if rest else ""
            raise UserError(
                f"{path} has {self.count:,} problem(s): {'; '.join(self.named)}{more}; {REBUILD}"
            )
