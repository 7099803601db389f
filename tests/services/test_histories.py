"""Random histories made by many callers on two processes, replayed by an independent model."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.domain.ids import EventId
from pilot_grpc.domain.ledger import Event
from pilot_grpc.services import budgets
from pilot_grpc.services.ledger import SpendOrder
from tests import make, model
from tests.make import HandClock
from tests.services.conftest import StartApp

CALLERS: Final = 6
STEPS: Final = 30

# Steps of the clock in seconds: mostly none, some that expire holds, some that turn windows, back.
JUMPS: Final = [*[0] * 12, 1, 30, 60, 400, 4_000, 40_000, 90_000, 86_400 * 20, -300, -50_000]


class World:
    """Callers, owners and a clock, at work on one vault."""

    def __init__(self, apps: list[App], clock: HandClock, seed: int) -> None:
        self.apps = apps
        self.clock = clock
        self.chance = random.Random(seed)  # noqa: S311 - histories, not secrets
        self.agents: list[make.Spender] = []
        self.requests: list[model.Request] = []
        self.settings: list[model.Setting] = []
        self.steps = itertools.count(1)
        self.numbers = itertools.count(1)

    async def populate(self) -> None:
        limits = [(60, 300, 900), (120, 250, None), (500, 400, 400)]
        for per_tx, daily, monthly in limits:
            agent = await make.agent(
                self.apps[0],
                per_tx_limit=per_tx,
                daily_limit=daily,
                monthly_limit=monthly,
                vault_balance=0,
                beside=self.agents[0] if self.agents else None,
            )
            self.agents.append(agent)
            config = model.Config(model.Limits(per_tx, daily, monthly))
            self.settings.append(model.Setting(agent.agent_id, config))
        await self.ask("RecordFunding", amount=1_000)

    async def revision(self) -> int:
        return (await make.vault(self.apps[0], self.agents[0])).revision

    async def caller(self) -> None:
        """Ask for one thing after another."""
        for _ in range(STEPS):
            self.clock.move(seconds=self.chance.choice(JUMPS))
            if self.chance.random() < 0.15:
                await self.send(self.chance.choice(self.requests))
                continue
            rpc = self.chance.choice(
                ["Spend"] * 6
                + ["AuthorizeSpend"] * 6
                + ["CaptureSpend"] * 4
                + ["ReleaseSpend"] * 2
                + ["Refund"] * 2
                + ["RecordFunding", "ConfirmFunding", "FailFunding"]
            )
            await self.ask(rpc, amount=self.chance.choice([1, 5, 20, 50, 70, 130, 300]))

    async def ask(self, rpc: str, amount: int) -> None:
        """Ask for something new; half of the time it is sent twice, at once, to both."""
        asked = model.Asked(rpc, amount)
        if rpc in {"Spend", "AuthorizeSpend"}:
            agent_id = self.chance.choice(self.agents).agent_id
            ttl = timedelta(seconds=self.chance.choice([60, 600, 86_400, 604_800]))
            asked = asked._replace(agent_id=agent_id, ttl=ttl)
        elif rpc == "RecordFunding":
            asked = asked._replace(amount=amount * 3, pending=self.chance.random() < 0.4)
        else:
            makers = {
                "CaptureSpend": {"AuthorizeSpend"},
                "ReleaseSpend": {"AuthorizeSpend"},
                "Refund": {"Spend", "AuthorizeSpend"},
            }.get(rpc, {"RecordFunding"})
            known = [r.answers[0] for r in self.requests if r.asked.rpc in makers and r.answers]
            if not known:
                return
            asked = asked._replace(event_id=self.chance.choice(known[-12:]).event_id)
        request = model.Request(asked, f"r{next(self.numbers)}")
        self.requests.append(request)
        await asyncio.gather(*(self.send(request) for _ in range(self.chance.choice([1, 2]))))

    async def send(self, request: model.Request) -> None:
        """Send a request to one of the processes, and keep what comes back."""
        app, asked = self.chance.choice(self.apps), request.asked
        request.sent_at.append(next(self.steps))
        try:
            event = await self._calls(app, request)[asked.rpc]()
        except errors.PilotError as refusal:
            request.outcomes.append(model.Refused(refusal.reason))
        else:
            request.outcomes.append(answer_of(event))
        request.answered_at.append(next(self.steps))

    def _calls(self, app: App, request: model.Request) -> dict[str, Callable[[], Awaitable[Event]]]:
        asked, owner = request.asked, self.agents[0].owner
        event_id = EventId(asked.event_id or "")
        wanted = make.asked(asked.rpc, request.request_id, f"content:{asked}")
        vault_id = self.agents[0].vault_id
        agent_id = next((a.agent_id for a in self.agents if a.agent_id == asked.agent_id), None)
        ledger = app.ledger

        def order() -> SpendOrder:
            assert agent_id is not None
            return SpendOrder(wanted, agent_id, asked.amount, ttl=asked.ttl)

        return {
            "Spend": lambda: ledger.spend(owner, order()),
            "AuthorizeSpend": lambda: ledger.authorize(owner, order()),
            "CaptureSpend": lambda: ledger.capture(owner, wanted, event_id, asked.amount),
            "ReleaseSpend": lambda: ledger.release(owner, wanted, event_id),
            "Refund": lambda: ledger.refund(owner, wanted, event_id, asked.amount, None),
            "RecordFunding": lambda: ledger.record_funding(
                *(owner, wanted, vault_id, asked.amount),
                pending=asked.pending,
                tx_hash=None,
                metadata=None,
            ),
            "ConfirmFunding": lambda: ledger.confirm_funding(owner, wanted, event_id),
            "FailFunding": lambda: ledger.fail_funding(owner, wanted, event_id),
        }

    async def administer(self, done: asyncio.Event) -> None:
        """Change limits and statuses without a break, one agent after another."""
        while not done.is_set():
            agent, app = self.chance.choice(self.agents), self.chance.choice(self.apps)
            before = [s.config for s in self.settings if s.agent_id == agent.agent_id][-1]
            limits = self.chance.choice([(60, 300, None), (200, 200, 600), (300, 900, 700)])
            owner, agent_id = agent.owner, agent.agent_id
            set_rule = app.budgets.set(owner, agent_id, budgets.Limits(*limits))
            with_limits = before._replace(limits=model.Limits(*limits))
            if before.limits is None:
                # Setting a rule ends the setup, unless the owner had paused the agent.
                await self.change(agent, set_rule, with_limits)
            elif not before.agent_active:
                set_rule.close()
                resumed = before._replace(agent_active=True)
                await self.change(agent, app.agents.resume(owner, agent_id), resumed)
            elif self.chance.random() < 0.3:
                set_rule.close()
                paused = before._replace(agent_active=False)
                await self.change(agent, app.agents.pause(owner, agent_id), paused)
            elif self.chance.random() < 0.4:
                set_rule.close()
                removed = before._replace(limits=None)
                await self.change(agent, app.budgets.remove(owner, agent_id), removed)
            else:
                await self.change(agent, set_rule, with_limits)

    async def change(self, agent: make.Spender, call: Awaitable[Any], config: model.Config) -> None:
        """Change what an owner sets, and note between which revisions that was."""
        setting = model.Setting(agent.agent_id, config, after=await self.revision(), by=2**63)
        self.settings.append(setting)
        await call
        setting.by = await self.revision()


def answer_of(event: Event) -> model.Answer:
    """An event as the model compares it."""
    figures = event.decline and {k: v for k, v in event.decline._asdict().items() if v is not None}
    return model.Answer(
        event.id, event.revision, event.status, event.amount, event.failure_reason, figures
    )


@pytest.mark.parametrize("seed", range(6))
async def test_every_answer_is_what_the_model_says(start: StartApp, seed: int) -> None:
    """Callers, repetitions, owners who change their mind, expiry, and a clock that jumps about."""
    clock = HandClock(datetime(2027, 12, 30, 20, tzinfo=UTC))
    apps = [await start(clock, declines_per_minute=10**6) for _ in range(2)]
    world = World(apps, clock, seed)
    await world.populate()
    done = asyncio.Event()

    owner = asyncio.create_task(world.administer(done))
    await asyncio.gather(*(world.caller() for _ in range(CALLERS)))
    done.set()
    await owner

    records = await apps[0].database.pool.fetch(model.ROWS, world.agents[0].vault_id)
    replayed = model.check(list(model.rows_of(records)), world.requests, world.settings)
    vault = await make.vault(apps[0], world.agents[0])
    assert (vault.balance, vault.held, vault.revision) == (
        replayed.balance,
        replayed.held,
        replayed.revision,
    )
    assert await make.verify(apps[1], world.agents[0], 50) is None
