"""Projects: made with their vault, stopped, archived, and deleted only when nothing is left."""

import asyncio
from typing import Any

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.ids import ProjectId
from pilot_grpc.domain.ledger import FailureReason
from pilot_grpc.domain.projects import ProjectStatus
from pilot_grpc.services import projects as projects_service
from pilot_grpc.services.requests import Once
from tests import make


async def test_a_project_is_made_with_an_empty_vault_and_its_sealed_key(app: App) -> None:
    """The key is that of the address, and only the wrapping key opens it."""
    user = await make.owner(app)

    project = await app.projects.create(make.once(user), "Project", "What for")

    vault = await app.vaults.get(user, project.vault_id)
    assert (project.status, project.description) == (ProjectStatus.ACTIVE, "What for")
    assert (vault.balance, vault.chain_balance, vault.held, vault.revision) == (0, 0, 0, 0)
    key = await app.database.pool.fetchrow(
        "SELECT * FROM vault_keys WHERE vault_id = $1", project.vault_id
    )
    assert key is not None
    assert key["address"] == vault.address
    assert key["wrapping_key_id"] == make.WRAPPING_KEY.id


@pytest.mark.parametrize("stop", ["pause", "archive"])
async def test_a_stopped_project_declines_and_a_resumed_one_does_not(app: App, stop: str) -> None:
    """Before every other reason: the agent has no rule either."""
    agent = await make.agent(app, vault_balance=100)
    await getattr(app.projects, stop)(agent.owner, agent.project_id)
    declined = [await make.spend(app, agent, 1), await make.hold(app, agent, 1)]
    await app.budgets.remove(agent.owner, agent.agent_id)
    declined += [await make.spend(app, agent, 1)]

    await app.projects.resume(agent.owner, agent.project_id)

    assert {event.failure_reason for event in declined} == {FailureReason.PROJECT_NOT_ACTIVE}
    assert (await make.spend(app, agent, 1)).failure_reason is FailureReason.NO_BUDGET_RULE
    assert await make.balance(app, agent) == 100


async def test_an_archived_project_still_takes_and_gives_back(app: App) -> None:
    """Funding, its confirmation and its failure, captures, releases and refunds."""
    agent = await make.agent(app, vault_balance=1_000)
    spent = await make.spend(app, agent, 100)
    to_capture, to_release = await make.hold(app, agent, 50), await make.hold(app, agent, 50)
    arriving = [await make.fund(app, agent.owner, agent.vault_id, 7, pending=True) for _ in "12"]
    await app.projects.archive(agent.owner, agent.project_id)

    await make.fund(app, agent.owner, agent.vault_id, 10)
    await make.confirm_funding(app, agent, arriving[0])
    await make.fail_funding(app, agent, arriving[1])
    await make.capture(app, agent, to_capture, 20)
    await make.release(app, agent, to_release)
    await make.refund(app, agent, spent, 30)

    assert await make.balance(app, agent) == 1_000 - 100 + 10 + 7 - 20 + 30
    assert await make.verify(app, agent) is None


async def test_an_archived_project_is_resumed_and_not_paused(app: App) -> None:
    agent = await make.agent(app)
    await app.projects.archive(agent.owner, agent.project_id)

    with pytest.raises(errors.ProjectArchived):
        await app.projects.pause(agent.owner, agent.project_id)

    assert (await app.projects.resume(agent.owner, agent.project_id)).status == "active"


async def test_only_an_archived_project_is_deleted(app: App) -> None:
    user, project_id, _ = await make.project(app)
    for status in (None, app.projects.pause):
        if status is not None:
            await status(user, project_id)
        with pytest.raises(errors.ProjectNotArchived):
            await app.projects.delete(user, project_id)

    await app.projects.archive(user, project_id)
    await app.projects.delete(user, project_id)

    with pytest.raises(errors.NotFound):
        await app.projects.get(user, project_id)


@pytest.mark.parametrize("left", ["balance", "hold", "pending credit", "on chain"])
async def test_a_project_with_anything_left_is_not_deleted(app: App, left: str) -> None:
    """A unit in either figure, an open hold, or funding that may still arrive."""
    agent = await make.agent(app, vault_balance=10 if left == "balance" else 0)
    if left == "hold":
        await make.fund(app, agent.owner, agent.vault_id, 1)
        await make.hold(app, agent, 1)
    if left == "pending credit":
        await make.fund(app, agent.owner, agent.vault_id, 1, pending=True)
    if left == "on chain":
        async with app.database.transaction() as conn:
            await conn.execute(
                "UPDATE vaults SET chain_balance = 1 WHERE id = $1::text", agent.vault_id
            )
    await app.projects.archive(agent.owner, agent.project_id)

    with pytest.raises(errors.ProjectNotEmpty) as refusal:
        await app.projects.delete(agent.owner, agent.project_id)

    balance, pending = await make.balance(app, agent), left in {"hold", "pending credit"}
    assert refusal.value.metadata == {
        "balance": str(balance),
        "chain_balance": str(int(left == "on chain")),
        "pending": str(int(pending)),
    }
    assert (await app.projects.get(agent.owner, agent.project_id)).status == "archived"


async def test_an_overdue_hold_does_not_keep_a_project(app: App) -> None:
    """It is settled first; then only the balance is in the way."""
    agent = await make.agent(app, vault_balance=10)
    held = await make.hold(app, agent, 10)
    async with app.database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute("UPDATE events SET expires_at = created_at WHERE id = $1::text", held.id)
    await app.projects.archive(agent.owner, agent.project_id)

    with pytest.raises(errors.ProjectNotEmpty) as refusal:
        await app.projects.delete(agent.owner, agent.project_id)

    assert refusal.value.metadata["pending"] == "0"
    assert refusal.value.metadata["balance"] == "10"


async def test_a_deleted_project_takes_all_but_its_sealed_key(app: App) -> None:
    """Agents, rules, events, changes and answers; money that still arrives can be reached."""
    agent = await make.agent(app, vault_balance=10)
    spent = await make.spend(app, agent, 10)
    await make.refund(app, agent, spent, 10)
    await make.spend(app, agent, 10)
    await app.projects.archive(agent.owner, agent.project_id)

    await app.projects.delete(agent.owner, agent.project_id)

    left = {}
    for table, column, row_id in (
        ("vaults", "id", agent.vault_id),
        ("agents", "id", agent.agent_id),
        ("agent_budget_rules", "agent_id", agent.agent_id),
        ("events", "vault_id", agent.vault_id),
        ("event_changes", "vault_id", agent.vault_id),
        ("event_requests", "vault_id", agent.vault_id),
        ("vault_keys", "vault_id", agent.vault_id),
    ):
        left[table] = await app.database.pool.fetchval(
            f"SELECT count(*) FROM {table} WHERE {column} = $1",  # noqa: S608
            row_id,
        )
    assert left == dict.fromkeys(left, 0) | {"vault_keys": 1}


async def test_deleting_races_with_funding_and_spending_and_never_loses_a_unit(
    app: App, other: App
) -> None:
    """Either the money was first, and the project stays; or the project is gone, and it says so."""
    for _ in range(10):
        agent = await make.agent(app, vault_balance=0)
        await app.projects.archive(agent.owner, agent.project_id)

        deleted, funded, spent = await asyncio.gather(
            app.projects.delete(agent.owner, agent.project_id),
            make.fund(other, agent.owner, agent.vault_id, 5),
            make.spend(other, agent, 1),
            return_exceptions=True,
        )

        if deleted is None:
            assert isinstance(funded, errors.NotFound)
            assert isinstance(spent, errors.NotFound) or spent.failure_reason is not None  # type: ignore[union-attr]
        else:
            assert isinstance(deleted, errors.ProjectNotEmpty)
            assert await make.balance(app, agent) == 5
            assert await make.verify(app, agent) is None


async def test_every_process_forgets_a_deleted_project(app: App, other: App) -> None:
    """Also one that remembers where its agents belonged."""
    agent = await make.agent(app, vault_balance=0)
    for place in (app, other):
        await place.ledger.spend(agent.owner, make.order(agent, 1))
    await app.projects.archive(agent.owner, agent.project_id)
    await app.projects.delete(agent.owner, agent.project_id)

    for place in (app, other):
        calls: list[Any] = [
            place.ledger.spend(agent.owner, make.order(agent, 1)),
            make.spend(place, agent, 1),
            make.fund(place, agent.owner, agent.vault_id, 1),
            place.vaults.get(agent.owner, agent.vault_id),
            place.budgets.check(agent.owner, agent.agent_id, 1),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [errors.NotFound] * len(calls)


async def test_update_changes_what_it_names(app: App) -> None:
    """None removes a description; a status is not changed by it."""
    user, project_id, _ = await make.project(app)
    await app.projects.pause(user, project_id)
    await app.projects.update(user, project_id, {"name": "New", "description": "Words"})

    updated = await app.projects.update(user, project_id, {"description": None})

    assert (updated.name, updated.description) == ("New", None)
    assert updated.status is ProjectStatus.PAUSED


async def test_a_user_has_so_many_projects_and_no_more(
    app: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten are made at once on two processes where three fit."""
    monkeypatch.setattr(projects_service, "PROJECTS_PER_USER_MAX", 3)
    user = await make.owner(app)

    outcomes = await asyncio.gather(
        *(place.projects.create(make.once(user), "Project", None) for place in (app, other) * 5),
        return_exceptions=True,
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(refusal) for refusal in refused] == [errors.QuotaExceeded] * 7
    assert len(await app.projects.list(user, None, 50)) == 3


async def test_a_project_is_made_once_for_its_request_id(app: App, other: App) -> None:
    """Its answer is given again as it was, though it was renamed and archived since."""
    user = await make.owner(app)
    once = Once(user.user_id, "r1", "CreateProject", "name:1")

    made = await asyncio.gather(
        *(place.projects.create(once, "Project", None) for place in (app, other) * 5)
    )
    await app.projects.update(user, made[0].id, {"name": "New"})
    await app.projects.archive(user, made[0].id)
    again = await other.projects.create(once, "Project", None)

    assert set(made) == {again}
    assert (again.name, again.status) == ("Project", ProjectStatus.ACTIVE)


async def test_projects_are_listed_newest_first(app: App) -> None:
    """In pages; a page begins where the one before ended."""
    user = await make.owner(app)
    made = [await app.projects.create(make.once(user), str(n), None) for n in range(5)]

    first = await app.projects.list(user, None, 2)
    second = await app.projects.list(user, (first[-1].created_at, first[-1].id), 10)

    assert [project.id for project in first + second] == [project.id for project in made[::-1]]


@pytest.mark.parametrize("whose", ["a stranger's", "nobody's"])
async def test_only_ones_own_projects_exist(app: App, whose: str) -> None:
    user, project_id, vault_id = await make.project(app)
    stranger = await make.owner(app)
    caller = stranger if whose == "a stranger's" else user
    wanted = project_id if whose == "a stranger's" else ProjectId("cnowhere")
    calls: list[Any] = [
        app.projects.get(caller, wanted),
        app.projects.update(caller, wanted, {"name": "Mine"}),
        app.projects.pause(caller, wanted),
        app.projects.resume(caller, wanted),
        app.projects.archive(caller, wanted),
        app.projects.delete(caller, wanted),
        app.vaults.get(stranger, vault_id),
    ]

    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [errors.NotFound] * len(calls)
    assert (await app.projects.get(user, project_id)).status is ProjectStatus.ACTIVE
    assert await app.projects.list(stranger, None, 10) == []
