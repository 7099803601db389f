"""Accounts: users, their sessions and their API keys."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

import argon2
import asyncpg

from pilot_grpc import errors
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db.clock import read_clock
from pilot_grpc.db.connection import Connection, Database, violates
from pilot_grpc.domain.accounts import (
    ApiKey,
    Caller,
    CredentialKind,
    Permission,
    Session,
    User,
)
from pilot_grpc.domain.ids import ApiKeyId, SessionId, UserId
from pilot_grpc.services.credentials import hash_secret, new_secret
from pilot_grpc.services.requests import Once, read_time

SIGN_IN_ATTEMPTS_MAX: Final = 10
SIGN_IN_WINDOW: Final = timedelta(minutes=5)
API_KEYS_PER_USER_MAX: Final = 100
KEY_PREFIX_CHARACTERS: Final = 8

# Each hash takes 64 MiB and a core for tens of milliseconds.
HASHING_AT_ONCE_MAX: Final = 2
HASHING_QUEUE_MAX: Final = 64

# Argon2id with the library's defaults (RFC 9106, low memory), but in one thread: strangers can
# make us hash, on the cores that decide spends.
_ARGON2: Final = argon2.PasswordHasher(parallelism=1)

_SHA256_HEX: Final = re.compile("[0-9a-f]{64}")


@cache
def _nobodys_hash() -> str:
    """Return a hash to check passwords of unknown users against, which takes as long."""
    return _ARGON2.hash("nobody has this password")


class Passwords:
    """Hashes and checks passwords, a few at a time and off the event loop."""

    def __init__(self) -> None:
        """Make the first hash, so that no caller waits for it."""
        self._slots = asyncio.Semaphore(HASHING_AT_ONCE_MAX)
        self._waiting = 0
        self._nobody = _nobodys_hash()

    async def hash(self, password: str) -> str:
        """Hash a new password. Raises Overloaded."""
        hashed: str = await self._in_thread(_ARGON2.hash, password)
        return hashed

    async def check(self, password: str, password_hash: str | None) -> bool:
        """Compare in constant time; without a user it takes as long. Raises Overloaded."""
        matches: bool = await self._in_thread(self._matches, password, password_hash)
        return matches

    def is_outdated(self, password_hash: str) -> bool:
        """Say whether a hash is of the older form, or of weaker parameters."""
        return is_sha256(password_hash) or _ARGON2.check_needs_rehash(password_hash)

    def _matches(self, password: str, password_hash: str | None) -> bool:
        if password_hash is not None and password_hash.startswith("$argon2"):
            return self._verifies(password_hash, password)
        # The older form is quick to check, and so is nobody's: the time must not tell.
        self._verifies(self._nobody, password)
        if password_hash is None or not is_sha256(password_hash):
            return False
        digest = hashlib.sha256(password.encode()).hexdigest()
        return hmac.compare_digest(digest, password_hash)

    def _verifies(self, password_hash: str, password: str) -> bool:
        try:
            return _ARGON2.verify(password_hash, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._waiting >= HASHING_QUEUE_MAX:
            raise errors.Overloaded(retry_after=1.0)
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(function, *arguments)
        finally:
            self._waiting -= 1


def is_sha256(password_hash: str) -> bool:
    """Say whether a hash is a bare SHA-256 hex digest, the older form."""
    return _SHA256_HEX.fullmatch(password_hash) is not None


@dataclass(frozen=True, slots=True)
class Accounts:
    """What users do about themselves."""

    database: Database
    passwords: Passwords
    new_id: Callable[[], str]
    sign_up_enabled: bool
    session_lifetime: timedelta

    async def sign_up(
        self, email: str, password: str, name: str, avatar: str | None
    ) -> tuple[User, Session, str]:
        """Create a user and begin a session. Raises SignUpDisabled, EmailTaken."""
        if not self.sign_up_enabled:
            raise errors.SignUpDisabled
        password_hash = await self.passwords.hash(password)
        user_id, secret = UserId(self.new_id()), new_secret(CredentialKind.SESSION)
        try:
            async with self.database.transaction() as conn:
                user = await accounts_db.insert_user(
                    conn, user_id, email.lower(), password_hash, name, avatar
                )
                session = await accounts_db.insert_session(
                    conn, self._session_id(), hash_secret(secret), user_id, self.session_lifetime
                )
        except asyncpg.UniqueViolationError as error:
            if violates(error, accounts_db.USERS_EMAIL_KEY):
                raise errors.EmailTaken from None
            raise
        return user, session, secret

    async def sign_in(self, email: str, password: str) -> tuple[User, Session, str]:
        """Begin a session. Raises SignInFailed, SignInLimited."""
        email = email.lower()
        await self._count_attempt(email)
        async with self.database.transaction() as conn:
            user = await accounts_db.select_user_by_email(conn, email)
        matches = await self.passwords.check(password, None if user is None else user.password_hash)
        if user is None or not matches:
            raise errors.SignInFailed
        upgraded = None
        if self.passwords.is_outdated(user.password_hash):
            upgraded = await self.passwords.hash(password)
        secret = new_secret(CredentialKind.SESSION)
        async with self.database.transaction() as conn:
            await self._must_still_match(conn, user, errors.SignInFailed)
            await accounts_db.delete_sign_in_attempts(conn, _email_hash(email))
            if upgraded is not None:
                await accounts_db.update_password_hash(conn, user.id, upgraded)
            session = await accounts_db.insert_session(
                conn, self._session_id(), hash_secret(secret), user.id, self.session_lifetime
            )
        return user, session, secret

    async def _count_attempt(self, email: str) -> None:
        async with self.database.transaction() as conn:
            attempts, seconds_left = await accounts_db.count_sign_in_attempt(
                conn, _email_hash(email), SIGN_IN_WINDOW
            )
        if attempts > SIGN_IN_ATTEMPTS_MAX:
            raise errors.SignInLimited(retry_after=max(1.0, seconds_left))

    async def _must_still_match(
        self, conn: Connection, checked: User, refusal: type[errors.PilotError]
    ) -> None:
        """Lock the user; a password that was changed since it was checked is refused."""
        await accounts_db.lock_user(conn, checked.id)
        user = await accounts_db.select_user(conn, checked.id)
        if user is None or user.password_hash != checked.password_hash:
            raise refusal

    def _session_id(self) -> SessionId:
        return SessionId(self.new_id())

    async def sign_out(self, caller: Caller) -> None:
        """End the calling session."""
        await self.revoke_session(caller, SessionId(caller.credential_id))

    async def who_am_i(self, caller: Caller) -> tuple[User, Session | ApiKey | None]:
        """Return the user, and the session or API key that calls; None for an agent."""
        credential: Session | ApiKey | None = None
        async with self.database.transaction() as conn:
            user = await accounts_db.select_user(conn, caller.user_id)
            if caller.kind is CredentialKind.SESSION:
                credential = await accounts_db.select_session(
                    conn, SessionId(caller.credential_id), caller.user_id
                )
            elif caller.kind is CredentialKind.API_KEY:
                credential = await accounts_db.select_api_key(
                    conn, ApiKeyId(caller.credential_id), caller.user_id
                )
        if user is None or (credential is None and caller.kind is not CredentialKind.AGENT_KEY):
            raise errors.CredentialInvalid
        return user, credential

    async def change_password(self, caller: Caller, current: str, new: str) -> None:
        """Replace the password and end all other sessions. Raises PasswordWrong."""
        async with self.database.transaction() as conn:
            user = await accounts_db.select_user(conn, caller.user_id)
        if user is None:
            raise errors.CredentialInvalid
        await self._count_attempt(user.email)
        if not await self.passwords.check(current, user.password_hash):
            raise errors.PasswordWrong
        password_hash = await self.passwords.hash(new)
        async with self.database.transaction() as conn:
            await self._must_still_match(conn, user, errors.PasswordWrong)
            await accounts_db.delete_sign_in_attempts(conn, _email_hash(user.email))
            await accounts_db.update_password_hash(conn, user.id, password_hash)
            await accounts_db.delete_other_sessions(conn, user.id, SessionId(caller.credential_id))

    async def list_sessions(
        self, caller: Caller, after: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        """List the user's live sessions, newest first."""
        async with self.database.transaction() as conn:
            return await accounts_db.select_sessions(conn, caller.user_id, after, limit)

    async def revoke_session(self, caller: Caller, session_id: SessionId) -> None:
        """End a session. Raises NotFound."""
        async with self.database.transaction() as conn:
            if not await accounts_db.delete_session(conn, session_id, caller.user_id):
                raise errors.NotFound(resource="session", id=session_id)

    async def create_api_key(
        self,
        once: Once,
        name: str,
        permissions: Sequence[Permission],
        expires_at: datetime | None,
    ) -> tuple[ApiKey, str]:
        """Make an API key; the secret is empty when the answer is a repetition.

        Raises QuotaExceeded, RequestIdReused.
        """
        secret = new_secret(CredentialKind.API_KEY)
        async with self.database.transaction() as conn:

            async def make() -> ApiKey:
                if expires_at is not None and expires_at <= await read_clock(conn):
                    raise errors.InvalidRequest([("expire_time", "must be in the future")])
                await accounts_db.lock_user(conn, once.user_id)
                if await accounts_db.count_api_keys(conn, once.user_id) >= API_KEYS_PER_USER_MAX:
                    raise errors.QuotaExceeded(resource="api_key", limit=API_KEYS_PER_USER_MAX)
                return await accounts_db.insert_api_key(
                    conn,
                    ApiKeyId(self.new_id()),
                    name,
                    hash_secret(secret),
                    secret[:KEY_PREFIX_CHARACTERS],
                    permissions,
                    expires_at,
                    once.user_id,
                )

            api_key, is_new = await once.make(conn, make, _read_api_key)
        return api_key, secret if is_new else ""

    async def list_api_keys(
        self, caller: Caller, after: tuple[datetime, str] | None, limit: int
    ) -> list[ApiKey]:
        """List the user's API keys, newest first."""
        async with self.database.transaction() as conn:
            return await accounts_db.select_api_keys(conn, caller.user_id, after, limit)

    async def revoke_api_key(self, caller: Caller, key_id: ApiKeyId) -> None:
        """Delete an API key. Raises NotFound."""
        async with self.database.transaction() as conn:
            if not await accounts_db.delete_api_key(conn, key_id, caller.user_id):
                raise errors.NotFound(resource="api_key", id=key_id)


def _email_hash(email: str) -> str:
    return hashlib.sha256(email.encode()).hexdigest()


def _read_api_key(answer: dict[str, Any]) -> ApiKey:
    created_at = datetime.fromisoformat(answer["created_at"])
    return ApiKey(
        **{
            **answer,
            "permissions": tuple(map(Permission, answer["permissions"])),
            "last_used_at": read_time(answer["last_used_at"]),
            "expires_at": read_time(answer["expires_at"]),
            "created_at": created_at,
        }
    )
