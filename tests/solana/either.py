"""The chains that a test can run on: `chain` in conftest.py gives a test each of them in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from pilot_grpc.solana import localnet
from tests.full import surfpool_net
from tests.solana.chains import Chain, EmbeddedChain

EMBEDDED: Final = "embedded"
SURFPOOL: Final = "surfpool"
# The parameters of a fixture: `make test` knows the first, `make test-all` adds the second.
EITHER: Final = (EMBEDDED, pytest.param(SURFPOOL, marks=pytest.mark.full))


@asynccontextmanager
async def running(name: str) -> AsyncIterator[Chain]:
    """Run a chain that only this test sees, named as in EITHER."""
    if name == SURFPOOL:
        async with surfpool_net.running() as surfpool:
            yield surfpool
    else:
        async with localnet.running(None, manual=True, endpoints=2) as net:
            yield EmbeddedChain(net)
