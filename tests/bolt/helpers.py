"""A model of a bolt database, random histories for it, and a look at the trees of a file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from asyncmig.bolt import Bucket, Db, PageFile, Tx, check
from asyncmig.bolt.format import NO_FREELIST, PAGE_HEADER_SIZE, BucketValue, Meta, parse_meta

PAGE_SIZES = [1024, 4096, 16384, 65536]


# -- the model


@dataclass
class Model:
    """A bucket as nested dicts."""

    sequence: int = 0
    entries: dict[bytes, bytes | Model] = field(default_factory=dict)

    def find(self, path: tuple[bytes, ...]) -> Model | None:
        bucket = self
        for name in path:
            below = bucket.entries.get(name)
            if not isinstance(below, Model):
                return None
            bucket = below
        return bucket

    def create(self, path: tuple[bytes, ...]) -> Model:
        bucket = self
        for name in path:
            below = bucket.entries.setdefault(name, Model())
            assert isinstance(below, Model)
            bucket = below
        return bucket


@dataclass(frozen=True)
class Operation:
    """One change to a database; ``kind`` is put, delete, mkbucket, rmbucket, sequence or spill."""

    kind: str
    path: tuple[bytes, ...]
    key: bytes = b""
    value: bytes = b""
    number: int = 0


def apply_to_model(model: Model, op: Operation) -> None:
    """Change the model: buckets on the path of a put, mkbucket or sequence are created, deleting nothing is no error."""
    match op.kind:
        case "put":
            model.create(op.path).entries[op.key] = op.value
        case "delete":
            if bucket := model.find(op.path):
                bucket.entries.pop(op.key, None)
        case "mkbucket":
            model.create(op.path)
        case "rmbucket":
            if parent := model.find(op.path[:-1]):
                parent.entries.pop(op.path[-1], None)
        case "sequence":
            model.create(op.path).sequence = op.number
        case "spill":
            pass
        case _:
            raise ValueError(op.kind)


def apply_to_tx(tx: Tx, op: Operation) -> None:
    """Change the database in the same way."""
    match op.kind:
        case "put":
            tx.create_path(*op.path).put(op.key, op.value)
        case "delete":
            if bucket := tx.path_bucket(*op.path):
                bucket.delete(op.key)
        case "mkbucket":
            tx.create_path(*op.path)
        case "rmbucket":
            parent = tx.path_bucket(*op.path[:-1])
            if parent and parent.bucket(op.path[-1]):
                parent.delete_bucket(op.path[-1])
        case "sequence":
            tx.create_path(*op.path).set_sequence(op.number)
        case "spill":
            if parent := tx.path_bucket(*op.path[:-1]):
                parent.spill_child(op.path[-1])
        case _:
            raise ValueError(op.kind)


def random_history(rng: random.Random, model: Model, count: int, *, spill: bool = True) -> Iterator[Operation]:
    """``count`` or more operations, made to fit ``model``, which is changed along with them."""
    growth = rng.random()
    long_keys = rng.random() < 0.4
    while count > 0:
        for op in _random_step(rng, model, growth, long_keys, spill):
            apply_to_model(model, op)
            count -= 1
            yield op


def _random_step(rng: random.Random, model: Model, growth: float, long_keys: bool, spill: bool) -> list[Operation]:
    depth = rng.choice([1, 1, 1, 2, 2, 3])
    path = tuple(b"b%d" % rng.randrange(3 if level == 0 else 12) for level in range(depth))
    bucket = model.find(path)
    keys = sorted(k for k, v in bucket.entries.items() if isinstance(v, bytes)) if bucket else []
    x = rng.random()
    if x < 0.45 + 0.45 * growth:
        return [Operation("put", path, random_key(rng, long_keys), random_value(rng)) for _ in range(rng.choice([1, 1, 8]))]
    if x < 0.94:
        start = rng.randrange(len(keys) + 1)
        return [Operation("delete", path, k) for k in [*keys, b"no such key"][start : start + rng.choice([1, 1, 5, 100])]]
    if x < 0.96:
        return [Operation("sequence", path, number=rng.choice([0, 1, 77, (1 << 64) - 1]))]
    kinds = ["mkbucket", "rmbucket", "spill", "spill"]
    return [Operation(rng.choice(kinds if spill else kinds[:2]), path)]


def random_key(rng: random.Random, long_keys: bool) -> bytes:
    key = b"k%04d" % rng.randrange(3000)
    return key.ljust(rng.choice([60, 150]), b".") if long_keys else key


def random_value(rng: random.Random) -> bytes:
    """Printable, or no UTF-8 at all; mostly short, seldom several pages long."""
    size = rng.choice([0, 1, 10, 50, 50, 200, 900]) if rng.random() < 0.99 else rng.choice([5000, 30000])
    return bytes(rng.choices(b'abcdefgh "\\<&', k=size)) if rng.random() < 0.7 else b"\xff" + rng.randbytes(size)


def model_lines(model: Model, path: tuple[str, ...] = ()) -> list[str]:
    """The dump that a database with this content must have.  For names that are ASCII, and values from above."""
    lines = []
    for key, value in sorted(model.entries.items()):
        if isinstance(value, Model):
            here = (*path, key.decode())
            lines.append(_line({"p": here, "b": True} | ({"seq": value.sequence} if value.sequence else {})))
            lines += model_lines(value, here)
        else:
            text = {"vx": value.hex()} if b"\xff" in value else {"v": value.decode()}
            lines.append(_line({"p": path, "k": key.decode(), **text}))
    return lines


def _line(item: dict[str, object]) -> str:
    return json.dumps(item, separators=(",", ":"), ensure_ascii=False)


# -- files


def new_db(path: Path, page_size: int = 4096, *, freelist: bool = True) -> Path:
    """An initialised empty database, with or without a stored freelist."""
    with Db.open(path, writable=True, create=True, page_size=page_size) as db, db.update():
        pass
    if not freelist:
        patch_metas(path, freelist=NO_FREELIST)
    return path


@contextmanager
def updating(path: Path, **options: float) -> Iterator[Tx]:
    """One write transaction."""
    with Db.open(path, writable=True) as db, db.update(**options) as tx:
        yield tx


@contextmanager
def viewing(path: Path) -> Iterator[Tx]:
    """One read transaction."""
    with Db.open(path) as db, db.view() as tx:
        yield tx


def open_bucket(tx: Tx, *names: bytes) -> Bucket:
    """A bucket that must be there."""
    bucket = tx.path_bucket(*names)
    assert bucket is not None
    return bucket


def fill(path: Path, count: int, *, name: bytes = b"b", value: bytes = b"v" * 40) -> Path:
    """Put ``count`` keys ``k00000``... into a bucket."""
    with updating(path) as tx:
        bucket = tx.create_path(name)
        for i in range(count):
            bucket.put(b"k%05d" % i, value)
    return path


def read_meta(path: Path) -> Meta:
    with open(path, "rb") as file:
        return PageFile(file.fileno(), str(path)).meta


def patch_metas(path: Path, **changes: int) -> None:
    """Change fields of both meta pages and make their checksums right."""
    data = bytearray(path.read_bytes())
    patch_metas_of(data, **changes)
    path.write_bytes(data)


def patch_metas_of(data: bytearray, **changes: int) -> None:
    size = parse_meta(bytes(data)).page_size
    for slot in (0, 1):
        old = parse_meta(bytes(data[slot * size :]))
        fields = {name: getattr(old, name) for name in Meta.__slots__}
        body = Meta(**(fields | changes)).pack()[PAGE_HEADER_SIZE:]
        data[slot * size + PAGE_HEADER_SIZE : slot * size + PAGE_HEADER_SIZE + len(body)] = body


def contents(path: Path) -> Model:
    """Everything in a file, read with cursors."""
    with viewing(path) as tx:
        return bucket_contents(tx.root)


def bucket_contents(bucket: Bucket) -> Model:
    model = Model(bucket.sequence)
    for key, value in bucket.items():
        if value is None:
            child = bucket.bucket(key)
            assert child is not None
            model.entries[key] = bucket_contents(child)
        else:
            model.entries[key] = value
    return model


# -- trees


@dataclass
class Tree:
    """The shape of one bucket's tree: the depth of each leaf, and the branches with fewer than two children."""

    root: int
    leaf_depths: list[int] = field(default_factory=list)
    thin_branches: list[int] = field(default_factory=list)


def trees(path: Path) -> list[Tree]:
    """The trees of all buckets of a file that are not inline."""
    with open(path, "rb") as file:
        pages = PageFile(file.fileno(), str(path))
        result = []
        todo = [pages.meta.root]
        while todo:
            result.append(_tree(pages, todo.pop(), todo))
        return result


def _tree(pages: PageFile, root: int, buckets: list[int]) -> Tree:
    tree = Tree(root)
    stack = [(root, 0)]
    while stack:
        page_id, depth = stack.pop()
        page, is_leaf = pages.tree_page(page_id)
        if is_leaf:
            tree.leaf_depths.append(depth)
            buckets.extend(v.root for v in pages.leaf(page)[1] if isinstance(v, BucketValue) and v.root)
        else:
            children = pages.branch(page)[1]
            if len(children) < 2:
                tree.thin_branches.append(page_id)
            stack.extend((child, depth + 1) for child in children)
    return tree


def height(path: Path, *names: bytes) -> int:
    """Levels of branches above the leaves of one bucket, 0 for an inline bucket too."""
    with viewing(path) as tx:
        bucket = open_bucket(tx, *names)
        node, levels = bucket.root_node(), 0
        while not node.leaf:
            node, levels = bucket.child_node(node, 0, None, None, levels + 1), levels + 1
        return levels


def assert_sound(path: Path) -> None:
    """The check is clean, all leaves of a tree are equally deep, and every branch has two children at least.

    bbolt takes the last two for granted when it merges nodes.
    """
    result = check(path)
    assert result.clean, [str(f) for f in result.findings[:5]]
    for tree in trees(path):
        assert len(set(tree.leaf_depths)) == 1, f"leaves of the tree at page {tree.root} are at {set(tree.leaf_depths)}"
        assert not tree.thin_branches, f"branches with one child: {tree.thin_branches}"


def assert_holds(path: Path, model: Model) -> None:
    """The file is sound and its content is the model's."""
    assert_sound(path)
    assert contents(path) == model
