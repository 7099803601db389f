"""A vault with USDC on a chain, whom it pays, and what must be true when all is over.

async with paying(database, EmbeddedChain(net)) as it:
    event = await it.pay(1_000_000)
    assert (await it.decided(event)).status is EventStatus.CONFIRMED
    await it.is_right(paid=1_000_000)
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from pilot_grpc.bootstrap import App
from pilot_grpc.domain.ledger import Event, EventStatus
from pilot_grpc.domain.vaults import Vault
from pilot_grpc.services.reconciliation import Reconciliation
from pilot_grpc.settings import SolanaCluster
from pilot_grpc.solana import rpc
from pilot_grpc.solana.clusters import EMBEDDED, MAINNET_USDC_MINT
from pilot_grpc.solana.endpoint import Patience
from pilot_grpc.solana.faults import RpcError
from pilot_grpc.solana.localnet import Localnet
from tests import faulty_settlement, make
from tests.make import Spender
from tests.solana.chains import Chain, EmbeddedChain
from tests.solana.payments import ata, connected

FUNDS: Final = 10_000_000
# What the payee has before: with nothing at all it would have no account for USDC.
OPENING: Final = 1
POLL: Final = timedelta(milliseconds=20)
# How long nobody asks anything: the embedded chain, its workers and the test share a loop.
BREATH_SECONDS: Final = 0.002
# Nothing takes so long; it only ends a test that waits for what does not come.
SECONDS: Final = 100.0

CHANGES: Final = """
SELECT status, tx_hash, failure_reason
  FROM event_changes
 WHERE event_id = $1
 ORDER BY revision
"""

SIGNATURES: Final = """
SELECT signature
  FROM transfer_signatures
 WHERE event_id = $1
 ORDER BY attempt
"""

LEFT: Final = "SELECT count(*) FROM pending_transfers"


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait as long as in production. What is safe does not depend on any of it."""
    for module, name, value in faulty_settlement.HURRIED:
        monkeypatch.setattr(module, name, value)
    patience = partial(Patience, request_seconds=0.5, backoff_seconds=0.05, rest_seconds=0.1)
    monkeypatch.setattr(rpc, "Patience", patience)


def settings_of(chain: Chain, urls: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a process that works on a chain."""
    embedded = chain.cluster is EMBEDDED
    return {
        "solana_cluster": SolanaCluster.EMBEDDED if embedded else SolanaCluster.LOCALNET,
        "solana_usdc_mint": None if embedded else MAINNET_USDC_MINT,
        "solana_rpc_urls": tuple(urls or chain.urls),
        "solana_rpc_requests_per_second": 100_000,
        "solana_poll": POLL,
        "webhooks_enabled": False,
    }


@dataclass
class Paying:
    """Who pays whom, and on which chain."""

    app: App
    chain: Chain
    spender: Spender
    address: str
    payee: Keypair = field(default_factory=Keypair)
    deposited: int = FUNDS

    @property
    def net(self) -> Localnet:
        """The embedded chain, for what only that can do."""
        assert isinstance(self.chain, EmbeddedChain)
        return self.chain.net

    async def breathe(self) -> None:
        """Let a block be made, and everybody look at it."""
        if isinstance(self.chain, EmbeddedChain):
            self.net.tick()
        await asyncio.sleep(BREATH_SECONDS)

    async def until(self, true: Callable[[], Awaitable[object]]) -> None:
        """Make blocks until something is so."""
        async with asyncio.timeout(SECONDS):
            while not await true():
                await self.breathe()

    async def still_until(self, true: Callable[[], Awaitable[object]]) -> None:
        """Wait for something that needs no block."""
        async with asyncio.timeout(SECONDS):
            while not await true():  # noqa: ASYNC110 - nobody signals what a test waits for
                await asyncio.sleep(BREATH_SECONDS)

    async def looked(self, times: int = 10) -> None:
        """Wait until the chain was asked so often what has become of payments; make no block."""
        methods = self.net.endpoints[-1].node._methods
        asked, count = methods["getSignatureStatuses"], itertools.count(1)
        enough = asyncio.Event()

        def counted(params: list[Any]) -> Any:
            if next(count) > times:
                enough.set()
            return asked(params)

        methods["getSignatureStatuses"] = counted
        async with asyncio.timeout(SECONDS):
            await enough.wait()
        methods["getSignatureStatuses"] = asked

    async def pay(self, amount: int = 1_000_000, to: Pubkey | None = None, **fields: Any) -> Event:
        """Have the agent pay the payee, or somebody else."""
        to = to or self.payee.pubkey()
        return await make.spend(self.app, self.spender, amount, recipient=str(to), **fields)

    async def withdraw(self, amount: int = 1_000_000, to: Pubkey | None = None) -> Event:
        """Have the owner take something out."""
        return await self._take_out(self.app.vaults.withdraw, "Withdraw", amount, to)

    async def settle(self, amount: int = 1_000_000, to: Pubkey | None = None) -> Event:
        """Have the owner take out what was spent on metered use."""
        return await self._take_out(self.app.vaults.settle, "Settle", amount, to)

    async def _take_out(self, call: Any, name: str, amount: int, to: Pubkey | None) -> Event:
        asked = make.asked(name, None, f"amount:{amount}")
        recipient = str(to or self.payee.pubkey())
        owner, vault_id = self.spender.owner, self.spender.vault_id
        event: Event = await call(owner, asked, vault_id, amount, recipient, None)
        return event

    async def allow(self, wallet: Pubkey) -> None:
        """Put a wallet on the agent's list."""
        owner, agent_id = self.spender.owner, self.spender.agent_id
        await self.app.agents.add_recipient(owner, agent_id, str(wallet), None)

    async def event(self, event: Event) -> Event:
        """The event as it is now."""
        return await self.app.ledger.get_event(self.spender.owner, event.id)

    async def vault(self) -> Vault:
        return await make.vault(self.app, self.spender)

    async def decided(self, event: Event) -> Event:
        """Make blocks until a payment is decided."""

        async def is_decided() -> bool:
            return (await self.event(event)).status is not EventStatus.PENDING

        await self.until(is_decided)
        return await self.event(event)

    async def signed(self, event: Event) -> list[str]:
        """All that was ever signed for an event, in order."""
        async with self.app.database.transaction() as conn:
            return [row["signature"] for row in await conn.fetch(SIGNATURES, event.id)]

    async def changes(self, event: Event) -> list[tuple[str, str | None, str | None]]:
        """The numbered changes of an event: status, signature, and why it failed."""
        async with self.app.database.transaction() as conn:
            return [tuple(row) for row in await conn.fetch(CHANGES, event.id)]

    async def sent(self, event: Event) -> str:
        """Wait, without a block, until the chain has been sent a payment."""

        async def is_sent() -> bool:
            signed = await self.signed(event)
            return bool(signed) and signed[-1] in self.net.chain._waiting

        await self.still_until(is_sent)
        return (await self.signed(event))[-1]

    async def sighted(self, event: Event) -> str:
        """Make one block, and wait until a payment in it shows its signature."""
        self.net.tick()

        async def is_sighted() -> bool:
            return (await self.event(event)).tx_hash is not None

        await self.still_until(is_sighted)
        found = await self.event(event)
        assert found.status is EventStatus.PENDING
        assert found.tx_hash is not None
        return found.tx_hash

    async def holdings(self, wallet: Pubkey) -> int:
        """The USDC that a wallet has on chain, in minor units."""
        async with connected(self.chain.urls[-1]) as node:
            value = (await node("getAccountInfo", str(ata(wallet)), {"encoding": "base64"}))[
                "value"
            ]
            return await node.units(ata(wallet)) if value is not None else 0

    async def reconciled(self) -> Reconciliation:
        """What a comparison with the chain says, once the chain can be asked."""
        while True:
            try:
                return await self.app.settlement.reconciler.reconcile(  # type: ignore[union-attr]
                    self.spender.vault_id
                )
            except RpcError:
                await self.breathe()

    async def is_right(
        self, paid: int, *, metered: int = 0, settled: int = 0, payee: Pubkey | None = None
    ) -> None:
        """Compare payer and payee on chain, both figures, the ledger and the reconciliation.

        `paid` left the vault, of which `settled` was spent on metered use before.
        """

        async def all_is_final() -> bool:
            return (await self.reconciled()).pending_amount == 0

        await self.until(all_is_final)
        found, vault = await self.reconciled(), await self.vault()
        left = self.deposited - paid
        before = OPENING if payee is None else 0
        assert await self.holdings(payee or self.payee.pubkey()) == before + paid
        assert await self.holdings(Pubkey.from_string(self.address)) == left
        assert (vault.chain_balance, vault.balance) == (left, left - metered + settled)
        assert (found.found_amount, found.expected_amount, found.drift) == (left, left, None)
        assert await make.verify(self.app, self.spender) is None
        async with self.app.database.transaction() as conn:
            assert await conn.fetchval(LEFT) == 0


@asynccontextmanager
async def paying(
    database: str,
    chain: Chain,
    *,
    urls: Sequence[str] = (),
    duties: bool = True,
    funds: int = FUNDS,
    **changes: Any,
) -> AsyncIterator[Paying]:
    """Run the services on a chain, with a vault that was paid in, and an agent that may pay."""
    settings = settings_of(chain, urls) | changes
    async with make.app(database, duties=True, **settings) as app:
        it = await begun(app, chain, funds)
        if duties:
            yield it
            return
    async with make.app(database, duties=False, **settings) as app:
        yield replace(it, app=app)


async def begun(app: App, chain: Chain, funds: int = FUNDS) -> Paying:
    """Make the vault, pay it in, and let its agent pay the payee, who has an account already."""
    spender = await make.agent(app, vault_balance=0)
    it = Paying(app, chain, spender, (await make.vault(app, spender)).address, deposited=funds)
    settlement = app.settlement
    assert settlement is not None
    if chain.cluster is not EMBEDDED:
        await chain.airdrop(Pubkey.from_string(settlement.fee_payer._address), 10**9)
    await it.allow(it.payee.pubkey())
    opening = await chain.faucet(it.payee.pubkey(), OPENING)
    await chain.faucet(Pubkey.from_string(it.address), funds)

    async def is_there() -> bool:
        return (await it.vault()).chain_balance == funds

    await it.until(is_there)
    await chain.finalized(opening)
    return it
