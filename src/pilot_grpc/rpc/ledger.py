"""LedgerService on the wire."""

from collections.abc import AsyncIterator
from typing import Any, Final

from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.ledger import EventFilter
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.gen.pilot.v1 import ledger_pb2_grpc
from pilot_grpc.rpc import auth, paging, wire
from pilot_grpc.services.feeds import Entry
from pilot_grpc.services.ledger import Ledger
from pilot_grpc.services.recount import Auditor
from pilot_grpc.services.stream import Streams

AUDIT_PAGE_DEFAULT: Final = 2_000
AUDIT_PAGE_MAX: Final = 10_000


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    def __init__(self, ledger: Ledger, auditor: Auditor, streams: Streams) -> None:
        self._ledger = ledger
        self._auditor = auditor
        self._streams = streams

    async def Spend(self, message: pb.SpendRequest, context: Any) -> pb.SpendResponse:
        caller = auth.caller.get()
        event = await self._ledger.spend(caller, wire.spend_order(message, caller))
        return pb.SpendResponse(event=wire.event(event, caller))

    async def AuthorizeSpend(
        self, message: pb.AuthorizeSpendRequest, context: Any
    ) -> pb.AuthorizeSpendResponse:
        caller = auth.caller.get()
        event = await self._ledger.authorize(caller, wire.hold_order(message, caller))
        return pb.AuthorizeSpendResponse(event=wire.event(event, caller))

    async def CaptureSpend(
        self, message: pb.CaptureSpendRequest, context: Any
    ) -> pb.CaptureSpendResponse:
        caller = auth.caller.get()
        asked = wire.asked(message, "CaptureSpend")
        event_id = EventId(message.event_id)
        event = await self._ledger.capture(caller, asked, event_id, message.amount)
        return pb.CaptureSpendResponse(event=wire.event(event, caller))

    async def ReleaseSpend(
        self, message: pb.ReleaseSpendRequest, context: Any
    ) -> pb.ReleaseSpendResponse:
        caller = auth.caller.get()
        asked = wire.asked(message, "ReleaseSpend")
        event = await self._ledger.release(caller, asked, EventId(message.event_id))
        return pb.ReleaseSpendResponse(event=wire.event(event, caller))

    async def BatchSpend(
        self, message: pb.BatchSpendRequest, context: Any
    ) -> pb.BatchSpendResponse:
        caller = auth.caller.get()
        orders = [wire.spend_order(spend, caller) for spend in message.spends]
        events = await self._ledger.batch_spend(caller, orders)
        return pb.BatchSpendResponse(events=[wire.event(event, caller) for event in events])

    async def Refund(self, message: pb.RefundRequest, context: Any) -> pb.RefundResponse:
        caller = auth.caller.get()
        event = await self._ledger.refund(
            caller,
            wire.asked(message, "Refund"),
            EventId(message.event_id),
            message.amount,
            wire.text(message, "metadata"),
        )
        return pb.RefundResponse(event=wire.event(event, caller))

    async def RecordFunding(
        self, message: pb.RecordFundingRequest, context: Any
    ) -> pb.RecordFundingResponse:
        caller = auth.caller.get()
        event = await self._ledger.record_funding(
            caller,
            wire.asked(message, "RecordFunding", "vault_id"),
            VaultId(message.vault_id),
            message.amount,
            pending=message.pending,
            tx_hash=wire.text(message, "tx_hash"),
            metadata=wire.text(message, "metadata"),
        )
        return pb.RecordFundingResponse(event=wire.event(event, caller))

    async def ConfirmFunding(
        self, message: pb.ConfirmFundingRequest, context: Any
    ) -> pb.ConfirmFundingResponse:
        caller = auth.caller.get()
        asked = wire.asked(message, "ConfirmFunding")
        event = await self._ledger.confirm_funding(caller, asked, EventId(message.event_id))
        return pb.ConfirmFundingResponse(event=wire.event(event, caller))

    async def FailFunding(
        self, message: pb.FailFundingRequest, context: Any
    ) -> pb.FailFundingResponse:
        caller = auth.caller.get()
        asked = wire.asked(message, "FailFunding")
        event = await self._ledger.fail_funding(caller, asked, EventId(message.event_id))
        return pb.FailFundingResponse(event=wire.event(event, caller))

    async def GetEvent(self, message: pb.GetEventRequest, context: Any) -> pb.GetEventResponse:
        caller = auth.caller.get()
        event = await self._ledger.get_event(caller, EventId(message.event_id))
        return pb.GetEventResponse(event=wire.event(event, caller))

    async def ListEvents(
        self, message: pb.ListEventsRequest, context: Any
    ) -> pb.ListEventsResponse:
        caller = auth.caller.get()
        wanted = EventFilter(
            vault_id=VaultId(message.vault_id) if message.vault_id else None,
            agent_id=AgentId(message.agent_id) if message.agent_id else None,
            types=wire.members(wire.EVENT_TYPES, message.types),
            kinds=wire.members(wire.EVENT_KINDS, message.kinds),
            statuses=wire.members(wire.EVENT_STATUSES, message.statuses),
            start=wire.moment(message, "start_time"),
            end=wire.moment(message, "end_time"),
        )
        after, limit = paging.time_and_id(message), paging.size(message) + 1
        # Before the list, so that nothing falls between the two.
        resume_token = "" if after else await self._ledger.resume_token(caller, wanted)
        rows = await self._ledger.list_events(caller, wanted, after, limit)
        page, token = paging.cut(message, rows, paging.by_time_and_id, wire.event_bytes)
        return pb.ListEventsResponse(
            events=[wire.event(row, caller) for row in page],
            next_page_token=token,
            resume_token=resume_token,
        )

    async def SummarizeSpend(
        self, message: pb.SummarizeSpendRequest, context: Any
    ) -> pb.SummarizeSpendResponse:
        rows = await self._ledger.summarize_spend(
            auth.caller.get(),
            VaultId(message.vault_id),
            AgentId(message.agent_id) if message.agent_id else None,
            wire.period(message),
            [wire.DIMENSIONS[dimension] for dimension in message.group_by],
            paging.group(message),
            paging.size(message) + 1,
        )
        page, token = paging.cut(message, rows, lambda summary: summary.group)
        return pb.SummarizeSpendResponse(
            summaries=[wire.spend_summary(row) for row in page], next_page_token=token
        )

    async def VerifyLedger(
        self, message: pb.VerifyLedgerRequest, context: Any
    ) -> pb.VerifyLedgerResponse:
        page = await self._auditor.verify(
            auth.caller.get(),
            VaultId(message.vault_id),
            paging.audit_place(message),
            paging.size(message, AUDIT_PAGE_DEFAULT, AUDIT_PAGE_MAX),
        )
        return pb.VerifyLedgerResponse(
            discrepancy=wire.discrepancy(page.discrepancy),
            verified_count=page.verified,
            next_page_token=paging.audit_token(message, page.next_place),
        )

    async def SubscribeEvents(
        self, message: pb.SubscribeEventsRequest, context: Any
    ) -> AsyncIterator[bytes]:
        """Yield responses that are written already, because many share their changes."""
        caller, seconds = auth.caller.get(), wire.heartbeat_seconds(message)
        for_agent = caller.agent_id is not None

        def write(entry: Entry) -> bytes:
            return entry.written(wire.written_change, for_agent=for_agent)

        async with self._streams.subscription(
            caller, wire.topic(message), wire.start(message), wire.wanted(message), write
        ) as subscription:
            entries: list[Entry] = []
            while True:
                end = pb.SubscribeEventsResponse(
                    resume_token=subscription.token(), caught_up=subscription.caught_up
                )
                response = b"".join((*map(write, entries), end.SerializeToString()))
                # Nothing else is kept of it while a client takes its time.
                entries = []
                yield response
                entries = await subscription.next(seconds)
