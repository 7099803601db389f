"""RPC nodes that answer what a test tells them to, on real sockets, and a clock that jumps.

    async with node(getSlot=[http(429), result(5)]) as sick, node(getSlot=[result(7)]) as well:
        rpc = port(sick, well)

Each method has its own steps: each question takes the next one, and the last goes on for ever.
getGenesisHash is answered with devnet's unless something else is said.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pilot_grpc.solana.clusters import DEVNET, Cluster
from pilot_grpc.solana.endpoint import Clock, EndpointSettings, Patience
from pilot_grpc.solana.rpc import Rpc
from tests.http_server import Behaviour, HttpServer, Request, http_server, respond

Step = Callable[[dict[str, Any]], Behaviour]

# The machine that runs the tests may be busy; no test waits so long.
REQUEST_SECONDS = 30.0
# But for those whose first node hangs.
HURRIED_SECONDS = 0.2


@dataclass
class Node:
    """What a node was asked, and what it will answer."""

    steps: dict[str, list[Step]]
    server: HttpServer
    asked: list[tuple[str, list[Any]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url("/")

    @property
    def name(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def then(self, **steps: list[Step]) -> None:
        """From now on, answer so."""
        self.steps.update(steps)

    def count(self, method: str) -> int:
        """How often it was asked this."""
        return sum(asked == method for asked, _ in self.asked)

    async def behave(self, request: Request, writer: asyncio.StreamWriter) -> None:
        question = json.loads(request.body)
        self.asked.append((question["method"], question["params"]))
        steps = self.steps[question["method"]]
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        await step(question)(request, writer)


@asynccontextmanager
async def node(**steps: list[Step]) -> AsyncIterator[Node]:
    """Run a node of devnet that answers so."""
    async with http_server() as server:
        running = Node({"getGenesisHash": [result(DEVNET.genesis_hash)]} | steps, server)
        server.then(running.behave)
        yield running


def result(value: object) -> Step:
    """Answer with this result."""
    return lambda question: _json({"jsonrpc": "2.0", "id": question["id"], "result": value})


def seen(value: object, slot: int = 100) -> Step:
    """Answer with this value as of a slot."""
    return result({"context": {"slot": slot, "apiVersion": "3.0.0"}, "value": value})


def error(code: object, message: object = "no", **data: object) -> Step:
    """Answer with this JSON-RPC error."""
    found = {"code": code, "message": message} | data
    return lambda question: _json({"jsonrpc": "2.0", "id": question["id"], "error": found})


def envelope(**members: object) -> Step:
    """Answer with these members instead of a response's."""
    return lambda _: _json(members)


def body(data: bytes) -> Step:
    """Answer 200 with these bytes."""
    return lambda _: respond(200, {"Content-Type": "application/json"}, data)


def http(status: int, headers: Mapping[str, str] | None = None, data: bytes = b"") -> Step:
    """Answer with this status."""
    return lambda _: respond(status, headers, data)


def behaving(behaviour: Behaviour) -> Step:
    """Answer so, whatever the question is."""
    return lambda _: behaviour


def _json(value: object) -> Behaviour:
    return respond(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


class FakeTime:
    """Time that passes only when somebody sleeps. Random waits are as long as they can be."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.slept: list[float] = []
        self.clock = Clock(
            monotonic=lambda: self.seconds,
            now=lambda: datetime(2026, 11, 23, tzinfo=UTC) + timedelta(seconds=self.seconds),
            sleep=self._sleep,
            between=lambda _low, high: high,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
        await asyncio.sleep(0)


@asynccontextmanager
async def port(
    *nodes: Node,
    cluster: Cluster = DEVNET,
    time: FakeTime | None = None,
    patience: Patience | None = None,
    hurried: bool = False,
    **settings: Any,
) -> AsyncIterator[Rpc]:
    """Open the port to these nodes, in this order, on a fake clock.

    Hurried, the first node gets little time for its answers, once it has shown its cluster.
    """
    rpc = Rpc(
        cluster,
        [EndpointSettings(url=each.url, **settings) for each in nodes],
        patience or Patience(request_seconds=REQUEST_SECONDS, call_seconds=2 * REQUEST_SECONDS),
        (time or FakeTime()).clock,
    )
    try:
        if hurried:
            await rpc.start()
            hurry(rpc)
        yield rpc
    finally:
        await rpc.close()


def hurry(rpc: Rpc) -> None:
    """Give the first node little time from now on."""
    first = rpc._endpoints[0]
    first._patience = replace(first._patience, request_seconds=HURRIED_SECONDS)


async def until(true: Callable[[], object]) -> None:
    """Wait for something that comes about by itself."""
    while not true():  # noqa: ASYNC110 - it is not a test's to change what it watches
        await asyncio.sleep(0.01)
