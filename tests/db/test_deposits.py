"""What the chain has moved, in the database: looked at once, and how far all is known."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import asyncpg
import pytest

from pilot_grpc.bootstrap import App
from pilot_grpc.db import deposits
from pilot_grpc.db.connection import Database
from pilot_grpc.db.deposits import Expected, Watch
from pilot_grpc.domain.book import Movement
from pilot_grpc.domain.ids import EventId, VaultId
from pilot_grpc.domain.ledger import EventStatus, RecordDeposit, UndoDeposit
from pilot_grpc.domain.vaults import OUTFLOWS_NAMED_MAX, Outflow
from tests import make
from tests.conftest import Server

LATER: Final = timedelta(hours=1)


@pytest.fixture
async def app(database: str, server: Server) -> AsyncIterator[App]:
    """The services, with a chain that they never ask."""
    pooler = server.pooler
    async with make.app(database, solana_rpc_urls=make.NOWHERE, database_pooler=pooler) as built:
        yield built


@pytest.fixture
async def owner(app: App) -> make.Spender:
    """A vault that has 1000 on chain since slot 1, and an agent that may pay one wallet."""
    agent = await make.agent(app, vault_balance=0)
    await make.deposit(app, agent.vault_id, 1_000, "deposit")
    await make.allow(app, agent)
    return agent


async def note(db: Database, *movements: Movement) -> None:
    async with db.transaction() as conn:
        await deposits.insert_movements(conn, movements)


async def movements_of(pool: "asyncpg.Pool[Any]") -> dict[str, tuple[int, str | None]]:
    """What was moved by each transaction, and whose it is."""
    rows = await pool.fetch("SELECT signature, delta, event_id FROM vault_transactions")
    return {row["signature"]: (row["delta"], row["event_id"]) for row in rows}


async def test_what_is_final_is_written_down_with_its_event(
    app: App, owner: make.Spender, pool: "asyncpg.Pool[Any]"
) -> None:
    """A deposit and a payment; what is only seen, undone or lost has moved nothing."""
    paid = await make.spend(app, owner, 5, recipient=make.WALLET)
    lost = await make.spend(app, owner, 5, recipient=make.WALLET)
    await make.land(app, paid, "payment")
    await make.lose(app, lost)
    seen = await make.deposit(app, owner.vault_id, 50, "seen", landed=None)
    await app.lanes.decide(UndoDeposit(owner.vault_id, seen.id))

    moved = await movements_of(pool)

    assert {signature: delta for signature, (delta, _) in moved.items()} == {
        "deposit": 1_000,
        "payment": -5,
    }
    assert moved["payment"][1] == paid.id


async def test_two_readers_of_one_history_credit_it_once(
    app: App, owner: make.Spender, pool: "asyncpg.Pool[Any]"
) -> None:
    """Ten that find the same deposit at the same time get the same event."""
    found = await asyncio.gather(
        *(app.lanes.decide(RecordDeposit(owner.vault_id, 7, "new", slot)) for slot in [None, 5] * 5)
    )

    assert len({event.id for event in found}) == 1
    assert await make.balance(app, owner) == 1_007
    assert (await movements_of(pool))["new"] == (7, found[0].id)


async def test_a_deposit_that_was_undone_and_lands_is_another_event(
    app: App, owner: make.Spender
) -> None:
    """In the database, too, where a signature is credited once."""
    seen = await make.deposit(app, owner.vault_id, 7, "new", landed=None)
    undone = await app.lanes.decide(UndoDeposit(owner.vault_id, seen.id))

    landed = await make.deposit(app, owner.vault_id, 7, "new", landed=5)

    assert (undone.status, undone.tx_hash) == (EventStatus.FAILED, None)
    assert (landed.status, landed.id == seen.id) == (EventStatus.CONFIRMED, False)
    assert await make.balance(app, owner) == 1_007
    assert await make.verify(app, owner) is None


async def test_a_promised_id_that_another_vault_has_taken_is_not_taken_again(
    app: App, owner: make.Spender
) -> None:
    """Ids are one for all vaults: the deposit takes one of its own."""
    elsewhere = await make.agent(app, vault_balance=0)
    taken = await make.deposit(app, elsewhere.vault_id, 7, "elsewhere")

    landed = await app.lanes.decide(RecordDeposit(owner.vault_id, 7, "new", 5, taken.id))

    assert landed.id != taken.id
    assert await make.balance(app, owner) == 1_007


async def test_what_was_nobodys_gets_its_event_and_keeps_it(
    db: Database, owner: make.Spender, pool: "asyncpg.Pool[Any]"
) -> None:
    """It may have been looked at before its payment was known; never the other way round."""
    stray = Movement(owner.vault_id, "stray", 5, -3, None)

    await note(db, stray)
    first = await movements_of(pool)
    await note(db, stray._replace(event_id=EventId("own")))
    second = await movements_of(pool)
    await note(db, stray, stray._replace(signature="new"))
    await note(db, stray._replace(event_id=EventId("another")))

    assert (first["stray"], second["stray"]) == ((-3, None), (-3, "own"))
    assert (await movements_of(pool))["stray"] == (-3, "own")


async def test_transactions_are_known_by_vault(db: Database, owner: make.Spender) -> None:
    """One between two vaults is looked at for each; those that moved nothing are known, too."""
    await note(db, Movement(owner.vault_id, "nothing", 5, 0, None))

    async with db.transaction() as conn:
        known = await deposits.select_known(conn, owner.vault_id, ["deposit", "nothing", "new"])
        elsewhere = await deposits.select_known(conn, VaultId("v"), ["deposit"])

    assert (known, elsewhere) == ({"deposit", "nothing"}, set())


async def test_the_turn_of_a_vault_is_taken_once(app: App, db: Database) -> None:
    """Ten processes share five vaults, for both duties; taken, a turn is put off."""
    vault_ids = {(await make.project(app))[2] for _ in range(5)}

    async def take(duty: Any, limit: int = 2) -> list[Watch]:
        async with db.transaction() as conn:
            taken: list[Watch] = await duty(conn, LATER, limit)
            return taken

    for duty in (deposits.take_watches, deposits.take_reconciliations):
        taken = await asyncio.gather(*(take(duty) for _ in range(10)))
        taken.append(await take(duty, 5))
        ids = [watch.vault_id for watches in taken for watch in watches]
        assert len(ids) == len(set(ids))
        assert set(ids) == vault_ids
        assert await take(duty, 5) == []


async def test_a_vault_is_reconciled_at_once_when_it_is_hurried(
    app: App, db: Database, owner: make.Spender
) -> None:
    """And no other with it."""
    await make.project(app)
    async with db.transaction() as conn:
        await deposits.take_reconciliations(conn, LATER, 10)
        await deposits.hurry_reconciliation(conn, owner.vault_id)

        (watch,) = await deposits.take_reconciliations(conn, LATER, 10)

    assert watch.vault_id == owner.vault_id


async def test_a_slot_never_goes_back(db: Database, owner: make.Spender) -> None:
    """Another process may have read further; the amount is what was seen last."""
    async with db.transaction() as conn:
        first = await deposits.select_watch(conn, owner.vault_id)
        await deposits.update_scan(conn, owner.vault_id, 70, 1_000, LATER)
        await deposits.update_scan(conn, owner.vault_id, 60, 900, LATER)

        watch = await deposits.select_watch(conn, owner.vault_id)

    assert first is not None
    assert (first.scanned_slot, first.watched_amount, first.is_scan_due) == (0, None, True)
    assert watch == first._replace(scanned_slot=70, watched_amount=900, is_scan_due=False)


async def test_vaults_of_an_older_pilot_are_looked_at_too(
    db: Database, owner: make.Spender, pool: "asyncpg.Pool[Any]"
) -> None:
    """Those that are looked at already keep how far they were read."""
    async with db.transaction() as conn:
        await deposits.update_scan(conn, owner.vault_id, 70, 1_000, LATER)
        await deposits.insert_missing_scans(conn)
        kept = await deposits.select_watch(conn, owner.vault_id)
    await pool.execute("DELETE FROM vault_scans")

    async with db.transaction() as conn:
        await deposits.insert_missing_scans(conn)
        again = await deposits.select_watch(conn, owner.vault_id)

    assert kept is not None
    assert again is not None
    assert (kept.scanned_slot, again.scanned_slot) == (70, 0)


async def test_what_must_be_on_chain_is_counted_as_of_a_slot(
    app: App, db: Database, owner: make.Spender
) -> None:
    """What is on its way is still there; what has landed later was not, or was still there."""
    landed, on_its_way = [
        await make.spend(app, owner, amount, recipient=make.WALLET) for amount in (30, 70)
    ]
    await make.land(app, landed, "payment", slot=5)
    await make.deposit(app, owner.vault_id, 200, "later", landed=9)
    await make.deposit(app, owner.vault_id, 400, "seen", landed=None)
    await note(db, Movement(owner.vault_id, "stray", 9, -3, None))
    await make.hold(app, owner, 11)
    await make.spend(app, owner, 13)

    async with db.transaction() as conn:
        found = {
            slot: await deposits.select_expected(conn, owner.vault_id, slot)
            for slot in (0, 1, 4, 5, 8, 9)
        }
        missing = await deposits.select_expected(conn, VaultId("v"), 5)

    assert on_its_way.status is EventStatus.PENDING
    assert found[9] == Expected(chain_balance=1_100, pending_amount=70, later_amount=0)
    amounts = {slot: each.amount for slot, each in found.items() if each is not None}
    assert amounts == {0: 0, 1: 1_000, 4: 1_000, 5: 970, 8: 970, 9: 1_170}
    assert missing is None


async def test_outflows_that_are_nobodys_are_named_newest_first(
    db: Database, owner: make.Spender
) -> None:
    """Up to a slot; what came in, moved nothing, or belongs to an event is none of them."""
    await note(
        db,
        Movement(owner.vault_id, "old", 5, -3, None),
        Movement(owner.vault_id, "new", 7, -4, None),
        Movement(owner.vault_id, "after", 8, -5, None),
        Movement(owner.vault_id, "gift", 6, 3, None),
        Movement(owner.vault_id, "nothing", 6, 0, None),
        Movement(owner.vault_id, "own", 6, -3, EventId("e")),
    )

    async with db.transaction() as conn:
        found = await deposits.select_outflows(conn, owner.vault_id, 7)

    assert found == [Outflow("new", 4, 7), Outflow("old", 3, 5)]


async def test_no_more_outflows_are_named_than_a_drift_can_say(
    db: Database, owner: make.Spender
) -> None:
    await note(
        db, *(Movement(owner.vault_id, f"{n}", n, -1, None) for n in range(OUTFLOWS_NAMED_MAX + 5))
    )

    async with db.transaction() as conn:
        found = await deposits.select_outflows(conn, owner.vault_id, 10**6)

    assert [outflow.slot for outflow in found] == list(range(OUTFLOWS_NAMED_MAX + 4, 4, -1))


async def test_what_is_acknowledged_belongs_to_its_event(
    app: App, db: Database, owner: make.Spender, pool: "asyncpg.Pool[Any]"
) -> None:
    """Up to the slot of the drift. What came after it is another drift's, and still named."""
    await note(
        db,
        Movement(owner.vault_id, "theft", 8, -5, None),
        Movement(owner.vault_id, "nothing", 8, 0, None),
        Movement(owner.vault_id, "second theft", 10, -7, None),
    )
    drift = await make.stop(app, owner.vault_id, -5)

    acknowledged = await make.acknowledge(app, owner, drift)

    moved = await movements_of(pool)
    assert drift.slot == 9
    assert {signature: event_id for signature, (_, event_id) in moved.items()} == {
        "deposit": moved["deposit"][1],
        "theft": acknowledged.id,
        "nothing": None,
        "second theft": None,
    }
    async with db.transaction() as conn:
        assert [o.tx_hash for o in await deposits.select_outflows(conn, owner.vault_id, 99)] == [
            "second theft"
        ]
        expected = await deposits.select_expected(conn, owner.vault_id, 9)
    assert expected is not None
    assert expected.amount == 995


async def test_pending_deposits_are_those_that_were_seen_and_are_not_final(
    app: App, db: Database, owner: make.Spender
) -> None:
    """Oldest first; neither what is final, undone, a credit, or of another vault."""
    beside = await make.agent(app, vault_balance=0)
    seen = [await make.deposit(app, owner.vault_id, 5, f"seen {n}", landed=None) for n in range(4)]
    await make.deposit(app, owner.vault_id, 5, "seen 1")
    await app.lanes.decide(UndoDeposit(owner.vault_id, seen[2].id))
    await make.fund(app, owner.owner, owner.vault_id, 5, pending=True)
    await make.deposit(app, beside.vault_id, 5, "beside", landed=None)

    async with db.transaction() as conn:
        pending = await deposits.select_pending_deposits(conn, owner.vault_id)

    assert pending == [seen[0], seen[3]]
