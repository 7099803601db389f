"""The health probe: asks a running server over gRPC whether it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pilot_grpc.settings import Settings

TIMEOUT_SECONDS: Final = 5.0

# Addresses that one can listen on but not call, and what they are called by.
ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True)
class Target:
    """How a server is reached: in the clear where there are no credentials."""

    address: str
    credentials: grpc.ChannelCredentials | None = None
    options: tuple[tuple[str, str], ...] = ()


def health(settings: Settings, address: str | None = None) -> str:
    """The status of the server: SERVING, NOT_SERVING, or why it could not be asked."""
    with _channel(target(settings, address)) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(  # type: ignore[attr-defined] # The stubs leave it out.
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS
            )
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def target(settings: Settings, address: str | None = None) -> Target:
    """Where and how the configured server is reached; at another address, if one is given.

    Over TLS it must show the very certificate we know. Under mutual TLS the server's own
    certificate is shown, too, so its authority must be among those that clients are judged by.
    """
    address = address or _local(settings.listen_address)
    certificate = settings.tls_certificate_file
    if certificate is None or settings.tls_key_file is None:
        return Target(address)
    mutual = settings.tls_client_ca_file is not None
    credentials = grpc.ssl_channel_credentials(
        root_certificates=certificate.read_bytes(),
        private_key=settings.tls_key_file.read_bytes() if mutual else None,
        certificate_chain=certificate.read_bytes() if mutual else None,
    )
    name = ("grpc.ssl_target_name_override", _name(certificate))
    return Target(address, credentials, (name,))


def _local(listen_address: str) -> str:
    host, _, port = listen_address.rpartition(":")
    return f"{ANY_ADDRESS.get(host, host)}:{port}"


def _channel(found: Target) -> grpc.Channel:
    if found.credentials is None:
        return grpc.insecure_channel(found.address)
    return grpc.secure_channel(found.address, found.credentials, options=found.options)


def _name(certificate: Path) -> str:
    """A name that the certificate was issued for; the address that is called is seldom one."""
    parsed = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return next(str(name.value) for name in names)
