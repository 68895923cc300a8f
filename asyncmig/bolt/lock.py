"""``flock`` exactly as bbolt takes it: on the database file itself, shared to read, exclusive to write.

``fcntl.lockf`` and ``fcntl`` locks are another kind that bbolt does not see.  A ``flock`` belongs to the open file description:
a second ``open`` in the same process conflicts with the first.
"""

from __future__ import annotations

import fcntl
import time

from asyncmig.errors import DatabaseError, DatabaseLockedError

RETRY_SECONDS = 0.05
"""bbolt's own ``flockRetryTimeout``."""


def lock(fd: int, path: str, *, exclusive: bool, timeout: float = 0.0) -> None:
    """Lock ``fd``, trying for ``timeout`` seconds (0: once).

    Raises :class:`DatabaseLockedError`, and :class:`DatabaseError` where the file system has no locks.  Sleeps between
    tries, so never call it on an event loop with a timeout.
    """
    kind = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, kind)
            return
        except BlockingIOError:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise DatabaseLockedError(path) from None
        except OSError as error:
            raise DatabaseError(path, f"cannot lock: {error.strerror}") from error
        time.sleep(RETRY_SECONDS)
