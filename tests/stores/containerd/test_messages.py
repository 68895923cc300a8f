"""What is made of answers is what betterproto2 makes of them, unless that does harm."""

from __future__ import annotations

import importlib
import re
from typing import Any

import betterproto2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig.stores.containerd import messages
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import InfoResponse
from asyncmig.stores.containerd._pb.containerd.services.introspection.v1 import PluginsResponse
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import Lease, ListResponse
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


def assert_as_declared(message: Any) -> None:
    """Each field has a value of the type that it is declared with."""
    for name, meta in message._betterproto.meta_by_field_name.items():
        value = getattr(message, name)
        if meta.proto_type == betterproto2.TYPE_MAP:
            assert all(type(text) is str for item in value.items() for text in item), name
            continue
        for item in value if meta.repeated else [value]:
            if meta.proto_type == betterproto2.TYPE_MESSAGE:
                assert isinstance(item, message._betterproto.cls_by_field[name]) or (item is None and not meta.repeated), name
                if item is not None:
                    assert_as_declared(item)
            else:
                wanted = {betterproto2.TYPE_STRING: str, betterproto2.TYPE_BYTES: bytes}.get(meta.proto_type, int)
                assert isinstance(item, wanted), name


def assert_decoded_alike(data: bytes, cls: type[betterproto2.Message]) -> None:
    """Ours is what betterproto2 makes of it, except that values of a wrong type are refused."""
    try:
        theirs = cls.FromString(data)
        assert_as_declared(theirs)
    except AssertionError:
        with pytest.raises(ValueError, match="is damaged"):
            messages.decode(data, cls)
    except Exception as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            messages.decode(data, cls)
    else:
        ours = messages.decode(data, cls)
        assert (ours, bytes(ours)) == (theirs, bytes(theirs))


@pytest.mark.parametrize("cls", all_messages(), ids=lambda cls: cls.__name__)
def test_any_message(cls: type[betterproto2.Message]) -> None:
    @given(instances(cls))
    def check(message: betterproto2.Message) -> None:
        data = bytes(message)
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
        assert_decoded_alike(damaged, cls)

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
        assert_decoded_alike(data, cls)


WRONG_TYPES: list[tuple[type[betterproto2.Message], bytes]] = [
    (Info, b"\x08\x01"),
    (Info, b"\x1a\x01x"),
    (InfoResponse, b"\x08\x01"),
    (ListSnapshotsResponse, b"\x08\x01"),
    (ListSnapshotsResponse, b"\x0b\x0c"),
    (ListSnapshotsResponse, b"\x0a\x02\x08\x01"),
    (ListResponse, b"\x0a\x06\x1a\x04\x08\x01\x10\x01"),
    (Info, b"\x0b\x0c"),
]


@pytest.mark.parametrize(("cls", "data"), WRONG_TYPES)
def test_values_of_a_wrong_type_are_refused(cls: type[betterproto2.Message], data: bytes) -> None:
    """betterproto2 lets a number through for a text or a message."""
    with pytest.raises(AssertionError):
        assert_as_declared(cls.FromString(data))
    with pytest.raises(ValueError, match="is damaged"):
        messages.decode(data, cls)


UNKNOWN = [b"\x78\0", b"\xa0\x06\0", b"\xa2\x06\x01x", b"\x7d\0\0\0\0", b"\xa1\x06" + b"\0" * 8]


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_very_many_unknown_fields_are_refused(unknown: bytes, where: str) -> None:
    """betterproto2 takes ten seconds and more for 250,000 of them."""
    data = unknown * (500_000 // len(unknown))
    if where == "inside":
        data = bytes(ListResponse(leases=[Lease(id="a")])) + b"\x0a" + betterproto2.encode_varint(len(data)) + data
    with pytest.raises(ValueError, match="too many unknown fields"):
        messages.decode(data, ListResponse)


def test_some_unknown_fields_are_taken() -> None:
    known = bytes(ListResponse(leases=[Lease(id=f"{i}", labels={"a": "b"}) for i in range(5_000)]))
    message = messages.decode(known + b"\x78\0" * 10_000, ListResponse)
    assert len(message.leases) == 5_000
