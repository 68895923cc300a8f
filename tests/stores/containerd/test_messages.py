"""What the short way makes of messages is what betterproto2 makes of them."""

from __future__ import annotations

import importlib
from typing import Any

import betterproto2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig.stores.containerd import messages
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import Info as Blob
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import InfoResponse, UpdateRequest
from asyncmig.stores.containerd._pb.containerd.services.introspection.v1 import PluginsResponse, Status
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import ListResponse
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import Info, ListSnapshotsResponse
from asyncmig.stores.containerd._pb.google.protobuf import Empty, FieldMask

SERVICES = ("content", "introspection", "leases", "namespaces", "snapshots", "version")


def all_messages() -> list[type[betterproto2.Message]]:
    """All that the generated code has."""
    found: list[type[betterproto2.Message]] = [Empty, FieldMask]
    for service in SERVICES:
        module = importlib.import_module(f"asyncmig.stores.containerd._pb.containerd.services.{service}.v1")
        found += [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, betterproto2.Message)]
    return found


TEXT = st.text(max_size=200)


def values(cls: Any, name: str, meta: Any) -> st.SearchStrategy[Any]:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        betterproto2.TYPE_STRING: TEXT,
        betterproto2.TYPE_BYTES: st.binary(max_size=200),
        betterproto2.TYPE_BOOL: st.booleans(),
        betterproto2.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        betterproto2.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        betterproto2.TYPE_UINT64: st.integers(0, 2**64 - 1),
        betterproto2.TYPE_MAP: st.dictionaries(TEXT, TEXT, max_size=4),
    }
    field_class = cls._betterproto.cls_by_field[name]
    if meta.proto_type == betterproto2.TYPE_MESSAGE:
        one = instances(field_class)
        return st.lists(one, max_size=3) if meta.repeated else st.none() | one
    if meta.proto_type == betterproto2.TYPE_ENUM:
        return st.integers(0, 5).map(field_class)
    one = kinds[meta.proto_type]
    return st.lists(one, max_size=3) if meta.repeated else one


def instances(cls: Any) -> st.SearchStrategy[Any]:
    fields = cls._betterproto.meta_by_field_name
    return st.builds(cls, **{name: values(cls, name, meta) for name, meta in fields.items()})


def outcome(function: Any, *args: Any) -> Any:
    """What comes out, unknown fields included, or the error."""
    try:
        result = function(*args)
    except Exception as error:
        return type(error), str(error)
    try:
        return result, bytes(result)
    except (AttributeError, TypeError):  # it has let a number through for a text, or a text for a number
        return repr(result)


@pytest.mark.parametrize("cls", all_messages(), ids=lambda cls: cls.__name__)
def test_any_message(cls: type[betterproto2.Message]) -> None:
    @given(instances(cls))
    def check(message: betterproto2.Message) -> None:
        data = bytes(message)
        assert messages.encode(message) == data
        assert outcome(messages.decode, data, cls) == outcome(cls.FromString, data)

    check()


@pytest.mark.parametrize("cls", [ListResponse, ListSnapshotsResponse, InfoResponse, PluginsResponse])
def test_damaged_messages(cls: type[betterproto2.Message]) -> None:
    @given(instances(cls), st.data())
    def check(message: betterproto2.Message, data: st.DataObject) -> None:
        raw = bytearray(bytes(message))
        for _ in range(data.draw(st.integers(0, 3))):
            if raw:
                at = data.draw(st.integers(0, len(raw) - 1))
                raw[at] = data.draw(st.integers(0, 255))
        damaged = bytes(raw)[: data.draw(st.integers(0, len(raw)))]
        assert outcome(messages.decode, damaged, cls) == outcome(cls.FromString, damaged)

    check()


UNUSUAL = {
    "nothing": b"",
    "unknown fields": b"\x22\x03abc\x0a\x01n\x2a\x00\x38\x05",
    "an unknown field with a high number": b"\x0a\x01n\xa2\x06\x03abc",
    "an unknown fixed field": b"\x0a\x01n\x3d\0\0\0\0",
    "a number where text should be": b"\x08\x01",
    "text where a number should be": b"\x1a\x01x",
    "a field twice": b"\x0a\x01a\x0a\x01b",
    "an entry without a value": b"\x32\x03\x0a\x01k",
    "an entry in another order": b"\x32\x06\x12\x01v\x0a\x01k",
    "an entry with more in it": b"\x32\x08\x0a\x01k\x12\x01v\x18\x01",
    "an empty entry": b"\x32\x00",
    "a number that is too long": b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    "a number that is not over": b"\x18\xff",
    "a length that is too long": b"\x0a\x05abc",
    "text that is none": b"\x0a\x01\xff",
    "a kind that nobody knows": b"\x18\x63",
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_unusual_messages(what: str) -> None:
    for data, cls in ((UNUSUAL[what], Info), (b"\x0a" + bytes([len(UNUSUAL[what])]) + UNUSUAL[what], ListSnapshotsResponse)):
        assert outcome(messages.decode, data, cls) == outcome(cls.FromString, data)


@pytest.mark.parametrize("cls", all_messages(), ids=lambda cls: cls.__name__)
def test_the_short_way_is_taken(cls: Any) -> None:
    """All requests are encoded here, and all answers decoded, but for a rare one."""
    if cls.__name__.endswith("Request"):
        assert messages._encoders(cls) is not None
    elif cls not in (FieldMask, Status):
        read = {name for name, _ in messages._decoders(cls).values()}
        assert read == set(cls._betterproto.meta_by_field_name)


def test_unknown_fields_are_passed_on() -> None:
    message = Info.FromString(UNUSUAL["unknown fields"])
    assert messages.encode(message) == bytes(message)
    assert len(bytes(message)) > len(bytes(Info(name="n")))


def test_text_that_is_not_utf_8() -> None:
    with pytest.raises(UnicodeEncodeError):
        messages.encode(UpdateRequest(info=Blob(digest="\udc80")))
