"""The plans of the statements that every spend waits for, on tables that are full."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest

from pilot_grpc.database_url import connect_arguments, with_database
from pilot_grpc.db import (
    accounts,
    agents,
    budgets,
    connection,
    deposits,
    ledger,
    projects,
    recount,
    stream,
    transfers,
    trimming,
    vaults,
)
from pilot_grpc.domain.accounts import CredentialKind
from tests.conftest import Server

NOW: Final = datetime(2028, 2, 29, 12, tzinfo=UTC)
DAY: Final = timedelta(days=1)
HASH: Final = f"{7:064}"

# Two thousand vaults with two agents each, and forty thousand events, half of them in one vault.
# Of a hundred events four are open holds, one is a refund, and one has a signature. Ten thousand
# payments were made, a thousand are on their way, and forty thousand transactions were looked at.
FILL: Final = """
INSERT INTO users (id, email, password_hash, name)
SELECT 'u' || n, 'u' || n, '', '' FROM generate_series(1, 2000) AS n;
INSERT INTO sessions (id, token, expires_at, user_id)
SELECT 's' || n, lpad(n::text, 64, '0'), now() + interval '1 day', 'u' || n
  FROM generate_series(1, 2000) AS n;
INSERT INTO api_keys (id, name, key_hash, key_prefix, permissions, user_id)
SELECT 'k' || n, '', lpad(n::text, 64, '0'), 'pk_01234', '{read}', 'u' || n
  FROM generate_series(1, 2000) AS n;
INSERT INTO projects (id, name, user_id)
SELECT 'p' || n, '', 'u' || n FROM generate_series(1, 2000) AS n;
INSERT INTO vaults (id, address, project_id)
SELECT 'v' || n, 'a' || n, 'p' || n FROM generate_series(1, 2000) AS n;
INSERT INTO agents (id, name, project_id, api_key_hash)
SELECT 'g' || n, '', 'p' || (n + 1) / 2, lpad(n::text, 64, '0')
  FROM generate_series(1, 4000) AS n;
INSERT INTO agent_budget_rules (id, daily_limit, per_tx_limit, agent_id)
SELECT 'r' || n, 1, 1, 'g' || n FROM generate_series(1, 4000) AS n;
INSERT INTO events (
    id, type, kind, amount, status, vault_id, agent_id, authorized_amount, expires_at,
    refunded_event_id, tx_hash, created_at, updated_at, revision
)
SELECT 'e' || n, CASE WHEN n % 100 = 1 THEN 'funding' ELSE 'spend' END,
       CASE WHEN n % 100 = 1 THEN 'refund' ELSE 'metered' END,
       CASE WHEN n % 100 = 1 THEN 1 ELSE -1 END,
       CASE WHEN n % 50 IN (2, 25) THEN 'pending' ELSE 'confirmed' END,
       'v' || v, 'g' || 2 * v, CASE WHEN n % 50 IN (2, 25) THEN 1 END,
       CASE WHEN n % 50 IN (2, 25) THEN timestamptz '2028-03-01' + n * interval '1 minute' END,
       CASE WHEN n % 100 = 1 AND n > 1 THEN 'e' || n - 1 ELSE CASE WHEN n = 1 THEN 'e1' END END,
       CASE WHEN n % 100 = 3 THEN 'x' || n END,
       timestamptz '2028-02-29' - n * interval '1 minute',
       timestamptz '2028-02-29', n
  FROM generate_series(1, 40000) AS n,
       LATERAL (SELECT CASE WHEN n % 2 = 0 THEN 1 ELSE n % 2000 + 1 END AS v) AS spread;
INSERT INTO event_changes (
    vault_id, revision, event_id, status, amount, balance_after, chain_balance_after, held_after,
    changed_at, digest
)
SELECT vault_id, revision, id, status, amount, 0, 0, 0, created_at, '' FROM events;
INSERT INTO event_requests (
    vault_id, scope_id, request_id, rpc, fingerprint, event_id, revision, status, amount,
    answered_at
)
SELECT vault_id, agent_id, 'q' || id, '', '', id, revision, status, amount, created_at
  FROM events;
INSERT INTO change_checkpoints (
    vault_id, revision, balance, chain_balance, held, digest, changed_at
)
SELECT id, 1, 0, 0, 0, '', created_at FROM vaults;
INSERT INTO agent_recipients (agent_id, address)
SELECT 'g' || g, 'w' || w
  FROM generate_series(1, 1000) AS g, generate_series(1, 20) AS w;
INSERT INTO events (
    id, type, kind, amount, status, vault_id, agent_id, recipient, created_at, updated_at, revision
)
SELECT 't' || n, 'spend', 'transfer', -1,
       CASE WHEN n <= 1000 THEN 'pending' ELSE 'confirmed' END,
       'v' || v, 'g' || 2 * v, 'w' || n, timestamptz '2028-01-29' - n * interval '1 minute',
       timestamptz '2028-02-29', 40000 + n
  FROM generate_series(1, 10000) AS n,
       LATERAL (SELECT n % 2000 + 1 AS v) AS spread;
INSERT INTO pending_transfers (event_id, vault_id, signature)
SELECT id, vault_id, 'x' || id FROM events WHERE kind = 'transfer' AND status = 'pending';
INSERT INTO transfer_signatures (
    signature, event_id, attempt, transaction, blockhash, last_valid_block_height, slot
)
SELECT 'x' || id, id, 1, '', '', 1, 1 FROM events WHERE kind = 'transfer';
INSERT INTO recipient_accounts (address, event_id, created_at)
SELECT 'w' || n, 't' || n, now() - n * interval '1 hour' FROM generate_series(1, 10000) AS n;
INSERT INTO vault_transactions (vault_id, signature, slot, delta, event_id)
SELECT 'v' || v, 'y' || n, n, -1, CASE WHEN n % 100 > 0 THEN 'e' || n END
  FROM generate_series(1, 40000) AS n,
       LATERAL (SELECT CASE WHEN n % 2 = 0 THEN 1 ELSE n % 2000 + 1 END AS v) AS spread;
INSERT INTO vault_scans (vault_id, next_watch_at, next_reconcile_at)
SELECT 'v' || n, now() - n * interval '1 second', now() - n * interval '1 minute'
  FROM generate_series(1, 2000) AS n;
ANALYZE;
"""


@pytest.fixture(scope="module")
def full(server: Server, template: str) -> Iterator[str]:
    """The URL of a database with much in it."""

    async def fill(url: str) -> None:
        conn = await asyncpg.connect(**connect_arguments(url))
        await conn.execute(FILL)
        await conn.close()

    with asyncio.Runner() as runner:
        creation = server.new_database(template)
        name = runner.run(creation.__aenter__())
        runner.run(fill(with_database(server.direct_url, name)))
        yield with_database(server.url, name)
        runner.run(creation.__aexit__(None, None, None))


ONE: Final = (["v1"], [0], [0], [0], [1], [b""], [NOW], [None])
# As many as a stream of all of a user's vaults can have behind it.
VAULTS: Final = [f"v{n}" for n in range(1, 101)]
NO_FILTER: Final = (None, None, None, None, None)

# Each statement, what it is asked, and the indexes that must answer.
HOT: Final[dict[str, tuple[str, tuple[Any, ...], set[str]]]] = {
    "lock vaults": (vaults.LOCK_VAULTS, (["v1", "v7"],), {"vaults_pkey"}),
    "lock free vaults": (vaults.LOCK_FREE_VAULTS, (["v1", "v7"],), {"vaults_pkey"}),
    "lock a project's vault": (
        vaults.LOCK_VAULT_OF_PROJECT,
        ("p7",),
        {"vaults_project_id_key"},
    ),
    "write vaults": (vaults.UPDATE_VAULTS, ONE, {"vaults_pkey"}),
    "read spenders": (
        agents.SELECT_SPENDERS,
        (["g2", "g7"],),
        {
            *("agents_pkey", "projects_pkey", "vaults_project_id_key"),
            "agent_budget_rules_agent_id_key",
        },
    ),
    "read homes": (
        agents.SELECT_HOMES,
        (["g2", "g7"],),
        {"agents_pkey", "projects_pkey", "vaults_project_id_key"},
    ),
    "write open holds": (agents.UPDATE_OPEN_HOLDS, (["g2"], [1]), {"agents_pkey"}),
    "write counters": (
        budgets.UPDATE_COUNTERS,
        (["g2"], [0], [0], [0], [0], [NOW]),
        {"agent_budget_rules_agent_id_key"},
    ),
    "count windows anew": (
        budgets.RECOUNT_WINDOWS,
        ("g2", NOW - DAY, NOW - 2 * DAY, NOW),
        {"events_agent_id_created_at_idx"},
    ),
    "find answers": (
        ledger.SELECT_ANSWERS,
        (["v1", "v1"], ["g2", "g2"], ["qe2", "new"]),
        {"event_requests_pkey", "events_pkey"},
    ),
    "read events": (ledger.SELECT_EVENTS_BY_ID, (["e1", "e2"],), {"events_pkey"}),
    "write events": (
        ledger.UPDATE_EVENTS,
        (["e2"], ["confirmed"], [-1], [None], [None], [NOW], [1]),
        {"events_pkey"},
    ),
    "find overdue holds": (
        ledger.SELECT_OVERDUE_HOLDS,
        (["v26", "v76"], NOW + DAY, 1_000),
        {"events_open_holds_of_vault_idx", "events_pkey"},
    ),
    "find an agent's open holds": (
        ledger.SELECT_OPEN_HOLDS_OF_AGENT,
        ("v26", "g52"),
        {"events_open_holds_of_vault_idx"},
    ),
    "find vaults to sweep": (
        ledger.SELECT_VAULTS_WITH_OVERDUE_HOLDS,
        (100,),
        {"events_open_holds_idx"},
    ),
    "sum refunds": (ledger.SELECT_REFUNDED, (["e2"],), {"events_refunded_event_id_idx"}),
    "find signatures": (
        ledger.SELECT_TX_HASHES,
        (["v1", "v7"], ["x103"]),
        {"events_tx_hash_key"},
    ),
    "find an event's home": (
        ledger.SELECT_EVENT_HOME,
        ("e2",),
        {"events_pkey", "vaults_pkey", "projects_pkey"},
    ),
    "list a user's events": (
        ledger.SELECT_EVENTS,
        ("u1", None, None, *NO_FILTER, None, None, 51),
        {
            *("projects_user_id_idx", "vaults_project_id_key", "events_pkey"),
            "events_vault_id_created_at_idx",
        },
    ),
    "list a vault's events further": (
        ledger.SELECT_EVENTS,
        ("u1", "v1", None, *NO_FILTER[:3], NOW - 20 * DAY, None, NOW - 9 * DAY, "e9", 51),
        {
            *("projects_user_id_idx", "vaults_pkey", "events_pkey"),
            "events_vault_id_created_at_idx",
        },
    ),
    "verify changes": (recount.SELECT_CHANGES_AFTER, ("v1", 100, 50), {"event_changes_pkey"}),
    "find changes": (recount.SELECT_CHANGES_AT, ("v1", [2, 4]), {"event_changes_pkey"}),
    "find the last drift": (recount.SELECT_LAST_DRIFT, ("v1",), {"event_changes_drift_idx"}),
    "verify events": (
        recount.SELECT_EVENTS_AFTER,
        ("v1", NOW - 9 * DAY, "e9", 50),
        {"events_vault_id_created_at_idx"},
    ),
    "see how far vaults are": (stream.SELECT_HEADS, (VAULTS[:5],), {"vaults_pkey"}),
    "see how far a user's vaults are": (
        stream.SELECT_HEADS_OF_USERS,
        (["u2", "u7"],),
        {"projects_user_id_idx", "vaults_project_id_key"},
    ),
    "read what is new of many vaults": (
        stream.SELECT_UPDATES,
        (VAULTS, [19_000] * len(VAULTS), 500),
        {"event_changes_pkey", "events_pkey"},
    ),
    "read a page of one vault": (
        stream.SELECT_UPDATES,
        (["v1"], [0], 500),
        {"event_changes_pkey", "events_pkey"},
    ),
    "read check values": (
        stream.SELECT_DIGESTS,
        (VAULTS, [19_000] * len(VAULTS)),
        {"event_changes_pkey"},
    ),
    "which credentials still work": (
        accounts.SELECT_VALID_HASHES,
        ([f"{n:064}" for n in range(20)],),
        {"sessions_token_key", "api_keys_key_hash_key", "agents_api_key_hash_key"},
    ),
    "find what the trimmed changes left": (
        recount.SELECT_CHECKPOINT,
        ("v7",),
        {"change_checkpoints_pkey"},
    ),
    "find vaults to trim": (
        trimming.SELECT_VAULTS,
        ("v1", 10, NOW - 9 * DAY, 10),
        {"vaults_pkey", "change_checkpoints_pkey", "event_changes_pkey"},
    ),
    "find what is to be trimmed": (
        trimming.UPSERT_CHECKPOINT,
        ("v1", 100, 10, NOW - 9 * DAY, 1_000),
        {"vaults_pkey", "event_changes_pkey"},
    ),
    "trim": (trimming.DELETE_CHANGES, ("v1", 100, 1_100), {"event_changes_pkey"}),
    "count what is pending": (projects.COUNT_PENDING, ("v26",), {"events_pending_idx"}),
    "who has a session": (
        accounts._SELECT_CALLER[CredentialKind.SESSION],
        (HASH,),
        {"sessions_token_key"},
    ),
    "who has an API key": (
        accounts._SELECT_CALLER[CredentialKind.API_KEY],
        (HASH,),
        {"api_keys_key_hash_key"},
    ),
    "which agent has a key": (
        accounts._SELECT_CALLER[CredentialKind.AGENT_KEY],
        (HASH,),
        {"agents_api_key_hash_key", "projects_pkey", "vaults_project_id_key"},
    ),
    "who may be paid": (
        agents.SELECT_LISTED,
        (["g2", "g7"], ["w2", "stranger"]),
        {"agent_recipients_pkey"},
    ),
    "list recipients": (agents.SELECT_RECIPIENTS, ("g2", "w3", 51), {"agent_recipients_pkey"}),
    "which recipients are vaults": (
        vaults.SELECT_VAULT_IDS,
        (["a7", "stranger"],),
        {"vaults_address_key"},
    ),
    "go on with payments": (
        transfers.SELECT_TRANSFERS,
        (["t1", "t2"], "worker"),
        {
            *("pending_transfers_pkey", "events_pkey", "vaults_pkey"),
            *("transfer_signatures_pkey", "agent_recipients_pkey"),
        },
    ),
    "keep payments": (
        transfers.RENEW,
        (["t1", "t2"], "worker", DAY),
        {"pending_transfers_pkey"},
    ),
    "put a payment off": (transfers.POSTPONE, ("t1", "worker", DAY), {"pending_transfers_pkey"}),
    "keep payments from being signed": (
        transfers.LOCK_SIGNATURES,
        (["t1", "t2"],),
        {"pending_transfers_pkey"},
    ),
    "sign a payment": (
        transfers.INSERT_SIGNATURE,
        ("t1", 1, "z", b"", "", 1, 1),
        {"pending_transfers_pkey", "vaults_pkey"},
    ),
    "sign anew": (
        transfers.BEGIN_NEXT_ATTEMPT,
        ("t1", "xt1"),
        {"pending_transfers_pkey"},
    ),
    "forget payments": (transfers.DELETE_PENDING, (["t1"],), {"pending_transfers_pkey"}),
    "whose payments these are": (
        transfers.SELECT_SIGNED,
        (["xt1", "xt5000", "stranger"],),
        {"transfer_signatures_pkey", "events_pkey"},
    ),
    "make an account": (
        transfers.INSERT_ACCOUNT,
        ("new", "t1", 100),
        {"recipient_accounts_created_at_idx"},
    ),
    # More turns than these of two thousand vaults are had sooner by reading all of them.
    "take turns to look": (
        deposits.TAKE_WATCHES,
        (DAY, 5),
        {"vault_scans_next_watch_at_idx", "vault_scans_pkey", "vaults_pkey"},
    ),
    "take turns to reconcile": (
        deposits.TAKE_RECONCILIATIONS,
        (DAY, 5),
        {"vault_scans_next_reconcile_at_idx", "vault_scans_pkey", "vaults_pkey"},
    ),
    "how far a history was read": (
        deposits.SELECT_WATCH,
        ("v7",),
        {"vault_scans_pkey", "vaults_pkey"},
    ),
    "note how far it was read": (
        deposits.UPDATE_SCAN,
        ("v7", 1, 1, DAY),
        {"vault_scans_pkey"},
    ),
    "what was looked at": (
        deposits.SELECT_KNOWN,
        ("v1", [f"y{n}" for n in range(0, 2_000, 20)]),
        {"vault_transactions_pkey"},
    ),
    "what must be on chain": (
        deposits.SELECT_EXPECTED,
        ("v1", 39_900),
        {"vaults_pkey", "events_pending_idx", "vault_transactions_vault_id_slot_idx"},
    ),
    "what somebody took": (
        deposits.SELECT_OUTFLOWS,
        ("v1", 39_900, 100),
        {"vault_transactions_foreign_idx"},
    ),
    "which deposits are pending": (
        deposits.SELECT_PENDING_DEPOSITS,
        ("v7",),
        {"events_pending_idx"},
    ),
}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


async def planned(
    url: str, server: Server, statement: str, *arguments: Any
) -> list[dict[str, Any]]:
    """The nodes of a statement's plan, made as in the transactions that it runs in."""
    conn = await asyncpg.connect(**connect_arguments(url, pooler=server.pooler))
    try:
        await conn.execute(connection.BEGIN)
        explained = await conn.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
        await conn.execute("ROLLBACK")
    finally:
        await conn.close()
    ((plan,),) = ([each["Plan"] for each in json.loads(explained)],)
    return list(nodes(plan))


@pytest.mark.parametrize("hot", HOT)
async def test_a_hot_statement_is_answered_by_its_indexes(
    full: str, server: Server, hot: str
) -> None:
    """No table is read whole, in the transaction that it runs in."""
    statement, arguments, indexes = HOT[hot]

    plan = await planned(full, server, statement, *arguments)

    used = {node["Index Name"] for node in plan if "Index Name" in node}
    read_whole = {n["Relation Name"] for n in plan if n["Node Type"] == "Seq Scan"}
    assert read_whole == set()
    assert used == indexes


async def test_a_claim_reads_what_is_on_its_way_and_nothing_else(full: str, server: Server) -> None:
    """That table is read whole, because it is small and changes all the time."""
    plan = await planned(full, server, transfers.CLAIM, "worker", DAY, 100)

    assert {n["Relation Name"] for n in plan if "Relation Name" in n} == {"pending_transfers"}
