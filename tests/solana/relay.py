"""A node that passes questions on to another one, and goes wrong as a test tells it.

So a server that has no faults of its own, as Surfpool, gets some, and any can be made to lie.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx2
from solders.transaction import VersionedTransaction

from tests.http_server import Behaviour, HttpServer, Request, hang, hang_up, http_server, respond

Question: TypeAlias = dict[str, Any]
Forward = Callable[[], Awaitable[Any]]
# What it does with a question: None passes it on, anything but a behaviour is the result.
Meddle = Callable[[Question, Forward], Awaitable[Any]]

# The machine that runs the tests may be busy; no test waits so long.
UPSTREAM_SECONDS = 30.0


@dataclass
class Relay:
    """Where it is, what went through it, and what it does next. `sent` are signatures, in order."""

    server: HttpServer
    upstream: str
    client: httpx2.AsyncClient
    meddle: Meddle | None = None
    sent: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        return self.server.url("/")

    async def asked_for(self, method: str, times: int) -> None:
        """Wait until it was asked this so often."""
        until = self.asked[method] + times
        while self.asked[method] < until:  # noqa: ASYNC110 - it is not a test's to do
            await asyncio.sleep(0.005)

    async def behave(self, request: Request, writer: asyncio.StreamWriter) -> None:
        question = json.loads(request.body)
        self.asked[question["method"]] += 1
        if question["method"] == "sendTransaction":
            self.sent.append(signature_of(question))

        async def forward() -> Any:
            headers = {"Content-Type": "application/json"}
            answer = await self.client.post(self.upstream, content=request.body, headers=headers)
            return answer.json()

        found = None if self.meddle is None else await self.meddle(question, forward)
        if callable(found):
            behaviour: Behaviour = found
        else:
            answer = await forward() if found is None else _answer(question, found)
            body = json.dumps(answer).encode()
            behaviour = respond(200, {"Content-Type": "application/json"}, body)
        await behaviour(request, writer)


@asynccontextmanager
async def relaying(upstream: str) -> AsyncIterator[Relay]:
    """Run a relay to a node."""
    async with (
        httpx2.AsyncClient(timeout=UPSTREAM_SECONDS, trust_env=False) as client,
        http_server() as server,
    ):
        relay = Relay(server, upstream, client)
        server.then(relay.behave)
        yield relay


def signature_of(question: Question) -> str:
    """The signature of the transaction that is sent."""
    transaction = VersionedTransaction.from_bytes(base64.b64decode(question["params"][0]))
    return str(transaction.signatures[0])


def _answer(question: Question, result: object) -> Question:
    return {"jsonrpc": "2.0", "id": question["id"], "result": result}


def sometimes(behave: Meddle, count: int | None = 1, method: str = "sendTransaction") -> Meddle:
    """Do something to the next so many questions of a kind, or with None to all of them."""
    left = [count]

    async def meddle(question: Question, forward: Forward) -> Any:
        if question["method"] != method or left[0] == 0:
            return None
        if left[0] is not None:
            left[0] -= 1
        return await behave(question, forward)

    return meddle


async def drop(question: Question, _: Forward) -> Any:
    """Say that a transaction was taken, and lose it."""
    return signature_of(question)


async def apply_then_disconnect(_: Question, forward: Forward) -> Any:
    await forward()
    return hang_up()


async def limit(_: Question, __: Forward) -> Any:
    return respond(429, {"Retry-After": "1"})


async def stay_silent(_: Question, __: Forward) -> Any:
    return hang()


async def talk_nonsense(_: Question, __: Forward) -> Any:
    return respond(200, {"Content-Type": "text/html"}, b"<html>502 Bad Gateway</html>")
