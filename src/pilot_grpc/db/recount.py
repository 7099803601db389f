"""The statements of the recount: a vault's rows, a page at a time."""

from collections.abc import Collection
from datetime import datetime
from typing import Final, NamedTuple

from pilot_grpc.db.budgets import budget_rule
from pilot_grpc.db.connection import Connection, Record
from pilot_grpc.db.ledger import event_of
from pilot_grpc.domain.budgets import BudgetRule
from pilot_grpc.domain.ids import AgentId, VaultId
from pilot_grpc.domain.ledger import Change, Event, EventStatus, FailureReason
from pilot_grpc.domain.recount import Running

SELECT_CHECKPOINT: Final = """
SELECT revision, balance, chain_balance, held, digest, changed_at
  FROM change_checkpoints
 WHERE vault_id = $1::text
"""

SELECT_CHANGES_AFTER: Final = """
SELECT vault_id, revision, event_id, previous_revision, status, amount, failure_reason,
       tx_hash, balance_after, chain_balance_after, held_after, changed_at, digest, drift
  FROM event_changes
 WHERE vault_id = $1::text
   AND revision > $2::bigint
 ORDER BY revision
 LIMIT $3::integer
"""

SELECT_CHANGES_AT: Final = """
SELECT vault_id, revision, event_id, previous_revision, status, amount, failure_reason,
       tx_hash, balance_after, chain_balance_after, held_after, changed_at, digest, drift
  FROM event_changes
 WHERE vault_id = $1::text
   AND revision = ANY ($2::bigint[])
"""

# What is left to say whether the vault is stopped.
SELECT_LAST_DRIFT: Final = """
SELECT vault_id, revision, event_id, previous_revision, status, amount, failure_reason,
       tx_hash, balance_after, chain_balance_after, held_after, changed_at, digest, drift
  FROM event_changes
 WHERE vault_id = $1::text
   AND event_id IS NULL
 ORDER BY revision DESC
 LIMIT 1
"""

SELECT_EVENTS_AFTER: Final = """
SELECT id, vault_id, agent_id, type, kind, status, amount, authorized_amount, expires_at,
       failure_reason, decline, tx_hash, metadata, provider, model, refunded_event_id,
       created_at, updated_at, revision, recipient, counterpart_event_id
  FROM events
 WHERE vault_id = $1::text
   AND ($2::timestamptz IS NULL OR (created_at, id) > ($2::timestamptz, $3::text))
 ORDER BY created_at, id
 LIMIT $4::integer
"""

SELECT_COUNTERS: Final = """
SELECT agents.id AS counted_agent_id, agents.open_holds,
       (
           SELECT count(*)
             FROM events
            WHERE events.vault_id = vaults.id
              AND events.agent_id = agents.id
              AND events.status = 'pending'
              AND events.authorized_amount IS NOT NULL
       ) AS counted_open_holds,
       rules.agent_id, rules.per_tx_limit, rules.daily_limit, rules.monthly_limit,
       rules.daily_spent, rules.daily_held, rules.monthly_spent, rules.monthly_held,
       rules.last_reset_at, rules.created_at, rules.updated_at, rules.any_recipient
  FROM agents
  JOIN vaults ON vaults.project_id = agents.project_id
  LEFT JOIN agent_budget_rules AS rules ON rules.agent_id = agents.id
 WHERE vaults.id = $1::text
   AND agents.id > $2::text
 ORDER BY agents.id
 LIMIT $3::integer
"""


class Counters(NamedTuple):
    """What is counted for an agent, and how many holds of it are open."""

    agent_id: AgentId
    open_holds: int
    counted_open_holds: int
    rule: BudgetRule | None


async def select_checkpoint(conn: Connection, vault_id: VaultId) -> Running:
    """Read what a vault's trimmed changes left: nothing, if none was trimmed."""
    row = await conn.fetchrow(SELECT_CHECKPOINT, vault_id)
    return Running() if row is None else Running(**row)


async def select_changes_after(
    conn: Connection, vault_id: VaultId, revision: int, limit: int
) -> list[Change]:
    """Read a vault's changes in order, after a revision."""
    return [
        _change(row) for row in await conn.fetch(SELECT_CHANGES_AFTER, vault_id, revision, limit)
    ]


async def select_changes_at(
    conn: Connection, vault_id: VaultId, revisions: Collection[int]
) -> dict[int, Change]:
    """Read a vault's changes by their numbers."""
    rows = await conn.fetch(SELECT_CHANGES_AT, vault_id, list(revisions))
    return {row["revision"]: _change(row) for row in rows}


async def select_last_drift(conn: Connection, vault_id: VaultId) -> Change | None:
    """Read the last change of a vault's drift, if one is left."""
    row = await conn.fetchrow(SELECT_LAST_DRIFT, vault_id)
    return None if row is None else _change(row)


async def select_events_after(
    conn: Connection, vault_id: VaultId, after: tuple[datetime, str] | None, limit: int
) -> list[Event]:
    """Read a vault's events, oldest first, after a place in that order."""
    rows = await conn.fetch(SELECT_EVENTS_AFTER, vault_id, *(after or (None, None)), limit)
    return [event_of(row) for row in rows]


async def select_counters(
    conn: Connection, vault_id: VaultId, after: AgentId, limit: int
) -> list[Counters]:
    """Read what is counted for the agents of a vault, deleted ones included."""
    return [
        Counters(
            row["counted_agent_id"],
            row["open_holds"],
            row["counted_open_holds"],
            budget_rule(row) if row["agent_id"] is not None else None,
        )
        for row in await conn.fetch(SELECT_COUNTERS, vault_id, after, limit)
    ]


def _change(row: Record) -> Change:
    reason = row["failure_reason"]
    return Change(
        **{
            **row,
            "status": EventStatus(row["status"]),
            "failure_reason": FailureReason(reason) if reason else None,
        }
    )
