"""Idempotency: the same request_id is the same request, or it is refused.

A fingerprint is a hash for each field that the caller sent, as `amount:0f2b... metadata:...`,
so that a conflict can name what differs while nothing of the content is kept.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from pilot_grpc.errors import RequestIdReused


@dataclass(frozen=True, slots=True)
class Request:
    """What makes a request itself: its id within a scope, its RPC, what it asked for."""

    scope_id: str
    request_id: str
    rpc: str
    fingerprint: str

    def must_equal(self, rpc: str, fingerprint: str) -> None:
        """Raise RequestIdReused unless this is the request that was answered before."""
        if self.rpc != rpc:
            raise RequestIdReused(request_id=self.request_id, fields="rpc")
        if self.fingerprint != fingerprint:
            before, now = set(fingerprint.split()), set(self.fingerprint.split())
            fields = sorted({part.partition(":")[0] for part in before ^ now})
            raise RequestIdReused(request_id=self.request_id, fields=",".join(fields))


def fingerprint(fields: Iterable[tuple[str, bytes]]) -> str:
    """Hash each field; the order does not matter."""
    return " ".join(
        sorted(
            f"{name}:{hashlib.blake2b(value, digest_size=8).hexdigest()}" for name, value in fields
        )
    )
