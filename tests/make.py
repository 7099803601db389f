"""Rows with sensible defaults, made through the services that make them in production."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from pilot_grpc.bootstrap import App, running
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db import seed as seed_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.clock import Clock, read_clock
from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.accounts import Caller, CredentialKind
from pilot_grpc.domain.ids import AgentId, ProjectId, UserId, VaultId
from pilot_grpc.domain.ledger import (
    HOLD_TTL_DEFAULT,
    ConfirmTransfer,
    Event,
    FailTransfer,
    FailureReason,
    RecordDeposit,
)
from pilot_grpc.domain.recount import Discrepancy
from pilot_grpc.domain.vaults import Drift, Outflow, Vault
from pilot_grpc.services.budgets import Limits
from pilot_grpc.services.ledger import Asked, SpendOrder
from pilot_grpc.services.recount import Place
from pilot_grpc.services.requests import Once
from pilot_grpc.settings import Settings, WrappingKey

USDC = 1_000_000
# Where nobody answers: for what must work without the chain, where there is one.
NOWHERE = ("http://127.0.0.1:9",)
# Wallets: somebody could have their keys, and nobody has.
WALLET = "4zvwRjXUKGfvwnParsHAS3HuSVzV5cA4McphgmoCtajS"
OTHER_WALLET = "AKnL4NNf3DGWZJS6cPknBuEGnVsV4A4m5tgebLHaRSZ9"
WRAPPING_KEY = WrappingKey(id="test", secret=bytes(range(32)))

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Spender:
    """An active agent with a rule, its key, and whose money it spends."""

    owner: Caller
    project_id: ProjectId
    vault_id: VaultId
    agent_id: AgentId
    key: str
    caller: Caller


class HandClock:
    """A clock that stands still until it is moved, forwards or back."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def move(self, **duration: float) -> None:
        """Move by hours=..., minutes=..., or whatever else makes a timedelta."""
        self.now += timedelta(**duration)

    async def __call__(self, _: Connection) -> datetime:
        return self.now


def settings(url: str, **changes: object) -> Settings:
    """Settings for a test's database."""
    base = Settings(
        database_url=url,
        database_direct_url=url,
        database_pooler="PILOT_TEST_DATABASE_DIRECT_URL" in os.environ,
        wrapping_key=WRAPPING_KEY,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def app(
    url: str, clock: Clock = read_clock, *, duties: bool = False, **changes: object
) -> AsyncIterator[App]:
    """Everything that serves, on a test's database, in this process."""
    async with running(settings(url, **changes), clock, duties=duties) as built:
        yield built


def request_id() -> str:
    """A request_id that nobody used before."""
    return f"test-{next(_numbers)}"


def asked(rpc: str = "Spend", request: str | None = None, content: str = "") -> Asked:
    """How a request is recognised; a new one unless its id is given."""
    return Asked(request or request_id(), rpc, content)


def order(
    spender: Spender | AgentId, amount: int, request: str | None = None, **fields: object
) -> SpendOrder:
    """A spend of an agent; its fingerprint is its amount."""
    agent_id = spender if isinstance(spender, str) else spender.agent_id
    return SpendOrder(asked("Spend", request, f"amount:{amount}"), agent_id, amount, **fields)  # type: ignore[arg-type]


async def owner(app: App) -> Caller:
    """A new user, as a session of theirs would call; the password is nobody's."""
    user_id = UserId(app.projects.new_id())
    async with app.database.transaction() as conn:
        email = f"{user_id}@example.com"
        await accounts_db.insert_user(conn, user_id, email, "no hash", "Owner", None)
    return Caller(CredentialKind.SESSION, user_id, "")


def once(user: Caller, rpc: str = "Create") -> Once:
    """A Create request without a request_id."""
    return Once(user.user_id, "", rpc, "")


async def project(app: App, user: Caller | None = None) -> tuple[Caller, ProjectId, VaultId]:
    """A project with an empty vault, as old as a clock that is moved by hand."""
    user = user or await owner(app)
    made = await app.projects.create(once(user), "Project", None)
    if isinstance(app.budgets.clock, HandClock):
        async with app.database.transaction() as conn:
            await seed_db.move_back(conn, made.id, app.budgets.clock.now)
    return user, made.id, made.vault_id


async def agent(
    app: App,
    *,
    per_tx_limit: int = 10**12,
    daily_limit: int = 10**12,
    monthly_limit: int | None = None,
    vault_balance: int = 10**12,
    beside: Spender | None = None,
) -> Spender:
    """An active agent with a rule; in a funded project of its own, or beside another agent."""
    if beside is None:
        user, project_id, vault_id = await project(app)
        if vault_balance:
            await fund(app, user, vault_id, vault_balance)
    else:
        user, project_id, vault_id = beside.owner, beside.project_id, beside.vault_id
    made = await app.agents.create(once(user), project_id, "Agent", None, None, None)
    await app.budgets.set(user, made.id, Limits(per_tx_limit, daily_limit, monthly_limit))
    _, key = await app.agents.issue_key(user, made.id)
    caller = Caller(
        CredentialKind.AGENT_KEY,
        user.user_id,
        made.id,
        agent_id=made.id,
        project_id=project_id,
        vault_id=vault_id,
    )
    return Spender(user, project_id, vault_id, made.id, key, caller)


async def fund(
    app: App,
    user: Caller,
    vault_id: VaultId,
    amount: int,
    *,
    pending: bool = False,
    tx_hash: str | None = None,
    request: str | None = None,
) -> Event:
    """A credit, confirmed unless it is to be pending."""
    return await app.ledger.record_funding(
        user,
        asked("RecordFunding", request, f"amount:{amount}"),
        vault_id,
        amount,
        pending=pending,
        tx_hash=tx_hash,
        metadata=None,
    )


async def spend(
    app: App, spender: Spender, amount: int, request: str | None = None, **fields: object
) -> Event:
    """A spend that the agent itself asks for."""
    return await app.ledger.spend(spender.caller, order(spender, amount, request, **fields))


async def hold(
    app: App,
    spender: Spender,
    amount: int,
    request: str | None = None,
    *,
    ttl: timedelta = HOLD_TTL_DEFAULT,
) -> Event:
    """A hold that the agent itself asks for."""
    wanted = replace(
        order(spender, amount), asked=asked("AuthorizeSpend", request, f"amount:{amount}"), ttl=ttl
    )
    return await app.ledger.authorize(spender.caller, wanted)


async def capture(
    app: App, spender: Spender, held: Event, amount: int, request: str | None = None
) -> Event:
    """A capture by the agent itself."""
    wanted = asked("CaptureSpend", request, f"amount:{amount} event_id:{held.id}")
    return await app.ledger.capture(spender.caller, wanted, held.id, amount)


async def release(app: App, spender: Spender, held: Event, request: str | None = None) -> Event:
    """A release by the agent itself."""
    wanted = asked("ReleaseSpend", request, f"event_id:{held.id}")
    return await app.ledger.release(spender.caller, wanted, held.id)


async def refund(
    app: App, spender: Spender, spent: Event, amount: int, request: str | None = None
) -> Event:
    """A refund by the owner."""
    wanted = asked("Refund", request, f"amount:{amount} event_id:{spent.id}")
    return await app.ledger.refund(spender.owner, wanted, spent.id, amount, None)


async def confirm_funding(
    app: App, spender: Spender, credit: Event, request: str | None = None
) -> Event:
    """The confirmation of a pending credit."""
    wanted = asked("ConfirmFunding", request, f"event_id:{credit.id}")
    return await app.ledger.confirm_funding(spender.owner, wanted, credit.id)


async def fail_funding(
    app: App, spender: Spender, credit: Event, request: str | None = None
) -> Event:
    """The end of a pending credit that did not arrive."""
    wanted = asked("FailFunding", request, f"event_id:{credit.id}")
    return await app.ledger.fail_funding(spender.owner, wanted, credit.id)


async def deposit(
    app: App, vault_id: VaultId, amount: int, tx_hash: str, *, landed: int | None = 1
) -> Event:
    """A deposit as the chain shows it: final at a slot, or only seen."""
    return await app.lanes.decide(RecordDeposit(vault_id, amount, tx_hash, landed))


async def allow(app: App, spender: Spender, recipient: str = WALLET) -> None:
    """Put a wallet on the agent's list."""
    await app.agents.add_recipient(spender.owner, spender.agent_id, recipient, None)


async def land(app: App, paid: Event, tx_hash: str, *, slot: int = 2) -> Event:
    """The end of a payment that the chain has made."""
    return await app.lanes.decide(ConfirmTransfer(paid.vault_id, paid.id, tx_hash, slot))


async def lose(
    app: App,
    paid: Event,
    signature: str | None = None,
    reason: FailureReason = FailureReason.TRANSFER_EXPIRED,
) -> Event:
    """The end of a payment that is never made."""
    return await app.lanes.decide(FailTransfer(paid.vault_id, paid.id, reason, signature))


async def stop(app: App, vault_id: VaultId, amount: int, drift_id: str = "cdrift") -> Drift:
    """A drift, as a reconciliation finds it; of nothing, the end of one."""
    books = app.agents.books
    async with app.database.transaction() as conn:
        book = await books.open(conn, [vault_id])
        (vault,) = book.vaults.values()
        drift = Drift(
            id=drift_id,
            amount=amount,
            slot=9,
            found_amount=vault.chain_balance + amount,
            expected_amount=vault.chain_balance,
            outflows=(Outflow("theft", -amount, 8),) if amount < 0 else (),
            created_at=book.now(vault),
        )
        book.stop(drift)
        await books.write(conn, book)
    return drift


async def acknowledge(
    app: App, spender: Spender, drift: Drift, request: str | None = None
) -> Event:
    """The end of a drift by the owner."""
    wanted = asked("AcknowledgeDrift", request, f"amount:{drift.amount} drift_id:{drift.id}")
    return await app.vaults.acknowledge_drift(
        spender.owner, wanted, spender.vault_id, drift.id, drift.amount
    )


async def verify(app: App, spender: Spender, page: int = 1_000) -> Discrepancy | None:
    """Recount a vault to the end, or to the first row that disagrees."""
    place: Place | None = Place()
    while place is not None:
        found = await app.auditor.verify(spender.owner, spender.vault_id, place, page)
        if found.discrepancy is not None:
            return found.discrepancy
        place = found.next_place
    return None


async def vault(app: App, spender: Spender) -> Vault:
    """The vault as its owner sees it."""
    return await app.vaults.get(spender.owner, spender.vault_id)


async def balance(app: App, spender: Spender) -> int:
    """What may still be spent of the vault."""
    return (await vault(app, spender)).balance


async def until(condition: Callable[[], bool]) -> None:
    """Let everybody else run until something is so; nobody signals what a test looks into."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def queued(app: App, count: int) -> None:
    """Return once so many commands wait in the lanes."""
    await until(lambda: sum(lane._waiting for lane in app.lanes._lanes) >= count)


WAITING: Final = """
SELECT count(*)
  FROM pg_locks
 WHERE NOT granted
   AND pg_backend_pid() = ANY (pg_blocking_pids(pid))
"""


async def waited_for(conn: Connection, count: int = 1) -> None:
    """Return once so many wait for a lock that a connection holds."""
    while await conn.fetchval(WAITING) < count:
        pass


@dataclass(frozen=True)
class VaultLock:
    """A vault's lock, held as another process would hold it."""

    conn: Connection

    async def is_waited_for(self, count: int = 1) -> None:
        """Return once so many wait for this lock."""
        await waited_for(self.conn, count)


@asynccontextmanager
async def locked_vault(app: App, vault_id: VaultId) -> AsyncIterator[VaultLock]:
    """Lock a vault for the length of the block."""
    async with app.database.transaction() as conn:
        await vaults_db.lock_vaults(conn, [vault_id])
        yield VaultLock(conn)
