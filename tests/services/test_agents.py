"""Agents: made, paused, resumed, given keys, and deleted without losing a unit."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.agents import AgentStatus
from pilot_grpc.domain.ids import AgentId, ProjectId
from pilot_grpc.domain.ledger import EventFilter, EventStatus, FailureReason
from pilot_grpc.services import agents as agents_service
from pilot_grpc.services.budgets import Limits
from pilot_grpc.services.requests import Once
from tests import make


async def test_a_deleted_agent_gives_its_holds_back(app: App, other: App) -> None:
    """Its spends stay spent; the vault, its counters and the ledger agree."""
    agent = await make.agent(app, vault_balance=1_000)
    beside = await make.agent(app, beside=agent)
    spent = await make.spend(app, agent, 100)
    holds = [await make.hold(app, agent, 50) for _ in range(3)]
    kept = await make.hold(app, beside, 70)

    await app.agents.delete(agent.owner, agent.agent_id)

    vault = await make.vault(app, agent)
    assert (vault.balance, vault.held) == (1_000 - 100 - 70, 70)
    for held in holds:
        event = await other.ledger.get_event(agent.owner, held.id)
        assert event.failure_reason is FailureReason.AGENT_DELETED
    assert (await app.ledger.get_event(agent.owner, spent.id)) == spent
    assert (await app.ledger.get_event(agent.owner, kept.id)).status is EventStatus.PENDING
    assert await make.verify(other, agent) is None


async def test_a_deleted_agent_is_gone_but_for_its_history(app: App, other: App) -> None:
    """No process spends, holds or reads it any more; its events are still listed."""
    agent = await make.agent(app)
    spent = await make.spend(app, agent, 10)
    await make.spend(other, agent, 10)
    held = await make.hold(app, agent, 10)

    await app.agents.delete(agent.owner, agent.agent_id)

    for place in (app, other):
        calls: list[Any] = [
            make.spend(place, agent, 1),
            place.ledger.spend(agent.owner, make.order(agent, 1)),
            make.hold(place, agent, 1),
            place.ledger.batch_spend(agent.owner, [make.order(agent, 1)]),
            place.agents.get(agent.owner, agent.agent_id),
            place.agents.pause(agent.owner, agent.agent_id),
            place.agents.delete(agent.owner, agent.agent_id),
            place.agents.issue_key(agent.owner, agent.agent_id),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [errors.NotFound] * len(calls)
        with pytest.raises(errors.HoldNotOpen):
            await make.capture(place, agent, held, 1)
        wanted = EventFilter(agent_id=agent.agent_id)
        listed = await place.ledger.list_events(agent.owner, wanted, None, 50)
        assert spent in listed
        assert len(listed) == 3


async def test_a_deleted_agents_spend_is_still_refunded(app: App) -> None:
    agent = await make.agent(app, vault_balance=100)
    spent = await make.spend(app, agent, 100)
    await app.agents.delete(agent.owner, agent.agent_id)

    refunded = await make.refund(app, agent, spent, 100)

    assert refunded.agent_id == agent.agent_id
    assert await make.balance(app, agent) == 100
    assert await make.verify(app, agent) is None


async def test_deleting_races_with_spends_holds_and_captures(app: App, other: App) -> None:
    """Whatever was approved before stays in order; nothing is approved after."""
    agent = await make.agent(app, vault_balance=10_000)
    holds = [await make.hold(app, agent, 10) for _ in range(10)]

    outcomes = await asyncio.gather(
        *(make.capture(other, agent, held, 4) for held in holds),
        *(make.hold(place, agent, 10) for place in (app, other) * 5),
        app.agents.delete(agent.owner, agent.agent_id),
        *(make.spend(place, agent, 1) for place in (app, other) * 5),
        *(make.hold(place, agent, 10) for place in (app, other) * 5),
        return_exceptions=True,
    )

    refused = {type(o) for o in outcomes if isinstance(o, BaseException)}
    assert refused <= {errors.NotFound, errors.HoldNotOpen}
    assert (await make.vault(app, agent)).held == 0
    assert await make.verify(app, agent) is None


async def test_a_deleted_agents_overdue_holds_are_settled_with_the_rest(app: App) -> None:
    """Expired where they had expired, given back where they had not."""
    agent = await make.agent(app, vault_balance=1_000)
    overdue, open_still = await make.hold(app, agent, 10), await make.hold(app, agent, 20)
    async with app.database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(
            "UPDATE events SET expires_at = created_at WHERE id = $1::text", overdue.id
        )

    await app.agents.delete(agent.owner, agent.agent_id)

    reasons = [
        (await app.ledger.get_event(agent.owner, held.id)).failure_reason
        for held in (overdue, open_still)
    ]
    assert reasons == [FailureReason.EXPIRED, FailureReason.AGENT_DELETED]
    assert await make.balance(app, agent) == 1_000


async def test_a_pause_is_cleared_by_resume_alone(app: App) -> None:
    """A new key does not clear it; resumed without a rule the agent needs setup."""
    agent = await make.agent(app)
    await app.agents.pause(agent.owner, agent.agent_id)

    with_new_key, _ = await app.agents.issue_key(agent.owner, agent.agent_id)
    declined = await make.spend(app, agent, 1)
    resumed = await app.agents.resume(agent.owner, agent.agent_id)
    await app.agents.flag(agent.owner, agent.agent_id)
    await app.budgets.remove(agent.owner, agent.agent_id)
    without_rule = await app.agents.resume(agent.owner, agent.agent_id)

    assert with_new_key.status is AgentStatus.PAUSED
    assert declined.failure_reason is FailureReason.AGENT_NOT_ACTIVE
    assert resumed.status is AgentStatus.ACTIVE
    assert without_rule.status is AgentStatus.NEEDS_SETUP


async def test_resume_leaves_alone_what_is_neither_paused_nor_faulty(app: App) -> None:
    agent = await make.agent(app)
    await app.agents.revoke_key(agent.owner, agent.agent_id)

    assert (await app.agents.resume(agent.owner, agent.agent_id)).status is AgentStatus.ACTIVE


async def test_a_new_key_replaces_the_old_one(app: App, other: App) -> None:
    """The old one is nobody's; a revoked one, too, and there is none left to revoke."""
    agent = await make.agent(app)
    _, new = await app.agents.issue_key(agent.owner, agent.agent_id)

    assert (await other.credentials.authenticate(new)) == agent.caller
    with pytest.raises(errors.CredentialInvalid):
        await other.credentials.authenticate(agent.key)
    revoked = await app.agents.revoke_key(agent.owner, agent.agent_id)
    assert not revoked.has_key
    with pytest.raises(errors.AgentHasNoKey):
        await app.agents.revoke_key(agent.owner, agent.agent_id)


async def test_a_key_is_stored_only_as_its_hash(app: App) -> None:
    agent = await make.agent(app)

    row = await app.database.pool.fetchrow(
        "SELECT agents.*::text AS everything FROM agents WHERE id = $1", agent.agent_id
    )

    assert row is not None
    assert agent.key[3:] not in row["everything"]


async def test_update_changes_what_it_names(app: App) -> None:
    """None removes; what is not named stays, and spends take the new defaults."""
    agent = await make.agent(app)
    await app.agents.update(
        agent.owner, agent.agent_id, {"name": "New", "provider": "openai", "model": "gpt-4o"}
    )

    updated = await app.agents.update(agent.owner, agent.agent_id, {"provider": None})

    assert (updated.name, updated.provider, updated.model) == ("New", None, "gpt-4o")
    spent = await make.spend(app, agent, 1)
    assert (spent.provider, spent.model) == (None, "gpt-4o")


async def test_agents_are_listed_newest_first_without_the_deleted(app: App) -> None:
    """In pages; a page begins where the one before ended."""
    agent = await make.agent(app)
    beside = [await make.agent(app, beside=agent) for _ in range(4)]
    await app.agents.delete(agent.owner, beside[1].agent_id)

    first = await app.agents.list(agent.owner, agent.project_id, None, 2)
    place = first[-1].created_at, first[-1].id
    second = await app.agents.list(agent.owner, agent.project_id, place, 10)

    expected = [beside[3], beside[2], beside[0], agent]
    assert [found.id for found in first + second] == [each.agent_id for each in expected]


async def test_an_archived_project_takes_no_new_agent(app: App) -> None:
    agent = await make.agent(app)
    await app.projects.archive(agent.owner, agent.project_id)

    with pytest.raises(errors.ProjectArchived):
        await make.agent(app, beside=agent)


async def test_a_project_has_so_many_agents_and_no_more(
    app: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten are added at once on two processes where three fit."""
    monkeypatch.setattr(agents_service, "AGENTS_PER_PROJECT_MAX", 3)
    user, project_id, _ = await make.project(app)

    outcomes = await asyncio.gather(
        *(
            place.agents.create(make.once(user), project_id, "Agent", None, None, None)
            for place in (app, other) * 5
        ),
        return_exceptions=True,
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(refusal) for refusal in refused] == [errors.QuotaExceeded] * 7


async def test_an_agent_is_made_once_for_its_request_id(app: App, other: App) -> None:
    """Twenty of the same request on two processes; another request under that id is refused."""
    user, project_id, _ = await make.project(app)
    once = Once(user.user_id, "r1", "CreateAgent", "name:1")

    made = await asyncio.gather(
        *(
            place.agents.create(once, project_id, "Agent", "openai", None, None)
            for place in (app, other) * 10
        )
    )

    assert len({agent.id for agent in made}) == 1
    assert len(set(made)) == 1
    for other_once in (
        Once(user.user_id, "r1", "CreateAgent", "name:2"),
        Once(user.user_id, "r1", "CreateProject", "name:1"),
    ):
        with pytest.raises(errors.RequestIdReused):
            await app.agents.create(other_once, project_id, "Agent", None, None, None)
    assert len(await app.agents.list(user, project_id, None, 10)) == 1


async def test_an_agent_that_could_not_be_made_leaves_its_request_id_free(app: App) -> None:
    """The project was archived; resumed, the same request makes it."""
    user, project_id, _ = await make.project(app)
    await app.projects.archive(user, project_id)
    once = Once(user.user_id, "r1", "CreateAgent", "")
    with pytest.raises(errors.ProjectArchived):
        await app.agents.create(once, project_id, "Agent", None, None, None)

    await app.projects.resume(user, project_id)

    assert (await app.agents.create(once, project_id, "Agent", None, None, None)).name == "Agent"


@pytest.mark.parametrize("whose", ["a stranger's", "nobody's"])
async def test_only_ones_own_agents_exist(app: App, whose: str) -> None:
    agent, stranger = await make.agent(app), await make.agent(app)
    caller = stranger.owner if whose == "a stranger's" else agent.owner
    agent_id = agent.agent_id if whose == "a stranger's" else AgentId("cnobody")
    project_id = agent.project_id if whose == "a stranger's" else ProjectId("cnowhere")
    calls: list[Any] = [
        app.agents.create(make.once(caller), project_id, "Agent", None, None, None),
        app.agents.list(caller, project_id, None, 10),
        app.agents.get(caller, agent_id),
        app.agents.update(caller, agent_id, {"name": "Mine"}),
        app.agents.pause(caller, agent_id),
        app.agents.flag(caller, agent_id),
        app.agents.resume(caller, agent_id),
        app.agents.issue_key(caller, agent_id),
        app.agents.revoke_key(caller, agent_id),
        app.agents.delete(caller, agent_id),
    ]

    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [errors.NotFound] * len(calls)
    assert (await make.spend(app, agent, 1)).failure_reason is None


async def test_a_project_that_is_deleted_meanwhile_takes_no_agent(app: App, other: App) -> None:
    """The agent waited for the vault's lock, and then there is no vault."""
    user, project_id, vault_id = await make.project(app)
    await app.projects.archive(user, project_id)
    await app.projects.resume(user, project_id)

    async with make.locked_vault(other, vault_id) as lock:
        creating = asyncio.create_task(
            app.agents.create(make.once(user), project_id, "Agent", None, None, None)
        )
        await lock.is_waited_for()
        await lock.conn.execute("DELETE FROM projects WHERE id = $1::text", project_id)

    with pytest.raises(errors.NotFound):
        await creating


async def test_a_project_that_is_archived_meanwhile_takes_no_agent(app: App, other: App) -> None:
    user, project_id, vault_id = await make.project(app)

    async with make.locked_vault(other, vault_id) as lock:
        creating = asyncio.create_task(
            app.agents.create(make.once(user), project_id, "Agent", None, None, None)
        )
        await lock.is_waited_for()
        await lock.conn.execute(
            "UPDATE projects SET status = 'archived' WHERE id = $1::text", project_id
        )

    with pytest.raises(errors.ProjectArchived):
        await creating


async def test_rows_of_a_deleted_agent_stay_until_its_project_goes(app: App) -> None:
    agent = await make.agent(app, vault_balance=10)
    await make.spend(app, agent, 10)
    await app.agents.delete(agent.owner, agent.agent_id)
    pool: asyncpg.Pool[Any] = app.database.pool
    count = "SELECT count(*) FROM agents JOIN events ON agent_id = agents.id WHERE agent_id = $1"
    assert await pool.fetchval(count, agent.agent_id) == 1

    await app.projects.archive(agent.owner, agent.project_id)
    await app.projects.delete(agent.owner, agent.project_id)

    assert await pool.fetchval(count, agent.agent_id) == 0


async def test_a_hold_may_be_as_long_as_seven_days(app: App) -> None:
    agent = await make.agent(app)

    held = await make.hold(app, agent, 1, ttl=timedelta(days=7))

    assert held.expires_at == held.created_at + timedelta(days=7)


async def test_limits_of_an_agent_that_is_set_up_again_start_from_its_events(app: App) -> None:
    """Deleted agents do not come back; a new one of the same name starts with nothing spent."""
    agent = await make.agent(app)
    await make.spend(app, agent, 10)
    await app.agents.delete(agent.owner, agent.agent_id)

    again = await make.agent(app, beside=agent)

    rule = await app.budgets.set(again.owner, again.agent_id, Limits(1, 1, 1))
    assert (rule.day.spent, rule.month.spent) == (0, 0)
