"""Checks of the records by themselves: would BuildKit load them, are chain IDs and index what they must be.

Sources: moby/buildkit ``cache/manager.go`` (``init``, ``getRecord``; the same rules since v0.10) and
``cache/metadata/metadata.go`` (``Search``).
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncmig.audit.findings import FindingCode, NoteCode
from asyncmig.audit.state import CacheState, Findings
from asyncmig.bolt import Checkpoint
from asyncmig.buildkit.keys import BLOB_CHAIN_INDEX, CHAIN_INDEX
from asyncmig.buildkit.metadata import to_bytes, to_text
from asyncmig.buildkit.v2 import V2Record
from asyncmig.concurrency import stepping
from asyncmig.errors import printable
from asyncmig.migration.chains import blob_chain_id, chain_id

# -- loading


def check_loading(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    """Report every record that BuildKit would not load: those at fault, and those that need one that is at fault."""
    loadable: dict[str, bool] = {}
    for record in stepping(checkpoint, state.records):
        _report_values(record, findings)
        if record.id not in loadable:
            _settle(checkpoint, state, findings, record, loadable)


def _report_values(record: V2Record, findings: Findings) -> None:
    for text in record.malformed:
        findings.add(FindingCode.VALUE_MALFORMED, record.id, printable(text))


def _settle(checkpoint: Checkpoint, state: CacheState, findings: Findings, record: V2Record, loadable: dict[str, bool]) -> None:
    """Settle a record after all that it needs, depth first; iterative, because chains may be deeper than Python's stack."""
    stack = [(record, iter(_needed(state, record)))]
    entered = {record.id}
    while stack:
        checkpoint()
        current, needs = stack[-1]
        name = next(needs, None)
        if name is None:
            stack.pop()
            if current.id not in loadable:
                loadable[current.id] = _is_loadable(state, findings, current, loadable)
        elif name in entered:
            if name not in loadable:
                _report_cycle(findings, [link for link, _ in stack], name, loadable)
        elif name in state.by_id and name not in loadable:
            entered.add(name)
            stack.append((state.by_id[name], iter(_needed(state, state.by_id[name]))))


def _report_cycle(findings: Findings, way: list[V2Record], name: str, loadable: dict[str, bool]) -> None:
    start = next(i for i, link in enumerate(way) if link.id == name)
    for link in way[start:]:
        if link.id not in loadable:
            findings.add(
                FindingCode.PARENT_CYCLE, link.id, "it is its own ancestor, or names itself as the record that holds its data"
            )
            loadable[link.id] = False


def _needed(state: CacheState, record: V2Record) -> list[str]:
    if record.is_holder and record.equal_mutable in state.by_id:
        return [record.equal_mutable, *record.all_parents]
    return record.all_parents


def _is_loadable(state: CacheState, findings: Findings, record: V2Record, loadable: dict[str, bool]) -> bool:
    if record.deleted:
        findings.add(FindingCode.MARKED_DELETED, record.id, "it is marked as deleted; BuildKit removes it when it starts")
        return False
    missing = [name for name in record.all_parents if name not in state.by_id]
    if missing:
        text = f"it is built on {printable(missing[0])}, which is not a record of this cache"
        findings.add(FindingCode.PARENT_MISSING, record.id, text)
        return False
    bad = [name for name in _needed(state, record) if not loadable.get(name, False)]
    if bad:
        findings.add(FindingCode.PARENT_UNLOADABLE, record.id, f"it needs {printable(bad[0])}, which can't be loaded")
        return False
    if record.is_holder:
        return _is_loadable_holder(state, findings, record)
    if not record.committed and record.id not in state.snapshots:
        findings.add(
            FindingCode.SNAPSHOT_MISSING, record.id, "it is mutable but has no snapshot; BuildKit removes it when it starts"
        )
        return False
    return True


def _is_loadable_holder(state: CacheState, findings: Findings, record: V2Record) -> bool:
    if record.equal_mutable in state.by_id:
        return True
    owner = f"the record that holds its data, {printable(record.equal_mutable)}, does not exist"
    if record.snapshot in state.snapshots:
        findings.note(NoteCode.HOLDER_FINALISED, record.id, f"{owner}, but it has a snapshot of its own")
        return True
    findings.add(FindingCode.MUTABLE_MISSING, record.id, f"{owner}, and it has no snapshot of its own")
    return False


# -- chain IDs


def check_chains(checkpoint: Checkpoint, state: CacheState, findings: Findings) -> None:
    """Compute the chain IDs of all plain layers anew, and report those that differ.  Layers without are no fault."""
    computed: dict[str, tuple[str, str] | None] = {}  # None where the chain is not one of plain layers all of which have a blob
    composed = set()  # records with a merge or a diff in their chain: their IDs are made otherwise
    cut = _cut_by_diffs(checkpoint, state)
    for record in stepping(checkpoint, state.records):
        for link in reversed(_chain(state, record, computed)):
            computed[link.id] = _ids_of_diff(link) if link.id in cut else _chain_ids(link, computed)
            if link.is_composed or link.parent in composed:
                composed.add(link.id)
        if record.id not in composed:
            _compare_chain(findings, record, computed[record.id])


def _cut_by_diffs(checkpoint: Checkpoint, state: CacheState) -> set[str]:
    """Layers that got their chain IDs as what a diff consists of, so without what is below them.

    A diff of a layer and the layer below it is that layer's own blob.  When BuildKit exports the diff first, it computes the
    layer's IDs as if nothing were below, with an empty string in its place (``cache/blobs.go``, ``computeChainMetadata``).
    """
    cut = set()
    for record in stepping(checkpoint, state.records):
        layer = state.by_id.get(record.upper)
        if layer is not None and record.lower and layer.parent == record.lower and layer.chain_id:
            ids = _ids_of_diff(layer)
            if ids == (layer.chain_id, layer.blob_chain_id):
                cut.add(layer.id)
    return cut


def _ids_of_diff(layer: V2Record) -> tuple[str, str]:
    return chain_id(layer.diff_id, ""), blob_chain_id(layer.blob, layer.diff_id, "")


def _chain_ids(record: V2Record, computed: dict[str, tuple[str, str] | None]) -> tuple[str, str] | None:
    if record.is_composed or not (record.blob and record.diff_id):
        return None
    if not record.parent:
        return chain_id(record.diff_id), blob_chain_id(record.blob, record.diff_id)
    below = computed.get(record.parent)
    return below and (chain_id(record.diff_id, below[0]), blob_chain_id(record.blob, record.diff_id, below[1]))


def _chain(state: CacheState, record: V2Record, computed: dict[str, tuple[str, str] | None]) -> list[V2Record]:
    """The record and its ancestors up to one that is computed; those of a cycle once."""
    links: list[V2Record] = []
    seen = set()
    link: V2Record | None = record
    while link is not None and link.id not in computed and link.id not in seen:
        seen.add(link.id)
        links.append(link)
        link = state.by_id.get(link.parent)
    return links


def _compare_chain(findings: Findings, record: V2Record, expected: tuple[str, str] | None) -> None:
    ids = (record.chain_id, record.blob_chain_id)
    if not any(ids):
        return
    if not all(ids):
        which = "blobChainID" if record.chain_id else "chainID"
        findings.add(FindingCode.CHAIN_HALF, record.id, f"it has only one of the two chain IDs: cache.{which} is missing")
    elif expected is None:
        findings.add(
            FindingCode.CHAIN_BOGUS, record.id, "it has chain IDs, but it or a layer below it has no blob or no diffID"
        )
    elif ids != expected:
        findings.add(
            FindingCode.CHAIN_WRONG,
            record.id,
            f"its chain IDs don't fit its layers; they should be {expected[0]} and {expected[1]}",
        )


# -- the index


def check_index(checkpoint: Checkpoint, state: CacheState, entries: Iterable[bytes], findings: Findings) -> None:
    """Compare the index with the values."""
    wanted = {}
    for record in stepping(checkpoint, state.records):
        for index in record.indexes:
            wanted[to_bytes(f"{index}::{record.id}")] = record.id
    for key in stepping(checkpoint, entries):
        wanted.pop(key, None)
        _check_entry(state, findings, key)
    for key, name in wanted.items():
        findings.add(
            FindingCode.INDEX_MISSING,
            name,
            f"the index lacks the entry {printable(to_text(key))}, which a value of the record names",
        )


def _check_entry(state: CacheState, findings: Findings, key: bytes) -> None:
    text = to_text(key)
    index, separator, name = text.rpartition("::")
    if not separator:
        findings.add(
            FindingCode.INDEX_ENDLESS,
            text,
            'this entry of the index has no "::"; newer versions of BuildKit loop over it for ever',
        )
    elif name not in state.by_id:
        findings.add(
            FindingCode.INDEX_STALE, name, f"the index names this record under {printable(index)}, but it does not exist"
        )
    elif index.startswith((CHAIN_INDEX, BLOB_CHAIN_INDEX)) and index not in state.by_id[name].indexes:
        findings.add(
            FindingCode.INDEX_STALE, name, f"the index names this record under {printable(index)}, which is not its chain ID"
        )
