"""A connection whose changes nobody ever sees."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from pilot_grpc.database_url import connect_arguments
from pilot_grpc.db.connection import Connection
from tests.conftest import Server


@pytest.fixture
async def conn(server: Server, shared_database: str) -> AsyncIterator[Connection]:
    """A transaction on the migrated schema, rolled back at the end."""
    connection = await asyncpg.connect(**connect_arguments(shared_database, pooler=server.pooler))
    await connection.execute("BEGIN")
    yield connection
    await connection.execute("ROLLBACK")
    await connection.close()
