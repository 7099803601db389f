"""The demo: a user with a project, a funded vault, agents in several states, and history.

The history is made by the same book as every other, at times that are past, so that
VerifyLedger accepts it. The ids are fixed, so that the README can name them.
"""

import random
from datetime import UTC, datetime, timedelta
from typing import Final

from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db import agents as agents_db
from pilot_grpc.db import budgets as budgets_db
from pilot_grpc.db import projects as projects_db
from pilot_grpc.db import seed as seed_db
from pilot_grpc.db.clock import read_clock
from pilot_grpc.db.connection import Connection, Database
from pilot_grpc.domain.accounts import CredentialKind
from pilot_grpc.domain.agents import AgentStatus
from pilot_grpc.domain.budgets import BudgetRule
from pilot_grpc.domain.ids import AgentId, ProjectId, UserId, VaultId
from pilot_grpc.domain.ledger import (
    AuthorizeSpend,
    CaptureSpend,
    Command,
    Event,
    RecordFunding,
    Refund,
    ReleaseSpend,
    Spend,
)
from pilot_grpc.domain.requests import Request
from pilot_grpc.sealing import Sealer
from pilot_grpc.services.accounts import Passwords
from pilot_grpc.services.books import Books
from pilot_grpc.services.credentials import hash_secret, new_secret
from pilot_grpc.services.ids import IdSource
from pilot_grpc.services.projects import insert_sealed_vault
from pilot_grpc.settings import Settings
from pilot_grpc.solana.custody import Custody

EMAIL: Final = "demo@pilot.app"
PASSWORD: Final = "password123"  # noqa: S105 - known to everybody, and meant to be
USER: Final = UserId("cdemouser0000000000000000")
PROJECT: Final = ProjectId("cdemoproject0000000000000")
VAULT: Final = VaultId("cdemovault000000000000000")
RESEARCHER: Final = AgentId("cdemoresearcher0000000000")
SUPPORT: Final = AgentId("cdemosupport0000000000000")
NIGHTLY: Final = AgentId("cdemonightly0000000000000")
PAINTER: Final = AgentId("cdemopainter0000000000000")
NEWCOMER: Final = AgentId("cdemonewcomer000000000000")

USDC: Final = 1_000_000
CENT: Final = USDC // 100
DAYS: Final = 21
FUNDED_AGAIN_ON: Final = 10
REFUNDED_ON: Final = 12
SPLURGES: Final = 0.03
MODELS: Final = {
    RESEARCHER: ("Researcher", "openai", "gpt-4o", AgentStatus.ACTIVE, 5, 20, 300),
    SUPPORT: ("Support desk", "anthropic", "claude-sonnet-4", AgentStatus.ACTIVE, 2, 10, None),
    NIGHTLY: ("Nightly batch", "openai", "gpt-4o-mini", AgentStatus.PAUSED, 10, 40, 400),
    PAINTER: ("Painter", "stability", "sd3.5-large", AgentStatus.ERROR, 1, 5, 50),
}


async def seed(database: Database, settings: Settings) -> None:
    """Add the demo user and all that is theirs, in one transaction; once is enough."""
    if settings.wrapping_key is None:
        raise ValueError("a vault cannot be made without a wrapping key")
    custody = Custody(Sealer(settings.wrapping_key))
    password_hash = await Passwords().hash(PASSWORD)
    async with database.transaction() as conn:
        if await accounts_db.select_user_by_email(conn, EMAIL) is not None:
            return
        midnight = (await read_clock(conn)).astimezone(UTC).replace(hour=0, minute=0, second=0)
        start = midnight.replace(microsecond=0) - timedelta(days=DAYS)
        await accounts_db.insert_user(conn, USER, EMAIL, password_hash, "Demo", None)
        await projects_db.insert_project(
            conn, PROJECT, "Demo project", "What the README walks through.", USER
        )
        await insert_sealed_vault(conn, custody.create(VAULT), PROJECT)
        for agent_id in MODELS:
            await _add_agent(conn, agent_id, start)
        await seed_db.move_back(conn, PROJECT, start)
        await agents_db.insert_agent(conn, NEWCOMER, PROJECT, "Newcomer", None, None, None)
        await _History(conn, start, settings.open_holds_limit).write()


async def _add_agent(conn: Connection, agent_id: AgentId, start: datetime) -> None:
    name, provider, model, _, per_tx, daily, monthly = MODELS[agent_id]
    await agents_db.insert_agent(conn, agent_id, PROJECT, name, provider, model, None)
    # The secret is thrown away: whoever wants to be this agent issues a new key.
    key_hash = hash_secret(new_secret(CredentialKind.AGENT_KEY))
    await agents_db.update_agent_key(conn, agent_id, key_hash, AgentStatus.ACTIVE)
    rule = BudgetRule(
        agent_id=agent_id,
        per_tx_limit=per_tx * USDC,
        daily_limit=daily * USDC,
        monthly_limit=monthly and monthly * USDC,
        daily_spent=0,
        daily_held=0,
        monthly_spent=0,
        monthly_held=0,
        last_reset_at=start,
        created_at=start,
        updated_at=start,
    )
    await budgets_db.insert_rule(conn, f"cdemorule{agent_id[5:21]}", rule)


class _History:
    """Three weeks of an ordinary project, up to yesterday; the same on every machine."""

    def __init__(self, conn: Connection, start: datetime, open_holds_max: int) -> None:
        self._conn = conn
        self._moment = start
        self._start = start
        self._open_holds_max = open_holds_max
        self._chance = random.Random(2026)  # noqa: S311 - history, not secrets
        self._requests = 0

    async def write(self) -> None:
        await self._decide(self._fund(250 * USDC))
        for day in range(DAYS):
            self._moment = self._start + timedelta(days=day, hours=7)
            if day == FUNDED_AGAIN_ON:
                await self._decide(self._fund(150 * USDC))
            for _ in range(12):
                self._moment += timedelta(minutes=self._chance.randrange(10, 60))
                agent_id = self._chance.choice([*MODELS])
                await self._decide(self._spend(agent_id))
            await self._hold(day)
        for agent_id, (_, _, _, status, *_) in MODELS.items():
            await agents_db.update_agent_status(self._conn, agent_id, status)

    async def _hold(self, day: int) -> None:
        request = self._request(SUPPORT)
        hold = await self._decide(AuthorizeSpend(request, VAULT, SUPPORT, USDC))
        self._moment += timedelta(minutes=2)
        if day % 5 == 0:
            await self._decide(ReleaseSpend(self._request(SUPPORT), VAULT, hold.id))
            return
        used = self._chance.randrange(10, 100) * CENT
        spend = await self._decide(CaptureSpend(self._request(SUPPORT), VAULT, hold.id, used))
        if day == REFUNDED_ON:
            await self._decide(
                Refund(self._request(VAULT), VAULT, spend.id, used // CENT // 2 * CENT)
            )

    def _spend(self, agent_id: AgentId) -> Spend:
        tokens = self._chance.randrange(500, 60_000)
        # Full cents, so that the figures of the demo can be read.
        amount = max(tokens * self._chance.choice([5, 15, 30]) // CENT, 1) * CENT
        if self._chance.random() < SPLURGES:
            amount += 12 * USDC
        metadata = f'{{"tokens": {tokens}, "purpose": "demo"}}'
        return Spend(self._request(agent_id), VAULT, agent_id, amount, metadata=metadata)

    def _fund(self, amount: int) -> RecordFunding:
        return RecordFunding(self._request(VAULT), VAULT, amount)

    def _request(self, scope: str) -> Request:
        self._requests += 1
        return Request(scope, f"demo-{self._requests}", "Seed", "")

    async def _decide(self, command: Command) -> Event:
        """Decide at the moment that history has come to."""
        moment = self._moment

        async def then(_: Connection) -> datetime:
            return moment

        milliseconds = int(moment.timestamp() * 1000) + self._requests
        books = Books(then, IdSource(lambda: milliseconds), self._open_holds_max)
        book = await books.open(self._conn, [VAULT], [command])
        event = book.answer(command)
        await books.write(self._conn, book)
        return event
