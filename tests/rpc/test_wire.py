"""Malformed requests: every bad field is named at once, and nothing changes."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from pilot_grpc.gen.pilot.v1 import accounts_pb2 as accounts
from pilot_grpc.gen.pilot.v1 import agents_pb2 as agents
from pilot_grpc.gen.pilot.v1 import budgets_pb2 as budgets
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from pilot_grpc.gen.pilot.v1 import projects_pb2 as projects
from pilot_grpc.solana import addresses
from tests import make
from tests.rpc.serving import Pilot, Refusal, Tenant, fresh, new_agent, refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

AMOUNT_MAX = 10**15
METADATA_BYTES_MAX = 16_384


def valid_requests(tenant: Tenant, hold_id: str, spend_id: str) -> list[Message]:
    """Requests that would be answered, one for each message with fields that are bounded."""
    agent, request_id = tenant.agent_id, fresh()
    return [
        ledger.SpendRequest(agent_id=agent, amount=1, request_id=request_id),
        ledger.AuthorizeSpendRequest(agent_id=agent, amount=1, request_id=request_id),
        ledger.CaptureSpendRequest(event_id=hold_id, amount=1, request_id=request_id),
        ledger.ReleaseSpendRequest(event_id=hold_id, request_id=request_id),
        ledger.RefundRequest(event_id=spend_id, amount=1, request_id=request_id),
        ledger.RecordFundingRequest(vault_id=tenant.vault_id, amount=1, request_id=request_id),
        budgets.CheckSpendRequest(agent_id=agent, amount=1),
        budgets.SetBudgetRuleRequest(
            agent_id=agent, per_tx_limit=1, daily_limit=1, monthly_limit=1
        ),
        accounts.SignUpRequest(email="a@example.com", password="long enough", name="Ann"),
        accounts.SignInRequest(email="a@example.com", password="long enough"),
        accounts.ChangePasswordRequest(current_password="long enough", new_password="long enough"),
        accounts.CreateApiKeyRequest(name="Key", permissions=[accounts.PERMISSION_READ]),
        projects.CreateProjectRequest(name="Project"),
        projects.UpdateProjectRequest(
            project_id=tenant.project_id, name="Name", update_mask=FieldMask(paths=["name"])
        ),
        agents.CreateAgentRequest(project_id=tenant.project_id, name="Agent"),
        agents.UpdateAgentRequest(
            agent_id=agent, name="Name", update_mask=FieldMask(paths=["name"])
        ),
    ]


AMOUNTS = {"amount", "per_tx_limit", "daily_limit", "monthly_limit"}
BAD_AMOUNTS = (0, -1, AMOUNT_MAX + 1, 2**63 - 1, -(2**63))

# What is wrong with a text, by the name of its field. All are refused in every request that has
# the field.
NAMES = ("", "a" * 101, "a\x00b", "a\nb", "\x1b[31m", "\x7f")
LABELS = ("", "a" * 101, "a\x00b", "a\tb")
IDS = ("A", "a" * 33, "a b", "a'; --", "é", "a\x00", "..", "/")
BAD_TEXTS: dict[str, tuple[str, ...]] = {
    "name": NAMES,
    "provider": LABELS,
    "model": LABELS,
    "description": ("a" * 1_001, "a\x00b"),
    "webhook_url": (
        "",
        "example.com",
        "ftp://example.com",
        "https://" + "a" * 2_048,
        "https://a b",
    ),
    "email": ("", "ann", "ann@", "a" * 250 + "@b.de", "a\x00@example.com", "a b@example.com"),
    "avatar": ("", "no url", "https://a/" + "a" * 2_048),
    "password": ("", "1234567", "a" * 129),
    "new_password": ("", "1234567", "a" * 129),
    "current_password": ("", "a" * 129),
    "agent_id": IDS,
    "vault_id": ("", *IDS),
    "project_id": ("", *IDS),
    "event_id": ("", *IDS),
    "request_id": ("a b", "a" * 65, "é", "a\x00", "a\n"),
    "tx_hash": ("", "a" * 63, "a" * 89, "0" * 64, "l" * 64, " " + "a" * 64),
    "metadata": (
        "",
        "{",
        "nonsense",
        "{'a': 1}",
        '{"a": 1} x',
        "[NaN]",
        "[Infinity]",
        "-Infinity",
        '"a\x00b"',
        '"a\nb"',
        "[" * 8_000 + "]" * 8_000,
        json.dumps("a" * (METADATA_BYTES_MAX - 1)),
        json.dumps("é" * (METADATA_BYTES_MAX // 2), ensure_ascii=False),
    ),
}
# Fields that share a name, but not all of the rules: a sign-in takes what may have been an address
# or a password at some time, and an update removes what its mask names.
TAKEN = {
    "SignInRequest": {"ann", "ann@", "a b@example.com", "1234567"},
    "UpdateProjectRequest": {""},
}


def spoiled(message: Message, name: str, value: Any) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    setattr(copy, name, value)
    return copy


async def requests_of(tenant: Tenant) -> list[Message]:
    return valid_requests(tenant, (await tenant.hold(5)).id, (await tenant.spend(5)).id)


async def must_be_refused(
    pilot: Pilot, tenant: Tenant, cases: Iterable[tuple[Message, list[str]]]
) -> int:
    """Call with each, see the fields that are named, and that no row is other than before."""
    before = await pilot.dump(but=("sign_in_attempts",))
    count = 0
    for message, fields in cases:
        found = await refusal(tenant.owner(message))
        assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST"), message
        assert list(dict.fromkeys(found.fields)) == fields, message
        assert all(description for _, description in found.violations)
        count += 1
    assert await pilot.dump(but=("sign_in_attempts",)) == before
    return count


async def test_an_amount_is_between_one_and_the_most_that_one_request_may_move(
    shared: Pilot,
) -> None:
    """Every field that takes money refuses what is below 1 or above 10^15."""
    tenant = await shared.tenant()

    tried = await must_be_refused(
        shared,
        tenant,
        [
            (spoiled(message, name, value), [name])
            for message in await requests_of(tenant)
            for name in sorted(AMOUNTS & set(message.DESCRIPTOR.fields_by_name))
            for value in BAD_AMOUNTS
        ],
    )

    assert tried == 9 * len(BAD_AMOUNTS)


async def test_the_largest_amount_is_taken(shared: Pilot) -> None:
    """10^15 is funded, held, captured, spent, refunded, and set as every limit."""
    tenant = await shared.tenant(balance=0)
    limits = budgets.SetBudgetRuleRequest(
        agent_id=tenant.agent_id,
        per_tx_limit=AMOUNT_MAX,
        daily_limit=AMOUNT_MAX,
        monthly_limit=AMOUNT_MAX,
    )

    await tenant.owner(limits)
    await tenant.fund(AMOUNT_MAX)
    hold = await tenant.hold(AMOUNT_MAX)
    captured = await tenant.agent(
        ledger.CaptureSpendRequest(event_id=hold.id, amount=AMOUNT_MAX, request_id=fresh())
    )
    refund = await tenant.owner(
        ledger.RefundRequest(event_id=hold.id, amount=AMOUNT_MAX, request_id=fresh())
    )

    assert (captured.event.amount, refund.event.amount) == (-AMOUNT_MAX, AMOUNT_MAX)
    assert captured.event.status == ledger.EVENT_STATUS_CONFIRMED


async def test_a_text_that_is_malformed_is_refused_wherever_it_stands(shared: Pilot) -> None:
    """NUL, control characters, other alphabets in ids, too short, too long, no JSON."""
    tenant = await shared.tenant()

    tried = await must_be_refused(
        shared,
        tenant,
        [
            (spoiled(message, name, value), [name])
            for message in await requests_of(tenant)
            for name, values in BAD_TEXTS.items()
            if name in message.DESCRIPTOR.fields_by_name
            for value in values
            if value not in TAKEN.get(message.DESCRIPTOR.name, ())
        ],
    )

    assert tried > 250


@pytest.mark.parametrize(
    "name", ["a", "a" * 100, "\U0001f4b8" * 100, "O'Brien; DROP TABLE --", "\u202eneve\u2028"]
)
async def test_a_name_is_kept_as_sent(shared: Pilot, name: str) -> None:
    """Characters are counted, not bytes; quotes, other scripts and direction marks may be."""
    tenant = await shared.tenant()
    project_id, agent_id = tenant.project_id, tenant.agent_id
    renaming = FieldMask(paths=["name", "name"])

    answers = [
        (await tenant.owner(projects.CreateProjectRequest(name=name))).project,
        (
            await tenant.owner(
                projects.UpdateProjectRequest(
                    project_id=project_id, name=name, update_mask=renaming
                )
            )
        ).project,
        (await tenant.owner(agents.CreateAgentRequest(project_id=project_id, name=name))).agent,
        (
            await tenant.owner(
                agents.UpdateAgentRequest(agent_id=agent_id, name=name, update_mask=renaming)
            )
        ).agent,
        (
            await tenant.owner(
                accounts.CreateApiKeyRequest(name=name, permissions=[accounts.PERMISSION_READ])
            )
        ).api_key,
    ]

    assert [answer.name for answer in answers] == [name] * len(answers)


@pytest.mark.parametrize(
    "metadata",
    [
        "0",
        "null",
        '""',
        ' { "a" : [1.50, 1e400] } \n',
        '{"a": 1, "a": 2}',
        '"\\u0000 \\ud800"',
        '"\U0001f4b8 \u202e"',
        "9" * 5_000,
        json.dumps("a" * (METADATA_BYTES_MAX - 2)),
        json.dumps("é" * (METADATA_BYTES_MAX // 2 - 1), ensure_ascii=False),
    ],
    ids=lambda text: text[:12],
)
async def test_metadata_are_kept_as_sent(shared: Pilot, metadata: str) -> None:
    """Not a space, a digit or a repetition is lost, on a spend, a hold, a funding, a refund."""
    tenant = await shared.tenant()

    spend = await tenant.spend(5, metadata=metadata)
    events = [
        spend,
        (
            await tenant.agent(
                ledger.AuthorizeSpendRequest(amount=1, request_id=fresh(), metadata=metadata)
            )
        ).event,
        (
            await tenant.owner(
                ledger.RefundRequest(
                    event_id=spend.id, amount=1, request_id=fresh(), metadata=metadata
                )
            )
        ).event,
        (
            await tenant.owner(
                ledger.RecordFundingRequest(
                    vault_id=tenant.vault_id, amount=1, request_id=fresh(), metadata=metadata
                )
            )
        ).event,
    ]

    for event in events:
        read = await tenant.owner(ledger.GetEventRequest(event_id=event.id))
        assert event.metadata == read.event.metadata == metadata


@pytest.mark.parametrize("request_id", ["!", "~" * 64, "a/b?c=%00&d"])
async def test_a_request_id_is_any_printable_ascii(shared: Pilot, request_id: str) -> None:
    tenant = await shared.tenant()

    first = await tenant.spend(1, request_id=request_id)
    again = await tenant.spend(1, request_id=request_id)

    assert first == again


async def test_a_request_id_is_required_where_money_moves(shared: Pilot) -> None:
    """On a Create it may be left out: then nothing is remembered."""
    tenant = await shared.tenant()
    requests = [
        message
        for message in await requests_of(tenant)
        if "request_id" in message.DESCRIPTOR.fields_by_name
        and "Create" not in message.DESCRIPTOR.name
    ]
    pending = await tenant.owner(
        ledger.RecordFundingRequest(
            vault_id=tenant.vault_id, amount=1, pending=True, request_id=fresh()
        )
    )
    requests += [
        ledger.ConfirmFundingRequest(event_id=pending.event.id),
        ledger.FailFundingRequest(event_id=pending.event.id),
    ]

    tried = await must_be_refused(
        shared, tenant, [(spoiled(each, "request_id", ""), ["request_id"]) for each in requests]
    )

    assert tried == 8


BAD_TIMES = [
    Timestamp(seconds=2**62),
    Timestamp(seconds=-(2**62)),
    Timestamp(seconds=253_402_300_800),
    Timestamp(seconds=-62_135_596_801),
    Timestamp(seconds=1_800_000_000, nanos=-1),
    Timestamp(seconds=4_000_000_000, nanos=1_000_000_000),
]
YEAR_1 = Timestamp(seconds=-62_135_596_800)
YEAR_9999 = Timestamp(seconds=253_402_300_799, nanos=999_999_999)


async def test_a_time_is_within_the_years_1_to_9999(shared: Pilot) -> None:
    tenant = await shared.tenant()
    since = Timestamp(seconds=1_700_000_000)
    cases: list[tuple[Message, list[str]]] = []
    for bad in BAD_TIMES:
        cases += [
            (ledger.ListEventsRequest(start_time=bad), ["start_time"]),
            (ledger.ListEventsRequest(end_time=bad), ["end_time"]),
            (ledger.ListEventsRequest(start_time=bad, end_time=bad), ["start_time", "end_time"]),
            (
                ledger.SummarizeSpendRequest(
                    vault_id=tenant.vault_id, start_time=since, end_time=bad
                ),
                ["end_time"],
            ),
            (
                accounts.CreateApiKeyRequest(
                    name="Key", permissions=[accounts.PERMISSION_READ], expire_time=bad
                ),
                ["expire_time"],
            ),
        ]

    assert await must_be_refused(shared, tenant, cases) == 5 * len(BAD_TIMES)
    assert (
        await refusal(tenant.owner(ledger.ListEventsRequest(start_time=YEAR_1, end_time=YEAR_9999)))
    ).code == "OK"


async def test_the_last_second_of_all_is_given_back_as_it_was(shared: Pilot) -> None:
    """Not as the infinity that the database knows, nor a second later by rounding."""
    _, session = await shared.user()

    made = await session(
        accounts.CreateApiKeyRequest(
            name="Key", permissions=[accounts.PERMISSION_READ], expire_time=YEAR_9999
        )
    )

    listed = await session(accounts.ListApiKeysRequest())
    assert made.api_key.expire_time.seconds == YEAR_9999.seconds
    assert list(listed.api_keys) == [made.api_key]


async def test_a_key_expires_in_the_future(shared: Pilot) -> None:
    tenant = await shared.tenant()
    past = datetime.now(UTC) - timedelta(seconds=1)
    key = accounts.CreateApiKeyRequest(
        name="Key", permissions=[accounts.PERMISSION_READ], expire_time=past
    )

    assert await must_be_refused(shared, tenant, [(key, ["expire_time"])])


async def test_a_summary_spans_at_most_400_days(shared: Pilot) -> None:
    """And its end is after its start."""
    tenant = await shared.tenant()
    start = datetime(2026, 1, 1, tzinfo=UTC)
    day = timedelta(days=1)

    def summary(end: datetime | None) -> ledger.SummarizeSpendRequest:
        return ledger.SummarizeSpendRequest(
            vault_id=tenant.vault_id, start_time=start, end_time=end
        )

    cases: list[tuple[Message, list[str]]] = [
        (summary(None), ["end_time"]),
        (summary(start), ["end_time"]),
        (summary(start - day), ["end_time"]),
        (summary(start + 400 * day + timedelta(microseconds=1)), ["end_time"]),
        (ledger.SummarizeSpendRequest(vault_id=tenant.vault_id), ["start_time", "end_time"]),
    ]

    assert await must_be_refused(shared, tenant, cases) == len(cases)
    assert (await refusal(tenant.owner(summary(start + 400 * day)))).code == "OK"


async def test_a_hold_lasts_from_a_second_to_seven_days(shared: Pilot) -> None:
    tenant = await shared.tenant()
    week = 7 * 24 * 3_600

    def hold(**ttl: int) -> ledger.AuthorizeSpendRequest:
        return ledger.AuthorizeSpendRequest(
            agent_id=tenant.agent_id, amount=1, request_id=fresh(), ttl=Duration(**ttl)
        )

    bad = [
        hold(),
        hold(seconds=-1),
        hold(nanos=999_999_999),
        hold(seconds=week, nanos=1),
        hold(seconds=2**62),
        hold(seconds=1, nanos=-1),
        hold(seconds=10, nanos=-1),
        hold(seconds=1, nanos=1_000_000_000),
    ]
    tried = await must_be_refused(shared, tenant, [(each, ["ttl"]) for each in bad])
    shortest = (await tenant.owner(hold(seconds=1))).event
    longest = (await tenant.owner(hold(seconds=week))).event

    assert tried == len(bad)
    assert lasting(shortest) == timedelta(seconds=1)
    assert lasting(longest) == timedelta(days=7)
    assert lasting(await tenant.hold(1)) == timedelta(minutes=10)


def lasting(event: ledger.Event) -> timedelta:
    return event.expire_time.ToDatetime() - event.create_time.ToDatetime()


async def test_an_enum_is_a_number_that_is_known(shared: Pilot) -> None:
    """0, a number of the future and a repetition are refused, each with its place in the list."""
    tenant = await shared.tenant()

    def key(*permissions: int) -> accounts.CreateApiKeyRequest:
        message = accounts.CreateApiKeyRequest(name="Key")
        message.permissions.extend(permissions)  # type: ignore[arg-type]
        return message

    def events(field: str, *numbers: int) -> ledger.ListEventsRequest:
        message = ledger.ListEventsRequest()
        getattr(message, field).extend(numbers)
        return message

    def summary(*dimensions: int) -> ledger.SummarizeSpendRequest:
        message = ledger.SummarizeSpendRequest(
            vault_id=tenant.vault_id,
            start_time=datetime(2026, 1, 1, tzinfo=UTC),
            end_time=datetime(2026, 1, 2, tzinfo=UTC),
        )
        message.group_by.extend(dimensions)  # type: ignore[arg-type]
        return message

    cases: list[tuple[Message, list[str]]] = [
        (key(), ["permissions"]),
        (key(0), ["permissions[0]"]),
        (key(1, 99), ["permissions[1]"]),
        (key(1, -1), ["permissions[1]"]),
        (key(1, 1), ["permissions"]),
        (key(1, 2, 3, 3), ["permissions"]),
        (events("types", 0), ["types[0]"]),
        (events("types", 3), ["types[0]"]),
        (events("kinds", 1, 8), ["kinds[1]"]),
        (events("statuses", 2**31 - 1), ["statuses[0]"]),
        (summary(5), ["group_by[0]"]),
        (summary(1, 0), ["group_by[1]"]),
        (summary(1, 1), ["group_by"]),
    ]

    assert await must_be_refused(shared, tenant, cases) == len(cases)


async def test_a_mask_names_what_can_be_changed(shared: Pilot) -> None:
    """Empty, absent, unknown and output-only paths are refused, and so is removing a name."""
    tenant = await shared.tenant()

    def project(*paths: str, name: str = "New") -> projects.UpdateProjectRequest:
        return projects.UpdateProjectRequest(
            project_id=tenant.project_id, name=name, update_mask=FieldMask(paths=paths)
        )

    def agent(*paths: str, name: str = "New") -> agents.UpdateAgentRequest:
        return agents.UpdateAgentRequest(
            agent_id=tenant.agent_id, name=name, update_mask=FieldMask(paths=paths)
        )

    refused = ["update_mask"]
    cases: list[tuple[Message, list[str]]] = [
        (projects.UpdateProjectRequest(project_id=tenant.project_id, name="New"), refused),
        (agents.UpdateAgentRequest(agent_id=tenant.agent_id, name="New"), refused),
        *((project(*paths), refused) for paths in ([], ["status"], ["name", "id"], ["*"], [""])),
        *((agent(*paths), refused) for paths in ([], ["status"], ["name.x"], ["projectId"])),
        (project("name", name=""), ["name"]),
        (agent("name", name=""), ["name"]),
        (agent("name", "model", name=""), ["name"]),
    ]

    assert await must_be_refused(shared, tenant, cases) == len(cases)


async def test_all_that_is_wrong_is_told_at_once(shared: Pilot) -> None:
    """Also what no rule of the protos can say; one request, one answer."""
    tenant = await shared.tenant()
    cases: list[tuple[Message, list[str]]] = [
        (
            ledger.SpendRequest(amount=-1, request_id="", model="", metadata="{"),
            ["amount", "request_id", "model", "agent_id", "metadata"],
        ),
        (
            ledger.AuthorizeSpendRequest(
                amount=0, request_id="r", metadata="x", ttl=Duration(seconds=5, nanos=-5)
            ),
            ["amount", "agent_id", "metadata", "ttl"],
        ),
        (budgets.CheckSpendRequest(amount=0), ["amount", "agent_id"]),
        (agents.GetAgentRequest(), ["agent_id"]),
        (budgets.GetBudgetRuleRequest(), ["agent_id"]),
        (
            agents.UpdateAgentRequest(
                agent_id="No Id",
                webhook_url="no url",
                update_mask=FieldMask(paths=["name", "webhook_url"]),
            ),
            ["agent_id", "webhook_url", "name"],
        ),
        (
            ledger.ListEventsRequest(
                vault_id="?", page_size=-1, page_token="nonsense", start_time=BAD_TIMES[0]
            ),
            ["vault_id", "page_size", "start_time", "page_token"],
        ),
        (
            accounts.SignUpRequest(email="ann", password="short", name=""),
            ["email", "password", "name"],
        ),
    ]

    assert await must_be_refused(shared, tenant, cases) == len(cases)


async def test_a_batch_names_the_place_of_each_violation(shared: Pilot) -> None:
    """`spends[3].amount`, and beside it what only the batch as a whole shows."""
    tenant = await shared.tenant()
    agent_id = tenant.agent_id
    good = ledger.SpendRequest(agent_id=agent_id, amount=1, request_id="r1")
    batch = ledger.BatchSpendRequest(
        spends=[
            good,
            ledger.SpendRequest(agent_id=agent_id, amount=1, request_id="r1"),
            ledger.SpendRequest(amount=1, request_id="r2"),
            ledger.SpendRequest(agent_id=agent_id, amount=0, request_id="r3"),
            ledger.SpendRequest(agent_id=agent_id, amount=1, request_id="r4", metadata="[NaN]"),
        ]
    )
    wrong = [
        "spends[3].amount",
        "spends[1].request_id",
        "spends[2].agent_id",
        "spends[4].metadata",
    ]
    cases: list[tuple[Message, list[str]]] = [
        (batch, wrong),
        (ledger.BatchSpendRequest(), ["spends"]),
        (ledger.BatchSpendRequest(spends=[good] * 1_001), ["spends"]),
    ]

    assert await must_be_refused(shared, tenant, cases) == len(cases)


async def test_a_batch_of_agents_of_two_projects_is_refused_whole(shared: Pilot) -> None:
    tenant = await shared.tenant()
    made = await tenant.owner(projects.CreateProjectRequest(name="Another"))
    elsewhere = await new_agent(tenant.owner, made.project.id)
    batch = ledger.BatchSpendRequest(
        spends=[
            ledger.SpendRequest(agent_id=agent_id, amount=1, request_id=fresh())
            for agent_id in (tenant.agent_id, elsewhere)
        ]
    )

    assert await must_be_refused(shared, tenant, [(batch, ["spends"])])


async def test_a_thousand_bad_spends_are_an_answer_that_arrives(shared: Pilot) -> None:
    """The first 50 violations fit the trailers that every client accepts."""
    tenant = await shared.tenant()
    worst = ledger.SpendRequest(
        agent_id="?", amount=-1, request_id="?" * 65, provider="", model="", metadata="{"
    )

    found = await refusal(tenant.owner(ledger.BatchSpendRequest(spends=[worst] * 1_000)))

    assert (found.code, len(found.violations)) == ("INVALID_ARGUMENT", 50)
    assert found.fields[:2] == ["spends[0].agent_id", "spends[0].amount"]


async def test_the_largest_batch_is_answered_and_a_larger_one_refused(shared: Pilot) -> None:
    """A thousand spends with the longest names in 2,500,000 bytes: the answer fits a message."""
    tenant = await shared.tenant()
    longest = "\U0001f4b8" * 100

    def batch(metadata_bytes: int) -> ledger.BatchSpendRequest:
        text = json.dumps("x" * (metadata_bytes - 2))
        return ledger.BatchSpendRequest(
            spends=[
                ledger.SpendRequest(
                    amount=1, request_id=fresh(), provider=longest, model=longest, metadata=text
                )
                for _ in range(1_000)
            ]
        )

    largest, larger = batch(1_665), batch(1_685)

    answer = await tenant.agent(largest)
    found = await refusal(tenant.agent(larger))

    assert len(answer.events) == 1_000
    assert 2_480_000 < largest.ByteSize() <= 2_500_000 < larger.ByteSize()
    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ["spends"])


async def test_a_message_full_of_empty_spends_is_not_looked_at_one_by_one(
    shared: Pilot,
) -> None:
    """Two million would take a minute; the answer names the list only."""
    tenant = await shared.tenant()
    spend: Any = shared.channel.unary_unary("/pilot.v1.LedgerService/BatchSpend")
    metadata = (("authorization", tenant.owner.authorization),)

    found = await refusal(spend(b"\x0a\x00" * 2_000_000, metadata=metadata, timeout=20))

    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ["spends"])


@pytest.mark.parametrize(
    "sent", [b"\xff\xff\xff", b"\x0a", b"\x0a\x02\xff\xfe", b"\x10\xff"], ids=repr
)
async def test_bytes_that_are_no_message_are_malformed_and_not_a_defect(
    shared: Pilot, sent: bytes
) -> None:
    """Broken protobuf, a text that is not UTF-8: neither the parser nor its words show."""
    tenant = await shared.tenant()
    spend: Any = shared.channel.unary_unary("/pilot.v1.LedgerService/Spend")
    metadata = (("authorization", tenant.owner.authorization),)

    stranger = await refusal(spend(sent, timeout=20))
    owner = await refusal(spend(sent, metadata=metadata, timeout=20))

    assert stranger == Refusal("UNAUTHENTICATED", "CREDENTIAL_MISSING")
    assert (owner.code, owner.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert owner.violations == (("", "the bytes are not this RPC's request"),)


async def test_a_field_of_a_newer_client_is_ignored(shared: Pilot) -> None:
    tenant = await shared.tenant()
    spend: Any = shared.channel.unary_unary("/pilot.v1.LedgerService/Spend")
    request = ledger.SpendRequest(amount=1, request_id="newer")
    unknown_field = b"\xfa\x7f\x03abc"

    answer = await spend(
        request.SerializeToString() + unknown_field,
        metadata=(("authorization", tenant.agent.authorization),),
    )

    assert ledger.SpendResponse.FromString(answer).event == await tenant.spend(
        1, request_id="newer"
    )


async def test_a_message_above_four_mebibytes_is_refused_unread(shared: Pilot) -> None:
    tenant = await shared.tenant()
    before = await shared.dump()
    request = ledger.SpendRequest(
        agent_id=tenant.agent_id, amount=1, request_id="big", metadata="9" * 4 * 1024 * 1024
    )

    assert (await refusal(tenant.owner(request))).code == "RESOURCE_EXHAUSTED"
    assert await shared.dump() == before


@pytest.mark.parametrize("count", [1, 3])
async def test_a_recipient_of_a_batch_that_is_no_wallet_is_named_by_its_place(
    shared: Pilot, count: int
) -> None:
    """As every other field of a batch is, however short that is; of one spend, by its name."""
    tenant = await shared.tenant()
    account = addresses.token_account(make.WALLET, make.OTHER_WALLET)
    spends = [ledger.SpendRequest(amount=1, request_id=fresh()) for _ in range(count)]
    spends[-1].recipient = account

    batch = await refusal(tenant.agent(ledger.BatchSpendRequest(spends=spends)))
    alone = await refusal(tenant.agent(spends[-1]))

    assert (batch.code, batch.fields) == ("INVALID_ARGUMENT", [f"spends[{count - 1}].recipient"])
    assert (alone.code, alone.fields) == ("INVALID_ARGUMENT", ["recipient"])


async def test_a_recipient_is_not_supported_without_a_chain(shared: Pilot) -> None:
    """Neither for one spend nor inside a batch, and no event is left of it."""
    tenant = await shared.tenant()
    before = await shared.dump()
    transfer = ledger.SpendRequest(
        agent_id=tenant.agent_id, amount=1, request_id="t1", recipient=make.WALLET
    )
    good = ledger.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id="t2")

    for request in (transfer, ledger.BatchSpendRequest(spends=[good, transfer])):
        found = await refusal(tenant.owner(request))
        assert (found.code, found.reason) == ("UNIMPLEMENTED", "RECIPIENT_UNSUPPORTED")
    assert await shared.dump() == before
