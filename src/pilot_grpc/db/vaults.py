"""The statements of vaults and their sealed keys."""

from collections.abc import Collection
from typing import Any, Final

from pilot_grpc.db.connection import Connection, Record
from pilot_grpc.domain.ids import ProjectId, UserId, VaultId
from pilot_grpc.domain.vaults import Vault, decode_drift, encode_drift

INSERT_VAULT: Final = """
INSERT INTO vaults (id, address, project_id)
VALUES ($1::text, $2::text, $3::text)
"""

INSERT_VAULT_KEY: Final = """
INSERT INTO vault_keys (
    vault_id, address, version, wrapping_key_id, wrapped_data_key, sealed_secret
)
VALUES ($1::text, $2::text, $3::smallint, $4::text, $5::bytea, $6::bytea)
"""

# Not a vault's, so two processes may make it at the same time; the first one's stays.
INSERT_FEE_PAYER_KEY: Final = """
INSERT INTO vault_keys (
    vault_id, address, version, wrapping_key_id, wrapped_data_key, sealed_secret
)
VALUES ($1::text, $2::text, $3::smallint, $4::text, $5::bytea, $6::bytea)
    ON CONFLICT (vault_id) DO NOTHING
"""

SELECT_VAULT_KEY: Final = """
SELECT vault_id, address, version, wrapping_key_id, wrapped_data_key, sealed_secret
  FROM vault_keys
 WHERE vault_id = $1::text
"""

# Which vaults are at these addresses: a payment to one is a deposit there.
SELECT_VAULT_IDS: Final = """
SELECT address, id
  FROM vaults
 WHERE address = ANY ($1::text[])
"""

SELECT_VAULT: Final = """
SELECT vaults.id, vaults.project_id, vaults.address, vaults.balance, vaults.chain_balance,
       vaults.held, vaults.revision, vaults.digest, vaults.last_change_at, vaults.created_at,
       vaults.drift
  FROM vaults
  JOIN projects ON projects.id = vaults.project_id
 WHERE vaults.id = $1::text
   AND projects.user_id = $2::text
"""

# Every decision about money starts here. Vaults are locked in the order of their ids,
# so batches never deadlock. No other table is joined: it would be read as it was before
# the wait for the lock.
LOCK_VAULTS: Final = """
SELECT id, project_id, address, balance, chain_balance, held, revision, digest,
       last_change_at, created_at, drift
  FROM vaults
 WHERE id = ANY ($1::text[])
 ORDER BY id
   FOR NO KEY UPDATE
"""

# The same for those vaults that nobody else has locked; the others are left out.
LOCK_FREE_VAULTS: Final = """
SELECT id, project_id, address, balance, chain_balance, held, revision, digest,
       last_change_at, created_at, drift
  FROM vaults
 WHERE id = ANY ($1::text[])
 ORDER BY id
   FOR NO KEY UPDATE SKIP LOCKED
"""

LOCK_VAULT_OF_PROJECT: Final = """
SELECT id, project_id, address, balance, chain_balance, held, revision, digest,
       last_change_at, created_at, drift
  FROM vaults
 WHERE project_id = $1::text
   FOR NO KEY UPDATE
"""

UPDATE_VAULTS: Final = """
UPDATE vaults
   SET balance = new.balance,
       chain_balance = new.chain_balance,
       held = new.held,
       revision = new.revision,
       digest = new.digest,
       last_change_at = new.last_change_at,
       drift = new.drift
  FROM unnest(
           $1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[],
           $6::bytea[], $7::timestamptz[], $8::text[]
       ) AS new (id, balance, chain_balance, held, revision, digest, last_change_at, drift)
 WHERE vaults.id = new.id
"""


async def insert_vault(
    conn: Connection, vault_id: VaultId, address: str, project_id: ProjectId
) -> None:
    """Add an empty vault."""
    await conn.execute(INSERT_VAULT, vault_id, address, project_id)


async def insert_vault_key(
    conn: Connection,
    vault_id: VaultId,
    address: str,
    version: int,
    wrapping_key_id: str,
    wrapped_data_key: bytes,
    sealed_secret: bytes,
) -> None:
    """Keep the sealed secret of a vault's wallet."""
    await conn.execute(
        INSERT_VAULT_KEY,
        vault_id,
        address,
        version,
        wrapping_key_id,
        wrapped_data_key,
        sealed_secret,
    )


async def insert_fee_payer_key(
    conn: Connection,
    name: VaultId,
    address: str,
    version: int,
    wrapping_key_id: str,
    wrapped_data_key: bytes,
    sealed_secret: bytes,
) -> None:
    """Keep the sealed secret of the fee payer's wallet, unless there is one."""
    await conn.execute(
        INSERT_FEE_PAYER_KEY,
        name,
        address,
        version,
        wrapping_key_id,
        wrapped_data_key,
        sealed_secret,
    )


async def select_vault_key(
    conn: Connection, vault_id: VaultId
) -> tuple[str, str, int, str, bytes, bytes] | None:
    """Read the sealed secret of a vault's wallet, in the order of its columns."""
    row = await conn.fetchrow(SELECT_VAULT_KEY, vault_id)
    return None if row is None else tuple(row)


async def select_vault(conn: Connection, vault_id: VaultId, user_id: UserId) -> Vault | None:
    """Read a user's vault."""
    row = await conn.fetchrow(SELECT_VAULT, vault_id, user_id)
    return None if row is None else _vault(row)


async def lock_vaults(conn: Connection, ids: Collection[VaultId]) -> dict[VaultId, Vault]:
    """Lock vaults and return their figures as of the lock."""
    return {row["id"]: _vault(row) for row in await conn.fetch(LOCK_VAULTS, list(ids))}


async def lock_free_vaults(conn: Connection, ids: Collection[VaultId]) -> dict[VaultId, Vault]:
    """Lock those vaults that can be locked at once, and return their figures."""
    return {row["id"]: _vault(row) for row in await conn.fetch(LOCK_FREE_VAULTS, list(ids))}


async def lock_vault_of_project(conn: Connection, project_id: ProjectId) -> Vault | None:
    """Lock the vault of a project."""
    row = await conn.fetchrow(LOCK_VAULT_OF_PROJECT, project_id)
    return None if row is None else _vault(row)


async def update_vaults(conn: Connection, vaults: Collection[Vault]) -> None:
    """Write the figures of locked vaults."""
    columns: list[tuple[Any, ...]] = [
        (
            v.id,
            v.balance,
            v.chain_balance,
            v.held,
            v.revision,
            v.digest,
            v.last_change_at,
            None if v.drift is None else encode_drift(v.drift),
        )
        for v in vaults
    ]
    await conn.execute(UPDATE_VAULTS, *map(list, zip(*columns, strict=True)))


async def select_vault_ids(conn: Connection, addresses: Collection[str]) -> dict[str, VaultId]:
    """Say which of these addresses are vaults, and of which id."""
    rows = await conn.fetch(SELECT_VAULT_IDS, list(addresses))
    return {row["address"]: row["id"] for row in rows}


def _vault(row: Record) -> Vault:
    drift = row["drift"]
    return Vault(**{**row, "drift": None if drift is None else decode_drift(drift)})
