"""What a test needs of a chain, so that the same test runs on the embedded one and on Surfpool.

`either.py` starts them. Transactions go to `chain.url`, through any Solana client; what only a
chain of one's own can do (give money away, stand still, be waited for) is here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from solders.pubkey import Pubkey

from pilot_grpc.solana.clusters import EMBEDDED, Cluster
from pilot_grpc.solana.localnet import Localnet
from pilot_grpc.solana.localnet.chain import Commitment
from tests.solana.payments import SOL, Payer


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """Where a server differs from Solana's own, which all of these defaults describe.

    Tests assert both values of each, so that a server that mends its ways is noticed.
    """

    # Slots come by themselves: what is confirmed may be finalized at the next look.
    keeps_time: bool = False
    # Accounts, transactions, histories and blockhashes are always as of the newest block, whatever
    # commitment was asked for. Only slots, heights and statuses tell what is finalized.
    newest_at_every_commitment: bool = False
    # What still waits for a block is refused a second time, as if it had been executed.
    refuses_what_waits: bool = False
    # It names no `err` when it refuses what was executed before: only the text says so.
    refuses_without_err: bool = False
    # What was sent too late without a preflight is in the history of its accounts as failed, with
    # a signature of zeros, and so is its status under that one.
    lists_what_expired: bool = False
    # What it says of a transaction whose signature is wrong.
    wrong_signature_code: int = -32003
    # The fee of a transaction leaves the priority fee out, although that is taken.
    fee_without_priority: bool = False
    # The block time of a transaction, but not of a history's row, is divided by this.
    block_time_divisor: int = 1


# Surfpool 1.5.0. It also accepts `processed` for a history, never reports it as a status, and its
# time travel moves slots, but not the block heights that blockhashes expire by. One quirk is
# mended, since no client can live with it, what it takes minContextSlot for: see surfpool.mjs.
SURFPOOL: Final = Quirks(
    keeps_time=True,
    newest_at_every_commitment=True,
    refuses_what_waits=True,
    refuses_without_err=True,
    lists_what_expired=True,
    wrong_signature_code=-32002,
    fee_without_priority=True,
    block_time_divisor=1_000,
)


class Chain(Protocol):
    """A chain with USDC at its mainnet address, where nobody else is."""

    @property
    def url(self) -> str:
        """Where its JSON-RPC is."""

    @property
    def urls(self) -> tuple[str, ...]:
        """The same, of every node there is."""

    @property
    def cluster(self) -> Cluster:
        """What Pilot is told that it is."""

    @property
    def quirks(self) -> Quirks:
        """Where it differs."""

    async def faucet(self, wallet: Pubkey, amount: int) -> str:
        """Send minor units of USDC to the ATA of a wallet; return the signature at once."""

    async def airdrop(self, wallet: Pubkey, lamports: int) -> str:
        """Send SOL, enough for rent, to a wallet; return the signature at once."""

    async def confirmed(self, signature: str) -> None:
        """Return when a transaction that was sent is in a block."""

    async def finalized(self, signature: str) -> None:
        """Return when it is final."""

    async def expired(self, last_valid_block_height: int) -> None:
        """Return when nothing can land that had to land up to this height."""

    def standing_still(self) -> AbstractAsyncContextManager[None]:
        """Make no block meanwhile: blockhashes stay fresh, and what is sent waits."""


@dataclass(frozen=True, slots=True)
class EmbeddedChain:
    """The embedded chain, whose blocks are made only when somebody waits for them."""

    net: Localnet
    cluster: Cluster = EMBEDDED
    quirks: Quirks = Quirks()

    @property
    def url(self) -> str:
        return self.net.url

    @property
    def urls(self) -> tuple[str, ...]:
        return self.net.urls

    async def faucet(self, wallet: Pubkey, amount: int) -> str:
        return self.net.faucet(wallet, amount)

    async def airdrop(self, wallet: Pubkey, lamports: int) -> str:
        return self.net.airdrop(wallet, lamports)

    async def confirmed(self, signature: str) -> None:  # noqa: ARG002 - all of them are
        self.net.tick(1 + self.net.chain.confirmed_slots)

    async def finalized(self, signature: str) -> None:  # noqa: ARG002 - all of them are
        self.net.finalize()

    async def expired(self, last_valid_block_height: int) -> None:
        chain = self.net.chain
        finalized = chain.height(chain.slot(Commitment.FINALIZED))
        self.net.tick(max(0, last_valid_block_height + 1 - finalized))

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        yield


async def funded_payer(chain: Chain, units: int = 10_000_000) -> Payer:
    """A payer with USDC and SOL, all finalized."""
    payer = Payer()
    await chain.airdrop(payer.fees.pubkey(), SOL)
    await chain.finalized(await chain.faucet(payer.vault.pubkey(), units))
    return payer
