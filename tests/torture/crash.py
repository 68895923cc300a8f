"""Power cuts: whatever the disk holds then is sound and protected, and another run ends where an uninterrupted one does."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from asyncmig.bolt import check
from asyncmig.migration.journal import JournalFile
from asyncmig.stores.ports import Kind
from tests.caches import V1Cache, marked_cache
from tests.faults.kill_points import VERBS, migrate, rollback
from tests.faults.states import check_protection, migrated_state, original_state, owned_in_sample
from tests.interop.boltool import BoltTool, build_boltool, find_go
from tests.states import dump_lines
from tests.torture.campaign import Campaign, Case
from tests.torture.disk import Cut, Name, Recording, State, SyncDirectory, contents, recording, replay, write_state

V2 = "metadata_v2.db"
DATABASES = ("metadata.db", "containerdmeta.db", "snapshots/metadata.db", V2)
EXHAUSTIVE = 20_000
"""Cuts of the tiny cache that leave more states than this would be sampled; none does."""

PARTS = {"tiny": 0.7, "small": 0.26, "large": 0.04}
"""Shares of the states by cache: one of the large cache takes as long as ten of the tiny one."""

BoltCheck = Callable[[Path], str]


# -- caches


def tiny_cache() -> V1Cache:
    """As few sectors as there can be with a layer, a blob, a holder and its mutable snapshot."""
    cache = V1Cache()
    cache.layer("a")
    cache.unfinalised("h", "m", "a")
    return cache


def random_cache(rng: random.Random) -> V1Cache:
    """Some hundred records: trees of several levels."""
    cache, layers = V1Cache(), [""]
    for i in range(rng.randrange(100, 400)):
        name = f"{rng.getrandbits(64):x}-{i}"
        if rng.random() < 0.1:
            cache.unfinalised(f"h-{name}", name, rng.choice(layers))
        else:
            cache.layer(name, rng.choice(layers), blob=rng.random() < 0.8)
            layers.append(name)
    for i in range(rng.randrange(3)):
        cache.view(f"view {i}", rng.choice(layers))
    return cache


def _owned(cache: V1Cache) -> set[str]:
    return {key for key, snapshot in cache.snapshots.items() if snapshot.kind is not Kind.VIEW} | set(cache.blobs)


# -- one scenario


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is cut off: ``verb`` on a cache; ``complete`` is the run that ends an interrupted migration."""

    cache: str
    semantics: str
    verb: str

    def __str__(self) -> str:
        return f"{self.cache}/{self.semantics}/{self.verb}"


SCENARIOS = [
    Scenario(cache, semantics, verb)
    for cache in ("tiny", "small", "large")
    for semantics, verb in (
        ("hardened", "migrate"),
        ("hardened", "rollback"),
        ("hardened", "complete"),
        ("upstream", "migrate"),
        ("upstream", "rollback"),
    )
]


class Crashes:
    """The power cuts of one scenario."""

    def __init__(self, scenario: Scenario, directory: Path, seed: int, bolt_check: BoltCheck | None) -> None:
        self.scenario = scenario
        self._bolt_check = bolt_check
        self._worker = directory / "state" / "runc-overlayfs"
        self._migrated = directory / "migrated" / "runc-overlayfs"
        rng = random.Random(f"{seed} {scenario.cache}")
        self._lay_out(directory, rng)
        start = self._start()
        self._write(start)
        verb = VERBS["migrate" if scenario.verb == "complete" else scenario.verb]
        with recording(self._worker) as self.record:
            verb(self._worker, "asyncio", scenario.semantics)

    def _lay_out(self, directory: Path, rng: random.Random) -> None:
        semantics = self.scenario.semantics
        if self.scenario.cache == "small":
            cache, page_size, self._owned = marked_cache(), 4096, owned_in_sample(semantics)
        else:
            is_tiny = self.scenario.cache == "tiny"
            cache, page_size = (tiny_cache(), 1024) if is_tiny else (random_cache(rng), rng.choice([1024, 4096]))
            self._owned = _owned(cache)
        original = cache.write(directory / "original" / "runc-overlayfs", page_size=page_size)
        self._original = contents(original)
        self._directories = [path.relative_to(original) for path in original.rglob("*") if path.is_dir()]
        self._v1 = (original / "metadata.db").read_bytes()
        self._before = original_state(original)
        shutil.copytree(original, self._migrated)
        with recording(self._migrated) as self._migration:
            migrate(self._migrated, "asyncio", semantics)
        self._after = migrated_state(self._migrated)
        self._v2 = dump_lines(self._migrated / V2)

    def _start(self) -> State:
        match self.scenario.verb:
            case "migrate":
                return self._original
            case "rollback":
                return contents(self._migrated)
            case _:
                return Cut(self._migration, _published(self._migration)).random_state(random.Random(0))

    def _write(self, state: State) -> None:
        shutil.rmtree(self._worker.parent, ignore_errors=True)
        write_state(state, self._worker)
        for directory in self._directories:  # those of the snapshots, too, without which nothing is migrated
            (self._worker / directory).mkdir(parents=True, exist_ok=True)

    # -- the states

    def every_state(self) -> Iterator[tuple[str, State]]:
        """Each state that any cut may leave."""
        for at in self.record.cuts():
            states = Cut(self.record, at).every_state(EXHAUSTIVE)
            assert states is not None, f"cut {at} leaves too many states"
            for i, state in enumerate(states):
                yield f"{at}/{i}", state

    def random_states(self, seed: int, count: int, start: int = 0) -> Iterator[tuple[str, State]]:
        """As many states, all cuts behind ``start`` in turn."""
        cuts = self.record.cuts(start)
        for i in range(count):
            at = cuts[i % len(cuts)]
            yield f"{at}/{i}", Cut(self.record, at).random_state(random.Random(f"{seed} {self.scenario} {at} {i}"))

    # -- what must hold

    def survives_after_kill(self, name: str) -> None:
        """The same with a process that is killed first, and a second one whose work is cut off.

        What the first one had not synced the second one sees, but it may not be on the disk.
        """
        rng = random.Random(f"{self.scenario} {name}")
        point = rng.randrange(1, len(self.record.events) + 1)
        record = self.record.killed(point)
        self._write(replay(record))
        then = rng.choice([migrate, rollback])
        with recording(self._worker, record):
            then(self._worker, rng.choice(["asyncio", "trio"]), self.scenario.semantics)
        at = rng.choice(record.cuts(point))
        self.survives(name, Cut(record, at).random_state(rng))

    def survives(self, name: str, state: State) -> None:
        """Raise ``AssertionError`` unless all is well in the state, and another run gets from it to where it should."""
        rng = random.Random(f"{self.scenario} {name}")
        backend = rng.choice(["asyncio", "trio"])
        then = rng.choice([migrate, rollback])
        self._write(state)
        self._look()
        if rng.random() < 0.3:
            # The second run is cut off, too.
            with recording(self._worker) as second:
                then(self._worker, backend, self.scenario.semantics)
            self._write(Cut(second, rng.choice(second.cuts())).random_state(rng))
            self._look()
        then(self._worker, backend, self.scenario.semantics)
        self._check_databases()
        expected, found = (self._after, migrated_state) if then is migrate else (self._before, original_state)
        assert found(self._worker) == expected, "it ended in another state"

    def _look(self) -> None:
        worker = self._worker
        assert (worker / "metadata.db").read_bytes() == self._v1
        self._check_databases()
        check_protection(worker, self.scenario.semantics, self._owned)
        JournalFile(str(worker / V2)).read()
        if (worker / V2).exists():
            assert dump_lines(worker / V2) == self._v2, "an incomplete database has its name"

    def _check_databases(self) -> None:
        for path in (self._worker / name for name in DATABASES):
            if not path.exists():
                continue
            report = check(path)
            assert not report.findings, f"{path.name}: {report.findings}"
            if self._bolt_check is not None:
                found = self._bolt_check(path)
                assert not found, f"{path.name}: bbolt: {found}"


def _published(record: Recording) -> int:
    """Up to where a recorded migration has published its database and has not gone on yet."""
    (renamed,) = [i for i, e in enumerate(record.events) if isinstance(e, Name) and e.name == V2]
    assert isinstance(record.events[renamed + 1], SyncDirectory)
    return renamed + 2


# -- the campaigns


class _Crashing(Campaign):
    """Cases of all scenarios, with the real bbolt where it can be had."""

    unit = "states"

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """See :class:`Campaign`."""
        self.without = find_go() or ""
        with ExitStack() as stack:
            bolt_check = None
            if not self.without:
                bolt_check = stack.enter_context(BoltTool(build_boltool(directory)).checker())
            for scenario in SCENARIOS:
                crashes = Crashes(scenario, directory / str(scenario).replace("/", "-"), seed, bolt_check)
                yield from self._of(crashes, seed, count)

    def _of(self, crashes: Crashes, seed: int, count: int) -> Iterator[Case]:
        raise NotImplementedError


def _share(crashes: Crashes, count: int) -> int:
    scenarios = sum(1 for scenario in SCENARIOS if scenario.cache == crashes.scenario.cache)
    return max(1, round(count * PARTS[crashes.scenario.cache] / scenarios))


class CrashCampaign(_Crashing):
    """All states that a power cut may leave of a tiny cache, and some of those of larger ones."""

    name = "crash"
    full = 12_000
    few = 300

    def _of(self, crashes: Crashes, seed: int, count: int) -> Iterator[Case]:
        for name, state in self._states(crashes, seed, count):
            yield Case(f"{crashes.scenario}/{name}", partial(crashes.survives, name, state))

    def _states(self, crashes: Crashes, seed: int, count: int) -> Iterator[tuple[str, State]]:
        share = _share(crashes, count)
        if crashes.scenario.cache != "tiny":
            yield from crashes.random_states(seed, share)
            return
        total = sum(1 for _ in crashes.every_state())
        step = 1 if count >= self.full else max(1, total // share)
        for i, case in enumerate(crashes.every_state()):
            if i % step == seed % step:
                yield case


class KillAndCrashCampaign(_Crashing):
    """Some of the states that a power cut may leave of the run that follows a killed one."""

    name = "kill-and-crash"
    full = 3_000
    few = 60

    def _of(self, crashes: Crashes, seed: int, count: int) -> Iterator[Case]:
        for i in range(_share(crashes, count)):
            name = f"{seed}/{i}"
            yield Case(f"{crashes.scenario}/{name}", partial(crashes.survives_after_kill, name))
