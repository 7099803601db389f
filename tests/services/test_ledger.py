"""Spends, holds, captures, refunds and funding, decided on a real database by two processes."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.ledger import (
    AMOUNT_MAX,
    Event,
    EventFilter,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
)
from pilot_grpc.domain.vaults import BALANCE_MAX
from tests import make
from tests.services.conftest import StartApp


def reasons(events: Iterable[Event]) -> Counter[FailureReason | None]:
    """How often each reason declined; None stands for what was approved."""
    return Counter(event.failure_reason for event in events)


async def refusals(*calls: Awaitable[Any]) -> list[str]:
    """Run calls at once; how each ended: its error's reason, or nothing."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, errors.PilotError):
            raise outcome
    return [o.reason if isinstance(o, errors.PilotError) else "" for o in outcomes]


# --- limits under concurrency ---------------------------------------------------------


async def test_concurrent_spends_never_exceed_the_daily_limit(app: App) -> None:
    """Fifty spends of 10 race for a limit of 95: nine fit, and the vault agrees."""
    agent = await make.agent(app, daily_limit=95, vault_balance=1_000)

    events = await asyncio.gather(*(make.spend(app, agent, 10) for _ in range(50)))

    assert reasons(events) == {None: 9, FailureReason.DAILY_LIMIT: 41}
    assert await make.balance(app, agent) == 910
    assert await make.verify(app, agent) is None


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"daily_limit": 95}, FailureReason.DAILY_LIMIT),
        ({"monthly_limit": 95}, FailureReason.MONTHLY_LIMIT),
        ({"vault_balance": 95}, FailureReason.INSUFFICIENT_BALANCE),
    ],
)
async def test_two_processes_never_exceed_a_limit_between_them(
    app: App, other: App, limits: dict[str, Any], reason: FailureReason
) -> None:
    """Spends and holds race on both; exactly what fits is approved."""
    agent = await make.agent(app, **limits)

    events = await asyncio.gather(
        *(
            step(place, agent, 10)
            for place in (app, other)
            for step in (make.spend, make.hold)
            for _ in range(10)
        )
    )

    assert reasons(events) == {None: 9, reason: 31}
    assert await make.verify(app, agent) is None


async def test_many_agents_never_spend_more_than_their_vault_has(app: App, other: App) -> None:
    """Five agents, each within its budget, on two processes: 500 is all there is."""
    first = await make.agent(app, vault_balance=500, daily_limit=10_000)
    agents = [first, *[await make.agent(app, beside=first) for _ in range(4)]]

    events = await asyncio.gather(
        *(
            make.spend(place, agent, 7)
            for agent in agents
            for place in (app, other)
            for _ in range(10)
        )
    )

    assert reasons(events) == {None: 71, FailureReason.INSUFFICIENT_BALANCE: 29}
    assert await make.balance(app, first) == 500 - 71 * 7
    assert await make.verify(other, first) is None


async def test_the_first_spends_of_a_new_agent_are_no_exception(app: App, other: App) -> None:
    """No row of its own is there to lock yet; the vault's lock is enough."""
    agent = await make.agent(app, daily_limit=25)

    events = await asyncio.gather(
        *(make.spend(place, agent, 10) for place in (app, other) * 4),
    )

    assert reasons(events) == {None: 2, FailureReason.DAILY_LIMIT: 6}
    assert [event.revision for event in sorted(events, key=lambda e: e.revision)] == [*range(2, 10)]


async def test_a_decline_shows_its_figures_and_costs_nothing(app: App) -> None:
    """Reason, limit, spent, held, what remains, and the end of the day; the counters stay."""
    agent = await make.agent(app, daily_limit=100, vault_balance=1_000)
    await make.spend(app, agent, 30)
    await make.hold(app, agent, 50)

    declined = await make.spend(app, agent, 21)

    assert (declined.status, declined.amount) == (EventStatus.FAILED, -21)
    assert declined.decline is not None
    assert declined.decline[:5] == (FailureReason.DAILY_LIMIT, 100, 80, 50, 20)
    midnight = declined.created_at.replace(hour=0, minute=0, second=0, microsecond=0)
    assert declined.decline.window_ends_at == midnight + timedelta(days=1)
    assert (await app.budgets.get(agent.owner, agent.agent_id)).daily_spent == 80
    assert await make.balance(app, agent) == 920


async def test_the_largest_amount_is_spent_to_the_unit(app: App) -> None:
    """10^15 is taken out of 10^15; one unit more than there is is not."""
    agent = await make.agent(
        app, per_tx_limit=AMOUNT_MAX, daily_limit=AMOUNT_MAX, vault_balance=AMOUNT_MAX
    )

    assert (await make.spend(app, agent, AMOUNT_MAX)).failure_reason is None
    assert await make.balance(app, agent) == 0
    assert (await make.spend(app, agent, 1)).failure_reason is FailureReason.DAILY_LIMIT
    assert await make.verify(app, agent) is None


@pytest.mark.parametrize("amount", [0, -1, -AMOUNT_MAX, AMOUNT_MAX + 1, 2**63])
async def test_the_database_refuses_amounts_that_no_caller_may_send(app: App, amount: int) -> None:
    """Had one come past the wire's validation: nothing happens, and nobody beside it notices."""
    agent = await make.agent(app, vault_balance=100)

    refused, *beside = await asyncio.gather(
        make.spend(app, agent, amount),
        *(make.spend(app, agent, 1) for _ in range(3)),
        return_exceptions=True,
    )

    assert isinstance(refused, asyncpg.PostgresError)
    assert [event.status for event in beside if isinstance(event, Event)] == ["confirmed"] * 3
    assert await make.balance(app, agent) == 97
    assert await make.verify(app, agent) is None


# --- idempotency ----------------------------------------------------------------------


async def test_concurrent_duplicates_on_two_processes_are_one_spend(app: App, other: App) -> None:
    """Twenty of the same request, one event, the same answer for all."""
    agent = await make.agent(app, vault_balance=100)
    request = make.request_id()

    events = await asyncio.gather(
        *(make.spend(place, agent, 10, request) for place in (app, other) * 10)
    )

    assert len(set(events)) == 1
    assert await make.balance(app, agent) == 90
    assert (await make.vault(app, agent)).revision == 2


async def test_concurrent_duplicates_of_a_decline_are_one_decline(app: App, other: App) -> None:
    agent = await make.agent(app, vault_balance=5)
    request = make.request_id()

    events = await asyncio.gather(
        *(make.spend(place, agent, 10, request) for place in (app, other) * 10)
    )

    assert len(set(events)) == 1
    assert reasons(events) == {FailureReason.INSUFFICIENT_BALANCE: 20}
    assert (await make.vault(app, agent)).revision == 2


async def test_duplicates_of_everything_that_moves_money_have_one_effect(
    app: App, other: App
) -> None:
    """Holds, captures, releases, refunds and funding, each five times on both processes."""
    agent = await make.agent(app, vault_balance=1_000)
    spent = await make.spend(app, agent, 100)
    to_capture, to_release = await make.hold(app, agent, 50), await make.hold(app, agent, 50)
    arriving = [await make.fund(app, agent.owner, agent.vault_id, 7, pending=True) for _ in "12"]
    before = (await make.vault(app, agent)).revision
    steps: dict[str, Callable[[App, str], Awaitable[Event]]] = {
        "hold": lambda place, request: make.hold(place, agent, 30, request),
        "capture": lambda place, request: make.capture(place, agent, to_capture, 20, request),
        "release": lambda place, request: make.release(place, agent, to_release, request),
        "refund": lambda place, request: make.refund(place, agent, spent, 40, request),
        "fund": lambda place, request: make.fund(
            place, agent.owner, agent.vault_id, 1_000, request=request
        ),
        "confirm": lambda place, request: make.confirm_funding(place, agent, arriving[0], request),
        "fail": lambda place, request: make.fail_funding(place, agent, arriving[1], request),
    }

    answers = {
        name: await asyncio.gather(*(step(place, f"{name}-1") for place in (app, other) * 5))
        for name, step in steps.items()
    }

    assert {name: len(set(events)) for name, events in answers.items()} == dict.fromkeys(steps, 1)
    assert (await make.vault(app, agent)).revision == before + len(steps)
    assert await make.balance(app, agent) == 1_000 - 100 - 30 - 20 + 40 + 1_000 + 7
    assert await make.verify(app, agent) is None


async def test_the_first_answer_is_given_again_whatever_has_changed_since(
    app: App, other: App
) -> None:
    """The hold was captured, the agent deleted, the project archived: the answer stays."""
    agent = await make.agent(app, vault_balance=1_000)
    held = await make.hold(app, agent, 100, "hold")
    spent = await make.spend(app, agent, 1, "spend")
    declined = await make.spend(app, agent, 1_000, "declined")
    captured = await make.capture(app, agent, held, 60, "capture")
    await app.budgets.remove(agent.owner, agent.agent_id)
    await app.agents.delete(agent.owner, agent.agent_id)
    await app.projects.archive(agent.owner, agent.project_id)
    before = await make.vault(app, agent)

    for place in (app, other):
        assert await make.hold(place, agent, 100, "hold") == held
        assert await make.spend(place, agent, 1, "spend") == spent
        assert await make.spend(place, agent, 1_000, "declined") == declined
        assert await make.capture(place, agent, held, 60, "capture") == captured

    assert (held.status, captured.status) == (EventStatus.PENDING, EventStatus.CONFIRMED)
    assert await make.vault(app, agent) == before


async def test_an_answer_is_the_same_for_the_owner_and_for_a_process_that_never_saw_the_agent(
    app: App, other: App
) -> None:
    """The owner's API key repeats what an agent that is deleted by now had asked."""
    agent = await make.agent(app)
    spent = await make.spend(app, agent, 10, "r")
    await app.agents.delete(agent.owner, agent.agent_id)

    again = await other.ledger.spend(agent.owner, make.order(agent, 10, "r"))

    assert again == spent
    with pytest.raises(errors.NotFound):
        await other.ledger.spend(agent.owner, make.order(agent, 10, "new"))


async def test_another_body_under_the_same_id_is_refused_by_name(app: App, other: App) -> None:
    """On whichever process it comes; the first spend stays the only one."""
    agent = await make.agent(app, vault_balance=100)
    await make.spend(app, agent, 10, "r")

    for place in (app, other):
        with pytest.raises(errors.RequestIdReused) as refusal:
            await make.spend(place, agent, 11, "r")
        assert refusal.value.metadata == {"request_id": "r", "fields": "amount"}

    assert await make.balance(app, agent) == 90


async def test_the_same_id_on_another_rpc_is_refused(app: App) -> None:
    """All RPCs of a scope share their ids: that of the agent, and that of the vault."""
    agent = await make.agent(app, vault_balance=100)
    spent, held = await make.spend(app, agent, 10, "spend"), await make.hold(app, agent, 10, "hold")
    credit = await make.fund(app, agent.owner, agent.vault_id, 5, pending=True, request="fund")
    before = await make.vault(app, agent)

    refused = await refusals(
        make.hold(app, agent, 10, "spend"),
        make.spend(app, agent, 10, "hold"),
        make.capture(app, agent, held, 1, "spend"),
        make.capture(app, agent, held, 1, "hold"),
        make.release(app, agent, held, "spend"),
        make.refund(app, agent, spent, 1, "fund"),
        make.confirm_funding(app, agent, credit, "fund"),
        make.fail_funding(app, agent, credit, "fund"),
    )

    assert refused == ["REQUEST_ID_REUSED"] * 8
    assert await make.vault(app, agent) == before


async def test_an_id_belongs_to_its_scope(app: App) -> None:
    """Two agents and their vault may each use it once."""
    agent = await make.agent(app, vault_balance=100)
    beside = await make.agent(app, beside=agent)

    await make.spend(app, agent, 10, "r")
    await make.spend(app, beside, 20, "r")
    await make.fund(app, agent.owner, agent.vault_id, 1_000, request="r")

    assert await make.balance(app, agent) == 1_070


async def test_an_error_does_not_stick_to_its_id(app: App) -> None:
    """Too much was captured, or too many holds were open: the next try under that id decides."""
    agent = await make.agent(app, vault_balance=100)
    held = await make.hold(app, agent, 10)
    assert await refusals(make.capture(app, agent, held, 11, "capture")) == ["CAPTURE_EXCEEDS_HOLD"]

    captured = await make.capture(app, agent, held, 9, "capture")

    assert captured.status is EventStatus.CONFIRMED
    assert await refusals(make.capture(app, agent, held, 10, "capture")) == ["REQUEST_ID_REUSED"]


async def test_a_decline_sticks_to_its_id(app: App) -> None:
    """It is an answer: money that comes later does not change it."""
    agent = await make.agent(app, vault_balance=5)
    declined = await make.spend(app, agent, 10, "r")
    await make.fund(app, agent.owner, agent.vault_id, 100)

    assert await make.spend(app, agent, 10, "r") == declined
    assert (await make.spend(app, agent, 10)).failure_reason is None


# --- batches --------------------------------------------------------------------------


async def test_a_batch_is_decided_in_order_and_a_decline_does_not_stop_it(app: App) -> None:
    """Of 10, 7, 10 and 3 for a day of 20 all but the third fit."""
    agent = await make.agent(app, daily_limit=20)

    events = await app.ledger.batch_spend(
        agent.caller, [make.order(agent, amount) for amount in (10, 7, 10, 3)]
    )

    assert [event.amount for event in events] == [-10, -7, -10, -3]
    assert reasons(events) == {None: 3, FailureReason.DAILY_LIMIT: 1}
    assert [event.revision for event in events] == [2, 3, 4, 5]
    assert len({event.created_at for event in events}) == 1


async def test_a_batch_of_a_thousand_is_one_transaction(app: App, other: App) -> None:
    """Sent three times at once, to both: a thousand events, the same answers."""
    agent = await make.agent(app, vault_balance=995)
    orders = [make.order(agent, 1) for _ in range(1_000)]

    first, second, third = await asyncio.gather(
        *(place.ledger.batch_spend(agent.caller, orders) for place in (app, other, app))
    )

    assert first == second == third
    assert reasons(first) == {None: 995, FailureReason.INSUFFICIENT_BALANCE: 5}
    assert (await make.vault(app, agent)).revision == 1_001
    assert await make.verify(app, agent) is None


async def test_an_unknown_agent_refuses_a_batch_whole(app: App) -> None:
    """One that never was, one that is deleted, one of a stranger."""
    agent, stranger = await make.agent(app, vault_balance=100), await make.agent(app)
    deleted = await make.agent(app, beside=agent)
    await app.agents.delete(agent.owner, deleted.agent_id)

    for wrong in (AgentId("cnobody"), deleted.agent_id, stranger.agent_id):
        orders = [make.order(agent, 1), make.order(wrong, 1), make.order(agent, 1)]
        refused = await refusals(app.ledger.batch_spend(agent.owner, orders))
        assert refused == ["NOT_FOUND"]

    assert await make.balance(app, agent) == 100
    assert (await make.vault(app, agent)).revision == 1


async def test_a_batch_belongs_to_one_project(app: App) -> None:
    agent = await make.agent(app)
    _, project_id, vault_id = await make.project(app, agent.owner)
    elsewhere = await make.agent(
        app, beside=make.Spender(agent.owner, project_id, vault_id, AgentId(""), "", agent.owner)
    )

    refused = await refusals(
        app.ledger.batch_spend(agent.owner, [make.order(agent, 1), make.order(elsewhere, 1)])
    )

    assert refused == ["INVALID_REQUEST"]
    assert (await make.vault(app, agent)).revision == 1


async def test_an_item_of_a_batch_is_a_spend_with_an_id_of_its_own(app: App, other: App) -> None:
    """What was spent alone is answered again; a repetition on its own, too."""
    agent = await make.agent(app, vault_balance=100)
    alone = await make.spend(app, agent, 10, "alone")

    events = await app.ledger.batch_spend(
        agent.caller, [make.order(agent, 20, "batched"), make.order(agent, 10, "alone")]
    )

    assert events[1] == alone
    assert await make.spend(other, agent, 20, "batched") == events[0]
    assert await make.balance(app, agent) == 70


async def test_an_id_that_was_used_otherwise_refuses_a_batch_whole(app: App) -> None:
    agent = await make.agent(app, vault_balance=100)
    await make.hold(app, agent, 10, "hold")

    refused = await refusals(
        app.ledger.batch_spend(
            agent.caller, [make.order(agent, 1, "new"), make.order(agent, 10, "hold")]
        )
    )

    assert refused == ["REQUEST_ID_REUSED"]
    assert (await make.vault(app, agent)).revision == 2
    assert (await make.spend(app, agent, 2, "new")).failure_reason is None


async def test_batches_and_spends_race_for_one_budget(app: App, other: App) -> None:
    """Ten batches of ten and fifty spends, on two processes: not a unit too many."""
    agent = await make.agent(app, daily_limit=333)

    batches = asyncio.gather(
        *(
            place.ledger.batch_spend(agent.caller, [make.order(agent, 5) for _ in range(10)])
            for place in (app, other) * 5
        )
    )
    spends = asyncio.gather(*(make.spend(place, agent, 5) for place in (app, other) * 25))
    events = [event for batch in await batches for event in batch] + list(await spends)

    assert reasons(events) == {None: 66, FailureReason.DAILY_LIMIT: 84}
    assert await make.verify(app, agent) is None


# --- holds ----------------------------------------------------------------------------


async def test_a_hold_takes_its_amount_and_gives_the_rest_back(app: App) -> None:
    """Captured with 60 of 100 the vault is 60 poorer, and so are the windows."""
    agent = await make.agent(app, vault_balance=1_000)

    held = await make.hold(app, agent, 100)
    while_held = await make.vault(app, agent)
    captured = await make.capture(app, agent, held, 60)

    assert (while_held.balance, while_held.held) == (900, 100)
    assert (captured.id, captured.status) == (held.id, EventStatus.CONFIRMED)
    assert (captured.amount, captured.authorized_amount) == (-60, 100)
    after = await make.vault(app, agent)
    assert (after.balance, after.held) == (940, 0)
    rule = await app.budgets.get(agent.owner, agent.agent_id)
    assert (rule.daily_spent, rule.daily_held, rule.monthly_spent) == (60, 0, 60)


async def test_a_release_gives_all_back(app: App) -> None:
    agent = await make.agent(app, vault_balance=1_000)
    held = await make.hold(app, agent, 100)

    released = await make.release(app, agent, held)

    assert (released.status, released.failure_reason) == (
        EventStatus.FAILED,
        FailureReason.RELEASED,
    )
    vault = await make.vault(app, agent)
    assert (vault.balance, vault.held) == (1_000, 0)
    assert (await app.budgets.get(agent.owner, agent.agent_id)).daily_spent == 0


async def test_a_hold_is_closed_once_however_many_try(app: App, other: App) -> None:
    """Captures and releases with ids of their own race on two processes: one wins."""
    agent = await make.agent(app, vault_balance=1_000)
    held = await make.hold(app, agent, 100)

    refused = await refusals(
        *(make.capture(place, agent, held, 60) for place in (app, other) * 4),
        *(make.release(place, agent, held) for place in (app, other) * 4),
    )

    assert Counter(refused) == {"": 1, "HOLD_NOT_OPEN": 15}
    assert (await make.vault(app, agent)).revision == 3
    assert await make.balance(app, agent) in {940, 1_000}
    assert await make.verify(app, agent) is None


@pytest.mark.parametrize(("amount", "outcome"), [(1, ""), (100, ""), (101, "CAPTURE_EXCEEDS_HOLD")])
async def test_a_capture_is_from_1_to_the_hold(app: App, amount: int, outcome: str) -> None:
    agent = await make.agent(app, vault_balance=1_000)
    held = await make.hold(app, agent, 100)

    assert await refusals(make.capture(app, agent, held, amount)) == [outcome]

    assert await make.balance(app, agent) == (900 if outcome else 1_000 - amount)


async def test_captures_and_releases_are_never_decided_anew(app: App) -> None:
    """The agent is paused, its rule removed, the project archived: they work."""
    agent = await make.agent(app, vault_balance=1_000)
    first, second = await make.hold(app, agent, 100), await make.hold(app, agent, 100)
    await app.agents.pause(agent.owner, agent.agent_id)
    await app.budgets.remove(agent.owner, agent.agent_id)
    await app.projects.archive(agent.owner, agent.project_id)

    await make.capture(app, agent, first, 60)
    await make.release(app, agent, second)

    assert await make.balance(app, agent) == 940
    assert await make.verify(app, agent) is None


async def test_what_is_no_open_hold_is_neither_captured_nor_released(app: App) -> None:
    """A spend, a decline, and funding."""
    agent = await make.agent(app, daily_limit=10)
    spent, declined = await make.spend(app, agent, 10), await make.spend(app, agent, 10)
    credit = await make.fund(app, agent.owner, agent.vault_id, 5, pending=True)

    for event in (spent, declined, credit):
        wanted = make.asked("CaptureSpend"), event.id
        assert await refusals(
            app.ledger.capture(agent.owner, *wanted, 1), app.ledger.release(agent.owner, *wanted)
        ) == ["HOLD_NOT_OPEN", "HOLD_NOT_OPEN"]


async def test_open_holds_are_capped_over_two_processes(start: StartApp) -> None:
    """Twenty race for seven places; one that is closed makes room, one that is refused does not."""
    app, other = await start(open_holds_limit=7), await start(open_holds_limit=7)
    agent = await make.agent(app, vault_balance=1_000)

    refused = await refusals(*(make.hold(place, agent, 10) for place in (app, other) * 10))

    assert Counter(refused) == {"": 7, "OPEN_HOLDS_LIMIT": 13}
    assert await make.balance(app, agent) == 930
    listed = await app.ledger.list_events(
        agent.caller, EventFilter(statuses=[EventStatus.PENDING]), None, 50
    )
    await make.release(app, agent, listed[0])
    assert await refusals(make.hold(other, agent, 1), make.hold(app, agent, 1)) in (
        ["", "OPEN_HOLDS_LIMIT"],
        ["OPEN_HOLDS_LIMIT", ""],
    )


# --- refunds --------------------------------------------------------------------------


async def test_refunds_are_at_most_what_was_spent(app: App, other: App) -> None:
    """Twenty refunds of 10 race for a spend of 95: nine fit, and then 5 remain."""
    agent = await make.agent(app, vault_balance=1_000)
    spent = await make.spend(app, agent, 95)

    refused = await refusals(*(make.refund(place, agent, spent, 10) for place in (app, other) * 10))

    assert Counter(refused) == {"": 9, "REFUND_EXCEEDS_SPEND": 11}
    assert await make.balance(app, agent) == 995
    with pytest.raises(errors.RefundExceedsSpend) as refusal:
        await make.refund(app, agent, spent, 6)
    assert refusal.value.metadata == {"remaining": "5"}
    await make.refund(app, agent, spent, 5)
    assert await make.balance(app, agent) == 1_000
    assert await make.verify(app, agent) is None


async def test_a_refund_changes_the_vault_and_never_the_windows(app: App) -> None:
    """It is funding that names its spend and the agent; the day stays as full as it was."""
    agent = await make.agent(app, daily_limit=100)
    spent = await make.spend(app, agent, 100)
    balance = await make.balance(app, agent)

    refunded = await make.refund(app, agent, spent, 100)

    assert (refunded.type, refunded.kind) == (EventType.FUNDING, EventKind.REFUND)
    assert (refunded.refunded_event_id, refunded.agent_id) == (spent.id, agent.agent_id)
    assert await make.balance(app, agent) == balance + 100
    assert (await app.budgets.get(agent.owner, agent.agent_id)).daily_spent == 100
    assert (await make.spend(app, agent, 1)).failure_reason is FailureReason.DAILY_LIMIT


async def test_only_a_confirmed_metered_spend_is_refunded(app: App) -> None:
    """Neither a hold, nor what was released or declined, nor funding, nor a refund."""
    agent = await make.agent(app, daily_limit=100)
    spent, held = await make.spend(app, agent, 50), await make.hold(app, agent, 50)
    released = await make.release(app, agent, held)
    held = await make.hold(app, agent, 50)
    declined = await make.spend(app, agent, 101)
    credit = await make.fund(app, agent.owner, agent.vault_id, 5)
    refunded = await make.refund(app, agent, spent, 10)

    for event in (held, released, declined, credit, refunded):
        assert await refusals(make.refund(app, agent, event, 1)) == ["SPEND_NOT_REFUNDABLE"]


async def test_a_captured_hold_is_refunded_up_to_what_was_captured(app: App) -> None:
    agent = await make.agent(app, vault_balance=1_000)
    captured = await make.capture(app, agent, await make.hold(app, agent, 100), 60)

    assert await refusals(make.refund(app, agent, captured, 61)) == ["REFUND_EXCEEDS_SPEND"]
    await make.refund(app, agent, captured, 60)

    assert await make.balance(app, agent) == 1_000


# --- funding --------------------------------------------------------------------------


async def test_pending_funding_counts_for_nothing(app: App) -> None:
    """Until it is confirmed; what failed never counts."""
    agent = await make.agent(app, vault_balance=0)
    first, second = [
        await make.fund(app, agent.owner, agent.vault_id, 100, pending=True) for _ in "12"
    ]

    declined = await make.spend(app, agent, 1)
    await make.fail_funding(app, agent, first)
    still_declined = await make.spend(app, agent, 1)
    await make.confirm_funding(app, agent, second)

    assert reasons([declined, still_declined]) == {FailureReason.INSUFFICIENT_BALANCE: 2}
    assert (await make.spend(app, agent, 100)).failure_reason is None
    assert await make.balance(app, agent) == 0
    assert (await make.vault(app, agent)).chain_balance == 0
    assert await make.verify(app, agent) is None


async def test_confirmed_and_failed_are_final(app: App, other: App) -> None:
    """Confirmations and failures race on two processes: one wins, and it stays so."""
    agent = await make.agent(app, vault_balance=0)
    credit = await make.fund(app, agent.owner, agent.vault_id, 100, pending=True)

    refused = await refusals(
        *(make.confirm_funding(place, agent, credit) for place in (app, other) * 3),
        *(make.fail_funding(place, agent, credit) for place in (app, other) * 3),
    )

    assert Counter(refused) == {"": 1, "FUNDING_NOT_PENDING": 11}
    final = await app.ledger.get_event(agent.owner, credit.id)
    assert await make.balance(app, agent) == (100 if final.status == "confirmed" else 0)


async def test_only_a_pending_credit_is_confirmed_or_failed(app: App) -> None:
    """Neither a confirmed one, nor a hold, nor a refund."""
    agent = await make.agent(app)
    credit = await make.fund(app, agent.owner, agent.vault_id, 100)
    held, spent = await make.hold(app, agent, 10), await make.spend(app, agent, 10)
    refunded = await make.refund(app, agent, spent, 1)

    for event in (credit, held, spent, refunded):
        assert (
            await refusals(
                make.confirm_funding(app, agent, event), make.fail_funding(app, agent, event)
            )
            == ["FUNDING_NOT_PENDING"] * 2
        )


async def test_a_signature_is_credited_once(app: App, other: App) -> None:
    """Under ids of their own, pending or not, on two processes: one event."""
    agent = await make.agent(app, vault_balance=0)
    signature = "5" * 88

    refused = await refusals(
        *(
            make.fund(place, agent.owner, agent.vault_id, 100, tx_hash=signature, pending=pending)
            for place in (app, other)
            for pending in (False, False, True)
        )
    )

    assert Counter(refused) == {"": 1, "TX_HASH_TAKEN": 5}
    assert await make.balance(app, agent) in {0, 100}
    assert (await make.vault(app, agent)).revision == 1


async def test_a_signature_belongs_to_its_vault(app: App) -> None:
    """Two vaults may each be funded by one transaction."""
    first, second = await make.agent(app, vault_balance=0), await make.agent(app, vault_balance=0)

    for agent in (first, second):
        await make.fund(app, agent.owner, agent.vault_id, 100, tx_hash="5" * 88)

    assert await make.balance(app, first) == await make.balance(app, second) == 100


async def test_a_vault_holds_at_most_what_its_figures_can(app: App) -> None:
    """Held amounts count, because they may come back; refunds have to fit, too."""
    agent = await make.agent(app, per_tx_limit=AMOUNT_MAX, daily_limit=AMOUNT_MAX)
    async with app.database.transaction() as conn:
        await conn.execute(
            "UPDATE vaults SET balance = $2 WHERE id = $1", agent.vault_id, BALANCE_MAX
        )
    held, spent = await make.hold(app, agent, 10), await make.spend(app, agent, 10)
    await make.fund(app, agent.owner, agent.vault_id, 10)

    assert (
        await refusals(
            make.fund(app, agent.owner, agent.vault_id, 1), make.refund(app, agent, spent, 1)
        )
        == ["BALANCE_TOO_LARGE"] * 2
    )
    arriving = await make.fund(app, agent.owner, agent.vault_id, 1, pending=True)
    assert await refusals(make.confirm_funding(app, agent, arriving)) == ["BALANCE_TOO_LARGE"]
    await make.release(app, agent, held)
    assert await make.balance(app, agent) == BALANCE_MAX


async def test_credits_can_be_switched_off(start: StartApp) -> None:
    """What is in the vault may be spent all the same."""
    app, without = await start(), await start(allow_credits=False)
    agent = await make.agent(app, vault_balance=100)

    refused = await refusals(make.fund(without, agent.owner, agent.vault_id, 1))

    assert refused == ["CREDITS_DISABLED"]
    assert (await make.spend(without, agent, 100)).failure_reason is None


# --- declines -------------------------------------------------------------------------


async def test_an_agent_that_is_declined_too_often_is_stopped_unrecorded(start: StartApp) -> None:
    """Three declines are recorded; another agent of the vault is not affected."""
    app = await start(declines_per_minute=3)
    agent = await make.agent(app, vault_balance=5)
    beside = await make.agent(app, beside=agent)
    declined = [await make.spend(app, agent, 10) for _ in range(3)]
    before = await make.vault(app, agent)

    with pytest.raises(errors.DeclinesLimited) as refusal:
        await make.spend(app, agent, 1)

    assert reasons(declined) == {FailureReason.INSUFFICIENT_BALANCE: 3}
    assert refusal.value.metadata == {"limit": "3"}
    assert 0 < (refusal.value.retry_after or 0) <= 60
    assert await make.vault(app, agent) == before
    assert (await make.spend(app, beside, 5)).failure_reason is None


async def test_declines_that_race_are_recorded_up_to_the_limit(start: StartApp) -> None:
    """Fifty at once: three are recorded, the others refused."""
    app = await start(declines_per_minute=3)
    agent = await make.agent(app, vault_balance=5)

    refused = await refusals(*(make.spend(app, agent, 10) for _ in range(50)))

    assert Counter(refused) == {"": 3, "DECLINES_LIMITED": 47}
    assert (await make.vault(app, agent)).revision == 4


async def test_a_stopped_agent_still_gets_its_first_answers(start: StartApp) -> None:
    """What was spent or declined before is answered again, alone or in a batch."""
    app = await start(declines_per_minute=3)
    agent = await make.agent(app, vault_balance=15)
    spent = await make.spend(app, agent, 10, "spent")
    declined = [await make.spend(app, agent, 10, f"declined{number}") for number in range(3)]

    assert await make.spend(app, agent, 10, "spent") == spent
    for _ in range(5):
        assert await make.spend(app, agent, 10, "declined1") == declined[1]
    orders = [make.order(agent, 10, "declined2"), make.order(agent, 10, "spent")]
    assert await app.ledger.batch_spend(agent.caller, orders) == [declined[2], spent]
    assert await refusals(make.spend(app, agent, 11, "spent")) == ["REQUEST_ID_REUSED"]


async def test_answers_that_are_given_again_are_no_declines(start: StartApp) -> None:
    """A client that repeats one declined request is not stopped for it."""
    app = await start(declines_per_minute=3)
    agent = await make.agent(app, vault_balance=5)

    for _ in range(10):
        await make.spend(app, agent, 10, "again")

    assert (await make.spend(app, agent, 5)).failure_reason is None


# --- reads ----------------------------------------------------------------------------


async def test_pages_of_events_are_not_shifted_by_what_is_written_meanwhile(app: App) -> None:
    """Newest first, in the order of the revisions; each event once."""
    agent = await make.agent(app)
    orders = [make.order(agent, amount) for amount in range(1, 8)]
    written = await app.ledger.batch_spend(agent.caller, orders)
    seen: list[Event] = []
    after: tuple[datetime, str] | None = None

    while page := await app.ledger.list_events(agent.caller, EventFilter(), after, 2):
        seen += page
        after = page[-1].created_at, page[-1].id
        await make.spend(app, agent, 1)

    assert seen == written[::-1]


async def test_events_are_filtered_by_everything(app: App) -> None:
    """By vault, agent, type, kind, status and time; together they all must hold."""
    agent = await make.agent(app)
    beside = await make.agent(app, beside=agent)
    spent, held = await make.spend(app, agent, 10), await make.hold(app, beside, 10)
    refunded = await make.refund(app, agent, spent, 5)

    async def found(**wanted: Any) -> set[EventId]:
        events = await app.ledger.list_events(agent.owner, EventFilter(**wanted), None, 50)
        return {event.id for event in events}

    everything = await found()
    assert {spent.id, held.id, refunded.id} < everything
    assert await found(vault_id=agent.vault_id) == everything
    assert await found(agent_id=agent.agent_id) == {spent.id, refunded.id}
    assert await found(types=[EventType.SPEND]) == {spent.id, held.id}
    assert await found(kinds=[EventKind.REFUND]) == {refunded.id}
    assert await found(statuses=[EventStatus.PENDING]) == {held.id}
    assert await found(start=held.created_at) == {held.id, refunded.id}
    assert await found(end=spent.created_at) == everything - {spent.id, held.id, refunded.id}
    assert await found(types=[EventType.SPEND], agent_id=agent.agent_id) == {spent.id}


async def test_an_agent_sees_its_own_events_only(app: App) -> None:
    agent = await make.agent(app)
    beside = await make.agent(app, beside=agent)
    own, others = await make.spend(app, agent, 1), await make.spend(app, beside, 1)

    seen = await app.ledger.list_events(agent.caller, EventFilter(), None, 50)

    assert [event.id for event in seen] == [own.id]
    assert (
        await refusals(
            app.ledger.get_event(agent.caller, others.id),
            make.capture(app, agent, others, 1),
            make.release(app, agent, others),
            app.ledger.list_events(agent.caller, EventFilter(agent_id=beside.agent_id), None, 50),
            app.ledger.list_events(agent.caller, EventFilter(vault_id=VaultId("cother")), None, 50),
            app.ledger.spend(agent.caller, make.order(beside, 1)),
        )
        == ["NOT_FOUND"] * 6
    )


async def test_what_is_a_strangers_is_as_if_it_did_not_exist(app: App) -> None:
    """Every way to reach the money of somebody else ends alike, and moves nothing."""
    agent, stranger = await make.agent(app), await make.agent(app)
    held, spent = await make.hold(app, agent, 10), await make.spend(app, agent, 10)
    credit = await make.fund(app, agent.owner, agent.vault_id, 5, pending=True)
    before = await make.vault(app, agent)
    ledger, caller, asked = app.ledger, stranger.owner, make.asked

    refused = await refusals(
        ledger.spend(caller, make.order(agent, 1)),
        ledger.authorize(caller, make.order(agent, 1)),
        ledger.batch_spend(caller, [make.order(agent, 1)]),
        ledger.capture(caller, asked(), held.id, 1),
        ledger.release(caller, asked(), held.id),
        ledger.refund(caller, asked(), spent.id, 1, None),
        ledger.confirm_funding(caller, asked(), credit.id),
        ledger.fail_funding(caller, asked(), credit.id),
        make.fund(app, caller, agent.vault_id, 1),
        ledger.get_event(caller, spent.id),
        ledger.list_events(caller, EventFilter(vault_id=agent.vault_id), None, 1),
        ledger.list_events(caller, EventFilter(agent_id=agent.agent_id), None, 1),
    )

    assert refused == ["NOT_FOUND"] * 12
    assert await make.vault(app, agent) == before


async def test_spends_are_summed_by_every_dimension(app: App) -> None:
    """Confirmed, pending and failed apart; what was captured counts as captured."""
    agent = await make.agent(app, daily_limit=100)
    beside = await make.agent(app, beside=agent)
    await make.spend(app, agent, 10, model="gpt-4o", provider="openai")
    await make.capture(app, agent, await make.hold(app, agent, 30), 20)
    await make.hold(app, beside, 7)
    last = await make.spend(app, agent, 101, model="gpt-4o", provider="openai")
    period = last.created_at - timedelta(hours=1), last.created_at + timedelta(hours=1)

    async def sums(*group_by: str) -> list[tuple[Any, ...]]:
        found: list[Any] = []
        while page := await app.ledger.summarize_spend(
            agent.owner, agent.vault_id, None, period, group_by, (found and found[-1][0]) or None, 1
        ):
            found += page
        return [tuple(row) for row in found]

    assert await sums() == [(("", "", "", ""), 30, 7, 2, 1, 0, 1)]
    by_agent = {row[0].agent_id: row[1:] for row in await sums("agent")}
    assert by_agent == {agent.agent_id: (30, 0, 2, 0, 0, 1), beside.agent_id: (0, 7, 0, 1, 0, 0)}
    assert await sums("provider", "model") == [
        (("", "", "", ""), 20, 7, 1, 1, 0, 0),
        (("", "", "openai", "gpt-4o"), 10, 0, 1, 0, 0, 1),
    ]
    today = datetime.now(UTC).date()
    days = {row[0].day for row in await sums("day")}
    assert days <= {str(today), str(today - timedelta(days=1))}
