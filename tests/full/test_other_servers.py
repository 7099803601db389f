"""The suite again, on the servers that Pilot promises to run on."""

from __future__ import annotations

import os
import subprocess
import sys

import asyncpg
import pytest

from pilot_grpc import migrations
from pilot_grpc.database_url import connect_arguments
from tests.conftest import Server
from tests.sql import fetchval

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


# What reaches the database in this process, and several servers that end again and again while
# somebody follows or is paid: the other tests that start servers are not about what a pooler
# could break.
THROUGH_A_POOLER = (
    *("tests/db", "tests/services", "tests/rpc"),
    *(f"tests/test_{name}_processes.py" for name in ("settlement", "stream", "webhook")),
)
# As `make test` does.
IN_PARALLEL = ("--numprocesses", "3", "--dist", "worksteal")


def run_the_suite(server: Server, *arguments: str) -> None:
    """Run every test but the full ones against a server, or what the arguments say."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", *arguments],
        env={
            **os.environ,
            "PILOT_TEST_DATABASE_URL": server.url,
            "PILOT_TEST_DATABASE_DIRECT_URL": server.direct_url,
        },
        check=True,
    )


async def test_the_older_server_is_a_postgresql_15(postgres_15: Server) -> None:
    assert str(await fetchval(postgres_15.url, "SHOW server_version")).startswith("15.")


async def test_two_clients_of_the_pooler_share_a_session(pgbouncer: Server) -> None:
    """The pooler is in transaction mode: a session is free again while its client is connected."""
    arguments = connect_arguments(pgbouncer.url, pooler=True)
    first = await asyncpg.connect(**arguments)
    second = await asyncpg.connect(**arguments)

    backends = {await conn.fetchval("SELECT pg_backend_pid()") for conn in (first, second)}

    assert len(backends) == 1
    await first.close()
    await second.close()


async def test_pending_migrations_are_seen_through_the_pooler(pgbouncer: Server) -> None:
    """A service that knows only the pooler still finds out that it must not start."""
    assert await migrations.status(pgbouncer.url, pooler=True) == migrations.migrations()


def test_the_suite_passes_on_postgresql_15(postgres_15: Server) -> None:
    """But for what asks no database, or brings its own."""
    apart = ("solana", "domain", "test_embedded.py", "test_development.py")
    run_the_suite(postgres_15, "tests", *(f"--ignore=tests/{name}" for name in apart), *IN_PARALLEL)


def test_the_suite_passes_through_pgbouncer(pgbouncer: Server) -> None:
    run_the_suite(pgbouncer, *THROUGH_A_POOLER, *IN_PARALLEL)
