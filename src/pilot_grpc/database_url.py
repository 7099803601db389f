"""What a PostgreSQL URL means to Pilot: where it leads, and how it may be connected to.

Pure: nothing here connects. Two drivers read the same URL (asyncpg, and dbmate's lib/pq) and
differ in their defaults and in the parameters that they know; both get theirs from here.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from typing import Final, TypedDict
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

DEFAULT_PORT: Final = 5432
STATEMENT_CACHE_SIZE: Final = 200

# The modes of libpq that leave encryption to the server, and those that insist on it.
UNENCRYPTED_MODES: Final = frozenset({"disable", "allow", "prefer"})
ENCRYPTED_MODES: Final = frozenset({"require", "verify-ca", "verify-full"})

# What is used here, or means nothing to our drivers. They would send it on to the server, which
# refuses a connection with a parameter that it does not know.
CLIENT_PARAMETERS: Final = frozenset(
    {"channel_binding", "connect_timeout", "gssencmode", "host", "port"}
    | {"sslcert", "sslkey", "sslmode", "sslnegotiation", "sslrootcert"}
)
# What libpq would let a query string override. One place for each is enough.
REFUSED_PARAMETERS: Final = frozenset(
    {"dbname", "hostaddr", "passfile", "password", "service", "user"}
)


class DatabaseUrlError(ValueError):
    """Pilot does not connect to this URL; the message says why, without showing the password."""


class ConnectArguments(TypedDict):
    """Keyword arguments for `asyncpg.connect` and `asyncpg.create_pool`."""

    host: str
    port: int
    user: str | None
    password: str | None
    database: str
    ssl: ssl.SSLContext | bool
    server_settings: dict[str, str]
    statement_cache_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUrl:
    """A parsed `postgresql://` URL. The host of a Unix socket is its directory."""

    user: str | None
    password: str | None = field(repr=False)
    host: str
    port: int
    database: str
    parameters: dict[str, str] = field(repr=False)

    @property
    def is_local(self) -> bool:
        """True when the server is on this machine: a socket or a loopback address."""
        if self.host.startswith("/") or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def names_pooler(self) -> bool:
        """True for a host such as Neon's `ep-cool-name-pooler.eu-central-1.aws.neon.tech`."""
        return "-pooler" in self.host.split(".", 1)[0]

    @property
    def address(self) -> str:
        """What may be shown: neither the password nor the parameters, which could hold one."""
        return f"{self.database} on {self.host}:{self.port}"

    @property
    def is_encrypted(self) -> bool:
        """Local servers rarely have a certificate: only the URL can ask one for it."""
        return not self.is_local or self.parameters.get("sslmode") in ENCRYPTED_MODES

    @property
    def sslmode(self) -> str:
        """The mode in effect. `require` is raised to `verify-full`.

        In libpq `require` encrypts without asking to whom, and leaves that to channel binding,
        which neither of our drivers speaks.
        """
        if not self.is_encrypted:
            return "disable"
        return "verify-ca" if self.parameters.get("sslmode") == "verify-ca" else "verify-full"

    @property
    def server_settings(self) -> dict[str, str]:
        """The parameters that are for the server, such as `application_name` and `options`."""
        return {k: v for k, v in self.parameters.items() if k not in CLIENT_PARAMETERS}

    @property
    def authorities(self) -> str | None:
        """The file of trusted certificates that the URL names; None stands for the system's."""
        named = self.parameters.get("sslrootcert")
        return None if named == "system" else named


def parse(url: str) -> DatabaseUrl:
    """Parse a URL, and refuse what could lead elsewhere than it says, or in the clear.

    A missing host or database name is refused because drivers fill the gap from PGHOST and
    PGDATABASE, behind the back of every check that is made here.

    Raises DatabaseUrlError.
    """
    try:
        parts = urlsplit(url)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        port = int(parameters.get("port") or parts.port or DEFAULT_PORT)
    except ValueError:
        raise DatabaseUrlError("the database URL cannot be parsed: check its port") from None
    if parts.scheme not in {"postgres", "postgresql"}:
        raise DatabaseUrlError("a database URL begins with postgresql://")
    host = parts.hostname or ""
    if "%" in host:
        raise DatabaseUrlError("a socket's directory goes to the end: postgresql:///name?host=/run")
    if host and "host" in parameters:
        raise DatabaseUrlError("the database URL names its host twice")
    parsed = DatabaseUrl(
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        host=host or parameters.get("host", ""),
        port=port,
        database=unquote(parts.path.removeprefix("/")),
        parameters=parameters,
    )
    _check(parsed)
    return parsed


def connect_arguments(url: str, *, pooler: bool = False) -> ConnectArguments:
    """How asyncpg connects to a URL: encrypted and verified, unless the server is on this machine.

    With `pooler`, prepared statements are not kept: a transaction-mode pooler gives every
    transaction another server connection, which has not heard of them.

    Raises DatabaseUrlError.
    """
    parsed = parse(url)
    return ConnectArguments(
        host=parsed.host,
        port=parsed.port,
        user=parsed.user,
        password=parsed.password,
        database=parsed.database,
        ssl=_tls_context(parsed) if parsed.is_encrypted else False,
        server_settings=parsed.server_settings,
        statement_cache_size=0 if pooler else STATEMENT_CACHE_SIZE,
    )


def dbmate_url(url: str) -> str:
    """The same URL for dbmate, whose driver verifies nothing unless told to.

    Raises DatabaseUrlError.
    """
    parsed = parse(url)
    tls = {
        "sslmode": parsed.sslmode,
        "sslrootcert": parsed.authorities or ssl.get_default_verify_paths().cafile,
        "sslcert": parsed.parameters.get("sslcert"),
        "sslkey": parsed.parameters.get("sslkey"),
    }
    wanted = tls if parsed.is_encrypted else {"sslmode": parsed.sslmode}
    parameters = {name: value for name, value in wanted.items() if value} | parsed.server_settings
    return _compose(parsed, parameters)


def with_database(url: str, database: str) -> str:
    """The same server and options, another database.

    Raises DatabaseUrlError.
    """
    parse(url)
    return urlsplit(url)._replace(path=f"/{quote(database, safe='')}").geturl()


def _check(parsed: DatabaseUrl) -> None:
    if not parsed.host:
        raise DatabaseUrlError("the database URL must name its host")
    if "," in parsed.host:
        raise DatabaseUrlError("the database URL must name one host, not a list")
    if not parsed.database:
        raise DatabaseUrlError("the database URL must name its database")
    if refused := sorted(REFUSED_PARAMETERS & parsed.parameters.keys()):
        raise DatabaseUrlError(f"the database URL must not have the parameter {refused[0]}")
    mode = parsed.parameters.get("sslmode", "verify-full")
    if mode not in ENCRYPTED_MODES | UNENCRYPTED_MODES:
        raise DatabaseUrlError(f"the database URL has an unknown sslmode: {mode}")
    if mode in UNENCRYPTED_MODES and not parsed.is_local:
        raise DatabaseUrlError(
            f"sslmode={mode} would let the connection to {parsed.host} go unencrypted; "
            "leave sslmode out, or use verify-full"
        )


def _tls_context(parsed: DatabaseUrl) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=parsed.authorities)
        if certificate := parsed.parameters.get("sslcert"):
            context.load_cert_chain(certificate, parsed.parameters.get("sslkey"))
    except OSError as error:
        raise DatabaseUrlError(
            f"a certificate cannot be used ({_files(parsed)}): {error}"
        ) from error
    context.check_hostname = parsed.sslmode == "verify-full"
    return context


def _files(parsed: DatabaseUrl) -> str:
    named = {name: parsed.parameters.get(name) for name in ("sslrootcert", "sslcert", "sslkey")}
    return ", ".join(f"{name}={path}" for name, path in named.items() if path)


def _compose(parsed: DatabaseUrl, parameters: dict[str, str]) -> str:
    """Write a URL. A socket's directory goes into `host=`, where every driver looks for it."""
    password = f":{quote(parsed.password, safe='')}" if parsed.password else ""
    credentials = f"{quote(parsed.user, safe='')}{password}@" if parsed.user else ""
    if parsed.host.startswith("/"):
        location = ""
        parameters = {"host": parsed.host, "port": str(parsed.port), **parameters}
    else:
        location = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
        location = f"{location}:{parsed.port}"
    query = urlencode(parameters, quote_via=quote)
    return f"postgresql://{credentials}{location}/{quote(parsed.database, safe='')}?{query}"
