"""The embedded chain, for development and tests: LiteSVM behind a JSON-RPC server on loopback.

Real client code sends it real transactions. It mints USDC (at the address that USDC has on
mainnet) to anybody who asks, and goes wrong in every way that a test asks for, so it must never
be mistaken for a public cluster: its genesis hash, GENESIS_HASH, is its own.

async with localnet.running(None, manual=True) as net:
    net.faucet(wallet, 1_000_000)
    net.finalize()
    ...any Solana client on net.url...

Over JSON-RPC the same is `pilot_faucet` {address, amount}, `pilot_tick` {slots} and so on: each
method's docstring in rpc.py has its parameters.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Final

import uvloop
from solders.pubkey import Pubkey

from pilot_grpc.solana.localnet import endpoint, server
from pilot_grpc.solana.localnet.address import address, published
from pilot_grpc.solana.localnet.chain import Chain
from pilot_grpc.solana.localnet.errors import LocalnetError, LocalnetInUse
from pilot_grpc.solana.localnet.faults import FOR_EVER, Fault, Faults, Kind
from pilot_grpc.solana.localnet.rpc import GENESIS_HASH, Node
from pilot_grpc.solana.localnet.tokens import FAUCET, USDC, USDC_DECIMALS

__all__ = [
    "DEFAULT_PORT",
    "FAUCET",
    "FOR_EVER",
    "GENESIS_HASH",
    "USDC",
    "USDC_DECIMALS",
    "Endpoint",
    "Fault",
    "Kind",
    "Localnet",
    "LocalnetError",
    "LocalnetInUse",
    "address",
    "in_thread",
    "running",
]

# Where Solana's own test validator listens, so that other tools find it.
DEFAULT_PORT: Final = 8899
LOOPBACK: Final = "127.0.0.1"
SLOT_MS: Final = 400

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One node that serves the chain, with its own URL, faults and lag (`node.lag = 5`)."""

    url: str
    node: Node

    @property
    def faults(self) -> Faults:
        return self.node.faults


@dataclass(frozen=True, slots=True)
class Localnet:
    """A chain that runs, and the nodes that serve it."""

    chain: Chain
    endpoints: tuple[Endpoint, ...]

    @property
    def url(self) -> str:
        """The URL of the first node."""
        return self.endpoints[0].url

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(each.url for each in self.endpoints)

    @property
    def faults(self) -> Faults:
        """The faults of the first node."""
        return self.endpoints[0].faults

    def faucet(self, wallet: Pubkey, amount: int, mint: Pubkey = USDC) -> str:
        """Mint minor units to the ATA of a wallet with the next slot; answers the signature."""
        return self.chain.faucet(wallet, amount, mint)

    def airdrop(self, wallet: Pubkey, lamports: int) -> str:
        """Send SOL to a wallet with the next slot; answers the signature."""
        return self.chain.airdrop(wallet, lamports)

    def tick(self, slots: int = 1) -> None:
        """Make blocks now; what waits lands in the first of them."""
        self.chain.tick(slots)

    def finalize(self) -> None:
        """Make as many blocks as it takes until all that was accepted is finalized."""
        self.chain.tick(self.chain.finalized_slots + 1)


@asynccontextmanager
async def running(
    home: Path | None,
    *,
    port: int = 0,
    endpoints: int = 1,
    slot_ms: float = SLOT_MS,
    manual: bool = False,
    confirmed_slots: int = 1,
    finalized_slots: int = 32,
    host: str = LOOPBACK,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[Localnet]:
    """Run the chain of a directory while the context lasts; None keeps it in memory.

    The first endpoint listens on `port`, further ones on any. There is a slot every `slot_ms`, or
    with `manual` only when `tick` asks for one. While nothing runs, the chain stands still.

    With a directory, `address` answers the URL of the first endpoint to other processes.

    Raises LocalnetInUse when the directory's chain runs already, and LocalnetError when it cannot
    be read or the address cannot be listened on.
    """
    chain = Chain(home, confirmed_slots=confirmed_slots, finalized_slots=finalized_slots, now=now)
    async with AsyncExitStack() as stack:
        stack.callback(chain.close)
        nodes = []
        for number in range(endpoints):
            node = Node(chain)
            serving = server.serving(partial(endpoint.handle, node), host, 0 if number else port)
            nodes.append(Endpoint(await stack.enter_async_context(serving), node))
        if not manual:
            clock = asyncio.create_task(_keep_time(chain, slot_ms / 1_000))
            stack.push_async_callback(_stop, clock)
        net = Localnet(chain, tuple(nodes))
        if home is not None:
            stack.enter_context(published(home, net.url))
        yield net


@contextmanager
def in_thread(home: Path, *, slot_ms: float, finalized_slots: int) -> Iterator[str]:
    """Run the chain of a directory in a thread while the context lasts, and give its URL.

    Raises LocalnetInUse and LocalnetError, as `running` does.
    """
    loop = uvloop.new_event_loop()
    started = Future[str]()
    stopping = asyncio.Event()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            chain = running(home, slot_ms=slot_ms, finalized_slots=finalized_slots)
            try:
                net = await stack.enter_async_context(chain)
            except Exception as error:  # noqa: BLE001 - it is raised where the chain is wanted
                started.set_exception(error)
                return
            started.set_result(net.url)
            await stopping.wait()

    thread = Thread(target=loop.run_until_complete, args=(serve(),), name="localnet", daemon=True)
    thread.start()
    try:
        yield started.result()
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


async def _keep_time(chain: Chain, seconds: float) -> None:
    """Make a block every so often. Slots that were missed stay missed."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due + seconds, loop.time())
        await asyncio.sleep(due - loop.time())
        try:
            chain.tick()
        except Exception:
            log.exception("the localnet stands still: a block could not be made")
            raise


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
