"""Payments in the database: taken by one worker, signed once, and given back by the dead."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import asyncpg
import pytest

from pilot_grpc.bootstrap import App
from pilot_grpc.db import transfers
from pilot_grpc.db.connection import Database
from pilot_grpc.db.transfers import Sent
from pilot_grpc.domain.ids import EventId
from pilot_grpc.domain.ledger import Event, EventStatus, FailureReason
from tests import make
from tests.conftest import Server

LEASE: Final = timedelta(hours=1)
OVER: Final = timedelta(0)
MANY: Final = 100


@pytest.fixture
async def app(database: str, server: Server) -> AsyncIterator[App]:
    """The services, with a chain that they never ask."""
    pooler = server.pooler
    async with make.app(database, solana_rpc_urls=make.NOWHERE, database_pooler=pooler) as built:
        yield built


@pytest.fixture
async def payer(app: App) -> make.Spender:
    """An agent that may pay one wallet, out of a vault that has 1000 on chain."""
    agent = await make.agent(app, vault_balance=0)
    await make.deposit(app, agent.vault_id, 1_000, "deposit")
    await make.allow(app, agent)
    return agent


async def pay(app: App, payer: make.Spender, amount: int = 5) -> Event:
    """A payment that is on its way."""
    paid = await make.spend(app, payer, amount, recipient=make.WALLET)
    assert paid.status is EventStatus.PENDING
    return paid


def signed(signature: str) -> Sent:
    return Sent(signature, f"bytes of {signature}".encode(), 200, 50)


async def sign(db: Database, paid: Event, signature: str, attempt: int = 1) -> bool:
    """Store a signature in a transaction of its own, and say whether it may be sent."""
    async with db.transaction() as conn:
        return await transfers.insert_signature(
            conn, paid.id, attempt, signed(signature), "blockhash"
        )


async def claim(
    db: Database, worker: str, lease: timedelta = LEASE, limit: int = MANY
) -> set[EventId]:
    async with db.transaction() as conn:
        claimed = await transfers.claim(conn, worker, lease, limit)
    assert len(claimed) == len(set(claimed))
    return set(claimed)


async def transfers_of(db: Database, worker: str, *paid: Event) -> list[transfers.Transfer]:
    async with db.transaction() as conn:
        return await transfers.select_transfers(conn, [each.id for each in paid], worker)


async def rows(pool: "asyncpg.Pool[Any]", table: str) -> int:
    count: int = await pool.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
    return count


# --- on its way -------------------------------------------------------------------------


async def test_only_a_payment_is_on_its_way_and_only_until_it_is_decided(
    app: App, payer: make.Spender, pool: "asyncpg.Pool[Any]"
) -> None:
    """Neither metered use, nor a hold, nor what was declined; lost or landed it is gone."""
    await make.spend(app, payer, 5)
    await make.hold(app, payer, 5)
    await make.spend(app, payer, 5, recipient=make.OTHER_WALLET)
    await make.spend(app, payer, 10**9, recipient=make.WALLET)
    before = await rows(pool, "pending_transfers")

    paid = [await pay(app, payer) for _ in range(3)]
    during = await rows(pool, "pending_transfers")
    await make.land(app, paid[0], "payment")
    await make.lose(app, paid[1])

    assert (before, during) == (0, 3)
    assert await pool.fetchval("SELECT event_id FROM pending_transfers") == paid[2].id


async def test_a_transfer_says_all_that_is_needed_to_pay(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Whom, how much, and out of which wallet; what was signed for it, once something was."""
    paid = await pay(app, payer, 7)
    vault = await make.vault(app, payer)
    await claim(db, "worker")

    (unsigned,) = await transfers_of(db, "worker", paid)
    await sign(db, paid, "first")
    (signed_,) = await transfers_of(db, "worker", paid)

    assert unsigned._replace(age=OVER) == transfers.Transfer(
        event_id=paid.id,
        vault_id=payer.vault_id,
        agent_id=payer.agent_id,
        address=vault.address,
        recipient=make.WALLET,
        amount=7,
        is_stopped=False,
        is_trusted=True,
        age=OVER,
        attempt=1,
        sent=None,
    )
    assert unsigned.age > OVER
    assert signed_.sent == signed("first")
    assert "bytes of" not in repr(signed_)


async def test_a_recipient_is_trusted_when_the_owner_has_named_it(
    app: App, payer: make.Spender, db: Database
) -> None:
    """On the list, or in a withdrawal. Taken off the list, or paid by a rule, it is not."""
    listed = await pay(app, payer)
    withdrawn = await app.vaults.withdraw(
        payer.owner, make.asked("Withdraw"), payer.vault_id, 5, make.OTHER_WALLET, None
    )
    await claim(db, "worker")

    before = await transfers_of(db, "worker", listed, withdrawn)
    await app.agents.remove_recipient(payer.owner, payer.agent_id, make.WALLET)
    after = await transfers_of(db, "worker", listed, withdrawn)

    assert {each.event_id: each.is_trusted for each in before} == {
        listed.id: True,
        withdrawn.id: True,
    }
    assert {each.event_id: each.is_trusted for each in after} == {
        listed.id: False,
        withdrawn.id: True,
    }


# --- one worker -------------------------------------------------------------------------


async def test_workers_never_take_the_same_payment(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Ten at the same time take twenty, each once; nobody has more than it asked for."""
    paid = {(await pay(app, payer)).id for _ in range(20)}

    claims = await asyncio.gather(*(claim(db, f"worker {n}", limit=3) for n in range(10)))

    taken = [event_id for claimed in claims for event_id in claimed]
    assert len(taken) == len(set(taken))
    assert set(taken) <= paid
    assert max(map(len, claims)) == 3
    assert set(taken) | await claim(db, "last") == paid


async def test_a_claim_does_not_wait_for_another(
    app: App, payer: make.Spender, db: Database
) -> None:
    """What is being claimed is left out, whether or not the other then commits."""
    first, second = await pay(app, payer), await pay(app, payer)
    async with db.transaction() as conn:
        assert await transfers.claim(conn, "slow", LEASE, 1) == [first.id]

        assert await claim(db, "fast") == {second.id}


async def test_the_payment_that_is_due_for_longest_is_taken_first(
    app: App, payer: make.Spender, db: Database
) -> None:
    """One that was put off comes after those that nobody has looked at yet."""
    paid = [await pay(app, payer) for _ in range(3)]
    await claim(db, "worker")
    async with db.transaction() as conn:
        await transfers.postpone(conn, paid[0].id, "worker", OVER)
        await transfers.release(conn, "worker")

    taken = [await claim(db, "another", limit=1) for _ in range(3)]

    assert taken == [{paid[1].id}, {paid[2].id}, {paid[0].id}]


async def test_a_payment_that_was_put_off_waits(
    app: App, payer: make.Spender, db: Database
) -> None:
    """For everybody, until its time has come; who does not have it cannot put it off."""
    paid = await pay(app, payer)
    await claim(db, "worker")
    async with db.transaction() as conn:
        await transfers.postpone(conn, paid.id, "another", OVER)
    kept = await claim(db, "another")
    async with db.transaction() as conn:
        await transfers.postpone(conn, paid.id, "worker", LEASE)

    assert (kept, await claim(db, "another"), await claim(db, "worker")) == (set(), set(), set())


async def test_what_a_dead_worker_had_is_taken_over(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Its lease is over: it can neither renew it, nor see the payment, nor put it off."""
    paid = await pay(app, payer)
    assert await claim(db, "dead", lease=OVER) == {paid.id}

    taken = await claim(db, "alive")
    async with db.transaction() as conn:
        kept = await transfers.renew(conn, [paid.id], "dead", LEASE)
        await transfers.postpone(conn, paid.id, "dead", OVER)
        await transfers.release(conn, "dead")
        still = await transfers.renew(conn, [paid.id], "alive", LEASE)

    assert (taken, kept, still) == ({paid.id}, set(), {paid.id})
    assert await transfers_of(db, "dead", paid) == []
    assert await claim(db, "third") == set()


async def test_a_lease_that_is_renewed_is_not_taken_over(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Also one that was over already, as long as nobody has noticed."""
    paid = [await pay(app, payer) for _ in range(2)]
    await claim(db, "worker", lease=OVER)

    async with db.transaction() as conn:
        kept = await transfers.renew(conn, [paid[0].id, EventId("gone")], "worker", LEASE)

    assert kept == {paid[0].id}
    assert await claim(db, "another") == {paid[1].id}


async def test_whoever_stops_gives_back_its_own(
    app: App, payer: make.Spender, db: Database
) -> None:
    paid = [await pay(app, payer) for _ in range(2)]
    await claim(db, "stays", limit=1)
    await claim(db, "goes")

    async with db.transaction() as conn:
        await transfers.release(conn, "goes")

    assert await claim(db, "another") == {paid[1].id}


# --- one signature ----------------------------------------------------------------------


async def test_workers_that_race_store_one_signature(
    app: App, payer: make.Spender, db: Database, pool: "asyncpg.Pool[Any]"
) -> None:
    """Whatever the leases say: of ten that sign the same payment one may send."""
    paid = await pay(app, payer)

    may_send = await asyncio.gather(*(sign(db, paid, f"signature {n}") for n in range(10)))

    assert sum(may_send) == 1
    winner = f"signature {may_send.index(True)}"
    assert await pool.fetchval("SELECT signature FROM pending_transfers") == winner
    assert await pool.fetchval("SELECT array_agg(signature) FROM transfer_signatures") == [winner]


@pytest.mark.parametrize("commits", [True, False])
async def test_a_second_signature_waits_for_what_becomes_of_the_first(
    app: App, payer: make.Spender, db: Database, commits: bool
) -> None:
    """It may be sent only if the first was never stored."""
    paid = await pay(app, payer)

    async with db.pool.acquire() as conn:
        first = conn.transaction()
        await first.start()
        await transfers.insert_signature(conn, paid.id, 1, signed("first"), "blockhash")
        second = asyncio.create_task(sign(db, paid, "second"))
        await make.waited_for(conn)
        await (first.commit() if commits else first.rollback())

    assert await second is not commits


async def test_a_stopped_vault_signs_nothing(
    app: App, payer: make.Spender, db: Database, pool: "asyncpg.Pool[Any]"
) -> None:
    """Neither a first transaction nor a later one, until nothing stops it any more."""
    paid, sent = await pay(app, payer), await pay(app, payer)
    await sign(db, sent, "first")
    await make.stop(app, payer.vault_id, -5)
    async with db.transaction() as conn:
        await transfers.begin_next_attempt(conn, sent.id, "first")

    while_stopped = [await sign(db, paid, "second"), await sign(db, sent, "third", attempt=2)]
    stored = await rows(pool, "transfer_signatures")
    await make.stop(app, payer.vault_id, 0)

    assert (while_stopped, stored) == ([False, False], 1)
    assert await sign(db, paid, "second")
    assert await sign(db, sent, "third", attempt=2)


async def test_an_attempt_is_over_before_the_next_is_signed(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Only whoever knows the last signature to be dead begins another, once; no old one signs."""
    paid = await pay(app, payer)
    await sign(db, paid, "first")

    async def begin(signature: str) -> int | None:
        async with db.transaction() as conn:
            return await transfers.begin_next_attempt(conn, paid.id, signature)

    too_soon = await sign(db, paid, "second", attempt=2)
    of_another = await begin("another")
    begun = await asyncio.gather(*(begin("first") for _ in range(5)))

    assert (too_soon, of_another) == (False, None)
    assert sorted(each or 0 for each in begun) == [0, 0, 0, 0, 2]
    assert not await sign(db, paid, "late", attempt=1)
    assert await sign(db, paid, "second", attempt=2)


async def test_every_signature_is_known_as_its_payments_for_ever(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Those of attempts that were given up, too, and after the payment was decided."""
    paid = await pay(app, payer)
    await sign(db, paid, "first")
    async with db.transaction() as conn:
        await transfers.begin_next_attempt(conn, paid.id, "first")
    await sign(db, paid, "second", attempt=2)
    await make.land(app, paid, "second")

    async with db.transaction() as conn:
        known = await transfers.select_signed(conn, ["first", "second", "stranger"])

    assert known == {
        signature: transfers.Signed(signature, paid.id, payer.vault_id, EventStatus.CONFIRMED, None)
        for signature in ("first", "second")
    }


async def test_a_payment_that_is_being_signed_is_not_failed(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Who gives it up as unsigned waits for the signature, and finds it."""
    paid = await pay(app, payer)
    async with db.transaction() as conn:
        await transfers.insert_signature(conn, paid.id, 1, signed("first"), "blockhash")
        failing = asyncio.create_task(make.lose(app, paid, None, FailureReason.TRANSFER_NOT_SENT))
        await make.waited_for(conn)

    assert (await failing).status is EventStatus.PENDING
    assert (await make.lose(app, paid, "first")).status is EventStatus.FAILED


async def test_a_payment_that_is_decided_is_not_signed(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Failed, it was given back; landed, it was paid."""
    lost, landed = await pay(app, payer), await pay(app, payer)
    await make.lose(app, lost)
    await make.land(app, landed, "payment")

    assert not await sign(db, lost, "first")
    assert not await sign(db, landed, "second")


# --- one account ------------------------------------------------------------------------


async def make_account(db: Database, address: str, event_id: str, per_day_max: int = MANY) -> bool:
    async with db.transaction() as conn:
        return await transfers.insert_account(conn, address, EventId(event_id), per_day_max)


async def test_an_account_is_made_once(db: Database, pool: "asyncpg.Pool[Any]") -> None:
    """By whichever of ten payments comes first, which may try again; and never any more."""
    may_make = await asyncio.gather(*(make_account(db, "wallet", f"e{n}") for n in range(10)))

    winner = may_make.index(True)
    assert sum(may_make) == 1
    await pool.execute("UPDATE recipient_accounts SET created_at = created_at - interval '1 year'")
    assert await make_account(db, "wallet", f"e{winner}")
    assert not await make_account(db, "wallet", f"e{1 - min(winner, 1)}")


async def test_so_many_accounts_are_made_a_day(db: Database, pool: "asyncpg.Pool[Any]") -> None:
    """Ten race for three; one that has its place keeps it, and yesterday's count no more."""
    may_make = await asyncio.gather(
        *(make_account(db, f"wallet {n}", f"e{n}", 3) for n in range(10))
    )

    assert sum(may_make) == 3
    winner, loser = may_make.index(True), may_make.index(False)
    assert await make_account(db, f"wallet {winner}", f"e{winner}", 3)
    assert not await make_account(db, f"wallet {loser}", f"e{loser}", 3)
    await pool.execute(
        "UPDATE recipient_accounts"
        "   SET created_at = date_trunc('day', clock_timestamp(), 'UTC') - interval '1 microsecond'"
    )
    assert await make_account(db, f"wallet {loser}", f"e{loser}", 3)


async def test_the_last_account_of_a_day_is_waited_for(db: Database) -> None:
    """Nobody counts while another has its place and has not committed it."""
    async with db.transaction() as conn:
        assert await transfers.insert_account(conn, "first", EventId("e"), 1)
        second = asyncio.create_task(make_account(db, "second", "f", 1))
        waited_for = asyncio.create_task(make.waited_for(conn))
        await asyncio.wait({second, waited_for}, return_when=asyncio.FIRST_COMPLETED)
        waited_for.cancel()
        await asyncio.gather(waited_for, return_exceptions=True)

    assert not await second


async def test_the_accounts_of_a_day_begin_with_that_day_in_utc(
    db: Database, pool: "asyncpg.Pool[Any]"
) -> None:
    """The first moment of it counts, whatever the server's time zone is."""
    await make_account(db, "wallet", "e")
    await pool.execute(
        "UPDATE recipient_accounts SET created_at = date_trunc('day', clock_timestamp(), 'UTC')"
    )

    async with db.transaction() as conn:
        await conn.execute("SET LOCAL timezone = 'Pacific/Kiritimati'")
        assert not await transfers.insert_account(conn, "another", EventId("f"), 1)


async def test_where_no_accounts_are_made_none_is(db: Database) -> None:
    assert not await make_account(db, "wallet", "e", 0)


async def test_a_payment_that_fails_frees_its_account(
    app: App, payer: make.Spender, db: Database
) -> None:
    """Nothing was made, so the next one may; one that landed has made it for good."""
    lost, landed = await pay(app, payer), await pay(app, payer)
    await make_account(db, "first", lost.id)
    await make_account(db, "second", landed.id)

    await make.lose(app, lost)
    await make.land(app, landed, "payment")

    assert await make_account(db, "first", "another")
    assert not await make_account(db, "second", "another")


async def test_a_deleted_project_leaves_the_accounts_that_were_paid_for(
    app: App, payer: make.Spender, db: Database, pool: "asyncpg.Pool[Any]"
) -> None:
    """Otherwise a new project of the same owner would have them made once more."""
    paid = await pay(app, payer)
    await make_account(db, "wallet", paid.id)

    async with db.transaction() as conn:
        await conn.execute("DELETE FROM projects WHERE id = $1", payer.project_id)

    assert await rows(pool, "pending_transfers") == 0
    assert not await make_account(db, "wallet", "another")


async def test_payments_on_their_way_are_counted_by_vault(
    app: App, payer: make.Spender, db: Database
) -> None:
    """An owner who acknowledges a drift waits for exactly these."""
    beside = await make.agent(app)
    paid = [await pay(app, payer) for _ in range(2)]
    await make.land(app, paid[0], "payment")

    async with db.transaction() as conn:
        counted = await transfers.count_pending(conn, [payer.vault_id, beside.vault_id])

    assert counted == {payer.vault_id: 1}
