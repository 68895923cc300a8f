"""From a path to the places of a cache, through links."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncmig.errors import LayoutError
from asyncmig.layouts.detect import find_layout


def make_worker(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "metadata.db").touch()
    (path / "containerdmeta.db").touch()
    return path


def test_a_link_to_a_worker_directory_is_that_directory(tmp_path: Path) -> None:
    worker = make_worker(tmp_path / "buildkit" / "runc-native")
    (tmp_path / "link").symlink_to(worker)
    (tmp_path / "relative").symlink_to("buildkit/../link/")
    for path in ("link", "link/", "relative", "link/."):
        found = find_layout(f"{tmp_path}/{path}")
        assert (found.directory, found.snapshotter, found.name) == (str(worker), "native", "oci")
        assert str(worker.parent / "buildkitd.lock") in found.daemon_locks
        assert str(tmp_path / "buildkitd.lock") in found.daemon_locks


def test_a_link_to_an_empty_worker_directory(tmp_path: Path) -> None:
    (tmp_path / "buildkit" / "containerd-native").mkdir(parents=True)
    (tmp_path / "link").symlink_to("buildkit/containerd-native")
    found = find_layout(tmp_path / "link")
    assert (found.name, found.snapshotter) == ("containerd", "native")


@pytest.mark.parametrize("path", ["buildkit", "buildkit/runc-native", "link"])
def test_a_worker_directory_that_was_moved_and_linked(path: str, tmp_path: Path) -> None:
    """The daemon knows it by the link: its name tells the snapshotter, and the lock is beside it."""
    worker = make_worker(tmp_path / "big-disk" / "cache")
    (tmp_path / "buildkit").mkdir()
    (tmp_path / "buildkit" / "runc-native").symlink_to(worker)
    (tmp_path / "link").symlink_to("buildkit/runc-native")
    found = find_layout(tmp_path / path)
    assert (found.directory, found.snapshotter, found.name) == (str(worker), "native", "oci")
    assert found.daemon_locks[:2] == [str(tmp_path / p / "buildkitd.lock") for p in ("big-disk", "buildkit")]


def test_the_real_name_counts_for_more_than_the_links(tmp_path: Path) -> None:
    make_worker(tmp_path / "runc-native")
    (tmp_path / "containerd-overlayfs").symlink_to("runc-native")
    found = find_layout(tmp_path / "containerd-overlayfs")
    assert (found.snapshotter, found.name) == ("native", "oci")


def test_a_lock_is_named_once_whatever_way_leads_to_it(tmp_path: Path) -> None:
    """Two locks on one file would conflict with each other."""
    make_worker(tmp_path / "buildkit" / "runc-native")
    (tmp_path / "buildkit" / "link").symlink_to("runc-native")
    (tmp_path / "root").symlink_to("buildkit")
    (tmp_path / "buildkitd.lock").symlink_to("buildkit/buildkitd.lock")
    (tmp_path / "other").symlink_to("root/link")
    assert find_layout(tmp_path / "other").daemon_locks == [str(tmp_path / "buildkit" / "buildkitd.lock")]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("vol/_data/runc-native/metadata.db", "file of a cache; name the directory {}/vol/_data/runc-native"),
        ("vol/_data/runc-native/containerdmeta.db", "file of a cache; name the directory {}/vol/_data/runc-native"),
        ("vol/_data/runc-native/snapshots/metadata.db", "file of a cache; name the directory {}/vol/_data/runc-native"),
        ("vol/_data/runc-native/content", "it is a part of one; name the directory {}/vol/_data/runc-native"),
        ("vol", "name the directory {}/vol/_data"),
        ("", "name the directory {}/vol/_data"),
        ("empty", "of a volume of Docker the directory _data in it"),
        ("nowhere", "there is no such directory"),
        ("file", "not a directory; name the one that holds metadata.db"),
    ],
)
def test_the_directory_to_name_is_told(path: str, said: str, tmp_path: Path) -> None:
    worker = make_worker(tmp_path / "vol" / "_data" / "runc-native")
    (worker / "snapshots").mkdir()
    (worker / "snapshots" / "metadata.db").touch()
    (worker / "content").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(LayoutError) as caught:
        find_layout(tmp_path / path)
    assert str(caught.value).endswith(said.format(tmp_path) + (")" if path == "empty" else ""))


def test_several_directories_to_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_worker(tmp_path / name / "_data" / "runc-native")
    with pytest.raises(LayoutError, match=f"name one of the directories below it: {tmp_path}/one/_data, {tmp_path}/two/_data"):
        find_layout(tmp_path)
