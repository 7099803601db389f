"""The chain: slots, blockhashes and commitment around the runtime, and what is kept of them.

A transaction that is accepted waits for the next slot, and lands in it unless its blockhash has
expired, it has landed before, or nobody can pay its fee. Everything is read as of a slot, which
stands for a commitment: the tip is `processed`, and what is some slots older `confirmed`, then
`finalized`. Nothing here is asynchronous, so whatever happens in one call happens at once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from solders.account import Account
from solders.hash import Hash
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction
from spl.token.constants import MINT_LEN, TOKEN_PROGRAM_ID

from pilot_grpc.solana.localnet import shapes, tokens
from pilot_grpc.solana.localnet.errors import LocalnetError
from pilot_grpc.solana.localnet.runtime import Outcome, Runtime, named
from pilot_grpc.solana.localnet.store import END, Landed, Store, Waiting

# A height is not a slot: on a real chain some slots have no block.
HEIGHT_BEHIND_SLOT: Final = 700
FIRST_SLOT: Final = 1_000

# So many blocks after the one that made it, a blockhash is still good.
BLOCKHASH_BLOCKS: Final = 150
FINALIZED_SLOTS_MAX: Final = 150
# How far a node may lag: accounts are kept as they were so many slots before the finalized one.
LAG_SLOTS_MAX: Final = 300
BLOCK_TRANSACTIONS_MAX: Final = 500
WAITING_MAX: Final = 10_000
# Empty slots are not written down. After `kill -9` the chain goes on after those it may have had.
RESERVED_SLOTS: Final = 64

FAUCET_LAMPORTS: Final = 5 * 10**17

HELD_FOR_EVER: Final = END


class Commitment(StrEnum):
    """How sure it is that a slot stays."""

    PROCESSED = "processed"
    CONFIRMED = "confirmed"
    FINALIZED = "finalized"


class Crowded(Exception):
    """Too many transactions wait for a slot."""


class Chain:
    """One chain. Any number of endpoints may serve it."""

    def __init__(
        self,
        home: Path | None,
        *,
        confirmed_slots: int = 1,
        finalized_slots: int = 32,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Go on with the chain of a directory, or begin one; None keeps it in memory.

        Raises LocalnetError.
        """
        if not 0 <= confirmed_slots <= finalized_slots <= FINALIZED_SLOTS_MAX:
            raise LocalnetError(
                f"confirmed_slots ({confirmed_slots}) and finalized_slots ({finalized_slots}) must "
                f"be in this order between 0 and {FINALIZED_SLOTS_MAX}"
            )
        self.confirmed_slots = confirmed_slots
        self.finalized_slots = finalized_slots
        # What getRecentPrioritizationFees answers, in micro-lamports a compute unit.
        self.prioritization_fee = 0
        self._now = now
        self._runtime = Runtime()
        self._store = Store(home)
        with self._store.transaction():
            self._seed = self._store.value("seed") or self._begin()
            self.tip = int(self._store.value("tip") or FIRST_SLOT)
            self._reserve()
        self._block_seconds = int(now())
        self._waiting = {each.signature: each for each in self._store.waiting()}
        # The chain's seed makes its blockhashes its own: what was signed for another one that
        # had the same slots lands never.
        self._heights = {
            self.blockhash(slot): self.height(slot)
            for slot in range(max(1, self.tip - self._blockhashes_kept()), self.tip + 1)
        }

    def close(self) -> None:
        """Note where the chain stands, and let go of its file."""
        self._store.set_value("tip", str(self.tip).encode())
        self._store.close()

    # Time.

    def slot(self, commitment: Commitment, lag: int = 0) -> int:
        """The newest slot of a commitment, for a node that lags so many slots."""
        behind = {
            Commitment.PROCESSED: 0,
            Commitment.CONFIRMED: self.confirmed_slots,
            Commitment.FINALIZED: self.finalized_slots,
        }
        return self.tip - lag - behind[commitment]

    @staticmethod
    def height(slot: int) -> int:
        return slot - HEIGHT_BEHIND_SLOT

    def blockhash(self, slot: int) -> Hash:
        return Hash(hashlib.sha256(self._seed + slot.to_bytes(8, "little")).digest())

    def last_valid_height(self, blockhash: Hash) -> int | None:
        """The last block that may hold a transaction with this blockhash; None: not known."""
        height = self._heights.get(blockhash)
        return None if height is None else height + BLOCKHASH_BLOCKS

    def is_valid(self, blockhash: Hash, slot: int) -> bool:
        """Say whether a transaction with this blockhash is good in, or right after, a slot."""
        last = self.last_valid_height(blockhash)
        return last is not None and last - BLOCKHASH_BLOCKS <= self.height(slot) <= last

    def tick(self, slots: int = 1) -> None:
        """Make blocks."""
        for _ in range(slots):
            self._make_block()

    # Writing.

    def submit(self, transaction: VersionedTransaction, *, held_until: int = 0) -> None:
        """Take a transaction, which may land in the next slot, or in a later one if it is held.

        One that waits already waits on as it was; one that has landed will not land again. Raises
        Crowded.
        """
        signature = str(transaction.signatures[0])
        if signature in self._waiting:
            return
        if len(self._waiting) >= WAITING_MAX:
            raise Crowded
        waiting = Waiting(signature, bytes(transaction), held_until)
        self._store.add_waiting(waiting)
        self._waiting[signature] = waiting

    def release(self, signatures: Collection[str] | None = None) -> int:
        """Let held transactions land, all or these, and say how many they were."""
        held = [
            each
            for each in self._waiting.values()
            if each.held_until > self.tip and (signatures is None or each.signature in signatures)
        ]
        with self._store.transaction():
            for each in held:
                self._wait(Waiting(each.signature, each.wire, 0))
        return len(held)

    def fork_away(
        self, signatures: Collection[str] | None = None, *, reinclude: bool = False
    ) -> list[str]:
        """Undo what is not finalized, and answer what vanished: all of it, or these.

        The others land again, in the order in which they had, in the current slot. What vanished
        waits for the next slot when it is to be included again.
        """
        root = self.slot(Commitment.FINALIZED)
        vanished = []
        with self._store.transaction():
            undone = self._store.after(root)
            self._store.cut(root)
            for each in undone:
                if signatures is None or each.signature in signatures:
                    vanished.append(each)
                else:
                    self._land(each.wire)
            for each in vanished if reinclude else ():
                self._wait(Waiting(each.signature, each.wire, 0))
        return [each.signature for each in vanished]

    # The faucet.

    def airdrop(self, wallet: Pubkey, lamports: int) -> str:
        """Send SOL to a wallet with the next slot; answers the signature."""
        faucet = tokens.FAUCET.pubkey()
        params = TransferParams(from_pubkey=faucet, to_pubkey=wallet, lamports=lamports)
        return self._submit_own([transfer(params)])

    def faucet(self, wallet: Pubkey, amount: int, mint: Pubkey = tokens.USDC) -> str:
        """Mint to the associated token account of a wallet with the next slot.

        Answers the signature. Raises LookupError when there is no such mint yet.
        """
        account = self.account(mint, self.tip)
        found = tokens.mint(account)
        if account is None or found is None:
            raise LookupError(f"{mint} is no mint in slot {self.tip}")
        deposit = tokens.deposit(wallet, amount, mint, found.decimals, account.owner)
        return self._submit_own(deposit)

    def create_mint(self, decimals: int = 6, program: Pubkey = TOKEN_PROGRAM_ID) -> Pubkey:
        """Make another mint with the next slot, for tests of money that is not USDC."""
        keypair = Keypair()
        rent = self._runtime.rent(MINT_LEN)
        self._submit_own(tokens.new_mint(keypair.pubkey(), decimals, program, rent), keypair)
        return keypair.pubkey()

    # Reading.

    def account(self, address: Pubkey, slot: int) -> Account | None:
        """An account as it was in a slot."""
        found = self._store.account(address, slot)
        if found is None:
            return self._runtime.genesis(address)
        return found if found.lamports else None

    def decimals(self, mint: Pubkey, slot: int) -> int:
        """The decimals of a mint; 0 when it is none."""
        found = tokens.mint(self.account(mint, slot))
        return 0 if found is None else found.decimals

    def token_accounts(self, holder: Pubkey, slot: int) -> list[tuple[Pubkey, Account]]:
        """The token accounts that were a wallet's in a slot."""
        found = []
        for address in self._store.held_by(holder):
            account = self.account(address, slot)
            holding = tokens.holding(account)
            if account is not None and holding is not None and holding.owner == holder:
                found.append((address, account))
        return found

    def landed(self, signature: str, slot: int = END) -> Landed | None:
        """A transaction that is in a block, if that block is not after a slot."""
        found = self._store.landed(signature)
        return found if found is not None and found.slot <= slot else None

    def page(
        self, address: Pubkey, slot: int, before: Landed | None, until: Landed | None, limit: int
    ) -> list[Landed]:
        """Up to so many transactions that name an address, newest first, up to a slot."""
        return self._store.page(address, slot, before, until, limit)

    def rent(self, size: int) -> int:
        """How many lamports an account of so many bytes must hold."""
        return self._runtime.rent(size)

    def simulate(self, transaction: VersionedTransaction, slot: int) -> Outcome:
        """Say what a transaction would do on the state of a slot, whatever its blockhash."""
        accounts = {address: self.account(address, slot) for address in named(transaction)}
        return self._runtime.simulate(transaction, accounts, slot, self._block_seconds)

    # What is behind that.

    def _begin(self) -> bytes:
        seed = secrets.token_bytes(32)
        self._store.set_value("seed", seed)
        usdc = tokens.usdc_mint(self._runtime.rent(MINT_LEN))
        self._store.set_account(tokens.USDC, 0, usdc, 0)
        purse = Account(FAUCET_LAMPORTS, b"", SYSTEM_PROGRAM, executable=False, rent_epoch=0)
        self._store.set_account(tokens.FAUCET.pubkey(), 0, purse, 0)
        return seed

    def _reserve(self) -> None:
        self._reserved = self.tip + RESERVED_SLOTS
        self._store.set_value("tip", str(self._reserved).encode())

    def _blockhashes_kept(self) -> int:
        return BLOCKHASH_BLOCKS + self.finalized_slots + LAG_SLOTS_MAX

    def _make_block(self) -> None:
        self.tip += 1
        self._block_seconds = max(self._block_seconds, int(self._now()))
        self._heights[self.blockhash(self.tip)] = self.height(self.tip)
        self._heights.pop(self.blockhash(self.tip - self._blockhashes_kept() - 1), None)
        if self.tip >= self._reserved:
            self._reserve()
        due = [each for each in self._waiting.values() if self._is_due(each)]
        if not due:
            return
        with self._store.transaction():
            for each in due[:BLOCK_TRANSACTIONS_MAX]:
                self._land(each.wire)
                self._store.remove_waiting(each.signature)
        for each in due[:BLOCK_TRANSACTIONS_MAX]:
            del self._waiting[each.signature]

    def _is_due(self, waiting: Waiting) -> bool:
        """Say whether this slot takes a transaction, or forgets it: what is held expires, too."""
        if waiting.held_until <= self.tip:
            return True
        transaction = VersionedTransaction.from_bytes(waiting.wire)
        return not self.is_valid(transaction.message.recent_blockhash, self.tip)

    def _wait(self, waiting: Waiting) -> None:
        self._store.remove_waiting(waiting.signature)
        self._store.add_waiting(waiting)
        self._waiting[waiting.signature] = waiting

    def _land(self, wire: bytes) -> None:
        """Put a transaction in the current block, unless it is one that no block can hold."""
        transaction = VersionedTransaction.from_bytes(wire)
        message = transaction.message
        if not all(transaction.verify_with_results()):
            return
        if not self.is_valid(message.recent_blockhash, self.tip):
            return
        message_hash = bytes(message.hash())
        if self._store.has_message(message_hash):
            return
        before = {address: self.account(address, self.tip) for address in named(transaction)}
        outcome = self._runtime.execute(transaction, before, self.tip, self._block_seconds)
        payer = message.account_keys[0]
        if outcome.err is not None and _lamports(outcome.accounts[payer]) == _lamports(
            before[payer]
        ):
            return  # It could not even pay its fee.
        self._keep(transaction, message_hash, before, outcome)

    def _keep(
        self,
        transaction: VersionedTransaction,
        message_hash: bytes,
        before: Mapping[Pubkey, Account | None],
        outcome: Outcome,
    ) -> None:
        floor = self.slot(Commitment.FINALIZED, LAG_SLOTS_MAX)
        for address, account in outcome.accounts.items():
            if account != before[address]:
                self._store.set_account(address, self.tip, account, floor)
        meta = shapes.transaction_meta(
            transaction, before, outcome, lambda mint: self.decimals(mint, self.tip)
        )
        landed = Landed(
            slot=self.tip,
            position=self._store.next_position(self.tip),
            signature=str(transaction.signatures[0]),
            message_hash=message_hash,
            wire=bytes(transaction),
            err=None if outcome.err is None else _json(outcome.err),
            memo=shapes.memo(transaction),
            block_time=self._block_seconds,
            meta=_json(meta),
        )
        self._store.insert(landed, named(transaction))

    def _submit_own(self, instructions: list[Instruction], *signers: Keypair) -> str:
        """Sign with the faucet and submit; the memo makes two equal ones differ."""
        message = MessageV0.try_compile(
            tokens.FAUCET.pubkey(),
            [*instructions, tokens.memo(f"faucet {secrets.token_hex(8)}")],
            [],
            self.blockhash(self.tip),
        )
        transaction = VersionedTransaction(message, [tokens.FAUCET, *signers])
        self.submit(transaction)
        return str(transaction.signatures[0])


def _lamports(account: Account | None) -> int:
    return 0 if account is None else account.lamports


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
