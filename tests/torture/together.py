"""Several processes on one cache: commands beside each other, beside a daemon, beside containerd's garbage collector.

One of the commands does it; the others say that it is locked or done, and no state is ever seen but that before and that after.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio

import asyncmig
from tests.caches import V1Cache, marked_cache, sample_cache
from tests.faults import states
from tests.interop.boltool import BoltTool, build_boltool, find_go
from tests.interop.containerd import Containerd, collecting, find_containerd
from tests.interop.livecache import build_cache
from tests.states import tree_state
from tests.torture.campaign import Campaign, Case

VERBS = ("migrate", "plan", "verify", "rollback")
TIMEOUT = 120.0
LOCKED = r"\S+: locked by .+; stop the daemon"
NOT_MIGRATED = "there is no metadata_v2.db"
MOVED_AWAY = r"metadata_v2\.db: cannot open: No such file"
"""By a rollback, behind the back of a verify that has just looked."""
EXPECTED = {
    "migrate": {0: "migrated|completed", 1: LOCKED},
    "plan": {0: "", 1: LOCKED},
    "verify": {0: "", 1: f"{LOCKED}|{NOT_MIGRATED}|{MOVED_AWAY}"},
    "rollback": {0: "rolled back", 1: f"{LOCKED}|{NOT_MIGRATED}.journal"},
}
"""What each command may answer: exit codes, and what then is printed."""

ROOT = Path(__file__).parents[2]


# -- commands


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    verb: str
    code: int
    text: str

    def check(self) -> None:
        assert "Traceback" not in self.text, self.text
        assert self.code in EXPECTED[self.verb], f"{self.verb}: exit code {self.code}: {self.text}"
        assert re.search(EXPECTED[self.verb][self.code], self.text), f"{self.verb}: {self.code}: {self.text}"


def start(verb: str, worker: Path, *options: str) -> subprocess.Popen[str]:
    """Start a command."""
    command = [sys.executable, "-m", "asyncmig", verb, str(worker), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(verb: str, process: subprocess.Popen[str]) -> Ended:
    """Wait for it, and check what it answers."""
    try:
        text, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    ended = Ended(verb, process.returncode, text)
    ended.check()
    return ended


def together(verbs: list[str], delays: list[float], worker: Path, *options: str) -> list[Ended]:
    """Run commands beside each other, each a little after the one before."""
    processes = []
    for verb, delay in zip(verbs, delays, strict=True):
        processes.append(start(verb, worker, *options))
        time.sleep(delay)
    return [end(verb, process) for verb, process in zip(verbs, processes, strict=True)]


# -- the cases


class Together(Campaign):
    """See the module."""

    name = "together"
    unit = "encounters"
    full = 200
    few = 8

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """Half of them commands among themselves."""
        go, containerd = find_go(), find_containerd()
        self.without = " and ".join(filter(None, (go, containerd)))
        files = _Files(directory)
        for number in range(count // 2):
            yield Case(f"crowd-{seed}-{number}", partial(files.crowd, random.Random(f"{seed} {number}")))
        if go is None:
            beside = _Beside(files, BoltTool(build_boltool(directory)))
            yield from beside.cases(seed, count * 2 // 5)
        if containerd is None:
            for number in range(max(1, count // 10)):
                chosen = random.Random(f"{seed} {number}")
                yield Case(f"collector-{seed}-{number}", partial(_beside_a_collector, directory / "live", chosen))


class _Files:
    """Worker directories: one that was never migrated, one that was, and the one at work."""

    def __init__(self, directory: Path) -> None:
        self.worker = directory / "buildkit" / "runc-overlayfs"
        self.original = marked_cache().write(directory / "original" / "runc-overlayfs")
        self.migrated = directory / "migrated" / "runc-overlayfs"
        shutil.copytree(self.original, self.migrated)
        anyio.run(asyncmig.migrate, self.migrated)
        self._ends = states.original_state(self.original), states.migrated_state(self.migrated)

    def begin(self, template: Path) -> None:
        shutil.rmtree(self.worker, ignore_errors=True)
        shutil.copytree(template, self.worker)

    def check(self) -> bool:
        """Assert that the cache is as before a migration or as after it; whether the latter."""
        is_migrated = (self.worker / "metadata_v2.db").exists()
        state = states.migrated_state if is_migrated else states.original_state
        assert not list(self.worker.rglob("*.tmp")), "a temporary file is left"
        assert state(self.worker) == self._ends[is_migrated], "neither as before nor as after"
        return is_migrated

    def crowd(self, chosen: random.Random) -> None:
        """Two to four commands; afterwards one more migration, which has nothing in its way."""
        is_migrated = chosen.random() < 0.5
        self.begin(self.migrated if is_migrated else self.original)
        verbs = chosen.choices(VERBS, (4, 1, 1, 2), k=chosen.randint(2, 4))
        delays = [chosen.choice((0.0, 0.0, 0.01, 0.03, 0.1)) for _ in verbs]
        backend = chosen.choice(("asyncio", "trio"))
        ended = together(verbs, delays, self.worker, "--backend", backend)
        changed = [e.verb for e in ended if e.code == 0 and e.text.startswith(("migrated", "rolled back"))]
        assert abs(changed.count("migrate") - changed.count("rollback")) <= 1, "one of two has had no effect"
        assert self.check() is (is_migrated ^ bool(len(changed) % 2)), changed
        if not is_migrated and set(verbs) == {"migrate"}:
            assert changed == ["migrate"], "exactly one migrates"
        end("migrate", start("migrate", self.worker))
        assert self.check()


class _Beside:
    """A daemon that has a cache's locks before a command begins, or takes one while it runs."""

    def __init__(self, files: _Files, bolt: BoltTool) -> None:
        self._files = files
        self._bolt = bolt

    def cases(self, seed: int, count: int) -> Iterator[Case]:
        every = [
            (name, verb, shared)
            for name in ("../buildkitd.lock", "metadata.db", "metadata_v2.db", *states.STORES)
            for verb in VERBS
            for shared in (False, True)
            if verb in ("verify", "rollback") or name != "metadata_v2.db"
            if verb != "verify" or name != "metadata.db"  # which it doesn't look at
        ]
        held = random.Random(seed).sample(every, min(len(every), count * 2 // 3))
        for name, verb, shared in held:
            text = f"held-{name.strip('./').replace('/', '-')}-{verb}-{'shared' if shared else 'exclusive'}"
            yield Case(text, partial(self._held, name, verb, shared))
        for number in range(count - len(held)):
            yield Case(f"taken-{seed}-{number}", partial(self._taken, random.Random(f"{seed} {number}")))

    @contextmanager
    def _daemon(self, name: str, *, shared: bool) -> Iterator[str]:
        """Whoever has the lock, by name."""
        path = self._files.worker / name
        if path.suffix == ".lock":
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                yield rf"\(pid {os.getpid()}\)"
            path.unlink()
        else:
            with self._bolt.hold(path, read_only=shared):
                yield r"boltool \(pid \d+\)"

    def _held(self, name: str, verb: str, shared: bool) -> None:
        """Who only looks bears with others who do; whoever changes something, with nobody."""
        files = self._files
        files.begin(files.original if verb in ("migrate", "plan") else files.migrated)
        before = tree_state(files.worker)
        with self._daemon(name, shared=shared) as holder:
            ended = end(verb, start(verb, files.worker))  # if it waited for the lock, it would wait for ever
            assert ended.code == (0 if shared and verb in ("plan", "verify") else 1), ended
            if ended.code:
                assert re.search(rf"{Path(name).name}: locked by .*{holder}; stop", ended.text), ended.text
        assert tree_state(files.worker) == before, "something has changed"

    def _taken(self, chosen: random.Random) -> None:
        """A daemon waits for the lock; once it has got it, the command has ended or has not begun."""
        files = self._files
        files.begin(files.original)
        before = tree_state(files.worker)
        process = start("migrate", files.worker, "--backend", chosen.choice(("asyncio", "trio")))
        time.sleep(chosen.uniform(0.0, 0.4))
        with ExitStack() as stack:
            stack.enter_context(self._daemon(chosen.choice(("metadata.db", *states.STORES)), shared=chosen.random() < 0.5))
            seen = tree_state(files.worker)
            ended = end("migrate", process)
            assert tree_state(files.worker) == seen or seen == before, "it has gone on under the daemon"
        if ended.code:
            assert tree_state(files.worker) == before, "something has changed"
        else:
            assert files.check()


# -- a running containerd


def _beside_a_collector(directory: Path, chosen: random.Random) -> None:
    """Two commands at a time, a migration and a rollback, and the garbage of all that is collected without a pause."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    cache = _random_cache(chosen)
    with tempfile.TemporaryDirectory(prefix="ctd-", dir="/tmp") as home, Containerd(Path(home), automatic_gc=False) as daemon:
        worker = build_cache(daemon, cache, directory / "containerd-overlayfs", snapshotter="overlayfs")
        data = _mark(daemon)
        options = ("--address", str(daemon.address), "--concurrency", str(chosen.randint(1, 8)))
        for verb, others in (("migrate", ("verify", "plan", "migrate")), ("rollback", ("verify", "rollback"))):
            delays = [chosen.uniform(0, 0.2), 0.0]
            with collecting(daemon):
                ended = together([verb, chosen.choice(others)], delays, worker, *options)
                if not any(e.verb == verb and e.code == 0 for e in ended):  # whoever looks can be in its way
                    assert {e.verb for e in ended if e.code == 0} <= {"verify", "plan"}, ended
                    assert end(verb, start(verb, worker, *options)).code == 0
            _check_owned(daemon, cache, data)
        assert set(daemon.leases()) == set(cache.leases), "leases are left"


def _random_cache(chosen: random.Random) -> V1Cache:
    cache = sample_cache()
    cache.snapshots.pop("view")  # nobody owns it
    for number in range(chosen.randint(5, 25)):
        parent = chosen.choice(["", "a", "b", *(f"layer{i}" for i in range(number))])
        cache.layer(f"layer{number}", parent, blob=chosen.random() < 0.8)
    return cache


def _mark(daemon: Containerd) -> dict[Path, str]:
    """A file in each snapshot, so that its data can be told from that of one that was made anew."""
    files = {path / "mark": path.parent.name for path in _snapshots(daemon)}
    for file, text in files.items():
        file.write_text(text)
    return files


def _snapshots(daemon: Containerd) -> list[Path]:
    return sorted((daemon.root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots").glob("*/fs"))


def _check_owned(daemon: Containerd, cache: V1Cache, data: dict[Path, str]) -> None:
    daemon.collect_garbage()
    assert daemon.snapshots("overlayfs") == set(cache.snapshots), "snapshots"
    assert daemon.blobs() == set(cache.blobs), "blobs"
    assert {path: path.read_text() for path in data} == data, "data of snapshots"
    for digest in cache.blobs:
        assert daemon.ctr("content", "get", digest).encode() == cache.data[digest], "data of a blob"
