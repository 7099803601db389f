"""Trimming: what goes, what stays, and that nobody who spends or verifies notices."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg
import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.db import trimming as trimming_db
from pilot_grpc.db.clock import Clock, read_clock
from pilot_grpc.db.connection import Connection
from pilot_grpc.db.trimming import Kept
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.domain.ledger import EventStatus, FailureReason
from pilot_grpc.services import trimming
from pilot_grpc.services.recount import Place
from pilot_grpc.services.trimming import Trimming
from tests import make
from tests.conftest import Server
from tests.make import HandClock
from tests.services.conftest import StartApp

FIGURES: Final = """
SELECT revision, balance_after, chain_balance_after, held_after, digest, changed_at
  FROM event_changes
 WHERE vault_id = $1 AND revision = $2
"""
CHECKPOINT: Final = """
SELECT revision, balance, chain_balance, held, digest, changed_at
  FROM change_checkpoints
 WHERE vault_id = $1
"""


@pytest.fixture
async def start(server: Server, database: str) -> AsyncIterator[StartApp]:
    """Start the services on a database of this test's own: every vault there is gets trimmed."""
    async with AsyncExitStack() as stack:

        async def one(clock: Clock = read_clock, **changes: object) -> App:
            settings = {"database_pooler": server.pooler} | changes
            running = make.app(database, clock, duties=False, **settings)
            return await stack.enter_async_context(running)

        yield one


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2027, 6, 14, 12, tzinfo=UTC))


async def kept(app: App, agent: make.Spender) -> list[int]:
    rows = await app.database.pool.fetch(
        "SELECT revision FROM event_changes WHERE vault_id = $1 ORDER BY revision", agent.vault_id
    )
    return [row["revision"] for row in rows]


async def checkpoint(app: App, agent: make.Spender) -> tuple[object, ...] | None:
    row = await app.database.pool.fetchrow(CHECKPOINT, agent.vault_id)
    return row and tuple(row)


async def what_it_left(app: App, agent: make.Spender, revision: int) -> tuple[object, ...]:
    row = await app.database.pool.fetchrow(FIGURES, agent.vault_id, revision)
    assert row is not None
    return tuple(row)


async def edit(app: App, statement: str, *arguments: object) -> None:
    """Edit by hand, past the foreign keys."""
    async with app.database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        edited = await conn.execute(statement, *arguments)
    assert edited.split()[-1] != "0"


async def test_by_default_nothing_goes(start: StartApp, clock: HandClock) -> None:
    app = await start(clock)
    agent = await make.agent(app)
    await make.spend(app, agent, 10)
    clock.move(days=10_000)
    await make.spend(app, agent, 10)

    assert await app.trimming.trim() == 0

    assert not app.trimming.is_wanted
    assert await kept(app, agent) == [1, 2, 3]
    assert await checkpoint(app, agent) is None


async def test_the_newest_so_many_changes_of_each_vault_are_kept(start: StartApp) -> None:
    """One vault has more, one has as many, one has fewer, and one has none."""
    app = await start(changes_kept_count=3)
    more, same, fewer, none = [
        await make.agent(app, vault_balance=balance) for balance in (99, 99, 99, 0)
    ]
    for agent, spends in ((more, 6), (same, 2), (fewer, 1)):
        for _ in range(spends):
            await make.spend(app, agent, 1)

    assert await app.trimming.trim() == 4

    assert await kept(app, more) == [5, 6, 7]
    assert await kept(app, same) == [1, 2, 3]
    assert await kept(app, fewer) == [1, 2]
    assert await kept(app, none) == []


async def test_a_change_goes_once_it_is_older_than_the_age(
    start: StartApp, clock: HandClock
) -> None:
    """At the age itself it is still kept; a microsecond later it is not."""
    app = await start(clock, changes_kept_age=timedelta(days=30))
    agent = await make.agent(app)
    await make.spend(app, agent, 1)
    clock.move(days=1)
    await make.spend(app, agent, 1)
    clock.move(days=1)
    await make.spend(app, agent, 1)

    clock.move(days=28)
    assert await app.trimming.trim() == 0
    clock.move(microseconds=1)
    assert await app.trimming.trim() == 2
    assert await kept(app, agent) == [3, 4]

    clock.move(days=1)
    assert await app.trimming.trim() == 1
    assert await kept(app, agent) == [4]
    assert await make.verify(app, agent) is None


async def test_the_newest_change_stays_however_old_it_is(start: StartApp, clock: HandClock) -> None:
    app = await start(clock, changes_kept_age=timedelta(days=1))
    agent = await make.agent(app)
    await make.spend(app, agent, 1)
    clock.move(days=1_000)

    assert await app.trimming.trim() == 1
    assert await app.trimming.trim() == 0

    assert await kept(app, agent) == [2]
    assert await make.verify(app, agent) is None


@pytest.mark.parametrize(("count", "days", "left"), [(4, 30, [3, 4, 5, 6]), (5, 1, [4, 5, 6])])
async def test_a_change_goes_when_either_limit_says_so(
    start: StartApp, clock: HandClock, count: int, days: int, left: list[int]
) -> None:
    """Six changes, three of them two days old: the count says more goes, or the age does."""
    app = await start(clock, changes_kept_count=count, changes_kept_age=timedelta(days=days))
    agent = await make.agent(app)
    for _ in range(2):
        await make.spend(app, agent, 1)
    clock.move(days=2)
    for _ in range(3):
        await make.spend(app, agent, 1)

    await app.trimming.trim()

    assert await kept(app, agent) == left


async def test_the_age_is_told_by_the_databases_clock(start: StartApp) -> None:
    """What was changed a moment ago is not a day old, and is older than nothing at all."""
    app = await start()
    agent = await make.agent(app)
    await make.spend(app, agent, 1)

    assert await Trimming(app.database, read_clock, timedelta(days=1), None).trim() == 0
    assert await Trimming(app.database, read_clock, timedelta(0), None).trim() == 1


async def test_a_checkpoint_is_what_the_last_trimmed_change_left(start: StartApp) -> None:
    """Both figures, the holds, the check value and the time; two trims in a row move it on."""
    app = await start(changes_kept_count=2)
    agent = await make.agent(app, vault_balance=1_000)
    await make.spend(app, agent, 100)
    await make.hold(app, agent, 30)
    await make.spend(app, agent, 7)
    await make.spend(app, agent, 8)
    expected = await what_it_left(app, agent, 3)
    assert expected[1:4] == (870, 0, 30)

    await app.trimming.trim()
    assert await checkpoint(app, agent) == expected

    await make.spend(app, agent, 9)
    expected = await what_it_left(app, agent, 4)
    await app.trimming.trim()
    assert await checkpoint(app, agent) == expected
    assert await kept(app, agent) == [5, 6]
    assert await make.verify(app, agent) is None


async def test_a_vault_is_trimmed_in_batches(
    start: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes a transaction, and after each the checkpoint fits to what is left."""
    monkeypatch.setattr(trimming, "CHANGES_PER_BATCH_MAX", 2)
    app = await start(changes_kept_count=1)
    agent = await make.agent(app)
    for _ in range(5):
        await make.spend(app, agent, 1)
    seen: list[int] = []

    async def look(conn: Connection, *arguments: object) -> int:
        count: int = await delete(conn, *arguments)  # type: ignore[arg-type]
        left = await conn.fetchval(
            "SELECT min(revision) FROM event_changes WHERE vault_id = $1", agent.vault_id
        )
        at = await conn.fetchval(
            "SELECT revision FROM change_checkpoints WHERE vault_id = $1", agent.vault_id
        )
        assert left == at + 1
        seen.append(count)
        return count

    delete = trimming_db.delete_changes
    monkeypatch.setattr(trimming_db, "delete_changes", look)

    assert await app.trimming.trim() == 5
    assert seen == [2, 2, 1]


async def test_a_round_that_ends_early_is_continued_by_the_next(
    start: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One vault a page, one change a batch, four turns: every vault gets its turns."""
    monkeypatch.setattr(trimming, "VAULTS_PER_PAGE_MAX", 1)
    monkeypatch.setattr(trimming, "CHANGES_PER_BATCH_MAX", 1)
    monkeypatch.setattr(trimming, "TURNS_MAX", 4)
    app = await start(changes_kept_count=1)
    first, second = sorted([await make.agent(app) for _ in range(2)], key=lambda a: a.vault_id)
    for _ in range(5):
        await make.spend(app, first, 1)
        await make.spend(app, second, 1)

    left = []
    for _ in range(5):
        await app.trimming.trim()
        left.append((len(await kept(app, first)), len(await kept(app, second))))

    # The third round only finds out that the second had come to the last vault.
    assert left == [(3, 6), (3, 3), (3, 3), (1, 3), (1, 1)]
    assert await make.verify(app, first) is None
    assert await make.verify(app, second) is None


async def test_nobody_who_spends_waits(start: StartApp) -> None:
    """It trims while somebody holds the vault's lock, and others spend while it trims."""
    app = await start(changes_kept_count=1)
    agent = await make.agent(app)
    await make.spend(app, agent, 1)

    async with make.locked_vault(app, agent.vault_id):
        assert await app.trimming.trim() == 1

    await make.spend(app, agent, 1)
    other = await start()
    async with app.database.transaction() as conn:
        newest = Kept(1, None)
        at = await trimming_db.upsert_checkpoint(conn, agent.vault_id, 1, newest, 10)
        assert at == 2
        await trimming_db.delete_changes(conn, agent.vault_id, 1, at)
        assert (await make.spend(other, agent, 1)).status is EventStatus.CONFIRMED
    assert await kept(app, agent) == [3, 4]
    assert await make.verify(app, agent) is None


async def test_a_vault_that_another_process_trims_is_left_to_it(start: StartApp) -> None:
    """It is skipped, whether it has a checkpoint already or not, and the others are trimmed."""
    app = await start(changes_kept_count=1)
    other = await start(changes_kept_count=1)
    agents = [await make.agent(app) for _ in range(3)]
    await make.spend(app, agents[0], 1)
    await app.trimming.trim()
    for agent in agents:
        await make.spend(app, agent, 1)

    async with other.database.transaction() as conn:
        newest = Kept(1, None)
        for agent in agents[:2]:
            at = await trimming_db.upsert_checkpoint(conn, agent.vault_id, 0, newest, 10)
            assert at is not None
            await trimming_db.delete_changes(conn, agent.vault_id, 0, at)
        assert await app.trimming.trim() == 1
        assert [len(await kept(app, agent)) for agent in agents] == [2, 2, 1]

    assert [await make.verify(app, agent) for agent in agents] == [None] * 3


async def test_a_checkpoint_never_moves_back(start: StartApp) -> None:
    """A process that read the vault long ago, and would keep more, changes nothing."""
    app = await start(changes_kept_count=2)
    agent = await make.agent(app)
    for _ in range(5):
        await make.spend(app, agent, 1)
    page, _ = await app.trimming._next_page()
    (vault,) = page
    await app.trimming.trim()
    before = await checkpoint(app, agent)
    await edit(
        app,
        "INSERT INTO event_changes SELECT vault_id, revision - 3, event_id, NULL, status, amount,"
        " failure_reason, tx_hash, 0, 0, 0, changed_at, digest FROM event_changes"
        " WHERE vault_id = $1 AND revision = 5",
        agent.vault_id,
    )

    async with app.database.transaction() as conn:
        at = await trimming_db.upsert_checkpoint(conn, vault.id, vault.trimmed, Kept(2, None), 1)

    assert at is None
    assert await checkpoint(app, agent) == before


async def test_two_processes_trim_while_others_spend(
    start: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spends, holds and captures go on, and every vault ends with its newest changes."""
    monkeypatch.setattr(trimming, "CHANGES_PER_BATCH_MAX", 7)
    apps = [await start(changes_kept_count=5) for _ in range(2)]
    agents = [await make.agent(apps[0]) for _ in range(3)]
    spending = True

    async def spend(place: App, agent: make.Spender) -> None:
        for _ in range(15):
            held = await make.hold(place, agent, 10)
            await make.spend(place, agent, 5)
            await make.capture(place, agent, held, 3)

    async def trim(place: App) -> int:
        count = 0
        while spending:
            count += await place.trimming.trim()
            for agent in agents:
                assert await make.verify(place, agent, 50) is None
        return count + await place.trimming.trim()

    trims = [asyncio.create_task(trim(place)) for place in apps]
    await asyncio.gather(*(spend(place, agent) for place in apps for agent in agents))
    spending = False
    trimmed = sum(await asyncio.gather(*trims))

    head = 1 + 2 * 15 * 3
    assert trimmed == 3 * (head - 5)
    for agent in agents:
        assert await kept(apps[0], agent) == [*range(head - 4, head + 1)]
        assert await make.balance(apps[0], agent) == 10**12 - 2 * 15 * 8
        assert await make.verify(apps[0], agent, 2) is None


async def test_what_was_held_before_is_captured_released_and_expires(
    start: StartApp, clock: HandClock
) -> None:
    """The changes of the holds, and of a funding on its way, are gone; the money is not."""
    app = await start(clock, changes_kept_count=1)
    agent = await make.agent(app, vault_balance=1_000, daily_limit=500)
    captured = await make.hold(app, agent, 100)
    released = await make.hold(app, agent, 50)
    expired = await make.hold(app, agent, 25)
    arriving = await make.fund(app, agent.owner, agent.vault_id, 7, pending=True)
    failing = await make.fund(app, agent.owner, agent.vault_id, 8, pending=True)
    await make.spend(app, agent, 1)
    assert await app.trimming.trim() == 6
    assert await make.verify(app, agent) is None

    await make.capture(app, agent, captured, 60)
    await make.release(app, agent, released)
    await make.confirm_funding(app, agent, arriving)
    await make.fail_funding(app, agent, failing)
    clock.move(hours=1)
    await app.lanes.settle(agent.vault_id)

    ended = await app.ledger.get_event(agent.owner, expired.id)
    assert ended.failure_reason is FailureReason.EXPIRED
    assert await make.balance(app, agent) == 1_000 - 60 - 1 + 7
    assert await make.verify(app, agent, 1) is None
    assert await app.trimming.trim() == 5
    assert await make.verify(app, agent, 1) is None


async def test_a_request_that_is_repeated_after_trimming_gets_its_first_answer(
    start: StartApp,
) -> None:
    """Spends, declines and holds; and a spend whose change is gone is refunded all the same."""
    app = await start(changes_kept_count=1)
    agent = await make.agent(app, vault_balance=1_000, daily_limit=500)
    spent = await make.spend(app, agent, 100, "spent")
    declined = await make.spend(app, agent, 900, "declined")
    held = await make.hold(app, agent, 40, "held")
    captured = await make.capture(app, agent, held, 30, "captured")
    await make.spend(app, agent, 1)
    await app.trimming.trim()
    assert await kept(app, agent) == [6]

    assert await make.spend(app, agent, 100, "spent") == spent
    assert await make.spend(app, agent, 900, "declined") == declined
    assert await make.hold(app, agent, 40, "held") == held
    assert await make.capture(app, agent, held, 30, "captured") == captured
    with pytest.raises(errors.RequestIdReused):
        await make.spend(app, agent, 101, "spent")

    assert (await make.vault(app, agent)).revision == 6
    await make.refund(app, agent, spent, 100)
    assert await make.verify(app, agent) is None


@pytest.mark.parametrize("page", [1, 2, 3, 1_000])
async def test_a_trim_between_two_pages_of_the_recount(start: StartApp, page: int) -> None:
    """After each page as much goes as can: the next page goes on from the checkpoint."""
    app = await start(changes_kept_count=1)
    agent = await make.agent(app)
    for _ in range(4):
        await make.hold(app, agent, 10)
    place: Place | None = Place()

    while place is not None:
        found = await app.auditor.verify(agent.owner, agent.vault_id, place, page)
        assert found.discrepancy is None
        place = found.next_place
        if (await make.vault(app, agent)).revision < 20:
            for _ in range(3):
                await make.spend(app, agent, 1)
        await app.trimming.trim()

    assert await make.verify(app, agent) is None


async def test_a_project_that_is_deleted_in_between_is_no_failure(start: StartApp) -> None:
    """Its vault was read and is due, and is gone before its turn, or just then."""
    app = await start(changes_kept_count=1)
    agent = await make.agent(app)
    await make.spend(app, agent, 1)
    page, keep = await app.trimming._next_page()
    assert [vault.is_due for vault in page] == [True]

    async with app.database.transaction() as conn:
        await conn.execute("DELETE FROM projects WHERE id = $1", agent.project_id)
        assert await app.trimming._trim_batch(page[0], keep) == (0, 0)
    assert await app.trimming._trim_batch(page[0], keep) == (0, 0)
    assert await app.trimming.trim() == 0


async def test_a_vault_that_goes_while_its_checkpoint_is_written_is_left(
    start: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint's foreign key says so; whatever else is violated is a failure."""
    app = await start(changes_kept_count=1)
    vault = trimming_db.Vault(VaultId("v"), 0, is_due=True)
    refusal = asyncpg.ForeignKeyViolationError("gone")
    refusal.constraint_name = "change_checkpoints_vault_id_fkey"

    async def gone(*_: object) -> int:
        raise refusal

    monkeypatch.setattr(trimming_db, "upsert_checkpoint", gone)
    assert await app.trimming._trim_batch(vault, Kept(1, None)) == (0, 0)

    refusal.constraint_name = "another"
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await app.trimming._trim_batch(vault, Kept(1, None))


async def test_the_duty_is_done_only_where_it_is_wanted(
    database: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a minute, beside the other duties."""
    started: list[tuple[float, str]] = []

    async def every(seconds: float, duty: object) -> None:
        started.append((seconds, getattr(duty, "__qualname__", "")))

    monkeypatch.setattr("pilot_grpc.bootstrap.every", every)
    for changes in ({}, {"changes_kept_count": 1}, {"changes_kept_age": timedelta(days=1)}):
        started.clear()
        async with make.app(database, duties=True, database_pooler=server.pooler, **changes):
            await asyncio.sleep(0)
            assert ((60.0, "Trimming.trim") in started) is bool(changes)
