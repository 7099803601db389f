"""The statements of payments on chain: what is on its way, and what was signed for it."""

from collections.abc import Collection
from datetime import timedelta
from typing import Final, NamedTuple

from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.ledger import EventStatus

INSERT_PENDING: Final = """
INSERT INTO pending_transfers (event_id, vault_id)
SELECT event_id, vault_id
  FROM unnest($1::text[], $2::text[]) AS new (event_id, vault_id)
"""

DELETE_PENDING: Final = """
DELETE FROM pending_transfers
 WHERE event_id = ANY ($1::text[])
"""

# Whoever decides that a payment failed must know of its last signature, and of no later one.
# Rows are locked in the order of their ids wherever several are, so nobody deadlocks.
LOCK_SIGNATURES: Final = """
SELECT event_id, signature
  FROM pending_transfers
 WHERE event_id = ANY ($1::text[])
 ORDER BY event_id
   FOR UPDATE
"""

COUNT_PENDING: Final = """
SELECT vault_id, count(*) AS count
  FROM pending_transfers
 WHERE vault_id = ANY ($1::text[])
 GROUP BY vault_id
"""

# What nobody works on, those first that are due for longest. Whoever dies loses its lease.
CLAIM: Final = """
UPDATE pending_transfers
   SET leased_by = $1::text,
       leased_until = clock_timestamp() + $2::interval
  FROM (
           SELECT event_id
             FROM pending_transfers
            WHERE leased_until < (SELECT clock_timestamp())
              AND next_attempt_at <= (SELECT clock_timestamp())
            ORDER BY next_attempt_at, created_at
            LIMIT $3::integer
              FOR UPDATE SKIP LOCKED
       ) AS due
 WHERE pending_transfers.event_id = due.event_id
RETURNING pending_transfers.event_id
"""

# All that is needed to pay, and to find out what has become of it.
SELECT_TRANSFERS: Final = """
SELECT pending.event_id, pending.vault_id, events.agent_id, vaults.address,
       events.recipient, -events.amount AS amount, vaults.drift IS NOT NULL AS is_stopped,
       listed.address IS NOT NULL OR events.agent_id IS NULL AS is_trusted,
       clock_timestamp() - pending.created_at AS age, pending.attempt,
       signed.signature, signed.transaction, signed.last_valid_block_height, signed.slot
  FROM pending_transfers AS pending
  JOIN events ON events.id = pending.event_id
  JOIN vaults ON vaults.id = pending.vault_id
  LEFT JOIN transfer_signatures AS signed ON signed.signature = pending.signature
  LEFT JOIN agent_recipients AS listed
    ON listed.agent_id = events.agent_id
   AND listed.address = events.recipient
 WHERE pending.event_id = ANY ($1::text[])
   AND pending.leased_by = $2::text
"""

RENEW: Final = """
UPDATE pending_transfers
   SET leased_until = clock_timestamp() + $3::interval
  FROM (
           SELECT event_id
             FROM pending_transfers
            WHERE event_id = ANY ($1::text[])
              AND leased_by = $2::text
            ORDER BY event_id
              FOR UPDATE
       ) AS mine
 WHERE pending_transfers.event_id = mine.event_id
RETURNING pending_transfers.event_id
"""

POSTPONE: Final = """
UPDATE pending_transfers
   SET leased_until = '-infinity',
       next_attempt_at = clock_timestamp() + $3::interval
 WHERE event_id = $1::text
   AND leased_by = $2::text
"""

RELEASE: Final = """
UPDATE pending_transfers
   SET leased_until = '-infinity'
 WHERE leased_by = $1::text
"""

# The one way that anything is signed for good: once for each attempt, by whoever comes first,
# and not for a vault that is stopped. What comes later finds a signature, and writes nothing.
INSERT_SIGNATURE: Final = """
WITH signed AS (
    UPDATE pending_transfers
       SET signature = $3::text
     WHERE event_id = $1::text
       AND attempt = $2::integer
       AND signature IS NULL
       AND EXISTS (
           SELECT
             FROM vaults
            WHERE vaults.id = pending_transfers.vault_id
              AND vaults.drift IS NULL
       )
    RETURNING event_id, attempt
)
INSERT INTO transfer_signatures (
    signature, event_id, attempt, transaction, blockhash, last_valid_block_height, slot
)
SELECT $3::text, event_id, attempt, $4::bytea, $5::text, $6::bigint, $7::bigint
  FROM signed
RETURNING signature
"""

# The last signature can no longer land, so the next attempt may sign anew.
BEGIN_NEXT_ATTEMPT: Final = """
UPDATE pending_transfers
   SET signature = NULL,
       attempt = attempt + 1
 WHERE event_id = $1::text
   AND signature = $2::text
RETURNING attempt
"""

# Whose payments these transactions are.
SELECT_SIGNED: Final = """
SELECT signed.signature, events.id AS event_id, events.vault_id, events.status,
       events.counterpart_event_id
  FROM transfer_signatures AS signed
  JOIN events ON events.id = signed.event_id
 WHERE signed.signature = ANY ($1::text[])
"""

LOCK_ACCOUNTS: Final = """
SELECT pg_advisory_xact_lock(hashtext('pilot recipient accounts'))
"""

# Once for each recipient, unless it is the same payment that tries again.
INSERT_ACCOUNT: Final = """
INSERT INTO recipient_accounts (address, event_id)
SELECT $1::text, $2::text
 WHERE (
           SELECT count(*)
             FROM recipient_accounts
            WHERE created_at >= (SELECT date_trunc('day', clock_timestamp(), 'UTC'))
       ) < $3::integer
    ON CONFLICT (address) DO UPDATE
   SET event_id = excluded.event_id
 WHERE recipient_accounts.event_id = excluded.event_id
RETURNING address
"""

SELECT_ACCOUNT: Final = """
SELECT event_id
  FROM recipient_accounts
 WHERE address = $1::text
"""

# Whether the payment that makes an account is on its way.
IS_ACCOUNT_ON_ITS_WAY: Final = """
SELECT EXISTS (
    SELECT
      FROM recipient_accounts AS made
      JOIN pending_transfers AS pending ON pending.event_id = made.event_id
     WHERE made.address = $1::text
)
"""

DELETE_ACCOUNTS: Final = """
DELETE FROM recipient_accounts
 WHERE event_id = ANY ($1::text[])
"""


class Sent(NamedTuple):
    """A signed transaction, as it is sent and sent again."""

    signature: str
    transaction: bytes
    last_valid_block_height: int
    slot: int

    def __repr__(self) -> str:
        return f"Sent({self.signature})"


class Transfer(NamedTuple):
    """A payment that is on its way. The amount is positive, in minor units.

    `sent` is the transaction of this attempt, None until one is signed. The recipient
    `is_trusted` when the owner has named it: on the agent's list, or in the request.
    """

    event_id: EventId
    vault_id: VaultId
    agent_id: AgentId | None
    address: str
    recipient: str
    amount: int
    is_stopped: bool
    is_trusted: bool
    age: timedelta
    attempt: int
    sent: Sent | None


class Signed(NamedTuple):
    """Whose payment a transaction is."""

    signature: str
    event_id: EventId
    vault_id: VaultId
    status: EventStatus
    counterpart_event_id: EventId | None


async def insert_pending(conn: Connection, events: Collection[tuple[EventId, VaultId]]) -> None:
    """Send payments on their way; their vaults must be locked, and their events written."""
    await conn.execute(INSERT_PENDING, *map(list, zip(*events, strict=True)))


async def delete_pending(conn: Connection, ids: Collection[EventId]) -> None:
    """Forget payments that are decided; their vaults must be locked."""
    await conn.execute(DELETE_PENDING, list(ids))


async def lock_signatures(conn: Connection, ids: Collection[EventId]) -> dict[EventId, str | None]:
    """Keep payments from being signed, and read their last signatures; after the vaults' locks."""
    rows = await conn.fetch(LOCK_SIGNATURES, list(ids))
    return {row["event_id"]: row["signature"] for row in rows}


async def count_pending(conn: Connection, ids: Collection[VaultId]) -> dict[VaultId, int]:
    """Count the payments of vaults that are on their way; the vaults must be locked."""
    rows = await conn.fetch(COUNT_PENDING, list(ids))
    return {row["vault_id"]: row["count"] for row in rows}


async def claim(conn: Connection, worker: str, lease: timedelta, limit: int) -> list[EventId]:
    """Take up to `limit` payments that nobody works on."""
    return [row["event_id"] for row in await conn.fetch(CLAIM, worker, lease, limit)]


async def select_transfers(
    conn: Connection, ids: Collection[EventId], worker: str
) -> list[Transfer]:
    """Read those of these payments that a worker has."""
    return [
        Transfer._make((*row[:10], Sent(*row[10:]) if row["signature"] is not None else None))
        for row in await conn.fetch(SELECT_TRANSFERS, list(ids), worker)
    ]


async def renew(
    conn: Connection, ids: Collection[EventId], worker: str, lease: timedelta
) -> set[EventId]:
    """Go on working on payments; say which of them the worker still has."""
    rows = await conn.fetch(RENEW, list(ids), worker, lease)
    return {row["event_id"] for row in rows}


async def postpone(conn: Connection, event_id: EventId, worker: str, wait: timedelta) -> None:
    """Give a payment back, to be tried again later."""
    await conn.execute(POSTPONE, event_id, worker, wait)


async def release(conn: Connection, worker: str) -> None:
    """Give back all that a worker has."""
    await conn.execute(RELEASE, worker)


async def insert_signature(
    conn: Connection, event_id: EventId, attempt: int, sent: Sent, blockhash: str
) -> bool:
    """Store what is to be sent, and say whether it may be.

    It may not when the attempt has a signature or is over, or the vault is stopped.
    """
    stored = await conn.fetchval(
        INSERT_SIGNATURE,
        event_id,
        attempt,
        sent.signature,
        sent.transaction,
        blockhash,
        sent.last_valid_block_height,
        sent.slot,
    )
    return stored is not None


async def begin_next_attempt(conn: Connection, event_id: EventId, signature: str) -> int | None:
    """Let a payment be signed anew; its last signature must be known to be dead."""
    attempt: int | None = await conn.fetchval(BEGIN_NEXT_ATTEMPT, event_id, signature)
    return attempt


async def select_signed(conn: Connection, signatures: Collection[str]) -> dict[str, Signed]:
    """Say which of these transactions are Pilot's own."""
    return {
        row["signature"]: Signed(
            row["signature"],
            row["event_id"],
            row["vault_id"],
            EventStatus(row["status"]),
            row["counterpart_event_id"],
        )
        for row in await conn.fetch(SELECT_SIGNED, list(signatures))
    }


async def insert_account(
    conn: Connection, address: str, event_id: EventId, per_day_max: int
) -> bool:
    """Note that a payment makes the account of its recipient; say whether it may.

    One at a time, in the whole installation, so that the limit of a day holds.
    """
    await conn.execute(LOCK_ACCOUNTS)
    if await conn.fetchval(SELECT_ACCOUNT, address) == event_id:
        return True
    return await conn.fetchval(INSERT_ACCOUNT, address, event_id, per_day_max) is not None


async def is_account_on_its_way(conn: Connection, address: str) -> bool:
    """Say whether some payment that is on its way makes the account of this recipient."""
    is_on_its_way: bool = await conn.fetchval(IS_ACCOUNT_ON_ITS_WAY, address)
    return is_on_its_way


async def delete_accounts(conn: Connection, ids: Collection[EventId]) -> None:
    """Forget accounts that were to be made by payments that failed."""
    await conn.execute(DELETE_ACCOUNTS, list(ids))
