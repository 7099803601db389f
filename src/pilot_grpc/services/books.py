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
from pilot_grpc.db import ledger as ledger_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.clock import Clock
from pilot_grpc.db.connection import Connection, plan_foreign_keys_once
from pilot_grpc.domain.book import Book
from pilot_grpc.domain.ids import EventId, VaultId
from pilot_grpc.domain.ledger import (
    AuthorizeSpend,
    CaptureSpend,
    Command,
    ConfirmFunding,
    Event,
    EventType,
    FailFunding,
    RecordFunding,
    Refund,
    ReleaseSpend,
    Spend,
)

log = logging.getLogger(__name__)

# A vault whose last change lies further ahead than this stands still until then.
CLOCK_STEP_MAX: Final = timedelta(minutes=1)

# Holds of one vault that one batch settles before it decides.
OVERDUE_PER_BATCH_MAX: Final = 1_000

_SPENDS: Final = (Spend, AuthorizeSpend)
_NAMES_EVENT: Final = (CaptureSpend, ReleaseSpend, Refund, ConfirmFunding, FailFunding)


@dataclass(frozen=True, slots=True)
class Books:
    """What every book needs: the clock, new ids, the cap on an agent's open holds."""

    clock: Clock
    new_id: Callable[[], str]
    open_holds_max: int
    allow_credits: bool = True

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
        answers = {}
        if commands:
            answers = await ledger_db.select_answers(
                conn, [(c.vault_id, c.request.scope_id, c.request.request_id) for c in commands]
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
            events=events,
            answers=answers,
        )
        refunded = {c.event_id for c in commands if isinstance(c, Refund)}
        if refunded:
            book.refunded = await ledger_db.select_refunded(conn, refunded)
        hashes = {c.tx_hash for c in commands if isinstance(c, RecordFunding) and c.tx_hash}
        if hashes:
            book.tx_hashes = await ledger_db.select_tx_hashes(conn, vaults, hashes)
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
