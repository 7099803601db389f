"""Real servers: `pilot serve` in processes of their own, on one database, called over sockets."""

import asyncio
import base64
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import grpc

from tests import make
from tests.conftest import Server

SERVE: Final = ("-m", "pilot_grpc", "serve")
SERVE_WITH_FAULTS: Final = ("-m", "tests.faulty")
SERVE_IMPATIENTLY: Final = ("-m", "tests.faulty", "sound")

# No test waits for it; it only ends a test that hangs.
READY_SECONDS: Final = 30.0

# A channel that lost its server finds the next one at once.
CHANNEL_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Process:
    """One server, which can be killed, frozen, and started again on the same port."""

    server: Server
    url: str
    program: tuple[str, ...] = SERVE
    environ: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    running: "subprocess.Popen[bytes] | None" = None
    # Where its output goes, if not to that of the tests.
    output: IO[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        secret = base64.b64encode(make.WRAPPING_KEY.secret).decode()
        environ = {
            "PATH": os.defpath,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "DATABASE_URL": self.url,
            "PILOT_DATABASE_DIRECT_URL": self.url,
            "PILOT_DATABASE_POOLER": str(self.server.pooler).lower(),
            "PILOT_WRAPPING_KEY": secret,
            "PILOT_WRAPPING_KEY_ID": make.WRAPPING_KEY.id,
            "PILOT_LISTEN_ADDRESS": self.address,
            "PILOT_DECLINES_PER_MINUTE": "1000000",
            "PILOT_LOG_LEVEL": "error",
            "PILOT_WEBHOOKS_ALLOW_PRIVATE": "true",
            **self.environ,
        }
        self.running = subprocess.Popen(
            [sys.executable, *self.program],
            env=environ,
            cwd=Path(__file__).parents[1],
            stdout=self.output,
            stderr=self.output,
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    @property
    def resident_bytes(self) -> int:
        """How much memory it has."""
        assert self.running is not None
        status = Path(f"/proc/{self.running.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    def wait(self) -> int:
        """Wait until it is gone."""
        assert self.running is not None
        return self.running.wait(READY_SECONDS)

    def stop(self) -> None:
        if self.running is not None and self.running.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.wait()


@contextmanager
def processes(
    server: Server, url: str, *programs: tuple[str, ...], **environ: str
) -> Iterator[tuple[Process, ...]]:
    """Servers that run while the block runs, with settings that differ from those of all tests."""
    started = tuple(Process(server, url, program, environ) for program in programs)
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.stop()


@asynccontextmanager
async def channel_to(process: Process) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to a server, once it serves."""
    async with grpc.aio.insecure_channel(process.address, options=CHANNEL_OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), READY_SECONDS)
        yield channel


@contextmanager
def first_run(home: Path) -> Iterator[str]:
    """Run `pilot serve` as `make run` does, on a free port and without data.

    Gives what it prints once it serves.
    """
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
        try:
            assert server.stdout is not None
            said = ""
            while "Ctrl-C" not in said:
                line = server.stdout.readline()
                assert line, "pilot serve has ended"
                said += line
            yield said
        finally:
            server.terminate()


def address_in(announcement: str) -> str:
    """Where the server of a first run serves."""
    address: str = re.findall(r"Pilot serves on (\S+),", announcement)[0]
    return address
