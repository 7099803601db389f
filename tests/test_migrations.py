"""Migrations: they add up to the schema, race safely, and destroy only what was meant."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pilot_grpc import migrations, schema
from pilot_grpc.migrations import Confirmation, Migration, MigrationError
from tests.sql import fetchval

REMOTE = "postgresql://pilot:hunter2@db.example.com/money"
UNCONFIRMED = Confirmation()


async def test_the_schema_is_what_the_migrations_add_up_to() -> None:
    """`make db-schema` was run after the last change of a migration."""
    stored = (migrations.sql_directory() / "schema.sql").read_text()

    assert stored == await schema.generate()


async def test_two_processes_that_migrate_at_once_are_safe(empty_database: str) -> None:
    """One of four applies everything; the others wait for it and find nothing to do."""
    applied = await asyncio.gather(*(migrations.migrate(empty_database) for _ in range(4)))

    assert sorted(map(len, applied)) == [0, 0, 0, len(migrations.migrations())]
    assert await migrations.status(empty_database) == []


async def test_waiting_for_the_lock_is_bounded(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with migrations.locked(empty_database):
        monkeypatch.setattr(migrations, "LOCK_SECONDS_MAX", 1)
        with pytest.raises(MigrationError, match="another process"):
            await migrations.migrate(empty_database)


async def test_an_empty_database_lacks_every_migration(empty_database: str) -> None:
    assert await migrations.status(empty_database) == migrations.migrations()


async def test_a_pushed_schema_needs_no_migration(empty_database: str) -> None:
    await migrations.push(empty_database, UNCONFIRMED)

    assert await migrations.migrate(empty_database) == []
    assert await fetchval(empty_database, "SELECT count(*) FROM events") == 0


async def test_a_pushed_schema_is_the_migrated_one(empty_database: str) -> None:
    await migrations.push(empty_database, UNCONFIRMED)

    assert await schema.dump(empty_database) == await schema.generate()


async def test_push_wants_an_empty_database(database: str) -> None:
    with pytest.raises(MigrationError, match="empty"):
        await migrations.push(database, UNCONFIRMED)


async def test_reset_leaves_a_migrated_database_with_nothing_in_it(empty_database: str) -> None:
    await migrations.push(empty_database, UNCONFIRMED)
    await fetchval(empty_database, "CREATE TABLE left_over ()")

    await migrations.reset(empty_database, UNCONFIRMED)

    assert await fetchval(empty_database, "SELECT to_regclass('left_over')") is None
    assert await schema.dump(empty_database) == await schema.generate()


async def test_a_migration_that_fails_leaves_nothing_of_itself(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file stays applied; the second is undone whole, and its error is told."""
    (tmp_path / "1_good.sql").write_text("-- migrate:up\nCREATE TABLE good ();\n")
    (tmp_path / "2_bad.sql").write_text("-- migrate:up\nCREATE TABLE bad ();\nSELECT 1 / 0;\n")
    files = [Migration(tmp_path / "1_good.sql"), Migration(tmp_path / "2_bad.sql")]
    monkeypatch.setattr(migrations, "migrations", lambda: files)

    with pytest.raises(MigrationError, match="division by zero"):
        await migrations.migrate(empty_database)

    assert await migrations.status(empty_database) == files[1:]
    assert await fetchval(empty_database, "SELECT to_regclass('good')") == "good"
    assert await fetchval(empty_database, "SELECT to_regclass('bad')") is None


@pytest.mark.parametrize(
    "confirmation",
    [
        UNCONFIRMED,
        Confirmation(database="money"),
        Confirmation(host="db.example.com"),
        Confirmation(database="pilot", host="db.example.com"),
        Confirmation(database="money", host="localhost"),
    ],
)
async def test_a_database_elsewhere_must_be_named_twice(confirmation: Confirmation) -> None:
    """Its name and its host; the refusal says so before anything connects."""
    for destroy in (migrations.push, migrations.reset):
        with pytest.raises(MigrationError, match="--yes-really money --on-host") as refusal:
            await destroy(REMOTE, confirmation)
        assert "hunter2" not in str(refusal.value)


def test_a_database_that_was_named_twice_is_meant() -> None:
    named = Confirmation(database="money", host="db.example.com")

    migrations.refuse_unless_meant(REMOTE, named)


async def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(MigrationError) as failure:
        await migrations.migrate("postgresql://pilot:hunter2@127.0.0.1:1/pilot")

    assert "127.0.0.1:1" in str(failure.value)
    assert "hunter2" not in str(failure.value)
