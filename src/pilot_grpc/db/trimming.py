"""The statements of trimming: the oldest changes of a vault go, and leave a checkpoint."""

from datetime import datetime
from typing import Final, NamedTuple

from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.ids import VaultId

# The foreign key by which a checkpoint belongs to a vault.
CHECKPOINTS_VAULT_ID_FKEY: Final = "change_checkpoints_vault_id_fkey"

# The next vaults by their ids, each with where its kept changes begin and whether the
# first of them goes: numbers and times grow together, so no other can before it does.
# The newest change never goes.
SELECT_VAULTS: Final = """
SELECT vaults.id, vaults.trimmed,
       coalesce(
           oldest.revision < vaults.revision
           AND (
               oldest.revision <= vaults.revision - $2::bigint
               OR oldest.changed_at < $3::timestamptz
           ),
           FALSE
       ) AS is_due
  FROM (
           SELECT id, revision,
                  coalesce(
                      (
                          SELECT checkpoints.revision
                            FROM change_checkpoints AS checkpoints
                           WHERE checkpoints.vault_id = vaults.id
                      ), 0
                  ) AS trimmed
             FROM vaults
            WHERE id > $1::text
            ORDER BY id
            LIMIT $4::integer
       ) AS vaults
  LEFT JOIN LATERAL (
           SELECT changes.revision, changes.changed_at
             FROM event_changes AS changes
            WHERE changes.vault_id = vaults.id
              AND changes.revision > vaults.trimmed
            ORDER BY changes.revision
            LIMIT 1
       ) AS oldest ON TRUE
 ORDER BY vaults.id
"""

# Of a vault's oldest changes, the last one that goes. Whoever trims the same vault at
# the same time waits here for the other, and then writes nothing: a checkpoint only ever
# moves forward. The vault is read, not locked: a head that has moved on since then keeps
# more than asked for, never less.
UPSERT_CHECKPOINT: Final = """
INSERT INTO change_checkpoints (
    vault_id, revision, balance, chain_balance, held, digest, changed_at
)
SELECT oldest.vault_id, oldest.revision, oldest.balance_after, oldest.chain_balance_after,
       oldest.held_after, oldest.digest, oldest.changed_at
  FROM (
           SELECT vault_id, revision, balance_after, chain_balance_after, held_after, digest,
                  changed_at
             FROM event_changes
            WHERE vault_id = $1::text
              AND revision > $2::bigint
            ORDER BY revision
            LIMIT $5::integer
       ) AS oldest
  JOIN vaults ON vaults.id = $1::text
 WHERE oldest.revision < vaults.revision
   AND (
       oldest.revision <= vaults.revision - $3::bigint
       OR oldest.changed_at < $4::timestamptz
   )
 ORDER BY oldest.revision DESC
 LIMIT 1
    ON CONFLICT (vault_id) DO UPDATE
   SET revision = excluded.revision,
       balance = excluded.balance,
       chain_balance = excluded.chain_balance,
       held = excluded.held,
       digest = excluded.digest,
       changed_at = excluded.changed_at
 WHERE change_checkpoints.revision < excluded.revision
RETURNING revision
"""

# From where it began, not from the start: until they are vacuumed, the changes that went
# before still stand in the index, and each batch would pass all of them.
DELETE_CHANGES: Final = """
WITH deleted AS (
    DELETE FROM event_changes
     WHERE vault_id = $1::text
       AND revision > $2::bigint
       AND revision <= $3::bigint
    RETURNING revision
)
SELECT count(*)
  FROM deleted
"""


class Kept(NamedTuple):
    """What is kept of each vault: its newest so many changes, and those since a moment.

    A change goes when either says so; None keeps everything.
    """

    newest: int | None
    since: datetime | None


class Vault(NamedTuple):
    """A vault to trim, its changes up to `trimmed` gone already."""

    id: VaultId
    trimmed: int
    is_due: bool


async def select_vaults(conn: Connection, after: VaultId, kept: Kept, limit: int) -> list[Vault]:
    """Read vaults in the order of their ids, after one of them, and which of them to trim."""
    return [Vault(*row) for row in await conn.fetch(SELECT_VAULTS, after, *kept, limit)]


async def upsert_checkpoint(
    conn: Connection, vault_id: VaultId, trimmed: int, kept: Kept, limit: int
) -> int | None:
    """Move a vault's checkpoint over up to `limit` changes that go; say where it is now.

    None when none goes, or another process has moved it at least as far.
    """
    revision: int | None = await conn.fetchval(UPSERT_CHECKPOINT, vault_id, trimmed, *kept, limit)
    return revision


async def delete_changes(conn: Connection, vault_id: VaultId, trimmed: int, revision: int) -> int:
    """Delete a vault's changes up to its checkpoint; say how many."""
    count: int = await conn.fetchval(DELETE_CHANGES, vault_id, trimmed, revision)
    return count
