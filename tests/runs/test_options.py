"""What the entry points and their options accept: everything else is an error of ours, at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import asyncmig
from asyncmig import OnBroken, OptionError, Options
from tests.caches import sample_cache

pytestmark = pytest.mark.anyio

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"semantics": "hardend"}, "semantics is 'hardend'; choose hardened, upstream"),
    ({"semantics": None}, "semantics is None; choose"),
    ({"semantics": []}, "semantics is [];"),
    ({"layout": "oc"}, "layout is 'oc'; choose auto, oci, containerd"),
    ({"on_broken": "ignore"}, "on_broken is 'ignore'; choose repair, drop, fail"),
    ({"concurrency": 0}, "concurrency is 0; give calls at a time from 1 to 1024"),
    ({"concurrency": "3"}, "concurrency is '3'"),
    ({"concurrency": True}, "concurrency is True"),
    ({"concurrency": 1.5}, "concurrency is 1.5"),
    ({"timeout": -1}, "timeout is -1; give seconds from 0 to 1e+09"),
    ({"timeout": float("nan")}, "timeout is nan"),
    ({"timeout": float("inf")}, "timeout is inf"),
    ({"timeout": None}, "timeout is None"),
    ({"max_dropped": 101}, "max_dropped is 101; give percent from 0 to 100"),
    ({"max_dropped": "5"}, "max_dropped is '5'"),
    ({"strip_leftovers": "no"}, "strip_leftovers is 'no'; give True or False"),
    ({"dry_run": 1}, "dry_run is 1; give True or False"),
    ({"snapshotter": ""}, "snapshotter is empty"),
    ({"snapshotter": "a\0b"}, "it must have no NUL"),
    ({"snapshotter": 5}, "snapshotter is 5; give a str"),
    ({"namespace": "a\0b"}, "it must have no NUL"),
    ({"namespace": "\udc80"}, "which is not UTF-8"),
    ({"namespace": b"x"}, "namespace is b'x'; give a str"),
    ({"address": "/run/a\0b"}, "it must have no NUL"),
    ({"address": ""}, "address is empty"),
    ({"containerd_root": "/a\0b"}, "it must have no NUL"),
    ({"containerd_root": ""}, "containerd_root is empty"),
    ({"containerd_root": "/\ud800"}, "which can't be the name of a file"),
    ({"address": "/\ud800"}, "which can't be the name of a file"),
    ({"containerd_root": b"/a"}, "containerd_root is b'/a'; give a path"),
    ({"containerd_root": 3}, "containerd_root is 3; give a path"),
    ({"address": "/a", "containerd_root": "/b"}, "address and containerd_root exclude each other"),
    ({"layout": "oci", "address": "/a"}, "layout and address exclude each other"),
    ({"layout": "oci", "containerd_root": "/a"}, "layout and containerd_root exclude each other"),
    ({"semantics": "upstream", "strip_leftovers": True}, "strip_leftovers needs hardened semantics, not upstream"),
    ({"semantics": "upstream", "max_dropped": 1, "on_broken": "fail"}, "on_broken and max_dropped need hardened semantics"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[str(case[0]) for case in WRONG])
def test_the_constructor_refuses_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options(**options)
    assert message in str(caught.value)
    assert set(caught.value.names) <= set(options)
    assert str(caught.value).isprintable()


def test_what_it_accepts() -> None:
    for on_broken in OnBroken:
        assert Options(on_broken=on_broken) == Options(on_broken=on_broken.value)
    Options(timeout=0, max_dropped=100, concurrency=1024, containerd_root=Path("/c"), layout="containerd")
    Options(semantics="upstream", on_broken="repair", max_dropped=5, strip_leftovers=False)


class BytesPath(os.PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"/"


VERBS = ("migrate", "plan", "rollback", "verify")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("path", ["a\0b", "", "\ud800", b"/", BytesPath(), None, 3])
async def test_paths_that_are_none(path: Any, verb: str) -> None:
    with pytest.raises(OptionError, match="path is"):
        await getattr(asyncmig, verb)(path)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"dry_run": True}}, "options is a dict; give an asyncmig.Options"),
        ({"options": {}}, "options is a dict"),
        ({"options": ""}, "options is a str"),
        ({"progress": print}, "progress is a builtin_function_or_method; give a subclass of asyncmig.Progress"),
        ({"progress": False}, "progress is a bool"),
    ],
)
async def test_arguments_of_wrong_types(arguments: dict[str, Any], message: str, verb: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        await getattr(asyncmig, verb)(sample_cache().write(tmp_path / "runc-overlayfs"), **arguments)


async def test_a_callback_that_is_none(tmp_path: Path) -> None:
    wrong: Any = []
    with pytest.raises(OptionError, match="on_change is a list; give a function"):
        await asyncmig.plan(sample_cache().write(tmp_path / "runc-overlayfs"), on_change=wrong)
