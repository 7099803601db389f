"""The life of an agent, as its owner sees it."""

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from pilot_grpc.gen.pilot.v1 import agents_pb2 as pb
from pilot_grpc.gen.pilot.v1 import budgets_pb2 as budgets
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from tests.rpc.serving import Pilot, Tenant, code, fresh, with_key

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def status_of(tenant: Tenant, agent_id: str) -> str:
    answer = await tenant.owner(pb.GetAgentRequest(agent_id=agent_id))
    return pb.AgentStatus.Name(answer.agent.status).removeprefix("AGENT_STATUS_")


async def test_an_agent_is_active_once_it_has_a_key_and_a_rule(shared: Pilot) -> None:
    """In either order; without its rule it needs setup again, without its key it does not."""
    tenant = await shared.tenant(balance=0)
    seen = []
    for key_first in (True, False):
        request = pb.CreateAgentRequest(project_id=tenant.project_id, name="Agent")
        agent = (await tenant.owner(request)).agent
        seen.append(await status_of(tenant, agent.id))
        steps = [
            pb.IssueAgentKeyRequest(agent_id=agent.id),
            budgets.SetBudgetRuleRequest(agent_id=agent.id, per_tx_limit=1, daily_limit=1),
        ]
        for step in steps if key_first else reversed(steps):
            await tenant.owner(step)
            seen.append(await status_of(tenant, agent.id))
        await tenant.owner(pb.RevokeAgentKeyRequest(agent_id=agent.id))
        seen.append(await status_of(tenant, agent.id))
        await tenant.owner(budgets.RemoveBudgetRuleRequest(agent_id=agent.id))
        seen.append(await status_of(tenant, agent.id))

    assert seen == ["NEEDS_SETUP", "NEEDS_SETUP", "ACTIVE", "ACTIVE", "NEEDS_SETUP"] * 2


@pytest.mark.parametrize(
    ("stop", "status"), [(pb.PauseAgentRequest, "PAUSED"), (pb.FlagAgentRequest, "ERROR")]
)
async def test_an_agent_that_is_stopped_declines_until_its_owner_resumes_it(
    shared: Pilot, stop: type[pb.PauseAgentRequest] | type[pb.FlagAgentRequest], status: str
) -> None:
    """A new rule or a new key does not wake it; its hold can be given back."""
    tenant = await shared.tenant(balance=100)
    hold = await tenant.hold(10)

    await tenant.owner(stop(agent_id=tenant.agent_id))
    await tenant.owner(
        budgets.SetBudgetRuleRequest(agent_id=tenant.agent_id, per_tx_limit=9, daily_limit=90)
    )
    agent = await with_key(tenant.owner, tenant.agent_id)
    stopped = await status_of(tenant, tenant.agent_id)
    declined = await agent(ledger.SpendRequest(amount=1, request_id=fresh()))
    released = await agent(ledger.ReleaseSpendRequest(event_id=hold.id, request_id=fresh()))
    await tenant.owner(pb.ResumeAgentRequest(agent_id=tenant.agent_id))
    spent = await agent(ledger.SpendRequest(amount=1, request_id=fresh()))

    assert stopped == status
    assert declined.event.failure_reason == ledger.FAILURE_REASON_AGENT_NOT_ACTIVE
    assert released.event.failure_reason == ledger.FAILURE_REASON_RELEASED
    assert await status_of(tenant, tenant.agent_id) == "ACTIVE"
    assert spent.event.status == ledger.EVENT_STATUS_CONFIRMED


async def test_an_update_changes_what_its_mask_names(shared: Pilot) -> None:
    """The rest stays; a field that is named and absent is removed."""
    tenant = await shared.tenant(balance=0)
    full = {"provider": "openai", "model": "gpt-4o", "webhook_url": "https://example.com/hook"}

    async def update(*paths: str, **fields: str) -> pb.Agent:
        answer = await tenant.owner(
            pb.UpdateAgentRequest(
                agent_id=tenant.agent_id, update_mask=FieldMask(paths=paths), **fields
            )
        )
        agent: pb.Agent = answer.agent
        return agent

    filled = await update("provider", "model", "webhook_url", **full, name="ignored")
    changed = await update("name", "model", name="Second", provider="ignored")

    assert {name: getattr(filled, name) for name in full} == full
    assert filled.name == "Agent"
    assert (changed.name, changed.provider) == ("Second", "openai")
    assert not changed.HasField("model")
    assert changed.webhook_url == full["webhook_url"]


async def test_a_spend_carries_its_agents_provider_and_model_unless_it_names_others(
    shared: Pilot,
) -> None:
    """As they are at that time: an event does not change with its agent."""
    tenant = await shared.tenant()
    await tenant.owner(
        pb.UpdateAgentRequest(
            agent_id=tenant.agent_id,
            provider="openai",
            model="gpt-4o",
            update_mask=FieldMask(paths=["provider", "model"]),
        )
    )

    default = await tenant.spend(1)
    named = await tenant.spend(1, model="o3")
    await tenant.owner(
        pb.UpdateAgentRequest(
            agent_id=tenant.agent_id, update_mask=FieldMask(paths=["provider", "model"])
        )
    )
    without = await tenant.spend(1)

    read = await tenant.owner(ledger.GetEventRequest(event_id=default.id))
    assert (read.event.provider, read.event.model) == ("openai", "gpt-4o")
    assert (named.provider, named.model) == ("openai", "o3")
    assert not without.HasField("provider")
    assert not without.HasField("model")


async def test_a_deleted_agent_leaves_its_history(shared: Pilot) -> None:
    """It is gone from every list, its hold is given back, and its events can still be read."""
    tenant = await shared.tenant(balance=100)
    beside_id, _ = await tenant.another_agent("Beside")
    spent, hold = await tenant.spend(10), await tenant.hold(20)

    await tenant.owner(pb.DeleteAgentRequest(agent_id=tenant.agent_id))

    listed = await tenant.owner(pb.ListAgentsRequest(project_id=tenant.project_id))
    released = (await tenant.owner(ledger.GetEventRequest(event_id=hold.id))).event
    assert [agent.id for agent in listed.agents] == [beside_id]
    assert released.failure_reason == ledger.FAILURE_REASON_AGENT_DELETED
    assert (await tenant.owner(ledger.GetEventRequest(event_id=spent.id))).event == spent
    for request in (
        pb.GetAgentRequest(agent_id=tenant.agent_id),
        pb.IssueAgentKeyRequest(agent_id=tenant.agent_id),
        pb.DeleteAgentRequest(agent_id=tenant.agent_id),
        budgets.GetBudgetRuleRequest(agent_id=tenant.agent_id),
        budgets.CheckSpendRequest(agent_id=tenant.agent_id, amount=1),
        ledger.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id=fresh()),
    ):
        assert await code(tenant.owner(request)) == "NOT_FOUND"
