"""Random v1 caches with random damage, and what must be left of them: said anew, by recursion, as a check on the real thing."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from asyncmig.buildkit.gojson import to_valid
from asyncmig.stores.ports import Kind
from tests.caches import Snapshot, V1Cache, digest, value

MALFORMED = [b"{", b"[]", b"nonsense", b'"text"', b'{"value":{"Blobsum":7}}', b"\xff"]


@st.composite
def sound_caches(draw: st.DrawFn) -> V1Cache:
    """Caches as a daemon that was stopped in order leaves them."""
    cache = V1Cache()
    layers: list[str] = []
    for i in range(draw(st.integers(0, 9))):
        name = f"r{i}"
        parent = draw(st.sampled_from(["", *layers]))
        match draw(st.sampled_from(["layer", "layer", "gzip", "bare", "unfinalised", "mutable", "view"])):
            case "layer":
                cache.layer(name, parent)
                layers.append(name)
            case "gzip":
                cache.layer(name, parent, data=b"\x1f\x8b\x08" + name.encode())
                layers.append(name)
            case "bare":
                cache.layer(name, parent, blob=False)
                layers.append(name)
            case "unfinalised":
                cache.unfinalised(f"h{i}", name, parent)
            case "mutable":
                cache.snapshots[name] = Snapshot(Kind.ACTIVE, parent)
                cache.records[name] = {"cache.createdAt": value(1)}
            case "view":
                cache.view(name, parent)
    return cache


def _names(cache: V1Cache) -> list[str]:
    return sorted({*cache.records, *cache.snapshots, "nowhere"})


def _record(draw: st.DrawFn, cache: V1Cache) -> str | None:
    return draw(st.sampled_from(sorted(cache.records))) if cache.records else None


def _drop_snapshot(draw: st.DrawFn, cache: V1Cache) -> None:
    cache.snapshots.pop(draw(st.sampled_from(_names(cache))), None)


def _drop_record(draw: st.DrawFn, cache: V1Cache) -> None:
    cache.records.pop(draw(st.sampled_from(_names(cache))), None)


def _lose_backend(draw: st.DrawFn, cache: V1Cache) -> None:
    snapshot = cache.snapshots.get(draw(st.sampled_from(_names(cache))))
    if snapshot:
        snapshot.in_backend = False


def _change_parent(draw: st.DrawFn, cache: V1Cache) -> None:
    snapshot = cache.snapshots.get(draw(st.sampled_from(_names(cache))))
    if snapshot:
        snapshot.parent = draw(st.sampled_from(["", *_names(cache)]))


def _set_key(key: str, *, points_to_a_record: bool = False) -> Callable[[st.DrawFn, V1Cache], None]:
    def damage(draw: st.DrawFn, cache: V1Cache) -> None:
        name = _record(draw, cache)
        if name is not None:
            choices: list[object] = list(_names(cache)) if points_to_a_record else [True, False]
            cache.records[name][key] = value(draw(st.sampled_from(choices)))

    return damage


def _malform(draw: st.DrawFn, cache: V1Cache) -> None:
    name = _record(draw, cache)
    if name is not None:
        key = draw(st.sampled_from(["etag", "cache.equalMutable", "blobmapping.blob", "cache.deleted", "cache.createdAt"]))
        cache.records[name][key] = draw(st.sampled_from(MALFORMED))


def _stub(draw: st.DrawFn, cache: V1Cache) -> None:
    cache.records["stub"] = {"cache.usageCount": value(1), "cache.lastUsedAt": value(2)}


def _crash(draw: st.DrawFn, cache: V1Cache) -> None:
    """A daemon that was killed while it finalised a holder: the snapshot has its new name."""
    holders = sorted(name for name, values in cache.records.items() if len(values.get("cache.equalMutable", b"")) > 0)
    if holders:
        holder = draw(st.sampled_from(holders))
        names = [name for name in cache.snapshots if value(name) == cache.records[holder]["cache.equalMutable"]]
        for name in names:
            cache.snapshots[holder] = Snapshot(parent=cache.snapshots.pop(name).parent)
            if draw(st.booleans()):
                cache.records.pop(name, None)
            elif draw(st.booleans()):
                cache.records[holder]["cache.equalMutable"] = b""


def _lose_blob(draw: st.DrawFn, cache: V1Cache) -> None:
    if cache.blobs:
        cache.blobs.pop(draw(st.sampled_from(sorted(cache.blobs))))


def _lose_data(draw: st.DrawFn, cache: V1Cache) -> None:
    if cache.data:
        cache.data.pop(draw(st.sampled_from(sorted(cache.data))))


def _no_diff_id(draw: st.DrawFn, cache: V1Cache) -> None:
    name = _record(draw, cache)
    if name is not None:
        blob = draw(st.sampled_from([digest(f"blob {name}"), "md5:12", ""]))
        cache.records[name]["blobmapping.blob"] = value({"Blobsum": blob, "DiffID": ""})


def _half_migrated(draw: st.DrawFn, cache: V1Cache) -> None:
    name = _record(draw, cache)
    if name is not None:
        chain = digest(draw(st.sampled_from(["x", f"diff {name}"])))
        more = {
            "cache.blob": value(digest(draw(st.sampled_from([f"blob {name}", "nowhere"])))),
            "cache.diffID": value(digest(f"diff {name}")),
            "cache.chainID": value(chain, f"chainid:{chain}"),
            "cache.blobChainID": value(chain, f"blobchainid:{chain}"),
        }
        cache.records[name].update(more)
        cache.index += [f"chainid:{chain}::{name}", f"blobchainid:{chain}::{name}"]


def _disorder_index(draw: st.DrawFn, cache: V1Cache) -> None:
    if draw(st.booleans()) and cache.index:
        cache.index.pop(draw(st.integers(0, len(cache.index) - 1)))
    cache.index.append(draw(st.sampled_from(["git-remote::x::nobody", "endless", "a::b::r0"])))


def _existing_lease(draw: st.DrawFn, cache: V1Cache) -> None:
    name = draw(st.sampled_from(_names(cache)))
    cache.leases[name] = draw(st.sampled_from([[], [name]]))


def _external(draw: st.DrawFn, cache: V1Cache) -> None:
    cache.external[draw(st.sampled_from(_names(cache)))] = {"buildkit.contenthash.v0": b"x" * draw(st.sampled_from([1, 9000]))}


DAMAGES: list[Callable[[st.DrawFn, V1Cache], None]] = [
    _drop_snapshot,
    _drop_record,
    _lose_backend,
    _change_parent,
    _set_key("cache.deleted"),
    _set_key("cache.equalMutable", points_to_a_record=True),
    _set_key("cache.parent", points_to_a_record=True),
    _malform,
    _stub,
    _crash,
    _lose_blob,
    _lose_data,
    _no_diff_id,
    _half_migrated,
    _disorder_index,
    _existing_lease,
    _external,
]


@st.composite
def damaged_caches(draw: st.DrawFn) -> V1Cache:
    """Caches with up to six kinds of damage."""
    cache = draw(sound_caches())
    for damage in draw(st.lists(st.sampled_from(DAMAGES), max_size=6)):
        damage(draw, cache)
    cache.index = list(dict.fromkeys(cache.index))
    return cache


def records_with_data(cache: V1Cache) -> set[str]:
    """Records that must stay: they are not marked deleted, and their data is there with all that it is built on."""
    return {name for name in cache.records if _has_data(cache, name, frozenset())}


def _has_data(cache: V1Cache, name: str, below: frozenset[str]) -> bool:
    """Whether a record, or a snapshot without record, has its data; ``below`` are those that are built on it."""
    values = cache.records.get(name, {})
    if name in below or values.get("cache.deleted") == value(True) or to_valid(name) != name:
        return False
    snapshot = cache.snapshots.get(name)
    if snapshot is not None and snapshot.in_backend:
        return not snapshot.parent or _has_data(cache, snapshot.parent, below | {name})
    owner = next((n for n in _names(cache) if values.get("cache.equalMutable") == value(n)), None)
    return owner is not None and _has_data(cache, owner, below | {name})
