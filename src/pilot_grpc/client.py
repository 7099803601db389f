"""Following events for good: the loop that every subscriber needs, small enough to port.

async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
    request = SubscribeEventsRequest(vault_id=..., start=STREAM_START_EARLIEST)
    async for response in follow(channel, credential, request):
        for change in response.changes:
            ...
        # Store response.resume_token together with what was made of the changes.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Final

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[attr-defined,unused-ignore] # no stubs

from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.gen.pilot.v1 import ledger_pb2_grpc

# A connection that died without a word is noticed within 40 seconds.
CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # gRPC would else wait a minute for a ping that it sent for reasons of its own, and
    # send no third one to whoever only reads.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)

FIRST_WAIT_SECONDS: Final = 0.1
WAIT_SECONDS_MAX: Final = 10.0
DOUBLINGS_MAX: Final = 10


async def follow(
    channel: grpc.aio.Channel, credential: str, request: pb.SubscribeEventsRequest
) -> AsyncIterator[pb.SubscribeEventsResponse]:
    """Yield the responses of a stream, and resume it whenever it breaks.

    Nothing is skipped and nothing comes twice. `request` says where to begin; later on
    its `resume_token` is that of the last response that was taken. Raises
    grpc.aio.AioRpcError for what would only come again, such as a revoked credential.
    """
    subscribe = ledger_pb2_grpc.LedgerServiceStub(channel).SubscribeEvents
    metadata = (("authorization", f"Bearer {credential}"),)
    failures = 0
    while True:
        try:
            async for response in subscribe(request, metadata=metadata):
                failures = 0
                yield response
                request.resume_token = response.resume_token
        except grpc.aio.AioRpcError as error:
            wait = _retry_seconds(error)
            if wait is None and error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            failures += 1
            longest = min(WAIT_SECONDS_MAX, FIRST_WAIT_SECONDS * 2 ** min(failures, DOUBLINGS_MAX))
            await asyncio.sleep((wait or 0.0) + random.uniform(0, longest))  # noqa: S311


def _retry_seconds(error: grpc.aio.AioRpcError) -> float | None:
    """Return how long the server asks to wait; None when it does not say."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                retry = error_details_pb2.RetryInfo()
                if detail.Unpack(retry):
                    return float(retry.retry_delay.ToTimedelta().total_seconds())
    return None
