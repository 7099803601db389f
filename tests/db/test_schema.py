"""The schema, looked at as the contract and the user do: table by table, rule by rule."""

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import asyncpg
import pytest

from pilot_grpc.db.connection import Connection

NOW: Final = datetime(2028, 2, 29, tzinfo=UTC)
SHA256: Final = "0" * 64

# One row of each table, in the order in which they can be written.
ROWS: Final[dict[str, dict[str, Any]]] = {
    "users": {"id": "u", "email": "u@example.com", "password_hash": "h", "name": "n"},
    "sessions": {"id": "s", "token": SHA256, "expires_at": NOW, "user_id": "u"},
    "api_keys": {
        "id": "k",
        "name": "n",
        "key_hash": SHA256,
        "key_prefix": "pk_01234",
        "permissions": ["read", "write", "execute"],
        "user_id": "u",
    },
    "sign_in_attempts": {"email_hash": SHA256, "attempts": 1, "window_started_at": NOW},
    "requests": {"user_id": "u", "request_id": "r", "rpc": "CreateProject", "fingerprint": ""},
    "projects": {"id": "p", "name": "n", "user_id": "u"},
    "vaults": {"id": "v", "address": "a", "project_id": "p"},
    "vault_keys": {
        "vault_id": "v",
        "address": "a",
        "version": 1,
        "wrapping_key_id": "w",
        "wrapped_data_key": b"d",
        "sealed_secret": b"s",
    },
    "agents": {"id": "g", "name": "n", "project_id": "p", "api_key_hash": SHA256},
    "agent_budget_rules": {
        "id": "r",
        "daily_limit": 10,
        "per_tx_limit": 10,
        "monthly_limit": 10,
        "daily_spent": 5,
        "daily_held": 5,
        "monthly_spent": 5,
        "monthly_held": 5,
        "agent_id": "g",
    },
    "events": {
        "id": "e",
        "type": "spend",
        "kind": "metered",
        "amount": -5,
        "status": "pending",
        "vault_id": "v",
        "agent_id": "g",
        "authorized_amount": 5,
        "expires_at": NOW,
        "created_at": NOW,
        "updated_at": NOW,
        "revision": 1,
    },
    "event_changes": {
        "vault_id": "v",
        "revision": 1,
        "event_id": "e",
        "status": "pending",
        "amount": -5,
        "balance_after": 0,
        "chain_balance_after": 0,
        "held_after": 0,
        "changed_at": NOW,
        "digest": b"",
    },
    "event_requests": {
        "vault_id": "v",
        "scope_id": "g",
        "request_id": "r",
        "rpc": "AuthorizeSpend",
        "fingerprint": "",
        "event_id": "e",
        "revision": 1,
        "status": "pending",
        "amount": -5,
        "answered_at": NOW,
    },
    "change_checkpoints": {
        "vault_id": "v",
        "revision": 1,
        "balance": 0,
        "chain_balance": 0,
        "held": 0,
        "digest": b"",
        "changed_at": NOW,
    },
    "stream_key": {"id": True, "secret": b"s"},
    "webhooks": {"agent_id": "g", "vault_id": "v", "cursor_revision": 1},
    "webhook_secrets": {
        "agent_id": "g",
        "id": "w",
        "version": 1,
        "wrapping_key_id": "w",
        "wrapped_data_key": b"d",
        "sealed_secret": b"s",
    },
    "agent_recipients": {"agent_id": "g", "address": "a"},
    "pending_transfers": {"event_id": "e", "vault_id": "v"},
    "transfer_signatures": {
        "signature": "s",
        "event_id": "e",
        "attempt": 1,
        "transaction": b"t",
        "blockhash": "b",
        "last_valid_block_height": 1,
        "slot": 1,
    },
    "recipient_accounts": {"address": "a", "event_id": "e"},
    "vault_transactions": {"vault_id": "v", "signature": "s", "slot": 1, "delta": -5},
    "vault_scans": {"vault_id": "v"},
}


async def insert(conn: Connection, table: str, **changes: Any) -> None:
    row = ROWS[table] | changes
    places = ", ".join(f"${number + 1}" for number in range(len(row)))
    await conn.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})",  # noqa: S608
        *row.values(),
    )


async def insert_all(conn: Connection) -> None:
    for table in ROWS:
        await insert(conn, table)


class Column(NamedTuple):
    """What the contract says of a column."""

    type: str
    null: bool = False
    default: str | None = None


TEXT: Final = Column("text")
NULL_TEXT: Final = Column("text", null=True)
AMOUNT: Final = Column("bigint")
COUNTER: Final = Column("bigint", default="0")
TIME: Final = Column("timestamp with time zone")
NULL_TIME: Final = Column("timestamp with time zone", null=True)

# The contract's table, line by line.
REQUIRED: Final[dict[str, dict[str, Column]]] = {
    "users": {
        **dict.fromkeys(("id", "email", "password_hash", "name"), TEXT),
        "avatar": NULL_TEXT,
    },
    "sessions": {**dict.fromkeys(("id", "token", "user_id"), TEXT), "expires_at": TIME},
    "api_keys": {
        **dict.fromkeys(("id", "name", "key_hash", "key_prefix", "user_id"), TEXT),
        "last_used_at": NULL_TIME,
        "expires_at": NULL_TIME,
        "permissions": Column("text[]"),
        "request_count": COUNTER,
    },
    "projects": {
        **dict.fromkeys(("id", "name", "user_id"), TEXT),
        "description": NULL_TEXT,
        "status": Column("text", default="'active'::text"),
    },
    "vaults": {**dict.fromkeys(("id", "address", "project_id"), TEXT), "balance": COUNTER},
    "agents": {
        **dict.fromkeys(("id", "name", "project_id"), TEXT),
        **dict.fromkeys(("provider", "model", "api_key_hash", "webhook_url"), NULL_TEXT),
        "status": Column("text", default="'needs_setup'::text"),
    },
    "agent_budget_rules": {
        **dict.fromkeys(("id", "agent_id"), TEXT),
        **dict.fromkeys(("daily_limit", "per_tx_limit"), AMOUNT),
        "monthly_limit": Column("bigint", null=True),
        **dict.fromkeys(("daily_spent", "monthly_spent"), COUNTER),
        "last_reset_at": TIME._replace(default="clock_timestamp()"),
    },
    "events": {
        **dict.fromkeys(("id", "type", "status", "vault_id"), TEXT),
        "amount": AMOUNT,
        **dict.fromkeys(("tx_hash", "metadata", "agent_id"), NULL_TEXT),
        "created_at": TIME,
    },
}

COLUMNS: Final = """
SELECT attrelid::regclass::text AS table, attname AS name,
       format_type(atttypid, atttypmod) AS type, NOT attnotnull AS null,
       pg_get_expr(adbin, adrelid) AS default
  FROM pg_attribute
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
 WHERE attrelid = ANY ($1::regclass[])
   AND attnum > 0
   AND NOT attisdropped
"""


async def test_every_required_table_has_its_columns(conn: Connection) -> None:
    """Name, type, whether it may be null, and its default."""
    rows = await conn.fetch(COLUMNS, list(REQUIRED))

    found = {
        (row["table"], row["name"]): Column(row["type"], row["null"], row["default"])
        for row in rows
    }
    wanted = {
        (t, name): column for t, columns in REQUIRED.items() for name, column in columns.items()
    }
    assert {key: found.get(key) for key in wanted} == wanted


async def test_every_time_is_a_timestamptz_and_every_amount_a_bigint(conn: Connection) -> None:
    """In every table there is; times that we set have no default that could hide a mistake."""
    rows = await conn.fetch(COLUMNS, list(ROWS))

    for row in rows:
        if row["name"].endswith("_at"):
            assert row["type"] == "timestamp with time zone", row
        if row["name"].endswith(("_limit", "_spent", "_held", "_after", "balance", "amount")):
            assert row["type"] == "bigint", row


REQUIRED_INDEXES: Final = [
    ("events", "(vault_id, created_at)"),
    ("events", "(agent_id, created_at)"),
    ("events", "(type, created_at)"),
]


@pytest.mark.parametrize(("table", "columns"), REQUIRED_INDEXES)
async def test_every_required_index_is_there(conn: Connection, table: str, columns: str) -> None:
    definitions = await conn.fetch("SELECT indexdef FROM pg_indexes WHERE tablename = $1", table)

    assert any(row["indexdef"].endswith(f"USING btree {columns}") for row in definitions)


async def test_every_foreign_key_cascades_and_has_an_index(conn: Connection) -> None:
    """Without one, a cascade would read the whole table for each row."""
    rows = await conn.fetch(
        "SELECT conrelid::regclass::text AS table, confdeltype::text AS on_delete,"
        " (SELECT attname::text FROM pg_attribute"
        "   WHERE attrelid = conrelid AND attnum = conkey[1]) AS column,"
        " EXISTS (SELECT FROM pg_index WHERE indrelid = conrelid AND indkey[0] = conkey[1])"
        "     AS indexed"
        " FROM pg_constraint WHERE contype = 'f'"
    )

    assert {(row["on_delete"], row["indexed"]) for row in rows} == {("c", True)}
    assert {(row["table"], row["column"]) for row in rows} == {
        ("sessions", "user_id"),
        ("api_keys", "user_id"),
        ("requests", "user_id"),
        ("projects", "user_id"),
        ("vaults", "project_id"),
        ("agents", "project_id"),
        ("agent_budget_rules", "agent_id"),
        ("events", "vault_id"),
        ("events", "agent_id"),
        ("events", "refunded_event_id"),
        ("event_changes", "vault_id"),
        ("event_requests", "vault_id"),
        ("change_checkpoints", "vault_id"),
        ("webhooks", "agent_id"),
        ("webhook_secrets", "agent_id"),
        ("agent_recipients", "agent_id"),
        ("pending_transfers", "event_id"),
        ("transfer_signatures", "event_id"),
        ("vault_transactions", "vault_id"),
        ("vault_scans", "vault_id"),
    }


OF_AN_EVENT: Final = {"events", "pending_transfers", "transfer_signatures"}
OF_AN_AGENT: Final = {
    *("agents", "agent_budget_rules", "agent_recipients", "webhooks", "webhook_secrets"),
    *OF_AN_EVENT,
}
OF_A_VAULT: Final = {
    *("vaults", "event_changes", "event_requests", "change_checkpoints"),
    *("vault_transactions", "vault_scans", *OF_AN_EVENT),
}
OF_A_PROJECT: Final = {"projects", *OF_A_VAULT, *OF_AN_AGENT}
CASCADES: Final = {
    "users": {"users", "sessions", "api_keys", "requests", *OF_A_PROJECT},
    "projects": OF_A_PROJECT,
    "vaults": OF_A_VAULT,
    "agents": OF_AN_AGENT,
    "sessions": {"sessions"},
    "events": OF_AN_EVENT,
}


@pytest.mark.parametrize("table", CASCADES)
async def test_a_deleted_row_takes_all_that_hangs_on_it(conn: Connection, table: str) -> None:
    """And nothing else: sealed keys, sign-in attempts and accounts that were paid for stay."""
    await insert_all(conn)

    await conn.execute(f"DELETE FROM {table}")  # noqa: S608

    gone = {
        each
        for each in ROWS
        if not await conn.fetchval(f"SELECT count(*) FROM {each}")  # noqa: S608
    }
    assert gone == CASCADES[table]


async def test_a_deleted_spend_takes_its_refunds(conn: Connection) -> None:
    await insert_all(conn)
    refund = {"type": "funding", "kind": "refund", "amount": 5, "status": "confirmed"}
    no_hold = {"authorized_amount": None, "expires_at": None}
    await insert(conn, "events", id="f", refunded_event_id="e", **refund, **no_hold)

    await conn.execute("DELETE FROM events WHERE id = 'e'")

    assert await conn.fetchval("SELECT count(*) FROM events") == 0


# A funding event, made of the hold that ROWS has.
FUNDING: Final = {
    "type": "funding",
    "kind": "credit",
    "amount": 5,
    "authorized_amount": None,
    "expires_at": None,
}

# What each rule of the database refuses: the table, and what is wrong with its row.
REFUSED: Final[list[tuple[str, str, dict[str, Any]]]] = [
    ("users_email_is_lower_case", "users", {"email": "U@example.com"}),
    ("users_email_key", "users", {"id": "u2"}),
    ("users_pkey", "users", {"email": "u2@example.com"}),
    ("sessions_token_is_sha256", "sessions", {"token": "ps_the_token_itself"}),
    ("sessions_token_is_sha256", "sessions", {"token": "A" * 64}),
    ("sessions_token_key", "sessions", {"id": "s2"}),
    ("sessions_pkey", "sessions", {"token": "1" * 64}),
    ("sessions_user_id_fkey", "sessions", {"id": "s2", "token": "1" * 64, "user_id": "?"}),
    ("api_keys_key_hash_is_sha256", "api_keys", {"key_hash": "pk_the_key_itself"}),
    ("api_keys_key_prefix_is_8_characters", "api_keys", {"key_prefix": "pk_0123"}),
    ("api_keys_permissions_are_known", "api_keys", {"permissions": ["admin"]}),
    ("api_keys_permissions_are_known", "api_keys", {"permissions": []}),
    ("api_keys_request_count_is_not_negative", "api_keys", {"request_count": -1}),
    ("api_keys_key_hash_key", "api_keys", {"id": "k2"}),
    ("api_keys_pkey", "api_keys", {"key_hash": "1" * 64}),
    ("api_keys_user_id_fkey", "api_keys", {"id": "k2", "key_hash": "1" * 64, "user_id": "?"}),
    ("sign_in_attempts_attempts_are_positive", "sign_in_attempts", {"attempts": 0}),
    ("sign_in_attempts_pkey", "sign_in_attempts", {}),
    ("requests_pkey", "requests", {}),
    ("requests_user_id_fkey", "requests", {"user_id": "?"}),
    ("projects_status_is_known", "projects", {"status": "deleted"}),
    ("projects_pkey", "projects", {}),
    ("projects_user_id_fkey", "projects", {"id": "p3", "user_id": "?"}),
    ("vaults_balance_is_not_negative", "vaults", {"balance": -1}),
    ("vaults_chain_balance_is_not_negative", "vaults", {"chain_balance": -1}),
    ("vaults_held_is_not_negative", "vaults", {"held": -1}),
    ("vaults_revision_is_not_negative", "vaults", {"revision": -1}),
    ("vaults_address_key", "vaults", {"id": "v2", "project_id": "p2"}),
    ("vaults_project_id_key", "vaults", {"id": "v2", "address": "a2"}),
    ("vaults_pkey", "vaults", {"address": "a2", "project_id": "p2"}),
    ("vaults_project_id_fkey", "vaults", {"id": "v2", "address": "a2", "project_id": "?"}),
    ("vault_keys_pkey", "vault_keys", {"address": "a2"}),
    ("vault_keys_address_key", "vault_keys", {"vault_id": "v2"}),
    ("change_checkpoints_pkey", "change_checkpoints", {}),
    ("change_checkpoints_revision_is_positive", "change_checkpoints", {"revision": 0}),
    ("change_checkpoints_vault_id_fkey", "change_checkpoints", {"vault_id": "?"}),
    ("stream_key_pkey", "stream_key", {}),
    ("stream_key_is_one_row", "stream_key", {"id": False}),
    ("agents_status_is_known", "agents", {"status": "deleted"}),
    ("agents_open_holds_is_not_negative", "agents", {"open_holds": -1}),
    ("agents_deleted_has_no_key", "agents", {"deleted_at": NOW}),
    ("agents_api_key_hash_is_sha256", "agents", {"api_key_hash": "pa_the_key_itself"}),
    ("agents_api_key_hash_key", "agents", {"id": "g3"}),
    ("agents_pkey", "agents", {"api_key_hash": None}),
    ("agents_project_id_fkey", "agents", {"id": "g3", "api_key_hash": None, "project_id": "?"}),
    ("agent_budget_rules_daily_limit_is_positive", "agent_budget_rules", {"daily_limit": 0}),
    ("agent_budget_rules_per_tx_limit_is_positive", "agent_budget_rules", {"per_tx_limit": 0}),
    ("agent_budget_rules_monthly_limit_is_positive", "agent_budget_rules", {"monthly_limit": 0}),
    ("agent_budget_rules_held_is_not_negative", "agent_budget_rules", {"daily_held": -1}),
    ("agent_budget_rules_held_is_not_negative", "agent_budget_rules", {"monthly_held": -1}),
    ("agent_budget_rules_spent_covers_held", "agent_budget_rules", {"daily_spent": 4}),
    (
        "agent_budget_rules_spent_covers_held",
        "agent_budget_rules",
        {"daily_spent": 0, "daily_held": 0, "monthly_spent": 4},
    ),
    ("agent_budget_rules_month_covers_day", "agent_budget_rules", {"daily_spent": 6}),
    ("agent_budget_rules_pkey", "agent_budget_rules", {"agent_id": "g2"}),
    ("agent_budget_rules_agent_id_key", "agent_budget_rules", {"id": "r2"}),
    ("agent_budget_rules_agent_id_fkey", "agent_budget_rules", {"id": "r2", "agent_id": "?"}),
    ("events_kind_fits_type", "events", {"kind": "credit"}),
    ("events_kind_fits_type", "events", FUNDING | {"kind": "metered"}),
    ("events_kind_fits_type", "events", {"kind": "gift"}),
    ("events_status_is_known", "events", {"status": "unknown"}),
    ("events_amount_has_the_sign_of_its_type", "events", {"amount": 5}),
    ("events_amount_has_the_sign_of_its_type", "events", {"amount": 0}),
    ("events_amount_has_the_sign_of_its_type", "events", FUNDING | {"amount": -5}),
    ("events_amount_is_bounded", "events", FUNDING | {"amount": 10**15 + 1}),
    ("events_capture_fits_hold", "events", {"amount": -6}),
    ("events_hold_expires", "events", {"expires_at": None}),
    ("events_hold_expires", "events", {"authorized_amount": None}),
    ("events_failure_has_a_reason", "events", {"status": "failed"}),
    ("events_failure_has_a_reason", "events", {"failure_reason": "expired"}),
    ("events_refund_names_its_spend", "events", {"refunded_event_id": "e"}),
    ("events_refund_names_its_spend", "events", FUNDING | {"kind": "refund"}),
    ("events_metadata_is_bounded", "events", {"metadata": "é" * 8_193}),
    ("events_recipient_is_paid_on_chain", "events", {"recipient": "a"}),
    ("events_recipient_is_paid_on_chain", "events", FUNDING | {"recipient": "a"}),
    ("events_revision_is_positive", "events", {"revision": 0}),
    ("events_pkey", "events", {}),
    ("events_vault_id_fkey", "events", {"id": "e2", "vault_id": "?"}),
    ("events_agent_id_fkey", "events", {"id": "e2", "agent_id": "?"}),
    (
        "events_refunded_event_id_fkey",
        "events",
        FUNDING | {"id": "e2", "kind": "refund", "refunded_event_id": "?"},
    ),
    ("event_changes_revision_is_positive", "event_changes", {"revision": 0}),
    ("event_changes_previous_revision_is_before", "event_changes", {"previous_revision": 1}),
    ("event_changes_balance_is_not_negative", "event_changes", {"balance_after": -1}),
    ("event_changes_chain_balance_is_not_negative", "event_changes", {"chain_balance_after": -1}),
    ("event_changes_held_is_not_negative", "event_changes", {"held_after": -1}),
    ("event_changes_status_is_known", "event_changes", {"status": "unknown"}),
    ("event_changes_is_of_one_thing", "event_changes", {"drift": "{}"}),
    ("event_changes_is_of_one_thing", "event_changes", {"event_id": None}),
    (
        "event_changes_drift_is_bounded",
        "event_changes",
        {"event_id": None, "drift": "é" * 32_768 + "d"},
    ),
    ("event_changes_pkey", "event_changes", {}),
    ("event_changes_vault_id_fkey", "event_changes", {"vault_id": "?"}),
    ("event_requests_pkey", "event_requests", {}),
    ("event_requests_vault_id_fkey", "event_requests", {"vault_id": "?"}),
    ("webhooks_cursor_revision_is_not_negative", "webhooks", {"cursor_revision": -1}),
    ("webhooks_failing_has_a_beginning", "webhooks", {"attempts": 1}),
    ("webhooks_failing_has_a_beginning", "webhooks", {"failing_since": NOW}),
    ("webhooks_last_error_has_a_time", "webhooks", {"last_error": "e"}),
    (
        "webhooks_last_error_is_bounded",
        "webhooks",
        {"last_error": "e" * 501, "last_error_at": NOW},
    ),
    ("webhooks_pkey", "webhooks", {}),
    ("webhooks_agent_id_fkey", "webhooks", {"agent_id": "?"}),
    ("webhook_secrets_pkey", "webhook_secrets", {"expires_at": NOW}),
    ("webhook_secrets_current_key", "webhook_secrets", {"id": "x"}),
    ("webhook_secrets_agent_id_fkey", "webhook_secrets", {"agent_id": "?"}),
    ("agent_recipients_pkey", "agent_recipients", {"label": "another"}),
    ("agent_recipients_agent_id_fkey", "agent_recipients", {"agent_id": "?"}),
    ("pending_transfers_pkey", "pending_transfers", {"attempt": 2}),
    ("pending_transfers_attempt_is_positive", "pending_transfers", {"attempt": 0}),
    ("pending_transfers_event_id_fkey", "pending_transfers", {"event_id": "?"}),
    ("transfer_signatures_pkey", "transfer_signatures", {"attempt": 2}),
    ("transfer_signatures_event_id_attempt_key", "transfer_signatures", {"signature": "s2"}),
    (
        "transfer_signatures_event_id_fkey",
        "transfer_signatures",
        {"signature": "s2", "event_id": "?"},
    ),
    ("recipient_accounts_pkey", "recipient_accounts", {"event_id": "another"}),
    ("vault_transactions_pkey", "vault_transactions", {"delta": 5}),
    ("vault_transactions_slot_is_not_negative", "vault_transactions", {"slot": -1}),
    ("vault_transactions_vault_id_fkey", "vault_transactions", {"vault_id": "?"}),
    ("vault_scans_pkey", "vault_scans", {}),
    ("vault_scans_scanned_slot_is_not_negative", "vault_scans", {"scanned_slot": -1}),
    ("vault_scans_vault_id_fkey", "vault_scans", {"vault_id": "?"}),
    ("vault_scans_acknowledged_as_a_whole", "vault_scans", {"acknowledged_slot": 1}),
]


@pytest.mark.parametrize(
    ("constraint", "table", "wrong"),
    REFUSED,
    ids=[f"{name}-{number}" for number, (name, _, _) in enumerate(REFUSED)],
)
async def test_each_rule_refuses_a_row_that_breaks_it(
    conn: Connection, constraint: str, table: str, wrong: dict[str, Any]
) -> None:
    """By its name, so that code can tell which it was."""
    await insert_all(conn)
    await insert(conn, "projects", id="p2")
    await insert(conn, "agents", id="g2", api_key_hash=None)

    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refusal:
        await insert(conn, table, **wrong)

    assert getattr(refusal.value, "constraint_name", None) == constraint


async def test_every_rule_of_the_database_was_broken_once(conn: Connection) -> None:
    """A constraint that is added later has to be broken here, too."""
    rows = await conn.fetch(
        "SELECT conname FROM pg_constraint"
        " WHERE contype IN ('c', 'f', 'p', 'u') AND connamespace = 'public'::regnamespace"
        " AND conrelid <> 'schema_migrations'::regclass"
    )

    indexes = {"webhook_secrets_current_key"}
    broken = {name for name, _, _ in REFUSED} - indexes | {"events_type_is_known"}
    assert {row["conname"] for row in rows} == broken


async def test_an_unknown_type_is_refused_by_a_rule_of_its_own(conn: Connection) -> None:
    """Not only by those about its kind and its sign, which speak up before."""
    await insert_all(conn)
    await conn.execute(
        "ALTER TABLE events DROP CONSTRAINT events_kind_fits_type,"
        " DROP CONSTRAINT events_amount_has_the_sign_of_its_type"
    )

    with pytest.raises(asyncpg.CheckViolationError) as refusal:
        await insert(conn, "events", id="e2", type="gift")

    assert getattr(refusal.value, "constraint_name", None) == "events_type_is_known"


async def test_a_signature_is_credited_once_and_spent_once(conn: Connection) -> None:
    """Per vault and type; events without one are as many as there are."""
    await insert_all(conn)
    credit = FUNDING | {"status": "confirmed", "tx_hash": "s"}
    await insert(conn, "events", **credit, id="e2")
    await insert(conn, "events", id="e3", tx_hash="s")
    await insert(conn, "events", id="e4")

    with pytest.raises(asyncpg.UniqueViolationError) as refusal:
        await insert(conn, "events", **credit, id="e5")

    assert getattr(refusal.value, "constraint_name", None) == "events_tx_hash_key"


async def test_a_capture_may_be_all_of_a_hold_and_an_amount_all_that_is_allowed(
    conn: Connection,
) -> None:
    """What stands exactly at a limit is accepted."""
    await insert_all(conn)

    await insert(conn, "events", id="e2", status="confirmed", amount=-5)
    await insert(conn, "events", id="e3", amount=-(10**15), authorized_amount=10**15)
    await insert(conn, "events", id="e4", metadata="é" * 8_192)
    await insert(conn, "event_changes", revision=2, event_id=None, drift="é" * 32_768)

    assert await conn.fetchval("SELECT count(*) FROM events") == 4
    assert await conn.fetchval("SELECT count(*) FROM event_changes") == 2


@pytest.mark.parametrize("kind", ["transfer", "withdrawal", "settlement"])
async def test_what_pays_a_wallet_names_it(conn: Connection, kind: str) -> None:
    """Each kind that leaves the vault on chain; acknowledged drifts name none."""
    await insert_all(conn)
    no_hold = {"authorized_amount": None, "expires_at": None}

    await insert(conn, "events", id="e2", kind=kind, recipient="a", **no_hold)
    await insert(conn, "events", id="e3", kind=kind, **no_hold)

    assert await conn.fetchval("SELECT count(*) FROM events WHERE kind = $1", kind) == 2
