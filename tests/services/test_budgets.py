"""Budget rules: set, read, removed, and explained rule by rule."""

import asyncio
from typing import Any, Final

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.agents import AgentStatus
from pilot_grpc.domain.ids import AgentId
from pilot_grpc.domain.ledger import FailureReason
from pilot_grpc.services.budgets import Limits
from tests import make
from tests.services.conftest import StartApp

ORDER: Final = [
    FailureReason.PROJECT_NOT_ACTIVE,
    FailureReason.NO_BUDGET_RULE,
    FailureReason.AGENT_NOT_ACTIVE,
    FailureReason.PER_TX_LIMIT,
    FailureReason.DAILY_LIMIT,
    FailureReason.MONTHLY_LIMIT,
    FailureReason.INSUFFICIENT_BALANCE,
]


async def test_check_explains_every_rule_with_its_headroom(app: App) -> None:
    """In the order of the decision; what was spent, held and remains stands at each."""
    agent = await make.agent(
        app, per_tx_limit=50, daily_limit=100, monthly_limit=1_000, vault_balance=500
    )
    await make.spend(app, agent, 30)
    await make.hold(app, agent, 20)

    check = await app.budgets.check(agent.owner, agent.agent_id, 50)

    assert [rule.figures.reason for rule in check.rules] == ORDER
    assert check.declined is None
    figures = {rule.figures.reason: rule.figures[1:5] for rule in check.rules}
    assert figures[FailureReason.PER_TX_LIMIT] == (50, None, None, 50)
    assert figures[FailureReason.DAILY_LIMIT] == (100, 50, 20, 50)
    assert figures[FailureReason.MONTHLY_LIMIT] == (1_000, 50, 20, 950)
    assert figures[FailureReason.INSUFFICIENT_BALANCE] == (None, None, 20, 450)


async def test_check_names_all_that_is_wrong_and_declines_for_the_first(app: App) -> None:
    agent = await make.agent(app, per_tx_limit=10, daily_limit=10, vault_balance=10)
    await app.agents.pause(agent.owner, agent.agent_id)

    check = await app.budgets.check(agent.owner, agent.agent_id, 11)

    failed = [rule.figures.reason for rule in check.rules if not rule.passed]
    assert failed == [
        FailureReason.AGENT_NOT_ACTIVE,
        FailureReason.PER_TX_LIMIT,
        FailureReason.DAILY_LIMIT,
        FailureReason.INSUFFICIENT_BALANCE,
    ]
    assert check.declined is not None
    assert check.declined.figures.reason is FailureReason.AGENT_NOT_ACTIVE


async def test_check_holds_nothing(app: App) -> None:
    agent = await make.agent(app, daily_limit=10)
    before = await make.vault(app, agent)

    for amount in (5, 11):
        await app.budgets.check(agent.caller, agent.agent_id, amount)

    assert await make.vault(app, agent) == before
    assert (await make.spend(app, agent, 10)).failure_reason is None


@pytest.mark.parametrize("amount", [9, 10, 11])
async def test_check_says_what_spend_then_decides(app: App, amount: int) -> None:
    """Reason and figures alike, at the edge of each limit."""
    for limits in (
        {"per_tx_limit": 10},
        {"daily_limit": 10},
        {"monthly_limit": 10},
        {"vault_balance": 10},
    ):
        agent = await make.agent(app, **limits)  # type: ignore[arg-type]

        check = await app.budgets.check(agent.owner, agent.agent_id, amount)
        event = await make.spend(app, agent, amount)

        assert (check.declined and check.declined.figures) == event.decline
        assert (event.decline is None) == (amount <= 10)


async def test_an_agent_gets_ready_by_itself_when_it_has_a_key_and_a_rule(app: App) -> None:
    """In either order; until then it is declined for what it lacks."""
    user, project_id, _ = await make.project(app)
    for key_first in (True, False):
        agent = await app.agents.create(make.once(user), project_id, "Agent", None, None, None)
        steps = [
            app.agents.issue_key(user, agent.id),
            app.budgets.set(user, agent.id, Limits(1, 1, None)),
        ]
        statuses = [agent.status]
        for step in steps if key_first else steps[::-1]:
            await step
            statuses.append((await app.agents.get(user, agent.id)).status)

        assert statuses == [AgentStatus.NEEDS_SETUP, AgentStatus.NEEDS_SETUP, AgentStatus.ACTIVE]


async def test_removing_a_rule_returns_an_active_agent_to_setup(app: App) -> None:
    """And declines it; setting a rule again makes it active again."""
    agent = await make.agent(app)

    await app.budgets.remove(agent.owner, agent.agent_id)
    without = await app.agents.get(agent.owner, agent.agent_id)
    declined = await make.spend(app, agent, 1)
    await app.budgets.set(agent.owner, agent.agent_id, Limits(10, 10, 10))
    again = await app.agents.get(agent.owner, agent.agent_id)

    assert without.status is AgentStatus.NEEDS_SETUP
    assert declined.failure_reason is FailureReason.NO_BUDGET_RULE
    assert again.status is AgentStatus.ACTIVE
    assert (await make.spend(app, agent, 1)).failure_reason is None


@pytest.mark.parametrize("stop", ["pause", "flag"])
async def test_a_rule_does_not_clear_what_an_owner_set(app: App, stop: str) -> None:
    """Neither removing it nor setting it again: paused stays paused, and faulty faulty."""
    agent = await make.agent(app)
    stopped = await getattr(app.agents, stop)(agent.owner, agent.agent_id)

    await app.budgets.remove(agent.owner, agent.agent_id)
    await app.budgets.set(agent.owner, agent.agent_id, Limits(10, 10, 10))

    assert (await app.agents.get(agent.owner, agent.agent_id)).status is stopped.status
    resumed = await app.agents.resume(agent.owner, agent.agent_id)
    assert resumed.status is AgentStatus.ACTIVE


async def test_rules_that_are_edited_while_spends_run_leave_every_unit_counted(
    start: StartApp,
) -> None:
    """Removed, set, raised and lowered on one process while two others spend and hold."""
    one, two, three = [await start(declines_per_minute=10**6) for _ in range(3)]
    agent = await make.agent(one)
    done = asyncio.Event()

    async def spend_on(app: App) -> None:
        while not done.is_set():
            held = await make.hold(app, agent, 7)
            await make.spend(app, agent, 3)
            if held.failure_reason is None:
                await make.capture(app, agent, held, 2)

    running = [asyncio.create_task(spend_on(app)) for app in (one, two) for _ in range(3)]
    for limit in range(15):
        await three.budgets.remove(agent.owner, agent.agent_id)
        await three.budgets.set(agent.owner, agent.agent_id, Limits(100, 10**9, None))
        await three.budgets.set(agent.owner, agent.agent_id, Limits(100, 500 + limit, 10**9))
    done.set()
    await asyncio.gather(*running)

    assert await make.verify(one, agent) is None
    assert (await make.vault(one, agent)).held == 0


async def test_two_processes_that_set_a_first_rule_at_once_make_one(app: App, other: App) -> None:
    """The last one to get the lock is the rule; none fails."""
    user, project_id, _ = await make.project(app)
    agent = await app.agents.create(make.once(user), project_id, "Agent", None, None, None)

    rules = await asyncio.gather(
        *(
            place.budgets.set(user, agent.id, Limits(limit, limit, None))
            for limit, place in enumerate((app, other) * 4, start=1)
        )
    )

    kept = await app.budgets.get(user, agent.id)
    assert kept.daily_limit in {rule.daily_limit for rule in rules}


async def test_without_a_rule_there_is_nothing_to_read_or_to_remove(app: App) -> None:
    agent = await make.agent(app)
    await app.budgets.remove(agent.owner, agent.agent_id)

    for call in (app.budgets.get, app.budgets.remove):
        with pytest.raises(errors.NotFound):
            await call(agent.owner, agent.agent_id)


@pytest.mark.parametrize("whose", ["a stranger's", "a deleted", "no"])
async def test_only_ones_own_living_agent_has_a_budget(app: App, whose: str) -> None:
    """Somebody else's is as one that does not exist, and so is one that was deleted."""
    agent, stranger = await make.agent(app), await make.agent(app)
    caller, agent_id = agent.owner, agent.agent_id
    if whose == "a stranger's":
        caller = stranger.owner
    elif whose == "a deleted":
        await app.agents.delete(agent.owner, agent.agent_id)
    else:
        agent_id = AgentId("cnobody")
    calls: list[Any] = [
        app.budgets.set(caller, agent_id, Limits(1, 1, None)),
        app.budgets.get(caller, agent_id),
        app.budgets.remove(caller, agent_id),
        app.budgets.check(caller, agent_id, 1),
    ]

    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [errors.NotFound] * 4
