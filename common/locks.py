"""One process at a time writes a folder: a lock beside it, which the system frees with its owner.

The lock of DIR/name is the file DIR/.name.lock, which names the process that holds it. It is the
system's lock on the open file that counts, so that one of a killed process is none.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from common.errors import UserError
from common.files import remove_partials, require_creatable

log = logging.getLogger(__name__)


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Own the folder `path`, there or yet to be made, and clear away what killed owners have left.

    Where the file system has no locks, that is said, and nothing cleared away.

    Args:
        path: of the folder.
        what: the key or flag that names it, for messages.

    Raises:
        UserError: another process owns it, or it cannot be created.
    """
    path = path.resolve()
    if not path.exists():
        require_creatable(path, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    # Python opens files so that programs which this process starts do not inherit them.
    descriptor = _open_locked(lock, path, what)
    if descriptor is None:
        yield
        return
    try:
        started = datetime.now().isoformat(sep=" ", timespec="seconds")
        holder = f"process {os.getpid()} on {socket.gethostname()} since {started}"
        os.truncate(descriptor, 0)
        os.write(descriptor, holder.encode())
        remove_partials(path)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(lock: Path, path: Path, what: str) -> int | None:
    """The lock's file, open and locked; None where there are no locks."""
    try:
        import fcntl  # Not on every system.
    except ImportError:
        _warn_of_no_lock(path, "this system has none")
        return None
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(
                f"{what}={path} is in use by {holder}: wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            os.close(descriptor)
            _warn_of_no_lock(path, str(error.strerror))
            return None
        # Between opening and locking, an owner that ended may have removed the file.
        if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
            return descriptor
        os.close(descriptor)


def _warn_of_no_lock(path: Path, reason: str) -> None:
    log.warning("%s cannot be locked (%s): see to it that no other process writes it", path, reason)
