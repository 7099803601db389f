"""A fresh, migrated PostgreSQL database for each test that asks.

The server is embedded and starts once a run; the databases are copies of a template that was
migrated once. PILOT_TEST_DATABASE_URL points the whole suite at another server instead. When that
one is a transaction-mode pooler, PILOT_TEST_DATABASE_DIRECT_URL leads past it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from pilot_grpc import embedded, migrations
from pilot_grpc.database_url import connect_arguments, with_database
from pilot_grpc.db.connection import Database, open_database

# A run of three processes was seen to take 0.4 GiB there; their logs of writes may grow it.
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only the place; the names in it are random
ROOM_BYTES: Final = 4 << 30

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Server:
    """A PostgreSQL that tests may create databases on."""

    url: str
    direct_url: str

    @property
    def pooler(self) -> bool:
        return self.url != self.direct_url

    @asynccontextmanager
    async def new_database(self, template: str = "template0") -> AsyncIterator[str]:
        """Copy a database, give the name of the copy, and drop it afterwards."""
        name = f"pilot_test_{os.getpid()}_{next(_numbers)}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        try:
            yield name
        finally:
            await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        conn = await asyncpg.connect(**connect_arguments(self.direct_url))
        try:
            await conn.execute(statement)
        finally:
            await conn.close()


def server_home() -> tempfile.TemporaryDirectory[str]:
    """A directory for a server's data, in memory if there is room, and not one that pytest makes.

    A database for each test is hundreds of files; on a disk making them takes longer than most
    tests. Of its own directories pytest takes everybody else's rights away whenever another run
    starts, and under root the servers of this one are somebody else.
    """
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    return tempfile.TemporaryDirectory(prefix="pilot-test-", dir=MEMORY if roomy else None)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that an embedded server may live in."""
    with server_home() as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server of this run."""
    url = os.environ.get("PILOT_TEST_DATABASE_URL")
    if url:
        yield Server(url, os.environ.get("PILOT_TEST_DATABASE_DIRECT_URL", url))
        return
    with (
        server_home() as directory,
        embedded.running(Path(directory), options=embedded.FORGETFUL_OPTIONS) as url,
    ):
        yield Server(url, url)


@pytest.fixture(scope="session")
def template(server: Server) -> Iterator[str]:
    """The name of a database that was migrated, and is only ever copied."""
    with asyncio.Runner() as runner:
        creation = server.new_database()
        name = runner.run(creation.__aenter__())
        runner.run(_migrate(with_database(server.direct_url, name)))
        yield name
        runner.run(creation.__aexit__(None, None, None))


async def _migrate(url: str) -> None:
    await migrations.migrate(url)


@pytest.fixture
async def database(server: Server, template: str) -> AsyncIterator[str]:
    """The URL of a migrated database that only this test sees."""
    async with server.new_database(template) as name:
        yield with_database(server.url, name)


@pytest.fixture(scope="session")
def shared_database(server: Server, template: str) -> Iterator[str]:
    """The URL of one database for all tests that look at nothing but what they made."""
    with asyncio.Runner() as runner:
        creation = server.new_database(template)
        yield with_database(server.url, runner.run(creation.__aenter__()))
        runner.run(creation.__aexit__(None, None, None))


@pytest.fixture
async def empty_database(server: Server) -> AsyncIterator[str]:
    """The URL, past a pooler, of a database with nothing in it."""
    async with server.new_database() as name:
        yield with_database(server.direct_url, name)


@pytest.fixture
async def db(server: Server, database: str) -> AsyncIterator[Database]:
    """The test's database, opened as the server opens it."""
    opened = await open_database(database, pooler=server.pooler)
    yield opened
    await opened.close()


@pytest.fixture
def pool(db: Database) -> asyncpg.Pool[Any]:
    """The pool of the test's database, for looking into it."""
    return db.pool
