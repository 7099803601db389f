"""What lies between Pilot and its database, for a test to cut or to freeze."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

from pilot_grpc.database_url import connect_arguments

CHUNK = 1 << 16


class Proxy:
    """Leads connections to a database on this machine, for as long as a test wants it."""

    def __init__(self, host: str, port: int) -> None:
        """Lead to a host, or to a socket's directory."""
        self._host, self._port = host, port
        self._is_cut = False
        self._ends: set[asyncio.StreamWriter] = set()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.doomed: bytes | None = None

    def cut(self) -> None:
        """End every connection, and refuse new ones, until it is mended."""
        self._is_cut = True
        for end in self._ends:
            end.transport.abort()

    def freeze(self) -> None:
        """Let nothing through, either way, while connections stay open."""
        self.flowing.clear()

    def mend(self) -> None:
        """Lead on."""
        self._is_cut, self.doomed = False, None
        self.flowing.set()

    def cut_after_commit_of(self, text: bytes) -> None:
        """Cut once a transaction that names a text was committed, before anybody is told."""
        self.doomed = text

    async def connect(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        """Lead one connection there and back, until either side ends it."""
        if self._is_cut:
            to_client.transport.abort()
            return
        if self._host.startswith("/"):
            socket = f"{self._host}/.s.PGSQL.{self._port}"
            from_database, to_database = await asyncio.open_unix_connection(socket)
        else:
            from_database, to_database = await asyncio.open_connection(self._host, self._port)
        ends = {to_client, to_database}
        self._ends |= ends
        link = _Link(self)
        ways = [
            asyncio.create_task(link.forth(from_client, to_database)),
            asyncio.create_task(link.back(from_database, to_client)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in ends:
            end.transport.abort()
        self._ends -= ends


class _Link:
    """The two ways of one connection."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._said = bytearray()
        self._answer_is_lost = False

    async def forth(self, client: asyncio.StreamReader, database: asyncio.StreamWriter) -> None:
        while sent := await client.read(CHUNK):
            await self._proxy.flowing.wait()
            self._said.extend(sent)
            if b"COMMIT" in sent:
                doomed = self._proxy.doomed
                self._answer_is_lost = doomed is not None and doomed in self._said
                self._said.clear()
            database.write(sent)

    async def back(self, database: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while sent := await database.read(CHUNK):
            await self._proxy.flowing.wait()
            if self._answer_is_lost:
                self._proxy.cut()
            client.write(sent)


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Stand between a URL and whoever connects; give the URL that leads through."""
    arguments = connect_arguments(url)
    proxy = Proxy(arguments["host"], arguments["port"])
    listener = await asyncio.start_server(proxy.connect, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        user = quote(arguments["user"] or "", safe="")
        path = urlsplit(url).path
        try:
            yield proxy, f"postgresql://{user}@127.0.0.1:{port}{path}"
        finally:
            proxy.mend()
            proxy.cut()
