"""Makes random histories of one vault: many callers, repetitions, and an owner who changes things.

Where the requests go, to services in this process or to servers behind sockets, is a Place.
"""

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Protocol

import asyncpg

from tests import model

RPCS: Final = (
    *["Spend"] * 6,
    *["AuthorizeSpend"] * 6,
    *["CaptureSpend"] * 4,
    *["ReleaseSpend"] * 2,
    *["Refund"] * 2,
    *("RecordFunding", "ConfirmFunding", "FailFunding"),
)
MAKERS: Final = {
    "CaptureSpend": {"AuthorizeSpend"},
    "ReleaseSpend": {"AuthorizeSpend"},
    "Refund": {"Spend", "AuthorizeSpend"},
    "ConfirmFunding": {"RecordFunding"},
    "FailFunding": {"RecordFunding"},
}
AMOUNTS: Final = (1, 5, 20, 50, 70, 130, 300)
FIRST_LIMITS: Final = (
    model.Limits(60, 300, 900),
    model.Limits(120, 250),
    model.Limits(500, 400, 400),
)
LATER_LIMITS: Final = (
    model.Limits(60, 300),
    model.Limits(200, 200, 600),
    model.Limits(300, 900, 700),
)


class Place(Protocol):
    """Where requests about one vault can be sent."""

    async def ask(self, asked: model.Asked, request_id: str) -> model.Answer | model.Refused:
        """Send a request until its outcome is known."""

    async def set_limits(self, agent_id: str, limits: model.Limits) -> None: ...

    async def remove_limits(self, agent_id: str) -> None: ...

    async def pause(self, agent_id: str) -> None: ...

    async def resume(self, agent_id: str) -> None: ...

    async def revision(self) -> int: ...


@dataclass
class History:
    """Callers at work on one vault, and what they noted."""

    places: Sequence[Place]
    agent_ids: Sequence[str]
    chance: random.Random
    ttls: Sequence[timedelta]
    before_each: Callable[[], None] = lambda: None
    requests: list[model.Request] = field(default_factory=list)
    settings: list[model.Setting] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    _steps: Any = field(default_factory=lambda: itertools.count(1))
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        """Begin with the limits that the agents were made with."""
        for agent_id, limits in zip(self.agent_ids, FIRST_LIMITS, strict=True):
            self.settings.append(model.Setting(agent_id, model.Config(limits)))

    async def make(self, callers: int, steps: int) -> None:
        """Fund the vault, then let everybody work at once."""
        await self._send(self._new(model.Asked("RecordFunding", 1_000)))
        owner = asyncio.create_task(self._own())
        await asyncio.gather(*(self._call(steps) for _ in range(callers)))
        self.done.set()
        await owner

    async def check(self, pool: "asyncpg.Pool[Any]", vault_id: str) -> model.Model:
        """Replay what is in the ledger; raises Disagreement.

        All of one moment, because servers that sweep may settle a hold at any other.
        """
        async with (
            pool.acquire() as conn,
            conn.transaction(isolation="repeatable_read", readonly=True),
        ):
            records = await conn.fetch(model.ROWS, vault_id)
            vault = await conn.fetchrow(
                "SELECT balance, held, revision FROM vaults WHERE id = $1", vault_id
            )
        replayed = model.check(list(model.rows_of(records)), self.requests, self.settings)
        assert vault is not None
        assert tuple(vault) == (replayed.balance, replayed.held, replayed.revision)
        return replayed

    async def _call(self, steps: int) -> None:
        for _ in range(steps):
            self.before_each()
            if self.chance.random() < 0.15:
                await self._send(self.chance.choice(self.requests))
                continue
            request = self._something()
            if request is not None:
                times = self.chance.choice([1, 2])
                await asyncio.gather(*(self._send(request) for _ in range(times)))

    def _something(self) -> model.Request | None:
        rpc, amount = self.chance.choice(RPCS), self.chance.choice(AMOUNTS)
        asked = model.Asked(rpc, amount)
        if rpc in {"Spend", "AuthorizeSpend"}:
            agent_id, ttl = self.chance.choice(self.agent_ids), self.chance.choice(self.ttls)
            return self._new(asked._replace(agent_id=agent_id, ttl=ttl))
        if rpc == "RecordFunding":
            pending = self.chance.random() < 0.4
            return self._new(asked._replace(amount=amount * 3, pending=pending))
        known = [r.answers[0] for r in self.requests if r.asked.rpc in MAKERS[rpc] and r.answers]
        if not known:
            return None
        return self._new(asked._replace(event_id=self.chance.choice(known[-12:]).event_id))

    def _new(self, asked: model.Asked) -> model.Request:
        self.requests.append(model.Request(asked, f"r{next(self._numbers)}"))
        return self.requests[-1]

    async def _send(self, request: model.Request) -> None:
        place, sent_at = self.chance.choice(self.places), next(self._steps)
        outcome = await place.ask(request.asked, request.request_id)
        request.sendings.append(model.Sending(sent_at, next(self._steps), outcome))

    async def _own(self) -> None:
        """Change limits and statuses without a break, one after another."""
        while not self.done.is_set():
            agent_id, place = self.chance.choice(self.agent_ids), self.chance.choice(self.places)
            config = [s.config for s in self.settings if s.agent_id == agent_id][-1]
            limits = self.chance.choice(LATER_LIMITS)
            setting = model.Setting(agent_id, config, after=await place.revision(), by=2**63)
            self.settings.append(setting)
            if config.limits is None:
                setting.config = config._replace(limits=limits)
                await place.set_limits(agent_id, limits)
            elif not config.agent_active:
                setting.config = config._replace(agent_active=True)
                await place.resume(agent_id)
            elif self.chance.random() < 0.3:
                setting.config = config._replace(agent_active=False)
                await place.pause(agent_id)
            elif self.chance.random() < 0.4:
                setting.config = config._replace(limits=None)
                await place.remove_limits(agent_id)
            else:
                setting.config = config._replace(limits=limits)
                await place.set_limits(agent_id, limits)
            setting.by = await place.revision()
