"""Transactions: what holds inside one, and what each way of failing means."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from pilot_grpc import errors
from pilot_grpc.db import connection
from pilot_grpc.db.connection import BEGIN, BEGIN_BRIEF, Database, Locked, open_database
from tests.conftest import Server

MARK = "INSERT INTO sign_in_attempts VALUES ($1::text, 1, now())"
MARKED = "SELECT count(*) FROM sign_in_attempts WHERE email_hash = $1::text"


@pytest.fixture
async def db(server: Server, shared_database: str) -> AsyncIterator[Database]:
    opened = await open_database(shared_database, pooler=server.pooler, size=3)
    yield opened
    await opened.close()


async def write(db: Database, mark: str, *statements: str, begin: str = BEGIN) -> None:
    """Write something, and run statements behind it."""
    async with db.transaction(begin) as conn:
        await conn.execute(MARK, mark)
        for statement in statements:
            await conn.execute(statement)


async def marked(db: Database, mark: str) -> bool:
    async with db.transaction() as conn:
        return bool(await conn.fetchval(MARKED, mark))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("idle_in_transaction_session_timeout", "15s"),
        ("lock_timeout", "4s"),
        ("statement_timeout", "8s"),
        ("plan_cache_mode", "force_custom_plan"),
        ("transaction_isolation", "read committed"),
    ],
)
async def test_every_wait_inside_a_transaction_has_a_limit(
    db: Database, setting: str, value: str
) -> None:
    """A process that is frozen there loses its locks after 15 seconds."""
    async with db.transaction() as conn:
        assert await conn.fetchval("SELECT current_setting($1)", setting) == value


async def test_a_snapshot_is_read_only_and_of_one_moment(db: Database) -> None:
    async with db.snapshot() as conn:
        assert not await conn.fetchval(MARKED, "later")
        async with db.transaction() as beside:
            await beside.execute(MARK, "later")

        assert not await conn.fetchval(MARKED, "later")

    with pytest.raises(errors.DatabaseUnavailable):
        await write(db, "never", begin=connection.BEGIN_SNAPSHOT)


async def test_what_a_block_wrote_is_true_with_its_end(db: Database) -> None:
    async with db.transaction() as conn:
        await conn.execute(MARK, "written")
        assert not await marked(db, "written")

    assert await marked(db, "written")


async def test_an_exception_undoes_the_block_and_gives_the_connection_back(db: Database) -> None:
    """More often than there are connections."""
    for _ in range(5):
        with pytest.raises(asyncpg.DivisionByZeroError):
            await write(db, "undone", "SELECT 1 / 0")

    assert not await marked(db, "undone")


async def test_a_failure_that_nobody_noticed_is_not_taken_for_a_commit(db: Database) -> None:
    """The block swallowed its error; what it wrote is undone, and it is told so."""

    async def swallow() -> None:
        async with db.transaction() as conn:
            await conn.execute(MARK, "swallowed")
            with pytest.raises(asyncpg.DivisionByZeroError):
                await conn.execute("SELECT 1 / 0")

    with pytest.raises(RuntimeError):
        await swallow()

    assert not await marked(db, "swallowed")


async def test_a_cancelled_block_is_undone(db: Database) -> None:
    """Its connection is as good as before."""
    began = asyncio.Event()

    async def forever() -> None:
        async with db.transaction() as conn:
            await conn.execute(MARK, "cancelled")
            began.set()
            await asyncio.Event().wait()

    for _ in range(5):
        began.clear()
        task = asyncio.create_task(forever())
        await began.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    assert not await marked(db, "cancelled")


@pytest.mark.parametrize(("begin", "outcome"), [(BEGIN, errors.Overloaded), (BEGIN_BRIEF, Locked)])
async def test_a_lock_that_is_not_to_be_had_means_that_nothing_happened(
    db: Database, begin: str, outcome: type[Exception]
) -> None:
    wait = ("SET LOCAL lock_timeout = '1ms'", "LOCK TABLE sign_in_attempts IN EXCLUSIVE MODE")

    async with db.transaction() as first:
        await first.execute(MARK, "first")
        with pytest.raises(outcome):
            await write(db, "second", *wait, begin=begin)
        await first.execute("DELETE FROM sign_in_attempts WHERE email_hash = 'first'")

    assert not await marked(db, "second")


async def test_a_statement_that_takes_too_long_means_that_nothing_happened(db: Database) -> None:
    too_long = ("SET LOCAL statement_timeout = '1ms'", "SELECT pg_sleep(60)")

    with pytest.raises(errors.Overloaded) as refusal:
        await write(db, "slow", *too_long)

    assert refusal.value.retry_after
    assert not await marked(db, "slow")


async def test_a_connection_that_breaks_leaves_the_outcome_unknown(db: Database) -> None:
    """The server ended it, whatever it was doing; the next transaction has another one."""
    last_words = "SELECT pg_terminate_backend(pg_backend_pid())"

    with pytest.raises(errors.DatabaseUnavailable) as refusal:
        await write(db, "broken", last_words)

    assert refusal.value.retry_after
    assert not await marked(db, "broken")


@pytest.mark.parametrize("attempt", range(5))
async def test_a_connection_that_breaks_between_two_statements_is_no_defect(
    db: Database, attempt: int
) -> None:
    """Wherever the news of it arrive: before the next statement is sent, or behind it."""

    async def break_down() -> None:
        async with db.transaction() as conn:
            backend = await conn.fetchval("SELECT pg_backend_pid()")
            await db.pool.execute("SELECT pg_terminate_backend($1::integer)", backend)
            for _ in range(attempt):
                await asyncio.sleep(0)
            await conn.execute(MARK, "broken")

    with pytest.raises(errors.DatabaseUnavailable):
        await break_down()

    assert not await marked(db, "broken")


async def test_a_database_that_is_not_there_is_away() -> None:
    db = await open_database("postgresql://nobody@127.0.0.1:1/nothing")

    with pytest.raises(errors.DatabaseUnavailable) as refusal:
        await write(db, "nowhere")

    assert refusal.value.retry_after
    await db.close()


async def test_a_pool_that_is_used_up_is_overload_and_no_absence(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing happened: the caller may come again at once, and health stays as it is."""
    async with db.transaction(), db.transaction(), db.transaction():
        monkeypatch.setattr(connection, "ACQUIRE_SECONDS_MAX", 0.01)
        with pytest.raises(errors.Overloaded):
            await write(db, "fourth")
        monkeypatch.undo()

    assert not await marked(db, "fourth")
