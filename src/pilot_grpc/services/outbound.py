"""The one way in which Pilot sends HTTP requests to URLs that users chose.

A user's URL may name anything that this process can reach, so it is refused unless it leads to
a public address. The check is made on the very address that is connected to: a name is looked
up once, every address that it has is judged (one that is not public is enough to refuse them
all), and a judged address is what the socket gets. The host name stays what TLS, the
certificate and the Host header are about. Redirects pass through the same door.

Nothing here reads proxies from the environment, keeps cookies, or trusts a response: what is
read of one has a limit in bytes and in seconds.
"""

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final, Literal
from urllib.parse import urljoin

import httpcore2

from pilot_grpc.tls import trusted

SECONDS_MAX: Final = 15.0
CONNECTIONS_MAX: Final = 300
# Within SECONDS_MAX: for each address of a name, of which so many are tried.
CONNECT_SECONDS_MAX: Final = 5.0
ADDRESSES_TRIED_MAX: Final = 3
# After a response's head, for the rest of it; only so that the connection can be used again.
REST_SECONDS_MAX: Final = 1.0
# The head and the body of one response together, as sent (informational responses, too).
RESPONSE_BYTES_MAX: Final = 64 * 1024
REDIRECTS_MAX: Final = 3
KEPT_CONNECTIONS_MAX: Final = 50
KEPT_SECONDS_MAX: Final = 10.0
URL_CHARACTERS_MAX: Final = 2048
RETRY_AFTER_SECONDS_MAX: Final = 86_400.0
LOOK_UPS_MAX: Final = 128
USER_AGENT: Final = "Pilot-Webhooks"

Kind = Literal[
    "url_refused",
    "address_refused",
    "dns_failed",
    "connect_failed",
    "tls_failed",
    "timed_out",
    "connection_lost",
    "response_invalid",
    "redirect_refused",
    "too_many_redirects",
]
Address = IPv4Address | IPv6Address
# Answers the addresses of a host name; raises OSError when it has none.
Resolve = Callable[[str, int], Awaitable[Iterable[str]]]

_NAT64: Final = ip_network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ip_network("2000::/3")
# IANA's special-purpose registries, and what clouds keep for themselves. IPv6 outside
# _GLOBAL_UNICAST needs no line: ::1, ::ffff:0:0/96, fc00::/7, fe80::/10, ff00::/8 and the rest.
_NOT_PUBLIC: Final = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 connects to this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform, from inside
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
        "2001::/23",  # IETF protocol assignments; Teredo wraps IPv4 addresses
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 wraps IPv4 addresses
        "3fff::/20",  # documentation
    )
)

_URL: Final = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::([0-9]{1,5}))?")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_HOST_CHARACTERS_MAX: Final = 253
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# Below it live services that are not HTTP, and some would take a POST for their own protocol.
_UNPRIVILEGED_PORT: Final = 1024
_PORT_MAX: Final = 65_535

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
# What this module or the library says itself, or what would change the framing or the state.
_OWN_HEADERS: Final = frozenset(
    {
        "accept",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_REDIRECTS: Final = (307, 308)  # Those that keep the method and the body.
_RETRY_AFTER_DATE: Final = "%a, %d %b %Y %H:%M:%S GMT"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the status, and after how many seconds the receiver wants to be asked."""

    status: int
    retry_after: float | None


class DeliveryError(Exception):
    """Why a request got no response: a stable kind, and a short text for the URL's owner.

    Neither holds a secret, an address that was looked up, or a byte of the response.
    """

    def __init__(self, kind: Kind, detail: str) -> None:
        """Take the kind, and what a person wants to read."""
        super().__init__(f"{kind}: {detail}")
        self.kind: Kind = kind
        self.detail = detail


def must_be_allowed(url: str, *, allow_private: bool) -> None:
    """Raise ValueError, with a text for a person, for a URL that could never be sent to.

    Asks no DNS: where a name leads is judged when a request is sent, and every time.
    """
    target = _parse(url)
    if allow_private:
        return
    literal = _literal(target.host)
    if literal is not None and not is_public(literal):
        raise ValueError("the host must be a public address")
    if target.host == "localhost" or target.host.endswith(".localhost"):
        raise ValueError("the host must be public, not localhost")


def is_public(address: Address) -> bool:
    """Say whether an address is one of the public internet."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:  # An IPv6-only network reaches IPv4 through these.
            return is_public(IPv4Address(address.packed[-4:]))
        if address not in _GLOBAL_UNICAST or address.scope_id is not None:
            return False
    # Python knows the registries, too: a later one may know more.
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


class Outbound:
    """Posts to URLs that users chose. Belongs to one event loop."""

    def __init__(
        self,
        *,
        allow_private: bool = False,
        seconds_max: float = SECONDS_MAX,
        connections_max: int = CONNECTIONS_MAX,
        resolve: Resolve | None = None,
        sockets: httpcore2.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take the limits, and whether private addresses are allowed (development).

        For tests there are a resolver, the sockets that addresses are connected with, the
        certificates to trust (otherwise the system's), and a clock.
        """
        self._seconds_max = seconds_max
        self._now = now
        self._turns = asyncio.Semaphore(connections_max)
        # Threads of their own: uvloop looks up two names at a time for the whole process, so two
        # users with dead name servers could keep the database from being found.
        self._threads = ThreadPoolExecutor(LOOK_UPS_MAX, thread_name_prefix="outbound-dns")
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls or trusted(),
            max_connections=connections_max,
            max_keepalive_connections=min(KEPT_CONNECTIONS_MAX, connections_max),
            keepalive_expiry=KEPT_SECONDS_MAX,
            network_backend=_Network(
                resolve or partial(_look_up, self._threads),
                sockets or httpcore2.AnyIOBackend(),
                allow_private=allow_private,
            ),
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Post a body, follow 307 and 308, and return the status of the last response.

        Waits for a turn while connections_max others are under way. From then on everything
        up to the response's head, redirects included, takes at most seconds_max. A request may
        arrive twice: when a kept connection is lost before any response, it is sent again.

        Raises DeliveryError when there was no response, and ValueError for headers that no
        caller may set or that are not printable ASCII.
        """
        lines = _header_lines(headers)
        async with self._turns:
            try:
                async with asyncio.timeout(self._seconds_max):
                    response = await self._follow(url, body, lines)
            except TimeoutError:
                detail = f"no response within {self._seconds_max:g} seconds"
                raise DeliveryError("timed_out", detail) from None
            await _read_rest(response)
            return Reply(response.status, self._retry_after(response))

    async def close(self) -> None:
        """Close the kept connections. Posts that are under way fail with a DeliveryError."""
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _follow(
        self, url: str, body: bytes, lines: list[tuple[str, str]]
    ) -> httpcore2.Response:
        try:
            target = _parse(url)
        except ValueError as error:
            raise DeliveryError("url_refused", str(error)) from None
        for _ in range(1 + REDIRECTS_MAX):
            response = await self._send(target, body, lines)
            location = _header(response, b"location")
            if response.status not in _REDIRECTS or location is None:
                return response
            await response.aclose()
            target = _redirected(target, location)
        raise DeliveryError("too_many_redirects", f"more than {REDIRECTS_MAX} redirects")

    async def _send(
        self, target: "_Target", body: bytes, lines: list[tuple[str, str]]
    ) -> httpcore2.Response:
        """Send once, and again for each kept connection that turns out to be lost.

        The receiver may close a kept connection at any time. The pool drops those that it sees
        closed, which leaves the moment between that look and the request. Each try uses one
        kept connection up, so the last one is made on a new connection.
        """
        own = [
            ("Host", target.host_header),
            ("User-Agent", USER_AGENT),
            ("Accept", "*/*"),
            ("Content-Length", str(len(body))),
        ]
        while True:
            events: set[str] = set()

            async def note(event: str, _: Mapping[str, Any], events: set[str] = events) -> None:
                events.add(event)

            request = httpcore2.Request(
                "POST",
                httpcore2.URL(
                    scheme=target.scheme, host=target.host, port=target.port, target=target.path
                ),
                headers=own + lines,
                content=body,
                extensions={"trace": note},
            )
            try:
                return await self._pool.handle_async_request(request)
            except httpcore2.ProtocolError as error:
                detail = "the response is not valid HTTP, or its headers are too long"
                raise DeliveryError("response_invalid", detail) from error
            except (httpcore2.NetworkError, OSError) as error:
                if isinstance(_root(error), ssl.SSLError):
                    raise DeliveryError("tls_failed", _tls_detail(error)) from error
                if "connection.connect_tcp.started" in events:
                    detail = "the connection was lost before there was a response"
                    raise DeliveryError("connection_lost", detail) from error

    def _retry_after(self, response: httpcore2.Response) -> float | None:
        value = (_header(response, b"retry-after") or "").strip()
        if value.isdigit():
            seconds = float(value)
        else:
            try:
                at = datetime.strptime(value, _RETRY_AFTER_DATE).replace(tzinfo=UTC)
            except ValueError:
                return None
            seconds = (at - self._now()).total_seconds()
        return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


class _Network(httpcore2.AsyncNetworkBackend):
    """Opens the pool's connections: the only place where one is made, and where it is judged."""

    def __init__(
        self, resolve: Resolve, sockets: httpcore2.AsyncNetworkBackend, *, allow_private: bool
    ) -> None:
        self._resolve = resolve
        self._sockets = sockets
        self._allow_private = allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 - the pool's, which sets none
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address of a host that answers, if all of them are allowed."""
        detail = "no address"
        for address in (await self._addresses(host, port))[:ADDRESSES_TRIED_MAX]:
            try:
                stream = await self._sockets.connect_tcp(
                    str(address), port, CONNECT_SECONDS_MAX, local_address, socket_options
                )
            except httpcore2.ConnectTimeout:
                detail = f"no connection within {CONNECT_SECONDS_MAX:g} seconds"
            except httpcore2.ConnectError as error:
                number = getattr(_root(error), "errno", None)
                detail = os.strerror(number) if number else "no connection"
            else:
                return _Stream(stream)
        raise DeliveryError("connect_failed", detail)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        literal = _literal(host)
        addresses = [literal] if literal is not None else await self._look_up(host, port)
        if not self._allow_private and not all(map(is_public, addresses)):
            raise DeliveryError("address_refused", "the host is not, or not only, public")
        return addresses

    async def _look_up(self, host: str, port: int) -> list[Address]:
        try:
            addresses = [ip_address(text) for text in await self._resolve(host, port)]
        except (OSError, UnicodeError) as error:
            raise DeliveryError("dns_failed", "the host name was not found") from error
        if not addresses:
            raise DeliveryError("dns_failed", "the host name has no address")
        return addresses


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection that reads only so much for each request that was written."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = RESPONSE_BYTES_MAX

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - the same
        if self._left <= 0:
            detail = f"the response has more than {RESPONSE_BYTES_MAX} bytes"
            raise DeliveryError("response_invalid", detail)
        data = await self._stream.read(min(max_bytes, self._left), timeout)
        if not data and self._left == RESPONSE_BYTES_MAX:
            raise httpcore2.ReadError("closed before a response")
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the same
        self._left = RESPONSE_BYTES_MAX
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's
    ) -> httpcore2.AsyncNetworkStream:
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except (httpcore2.NetworkError, OSError) as error:
            raise DeliveryError("tls_failed", _tls_detail(error)) from error
        except asyncio.CancelledError:
            await self.aclose()  # The library does so for errors only, and would leak a socket.
            raise
        return _Stream(stream)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL, taken apart once: every later step uses these parts and never the text."""

    scheme: str
    host: str  # An IPv6 address without brackets, in lower case.
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.path}"


def _parse(url: str) -> _Target:
    """Take a URL apart, or raise ValueError with a text for a person."""
    if len(url) > URL_CHARACTERS_MAX:
        raise ValueError(f"a URL may have {URL_CHARACTERS_MAX} characters at most")
    if not all("!" <= character <= "~" for character in url) or "\\" in url:
        raise ValueError(
            "a URL is printable ASCII without spaces and backslashes; write other host names in"
            " punycode (xn--...) and other characters with a percent sign"
        )
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError("a URL must begin with https:// or http://")
    scheme, authority, path = parts[1].lower(), parts[2].lower(), parts[3]
    if "@" in authority:
        raise ValueError("a URL must not hold a user name or a password")
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise ValueError("a URL must have a host, and may have a port from 1 to 65535")
    host = _parse_ipv6(found[1]) if found[1] else _parse_host(found[2])
    port = int(found[3]) if found[3] else _DEFAULT_PORTS[scheme]
    if port not in _DEFAULT_PORTS.values() and not _UNPRIVILEGED_PORT <= port <= _PORT_MAX:
        raise ValueError("the port must be 80, 443, or from 1024 to 65535")
    return _Target(scheme, host, port, path if path.startswith("/") else f"/{path}")


def _parse_ipv6(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise ValueError("the host in brackets is not an IPv6 address") from None


def _parse_host(text: str) -> str:
    """Allow a host name without a dot at its end, or an IPv4 address of four decimal numbers.

    The other ways to write an address that resolvers understand (2130706433, 0x7f.1, 0177.1)
    all end in a number, and no host name does.
    """
    labels = text.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(text))
        except ValueError:
            raise ValueError("write an IPv4 address as four decimal numbers") from None
    if len(text) > _HOST_CHARACTERS_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("the host is not a host name")
    return text


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _redirected(target: _Target, location: str) -> _Target:
    try:
        redirected = _parse(urljoin(target.url, location))
    except ValueError as error:
        raise DeliveryError("redirect_refused", str(error)) from None
    if target.scheme == "https" and redirected.scheme == "http":
        raise DeliveryError("redirect_refused", "a redirect leads from https to http")
    return redirected


def _header_lines(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ValueError(f"not a header that a caller may set: {name!r}")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the value of {name} is not printable ASCII")
    return list(headers.items())


def _header(response: httpcore2.Response, name: bytes) -> str | None:
    """Return the first header of a name; what is not ASCII in it becomes what no URL may hold."""
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("ascii", "replace")
    return None


async def _read_rest(response: httpcore2.Response) -> None:
    """Read what is left, so that the connection can be kept; or close it when that is too much.

    The receiver has answered: nothing that goes wrong from here on changes its answer.
    """
    try:
        async with asyncio.timeout(REST_SECONDS_MAX):
            async for _ in response.aiter_stream():
                pass
    except (DeliveryError, OSError, httpcore2.NetworkError, httpcore2.ProtocolError):
        pass  # TimeoutError is an OSError.
    finally:
        await response.aclose()


async def _look_up(threads: ThreadPoolExecutor, host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().run_in_executor(
        threads, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    )
    return [str(address[0]) for *_, address in found]


def _root(error: BaseException) -> BaseException:
    """Return what an error was first raised as: the libraries wrap it once or twice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _tls_detail(error: BaseException) -> str:
    root = _root(error)
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"the certificate was not accepted: {root.verify_message}"
    return "no TLS connection could be made"
