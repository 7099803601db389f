"""LiteSVM as a function: accounts and a transaction in, accounts and logs out.

It is given every account that a transaction names before each run, so it holds no state that
matters: not its history (of 32, by default), not its one blockhash, not what an undone fork left.
Signatures, blockhashes and duplicates are judged by the chain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from solders.account import Account
from solders.clock import Clock
from solders.litesvm import LiteSVM
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import (
    FailedTransactionMetadata,
    SimulatedTransactionInfo,
    TransactionMetadata,
)
from solders.transaction_status import TransactionStatus

from pilot_grpc.solana.localnet.tokens import NO_ACCOUNT

SYSVARS: Final = Pubkey.from_string("Sysvar1111111111111111111111111111111111111")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did. `err` is JSON as Solana writes it; `accounts` those named, afterwards.

    When it was only simulated and failed, `accounts` is empty.
    """

    err: Any
    meta: TransactionMetadata
    accounts: Mapping[Pubkey, Account | None]


class Runtime:
    """Runs transactions, one at a time."""

    def __init__(self) -> None:
        """Boot, which takes some 10 ms."""
        self._svm = (
            LiteSVM()
            .with_sigverify(sigverify=False)
            .with_blockhash_check(check=False)
            .with_transaction_history(0)
        )
        self._genesis = LiteSVM()

    def genesis(self, address: Pubkey) -> Account | None:
        """What was there before the first transaction: programs and sysvars."""
        return self._genesis.get_account(address)

    def rent(self, size: int) -> int:
        """How many lamports an account of so many bytes must hold."""
        return self._genesis.minimum_balance_for_rent_exemption(size)

    def execute(
        self,
        transaction: VersionedTransaction,
        accounts: Mapping[Pubkey, Account | None],
        slot: int,
        seconds: int,
    ) -> Outcome:
        """Run a transaction on these accounts, which must be all that it names."""
        self._load(accounts, slot, seconds)
        result = self._svm.send_transaction(transaction)
        after = {
            address: account if _is_fixed(account) else self._svm.get_account(address)
            for address, account in accounts.items()
        }
        if isinstance(result, FailedTransactionMetadata):
            return Outcome(_error(result), result.meta(), after)
        return Outcome(None, result, after)

    def simulate(
        self,
        transaction: VersionedTransaction,
        accounts: Mapping[Pubkey, Account | None],
        slot: int,
        seconds: int,
    ) -> Outcome:
        """Say what a run on these accounts would do."""
        self._load(accounts, slot, seconds)
        result = self._svm.simulate_transaction(transaction)
        if isinstance(result, SimulatedTransactionInfo):
            return Outcome(None, result.meta(), dict(result.post_accounts()))
        return Outcome(_error(result), result.meta(), {})

    def _load(self, accounts: Mapping[Pubkey, Account | None], slot: int, seconds: int) -> None:
        for address, account in accounts.items():
            if not _is_fixed(account) and self._svm.get_account(address) != account:
                self._svm.set_account(address, account or NO_ACCOUNT)
        self._svm.set_clock(Clock(slot, 0, 0, 0, seconds))


def _is_fixed(account: Account | None) -> bool:
    """Say whether an account is a program, or the runtime's own: those are always there."""
    return account is not None and (account.executable or account.owner == SYSVARS)


def error_text(err: Any) -> str:
    """Say a transaction error as a validator does in its messages."""
    if isinstance(err, str):
        return ERRORS.get(err, err)
    if "InstructionError" in err:
        index, reason = err["InstructionError"]
        return f"Error processing Instruction {index}: {_instruction_error_text(reason)}"
    return json.dumps(err)


ERRORS: Final = {
    "AccountNotFound": "Attempt to debit an account but found no record of a prior credit.",
    "AlreadyProcessed": "This transaction has already been processed",
    "BlockhashNotFound": "Blockhash not found",
    "InsufficientFundsForFee": "Insufficient funds for fee",
}
INSTRUCTION_ERRORS: Final = {
    "ComputationalBudgetExceeded": "Computational budget exceeded",
    "IllegalOwner": "Provided owner is not allowed",
    "IncorrectProgramId": "incorrect program id for instruction",
    "InsufficientFunds": "insufficient funds for instruction",
    "InvalidAccountData": "invalid account data for instruction",
    "MissingRequiredSignature": "missing required signature for instruction",
    "ProgramFailedToComplete": "Program failed to complete",
}


def _instruction_error_text(reason: Any) -> str:
    if isinstance(reason, dict) and "Custom" in reason:
        return f"custom program error: {reason['Custom']:#x}"
    return INSTRUCTION_ERRORS.get(reason, str(reason)) if isinstance(reason, str) else str(reason)


def _error(failed: FailedTransactionMetadata) -> Any:
    """Write an error as JSON; only a status can do so."""
    err = failed.err()
    return json.loads(TransactionStatus(slot=0, status=err, err=err).to_json())["err"]


def named(transaction: VersionedTransaction) -> Sequence[Pubkey]:
    """Every account that a transaction names."""
    return transaction.message.account_keys
