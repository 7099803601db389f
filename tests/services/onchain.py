"""The services on the embedded chain, in this process, and a hand on everything that moves.

Nothing happens by itself: slots are made by `net.tick`, and a history is read when a test says
so. `pays` runs the worker that pays, where a test needs one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import create_idempotent_associated_token_account, transfer
from spl.token.models import TransferParams

from pilot_grpc.bootstrap import App, Settlement
from pilot_grpc.db import deposits as deposits_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.domain.ledger import Event, EventFilter, EventKind, EventStatus
from pilot_grpc.sealing import Sealer
from pilot_grpc.services.reconciliation import Reconciliation
from pilot_grpc.solana.custody import Custody, SealedKey
from pilot_grpc.solana.endpoint import Patience
from pilot_grpc.solana.localnet import FAUCET, USDC, Localnet
from pilot_grpc.solana.localnet.chain import Commitment
from tests import make
from tests.make import Spender
from tests.solana.payments import ata

# No test waits for it; it only ends a test that hangs.
SECONDS = 60.0
# Whoever waits for nodes that are away in a test waits no longer.
HURRIED = Patience(
    request_seconds=2.0, call_seconds=4.0, rounds=1, backoff_seconds=0.001, rest_seconds=0.001
)


@dataclass(frozen=True)
class OnChain:
    """The services of one process, and the chain."""

    app: App
    net: Localnet

    @property
    def settlement(self) -> Settlement:
        assert self.app.settlement is not None
        return self.app.settlement

    async def spender(self, deposited: int = 0, **fields: Any) -> Spender:
        """An agent whose vault has this on chain, final and credited, and no credit beside."""
        spender = await make.agent(self.app, vault_balance=0, **fields)
        if deposited:
            self.net.faucet(await self.wallet(spender), deposited)
            self.net.finalize()
            await self.look(spender)
        return spender

    async def wallet(self, spender: Spender) -> Pubkey:
        """The vault's address."""
        return Pubkey.from_string((await make.vault(self.app, spender)).address)

    async def account(self, spender: Spender) -> Pubkey:
        """The vault's account for USDC."""
        return ata(await self.wallet(spender))

    async def key(self, spender: Spender) -> Keypair:
        """The vault's own key, as a thief would have it."""
        return await stolen_key(self.app, spender)

    async def look(self, spender: Spender, **options: Any) -> int:
        """Read the vault's history once, as its turn would."""
        async with self.app.database.transaction() as conn:
            watch = await deposits_db.select_watch(conn, spender.vault_id)
        assert watch is not None
        amount = await self.held_on_chain(spender, Commitment.CONFIRMED)
        return await self.settlement.deposits.scan(watch, amount, **options)

    async def reconcile(self, spender: Spender) -> Reconciliation:
        """Compare the vault with the chain, now."""
        return await self.settlement.reconciler.reconcile(spender.vault_id)

    async def figures(self, spender: Spender) -> tuple[int, int]:
        """What may be spent, and what is on chain."""
        vault = await make.vault(self.app, spender)
        return vault.balance, vault.chain_balance

    async def events(self, spender: Spender, *kinds: EventKind) -> list[Event]:
        """The vault's events, oldest first."""
        wanted = EventFilter(vault_id=spender.vault_id, kinds=kinds or None)
        found = await self.app.ledger.list_events(spender.owner, wanted, None, 1_000)
        return found[::-1]

    async def deposits(self, spender: Spender) -> list[tuple[EventStatus, int, str | None]]:
        """The vault's deposits as status, amount and signature, oldest first."""
        found = await self.events(spender, EventKind.DEPOSIT)
        return [(each.status, each.amount, each.tx_hash) for each in found]

    async def changes(self, spender: Spender, event: Event) -> list[str]:
        """What an event was, one after the other."""
        rows = await self.app.database.pool.fetch(
            "SELECT status FROM event_changes WHERE vault_id = $1 AND event_id = $2"
            " ORDER BY revision",
            *(spender.vault_id, event.id),
        )
        return [row["status"] for row in rows]

    async def scanned(self, spender: Spender) -> int:
        """How far the vault's history was read."""
        slot: int = await self.app.database.pool.fetchval(
            "SELECT scanned_slot FROM vault_scans WHERE vault_id = $1", spender.vault_id
        )
        return slot

    async def held_on_chain(
        self, spender: Spender, commitment: Commitment = Commitment.PROCESSED
    ) -> int:
        """What the vault's account really has."""
        slot = self.net.chain.slot(commitment)
        found = self.net.chain.account(await self.account(spender), slot)
        return 0 if found is None else int.from_bytes(bytes(found.data)[64:72], "little")

    @property
    def finalized(self) -> int:
        """The newest slot that is final."""
        return self.net.chain.slot(Commitment.FINALIZED)

    async def steal(self, spender: Spender, amount: int, thief: Pubkey | None = None) -> str:
        """Send USDC away with the vault's key and without Pilot; give the signature, final."""
        signature = await self.take(spender, amount, thief)
        self.net.finalize()
        return signature

    async def take(self, spender: Spender, amount: int, thief: Pubkey | None = None) -> str:
        """The same, and it is sent, no more."""
        thief = thief or Keypair().pubkey()
        opening = create_idempotent_associated_token_account(
            FAUCET.pubkey(), thief, USDC, TOKEN_PROGRAM_ID
        )
        sending = plain(await self.account(spender), ata(thief), await self.wallet(spender), amount)
        return self.net.chain._submit_own([opening, sending], await self.key(spender))

    def is_final(self, signature: str) -> bool:
        """Say whether a transaction landed, is final, and has not failed."""
        landed = self.net.chain.landed(signature, self.finalized)
        return landed is not None and landed.err is None

    async def get(self, spender: Spender, event: Event) -> Event:
        """An event as it is by now."""
        return await self.app.ledger.get_event(spender.owner, event.id)

    async def decided(self, spender: Spender, *events: Event) -> list[Event]:
        """Make slots until payments are decided, and give them as they are then."""
        async with asyncio.timeout(SECONDS):
            while True:
                found = [await self.get(spender, each) for each in events]
                if all(each.status is not EventStatus.PENDING for each in found):
                    return found
                self.net.tick()
                await asyncio.sleep(0.001)

    def hurry(self) -> None:
        """Wait for nodes that are away no longer than a test can."""
        rpc = self.settlement.chain.rpc
        for reads in (rpc, *rpc._nodes):
            reads._patience = replace(HURRIED, rounds=reads._patience.rounds and 1)
        for endpoint in rpc._endpoints:
            endpoint._patience = HURRIED


async def stolen_key(app: App, spender: Spender) -> Keypair:
    """The key of a vault."""
    async with app.database.transaction() as conn:
        row = await vaults_db.select_vault_key(conn, spender.vault_id)
    assert row is not None
    wallet = Custody(Sealer(make.WRAPPING_KEY))._open(SealedKey(*row))
    return wallet._keypair


def plain(source: Pubkey, to: Pubkey, owner: Pubkey, amount: int) -> Instruction:
    """A transfer that names neither the mint nor the wallets."""
    return transfer(
        TransferParams(
            program_id=TOKEN_PROGRAM_ID, source=source, dest=to, owner=owner, amount=amount
        )
    )


@asynccontextmanager
async def running(
    url: str, net: Localnet, urls: tuple[str, ...] | None = None, **changes: Any
) -> AsyncIterator[OnChain]:
    """Run the services of one process on this chain; nothing is done unasked."""
    settings = {
        "solana_rpc_urls": urls or (net.url,),
        "solana_rpc_requests_per_second": 100_000,
        "solana_poll": timedelta(milliseconds=5),
        **changes,
    }
    async with make.app(url, **settings) as app:
        yield OnChain(app, net)


@asynccontextmanager
async def paying(process: OnChain) -> AsyncIterator[None]:
    """Let the worker of a process pay while the block runs; its fee payer has SOL."""
    settlement = process.settlement
    await settlement.fee_payer.check()
    process.net.finalize()
    settlement.transfers.start()
    try:
        yield
    finally:
        await settlement.transfers.close()


async def until(true: Callable[[], object]) -> None:
    """Wait for something that comes about by itself."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - nobody signals what a test looks into
            await asyncio.sleep(0.001)


def counted(net: Localnet, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that the first node is asked for from now on."""
    node, asked = net.endpoints[0].node, []
    call = node.call

    def counting(method: str, params: Any) -> Any:
        asked.append(method)
        return call(method, params)

    monkeypatch.setattr(node, "call", counting)
    return asked
