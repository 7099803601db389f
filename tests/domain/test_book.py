"""The book: commands folded over locked rows, numbered, and refused without a trace."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_grpc import errors
from pilot_grpc.domain.agents import AgentStatus
from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.ledger import (
    Command,
    Event,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
    encode_decline,
)
from pilot_grpc.domain.vaults import BALANCE_MAX
from tests import model
from tests.domain.books import (
    AGENT,
    STRANGER,
    VAULT,
    a_book,
    a_book_on_chain,
    asked,
    capture,
    confirm,
    everything,
    fail,
    fund,
    hold,
    pay,
    refund,
    release,
    spend,
)
from tests.domain.examples import NOON, a_rule, a_spender, a_vault, an_event

NO_EVENT: Final = an_event(id=EventId("nowhere"))


def spent_before(held: Event) -> Event:
    """The event that was made before another; the ids count up."""
    return held._replace(id=EventId(f"e{int(held.id[1:]) - 1:09}"))


def test_a_change_is_numbered_and_leaves_the_figures() -> None:
    """Three changes are 1, 2, 3, and each says what the vault had after it."""
    book = a_book()

    book.answer(spend(7))
    held = book.answer(hold(10))
    book.answer(capture(held, 4))

    assert [(c.revision, c.balance_after, c.held_after) for c in book.changes] == [
        (1, 993, 0),
        (2, 983, 10),
        (3, 989, 0),
    ]
    assert book.changes[2].previous_revision == 2
    assert book.vaults[VAULT].revision == 3
    assert book.vaults[VAULT].digest == book.changes[2].digest


def test_a_decline_is_recorded_and_moves_nothing() -> None:
    """It is an event with its reason and figures, numbered like every other."""
    book = a_book()

    declined = book.answer(spend(11))

    assert (declined.status, declined.amount) == (EventStatus.FAILED, -11)
    assert declined.failure_reason is FailureReason.PER_TX_LIMIT
    assert declined.decline is not None
    assert declined.decline.limit == 10
    assert (book.vaults[VAULT].balance, book.vaults[VAULT].revision) == (1_000, 1)
    assert book.spenders[AGENT] == a_spender(a_rule())


def test_a_spend_takes_provider_and_model_of_its_agent_unless_it_names_them() -> None:
    book = a_book(spenders={AGENT: a_spender(a_rule(), provider="openai", model="gpt-4o")})

    plain, named = book.answer(spend(1)), book.answer(spend(1, model="o3", metadata="{}"))

    assert (plain.provider, plain.model, plain.metadata) == ("openai", "gpt-4o", None)
    assert (named.provider, named.model, named.metadata) == ("openai", "o3", "{}")


def test_a_repeated_request_gets_the_first_answer() -> None:
    """Though the hold was captured meanwhile, and with no second change."""
    book, command = a_book(), hold(10)
    first = book.answer(command)
    book.answer(capture(first, 4))

    again = book.answer(command)

    assert again == first
    assert (again.status, again.amount) == (EventStatus.PENDING, -10)
    assert len(book.changes) == 2


REFUSED: Final[dict[str, tuple[Callable[[Event], Command], type[errors.PilotError]]]] = {
    "a spend of a stranger": (lambda _: spend(1, STRANGER), errors.NotFound),
    "a spend from nowhere": (lambda _: spend(1, vault_id=VaultId("w")), errors.NotFound),
    "a capture of too much": (lambda held: capture(held, 11), errors.CaptureExceedsHold),
    "a capture of nothing": (lambda _: capture(NO_EVENT, 1), errors.NotFound),
    "a capture of a spend": (lambda held: capture(spent_before(held), 1), errors.HoldNotOpen),
    "a release of a spend": (lambda held: release(spent_before(held)), errors.HoldNotOpen),
    "a refund of a hold": (lambda held: refund(held, 1), errors.SpendNotRefundable),
    "a refund of too much": (
        lambda held: refund(spent_before(held), 8),
        errors.RefundExceedsSpend,
    ),
    "a credit of too much": (lambda _: fund(BALANCE_MAX), errors.BalanceTooLarge),
    "a credit seen before": (lambda _: fund(1, tx_hash="taken"), errors.TxHashTaken),
    "a confirmed hold": (confirm, errors.FundingNotPending),
    "a failed hold": (fail, errors.FundingNotPending),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_refused_command_leaves_everything_as_it_was(refused: str) -> None:
    """No event, no change, no answer: the same request may come again and succeed."""
    command, refusal = REFUSED[refused]
    book = a_book()
    book.answer(fund(1, tx_hash="taken"))
    book.answer(spend(7))
    held = book.answer(hold(10))
    before = everything(book)

    with pytest.raises(refusal):
        book.answer(command(held))

    assert everything(book) == before


def test_one_hold_more_than_may_be_open_is_refused() -> None:
    """Three may be; when one is closed another fits."""
    book = a_book()
    holds = [book.answer(hold(1)) for _ in range(3)]
    before = everything(book)

    with pytest.raises(errors.OpenHoldsLimit):
        book.answer(hold(1))

    assert everything(book) == before
    book.answer(release(holds[0]))
    assert book.answer(hold(1)).status is EventStatus.PENDING


def test_a_decline_comes_before_the_limit_of_open_holds() -> None:
    book = a_book()
    for _ in range(3):
        book.answer(hold(1))

    assert book.answer(hold(11)).failure_reason is FailureReason.PER_TX_LIMIT


def test_refunds_of_one_spend_add_up_to_at_most_what_it_took() -> None:
    """Three, then three of seven: the last unit is left, and two are refused."""
    book = a_book()
    spent = book.answer(spend(7))
    book.answer(refund(spent, 3))
    book.answer(refund(spent, 3))

    with pytest.raises(errors.RefundExceedsSpend) as refusal:
        book.answer(refund(spent, 2))

    assert refusal.value.metadata == {"remaining": "1"}
    book.answer(refund(spent, 1))
    assert book.vaults[VAULT].balance == 1_000


def test_one_unknown_agent_refuses_a_batch_whole() -> None:
    """Nothing before it was decided either."""
    book = a_book()
    before = everything(book)

    with pytest.raises(errors.NotFound):
        book.answer_all([spend(1), spend(1), spend(1, STRANGER)])

    assert everything(book) == before


def test_one_reused_id_refuses_a_batch_whole() -> None:
    book, first = a_book(), spend(1)
    book.answer(first)
    before = everything(book)
    other = replace(first, request=replace(first.request, fingerprint="amount:2"))

    with pytest.raises(errors.RequestIdReused):
        book.answer_all([spend(1), other])

    assert everything(book) == before


def test_one_recipient_without_a_chain_refuses_a_batch_whole() -> None:
    """The spend before it is not decided either; an answer from better times is given again."""
    book, answered = a_book_on_chain(), pay(1)
    paid = book.answer(answered)
    book.pays_on_chain = False
    before = everything(book)

    with pytest.raises(errors.RecipientUnsupported):
        book.answer_all([spend(1), pay(1)])

    assert everything(book) == before
    assert book.answer_all([answered, spend(2)])[0] == paid


def test_a_batch_is_decided_in_order() -> None:
    """Of 10, 7, 10 and 3 for a day of 20 the first, the second and the last fit."""
    book = a_book(spenders={AGENT: a_spender(a_rule(daily_limit=20))})

    events = book.answer_all([spend(10), spend(7), spend(10), spend(3)])

    assert [event.failure_reason for event in events] == [
        None,
        None,
        FailureReason.DAILY_LIMIT,
        None,
    ]
    assert [event.revision for event in events] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("moment", "works"),
    [(timedelta(minutes=-1), True), (timedelta(microseconds=-1), True), (timedelta(0), False)],
)
def test_a_hold_ends_exactly_when_it_expires(moment: timedelta, works: bool) -> None:
    """A microsecond before it can be captured and released; at that moment it cannot."""
    for close in (release, lambda held: capture(held, 1)):
        book = a_book()
        held = book.answer(hold(10, ttl=timedelta(minutes=10)))
        assert held.expires_at == NOON + timedelta(minutes=10)
        book.clock = held.expires_at + moment
        if works:
            assert book.answer(close(held)).status is not EventStatus.PENDING
            continue
        with pytest.raises(errors.HoldExpired) as refusal:
            book.answer(close(held))
        assert refusal.value.metadata == {"expire_time": held.expires_at.isoformat()}


def test_a_swept_hold_is_refused_as_one_that_was_not_swept() -> None:
    book = a_book()
    held = book.answer(hold(10))
    book.clock += timedelta(hours=1)
    book.expire([held])

    with pytest.raises(errors.HoldExpired):
        book.answer(capture(held, 1))
    with pytest.raises(errors.HoldExpired):
        book.answer(release(held))


def test_a_vaults_time_never_runs_backwards() -> None:
    """A clock that steps back by a year decides at the time of the last change."""
    book = a_book()
    book.answer(spend(1))
    book.clock -= timedelta(days=365)

    event = book.answer(spend(1))

    assert event.created_at == NOON
    assert [change.changed_at for change in book.changes] == [NOON, NOON]


def test_what_is_held_leaves_room_for_its_return() -> None:
    """A vault may be filled while amounts are held, but never so that they no longer fit."""
    vault = a_vault(balance=BALANCE_MAX)
    book = a_book(vaults={VAULT: vault})
    held = book.answer(hold(10))

    with pytest.raises(errors.BalanceTooLarge):
        book.answer(fund(1))

    book.answer(release(held))
    assert vault.balance == BALANCE_MAX


def test_an_agent_without_a_rule_still_closes_its_holds() -> None:
    """The rule was removed meanwhile: the vault gets the rest, and the holds are counted."""
    book = a_book()
    first, second = book.answer(hold(10)), book.answer(hold(10))
    book.spenders[AGENT].rule = None
    book.spenders[AGENT].status = AgentStatus.NEEDS_SETUP

    book.answer(capture(first, 3))
    book.answer(release(second))

    assert book.vaults[VAULT].balance == 997
    assert book.spenders[AGENT].open_holds == 0


def test_a_command_that_is_no_spend_has_no_place_in_a_batch() -> None:
    with pytest.raises(TypeError):
        a_book().answer_all([spend(1), fund(1)])


AGENTS: Final = {
    AgentId("a"): model.Config(model.Limits(10, 60, 150)),
    AgentId("b"): model.Config(model.Limits(20, 50)),
    AgentId("c"): model.Config(model.Limits(20, 50, 60), agent_active=False),
    AgentId("d"): model.Config(None),
    AgentId("e"): model.Config(model.Limits(200, 300), project_active=True),
}
jumps = st.sampled_from([0, 0, 0, 1, 60, 600, 3_600, 50_000, 86_400, 86_400 * 25, -5_000, -90_000])
kinds = st.sampled_from([*"SSSSHHHHCCCRRRVFPPYN"])
steps = st.lists(
    st.tuples(kinds, st.sampled_from([*AGENTS]), st.integers(1, 22), st.integers(0, 5), jumps),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_any_history_is_what_the_model_says(steps: Sequence[Any]) -> None:
    """Random commands over a clock that jumps both ways, replayed by an independent model."""
    history = _History()

    for kind, agent_id, amount, which, jump in steps:
        history.step(kind, agent_id, amount, which, jump)

    made = model.check(history.rows(), history.requests, history.settings)
    vault = history.book.vaults[VAULT]
    assert (made.balance, made.held, made.revision) == (vault.balance, vault.held, vault.revision)
    for spender in history.book.spenders.values():
        if spender.rule is not None:
            spender.rule.roll(made.at)
            assert (spender.rule.daily_spent, spender.rule.daily_held) == made.window(
                spender.agent_id, "%Y-%m-%d", spender.rule.last_reset_at
            )
            assert (spender.rule.monthly_spent, spender.rule.monthly_held) == made.window(
                spender.agent_id, "%Y-%m", spender.rule.last_reset_at
            )


class _History:
    """Commands, one after another, on one book; what they named comes from what came before."""

    def __init__(self) -> None:
        self.book = a_book(vaults={VAULT: a_vault(balance=0)}, spenders={})
        self.requests: list[model.Request] = []
        self.settings = []
        self.past: list[Command] = []
        self.steps = itertools.count(1)
        for agent_id, config in AGENTS.items():
            limits = config.limits
            rule = limits and a_rule(
                per_tx_limit=limits.per_tx,
                daily_limit=limits.daily,
                monthly_limit=limits.monthly,
            )
            status = AgentStatus.ACTIVE if config.agent_active else AgentStatus.PAUSED
            spender = a_spender(rule, agent_id=agent_id, status=status)
            self.book.spenders[agent_id] = spender
            self.settings.append(model.Setting(agent_id, config))

    def step(self, kind: str, agent_id: AgentId, amount: int, which: int, jump: int) -> None:
        self.book.clock += timedelta(seconds=jump)
        now = self.book.now(self.book.vaults[VAULT])
        self.book.expire(
            [e for e in self.book.events.values() if e.is_open_hold and _is_over(e, now)]
        )
        if kind == "Y" and self.past:
            self._answer(self.past[which % len(self.past)])
            return
        command = self._command(kind, agent_id, amount, which)
        if command is not None:
            self._answer(command)

    def _command(self, kind: str, agent_id: AgentId, amount: int, which: int) -> Command | None:
        if kind == "S":
            return spend(amount, agent_id)
        if kind == "H":
            ttl = timedelta(minutes=10 * which + 1)
            request = asked("AuthorizeSpend", agent_id)
            return replace(hold(amount, ttl=ttl), agent_id=agent_id, request=request)
        if kind in "FP":
            return fund(amount * 10, pending=kind == "P")
        if kind == "V":
            events = [e for e in self.book.events.values() if e.type is EventType.SPEND]
        elif kind == "N":
            events = [e for e in self.book.events.values() if e.kind is EventKind.CREDIT]
        else:
            events = [e for e in self.book.events.values() if e.authorized_amount is not None]
        if not events:
            return None
        event = events[-1 - which % len(events)]
        if kind == "C":
            return capture(event, amount)
        if kind == "R":
            return release(event)
        if kind == "V":
            return refund(event, amount)
        return fail(event) if amount % 2 else confirm(event)

    def _answer(self, command: Command) -> None:
        request, sent_at = self._request_of(command), next(self.steps)
        outcome: model.Answer | model.Refused
        try:
            outcome = answer_of(self.book.answer(command))
        except errors.PilotError as refusal:
            outcome = model.Refused(refusal.reason)
        else:
            self.past.append(command)
        request.sendings.append(model.Sending(sent_at, next(self.steps), outcome))

    def _request_of(self, command: Command) -> model.Request:
        assert command.request is not None
        for request in self.requests:
            if request.request_id == command.request.request_id:
                return request
        wanted = model.Asked(
            rpc=command.request.rpc,
            amount=getattr(command, "amount", 0),
            agent_id=getattr(command, "agent_id", None),
            event_id=getattr(command, "event_id", None),
            ttl=getattr(command, "ttl", timedelta(0)),
            pending=getattr(command, "pending", False),
        )
        self.requests.append(model.Request(wanted, command.request.request_id))
        return self.requests[-1]

    def rows(self) -> list[model.Row]:
        records = []
        for change in self.book.changes:
            assert change.event_id is not None
            event = self.book.events[change.event_id]
            records.append(
                {
                    "revision": change.revision,
                    "event_id": change.event_id,
                    "status": change.status,
                    "amount": change.amount,
                    "reason": change.failure_reason,
                    "decline": event.decline and encode_decline(event.decline),
                    "kind": event.kind,
                    "agent_id": event.agent_id,
                    "authorized": event.authorized_amount,
                    "expires_at": event.expires_at,
                    "refunded_event_id": event.refunded_event_id,
                    "at": change.changed_at,
                    "balance": change.balance_after,
                    "chain_balance": change.chain_balance_after,
                    "held": change.held_after,
                }
            )
        return list(model.rows_of(records))


def _is_over(event: Event, now: Any) -> bool:
    return event.expires_at is not None and event.expires_at <= now


def answer_of(event: Event) -> model.Answer:
    """An event as the model compares it."""
    figures = event.decline and {k: v for k, v in event.decline._asdict().items() if v is not None}
    return model.Answer(
        event.id, event.revision, event.status, event.amount, event.failure_reason, figures
    )
