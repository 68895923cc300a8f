"""The real command, whose exit code, output and effect are looked at together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio

import asyncmig
from asyncmig import Options
from tests.clock import SAFETY
from tests.faults.states import check_protection, migrated_state, original_state
from tests.torture.errors import WORKER, State, changed, state_of

ROOT = Path(__file__).parents[2]
AS_SOMEBODY = """
import codecs, contextlib, os, resource, sys
import trio
from asyncmig.cli.main import main

verb, worker, threads, user, *options = sys.argv[1:]
for warm in ("plan", "verify", "rollback"):  # loads what it needs: Python's own files may be out of reach afterwards
    sys.argv[1:] = [warm, worker, "--progress", "none", *(["--dry-run"] if warm == "rollback" else [])]
    with contextlib.suppress(SystemExit), open(os.devnull, "w") as sys.stdout, open(os.devnull, "w") as sys.stderr:
        main()
sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
codecs.lookup("ascii")
os.setgroups([])
resource.setrlimit(resource.RLIMIT_NPROC, (int(threads), int(threads)))
os.setgid(int(user))
os.setuid(int(user))
sys.argv[1:] = [verb, worker, *options]
main()
"""
"""The command as another user, who may have so many threads."""
NO_CHECK = """
from asyncmig.cli.main import main
from asyncmig.runs import preflight
preflight._check_bytes = preflight._check_inodes = lambda *_: None
main()
"""
"""The command without its look at the free space: so it is in the midst of its work when there is none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command has ended."""

    code: int
    error: str


def command(
    *args: str | Path | int,
    prepare: Callable[[], None] | None = None,
    program: tuple[str, ...] = ("-m", "asyncmig"),
    stdout: int = subprocess.DEVNULL,
) -> Ended:
    """Run it, with what ``prepare`` does to its process before."""
    done = subprocess.run(
        [sys.executable, *program, *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
        timeout=SAFETY,
        check=False,
    )
    return Ended(done.returncode, done.stderr.decode(errors="replace"))


def check_ended(ended: Ended, before: State, root: Path, verb: str, *, lost_sizes: bool = False) -> None:
    """The exit code says what has become of the cache, and the message says what is wrong."""
    after = state_of(root)
    # hashlib logs one of its own where there is no memory for a library.
    assert "Traceback" not in ended.error or "hashlib" in ended.error, ended
    assert ended.code in (0, 1, 4), ended
    if ended.code:
        assert "asyncmig: " in ended.error, ended
    if ended.code == 1:
        if lost_sizes:
            before, after = {k: v[:1] for k, v in before.items()}, {k: v[:1] for k, v in after.items()}
        assert after == before, f"exit code 1, but changed: {changed(before, after)}: {ended}"
    if ended.code == 4:
        assert verb in ("migrate", "rollback"), ended
        assert f"run the {'migration' if verb == 'migrate' else verb} again" in ended.error, ended
    check_protection(root / WORKER, "hardened")
    assert not list(root.rglob("*.tmp")), "a temporary file is left"


def finish(root: Path, verb: str, backend: str, expected: object) -> None:
    """Run without any limits; in the end all is as if nothing had happened."""
    worker = root / WORKER
    if verb == "rollback":
        if (worker / "metadata_v2.db.journal").exists():
            anyio.run(asyncmig.rollback, worker, backend=backend)
        assert original_state(worker) == expected, "it ended in another state"
    else:
        anyio.run(asyncmig.migrate, worker, Options(), backend=backend)
        assert migrated_state(worker) == expected, "it ended in another state"
        assert anyio.run(asyncmig.verify, worker, backend=backend).clean
