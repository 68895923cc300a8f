"""The check of a v2 cache: a state for each fault, and what is said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import asyncmig
from asyncmig import DatabaseLockedError, LayoutError, Options
from asyncmig.audit.findings import FindingCode, NoteCode
from asyncmig.bolt import Db
from tests.audit.edits import (
    BLOBS,
    FLAT,
    LEASES,
    META,
    OLD,
    SNAPSHOTS,
    both,
    cut_blob,
    drop,
    drop_record,
    index,
    label,
    lease,
    put,
    remove_directories,
    remove_directory,
    set_size,
)
from tests.caches import V1Cache, digest, sample_cache, value
from tests.conftest import copy_tree
from tests.states import tree_state

pytestmark = pytest.mark.anyio


@pytest.fixture
async def migrated(tmp_path: Path, anyio_backend: str) -> Path:
    cache = sample_cache()
    cache.layer("zipped", data=b"\x1f\x8b\x08 and so on")
    worker = cache.write(tmp_path / "runc-overlayfs")
    await asyncmig.migrate(worker)
    return worker


FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("value-malformed", put("a", "etag", b"{"), "a"),
    ("marked-deleted", put("d", "cache.deleted", value(True)), "d"),
    ("parent-missing", put("d", "cache.parent", value("nobody")), "d"),
    ("parent-cycle", put("a", "cache.parent", value("d")), "a"),
    ("parent-unloadable", put("a", "cache.deleted", value(True)), "b"),
    ("mutable-missing", put("holder", "cache.equalMutable", value("nobody")), "holder"),
    ("snapshot-missing", drop(*SNAPSHOTS, name="d", database=META), "d"),
    ("snapshot-missing", drop(*SNAPSHOTS, name="mutable", database=META), "mutable"),
    ("directory-missing", remove_directory("d"), "d"),
    ("directory-missing", remove_directory("mutable"), "mutable"),
    ("directories-missing", remove_directories, "overlayfs"),
    ("snapshot-active", put("mutable", "snapshot.committed", value(True)), "mutable"),
    ("parent-mismatch", put("d", "cache.parent", value("a")), "d"),
    ("lease-missing", drop(*LEASES, name="d", database=META), "d"),
    ("lease-expired", lease("d", OLD), "d"),
    ("lease-incomplete", drop(*LEASES, "d", "content", name=digest("blob d"), database=META), "d"),
    ("lease-surplus", lease("holder", FLAT, ("holder",)), "holder"),
    ("lease-without-record", lease("nobody", FLAT), "nobody"),
    ("blob-malformed", put("d", "cache.blob", value("md5:12")), "d"),
    ("blob-missing", drop(*BLOBS, name=digest("blob d"), database=META), "d"),
    ("blob-data-missing", cut_blob, "d"),
    ("diffid-missing", put("d", "cache.diffID", b""), "d"),
    ("size-missing", put("d", "cache.blobsize", b""), "d"),
    ("size-wrong", put("d", "cache.blobsize", value(7)), "d"),
    ("media-type-wrong", put("zipped", "cache.mediatype", value("application/vnd.oci.image.layer.v1.tar")), "zipped"),
    ("chain-wrong", put("d", "cache.chainID", value(digest("x"))), "d"),
    ("chain-bogus", put("a", "cache.diffID", b""), "b"),
    ("chain-half", put("d", "cache.chainID", b""), "d"),
    ("index-missing", drop("_index", name=f"blobmap::{digest('blob d')}::d", database="metadata_v2.db"), "d"),
    ("index-stale", index("git-remote::x::nobody"), "nobody"),
    ("index-stale", index(f"chainid:{digest('x')}::d"), "d"),
    ("index-endless", index("endless"), "endless"),
    ("label-left", label("snapshots", "overlayfs", "d"), "d"),
    ("label-left", label("content", "blob", digest("blob d")), digest("blob d")),
]

REMARKS: list[tuple[str, Callable[[Path], None], str]] = [
    ("holder-finalised", put("d", "cache.equalMutable", value("nobody")), "d"),
    ("media-type-unknown", put("d", "cache.mediatype", value("text/plain")), "d"),
    ("lease-not-flat", drop(*LEASES, "d", "labels", name="containerd.io/gc.flat", database=META), "d"),
    ("lease-without-record", lease("nobody", {}), "nobody"),
    ("label-without-record", label("snapshots", "overlayfs", "view"), "view"),
    ("view-stale", lambda worker: None, "view"),
    ("snapshot-unowned", drop_record("d"), "d"),
    (
        "blob-unowned",
        both(put("d", "cache.blob", b""), drop(*LEASES, "d", "content", name=digest("blob d"), database=META)),
        digest("blob d"),
    ),
]


async def test_a_migrated_cache_is_clean(migrated: Path) -> None:
    before = tree_state(migrated)
    result = await asyncmig.verify(migrated)
    assert result.findings == []
    assert result.clean
    counts = result.counts
    assert (counts.records, counts.holders, counts.mutable, counts.owned_blobs) == (9, 2, 2, 4)
    assert (counts.owned_bytes, counts.unowned_blobs) == (300 + 13, 0)
    assert tree_state(migrated) == before


@pytest.mark.parametrize(("code", "act", "name"), FAULTS)
async def test_a_fault(code: str, act: Callable[[Path], None], name: str, migrated: Path) -> None:
    act(migrated)
    result = await asyncmig.verify(migrated)
    assert (code, name) in {(finding.code, finding.name) for finding in result.findings}
    assert not result.clean


@pytest.mark.parametrize(("code", "act", "name"), REMARKS)
async def test_a_remark(code: str, act: Callable[[Path], None], name: str, migrated: Path) -> None:
    act(migrated)
    result = await asyncmig.verify(migrated)
    assert (code, name) in {(note.code, note.name) for note in result.notes}


def test_every_code_has_a_state_here() -> None:
    assert {code for code, _, _ in FAULTS} == {fault.value for fault in FindingCode}
    of_a_running_containerd = {NoteCode.SNAPSHOT_FOREIGN, NoteCode.BLOB_FOREIGN}  # test_shared.py
    assert {code for code, _, _ in REMARKS} == set(NoteCode) - of_a_running_containerd


@pytest.mark.parametrize("name", ["a-view", "ref_build"])
async def test_leases_that_buildkit_has_besides_are_no_fault(name: str, migrated: Path) -> None:
    lease(name, FLAT)(migrated)
    lease("random", {"buildkit/lease.temporary": "T", **FLAT})(migrated)
    assert (await asyncmig.verify(migrated)).findings == []


async def test_lazy_layers_are_no_fault(migrated: Path) -> None:
    for key, content in {
        "cache.blobonly": value(True),
        "snapshot.committed": value(True),
        "cache.blob": value(digest("remote")),
        "cache.diffID": value(digest("diff")),
        "cache.blobsize": value(5),
    }.items():
        put("lazy", key, content)(migrated)
    result = await asyncmig.verify(migrated)
    assert result.findings == []
    assert result.counts.lazy == 1


async def test_upstreams_own_result_on_a_real_cache(real_cache: Path, tmp_path: Path) -> None:
    root = copy_tree(real_cache, tmp_path / "buildkit")
    await asyncmig.migrate(root, Options(semantics="upstream"))
    found = (await asyncmig.verify(root)).findings
    counts = {code: sum(finding.code == code for finding in found) for code in {finding.code for finding in found}}
    assert counts == {"size-missing": 52, "lease-surplus": 42, "index-stale": 1}


async def test_hardened_is_clean_on_a_real_cache(real_cache: Path, tmp_path: Path) -> None:
    root = copy_tree(real_cache, tmp_path / "buildkit")
    await asyncmig.migrate(root)
    assert (await asyncmig.verify(root)).findings == []


async def test_a_cache_that_is_not_migrated(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    with pytest.raises(LayoutError, match=r"there is no metadata_v2\.db; run 'asyncmig migrate' first"):
        await asyncmig.verify(worker)


async def test_a_cache_in_use(migrated: Path) -> None:
    with Db.open(migrated / "metadata_v2.db", writable=True), pytest.raises(DatabaseLockedError):
        await asyncmig.verify(migrated)


async def test_the_wrong_place(migrated: Path) -> None:
    for record in ("a", "b", "c", "d", "zipped", "mutable", "mutable-root"):
        drop(*SNAPSHOTS, name=record, database=META)(migrated)
    with pytest.raises(LayoutError, match="check that snapshotter and namespace are those of this cache"):
        await asyncmig.verify(migrated)


async def test_deep_chains_come_to_an_end(tmp_path: Path) -> None:
    cache = V1Cache()
    for i in range(3000):
        cache.layer(f"r{i:04}", f"r{i - 1:04}" if i else "")
    worker = cache.write(tmp_path / "runc-overlayfs")
    await asyncmig.migrate(worker)
    put("r0000", "cache.parent", value("r2999"))(worker)
    found = (await asyncmig.verify(worker)).findings
    assert sum(finding.code == "parent-cycle" for finding in found) == 3000


def verified(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asyncmig", "verify", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    anyio.run(asyncmig.migrate, worker)
    done = verified(worker)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"clean: {worker}")
    index("x::\x1b[31mred")(worker)
    done = verified(worker)
    assert (done.returncode, done.stdout.splitlines()[0]) == (3, f"1 finding: {worker}")
    assert "\x1b" not in done.stdout
    done = verified(worker, "--json")
    assert done.returncode == 3
    result = json.loads(done.stdout)
    assert (result["verify_version"], result["clean"], result["findings"][0]["code"]) == (2, False, "index-stale")


def test_the_command_tells_notes_in_a_line_a_kind(tmp_path: Path) -> None:
    cache = sample_cache()
    for i in range(1200):
        cache.view(f"view {i}", "b")
    worker = cache.write(tmp_path / "runc-overlayfs")
    anyio.run(asyncmig.migrate, worker)
    both(drop_record("d"), set_size("d", 1_200_000))(worker)

    done = verified(worker)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[0]) == (0, f"clean: {worker}")
    assert [line for line in lines if line.startswith("  note")] == [
        "  note: unreferenced blobs; the next garbage collection removes them: 1 (about 100 bytes)",
        "  note: unreferenced snapshots; the next garbage collection removes them: 1 (about 1.2 MB)",
        "  note: stale views of the old daemon, released by the migration; the next garbage collection removes them: 1,201",
    ]
    assert "view 7" not in done.stdout
    assert len(lines) < 12

    verbose = verified(worker, "-v").stdout.splitlines()
    assert [line for line in verbose if line.startswith("  note")] == [line for line in lines if line.startswith("  note")]
    assert sum(line.startswith("    view ") for line in verbose) == 1201 - 1  # "view" itself has no blank
    notes = json.loads(verified(worker, "--json").stdout)["notes"]
    assert sum(note["code"] == "view-stale" for note in notes) == 1201


def test_the_command_shows_a_few_findings_of_a_kind(tmp_path: Path) -> None:
    cache = V1Cache()
    for i in range(9):
        cache.layer(f"layer{i}")
    worker = cache.write(tmp_path / "runc-overlayfs")
    anyio.run(asyncmig.migrate, worker)
    for i in range(8):
        remove_directory(f"layer{i}")(worker)
    brief, verbose = (verified(worker, *more).stdout.splitlines() for more in ([], ["--verbose"]))
    assert "  directory-missing (8)" in brief
    assert sum(line.startswith("    layer") for line in brief) == 5
    assert "    and 3 more (-v or --json shows all)" in brief
    assert sum(line.startswith("    layer") for line in verbose) == 8
