"""`pilot db ...`: migrate, status, schema, push, seed, reset."""

from __future__ import annotations

import argparse
import asyncio
import sys

from pilot_grpc import development, migrations
from pilot_grpc.migrations import Confirmation
from pilot_grpc.settings import Settings


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `migrate`, `status`, `schema`, `push`, `seed` and `reset` to the parser of `pilot db`."""
    migrate = commands.add_parser("migrate", help="apply the pending migrations")
    migrate.set_defaults(command=_db_migrate)
    status = commands.add_parser("status", help="list the pending migrations; 1 if there are any")
    status.set_defaults(command=_db_status)
    schema = commands.add_parser("schema", help="generate sql/schema.sql from sql/migrations")
    schema.add_argument("--check", action="store_true", help="compare only; 1 when it is stale")
    schema.set_defaults(command=_db_schema)
    push = commands.add_parser("push", help="load sql/schema.sql into an empty database")
    push.set_defaults(command=_db_push)
    seed = commands.add_parser("seed", help="add the demo user and what it owns")
    seed.set_defaults(command=_db_seed)
    reset = commands.add_parser("reset", help="drop everything, migrate, seed")
    reset.set_defaults(command=_db_reset)
    for parser in (push, seed, reset):
        parser.add_argument("--yes-really", metavar="DATABASE", help="the database that you mean")
        parser.add_argument("--on-host", metavar="HOST", help="the host that you mean")


async def seed_database(settings: Settings, *, only_if_empty: bool = False) -> None:
    """Seed under the migrations' lock, so that of two processes at once one finds it done."""
    from pilot_grpc.db.connection import open_database
    from pilot_grpc.seed import seed

    url = settings.direct_url()
    async with migrations.locked(url) as conn:
        if only_if_empty and not await migrations.is_empty(conn):
            return
        database = await open_database(url)
        try:
            await seed(database, settings)
        finally:
            await database.close()


async def refuse_pending_migrations(settings: Settings) -> None:
    """Raise MigrationError unless the database is there and up to date; works through a pooler."""
    url = settings.database_url or settings.direct_url()
    waiting = await migrations.status(url, pooler=settings.database_pooler)
    if waiting:
        names = ", ".join(each.path.name for each in waiting)
        raise migrations.MigrationError(
            f"the database lacks migrations of this version ({names}); run `pilot db migrate` first"
        )


def _db_migrate(settings: Settings, _: argparse.Namespace) -> int:
    with development.provided(settings) as provided:
        applied = asyncio.run(migrations.migrate(provided.direct_url()))
    for each in applied:
        print(f"applied {each.path.name}")
    print("The database is up to date.")
    return 0


def _db_status(settings: Settings, _: argparse.Namespace) -> int:
    with development.provided(settings) as provided:
        waiting = asyncio.run(migrations.status(provided.direct_url()))
    for each in waiting:
        print(f"pending {each.path.name}")
    if not waiting:
        print("The database is up to date.")
    return 1 if waiting else 0


def _db_schema(_: Settings, parsed: argparse.Namespace) -> int:
    from pilot_grpc import schema

    path = migrations.sql_directory() / "schema.sql"
    fresh = asyncio.run(schema.generate())
    if not parsed.check:
        path.write_text(fresh)
        return 0
    if path.exists() and path.read_text() == fresh:
        return 0
    print("sql/schema.sql is stale: run `make db-schema` and commit the result", file=sys.stderr)
    return 1


def _db_push(settings: Settings, parsed: argparse.Namespace) -> int:
    with development.provided(settings) as provided:
        asyncio.run(migrations.push(provided.direct_url(), _confirmation(parsed)))
    print("The schema is loaded.")
    return 0


def _db_seed(settings: Settings, parsed: argparse.Namespace) -> int:
    with development.provided(settings) as provided:
        provided.sealing_key()
        migrations.refuse_unless_meant(provided.direct_url(), _confirmation(parsed))
        asyncio.run(seed_database(provided))
    print("The database has the demo user: demo@pilot.app / password123")
    return 0


def _db_reset(settings: Settings, parsed: argparse.Namespace) -> int:
    with development.provided(settings) as provided:
        provided.sealing_key()
        asyncio.run(_reset(provided, _confirmation(parsed)))
    print("The database is as new, with the demo user: demo@pilot.app / password123")
    return 0


async def _reset(settings: Settings, confirmation: Confirmation) -> None:
    await migrations.reset(settings.direct_url(), confirmation)
    await seed_database(settings)


def _confirmation(parsed: argparse.Namespace) -> Confirmation:
    return Confirmation(database=parsed.yes_really, host=parsed.on_host)
