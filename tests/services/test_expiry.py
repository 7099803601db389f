"""Holds that expire: exactly then, whoever settles them, and never in anybody's way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.ledger import EventFilter, EventStatus, FailureReason
from pilot_grpc.services import books, expiry
from tests import make
from tests.conftest import Server
from tests.make import HandClock
from tests.services.conftest import StartApp

TTL = timedelta(minutes=10)


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2027, 6, 14, 12, tzinfo=UTC))


@pytest.fixture
async def app(start: StartApp, clock: HandClock) -> App:
    return await start(clock)


@pytest.fixture
async def other(start: StartApp, clock: HandClock) -> App:
    return await start(clock)


async def statuses(app: App, agent: make.Spender) -> Counter[FailureReason | EventStatus]:
    events = await app.ledger.list_events(agent.caller, EventFilter(), None, 500)
    return Counter(event.failure_reason or event.status for event in events)


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize(
    ("moment", "works"),
    [(-timedelta(microseconds=1), True), (timedelta(0), False), (timedelta(days=3), False)],
)
async def test_a_hold_is_captured_until_it_expires_swept_or_not(
    app: App, clock: HandClock, swept: bool, moment: timedelta, works: bool
) -> None:
    """A microsecond before it can be; at that moment and ever after it cannot."""
    agent = await make.agent(app, vault_balance=1_000)
    held = await make.hold(app, agent, 100, ttl=TTL)
    assert held.expires_at == clock.now + TTL
    clock.now = held.expires_at + moment
    if swept:
        await app.lanes.settle(agent.vault_id)

    outcomes = []
    for close in (make.capture(app, agent, held, 60), make.release(app, agent, held)):
        try:
            await close
            outcomes.append("closed")
        except errors.PilotError as refusal:
            outcomes.append(refusal.reason)

    assert outcomes == (["closed", "HOLD_NOT_OPEN"] if works else ["HOLD_EXPIRED"] * 2)
    assert await make.balance(app, agent) == (940 if works else 1_000)
    assert await make.verify(app, agent) is None


async def test_captures_race_with_the_expiry_and_one_of_them_wins(
    app: App, other: App, clock: HandClock
) -> None:
    """Two processes capture, release and sweep around the very moment."""
    agent = await make.agent(app, vault_balance=10_000)
    holds = [await make.hold(app, agent, 100, ttl=TTL) for _ in range(20)]
    clock.now = holds[10].created_at + TTL - timedelta(microseconds=1)

    async def turn() -> None:
        clock.move(microseconds=1)
        await other.lanes.settle(agent.vault_id)

    closing = [make.capture(place, agent, held, 60) for held in holds for place in (app, other)]
    outcomes = await asyncio.gather(*closing[:20], turn(), *closing[20:], return_exceptions=True)

    refused = [o for o in outcomes if isinstance(o, BaseException)]
    assert {type(o) for o in refused} <= {errors.HoldNotOpen, errors.HoldExpired}
    captured = 41 - len(refused) - 1
    assert await make.balance(app, agent) == 10_000 - 60 * captured
    assert await make.verify(app, agent) is None


@pytest.mark.parametrize(
    "limits", [{"daily_limit": 100}, {"monthly_limit": 100}, {"vault_balance": 100}]
)
async def test_an_overdue_hold_never_stands_in_the_way(
    app: App, clock: HandClock, limits: dict[str, Any]
) -> None:
    """Nobody swept it: the spend that needs its place settles it first, and is approved."""
    agent = await make.agent(app, **limits)
    await make.hold(app, agent, 100, ttl=TTL)
    declined = await make.spend(app, agent, 100)
    clock.move(minutes=10)

    check = await app.budgets.check(agent.owner, agent.agent_id, 100)
    approved = await make.spend(app, agent, 100)

    assert declined.failure_reason is not None
    assert check.declined is None
    assert approved.failure_reason is None
    assert approved.revision == declined.revision + 2
    assert await statuses(app, agent) == {
        declined.failure_reason: 1,
        FailureReason.EXPIRED: 1,
        EventStatus.CONFIRMED: 1,
    }
    assert await make.verify(app, agent) is None


async def test_an_overdue_hold_of_another_agent_frees_the_vault(app: App, clock: HandClock) -> None:
    """Its own agent's counters get it back, too, though it is not the one that asks."""
    agent = await make.agent(app, vault_balance=100)
    beside = await make.agent(app, beside=agent)
    await make.hold(app, beside, 100, ttl=TTL)
    clock.move(minutes=10)

    assert (await app.budgets.check(agent.owner, agent.agent_id, 100)).declined is None
    assert (await make.spend(app, agent, 100)).failure_reason is None

    rule = await app.budgets.get(agent.owner, beside.agent_id)
    assert (rule.day.spent, rule.day.held) == (0, 0)
    assert await make.verify(app, agent) is None


async def test_an_overdue_hold_leaves_its_place_among_the_open_ones(
    start: StartApp, clock: HandClock
) -> None:
    app = await start(clock, open_holds_limit=1)
    agent = await make.agent(app)
    await make.hold(app, agent, 100, ttl=TTL)
    with pytest.raises(errors.OpenHoldsLimit):
        await make.hold(app, agent, 100)

    clock.move(minutes=10)

    assert (await make.hold(app, agent, 100)).status is EventStatus.PENDING


async def test_a_vault_whose_time_is_ahead_expires_no_hold_of_another(
    start: StartApp, clock: HandClock
) -> None:
    """The clock stepped back after one was changed: in the same batch each has its own time."""
    app = await start(clock, lanes=1)
    ahead, behind = await make.agent(app), await make.agent(app)
    clock.move(hours=1)
    await make.hold(app, ahead, 10, ttl=timedelta(hours=1))
    clock.move(hours=-1)
    held = await make.hold(app, behind, 10, ttl=TTL)

    one, other = await asyncio.gather(make.spend(app, ahead, 1), make.spend(app, behind, 1))

    assert one.created_at - other.created_at == timedelta(hours=1)
    assert (await app.ledger.get_event(behind.owner, held.id)).status is EventStatus.PENDING
    clock.move(minutes=10)
    await make.spend(app, behind, 1)
    expired = await app.ledger.get_event(behind.owner, held.id)
    assert expired.failure_reason is FailureReason.EXPIRED


async def test_the_figures_of_a_decline_leave_out_what_is_overdue(
    app: App, clock: HandClock
) -> None:
    """Spent, held and remaining are those after the settling, in CheckSpend as in Spend."""
    agent = await make.agent(app, daily_limit=100)
    await make.spend(app, agent, 30)
    await make.hold(app, agent, 50, ttl=TTL)
    clock.move(minutes=10)

    check = await app.budgets.check(agent.owner, agent.agent_id, 71)
    declined = await make.spend(app, agent, 71)

    assert declined.decline is not None
    assert check.declined is not None
    assert declined.decline[:5] == (FailureReason.DAILY_LIMIT, 100, 30, 0, 70)
    assert check.declined.figures == declined.decline


async def test_a_read_shows_an_overdue_hold_as_pending_until_it_is_settled(
    app: App, clock: HandClock
) -> None:
    agent = await make.agent(app)
    held = await make.hold(app, agent, 100, ttl=TTL)
    clock.move(minutes=11)

    before = await app.ledger.get_event(agent.owner, held.id)
    await app.lanes.settle(agent.vault_id)
    after = await app.ledger.get_event(agent.owner, held.id)

    assert before == held
    assert (after.status, after.failure_reason) == (EventStatus.FAILED, FailureReason.EXPIRED)
    assert (after.updated_at, after.revision) == (clock.now, held.revision + 1)


async def test_a_hold_expires_once_however_many_settle_it(
    app: App, other: App, clock: HandClock
) -> None:
    """Sweeps, spends and captures on two processes: one numbered change a hold."""
    agent = await make.agent(app, vault_balance=10_000)
    holds = [await make.hold(app, agent, 100, ttl=TTL) for _ in range(10)]
    clock.move(minutes=10)

    await asyncio.gather(
        *(place.lanes.settle(agent.vault_id) for place in (app, other) * 5),
        *(make.capture(place, agent, held, 1) for held in holds for place in (app, other)),
        *(make.spend(place, agent, 1) for place in (app, other) * 5),
        return_exceptions=True,
    )

    assert await statuses(app, agent) == {FailureReason.EXPIRED: 10, EventStatus.CONFIRMED: 10}
    assert await make.balance(app, agent) == 10_000 - 10
    assert (await make.vault(app, agent)).revision == 1 + 10 + 10 + 10
    assert await make.verify(app, agent) is None


@pytest.fixture
async def alone(database: str, server: Server, clock: HandClock) -> AsyncIterator[App]:
    """The services on a database of their own: the sweeper looks at every vault there is."""
    async with AsyncExitStack() as stack:
        settings = {"database_pooler": server.pooler}
        running = make.app(database, clock, duties=False, **settings)
        yield await stack.enter_async_context(running)


async def test_the_sweeper_settles_every_overdue_hold(
    alone: App, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two vaults at a time, two holds of each; what is not overdue stays.

    The clock stands in the past, so that the database's own calls the holds overdue, too.
    """
    monkeypatch.setattr(expiry, "SWEEP_VAULTS_MAX", 2)
    monkeypatch.setattr(books, "OVERDUE_PER_BATCH_MAX", 2)
    clock.now = datetime(2024, 2, 28, tzinfo=UTC)
    agents = [await make.agent(alone) for _ in range(3)]
    for agent in agents:
        for _ in range(5):
            await make.hold(alone, agent, 100, ttl=TTL)
    clock.move(minutes=10)

    await alone.expiry.sweep()

    for agent in agents:
        assert await statuses(alone, agent) == {FailureReason.EXPIRED: 5}
        assert await make.verify(alone, agent) is None


async def test_more_overdue_holds_than_a_batch_settles_decline_nothing(
    app: App, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five stand in the way and two are settled at a time: the spend may come again."""
    monkeypatch.setattr(books, "OVERDUE_PER_BATCH_MAX", 2)
    agent = await make.agent(app, vault_balance=500, daily_limit=500)
    for _ in range(5):
        await make.hold(app, agent, 100, ttl=TTL)
    clock.move(minutes=10)

    for _ in range(2):
        with pytest.raises(errors.Overloaded) as refusal:
            await make.spend(app, agent, 500, "r")
        assert refusal.value.retry_after
    approved = await make.spend(app, agent, 500, "r")

    assert approved.failure_reason is None
    assert await statuses(app, agent) == {FailureReason.EXPIRED: 5, EventStatus.CONFIRMED: 1}
    assert await make.verify(app, agent) is None


async def test_a_duty_survives_its_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns fail, and the third comes all the same."""
    turns: list[int] = []
    done = asyncio.Event()

    async def duty() -> None:
        turns.append(len(turns))
        if len(turns) == 3:
            done.set()
        else:
            raise errors.DatabaseUnavailable

    again_and_again = asyncio.create_task(expiry.every(0, duty))
    await done.wait()
    again_and_again.cancel()

    assert turns[:3] == [0, 1, 2]


async def test_what_is_kept_for_a_time_only_is_removed_after_it(alone: App) -> None:
    """Answers of 7 days, sign-in windows, sessions that ended; younger ones stay."""
    user = await make.owner(alone)
    async with alone.database.transaction() as conn:
        for table, columns, days in (
            ("requests", "user_id, request_id, rpc, fingerprint, created_at", (6, 8)),
            ("sign_in_attempts", "email_hash, attempts, window_started_at", (0, 1)),
            ("sessions", "id, user_id, token, expires_at", (0, 2)),
        ):
            for age in days:
                moment = datetime.now(UTC) - timedelta(days=age)
                values = {
                    "requests": (user.user_id, f"r{age}", "Create", "", moment),
                    "sign_in_attempts": (f"h{age}", 1, moment),
                    "sessions": (f"s{age}", user.user_id, f"{age:064}", moment),
                }[table]
                places = ", ".join(f"${number + 1}" for number in range(len(values)))
                await conn.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", *values)  # noqa: S608

    await alone.expiry.clean()

    kept = await alone.database.pool.fetch(
        "SELECT request_id AS id FROM requests UNION ALL SELECT email_hash FROM sign_in_attempts"
        " UNION ALL SELECT id FROM sessions ORDER BY id"
    )
    assert [row["id"] for row in kept] == ["h0", "r6", "s0"]
