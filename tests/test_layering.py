"""Arrows run downward only: cli -> api -> runs -> audit, migration -> layouts -> stores -> buildkit -> bolt."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

import asyncmig

PACKAGE = Path(asyncmig.__file__).parent

# Room -> what it may import of the package besides itself.
ALLOWED = {
    "errors": set(),
    "_version": set(),
    "sorting": set(),
    "bolt": {"errors"},
    "concurrency": {"bolt"},
    "buildkit": {"bolt", "errors", "sorting"},
    "stores": {"bolt", "concurrency", "errors", "sorting"},
    "synth": {"bolt", "buildkit", "errors", "stores.offline.codec", "stores.ports"},
    "layouts": {"bolt", "concurrency", "errors", "stores"},
    "migration": {"_version", "bolt", "buildkit", "concurrency", "errors", "layouts.paths", "stores.ports"},
    "audit": {"_version", "bolt", "buildkit", "concurrency", "errors", "migration", "stores.ports"},
    "runs": {"audit", "bolt", "buildkit", "concurrency", "errors", "layouts", "migration", "stores.fanout"},
    "api": {"audit", "concurrency", "errors", "migration", "runs"},
    "cli": {"", "_version", "api", "audit", "bolt", "buildkit", "errors", "layouts", "migration", "runs.caches", "synth"},
    "__main__": {"cli"},
    "__init__": {"_version", "api", "audit", "buildkit", "errors", "migration"},
}


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_pb" not in path.parts)  # which are generated


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module


def own_imports(path: Path) -> set[str]:
    found = {name for name in imports(path) if name.split(".")[0] == "asyncmig"}
    return {name.removeprefix("asyncmig").removeprefix(".") for name in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in own_imports(path):
        if name.split(".")[0] == room:
            continue
        assert any(name == allowed or (allowed and name.startswith(allowed + ".")) for allowed in ALLOWED[room]), (
            f"{room} must not import {name}"
        )


def test_stores_don_t_know_each_other() -> None:
    for adapter in ("containerd", "offline", "memory.py"):
        root = PACKAGE / "stores" / adapter
        for path in MODULES:
            if root not in (path, *path.parents):
                continue
            others = {n for n in own_imports(path) if n.startswith("stores.")} - {"stores.ports", "stores.fanout"}
            assert all(n.startswith(f"stores.{adapter.removesuffix('.py')}") for n in others), path


def test_only_the_live_adapter_knows_grpc() -> None:
    adapter = PACKAGE / "stores" / "containerd"
    for path in MODULES:
        found = {name.split(".")[0] for name in imports(path)} & {"grpclib", "betterproto2", "h2", "hpack"}
        assert not found or adapter in path.parents, path
    assert any("grpclib" in name for path in MODULES for name in imports(path)), "or this test sees nothing"


def test_every_public_name_is_there() -> None:
    assert set(asyncmig.__all__) <= set(dir(asyncmig))
    assert {getattr(asyncmig, name).__name__ for name in ("LabelChange", "RecordChange")} == {"LabelChange", "RecordChange"}


@pytest.mark.parametrize("name", ["migrate", "plan", "rollback", "verify"])
def test_the_types_of_the_public_functions_can_be_told(name: str) -> None:
    assert "return" in get_type_hints(getattr(asyncmig, name))
