"""Changing the wrapping key: every seal comes under the new one, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from pilot_grpc.bootstrap import AIRDROP_LAMPORTS, App
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db import webhooks as webhooks_db
from pilot_grpc.db.connection import Connection, Database
from pilot_grpc.domain.ids import AgentId, VaultId
from pilot_grpc.domain.ledger import Event, EventStatus
from pilot_grpc.sealing import Sealer
from pilot_grpc.services import keys as keys_service
from pilot_grpc.services.chain import FEE_PAYER
from pilot_grpc.services.keys import SHELVES, Keys, Update
from pilot_grpc.services.webhooks import Signer
from pilot_grpc.settings import WrappingKey
from pilot_grpc.solana import localnet
from pilot_grpc.solana.custody import Custody, SealedKey
from pilot_grpc.solana.localnet import Localnet
from tests import make
from tests.conftest import Server
from tests.processes import first_run

OLD: Final = make.WRAPPING_KEY
NEW: Final = WrappingKey(id="2026-12", secret=bytes(range(1, 33)))
ROTATED: Final = Sealer(NEW, (OLD,))
DAY: Final = timedelta(days=1)

ALL_VAULT_SEALS: Final = """
SELECT vault_id, address, version, wrapping_key_id, wrapped_data_key, sealed_secret
  FROM vault_keys
 ORDER BY vault_id
"""
ALL_WEBHOOK_SEALS: Final = """
SELECT agent_id, id, version, wrapping_key_id, wrapped_data_key, sealed_secret
  FROM webhook_secrets
 ORDER BY agent_id, id
"""


async def keep(db: Database, key: SealedKey) -> None:
    """Store a key without a vault, as that of a deleted project."""
    async with db.transaction() as conn:
        await vaults_db.insert_vault_key(
            conn,
            VaultId(key.vault_id),
            key.address,
            key.version,
            key.wrapping_key_id,
            key.wrapped_data_key,
            key.sealed_secret,
        )


async def keep_many(db: Database, count: int, wrapping: WrappingKey = OLD) -> None:
    custody = Custody(Sealer(wrapping))
    for number in range(count):
        await keep(db, custody.create(f"vault-{wrapping.id}-{number:05}"))


async def vault_seals(pool: asyncpg.Pool[Any]) -> list[SealedKey]:
    return [SealedKey(**row) for row in await pool.fetch(ALL_VAULT_SEALS)]


def opens(sealer: Sealer, keys: Collection[SealedKey]) -> bool:
    """Whether each signs for its address."""
    custody = Custody(sealer)
    return all(
        Signature.from_bytes(custody.sign(key, b"m")).verify(Pubkey.from_string(key.address), b"m")
        for key in keys
    )


async def webhook_signatures(db: Database, sealer: Sealer, agent_id: AgentId) -> int:
    """How many secrets of an agent sign with these wrapping keys."""
    async with db.transaction() as conn:
        stored = (await webhooks_db.select_secrets(conn, [agent_id]))[agent_id]
    signer = Signer(sealer, agent_id, stored)
    return len(signer.sign("id", datetime(2031, 1, 1, tzinfo=UTC), "{}").split())


def tampered(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


async def break_seal(db: Database, vault_id: str) -> None:
    async with db.transaction() as conn:
        value = await conn.fetchval(
            "SELECT sealed_secret FROM vault_keys WHERE vault_id = $1", vault_id
        )
        await conn.execute(
            "UPDATE vault_keys SET sealed_secret = $2 WHERE vault_id = $1",
            vault_id,
            tampered(value),
        )


# --- what changes, and what does not --------------------------------------------------


async def test_every_seal_comes_under_the_new_key_and_nothing_else_changes(
    database: str, db: Database, server: Server
) -> None:
    """Vaults and webhook secrets, rotated ones included; then the old key is not needed."""
    async with make.app(database, database_pooler=server.pooler) as app:
        agents = [await make.agent(app) for _ in range(3)]
        for agent in agents:
            await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
        await app.webhooks.issue_secret(agents[0].owner, agents[0].agent_id, DAY)
    before = await vault_seals(db.pool), await db.pool.fetch(ALL_WEBHOOK_SEALS)
    dump = await everything_else(db)

    tallies = await Keys(db, ROTATED, batch_max=2).rewrap()

    after = await vault_seals(db.pool), await db.pool.fetch(ALL_WEBHOOK_SEALS)
    assert [(t.kind, t.rewrapped, t.current, t.broken) for t in tallies] == [
        ("vault key", 3, 0, 0),
        ("webhook secret", 4, 0, 0),
    ]
    assert [replace(new, wrapping_key_id=OLD.id, wrapped_data_key=b"") for new in after[0]] == [
        replace(old, wrapped_data_key=b"") for old in before[0]
    ]
    assert [(row["id"], row["sealed_secret"]) for row in after[1]] == [
        (row["id"], row["sealed_secret"]) for row in before[1]
    ]
    assert {key.wrapping_key_id for key in after[0]} == {NEW.id}
    assert opens(Sealer(NEW), after[0])
    assert await webhook_signatures(db, Sealer(NEW), agents[0].agent_id) == 2
    assert await webhook_signatures(db, Sealer(OLD), agents[0].agent_id) == 0
    assert await everything_else(db) == dump
    again = await Keys(db, Sealer(NEW)).rewrap()
    assert [(t.rewrapped, t.current, t.broken) for t in again] == [(0, 3, 0), (0, 4, 0)]


async def everything_else(db: Database) -> list[Any]:
    async with db.transaction() as conn:
        return [
            await conn.fetch("SELECT * FROM vaults ORDER BY id"),
            await conn.fetch("SELECT * FROM webhooks ORDER BY agent_id"),
            await conn.fetch("SELECT agent_id, id, expires_at FROM webhook_secrets ORDER BY id"),
        ]


async def test_a_server_opens_what_older_keys_sealed(
    database: str, db: Database, server: Server
) -> None:
    """Before anything is re-wrapped, and while it is; what it seals is under the new key."""
    async with make.app(database, database_pooler=server.pooler) as app:
        agent = await make.agent(app)
        await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
    (old,) = await vault_seals(db.pool)

    async with make.app(
        database, database_pooler=server.pooler, wrapping_key=NEW, old_wrapping_keys=(OLD,)
    ) as rotated:
        signatures = [signature_of(rotated, old)]
        assert await webhook_signatures(db, rotated.webhooks._sealer, agent.agent_id) == 1
        await make.project(rotated)
        await Keys(db, ROTATED).rewrap()
        signatures += [signature_of(rotated, key) for key in await vault_seals(db.pool)]
        assert await webhook_signatures(db, rotated.webhooks._sealer, agent.agent_id) == 1

    assert len(signatures) == 3
    assert {key.wrapping_key_id for key in await vault_seals(db.pool)} == {NEW.id}


def signature_of(app: App, key: SealedKey) -> bytes:
    return app.projects.custody.sign(key, b"message")


async def test_secrets_that_have_expired_are_left_alone(
    database: str, db: Database, server: Server
) -> None:
    """Nobody will ever ask for them, so whether they open is nobody's business."""
    async with make.app(database, database_pooler=server.pooler) as app:
        agent = await make.agent(app)
        for _ in range(2):
            await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
    async with db.transaction() as conn:
        await conn.execute(
            "UPDATE webhook_secrets SET expires_at = clock_timestamp() WHERE expires_at IS NOT NULL"
        )

    _, webhooks = await Keys(db, ROTATED).rewrap()
    counts = await Keys(db, ROTATED).count()

    assert (webhooks.rewrapped, webhooks.current, webhooks.broken) == (1, 0, 0)
    assert [(each.wrapping_key_id, each.vaults, each.webhooks) for each in counts] == [
        (NEW.id, 1, 1)
    ]
    stored = await db.pool.fetch(ALL_WEBHOOK_SEALS)
    assert sorted(row["wrapping_key_id"] for row in stored) == [NEW.id, OLD.id]


# --- what does not open ---------------------------------------------------------------


async def test_a_seal_that_was_changed_stays_and_is_reported(db: Database) -> None:
    """The others are re-wrapped, and again and again it is told which ones do not open."""
    await keep_many(db, 6)
    for vault_id in ("vault-test-00001", "vault-test-00002"):
        await break_seal(db, vault_id)
    before = await vault_seals(db.pool)

    for rewrapped, current in ((4, 0), (0, 4)):
        vaults, _ = await Keys(db, ROTATED, batch_max=2).rewrap()
        assert (vaults.rewrapped, vaults.current, vaults.broken) == (rewrapped, current, 2)
        assert [text.partition(" was")[0] for text in vaults.broken_named] == [
            "vault key of vault-test-00001: the seal",
            "vault key of vault-test-00002: the seal",
        ]

    after = await vault_seals(db.pool)
    assert after[1:3] == before[1:3]
    assert opens(Sealer(NEW), [after[0], *after[3:]])


async def test_with_a_wrong_old_key_nothing_changes_until_the_right_one_is_given(
    db: Database,
) -> None:
    """The right id and other bytes; or none of that id, which is named."""
    await keep_many(db, 3)
    before = await vault_seals(db.pool)

    wrong, _ = await Keys(db, Sealer(NEW, (replace(OLD, secret=bytes(32)),))).rewrap()
    without, _ = await Keys(db, Sealer(NEW)).rewrap()
    unchanged = await vault_seals(db.pool) == before
    right, _ = await Keys(db, ROTATED).rewrap()

    assert (wrong.rewrapped, wrong.broken) == (without.rewrapped, without.broken) == (0, 3)
    assert "the wrapping key 'test' is not configured" in without.broken_named[0]
    assert unchanged
    assert (right.rewrapped, right.broken) == (3, 0)


async def test_a_key_that_was_changed_and_not_its_id_is_found_out(db: Database) -> None:
    """All seems to be current, and nothing opens."""
    await keep_many(db, 3)

    vaults, _ = await Keys(db, Sealer(replace(OLD, secret=bytes(32)))).rewrap()

    assert (vaults.rewrapped, vaults.current, vaults.broken) == (0, 0, 3)


async def test_of_many_that_do_not_open_some_are_named(db: Database) -> None:
    await keep_many(db, 25)

    vaults, _ = await Keys(db, Sealer(NEW)).rewrap()

    assert (vaults.broken, len(vaults.broken_named)) == (25, 20)


# --- meanwhile ------------------------------------------------------------------------


def before_each_update(
    monkeypatch: pytest.MonkeyPatch, update: Callable[..., Awaitable[int]]
) -> None:
    """Let something happen between the reading of seals and the writing of new ones."""
    shelves = [replace(shelf, update=partial(update, shelf.update)) for shelf in SHELVES]
    monkeypatch.setattr(keys_service, "SHELVES", shelves)


async def test_several_at_once_share_the_work(db: Database) -> None:
    """Each seal is counted once, and opens."""
    await keep_many(db, 101)
    workers = [Keys(db, ROTATED, batch_max=size) for size in (7, 11, 13)]

    results = await asyncio.gather(*(worker.rewrap() for worker in workers))

    assert sum(vaults.rewrapped for vaults, _ in results) == 101
    assert [vaults.broken for vaults, _ in results] == [0, 0, 0]
    assert [vaults.rewrapped + vaults.current for vaults, _ in results] == [101, 101, 101]
    assert opens(Sealer(NEW), await vault_seals(db.pool))


@pytest.mark.parametrize("kind", ["vaults", "webhooks"])
async def test_what_somebody_else_has_written_since_it_was_read_stays(
    database: str, db: Database, server: Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Even by a rewrap to another key: the last word has who found what it had read."""
    third = WrappingKey(id="2027-01", secret=bytes(range(2, 34)))
    async with make.app(database, database_pooler=server.pooler) as app:
        agent = await make.agent(app)
        await app.webhooks.issue_secret(agent.owner, agent.agent_id, DAY)
    written = []

    async def update(really: Update, conn: Connection, key_id: str, seals: Any) -> int:
        monkeypatch.undo()
        await Keys(db, Sealer(third, (OLD,))).rewrap()
        written.append(await really(conn, key_id, seals))
        return written[-1]

    before_each_update(monkeypatch, update)
    if kind == "webhooks":
        async with db.transaction() as conn:
            await conn.execute("DELETE FROM vault_keys")
    tallies = await Keys(db, ROTATED).rewrap()

    assert written == [0]
    rows = [*await db.pool.fetch(ALL_VAULT_SEALS), *await db.pool.fetch(ALL_WEBHOOK_SEALS)]
    assert {row["wrapping_key_id"] for row in rows} == {third.id}
    assert [(tally.rewrapped, tally.broken) for tally in tallies] == [
        (0, int(kind == "vaults")),
        (0, 1),
    ]
    assert "'2027-01' is not configured" in tallies[1].broken_named[0]


async def test_what_is_sealed_meanwhile_is_found_too(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has not heard of the new key makes vaults before and behind the place."""
    await keep_many(db, 6)
    late = [Custody(Sealer(OLD)).create(vault_id) for vault_id in ("a", "vault-test-00002x", "z")]

    async def update(really: Update, conn: Connection, key_id: str, seals: Any) -> int:
        if late and len(seals) == 2:
            await keep(db, late.pop())
        return await really(conn, key_id, seals)

    before_each_update(monkeypatch, update)
    vaults, _ = await Keys(db, ROTATED, batch_max=2).rewrap()

    keys = await vault_seals(db.pool)
    assert late == []
    assert (vaults.rewrapped, vaults.current, vaults.broken) == (9, 0, 0)
    assert {key.wrapping_key_id for key in keys} == {NEW.id}
    assert opens(Sealer(NEW), keys)


async def test_a_server_that_never_stops_sealing_with_the_old_key_is_told_of(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends all the same."""
    await keep_many(db, 1)

    async def update(really: Update, conn: Connection, key_id: str, seals: Any) -> int:
        await keep(db, Custody(Sealer(OLD)).create(f"a{len(await vault_seals(db.pool))}"))
        return await really(conn, key_id, seals)

    before_each_update(monkeypatch, update)
    vaults, webhooks = await Keys(db, ROTATED).rewrap()

    assert (vaults.rewrapped, vaults.broken, vaults.is_whole) == (20, 0, False)
    assert webhooks.is_whole


# --- the command ----------------------------------------------------------------------


def environ(database: str, server: Server, old: Sequence[WrappingKey]) -> dict[str, str]:
    def text(key: WrappingKey) -> str:
        return base64.b64encode(key.secret).decode()

    return {
        "PATH": os.defpath,
        "DATABASE_URL": database,
        "PILOT_DATABASE_POOLER": str(server.pooler).lower(),
        "PILOT_WRAPPING_KEY": text(NEW),
        "PILOT_WRAPPING_KEY_ID": NEW.id,
        "PILOT_OLD_WRAPPING_KEYS": ",".join(f"{key.id}={text(key)}" for key in old),
        "PILOT_LOG_LEVEL": "debug",
    }


async def pilot_keys(
    command: str, database: str, server: Server, *old: WrappingKey, **more: str
) -> tuple[int | None, str, str]:
    """Run `pilot keys ...`; its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pilot_grpc", "keys", command),
        env=environ(database, server, old) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, complaints = await process.communicate()
    return process.returncode, printed.decode(), complaints.decode()


async def test_the_commands_say_what_they_did(database: str, db: Database, server: Server) -> None:
    """Status before, rewrap, status after; the exit codes are for scripts."""
    await keep_many(db, 3)
    await break_seal(db, "vault-test-00001")

    unknown = await pilot_keys("status", database, server)
    known = await pilot_keys("status", database, server, OLD)
    broken = await pilot_keys("rewrap", database, server, OLD)
    async with db.transaction() as conn:
        await conn.execute("DELETE FROM vault_keys WHERE vault_id = 'vault-test-00001'")
    whole = await pilot_keys("rewrap", database, server, OLD)
    done = await pilot_keys("status", database, server, OLD)

    assert unknown[:2] == (
        1,
        (
            "2026-12 (current): vault keys 0, webhook secrets 0\n"
            "test (not configured): vault keys 3, webhook secrets 0\n"
        ),
    )
    assert known[:2] == (
        0,
        (
            "2026-12 (current): vault keys 0, webhook secrets 0\n"
            "test (old): vault keys 3, webhook secrets 0\n"
        ),
    )
    assert broken[:2] == (
        1,
        (
            "vault keys: 2 re-wrapped, 0 already under 2026-12, 1 cannot be opened\n"
            "webhook secrets: 0 re-wrapped, 0 already under 2026-12, 0 cannot be opened\n"
        ),
    )
    assert "  vault key of vault-test-00001: the seal was changed" in broken[2]
    assert whole[:2] == (
        0,
        (
            "vault keys: 0 re-wrapped, 2 already under 2026-12, 0 cannot be opened\n"
            "webhook secrets: 0 re-wrapped, 0 already under 2026-12, 0 cannot be opened\n"
        ),
    )
    assert done[:2] == (
        0,
        (
            "2026-12 (current): vault keys 2, webhook secrets 0\n"
            "test (old): vault keys 0, webhook secrets 0\n"
        ),
    )


async def test_one_that_is_killed_halfway_is_run_again(
    database: str, db: Database, server: Server
) -> None:
    """It is stopped in its third batch by a row that is locked, and there it dies."""
    await keep_many(db, 1_000)
    async with db.transaction() as conn:
        await conn.execute("SELECT FROM vault_keys WHERE vault_id = 'vault-test-00500' FOR UPDATE")
        command = [sys.executable, "-m", "pilot_grpc", "keys", "rewrap"]
        process = await asyncio.create_subprocess_exec(
            *command, env=environ(database, server, [OLD])
        )
        while await count_new(db) < 400:
            assert process.returncode is None
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    halfway = await count_new(db)

    code, printed, _ = await pilot_keys("rewrap", database, server, OLD)

    assert halfway == 400
    assert (code, printed.splitlines()[0]) == (
        0,
        "vault keys: 600 re-wrapped, 400 already under 2026-12, 0 cannot be opened",
    )
    assert opens(Sealer(NEW), await vault_seals(db.pool))


async def count_new(db: Database) -> int:
    async with db.transaction() as conn:
        count: int = await conn.fetchval(
            "SELECT count(*) FROM vault_keys WHERE wrapping_key_id = $1", NEW.id
        )
        return count


async def test_without_migrations_or_a_database_the_commands_say_so(
    empty_database: str, server: Server
) -> None:
    empty = await pilot_keys("rewrap", empty_database, server, OLD)
    away = await pilot_keys("status", "postgresql://u:hunter2@127.0.0.1:1/x", server, OLD)

    assert empty[0] == away[0] == 1
    assert "run `pilot db migrate` first" in empty[2]
    for _, _, complaints in (empty, away):
        assert "Traceback" not in complaints
        assert "hunter2" not in complaints


async def test_on_the_embedded_database_there_is_one_key(home: Path) -> None:
    def pilot(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pilot_grpc", *arguments],
            env={"PATH": os.defpath, "PILOT_DATA_DIR": str(home / "data")},
            capture_output=True,
            text=True,
            check=False,
        )

    assert pilot("db", "migrate").returncode == 0
    assert pilot("db", "seed").returncode == 0
    status, rewrap = pilot("keys", "status"), pilot("keys", "rewrap")

    assert (status.returncode, rewrap.returncode) == (0, 0), status.stderr + rewrap.stderr
    assert status.stdout == "development (current): vault keys 1, webhook secrets 0\n"
    assert rewrap.stdout.startswith("vault keys: 0 re-wrapped, 1 already under development, 0 ")


async def test_seals_are_counted_by_the_key_that_made_them(db: Database) -> None:
    await keep_many(db, 2)
    await keep_many(db, 1, NEW)

    counts = await Keys(db, ROTATED).count()

    assert [(each.wrapping_key_id, each.vaults) for each in counts] == [(NEW.id, 1), (OLD.id, 2)]


async def test_the_fee_payer_is_the_one_that_servers_have_and_what_it_has_is_told(
    database: str, server: Server
) -> None:
    """Whoever asks first makes it, so that it can be given SOL before anything is paid."""
    async with localnet.running(None, manual=True) as net:
        more = {"PILOT_SOLANA_RPC_URLS": net.url}
        code, printed, _ = await pilot_keys("fee-payer", database, server, OLD, **more)
        address, lamports = printed.splitlines()
        net.airdrop(Pubkey.from_string(address), 5_000_000)
        net.finalize()
        async with make.app(
            database, database_pooler=server.pooler, wrapping_key=NEW, solana_rpc_urls=(net.url,)
        ) as app:
            assert app.settlement is not None
            assert app.settlement.transfers._signers.fee_payer.address == address
        again = await pilot_keys("fee-payer", database, server, OLD, **more)

    assert (code, lamports) == (0, "0 lamports")
    assert again[:2] == (0, f"{address}\n5000000 lamports\n")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "no chain answers, so nobody knows what it has\n"),
        ({"PILOT_SOLANA_RPC_URLS": "http://127.0.0.1:1/hunter2"}, "what it has is not known: "),
    ],
    ids=["none", "away"],
)
async def test_the_fee_payer_is_told_without_a_chain(
    database: str, server: Server, more: dict[str, str], told: str
) -> None:
    more = more | {"PILOT_LOG_LEVEL": "error"}

    code, printed, complaints = await pilot_keys("fee-payer", database, server, OLD, **more)

    assert code == 0
    assert Pubkey.from_string(printed.removesuffix("\n")).is_on_curve()
    assert complaints.startswith(told)
    assert "hunter2" not in complaints


@pytest.mark.full
def test_the_fee_payer_of_a_first_run_was_given_sol(home: Path) -> None:
    with first_run(home):
        told = subprocess.run(
            [sys.executable, "-m", "pilot_grpc", "keys", "fee-payer"],
            env={"PATH": os.defpath, "PILOT_DATA_DIR": str(home / "data")},
            capture_output=True,
            text=True,
            check=False,
        )

    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.endswith(f"\n{AIRDROP_LAMPORTS} lamports\n")


# --- the keys that pay ----------------------------------------------------------------

FRIEND: Final = str(Keypair.from_seed(bytes(31) + b"f").pubkey())
POLL: Final = timedelta(milliseconds=20)


def paying(
    database: str, server: Server, net: Localnet, *keys: WrappingKey
) -> AbstractAsyncContextManager[App]:
    """A server that works on the chain; the first of the wrapping keys is its current one."""
    return make.app(
        database,
        duties=True,
        database_pooler=server.pooler,
        wrapping_key=keys[0],
        old_wrapping_keys=keys[1:],
        solana_rpc_urls=(net.url,),
        solana_poll=POLL,
    )


async def spender_on_chain(app: App, net: Localnet) -> make.Spender:
    """An agent that may pay a friend, with USDC in the vault."""
    spender = await make.agent(app, vault_balance=0)
    vault = await make.vault(app, spender)
    net.faucet(Pubkey.from_string(vault.address), 1_000)
    await app.agents.add_recipient(spender.owner, spender.agent_id, FRIEND, None)
    while not (await make.vault(app, spender)).chain_balance:  # noqa: ASYNC110 - nobody signals
        await asyncio.sleep(0.02)
    return spender


async def status_of(app: App, spender: make.Spender, event: Event) -> EventStatus:
    return (await app.ledger.get_event(spender.owner, event.id)).status


async def paid(app: App, spender: make.Spender, event: Event) -> bool:
    """Wait until the chain has decided about a payment."""
    while (status := await status_of(app, spender, event)) is EventStatus.PENDING:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return status is EventStatus.CONFIRMED


async def test_the_fee_payers_key_is_rewrapped_and_servers_sign_before_meanwhile_and_after(
    database: str, db: Database, server: Server
) -> None:
    """It is counted among the vaults' keys; in the end the old key is needed by nobody."""
    async with localnet.running(None, slot_ms=20, finalized_slots=4) as net:
        async with paying(database, server, net, OLD) as app:
            spender = await spender_on_chain(app, net)
        async with paying(database, server, net, NEW, OLD) as app:
            before = await pilot_keys("status", database, server, OLD)
            rewrap = asyncio.create_task(pilot_keys("rewrap", database, server, OLD))
            events = []
            while not rewrap.done():
                events.append(await make.spend(app, spender, 1, recipient=FRIEND))
                assert await paid(app, spender, events[-1])
            events.append(await make.spend(app, spender, 1, recipient=FRIEND))
            assert await paid(app, spender, events[-1])
        assert (await rewrap)[1].startswith("vault keys: 2 re-wrapped, 0 already under 2026-12, 0 ")
        async with paying(database, server, net, NEW) as app:
            after = await make.spend(app, spender, 1, recipient=FRIEND)
            assert await paid(app, spender, after)
            assert await make.verify(app, spender) is None

    assert before[1] == (
        "2026-12 (current): vault keys 0, webhook secrets 0\n"
        "test (old): vault keys 2, webhook secrets 0\n"
    )
    assert len(events) > 2
    keys = await vault_seals(db.pool)
    assert {key.vault_id for key in keys} == {spender.vault_id, FEE_PAYER}
    assert opens(Sealer(NEW), keys)


async def test_payments_wait_for_a_wrapping_key_that_was_taken_away_too_early(
    database: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the key; once all is re-wrapped the same server pays, each payment once."""
    async with localnet.running(None, slot_ms=20, finalized_slots=4) as net:
        async with paying(database, server, net, OLD) as app:
            spender = await spender_on_chain(app, net)
        async with paying(database, server, net, NEW) as app:
            event = await make.spend(app, spender, 10, recipient=FRIEND)
            while f"payment {event.id} waits" not in caplog.text:  # noqa: ASYNC110 - a log
                await asyncio.sleep(0.02)
            waiting = await status_of(app, spender, event), await make.vault(app, spender)
            code, _, _ = await pilot_keys("rewrap", database, server, OLD)
            assert await paid(app, spender, event)
            vault = await make.vault(app, spender)
            found = await app.vaults.reconcile(spender.owner, spender.vault_id)

    assert "the wrapping key 'test' is not configured" in caplog.text
    assert (waiting[0], waiting[1].chain_balance) == (EventStatus.PENDING, 990)
    assert code == 0
    assert (vault.chain_balance, found.found_amount, found.drift) == (990, 990, None)
