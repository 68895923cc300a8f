"""Fixtures for all tests: both event loops, the shared real caches, and what to do when a tool is missing."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from asyncmig.migration.semantics import HARDENED, UPSTREAM, Semantics
from tests.clock import Clock
from tests.torture.campaign import scratch

# Random examples are for developers; a CI run must say the same twice.  No example has a time limit, and none may be slow to
# make: both would tell of the machine.
settings.register_profile(
    "asyncmig",
    derandomize="CI" in os.environ,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("asyncmig")

SHARED = Path(os.environ.get("ASYNCMIG_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both event loops."""
    return str(request.param)


@pytest.fixture(params=[HARDENED, UPSTREAM], ids=lambda semantics: str(semantics.name))
def semantics(request: pytest.FixtureRequest) -> Semantics:
    """Both semantics."""
    found = request.param
    assert isinstance(found, Semantics)
    return found


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory in memory, for tests in which thousands of syncs would cost minutes and show nothing more."""
    with scratch() as path:
        yield path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """For patience and time-outs towards a containerd."""
    return Clock(monkeypatch)


def missing(what: str) -> None:
    """Skip the test because something is not there; a failure where everything has to be (``ASYNCMIG_REQUIRE_TOOLS=1``)."""
    if os.environ.get("ASYNCMIG_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{what}, and ASYNCMIG_REQUIRE_TOOLS=1 forbids leaving tests out")
    pytest.skip(what)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real caches and golden states (``ASYNCMIG_SHARED``, default ``../shared``)."""
    if not (SHARED / "golden").is_dir():
        missing(f"no real caches at {SHARED} (set ASYNCMIG_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def edge_cases(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 30 hand-made states with upstream's outcome, unpacked; don't change them in place."""
    return _unpack(shared / "golden" / "upstream-edge-cases.tar.xz", tmp_path_factory) / "upstream-edge-cases"


@pytest.fixture(scope="session")
def real_cache(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a real BuildKit v0.6.4 daemon, unpacked; don't change it in place."""
    return _unpack(shared / "caches" / "buildkit-0.6.4-oci-overlayfs.tar.xz", tmp_path_factory) / "buildkit"


@pytest.fixture(scope="session", params=["killed-12-0", "killed-12-6"])
def killed_cache(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a real BuildKit v0.6.4 daemon that was killed, the second one while it pruned; don't change it in place."""
    return _unpack(shared / "caches" / f"buildkit-0.6.4-{request.param}.tar.xz", tmp_path_factory) / "buildkit"


def _unpack(archive: Path, factory: pytest.TempPathFactory) -> Path:
    target = factory.mktemp(archive.name.split(".")[0])
    with tarfile.open(archive) as tar:
        # Character devices (overlay whiteouts) and foreign owners need root, and no test looks at them.
        members = [m for m in tar if m.isreg() or m.isdir() or m.issym()]
        for member in members:
            member.mode |= 0o700 if member.isdir() else 0
        if hasattr(tarfile, "fully_trusted_filter"):  # Python 3.11.4; Debian 12 has 3.11.2
            tar.extraction_filter = staticmethod(tarfile.fully_trusted_filter)
        tar.extractall(target, members=members)
    return target


def copy_tree(source: Path, target: Path) -> Path:
    """A copy with modes and links as they are."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", source, target], check=True)
    return target
