"""Credentials: made here, stored only as SHA-256, and looked up with a short memory.

A look-up is remembered for half a second, so that a busy credential costs the database
two reads a second and a revoked one is refused within a second on every process. Uses
of API keys are counted in memory and written once a second.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from typing import Final

from pilot_grpc import errors
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db.connection import Database
from pilot_grpc.domain.accounts import Caller, CredentialKind

log = logging.getLogger(__name__)

REMEMBERED_SECONDS: Final = 0.5
REMEMBERED_MAX: Final = 20_000
CREDENTIAL_CHARACTERS_MAX: Final = 128
WRITE_USES_SECONDS: Final = 1.0
_SECRET_BYTES: Final = 32


def new_secret(kind: CredentialKind) -> str:
    """Make a credential of 256 random bits behind the prefix of its kind."""
    return kind + secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """Return what is stored of a credential. It is random, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Credentials:
    """Says who stands behind a credential."""

    def __init__(
        self,
        database: Database,
        watch: Database,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the database, once more for `still_valid`, and a clock that never steps back.

        Whoever asks whether streams may go on must not wait behind those who come.
        """
        self._database = database
        self._watch = watch
        self._monotonic = monotonic
        self._known: OrderedDict[str, tuple[float, asyncio.Task[Caller | None]]] = OrderedDict()
        self._uses: Counter[str] = Counter()

    async def authenticate(self, credential: str) -> Caller:
        """Return the caller behind a credential, and count the use of an API key.

        Raises CredentialInvalid, or DatabaseUnavailable.
        """
        try:
            kind = CredentialKind(credential[:3])
        except ValueError:
            raise errors.CredentialInvalid from None
        if len(credential) > CREDENTIAL_CHARACTERS_MAX:
            raise errors.CredentialInvalid
        caller = await self._look_up(kind, hash_secret(credential))
        if caller is None:
            raise errors.CredentialInvalid
        if kind is CredentialKind.API_KEY:
            self._uses[caller.credential_id] += 1
        return caller

    async def _look_up(self, kind: CredentialKind, credential_hash: str) -> Caller | None:
        """Look up once for all who ask at the same time; the age counts from the asking."""
        now = self._monotonic()
        known = self._known.get(credential_hash)
        if known is None or now - known[0] >= REMEMBERED_SECONDS:
            known = now, asyncio.create_task(self._read(kind, credential_hash))
            self._known[credential_hash] = known
            self._known.move_to_end(credential_hash)
            if len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        try:
            return await asyncio.shield(known[1])
        except Exception:
            self._known.pop(credential_hash, None)
            raise

    async def _read(self, kind: CredentialKind, credential_hash: str) -> Caller | None:
        async with self._database.transaction() as conn:
            return await accounts_db.select_caller(conn, kind, credential_hash)

    async def still_valid(self, credentials: Collection[str]) -> set[str]:
        """Say which of many credentials still work, by one look at the database."""
        by_hash = {hash_secret(credential): credential for credential in credentials}
        async with self._watch.transaction() as conn:
            hashes = await accounts_db.select_valid_hashes(conn, by_hash.keys())
        return {by_hash[each] for each in hashes}

    async def write_uses(self) -> None:
        """Write the uses that were counted since the last time; keep them if that fails."""
        uses, self._uses = self._uses, Counter()
        if not uses:
            return
        try:
            async with self._database.transaction() as conn:
                await accounts_db.count_api_key_uses(conn, uses)
        except Exception:
            self._uses.update(uses)
            raise
