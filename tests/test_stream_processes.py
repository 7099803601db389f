"""The stream on two real servers: they die, drain, lose their database, and nobody misses anything.

Every subscriber is the package's own `follow`, and checks what comes as it comes: revisions without
a gap and without a repetition. What a test expects is read from the tables, past the stream.
"""

import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message

from pilot_grpc import migrations
from pilot_grpc.client import follow
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.connection import Database, open_database
from pilot_grpc.domain.accounts import CredentialKind
from pilot_grpc.domain.ids import SessionId, UserId, VaultId
from pilot_grpc.gen.pilot.v1 import (
    accounts_pb2,
    agents_pb2,
    ledger_pb2_grpc,
    projects_pb2,
    vaults_pb2,
)
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.services import books
from pilot_grpc.services.credentials import hash_secret, new_secret
from tests.conftest import Server
from tests.processes import CHANNEL_OPTIONS, SERVE, Process, channel_to, processes
from tests.rpc.proxy import Proxy, proxied
from tests.rpc.serving import Client, Refusal, fresh, new_agent, read, refusal, serving, with_key
from tests.sampling import first_of

log = logging.getLogger(__name__)

# No test waits for it; it only ends a test that hangs.
HANGING_SECONDS: Final = 100.0

# After these a caller repeats its request, on the next server.
REPEATED: Final = {
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "INTERNAL",
    "RESOURCE_EXHAUSTED",
}

EVENTS: Final = 10_000

CHANGES: Final = """
SELECT changes.revision, events.agent_id
  FROM event_changes AS changes
  JOIN events ON events.id = changes.event_id
 WHERE changes.vault_id = $1::text
 ORDER BY changes.revision
"""


Disturb = Callable[[Callable[[int], Awaitable[None]]], Awaitable[None]]
"""Does what must cost nobody a change; what it is given waits until so much more is written."""


async def until(condition: Callable[[], bool]) -> None:
    """Return once something is so that nobody signals."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


# --- who writes -----------------------------------------------------------------------


@dataclass(frozen=True)
class Purse:
    """A funded vault with its agents."""

    project_id: str
    vault_id: str
    agent_ids: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Tenant:
    """A user with some vaults."""

    credential: str
    purses: list[Purse]


async def new_tenant(
    database: Database, channel: grpc.aio.Channel, vaults: int = 1, agents: int = 1
) -> Tenant:
    """Add a user with vaults and agents in each."""
    user_id, secret = UserId(fresh("cuser")), new_secret(CredentialKind.SESSION)
    async with database.transaction() as conn:
        email = f"{user_id}@example.com"
        await accounts_db.insert_user(conn, user_id, email, "no hash", "User", None)
        session = SessionId(fresh("csession")), hash_secret(secret), user_id
        await accounts_db.insert_session(conn, *session, timedelta(days=1))
    owner = Client(channel, secret)
    purses = [await new_purse(owner, agents) for _ in range(vaults)]
    return Tenant(secret, purses)


async def new_purse(owner: Client, agents: int = 1) -> Purse:
    made = await owner(projects_pb2.CreateProjectRequest(name="Project"))
    agent_ids = [await new_agent(owner, made.project.id) for _ in range(agents)]
    keys = [(await with_key(owner, agent_id)).credential for agent_id in agent_ids]
    vault_id = made.project.vault_id
    await owner(pb.RecordFundingRequest(vault_id=vault_id, amount=10**12, request_id=fresh()))
    return Purse(made.project.id, vault_id, tuple(agent_ids), tuple(str(key) for key in keys))


def spends(purse: Purse, count: int, metadata: str | None = None) -> pb.BatchSpendRequest:
    """A batch of spends with ids of their own, by all agents of a vault in turn."""
    agents = cycle(purse.agent_ids)
    return pb.BatchSpendRequest(
        spends=[
            pb.SpendRequest(
                agent_id=next(agents), amount=1, request_id=fresh("s"), metadata=metadata
            )
            for _ in range(count)
        ]
    )


@dataclass
class Writer:
    """An owner who asks one server after another, with the same request, until it is answered."""

    clients: Sequence[Client]
    written: int = 0
    attempts_lost: int = 0

    async def ask(self, request: Message) -> Any:
        for client in cycle(self.clients):
            try:
                return await client(request)
            except grpc.aio.AioRpcError as error:
                if error.code().name not in REPEATED:
                    raise
            self.attempts_lost += 1
            await asyncio.sleep(0.02)
        raise AssertionError

    async def spend(self, purse: Purse, count: int, metadata: str | None = None) -> None:
        answer = await self.ask(spends(purse, count, metadata))
        self.written += len(answer.events)

    async def hold_and_capture(self, purse: Purse) -> None:
        """Make events that change after they were made: two captured, one released."""
        for more in (pb.CaptureSpendRequest(amount=1), pb.CaptureSpendRequest(amount=2), None):
            agent_id = purse.agent_ids[0]
            held = await self.ask(
                pb.AuthorizeSpendRequest(agent_id=agent_id, amount=2, request_id=fresh())
            )
            request = more or pb.ReleaseSpendRequest()
            request.event_id, request.request_id = held.event.id, fresh()
            await self.ask(request)
            self.written += 2

    async def write(self, purse: Purse, done: Callable[[], bool]) -> None:
        """Write to one vault in batches of many sizes, without a break, until that is enough."""
        chance = random.Random(purse.vault_id)  # noqa: S311 - batches, not secrets
        while not done():
            await self.spend(purse, chance.choice((1, 1, 10, 40, 100)))
            if chance.random() < 0.1:
                await self.hold_and_capture(purse)
            await asyncio.sleep(chance.choice((0, 0.02, 0.06)))

    async def vault(self, purse: Purse) -> vaults_pb2.Vault:
        answer = await self.ask(vaults_pb2.GetVaultRequest(vault_id=purse.vault_id))
        vault: vaults_pb2.Vault = answer.vault
        return vault

    async def events(self, purse: Purse) -> dict[str, pb.Event]:
        """Read all events of a vault, page after page."""
        found: dict[str, pb.Event] = {}
        request = pb.ListEventsRequest(vault_id=purse.vault_id, page_size=500)
        while True:
            page = await self.ask(request)
            found |= {event.id: event for event in page.events}
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def is_right(self, purse: Purse) -> bool:
        """Whether VerifyLedger accepts all pages of a vault."""
        request = pb.VerifyLedgerRequest(vault_id=purse.vault_id, page_size=10_000)
        while True:
            page = await self.ask(request)
            if page.HasField("discrepancy"):
                return False
            request.page_token = page.next_page_token
            if not request.page_token:
                return True


# --- who reads ------------------------------------------------------------------------


class Ending(NamedTuple):
    """How a stream ended, and whether it had begun."""

    had_begun: bool
    refusal: Refusal


class Route:
    """Leads each stream to the next of some channels, and notes how the streams end."""

    def __init__(self, *channels: grpc.aio.Channel) -> None:
        self._channels = cycle(channels)
        self.opened = 0
        self.endings: list[Ending] = []

    def unary_unary(self, *_: Any, **__: Any) -> None:
        """Nobody calls anything but SubscribeEvents here."""

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        async def stream(request: Message, **more: Any) -> AsyncIterator[Any]:
            call = next(self._channels).unary_stream(*args, **options)(request, **more)
            had_begun = False
            try:
                async for response in call:
                    self.opened += not had_begun
                    had_begun = True
                    yield response
            except grpc.aio.AioRpcError as error:
                self.endings.append(Ending(had_begun, read(error)))
                raise

        return stream

    @property
    def reasons(self) -> set[str]:
        """Why streams ended; a connection that broke gives none."""
        return {ending.refusal.reason for ending in self.endings}


@dataclass
class Reader:
    """A subscriber that keeps what comes, and refuses what comes twice, too early or late."""

    route: Route
    credential: str
    scope: Mapping[str, str] = field(default_factory=dict)
    changes: dict[str, list[pb.Change]] = field(default_factory=lambda: defaultdict(list))
    request: pb.SubscribeEventsRequest = field(init=False)

    def __post_init__(self) -> None:
        """Begin with the first change there is."""
        self.request = pb.SubscribeEventsRequest(start=pb.STREAM_START_EARLIEST, **self.scope)  # type: ignore[arg-type]
        self.request.heartbeat_interval.seconds = 1

    async def run(self) -> None:
        channel: Any = self.route
        async for response in follow(channel, self.credential, self.request):
            self.take(response)

    def take(self, response: pb.SubscribeEventsResponse) -> None:
        for change in response.changes:
            last = self.last(change.vault_id)
            if "agent_id" in self.scope:
                assert change.revision > last
                assert change.event.agent_id == self.scope["agent_id"]
            else:
                assert change.revision == last + 1
            self.changes[change.vault_id].append(change)

    def last(self, vault_id: str) -> int:
        kept = self.changes.get(vault_id)
        return kept[-1].revision if kept else 0

    def wants(self, purse: Purse, agent_id: str | None) -> bool:
        """Whether a change of an agent, or of nobody, belongs to what is followed."""
        if "agent_id" in self.scope:
            return agent_id == self.scope["agent_id"]
        return self.scope.get("vault_id", purse.vault_id) == purse.vault_id


@asynccontextmanager
async def following(*readers: Reader) -> AsyncIterator[None]:
    """Let subscribers follow while the block runs; whatever is wrong with one ends it."""
    async with asyncio.timeout(HANGING_SECONDS), asyncio.TaskGroup() as group:
        tasks = [group.create_task(reader.run()) for reader in readers]
        yield
        for task in tasks:
            task.cancel()


async def all_have_all(database: Database, readers: Sequence[Reader], *purses: Purse) -> None:
    """Wait until everybody has the last change there is, and check that it has all before it."""
    for purse in purses:
        rows = await database.pool.fetch(CHANGES, purse.vault_id)
        for reader in readers:
            wanted = [n for n, agent_id in rows if reader.wants(purse, agent_id)]
            if wanted:
                await until(lambda: reader.last(purse.vault_id) >= wanted[-1])  # noqa: B023
            found = reader.changes.get(purse.vault_id, [])
            assert [change.revision for change in found] == wanted


async def folds_to_what_is_read(reader: Reader, writer: Writer, *purses: Purse) -> None:
    """Replay the changes that came: what they end in is what every read says."""
    for purse in purses:
        changes = reader.changes[purse.vault_id]
        assert {change.event.id: change.event for change in changes} == await writer.events(purse)
        vault, last = await writer.vault(purse), changes[-1]
        assert (last.revision, last.vault_figures) == (
            vault.revision,
            pb.VaultFigures(
                balance=vault.balance, chain_balance=vault.chain_balance, held=vault.held
            ),
        )
        assert await writer.is_right(purse)


# --- two servers ----------------------------------------------------------------------


@dataclass(frozen=True)
class Two:
    """Connections to two servers, and a look into their database."""

    pair: tuple[Process, ...]
    channels: tuple[grpc.aio.Channel, ...]
    database: Database

    async def tenant(self, vaults: int = 1, agents: int = 1) -> Tenant:
        return await new_tenant(self.database, self.channels[0], vaults, agents)

    def writer(self, tenant: Tenant) -> Writer:
        return Writer([Client(channel, tenant.credential) for channel in self.channels])

    def reader(self, tenant: Tenant, first: int = 0, **scope: str) -> Reader:
        """A subscriber of one server."""
        return Reader(Route(self.channels[first]), tenant.credential, scope)

    def readers(self, tenant: Tenant, either: grpc.aio.Channel) -> list[Reader]:
        """Subscribers of a vault, of an agent and of everything, on either server or on both."""
        purse = tenant.purses[0]
        one, other = self.channels
        return [
            Reader(Route(*channels), tenant.credential, scope)
            for channels in ((one,), (other,), (one, other), (either,))
            for scope in ({"vault_id": purse.vault_id}, {"agent_id": purse.agent_ids[0]}, {})
        ]


@asynccontextmanager
async def two_servers(
    server: Server, url: str, *, pair: tuple[Process, ...] | None = None, **environ: str
) -> AsyncIterator[Two]:
    """Connect to two servers: to new ones, unless there are some."""
    async with AsyncExitStack() as stack:
        if pair is None:
            pair = stack.enter_context(processes(server, url, SERVE, SERVE, **environ))
        database = await open_database(url, pooler=server.pooler, size=3)
        stack.push_async_callback(database.close)
        channels = [await stack.enter_async_context(channel_to(process)) for process in pair]
        yield Two(pair, tuple(channels), database)


@asynccontextmanager
async def either_of(pair: Sequence[Process], *options: tuple[str, Any]) -> AsyncIterator[Any]:
    """One channel that finds whichever of the servers lives."""
    target = "ipv4:" + ",".join(process.address for process in pair)
    async with grpc.aio.insecure_channel(target, options=(*CHANNEL_OPTIONS, *options)) as channel:
        yield channel


@pytest.fixture(scope="module")
def pair(server: Server, shared_database: str) -> Iterator[tuple[Process, ...]]:
    """Two servers for all tests that leave them alive."""
    with processes(server, shared_database, SERVE, SERVE) as running:
        yield running


@pytest.fixture
async def two(
    server: Server, shared_database: str, pair: tuple[Process, ...]
) -> AsyncIterator[Two]:
    async with two_servers(server, shared_database, pair=pair) as connected:
        yield connected


async def disturbed(
    two: Two,
    tenant: Tenant,
    readers: Sequence[Reader],
    disturb: Disturb,
    events: int = EVENTS,
) -> Writer:
    """Write to all vaults, and to one more that is new, while somebody disturbs."""
    writer = two.writer(tenant)

    async def more(count: int) -> None:
        before = writer.written
        await until(lambda: writer.written >= before + count)

    is_over = asyncio.Event()

    def done() -> bool:
        return is_over.is_set() and writer.written >= events

    async with following(*readers):
        async with asyncio.TaskGroup() as group:
            for purse in tenant.purses:
                group.create_task(writer.write(purse, done))
            # Its owner asks once, so whoever makes it must not be disturbed.
            late = await new_purse(Client(two.channels[0], tenant.credential), 2)
            tenant.purses.append(late)
            group.create_task(writer.write(late, done))
            await disturb(more)
            is_over.set()
        await all_have_all(two.database, readers, *tenant.purses)
    everything = next(reader for reader in readers if not reader.scope)
    await folds_to_what_is_read(everything, writer, *tenant.purses)
    for reader in readers:
        for vault_id, changes in reader.changes.items():
            if "agent_id" not in reader.scope:
                assert changes == everything.changes[vault_id]
    return writer


def restarts(two: Two, number: signal.Signals, times: int) -> Disturb:
    """End one server after the other, again and again, and start it again; once both at a time."""

    async def disturb(more: Callable[[int], Awaitable[None]]) -> None:
        chance = random.Random(number)  # noqa: S311 - moments, not secrets
        await more(500)
        for turn in range(times):
            await more(chance.randrange(100, 900))
            ending = two.pair if turn == times // 2 else two.pair[turn % 2 : turn % 2 + 1]
            for process in ending:
                process.signal(number)
            for process in ending:
                await asyncio.to_thread(process.wait)
                process.start()
            for process in ending:
                async with channel_to(process):
                    pass

    return disturb


@pytest.mark.parametrize("number", first_of([signal.SIGKILL, signal.SIGTERM]))
async def test_servers_that_end_again_and_again_cost_no_subscriber_a_change(
    server: Server, shared_database: str, number: signal.Signals
) -> None:
    """Killed or drained under ten thousand events: everybody has each change once, in order."""
    async with two_servers(server, shared_database) as two, either_of(two.pair) as either:
        tenant = await two.tenant(vaults=3, agents=2)
        readers = two.readers(tenant, either)

        writer = await disturbed(two, tenant, readers, restarts(two, number, 3))

        endings = [ending for reader in readers for ending in reader.route.endings]
        cut = [ending.refusal for ending in endings if ending.had_begun]
        log.info("%s: %d written, %d streams ended", number.name, writer.written, len(cut))
        assert all(any(each.had_begun for each in reader.route.endings) for reader in readers)
        assert {refused.code for _, refused in endings} == {"UNAVAILABLE"}
        if number is signal.SIGTERM:
            assert {refused.reason for refused in cut} == {"SERVER_DRAINING"}
            assert all(0 < (refused.retry_seconds or 0) <= 2 for refused in cut)
        else:
            assert {refused.reason for refused in cut} == {""}
            assert writer.attempts_lost


# --- what lies between is cut ---------------------------------------------------------


@dataclass(frozen=True)
class Restarting:
    """A PostgreSQL that can be stopped and started."""

    url: str
    process: asyncio.subprocess.Process

    async def do(self, what: str) -> None:
        """Start it, or stop it in one of pg_ctl's modes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n".encode())
        assert await self.process.stdout.readline() == b"done\n"


@asynccontextmanager
async def restarting(home: Path) -> AsyncIterator[Restarting]:
    """Run a migrated PostgreSQL of the test's own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.restarting", str(home)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": os.defpath},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        await migrations.migrate(url)
        yield Restarting(url, process)
    finally:
        process.stdin.close()
        await process.wait()


async def test_a_database_that_is_restarted_costs_no_subscriber_a_change(home: Path) -> None:
    """Stopped for a moment, for long, and by a crash: streams end resumably at most."""
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(restarting(home))
        server = Server(postgres.url, postgres.url)
        two = await stack.enter_async_context(two_servers(server, postgres.url))
        either = await stack.enter_async_context(either_of(two.pair))
        tenant = await two.tenant(vaults=3, agents=2)
        readers = two.readers(tenant, either)

        async def disturb(more: Callable[[int], Awaitable[None]]) -> None:
            for mode, away in (("fast", 0.0), ("fast", 2.0), ("immediate", 0.0)):
                await more(500)
                await postgres.do(mode)
                await asyncio.sleep(away)
                await postgres.do("start")

        writer = await disturbed(two, tenant, readers, disturb, EVENTS // 2)

        log.info("%d written, %d attempts lost", writer.written, writer.attempts_lost)
        assert writer.attempts_lost
        for reader in readers:
            assert "DATABASE_UNAVAILABLE" in reader.route.reasons
            assert {ending.refusal.code for ending in reader.route.endings} <= {
                "UNAVAILABLE",
                "RESOURCE_EXHAUSTED",
            }


@asynccontextmanager
async def between(process: Process) -> AsyncIterator[tuple[Proxy, str]]:
    """Stand between a server and its callers; give the address that leads through."""
    proxy = Proxy("127.0.0.1", process.port)
    async with await asyncio.start_server(proxy.connect, "127.0.0.1", 0) as listener:
        try:
            yield proxy, f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        finally:
            proxy.mend()
            proxy.cut()


# A connection that died without a word is noticed within two seconds.
IMPATIENT: Final = (
    *CHANNEL_OPTIONS,
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    # A ping that was under way already, to measure the connection, is waited for a minute else;
    # and who only reads asks no more than once a minute.
    ("grpc.http2.ping_timeout_ms", 1_000),
    ("grpc.http2.max_pings_without_data", 0),
)


async def test_a_connection_that_is_cut_or_goes_silent_costs_no_subscriber_a_change(
    two: Two,
) -> None:
    """Between subscriber and server: cut twice, and once half-open until keepalive notices."""
    async with AsyncExitStack() as stack:
        proxy, address = await stack.enter_async_context(between(two.pair[0]))
        through = grpc.aio.insecure_channel(address, options=IMPATIENT)
        await stack.enter_async_context(through)
        tenant = await two.tenant(vaults=2)
        vault_id = tenant.purses[0].vault_id
        readers = [
            Reader(Route(*channels), tenant.credential, scope)
            for channels in ((through,), (through, two.channels[1]))
            for scope in ({}, {"vault_id": vault_id})
        ]

        async def disturb(more: Callable[[int], Awaitable[None]]) -> None:
            for silently in (False, True, False):
                await more(300)
                # Those that may go elsewhere go on there; the others wait for it to be mended.
                hit = readers[:2]
                before = [len(reader.route.endings) for reader in hit]
                if silently:
                    proxy.freeze()
                else:
                    proxy.cut()
                for reader, ended in zip(hit, before, strict=True):
                    await until(lambda: len(reader.route.endings) > ended)  # noqa: B023
                await more(100)
                proxy.mend()

        await disturbed(two, tenant, readers, disturb, 1_000)

        assert set().union(*(reader.route.reasons for reader in readers)) == {""}


@pytest.mark.full
async def test_a_server_that_loses_its_database_or_hears_nothing_of_it_costs_nobody_a_change(
    server: Server, database: str
) -> None:
    """Its connections are cut, and later silent: its streams end, and go on when it is mended."""
    async with AsyncExitStack() as stack:
        proxy, url = await stack.enter_async_context(proxied(database))
        here, there = (
            stack.enter_context(processes(server, each, SERVE))[0] for each in (url, database)
        )
        two = await stack.enter_async_context(two_servers(server, database, pair=(here, there)))
        tenant = await two.tenant(vaults=2)
        purse = tenant.purses[0]
        readers = [
            two.reader(tenant),
            two.reader(tenant, vault_id=purse.vault_id),
            two.reader(tenant, agent_id=purse.agent_ids[0]),
            Reader(Route(*two.channels), tenant.credential),
        ]
        writer = Writer([Client(two.channels[1], tenant.credential)])

        async with following(*readers):
            for away in (proxy.cut, proxy.freeze):
                await writer.spend(purse, 50)
                before = [len(reader.route.endings) for reader in readers]
                away()
                for reader, ended in zip(readers[:3], before[:3], strict=True):
                    await until(lambda: len(reader.route.endings) > ended)  # noqa: B023
                for each in tenant.purses:
                    await writer.spend(each, 50)
                # Who may go elsewhere has everything already.
                await all_have_all(two.database, readers[3:], *tenant.purses)
                proxy.mend()
                await all_have_all(two.database, readers, *tenant.purses)

        for reader in readers[:3]:
            assert "DATABASE_UNAVAILABLE" in reader.route.reasons
        await folds_to_what_is_read(readers[0], writer, *tenant.purses)


# --- commits in another order ---------------------------------------------------------


@pytest.mark.parametrize("moment", ["open", "write"])
async def test_a_transaction_that_begins_first_and_commits_last_is_not_missed(
    server: Server, shared_database: str, two: Two, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its number as a transaction, or has written its change, while others commit."""
    method = getattr(books.Books, moment)
    reached, released = asyncio.Event(), asyncio.Event()

    async def held(self: Any, conn: Any, *args: Any, **options: Any) -> Any:
        if moment == "open":
            await conn.execute("SELECT pg_current_xact_id()")
        else:
            await method(self, conn, *args, **options)
        reached.set()
        await released.wait()
        return await method(self, conn, *args, **options) if moment == "open" else None

    async with serving(shared_database, database_pooler=server.pooler) as third:
        tenant = await two.tenant(vaults=2, agents=2)
        one, other = tenant.purses
        readers = [
            Reader(Route(channel), tenant.credential, scope)
            for channel in (*two.channels, third.channel)
            for scope in (
                {},
                {"vault_id": one.vault_id},
                {"agent_id": one.agent_ids[0]},
                {"vault_id": other.vault_id},
            )
        ]
        writer, behind = two.writer(tenant), two.writer(tenant)
        async with following(*readers):
            await all_have_all(two.database, readers, one, other)

            monkeypatch.setattr(books.Books, moment, held)
            late = asyncio.ensure_future(
                Client(third.channel, tenant.credential)(spends(one, 3, metadata='"late"'))
            )
            await reached.wait()
            for _ in range(5):
                await writer.spend(other, 4)
            queued = asyncio.ensure_future(behind.spend(one, 4))
            await all_have_all(two.database, readers, other)
            if moment == "open":
                await queued
                await all_have_all(two.database, readers, one)
            released.set()
            await queued
            last = (await late).events[-1]
            await all_have_all(two.database, readers, one, other)

        # Within one vault, who took its lock last came last, whoever had begun first.
        vault = await writer.vault(one)
        assert last.revision == vault.revision - (0 if moment == "open" else 4)
        for reader in (readers[0], readers[4], readers[8]):
            await folds_to_what_is_read(reader, writer, one, other)


async def test_a_transaction_that_sits_elsewhere_delays_nothing(two: Two) -> None:
    """It has written a row, holds another vault's lock, and commits nothing.

    What others change arrives, and so does a vault that is new.
    """
    tenant = await two.tenant(vaults=2)
    busy, locked = tenant.purses
    readers = [two.reader(tenant, first) for first in (0, 1)]
    writer = two.writer(tenant)
    async with following(*readers):
        await all_have_all(two.database, readers, *tenant.purses)
        async with two.database.transaction() as conn:
            user_id = UserId(fresh("cuser"))
            await accounts_db.insert_user(conn, user_id, f"{user_id}@a.example", "-", "User", None)
            await vaults_db.lock_vaults(conn, [VaultId(locked.vault_id)])
            for _ in range(5):
                await writer.spend(busy, 2)
                await all_have_all(two.database, readers, busy)
            late = await new_purse(Client(two.channels[0], tenant.credential))
            await all_have_all(two.database, readers, late)
    assert not any(reader.route.endings for reader in readers)


# --- subscribers that freeze, die, stare, or were away --------------------------------


@asynccontextmanager
async def subscriber(
    how: str, process: Process, reader: Reader, *more: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that subscribes to what a reader would; it is killed in the end."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.subscriber", how, process.address),
        *(reader.credential, reader.request.SerializeToString().hex(), *more),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env={"PYTHONPATH": ":".join(sys.path)},
        limit=1 << 20,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGCONT)
            running.kill()
        await running.wait()


async def revisions(running: asyncio.subprocess.Process, last: int) -> list[int]:
    """Read what a subscriber prints, until it has a change."""
    assert running.stdout is not None
    found: list[int] = []
    while not found or found[-1] < last:
        came, _ = json.loads(await running.stdout.readline())
        found += came
    return found


async def seconds_until_free(client: Client) -> float:
    """Open streams until one is let in, and say how long that took."""
    began = time.monotonic()
    stub: Any = ledger_pb2_grpc.LedgerServiceStub(client.channel)
    request = pb.SubscribeEventsRequest(start=pb.STREAM_START_LATEST)
    while True:
        call = stub.SubscribeEvents(request, metadata=(("authorization", client.authorization),))
        refused = await refusal(call.read())
        call.cancel()
        if refused.code == "OK":
            return time.monotonic() - began
        assert refused.reason == "QUOTA_EXCEEDED"
        await asyncio.sleep(0.05)


@pytest.mark.full
async def test_a_frozen_subscriber_loses_its_stream_and_nothing_else(
    server: Server, shared_database: str
) -> None:
    """Its user may have one stream: keepalive frees it, and so does the death of its process."""
    limits: dict[str, Any] = {"PILOT_KEEPALIVE_SECONDS": "1", "PILOT_STREAMS_PER_USER_LIMIT": "1"}
    async with two_servers(server, shared_database, **limits) as two:
        tenant = await two.tenant()
        (purse,) = tenant.purses
        reader, writer = two.reader(tenant), two.writer(tenant)
        process, (client, _) = two.pair[0], writer.clients
        async with (
            asyncio.timeout(HANGING_SECONDS),
            subscriber("follow", process, reader) as running,
        ):
            await writer.spend(purse, 10)
            before = await revisions(running, 11)
            running.send_signal(signal.SIGSTOP)
            # So few that its kernel takes them, and only keepalive can tell.
            await writer.spend(purse, 10)
            frozen = await seconds_until_free(client)
            await writer.spend(purse, 1_000)
            running.send_signal(signal.SIGCONT)
            after = await revisions(running, 1_021)

            running.kill()
            killed = await seconds_until_free(client)

        log.info("free again %.1f s after SIGSTOP, %.3f s after SIGKILL", frozen, killed)
        # One second and ten it should be; gRPC's own ping timeout would be a minute.
        assert frozen < 45
        assert before + after == [*range(1, 1_022)]


STARING: Final = 100
METADATA: Final = json.dumps("x" * 1_022)
# A stream that is not read holds a message that waits, and a page behind it, at most. Both
# are full long before the first measurement.
GROWTH_BYTES_MAX: Final = 24 << 20


@pytest.mark.full
async def test_subscribers_that_never_read_cost_memory_that_does_not_grow(
    server: Server, shared_database: str
) -> None:
    """A hundred of them, and one that reads: after 20,000 events as much as after 5,000."""
    async with two_servers(server, shared_database) as two:
        tenant = await two.tenant()
        (purse,) = tenant.purses
        process, reader, writer = two.pair[0], two.reader(tenant), two.writer(tenant)
        resident = [process.resident_bytes]
        async with subscriber("stare", process, reader, str(STARING)) as running:
            assert running.stdout is not None
            await asyncio.wait_for(running.stdout.readline(), HANGING_SECONDS)
            async with following(reader):
                for events in (0, 5_000, 20_000):
                    while writer.written < events:
                        await writer.spend(purse, 500, METADATA)
                    await all_have_all(two.database, [reader], purse)
                    # Whoever has room yet reads its pages behind the others.
                    await asyncio.sleep(1)
                    resident.append(process.resident_bytes)

            log.info("resident: %s MiB", [each >> 20 for each in resident])
            assert running.returncode is None
            assert resident[-1] - resident[-2] < GROWTH_BYTES_MAX


async def test_a_subscriber_that_was_away_for_ten_thousand_events_catches_up(two: Two) -> None:
    """It left one server and comes back to the other."""
    tenant = await two.tenant(agents=2)
    (purse,) = tenant.purses
    left, came = two.reader(tenant), two.reader(tenant, first=1)
    agent = two.reader(tenant, first=1, agent_id=purse.agent_ids[0])
    writer = two.writer(tenant)
    async with following(left):
        await writer.spend(purse, 10)
        await all_have_all(two.database, [left], purse)
    came.request, came.changes = left.request, left.changes
    while writer.written < EVENTS:
        await writer.spend(purse, 1_000)

    began = time.monotonic()
    async with following(came):
        await all_have_all(two.database, [came], purse)
        log.info("%d events in %.2f s", EVENTS, time.monotonic() - began)
    async with following(agent):
        await all_have_all(two.database, [agent], purse)

    await folds_to_what_is_read(came, writer, purse)


# --- subscribers that move ------------------------------------------------------------


async def test_a_subscriber_may_move_to_the_other_server_at_any_moment(two: Two) -> None:
    """Fifty times, right after what one server has just written: it has each change once."""
    tenant = await two.tenant(vaults=2)
    purse = tenant.purses[0]
    readers = [two.reader(tenant), two.reader(tenant, vault_id=purse.vault_id)]
    writers = [Writer([Client(channel, tenant.credential)]) for channel in two.channels]
    stubs: list[Any] = [ledger_pb2_grpc.LedgerServiceStub(each) for each in two.channels]

    async def move(reader: Reader, moves: int) -> None:
        metadata = (("authorization", f"Bearer {tenant.credential}"),)
        for turn in range(moves):
            call = stubs[turn % 2].SubscribeEvents(reader.request, metadata=metadata)
            async for response in call:
                reader.take(response)
                reader.request.resume_token = response.resume_token
                if response.changes:
                    break
            call.cancel()

    async with asyncio.timeout(HANGING_SECONDS):
        moving = [asyncio.ensure_future(move(reader, 50)) for reader in readers]
        while not all(each.done() for each in moving):
            for writer in writers:
                for each in tenant.purses:
                    await writer.spend(each, 2)
        await asyncio.gather(*moving)
    async with following(*readers):
        await all_have_all(two.database, readers[:1], *tenant.purses)
        await all_have_all(two.database, readers[1:], purse)


async def test_a_credential_that_is_revoked_on_one_server_ends_its_streams_on_the_other(
    two: Two,
) -> None:
    """A session, an API key and an agent's key; another credential of the user goes on."""
    tenant = await two.tenant()
    (purse,) = tenant.purses
    owner, session = (Client(two.channels[0], tenant.credential) for _ in range(2))
    key = await owner(
        accounts_pb2.CreateApiKeyRequest(name="Key", permissions=[accounts_pb2.PERMISSION_READ])
    )
    other_key = await owner(
        accounts_pb2.CreateApiKeyRequest(name="Key", permissions=[accounts_pb2.PERMISSION_READ])
    )
    revocations: list[tuple[str, Message]] = [
        (key.secret, accounts_pb2.RevokeApiKeyRequest(api_key_id=key.api_key.id)),
        (purse.keys[0], agents_pb2.RevokeAgentKeyRequest(agent_id=purse.agent_ids[0])),
        (tenant.credential, accounts_pb2.SignOutRequest()),
    ]
    routes = [Route(two.channels[1]) for _ in revocations]
    running = [
        asyncio.ensure_future(Reader(route, credential).run())
        for route, (credential, _) in zip(routes, revocations, strict=True)
    ]
    staying = Reader(Route(two.channels[1]), other_key.secret)

    async with following(staying):
        for route, task, (_, revocation) in zip(routes, running, revocations, strict=True):
            await until(lambda: route.opened == 1)  # noqa: B023
            began = time.monotonic()
            await session(revocation)
            refused = await refusal(task)
            log.info("ended after %.2f s", time.monotonic() - began)
            assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "CREDENTIAL_INVALID")
        assert not staying.route.endings


@pytest.mark.full
async def test_a_thousand_subscribers_come_back_at_once_while_spends_go_on(
    server: Server, shared_database: str
) -> None:
    """The server of all of them is killed; the other answers every spend meanwhile."""
    async with two_servers(server, shared_database) as two, AsyncExitStack() as stack:
        tenant = await two.tenant(vaults=20)
        apart = ("grpc.use_local_subchannel_pool", 1)
        channels = [await stack.enter_async_context(either_of(two.pair, apart)) for _ in range(5)]
        readers = [
            Reader(Route(channel), tenant.credential, {"vault_id": purse.vault_id})
            for channel in channels
            for purse in tenant.purses
            for _ in range(10)
        ]
        spender = Client(two.channels[1], tenant.credential)
        answered: list[float] = []

        async def spend_on() -> None:
            for purse in cycle(tenant.purses):
                began = time.monotonic()
                await spender(spends(purse, 1))
                answered.append(time.monotonic() - began)
                await asyncio.sleep(0.02)

        async with following(*readers):
            await until(lambda: all(reader.route.opened == 1 for reader in readers))
            spending = asyncio.ensure_future(spend_on())
            await asyncio.sleep(0.2)
            before, began = len(answered), time.monotonic()
            two.pair[0].kill()
            await until(lambda: all(reader.route.opened == 2 for reader in readers))
            seconds, meanwhile = time.monotonic() - began, answered[before:]
            spending.cancel()
            await asyncio.wait([spending])
            for purse in tenant.purses:
                await spender(spends(purse, 1))
            of_vault = {
                purse.vault_id: [r for r in readers if r.scope["vault_id"] == purse.vault_id]
                for purse in tenant.purses
            }
            for purse in tenant.purses:
                await all_have_all(two.database, of_vault[purse.vault_id], purse)

        log.info(
            "all back after %.1f s; %d spends meanwhile, the slowest took %.2f s",
            *(seconds, len(meanwhile), max(meanwhile)),
        )
        assert spending.cancelled()
        assert meanwhile
