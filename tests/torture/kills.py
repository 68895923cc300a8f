"""Real processes that are really killed: asyncmig, containerd, both, at any moment and several times in a row.

A moment is a share of the time that an undisturbed run takes, so a case that is repeated by its name comes near the same place,
not to it; the borders of the stages are met exactly.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio

import asyncmig
from asyncmig import Options, Stage
from asyncmig.migration.semantics import HARDENED, SEMANTICS, UPSTREAM
from asyncmig.synth import synthesize
from tests.faults.states import ASIDE, STORES, migrated_state
from tests.faults.test_containerd_faults import SNAPSHOTTER, cache_of_layers, check_finished
from tests.interop.containerd import Containerd, find_containerd
from tests.interop.livecache import build_cache, containerd_root_from_worker
from tests.interop.test_containerd_offline import check_leases, read_v2
from tests.states import dump_lines, lasting
from tests.torture.campaign import Campaign, Case, spread
from tests.torture.command import ROOT
from tests.torture.errors import BACKENDS

RECORDS = 200
GC_RECORDS = 60
NAMES = {signal.SIGKILL: "kill", signal.SIGTERM: "term", signal.SIGINT: "int", signal.SIGHUP: "hup"}

BORDER = """
import anyio, asyncmig, os, signal, sys
verb, where, number, worker, semantics, backend = sys.argv[1:]

class Die(asyncmig.Progress):
    done = 0

    def stage(self, stage, total):
        self.running = stage
        self.advance(0)

    def advance(self, count):
        if self.running == where:
            self.done += count
            if self.done >= int(number):
                os.kill(os.getpid(), signal.SIGKILL)

options = asyncmig.Options(semantics=semantics)
anyio.run(lambda: getattr(asyncmig, verb)(worker, options, progress=Die()), backend=backend)
"""


class Kills(Campaign):
    """The campaign."""

    name = "kills"
    unit = "kills"
    full = 160
    few = 4

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """Moments and borders, offline; and live where there is a containerd."""
        rng = random.Random(seed)
        self.without = find_containerd() or ""
        with ExitStack() as stack:
            kinds = [Offline(directory / "offline").cases(rng, count)]
            if not self.without:
                kinds.append(Collected(directory / "collected").cases(rng, max(2, count // 10)))
                kinds.append(stack.enter_context(Live(directory / "live")).cases(rng, max(3, count // 4)))
            every = [case for kind in kinds for case in kind]
            rng.shuffle(every)
            for number, case in enumerate(every):
                if spread(number, len(every), count):
                    yield case


def start(verb: str, worker: Path, *options: str) -> subprocess.Popen[str]:
    """The command, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "asyncmig", verb, str(worker), *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and messages."""
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def struck(verb: str, worker: Path, moments: list[float], number: signal.Signals, *options: str) -> tuple[int, str]:
    """Run the command; it gets the signal so many seconds after its start."""
    process = start(verb, worker, *options)
    begun = time.monotonic()
    for moment in sorted(moments):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, begun + moment - time.monotonic()))
        process.send_signal(number)
    return ended(process)


# -- files


class Offline:
    """A cache of some size in files."""

    def __init__(self, directory: Path) -> None:
        self._worker = directory / "runc-overlayfs"
        self._kept = {"migrate": Path(synthesize(directory / "original" / "runc-overlayfs", records=RECORDS, seed=5).directory)}
        self._expected: dict[tuple[str, str], object] = {("rollback", "hardened"): self._original(self._kept["migrate"])}
        self._seconds: dict[str, float] = {}
        for semantics in ("upstream", "hardened"):
            self._begin("migrate")
            begun = time.monotonic()
            assert ended(start("migrate", self._worker, "--semantics", semantics))[0] == 0
            self._seconds["migrate"] = time.monotonic() - begun
            self._expected["migrate", semantics] = migrated_state(self._worker)
        self._kept["rollback"] = directory / "migrated"
        shutil.copytree(self._worker, self._kept["rollback"])
        begun = time.monotonic()
        assert ended(start("rollback", self._worker))[0] == 0
        self._seconds["rollback"] = time.monotonic() - begun

    def _begin(self, verb: str) -> None:
        shutil.rmtree(self._worker, ignore_errors=True)
        shutil.copytree(self._kept[verb], self._worker)

    def _original(self, worker: Path) -> object:
        files = sorted(set(os.listdir(worker)) - {ASIDE})
        return [lasting(dump_lines(worker / name)) for name in STORES], (worker / "metadata.db").read_bytes(), files

    def cases(self, rng: random.Random, count: int) -> Iterator[Case]:
        """Borders of stages, and about ``count`` random moments."""
        for semantics in (HARDENED, UPSTREAM):
            for stage in [*Stage][: [*Stage].index(Stage.BUILD) + 1] + list(semantics.tail):
                for done in (0, 200):
                    for backend in BACKENDS:
                        name = f"border:migrate:{stage}:{done}:{semantics.name}:{backend}"
                        yield Case(name, partial(self._border, "migrate", stage, done, str(semantics.name), backend))
        for stage in (Stage.OPEN, Stage.RESTORE, Stage.WITHDRAW, Stage.UNPROTECT):
            for done in (0, 200):
                for backend in BACKENDS:
                    name = f"border:rollback:{stage}:{done}:{backend}"
                    yield Case(name, partial(self._border, "rollback", stage, done, "hardened", backend))
        for index in range(count):
            number = list(NAMES)[index % 4 if index % 8 > 3 else 0]
            verb, backend = ("migrate", "migrate", "rollback")[index % 3], BACKENDS[index % 2]
            semantics_name = "upstream" if verb == "migrate" and index % 5 == 4 else "hardened"
            shares = [round(rng.uniform(0.05, 1.05), 3) for _ in range(1 + rng.randrange(4))]
            name = f"{NAMES[number]}:{verb}:{semantics_name}:{backend}:{'-'.join(map(str, shares))}"
            yield Case(name, partial(self._moments, verb, number, semantics_name, backend, shares), len(shares))

    def _border(self, verb: str, stage: Stage, done: int, semantics: str, backend: str) -> None:
        self._begin(verb)
        program = [sys.executable, "-c", BORDER, verb, stage, str(done), str(self._worker), semantics, backend]
        code = subprocess.run(program, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode
        assert code == -signal.SIGKILL or (done and code == 0), code
        self._end(verb, semantics, backend)

    def _moments(self, verb: str, number: signal.Signals, semantics: str, backend: str, shares: list[float]) -> None:
        self._begin(verb)
        options = ["--backend", backend, *(["--semantics", semantics] if verb == "migrate" else [])]
        moments = [share * self._seconds[verb] for share in shares]
        if number == signal.SIGKILL:
            for moment in moments:  # each of another run
                if verb == "rollback" and not (self._worker / "metadata_v2.db.journal").exists():
                    break
                code, error = struck(verb, self._worker, [moment], number, *options)
                assert code in (0, -number), (code, error)
        else:
            before = self._changing_state()
            code, error = struck(verb, self._worker, moments[:2], number, *options)
            self._check_interrupted(code, error, number, before)
        self._end(verb, semantics, backend)

    def _check_interrupted(self, code: int, error: str, number: int, before: object) -> None:
        if code == 0:
            return
        # Until our handlers are there a signal has its usual effect; a KeyboardInterrupt ends Python's start with 1.
        assert code in (128 + number, -number) or (number == signal.SIGINT and code == 1), (code, error)
        assert self._changing_state() == before, f"exit code {code}, but changed: {error}"

    def _changing_state(self) -> object:
        return self._original(self._worker)

    def _end(self, verb: str, semantics: str, backend: str) -> None:
        worker = self._worker
        if verb == "rollback":
            if (worker / "metadata_v2.db.journal").exists():
                anyio.run(asyncmig.rollback, worker, backend=backend)
            assert self._original(worker) == self._expected["rollback", "hardened"], "it ended in another state"
            return
        anyio.run(asyncmig.migrate, worker, Options(semantics=SEMANTICS[semantics].name), backend=backend)
        assert migrated_state(worker) == self._expected["migrate", semantics], "it ended in another state"
        if semantics == "hardened":
            assert anyio.run(asyncmig.verify, worker, backend=backend).clean


class Collected:
    """A killed run on the files of a stopped containerd, which is started and collects before the next run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept = directory / "original"
        worker = Path(synthesize(self._kept / "runc-native", records=GC_RECORDS, seed=7).directory)
        containerd_root_from_worker(worker, self._kept / "root", "native")
        self._begin()
        begun = time.monotonic()
        assert ended(start("migrate", self._worker, "--containerd-root", str(self._root)))[0] == 0
        self._seconds = time.monotonic() - begun
        self._records = read_v2(self._worker / "metadata_v2.db")

    @property
    def _worker(self) -> Path:
        return self._directory / "now" / "runc-native"

    @property
    def _root(self) -> Path:
        return self._directory / "now" / "root"

    def _begin(self) -> None:
        shutil.rmtree(self._directory / "now", ignore_errors=True)
        shutil.copytree(self._kept, self._directory / "now", symlinks=True)

    def cases(self, rng: random.Random, count: int) -> Iterator[Case]:
        """Random moments of a migration."""
        for index in range(count):
            shares = [round(rng.uniform(0.5, 1.02), 3) for _ in range(1 + index % 2)]
            yield Case(f"collected:{'-'.join(map(str, shares))}", partial(self._try, shares), len(shares))

    def _try(self, shares: list[float]) -> None:
        self._begin()
        options = ("--containerd-root", str(self._root))
        for share in shares:
            code, error = struck("migrate", self._worker, [share * self._seconds], signal.SIGKILL, *options)
            assert code in (0, -signal.SIGKILL), (code, error)
            self._collect()
        anyio.run(asyncmig.migrate, self._worker, Options(containerd_root=self._root))
        assert anyio.run(asyncmig.verify, self._worker, Options(containerd_root=self._root)).clean
        self._collect(is_finished=True)

    def _collect(self, *, is_finished: bool = False) -> None:
        scratch = self._directory / "daemon"
        scratch.mkdir(exist_ok=True)
        with Containerd(scratch, root=self._root) as daemon:
            daemon.collect_garbage()
            assert {r.id for r in self._records if not r.is_holder} <= daemon.snapshots("native"), "snapshots are gone"
            assert {r.blob for r in self._records if r.blob} <= daemon.blobs(), "blobs are gone"
            if is_finished:
                check_leases(daemon, self._records, "native", HARDENED)


# -- a running containerd


class Live:
    """A cache in a containerd that runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        (directory / "daemon").mkdir()
        self._worker = directory / f"containerd-{SNAPSHOTTER}"
        self._daemon = Containerd(directory / "daemon", root=directory / "root", automatic_gc=False)

    def __enter__(self) -> Live:
        with self._daemon:
            build_cache(self._daemon, cache_of_layers(), self._worker, snapshotter=SNAPSHOTTER)
        for path in (self._worker, self._directory / "root"):
            shutil.copytree(path, self._directory / "kept" / path.name, symlinks=True)
        self._begin()
        with self._daemon:
            begun = time.monotonic()
            assert ended(start("migrate", self._worker, *self._options(BACKENDS[0])))[0] == 0
            self._seconds = time.monotonic() - begun
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.close()

    def _begin(self) -> None:
        for path in (self._worker, self._directory / "root"):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(self._directory / "kept" / path.name, path, symlinks=True)

    def _options(self, backend: str) -> list[str]:
        return ["--address", str(self._daemon.address), "--timeout", "300", "--backend", backend]

    def cases(self, rng: random.Random, count: int) -> Iterator[Case]:
        """Random moments, of one process or the other or both."""
        for index in range(count):
            who = ("asyncmig", "containerd", "both")[index % 3]
            shares = [round(rng.uniform(0.2, 1.0), 3) for _ in range(1 + rng.randrange(3))]
            backend = BACKENDS[index // 3 % 2]
            name = f"live:{who}:{backend}:{'-'.join(map(str, shares))}"
            yield Case(name, partial(self._try, who, backend, shares), len(shares))

    def _try(self, who: str, backend: str, shares: list[float]) -> None:
        self._begin()
        daemon, options = self._daemon, self._options(backend)
        with daemon:
            for share in shares:
                self._strike(who, share * self._seconds, options)
                daemon.collect_garbage()
            code, error = ended(start("migrate", self._worker, *options))
            assert code == 0, (code, error)
            code, error = ended(start("verify", self._worker, *options))
            assert code == 0, (code, error)
            check_finished(daemon, self._worker)

    def _strike(self, who: str, moment: float, options: list[str]) -> None:
        process = start("migrate", self._worker, *options)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        restart = threading.Thread(target=self._restart)
        if who != "asyncmig":
            self._daemon.kill()
            restart.start()
        if who != "containerd":
            process.kill()
        code, error = ended(process)
        if who != "asyncmig":
            restart.join()
        # The very first call is not made again where nobody listens: the address may be wrong.
        too_early = code == 1 and "cannot connect" in error and "nothing was changed" in error
        assert code == 0 or too_early or (who != "containerd" and code == -signal.SIGKILL), (code, error)

    def _restart(self) -> None:
        time.sleep(0.2)
        self._daemon.start()
