"""Two real servers on one database: callers race, processes die and freeze, and money stays right.

What one process does alone is tested beside its code; here is what only two of them can break.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.message import Message

from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db.connection import Database, open_database
from pilot_grpc.domain.accounts import CredentialKind
from pilot_grpc.domain.ids import SessionId, UserId
from pilot_grpc.domain.ledger import AMOUNT_MAX
from pilot_grpc.gen.pilot.v1 import agents_pb2, budgets_pb2, projects_pb2, vaults_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.services.credentials import hash_secret, new_secret
from tests import faulty, histories, model
from tests.conftest import Server
from tests.processes import (
    SERVE,
    SERVE_IMPATIENTLY,
    SERVE_WITH_FAULTS,
    Process,
    channel_to,
    processes,
)
from tests.rpc.serving import Client, fresh, new_agent, read, refusal, with_key

# After these a caller repeats its request; nobody knows what became of it.
UNKNOWN: Final = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL"}
# After this it may come again as well: the attempt did nothing.
REPEATED: Final = UNKNOWN | {"RESOURCE_EXHAUSTED"}


@dataclass(frozen=True)
class Party:
    """A user with a project, a funded vault and an agent, as two servers know them."""

    owners: tuple[Client, Client]
    agents: tuple[Client, Client]
    project_id: str
    vault_id: str
    agent_id: str

    @property
    def owner(self) -> Client:
        return self.owners[0]

    def spends(self, count: int, amount: int) -> list[Awaitable[pb.SpendResponse]]:
        """Spends with ids of their own, on both servers in turn."""
        return [
            self.agents[n % 2](pb.SpendRequest(amount=amount, request_id=fresh()))
            for n in range(count)
        ]

    async def vault(self) -> vaults_pb2.Vault:
        answer = await self.owner(vaults_pb2.GetVaultRequest(vault_id=self.vault_id))
        vault: vaults_pb2.Vault = answer.vault
        return vault

    async def is_right(self) -> bool:
        """Whether VerifyLedger accepts all pages of the vault."""
        token = ""
        while True:
            request = pb.VerifyLedgerRequest(vault_id=self.vault_id, page_token=token)
            page = await self.owner(request)
            if page.HasField("discrepancy"):
                return False
            token = page.next_page_token
            if not token:
                return True


@dataclass(frozen=True)
class Two:
    """Connections to two servers, and a look into their database."""

    channels: tuple[grpc.aio.Channel, grpc.aio.Channel]
    database: Database

    async def party(self, balance: int = 10**9, **limits: Any) -> Party:
        """A new user with all that spending takes."""
        user_id, secret = UserId(fresh("cuser")), new_secret(CredentialKind.SESSION)
        async with self.database.transaction() as conn:
            email = f"{user_id}@example.com"
            await accounts_db.insert_user(conn, user_id, email, "no hash", "User", None)
            session = SessionId(fresh("csession")), hash_secret(secret), user_id
            await accounts_db.insert_session(conn, *session, timedelta(days=1))
        owners = self.clients(secret)
        made = await owners[0](projects_pb2.CreateProjectRequest(name="Project"))
        agent_id = await new_agent(owners[0], made.project.id, **limits)
        key = (await with_key(owners[0], agent_id)).credential
        vault_id = made.project.vault_id
        if balance:
            request = pb.RecordFundingRequest(vault_id=vault_id, amount=balance, request_id=fresh())
            await owners[0](request)
        return Party(owners, self.clients(key), made.project.id, vault_id, agent_id)

    def clients(self, credential: str | None) -> tuple[Client, Client]:
        one, other = self.channels
        return Client(one, credential), Client(other, credential)


async def connected(
    stack: AsyncExitStack, server: Server, url: str, pair: Sequence[Process]
) -> Two:
    database = await open_database(url, pooler=server.pooler, size=3)
    stack.push_async_callback(database.close)
    one, other = [await stack.enter_async_context(channel_to(process)) for process in pair]
    return Two((one, other), database)


@pytest.fixture(scope="module")
def pair(server: Server, shared_database: str) -> Iterator[tuple[Process, ...]]:
    """Two servers for all tests that leave them alive."""
    with processes(server, shared_database, SERVE, SERVE) as running:
        yield running


@pytest.fixture
async def two(
    server: Server, shared_database: str, pair: tuple[Process, ...]
) -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        yield await connected(stack, server, shared_database, pair)


def reasons(answers: Sequence[Any]) -> Counter[str]:
    """How often each reason declined; the empty one stands for what was approved."""
    names = [pb.FailureReason.Name(answer.event.failure_reason) for answer in answers]
    return Counter(
        "" if name.endswith("UNSPECIFIED") else name.removeprefix("FAILURE_REASON_")
        for name in names
    )


async def until(condition: Callable[[], bool]) -> None:
    """Return once something is so that nobody signals."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


# --- callers race ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"daily_limit": 995}, "DAILY_LIMIT"),
        ({"monthly_limit": 995}, "MONTHLY_LIMIT"),
        ({"balance": 995}, "INSUFFICIENT_BALANCE"),
    ],
)
async def test_many_callers_never_exceed_a_limit(
    two: Two, limits: dict[str, Any], reason: str
) -> None:
    """Two hundred spends of 10 over both: ninety-nine fit into 995."""
    party = await two.party(**limits)

    answers = await asyncio.gather(*party.spends(200, 10))

    assert reasons(answers) == {"": 99, reason: 101}
    assert sorted(answer.event.revision for answer in answers) == [
        *range((await party.vault()).revision - 199, (await party.vault()).revision + 1)
    ]
    assert await party.is_right()


async def test_the_first_spends_of_a_new_agent_race(two: Two) -> None:
    """Nobody has spent yet, no server knows the agent: two of ten fit."""
    party = await two.party()
    agent_id = await new_agent(party.owner, party.project_id, daily_limit=25)
    key = (await with_key(party.owner, agent_id)).credential
    agents = two.clients(key)

    answers = await asyncio.gather(
        *(agents[n % 2](pb.SpendRequest(amount=10, request_id=fresh())) for n in range(10))
    )

    assert reasons(answers) == {"": 2, "DAILY_LIMIT": 8}
    assert await party.is_right()


async def test_duplicates_on_both_servers_have_one_effect_and_the_same_bytes(two: Two) -> None:
    """Spends, holds, captures, releases, refunds, batches and funding, ten times each."""
    party = await two.party(1_000)
    spent, first, second = await asyncio.gather(
        party.agents[0](pb.SpendRequest(amount=100, request_id=fresh())),
        party.agents[0](pb.AuthorizeSpendRequest(amount=50, request_id=fresh())),
        party.agents[1](pb.AuthorizeSpendRequest(amount=50, request_id=fresh())),
    )
    spend = pb.SpendRequest(agent_id=party.agent_id, amount=30, request_id=fresh())
    requests: list[Message] = [
        spend,
        pb.BatchSpendRequest(spends=[spend, pb.SpendRequest(amount=1, request_id=fresh())]),
        pb.AuthorizeSpendRequest(agent_id=party.agent_id, amount=40, request_id=fresh()),
        pb.CaptureSpendRequest(event_id=first.event.id, amount=20, request_id=fresh()),
        pb.ReleaseSpendRequest(event_id=second.event.id, request_id=fresh()),
        pb.RefundRequest(event_id=spent.event.id, amount=60, request_id=fresh()),
        pb.RecordFundingRequest(vault_id=party.vault_id, amount=500, request_id=fresh()),
    ]
    requests[1].spends[1].agent_id = party.agent_id  # type: ignore[attr-defined]
    before = (await party.vault()).revision

    for request in requests:
        answers = await asyncio.gather(*(party.owners[n % 2].raw(request) for n in range(10)))
        assert len(set(answers)) == 1, request

    vault = await party.vault()
    assert vault.revision == before + 7
    assert vault.balance == 1_000 - 100 - 30 - 1 - 40 - 20 + 60 + 500
    assert await party.is_right()


async def test_the_same_id_for_something_else_is_refused_on_the_other_server(two: Two) -> None:
    """Another body, another RPC: ALREADY_EXISTS names what differs, and nothing happens."""
    party = await two.party(1_000)
    await party.agents[0](pb.SpendRequest(amount=10, request_id="r", metadata="{}"))
    other, before = party.agents[1], await party.vault()

    for request, fields in (
        (pb.SpendRequest(amount=11, request_id="r", metadata="{}"), "amount"),
        (pb.SpendRequest(amount=11, request_id="r", metadata="[]"), "amount,metadata"),
        (pb.SpendRequest(amount=10, request_id="r"), "metadata"),
        (pb.AuthorizeSpendRequest(amount=10, request_id="r", metadata="{}"), "rpc"),
    ):
        refused = await refusal(other(request))
        assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
        assert refused.metadata == {"request_id": "r", "fields": fields}

    assert await party.vault() == before


@pytest.mark.parametrize("amount", [0, -1, -AMOUNT_MAX, -(2**63), AMOUNT_MAX + 1, 2**63 - 1])
async def test_amounts_past_the_limits_are_refused_by_name(two: Two, amount: int) -> None:
    """By every RPC that moves money; the vault stays as it is."""
    party = await two.party(1_000)
    held = await party.agents[0](pb.AuthorizeSpendRequest(amount=50, request_id=fresh()))
    wrong: dict[str, Any] = {"amount": amount, "request_id": fresh()}
    before = await party.vault()

    for request, field in (
        (pb.SpendRequest(agent_id=party.agent_id, **wrong), "amount"),
        (
            pb.BatchSpendRequest(spends=[pb.SpendRequest(agent_id=party.agent_id, **wrong)]),
            "spends[0].amount",
        ),
        (pb.AuthorizeSpendRequest(agent_id=party.agent_id, **wrong), "amount"),
        (pb.CaptureSpendRequest(event_id=held.event.id, **wrong), "amount"),
        (pb.RefundRequest(event_id=held.event.id, **wrong), "amount"),
        (pb.RecordFundingRequest(vault_id=party.vault_id, **wrong), "amount"),
        (budgets_pb2.CheckSpendRequest(agent_id=party.agent_id, amount=amount), "amount"),
    ):
        refused = await refusal(party.owners[1](request))
        assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", [field])

    assert await party.vault() == before


STOPS: Final[dict[str, tuple[Callable[[Party], Message], str]]] = {
    "the agent is paused": (
        lambda party: agents_pb2.PauseAgentRequest(agent_id=party.agent_id),
        "AGENT_NOT_ACTIVE",
    ),
    "the project is paused": (
        lambda party: projects_pb2.PauseProjectRequest(project_id=party.project_id),
        "PROJECT_NOT_ACTIVE",
    ),
    "the rule is removed": (
        lambda party: budgets_pb2.RemoveBudgetRuleRequest(agent_id=party.agent_id),
        "NO_BUDGET_RULE",
    ),
}


@pytest.mark.parametrize(("stop", "reason"), STOPS.values(), ids=STOPS.keys())
async def test_once_a_stop_returns_no_server_approves_anything(
    two: Two, stop: Callable[[Party], Message], reason: str
) -> None:
    """Spends run on both without a break while one of them is told to stop."""
    party = await two.party()
    events: list[pb.Event] = []
    stopped = asyncio.Event()

    async def spend_on(agent: Client) -> None:
        after = 0
        while after < 10:
            answer = await agent(pb.SpendRequest(amount=1, request_id=fresh()))
            events.append(answer.event)
            after += stopped.is_set()

    running = [asyncio.create_task(spend_on(agent)) for agent in party.agents * 4]
    await until(lambda: len(events) >= 40)
    await party.owners[0](stop(party))
    stopped_at = (await party.vault()).revision
    stopped.set()
    await asyncio.gather(*running)

    late = [event.failure_reason for event in events if event.revision > stopped_at]
    assert set(late) == {pb.FailureReason.Value(f"FAILURE_REASON_{reason}")}
    assert len(late) >= 40
    assert await party.is_right()


async def test_a_hold_expires_once_between_captures_and_sweepers(two: Two) -> None:
    """Both capture twenty holds of a second at the very end of it, while both sweep."""
    party = await two.party(10_000)
    holds = [
        answer.event
        for answer in await asyncio.gather(
            *(party.agents[n % 2](_hold(10, timedelta(seconds=1), fresh())) for n in range(20))
        )
    ]
    last = max(event.expire_time.ToNanoseconds() for event in holds)
    now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"

    outcomes: list[str] = []
    while await two.database.pool.fetchval(now) < last + 10_000_000:
        captures = [(agent, event) for event in holds[:3] for agent in party.agents]
        ended = await asyncio.gather(
            *(refusal(agent(_capture(event, 4, fresh()))) for agent, event in captures)
        )
        outcomes += [each.reason for each in ended]
        holds = holds[3:] + holds[:3]

    captured = outcomes.count("")
    assert set(outcomes) <= {"", "HOLD_NOT_OPEN", "HOLD_EXPIRED"}
    final = await asyncio.gather(*(refusal(party.owner(_capture(e, 1, fresh()))) for e in holds))
    assert {each.reason for each in final} <= {"HOLD_NOT_OPEN", "HOLD_EXPIRED"}
    assert sum(each.reason == "HOLD_NOT_OPEN" for each in final) == captured
    vault = await party.vault()
    assert (vault.balance, vault.held) == (10_000 - 4 * captured, 0)
    assert await party.is_right()


def _hold(amount: int, ttl: timedelta, request_id: str) -> pb.AuthorizeSpendRequest:
    request = pb.AuthorizeSpendRequest(amount=amount, request_id=request_id)
    request.ttl.FromTimedelta(ttl)
    return request


def _capture(event: pb.Event, amount: int, request_id: str) -> pb.CaptureSpendRequest:
    return pb.CaptureSpendRequest(event_id=event.id, amount=amount, request_id=request_id)


# --- random histories -----------------------------------------------------------------


@dataclass(frozen=True)
class Sockets:
    """One of two servers, asked by the owner of a vault until the outcome is known."""

    clients: tuple[Client, Client]
    first: int
    vault_id: str

    async def _repeat(self, request: Message) -> Any:
        """Send a request to this server and, whenever that fails, to the next one."""
        at = self.first
        while True:
            try:
                return await self.clients[at](request)
            except grpc.aio.AioRpcError as error:
                if error.code().name not in REPEATED or read(error).reason == "OPEN_HOLDS_LIMIT":
                    raise
            at = 1 - at

    async def ask(self, asked: model.Asked, request_id: str) -> model.Answer | model.Refused:
        try:
            answer = await self._repeat(self._request(asked, request_id))
        except grpc.aio.AioRpcError as error:
            return model.Refused(read(error).reason)
        return answer_of(answer.event)

    def _request(self, asked: model.Asked, request_id: str) -> Message:
        scope: dict[str, Any] = {"request_id": request_id}
        if asked.event_id is not None:
            scope["event_id"] = asked.event_id
        elif asked.agent_id is not None:
            scope["agent_id"] = asked.agent_id
        else:
            scope |= {"vault_id": self.vault_id, "pending": asked.pending}
        request: Any = getattr(pb, f"{asked.rpc}Request")(**scope)
        if asked.rpc not in {"ReleaseSpend", "ConfirmFunding", "FailFunding"}:
            request.amount = asked.amount
        if asked.rpc == "AuthorizeSpend":
            request.ttl.FromTimedelta(asked.ttl)
        return request  # type: ignore[no-any-return]

    async def set_limits(self, agent_id: str, limits: model.Limits) -> None:
        per_tx, daily, monthly = limits
        await self._repeat(
            budgets_pb2.SetBudgetRuleRequest(
                agent_id=agent_id, per_tx_limit=per_tx, daily_limit=daily, monthly_limit=monthly
            )
        )

    async def remove_limits(self, agent_id: str) -> None:
        try:
            await self._repeat(budgets_pb2.RemoveBudgetRuleRequest(agent_id=agent_id))
        except grpc.aio.AioRpcError as error:
            # An attempt whose outcome was unknown had removed it.
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    async def pause(self, agent_id: str) -> None:
        await self._repeat(agents_pb2.PauseAgentRequest(agent_id=agent_id))

    async def resume(self, agent_id: str) -> None:
        await self._repeat(agents_pb2.ResumeAgentRequest(agent_id=agent_id))

    async def revision(self) -> int:
        answer = await self._repeat(vaults_pb2.GetVaultRequest(vault_id=self.vault_id))
        revision: int = answer.vault.revision
        return revision


def answer_of(event: pb.Event) -> model.Answer:
    """An event as the model compares it."""
    figures: dict[str, Any] | None = None
    if event.HasField("decline"):
        figures = {
            field.name: value
            for field, value in event.decline.ListFields()
            if field.name not in {"reason", "window_end_time"}
        }
        figures["reason"] = _reason(event.decline.reason)
        if event.decline.HasField("window_end_time"):
            figures["window_ends_at"] = event.decline.window_end_time.ToDatetime(UTC)
    status = pb.EventStatus.Name(event.status).removeprefix("EVENT_STATUS_").lower()
    reason = _reason(event.failure_reason) if event.failure_reason else None
    return model.Answer(event.id, event.revision, status, event.amount, reason, figures)


def _reason(number: Any) -> str:
    return pb.FailureReason.Name(number).removeprefix("FAILURE_REASON_").lower()


TTLS: Final = [timedelta(seconds=1), timedelta(minutes=10)]


async def history_of(two: Two, seed: int) -> tuple[histories.History, Party]:
    """A vault with three agents, and who will work on it."""
    first, *others = histories.FIRST_LIMITS
    party = await two.party(0, **_named(first))
    agent_ids = [party.agent_id]
    for limits in others:
        agent_ids.append(await new_agent(party.owner, party.project_id, **_named(limits)))
        await with_key(party.owner, agent_ids[-1])
    history = histories.History(
        places=[Sockets(party.owners, first, party.vault_id) for first in (0, 1)],
        agent_ids=agent_ids,
        chance=random.Random(seed),  # noqa: S311 - histories, not secrets
        ttls=TTLS,
    )
    return history, party


def _named(limits: model.Limits) -> dict[str, Any]:
    per_tx, daily, monthly = limits
    return {"per_tx_limit": per_tx, "daily_limit": daily, "monthly_limit": monthly}


async def test_every_answer_of_two_servers_is_what_the_model_says(two: Two) -> None:
    """Callers and an owner at work over sockets, replayed by an independent model."""
    history, party = await history_of(two, seed=1)

    await history.make(callers=12, steps=30)

    await history.check(two.database.pool, party.vault_id)
    assert await party.is_right()


@pytest.mark.timeout(180)
async def test_servers_that_die_at_random_lose_nothing_and_do_nothing_twice(
    server: Server, shared_database: str
) -> None:
    """One after another is killed and started again; whoever asked repeats until it is answered."""
    async with AsyncExitStack() as stack:
        pair = stack.enter_context(processes(server, shared_database, SERVE, SERVE))
        two = await connected(stack, server, shared_database, pair)
        history, party = await history_of(two, seed=2)
        chance = random.Random(3)  # noqa: S311 - histories, not secrets
        ends = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)

        async def disturb() -> None:
            for turn in range(4):
                before = len(history.requests)
                await until(lambda: len(history.requests) > before + chance.randrange(5, 40))  # noqa: B023
                process = pair[turn % 2]
                process.signal(ends[turn % 3])
                await asyncio.to_thread(process.wait)
                process.start()
                async with channel_to(process):
                    pass

        disturbing = asyncio.create_task(disturb())
        while not disturbing.done():
            await history.make(callers=8, steps=10)
            history.done.clear()
        await disturbing

        await history.check(two.database.pool, party.vault_id)
        assert await party.is_right()


# --- at a chosen moment ---------------------------------------------------------------


@dataclass(frozen=True)
class Faulty:
    """Two servers, the first of which fails where a request tells it to."""

    process: Process
    two: Two


@pytest.fixture
async def fault(server: Server, shared_database: str) -> AsyncIterator[Faulty]:
    async with AsyncExitStack() as stack:
        programs = SERVE_WITH_FAULTS, SERVE_IMPATIENTLY
        pair = stack.enter_context(processes(server, shared_database, *programs))
        two = await connected(stack, server, shared_database, pair)
        yield Faulty(pair[0], two)


@pytest.mark.parametrize("moment", [faulty.DIE_BEFORE_COMMIT, faulty.DIE_AFTER_COMMIT])
async def test_a_request_that_is_repeated_after_a_crash_has_one_effect(
    fault: Faulty, moment: str
) -> None:
    """Before the commit nothing happened, after it all of it: the answer is the same."""
    party = await fault.two.party(1_000)
    request = pb.SpendRequest(amount=10, request_id="r", metadata=moment)
    beside = [pb.SpendRequest(amount=1, request_id=fresh()) for _ in range(20)]

    lost = await asyncio.gather(*(refusal(party.agents[0](each)) for each in (request, *beside)))
    assert await asyncio.to_thread(fault.process.wait) == -signal.SIGKILL
    assert lost[0].code in UNKNOWN
    after_the_crash = (await _vault(party.owners[1], party)).balance
    answers = [await party.agents[1](each) for each in (request, *beside)]
    again = [await party.agents[1](each) for each in (request, *beside)]

    assert answers == again
    assert reasons(answers) == {"": 21}
    assert (await _vault(party.owners[1], party)).balance == 1_000 - 10 - 20
    happened = 1_000 - after_the_crash >= 10
    assert happened == (moment == faulty.DIE_AFTER_COMMIT)


async def _vault(owner: Client, party: Party) -> vaults_pb2.Vault:
    answer = await owner(vaults_pb2.GetVaultRequest(vault_id=party.vault_id))
    vault: vaults_pb2.Vault = answer.vault
    return vault


@pytest.mark.parametrize("moment", [faulty.FREEZE_BEFORE_COMMIT, faulty.FREEZE_WHILE_WRITING])
async def test_a_frozen_server_loses_its_locks_and_decides_nothing_late(
    fault: Faulty, moment: str
) -> None:
    """The other one goes on; thawed, the first has spent nothing, and serves again."""
    party = await fault.two.party(1_000)
    request = pb.SpendRequest(amount=10, request_id="r", metadata=moment)
    frozen = asyncio.ensure_future(party.agents[0](request, timeout=60))
    await until(lambda: _is_stopped(fault.process))

    sockets = Sockets((party.agents[1],) * 2, 0, party.vault_id)
    answers = [
        await sockets._repeat(pb.SpendRequest(amount=1, request_id=fresh())) for _ in range(5)
    ]
    fault.process.signal(signal.SIGCONT)
    outcome = await refusal(frozen)
    repeated = [
        await agent(pb.SpendRequest(amount=10, request_id="r", metadata=moment))
        for agent in party.agents[::-1]
    ]

    assert reasons(answers) == {"": 5}
    assert outcome.code in UNKNOWN
    assert repeated[0] == repeated[1]
    vault = await party.vault()
    assert (vault.balance, vault.revision) == (1_000 - 5 - 10, 7)
    assert await party.is_right()


def _is_stopped(process: Process) -> bool:
    assert process.running is not None
    stat = Path(f"/proc/{process.running.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"
