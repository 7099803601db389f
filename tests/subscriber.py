"""A subscriber in a process of its own, which a test can freeze, kill, or leave unread.

`follow` prints every response as a line of JSON: the revisions of its changes, and its token.
`stare` opens many streams, reads the first response of each, and then reads no more.
"""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc

from pilot_grpc.client import follow
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.gen.pilot.v1 import ledger_pb2_grpc

STREAMS_PER_CHANNEL: Final = 10

# A window that does not grow: what is not read stays with the server after 64 KiB a stream.
SMALL_WINDOW: Final = (("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def read_on(address: str, credential: str, request: pb.SubscribeEventsRequest) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        async for response in follow(channel, credential, request):
            say([[change.revision for change in response.changes], response.resume_token])


async def stare(
    address: str, credential: str, request: pb.SubscribeEventsRequest, count: int
) -> None:
    metadata = (("authorization", f"Bearer {credential}"),)
    calls: list[Any] = []
    async with AsyncExitStack() as stack:
        while len(calls) < count:
            channel = grpc.aio.insecure_channel(address, options=SMALL_WINDOW)
            await stack.enter_async_context(channel)
            stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
            for _ in range(STREAMS_PER_CHANNEL):
                calls.append(stub.SubscribeEvents(request, metadata=metadata))
                await calls[-1].read()
        say(len(calls))
        await asyncio.Event().wait()


def main() -> None:
    how, address, credential, sent, *count = sys.argv[1:]
    request = pb.SubscribeEventsRequest.FromString(bytes.fromhex(sent))
    if how == "follow":
        asyncio.run(read_on(address, credential, request))
    else:
        asyncio.run(stare(address, credential, request, int(count[0])))


if __name__ == "__main__":
    main()
