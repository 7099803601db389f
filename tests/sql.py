"""A look into a database that a test has only the URL of."""

from __future__ import annotations

import asyncpg

from pilot_grpc.database_url import connect_arguments


async def fetchval(url: str, statement: str) -> object:
    """Connect, run one statement, and answer the first value of its first row."""
    conn = await asyncpg.connect(**connect_arguments(url))
    try:
        return await conn.fetchval(statement)
    finally:
        await conn.close()
