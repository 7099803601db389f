"""Requests to URLs that users chose: where they must not lead, and what must not hold them up.

The sockets are real and lead to a server on 127.0.0.1; where a test wants a public address, the
`Internet` below connects to that server instead and remembers the address that was asked for.
"""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import httpcore2
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pilot_grpc.services import outbound
from pilot_grpc.services.outbound import DeliveryError, Outbound, Reply, must_be_allowed
from tests.http_server import (
    Behaviour,
    drip,
    flood,
    hang,
    hang_up,
    http_server,
    raw,
    redirect,
    reset,
    respond,
)

PUBLIC = "93.184.216.34"
NOW = dt.datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
HEADERS = {"Content-Type": "application/json", "webhook-id": "evt_1"}

# One line a class of address. What is refused as a literal must be refused as an answer of DNS.
REFUSED = [
    "0.0.0.0",  # noqa: S104 - unspecified; nothing is bound to it
    "0.1.2.3",
    "10.0.0.1",  # private
    "100.64.0.1",  # carrier-grade NAT
    "100.100.100.200",  # Alibaba's metadata
    "127.0.0.1",  # loopback
    "127.8.8.8",
    "168.63.129.16",  # Azure's platform
    "169.254.0.1",  # link-local
    "169.254.169.254",  # metadata
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",  # Oracle's metadata
    "192.0.2.1",  # documentation
    "192.88.99.1",  # 6to4 relay
    "192.168.1.1",
    "198.18.0.1",  # benchmarks
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",  # multicast
    "239.255.255.250",
    "240.0.0.1",  # reserved
    "255.255.255.255",  # broadcast
    "::",  # unspecified
    "::1",  # loopback
    "::127.0.0.1",  # IPv4-compatible
    "::ffff:127.0.0.1",  # IPv4-mapped
    "::ffff:169.254.169.254",
    "::ffff:93.184.216.34",
    "::ffff:0:127.0.0.1",  # IPv4-translated
    "64:ff9b::127.0.0.1",  # NAT64
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::10.0.0.1",  # NAT64, local
    "100::1",  # discard
    "2001::1",  # Teredo
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",  # benchmarks
    "2001:20::1",  # ORCHID
    "2001:db8::1",  # documentation
    "2002:7f00:1::1",  # 6to4 of 127.0.0.1
    "2002:a9fe:a9fe::1",  # 6to4 of 169.254.169.254
    "3fff::1",  # documentation
    "5f00::1",  # segment routing
    "fc00::1",  # unique local
    "fd00:ec2::254",  # AWS's metadata
    "fd20:ce::254",  # Google's metadata
    "fe80::1",  # link-local
    "fec0::1",  # site-local
    "ff02::1",  # multicast
]
ALLOWED = [
    "1.1.1.1",
    PUBLIC,
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "223.255.255.255",
    "64:ff9b::8.8.8.8",  # a public address behind NAT64
    "2606:4700:4700::1111",
    "2a00:1450:4001:830::200e",
]
# Ways to write an address, or something like one, that resolvers or other parsers understand.
WEIRD_HOSTS = [
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "0177.1",
    "127.1",
    "127.0.1",
    "127.0.0.01",
    "127.0.0.0x1",
    "127.0.0.1.",
    "1.2.3.4.5",
    "256.1.1.1",
    "example.0x",
    "localhost.",
    "example.com.",
    ".example.com",
    "example..com",
    "-example.com",
    "example-.com",
    "a" * 64 + ".com",
    ".".join(["a" * 60] * 5),
    "exa%6dple.com",
    "127%2e0.0.1",
    "example.com%00.evil.com",
    "１２７.0.0.1",  # noqa: RUF001 - full-width digits are the point
    "127。0。0。1",
    "ⓛocalhost",
    "münchen.de",
    "[::1%25eth0]",
    "[fe80::1%eth0]",
    "[::1",
    "::1",
    "[::1]x",
    "x[::1]",
    "[127.0.0.1]",
    "[v1.x]",
    "[]",
    "user@example.com",
    "user:secret@example.com",
    "example.com@127.0.0.1",
    "example.com\\@127.0.0.1",
    "example.com:",
    "example.com:0",
    "example.com:22",
    "example.com:65536",
    "example.com:99999",
    "example.com:080000",
    "example.com:+80",
    "example.com:80:80",
    "exam ple.com",
    "example.com\t",
    "exam\nple.com",
    "example.com\x00",
    "",
]


class Names:
    """A resolver: the answers of each name in their order, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> Iterable[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Internet(httpcore2.AnyIOBackend):
    """Connects to 127.0.0.1 whatever address is asked for, and remembers which was."""

    def __init__(self, *dead: str) -> None:
        self.dead = dead
        self.asked: list[str] = []

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        self.asked.append(host)
        if host in self.dead:
            raise httpcore2.ConnectError("dead")
        return await super().connect_tcp("127.0.0.1", port, *args, **options)


Open = Callable[..., Outbound]


@pytest.fixture(scope="module")
def system_tls() -> ssl.SSLContext:
    """What an Outbound trusts by itself; reading it takes longer than most of these tests."""
    return httpcore2.default_ssl_context()


@pytest.fixture
async def opened(system_tls: ssl.SSLContext) -> AsyncIterator[Open]:
    """Open Outbounds that are closed after the test."""
    async with contextlib.AsyncExitStack() as stack:

        def one(tls: ssl.SSLContext = system_tls, **options: Any) -> Outbound:
            opened = Outbound(tls=tls, now=lambda: NOW, **options)
            stack.push_async_callback(opened.close)
            return opened

        yield one


@pytest.fixture
def names() -> Names:
    return Names(hook_example=[[PUBLIC]])


@pytest.fixture
def internet() -> Internet:
    return Internet()


@pytest.fixture
def public(opened: Open, names: Names, internet: Internet) -> Outbound:
    """As in production, but for the resolver and where the sockets end."""
    return opened(resolve=names, sockets=internet)


@pytest.fixture
def local(opened: Open) -> Outbound:
    """As in development."""
    return opened(allow_private=True)


async def failure(posting: Outbound, url: str) -> DeliveryError:
    with pytest.raises(DeliveryError) as raised:
        await posting.post(url, b"{}", HEADERS)
    return raised.value


def in_brackets(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# --- What is sent.


async def test_a_post_arrives_as_it_was_given(local: Outbound) -> None:
    async with http_server(respond(204)) as server:
        reply = await local.post(server.url("/a/b?c=%20d#e"), b'{"a":1}', HEADERS)

    assert reply == Reply(204, None)
    [request] = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/a/b?c=%20d", b'{"a":1}')
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": "Pilot-Webhooks",
        "accept": "*/*",
        "content-length": "7",
        "content-type": "application/json",
        "webhook-id": "evt_1",
    }


async def test_a_url_without_a_path_has_one(local: Outbound) -> None:
    async with http_server() as server:
        await local.post(server.url(""), b"", {})
        await local.post(server.url("?a=b"), b"", {})

    assert [request.target for request in server.requests] == ["/", "/?a=b"]


@pytest.mark.parametrize("status", [200, 204, 301, 302, 303, 304, 400, 410, 429, 500, 503])
async def test_every_status_is_a_reply(local: Outbound, status: int) -> None:
    """Redirects that would change the method are not followed."""
    async with http_server(respond(status, {"Location": "http://127.0.0.1:1/"})) as server:
        assert await local.post(server.url(), b"{}", HEADERS) == Reply(status, None)

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("007", 7.0),
        ("999999999999", outbound.RETRY_AFTER_SECONDS_MAX),
        ("9" * 5000, outbound.RETRY_AFTER_SECONDS_MAX),
        ("Mon, 23 Nov 2026 12:01:30 GMT", 90.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("Sat, 01 Jan 9999 00:00:00 GMT", outbound.RETRY_AFTER_SECONDS_MAX),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("\u00b2", None),  # a digit to some, and no ASCII
        ("Mon, 32 Nov 2026 12:01:30 GMT", None),
    ],
)
async def test_retry_after_is_read_and_bounded(
    local: Outbound, value: str, seconds: float | None
) -> None:
    async with http_server(respond(503, {"Retry-After": value})) as server:
        assert await local.post(server.url(), b"{}", HEADERS) == Reply(503, seconds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", "a\r\nb: c"),
        ("x", "a\nb"),
        ("x", "a\x00"),
        ("x", "ä"),
        ("x", " a"),
        ("x", ""),
        ("x\r\ny", "a"),
        ("x y", "a"),
        ("x:", "a"),
        ("", "a"),
        ("Host", "other"),
        ("content-length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "upgrade"),
        ("User-Agent", "other"),
        ("Cookie", "a=b"),
    ],
)
async def test_headers_cannot_be_injected(local: Outbound, name: str, value: str) -> None:
    async with http_server() as server:
        with pytest.raises(ValueError, match=r"header|value"):
            await local.post(server.url(), b"{}", {name: value})

    assert server.requests == []


async def test_cookies_are_not_kept(local: Outbound) -> None:
    async with http_server(respond(200, {"Set-Cookie": "a=b"})) as server:
        await local.post(server.url(), b"{}", HEADERS)
        await local.post(server.url(), b"{}", HEADERS)

    assert all("cookie" not in request.headers for request in server.requests)


async def test_proxies_of_the_environment_are_not_used(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http_server() as server, http_server() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        await opened(allow_private=True).post(server.url(), b"{}", HEADERS)

    assert (len(server.requests), proxy.connections) == (1, 0)


# --- Where it must not lead.


@pytest.mark.parametrize("address", REFUSED)
async def test_an_address_that_is_not_public_is_refused(
    opened: Open, internet: Internet, address: str
) -> None:
    """As a literal, as an answer of DNS, and when the URL is configured; allowed in development."""
    url = f"http://{in_brackets(address)}:8080/"
    refusing = opened(resolve=Names(name_example=[[address]]), sockets=internet)

    literal = await failure(refusing, url)
    named = await failure(refusing, "http://name.example:8080/")
    with pytest.raises(ValueError, match="public"):
        must_be_allowed(url, allow_private=False)
    must_be_allowed(url, allow_private=True)

    assert (literal.kind, named.kind) == ("address_refused", "address_refused")
    assert address not in named.detail
    assert internet.asked == []


@pytest.mark.parametrize("address", ALLOWED)
async def test_a_public_address_is_connected_to(
    opened: Open, internet: Internet, address: str
) -> None:
    allowing = opened(resolve=Names(name_example=[[address]]), sockets=internet)
    must_be_allowed(f"https://{in_brackets(address)}/", allow_private=False)

    async with http_server() as server:
        await allowing.post(server.url(host=in_brackets(address)), b"{}", HEADERS)
        await allowing.post(server.url(host="name.example"), b"{}", HEADERS)

    assert [ipaddress.ip_address(each) for each in internet.asked] == [
        ipaddress.ip_address(address)
    ] * 2
    assert [request.headers["host"] for request in server.requests] == [
        f"{ipaddress_text(address)}:{server.port}",
        f"name.example:{server.port}",
    ]


def ipaddress_text(address: str) -> str:
    return in_brackets(str(ipaddress.ip_address(address)))


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize("host", WEIRD_HOSTS)
async def test_a_weird_host_is_refused_before_anybody_is_asked(
    opened: Open, internet: Internet, host: str, allow_private: bool
) -> None:
    names = Names()
    refusing = opened(resolve=names, sockets=internet, allow_private=allow_private)

    refused = await failure(refusing, f"http://{host}/")
    with pytest.raises(ValueError, match=r"URL|host|port|IPv4"):
        must_be_allowed(f"http://{host}/", allow_private=allow_private)

    assert refused.kind == "url_refused"
    assert (names.asked, internet.asked) == ([], [])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "http:/example.com/",
        "http:example.com",
        "http:///path",
        "javascript:alert(1)",
        "http://example.com/a b",
        "http://example.com/\r\nX: y",
        "http://example.com/ü",
        " http://example.com/",
        "http://example.com/\\..",
        "https://example.com/" + "a" * 2048,
    ],
)
async def test_what_is_no_url_for_us_is_refused(public: Outbound, url: str) -> None:
    assert (await failure(public, url)).kind == "url_refused"
    with pytest.raises(ValueError, match="URL"):
        must_be_allowed(url, allow_private=True)


def test_a_password_is_told_apart() -> None:
    """The owner should know why; a secret in a URL would be stored and shown."""
    with pytest.raises(ValueError, match="password") as refused:
        must_be_allowed("https://user:secret@example.com/", allow_private=True)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "a.localhost"])
def test_localhost_is_refused_when_it_is_configured(host: str) -> None:
    with pytest.raises(ValueError, match="localhost"):
        must_be_allowed(f"http://{host}:8080/", allow_private=False)
    must_be_allowed(f"http://{host}:8080/", allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTPS://Example.COM:443/Path?Query",
        "http://example.com:8080/hook#part",
        "https://xn--mnchen-3ya.de/",
        "https://my_host.example.co/",
        "https://3com.com/",
        "https://hooks.0xabc.io/",
    ],
)
def test_an_ordinary_url_is_allowed(url: str) -> None:
    must_be_allowed(url, allow_private=False)


async def test_one_address_that_is_not_public_refuses_the_name(
    opened: Open, internet: Internet
) -> None:
    names = Names(mixed_example=[[PUBLIC, "10.0.0.1"]], six_example=[[PUBLIC, "fd00:ec2::254"]])
    refusing = opened(resolve=names, sockets=internet)

    for name in names.answers:
        assert (await failure(refusing, f"http://{name}:8080/")).kind == "address_refused"
    assert internet.asked == []


async def test_a_second_answer_of_dns_is_never_used(opened: Open, internet: Internet) -> None:
    """Rebinding: the name turns private after it was judged. One look-up, and its address."""
    names = Names(rebind_example=[[PUBLIC], ["127.0.0.1"]])
    posting = opened(resolve=names, sockets=internet)

    async with http_server(respond(200, {"Connection": "close"})) as server:
        url = server.url(host="rebind.example")
        assert (await posting.post(url, b"{}", HEADERS)).status == 200
        assert (names.asked, internet.asked) == (["rebind.example"], [PUBLIC])

        assert (await failure(posting, url)).kind == "address_refused"

    assert internet.asked == [PUBLIC]
    assert len(server.requests) == 1


async def test_localhost_of_the_real_resolver_is_refused(opened: Open) -> None:
    async with http_server() as server:
        url = server.url(host="localhost")
        assert (await failure(opened(), url)).kind == "address_refused"
        assert server.connections == 0

        reply = await opened(allow_private=True).post(url, b"{}", HEADERS)

    assert reply.status == 200


async def test_addresses_are_tried_in_their_order(opened: Open) -> None:
    first, second, third, fourth = "1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "8.8.8.8"
    internet = Internet(first, second, third)
    names = Names(two_example=[[first, PUBLIC]], four_example=[[first, second, third, fourth]])
    posting = opened(resolve=names, sockets=internet)

    async with http_server() as server:
        await posting.post(server.url(host="two.example"), b"{}", HEADERS)
        failed = await failure(posting, server.url(host="four.example"))

    assert internet.asked == [first, PUBLIC, first, second, third]
    assert failed.kind == "connect_failed"


# --- Redirects.


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_keeps_method_body_and_headers(local: Outbound, status: int) -> None:
    async with http_server(redirect("../moved?x=y", status), respond(202)) as server:
        assert (await local.post(server.url("/a/b/c"), b"{}", HEADERS)).status == 202

    first, second = server.requests
    assert second.target == "/a/moved?x=y"
    assert (second.method, second.body) == ("POST", b"{}")
    assert second.headers == first.headers


async def test_a_redirect_to_another_host_names_that_host(
    public: Outbound, names: Names, internet: Internet
) -> None:
    names.answers["other.example"] = [["1.1.1.1"]]
    async with http_server() as server:
        server.then(redirect(server.url("/x", "other.example")), respond(200))
        await public.post(server.url(host="hook.example"), b"{}", HEADERS)

    assert server.requests[1].headers["host"] == f"other.example:{server.port}"
    assert internet.asked == [PUBLIC, "1.1.1.1"]


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("http://127.0.0.1:{port}/", "address_refused"),
        ("http://[::ffff:127.0.0.1]:{port}/", "address_refused"),
        ("//127.0.0.1:{port}/", "address_refused"),
        ("http://169.254.169.254/latest/meta-data/", "address_refused"),
        ("http://inside.example:{port}/", "address_refused"),
        ("http://2130706433:{port}/", "redirect_refused"),
        ("http://localhost.:{port}/", "redirect_refused"),
        ("http://user@hook.example:{port}/", "redirect_refused"),
        ("file:///etc/passwd", "redirect_refused"),
        ("gopher://hook.example/", "redirect_refused"),
        ("http://hook.example:22/", "redirect_refused"),
        ("http://[", "redirect_refused"),
        ("/a b", "redirect_refused"),
        ("/\u00fc", "redirect_refused"),
        ("/" + "a" * 3000, "redirect_refused"),
        ("http://gone.example/", "dns_failed"),
    ],
)
async def test_a_redirect_is_judged_as_the_first_url_is(
    public: Outbound, names: Names, internet: Internet, location: str, kind: str
) -> None:
    names.answers["inside.example"] = [["10.0.0.1"]]
    async with http_server() as server:
        server.then(redirect(location.format(port=server.port)), respond(200))
        assert (await failure(public, server.url(host="hook.example"))).kind == kind

    assert len(server.requests) == 1
    assert internet.asked == [PUBLIC]


async def test_three_redirects_are_followed_and_no_fourth(local: Outbound) -> None:
    moved = redirect("/next")
    async with http_server(moved, moved, moved, respond(201)) as server:
        assert (await local.post(server.url(), b"{}", HEADERS)).status == 201
        server.then(moved)
        assert (await failure(local, server.url())).kind == "too_many_redirects"

    assert len(server.requests) == 8


async def test_a_redirect_that_leads_nowhere_is_a_reply(local: Outbound) -> None:
    async with http_server(respond(307)) as server:
        assert await local.post(server.url(), b"{}", HEADERS) == Reply(307, None)


async def test_redirects_share_one_time_limit(opened: Open) -> None:
    slow = respond(307, {"Location": "/next"}, after=0.2)
    async with http_server(slow) as server:
        posting = opened(allow_private=True, seconds_max=0.5)
        assert (await failure(posting, server.url())).kind == "timed_out"

    assert 1 < len(server.requests) < 4


# --- TLS.


@dataclass(frozen=True)
class Authority:
    """A certificate authority for this run; only a client that is told to trusts it."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def client(self) -> ssl.SSLContext:
        pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        return ssl.create_default_context(cadata=pem)

    def server(self, name: str, days: int = 1) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _certificate(key, self.certificate.subject, name, days)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        file = self.folder / f"{name}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context


def _certificate(
    key: ec.EllipticCurvePrivateKey, issuer: x509.Name, name: str, days: int = 1
) -> x509.CertificateBuilder:
    now = dt.datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _certificate(key, _name("Test"), "Test")
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(tmp_path_factory.mktemp("tls"), key, certificate)


@pytest.fixture
def trusting(opened: Open, names: Names, internet: Internet, authority: Authority) -> Outbound:
    return opened(resolve=names, sockets=internet, tls=authority.client())


async def test_tls_is_about_the_name_and_the_socket_about_the_address(
    trusting: Outbound, internet: Internet, authority: Authority
) -> None:
    async with http_server(tls=authority.server("hook.example")) as server:
        url = server.url(host="hook.example")
        assert (await trusting.post(url, b"{}", HEADERS)).status == 200

    assert internet.asked == [PUBLIC]
    assert server.names == ["hook.example"]
    assert server.requests[0].headers["host"] == f"hook.example:{server.port}"


async def test_a_certificate_of_another_name_is_refused(
    trusting: Outbound, authority: Authority
) -> None:
    async with http_server(tls=authority.server("other.example")) as server:
        failed = await failure(trusting, server.url(host="hook.example"))

    assert failed.kind == "tls_failed"
    assert "hook.example" in failed.detail
    assert server.requests == []


async def test_a_certificate_that_expired_is_refused(
    trusting: Outbound, authority: Authority
) -> None:
    async with http_server(tls=authority.server("hook.example", days=-1)) as server:
        failed = await failure(trusting, server.url(host="hook.example"))

    assert (failed.kind, server.requests) == ("tls_failed", [])
    assert "expired" in failed.detail


async def test_a_certificate_of_a_stranger_is_refused(
    names: Names, internet: Internet, authority: Authority
) -> None:
    """Nobody told this Outbound what to trust."""
    strict = Outbound(resolve=names, sockets=internet)
    async with http_server(tls=authority.server("hook.example")) as server:
        failed = await failure(strict, server.url(host="hook.example"))
    await strict.close()

    assert (failed.kind, server.requests) == ("tls_failed", [])


async def test_a_server_without_tls_is_no_https(trusting: Outbound) -> None:
    async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(garbage, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        failed = await failure(trusting, f"https://hook.example:{port}/")

    assert failed.kind == "tls_failed"


async def test_a_server_that_wants_a_certificate_is_told_apart(
    trusting: Outbound, authority: Authority
) -> None:
    """TLS 1.3 says so after the handshake, when the response is read."""
    strict = authority.server("hook.example")
    strict.verify_mode = ssl.CERT_REQUIRED
    async with http_server(tls=strict) as server:
        failed = await failure(trusting, server.url(host="hook.example"))

    assert failed.kind in {"tls_failed", "connection_lost"}
    assert server.requests == []


async def test_https_is_never_left_for_http(trusting: Outbound, authority: Authority) -> None:
    async with http_server(tls=authority.server("hook.example")) as server, http_server() as plain:
        server.then(redirect(plain.url(host="hook.example")))
        failed = await failure(trusting, server.url(host="hook.example"))

    assert (failed.kind, plain.connections) == ("redirect_refused", 0)


# --- What must not hold it up.


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "behaviour",
    [
        hang(),
        raw(HEAD, close=False),
        drip(HEAD + b"X-Slow: "),
        drip(b"", HEAD[:1]),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["silent", "half a head", "slow header", "slow status", "continue for ever"],
)
async def test_a_slow_response_is_given_up(opened: Open, behaviour: Behaviour) -> None:
    """Bytes that keep coming do not extend the time."""
    posting = opened(allow_private=True, seconds_max=0.3)
    async with http_server(behaviour) as server:
        begun = time.monotonic()
        failed = await failure(posting, server.url())

    assert failed.kind == "timed_out"
    assert 0.25 < time.monotonic() - begun < 3


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_server_that_reads_nothing_is_given_up(opened: Open, scheme: str) -> None:
    """Neither a handshake nor a body that nobody takes lasts longer."""
    posting = opened(allow_private=True, seconds_max=0.3)

    async def sit(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.transport.abort()

    over = asyncio.Event()
    async with await asyncio.start_server(sit, "127.0.0.1", 0, limit=1024) as server:
        url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(DeliveryError) as failed:
            await posting.post(url, b"x" * 50_000_000, HEADERS)
        over.set()

    assert failed.value.kind == "timed_out"


async def test_a_handshake_that_is_given_up_leaves_no_connection(opened: Open) -> None:
    posting = opened(allow_private=True, seconds_max=0.3)
    over = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                pass
        over.set()
        writer.transport.abort()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await failure(posting, f"https://127.0.0.1:{port}/")).kind == "timed_out"
        await asyncio.wait_for(over.wait(), 5)


async def test_a_slow_look_up_is_given_up(opened: Open) -> None:
    async def never(_host: str, _port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    posting = opened(resolve=never, seconds_max=0.2)

    assert (await failure(posting, "http://hook.example/")).kind == "timed_out"


@pytest.mark.parametrize(
    "behaviour",
    [
        flood(HEAD + b"X-Long: "),
        flood(b""),
        flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        flood(HEAD, b"X-Many: 1\r\n" * 100),
        raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
        raw(b"HTTP/1.1 OK\r\n\r\n"),
        raw(HEAD + b"No colon\r\n\r\n"),
        raw(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        hang_up(HEAD + b"X-Half"),
    ],
    ids=[
        "endless header",
        "endless line",
        "endless continue",
        "endless headers",
        "another protocol",
        "no status",
        "no header",
        "two lengths",
        "upgrade",
        "half a head",
    ],
)
async def test_an_invalid_response_is_told_apart(local: Outbound, behaviour: Behaviour) -> None:
    async with http_server(behaviour) as server:
        assert (await failure(local, server.url())).kind == "response_invalid"

    assert len(server.requests) == 1


@pytest.mark.parametrize("behaviour", [reset(), hang_up()], ids=["reset", "closed"])
async def test_a_lost_connection_is_told_apart(local: Outbound, behaviour: Behaviour) -> None:
    async with http_server(behaviour) as server:
        assert (await failure(local, server.url())).kind == "connection_lost"

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        flood(HEAD + b"\r\n"),
        flood(HEAD + b"Content-Length: 1000000000000\r\n\r\n"),
        flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        drip(HEAD + b"Content-Length: 1000000\r\n\r\n"),
        hang_up(HEAD + b"Content-Length: 9\r\n\r\nhalf"),
        hang_up(HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense"),
        raw(HEAD + b"Content-Length: 9\r\n\r\nhalf", close=False),
    ],
    ids=["endless", "huge", "chunks", "slow", "half", "nonsense", "stuck"],
)
async def test_no_body_changes_the_reply_or_holds_it_up(
    opened: Open, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver has answered with its status; the connection is not used again."""
    monkeypatch.setattr(outbound, "REST_SECONDS_MAX", 0.2)
    posting = opened(allow_private=True, connections_max=1)
    async with http_server(behaviour, respond(204)) as server:
        begun = time.monotonic()
        reply = await posting.post(server.url(), b"{}", HEADERS)
        took = time.monotonic() - begun
        again = await posting.post(server.url(), b"{}", HEADERS)

    assert (reply.status, again.status) == (200, 204)
    assert took < 3
    assert server.connections == 2


async def test_only_so_much_of_a_response_is_read(opened: Open) -> None:
    read = 0

    class Counting(httpcore2.AsyncNetworkStream):
        def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
            self.stream = stream

        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
            nonlocal read
            data = await self.stream.read(max_bytes, timeout)
            read += len(data)
            return data

        async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
            await self.stream.write(buffer, timeout)

        async def aclose(self) -> None:
            await self.stream.aclose()

    class Watched(httpcore2.AnyIOBackend):
        async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
            return Counting(await super().connect_tcp(*args, **options))

    posting = opened(allow_private=True, sockets=Watched())
    async with http_server(flood(HEAD + b"\r\n")) as server:
        await posting.post(server.url(), b"{}", HEADERS)

    assert read == outbound.RESPONSE_BYTES_MAX


async def test_a_closed_port_is_told_apart(local: Outbound) -> None:
    async with http_server() as server:
        url = server.url()

    failed = await failure(local, url)

    assert (failed.kind, failed.detail) == ("connect_failed", "Connection refused")


@pytest.mark.parametrize("answer", [None, [[]]], ids=["unknown", "empty"])
async def test_a_name_without_addresses_is_told_apart(
    opened: Open, answer: list[list[str]] | None
) -> None:
    names = Names(**({"gone_example": answer} if answer else {}))

    assert (await failure(opened(resolve=names), "http://gone.example/")).kind == "dns_failed"


async def test_waiting_for_a_turn_is_not_held_against_the_receiver(opened: Open) -> None:
    posting = opened(allow_private=True, seconds_max=1.0, connections_max=1)
    async with http_server(respond(200, after=0.4)) as server:
        replies = await asyncio.gather(
            *(posting.post(server.url(), b"{}", HEADERS) for _ in range(3))
        )

    assert [reply.status for reply in replies] == [200, 200, 200]


async def test_no_more_connections_than_allowed(opened: Open) -> None:
    posting = opened(allow_private=True, connections_max=4)
    async with http_server(respond(200, after=0.01)) as server:
        await asyncio.gather(*(posting.post(server.url(), b"{}", HEADERS) for _ in range(40)))

    assert len(server.requests) == 40
    assert server.connections <= 4


async def test_a_cancelled_post_gives_its_turn_back(opened: Open) -> None:
    posting = opened(allow_private=True, connections_max=1)
    async with http_server(hang(), respond(200)) as server:
        task = asyncio.create_task(posting.post(server.url(), b"{}", HEADERS))
        await server.requested.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert (await posting.post(server.url(), b"{}", HEADERS)).status == 200


async def test_closing_fails_what_is_under_way(opened: Open) -> None:
    posting = opened(allow_private=True)
    async with http_server(hang()) as server:
        task = asyncio.create_task(failure(posting, server.url()))
        await server.requested.wait()
        await posting.close()

        assert (await task).kind == "connection_lost"


# --- Kept connections.


async def test_a_connection_is_kept(public: Outbound, names: Names) -> None:
    async with http_server(respond(200, body=b"x" * 10_000)) as server:
        for _ in range(3):
            await public.post(server.url(host="hook.example"), b"{}", HEADERS)

    assert (len(server.requests), server.connections) == (3, 1)
    assert names.asked == ["hook.example"]


async def test_a_kept_connection_that_was_closed_is_not_used(local: Outbound) -> None:
    async def answer_and_leave(request: Any, writer: asyncio.StreamWriter) -> None:
        await respond(200)(request, writer)
        writer.close()

    async with http_server(answer_and_leave) as server:
        await local.post(server.url(), b"{}", HEADERS)
        await asyncio.sleep(0.05)
        await local.post(server.url(), b"{}", HEADERS)

    assert [request.connection for request in server.requests] == [1, 2]


@pytest.mark.parametrize("behaviour", [reset(), hang_up()], ids=["reset", "closed"])
async def test_a_kept_connection_that_is_lost_is_no_failure(
    local: Outbound, behaviour: Behaviour
) -> None:
    """The receiver closes as the second request comes: it is sent again on a new connection."""
    async with http_server(respond(200), behaviour, respond(201)) as server:
        await local.post(server.url(), b"{}", HEADERS)
        reply = await local.post(server.url(), b"{}", HEADERS)

    assert reply.status == 201
    assert [request.connection for request in server.requests] == [1, 1, 2]


async def test_a_receiver_that_always_closes_is_not_asked_for_ever(local: Outbound) -> None:
    async with http_server(respond(200, after=0.05)) as server:
        await asyncio.gather(*(local.post(server.url(), b"{}", HEADERS) for _ in range(3)))
        server.then(hang_up())
        assert (await failure(local, server.url())).kind == "connection_lost"

    assert len(server.requests) == 3 + 3 + 1


async def test_a_judged_address_is_judged_again_for_each_connection(
    opened: Open, internet: Internet
) -> None:
    """A kept connection that is lost does not carry its old judgement to a new address."""
    posting = opened(resolve=Names(a_example=[[PUBLIC], ["10.0.0.1"]]), sockets=internet)
    async with http_server(respond(200), hang_up()) as server:
        url = server.url(host="a.example")
        await posting.post(url, b"{}", HEADERS)
        assert (await failure(posting, url)).kind == "address_refused"

    assert internet.asked == [PUBLIC]


# --- On the loop of production.


def test_it_works_on_uvloop(authority: Authority) -> None:
    """The tests above run on asyncio's own loop; these paths differ on uvloop's."""

    async def main() -> None:
        internet = Internet()
        posting = Outbound(
            resolve=Names(hook_example=[[PUBLIC]]),
            sockets=internet,
            tls=authority.client(),
        )
        local = Outbound(allow_private=True, seconds_max=0.3)
        async with http_server(tls=authority.server("hook.example")) as server:
            url = server.url(host="hook.example")
            assert (await posting.post(url, b"{}", HEADERS)).status == 200
            server.then(hang_up(), respond(201))
            assert (await posting.post(url, b"{}", HEADERS)).status == 201
        async with http_server(hang()) as server:
            assert (await failure(local, server.url())).kind == "timed_out"
        async with http_server(reset()) as server:
            assert (await failure(local, server.url(host="localhost"))).kind == "connection_lost"
        assert (await failure(local, server.url())).detail == "Connection refused"
        await posting.close()
        await local.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
