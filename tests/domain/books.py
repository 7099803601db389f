"""A book to decide on, and every command, each with a request of its own."""

import copy
import itertools
from dataclasses import replace
from typing import Any, Final

from pilot_grpc.domain.book import Book
from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.ledger import (
    AcknowledgeDrift,
    AuthorizeSpend,
    CaptureSpend,
    ConfirmFunding,
    ConfirmTransfer,
    Event,
    FailFunding,
    FailTransfer,
    FailureReason,
    RecordDeposit,
    RecordFunding,
    Refund,
    ReleaseSpend,
    Settle,
    SightTransfer,
    Spend,
    UndoDeposit,
    Withdraw,
)
from pilot_grpc.domain.requests import Request
from tests.domain.examples import NOON, a_rule, a_spender, a_vault

VAULT: Final = VaultId("v")
AGENT: Final = AgentId("a")
STRANGER: Final = AgentId("s")
WALLET: Final = "wallet"

_requests = itertools.count(1)


def a_book(**changes: Any) -> Book:
    """A vault of 1000 and an agent that may spend 10 at a time and 100 a day."""
    numbers = itertools.count(1)
    book = Book(
        clock=NOON,
        vaults={VAULT: a_vault()},
        spenders={AGENT: a_spender(a_rule())},
        new_event_id=lambda: EventId(f"e{next(numbers):09}"),
        open_holds_max=3,
    )
    return replace(book, **changes)


def a_book_on_chain(**changes: Any) -> Book:
    """The same with 600 of its 1000 on chain, where the agent may pay one wallet."""
    book = a_book(vaults={VAULT: a_vault(chain_balance=600)}, pays_on_chain=True)
    return replace(book, **({"listed": {(AGENT, WALLET)}} | changes))


def asked(rpc: str = "Spend", scope: str = AGENT) -> Request:
    return Request(scope, f"r{next(_requests)}", rpc, "")


def spend(amount: int, agent_id: AgentId = AGENT, **fields: Any) -> Spend:
    return replace(Spend(asked("Spend", agent_id), VAULT, agent_id, amount), **fields)


def hold(amount: int, **fields: Any) -> AuthorizeSpend:
    return AuthorizeSpend(asked("AuthorizeSpend"), VAULT, AGENT, amount, **fields)


def capture(event: Event, amount: int) -> CaptureSpend:
    return CaptureSpend(asked("CaptureSpend"), VAULT, event.id, amount)


def release(event: Event) -> ReleaseSpend:
    return ReleaseSpend(asked("ReleaseSpend"), VAULT, event.id)


def refund(event: Event, amount: int) -> Refund:
    return Refund(asked("Refund", VAULT), VAULT, event.id, amount)


def fund(amount: int, **fields: Any) -> RecordFunding:
    return RecordFunding(asked("RecordFunding", VAULT), VAULT, amount, **fields)


def confirm(event: Event) -> ConfirmFunding:
    return ConfirmFunding(asked("ConfirmFunding", VAULT), VAULT, event.id)


def fail(event: Event) -> FailFunding:
    return FailFunding(asked("FailFunding", VAULT), VAULT, event.id)


def pay(amount: int, recipient: str = WALLET) -> Spend:
    return spend(amount, recipient=recipient)


def withdraw(amount: int, recipient: str = WALLET) -> Withdraw:
    return Withdraw(asked("Withdraw", VAULT), VAULT, amount, recipient)


def settle(amount: int, recipient: str = WALLET) -> Settle:
    return Settle(asked("Settle", VAULT), VAULT, amount, recipient)


def deposit(
    amount: int, tx_hash: str = "deposit", *, landed: int | None = None, **fields: Any
) -> RecordDeposit:
    return RecordDeposit(VAULT, amount, tx_hash, landed, **fields)


def undo(event: Event) -> UndoDeposit:
    return UndoDeposit(VAULT, event.id)


def sight(event: Event, tx_hash: str = "payment") -> SightTransfer:
    return SightTransfer(VAULT, event.id, tx_hash)


def land(event: Event, tx_hash: str = "payment", slot: int = 7) -> ConfirmTransfer:
    return ConfirmTransfer(VAULT, event.id, tx_hash, slot)


def lose(
    event: Event,
    signature: str | None = None,
    reason: FailureReason = FailureReason.TRANSFER_EXPIRED,
) -> FailTransfer:
    return FailTransfer(VAULT, event.id, reason, signature)


def acknowledge(amount: int, drift_id: str = "d") -> AcknowledgeDrift:
    return AcknowledgeDrift(asked("AcknowledgeDrift", VAULT), VAULT, drift_id, amount)


def everything(book: Book) -> Any:
    """All that a refused command must leave as it was."""
    parts = (
        *("vaults", "events", "refunded", "tx_hashes", "answers", "created", "changed"),
        *("changes", "new_answers", "movements", "acknowledged"),
    )
    open_holds = [spender.open_holds for spender in book.spenders.values()]
    return copy.deepcopy(([getattr(book, part) for part in parts], open_holds))
