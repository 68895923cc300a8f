"""Do the interop helpers themselves tell the truth? The other interop tests rest on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.boltool import (
    COMMIT,
    BoltTool,
    BoltToolError,
    delete,
    mkbucket,
    put,
    rmbucket,
    sequence,
)
from tests.interop.conftest import ContainerdFactory
from tests.interop.containerd import Containerd, ContainerdError

PAGE_SIZE = 4096
# The body of meta page 0, which the first commit writes: page size at 8, freelist page at 32.
META = 16
GC_ROOT = "containerd.io/gc.root"


def lines(*objects: object) -> str:
    """The form of a dump: compact JSON, one object a line."""
    return "".join(json.dumps(item, separators=(",", ":"), ensure_ascii=False) + "\n" for item in objects)


def number_at(data: bytes | bytearray, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


# ---- boltool


def test_apply_then_dump(boltool: BoltTool, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    boltool.apply(
        path,
        [
            put([b"b", b"inner"], b"k", b"v"),
            put([b"b"], b"gone", b"v"),
            mkbucket([b"a", b"empty"]),
            mkbucket([b"rm", b"below"]),
            sequence([b"b"], 7),
            COMMIT,
            delete([b"b"], b"gone"),
            delete([b"nowhere"], b"k"),
            rmbucket([b"rm"]),
            rmbucket([b"nowhere"]),
            put([b"b"], b"nothing", b""),
        ],
    )
    assert boltool.dump(path) == lines(
        {"p": ["a"], "b": True},
        {"p": ["a", "empty"], "b": True},
        {"p": ["b"], "b": True, "seq": 7},
        {"p": ["b", "inner"], "b": True},
        {"p": ["b", "inner"], "k": "k", "v": "v"},
        {"p": ["b"], "k": "nothing", "v": ""},
    )
    assert boltool.check(path).clean


@pytest.mark.parametrize(
    ("raw", "key", "value"),
    [
        (b'<&>"\\', '<&>"\\', {"v": '<&>"\\'}),
        ("\xe9\x85\U0001f600".encode(), "\xe9\x85\U0001f600", {"v": "\xe9\x85\U0001f600"}),
        (b"a\nb", "hex:610a62", {"vx": "610a62"}),
        (b"\x7f", "hex:7f", {"vx": "7f"}),
        (b"\xff", "hex:ff", {"vx": "ff"}),
        (b"\xed\xa0\x80", "hex:eda080", {"vx": "eda080"}),
    ],
)
def test_dump_of_odd_text(boltool: BoltTool, tmp_path: Path, raw: bytes, key: str, value: dict[str, str]) -> None:
    path = tmp_path / "a.db"
    boltool.apply(path, [put([raw], raw, raw)])
    assert boltool.dump(path) == lines({"p": [key], "b": True}, {"p": [key], "k": key} | value)


def test_dump_escapes_line_separators_as_go_does(boltool: BoltTool, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    boltool.apply(path, [put([b"b"], "\u2028".encode(), "\u2029".encode())])
    assert boltool.dump(path).endswith('{"p":["b"],"k":"\\u2028","v":"\\u2029"}\n')


def test_apply_options(boltool: BoltTool, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    script = [put([b"b"], b"%d" % number, b"v" * 100) for number in range(200)]
    boltool.apply(path, script, page_size=1024, no_freelist_sync=True, map_freelist=True)
    data = path.read_bytes()
    assert number_at(data, META + 8, 4) == 1024
    assert number_at(data, META + 32, 8) == 2**64 - 1  # no freelist page
    assert boltool.check(path).clean


def test_apply_keeps_what_was_committed_before_an_error(boltool: BoltTool, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    script = [put([b"b"], b"1", b""), COMMIT, put([b"b"], b"2", b""), put([b"b"], b"", b"")]
    with pytest.raises(BoltToolError, match=r"operation 4 \(put\): key required"):
        boltool.apply(path, script)
    assert boltool.dump(path) == lines({"p": ["b"], "b": True}, {"p": ["b"], "k": "1", "v": ""})


@pytest.fixture
def damaged(boltool: BoltTool, tmp_path: Path) -> tuple[Path, bytearray, int]:
    """A file, its bytes, and the offset of one of its leaf pages, ready to be damaged."""
    path = tmp_path / "a.db"
    script = [put([b"b"], b"%04d" % number, b"v" * 100) for number in range(500)]
    boltool.apply(path, [*script, put([b"b"], b"0250", b"needle")], page_size=PAGE_SIZE)
    data = bytearray(path.read_bytes())
    assert data.count(b"needle") == 1
    return path, data, data.index(b"needle") // PAGE_SIZE * PAGE_SIZE


def test_check_finds_a_lost_page(boltool: BoltTool, damaged: tuple[Path, bytearray, int]) -> None:
    path, data, _ = damaged
    count = number_at(data, META + 32, 8) * PAGE_SIZE + 10  # of the ids in the freelist page
    data[count] -= 1
    path.write_bytes(data)
    result = boltool.check(path)
    assert not result.clean
    assert not result.crashed
    assert "unreachable unfreed" in result.output


def test_check_finds_keys_out_of_order(boltool: BoltTool, damaged: tuple[Path, bytearray, int]) -> None:
    path, data, _ = damaged
    at = data.index(b"0250needle")
    data[at : at + 4] = b"0999"
    path.write_bytes(data)
    result = boltool.check(path)
    assert not result.clean
    assert not result.crashed
    assert "0251" in result.output


def test_check_looks_into_inline_buckets(boltool: BoltTool, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    boltool.apply(path, [put([b"outer", b"inline"], b"k1", b""), put([b"outer", b"inline"], b"k2", b"")])
    path.write_bytes(path.read_bytes().replace(b"k1", b"k3"))
    assert not boltool.check(path).clean


def test_check_survives_a_page_that_points_at_itself(boltool: BoltTool, damaged: tuple[Path, bytearray, int]) -> None:
    path, data, page = damaged
    number = page // PAGE_SIZE
    data[page : page + PAGE_SIZE] = bytes(PAGE_SIZE)
    header = number.to_bytes(8, "little") + b"\x01\x00\x01\x00" + bytes(4)  # a branch, one child
    element = (16).to_bytes(4, "little") + (4).to_bytes(4, "little") + number.to_bytes(8, "little")
    data[page : page + 36] = header + element + b"0200"
    path.write_bytes(data)
    result = boltool.check(path)
    assert not result.clean
    assert "multiple references" in result.output


def test_check_reports_a_crash(boltool: BoltTool, damaged: tuple[Path, bytearray, int]) -> None:
    path, data, page = damaged
    position = page + 16 + 4  # where the first element says that its key is
    data[position : position + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    result = boltool.check(path)
    assert result.crashed
    assert not result.clean
    assert result.output


def test_check_ends_when_bbolt_would_not(boltool: BoltTool, tmp_path: Path) -> None:
    """An inline bucket that claims to be a branch, and its own child: bbolt's cursor is lost."""
    path = tmp_path / "a.db"
    boltool.apply(path, [put([b"outer", b"inline"], b"needle", b"value")])
    data = bytearray(path.read_bytes())
    element = data.index(b"needlevalue") - 16
    data[element - 8 : element - 6] = b"\x01\x00"  # flags
    data[element : element + 16] = bytes(16)
    path.write_bytes(data)
    result = boltool.check(path)
    assert result.crashed
    assert "in a circle" in result.output
    with pytest.raises(BoltToolError, match="in a circle"):
        boltool.dump(path)


def test_check_of_something_else(boltool: BoltTool, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"no database" * 1000)
    result = boltool.check(path)
    assert not result.clean
    assert not result.crashed
    assert "invalid database" in result.output


def test_no_file_is_an_error_and_leaves_none(boltool: BoltTool, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with pytest.raises(BoltToolError):
        boltool.check(path)
    with pytest.raises(BoltToolError):
        boltool.dump(path)
    with pytest.raises(BoltToolError):
        boltool.trylock(path)
    with pytest.raises(BoltToolError), boltool.hold(path, read_only=True):
        pass
    assert not path.exists()


def test_locks(boltool: BoltTool, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    boltool.apply(path, [mkbucket([b"b"])], no_freelist_sync=True)
    before = path.read_bytes()
    with boltool.hold(path):
        assert not boltool.trylock(path)
        assert not boltool.trylock(path, read_only=True)
    with boltool.hold(path, read_only=True):
        assert not boltool.trylock(path)
        assert boltool.trylock(path, read_only=True)
    assert boltool.trylock(path)
    assert path.read_bytes() == before


# ---- containerd


@pytest.fixture(scope="module")
def containerd(containerd_factory: ContainerdFactory) -> Iterator[Containerd]:
    """One containerd for the tests that only look and add; each uses names of its own."""
    with containerd_factory(automatic_gc=False) as daemon:
        yield daemon


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def ingest(daemon: Containerd, data: bytes) -> str:
    """Put a blob, without any label, and return its digest."""
    daemon.ctr("content", "ingest", digest_of(data), stdin=data)
    return digest_of(data)


def prepare(daemon: Containerd, snapshotter: str, key: str) -> None:
    """Make a snapshot. ctr labels it gc.root on its own account; take that off again."""
    daemon.ctr("snapshots", "--snapshotter", snapshotter, "prepare", key)
    label_snapshot(daemon, snapshotter, key, "")


def label_snapshot(daemon: Containerd, snapshotter: str, key: str, root: str) -> None:
    daemon.ctr("snapshots", "--snapshotter", snapshotter, "label", key, f"{GC_ROOT}={root}")


def test_containerd_has_the_snapshotters(containerd: Containerd) -> None:
    assert containerd.snapshotter_available("native")
    assert containerd.snapshotter_available("overlayfs")
    assert not containerd.snapshotter_available("btrfs")
    assert containerd.snapshots("overlayfs", namespace="fresh") == set()
    assert containerd.leases(namespace="fresh") == {}


def test_leases_and_labels(containerd: Containerd) -> None:
    long_id = digest_of(b"lease")
    containerd.ctr("leases", "create", "--id", long_id, "--expires", "0", "a=b,c", "d=e=f")
    containerd.ctr("leases", "create", "--id", "two words", "--expires", "0")
    leases = containerd.leases()
    assert leases[long_id] == {"a": "b,c", "d": "e=f"}
    assert leases["two words"] == {}
    assert containerd.lease_resources(long_id) == set()


def test_an_unknown_lease_is_an_error(containerd: Containerd) -> None:
    with pytest.raises(ContainerdError, match="not found"):
        containerd.lease_resources("nobody")


def test_ctr_passes_errors_on(containerd: Containerd) -> None:
    with pytest.raises(ContainerdError, match="not loaded"):
        containerd.snapshots("btrfs")


def test_garbage_collection_of_blobs(containerd_factory: ContainerdFactory) -> None:
    with containerd_factory(automatic_gc=False) as daemon:
        loose, rooted = ingest(daemon, b"loose"), ingest(daemon, b"rooted")
        daemon.ctr("content", "label", rooted, f"{GC_ROOT}=now")
        assert daemon.blobs() == {loose, rooted}
        daemon.collect_garbage()
        assert daemon.blobs() == {rooted}
        assert daemon.leases() == {}


@pytest.mark.parametrize("snapshotter", ["native", "overlayfs"])
def test_garbage_collection_of_snapshots(containerd_factory: ContainerdFactory, snapshotter: str) -> None:
    with containerd_factory(automatic_gc=False) as daemon:
        prepare(daemon, snapshotter, "loose")
        prepare(daemon, snapshotter, "rooted one")
        label_snapshot(daemon, snapshotter, "rooted one", "now")
        assert daemon.snapshots(snapshotter) == {"loose", "rooted one"}
        daemon.collect_garbage()
        assert daemon.snapshots(snapshotter) == {"rooted one"}


def test_a_crash_and_a_lease_written_offline(containerd_factory: ContainerdFactory, boltool: BoltTool) -> None:
    """What is done to the files while containerd is dead counts when it is back."""
    with containerd_factory(automatic_gc=False) as daemon:
        loose, leased = ingest(daemon, b"loose"), ingest(daemon, b"leased")
        prepare(daemon, "overlayfs", "leased")
        daemon.ctr("leases", "create", "--id", "offline", "--expires", "0")
        daemon.kill()
        lease = [b"v1", b"buildkit", b"leases", b"offline"]
        metadata = daemon.root / "io.containerd.metadata.v1.bolt" / "meta.db"
        boltool.apply(
            metadata,
            [
                put([*lease, b"content"], leased.encode(), b""),
                put([*lease, b"snapshots", b"overlayfs"], b"leased", b""),
            ],
        )
        assert boltool.check(metadata).clean
        daemon.start()
        assert daemon.lease_resources("offline") == {
            ("content", leased),
            ("snapshots/overlayfs", "leased"),
        }
        assert daemon.blobs() == {loose, leased}
        daemon.collect_garbage()
        assert daemon.blobs() == {leased}
        assert daemon.snapshots("overlayfs") == {"leased"}


def test_a_long_directory_gets_a_socket_elsewhere(tmp_path: Path, containerd: Containerd) -> None:
    directory = tmp_path / ("long" * 25)
    with Containerd(directory) as daemon:
        assert directory not in daemon.address.parents
        assert daemon.blobs() == set()
    assert not daemon.address.parent.exists()


def test_containerd_that_cannot_start_says_why(tmp_path: Path, containerd: Containerd) -> None:
    (tmp_path / "root").write_text("a file where a directory belongs")
    with pytest.raises(FileExistsError), Containerd(tmp_path):
        pass
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "containerd.sock").mkdir()
    (elsewhere / "containerd.sock" / "occupied").touch()
    with pytest.raises(ContainerdError, match="exited with"), Containerd(elsewhere):
        pass
