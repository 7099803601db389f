"""Random histories made by many callers on two processes, replayed by an independent model."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.ids import AgentId, EventId
from pilot_grpc.domain.ledger import Event
from pilot_grpc.services import budgets
from pilot_grpc.services.ledger import SpendOrder
from tests import histories, make, model
from tests.make import HandClock
from tests.services.conftest import StartApp

# Steps of the clock in seconds: mostly none, some that expire holds, some that turn windows, back.
JUMPS: Final = [*[0] * 12, 1, 30, 60, 400, 4_000, 40_000, 90_000, 86_400 * 20, -300, -50_000]
TTLS: Final = [timedelta(seconds=seconds) for seconds in (60, 600, 86_400, 604_800)]


@dataclass(frozen=True)
class Services:
    """The services of one process, asked by the owner of a vault."""

    app: App
    agent: make.Spender

    async def ask(self, asked: model.Asked, request_id: str) -> model.Answer | model.Refused:
        try:
            return answer_of(await self._call(asked, request_id))
        except errors.PilotError as refusal:
            return model.Refused(refusal.reason)

    async def _call(self, asked: model.Asked, request_id: str) -> Event:
        ledger, owner = self.app.ledger, self.agent.owner
        wanted = make.asked(asked.rpc, request_id, f"content:{asked}")
        event_id, amount = EventId(asked.event_id or ""), asked.amount
        match asked.rpc:
            case "Spend":
                agent_id = AgentId(asked.agent_id or "")
                return await ledger.spend(owner, SpendOrder(wanted, agent_id, amount))
            case "AuthorizeSpend":
                agent_id = AgentId(asked.agent_id or "")
                hold = SpendOrder(wanted, agent_id, amount, ttl=asked.ttl)
                return await ledger.authorize(owner, hold)
            case "CaptureSpend":
                return await ledger.capture(owner, wanted, event_id, amount)
            case "ReleaseSpend":
                return await ledger.release(owner, wanted, event_id)
            case "Refund":
                return await ledger.refund(owner, wanted, event_id, amount, None)
            case "ConfirmFunding":
                return await ledger.confirm_funding(owner, wanted, event_id)
            case "FailFunding":
                return await ledger.fail_funding(owner, wanted, event_id)
            case _:
                return await ledger.record_funding(
                    *(owner, wanted, self.agent.vault_id, amount),
                    pending=asked.pending,
                    tx_hash=None,
                    metadata=None,
                )

    async def set_limits(self, agent_id: str, limits: model.Limits) -> None:
        await self.app.budgets.set(self.agent.owner, AgentId(agent_id), budgets.Limits(*limits))

    async def remove_limits(self, agent_id: str) -> None:
        await self.app.budgets.remove(self.agent.owner, AgentId(agent_id))

    async def pause(self, agent_id: str) -> None:
        await self.app.agents.pause(self.agent.owner, AgentId(agent_id))

    async def resume(self, agent_id: str) -> None:
        await self.app.agents.resume(self.agent.owner, AgentId(agent_id))

    async def revision(self) -> int:
        return (await make.vault(self.app, self.agent)).revision


def answer_of(event: Event) -> model.Answer:
    """An event as the model compares it."""
    figures = event.decline and {k: v for k, v in event.decline._asdict().items() if v is not None}
    return model.Answer(
        event.id, event.revision, event.status, event.amount, event.failure_reason, figures
    )


def jumps(clock: HandClock, chance: random.Random) -> Callable[[], None]:
    return lambda: clock.move(seconds=chance.choice(JUMPS))


@pytest.mark.parametrize("seed", range(6))
async def test_every_answer_is_what_the_model_says(start: StartApp, seed: int) -> None:
    """Callers, repetitions, an owner who changes things, expiry, and a clock that jumps about."""
    clock = HandClock(datetime(2027, 12, 30, 20, tzinfo=UTC))
    chance = random.Random(seed)  # noqa: S311 - histories, not secrets
    apps = [await start(clock, declines_per_minute=10**6) for _ in range(2)]
    agents: list[make.Spender] = []
    for per_tx, daily, monthly in histories.FIRST_LIMITS:
        limits = {"per_tx_limit": per_tx, "daily_limit": daily, "monthly_limit": monthly}
        beside = agents[0] if agents else None
        agents.append(await make.agent(apps[0], **limits, vault_balance=0, beside=beside))  # type: ignore[arg-type]
    history = histories.History(
        places=[Services(app, agents[0]) for app in apps],
        agent_ids=[agent.agent_id for agent in agents],
        chance=chance,
        ttls=TTLS,
        before_each=jumps(clock, chance),
    )

    await history.make(callers=6, steps=30)

    await history.check(apps[0].database.pool, agents[0].vault_id)
    assert await make.verify(apps[1], agents[0], 50) is None
