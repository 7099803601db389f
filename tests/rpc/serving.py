"""A server on a real socket in this process, and clients that call it by message.

`await agent(pb.SpendRequest(amount=5, request_id="r1"))` calls Spend, because every RPC has a
request of its own name.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from pilot_grpc.bootstrap import App, build_server, running
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db.clock import Clock, read_clock
from pilot_grpc.domain.accounts import CredentialKind
from pilot_grpc.domain.ids import EventId, SessionId, UserId, VaultId
from pilot_grpc.domain.ledger import ConfirmTransfer, FailTransfer, FailureReason
from pilot_grpc.gen.pilot.v1 import accounts_pb2, agents_pb2, budgets_pb2, ledger_pb2, projects_pb2
from pilot_grpc.server import SERVICES
from pilot_grpc.services.credentials import hash_secret, new_secret
from tests import make

METHODS: Final[dict[str, MethodDescriptor]] = {
    method.input_type.name: method
    for descriptor, _ in SERVICES
    for service in descriptor.services_by_name.values()
    for method in service.methods
}
"""Every RPC, by the name of its request."""

RPCS: Final = sorted(method.name for method in METHODS.values())

# No test waits for it; it only ends a test that hangs.
CALL_SECONDS: Final = 30.0

_numbers = itertools.count(1)


def fresh(prefix: str = "r") -> str:
    """Return a name, or a request_id, that nobody used before."""
    return f"{prefix}{next(_numbers)}"


@dataclass(frozen=True)
class Refusal:
    """What a caller learns from an error."""

    code: str
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_seconds: float | None = None
    text: str = field(default="", compare=False)

    @property
    def fields(self) -> list[str]:
        return [name for name, _ in self.violations]


def read(error: grpc.aio.AioRpcError) -> Refusal:
    """Read an error as a client library does: google.rpc details of known types, each once."""
    trailers = dict(error.trailing_metadata())
    sent = trailers.get("grpc-status-details-bin")
    if sent is None:
        return Refusal(error.code().name, text=error.details() or "")
    assert isinstance(sent, bytes)
    status = status_pb2.Status.FromString(sent)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    details: dict[str, Any] = {}
    for packed in status.details:
        kind = packed.TypeName().removeprefix("google.rpc.")
        assert kind not in details
        details[kind] = getattr(error_details_pb2, kind).FromString(packed.value)
    info = details.pop("ErrorInfo")
    bad = details.pop("BadRequest", error_details_pb2.BadRequest())
    retry = details.pop("RetryInfo", None)
    assert info.domain == "pilot"
    assert not details
    return Refusal(
        error.code().name,
        info.reason,
        dict(info.metadata),
        tuple((each.field, each.description) for each in bad.field_violations),
        None if retry is None else retry.retry_delay.ToTimedelta().total_seconds(),
        error.details() or "",
    )


async def refusal(call: Awaitable[object]) -> Refusal:
    """Wait for a call that is refused; OK stands for one that is not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return read(error)
    return Refusal("OK")


async def raw_refusal(call: Awaitable[object]) -> tuple[str, str | None, bytes]:
    """Wait for a call that is refused; give all that its caller can see, but for the time."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailers = {key: value for key, value in caught.value.trailing_metadata() if key != "date"}
    assert set(trailers) == {"grpc-status-details-bin"}
    sent = trailers["grpc-status-details-bin"]
    assert isinstance(sent, bytes)
    status = status_pb2.Status.FromString(sent)
    details = status.SerializeToString(deterministic=True)
    return caught.value.code().name, caught.value.details(), details


async def code(call: Awaitable[object]) -> str:
    """Wait for a call, and say how it ended: `OK`, or the code of its error."""
    return (await refusal(call)).code


@dataclass(frozen=True)
class Subscriber:
    """A stream, as whoever reads it sees it."""

    call: Any
    responses: list[ledger_pb2.SubscribeEventsResponse] = field(default_factory=list)

    @property
    def token(self) -> str:
        return self.responses[-1].resume_token

    @property
    def changes(self) -> list[ledger_pb2.Change]:
        """All that came so far."""
        return [change for response in self.responses for change in response.changes]

    async def read(self) -> ledger_pb2.SubscribeEventsResponse:
        """Wait for the next response; raises what ended the stream."""
        response = await asyncio.wait_for(self.call.read(), CALL_SECONDS)
        assert response is not grpc.aio.EOF
        assert response.resume_token
        self.responses.append(response)
        return self.responses[-1]

    async def next(self, count: int) -> list[ledger_pb2.Change]:
        """Read on until so many changes came, and no more."""
        changes: list[ledger_pb2.Change] = []
        while len(changes) < count:
            changes += (await self.read()).changes
        assert len(changes) == count
        return changes

    async def heartbeat(self) -> ledger_pb2.SubscribeEventsResponse:
        """Read on until a response comes without changes."""
        while (response := await self.read()).changes:
            pass
        return response

    async def end(self) -> Refusal:
        """Read on until the stream ends, and say how."""
        try:
            while True:
                await self.read()
        except grpc.aio.AioRpcError as error:
            return read(error)


@dataclass(frozen=True)
class Client:
    """A caller with one credential, or with none."""

    channel: grpc.aio.Channel
    credential: str | None = field(default=None, repr=False)

    def __call__(self, message: Message, timeout: float = CALL_SECONDS) -> Any:
        """Call the RPC that a request belongs to; of a stream, give the first response."""
        method = METHODS[message.DESCRIPTOR.name]
        return self._call(method, message, GetMessageClass(method.output_type).FromString, timeout)

    def raw(self, message: Message) -> Any:
        """Call the RPC, and give the bytes of the answer."""
        return self._call(METHODS[message.DESCRIPTOR.name], message, None, CALL_SECONDS)

    def _call(
        self,
        method: MethodDescriptor,
        message: Message,
        read_answer: Callable[[bytes], Message] | None,
        timeout: float,
    ) -> Any:
        path = f"/{method.containing_service.full_name}/{method.name}"
        metadata = () if self.credential is None else (("authorization", self.authorization),)
        if method.server_streaming:
            stream = self.channel.unary_stream(path, _write, read_answer)
            return _first(stream(message, timeout=timeout, metadata=metadata))
        rpc = self.channel.unary_unary(path, _write, read_answer)
        return rpc(message, timeout=timeout, metadata=metadata)

    def subscribe(self, **fields: Any) -> AbstractAsyncContextManager[Subscriber]:
        """Follow events while the block runs; the fields are those of the request."""
        return _subscribed(self.channel, self.authorization, fields)

    @property
    def authorization(self) -> str:
        return f"Bearer {self.credential}"

    def with_credential(self, credential: str | None) -> "Client":
        """Return another caller on the same connection."""
        return Client(self.channel, credential)


def _write(message: Message) -> bytes:
    return message.SerializeToString()


async def _first(call: Any) -> Any:
    response = await call.read()
    call.cancel()
    return response


@asynccontextmanager
async def _subscribed(
    channel: grpc.aio.Channel, authorization: str, fields: dict[str, Any]
) -> AsyncIterator[Subscriber]:
    rpc = channel.unary_stream(
        "/pilot.v1.LedgerService/SubscribeEvents",
        _write,
        ledger_pb2.SubscribeEventsResponse.FromString,
    )
    request = ledger_pb2.SubscribeEventsRequest(**fields)
    call = rpc(request, metadata=(("authorization", authorization),))
    try:
        yield Subscriber(call)
    finally:
        call.cancel()


@dataclass(frozen=True)
class Tenant:
    """A user with a project, a funded vault, and an active agent that has a key and a rule."""

    owner: Client
    agent: Client
    user_id: str
    project_id: str
    vault_id: str
    agent_id: str

    async def api_key(self, *permissions: str) -> Client:
        """Make an API key with permissions such as `read`."""
        request = accounts_pb2.CreateApiKeyRequest(name="Key")
        request.permissions.extend(
            getattr(accounts_pb2, f"PERMISSION_{name.upper()}") for name in permissions
        )
        answer = await self.owner(request)
        return self.owner.with_credential(answer.secret)

    async def fund(self, amount: int) -> ledger_pb2.Event:
        """Credit the vault."""
        answer = await self.owner(
            ledger_pb2.RecordFundingRequest(
                vault_id=self.vault_id, amount=amount, request_id=fresh()
            )
        )
        event: ledger_pb2.Event = answer.event
        return event

    async def spend(self, amount: int, **fields: Any) -> ledger_pb2.Event:
        """Spend as the agent."""
        fields.setdefault("request_id", fresh())
        answer = await self.agent(ledger_pb2.SpendRequest(amount=amount, **fields))
        event: ledger_pb2.Event = answer.event
        return event

    async def hold(self, amount: int) -> ledger_pb2.Event:
        """Hold an amount as the agent."""
        answer = await self.agent(
            ledger_pb2.AuthorizeSpendRequest(amount=amount, request_id=fresh())
        )
        event: ledger_pb2.Event = answer.event
        return event

    async def another_agent(self, name: str = "Agent") -> tuple[str, Client]:
        """Add an active agent beside the first."""
        agent_id = await new_agent(self.owner, self.project_id, name)
        return agent_id, await with_key(self.owner, agent_id)


async def new_agent(
    owner: Client,
    project_id: str,
    name: str = "Agent",
    *,
    per_tx_limit: int = 10**12,
    daily_limit: int = 10**12,
    monthly_limit: int | None = None,
) -> str:
    """Add an agent with a rule, and give its id."""
    made = await owner(agents_pb2.CreateAgentRequest(project_id=project_id, name=name))
    await owner(
        budgets_pb2.SetBudgetRuleRequest(
            agent_id=made.agent.id,
            per_tx_limit=per_tx_limit,
            daily_limit=daily_limit,
            monthly_limit=monthly_limit,
        )
    )
    agent_id: str = made.agent.id
    return agent_id


async def with_key(owner: Client, agent_id: str) -> Client:
    """Issue an agent's key, and call with it."""
    issued = await owner(agents_pb2.IssueAgentKeyRequest(agent_id=agent_id))
    return owner.with_credential(issued.secret)


@dataclass(frozen=True)
class Pilot:
    """A server that runs in this process, and a connection to it."""

    app: App
    address: str
    channel: grpc.aio.Channel
    stopping: asyncio.Event
    stopped: "asyncio.Task[None]"

    @property
    def nobody(self) -> Client:
        """A caller without a credential."""
        return Client(self.channel)

    @property
    def pool(self) -> "asyncpg.Pool[Any]":
        """The server's own pool, for looking into its database."""
        return self.app.database.pool

    async def user(
        self, email: str | None = None, password_hash: str = "nobody signs in"
    ) -> tuple[str, Client]:
        """Add a user with a session, past SignUp: hashing a password takes its time."""
        user_id, secret = UserId(self.app.accounts.new_id()), new_secret(CredentialKind.SESSION)
        email = email or f"{fresh('user')}@example.com"
        async with self.app.database.transaction() as conn:
            await accounts_db.insert_user(conn, user_id, email, password_hash, "User", None)
            await accounts_db.insert_session(
                conn,
                SessionId(self.app.accounts.new_id()),
                hash_secret(secret),
                user_id,
                self.app.accounts.session_lifetime,
            )
        return user_id, Client(self.channel, secret)

    async def tenant(self, balance: int = 10**9, **limits: Any) -> Tenant:
        """Add a user with everything that spending takes."""
        user_id, owner = await self.user()
        made = await owner(projects_pb2.CreateProjectRequest(name="Project"))
        agent_id = await new_agent(owner, made.project.id, **limits)
        tenant = Tenant(
            owner=owner,
            agent=await with_key(owner, agent_id),
            user_id=user_id,
            project_id=made.project.id,
            vault_id=made.project.vault_id,
            agent_id=agent_id,
        )
        if balance:
            await tenant.fund(balance)
        return tenant

    async def land(self, paid: ledger_pb2.Event) -> None:
        """Say that the chain has made a payment."""
        vault_id, event_id = VaultId(paid.vault_id), EventId(paid.id)
        await self.app.lanes.decide(ConfirmTransfer(vault_id, event_id, fresh("payment"), 2))

    async def lose(self, paid: ledger_pb2.Event) -> None:
        """Say that a payment, which nobody has signed, is never made."""
        vault_id, event_id = VaultId(paid.vault_id), EventId(paid.id)
        reason = FailureReason.TRANSFER_NOT_SENT
        await self.app.lanes.decide(FailTransfer(vault_id, event_id, reason, None))

    async def dump(self, but: Sequence[str] = ()) -> dict[str, list[str]]:
        """Read every row of every table, but for some tables."""
        async with self.app.database.transaction() as conn:
            tables = await conn.fetch(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
            )
            return {
                name: [
                    row["row"]
                    for row in await conn.fetch(f'SELECT t::text AS row FROM "{name}" AS t')  # noqa: S608 - names of tables
                ]
                for (name,) in tables
                if name not in but
            }


@asynccontextmanager
async def serving(
    url: str, clock: Clock = read_clock, *, duties: bool = False, **changes: Any
) -> AsyncIterator[Pilot]:
    """Serve on a port of the system's choice while the block runs, then drain."""
    settings = make.settings(url, **{"listen_address": "127.0.0.1:0", **changes})
    async with running(settings, clock, duties=duties) as app:
        stopping = asyncio.Event()
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(build_server(settings, app).serve(stopping, ready.set_result))
        task.add_done_callback(lambda _: ready.cancel())
        try:
            await ready
        except asyncio.CancelledError:
            await task
        try:
            async with grpc.aio.insecure_channel(ready.result()) as channel:
                yield Pilot(app, ready.result(), channel, stopping, task)
        finally:
            stopping.set()
            await task
