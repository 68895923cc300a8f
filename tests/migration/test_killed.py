"""Real caches of daemons that were killed: what becomes of a record, nothing that only it kept stays protected for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

import asyncmig
from asyncmig import Options, Outcome
from asyncmig.bolt import Db
from tests.caches import ROOT, V1Cache, value
from tests.conftest import copy_tree
from tests.states import tree_state

pytestmark = pytest.mark.anyio


def labelled(worker: Path) -> set[str]:
    """Keys of snapshots and digests of blobs with v1's label."""
    found = set()
    with Db.open(worker / "containerdmeta.db") as db, db.view() as tx:
        for place in ((b"snapshots", b"overlayfs"), (b"content", b"blob")):
            bucket = tx.path_bucket(b"v1", b"buildkit", *place)
            for name, _ in bucket.items() if bucket else ():
                labels = tx.path_bucket(b"v1", b"buildkit", *place, name, b"labels")
                if labels and labels.get(ROOT.encode()):
                    found.add(name.decode())
    return found


async def test_a_killed_daemon_s_cache(killed_cache: Path, tmp_path: Path) -> None:
    root = copy_tree(killed_cache, tmp_path / "buildkit")
    worker = root / "runc-overlayfs"
    before, labels = tree_state(root), labelled(worker)
    assert labels
    report = await asyncmig.migrate(root)
    assert report.outcome is Outcome.MIGRATED, "without --max-dropped"
    left_over = {*report.leftovers.snapshots, *report.leftovers.blobs}
    assert labelled(worker) == left_over, "nobody would ever take another label off"
    counts = report.counts
    assert counts.found == counts.records + counts.deleted + counts.dropped
    assert (await asyncmig.verify(root)).clean
    assert (await asyncmig.rollback(root)).outcome is Outcome.ROLLED_BACK
    assert labelled(worker) == labels
    after = tree_state(root)
    assert {name for name in before if before[name] != after[name]} <= {
        "runc-overlayfs/containerdmeta.db", "runc-overlayfs/snapshots/metadata.db",
    }  # fmt: skip


def deleted_chain() -> V1Cache:
    """A record that stays, and above it what the daemon had begun to delete."""
    cache = V1Cache()
    cache.layer("base", data=b"base")
    cache.layer("middle", "base", data=b"middle")
    cache.layer("top", "middle", data=b"top")
    cache.unfinalised("holder", "mutable", "base")
    for name in ("middle", "top", "mutable"):
        cache.records[name]["cache.deleted"] = value(True)
    return cache


async def test_a_deletion_is_no_loss(tmp_path: Path) -> None:
    worker = deleted_chain().write(tmp_path / "runc-overlayfs")
    before = labelled(worker)
    report = await asyncmig.migrate(worker, Options(max_dropped=0))
    assert {decision.record: (decision.code.value, decision.action.value) for decision in report.decisions} == dict.fromkeys(
        ("middle", "top", "mutable", "holder"), ("marked-deleted", "deleted")
    )
    assert (report.counts.found, report.counts.records, report.counts.dropped) == (5, 1, 0)
    assert labelled(worker) == set()
    await asyncmig.rollback(worker)
    assert labelled(worker) == before


async def test_what_only_a_deleted_record_kept_is_released(tmp_path: Path) -> None:
    """Also a snapshot without record below it; not what another record needs, or what belongs to no record at all."""
    cache = deleted_chain()
    cache.layer("below", blob=False)
    cache.layer("gone", "below", data=b"gone", more={"cache.deleted": value(True)})
    cache.layer("foreign", blob=False)
    for name in ("below", "foreign"):
        del cache.records[name]
    worker = cache.write(tmp_path / "runc-overlayfs")
    report = await asyncmig.migrate(worker)
    assert labelled(worker) == set(report.leftovers.snapshots) == {"foreign"}


async def test_a_dropped_record_is_released_too(tmp_path: Path) -> None:
    """Nobody would ever take the label off its blob: no record names it any more."""
    cache = V1Cache()
    for i in range(40):
        cache.layer(f"r{i:02}", data=b"%d" % i)
    cache.layer("orphan", "nowhere", data=b"orphan")
    worker = cache.write(tmp_path / "runc-overlayfs")
    report = await asyncmig.migrate(worker)
    assert [(decision.record, decision.action.value) for decision in report.decisions] == [("orphan", "dropped")]
    assert labelled(worker) == set()
