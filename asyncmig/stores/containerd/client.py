"""Calls to a running containerd: deadlines, retries, and its answers as our errors.  asyncio only.

Every call that a migration makes is idempotent, or is made so by its caller, so whatever may or may not have reached the server
is simply asked again.  What grpclib makes of trouble is not gRPC's UNAVAILABLE:

* a connection that is lost ends each call on it with ``StreamTerminatedError``;
* then, until containerd listens again, connecting raises ``ConnectionRefusedError`` (killed, its socket is still there) or
  ``FileNotFoundError`` (ended in order);
* it wakes a waiting call by cancelling its task, and never takes that back (see :func:`_take_back_cancellations`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast

import anyio
import anyio.to_thread
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from asyncmig.errors import ContainerdError, ContainerdUnavailableError
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import ContentStub
from asyncmig.stores.containerd._pb.containerd.services.introspection.v1 import IntrospectionStub
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import LeasesStub
from asyncmig.stores.containerd._pb.containerd.services.namespaces.v1 import NamespacesStub
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import SnapshotsStub
from asyncmig.stores.containerd._pb.containerd.services.version.v1 import VersionStub
from asyncmig.stores.containerd.channel import ContainerdChannel, UndecodedReply

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Reply_co = TypeVar("Reply_co", covariant=True)
Request_contra = TypeVar("Request_contra", contravariant=True)

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_SHORTEST_CALL = 0.1
_sleep = anyio.sleep


class UnaryMethod(Protocol[Request_contra, Reply_co]):
    """A method of a generated stub with one reply."""

    def __call__(self, message: Request_contra, /) -> Awaitable[Reply_co]:
        """Call it."""
        ...


class StreamMethod(Protocol[Request_contra, Reply_co]):
    """A method of a generated stub with a stream of replies."""

    def __call__(self, message: Request_contra, /) -> AsyncIterator[Reply_co]:
        """Call it."""
        ...


class NotFoundError(ContainerdError):
    """What the call is about does not exist."""


class AlreadyExistsError(ContainerdError):
    """What was to be created exists.  ``retried``: it may be this very call that created it."""

    retried = False


class InvalidArgumentError(ContainerdError):
    """containerd does not take the argument."""


class OutOfRangeError(ContainerdError):
    """What was to be read is beyond the end."""


class TooLargeError(ContainerdError):
    """A message is larger than containerd sends or takes: 16 MiB."""


class UnimplementedError(ContainerdError):
    """This containerd has no such call, or can't do it."""


class _UnreachableError(Exception):
    """An attempt got no answer; another one may."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait, in seconds.

    ``call``: for one answer.  ``outage``: for a containerd that has gone, or is silent, to answer again; 0 tries once.
    """

    call: float = 60.0
    outage: float = 120.0


class Client:
    """The services of the containerd that listens at the socket ``address``, in one namespace.

    Any number of calls may run at a time.  They share a connection, which is made at the first call and again when it was lost.
    Must be made and used within one asyncio event loop.  A cancelled call resets its stream at once;
    whether a write took effect is then open.
    """

    def __init__(self, address: str, namespace: str, limits: Limits) -> None:
        self.address = address
        self.namespace = namespace
        self.limits = limits
        self._channel = ContainerdChannel(address)
        metadata = {"containerd-namespace": namespace}
        self.content = ContentStub(self._channel, metadata=metadata)
        self.snapshots = SnapshotsStub(self._channel, metadata=metadata)
        self.leases = LeasesStub(self._channel, metadata=metadata)
        self.namespaces = NamespacesStub(self._channel)
        self.version = VersionStub(self._channel)
        self.introspection = IntrospectionStub(self._channel)

    def in_namespace(self, namespace: str) -> Client:
        """Another client, with a connection of its own, for another namespace of the same containerd."""
        return Client(self.address, namespace, self.limits)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def call(self, method: UnaryMethod[Request, Reply], request: Request, about: str = "") -> Reply:
        """The answer to one call.  ``about`` names for messages what it is about.

        Raises a kind of :class:`ContainerdError`.
        """
        name = _name(method, about)
        outage = _Outage(self, name)
        while True:
            try:
                return await self._attempt(partial(method, request), name, outage.limit_of_call())
            except _UnreachableError as error:
                await outage.wait(error)
            except AlreadyExistsError as error:
                error.retried = outage.failures > 0
                raise

    async def stream(self, method: StreamMethod[Request, Reply], request: Request, about: str = "") -> AsyncGenerator[Reply]:
        """The answers to one call.  After an interruption they begin anew: the consumer must bear to see some twice.

        Raises as :meth:`call`.
        """
        name = _name(method, about)
        outage = _Outage(self, name)
        furthest = 0
        while True:
            count = 0
            try:
                async with aclosing(cast("AsyncGenerator[Reply]", method(request))) as replies:
                    following = partial(anext, replies, None)
                    while (reply := await self._attempt(following, name, outage.limit_of_call())) is not None:
                        count += 1
                        if count > furthest:  # or a list that always breaks at one place would be begun anew for ever
                            furthest = count
                            outage.over()
                        yield reply
                        # What has arrived already is received without waiting; others want their turn all the same.
                        await asyncio.sleep(0)
                return
            except _UnreachableError as error:
                await outage.wait(error)
            except GeneratorExit:
                # The stub's generator has another one inside, which it leaves to asyncio to close, in a task: let that end.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                raise

    def required(self, part: Reply | None, name: str) -> Reply:
        """A part that an answer must have."""
        if part is None:
            raise ContainerdError(self.address, name, "an answer without content")
        return part

    async def _attempt(self, function: Callable[[], Awaitable[Reply]], name: str, limit: float) -> Reply:
        """Await ``function()`` for ``limit`` seconds; what the libraries raise becomes an error of ours."""
        task = asyncio.current_task()
        assert task is not None
        cancellations = task.cancelling()
        try:
            try:
                with anyio.fail_after(limit):
                    reply = await function()
                return cast("Reply", await _decoded(reply)) if isinstance(reply, UndecodedReply) else reply
            except Exception:
                await _take_back_cancellations(task, cancellations)
                raise
        except TimeoutError:
            raise _UnreachableError(f"no answer within {limit:.1f} s") from None
        except GRPCError as error:
            raise self._refused(name, error) from error
        except StreamTerminatedError as error:
            raise _UnreachableError(f"the connection was lost ({error})") from error
        except (FileNotFoundError, ConnectionError) as error:
            raise _UnreachableError(f"cannot connect ({error.strerror or error}); is it running?") from error
        except PermissionError as error:
            raise ContainerdError(self.address, name, "no permission to use the socket; run as root") from error
        except UnicodeEncodeError as error:
            raise ContainerdError(self.address, name, "its API takes no names that are not UTF-8") from error
        except Exception as error:
            if self._channel.is_broken and not isinstance(error, OSError):
                # A call that meets the end of a connection at the wrong moment finds grpclib half taken down.
                raise _UnreachableError(f"the connection was lost ({type(error).__name__}: {error})") from error
            if isinstance(error, AssertionError):  # betterproto2's and grpclib's way to say it
                raise ContainerdError(self.address, name, "an answer without a whole message") from error
            raise ContainerdError(self.address, name, f"{error} ({type(error).__name__})") from error

    def _refused(self, name: str, error: GRPCError) -> Exception:
        text = error.message or error.status.name
        if error.status in _TRY_AGAIN or (error.status is Status.UNKNOWN and _CLOSED_DATABASE in text):
            return _UnreachableError(text)
        if error.status is Status.UNIMPLEMENTED:
            text = f"{text}; containerd >= 1.3 is needed"
        return _KINDS.get(error.status, ContainerdError)(self.address, name, text)


_TRY_AGAIN = (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.CANCELLED, Status.ABORTED)
_CLOSED_DATABASE = "database not open"
"""What a containerd that is being ended answers when it has closed its databases already (bbolt ``ErrDatabaseNotOpen``)."""
_KINDS: dict[Status, type[ContainerdError]] = {
    Status.NOT_FOUND: NotFoundError,
    Status.ALREADY_EXISTS: AlreadyExistsError,
    Status.INVALID_ARGUMENT: InvalidArgumentError,
    Status.OUT_OF_RANGE: OutOfRangeError,
    Status.RESOURCE_EXHAUSTED: TooLargeError,
    Status.UNIMPLEMENTED: UnimplementedError,
}


class _Outage:
    """How long a containerd has not answered one call, and when to give up."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._since = time.monotonic()
        self._pause = _FIRST_PAUSE
        self.failures = 0

    def over(self) -> None:
        """There was an answer."""
        self._since = time.monotonic()
        self._pause = _FIRST_PAUSE

    def limit_of_call(self) -> float:
        """Seconds that the next attempt may take: not much longer than the outage may last, but long enough for an answer."""
        limits = self._client.limits
        if not limits.outage:
            return limits.call
        left = self._since + limits.outage - time.monotonic()
        return min(limits.call, max(left, _SHORTEST_CALL))

    async def wait(self, error: _UnreachableError) -> None:
        """Wait before another attempt, or raise :class:`ContainerdUnavailableError` if there was none for too long."""
        self.failures += 1
        limit = self._client.limits.outage
        if time.monotonic() + self._pause > self._since + limit:
            text = f"{error}; gave up after {limit:g} s" if limit else str(error)
            raise ContainerdUnavailableError(self._client.address, self._name, text) from error
        await _sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


async def _decoded(reply: UndecodedReply) -> Any:
    # What is decoded for nobody does no harm.
    return await anyio.to_thread.run_sync(reply.decode, abandon_on_cancel=True)


async def _take_back_cancellations(task: asyncio.Task[object], before: int) -> None:
    """Undo what grpclib did to the task to wake it up.

    It calls ``task.cancel()`` and never ``uncancel()``.  With ``cancelling()`` raised, Python's own ``TaskGroup`` and
    ``timeout`` take a later error for a cancellation.  And if the task did not wait at that moment, the cancellation is
    still to come: ``uncancel()`` stops it only from Python 3.13 on.

    A cancellation of an anyio scope that comes at the same time is not lost, because anyio delivers it again.
    """
    if task.cancelling() == before:
        return
    while task.cancelling() > before:
        task.uncancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        if task.cancelling() > before:
            raise


def _name(method: Any, about: str) -> str:
    name = str(method.__name__)
    return f"{name} {about}" if about else name
