"""v1 caches in a real containerd: built by the calls with which BuildKit v0.6 made its own, or moved there."""

from __future__ import annotations

import shutil
from pathlib import Path

from asyncmig.stores.ports import Kind
from tests.caches import V1Cache, digest
from tests.interop.containerd import NAMESPACE, Containerd


def build_cache(daemon: Containerd, cache: V1Cache, worker: Path, *, snapshotter: str, namespace: str = NAMESPACE) -> Path:
    """Make the snapshots and blobs of ``cache`` in containerd, and its metadata.db in the directory ``worker``.

    Snapshots are prepared, and committed with their labels, which replace those of the active one; views are views.  Nothing
    protects an object but its labels, so the daemon must not collect garbage of its own accord meanwhile.
    """
    for name, snapshot in cache.snapshots.items():
        if snapshot.kind is Kind.COMMITTED:
            daemon.prepare(snapshotter, f"prepare {name}", snapshot.parent, snapshot.labels, namespace=namespace)
            daemon.commit(snapshotter, name, f"prepare {name}", snapshot.labels, namespace=namespace)
        else:
            view = snapshot.kind is Kind.VIEW
            daemon.prepare(snapshotter, name, snapshot.parent, snapshot.labels, view=view, namespace=namespace)
    texts = {digest(f"blob {name}"): f"blob {name}" for name in cache.records}
    for name, labels in cache.blobs.items():
        daemon.write_blob(name, texts[name].encode(), labels, namespace=namespace)
    worker.mkdir(parents=True)
    cache.write_metadata(worker / "metadata.db")
    return worker


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
