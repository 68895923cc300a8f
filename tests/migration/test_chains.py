"""Chain IDs: the vectors that upstream made, deep chains, cycles."""

from __future__ import annotations

from hashlib import sha256
from typing import cast

import pytest

from asyncmig.bolt.walk import no_checkpoint
from asyncmig.buildkit.metadata import MetadataDb
from asyncmig.buildkit.record import Changes, Record
from asyncmig.errors import RecordError
from asyncmig.migration.cache import Cache
from asyncmig.migration.chains import compute_chains
from asyncmig.migration.report import Outcome
from asyncmig.migration.semantics import UPSTREAM
from tests.caches import new_reporter

DIFF_A = "sha256:104c1f7b3d5af56290464a3622adcfabe1fec9b0a1b2942561b840b0b0559ca6"
BLOB_A = "sha256:8954a2a34852d18084ff3c73e1796ac02d5ba465b4ecc9be7bb45421eec8ff88"
DIFF_B = "sha256:29d93fa7d1bc98fdcbbbb25e3ae073a36d450718aa130f779a7126bf589224b9"
BLOB_B = "sha256:4fc2711addbf05c88676254868143ec7c70be408ff12c91db2ea99ab68736775"


class FakeDatabase:
    path = "metadata.db"

    def index_keys(self, record: Record) -> list[bytes]:
        return []


def record(name: str, parent: str = "", *, blob: str = "", diff_id: str = "") -> Record:
    made = Record(name)
    made.parent, made.blob, made.diff_id = parent, blob, diff_id
    return made


def compute(*records: Record) -> dict[str, Record]:
    cache = Cache(cast(MetadataDb, FakeDatabase()), UPSTREAM, new_reporter("", Outcome.MIGRATED))
    cache.records = list(records)
    cache.by_id = {r.id: r for r in records}
    compute_chains(no_checkpoint, cache)
    return cache.by_id


def test_vectors_of_a_root_and_its_child() -> None:
    found = compute(record("a", blob=BLOB_A, diff_id=DIFF_A), record("b", "a", blob=BLOB_B, diff_id=DIFF_B))
    assert found["a"].chain_id == DIFF_A
    assert found["a"].blob_chain_id == "sha256:3e78fa0d47626115d361b6ed1f39a09a38bb7e1ced23322ffc49247919099e28"
    assert found["b"].chain_id == "sha256:0382d00a3a546be97a3145c48374b3e50659aa4656892f09cf79c3b530a90f62"
    assert found["b"].blob_chain_id == "sha256:b170ba05f26815eedee5aa826778d75f855e980810a21b73b47063359fe1c2b4"


def test_vector_of_a_child_whose_parent_has_no_blob() -> None:
    found = compute(record("a"), record("b", "a", blob=BLOB_B, diff_id=DIFF_B))
    assert found["b"].chain_id == "sha256:c79d0079cf484998f990fd0c40a048acd2b2dcc20d7829d9a1d4076450542b49"
    assert not found["a"].changes & Changes.CHAIN


def test_a_parent_with_chain_ids_but_without_layer_counts_as_empty() -> None:
    parent = record("a")
    parent.chain_id = parent.blob_chain_id = "sha256:foreign"
    found = compute(parent, record("b", "a", blob=BLOB_B, diff_id=DIFF_B))
    assert found["b"].chain_id == "sha256:c79d0079cf484998f990fd0c40a048acd2b2dcc20d7829d9a1d4076450542b49"


def test_ids_that_are_there_already_stay_and_children_build_on_them() -> None:
    parent = record("a", blob=BLOB_A, diff_id=DIFF_A)
    parent.chain_id, parent.blob_chain_id = "sha256:1", "sha256:2"
    found = compute(parent, record("b", "a", blob=BLOB_B, diff_id=DIFF_B))
    assert (found["a"].chain_id, found["a"].changes) == ("sha256:1", 0)
    assert found["b"].chain_id == "sha256:" + sha256(f"sha256:1 {DIFF_B}".encode()).hexdigest()


def test_one_id_alone_is_computed_anew() -> None:
    lone = record("a", blob=BLOB_A, diff_id=DIFF_A)
    lone.chain_id = "sha256:1"
    assert compute(lone)["a"].chain_id == DIFF_A


@pytest.mark.parametrize("order", [1, -1])
def test_a_chain_deeper_than_the_stack(order: int) -> None:
    depth = 50_000
    records = [record(f"{i:06}", f"{i - 1:06}" if i else "", blob=f"b{i}", diff_id=f"d{i}") for i in range(depth)]
    found = compute(*records[::order])
    expected = "d0"
    for i in range(1, depth):
        expected = "sha256:" + sha256(f"{expected} d{i}".encode()).hexdigest()
    assert found[f"{depth - 1:06}"].chain_id == expected


def test_a_cycle_is_an_error_that_names_a_record_on_it() -> None:
    with pytest.raises(RecordError, match="its own ancestor") as caught:
        compute(*(record(name, parent, blob="x", diff_id="y") for name, parent in (("a", "c"), ("b", "a"), ("c", "b"))))
    assert caught.value.record in "abc"


def test_a_record_that_is_its_own_parent() -> None:
    with pytest.raises(RecordError, match="its own ancestor"):
        compute(record("a", "a", blob="x", diff_id="y"))


def test_a_cycle_without_blobs_is_harmless() -> None:
    found = compute(record("a", "b"), record("b", "a", blob="x", diff_id="y"))
    assert found["b"].chain_id == "sha256:" + sha256(b" y").hexdigest()


def test_a_missing_parent_matters_only_under_a_blob() -> None:
    compute(record("a", "gone"))
    with pytest.raises(RecordError, match="its parent gone is not a record"):
        compute(record("a", "gone", blob="x", diff_id="y"))
