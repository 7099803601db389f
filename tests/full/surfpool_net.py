"""Surfpool, somebody else's Solana RPC server, as a chain that tests run on.

async with surfpool_net.running() as net:
    await net.finalized(await net.faucet(wallet, 1_000_000))
    ...any Solana client on net.url, with the cluster `localnet`...

scripts/install-full installs it. Where it differs from a validator: SURFPOOL in
tests/solana/chains.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from solders.pubkey import Pubkey
from solders.token.state import Mint
from spl.token.constants import TOKEN_PROGRAM_ID

from pilot_grpc.solana.clusters import LOCALNET, Cluster
from pilot_grpc.solana.localnet import USDC, USDC_DECIMALS
from tests.solana.chains import SURFPOOL, Quirks
from tests.solana.payments import SOL, Payer, Rpc, connected

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".tools" / "surfpool"
SCRIPT = ROOT / "tests" / "full" / "surfpool" / "surfpool.mjs"

# What is sent is finalized after 31 slots, and a blockhash can be used for 150.
SLOT_MS: Final = 10
START_SECONDS: Final = 30
STOP_SECONDS: Final = 10
WAIT_SECONDS: Final = 60
POLL_SECONDS: Final = 0.005
REQUEST_SECONDS: Final = 60

MINT_LAMPORTS: Final = 1_461_600
# A billion USDC, and SOL for the fees of giving it away.
RICH_UNITS: Final = 10**15
RICH_LAMPORTS: Final = 1_000 * SOL


@dataclass
class Surfpool:
    """A Surfpool that runs, as tests/solana/chains.py describes a chain."""

    url: str
    ws_url: str
    rpc: Rpc
    cluster: Cluster = LOCALNET
    quirks: Quirks = SURFPOOL
    # Who has all the USDC, and pays what the faucet gives.
    rich: Payer = field(default_factory=Payer)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _standing: int = 0
    _clock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,)

    async def faucet(self, wallet: Pubkey, amount: int) -> str:
        """Pay USDC to a wallet, in a transaction like anybody's; return its signature.

        Surfpool takes 50 ms or so to accept any transaction, one after the other.
        """
        async with self.standing_still():
            blockhash = await self.rpc.blockhash()
            # Two payments that differ in nothing would be one.
            memo = f"faucet {next(self._numbers)}"
            payment = self.rich.payment(wallet, amount, blockhash, memo=memo)
            return await self.rpc.send(payment)

    async def airdrop(self, wallet: Pubkey, lamports: int) -> str:
        signature: str = await self.rpc("requestAirdrop", str(wallet), lamports)
        return signature

    async def confirmed(self, signature: str) -> None:
        async def landed() -> bool:
            return await self.rpc.status(signature) is not None

        await _until(landed)

    async def finalized(self, signature: str) -> None:
        await self.rpc.finalized(signature)

    async def expired(self, last_valid_block_height: int) -> None:
        async def passed() -> bool:
            height: int = await self.rpc("getBlockHeight", {"commitment": "finalized"})
            return height > last_valid_block_height

        await _until(passed)

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """Stop its clock. The last one that wants it to stand starts it again."""
        async with self._clock:
            if not self._standing:
                await self.rpc("surfnet_pauseClock")
            self._standing += 1
        try:
            yield
        finally:
            async with self._clock:
                self._standing -= 1
                if not self._standing:
                    await self.rpc("surfnet_resumeClock")

    async def begin(self) -> None:
        """Make the mint of USDC, which is not there offline, and somebody who has a lot of it."""
        await self.rpc(
            "surfnet_setAccount",
            str(USDC),
            {
                "lamports": MINT_LAMPORTS,
                "owner": str(TOKEN_PROGRAM_ID),
                "data": bytes(Mint(None, RICH_UNITS, USDC_DECIMALS, is_initialized=True)).hex(),
            },
        )
        vault, fees = str(self.rich.vault.pubkey()), str(self.rich.fees.pubkey())
        await self.rpc("surfnet_setTokenAccount", vault, str(USDC), {"amount": RICH_UNITS})
        await self.rpc("surfnet_setAccount", fees, {"lamports": RICH_LAMPORTS})


@asynccontextmanager
async def running(slot_ms: int = SLOT_MS) -> AsyncIterator[Surfpool]:
    """Run a Surfpool of one's own, without a network, on free ports of the loopback."""
    async with (
        _process(slot_ms) as where,
        connected(where["rpcUrl"], REQUEST_SECONDS) as rpc,
    ):
        net = Surfpool(where["rpcUrl"], where["wsUrl"], rpc)
        await net.begin()
        yield net


@asynccontextmanager
async def _process(slot_ms: int) -> AsyncIterator[dict[str, str]]:
    """It ends with its standard input, so also when this process is killed."""
    assert (HOME / "stamp").exists(), "Surfpool is missing: run scripts/install-full"
    process = await asyncio.create_subprocess_exec(
        "node",
        SCRIPT,
        HOME,
        str(slot_ms),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        assert line, "Surfpool did not start"
        where: dict[str, str] = json.loads(line)
        yield where
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _until(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, on a chain that has a clock."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            if await true():
                return
            await asyncio.sleep(POLL_SECONDS)
