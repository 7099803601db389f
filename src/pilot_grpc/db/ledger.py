"""The statements of events, their changes, and the requests that they answered.

Rows that a batch adds are copied: for hundreds at a time that is faster than INSERT, on
both sides.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pilot_grpc.db.connection import Connection, Record
from pilot_grpc.domain.book import Answer
from pilot_grpc.domain.ids import AgentId, EventId, UserId, VaultId
from pilot_grpc.domain.ledger import (
    Change,
    Event,
    EventFilter,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
    SpendGroup,
    SpendSummary,
    decode_decline,
    encode_decline,
)
from pilot_grpc.domain.requests import Request

_ANSWER_COLUMNS: Final = (
    *("vault_id", "scope_id", "request_id", "rpc", "fingerprint", "event_id", "revision"),
    *("status", "amount", "failure_reason", "tx_hash", "answered_at"),
)

# Only what may change while an event is pending.
UPDATE_EVENTS: Final = """
UPDATE events
   SET status = new.status,
       amount = new.amount,
       failure_reason = new.failure_reason,
       tx_hash = new.tx_hash,
       updated_at = new.updated_at,
       revision = new.revision
  FROM unnest(
           $1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[],
           $6::timestamptz[], $7::bigint[]
       ) AS new (id, status, amount, failure_reason, tx_hash, updated_at, revision)
 WHERE events.id = new.id
"""

# The requests that were answered before, looked up after the vaults' locks: an answer
# that another process has just committed is seen. The event is as its answer showed it.
SELECT_ANSWERS: Final = """
SELECT requests.scope_id, requests.request_id, requests.rpc, requests.fingerprint,
       events.id, events.vault_id, events.agent_id, events.type, events.kind,
       requests.status, requests.amount, events.authorized_amount, events.expires_at,
       requests.failure_reason, events.decline, requests.tx_hash, events.metadata,
       events.provider, events.model, events.refunded_event_id, events.created_at,
       requests.answered_at AS updated_at, requests.revision,
       events.recipient, events.counterpart_event_id
  FROM unnest($1::text[], $2::text[], $3::text[]) AS asked (vault_id, scope_id, request_id)
  JOIN event_requests AS requests
    ON requests.vault_id = asked.vault_id
   AND requests.scope_id = asked.scope_id
   AND requests.request_id = asked.request_id
  JOIN events ON events.id = requests.event_id
"""

SELECT_EVENTS_BY_ID: Final = """
SELECT id, vault_id, agent_id, type, kind, status, amount, authorized_amount, expires_at,
       failure_reason, decline, tx_hash, metadata, provider, model, refunded_event_id,
       created_at, updated_at, revision, recipient, counterpart_event_id
  FROM events
 WHERE id = ANY ($1::text[])
"""

# The same number of each vault, those that wait longest first.
SELECT_OVERDUE_HOLDS: Final = """
SELECT events.id, events.vault_id, events.agent_id, events.type, events.kind,
       events.status, events.amount, events.authorized_amount, events.expires_at,
       events.failure_reason, events.decline, events.tx_hash, events.metadata,
       events.provider, events.model, events.refunded_event_id, events.created_at,
       events.updated_at, events.revision, events.recipient, events.counterpart_event_id
  FROM unnest($1::text[]) AS asked (vault_id)
 CROSS JOIN LATERAL (
           SELECT holds.id
             FROM events AS holds
            WHERE holds.status = 'pending'
              AND holds.vault_id = asked.vault_id
              AND holds.expires_at <= $2::timestamptz
            ORDER BY holds.expires_at
            LIMIT $3::integer
       ) AS overdue
  JOIN events ON events.id = overdue.id
 ORDER BY events.expires_at, events.id
"""

SELECT_OPEN_HOLDS_OF_AGENT: Final = """
SELECT id, vault_id, agent_id, type, kind, status, amount, authorized_amount, expires_at,
       failure_reason, decline, tx_hash, metadata, provider, model, refunded_event_id,
       created_at, updated_at, revision, recipient, counterpart_event_id
  FROM events
 WHERE status = 'pending'
   AND vault_id = $1::text
   AND agent_id = $2::text
   AND expires_at IS NOT NULL
 ORDER BY expires_at, id
"""

SELECT_VAULTS_WITH_OVERDUE_HOLDS: Final = """
SELECT vault_id
  FROM events
 WHERE status = 'pending'
   AND expires_at <= (SELECT clock_timestamp())
 GROUP BY vault_id
 ORDER BY min(expires_at)
 LIMIT $1::integer
"""

# A process that freezes while it copies rows would keep its locks for ever: no time-out
# of PostgreSQL ends a session that waits for the rows of a COPY.
END_FROZEN_COPIES: Final = """
SELECT count(pg_terminate_backend(pid))
  FROM pg_stat_activity
 WHERE datname = current_database()
   AND usename = current_user
   AND state = 'active'
   AND wait_event = 'ClientRead'
   AND query LIKE 'COPY "event%) FROM STDIN (FORMAT binary)%'
   AND state_change < clock_timestamp() - $1::interval
"""

SELECT_REFUNDED: Final = """
SELECT refunded_event_id, sum(amount)::bigint AS amount
  FROM events
 WHERE refunded_event_id = ANY ($1::text[])
   AND status <> 'failed'
 GROUP BY refunded_event_id
"""

SELECT_TX_HASHES: Final = """
SELECT vault_id, type, tx_hash, id
  FROM events
 WHERE tx_hash = ANY ($2::text[])
   AND vault_id = ANY ($1::text[])
   AND type IN ('funding', 'spend')
"""

# Whose event it is. None of it ever changes.
SELECT_EVENT_HOME: Final = """
SELECT events.vault_id, events.agent_id, projects.user_id
  FROM events
  JOIN vaults ON vaults.id = events.vault_id
  JOIN projects ON projects.id = vaults.project_id
 WHERE events.id = $1::text
"""

# A filter that is null allows everything. The user's vaults come first, so that nobody
# reads what is not theirs, whatever the other filters say; from each its newest events,
# by its index, and of those the newest.
SELECT_EVENTS: Final = """
SELECT events.id, events.vault_id, events.agent_id, events.type, events.kind,
       events.status, events.amount, events.authorized_amount, events.expires_at,
       events.failure_reason, events.decline, events.tx_hash, events.metadata,
       events.provider, events.model, events.refunded_event_id, events.created_at,
       events.updated_at, events.revision, events.recipient, events.counterpart_event_id
  FROM projects
  JOIN vaults ON vaults.project_id = projects.id
 CROSS JOIN LATERAL (
           SELECT events.id
             FROM events
            WHERE events.vault_id = vaults.id
              AND ($3::text IS NULL OR events.agent_id = $3::text)
              AND ($4::text[] IS NULL OR events.type = ANY ($4::text[]))
              AND ($5::text[] IS NULL OR events.kind = ANY ($5::text[]))
              AND ($6::text[] IS NULL OR events.status = ANY ($6::text[]))
              AND ($7::timestamptz IS NULL OR events.created_at >= $7::timestamptz)
              AND ($8::timestamptz IS NULL OR events.created_at < $8::timestamptz)
              AND (
                  $9::timestamptz IS NULL
                  OR (events.created_at, events.id) < ($9::timestamptz, $10::text)
              )
            ORDER BY events.created_at DESC, events.id DESC
            LIMIT $11::integer
       ) AS newest
  JOIN events ON events.id = newest.id
 WHERE projects.user_id = $1::text
   AND ($2::text IS NULL OR vaults.id = $2::text)
 ORDER BY events.created_at DESC, events.id DESC
 LIMIT $11::integer
"""

# A dimension that was not asked for, or that the spends lack, is the empty text here,
# so that groups have an order, and a page a place in it.
SUMMARIZE_SPEND: Final = """
WITH spends AS (
    SELECT CASE WHEN 'day' = ANY ($5::text[])
                THEN to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') ELSE '' END AS day,
           CASE WHEN 'agent' = ANY ($5::text[]) THEN coalesce(agent_id, '') ELSE '' END
               AS agent_id,
           CASE WHEN 'provider' = ANY ($5::text[]) THEN coalesce(provider, '') ELSE '' END
               AS provider,
           CASE WHEN 'model' = ANY ($5::text[]) THEN coalesce(model, '') ELSE '' END AS model,
           amount, status, decline
      FROM events
     WHERE vault_id = $1::text
       AND type = 'spend'
       AND ($2::text IS NULL OR agent_id = $2::text)
       AND created_at >= $3::timestamptz
       AND created_at < $4::timestamptz
)
SELECT day, agent_id, provider, model,
       coalesce(sum(-amount) FILTER (WHERE status = 'confirmed'), 0)::bigint
           AS confirmed_amount,
       coalesce(sum(-amount) FILTER (WHERE status = 'pending'), 0)::bigint
           AS pending_amount,
       count(*) FILTER (WHERE status = 'confirmed') AS confirmed_count,
       count(*) FILTER (WHERE status = 'pending') AS pending_count,
       count(*) FILTER (WHERE status = 'failed' AND decline IS NULL) AS failed_count,
       count(*) FILTER (WHERE decline IS NOT NULL) AS declined_count
  FROM spends
 WHERE $6::text IS NULL
    OR (day, agent_id, provider, model) > ($6::text, $7::text, $8::text, $9::text)
 GROUP BY day, agent_id, provider, model
 ORDER BY day, agent_id, provider, model
 LIMIT $10::integer
"""


class EventHome(NamedTuple):
    """Whose event it is, for good."""

    vault_id: VaultId
    agent_id: AgentId | None
    user_id: UserId


async def insert_events(conn: Connection, events: Collection[Event]) -> None:
    """Add events; their vaults must be locked, and their changes are due."""
    decline = Event._fields.index("decline")
    records = [
        (*event[:decline], event.decline and encode_decline(event.decline), *event[decline + 1 :])
        for event in events
    ]
    await conn.copy_records_to_table("events", records=records, columns=Event._fields)


async def update_events(conn: Connection, events: Collection[Event]) -> None:
    """Write what changed of pending events; their vaults must be locked."""
    rows = [
        (e.id, e.status, e.amount, e.failure_reason, e.tx_hash, e.updated_at, e.revision)
        for e in events
    ]
    await conn.execute(UPDATE_EVENTS, *map(list, zip(*rows, strict=True)))


async def insert_changes(conn: Connection, changes: Collection[Change]) -> None:
    """Add numbered changes; their vaults must be locked."""
    await conn.copy_records_to_table("event_changes", records=changes, columns=Change._fields)


async def insert_answers(conn: Connection, answers: Collection[Answer]) -> None:
    """Keep what was answered; the vaults must be locked."""
    rows = [
        (
            a.event.vault_id,
            a.request.scope_id,
            a.request.request_id,
            a.request.rpc,
            a.request.fingerprint,
            a.event.id,
            a.event.revision,
            a.event.status,
            a.event.amount,
            a.event.failure_reason,
            a.event.tx_hash,
            a.event.updated_at,
        )
        for a in answers
    ]
    await conn.copy_records_to_table("event_requests", records=rows, columns=_ANSWER_COLUMNS)


async def select_answers(
    conn: Connection, keys: Collection[tuple[VaultId, str, str]]
) -> dict[tuple[str, str], Answer]:
    """Find the requests that were answered, by vault, scope and request_id."""
    rows = await conn.fetch(SELECT_ANSWERS, *map(list, zip(*keys, strict=True)))
    answers = (
        Answer(
            Request(row["scope_id"], row["request_id"], row["rpc"], row["fingerprint"]),
            event_of(row),
        )
        for row in rows
    )
    return {(a.request.scope_id, a.request.request_id): a for a in answers}


async def select_events_by_id(conn: Connection, ids: Collection[EventId]) -> dict[EventId, Event]:
    """Read events; to decide on them, their vaults must be locked."""
    return {row["id"]: event_of(row) for row in await conn.fetch(SELECT_EVENTS_BY_ID, list(ids))}


async def select_overdue_holds(
    conn: Connection, vault_ids: Collection[VaultId], now: datetime, limit: int
) -> list[Event]:
    """Read up to `limit` holds of each vault that are overdue."""
    rows = await conn.fetch(SELECT_OVERDUE_HOLDS, list(vault_ids), now, limit)
    return [event_of(row) for row in rows]


async def select_open_holds_of_agent(
    conn: Connection, vault_id: VaultId, agent_id: AgentId
) -> list[Event]:
    """Read an agent's open holds; the vault must be locked."""
    rows = await conn.fetch(SELECT_OPEN_HOLDS_OF_AGENT, vault_id, agent_id)
    return [event_of(row) for row in rows]


async def select_vaults_with_overdue_holds(conn: Connection, limit: int) -> list[VaultId]:
    """Find vaults whose holds the sweeper should settle."""
    return [row["vault_id"] for row in await conn.fetch(SELECT_VAULTS_WITH_OVERDUE_HOLDS, limit)]


async def end_frozen_copies(conn: Connection, after: timedelta) -> int:
    """End the sessions that have waited too long for the rows of a batch; say how many."""
    count: int = await conn.fetchval(END_FROZEN_COPIES, after)
    return count


async def select_refunded(conn: Connection, ids: Collection[EventId]) -> dict[EventId, int]:
    """Sum what was refunded of spends; their vaults must be locked."""
    rows = await conn.fetch(SELECT_REFUNDED, list(ids))
    return {row["refunded_event_id"]: row["amount"] for row in rows}


async def select_tx_hashes(
    conn: Connection, vault_ids: Collection[VaultId], tx_hashes: Collection[str]
) -> dict[tuple[VaultId, EventType, str], EventId]:
    """Find the events of signatures; their vaults must be locked."""
    rows = await conn.fetch(SELECT_TX_HASHES, list(vault_ids), list(tx_hashes))
    return {(row["vault_id"], EventType(row["type"]), row["tx_hash"]): row["id"] for row in rows}


async def select_event_home(conn: Connection, event_id: EventId) -> EventHome | None:
    """Say whose event it is."""
    row = await conn.fetchrow(SELECT_EVENT_HOME, event_id)
    return None if row is None else EventHome(**row)


async def select_events(
    conn: Connection,
    user_id: UserId,
    wanted: EventFilter,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Event]:
    """Read a user's events, newest first, after a place in that order."""
    rows = await conn.fetch(SELECT_EVENTS, user_id, *wanted, *(after or (None, None)), limit)
    return [event_of(row) for row in rows]


async def summarize_spend(
    conn: Connection,
    vault_id: VaultId,
    agent_id: AgentId | None,
    period: tuple[datetime, datetime],
    group_by: Collection[str],
    after: SpendGroup | None,
    limit: int,
) -> list[SpendSummary]:
    """Sum a vault's spends by dimensions out of day, agent, provider and model.

    Groups are ordered by these four, after a place in that order.
    """
    rows = await conn.fetch(
        SUMMARIZE_SPEND,
        vault_id,
        agent_id,
        *period,
        list(group_by),
        *(after or (None,) * 4),
        limit,
    )
    return [SpendSummary(SpendGroup(*row[:4]), *row[4:]) for row in rows]


def event_of(row: Record) -> Event:
    """Make an event of a row that has its columns."""
    reason, decline = row["failure_reason"], row["decline"]
    return Event(
        id=row["id"],
        vault_id=row["vault_id"],
        agent_id=row["agent_id"],
        type=EventType(row["type"]),
        kind=EventKind(row["kind"]),
        status=EventStatus(row["status"]),
        amount=row["amount"],
        authorized_amount=row["authorized_amount"],
        expires_at=row["expires_at"],
        failure_reason=FailureReason(reason) if reason else None,
        decline=decode_decline(decline) if decline else None,
        tx_hash=row["tx_hash"],
        metadata=row["metadata"],
        provider=row["provider"],
        model=row["model"],
        refunded_event_id=row["refunded_event_id"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        revision=row["revision"],
        recipient=row["recipient"],
        counterpart_event_id=row["counterpart_event_id"],
    )
