"""Fills a book under the vaults' locks, and writes it back.

The order of statements is the order of locks: vaults first, in the order of their ids.
Everything else that a decision reads changes only under a vault's lock, so it is read
after it, and so is the clock.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from pilot_grpc.db import agents as agents_db
from pilot_grpc.db import budgets as budgets_db
from pilot_grpc.db import deposits as deposits_db
from pilot_grpc.db import ledger as ledger_db
from pilot_grpc.db import transfers as transfers_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.clock import Clock
from pilot_grpc.db.connection import Connection, plan_foreign_keys_once
from pilot_grpc.domain.book import Book
from pilot_grpc.domain.ids import EventId, VaultId
from pilot_grpc.domain.ledger import (
    AcknowledgeDrift,
    AuthorizeSpend,
    CaptureSpend,
    Command,
    ConfirmFunding,
    ConfirmTransfer,
    Event,
    EventStatus,
    EventType,
    FailFunding,
    FailTransfer,
    RecordDeposit,
    RecordFunding,
    Refund,
    ReleaseSpend,
    Settle,
    SightTransfer,
    Spend,
    UndoDeposit,
    Withdraw,
)

log = logging.getLogger(__name__)

# A vault whose last change lies further ahead than this stands still until then.
CLOCK_STEP_MAX: Final = timedelta(minutes=1)

# Holds of one vault that one batch settles before it decides.
OVERDUE_PER_BATCH_MAX: Final = 1_000

_SPENDS: Final = (Spend, AuthorizeSpend)
_NAMES_EVENT: Final = (
    *(CaptureSpend, ReleaseSpend, Refund, ConfirmFunding, FailFunding),
    *(UndoDeposit, SightTransfer, ConfirmTransfer, FailTransfer),
)


@dataclass(frozen=True, slots=True)
class Books:
    """What every book needs: the clock, new ids, the cap on an agent's open holds.

    Without `pays_on_chain` whoever names a recipient is refused.
    """

    clock: Clock
    new_id: Callable[[], str]
    open_holds_max: int
    allow_credits: bool = True
    pays_on_chain: bool = False

    async def open(
        self,
        conn: Connection,
        vault_ids: Iterable[VaultId],
        commands: Sequence[Command] = (),
        *,
        wait: bool = True,
    ) -> Book:
        """Lock vaults, read what the commands need, and settle the holds that are overdue.

        Without `wait`, vaults that are locked by somebody else are left out, and so are
        the commands on them.
        """
        lock = vaults_db.lock_vaults if wait else vaults_db.lock_free_vaults
        vaults = await lock(conn, set(vault_ids))
        commands = [command for command in commands if command.vault_id in vaults]
        requests = [(c.vault_id, c.request) for c in commands if c.request is not None]
        answers = {}
        if requests:
            answers = await ledger_db.select_answers(
                conn, [(vault_id, r.scope_id, r.request_id) for vault_id, r in requests]
            )
        named = {c.event_id for c in commands if isinstance(c, _NAMES_EVENT)}
        events = await ledger_db.select_events_by_id(conn, named) if named else {}
        clock = await self.clock(conn)
        for vault in vaults.values():
            if vault.last_change_at - clock > CLOCK_STEP_MAX:
                log.error(
                    "the database's clock is behind vault %s by %s",
                    vault.id,
                    vault.last_change_at - clock,
                )
        book = Book(
            clock=clock,
            vaults=vaults,
            spenders={},
            new_event_id=lambda: EventId(self.new_id()),
            open_holds_max=self.open_holds_max,
            allow_credits=self.allow_credits,
            pays_on_chain=self.pays_on_chain,
            events=events,
            answers=answers,
        )
        refunded = {c.event_id for c in commands if isinstance(c, Refund)}
        if refunded:
            book.refunded = await ledger_db.select_refunded(conn, refunded)
        hashes = {
            c.tx_hash
            for c in commands
            if isinstance(c, RecordFunding | RecordDeposit) and c.tx_hash
        }
        if hashes:
            book.tx_hashes = await ledger_db.select_tx_hashes(conn, vaults, hashes)
        await _read_payments(conn, book, commands)
        await self._settle_overdue(conn, book, commands)
        return book

    async def _settle_overdue(
        self, conn: Connection, book: Book, commands: Sequence[Command]
    ) -> None:
        with_holds = [vault for vault in book.vaults.values() if vault.held]
        overdue: list[Event] = []
        if with_holds:
            latest = max(map(book.now, with_holds))
            holds = await ledger_db.select_overdue_holds(
                conn, [v.id for v in with_holds], latest, OVERDUE_PER_BATCH_MAX
            )
            found = Counter(hold.vault_id for hold in holds)
            book.more_overdue = {v for v, n in found.items() if n == OVERDUE_PER_BATCH_MAX}
            overdue = [
                book.events.setdefault(hold.id, hold)
                for hold in holds
                if hold.expires_at and hold.expires_at <= book.now(book.vaults[hold.vault_id])
            ]
        agent_ids = {c.agent_id for c in commands if isinstance(c, _SPENDS)}
        agent_ids |= {e.agent_id for e in book.events.values() if e.agent_id}
        if agent_ids:
            book.spenders = await agents_db.select_spenders(conn, agent_ids)
        book.expire(overdue)

    async def write(self, conn: Connection, book: Book) -> None:
        """Write what a book decided; it becomes true with the commit."""
        if not book.changes:
            return
        touched = {change.vault_id for change in book.changes}
        await vaults_db.update_vaults(conn, [book.vaults[vault_id] for vault_id in touched])
        events = [*book.created.values(), *book.changed.values()]
        agent_ids = {e.agent_id for e in events if e.agent_id and e.type is EventType.SPEND}
        spenders = [book.spenders[a] for a in agent_ids if a in book.spenders]
        rules = [spender.rule for spender in spenders if spender.rule is not None]
        if rules:
            await budgets_db.update_counters(conn, rules)
        if any(event.authorized_amount for event in events):
            await agents_db.update_open_holds(conn, spenders)
        if book.changed:
            await ledger_db.update_events(conn, book.changed.values())
        await plan_foreign_keys_once(conn)
        if book.created:
            await ledger_db.insert_events(conn, book.created.values())
        await ledger_db.insert_changes(conn, book.changes)
        if book.new_answers:
            await ledger_db.insert_answers(conn, book.new_answers)
        await _write_payments(conn, book)


async def _read_payments(conn: Connection, book: Book, commands: Sequence[Command]) -> None:
    """Read what only commands about payments on chain need; most batches have none."""
    promised = [c.event_id for c in commands if isinstance(c, RecordDeposit)]
    if promised:
        known = [id_ for (_, type_, _), id_ in book.tx_hashes.items() if type_ is EventType.FUNDING]
        book.in_drifts = await deposits_db.select_acknowledged(conn, book.vaults)
        ids = {*known, *(id_ for id_ in promised if id_ is not None)}
        ids |= {drift.event_id for drift in book.in_drifts.values()}
        book.events |= await ledger_db.select_events_by_id(conn, ids)
    pairs = {(c.agent_id, c.recipient) for c in commands if isinstance(c, Spend) and c.recipient}
    if pairs:
        book.listed = await agents_db.select_listed(conn, pairs)
    recipients = {recipient for _, recipient in pairs}
    recipients |= {c.recipient for c in commands if isinstance(c, Withdraw | Settle)}
    if recipients:
        book.vault_ids = await vaults_db.select_vault_ids(conn, recipients)
    told = (SightTransfer, ConfirmTransfer, FailTransfer)
    sent = {c.event_id for c in commands if isinstance(c, told)}
    if sent:
        book.signatures = await transfers_db.lock_signatures(conn, sent)
    drifting = {c.vault_id for c in commands if isinstance(c, AcknowledgeDrift)}
    if drifting:
        book.on_their_way = await transfers_db.count_pending(conn, drifting)


async def _write_payments(conn: Connection, book: Book) -> None:
    """Send new payments on their way, forget those that are decided, and note what landed."""
    begun = [(e.id, e.vault_id) for e in book.created.values() if e.is_on_its_way]
    if begun:
        await transfers_db.insert_pending(conn, begun)
    paid = [e for e in book.changed.values() if e.recipient is not None]
    decided = [e.id for e in paid if e.status is not EventStatus.PENDING]
    if decided:
        await transfers_db.delete_pending(conn, decided)
    failed = [e.id for e in paid if e.status is EventStatus.FAILED]
    if failed:
        await transfers_db.delete_accounts(conn, failed)
    if book.movements:
        await deposits_db.insert_movements(conn, book.movements)
    for drift, event_id in book.acknowledged:
        vault_id = book.events[event_id].vault_id
        await deposits_db.link_acknowledged(conn, vault_id, drift.slot, event_id)
