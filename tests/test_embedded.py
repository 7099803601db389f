"""The embedded PostgreSQL: it is shared, it keeps what it was given, and it survives violence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pilot_grpc import development, embedded
from pilot_grpc.database_url import parse
from pilot_grpc.settings import DEVELOPMENT_KEY_ID, Settings
from tests.sql import fetchval

USER = """
import sys, pathlib
from pilot_grpc import embedded
with embedded.running(pathlib.Path(sys.argv[1])):
    print("running", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the server until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", USER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process
        process.kill()


def server_pid(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])


def is_stopped(home: Path) -> bool:
    return not (home / "postgres" / "postmaster.pid").exists()


async def test_what_was_committed_is_there_the_next_time(home: Path) -> None:
    with embedded.running(home) as url:
        assert await fetchval(url, "SHOW fsync") == "on"
        await fetchval(url, "CREATE TABLE kept ()")

    assert is_stopped(home)
    with embedded.running(home) as url:
        assert await fetchval(url, "SELECT to_regclass('kept')") == "kept"


async def test_two_processes_share_a_server_and_the_last_one_stops_it(home: Path) -> None:
    with another_process(home) as other:
        with embedded.running(home) as url:
            assert await fetchval(url, "SELECT 1") == 1
        assert not is_stopped(home)
        other.communicate()

    assert is_stopped(home)


async def test_a_server_whose_user_was_killed_is_used_again(home: Path) -> None:
    """Nothing counts the dead: the next user finds the server running, and stops it."""
    with another_process(home) as other:
        other.kill()
    left_behind = server_pid(home)

    with embedded.running(home) as url:
        assert await fetchval(url, "SELECT 1") == 1
        assert server_pid(home) == left_behind

    assert is_stopped(home)


async def test_a_server_that_was_killed_recovers(home: Path) -> None:
    with another_process(home) as other:
        os.kill(server_pid(home), signal.SIGKILL)
        other.kill()

    with embedded.running(home) as url:
        assert await fetchval(url, "SELECT 1") == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only /proc tells them apart")
async def test_a_pid_file_that_names_another_program_is_no_obstacle(home: Path) -> None:
    """After a restart of a container, the number of the old server may be anybody's."""
    with embedded.running(home):
        leftover = (home / "postgres" / "postmaster.pid").read_text().split("\n")
    owner = (home / "postgres").stat().st_uid
    with subprocess.Popen(["sleep", "60"], user=owner) as stranger:
        pid_file = home / "postgres" / "postmaster.pid"
        pid_file.write_text("\n".join([str(stranger.pid), *leftover[1:]]))
        os.chown(pid_file, owner, -1)

        with embedded.running(home) as url:
            assert await fetchval(url, "SELECT 1") == 1
        stranger.kill()


@pytest.mark.parametrize("name", ["d" * 120, "with, comma", "with 'quotes' and space"])
async def test_any_path_will_do(home: Path, name: str) -> None:
    with embedded.running(home / name) as url:
        assert await fetchval(url, "SELECT current_database()") == "pilot"

    assert not Path(parse(url).host, ".s.PGSQL.5432").exists()


def test_data_of_another_version_is_left_alone(home: Path) -> None:
    with embedded.running(home):
        pass
    (home / "postgres" / "PG_VERSION").write_text("14\n")

    with (
        pytest.raises(embedded.EmbeddedPostgresError, match="made by PostgreSQL 14"),
        embedded.running(home),
    ):
        pass


def test_the_wrapping_key_is_made_once_and_only_for_its_owner(home: Path) -> None:
    key = development.wrapping_key(home)

    assert development.wrapping_key(home) == key
    assert key.id == DEVELOPMENT_KEY_ID
    assert (home / "wrapping.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir()] == ["wrapping.key"]


def test_a_first_run_lacks_nothing(home: Path) -> None:
    """Settings without a database come back with one, and with a key."""
    started = time.monotonic()
    with development.provided(Settings(data_dir=home)) as settings:
        assert settings.direct_url() == settings.database_url
        assert settings.wrapping_key is not None
        assert time.monotonic() - started < 30
