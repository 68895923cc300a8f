"""Too little of everything: space, files, memory, threads, permissions; the command says so and can be run again."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio

import asyncmig
from tests.caches import marked_cache
from tests.faults.states import check_protection, migrated_state, original_state
from tests.torture.campaign import Campaign, Case, Unavailable, spread
from tests.torture.command import AS_SOMEBODY, NO_CHECK, ROOT, check_ended, command, finish
from tests.torture.errors import BACKENDS, WORKER, copy, state_of

SOMEBODY = 61_234
"""A user that has no other processes, so that a limit of processes is one of threads."""
PAGE = 4096


def limit(kind: int, value: int) -> None:
    """Set a limit of the process."""
    resource.setrlimit(kind, (value, value))


PREPARED: dict[str, Callable[[int], None]] = {
    "files": partial(limit, resource.RLIMIT_NOFILE),
    "memory": lambda value: limit(resource.RLIMIT_AS, value << 18),  # a quarter of a megabyte each
    "size": lambda value: limit(resource.RLIMIT_FSIZE, value * PAGE),
}
RANGES = {"files": range(3, 26), "memory": range(40, 260, 3), "size": range(80), "threads": range(1, 7)}


class Limits(Campaign):
    """The campaign."""

    name = "limits"
    unit = "limits"
    full = 250
    few = 8

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """Every limit from next to nothing upwards, for each verb."""
        if os.geteuid() != 0:
            raise Unavailable("limits of space and permissions need root")
        states = States(directory)
        with SmallDisk(directory) as disk:
            every = [*states.limited(), *states.denied(), *states.outputs()]
            if disk.is_there:
                every += disk.full()
            else:
                self.without = "a mount namespace with a tmpfs is not to be had here"
            random.Random(seed).shuffle(every)
            for number, case in enumerate(every):
                if spread(number, len(every), count):
                    yield case


class States:
    """The cache before and after, and what is tried on it."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "state"
        self._kept = {verb: directory / verb for verb in ("migrate", "rollback")}
        worker = marked_cache().write(self._kept["migrate"] / WORKER)
        self.expected = {"rollback": original_state(worker)}
        copy(self._kept["migrate"], self._kept["rollback"])
        anyio.run(asyncmig.migrate, self._kept["rollback"] / WORKER)
        self.expected["migrate"] = migrated_state(self._kept["rollback"] / WORKER)
        directory.chmod(0o755)

    def begin(self, verb: str, root: Path | None = None) -> Path:
        """A fresh cache; returns its root."""
        root = root or self._root
        shutil.rmtree(root, ignore_errors=True)
        copy(self._kept["rollback" if verb in ("rollback", "verify") else "migrate"], root)
        return root

    def limited(self) -> Iterator[Case]:
        """Limits of the process."""
        for kind, values in RANGES.items():
            for value in values:
                for verb in ("migrate", "rollback", "plan", "verify"):
                    for backend in BACKENDS:
                        yield Case(f"{kind}:{value}:{verb}:{backend}", partial(self._limited, kind, value, verb, backend))

    def _limited(self, kind: str, value: int, verb: str, backend: str) -> None:
        root = self.begin(verb)
        before = state_of(root)
        if kind == "threads":
            give(root, SOMEBODY)
            options = (verb, root / WORKER, value, SOMEBODY, "--backend", backend)
            check_ended(command(*options, program=("-c", AS_SOMEBODY)), before, root, verb)
            give(root, 0)
            self._finish(root, verb, backend)
            return
        prepare = partial(PREPARED[kind], value)
        try:
            ended = command(verb, root / WORKER, "--backend", backend, prepare=prepare)
        except subprocess.TimeoutExpired:
            # A thread that has no memory to say that it has ended is waited for; it is killed then, which must do no harm.
            assert kind == "memory"
            check_protection(root / WORKER, "hardened")
            self._finish(root, verb, backend)
            return
        if ended.code not in (0, 4) and command("--version", prepare=prepare).code:
            assert state_of(root) == before, ended  # Python itself does not get as far as our first line
        elif ended.code != 0 and "Traceback" in ended.error and command("plan", "--help", prepare=prepare).code:
            assert state_of(root) == before, ended  # nor as far as our commands
        else:
            check_ended(ended, before, root, verb)
        self._finish(root, verb, backend)

    def _finish(self, root: Path, verb: str, backend: str) -> None:
        end = "rollback" if verb == "rollback" else "migrate"
        finish(root, end, backend, self.expected[end])

    def denied(self) -> Iterator[Case]:
        """A file or directory that a user who is not root may not read or write."""
        for verb in ("migrate", "rollback", "plan", "verify"):
            root = self._kept["rollback" if verb in ("rollback", "verify") else "migrate"]
            for path in sorted(root.rglob("*")):
                if "content/blobs/" in str(path):
                    continue
                for mode in (0o000, 0o444 if path.is_file() else 0o555):
                    name = path.relative_to(root)
                    yield Case(f"denied:{name}:{mode:o}:{verb}", partial(self._denied, name, mode, verb))

    def _denied(self, name: Path, mode: int, verb: str) -> None:
        root = self.begin(verb)
        give(root, SOMEBODY)
        before, allowed = state_of(root), (root / name).stat().st_mode
        (root / name).chmod(mode)
        ended = command(verb, root / WORKER, 1000, SOMEBODY, program=("-c", AS_SOMEBODY))
        (root / name).chmod(allowed)
        if ended.code == 2 and "is not readable" in ended.error:
            assert state_of(root) == before  # the path that was given itself
            return
        check_ended(ended, before, root, verb)
        if ended.code:
            assert "Permission denied" in ended.error, ended
        give(root, 0)
        self._finish(root, verb, BACKENDS[mode % 2])

    def outputs(self) -> Iterator[Case]:
        """Standard output and error that are closed, or full."""
        for verb, code in (("migrate", 0), ("rollback", 0), ("plan", 0), ("verify", 74)):
            for number in (1, 2):
                for how in ("closed", "full"):
                    run = partial(self._output, verb, code if number == 1 else 0, number, how)
                    yield Case(f"output:{number}:{how}:{verb}", run)

    def _output(self, verb: str, code: int, number: int, how: str) -> None:
        root = self.begin(verb)

        def prepare() -> None:
            os.close(number)
            if how == "full":
                assert os.open("/dev/full", os.O_WRONLY) == number

        ended = command(verb, root / WORKER, "--progress", "plain", prepare=prepare)
        if how == "closed" and verb == "verify":
            code = 0  # Python has no stream then, and there is nobody to be told
        assert ended.code == code, ended
        self._finish(root, verb, BACKENDS[0])


def give(root: Path, user: int) -> None:
    """Make all files those of a user; root itself changes nobody else's."""
    for path in (root, *root.rglob("*")):
        os.chown(path, user, user)


class SmallDisk:
    """A process in a mount namespace of its own, where file systems are small or read-only."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "disk"
        self._process: subprocess.Popen[str] | None = None
        self.is_there = False

    def __enter__(self) -> SmallDisk:
        self._directory.mkdir()
        program = [sys.executable, "-m", "tests.torture.limits", str(self._directory)]
        self._process = subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.is_there = self._ask("") == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate()

    def _ask(self, line: str) -> str:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        if line:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        return str(json.loads(answer)) if answer else "it has ended"

    def full(self) -> Iterator[Case]:
        """So many free pages, with and without a look at the free space before; and a file system that can't be written."""
        for pages in range(0, 120, 2):
            for verb in ("migrate", "rollback"):
                for checking in ("checked", "unchecked"):
                    line = f"{pages} {verb} {checking}"
                    yield Case(f"space:{pages}:{verb}:{checking}", partial(self._try, line))
        for verb in ("migrate", "rollback", "plan", "verify"):
            yield Case(f"readonly:{verb}", partial(self._try, f"-1 {verb} checked"))

    def _try(self, line: str) -> None:
        answer = self._ask(line)
        assert answer == "ok", answer


# -- the process


def serve(directory: Path) -> None:
    """Answer lines of standard input: what is to be tried."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace = 0x00020000
    if libc.unshare(new_namespace) or mount("--make-rprivate", "/") or mount("-t", "tmpfs", "none", str(directory)):
        return
    states = States(directory)
    disk = directory / "small"
    disk.mkdir()
    answer("ready")
    for line in sys.stdin:
        pages, verb, checking = line.split()
        mount("-t", "tmpfs", "-o", "size=8m", "none", str(disk))
        try:
            try_space(states, disk, int(pages), verb, is_checking_room=checking == "checked")
        except Exception as error:
            answer(f"{type(error).__name__}: {error}")
        else:
            answer("ok")
        subprocess.run(["umount", str(disk)], check=True)


def try_space(states: States, disk: Path, pages: int, verb: str, *, is_checking_room: bool) -> None:
    """A run with so many free pages, or with none that can be written (-1), and one with enough."""
    root = states.begin(verb, disk / "root")
    before = state_of(root)
    if pages < 0:
        mount("-o", "remount,ro", str(disk))
    else:
        status = os.statvfs(disk)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        mount("-o", f"remount,size={used + pages * PAGE}", str(disk))
    ended = command(verb, root / WORKER, program=("-m", "asyncmig") if is_checking_room else ("-c", NO_CHECK))
    mount("-o", "remount,rw,size=64m", str(disk))
    check_ended(ended, before, root, verb)
    if pages < 0 and verb in ("plan", "verify"):
        assert ended.code == 0, ended
    if ended.code:
        reasons = ("No space left on device", "Read-only file system", "of free space on this file system")
        assert any(reason in ended.error for reason in reasons), ended
    end = "rollback" if verb == "rollback" else "migrate"
    finish(root, end, BACKENDS[pages // 2 % 2], states.expected[end])


def mount(*args: str) -> int:
    """Exit code of mount."""
    return subprocess.run(["mount", *args], check=False, stderr=subprocess.DEVNULL).returncode


def answer(text: str) -> None:
    """Print a line."""
    print(json.dumps(text), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
