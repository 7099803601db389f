"""Events out: from commit to client, catching up, and a thousand subscribers.

Two server processes share one database; callers and subscribers share the machine with
them. What is called latency runs from the change's own time, which is the database's
clock before the commit, to the moment when the subscriber has the change: the commit's
own time is in it.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

from pilot_grpc import embedded, migrations
from pilot_grpc.domain.accounts import CredentialKind
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.services.credentials import hash_secret, new_secret
from tests import make

PORTS: Final = (50961, 50962)
BATCH_SPEND: Final = "/pilot.v1.LedgerService/BatchSpend"
SUBSCRIBE: Final = "/pilot.v1.LedgerService/SubscribeEvents"
WRITERS: Final = 20
BACKLOG: Final = 100_000
LATE_SECONDS_MAX: Final = 5
IDLE_CORES: Final = 0.1


async def main() -> None:
    """Measure, and print one line for each question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, embedded.running(Path(home)) as url:
        await migrations.migrate(url)
        async with make.app(url) as app:
            spenders = [await make.agent(app) for _ in range(WRITERS)]
            hot = await make.agent(app)
            session = new_secret(CredentialKind.SESSION)
            async with app.database.transaction() as conn:
                for spender in (hot, *spenders):
                    await conn.execute(
                        "UPDATE projects SET user_id = $1 WHERE id = $2",
                        hot.owner.user_id,
                        spender.project_id,
                    )
                await conn.execute(
                    "INSERT INTO sessions (id, token, user_id, expires_at)"
                    " VALUES ('bench', $1, $2, now() + interval '1 day')",
                    hash_secret(session),
                    hot.owner.user_id,
                )
        bench = Bench(session, [s.key for s in spenders], arguments.seconds)
        with serving(url, PORTS[0]) as first, serving(url, PORTS[1]) as second:
            await bench.warm_up(first.address, second.address)
            await bench.backlog(first, hot.key)
            for _ in range(arguments.rounds):
                await bench.catch_up(first, hot.vault_id)
            pair = [first, second]
            for _ in range(arguments.rounds):
                await bench.latency("1,000 events/s, 2 processes, 10 subscribers", pair, 1_000, 10)
            for _ in range(arguments.rounds):
                await bench.latency("10 events/s, 1 process, 1,000 subscribers", [first], 10, 1_000)
            async with bench.never_read(first, 100, hot.vault_id):
                for _ in range(arguments.rounds):
                    await bench.latency("beside 100 that never read", pair, 1_000, 10)


class Server:
    """One server process."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        """Take what runs where."""
        self.process = process
        self.address = f"127.0.0.1:{port}"

    def memory(self) -> int:
        """Return the resident set, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    def cpu(self) -> float:
        """Return the seconds of processor time used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """What all measurements share."""

    def __init__(self, session: str, keys: Sequence[str], seconds: float) -> None:
        """Take the owner's session and the keys of agents, each of a vault of its own."""
        self._owner = (("authorization", f"Bearer {session}"),)
        self._keys = keys
        self._seconds = seconds

    async def warm_up(self, *addresses: str) -> None:
        """Let every statement and every lane run once."""
        for address in addresses:
            async with channel(address) as one:
                await self._write([one], 500, time.perf_counter() + 1)

    async def latency(self, text: str, servers: Sequence[Server], rate: int, count: int) -> None:
        """Write so many events a second, and take the time until all subscribers have them."""
        delays: list[float] = []
        async with channels(servers, 1 + count // 100) as opened:
            calls = [
                self._subscribe(opened[n % len(opened)], start=pb.STREAM_START_LATEST)
                for n in range(count)
            ]
            for call in calls:
                await call.read()
            tasks = [asyncio.create_task(_take(call, delays)) for call in calls]
            before = [server.cpu() for server in servers]
            async with channels(servers, 1) as writing:
                written = await self._write(writing, rate, time.perf_counter() + self._seconds)
            used = sum(server.cpu() - b for server, b in zip(servers, before, strict=True))
            for _ in range(LATE_SECONDS_MAX * 20):
                if len(delays) < written * count:
                    await asyncio.sleep(0.05)
            for task, call in zip(tasks, calls, strict=True):
                task.cancel()
                call.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        delays.sort()
        print(
            f"{text}: {written / self._seconds:,.0f}/s written, {len(delays):,} of"
            f" {written * count:,} delivered, p50 {statistics.median(delays) * 1e3:.1f} ms, p99"
            f" {delays[len(delays) * 99 // 100] * 1e3:.1f} ms; servers {used / self._seconds:.2f}"
            f" cores, {max(server.memory() for server in servers)} MiB"
        )

    @asynccontextmanager
    async def never_read(self, server: Server, count: int, vault_id: str) -> AsyncIterator[None]:
        """Have streams open that nobody reads, until what they wait for fills their windows."""
        async with channel(server.address) as unread:
            started, memory = time.perf_counter(), server.memory()
            calls = [
                self._subscribe(unread, start=pb.STREAM_START_EARLIEST, vault_id=vault_id)
                for _ in range(count)
            ]
            for call in calls:
                await call.read()
            used = server.cpu() - 1
            while server.cpu() - used > IDLE_CORES:
                used = server.cpu()
                await asyncio.sleep(1)
            print(
                f"{count} that never read are full after {time.perf_counter() - started:.0f} s;"
                f" the server grew by {server.memory() - memory} MiB"
            )
            yield
            for call in calls:
                call.cancel()

    async def backlog(self, server: Server, key: str) -> None:
        """Write what is then caught up with."""
        async with channel(server.address) as one:
            call: Any = one.unary_unary(BATCH_SPEND)
            metadata = (("authorization", f"Bearer {key}"),)
            for start in range(0, BACKLOG, 8_000):
                await asyncio.gather(
                    *(
                        call(_batch(1_000, f"backlog-{at}"), metadata=metadata)
                        for at in range(start, min(start + 8_000, BACKLOG), 1_000)
                    )
                )

    async def catch_up(self, server: Server, vault_id: str) -> None:
        """Read a backlog on one stream."""
        async with channel(server.address) as one:
            started, count, cpu = time.perf_counter(), 0, server.cpu()
            call = self._subscribe(one, start=pb.STREAM_START_EARLIEST, vault_id=vault_id)
            while count < BACKLOG:
                count += len((await call.read()).changes)
            took = time.perf_counter() - started
            call.cancel()
        used = (server.cpu() - cpu) / took
        print(f"catching up with {count:,} on one stream: {count / took:,.0f}/s, {used:.2f} cores")

    def _subscribe(self, one: grpc.aio.Channel, **fields: Any) -> Any:
        subscribe: Any = one.unary_stream(
            SUBSCRIBE,
            pb.SubscribeEventsRequest.SerializeToString,
            pb.SubscribeEventsResponse.FromString,
        )
        return subscribe(pb.SubscribeEventsRequest(**fields), metadata=self._owner)

    async def _write(self, writing: Sequence[grpc.aio.Channel], rate: int, until: float) -> int:
        """Write at a steady rate: batches of up to five, each for another vault."""
        size = min(5, max(1, rate // 100))
        calls: list[Any] = [one.unary_unary(BATCH_SPEND) for one in writing]
        turn, sent, due = time.time_ns(), 0, time.perf_counter()
        tasks: set[asyncio.Task[Any]] = set()

        async def send(number: int) -> None:
            key = self._keys[number % len(self._keys)]
            metadata = (("authorization", f"Bearer {key}"),)
            await calls[number % len(calls)](_batch(size, f"{turn}-{number}"), metadata=metadata)

        number = 0
        while time.perf_counter() < until:
            task = asyncio.create_task(send(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            sent += size
            due += size / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await asyncio.gather(*tasks)
        return sent


async def _take(call: Any, delays: list[float]) -> None:
    """Read a stream, and note how old each change is."""
    while True:
        response = await call.read()
        now = time.time()
        for change in response.changes:
            at = change.change_time
            delays.append(now - at.seconds - at.nanos / 1e9)


def _batch(size: int, name: str) -> bytes:
    spends = [pb.SpendRequest(amount=1, request_id=f"{name}-{i}") for i in range(size)]
    return pb.BatchSpendRequest(spends=spends).SerializeToString()


@contextmanager
def serving(url: str, port: int) -> Iterator[Server]:
    """Run one server process, as `pilot serve` does."""
    environ = os.environ | {
        "DATABASE_URL": url,
        "PILOT_LISTEN_ADDRESS": f"127.0.0.1:{port}",
        "PILOT_WRAPPING_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "PILOT_WRAPPING_KEY_ID": "bench",
    }
    process = subprocess.Popen([sys.executable, "-m", "pilot_grpc", "serve"], env=environ)
    server = Server(process, port)
    try:
        with grpc.insecure_channel(server.address) as one:
            grpc.channel_ready_future(one).result(timeout=20)
        yield server
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def channels(servers: Sequence[Server], each: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Open connections of their own to servers."""
    opened = [
        grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(each)
        for server in servers
    ]
    yield opened
    for one in opened:
        await one.close()


@asynccontextmanager
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """Open a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as one:
        yield one


if __name__ == "__main__":
    uvloop.run(main())
