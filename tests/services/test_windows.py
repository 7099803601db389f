"""Days and months that turn while money moves, under a clock that is moved by hand."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.ledger import FailureReason
from pilot_grpc.services.budgets import Limits
from tests import make
from tests.make import HandClock
from tests.services.conftest import StartApp

DAY: Final = timedelta(days=1)


class Turn(NamedTuple):
    """A midnight, and whether a month ends with it."""

    midnight: datetime
    month_ends: bool


TURNS: Final = {
    "a day": Turn(datetime(2027, 6, 15, tzinfo=UTC), month_ends=False),
    "a month": Turn(datetime(2027, 5, 1, tzinfo=UTC), month_ends=True),
    "a year": Turn(datetime(2028, 1, 1, tzinfo=UTC), month_ends=True),
    "into a leap day": Turn(datetime(2028, 2, 29, tzinfo=UTC), month_ends=False),
    "out of a leap day": Turn(datetime(2028, 3, 1, tzinfo=UTC), month_ends=True),
    "a February of 28 days": Turn(datetime(2027, 3, 1, tzinfo=UTC), month_ends=True),
    "a century that is no leap year": Turn(datetime(2100, 3, 1, tzinfo=UTC), month_ends=True),
}

turns = pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS.keys())


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2027, 6, 14, 23, tzinfo=UTC))


@pytest.fixture
async def app(start: StartApp, clock: HandClock) -> App:
    return await start(clock)


class Spent(NamedTuple):
    """The counters of a rule, as a reader sees them now."""

    daily: int
    daily_held: int
    monthly: int
    monthly_held: int


async def counters(app: App, agent: make.Spender) -> Spent:
    rule = await app.budgets.get(agent.owner, agent.agent_id)
    return Spent(rule.day.spent, rule.day.held, rule.month.spent, rule.month.held)


@turns
async def test_a_spend_belongs_to_its_own_day(app: App, clock: HandClock, turn: Turn) -> None:
    """The microsecond before midnight still counts; at midnight all of the day is there again."""
    clock.now = turn.midnight - timedelta(microseconds=1)
    agent = await make.agent(app, daily_limit=100)
    await make.spend(app, agent, 100)
    declined = await make.spend(app, agent, 1)

    clock.now = turn.midnight
    approved = await make.spend(app, agent, 100)

    assert declined.failure_reason is FailureReason.DAILY_LIMIT
    assert declined.decline is not None
    assert declined.decline.window_ends_at == turn.midnight
    assert approved.failure_reason is None
    month = 100 if turn.month_ends else 200
    assert await counters(app, agent) == Spent(100, 0, month, 0)
    assert await make.verify(app, agent) is None


@turns
async def test_a_month_ends_only_where_the_calendar_ends_it(
    app: App, clock: HandClock, turn: Turn
) -> None:
    """What is left of a month is left on its next day, and is all there again in the next month."""
    clock.now = turn.midnight - timedelta(hours=1)
    agent = await make.agent(app, monthly_limit=150)
    await make.spend(app, agent, 100)

    clock.now = turn.midnight
    second = await make.spend(app, agent, 100)

    assert (second.failure_reason is None) == turn.month_ends
    if second.decline is not None:
        assert second.decline[:5] == (FailureReason.MONTHLY_LIMIT, 150, 100, 0, 50)
        assert second.decline.window_ends_at == (turn.midnight + 31 * DAY).replace(day=1)
    assert await make.verify(app, agent) is None


@turns
async def test_a_hold_that_outlives_its_window_is_captured_in_that_window(
    app: App, clock: HandClock, turn: Turn
) -> None:
    """The new day never sees it; the month does, as long as it is the same one."""
    clock.now = turn.midnight - timedelta(minutes=1)
    agent = await make.agent(app, vault_balance=1_000)
    held = await make.hold(app, agent, 100)

    clock.now = turn.midnight + timedelta(minutes=1)
    same_month = Spent(0, 0, 0, 0) if turn.month_ends else Spent(0, 0, 100, 100)
    assert await counters(app, agent) == same_month
    await make.spend(app, agent, 7)
    await make.capture(app, agent, held, 60)

    assert await counters(app, agent) == Spent(7, 0, 7 if turn.month_ends else 67, 0)
    assert await make.balance(app, agent) == 1_000 - 7 - 60
    assert await make.verify(app, agent) is None


@turns
@pytest.mark.parametrize("expires", [False, True])
async def test_a_hold_that_fails_after_its_window_gives_nothing_to_the_next(
    app: App, clock: HandClock, turn: Turn, expires: bool
) -> None:
    """Released or expired: the vault has it again, the new day was never smaller for it."""
    clock.now = turn.midnight - timedelta(minutes=1)
    agent = await make.agent(app, vault_balance=1_000, daily_limit=100)
    held = await make.hold(app, agent, 100)

    clock.now = turn.midnight + timedelta(minutes=30 if expires else 1)
    if expires:
        await app.lanes.settle(agent.vault_id)
    else:
        await make.release(app, agent, held)
    spends = [await make.spend(app, agent, 100), await make.spend(app, agent, 1)]

    assert [event.failure_reason for event in spends] == [None, FailureReason.DAILY_LIMIT]
    assert await counters(app, agent) == Spent(100, 0, 100, 0)
    assert await make.balance(app, agent) == 900
    assert await make.verify(app, agent) is None


@turns
async def test_a_refund_after_its_window_touches_no_window(
    app: App, clock: HandClock, turn: Turn
) -> None:
    """Neither the one of the spend nor the one that is open."""
    clock.now = turn.midnight - timedelta(minutes=1)
    agent = await make.agent(app, vault_balance=1_000)
    spent = await make.spend(app, agent, 100)
    clock.now = turn.midnight
    await make.spend(app, agent, 7)
    before = await counters(app, agent)

    await make.refund(app, agent, spent, 40)

    assert await counters(app, agent) == before
    assert await make.balance(app, agent) == 1_000 - 107 + 40
    assert await make.verify(app, agent) is None


async def test_a_reader_sees_the_new_window_before_anything_is_spent_in_it(
    app: App, clock: HandClock
) -> None:
    """GetBudgetRule and CheckSpend look at the clock, not at what is stored."""
    agent = await make.agent(app, daily_limit=100, monthly_limit=1_000)
    await make.spend(app, agent, 100)

    clock.move(hours=1)
    rule = await app.budgets.get(agent.owner, agent.agent_id)
    check = await app.budgets.check(agent.owner, agent.agent_id, 100)

    assert (rule.day.spent, rule.day.remaining) == (0, 100)
    assert rule.day.starts_at == datetime(2027, 6, 15, tzinfo=UTC)
    assert (rule.month.spent, rule.month.remaining) == (100, 900)
    assert check.declined is None


@pytest.mark.parametrize("back", [timedelta(minutes=5), DAY, 40 * DAY])
async def test_a_clock_that_steps_back_opens_no_window_again(
    app: App, clock: HandClock, back: timedelta
) -> None:
    """Five minutes, a day, more than a month: the windows go on from the last change."""
    clock.now = midnight = datetime(2027, 6, 15, tzinfo=UTC)
    agent = await make.agent(app, daily_limit=100, monthly_limit=150)
    await make.spend(app, agent, 100)

    clock.now -= back
    declined = await make.spend(app, agent, 1)
    clock.now = midnight + DAY - timedelta(microseconds=1)
    still_declined = await make.spend(app, agent, 1)
    clock.now = midnight + DAY
    approved = await make.spend(app, agent, 50)

    assert declined.created_at == midnight
    assert declined.failure_reason is still_declined.failure_reason is FailureReason.DAILY_LIMIT
    assert approved.failure_reason is None
    assert await counters(app, agent) == Spent(50, 0, 150, 0)
    assert await make.verify(app, agent) is None


async def test_two_processes_whose_clocks_differ_agree_on_the_window(start: StartApp) -> None:
    """One is a day behind the other: what either spends counts in the later day."""
    ahead = HandClock(datetime(2027, 6, 15, 1, tzinfo=UTC))
    behind = HandClock(datetime(2027, 6, 14, 1, tzinfo=UTC))
    app, late = await start(ahead), await start(behind)
    agent = await make.agent(app, daily_limit=100)
    await make.spend(app, agent, 60)

    events = [await make.spend(late, agent, 30), await make.spend(late, agent, 30)]

    assert [event.failure_reason for event in events] == [None, FailureReason.DAILY_LIMIT]
    assert events[0].created_at == ahead.now
    assert await make.verify(late, agent) is None


async def test_a_hold_does_not_expire_again_when_the_clock_steps_back(
    app: App, clock: HandClock
) -> None:
    """Nor does one that has expired come to life: the vault's time only moves forward."""
    agent = await make.agent(app)
    held = await make.hold(app, agent, 100)
    clock.move(minutes=10)
    await make.spend(app, agent, 1)

    clock.move(minutes=-9)

    with pytest.raises(errors.HoldExpired):
        await make.capture(app, agent, held, 1)
    assert await make.verify(app, agent) is None


async def test_a_rule_that_is_set_again_counts_its_windows_from_the_events(
    app: App, clock: HandClock
) -> None:
    """Spends and holds of today and of this month, made under the rule that was removed."""
    agent = await make.agent(app)
    await make.spend(app, agent, 10)
    yesterday = await make.hold(app, agent, 20, ttl=7 * DAY)
    clock.move(hours=2)
    await make.spend(app, agent, 30)
    today = await make.hold(app, agent, 40, ttl=7 * DAY)
    await app.budgets.remove(agent.owner, agent.agent_id)
    await make.capture(app, agent, today, 35)
    declined = await make.spend(app, agent, 1)

    rule = await app.budgets.set(agent.owner, agent.agent_id, Limits(100, 100, 1_000))

    assert declined.failure_reason is FailureReason.NO_BUDGET_RULE
    assert (rule.day.spent, rule.day.held) == (30 + 35, 0)
    assert (rule.month.spent, rule.month.held) == (10 + 20 + 30 + 35, 20)
    await make.capture(app, agent, yesterday, 5)
    assert await counters(app, agent) == Spent(65, 0, 80, 0)
    assert await make.verify(app, agent) is None


async def test_limits_that_change_in_the_middle_of_a_window_keep_what_is_spent(
    app: App, clock: HandClock
) -> None:
    """Raised there is room again; lowered below what is spent nothing remains."""
    agent = await make.agent(app, daily_limit=100)
    await make.spend(app, agent, 100)

    await app.budgets.set(agent.owner, agent.agent_id, Limits(100, 130, None))
    approved, declined = await make.spend(app, agent, 30), await make.spend(app, agent, 1)
    lowered = await app.budgets.set(agent.owner, agent.agent_id, Limits(100, 50, 60))

    assert (approved.failure_reason, declined.failure_reason) == (None, FailureReason.DAILY_LIMIT)
    assert (lowered.day.spent, lowered.day.remaining) == (130, 0)
    assert (lowered.month.spent, lowered.month.remaining) == (130, 0)
    clock.move(hours=1)
    assert (await make.spend(app, agent, 1)).failure_reason is FailureReason.MONTHLY_LIMIT
    assert await make.verify(app, agent) is None


async def test_a_rule_that_is_set_when_its_window_is_over_shows_the_new_one(
    app: App, clock: HandClock
) -> None:
    agent = await make.agent(app, daily_limit=100)
    await make.spend(app, agent, 100)
    clock.move(hours=1)

    rule = await app.budgets.set(agent.owner, agent.agent_id, Limits(50, 50, 500))

    assert (rule.day.spent, rule.day.remaining) == (0, 50)
    assert (rule.month.spent, rule.month.remaining) == (100, 400)
    assert (await make.spend(app, agent, 50)).failure_reason is None
    assert await make.verify(app, agent) is None


async def test_a_month_without_a_limit_is_counted_for_the_limit_that_comes(app: App) -> None:
    agent = await make.agent(app, monthly_limit=None)
    await make.spend(app, agent, 100)

    await app.budgets.set(agent.owner, agent.agent_id, Limits(1_000, 1_000, 120))

    declined = await make.spend(app, agent, 21)
    assert declined.decline is not None
    assert declined.decline[:5] == (FailureReason.MONTHLY_LIMIT, 120, 100, 0, 20)


async def test_a_batch_that_waits_over_midnight_belongs_to_the_new_day(
    start: StartApp, clock: HandClock
) -> None:
    """The clock is read after the lock: what waited for another process sees the later day."""
    app = await start(clock)
    agent = await make.agent(app, daily_limit=100)
    await make.spend(app, agent, 100)

    async with make.locked_vault(app, agent.vault_id) as lock:
        waiting = asyncio.create_task(make.spend(app, agent, 100))
        await lock.is_waited_for()
        clock.move(hours=1)
    event = await waiting

    assert event.failure_reason is None
    assert event.created_at == clock.now
