"""A small HTTP server on 127.0.0.1 that answers as a test tells it, and records what it got.

async with http_server(respond(503, {"Retry-After": "7"}), respond(200)) as server:
    ...post to server.url("/hook")...
    assert server.requests[0].body == b"{}"

Each request takes the next behaviour, and the last one goes on for ever. A behaviour is any
coroutine function of (request, writer); when it raises ConnectionError the connection is over.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

_REASONS = {200: "OK", 204: "No Content", 307: "Temporary Redirect", 308: "Permanent Redirect"}


@dataclass(frozen=True)
class Request:
    """One request as it arrived; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int  # The first connection is 1.


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class HttpServer:
    """What runs: where it is, what it got, and what it will do next."""

    port: int
    scheme: str
    behaviours: list[Behaviour]
    requests: list[Request] = field(default_factory=list)
    requested: asyncio.Event = field(default_factory=asyncio.Event)  # There was one at all.
    connections: int = 0
    names: list[str | None] = field(default_factory=list)  # What TLS clients asked for (SNI).
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def then(self, *behaviours: Behaviour) -> None:
        """From now on, behave so."""
        self.behaviours = list(behaviours)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until either side is done with it."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            with suppress(OSError, EOFError, asyncio.CancelledError):
                while not writer.is_closing():
                    request = await _read(reader, number)
                    self.requests.append(request)
                    self.requested.set()
                    behaviours = self.behaviours
                    behave = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
                    await behave(request, writer)
        finally:
            writer.transport.abort()
            self.tasks.discard(task)


@asynccontextmanager
async def http_server(
    *behaviours: Behaviour, tls: ssl.SSLContext | None = None
) -> AsyncIterator[HttpServer]:
    """Run a server that behaves so, or answers 200 when it is told nothing."""
    running = HttpServer(0, "https" if tls else "http", list(behaviours) or [respond(200)])
    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: running.names.append(name)
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0, ssl=tls)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        tasks = list(running.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        await server.wait_closed()


def respond(
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    after: float = 0,
) -> Behaviour:
    """Answer properly, after so many seconds, and keep the connection."""

    async def behave(_: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(after)
        lines = {"Content-Length": str(len(body)), **(headers or {})}
        if status == 204:
            del lines["Content-Length"]
        head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Other')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(head.encode("latin-1") + b"\r\n" + body)
        await writer.drain()

    return behave


def redirect(location: str, status: int = 307) -> Behaviour:
    """Send the client elsewhere."""
    return respond(status, {"Location": location})


def raw(data: bytes, *, close: bool = True) -> Behaviour:
    """Answer with these very bytes, and close, or else hang."""

    async def behave(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if not close:
            await asyncio.Event().wait()
        writer.close()

    return behave


def hang() -> Behaviour:
    """Take the request and never answer."""
    return raw(b"", close=False)


def hang_up(first: bytes = b"") -> Behaviour:
    """Answer so far, and close the connection."""
    return raw(first)


def reset() -> Behaviour:
    """Reset the connection instead of answering."""

    async def behave(_: Request, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return behave


def drip(head: bytes, each: bytes = b"x", seconds: float = 0.02) -> Behaviour:
    """Send the head at once, and then a little every now and then, for ever."""

    async def behave(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            await writer.drain()
            await asyncio.sleep(seconds)
            writer.write(each)

    return behave


def flood(head: bytes, each: bytes = b"x" * 65_536) -> Behaviour:
    """Send the head, and then as much as the client takes, for ever."""

    async def behave(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(each)
            await writer.drain()

    return behave


async def _read(reader: asyncio.StreamReader, connection: int) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body, connection)
