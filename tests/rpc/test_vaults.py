"""Vaults on the wire: where they are funded, what owners take out, and drifts."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from pilot_grpc.domain.ids import VaultId
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from pilot_grpc.gen.pilot.v1 import projects_pb2
from pilot_grpc.gen.pilot.v1 import vaults_pb2 as pb
from pilot_grpc.solana import addresses, clusters
from tests import make
from tests.make import OTHER_WALLET, WALLET
from tests.rpc.serving import Client, Pilot, Refusal, Tenant, fresh, refusal, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNSUPPORTED = Refusal("UNIMPLEMENTED", "RECIPIENT_UNSUPPORTED")
MINT = clusters.EMBEDDED.usdc_mint or ""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_chain(shared_database: str) -> AsyncIterator[Pilot]:
    """A server with a chain that is away, on the database of `shared`."""
    async with serving(shared_database, solana_rpc_urls=make.NOWHERE) as running:
        yield running


async def owner_of(pilot: Pilot, chain_balance: int, metered: int = 0) -> Tenant:
    """A tenant with so much on chain, of which some was spent on metered use."""
    tenant = await pilot.tenant(balance=0)
    await make.deposit(pilot.app, VaultId(tenant.vault_id), chain_balance, fresh("deposit"))
    if metered:
        await tenant.spend(metered)
    return tenant


def withdrawal(tenant: Tenant, amount: int, **fields: Any) -> pb.WithdrawRequest:
    return pb.WithdrawRequest(
        **{
            "vault_id": tenant.vault_id,
            "amount": amount,
            "recipient": WALLET,
            "request_id": fresh(),
            **fields,
        }
    )


def settlement(tenant: Tenant, amount: int, **fields: Any) -> pb.SettleRequest:
    return pb.SettleRequest(
        **{
            "vault_id": tenant.vault_id,
            "amount": amount,
            "recipient": WALLET,
            "request_id": fresh(),
            **fields,
        }
    )


def acknowledgement(tenant: Tenant, amount: int, **fields: Any) -> pb.AcknowledgeDriftRequest:
    return pb.AcknowledgeDriftRequest(
        **{
            "vault_id": tenant.vault_id,
            "drift_id": "cdrift",
            "amount": amount,
            "request_id": fresh(),
            **fields,
        }
    )


async def get_vault(tenant: Tenant) -> pb.Vault:
    answer = await tenant.owner(pb.GetVaultRequest(vault_id=tenant.vault_id))
    vault: pb.Vault = answer.vault
    return vault


async def figures(tenant: Tenant) -> tuple[int, int, int]:
    vault = await get_vault(tenant)
    return vault.balance, vault.chain_balance, vault.held


async def stop(pilot: Pilot, tenant: Tenant, amount: int) -> None:
    await make.stop(pilot.app, VaultId(tenant.vault_id), amount)


# --- deposits ---------------------------------------------------------------------------


async def test_a_vault_tells_where_it_is_funded(on_chain: Pilot) -> None:
    """Its wallet, the account where USDC arrives, and a link that may ask for an amount."""
    tenant = await on_chain.tenant(balance=0)
    address = (await get_vault(tenant)).address

    plain = await tenant.owner(pb.GetDepositAddressRequest(vault_id=tenant.vault_id))
    asking = await tenant.owner(
        pb.GetDepositAddressRequest(vault_id=tenant.vault_id, amount=1_500_000)
    )

    assert plain == pb.GetDepositAddressResponse(
        address=address,
        token_account=addresses.token_account(address, MINT),
        usdc_mint=MINT,
        cluster="embedded",
        payment_link=f"solana:{address}?spl-token={MINT}",
    )
    assert asking.payment_link == f"solana:{address}?amount=1.500000&spl-token={MINT}"


@pytest.mark.parametrize("amount", [0, -1, 10**15 + 1])
async def test_a_link_asks_for_an_amount_that_a_deposit_can_be(
    on_chain: Pilot, amount: int
) -> None:
    tenant = await on_chain.tenant(balance=0)
    request = pb.GetDepositAddressRequest(vault_id=tenant.vault_id, amount=amount)

    found = await refusal(tenant.owner(request))

    assert (found.code, found.fields) == ("INVALID_ARGUMENT", ["amount"])


async def test_without_a_chain_a_vault_is_only_looked_at(shared: Pilot) -> None:
    """Everything else is UNIMPLEMENTED, and leaves nothing behind."""
    tenant = await shared.tenant(balance=100)
    before = await shared.dump()

    found = [
        await refusal(tenant.owner(request))
        for request in (
            pb.GetDepositAddressRequest(vault_id=tenant.vault_id),
            pb.ReconcileVaultRequest(vault_id=tenant.vault_id),
            withdrawal(tenant, 1),
            settlement(tenant, 1),
        )
    ]

    assert found == [UNSUPPORTED] * 4
    assert (await figures(tenant))[0] == 100
    assert await shared.dump() == before


async def test_a_vault_is_not_reconciled_with_a_chain_that_is_away(on_chain: Pilot) -> None:
    """Its caller is told when to try again, and nothing has happened."""
    tenant = await owner_of(on_chain, 100)
    before = await on_chain.dump()

    found = await refusal(tenant.owner(pb.ReconcileVaultRequest(vault_id=tenant.vault_id)))

    assert (found.code, found.reason) == ("UNAVAILABLE", "CHAIN_UNAVAILABLE")
    assert found.retry_seconds
    assert await on_chain.dump() == before


# --- what owners take out ---------------------------------------------------------------


async def test_a_withdrawal_is_taken_from_both_figures_at_once(on_chain: Pilot) -> None:
    """Pending until the chain decides; lost, it comes back, and the recount agrees."""
    tenant = await owner_of(on_chain, 100, metered=30)
    await tenant.hold(10)

    event = (await tenant.owner(withdrawal(tenant, 20, metadata='{"to": "bank"}'))).event
    during = await figures(tenant)
    await on_chain.lose(event)

    assert (event.kind, event.status) == (
        ledger.EVENT_KIND_WITHDRAWAL,
        ledger.EVENT_STATUS_PENDING,
    )
    assert (event.amount, event.recipient, event.metadata) == (-20, WALLET, '{"to": "bank"}')
    assert not event.HasField("agent_id")
    assert (during, await figures(tenant)) == ((40, 80, 10), (60, 100, 10))
    await must_verify(tenant)


async def test_a_settlement_is_what_is_behind_metered_use(on_chain: Pilot) -> None:
    """The balance and the holds stay covered: thirty were used, and no more is settled."""
    tenant = await owner_of(on_chain, 100, metered=30)
    await tenant.hold(10)

    beyond = await refusal(tenant.owner(settlement(tenant, 31)))
    event = (await tenant.owner(settlement(tenant, 30))).event
    nothing = await refusal(tenant.owner(settlement(tenant, 1)))

    assert (beyond.reason, beyond.metadata) == ("EXCEEDS_VAULT", {"remaining": "30"})
    assert (event.kind, event.amount) == (ledger.EVENT_KIND_SETTLEMENT, -30)
    assert nothing.metadata == {"remaining": "0"}
    assert await figures(tenant) == (60, 70, 10)
    await must_verify(tenant)


async def test_withdrawals_that_race_never_take_more_than_there_is(on_chain: Pilot) -> None:
    """Fifty of 10 race for 95 beside spends: neither figure is ever negative."""
    tenant = await owner_of(on_chain, 95)

    found = await asyncio.gather(
        *(refusal(tenant.owner(withdrawal(tenant, 10))) for _ in range(50))
    )

    assert [each.code for each in found].count("OK") == 9
    assert {each.reason for each in found if each.code != "OK"} == {"EXCEEDS_VAULT"}
    assert await figures(tenant) == (5, 5, 0)
    await must_verify(tenant)


@pytest.mark.parametrize("make_request", [withdrawal, settlement])
async def test_money_is_taken_out_once_for_each_request(
    on_chain: Pilot, shared: Pilot, make_request: Any
) -> None:
    """Again it is the same event, also elsewhere and stopped; with other content an error."""
    tenant = await owner_of(on_chain, 100, metered=50)
    request = make_request(tenant, 20)
    elsewhere: Client = shared.nobody.with_credential(tenant.owner.credential)

    first, *others = await asyncio.gather(*(tenant.owner(request) for _ in range(5)))
    await stop(on_chain, tenant, -5)
    again = [await tenant.owner(request), await elsewhere(request)]
    other = [
        await refusal(tenant.owner(make_request(tenant, request_id=request.request_id, **change)))
        for change in ({"amount": 21}, {"amount": 20, "recipient": OTHER_WALLET})
    ]
    funding = ledger.RecordFundingRequest(
        vault_id=tenant.vault_id, amount=20, request_id=request.request_id
    )

    assert [*others, *again] == [first] * 6
    assert [each.reason for each in other] == ["REQUEST_ID_REUSED"] * 2
    assert (await refusal(tenant.owner(funding))).reason == "REQUEST_ID_REUSED"
    assert (await get_vault(tenant)).chain_balance == 80


@pytest.mark.parametrize("make_request", [withdrawal, settlement])
@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"recipient": addresses.token_account(WALLET, MINT)}, "recipient"),
        ({"recipient": "nonsense"}, "recipient"),
        ({"amount": 0}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 10**15 + 1}, "amount"),
        ({"request_id": ""}, "request_id"),
        ({"metadata": "{"}, "metadata"),
        ({"vault_id": "?"}, "vault_id"),
    ],
)
async def test_what_cannot_be_taken_out_is_refused_by_its_field(
    on_chain: Pilot, make_request: Any, fields: dict[str, Any], wrong: str
) -> None:
    tenant = await owner_of(on_chain, 100, metered=50)

    found = await refusal(tenant.owner(make_request(tenant, **{"amount": 1} | fields)))

    assert (found.code, found.fields) == ("INVALID_ARGUMENT", [wrong])
    assert (await get_vault(tenant)).chain_balance == 100


async def test_an_archived_project_is_emptied_and_then_deleted(on_chain: Pilot) -> None:
    """It still pays out; with a withdrawal on its way it is not empty."""
    tenant = await owner_of(on_chain, 100, metered=30)
    await tenant.owner(projects_pb2.ArchiveProjectRequest(project_id=tenant.project_id))
    delete = projects_pb2.DeleteProjectRequest(project_id=tenant.project_id)

    events = [
        (await tenant.owner(request)).event
        for request in (withdrawal(tenant, 70), settlement(tenant, 30))
    ]
    on_its_way = await refusal(tenant.owner(delete))
    for event in events:
        await on_chain.land(event)
    emptied = await refusal(tenant.owner(delete))

    assert on_its_way.reason == "PROJECT_NOT_EMPTY"
    assert emptied == Refusal("OK")


async def test_only_a_session_takes_money_out(on_chain: Pilot) -> None:
    """An API key with every permission does not, nor does it acknowledge a drift."""
    tenant = await owner_of(on_chain, 100, metered=50)
    key = await tenant.api_key("read", "write", "execute")
    await stop(on_chain, tenant, -5)
    before = await on_chain.dump(but=("api_keys",))

    for request in (withdrawal(tenant, 1), settlement(tenant, 1), acknowledgement(tenant, -5)):
        by_key, by_agent = await refusal(key(request)), await refusal(tenant.agent(request))
        assert (by_key.code, by_key.metadata) == ("PERMISSION_DENIED", {"permission": "session"})
        assert (by_agent.code, by_agent.metadata) == ("PERMISSION_DENIED", {"permission": "user"})

    assert await on_chain.dump(but=("api_keys",)) == before


# --- drifts -----------------------------------------------------------------------------


async def test_an_open_drift_shows_until_it_is_acknowledged(on_chain: Pilot) -> None:
    """With all that is known of it; payments, and whatever else leaves, are stopped by it."""
    tenant = await owner_of(on_chain, 100)
    await stop(on_chain, tenant, -5)

    drift = (await get_vault(tenant)).open_drift
    stopped = await refusal(tenant.owner(withdrawal(tenant, 1)))
    metered = await tenant.spend(1)
    event = (await tenant.owner(acknowledgement(tenant, -5))).event
    after = await get_vault(tenant)

    assert (drift.id, drift.open, drift.amount, drift.slot) == ("cdrift", True, -5, 9)
    assert (drift.found_amount, drift.expected_amount) == (95, 100)
    assert list(drift.outflows) == [ledger.Outflow(tx_hash="theft", amount=5, slot=8)]
    assert stopped.metadata == {"drift_id": "cdrift", "amount": "-5"}
    assert metered.status == ledger.EVENT_STATUS_CONFIRMED
    assert (event.kind, event.status, event.amount) == (
        ledger.EVENT_KIND_WITHDRAWAL,
        ledger.EVENT_STATUS_CONFIRMED,
        -5,
    )
    assert not after.HasField("open_drift")
    assert (after.balance, after.chain_balance) == (94, 95)
    await must_verify(tenant)


async def test_what_was_spent_already_is_settled_by_an_acknowledgement(on_chain: Pilot) -> None:
    """Ninety are missing of which only forty were left: the answer is the first of two events."""
    tenant = await owner_of(on_chain, 100, metered=60)
    await stop(on_chain, tenant, -90)

    first = (await tenant.owner(acknowledgement(tenant, -90))).event

    listed = await tenant.owner(ledger.ListEventsRequest(vault_id=tenant.vault_id, page_size=2))
    by_kind = {event.kind: event for event in listed.events}
    assert by_kind[ledger.EVENT_KIND_WITHDRAWAL] == first
    assert (first.amount, by_kind[ledger.EVENT_KIND_SETTLEMENT].amount) == (-40, -50)
    assert await figures(tenant) == (0, 10, 0)
    await must_verify(tenant)


async def test_a_surplus_is_acknowledged_as_a_deposit(on_chain: Pilot) -> None:
    tenant = await owner_of(on_chain, 100)
    await stop(on_chain, tenant, 5)

    event = (await tenant.owner(acknowledgement(tenant, 5))).event

    assert (event.type, event.kind) == (ledger.EVENT_TYPE_FUNDING, ledger.EVENT_KIND_DEPOSIT)
    assert await figures(tenant) == (105, 105, 0)
    await must_verify(tenant)


async def test_a_drift_is_acknowledged_once(on_chain: Pilot) -> None:
    """Five sessions at the same time: one answer for one request, and for others an error."""
    tenant = await owner_of(on_chain, 100)
    await stop(on_chain, tenant, -5)
    request = acknowledgement(tenant, -5)

    same = await asyncio.gather(*(tenant.owner(request) for _ in range(5)))
    other = await refusal(tenant.owner(acknowledgement(tenant, -5)))
    changed = await refusal(
        tenant.owner(acknowledgement(tenant, -6, request_id=request.request_id))
    )

    assert len({answer.event.id for answer in same}) == 1
    assert other.reason == "DRIFT_NOT_OPEN"
    assert changed.reason == "REQUEST_ID_REUSED"
    assert await figures(tenant) == (95, 95, 0)


async def test_a_drift_is_acknowledged_as_it_is_by_now(on_chain: Pilot) -> None:
    """Not as it was when its owner looked: more is gone."""
    tenant = await owner_of(on_chain, 100)
    await stop(on_chain, tenant, -5)
    await stop(on_chain, tenant, -7)

    found = await refusal(tenant.owner(acknowledgement(tenant, -5)))
    event = (await tenant.owner(acknowledgement(tenant, -7))).event

    assert (found.reason, found.metadata) == ("DRIFT_CHANGED", {"amount": "-7"})
    assert event.amount == -7


async def test_a_drift_waits_for_payments_that_are_on_their_way(on_chain: Pilot) -> None:
    """Until the chain has decided about them it is not known what is missing."""
    tenant = await owner_of(on_chain, 100)
    paid = (await tenant.owner(withdrawal(tenant, 10))).event
    await stop(on_chain, tenant, -5)

    found = await refusal(tenant.owner(acknowledgement(tenant, -5)))
    await on_chain.land(paid)
    event = (await tenant.owner(acknowledgement(tenant, -5))).event

    assert (found.reason, found.metadata) == ("TRANSFERS_PENDING", {"pending": "1"})
    assert event.status == ledger.EVENT_STATUS_CONFIRMED
    assert await figures(tenant) == (85, 85, 0)


async def must_verify(tenant: Tenant) -> None:
    """Recount all of the vault; it is less than a page."""
    answer = await tenant.owner(ledger.VerifyLedgerRequest(vault_id=tenant.vault_id))
    assert not answer.HasField("discrepancy")
    assert not answer.next_page_token
