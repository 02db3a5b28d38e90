"""The one error type meant for users, and the wrapper that turns it into one line and exit code 2.

A `UserError` says what is wrong, where, and what to do about it. Everything else that escapes is
a bug and keeps its traceback.
"""

import errno
import functools
import os
import sys
from collections.abc import Callable

USER_ERROR_EXIT_CODE = 2


class UserError(Exception):
    """A mistake of the user: the message names key or file, value, limit and remedy."""


def exit_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate an entry point: user errors and full disks become one line on stderr and exit 2."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
            return
        except UserError as error:
            message = str(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f" while writing {error.filename}" if error.filename else ""
            message = f"the disk is full{where}: free some space or choose another output folder"
        except KeyboardInterrupt:
            sys.exit(130)
        # Only here is the exception gone, and with its frames an open progress bar, which ends its
        # line of the terminal as it goes.
        _fail(message)

    return wrapped


def _fail(message: str) -> None:
    # Under torchrun every rank may meet the same error: only rank 0's line is free of a prefix.
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"[rank {rank}] " if rank else ""
    print(f"{prefix}error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(USER_ERROR_EXIT_CODE)
