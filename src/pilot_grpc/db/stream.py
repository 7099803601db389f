"""The statements of the stream: how far vaults are, and what changed since."""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.ids import ProjectId, UserId, VaultId
from pilot_grpc.domain.stream import Head, Update

SELECT_HEADS: Final = """
SELECT id, revision, digest
  FROM vaults
 WHERE id = ANY ($1::text[])
"""

SELECT_HEADS_OF_USERS: Final = """
SELECT projects.user_id, vaults.id, vaults.revision, vaults.digest
  FROM projects
  JOIN vaults ON vaults.project_id = projects.id
 WHERE projects.user_id = ANY ($1::text[])
"""

# Where the changes of a user's vaults begin and end. A filter that is null allows all.
SELECT_SPANS: Final = """
SELECT vaults.id, vaults.revision, vaults.digest,
       coalesce(checkpoints.revision, 0) AS trimmed_revision,
       coalesce(checkpoints.digest, '') AS trimmed_digest
  FROM projects
  JOIN vaults ON vaults.project_id = projects.id
  LEFT JOIN change_checkpoints AS checkpoints ON checkpoints.vault_id = vaults.id
 WHERE projects.user_id = $1::text
   AND ($2::text IS NULL OR vaults.id = $2::text)
   AND ($3::text IS NULL OR projects.id = $3::text)
"""

SELECT_DIGESTS: Final = """
SELECT changes.vault_id, changes.revision, changes.digest
  FROM unnest($1::text[], $2::bigint[]) AS asked (vault_id, revision)
  JOIN event_changes AS changes
    ON changes.vault_id = asked.vault_id
   AND changes.revision = asked.revision
"""

# The next changes of each vault, in their order, each with its event as it was then, or
# without one where it is the vault's drift. What of an event can change is read from the
# change, all else from the event. LIMIT keeps the
# planner from joining whole tables, whatever it guesses, and the range, which is as good
# because the numbers have no gaps, keeps it from sorting all that is left of a vault.
SELECT_UPDATES: Final = """
SELECT changes.vault_id, changes.revision, changes.event_id, changes.previous_revision,
       changes.status, changes.amount, changes.failure_reason, changes.tx_hash,
       changes.balance_after, changes.chain_balance_after, changes.held_after,
       changes.changed_at, changes.digest,
       events.agent_id, events.type, events.kind, events.authorized_amount,
       events.expires_at, events.decline, events.metadata, events.provider, events.model,
       events.refunded_event_id, events.created_at, events.recipient,
       events.counterpart_event_id, changes.drift
  FROM unnest($1::text[], $2::bigint[]) AS asked (vault_id, revision)
 CROSS JOIN LATERAL (
           SELECT vault_id, revision, event_id, previous_revision, status, amount,
                  failure_reason, tx_hash, balance_after, chain_balance_after, held_after,
                  changed_at, digest, drift
             FROM event_changes
            WHERE event_changes.vault_id = asked.vault_id
              AND event_changes.revision > asked.revision
              AND event_changes.revision <= asked.revision + $3::bigint
            ORDER BY event_changes.revision
            LIMIT $3::bigint
       ) AS changes
  LEFT JOIN events ON events.id = changes.event_id
 ORDER BY changes.vault_id, changes.revision
"""

INSERT_STREAM_KEY: Final = """
INSERT INTO stream_key (secret)
VALUES ($1::bytea)
ON CONFLICT (id) DO NOTHING
"""

SELECT_STREAM_KEY: Final = """
SELECT secret
  FROM stream_key
"""


class Span(NamedTuple):
    """The changes of a vault that are kept: those after `trimmed`, up to `head`."""

    vault_id: VaultId
    head: Head
    trimmed: Head


async def select_heads(conn: Connection, ids: Collection[VaultId]) -> dict[VaultId, Head]:
    """Say how far vaults are."""
    rows = await conn.fetch(SELECT_HEADS, list(ids))
    return {row["id"]: Head(row["revision"], row["digest"]) for row in rows}


async def select_heads_of_users(
    conn: Connection, ids: Collection[UserId]
) -> dict[UserId, dict[VaultId, Head]]:
    """Say how far all vaults of users are."""
    heads: dict[UserId, dict[VaultId, Head]] = {user_id: {} for user_id in ids}
    for row in await conn.fetch(SELECT_HEADS_OF_USERS, list(ids)):
        heads[row["user_id"]][row["id"]] = Head(row["revision"], row["digest"])
    return heads


async def select_spans(
    conn: Connection,
    user_id: UserId,
    vault_id: VaultId | None = None,
    project_id: ProjectId | None = None,
) -> dict[VaultId, Span]:
    """Say where the changes of a user's vaults begin and end: of one, or of all."""
    rows = await conn.fetch(SELECT_SPANS, user_id, vault_id, project_id)
    return {
        row["id"]: Span(
            row["id"],
            Head(row["revision"], row["digest"]),
            Head(row["trimmed_revision"], row["trimmed_digest"]),
        )
        for row in rows
    }


async def select_digests(conn: Connection, revisions: Mapping[VaultId, int]) -> dict[VaultId, Head]:
    """Read the check value of one change of each vault; those that are gone are left out."""
    rows = await conn.fetch(SELECT_DIGESTS, list(revisions), list(revisions.values()))
    return {row["vault_id"]: Head(row["revision"], row["digest"]) for row in rows}


async def select_updates(
    conn: Connection, after: Mapping[VaultId, int], limit: int
) -> dict[VaultId, list[Update]]:
    """Read up to `limit` changes of each vault after a revision, in their order."""
    updates: dict[VaultId, list[Update]] = {}
    for row in await conn.fetch(SELECT_UPDATES, list(after), list(after.values()), limit):
        update = Update._make(row)
        updates.setdefault(update.vault_id, []).append(update)
    return updates


async def stream_key(conn: Connection, new: bytes) -> bytes:
    """Return the installation's key; the first process makes it `new`."""
    await conn.execute(INSERT_STREAM_KEY, new)
    key: bytes = await conn.fetchval(SELECT_STREAM_KEY)
    return key
