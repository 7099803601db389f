"""Create requests that carry a request_id: made once, answered alike for 7 days."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from pilot_grpc import errors
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.ids import UserId
from pilot_grpc.domain.requests import Request

KEPT: Final = timedelta(days=7)
RETRY_SECONDS: Final = 0.1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Once:
    """Makes a thing once for a user's request_id."""

    user_id: UserId
    request_id: str
    rpc: str
    fingerprint: str

    async def make(
        self,
        conn: Connection,
        make: Callable[[], Awaitable[T]],
        read: Callable[[dict[str, Any]], T],
    ) -> tuple[T, bool]:
        """Make it, or read the first answer back; the flag says whether it is new.

        Runs in the caller's transaction, so the answer is kept if and only if the thing
        is. Raises RequestIdReused.
        """
        if not self.request_id:
            return await make(), True
        key = self.user_id, self.request_id
        if not await accounts_db.insert_request(conn, *key, self.rpc, self.fingerprint):
            found = await accounts_db.select_request(conn, *key)
            if found is None:
                # It was there a moment ago, and has just turned 7 days old.
                raise errors.Overloaded(retry_after=RETRY_SECONDS)
            rpc, fingerprint, answer = found
            before = Request(self.user_id, self.request_id, rpc, fingerprint)
            before.must_equal(self.rpc, self.fingerprint)
            return read(json.loads(answer)), False
        made = await make()
        answer = json.dumps(asdict(made), default=datetime.isoformat)  # type: ignore[call-overload]
        await accounts_db.update_request(conn, *key, answer)
        return made, True


def read_time(text: str | None) -> datetime | None:
    """Read a time of an answer."""
    return None if text is None else datetime.fromisoformat(text)
