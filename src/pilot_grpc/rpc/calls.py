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

from pilot_grpc import errors
from pilot_grpc.rpc import auth
from pilot_grpc.rpc.errors import abort
from pilot_grpc.services.credentials import Credentials

log = logging.getLogger(__name__)

IN_FLIGHT_MAX: Final = 4_096
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
            return await continuation(handler_call_details)
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            self._handlers[method] = grpc.unary_unary_rpc_method_handler(
                self._around(handler.unary_unary, access, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return self._handlers[method]

    def _around(self, behavior: Behavior, access: auth.Access, method: str) -> Behavior:
        async def call(message: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            self._in_flight += 1
            self._idle.clear()
            try:
                self._admit()
                async with asyncio.timeout(self._deadline_seconds):
                    await self._authorize(access, context)
                    _validate(message)
                    return await behavior(message, context)
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
    ) -> None:
        if access.public:
            return
        credential = auth.bearer(context.invocation_metadata())
        who = await self._credentials.authenticate(credential)
        auth.must_be_allowed(access, who)
        auth.caller.set(who)

    async def drain(self, seconds: float) -> None:
        """Take no new call, and wait for those in flight."""
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d calls are still in flight after the grace", self._in_flight)


def _validate(message: Any) -> None:
    """Check a message against the rules of its proto. Raises InvalidRequest with all of them."""
    violations = protovalidate.collect_violations(message)
    if violations:
        raise errors.InvalidRequest([_violation(violation.proto) for violation in violations])


def _violation(violation: Any) -> tuple[str, str]:
    parts = []
    for element in violation.field.elements:
        index = "" if element.subscript is None else f"[{element.subscript.value}]"
        parts.append(f"{element.field_name}{index}")
    return ".".join(parts), violation.message
