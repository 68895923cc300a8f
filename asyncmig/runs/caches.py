"""Which caches does a path mean?"""

from __future__ import annotations

import os

from asyncmig.bolt import Checkpoint
from asyncmig.errors import AsyncmigError, StrPath
from asyncmig.layouts.detect import is_worker
from asyncmig.layouts.paths import is_directory
from asyncmig.layouts.workers import Workers, find_workers
from asyncmig.migration.journal import JournalFile


def find_caches(checkpoint: Checkpoint, path: StrPath) -> Workers:
    """See :func:`asyncmig.api.find_caches`; with what was passed over."""
    directory = os.path.abspath(os.fspath(path))
    if not is_directory(directory) or is_worker(directory):
        return Workers(caches=[directory])
    found = find_workers(directory)
    if not found.caches:
        return Workers(caches=[directory])  # which is an error, and told by whoever opens it
    found.caches.sort(key=lambda cache: not _is_interrupted(checkpoint, cache))
    return found


def _is_interrupted(checkpoint: Checkpoint, cache: str) -> bool:
    try:
        journal = JournalFile(os.path.join(cache, "metadata_v2.db")).read(checkpoint)
    except AsyncmigError:
        return True  # whoever opens it tells what is wrong; before the others, too
    return journal is not None and (journal.is_rolling_back or not journal.is_complete)
