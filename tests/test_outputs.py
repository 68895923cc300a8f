"""No text of files, of a server or of the command line reaches a terminal as anything but text.

Here is what is quick; every command on every kind of damage is in :mod:`tests.torture.outputs`.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

import asyncmig
from asyncmig import AsyncmigError, Options
from asyncmig.bolt import Db
from asyncmig.migration.semantics import SEMANTICS
from asyncmig.stores.memory import MemoryLease, MemorySnapshot, MemoryStores
from asyncmig.stores.ports import Kind, Resource
from tests.caches import ROOT, V1Cache
from tests.outputs import Commands
from tests.stores.containerd.fake import FakeContainerd
from tests.torture.outputs import DAMAGE, EVIL, IN_FILES, NAMES, check, check_all, damaged

pytestmark = pytest.mark.anyio


def test_a_dump_is_the_same_json_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with Db.open(path, writable=True, create=True) as db, db.update() as tx:
        tx.create_path(b"b").put("\x9b\u202e\U000e0001x".encode(), "\u2066 é \U0001f600".encode())
    with Commands() as running:
        [output] = check_all(running, [["db", "dump", str(path)]])
    line = output.stdout.decode().splitlines()[1]
    assert line == '{"p":["b"],"k":"\\u009b\\u202e\\udb40\\udc01x","v":"\\u2066 é \U0001f600"}'
    assert json.loads(line) == {"p": ["b"], "k": "\x9b\u202e\U000e0001x", "v": "\u2066 é \U0001f600"}


def test_a_journal_that_somebody_else_has_written(tmp_path: Path) -> None:
    """A rollback tells of the semantics, the namespace and the snapshotter that it names."""
    worker = damaged("none", tmp_path / "runc-overlayfs")
    with Commands() as running:
        check_all(running, [["migrate", str(worker)]])
        path = worker / "metadata_v2.db.journal"
        path.write_text(path.read_text("ascii").replace('"hardened"', json.dumps(EVIL)), "ascii")
        [output] = check_all(running, [["rollback", str(worker)]])
    assert output.code == 0
    assert rb"semantics:      \x1b[6n\x1b]0;owned\x07" in output.stdout


async def test_what_a_program_gets_to_log(tmp_path: Path) -> None:
    """Messages of errors, and the texts of reports: not only what the command prints."""
    texts = []
    for name, semantics in itertools.product((*DAMAGE, *IN_FILES), SEMANTICS):
        worker = damaged(name, tmp_path / semantics / name / NAMES)
        try:
            report = await asyncmig.migrate(worker, Options(semantics=SEMANTICS[semantics].name, max_dropped=100))
            texts += [decision.text for decision in report.decisions] + [note.text for note in report.notes]
            found = await asyncmig.verify(worker)
            texts += [finding.text for finding in found.findings] + [note.text for note in found.notes]
        except AsyncmigError as error:
            texts.append(str(error))
    assert len(texts) > 50
    assert not [text for text in texts if not text.isprintable()]


# -- a running containerd


@pytest.fixture
def fake() -> Iterator[FakeContainerd]:
    """One whose every text is a command to the terminal.  It may not be lone surrogates: protobuf has none."""
    cache = V1Cache()
    cache.layer(f"a{EVIL}", data=b"\x1f\x8b\x08")
    cache.layer(f"b{EVIL}", f"a{EVIL}")
    with tempfile.TemporaryDirectory(prefix="ctd-") as directory:
        server = FakeContainerd(Path(directory) / "containerd.sock", cache.in_memory())
        server.state.leases[EVIL] = MemoryLease({EVIL: EVIL}, {Resource(EVIL, EVIL)})
        server.state.snapshots[f"view{EVIL}"] = MemorySnapshot(Kind.VIEW, f"b{EVIL}", {ROOT: EVIL})
        server.state.snapshots[EVIL] = MemorySnapshot(Kind.ACTIVE, "", {ROOT: EVIL, EVIL: EVIL})
        server.elsewhere[EVIL] = MemoryStores()
        server.snapshotters |= {EVIL: EVIL, "broken": EVIL}
        cache.write_metadata(Path(directory) / "metadata.db")
        with server:
            yield server


CALLS = (
    "Version/Version",
    "Introspection/Plugins",
    "Namespaces/List",
    "Snapshots/Stat",
    "Snapshots/Update",
    "Snapshots/List",
    "Content/Info",
    "Content/List",
    "Content/Read",
    "Content/Update",
    "Leases/Create",
    "Leases/List",
    "Leases/ListResources",
    "Leases/AddResource",
    "Leases/Delete",
)
STATUSES = (Status.UNKNOWN, Status.UNAVAILABLE, Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.UNIMPLEMENTED)


def test_what_a_server_says(fake: FakeContainerd, tmp_path: Path) -> None:
    outputs = []
    where = ["--address", str(fake.address), "--timeout", "0"]
    with Commands() as running:
        some = itertools.product(("Version/Version", "Snapshots/Stat", "Leases/AddResource"), STATUSES)
        for number, (call, status) in enumerate((*some, *((call, Status.UNKNOWN) for call in CALLS))):
            worker = tmp_path / str(number) / "containerd-overlayfs"
            worker.mkdir(parents=True)
            shutil.copy(fake.address.parent / "metadata.db", worker)

            async def refuse(name: str, request: Any, call: str = call, status: Status = status) -> None:
                if name == call:
                    raise GRPCError(status, f"{EVIL}é")

            fake.before = refuse
            outputs.append(running.run(["migrate", str(worker), *where]))
            if outputs[-1].code == 0:
                outputs.append(running.run(["verify", str(worker), *where]))
                outputs.append(running.run(["rollback", str(worker), *where]))
        fake.before = _let_pass
        worker = tmp_path / "containerd-overlayfs"
        worker.mkdir()
        shutil.copy(fake.address.parent / "metadata.db", worker)
        for more in ("--snapshotter=broken", "--snapshotter=native", "--namespace=nowhere", f"--snapshotter={NAMES}"):
            outputs.append(running.run(["migrate", str(worker), *where, more]))
        for verb in ("plan", "migrate", "verify", "rollback"):
            outputs.append(running.run([verb, str(worker), *where]))
            assert outputs[-1].code in (0, 3)
    for output in outputs:
        check(output)
    assert {0, 1, 4} <= {output.code for output in outputs}
    said = [output for output in outputs if rb"\x1b[6n\x1b]0;owned\x07\x9b5n" in output.stderr]
    assert len(said) > 20


async def _let_pass(name: str, request: Any) -> None:
    """Refuse nothing."""
