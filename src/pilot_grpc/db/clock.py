"""The one clock that all processes share: the database's."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from pilot_grpc.db.connection import Connection

Clock = Callable[[Connection], Awaitable[datetime]]

# Not now(): that is when the transaction began, and was seen 2 seconds stale after a
# wait for a lock.
READ_CLOCK: Final = "SELECT clock_timestamp()"


async def read_clock(conn: Connection) -> datetime:
    """Return the database's time; call it after the locks are held."""
    now: datetime = await conn.fetchval(READ_CLOCK)
    return now
