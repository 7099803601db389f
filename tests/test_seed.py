"""The demo: what the README walks through, and a history that could have been."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from pilot_grpc import seed
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.accounts import Caller, CredentialKind
from pilot_grpc.services.recount import Place
from tests import make
from tests.conftest import Server

OWNER = Caller(CredentialKind.SESSION, seed.USER, "")


@pytest.fixture
async def demo(server: Server, database: str) -> AsyncIterator[App]:
    """What serves, on a database with the demo in it."""
    async with make.app(database, database_pooler=server.pooler) as app:
        await seed.seed(app.database, make.settings(database))
        yield app


async def test_the_history_agrees_with_itself_in_one_page_and_in_many(demo: App) -> None:
    """A page goes on with what comes next, so that a small vault is recounted by one call."""
    whole = await demo.auditor.verify(OWNER, seed.VAULT, Place(), 2_000)
    place: Place | None = Place()
    verified = 0
    while place is not None:
        page = await demo.auditor.verify(OWNER, seed.VAULT, place, 37)
        assert page.discrepancy is None
        assert page.verified <= 37
        place, verified = page.next_place, verified + page.verified

    assert (whole.discrepancy, whole.next_place) == (None, None)
    assert whole.verified == verified > 500


async def test_nobody_spends_before_they_were_made_or_after_today_began(
    demo: App, pool: asyncpg.Pool[Any]
) -> None:
    early = """
    SELECT count(*)
      FROM events
      JOIN vaults ON vaults.id = events.vault_id
      JOIN projects ON projects.id = vaults.project_id
      JOIN users ON users.id = projects.user_id
      LEFT JOIN agents ON agents.id = events.agent_id
     WHERE events.created_at
           < greatest(users.created_at, projects.created_at, vaults.created_at, agents.created_at)
        OR events.created_at >= date_trunc('day', clock_timestamp(), 'UTC')
    """
    assert await pool.fetchval(early) == 0


async def test_the_demo_has_an_agent_in_every_state(demo: App, pool: asyncpg.Pool[Any]) -> None:
    rows = await pool.fetch("SELECT DISTINCT status FROM agents")

    assert {row["status"] for row in rows} == {"active", "paused", "error", "needs_setup"}


async def test_seeding_again_changes_nothing(
    demo: App, database: str, pool: asyncpg.Pool[Any]
) -> None:
    before = await pool.fetchval("SELECT address FROM vaults")

    await seed.seed(demo.database, make.settings(database))

    assert await pool.fetchval("SELECT address FROM vaults") == before
