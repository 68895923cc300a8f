"""Our bolt engine and the real bbolt on the same files."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from asyncmig.bolt import BucketBuilder, Db, PageFile, build_file, check, dump, rebuild
from asyncmig.bolt.build import Fill
from asyncmig.bolt.format import NO_FREELIST, Malformed, parse_meta
from asyncmig.bolt.repair import repair
from asyncmig.errors import DatabaseLockedError
from tests.bolt.entries import CHANGES, ORDERS, edit_in_file, edit_in_model, in_order, name_of, random_entry, store
from tests.bolt.helpers import (
    PAGE_SIZES,
    Model,
    Operation,
    apply_to_model,
    apply_to_tx,
    assert_holds,
    model_lines,
    new_db,
    open_bucket,
    random_history,
    read_meta,
    updating,
)
from tests.bolt.mutate import MUTATIONS, Image, mutate, sample
from tests.bolt.test_build import fill_from
from tests.bolt.test_damage import CASES
from tests.interop import boltool as script
from tests.interop.boltool import BoltTool


@dataclasses.dataclass(frozen=True)
class FreelistKind:
    """How bbolt is to treat the freelist."""

    no_freelist_sync: bool = False
    map_freelist: bool = False


KINDS = [FreelistKind(), FreelistKind(no_freelist_sync=True), FreelistKind(map_freelist=True), FreelistKind(True, True)]


def to_script(op: Operation) -> script.Operation | None:
    """The operation as boltool takes it."""
    match op.kind:
        case "put":
            return script.put(op.path, op.key, op.value)
        case "delete":
            return script.delete(op.path, op.key)
        case "mkbucket":
            return script.mkbucket(op.path)
        case "rmbucket":
            return script.rmbucket(op.path)
        case "sequence":
            return script.sequence(op.path, op.number)
    return None


def edit_with_bbolt(
    boltool: BoltTool, path: Path, ops: list[Operation], kind: FreelistKind, page_size: int | None = None
) -> None:
    lines = []
    for number, op in enumerate(ops):
        # See test_pages_that_bbolt_loses.
        if number == len(ops) // 2 or op.kind == "rmbucket":
            lines.append(script.COMMIT)
        if line := to_script(op):
            lines.append(line)
    boltool.apply(path, lines, page_size, kind.no_freelist_sync, kind.map_freelist)


def edit_with_ours(path: Path, ops: list[Operation]) -> None:
    with Db.open(path, writable=True) as db:
        for part in (ops[: len(ops) // 2], ops[len(ops) // 2 :]):
            with db.update() as tx:
                for op in part:
                    apply_to_tx(tx, op)


def assert_agreed(boltool: BoltTool, path: Path, model: Model) -> None:
    """Both checks are clean, both dumps are the model's."""
    theirs = boltool.check(path)
    assert theirs.clean, theirs.output
    assert_holds(path, model)
    with Db.open(path) as db:
        ours = "".join(line + "\n" for line in dump(db))
    assert ours == "".join(line + "\n" for line in model_lines(model))
    assert ours == boltool.dump(path)


@pytest.mark.parametrize("kind", KINDS, ids=["array", "no freelist", "map", "map, no freelist"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("first", ["ours", "bbolt"])
def test_taking_turns(boltool: BoltTool, tmp_path: Path, page_size: int, kind: FreelistKind, first: str) -> None:
    rng = random.Random(f"{page_size} {kind} {first}")
    path, model = tmp_path / "db", Model()
    if first == "ours":
        new_db(path, page_size, freelist=not kind.no_freelist_sync)
    for turn in range(6):
        ops = list(random_history(rng, model, rng.choice([5, 60, 600])))
        if (turn % 2 == 0) == (first == "ours"):
            edit_with_ours(path, ops)
        else:
            edit_with_bbolt(boltool, path, ops, kind, page_size)
        assert_agreed(boltool, path, model)
        assert read_meta(path).page_size == page_size
        assert (read_meta(path).freelist == NO_FREELIST) == kind.no_freelist_sync


@pytest.mark.parametrize("seed", range(4))
def test_merging_tall_trees_in_turns(boltool: BoltTool, tmp_path: Path, seed: int) -> None:
    """What one engine has merged, the other merges further: bbolt panics over leaves of different depth."""
    rng = random.Random(seed)
    path, model = new_db(tmp_path / "db", 1024), Model()
    keys = [b"%06d" % i + b"." * rng.choice([50, 190]) for i in range(1500)]
    fill = [Operation("put", (b"b",), key, b"value") for key in keys]
    edit_with_ours(path, fill)
    left = model.create((b"b",)).entries
    left.update(dict.fromkeys(keys, b"value"))
    assert_agreed(boltool, path, model)
    turn = seed
    while left:
        ordered = sorted(left)
        start = rng.randrange(len(ordered))
        doomed = ordered[start : start + rng.choice([20, 300, 700])]
        ops = [Operation("delete", (b"b",), key) for key in doomed]
        for key in doomed:
            del left[key]
        turn += 1
        if turn % 2:
            edit_with_ours(path, ops)
        else:
            edit_with_bbolt(boltool, path, ops, FreelistKind())
        if turn % 3 == 0 or not left:
            assert_agreed(boltool, path, model)


@pytest.mark.parametrize("freelist", [True, False])
@pytest.mark.parametrize("page_size", [1024, 4096])
def test_entries_that_are_edited_as_a_whole(boltool: BoltTool, tmp_path: Path, page_size: int, freelist: bool) -> None:
    """By recipes and without, and what bbolt makes of them in between."""
    rng = random.Random(f"{page_size} {freelist}")
    path = new_db(tmp_path / "db", page_size, freelist=freelist)
    names = [name_of(i) for i in range(250)]
    model = Model(0, {b"b1": Model(0, {name: random_entry(rng) for name in names[::2]})})
    entries = model.create((b"b1",))
    with updating(path) as tx:
        store(tx.root, model)
    for _ in range(2):
        with updating(path) as tx:
            for change in rng.sample(CHANGES, 3):
                order, make = in_order(rng, names, rng.choice(ORDERS)), rng.random() < 0.5
                edit_in_file(tx, open_bucket(tx, b"b1"), order, change, make=make, uniform=rng.random() < 0.7)
                edit_in_model(entries, order, change, make=make)
        assert_agreed(boltool, path, model)
        ops = [Operation("put", (b"b1", name), b"k", b"bbolt's") for name in rng.sample(names, 100)]
        ops += [Operation("rmbucket", (b"b1", name)) for name in rng.sample(names, 15)]
        for op in ops:
            apply_to_model(model, op)
        edit_with_bbolt(boltool, path, ops, FreelistKind(no_freelist_sync=not freelist))
        assert_agreed(boltool, path, model)


@pytest.mark.parametrize("change", ["stored to none", "none to stored"])
def test_a_freelist_that_comes_and_goes(boltool: BoltTool, tmp_path: Path, change: str) -> None:
    rng = random.Random(change)
    path, model = new_db(tmp_path / "db", freelist=change == "stored to none"), Model()
    edit_with_ours(path, list(random_history(rng, model, 500)))
    edit_with_bbolt(boltool, path, list(random_history(rng, model, 20)), FreelistKind(change == "stored to none"))
    assert (read_meta(path).freelist == NO_FREELIST) == (change == "stored to none")
    for _ in range(2):
        edit_with_ours(path, list(random_history(rng, model, 300)))
        assert_agreed(boltool, path, model)


def test_a_freelist_of_more_than_65534_pages(boltool: BoltTool, tmp_path: Path) -> None:
    path = new_db(tmp_path / "db", 1024)
    with Db.open(path, writable=True) as db:
        with db.update() as tx:
            tx.create_path(b"big").put(b"k", b"v" * 70_000_000)
        with db.update() as tx:
            tx.delete_bucket(b"big")
    model = Model(0, {b"b": Model(0, {b"k": b"v"})})
    edit_with_bbolt(boltool, path, [Operation("put", (b"b",), b"k", b"v")], FreelistKind())
    assert_agreed(boltool, path, model)
    edit_with_ours(path, [Operation("delete", (b"b",), b"k")])
    del model.create((b"b",)).entries[b"k"]
    assert_agreed(boltool, path, model)
    assert check(path).free_pages > 0xFFFF


# -- bulk


def random_model(rng: random.Random) -> Model:
    model = Model()
    for _ in random_history(rng, model, 800):
        pass
    for bucket in model.entries.values():
        assert isinstance(bucket, Model)
        bucket.sequence = 0  # that of a top-level bucket cannot be given
    return model


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_files_built_in_bulk(boltool: BoltTool, tmp_path: Path, page_size: int) -> None:
    rng = random.Random(page_size)
    path, model = tmp_path / "db", random_model(rng)
    model.entries[b"large"] = Model(0, {b"%06d" % i: b"v" * (i % 90) for i in range(5000)})
    with open(path, "wb") as file:
        buckets = {k: fill_from(v) for k, v in model.entries.items() if isinstance(v, Model)}
        build_file(file.fileno(), str(path), buckets, page_size=page_size)
    assert_agreed(boltool, path, model)
    for _ in range(2):
        edit_with_bbolt(boltool, path, list(random_history(rng, model, 300)), FreelistKind())
        assert_agreed(boltool, path, model)
        edit_with_ours(path, list(random_history(rng, model, 300)))
        assert_agreed(boltool, path, model)
    doomed = [Operation("delete", (b"large",), b"%06d" % i) for i in range(100, 4900)]
    for op in doomed:
        del model.create((b"large",)).entries[op.key]
    edit_with_bbolt(boltool, path, doomed, FreelistKind())
    assert_agreed(boltool, path, model)


@pytest.mark.parametrize("kind", KINDS[:2], ids=["freelist", "no freelist"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_rebuilt_files(boltool: BoltTool, tmp_path: Path, page_size: int, kind: FreelistKind) -> None:
    rng = random.Random(f"{page_size} {kind}")
    source, path, model = tmp_path / "source", tmp_path / "db", Model()
    for _ in range(2):
        edit_with_bbolt(boltool, source, list(random_history(rng, model, 800)), kind, page_size)
    old = model.find((b"b1",))
    new = Model(old.sequence if old else 0, {b"%06d" % i: b"v" * (i % 90) for i in range(2000)})
    buckets: dict[bytes, Fill] = {b"b1": fill_from(new), b"b7": empty}
    with open(source, "rb") as file, open(path, "wb") as out:
        rebuild(PageFile(file.fileno(), str(source)), out.fileno(), str(path), buckets)
    model.entries |= {b"b1": new, b"b7": Model()}
    assert_agreed(boltool, path, model)
    for _ in range(2):
        edit_with_bbolt(boltool, path, list(random_history(rng, model, 300)), kind)
        assert_agreed(boltool, path, model)
        edit_with_ours(path, list(random_history(rng, model, 300)))
        assert_agreed(boltool, path, model)


def empty(_: BucketBuilder) -> None:
    """Puts nothing into a bucket."""


# -- locks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_db(tmp_path / "db")


@pytest.mark.parametrize("held_read_only", [False, True])
@pytest.mark.parametrize("writable", [False, True])
def test_a_lock_that_bbolt_holds(boltool: BoltTool, path: Path, held_read_only: bool, writable: bool) -> None:
    with boltool.hold(path, read_only=held_read_only):
        if held_read_only and not writable:
            Db.open(path).close()
        else:
            with pytest.raises(DatabaseLockedError):
                Db.open(path, writable=writable)
    Db.open(path, writable=writable).close()


@pytest.mark.parametrize("writable", [False, True])
def test_a_lock_that_we_hold(boltool: BoltTool, path: Path, writable: bool) -> None:
    with Db.open(path, writable=writable):
        assert boltool.trylock(path, read_only=True) == (not writable)
        assert not boltool.trylock(path, read_only=False)
    assert boltool.trylock(path, read_only=False)


# -- damage


def test_pages_that_bbolt_loses(boltool: BoltTool, tmp_path: Path) -> None:
    """Those of buckets in a bucket that is changed and deleted in one transaction: it deletes from the list it goes through.

    Both checks tell; we can work with the file all the same.
    """
    path = tmp_path / "db"
    boltool.apply(path, [script.put([b"b", b"%d" % i], b"k", b"v" * 5000) for i in range(8)])
    boltool.apply(path, [script.put([b"b"], b"k", b"v"), script.rmbucket([b"b"])])
    theirs, ours = boltool.check(path), check(path)
    assert not theirs.clean
    assert theirs.output.splitlines() == [f"page {f.page}: unreachable unfreed" for f in ours.findings]
    with Db.open(path) as db:
        assert list(dump(db)) == []
    edit_with_ours(path, [Operation("put", (b"c",), b"k", b"v")])
    assert boltool.dump(path) == '{"p":["c"],"b":true}\n{"p":["c"],"k":"k","v":"v"}\n'


@pytest.mark.parametrize("name", [case[0] for case in CASES if case[0].startswith("8 ")])
def test_repaired_files(boltool: BoltTool, tmp_path: Path, name: str) -> None:
    """bbolt itself finds nothing wrong with the copy, has all data, and goes on with it."""
    image = sample(tmp_path / "sound", 1024, freelist=True)
    next(case[1] for case in CASES if case[0] == name)(image)
    path, new = tmp_path / "db", tmp_path / "new"
    path.write_bytes(image.data)
    repair(path, new)
    assert boltool.check(new).output == ""
    assert boltool.check(new).clean
    assert boltool.dump(new) == boltool.dump(tmp_path / "sound")
    boltool.apply(new, [script.put([b"more"], b"%d" % i, b"v" * 500) for i in range(100)])
    assert boltool.check(new).clean
    assert check(new).clean


@pytest.mark.parametrize("slot", [0, 1])
def test_repaired_meta_pages(boltool: BoltTool, tmp_path: Path, slot: int) -> None:
    path, new = tmp_path / "db", tmp_path / "new"
    boltool.apply(path, [script.put([b"b"], b"%d" % i, b"v" * 500) for i in range(100)])
    data = bytearray(path.read_bytes())
    data[slot * 4096 + 20] ^= 1
    path.write_bytes(data)
    assert repair(path, new).notes
    assert boltool.check(new).clean
    assert not check(new).notes
    with Db.open(path) as db:
        assert boltool.dump(new).splitlines() == list(dump(db))


@pytest.mark.parametrize(("page_size", "freelist"), [(1024, True), (1024, False), (4096, True)])
def test_what_we_call_clean_bbolt_does_too(boltool: BoltTool, tmp_path: Path, page_size: int, freelist: bool) -> None:
    """Of mutated files; the other way round we are stricter, for example about inline buckets."""
    rng = random.Random(f"{page_size} {freelist}")
    sound = sample(tmp_path / "sound", page_size, freelist=freelist)
    path = tmp_path / "db"
    clean = 0
    for number in range(200):
        kinds, data = mutate(rng, sound)
        if not data or has_bad_first_meta(data):
            # An empty database to us, and to a bbolt that may write.  And before 1.3.7 bbolt looked for the second meta page
            # where the system's page size puts it.
            continue
        path.write_bytes(data)
        if check(path).clean:
            clean += 1
            theirs = boltool.check(path)
            assert theirs.clean, f"file {number}, {kinds}: {theirs.output}"
    assert clean > 10


def has_bad_first_meta(data: bytes) -> bool:
    try:
        parse_meta(data)
    except Malformed:
        return True
    return False


def test_every_mutation_is_tried(tmp_path: Path) -> None:
    rng = random.Random(1)
    sound: Image = sample(tmp_path / "sound", 1024, freelist=True)
    names = {mutate(rng, sound)[0].split()[0] for _ in range(500)}
    assert names == {mutation.__name__ for mutation in MUTATIONS}


def test_the_mutated_sample_is_sound_to_bbolt(boltool: BoltTool, tmp_path: Path) -> None:
    sample(tmp_path / "db", 1024, freelist=True)
    assert boltool.check(tmp_path / "db").clean
    with updating(tmp_path / "db") as tx:
        tx.create_path(b"more").put(b"k", b"v")
    assert boltool.check(tmp_path / "db").clean
