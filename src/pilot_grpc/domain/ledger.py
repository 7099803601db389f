"""The ledger: what an event is, what it moves, and the rule that decides a spend."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Final, NamedTuple

from pilot_grpc.domain.agents import AgentStatus
from pilot_grpc.domain.budgets import BudgetRule
from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.projects import ProjectStatus
from pilot_grpc.domain.requests import Request

AMOUNT_MAX: Final = 10**15
BATCH_SPENDS_MAX: Final = 1_000
METADATA_BYTES_MAX: Final = 16_384
HOLD_TTL_DEFAULT: Final = timedelta(minutes=10)
HOLD_TTL_MAX: Final = timedelta(days=7)


class EventType(StrEnum):
    """The direction of an event."""

    FUNDING = "funding"
    SPEND = "spend"


class EventKind(StrEnum):
    """What an event is, and so which figures it moves."""

    DEPOSIT = "deposit"
    CREDIT = "credit"
    REFUND = "refund"
    METERED = "metered"
    TRANSFER = "transfer"
    WITHDRAWAL = "withdrawal"
    SETTLEMENT = "settlement"


class EventStatus(StrEnum):
    """How far an event has come; confirmed and failed are final."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    FAILED = "failed"


class FailureReason(StrEnum):
    """Why an event failed. Those of a decline stand in the order of the decision."""

    PROJECT_NOT_ACTIVE = "project_not_active"
    VAULT_STOPPED = "vault_stopped"
    NO_BUDGET_RULE = "no_budget_rule"
    AGENT_NOT_ACTIVE = "agent_not_active"
    RECIPIENT_NOT_ALLOWED = "recipient_not_allowed"
    PER_TX_LIMIT = "per_tx_limit"
    DAILY_LIMIT = "daily_limit"
    MONTHLY_LIMIT = "monthly_limit"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    INSUFFICIENT_CHAIN_BALANCE = "insufficient_chain_balance"
    RELEASED = "released"
    EXPIRED = "expired"
    AGENT_DELETED = "agent_deleted"
    FUNDING_FAILED = "funding_failed"
    TRANSFER_EXPIRED = "transfer_expired"
    TRANSFER_FAILED = "transfer_failed"
    TRANSFER_NOT_SENT = "transfer_not_sent"
    RECIPIENT_NOT_A_WALLET = "recipient_not_a_wallet"
    RECIPIENT_HAS_NO_ACCOUNT = "recipient_has_no_account"
    ACCOUNT_FROZEN = "account_frozen"
    TRANSFER_REJECTED = "transfer_rejected"
    RECIPIENT_IS_THE_VAULT = "recipient_is_the_vault"
    DEPOSIT_UNDONE = "deposit_undone"


class Decline(NamedTuple):
    """A reason to refuse and the figures behind it; None where a figure does not apply."""

    reason: FailureReason
    limit: int | None = None
    spent: int | None = None
    held: int | None = None
    remaining: int | None = None
    window_ends_at: datetime | None = None


class Event(NamedTuple):
    """A movement of money, or a refusal of one. The amount is signed by the type.

    A named tuple, not a dataclass: a batch makes a thousand at a time.
    """

    id: EventId
    vault_id: VaultId
    agent_id: AgentId | None
    type: EventType
    kind: EventKind
    status: EventStatus
    amount: int
    authorized_amount: int | None
    expires_at: datetime | None
    failure_reason: FailureReason | None
    decline: Decline | None
    tx_hash: str | None
    metadata: str | None
    provider: str | None
    model: str | None
    refunded_event_id: EventId | None
    created_at: datetime
    updated_at: datetime
    revision: int
    recipient: str | None = None
    counterpart_event_id: EventId | None = None

    @property
    def is_open_hold(self) -> bool:
        """Whether it can still be captured or released."""
        return self.status is EventStatus.PENDING and self.authorized_amount is not None

    @property
    def is_on_its_way(self) -> bool:
        """Whether the chain has yet to decide about a payment."""
        return self.status is EventStatus.PENDING and self.recipient is not None


class Change(NamedTuple):
    """The n-th thing that happened to a vault: the event as it was then, and the figures.

    Or its drift, as JSON text, instead of an event: then `amount` is the difference, and
    PENDING stands for an open one.
    """

    vault_id: VaultId
    revision: int
    event_id: EventId | None
    previous_revision: int | None
    status: EventStatus
    amount: int
    failure_reason: FailureReason | None
    tx_hash: str | None
    balance_after: int
    chain_balance_after: int
    held_after: int
    changed_at: datetime
    digest: bytes
    drift: str | None = None


class EventFilter(NamedTuple):
    """Which events to list; None allows everything."""

    vault_id: VaultId | None = None
    agent_id: AgentId | None = None
    types: Sequence[EventType] | None = None
    kinds: Sequence[EventKind] | None = None
    statuses: Sequence[EventStatus] | None = None
    start: datetime | None = None
    end: datetime | None = None


class SpendGroup(NamedTuple):
    """The dimensions that spends share; empty where not asked for, or where they lack it."""

    day: str
    agent_id: str
    provider: str
    model: str


class SpendSummary(NamedTuple):
    """The sums of the spends of a group, in minor units."""

    group: SpendGroup
    confirmed_amount: int
    pending_amount: int
    confirmed_count: int
    pending_count: int
    failed_count: int
    declined_count: int


class Figures(NamedTuple):
    """What an event contributes to its vault's figures while it is in its status."""

    balance: int
    chain_balance: int
    held: int


class Counted(NamedTuple):
    """What an event contributes to its agent's counters; `held` is part of `spent`."""

    spent: int
    held: int
    open_holds: int


NOTHING_MOVED: Final = Figures(0, 0, 0)
NOTHING_COUNTED: Final = Counted(0, 0, 0)
_MOVES_BALANCE: Final = frozenset(EventKind) - {EventKind.SETTLEMENT}
_MOVES_CHAIN: Final = frozenset(
    {EventKind.DEPOSIT, EventKind.TRANSFER, EventKind.WITHDRAWAL, EventKind.SETTLEMENT}
)
_COUNTS_FOR_AGENT: Final = frozenset({EventKind.METERED, EventKind.TRANSFER})


def figures_of(event: Event | None) -> Figures:
    """Say what an event moves: a spend from the start, funding once it is confirmed."""
    if event is None or event.status is EventStatus.FAILED:
        return NOTHING_MOVED
    if event.type is EventType.FUNDING and event.status is EventStatus.PENDING:
        return NOTHING_MOVED
    return Figures(
        balance=event.amount if event.kind in _MOVES_BALANCE else 0,
        chain_balance=event.amount if event.kind in _MOVES_CHAIN else 0,
        held=-event.amount if event.is_open_hold else 0,
    )


def counted_of(event: Event | None) -> Counted:
    """Say what a spend counts for its agent while it is pending or confirmed."""
    if event is None or event.status is EventStatus.FAILED or event.kind not in _COUNTS_FOR_AGENT:
        return NOTHING_COUNTED
    pending = event.status is EventStatus.PENDING
    return Counted(
        spent=-event.amount,
        held=-event.amount if pending else 0,
        open_holds=1 if event.is_open_hold else 0,
    )


@dataclass(slots=True)
class Spender:
    """What a decision reads of an agent, and what the decision changes of it.

    One that is deleted spends no more; what is on its way still counts for it.
    """

    agent_id: AgentId
    vault_id: VaultId
    project_status: ProjectStatus
    status: AgentStatus
    provider: str | None
    model: str | None
    open_holds: int
    rule: BudgetRule | None
    is_deleted: bool = False


class Payment(NamedTuple):
    """What a decision reads about a payment on chain, beyond what every spend needs."""

    is_stopped: bool
    is_listed: bool
    chain_balance: int


def decline_reason(  # noqa: C901 - the order that the API promises, a line each
    spender: Spender, balance: int, amount: int, payment: Payment | None = None
) -> FailureReason | None:
    """Decide a spend; the rule must be rolled to now. None approves.

    The order is the order of FailureReason, and the first that applies is the answer.
    """
    rule = spender.rule
    if spender.project_status is not ProjectStatus.ACTIVE:
        return FailureReason.PROJECT_NOT_ACTIVE
    if payment is not None and payment.is_stopped:
        return FailureReason.VAULT_STOPPED
    if rule is None:
        return FailureReason.NO_BUDGET_RULE
    if spender.status is not AgentStatus.ACTIVE:
        return FailureReason.AGENT_NOT_ACTIVE
    if payment is not None and not (payment.is_listed or rule.any_recipient):
        return FailureReason.RECIPIENT_NOT_ALLOWED
    if amount > rule.per_tx_limit:
        return FailureReason.PER_TX_LIMIT
    if rule.daily_spent + amount > rule.daily_limit:
        return FailureReason.DAILY_LIMIT
    if rule.monthly_limit is not None and rule.monthly_spent + amount > rule.monthly_limit:
        return FailureReason.MONTHLY_LIMIT
    if amount > balance:
        return FailureReason.INSUFFICIENT_BALANCE
    if payment is not None and amount > payment.chain_balance:
        return FailureReason.INSUFFICIENT_CHAIN_BALANCE
    return None


def figures_behind(
    reason: FailureReason,
    spender: Spender,
    balance: int,
    held: int,
    payment: Payment | None = None,
) -> Decline:
    """Return the figures that a decline for this reason shows."""
    rule = spender.rule
    if reason is FailureReason.INSUFFICIENT_BALANCE:
        return Decline(reason, held=held, remaining=balance)
    if reason is FailureReason.INSUFFICIENT_CHAIN_BALANCE and payment is not None:
        return Decline(reason, remaining=payment.chain_balance)
    if rule is None:
        return Decline(reason)
    if reason is FailureReason.PER_TX_LIMIT:
        return Decline(reason, limit=rule.per_tx_limit, remaining=rule.per_tx_limit)
    if reason is FailureReason.DAILY_LIMIT:
        window = rule.day
    elif reason is FailureReason.MONTHLY_LIMIT:
        window = rule.month
    else:
        return Decline(reason)
    return Decline(
        reason, window.limit, window.spent, window.held, window.remaining, window.ends_at
    )


@dataclass(slots=True)
class DeclineRoom:
    """How many declines of an agent may still be recorded, and for how many seconds."""

    limit: int
    left: int
    seconds: float


class RuleCheck(NamedTuple):
    """One rule's own answer to a spend, and its figures."""

    passed: bool
    figures: Decline


def check_rules(
    spender: Spender, balance: int, held: int, amount: int, payment: Payment | None = None
) -> list[RuleCheck]:
    """Answer for every rule by itself, in the order of the decision.

    Rules that a missing budget rule leaves nothing to say about are left out, and so are
    those for payments on chain where there is none.
    """
    rule = spender.rule
    passed = {FailureReason.PROJECT_NOT_ACTIVE: spender.project_status is ProjectStatus.ACTIVE}
    if payment is not None:
        passed[FailureReason.VAULT_STOPPED] = not payment.is_stopped
    passed[FailureReason.NO_BUDGET_RULE] = rule is not None
    passed[FailureReason.AGENT_NOT_ACTIVE] = spender.status is AgentStatus.ACTIVE
    if payment is not None and rule is not None:
        passed[FailureReason.RECIPIENT_NOT_ALLOWED] = payment.is_listed or rule.any_recipient
    reasons = [*passed]
    if rule is not None:
        reasons += [FailureReason.PER_TX_LIMIT, FailureReason.DAILY_LIMIT]
        reasons += [FailureReason.MONTHLY_LIMIT] if rule.monthly_limit is not None else []
    reasons.append(FailureReason.INSUFFICIENT_BALANCE)
    reasons += [FailureReason.INSUFFICIENT_CHAIN_BALANCE] if payment is not None else []
    checks = []
    for reason in reasons:
        figures = figures_behind(reason, spender, balance, held, payment)
        if figures.remaining is not None:
            passed[reason] = amount <= figures.remaining
        checks.append(RuleCheck(passed[reason], figures))
    return checks


def digest_of(previous: bytes, event: Event | None, change: Change) -> bytes:
    """Return the check value of a change: it covers the change, its event, and all before.

    A field that is added later joins at the end, and only where it is set, so that the
    digests of older changes stay what they are.
    """
    content: list[object] = [
        change.revision,
        change.previous_revision,
        change.status,
        change.amount,
        change.failure_reason,
        change.tx_hash,
        change.balance_after,
        change.chain_balance_after,
        change.held_after,
        change.changed_at.isoformat(),
    ]
    if event is not None:
        content += [
            event.id,
            event.vault_id,
            event.agent_id,
            event.type,
            event.kind,
            event.authorized_amount,
            event.expires_at and event.expires_at.isoformat(),
            event.decline and encode_decline(event.decline),
            event.metadata,
            event.provider,
            event.model,
            event.refunded_event_id,
            event.created_at.isoformat(),
        ]
        if event.recipient is not None or event.counterpart_event_id is not None:
            content += [event.recipient, event.counterpart_event_id]
    else:
        content += [change.vault_id, change.drift]
    return hashlib.blake2b(previous + json.dumps(content).encode(), digest_size=16).digest()


def encode_decline(decline: Decline) -> str:
    """Write a decline as JSON, for its column."""
    figures = decline._asdict()
    ends_at = decline.window_ends_at
    figures["window_ends_at"] = ends_at and ends_at.isoformat()
    return json.dumps({name: value for name, value in figures.items() if value is not None})


def decode_decline(text: str) -> Decline:
    """Read a decline from its column."""
    figures = json.loads(text)
    ends_at = figures.pop("window_ends_at", None)
    reason = FailureReason(figures.pop("reason"))
    return Decline(reason, window_ends_at=ends_at and datetime.fromisoformat(ends_at), **figures)


@dataclass(frozen=True, slots=True)
class Spend:
    """Metered use: confirmed at once, or declined. With a recipient, a payment on chain."""

    request: Request
    vault_id: VaultId
    agent_id: AgentId
    amount: int
    provider: str | None = None
    model: str | None = None
    metadata: str | None = None
    recipient: str | None = None


@dataclass(frozen=True, slots=True)
class AuthorizeSpend:
    """A hold, until it is captured, released, or expires."""

    request: Request
    vault_id: VaultId
    agent_id: AgentId
    amount: int
    provider: str | None = None
    model: str | None = None
    metadata: str | None = None
    ttl: timedelta = HOLD_TTL_DEFAULT


@dataclass(frozen=True, slots=True)
class CaptureSpend:
    """What was really used of a hold."""

    request: Request
    vault_id: VaultId
    event_id: EventId
    amount: int


@dataclass(frozen=True, slots=True)
class ReleaseSpend:
    """A hold, given back."""

    request: Request
    vault_id: VaultId
    event_id: EventId


@dataclass(frozen=True, slots=True)
class Refund:
    """A part of a confirmed metered spend, given back."""

    request: Request
    vault_id: VaultId
    event_id: EventId
    amount: int
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class RecordFunding:
    """Money that is held elsewhere."""

    request: Request
    vault_id: VaultId
    amount: int
    pending: bool = False
    tx_hash: str | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class ConfirmFunding:
    """A pending credit that arrived."""

    request: Request
    vault_id: VaultId
    event_id: EventId


@dataclass(frozen=True, slots=True)
class FailFunding:
    """A pending credit that did not arrive."""

    request: Request
    vault_id: VaultId
    event_id: EventId


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The owner's payment to a wallet, out of both figures."""

    request: Request
    vault_id: VaultId
    amount: int
    recipient: str
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """The USDC behind metered use, paid out to its owner."""

    request: Request
    vault_id: VaultId
    amount: int
    recipient: str
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class AcknowledgeDrift:
    """The open drift, taken into the ledger as it is."""

    request: Request
    vault_id: VaultId
    drift_id: str
    amount: int


# What follows is what the chain says. Nobody asks for it, so it has no request_id: it can be
# said again at any time, and changes nothing then.


@dataclass(frozen=True, slots=True)
class RecordDeposit:
    """USDC that arrived. `landed_slot` is set once it is final, and only then it counts.

    `event_id` is the id that the payment of another vault has promised to this deposit,
    and `counterpart_event_id` is that payment.
    """

    vault_id: VaultId
    amount: int
    tx_hash: str
    landed_slot: int | None
    event_id: EventId | None = None
    counterpart_event_id: EventId | None = None
    request: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class UndoDeposit:
    """A pending deposit that a fork has undone."""

    vault_id: VaultId
    event_id: EventId
    request: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class SightTransfer:
    """A payment that is seen on chain, and not yet final; nothing if it was signed anew."""

    vault_id: VaultId
    event_id: EventId
    tx_hash: str
    request: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class ConfirmTransfer:
    """A payment that is final on chain."""

    vault_id: VaultId
    event_id: EventId
    tx_hash: str
    landed_slot: int
    request: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class FailTransfer:
    """A payment that was never made, and never will be.

    `signature` is that of its last transaction, about which this is known; None if none was
    signed. Where another one was signed meanwhile, nothing happens.
    """

    vault_id: VaultId
    event_id: EventId
    reason: FailureReason
    signature: str | None
    request: ClassVar[None] = None


OnChain = (
    Withdraw
    | Settle
    | AcknowledgeDrift
    | RecordDeposit
    | UndoDeposit
    | SightTransfer
    | ConfirmTransfer
    | FailTransfer
)

Command = (
    Spend
    | AuthorizeSpend
    | CaptureSpend
    | ReleaseSpend
    | Refund
    | RecordFunding
    | ConfirmFunding
    | FailFunding
    | OnChain
)
