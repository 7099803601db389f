"""The server as others find it: described, healthy or not, encrypted, and leaving in order."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pilot_grpc.db import connection, vaults
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.gen.pilot.v1 import accounts_pb2, projects_pb2, vaults_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from pilot_grpc.settings import SettingsError
from tests import make
from tests.rpc.proxy import proxied
from tests.rpc.serving import (
    METHODS,
    Client,
    Pilot,
    Refusal,
    Tenant,
    code,
    refusal,
    serving,
)

SERVICES = sorted({method.containing_service.full_name for method in METHODS.values()})
OTHERS = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]

Serving = health_pb2.HealthCheckResponse.ServingStatus


def health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def status_of(pilot: Pilot, service: str = "") -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    answer = await health(pilot.channel).Check(request, timeout=30)
    return Serving.Name(answer.status)


@dataclass
class Watch:
    """What a watcher of a service's health is told, in order."""

    call: Any

    async def until(self, status: str) -> None:
        """Wait until the service is said to be so."""
        async with asyncio.timeout(60):
            while Serving.Name((await self.call.read()).status) != status:
                pass


def watch(pilot: Pilot, service: str = "") -> Watch:
    request = health_pb2.HealthCheckRequest(service=service)
    return Watch(health(pilot.channel).Watch(request))


def ask_reflection(pilot: Pilot, request: reflection_pb2.ServerReflectionRequest) -> Any:
    """A stream of one question, and one answer."""

    async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield request

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(pilot.channel)  # type: ignore[arg-type]
    return stub.ServerReflectionInfo(requests(), timeout=30)


async def test_reflection_describes_every_service(database: str) -> None:
    """All of them are listed, and what each is made of can be asked for."""
    async with serving(database) as pilot:
        listed = await ask_reflection(
            pilot, reflection_pb2.ServerReflectionRequest(list_services="")
        ).read()
        names = [service.name for service in listed.list_services_response.service]

        assert sorted(names) == sorted([*SERVICES, *OTHERS])
        for name in SERVICES:
            described = await ask_reflection(
                pilot, reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            ).read()
            (file, *_) = described.file_descriptor_response.file_descriptor_proto
            assert FileDescriptorProto.FromString(file).package == "pilot.v1"


async def test_reflection_can_be_switched_off(database: str) -> None:
    async with serving(database, reflection=False) as pilot:
        request = reflection_pb2.ServerReflectionRequest(list_services="")

        assert await ask_reflection(pilot, request).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_every_service_is_healthy_from_the_start(database: str) -> None:
    """Nobody needs a credential to ask, and a service that is not there has no health."""
    async with serving(database) as pilot:
        statuses = [await status_of(pilot, service) for service in ("", *SERVICES)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status_of(pilot, "pilot.v1.GhostService")

    assert statuses == ["SERVING"] * 7
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


MOMENT = 1.0


async def available(pilot: Pilot) -> None:
    """Wait until the server says that it serves; it does so by itself."""
    await watch(pilot).until("SERVING")


async def test_without_its_database_the_server_says_so_and_comes_back_by_itself(
    database: str,
) -> None:
    """Health and every answer say it, with when to try again; a spend of the time is made once."""
    async with proxied(database) as (proxy, url), serving(url, duties=True) as pilot:
        tenant = await pilot.tenant(balance=100)
        watches = [watch(pilot, service) for service in ("", *SERVICES)]
        requests = [
            pb.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id="while-away"),
            vaults_pb2.GetVaultRequest(vault_id=tenant.vault_id),
            accounts_pb2.SignInRequest(email="a@example.com", password="wrong"),
            pb.VerifyLedgerRequest(vault_id=tenant.vault_id),
        ]

        proxy.cut()
        found = [await refusal(tenant.owner(request)) for request in requests]
        for each in watches:
            await each.until("NOT_SERVING")
        proxy.mend()
        for each in watches:
            await each.until("SERVING")
        spent = await tenant.owner(requests[0])

        away = Refusal("UNAVAILABLE", "DATABASE_UNAVAILABLE", retry_seconds=1.0)
        assert found == [away] * len(requests)
        assert spent.event.status == pb.EVENT_STATUS_CONFIRMED
        assert await balance(tenant) == 99


async def test_a_server_that_starts_before_its_database_waits_for_it(database: str) -> None:
    """It listens at once, healthy only once the database answers."""
    async with proxied(database) as (proxy, url):
        proxy.cut()
        async with serving(url) as pilot:
            assert await status_of(pilot) == "NOT_SERVING"
            proxy.mend()
            await available(pilot)

            assert (await pilot.tenant(balance=5)).vault_id


async def test_an_answer_that_was_lost_on_the_way_is_given_again(database: str) -> None:
    """The commit arrived and its answer did not: the outcome is unknown, and asking tells it."""
    async with (
        proxied(database) as (proxy, url),
        serving(url, database_pooler=True) as pilot,
        serving(database) as another,
    ):
        tenant = await pilot.tenant(balance=100)
        request = pb.SpendRequest(amount=10, request_id="lost")

        proxy.cut_after_commit_of(b"event_changes")
        lost = await refusal(tenant.agent(request))
        elsewhere = await another.nobody.with_credential(tenant.agent.credential)(request)
        proxy.mend()
        await available(pilot)
        again = await tenant.agent(request)

        assert (lost.code, lost.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
        assert again == elsewhere
        assert again.event.status == pb.EVENT_STATUS_CONFIRMED
        assert await balance(tenant) == 90
        verified = await tenant.owner(pb.VerifyLedgerRequest(vault_id=tenant.vault_id))
        assert not verified.HasField("discrepancy")


async def test_a_database_that_stops_answering_leaves_nobody_waiting(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections stay open and nothing comes: callers are answered, and health sees it."""
    for name in ("ACQUIRE_SECONDS_MAX", "CONNECT_SECONDS_MAX", "STATEMENT_SECONDS_MAX"):
        monkeypatch.setattr(connection, name, MOMENT)
    async with proxied(database) as (proxy, url), serving(url) as pilot:
        tenant = await pilot.tenant(balance=100)
        request = pb.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id="frozen")

        proxy.freeze()
        found = [await code(tenant.owner(request)) for _ in range(3)]
        found.append(await code(tenant.owner(projects_pb2.ListProjectsRequest())))
        await watch(pilot).until("NOT_SERVING")
        proxy.mend()
        await available(pilot)

        assert set(found) <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
        assert "UNAVAILABLE" in found
        assert (await tenant.owner(request)).event.status == pb.EVENT_STATUS_CONFIRMED
        assert await balance(tenant) == 99


async def balance(tenant: Tenant) -> int:
    answer = await tenant.owner(vaults_pb2.GetVaultRequest(vault_id=tenant.vault_id))
    figure: int = answer.vault.balance
    return figure


async def test_two_servers_do_not_share_a_port(database: str) -> None:
    """Half of the calls would reach the wrong one: the second does not start."""
    async with serving(database) as first:
        with pytest.raises(SettingsError, match="PILOT_LISTEN_ADDRESS"):
            async with serving(database, listen_address=first.address):
                pass

        assert await status_of(first) == "SERVING"


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in files and as the bytes that channels take."""

    certificate: Path
    key: Path

    @property
    def pair(self) -> tuple[bytes, bytes]:
        return self.key.read_bytes(), self.certificate.read_bytes()


class Authority:
    """Signs certificates for 127.0.0.1, and for callers."""

    def __init__(self, directory: Path, name: str) -> None:
        """Make its own certificate, in a directory."""
        self._directory, self._name = directory, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(f"{name}-ca", self._key.public_key(), is_authority=True)

    def issue(self, name: str) -> Issued:
        """Sign a certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        path = self._directory / f"{self._name}-{name}.key"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Issued(self._sign(name, key.public_key(), is_authority=False), path)

    def _sign(self, name: str, key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> Path:
        now = datetime.now(UTC)
        signed = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(
                x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{self._name}-ca")])
            )
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        path = self._directory / f"{self._name}-{name}.pem"
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return path


async def over_tls(pilot: Pilot, trusted: Authority, shown: Issued | None = None) -> str:
    """Call over TLS, trusting an authority and showing a certificate; say how it ended."""
    key, certificate = shown.pair if shown is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(
        trusted.certificate.read_bytes(), private_key=key, certificate_chain=certificate
    )
    async with grpc.aio.secure_channel(pilot.address, credentials) as channel:
        return await code(Client(channel)(accounts_pb2.WhoAmIRequest()))


async def test_tls_is_spoken_and_nothing_else(database: str, tmp_path: Path) -> None:
    """A caller that knows the authority gets through; one in the clear, or misled, does not."""
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    server = ours.issue("server")
    tls: dict[str, Any] = {
        "tls_certificate_file": server.certificate,
        "tls_key_file": server.key,
    }

    async with serving(database, **tls) as pilot:
        assert await over_tls(pilot, ours) == "UNAUTHENTICATED"
        assert await over_tls(pilot, others) == "UNAVAILABLE"
        assert await code(pilot.nobody(accounts_pb2.WhoAmIRequest())) == "UNAVAILABLE"


async def test_mutual_tls_lets_in_whom_the_authority_knows(database: str, tmp_path: Path) -> None:
    """Without a certificate, or with one of another authority, nobody gets as far as a call."""
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    server = ours.issue("server")
    tls: dict[str, Any] = {
        "tls_certificate_file": server.certificate,
        "tls_key_file": server.key,
        "tls_client_ca_file": ours.certificate,
    }

    async with serving(database, **tls) as pilot:
        assert await over_tls(pilot, ours, ours.issue("caller")) == "UNAUTHENTICATED"
        assert await over_tls(pilot, ours) == "UNAVAILABLE"
        assert await over_tls(pilot, ours, others.issue("stranger")) == "UNAVAILABLE"
        assert await code(pilot.nobody(accounts_pb2.WhoAmIRequest())) == "UNAVAILABLE"


@asynccontextmanager
async def another_process(url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`pilot serve`, as it runs in production; gives the address that its log tells."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pilot_grpc", "serve"),
        env={
            "PATH": os.defpath,
            "DATABASE_URL": url,
            "PILOT_LISTEN_ADDRESS": "127.0.0.1:0",
            "PILOT_WRAPPING_KEY": base64.b64encode(make.WRAPPING_KEY.secret).decode(),
            "PILOT_WRAPPING_KEY_ID": make.WRAPPING_KEY.id,
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        address = None
        while address is None:
            line = (await process.stderr.readline()).decode()
            assert line, "the server ended before it listened"
            address = re.search(r"listening on (\S+)", line)
        yield process, address[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
async def test_a_signal_lets_what_is_in_flight_finish(
    database: str, number: signal.Signals
) -> None:
    """A spend that waits for its vault is answered; new calls are not taken; the exit code is 0."""
    async with serving(database) as here, another_process(database) as (process, address):
        tenant = await here.tenant(balance=100)
        async with grpc.aio.insecure_channel(address) as channel:
            agent = Client(channel, tenant.agent.credential)
            owner = Client(channel, tenant.owner.credential)
            await owner(projects_pb2.ListProjectsRequest())

            async with here.app.database.transaction() as conn:
                await vaults.lock_vaults(conn, [VaultId(tenant.vault_id)])
                in_flight = asyncio.ensure_future(
                    agent(pb.SpendRequest(amount=10, request_id="in-flight"))
                )
                # On one connection calls arrive in the order in which they were made.
                await owner(projects_pb2.ListProjectsRequest())
                process.send_signal(number)
                while (
                    late := await refusal(owner(projects_pb2.ListProjectsRequest()))
                ).code == "OK":
                    pass
                assert not in_flight.done()

            answer = await in_flight
        assert answer.event.status == pb.EVENT_STATUS_CONFIRMED
        assert (late.code, late.reason) == ("UNAVAILABLE", "SERVER_DRAINING")
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert await balance(tenant) == 90


async def test_a_watcher_of_health_sees_the_drain_and_does_not_delay_it(database: str) -> None:
    """It is told NOT_SERVING and then cut off, long before the grace is over."""
    async with serving(database, drain_grace=timedelta(hours=1)) as pilot:
        watching = watch(pilot)
        await watching.until("SERVING")

        pilot.stopping.set()
        await watching.until("NOT_SERVING")
        await pilot.stopped

        assert await watching.call.code() is not grpc.StatusCode.OK
