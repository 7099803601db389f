"""The statements of agents."""

from collections.abc import Collection
from datetime import datetime
from typing import Final, NamedTuple

from pilot_grpc.db.budgets import budget_rule
from pilot_grpc.db.connection import Connection, Record
from pilot_grpc.domain.agents import Agent, AgentStatus, Recipient
from pilot_grpc.domain.ids import AgentId, ProjectId, UserId, VaultId
from pilot_grpc.domain.ledger import Spender
from pilot_grpc.domain.projects import ProjectStatus
from pilot_grpc.domain.webhooks import Webhook, state_of

INSERT_AGENT: Final = """
INSERT INTO agents (id, project_id, name, provider, model, webhook_url)
VALUES ($1::text, $2::text, $3::text, $4::text, $5::text, $6::text)
"""

COUNT_AGENTS: Final = """
SELECT count(*)
  FROM agents
 WHERE project_id = $1::text
"""

SELECT_AGENT: Final = """
SELECT agents.id, agents.project_id, agents.name, agents.provider, agents.model,
       agents.status, agents.api_key_hash IS NOT NULL AS has_key, agents.webhook_url,
       agents.created_at, agents.updated_at,
       webhooks.attempts, webhooks.failing_since, webhooks.last_error,
       webhooks.last_error_at, webhooks.last_success_at,
       CASE WHEN webhooks.attempts > 0 THEN webhooks.next_attempt_at END AS next_attempt_at,
       webhooks.delivered_revision, vaults.revision - webhooks.cursor_revision AS behind,
       EXISTS (
           SELECT
             FROM webhook_secrets
            WHERE webhook_secrets.agent_id = agents.id
              AND webhook_secrets.expires_at IS NULL
       ) AS has_secret
  FROM agents
  JOIN projects ON projects.id = agents.project_id
  JOIN vaults ON vaults.project_id = projects.id
  LEFT JOIN webhooks ON webhooks.agent_id = agents.id
 WHERE agents.id = $1::text
   AND projects.user_id = $2::text
   AND agents.deleted_at IS NULL
"""

SELECT_AGENTS: Final = """
SELECT agents.id, agents.project_id, agents.name, agents.provider, agents.model,
       agents.status, agents.api_key_hash IS NOT NULL AS has_key, agents.webhook_url,
       agents.created_at, agents.updated_at,
       webhooks.attempts, webhooks.failing_since, webhooks.last_error,
       webhooks.last_error_at, webhooks.last_success_at,
       CASE WHEN webhooks.attempts > 0 THEN webhooks.next_attempt_at END AS next_attempt_at,
       webhooks.delivered_revision, vaults.revision - webhooks.cursor_revision AS behind,
       EXISTS (
           SELECT
             FROM webhook_secrets
            WHERE webhook_secrets.agent_id = agents.id
              AND webhook_secrets.expires_at IS NULL
       ) AS has_secret
  FROM agents
  JOIN vaults ON vaults.project_id = agents.project_id
  LEFT JOIN webhooks ON webhooks.agent_id = agents.id
 WHERE agents.project_id = $1::text
   AND agents.deleted_at IS NULL
   AND (
       $2::timestamptz IS NULL
       OR (agents.created_at, agents.id) < ($2::timestamptz, $3::text)
   )
 ORDER BY agents.created_at DESC, agents.id DESC
 LIMIT $4::integer
"""

# Where an agent belongs. None of it ever changes, so it may be cached; a deleted agent
# belongs there, too, with its events and what it asked before.
SELECT_HOMES: Final = """
SELECT agents.id AS agent_id, vaults.id AS vault_id, projects.id AS project_id,
       projects.user_id
  FROM agents
  JOIN projects ON projects.id = agents.project_id
  JOIN vaults ON vaults.project_id = projects.id
 WHERE agents.id = ANY ($1::text[])
"""

# What a decision reads. Everything in it changes only under the vault's lock, so it is
# read after that lock, in a statement of its own, and needs no lock itself. The payments of
# a deleted agent go on, so it is counted for as before.
SELECT_SPENDERS: Final = """
SELECT agents.id AS agent_id, vaults.id AS vault_id, projects.status AS project_status,
       agents.status, agents.provider, agents.model, agents.open_holds,
       agents.deleted_at IS NOT NULL AS is_deleted,
       rules.agent_id IS NOT NULL AS has_rule, rules.per_tx_limit, rules.daily_limit,
       rules.monthly_limit, rules.daily_spent, rules.daily_held, rules.monthly_spent,
       rules.monthly_held, rules.last_reset_at, rules.created_at, rules.updated_at,
       rules.any_recipient
  FROM agents
  JOIN projects ON projects.id = agents.project_id
  JOIN vaults ON vaults.project_id = projects.id
  LEFT JOIN agent_budget_rules AS rules ON rules.agent_id = agents.id
 WHERE agents.id = ANY ($1::text[])
"""

UPDATE_AGENT: Final = """
UPDATE agents
   SET name = $2::text,
       provider = $3::text,
       model = $4::text,
       webhook_url = $5::text,
       updated_at = clock_timestamp()
 WHERE id = $1::text
"""

UPDATE_AGENT_STATUS: Final = """
UPDATE agents
   SET status = $2::text,
       updated_at = clock_timestamp()
 WHERE id = $1::text
"""

UPDATE_AGENT_KEY: Final = """
UPDATE agents
   SET api_key_hash = $2::text,
       status = $3::text,
       updated_at = clock_timestamp()
 WHERE id = $1::text
"""

UPDATE_OPEN_HOLDS: Final = """
UPDATE agents
   SET open_holds = new.open_holds
  FROM unnest($1::text[], $2::integer[]) AS new (id, open_holds)
 WHERE agents.id = new.id
   AND agents.open_holds <> new.open_holds
"""

DELETE_AGENT: Final = """
UPDATE agents
   SET deleted_at = clock_timestamp(),
       api_key_hash = NULL,
       updated_at = clock_timestamp()
 WHERE id = $1::text
"""


COUNT_RECIPIENTS: Final = """
SELECT count(*)
  FROM agent_recipients
 WHERE agent_id = $1::text
"""

UPSERT_RECIPIENT: Final = """
INSERT INTO agent_recipients (agent_id, address, label)
VALUES ($1::text, $2::text, $3::text)
    ON CONFLICT (agent_id, address) DO UPDATE
   SET label = excluded.label
RETURNING address, label, created_at
"""

DELETE_RECIPIENT: Final = """
DELETE FROM agent_recipients
 WHERE agent_id = $1::text
   AND address = $2::text
RETURNING address
"""

SELECT_RECIPIENTS: Final = """
SELECT address, label, created_at
  FROM agent_recipients
 WHERE agent_id = $1::text
   AND address > $2::text
 ORDER BY address
 LIMIT $3::integer
"""

# Which of these agents and recipients go together.
SELECT_LISTED: Final = """
SELECT recipients.agent_id, recipients.address
  FROM unnest($1::text[], $2::text[]) AS asked (agent_id, address)
  JOIN agent_recipients AS recipients
    ON recipients.agent_id = asked.agent_id
   AND recipients.address = asked.address
"""


class Home(NamedTuple):
    """Where an agent belongs, for good."""

    vault_id: VaultId
    project_id: ProjectId
    user_id: UserId


async def insert_agent(
    conn: Connection,
    agent_id: AgentId,
    project_id: ProjectId,
    name: str,
    provider: str | None,
    model: str | None,
    webhook_url: str | None,
) -> None:
    """Add an agent that needs setup."""
    await conn.execute(INSERT_AGENT, agent_id, project_id, name, provider, model, webhook_url)


async def count_agents(conn: Connection, project_id: ProjectId) -> int:
    """Count a project's agents, deleted ones included; the vault must be locked."""
    count: int = await conn.fetchval(COUNT_AGENTS, project_id)
    return count


async def select_agent(conn: Connection, agent_id: AgentId, user_id: UserId) -> Agent | None:
    """Read a user's agent."""
    row = await conn.fetchrow(SELECT_AGENT, agent_id, user_id)
    return None if row is None else _agent(row)


async def select_agents(
    conn: Connection, project_id: ProjectId, after: tuple[datetime, str] | None, limit: int
) -> list[Agent]:
    """Read a project's agents, newest first, after a place in that order."""
    rows = await conn.fetch(SELECT_AGENTS, project_id, *(after or (None, None)), limit)
    return [_agent(row) for row in rows]


async def select_homes(conn: Connection, ids: Collection[AgentId]) -> dict[AgentId, Home]:
    """Say where agents belong."""
    rows = await conn.fetch(SELECT_HOMES, list(ids))
    return {
        row["agent_id"]: Home(row["vault_id"], row["project_id"], row["user_id"]) for row in rows
    }


async def select_spenders(conn: Connection, ids: Collection[AgentId]) -> dict[AgentId, Spender]:
    """Read what decides the spends of agents, deleted ones included; vaults must be locked."""
    return {
        row["agent_id"]: Spender(
            agent_id=row["agent_id"],
            vault_id=row["vault_id"],
            project_status=ProjectStatus(row["project_status"]),
            status=AgentStatus(row["status"]),
            provider=row["provider"],
            model=row["model"],
            open_holds=row["open_holds"],
            rule=budget_rule(row) if row["has_rule"] else None,
            is_deleted=row["is_deleted"],
        )
        for row in await conn.fetch(SELECT_SPENDERS, list(ids))
    }


async def count_recipients(conn: Connection, agent_id: AgentId) -> int:
    """Count whom an agent may pay; the vault must be locked."""
    count: int = await conn.fetchval(COUNT_RECIPIENTS, agent_id)
    return count


async def upsert_recipient(
    conn: Connection, agent_id: AgentId, address: str, label: str | None
) -> Recipient:
    """Let an agent pay a wallet; the vault must be locked."""
    (row,) = await conn.fetch(UPSERT_RECIPIENT, agent_id, address, label)
    return Recipient(*row)


async def delete_recipient(conn: Connection, agent_id: AgentId, address: str) -> bool:
    """Take a wallet off an agent's list, and say whether it was on it; the vault must be locked."""
    return await conn.fetchval(DELETE_RECIPIENT, agent_id, address) is not None


async def select_recipients(
    conn: Connection, agent_id: AgentId, after: str, limit: int
) -> list[Recipient]:
    """Read whom an agent may pay, by address, after an address."""
    return [Recipient(*row) for row in await conn.fetch(SELECT_RECIPIENTS, agent_id, after, limit)]


async def select_listed(
    conn: Connection, pairs: Collection[tuple[AgentId, str]]
) -> set[tuple[AgentId, str]]:
    """Say which agents have which recipients on their lists; the vaults must be locked."""
    rows = await conn.fetch(SELECT_LISTED, *map(list, zip(*pairs, strict=True)))
    return {(row["agent_id"], row["address"]) for row in rows}


async def update_agent(
    conn: Connection,
    agent_id: AgentId,
    name: str,
    provider: str | None,
    model: str | None,
    webhook_url: str | None,
) -> None:
    """Write what a user says of an agent; the vault must be locked."""
    await conn.execute(UPDATE_AGENT, agent_id, name, provider, model, webhook_url)


async def update_agent_status(conn: Connection, agent_id: AgentId, status: AgentStatus) -> None:
    """Write an agent's status; the vault must be locked."""
    await conn.execute(UPDATE_AGENT_STATUS, agent_id, status)


async def update_agent_key(
    conn: Connection, agent_id: AgentId, key_hash: str | None, status: AgentStatus
) -> None:
    """Write an agent's key and the status that follows; the vault must be locked."""
    await conn.execute(UPDATE_AGENT_KEY, agent_id, key_hash, status)


async def update_open_holds(conn: Connection, spenders: Collection[Spender]) -> None:
    """Write how many holds agents have open; their vaults must be locked."""
    ids = [spender.agent_id for spender in spenders]
    await conn.execute(UPDATE_OPEN_HOLDS, ids, [spender.open_holds for spender in spenders])


async def delete_agent(conn: Connection, agent_id: AgentId) -> None:
    """Hide an agent and take its key; the vault must be locked."""
    await conn.execute(DELETE_AGENT, agent_id)


def _agent(row: Record) -> Agent:
    return Agent(
        id=row["id"],
        project_id=row["project_id"],
        name=row["name"],
        provider=row["provider"],
        model=row["model"],
        status=AgentStatus(row["status"]),
        has_key=row["has_key"],
        webhook_url=row["webhook_url"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        webhook=None if row["webhook_url"] is None else _webhook(row),
    )


def _webhook(row: Record) -> Webhook:
    """Read how deliveries go; a URL that an older Pilot set has no row of its own yet."""
    attempts = row["attempts"] or 0
    return Webhook(
        state=state_of(has_secret=row["has_secret"], attempts=attempts),
        attempts=attempts,
        failing_since=row["failing_since"],
        last_error=row["last_error"],
        last_error_at=row["last_error_at"],
        last_success_at=row["last_success_at"],
        next_attempt_at=row["next_attempt_at"],
        delivered_revision=row["delivered_revision"],
        behind=max(0, row["behind"] or 0),
    )
