"""The health probe, against a real gRPC server: in the clear, over TLS and over mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pilot_grpc import probe
from pilot_grpc.settings import Settings


@contextmanager
def server(status: str, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """A gRPC server that only tells its health; gives its address."""
    running = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, running)
    if credentials is None:
        port = running.add_insecure_port("127.0.0.1:0")
    else:
        port = running.add_secure_port("127.0.0.1:0", credentials)
    running.start()
    yield f"127.0.0.1:{port}"
    running.stop(None).wait()


def self_signed(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for a name that is not the address, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pilot")])
    names = [x509.DNSName("pilot.example.com")]
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    files = (directory / "cert.pem", directory / "key.pem")
    files[0].write_bytes(signed.public_bytes(encoding))
    files[1].write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return self_signed(tmp_path)


@pytest.mark.parametrize("status", ["SERVING", "NOT_SERVING"])
def test_the_status_is_told_as_it_is(status: str) -> None:
    with server(status) as address:
        assert probe.health(Settings(listen_address=address)) == status


def test_a_wildcard_address_is_called_by_loopback() -> None:
    with server("SERVING") as address:
        port = address.rpartition(":")[2]
        assert probe.health(Settings(listen_address=f"0.0.0.0:{port}")) == "SERVING"


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_is_spoken_as_configured(certificate: tuple[Path, Path], mutual: bool) -> None:
    chain, key = certificate
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), chain.read_bytes())],
        root_certificates=chain.read_bytes() if mutual else None,
        require_client_auth=mutual,
    )
    with server("SERVING", credentials) as address:
        settings = Settings(
            listen_address=address,
            tls_certificate_file=chain,
            tls_key_file=key,
            tls_client_ca_file=chain if mutual else None,
        )
        assert probe.health(settings) == "SERVING"


def test_a_server_in_the_clear_is_not_taken_for_one_with_tls(
    certificate: tuple[Path, Path],
) -> None:
    chain, key = certificate
    with server("SERVING") as address:
        settings = Settings(listen_address=address, tls_certificate_file=chain, tls_key_file=key)
        assert probe.health(settings).startswith("UNAVAILABLE")
