"""Database URLs: who counts as local, what must be encrypted, and what each driver is told."""

from __future__ import annotations

import ssl
from urllib.parse import parse_qs, urlsplit

import pytest

from pilot_grpc.database_url import (
    DatabaseUrlError,
    connect_arguments,
    dbmate_url,
    parse,
    with_database,
)

SOCKET = "postgresql://postgres@/pilot?host=%2Frun%2Fpilot"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        (SOCKET, True),
        ("postgresql://localhost/pilot", True),
        ("postgresql://127.0.0.53:5433/pilot", True),
        ("postgresql://[::1]/pilot", True),
        ("postgresql://db/pilot", False),
        ("postgresql://10.0.0.1/pilot", False),
        ("postgresql://[2001:db8::1]/pilot", False),
        ("postgresql://localhost.example.com/pilot", False),
        ("postgresql:///pilot?host=db.example.com", False),
    ],
)
def test_local_means_this_machine(url: str, local: bool) -> None:
    assert parse(url).is_local is local


@pytest.mark.parametrize(
    "url",
    [
        "mysql://localhost/pilot",
        "localhost/pilot",
        "postgresql:///pilot",
        "postgresql://localhost",
        "postgresql://localhost/",
        "postgresql://localhost:port/pilot",
        "postgresql://localhost:70000/pilot",
        "postgresql://localhost,remote/pilot",
        "postgresql://localhost/pilot?host=remote",
        "postgresql://localhost/pilot?dbname=other",
        "postgresql://localhost/pilot?service=other",
        "postgresql://localhost/pilot?sslmode=perhaps",
        "postgresql://[::1/pilot",
        "postgresql://%2Frun%2Fpilot/pilot",
    ],
)
def test_a_url_that_could_lead_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(DatabaseUrlError):
        parse(url)


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_a_remote_database_is_never_reached_in_the_clear(mode: str) -> None:
    with pytest.raises(DatabaseUrlError, match=f"sslmode={mode}"):
        connect_arguments(f"postgresql://db.example.com/pilot?sslmode={mode}")

    assert connect_arguments(f"postgresql://localhost/pilot?sslmode={mode}")["ssl"] is False


@pytest.mark.parametrize("query", ["", "?sslmode=require", "?sslmode=verify-full"])
def test_a_remote_database_must_prove_its_name(query: str) -> None:
    context = connect_arguments(f"postgresql://db.example.com/pilot{query}")["ssl"]

    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert "sslmode=verify-full" in dbmate_url(f"postgresql://db.example.com/pilot{query}")


def test_verify_ca_trusts_the_authority_whatever_the_name() -> None:
    url = "postgresql://10.0.0.1/pilot?sslmode=verify-ca"
    context = connect_arguments(url)["ssl"]

    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.check_hostname


def test_a_certificate_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(DatabaseUrlError, match=r"missing\.pem"):
        connect_arguments("postgresql://db.example.com/pilot?sslrootcert=/missing.pem")


def test_credentials_and_server_settings_arrive_whole() -> None:
    """What Neon's console gives to copy works as it is: channel_binding stays with us."""
    url = (
        "postgresql://ann:p%40ss%2Fword@ep-x.neon.tech:6543/my%20db"
        "?sslmode=require&channel_binding=require&application_name=pilot"
    )
    arguments = connect_arguments(url)

    assert (arguments["user"], arguments["password"]) == ("ann", "p@ss/word")
    assert (arguments["host"], arguments["port"]) == ("ep-x.neon.tech", 6543)
    assert arguments["database"] == "my db"
    assert arguments["server_settings"] == {"application_name": "pilot"}
    rewritten = urlsplit(dbmate_url(url))
    assert rewritten.netloc == "ann:p%40ss%2Fword@ep-x.neon.tech:6543"
    assert "channel_binding" not in parse_qs(rewritten.query)


def test_a_pooler_gets_no_prepared_statements() -> None:
    assert connect_arguments(SOCKET, pooler=True)["statement_cache_size"] == 0
    assert connect_arguments(SOCKET)["statement_cache_size"] > 0


def test_the_password_is_not_shown() -> None:
    parsed = parse("postgresql://ann:hunter2@db.example.com/pilot?options=hunter2")

    assert parsed.address == "pilot on db.example.com:5432"
    assert "hunter2" not in repr(parsed)


def test_another_database_on_the_same_server() -> None:
    assert parse(with_database(SOCKET, "other")).database == "other"
    assert parse(with_database(SOCKET, "other")).host == "/run/pilot"
