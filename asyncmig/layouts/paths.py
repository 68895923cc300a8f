"""Looking at paths without guessing: what can't be looked at does not count as missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from asyncmig.errors import DatabaseError, LayoutError, printable, reason


def exists(path: str) -> bool:
    """Whether there is anything at ``path``, even a link to nowhere.

    Raises :class:`LayoutError` if that can't be found out, for example without permission.  "Not there" would be a guess, and
    an overlooked cache would count as migrated.
    """
    return _mode(path, os.lstat) != 0


def is_directory(path: str) -> bool:
    """Whether ``path`` is a directory or a link to one.  Raises :class:`LayoutError` as :func:`exists` does."""
    return stat.S_ISDIR(_mode(path, os.stat))


def _mode(path: str, look: Callable[[str], os.stat_result]) -> int:
    """The mode of what is at ``path``, 0 if there is nothing."""
    try:
        return look(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot look: {reason(error)}") from error


def open_to_read(path: str) -> int:
    """Open the regular file ``path`` for reading; return the file descriptor.  Follows no link and never waits for a FIFO.

    Raises :class:`OSError`, and :class:`DatabaseError` if it is not a regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DatabaseError(path, "not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd
