"""Builds every object, once, by plain constructor calls."""

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

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
from pilot_grpc.services.credentials import WRITE_USES_SECONDS, Credentials
from pilot_grpc.services.declines import Declines
from pilot_grpc.services.deliveries import Deliveries
from pilot_grpc.services.expiry import CLEAN_SECONDS, SWEEP_SECONDS, Expiry, every
from pilot_grpc.services.feeds import Feeds
from pilot_grpc.services.ids import IdSource
from pilot_grpc.services.lanes import CONNECTIONS_PER_LANE, Lanes
from pilot_grpc.services.ledger import Ledger
from pilot_grpc.services.outbound import Outbound
from pilot_grpc.services.projects import Projects
from pilot_grpc.services.recount import Auditor
from pilot_grpc.services.stream import CONNECTIONS as STREAM_CONNECTIONS
from pilot_grpc.services.stream import Streams
from pilot_grpc.services.trimming import TRIM_SECONDS, Trimming
from pilot_grpc.services.turns import Turns
from pilot_grpc.services.vaults import Vaults
from pilot_grpc.services.webhooks import Sender, Webhooks, must_be_callable
from pilot_grpc.settings import Settings
from pilot_grpc.solana.custody import Custody

DOOR_CONNECTIONS: Final = 2
WATCH_CONNECTIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Databases:
    """The same database five times, so that nobody takes the connections of another.

    `money` is for the lanes alone, `door` for the credentials of those who come, `watch`
    for those of open streams and for health, `streams` for subscribers, `reads` for all
    else.
    """

    reads: Database
    money: Database
    door: Database
    watch: Database
    streams: Database


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


def build(settings: Settings, databases: Databases, clock: Clock = read_clock) -> App:
    """Build the services."""
    database = databases.reads
    new_id = IdSource()
    books = Books(clock, new_id, settings.open_holds_limit, settings.allow_credits)
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
        vaults=Vaults(database),
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
            f"{platform.node()}:{os.getpid()}:{new_id()}",
        ),
        budgets=Budgets(database, clock, homes, new_id),
        ledger=Ledger(database, lanes, homes, declines, turns, streams),
        auditor=Auditor(database, turns),
    )


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
    )
    app = build(settings, databases, clock)
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
        await app.lanes.close()
        if duties:
            with suppress(errors.DatabaseUnavailable, errors.Overloaded):
                await app.credentials.write_uses()
        pools = [getattr(databases, field.name) for field in fields(databases)]
        await asyncio.gather(*(pool.close() for pool in pools))


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
