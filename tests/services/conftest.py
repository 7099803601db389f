"""What the tests of the services share: one database, and rows of their own in it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from pilot_grpc.bootstrap import App
from pilot_grpc.db.clock import Clock, read_clock
from tests import make
from tests.conftest import Server

StartApp = Callable[..., Awaitable[App]]


@pytest.fixture
async def start(server: Server, shared_database: str) -> AsyncIterator[StartApp]:
    """Start the services, as often as wanted: each has its own pool and lanes, as a process has."""
    async with AsyncExitStack() as stack:

        async def one(clock: Clock = read_clock, **changes: object) -> App:
            settings = {"database_pooler": server.pooler} | changes
            running = make.app(shared_database, clock, duties=False, **settings)
            return await stack.enter_async_context(running)

        yield one


@pytest.fixture
async def app(start: StartApp) -> App:
    """The services, on the database's own clock."""
    return await start()


@pytest.fixture
async def other(start: StartApp) -> App:
    """The services once more, as another process would run them."""
    return await start()
