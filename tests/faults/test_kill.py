"""A process that vanishes at any system call, then a rerun: the same final state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_rerun_after_a_kill_at_any_system_call_ends_in_the_same_state(anyio_backend: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill_points", str(tmp_path), anyio_backend],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 30, "points tried"
