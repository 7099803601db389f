"""The gRPC server: what it speaks, its limits, its health, and how it leaves."""

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pilot_grpc import errors
from pilot_grpc.db.connection import Database
from pilot_grpc.gen.pilot.v1 import (
    accounts_pb2,
    accounts_pb2_grpc,
    agents_pb2,
    agents_pb2_grpc,
    budgets_pb2,
    budgets_pb2_grpc,
    ledger_pb2,
    ledger_pb2_grpc,
    projects_pb2,
    projects_pb2_grpc,
    vaults_pb2,
    vaults_pb2_grpc,
)
from pilot_grpc.rpc.calls import Calls
from pilot_grpc.settings import Settings, SettingsError

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
METADATA_BYTES_MAX: Final = 16 * 1024
HEALTH_SECONDS: Final = 1.0
FLUSH_SECONDS: Final = 1.0

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.max_concurrent_streams", 1_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A ping that was under way already, to measure the connection, is waited for a minute else.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # A second process must not share the port by accident: half of the calls would
    # reach another database.
    ("grpc.so_reuseport", 0),
)

SERVICES: Final = (
    (accounts_pb2.DESCRIPTOR, accounts_pb2_grpc.add_AccountServiceServicer_to_server),
    (projects_pb2.DESCRIPTOR, projects_pb2_grpc.add_ProjectServiceServicer_to_server),
    (vaults_pb2.DESCRIPTOR, vaults_pb2_grpc.add_VaultServiceServicer_to_server),
    (agents_pb2.DESCRIPTOR, agents_pb2_grpc.add_AgentServiceServicer_to_server),
    (budgets_pb2.DESCRIPTOR, budgets_pb2_grpc.add_BudgetServiceServicer_to_server),
    (ledger_pb2.DESCRIPTOR, ledger_pb2_grpc.add_LedgerServiceServicer_to_server),
)
SERVICE_NAMES: Final = tuple(
    service.full_name
    for descriptor, _ in SERVICES
    for service in descriptor.services_by_name.values()
)


@dataclass(slots=True)
class Server:
    """A gRPC server with the servicers of every service, in the order of SERVICES."""

    settings: Settings
    database: Database
    calls: Calls
    servicers: tuple[Any, ...]
    _answered: bool | None = field(default=None, init=False)

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT. `ready` is told the address."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await self.serve(stopping, ready)

    async def serve(self, stopping: asyncio.Event, ready: Callable[[str], None]) -> None:
        """Serve until `stopping` is set, then drain. `ready` is told the address.

        Raises SettingsError when the address or the certificate cannot be used.
        """
        keepalive = int(self.settings.keepalive.total_seconds() * 1_000)
        options = (*OPTIONS, ("grpc.keepalive_time_ms", keepalive))
        server = grpc.aio.server(interceptors=(self.calls,), options=options)
        health_servicer = health.aio.HealthServicer()
        self._add_services(server, health_servicer)
        address = self._bind(server)
        await self._tell_health(health_servicer)
        await server.start()
        log.info("listening on %s", address)
        watching = (
            asyncio.create_task(self._watch_health(health_servicer)),
            asyncio.create_task(self.calls.watch_streams()),
        )
        ready(address)
        await stopping.wait()
        log.info("draining")
        for task in watching:
            task.cancel()
        await health_servicer.enter_graceful_shutdown()
        await self.calls.drain(self.settings.drain_grace.total_seconds())
        # Only answers that are on their way, and watchers of health, are left.
        await server.stop(FLUSH_SECONDS)

    def _add_services(self, server: Any, health_servicer: Any) -> None:
        for (_, add), servicer in zip(SERVICES, self.servicers, strict=True):
            add(servicer, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        if self.settings.reflection:
            names = (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)

    def _bind(self, server: Any) -> str:
        host, _, _ = self.settings.listen_address.rpartition(":")
        credentials = _tls(self.settings)
        try:
            if credentials is None:
                port = server.add_insecure_port(self.settings.listen_address)
            else:
                port = server.add_secure_port(self.settings.listen_address, credentials)
        except RuntimeError:
            raise SettingsError(
                f"PILOT_LISTEN_ADDRESS: {self.settings.listen_address} cannot be listened on; "
                "another process has it, or the certificate of this one cannot be used"
            ) from None
        return f"{host}:{port}"

    async def _watch_health(self, servicer: Any) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            await self._tell_health(servicer)

    async def _tell_health(self, servicer: Any) -> None:
        """Serve while the database answers."""
        answers = await self._database_answers()
        if answers is self._answered:
            return
        self._answered = answers
        log.log(
            logging.INFO if answers else logging.ERROR,
            "the database %s",
            "answers" if answers else "is away",
        )
        status = health_pb2.HealthCheckResponse
        for name in ("", *SERVICE_NAMES):
            await servicer.set(name, status.SERVING if answers else status.NOT_SERVING)

    async def _database_answers(self) -> bool:
        try:
            async with self.database.transaction():
                return True
        except (errors.DatabaseUnavailable, errors.Overloaded):
            return False


def _tls(settings: Settings) -> Any:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    client_ca = settings.tls_client_ca_file
    try:
        pair = (settings.tls_key_file.read_bytes(), settings.tls_certificate_file.read_bytes())
        authorities = client_ca.read_bytes() if client_ca else None
    except OSError as error:
        raise SettingsError(f"a file that PILOT_TLS_... names cannot be read: {error}") from None
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authorities, require_client_auth=client_ca is not None
    )
