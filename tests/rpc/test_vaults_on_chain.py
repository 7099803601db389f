"""Vaults on the wire with a chain that lives: what is sent arrives, and what is stolen shows.

What needs no chain is in test_vaults.py.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import freeze_account
from spl.token.models import FreezeAccountParams

from pilot_grpc.domain.accounts import Caller, CredentialKind
from pilot_grpc.domain.ids import AgentId, ProjectId, UserId, VaultId
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from pilot_grpc.gen.pilot.v1 import vaults_pb2 as pb
from pilot_grpc.solana import localnet
from pilot_grpc.solana.localnet import FAUCET, FOR_EVER, USDC, Fault, Kind, Localnet
from tests.make import Spender
from tests.rpc.serving import CALL_SECONDS, Pilot, Refusal, Tenant, fresh, refusal, serving
from tests.services.onchain import OnChain, until
from tests.solana.payments import ata

POLL = timedelta(milliseconds=10)
CONFIRMED, PENDING = ledger.EVENT_STATUS_CONFIRMED, ledger.EVENT_STATUS_PENDING


@pytest.fixture
async def net() -> AsyncIterator[Localnet]:
    """A chain that keeps time, fast, and is final soon."""
    async with localnet.running(None, slot_ms=10, finalized_slots=5) as net:
        yield net


@pytest.fixture
async def pilot(database: str, net: Localnet) -> AsyncIterator[Pilot]:
    """A server that works on it."""
    async with serving(
        database, duties=True, webhooks_enabled=False, solana_rpc_urls=(net.url,), solana_poll=POLL
    ) as running:
        yield running


async def get_vault(tenant: Tenant) -> pb.Vault:
    answer = await tenant.owner(pb.GetVaultRequest(vault_id=tenant.vault_id))
    vault: pb.Vault = answer.vault
    return vault


async def holding(tenant: Tenant, chain_balance: int) -> pb.Vault:
    """Wait until a vault has so much on chain."""
    async with asyncio.timeout(CALL_SECONDS):
        while True:
            vault = await get_vault(tenant)
            if vault.chain_balance == chain_balance:
                return vault
            await asyncio.sleep(0.01)


async def decided(tenant: Tenant, event: ledger.Event) -> ledger.Event:
    """Wait until the chain has decided about a payment."""
    async with asyncio.timeout(CALL_SECONDS):
        while event.status == PENDING:
            await asyncio.sleep(0.01)
            event = (await tenant.owner(ledger.GetEventRequest(event_id=event.id))).event
    return event


async def reconciled(tenant: Tenant) -> pb.ReconcileVaultResponse:
    request = pb.ReconcileVaultRequest(vault_id=tenant.vault_id)
    answer: pb.ReconcileVaultResponse = await tenant.owner(request)
    return answer


async def funded(pilot: Pilot, net: Localnet, amount: int) -> Tenant:
    """A tenant whose vault was sent this much."""
    tenant = await pilot.tenant(balance=0)
    found = await tenant.owner(pb.GetDepositAddressRequest(vault_id=tenant.vault_id))
    assert found.token_account == str(ata(Pubkey.from_string(found.address)))
    net.faucet(Pubkey.from_string(found.address), amount)
    await holding(tenant, amount)
    return tenant


def as_spender(tenant: Tenant) -> Spender:
    caller = Caller(CredentialKind.SESSION, UserId(tenant.user_id), "")
    return Spender(
        *(caller, ProjectId(tenant.project_id), VaultId(tenant.vault_id)),
        *(AgentId(tenant.agent_id), "", caller),
    )


async def stolen(pilot: Pilot, net: Localnet, tenant: Tenant, amount: int) -> str:
    """Let somebody take from a vault with its own key; it is final."""
    signature = await OnChain(pilot.app, net).take(as_spender(tenant), amount)
    await until(lambda: OnChain(pilot.app, net).is_final(signature))
    return signature


def freezing(account: Pubkey) -> Instruction:
    """What the issuer of USDC does to an account."""
    return freeze_account(
        FreezeAccountParams(
            program_id=TOKEN_PROGRAM_ID, account=account, mint=USDC, authority=FAUCET.pubkey()
        )
    )


def units(net: Localnet, wallet: Pubkey) -> int:
    """What a wallet has of USDC, in the newest slot."""
    found = net.chain.account(ata(wallet), net.chain.tip)
    return 0 if found is None else int.from_bytes(bytes(found.data)[64:72], "little")


async def test_what_is_sent_to_a_vault_arrives_and_its_owner_takes_it_out(
    pilot: Pilot, net: Localnet
) -> None:
    """A deposit, metered use, a withdrawal and a settlement; then ledger and chain agree on 0."""
    tenant, wallet = await funded(pilot, net, 1_000), Keypair().pubkey()
    await tenant.spend(400)
    request: dict[str, Any] = {"vault_id": tenant.vault_id, "recipient": str(wallet)}

    withdrawn = await tenant.owner(
        pb.WithdrawRequest(**request, amount=600, request_id=fresh(), metadata='"profit"')
    )
    settled = await tenant.owner(pb.SettleRequest(**request, amount=400, request_id=fresh()))
    events = [await decided(tenant, each.event) for each in (withdrawn, settled)]
    await until(lambda: all(OnChain(pilot.app, net).is_final(each.tx_hash) for each in events))
    found = await reconciled(tenant)

    assert (withdrawn.event.status, withdrawn.event.metadata) == (PENDING, '"profit"')
    assert [(each.status, each.kind, each.amount) for each in events] == [
        (CONFIRMED, ledger.EVENT_KIND_WITHDRAWAL, -600),
        (CONFIRMED, ledger.EVENT_KIND_SETTLEMENT, -400),
    ]
    assert all(net.chain.landed(each.tx_hash) for each in events)
    assert units(net, wallet) == 1_000
    assert (found.expected_amount, found.pending_amount, found.HasField("drift")) == (0, 0, False)
    listed = await tenant.owner(ledger.ListEventsRequest(vault_id=tenant.vault_id))
    (deposit,) = [each for each in listed.events if each.kind == ledger.EVENT_KIND_DEPOSIT]
    assert (deposit.status, deposit.amount) == (CONFIRMED, 1_000)
    assert net.chain.landed(deposit.tx_hash)


async def test_a_theft_is_told_to_the_owner_and_ends_with_an_acknowledgement(
    pilot: Pilot, net: Localnet
) -> None:
    """By the reconciliation, by the vault and by the stream, all alike; then payments go on."""
    tenant, wallet = await funded(pilot, net, 1_000), str(Keypair().pubkey())
    latest = ledger.STREAM_START_LATEST
    async with tenant.owner.subscribe(vault_id=tenant.vault_id, start=latest) as stream:
        await stream.read()
        signature = await stolen(pilot, net, tenant, 321)
        (found,) = await stream.next(1)
        answer = await reconciled(tenant)
        vault = await get_vault(tenant)
        taking = pb.WithdrawRequest(
            vault_id=tenant.vault_id, amount=1, recipient=wallet, request_id=fresh()
        )
        refused = await refusal(tenant.owner(taking))
        acknowledging = pb.AcknowledgeDriftRequest(
            vault_id=tenant.vault_id,
            drift_id=answer.drift.id,
            amount=-321,
            request_id=fresh(),
        )
        taken = (await tenant.owner(acknowledging)).event
        ended, _ = await stream.next(2)
    paid = await decided(tenant, (await tenant.owner(taking)).event)

    drift = answer.drift
    assert (drift.amount, drift.found_amount, drift.expected_amount) == (-321, 679, 1_000)
    assert [(each.tx_hash, each.amount) for each in drift.outflows] == [(signature, 321)]
    assert found.drift == vault.open_drift == drift
    assert drift.open
    assert (answer.found_amount, answer.expected_amount) == (679, 1_000)
    assert refused.reason == "VAULT_STOPPED"
    assert (taken.kind, taken.status, taken.amount) == (
        ledger.EVENT_KIND_WITHDRAWAL,
        CONFIRMED,
        -321,
    )
    assert (ended.drift.id, ended.drift.open) == (drift.id, False)
    assert paid.status == CONFIRMED
    assert (await get_vault(tenant)).chain_balance == 678
    assert not (await get_vault(tenant)).HasField("open_drift")


async def test_a_chain_that_goes_away_is_unavailable_and_says_when_to_come_back(
    pilot: Pilot, net: Localnet
) -> None:
    """Nothing is concluded meanwhile; once it is back, all agrees."""
    tenant = await funded(pilot, net, 1_000)
    assert pilot.app.settlement is not None
    OnChain(pilot.app, net).hurry()
    net.faults.add(Fault(Kind.UNAVAILABLE, count=FOR_EVER))

    away = await refusal(reconciled(tenant))
    net.faults.clear()
    async with asyncio.timeout(CALL_SECONDS):
        while (again := await refusal(reconciled(tenant))) != Refusal("OK"):
            assert again.reason == "CHAIN_UNAVAILABLE"
            await asyncio.sleep(0.01)

    assert (away.code, away.reason) == ("UNAVAILABLE", "CHAIN_UNAVAILABLE")
    assert away.retry_seconds is not None
    assert away.retry_seconds > 0
    assert not (await get_vault(tenant)).HasField("open_drift")


async def test_a_warning_is_told_without_a_drift(pilot: Pilot, net: Localnet) -> None:
    """The issuer has frozen the account: nothing is missing, and nothing will move."""
    tenant = await funded(pilot, net, 1_000)
    account = ata(Pubkey.from_string((await get_vault(tenant)).address))

    signature = net.chain._submit_own([freezing(account)])
    await until(lambda: OnChain(pilot.app, net).is_final(signature))
    found = await reconciled(tenant)

    assert ["frozen" in text for text in found.warnings] == [True]
    assert (found.found_amount, found.HasField("drift")) == (1_000, False)
