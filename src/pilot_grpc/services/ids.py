"""New ids: CUIDs that sort by time, so that inserts go to the end of an index.

A CUID is `c` and 24 characters of base 36: 8 of milliseconds, 4 that count up, 4 of the
process, 8 of chance. (PyPI's cuid2 took 44 microseconds an id, more than a decision.)
"""

import random
import time
from collections.abc import Callable
from typing import Final

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = [a + b for a in _DIGITS for b in _DIGITS]
_COUNTER_END: Final = 36**4


def base36(number: int, width: int) -> str:
    """Write the last `width` digits of a number in base 36; the width is even."""
    parts = []
    for _ in range(width // 2):
        number, pair = divmod(number, 1296)
        parts.append(_PAIRS[pair])
    return "".join(reversed(parts))


class IdSource:
    """Makes ids that follow each other, even when the clock steps back."""

    def __init__(self, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        """Take a clock in milliseconds; the process part is chosen at random."""
        self._clock_ms = clock_ms
        self._last_ms = 0
        self._count = 0
        self._prefix = ""
        self._chance = random.Random()  # noqa: S311 - unique, not secret; seeded by the system
        self._process = base36(self._chance.getrandbits(32), 4)

    def __call__(self) -> str:
        """Return a new id."""
        now_ms = self._clock_ms()
        self._count += 1
        if now_ms > self._last_ms or self._count == _COUNTER_END:
            self._last_ms = max(now_ms, self._last_ms + 1)
            self._count = 0
            self._prefix = "c" + base36(self._last_ms, 8)
        chance = base36(self._chance.getrandbits(48), 8)
        return f"{self._prefix}{base36(self._count, 4)}{self._process}{chance}"
