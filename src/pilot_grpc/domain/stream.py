"""The stream of changes: what a subscriber asks for, what it gets, and where it stands.

A position names, for each vault, the last change that was delivered, with a check value
of it. A resume token is a position, bound to what was subscribed to and signed with the
installation's key: it is no permission, and it says nothing that its holder does not know.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from pilot_grpc import errors
from pilot_grpc.domain.ids import AgentId, EventId, UserId, VaultId
from pilot_grpc.domain.ledger import EventKind, EventStatus, EventType, FailureReason

_TOKEN_VERSION: Final = b"\x01"
_HASH_BYTES: Final = 8
_CHECK_BYTES: Final = 6
_REVISION_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 12
_STAND_BYTES: Final = _HASH_BYTES + _REVISION_BYTES + _CHECK_BYTES
_HEAD_BYTES: Final = len(_TOKEN_VERSION) + _HASH_BYTES


class Update(NamedTuple):
    """A numbered change of a vault, with all of its event as it was at that change.

    The fields are those of `Change` and `Event`; `decline` and `drift` are the JSON texts of
    their columns. A change of a drift has no event, and none of its fields.
    """

    vault_id: VaultId
    revision: int
    event_id: EventId | None
    previous_revision: int | None
    status: EventStatus
    amount: int
    failure_reason: FailureReason | None
    tx_hash: str | None
    balance_after: int
    chain_balance_after: int
    held_after: int
    changed_at: datetime
    digest: bytes
    agent_id: AgentId | None
    type: EventType | None
    kind: EventKind | None
    authorized_amount: int | None
    expires_at: datetime | None
    decline: str | None
    metadata: str | None
    provider: str | None
    model: str | None
    refunded_event_id: EventId | None
    created_at: datetime | None
    recipient: str | None = None
    counterpart_event_id: EventId | None = None
    drift: str | None = None


class Head(NamedTuple):
    """A place in the changes of a vault: the last change before it, and its check value."""

    revision: int = 0
    digest: bytes = b""


class Scope(NamedTuple):
    """What is subscribed to: a vault, an agent of a vault, or all vaults of a user."""

    user_id: UserId
    vault_id: VaultId | None = None
    agent_id: AgentId | None = None

    @property
    def name(self) -> str:
        """Tell it from every other scope."""
        if self.agent_id is not None:
            return f"agent {self.agent_id}"
        if self.vault_id is not None:
            return f"vault {self.vault_id}"
        return f"user {self.user_id}"


class Wanted(NamedTuple):
    """Which changes to deliver; None allows everything. A drift passes no filter of events."""

    types: frozenset[EventType] | None = None
    kinds: frozenset[EventKind] | None = None
    statuses: frozenset[EventStatus] | None = None

    def allows(self, update: Update) -> bool:
        """Say whether a change is delivered."""
        if update.drift is not None:
            return self == _EVERYTHING
        return (
            (self.types is None or update.type in self.types)
            and (self.kinds is None or update.kind in self.kinds)
            and (self.statuses is None or update.status in self.statuses)
        )


_EVERYTHING: Final = Wanted()


class Start(StrEnum):
    """Where a stream begins that does not resume."""

    EARLIEST = "earliest"
    LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a token says that a subscriber stands in one vault."""

    revision: int
    check: bytes


class Tokens:
    """Makes and reads resume tokens."""

    def __init__(self, key: bytes) -> None:
        """Take the installation's key, the same for all of its processes."""
        self._key = key

    def stand(self, vault_id: VaultId, head: Head) -> bytes:
        """Write where a subscriber stands in one vault, as a part of a token."""
        return _hash(vault_id) + head.revision.to_bytes(_REVISION_BYTES) + self._check(head)

    def _check(self, head: Head) -> bytes:
        # Keyed, because the digest covers the vault's figures, which an agent could guess.
        return hashlib.blake2b(head.digest, key=self._key, digest_size=_CHECK_BYTES).digest()

    def is_at(self, stand: Stand, head: Head) -> bool:
        """Say whether a token's place is this one, of this history."""
        return stand.revision == head.revision and hmac.compare_digest(
            stand.check, self._check(head)
        )

    def token(self, scope: Scope, stands: Iterable[bytes]) -> str:
        """Make the token of a position, whose parts `stand` wrote."""
        body = b"".join((_TOKEN_VERSION, _hash(scope.name), *stands))
        return _text(body + self._signature(body))

    def _signature(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._key, digest_size=_SIGNATURE_BYTES).digest()

    def read(self, scope: Scope, token: str, vault_ids: Iterable[VaultId]) -> dict[VaultId, Stand]:
        """Read where a token stands in each of some vaults; those it does not name are left out.

        Raises ResumeTokenInvalid for what is not such a token, ResumeTokenOfAnotherScope.
        """
        try:
            sent = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        except ValueError:
            raise errors.ResumeTokenInvalid from None
        if _text(sent) != token:
            # base64 has several spellings for the same bytes; a token has one.
            raise errors.ResumeTokenInvalid
        body, signature = sent[:-_SIGNATURE_BYTES], sent[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(body)):
            raise errors.ResumeTokenInvalid
        if body[: len(_TOKEN_VERSION)] != _TOKEN_VERSION:
            raise errors.ResumeTokenInvalid
        if body[len(_TOKEN_VERSION) : _HEAD_BYTES] != _hash(scope.name):
            raise errors.ResumeTokenOfAnotherScope
        named = {_hash(vault_id): vault_id for vault_id in vault_ids}
        stands = {}
        for at in range(_HEAD_BYTES, len(body), _STAND_BYTES):
            vault_id = named.get(body[at : at + _HASH_BYTES])
            if vault_id is not None:
                end = at + _HASH_BYTES + _REVISION_BYTES
                revision = int.from_bytes(body[at + _HASH_BYTES : end])
                stands[vault_id] = Stand(revision, body[end : end + _CHECK_BYTES])
        return stands


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_HASH_BYTES).digest()
