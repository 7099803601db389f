"""Who may call what, from the contract's table and not from the code's."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message

from pilot_grpc.gen.pilot.v1 import accounts_pb2, agents_pb2, budgets_pb2, ledger_pb2
from tests.rpc import examples
from tests.rpc.examples import MISSING, Resources
from tests.rpc.serving import (
    METHODS,
    RPCS,
    Client,
    Pilot,
    Refusal,
    Tenant,
    fresh,
    raw_refusal,
    refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What a caller needs: `nobody` needs nothing, `anybody` some credential, `session` a session; the
# others are the permissions of an API key, and a session has them all. `agent` stands where an
# agent may call, too.
NEEDS = {
    "SignUp": "nobody",
    "SignIn": "nobody",
    "SignOut": "session",
    "WhoAmI": "anybody agent",
    "ChangePassword": "session",
    "ListSessions": "session",
    "RevokeSession": "session",
    "CreateApiKey": "session",
    "ListApiKeys": "session",
    "RevokeApiKey": "session",
    "CreateProject": "write",
    "GetProject": "read",
    "ListProjects": "read",
    "UpdateProject": "write",
    "PauseProject": "write",
    "ResumeProject": "write",
    "ArchiveProject": "write",
    "DeleteProject": "write",
    "GetVault": "read",
    "GetDepositAddress": "read",
    "Withdraw": "session",
    "Settle": "session",
    "ReconcileVault": "read",
    "AcknowledgeDrift": "session",
    "CreateAgent": "write",
    "GetAgent": "read agent",
    "ListAgents": "read",
    "UpdateAgent": "write",
    "PauseAgent": "write",
    "FlagAgent": "write",
    "ResumeAgent": "write",
    "DeleteAgent": "write",
    "IssueAgentKey": "write execute",
    "RevokeAgentKey": "write",
    "GetWebhook": "read agent",
    "IssueWebhookSecret": "write execute",
    "SendTestWebhook": "write",
    "RedeliverWebhook": "write",
    "AddRecipient": "write",
    "RemoveRecipient": "write",
    "ListRecipients": "read agent",
    "SetBudgetRule": "write",
    "GetBudgetRule": "read agent",
    "RemoveBudgetRule": "write",
    "CheckSpend": "read agent",
    "Spend": "execute agent",
    "AuthorizeSpend": "execute agent",
    "CaptureSpend": "execute agent",
    "ReleaseSpend": "execute agent",
    "BatchSpend": "execute agent",
    "Refund": "execute",
    "RecordFunding": "execute",
    "ConfirmFunding": "execute",
    "FailFunding": "execute",
    "GetEvent": "read agent",
    "ListEvents": "read agent",
    "SummarizeSpend": "read",
    "VerifyLedger": "read",
    "SubscribeEvents": "read agent",
}

PERMISSIONS = ("read", "write", "execute")
PERMISSION_SETS = [
    chosen for count in (1, 2, 3) for chosen in itertools.combinations(PERMISSIONS, count)
]

# What the examples are answered once they are let in; the others name what nobody has.
LET_IN = {
    "SignUp": Refusal("OK"),
    "SignIn": Refusal("UNAUTHENTICATED", "SIGN_IN_FAILED"),
    "ChangePassword": Refusal("FAILED_PRECONDITION", "PASSWORD_WRONG"),
    **dict.fromkeys(
        ("SignOut", "WhoAmI", "ListSessions", "CreateApiKey", "ListApiKeys"), Refusal("OK")
    ),
    **dict.fromkeys(("CreateProject", "ListProjects", "SubscribeEvents"), Refusal("OK")),
}

MISSING_CREDENTIAL = Refusal("UNAUTHENTICATED", "CREDENTIAL_MISSING")
BAD_CREDENTIAL = Refusal("UNAUTHENTICATED", "CREDENTIAL_INVALID")
UNKNOWN_SECRET = "A" * 43


def denied(*permissions: str) -> Refusal:
    lacking = ",".join(sorted(permissions))
    return Refusal("PERMISSION_DENIED", "PERMISSION_DENIED", {"permission": lacking})


def example_of(rpc: str) -> Message:
    requests = [*examples.without_ids(), *examples.with_ids(Resources())]
    return next(each for each in requests if METHODS[each.DESCRIPTOR.name].name == rpc)


def expected(rpc: str, refused: Refusal | None) -> Refusal:
    if refused is not None:
        return refused
    return LET_IN.get(rpc, Refusal("NOT_FOUND", "NOT_FOUND"))


def without_id(found: Refusal) -> Refusal:
    """Leave out which resource is missing: another test compares that."""
    return Refusal(found.code, found.reason) if found.reason == "NOT_FOUND" else found


async def test_the_table_and_the_examples_leave_out_no_rpc() -> None:
    assert sorted(NEEDS) == RPCS
    assert all(example_of(rpc) for rpc in RPCS)


@pytest.mark.parametrize("rpc", RPCS)
async def test_without_a_valid_credential_only_the_door_is_open(shared: Pilot, rpc: str) -> None:
    """A credential that is absent, of no kind, unknown or endless opens SignUp and SignIn only."""
    is_open = NEEDS[rpc] == "nobody"
    callers = {
        None: MISSING_CREDENTIAL,
        "": MISSING_CREDENTIAL,
        "nonsense": BAD_CREDENTIAL,
        f"px_{UNKNOWN_SECRET}": BAD_CREDENTIAL,
        f"ps_{UNKNOWN_SECRET}": BAD_CREDENTIAL,
        f"pk_{UNKNOWN_SECRET}": BAD_CREDENTIAL,
        f"pa_{UNKNOWN_SECRET}": BAD_CREDENTIAL,
        "pk_" + "A" * 5_000: BAD_CREDENTIAL,
    }

    for credential, answer in callers.items():
        found = await refusal(shared.nobody.with_credential(credential)(example_of(rpc)))
        assert without_id(found) == expected(rpc, None if is_open else answer), credential


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_session_may_call_everything(shared: Pilot, rpc: str) -> None:
    _, session = await shared.user()

    found = await refusal(session(example_of(rpc)))

    assert without_id(found) == expected(rpc, None)


@pytest.mark.parametrize("rpc", RPCS)
async def test_an_api_key_may_call_what_its_permissions_allow(shared: Pilot, rpc: str) -> None:
    """Every set of permissions is tried on every RPC; a refusal names what is lacking."""
    tenant = await shared.tenant(balance=0)
    needs = set(NEEDS[rpc].split()) - {"agent", "nobody", "anybody"}

    for permissions in PERMISSION_SETS:
        key = await tenant.api_key(*permissions)
        lacking = needs - set(permissions)
        found = await refusal(key(example_of(rpc)))
        assert without_id(found) == expected(rpc, denied(*lacking) if lacking else None), (
            permissions
        )


@pytest.mark.parametrize("rpc", RPCS)
async def test_an_agent_key_may_call_what_agents_may(shared: Pilot, rpc: str) -> None:
    tenant = await shared.tenant(balance=0)
    allowed = not {"agent", "nobody"}.isdisjoint(NEEDS[rpc].split())

    found = await refusal(tenant.agent(example_of(rpc)))

    assert without_id(found) == expected(rpc, None if allowed else denied("user"))


@pytest.mark.parametrize(
    ("authorization", "answer"),
    [
        ("bearer {}", Refusal("OK")),
        ("BEARER   {}", Refusal("OK")),
        ("Bearer", MISSING_CREDENTIAL),
        ("{}", MISSING_CREDENTIAL),
        ("Basic {}", MISSING_CREDENTIAL),
        ("Bearer {} {}", BAD_CREDENTIAL),
        ("Bearer {}x", BAD_CREDENTIAL),
    ],
)
async def test_a_credential_comes_as_a_bearer(
    shared: Pilot, authorization: str, answer: Refusal
) -> None:
    _, session = await shared.user()
    who_am_i: Any = shared.channel.unary_unary("/pilot.v1.AccountService/WhoAmI")
    header = authorization.replace("{}", session.credential or "")

    found = await refusal(who_am_i(b"", metadata=(("authorization", header),), timeout=30))

    assert found == answer


async def test_a_hash_out_of_the_database_is_no_credential(shared: Pilot) -> None:
    """Whoever reads the tables cannot call with what is in them."""
    tenant = await shared.tenant()
    stored = hashlib.sha256((tenant.agent.credential or "").encode()).hexdigest()

    for prefix in ("", "ps_", "pk_", "pa_"):
        found = await refusal(
            tenant.owner.with_credential(prefix + stored)(accounts_pb2.WhoAmIRequest())
        )
        assert found == BAD_CREDENTIAL


async def resources_of(tenant: Tenant) -> Resources:
    key = await tenant.owner(
        accounts_pb2.CreateApiKeyRequest(name="Key", permissions=[accounts_pb2.PERMISSION_READ])
    )
    session = (await tenant.owner(accounts_pb2.WhoAmIRequest())).session
    return Resources(
        project=tenant.project_id,
        vault=tenant.vault_id,
        agent=tenant.agent_id,
        session=session.id,
        api_key=key.api_key.id,
    )


async def events_of_every_kind(tenant: Tenant) -> list[str]:
    """An open hold, a confirmed spend, a pending credit, a refund: whatever may be named."""
    spend = await tenant.spend(10)
    refund = await tenant.owner(
        ledger_pb2.RefundRequest(event_id=spend.id, amount=1, request_id=fresh())
    )
    credit = await tenant.owner(
        ledger_pb2.RecordFundingRequest(
            vault_id=tenant.vault_id, amount=1, request_id=fresh(), pending=True
        )
    )
    return [(await tenant.hold(10)).id, spend.id, refund.event.id, credit.event.id]


def ids_in(message: Message) -> Iterator[str]:
    for descriptor, value in message.ListFields():
        if descriptor.name.endswith("_id") and descriptor.name not in {"request_id", "drift_id"}:
            yield value
        elif descriptor.name == "spends":
            yield from ids_in(value[0])


async def must_look_missing(caller: Client, theirs: Resources) -> None:
    """Call everything with a resource of others, and with one that nobody has."""
    pairs = zip(examples.with_ids(theirs), examples.with_ids(Resources()), strict=True)
    for message, about_nothing in pairs:
        (foreign_id,) = ids_in(message)
        found = await raw_refusal(caller(message))
        missing = await raw_refusal(caller(about_nothing))
        rpc = message.DESCRIPTOR.name
        assert found[:2] == missing[:2], rpc
        assert found[0] in {"NOT_FOUND", "PERMISSION_DENIED"}, rpc
        # The ids are equally long, so that not even a length differs.
        assert len(foreign_id) == len(MISSING)
        assert found[2].replace(foreign_id.encode(), MISSING.encode()) == missing[2], rpc


async def test_what_belongs_to_others_looks_as_if_it_were_not_there(shared: Pilot) -> None:
    """For every RPC that takes an id the bytes of both answers are equal; nothing changes."""
    others, stranger = await shared.tenant(), await shared.tenant()
    event_ids = await events_of_every_kind(others)
    theirs = await resources_of(others)
    callers = [stranger.owner, await stranger.api_key(*PERMISSIONS), stranger.agent]
    # The first stream of all makes the key that tokens are signed with.
    await stranger.owner(ledger_pb2.ListEventsRequest())
    before = await shared.dump()

    for event_id in event_ids:
        for caller in callers:
            await must_look_missing(caller, replace(theirs, event=event_id))

    assert await shared.dump() == before


async def test_an_agent_sees_and_moves_only_what_is_its_own(shared: Pilot) -> None:
    """Of an agent beside it, and of the vault's funding, it learns as little as a stranger."""
    tenant = await shared.tenant()
    beside_id, beside = await tenant.another_agent()
    hold = await beside(ledger_pb2.AuthorizeSpendRequest(amount=5, request_id=fresh()))
    funding = await tenant.fund(5)
    elsewhere = await shared.tenant()
    await elsewhere.owner(ledger_pb2.ListEventsRequest())
    before = await shared.dump()

    for event in (hold.event, funding):
        theirs = Resources(agent=beside_id, event=event.id, vault=elsewhere.vault_id)
        await must_look_missing(tenant.agent, theirs)

    listed = await tenant.agent(ledger_pb2.ListEventsRequest(vault_id=tenant.vault_id))
    assert list(listed.events) == []
    assert await shared.dump() == before


async def test_a_batch_with_an_agent_of_others_is_refused_whole(shared: Pilot) -> None:
    """One foreign agent among a caller's own hides as well as alone, and none is charged."""
    tenant, others = await shared.tenant(), await shared.tenant()
    before = await shared.dump()

    answers = [
        await refusal(
            tenant.owner(
                ledger_pb2.BatchSpendRequest(
                    spends=[
                        ledger_pb2.SpendRequest(agent_id=agent_id, amount=1, request_id=fresh())
                        for agent_id in (tenant.agent_id, foreign)
                    ]
                )
            )
        )
        for foreign in (others.agent_id, MISSING)
    ]

    assert [answer.code for answer in answers] == ["NOT_FOUND"] * 2
    assert answers[0].metadata == {"resource": "agent", "id": others.agent_id}
    assert answers[1].metadata == {"resource": "agent", "id": MISSING}
    assert await shared.dump() == before


async def test_an_agent_reads_itself_its_budget_and_its_events(shared: Pilot) -> None:
    """Without naming itself, or by its own id, it gets the same."""
    tenant = await shared.tenant()
    spend = await tenant.spend(7)

    for agent_id in ("", tenant.agent_id):
        agent = await tenant.agent(agents_pb2.GetAgentRequest(agent_id=agent_id))
        rule = await tenant.agent(budgets_pb2.GetBudgetRuleRequest(agent_id=agent_id))
        events = await tenant.agent(ledger_pb2.ListEventsRequest(agent_id=agent_id))
        assert agent.agent.id == rule.budget_rule.agent_id == tenant.agent_id
        assert rule.budget_rule.day.spent == 7
        assert list(events.events) == [spend]

    got = await tenant.agent(ledger_pb2.GetEventRequest(event_id=spend.id))
    assert got.event == spend


BALANCE = 123_456_789
HELD_BY_ANOTHER = 7_654_321
HELD = 1_234_321


def numbers_in(message: Message) -> Iterator[int]:
    """Every whole number of an answer, however deep; times are left out."""
    for descriptor, value in message.ListFields():
        for each in value if descriptor.is_repeated else [value]:
            if isinstance(each, Message):
                if each.DESCRIPTOR.full_name != "google.protobuf.Timestamp":
                    yield from numbers_in(each)
            elif isinstance(each, int):
                yield each


async def answers_after_a_decline(tenant: Tenant, caller: Client) -> list[Message]:
    """Everything that a caller may ask about a spend that the vault cannot pay."""
    too_much = BALANCE + HELD_BY_ANOTHER + HELD + 1
    spend = ledger_pb2.SpendRequest(agent_id=tenant.agent_id, amount=too_much, request_id=fresh())
    declined = await caller(spend)
    assert declined.event.failure_reason == ledger_pb2.FAILURE_REASON_INSUFFICIENT_BALANCE
    hold = ledger_pb2.AuthorizeSpendRequest(
        agent_id=tenant.agent_id, amount=too_much, request_id=fresh()
    )
    return [
        declined,
        await caller(spend),
        await caller(hold),
        await caller(ledger_pb2.BatchSpendRequest(spends=[spend])),
        await caller(ledger_pb2.GetEventRequest(event_id=declined.event.id)),
        await caller(ledger_pb2.ListEventsRequest(agent_id=tenant.agent_id)),
        await caller(budgets_pb2.CheckSpendRequest(agent_id=tenant.agent_id, amount=too_much)),
        await caller(budgets_pb2.CheckSpendRequest(agent_id=tenant.agent_id, amount=1)),
        await caller(budgets_pb2.GetBudgetRuleRequest(agent_id=tenant.agent_id)),
        await caller(agents_pb2.GetAgentRequest(agent_id=tenant.agent_id)),
    ]


async def test_an_agent_never_sees_the_balance_of_the_vault(shared: Pilot) -> None:
    """No number of any answer tells it; the owner sees the balance in the same places."""
    tenant = await shared.tenant(balance=BALANCE + HELD_BY_ANOTHER + HELD, daily_limit=10**15)
    _, beside = await tenant.another_agent()
    await beside(ledger_pb2.AuthorizeSpendRequest(amount=HELD_BY_ANOTHER, request_id=fresh()))
    await tenant.hold(HELD)
    secrets = {BALANCE, HELD_BY_ANOTHER + HELD, BALANCE + HELD_BY_ANOTHER + HELD}

    to_agent = await answers_after_a_decline(tenant, tenant.agent)
    to_owner = await answers_after_a_decline(tenant, tenant.owner)

    assert [secrets & set(numbers_in(answer)) for answer in to_agent] == [set()] * len(to_agent)
    shown = [bool(secrets & set(numbers_in(answer))) for answer in to_owner]
    assert shown == [True] * 8 + [False] * 2
