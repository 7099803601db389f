"""An agent that is declined again and again is stopped before it reaches the lane."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from pilot_grpc.domain.ids import AgentId
from pilot_grpc.errors import DeclinesLimited

WINDOW_SECONDS: Final = 60.0
AGENTS_REMEMBERED_MAX: Final = 100_000


class Declines:
    """Counts the declines of each agent, minute by minute, in this process."""

    def __init__(self, limit: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Take the declines that an agent may have a minute, and a clock in seconds."""
        self._limit = limit
        self._monotonic = monotonic
        self._windows: OrderedDict[AgentId, tuple[float, int]] = OrderedDict()

    def must_be_below_limit(self, agent_ids: Iterable[AgentId]) -> None:
        """Raise DeclinesLimited for an agent that had its declines of this minute."""
        now = self._monotonic()
        for agent_id in agent_ids:
            started, count = self._windows.get(agent_id, (now, 0))
            left = started + WINDOW_SECONDS - now
            if count > self._limit and left > 0:
                raise DeclinesLimited(limit=self._limit, retry_after=left)

    def count(self, agent_id: AgentId) -> None:
        """Count a decline; a window begins with its first."""
        now = self._monotonic()
        started, count = self._windows.get(agent_id, (now, 0))
        if now - started >= WINDOW_SECONDS:
            started, count = now, 0
        self._windows[agent_id] = started, count + 1
        self._windows.move_to_end(agent_id)
        if len(self._windows) > AGENTS_REMEMBERED_MAX:
            self._windows.popitem(last=False)
