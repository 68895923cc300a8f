"""What upstream's migration made of real and of hand-made caches, and what ours makes of them."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest

import asyncmig
from asyncmig import AsyncmigError, Options, Outcome
from tests.conftest import copy_tree
from tests.states import containerd_state, dump_lines, normalized, tree_state

pytestmark = pytest.mark.anyio

EDGE_CASES = [
    "blob-missing", "blob-no-diffid", "blobmapping-null", "blobmapping-wrong-type", "chainids-present", "dangling-em",
    "dangling-parent", "deleted-record", "em-has-parent", "em-target-no-parent", "em-with-blob", "empty-db", "empty-values",
    "escaping", "extra-json-fields", "from-missing", "garbage-db", "json-not-object", "lease-exists", "leftover-tmp",
    "malformed-json", "parent-cycle", "parent-no-diffid", "plain", "sha-id", "shared-blob", "snapshot-missing", "to-exists",
    "truncated-db", "view-record",
]  # fmt: skip

# What an operator must find in the message where upstream fails or crashes.
EXPECTED_MESSAGES = {
    "blobmapping-wrong-type": "blobmapping.blob",
    "dangling-em": "cache.equalMutable names record gone",
    "dangling-parent": "its parent a is not a record",
    "garbage-db": "invalid database",
    "json-not-object": "cache.description",
    "malformed-json": "cache.description",
    "parent-cycle": "cycle",
    "snapshot-missing": "snapshot",
    "truncated-db": "truncated",
}


def golden_lines(path: Path) -> list[str]:
    raw = path.read_bytes()
    if path.suffix == ".xz":
        raw = lzma.decompress(raw)
    return raw.decode().split("\n")[:-1]


async def test_a_real_cache_becomes_what_upstream_made_of_it(real_cache: Path, shared: Path, tmp_path: Path) -> None:
    root = copy_tree(real_cache, tmp_path / "buildkit")
    worker = root / "runc-overlayfs"
    before = worker.joinpath("metadata.db").read_bytes()

    report = await asyncmig.migrate(root, Options(semantics="upstream"))

    caches = shared / "caches"
    expected = golden_lines(caches / "buildkit-0.6.4-oci-overlayfs.v2.metadata_v2.jsonl.xz")
    assert dump_lines(worker / "metadata_v2.db") == expected
    expected = golden_lines(caches / "buildkit-0.6.4-oci-overlayfs.v2.ctdmeta.jsonl.xz")
    assert containerd_state(worker / "containerdmeta.db") == normalized(expected)
    assert worker.joinpath("metadata.db").read_bytes() == before
    # The calls that upstream made: 198 Create, 156 + 36 snapshot Update; its 52 content Updates name 51 blobs.
    counts = report.counts
    assert (counts.records, counts.holders, counts.blobs, counts.leases_created) == (198, 42, 52, 198)
    assert (counts.snapshots_released, counts.blobs_released, counts.views_released) == (156, 51, 36)


async def test_hardened_differs_from_upstream_on_a_real_cache_in_what_it_says(
    real_cache: Path, shared: Path, tmp_path: Path
) -> None:
    root = copy_tree(real_cache, tmp_path / "buildkit")
    worker = root / "runc-overlayfs"
    report = await asyncmig.migrate(root)

    caches = shared / "caches"
    upstream = set(golden_lines(caches / "buildkit-0.6.4-oci-overlayfs.v2.metadata_v2.jsonl.xz"))
    hardened = set(dump_lines(worker / "metadata_v2.db"))
    added = [json.loads(line) for line in hardened - upstream]
    removed = [json.loads(line) for line in upstream - hardened]
    assert [entry["k"] for entry in added] == ["cache.blobsize"] * 52
    # The only entry of the index whose record does not exist: the daemon was killed once.
    assert [(entry["p"], entry["k"]) for entry in removed] == [(["_index"], "cache-dir:mixcache::jjkc2cgouzolju4pbkf5gkcor")]
    assert report.decisions == []

    theirs = normalized(golden_lines(caches / "buildkit-0.6.4-oci-overlayfs.v2.ctdmeta.jsonl.xz"))
    ours = containerd_state(worker / "containerdmeta.db")
    holders = {entry["p"][3] for entry in theirs if entry["p"][2:3] == ["leases"] and len(entry["p"]) > 3}
    holders -= {entry["p"][3] for entry in ours if entry["p"][2:3] == ["leases"] and len(entry["p"]) > 3}
    assert len(holders) == report.counts.holders == 42
    missing = [entry for entry in theirs if entry not in ours and entry["p"][3:4] not in [[name] for name in holders]]
    empty_labels = [entry for entry in missing if entry.get("b") and entry["p"][-1] == "labels"]
    assert missing == empty_labels, "the tenth difference"
    assert len(empty_labels) == 192, "one for each snapshot that was released"
    assert [entry for entry in ours if entry not in theirs] == []
    # 51 blobs have lost their label in both; of the 52 Updates that upstream made, two were of one blob.
    assert (report.counts.leases_created, report.counts.blobs_released) == (156, 51)
    assert report.notes == []


@pytest.mark.parametrize("version", ["v0.13.2", "v0.27.1"])
async def test_a_native_cache_becomes_what_upstream_made_of_it(version: str, shared: Path, tmp_path: Path) -> None:
    worker = copy_tree(shared / "golden" / "oci-native-v0.6.4" / "runc-native", tmp_path / "runc-native")
    for path in (worker, *worker.rglob("*")):
        path.chmod(path.stat().st_mode | 0o600)
    expected = shared / "golden" / f"oci-native-migrated-by-{version}" / "runc-native"

    await asyncmig.migrate(worker, Options(semantics="upstream"))

    assert dump_lines(worker / "metadata_v2.db") == dump_lines(_readable(expected / "metadata_v2.db", tmp_path))
    for name in ("containerdmeta.db", "snapshots/metadata.db"):
        assert containerd_state(worker / name) == containerd_state(_readable(expected / name, tmp_path)), name


def _readable(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(path, tmp_path / f"golden-{path.parent.name}-{path.name}"))


def test_the_list_of_edge_cases_is_complete(edge_cases: Path) -> None:
    assert sorted(p.name for p in edge_cases.iterdir()) == EDGE_CASES


@pytest.mark.parametrize("case", EDGE_CASES)
async def test_edge_case(case: str, edge_cases: Path, tmp_path: Path) -> None:
    worker = copy_tree(edge_cases / case / "in", tmp_path / "worker")
    outcome = json.loads((edge_cases / case / "outcome.json").read_text())
    before = tree_state(worker)
    options = Options(semantics="upstream", layout="oci", snapshotter="overlayfs")

    if {o["exit_code"] for o in outcome["outcomes"]} != {0}:
        with pytest.raises(AsyncmigError, match=EXPECTED_MESSAGES[case]) as caught:
            await asyncmig.migrate(worker, options)
        assert type(caught.value) is not asyncmig.IncompleteMigrationError
        assert tree_state(worker) == before
        return

    report = await asyncmig.migrate(worker, options)

    if case in ("to-exists", "from-missing"):
        assert tree_state(worker) == before
        expected = Outcome.ALREADY_MIGRATED if case == "to-exists" else Outcome.NOTHING_TO_DO
        assert report.outcome is expected
        return
    assert report.outcome is Outcome.MIGRATED
    assert dump_lines(worker / "metadata_v2.db") == golden_lines(edge_cases / case / "expected.metadata_v2.jsonl")
    expected_meta = golden_lines(edge_cases / case / "expected.containerdmeta.jsonl")
    assert containerd_state(worker / "containerdmeta.db") == normalized(expected_meta)
    assert worker.joinpath("metadata.db").read_bytes() == before["metadata.db"][1]
    assert not worker.joinpath("metadata_v2.db.tmp").exists()


@pytest.mark.parametrize("case", EDGE_CASES)
async def test_a_dry_run_changes_nothing_and_fails_where_the_migration_would(
    case: str, edge_cases: Path, tmp_path: Path
) -> None:
    worker = copy_tree(edge_cases / case / "in", tmp_path / "worker")
    before = tree_state(worker)
    options = Options(semantics="upstream", snapshotter="overlayfs", dry_run=True)
    if case in EXPECTED_MESSAGES:
        with pytest.raises(AsyncmigError, match=EXPECTED_MESSAGES[case]):
            await asyncmig.migrate(worker, options)
    else:
        await asyncmig.migrate(worker, options)
    assert tree_state(worker) == before


def test_every_failure_of_upstream_has_a_message_here(edge_cases: Path) -> None:
    failing = set()
    for case in edge_cases.iterdir():
        outcome = json.loads((case / "outcome.json").read_text())
        failing |= {case.name for o in outcome["outcomes"] if o["exit_code"]}
    assert failing == set(EXPECTED_MESSAGES)
