"""The statements of users, sessions, API keys, and of remembered Create requests."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Final

from pilot_grpc.db.connection import Connection, Record
from pilot_grpc.domain.accounts import (
    ApiKey,
    Caller,
    CredentialKind,
    Permission,
    Session,
    User,
)
from pilot_grpc.domain.ids import ApiKeyId, SessionId, UserId

USERS_EMAIL_KEY: Final = "users_email_key"

INSERT_USER: Final = """
INSERT INTO users (id, email, password_hash, name, avatar)
VALUES ($1::text, $2::text, $3::text, $4::text, $5::text)
RETURNING id, email, name, avatar, created_at, password_hash
"""

SELECT_USER: Final = """
SELECT id, email, name, avatar, created_at, password_hash
  FROM users
 WHERE id = $1::text
"""

# Taken before a count, so that two requests cannot both fill the last place.
LOCK_USER: Final = """
SELECT id
  FROM users
 WHERE id = $1::text
   FOR NO KEY UPDATE
"""

SELECT_USER_BY_EMAIL: Final = """
SELECT id, email, name, avatar, created_at, password_hash
  FROM users
 WHERE email = $1::text
"""

UPDATE_USER: Final = """
UPDATE users
   SET password_hash = $2::text
 WHERE id = $1::text
"""

# A window that is over begins anew with this attempt.
COUNT_SIGN_IN_ATTEMPT: Final = """
INSERT INTO sign_in_attempts AS known (email_hash, attempts, window_started_at)
VALUES ($1::text, 1, clock_timestamp())
    ON CONFLICT (email_hash) DO UPDATE
   SET attempts = CASE WHEN known.window_started_at + $2::interval <= clock_timestamp()
                       THEN 1 ELSE known.attempts + 1 END,
       window_started_at = CASE WHEN known.window_started_at + $2::interval <= clock_timestamp()
                                THEN clock_timestamp() ELSE known.window_started_at END
RETURNING attempts,
          extract(epoch FROM window_started_at + $2::interval - clock_timestamp())::float8
              AS seconds_left
"""

DELETE_SIGN_IN_ATTEMPTS: Final = """
DELETE FROM sign_in_attempts
 WHERE email_hash = $1::text
"""

DELETE_OLD_SIGN_IN_ATTEMPTS: Final = """
DELETE FROM sign_in_attempts
 WHERE window_started_at < (SELECT clock_timestamp()) - $1::interval
"""

INSERT_SESSION: Final = """
INSERT INTO sessions (id, token, user_id, expires_at)
VALUES ($1::text, $2::text, $3::text, clock_timestamp() + $4::interval)
RETURNING id, user_id, expires_at, created_at
"""

SELECT_SESSION: Final = """
SELECT id, user_id, expires_at, created_at
  FROM sessions
 WHERE id = $1::text
   AND user_id = $2::text
"""

SELECT_SESSIONS: Final = """
SELECT id, user_id, expires_at, created_at
  FROM sessions
 WHERE user_id = $1::text
   AND expires_at > clock_timestamp()
   AND ($2::timestamptz IS NULL OR (created_at, id) < ($2::timestamptz, $3::text))
 ORDER BY created_at DESC, id DESC
 LIMIT $4::integer
"""

DELETE_SESSION: Final = """
DELETE FROM sessions
 WHERE id = $1::text
   AND user_id = $2::text
RETURNING id
"""

DELETE_OTHER_SESSIONS: Final = """
DELETE FROM sessions
 WHERE user_id = $1::text
   AND id <> $2::text
"""

DELETE_EXPIRED_SESSIONS: Final = """
DELETE FROM sessions
 WHERE expires_at < (SELECT clock_timestamp()) - interval '1 day'
"""

INSERT_API_KEY: Final = """
INSERT INTO api_keys (id, name, key_hash, key_prefix, permissions, expires_at, user_id)
VALUES ($1::text, $2::text, $3::text, $4::text, $5::text[], $6::timestamptz, $7::text)
RETURNING id, name, key_prefix, permissions, request_count, last_used_at, expires_at,
          created_at
"""

COUNT_API_KEYS: Final = """
SELECT count(*)
  FROM api_keys
 WHERE user_id = $1::text
"""

SELECT_API_KEY: Final = """
SELECT id, name, key_prefix, permissions, request_count, last_used_at, expires_at,
       created_at
  FROM api_keys
 WHERE id = $1::text
   AND user_id = $2::text
"""

SELECT_API_KEYS: Final = """
SELECT id, name, key_prefix, permissions, request_count, last_used_at, expires_at,
       created_at
  FROM api_keys
 WHERE user_id = $1::text
   AND ($2::timestamptz IS NULL OR (created_at, id) < ($2::timestamptz, $3::text))
 ORDER BY created_at DESC, id DESC
 LIMIT $4::integer
"""

DELETE_API_KEY: Final = """
DELETE FROM api_keys
 WHERE id = $1::text
   AND user_id = $2::text
RETURNING id
"""

# Rows are taken in the order of their ids, so that two processes do not deadlock.
COUNT_API_KEY_USES: Final = """
UPDATE api_keys
   SET request_count = api_keys.request_count + used.count,
       last_used_at = greatest(api_keys.last_used_at, clock_timestamp())
  FROM (
           SELECT api_keys.id, asked.count
             FROM unnest($1::text[], $2::bigint[]) AS asked (id, count)
             JOIN api_keys ON api_keys.id = asked.id
            ORDER BY api_keys.id
              FOR NO KEY UPDATE OF api_keys
       ) AS used
 WHERE api_keys.id = used.id
"""

SELECT_SESSION_CALLER: Final = """
SELECT id AS credential_id, user_id
  FROM sessions
 WHERE token = $1::text
   AND expires_at > clock_timestamp()
"""

SELECT_API_KEY_CALLER: Final = """
SELECT id AS credential_id, user_id, permissions
  FROM api_keys
 WHERE key_hash = $1::text
   AND (expires_at IS NULL OR expires_at > clock_timestamp())
"""

SELECT_AGENT_CALLER: Final = """
SELECT agents.id AS credential_id, projects.user_id, agents.id AS agent_id,
       agents.project_id, vaults.id AS vault_id
  FROM agents
  JOIN projects ON projects.id = agents.project_id
  JOIN vaults ON vaults.project_id = projects.id
 WHERE agents.api_key_hash = $1::text
   AND agents.deleted_at IS NULL
"""

# Which of many credentials still work, whatever their kind.
SELECT_VALID_HASHES: Final = """
SELECT token AS hash
  FROM sessions
 WHERE token = ANY ($1::text[])
   AND expires_at > clock_timestamp()
 UNION ALL
SELECT key_hash
  FROM api_keys
 WHERE key_hash = ANY ($1::text[])
   AND (expires_at IS NULL OR expires_at > clock_timestamp())
 UNION ALL
SELECT api_key_hash
  FROM agents
 WHERE api_key_hash = ANY ($1::text[])
   AND deleted_at IS NULL
"""

# The first of several processes inserts; the others wait for it, and find its answer.
INSERT_REQUEST: Final = """
INSERT INTO requests (user_id, request_id, rpc, fingerprint)
VALUES ($1::text, $2::text, $3::text, $4::text)
    ON CONFLICT (user_id, request_id) DO NOTHING
RETURNING request_id
"""

SELECT_REQUEST: Final = """
SELECT rpc, fingerprint, answer
  FROM requests
 WHERE user_id = $1::text
   AND request_id = $2::text
"""

UPDATE_REQUEST: Final = """
UPDATE requests
   SET answer = $3::jsonb
 WHERE user_id = $1::text
   AND request_id = $2::text
"""

DELETE_OLD_REQUESTS: Final = """
DELETE FROM requests
 WHERE created_at < (SELECT clock_timestamp()) - $1::interval
"""

_SELECT_CALLER: Final = {
    CredentialKind.SESSION: SELECT_SESSION_CALLER,
    CredentialKind.API_KEY: SELECT_API_KEY_CALLER,
    CredentialKind.AGENT_KEY: SELECT_AGENT_CALLER,
}


async def insert_user(
    conn: Connection,
    user_id: UserId,
    email: str,
    password_hash: str,
    name: str,
    avatar: str | None,
) -> User:
    """Add a user; an address that is taken violates USERS_EMAIL_KEY."""
    rows = await conn.fetch(INSERT_USER, user_id, email, password_hash, name, avatar)
    return User(**rows[0])


async def select_user(conn: Connection, user_id: UserId) -> User | None:
    """Read a user."""
    row = await conn.fetchrow(SELECT_USER, user_id)
    return None if row is None else User(**row)


async def lock_user(conn: Connection, user_id: UserId) -> None:
    """Lock a user, so that nobody else adds what is about to be counted."""
    await conn.fetchval(LOCK_USER, user_id)


async def select_user_by_email(conn: Connection, email: str) -> User | None:
    """Read a user by the address, in lower case."""
    row = await conn.fetchrow(SELECT_USER_BY_EMAIL, email)
    return None if row is None else User(**row)


async def update_password_hash(conn: Connection, user_id: UserId, password_hash: str) -> None:
    """Replace a user's password hash."""
    await conn.execute(UPDATE_USER, user_id, password_hash)


async def count_sign_in_attempt(
    conn: Connection, email_hash: str, window: timedelta
) -> tuple[int, float]:
    """Count an attempt; return how many this window has, and the seconds it still lasts."""
    (row,) = await conn.fetch(COUNT_SIGN_IN_ATTEMPT, email_hash, window)
    return row["attempts"], row["seconds_left"]


async def delete_sign_in_attempts(conn: Connection, email_hash: str) -> None:
    """Forget the attempts for an address."""
    await conn.execute(DELETE_SIGN_IN_ATTEMPTS, email_hash)


async def insert_session(
    conn: Connection, session_id: SessionId, token: str, user_id: UserId, lifetime: timedelta
) -> Session:
    """Begin a session; `token` is the credential's hash."""
    rows = await conn.fetch(INSERT_SESSION, session_id, token, user_id, lifetime)
    return Session(**rows[0])


async def select_session(
    conn: Connection, session_id: SessionId, user_id: UserId
) -> Session | None:
    """Read a user's session."""
    row = await conn.fetchrow(SELECT_SESSION, session_id, user_id)
    return None if row is None else Session(**row)


async def select_sessions(
    conn: Connection, user_id: UserId, after: tuple[datetime, str] | None, limit: int
) -> list[Session]:
    """Read a user's live sessions, newest first, after a place in that order."""
    rows = await conn.fetch(SELECT_SESSIONS, user_id, *(after or (None, None)), limit)
    return [Session(**row) for row in rows]


async def delete_session(conn: Connection, session_id: SessionId, user_id: UserId) -> bool:
    """End a user's session; False if there is none."""
    return await conn.fetchval(DELETE_SESSION, session_id, user_id) is not None


async def delete_other_sessions(conn: Connection, user_id: UserId, kept: SessionId) -> None:
    """End all sessions of a user but one."""
    await conn.execute(DELETE_OTHER_SESSIONS, user_id, kept)


async def insert_api_key(
    conn: Connection,
    key_id: ApiKeyId,
    name: str,
    key_hash: str,
    key_prefix: str,
    permissions: Collection[Permission],
    expires_at: datetime | None,
    user_id: UserId,
) -> ApiKey:
    """Add an API key."""
    (row,) = await conn.fetch(
        INSERT_API_KEY, key_id, name, key_hash, key_prefix, list(permissions), expires_at, user_id
    )
    return _api_key(row)


async def count_api_keys(conn: Connection, user_id: UserId) -> int:
    """Count a user's API keys."""
    count: int = await conn.fetchval(COUNT_API_KEYS, user_id)
    return count


async def select_api_key(conn: Connection, key_id: ApiKeyId, user_id: UserId) -> ApiKey | None:
    """Read a user's API key."""
    row = await conn.fetchrow(SELECT_API_KEY, key_id, user_id)
    return None if row is None else _api_key(row)


async def select_api_keys(
    conn: Connection, user_id: UserId, after: tuple[datetime, str] | None, limit: int
) -> list[ApiKey]:
    """Read a user's API keys, newest first, after a place in that order."""
    rows = await conn.fetch(SELECT_API_KEYS, user_id, *(after or (None, None)), limit)
    return [_api_key(row) for row in rows]


async def delete_api_key(conn: Connection, key_id: ApiKeyId, user_id: UserId) -> bool:
    """Delete a user's API key; False if there is none."""
    return await conn.fetchval(DELETE_API_KEY, key_id, user_id) is not None


async def count_api_key_uses(conn: Connection, uses: Mapping[str, int]) -> None:
    """Add to the counts of API keys."""
    await conn.execute(COUNT_API_KEY_USES, list(uses), list(uses.values()))


async def select_caller(
    conn: Connection, kind: CredentialKind, credential_hash: str
) -> Caller | None:
    """Find who stands behind a credential that is neither revoked nor expired."""
    row = await conn.fetchrow(_SELECT_CALLER[kind], credential_hash)
    if row is None:
        return None
    found = dict(row)
    permissions = frozenset(map(Permission, found.pop("permissions", ())))
    return Caller(kind=kind, permissions=permissions, **found)


async def select_valid_hashes(conn: Connection, hashes: Collection[str]) -> set[str]:
    """Say which of many credentials still work."""
    return {row["hash"] for row in await conn.fetch(SELECT_VALID_HASHES, list(hashes))}


async def insert_request(
    conn: Connection, user_id: UserId, request_id: str, rpc: str, fingerprint: str
) -> bool:
    """Claim a request_id; False when it is taken."""
    claimed = await conn.fetchval(INSERT_REQUEST, user_id, request_id, rpc, fingerprint)
    return claimed is not None


async def select_request(
    conn: Connection, user_id: UserId, request_id: str
) -> tuple[str, str, str] | None:
    """Read the rpc, the fingerprint and the answer (JSON text) of a request_id."""
    row = await conn.fetchrow(SELECT_REQUEST, user_id, request_id)
    return None if row is None else (row["rpc"], row["fingerprint"], row["answer"])


async def update_request(conn: Connection, user_id: UserId, request_id: str, answer: str) -> None:
    """Keep the answer to a claimed request_id, as JSON text."""
    await conn.execute(UPDATE_REQUEST, user_id, request_id, answer)


async def delete_what_is_over(
    conn: Connection, requests_kept: timedelta, sign_in_window: timedelta
) -> None:
    """Remove old answers, old sign-in windows, and sessions that expired."""
    await conn.execute(DELETE_OLD_REQUESTS, requests_kept)
    await conn.execute(DELETE_OLD_SIGN_IN_ATTEMPTS, sign_in_window)
    await conn.execute(DELETE_EXPIRED_SESSIONS)


def _api_key(row: Record) -> ApiKey:
    return ApiKey(**{**row, "permissions": tuple(map(Permission, row["permissions"]))})
