"""What errors say."""

from __future__ import annotations

import pytest

from asyncmig import AsyncmigError, CorruptDatabaseError, OptionError


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("/b/runc-overlayfs/metadata.db", "restore metadata.db from a backup, or delete the cache"),
        ("metadata_v2.db", "restore metadata_v2.db from a backup, or delete the cache"),
        ("/b/runc-overlayfs/containerdmeta.db", "restore containerdmeta.db from a backup, or delete the cache"),
        ("/b/runc-overlayfs/snapshots/metadata.db", "restore metadata.db from a backup, or delete the cache"),
        # Not only the cache is in these.
        (
            "/c/io.containerd.snapshotter.v1.overlayfs/metadata.db",
            "restore metadata.db from a backup, with all of containerd's root directory",
        ),
        (
            "/c/io.containerd.metadata.v1.bolt/meta.db",
            "restore meta.db from a backup, with all of containerd's root directory",
        ),
        ("/elsewhere/x.db", "restore x.db from a backup"),
    ],
)
def test_what_is_to_be_done_about_a_damaged_database(path: str, remedy: str) -> None:
    error = CorruptDatabaseError(path, 10, "its header says page 1582")
    assert str(error) == f"{path}: page 10 is corrupt (its header says page 1582); {remedy}"
    assert str(CorruptDatabaseError(path, None, "gone")) == f"{path}: the database is corrupt (gone); {remedy}"


def test_what_can_be_mended() -> None:
    text = str(CorruptDatabaseError("/x/meta.db", 5, "bad", mendable=True))
    assert text.endswith("stop the daemon, and 'asyncmig db repair /x/meta.db NEW' writes a sound copy")
    assert "backup" not in text


def test_wrong_arguments_are_values_as_well() -> None:
    error = OptionError(("a", "b"), "exclude each other")
    assert isinstance(error, AsyncmigError)
    assert isinstance(error, ValueError)
    assert (str(error), error.names, error.cause) == ("a and b exclude each other", ("a", "b"), "exclude each other")
