"""Each call of the operating system fails, one after the other, in each verb: nothing is lost, and a rerun completes.

In this process, so that the error itself can be looked at: its kind, what it names, what it leaves behind.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio

import asyncmig
from asyncmig import AsyncmigError, IncompleteMigrationError, IncompleteRollbackError, Options
from asyncmig.bolt import check
from asyncmig.migration.semantics import SEMANTICS
from tests.caches import marked_cache
from tests.faults.injection import GROUPS, Fault, injected
from tests.faults.states import STORES, check_protection, migrated_state, original_state
from tests.states import dump_lines, tree_state
from tests.torture.campaign import Campaign, Case, spread

WORKER = "runc-overlayfs"
BACKENDS = ("asyncio", "trio")

_WRITING = ("EIO", "ENOSPC", "EDQUOT")
CODES: dict[str, tuple[str, ...]] = {
    "open": ("EIO", "EACCES", "EMFILE", "EROFS"),
    "pread": ("EIO",),
    "read": ("EIO",),
    "write": (*_WRITING, "short"),
    "pwrite": (*_WRITING, "short"),
    "pwritev": (*_WRITING, "EFBIG", "short"),
    "copy_file_range": (*_WRITING, "EXDEV", "ENOSYS", "short"),
    "ftruncate": ("EIO", "ENOSPC", "EFBIG"),
    "fsync": _WRITING,
    "fdatasync": _WRITING,
    "rename": ("EIO", "ENOSPC", "EACCES", "EROFS"),
    "unlink": ("EIO", "EACCES", "EROFS"),
    "fchmod": ("EPERM", "EIO"),
    "fchown": ("EPERM", "EDQUOT"),
    "stat": ("EIO", "EACCES"),
    "lstat": ("EIO",),
    "fstat": ("EIO",),
    "lseek": ("EIO",),
    "scandir": ("EIO", "EMFILE"),
    "statvfs": ("EIO",),
    "flock": ("ENOLCK", "EIO"),
    "close": ("EIO",),
    "writing": ("EROFS", "ENOSPC", "EIO"),
    "any": ("EIO",),
}
LATE = ("rename", "unlink", "fsync", "fdatasync")
"""What may have happened although it is said to have failed."""


State = dict[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A verb on a state in which it finds the cache, and how the matter is ended."""

    name: str
    begin: str
    verb: str
    end: str
    semantics: str = "hardened"


SCENARIOS = (
    Scenario("migrate", "original", "migrate", "migrate"),
    Scenario("migrate-upstream", "original", "migrate", "migrate", "upstream"),
    Scenario("rerun", "protected", "migrate", "migrate"),
    Scenario("rerun-upstream", "protected", "migrate", "migrate", "upstream"),
    Scenario("complete", "published", "migrate", "migrate"),
    Scenario("rollback", "migrated", "rollback", "rollback"),
    Scenario("rollback-half", "published", "rollback", "rollback"),
    Scenario("rollback-rerun", "restored", "rollback", "rollback"),
    Scenario("plan", "original", "plan", "migrate"),
    Scenario("verify", "migrated", "verify", "migrate"),
)
STOPS = {
    "protected": ("migrate", Fault("rename", 2, "EIO", stays=True)),
    "published": ("migrate", Fault("fdatasync", 5, "EIO", stays=True)),
    "restored": ("rollback", Fault("rename", 1, "EIO", stays=True)),
}
"""How an interrupted state is made: the first rename of a migration is the journal's, the second the new database's."""


class Errors(Campaign):
    """The campaign."""

    name = "errors"
    unit = "failed calls"
    full = 2500
    few = 50

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """Every call of every scenario with every code that fits it."""
        del seed
        stage = Stage(directory)
        every = [(scenario, fault) for scenario in SCENARIOS for fault in stage.faults(scenario)]
        for number, (scenario, fault) in enumerate(every):
            if spread(number, len(every), count):
                yield Case(f"{scenario.name}:{fault}", partial(stage.try_fault, scenario, fault))


class Stage:
    """The states in which the scenarios begin and end, and the trying of one fault."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "state"
        self._worker = self._root / WORKER
        self._kept = directory / "kept"
        self._expected: dict[tuple[str, str], object] = {}
        self._answers: dict[str, object] = {}
        original = marked_cache().write(self._kept / "original" / WORKER)
        (self._kept / "original" / "buildkitd.lock").touch()
        if os.geteuid() == 0:
            os.chown(original / "metadata.db", -1, 1000)
        for semantics in ("hardened", "upstream"):
            self._make_states(semantics)

    def _make_states(self, semantics: str) -> None:
        scenario = Scenario("", "original", "migrate", "migrate", semantics)
        self._begin(scenario)
        self._expected["rollback", semantics] = original_state(self._worker)
        run("migrate", self._worker, BACKENDS[0], semantics)
        self._expected["migrate", semantics] = migrated_state(self._worker)
        self._keep("migrated", semantics)
        for name, (verb, fault) in STOPS.items():
            self._begin(Scenario("", "migrated" if verb == "rollback" else "original", verb, "", semantics))
            with injected(self._root, fault):
                try:
                    run(verb, self._worker, BACKENDS[0], semantics)
                except (IncompleteMigrationError, IncompleteRollbackError):
                    self._keep(name, semantics)
                else:
                    raise AssertionError(f"{name}: it was to fail")

    def _keep(self, name: str, semantics: str) -> None:
        copy(self._root, self._kept / f"{name}-{semantics}")

    def _begin(self, scenario: Scenario) -> None:
        name = scenario.begin if scenario.begin == "original" else f"{scenario.begin}-{scenario.semantics}"
        shutil.rmtree(self._root, ignore_errors=True)
        copy(self._kept / name, self._root)

    def faults(self, scenario: Scenario) -> Iterator[Fault]:
        """All that can happen to the scenario."""
        self._begin(scenario)
        with injected(self._root) as calls:
            self._answers[scenario.name] = run(scenario.verb, self._worker, BACKENDS[0], scenario.semantics)
        for operation, codes in CODES.items():
            for number in range(1, calls.counts[operation] + 1):
                for code in codes:
                    if operation not in GROUPS:
                        yield Fault(operation, number, code)
                    yield Fault(operation, number, code, stays=True)
                if operation in LATE:
                    yield Fault(operation, number, codes[0], late=True)

    def try_fault(self, scenario: Scenario, fault: Fault) -> None:
        """One run with the fault, and the runs that end the matter."""
        self._begin(scenario)
        worker, semantics = self._worker, scenario.semantics
        backend = BACKENDS[(fault.number + len(fault.code)) % 2]
        before, files, threads = state_of(self._root), open_files(), threading.active_count()
        error: AsyncmigError | None = None
        answer: object = None
        with injected(self._root, fault) as calls:
            try:
                answer = run(scenario.verb, worker, backend, semantics)
            except AsyncmigError as caught:
                error = caught
        assert calls.failed, "there was no such call"
        assert open_files() == files, f"files are left open: {open_files() - files}"
        assert threading.active_count() <= threads + 1
        check_protection(worker, semantics)
        if error is not None:
            self._check_error(error, fault, before)
        elif scenario.verb in ("plan", "verify"):
            assert state_of(self._root) == before
            assert is_refusal(answer, fault) or answer == self._answers[scenario.name], "it says something else"
        self._end(scenario, BACKENDS[fault.number % 2])

    def _check_error(self, error: AsyncmigError, fault: Fault, before: State) -> None:
        text = str(error)
        assert str(self._root) in text, f"it names no file: {text}"
        if fault.code != "short":
            reason = os.strerror(getattr(errno, fault.code))
            assert reason in text, f"it does not say why: {text}"
        if not isinstance(error, IncompleteMigrationError | IncompleteRollbackError):
            after = state_of(self._root)
            if fault.stays and fault.operation in ("unlink", "fstat", *GROUPS):
                # Nothing can be given back or removed any more, but nobody refers to it.
                before, after = without_sizes(before), without_sizes(after)
                after = {name: content for name, content in after.items() if not name.endswith(".tmp")}
            assert after == before, f"not incomplete, but changed: {changed(before, after)}: {text}"

    def _end(self, scenario: Scenario, backend: str) -> None:
        worker, semantics = self._worker, scenario.semantics
        if scenario.end == "migrate":
            run("migrate", worker, backend, semantics)
            assert migrated_state(worker) == self._expected["migrate", semantics], "it ended in another state"
            if semantics == "hardened":
                assert anyio.run(asyncmig.verify, worker, backend=backend).clean
        else:
            if (worker / "metadata_v2.db.journal").exists():
                run("rollback", worker, backend, semantics)
            assert original_state(worker) == self._expected["rollback", semantics], "it ended in another state"
        assert not list(self._root.rglob("*.tmp")), "a temporary file is left"


def state_of(root: Path) -> State:
    """Every file; of the databases that are edited in place what they say, for pages that are free may have been written."""
    state: State = {**tree_state(root)}
    for name in STORES:
        path = root / WORKER / name
        assert check(path).clean, f"{path} is damaged"
        state[f"{WORKER}/{name}"] = path.stat().st_mode, path.stat().st_size, dump_lines(path)
    return state


def without_sizes(state: State) -> State:
    """The state but for free pages at the end of the databases."""
    return {name: (content[0], content[2]) if len(content) == 3 else content for name, content in state.items()}


def run(verb: str, worker: Path, backend: str, semantics: str) -> object:
    """Run a verb; what a reader would be told, times left out."""
    if verb == "verify":
        result = anyio.run(asyncmig.verify, worker, backend=backend)
        return result.clean, result.findings, result.notes, result.counts
    options = Options(semantics=SEMANTICS[semantics].name)
    function: Callable[..., Any] = getattr(asyncmig, verb)
    report = anyio.run(function, worker, options, backend=backend)
    return report.decisions, report.notes, report.counts, report.refused


def is_refusal(answer: object, fault: Fault) -> bool:
    """Whether a plan says that the migration would refuse to begin, and why."""
    refused = answer[-1] if isinstance(answer, tuple) else None
    return isinstance(refused, str) and os.strerror(getattr(errno, fault.code)) in refused


def open_files() -> set[str]:
    """The files that this process has open, by number."""
    return {f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}" for fd in os.listdir("/proc/self/fd") if _is_file(fd)}


def _is_file(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/") and "/proc/" not in os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False


def changed(before: State, after: State) -> list[str]:
    """The names of files that differ."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def copy(source: Path, target: Path) -> None:
    """A copy with owners."""
    shutil.copytree(source, target)
    for path in source.rglob("*"):
        status = path.stat()
        os.chown(target / path.relative_to(source), status.st_uid, status.st_gid)
