"""The statements of what the chain has moved: how far it was read, and what was found."""

from collections.abc import Collection
from datetime import timedelta
from typing import Final, NamedTuple

from pilot_grpc.db.connection import Connection
from pilot_grpc.db.ledger import event_of
from pilot_grpc.domain.book import Acknowledged, Movement
from pilot_grpc.domain.ids import EventId, VaultId
from pilot_grpc.domain.ledger import Event
from pilot_grpc.domain.vaults import OUTFLOWS_NAMED_MAX, Outflow

AT_ONCE: Final = timedelta(0)

INSERT_SCAN: Final = """
INSERT INTO vault_scans (vault_id)
VALUES ($1::text)
"""

# Vaults that a process of an older Pilot has made.
INSERT_MISSING_SCANS: Final = """
INSERT INTO vault_scans (vault_id)
SELECT id
  FROM vaults
 WHERE NOT EXISTS (
           SELECT
             FROM vault_scans
            WHERE vault_scans.vault_id = vaults.id
       )
    ON CONFLICT (vault_id) DO NOTHING
"""

# Whoever takes a vault's turn puts the next one off first: so nobody else looks meanwhile,
# and nothing has to be given back.
TAKE_WATCHES: Final = """
UPDATE vault_scans
   SET next_watch_at = clock_timestamp() + $1::interval
  FROM (
           SELECT vault_scans.vault_id, vaults.address
             FROM vault_scans
             JOIN vaults ON vaults.id = vault_scans.vault_id
            WHERE vault_scans.next_watch_at <= (SELECT clock_timestamp())
            ORDER BY vault_scans.next_watch_at
            LIMIT $2::integer
              FOR UPDATE OF vault_scans SKIP LOCKED
       ) AS due
 WHERE vault_scans.vault_id = due.vault_id
RETURNING vault_scans.vault_id, due.address, vault_scans.scanned_slot,
          vault_scans.watched_amount,
          vault_scans.next_scan_at <= clock_timestamp() AS is_scan_due
"""

TAKE_RECONCILIATIONS: Final = """
UPDATE vault_scans
   SET next_reconcile_at = clock_timestamp() + $1::interval
  FROM (
           SELECT vault_scans.vault_id, vaults.address
             FROM vault_scans
             JOIN vaults ON vaults.id = vault_scans.vault_id
            WHERE vault_scans.next_reconcile_at <= (SELECT clock_timestamp())
            ORDER BY vault_scans.next_reconcile_at
            LIMIT $2::integer
              FOR UPDATE OF vault_scans SKIP LOCKED
       ) AS due
 WHERE vault_scans.vault_id = due.vault_id
RETURNING vault_scans.vault_id, due.address, vault_scans.scanned_slot,
          vault_scans.watched_amount, FALSE AS is_scan_due
"""

SELECT_WATCH: Final = """
SELECT vault_scans.vault_id, vaults.address, vault_scans.scanned_slot,
       vault_scans.watched_amount,
       vault_scans.next_scan_at <= clock_timestamp() AS is_scan_due
  FROM vault_scans
  JOIN vaults ON vaults.id = vault_scans.vault_id
 WHERE vault_scans.vault_id = $1::text
"""

# A slot never goes back: another process may be further.
UPDATE_SCAN: Final = """
UPDATE vault_scans
   SET scanned_slot = greatest(scanned_slot, $2::bigint),
       watched_amount = coalesce($3::bigint, watched_amount),
       next_scan_at = clock_timestamp() + $4::interval
 WHERE vault_id = $1::text
"""

HURRY_RECONCILIATION: Final = """
UPDATE vault_scans
   SET next_reconcile_at = least(next_reconcile_at, clock_timestamp() + $2::interval)
 WHERE vault_id = $1::text
"""

SELECT_KNOWN: Final = """
SELECT signature
  FROM vault_transactions
 WHERE vault_id = $1::text
   AND signature = ANY ($2::text[])
"""

# What turns up later, and is as old as a drift that was acknowledged, was in it.
INSERT_MOVEMENTS: Final = """
INSERT INTO vault_transactions (vault_id, signature, slot, delta, event_id)
SELECT new.vault_id, new.signature, new.slot, new.delta,
       coalesce(new.event_id, vault_scans.acknowledged_event_id)
  FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[])
       AS new (vault_id, signature, slot, delta, event_id)
  LEFT JOIN vault_scans
    ON vault_scans.vault_id = new.vault_id
   AND vault_scans.acknowledged_slot >= new.slot
   AND new.delta <> 0
    ON CONFLICT (vault_id, signature) DO UPDATE
   SET event_id = excluded.event_id
 WHERE vault_transactions.event_id IS NULL
   AND excluded.event_id IS NOT NULL
"""

# What was taken into the ledger with a drift belongs to an event from then on.
LINK_ACKNOWLEDGED: Final = """
UPDATE vault_transactions
   SET event_id = $3::text
 WHERE vault_id = $1::text
   AND slot <= $2::bigint
   AND event_id IS NULL
   AND delta <> 0
"""

NOTE_ACKNOWLEDGED: Final = """
UPDATE vault_scans
   SET acknowledged_slot = $2::bigint,
       acknowledged_event_id = $3::text
 WHERE vault_id = $1::text
"""

SELECT_ACKNOWLEDGED: Final = """
SELECT vault_id, acknowledged_slot, acknowledged_event_id
  FROM vault_scans
 WHERE vault_id = ANY ($1::text[])
   AND acknowledged_slot IS NOT NULL
"""

SELECT_PENDING_DEPOSITS: Final = """
SELECT id, vault_id, agent_id, type, kind, status, amount, authorized_amount, expires_at,
       failure_reason, decline, tx_hash, metadata, provider, model, refunded_event_id,
       created_at, updated_at, revision, recipient, counterpart_event_id
  FROM events
 WHERE status = 'pending'
   AND vault_id = $1::text
   AND kind = 'deposit'
 ORDER BY created_at, id
"""

# What the ledger says that the chain must hold at a slot: the chain balance, with the
# outflows that had not landed, and without what has landed after that slot.
SELECT_EXPECTED: Final = """
SELECT vaults.chain_balance,
       coalesce(
           (
               SELECT sum(-events.amount)
                 FROM events
                WHERE events.status = 'pending'
                  AND events.vault_id = vaults.id
                  AND events.kind IN ('transfer', 'withdrawal', 'settlement')
           ), 0
       )::bigint AS pending_amount,
       coalesce(
           (
               SELECT sum(moved.delta)
                 FROM vault_transactions AS moved
                WHERE moved.vault_id = vaults.id
                  AND moved.slot > $2::bigint
                  AND moved.event_id IS NOT NULL
           ), 0
       )::bigint AS later_amount
  FROM vaults
 WHERE vaults.id = $1::text
"""

SELECT_OUTFLOWS: Final = """
SELECT signature, -delta AS amount, slot
  FROM vault_transactions
 WHERE vault_id = $1::text
   AND event_id IS NULL
   AND delta < 0
   AND slot <= $2::bigint
 ORDER BY slot DESC, signature
 LIMIT $3::integer
"""


class Watch(NamedTuple):
    """A vault whose turn it is, and how far its history was read."""

    vault_id: VaultId
    address: str
    scanned_slot: int
    watched_amount: int | None
    is_scan_due: bool


class Expected(NamedTuple):
    """What the chain must hold for a vault, in minor units."""

    chain_balance: int
    pending_amount: int
    later_amount: int

    @property
    def amount(self) -> int:
        """All together, as of the slot that was asked for."""
        return self.chain_balance + self.pending_amount - self.later_amount


async def insert_scan(conn: Connection, vault_id: VaultId) -> None:
    """Begin to look for what moves the USDC of a new vault."""
    await conn.execute(INSERT_SCAN, vault_id)


async def insert_missing_scans(conn: Connection) -> None:
    """Begin with those vaults that were forgotten."""
    await conn.execute(INSERT_MISSING_SCANS)


async def take_watches(conn: Connection, interval: timedelta, limit: int) -> list[Watch]:
    """Take the turns of vaults to be looked at, and put their next ones off."""
    return [Watch(*row) for row in await conn.fetch(TAKE_WATCHES, interval, limit)]


async def take_reconciliations(conn: Connection, interval: timedelta, limit: int) -> list[Watch]:
    """Take the turns of vaults to be reconciled, and put their next ones off."""
    return [Watch(*row) for row in await conn.fetch(TAKE_RECONCILIATIONS, interval, limit)]


async def select_watch(conn: Connection, vault_id: VaultId) -> Watch | None:
    """Read how far a vault's history was read."""
    row = await conn.fetchrow(SELECT_WATCH, vault_id)
    return None if row is None else Watch(*row)


async def update_scan(
    conn: Connection, vault_id: VaultId, slot: int, amount: int | None, interval: timedelta
) -> None:
    """Note that all up to a slot is known, and when to look the next time at the latest.

    `amount` is what the account held before, None where nothing new is known of that.
    """
    await conn.execute(UPDATE_SCAN, vault_id, slot, amount, interval)


async def hurry_reconciliation(
    conn: Connection, vault_id: VaultId, within: timedelta = AT_ONCE
) -> None:
    """Let a vault be reconciled after so long at the latest."""
    await conn.execute(HURRY_RECONCILIATION, vault_id, within)


async def select_known(
    conn: Connection, vault_id: VaultId, signatures: Collection[str]
) -> set[str]:
    """Say which transactions were looked at already."""
    rows = await conn.fetch(SELECT_KNOWN, vault_id, list(signatures))
    return {row["signature"] for row in rows}


async def insert_movements(conn: Connection, movements: Collection[Movement]) -> None:
    """Note what final transactions moved."""
    await conn.execute(INSERT_MOVEMENTS, *map(list, zip(*movements, strict=True)))


async def link_acknowledged(
    conn: Connection, vault_id: VaultId, slot: int, event_id: EventId
) -> None:
    """Say to which event belongs what was nobody's, up to a slot, and what of that turns up yet.

    The vault must be locked.
    """
    await conn.execute(LINK_ACKNOWLEDGED, vault_id, slot, event_id)
    await conn.execute(NOTE_ACKNOWLEDGED, vault_id, slot, event_id)


async def select_acknowledged(
    conn: Connection, vault_ids: Collection[VaultId]
) -> dict[VaultId, Acknowledged]:
    """Read up to where drifts were acknowledged; the vaults must be locked."""
    rows = await conn.fetch(SELECT_ACKNOWLEDGED, list(vault_ids))
    return {row["vault_id"]: Acknowledged(row[1], row[2]) for row in rows}


async def select_pending_deposits(conn: Connection, vault_id: VaultId) -> list[Event]:
    """Read the deposits of a vault that were seen, and are not final."""
    return [event_of(row) for row in await conn.fetch(SELECT_PENDING_DEPOSITS, vault_id)]


async def select_expected(conn: Connection, vault_id: VaultId, slot: int) -> Expected | None:
    """Read what the chain must hold for a vault as of a slot up to which all is known."""
    row = await conn.fetchrow(SELECT_EXPECTED, vault_id, slot)
    return None if row is None else Expected(*row)


async def select_outflows(conn: Connection, vault_id: VaultId, slot: int) -> list[Outflow]:
    """Read the newest outflows up to a slot that are not Pilot's."""
    rows = await conn.fetch(SELECT_OUTFLOWS, vault_id, slot, OUTFLOWS_NAMED_MAX)
    return [Outflow(*row) for row in rows]
