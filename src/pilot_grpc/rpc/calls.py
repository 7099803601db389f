"""What happens around every RPC.

Admission, credential, permission, validation, deadline, and the catch-all that never
leaks and never leaves a caller waiting.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

import grpc
import protovalidate
from google.protobuf.message import DecodeError

from pilot_grpc import errors
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.rpc import auth, paging, wire
from pilot_grpc.rpc.errors import abort
from pilot_grpc.services.credentials import Credentials

log = logging.getLogger(__name__)

IN_FLIGHT_MAX: Final = 4_096
OUR_METHODS: Final = "/pilot."
RETRY_SECONDS: Final = 0.5

# Credentials of open streams are looked up this often, all by one query, so that one that
# is revoked ends its streams within a second; and so do streams that cannot be looked up.
CHECK_SECONDS: Final = 0.3
UNCHECKED_SECONDS_MAX: Final = 0.9

# A subscriber that takes nothing for so long is gone, or stuck; it can resume.
STALLED_SECONDS: Final = 60.0
# Streams that end together come back spread over this time.
RESUME_SECONDS_MAX: Final = 1.5
AGE_SPREAD: Final = 0.2
# An ending that a stuck client does not take is not waited for.
ENDING_SECONDS_MAX: Final = 5.0

Behavior = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]
Streaming = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], AsyncIterator[bytes]]


class _Gone(Exception):
    """The client has left."""


class _Stream:
    """A stream that is open, and why it is to end."""

    def __init__(self, credential: str, task: "asyncio.Task[Any]") -> None:
        self.credential = credential
        self.error: errors.PilotError | None = None
        self._task = task
        self._writing_since: float | None = None

    async def write(
        self, context: "grpc.aio.ServicerContext[Any, Any]", response: bytes, now: float
    ) -> None:
        """Send a response; this waits until the client takes it. Raises _Gone."""
        self._writing_since = now
        try:
            await context.write(response)
        except grpc.aio.BaseError as error:
            raise _Gone from error
        self._writing_since = None

    def is_stalled(self, now: float) -> bool:
        """Say whether the client has taken nothing for too long."""
        return self._writing_since is not None and now - self._writing_since > STALLED_SECONDS

    def end(self, error: errors.PilotError) -> None:
        """End the stream with an error, whatever it waits for; the first error counts."""
        if self.error is None:
            self.error = error
            self._task.cancel()


def _some_time() -> float:
    return random.uniform(0, RESUME_SECONDS_MAX)  # noqa: S311 - spreads load, guards nothing


class Calls(grpc.aio.ServerInterceptor):
    """The one interceptor, around every RPC of pilot.v1; the handlers are made once."""

    def __init__(
        self, credentials: Credentials, deadline_seconds: float, stream_seconds: float
    ) -> None:
        """Take who knows the callers, the longest an RPC may wait and a stream may last."""
        self._credentials = credentials
        self._deadline_seconds = deadline_seconds
        self._stream_seconds = stream_seconds
        self._streams: set[_Stream] = set()
        self._handlers: dict[str, Any] = {}
        self._in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handlers of our own services; health and reflection pass through."""
        method = handler_call_details.method
        access = auth.ACCESS.get(method)
        if access is None:
            # One of ours that the table forgot is not served, rather than served to all.
            ours = method.startswith(OUR_METHODS)
            return None if ours else await continuation(handler_call_details)
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            # gRPC would answer bytes that are no message by itself, before anybody is asked who
            # calls, so they are read here.
            parse = handler.request_deserializer
            if handler.unary_stream is not None:
                self._handlers[method] = grpc.unary_stream_rpc_method_handler(
                    self._around_stream(handler.unary_stream, parse, access, method)
                )
            else:
                self._handlers[method] = grpc.unary_unary_rpc_method_handler(
                    self._around(handler.unary_unary, parse, access, method),
                    response_serializer=handler.response_serializer,
                )
        return self._handlers[method]

    def _around(
        self,
        behavior: Behavior,
        parse: Callable[[bytes], Any],
        access: auth.Access,
        method: str,
    ) -> Behavior:
        async def call(sent: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            self._in_flight += 1
            self._idle.clear()
            try:
                self._admit()
                async with asyncio.timeout(self._deadline_seconds):
                    who = await self._authorize(access, context)
                    return await behavior(_read(parse, sent, who), context)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # Nobody cancelled this call: something that it waited for went away.
                await abort(context, errors.ServerDraining(retry_after=RETRY_SECONDS))
            except Exception as error:
                if context.done() and not isinstance(error, errors.PilotError | TimeoutError):
                    raise
                await abort(context, _told(error, method))
            finally:
                self._in_flight -= 1
                self._tell_idle()

        return call

    def _around_stream(
        self,
        behavior: Streaming,
        parse: Callable[[bytes], Any],
        access: auth.Access,
        method: str,
    ) -> Behavior:
        async def call(sent: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
            task = asyncio.current_task()
            if task is None:
                raise TypeError("a call that is no task")
            stream = _Stream(auth.credential(context.invocation_metadata()), task)
            self._streams.add(stream)
            self._idle.clear()
            try:
                try:
                    await self._stream(behavior, parse, access, context, sent, stream)
                except asyncio.CancelledError:
                    if context.done() or (stream.error is None and task.cancelling()):
                        raise
                    if stream.error is None:
                        # Nobody cancelled it: something that it waited for went away.
                        raise errors.ServerDraining(retry_after=RETRY_SECONDS) from None
                    task.uncancel()
                    raise stream.error from None
            except _Gone:
                return
            except Exception as error:  # noqa: BLE001 - `_told` logs it
                # From here on nobody else ends it.
                stream.error = _told(error, method)
                await _end(context, stream.error)
            finally:
                self._streams.discard(stream)
                self._tell_idle()

        return call

    async def _stream(
        self,
        behavior: Streaming,
        parse: Callable[[bytes], Any],
        access: auth.Access,
        context: "grpc.aio.ServicerContext[Any, Any]",
        sent: bytes,
        stream: _Stream,
    ) -> None:
        """Send what a stream has to say until it ends."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                self._admit()
                who = await self._authorize(access, context)
                responses = behavior(_read(parse, sent, who), context)
                first = await anext(responses)
        except TimeoutError:
            raise errors.DatabaseUnavailable(retry_after=RETRY_SECONDS) from None
        age = self._stream_seconds * random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)  # noqa: S311
        ageing = loop.call_later(
            age, lambda: stream.end(errors.StreamTooOld(retry_after=RETRY_SECONDS))
        )
        try:
            async with aclosing(responses):  # type: ignore[type-var]
                await stream.write(context, first, loop.time())
                async for response in responses:
                    await stream.write(context, response, loop.time())
        finally:
            ageing.cancel()

    def _tell_idle(self) -> None:
        if not self._in_flight and not self._streams:
            self._idle.set()

    async def watch_streams(self) -> None:
        """End the streams that take nothing, and those whose credentials no longer work.

        When nobody can tell whether they do, all streams end, resumably. This never ends.
        """
        loop = asyncio.get_running_loop()
        checked_at = loop.time()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            asked_at, streams = loop.time(), tuple(self._streams)
            for stream in streams:
                if stream.is_stalled(asked_at):
                    stream.end(errors.SubscriberStalled(retry_after=RETRY_SECONDS))
            if not streams:
                checked_at = asked_at
                continue
            valid = await self._still_valid({stream.credential for stream in streams})
            if valid is None:
                if loop.time() - checked_at > UNCHECKED_SECONDS_MAX:
                    for stream in streams:
                        stream.end(errors.DatabaseUnavailable(retry_after=RETRY_SECONDS))
                continue
            checked_at = asked_at
            for stream in streams:
                if stream.credential not in valid:
                    stream.end(errors.CredentialInvalid())

    async def _still_valid(self, credentials: set[str]) -> set[str] | None:
        """Say which credentials still work; None when nobody can tell.

        Whatever goes wrong, who asks must go on: nobody else ends streams.
        """
        asking = asyncio.create_task(self._credentials.still_valid(credentials))
        # A connection that is silent takes its time to be given up, too.
        await asyncio.wait([asking], timeout=UNCHECKED_SECONDS_MAX)
        if not asking.done():
            asking.cancel()
            return None
        try:
            return asking.result()
        except (errors.PilotError, asyncio.CancelledError):
            return None
        except Exception:
            log.exception("the credentials of the streams could not be checked")
            return None

    def _admit(self) -> None:
        if self._draining:
            raise errors.ServerDraining(retry_after=RETRY_SECONDS)
        if self._in_flight > IN_FLIGHT_MAX:
            raise errors.Overloaded(retry_after=RETRY_SECONDS)

    async def _authorize(
        self, access: auth.Access, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> Caller | None:
        if access.public:
            return None
        credential = auth.bearer(context.invocation_metadata())
        who = await self._credentials.authenticate(credential)
        auth.must_be_allowed(access, who)
        auth.caller.set(who)
        return who

    async def drain(self, seconds: float) -> None:
        """Take no new call, end the streams, and wait for the calls in flight."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.end(errors.ServerDraining(retry_after=RETRY_SECONDS))
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d calls are still in flight after the grace", self._in_flight)


async def _end(context: "grpc.aio.ServicerContext[Any, Any]", error: errors.PilotError) -> None:
    """End a stream with an error, without waiting for a client that takes nothing.

    Those that end together, with one error even, are not to come back together.
    """
    delay = _some_time() if error.retry_after is not None else 0.0
    with suppress(TimeoutError):
        async with asyncio.timeout(ENDING_SECONDS_MAX):
            await abort(context, error, delay)


def _told(error: Exception, method: str) -> errors.PilotError:
    """Return what the caller is told; what it must not be told, the log is."""
    if isinstance(error, errors.PilotError):
        return error
    if isinstance(error, TimeoutError):
        return errors.DeadlineExceeded()
    error_id = secrets.token_hex(8)
    log.error("%s failed (error_id %s)", method, error_id, exc_info=error)
    return errors.Internal(error_id=error_id)


def _read(parse: Callable[[bytes], Any], sent: bytes, who: Caller | None) -> Any:
    """Read a message and check it. Raises InvalidRequest with all that is wrong."""
    try:
        message = parse(sent)
    except DecodeError:
        raise errors.InvalidRequest([("", "the bytes are not this RPC's request")]) from None
    # Checking the 2,000,000 empty spends that fit a message would take a minute.
    wire.must_be_countable(message)
    violations = [_violation(each.proto) for each in protovalidate.collect_violations(message)]
    named = {field for field, _ in violations}
    further = [*wire.violations(message, who), *paging.violations(message)]
    violations += [each for each in further if each[0] not in named]
    if violations:
        raise errors.InvalidRequest(violations)
    return message


def _violation(violation: Any) -> tuple[str, str]:
    parts = []
    for element in violation.field.elements:
        index = "" if element.subscript is None else f"[{element.subscript.value}]"
        parts.append(f"{element.field_name}{index}")
    return ".".join(parts), violation.message
