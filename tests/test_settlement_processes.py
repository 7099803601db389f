"""Two real servers on one chain: whatever dies, freezes, lies or gets lost, all is paid once.

The embedded chain is a process, too, and so are the servers; both settle, and share the work.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import pytest
from google.protobuf.message import Message
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from pilot_grpc.client import follow
from pilot_grpc.database_url import with_database
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db.connection import Database, open_database
from pilot_grpc.domain.accounts import CredentialKind
from pilot_grpc.domain.ids import SessionId, UserId
from pilot_grpc.gen.pilot.v1 import agents_pb2, projects_pb2, vaults_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.services.credentials import hash_secret, new_secret
from pilot_grpc.solana.clusters import MAINNET_USDC_MINT
from pilot_grpc.solana.localnet import FOR_EVER
from tests import faulty_settlement as faulty
from tests.conftest import Server
from tests.full import surfpool_net
from tests.full.surfpool_net import Surfpool
from tests.processes import CHANNEL_OPTIONS, Process, processes
from tests.rpc.serving import Client, fresh, new_agent, read, with_key
from tests.sampling import first_of
from tests.solana import either, relay
from tests.solana.payments import Rpc, ata, connected
from tests.solana.relay import Relay, relaying

AMOUNT: Final = 1_000_000
FUNDS: Final = 100_000_000
# What a payee has before: with nothing at all it would have no account for USDC.
OPENING: Final = 1
SLOT_MS: Final = 10
# So many blocks, and nothing can land any more that was signed before, to everybody's knowledge.
FOR_GOOD: Final = 350
LOOK_SECONDS: Final = 0.02
CALL_SECONDS: Final = 2.0

# After these a caller repeats its request, on the other server.
REPEATED: Final = {
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL"),
    "RESOURCE_EXHAUSTED",
}

SIGNATURES: Final = """
SELECT signature
  FROM transfer_signatures
 WHERE event_id = $1
 ORDER BY attempt
"""


# -- The chains


class Ground(Protocol):
    """A chain that servers work on, and what a test can have go wrong there."""

    rpc: Rpc

    @property
    def environ(self) -> dict[str, str]:
        """How servers find it."""

    async def give(self, wallet: Pubkey, amount: int) -> None:
        """Send USDC to a wallet."""

    async def give_sol(self, wallet: Pubkey) -> None:
        """Send SOL to a fee payer, unless it gets some by itself."""

    async def strike(self, fault: str, count: int = 1) -> None:
        """Let the next so many transactions meet a fault at every node; FOR_EVER for all."""

    async def heal(self) -> None:
        """Let nothing go wrong any more. What was held is lost, or lands."""

    async def age(self) -> None:
        """Let so much time pass that nothing can land that was signed before."""


FAULTS: Final[dict[str, tuple[dict[str, Any], relay.Meddle]]] = {
    "drop": ({"kind": "drop"}, relay.drop),
    "hold": ({"kind": "hold"}, relay.drop),
    "applied then disconnected": (
        {"kind": "apply_then_disconnect", "method": "sendTransaction"},
        relay.apply_then_disconnect,
    ),
    "429": (
        {"kind": "rate_limited", "method": "sendTransaction", "retryAfter": "1"},
        relay.limit,
    ),
    "hang": ({"kind": "hang", "method": "sendTransaction"}, relay.stay_silent),
    "garbage": ({"kind": "html", "method": "sendTransaction"}, relay.talk_nonsense),
}


@dataclass
class EmbeddedGround:
    """`pilot localnet` with two nodes."""

    urls: tuple[str, ...]
    rpc: Rpc
    others: Rpc

    @property
    def environ(self) -> dict[str, str]:
        return environ_of(self.urls)

    async def give(self, wallet: Pubkey, amount: int) -> None:
        await self.rpc.pilot("faucet", address=str(wallet), amount=amount)

    async def give_sol(self, wallet: Pubkey) -> None:
        """It gets some by itself."""

    async def strike(self, fault: str, count: int = 1) -> None:
        for node in (self.rpc, self.others):
            await node.pilot("fault", **FAULTS[fault][0], count=count)

    async def heal(self) -> None:
        for node in (self.rpc, self.others):
            await node.pilot("clear")
            await node.pilot("lag", slots=0)

    async def age(self) -> None:
        await self.rpc.pilot("tick", slots=FOR_GOOD)


def environ_of(urls: tuple[str, ...]) -> dict[str, str]:
    return {
        "PILOT_SOLANA_RPC_URLS": ",".join(urls),
        "PILOT_SOLANA_CLUSTER": "embedded",
        "PILOT_SOLANA_POLL_MILLISECONDS": "20",
        "PILOT_SOLANA_RPC_REQUESTS_PER_SECOND": "100000",
        "PILOT_WEBHOOKS_ENABLED": "false",
        # What it warns of is what these tests do to it.
        "PILOT_LOG_LEVEL": "error",
    }


@dataclass
class SurfpoolGround:
    """Surfpool, behind a node that goes wrong."""

    net: Surfpool
    relay: Relay
    rpc: Rpc

    @property
    def environ(self) -> dict[str, str]:
        return environ_of((self.relay.url,)) | {
            "PILOT_SOLANA_CLUSTER": "localnet",
            "PILOT_SOLANA_USDC_MINT": MAINNET_USDC_MINT,
        }

    async def give(self, wallet: Pubkey, amount: int) -> None:
        await self.net.finalized(await self.net.faucet(wallet, amount))

    async def give_sol(self, wallet: Pubkey) -> None:
        await self.net.finalized(await self.net.airdrop(wallet, 10**9))

    async def strike(self, fault: str, count: int = 1) -> None:
        times = None if count == FOR_EVER else count
        self.relay.meddle = relay.sometimes(FAULTS[fault][1], times)

    async def heal(self) -> None:
        self.relay.meddle = None

    async def age(self) -> None:
        height: int = await self.rpc("getBlockHeight")
        await self.net.expired(height + FOR_GOOD)


@contextmanager
def localnet_process(home: Path) -> Iterator[tuple[str, ...]]:
    """Run `pilot localnet` with two nodes, and give their URLs."""
    command = [sys.executable, "-m", "pilot_grpc", "localnet", "--port", "0", "--endpoints", "2"]
    options = ["--slot-ms", str(SLOT_MS), "--data-dir", str(home)]
    with subprocess.Popen(command + options, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        urls: list[str] = []
        for line in process.stdout:
            if "answers at " in line:
                urls.append(line.partition("answers at ")[2].split(",")[0].strip())
            if len(urls) == 2:
                break
        try:
            yield tuple(urls)
        finally:
            process.terminate()


# -- The servers


@dataclass
class Stage:
    """Two servers on a chain, and a look into their database."""

    ground: Ground
    pair: tuple[Process, ...]
    order: Path
    database: Database
    channels: tuple[grpc.aio.Channel, ...]

    async def call(self, credential: str, message: Message) -> Any:
        """Call whichever server answers."""
        while True:
            for channel in self.channels:
                try:
                    return await Client(channel, credential)(message, CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    if read(error).code not in REPEATED:
                        raise
            await asyncio.sleep(LOOK_SECONDS)

    async def party(self) -> Party:
        """Make a user with a vault that was paid in, an agent, and whom it may pay."""
        user_id, secret = UserId(fresh("cuser")), new_secret(CredentialKind.SESSION)
        async with self.database.transaction() as conn:
            email = f"{user_id}@example.com"
            await accounts_db.insert_user(conn, user_id, email, "no hash", "User", None)
            session = SessionId(fresh("csession")), hash_secret(secret), user_id
            await accounts_db.insert_session(conn, *session, timedelta(days=1))
        made = (await self.call(secret, projects_pb2.CreateProjectRequest(name="P"))).project
        owner = Client(self.channels[0], secret)
        agent_id = await new_agent(owner, made.id)
        key = (await with_key(owner, agent_id)).credential
        assert key is not None
        address = await self.call(
            secret, vaults_pb2.GetDepositAddressRequest(vault_id=made.vault_id)
        )
        party = Party(self, secret, key, agent_id, made.vault_id, address.address)
        await party.allow(party.payee.pubkey())
        await self.ground.give(party.payee.pubkey(), OPENING)
        await self.ground.give(Pubkey.from_string(party.address), FUNDS)
        while (await party.vault()).chain_balance < FUNDS:  # noqa: ASYNC110 - the chain's to do
            await asyncio.sleep(LOOK_SECONDS)
        return party

    async def struck(self) -> Process:
        """Wait until one of the servers has come to the moment, and died of it."""
        while True:
            for process in self.pair:
                assert process.running is not None
                if process.running.poll() is not None:
                    return process
            await asyncio.sleep(LOOK_SECONDS)

    async def holdings(self, wallet: Pubkey) -> int:
        return await self.ground.rpc.units(ata(wallet))

    async def signed(self, event_id: str) -> list[str]:
        """All that was ever signed for an event, in order."""
        async with self.database.transaction() as conn:
            return [row["signature"] for row in await conn.fetch(SIGNATURES, event_id)]

    async def is_shown(self, event_id: str) -> bool:
        """Whether a payment was seen on chain. A server that is frozen could not say so."""
        async with self.database.transaction() as conn:
            tx_hash = await conn.fetchval("SELECT tx_hash FROM events WHERE id = $1", event_id)
        return tx_hash is not None

    async def sign(self, event_id: str, attempt: int) -> str:
        """Wait until something is, the n-th time."""
        while len(signed := await self.signed(event_id)) < attempt:  # noqa: ASYNC110 - theirs to do
            await asyncio.sleep(LOOK_SECONDS)
        return signed[attempt - 1]

    async def ready(self) -> None:
        """Wait until both servers serve."""
        for process in self.pair:
            async with grpc.aio.insecure_channel(process.address, options=CHANNEL_OPTIONS) as each:
                await each.channel_ready()


@dataclass
class Party:
    """Who pays whom."""

    stage: Stage
    owner: str = field(repr=False)
    agent: str = field(repr=False)
    agent_id: str
    vault_id: str
    address: str
    payee: Keypair = field(default_factory=Keypair)

    async def allow(self, wallet: Pubkey) -> None:
        request = agents_pb2.AddRecipientRequest(agent_id=self.agent_id, address=str(wallet))
        await self.stage.call(self.owner, request)

    async def vault(self) -> vaults_pb2.Vault:
        request = vaults_pb2.GetVaultRequest(vault_id=self.vault_id)
        vault: vaults_pb2.Vault = (await self.stage.call(self.owner, request)).vault
        return vault

    async def transfer(self, amount: int = AMOUNT) -> pb.Event:
        """Have the agent pay, as often as it takes until there is an answer."""
        request = pb.SpendRequest(
            amount=amount, recipient=str(self.payee.pubkey()), request_id=fresh()
        )
        event: pb.Event = (await self.stage.call(self.agent, request)).event
        return event

    async def withdraw(self, amount: int = AMOUNT) -> pb.Event:
        """Have the owner take something out."""
        request = vaults_pb2.WithdrawRequest(
            vault_id=self.vault_id,
            amount=amount,
            recipient=str(self.payee.pubkey()),
            request_id=fresh(),
        )
        event: pb.Event = (await self.stage.call(self.owner, request)).event
        return event

    async def event(self, event_id: str) -> pb.Event:
        request = pb.GetEventRequest(event_id=event_id)
        event: pb.Event = (await self.stage.call(self.owner, request)).event
        return event

    async def decided(self, event_id: str) -> pb.Event:
        event = await self.event(event_id)
        while event.status == pb.EVENT_STATUS_PENDING:
            await asyncio.sleep(LOOK_SECONDS)
            event = await self.event(event_id)
        return event

    async def is_right(self, paid: int) -> None:
        """Compare payer and payee on chain, both figures, the ledger and the reconciliation."""
        request = vaults_pb2.ReconcileVaultRequest(vault_id=self.vault_id)
        found = await self.stage.call(self.owner, request)
        vault, left = await self.vault(), FUNDS - paid
        assert await self.stage.holdings(self.payee.pubkey()) == OPENING + paid
        assert await self.stage.holdings(Pubkey.from_string(self.address)) == left
        assert (vault.balance, vault.chain_balance) == (left, left)
        assert (found.found_amount, found.expected_amount, found.pending_amount) == (left, left, 0)
        assert not found.HasField("drift")
        token = ""
        while True:
            verify = pb.VerifyLedgerRequest(vault_id=self.vault_id, page_token=token)
            page = await self.stage.call(self.owner, verify)
            assert not page.HasField("discrepancy")
            token = page.next_page_token
            if not token:
                return

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[list[pb.Change]]:
        """Follow the vault from its first change, on one server after the other."""
        changes: list[pb.Change] = []
        request = pb.SubscribeEventsRequest(vault_id=self.vault_id, start=pb.STREAM_START_EARLIEST)

        async def read_on() -> None:
            async for response in follow(self.stage.channels[0], self.owner, request):
                changes.extend(response.changes)

        task = asyncio.create_task(read_on())
        try:
            yield changes
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def connections(
    ground: Ground, pair: tuple[Process, ...], order: Path, url: str, server: Server
) -> AsyncIterator[Stage]:
    """Connect to two servers; the first channel finds the other one, too, when one is away."""
    database = await open_database(url, pooler=server.pooler, size=3)
    addresses = [process.address for process in pair]
    channels = [
        grpc.aio.insecure_channel(f"ipv4:{','.join(order_)}", options=CHANNEL_OPTIONS)
        for order_ in (addresses, addresses[::-1])
    ]
    try:
        stage = Stage(ground, pair, order, database, tuple(channels))
        await stage.ready()
        yield stage
    finally:
        for channel in channels:
            await channel.close()
        await database.close()


@pytest.fixture(scope="module")
def own_database(server: Server, template: str) -> Iterator[str]:
    """A database for this module: its servers settle whatever they find in one."""
    with asyncio.Runner() as runner:
        creation = server.new_database(template)
        yield with_database(server.url, runner.run(creation.__aenter__()))
        runner.run(creation.__aexit__(None, None, None))


@dataclass(frozen=True)
class Place:
    """The embedded chain and its servers."""

    urls: tuple[str, ...]
    pair: tuple[Process, ...]
    order: Path
    database: str


@pytest.fixture(scope="module")
def embedded(
    server: Server, own_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """An embedded chain and two servers on it, for all tests."""
    home = tmp_path_factory.mktemp("settlement")
    order = home / "order"
    program = ("-m", "tests.faulty_settlement", str(order))
    with (
        localnet_process(home / "localnet") as urls,
        processes(server, own_database, program, program, **environ_of(urls)) as pair,
    ):
        yield Place(urls, pair, order, own_database)


@pytest.fixture(params=either.EITHER)
def place(request: pytest.FixtureRequest) -> Place | None:
    """Where a test takes place; None stands for a Surfpool of its own."""
    if request.param == either.SURFPOOL:
        return None
    place: Place = request.getfixturevalue("embedded")
    return place


@asynccontextmanager
async def on_embedded(place: Place, server: Server) -> AsyncIterator[Stage]:
    for process in place.pair:
        if process.running is not None and process.running.poll() is not None:
            process.start()
    async with connected(place.urls[0]) as rpc, connected(place.urls[1]) as others:
        ground = EmbeddedGround(place.urls, rpc, others)
        await ground.heal()
        async with connections(ground, place.pair, place.order, place.database, server) as stage:
            yield stage


@pytest.fixture
async def embedded_stage(embedded: Place, server: Server) -> AsyncIterator[Stage]:
    """Two servers on the embedded chain, for what only that can do."""
    async with on_embedded(embedded, server) as stage:
        yield stage


@pytest.fixture
async def stage(
    place: Place | None, server: Server, template: str, tmp_path: Path
) -> AsyncIterator[Stage]:
    """Two servers on the embedded chain and, with `make test-all`, on Surfpool."""
    if place is not None:
        async with on_embedded(place, server) as stage:
            yield stage
        return
    order = tmp_path / "order"
    program = ("-m", "tests.faulty_settlement", str(order))
    async with (
        surfpool_net.running() as net,
        relaying(net.url) as between,
        connected(net.url, 60) as rpc,
        server.new_database(template) as name,
    ):
        surfpool = SurfpoolGround(net, between, rpc)
        url = with_database(server.url, name)
        with processes(server, url, program, program, **surfpool.environ) as pair:
            async with connections(surfpool, pair, order, url, server) as stage:
                async with stage.database.transaction() as conn:
                    payer = await conn.fetchval(
                        "SELECT address FROM vault_keys WHERE vault_id = 'fee-payer'"
                    )
                await surfpool.give_sol(Pubkey.from_string(payer))
                yield stage


# -- The matrix


Pay = Callable[..., Awaitable[pb.Event]]
BOTH: Final[tuple[Pay, Pay]] = (Party.transfer, Party.withdraw)


@pytest.mark.parametrize("fault", first_of([fault for fault in FAULTS if fault != "hold"], 2))
async def test_what_a_sending_meets_does_not_matter(stage: Stage, fault: str) -> None:
    """At every node, for a transfer and a withdrawal: paid once, by what was signed."""
    party = await stage.party()
    await stage.ground.strike(fault, 2)

    events = await asyncio.gather(*(pay(party) for pay in BOTH))
    decided = [await party.decided(event.id) for event in events]

    for event in decided:
        assert event.status == pb.EVENT_STATUS_CONFIRMED
        assert event.tx_hash in await stage.signed(event.id)
    await party.is_right(paid=2 * AMOUNT)


async def test_what_is_held_past_its_expiry_is_paid_once(stage: Stage) -> None:
    """It can land no more when something else is signed."""
    party = await stage.party()
    await stage.ground.strike("hold", FOR_EVER)
    events = await asyncio.gather(*(pay(party) for pay in BOTH))
    first = [await stage.sign(event.id, 1) for event in events]

    await stage.ground.age()
    for event in events:
        await stage.sign(event.id, 2)
    await stage.ground.heal()
    decided = [await party.decided(event.id) for event in events]

    for event, signature in zip(decided, first, strict=True):
        signed = await stage.signed(event.id)
        assert signed[0] == signature
        assert event.status == pb.EVENT_STATUS_CONFIRMED
        assert event.tx_hash in signed[1:]
    await party.is_right(paid=2 * AMOUNT)


@pytest.mark.parametrize("moment", first_of(faulty.MOMENTS, 3))
async def test_a_server_that_dies_leaves_it_to_the_other(stage: Stage, moment: str) -> None:
    """Whatever it has done by then, it is paid once, by what was signed first."""
    party = await stage.party()

    for pay in BOTH:
        stage.order.write_text(moment)
        event = await pay(party)
        (await stage.struck()).start()
        decided = await party.decided(event.id)
        await stage.ready()

        assert decided.status == pb.EVENT_STATUS_CONFIRMED
        assert await stage.signed(event.id) == [decided.tx_hash]
    await party.is_right(paid=2 * AMOUNT)


@pytest.mark.parametrize("moment", first_of([faulty.SIGNED, faulty.STORED, faulty.RECORDING]))
async def test_a_server_that_freezes_wakes_up_too_late(stage: Stage, moment: str) -> None:
    """The other one has sent it by then; what it still wants to do changes nothing.

    It wakes up so early that what it has signed could still land.
    """
    party = await stage.party()

    for pay in BOTH:
        stage.order.write_text(faulty.FREEZE + moment)
        event = await pay(party)
        while stage.order.exists() or not await stage.is_shown(event.id):  # noqa: ASYNC110 - theirs
            await asyncio.sleep(LOOK_SECONDS)
        for process in stage.pair:
            process.signal(signal.SIGCONT)
        decided = await party.decided(event.id)

        assert decided.status == pb.EVENT_STATUS_CONFIRMED
        assert await stage.signed(event.id) == [decided.tx_hash]
    # Until this one is decided, both have had the time to do what they wanted.
    await party.decided((await party.transfer()).id)
    await party.is_right(paid=3 * AMOUNT)


async def test_a_server_that_dies_while_it_gives_up_leaves_it_to_the_other(stage: Stage) -> None:
    """Once while it lets another one be signed, and once while it gives the money back."""
    party = await stage.party()
    await stage.ground.strike("drop", FOR_EVER)
    event = await party.transfer()
    await stage.sign(event.id, 1)

    stage.order.write_text(faulty.ANEW)
    await stage.ground.age()
    (await stage.struck()).start()
    await stage.sign(event.id, 2)
    await stage.ready()
    stage.order.write_text(faulty.FAILING)
    await stage.ground.age()
    await stage.sign(event.id, 3)
    await stage.ground.age()
    (await stage.struck()).start()
    decided = await party.decided(event.id)
    await stage.ground.heal()

    assert decided.status == pb.EVENT_STATUS_FAILED
    assert decided.failure_reason == pb.FAILURE_REASON_TRANSFER_EXPIRED
    await stage.ready()
    await party.is_right(paid=0)


async def test_what_a_fork_takes_away_lands_again(embedded_stage: Stage) -> None:
    """As often as it takes until one is caught between its sighting and its end."""
    stage, rpc = embedded_stage, embedded_stage.ground.rpc
    party = await stage.party()
    for pay in BOTH:
        vanished: list[str] = []
        while not vanished:
            found = event = await pay(party)
            while not found.tx_hash:
                await asyncio.sleep(LOOK_SECONDS)
                found = await party.event(event.id)
            vanished = await rpc.pilot("fork", signatures=[found.tx_hash])
            decided = await party.decided(event.id)
            assert decided.status == pb.EVENT_STATUS_CONFIRMED
            assert await stage.signed(event.id) == [decided.tx_hash]
    await party.is_right(paid=FUNDS - (await party.vault()).chain_balance)


@pytest.mark.parametrize("which", [0, 1])
async def test_a_node_that_is_behind_only_makes_it_wait(embedded_stage: Stage, which: int) -> None:
    stage, ground = embedded_stage, embedded_stage.ground
    assert isinstance(ground, EmbeddedGround)
    party = await stage.party()
    await (ground.rpc, ground.others)[which].pilot("lag", slots=60)

    events = await asyncio.gather(*(pay(party) for pay in BOTH))
    decided = [await party.decided(event.id) for event in events]
    await ground.heal()

    for event in decided:
        assert event.status == pb.EVENT_STATUS_CONFIRMED
        assert await stage.signed(event.id) == [event.tx_hash]
    await party.is_right(paid=2 * AMOUNT)


# -- All at once


PAYMENTS: Final = 60
PAYMENTS_EACH_SECONDS: Final = 0.15
KILLS_EACH_SECONDS: Final = 1.2


async def haunt(stage: Stage, chance: random.Random) -> None:
    """Kill a server every now and then, start it again, and let nodes go wrong all the time."""
    ground = stage.ground
    assert isinstance(ground, EmbeddedGround)
    while True:
        for _ in range(4):
            await asyncio.sleep(KILLS_EACH_SECONDS / 4)
            kind = chance.choice([*FAULTS, "fork", "lag"])
            node = chance.choice([ground.rpc, ground.others])
            if kind == "fork":
                await ground.rpc.pilot("fork")
            elif kind == "lag":
                await node.pilot("lag", slots=chance.choice([0, 20, 60]))
            else:
                await node.pilot("fault", **FAULTS[kind][0], count=chance.randint(1, 4))
        process = chance.choice(stage.pair)
        process.kill()
        process.start()


@pytest.mark.full
@pytest.mark.parametrize("seed", [1])
async def test_servers_that_are_killed_all_the_time_pay_everything_once(
    embedded_stage: Stage, seed: int
) -> None:
    """Sixty payments over servers that die and nodes that fail: the sums agree to the unit."""
    stage, chance = embedded_stage, random.Random(seed)  # noqa: S311 - it is chance, no secret
    party = await stage.party()
    async with party.followed() as changes:
        haunting = asyncio.create_task(haunt(stage, chance))
        asking: list[asyncio.Future[pb.Event]] = []
        for number in range(PAYMENTS):
            pay = BOTH[number % len(BOTH)]
            asking.append(asyncio.ensure_future(pay(party, 10_000 + number)))
            await asyncio.sleep(PAYMENTS_EACH_SECONDS)
        events = await asyncio.gather(*asking)
        haunting.cancel()
        await asyncio.gather(haunting, return_exceptions=True)
        await stage.ground.heal()
        for process in stage.pair:
            if process.running is None or process.running.poll() is not None:
                process.start()
        decided = [await party.decided(event.id) for event in events]
        await stage.ready()

        confirmed = [event for event in decided if event.status == pb.EVENT_STATUS_CONFIRMED]
        for event in confirmed:
            assert event.tx_hash in await stage.signed(event.id)
        assert len({event.id for event in decided}) == PAYMENTS
        assert {event.status for event in decided} <= {
            pb.EVENT_STATUS_CONFIRMED,
            pb.EVENT_STATUS_FAILED,
        }
        await party.is_right(paid=-sum(event.amount for event in confirmed))
        revision = (await party.vault()).revision
        while not changes or changes[-1].revision < revision:  # noqa: ASYNC110 - the stream's to do
            await asyncio.sleep(LOOK_SECONDS)
    assert [change.revision for change in changes] == [*range(1, revision + 1)]
    ends = Counter(
        change.event.id
        for change in changes
        if change.event.id and change.event.status != pb.EVENT_STATUS_PENDING
    )
    assert all(ends[event.id] == 1 for event in events)
