"""Whom agents may pay: lists that owners keep, and payments that they allow."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from solders.keypair import Keypair

from pilot_grpc.domain.agents import RECIPIENTS_PER_AGENT_MAX
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.gen.pilot.v1 import agents_pb2 as pb
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from pilot_grpc.gen.pilot.v1 import vaults_pb2 as vaults
from pilot_grpc.solana import addresses
from tests import make
from tests.make import OTHER_WALLET, WALLET
from tests.rpc.serving import Client, Pilot, Tenant, code, fresh, refusal, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_chain(shared_database: str) -> AsyncIterator[Pilot]:
    """A server with a chain, which none of this asks, on the database of `shared`."""
    async with serving(shared_database, solana_rpc_urls=make.NOWHERE) as running:
        yield running


async def add(tenant: Tenant, address: str = WALLET, label: str | None = None) -> pb.Recipient:
    request = pb.AddRecipientRequest(agent_id=tenant.agent_id, address=address, label=label)
    recipient: pb.Recipient = (await tenant.owner(request)).recipient
    return recipient


async def remove(tenant: Tenant, address: str = WALLET) -> None:
    await tenant.owner(pb.RemoveRecipientRequest(agent_id=tenant.agent_id, address=address))


async def listed(tenant: Tenant, page_size: int = 500) -> list[pb.Recipient]:
    answer = await tenant.owner(
        pb.ListRecipientsRequest(agent_id=tenant.agent_id, page_size=page_size)
    )
    return list(answer.recipients)


def wallets(count: int) -> list[str]:
    """So many wallets that nobody has the keys of."""
    return [str(Keypair.from_seed(n.to_bytes(32)).pubkey()) for n in range(1, count + 1)]


async def payer(pilot: Pilot, chain_balance: int = 1_000) -> Tenant:
    """A tenant with so much on chain, whose agent may pay nobody yet."""
    tenant = await pilot.tenant(balance=0)
    await make.deposit(pilot.app, VaultId(tenant.vault_id), chain_balance, fresh("deposit"))
    return tenant


# --- lists ------------------------------------------------------------------------------


async def test_a_list_begins_empty_and_has_what_was_added(shared: Pilot) -> None:
    """Removed, a wallet is off it, and cannot be removed again."""
    tenant = await shared.tenant(balance=0)
    at_first = await listed(tenant)
    added = [await add(tenant, WALLET, "Supplier"), await add(tenant, OTHER_WALLET)]

    both = await listed(tenant)
    await remove(tenant)
    one = await listed(tenant)
    again = await refusal(remove(tenant))

    assert at_first == []
    assert sorted(map(str, both)) == sorted(map(str, added))
    assert (added[0].label, added[1].HasField("label")) == ("Supplier", False)
    assert one == [added[1]]
    assert (again.code, again.metadata) == ("NOT_FOUND", {"resource": "recipient", "id": WALLET})


async def test_a_wallet_that_is_added_again_gets_the_new_label(shared: Pilot) -> None:
    """It stays one, as old as it was; without a label it has none any more."""
    tenant = await shared.tenant(balance=0)
    first = await add(tenant, WALLET, "Supplier")

    renamed = await add(tenant, WALLET, "Landlord")
    unnamed = await add(tenant, WALLET)

    assert (renamed.label, unnamed.HasField("label")) == ("Landlord", False)
    assert renamed.create_time == unnamed.create_time == first.create_time
    assert await listed(tenant) == [unnamed]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"address": addresses.token_account(WALLET, OTHER_WALLET)}, "address"),
        ({"address": WALLET[:-1]}, "address"),
        ({"address": WALLET + "1"}, "address"),
        ({"address": "1" * 33}, "address"),
        ({"address": WALLET.replace("w", "0")}, "address"),
        ({"address": f" {WALLET[1:]}"}, "address"),
        ({"address": ""}, "address"),
        ({"label": ""}, "label"),
        ({"label": "x" * 101}, "label"),
        ({"label": "a\nb"}, "label"),
        ({"label": "a\x00b"}, "label"),
    ],
)
async def test_what_is_no_wallet_or_no_label_is_refused(
    shared: Pilot, fields: dict[str, str], wrong: str
) -> None:
    """A token account above all: USDC that is sent to one by hand is lost."""
    tenant = await shared.tenant(balance=0)
    request = pb.AddRecipientRequest(
        **{"agent_id": tenant.agent_id, "address": WALLET, "label": "Label"} | fields
    )

    found = await refusal(tenant.owner(request))

    assert (found.code, found.reason, found.fields) == (
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
        [wrong],
    )
    assert await listed(tenant) == []


async def test_a_label_of_a_hundred_characters_is_kept_as_sent(shared: Pilot) -> None:
    tenant = await shared.tenant(balance=0)

    assert (await add(tenant, WALLET, "é" * 100)).label == "é" * 100


async def test_an_agent_reads_its_own_list_only(shared: Pilot) -> None:
    """Without naming itself, too; that of an agent beside it looks as if it were not there."""
    tenant = await shared.tenant(balance=0)
    beside_id, beside = await tenant.another_agent()
    recipient = await add(tenant)

    own = [
        await tenant.agent(pb.ListRecipientsRequest(agent_id=agent_id))
        for agent_id in ("", tenant.agent_id)
    ]
    none = await beside(pb.ListRecipientsRequest())
    others = await refusal(tenant.agent(pb.ListRecipientsRequest(agent_id=beside_id)))

    assert [list(answer.recipients) for answer in own] == [[recipient]] * 2
    assert list(none.recipients) == []
    assert (others.code, others.metadata) == ("NOT_FOUND", {"resource": "agent", "id": beside_id})


async def test_a_deleted_agent_has_no_list(shared: Pilot) -> None:
    tenant = await shared.tenant(balance=0)
    await add(tenant)
    await tenant.owner(pb.DeleteAgentRequest(agent_id=tenant.agent_id))

    assert await code(listed(tenant)) == "NOT_FOUND"
    assert await code(add(tenant)) == "NOT_FOUND"
    assert await code(remove(tenant)) == "NOT_FOUND"


async def fill(pilot: Pilot, agent_id: str, some: Sequence[str]) -> None:
    """Put wallets on a list, past the RPC, because they are many."""
    await pilot.pool.execute(
        "INSERT INTO agent_recipients (agent_id, address) SELECT $1, unnest($2::text[])",
        agent_id,
        some,
    )


async def test_a_list_is_read_once_each_whatever_is_added_meanwhile(shared: Pilot) -> None:
    """In pages of three, by address, with wallets that come and go in between."""
    tenant = await shared.tenant(balance=0)
    some = wallets(40)
    await fill(shared, tenant.agent_id, some[:20])
    existing = [recipient.address for recipient in await listed(tenant)]
    request = pb.ListRecipientsRequest(agent_id=tenant.agent_id, page_size=3)
    sizes, read = [], []

    for newcomer in some[20:]:
        page = await tenant.owner(request)
        sizes.append(len(page.recipients))
        read += [recipient.address for recipient in page.recipients]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await add(tenant, newcomer)
        await remove(tenant, newcomer)

    assert read == existing
    assert {*read} == {*some[:20]}
    assert sizes == [3] * 6 + [2]


async def test_a_list_has_fifty_rows_unless_asked_and_five_hundred_at_most(shared: Pilot) -> None:
    tenant = await shared.tenant(balance=0)
    await fill(shared, tenant.agent_id, wallets(501))

    assert [len(await listed(tenant, size)) for size in (0, 1, 500, 501)] == [50, 1, 500, 500]


@pytest.mark.parametrize("token", ["none", "bm9uZQ==", "WyJ4IiwgMV0="])
async def test_a_token_that_is_none_is_refused(shared: Pilot, token: str) -> None:
    tenant = await shared.tenant(balance=0)
    request = pb.ListRecipientsRequest(agent_id=tenant.agent_id, page_token=token)

    found = await refusal(tenant.owner(request))

    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ["page_token"])


async def test_a_list_has_at_most_a_thousand_wallets(shared: Pilot) -> None:
    """Of five that race for the last place one gets it; a new label needs no place."""
    tenant = await shared.tenant(balance=0)
    some = wallets(RECIPIENTS_PER_AGENT_MAX + 5)
    await fill(shared, tenant.agent_id, some[: RECIPIENTS_PER_AGENT_MAX - 1])

    found = await asyncio.gather(
        *(refusal(add(tenant, each)) for each in some[RECIPIENTS_PER_AGENT_MAX - 1 : -1])
    )
    renamed = await add(tenant, some[0], "Renamed")
    await remove(tenant, some[1])
    after = await refusal(add(tenant, some[-1]))

    refused = [each for each in found if each.code != "OK"]
    assert len(refused) == len(found) - 1
    assert {(each.code, each.reason) for each in refused} == {
        ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    }
    assert refused[0].metadata == {"resource": "recipient", "limit": "1000"}
    assert renamed.label == "Renamed"
    assert after.code == "OK"


# --- payments ---------------------------------------------------------------------------


async def test_an_agent_pays_only_whom_its_list_has(on_chain: Pilot) -> None:
    """An empty list allows nobody, and once a wallet is removed nothing more is approved."""
    tenant = await payer(on_chain)
    before = await tenant.spend(5, recipient=WALLET)
    await add(tenant)

    paid = await tenant.spend(5, recipient=WALLET)
    stranger = await tenant.spend(5, recipient=OTHER_WALLET)
    await remove(tenant)
    after = await tenant.spend(5, recipient=WALLET)

    not_allowed = ledger.FAILURE_REASON_RECIPIENT_NOT_ALLOWED
    assert [each.failure_reason for each in (before, stranger, after)] == [not_allowed] * 3
    assert (paid.status, paid.kind, paid.recipient, paid.amount) == (
        ledger.EVENT_STATUS_PENDING,
        ledger.EVENT_KIND_TRANSFER,
        WALLET,
        -5,
    )


async def test_the_list_of_an_agent_is_not_that_of_its_sibling(on_chain: Pilot) -> None:
    tenant = await payer(on_chain)
    _, beside = await tenant.another_agent()
    await add(tenant)

    answer = await beside(ledger.SpendRequest(amount=5, recipient=WALLET, request_id=fresh()))

    assert answer.event.failure_reason == ledger.FAILURE_REASON_RECIPIENT_NOT_ALLOWED


async def test_a_payment_can_be_read_wherever_events_are(on_chain: Pilot) -> None:
    """By its id, in lists of its kind, and after it has landed with its signature."""
    tenant = await payer(on_chain)
    await add(tenant)
    paid = await tenant.spend(5, recipient=WALLET, metadata='{"for": "rent"}')

    by_kind = await tenant.agent(ledger.ListEventsRequest(kinds=[ledger.EVENT_KIND_TRANSFER]))
    metered = await tenant.agent(ledger.ListEventsRequest(kinds=[ledger.EVENT_KIND_METERED]))
    await on_chain.land(paid)
    landed = (await tenant.agent(ledger.GetEventRequest(event_id=paid.id))).event

    assert list(by_kind.events) == [paid]
    assert list(metered.events) == []
    assert paid.metadata == '{"for": "rent"}'
    assert landed.status == ledger.EVENT_STATUS_CONFIRMED
    assert landed.tx_hash.startswith("payment")
    assert landed.recipient == WALLET


async def test_a_payment_is_asked_for_again_and_made_once(on_chain: Pilot, shared: Pilot) -> None:
    """Ten at the same time get one answer; so does one on a server that has no chain."""
    tenant = await payer(on_chain)
    await add(tenant)
    request = ledger.SpendRequest(amount=5, recipient=WALLET, request_id=fresh())
    elsewhere: Client = shared.nobody.with_credential(tenant.agent.credential)

    answers = await asyncio.gather(*(tenant.agent(request) for _ in range(10)))
    replayed = await elsewhere(request)
    new = await refusal(
        elsewhere(ledger.SpendRequest(amount=5, recipient=WALLET, request_id=fresh()))
    )

    assert len({answer.event.id for answer in answers}) == 1
    assert replayed == answers[0]
    assert (new.code, new.reason) == ("UNIMPLEMENTED", "RECIPIENT_UNSUPPORTED")
    count = "SELECT count(*) FROM pending_transfers WHERE vault_id = $1"
    assert await on_chain.pool.fetchval(count, tenant.vault_id) == 1


@pytest.mark.parametrize("recipient", [OTHER_WALLET, None])
async def test_the_same_id_for_another_recipient_is_another_request(
    on_chain: Pilot, recipient: str | None
) -> None:
    """Also for none: whoever tries again must not pay somebody else."""
    tenant = await payer(on_chain)
    await add(tenant)
    request: dict[str, Any] = {"amount": 5, "recipient": WALLET, "request_id": fresh()}
    await tenant.agent(ledger.SpendRequest(**request))

    found = await refusal(tenant.agent(ledger.SpendRequest(**request | {"recipient": recipient})))

    assert (found.code, found.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    assert "recipient" in str(found.metadata)


async def test_a_batch_mixes_payments_and_metered_use(on_chain: Pilot) -> None:
    """In order: what the first takes from the balance, the last no longer has."""
    tenant = await payer(on_chain, 10)
    await add(tenant)
    spends = [
        ledger.SpendRequest(amount=6, recipient=WALLET, request_id=fresh()),
        ledger.SpendRequest(amount=3, request_id=fresh()),
        ledger.SpendRequest(amount=2, recipient=WALLET, request_id=fresh()),
        ledger.SpendRequest(amount=1, recipient=OTHER_WALLET, request_id=fresh()),
    ]

    answer = await tenant.agent(ledger.BatchSpendRequest(spends=spends))

    assert [event.status for event in answer.events] == [
        ledger.EVENT_STATUS_PENDING,
        ledger.EVENT_STATUS_CONFIRMED,
        *[ledger.EVENT_STATUS_FAILED] * 2,
    ]
    assert [event.failure_reason for event in answer.events[2:]] == [
        ledger.FAILURE_REASON_INSUFFICIENT_BALANCE,
        ledger.FAILURE_REASON_RECIPIENT_NOT_ALLOWED,
    ]


async def test_an_agent_is_told_no_figure_of_the_chain(on_chain: Pilot) -> None:
    """Neither by the decline, nor when it reads it again; its owner sees what there is."""
    tenant = await payer(on_chain, 10)
    await tenant.fund(1_000)
    await add(tenant)

    declined = await tenant.spend(11, recipient=WALLET)
    read = (await tenant.agent(ledger.GetEventRequest(event_id=declined.id))).event
    by_owner = (await tenant.owner(ledger.GetEventRequest(event_id=declined.id))).event

    only_reason = ledger.Decline(reason=ledger.FAILURE_REASON_INSUFFICIENT_CHAIN_BALANCE)
    assert declined.decline == read.decline == only_reason
    assert by_owner.decline.remaining == 10


async def test_a_payment_on_its_way_is_neither_captured_released_nor_refunded(
    on_chain: Pilot,
) -> None:
    """Only the chain decides about it."""
    tenant = await payer(on_chain)
    await add(tenant)
    paid = await tenant.spend(5, recipient=WALLET)

    for caller, request, reason in (
        (
            tenant.agent,
            ledger.CaptureSpendRequest(event_id=paid.id, amount=5, request_id=fresh()),
            "HOLD_NOT_OPEN",
        ),
        (
            tenant.agent,
            ledger.ReleaseSpendRequest(event_id=paid.id, request_id=fresh()),
            "HOLD_NOT_OPEN",
        ),
        (
            tenant.owner,
            ledger.RefundRequest(event_id=paid.id, amount=5, request_id=fresh()),
            "SPEND_NOT_REFUNDABLE",
        ),
        (
            tenant.owner,
            ledger.FailFundingRequest(event_id=paid.id, request_id=fresh()),
            "FUNDING_NOT_PENDING",
        ),
    ):
        assert (await refusal(caller(request))).reason == reason


@pytest.mark.parametrize("lands", [True, False])
async def test_a_deleted_agents_payment_goes_on(on_chain: Pilot, lands: bool) -> None:
    """It may be on chain already: its holds are given back, and this is none.

    Whatever becomes of it is counted for the agent, so that the recount agrees.
    """
    tenant = await payer(on_chain)
    await add(tenant)
    paid, hold = await tenant.spend(5, recipient=WALLET), await tenant.hold(7)

    await tenant.owner(pb.DeleteAgentRequest(agent_id=tenant.agent_id))
    after = [
        (await tenant.owner(ledger.GetEventRequest(event_id=each.id))).event.status
        for each in (paid, hold)
    ]
    await (on_chain.land(paid) if lands else on_chain.lose(paid))

    assert after == [ledger.EVENT_STATUS_PENDING, ledger.EVENT_STATUS_FAILED]
    vault = (await tenant.owner(vaults.GetVaultRequest(vault_id=tenant.vault_id))).vault
    left = 995 if lands else 1_000
    assert (vault.balance, vault.chain_balance, vault.held) == (left, left, 0)
    verified = await tenant.owner(ledger.VerifyLedgerRequest(vault_id=tenant.vault_id))
    assert not verified.HasField("discrepancy")
