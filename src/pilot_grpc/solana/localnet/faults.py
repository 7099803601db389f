"""What goes wrong at an endpoint, because a test asked for it.

Each endpoint has faults of its own, each for one method or for any, and for the next so many
requests. What the network loses or holds back (DROP, HOLD) counts sendTransaction only, and what
a node's index gets wrong (the ..._ROWS) getSignaturesForAddress only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

DEFAULT_ERROR_CODE: Final = -32005
DEFAULT_ERROR_MESSAGE: Final = "Node is unhealthy"
FAULTS_MAX: Final = 1_000
FOR_EVER: Final = -1


class Kind(StrEnum):
    """How it goes wrong. `not done`: the request had no effect, though the caller cannot know."""

    RATE_LIMITED = "rate_limited"  # HTTP 429, with Retry-After if the fault has it; not done
    UNAVAILABLE = "unavailable"  # HTTP 503; not done
    HTML = "html"  # HTTP 200 with a proxy's page; not done
    DISCONNECT = "disconnect"  # no answer; not done
    HANG = "hang"  # no answer, and the connection stays open; not done
    APPLY_THEN_DISCONNECT = "apply_then_disconnect"  # done, and no answer
    APPLY_THEN_HANG = "apply_then_hang"  # done, and no answer, and the connection stays open
    TRUNCATED = "truncated"  # done, and half of the answer
    WRONG_ID = "wrong_id"  # done, and the answer to another request
    WRONG_TYPE = "wrong_type"  # done, and a result of another type
    ERROR = "error"  # a JSON-RPC error, with data if the fault has it; not done
    DROP = "drop"  # the signature is answered, and the transaction never lands
    HOLD = "hold"  # the same, but it lands when released, or after some slots
    DUPLICATE_ROWS = "duplicate_rows"  # every row twice
    REORDER_ROWS = "reorder_rows"  # the oldest first
    MISSING_ROWS = "missing_rows"  # every other row is left out, from the newest on


ONLY_FOR: Final = {
    Kind.DROP: "sendTransaction",
    Kind.HOLD: "sendTransaction",
    Kind.DUPLICATE_ROWS: "getSignaturesForAddress",
    Kind.REORDER_ROWS: "getSignaturesForAddress",
    Kind.MISSING_ROWS: "getSignaturesForAddress",
}
# These happen to a whole request, whatever calls it has.
BEFORE: Final = (Kind.RATE_LIMITED, Kind.UNAVAILABLE, Kind.HTML, Kind.DISCONNECT, Kind.HANG)
AFTER: Final = (Kind.APPLY_THEN_DISCONNECT, Kind.APPLY_THEN_HANG, Kind.TRUNCATED)


@dataclass(slots=True)
class Fault:
    """One fault. Without a method it meets every one but the localnet's own."""

    kind: Kind
    method: str | None = None
    count: int = 1  # How often; FOR_EVER until the faults are cleared.
    retry_after: str | None = None  # RATE_LIMITED and UNAVAILABLE: the header
    slots: int | None = None  # HOLD: for how many slots; until it is released without
    code: int = DEFAULT_ERROR_CODE  # ERROR
    message: str = DEFAULT_ERROR_MESSAGE
    data: Any = None  # ERROR: left out when it is None

    def meets(self, method: str) -> bool:
        """Say whether this fault is for a method."""
        return (ONLY_FOR.get(self.kind) or self.method or method) == method


class Faults:
    """The faults of one endpoint, in the order in which they were added."""

    def __init__(self) -> None:
        """Begin without any."""
        self._faults: list[Fault] = []

    def add(self, *faults: Fault) -> None:
        """From now on, go wrong so. Raises ValueError when there are too many."""
        if len(self._faults) + len(faults) > FAULTS_MAX:
            raise ValueError(f"an endpoint has at most {FAULTS_MAX} faults")
        self._faults.extend(faults)

    def clear(self) -> None:
        """Go wrong no more."""
        self._faults.clear()

    def take(self, kinds: Collection[Kind], methods: Collection[str]) -> Fault | None:
        """The first fault of these kinds that meets one of these methods, counted down."""
        for fault in self._faults:
            if fault.kind in kinds and any(fault.meets(method) for method in methods):
                if fault.count != FOR_EVER:
                    fault.count -= 1
                if fault.count == 0:
                    self._faults.remove(fault)
                return fault
        return None
