"""Having the kernel read a whole file from front to back before it is walked through.

A walk goes from page to page in the order of the tree, which a disk answers page by page: on a cold cache that took eight
times as long as to read the file in order, or more.  The kernel is only asked to read, so what a walk finds is the same with
and without, and a file that is in memory already costs 2 µs for 128 KiB.  See docs/decisions/0012-cold-caches.md.
"""

from __future__ import annotations

import os

from asyncmig.bolt.freememory import free_memory
from asyncmig.bolt.pagefile import PageFile
from asyncmig.bolt.walk import Checkpoint

_WINDOW = 128 << 10
"""Linux reads no more than its read-ahead at one call, whatever it is asked for; this is what a disk has by default."""
_ALWAYS = 32 << 20
"""Bytes that are read ahead whatever memory there is, or if that can't be told."""
_SHARE = 2
"""A file is read ahead if it takes at most one part in so many of the free memory: what the kernel drops again before the walk
gets there has been read for nothing."""
_HOLES = 32
"""How many times its data a file may be large.  A hole takes memory, too, and costs its maker nothing; mostly empty pages, as
those of containerd's databases are, may be compressed on disk to a tenth."""


def read_ahead(pages: PageFile, checkpoint: Checkpoint) -> None:
    """Ask for all pages in use.  Does nothing where the file does not fit into memory, or the system can't do it.

    The kernel reads on when this returns.  Runs in the thread of the walk, which has the file open.
    """
    size = pages.high_water_mark * pages.page_size
    if not _is_worth_it(size, pages.allocated):
        return
    for start in range(0, size, _WINDOW):
        checkpoint()
        try:
            os.posix_fadvise(pages.fd, start, min(_WINDOW, size - start), os.POSIX_FADV_WILLNEED)
        except (OSError, AttributeError, OverflowError):
            return  # no such call here; what is wrong with the file, the walk will tell


def _is_worth_it(size: int, allocated: int) -> bool:
    if size > allocated * _HOLES:
        return False
    return size <= _ALWAYS or size * _SHARE <= (free_memory() or 0)
