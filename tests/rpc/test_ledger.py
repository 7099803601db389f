"""Money on the wire: a repeated request is one request, and the reads add up."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from pilot_grpc.gen.pilot.v1 import agents_pb2, budgets_pb2, projects_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from tests import make
from tests.rpc.serving import (
    METHODS,
    Client,
    Pilot,
    Refusal,
    Tenant,
    fresh,
    new_agent,
    refusal,
    serving,
    with_key,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

BALANCE = 1_000
PER_TX_LIMIT = 400


async def new_tenant(shared: Pilot) -> Tenant:
    tenant = await shared.tenant(balance=BALANCE, per_tx_limit=PER_TX_LIMIT)
    await tenant.owner(
        agents_pb2.UpdateAgentRequest(
            agent_id=tenant.agent_id,
            provider="openai",
            model="gpt-4o",
            update_mask=FieldMask(paths=["provider", "model"]),
        )
    )
    return tenant


async def pending_credit(tenant: Tenant) -> str:
    answer = await tenant.owner(
        pb.RecordFundingRequest(
            vault_id=tenant.vault_id, amount=70, pending=True, request_id=fresh()
        )
    )
    event_id: str = answer.event.id
    return event_id


async def spend(_: Tenant) -> Message:
    return pb.SpendRequest(amount=30, request_id=fresh(), metadata='{"tokens": 12}')


async def declined_spend(_: Tenant) -> Message:
    return pb.SpendRequest(amount=PER_TX_LIMIT + 1, request_id=fresh())


async def unfunded_spend(tenant: Tenant) -> Message:
    await tenant.hold(PER_TX_LIMIT)
    await tenant.spend(PER_TX_LIMIT)
    return pb.SpendRequest(amount=PER_TX_LIMIT, request_id=fresh())


async def hold(_: Tenant) -> Message:
    return pb.AuthorizeSpendRequest(amount=30, request_id=fresh(), model="o3", ttl={"seconds": 60})


async def declined_hold(_: Tenant) -> Message:
    return pb.AuthorizeSpendRequest(amount=PER_TX_LIMIT + 1, request_id=fresh())


async def capture(tenant: Tenant) -> Message:
    event_id = (await tenant.hold(30)).id
    return pb.CaptureSpendRequest(event_id=event_id, amount=20, request_id=fresh())


async def release(tenant: Tenant) -> Message:
    return pb.ReleaseSpendRequest(event_id=(await tenant.hold(30)).id, request_id=fresh())


async def batch(tenant: Tenant) -> Message:
    spends = (await spend(tenant), await declined_spend(tenant), await spend(tenant))
    return pb.BatchSpendRequest(spends=spends)  # type: ignore[arg-type]


async def refund(tenant: Tenant) -> Message:
    event_id = (await tenant.spend(30)).id
    return pb.RefundRequest(event_id=event_id, amount=20, request_id=fresh(), metadata='"why"')


async def funding(tenant: Tenant) -> Message:
    return pb.RecordFundingRequest(
        vault_id=tenant.vault_id, amount=70, request_id=fresh(), tx_hash="5" * 64
    )


async def pending_funding(tenant: Tenant) -> Message:
    return pb.RecordFundingRequest(
        vault_id=tenant.vault_id, amount=70, request_id=fresh(), pending=True
    )


async def confirm(tenant: Tenant) -> Message:
    return pb.ConfirmFundingRequest(event_id=await pending_credit(tenant), request_id=fresh())


async def fail(tenant: Tenant) -> Message:
    return pb.FailFundingRequest(event_id=await pending_credit(tenant), request_id=fresh())


Prepare = Callable[[Tenant], Awaitable[Message]]

OF_AGENT: list[Prepare] = [
    *(spend, declined_spend, unfunded_spend, hold, declined_hold, capture, release, batch)
]
OF_VAULT: list[Prepare] = [refund, funding, pending_funding, confirm, fail]
MOVES_MONEY = [*OF_AGENT, *OF_VAULT]


def caller_of(prepare: Prepare, tenant: Tenant) -> Client:
    return tenant.agent if prepare in OF_AGENT else tenant.owner


def events_of(answer: Any) -> list[pb.Event]:
    return list(answer.events) if isinstance(answer, pb.BatchSpendResponse) else [answer.event]


def answer_to(request: Message, sent: bytes) -> Any:
    method = METHODS[request.DESCRIPTOR.name]
    return getattr(pb, method.output_type.name).FromString(sent)


async def change_everything(tenant: Tenant, events: Iterable[pb.Event]) -> None:
    """Settle or refund what was answered, and change whatever an answer was made from."""
    owner, agent_id = tenant.owner, tenant.agent_id
    for event in events:
        if event.status == pb.EVENT_STATUS_PENDING and event.type == pb.EVENT_TYPE_SPEND:
            await owner(pb.CaptureSpendRequest(event_id=event.id, amount=1, request_id=fresh()))
        elif event.status == pb.EVENT_STATUS_PENDING:
            await owner(pb.ConfirmFundingRequest(event_id=event.id, request_id=fresh()))
        elif event.kind == pb.EVENT_KIND_METERED and event.status == pb.EVENT_STATUS_CONFIRMED:
            await owner(pb.RefundRequest(event_id=event.id, amount=1, request_id=fresh()))
    await tenant.fund(5_000)
    await owner(
        agents_pb2.UpdateAgentRequest(
            agent_id=agent_id,
            name="Renamed",
            provider="anthropic",
            update_mask=FieldMask(paths=["name", "provider", "model"]),
        )
    )
    await owner(
        budgets_pb2.SetBudgetRuleRequest(
            agent_id=agent_id, per_tx_limit=10**6, daily_limit=10**6, monthly_limit=10**6
        )
    )
    await owner(agents_pb2.PauseAgentRequest(agent_id=agent_id))
    await owner(projects_pb2.PauseProjectRequest(project_id=tenant.project_id))


@pytest.mark.parametrize("prepare", MOVES_MONEY, ids=lambda each: each.__name__)
async def test_a_repetition_gets_the_bytes_of_the_first_answer(
    shared: Pilot, another: Pilot, prepare: Prepare
) -> None:
    """Whatever has changed since, whoever asks, on every server; and it changes nothing."""
    tenant = await new_tenant(shared)
    request = await prepare(tenant)
    caller = caller_of(prepare, tenant)

    first = await caller.raw(request)
    await change_everything(tenant, events_of(answer_to(request, first)))
    before = await shared.dump()
    again = [
        await caller.raw(request),
        await another.nobody.with_credential(caller.credential).raw(request),
    ]

    assert again == [first, first]
    assert await shared.dump() == before


@pytest.mark.parametrize("prepare", OF_AGENT, ids=lambda each: each.__name__)
async def test_the_owner_may_repeat_what_the_agent_asked(shared: Pilot, prepare: Prepare) -> None:
    """The scope is the agent, whoever calls; the agent may name itself or not."""
    tenant = await new_tenant(shared)
    request = await prepare(tenant)
    first = await tenant.agent(request)

    named = type(request)()
    named.CopyFrom(request)
    if isinstance(named, (pb.SpendRequest, pb.AuthorizeSpendRequest)):
        named.agent_id = tenant.agent_id
    elif isinstance(named, pb.BatchSpendRequest):
        for each in named.spends:
            each.agent_id = tenant.agent_id
    before = await shared.dump()
    by_owner = await tenant.owner(named)
    by_agent = await tenant.agent(named)

    assert by_agent == first
    assert [event.id for event in events_of(by_owner)] == [event.id for event in events_of(first)]
    assert await shared.dump() == before


@pytest.mark.parametrize("prepare", MOVES_MONEY, ids=lambda each: each.__name__)
async def test_concurrent_repetitions_are_one(
    shared: Pilot, another: Pilot, prepare: Prepare
) -> None:
    """Ten at once on each of two servers: the same bytes for all, and one effect."""
    tenant = await new_tenant(shared)
    request = await prepare(tenant)
    caller = caller_of(prepare, tenant)
    elsewhere = another.nobody.with_credential(caller.credential)
    changes = "SELECT count(*) FROM event_changes"
    before = await shared.pool.fetchval(changes)

    answers = await asyncio.gather(
        *(each.raw(request) for each in (caller, elsewhere) for _ in range(10))
    )

    assert len(set(answers)) == 1
    made = len(events_of(answer_to(request, answers[0])))
    assert await shared.pool.fetchval(changes) == before + made


async def test_a_spend_of_a_batch_is_a_spend_of_its_own(shared: Pilot) -> None:
    """It can be repeated alone, or in another batch, and stays what it was."""
    tenant = await new_tenant(shared)
    request = await batch(tenant)
    assert isinstance(request, pb.BatchSpendRequest)
    alone = await tenant.agent(request.spends[1])

    events = (await tenant.agent(request)).events
    reversed_events = (
        await tenant.agent(pb.BatchSpendRequest(spends=list(reversed(request.spends))))
    ).events

    assert events[1] == alone.event
    assert list(reversed_events) == list(reversed(events))
    assert (await tenant.agent(request.spends[0])).event == events[0]


# What is sent otherwise under the same request_id, and the fields that the refusal names.
OTHERWISE: list[tuple[Prepare, dict[str, Any], str]] = [
    (spend, {"amount": 31}, "amount"),
    (spend, {"metadata": '{"tokens":12}'}, "metadata"),
    (spend, {"provider": "openai"}, "provider"),
    (spend, {"amount": 31, "model": "o3"}, "amount,model"),
    (declined_spend, {"amount": 1}, "amount"),
    (hold, {"ttl": {"seconds": 61}}, "ttl"),
    (hold, {"amount": 29, "model": "o1"}, "amount,model"),
    (capture, {"amount": 19}, "amount"),
    (refund, {"amount": 19}, "amount"),
    (refund, {"metadata": '"because"'}, "metadata"),
    (funding, {"amount": 71}, "amount"),
    (funding, {"tx_hash": "6" * 64}, "tx_hash"),
    (funding, {"pending": True}, "pending"),
    (pending_funding, {"pending": False}, "pending"),
]


@pytest.mark.parametrize(
    ("prepare", "changed", "fields"),
    OTHERWISE,
    ids=[f"{each[0].__name__}-{each[2]}" for each in OTHERWISE],
)
async def test_another_request_under_a_used_id_names_what_differs(
    shared: Pilot, prepare: Prepare, changed: dict[str, Any], fields: str
) -> None:
    tenant = await new_tenant(shared)
    request = await prepare(tenant)
    caller = caller_of(prepare, tenant)
    await caller(request)
    kept = {field.name: value for field, value in request.ListFields() if field.name not in changed}
    before = await shared.dump()

    found = await refusal(caller(type(request)(**{**kept, **changed})))

    reused = {"request_id": kept["request_id"], "fields": fields}
    assert found == Refusal("ALREADY_EXISTS", "REQUEST_ID_REUSED", reused)
    assert await shared.dump() == before


@pytest.mark.parametrize(
    "prepare", [capture, release, refund, confirm, fail], ids=lambda each: each.__name__
)
async def test_another_event_under_a_used_id_is_named(shared: Pilot, prepare: Prepare) -> None:
    tenant = await new_tenant(shared)
    request, other = await prepare(tenant), await prepare(tenant)
    caller = caller_of(prepare, tenant)
    await caller(request)

    other.request_id = request.request_id  # type: ignore[attr-defined]
    found = await refusal(caller(other))

    assert (found.reason, found.metadata["fields"]) == ("REQUEST_ID_REUSED", "event_id")


async def on_every_rpc(tenant: Tenant, request_id: str, rpcs: list[Prepare]) -> list[Message]:
    requests = [await prepare(tenant) for prepare in rpcs]
    for request in requests:
        if isinstance(request, pb.BatchSpendRequest):
            request.spends[2].request_id = request_id
        else:
            request.request_id = request_id  # type: ignore[attr-defined]
    return requests


@pytest.mark.parametrize("prepare", MOVES_MONEY, ids=lambda each: each.__name__)
async def test_all_rpcs_of_a_scope_share_their_ids(shared: Pilot, prepare: Prepare) -> None:
    """Under an id that another RPC answered, each is refused and names `rpc`."""
    tenant = await new_tenant(shared)
    scope: list[Prepare] = [*OF_VAULT]
    if prepare in OF_AGENT:
        scope = [spend, hold, capture, release]
    request = await prepare(tenant)
    first = request.spends[0] if isinstance(request, pb.BatchSpendRequest) else request
    request_id: str = first.request_id  # type: ignore[attr-defined]
    await caller_of(prepare, tenant)(request)
    await tenant.fund(5_000)
    others = [
        each
        for each in await on_every_rpc(tenant, request_id, scope)
        if type(each) is not type(first)
    ]
    before = await shared.dump()

    for other in others:
        found = await refusal(tenant.owner(of_agent(other, tenant)))
        reused = {"request_id": request_id, "fields": "rpc"}
        assert found == Refusal("ALREADY_EXISTS", "REQUEST_ID_REUSED", reused), type(other)
    assert len(others) >= 3
    assert await shared.dump() == before


def of_agent(request: Message, tenant: Tenant) -> Message:
    if isinstance(request, (pb.SpendRequest, pb.AuthorizeSpendRequest)):
        request.agent_id = tenant.agent_id
    return request


async def test_a_batch_with_a_used_id_is_refused_whole(shared: Pilot) -> None:
    """One of three was asked otherwise before: nothing of the batch happens."""
    tenant = await new_tenant(shared)
    request = await batch(tenant)
    assert isinstance(request, pb.BatchSpendRequest)
    await tenant.spend(1, request_id=request.spends[2].request_id)
    before = await shared.dump()

    found = await refusal(tenant.agent(request))

    assert found.metadata == {
        "request_id": request.spends[2].request_id,
        "fields": "amount,metadata",
    }
    assert await shared.dump() == before


async def test_two_scopes_do_not_share_their_ids(shared: Pilot) -> None:
    """Two agents of a vault, the vault itself, and its user's Create: four requests, one id."""
    tenant = await new_tenant(shared)
    _, beside = await tenant.another_agent()

    answers = [
        await tenant.agent(pb.SpendRequest(amount=1, request_id="same")),
        await beside(pb.SpendRequest(amount=2, request_id="same")),
        await tenant.owner(
            pb.RecordFundingRequest(vault_id=tenant.vault_id, amount=3, request_id="same")
        ),
    ]
    made = await tenant.owner(projects_pb2.CreateProjectRequest(name="Project", request_id="same"))

    assert [answer.event.amount for answer in answers] == [-1, -2, 3]
    assert made.project.id


async def test_errors_do_not_stick_to_an_id(shared_database: str) -> None:
    """What was refused under an id is decided anew under the same id, once it is right."""
    async with serving(shared_database, open_holds_limit=1) as strict:
        tenant = await new_tenant(strict)
        owner, agent_id = tenant.owner, tenant.agent_id
        held = await tenant.hold(30)
        spent = await tenant.spend(30)
        await owner(
            pb.RecordFundingRequest(
                vault_id=tenant.vault_id, amount=1, request_id=fresh(), tx_hash="7" * 64
            )
        )
        taken = {"vault_id": tenant.vault_id, "amount": 1, "request_id": "fund"}
        pending = [await pending_credit(tenant) for _ in range(2)]
        good = pb.SpendRequest(agent_id=agent_id, amount=1, request_id="batch")
        steps: list[tuple[Message, str, Message]] = [
            (
                pb.SpendRequest(agent_id=agent_id, amount=1, request_id="s", recipient="1" * 32),
                "RECIPIENT_UNSUPPORTED",
                pb.SpendRequest(agent_id=agent_id, amount=1, request_id="s"),
            ),
            (
                pb.BatchSpendRequest(
                    spends=[good, pb.SpendRequest(agent_id="no", amount=1, request_id="b")]
                ),
                "NOT_FOUND",
                pb.BatchSpendRequest(spends=[good]),
            ),
            (
                pb.CaptureSpendRequest(event_id=held.id, amount=31, request_id="c"),
                "CAPTURE_EXCEEDS_HOLD",
                pb.CaptureSpendRequest(event_id=held.id, amount=30, request_id="c"),
            ),
            (
                pb.RefundRequest(event_id=spent.id, amount=31, request_id="r"),
                "REFUND_EXCEEDS_SPEND",
                pb.RefundRequest(event_id=spent.id, amount=30, request_id="r"),
            ),
            (
                pb.RecordFundingRequest(**taken, tx_hash="7" * 64),  # type: ignore[arg-type]
                "TX_HASH_TAKEN",
                pb.RecordFundingRequest(**taken, tx_hash="8" * 64),  # type: ignore[arg-type]
            ),
            (
                pb.ConfirmFundingRequest(event_id=spent.id, request_id="confirm"),
                "FUNDING_NOT_PENDING",
                pb.ConfirmFundingRequest(event_id=pending[0], request_id="confirm"),
            ),
            (
                pb.FailFundingRequest(event_id=pending[0], request_id="fail"),
                "FUNDING_NOT_PENDING",
                pb.FailFundingRequest(event_id=pending[1], request_id="fail"),
            ),
        ]
        second_hold = pb.AuthorizeSpendRequest(agent_id=agent_id, amount=1, request_id="hold")
        assert (await refusal(owner(second_hold))).reason == "OPEN_HOLDS_LIMIT"

        for wrong, reason, right in steps:
            assert (await refusal(owner(wrong))).reason == reason
            assert (await refusal(owner(right))).code == "OK"

        opened = (await owner(second_hold)).event
        assert opened.status == pb.EVENT_STATUS_PENDING
        release_it = pb.ReleaseSpendRequest(event_id=spent.id, request_id="release")
        assert (await refusal(owner(release_it))).reason == "HOLD_NOT_OPEN"
        release_it.event_id = opened.id
        assert (await owner(release_it)).event.failure_reason == pb.FAILURE_REASON_RELEASED


async def test_a_decline_sticks_to_its_id(shared: Pilot) -> None:
    """It was an answer: another attempt is another id."""
    tenant = await new_tenant(shared)
    await tenant.owner(agents_pb2.PauseAgentRequest(agent_id=tenant.agent_id))
    declined = await tenant.spend(1, request_id="first")
    await tenant.owner(agents_pb2.ResumeAgentRequest(agent_id=tenant.agent_id))

    again = await tenant.spend(1, request_id="first")
    anew = await tenant.spend(1, request_id="second")

    assert declined.failure_reason == pb.FAILURE_REASON_AGENT_NOT_ACTIVE
    assert again == declined
    assert anew.status == pb.EVENT_STATUS_CONFIRMED


async def test_a_deleted_agents_answers_are_kept(shared: Pilot, another: Pilot) -> None:
    """Its owner gets them again, on a server too that never knew it; nothing new is decided."""
    tenant = await new_tenant(shared)
    request = pb.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id="before")
    first = await tenant.owner.raw(request)
    await tenant.owner(agents_pb2.DeleteAgentRequest(agent_id=tenant.agent_id))

    for server in (shared, another):
        owner = server.nobody.with_credential(tenant.owner.credential)
        anew = pb.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id="after")
        listed = await owner(pb.ListEventsRequest(agent_id=tenant.agent_id))
        assert await owner.raw(request) == first
        assert (await refusal(owner(anew))).code == "NOT_FOUND"
        assert [event.amount for event in listed.events] == [-1]


DIMENSIONS = {
    pb.SPEND_DIMENSION_DAY: "day",
    pb.SPEND_DIMENSION_AGENT: "agent_id",
    pb.SPEND_DIMENSION_PROVIDER: "provider",
    pb.SPEND_DIMENSION_MODEL: "model",
}
START = datetime(2031, 2, 27, 12, tzinfo=UTC)
EVERY_GROUPING = [
    chosen for count in range(5) for chosen in itertools.combinations(DIMENSIONS, count)
]


async def a_few_days_of_spends(shared: Pilot, clock: make.HandClock) -> Tenant:
    """Two agents, three models and none, every outcome, over midnights and the end of a month."""
    tenant = await shared.tenant(balance=10**6, daily_limit=120)
    other_id = await new_agent(tenant.owner, tenant.project_id)
    other = await with_key(tenant.owner, other_id)
    models = [("openai", "gpt-4o"), ("openai", "o3"), ("anthropic", "gpt-4o"), (None, None)]
    for hours in range(0, 60, 5):
        clock.now = START + timedelta(hours=hours)
        provider, model = models[hours % 4]
        for agent in (tenant.agent, other):
            fields: dict[str, Any] = {"amount": 10 + hours, "provider": provider, "model": model}
            await agent(pb.SpendRequest(**fields, request_id=fresh()))
            week = {"seconds": 7 * 24 * 3_600}
            held = await agent(pb.AuthorizeSpendRequest(**fields, request_id=fresh(), ttl=week))
            if held.event.status == pb.EVENT_STATUS_PENDING and hours % 3 == 0:
                await agent(pb.ReleaseSpendRequest(event_id=held.event.id, request_id=fresh()))
            elif held.event.status == pb.EVENT_STATUS_PENDING and hours % 3 == 1:
                await agent(
                    pb.CaptureSpendRequest(event_id=held.event.id, amount=5, request_id=fresh())
                )
    return tenant


def recount(
    events: Iterable[pb.Event], dimensions: tuple[Any, ...]
) -> dict[tuple[str | None, ...], pb.SpendSummary]:
    """Sum spends in Python, as the summary should."""
    sums: dict[tuple[str | None, ...], pb.SpendSummary] = defaultdict(pb.SpendSummary)
    for event in events:
        values = {
            "day": event.create_time.ToDatetime().date().isoformat(),
            "agent_id": event.agent_id,
            "provider": event.provider if event.HasField("provider") else None,
            "model": event.model if event.HasField("model") else None,
        }
        names = [DIMENSIONS[dimension] for dimension in dimensions]
        of_group = {name: values[name] for name in names}
        found = sums[tuple(of_group.values())]
        found.MergeFrom(pb.SpendSummary(**of_group))  # type: ignore[arg-type]
        status = pb.EventStatus.Name(event.status).removeprefix("EVENT_STATUS_").lower()
        status = "declined" if event.HasField("decline") else status
        setattr(found, f"{status}_count", getattr(found, f"{status}_count") + 1)
        if status in {"confirmed", "pending"}:
            setattr(found, f"{status}_amount", getattr(found, f"{status}_amount") - event.amount)
    return sums


async def every_page(caller: Client, request: Any, field: str) -> list[Any]:
    """Read a list to its end."""
    rows: list[Any] = []
    while True:
        page = await caller(request)
        rows += getattr(page, field)
        if not page.next_page_token:
            return rows
        request.page_token = page.next_page_token


async def test_a_summary_adds_up_to_its_events_by_every_dimension(shared_database: str) -> None:
    """All 16 groupings, page by page, over all agents or one, and parts of the time."""
    clock = make.HandClock(START)
    async with serving(shared_database, clock) as later:
        tenant = await a_few_days_of_spends(later, clock)
        listing = pb.ListEventsRequest(
            vault_id=tenant.vault_id, types=[pb.EVENT_TYPE_SPEND], page_size=500
        )
        spends = await every_page(tenant.owner, listing, "events")
        middle = spends[len(spends) // 2].create_time.ToDatetime(tzinfo=UTC)
        day = timedelta(days=1)
        periods = [(START - day, START + 9 * day), (middle, START + 9 * day), (START, middle)]
        assert {event.status for event in spends} == {1, 2, 3}

        for dimensions, (start, end), agent_id in itertools.product(
            EVERY_GROUPING, periods, ("", tenant.agent_id)
        ):
            within = [
                event
                for event in spends
                if start <= event.create_time.ToDatetime(tzinfo=UTC) < end
                and agent_id in {"", event.agent_id}
            ]
            summaries = await every_page(
                tenant.owner,
                pb.SummarizeSpendRequest(
                    vault_id=tenant.vault_id,
                    agent_id=agent_id,
                    start_time=start,
                    end_time=end,
                    group_by=dimensions,
                    page_size=3,
                ),
                "summaries",
            )
            expected = recount(within, dimensions)
            order = sorted(expected, key=lambda key: [part or "" for part in key])
            assert summaries == [expected[key] for key in order], dimensions


async def test_a_summary_of_no_spends_has_no_groups(shared: Pilot) -> None:
    """Funding is no spend, and what lies outside of the period counts for nothing."""
    tenant = await shared.tenant()
    await tenant.spend(1)

    for dimensions in EVERY_GROUPING:
        summary = pb.SummarizeSpendRequest(
            vault_id=tenant.vault_id,
            start_time=START,
            end_time=START + timedelta(days=1),
            group_by=dimensions,
        )
        assert await tenant.owner(summary) == pb.SummarizeSpendResponse()


@pytest.mark.parametrize("page_size", [0, 1, 2, 7, 100_000])
async def test_a_ledger_is_verified_to_its_end_in_pages_of_any_size(
    shared: Pilot, page_size: int
) -> None:
    """Each row is counted once, whatever the page; and spends go on in between."""
    tenant = await new_tenant(shared)
    for prepare in MOVES_MONEY:
        await caller_of(prepare, tenant)(await prepare(tenant))
    rows = await shared.pool.fetchval(
        "SELECT (SELECT count(*) FROM event_changes WHERE vault_id = $1)"
        "     + (SELECT count(*) FROM events WHERE vault_id = $1)",
        tenant.vault_id,
    )
    vault_and_agent = 2
    request = pb.VerifyLedgerRequest(vault_id=tenant.vault_id, page_size=page_size)

    verified = pages = 0
    while True:
        page = await tenant.owner(request)
        assert not page.HasField("discrepancy")
        verified, pages = verified + page.verified_count, pages + 1
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token

    assert verified == rows + vault_and_agent
    assert (pages > 20) == (page_size in {1, 2})


async def test_a_ledger_that_grows_meanwhile_is_verified_all_the_same(shared: Pilot) -> None:
    """A spend between every two pages: what was read before stays true."""
    tenant = await new_tenant(shared)
    for _ in range(5):
        await tenant.spend(1)
    request = pb.VerifyLedgerRequest(vault_id=tenant.vault_id, page_size=3)

    for _ in range(20):
        page = await tenant.owner(request)
        assert not page.HasField("discrepancy")
        request.page_token = page.next_page_token
        await tenant.spend(1)

    rest = pb.VerifyLedgerRequest(vault_id=tenant.vault_id)
    assert not (await tenant.owner(rest)).HasField("discrepancy")


FORGED_EVENT = "UPDATE events SET metadata = '{}' WHERE id = $1"
FORGED_CHANGE = "UPDATE event_changes SET amount = -2 WHERE event_id = $1"
FORGED_VAULT = """
UPDATE vaults
   SET balance = balance + 1
 WHERE id = (SELECT vault_id FROM events WHERE id = $1)
"""
FORGED_RULE = """
UPDATE agent_budget_rules
   SET monthly_spent = monthly_spent + 1
 WHERE agent_id = (SELECT agent_id FROM events WHERE id = $1)
"""
FOUND = {
    FORGED_EVENT: ("event_changes", "digest"),
    FORGED_CHANGE: ("event_changes", "balance_after"),
    FORGED_VAULT: ("vaults", "balance"),
    FORGED_RULE: ("agent_budget_rules", "monthly_spent"),
}


@pytest.mark.parametrize("page_size", [0, 1])
@pytest.mark.parametrize("forge", FOUND, ids=lambda each: each.split()[1])
async def test_a_row_that_was_edited_by_hand_is_named(
    shared: Pilot, forge: str, page_size: int
) -> None:
    tenant = await new_tenant(shared)
    spent = [await tenant.spend(amount) for amount in (5, 6, 7)]
    await shared.pool.execute(forge, spent[1].id)
    request = pb.VerifyLedgerRequest(vault_id=tenant.vault_id, page_size=page_size)

    page = await tenant.owner(request)
    while page.next_page_token:
        request.page_token = page.next_page_token
        page = await tenant.owner(request)

    assert (page.discrepancy.table, page.discrepancy.field) == FOUND[forge]
    assert page.discrepancy.row
    assert page.discrepancy.expected != page.discrepancy.found
