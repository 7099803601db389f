"""What `make test-all` has and `make test` has not: other servers, and tools of other languages.

A tool that is missing is a failure, never a skip: scripts/install-full brings them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Server, server_home
from tests.full import servers

ROOT = Path(__file__).parents[2]


def tool(name: str) -> Path:
    path = ROOT / ".tools" / "bin" / name
    assert path.exists(), f"{name} is missing: run scripts/install-full"
    return path


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The real grpcurl."""
    return tool("grpcurl")


@pytest.fixture(scope="session")
def go_plugins() -> list[Path]:
    """The plugins of protoc for Go."""
    return [tool("protoc-gen-go"), tool("protoc-gen-go-grpc")]


@pytest.fixture(scope="session")
def postgres_15() -> Iterator[Server]:
    """The oldest PostgreSQL that Pilot supports."""
    with server_home() as directory, servers.postgres_15(Path(directory)) as url:
        yield Server(url, url)


@pytest.fixture(scope="session")
def pgbouncer(server: Server) -> Iterator[Server]:
    """A transaction-mode pooler in front of this run's server, for every database on it."""
    with (
        server_home() as directory,
        servers.pgbouncer(Path(directory), server.direct_url) as url,
    ):
        yield Server(url, server.direct_url)
