"""The nine differences between hardened and upstream's semantics, each shown in a real containerd from both sides.

The number in a test's name is that of the difference in docs/differences.md.  What a collection takes, the real collector says,
which is forced: the daemons here collect nothing of their own accord.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncmig
from asyncmig import DatabaseLockedError, LayoutError, Options, Outcome, Progress, RecordError, Report, Stage
from asyncmig.migration.semantics import SEMANTICS
from tests.caches import ROOT, TIME, Snapshot, V1Cache, digest, migrate_with, sample_cache, value
from tests.interop.containerd import Containerd, ContainerdError
from tests.interop.livecache import build_cache
from tests.states import dump_lines

pytestmark = pytest.mark.anyio

SNAPSHOTTER = "native"
WORKER = f"containerd-{SNAPSHOTTER}"
FLAT = "containerd.io/gc.flat"
CODE = Path(__file__).parents[2]


@pytest.fixture(params=["upstream", "hardened"])
def semantics(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["live", "offline"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def migrate(daemon: Containerd, worker: Path, semantics: str, way: str = "live", **options: Any) -> Report:
    """Migrate while the daemon runs, or while it is stopped; afterwards it runs."""
    if way == "live":
        return await asyncmig.migrate(
            worker, Options(semantics=SEMANTICS[semantics].name, address=str(daemon.address), **options)
        )
    daemon.stop()
    try:
        return await asyncmig.migrate(
            worker, Options(semantics=SEMANTICS[semantics].name, containerd_root=daemon.root, **options)
        )
    finally:
        daemon.start()


def build(daemon: Containerd, cache: V1Cache, directory: Path) -> Path:
    return build_cache(daemon, cache, directory / WORKER, snapshotter=SNAPSHOTTER)


def records_of(worker: Path) -> dict[str, dict[str, Any]]:
    """The values of all records of metadata_v2.db; "" for one that is cleared."""
    records: dict[str, dict[str, Any]] = {}
    for entry in map(json.loads, dump_lines(worker / "metadata_v2.db")):
        path = entry["p"]
        if path[0] == "_main" and len(path) == 2:
            values = records.setdefault(path[1], {})
            if "k" in entry:
                values[entry["k"]] = json.loads(entry["v"])["value"] if entry.get("v") else ""
    return records


def index_of(worker: Path) -> set[str]:
    entries = map(json.loads, dump_lines(worker / "metadata_v2.db"))
    return {entry["k"] for entry in entries if entry["p"] == ["_index"] and "k" in entry}


def snapshots(daemon: Containerd) -> set[str]:
    return daemon.snapshots(SNAPSHOTTER)


def is_labelled(daemon: Containerd, snapshot: str) -> bool:
    return ROOT in daemon.labels("snapshot", snapshot, snapshotter=SNAPSHOTTER)


def blobs_of(*names: str) -> set[str]:
    return {digest(f"blob {name}") for name in names}


def codes(report: Report) -> set[str]:
    return {note.code for note in report.notes}


def decisions(report: Report) -> dict[str, tuple[str, str]]:
    return {decision.record: (decision.code.value, decision.action.value) for decision in report.decisions}


def make_lease(daemon: Containerd, lease: str, *labels: str) -> None:
    """A lease that holds nothing; without the option ctr's expires after a day."""
    daemon.ctr("leases", "create", "--id", lease, "--expires", "0s", *labels)


def check_untouched(daemon: Containerd, worker: Path, cache: V1Cache) -> None:
    """Nothing is changed: no lease, no file, and every label is there."""
    assert daemon.leases() == {}
    assert os.listdir(worker) == ["metadata.db"]
    for name, snapshot in cache.snapshots.items():
        assert daemon.labels("snapshot", name, snapshotter=SNAPSHOTTER) == snapshot.labels
    for name, labels in cache.blobs.items():
        assert daemon.labels("content", name) == labels


# -- 1: leases that exist


async def test_1_a_lease_that_exists_and_holds_nothing(semantics: str, way: str, daemon: Containerd, tmp_path: Path) -> None:
    """What upstream's own migration leaves when it is killed between Create and AddResource."""
    cache = V1Cache()
    cache.layer("untouched")
    cache.layer("half-made")
    worker = build(daemon, cache, tmp_path)
    make_lease(daemon, "half-made", f"{FLAT}={TIME}")
    report = await migrate(daemon, worker, semantics, way)
    assert set(records_of(worker)) == {"untouched", "half-made"}
    daemon.collect_garbage()
    kept = {"untouched", "half-made"} if semantics == "hardened" else {"untouched"}
    assert (snapshots(daemon), daemon.blobs()) == (kept, blobs_of(*kept))
    assert codes(report) == (set() if semantics == "hardened" else {"lease-incomplete", "caveat"})


# -- 2: the order of the tail


def vanish_at(stage: str, semantics: str, worker: str, address: str, backend: str) -> None:
    """Migrate, and be killed when the stage begins; for a process of its own."""

    class Killed(Progress):
        def stage(self, reached: Stage, total: int | None) -> None:
            if reached == stage:
                os.kill(os.getpid(), signal.SIGKILL)

    options = Options(semantics=SEMANTICS[semantics].name, address=address)
    anyio.run(partial(asyncmig.migrate, worker, options, progress=Killed()), backend=backend)


def run_and_vanish(*arguments: str) -> int:
    program = f"import sys; from {__name__} import vanish_at; vanish_at(*sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=CODE, timeout=60, check=False).returncode


@pytest.mark.parametrize(
    ("semantics", "stage", "labels", "published"),
    [
        ("upstream", "release", True, False),
        ("upstream", "publish", False, False),  # the old protection is gone, and the new database is not there
        ("hardened", "publish", True, False),
        ("hardened", "release", True, True),
    ],
)
async def test_2_killed_between_the_last_two_stages(
    semantics: str, stage: str, labels: bool, published: bool, daemon: Containerd, tmp_path: Path, anyio_backend: str
) -> None:
    worker = build(daemon, sample_cache(), tmp_path)
    assert run_and_vanish(stage, semantics, str(worker), str(daemon.address), anyio_backend) == -signal.SIGKILL
    assert {is_labelled(daemon, name) for name in snapshots(daemon)} == {labels}
    assert (worker / "metadata_v2.db").exists() == published

    # In either order the leases are complete by now, so a collection takes nothing that a record has, but upstream's takes
    # views without which there would be no way back.
    daemon.collect_garbage()
    owned = set(sample_cache().snapshots) - {"view"}
    assert snapshots(daemon) == owned | ({"view"} if labels else set())
    assert daemon.blobs() == set(sample_cache().blobs)

    report = await migrate(daemon, worker, semantics)
    assert report.outcome is (Outcome.COMPLETED if published else Outcome.MIGRATED)
    assert "interrupted-before" in codes(report)
    assert not any(is_labelled(daemon, name) for name in snapshots(daemon))
    daemon.collect_garbage()
    assert (snapshots(daemon), daemon.blobs()) == (owned, set(sample_cache().blobs))
    assert set(records_of(worker)) == set(sample_cache().records)


async def test_2_no_label_goes_before_the_new_database_is_there(semantics: str, tmp_path: Path) -> None:
    """Not at any moment, whatever the moment of a kill."""
    state = sample_cache().in_memory()
    sample_cache().write_metadata(tmp_path / "metadata.db")
    published: set[bool] = set()

    async def watch(verb: str, name: str) -> None:
        if verb.startswith("update"):
            published.add(os.path.exists(tmp_path / "metadata_v2.db"))  # noqa: ASYNC240

    state.on_call = watch
    await migrate_with(tmp_path, state.stores(), semantics=SEMANTICS[semantics])
    assert published == {semantics == "hardened"}


# -- 3: records that are not finalised


async def test_3_the_lease_of_a_holder_is_never_deleted(semantics: str, daemon: Containerd, tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("base", blob=False)
    cache.unfinalised("holder", "mutable", "base")
    worker = build(daemon, cache, tmp_path)
    await migrate(daemon, worker, semantics)
    assert set(daemon.leases()) == {"base", "mutable"} | ({"holder"} if semantics == "upstream" else set())

    # BuildKit drops the holder when its mutable record is used again or pruned, and then its metadata alone (cache/manager.go
    # GetMutable: equalImmutable.remove(ctx, false)): natively it has no lease before finalize.  The others have theirs deleted.
    for lease in ("mutable", "base"):
        daemon.ctr("leases", "delete", "--sync", lease)
    daemon.collect_garbage()
    assert snapshots(daemon) == set()
    assert set(daemon.leases()) == ({"holder"} if semantics == "upstream" else set())


# -- 4: the size of blobs


async def test_4_the_size_of_a_blob(semantics: str, daemon: Containerd, tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("a", data=gzip.compress(b"a"))
    cache.layer("b", "a", data=gzip.compress(bytes(range(256))))
    cache.layer("c", "b", blob=False)
    worker = build(daemon, cache, tmp_path)
    await migrate(daemon, worker, semantics)
    rows = [line.split() for line in daemon.ctr("content", "ls").splitlines()[1:]]
    sizes = {row[0]: int(row[1].removesuffix("B")) for row in rows}  # from 1000 on ctr rounds: these are smaller
    records = records_of(worker)
    if semantics == "upstream":
        assert not any("cache.blobsize" in values for values in records.values())
    else:
        assert {name: records[name]["cache.blobsize"] for name in "ab"} == {n: sizes[records[n]["cache.blob"]] for n in "ab"}
        assert "cache.blobsize" not in records["c"]


# -- 5: a look at the blobs

DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
LAYERS = {
    "gzip": (gzip.compress(b"layer"), DOCKER_GZIP),
    "zstd": (b"\x28\xb5\x2f\xfd and the rest", "application/vnd.oci.image.layer.v1.tar+zstd"),
    "tar": (b"etc/passwd".ljust(512, b"\0"), "application/vnd.docker.image.rootfs.diff.tar"),
}


async def test_5_the_media_type_is_told_from_the_data(semantics: str, way: str, daemon: Containerd, tmp_path: Path) -> None:
    cache = V1Cache()
    for name, (data, _) in LAYERS.items():
        cache.layer(name, data=data)
    worker = build(daemon, cache, tmp_path)
    await migrate(daemon, worker, semantics, way)
    expected = {name: media_type if semantics == "hardened" else DOCKER_GZIP for name, (_, media_type) in LAYERS.items()}
    assert {name: values["cache.mediatype"] for name, values in records_of(worker).items()} == expected


def data_file(daemon: Containerd, blob: str) -> Path:
    return daemon.root / "io.containerd.content.v1.content" / "blobs" / blob.replace(":", "/")


LOSING = {"hardened": {"max_dropped": 100}, "upstream": {}}
"""Options for the migration of a cache so small that one blob is more than a twentieth of it."""


async def test_5_a_blob_whose_data_is_missing_or_cut(semantics: str, way: str, daemon: Containerd, tmp_path: Path) -> None:
    """containerd's Info looks at its database alone, so it goes on telling that such a blob is there."""
    cache = V1Cache()
    data = {name: gzip.compress(f"layer {name}".encode() * 1000) for name in ("good", "gone", "cut")}
    for name, content in data.items():
        cache.layer(name, data=content)
    worker = build(daemon, cache, tmp_path)
    blobs = {name: "sha256:" + sha256(content).hexdigest() for name, content in data.items()}
    data_file(daemon, blobs["gone"]).unlink()
    os.truncate(data_file(daemon, blobs["cut"]), len(data["cut"]) - 1)

    report = await migrate(daemon, worker, semantics, way, **LOSING[semantics])
    records = records_of(worker)
    kept = {"good"} if semantics == "hardened" else set(data)
    assert {name for name, values in records.items() if values.get("cache.blob")} == kept
    assert {name for name, values in records.items() if values.get("cache.chainID")} == kept
    assert {note.name for note in report.notes if note.code == "blob-data-missing"} == set(data) - kept
    for name in data:
        held = {("content", blobs[name])} if name in kept else set()
        assert daemon.lease_resources(name) == {(f"snapshots/{SNAPSHOTTER}", name), *held}


async def test_5_a_blob_whose_data_is_missing_can_be_made_anew(
    semantics: str, way: str, daemon: Containerd, tmp_path: Path
) -> None:
    """While containerd's database has it, the data is refused ("already exists"), which BuildKit takes for success."""
    cache = V1Cache()
    cache.layer("good")
    cache.layer("gone")
    worker = build(daemon, cache, tmp_path)
    blob = digest("blob gone")
    data_file(daemon, blob).unlink()
    report = await migrate(daemon, worker, semantics, way, **LOSING[semantics])
    assert "leftovers" not in codes(report), "it is a record's, and the record has no use for it"
    daemon.collect_garbage()
    if semantics == "hardened":
        daemon.write_blob(blob, b"blob gone", {})
    else:
        with pytest.raises(ContainerdError, match="already exists"):
            daemon.write_blob(blob, b"blob gone", {})
    assert data_file(daemon, blob).exists() == (semantics == "hardened")


# -- 6: chain IDs


async def test_6_a_child_of_a_layer_without_blob(semantics: str, daemon: Containerd, tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("bare", blob=False)
    cache.layer("child", "bare")
    cache.layer("grandchild", "child")
    worker = build(daemon, cache, tmp_path)
    await migrate(daemon, worker, semantics)
    child = records_of(worker)["child"]
    chain_keys = {key for key in index_of(worker) if key.startswith(("chainid:", "blobchainid:"))}
    if semantics == "hardened":
        assert child["cache.diffID"] == digest("diff child")
        assert not {"cache.chainID", "cache.blobChainID"} & child.keys()
        assert chain_keys == set()
    else:
        layer = f"{digest('blob child')} {digest('diff child')}"
        assert child["cache.chainID"] == digest(f" {digest('diff child')}")
        assert child["cache.blobChainID"] == digest(f" {digest(layer)}")
        assert len(chain_keys) == 4


# -- 7: broken records


def broken_cache() -> V1Cache:
    cache = V1Cache()
    cache.layer("base")
    cache.layer("middle", "base")
    cache.layer("top", "middle")
    cache.unfinalised("holder", "mutable", "base")
    return cache


def lose_mutable(cache: V1Cache) -> None:
    del cache.records["mutable"], cache.snapshots["mutable"]


Damage = Callable[[V1Cache], object]
BROKEN: dict[str, tuple[Damage, dict[str, tuple[str, str]]]] = {
    "missing snapshot": (lambda cache: cache.snapshots.pop("top"), {"top": ("snapshot-missing", "dropped")}),
    "parent without record": (lambda cache: cache.records.pop("middle"), {"middle": ("record-missing", "repaired")}),
    "mutable without record": (lambda cache: cache.records.pop("mutable"), {"mutable": ("record-missing", "repaired")}),
    "mutable gone": (lose_mutable, {"holder": ("mutable-missing", "dropped")}),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_7_one_broken_record(case: str, daemon: Containerd, tmp_path: Path) -> None:
    cache = broken_cache()
    damage, expected = BROKEN[case]
    damage(cache)
    worker = build(daemon, cache, tmp_path)
    with pytest.raises(RecordError, match="or use --semantics hardened"):
        await migrate(daemon, worker, "upstream")
    check_untouched(daemon, worker, cache)

    report = await migrate(daemon, worker, "hardened", max_dropped=100)
    assert decisions(report) == expected
    dropped = {name for name, (_, action) in expected.items() if action == "dropped"}
    records = records_of(worker)
    assert set(records) == set(broken_cache().records) - dropped - (set() if "mutable" in cache.snapshots else {"mutable"})
    daemon.collect_garbage()
    assert snapshots(daemon) == set(records) - {"holder"}
    assert daemon.blobs() >= {values["cache.blob"] for values in records.values() if "cache.blob" in values}


def crash(daemon: Containerd, worker: Path, state: str) -> None:
    """What a BuildKit v0.6 leaves that is killed while it finalises ``h``, made by its calls (cache/refs.go ``finalize``).

    i: the snapshot is committed.  ii: the mutable record is cleared, too.  iii: the note in ``h`` is cleared instead; these two
    go in any order, one of them in a goroutine.
    """
    labels = {ROOT: TIME}
    daemon.prepare(SNAPSHOTTER, "base", "", labels)
    daemon.commit(SNAPSHOTTER, "base layer", "base", labels)
    daemon.prepare(SNAPSHOTTER, "m", "base layer", labels)
    daemon.commit(SNAPSHOTTER, "h", "m", labels)
    daemon.prepare(SNAPSHOTTER, "child", "h", labels)  # what it was finalised for
    cache = V1Cache()
    cache.records = {name: {"cache.createdAt": value(1)} for name in ("base layer", "m", "h", "child")}
    cache.records["h"]["cache.equalMutable"] = b"" if state == "iii" else value("m")
    if state == "ii":
        del cache.records["m"]
    worker.mkdir()
    cache.write_metadata(worker / "metadata.db")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("i", {"h": ("holder-finalised", "repaired"), "m": ("mutable-dead", "repaired")}),
        ("ii", {"h": ("holder-finalised", "repaired")}),
        ("iii", {"m": ("snapshot-missing", "dropped")}),
    ],
)
async def test_7_killed_while_finalising(
    state: str, expected: dict[str, tuple[str, str]], daemon: Containerd, tmp_path: Path
) -> None:
    worker = tmp_path / WORKER
    crash(daemon, worker, state)
    cache = V1Cache(snapshots={name: Snapshot() for name in ("base layer", "h", "child")})
    with pytest.raises(RecordError, match="or use --semantics hardened"):
        await migrate(daemon, worker, "upstream")
    check_untouched(daemon, worker, cache)

    report = await migrate(daemon, worker, "hardened", max_dropped=100)
    assert decisions(report) == expected
    records = records_of(worker)
    assert set(records) == set(daemon.leases()) == set(cache.snapshots)
    assert (records["h"]["snapshot.committed"], records["h"]["cache.equalMutable"]) == (True, "")
    assert (records["h"]["cache.parent"], records["child"]["cache.parent"]) == ("base layer", "h")
    assert "snapshot.committed" not in records["child"]
    daemon.collect_garbage()
    assert snapshots(daemon) == set(cache.snapshots)
    assert json.loads(daemon.ctr("snapshots", "--snapshotter", SNAPSHOTTER, "info", "h"))["Kind"] == "Committed"


# -- 8: locks and preflight, which asyncmig has with either semantics


async def test_8_a_containerd_that_runs_is_noticed(semantics: str, daemon: Containerd, tmp_path: Path) -> None:
    """Upstream's code waits for ever for this lock."""
    cache = sample_cache()
    worker = build(daemon, cache, tmp_path)
    assert daemon._process is not None
    expected = rf"meta\.db: locked by containerd \(pid {daemon._process.pid}\); stop the daemon"
    with pytest.raises(DatabaseLockedError, match=expected):
        await asyncmig.migrate(worker, Options(semantics=SEMANTICS[semantics].name, containerd_root=daemon.root))
    check_untouched(daemon, worker, cache)


async def test_8_a_wrong_place_is_told_the_right_one(semantics: str, daemon: Containerd, tmp_path: Path) -> None:
    worker = build_cache(daemon, sample_cache(), tmp_path / WORKER, snapshotter=SNAPSHOTTER, namespace="moby")
    right = r"use instead: --namespace moby --snapshotter native \(has 6 of them\)"
    for wrong in ({}, {"namespace": "moby", "snapshotter": "overlayfs"}):
        with pytest.raises(LayoutError, match=right):
            await migrate(daemon, worker, semantics, **wrong)
    with pytest.raises(LayoutError, match=r"meta\.db: has no namespace buildkit; there is: moby"):
        await migrate(daemon, worker, semantics, "offline")
    assert daemon.leases("moby") == {}
    assert daemon.labels("snapshot", "a", "moby", snapshotter=SNAPSHOTTER) == {ROOT: TIME}
    assert os.listdir(worker) == ["metadata.db"]
    await migrate(daemon, worker, semantics, namespace="moby")


# -- 9: what belongs to no record


@pytest.mark.parametrize(("semantics", "strip"), [("upstream", False), ("hardened", False), ("hardened", True)])
async def test_9_what_belongs_to_no_record(semantics: str, strip: bool, way: str, daemon: Containerd, tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("layer")
    cache.layer("orphan", "layer")
    del cache.records["orphan"]
    worker = build(daemon, cache, tmp_path)
    report = await migrate(daemon, worker, semantics, way, **({"strip_leftovers": True} if strip else {}))

    notes = codes(report) & {"leftovers", "leftovers-released"}
    found = (report.leftovers.snapshots, report.leftovers.blobs)
    if semantics == "upstream":
        assert (notes, found) == (set(), ([], []))
    else:
        assert (notes, found) == ({"leftovers-released" if strip else "leftovers"}, (["orphan"], [digest("blob orphan")]))
    daemon.collect_garbage()
    kept = {"layer"} if strip else {"layer", "orphan"}
    assert (snapshots(daemon), daemon.blobs()) == (kept, blobs_of(*kept))


async def test_9_a_view_that_somebody_uses(semantics: str, way: str, daemon: Containerd, tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("layer")
    for name in ("left behind", "in use", "was in use"):
        cache.view(name, "layer")
    worker = build(daemon, cache, tmp_path)
    make_lease(daemon, "somebody")
    make_lease(daemon, "nobody", f"containerd.io/gc.expire={TIME}")
    daemon.hold("somebody", f"snapshots/{SNAPSHOTTER}", "in use")
    daemon.hold("nobody", f"snapshots/{SNAPSHOTTER}", "was in use")
    report = await migrate(daemon, worker, semantics, way)
    assert is_labelled(daemon, "in use") == (semantics == "hardened")
    assert report.leftovers.snapshots == (["in use"] if semantics == "hardened" else [])
    daemon.collect_garbage()
    assert snapshots(daemon) == {"layer", "in use"}
