"""Deposits and foreign outflows on any chain: the embedded one and, in `make test-all`, Surfpool.

Nobody tells Pilot what arrives: it finds that by itself, as it would anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import (
    CreateAccountParams,
    TransferParams,
    create_account,
    transfer,
)
from spl.token.constants import (
    ASSOCIATED_TOKEN_PROGRAM_ID,
    MINT_LEN,
    TOKEN_2022_PROGRAM_ID,
    TOKEN_PROGRAM_ID,
)
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    initialize_mint2,
    mint_to_checked,
)
from spl.token.models import InitializeMint2Params, MintToCheckedParams

from pilot_grpc.domain.ledger import EventFilter, EventKind, EventStatus, FailureReason
from pilot_grpc.solana.localnet import USDC
from tests import make, paying
from tests.paying import FUNDS, Paying
from tests.services.onchain import plain, stolen_key
from tests.solana import either
from tests.solana.chains import Chain, funded_payer
from tests.solana.payments import SOL, Payer, Rpc, ata, connected

BURST: Final = 60
MINT_LAMPORTS: Final = 2_000_000


@pytest.fixture(params=either.EITHER)
async def chain(request: pytest.FixtureRequest) -> AsyncIterator[Chain]:
    """A chain that only this test sees."""
    async with either.running(request.param) as chain:
        yield chain


@dataclass(frozen=True)
class Bank:
    """A vault that FUNDS were paid into, somebody with USDC and SOL, and a client of the chain."""

    it: Paying
    payer: Payer
    rpc: Rpc

    @property
    def wallet(self) -> Pubkey:
        return Pubkey.from_string(self.it.address)

    @property
    def account(self) -> Pubkey:
        return ata(self.wallet)

    async def land(self, *instructions: Instruction, keys: tuple[Keypair, ...] = ()) -> str:
        """Land a transaction, also one that fails; the payer pays for it, and it is final."""
        async with self.it.chain.standing_still():
            blockhash = await self.rpc.blockhash()
            signed = self.payer.signed([*instructions], blockhash, others=keys)
            signature = await self.rpc.send(signed, skipPreflight=True)
        await self.it.chain.finalized(signature)
        return signature

    async def until(self, true: Callable[[], Awaitable[object]]) -> None:
        await self.it.until(true)

    async def deposits(self) -> list[tuple[EventStatus, int, str | None]]:
        """The deposits after the first one: status, amount and signature, oldest first."""
        wanted = EventFilter(vault_id=self.it.spender.vault_id, kinds=[EventKind.DEPOSIT])
        owner = self.it.spender.owner
        found = await self.it.app.ledger.list_events(owner, wanted, None, 1_000)
        return [(each.status, each.amount, each.tx_hash) for each in found[::-1]][1:]

    async def has(self, amount: int) -> bool:
        """Say whether the vault has so much beside FUNDS, in both figures."""
        vault = await self.it.vault()
        return vault.balance == vault.chain_balance == FUNDS + amount

    async def agrees(self, amount: int) -> None:
        """Wait for a comparison that finds this, as the ledger says, and no difference."""

        async def is_compared() -> bool:
            found = await self.it.reconciled()
            assert found.drift is None
            return found.found_amount == found.expected_amount == FUNDS + amount

        await self.until(is_compared)
        assert await self.has(amount)
        assert await make.verify(self.it.app, self.it.spender) is None


@pytest.fixture
async def bank(database: str, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bank]:
    paying.hurry(monkeypatch)
    async with (
        paying.paying(database, chain, reconcile=timedelta(seconds=0.2)) as it,
        connected(chain.url) as rpc,
    ):
        yield Bank(it, await funded_payer(chain), rpc)


async def test_however_it_is_sent_it_is_credited_once(bank: Bank) -> None:
    """Transfer and TransferChecked, alone and together, and a single unit; read twice."""
    sending = plain(bank.payer.account, bank.account, bank.payer.vault.pubkey(), 30)
    checked = bank.payer.transfer(bank.wallet, 40)

    signatures = [
        await bank.land(sending),
        await bank.land(checked),
        await bank.land(sending, checked, bank.payer.transfer(bank.wallet, 500)),
        await bank.land(bank.payer.transfer(bank.wallet, 1)),
    ]
    await bank.until(lambda: bank.has(641))
    await bank.it.app.database.pool.execute(
        "UPDATE vault_scans SET scanned_slot = 0, watched_amount = -1, next_watch_at = '-infinity'"
    )

    async def is_read_again() -> bool:
        return bool(
            await bank.it.app.database.pool.fetchval("SELECT scanned_slot > 0 FROM vault_scans")
        )

    await bank.until(is_read_again)
    assert await bank.deposits() == [
        (EventStatus.CONFIRMED, amount, signature)
        for amount, signature in zip((30, 40, 570, 1), signatures, strict=True)
    ]
    await bank.agrees(641)


def minted(program: Pubkey, mint: Keypair, payer: Keypair, wallet: Pubkey) -> list[Instruction]:
    """Make another token, and give some of it to a wallet."""
    made = CreateAccountParams(
        from_pubkey=payer.pubkey(),
        to_pubkey=mint.pubkey(),
        lamports=MINT_LAMPORTS,
        space=MINT_LEN,
        owner=program,
    )
    begun = InitializeMint2Params(
        program_id=program,
        mint=mint.pubkey(),
        decimals=6,
        mint_authority=payer.pubkey(),
        freeze_authority=None,
    )
    opening = create_idempotent_associated_token_account(
        payer.pubkey(), wallet, mint.pubkey(), program
    )
    given = MintToCheckedParams(
        program_id=program,
        mint=mint.pubkey(),
        dest=ata(wallet, mint.pubkey(), program),
        mint_authority=payer.pubkey(),
        amount=1_000_000,
        decimals=6,
    )
    return [create_account(made), initialize_mint2(begun), opening, mint_to_checked(given)]


@pytest.mark.parametrize("program", [TOKEN_PROGRAM_ID, TOKEN_2022_PROGRAM_ID], ids=str)
async def test_what_is_no_usdc_is_no_deposit(bank: Bank, program: Pubkey) -> None:
    """Another token, alone and beside USDC; SOL; and USDC in a transaction that fails."""
    mint, rich = Keypair(), bank.payer.fees
    made = minted(program, mint, rich, bank.wallet)
    sol = TransferParams(from_pubkey=rich.pubkey(), to_pubkey=bank.account, lamports=SOL // 100)

    await bank.land(*made, keys=(mint,))
    await bank.land(transfer(sol))
    failed = await bank.land(bank.payer.transfer(bank.wallet, 10**12))
    signature = await bank.land(made[-1], bank.payer.transfer(bank.wallet, 3))
    await bank.until(lambda: bank.has(3))

    assert (await bank.rpc.status(failed))["err"] is not None
    assert await bank.deposits() == [(EventStatus.CONFIRMED, 3, signature)]
    await bank.agrees(3)


async def test_what_a_program_pays_inside_is_credited(bank: Bank) -> None:
    """The ATA program gives back what was paid to a token account as if that were a wallet."""
    mint, rich = Keypair(), bank.payer.fees
    odd = ata(bank.wallet, mint.pubkey())
    opening = create_idempotent_associated_token_account(rich.pubkey(), odd, USDC)
    accounts = [
        AccountMeta(ata(odd), is_signer=False, is_writable=True),
        AccountMeta(USDC, is_signer=False, is_writable=False),
        AccountMeta(bank.account, is_signer=False, is_writable=True),
        AccountMeta(odd, is_signer=False, is_writable=False),
        AccountMeta(mint.pubkey(), is_signer=False, is_writable=False),
        AccountMeta(bank.wallet, is_signer=True, is_writable=True),
        AccountMeta(TOKEN_PROGRAM_ID, is_signer=False, is_writable=False),
    ]

    await bank.land(*minted(TOKEN_PROGRAM_ID, mint, rich, bank.wallet), keys=(mint,))
    await bank.land(opening, bank.payer.transfer(odd, 7))
    signature = await bank.land(
        Instruction(ASSOCIATED_TOKEN_PROGRAM_ID, bytes([2]), accounts),
        keys=(await stolen_key(bank.it.app, bank.it.spender),),
    )
    await bank.until(lambda: bank.has(7))

    assert await bank.deposits() == [(EventStatus.CONFIRMED, 7, signature)]
    await bank.agrees(7)


async def test_a_burst_is_credited_in_full_whoever_reads_it(bank: Bank, database: str) -> None:
    """Sixty at once, and two processes that look after the same vault."""
    async with make.app(database, duties=True, **paying.settings_of(bank.it.chain)):
        signatures = await asyncio.gather(
            *(bank.it.chain.faucet(bank.wallet, n) for n in range(1, BURST + 1))
        )
        await bank.until(lambda: bank.has(sum(range(1, BURST + 1))))

        assert sorted(await bank.deposits(), key=lambda each: each[1]) == [
            (EventStatus.CONFIRMED, n, signature) for n, signature in enumerate(signatures, 1)
        ]
        await bank.agrees(sum(range(1, BURST + 1)))


async def test_a_payment_to_another_vault_is_a_deposit_there(bank: Bank) -> None:
    """One transaction, two events that name each other, and nothing is left over."""
    other = await make.agent(bank.it.app, vault_balance=0)
    wallet = Pubkey.from_string((await make.vault(bank.it.app, other)).address)
    await bank.it.allow(wallet)

    spent = await bank.it.decided(await bank.it.pay(5, wallet))

    async def is_there() -> bool:
        return (await make.vault(bank.it.app, other)).chain_balance == 5

    await bank.until(is_there)
    assert spent.counterpart_event_id is not None
    deposit = await bank.it.app.ledger.get_event(other.owner, spent.counterpart_event_id)
    assert (deposit.kind, deposit.status, deposit.amount) == (
        EventKind.DEPOSIT,
        EventStatus.CONFIRMED,
        5,
    )
    assert (deposit.tx_hash, deposit.counterpart_event_id) == (spent.tx_hash, spent.id)
    await bank.agrees(-5)


async def test_a_foreign_outflow_is_found_named_and_stops_the_vault(bank: Bank) -> None:
    """Acknowledged, it is a withdrawal, and payments go on."""
    it = bank.it
    key = await stolen_key(it.app, it.spender)
    signature = await bank.land(
        plain(bank.account, bank.payer.account, bank.wallet, 321), keys=(key,)
    )

    async def is_found() -> bool:
        return (await it.reconciled()).drift is not None

    await bank.until(is_found)
    drift = (await it.vault()).drift
    assert drift is not None
    assert (drift.amount, drift.found_amount, drift.expected_amount) == (-321, FUNDS - 321, FUNDS)
    assert [(each.tx_hash, each.amount) for each in drift.outflows] == [(signature, 321)]
    declined = await it.pay(5)
    assert declined.failure_reason is FailureReason.VAULT_STOPPED

    await it.app.vaults.acknowledge_drift(
        it.spender.owner, make.asked("AcknowledgeDrift"), it.spender.vault_id, drift.id, -321
    )
    paid = await it.decided(await it.pay(5))

    assert paid.status is EventStatus.CONFIRMED
    await bank.agrees(-326)
