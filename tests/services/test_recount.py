"""VerifyLedger: it accepts every history that was made, and finds every row edited by hand."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.db import trimming
from pilot_grpc.domain.ids import EventId
from pilot_grpc.domain.ledger import Event
from pilot_grpc.domain.recount import Discrepancy
from pilot_grpc.services.recount import Place
from tests import make
from tests.make import HandClock
from tests.services.conftest import StartApp


async def edit(app: App, statement: str, *arguments: object) -> None:
    """Edit by hand, past the foreign keys."""
    async with app.database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        edited = await conn.execute(statement, *arguments)
    assert edited.split()[-1] != "0"


@dataclass(frozen=True)
class History:
    """A vault in which everything has happened, over a turn of the month."""

    app: App
    agent: make.Spender
    beside: make.Spender
    events: dict[str, EventId]

    async def edit(self, statement: str, *arguments: object) -> None:
        await edit(self.app, statement, *arguments)

    async def verify(self, page: int = 1_000) -> Discrepancy | None:
        return await make.verify(self.app, self.agent, page)

    async def revisions_of(self, event: str) -> list[int]:
        rows = await self.app.database.pool.fetch(
            "SELECT revision FROM event_changes WHERE event_id = $1", self.events[event]
        )
        return [row["revision"] for row in rows]


@pytest.fixture
async def history(start: StartApp) -> History:
    clock = HandClock(datetime(2027, 4, 30, 22, tzinfo=UTC))
    app = await start(clock, solana_rpc_urls=make.NOWHERE)
    agent = await make.agent(app, vault_balance=1_000, daily_limit=300)
    beside = await make.agent(app, beside=agent)
    events = {
        "credit": await make.fund(app, agent.owner, agent.vault_id, 50, tx_hash="5" * 88),
        "arriving": await make.fund(app, agent.owner, agent.vault_id, 7, pending=True),
        "failed": await make.fund(app, agent.owner, agent.vault_id, 8, pending=True),
        "confirmed": await make.fund(app, agent.owner, agent.vault_id, 9, pending=True),
        "spent": await make.spend(app, agent, 100, metadata="{}", provider="openai", model="o3"),
        "declined": await make.spend(app, agent, 250),
        "captured": await make.hold(app, agent, 40, ttl=timedelta(days=1)),
        "released": await make.hold(app, agent, 30),
        "expired": await make.hold(app, beside, 20),
    }
    await make.fail_funding(app, agent, events["failed"])
    await make.release(app, agent, events["released"])
    clock.move(hours=3)
    await make.confirm_funding(app, agent, events["confirmed"])
    await make.capture(app, agent, events["captured"], 35)
    events |= {
        "refund": await make.refund(app, agent, events["spent"], 60),
        "spent today": await make.spend(app, agent, 10),
        "held today": await make.hold(app, agent, 15),
        "released today": await make.hold(app, beside, 5),
    }
    await make.release(app, beside, events["released today"])
    await make.allow(app, agent)
    events |= {
        "deposit": await make.deposit(app, agent.vault_id, 100, "deposit"),
        "paid": await make.spend(app, agent, 10, recipient=make.WALLET),
        "lost": await make.spend(app, agent, 20, recipient=make.WALLET),
    }
    await make.land(app, events["paid"], "payment")
    await make.lose(app, events["lost"])
    await make.stop(app, agent.vault_id, -3)
    drift = await make.stop(app, agent.vault_id, -5)
    events["acknowledged"] = await make.acknowledge(app, agent, drift)
    events["on its way"] = await make.spend(app, agent, 30, recipient=make.WALLET)
    ids = {name: event.id for name, event in events.items()}
    return History(app, agent, beside, ids)


@pytest.mark.parametrize("page", [1, 2, 3, 7, 1_000])
async def test_a_history_is_accepted_in_pages_of_any_size(history: History, page: int) -> None:
    assert await history.verify(page) is None


async def test_pages_count_what_was_verified(history: History) -> None:
    """Every change, the vault, every event, and every agent, once."""
    place: Place | None = Place()
    counted = 0
    while place is not None:
        found = await history.app.auditor.verify(
            history.agent.owner, history.agent.vault_id, place, 4
        )
        counted += found.verified
        place = found.next_place

    vault = await make.vault(history.app, history.agent)
    events = await history.app.database.pool.fetchval(
        "SELECT count(*) FROM events WHERE vault_id = $1", history.agent.vault_id
    )
    assert counted == vault.revision + 1 + events + 2


async def test_an_empty_vault_is_right(app: App) -> None:
    agent = await make.agent(app, vault_balance=0)

    assert await make.verify(app, agent) is None


async def test_a_vault_can_be_verified_while_it_is_spent_from(app: App, other: App) -> None:
    """Pages of three, read one after another while both processes go on."""
    agent = await make.agent(app, daily_limit=200)

    async def go_on(place: App) -> None:
        for number in range(40):
            held = await make.hold(place, agent, 10)
            if number % 2 and held.failure_reason is None:
                await make.capture(place, agent, held, 3)
            await make.spend(place, agent, 5)

    found, *_ = await asyncio.gather(make.verify(app, agent, 3), go_on(app), go_on(other))

    assert found is None
    assert await make.verify(app, agent) is None


async def test_a_strangers_vault_is_not_verified(app: App) -> None:
    agent, stranger = await make.agent(app), await make.agent(app)

    with pytest.raises(errors.NotFound):
        await app.auditor.verify(stranger.owner, agent.vault_id, Place(), 10)


# Every column of an event: which event, and what somebody makes of it.
EVENT_EDITS: Final = {
    "id": ("spent", "'cedited'"),
    "type": ("arriving", "'spend'"),
    "amount": ("spent", "-99"),
    "status": ("held today", "'confirmed'"),
    "tx_hash": ("credit", "'another'"),
    "metadata": ("spent", "'{ }'"),
    "vault_id": ("spent", "'celsewhere'"),
    "agent_id": ("spent", "NULL"),
    "created_at": ("spent", "created_at - interval '1 microsecond'"),
    "kind": ("spent", "'transfer'"),
    "authorized_amount": ("captured", "authorized_amount + 1"),
    "expires_at": ("captured", "expires_at + interval '1 day'"),
    "failure_reason": ("released", "'expired'"),
    "decline": ("declined", """'{"reason": "daily_limit", "limit": 1}'"""),
    "provider": ("spent", "'anthropic'"),
    "model": ("spent", "NULL"),
    "refunded_event_id": ("refund", "'celsewhere'"),
    "updated_at": ("captured", "created_at"),
    "revision": ("captured", "1"),
    "recipient": ("paid", "'another'"),
    "counterpart_event_id": ("paid", "'celsewhere'"),
}


@pytest.mark.parametrize("column", EVENT_EDITS)
async def test_an_edited_event_is_found(history: History, column: str) -> None:
    """It is named itself, or the change is whose check value covers it."""
    event, value = EVENT_EDITS[column]
    rows = {f"{history.agent.vault_id} {n}" for n in await history.revisions_of(event)}
    rows |= {history.events[event]}
    also = ", kind = 'metered', amount = -amount" if column == "type" else ""

    await history.edit(
        f"UPDATE events SET {column} = {value}{also} WHERE id = $1",  # noqa: S608
        history.events[event],
    )

    found = await history.verify()
    assert found is not None
    assert found.row in rows
    assert await history.verify(1) == found


# Every column of a change, with what somebody makes of the change of a capture.
CHANGE_EDITS: Final = {
    "vault_id": "'celsewhere'",
    "revision": "1000000",
    "event_id": "'celsewhere'",
    "previous_revision": "NULL",
    "status": "'pending'",
    "amount": "-34",
    "failure_reason": "'expired'",
    "tx_hash": "'another'",
    "balance_after": "balance_after + 1",
    "chain_balance_after": "1",
    "held_after": "held_after + 1",
    "changed_at": "changed_at + interval '1 microsecond'",
    "digest": "'another'",
}


@pytest.mark.parametrize("column", CHANGE_EDITS)
async def test_an_edited_change_is_found(history: History, column: str) -> None:
    """It is named by its number, or by the one that follows where it is gone."""
    _, revision = sorted(await history.revisions_of("captured"))

    await history.edit(
        f"UPDATE event_changes SET {column} = {CHANGE_EDITS[column]}"  # noqa: S608
        " WHERE vault_id = $1 AND revision = $2",
        history.agent.vault_id,
        revision,
    )

    found = await history.verify()
    named = revision + 1 if column in {"vault_id", "revision"} else revision
    assert found is not None
    assert (found.table, found.row) == ("event_changes", f"{history.agent.vault_id} {named}")
    assert await history.verify(1) == found


# The change in which a drift has grown, which is of no event.
DRIFT_EDITS: Final = {
    "drift": "replace(drift, 'theft', 'thief')",
    "status": "'confirmed'",
    "amount": "-4",
    "balance_after": "balance_after - 1",
    "chain_balance_after": "chain_balance_after - 1",
    "held_after": "held_after + 1",
    "changed_at": "changed_at + interval '1 microsecond'",
    "digest": "'another'",
}


@pytest.mark.parametrize("column", DRIFT_EDITS)
async def test_an_edited_drift_is_found(history: History, column: str) -> None:
    """Whoever would hide what was missing, or who took it, has to change all after it."""
    revision = await history.app.database.pool.fetchval(
        "SELECT max(revision) - 1 FROM event_changes WHERE vault_id = $1 AND drift IS NOT NULL",
        history.agent.vault_id,
    )

    await history.edit(
        f"UPDATE event_changes SET {column} = {DRIFT_EDITS[column]}"  # noqa: S608
        " WHERE vault_id = $1 AND revision = $2 AND drift IS NOT NULL",
        history.agent.vault_id,
        revision,
    )

    found = await history.verify()
    assert found is not None
    assert (found.table, found.row) == ("event_changes", f"{history.agent.vault_id} {revision}")
    assert await history.verify(1) == found


# What a vault is, and what no ledger says: its id, its owner, its address, its birth.
VAULT_EDITS: Final = {
    "balance": "balance + 1",
    "chain_balance": "1",
    "held": "held + 1",
    "revision": "revision + 1",
    "digest": "'another'",
    "last_change_at": "last_change_at - interval '1 microsecond'",
}


@pytest.mark.parametrize("column", VAULT_EDITS)
async def test_an_edited_vault_is_found(history: History, column: str) -> None:
    await history.edit(
        f"UPDATE vaults SET {column} = {VAULT_EDITS[column]} WHERE id = $1",  # noqa: S608
        history.agent.vault_id,
    )

    found = await history.verify()
    assert found is not None
    assert (found.table, found.row, found.field) == ("vaults", history.agent.vault_id, column)
    assert await history.verify(1) == found


INVENTED_DRIFT: Final = (
    """'{"id": "d", "amount": -5, "slot": 9, "found_amount": 0, "expected_amount": 5,"""
    """ "outflows": [], "created_at": "2027-05-01T00:00:00+00:00"}'"""
)


@pytest.mark.parametrize(
    ("amount", "edit"),
    [(-5, "NULL"), (-5, "replace(drift, '-5', '-4')"), (0, INVENTED_DRIFT)],
)
async def test_a_vault_that_is_let_go_or_stopped_by_hand_is_found(
    history: History, amount: int, edit: str
) -> None:
    """Nobody lifts a stop past the ledger; one that is open, or was, is right as it is."""
    await make.lose(history.app, await on_its_way(history))
    await make.stop(history.app, history.agent.vault_id, amount)
    before = await history.verify()

    await history.edit(
        f"UPDATE vaults SET drift = {edit} WHERE id = $1",  # noqa: S608
        history.agent.vault_id,
    )

    found = await history.verify()
    assert before is None
    assert found is not None
    assert (found.table, found.row, found.field) == ("vaults", history.agent.vault_id, "drift")
    assert await history.verify(1) == found


async def on_its_way(history: History) -> Event:
    """The payment that the chain has not decided about."""
    event_id = history.events["on its way"]
    return await history.app.ledger.get_event(history.agent.owner, event_id)


COUNTER_EDITS: Final = {
    ("agents", "open_holds"): "open_holds + 1",
    ("agent_budget_rules", "daily_spent"): "daily_spent - 1",
    ("agent_budget_rules", "daily_held"): "daily_held - 1",
    ("agent_budget_rules", "monthly_spent"): "monthly_spent + 1",
    ("agent_budget_rules", "monthly_held"): "monthly_held + 1",
    ("agent_budget_rules", "last_reset_at"): "last_reset_at - interval '1 day'",
}


@pytest.mark.parametrize(("table", "column"), COUNTER_EDITS)
async def test_an_edited_counter_is_found(history: History, table: str, column: str) -> None:
    """Whatever makes an agent's budget larger or smaller than its events say."""
    key = "id" if table == "agents" else "agent_id"

    await history.edit(
        f"UPDATE {table} SET {column} = {COUNTER_EDITS[table, column]} WHERE {key} = $1",  # noqa: S608
        history.agent.agent_id,
    )

    found = await history.verify()
    assert found is not None
    assert (found.table, found.row) == (table, history.agent.agent_id)
    assert await history.verify(1) == found


async def test_windows_that_lie_in_the_future_are_found(history: History) -> None:
    """An agent that has spent nothing yet: with windows that never turn it could hardly."""
    await history.edit(
        "UPDATE agent_budget_rules SET last_reset_at = '2100-01-01',"
        " daily_spent = 0, daily_held = 0, monthly_spent = 0, monthly_held = 0"
        " WHERE agent_id = $1",
        history.beside.agent_id,
    )

    found = await history.verify()

    assert found is not None
    assert (found.table, found.row, found.field) == (
        "agent_budget_rules",
        history.beside.agent_id,
        "last_reset_at",
    )


async def test_every_column_was_edited(app: App) -> None:
    """A column that is added later has to be verified, or be named here."""
    rows = await app.database.pool.fetch(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public'"
        " AND table_name IN ('events', 'event_changes', 'vaults', 'agent_budget_rules')"
    )
    columns = {(row["table_name"], row["column_name"]) for row in rows}

    edited = {("events", column) for column in EVENT_EDITS}
    edited |= {("event_changes", column) for column in (*CHANGE_EDITS, *DRIFT_EDITS)}
    edited |= {("vaults", column) for column in (*VAULT_EDITS, "drift")} | {*COUNTER_EDITS}
    said_by_no_ledger = {
        "vaults": ("id", "project_id", "address", "created_at"),
        "agent_budget_rules": (
            *("id", "agent_id", "per_tx_limit", "daily_limit", "monthly_limit"),
            *("any_recipient", "created_at", "updated_at"),
        ),
    }
    edited |= {(table, column) for table, names in said_by_no_ledger.items() for column in names}
    assert columns | {("agents", "open_holds")} == edited


@pytest.mark.parametrize("event", ["credit", "spent", "declined", "captured", "held today"])
async def test_a_deleted_event_is_found(history: History, event: str) -> None:
    """By its first change, which names nothing any more."""
    first = min(await history.revisions_of(event))

    await history.edit("DELETE FROM events WHERE id = $1", history.events[event])

    found = await history.verify()
    assert found is not None
    assert (found.table, found.row, found.field) == (
        "event_changes",
        f"{history.agent.vault_id} {first}",
        "event_id",
    )


@pytest.mark.parametrize("revision", [1, 2, 9])
async def test_a_deleted_change_is_found(history: History, revision: int) -> None:
    """By the gap that it leaves."""
    await history.edit(
        "DELETE FROM event_changes WHERE vault_id = $1 AND revision = $2",
        history.agent.vault_id,
        revision,
    )

    found = await history.verify()
    assert found is not None
    assert found.row == f"{history.agent.vault_id} {revision + 1}"
    assert (found.expected, found.found) == (str(revision), str(revision + 1))


async def test_the_last_change_is_missed_by_the_vault(history: History) -> None:
    revision = (await make.vault(history.app, history.agent)).revision

    await history.edit(
        "DELETE FROM event_changes WHERE vault_id = $1 AND revision = $2",
        history.agent.vault_id,
        revision,
    )

    found = await history.verify()
    assert found is not None
    assert (found.table, found.field) == ("vaults", "revision")


async def test_a_change_that_is_deleted_between_two_pages_is_found(history: History) -> None:
    """The page that begins behind it says that it is gone."""
    first = await history.app.auditor.verify(
        history.agent.owner, history.agent.vault_id, Place(), 5
    )
    assert first.next_place is not None

    await history.edit(
        "DELETE FROM event_changes WHERE vault_id = $1 AND revision = 5", history.agent.vault_id
    )
    second = await history.app.auditor.verify(
        history.agent.owner, history.agent.vault_id, first.next_place, 5
    )

    assert second.discrepancy is not None
    assert second.discrepancy.row == f"{history.agent.vault_id} 5"


INSERTED: Final = {
    "of no change": 1_000_000,
    "of another event's change": 1,
}


@pytest.mark.parametrize("revision", INSERTED.values(), ids=INSERTED.keys())
async def test_an_inserted_event_is_found(history: History, revision: int) -> None:
    """Made as a copy of a real one, so that only its number betrays it."""
    await history.edit(
        "INSERT INTO events (id, vault_id, agent_id, type, kind, status, amount, created_at,"
        " updated_at, revision)"
        " SELECT 'cinserted', vault_id, agent_id, type, kind, status, amount, created_at,"
        " updated_at, $2::bigint FROM events WHERE id = $1",
        history.events["spent"],
        revision,
    )

    found = await history.verify()
    await history.edit("DELETE FROM events WHERE id = 'cinserted'")
    assert found is not None
    assert (found.table, found.row, found.field) == ("events", "cinserted", "revision")


async def test_an_inserted_change_is_found(history: History) -> None:
    """Behind the last one, as the next, with the figures of the last: its check value is wrong."""
    last = (await make.vault(history.app, history.agent)).revision

    await history.edit(
        "INSERT INTO event_changes SELECT vault_id, revision + 1, event_id, revision, status,"
        " amount, failure_reason, tx_hash, balance_after, chain_balance_after, held_after,"
        " changed_at, digest FROM event_changes WHERE vault_id = $1 AND revision = $2",
        history.agent.vault_id,
        last,
    )

    found = await history.verify()
    assert found is not None
    assert (found.table, found.row) == ("event_changes", f"{history.agent.vault_id} {last + 1}")


async def test_two_edits_that_agree_with_each_other_are_found(history: History) -> None:
    """A spend made cheaper in its event, in its change, and in the vault."""
    (revision,) = await history.revisions_of("spent")
    vault_id = history.agent.vault_id

    await history.edit("UPDATE events SET amount = -1 WHERE id = $1", history.events["spent"])
    await history.edit(
        "UPDATE event_changes SET amount = -1 WHERE vault_id = $1 AND revision = $2",
        vault_id,
        revision,
    )
    await history.edit(
        "UPDATE event_changes SET balance_after = balance_after + 99"
        " WHERE vault_id = $1 AND revision >= $2",
        vault_id,
        revision,
    )
    await history.edit("UPDATE vaults SET balance = balance + 99 WHERE id = $1", vault_id)

    found = await history.verify()
    assert found is not None
    assert (found.row, found.field) == (f"{vault_id} {revision}", "digest")


async def trimmed_vault(app: App) -> make.Spender:
    """A vault with changes 1 to 4 trimmed, and 5 to 8 kept; 6 captures what 3 had held."""
    agent = await make.agent(app, vault_balance=1_000)
    await make.spend(app, agent, 10)
    held = await make.hold(app, agent, 100)
    await make.spend(app, agent, 11)
    await make.spend(app, agent, 12)
    await make.capture(app, agent, held, 60)
    await make.spend(app, agent, 13)
    await make.hold(app, agent, 14)
    assert await make.verify(app, agent) is None
    vault = trimming.Vault(agent.vault_id, 0, is_due=True)
    assert await app.trimming._trim_batch(vault, trimming.Kept(4, None)) == (4, 4)
    assert await make.verify(app, agent) is None
    return agent


# What somebody makes of a change, and which change it is.
KEPT_EDITS: Final = {
    "the amount": (7, "amount = amount - 1"),
    "the balance": (7, "balance_after = balance_after + 1"),
    "the balance of the first that is kept": (5, "balance_after = balance_after + 1"),
    "a capture's amount": (6, "amount = amount + 1"),
    "a capture's balance": (6, "balance_after = balance_after + 1"),
    "what a capture leaves held": (6, "held_after = held_after + 1"),
    "the change before a capture": (6, "previous_revision = 2"),
    "the change before a spend": (7, "previous_revision = 4"),
    "the change before, which is kept": (7, "previous_revision = 5"),
    "the check value": (8, "digest = 'another'"),
    "the time": (5, "changed_at = changed_at + interval '1 microsecond'"),
}


@pytest.mark.parametrize("what", KEPT_EDITS)
async def test_an_edit_after_the_checkpoint_is_found(app: App, what: str) -> None:
    agent = await trimmed_vault(app)
    revision, value = KEPT_EDITS[what]

    await edit(
        app,
        f"UPDATE event_changes SET {value} WHERE vault_id = $1 AND revision = $2",  # noqa: S608
        agent.vault_id,
        revision,
    )

    found = await make.verify(app, agent)
    assert found is not None
    assert (found.table, found.row) == ("event_changes", f"{agent.vault_id} {revision}")
    assert await make.verify(app, agent, 1) == found


async def test_figures_that_agree_with_each_other_are_recounted_after_the_checkpoint(
    app: App,
) -> None:
    """More given back by a capture than was held, in all that follows: its balance says so."""
    agent = await trimmed_vault(app)

    await edit(
        app,
        "UPDATE event_changes SET balance_after = balance_after + 9"
        " WHERE vault_id = $1 AND revision >= 6",
        agent.vault_id,
    )
    await edit(app, "UPDATE vaults SET balance = balance + 9 WHERE id = $1", agent.vault_id)

    found = await make.verify(app, agent)
    assert found is not None
    assert (found.row, found.field) == (f"{agent.vault_id} 6", "balance_after")


@pytest.mark.parametrize("revision", [5, 6, 7])
async def test_a_change_that_is_deleted_after_the_checkpoint_is_found(
    app: App, revision: int
) -> None:
    agent = await trimmed_vault(app)

    await edit(
        app,
        "DELETE FROM event_changes WHERE vault_id = $1 AND revision = $2",
        agent.vault_id,
        revision,
    )

    found = await make.verify(app, agent)
    assert found == Discrepancy(
        "event_changes",
        f"{agent.vault_id} {revision + 1}",
        "revision",
        str(revision),
        str(revision + 1),
    )


async def test_all_changes_deleted_up_to_the_checkpoint_of_somebody_elses_making_are_found(
    app: App,
) -> None:
    """The newest change is never trimmed, so a checkpoint that stands for it is no checkpoint."""
    agent = await trimmed_vault(app)

    await edit(app, "DELETE FROM event_changes WHERE vault_id = $1", agent.vault_id)
    await edit(
        app,
        "UPDATE change_checkpoints AS c SET revision = v.revision, balance = v.balance,"
        " held = v.held, digest = v.digest, changed_at = v.last_change_at"
        " FROM vaults AS v WHERE v.id = c.vault_id AND v.id = $1",
        agent.vault_id,
    )

    found = await make.verify(app, agent)
    assert found == Discrepancy("change_checkpoints", agent.vault_id, "revision", "below 8", "8")


async def test_a_checkpoint_with_changes_before_it_is_found(app: App) -> None:
    """Somebody has set it over changes that they edited, and that it would hide."""
    agent = await make.agent(app, vault_balance=1_000)
    for _ in range(4):
        await make.spend(app, agent, 10)

    await edit(
        app,
        "INSERT INTO change_checkpoints SELECT vault_id, revision, balance_after,"
        " chain_balance_after, held_after, digest, changed_at FROM event_changes"
        " WHERE vault_id = $1 AND revision = 3",
        agent.vault_id,
    )

    found = await make.verify(app, agent)
    assert found is not None
    assert (found.table, found.row) == ("event_changes", f"{agent.vault_id} 1")


# What somebody makes of a checkpoint. That its time is too early, only its change could say.
CHECKPOINT_EDITS: Final = {
    "vault_id": "'celsewhere'",
    "revision": "revision + 1",
    "balance": "balance + 1",
    "chain_balance": "chain_balance + 1",
    "held": "held + 1",
    "digest": "'another'",
    "changed_at": "changed_at + interval '1 day'",
}


@pytest.mark.parametrize("column", CHECKPOINT_EDITS)
async def test_an_edited_checkpoint_is_found(app: App, column: str) -> None:
    """By the first change that is kept, which does not fit to it."""
    agent = await trimmed_vault(app)

    await edit(
        app,
        f"UPDATE change_checkpoints SET {column} = {CHECKPOINT_EDITS[column]}"  # noqa: S608
        " WHERE vault_id = $1",
        agent.vault_id,
    )

    found = await make.verify(app, agent)
    assert found is not None
    assert (found.table, found.row) == ("event_changes", f"{agent.vault_id} 5")


async def test_every_column_of_a_checkpoint_was_edited(app: App) -> None:
    rows = await app.database.pool.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'change_checkpoints'"
    )

    assert {row["column_name"] for row in rows} == {*CHECKPOINT_EDITS}


async def test_an_event_is_found_whose_change_should_be_there(app: App) -> None:
    """One that is numbered up to the checkpoint may be without; any other may not."""
    agent = await trimmed_vault(app)
    statement = "UPDATE events SET revision = $2::bigint WHERE vault_id = $1 AND revision = $3"

    await edit(app, statement, agent.vault_id, 9, 2)

    found = await make.verify(app, agent)
    assert found is not None
    assert (found.table, found.field, found.found) == ("events", "revision", "9")
