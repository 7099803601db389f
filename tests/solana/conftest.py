"""A localnet in memory whose slots are made by hand, a real client of it, and other chains."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pilot_grpc.solana import localnet
from pilot_grpc.solana.localnet import Localnet
from tests.solana import either
from tests.solana.chains import Chain
from tests.solana.payments import Rpc, connected


@pytest.fixture
async def net() -> AsyncIterator[Localnet]:
    """A chain that only this test sees, served by two nodes."""
    async with localnet.running(None, manual=True, endpoints=2) as net:
        yield net


@pytest.fixture
async def rpc(net: Localnet) -> AsyncIterator[Rpc]:
    """A client of the first node."""
    async with connected(net.url) as rpc:
        yield rpc


@pytest.fixture
async def other(net: Localnet) -> AsyncIterator[Rpc]:
    """A client of the second node."""
    async with connected(net.urls[1]) as rpc:
        yield rpc


@pytest.fixture(params=either.EITHER)
async def chain(request: pytest.FixtureRequest) -> AsyncIterator[Chain]:
    """A chain that only this test sees: the embedded one and, with `make test-all`, Surfpool."""
    async with either.running(request.param) as chain:
        yield chain
