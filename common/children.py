"""Commands that a command starts: they end with it, however it ends."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

PATIENCE_SECONDS = 60.0
"""For so long a command may write its last checkpoint after it was asked to end."""
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def run_child(words: Sequence[str], **options: Any) -> int:
    """Run a command to its end and return its exit code.

    If this process is interrupted, the command is asked to end (SIGTERM) and waited for. On Linux
    it is asked as well when this process is killed.

    Args:
        words: the command.
        options: of `subprocess.Popen`.
    """
    parent = os.getpid()

    def end_with_parent() -> None:
        assert _LIBC is not None, "only called on Linux"
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # It was killed before.
            os.kill(os.getpid(), signal.SIGTERM)

    child = subprocess.Popen(
        words, preexec_fn=None if _LIBC is None else end_with_parent, **options
    )
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
        raise
