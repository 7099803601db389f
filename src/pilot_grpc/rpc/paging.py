"""Pages: a size within limits, and a token that says where the next page begins.

A token is opaque, bound to the request that it continues, and no permission: who may
read is decided anew for every page.
"""

import base64
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from pilot_grpc.domain.ledger import SpendGroup
from pilot_grpc.errors import InvalidRequest
from pilot_grpc.rpc.wire import fingerprint_of
from pilot_grpc.services.recount import Phase, Place

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 500
# Clients refuse a message above 4 MiB, unless they are told otherwise.
PAGE_BYTES_MAX: Final = 2 * 1024 * 1024
NOT_OURS: Final = "is not a token of this request"
_NOT_BOUND: Final = frozenset({"page_token", "page_size"})
_ID: Final = re.compile("[a-z0-9]{1,32}")
_ADDRESS: Final = re.compile("[1-9A-HJ-NP-Za-km-z]{32,44}")

T = TypeVar("T")


def size(message: Any, default: int = PAGE_DEFAULT, maximum: int = PAGE_MAX) -> int:
    """Return how many rows a page has."""
    return min(message.page_size or default, maximum)


def violations(message: Any) -> list[tuple[str, str]]:
    """Name the token of a page if it is of another request, or of nobody."""
    if not getattr(message, "page_token", "") or _where(message):
        return []
    return [("page_token", NOT_OURS)]


def place(message: Any) -> list[Any] | None:
    """Return the place that a page begins after; None for the first page."""
    return _where(message) if message.page_token else None


def _where(message: Any) -> list[Any]:
    """Read a token; empty if it is not one that this request got."""
    try:
        binding, *where = json.loads(base64.urlsafe_b64decode(message.page_token))
    except (TypeError, ValueError, RecursionError):
        return []
    return where if binding == _binding(message) else []


def token(message: Any, *where: Any) -> str:
    """Make the token of the page that begins after a place."""
    return base64.urlsafe_b64encode(json.dumps([_binding(message), *where]).encode()).decode()


def time_and_id(message: Any) -> tuple[datetime, str] | None:
    """Return a place in an order by time and id. Raises InvalidRequest."""
    where = place(message)
    if where is None:
        return None
    try:
        moment, row_id = where
        return read_time(moment), read_id(row_id)
    except (TypeError, ValueError):
        raise not_ours() from None


def read_time(text: str) -> datetime:
    """Read a time of a token. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() != timedelta():
        raise ValueError(text)
    return moment


def read_number(number: Any) -> int:
    """Read a whole number of a token. Raises ValueError."""
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(number)
    return number


def read_text(text: str) -> str:
    """Read what the database can compare with. Raises TypeError, ValueError."""
    if b"\x00" in str.encode(text):
        raise ValueError(text)
    return text


def read_id(text: str) -> str:
    """Read an id of a token. Raises ValueError."""
    if not _ID.fullmatch(text):
        raise ValueError(text)
    return text


def read_address(text: str) -> str:
    """Read an address of a token. Raises TypeError, ValueError."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError(text)
    return text


def address(message: Any) -> str:
    """Return a place in an order by address; empty for the first page. Raises InvalidRequest."""
    where = place(message)
    if where is None:
        return ""
    try:
        (after,) = where
        return read_address(after)
    except (TypeError, ValueError):
        raise not_ours() from None


def group(message: Any) -> SpendGroup | None:
    """Return a place in the order of groups. Raises InvalidRequest."""
    where = place(message)
    if where is None:
        return None
    try:
        day, agent_id, provider, model = map(read_text, where)
    except (TypeError, ValueError):
        raise not_ours() from None
    return SpendGroup(day, agent_id, provider, model)


def audit_place(message: Any) -> Place:
    """Return where a recount goes on. Raises InvalidRequest."""
    where = place(message)
    if where is None:
        return Place()
    try:
        phase, revision, moment, row_id = where
        return Place(
            Phase(phase),
            read_number(revision),
            None if moment is None else read_time(moment),
            "" if row_id == "" else read_id(row_id),
        )
    except (TypeError, ValueError):
        raise not_ours() from None


def audit_token(message: Any, goes_on: Place | None) -> str:
    """Make the token with which a recount goes on; empty at its end."""
    if goes_on is None:
        return ""
    moment = goes_on.moment and goes_on.moment.isoformat()
    return token(message, goes_on.phase, goes_on.revision, moment, goes_on.row_id)


def cut(
    message: Any,
    rows: Sequence[T],
    place_of: Callable[[T], tuple[Any, ...]],
    bytes_of: Callable[[T], int] = lambda _: 0,
) -> tuple[Sequence[T], str]:
    """Cut a page off rows that were read one further, and make the token of the next.

    A page has fewer rows than asked for when more would be too large a message.
    """
    room, page = PAGE_BYTES_MAX, list[T]()
    for row in rows[: size(message)]:
        room -= bytes_of(row)
        if room < 0 and page:
            break
        page.append(row)
    return page, token(message, *place_of(page[-1])) if len(page) < len(rows) else ""


def by_time_and_id(row: Any) -> tuple[str, str]:
    """Say where a row stands in an order by time and id."""
    return row.created_at.isoformat(), row.id


def _binding(message: Any) -> str:
    return f"{message.DESCRIPTOR.name} {fingerprint_of(message, _NOT_BOUND)}"


def not_ours() -> InvalidRequest:
    """Refuse a token that was tampered with."""
    return InvalidRequest([("page_token", NOT_OURS)])
