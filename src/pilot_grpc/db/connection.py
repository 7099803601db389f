"""The pool and the transaction: the only way to the database.

Every statement runs inside an explicit transaction, and what a session would have to
remember is set by `SET LOCAL` in its first round trip. So the same code works straight
on PostgreSQL and through a transaction-mode pooler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from pilot_grpc import database_url, errors

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

Connection: TypeAlias = "PoolConnectionProxy[Any] | asyncpg.Connection[Any]"
"""The type that every statement function takes first."""

Record: TypeAlias = "asyncpg.Record"
"""A row."""

ACQUIRE_SECONDS_MAX: Final = 5.0
CONNECT_SECONDS_MAX: Final = 5.0
STATEMENT_SECONDS_MAX: Final = 10.0
STATEMENTS_PER_CONNECTION_MAX: Final = 1_000_000
RETRY_SECONDS: Final = 1.0

# A plan that was made while a table was small can stay for ever (28.6 ms instead of
# 1.7 ms were measured), so plans are made for the values at hand. A process that is
# frozen in the middle of a batch loses its locks after 15 seconds.
_SET_LOCAL: Final = """
SET LOCAL plan_cache_mode = force_custom_plan;
SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '8s';
SET LOCAL idle_in_transaction_session_timeout = '15s';
"""
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;" + _SET_LOCAL
# For whoever has others to serve and will try again.
BEGIN_BRIEF: Final = BEGIN + "SET LOCAL lock_timeout = '100ms';"
BEGIN_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;" + _SET_LOCAL

# A foreign key is checked, and cascades, by a query for each row. Making its plan anew
# each time, as is right for our own statements, took three quarters of the time of a
# batch, and four fifths of the time of deleting a project. A plan that is kept must not
# have been made for tables that were small.
PLAN_FOREIGN_KEYS_ONCE: Final = """
SET LOCAL plan_cache_mode = auto;
SET LOCAL enable_seqscan = off;
"""

# SQLSTATE classes and codes after which nobody knows whether a commit arrived: the
# connection, the operator, a standby that does not take writes, a time-out in between.
_AWAY: Final = ("08", "53", "57P", "25006", "25P03")
# Those after which nothing happened: statements that took too long, and transactions
# that got into each other's way.
_LOCK_NOT_AVAILABLE: Final = "55P03"
_NOTHING_HAPPENED: Final = ("57014", "40001", "40P01", _LOCK_NOT_AVAILABLE)

# What asyncpg raises for a connection that broke: before, during, or between two calls.
_LOST: Final = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Locked(Exception):
    """Somebody else has the lock; nothing happened. Only BEGIN_BRIEF leads here."""


class _Connection(asyncpg.Connection):  # type: ignore[misc, type-arg, unused-ignore]
    """A connection that needs no reset, because nothing outlives its transactions."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        return ""


class Database:
    """A pool of connections that speaks in transactions."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        """Wrap a pool made by `open_database`."""
        self.pool = pool

    @asynccontextmanager
    async def transaction(self, begin: str = BEGIN) -> AsyncIterator[Connection]:
        """Run the block in a transaction; commit at its end, roll back on an exception.

        Raises DatabaseUnavailable when the database is away and the outcome is unknown;
        Overloaded when nothing happened, because no connection was free, a lock was not
        to be had, or a statement took too long; Locked instead, when `begin` is
        BEGIN_BRIEF and the lock was not to be had.
        """
        connection = await self._begin(begin)
        try:
            yield connection
            # A transaction that failed unnoticed answers COMMIT with a rollback.
            if await connection.execute("COMMIT") != "COMMIT":
                raise RuntimeError("the transaction was rolled back instead of committed")
        except _LOST as error:
            await self.pool.expire_connections()
            raise errors.DatabaseUnavailable(retry_after=RETRY_SECONDS) from error
        except asyncpg.PostgresError as error:
            state = error.sqlstate or ""
            if state == _LOCK_NOT_AVAILABLE and begin is BEGIN_BRIEF:
                raise Locked from error
            if state.startswith(_NOTHING_HAPPENED):
                raise errors.Overloaded(retry_after=RETRY_SECONDS) from error
            if state.startswith(_AWAY):
                await self.pool.expire_connections()
                raise errors.DatabaseUnavailable(retry_after=RETRY_SECONDS) from error
            raise
        finally:
            await self._give_back(connection)

    async def _begin(self, begin: str) -> PoolConnectionProxy[Any]:
        """Get a connection with a transaction; whatever fails here is the database's fault."""
        connection = None
        try:
            connection = await self.pool.acquire(timeout=ACQUIRE_SECONDS_MAX)
            await connection.execute(begin)
        except (*_LOST, asyncpg.PostgresError) as error:
            if connection is not None:
                await self._give_back(connection, may_have_begun=True)
            elif isinstance(error, TimeoutError) and self._is_exhausted():
                raise errors.Overloaded(retry_after=RETRY_SECONDS) from error
            await self.pool.expire_connections()
            raise errors.DatabaseUnavailable(retry_after=RETRY_SECONDS) from error
        except BaseException:
            if connection is not None:
                await self._give_back(connection, may_have_begun=True)
            raise
        return connection

    def _is_exhausted(self) -> bool:
        return not self.pool.get_idle_size() and self.pool.get_size() >= self.pool.get_max_size()

    def snapshot(self) -> AbstractAsyncContextManager[Connection]:
        """Like `transaction`, read-only, and every statement sees the same moment."""
        return self.transaction(BEGIN_SNAPSHOT)

    async def _give_back(
        self, connection: PoolConnectionProxy[Any], *, may_have_begun: bool = False
    ) -> None:
        """Return a connection; one that is inside a transaction still rolls it back."""
        try:
            if may_have_begun or connection.is_in_transaction():
                await connection.execute("ROLLBACK", timeout=CONNECT_SECONDS_MAX)
        except (*_LOST, asyncpg.PostgresError):
            # A connection that broke has left the pool by itself, and takes no more calls.
            with suppress(asyncpg.InterfaceError):
                connection.terminate()
        finally:
            # One that cannot be given back is closed; what happened before is the answer.
            with suppress(*_LOST):
                await self.pool.release(connection)

    async def close(self) -> None:
        """Close all connections once they are given back; those that do not answer, anyway."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await self.pool.close()
        except _LOST:
            self.pool.terminate()


async def open_database(
    url: str, *, pooler: bool = False, size: int = 10, min_size: int = 0
) -> Database:
    """Open a pool on a URL. With `min_size` 0 the database may still be away."""
    pool = await asyncpg.create_pool(
        **database_url.connect_arguments(url, pooler=pooler),
        connection_class=_Connection,
        min_size=min_size,
        max_size=size,
        max_queries=STATEMENTS_PER_CONNECTION_MAX,
        timeout=CONNECT_SECONDS_MAX,
        command_timeout=STATEMENT_SECONDS_MAX,
    )
    return Database(pool)


async def plan_foreign_keys_once(conn: Connection) -> None:
    """Prepare the transaction for many inserts or a cascade; call it just before."""
    await conn.execute(PLAN_FOREIGN_KEYS_ONCE)


def violates(error: asyncpg.PostgresError, constraint: str) -> bool:
    """Say whether a statement failed on this constraint, or unique index."""
    return getattr(error, "constraint_name", None) == constraint
