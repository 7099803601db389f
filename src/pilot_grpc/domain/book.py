"""The locked rows that one batch decides on, and what it decided.

A book is filled under the vaults' locks, folds commands over what it holds, and is then
written back in the same transaction. A command that is refused leaves it as it was.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from pilot_grpc import errors
from pilot_grpc.domain import ledger
from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.ledger import (
    Change,
    Command,
    DeclineRoom,
    Event,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
    Spender,
)
from pilot_grpc.domain.requests import Request
from pilot_grpc.domain.vaults import BALANCE_MAX, Drift, Vault, encode_drift

OVERDUE_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A request and the event as its answer showed it."""

    request: Request
    event: Event


class Movement(NamedTuple):
    """A transaction that is final on chain, and what it moved of a vault's USDC."""

    vault_id: VaultId
    signature: str
    slot: int
    delta: int
    event_id: EventId | None


class Acknowledged(NamedTuple):
    """Up to which slot an acknowledged drift had all that moved, and the event it became."""

    slot: int
    event_id: EventId


@dataclass(slots=True)
class Book:
    """What a batch reads and decides.

    `events` are those that the commands name, `refunded` what was given back of each
    before, `tx_hashes` the events of the signatures that the commands name, `answers`
    those of the requests that were answered before. `clock` is the database's time,
    read after the locks. All are complete for the commands of the batch. In the vaults
    of `more_overdue` more holds are overdue than one batch settles, and `decline_rooms`
    says how often an agent may still be declined; an agent that is missing, always.

    For payments on chain: `listed` are the agents and recipients of the commands that go
    together, `vault_ids` the vaults that are recipients, `signatures` the transactions that
    pending payments last signed, `on_their_way` counts those payments of vaults, and
    `in_drifts` says up to where deposits were taken in with a drift.
    """

    clock: datetime
    vaults: dict[VaultId, Vault]
    spenders: dict[AgentId, Spender]
    new_event_id: Callable[[], EventId]
    open_holds_max: int
    allow_credits: bool = True
    pays_on_chain: bool = False
    more_overdue: set[VaultId] = field(default_factory=set)
    decline_rooms: dict[AgentId, DeclineRoom] = field(default_factory=dict)
    events: dict[EventId, Event] = field(default_factory=dict)
    refunded: dict[EventId, int] = field(default_factory=dict)
    tx_hashes: dict[tuple[VaultId, EventType, str], EventId] = field(default_factory=dict)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    listed: set[tuple[AgentId, str]] = field(default_factory=set)
    vault_ids: dict[str, VaultId] = field(default_factory=dict)
    signatures: dict[EventId, str | None] = field(default_factory=dict)
    on_their_way: dict[VaultId, int] = field(default_factory=dict)
    in_drifts: dict[VaultId, Acknowledged] = field(default_factory=dict)

    created: dict[EventId, Event] = field(default_factory=dict, init=False)
    changed: dict[EventId, Event] = field(default_factory=dict, init=False)
    changes: list[Change] = field(default_factory=list, init=False)
    new_answers: list[Answer] = field(default_factory=list, init=False)
    movements: list[Movement] = field(default_factory=list, init=False)
    acknowledged: list[tuple[Drift, EventId]] = field(default_factory=list, init=False)
    _may_refuse_decline: bool = field(default=False, init=False)

    def now(self, vault: Vault) -> datetime:
        """Return the time of a decision in this batch."""
        return vault.time(self.clock)

    def answer_all(self, commands: Sequence[Command]) -> list[Event]:
        """Decide commands in order, all of them or, when one is refused, none."""
        if len(commands) == 1:
            return [self.answer(commands[0], may_refuse_decline=True)]
        for command in commands:
            self._must_be_answerable(command)
        return [self.answer(command) for command in commands]

    def _must_be_answerable(self, command: Command) -> None:
        """Raise what would refuse a spend of a batch; only spends come in batches."""
        if not isinstance(command, ledger.Spend):
            raise TypeError(f"{type(command).__name__} in a batch")
        request = command.request
        before = self.answers.get((request.scope_id, request.request_id))
        if before is not None:
            before.request.must_equal(request.rpc, request.fingerprint)
        else:
            self._must_be_declinable(self._spender(command.agent_id))
            if command.recipient is not None:
                self._must_pay_on_chain()

    def answer(self, command: Command, *, may_refuse_decline: bool = False) -> Event:
        """Decide a command, or give the first answer again; raise PilotError to refuse.

        A decline that must not be recorded now can be refused, too.
        """
        request = command.request
        if request is None:
            return self._decide(command)
        key = request.scope_id, request.request_id
        before = self.answers.get(key)
        if before is not None:
            before.request.must_equal(request.rpc, request.fingerprint)
            return before.event
        self._may_refuse_decline = may_refuse_decline
        event = self._decide(command)
        self.answers[key] = answer = Answer(request, event)
        self.new_answers.append(answer)
        return event

    def _decide(self, command: Command) -> Event:
        vault = self._vault(command)
        match command:
            case ledger.Spend():
                return self._spend(vault, command)
            case ledger.AuthorizeSpend():
                return self._authorize(vault, command)
            case ledger.CaptureSpend():
                return self._capture(vault, command)
            case ledger.ReleaseSpend():
                hold = self._open_hold(vault, command.event_id)
                return self._fail(vault, hold, FailureReason.RELEASED)
            case ledger.Refund():
                return self._refund(vault, command)
            case ledger.RecordFunding():
                return self._fund(vault, command)
            case ledger.ConfirmFunding():
                return self._confirm_funding(vault, command)
            case ledger.FailFunding():
                credit = self._pending_credit(command.event_id)
                return self._fail(vault, credit, FailureReason.FUNDING_FAILED)
            case _:
                return self._decide_on_chain(vault, command)

    def _decide_on_chain(self, vault: Vault, command: ledger.OnChain) -> Event:
        """Take what owners want of the chain and what the chain says.

        What it says again changes nothing.
        """
        match command:
            case ledger.Withdraw():
                return self._pay_owner(vault, command, EventKind.WITHDRAWAL, vault.withdrawable)
            case ledger.Settle():
                return self._pay_owner(vault, command, EventKind.SETTLEMENT, vault.settleable)
            case ledger.AcknowledgeDrift():
                return self._acknowledge(vault, command)
            case ledger.RecordDeposit():
                return self._deposit(vault, command)
            case ledger.UndoDeposit():
                return self._undo_deposit(vault, command)
            case ledger.SightTransfer():
                return self._sight(vault, command)
            case ledger.ConfirmTransfer():
                return self._confirm_transfer(vault, command)
            case ledger.FailTransfer():
                return self._fail_transfer(vault, command)

    def _vault(self, command: Command) -> Vault:
        vault = self.vaults.get(command.vault_id)
        if vault is not None:
            return vault
        if isinstance(command, ledger.Spend | ledger.AuthorizeSpend):
            raise errors.NotFound(resource="agent", id=command.agent_id)
        raise errors.NotFound(resource="vault", id=command.vault_id)

    def expire(self, overdue: Iterable[Event]) -> None:
        """Settle holds that are overdue, before anything is decided."""
        for hold in overdue:
            self._fail(self.vaults[hold.vault_id], hold, FailureReason.EXPIRED)

    def release_deleted(self, holds: Iterable[Event]) -> None:
        """Give back the holds of an agent that is deleted."""
        for hold in holds:
            self._fail(self.vaults[hold.vault_id], hold, FailureReason.AGENT_DELETED)

    def stop(self, drift: Drift) -> Change:
        """Stop the transfers of the only vault here, or say how its drift is by now.

        A drift of nothing is over.
        """
        (vault,) = self.vaults.values()
        vault.drift = drift if drift.amount else None
        status = EventStatus.PENDING if drift.amount else EventStatus.CONFIRMED
        return self._record_drift(vault, drift, status)

    def _spend(self, vault: Vault, command: ledger.Spend) -> Event:
        spender, now = self._spender(command.agent_id), self.now(vault)
        if command.recipient is not None:
            self._must_pay_on_chain()
            return self._transfer(vault, spender, command, command.recipient)
        decline = self._decline(spender, vault, command.amount, now)
        status = EventStatus.CONFIRMED if decline is None else EventStatus.FAILED
        return self._record(vault, None, self._spent(spender, command, status, decline, now))

    def _transfer(
        self, vault: Vault, spender: Spender, command: ledger.Spend, recipient: str
    ) -> Event:
        now = self.now(vault)
        payment = ledger.Payment(
            is_stopped=vault.drift is not None,
            is_listed=(spender.agent_id, recipient) in self.listed,
            chain_balance=vault.chain_balance,
        )
        decline = self._decline(spender, vault, command.amount, now, payment)
        status = EventStatus.PENDING if decline is None else EventStatus.FAILED
        event = self._spent(spender, command, status, decline, now)
        event = event._replace(kind=EventKind.TRANSFER, recipient=recipient)
        return self._record(vault, None, self._with_counterpart(vault, event))

    def _must_pay_on_chain(self) -> None:
        if not self.pays_on_chain:
            raise errors.RecipientUnsupported

    def _with_counterpart(self, vault: Vault, event: Event) -> Event:
        """Promise an id to the deposit that a payment to another vault becomes there."""
        other = self.vault_ids.get(event.recipient or "")
        if other is None or other == vault.id or event.status is EventStatus.FAILED:
            return event
        return event._replace(counterpart_event_id=self.new_event_id())

    def _authorize(self, vault: Vault, command: ledger.AuthorizeSpend) -> Event:
        spender, now = self._spender(command.agent_id), self.now(vault)
        decline = self._decline(spender, vault, command.amount, now)
        if decline is None and spender.open_holds >= self.open_holds_max:
            raise errors.OpenHoldsLimit(limit=self.open_holds_max)
        status = EventStatus.PENDING if decline is None else EventStatus.FAILED
        event = self._spent(spender, command, status, decline, now)
        if decline is None:
            event = event._replace(authorized_amount=command.amount, expires_at=now + command.ttl)
        return self._record(vault, None, event)

    def _spender(self, agent_id: AgentId) -> Spender:
        spender = self.spenders.get(agent_id)
        if spender is None or spender.is_deleted:
            raise errors.NotFound(resource="agent", id=agent_id)
        return spender

    def _decline(
        self,
        spender: Spender,
        vault: Vault,
        amount: int,
        now: datetime,
        payment: ledger.Payment | None = None,
    ) -> ledger.Decline | None:
        if spender.rule is not None:
            spender.rule.roll(now)
        reason = ledger.decline_reason(spender, vault.balance, amount, payment)
        if reason is None:
            return None
        if self._may_refuse_decline:
            self._must_be_declinable(spender)
        return ledger.figures_behind(reason, spender, vault.balance, vault.held, payment)

    def _must_be_declinable(self, spender: Spender) -> None:
        """Raise unless a decline of an agent would be right, and may be recorded."""
        if spender.vault_id in self.more_overdue:
            raise errors.Overloaded(retry_after=OVERDUE_RETRY_SECONDS)
        room = self.decline_rooms.get(spender.agent_id)
        if room is not None and room.left <= 0:
            raise errors.DeclinesLimited(limit=room.limit, retry_after=room.seconds)

    def _spent(
        self,
        spender: Spender,
        command: ledger.Spend | ledger.AuthorizeSpend,
        status: EventStatus,
        decline: ledger.Decline | None,
        now: datetime,
    ) -> Event:
        return Event(
            id=self.new_event_id(),
            vault_id=spender.vault_id,
            agent_id=spender.agent_id,
            type=EventType.SPEND,
            kind=EventKind.METERED,
            status=status,
            amount=-command.amount,
            authorized_amount=None,
            expires_at=None,
            failure_reason=decline and decline.reason,
            decline=decline,
            tx_hash=None,
            metadata=command.metadata,
            provider=command.provider or spender.provider,
            model=command.model or spender.model,
            refunded_event_id=None,
            created_at=now,
            updated_at=now,
            revision=0,
        )

    def _capture(self, vault: Vault, command: ledger.CaptureSpend) -> Event:
        hold = self._open_hold(vault, command.event_id)
        if command.amount > -hold.amount:
            raise errors.CaptureExceedsHold(authorized_amount=-hold.amount)
        captured = hold._replace(status=EventStatus.CONFIRMED, amount=-command.amount)
        return self._record(vault, hold, captured)

    def _open_hold(self, vault: Vault, event_id: EventId) -> Event:
        event = self._event(event_id)
        if event.failure_reason is FailureReason.EXPIRED:
            raise errors.HoldExpired(expire_time=_text(event.expires_at))
        if not event.is_open_hold or event.expires_at is None:
            raise errors.HoldNotOpen(status=event.status)
        if event.expires_at <= self.now(vault):
            raise errors.HoldExpired(expire_time=_text(event.expires_at))
        return event

    def _event(self, event_id: EventId) -> Event:
        event = self.events.get(event_id)
        if event is None:
            raise errors.NotFound(resource="event", id=event_id)
        return event

    def _refund(self, vault: Vault, command: ledger.Refund) -> Event:
        spend = self._event(command.event_id)
        if spend.kind is not EventKind.METERED or spend.status is not EventStatus.CONFIRMED:
            raise errors.SpendNotRefundable(kind=spend.kind, status=spend.status)
        refunded = self.refunded.get(spend.id, 0)
        if refunded + command.amount > -spend.amount:
            raise errors.RefundExceedsSpend(remaining=-spend.amount - refunded)
        _must_fit(vault, command.amount)
        event = self._new(vault, EventKind.REFUND, EventStatus.CONFIRMED, command.amount)
        event = event._replace(
            agent_id=spend.agent_id, refunded_event_id=spend.id, metadata=command.metadata
        )
        self.refunded[spend.id] = refunded + command.amount
        return self._record(vault, None, event)

    def _fund(self, vault: Vault, command: ledger.RecordFunding) -> Event:
        status = EventStatus.PENDING if command.pending else EventStatus.CONFIRMED
        if status is EventStatus.CONFIRMED:
            _must_fit(vault, command.amount)
        event = self._new(vault, EventKind.CREDIT, status, command.amount)
        event = event._replace(metadata=command.metadata)
        if not self.allow_credits:
            raise errors.CreditsDisabled
        if command.tx_hash is not None:
            key = vault.id, EventType.FUNDING, command.tx_hash
            if key in self.tx_hashes:
                raise errors.TxHashTaken(event_id=self.tx_hashes[key])
            self.tx_hashes[key] = event.id
            event = event._replace(tx_hash=command.tx_hash)
        return self._record(vault, None, event)

    def _confirm_funding(self, vault: Vault, command: ledger.ConfirmFunding) -> Event:
        credit = self._pending_credit(command.event_id)
        _must_fit(vault, credit.amount)
        return self._record(vault, credit, credit._replace(status=EventStatus.CONFIRMED))

    def _pending_credit(self, event_id: EventId) -> Event:
        event = self._event(event_id)
        if event.kind is not EventKind.CREDIT or event.status is not EventStatus.PENDING:
            raise errors.FundingNotPending(status=event.status)
        return event

    def _pay_owner(
        self,
        vault: Vault,
        command: ledger.Withdraw | ledger.Settle,
        kind: EventKind,
        remaining: int,
    ) -> Event:
        self._must_pay_on_chain()
        if vault.drift is not None:
            raise errors.VaultStopped(drift_id=vault.drift.id, amount=vault.drift.amount)
        if command.amount > remaining:
            raise errors.ExceedsVault(remaining=remaining)
        event = self._new(vault, kind, EventStatus.PENDING, -command.amount)
        event = event._replace(metadata=command.metadata, recipient=command.recipient)
        return self._record(vault, None, self._with_counterpart(vault, event))

    def _deposit(self, vault: Vault, command: ledger.RecordDeposit) -> Event:
        key = vault.id, EventType.FUNDING, command.tx_hash
        known = self.tx_hashes.get(key)
        before = None if known is None else self._event(known)
        if before is not None and (
            before.kind is not EventKind.DEPOSIT
            or before.status is not EventStatus.PENDING
            or command.landed_slot is None
        ):
            return before
        acknowledged = self._in_drift(vault, command.landed_slot)
        if acknowledged is not None:
            if before is not None:
                self._undo_deposit(vault, ledger.UndoDeposit(vault.id, before.id))
            return acknowledged
        if command.landed_slot is not None:
            _must_fit(vault, command.amount)
        if before is None:
            event = self._new(vault, EventKind.DEPOSIT, EventStatus.PENDING, command.amount)
            promised = command.event_id if command.event_id not in self.events else None
            event = event._replace(
                id=promised or event.id,
                tx_hash=command.tx_hash,
                counterpart_event_id=command.counterpart_event_id,
            )
            self.tx_hashes[key] = event.id
        else:
            event = before._replace(amount=command.amount)
        if command.landed_slot is not None:
            event = event._replace(status=EventStatus.CONFIRMED)
            self._move(event, command.tx_hash, command.landed_slot)
        return self._record(vault, before, event)

    def _in_drift(self, vault: Vault, slot: int | None) -> Event | None:
        """Return the event that took in what landed in a slot, if an acknowledged drift did."""
        drift = self.in_drifts.get(vault.id)
        if drift is None or slot is None or slot > drift.slot:
            return None
        return self._event(drift.event_id)

    def _undo_deposit(self, vault: Vault, command: ledger.UndoDeposit) -> Event:
        deposit = self._event(command.event_id)
        if deposit.kind is not EventKind.DEPOSIT or deposit.status is not EventStatus.PENDING:
            return deposit
        # Without its signature: should that land after all, it is a deposit of its own.
        undone = deposit._replace(
            status=EventStatus.FAILED, failure_reason=FailureReason.DEPOSIT_UNDONE, tx_hash=None
        )
        self.tx_hashes.pop((vault.id, EventType.FUNDING, deposit.tx_hash or ""), None)
        return self._record(vault, deposit, undone)

    def _sight(self, vault: Vault, command: ledger.SightTransfer) -> Event:
        payment = self._event(command.event_id)
        is_last = self.signatures.get(payment.id) == command.tx_hash
        if not payment.is_on_its_way or not is_last or payment.tx_hash == command.tx_hash:
            return payment
        return self._record(vault, payment, payment._replace(tx_hash=command.tx_hash))

    def _confirm_transfer(self, vault: Vault, command: ledger.ConfirmTransfer) -> Event:
        payment = self._event(command.event_id)
        if not payment.is_on_its_way:
            return payment
        confirmed = payment._replace(status=EventStatus.CONFIRMED, tx_hash=command.tx_hash)
        self._move(confirmed, command.tx_hash, command.landed_slot)
        return self._record(vault, payment, confirmed)

    def _fail_transfer(self, vault: Vault, command: ledger.FailTransfer) -> Event:
        payment = self._event(command.event_id)
        if not payment.is_on_its_way or self.signatures.get(payment.id) != command.signature:
            return payment
        failed = payment._replace(status=EventStatus.FAILED, failure_reason=command.reason)
        if command.reason is FailureReason.TRANSFER_FAILED:
            failed = failed._replace(tx_hash=command.signature)
        return self._record(vault, payment, failed)

    def _move(self, event: Event, signature: str, slot: int) -> None:
        """Note which transaction it is that an event is confirmed by."""
        self.movements.append(Movement(event.vault_id, signature, slot, event.amount, event.id))

    def _acknowledge(self, vault: Vault, command: ledger.AcknowledgeDrift) -> Event:
        drift = vault.drift
        if drift is None or drift.id != command.drift_id:
            raise errors.DriftNotOpen
        if drift.amount != command.amount:
            raise errors.DriftChanged(amount=drift.amount)
        pending = self.on_their_way.get(vault.id, 0)
        if pending:
            raise errors.TransfersPending(pending=pending)
        parts = _parts(vault, drift.amount)
        vault.drift = None
        self._record_drift(vault, drift, EventStatus.CONFIRMED)
        events = [
            self._record(
                vault,
                None,
                self._new(vault, kind, EventStatus.CONFIRMED, amount)._replace(
                    metadata=json.dumps({"drift_id": drift.id})
                ),
            )
            for kind, amount in parts
        ]
        self.acknowledged.append((drift, events[0].id))
        self.in_drifts[vault.id] = Acknowledged(drift.slot, events[0].id)
        return events[0]

    def _new(self, vault: Vault, kind: EventKind, status: EventStatus, amount: int) -> Event:
        """Make an event that is nobody's in particular."""
        now = self.now(vault)
        return Event(
            id=self.new_event_id(),
            vault_id=vault.id,
            agent_id=None,
            type=EventType.FUNDING if amount > 0 else EventType.SPEND,
            kind=kind,
            status=status,
            amount=amount,
            authorized_amount=None,
            expires_at=None,
            failure_reason=None,
            decline=None,
            tx_hash=None,
            metadata=None,
            provider=None,
            model=None,
            refunded_event_id=None,
            created_at=now,
            updated_at=now,
            revision=0,
        )

    def _fail(self, vault: Vault, event: Event, reason: FailureReason) -> Event:
        failed = event._replace(status=EventStatus.FAILED, failure_reason=reason)
        return self._record(vault, event, failed)

    def _record(self, vault: Vault, before: Event | None, after: Event) -> Event:
        """Number a change and move what it moves: the one way any event changes."""
        now = self.now(vault)
        was, is_now = ledger.figures_of(before), ledger.figures_of(after)
        vault.balance += is_now.balance - was.balance
        vault.chain_balance += is_now.chain_balance - was.chain_balance
        vault.held += is_now.held - was.held
        event = after._replace(updated_at=now, revision=vault.revision + 1)
        if event.decline is not None and event.agent_id in self.decline_rooms:
            self.decline_rooms[event.agent_id].left -= 1
        self._count(before, event, now)
        change = self._next(vault, event.status, event.amount)._replace(
            event_id=event.id,
            previous_revision=before and before.revision,
            failure_reason=event.failure_reason,
            tx_hash=event.tx_hash,
        )
        self._append(vault, event, change)
        self.events[event.id] = event
        (self.created if before is None or event.id in self.created else self.changed)[event.id] = (
            event
        )
        return event

    def _record_drift(self, vault: Vault, drift: Drift, status: EventStatus) -> Change:
        """Number a change of a vault's drift: the one way that changes."""
        change = self._next(vault, status, drift.amount)._replace(drift=encode_drift(drift))
        return self._append(vault, None, change)

    def _next(self, vault: Vault, status: EventStatus, amount: int) -> Change:
        """Begin the change that comes next; the vault's figures are those after it."""
        return Change(
            vault_id=vault.id,
            revision=vault.revision + 1,
            event_id=None,
            previous_revision=None,
            status=status,
            amount=amount,
            failure_reason=None,
            tx_hash=None,
            balance_after=vault.balance,
            chain_balance_after=vault.chain_balance,
            held_after=vault.held,
            changed_at=self.now(vault),
            digest=b"",
        )

    def _append(self, vault: Vault, event: Event | None, change: Change) -> Change:
        vault.revision, vault.last_change_at = change.revision, change.changed_at
        vault.digest = ledger.digest_of(vault.digest, event, change)
        change = change._replace(digest=vault.digest)
        self.changes.append(change)
        return change

    def _count(self, before: Event | None, after: Event, now: datetime) -> None:
        spender = self.spenders.get(after.agent_id) if after.agent_id else None
        if spender is None:
            return
        was, is_now = ledger.counted_of(before), ledger.counted_of(after)
        spender.open_holds += is_now.open_holds - was.open_holds
        if spender.rule is not None:
            spender.rule.roll(now)
            spender.rule.count(after.created_at, is_now.spent - was.spent, is_now.held - was.held)


def _text(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat()


def _must_fit(vault: Vault, amount: int) -> None:
    """Refuse what is too much, counting what is held: it may come back."""
    if vault.balance + vault.held + amount > BALANCE_MAX:
        raise errors.BalanceTooLarge(balance=vault.balance, limit=BALANCE_MAX)


def _parts(vault: Vault, amount: int) -> list[tuple[EventKind, int]]:
    """Say as what a difference between ledger and chain is taken into the ledger.

    What is missing is taken from both figures, and what the balance no longer has, because
    it was spent on metered use, from the chain balance alone.
    """
    if amount > 0:
        _must_fit(vault, amount)
        return _pieces(EventKind.DEPOSIT, amount)
    if -amount > vault.chain_balance:
        raise errors.DriftChanged(amount=-vault.chain_balance)
    withdrawn = min(-amount, vault.balance)
    return [
        *_pieces(EventKind.WITHDRAWAL, -withdrawn),
        *_pieces(EventKind.SETTLEMENT, amount + withdrawn),
    ]


def _pieces(kind: EventKind, amount: int) -> list[tuple[EventKind, int]]:
    """Divide an amount into what single events can be; nothing comes of nothing."""
    sign, left = (1, amount) if amount > 0 else (-1, -amount)
    return [
        (kind, sign * min(ledger.AMOUNT_MAX, left - begun))
        for begun in range(0, left, ledger.AMOUNT_MAX)
    ]
