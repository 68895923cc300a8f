"""What is found out before anything is changed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

import asyncmig
from asyncmig import ContainerdError, ContainerdUnavailableError, LayoutError, Options, Outcome
from asyncmig.layouts.detect import find_layout
from asyncmig.migration.semantics import SEMANTICS, Semantics
from asyncmig.stores.containerd.address import socket_path
from asyncmig.stores.memory import MemoryStores
from tests.caches import V1Cache
from tests.clock import SAFETY
from tests.conftest import missing
from tests.states import tree_state
from tests.stores.containerd.fake import FakeContainerd

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINERD_ADDRESS", raising=False)
    monkeypatch.delenv("CONTAINERD_NAMESPACE", raising=False)


@pytest.fixture
def unchanged(fake: FakeContainerd, worker: Path) -> Iterator[None]:
    """The test must change neither the directory nor a store."""
    before = tree_state(worker)
    yield
    assert tree_state(worker) == before
    assert not fake.state.leases
    assert not fake.calls["Leases/Create"]
    assert not fake.calls["Snapshots/Update"]


# -- addresses


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/run/c.sock", "/run/c.sock"),
        ("unix:///run/c.sock", "/run/c.sock"),
        ("unix:/run/c.sock", "/run/c.sock"),
        ("run/c.sock", f"{Path.cwd()}/run/c.sock"),
        ("/run/../run/c.sock", "/run/c.sock"),
    ],
)
def test_forms_of_addresses(address: str, path: str) -> None:
    assert socket_path(address) == path


@pytest.mark.parametrize("address", ["", "unix://", "tcp://127.0.0.1:1", "https://x/y", "a\0b", "/" + 120 * "x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(LayoutError, match="address"):
        socket_path(address)


def test_the_environment_counts_for_a_containerd_only(worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oci = tmp_path / "runc-overlayfs"
    oci.mkdir()
    assert find_layout(worker).address == "/run/containerd/containerd.sock"
    assert find_layout(worker).namespace == "buildkit"
    monkeypatch.setenv("CONTAINERD_ADDRESS", "unix:///elsewhere.sock")
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "moby")
    found = find_layout(worker)
    assert (found.name, found.address, found.namespace, found.snapshotter) == (
        "containerd",
        "/elsewhere.sock",
        "moby",
        "overlayfs",
    )
    found = find_layout(worker, address="/given.sock", namespace="given")
    assert (found.address, found.namespace) == ("/given.sock", "given")
    found = find_layout(oci)
    assert (found.name, found.address, found.namespace) == ("oci", None, "buildkit")


def test_a_worker_of_a_containerd_is_told_by_its_content(tmp_path: Path, cache: V1Cache) -> None:
    moved = tmp_path / "backup"
    moved.mkdir()
    cache.write_metadata(moved / "metadata.db")
    assert find_layout(moved).name == "oci", "it may as well be an OCI worker that has lost its files"
    (moved / "workerid").touch()
    found = find_layout(moved)
    assert (found.name, found.snapshotter) == ("containerd", "overlayfs")
    assert find_layout(moved, snapshotter="native").snapshotter == "native"
    (moved / "snapshots").mkdir()
    assert find_layout(moved).name == "oci"


def test_an_oci_worker_is_not_looked_for_in_a_containerd(tmp_path: Path, cache: V1Cache) -> None:
    worker = cache.write(tmp_path / "runc-overlayfs")
    for options in ({"address": "/run/c.sock"}, {"layout": "containerd"}, {"containerd_root": str(tmp_path)}):
        with pytest.raises(LayoutError, match=r"are in the directory itself \(containerdmeta.db\)"):
            find_layout(worker, **options)


def test_running_and_stopped_exclude_each_other(worker: Path) -> None:
    with pytest.raises(LayoutError, match="give only one of them"):
        find_layout(worker, address="/run/c.sock", containerd_root="/var/lib/containerd")


# -- reaching the server


async def test_no_socket(worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    address = f"{fake.address}.other"
    with pytest.raises(
        ContainerdUnavailableError, match=r"other: version: cannot connect \(No such file.*is it running\?.*--address"
    ):
        await asyncmig.migrate(worker, Options(address=address))


async def test_a_socket_that_nobody_listens_at(worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    address = f"{fake.address}.other"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(address)
    with pytest.raises(ContainerdUnavailableError, match="Connection refused"):
        await asyncmig.migrate(worker, Options(address=address))


async def test_a_file_that_is_no_socket(worker: Path, unchanged: None) -> None:
    with pytest.raises(ContainerdUnavailableError, match=r"cannot connect .*is it running"):
        await asyncmig.migrate(worker, Options(address=str(worker / "metadata.db")))


async def test_a_server_that_speaks_something_else(worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    address = f"{fake.address}.other"

    def greet(server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        with pytest.raises(ContainerdError, match="version: the connection was lost"):
            await asyncmig.migrate(worker, Options(address=address))
        await anyio.to_thread.run_sync(thread.join)


PERMISSION_PROGRAM = """
import anyio, asyncmig, os, sys
worker, address, backend = sys.argv[1:]

def migrate():
    anyio.run(asyncmig.migrate, worker, asyncmig.Options(address=address, dry_run=True), backend=backend)

migrate()  # everything is imported now; another user might not be able to
os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    migrate()
except asyncmig.AsyncmigError as error:
    print(error)
"""


async def test_a_socket_that_only_root_may_use(fake: FakeContainerd, cache: V1Cache, anyio_backend: str) -> None:
    if os.geteuid() != 0:
        missing("becoming another user needs root")
    worker = fake.address.parent / "containerd-overlayfs"
    worker.mkdir()
    cache.write_metadata(worker / "metadata.db")
    fake.address.parent.chmod(0o755)
    (worker / "metadata.db").chmod(0o644)
    fake.address.chmod(0o600)
    import sys  # noqa: PLC0415

    command = [sys.executable, "-c", PERMISSION_PROGRAM, str(worker), str(fake.address), anyio_backend]
    with anyio.fail_after(SAFETY):
        done = await anyio.run_process(command, check=True)
    assert b"version: no permission to use the socket; run as root" in done.stdout


# -- the right server, namespace, snapshotter


@pytest.mark.parametrize("call", ["Leases/ListResources", "Leases/AddResource"])
async def test_a_containerd_that_is_too_old(call: str, worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    async def refuse(name: str, request: object) -> None:
        if name == call:
            raise GRPCError(Status.UNIMPLEMENTED, f"unknown method {call.split('/')[1]}")

    fake.before = refuse
    with pytest.raises(ContainerdError, match=r"unknown method .*; containerd >= 1\.3 is needed"):
        await asyncmig.migrate(worker, Options(address=str(fake.address)))


async def test_a_namespace_that_does_not_exist(worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    fake.elsewhere["k8s.io"] = MemoryStores()
    fake.state.snapshots.clear()
    with pytest.raises(LayoutError, match=r"there is no namespace moby; choose one with --namespace: buildkit, k8s\.io$"):
        await asyncmig.migrate(worker, Options(address=str(fake.address), namespace="moby"))


@pytest.mark.parametrize("namespace", ["a b", "a\nb", "-", "ä", "a..b"])
async def test_a_namespace_that_can_t_exist(namespace: str, worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    with pytest.raises(LayoutError, match="is invalid: containerd allows letters and digits"):
        await asyncmig.migrate(worker, Options(address=str(fake.address), namespace=namespace))


async def test_a_snapshotter_that_does_not_exist(worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    with pytest.raises(LayoutError, match=r"there is no snapshotter stargz; choose one with --snapshotter: native, overlayfs$"):
        await asyncmig.migrate(worker, Options(address=str(fake.address), snapshotter="stargz"))


async def test_a_snapshotter_that_does_not_work(worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    with pytest.raises(LayoutError, match="snapshotter zfs does not work: no zfs here"):
        await asyncmig.migrate(worker, Options(address=str(fake.address), snapshotter="zfs"))


@pytest.mark.parametrize(("semantics", "looked_up"), [("hardened", 8), ("upstream", 6)])
async def test_a_wrong_namespace_is_told_the_right_one(
    semantics: str, looked_up: int, worker: Path, fake: FakeContainerd, cache: V1Cache, unchanged: None
) -> None:
    fake.elsewhere["moby"] = cache.in_memory()
    fake.elsewhere["empty"] = MemoryStores()
    fake.state.snapshots.clear()
    with pytest.raises(
        LayoutError,
        match=rf"looked for {looked_up} snapshots .* namespace buildkit.*: --namespace moby --snapshotter overlayfs \(has 6 ",
    ):
        await asyncmig.migrate(worker, Options(address=str(fake.address), semantics=SEMANTICS[semantics].name))


async def test_a_wrong_snapshotter_is_told_the_right_one(worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    with pytest.raises(LayoutError, match=r"snapshotter native; use instead: --namespace buildkit --snapshotter overlayfs"):
        await asyncmig.migrate(worker, Options(address=str(fake.address), snapshotter="native"))


async def test_snapshots_that_are_nowhere_are_an_error_of_their_record(
    semantics: Semantics, worker: Path, fake: FakeContainerd, unchanged: None
) -> None:
    """Also where broken records would be dropped: that all of them are gone nobody believes."""
    fake.state.snapshots.clear()
    with pytest.raises(asyncmig.RecordError, match="record a: none of 6 records has its snapshot in snapshotter overlayfs"):
        await asyncmig.migrate(worker, Options(address=str(fake.address), semantics=semantics.name))


async def test_a_dry_run_reads_only(semantics: Semantics, worker: Path, fake: FakeContainerd, unchanged: None) -> None:
    options = Options(address=str(fake.address), semantics=semantics.name, dry_run=True)
    report = await asyncmig.migrate(worker, options)
    assert report.outcome is Outcome.WOULD_MIGRATE
    assert (report.counts.records, report.counts.blobs) == (8, 3)
    assert (report.layout, report.address, report.server) == ("containerd", str(fake.address), "1.6.20-fake")
    assert report.edited == []
