"""An agent that is declined again and again is stopped before it reaches the lane."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from pilot_grpc.domain.ids import AgentId
from pilot_grpc.domain.ledger import DeclineRoom
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
        for room in self.rooms(agent_ids).values():
            if room.left <= 0:
                raise DeclinesLimited(limit=room.limit, retry_after=room.seconds)

    def rooms(self, agent_ids: Iterable[AgentId]) -> dict[AgentId, DeclineRoom]:
        """Say how many declines agents have left, and when their minute ends."""
        now = self._monotonic()
        rooms = {}
        for agent_id in agent_ids:
            started, count = self._window(agent_id, now)
            seconds = started + WINDOW_SECONDS - now
            rooms[agent_id] = DeclineRoom(self._limit, self._limit - count, seconds)
        return rooms

    def count(self, agent_id: AgentId) -> None:
        """Count a decline that was recorded; a minute begins with its first."""
        now = self._monotonic()
        started, count = self._window(agent_id, now)
        self._windows[agent_id] = started, count + 1
        self._windows.move_to_end(agent_id)
        if len(self._windows) > AGENTS_REMEMBERED_MAX:
            self._windows.popitem(last=False)

    def _window(self, agent_id: AgentId, now: float) -> tuple[float, int]:
        started, count = self._windows.get(agent_id, (now, 0))
        return (now, 0) if now - started >= WINDOW_SECONDS else (started, count)
