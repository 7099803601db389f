"""Lanes: what waits together shares a transaction, and nobody suffers from anybody else."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from typing import Any, Final

import asyncpg
import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.db import ledger as ledger_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.ledger import Event, EventFilter, EventStatus, FailureReason
from pilot_grpc.services import agents as agents_service
from pilot_grpc.services import lanes
from pilot_grpc.services.budgets import Limits
from tests import make
from tests.services.conftest import StartApp

POISON = "poison"


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every transaction fail that writes an event with poison; note how many it wrote."""
    insert_events = ledger_db.insert_events
    sizes: list[int] = []

    async def insert(conn: Connection, events: Collection[Event]) -> None:
        sizes.append(len(events))
        if any(event.metadata == POISON for event in events):
            raise asyncpg.DataError("poison")
        await insert_events(conn, events)

    monkeypatch.setattr(ledger_db, "insert_events", insert)
    return sizes


async def together(app: App, agent: make.Spender, *calls: Any) -> list[Any]:
    """Let calls wait behind one that is being decided, so that they share the next batch."""
    async with make.locked_vault(app, agent.vault_id) as lock:
        first = asyncio.create_task(make.spend(app, agent, 1))
        await lock.is_waited_for()
        waiting = [asyncio.ensure_future(call) for call in calls]
        await make.queued(app, len(calls))
    await first
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_waits_together_is_one_transaction(app: App) -> None:
    """Two hundred spends that came while another was decided have one time and one batch."""
    agent = await make.agent(app)

    events = await together(app, agent, *(make.spend(app, agent, 1) for _ in range(200)))

    assert len({event.created_at for event in events}) == 1
    assert [event.revision for event in events] == [*range(3, 203)]


async def test_one_poisoned_item_fails_alone(app: App, poisoned: list[int]) -> None:
    """The batch of eleven is decided again one by one: ten are confirmed, once each."""
    agent = await make.agent(app, vault_balance=100)
    poison = make.spend(app, agent, 1, metadata=POISON)

    failed, *confirmed = await together(
        app, agent, poison, *(make.spend(app, agent, 1) for _ in range(10))
    )

    assert isinstance(failed, asyncpg.DataError)
    assert [event.status for event in confirmed] == [EventStatus.CONFIRMED] * 10
    assert poisoned == [1, 1, 11, *[1] * 11]
    assert await make.balance(app, agent) == 89
    assert await make.verify(app, agent) is None


@pytest.mark.parametrize("text", ["nul \x00", "lone surrogate \ud800"])
async def test_text_that_the_database_cannot_hold_fails_alone(app: App, text: str) -> None:
    """Had it come past the wire's validation; the connection serves on."""
    agent = await make.agent(app, vault_balance=100)

    failed, confirmed = await together(
        app, agent, make.spend(app, agent, 1, metadata=text), make.spend(app, agent, 1)
    )

    assert isinstance(failed, (asyncpg.PostgresError, ValueError))
    assert confirmed.status is EventStatus.CONFIRMED
    assert await make.balance(app, agent) == 98
    assert await make.verify(app, agent) is None


async def test_a_batch_spend_with_one_poisoned_item_fails_whole(
    app: App, poisoned: list[int]
) -> None:
    """It is one transaction by promise; what waited beside it is decided all the same."""
    agent = await make.agent(app, vault_balance=100)
    orders = [make.order(agent, 1), make.order(agent, 1, metadata=POISON)]

    failed, confirmed = await together(
        app, agent, app.ledger.batch_spend(agent.caller, orders), make.spend(app, agent, 1)
    )

    assert isinstance(failed, asyncpg.DataError)
    assert confirmed.status is EventStatus.CONFIRMED
    assert await make.balance(app, agent) == 98


async def test_one_refused_item_refuses_nobody_else(app: App) -> None:
    """A capture of too much and a reused id, in one batch with a spend."""
    agent = await make.agent(app, vault_balance=100)
    held = await make.hold(app, agent, 10)
    await make.spend(app, agent, 1, "used")

    too_much, reused, confirmed = await together(
        app,
        agent,
        make.capture(app, agent, held, 11),
        make.spend(app, agent, 2, "used"),
        make.spend(app, agent, 3),
    )

    assert isinstance(too_much, errors.CaptureExceedsHold)
    assert isinstance(reused, errors.RequestIdReused)
    assert confirmed.status is EventStatus.CONFIRMED
    assert await make.verify(app, agent) is None


async def test_a_batch_that_failed_one_by_one_still_knows_its_duplicates(
    app: App, poisoned: list[int]
) -> None:
    """The same request twice beside a poisoned one is still one spend."""
    agent = await make.agent(app, vault_balance=100)

    _, first, second = await together(
        app,
        agent,
        make.spend(app, agent, 1, metadata=POISON),
        make.spend(app, agent, 10, "twice"),
        make.spend(app, agent, 10, "twice"),
    )

    assert first == second
    assert await make.balance(app, agent) == 89


async def test_a_database_that_goes_away_leaves_the_outcome_unknown(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody decides the batch again; whoever was in it repeats, and has one effect."""
    agent = await make.agent(app, vault_balance=100)
    update_vaults, calls = vaults_db.update_vaults, []

    async def away(conn: Connection, vaults: Collection[Any]) -> None:
        calls.append(len(vaults))
        if len(calls) == 2:
            raise asyncpg.ConnectionDoesNotExistError
        await update_vaults(conn, vaults)

    monkeypatch.setattr(vaults_db, "update_vaults", away)
    unknown = await together(app, agent, *(make.spend(app, agent, 10, r) for r in ("r1", "r2")))
    attempts = len(calls)

    again = [await make.spend(app, agent, 10, request) for request in ("r1", "r2")]

    assert [type(each) for each in unknown] == [errors.DatabaseUnavailable] * 2
    assert all(each.retry_after for each in unknown)
    assert attempts == 2
    assert {event.status for event in again} == {EventStatus.CONFIRMED}
    assert await make.balance(app, agent) == 79


async def test_a_full_queue_refuses_and_nothing_happened(start: StartApp) -> None:
    """Of one vault three may wait: a fourth is refused at once, and two where one fits."""
    app = await start(lane_queue_limit=6, lane_batch_limit=6)
    agent = await make.agent(app, vault_balance=100)
    async with make.locked_vault(app, agent.vault_id) as lock:
        first = asyncio.create_task(make.spend(app, agent, 1))
        await lock.is_waited_for()
        waiting = [asyncio.create_task(make.spend(app, agent, 1)) for _ in range(2)]
        await make.queued(app, 2)
        batch = [make.order(agent, 1), make.order(agent, 1)]
        with pytest.raises(errors.Overloaded):
            await app.ledger.batch_spend(agent.caller, batch)
        waiting.append(asyncio.create_task(make.spend(app, agent, 1)))
        await make.queued(app, 3)

        with pytest.raises(errors.Overloaded) as refusal:
            await make.spend(app, agent, 1, "refused")

    assert refusal.value.retry_after
    await asyncio.gather(first, *waiting)
    assert await make.balance(app, agent) == 96
    await make.spend(app, agent, 1, "refused")
    assert await make.balance(app, agent) == 95


async def test_one_vault_does_not_fill_the_queue_of_the_others(start: StartApp) -> None:
    """It is refused while there is room for another vault in the same lane."""
    app = await start(lanes=1, lane_queue_limit=4, lane_batch_limit=4)
    busy, quiet = await make.agent(app), await make.agent(app)
    async with make.locked_vault(app, busy.vault_id) as lock:
        first = asyncio.create_task(make.spend(app, busy, 1))
        await lock.is_waited_for()
        waiting = [asyncio.create_task(make.spend(app, busy, 1)) for _ in range(2)]
        await make.queued(app, 2)

        with pytest.raises(errors.Overloaded):
            await make.spend(app, busy, 1)
        assert (await make.spend(app, quiet, 1)).failure_reason is None

    await asyncio.gather(first, *waiting)


async def test_the_queue_of_a_lane_is_bounded_whoever_fills_it(start: StartApp) -> None:
    """Two vaults have each their share of it: there is no room for a third."""
    app, other = await start(lanes=1, lane_queue_limit=4, lane_batch_limit=4), await start()
    agents = [await make.agent(other) for _ in range(3)]
    async with AsyncExitStack() as stack:
        waiting = []
        for agent in agents[:2]:
            lock = await stack.enter_async_context(make.locked_vault(other, agent.vault_id))
            waiting.append(asyncio.create_task(make.spend(app, agent, 1)))
            await lock.is_waited_for()
        waiting += [asyncio.create_task(make.spend(app, agent, 1)) for agent in agents[:2] * 2]
        await make.queued(app, 4)

        with pytest.raises(errors.Overloaded):
            await make.spend(app, agents[2], 1)

    events = await asyncio.gather(*waiting)
    assert {event.failure_reason for event in events} == {None}


async def test_who_has_stopped_waiting_is_left_out(app: App) -> None:
    """A caller that is gone before its batch begins has not spent; its request may come again."""
    agent = await make.agent(app, vault_balance=100)
    async with make.locked_vault(app, agent.vault_id) as lock:
        first = asyncio.create_task(make.spend(app, agent, 1))
        await lock.is_waited_for()
        gone = asyncio.create_task(make.spend(app, agent, 10, "gone"))
        stays = asyncio.create_task(make.spend(app, agent, 20))
        await make.queued(app, 2)
        gone.cancel()

    await asyncio.gather(first, stays)
    assert gone.cancelled() or gone.cancelling()
    assert await make.balance(app, agent) == 79
    await make.spend(app, agent, 10, "gone")
    assert await make.balance(app, agent) == 69


async def test_a_decision_stands_once_its_batch_has_begun(app: App) -> None:
    """The caller is gone in the middle of it: it has spent, and its request is answered again."""
    agent = await make.agent(app, vault_balance=100)
    async with make.locked_vault(app, agent.vault_id) as lock:
        gone = asyncio.create_task(make.spend(app, agent, 10, "gone"))
        await lock.is_waited_for()
        gone.cancel()

    await app.lanes.settle(agent.vault_id)
    assert await make.balance(app, agent) == 90
    assert (await make.spend(app, agent, 10, "gone")).revision == 2
    assert await make.balance(app, agent) == 90


async def test_lanes_that_close_decide_what_waits(start: StartApp) -> None:
    """And take nothing new."""
    app, other = await start(), await start()
    agent = await make.agent(app, vault_balance=100)
    async with make.locked_vault(other, agent.vault_id) as lock:
        first = asyncio.create_task(make.spend(app, agent, 1))
        await lock.is_waited_for()
        waiting = [asyncio.create_task(make.spend(app, agent, 1)) for _ in range(5)]
        await make.queued(app, 5)
        closing = asyncio.create_task(app.lanes.close())
        await make.until(lambda: all(lane._closed for lane in app.lanes._lanes))
        with pytest.raises(errors.ServerDraining):
            await make.spend(app, agent, 1)

    await closing
    assert all(task.done() for task in (first, *waiting))
    events = await asyncio.gather(first, *waiting)
    assert {event.status for event in events} == {EventStatus.CONFIRMED}
    assert await make.balance(other, agent) == 94


async def test_a_vault_that_somebody_has_locked_delays_no_other(start: StartApp) -> None:
    """All in one lane: the others are decided while one waits, and then it is, too."""
    app = await start(lanes=1)
    locked, free = await make.agent(app), await make.agent(app)
    async with make.locked_vault(app, locked.vault_id) as lock:
        waiting = [asyncio.create_task(make.spend(app, locked, 1)) for _ in range(5)]
        events = [await make.spend(app, free, 1) for _ in range(5)]
        await lock.is_waited_for()
        assert not any(task.done() for task in waiting)

    assert {event.failure_reason for event in events} == {None}
    assert {event.failure_reason for event in await asyncio.gather(*waiting)} == {None}
    assert await make.verify(app, locked) is None


async def test_many_locked_vaults_delay_no_other(start: StartApp) -> None:
    """More than may be waited for at once: what waits keeps its turn, and the rest goes on."""
    app, other = await start(lanes=1), await start()
    agents = [await make.agent(app, vault_balance=100) for _ in range(5)]
    free = await make.agent(app)
    async with AsyncExitStack() as stack:
        for agent in agents:
            await stack.enter_async_context(make.locked_vault(other, agent.vault_id))
        waiting = [asyncio.create_task(make.spend(app, a, 1)) for _ in range(3) for a in agents]
        events = [await make.spend(app, free, 1) for _ in range(5)]

    assert {event.failure_reason for event in events} == {None}
    assert {event.failure_reason for event in await asyncio.gather(*waiting)} == {None}
    for agent in agents:
        assert await make.balance(app, agent) == 97
        assert await make.verify(app, agent) is None


async def test_a_lock_that_is_held_for_too_long_is_not_waited_for(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it is told that nothing happened, and may come again."""
    monkeypatch.setattr(lanes, "LOCK_SECONDS_MAX", 0.0)
    agent = await make.agent(app, vault_balance=100)

    async with make.locked_vault(app, agent.vault_id):
        with pytest.raises(errors.Overloaded) as refusal:
            await make.spend(app, agent, 10, "r")

    assert refusal.value.retry_after
    await make.spend(app, agent, 10, "r")
    assert await make.balance(app, agent) == 90


async def test_vaults_in_one_lane_do_not_mix(start: StartApp) -> None:
    """One lane decides for ten vaults at once: each has its own numbers and its own money."""
    app = await start(lanes=1)
    agents = [await make.agent(app, vault_balance=25) for _ in range(10)]

    events = await asyncio.gather(
        *(make.spend(app, agent, 10) for _ in range(4) for agent in agents)
    )

    assert sum(event.failure_reason is None for event in events) == 20
    for agent in agents:
        mine = [event for event in events if event.vault_id == agent.vault_id]
        assert [event.revision for event in mine] == [2, 3, 4, 5]
        assert await make.balance(app, agent) == 5
        assert await make.verify(app, agent) is None


async def test_two_processes_lock_many_vaults_without_a_deadlock(start: StartApp) -> None:
    """Each batch takes the vaults in the order of their ids, however the spends came."""
    one, two = await start(lanes=1), await start(lanes=1)
    agents = [await make.agent(one, vault_balance=10**6) for _ in range(8)]

    events = await asyncio.gather(
        *(
            make.spend(place, agent, 1)
            for _ in range(10)
            for place, order in ((one, agents), (two, agents[::-1]))
            for agent in order
        )
    )

    assert {event.failure_reason for event in events} == {None}
    for agent in agents:
        assert await make.balance(one, agent) == 10**6 - 20
        assert await make.verify(two, agent) is None


STOPS: Final[dict[str, tuple[Callable[[App, make.Spender], Awaitable[Any]], FailureReason]]] = {
    "the agent is paused": (
        lambda app, agent: app.agents.pause(agent.owner, agent.agent_id),
        FailureReason.AGENT_NOT_ACTIVE,
    ),
    "the agent is flagged": (
        lambda app, agent: app.agents.flag(agent.owner, agent.agent_id),
        FailureReason.AGENT_NOT_ACTIVE,
    ),
    "the rule is removed": (
        lambda app, agent: app.budgets.remove(agent.owner, agent.agent_id),
        FailureReason.NO_BUDGET_RULE,
    ),
    "the limit is lowered": (
        lambda app, agent: app.budgets.set(agent.owner, agent.agent_id, Limits(10**9, 1, None)),
        FailureReason.DAILY_LIMIT,
    ),
    "the project is paused": (
        lambda app, agent: app.projects.pause(agent.owner, agent.project_id),
        FailureReason.PROJECT_NOT_ACTIVE,
    ),
    "the project is archived": (
        lambda app, agent: app.projects.archive(agent.owner, agent.project_id),
        FailureReason.PROJECT_NOT_ACTIVE,
    ),
}


@pytest.mark.parametrize(("stop", "reason"), STOPS.values(), ids=STOPS.keys())
async def test_once_a_stop_returns_nothing_more_is_approved(
    start: StartApp,
    stop: Callable[[App, make.Spender], Awaitable[Any]],
    reason: FailureReason,
) -> None:
    """Spends run on two processes without a break; every one behind the stop is declined."""
    app, other = await start(declines_per_minute=10**6), await start(declines_per_minute=10**6)
    agent = await make.agent(app)
    running = [
        asyncio.create_task(_spend_on(place, agent)) for place in (app, other) for _ in range(4)
    ]
    await _grown(app, agent, 20)

    await stop(app, agent)
    stopped_at = (await make.vault(app, agent)).revision
    await _grown(app, agent, stopped_at + 20)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)

    events = await app.ledger.list_events(agent.caller, EventFilter(), None, 500)
    assert {e.failure_reason for e in events if e.revision > stopped_at} == {reason}
    assert None in {e.failure_reason for e in events if e.revision <= stopped_at}
    assert await make.verify(app, agent) is None


async def _grown(app: App, agent: make.Spender, revision: int) -> None:
    """Return once the vault has come to a revision."""
    while (await make.vault(app, agent)).revision < revision:
        pass


async def _spend_on(app: App, agent: make.Spender) -> None:
    while True:
        await make.spend(app, agent, 1)


async def test_the_homes_of_agents_are_bounded(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten is read again."""
    monkeypatch.setattr(agents_service, "HOMES_REMEMBERED_MAX", 2)
    agents = [await make.agent(app) for _ in range(4)]

    for agent in agents * 2:
        await app.ledger.spend(agent.owner, make.order(agent, 1))

    assert len(app.ledger.homes._known) == 2
