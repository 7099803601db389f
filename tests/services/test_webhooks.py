"""Webhooks: every change arrives, in order, signed, whatever the receiver does meanwhile."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.db import transfers as transfers_db
from pilot_grpc.db import webhooks as webhooks_db
from pilot_grpc.db.transfers import Sent
from pilot_grpc.db.webhooks import StoredSecret
from pilot_grpc.domain.ids import AgentId
from pilot_grpc.domain.ledger import FailureReason, SightTransfer
from pilot_grpc.domain.webhooks import SECRETS_MAX, Webhook, WebhookState, message_id
from pilot_grpc.rpc import wire
from pilot_grpc.sealing import SealBroken, Sealed, Sealer
from pilot_grpc.services import deliveries as deliveries_service
from pilot_grpc.services import outbound as outbound_service
from pilot_grpc.services import webhooks as webhooks_service
from pilot_grpc.services.deliveries import Deliveries, Pace
from pilot_grpc.services.outbound import Outbound
from pilot_grpc.services.webhooks import PURPOSE, Sender, Signer, Webhooks
from tests import make, receiver
from tests.http_server import (
    Behaviour,
    HttpServer,
    Request,
    drip,
    hang,
    hang_up,
    http_server,
    raw,
    redirect,
    reset,
    respond,
)
from tests.services.conftest import StartApp

DAY = timedelta(days=1)
QUICK = Pace(claim=0.02, renew=0.05, lease=5.0, idle=60.0)
SEALER = Sealer(make.WRAPPING_KEY)
ANOTHER_KEY = replace(make.WRAPPING_KEY, secret=bytes(32))
# Long enough for an answer of this machine, and what a server that hangs costs a test.
SECONDS_MAX = 0.25


@dataclass(frozen=True)
class Subscribed:
    """An agent with a webhook_url and a secret."""

    spender: make.Spender
    secret: str


async def subscribed(app: App, url: str, beside: make.Spender | None = None) -> Subscribed:
    spender = await make.agent(app, beside=beside)
    await set_url(app, spender, url)
    secret = await app.webhooks.issue_secret(spender.owner, spender.agent_id, DAY)
    return Subscribed(spender, secret)


async def set_url(app: App, spender: make.Spender, url: str | None) -> None:
    await app.agents.update(spender.owner, spender.agent_id, {"webhook_url": url})


async def status(app: App, spender: make.Spender) -> Webhook:
    return await app.webhooks.get(spender.owner, spender.agent_id)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once something is so that nobody signals."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def arrived(server: HttpServer, secret: str, last: int) -> list[int]:
    """Wait until a change has come, and give all that came, in their order."""
    while last not in (found := receiver.revisions(server, secret)):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return found


def outbound(*, allow_private: bool = True, **options: Any) -> Outbound:
    return Outbound(allow_private=allow_private, seconds_max=SECONDS_MAX, **options)


@asynccontextmanager
async def delivering(
    app: App, pace: Pace = QUICK, sends: Outbound | None = None, chance: float = 0.0
) -> AsyncIterator[Deliveries]:
    """Deliver in this process, without a pause between attempts unless a chance is given."""
    sends = sends or outbound()
    deliveries = Deliveries(
        app.database,
        app.streams,
        Sender(sends),
        SEALER,
        wire.webhook_body,
        app.agents.new_id(),
        pace=pace,
        chance=lambda: chance,
    )
    deliveries.start()
    try:
        yield deliveries
    finally:
        await deliveries.close()
        await sends.close()


@pytest.fixture
async def app(start: StartApp) -> AsyncIterator[App]:
    """The services; this machine may be called. What a test leaves behind is called no more."""
    started = await start(webhooks_allow_private=True)
    yield started
    await started.database.pool.execute("UPDATE agents SET webhook_url = NULL")


@pytest.fixture
async def other(start: StartApp) -> App:
    """The services once more, as another process would run them."""
    return await start(webhooks_allow_private=True)


async def let_go(deliveries: Deliveries, agent_id: AgentId) -> None:
    """Wait until this process does not hold an agent any more."""
    await make.until(lambda: agent_id not in deliveries._held)


# --- what arrives ---------------------------------------------------------------------


async def test_every_change_arrives_in_order_and_is_signed(app: App) -> None:
    """Spends, declines, holds, captures, releases and refunds of this agent, and no other's."""
    async with http_server() as server, delivering(app):
        hook = await subscribed(app, server.url())
        agent = hook.spender
        beside = await make.agent(app, beside=agent)
        spent = await make.spend(app, agent, 10, metadata='{"tokens": 5}')
        declined = await make.spend(app, agent, 10**13)
        await make.spend(app, beside, 10)
        first, second = await make.hold(app, agent, 20), await make.hold(app, agent, 30)
        captured = await make.capture(app, agent, first, 15)
        released = await make.release(app, agent, second)
        refunded = await make.refund(app, agent, spent, 4)

        expected = [spent, declined, first, second, captured, released, refunded]
        found = await arrived(server, hook.secret, refunded.revision)

    assert found == [event.revision for event in expected]
    sent = receiver.messages(server.requests, hook.secret)
    assert [each.body["type"] for each in sent] == [f"event.{event.status}" for event in expected]
    digests = await digests_of(app, agent)
    assert [each.id for each in sent] == [
        message_id(agent.vault_id, event.revision, digests[event.revision]) for event in expected
    ]
    assert sent[0].body["data"]["event"]["metadata"] == '{"tokens": 5}'
    assert sent[0].body["data"]["event"]["amount"] == "-10"
    assert sent[0].body["timestamp"] == sent[0].body["data"]["change_time"]
    assert server.requests[0].headers["content-type"] == "application/json"


async def test_a_payment_arrives_at_each_of_its_steps_and_a_drift_never(start: StartApp) -> None:
    """On its way, seen, and landed. What stops the vault is its owner's to know."""
    app = await start(webhooks_allow_private=True, solana_rpc_urls=make.NOWHERE)
    async with http_server() as server, delivering(app):
        hook = await subscribed(app, server.url())
        agent = hook.spender
        await make.deposit(app, agent.vault_id, 100, "deposit")
        await make.allow(app, agent)
        paid = await make.spend(app, agent, 10, recipient=make.WALLET)
        async with app.database.transaction() as conn:
            signed = Sent("payment", b"a transaction", 200, 50)
            assert await transfers_db.insert_signature(conn, paid.id, 1, signed, "blockhash")
        await app.lanes.decide(SightTransfer(agent.vault_id, paid.id, "payment"))
        await make.land(app, paid, "payment")
        drift = await make.stop(app, agent.vault_id, -5)
        await make.acknowledge(app, agent, drift)
        last = await make.spend(app, agent, 1)
        found = await arrived(server, hook.secret, last.revision)
        await app.agents.update(agent.owner, agent.agent_id, {"webhook_url": None})

    assert found == [paid.revision, paid.revision + 1, paid.revision + 2, last.revision]
    sent = receiver.messages(server.requests, hook.secret)
    assert [each.body["type"] for each in sent] == [
        *("event.pending", "event.pending", "event.confirmed", "event.confirmed"),
    ]
    events = [each.body["data"]["event"] for each in sent[:3]]
    assert [event.get("tx_hash") for event in events] == [None, "payment", "payment"]
    assert {event["recipient"] for event in events} == {make.WALLET}
    assert not any("drift" in str(each.body) for each in sent)


async def digests_of(app: App, spender: make.Spender) -> dict[int, bytes]:
    rows = await app.database.pool.fetch(
        "SELECT revision, digest FROM event_changes WHERE vault_id = $1", spender.vault_id
    )
    return {row["revision"]: row["digest"] for row in rows}


async def test_a_webhook_is_told_no_more_than_its_agent_may_know(app: App) -> None:
    """Not what the vault holds, not even by a decline for it."""
    async with http_server() as server, delivering(app):
        agent = await make.agent(app, vault_balance=77)
        await set_url(app, agent, server.url())
        secret = await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
        declined = await make.spend(app, agent, 78)
        await arrived(server, secret, declined.revision)

    assert declined.failure_reason is FailureReason.INSUFFICIENT_BALANCE
    assert b'"77"' not in server.requests[0].body
    (sent,) = receiver.messages(server.requests, secret)
    assert "vault_figures" not in sent.body["data"]
    assert sent.body["data"]["event"]["decline"] == {
        "reason": "FAILURE_REASON_INSUFFICIENT_BALANCE"
    }


async def test_deliveries_begin_with_the_url(app: App) -> None:
    """Not with what was before it, nor with the secret; a new URL goes on where the old one was."""
    agent = await make.agent(app)
    await make.spend(app, agent, 1)
    async with http_server() as one, http_server() as two, delivering(app):
        await set_url(app, agent, one.url())
        waiting = [(await make.spend(app, agent, 1)).revision for _ in range(3)]
        needs = await status(app, agent)
        await set_url(app, agent, two.url())
        secret = await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
        found = await arrived(two, secret, waiting[-1])

    assert needs.state is WebhookState.NEEDS_SECRET
    assert needs.behind == 3
    assert one.requests == []
    assert found == waiting


async def test_without_its_url_an_agent_is_left_alone(app: App) -> None:
    """Whatever happens meanwhile is nobody's; a URL that is set again begins anew."""
    async with http_server(respond(500)) as server, delivering(app):
        hook = await subscribed(app, server.url())
        agent = hook.spender
        await make.spend(app, agent, 1)
        await until(lambda: fails(app, agent))
        await set_url(app, agent, None)
        with pytest.raises(errors.WebhookNotSet):
            await status(app, agent)
        assert (await app.agents.get(agent.owner, agent.agent_id)).webhook is None
        await make.spend(app, agent, 1)
        server.then(respond(200))
        await set_url(app, agent, server.url())
        fresh = await status(app, agent)
        last = await make.spend(app, agent, 1)
        before = len(server.requests)
        await arrived(server, hook.secret, last.revision)

    assert (fresh.state, fresh.last_error) == (WebhookState.DELIVERING, None)
    late = receiver.messages(server.requests[before:], hook.secret)
    assert {each.revision for each in late} <= {last.revision}


async def fails(app: App, spender: make.Spender) -> bool:
    return (await status(app, spender)).state is WebhookState.FAILING


# --- receivers that fail --------------------------------------------------------------

FORBIDDEN = "http://127.0.0.1:22/"

ANSWERS: dict[str, list[Behaviour]] = {
    "an error": [respond(500)],
    "not found": [respond(404)],
    "no success": [respond(304)],
    "hangs": [hang()],
    "hangs in the head": [raw(b"HTTP/1.1 200 OK\r\nX: ", close=False)],
    "drips": [drip(b"HTTP/1.1 200 OK\r\nX: ")],
    "resets": [reset()],
    "hangs up": [hang_up()],
    "nonsense": [raw(b"nonsense\r\n\r\n")],
    "redirects to a port that is refused": [redirect(FORBIDDEN)],
    "redirects to a file": [redirect("file:///etc/passwd")],
    "redirects to itself for ever": [redirect("/hook")] * 4,
    "redirects with another method": [redirect("/hook", 302)],
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_nothing_is_lost_while_a_receiver_fails(app: App, answer: list[Behaviour]) -> None:
    """It fails before, between and after; once it is back, all is there, in order."""
    script = [*answer, respond(200), respond(204), *answer, *answer, respond(200)]
    async with http_server(*script) as server, delivering(app):
        hook = await subscribed(app, server.url())
        sent = [(await make.spend(app, hook.spender, 1)).revision for _ in range(5)]
        found = await arrived(server, hook.secret, sent[-1])
        await until(lambda: has_passed(app, hook.spender, sent[-1]))

    assert found == sent
    after = await status(app, hook.spender)
    assert (after.state, after.attempts, after.failing_since) == (WebhookState.DELIVERING, 0, None)
    assert (after.behind, after.delivered_revision) == (0, sent[-1])
    assert after.last_error
    assert after.last_success_at


async def has_passed(app: App, spender: make.Spender, revision: int) -> bool:
    return (await status(app, spender)).delivered_revision == revision


async def test_a_redirect_to_an_address_that_is_not_public_is_refused(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver itself is taken for public here; where it redirects to is not."""
    loopback = ip_address("127.0.0.1")
    other_loopback = ip_address("127.0.0.2")
    monkeypatch.setattr(outbound_service, "is_public", lambda address: address != loopback)

    async def resolve(host: str, port: int) -> list[str]:
        return [str(other_loopback)]

    sends = outbound(allow_private=False, resolve=resolve)
    async with http_server() as inside, AsyncExitStack() as stack:
        front = HttpServer(0, "http", [redirect(inside.url("/secrets"))])
        listener = await asyncio.start_server(front.serve, "127.0.0.2", 0)
        stack.callback(listener.close)
        front.port = listener.sockets[0].getsockname()[1]
        await stack.enter_async_context(delivering(app, sends=sends))
        hook = await subscribed(app, front.url(host="hooks.example.com"))
        spent = await make.spend(app, hook.spender, 1)
        await until(lambda: fails(app, hook.spender))
        failing = await status(app, hook.spender)
        front.then(respond(200))
        found = await arrived(front, hook.secret, spent.revision)

    assert failing.last_error is not None
    assert failing.last_error.startswith("address_refused")
    assert inside.requests == []
    assert found == [spent.revision]


async def test_a_dead_endpoint_is_shown(app: App) -> None:
    """The last error, since when, how often, how far behind; of one agent on a list of two."""
    async with http_server(respond(503)) as dead, http_server() as well, delivering(app):
        hook = await subscribed(app, dead.url())
        beside = await subscribed(app, well.url(), beside=hook.spender)
        first = await make.spend(app, hook.spender, 1)
        await make.spend(app, hook.spender, 1)
        last = await make.spend(app, beside.spender, 1)
        await until(lambda: tried(app, hook.spender, 3))
        await arrived(well, beside.secret, last.revision)
        listed = await app.agents.list(hook.spender.owner, hook.spender.project_id, None, 10)

    shown = {agent.id: agent.webhook for agent in listed}
    failing, fine = shown[hook.spender.agent_id], shown[beside.spender.agent_id]
    assert failing is not None
    assert failing.state is WebhookState.FAILING
    assert failing.last_error == "answered with status 503"
    assert failing.failing_since is not None
    assert failing.last_error_at is not None
    assert failing.failing_since < failing.last_error_at
    assert failing.next_attempt_at is not None
    assert failing.last_success_at is None
    assert failing.delivered_revision is None
    assert failing.behind >= 3
    assert fine is not None
    assert fine.state is WebhookState.DELIVERING
    assert {each.revision for each in receiver.messages(dead.requests, hook.secret)} == {
        first.revision
    }


async def tried(app: App, spender: make.Spender, attempts: int) -> bool:
    return (await status(app, spender)).attempts >= attempts


async def test_endpoints_that_hang_delay_no_other(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one request, three that hang, and one agent whose endpoint is well."""
    monkeypatch.setattr(deliveries_service, "SENDING_MAX", 1)
    monkeypatch.setattr(deliveries_service, "PROMPT_SECONDS", 0.01)
    sends = Outbound(allow_private=True, seconds_max=60)
    async with http_server(hang()) as dead, http_server() as well, delivering(app, sends=sends):
        first = await subscribed(app, dead.url())
        for hook in (first, *[await subscribed(app, dead.url(), first.spender) for _ in "ab"]):
            await make.spend(app, hook.spender, 1)
        await make.until(lambda: len(dead.requests) == 3)
        hook = await subscribed(app, well.url(), first.spender)
        sent = [(await make.spend(app, hook.spender, 1)).revision for _ in range(20)]
        found = await arrived(well, hook.secret, sent[-1])
        still = len(dead.requests)
        await dead_ends(dead)

    assert found == sent
    assert still == 3


async def dead_ends(server: HttpServer) -> None:
    """Let those that hang go."""
    for task in tuple(server.tasks):
        task.cancel()


async def test_a_user_whose_endpoints_hang_delays_no_other(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four hang, which is more than there is room for; they have a share of it."""
    monkeypatch.setattr(deliveries_service, "SENDING_MAX", 3)
    monkeypatch.setattr(deliveries_service, "SENDING_SHARE_MAX", 2)
    monkeypatch.setattr(deliveries_service, "PROMPT_SECONDS", 60.0)
    sends = Outbound(allow_private=True, seconds_max=60)
    async with http_server(hang()) as dead, http_server() as well, delivering(app, sends=sends):
        first = await subscribed(app, dead.url())
        for hook in (first, *[await subscribed(app, dead.url(), first.spender) for _ in "abc"]):
            await make.spend(app, hook.spender, 1)
        await make.until(lambda: len(dead.requests) == 2)
        hook = await subscribed(app, well.url())
        spent = await make.spend(app, hook.spender, 1)
        found = await arrived(well, hook.secret, spent.revision)
        still = len(dead.requests)
        await dead_ends(dead)

    assert found == [spent.revision]
    assert still == 2


async def test_endpoints_that_are_slow_wait_for_each_other_and_delay_no_other(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one that is slow and one that is not."""
    monkeypatch.setattr(deliveries_service, "SENDING_MAX", 1)
    monkeypatch.setattr(deliveries_service, "SLOW_MAX", 1)
    monkeypatch.setattr(deliveries_service, "PROMPT_SECONDS", 0.05)
    slowly = respond(200, after=0.2)
    async with http_server(slowly) as slow, http_server() as well, delivering(app):
        first = await subscribed(app, slow.url())
        both = [first, await subscribed(app, slow.url(), first.spender)]
        for hook in both * 30:
            await make.spend(app, hook.spender, 1)
        await make.until(lambda: len(slow.requests) >= 5)
        hook = await subscribed(app, well.url(), first.spender)
        before = len(slow.requests)
        sent = [(await make.spend(app, hook.spender, 1)).revision for _ in range(20)]
        await arrived(well, hook.secret, sent[-1])

    assert len(slow.requests) - before < 15


async def test_a_user_whose_endpoints_fail_delays_no_other_that_fails(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four wait longest, and hang again; of the three places they have one."""
    monkeypatch.setattr(deliveries_service, "HELD_FAILING_MAX", 3)
    monkeypatch.setattr(deliveries_service, "HELD_FAILING_SHARE", 1)
    sends = Outbound(allow_private=True, seconds_max=60)
    async with http_server(hang()) as dead, http_server() as well:
        first = await subscribed(app, dead.url())
        hooks = [first, *[await subscribed(app, dead.url(), first.spender) for _ in "abc"]]
        recovered = await subscribed(app, well.url())
        spent = [await make.spend(app, hook.spender, 1) for hook in (*hooks, recovered)]
        await app.database.pool.execute(
            "UPDATE webhooks SET attempts = 1, failing_since = now(), leased_until = now()"
            " - CASE WHEN agent_id = $1 THEN interval '1 minute' ELSE interval '1 hour' END",
            recovered.spender.agent_id,
        )
        async with delivering(app, sends=sends):
            found = await arrived(well, recovered.secret, spent[-1].revision)
            await make.until(lambda: bool(dead.requests))
            still = len(dead.requests)
            await dead_ends(dead)

    assert found == [spent[-1].revision]
    assert still == 1


async def test_agents_take_turns_where_there_are_too_many(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time is held, and the first has more to deliver than anybody waits for."""
    monkeypatch.setattr(deliveries_service, "HELD_MAX", 1)
    pace = replace(QUICK, turn=0.2)
    async with http_server(respond(200, after=0.02)) as busy, http_server() as other_one:
        first = await subscribed(app, busy.url())
        sent = [(await make.spend(app, first.spender, 1)).revision for _ in range(30)]
        async with delivering(app, pace):
            await make.until(lambda: bool(busy.requests))
            second = await subscribed(app, other_one.url(), first.spender)
            spent = await make.spend(app, second.spender, 1)
            await arrived(other_one, second.secret, spent.revision)
            so_far = len(busy.requests)
            found = await arrived(busy, first.secret, sent[-1])

    assert so_far < 30
    assert found == sent
    assert len(busy.requests) == 30


async def test_a_receiver_is_asked_again_when_it_wants_to_be(app: App) -> None:
    """Retry-After puts the next attempt off, up to an hour; the owner can have it made now."""
    later = respond(429, {"Retry-After": "100000"})
    async with http_server(later) as server, http_server() as well, delivering(app):
        hook = await subscribed(app, server.url())
        agent = hook.spender
        spent = await make.spend(app, agent, 1)
        await until(lambda: fails(app, agent))
        failing = await status(app, agent)
        # Whoever delivers to others meanwhile has looked at this one, too.
        beside = await subscribed(app, well.url(), agent)
        last = await make.spend(app, beside.spender, 1)
        await arrived(well, beside.secret, last.revision)
        assert len(server.requests) == 1
        server.then(respond(200))
        await app.webhooks.redeliver(agent.owner, agent.agent_id, spent.revision)
        await until(lambda: has_passed(app, agent, spent.revision))

    assert failing.next_attempt_at is not None
    assert failing.last_error_at is not None
    assert round((failing.next_attempt_at - failing.last_error_at) / timedelta(hours=1), 3) == 1


async def test_a_receiver_that_fails_is_asked_less_and_less_often(app: App) -> None:
    """With chance at a twentieth: a twentieth of one second, of two, of four, of eight."""
    waits: dict[int, float] = {}

    async def fail(request: Request, writer: asyncio.StreamWriter) -> None:
        """Fail again, once it is noted what came of the time before."""
        found = await status(app, hook.spender)
        if found.next_attempt_at and found.last_error_at:
            wait = found.next_attempt_at - found.last_error_at
            waits[found.attempts] = round(wait.total_seconds(), 2)
        await respond(500)(request, writer)

    async with http_server(fail) as server, delivering(app, chance=0.05):
        hook = await subscribed(app, server.url())
        await make.spend(app, hook.spender, 1)
        await make.until(lambda: 4 in waits)

    assert waits == {1: 0.05, 2: 0.1, 3: 0.2, 4: 0.4}


async def test_a_defect_of_pilot_is_a_failure_like_any_other(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and retried, and blocks nobody else."""
    async with http_server() as server, delivering(app) as deliveries:
        hook = await subscribed(app, server.url())

        def broken(_: object) -> bytes:
            raise ZeroDivisionError

        monkeypatch.setattr(deliveries, "_encode", broken)
        spent = await make.spend(app, hook.spender, 1)
        await until(lambda: fails(app, hook.spender))
        monkeypatch.undo()
        found = await arrived(server, hook.secret, spent.revision)

    assert "ZeroDivisionError" in caplog.text
    assert found == [spent.revision]


# --- several processes ----------------------------------------------------------------


async def test_one_process_delivers_for_an_agent(app: App, other: App) -> None:
    """With three at work each change is sent once, and none while another is on its way."""
    sending = most = 0

    async def slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sending, most
        sending += 1
        most = max(most, sending)
        await respond(200, after=0.01)(request, writer)
        sending -= 1

    async with (
        http_server(slowly) as server,
        delivering(app),
        delivering(other),
        delivering(other),
    ):
        hook = await subscribed(app, server.url())
        sent = [(await make.spend(app, hook.spender, 1)).revision for _ in range(20)]
        await arrived(server, hook.secret, sent[-1])

    assert [each.revision for each in receiver.messages(server.requests, hook.secret)] == sent
    assert most == 1


async def test_what_stops_is_gone_on_with_by_another(app: App, other: App) -> None:
    """A process that ends has its request answered, and gives the agent back at once."""
    async with http_server(respond(200), respond(200, after=0.2)) as server:
        hook = await subscribed(app, server.url())
        sent = [(await make.spend(app, hook.spender, 1)).revision for _ in range(4)]
        async with delivering(app):
            await make.until(lambda: len(server.requests) == 2)
        before = await status(app, hook.spender)
        server.then(respond(200))
        async with delivering(other):
            await arrived(server, hook.secret, sent[-1])

    assert before.delivered_revision == sent[1]
    assert [each.revision for each in receiver.messages(server.requests, hook.secret)] == sent


async def test_who_loses_its_leases_stops(
    app: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away for one: it stops by itself, in mid-request, and the other goes on."""
    brief = replace(QUICK, lease=0.3)
    slow = Outbound(allow_private=True, seconds_max=3_600)
    async with http_server(respond(200), hang()) as server, delivering(app, brief, slow) as lost:
        hook = await subscribed(app, server.url())
        sent = [(await make.spend(app, hook.spender, 1)).revision for _ in range(4)]
        await make.until(lambda: len(server.requests) == 2)

        async def away(*_: object) -> None:
            raise errors.DatabaseUnavailable

        monkeypatch.setattr(lost, "_renew", away)
        monkeypatch.setattr(lost, "_claim", away)
        await let_go(lost, hook.spender.agent_id)
        server.then(respond(200))
        async with delivering(other, brief):
            found = await arrived(server, hook.secret, sent[-1])

    assert found == sent


async def test_a_stale_process_writes_nothing(app: App, other: App) -> None:
    """Its cursor, its failure and its lease are nobody's once another holds the agent."""
    brief = replace(QUICK, lease=0.2, claim=0.02)
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        spent = await make.spend(app, hook.spender, 1)
        row = await holder_of(app, hook.spender)
        assert row == (None, spent.revision - 1)
        async with delivering(app, brief) as stale:
            await arrived(server, hook.secret, spent.revision)
            await until(lambda: has_passed(app, hook.spender, spent.revision))
            held = stale._held[hook.spender.agent_id]
            await app.database.pool.execute(
                "UPDATE webhooks SET leased_by = 'another', leased_until = clock_timestamp()"
                " + interval '1 minute', cursor_revision = $2 WHERE agent_id = $1",
                hook.spender.agent_id,
                spent.revision - 1,
            )
            await let_go(stale, hook.spender.agent_id)
            assert held.is_over
            await stale._write_failure(held, "late", None)
        assert await holder_of(app, hook.spender) == ("another", spent.revision - 1)
        assert (await status(app, hook.spender)).attempts == 0


async def holder_of(app: App, spender: make.Spender) -> tuple[str | None, int]:
    row = await app.database.pool.fetchrow(
        "SELECT leased_by, cursor_revision FROM webhooks WHERE agent_id = $1", spender.agent_id
    )
    assert row is not None
    return row["leased_by"], row["cursor_revision"]


@asynccontextmanager
async def locked(app: App, spender: make.Spender) -> AsyncIterator[None]:
    """Be a process that is frozen while it changes an agent's webhook."""
    async with app.database.transaction() as conn:
        await webhooks_db.lock_webhook(conn, spender.agent_id)
        yield


async def test_a_row_that_is_locked_holds_up_no_lease_but_its_own(app: App) -> None:
    """It is not renewed, and lost when it ends; the other one is renewed all the time."""
    brief = replace(QUICK, lease=0.5)
    async with http_server() as server, delivering(app, brief) as deliveries:
        one = await subscribed(app, server.url())
        two = await subscribed(app, server.url(), one.spender)
        for hook in (one, two):
            await make.spend(app, hook.spender, 1)
        await make.until(lambda: len(server.requests) == 2)
        first, second = [deliveries._held[hook.spender.agent_id] for hook in (one, two)]
        async with locked(app, one.spender):
            begun = second.lease_ends
            await make.until(lambda: second.lease_ends > begun + 0.1)
            kept = deliveries._held.get(one.spender.agent_id)
            await let_go(deliveries, one.spender.agent_id)
            await make.until(lambda: second.lease_ends > begun + 0.5)
            await make.spend(app, one.spender, 1)
            await make.spend(app, two.spender, 1)
            await make.until(lambda: len(server.requests) == 3)
        await make.until(lambda: len(server.requests) == 4)
        still = deliveries._held.get(two.spender.agent_id)

    assert kept is first
    assert first.is_over
    assert still is second


async def test_a_lease_is_given_back_once_its_row_is_free(app: App) -> None:
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        spent = await make.spend(app, hook.spender, 1)
        async with delivering(app, replace(QUICK, renew=60.0)) as deliveries:
            await make.until(lambda: bool(server.requests))
            async with locked(app, hook.spender):
                closing = asyncio.create_task(deliveries.close())
                await asyncio.sleep(0.1)
            await closing

    assert await holder_of(app, hook.spender) == (None, spent.revision)


async def test_an_idle_agent_is_given_back_until_it_has_a_change(app: App) -> None:
    async with http_server() as server, delivering(app, replace(QUICK, idle=0.01)) as deliveries:
        hook = await subscribed(app, server.url())
        sent = []
        for _ in range(2):
            sent.append((await make.spend(app, hook.spender, 1)).revision)
            await arrived(server, hook.secret, sent[-1])
            await let_go(deliveries, hook.spender.agent_id)

    assert receiver.revisions(server, hook.secret) == sent
    assert (await holder_of(app, hook.spender))[0] is None


# --- secrets --------------------------------------------------------------------------


async def test_secrets_overlap(app: App) -> None:
    """Receivers with the old one and with the new one take the same deliveries until it ends."""
    async with http_server() as server, delivering(app):
        hook = await subscribed(app, server.url())
        agent = hook.spender
        new = await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
        both = await make.spend(app, agent, 1)
        await arrived(server, new, both.revision)
        assert receiver.revisions(server, hook.secret) == [both.revision]

        await app.database.pool.execute(
            "UPDATE webhook_secrets SET expires_at = clock_timestamp()"
            " WHERE agent_id = $1 AND expires_at IS NOT NULL",
            agent.agent_id,
        )
        await app.webhooks.redeliver(agent.owner, agent.agent_id, both.revision)
        await make.until(lambda: len(server.requests) == 2)

    assert receiver.verifies(server.requests[1], new)
    assert not receiver.verifies(server.requests[1], hook.secret)
    assert " " in server.requests[0].headers["webhook-signature"]
    assert " " not in server.requests[1].headers["webhook-signature"]


async def test_a_secret_that_leaked_ends_at_once(app: App) -> None:
    """Without an overlap none of those before signs, nor one that was to sign for longer."""
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        agent = hook.spender
        second = await app.webhooks.issue_secret(agent.owner, agent.agent_id, 7 * DAY)
        third = await app.webhooks.issue_secret(agent.owner, agent.agent_id, timedelta(0))
        assert (await app.webhooks.send_test(agent.owner, agent.agent_id)).delivered

    (request,) = server.requests
    assert [receiver.verifies(request, each) for each in (hook.secret, second, third)] == [
        False,
        False,
        True,
    ]


async def test_an_answer_that_was_lost_costs_no_signature(app: App) -> None:
    """Issued again because nobody saw the secret: the receiver's old one still verifies."""
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        agent = hook.spender
        issued = [
            await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
            for _ in range(SECRETS_MAX)
        ]
        await app.webhooks.send_test(agent.owner, agent.agent_id)

    (request,) = server.requests
    assert len(set(issued)) == SECRETS_MAX
    assert all(receiver.verifies(request, each) for each in issued)
    assert not receiver.verifies(request, hook.secret)


async def test_a_secret_expires_while_a_process_holds_it() -> None:
    """The process that delivers opened it long ago, and signs with it no second longer."""
    now = 0.0
    secrets = [f"whsec_{base64.b64encode(bytes(32 * [n])).decode()}" for n in range(2)]
    sealed = [SEALER.seal(each.encode(), PURPOSE, "agent") for each in secrets]
    stored = [StoredSecret(sealed[0], None), StoredSecret(sealed[1], 5.0)]
    signer = Signer(SEALER, "agent", stored, lambda: now)  # type: ignore[arg-type]
    moment = datetime(2031, 1, 1, tzinfo=UTC)

    assert len(signer.sign("m", moment, "{}").split()) == 2
    now = 5.0
    assert len(signer.sign("m", moment, "{}").split()) == 1


async def test_secrets_are_stored_sealed_and_open_nowhere_else(app: App) -> None:
    """Not in a row, not in a repr, not for another agent or purpose, not with another key."""
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        row = await app.database.pool.fetchrow(
            "SELECT version, wrapping_key_id, wrapped_data_key, sealed_secret"
            "  FROM webhook_secrets WHERE agent_id = $1",
            hook.spender.agent_id,
        )

    assert row is not None
    sealed = Sealed(**row)
    raw_secret = base64.b64decode(hook.secret.removeprefix("whsec_"))
    assert len(raw_secret) == 32
    assert SEALER.open(sealed, PURPOSE, hook.spender.agent_id) == hook.secret.encode()
    for hidden in (hook.secret.encode(), raw_secret):
        assert all(hidden not in value for value in row.values() if isinstance(value, bytes))
        assert repr(hidden) not in repr(sealed)
    assert str(row["sealed_secret"]) not in repr(sealed)
    for sealer, purpose, owner in (
        (SEALER, PURPOSE, "another"),
        (SEALER, "vault key", hook.spender.agent_id),
        (Sealer(ANOTHER_KEY), PURPOSE, hook.spender.agent_id),
    ):
        with pytest.raises(SealBroken):
            sealer.open(sealed, purpose, owner)


async def test_a_secret_of_another_wrapping_key_is_told_of(start: StartApp) -> None:
    """Deliveries wait, the agent says why, and a new secret is all that it takes."""
    app = await start(webhooks_allow_private=True, wrapping_key=ANOTHER_KEY)
    newer = await start(webhooks_allow_private=True)
    async with http_server() as server, delivering(newer):
        hook = await subscribed(app, server.url())
        spent = await make.spend(app, hook.spender, 1)
        await until(lambda: fails(app, hook.spender))
        failing = await status(app, hook.spender)
        tested = await newer.webhooks.send_test(hook.spender.owner, hook.spender.agent_id)
        secret = await newer.webhooks.issue_secret(hook.spender.owner, hook.spender.agent_id, DAY)
        found = await arrived(server, secret, spent.revision)

    assert "another wrapping key" in (failing.last_error or "")
    assert "another wrapping key" in (tested.error or "")
    assert found == [spent.revision]


# --- by hand --------------------------------------------------------------------------


async def test_changes_are_delivered_again_with_the_same_ids(app: App) -> None:
    """From a revision on, in order; what follows comes after them."""
    async with http_server() as server, delivering(app):
        hook = await subscribed(app, server.url())
        agent = hook.spender
        sent = [(await make.spend(app, agent, 1)).revision for _ in range(4)]
        await until(lambda: has_passed(app, agent, sent[-1]))
        await app.webhooks.redeliver(agent.owner, agent.agent_id, sent[1])
        await make.until(lambda: len(server.requests) == 7)
        last = await make.spend(app, agent, 1)
        await arrived(server, hook.secret, last.revision)

    got = receiver.messages(server.requests, hook.secret)
    assert [each.revision for each in got] == [*sent, *sent[1:], last.revision]
    assert got[4].body == got[1].body
    assert got[4].id == got[1].id


async def test_redelivery_skips_nothing(app: App) -> None:
    """A revision that was not reached yet leaves those before it where they are."""
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        agent = hook.spender
        sent = [(await make.spend(app, agent, 1)).revision for _ in range(4)]
        await app.webhooks.redeliver(agent.owner, agent.agent_id, sent[-1])
        with pytest.raises(errors.InvalidRequest):
            await app.webhooks.redeliver(agent.owner, agent.agent_id, sent[-1] + 1)
        async with delivering(app):
            found = await arrived(server, hook.secret, sent[-1])

    assert found == sent


async def test_changes_that_were_trimmed_are_missed_and_said_so(start: StartApp) -> None:
    """They cannot be had again; deliveries go on with the oldest that is kept."""
    app = await start(webhooks_allow_private=True, changes_kept_count=2)
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        agent = hook.spender
        sent = [(await make.spend(app, agent, 1)).revision for _ in range(5)]
        await app.trimming.trim()
        with pytest.raises(errors.ChangesTrimmed) as refused:
            await app.webhooks.redeliver(agent.owner, agent.agent_id, sent[0])
        async with delivering(app):
            found = await arrived(server, hook.secret, sent[-1])
        after = await status(app, agent)

    assert refused.value.metadata["oldest_revision"] == str(sent[3])
    assert found == sent[3:]
    assert after.last_error is not None
    assert "trimmed" in after.last_error


async def restore(app: App, spender: make.Spender, revision: int, *, cursor: bool = True) -> None:
    """Let the database be where it was at a change; unless somebody wrote the cursor since."""
    place = spender.vault_id, revision
    async with app.database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(
            "UPDATE vaults SET revision = changes.revision, digest = changes.digest"
            "  FROM event_changes AS changes"
            " WHERE vaults.id = $1 AND changes.vault_id = $1 AND changes.revision = $2",
            *place,
        )
        if cursor:
            await conn.execute(
                "UPDATE webhooks SET cursor_revision = revision - 1, cursor_digest = NULL"
                "  FROM vaults WHERE vault_id = $1 AND id = $1 AND revision = $2",
                *place,
            )
        await conn.execute(
            "DELETE FROM event_changes WHERE vault_id = $1 AND revision > $2", *place
        )


@pytest.mark.parametrize("again", [0, 1, 2, 4], ids=["unchanged", "behind", "as_far", "further"])
async def test_what_a_restore_took_back_is_told(app: App, again: int) -> None:
    """The cursor is of a history that is gone, however far the new one has come."""
    async with http_server() as server, AsyncExitStack() as stack:
        hook = await subscribed(app, server.url())
        agent = hook.spender
        async with delivering(app):
            sent = [(await make.spend(app, agent, 1)).revision for _ in range(5)]
            await until(lambda: has_passed(app, agent, sent[-1]))
        await restore(app, agent, sent[2], cursor=False)
        for _ in range(again):
            await make.spend(app, agent, 2)
        before = await status(app, agent)
        await stack.enter_async_context(delivering(app))
        await until(lambda: tells_of_a_loss(app, agent))
        told = await status(app, agent)
        last = await make.spend(app, agent, 3)
        await until(lambda: has_passed(app, agent, last.revision))
        after = await status(app, agent)
        digests = await digests_of(app, agent)

    assert before.behind == max(0, again - 2)
    assert told.delivered_revision == (None if again < 2 else sent[-1])
    assert after.behind == 0
    assert after.state is WebhookState.DELIVERING
    assert f"before change {sent[-1]}" in (after.last_error or "")
    got = receiver.messages(server.requests, hook.secret)
    assert [each.revision for each in got] == [*sent, last.revision]
    assert got[-1].id == message_id(agent.vault_id, last.revision, digests[last.revision])
    assert len({each.id for each in got}) == len(got)


async def tells_of_a_loss(app: App, spender: make.Spender) -> bool:
    return "restored" in ((await status(app, spender)).last_error or "")


async def test_a_restore_under_a_process_that_delivers_loses_nothing(app: App) -> None:
    """What it remembers is not written: deliveries go on from what the database remembers."""
    async with http_server() as server, delivering(app) as deliveries:
        hook = await subscribed(app, server.url())
        agent = hook.spender
        sent = [(await make.spend(app, agent, 1)).revision for _ in range(5)]
        await until(lambda: has_passed(app, agent, sent[-1]))
        held = deliveries._held[agent.agent_id]
        await restore(app, agent, sent[2])
        await make.until(lambda: deliveries._held.get(agent.agent_id) is not held)
        again = [(await make.spend(app, agent, 2)).revision for _ in range(3)]
        await make.until(lambda: len(server.requests) == 9)
        await until(lambda: is_passed(app, agent, again[-1]))
        digests = await digests_of(app, agent)

    got = receiver.messages(server.requests, hook.secret)
    assert [each.revision for each in got] == [*sent, sent[2], *again]
    assert got[2].id == got[5].id
    assert [each.id for each in got[5:]] == [
        message_id(agent.vault_id, revision, digests[revision]) for revision in (sent[2], *again)
    ]
    assert len({each.id for each in got}) == 8


async def test_a_cursor_is_never_written_beyond_its_vault(app: App) -> None:
    """A process that has not seen yet that the vault was restored renews its lease."""
    agent = await make.agent(app)
    await set_url(app, agent, "https://example.com/hook")
    before = await holder_of(app, agent)
    edition = await app.database.pool.fetchval(
        "UPDATE webhooks SET leased_by = 'this' WHERE agent_id = $1 RETURNING edition",
        agent.agent_id,
    )
    further = agent.agent_id, edition, before[1] + 1, b"", None
    progress = webhooks_db.Progress(*further, has_succeeded=False)
    async with app.database.transaction() as conn:
        await webhooks_db.write_progress(conn, "this", None, [progress])

    assert await holder_of(app, agent) == before


async def test_a_cursor_that_the_owner_set_is_of_any_history(app: App) -> None:
    """Which change is there is not known until the next is delivered."""
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        agent = hook.spender
        async with delivering(app):
            sent = [(await make.spend(app, agent, 1)).revision for _ in range(4)]
            await until(lambda: has_passed(app, agent, sent[-1]))
        await app.webhooks.redeliver(agent.owner, agent.agent_id, sent[3])
        set_back = await digest_at_cursor(app, agent)
        async with delivering(app):
            await make.until(lambda: len(server.requests) == 5)
            await until(lambda: is_passed(app, agent, sent[-1]))
        digests = await digests_of(app, agent)

    assert set_back is None
    assert await digest_at_cursor(app, agent) == digests[sent[-1]]


async def digest_at_cursor(app: App, spender: make.Spender) -> bytes | None:
    digest: bytes | None = await app.database.pool.fetchval(
        "SELECT cursor_digest FROM webhooks WHERE agent_id = $1", spender.agent_id
    )
    return digest


async def test_a_test_message_tells_what_became_of_it(app: App) -> None:
    """It is signed, it is no change, and deliveries go on as if it had not been."""
    async with http_server(respond(204), respond(500), reset()) as server:
        agent = await make.agent(app)
        with pytest.raises(errors.WebhookNotSet):
            await app.webhooks.send_test(agent.owner, agent.agent_id)
        await set_url(app, agent, server.url())
        with pytest.raises(errors.WebhookNeedsSecret):
            await app.webhooks.send_test(agent.owner, agent.agent_id)
        secret = await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
        await make.spend(app, agent, 1)
        before = await status(app, agent)
        taken, refused, lost = [
            await app.webhooks.send_test(agent.owner, agent.agent_id) for _ in range(3)
        ]
        after = await status(app, agent)

    assert (taken.delivered, taken.status_code, taken.error) == (True, 204, None)
    assert (refused.delivered, refused.status_code) == (False, 500)
    assert (lost.delivered, lost.status_code) == (False, None)
    assert (lost.error or "").startswith("connection_lost")
    assert after == before
    got = receiver.messages(server.requests, secret)
    assert [each.body["type"] for each in got[:2]] == ["webhook.test"] * 2
    assert got[0].body["data"] == {"agent_id": agent.agent_id}
    assert got[0].id != got[1].id


async def test_a_test_message_is_waited_for_no_longer_than_a_caller_waits(app: App) -> None:
    sends = Outbound(allow_private=True, seconds_max=60)
    impatient = Webhooks(app.database, Sender(sends), SEALER, app.agents.new_id, test_seconds=0.05)
    async with http_server(hang()) as server:
        hook = await subscribed(app, server.url())
        attempt = await impatient.send_test(hook.spender.owner, hook.spender.agent_id)
        await sends.close()

    assert not attempt.delivered
    assert (attempt.error or "").startswith("timed_out")


async def test_so_many_test_messages_are_sent_at_a_time(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are told to come again; none of them opens a connection."""
    monkeypatch.setattr(webhooks_service, "TESTS_AT_ONCE_MAX", 2)
    async with http_server(hang()) as server:
        hook = await subscribed(app, server.url())
        asked = hook.spender.owner, hook.spender.agent_id
        tests = [asyncio.create_task(app.webhooks.send_test(*asked)) for _ in range(2)]
        await make.until(lambda: len(server.requests) == 2)
        with pytest.raises(errors.Overloaded):
            await app.webhooks.send_test(*asked)
        await dead_ends(server)
        await asyncio.gather(*tests)
        server.then(respond(200))
        again = await app.webhooks.send_test(*asked)

    assert again.delivered
    assert len(server.requests) == 3


async def test_somebody_elses_webhook_is_not_there(app: App) -> None:
    stranger = await make.owner(app)
    async with http_server() as server:
        hook = await subscribed(app, server.url())
        agent_id = hook.spender.agent_id
        calls: list[Any] = [
            app.webhooks.get(stranger, agent_id),
            app.webhooks.issue_secret(stranger, agent_id, DAY),
            app.webhooks.send_test(stranger, agent_id),
            app.webhooks.redeliver(stranger, agent_id, 1),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [errors.NotFound] * len(calls)
    assert server.requests == []


# --- the end of an agent --------------------------------------------------------------


async def test_the_last_changes_of_a_deleted_agent_are_delivered(app: App) -> None:
    """Its holds are given back, and its webhook is told; what comes later is not its own."""
    async with http_server(respond(500), respond(200)) as server:
        hook = await subscribed(app, server.url())
        agent = hook.spender
        spent = await make.spend(app, agent, 10)
        held = await make.hold(app, agent, 20)
        await app.agents.delete(agent.owner, agent.agent_id)
        released = await app.ledger.get_event(agent.owner, held.id)
        await make.refund(app, agent, spent, 1)
        async with delivering(app) as deliveries:
            found = await arrived(server, hook.secret, released.revision)
            await until(lambda: is_passed(app, agent, released.revision))
            await let_go(deliveries, agent.agent_id)

        await deliveries.clean()
        kept = await app.database.pool.fetchval(
            "SELECT count(*) FROM webhook_secrets WHERE agent_id = $1", agent.agent_id
        )
        await app.database.pool.execute(
            "UPDATE agents SET deleted_at = deleted_at - interval '1 day' WHERE id = $1",
            agent.agent_id,
        )
        await deliveries.clean()
        left = await app.database.pool.fetchval(
            "SELECT count(*) FROM webhook_secrets WHERE agent_id = $1", agent.agent_id
        )

    assert found == [spent.revision, held.revision, released.revision]
    last = receiver.messages(server.requests, hook.secret)[-1].body["data"]["event"]
    assert last["failure_reason"] == "FAILURE_REASON_AGENT_DELETED"
    assert (kept, left) == (1, 0)


async def is_passed(app: App, spender: make.Spender, revision: int) -> bool:
    """Whether a cursor has come so far; of a deleted agent nobody is told."""
    return (await holder_of(app, spender))[1] >= revision


async def test_a_project_that_goes_takes_its_webhooks_along(app: App) -> None:
    """While a process holds them; it stops by itself."""
    async with http_server() as server, delivering(app) as deliveries:
        user, project_id, _ = await make.project(app)
        made = await app.agents.create(
            make.once(user), project_id, "Agent", None, None, server.url()
        )
        secret = await app.webhooks.issue_secret(user, made.id, DAY)
        declined = await app.ledger.spend(user, make.order(made.id, 5))
        await arrived(server, secret, declined.revision)
        await app.projects.archive(user, project_id)
        await app.projects.delete(user, project_id)
        await let_go(deliveries, made.id)

        assert not await app.database.pool.fetchval(
            "SELECT count(*) FROM webhooks WHERE agent_id = $1", made.id
        )


async def test_a_create_that_is_repeated_gives_the_first_answer(app: App) -> None:
    """With the webhook as it was then."""
    user, project_id, _ = await make.project(app)
    once = replace(make.once(user), request_id=make.request_id())
    url = "https://example.com/hook"

    first, again = [
        await app.agents.create(once, project_id, "Agent", None, None, url) for _ in range(2)
    ]

    assert first == again
    assert first.webhook is not None
    assert first.webhook.state is WebhookState.NEEDS_SECRET
