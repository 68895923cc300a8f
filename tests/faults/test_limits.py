"""Too little memory, threads or files; tests/torture/limits.py tries all limits on the real command."""

from __future__ import annotations

import errno
import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import asyncmig
from asyncmig import IncompleteMigrationError, IncompleteRollbackError, ResourceError
from asyncmig.cli import errors, main
from asyncmig.errors import described, lack_of_resources
from asyncmig.migration import pipeline
from asyncmig.runs import migrate
from tests.caches import marked_cache
from tests.states import tree_state

NO_THREAD = RuntimeError("can't start new thread")
LACKING = [
    (MemoryError(), "not enough memory; raise the limit"),
    (NO_THREAD, "no more threads can be started; raise the limit"),
    (OSError(errno.EMFILE, "Too many open files"), "too many open files; raise the limit"),
    (ExceptionGroup("", [MemoryError()]), "not enough memory"),
    (SystemError("error return without exception set"), "not enough memory"),
    (ImportError("x.so: failed to map segment from shared object: Cannot allocate memory"), "not enough memory"),
    (ImportError("x.so: cannot open shared object file: Too many open files"), "too many open files"),
]


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return marked_cache().write(tmp_path / "runc-overlayfs")


@pytest.mark.anyio
@pytest.mark.parametrize(("error", "text"), LACKING)
async def test_a_caller_gets_an_error_of_ours(
    error: Exception, text: str, worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    before = tree_state(worker)
    monkeypatch.setattr(migrate, "check_room", fail)
    with pytest.raises(ResourceError, match=f"^{text}"):
        await asyncmig.migrate(worker)
    assert tree_state(worker) == before


@pytest.mark.anyio
async def test_memory_that_runs_out_in_the_tail_is_called_so(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "protect", fail)
        with pytest.raises(IncompleteMigrationError, match=r"^stage protect: not enough memory; .* is incomplete"):
            await asyncmig.migrate(worker)
    await asyncmig.migrate(worker)


def test_other_errors_are_no_lack() -> None:
    assert lack_of_resources(RuntimeError("another")) == ""
    assert lack_of_resources(OSError(errno.EIO, "Input/output error")) == ""
    assert lack_of_resources(ImportError("no module")) == ""
    assert described(KeyError()) == "KeyError"


def limited(kind: int, value: int, *args: str | Path) -> subprocess.CompletedProcess[str]:
    prepare = partial(resource.setrlimit, kind, (value, value))
    command = [sys.executable, "-m", "asyncmig", *map(str, args)]
    return subprocess.run(command, preexec_fn=prepare, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_too_few_files_for_an_event_loop(backend: str, worker: Path) -> None:
    before = tree_state(worker)
    done = limited(resource.RLIMIT_NOFILE, 6, "migrate", worker, "--backend", backend)
    assert done.returncode == 1
    assert done.stderr.startswith("asyncmig: cannot start an event loop: too many open files; raise the limit")
    assert "Traceback" not in done.stderr
    assert tree_state(worker) == before


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_too_little_memory_for_a_command(backend: str, worker: Path) -> None:
    """Where Python runs out of memory within its own compiler it may say anything, but not at three limits side by side."""
    before = tree_state(worker)
    failures = 0
    for megabytes in range(16, 36, 5):
        said = []
        for limit in range(megabytes << 20, (megabytes + 1) << 20, 350 << 10):
            done = limited(resource.RLIMIT_AS, limit, "plan", worker, "--backend", backend)
            if not done.returncode or limited(resource.RLIMIT_AS, limit, "--version").returncode:
                break
            failures += 1
            assert done.returncode == 1
            said.append(done.stderr)
            if re.search("not enough memory|no more threads", done.stderr) and "Traceback" not in done.stderr:
                break
        else:
            pytest.fail("\n".join(said))
    assert failures
    assert tree_state(worker) == before


def test_too_little_memory_to_complain(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def run_out(*_: object, **__: object) -> str:
        raise MemoryError

    monkeypatch.setattr(errors, "printable", run_out)
    monkeypatch.setattr(main, "_imported", run_out)
    monkeypatch.setattr(sys, "argv", ["asyncmig", "plan", "/nowhere"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert capfd.readouterr().err.startswith("asyncmig: not enough memory; raise the limit")


@pytest.mark.parametrize("kind", [IncompleteMigrationError, IncompleteRollbackError])
def test_too_little_memory_to_complain_half_way(
    kind: type[IncompleteMigrationError | IncompleteRollbackError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object, **__: object) -> str:
        raise MemoryError

    def fail(*_: object) -> str:
        raise kind("protect", MemoryError())

    monkeypatch.setattr(errors, "printable", run_out)
    monkeypatch.setattr(main, "_imported", fail)
    monkeypatch.setattr(sys, "argv", ["asyncmig", "migrate", "/nowhere"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == errors.EXIT_INCOMPLETE
