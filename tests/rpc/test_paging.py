"""Pages: nothing twice, nothing left out, whatever is written while they are read."""

import base64
import itertools
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.message import Message

from pilot_grpc.gen.pilot.v1 import accounts_pb2, agents_pb2, projects_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from tests import make
from tests.rpc.serving import Client, Pilot, Tenant, fresh, new_agent, refusal, serving

Write = Callable[[], Awaitable[object]]


async def pages(
    caller: Client, request: Any, field: str, between: Write | None = None
) -> list[list[Any]]:
    """Read a list to its end, and write something after each of the first pages."""
    read: list[list[Any]] = []
    while True:
        page = await caller(request)
        read.append(list(getattr(page, field)))
        if not page.next_page_token:
            return read
        request.page_token = page.next_page_token
        if between is not None and len(read) <= 4:
            await between()


def joined(read: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(read))


async def events_of_every_kind(tenant: Tenant, agent: Client) -> None:
    """Confirmed, declined, held, captured, released, refunded, funded, pending, failed."""
    spent = (await agent(pb.SpendRequest(amount=10, request_id=fresh()))).event
    await agent(pb.SpendRequest(amount=10**13, request_id=fresh()))
    holds = [
        (await agent(pb.AuthorizeSpendRequest(amount=5, request_id=fresh()))).event.id
        for _ in range(3)
    ]
    await agent(pb.CaptureSpendRequest(event_id=holds[0], amount=3, request_id=fresh()))
    await agent(pb.ReleaseSpendRequest(event_id=holds[1], request_id=fresh()))
    await tenant.owner(pb.RefundRequest(event_id=spent.id, amount=4, request_id=fresh()))
    await tenant.fund(7)
    for settle in (None, pb.ConfirmFundingRequest, pb.FailFundingRequest):
        credit = await tenant.owner(
            pb.RecordFundingRequest(
                vault_id=tenant.vault_id, amount=9, pending=True, request_id=fresh()
            )
        )
        if settle is not None:
            await tenant.owner(settle(event_id=credit.event.id, request_id=fresh()))


FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "vault": {"vault_id": True},
    "agent": {"agent_id": True},
    "vault and agent": {"vault_id": True, "agent_id": True},
    "type": {"types": [pb.EVENT_TYPE_SPEND]},
    "types": {"types": [pb.EVENT_TYPE_SPEND, pb.EVENT_TYPE_FUNDING]},
    "kind": {"kinds": [pb.EVENT_KIND_CREDIT]},
    "kinds": {"kinds": [pb.EVENT_KIND_REFUND, pb.EVENT_KIND_METERED]},
    "status": {"statuses": [pb.EVENT_STATUS_FAILED]},
    "statuses": {"statuses": [pb.EVENT_STATUS_PENDING, pb.EVENT_STATUS_CONFIRMED]},
    "start": {"start_time": True},
    "end": {"end_time": True},
    "all": {
        "vault_id": True,
        "agent_id": True,
        "types": [pb.EVENT_TYPE_SPEND],
        "kinds": [pb.EVENT_KIND_METERED],
        "statuses": [pb.EVENT_STATUS_CONFIRMED, pb.EVENT_STATUS_FAILED],
        "start_time": True,
        "end_time": True,
    },
    "what never goes together": {
        "types": [pb.EVENT_TYPE_FUNDING],
        "kinds": [pb.EVENT_KIND_METERED],
    },
}


def allowed(event: pb.Event, wanted: pb.ListEventsRequest) -> bool:
    """Filter in Python, as the request should."""
    created = event.create_time.ToDatetime()
    return (
        (not wanted.vault_id or event.vault_id == wanted.vault_id)
        and (not wanted.agent_id or event.agent_id == wanted.agent_id)
        and (not wanted.types or event.type in wanted.types)
        and (not wanted.kinds or event.kind in wanted.kinds)
        and (not wanted.statuses or event.status in wanted.statuses)
        and (not wanted.HasField("start_time") or created >= wanted.start_time.ToDatetime())
        and (not wanted.HasField("end_time") or created < wanted.end_time.ToDatetime())
    )


async def test_events_are_listed_once_each_whatever_is_written_meanwhile(pilot: Pilot) -> None:
    """Under every filter, by owner and agent, in pages of three, with new events in between."""
    tenant = await pilot.tenant()
    _, beside = await tenant.another_agent()
    made = await tenant.owner(projects_pb2.CreateProjectRequest(name="Another"))
    elsewhere = await new_agent(tenant.owner, made.project.id)
    strangers = await pilot.tenant()
    for agent in (tenant.agent, beside, tenant.agent):
        await events_of_every_kind(tenant, agent)
    await tenant.owner(pb.SpendRequest(agent_id=elsewhere, amount=1, request_id=fresh()))
    await events_of_every_kind(strangers, strangers.agent)

    for caller, (name, chosen) in itertools.product((tenant.owner, tenant.agent), FILTERS.items()):
        (existing,) = await pages(caller, pb.ListEventsRequest(page_size=500), "events")
        given = {
            "vault_id": tenant.vault_id,
            "agent_id": tenant.agent_id,
            "start_time": existing[-3].create_time,
            "end_time": existing[2].create_time,
        }
        request = pb.ListEventsRequest(
            **{key: given.get(key, value) for key, value in chosen.items()}, page_size=3
        )

        read = await pages(caller, request, "events", lambda: tenant.spend(1))

        expected = [event for event in existing if allowed(event, request)]
        assert joined(read) == expected, name
        assert all(len(page) == 3 for page in read[:-1]), name
        assert expected or caller is tenant.agent or name == "what never goes together"


async def test_events_of_one_moment_are_listed_once_each(database: str) -> None:
    """A batch has one time: within it, the ids order the pages."""
    clock = make.HandClock(datetime(2031, 1, 1, tzinfo=UTC))
    async with serving(database, clock) as pilot:
        tenant = await pilot.tenant()
        spends = [pb.SpendRequest(amount=1, request_id=fresh()) for _ in range(25)]
        batch = await tenant.agent(pb.BatchSpendRequest(spends=spends))

        read = await pages(
            tenant.agent, pb.ListEventsRequest(page_size=4), "events", lambda: tenant.spend(1)
        )

        assert len({event.create_time.ToDatetime() for event in joined(read)}) == 1
        assert joined(read) == list(reversed(batch.events))


async def list_of(tenant: Tenant, name: str) -> tuple[Any, str, Write]:
    """A list, the field of its rows, and how to add one."""

    async def project() -> None:
        await tenant.owner(projects_pb2.CreateProjectRequest(name=fresh()))

    async def agent() -> None:
        await tenant.owner(
            agents_pb2.CreateAgentRequest(project_id=tenant.project_id, name=fresh())
        )

    async def api_key() -> None:
        await tenant.api_key("read")

    lists: dict[str, tuple[Any, str, Write]] = {
        "projects": (projects_pb2.ListProjectsRequest(), "projects", project),
        "agents": (agents_pb2.ListAgentsRequest(project_id=tenant.project_id), "agents", agent),
        "api_keys": (accounts_pb2.ListApiKeysRequest(), "api_keys", api_key),
    }
    return lists[name]


@pytest.mark.parametrize("name", ["projects", "agents", "api_keys"])
async def test_a_list_is_read_once_each_whatever_is_written_meanwhile(
    pilot: Pilot, name: str
) -> None:
    """Newest first; what is added in between is for the next reading."""
    tenant, stranger = await pilot.tenant(), await pilot.tenant()
    for owner in (tenant, stranger):
        _, _, add = await list_of(owner, name)
        for _ in range(11):
            await add()
    request, field, add = await list_of(tenant, name)
    request.page_size = 500
    (existing,) = await pages(tenant.owner, request, field)

    request.page_size, request.page_token = 3, ""
    read = await pages(tenant.owner, request, field, add)

    assert joined(read) == existing
    assert all(len(page) == 3 for page in read[:-1])
    times = [row.create_time.ToDatetime() for row in existing]
    assert times == sorted(times, reverse=True)
    assert len(existing) in {11, 12}


async def test_sessions_are_read_once_each_whatever_is_written_meanwhile(pilot: Pilot) -> None:
    """A sign-in and a revocation between every two pages move no other session."""
    user_id, owner = await pilot.user()
    add = "INSERT INTO sessions (id, token, user_id, expires_at)"
    add += " VALUES ($1, $2, $3, clock_timestamp() + interval '1 day')"

    async def sign_in() -> None:
        number = next(numbers)
        await pilot.pool.execute(add, f"s{number}", f"{number:064x}", user_id)

    numbers = itertools.count()
    for _ in range(10):
        await sign_in()
    request = accounts_pb2.ListSessionsRequest(page_size=500)
    (existing,) = await pages(owner, request, "sessions")

    async def revoke_the_newest_and_sign_in() -> None:
        await pilot.pool.execute("DELETE FROM sessions WHERE id = $1", existing[0].id)
        await sign_in()

    request.page_size = 3
    read = await pages(owner, request, "sessions", revoke_the_newest_and_sign_in)

    assert joined(read) == existing
    assert [session.current for session in existing] == [False] * 10 + [True]


async def test_a_page_has_fifty_rows_unless_asked_and_five_hundred_at_most(pilot: Pilot) -> None:
    """A page that is full to the last row is followed by nothing."""
    tenant = await pilot.tenant(balance=0)
    spends = [pb.SpendRequest(amount=1, request_id=fresh()) for _ in range(600)]
    await tenant.agent(pb.BatchSpendRequest(spends=spends))

    async def sizes(page_size: int) -> list[int]:
        request = pb.ListEventsRequest(page_size=page_size)
        return [len(page) for page in await pages(tenant.agent, request, "events")]

    assert await sizes(0) == [50] * 12
    assert await sizes(500) == [500, 100]
    assert await sizes(501) == [500, 100]
    assert await sizes(2**31 - 1) == [500, 100]
    assert await sizes(300) == [300, 300]


async def test_a_page_of_large_events_fits_the_message_that_clients_accept(pilot: Pilot) -> None:
    """Fewer rows come then, and the rest on the pages after."""
    tenant = await pilot.tenant()
    large = json.dumps("x" * 16_000)
    batches = [
        [pb.SpendRequest(amount=1, request_id=fresh(), metadata=large) for _ in range(150)]
        for _ in range(2)
    ]
    for spends in batches:
        await tenant.agent(pb.BatchSpendRequest(spends=spends))

    read = await pages(tenant.agent, pb.ListEventsRequest(page_size=500), "events")

    assert len(read) > 1
    assert len({event.id for event in joined(read)}) == len(joined(read)) == 300


async def some_token(caller: Client, request: Any) -> str:
    copy = type(request)()
    copy.CopyFrom(request)
    token: str = (await caller(copy)).next_page_token
    assert token
    return token


async def tenant_with_pages(pilot: Pilot) -> Tenant:
    tenant = await pilot.tenant()
    for amount in (1, 2, 3):
        await tenant.spend(amount, provider=f"p{amount}")
        await tenant.owner(projects_pb2.CreateProjectRequest(name="Project"))
        await tenant.another_agent()
        await tenant.api_key("read")
    for address in (make.WALLET, make.OTHER_WALLET):
        await tenant.owner(
            agents_pb2.AddRecipientRequest(agent_id=tenant.agent_id, address=address)
        )
    return tenant


def paged_requests(tenant: Tenant) -> list[Any]:
    """Requests that have a second page, all different."""
    now: dict[str, Any] = {
        "start_time": datetime.now(UTC) - timedelta(days=1),
        "end_time": datetime.now(UTC) + timedelta(days=1),
    }
    vault_id, agent_id = tenant.vault_id, tenant.agent_id
    by_provider = pb.SummarizeSpendRequest(
        vault_id=vault_id, **now, group_by=[pb.SPEND_DIMENSION_PROVIDER]
    )
    return [
        pb.ListEventsRequest(),
        pb.ListEventsRequest(vault_id=vault_id),
        pb.ListEventsRequest(agent_id=agent_id),
        pb.ListEventsRequest(types=[pb.EVENT_TYPE_SPEND]),
        pb.ListEventsRequest(kinds=[pb.EVENT_KIND_METERED]),
        pb.ListEventsRequest(statuses=[pb.EVENT_STATUS_CONFIRMED]),
        pb.ListEventsRequest(start_time=now["start_time"]),
        pb.ListEventsRequest(end_time=now["end_time"]),
        by_provider,
        pb.VerifyLedgerRequest(vault_id=vault_id),
        projects_pb2.ListProjectsRequest(),
        agents_pb2.ListAgentsRequest(project_id=tenant.project_id),
        agents_pb2.ListRecipientsRequest(agent_id=agent_id),
        accounts_pb2.ListApiKeysRequest(),
    ]


async def test_a_token_continues_its_own_request_only(pilot: Pilot) -> None:
    """With another filter or on another RPC it is refused; only the page's size may change."""
    tenant = await tenant_with_pages(pilot)
    requests = paged_requests(tenant)
    for request in requests:
        request.page_size = 1
    tokens = [await some_token(tenant.owner, request) for request in requests]

    for (at, request), (of, token) in itertools.product(enumerate(requests), enumerate(tokens)):
        request.page_token = token
        found = await refusal(tenant.owner(request))
        if at == of:
            assert found.code == "OK"
            request.page_size = 2
            assert (await refusal(tenant.owner(request))).code == "OK"
            request.page_size = 1
        else:
            assert (found.code, found.fields) == ("INVALID_ARGUMENT", ["page_token"])


async def test_a_page_of_less_than_nothing_is_refused(pilot: Pilot) -> None:
    tenant = await pilot.tenant()

    for request in (*paged_requests(tenant), accounts_pb2.ListSessionsRequest()):
        request.page_size = -1
        found = await refusal(tenant.owner(request))
        assert (found.code, found.fields) == ("INVALID_ARGUMENT", ["page_size"])


async def test_a_token_gives_nobody_the_rows_of_another(pilot: Pilot) -> None:
    """Two users ask the same: with the other's token each reads on in what is their own."""
    one, other = await tenant_with_pages(pilot), await tenant_with_pages(pilot)
    request = pb.ListEventsRequest(page_size=1)
    mine = joined(await pages(other.owner, pb.ListEventsRequest(page_size=500), "events"))

    request.page_token = await some_token(one.owner, request)
    request.page_size = 500
    read = await other.owner(request)

    assert set(map(str, read.events)) <= set(map(str, mine))
    assert {event.vault_id for event in read.events} <= {other.vault_id}


def encoded(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


NONSENSE = [
    "nonsense",
    "AAAA",
    "=",
    "é",
    "\x00",
    "-1",
    *map(encoded, (0, None, True, "text", [], [[]], {}, {"a": 1}, [None])),
    base64.urlsafe_b64encode(b"[" * 768).decode(),
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
]

# A token shows what it holds; whoever writes one must get no further than its own pages.
FORGED_PLACES: list[list[Any]] = [
    [],
    [1],
    ["2026-01-01T00:00:00+00:00"],
    ["2026-01-01T00:00:00+00:00", "c1", "c2"],
    ["2026-01-01T00:00:00", "c1"],
    ["2026-01-01T00:00:00+01:00", "c1"],
    ["0001-01-01T00:00:00+23:59", "c1"],
    ["yesterday", "c1"],
    [None, "c1"],
    [0, "c1"],
    ["2026-01-01T00:00:00+00:00", "a\x00"],
    ["2026-01-01T00:00:00+00:00", "\ud800"],
    ["2026-01-01T00:00:00+00:00", None],
    ["2026-01-01T00:00:00+00:00", 1],
    ["2026-01-01T00:00:00+00:00", ["c1"]],
    [-1],
    [2**31],
    [10**30],
    [1.5],
    [float("inf")],
    [True],
    ["a\x00", "", "", ""],
    ["", "", "", "\ud800"],
    ["", "", "", None],
    ["changes", -1, None, ""],
    ["changes", 2**63, None, ""],
    ["changes", float("inf"), None, ""],
    ["changes", "1", None, ""],
    ["changes", True, None, ""],
    ["events", 0, "2026-01-01T00:00:00", "c1"],
    ["events", 0, "2026-01-01T00:00:00+00:00", "\x00"],
    ["events", 0, "2026-01-01T00:00:00+00:00", None],
    ["agents", 0, None, "\x00"],
    ["agents", 0, None, {"a": 1}],
    ["nothing", 0, None, ""],
    [["changes"], 0, None, ""],
]


async def test_a_token_that_is_none_is_refused(pilot: Pilot) -> None:
    """Garbage, and what was written by hand in the form of a token: never a defect."""
    tenant = await tenant_with_pages(pilot)
    requests: list[Message] = [*paged_requests(tenant), accounts_pb2.ListSessionsRequest()]

    for request in requests:
        binding = await binding_of(tenant, request)
        forged = [encoded([binding, *place]) for place in FORGED_PLACES]
        for token in (*NONSENSE, *forged, "A" * 1_025, "A" * 100_000):
            request.page_token = token  # type: ignore[attr-defined]
            found = await refusal(tenant.owner(request))
            assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST"), token
            assert set(found.fields) == {"page_token"}


async def binding_of(tenant: Tenant, request: Any) -> object:
    """What a token is bound to, from a token of the request itself."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.page_size = 1
    token = (await tenant.owner(copy)).next_page_token
    if not token:
        return f"{request.DESCRIPTOR.name} "
    return json.loads(base64.urlsafe_b64decode(token))[0]
