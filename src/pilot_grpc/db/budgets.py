"""The statements of budget rules."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from pilot_grpc.db.connection import Connection, Record
from pilot_grpc.domain.budgets import BudgetRule
from pilot_grpc.domain.ids import AgentId, UserId

SELECT_RULE: Final = """
SELECT rules.agent_id, rules.per_tx_limit, rules.daily_limit, rules.monthly_limit,
       rules.daily_spent, rules.daily_held, rules.monthly_spent, rules.monthly_held,
       rules.last_reset_at, rules.created_at, rules.updated_at, rules.any_recipient
  FROM agent_budget_rules AS rules
  JOIN agents ON agents.id = rules.agent_id
  JOIN projects ON projects.id = agents.project_id
 WHERE rules.agent_id = $1::text
   AND projects.user_id = $2::text
   AND agents.deleted_at IS NULL
"""

INSERT_RULE: Final = """
INSERT INTO agent_budget_rules (
    id, agent_id, per_tx_limit, daily_limit, monthly_limit, daily_spent, daily_held,
    monthly_spent, monthly_held, last_reset_at, created_at, updated_at, any_recipient
)
VALUES (
    $1::text, $2::text, $3::bigint, $4::bigint, $5::bigint, $6::bigint, $7::bigint,
    $8::bigint, $9::bigint, $10::timestamptz, $11::timestamptz, $12::timestamptz,
    $13::boolean
)
"""

UPDATE_LIMITS: Final = """
UPDATE agent_budget_rules
   SET per_tx_limit = $2::bigint,
       daily_limit = $3::bigint,
       monthly_limit = $4::bigint,
       updated_at = $5::timestamptz,
       any_recipient = $6::boolean
 WHERE agent_id = $1::text
"""

DELETE_RULE: Final = """
DELETE FROM agent_budget_rules
 WHERE agent_id = $1::text
"""

UPDATE_COUNTERS: Final = """
UPDATE agent_budget_rules
   SET daily_spent = new.daily_spent,
       daily_held = new.daily_held,
       monthly_spent = new.monthly_spent,
       monthly_held = new.monthly_held,
       last_reset_at = new.last_reset_at
  FROM unnest(
           $1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[],
           $6::timestamptz[]
       ) AS new (
           agent_id, daily_spent, daily_held, monthly_spent, monthly_held, last_reset_at
       )
 WHERE agent_budget_rules.agent_id = new.agent_id
"""

# Counts an agent's windows anew: the day is a part of the month.
RECOUNT_WINDOWS: Final = """
SELECT coalesce(sum(-amount) FILTER (WHERE created_at >= $2::timestamptz), 0)::bigint
           AS daily_spent,
       coalesce(
           sum(-amount) FILTER (WHERE created_at >= $2::timestamptz AND status = 'pending'), 0
       )::bigint AS daily_held,
       coalesce(sum(-amount), 0)::bigint AS monthly_spent,
       coalesce(sum(-amount) FILTER (WHERE status = 'pending'), 0)::bigint AS monthly_held
  FROM events
 WHERE agent_id = $1::text
   AND kind IN ('metered', 'transfer')
   AND status IN ('pending', 'confirmed')
   AND created_at >= $3::timestamptz
   AND created_at < $4::timestamptz
"""


async def select_rule(conn: Connection, agent_id: AgentId, user_id: UserId) -> BudgetRule | None:
    """Read the rule of a user's agent, with the counters as they are stored."""
    row = await conn.fetchrow(SELECT_RULE, agent_id, user_id)
    return None if row is None else budget_rule(row)


async def insert_rule(conn: Connection, rule_id: str, rule: BudgetRule) -> None:
    """Add a rule with its counters; the vault must be locked."""
    await conn.execute(
        INSERT_RULE,
        rule_id,
        rule.agent_id,
        rule.per_tx_limit,
        rule.daily_limit,
        rule.monthly_limit,
        rule.daily_spent,
        rule.daily_held,
        rule.monthly_spent,
        rule.monthly_held,
        rule.last_reset_at,
        rule.created_at,
        rule.updated_at,
        rule.any_recipient,
    )


async def update_limits(conn: Connection, rule: BudgetRule) -> None:
    """Write a rule's limits; the vault must be locked."""
    await conn.execute(
        UPDATE_LIMITS,
        rule.agent_id,
        rule.per_tx_limit,
        rule.daily_limit,
        rule.monthly_limit,
        rule.updated_at,
        rule.any_recipient,
    )


async def delete_rule(conn: Connection, agent_id: AgentId) -> None:
    """Remove an agent's rule; the vault must be locked."""
    await conn.execute(DELETE_RULE, agent_id)


async def update_counters(conn: Connection, rules: Collection[BudgetRule]) -> None:
    """Write the counters of rules; their vaults must be locked."""
    columns: list[tuple[Any, ...]] = [
        (
            rule.agent_id,
            rule.daily_spent,
            rule.daily_held,
            rule.monthly_spent,
            rule.monthly_held,
            rule.last_reset_at,
        )
        for rule in rules
    ]
    await conn.execute(UPDATE_COUNTERS, *map(list, zip(*columns, strict=True)))


async def recount_windows(
    conn: Connection, agent_id: AgentId, day_start: datetime, month: tuple[datetime, datetime]
) -> dict[str, int]:
    """Sum an agent's windows from its events, as the four counters of a rule."""
    rows = await conn.fetch(RECOUNT_WINDOWS, agent_id, day_start, *month)
    return dict(rows[0])


def budget_rule(row: Record) -> BudgetRule:
    """Make a rule of a row that has its columns."""
    return BudgetRule(
        agent_id=row["agent_id"],
        per_tx_limit=row["per_tx_limit"],
        daily_limit=row["daily_limit"],
        monthly_limit=row["monthly_limit"],
        daily_spent=row["daily_spent"],
        daily_held=row["daily_held"],
        monthly_spent=row["monthly_spent"],
        monthly_held=row["monthly_held"],
        last_reset_at=row["last_reset_at"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        any_recipient=row["any_recipient"],
    )
