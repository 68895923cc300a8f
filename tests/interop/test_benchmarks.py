"""The benchmarks run; what they say is not looked at here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.conftest import ContainerdFactory

ROOT = Path(__file__).parents[2]


def table(module: str, *args: str) -> list[str]:
    """The rows that a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_offline() -> None:
    rows = table("offline", "--records", "50", "--repeat", "1")
    assert rows[2].startswith("| 50 |")


@pytest.mark.parametrize("place", ["disk", "tmpfs"])
def test_live(place: str, containerd_factory: ContainerdFactory) -> None:
    rows = table("live", "--records", "30", "--concurrency", "1", "4", "--backend", "asyncio", "--on", place)
    assert [row.split(" | ")[:4] for row in rows[2:]] == [
        [f"| {place}", "30", "asyncio", "1"],
        [f"| {place}", "30", "asyncio", "4"],
    ]


@pytest.mark.parametrize("args", [[], ["--live"]], ids=["offline", "live"])
def test_loop_lag(args: list[str], containerd_factory: ContainerdFactory) -> None:
    assert table("loop_lag", "--records", "50", *args)[-1].startswith("100.0% of")
