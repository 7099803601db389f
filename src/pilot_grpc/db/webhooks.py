"""The statements of webhooks: how far deliveries are, who delivers, and with which secrets."""

from collections.abc import Collection
from datetime import timedelta
from typing import Final, NamedTuple

from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.ids import AgentId, UserId, VaultId
from pilot_grpc.domain.vaults import Vault
from pilot_grpc.sealing import Sealed

# What the owner does. All of it happens under the vault's lock, and whoever delivers
# finds out by the edition.

INSERT_WEBHOOK: Final = """
INSERT INTO webhooks (agent_id, vault_id, cursor_revision, cursor_digest)
VALUES ($1::text, $2::text, $3::bigint, $4::bytea)
ON CONFLICT (agent_id) DO NOTHING
"""

# Another URL has not failed yet. The cursor stays where it is unless one is given.
RESTART_WEBHOOK: Final = """
UPDATE webhooks
   SET cursor_revision = coalesce($2::bigint, cursor_revision),
       cursor_digest = CASE WHEN $2::bigint IS NULL THEN cursor_digest ELSE $3::bytea END,
       edition = edition + 1,
       attempts = 0,
       failing_since = NULL,
       last_error = NULL,
       last_error_at = NULL,
       next_attempt_at = '-infinity'
 WHERE agent_id = $1::text
"""

# The least of a value and null is the value. Which change is at the new place is not known.
REWIND_WEBHOOK: Final = """
UPDATE webhooks
   SET cursor_revision = least(cursor_revision, $2::bigint),
       cursor_digest = CASE WHEN $2::bigint < cursor_revision THEN NULL ELSE cursor_digest END,
       edition = edition + 1,
       next_attempt_at = clock_timestamp()
 WHERE agent_id = $1::text
"""

FINISH_WEBHOOK: Final = """
UPDATE webhooks
   SET final_revision = $2::bigint,
       edition = edition + 1
 WHERE agent_id = $1::text
"""

END_SECRETS: Final = """
UPDATE webhook_secrets
   SET expires_at = least(expires_at, clock_timestamp() + $2::interval)
 WHERE agent_id = $1::text
"""

INSERT_SEALED: Final = """
INSERT INTO webhook_secrets (
    agent_id, id, version, wrapping_key_id, wrapped_data_key, sealed_secret
)
VALUES ($1::text, $2::text, $3::smallint, $4::text, $5::bytea, $6::bytea)
"""

# The current secret counts as the last to expire.
DROP_OLD_SECRETS: Final = """
DELETE FROM webhook_secrets
 WHERE agent_id = $1::text
   AND (
       expires_at <= clock_timestamp()
       OR id NOT IN (
           SELECT id
             FROM webhook_secrets
            WHERE agent_id = $1::text
            ORDER BY expires_at DESC NULLS FIRST, created_at DESC
            LIMIT $2::integer
       )
   )
"""

SELECT_SECRETS: Final = """
SELECT agent_id, version, wrapping_key_id, wrapped_data_key, sealed_secret,
       extract(epoch FROM expires_at - clock_timestamp())::double precision AS seconds_left
  FROM webhook_secrets
 WHERE agent_id = ANY ($1::text[])
   AND (expires_at IS NULL OR expires_at > clock_timestamp())
 ORDER BY agent_id, expires_at DESC NULLS FIRST
"""

# What a process that delivers does. It holds an agent as long as its lease lasts, and
# nothing of it needs a session.

# Those with something to deliver and an attempt that is due, the ones that waited
# longest first. Rows that another process is claiming are left to it. A cursor beyond its
# vault, or at another change than its last, is of a history that a restore has undone:
# that has to be told.
CLAIM_WEBHOOKS: Final = """
WITH due AS MATERIALIZED (
    SELECT webhooks.agent_id
      FROM webhooks
      JOIN agents ON agents.id = webhooks.agent_id
      JOIN projects ON projects.id = agents.project_id
      JOIN vaults ON vaults.id = webhooks.vault_id
     WHERE webhooks.leased_until <= clock_timestamp()
       AND webhooks.next_attempt_at <= clock_timestamp()
       AND (webhooks.attempts > 0) = $3::boolean
       AND (
           webhooks.cursor_revision < least(vaults.revision, webhooks.final_revision)
           OR webhooks.cursor_revision > vaults.revision
           OR (
               webhooks.cursor_revision = vaults.revision
               AND webhooks.cursor_digest <> vaults.digest
           )
       )
       AND agents.webhook_url IS NOT NULL
       AND NOT projects.user_id = ANY ($5::text[])
       AND EXISTS (
           SELECT
             FROM webhook_secrets
            WHERE webhook_secrets.agent_id = webhooks.agent_id
              AND webhook_secrets.expires_at IS NULL
       )
     ORDER BY webhooks.leased_until
     LIMIT $4::integer
       FOR NO KEY UPDATE OF webhooks SKIP LOCKED
)
UPDATE webhooks
   SET leased_by = $1::text,
       leased_until = clock_timestamp() + $2::interval
  FROM due
 WHERE webhooks.agent_id = due.agent_id
RETURNING webhooks.agent_id
"""

# Read after the claim, in a statement of its own, so that nothing of it is older.
SELECT_JOBS: Final = """
SELECT webhooks.agent_id, webhooks.vault_id, projects.user_id, agents.webhook_url AS url,
       webhooks.cursor_revision, webhooks.cursor_digest, webhooks.final_revision,
       webhooks.edition, webhooks.attempts
  FROM webhooks
  JOIN agents ON agents.id = webhooks.agent_id
  JOIN projects ON projects.id = agents.project_id
 WHERE webhooks.agent_id = ANY ($1::text[])
   AND agents.webhook_url IS NOT NULL
"""

LOCK_WEBHOOK: Final = """
SELECT agent_id
  FROM webhooks
 WHERE agent_id = $1::text
   FOR NO KEY UPDATE
"""

# One row that somebody has locked must not hold up the leases of all others: it is left
# out, and still listed. A cursor only goes forward, but where the owner set it back, which
# is another edition; and never beyond its vault, which a restore can have set back.
# Without an interval the leases end.
WRITE_PROGRESS: Final = """
WITH held AS (
    SELECT agent_id, edition, cursor_revision, cursor_digest, delivered_revision,
           has_succeeded
      FROM unnest(
               $3::text[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[],
               $8::boolean[]
           ) AS held (
               agent_id, edition, cursor_revision, cursor_digest, delivered_revision,
               has_succeeded
           )
),
free AS MATERIALIZED (
    SELECT webhooks.agent_id, held.cursor_revision, held.cursor_digest,
           held.delivered_revision, held.has_succeeded,
           held.edition = webhooks.edition AS is_current,
           held.edition = webhooks.edition
           AND held.cursor_revision BETWEEN webhooks.cursor_revision AND vaults.revision
           AS is_further
      FROM held
      JOIN webhooks ON webhooks.agent_id = held.agent_id
      JOIN vaults ON vaults.id = webhooks.vault_id
     WHERE webhooks.leased_by = $1::text
       FOR NO KEY UPDATE OF webhooks SKIP LOCKED
),
written AS (
    UPDATE webhooks
       SET leased_by = CASE WHEN $2::interval IS NOT NULL THEN leased_by END,
           leased_until = clock_timestamp() + coalesce($2::interval, interval '0'),
           cursor_revision = CASE
               WHEN free.is_further THEN free.cursor_revision ELSE webhooks.cursor_revision
           END,
           cursor_digest = CASE
               WHEN free.is_further THEN free.cursor_digest ELSE webhooks.cursor_digest
           END,
           delivered_revision = coalesce(
               free.delivered_revision, webhooks.delivered_revision
           ),
           last_success_at = CASE
               WHEN free.has_succeeded THEN clock_timestamp() ELSE webhooks.last_success_at
           END,
           attempts = CASE
               WHEN free.has_succeeded AND free.is_current THEN 0 ELSE webhooks.attempts
           END,
           failing_since = CASE
               WHEN NOT (free.has_succeeded AND free.is_current) THEN webhooks.failing_since
           END
      FROM free
     WHERE webhooks.agent_id = free.agent_id
    RETURNING webhooks.agent_id, webhooks.edition
)
SELECT webhooks.agent_id, written.edition
  FROM held
  JOIN webhooks ON webhooks.agent_id = held.agent_id
  LEFT JOIN written ON written.agent_id = held.agent_id
 WHERE webhooks.leased_by = $1::text
"""

# The lease ends with it: whoever is free when the next attempt is due makes it.
WRITE_FAILURE: Final = """
UPDATE webhooks
   SET leased_by = NULL,
       leased_until = clock_timestamp(),
       cursor_revision = greatest(cursor_revision, $4::bigint),
       cursor_digest = CASE
           WHEN $4::bigint >= cursor_revision THEN $5::bytea ELSE cursor_digest
       END,
       delivered_revision = coalesce($6::bigint, delivered_revision),
       last_success_at = CASE WHEN $7::boolean THEN clock_timestamp() ELSE last_success_at END,
       attempts = $8::integer,
       failing_since = CASE
           WHEN $8::integer = 1 THEN clock_timestamp()
           ELSE coalesce(failing_since, clock_timestamp())
       END,
       last_error = $9::text,
       last_error_at = clock_timestamp(),
       next_attempt_at = clock_timestamp() + $10::interval
 WHERE agent_id = $1::text
   AND leased_by = $2::text
   AND edition = $3::bigint
"""

# What was delivered beyond the new place is no change of the vault any more.
WRITE_LOSS: Final = """
UPDATE webhooks
   SET cursor_revision = $4::bigint,
       cursor_digest = NULL,
       delivered_revision = CASE
           WHEN delivered_revision <= $4::bigint THEN delivered_revision
       END,
       last_error = $5::text,
       last_error_at = clock_timestamp()
 WHERE agent_id = $1::text
   AND leased_by = $2::text
   AND edition = $3::bigint
"""

DELETE_FINISHED: Final = """
DELETE FROM webhooks
 USING agents
 WHERE agents.id = webhooks.agent_id
   AND agents.deleted_at < clock_timestamp() - $1::interval
"""


class Job(NamedTuple):
    """What a process that delivers for an agent has to know."""

    agent_id: AgentId
    vault_id: VaultId
    user_id: UserId
    url: str
    cursor_revision: int
    cursor_digest: bytes | None
    final_revision: int | None
    edition: int
    attempts: int


class Progress(NamedTuple):
    """How far a process has come with an agent."""

    agent_id: AgentId
    edition: int
    cursor_revision: int
    cursor_digest: bytes | None
    delivered_revision: int | None
    has_succeeded: bool


class StoredSecret(NamedTuple):
    """A sealed secret, and for how many seconds it still signs; None for the current one."""

    sealed: Sealed
    seconds_left: float | None


async def insert_webhook(conn: Connection, agent_id: AgentId, vault: Vault) -> None:
    """Let an agent's deliveries begin where its vault is, unless they did; lock that first."""
    await conn.execute(INSERT_WEBHOOK, agent_id, vault.id, vault.revision, vault.digest)


async def restart_webhook(conn: Connection, agent_id: AgentId, vault: Vault | None) -> None:
    """Forget the failures of the URL before; with a vault that is locked, begin where it is."""
    revision, digest = (vault.revision, vault.digest) if vault else (None, None)
    await conn.execute(RESTART_WEBHOOK, agent_id, revision, digest)


async def rewind_webhook(conn: Connection, agent_id: AgentId, cursor: int | None) -> None:
    """Set a cursor back, and let the next attempt be due."""
    await conn.execute(REWIND_WEBHOOK, agent_id, cursor)


async def finish_webhook(conn: Connection, agent_id: AgentId, final: int) -> None:
    """Let deliveries end with a revision."""
    await conn.execute(FINISH_WEBHOOK, agent_id, final)


async def insert_secret(
    conn: Connection,
    agent_id: AgentId,
    secret_id: str,
    sealed: Sealed,
    overlap: timedelta,
    secrets_max: int,
) -> None:
    """Add the current secret of an agent; those before it end with the overlap."""
    await conn.execute(END_SECRETS, agent_id, overlap)
    await conn.execute(
        INSERT_SEALED,
        agent_id,
        secret_id,
        sealed.version,
        sealed.wrapping_key_id,
        sealed.wrapped_data_key,
        sealed.sealed_secret,
    )
    await conn.execute(DROP_OLD_SECRETS, agent_id, secrets_max)


async def select_secrets(
    conn: Connection, ids: Collection[AgentId]
) -> dict[AgentId, list[StoredSecret]]:
    """Read the secrets with which deliveries of agents are signed now, the current one first."""
    secrets: dict[AgentId, list[StoredSecret]] = {}
    for row in await conn.fetch(SELECT_SECRETS, list(ids)):
        agent_id, version, wrapping_key_id, wrapped_data_key, sealed_secret, seconds_left = row
        sealed = Sealed(version, wrapping_key_id, wrapped_data_key, sealed_secret)
        secrets.setdefault(agent_id, []).append(StoredSecret(sealed, seconds_left))
    return secrets


async def claim_webhooks(
    conn: Connection,
    holder: str,
    lease: timedelta,
    limit: int,
    served: Collection[UserId],
    *,
    failing: bool,
) -> list[AgentId]:
    """Lease agents that have something to deliver, of those that fail or of the others.

    Those of users who are `served` already are left where they are.
    """
    rows = await conn.fetch(CLAIM_WEBHOOKS, holder, lease, failing, limit, list(served))
    return [row["agent_id"] for row in rows]


async def select_jobs(conn: Connection, ids: Collection[AgentId]) -> list[Job]:
    """Read what is to be delivered where; claim the agents first."""
    return [Job._make(row) for row in await conn.fetch(SELECT_JOBS, list(ids))]


async def lock_webhook(conn: Connection, agent_id: AgentId) -> None:
    """Wait until nobody else has an agent locked."""
    await conn.execute(LOCK_WEBHOOK, agent_id)


async def write_progress(
    conn: Connection, holder: str, lease: timedelta | None, held: Collection[Progress]
) -> dict[AgentId, int | None]:
    """Write how far agents are, and renew their leases, or end them.

    Returns the editions of those that are still held; None for one that somebody has
    locked, of which nothing was written.
    """
    columns = map(list, zip(*held, strict=True))
    rows = await conn.fetch(WRITE_PROGRESS, holder, lease, *columns)
    return {row["agent_id"]: row["edition"] for row in rows}


async def write_failure(
    conn: Connection,
    holder: str,
    progress: Progress,
    attempts: int,
    error: str,
    wait: timedelta,
) -> bool:
    """Write how far an agent is and what stopped it, and end the lease, if it is still held."""
    done: str = await conn.execute(
        WRITE_FAILURE,
        progress.agent_id,
        holder,
        progress.edition,
        progress.cursor_revision,
        progress.cursor_digest,
        progress.delivered_revision,
        progress.has_succeeded,
        attempts,
        error,
        wait,
    )
    return done == "UPDATE 1"


async def write_loss(conn: Connection, holder: str, job: Job, cursor: int, error: str) -> None:
    """Write why a cursor has to pass over changes."""
    await conn.execute(WRITE_LOSS, job.agent_id, holder, job.edition, cursor, error)


async def delete_finished(conn: Connection, kept: timedelta) -> None:
    """Remove what is kept of agents that were deleted so long ago, secrets included."""
    await conn.execute(DELETE_FINISHED, kept)
