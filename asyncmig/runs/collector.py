"""Python's garbage collector while a migration runs.

Its full collections go through every object of the process, with the interpreter lock held: tens of milliseconds for the
records of a large cache, again whenever a quarter more objects have come.  An embedding event loop waits that long each time.
See docs/decisions/0008-full-collections.md.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_RARELY = 1000
"""Collections of the middle generation before a full one: about seven million objects more than were freed."""

_lock = threading.Lock()
_users = 0
_before = (0, 0, 0)


@contextmanager
def few_full_collections() -> Iterator[None]:
    """Put off full collections until the block ends; the others, of what is young, go on.

    Blocks may overlap, in any threads.  A threshold that somebody else sets meanwhile stays.
    """
    global _users, _before  # noqa: PLW0603  (the collector is one for the process, too)
    with _lock:
        _users += 1
        if _users == 1:
            _before = gc.get_threshold()
            if _before[0] and _before[2] < _RARELY:  # a first threshold of 0 means that nothing is collected at all
                gc.set_threshold(*_before[:2], _RARELY)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and gc.get_threshold() == (*_before[:2], _RARELY):
                gc.set_threshold(*_before)
