"""The locked rows that one batch decides on, and what it decided.

A book is filled under the vaults' locks, folds commands over what it holds, and is then
written back in the same transaction. A command that is refused leaves it as it was.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

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
from pilot_grpc.domain.vaults import BALANCE_MAX, Vault

OVERDUE_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A request and the event as its answer showed it."""

    request: Request
    event: Event


@dataclass(slots=True)
class Book:
    """What a batch reads and decides.

    `events` are those that the commands name, `refunded` what was given back of each
    before, `tx_hashes` the events of the signatures that the commands name, `answers`
    those of the requests that were answered before. `clock` is the database's time,
    read after the locks. All are complete for the commands of the batch. In the vaults
    of `more_overdue` more holds are overdue than one batch settles, and `decline_rooms`
    says how often an agent may still be declined; an agent that is missing, always.
    """

    clock: datetime
    vaults: dict[VaultId, Vault]
    spenders: dict[AgentId, Spender]
    new_event_id: Callable[[], EventId]
    open_holds_max: int
    allow_credits: bool = True
    more_overdue: set[VaultId] = field(default_factory=set)
    decline_rooms: dict[AgentId, DeclineRoom] = field(default_factory=dict)
    events: dict[EventId, Event] = field(default_factory=dict)
    refunded: dict[EventId, int] = field(default_factory=dict)
    tx_hashes: dict[tuple[VaultId, EventType, str], EventId] = field(default_factory=dict)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)

    created: dict[EventId, Event] = field(default_factory=dict, init=False)
    changed: dict[EventId, Event] = field(default_factory=dict, init=False)
    changes: list[Change] = field(default_factory=list, init=False)
    new_answers: list[Answer] = field(default_factory=list, init=False)
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
        request = command.request
        before = self.answers.get((request.scope_id, request.request_id))
        if before is not None:
            before.request.must_equal(request.rpc, request.fingerprint)
        elif isinstance(command, ledger.Spend):
            self._must_be_declinable(self._spender(command.agent_id))
        else:
            raise TypeError(f"{type(command).__name__} in a batch")

    def answer(self, command: Command, *, may_refuse_decline: bool = False) -> Event:
        """Decide a command, or give the first answer again; raise PilotError to refuse.

        A decline that must not be recorded now can be refused, too.
        """
        request = command.request
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

    def _spend(self, vault: Vault, command: ledger.Spend) -> Event:
        spender, now = self._spender(command.agent_id), self.now(vault)
        decline = self._decline(spender, vault, command.amount, now)
        status = EventStatus.CONFIRMED if decline is None else EventStatus.FAILED
        return self._record(vault, None, self._spent(spender, command, status, decline, now))

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
        if spender is None:
            raise errors.NotFound(resource="agent", id=agent_id)
        return spender

    def _decline(
        self, spender: Spender, vault: Vault, amount: int, now: datetime
    ) -> ledger.Decline | None:
        if spender.rule is not None:
            spender.rule.roll(now)
        reason = ledger.decline_reason(spender, vault.balance, amount)
        if reason is None:
            return None
        if self._may_refuse_decline:
            self._must_be_declinable(spender)
        return ledger.figures_behind(reason, spender, vault.balance, vault.held)

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
        event = self._funding(vault, command, EventKind.REFUND, EventStatus.CONFIRMED)
        event = event._replace(agent_id=spend.agent_id, refunded_event_id=spend.id)
        self.refunded[spend.id] = refunded + command.amount
        return self._record(vault, None, event)

    def _fund(self, vault: Vault, command: ledger.RecordFunding) -> Event:
        status = EventStatus.PENDING if command.pending else EventStatus.CONFIRMED
        if status is EventStatus.CONFIRMED:
            _must_fit(vault, command.amount)
        event = self._funding(vault, command, EventKind.CREDIT, status)
        if not self.allow_credits:
            raise errors.CreditsDisabled
        if command.tx_hash is not None:
            key = vault.id, EventType.FUNDING, command.tx_hash
            if key in self.tx_hashes:
                raise errors.TxHashTaken(event_id=self.tx_hashes[key])
            self.tx_hashes[key] = event.id
            event = event._replace(tx_hash=command.tx_hash)
        return self._record(vault, None, event)

    def _funding(
        self,
        vault: Vault,
        command: ledger.Refund | ledger.RecordFunding,
        kind: EventKind,
        status: EventStatus,
    ) -> Event:
        now = self.now(vault)
        return Event(
            id=self.new_event_id(),
            vault_id=vault.id,
            agent_id=None,
            type=EventType.FUNDING,
            kind=kind,
            status=status,
            amount=command.amount,
            authorized_amount=None,
            expires_at=None,
            failure_reason=None,
            decline=None,
            tx_hash=None,
            metadata=command.metadata,
            provider=None,
            model=None,
            refunded_event_id=None,
            created_at=now,
            updated_at=now,
            revision=0,
        )

    def _confirm_funding(self, vault: Vault, command: ledger.ConfirmFunding) -> Event:
        credit = self._pending_credit(command.event_id)
        _must_fit(vault, credit.amount)
        return self._record(vault, credit, credit._replace(status=EventStatus.CONFIRMED))

    def _pending_credit(self, event_id: EventId) -> Event:
        event = self._event(event_id)
        if event.kind is not EventKind.CREDIT or event.status is not EventStatus.PENDING:
            raise errors.FundingNotPending(status=event.status)
        return event

    def _fail(self, vault: Vault, event: Event, reason: FailureReason) -> Event:
        failed = event._replace(status=EventStatus.FAILED, failure_reason=reason)
        return self._record(vault, event, failed)

    def _record(self, vault: Vault, before: Event | None, after: Event) -> Event:
        """Number a change and move what it moves: the one way anything changes."""
        now = self.now(vault)
        was, is_now = ledger.figures_of(before), ledger.figures_of(after)
        vault.balance += is_now.balance - was.balance
        vault.chain_balance += is_now.chain_balance - was.chain_balance
        vault.held += is_now.held - was.held
        vault.revision += 1
        vault.last_change_at = now
        event = after._replace(updated_at=now, revision=vault.revision)
        if event.decline is not None and event.agent_id in self.decline_rooms:
            self.decline_rooms[event.agent_id].left -= 1
        self._count(before, event, now)
        change = Change(
            vault_id=vault.id,
            revision=vault.revision,
            event_id=event.id,
            previous_revision=before and before.revision,
            status=event.status,
            amount=event.amount,
            failure_reason=event.failure_reason,
            tx_hash=event.tx_hash,
            balance_after=vault.balance,
            chain_balance_after=vault.chain_balance,
            held_after=vault.held,
            changed_at=now,
            digest=b"",
        )
        vault.digest = ledger.digest_of(vault.digest, event, change)
        self.changes.append(change._replace(digest=vault.digest))
        self.events[event.id] = event
        (self.created if before is None or event.id in self.created else self.changed)[event.id] = (
            event
        )
        return event

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
