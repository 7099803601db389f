"""The rule that decides a spend, what an event moves, and the check value of a change."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_grpc.domain.agents import AgentStatus
from pilot_grpc.domain.ledger import (
    Change,
    Counted,
    Decline,
    Event,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
    Figures,
    Payment,
    Spender,
    check_rules,
    counted_of,
    decline_reason,
    decode_decline,
    digest_of,
    encode_decline,
    figures_behind,
    figures_of,
)
from pilot_grpc.domain.projects import ProjectStatus
from tests.domain.examples import NOON, a_change, a_rule, a_spender, an_event

DECLINES: Final = list(FailureReason)[:10]

# A payment on chain that nothing speaks against, and one that everything does.
FINE: Final = Payment(is_stopped=False, is_listed=True, chain_balance=10**15)
REFUSED: Final = Payment(is_stopped=True, is_listed=False, chain_balance=0)


@pytest.mark.parametrize("status", [ProjectStatus.PAUSED, ProjectStatus.ARCHIVED])
def test_a_project_that_is_not_active_declines_first(status: ProjectStatus) -> None:
    """Whatever else is wrong: the project's answer comes before that of a missing rule."""
    spender = a_spender(None, project_status=status, status=AgentStatus.PAUSED)

    assert decline_reason(spender, 0, 11) is FailureReason.PROJECT_NOT_ACTIVE


@pytest.mark.parametrize("status", list(AgentStatus))
def test_a_missing_rule_declines_before_a_status(status: AgentStatus) -> None:
    """Whether the agent is active or not, and whatever the vault holds."""
    assert decline_reason(a_spender(None, status=status), 0, 1) is FailureReason.NO_BUDGET_RULE


@pytest.mark.parametrize("status", [s for s in AgentStatus if s is not AgentStatus.ACTIVE])
def test_an_agent_that_is_not_active_declines_before_its_limits(status: AgentStatus) -> None:
    """Its limits, all of them exceeded, are not asked."""
    rule = a_rule(daily_spent=100, monthly_spent=1_000)

    assert decline_reason(a_spender(rule, status=status), 0, 11) is FailureReason.AGENT_NOT_ACTIVE


def test_the_limit_of_one_spend_declines_before_the_windows() -> None:
    """Eleven do not pass a limit of ten, though the day and the month are used up, too."""
    rule = a_rule(daily_spent=100, monthly_spent=1_000)

    assert decline_reason(a_spender(rule), 0, 11) is FailureReason.PER_TX_LIMIT
    assert decline_reason(a_spender(rule), 0, 10) is not FailureReason.PER_TX_LIMIT


def test_the_day_declines_before_the_month() -> None:
    """What is left of it passes to the unit, and one more does not."""
    rule = a_rule(daily_spent=95, monthly_spent=1_000)

    assert decline_reason(a_spender(rule), 0, 6) is FailureReason.DAILY_LIMIT
    assert decline_reason(a_spender(rule), 0, 5) is FailureReason.MONTHLY_LIMIT


def test_the_month_declines_before_the_balance() -> None:
    """What is left of it passes to the unit, and one more does not."""
    rule = a_rule(monthly_spent=995)

    assert decline_reason(a_spender(rule), 0, 6) is FailureReason.MONTHLY_LIMIT
    assert decline_reason(a_spender(rule), 0, 5) is FailureReason.INSUFFICIENT_BALANCE


def test_the_balance_declines_a_spend_last() -> None:
    """All of it may be spent, and not a unit more."""
    assert decline_reason(a_spender(a_rule()), 4, 5) is FailureReason.INSUFFICIENT_BALANCE
    assert decline_reason(a_spender(a_rule()), 5, 5) is None


PASSING: Final[dict[FailureReason, dict[str, Any]]] = {
    FailureReason.PROJECT_NOT_ACTIVE: {"project_status": ProjectStatus.ACTIVE},
    FailureReason.VAULT_STOPPED: {"is_stopped": False},
    FailureReason.NO_BUDGET_RULE: {"rule": a_rule(daily_spent=100, monthly_spent=1_000)},
    FailureReason.AGENT_NOT_ACTIVE: {"status": AgentStatus.ACTIVE},
    FailureReason.RECIPIENT_NOT_ALLOWED: {"is_listed": True},
    FailureReason.PER_TX_LIMIT: {
        "rule": a_rule(per_tx_limit=11, daily_spent=100, monthly_spent=1_000)
    },
    FailureReason.DAILY_LIMIT: {"rule": a_rule(per_tx_limit=11, monthly_spent=1_000)},
    FailureReason.MONTHLY_LIMIT: {"rule": a_rule(per_tx_limit=11)},
    FailureReason.INSUFFICIENT_BALANCE: {"balance": 11},
    FailureReason.INSUFFICIENT_CHAIN_BALANCE: {"chain_balance": 11},
}


@pytest.mark.parametrize("reason", DECLINES)
def test_a_payment_on_chain_is_declined_for_the_first_reason_that_applies(
    reason: FailureReason,
) -> None:
    """Everything speaks against it, but for the reasons that come before that one."""
    asked: dict[str, Any] = {
        "rule": None,
        "project_status": ProjectStatus.PAUSED,
        "status": AgentStatus.PAUSED,
        "balance": 0,
        **REFUSED._asdict(),
    }
    for earlier in DECLINES[: DECLINES.index(reason)]:
        asked |= PASSING[earlier]
    payment = Payment(*(asked.pop(field) for field in Payment._fields))
    balance = asked.pop("balance")

    assert decline_reason(a_spender(**asked), balance, 11, payment) is reason


def test_a_payment_that_nothing_speaks_against_is_approved() -> None:
    """All of both figures may be paid, and not a unit more of either."""
    spender, fitting = a_spender(a_rule()), FINE._replace(chain_balance=5)

    assert decline_reason(spender, 5, 5, fitting) is None
    assert decline_reason(spender, 4, 5, fitting) is FailureReason.INSUFFICIENT_BALANCE
    short = FINE._replace(chain_balance=4)
    assert decline_reason(spender, 5, 5, short) is FailureReason.INSUFFICIENT_CHAIN_BALANCE


def test_a_rule_may_let_an_agent_pay_anybody() -> None:
    """Then its list is not asked; without, only those on the list are paid."""
    stranger = FINE._replace(is_listed=False)
    anybody = a_spender(a_rule(any_recipient=True))

    assert decline_reason(anybody, 5, 5, stranger) is None
    assert decline_reason(a_spender(a_rule()), 5, 5, FINE) is None
    declined = decline_reason(a_spender(a_rule()), 5, 5, stranger)
    assert declined is FailureReason.RECIPIENT_NOT_ALLOWED


def test_metered_use_asks_nothing_about_the_chain() -> None:
    """It goes on while the vault is stopped, and says nothing of recipients."""
    spender = a_spender(a_rule())
    of_the_chain = {
        *(FailureReason.VAULT_STOPPED, FailureReason.RECIPIENT_NOT_ALLOWED),
        FailureReason.INSUFFICIENT_CHAIN_BALANCE,
    }

    assert decline_reason(spender, 5, 5) is None
    reasons = {check.figures.reason for check in check_rules(spender, 5, 0, 5)}
    assert reasons == {*DECLINES} - of_the_chain


def test_a_month_without_a_limit_declines_nothing() -> None:
    rule = a_rule(monthly_limit=None, monthly_spent=10**15)

    assert decline_reason(a_spender(rule), 5, 5) is None


def test_a_limit_below_what_is_spent_leaves_nothing() -> None:
    """The answer shows 0 that remains, never less."""
    spender = a_spender(a_rule(daily_limit=40, daily_spent=60, monthly_spent=60))

    figures = figures_behind(FailureReason.DAILY_LIMIT, spender, 100, 0)

    assert decline_reason(spender, 100, 1) is FailureReason.DAILY_LIMIT
    assert (figures.limit, figures.spent, figures.remaining) == (40, 60, 0)


def test_the_order_of_the_reasons_is_the_order_of_the_decision() -> None:
    """The enum promises it, and the API with it."""
    assert DECLINES == [
        FailureReason.PROJECT_NOT_ACTIVE,
        FailureReason.VAULT_STOPPED,
        FailureReason.NO_BUDGET_RULE,
        FailureReason.AGENT_NOT_ACTIVE,
        FailureReason.RECIPIENT_NOT_ALLOWED,
        FailureReason.PER_TX_LIMIT,
        FailureReason.DAILY_LIMIT,
        FailureReason.MONTHLY_LIMIT,
        FailureReason.INSUFFICIENT_BALANCE,
        FailureReason.INSUFFICIENT_CHAIN_BALANCE,
    ]


def test_each_decline_shows_the_figures_behind_it() -> None:
    """A limit, what was spent and held of it, what remains, and when waiting helps."""
    rule = a_rule(daily_spent=30, daily_held=20, monthly_spent=70, monthly_held=40)
    spender = a_spender(rule)

    payment = FINE._replace(chain_balance=4)

    figures = {reason: figures_behind(reason, spender, 7, 3, payment)[1:] for reason in DECLINES}

    nothing = (None, None, None, None, None)
    assert figures == {
        FailureReason.PROJECT_NOT_ACTIVE: nothing,
        FailureReason.VAULT_STOPPED: nothing,
        FailureReason.NO_BUDGET_RULE: nothing,
        FailureReason.AGENT_NOT_ACTIVE: nothing,
        FailureReason.RECIPIENT_NOT_ALLOWED: nothing,
        FailureReason.PER_TX_LIMIT: (10, None, None, 10, None),
        FailureReason.DAILY_LIMIT: (100, 30, 20, 70, datetime(2028, 3, 1, tzinfo=UTC)),
        FailureReason.MONTHLY_LIMIT: (1_000, 70, 40, 930, datetime(2028, 3, 1, tzinfo=UTC)),
        FailureReason.INSUFFICIENT_BALANCE: (None, None, 3, 7, None),
        FailureReason.INSUFFICIENT_CHAIN_BALANCE: (None, None, None, 4, None),
    }


amounts = st.integers(min_value=1, max_value=40)
counters = st.integers(min_value=0, max_value=40)
rules = st.builds(
    a_rule,
    per_tx_limit=amounts,
    daily_limit=amounts,
    monthly_limit=st.none() | amounts,
    daily_spent=counters,
    monthly_spent=counters,
    any_recipient=st.booleans(),
)
payments = st.none() | st.builds(Payment, st.booleans(), st.booleans(), counters)
spenders = st.builds(
    a_spender,
    st.none() | rules,
    project_status=st.sampled_from(ProjectStatus),
    status=st.sampled_from(AgentStatus),
)


@given(spenders, counters, amounts, payments)
def test_the_first_rule_that_fails_is_the_decision(
    spender: Spender, balance: int, amount: int, payment: Payment | None
) -> None:
    """CheckSpend explains what Spend decides: same reason, same figures, same order."""
    checks = check_rules(spender, balance, 0, amount, payment)

    failed = [check.figures.reason for check in checks if not check.passed]
    reasons = [check.figures.reason for check in checks]
    assert next(iter(failed), None) is decline_reason(spender, balance, amount, payment)
    assert reasons == sorted(reasons, key=DECLINES.index)
    assert all(
        check.figures == figures_behind(r, spender, balance, 0, payment)
        for r, check in zip(reasons, checks, strict=True)
    )


@given(spenders, counters, amounts, payments)
def test_what_remains_passes_and_one_more_does_not(
    spender: Spender, balance: int, amount: int, payment: Payment | None
) -> None:
    """`remaining` of a decline is exactly the most that this rule would have let pass."""
    reason = decline_reason(spender, balance, amount, payment)
    if reason is None:
        return
    remaining = figures_behind(reason, spender, balance, 0, payment).remaining
    if remaining is None:
        return

    assert remaining < amount
    one_more = decline_reason(spender, balance, remaining + 1, payment)
    assert one_more in DECLINES[: DECLINES.index(reason) + 1]
    assert remaining == 0 or decline_reason(spender, balance, remaining, payment) is not reason


FUNDING: Final = [EventKind.DEPOSIT, EventKind.CREDIT, EventKind.REFUND]
MOVES: Final = {
    EventKind.DEPOSIT: (1, 1),
    EventKind.CREDIT: (1, 0),
    EventKind.REFUND: (1, 0),
    EventKind.METERED: (-1, 0),
    EventKind.TRANSFER: (-1, -1),
    EventKind.WITHDRAWAL: (-1, -1),
    EventKind.SETTLEMENT: (0, -1),
}


@pytest.mark.parametrize("kind", list(EventKind))
@pytest.mark.parametrize("status", list(EventStatus))
def test_each_kind_moves_its_figures(kind: EventKind, status: EventStatus) -> None:
    """The contract's table. What failed moves nothing, and pending funding nothing yet."""
    kind_of_type = EventType.FUNDING if kind in FUNDING else EventType.SPEND
    amount = 5 if kind in FUNDING else -5
    event = an_event(type=kind_of_type, kind=kind, status=status, amount=amount)

    moves = status is EventStatus.CONFIRMED or (
        status is EventStatus.PENDING and kind not in FUNDING
    )
    balance, chain = MOVES[kind] if moves else (0, 0)
    assert figures_of(event) == Figures(5 * balance, 5 * chain, 0)


def test_an_open_hold_is_taken_and_held() -> None:
    """Captured it is taken and no longer held; failed it is neither."""
    hold = an_event(status=EventStatus.PENDING, authorized_amount=5, expires_at=NOON)

    assert figures_of(hold) == Figures(-5, 0, 5)
    assert counted_of(hold) == Counted(spent=5, held=5, open_holds=1)
    captured = hold._replace(status=EventStatus.CONFIRMED, amount=-3)
    assert (figures_of(captured), counted_of(captured)) == (Figures(-3, 0, 0), Counted(3, 0, 0))
    released = hold._replace(status=EventStatus.FAILED)
    assert (figures_of(released), counted_of(released)) == (Figures(0, 0, 0), Counted(0, 0, 0))


def test_nothing_moves_nothing() -> None:
    assert (figures_of(None), counted_of(None)) == (Figures(0, 0, 0), Counted(0, 0, 0))


@pytest.mark.parametrize("kind", list(EventKind))
def test_only_what_an_agent_spends_counts_for_it(kind: EventKind) -> None:
    """Metered use and transfers; neither refunds nor what the owner takes out."""
    event = an_event(kind=kind, amount=5 if kind in FUNDING else -5)

    counts = kind in {EventKind.METERED, EventKind.TRANSFER}
    assert counted_of(event) == Counted(5 if counts else 0, 0, 0)


def test_the_digest_of_an_old_change_never_changes() -> None:
    """These were computed once; whoever changes them breaks every ledger there is."""
    plain = digest_of(b"", an_event(), a_change())
    full = digest_of(
        plain,
        an_event(
            status=EventStatus.FAILED,
            failure_reason=FailureReason.DAILY_LIMIT,
            decline=Decline(FailureReason.DAILY_LIMIT, 10, 7, 2, 3, NOON),
            metadata='{"é": 1}',
            provider="openai",
            model="gpt-4o",
        ),
        a_change(revision=2, previous_revision=1, changed_at=NOON + timedelta(microseconds=1)),
    )

    assert plain.hex() == "0714f8ba29f14aee93939abc56ceeefd"
    assert full.hex() == "70074a3d8c8cf826eb8cad639f039fac"


def test_the_digest_of_a_payment_or_a_drift_never_changes() -> None:
    """Computed once, too. What names no recipient has the digest that it always had."""
    paid = an_event(kind=EventKind.TRANSFER, recipient="wallet", counterpart_event_id="c")
    drift = a_change(event_id=None, amount=-3, status=EventStatus.PENDING, drift='{"id": "d"}')

    assert digest_of(b"", paid, a_change()).hex() == "f08829ad0afe8dc9c896693cda24a9bd"
    assert digest_of(b"", None, drift).hex() == "40f729fa6adf5ce82601b704f599d57f"


COVERED_OF_EVENT: Final = {
    "id": "f",
    "vault_id": "w",
    "agent_id": None,
    "type": EventType.FUNDING,
    "kind": EventKind.TRANSFER,
    "authorized_amount": 5,
    "expires_at": NOON,
    "decline": Decline(FailureReason.DAILY_LIMIT),
    "metadata": "{}",
    "provider": "p",
    "model": "m",
    "refunded_event_id": "g",
    "created_at": NOON + timedelta(microseconds=1),
    "recipient": "wallet",
    "counterpart_event_id": "c",
}
COVERED_OF_CHANGE: Final = {
    "revision": 2,
    "previous_revision": 1,
    "status": EventStatus.PENDING,
    "amount": -6,
    "failure_reason": FailureReason.EXPIRED,
    "tx_hash": "s",
    "balance_after": 94,
    "chain_balance_after": 1,
    "held_after": 1,
    "changed_at": NOON + timedelta(microseconds=1),
}


@pytest.mark.parametrize("field", COVERED_OF_EVENT)
def test_the_digest_covers_what_never_changes_of_an_event(field: str) -> None:
    edited = an_event(**{field: COVERED_OF_EVENT[field]})

    assert digest_of(b"", edited, a_change()) != digest_of(b"", an_event(), a_change())


@pytest.mark.parametrize("field", COVERED_OF_CHANGE)
def test_the_digest_covers_the_change(field: str) -> None:
    edited = a_change(**{field: COVERED_OF_CHANGE[field]})

    assert digest_of(b"", an_event(), edited) != digest_of(b"", an_event(), a_change())


@pytest.mark.parametrize("field", [*COVERED_OF_CHANGE, "vault_id", "drift"])
def test_the_digest_covers_a_drift(field: str) -> None:
    """All of its change, which has no event that would name the vault."""
    edits: dict[str, Any] = {**COVERED_OF_CHANGE, "vault_id": "w", "drift": '{"id": "f"}'}
    drift = a_change(event_id=None, drift='{"id": "d"}')

    edited = drift._replace(**{field: edits[field]})

    assert digest_of(b"", None, edited) != digest_of(b"", None, drift)


def test_the_digest_tells_a_recipient_from_a_counterpart() -> None:
    """The same text in the one field or in the other are two events."""
    recipient, counterpart = an_event(recipient="x"), an_event(counterpart_event_id="x")

    assert digest_of(b"", recipient, a_change()) != digest_of(b"", counterpart, a_change())


def test_the_digest_covers_all_before() -> None:
    assert digest_of(b"1", an_event(), a_change()) != digest_of(b"", an_event(), a_change())


def test_every_field_is_covered_by_the_digest_or_by_the_change() -> None:
    """A field that is added to an event has to join one of them; `drift` has an own test."""
    of_the_change = {"status", "amount", "failure_reason", "tx_hash", "updated_at", "revision"}

    assert {*COVERED_OF_EVENT, *of_the_change} == {*Event._fields}
    apart = {"vault_id", "event_id", "digest", "drift"}
    assert {*COVERED_OF_CHANGE, *apart} == {*Change._fields}


figures = st.none() | st.integers(min_value=0, max_value=10**18)
moments = st.none() | st.datetimes(timezones=st.just(UTC))


@given(st.builds(Decline, st.sampled_from(DECLINES), figures, figures, figures, figures, moments))
def test_a_decline_survives_its_column(decline: Decline) -> None:
    """A zero stays a zero, and what does not apply stays absent."""
    assert decode_decline(encode_decline(decline)) == decline
