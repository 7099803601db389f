"""Fairness among callers: a few long reads at a time for each user, the others wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from pilot_grpc.domain.ids import UserId

LONG_READS_PER_USER_MAX: Final = 2
LONG_READS_MAX: Final = 6


class Turns:
    """Lets in so many long reads, of each user and in all; below the pool's size."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._all = asyncio.Semaphore(LONG_READS_MAX)
        self._users: WeakValueDictionary[UserId, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def take(self, user_id: UserId) -> AsyncIterator[None]:
        """Wait for a turn, and read while the block runs; the RPC's deadline bounds the wait."""
        mine = self._users.get(user_id)
        if mine is None:
            mine = self._users[user_id] = asyncio.Semaphore(LONG_READS_PER_USER_MAX)
        async with mine, self._all:
            yield
