"""A connection to empty tables, whose changes nobody ever sees."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from pilot_grpc.database_url import connect_arguments, with_database
from pilot_grpc.db.connection import Connection
from tests.conftest import Server


@pytest.fixture(scope="module")
def unwritten_database(server: Server, template: str) -> Iterator[str]:
    """The URL of a migrated database that nothing is ever committed to."""
    with asyncio.Runner() as runner:
        creation = server.new_database(template)
        yield with_database(server.url, runner.run(creation.__aenter__()))
        runner.run(creation.__aexit__(None, None, None))


@pytest.fixture
async def conn(server: Server, unwritten_database: str) -> AsyncIterator[Connection]:
    """A transaction on the migrated schema, rolled back at the end."""
    arguments = connect_arguments(unwritten_database, pooler=server.pooler)
    connection = await asyncpg.connect(**arguments)
    await connection.execute("BEGIN")
    yield connection
    await connection.execute("ROLLBACK")
    await connection.close()
