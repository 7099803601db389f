"""Builds every object, once, by plain constructor calls."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pilot_grpc.db.clock import Clock, read_clock
from pilot_grpc.db.connection import Database, open_database
from pilot_grpc.rpc.accounts import AccountServicer
from pilot_grpc.rpc.agents import AgentServicer
from pilot_grpc.rpc.budgets import BudgetServicer
from pilot_grpc.rpc.calls import Calls
from pilot_grpc.rpc.ledger import LedgerServicer
from pilot_grpc.rpc.projects import ProjectServicer
from pilot_grpc.rpc.vaults import VaultServicer
from pilot_grpc.server import Server
from pilot_grpc.services.accounts import Accounts, Passwords
from pilot_grpc.services.agents import Agents, Homes
from pilot_grpc.services.books import Books
from pilot_grpc.services.budgets import Budgets
from pilot_grpc.services.credentials import WRITE_USES_SECONDS, Credentials
from pilot_grpc.services.declines import Declines
from pilot_grpc.services.expiry import CLEAN_SECONDS, SWEEP_SECONDS, Expiry, every
from pilot_grpc.services.ids import IdSource
from pilot_grpc.services.lanes import CONNECTIONS_PER_LANE, Lanes
from pilot_grpc.services.ledger import Ledger
from pilot_grpc.services.projects import Projects
from pilot_grpc.services.recount import Auditor
from pilot_grpc.services.vaults import Vaults
from pilot_grpc.settings import Settings
from pilot_grpc.solana.custody import Custody


@dataclass(frozen=True, slots=True)
class App:
    """Everything that serves."""

    database: Database
    lanes: Lanes
    credentials: Credentials
    expiry: Expiry
    accounts: Accounts
    projects: Projects
    vaults: Vaults
    agents: Agents
    budgets: Budgets
    ledger: Ledger
    auditor: Auditor


def build(
    settings: Settings, database: Database, money: Database, clock: Clock = read_clock
) -> App:
    """Build the services; `money` is the database of the lanes alone.

    So whatever else asks the database much does not take the connections of spends.
    """
    new_id = IdSource()
    books = Books(clock, new_id, settings.open_holds_limit)
    lanes = Lanes(
        money,
        books,
        count=settings.lanes,
        batch_max=settings.lane_batch_limit,
        queue_max=settings.lane_queue_limit,
    )
    homes = Homes(database)
    if settings.wrapping_key is None:
        raise ValueError("vaults cannot be made without a wrapping key")
    custody = Custody(settings.wrapping_key.id, settings.wrapping_key.secret)
    declines = Declines(settings.declines_per_minute)
    return App(
        database=database,
        lanes=lanes,
        credentials=Credentials(database),
        expiry=Expiry(database, lanes),
        accounts=Accounts(
            database, Passwords(), new_id, settings.sign_up_enabled, settings.session_lifetime
        ),
        projects=Projects(database, custody, lanes, new_id),
        vaults=Vaults(database),
        agents=Agents(database, books, new_id),
        budgets=Budgets(database, clock, homes, new_id),
        ledger=Ledger(database, lanes, homes, declines, settings.allow_credits),
        auditor=Auditor(database),
    )


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock = read_clock, *, duties: bool = True
) -> AsyncIterator[App]:
    """Build on the configured database, and do the background duties while the block runs."""
    url = settings.database_url or ""
    database = await open_database(
        url, pooler=settings.database_pooler, size=settings.database_pool_size
    )
    money = await open_database(
        url, pooler=settings.database_pooler, size=settings.lanes * CONNECTIONS_PER_LANE
    )
    app = build(settings, database, money, clock)
    app.lanes.start()
    tasks = []
    if duties:
        tasks = [
            asyncio.create_task(every(SWEEP_SECONDS, app.expiry.sweep)),
            asyncio.create_task(every(CLEAN_SECONDS, app.expiry.clean)),
            asyncio.create_task(every(WRITE_USES_SECONDS, app.credentials.write_uses)),
        ]
    try:
        yield app
    finally:
        for task in tasks:
            task.cancel()
        await app.lanes.close()
        if duties:
            await app.credentials.write_uses()
        await money.close()
        await database.close()


def build_server(settings: Settings, app: App) -> Server:
    """Put an app behind gRPC."""
    calls = Calls(app.credentials, settings.deadline.total_seconds())
    servicers = (
        AccountServicer(app.accounts),
        ProjectServicer(app.projects),
        VaultServicer(app.vaults),
        AgentServicer(app.agents),
        BudgetServicer(app.budgets),
        LedgerServicer(app.ledger, app.auditor),
    )
    return Server(settings, app.database, calls, servicers)


async def serve(settings: Settings, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the address."""
    async with running(settings) as app:
        await build_server(settings, app).run(ready)
