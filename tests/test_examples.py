"""The examples in the documentation run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import asyncmig
from asyncmig.bolt import Db
from tests.caches import sample_cache

EXAMPLES = Path(asyncmig.__file__).parents[1] / "docs" / "examples"


def run(*args: str | Path) -> str:
    command = [sys.executable, EXAMPLES / "asyncio_daemon.py", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_asyncio_daemon(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    report = tmp_path / "report.json"
    output = run(worker, report)
    assert "cache migration: protect, 6 to do" in output
    assert output.endswith("cache migrated: 8 records\nready\n")
    assert json.loads(report.read_text())["outcome"] == "migrated"


def test_the_asyncio_daemon_beside_an_old_one(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    with Db.open(worker / "metadata.db", writable=True):
        assert "the old daemon is still running" in run(worker, tmp_path / "report.json")
    assert not (worker / "metadata_v2.db").exists()


def test_the_asyncio_daemon_on_a_broken_cache(tmp_path: Path) -> None:
    worker = sample_cache().write(tmp_path / "runc-overlayfs")
    (worker / "metadata.db").write_bytes(b"garbage" * 1000)
    assert "not migrated, nothing was changed" in run(worker, tmp_path / "report.json")
