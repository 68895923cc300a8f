"""The pipeline over stores in memory, where every single call can be watched, failed or cancelled."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.buildkit.record import Record
from asyncmig.errors import DatabaseError, IncompleteMigrationError, RecordError, StoreError
from asyncmig.migration.cache import Cache
from asyncmig.migration.progress import Progress, Stage
from asyncmig.migration.protect import rfc3339_nano
from asyncmig.migration.report import Outcome
from asyncmig.migration.semantics import HARDENED, UPSTREAM, Semantics
from asyncmig.stores.memory import MemoryLease
from asyncmig.stores.ports import Resource
from tests.caches import (
    ROOT,
    V1Cache,
    digest,
    final_state,
    holders_of_holders,
    labels_of,
    migrate_with,
    new_reporter,
    rerun_with,
    sample_cache,
    start_again,
    value,
)
from tests.states import dump_lines, tree_state

pytestmark = pytest.mark.anyio


class Calls:
    """A hook that counts calls, and may fail or cancel at one of them."""

    def __init__(self, at: int = -1, do: Callable[[], None] = lambda: None) -> None:
        self.verbs: list[str] = []
        self.at = at
        self.do = do

    async def __call__(self, verb: str, name: str) -> None:
        self.verbs.append(verb)
        if len(self.verbs) - 1 == self.at:
            self.do()
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    directory = tmp_path / "worker"
    directory.mkdir()
    sample_cache().write_metadata(directory / "metadata.db")
    return directory


async def test_everything_is_protected_and_released(worker: Path) -> None:
    state = sample_cache().in_memory()
    report = await migrate_with(worker, state.stores())

    assert set(state.leases) == {"a", "b", "c", "d", "holder", "mutable", "holder-of-root", "mutable-root"}
    assert state.leases["b"].resources == {Resource("snapshots/overlayfs", "b"), Resource("content", digest("blob b"))}
    assert state.leases["holder"].resources == {Resource("snapshots/overlayfs", "holder")}
    assert set(state.leases["a"].labels) == {"containerd.io/gc.flat"}
    assert not [name for name, labels in labels_of(state).items() if ROOT in labels]
    assert labels_of(state)[digest("blob a")] == {"containerd.io/uncompressed": digest("diff a")}
    assert (report.counts.blobs, report.counts.chains, report.counts.views_released) == (3, 3, 1)


async def test_no_label_goes_before_all_leases_are_complete(worker: Path) -> None:
    state, calls = sample_cache().in_memory(), Calls()
    state.on_call = calls
    await migrate_with(worker, state.stores())
    first_update = min(i for i, verb in enumerate(calls.verbs) if verb.startswith("update"))
    assert "add resource" in calls.verbs[:first_update]
    assert not {"create lease", "add resource"} & set(calls.verbs[first_update:])


async def test_views_are_asked_for_before_the_tail_and_only_there(worker: Path) -> None:
    state, calls = sample_cache().in_memory(), Calls()
    state.on_call = calls
    report = await migrate_with(worker, state.stores())
    assert "views" in calls.verbs[: calls.verbs.index("create lease")]
    assert calls.verbs.count("views") == 1
    assert (report.counts.views, report.counts.views_released) == (1, 1)


async def test_stages_come_in_upstreams_order(worker: Path) -> None:
    stages: list[Stage] = []

    class Recorder(Progress):
        def stage(self, stage: Stage, total: int | None) -> None:
            stages.append(stage)

    await migrate_with(worker, sample_cache().in_memory().stores(), progress=Recorder())
    assert [str(s) for s in stages] == [
        "read", "resolve", "blobs", "chains", "leases", "build", "protect", "verify", "release", "publish",
    ]  # fmt: skip


async def test_hardened_publishes_before_a_label_goes(worker: Path) -> None:
    stages: list[Stage] = []

    class Recorder(Progress):
        def stage(self, stage: Stage, total: int | None) -> None:
            stages.append(stage)

    state = sample_cache().in_memory()

    async def look(verb: str, name: str) -> None:
        if verb.startswith("update"):
            assert (worker / "metadata_v2.db").exists()

    state.on_call = look
    await migrate_with(worker, state.stores(), semantics=HARDENED, progress=Recorder())
    assert [str(s) for s in stages[-4:]] == ["protect", "verify", "publish", "release"]


async def count_calls(worker: Path, target: Path, semantics: Semantics) -> tuple[int, int, object]:
    """Calls of an uninterrupted migration, how many of them come before the tail, and its result."""
    target.mkdir()  # noqa: ASYNC240
    sample_cache().write_metadata(target / "metadata.db")
    state, calls = sample_cache().in_memory(), Calls()
    state.on_call = calls
    await migrate_with(target, state.stores(), semantics=semantics)
    tail = min(i for i, verb in enumerate(calls.verbs) if verb == "create lease")
    return len(calls.verbs), tail, final_state(state, target)


async def test_a_failure_at_any_call_is_repaired_by_a_rerun(worker: Path, tmp_path: Path, semantics: Semantics) -> None:
    total, tail, expected = await count_calls(worker, tmp_path / "uninterrupted", semantics)

    def fail() -> None:
        raise StoreError("the store is out of order")

    for at in range(total):
        state = sample_cache().in_memory(concurrency=1)
        before, labels = tree_state(worker), labels_of(state)
        state.on_call = Calls(at, fail)
        with pytest.raises(StoreError if at < tail else IncompleteMigrationError, match="out of order"):
            await migrate_with(worker, state.stores(), semantics=semantics)
        if at < tail:
            assert tree_state(worker) == before, "no file is left behind"
            assert not state.leases
            assert labels_of(state) == labels
        else:
            assert set(tree_state(worker)) - set(before) <= {"metadata_v2.db.journal", "metadata_v2.db"}
        state.on_call = Calls()
        await rerun_with(worker, state.stores(), semantics=semantics)
        assert final_state(state, worker) == expected
        start_again(worker)
        assert tree_state(worker) == before


async def test_a_rerun_completes_its_own_leases_and_leaves_foreign_ones_alone(worker: Path) -> None:
    """Upstream can't tell them apart: it skips both, and what its own half-made leases lack is lost."""

    async def fail(verb: str, name: str) -> None:
        if name == f"b content {digest('blob b')}":
            raise StoreError("the connection has gone")

    state = sample_cache().in_memory(concurrency=1)
    state.leases["a"] = MemoryLease({"mine": "1"})
    state.on_call = fail
    with pytest.raises(IncompleteMigrationError, match="stage protect: the connection has gone"):
        await migrate_with(worker, state.stores())
    assert state.leases["b"].resources == {Resource("snapshots/overlayfs", "b")}

    state.on_call = Calls()
    report = await migrate_with(worker, state.stores())
    assert state.leases["b"].resources == {Resource("snapshots/overlayfs", "b"), Resource("content", digest("blob b"))}
    assert state.leases["a"] == MemoryLease({"mine": "1"})
    assert {n.code for n in report.notes} >= {"interrupted-before", "lease-incomplete"}
    assert (report.counts.leases_created, report.counts.leases_existing) == (6, 2)


async def test_a_foreign_lease_that_goes_between_two_runs_is_ours_when_we_make_it(worker: Path) -> None:
    """An operator may well delete a lease that a run has called incomplete."""

    def fail_at(verb: str, name: str) -> Callable[[str, str], Awaitable[None]]:
        async def fail(called: str, about: str) -> None:
            if called == verb and about.startswith(name):
                raise StoreError("the connection has gone")

        return fail

    state = sample_cache().in_memory(concurrency=1)
    state.leases["a"] = MemoryLease({"mine": "1"})
    state.on_call = fail_at("create lease", "b")
    with pytest.raises(IncompleteMigrationError):
        await migrate_with(worker, state.stores())
    del state.leases["a"]
    state.on_call = fail_at("add resource", "a ")
    with pytest.raises(IncompleteMigrationError):
        await migrate_with(worker, state.stores())
    assert state.leases["a"].resources == set()

    state.on_call = Calls()
    await migrate_with(worker, state.stores())
    assert state.leases["a"].resources == {Resource("snapshots/overlayfs", "a"), Resource("content", digest("blob a"))}


_HEAD = '{"asyncmig_journal": 3, "semantics": "", "namespace": "", "snapshotter": "", "place": "", "v1": "", "v2": ""}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '{"asyncmig_journal": 1, "existing_leases": []}',
        '{"asyncmig_journal": 3}',
        _HEAD,
        _HEAD + '\n["lease", 1, 2]\n["end"]',
        _HEAD + '\n["foreign", "a"]\n["en',
    ],
)
async def test_a_journal_that_is_none_stops_the_migration(content: str, worker: Path, semantics: Semantics) -> None:
    worker.joinpath("metadata_v2.db.journal").write_text(content)
    before = tree_state(worker)
    state = sample_cache().in_memory()
    with pytest.raises(
        DatabaseError, match=r"metadata_v2\.db\.journal: this is no journal, or another version of asyncmig wrote it"
    ):
        await migrate_with(worker, state.stores(), semantics=semantics)
    assert not state.leases
    assert tree_state(worker) == before


async def test_a_cancellation_at_any_call_changes_nothing_or_completes(
    worker: Path, tmp_path: Path, semantics: Semantics
) -> None:
    total, tail, expected = await count_calls(worker, tmp_path / "uninterrupted", semantics)
    for at in range(total):
        state = sample_cache().in_memory()
        before, labels = tree_state(worker), labels_of(state)
        with anyio.CancelScope() as scope:
            state.on_call = Calls(at, scope.cancel)
            await migrate_with(worker, state.stores(), semantics=semantics)
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        if at < tail:
            assert tree_state(worker) == before
            assert not state.leases
            assert labels_of(state) == labels
        else:
            assert final_state(state, worker) == expected
            start_again(worker)


async def test_a_cancellation_while_building_removes_the_new_file(worker: Path) -> None:
    before = tree_state(worker)
    with anyio.CancelScope() as scope:

        class CancelWhileBuilding(Progress):
            def stage(self, stage: Stage, total: int | None) -> None:
                if stage is Stage.BUILD:
                    scope.cancel()

        await migrate_with(worker, sample_cache().in_memory().stores(), progress=CancelWhileBuilding())
    assert scope.cancelled_caught
    assert tree_state(worker) == before


async def test_records_go_some_at_a_time(worker: Path) -> None:
    """All at once they would keep the interpreter lock for a quarter of a second a million."""
    with closing(MetadataDb.open(worker / "metadata.db")) as database:
        cache = Cache(database, UPSTREAM, new_reporter("", Outcome.MIGRATED))
    cache.records = [Record(f"{i}") for i in range(10_000)]
    cache.by_id = {record.id: record for record in cache.records}
    left = [len(cache.records)]
    cache.forget_records(lambda: left.append(len(cache.by_id)))
    assert (cache.records, cache.by_id) == ([], {})
    assert max(before - after for before, after in pairwise(left)) < 1000


async def test_progress_that_raises_does_not_end_the_migration(worker: Path) -> None:
    class Broken(Progress):
        def stage(self, stage: Stage, total: int | None) -> None:
            if stage is Stage.RELEASE:
                raise OSError(32, "Broken pipe")

        def advance(self, count: int) -> None:
            raise ValueError("out of order")

    state = sample_cache().in_memory()
    report = await migrate_with(worker, state.stores(), progress=Broken())
    assert (worker / "metadata_v2.db").exists()
    assert [(note.code, note.text) for note in report.notes if note.code == "progress-failed"] == [
        ("progress-failed", "the progress callback raised ValueError; it was not called again")
    ], "silenced, but not without a trace"


async def test_long_chains_of_holders_take_the_parent_at_their_end(tmp_path: Path) -> None:
    """No BuildKit makes them; they must cost no more than others, and a circle must end."""
    cache = holders_of_holders(3000)
    cache.records["x"] = {"cache.equalMutable": value("y")}
    cache.records["y"] = {"cache.equalMutable": value("x")}
    cache.records["self"] = {"cache.equalMutable": value("self")}
    cache.write_metadata(tmp_path / "metadata.db")
    await migrate_with(tmp_path, cache.in_memory().stores())
    parents = {}
    for line in dump_lines(tmp_path / "metadata_v2.db"):
        entry = json.loads(line)
        if entry.get("k") == "cache.parent":
            parents[entry["p"][1]] = json.loads(entry["v"])["value"]
    assert {parents[f"h{i:04}"] for i in range(3000)} == {"base"}
    assert (parents["x"], parents["y"], parents["self"]) == ("", "", "")


async def test_an_existing_lease_is_skipped_as_upstream_does(worker: Path) -> None:
    state = sample_cache().in_memory()
    state.leases["a"] = MemoryLease({"mine": "1"})
    report = await migrate_with(worker, state.stores())
    assert state.leases["a"] == MemoryLease({"mine": "1"}, set())
    assert (report.counts.leases_created, report.counts.leases_existing) == (7, 1)
    incomplete = [n for n in report.notes if n.code == "lease-incomplete"]
    assert [n.name for n in incomplete] == ["a"], "what upstream loses is at least reported"
    assert f"lacks content {digest('blob a')}, snapshots/overlayfs a" in incomplete[0].text


async def test_a_lost_resource_is_noticed_before_any_label_goes(worker: Path) -> None:
    state = sample_cache().in_memory()
    labels = labels_of(state)

    async def lose(verb: str, name: str) -> None:
        if verb == "list" and name in state.leases:
            state.leases[name].resources.discard(Resource("content", digest("blob b")))

    state.on_call = lose
    with pytest.raises(IncompleteMigrationError, match="stage verify: lease b lacks 1 resource just added to it"):
        await migrate_with(worker, state.stores())
    assert labels_of(state) == labels


async def test_a_foreign_blob_that_is_missing_is_found_before_the_tail(tmp_path: Path) -> None:
    """Upstream fails on it after it has made all leases and removed some labels."""
    cache = V1Cache()
    cache.layer("a", blob=False, more={"cache.blob": value(digest("nowhere"))})
    cache.write_metadata(tmp_path / "metadata.db")
    state = cache.in_memory()
    with pytest.raises(RecordError, match=r"record a: cache\.blob names sha256:.* not in the content store"):
        await migrate_with(tmp_path, state.stores())
    assert not state.leases


async def test_a_blob_that_no_lease_can_hold_is_found_before_the_tail(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("a", blob=False, more={"cache.blob": value("md5:1234")})
    cache.write_metadata(tmp_path / "metadata.db")
    with pytest.raises(RecordError, match="is not a digest, so no lease can hold it"):
        await migrate_with(tmp_path, cache.in_memory().stores())


async def test_bytes_that_are_no_text_go_through_as_in_go(tmp_path: Path) -> None:
    """Go's JSON turns them into U+FFFD, so upstream's lease names a snapshot that does not exist."""
    cache = V1Cache()
    cache.layer("bad\udcff", blob=False)
    cache.write_metadata(tmp_path / "metadata.db")
    state = cache.in_memory()
    await migrate_with(tmp_path, state.stores())
    assert set(state.leases) == {"bad\udcff"}
    assert state.leases["bad\udcff"].resources == {Resource("snapshots/overlayfs", "bad\ufffd")}
    assert any(
        '"cache.snapshot","v":"{\\"value\\":\\"bad\\\\ufffd\\"}"' in line for line in dump_lines(tmp_path / "metadata_v2.db")
    )


@pytest.mark.parametrize(
    ("unix_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_577_934_245_123_456_789, "2020-01-02T03:04:05.123456789Z"),
        (1_577_934_245_120_000_000, "2020-01-02T03:04:05.12Z"),
        (1_577_934_245_000_000_001, "2020-01-02T03:04:05.000000001Z"),
    ],
)
def test_times_are_written_as_go_writes_them(unix_ns: int, text: str) -> None:
    assert rfc3339_nano(unix_ns) == text
