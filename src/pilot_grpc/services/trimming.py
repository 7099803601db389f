"""Trimming: changes that are too many or too old go, and a checkpoint tells what they left.

Nobody waits for it: it takes no vault's lock, and a batch of it is small. Events and the
answers to requests stay; a subscriber whose token is from before a checkpoint is told so.
"""

import logging
from collections import deque
from datetime import timedelta
from typing import Final

import asyncpg

from pilot_grpc.db import trimming as trimming_db
from pilot_grpc.db.clock import Clock
from pilot_grpc.db.connection import BEGIN_BRIEF, Database, Locked, violates
from pilot_grpc.db.trimming import Kept
from pilot_grpc.domain.ids import VaultId

log = logging.getLogger(__name__)

TRIM_SECONDS: Final = 60.0
VAULTS_PER_PAGE_MAX: Final = 1_000
CHANGES_PER_BATCH_MAX: Final = 10_000
# Pages and batches that one round takes; what is left is for the next.
TURNS_MAX: Final = 20_000

_FIRST: Final = VaultId("")


class Trimming:
    """Removes the changes that no longer have to be kept."""

    def __init__(
        self, database: Database, clock: Clock, kept_age: timedelta | None, kept_count: int | None
    ) -> None:
        """Keep of each vault its newest `kept_count` changes, none older than `kept_age`.

        None keeps all; the newest change of a vault is kept in any case.
        """
        self._database = database
        self._clock = clock
        self._kept_age = kept_age
        self._kept_count = kept_count
        self._after = _FIRST

    @property
    def is_wanted(self) -> bool:
        """Whether anything goes at all."""
        return self._kept_age is not None or self._kept_count is not None

    async def trim(self) -> int:
        """Trim all vaults, or as many as its turns suffice for; say how many changes went.

        The next round goes on after the page at which this one ended, so that no vault
        waits for ever behind another that is trimmed without end.
        """
        trimmed, turns = 0, TURNS_MAX
        while self.is_wanted and turns > 0:
            page, kept = await self._next_page()
            turns -= 1
            due = deque(vault for vault in page if vault.is_due)
            while due and turns > 0:
                vault = due.popleft()
                count, checkpoint = await self._trim_batch(vault, kept)
                turns -= 1
                trimmed += count
                if count >= CHANGES_PER_BATCH_MAX:
                    due.append(vault._replace(trimmed=checkpoint))
            if len(page) < VAULTS_PER_PAGE_MAX:
                self._after = _FIRST
                break
            self._after = page[-1].id
        if trimmed:
            log.info("%d changes were trimmed", trimmed)
        return trimmed

    async def _next_page(self) -> tuple[list[trimming_db.Vault], Kept]:
        async with self._database.transaction() as conn:
            since = None
            if self._kept_age is not None:
                since = await self._clock(conn) - self._kept_age
            kept = Kept(self._kept_count, since)
            page = await trimming_db.select_vaults(conn, self._after, kept, VAULTS_PER_PAGE_MAX)
            return page, kept

    async def _trim_batch(self, vault: trimming_db.Vault, kept: Kept) -> tuple[int, int]:
        """Trim some changes of one vault; say how many, and where its checkpoint is.

        A vault that another process is trimming, or deleting, is left to it.
        """
        try:
            async with self._database.transaction(BEGIN_BRIEF) as conn:
                checkpoint = await trimming_db.upsert_checkpoint(
                    conn, vault.id, vault.trimmed, kept, CHANGES_PER_BATCH_MAX
                )
                if checkpoint is None:
                    return 0, vault.trimmed
                count = await trimming_db.delete_changes(conn, vault.id, vault.trimmed, checkpoint)
                return count, checkpoint
        except Locked:
            return 0, vault.trimmed
        except asyncpg.ForeignKeyViolationError as error:
            if violates(error, trimming_db.CHECKPOINTS_VAULT_ID_FKEY):
                return 0, vault.trimmed
            raise
