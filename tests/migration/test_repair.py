"""Broken records under hardened semantics: each state that a killed daemon leaves, and damage of other kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.errors import DropLimitError, RecordError
from asyncmig.migration.decisions import OnBroken, Policy
from asyncmig.migration.report import Report
from asyncmig.migration.semantics import HARDENED, UPSTREAM
from asyncmig.stores.memory import MemoryStores
from asyncmig.stores.ports import Resource
from tests.caches import ROOT, Snapshot, V1Cache, digest, holders_of_holders, labels_of, migrate_with, sample_cache, value
from tests.states import dump_lines, tree_state

pytestmark = pytest.mark.anyio


class Migrated:
    """A cache after its migration: records with their values decoded, index entries, externals, stores, report."""

    def __init__(self, worker: Path, state: MemoryStores, report: Report) -> None:
        self.state = state
        self.report = report
        self.records: dict[str, dict[str, object]] = {}
        self.index: list[str] = []
        self.external: set[str] = set()
        for line in dump_lines(worker / "metadata_v2.db"):
            entry = json.loads(line)
            path = entry["p"]
            if path[0] == "_main" and len(path) == 2:
                values = self.records.setdefault(path[1], {})
                if "k" in entry:
                    values[entry["k"]] = json.loads(entry["v"])["value"] if entry.get("v") else ""
            elif path[0] == "_index" and "k" in entry:
                self.index.append(entry["k"])
            elif path[0] == "_external" and len(path) == 2:
                self.external.add(path[1])

    @property
    def decisions(self) -> dict[str, tuple[str, str]]:
        """Code and action of each record's decision."""
        return {d.record: (d.code.value, d.action.value) for d in self.report.decisions}


async def migrated(cache: V1Cache, worker: Path, policy: Policy | None = None) -> Migrated:
    cache.write_metadata(worker / "metadata.db")
    state = cache.in_memory()
    report = await migrate_with(worker, state.stores(), semantics=HARDENED, policy=policy)
    return Migrated(worker, state, report)


def finalised(cache: V1Cache, *, note: bool, mutable: bool) -> None:
    """A holder after its snapshot was committed: with or without the note cleared, the mutable record cleared."""
    cache.layer("base")
    cache.snapshots["h"] = Snapshot(parent="base")
    cache.records["h"] = {"cache.createdAt": value(1), "cache.equalMutable": value("m") if note else b""}
    if mutable:
        cache.records["m"] = {"cache.createdAt": value(1)}
    cache.layer("child", "h")


async def test_a_cache_without_a_fault_has_no_decision(tmp_path: Path) -> None:
    done = await migrated(sample_cache(), tmp_path)
    assert done.report.decisions == []
    assert set(done.records) == set(sample_cache().records)
    assert done.report.counts.dropped == done.report.counts.repaired == 0


async def test_crash_state_1_mutable_record_there_and_note_not_cleared(tmp_path: Path) -> None:
    cache = V1Cache()
    finalised(cache, note=True, mutable=True)
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"h": ("holder-finalised", "repaired"), "m": ("mutable-dead", "repaired")}
    assert set(done.records) == {"base", "h", "child"}
    holder = done.records["h"]
    assert (holder["cache.equalMutable"], holder["snapshot.committed"], holder["cache.parent"]) == ("", True, "base")
    assert done.records["child"]["cache.parent"] == "h"
    assert done.state.leases["h"].resources == {Resource("snapshots/overlayfs", "h")}
    assert "m" not in done.state.leases


async def test_crash_state_2_mutable_record_gone_and_note_not_cleared(tmp_path: Path) -> None:
    cache = V1Cache()
    finalised(cache, note=True, mutable=False)
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"h": ("holder-finalised", "repaired")}
    assert done.records["h"]["cache.equalMutable"] == ""
    assert done.records["h"]["snapshot.committed"] is True


async def test_crash_state_3_mutable_record_there_and_note_cleared(tmp_path: Path) -> None:
    cache = V1Cache()
    finalised(cache, note=False, mutable=True)
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"m": ("snapshot-missing", "dropped")}
    assert set(done.records) == {"base", "h", "child"}


@pytest.mark.parametrize(("note", "mutable"), [(True, True), (True, False), (False, True)])
async def test_upstream_stops_at_each_crash_state(note: bool, mutable: bool, tmp_path: Path) -> None:
    cache = V1Cache()
    finalised(cache, note=note, mutable=mutable)
    cache.write_metadata(tmp_path / "metadata.db")
    with pytest.raises(RecordError):
        await migrate_with(tmp_path, cache.in_memory().stores(), semantics=UPSTREAM)


async def test_a_holder_and_its_mutable_record_that_both_have_data_both_stay(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.unfinalised("h", "m")
    cache.snapshots["h"] = Snapshot()
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"h": ("holder-finalised", "repaired")}
    assert done.records["h"]["snapshot.committed"] is True
    assert set(done.records) == set(done.state.leases) == {"h", "m"}
    assert "snapshot.committed" not in done.records["m"]


async def test_a_holder_whose_data_is_gone_goes_with_its_mutable_record(tmp_path: Path) -> None:
    cache = sample_cache()
    del cache.snapshots["mutable"]
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"holder": ("mutable-missing", "dropped"), "mutable": ("snapshot-missing", "dropped")}
    assert not {"holder", "mutable"} & set(done.records)


async def test_a_record_is_made_for_data_that_a_holder_has(tmp_path: Path) -> None:
    cache = sample_cache()
    del cache.records["mutable"]
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"mutable": ("record-missing", "repaired")}
    made = done.records["mutable"]
    assert (made["cache.snapshot"], made["cache.parent"]) == ("mutable", "c")
    assert "snapshot.committed" not in made
    assert done.records["holder"]["cache.equalMutable"] == "mutable"
    assert Resource("snapshots/overlayfs", "mutable") in done.state.leases["mutable"].resources


async def test_a_holder_of_nothing_goes(tmp_path: Path) -> None:
    cache = sample_cache()
    del cache.records["mutable"], cache.snapshots["mutable"]
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"holder": ("mutable-missing", "dropped")}


async def test_a_record_without_snapshot_goes_with_what_is_built_on_it(tmp_path: Path) -> None:
    cache = sample_cache()
    del cache.snapshots["b"]
    done = await migrated(cache, tmp_path)
    assert done.decisions == {
        "b": ("snapshot-missing", "dropped"),
        "c": ("parent-dropped", "dropped"),
        "d": ("parent-dropped", "dropped"),
        "holder": ("mutable-missing", "dropped"),
        "mutable": ("parent-dropped", "dropped"),
    }
    assert set(done.records) == {"a", "holder-of-root", "mutable-root"}
    assert set(done.state.leases) == {"a", "mutable-root"}
    assert not [key for key in done.index if key.endswith(("::b", "::d"))]
    assert [key for key in done.index if key.endswith("::a")]
    labels = labels_of(done.state)
    assert not [name for name in ("a", "c", digest("blob b")) if ROOT in labels[name]], "no record would ever take it off"


async def test_parents_without_record_get_one_up_to_the_root(tmp_path: Path) -> None:
    cache = sample_cache()
    for name in ("a", "b"):
        del cache.records[name]
    done = await migrated(cache, tmp_path)
    assert done.decisions == dict.fromkeys(("a", "b"), ("record-missing", "repaired"))
    assert set(done.records) == set(sample_cache().records)
    assert (done.records["b"]["cache.parent"], done.records["b"]["snapshot.committed"]) == ("a", True)
    assert "cache.parent" not in done.records["a"]
    assert "asyncmig" in str(done.records["a"]["cache.description"])
    assert done.state.leases["a"].resources == {Resource("snapshots/overlayfs", "a")}
    assert "cache.chainID" not in done.records["d"], "a layer below has no blob"


async def test_a_record_whose_parent_is_nowhere_goes(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("a")
    cache.layer("orphan", "nowhere")
    cache.layer("child", "orphan")
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"orphan": ("parent-missing", "dropped"), "child": ("parent-dropped", "dropped")}


async def test_a_made_parent_of_a_broken_chain_is_not_made(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("a")
    cache.snapshots["middle"] = Snapshot(parent="nowhere")
    cache.layer("child", "middle")
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"child": ("parent-dropped", "dropped")}
    assert set(done.records) == {"a"}


async def test_a_record_marked_deleted_goes_with_what_is_built_on_it(tmp_path: Path) -> None:
    cache = sample_cache()
    cache.records["c"]["cache.deleted"] = value(True)
    cache.records["d"]["cache.deleted"] = value(False)
    done = await migrated(cache, tmp_path)
    assert done.decisions["c"] == ("marked-deleted", "deleted")
    assert done.decisions["mutable"] == ("parent-dropped", "dropped")
    assert set(done.records) == {"a", "b", "d", "holder-of-root", "mutable-root"}


async def test_a_stub_goes(tmp_path: Path) -> None:
    cache = sample_cache()
    cache.records["stub"] = {"cache.usageCount": value(3), "cache.lastUsedAt": value(5)}
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"stub": ("snapshot-missing", "dropped")}


async def test_cycles_of_parents_and_of_holders_go_and_end(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("good")
    cache.layer("x", "y")
    cache.layer("y", "z")
    cache.layer("z", "y")
    cache.layer("self", "self")
    cache.records["h1"] = {"cache.equalMutable": value("h2")}
    cache.records["h2"] = {"cache.equalMutable": value("h1")}
    cache.records["h3"] = {"cache.equalMutable": value("h1")}
    done = await migrated(cache, tmp_path)
    assert set(done.records) == {"good"}
    assert done.decisions == {
        "x": ("parent-dropped", "dropped"),
        **dict.fromkeys(("y", "z", "self", "h1", "h2"), ("parent-cycle", "dropped")),
        "h3": ("mutable-missing", "dropped"),
    }


async def test_the_snapshot_says_who_the_parent_is(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("a")
    cache.layer("b", "a", more={"cache.parent": value("elsewhere")})
    cache.layer("c", more={"cache.parent": value("a")})
    done = await migrated(cache, tmp_path)
    assert done.decisions == dict.fromkeys("bc", ("parent-wrong", "repaired"))
    assert (done.records["b"]["cache.parent"], done.records["c"]["cache.parent"]) == ("a", "")


async def test_an_id_that_is_no_text_goes(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("good")
    cache.layer("bad\udcff", blob=False)
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"bad\udcff": ("id-unusable", "dropped")}
    assert set(done.records) == {"good"}


@pytest.mark.parametrize("broken", [b"nonsense", b"[]", b'{"value":{"Blobsum":1}}'])
async def test_a_malformed_value_is_cleared(broken: bytes, tmp_path: Path) -> None:
    cache = sample_cache()
    cache.records["b"]["blobmapping.blob"] = broken
    cache.records["b"]["etag"] = b"{"
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"b": ("value-malformed", "repaired")}
    assert len(done.report.decisions) == 2
    assert done.records["b"]["etag"] == done.records["b"]["blobmapping.blob"] == ""
    assert "cache.blob" not in done.records["b"]
    assert "cache.chainID" not in done.records["d"]


async def test_what_a_dropped_record_has_elsewhere_goes_too(tmp_path: Path) -> None:
    cache = sample_cache()
    del cache.snapshots["d"]
    cache.external = {"d": {"buildkit.contenthash.v0": b"x" * 9000}, "a": {"buildkit.contenthash.v0": b"y" * 9000}}
    done = await migrated(cache, tmp_path)
    assert done.external == {"a"}
    assert not [key for key in done.index if key.endswith("::d")]


async def test_the_index_is_put_in_order(tmp_path: Path) -> None:
    cache = sample_cache()
    missing = cache.index.pop(0)
    cache.index += ["git-remote::x::nobody", "endless", "odd::index::with::colons::a"]
    done = await migrated(cache, tmp_path)
    assert missing in done.index
    assert "odd::index::with::colons::a" in done.index
    assert not {"git-remote::x::nobody", "endless"} & set(done.index)
    assert len(done.index) == len(set(done.index))


async def test_what_a_half_migrated_record_says_of_a_blob_that_is_gone_is_cleared(tmp_path: Path) -> None:
    old = {
        "cache.blob": value(digest("nowhere")),
        "cache.diffID": value(digest("diff")),
        "cache.chainID": value(digest("chain"), f"chainid:{digest('chain')}"),
        "cache.blobChainID": value(digest("other"), f"blobchainid:{digest('other')}"),
    }
    cache = V1Cache()
    cache.layer("a", blob=False, more=old)
    cache.index += [f"chainid:{digest('chain')}::a", f"blobchainid:{digest('other')}::a"]
    done = await migrated(cache, tmp_path)
    assert done.decisions == {"a": ("blob-gone", "repaired")}
    assert {name: done.records["a"][name] for name in old} == dict.fromkeys(old, "")
    assert done.index == []


async def test_a_mapping_without_blob_does_not_hide_what_a_half_migrated_record_says(tmp_path: Path) -> None:
    more = {"cache.blob": value(digest("blob a")), "cache.diffID": value(digest("diff a"))}
    cache = V1Cache()
    cache.layer("a", more=more)
    cache.records["a"]["blobmapping.blob"] = value({"Blobsum": "", "DiffID": ""})
    done = await migrated(cache, tmp_path)
    assert (done.records["a"]["cache.blob"], done.records["a"]["cache.blobsize"]) == (digest("blob a"), 100)


async def test_chain_ids_that_are_wrong_are_computed_anew(tmp_path: Path) -> None:
    cache = V1Cache()
    more = {
        "cache.chainID": value(digest("chain"), f"chainid:{digest('chain')}"),
        "cache.blobChainID": value(digest("other"), f"blobchainid:{digest('other')}"),
    }
    cache.layer("a", more=more)
    cache.index += [f"chainid:{digest('chain')}::a", f"blobchainid:{digest('other')}::a"]
    done = await migrated(cache, tmp_path)
    assert done.records["a"]["cache.chainID"] == digest("diff a")
    assert sorted(key.split(":")[0] for key in done.index) == ["blobchainid", "blobmap", "chainid"]
    assert f"chainid:{digest('diff a')}::a" in done.index


async def test_a_blob_without_data_loses_its_label_and_is_not_called_a_leftover(tmp_path: Path) -> None:
    cache = V1Cache()
    cache.layer("a")
    cache.layer("b", "a")
    del cache.data[digest("blob b")]
    done = await migrated(cache, tmp_path)
    assert [(note.code, note.name) for note in done.report.notes] == [("blob-data-missing", "b")]
    assert ROOT not in labels_of(done.state)[digest("blob b")]
    assert done.report.leftovers.blobs == []


async def test_where_no_blob_has_data_the_labels_stay(tmp_path: Path) -> None:
    """A content store that is not mounted looks like this."""
    cache = V1Cache()
    cache.layer("a")
    cache.layer("b", "a")
    cache.data.clear()
    done = await migrated(cache, tmp_path)
    assert {note.code for note in done.report.notes} == {"blob-data-missing", "leftovers"}
    assert {ROOT in labels_of(done.state)[name] for name in cache.blobs} == {True}


# -- policies

BREAKAGES: list[tuple[str, Callable[[V1Cache], object]]] = [
    ("holder-finalised", lambda c: c.snapshots.update(holder=Snapshot(parent="c"))),
    ("record-missing", lambda c: c.records.pop("a")),
    ("record-missing", lambda c: c.records.pop("mutable")),
    ("snapshot-missing", lambda c: c.snapshots.pop("d")),
    ("marked-deleted", lambda c: c.records["d"].update({"cache.deleted": value(True)})),
    ("value-malformed", lambda c: c.records["d"].update(etag=b"{")),
    ("parent-missing", lambda c: c.snapshots.update(d=Snapshot(parent="nowhere"))),
]


@pytest.mark.parametrize(("code", "damage"), BREAKAGES)
async def test_on_broken_fail_changes_nothing(code: str, damage: Callable[[V1Cache], object], tmp_path: Path) -> None:
    cache = sample_cache()
    damage(cache)
    cache.write_metadata(tmp_path / "metadata.db")
    before, state = tree_state(tmp_path), cache.in_memory()
    with pytest.raises(RecordError, match="--on-broken fail"):
        await migrate_with(tmp_path, state.stores(), semantics=HARDENED, policy=Policy(OnBroken.FAIL))
    assert tree_state(tmp_path) == before
    assert not state.leases


@pytest.mark.parametrize(("code", "damage"), BREAKAGES)
async def test_on_broken_drop_repairs_nothing(code: str, damage: Callable[[V1Cache], object], tmp_path: Path) -> None:
    cache = sample_cache()
    damage(cache)
    done = await migrated(cache, tmp_path, Policy(OnBroken.DROP, max_dropped=100))
    assert done.report.decisions
    assert {action for _, action in done.decisions.values()} == {"deleted" if code == "marked-deleted" else "dropped"}
    assert not set(done.decisions) & set(done.records)


async def test_more_drops_than_allowed_stop_before_anything_changes(tmp_path: Path) -> None:
    cache = V1Cache()
    for i in range(40):
        cache.layer(f"r{i:02}")
    for i in range(2):
        del cache.snapshots[f"r{i:02}"]
    cache.write_metadata(tmp_path / "metadata.db")
    before, state = tree_state(tmp_path), cache.in_memory()
    policy = Policy(max_dropped=4.9)
    expected = r"2 of 40 records \(5\.0 %\) would be dropped; the limit is 4\.9 % .*The first is r00: it has no snapshot"
    with pytest.raises(DropLimitError, match=expected):
        await migrate_with(tmp_path, state.stores(), semantics=HARDENED, policy=policy)
    assert tree_state(tmp_path) == before
    assert not state.leases
    await migrate_with(tmp_path, state.stores(), semantics=HARDENED, policy=Policy(max_dropped=5))


async def test_repairs_do_not_count_as_drops(tmp_path: Path) -> None:
    cache = V1Cache()
    finalised(cache, note=True, mutable=True)
    done = await migrated(cache, tmp_path, Policy(max_dropped=0))
    assert done.report.counts.dropped == 0
    assert done.report.counts.repaired == 2


async def test_a_cache_without_any_snapshot_is_taken_for_the_wrong_place(tmp_path: Path) -> None:
    cache = sample_cache()
    cache.write_metadata(tmp_path / "metadata.db")
    state = cache.in_memory()
    state.snapshots.clear()
    with pytest.raises(RecordError, match="check that snapshotter and namespace are those of this cache"):
        await migrate_with(tmp_path, state.stores(), semantics=HARDENED, policy=Policy(max_dropped=50))
    done = await migrate_with(tmp_path, state.stores(), semantics=HARDENED, policy=Policy(max_dropped=100))
    assert done.counts.records == 0


async def test_a_chain_as_deep_as_it_likes_is_settled(tmp_path: Path) -> None:
    cache = V1Cache()
    for i in range(5000):
        cache.layer(f"r{i:04}", f"r{i - 1:04}" if i else "", blob=False)
    del cache.snapshots["r2500"]
    done = await migrated(cache, tmp_path)
    assert len(done.records) == 2500
    assert done.report.counts.dropped == 2500


async def test_long_chains_of_holders_take_the_parent_at_their_end(tmp_path: Path) -> None:
    cache = holders_of_holders(3000)
    done = await migrated(cache, tmp_path)
    assert {done.records[f"h{i:04}"]["cache.parent"] for i in range(3000)} == {"base"}
