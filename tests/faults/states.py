"""What runs that were interrupted must come to in the end: the files of an OCI worker directory, times aside."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from asyncmig.migration.journal import JournalFile
from tests.states import containerd_state, dump_lines, lasting

STORES = ("containerdmeta.db", "snapshots/metadata.db")
ASIDE = "metadata_v2.db.rolled-back"


def migrated_state(worker: Path) -> object:
    """All that a migration leaves behind, its journal included; a database that a rollback has moved aside does not count."""
    journal = JournalFile(str(worker / "metadata_v2.db")).read()
    assert journal is not None
    files = sorted(set(os.listdir(worker)) - {ASIDE})
    return [containerd_state(worker / name) for name in ("metadata_v2.db", *STORES)], asdict(journal), files


def original_state(worker: Path) -> object:
    """What a rollback must bring back, to the last digit of each label."""
    files = sorted(set(os.listdir(worker)) - {ASIDE, "metadata_v2.db.tmp", "metadata_v2.db.journal.tmp"})
    return [lasting(dump_lines(worker / name)) for name in STORES], (worker / "metadata.db").read_bytes().hex(), files
