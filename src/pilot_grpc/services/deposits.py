"""Deposits: what arrives at the vaults' addresses, found by reading their histories on chain.

One question tells of a hundred vaults whether their USDC has moved; the histories of those
that it has are read, every signature from where the last reading ended, and a little before,
because nodes leave out rows and order them differently. How far a history was read is noted
only when all before is known. A transaction that is final is looked at once, and what it
moved is written down with the event that it belongs to, in the same transaction.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from pilot_grpc import errors
from pilot_grpc.db import deposits as deposits_db
from pilot_grpc.db import transfers as transfers_db
from pilot_grpc.db.connection import Database
from pilot_grpc.db.deposits import Watch
from pilot_grpc.db.transfers import Signed
from pilot_grpc.domain.book import Movement
from pilot_grpc.domain.ids import EventId, VaultId
from pilot_grpc.domain.ledger import (
    AMOUNT_MAX,
    ConfirmTransfer,
    Event,
    EventKind,
    EventStatus,
    RecordDeposit,
    UndoDeposit,
)
from pilot_grpc.services.chain import Chain, Complaints
from pilot_grpc.services.lanes import Lanes
from pilot_grpc.solana import history
from pilot_grpc.solana.answers import TOKEN_PROGRAM, Account, Commitment, SignatureRow
from pilot_grpc.solana.faults import RpcError
from pilot_grpc.solana.rpc import ACCOUNTS_MAX

T = TypeVar("T")

log = logging.getLogger(__name__)

# How often a vault's turn comes, in polls: of a hundred vaults, one question each time.
POLLS_PER_WATCH: Final = 2
WATCHES_MAX: Final = ACCOUNTS_MAX
WATCH_TURNS_MAX: Final = 1_000
# Transactions of one history that are asked for at the same time.
AT_ONCE_MAX: Final = 4
# A history that takes longer is read on while others have their turn.
READING_SECONDS: Final = 1.0
READINGS_MAX: Final = 100
# After so many transactions that cannot be taken into the ledger, a reading leaves the rest.
LEFT_MAX: Final = 8
LEFT_REMEMBERED_MAX: Final = 10_000
# A history is read at least so often, whether anything seems to have moved or not.
IDLE_SCAN: Final = timedelta(minutes=10)
# About a minute: rows that a node had left out are found so much later.
OVERLAP_SLOTS: Final = 150
# A transaction's blockhash is good for so many blocks.
BLOCKHASH_BLOCKS: Final = 150


@dataclass(slots=True)
class _Reading:
    """One reading of a vault's history: what is final up to a slot, and what it has shown.

    `pending` are the signatures of deposits that are shown already, `shown` those of all that
    have not failed. `open_slots` are those of transactions that are final, and yet not to be
    had, `taken_slot` is that of the newest one that was, and `left` counts what could not be
    taken into the ledger.
    """

    vault_id: VaultId
    account: str
    slot: int
    pending: Collection[str | None]
    shown: set[str] = field(default_factory=set)
    newest_slot: int = 0
    taken_slot: int = 0
    sighted: int = 0
    open_slots: list[int] = field(default_factory=list)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE_MAX))
    left: int = 0


class Deposits:
    """Finds what moves the vaults' USDC on chain."""

    def __init__(self, database: Database, lanes: Lanes, chain: Chain, *, poll: timedelta) -> None:
        """Take how often the chain is asked."""
        self._database = database
        self._lanes = lanes
        self._chain = chain
        self._poll = poll
        self._readings: dict[VaultId, asyncio.Task[None]] = {}
        self._complain = Complaints(log)
        # Pending deposits that the chain no longer shows, and the height after which they are
        # gone for good.
        self._missing: dict[EventId, int] = {}
        # Transactions that could not be taken into the ledger.
        self._left: set[str] = set()

    @property
    def watch_seconds(self) -> float:
        """How often `watch` is due."""
        return self._poll.total_seconds()

    async def begin(self) -> None:
        """Begin to look after vaults that nobody looks after yet."""
        async with self._database.transaction() as conn:
            await deposits_db.insert_missing_scans(conn)

    async def watch(self) -> None:
        """Look at those vaults whose turn it is, and read the histories of those that moved."""
        try:
            for _ in range(WATCH_TURNS_MAX):
                if await self._watch_some() < WATCHES_MAX:
                    return
        except RpcError as fault:
            self._complain("deposits are not looked for: %s", fault)

    async def _watch_some(self) -> int:
        async with self._database.transaction() as conn:
            interval = self._poll * POLLS_PER_WATCH
            watches = await deposits_db.take_watches(conn, interval, WATCHES_MAX)
        if not watches:
            return 0
        accounts = [self._chain.account_of(watch.address) for watch in watches]
        seen = await self._chain.rpc.multiple_accounts(accounts, Commitment.CONFIRMED)
        amounts = [self._amount(account) for account in seen.value]
        begun = [
            await self._begin_reading(watch, amount)
            for watch, amount in zip(watches, amounts, strict=True)
            if (watch.is_scan_due or watch.watched_amount != amount)
            and watch.vault_id not in self._readings
        ]
        if begun:
            await asyncio.wait(begun, timeout=READING_SECONDS)
        return len(watches)

    async def _begin_reading(self, watch: Watch, amount: int) -> asyncio.Task[None]:
        """Begin to read a history, once there are not too many that are read."""
        while len(self._readings) >= READINGS_MAX:
            await asyncio.wait(self._readings.values(), return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._scan_or_log(watch, amount))
        self._readings[watch.vault_id] = task
        task.add_done_callback(lambda _: self._readings.pop(watch.vault_id, None))
        return task

    async def close(self) -> None:
        """Stop reading; what was not read to its end is read again."""
        readings = [*self._readings.values()]
        for task in readings:
            task.cancel()
        await asyncio.gather(*readings, return_exceptions=True)

    def _amount(self, account: Account | None) -> int:
        token = account.token if account is not None else None
        if token is None or (token.mint, token.program) != (self._chain.usdc_mint, TOKEN_PROGRAM):
            return 0
        return token.amount

    async def _scan_or_log(self, watch: Watch, amount: int) -> None:
        """Read one history; what goes wrong with it delays no other."""
        try:
            await self.scan(watch, amount)
        except RpcError as fault:
            self._complain("histories are not read, as that of %s: %s", watch.vault_id, fault)
        except errors.PilotError as error:
            log.warning("the history of vault %s was not read: %s", watch.vault_id, error.message)
        except Exception:
            log.exception("the history of vault %s was not read", watch.vault_id)

    async def scan(
        self,
        watch: Watch,
        amount: int,
        *,
        min_slot: int = 0,
        from_slot: int | None = None,
    ) -> int:
        """Read a vault's history, and return the finalized slot up to which all is known.

        It is read up to `min_slot` at least, from `from_slot` on, which is a little before
        where the last reading ended. `amount` is what the account was seen to hold before.
        What cannot be taken into the ledger now keeps nothing else waiting, but for the slot.

        Raises RpcError, and DatabaseUnavailable or Overloaded.
        """
        rpc, account = self._chain.rpc, self._chain.account_of(watch.address)
        slot = await rpc.slot(min_context_slot=max(min_slot, watch.scanned_slot))
        floor = max(0, watch.scanned_slot - OVERLAP_SLOTS) if from_slot is None else from_slot
        async with self._database.transaction() as conn:
            pending = await deposits_db.select_pending_deposits(conn, watch.vault_id)
        reading = _Reading(watch.vault_id, account, slot, {each.tx_hash for each in pending})
        parts = history.parts_since(
            rpc, account, floor, commitment=Commitment.CONFIRMED, min_context_slot=slot
        )
        async for rows in parts:
            await self._take(reading, rows)
        await self._undo_missing(reading, pending)
        known = min([slot, *(open_slot - 1 for open_slot in reading.open_slots)])
        # A node can know what an account holds, and not yet, why.
        is_new = amount != (watch.watched_amount or 0)
        is_late = is_new and reading.newest_slot <= watch.scanned_slot
        waits = bool(reading.open_slots or reading.sighted or pending)
        async with self._database.transaction() as conn:
            await deposits_db.update_scan(
                conn,
                watch.vault_id,
                # Not further than the history has shown: a node that names a slot that will
                # not be for years would blind the vault until then.
                max(min(known, reading.taken_slot), 0),
                None if is_late else amount,
                self._poll if waits or is_late else IDLE_SCAN,
            )
        return known

    async def _take(self, reading: _Reading, rows: Sequence[SignatureRow]) -> None:
        """Take a part of a history into the ledger: what is final, and what is only seen."""
        reading.shown |= {row.signature for row in rows if row.err is None}
        reading.newest_slot = max(reading.newest_slot, *(row.slot for row in rows), 0)
        sighted = [row for row in rows if row.slot > reading.slot]
        reading.sighted += len(sighted)
        # Those that failed moved nothing, and some servers list what never landed among them.
        final = [row for row in rows if row.slot <= reading.slot and row.err is None]
        left = await self._settle_all(reading, [row.signature for row in final])
        reading.open_slots += [row.slot for row in final if row.signature in left]
        known = [r.slot for r in rows if r.slot <= reading.slot and r.signature not in left]
        reading.taken_slot = max(reading.taken_slot, *known, 0)
        new = [row for row in sighted if row.err is None and row.signature not in reading.pending]
        await self._sight_all(reading, new)

    # What is final.

    async def _settle_all(self, reading: _Reading, signatures: Sequence[str]) -> set[str]:
        """Take final transactions into the ledger; return those that are left for later."""
        if not signatures:
            return set()
        async with self._database.transaction() as conn:
            known = await deposits_db.select_known(conn, reading.vault_id, signatures)
            ours = await transfers_db.select_signed(conn, signatures)
        new = [signature for signature in signatures if signature not in known]
        # What was left before comes last, or it would be the only thing that is ever tried.
        new.sort(key=self._left.__contains__)
        settled = await _all(
            self._unless_left(reading, each, partial(self._settle, reading, each, ours.get(each)))
            for each in new
        )
        return {signature for signature, done in zip(new, settled, strict=True) if not done}

    async def _unless_left(
        self, reading: _Reading, signature: str, take: Callable[[], Awaitable[bool]]
    ) -> bool:
        """Take one transaction, or leave it for later: it keeps no other waiting."""
        try:
            done = await take()
        except RpcError as fault:
            self._complain("transactions are left for later, as %s: %s", signature, fault)
        except errors.PilotError as error:
            self._complain("transactions are left for later, as %s: %s", signature, error.message)
        else:
            if done:
                self._left.discard(signature)
            return done
        reading.left += 1
        if len(self._left) < LEFT_REMEMBERED_MAX:
            self._left.add(signature)
        return False

    async def _settle(self, reading: _Reading, signature: str, ours: Signed | None) -> bool:
        """Take one final transaction; say whether it was to be had."""
        vault_id = reading.vault_id
        moved = await self._movement(reading, signature, Commitment.FINALIZED)
        if moved is None:
            return False
        if moved.delta > 0:
            taken = await self._deposit(vault_id, signature, moved.delta, moved.slot, ours)
        else:
            taken = moved.delta < 0 and await self._outflow(vault_id, moved.slot, ours)
        if not taken:
            await self._note(Movement(vault_id, signature, moved.slot, moved.delta, None))
        return True

    async def _movement(
        self, reading: _Reading, signature: str, commitment: Commitment
    ) -> history.Movement | None:
        """Ask what a transaction moved; None when it is not to be had, or not asked for now."""
        async with reading.slots:
            if reading.left >= LEFT_MAX:
                return None
            return await history.movement(
                self._chain.rpc,
                signature,
                reading.account,
                self._chain.usdc_mint,
                commitment=commitment,
                counts=commitment is self._chain.commitment,
            )

    async def _deposit(
        self, vault_id: VaultId, signature: str, amount: int, slot: int | None, ours: Signed | None
    ) -> bool:
        """Record a deposit, final at a slot or only seen; say whether the ledger has it."""
        if amount > AMOUNT_MAX:
            log.error("vault %s has received more at once than an event can be", vault_id)
            return False
        if _is_outflow(ours, vault_id):
            ours = None
        event = await self._lanes.decide(
            RecordDeposit(
                vault_id=vault_id,
                amount=amount,
                tx_hash=signature,
                landed_slot=slot,
                event_id=ours and ours.counterpart_event_id,
                counterpart_event_id=ours and ours.event_id,
            )
        )
        return event.kind is EventKind.DEPOSIT and event.tx_hash == signature

    async def _outflow(self, vault_id: VaultId, slot: int, ours: Signed | None) -> bool:
        """Confirm a payment of Pilot's own; say whether an outflow was one."""
        if ours is None or not _is_outflow(ours, vault_id):
            return False
        event = await self._lanes.decide(
            ConfirmTransfer(vault_id, ours.event_id, ours.signature, slot)
        )
        return event.status is EventStatus.CONFIRMED and event.tx_hash == ours.signature

    async def _note(self, movement: Movement) -> None:
        """Write down a final transaction that the ledger has no event for."""
        async with self._database.transaction() as conn:
            await deposits_db.insert_movements(conn, [movement])
            if movement.delta:
                await deposits_db.hurry_reconciliation(conn, movement.vault_id)
        if movement.delta:
            log.error(
                "vault %s: %d minor units moved on chain with %s, which is not Pilot's",
                *(movement.vault_id, movement.delta, movement.signature),
            )

    # What is seen.

    async def _sight_all(self, reading: _Reading, rows: Sequence[SignatureRow]) -> None:
        signatures = [row.signature for row in rows]
        if not signatures:
            return
        async with self._database.transaction() as conn:
            known = await deposits_db.select_known(conn, reading.vault_id, signatures)
            ours = await transfers_db.select_signed(conn, signatures)
        await _all(
            self._unless_left(reading, each, partial(self._sight, reading, each, ours.get(each)))
            for each in signatures
            if each not in known and not _is_outflow(ours.get(each), reading.vault_id)
        )

    async def _sight(self, reading: _Reading, signature: str, ours: Signed | None) -> bool:
        """Show a deposit before it is final; it counts already where that is configured."""
        moved = await self._movement(reading, signature, Commitment.CONFIRMED)
        if moved is None or moved.delta <= 0:
            return False
        counts = self._chain.commitment is Commitment.CONFIRMED
        slot = moved.slot if counts else None
        return await self._deposit(reading.vault_id, signature, moved.delta, slot, ours)

    # What was undone.

    async def _undo_missing(self, reading: _Reading, pending: Sequence[Event]) -> None:
        """Fail pending deposits that a fork has undone.

        A transaction that was undone can come back as long as its blockhash is good, so it is
        given up only when that is over, and nobody knows it, or it has failed.
        """
        for deposit in pending:
            if deposit.tx_hash is None or deposit.tx_hash in reading.shown:
                self._missing.pop(deposit.id, None)
            else:
                giving_up = partial(self._give_up, reading, deposit, deposit.tx_hash)
                await self._unless_left(reading, deposit.tx_hash, giving_up)

    async def _give_up(self, reading: _Reading, deposit: Event, tx_hash: str) -> bool:
        """Find out what has become of a deposit, when it is time; say whether it was."""
        rpc = self._chain.rpc
        last_height = self._missing.get(deposit.id)
        if last_height is None:
            height = await rpc.block_height(Commitment.PROCESSED)
            self._missing[deposit.id] = height + BLOCKHASH_BLOCKS
            return False
        if await rpc.block_height() <= last_height:
            return False
        fate = await rpc.fate(tx_hash, last_height)
        final = fate.status if fate.status is not None and fate.status.finalized else None
        if fate.expired or (final is not None and final.err is not None):
            log.warning("deposit %s was undone on chain", deposit.id)
            self._missing.pop(deposit.id, None)
            await self._lanes.decide(UndoDeposit(deposit.vault_id, deposit.id))
        elif final is not None:
            # It is only the history that does not show it.
            await self._settle_all(reading, [tx_hash])
        return True


async def _all(doing: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all of them, also when one fails: nothing goes on behind the caller's back."""
    done = await asyncio.gather(*doing, return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in done if not isinstance(outcome, BaseException)]


def _is_outflow(ours: Signed | None, vault_id: VaultId) -> bool:
    """Say whether a transaction is a payment of this vault."""
    return ours is not None and ours.vault_id == vault_id
