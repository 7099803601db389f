"""Webhooks as an owner and a receiver see them, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict

from pilot_grpc.gen.pilot.v1 import agents_pb2 as pb
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from pilot_grpc.services import outbound
from tests import receiver
from tests.http_server import HttpServer, http_server, respond
from tests.rpc.serving import Client, Pilot, Tenant, refusal, serving

WEEK = 7 * 24 * 60 * 60


@pytest.fixture
async def pilot(database: str) -> AsyncIterator[Pilot]:
    """A server that delivers, and may call this machine."""
    async with serving(database, duties=True, webhooks_allow_private=True) as running:
        yield running


async def set_url(tenant: Tenant, url: str | None) -> pb.Agent:
    request = pb.UpdateAgentRequest(
        agent_id=tenant.agent_id, update_mask=FieldMask(paths=["webhook_url"])
    )
    if url is not None:
        request.webhook_url = url
    answer = await tenant.owner(request)
    agent: pb.Agent = answer.agent
    return agent


async def issue(tenant: Tenant, **fields: Any) -> str:
    answer = await tenant.owner(pb.IssueWebhookSecretRequest(agent_id=tenant.agent_id, **fields))
    secret: str = answer.secret
    return secret


async def webhook(caller: Client, agent_id: str = "") -> pb.Webhook:
    answer = await caller(pb.GetWebhookRequest(agent_id=agent_id))
    found: pb.Webhook = answer.webhook
    return found


async def arrived(server: HttpServer, secret: str, revision: int) -> list[int]:
    while revision not in (found := receiver.revisions(server, secret)):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return found


async def test_an_agent_with_a_url_and_a_secret_is_told_of_its_changes(pilot: Pilot) -> None:
    """What arrives is what a stream of the agent would show; the status follows."""
    tenant = await pilot.tenant()
    async with http_server() as server:
        needs = (await set_url(tenant, server.url())).webhook
        secret = await issue(tenant)
        spent = [await tenant.spend(amount) for amount in (1, 2, 10**13)]
        found = await arrived(server, secret, spent[-1].revision)
        while (told := await webhook(tenant.agent)).behind_count:
            pass

    assert needs == pb.Webhook(state=pb.WEBHOOK_STATE_NEEDS_SECRET)
    assert secret.startswith("whsec_")
    assert found == [event.revision for event in spent]
    bodies = [each.body for each in receiver.messages(server.requests, secret)]
    assert [body["type"] for body in bodies] == ["event.confirmed"] * 2 + ["event.failed"]
    assert bodies[0]["data"]["event"]["id"] == spent[0].id
    assert bodies[2]["data"]["event"]["decline"]["reason"] == "FAILURE_REASON_PER_TX_LIMIT"
    assert told.state == pb.WEBHOOK_STATE_DELIVERING
    assert told.delivered_revision == spent[-1].revision
    assert told.HasField("last_success_time")


async def test_the_body_is_the_change_as_a_stream_shows_it(pilot: Pilot) -> None:
    """By protobuf's own JSON mapping, so that generated code of any language reads it."""
    tenant = await pilot.tenant()
    async with http_server() as server:
        await set_url(tenant, server.url())
        secret = await issue(tenant)
        hold = await tenant.hold(5)
        await arrived(server, secret, hold.revision)

    (sent,) = receiver.messages(server.requests, secret)
    change = ParseDict(sent.body["data"], ledger.Change())
    assert change.event == hold
    assert (change.vault_id, change.revision) == (tenant.vault_id, hold.revision)
    assert not change.HasField("vault_figures")


async def test_a_dead_endpoint_shows_on_every_read(pilot: Pilot) -> None:
    tenant = await pilot.tenant()
    async with http_server(respond(500)) as server:
        await set_url(tenant, server.url())
        await issue(tenant)
        spent = await tenant.spend(1)
        while not (told := await webhook(tenant.owner, tenant.agent_id)).attempt_count:
            pass
        got = await tenant.owner(pb.GetAgentRequest(agent_id=tenant.agent_id))
        listed = await tenant.owner(pb.ListAgentsRequest(project_id=tenant.project_id))
        itself = await tenant.agent(pb.GetAgentRequest())

    assert told.state == pb.WEBHOOK_STATE_FAILING
    assert told.last_error == "answered with status 500"
    assert told.behind_count == 1
    assert told.failing_since_time.ToNanoseconds() <= told.last_error_time.ToNanoseconds()
    assert told.HasField("next_attempt_time")
    assert not told.HasField("delivered_revision")
    assert spent.revision == 2
    for agent in (got.agent, listed.agents[0], itself.agent):
        assert agent.webhook.state == pb.WEBHOOK_STATE_FAILING
        assert agent.webhook.last_error == told.last_error


async def test_a_test_message_and_a_redelivery_are_asked_for(pilot: Pilot) -> None:
    tenant = await pilot.tenant()
    async with http_server() as server:
        await set_url(tenant, server.url())
        secret = await issue(tenant)
        tested = await tenant.owner(pb.SendTestWebhookRequest(agent_id=tenant.agent_id))
        server.requests.clear()
        spent = [await tenant.spend(1) for _ in range(2)]
        await arrived(server, secret, spent[1].revision)
        request = pb.RedeliverWebhookRequest(
            agent_id=tenant.agent_id, from_revision=spent[0].revision
        )
        answer = await tenant.owner(request)
        while len(server.requests) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        beyond = await refusal(
            tenant.owner(
                pb.RedeliverWebhookRequest(
                    agent_id=tenant.agent_id, from_revision=spent[1].revision + 1
                )
            )
        )

    assert tested.delivered
    assert tested.status_code == 200
    assert tested.duration.ToTimedelta() > timedelta(0)
    assert answer.webhook.state == pb.WEBHOOK_STATE_DELIVERING
    assert len({each.id for each in receiver.messages(server.requests, secret)}) == 2
    assert (beyond.code, beyond.fields) == ("INVALID_ARGUMENT", ["from_revision"])


REFUSED = (
    "https://user:password@example.com/hook",
    "https://user@example.com/hook",
    "http://127.0.0.1/hook",
    "http://127.1/hook",
    "http://2130706433/hook",
    "http://0x7f000001/hook",
    "http://[::1]/hook",
    "http://[::ffff:10.0.0.1]/hook",
    "http://10.1.2.3/hook",
    "http://169.254.169.254/latest/meta-data",
    "https://localhost/hook",
    "https://example.com:22/hook",
)


@pytest.mark.parametrize("url", REFUSED)
async def test_a_url_that_would_never_be_called_is_refused_at_once(database: str, url: str) -> None:
    """By name, when an agent is made and when it is changed; nothing is stored."""
    async with serving(database) as pilot:
        tenant = await pilot.tenant(balance=0)
        create = pb.CreateAgentRequest(project_id=tenant.project_id, name="Agent", webhook_url=url)
        found = [await refusal(tenant.owner(create)), await refusal(set_url(tenant, url))]
        listed = await tenant.owner(pb.ListAgentsRequest(project_id=tenant.project_id))

    for each in found:
        assert (each.code, each.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert each.fields == ["webhook_url"]
    assert [agent.webhook_url for agent in listed.agents] == [""]


@pytest.mark.parametrize("allowed", [False, True])
async def test_where_a_name_leads_is_judged_unless_it_is_development(
    database: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is as configured; the name, which looks like any other, is this machine's."""

    async def look_up(*_: object) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(outbound, "_look_up", look_up)
    settings: dict[str, Any] = {"webhooks_allow_private": allowed}
    async with http_server() as server, serving(database, duties=True, **settings) as pilot:
        tenant = await pilot.tenant()
        await set_url(tenant, server.url(host="hooks.example.com"))
        await issue(tenant)
        tested = await tenant.owner(pb.SendTestWebhookRequest(agent_id=tenant.agent_id))
        await tenant.spend(1)
        found = pb.Webhook()
        while not (found.attempt_count or found.HasField("delivered_revision")):
            found = await webhook(tenant.agent)

    assert tested.delivered is allowed
    assert found.HasField("delivered_revision") is allowed
    assert found.last_error.startswith("address_refused") is not allowed
    assert bool(server.requests) is allowed


@pytest.mark.parametrize(
    ("overlap", "code"),
    [
        (Duration(seconds=0), "OK"),
        (Duration(seconds=WEEK), "OK"),
        (Duration(seconds=-1), "INVALID_ARGUMENT"),
        (Duration(seconds=WEEK, nanos=1), "INVALID_ARGUMENT"),
        (Duration(seconds=1, nanos=-1), "INVALID_ARGUMENT"),
    ],
)
async def test_an_overlap_is_bounded(pilot: Pilot, overlap: Duration, code: str) -> None:
    tenant = await pilot.tenant(balance=0)

    found = await refusal(issue(tenant, overlap=overlap))

    assert found.code == code
    assert found.fields == ([] if code == "OK" else ["overlap"])


async def test_a_secret_is_shown_once(pilot: Pilot) -> None:
    """No later answer, and no row, has it."""
    tenant = await pilot.tenant(balance=0)
    agent = await set_url(tenant, "https://example.com/hook")
    secret = await issue(tenant)

    answers = [
        await tenant.owner(pb.GetAgentRequest(agent_id=agent.id)),
        await tenant.owner(pb.GetWebhookRequest(agent_id=agent.id)),
        await tenant.owner(pb.ListAgentsRequest(project_id=tenant.project_id)),
    ]
    rows = "\n".join(row for table in (await pilot.dump()).values() for row in table)

    for text in (*map(str, answers), rows, repr(pilot.app)):
        assert secret.removeprefix("whsec_") not in text
