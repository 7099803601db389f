"""Payments on chain: from Spend to confirmed, and what hundreds of them cost in questions.

One server process, PostgreSQL, and a chain of its own share this machine with the callers.
The chain makes a block every few milliseconds and calls it final with the next one. What it
takes, from a transaction's arrival until its block is final, is taken out of the second figure:
what is left is Pilot's own time, from the decision to the confirmation.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from pilot_grpc import embedded, migrations
from pilot_grpc.client import follow
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.gen.pilot.v1 import ledger_pb2_grpc
from pilot_grpc.solana import localnet
from pilot_grpc.solana.localnet.chain import Commitment
from tests import make

ADDRESS: Final = "127.0.0.1:50971"
SLOT_MS: Final = 5.0
UNITS: Final = 10**12


async def main() -> None:
    """Measure, and print one line for each question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payments", type=int, default=100, help="one after the other")
    parser.add_argument("--at-once", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, embedded.running(Path(home)) as url:
        await migrations.migrate(url)
        async with localnet.running(None, slot_ms=SLOT_MS, finalized_slots=1) as net:
            async with make.app(url) as app:
                spender = await make.agent(app, vault_balance=0)
                address = (await make.vault(app, spender)).address
                friends = [str(Keypair().pubkey()) for _ in range(20)]
                for friend in friends:
                    await app.agents.add_recipient(spender.owner, spender.agent_id, friend, None)
                    net.faucet(Pubkey.from_string(friend), 1)
            net.faucet(Pubkey.from_string(address), UNITS)
            async with serving(url, net.url):
                bench = Bench(spender.key, friends, net)
                await bench.funded()
                for _ in range(arguments.rounds):
                    await bench.one_by_one(arguments.payments)
                for _ in range(arguments.rounds):
                    await bench.at_once(arguments.at_once)


class Bench:
    """An agent that pays, and follows what becomes of it."""

    def __init__(self, key: str, friends: list[str], net: localnet.Localnet) -> None:
        self._key = key
        self._friends = friends
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._decided: dict[str, asyncio.Future[tuple[float, pb.Event]]] = {}
        self._asked = Counter[str]()
        self._number = 0
        # When the chain got a transaction, and how long it took to make it final.
        self._arrived: dict[str, float] = {}
        self._took: dict[str, float] = {}
        node, chain = net.endpoints[0].node, net.chain
        call, tick = node.call, chain.tick

        def counted(method: str, params: Any) -> Any:
            self._asked[method] += 1
            answer = call(method, params)
            if method == "sendTransaction":
                self._arrived.setdefault(answer, time.perf_counter())
            return answer

        def timed(*arguments: Any) -> None:
            tick(*arguments)
            now, final = time.perf_counter(), chain.slot(Commitment.FINALIZED)
            for signature in [*self._arrived]:
                if chain.landed(signature, final) is not None:
                    self._took[signature] = now - self._arrived.pop(signature)

        setattr(node, "call", counted)  # noqa: B010 - mypy forbids to assign to a method
        setattr(chain, "tick", timed)  # noqa: B010

    async def funded(self) -> None:
        """Wait for the first payment that the vault can make."""
        async with grpc.aio.insecure_channel(ADDRESS) as channel:
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            while (await self._pay(stub)).status != pb.EVENT_STATUS_PENDING:  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def _pay(self, stub: Any) -> pb.Event:
        self._number += 1
        friend = self._friends[self._number % len(self._friends)]
        request_id = f"{time.time_ns()}-{self._number}"
        request = pb.SpendRequest(amount=1, request_id=request_id, recipient=friend)
        response: pb.SpendResponse = await stub.Spend(request, metadata=self._metadata)
        return response.event

    async def _watch(self, channel: grpc.aio.Channel) -> None:
        request = pb.SubscribeEventsRequest(start=pb.STREAM_START_LATEST)
        async for response in follow(channel, self._key, request):
            now = time.perf_counter()
            for change in response.changes:
                event = change.event
                if event.status != pb.EVENT_STATUS_PENDING:
                    future = self._decided.setdefault(event.id, asyncio.Future())
                    if not future.done():
                        future.set_result((now, event))

    async def _confirmed(self, event: pb.Event) -> tuple[float, float]:
        """Return when a payment was confirmed, and how many seconds the chain took."""
        future = self._decided.setdefault(event.id, asyncio.Future())
        at, decided = await asyncio.wait_for(future, 60)
        if decided.status != pb.EVENT_STATUS_CONFIRMED:
            raise RuntimeError(f"a payment became {decided.status}")
        return at, self._took.pop(decided.tx_hash)

    async def one_by_one(self, count: int) -> None:
        """Make payments, each when the one before is confirmed."""
        async with grpc.aio.insecure_channel(ADDRESS) as channel:
            watching = asyncio.create_task(self._watch(channel))
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            took, own = [], []
            for _ in range(count):
                begun = time.perf_counter()
                at, of_chain = await self._confirmed(await self._pay(stub))
                took.append(at - begun)
                own.append(at - begun - of_chain)
            watching.cancel()
        took.sort()
        own.sort()
        print(
            f"one by one, {count} payments, Spend to confirmed:"
            f" p50 {took[len(took) // 2] * 1e3:.0f} ms,"
            f" p99 {took[-1 - len(took) // 100] * 1e3:.0f} ms;"
            f" without the chain's part p50 {own[len(own) // 2] * 1e3:.0f} ms"
        )

    async def at_once(self, count: int) -> None:
        """Make payments at the same time."""
        self._asked.clear()
        async with grpc.aio.insecure_channel(ADDRESS) as channel:
            watching = asyncio.create_task(self._watch(channel))
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            begun = time.perf_counter()
            events = await asyncio.gather(*(self._pay(stub) for _ in range(count)))
            ends = [at for at, _ in await asyncio.gather(*map(self._confirmed, events))]
            watching.cancel()
        seconds = max(ends) - begun
        asked = {name: self._asked[name] for name in ("sendTransaction", "getSignatureStatuses")}
        median = statistics.median(end - begun for end in ends)
        print(
            f"{count} at once: {count / seconds:.0f} payments a second, median {median:.1f} s;"
            f" asked {asked} and {sum(self._asked.values())} questions in all"
        )


@asynccontextmanager
async def serving(url: str, chain_url: str) -> AsyncIterator[None]:
    """Run one server process, as `pilot serve` does."""
    environ = os.environ | {
        "DATABASE_URL": url,
        "PILOT_LISTEN_ADDRESS": ADDRESS,
        "PILOT_WRAPPING_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "PILOT_WRAPPING_KEY_ID": "test",
        "PILOT_SOLANA_RPC_URLS": chain_url,
        "PILOT_LOG_LEVEL": "warning",
    }
    command = (sys.executable, "-m", "pilot_grpc", "serve")
    server = await asyncio.create_subprocess_exec(*command, env=environ)
    try:
        async with grpc.aio.insecure_channel(ADDRESS) as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)
        yield
    finally:
        server.terminate()
        await server.wait()


if __name__ == "__main__":
    uvloop.run(main())
