"""The command line, run as a person runs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def pilot(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `pilot` with this environment only."""
    return subprocess.run(
        [sys.executable, "-m", "pilot_grpc", *arguments],
        env={"PATH": os.defpath, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_migrate_says_what_it_applied_and_then_finds_nothing(empty_database: str) -> None:
    before = pilot("db", "status", DATABASE_URL=empty_database)
    first = pilot("db", "migrate", DATABASE_URL=empty_database)
    second = pilot("db", "migrate", DATABASE_URL=empty_database)
    after = pilot("db", "status", DATABASE_URL=empty_database)

    assert (before.returncode, first.returncode) == (1, 0), first.stderr
    assert before.stdout.replace("pending", "applied") in first.stdout
    assert second.stdout == "The database is up to date.\n"
    assert (after.returncode, after.stdout) == (0, "The database is up to date.\n")


def test_push_loads_the_schema_once(empty_database: str) -> None:
    first = pilot("db", "push", DATABASE_URL=empty_database)
    second = pilot("db", "push", DATABASE_URL=empty_database)

    assert first.returncode == 0, first.stderr
    assert second.returncode == 1
    assert "empty" in second.stderr


@pytest.mark.parametrize("command", ["push", "seed", "reset"])
def test_what_destroys_refuses_a_database_elsewhere(command: str) -> None:
    refused = pilot(
        "db",
        command,
        DATABASE_URL="postgresql://pilot:hunter2@db.example.com/money",
        PILOT_WRAPPING_KEY="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        PILOT_WRAPPING_KEY_ID="test",
    )

    assert refused.returncode == 1
    assert "--yes-really money --on-host db.example.com" in refused.stderr
    assert "hunter2" not in refused.stderr


def test_serve_refuses_a_database_that_lacks_migrations(empty_database: str) -> None:
    refused = pilot(
        "serve",
        DATABASE_URL=empty_database,
        PILOT_WRAPPING_KEY="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        PILOT_WRAPPING_KEY_ID="test",
    )

    assert refused.returncode == 1
    assert "pilot db migrate" in refused.stderr


def test_serve_refuses_a_database_of_ones_own_without_a_key(database: str) -> None:
    refused = pilot("serve", DATABASE_URL=database)

    assert refused.returncode == 1
    assert "PILOT_WRAPPING_KEY" in refused.stderr


def test_without_a_database_url_commands_work_on_the_embedded_one(home: Path) -> None:
    migrated = pilot("db", "migrate", PILOT_DATA_DIR=str(home / "data"))

    assert migrated.returncode == 0, migrated.stderr
    assert (home / "data" / "wrapping.key").exists()
    assert not (home / "data" / "postgres" / "postmaster.pid").exists()


def test_a_bad_setting_is_told_without_a_traceback() -> None:
    refused = pilot("db", "status", PILOT_LANES="many")

    assert refused.returncode == 1
    assert refused.stderr == "pilot: PILOT_LANES must be a whole number above zero\n"


def test_health_of_a_server_that_is_not_there_is_a_failure() -> None:
    probed = pilot("health", "--address", "127.0.0.1:1")

    assert probed.returncode == 1
    assert probed.stdout.startswith("UNAVAILABLE")


def test_serve_says_that_its_address_is_taken(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        refused = pilot(
            "serve",
            DATABASE_URL=database,
            PILOT_LISTEN_ADDRESS=address,
            PILOT_DATABASE_POOLER="true",
            PILOT_WRAPPING_KEY="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            PILOT_WRAPPING_KEY_ID="test",
        )

    assert refused.returncode == 1
    assert f"PILOT_LISTEN_ADDRESS: {address} cannot be listened on" in refused.stderr
    assert "Traceback" not in refused.stderr
