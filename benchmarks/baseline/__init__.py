"""Programs in Go that do what asyncmig does, to compare with.  Each is a directory here, with a ``main.go``."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tests.interop.boltool import DEBIAN_GOPATH, build_go_program

BUILD = Path(__file__).parents[2] / "build" / "go"
"""Where the programs are kept.  git ignores it."""

PACKAGES = {"live": {"github.com/containerd/containerd": "golang-github-containerd-containerd-dev"}}
"""What each program is made of besides Go, and the package of Debian that has it."""


class BaselineError(RuntimeError):
    """A program of the baseline can't be built or run."""


def find_baseline(name: str) -> str | None:
    """Why the program can't be built here, or ``None`` if it can."""
    advice = "run scripts/install-tools bench as root"
    if shutil.which("go") is None:
        return f"the go command is not installed; {advice}"
    for source, package in PACKAGES[name].items():
        if not (Path(DEBIAN_GOPATH) / "src" / source).is_dir():
            return f"the sources of {source} are not installed ({package}); {advice}"
    return None


def baseline(name: str) -> Path:
    """The program, built if it was not before from the same source."""
    problem = find_baseline(name)
    if problem is not None:
        raise BaselineError(f"no Go baseline {name!r}: {problem}")
    source = Path(__file__).parent / name
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(source.glob("*.go")))).hexdigest()[:16]
    target = BUILD / f"{name}-{digest}"
    if not (target / name).exists():
        # Under another name first: a build that was interrupted is not taken for a program.
        making = BUILD / f".{name}-{os.getpid()}"
        making.mkdir(parents=True, exist_ok=True)
        build_go_program(source, making)
        target.mkdir(exist_ok=True)
        (making / name).replace(target / name)
        shutil.rmtree(making)
    return target / name
