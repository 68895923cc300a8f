"""A process that vanishes at any system call, then another run: always the same final state, and all is protected meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("then", ["migrate", "rollback"])
@pytest.mark.parametrize("killed", ["migrate", "rollback"])
@pytest.mark.parametrize(("semantics", "step"), [("hardened", 1), ("upstream", 3)], ids=["hardened", "upstream"])
def test_a_run_after_a_kill_at_any_system_call_ends_in_the_same_state(
    semantics: str, step: int, killed: str, then: str, anyio_backend: str, memory_path: Path
) -> None:
    """Every point for hardened semantics; to spare time a third of them for upstream's, and under trio."""
    step *= 3 if anyio_backend == "trio" else 1
    command = [
        sys.executable,
        "-m",
        "tests.faults.kill_points",
        str(memory_path),
        anyio_backend,
        semantics,
        killed,
        then,
        str(step),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 35, "points"
