"""A real containerd of its own, for tests, with all its state in a temporary directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc  # type: ignore[import-untyped]

NAMESPACE = "buildkit"
Labels = Mapping[str, str]

START_TIMEOUT = 120.0
STOP_TIMEOUT = 120.0
CALL_TIMEOUT = 120.0

# sockaddr_un holds 108 bytes with the final NUL. containerd makes a second socket beside ours, and
# that name has to fit too.
MAX_SOCKET_PATH = 107 - len(".ttrpc")

# All that a cache without containers can do without. Some of these reach outside of our directory:
# `opt` creates /opt/containerd, `aufs` calls modprobe, `cri` watches the host's network setup.
DISABLED_PLUGINS = (
    "io.containerd.differ.v1.walking",
    "io.containerd.grpc.v1.cri",
    "io.containerd.grpc.v1.diff",
    "io.containerd.grpc.v1.tasks",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.monitor.v1.cgroups",
    "io.containerd.runtime.v1.linux",
    "io.containerd.runtime.v2.task",
    "io.containerd.service.v1.diff-service",
    "io.containerd.service.v1.tasks-service",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
)

# By default containerd collects garbage by itself: 100 ms after its start, after any deletion, and
# after 100 mutations. This postpones that; the first forced collection ends the postponement.
QUIET_SCHEDULER = """
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "24h"
  mutation_threshold = 0
  deletion_threshold = 1000000
"""


class ContainerdError(RuntimeError):
    """containerd did not start, or refused a call."""


def find_containerd() -> str | None:
    """Return why containerd cannot be run here, or None if it can."""
    for program in ("containerd", "ctr"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if os.geteuid() != 0:
        return "containerd needs root"
    return None


class Containerd:
    """A containerd that lives as long as the with block.

    `start`, `stop` and `kill` may also be called inside it, to work on the files of a stopped or
    crashed containerd and then start it again on the same root.

    root: where containerd keeps its stores; what is there already is used.
    automatic_gc: False keeps containerd from collecting garbage before `collect_garbage` is called.
    """

    def __init__(self, directory: Path, *, root: Path | None = None, automatic_gc: bool = True) -> None:
        self.root = root or directory / "root"
        self.state = directory / "state"
        self.config = directory / "config.toml"
        self.log = directory / "containerd.log"
        self.address = directory / "containerd.sock"
        self._directory = directory
        self._automatic_gc = automatic_gc
        self._socket_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop containerd, and remove what it had outside of its directory."""
        self.stop()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    # ---- the process

    def start(self) -> None:
        """Start containerd and wait until it answers."""
        if self._process is not None:
            raise ContainerdError("containerd is running already")
        for directory in (self.root, self.state):
            directory.mkdir(parents=True, exist_ok=True)
        self._choose_address()
        self.config.write_text(self._config_text())
        command = ["containerd", "--config", str(self.config), "--root", str(self.root)]
        command += ["--state", str(self.state), "--address", str(self.address)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for pytest, which then stops us in order
            )
        try:
            self._await_answer(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End containerd in order, or else by force. Does nothing if it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End containerd as a crash does; its socket stays behind. `start` works afterwards."""
        self._end(signal.SIGKILL)

    def _end(self, signal_number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal_number)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _choose_address(self) -> None:
        if self._socket_dir is not None:
            return
        self.address = self._directory / "containerd.sock"
        if len(os.fsencode(self.address)) > MAX_SOCKET_PATH:
            # Not TMPDIR's idea of a temporary directory, which may be as long.
            self._socket_dir = Path(tempfile.mkdtemp(prefix="ctd-", dir="/tmp"))
            self.address = self._socket_dir / "containerd.sock"

    def _config_text(self) -> str:
        disabled = "".join(f'  "{plugin}",\n' for plugin in DISABLED_PLUGINS)
        scheduler = "" if self._automatic_gc else QUIET_SCHEDULER
        return f"version = 2\ndisabled_plugins = [\n{disabled}]\n{scheduler}"

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        problem = "it made no socket"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise self._not_started(f"it exited with {process.returncode}")
            if self.address.exists():  # a stale one after kill(), so this alone says nothing
                try:
                    self.ctr("version", timeout=30)
                    return
                except ContainerdError as error:
                    problem = str(error)
            time.sleep(0.01)
        raise self._not_started(problem)

    def _not_started(self, problem: str) -> ContainerdError:
        tail = "\n".join(self.log.read_text(errors="replace").split("\n")[-20:])
        return ContainerdError(f"containerd did not start: {problem}\n{tail}")

    # ---- calls

    def ctr(
        self,
        *args: str,
        namespace: str = NAMESPACE,
        stdin: bytes = b"",
        timeout: float = CALL_TIMEOUT,
    ) -> str:
        """Run the real client and return what it prints."""
        command = ["ctr", "--address", str(self.address), "--namespace", namespace, *args]
        try:
            result = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise ContainerdError(f"ctr {' '.join(args)}: no answer in {timeout} s") from error
        if result.returncode != 0:
            message = result.stderr.decode(errors="replace").strip()
            raise ContainerdError(f"ctr {' '.join(args)}: {message}")
        return result.stdout.decode()

    def leases(self, namespace: str = NAMESPACE) -> dict[str, dict[str, str]]:
        """Return the labels of each lease."""
        rows = _table(self.ctr("leases", "ls", namespace=namespace), "ID", "CREATED AT", "LABELS")
        return {row["ID"]: _labels(row["LABELS"]) for row in rows}

    def lease_resources(self, lease_id: str, namespace: str = NAMESPACE) -> set[tuple[str, str]]:
        """Return the (type, id) of all that a lease protects. ctr 1.6 has no command for it."""
        request = _field(1, lease_id.encode())
        method = "/containerd.services.leases.v1.Leases/ListResources"
        resources = [body for _, body in _fields(self._call(method, request, namespace))]
        found = set()
        for resource in resources:
            fields = {number: body.decode() for number, body in _fields(resource)}
            found.add((fields.get(2, ""), fields.get(1, "")))
        return found

    def hold(self, lease_id: str, kind: str, name: str, namespace: str = NAMESPACE) -> None:
        """Let a lease protect something ("content", "snapshots/native"). ctr 1.6 has no command for it."""
        request = _field(1, lease_id.encode()) + _field(2, _field(1, name.encode()) + _field(2, kind.encode()))
        self._call("/containerd.services.leases.v1.Leases/AddResource", request, namespace)

    def lease(self, lease_id: str, resources: Iterable[tuple[str, str]], *, namespace: str = NAMESPACE) -> None:
        """Make a lease on resources, given as (type, id)."""
        self.ctr("leases", "create", "--id", lease_id, namespace=namespace)
        for kind, name in resources:
            self.hold(lease_id, kind, name, namespace)

    def snapshots(self, snapshotter: str, namespace: str = NAMESPACE) -> set[str]:
        """Return the keys of all snapshots."""
        text = self.ctr("snapshots", "--snapshotter", snapshotter, "ls", namespace=namespace)
        return {row["KEY"] for row in _table(text, "KEY", "PARENT", "KIND")}

    def blobs(self, namespace: str = NAMESPACE) -> set[str]:
        """Return the digests of all blobs."""
        return set(self.ctr("content", "ls", "-q", namespace=namespace).split())

    def snapshotter_available(self, name: str) -> bool:
        """Tell whether a snapshotter is loaded and works under our root."""
        rows = _table(self.ctr("plugins", "ls"), "TYPE", "ID", "PLATFORMS", "STATUS")
        wanted = ("io.containerd.snapshotter.v1", name, "ok")
        return wanted in {(row["TYPE"], row["ID"], row["STATUS"]) for row in rows}

    def collect_garbage(self, namespace: str = NAMESPACE) -> None:
        """Run containerd's garbage collector, in all namespaces, and wait until it is done.

        There is no call for this; deleting a lease synchronously is the accepted way.
        """
        lease_id = self.ctr("leases", "create", namespace=namespace).strip()
        self.ctr("leases", "delete", "--sync", lease_id, namespace=namespace)

    def labels(self, kind: str, name: str, namespace: str = NAMESPACE, *, snapshotter: str = "") -> dict[str, str]:
        """Return the labels of a snapshot (kind "snapshot") or a blob (kind "content")."""
        if kind == "content":
            method, request = "/containerd.services.content.v1.Content/Info", _field(1, name.encode())
        else:
            method = "/containerd.services.snapshots.v1.Snapshots/Stat"
            request = _field(1, snapshotter.encode()) + _field(2, name.encode())
        [info] = [body for _, body in _fields(self._call(method, request, namespace))]
        number = 5 if kind == "content" else 6
        labels = [dict(_fields(body)) for field, body in _fields(info) if field == number]
        return {entry[1].decode(): entry[2].decode() for entry in labels}

    def prepare(
        self, snapshotter: str, key: str, parent: str, labels: Labels, *, view: bool = False, namespace: str = NAMESPACE
    ) -> None:
        """Make an active snapshot, or a view."""
        request = _field(1, snapshotter.encode()) + _field(2, key.encode()) + _field(3, parent.encode()) + _map(4, labels)
        self._call(f"/containerd.services.snapshots.v1.Snapshots/{'View' if view else 'Prepare'}", request, namespace)

    def commit(self, snapshotter: str, name: str, key: str, labels: Labels, *, namespace: str = NAMESPACE) -> None:
        """Make a committed snapshot of an active one."""
        request = _field(1, snapshotter.encode()) + _field(2, name.encode()) + _field(3, key.encode()) + _map(4, labels)
        self._call("/containerd.services.snapshots.v1.Snapshots/Commit", request, namespace)

    def write_blob(self, digest: str, data: bytes, labels: Labels, *, namespace: str = NAMESPACE) -> None:
        """Store a blob."""
        number = {name: _varint(field << 3) for name, field in (("action", 1), ("total", 3))}
        request = number["action"] + _varint(2) + _field(2, f"ingest-{digest}".encode())  # 2: write and commit
        request += number["total"] + _varint(len(data)) + _field(4, digest.encode()) + _field(6, data) + _map(7, labels)
        self._call("/containerd.services.content.v1.Content/Write", request, namespace, stream=True)

    def _call(self, method: str, request: bytes, namespace: str, *, stream: bool = False) -> bytes:
        """Call a method; request and reply are encoded messages.  ``stream``: of one message each way."""
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            metadata = (("containerd-namespace", namespace),)
            try:
                if stream:
                    replies = list(channel.stream_stream(method)(iter([request]), metadata=metadata, timeout=CALL_TIMEOUT))
                    return b"".join(replies)
                reply = channel.unary_unary(method)(request, metadata=metadata, timeout=CALL_TIMEOUT)
            except grpc.RpcError as error:
                raise ContainerdError(f"{method}: {error}") from error
        return bytes(reply)


# ---- what ctr prints


def _table(text: str, *names: str) -> list[dict[str, str]]:
    """Read a table that ctr padded with spaces, each column as wide as in the header.

    Not split at spaces: "extract-1 sha256:..." is one snapshot key, "CREATED AT" one column.
    """
    header, *lines = text.split("\n")
    starts = [header.index(name) for name in names]
    columns = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return [dict(zip(names, (line[column].strip() for column in columns), strict=True)) for line in lines if line]


def _labels(text: str) -> dict[str, str]:
    """Read "a=b,c=d". A comma in a value is not quoted: what has no "=" continues the value."""
    labels: dict[str, str] = {}
    last = ""
    for part in text.split(",") if text != "-" else ():
        key, equals, value = part.partition("=")
        if equals:
            last = key
            labels[key] = value
        else:
            labels[last] += f",{part}"
    return labels


# ---- just enough of protobuf


def _map(number: int, items: Labels) -> bytes:
    return b"".join(_field(number, _field(1, key.encode()) + _field(2, value.encode())) for key, value in items.items())


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields that have a length; numbers are passed over."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        size, at = _read_varint(message, at)
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + size]
            at += size
        elif tag & 7 != 0:
            raise ValueError(f"unexpected wire type in field {tag >> 3}")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


@contextmanager
def collecting(daemon: Containerd) -> Iterator[None]:
    """Collect garbage, and when that is done, again; the first time as the block begins.

    containerd collects after every 100 changes by default, so it does so in the middle of a migration, too.
    """
    begun, ended = threading.Event(), threading.Event()

    def collect() -> None:
        begun.set()
        daemon.collect_garbage()
        while not ended.is_set():
            daemon.collect_garbage()

    with ThreadPoolExecutor(1) as pool:
        collector = pool.submit(collect)
        begun.wait()
        try:
            yield
        finally:
            ended.set()
        collector.result()  # its error, if there was one
