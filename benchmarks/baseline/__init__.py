"""Programs in Go that do what asyncmig does, to compare with: a directory here for each, with its sources.

They are built when they are needed, once for each state of their sources and version of Go, below ``.build/`` beside this file.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.interop.boltool import DEBIAN_GOPATH, build_go_program, find_go

HERE = Path(__file__).parent
BUILT = HERE / ".build"
PACKAGES = {"live": {"github.com/containerd/containerd": "golang-github-containerd-containerd-dev"}}
"""What a program is made of besides Go and bbolt, and the package of Debian that has it."""


class BaselineError(RuntimeError):
    """A program of the baseline can't be built or run."""


def unavailable(name: str = "offline") -> str | None:
    """Why this program can't be built here, ``None`` if it can."""
    problem = find_go()
    if problem is not None:
        return problem
    for source, package in PACKAGES.get(name, {}).items():
        if not (Path(DEBIAN_GOPATH) / "src" / source).is_dir():
            return f"the sources of {source} are not installed ({package}); run scripts/install-tools as root"
    return None


def program(name: str) -> Path:
    """The program whose sources are in the directory ``name`` here.

    Raises :class:`BaselineError` if something is missing, :class:`BoltToolError` if the sources don't compile.
    """
    problem = unavailable(name)
    if problem is not None:
        raise BaselineError(f"no Go baseline {name!r}: {problem}")
    source = HERE / name
    directory = BUILT / _fingerprint(source)
    if not (directory / name).exists():
        BUILT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as scratch:
            made = build_go_program(source, Path(scratch))
            directory.mkdir(exist_ok=True)
            shutil.move(made, directory / name)  # complete or not at all: another benchmark may be looking
    return directory / name


def go_version() -> str:
    """The version of Go, "" if it is not installed."""
    if shutil.which("go") is None:
        return ""
    return subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.split()[2].removeprefix("go")


def _fingerprint(source: Path) -> str:
    digest = hashlib.sha256(go_version().encode())
    for path in sorted(source.glob("*.go")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
