"""Looking at paths without guessing."""

from __future__ import annotations

import os

from asyncmig.errors import LayoutError, printable


def exists(path: str) -> bool:
    """Whether there is something at ``path``, links followed.

    Raises :class:`LayoutError` if that can't be told, for want of a permission for example: "not there" would be a guess, and
    a cache that was overlooked would count as migrated.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise LayoutError(f"{printable(path)}: cannot look: {error.strerror}") from error
    return True
