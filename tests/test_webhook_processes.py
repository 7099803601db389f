"""Two real servers deliver to real HTTP servers: one is killed, and nothing is lost."""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from pilot_grpc.gen.pilot.v1 import agents_pb2, budgets_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from tests import receiver
from tests.conftest import Server
from tests.http_server import HttpServer, hang, http_server, redirect, reset, respond
from tests.processes import SERVE, Process, processes
from tests.rpc.serving import Client, fresh
from tests.sampling import first_of
from tests.test_two_processes import Party, Two, connected, until

# Nothing listens there, and nothing may: ports below 1024 are refused, but for 80 and 443.
FORBIDDEN = "http://127.0.0.1:22/"


@dataclass(frozen=True)
class Place:
    """Two servers, and a way to ask them that survives the death of one."""

    pair: tuple[Process, ...]
    two: Two


@pytest.fixture
async def place(server: Server, shared_database: str) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        pair = stack.enter_context(processes(server, shared_database, SERVE, SERVE))
        yield Place(pair, await connected(stack, server, shared_database, pair))


async def hooked(owner: Client, party: Party, url: str) -> tuple[str, str]:
    """Add an agent with a webhook; give its id and the secret."""
    made = await owner(
        agents_pb2.CreateAgentRequest(project_id=party.project_id, name="Agent", webhook_url=url)
    )
    agent_id = made.agent.id
    await owner(
        budgets_pb2.SetBudgetRuleRequest(agent_id=agent_id, per_tx_limit=10**9, daily_limit=10**12)
    )
    await owner(agents_pb2.IssueAgentKeyRequest(agent_id=agent_id))
    issued = await owner(agents_pb2.IssueWebhookSecretRequest(agent_id=agent_id))
    return agent_id, issued.secret


async def spend(owner: Client, agent_id: str) -> int:
    request = pb.SpendRequest(agent_id=agent_id, amount=1, request_id=fresh())
    answer = await owner(request)
    revision: int = answer.event.revision
    return revision


async def shown(owner: Client, agent_id: str) -> agents_pb2.Webhook:
    answer = await owner(agents_pb2.GetAgentRequest(agent_id=agent_id))
    webhook: agents_pb2.Webhook = answer.agent.webhook
    return webhook


async def holder(place: Place, agent_id: str) -> Process | None:
    """Find the server that delivers for an agent."""
    name: str | None = await place.two.database.pool.fetchval(
        "SELECT leased_by FROM webhooks WHERE agent_id = $1 AND leased_until > clock_timestamp()",
        agent_id,
    )
    if name is None:
        return None
    pids = {str(process.running.pid): process for process in place.pair if process.running}
    return pids[name.split(":")[1]]


async def arrived(server: HttpServer, secret: str, sent: list[int]) -> list[int]:
    """Wait until all have come, and give them in the order in which they came first."""
    await until(lambda: set(receiver.revisions(server, secret)) >= set(sent))
    return receiver.revisions(server, secret)


async def test_a_server_that_dies_in_mid_delivery_is_replaced(place: Place) -> None:
    """Both deliver for several agents; one is killed, the other has all of them, in order."""
    party = await place.two.party()
    one, other = party.owners
    async with AsyncExitStack() as stack:
        hooks = []
        for _ in range(6):
            server = await stack.enter_async_context(http_server(respond(200, after=0.05)))
            hooks.append((server, *await hooked(one, party, server.url())))
        sent: dict[str, list[int]] = {agent_id: [] for _, agent_id, _ in hooks}
        for turn in range(40):
            if turn == 15:
                await until(lambda: all(server.requests for server, _, _ in hooks))
                place.pair[0].kill()
            for _, agent_id, _ in hooks:
                sent[agent_id].append(await spend(other if turn >= 15 else one, agent_id))

        for server, agent_id, secret in hooks:
            assert await arrived(server, secret, sent[agent_id]) == sent[agent_id]
        for _, agent_id, _ in hooks:
            assert (await shown(other, agent_id)).state == agents_pb2.WEBHOOK_STATE_DELIVERING


@pytest.mark.parametrize("end", first_of([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM]))
async def test_whichever_server_delivers_may_end(place: Place, end: signal.Signals) -> None:
    """Killed, frozen or stopped with a request on its way; thawed, it does nothing out of turn."""
    party = await place.two.party()
    async with http_server(respond(200), hang()) as server:
        agent_id, secret = await hooked(party.owner, party, server.url())
        sent = [await spend(party.owner, agent_id) for _ in range(5)]
        await until(lambda: len(server.requests) == 2)
        ending = await holder(place, agent_id)
        assert ending is not None
        survivor = party.owners[1 - place.pair.index(ending)]

        server.then(respond(200))
        ending.signal(end)
        sent.append(await spend(survivor, agent_id))
        found = await arrived(server, secret, sent)
        ended_for_good = await holder(place, agent_id)
        ending.signal(signal.SIGCONT)
        sent += [await spend(survivor, agent_id) for _ in range(5)]
        afterwards = await arrived(server, secret, sent)

    assert found == sent[:6]
    assert ended_for_good is not ending
    assert afterwards == sent


async def test_a_receiver_that_does_everything_wrong_and_comes_back(place: Place) -> None:
    """Errors, resets, a redirect to where nobody may go; the one beside it waits for nothing."""
    party = await place.two.party()
    owner = party.owner
    wrong = [
        respond(500),
        redirect(FORBIDDEN),
        reset(),
        respond(429, {"Retry-After": "1"}),
    ]
    async with http_server(respond(200), *wrong, respond(200)) as bad, http_server() as good:
        bad_id, bad_secret = await hooked(owner, party, bad.url())
        good_id, good_secret = await hooked(owner, party, good.url())
        sent_bad, sent_good = [], []
        for _ in range(5):
            sent_bad.append(await spend(owner, bad_id))
            sent_good.append(await spend(owner, good_id))

        assert await arrived(good, good_secret, sent_good) == sent_good
        while not (failing := await shown(owner, bad_id)).attempt_count:
            pass
        assert await arrived(bad, bad_secret, sent_bad) == sent_bad

    assert failing.state == agents_pb2.WEBHOOK_STATE_FAILING
    assert failing.last_error
    assert failing.HasField("failing_since_time")
    assert failing.behind_count
