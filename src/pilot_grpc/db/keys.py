"""The statements of wrapping keys: which seals they made, and those seals made anew.

Read page by page, in the order of the ids. Only what wraps a data key is ever written, and
only where the seal still names the wrapping key that it was read with.
"""

from collections.abc import Collection
from typing import Final, NamedTuple, TypeAlias

from pilot_grpc.db.connection import Connection
from pilot_grpc.sealing import Sealed

Place: TypeAlias = tuple[str, ...]
"""Where a seal is, in the order of its table: a vault's id, or an agent's and a secret's."""

SELECT_VAULT_SEALS: Final = """
SELECT vault_id, address, version, wrapping_key_id, wrapped_data_key, sealed_secret
  FROM vault_keys
 WHERE vault_id > $1::text
   AND (wrapping_key_id = $2::text) = $3::boolean
 ORDER BY vault_id
 LIMIT $4::integer
"""

# The locks are taken in one order, so that two who write do not wait for each other.
UPDATE_VAULT_SEALS: Final = """
WITH due AS MATERIALIZED (
    SELECT vault_keys.vault_id, new.wrapped_data_key
      FROM vault_keys
      JOIN unnest($2::text[], $3::text[], $4::bytea[])
           AS new (vault_id, wrapping_key_id, wrapped_data_key)
        ON vault_keys.vault_id = new.vault_id
       AND vault_keys.wrapping_key_id = new.wrapping_key_id
     ORDER BY vault_keys.vault_id
       FOR NO KEY UPDATE OF vault_keys
)
UPDATE vault_keys
   SET wrapping_key_id = $1::text,
       wrapped_data_key = due.wrapped_data_key
  FROM due
 WHERE vault_keys.vault_id = due.vault_id
RETURNING vault_keys.vault_id
"""

# A secret that has expired signs nothing any more, and goes with the next one.
SELECT_WEBHOOK_SEALS: Final = """
SELECT agent_id, id, version, wrapping_key_id, wrapped_data_key, sealed_secret
  FROM webhook_secrets
 WHERE (agent_id, id) > ($1::text, $2::text)
   AND (wrapping_key_id = $3::text) = $4::boolean
   AND (expires_at IS NULL OR expires_at > clock_timestamp())
 ORDER BY agent_id, id
 LIMIT $5::integer
"""

UPDATE_WEBHOOK_SEALS: Final = """
WITH due AS MATERIALIZED (
    SELECT webhook_secrets.agent_id, webhook_secrets.id, new.wrapped_data_key
      FROM webhook_secrets
      JOIN unnest($2::text[], $3::text[], $4::text[], $5::bytea[])
           AS new (agent_id, id, wrapping_key_id, wrapped_data_key)
        ON webhook_secrets.agent_id = new.agent_id
       AND webhook_secrets.id = new.id
       AND webhook_secrets.wrapping_key_id = new.wrapping_key_id
     ORDER BY webhook_secrets.agent_id, webhook_secrets.id
       FOR NO KEY UPDATE OF webhook_secrets
)
UPDATE webhook_secrets
   SET wrapping_key_id = $1::text,
       wrapped_data_key = due.wrapped_data_key
  FROM due
 WHERE webhook_secrets.agent_id = due.agent_id
   AND webhook_secrets.id = due.id
RETURNING webhook_secrets.agent_id
"""

COUNT_SEALS: Final = """
SELECT wrapping_key_id, sum(vaults)::bigint AS vaults, sum(webhooks)::bigint AS webhooks
  FROM (
      SELECT wrapping_key_id, 1 AS vaults, 0 AS webhooks
        FROM vault_keys
       UNION ALL
      SELECT wrapping_key_id, 0 AS vaults, 1 AS webhooks
        FROM webhook_secrets
       WHERE expires_at IS NULL OR expires_at > clock_timestamp()
  ) AS seals
 GROUP BY wrapping_key_id
 ORDER BY wrapping_key_id
"""


class StoredSeal(NamedTuple):
    """A seal, where it is, and what it is bound to besides its purpose."""

    place: Place
    owner: tuple[str, ...]
    sealed: Sealed


class Rewrapped(NamedTuple):
    """A seal that was made anew, and the wrapping key that it named before."""

    place: Place
    before: str
    wrapped_data_key: bytes


class Count(NamedTuple):
    """How many seals a wrapping key made."""

    wrapping_key_id: str
    vaults: int
    webhooks: int


async def select_vault_seals(
    conn: Connection, after: Place, wrapping_key_id: str, is_its: bool, limit: int
) -> list[StoredSeal]:
    """Read a page of the vaults' keys that a wrapping key has sealed, or any other has."""
    rows = await conn.fetch(SELECT_VAULT_SEALS, *after, wrapping_key_id, is_its, limit)
    return [
        StoredSeal((vault_id,), (vault_id, address), Sealed(*sealed))
        for vault_id, address, *sealed in rows
    ]


async def update_vault_seals(
    conn: Connection, wrapping_key_id: str, seals: Collection[Rewrapped]
) -> int:
    """Write seals that were made anew, but for those that somebody has written since.

    Returns how many were written.
    """
    return len(await conn.fetch(UPDATE_VAULT_SEALS, wrapping_key_id, *_columns(seals)))


async def select_webhook_seals(
    conn: Connection, after: Place, wrapping_key_id: str, is_its: bool, limit: int
) -> list[StoredSeal]:
    """The same for the webhooks' secrets."""
    rows = await conn.fetch(SELECT_WEBHOOK_SEALS, *after, wrapping_key_id, is_its, limit)
    return [
        StoredSeal((agent_id, secret_id), (agent_id,), Sealed(*sealed))
        for agent_id, secret_id, *sealed in rows
    ]


async def update_webhook_seals(
    conn: Connection, wrapping_key_id: str, seals: Collection[Rewrapped]
) -> int:
    """The same for the webhooks' secrets."""
    return len(await conn.fetch(UPDATE_WEBHOOK_SEALS, wrapping_key_id, *_columns(seals)))


def _columns(seals: Collection[Rewrapped]) -> list[list[str | bytes]]:
    rows = [(*seal.place, seal.before, seal.wrapped_data_key) for seal in seals]
    return [list(column) for column in zip(*rows, strict=True)]


async def count_seals(conn: Connection) -> list[Count]:
    """Count the seals that are of any use, by their wrapping keys."""
    return [Count._make(row) for row in await conn.fetch(COUNT_SEALS)]
