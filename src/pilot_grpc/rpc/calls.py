"""What happens around every RPC.

Admission, credential, permission, validation, deadline, and the catch-all that never
leaks and never leaves a caller waiting.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
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

Behavior = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]


class Calls(grpc.aio.ServerInterceptor):
    """The one interceptor, around every RPC of pilot.v1; the handlers are made once."""

    def __init__(self, credentials: Credentials, deadline_seconds: float) -> None:
        """Take who knows the callers, and the longest that an RPC may wait."""
        self._credentials = credentials
        self._deadline_seconds = deadline_seconds
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
            self._handlers[method] = grpc.unary_unary_rpc_method_handler(
                self._around(handler.unary_unary, handler.request_deserializer, access, method),
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
            except errors.PilotError as error:
                await abort(context, error)
            except TimeoutError:
                await abort(context, errors.DeadlineExceeded())
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # Nobody cancelled this call: something that it waited for went away.
                await abort(context, errors.ServerDraining(retry_after=RETRY_SECONDS))
            except Exception:
                if context.done():
                    raise
                error_id = secrets.token_hex(8)
                log.exception("%s failed (error_id %s)", method, error_id)
                await abort(context, errors.Internal(error_id=error_id))
            finally:
                self._in_flight -= 1
                if not self._in_flight:
                    self._idle.set()

        return call

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
        """Take no new call, and wait for those in flight."""
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d calls are still in flight after the grace", self._in_flight)


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
