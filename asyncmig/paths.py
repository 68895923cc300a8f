"""Looking at paths without guessing."""

from __future__ import annotations

import os
import stat

from asyncmig.errors import LayoutError, printable


def exists(path: str) -> bool:
    """Whether there is something at ``path``, links followed.

    Raises :class:`LayoutError` if that can't be told, for want of a permission for example: "not there" would be a guess, and
    a cache that was overlooked would count as migrated.
    """
    return _mode(path) != 0


def is_directory(path: str) -> bool:
    """Whether there is a directory at ``path``, links followed.  Raises :class:`LayoutError` as :func:`exists` does."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: str) -> int:
    """0 if there is nothing."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot look: {error.strerror}") from error
