"""Servers on a real socket: one for each test that asks, or one for a whole module."""

from collections.abc import AsyncIterator, Iterator
from functools import partial

import argon2
import pytest
import pytest_asyncio

from pilot_grpc.database_url import with_database
from tests.conftest import Server
from tests.rpc.serving import Pilot, serving


@pytest.fixture(scope="module", autouse=True)
def real_password_hasher() -> Iterator[type[argon2.PasswordHasher]]:
    """Hash cheaply in all of these tests, and give what hashes in production."""
    real = argon2.PasswordHasher
    with pytest.MonkeyPatch.context() as patch:
        cheap = partial(real, time_cost=1, memory_cost=8, parallelism=1)
        patch.setattr(argon2, "PasswordHasher", cheap)
        yield real


@pytest.fixture
async def pilot(database: str) -> AsyncIterator[Pilot]:
    """A server on a database of this test's own."""
    async with serving(database) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_database(server: Server, template: str) -> AsyncIterator[str]:
    """The URL of a database for all tests of a module."""
    async with server.new_database(template) as name:
        yield with_database(server.url, name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_database: str) -> AsyncIterator[Pilot]:
    """A server for all tests of a module, which must leave alone what is not theirs."""
    async with serving(shared_database) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def another(shared_database: str) -> AsyncIterator[Pilot]:
    """A second server on the database of `shared`."""
    async with serving(shared_database) as running:
        yield running
