"""Looking at paths without guessing."""

from __future__ import annotations

import os
import stat

from asyncmig.errors import DatabaseError, LayoutError, printable


def exists(path: str) -> bool:
    """Whether there is something at ``path``, be it a link to nowhere.

    Raises :class:`LayoutError` if that can't be told, for want of a permission for example: "not there" would be a guess, and
    a cache that was overlooked would count as migrated.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot look: {error.strerror}") from error
    return True


def open_to_read(path: str) -> int:
    """A file descriptor of a regular file at ``path``, which is neither a link nor anything that could be waited for.

    Raises :class:`OSError`, and :class:`DatabaseError` for what is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DatabaseError(path, "not a regular file")
    return fd
