"""Real servers for tests, each in a directory of its own and on a free port."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pilot_grpc import database_url

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
PGBOUNCER = Path("/usr/sbin/pgbouncer")
START_SECONDS = 30

# Neither server runs as root. Whoever is not root runs them as themselves.
ACCOUNT = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())

PGBOUNCER_INI = """
[databases]
* = host={host} port={port} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 1000
default_pool_size = 20
server_idle_timeout = 2
logfile = {directory}/pgbouncer.log
pidfile = {directory}/pgbouncer.pid
"""


@contextmanager
def postgres_15(directory: Path) -> Iterator[str]:
    """A PostgreSQL 15 that listens on TCP."""
    _give_away(directory)
    data = directory / "data"
    port = _free_port()
    _run(POSTGRES_15 / "initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8",
         "--locale=C.UTF-8", "--no-sync", f"--pgdata={data}")  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    # As many test processes as there are share it.
    options += " -c max_connections=400"
    _run(POSTGRES_15 / "pg_ctl", "start", "--wait", f"--pgdata={data}",
         f"--log={directory / 'log'}", f"--options={options}")  # fmt: skip
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        _run(POSTGRES_15 / "pg_ctl", "stop", "--wait", "--mode=immediate", f"--pgdata={data}")


@contextmanager
def pgbouncer(directory: Path, url: str) -> Iterator[str]:
    """A PgBouncer in transaction mode in front of a server."""
    _give_away(directory)
    target = database_url.parse(url)
    port = _free_port()
    ini = directory / "pgbouncer.ini"
    ini.write_text(
        PGBOUNCER_INI.format(
            host=target.host,
            port=target.port,
            user=target.user,
            listen_port=port,
            directory=directory,
        )
    )
    with subprocess.Popen(
        [PGBOUNCER, "--quiet", ini], user=ACCOUNT.pw_uid, group=ACCOUNT.pw_gid, extra_groups=()
    ) as process:
        try:
            _wait_for(port)
            yield f"postgresql://postgres@127.0.0.1:{port}/{target.database}"
        finally:
            process.terminate()


def _run(program: Path, *arguments: str) -> None:
    subprocess.run(
        [program, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        user=ACCOUNT.pw_uid,
        group=ACCOUNT.pw_gid,
        cwd="/",
    )


def _give_away(directory: Path) -> None:
    """Let the server's account write to a directory, and pass those above it."""
    os.chown(directory, ACCOUNT.pw_uid, ACCOUNT.pw_gid)
    if os.geteuid() == 0:
        for parent in directory.parents:
            parent.chmod(parent.stat().st_mode | 0o001)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end, f"nothing listens on port {port}"
            time.sleep(0.05)
        else:
            return
