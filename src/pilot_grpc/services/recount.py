"""VerifyLedger: recounts a vault from its rows, in pages that fit a deadline.

Every page reads one snapshot. What came before a page is history that never changes, so
pages that are read at different times still add up: first the changes in their order
and the vault that they lead to, then the events, then the counters of the agents. Where
changes were trimmed, before or between two pages, the recount goes on from the checkpoint.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from pilot_grpc import errors
from pilot_grpc.db import budgets as budgets_db
from pilot_grpc.db import ledger as ledger_db
from pilot_grpc.db import recount as recount_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.connection import Connection, Database
from pilot_grpc.domain import recount
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.budgets import day_bounds, month_bounds
from pilot_grpc.domain.ids import AgentId, VaultId
from pilot_grpc.domain.recount import Discrepancy, Recorded
from pilot_grpc.domain.vaults import Vault
from pilot_grpc.services.turns import Turns

# Counting an agent anew reads all its events of the month.
_AGENTS_PER_PAGE_MAX: Final = 100

# Rows that are recounted before spends get their turn on the event loop.
_ROWS_AT_ONCE_MAX: Final = 200


class Phase(StrEnum):
    """Which rows are recounted."""

    CHANGES = "changes"
    EVENTS = "events"
    AGENTS = "agents"


class Place(NamedTuple):
    """Where a recount goes on: after a revision, an event's time and id, or an agent."""

    phase: Phase = Phase.CHANGES
    revision: int = 0
    moment: datetime | None = None
    row_id: str = ""


class AuditPage(NamedTuple):
    """What a page of the recount found, and where the next one begins."""

    discrepancy: Discrepancy | None
    verified: int
    next_place: Place | None


@dataclass(frozen=True, slots=True)
class Auditor:
    """Recounts vaults."""

    database: Database
    turns: Turns

    async def verify(
        self, caller: Caller, vault_id: VaultId, place: Place, limit: int
    ) -> AuditPage:
        """Recount one page. Raises NotFound."""
        async with self.turns.take(caller.user_id), self.database.snapshot() as conn:
            vault = await vaults_db.select_vault(conn, vault_id, caller.user_id)
            if vault is None:
                raise errors.NotFound(resource="vault", id=vault_id)
            page = await _verify_phase(conn, vault, place, limit)
            while _is_room_after(page, place, limit):
                place = page.next_place or place
                more = await _verify_phase(conn, vault, place, limit - page.verified)
                page = more._replace(verified=page.verified + more.verified)
            return page


def _is_room_after(page: AuditPage, place: Place, limit: int) -> bool:
    """Say whether a phase ended before its page was full, so that the next can begin in it."""
    if page.next_place is None or page.verified >= limit:
        return False
    return page.next_place.phase is not place.phase


async def _verify_phase(conn: Connection, vault: Vault, place: Place, limit: int) -> AuditPage:
    match place.phase:
        case Phase.CHANGES:
            return await _verify_changes(conn, vault, place.revision, limit)
        case Phase.EVENTS:
            return await _verify_events(conn, vault, place, limit)
        case Phase.AGENTS:
            return await _verify_agents(conn, vault, AgentId(place.row_id), limit)


async def _verify_changes(conn: Connection, vault: Vault, done: int, limit: int) -> AuditPage:
    running = await recount_db.select_checkpoint(conn, vault.id)
    trimmed = running.revision
    wrong = recount.check_checkpoint(running, vault)
    if wrong is not None:
        return AuditPage(wrong, 0, None)
    if done > trimmed:
        before = await recount_db.select_changes_at(conn, vault.id, [done])
        if done not in before:
            row = f"{vault.id} {done}"
            gone = Discrepancy("event_changes", row, "revision", str(done), "no such row")
            return AuditPage(gone, 0, None)
        running = recount.after(before[done])
    # After what is done, not after the checkpoint: a change before it should be gone.
    changes = await recount_db.select_changes_after(conn, vault.id, done, limit)
    events = await ledger_db.select_events_by_id(
        conn, {change.event_id for change in changes if change.event_id is not None}
    )
    earlier = {c.previous_revision for c in changes if c.previous_revision is not None}
    previous = await recount_db.select_changes_at(conn, vault.id, earlier)
    for count, change in enumerate(changes):
        recorded = Recorded(
            change,
            None if change.event_id is None else events.get(change.event_id),
            previous.get(change.previous_revision or 0),
            trimmed,
        )
        wrong = recount.check_change(running, recorded)
        if wrong is not None:
            return AuditPage(wrong, count, None)
        running = recount.after(change)
        if not count % _ROWS_AT_ONCE_MAX:
            await asyncio.sleep(0)
    if len(changes) == limit:
        return AuditPage(None, limit, Place(Phase.CHANGES, running.revision))
    wrong = recount.check_vault(running, vault)
    if wrong is None:
        last_drift = await recount_db.select_last_drift(conn, vault.id)
        wrong = recount.check_drift(vault, last_drift, trimmed)
    return AuditPage(wrong, len(changes) + 1, None if wrong else Place(Phase.EVENTS))


async def _verify_events(conn: Connection, vault: Vault, place: Place, limit: int) -> AuditPage:
    after = None if place.moment is None else (place.moment, place.row_id)
    events = await recount_db.select_events_after(conn, vault.id, after, limit)
    last = await recount_db.select_changes_at(conn, vault.id, {e.revision for e in events})
    refunded = await ledger_db.select_refunded(conn, [event.id for event in events])
    trimmed = (await recount_db.select_checkpoint(conn, vault.id)).revision
    for count, event in enumerate(events):
        wrong = recount.check_event(
            event, last.get(event.revision), refunded.get(event.id, 0), trimmed
        )
        if wrong is not None:
            return AuditPage(wrong, count, None)
        if not count % _ROWS_AT_ONCE_MAX:
            await asyncio.sleep(0)
    if len(events) == limit:
        end = Place(Phase.EVENTS, 0, events[-1].created_at, events[-1].id)
        return AuditPage(None, limit, end)
    return AuditPage(None, len(events), Place(Phase.AGENTS))


async def _verify_agents(conn: Connection, vault: Vault, after: AgentId, limit: int) -> AuditPage:
    limit = min(limit, _AGENTS_PER_PAGE_MAX)
    agents = await recount_db.select_counters(conn, vault.id, after, limit)
    for count, agent in enumerate(agents):
        wrong = recount.check_counters(
            "agents",
            agent.agent_id,
            {"open_holds": agent.counted_open_holds},
            {"open_holds": agent.open_holds},
        )
        if wrong is None and agent.rule is not None:
            opened = agent.rule.last_reset_at
            expected = await budgets_db.recount_windows(
                conn, agent.agent_id, day_bounds(opened)[0], month_bounds(opened)
            )
            found = {name: getattr(agent.rule, name) for name in expected}
            wrong = recount.check_window(agent.agent_id, opened, vault) or recount.check_counters(
                "agent_budget_rules", agent.agent_id, expected, found
            )
        if wrong is not None:
            return AuditPage(wrong, count, None)
    if len(agents) == limit:
        return AuditPage(None, limit, Place(Phase.AGENTS, row_id=agents[-1].agent_id))
    return AuditPage(None, len(agents), None)
