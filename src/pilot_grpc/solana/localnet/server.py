"""A small HTTP/1.1 server for POST, on loopback only; h11 speaks the protocol."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import h11

from pilot_grpc.solana.localnet.errors import LocalnetError

# As Agave's: a request with more is refused.
BODY_BYTES_MAX: Final = 50 * 1024
HEAD_BYTES_MAX: Final = 16 * 1024
READ_BYTES: Final = 64 * 1024
CONNECTIONS_MAX: Final = 512
# How long a connection may be idle, and how long a request may take to arrive.
IDLE_SECONDS_MAX: Final = 300.0
REQUEST_SECONDS_MAX: Final = 10.0
WRITE_SECONDS_MAX: Final = 30.0

log = logging.getLogger(__name__)


class End(Enum):
    """What becomes of the connection after a reply."""

    KEEP = "keep"
    CLOSE = "close"
    CLOSE_UNANSWERED = "close unanswered"
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request is answered with."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    end: End = End.KEEP


Handle = Callable[[bytes], Reply]


class _Refused(Exception):
    """A request that is answered without asking anybody."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(f"{text}\n".encode(), status, "text/plain", end=End.CLOSE)


@asynccontextmanager
async def serving(handle: Handle, host: str, port: int) -> AsyncIterator[str]:
    """Answer POST requests with JSON while the context lasts, and give the URL.

    Raises LocalnetError when the address is not loopback, or cannot be listened on.
    """
    if not ipaddress.ip_address(host).is_loopback:
        raise LocalnetError(f"{host} is not loopback: a localnet gives money to anybody who asks")
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - the loop runs this as a task.
        if len(connections) < CONNECTIONS_MAX:
            connections.add(task)
            with suppress(OSError, TimeoutError, asyncio.CancelledError):
                await _Connection(handle, reader, writer).serve()
            connections.discard(task)
        writer.transport.abort() if writer.is_closing() else writer.close()

    try:
        server = await asyncio.start_server(connected, host, port)
    except OSError as error:
        raise LocalnetError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
    taken = server.sockets[0].getsockname()[1]
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{taken}"
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()


class _Connection:
    """One connection: request after request, until either side ends it."""

    def __init__(
        self, handle: Handle, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._handle = handle
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def serve(self) -> None:
        while True:
            try:
                body = await self._receive()
                if body is None:
                    return
                reply = self._handle(body)
            except _Refused as refused:
                reply = refused.reply
            except h11.RemoteProtocolError as error:
                if self._http.our_state is not h11.IDLE:
                    return
                reply = _Refused(error.error_status_hint, "bad request").reply
            except OSError:
                return  # The client is gone: killed, perhaps.
            except Exception:
                log.exception("a request to the localnet failed")
                reply = _Refused(500, "internal error; see the log").reply
            if not await self._answer(reply):
                return

    async def _receive(self) -> bytes | None:
        """The body of the next request; None when the client is gone."""
        async with asyncio.timeout(IDLE_SECONDS_MAX):
            request = await self._event()
        if not isinstance(request, h11.Request):
            return None
        body = bytearray()
        if self._http.they_are_waiting_for_100_continue:
            raise _Refused(417, "send the body at once")
        async with asyncio.timeout(REQUEST_SECONDS_MAX):
            while isinstance(event := await self._event(), h11.Data):
                body += event.data
                if len(body) > BODY_BYTES_MAX:
                    raise _Refused(413, f"more than {BODY_BYTES_MAX} bytes")
        if not isinstance(event, h11.EndOfMessage):
            return None
        _must_be_json(request)
        return bytes(body)

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(READ_BYTES))
        return event

    async def _answer(self, reply: Reply) -> bool:
        """Send a reply, and say whether the connection goes on."""
        if reply.end is End.HANG:
            while await self._reader.read(READ_BYTES):
                pass
            return False
        if reply.end is End.CLOSE_UNANSWERED:
            return False
        headers = {
            "Content-Type": reply.content_type,
            "Content-Length": str(len(reply.body)),
            **reply.headers,
        }
        if reply.end is End.CLOSE:
            headers["Connection"] = "close"
        response = h11.Response(status_code=reply.status, headers=list(headers.items()))
        for event in (response, h11.Data(reply.body), h11.EndOfMessage()):
            self._writer.write(self._http.send(event) or b"")
        async with asyncio.timeout(WRITE_SECONDS_MAX):
            await self._writer.drain()
        if self._http.our_state is h11.MUST_CLOSE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True


def _must_be_json(request: h11.Request) -> None:
    """Refuse what a web page could send from a browser without asking first."""
    if request.method != b"POST":
        raise _Refused(405, "POST only")
    kinds = [value for name, value in request.headers if name == b"content-type"]
    if [kind.split(b";")[0].strip().lower() for kind in kinds] != [b"application/json"]:
        raise _Refused(415, "the Content-Type must be application/json")
