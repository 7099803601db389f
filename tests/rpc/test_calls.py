"""What happens around every RPC: failures that leak nothing, and callers that never hang."""

import asyncio
import base64
import logging
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import pytest

from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.gen.pilot.v1 import accounts_pb2, agents_pb2, projects_pb2, vaults_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.rpc import auth, calls
from pilot_grpc.services import accounts as accounts_service
from pilot_grpc.services.vaults import Vaults
from pilot_grpc.solana.custody import SealedKey
from tests import make
from tests.rpc.serving import Client, Pilot, Refusal, Tenant, code, refusal, serving

SECRET_TEXT = "canary-7f3a-do-not-tell"

# Long enough for a call to get to its handler, on a busy machine too.
MOMENT = timedelta(seconds=0.7)


def get_vault(tenant: Tenant) -> Any:
    return tenant.owner(vaults_pb2.GetVaultRequest(vault_id=tenant.vault_id))


def raising(error: BaseException) -> Callable[..., Any]:
    async def broken(*_: object) -> None:
        raise error

    return broken


class Gate:
    """A handler that waits until it is let go on, and tells when it has come and how it went."""

    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.open = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def get(self, *_: object) -> None:
        self.entered.release()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError(SECRET_TEXT)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate in front of GetVault."""
    made = Gate()
    monkeypatch.setattr(Vaults, "get", made.get)
    return made


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET_TEXT),
        KeyError(SECRET_TEXT),
        AssertionError(SECRET_TEXT),
        RecursionError(SECRET_TEXT),
        MemoryError(SECRET_TEXT),
        asyncpg.PostgresSyntaxError(SECRET_TEXT),
        StopAsyncIteration(SECRET_TEXT),
        ExceptionGroup(SECRET_TEXT, [ValueError(SECRET_TEXT)]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_defect_tells_its_caller_nothing_but_where_to_look(
    pilot: Pilot,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """INTERNAL with an id, which the log has beside the traceback."""
    tenant = await pilot.tenant()
    monkeypatch.setattr(Vaults, "get", raising(error))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await get_vault(tenant)

    found = await refusal(get_vault(tenant))
    assert (found.code, found.reason) == ("INTERNAL", "INTERNAL")
    assert set(found.metadata) == {"error_id"}
    assert SECRET_TEXT not in repr(caught.value.trailing_metadata())
    assert SECRET_TEXT not in (caught.value.details() or "")
    assert found.metadata["error_id"] in caplog.text
    assert SECRET_TEXT in caplog.text


async def test_the_words_of_the_database_stay_here(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A statement that the server refuses is a defect of ours: no name of a column gets out."""
    tenant = await pilot.tenant()
    monkeypatch.setattr(vaults_db, "SELECT_VAULT", "SELECT no_such_column FROM vaults")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await get_vault(tenant)

    everything = f"{caught.value.details()} {caught.value.trailing_metadata()!r}"
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "no_such_column" not in everything
    assert "no_such_column" in caplog.text


async def test_a_handler_that_is_cancelled_by_nobody_does_not_leave_its_caller_waiting(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something that it waited for went away: the caller tries again."""
    tenant = await pilot.tenant()
    monkeypatch.setattr(Vaults, "get", raising(asyncio.CancelledError()))

    found = await refusal(get_vault(tenant))

    assert (found.code, found.reason) == ("UNAVAILABLE", "SERVER_DRAINING")
    assert found.retry_seconds is not None


async def test_no_call_takes_longer_than_the_server_allows(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a deadline of its own, or with a longer one, a caller is answered at the cap."""
    gate = Gate()
    monkeypatch.setattr(Vaults, "get", gate.get)
    async with serving(database) as pilot, serving(database, deadline=MOMENT) as strict:
        tenant = await pilot.tenant()
        owner = strict.nobody.with_credential(tenant.owner.credential)
        found = await refusal(owner(vaults_pb2.GetVaultRequest(vault_id=tenant.vault_id)))

        assert found == Refusal("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
        assert gate.cancelled.is_set()


async def test_a_caller_that_stops_waiting_ends_its_call(pilot: Pilot, gate: Gate) -> None:
    """By its own deadline, or by cancelling: the handler stops, and the server goes on."""
    tenant = await pilot.tenant()
    message = vaults_pb2.GetVaultRequest(vault_id=tenant.vault_id)

    assert await code(tenant.owner(message, MOMENT.total_seconds())) == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(gate.cancelled.wait(), 10)
    gate.cancelled.clear()
    call = tenant.owner(message)
    await gate.entered.acquire()
    await gate.entered.acquire()
    call.cancel()
    await asyncio.wait_for(gate.cancelled.wait(), 10)

    assert await code(tenant.owner(projects_pb2.ListProjectsRequest())) == "OK"


async def test_a_call_beyond_those_in_flight_is_refused_at_once(
    pilot: Pilot, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is queued without a limit; those inside are not disturbed."""
    tenant = await pilot.tenant()
    monkeypatch.setattr(calls, "IN_FLIGHT_MAX", 2)
    inside = [asyncio.ensure_future(code(get_vault(tenant))) for _ in range(2)]
    for _ in inside:
        await gate.entered.acquire()

    found = await refusal(tenant.owner(projects_pb2.ListProjectsRequest()))
    gate.open.set()

    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert found.retry_seconds is not None
    assert await asyncio.gather(*inside) == ["INTERNAL"] * 2
    assert await code(tenant.owner(projects_pb2.ListProjectsRequest())) == "OK"


async def test_sign_ins_beyond_what_can_be_hashed_are_refused_at_once(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing is slow on purpose; a flood of sign-ins neither piles up nor stops the others."""
    tenant = await pilot.tenant()
    monkeypatch.setattr(accounts_service, "HASHING_QUEUE_MAX", 0)

    found = await refusal(
        pilot.nobody(accounts_pb2.SignInRequest(email="a@example.com", password="x"))
    )

    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert await code(get_vault(tenant)) == "OK"


async def must_be_given_back(pilot: Pilot, tenant: Tenant) -> None:
    """Wait until every connection is idle: the last cancellations are still on their way."""
    async with asyncio.timeout(30):
        for pool in (pilot.app.database.pool, pilot.app.watch.pool):
            while pool.get_idle_size() != pool.get_size():
                await get_vault(tenant)


async def test_a_storm_of_cancelled_calls_leaves_the_server_whole(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers leave at any moment; every connection comes back, and every unit is accounted for."""
    async with serving(database) as pilot:
        tenant = await pilot.tenant(balance=10_000)
        chance = random.Random(7)  # noqa: S311 - the same storm every time
        requests = [pb.SpendRequest(amount=1, request_id=f"storm-{n}") for n in range(400)]

        async def impatient(request: pb.SpendRequest) -> None:
            call = tenant.agent(request)
            await asyncio.sleep(chance.random() * 0.05)
            call.cancel()

        await asyncio.gather(*map(impatient, requests))
        answers = await asyncio.gather(*map(tenant.agent, requests))

        assert {answer.event.status for answer in answers} == {pb.EVENT_STATUS_CONFIRMED}
        assert len({answer.event.id for answer in answers}) == 400
        vault = (await get_vault(tenant)).vault
        assert (vault.balance, vault.revision) == (10_000 - 400, 401)
        verified = await tenant.owner(pb.VerifyLedgerRequest(vault_id=tenant.vault_id))
        assert not verified.HasField("discrepancy")
        await must_be_given_back(pilot, tenant)
        assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_a_storm_on_slow_reads_leaves_the_pool_whole(
    pilot: Pilot, caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled in the middle of a statement, a connection is given back clean."""
    tenant = await pilot.tenant()

    async def impatient(seconds: float) -> None:
        call = tenant.owner(projects_pb2.ListProjectsRequest())
        await asyncio.sleep(seconds)
        call.cancel()

    async with pilot.app.database.transaction() as conn:
        await conn.execute("LOCK TABLE projects IN ACCESS EXCLUSIVE MODE")
        await asyncio.gather(*(impatient(0.01 + n / 1_000) for n in range(30)))

    read = await asyncio.gather(
        *(tenant.owner(projects_pb2.ListProjectsRequest()) for _ in range(30))
    )
    assert {len(answer.projects) for answer in read} == {1}
    await must_be_given_back(pilot, tenant)
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_a_decision_that_its_caller_did_not_wait_for_can_be_asked_again(
    pilot: Pilot,
) -> None:
    """The vault is locked by another until the caller has left; then the same id decides once."""
    tenant = await pilot.tenant(balance=100)
    request = pb.SpendRequest(amount=10, request_id="patient")

    async with pilot.app.database.transaction() as conn:
        await vaults_db.lock_vaults(conn, [VaultId(tenant.vault_id)])
        assert await code(tenant.agent(request, timeout=0.3)) == "DEADLINE_EXCEEDED"

    answers = [await tenant.agent(request) for _ in range(2)]

    assert answers[0] == answers[1]
    assert (await get_vault(tenant)).vault.balance == 90


async def test_an_agent_that_is_declined_too_often_is_stopped(database: str) -> None:
    """Unrecorded, with when to try again; its answers, and other agents, are as before."""
    async with serving(database, declines_per_minute=3) as pilot:
        tenant = await pilot.tenant(balance=100)
        _, beside = await tenant.another_agent()
        declined = [await tenant.spend(101, request_id=f"d{n}") for n in range(3)]
        before = await pilot.dump()

        stopped = await refusal(tenant.agent(pb.SpendRequest(amount=1_000, request_id="d3")))

        assert (stopped.code, stopped.reason) == ("RESOURCE_EXHAUSTED", "DECLINES_LIMITED")
        assert stopped.metadata == {"limit": "3"}
        assert stopped.retry_seconds is not None
        assert 0 < stopped.retry_seconds <= 60
        assert await pilot.dump() == before
        assert await tenant.spend(101, request_id="d0") == declined[0]
        answer = await beside(pb.SpendRequest(amount=1, request_id="fine"))
        assert answer.event.status == pb.EVENT_STATUS_CONFIRMED


@pytest.mark.parametrize(
    "path",
    ["/pilot.v1.LedgerService/Mint", "/pilot.v1.GhostService/Spend", "/pilot.v2.X/Y", "/x/y"],
)
async def test_what_is_no_rpc_is_unimplemented(pilot: Pilot, path: str) -> None:
    tenant = await pilot.tenant()
    rpc: Any = pilot.channel.unary_unary(path)

    found = await refusal(rpc(b"", metadata=(("authorization", tenant.owner.authorization),)))

    assert found.code == "UNIMPLEMENTED"


async def test_an_rpc_without_a_place_in_the_table_is_not_served(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgotten is closed, not open to all."""
    monkeypatch.delitem(auth.ACCESS, "/pilot.v1.VaultService/GetVault")
    monkeypatch.delitem(auth.ACCESS, "/pilot.v1.LedgerService/SubscribeEvents")
    tenant = await pilot.tenant()
    subscribe = pb.SubscribeEventsRequest(start=pb.STREAM_START_LATEST)

    assert await code(get_vault(tenant)) == "UNIMPLEMENTED"
    assert await code(tenant.owner(subscribe)) == "UNIMPLEMENTED"
    assert await code(Client(pilot.channel)(projects_pb2.ListProjectsRequest())) != "UNIMPLEMENTED"


async def test_calls_in_flight_end_before_the_server_does(pilot: Pilot, gate: Gate) -> None:
    """Once it drains, a call that comes is told to go elsewhere, and one that is in gets home."""
    tenant = await pilot.tenant()
    inside = asyncio.ensure_future(refusal(get_vault(tenant)))
    await gate.entered.acquire()

    pilot.stopping.set()
    while (late := await refusal(tenant.owner(projects_pb2.ListProjectsRequest()))).code == "OK":
        pass
    gate.open.set()

    assert (late.code, late.reason) == ("UNAVAILABLE", "SERVER_DRAINING")
    assert late.retry_seconds is not None
    assert (await inside).code == "INTERNAL"
    await pilot.stopped


async def test_a_call_that_outlasts_the_grace_is_cut_off(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server leaves all the same, and the caller is told that the outcome is unknown."""
    gate = Gate()
    monkeypatch.setattr(Vaults, "get", gate.get)
    async with serving(database, drain_grace=timedelta(seconds=0.2)) as pilot:
        tenant = await pilot.tenant()
        inside = asyncio.ensure_future(code(get_vault(tenant)))
        await gate.entered.acquire()

        pilot.stopping.set()
        await pilot.stopped

        assert await inside in {"UNAVAILABLE", "CANCELLED"}
        assert gate.cancelled.is_set()


PASSWORDS = ("canary-first-password", "canary-second-password", "canary-wrong-password")


class Life:
    """Passwords and credentials in use, and what was said when something went wrong."""

    def __init__(self, pilot: Pilot) -> None:
        self.nobody = pilot.nobody
        self.credentials: list[str] = []
        self.told: list[str] = []

    async def live(self) -> None:
        """Use everything that is secret, rightly and wrongly."""
        first, second, wrong = PASSWORDS
        up = await self.nobody(
            accounts_pb2.SignUpRequest(email="a@example.com", password=first, name="Ann")
        )
        session = self.nobody.with_credential(up.session_token)
        change = accounts_pb2.ChangePasswordRequest(current_password=first, new_password=second)
        await session(change)
        back = await self.nobody(sign_in(second))
        key = await session(create_key(request_id="once"))
        project = await session(projects_pb2.CreateProjectRequest(name="Project"))
        agent = await session(
            agents_pb2.CreateAgentRequest(project_id=project.project.id, name="Agent")
        )
        issued = await session(agents_pb2.IssueAgentKeyRequest(agent_id=agent.agent.id))
        self.credentials = [up.session_token, back.session_token, key.secret, issued.secret]
        await self.fail(self.nobody(sign_in(wrong)))
        await self.fail(self.nobody(sign_in(first * 10)))
        await self.fail(session(change))
        await self.fail(session(create_key(name=key.secret * 3, request_id="once")))
        for credential in self.credentials:
            caller = self.nobody.with_credential(credential)
            await self.fail(caller(pb.SpendRequest(amount=-1)))
            await self.fail(
                self.nobody.with_credential(f"{credential}x")(accounts_pb2.WhoAmIRequest())
            )

    async def break_down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let statements fail while a password, or a new secret, is in hand."""
        with monkeypatch.context() as broken:
            broken.setattr(accounts_db, "INSERT_SESSION", "INSERT INTO sessions (no) VALUES ($1)")
            broken.setattr(accounts_db, "COUNT_API_KEYS", "SELECT no FROM api_keys")
            session = self.nobody.with_credential(self.credentials[0])
            assert await self.fail(self.nobody(sign_in(PASSWORDS[1]))) == "INTERNAL"
            assert await self.fail(session(create_key())) == "INTERNAL"

    async def fail(self, call: Any) -> str:
        """Keep all that a caller is told of an error."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        self.told.append(f"{caught.value!r} {caught.value.trailing_metadata()!r}")
        return caught.value.code().name


def sign_in(password: str) -> accounts_pb2.SignInRequest:
    return accounts_pb2.SignInRequest(email="a@example.com", password=password)


def create_key(name: str = "Key", request_id: str = "") -> accounts_pb2.CreateApiKeyRequest:
    return accounts_pb2.CreateApiKeyRequest(
        name=name, permissions=[accounts_pb2.PERMISSION_WRITE], request_id=request_id
    )


async def test_no_secret_is_ever_told(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the log at its loudest, not to a caller in an error, not in a repr or a table."""
    caplog.set_level(logging.DEBUG)
    wrapping = make.WRAPPING_KEY.secret
    life = Life(pilot)

    await life.live()
    await life.break_down(monkeypatch)

    secrets = [*PASSWORDS, *(credential[3:] for credential in life.credentials)]
    rows = await pilot.pool.fetch(
        "SELECT vault_id, address, version, wrapping_key_id, wrapped_data_key, sealed_secret"
        "  FROM vault_keys"
    )
    custody = pilot.app.projects.custody
    wallets = [bytes(custody._open(SealedKey(**row)).secret()) for row in rows]
    for raw in (wrapping, *wallets, *(wallet[:32] for wallet in wallets)):
        secrets += [raw.hex(), base64.b64encode(raw).decode(), repr(raw)]
    reprs = f"{pilot.app!r} {make.settings('postgresql://u:p@h/d')!r} {make.WRAPPING_KEY!r}"
    dump = "\n".join(row for table in (await pilot.dump()).values() for row in table)
    assert len(rows) == 1
    assert "Traceback" in caplog.text
    for secret in secrets:
        assert secret not in caplog.text
        assert secret not in "\n".join(life.told)
        assert secret not in reprs
        assert secret not in dump
