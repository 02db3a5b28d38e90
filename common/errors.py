"""The one error type meant for users, and the wrapper that turns it into one line and exit code 2.

A `UserError` says what is wrong, where, and what to do about it. Everything else that escapes is
a bug and keeps its traceback.
"""

import argparse
import errno
import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

USER_ERROR_EXIT_CODE = 2
BUG_EXIT_CODE = 1
TELLING_SECONDS = 30.0
"""For so long a rank lets another one tell what is wrong."""


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

    So does whatever the system says about a file: a full disk, a missing permission. SIGTERM ends
    the process as Ctrl-C does, so that nothing half-written stays. Of several ranks one tells.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        # A rank ends right away: the launcher's SIGTERM finds it waiting for one that has failed.
        handler = None if _is_launched() else signal.signal(signal.SIGTERM, _end)
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
        except Exception:  # A bug, whatever it is: of several ranks, one shows its traceback.
            if not _is_launched():
                raise
            _fail_as_rank(traceback.format_exc(), BUG_EXIT_CODE)
        finally:
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)
        # Only here is the exception gone, and with its frames an open progress bar, which ends its
        # line of the terminal as it goes.
        _fail(message)

    return wrapped


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _printable(text: str) -> str:
    """The text with escapes in place of what a terminal would obey, or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fail(message: str) -> NoReturn:
    line = f"error: {_printable(' '.join(message.split()))}\n"
    if _is_launched():
        _fail_as_rank(line, USER_ERROR_EXIT_CODE)
    sys.stderr.write(line)
    sys.exit(USER_ERROR_EXIT_CODE)


# ---- ranks that torchrun has launched --------------------------------------------------------


def _is_launched() -> bool:
    return bool(os.environ.get("TORCHELASTIC_ERROR_FILE"))


def _fail_as_rank(text: str, exit_code: int) -> NoReturn:
    """End this rank, and say why unless another rank of this machine has.

    All may meet the same error, or fail because one has failed; and the first to exit has the
    others killed. So the first that fails tells, and the others wait until it has.
    """
    # The launcher makes a folder for the attempt, with one in it for each rank's error file.
    attempt = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parent.parent
    told = attempt / "told"
    try:
        (attempt / "telling").touch(exist_ok=False)
    except FileExistsError:
        deadline = time.monotonic() + TELLING_SECONDS
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    else:
        rank = os.environ["RANK"]
        sys.stderr.write(text if rank == "0" else f"[rank {rank}] {text}")
        sys.stderr.flush()
        told.touch()
    # Not by way of an exit of Python's, which waits for collectives that never come.
    os._exit(exit_code)
