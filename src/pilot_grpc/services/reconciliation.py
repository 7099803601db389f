"""Reconciliation: what the chain holds for a vault is what the ledger says, to the unit.

The finalized balance of the vault's token account at slot S must be its chain balance, and
the outflows that had not landed by S, once its history up to S is known. A difference that
two looks find stops the vault's transfers until its owner acknowledges it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from pilot_grpc import errors
from pilot_grpc.db import deposits as deposits_db
from pilot_grpc.db.connection import Database
from pilot_grpc.db.deposits import Expected, Watch
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.domain.vaults import Drift
from pilot_grpc.services.books import Books
from pilot_grpc.services.chain import Chain, Complaints
from pilot_grpc.services.deposits import Deposits
from pilot_grpc.solana import history
from pilot_grpc.solana.faults import RpcError, RpcUnavailable
from pilot_grpc.solana.history import Holdings

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 1.0
VAULTS_PER_ROUND_MAX: Final = 100
# A vault that could not be compared, because the chain was away, say, has its turn again.
RETRY: Final = timedelta(seconds=10)
AT_ONCE_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What ledger and chain have of a vault's USDC, in minor units, as of a finalized slot."""

    slot: int
    found_amount: int
    expected_amount: int
    pending_amount: int
    drift: Drift | None
    warnings: tuple[str, ...]


class Reconciler:
    """Compares vaults with the chain."""

    def __init__(
        self,
        database: Database,
        books: Books,
        chain: Chain,
        deposits: Deposits,
        *,
        new_id: Callable[[], str],
        interval: timedelta,
    ) -> None:
        """Take how often each vault is compared."""
        self._database = database
        self._books = books
        self._chain = chain
        self._deposits = deposits
        self._new_id = new_id
        self._interval = interval
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._complain = Complaints(log)

    async def round(self) -> None:
        """Compare those vaults whose turn it is."""
        async with self._database.transaction() as conn:
            due = await deposits_db.take_reconciliations(conn, self._interval, VAULTS_PER_ROUND_MAX)
        await asyncio.gather(*map(self._reconcile_or_log, due))

    async def _reconcile_or_log(self, watch: Watch) -> None:
        """Compare one vault; what goes wrong with it delays no other."""
        try:
            async with self._slots:
                found = await self.reconcile(watch.vault_id)
            for warning in found.warnings:
                log.error("vault %s: %s", watch.vault_id, warning)
        except RpcError as fault:
            self._complain("vaults are not reconciled: %s", fault)
            await self._retry(watch)
        except errors.PilotError as error:
            log.warning("vault %s was not reconciled: %s", watch.vault_id, error.message)
        except Exception:
            log.exception("vault %s was not reconciled", watch.vault_id)

    async def _retry(self, watch: Watch) -> None:
        """Give a vault its next turn sooner than it would come."""
        try:
            async with self._database.transaction() as conn:
                await deposits_db.hurry_reconciliation(conn, watch.vault_id, RETRY)
        except errors.PilotError as error:
            log.warning("vault %s is not reconciled soon: %s", watch.vault_id, error.message)

    async def reconcile(self, vault_id: VaultId) -> Reconciliation:
        """Compare a vault with the chain, and stop it if they differ.

        At a difference its whole history is read again, because nodes leave out rows, and it
        is compared once more. Raises NotFound, RpcError, and what the lanes raise.
        """
        found = await self._compare(vault_id)
        if found.found_amount != found.expected_amount:
            found = await self._compare(vault_id, from_slot=0)
        return found

    async def _compare(self, vault_id: VaultId, from_slot: int | None = None) -> Reconciliation:
        watch = await self._watch(vault_id)
        account = self._chain.account_of(watch.address)
        holdings = await history.holdings(self._chain.rpc, account, self._chain.usdc_mint)
        known = await self._deposits.scan(
            watch, holdings.amount, min_slot=holdings.slot, from_slot=from_slot
        )
        if known < holdings.slot:
            raise RpcUnavailable("the history up to the balance is not to be had yet")
        amount = holdings.amount if holdings.owner in {None, watch.address} else 0
        expected = await self._expected(vault_id, holdings.slot)
        drift = None
        if from_slot is not None or expected.amount == amount:
            drift = await self._settle(vault_id, holdings.slot, amount)
        return Reconciliation(
            slot=holdings.slot,
            found_amount=amount,
            expected_amount=expected.amount,
            pending_amount=expected.pending_amount,
            drift=drift,
            warnings=_warnings(holdings, watch.address),
        )

    async def _watch(self, vault_id: VaultId) -> Watch:
        async with self._database.transaction() as conn:
            watch = await deposits_db.select_watch(conn, vault_id)
        if watch is None:
            raise errors.NotFound(resource="vault", id=vault_id)
        return watch

    async def _expected(self, vault_id: VaultId, slot: int) -> Expected:
        async with self._database.transaction() as conn:
            expected = await deposits_db.select_expected(conn, vault_id, slot)
        if expected is None:
            raise errors.NotFound(resource="vault", id=vault_id)
        return expected

    async def _settle(self, vault_id: VaultId, slot: int, amount: int) -> Drift | None:
        """Open a drift, bring an open one up to date, or end one that is gone; under the lock."""
        async with self._database.transaction() as conn:
            book = await self._books.open(conn, [vault_id])
            expected = await deposits_db.select_expected(conn, vault_id, slot)
            if expected is None or vault_id not in book.vaults:
                raise errors.NotFound(resource="vault", id=vault_id)
            vault, difference = book.vaults[vault_id], amount - expected.amount
            before = vault.drift
            # A node that is behind says nothing about what was found since.
            is_older = before is not None and slot < before.slot
            if is_older or difference == (before.amount if before is not None else 0):
                await self._books.write(conn, book)
                return before
            drift = Drift(
                id=before.id if before is not None else self._new_id(),
                amount=difference,
                slot=slot,
                found_amount=amount,
                expected_amount=expected.amount,
                outflows=tuple(await deposits_db.select_outflows(conn, vault_id, slot)),
                created_at=before.created_at if before is not None else book.now(vault),
            )
            book.stop(drift)
            await self._books.write(conn, book)
        if difference:
            log.error("vault %s is stopped: it has %+d minor units on chain", vault_id, difference)
        else:
            log.warning("vault %s goes on: it has on chain what it should have", vault_id)
        return drift if difference else None


def _warnings(holdings: Holdings, address: str) -> tuple[str, ...]:
    """Say what of a token account lets others have it."""
    found = []
    if holdings.owner not in {None, address}:
        found.append("its token account has another owner")
    if holdings.delegate is not None:
        found.append("its token account has a delegate, who can take from it")
    if holdings.close_authority not in {None, address}:
        found.append("its token account has another close authority")
    if holdings.frozen:
        found.append("its token account is frozen by the issuer")
    return tuple(found)
