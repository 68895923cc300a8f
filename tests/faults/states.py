"""What an interrupted run must not have lost, and what the next ones must end in; of :func:`tests.caches.marked_cache`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from asyncmig.migration.journal import JournalFile
from tests.caches import ROOT, digest, sample_cache
from tests.states import containerd_state, dump_lines, lasting

STORES = ("containerdmeta.db", "snapshots/metadata.db")
ASIDE = "metadata_v2.db.rolled-back"
OWNED = {*sample_cache().snapshots, *sample_cache().blobs} - {"view"}
"""What the records own."""


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


def check_protection(worker: Path, semantics: str) -> None:
    """Whatever containerd collects now, nothing that a record owns goes; and an old daemon finds its labels or is kept out."""
    owned, rooted, held = set(OWNED), set(), set()
    if semantics == "upstream":
        owned -= {"b", digest("blob b")}  # which it leaves to somebody's lease that lacks them
    for entry in map(json.loads, dump_lines(worker / "containerdmeta.db")):
        if entry.get("k") == ROOT:
            rooted.add(entry["p"][-2])
        elif "k" in entry and entry["p"][2:3] == ["leases"]:
            held.add(entry["k"])
    assert owned <= rooted | held, f"neither labelled nor leased: {owned - rooted - held}"
    if semantics == "hardened" and not (worker / "metadata_v2.db").exists():
        assert owned <= rooted, f"no label and no new database: {owned - rooted}"
