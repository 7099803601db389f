"""What the chain keeps: accounts by slot, transactions, and those that wait, in one SQLite file.

Every account has a row for each slot that changed it, so that it can be read as it was at a
commitment, or by a node that lags. Whatever was written to a file survives `kill -9`, and blocks
survive a power cut, too. A payment takes about 6 kB.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from solders.account import Account
from solders.pubkey import Pubkey

from pilot_grpc.solana.localnet import tokens
from pilot_grpc.solana.localnet.errors import LocalnetError, LocalnetInUse
from pilot_grpc.solana.localnet.tokens import NO_ACCOUNT

FILE: Final = "chain.sqlite"
VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE chain (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

-- One row for each slot that changed an account; without lamports it was gone.
CREATE TABLE accounts (
    address BLOB NOT NULL,
    slot INTEGER NOT NULL,
    lamports INTEGER NOT NULL,
    owner BLOB NOT NULL,
    data BLOB NOT NULL,
    holder BLOB, -- of a token account: whose tokens these are
    PRIMARY KEY (address, slot)
) WITHOUT ROWID;
CREATE INDEX accounts_of_holder ON accounts (holder) WHERE holder IS NOT NULL;
CREATE INDEX accounts_by_slot ON accounts (slot);

CREATE TABLE transactions (
    slot INTEGER NOT NULL,
    position INTEGER NOT NULL, -- in its slot
    signature TEXT NOT NULL UNIQUE,
    message_hash BLOB NOT NULL UNIQUE,
    wire BLOB NOT NULL,
    err TEXT,
    memo TEXT,
    block_time INTEGER NOT NULL,
    meta TEXT NOT NULL,
    PRIMARY KEY (slot, position)
) WITHOUT ROWID;

-- Which transactions name an address, for getSignaturesForAddress.
CREATE TABLE mentions (
    address BLOB NOT NULL,
    slot INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (address, slot, position)
) WITHOUT ROWID;
CREATE INDEX mentions_by_slot ON mentions (slot);

-- Accepted, and not in a block yet.
CREATE TABLE waiting (
    number INTEGER PRIMARY KEY,
    signature TEXT NOT NULL UNIQUE,
    wire BLOB NOT NULL,
    held_until INTEGER NOT NULL
);
"""

TRANSACTION: Final = "slot, position, signature, message_hash, wire, err, memo, block_time, meta"

INSERT_TRANSACTION: Final = """
INSERT INTO transactions
       (slot, position, signature, message_hash, wire, err, memo, block_time, meta)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
SELECT_TRANSACTION: Final = """
SELECT slot, position, signature, message_hash, wire, err, memo, block_time, meta
  FROM transactions
 WHERE signature = ?
"""
SELECT_TRANSACTIONS_AFTER: Final = """
SELECT slot, position, signature, message_hash, wire, err, memo, block_time, meta
  FROM transactions
 WHERE slot > ?
 ORDER BY slot, position
"""
SELECT_PAGE: Final = """
SELECT t.slot, t.position, t.signature, t.message_hash, t.wire, t.err, t.memo, t.block_time, t.meta
  FROM mentions AS m
  JOIN transactions AS t ON t.slot = m.slot AND t.position = m.position
 WHERE m.address = ? AND m.slot <= ? AND (m.slot, m.position) < (?, ?)
   AND (m.slot, m.position) > (?, ?)
 ORDER BY m.slot DESC, m.position DESC
 LIMIT ?
"""
UPSERT_ACCOUNT: Final = """
INSERT INTO accounts (address, slot, lamports, owner, data, holder)
VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (address, slot) DO UPDATE
   SET lamports = excluded.lamports,
       owner = excluded.owner,
       data = excluded.data,
       holder = excluded.holder
"""
SELECT_ACCOUNT: Final = """
SELECT lamports, owner, data
  FROM accounts
 WHERE address = ? AND slot <= ?
 ORDER BY slot DESC
 LIMIT 1
"""
# What nobody can ask for any more: all but the newest row up to a slot.
PRUNE_ACCOUNT: Final = """
DELETE FROM accounts
 WHERE address = ?1
   AND slot < (SELECT max(slot) FROM accounts WHERE address = ?1 AND slot <= ?2)
"""

# Greater than every slot, and than every position in one.
END: Final = 2**62


@dataclass(frozen=True, slots=True)
class Landed:
    """A transaction that is in a block. `err` and `meta` are JSON."""

    slot: int
    position: int
    signature: str
    message_hash: bytes
    wire: bytes
    err: str | None
    memo: str | None
    block_time: int
    meta: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A transaction that was accepted; it may land in the slot `held_until` or later."""

    signature: str
    wire: bytes
    held_until: int


class Store:
    """The file, or memory without one. Only one process at a time can open a file."""

    def __init__(self, home: Path | None) -> None:
        """Open what is in a directory, or make it.

        Raises LocalnetInUse when another process has it, LocalnetError when it is not ours to read.
        """
        if home is not None:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = ":memory:" if home is None else str(home / FILE)
        try:
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
            self._open(path)
        except sqlite3.Error as error:
            if _is_busy(error):
                raise LocalnetInUse(f"{path} is in use by another localnet") from error
            raise LocalnetError(f"{path}: {error}") from error

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep all that the block writes, or nothing of it, on the disk when it ends."""
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA synchronous = NORMAL")

    def value(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM chain WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_value(self, name: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO chain (name, value) VALUES (?, ?)", (name, value))

    def account(self, address: Pubkey, slot: int) -> Account | None:
        """An account as it was in a slot; one without lamports is gone. None: no row says."""
        row = self._db.execute(SELECT_ACCOUNT, (bytes(address), slot)).fetchone()
        if row is None:
            return None
        lamports, owner, data = row
        return Account(lamports, data, Pubkey.from_bytes(owner), executable=False, rent_epoch=0)

    def set_account(self, address: Pubkey, slot: int, account: Account | None, floor: int) -> None:
        """Note what a slot made of an account, and forget what was superseded before `floor`."""
        key = bytes(address)
        kept = account or NO_ACCOUNT
        holding = tokens.holding(kept)
        holder = None if holding is None else bytes(holding.owner)
        row = (key, slot, kept.lamports, bytes(kept.owner), bytes(kept.data), holder)
        self._db.execute(UPSERT_ACCOUNT, row)
        self._db.execute(PRUNE_ACCOUNT, (key, floor))

    def held_by(self, holder: Pubkey) -> list[Pubkey]:
        """The token accounts that were a wallet's at some time."""
        query = "SELECT DISTINCT address FROM accounts WHERE holder = ? ORDER BY address"
        return [Pubkey.from_bytes(row[0]) for row in self._db.execute(query, (bytes(holder),))]

    def insert(self, landed: Landed, addresses: Iterable[Pubkey]) -> None:
        """Put a transaction in its block."""
        self._db.execute(
            INSERT_TRANSACTION,
            (
                landed.slot, landed.position, landed.signature, landed.message_hash, landed.wire,
                landed.err, landed.memo, landed.block_time, landed.meta,
            ),
        )  # fmt: skip
        self._db.executemany(
            "INSERT INTO mentions (address, slot, position) VALUES (?, ?, ?)",
            [(bytes(address), landed.slot, landed.position) for address in addresses],
        )

    def landed(self, signature: str) -> Landed | None:
        row = self._db.execute(SELECT_TRANSACTION, (signature,)).fetchone()
        return None if row is None else Landed(*row)

    def has_message(self, message_hash: bytes) -> bool:
        query = "SELECT 1 FROM transactions WHERE message_hash = ?"
        return self._db.execute(query, (message_hash,)).fetchone() is not None

    def page(
        self,
        address: Pubkey,
        slot: int,
        before: Landed | None,
        until: Landed | None,
        limit: int,
    ) -> list[Landed]:
        """Up to so many transactions that name an address, newest first, up to a slot."""
        newest = (END, END) if before is None else (before.slot, before.position)
        oldest = (-1, -1) if until is None else (until.slot, until.position)
        arguments = (bytes(address), slot, *newest, *oldest, limit)
        return [Landed(*row) for row in self._db.execute(SELECT_PAGE, arguments)]

    def after(self, slot: int) -> list[Landed]:
        """What later slots hold, oldest first."""
        return [Landed(*row) for row in self._db.execute(SELECT_TRANSACTIONS_AFTER, (slot,))]

    def next_position(self, slot: int) -> int:
        query = "SELECT coalesce(max(position) + 1, 0) FROM transactions WHERE slot = ?"
        return int(self._db.execute(query, (slot,)).fetchone()[0])

    def cut(self, slot: int) -> None:
        """Forget all that happened after a slot."""
        self._db.execute("DELETE FROM accounts WHERE slot > ?", (slot,))
        self._db.execute("DELETE FROM mentions WHERE slot > ?", (slot,))
        self._db.execute("DELETE FROM transactions WHERE slot > ?", (slot,))

    def waiting(self) -> list[Waiting]:
        query = "SELECT signature, wire, held_until FROM waiting ORDER BY number"
        return [Waiting(*row) for row in self._db.execute(query)]

    def add_waiting(self, waiting: Waiting) -> None:
        self._db.execute(
            "INSERT INTO waiting (signature, wire, held_until) VALUES (?, ?, ?)",
            (waiting.signature, waiting.wire, waiting.held_until),
        )

    def remove_waiting(self, signature: str) -> None:
        self._db.execute("DELETE FROM waiting WHERE signature = ?", (signature,))

    def _open(self, path: str) -> None:
        """Take the file for this process alone, and make or check its tables."""
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        with self.transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise LocalnetError(
                    f"{path} was made by another version of Pilot (format {version}, this one "
                    f"reads {VERSION}). It is a development chain: move it away to begin anew."
                )


def _is_busy(error: sqlite3.Error) -> bool:
    """Say whether another has the file: what SQLite adds above the lowest byte says why."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF == sqlite3.SQLITE_BUSY
