"""The stream on the wire: its promises one by one, its scopes, its tokens, and how it ends."""

import asyncio
import base64
import itertools
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from pilot_grpc import client as reference_client
from pilot_grpc import errors
from pilot_grpc.database_url import with_database
from pilot_grpc.db import stream as stream_db
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.gen.pilot.v1 import accounts_pb2, agents_pb2, projects_pb2, vaults_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.rpc import calls, wire
from pilot_grpc.rpc.errors import STATUS_CODES
from pilot_grpc.services import stream
from pilot_grpc.services.credentials import Credentials
from pilot_grpc.services.stream import STREAMS_PER_AGENT_MAX
from tests import histories, make
from tests.conftest import Server
from tests.make import HandClock
from tests.processes import free_port
from tests.rpc.proxy import Proxy, proxied
from tests.rpc.serving import (
    CALL_SECONDS,
    Client,
    Pilot,
    Refusal,
    Subscriber,
    Tenant,
    fresh,
    new_agent,
    read,
    refusal,
    serving,
    with_key,
)
from tests.sampling import first_of
from tests.services.test_histories import Services, jumps

pytestmark = pytest.mark.asyncio(loop_scope="module")

EARLIEST, LATEST = pb.STREAM_START_EARLIEST, pb.STREAM_START_LATEST
SECOND: Final = {"seconds": 1}
MINUTE: Final = {"seconds": 60}
SUBSCRIBE: Final = "/pilot.v1.LedgerService/SubscribeEvents"

ROWS: Final = """
SELECT revision, event_id, status, amount, balance_after, chain_balance_after, held_after,
       changed_at
  FROM event_changes
 WHERE vault_id = $1
 ORDER BY revision
"""


def revisions(changes: Iterable[pb.Change]) -> list[int]:
    return [change.revision for change in changes]


def count(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


async def first_token(caller: Client, start: Any = EARLIEST, **scope: Any) -> str:
    """The token that a stream begins with."""
    answer = await caller(pb.SubscribeEventsRequest(start=start, **scope))
    token: str = answer.resume_token
    return token


async def changes_of(caller: Client, expected: int, **fields: Any) -> list[pb.Change]:
    """Follow until so many changes came, and see that no more do."""
    fields = {"start": EARLIEST} | fields if "resume_token" not in fields else fields
    async with caller.subscribe(**fields, heartbeat_interval=SECOND) as found:
        changes = await found.next(expected)
        assert not (await found.read()).changes
        return changes


async def get_vault(tenant: Tenant) -> vaults_pb2.Vault:
    answer = await tenant.owner(vaults_pb2.GetVaultRequest(vault_id=tenant.vault_id))
    vault: vaults_pb2.Vault = answer.vault
    return vault


async def spend_many(tenant: Tenant, number: int, **fields: Any) -> None:
    """Spend by batches of a thousand, or of what fits a message."""
    size = 100 if fields else 1_000
    for start in range(0, number, size):
        spends = [
            pb.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id=fresh(), **fields)
            for _ in range(min(size, number - start))
        ]
        await tenant.owner(pb.BatchSpendRequest(spends=spends))


# --- the promises -----------------------------------------------------------------------


async def test_ordered(shared: Pilot) -> None:
    """Revisions ascend in the order of the commits, for those who came early and late."""
    tenant = await shared.tenant()
    agents = [tenant.agent, *[(await tenant.another_agent())[1] for _ in range(3)]]

    async def keep_spending(agent: Client) -> list[pb.Event]:
        return [
            (await agent(pb.SpendRequest(amount=n + 1, request_id=fresh()))).event
            for n in range(25)
        ]

    async with tenant.owner.subscribe(vault_id=tenant.vault_id, start=EARLIEST) as early:
        answers = itertools.chain(*await asyncio.gather(*map(keep_spending, agents)))
        by_revision = sorted(answers, key=lambda event: event.revision)
        streams = [await early.next(101), await changes_of(tenant.owner, 101)]

    for changes in streams:
        assert revisions(changes) == count(1, 101)
        assert [change.event for change in changes[1:]] == by_revision
        times = [change.change_time.ToNanoseconds() for change in changes]
        assert times == sorted(times)


async def test_unique(shared: Pilot) -> None:
    """Resumed after any response, once or from several at a time, no change comes again."""
    tenant = await shared.tenant()
    async with tenant.owner.subscribe(vault_id=tenant.vault_id, start=EARLIEST) as whole:
        await whole.next(1)
        for _ in range(12):
            await tenant.spend(1)
            await whole.next(1)

    assert revisions(whole.changes) == count(1, 13)
    befores = list(itertools.accumulate(len(each.changes) for each in whole.responses))
    afters = await asyncio.gather(
        *(
            changes_of(tenant.owner, 13 - before, resume_token=each.resume_token, **of(tenant))
            for before, each in zip(befores, whole.responses, strict=True)
        )
    )
    assert [revisions(after) for after in afters] == [count(each + 1, 13) for each in befores]


def of(tenant: Tenant) -> dict[str, Any]:
    return {"vault_id": tenant.vault_id}


async def test_reliable(shared: Pilot) -> None:
    """However often a stream breaks, and whatever passes meanwhile, none is left out."""
    tenant = await shared.tenant()
    chance = random.Random(11)  # noqa: S311 - the same breaks every time
    spending = asyncio.create_task(spend_many(tenant, 5_000))
    seen: list[int] = []
    token = await first_token(tenant.owner, **of(tenant))
    while len(seen) < 5_001:
        async with tenant.owner.subscribe(resume_token=token, **of(tenant)) as part:
            for _ in range(chance.randrange(4)):
                if len(seen) == 5_001:
                    break
                seen += revisions((await part.read()).changes)
                token = part.token
    await spending

    assert seen == count(1, 5_001)


async def test_resumable(shared: Pilot, another: Pilot) -> None:
    """On another server and much later, once and again, a token is followed by the same."""
    tenant = await shared.tenant()
    elsewhere = Client(another.channel, tenant.owner.credential)
    async with tenant.owner.subscribe(start=EARLIEST, **of(tenant)) as first:
        await first.next(1)
        token = first.token
    await spend_many(tenant, 1_500)

    for server in (elsewhere, tenant.owner, elsewhere):
        found = await changes_of(server, 1_500, resume_token=token, **of(tenant))
        assert revisions(found) == count(2, 1_501)


async def test_bookmarkable(shared: Pilot) -> None:
    """Where a filter lets nothing through the tokens move on all the same."""
    tenant = await shared.tenant()
    refunds = {"kinds": [pb.EVENT_KIND_REFUND], "heartbeat_interval": SECOND}
    async with tenant.owner.subscribe(start=EARLIEST, **of(tenant), **refunds) as filtered:
        await filtered.read()
        await spend_many(tenant, 1_200)
        while len({response.resume_token for response in filtered.responses}) < 2:
            await filtered.read()
        while not (await filtered.read()).caught_up:
            pass
    await tenant.spend(1)

    assert filtered.changes == []
    (change,) = await changes_of(tenant.owner, 1, resume_token=filtered.token, **of(tenant))
    assert change.revision == 1_202


# --- when a response comes --------------------------------------------------------------


@pytest.mark.parametrize("start", [EARLIEST, LATEST])
async def test_the_first_response_comes_at_once(shared: Pilot, start: Any) -> None:
    """With a token and no change, where the next heartbeat is a minute away."""
    tenant = await shared.tenant()
    for caller in (tenant.owner, tenant.agent):
        async with caller.subscribe(start=start, heartbeat_interval=MINUTE) as found:
            first = await asyncio.wait_for(found.read(), CALL_SECONDS)

            assert first.resume_token
            assert list(first.changes) == []
            assert first.caught_up is (start == LATEST)


async def test_an_empty_vault_has_nothing_to_say_but_a_token(shared: Pilot) -> None:
    tenant = await shared.tenant(balance=0)
    token = await first_token(tenant.owner, EARLIEST, **of(tenant))
    await tenant.fund(5)

    assert revisions(await changes_of(tenant.owner, 1, resume_token=token, **of(tenant))) == [1]


async def test_heartbeats_come_as_often_as_asked(shared: Pilot) -> None:
    """Three of one second each, while another stream says nothing in its minute."""
    tenant = await shared.tenant()
    async with (
        tenant.owner.subscribe(start=LATEST, heartbeat_interval=MINUTE) as rare,
        tenant.owner.subscribe(start=LATEST, heartbeat_interval=SECOND) as often,
    ):
        await rare.read()
        silent = asyncio.create_task(rare.read())
        for _ in range(4):
            assert not (await often.read()).changes

        assert not silent.done()
        await tenant.spend(1)
        assert revisions((await silent).changes) == [2]


async def test_the_bookmarks_of_an_agent_pass_its_siblings(database: str) -> None:
    """Trimmed behind it, the token that it began with is dead and its heartbeat's is not."""
    async with serving(database, changes_kept_count=1) as pilot:
        tenant = await pilot.tenant()
        _, sibling = await tenant.another_agent()
        async with tenant.agent.subscribe(start=LATEST, heartbeat_interval=SECOND) as own:
            await own.read()
            for n in range(5):
                await sibling(pb.SpendRequest(amount=1, request_id=f"s{n}"))
            old, feed = own.token, pilot.app.feeds._feeds[VaultId(tenant.vault_id)]
            await make.until(lambda: feed.head.revision == 6)
            # The first may have been on its way before.
            await own.heartbeat()
            bookmark = (await own.heartbeat()).resume_token
            await pilot.app.trimming.trim()

        found = await refusal(tenant.agent(pb.SubscribeEventsRequest(resume_token=old)))
        assert found.reason == "CHANGES_TRIMMED"
        await tenant.spend(7)
        (change,) = await changes_of(tenant.agent, 1, resume_token=bookmark)
        assert (change.event.amount, change.revision) == (-7, 7)


# --- scopes -----------------------------------------------------------------------------


async def test_a_project_is_its_vault(shared: Pilot) -> None:
    """Their changes are the same, and their tokens go for each other."""
    tenant = await shared.tenant()
    await tenant.spend(1)
    vault, project = of(tenant), {"project_id": tenant.project_id}
    async with tenant.owner.subscribe(start=EARLIEST, **vault) as found:
        by_vault = await found.next(2)
    by_project = await changes_of(tenant.owner, 2, **project)
    await tenant.spend(2)

    assert by_vault == by_project
    for scope in (vault, project):
        (next_one,) = await changes_of(tenant.owner, 1, resume_token=found.token, **scope)
        assert next_one.revision == 3


async def test_an_agents_stream_is_its_own_events_only(shared: Pilot) -> None:
    """For its owner by its id, for itself by its id, its vault, its project, or no name."""
    tenant = await shared.tenant()
    other_id, sibling = await tenant.another_agent()
    own = [await tenant.spend(n + 1) for n in range(3)]
    await sibling(pb.SpendRequest(amount=9, request_id=fresh()))
    await tenant.fund(5)
    own.append(await tenant.spend(4))

    by_owner = await changes_of(tenant.owner, 4, agent_id=tenant.agent_id)
    names: list[dict[str, Any]] = [
        *({}, {"agent_id": tenant.agent_id}, of(tenant), {"project_id": tenant.project_id}),
    ]
    by_itself = [await changes_of(tenant.agent, 4, **name) for name in names]

    assert [change.event for change in by_owner] == own
    assert all(change.HasField("vault_figures") for change in by_owner)
    assert by_itself[1:] == by_itself[:1] * 3
    assert [change.event for change in by_itself[0]] == own
    elsewhere = await shared.tenant()
    others: list[tuple[str, dict[str, Any]]] = [
        ("agent", {"agent_id": other_id}),
        ("agent", {"agent_id": elsewhere.agent_id}),
        ("vault", {"vault_id": elsewhere.vault_id}),
        ("project", {"project_id": elsewhere.project_id}),
    ]
    for resource, name in others:
        found = await refusal(tenant.agent(pb.SubscribeEventsRequest(start=EARLIEST, **name)))
        missing = {"resource": resource, "id": next(iter(name.values()))}
        assert found == Refusal("NOT_FOUND", "NOT_FOUND", missing)


async def test_all_of_a_users_vaults_come_and_go(shared: Pilot) -> None:
    """A project that is made later is there from its first change; one may be deleted."""
    tenant = await shared.tenant()
    stranger = await shared.tenant()
    async with tenant.owner.subscribe(start=LATEST) as everything:
        await everything.read()
        made = await tenant.owner(projects_pb2.CreateProjectRequest(name="Later"))
        later = made.project
        await tenant.owner(
            pb.RecordFundingRequest(vault_id=later.vault_id, amount=7, request_id=fresh())
        )
        (first,) = await everything.next(1)
        assert (first.vault_id, first.revision) == (later.vault_id, 1)
        with_later = everything.token
        agent_id = await new_agent(tenant.owner, later.id)
        await with_key(tenant.owner, agent_id)
        await stranger.spend(1)
        await tenant.owner(pb.SpendRequest(agent_id=agent_id, amount=7, request_id=fresh()))
        await everything.next(1)
        await tenant.owner(projects_pb2.ArchiveProjectRequest(project_id=later.id))
        await tenant.owner(projects_pb2.DeleteProjectRequest(project_id=later.id))
        await tenant.spend(1)
        (last,) = await everything.next(1)
        assert (last.vault_id, last.revision) == (tenant.vault_id, 2)

    for token in (with_later, everything.token):
        async with tenant.owner.subscribe(resume_token=token) as again:
            await again.read()
            await tenant.spend(1)
            while tenant.vault_id not in [change.vault_id for change in again.changes]:
                await again.read()
            assert {change.vault_id for change in again.changes} == {tenant.vault_id}


async def test_a_project_that_is_older_than_the_process_knows_is_not_left_out(
    shared: Pilot, another: Pilot
) -> None:
    """Made while nobody followed, on another server: resumed, it comes from its first change."""
    tenant = await shared.tenant()
    token = await first_token(tenant.owner, LATEST)
    elsewhere = Client(another.channel, tenant.owner.credential)
    made = await elsewhere(projects_pb2.CreateProjectRequest(name="Later"))
    for _ in range(3):
        await elsewhere(
            pb.RecordFundingRequest(vault_id=made.project.vault_id, amount=7, request_id=fresh())
        )

    found = await changes_of(tenant.owner, 3, resume_token=token)

    assert {change.vault_id for change in found} == {made.project.vault_id}
    assert revisions(found) == [1, 2, 3]


async def test_who_may_read_may_follow(shared: Pilot) -> None:
    tenant, stranger = await shared.tenant(), await shared.tenant()
    reader, writer = await tenant.api_key("read"), await tenant.api_key("write", "execute")

    assert len(await changes_of(reader, 1, **of(tenant))) == 1
    request = pb.SubscribeEventsRequest(start=EARLIEST, **of(tenant))
    assert await refusal(writer(request)) == Refusal(
        "PERMISSION_DENIED", "PERMISSION_DENIED", {"permission": "read"}
    )
    assert (await refusal(stranger.owner(request))).reason == "NOT_FOUND"
    assert (await refusal(stranger.agent(request))).reason == "NOT_FOUND"


# --- drifts -----------------------------------------------------------------------------


async def drifting(pilot: Pilot) -> Tenant:
    """A vault whose changes are a credit, a deposit, a drift that grows, and its end."""
    tenant = await pilot.tenant()
    vault_id = VaultId(tenant.vault_id)
    await make.deposit(pilot.app, vault_id, 100, fresh("deposit"))
    await make.stop(pilot.app, vault_id, -5)
    await make.stop(pilot.app, vault_id, -7)
    await tenant.spend(1)
    await tenant.owner(
        vaults_pb2.AcknowledgeDriftRequest(
            vault_id=tenant.vault_id, drift_id="cdrift", amount=-7, request_id=fresh()
        )
    )
    return tenant


async def test_a_drift_is_a_numbered_change_of_its_vault(shared: Pilot) -> None:
    """Found, grown, and acknowledged; with the vault's figures, which it leaves alone."""
    tenant = await drifting(shared)

    changes = await changes_of(tenant.owner, 7, **of(tenant))

    assert revisions(changes) == count(1, 7)
    assert [change.WhichOneof("subject") for change in changes] == [
        *("event", "event", "drift", "drift", "event", "drift", "event"),
    ]
    drifts = [changes[at].drift for at in (2, 3, 5)]
    assert [(drift.id, drift.open, drift.amount) for drift in drifts] == [
        ("cdrift", True, -5),
        ("cdrift", True, -7),
        ("cdrift", False, -7),
    ]
    assert [drift.outflows[0].amount for drift in drifts] == [5, 7, 7]
    assert changes[1].vault_figures == changes[2].vault_figures == changes[3].vault_figures
    assert changes[4].vault_figures == changes[5].vault_figures
    assert (changes[6].event.kind, changes[6].event.amount) == (pb.EVENT_KIND_WITHDRAWAL, -7)


async def test_a_drift_comes_in_every_stream_of_its_vaults_owner(shared: Pilot) -> None:
    """By vault, by project, and by nothing at all; live, and resumed between two of them."""
    tenant = await shared.tenant()
    scopes: list[dict[str, Any]] = [of(tenant), {"project_id": tenant.project_id}, {}]
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(tenant.owner.subscribe(start=LATEST, **scope))
            for scope in scopes
        ]
        for each in streams:
            await each.read()
        await make.stop(shared.app, VaultId(tenant.vault_id), -5)
        found = [await each.next(1) for each in streams]
        tokens = [each.token for each in streams]
    await make.stop(shared.app, VaultId(tenant.vault_id), 0)

    assert [change.drift.open for (change,) in found] == [True] * 3
    for scope, token in zip(scopes, tokens, strict=True):
        (ended,) = await changes_of(tenant.owner, 1, resume_token=token, **scope)
        assert (ended.revision, ended.drift.open, ended.drift.amount) == (3, False, 0)


async def test_a_drift_is_in_no_stream_of_an_agent(shared: Pilot) -> None:
    """Neither for itself nor for its owner; no byte tells of it, and tokens pass it."""
    tenant = await drifting(shared)

    by_owner = await changes_of(tenant.owner, 1, agent_id=tenant.agent_id)
    by_itself = await changes_of(tenant.agent, 1)
    async with tenant.agent.subscribe(start=EARLIEST, heartbeat_interval=SECOND) as own:
        await own.next(1)
        token = (await own.heartbeat()).resume_token
    await tenant.spend(2)
    (after,) = await changes_of(tenant.agent, 1, resume_token=token)

    assert [change.event.amount for change in (*by_owner, *by_itself)] == [-1, -1]
    assert (after.revision, after.event.amount) == (8, -2)
    told = b"".join(response.SerializeToString() for response in own.responses)
    assert b"cdrift" not in told
    assert b"theft" not in told


@pytest.mark.parametrize(
    "wanted",
    [
        {"types": [pb.EVENT_TYPE_FUNDING, pb.EVENT_TYPE_SPEND]},
        {"kinds": list(wire.EVENT_KINDS.values())},
        {"statuses": list(wire.EVENT_STATUSES.values())},
    ],
    ids=str,
)
async def test_a_drift_is_left_out_where_events_are_asked_for(
    shared: Pilot, wanted: dict[str, Any]
) -> None:
    """All of them come, and no drift between them; a token after one goes on without."""
    tenant = await drifting(shared)
    await make.stop(shared.app, VaultId(tenant.vault_id), -5)
    fields: dict[str, Any] = {**of(tenant), **wanted}

    changes = await changes_of(tenant.owner, 4, **fields)
    async with tenant.owner.subscribe(start=EARLIEST, heartbeat_interval=SECOND, **fields) as found:
        await found.next(4)
        token = (await found.heartbeat()).resume_token
    await tenant.spend(2)
    after = await changes_of(tenant.owner, 1, resume_token=token, **of(tenant))

    assert revisions(changes) == [1, 2, 5, 7]
    assert all(change.HasField("event") for change in changes)
    assert revisions(after) == [9]


# --- what a change says -----------------------------------------------------------------


async def everything_that_happens(pilot: Pilot, clock: HandClock) -> tuple[Tenant, list[pb.Event]]:
    """Make each kind of change; give the answers, as they were then."""
    tenant = await pilot.tenant(balance=0, per_tx_limit=500, daily_limit=900)
    owner, agent_id, vault_id = tenant.owner, tenant.agent_id, tenant.vault_id
    doomed_id = await new_agent(owner, tenant.project_id)
    await with_key(owner, doomed_id)
    answers: list[pb.Event] = []

    async def do(request: Any) -> pb.Event:
        request.request_id = fresh()
        answers.append((await owner(request)).event)
        return answers[-1]

    async def hold(agent: str, amount: int) -> str:
        event = await do(pb.AuthorizeSpendRequest(agent_id=agent, amount=amount))
        return event.id

    await do(pb.SpendRequest(agent_id=agent_id, amount=5))
    await do(pb.RecordFundingRequest(vault_id=vault_id, amount=1_000, metadata='{"why": "é"}'))
    arrives = await do(pb.RecordFundingRequest(vault_id=vault_id, amount=70, pending=True))
    fails = await do(
        pb.RecordFundingRequest(vault_id=vault_id, amount=7, pending=True, tx_hash="5" * 64)
    )
    await do(pb.ConfirmFundingRequest(event_id=arrives.id))
    await do(pb.FailFundingRequest(event_id=fails.id))
    spent = await do(
        pb.SpendRequest(agent_id=agent_id, amount=90, provider="p", model="m", metadata="[1]")
    )
    await do(pb.RefundRequest(event_id=spent.id, amount=40))
    clock.move(seconds=3)
    await do(pb.CaptureSpendRequest(event_id=await hold(agent_id, 60), amount=25))
    await do(pb.ReleaseSpendRequest(event_id=await hold(agent_id, 61)))
    await do(pb.SpendRequest(agent_id=agent_id, amount=501))
    await hold(agent_id, 30)
    clock.move(seconds=700)
    await pilot.app.lanes.settle(VaultId(vault_id))
    answers.append((await owner(pb.GetEventRequest(event_id=answers[-1].id))).event)
    await hold(doomed_id, 33)
    await owner(agents_pb2.DeleteAgentRequest(agent_id=doomed_id))
    answers.append((await owner(pb.GetEventRequest(event_id=answers[-1].id))).event)
    await do(pb.SpendRequest(agent_id=agent_id, amount=499))
    await do(pb.SpendRequest(agent_id=agent_id, amount=499))
    return tenant, answers


async def test_every_change_comes_as_the_event_was_then(database: str) -> None:
    """Each answer that a caller had is what the stream has at that revision, to the byte."""
    clock = HandClock(datetime(2027, 3, 1, 12, tzinfo=UTC))
    async with serving(database, clock) as pilot:
        tenant, answers = await everything_that_happens(pilot, clock)

        changes = await changes_of(tenant.owner, len(answers), **of(tenant))
        rows = await pilot.pool.fetch(ROWS, tenant.vault_id)
        vault = await get_vault(tenant)

    assert [change.event for change in changes] == answers
    assert revisions(changes) == count(1, len(answers))
    assert {answer.failure_reason for answer in answers} >= {
        *(pb.FAILURE_REASON_INSUFFICIENT_BALANCE, pb.FAILURE_REASON_FUNDING_FAILED),
        *(pb.FAILURE_REASON_PER_TX_LIMIT, pb.FAILURE_REASON_RELEASED),
        *(pb.FAILURE_REASON_EXPIRED, pb.FAILURE_REASON_AGENT_DELETED),
        pb.FAILURE_REASON_DAILY_LIMIT,
    }
    for change, row in zip(changes, rows, strict=True):
        figures = change.vault_figures
        told = (change.revision, change.event.id, change.event.amount)
        assert told == (row["revision"], row["event_id"], row["amount"])
        assert (figures.balance, figures.chain_balance, figures.held) == (
            *(row["balance_after"], row["chain_balance_after"], row["held_after"]),
        )
        changed_at = change.change_time.ToDatetime(tzinfo=UTC)
        assert changed_at == row["changed_at"]
        assert change.event.update_time == change.change_time
        assert change.event.vault_id == change.vault_id == tenant.vault_id
    last = changes[-1].vault_figures
    assert (last.balance, last.chain_balance, last.held, changes[-1].revision) == (
        *(vault.balance, vault.chain_balance, vault.held, vault.revision),
    )


FILTERS: Final[list[dict[str, list[Any]]]] = [
    {"types": [pb.EVENT_TYPE_FUNDING]},
    {"types": [pb.EVENT_TYPE_SPEND, pb.EVENT_TYPE_FUNDING]},
    {"kinds": [pb.EVENT_KIND_REFUND]},
    {"kinds": [pb.EVENT_KIND_CREDIT, pb.EVENT_KIND_METERED]},
    {"statuses": [pb.EVENT_STATUS_PENDING]},
    {"statuses": [pb.EVENT_STATUS_FAILED, pb.EVENT_STATUS_CONFIRMED]},
    {"types": [pb.EVENT_TYPE_SPEND], "statuses": [pb.EVENT_STATUS_FAILED]},
    {"kinds": [pb.EVENT_KIND_CREDIT], "statuses": [pb.EVENT_STATUS_CONFIRMED]},
    {"types": [pb.EVENT_TYPE_SPEND], "kinds": [pb.EVENT_KIND_CREDIT]},
    {
        "types": [pb.EVENT_TYPE_FUNDING],
        "kinds": [pb.EVENT_KIND_CREDIT, pb.EVENT_KIND_REFUND],
        "statuses": [pb.EVENT_STATUS_PENDING, pb.EVENT_STATUS_CONFIRMED],
    },
]


def allows(wanted: dict[str, list[Any]], event: pb.Event) -> bool:
    values = {"types": event.type, "kinds": event.kind, "statuses": event.status}
    return all(values[name] in allowed for name, allowed in wanted.items())


async def test_filters_must_all_hold_for_the_event_as_it_was(database: str) -> None:
    """Each by itself and together; pending and then confirmed is two changes of one event."""
    clock = HandClock(datetime(2027, 3, 1, 12, tzinfo=UTC))
    async with serving(database, clock) as pilot:
        tenant, answers = await everything_that_happens(pilot, clock)
        expected = [[each for each in answers if allows(wanted, each)] for wanted in FILTERS]

        found = await asyncio.gather(
            *(
                changes_of(tenant.owner, len(events), **wanted, **of(tenant))
                for wanted, events in zip(FILTERS, expected, strict=True)
            )
        )

    assert [[change.event for change in changes] for changes in found] == expected
    assert sum(map(bool, expected)) == len(FILTERS) - 1
    ids = [event.id for event in expected[3]]
    assert len(set(ids)) < len(ids)


BALANCE, SIBLINGS_HOLD = 123_456_789_012, 7_654_321_098


def varint(number: int) -> bytes:
    """How a number stands in a message."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*written, number))


async def test_no_byte_that_an_agent_gets_tells_a_figure_of_the_vault(shared: Pilot) -> None:
    """Not in a change, a decline, or a token; its owner gets the same changes with them."""
    tenant = await shared.tenant(balance=BALANCE, daily_limit=10**15)
    _, sibling = await tenant.another_agent()
    await sibling(pb.AuthorizeSpendRequest(amount=SIBLINGS_HOLD, request_id=fresh()))
    await tenant.spend(BALANCE)
    await tenant.spend(1_000_003)
    await tenant.hold(1_000_033)
    await tenant.owner(pb.RefundRequest(event_id=(await tenant.spend(77)).id, **once(70)))
    rows = await shared.pool.fetch(ROWS, tenant.vault_id)
    figures = {row["balance_after"] for row in rows} | {row["held_after"] for row in rows}
    figures -= {0}
    digests = await shared.pool.fetch(
        "SELECT digest FROM event_changes WHERE vault_id = $1", tenant.vault_id
    )

    async def raw(caller: Client) -> bytes:
        rpc: Any = shared.channel.unary_stream(SUBSCRIBE)
        request = pb.SubscribeEventsRequest(agent_id=tenant.agent_id, start=EARLIEST)
        call = rpc(request.SerializeToString(), metadata=(("authorization", caller.authorization),))
        got, changes, decoded = b"", 0, b""
        while changes < 5:
            got += (message := await asyncio.wait_for(call.read(), CALL_SECONDS))
            response = pb.SubscribeEventsResponse.FromString(message)
            changes += len(response.changes)
            token = response.resume_token
            decoded += base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        call.cancel()
        return bytes(got + decoded)

    to_agent, to_owner = await raw(tenant.agent), await raw(tenant.owner)

    assert len(figures) >= 6
    assert [n for n in figures if varint(n) in to_agent or str(n).encode() in to_agent] == []
    assert [row for row in digests if row["digest"] in to_agent] == []
    own = {row["balance_after"] for row in rows[2:] if row["balance_after"]}
    assert all(varint(number) in to_owner for number in own)
    assert varint(1_000_033) in to_agent


def once(amount: int) -> dict[str, Any]:
    return {"amount": amount, "request_id": fresh()}


async def test_a_decline_for_the_balance_shows_its_figures_to_the_owner_only(
    shared: Pilot,
) -> None:
    tenant = await shared.tenant(balance=100)
    await tenant.spend(101)

    (to_agent,) = await changes_of(tenant.agent, 1)
    (to_owner,) = await changes_of(tenant.owner, 1, agent_id=tenant.agent_id)

    assert not to_agent.HasField("vault_figures")
    reason = pb.FAILURE_REASON_INSUFFICIENT_BALANCE
    assert to_agent.event.decline == pb.Decline(reason=reason)
    assert to_owner.event.decline == pb.Decline(reason=reason, held=0, remaining=100)


async def list_all(caller: Client, **fields: Any) -> list[pb.ListEventsResponse]:
    request = pb.ListEventsRequest(page_size=7, **fields)
    pages = [await caller(request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(await caller(request))
    return pages


@pytest.mark.parametrize("seed", first_of(range(2)))
async def test_replaying_the_stream_gives_what_the_reads_say(database: str, seed: int) -> None:
    """After a random history by many callers: every event, every figure, and the agents'."""
    clock = HandClock(datetime(2027, 12, 30, 20, tzinfo=UTC))
    chance = random.Random(seed)  # noqa: S311 - histories, not secrets
    settings: dict[str, Any] = {"declines_per_minute": 10**6}
    async with serving(database, clock, **settings) as pilot, serving(database, clock) as other:
        agents: list[make.Spender] = []
        for limits in histories.FIRST_LIMITS:
            names = ("per_tx_limit", "daily_limit", "monthly_limit")
            beside = agents[0] if agents else None
            chosen: Any = dict(zip(names, limits, strict=True))
            agents.append(await make.agent(pilot.app, **chosen, vault_balance=0, beside=beside))
        owner = await session_of(pilot, agents[0])
        history = histories.History(
            places=[Services(each.app, agents[0]) for each in (pilot, other)],
            agent_ids=[agent.agent_id for agent in agents],
            chance=chance,
            ttls=[timedelta(seconds=600), timedelta(days=1)],
            before_each=jumps(clock, chance),
        )
        vault_id = agents[0].vault_id
        async with owner.subscribe(vault_id=vault_id, start=EARLIEST) as live:
            await history.make(callers=4, steps=25)
            vault = (await owner(vaults_pb2.GetVaultRequest(vault_id=vault_id))).vault
            followed = await live.next(vault.revision)

        replayed = await changes_of(owner, vault.revision, vault_id=vault_id)
        pages = await list_all(owner, vault_id=vault_id)
        assert replayed == followed
        assert revisions(replayed) == count(1, vault.revision)
        events = {change.event.id: change.event for change in replayed}
        assert events == {event.id: event for page in pages for event in page.events}
        figures = replayed[-1].vault_figures
        assert (figures.balance, figures.chain_balance, figures.held) == (
            *(vault.balance, vault.chain_balance, vault.held),
        )
        for agent in agents:
            own = [each for each in replayed if each.event.agent_id == agent.agent_id]
            agents_own = await changes_of(owner, len(own), agent_id=agent.agent_id)
            assert agents_own == own


async def session_of(pilot: Pilot, agent: make.Spender) -> Client:
    """A session of the user that a spender belongs to."""
    _, session = await pilot.user()
    await pilot.pool.execute(
        "UPDATE sessions SET user_id = $1 WHERE user_id = (SELECT user_id FROM sessions"
        "  ORDER BY created_at DESC LIMIT 1)",
        agent.owner.user_id,
    )
    return session


# --- list, then subscribe ---------------------------------------------------------------


async def test_a_list_goes_on_as_a_stream(shared: Pilot) -> None:
    """For a vault, an agent, a user and an agent itself: nothing between the two is lost."""
    tenant = await shared.tenant()
    for _ in range(10):
        await tenant.spend(1)
    scopes: list[tuple[Client, dict[str, Any], dict[str, Any]]] = [
        (tenant.owner, of(tenant), of(tenant)),
        (tenant.owner, {"agent_id": tenant.agent_id}, {"agent_id": tenant.agent_id}),
        (tenant.owner, {}, {}),
        (tenant.agent, {}, {"agent_id": tenant.agent_id}),
        (tenant.owner, {**of(tenant), "agent_id": tenant.agent_id}, {"agent_id": tenant.agent_id}),
    ]
    for caller, listed, followed in scopes:
        pages = await list_all(caller, **listed)
        assert [bool(page.resume_token) for page in pages] == [True] + [False] * (len(pages) - 1)
        known = {event.id for page in pages for event in page.events}
        missed = [await tenant.spend(n + 1) for n in range(3)]

        changes = await changes_of(caller, 3, resume_token=pages[0].resume_token, **followed)

        assert [change.event for change in changes] == missed
        assert not known & {event.id for event in missed}


async def test_spends_while_the_pages_are_read_are_in_the_list_or_in_the_stream(
    shared: Pilot,
) -> None:
    tenant = await shared.tenant()
    for _ in range(20):
        await tenant.spend(1)
    done = asyncio.Event()

    async def keep_spending() -> None:
        while not done.is_set():
            await tenant.spend(1)

    spending = asyncio.create_task(keep_spending())
    pages = await list_all(tenant.owner, **of(tenant))
    done.set()
    await spending
    revision = (await get_vault(tenant)).revision
    listed = {event.revision for page in pages for event in page.events}

    async with tenant.owner.subscribe(resume_token=pages[0].resume_token, **of(tenant)) as found:
        streamed: list[int] = []
        while revision not in streamed and revision not in listed:
            streamed += revisions((await found.read()).changes)

    assert listed | set(streamed) == set(count(1, revision))


async def test_a_list_of_nothing_has_no_token_for_an_agent_elsewhere(shared: Pilot) -> None:
    tenant = await shared.tenant()
    made = await tenant.owner(projects_pb2.CreateProjectRequest(name="Other"))

    answer = await tenant.owner(
        pb.ListEventsRequest(vault_id=made.project.vault_id, agent_id=tenant.agent_id)
    )

    assert (list(answer.events), answer.resume_token) == ([], "")


# --- tokens -----------------------------------------------------------------------------

INVALID = Refusal("INVALID_ARGUMENT", "RESUME_TOKEN_INVALID")
OF_ANOTHER_SCOPE = Refusal("INVALID_ARGUMENT", "RESUME_TOKEN_OF_ANOTHER_SCOPE")


async def resumed(caller: Client, token: str, **scope: Any) -> Refusal:
    return await refusal(caller(pb.SubscribeEventsRequest(resume_token=token, **scope)))


async def test_a_token_that_was_changed_is_refused(shared: Pilot) -> None:
    """At each of its characters, cut short, lengthened, made up, or in another alphabet."""
    tenant = await shared.tenant()
    token = await first_token(tenant.owner, **of(tenant))
    changed = [
        token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        for at in range(len(token))
    ]
    made_up = ["A", "AAAA", "nonsense", "é", "💸", " ", token + "\n", "=" * 4, "A" * 65_536]
    cut = [token[:-1], token[1:], token + "A", token + token, token + "="]

    found = [await resumed(tenant.owner, each, **of(tenant)) for each in changed + made_up + cut]

    assert found == [INVALID] * len(found)
    assert (await resumed(tenant.owner, token, **of(tenant))).code == "OK"


async def test_a_token_goes_for_its_own_scope_only(shared: Pilot) -> None:
    tenant, stranger = await shared.tenant(), await shared.tenant()
    sibling_id, sibling = await tenant.another_agent()
    scopes: list[tuple[Client, dict[str, Any]]] = [
        (tenant.owner, {}),
        (tenant.owner, of(tenant)),
        (tenant.owner, {"agent_id": tenant.agent_id}),
        (sibling, {}),
        (stranger.owner, {}),
        (stranger.owner, of(stranger)),
        (stranger.agent, {}),
    ]
    tokens = [await first_token(caller, **scope) for caller, scope in scopes]

    found = [
        [await resumed(caller, token, **scope) for token in tokens] for caller, scope in scopes
    ]

    for number, answers in enumerate(found):
        expected = [OF_ANOTHER_SCOPE] * len(scopes)
        expected[number] = Refusal("OK")
        assert answers == expected
    own = await resumed(tenant.agent, tokens[2])
    assert own == Refusal("OK")
    assert (await resumed(tenant.owner, tokens[3], agent_id=sibling_id)).code == "OK"


async def test_a_token_of_another_installation_is_refused(
    shared: Pilot, server: Server, template: str
) -> None:
    """Of the same user and vault even, but signed with another key."""
    tenant = await shared.tenant()
    token = await first_token(tenant.owner, **of(tenant))
    async with (
        server.new_database(template) as name,
        serving(with_database(server.url, name)) as foreign,
    ):
        theirs = await foreign.tenant()
        assert await resumed(theirs.owner, token, **of(theirs)) == INVALID


async def test_a_filter_may_change_when_a_stream_is_resumed(shared: Pilot) -> None:
    tenant = await shared.tenant()
    failed = {"statuses": [pb.EVENT_STATUS_FAILED]}
    async with tenant.owner.subscribe(start=EARLIEST, **failed, **of(tenant)) as found:
        token = (await found.read()).resume_token
    await tenant.spend(1)

    assert len(await changes_of(tenant.owner, 2, resume_token=token, **of(tenant))) == 2


async def test_a_trimmed_place_is_told_and_its_edge_still_works(database: str) -> None:
    """Which revisions there are is told, for a vault, an agent and all vaults; EARLIEST works."""
    async with serving(database, changes_kept_count=3) as pilot:
        tenant = await pilot.tenant()
        scopes: list[tuple[Client, dict[str, Any]]] = [
            *((tenant.owner, of(tenant)), (tenant.owner, {}), (tenant.agent, {})),
        ]
        old = [await first_token(caller, EARLIEST, **scope) for caller, scope in scopes]
        tokens: list[list[str]] = []
        for _ in range(9):
            tokens.append([await first_token(c, LATEST, **scope) for c, scope in scopes])
            await tenant.spend(1)
        assert await pilot.app.trimming.trim() == 7

        for number, (caller, scope) in enumerate(scopes):
            for token in (old[number], *(each[number] for each in tokens[:6])):
                assert await resumed(caller, token, **scope) == Refusal(
                    "OUT_OF_RANGE",
                    "CHANGES_TRIMMED",
                    {
                        "vault_id": tenant.vault_id,
                        "oldest_revision": "8",
                        "newest_revision": "10",
                    },
                )
            kept = await asyncio.gather(
                changes_of(caller, 3, **scope),
                *(
                    changes_of(caller, 3 - passed, resume_token=each[number], **scope)
                    for passed, each in enumerate(tokens[6:])
                ),
            )
            assert list(map(revisions, kept)) == [[8, 9, 10], [8, 9, 10], [9, 10], [10]]
        pages = await list_all(tenant.owner, **of(tenant))
        assert sum(len(page.events) for page in pages) == 10
        await tenant.spend(1)
        token = pages[0].resume_token
        assert revisions(await changes_of(tenant.owner, 1, resume_token=token, **of(tenant))) == [
            11
        ]


async def step_back(pilot: Pilot, tenant: Tenant, revision: int) -> None:
    """Let a vault be where it was at a change, as a restore does."""
    async with pilot.app.database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(
            "UPDATE vaults SET revision = changes.revision, digest = changes.digest,"
            "       balance = changes.balance_after, held = changes.held_after"
            "  FROM event_changes AS changes"
            " WHERE vaults.id = $1 AND changes.vault_id = $1 AND changes.revision = $2",
            *(tenant.vault_id, revision),
        )
        await conn.execute(
            "DELETE FROM event_changes WHERE vault_id = $1 AND revision > $2",
            *(tenant.vault_id, revision),
        )


async def test_a_database_that_was_restored_honours_no_token_of_what_it_lost(
    database: str, server: Server
) -> None:
    """A copy of the database serves instead: shorter, as long, and longer than what was lost."""
    name = database.rpartition("/")[2].partition("?")[0]
    async with AsyncExitStack() as stack:
        async with serving(database) as pilot:
            tenant = await pilot.tenant()
            kept = await first_token(tenant.owner, LATEST, **of(tenant))
        copy = with_database(server.url, await stack.enter_async_context(server.new_database(name)))
        async with serving(database) as pilot:
            owner, agent = (each_on(pilot, each) for each in (tenant.owner, tenant.agent))
            for _ in range(3):
                await agent(pb.SpendRequest(amount=1, request_id=fresh()))
            lost = {
                1: (owner, of(tenant), await first_token(owner, LATEST, **of(tenant))),
                2: (owner, {}, await first_token(owner, LATEST)),
                3: (agent, {}, await first_token(agent, LATEST)),
            }
        async with serving(copy) as pilot:
            for newest in (1, 2, 3, 4, 5, 6):
                for caller, scope, token in lost.values():
                    assert await resumed(each_on(pilot, caller), token, **scope) == Refusal(
                        "OUT_OF_RANGE",
                        "HISTORY_UNDONE",
                        {
                            "vault_id": tenant.vault_id,
                            "revision": "4",
                            "newest_revision": str(newest),
                        },
                    )
                await each_on(pilot, tenant.agent)(pb.SpendRequest(amount=9, request_id=fresh()))
            owner = each_on(pilot, tenant.owner)
            found = await changes_of(owner, 6, resume_token=kept, **of(tenant))
            assert revisions(found) == count(2, 7)


def each_on(pilot: Pilot, caller: Client) -> Client:
    """The same caller, on another server."""
    return Client(pilot.channel, caller.credential)


async def test_a_live_stream_ends_when_its_history_is_undone(shared: Pilot) -> None:
    """For the vault, its agent, and all vaults; resumed, it is refused as well."""
    tenant = await shared.tenant()
    for _ in range(4):
        await tenant.spend(1)
    async with (
        tenant.owner.subscribe(start=EARLIEST, **of(tenant)) as of_vault,
        tenant.owner.subscribe(start=EARLIEST) as of_user,
        tenant.agent.subscribe(start=EARLIEST) as of_agent,
    ):
        streams = ((of_vault, 5), (of_user, 5), (of_agent, 4))
        for found, number in streams:
            await found.next(number)
        await step_back(shared, tenant, 3)

        for found, _ in streams:
            assert await found.end() == Refusal(
                "OUT_OF_RANGE",
                "HISTORY_UNDONE",
                {"vault_id": tenant.vault_id, "revision": "5", "newest_revision": "3"},
            )
    assert (await resumed(tenant.owner, of_user.token)).reason == "HISTORY_UNDONE"


# --- requests that are refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({}, "from"),
        ({"start": pb.STREAM_START_UNSPECIFIED}, "start"),
        ({"start": 3}, "start"),
        ({"resume_token": ""}, "resume_token"),
        ({"resume_token": "A" * 65_537}, "resume_token"),
        ({"start": LATEST, "vault_id": ""}, "vault_id"),
        ({"start": LATEST, "vault_id": "UPPER"}, "vault_id"),
        ({"start": LATEST, "project_id": "a" * 33}, "project_id"),
        ({"start": LATEST, "agent_id": "é"}, "agent_id"),
        ({"start": LATEST, "types": [0]}, "types[0]"),
        ({"start": LATEST, "types": [1, 2, 1]}, "types"),
        ({"start": LATEST, "kinds": [1, 99]}, "kinds[1]"),
        ({"start": LATEST, "kinds": [1] * 8}, "kinds"),
        ({"start": LATEST, "statuses": [0]}, "statuses[0]"),
        ({"start": LATEST, "statuses": [1] * 4}, "statuses"),
        ({"start": LATEST, "heartbeat_interval": {"seconds": 0}}, "heartbeat_interval"),
        ({"start": LATEST, "heartbeat_interval": {"nanos": 999_999_999}}, "heartbeat_interval"),
        ({"start": LATEST, "heartbeat_interval": {"seconds": 61}}, "heartbeat_interval"),
        ({"start": LATEST, "heartbeat_interval": {"seconds": -1}}, "heartbeat_interval"),
        (
            {"start": LATEST, "heartbeat_interval": {"seconds": 60, "nanos": 1}},
            "heartbeat_interval",
        ),
    ],
    ids=str,
)
async def test_a_malformed_request_names_its_field(
    shared: Pilot, fields: dict[str, Any], bad: str
) -> None:
    tenant = await shared.tenant(balance=0)

    found = await refusal(tenant.owner(pb.SubscribeEventsRequest(**fields)))

    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert found.fields == [bad]


async def test_a_request_that_is_no_message_is_refused_after_its_caller(shared: Pilot) -> None:
    tenant = await shared.tenant(balance=0)
    rpc: Any = shared.channel.unary_stream(SUBSCRIBE)
    metadata = (("authorization", tenant.owner.authorization),)

    for sent in (b"\xff\xff\xff", b"\x0a", b"\x0a\x02\xff\xfe"):
        stranger = await refusal(rpc(sent).read())
        owner = await refusal(rpc(sent, metadata=metadata).read())
        assert stranger == Refusal("UNAUTHENTICATED", "CREDENTIAL_MISSING")
        assert owner.violations == (("", "the bytes are not this RPC's request"),)


# --- endings ----------------------------------------------------------------------------


@asynccontextmanager
async def streams_of(tenant: Tenant) -> AsyncIterator[list[Subscriber]]:
    """Open a stream of each scope."""
    async with AsyncExitStack() as stack:
        found = []
        for caller, scope in (
            *((tenant.owner, of(tenant)), (tenant.owner, {"project_id": tenant.project_id})),
            *((tenant.owner, {}), (tenant.owner, {"agent_id": tenant.agent_id})),
            (tenant.agent, {}),
        ):
            subscribed = caller.subscribe(start=LATEST, **scope)
            found.append(await stack.enter_async_context(subscribed))
            await found[-1].read()
        yield found


async def test_a_server_that_leaves_ends_its_streams_resumably(database: str) -> None:
    """Each is told when to come back, and not all at the same time; new ones are refused."""
    async with serving(database) as pilot:
        tenant = await pilot.tenant()
        async with streams_of(tenant) as found:
            await tenant.spend(1)
            for each in found:
                await each.next(1)
            pilot.stopping.set()
            endings = [await each.end() for each in found]
            await pilot.stopped

    assert {(each.code, each.reason) for each in endings} == {("UNAVAILABLE", "SERVER_DRAINING")}
    waits = [each.retry_seconds for each in endings]
    assert len(set(waits)) == len(waits)
    assert all(
        wait is not None and 0 < wait <= calls.RETRY_SECONDS + calls.RESUME_SECONDS_MAX
        for wait in waits
    )
    async with serving(database) as pilot:
        owner = each_on(pilot, tenant.owner)
        assert (await resumed(owner, found[0].token, **of(tenant))).code == "OK"


async def test_a_server_that_leaves_does_not_wait_for_one_that_does_not_read(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ending is given up after a while, and everybody else had theirs at once."""
    monkeypatch.setattr(calls, "ENDING_SECONDS_MAX", 0.5)
    async with serving(database) as pilot:
        tenant = await pilot.tenant()
        async with narrow_channel(pilot) as channel:
            stuck = Client(channel, tenant.owner.credential)
            async with stuck.subscribe(start=EARLIEST, **of(tenant)) as unread:
                await unread.read()
                await spend_many(tenant, 400, metadata=LARGE)
                async with tenant.owner.subscribe(start=LATEST) as reads:
                    await reads.read()
                    pilot.stopping.set()
                    assert (await reads.end()).reason == "SERVER_DRAINING"
                await asyncio.wait_for(pilot.stopped, CALL_SECONDS)
                with suppress(AssertionError):
                    assert (await unread.end()).code in {"UNAVAILABLE", "CANCELLED"}


async def test_a_stream_that_is_old_ends_resumably(database: str) -> None:
    async with serving(database, stream_age=timedelta(seconds=0.5)) as pilot:
        tenant = await pilot.tenant()
        async with streams_of(tenant) as found:
            endings = [await each.end() for each in found]

    assert {(each.code, each.reason) for each in endings} == {("UNAVAILABLE", "STREAM_TOO_OLD")}
    assert len({each.retry_seconds for each in endings}) == len(endings)


@asynccontextmanager
async def an_api_key(
    tenant: Tenant, expires: Timestamp | None
) -> AsyncIterator[tuple[str, Client]]:
    request = accounts_pb2.CreateApiKeyRequest(
        name="Key", permissions=[accounts_pb2.PERMISSION_READ], expire_time=expires
    )
    made = await tenant.owner(request)
    yield made.api_key.id, tenant.owner.with_credential(made.secret)


REVOKED = Refusal("UNAUTHENTICATED", "CREDENTIAL_INVALID")


async def must_end(found: Subscriber) -> None:
    """Wait for the end of a stream whose credential is gone."""
    assert await asyncio.wait_for(found.end(), CALL_SECONDS) == REVOKED


async def test_a_session_that_ends_ends_its_streams(shared: Pilot) -> None:
    """Signed out here, revoked from another session; that one goes on."""
    tenant = await shared.tenant()
    survivor = shared.nobody.with_credential((await another_session(shared, tenant)).credential)
    async with survivor.subscribe(start=LATEST) as stays:
        await stays.read()
        async with tenant.owner.subscribe(start=LATEST) as goes:
            await goes.read()
            session = (await tenant.owner(accounts_pb2.WhoAmIRequest())).session
            await survivor(accounts_pb2.RevokeSessionRequest(session_id=session.id))
            await must_end(goes)
        await tenant.spend(1)
        await stays.next(1)
        await survivor(accounts_pb2.SignOutRequest())
        await must_end(stays)


async def another_session(pilot: Pilot, tenant: Tenant) -> Client:
    _, session = await pilot.user()
    digest = await pilot.pool.fetchval(
        "SELECT id FROM sessions ORDER BY created_at DESC, id DESC LIMIT 1"
    )
    await pilot.pool.execute(
        "UPDATE sessions SET user_id = $1 WHERE id = $2", tenant.user_id, digest
    )
    return session


async def test_an_api_key_that_is_revoked_or_expires_ends_its_streams(shared: Pilot) -> None:
    tenant = await shared.tenant()
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
    async with (
        an_api_key(tenant, None) as (key_id, key),
        an_api_key(tenant, soon) as (_, brief),
        key.subscribe(start=LATEST) as revoked,
        brief.subscribe(start=LATEST) as expires,
    ):
        await revoked.read()
        await expires.read()
        await tenant.owner(accounts_pb2.RevokeApiKeyRequest(api_key_id=key_id))
        await must_end(revoked)
        await must_end(expires)


async def test_an_agents_stream_ends_with_its_key_and_with_the_agent(shared: Pilot) -> None:
    """Revoked, replaced by a new key, the agent deleted, or the project of all of them."""
    tenant = await shared.tenant(balance=0)
    owner, streams = tenant.owner, []
    async with AsyncExitStack() as stack:
        for _ in range(4):
            agent_id, agent = await tenant.another_agent()
            found = await stack.enter_async_context(agent.subscribe(start=LATEST))
            await found.read()
            streams.append((agent_id, found))
        (revoked, first), (replaced, second), (deleted, third), (_, fourth) = streams

        await owner(agents_pb2.RevokeAgentKeyRequest(agent_id=revoked))
        await must_end(first)
        await with_key(owner, replaced)
        await must_end(second)
        await owner(agents_pb2.DeleteAgentRequest(agent_id=deleted))
        await must_end(third)
        await owner(projects_pb2.ArchiveProjectRequest(project_id=tenant.project_id))
        await owner(projects_pb2.DeleteProjectRequest(project_id=tenant.project_id))
        assert (await fourth.end()).reason in {"CREDENTIAL_INVALID", "NOT_FOUND"}


async def test_a_revoked_credential_ends_its_streams_on_another_server(
    shared: Pilot, another: Pilot
) -> None:
    """Those that get changes without a break, too."""
    tenant = await shared.tenant()
    elsewhere = Client(another.channel, tenant.agent.credential)
    done = asyncio.Event()

    async def keep_spending() -> None:
        while not done.is_set():
            request = pb.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id=fresh())
            await tenant.owner(request)

    async with elsewhere.subscribe(start=LATEST) as found:
        await found.read()
        spending = asyncio.create_task(keep_spending())
        await found.read()
        await tenant.owner(agents_pb2.RevokeAgentKeyRequest(agent_id=tenant.agent_id))
        await must_end(found)
        done.set()
        await spending


async def test_credentials_are_checked_on_after_a_check_that_failed(
    shared: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in one check does not leave all streams open for ever."""
    tenant = await shared.tenant()
    failed = asyncio.Event()

    async def fail(*_: object) -> set[str]:
        failed.set()
        raise ZeroDivisionError

    async with tenant.owner.subscribe(start=LATEST) as found:
        await found.read()
        with monkeypatch.context() as broken:
            broken.setattr(Credentials, "still_valid", fail)
            await asyncio.wait_for(failed.wait(), CALL_SECONDS)
        await tenant.owner(accounts_pb2.SignOutRequest())
        await must_end(found)


@pytest.mark.parametrize("how", ["cut", "freeze"])
async def test_without_a_database_all_streams_end_resumably(database: str, how: str) -> None:
    """Nobody can tell who may still read; when it is back they go on where they were."""
    async with proxied(database) as (proxy, url), serving(url) as pilot:
        tenant = await pilot.tenant()
        async with streams_of(tenant) as found:
            getattr(proxy, how)()
            endings = [await each.end() for each in found]
            proxy.mend()

        reasons = {(each.code, each.reason) for each in endings}
        assert reasons == {("UNAVAILABLE", "DATABASE_UNAVAILABLE")}
        assert all(each.retry_seconds is not None for each in endings)
        token = found[0].token
        while (await resumed(tenant.owner, token, **of(tenant))).code == "UNAVAILABLE":
            pass
        async with tenant.owner.subscribe(resume_token=token, **of(tenant)) as again:
            await again.read()
            await tenant.spend(1)
            assert revisions(await again.next(1)) == [2]


async def test_the_stream_of_a_vault_that_is_deleted_ends(shared: Pilot) -> None:
    tenant = await shared.tenant(balance=0)
    async with streams_of(tenant) as (of_vault, of_project, of_user, of_agent, _):
        await tenant.owner(projects_pb2.ArchiveProjectRequest(project_id=tenant.project_id))
        await tenant.owner(projects_pb2.DeleteProjectRequest(project_id=tenant.project_id))

        gone = Refusal("NOT_FOUND", "NOT_FOUND", {"resource": "vault", "id": tenant.vault_id})
        for found in (of_vault, of_project, of_agent):
            assert await found.end() == gone
        made = await tenant.owner(projects_pb2.CreateProjectRequest(name="Next"))
        funding = pb.RecordFundingRequest(
            vault_id=made.project.vault_id, amount=1, request_id=fresh()
        )
        await tenant.owner(funding)
        assert [change.vault_id for change in await of_user.next(1)] == [made.project.vault_id]


async def test_streams_are_limited_for_a_user_and_for_the_server(database: str) -> None:
    """One too many is refused, with what it is of; one that is closed makes room again."""
    async with serving(database, streams_limit=5, streams_per_user_limit=2) as pilot:
        tenants = [await pilot.tenant() for _ in range(3)]
        request = pb.SubscribeEventsRequest(start=LATEST)
        async with AsyncExitStack() as stack:
            streams: list[Subscriber] = []
            for tenant in (*tenants[:2], *tenants):
                subscribed = tenant.owner.subscribe(start=LATEST)
                streams.append(await stack.enter_async_context(subscribed))
                await streams[-1].read()

            mine = await refusal(tenants[0].owner(request))
            assert (mine.code, mine.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            assert mine.retry_seconds is not None
            streams[-1].call.cancel()
            async with asyncio.timeout(CALL_SECONDS):
                await make.until(lambda: pilot.app.streams._open.total() < 5)
            for caller in (tenants[0].owner, tenants[0].agent):
                mine = await refusal(caller(request))
                assert (mine.code, mine.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
                assert mine.metadata == {"resource": "stream", "limit": "2"}
                assert mine.retry_seconds is not None
            assert (await refusal(tenants[2].owner(request))).code == "OK"
        for tenant in tenants:
            while (await refusal(tenant.owner(request))).reason == "OVERLOADED":
                pass
        await must_be_empty(pilot)


async def test_an_agent_leaves_the_streams_of_its_user_to_others(database: str) -> None:
    """One agent's key may have a few; its owner and its siblings are not locked out by it."""
    async with serving(database) as pilot:
        tenant = await pilot.tenant()
        _, sibling = await tenant.another_agent()
        request = pb.SubscribeEventsRequest(start=LATEST)
        async with AsyncExitStack() as stack:
            for _ in range(STREAMS_PER_AGENT_MAX):
                subscribed = await stack.enter_async_context(tenant.agent.subscribe(start=LATEST))
                await subscribed.read()

            refused = await refusal(tenant.agent(request))

            assert refused.reason == "QUOTA_EXCEEDED"
            assert refused.metadata["limit"] == str(STREAMS_PER_AGENT_MAX)
            for other in (tenant.owner, sibling):
                assert (await refusal(other(request))).code == "OK"
        await must_be_empty(pilot)


async def must_be_empty(pilot: Pilot) -> None:
    """Wait until nothing is left of the streams that there were."""
    app = pilot.app
    async with asyncio.timeout(CALL_SECONDS):
        await make.until(lambda: not (app.streams._open or app.feeds._feeds or app.feeds._users))


async def test_a_storm_of_subscribers_leaves_nothing_behind(database: str) -> None:
    """They leave at any moment: no cursor, no place and no connection stays taken."""
    async with serving(database) as pilot:
        tenant = await pilot.tenant()
        await spend_many(tenant, 1_000)
        chance = random.Random(5)  # noqa: S311 - the same storm every time

        async def impatient() -> None:
            async with tenant.owner.subscribe(start=EARLIEST) as found:
                with suppress(TimeoutError):
                    async with asyncio.timeout(chance.random() * 0.3):
                        await found.next(1_001)

        await asyncio.gather(*(impatient() for _ in range(150)))

        await must_be_empty(pilot)
        pool = pilot.app.streams._database.pool
        async with asyncio.timeout(CALL_SECONDS):
            await make.until(lambda: pool.get_idle_size() == pool.get_size())
        assert len(await changes_of(tenant.owner, 1_001)) == 1_001


async def test_spends_go_on_while_subscribers_have_all_of_their_connections(
    database: str,
) -> None:
    """Those who come back after a deploy wait for each other, and for nothing that spends need."""
    async with serving(database) as pilot:
        tenant = await pilot.tenant()
        streams = pilot.app.streams._database
        async with AsyncExitStack() as stack:
            for _ in range(streams.pool.get_max_size()):
                await stack.enter_async_context(streams.transaction())
            by_agent = await tenant.spend(1)
            by_owner = await tenant.owner(
                pb.SpendRequest(agent_id=tenant.agent_id, amount=2, request_id=fresh())
            )
            assert streams.pool.get_idle_size() == 0

    assert [by_agent.revision, by_owner.event.revision] == [2, 3]


SECRET_TEXT = "canary-51bd-do-not-tell"


def failing(*_: object, **__: object) -> Any:
    raise ValueError(SECRET_TEXT)


@pytest.mark.parametrize("place", ["opening", "writing", "reading"])
async def test_a_defect_ends_one_stream_and_tells_nothing_but_where_to_look(
    shared: Pilot,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tenant = await shared.tenant()
    with monkeypatch.context() as broken:
        if place == "opening":
            broken.setattr(wire, "topic", failing)
        elif place == "writing":
            broken.setattr(wire, "written_change", failing)
        else:
            broken.setattr(stream.Subscription, "_read_page", failing)
        async with tenant.owner.subscribe(start=EARLIEST, **of(tenant)) as found:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await found.next(1)

    told = read(caught.value)
    assert (told.code, told.reason, set(told.metadata)) == ("INTERNAL", "INTERNAL", {"error_id"})
    assert SECRET_TEXT not in f"{caught.value.details()} {caught.value.trailing_metadata()!r}"
    assert told.metadata["error_id"] in caplog.text
    assert SECRET_TEXT in caplog.text
    assert len(await changes_of(tenant.owner, 1, **of(tenant))) == 1


async def test_a_stream_that_is_cancelled_by_nobody_does_not_leave_its_caller_waiting(
    shared: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something that it waited for went away: the subscriber resumes."""
    tenant = await shared.tenant()

    async def vanish(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(stream.Subscription, "next", vanish)
    async with tenant.owner.subscribe(start=EARLIEST) as found:
        ending = await found.end()

    assert (ending.code, ending.reason) == ("UNAVAILABLE", "SERVER_DRAINING")
    assert ending.retry_seconds is not None


# --- large, slow, and many --------------------------------------------------------------

LARGE = f'"{"a" * 16_382}"'


@asynccontextmanager
async def narrow_channel(pilot: Pilot) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own, on which little is on its way that was not read."""
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536), ("grpc.x", 1))
    async with grpc.aio.insecure_channel(pilot.address, options=options) as channel:
        yield channel


async def test_messages_stay_small_however_large_the_changes_are(shared: Pilot) -> None:
    """With 16 KiB of metadata each: read behind, read along, and within the bounds."""
    tenant = await shared.tenant()
    bound = 300_000
    async with tenant.owner.subscribe(start=EARLIEST, **of(tenant)) as live:
        await live.next(1)
        await spend_many(tenant, 150, metadata=LARGE)
        along = await live.next(150)
        async with tenant.owner.subscribe(start=EARLIEST, **of(tenant)) as late:
            behind = (await late.next(151))[1:]

    assert along == behind
    assert {change.event.metadata for change in along} == {LARGE}
    sizes = [each.ByteSize() for each in (*live.responses, *late.responses)]
    assert max(sizes) <= bound
    assert max(sizes) > 10 * 16_384


async def test_many_small_changes_share_a_message(shared: Pilot) -> None:
    tenant = await shared.tenant()
    await spend_many(tenant, 3_000)
    async with tenant.owner.subscribe(start=EARLIEST, **of(tenant)) as found:
        await found.next(3_001)

    sizes = [len(response.changes) for response in found.responses]
    assert 100 < max(sizes) <= 1_000
    assert len(sizes) < 40
    assert max(each.ByteSize() for each in found.responses) < 1 << 20


async def test_one_that_does_not_read_misses_nothing_and_delays_nobody(shared: Pilot) -> None:
    """Five thousand changes that fill its window many times over; another reads along."""
    tenant = await shared.tenant()
    padding = f'"{"a" * 1_000}"'
    async with narrow_channel(shared) as channel:
        slow_owner = Client(channel, tenant.owner.credential)
        async with (
            slow_owner.subscribe(start=EARLIEST, **of(tenant)) as slow,
            tenant.owner.subscribe(start=EARLIEST, **of(tenant)) as quick,
        ):
            await slow.read()
            spending = asyncio.create_task(spend_many(tenant, 5_000, metadata=padding))
            assert revisions(await quick.next(5_001)) == count(1, 5_001)
            await spending

            assert revisions(await slow.next(5_001)) == count(1, 5_001)


async def test_one_that_takes_nothing_for_long_is_ended_resumably(
    shared: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads what was on its way, and goes on with the token of that."""
    monkeypatch.setattr(calls, "STALLED_SECONDS", 0.5)
    tenant = await shared.tenant()
    await spend_many(tenant, 600, metadata=LARGE)
    async with narrow_channel(shared) as channel:
        owner = Client(channel, tenant.owner.credential)
        async with owner.subscribe(start=EARLIEST, **of(tenant)) as stuck:
            await stuck.read()
            async with asyncio.timeout(CALL_SECONDS):
                await make.until(lambda: tenant.user_id not in shared.app.streams._open)
            ending = await stuck.end()
        assert (ending.code, ending.reason) == ("UNAVAILABLE", "SUBSCRIBER_STALLED")
        assert ending.retry_seconds is not None
        monkeypatch.undo()
        seen = revisions(stuck.changes)
        rest = await changes_of(owner, 601 - len(seen), resume_token=stuck.token, **of(tenant))
        assert seen + revisions(rest) == count(1, 601)
        assert len(rest) > 0


async def test_a_quiet_vault_does_not_wait_behind_a_large_backlog(shared: Pilot) -> None:
    tenant = await shared.tenant()
    made = await tenant.owner(projects_pb2.CreateProjectRequest(name="Quiet"))
    quiet = made.project.vault_id
    await spend_many(tenant, 6_000)
    await tenant.owner(pb.RecordFundingRequest(vault_id=quiet, amount=1, request_id=fresh()))
    async with tenant.owner.subscribe(start=EARLIEST) as found:
        changes = await found.next(6_002)

    vaults = [change.vault_id for change in changes]
    assert vaults.index(quiet) < 1_500
    own = [change for change in changes if change.vault_id == tenant.vault_id]
    assert revisions(own) == count(1, 6_001)


# --- the reference client ---------------------------------------------------------------


class Following:
    """The reference loop at work, and what it was given."""

    def __init__(self, address: str, credential: str, request: pb.SubscribeEventsRequest) -> None:
        self._options = (
            *reference_client.CHANNEL_OPTIONS,
            *(("grpc.initial_reconnect_backoff_ms", 20), ("grpc.min_reconnect_backoff_ms", 20)),
            ("grpc.max_reconnect_backoff_ms", 100),
        )
        self._address, self._credential, self._request = address, credential, request
        self._came = asyncio.Event()
        self.responses: list[pb.SubscribeEventsResponse] = []
        self.task = asyncio.create_task(self._follow())

    @property
    def seen(self) -> list[int]:
        return [change.revision for each in self.responses for change in each.changes]

    async def _follow(self) -> None:
        address, options = self._address, self._options
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            follow = reference_client.follow(channel, self._credential, self._request)
            async for response in follow:
                self.responses.append(response)
                self._came.set()

    async def until(self, number: int) -> None:
        """Wait until so many changes came."""
        async with asyncio.timeout(CALL_SECONDS):
            while len(self.seen) < number:
                self._came.clear()
                waiting = asyncio.create_task(self._came.wait())
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self.task.done():
                    await self.task

    async def first(self) -> None:
        async with asyncio.timeout(CALL_SECONDS):
            while not self.responses:
                await self._came.wait()

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def test_the_reference_client_goes_on_through_restarts(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server leaves and comes back on the same port, twice, while changes happen."""
    monkeypatch.setattr(calls, "RESUME_SECONDS_MAX", 0.2)
    address = f"127.0.0.1:{free_port()}"
    async with serving(database) as stays:
        tenant = await stays.tenant()
        request = pb.SubscribeEventsRequest(start=EARLIEST, **of(tenant))
        following = Following(address, tenant.owner.credential or "", request)
        for turn in range(3):
            async with serving(database, listen_address=address):
                await tenant.spend(1)
                await following.until(2 + 2 * turn)
            await tenant.spend(1)
        async with serving(database, listen_address=address):
            await following.until(7)
            await following.stop()

    assert following.seen == count(1, 7)


async def test_the_reference_client_goes_on_when_its_connection_is_cut(shared: Pilot) -> None:
    """Cut again and again while changes come: nothing is skipped, nothing comes twice."""
    host, _, port = shared.address.rpartition(":")
    proxy = Proxy(host, int(port))
    listener = await asyncio.start_server(proxy.connect, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    tenant = await shared.tenant()
    request = pb.SubscribeEventsRequest(start=EARLIEST)
    following = Following(address, tenant.owner.credential or "", request)
    async with listener:
        for turn in range(6):
            await following.until(1 + 300 * turn)
            spending = asyncio.create_task(spend_many(tenant, 300))
            proxy.cut()
            proxy.mend()
            await spending
        await following.until(1_801)
        await following.stop()
        proxy.cut()

    assert following.seen == count(1, 1_801)


async def test_the_reference_client_raises_what_would_only_come_again(shared: Pilot) -> None:
    """A revoked credential while it follows, and a token that is none."""
    tenant = await shared.tenant()
    request = pb.SubscribeEventsRequest(start=LATEST)
    following = Following(shared.address, tenant.agent.credential or "", request)
    await following.first()
    await tenant.owner(agents_pb2.RevokeAgentKeyRequest(agent_id=tenant.agent_id))

    assert await refusal(following.task) == REVOKED
    nonsense = pb.SubscribeEventsRequest(resume_token="nonsense")
    asked = Following(shared.address, tenant.owner.credential or "", nonsense)
    assert await refusal(asked.task) == INVALID


async def test_the_reference_client_waits_when_the_server_asks_it_to(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with too many streams, or one of a great age, is tried again."""
    monkeypatch.setattr(calls, "RESUME_SECONDS_MAX", 0.2)
    monkeypatch.setattr(stream, "LIMITED_RETRY_SECONDS", 0.1)
    age = timedelta(seconds=0.3)
    async with serving(database, stream_age=age, streams_limit=1) as pilot:
        tenant = await pilot.tenant()
        request = pb.SubscribeEventsRequest(start=EARLIEST, **of(tenant))
        credential = tenant.owner.credential or ""
        followers = [
            Following(pilot.address, credential, each) for each in (request, copied(request))
        ]
        for _ in range(5):
            await tenant.spend(1)
        for following in followers:
            await following.until(6)
            await following.stop()

    assert [following.seen for following in followers] == [count(1, 6)] * 2


def copied(request: pb.SubscribeEventsRequest) -> pb.SubscribeEventsRequest:
    copy = pb.SubscribeEventsRequest()
    copy.CopyFrom(request)
    return copy


class Unreliable:
    """A channel whose streams all break: at once, or, for a "+", after a response."""

    def __init__(self, script: str) -> None:
        self._script = iter(script)

    def unary_unary(self, *_: Any, **__: Any) -> None:
        """Nobody calls anything but SubscribeEvents here."""

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        async def stream(request: pb.SubscribeEventsRequest, **_: Any) -> AsyncIterator[Any]:
            if next(self._script) == "+":
                yield pb.SubscribeEventsResponse(resume_token=f"{request.resume_token}+")
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing)

        return stream


async def test_the_reference_client_reconnects_with_full_jitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anything up to twice as long after each failure, ten seconds at most, then from anew."""
    ranges: list[tuple[float, float]] = []
    waits: list[float] = []

    def uniform(shortest: float, longest: float) -> float:
        ranges.append((shortest, longest))
        return longest / 4

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(reference_client, "random", SimpleNamespace(uniform=uniform))
    monkeypatch.setattr(reference_client, "asyncio", SimpleNamespace(sleep=sleep))
    channel: Any = Unreliable("---------+-+")
    request = pb.SubscribeEventsRequest(resume_token="0")
    following = reference_client.follow(channel, "pk_", request)

    tokens = [(await anext(following)).resume_token for _ in range(2)]

    longest = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 0.2, 0.4]
    assert ranges == [(0, each) for each in longest]
    assert waits == [each / 4 for each in longest]
    assert tokens == ["0+", "0++"]


async def test_a_poll_is_shared_by_all_who_follow(
    shared: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty streams of one vault: each change is read from the database once for all."""
    tenant = await shared.tenant()
    real, reads = stream_db.select_updates, 0

    async def counted(*arguments: Any) -> Any:
        nonlocal reads
        found = await real(*arguments)
        reads += sum(map(len, found.values()))
        return found

    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(tenant.owner.subscribe(start=LATEST, **of(tenant)))
            for _ in range(60)
        ]
        for found in streams:
            await found.read()
        monkeypatch.setattr(stream_db, "select_updates", counted)
        for _ in range(20):
            await tenant.spend(1)
        for found in streams:
            assert revisions(await found.next(20)) == count(2, 21)
        monkeypatch.undo()

    assert reads == 20


async def test_every_way_in_which_a_stream_ends_resumably_is_unavailable() -> None:
    resumable = {
        *(errors.StreamTooOld, errors.SubscriberStalled, errors.ServerDraining),
        errors.DatabaseUnavailable,
    }
    of_no_stream = {errors.ChainUnavailable}
    assert {
        error for error, code in STATUS_CODES.items() if code is grpc.StatusCode.UNAVAILABLE
    } == resumable | of_no_stream
