"""Pages: a size within limits, and a token that says where the next page begins.

A token is opaque, bound to the request that it continues, and no permission: who may
read is decided anew for every page.
"""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from pilot_grpc.errors import InvalidRequest
from pilot_grpc.rpc.wire import fingerprint_of

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 500
_NOT_BOUND: Final = frozenset({"page_token", "page_size"})

T = TypeVar("T")


def size(message: Any, default: int = PAGE_DEFAULT, maximum: int = PAGE_MAX) -> int:
    """Return how many rows a page has."""
    return min(message.page_size or default, maximum)


def place(message: Any) -> list[Any] | None:
    """Return the place that a page begins after; None for the first page.

    Raises InvalidRequest for a token of another request, or of nobody.
    """
    if not message.page_token:
        return None
    try:
        binding, *where = json.loads(base64.urlsafe_b64decode(message.page_token))
    except (ValueError, binascii.Error):
        binding, where = None, []
    if binding != _binding(message) or not where:
        raise _not_ours()
    return list(where)


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
        return datetime.fromisoformat(moment), str(row_id)
    except (TypeError, ValueError):
        raise _not_ours() from None


def offset(message: Any) -> int:
    """Return how many rows came before. Raises InvalidRequest."""
    where = place(message)
    if where is None:
        return 0
    if not isinstance(where[0], int) or not 0 <= where[0] < 2**31:
        raise _not_ours()
    return where[0]


def cut(
    message: Any, rows: Sequence[T], place_of: Callable[[T], tuple[Any, ...]]
) -> tuple[Sequence[T], str]:
    """Cut a page off rows that were read one further, and make the token of the next."""
    limit = size(message)
    if len(rows) <= limit:
        return rows, ""
    page = rows[:limit]
    return page, token(message, *place_of(page[-1]))


def by_time_and_id(row: Any) -> tuple[str, str]:
    """Say where a row stands in an order by time and id."""
    return row.created_at.isoformat(), row.id


def _binding(message: Any) -> str:
    return f"{message.DESCRIPTOR.name} {fingerprint_of(message, _NOT_BOUND)}"


def _not_ours() -> InvalidRequest:
    return InvalidRequest([("page_token", "not a token of this request")])
