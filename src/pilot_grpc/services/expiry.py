"""What happens by itself: holds expire, and what is over is removed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db import ledger as ledger_db
from pilot_grpc.db.connection import Database
from pilot_grpc.errors import PilotError
from pilot_grpc.services import requests
from pilot_grpc.services.accounts import SIGN_IN_WINDOW
from pilot_grpc.services.lanes import Lanes

log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 1.0
SWEEP_VAULTS_MAX: Final = 100
SWEEP_TURNS_MAX: Final = 100
CLEAN_SECONDS: Final = 600.0
# As long as PostgreSQL itself waits for a process that froze elsewhere in a transaction.
FROZEN_MAX: Final = timedelta(seconds=15)


async def every(
    seconds: float, duty: Callable[[], Awaitable[object]], *, first: float | None = None
) -> None:
    """Do a duty again and again, the first time after `first` seconds, if that is another wait.

    A failure is logged, and the next turn comes.
    """
    wait = seconds if first is None else first
    while True:
        await asyncio.sleep(wait)
        wait = seconds
        try:
            await duty()
        except PilotError as error:
            log.warning("%s failed: %s", duty.__qualname__, error.message)
        except Exception:
            log.exception("%s failed", duty.__qualname__)


class Expiry:
    """Settles the holds that are overdue, and removes what is kept for a time only."""

    def __init__(self, database: Database, lanes: Lanes) -> None:
        """Take the lanes, because a hold expires in its vault's lane."""
        self._database = database
        self._lanes = lanes

    async def sweep(self) -> None:
        """Settle the overdue holds, some of each vault at a time, those that wait longest first."""
        for _ in range(SWEEP_TURNS_MAX):
            async with self._database.transaction() as conn:
                vault_ids = await ledger_db.select_vaults_with_overdue_holds(conn, SWEEP_VAULTS_MAX)
            if not vault_ids:
                return
            settled = map(self._lanes.settle, vault_ids)
            for outcome in await asyncio.gather(*settled, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    async def end_frozen(self) -> None:
        """End the sessions of processes that froze while they wrote, and free their locks."""
        async with self._database.transaction() as conn:
            ended = await ledger_db.end_frozen_copies(conn, FROZEN_MAX)
        if ended:
            log.error("%d sessions had frozen while they wrote, and were ended", ended)

    async def clean(self) -> None:
        """Remove old answers, sign-in windows and sessions."""
        async with self._database.transaction() as conn:
            await accounts_db.delete_what_is_over(
                conn, requests.KEPT, max(SIGN_IN_WINDOW, timedelta(hours=1))
            )
