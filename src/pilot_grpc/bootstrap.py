"""Builds every object, once, by plain constructor calls."""

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilot_grpc import errors
from pilot_grpc.db.clock import Clock, read_clock
from pilot_grpc.db.connection import Database, open_database
from pilot_grpc.rpc import wire
from pilot_grpc.rpc.accounts import AccountServicer
from pilot_grpc.rpc.agents import AgentServicer
from pilot_grpc.rpc.budgets import BudgetServicer
from pilot_grpc.rpc.calls import Calls
from pilot_grpc.rpc.ledger import LedgerServicer
from pilot_grpc.rpc.projects import ProjectServicer
from pilot_grpc.rpc.vaults import VaultServicer
from pilot_grpc.sealing import Sealer
from pilot_grpc.server import Server
from pilot_grpc.services.accounts import Accounts, Passwords
from pilot_grpc.services.agents import Agents, Homes
from pilot_grpc.services.books import Books
from pilot_grpc.services.budgets import Budgets
from pilot_grpc.services.chain import (
    FEE_PAYER_SECONDS,
    Chain,
    FeePayer,
    Signers,
    sealed_fee_payer,
)
from pilot_grpc.services.credentials import WRITE_USES_SECONDS, Credentials
from pilot_grpc.services.declines import Declines
from pilot_grpc.services.deliveries import Deliveries
from pilot_grpc.services.deposits import Deposits
from pilot_grpc.services.expiry import CLEAN_SECONDS, SWEEP_SECONDS, Expiry, every
from pilot_grpc.services.feeds import Feeds
from pilot_grpc.services.ids import IdSource
from pilot_grpc.services.lanes import CONNECTIONS_PER_LANE, Lanes
from pilot_grpc.services.ledger import Ledger
from pilot_grpc.services.outbound import Outbound
from pilot_grpc.services.projects import Projects
from pilot_grpc.services.reconciliation import ROUND_SECONDS, Reconciler
from pilot_grpc.services.recount import Auditor
from pilot_grpc.services.stream import CONNECTIONS as STREAM_CONNECTIONS
from pilot_grpc.services.stream import Streams
from pilot_grpc.services.trimming import TRIM_SECONDS, Trimming
from pilot_grpc.services.turns import Turns
from pilot_grpc.services.vaults import Vaults
from pilot_grpc.services.webhooks import Sender, Webhooks, must_be_callable
from pilot_grpc.settings import Settings, SettingsError, SolanaCluster
from pilot_grpc.solana import clusters
from pilot_grpc.solana.answers import Commitment
from pilot_grpc.solana.custody import Custody
from pilot_grpc.solana.endpoint import EndpointSettings
from pilot_grpc.solana.faults import ClusterMismatch
from pilot_grpc.solana.rpc import Rpc
from pilot_grpc.solana.signing import Signer

if TYPE_CHECKING:
    from pilot_grpc.services.transfers import Transfers

DOOR_CONNECTIONS: Final = 2
WATCH_CONNECTIONS: Final = 2
CHAIN_CONNECTIONS: Final = 4

# What a fee payer gets where SOL is worth nothing.
AIRDROP_LAMPORTS: Final = 10**9

_CLUSTERS: Final = {
    SolanaCluster.EMBEDDED: clusters.EMBEDDED,
    SolanaCluster.LOCALNET: clusters.LOCALNET,
    SolanaCluster.DEVNET: clusters.DEVNET,
    SolanaCluster.MAINNET: clusters.MAINNET_BETA,
}


@dataclass(frozen=True, slots=True)
class Databases:
    """The same database six times, so that nobody takes the connections of another.

    `money` is for the lanes alone, `door` for the credentials of those who come, `watch`
    for those of open streams and for health, `streams` for subscribers, `chain` for what
    works on Solana, `reads` for all else.
    """

    reads: Database
    money: Database
    door: Database
    watch: Database
    streams: Database
    chain: Database


@dataclass(frozen=True, slots=True)
class Settlement:
    """What works on the chain."""

    chain: Chain
    transfers: "Transfers"
    deposits: Deposits
    reconciler: Reconciler
    fee_payer: FeePayer


@dataclass(frozen=True, slots=True)
class App:
    """Everything that serves."""

    database: Database
    watch: Database
    lanes: Lanes
    feeds: Feeds
    streams: Streams
    credentials: Credentials
    expiry: Expiry
    trimming: Trimming
    accounts: Accounts
    projects: Projects
    vaults: Vaults
    agents: Agents
    webhooks: Webhooks
    outbound: Outbound
    deliveries: Deliveries
    budgets: Budgets
    ledger: Ledger
    auditor: Auditor
    settlement: Settlement | None


def build(
    settings: Settings,
    databases: Databases,
    clock: Clock = read_clock,
    *,
    rpc: Rpc | None = None,
    fee_payer: Signer | None = None,
) -> App:
    """Build the services; those that work on the chain when there is one, and who pays."""
    database = databases.reads
    new_id = IdSource()
    books = Books(
        clock,
        new_id,
        settings.open_holds_limit,
        settings.allow_credits,
        pays_on_chain=rpc is not None,
    )
    declines = Declines(settings.declines_per_minute)
    feeds = Feeds(databases.streams)
    lanes = Lanes(
        databases.money,
        books,
        declines,
        feeds.wake,
        count=settings.lanes,
        batch_max=settings.lane_batch_limit,
        queue_max=settings.lane_queue_limit,
    )
    homes = Homes(database)
    streams = Streams(
        databases.streams,
        feeds,
        homes,
        limit=settings.streams_limit,
        limit_per_user=settings.streams_per_user_limit,
    )
    turns = Turns()
    if settings.wrapping_key is None:
        raise ValueError("vaults cannot be made without a wrapping key")
    sealer = Sealer(settings.wrapping_key, settings.old_wrapping_keys)
    worker = f"{platform.node()}:{os.getpid()}:{new_id()}"
    settlement = None
    if rpc is not None and fee_payer is not None:
        signers = Signers(databases.chain, Custody(sealer), fee_payer)
        settlement = _settlement(settings, databases.chain, lanes, books, rpc, signers, worker)
    allow_private = settings.webhooks_allow_private
    outbound = Outbound(allow_private=allow_private)
    sender = Sender(outbound)
    return App(
        database=database,
        watch=databases.watch,
        lanes=lanes,
        feeds=feeds,
        streams=streams,
        credentials=Credentials(databases.door, databases.watch),
        expiry=Expiry(database, lanes),
        trimming=Trimming(database, clock, settings.changes_kept_age, settings.changes_kept_count),
        accounts=Accounts(
            database, Passwords(), new_id, settings.sign_up_enabled, settings.session_lifetime
        ),
        projects=Projects(database, Custody(sealer), lanes, new_id),
        vaults=Vaults(
            database,
            lanes,
            turns,
            None if settlement is None else settlement.chain,
            None if settlement is None else settlement.reconciler,
        ),
        agents=Agents(
            database, books, new_id, partial(must_be_callable, allow_private=allow_private)
        ),
        webhooks=Webhooks(database, sender, sealer, new_id),
        outbound=outbound,
        deliveries=Deliveries(
            database,
            streams,
            sender,
            sealer,
            wire.webhook_body,
            worker,
        ),
        budgets=Budgets(database, clock, homes, new_id, pays_on_chain=rpc is not None),
        ledger=Ledger(database, lanes, homes, declines, turns, streams),
        auditor=Auditor(database, turns),
        settlement=settlement,
    )


def _settlement(
    settings: Settings,
    database: Database,
    lanes: Lanes,
    books: Books,
    rpc: Rpc,
    signers: Signers,
    worker: str,
) -> Settlement:
    """Build what works on the chain."""
    # Only who works on a chain waits 0.3 s for solana-py's tokens.
    from pilot_grpc.services.transfers import Transfers  # noqa: PLC0415
    from pilot_grpc.solana.payments import FeePolicy  # noqa: PLC0415

    chain = Chain(
        rpc,
        settings.solana_cluster,
        settings.solana_usdc_mint or _CLUSTERS[settings.solana_cluster].usdc_mint or "",
        Commitment(settings.solana_commitment),
    )
    poll = settings.solana_poll
    deposits = Deposits(database, lanes, chain, poll=poll)
    is_development = settings.solana_cluster is SolanaCluster.EMBEDDED
    transfers = Transfers(
        database,
        lanes,
        chain,
        signers,
        worker=worker,
        policy=FeePolicy(price_max=settings.priority_fee_max),
        accounts_per_day=settings.recipient_accounts_per_day,
        poll=poll,
    )
    lanes.on_their_way = transfers.wake
    return Settlement(
        chain=chain,
        transfers=transfers,
        deposits=deposits,
        reconciler=Reconciler(
            database, books, chain, deposits, new_id=books.new_id, interval=settings.reconcile
        ),
        fee_payer=FeePayer(
            chain,
            signers.fee_payer.address,
            settings.fee_payer_low_lamports,
            partial(rpc.airdrop, lamports=AIRDROP_LAMPORTS) if is_development else None,
        ),
    )


def rpc_of(settings: Settings) -> Rpc | None:
    """Return the port to the configured nodes; None where there are none."""
    if not settings.solana_rpc_urls:
        return None
    per_second = settings.solana_rpc_requests_per_second
    endpoints = [
        EndpointSettings(url=url, requests_per_second=per_second, burst=2 * per_second)
        for url in settings.solana_rpc_urls
    ]
    return Rpc(_CLUSTERS[settings.solana_cluster], endpoints)


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock = read_clock, *, duties: bool = True
) -> AsyncIterator[App]:
    """Build on the configured database, and do the background duties while the block runs."""
    url, pooler = settings.database_url or "", settings.database_pooler
    money_size = settings.lanes * CONNECTIONS_PER_LANE
    databases = Databases(
        reads=await open_database(url, pooler=pooler, size=settings.database_pool_size),
        money=await open_database(url, pooler=pooler, size=money_size),
        door=await open_database(url, pooler=pooler, size=DOOR_CONNECTIONS),
        watch=await open_database(url, pooler=pooler, size=WATCH_CONNECTIONS),
        streams=await open_database(url, pooler=pooler, size=STREAM_CONNECTIONS),
        chain=await open_database(url, pooler=pooler, size=CHAIN_CONNECTIONS),
    )
    rpc = await _started(rpc_of(settings))
    fee_payer = None if rpc is None else await fee_payer_of(settings, databases.chain)
    app = build(settings, databases, clock, rpc=rpc, fee_payer=fee_payer)
    app.lanes.start()
    tasks = [asyncio.create_task(app.feeds.run())]
    if duties:
        tasks += [
            asyncio.create_task(every(SWEEP_SECONDS, app.expiry.sweep)),
            asyncio.create_task(every(SWEEP_SECONDS, app.expiry.end_frozen)),
            asyncio.create_task(every(CLEAN_SECONDS, app.expiry.clean)),
            asyncio.create_task(every(WRITE_USES_SECONDS, app.credentials.write_uses)),
        ]
    if duties and app.trimming.is_wanted:
        tasks.append(asyncio.create_task(every(TRIM_SECONDS, app.trimming.trim)))
    if app.settlement is not None and duties and settings.settlement_enabled:
        tasks += await _start_settlement(app.settlement)
    delivers = duties and settings.webhooks_enabled
    if delivers:
        app.deliveries.start()
        tasks.append(asyncio.create_task(every(CLEAN_SECONDS, app.deliveries.clean)))
    try:
        yield app
    finally:
        if delivers:
            await app.deliveries.close()
        await app.outbound.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if app.settlement is not None:
            await _stop_settlement(app.settlement)
        await app.lanes.close()
        if duties:
            with suppress(errors.DatabaseUnavailable, errors.Overloaded):
                await app.credentials.write_uses()
        pools = [getattr(databases, field.name) for field in fields(databases)]
        await asyncio.gather(*(pool.close() for pool in pools))


async def _started(rpc: Rpc | None) -> Rpc | None:
    """Look at the first blocks of the nodes' chains. Nodes that are away are looked at later.

    Raises SettingsError when all of them belong to another cluster.
    """
    if rpc is not None:
        try:
            await rpc.start()
        except ClusterMismatch:
            await rpc.close()
            raise SettingsError(
                "PILOT_SOLANA_RPC_URLS: none of the nodes belongs to PILOT_SOLANA_CLUSTER"
            ) from None
    return rpc


async def _stop_settlement(settlement: Settlement) -> None:
    """Let others go on with what is under way."""
    await settlement.transfers.close()
    await settlement.deposits.close()
    await settlement.chain.rpc.close()


async def _start_settlement(settlement: Settlement) -> list[asyncio.Task[None]]:
    """Begin to work on the chain, which may be away."""
    deposits, fee_payer = settlement.deposits, settlement.fee_payer
    await deposits.begin()
    settlement.transfers.start()
    return [
        asyncio.create_task(every(deposits.watch_seconds, deposits.watch)),
        asyncio.create_task(every(CLEAN_SECONDS, deposits.begin)),
        asyncio.create_task(every(ROUND_SECONDS, settlement.reconciler.round)),
        asyncio.create_task(every(FEE_PAYER_SECONDS, fee_payer.check, first=0)),
    ]


async def fee_payer_of(settings: Settings, database: Database) -> Signer:
    """Return who pays the fees: a key of a backend, if one is configured, else a sealed one.

    Raises SettingsError for a backend that cannot be used.
    """
    if settings.fee_payer_keychain_file is not None:
        return await _keychain_signer(settings.fee_payer_keychain_file)
    if settings.wrapping_key is None:
        raise ValueError("a fee payer's key cannot be made without a wrapping key")
    sealer = Sealer(settings.wrapping_key, settings.old_wrapping_keys)
    return await sealed_fee_payer(database, Custody(sealer))


async def _keychain_signer(path: Path) -> Signer:
    try:
        from pilot_grpc.solana import keychain  # noqa: PLC0415 - an extra, which need not be installed
    except ImportError:
        raise SettingsError(
            "PILOT_FEE_PAYER_KEYCHAIN_FILE needs `pip install 'pilot-grpc[keychain]'`"
        ) from None
    try:
        return await keychain.signer_of_file(path)
    except keychain.BackendRefused as error:
        raise SettingsError(f"PILOT_FEE_PAYER_KEYCHAIN_FILE: {error}") from None


def build_server(settings: Settings, app: App) -> Server:
    """Put an app behind gRPC."""
    calls = Calls(
        app.credentials, settings.deadline.total_seconds(), settings.stream_age.total_seconds()
    )
    servicers = (
        AccountServicer(app.accounts),
        ProjectServicer(app.projects),
        VaultServicer(app.vaults),
        AgentServicer(app.agents, app.webhooks),
        BudgetServicer(app.budgets),
        LedgerServicer(app.ledger, app.auditor, app.streams),
    )
    return Server(settings, app.watch, calls, servicers)


async def serve(settings: Settings, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the address."""
    async with running(settings) as app:
        await build_server(settings, app).run(ready)
