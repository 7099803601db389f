"""The command line, run as a person runs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pilot_grpc import cli
from pilot_grpc.settings import Settings
from pilot_grpc.solana import localnet


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
    assert not (home / "data" / "localnet").exists()


def test_serve_runs_a_chain_and_says_where_until_it_is_stopped(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pilot_grpc", "serve"],
        env={
            "PATH": os.defpath,
            "PILOT_DATA_DIR": str(home / "data"),
            "PILOT_LISTEN_ADDRESS": "127.0.0.1:0",
        },
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = server.stdout.readline()
            assert line
            said += line
        url = localnet.address(home / "data" / "localnet")
        server.terminate()
        assert server.wait(30) == 0

    assert f"chain answers at {url}; the USDC on it is worth nothing." in said
    assert localnet.address(home / "data" / "localnet") is None


def test_serve_shows_no_url_that_was_configured(capsys: pytest.CaptureFixture[str]) -> None:
    """It may hold a key."""
    given = Settings(solana_rpc_urls=("https://rpc.example.com/hunter2",))

    cli._announce(given, "127.0.0.1:50051", given=given)

    said = capsys.readouterr().out
    assert "Pilot serves on 127.0.0.1:50051," in said
    assert "chain" not in said
    assert "hunter2" not in said


def test_serve_says_that_its_chain_cannot_be_opened(home: Path) -> None:
    (home / "localnet").mkdir()
    (home / "localnet" / "chain.sqlite").write_bytes(b"noise" * 1_000)

    refused = pilot("serve", PILOT_DATA_DIR=str(home), PILOT_LOG_LEVEL="error")

    path = home / "localnet" / "chain.sqlite"
    assert refused.returncode == 1
    assert refused.stderr == f"pilot: {path}: file is not a database\n"


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
