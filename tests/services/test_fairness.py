"""Limits: what they stop, and that they stop nobody else and no answer that was given."""

import asyncio
from datetime import UTC, datetime
from typing import Final

import asyncpg
import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.database_url import with_database
from pilot_grpc.db.connection import open_database
from pilot_grpc.domain.ledger import EventFilter, EventStatus, FailureReason
from pilot_grpc.services import books
from tests import make
from tests.conftest import Server
from tests.services.conftest import StartApp

TOO_MUCH: Final = 1_000


async def declined(app: App, agent: make.Spender) -> int:
    """How many declines of an agent were recorded."""
    wanted = EventFilter(agent_id=agent.agent_id, statuses=[EventStatus.FAILED])
    return len(await app.ledger.list_events(agent.owner, wanted, None, 500))


async def test_a_burst_of_declines_is_recorded_up_to_the_limit(start: StartApp) -> None:
    """Fifty at once pass the door together; the lane still records five of them."""
    app = await start(declines_per_minute=5)
    agent = await make.agent(app, per_tx_limit=10)

    spends = (make.spend(app, agent, TOO_MUCH) for _ in range(50))
    outcomes = await asyncio.gather(*spends, return_exceptions=True)

    assert sum(isinstance(outcome, errors.DeclinesLimited) for outcome in outcomes) == 45
    assert await declined(app, agent) == 5


async def test_declines_count_when_nobody_waits_for_them(start: StartApp) -> None:
    """Callers who went away while they were decided were declined all the same."""
    app = await start(declines_per_minute=3)
    agent = await make.agent(app, per_tx_limit=10)

    async with make.locked_vault(app, agent.vault_id) as lock:
        spends = [asyncio.ensure_future(make.spend(app, agent, TOO_MUCH)) for _ in range(3)]
        await lock.is_waited_for()
        for spend in spends:
            spend.cancel()
    await app.lanes.settle(agent.vault_id)

    left = app.ledger.declines.rooms([agent.agent_id])[agent.agent_id].left
    assert left == 3 - await declined(app, agent)


async def test_a_repeated_decline_counts_once(start: StartApp) -> None:
    """The same request twenty times is one decline, and the limit of two is not reached."""
    app = await start(declines_per_minute=2)
    agent = await make.agent(app, per_tx_limit=10)

    for _ in range(20):
        await make.spend(app, agent, TOO_MUCH, "again")

    event = await make.spend(app, agent, TOO_MUCH)
    assert event.failure_reason is FailureReason.PER_TX_LIMIT


async def test_an_answer_is_given_again_to_an_agent_that_is_stopped(start: StartApp) -> None:
    """Its money moved: that it was declined too often since must not hide it."""
    app = await start(declines_per_minute=1)
    agent = await make.agent(app, per_tx_limit=10)
    spent = await make.spend(app, agent, 7, "paid")
    await make.spend(app, agent, TOO_MUCH)

    with pytest.raises(errors.DeclinesLimited):
        await make.spend(app, agent, 1)

    assert await make.spend(app, agent, 7, "paid") == spent
    with pytest.raises(errors.RequestIdReused):
        await make.spend(app, agent, 8, "paid")


async def test_a_credit_is_answered_again_after_credits_were_switched_off(start: StartApp) -> None:
    before = await start()
    user, _, vault_id = await make.project(before)
    credit = await make.fund(before, user, vault_id, 5, request="credit")
    app = await start(allow_credits=False)

    again = await make.fund(app, user, vault_id, 5, request="credit")

    assert again == credit
    with pytest.raises(errors.CreditsDisabled):
        await make.fund(app, user, vault_id, 5)


async def test_one_vault_fills_at_most_half_of_a_queue(start: StartApp) -> None:
    """The other half is for the others of its lane, even while the first is locked."""
    app = await start(lanes=1, lane_queue_limit=2_000)
    greedy, modest = await make.agent(app), await make.agent(app)
    batch = [make.order(greedy, 1) for _ in range(600)]
    more = [make.order(greedy, 1) for _ in range(600)]

    async with make.locked_vault(app, greedy.vault_id) as lock:
        first = asyncio.ensure_future(make.spend(app, greedy, 1))
        await lock.is_waited_for()
        waiting = asyncio.ensure_future(app.ledger.batch_spend(greedy.caller, batch))
        await make.queued(app, 600)
        with pytest.raises(errors.Overloaded):
            await app.ledger.batch_spend(greedy.caller, more)
        beside = await make.spend(app, modest, 1)

    assert beside.status is EventStatus.CONFIRMED
    assert len(await waiting) == 600
    assert (await first).status is EventStatus.CONFIRMED


async def test_vaults_that_wait_for_locks_take_turns(start: StartApp) -> None:
    """Three vaults are locked, and a lane has two places for such: the third gets its turn."""
    app = await start(lanes=1)
    first, second, third = [await make.agent(app) for _ in range(3)]

    async with (
        make.locked_vault(app, first.vault_id) as lock,
        make.locked_vault(app, second.vault_id),
    ):
        async with make.locked_vault(app, third.vault_id):
            spends = [
                asyncio.ensure_future(make.spend(app, agent, 1)) for agent in (first, second, third)
            ]
            await lock.is_waited_for()
        assert (await spends[2]).status is EventStatus.CONFIRMED
        assert not spends[0].done()
        assert not spends[1].done()
    await asyncio.gather(*spends)


async def test_a_backlog_of_overdue_holds_is_settled_in_pieces(
    start: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While more are overdue than one batch settles, no decline is given that may be wrong."""
    monkeypatch.setattr(books, "OVERDUE_PER_BATCH_MAX", 3)
    clock = make.HandClock(datetime(2026, 5, 5, 12, tzinfo=UTC))
    app = await start(clock)
    agent = await make.agent(app, vault_balance=80)
    for _ in range(8):
        await make.hold(app, agent, 10)
    clock.move(hours=1)

    for _ in range(2):
        with pytest.raises(errors.Overloaded):
            await make.spend(app, agent, 80, "all of it")

    assert (await make.spend(app, agent, 80, "all of it")).status is EventStatus.CONFIRMED
    assert await make.verify(app, agent) is None


async def test_a_rule_is_read_at_its_vaults_time(start: StartApp) -> None:
    """The clock steps back over midnight: what was spent on that day is not shown again."""
    clock = make.HandClock(datetime(2026, 5, 5, 23, 59, tzinfo=UTC))
    app = await start(clock)
    agent = await make.agent(app)
    beside = await make.agent(app, beside=agent)
    await make.spend(app, agent, 7)
    clock.move(minutes=2)
    await make.spend(app, beside, 1)
    clock.move(minutes=-2)

    rule = await app.budgets.get(agent.owner, agent.agent_id)

    assert rule.day.spent == 0
    assert rule.day.ends_at == datetime(2026, 5, 7, tzinfo=UTC)


async def test_a_database_that_is_gone_is_away(server: Server) -> None:
    """What fails before the first statement is the database's fault, whatever its code."""
    database = await open_database(with_database(server.url, "no_such_database"))

    with pytest.raises(errors.DatabaseUnavailable):
        async with database.transaction():
            pass

    await database.close()


async def test_a_commit_that_rolled_back_is_no_success(app: App) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with a rollback, and no error."""

    async def fail_unnoticed() -> None:
        async with app.database.transaction() as conn:
            with pytest.raises(asyncpg.DivisionByZeroError):
                await conn.execute("SELECT 1 / 0")

    with pytest.raises(RuntimeError, match="rolled back"):
        await fail_unnoticed()


async def test_long_reads_of_one_user_wait_for_each_other(app: App) -> None:
    """Two at a time; another user's read does not wait behind the third."""
    one, other = await make.owner(app), await make.owner(app)
    turns = app.auditor.turns

    async with turns.take(one.user_id), turns.take(one.user_id):
        third = asyncio.ensure_future(app.ledger.list_events(one, EventFilter(), None, 1))
        await app.ledger.list_events(other, EventFilter(), None, 1)
        assert not third.done()

    assert await third == []
