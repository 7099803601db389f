"""The ledger: who may move which money, and the reads of what was moved.

What moves money is made into a command here and decided in the vault's lane.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pilot_grpc import errors
from pilot_grpc.db import ledger as ledger_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.connection import Database
from pilot_grpc.db.ledger import EventHome
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.ledger import (
    HOLD_TTL_DEFAULT,
    AuthorizeSpend,
    CaptureSpend,
    ConfirmFunding,
    Event,
    EventFilter,
    FailFunding,
    RecordFunding,
    Refund,
    ReleaseSpend,
    Spend,
    SpendGroup,
    SpendSummary,
)
from pilot_grpc.domain.requests import Request
from pilot_grpc.domain.stream import Scope
from pilot_grpc.services.agents import Homes
from pilot_grpc.services.chain import must_be_wallet
from pilot_grpc.services.declines import Declines
from pilot_grpc.services.lanes import Lanes
from pilot_grpc.services.stream import Streams
from pilot_grpc.services.turns import Turns


@dataclass(frozen=True, slots=True)
class Asked:
    """How a request is recognised when it comes again: its id, its RPC, its content."""

    request_id: str
    rpc: str
    fingerprint: str

    def within(self, scope_id: str) -> Request:
        """Place the request in the scope that its id is unique in."""
        return Request(scope_id, self.request_id, self.rpc, self.fingerprint)


@dataclass(frozen=True, slots=True)
class SpendOrder:
    """A spend or a hold as it was asked for, in minor units."""

    asked: Asked
    agent_id: AgentId
    amount: int
    provider: str | None = None
    model: str | None = None
    metadata: str | None = None
    ttl: timedelta = HOLD_TTL_DEFAULT
    recipient: str | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """What callers do with money."""

    database: Database
    lanes: Lanes
    homes: Homes
    declines: Declines
    turns: Turns
    streams: Streams

    async def spend(self, caller: Caller, order: SpendOrder) -> Event:
        """Decide a spend: confirmed, or failed with the reason of the decline.

        One that pays a recipient on chain is pending. Raises NotFound, RequestIdReused,
        DeclinesLimited, Overloaded, RecipientUnsupported, and InvalidRequest for a recipient
        that is no wallet.
        """
        if order.recipient is not None:
            must_be_wallet(order.recipient)
        vault_id = await self._vault_of(caller, [order.agent_id])
        return (await self._decide(vault_id, [_spend(order, vault_id)]))[0]

    async def authorize(self, caller: Caller, order: SpendOrder) -> Event:
        """Decide a hold: pending, or failed with the reason of the decline.

        Raises NotFound, RequestIdReused, OpenHoldsLimit, DeclinesLimited, Overloaded.
        """
        vault_id = await self._vault_of(caller, [order.agent_id])
        command = AuthorizeSpend(
            request=order.asked.within(order.agent_id),
            vault_id=vault_id,
            agent_id=order.agent_id,
            amount=order.amount,
            provider=order.provider,
            model=order.model,
            metadata=order.metadata,
            ttl=order.ttl,
        )
        return (await self._decide(vault_id, [command]))[0]

    async def batch_spend(self, caller: Caller, orders: Sequence[SpendOrder]) -> list[Event]:
        """Decide spends of one project in order, in one transaction.

        Raises InvalidRequest for agents of several projects, and what `spend` raises,
        for all of them.
        """
        _must_pay_wallets(orders)
        vault_id = await self._vault_of(caller, {order.agent_id for order in orders})
        return await self._decide(vault_id, [_spend(order, vault_id) for order in orders])

    async def _vault_of(self, caller: Caller, agent_ids: Collection[AgentId]) -> VaultId:
        """Return the one vault that agents spend from, if all are the caller's."""
        if caller.agent_id is not None and caller.vault_id is not None:
            for agent_id in agent_ids:
                if agent_id != caller.agent_id:
                    raise errors.NotFound(resource="agent", id=agent_id)
            return caller.vault_id
        homes = await self.homes.of(caller, agent_ids)
        vault_ids = {home.vault_id for home in homes.values()}
        if len(vault_ids) > 1:
            raise errors.InvalidRequest([("spends", "the agents belong to several projects")])
        return vault_ids.pop()

    async def _decide(
        self, vault_id: VaultId, commands: Sequence[Spend | AuthorizeSpend]
    ) -> list[Event]:
        try:
            self.declines.must_be_below_limit({command.agent_id for command in commands})
        except errors.DeclinesLimited:
            # What was answered before is answered again, whatever happened since.
            answered = await self._answered(commands)
            if answered is None:
                raise
            return answered
        return await self.lanes.decide_all(vault_id, commands)

    async def _answered(self, commands: Sequence[Spend | AuthorizeSpend]) -> list[Event] | None:
        keys = [(c.vault_id, c.request.scope_id, c.request.request_id) for c in commands]
        async with self.database.transaction() as conn:
            answers = await ledger_db.select_answers(conn, keys)
        events = []
        for command in commands:
            request = command.request
            answer = answers.get((request.scope_id, request.request_id))
            if answer is None:
                return None
            answer.request.must_equal(request.rpc, request.fingerprint)
            events.append(answer.event)
        return events

    async def capture(self, caller: Caller, asked: Asked, event_id: EventId, amount: int) -> Event:
        """Take what was used of a hold.

        Raises NotFound, RequestIdReused, HoldNotOpen, HoldExpired, CaptureExceedsHold.
        """
        home, agent_id = await self._spend_home(caller, event_id)
        request = asked.within(agent_id)
        return await self.lanes.decide(CaptureSpend(request, home.vault_id, event_id, amount))

    async def release(self, caller: Caller, asked: Asked, event_id: EventId) -> Event:
        """Give a hold back. Raises NotFound, RequestIdReused, HoldNotOpen, HoldExpired."""
        home, agent_id = await self._spend_home(caller, event_id)
        request = asked.within(agent_id)
        return await self.lanes.decide(ReleaseSpend(request, home.vault_id, event_id))

    async def _spend_home(self, caller: Caller, event_id: EventId) -> tuple[EventHome, AgentId]:
        home = await self._event_home(caller, event_id)
        if home.agent_id is None:
            raise errors.HoldNotOpen
        return home, home.agent_id

    async def _event_home(self, caller: Caller, event_id: EventId) -> EventHome:
        """Say where an event belongs, if the caller may see it."""
        async with self.database.transaction() as conn:
            home = await ledger_db.select_event_home(conn, event_id)
        if (
            home is None
            or home.user_id != caller.user_id
            or (caller.agent_id is not None and home.agent_id != caller.agent_id)
        ):
            raise errors.NotFound(resource="event", id=event_id)
        return home

    async def refund(
        self, caller: Caller, asked: Asked, event_id: EventId, amount: int, metadata: str | None
    ) -> Event:
        """Give back a confirmed metered spend, or a part of it.

        Raises NotFound, RequestIdReused, SpendNotRefundable, RefundExceedsSpend.
        """
        home = await self._event_home(caller, event_id)
        request = asked.within(home.vault_id)
        return await self.lanes.decide(Refund(request, home.vault_id, event_id, amount, metadata))

    async def record_funding(
        self,
        caller: Caller,
        asked: Asked,
        vault_id: VaultId,
        amount: int,
        *,
        pending: bool,
        tx_hash: str | None,
        metadata: str | None,
    ) -> Event:
        """Credit a vault with money that is held elsewhere.

        Raises NotFound, RequestIdReused, CreditsDisabled, BalanceTooLarge, TxHashTaken.
        """
        await self._must_own_vault(caller, vault_id)
        request = asked.within(vault_id)
        return await self.lanes.decide(
            RecordFunding(request, vault_id, amount, pending, tx_hash, metadata)
        )

    async def confirm_funding(self, caller: Caller, asked: Asked, event_id: EventId) -> Event:
        """Confirm a pending credit.

        Raises NotFound, RequestIdReused, FundingNotPending, BalanceTooLarge.
        """
        home = await self._event_home(caller, event_id)
        request = asked.within(home.vault_id)
        return await self.lanes.decide(ConfirmFunding(request, home.vault_id, event_id))

    async def fail_funding(self, caller: Caller, asked: Asked, event_id: EventId) -> Event:
        """Close a pending credit. Raises NotFound, RequestIdReused, FundingNotPending."""
        home = await self._event_home(caller, event_id)
        request = asked.within(home.vault_id)
        return await self.lanes.decide(FailFunding(request, home.vault_id, event_id))

    async def get_event(self, caller: Caller, event_id: EventId) -> Event:
        """Read an event. Raises NotFound."""
        await self._event_home(caller, event_id)
        async with self.database.transaction() as conn:
            events = await ledger_db.select_events_by_id(conn, [event_id])
        if event_id not in events:
            raise errors.NotFound(resource="event", id=event_id)
        return events[event_id]

    async def list_events(
        self,
        caller: Caller,
        wanted: EventFilter,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Event]:
        """List events, newest first; an agent's own only.

        Raises NotFound for a vault or an agent that is not the caller's.
        """
        placed = await self._placed(caller, wanted)
        if placed is None:
            return []
        async with self.turns.take(caller.user_id), self.database.transaction() as conn:
            return await ledger_db.select_events(conn, caller.user_id, placed, after, limit)

    async def resume_token(self, caller: Caller, wanted: EventFilter) -> str:
        """Make the token of a stream that goes on where a list, read after this, ends.

        Empty for an agent that is not of the vault. Raises NotFound for a vault or an
        agent that is not the caller's.
        """
        placed = await self._placed(caller, wanted)
        if placed is None:
            return ""
        scope = Scope(caller.user_id, placed.vault_id, placed.agent_id)
        async with self.database.transaction() as conn:
            return await self.streams.token_now(conn, scope)

    async def _placed(self, caller: Caller, wanted: EventFilter) -> EventFilter | None:
        """Name the vault of an agent, and let an agent see only itself; None: nothing at all."""
        if caller.agent_id is not None:
            if wanted.agent_id not in {None, caller.agent_id}:
                raise errors.NotFound(resource="agent", id=wanted.agent_id)
            if wanted.vault_id not in {None, caller.vault_id}:
                raise errors.NotFound(resource="vault", id=wanted.vault_id)
            return wanted._replace(agent_id=caller.agent_id, vault_id=caller.vault_id)
        if wanted.vault_id is not None:
            await self._must_own_vault(caller, wanted.vault_id)
        if wanted.agent_id is not None:
            home = (await self.homes.of(caller, [wanted.agent_id]))[wanted.agent_id]
            if wanted.vault_id not in {None, home.vault_id}:
                return None
            return wanted._replace(vault_id=home.vault_id)
        return wanted

    async def summarize_spend(
        self,
        caller: Caller,
        vault_id: VaultId,
        agent_id: AgentId | None,
        period: tuple[datetime, datetime],
        group_by: Collection[str],
        after: SpendGroup | None,
        limit: int,
    ) -> list[SpendSummary]:
        """Sum a vault's spends, in the order of their groups. Raises NotFound."""
        await self._must_own_vault(caller, vault_id)
        async with self.turns.take(caller.user_id), self.database.transaction() as conn:
            return await ledger_db.summarize_spend(
                conn, vault_id, agent_id, period, group_by, after, limit
            )

    async def _must_own_vault(self, caller: Caller, vault_id: VaultId) -> None:
        async with self.database.transaction() as conn:
            if await vaults_db.select_vault(conn, vault_id, caller.user_id) is None:
                raise errors.NotFound(resource="vault", id=vault_id)


def _must_pay_wallets(orders: Sequence[SpendOrder]) -> None:
    for at, order in enumerate(orders):
        if order.recipient is not None:
            must_be_wallet(order.recipient, f"spends[{at}].recipient")


def _spend(order: SpendOrder, vault_id: VaultId) -> Spend:
    return Spend(
        request=order.asked.within(order.agent_id),
        vault_id=vault_id,
        agent_id=order.agent_id,
        amount=order.amount,
        provider=order.provider,
        model=order.model,
        metadata=order.metadata,
        recipient=order.recipient,
    )
