"""The one error type meant for users, and the wrapper that turns it into one line and exit code 2.

A `UserError` says what is wrong, where, and what to do about it. Everything else that escapes is
a bug and keeps its traceback.
"""

import argparse
import errno
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

USER_ERROR_EXIT_CODE = 2
OTHER_RANKS_WAIT_SECONDS = 3


class UserError(Exception):
    """A mistake of the user: the message names key or file, value, limit and remedy."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are user errors like all others, without the usage.

    Descriptions are shown as they are written.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def exit_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate an entry point: user errors become one line on stderr and exit code 2.

    So does whatever the system says about a file: a full disk, a missing permission.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
            return
        except UserError as error:
            message = str(error)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                where = f" while writing {error.filename}" if error.filename else ""
                message = f"the disk is full{where}: free some space or choose another folder"
            elif error.filename:
                message = f"{error.filename}: {error.strerror}; check the path and its permissions"
            else:
                raise
        except KeyboardInterrupt:
            sys.exit(130)
        # Only here is the exception gone, and with its frames an open progress bar, which ends its
        # line of the terminal as it goes.
        _fail(message)

    return wrapped


def _printable(text: str) -> str:
    """The text with escapes in place of what a terminal would obey, or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fail(message: str) -> NoReturn:
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        # Under torchrun every rank may meet the same error, and the first to exit has the others
        # killed: wait, so that the one line is rank 0's if it has one to say.
        time.sleep(OTHER_RANKS_WAIT_SECONDS)
    prefix = f"[rank {rank}] " if rank else ""
    line = _printable(" ".join(message.split()))
    print(f"{prefix}error: {line}", file=sys.stderr, flush=True)
    sys.exit(USER_ERROR_EXIT_CODE)
