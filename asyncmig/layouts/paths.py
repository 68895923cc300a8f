"""Looking at paths without guessing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from asyncmig.errors import DatabaseError, LayoutError, printable, reason


def exists(path: str) -> bool:
    """Whether there is something at ``path``, be it a link to nowhere.

    Raises :class:`LayoutError` if that can't be told, for want of a permission for example: "not there" would be a guess, and
    a cache that was overlooked would count as migrated.
    """
    return _mode(path, os.lstat) != 0


def is_directory(path: str) -> bool:
    """Whether there is a directory at ``path``, links followed.  Raises :class:`LayoutError` as :func:`exists` does."""
    return stat.S_ISDIR(_mode(path, os.stat))


def _mode(path: str, look: Callable[[str], os.stat_result]) -> int:
    """0 if there is nothing."""
    try:
        return look(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot look: {reason(error)}") from error


def open_to_read(path: str) -> int:
    """A file descriptor of a regular file at ``path``, which is neither a link nor anything that could be waited for.

    Raises :class:`OSError`, and :class:`DatabaseError` for what is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DatabaseError(path, "not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd
