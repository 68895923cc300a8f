"""v1 caches in a real containerd: built by the calls with which BuildKit v0.6 made its own, or moved there."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path

from asyncmig.stores.ports import Kind
from tests.caches import V1Cache
from tests.interop.containerd import NAMESPACE, Containerd


def build_cache(daemon: Containerd, cache: V1Cache, worker: Path, *, snapshotter: str, namespace: str = NAMESPACE) -> Path:
    """Make the snapshots, blobs and leases of ``cache`` in containerd, and its metadata.db in the directory ``worker``.

    Snapshots are prepared, and committed with their labels, which replace those of the active one; views are views.  Nothing
    protects an object but its labels, so the daemon must not collect garbage of its own accord meanwhile.

    The data of the blobs in ``cache`` loses its padding: containerd takes only what the digest is of.
    """
    for name, snapshot in cache.snapshots.items():
        if snapshot.kind is Kind.COMMITTED:
            daemon.prepare(snapshotter, f"prepare {name}", snapshot.parent, snapshot.labels, namespace=namespace)
            daemon.commit(snapshotter, name, f"prepare {name}", snapshot.labels, namespace=namespace)
        else:
            view = snapshot.kind is Kind.VIEW
            daemon.prepare(snapshotter, name, snapshot.parent, snapshot.labels, view=view, namespace=namespace)
    cache.data = {name: _without_padding(name, data) for name, data in cache.data.items()}
    for name, labels in cache.blobs.items():
        daemon.write_blob(name, cache.data[name], labels, namespace=namespace)
    for lease, held in cache.leases.items():
        daemon.lease(lease, [(f"snapshots/{snapshotter}", key) for key in held], namespace=namespace)
    worker.mkdir(parents=True)
    cache.write_metadata(worker / "metadata.db")
    return worker


def _without_padding(name: str, data: bytes) -> bytes:
    return data if name == f"sha256:{sha256(data).hexdigest()}" else data.rstrip(b"\0")


def containerd_root_from_worker(worker: Path, root: Path, snapshotter: str) -> Path:
    """The root directory of a stopped containerd that has the stores of an OCI worker.

    The files are the same; only their places differ.
    """
    places = {
        "io.containerd.metadata.v1.bolt/meta.db": "containerdmeta.db",
        "io.containerd.content.v1.content": "content",
        f"io.containerd.snapshotter.v1.{snapshotter}": "snapshots",
    }
    for target, source in places.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(worker / source, root / target)
    return root
