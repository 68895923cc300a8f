"""Random damage under hardened semantics: nothing fails, nothing is lost whose data is there, and all of it can be undone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import asyncmig
from asyncmig import IndexChange, LabelChange, LeaseChange, Options, Outcome, RecordChange
from asyncmig.bolt import check
from tests.caches import V1Cache
from tests.migration.damage import damaged_caches, records_with_data
from tests.states import dump_lines, tree_state

pytestmark = pytest.mark.anyio

ANY = Options(max_dropped=100)
FILES = ("containerdmeta.db", "snapshots/metadata.db")
_quick = settings(max_examples=150, suppress_health_check=list(HealthCheck))


def records_of(path: Path) -> dict[str, dict[str, str]]:
    """Records with their values as they are stored."""
    found: dict[str, dict[str, str]] = {}
    for entry in map(json.loads, dump_lines(path)):
        if entry["p"][0] == "_main" and len(entry["p"]) == 2:
            values = found.setdefault(entry["p"][1], {})
            if "k" in entry:
                values[entry["k"]] = entry["v"] if "v" in entry else entry["vx"]
    return found


def index_of(path: Path) -> set[str]:
    return {entry["k"] for entry in map(json.loads, dump_lines(path)) if entry["p"] == ["_index"] and "k" in entry}


def leases_of(worker: Path) -> dict[str, set[tuple[str, str]]]:
    """Resources of each lease."""
    found: dict[str, set[tuple[str, str]]] = {}
    for entry in map(json.loads, dump_lines(worker / "containerdmeta.db")):
        place = entry["p"]
        if place[:1] + place[2:3] == ["v1", "leases"] and len(place) > 3:
            held = found.setdefault(place[3], set())
            if "k" in entry and place[4:5] in (["snapshots"], ["content"]):
                held.add(("/".join(place[4:]), entry["k"]))
    return found


def labels_of(worker: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Labels of each snapshot and blob."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for entry in map(json.loads, dump_lines(worker / "containerdmeta.db")):
        place = entry["p"]
        if place[-1:] == ["labels"] and "k" in entry and place[2:3] in (["snapshots"], ["content"]):
            found.setdefault((place[2], place[4]), {})[entry["k"]] = entry["v"]
    return found


class State:
    """What a plan speaks of, as it is on disk."""

    def __init__(self, worker: Path, database: str) -> None:
        self.records = records_of(worker / database)
        self.index = index_of(worker / database)
        self.leases = leases_of(worker)
        self.labels = labels_of(worker)

    def changes_to(self, after: State) -> dict[str, Any]:
        """The differences, in the terms of a plan."""
        return {
            "records": {
                name: _changed(self.records.get(name), after.records.get(name))
                for name in self.records.keys() | after.records.keys()
                if self.records.get(name) != after.records.get(name)
            },
            "added to the index": after.index - self.index,
            "removed from the index": self.index - after.index,
            "leases": {
                name: (name not in self.leases, held - self.leases.get(name, set()))
                for name, held in after.leases.items()
                if held != self.leases.get(name)
            },
            "labels": {
                (where, label, text)
                for where, labels in self.labels.items()
                for label, text in labels.items()
                if label not in after.labels.get(where, {})
            },
        }


def _changed(old: dict[str, str] | None, new: dict[str, str] | None) -> object:
    if old is None or new is None:
        return old, new
    names = {name for name in new if old.get(name) != new[name]}
    return {name: old.get(name) for name in names}, {name: new[name] for name in names}


class Planned:
    """The changes of a plan, gathered in the same form."""

    def __init__(self) -> None:
        self.changes: dict[str, Any] = {
            "records": {},
            "added to the index": set(),
            "removed from the index": set(),
            "leases": {},
            "labels": set(),
        }

    def __call__(self, change: object) -> None:
        match change:
            case RecordChange():
                assert change.record not in self.changes["records"]
                self.changes["records"][change.record] = _text(change.old), _text(change.new)
            case IndexChange():
                self.changes["added to the index" if change.is_added else "removed from the index"].add(change.key.decode())
            case LeaseChange():
                held = {(resource.type, resource.id) for resource in change.resources}
                self.changes["leases"][change.lease] = (change.is_new, held)
            case LabelChange():
                where = ({"snapshot": "snapshots", "blob": "content"}[change.kind], change.name)
                self.changes["labels"].add((where, change.label, change.value))
            case _:
                raise AssertionError(change)


def _text(values: dict[bytes, bytes | None] | None) -> dict[str, str | None] | None:
    return None if values is None else {key.decode(): None if v is None else _shown(v) for key, v in values.items()}


def _shown(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.hex()


@_quick
@given(cache=damaged_caches())
async def test_a_damaged_cache(cache: V1Cache, tmp_path_factory: pytest.TempPathFactory) -> None:
    worker = cache.write(tmp_path_factory.mktemp("damaged") / "runc-overlayfs")
    tree, before = tree_state(worker), State(worker, "metadata.db")

    planned = Planned()
    plan = await asyncmig.plan(worker, ANY, on_change=planned)
    assert tree_state(worker) == tree, "a plan changes nothing at all"
    assert not plan.refused

    report = await asyncmig.migrate(worker, ANY)
    after = State(worker, "metadata_v2.db")
    assert planned.changes == before.changes_to(after), "what was planned is what was done"
    assert plan.decisions == report.decisions
    assert plan.counts.records == report.counts.records == len(after.records)
    assert plan.leftovers == report.leftovers

    kept = records_with_data(cache)
    assert kept <= after.records.keys(), "no record whose data is there is lost"
    assert not (cache.records.keys() - kept) & after.records.keys(), "and none stays whose data is not"
    for name in (*FILES, "metadata_v2.db"):
        assert check(worker / name).clean
    found = await asyncmig.verify(worker)
    # Leases that were there and that no record needs: a migration does not delete them, but tells of them.
    surplus = {finding.name for finding in found.findings if finding.code in ("lease-without-record", "lease-surplus")}
    assert surplus <= {note.name for note in report.notes if note.code == "lease-surplus"} | {
        name for name in cache.leases if name not in cache.records
    }
    assert [finding for finding in found.findings if finding.name not in surplus] == []
    again = await asyncmig.migrate(worker, ANY)
    assert (again.outcome, again.notes) == (Outcome.ALREADY_MIGRATED, [])

    back = await asyncmig.rollback(worker)
    assert back.outcome is Outcome.ROLLED_BACK
    assert State(worker, "metadata.db").__dict__ == before.__dict__, "labels with their values, and leases, are as they were"
    assert (worker / "metadata.db").read_bytes() == tree["metadata.db"][1]
    assert not (worker / "metadata_v2.db.journal").exists()

    assert (await asyncmig.migrate(worker, ANY)).decisions == report.decisions
    assert State(worker, "metadata_v2.db").__dict__ == after.__dict__, "and forward again it goes the same way"
