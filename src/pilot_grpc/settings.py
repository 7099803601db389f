"""Settings: everything that can be configured, read once from the environment.

This is the only module that reads os.environ. Each field names its variable, its unit and its
default; `pilot serve` prints nothing of them that is secret.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from pilot_grpc import database_url

D = TypeVar("D")
V = TypeVar("V")
E = TypeVar("E", bound=StrEnum)

WRAPPING_KEY_BYTES: Final = 32
OLD_WRAPPING_KEYS_MAX: Final = 16
# What can stand before the `=` of PILOT_OLD_WRAPPING_KEYS, and in a message to a person.
KEY_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
MAX_PORT: Final = 65_535
# Every number fits a bigint of PostgreSQL, and any age a calendar that begins with the year 1.
NUMBER_MAX: Final = 2**63 - 1
DAYS_MAX: Final = 36_500

# One vault may fill half of a queue, and a BatchSpend of 1,000 must fit.
LANE_QUEUE_MIN: Final = 2_000

RPC_URLS_MAX: Final = 8
POLL_MILLISECONDS_MAX: Final = 60_000
RECIPIENT_ACCOUNTS_MAX: Final = 1_000_000
# What an address of Solana is made of, and how long one can be.
BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
ADDRESS_BYTES: Final = 32
ADDRESS_CHARACTERS_MAX: Final = 44

# What the embedded chain can bear, which is on this machine and nobody else's.
EMBEDDED_REQUESTS_PER_SECOND: Final = 1_000
EMBEDDED_POLL: Final = timedelta(milliseconds=50)
# On a chain whose SOL costs nothing.
DEVELOPMENT_RECIPIENT_ACCOUNTS: Final = 1_000

# The id of the wrapping key that Pilot makes for itself next to the embedded database. It is
# stored with every vault that it sealed, so that such a vault is recognised for ever.
DEVELOPMENT_KEY_ID: Final = "development"

BOOLEANS: Final = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}


class SettingsError(ValueError):
    """The environment does not describe a Pilot that can run. Lists every problem, one a line."""


class SolanaCluster(StrEnum):
    """Where the vaults' USDC lives."""

    EMBEDDED = "embedded"
    LOCALNET = "localnet"
    DEVNET = "devnet"
    MAINNET = "mainnet"


class SolanaCommitment(StrEnum):
    """How sure it must be that a block stays before the money in it counts."""

    CONFIRMED = "confirmed"
    FINALIZED = "finalized"


class LogFormat(StrEnum):
    """TEXT is for people, JSON (one object a line) for machines."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe records that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappingKey:
    """The key that seals the data keys of vaults (AES-256). It never enters the database."""

    id: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field a setting. The comment above each gives its variable and what it means."""

    # PILOT_LISTEN_ADDRESS: host:port that the gRPC server listens on.
    listen_address: str = "127.0.0.1:50051"

    # DATABASE_URL: a PostgreSQL 15 to 18. None stands for the embedded database in data_dir.
    database_url: str | None = field(default=None, repr=False)
    # PILOT_DATABASE_DIRECT_URL: the same database without a pooler between, for migrations.
    # Default: DATABASE_URL.
    database_direct_url: str | None = field(default=None, repr=False)
    # PILOT_DATABASE_POOLER: DATABASE_URL leads to a transaction-mode pooler, so that no prepared
    # statement and no session state outlives a transaction. Default: whether the first label of
    # its host contains "-pooler", as Neon's do.
    database_pooler: bool = False
    # PILOT_DATABASE_POOL_SIZE: the most connections that this process opens for requests. Each
    # lane has up to three more, streams have five, credentials and health four, and what works on
    # Solana four.
    database_pool_size: int = 10

    # PILOT_LANES: how many batches of spends this process decides at the same time. One a core
    # is about right.
    lanes: int = 2
    # PILOT_LANE_BATCH_LIMIT: the most spends that one batch decides.
    lane_batch_limit: int = 1_000
    # PILOT_LANE_QUEUE_LIMIT: the most spends that may wait for one lane; more are refused with
    # RESOURCE_EXHAUSTED.
    lane_queue_limit: int = 20_000

    # PILOT_DATA_DIR: the embedded database, the embedded chain and the development wrapping key
    # live here.
    data_dir: Path = Path(".pilot")
    # PILOT_WRAPPING_KEY (base64 of 32 bytes) with PILOT_WRAPPING_KEY_ID. Without them a key is
    # made in data_dir, which is enough for the embedded database only.
    wrapping_key: WrappingKey | None = None
    # PILOT_OLD_WRAPPING_KEYS (id=base64,id=base64): keys that open what they sealed, and seal
    # nothing any more; at most 16.
    old_wrapping_keys: tuple[WrappingKey, ...] = ()

    # PILOT_SIGN_UP_ENABLED: whether strangers may create accounts.
    sign_up_enabled: bool = True
    # PILOT_SESSION_LIFETIME_SECONDS: how long a sign-in lasts.
    session_lifetime: timedelta = timedelta(days=7)
    # PILOT_OPEN_HOLDS_LIMIT: the most holds that one agent may have open.
    open_holds_limit: int = 1_000
    # PILOT_DECLINES_PER_MINUTE: an agent that is declined more often is answered
    # RESOURCE_EXHAUSTED until a minute has passed. Each process counts for itself.
    declines_per_minute: int = 120

    # PILOT_CHANGES_KEPT_DAYS: changes that are older are trimmed, and a subscriber that was away
    # for longer cannot resume. Default: none is trimmed for its age.
    changes_kept_age: timedelta | None = None
    # PILOT_CHANGES_KEPT_COUNT: of each vault so many of its newest changes are kept, and those
    # before them are trimmed. Default: all are kept. With both, a change goes when either says so;
    # the newest change of a vault, its events, and the answers to its requests always stay.
    changes_kept_count: int | None = None

    # PILOT_SOLANA_CLUSTER: embedded, localnet, devnet or mainnet. All but embedded need
    # PILOT_SOLANA_RPC_URLS.
    solana_cluster: SolanaCluster = SolanaCluster.EMBEDDED
    # PILOT_SOLANA_RPC_URLS: up to 8 http(s) URLs of different RPC nodes, separated by commas, in
    # the order of preference; two or more check each other. They may hold keys, so they are
    # secret. Default: the embedded chain in data_dir; with DATABASE_URL none, and then this
    # installation has no chain.
    solana_rpc_urls: tuple[str, ...] = field(default=(), repr=False)
    # PILOT_SOLANA_RPC_REQUESTS_PER_SECOND: the most that each node is asked. Default: 20, but 1000
    # on the embedded cluster.
    solana_rpc_requests_per_second: int = EMBEDDED_REQUESTS_PER_SECOND
    # PILOT_SOLANA_USDC_MINT: the address of the USDC of a localnet, which needs one. Every other
    # cluster has its own.
    solana_usdc_mint: str | None = None
    # PILOT_SOLANA_COMMITMENT: what money on chain counts at, finalized or confirmed. Confirmed is
    # sooner and weaker: such a block may yet be given up, and what was counted in it with it.
    solana_commitment: SolanaCommitment = SolanaCommitment.FINALIZED
    # PILOT_SOLANA_POLL_MILLISECONDS: how often the chain is asked about what is on its way, 1 to
    # 60000. Default: 1000, but 50 on the embedded cluster.
    solana_poll: timedelta = EMBEDDED_POLL
    # PILOT_RECIPIENT_ACCOUNTS_PER_DAY: for how many recipients that have no USDC account the fee
    # payer pays one in a UTC day, in all; each recipient once, and only those on an agent's list.
    # With 0 such a recipient cannot be paid. Default: 0, but 1000 on the embedded cluster and on a
    # localnet.
    recipient_accounts_per_day: int = DEVELOPMENT_RECIPIENT_ACCOUNTS
    # PILOT_FEE_PAYER_LOW_LAMPORTS: when the fee payer has less, the log warns.
    fee_payer_low_lamports: int = 50_000_000
    # PILOT_PRIORITY_FEE_MAX_MICROLAMPORTS: the most to pay for a compute unit, 0 for nothing.
    priority_fee_max: int = 1_000_000
    # PILOT_RECONCILE_SECONDS: how often each vault is compared with the chain.
    reconcile: timedelta = timedelta(minutes=5)
    # PILOT_SETTLEMENT_ENABLED: whether this process works on the chain (looks for deposits, pays,
    # reconciles). Where it does not, others may.
    settlement_enabled: bool = True
    # PILOT_FEE_PAYER_KEYCHAIN_FILE: JSON that configures a backend of solana-keychain to hold the
    # fee payer's key, instead of one that Pilot makes and seals.
    fee_payer_keychain_file: Path | None = None
    # PILOT_ALLOW_CREDITS: whether RecordFunding may credit money that is not on chain.
    # Default: true, but false on mainnet.
    allow_credits: bool = True

    # PILOT_WEBHOOKS_ENABLED: whether this process delivers changes to the agents' webhook_urls.
    webhooks_enabled: bool = True
    # PILOT_WEBHOOKS_ALLOW_PRIVATE: whether a webhook_url may lead to this machine or to a private
    # network. For development: not on mainnet.
    webhooks_allow_private: bool = False

    # PILOT_TLS_CERTIFICATE_FILE and PILOT_TLS_KEY_FILE: PEM; without them the server speaks
    # plain text.
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    # PILOT_TLS_CLIENT_CA_FILE: PEM; callers must show a certificate that it signed (mutual TLS).
    tls_client_ca_file: Path | None = None

    # PILOT_REFLECTION: whether the server describes its API to anybody, as grpcurl needs.
    reflection: bool = True
    # PILOT_DEADLINE_SECONDS: the longest that a unary request may take; a caller's shorter
    # deadline holds.
    deadline: timedelta = timedelta(seconds=10)
    # PILOT_STREAMS_LIMIT: the most SubscribeEvents streams that this process serves, and
    # PILOT_STREAMS_PER_USER_LIMIT: of them, the most of one user.
    streams_limit: int = 5_000
    streams_per_user_limit: int = 2_000
    # PILOT_STREAM_AGE_SECONDS: how long a stream lasts before it is ended with UNAVAILABLE, to
    # be resumed on whichever server is next; a fifth more or less, so that not all end together.
    stream_age: timedelta = timedelta(minutes=30)
    # PILOT_KEEPALIVE_SECONDS: how long a connection may be silent before the server asks whether
    # the client is still there; one that does not answer within 10 seconds is closed.
    keepalive: timedelta = timedelta(seconds=30)
    # PILOT_DRAIN_SECONDS: how long SIGTERM waits for requests in flight.
    drain_grace: timedelta = timedelta(seconds=10)

    # PILOT_LOG_LEVEL: debug, info, warning or error.
    log_level: LogLevel = LogLevel.INFO
    # PILOT_LOG_FORMAT: text, or json with one object a line.
    log_format: LogFormat = LogFormat.TEXT

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and validate the environment (os.environ when none is given).

        Raises SettingsError, which lists every problem at once.
        """
        reader = _Reader(os.environ if environ is None else environ)
        url = reader.database_url("DATABASE_URL")
        cluster = reader.choice("PILOT_SOLANA_CLUSTER", cls.solana_cluster)
        chain = _ChainDefaults.of(cluster)
        settings = cls(
            listen_address=reader.address("PILOT_LISTEN_ADDRESS", cls.listen_address),
            database_url=url,
            database_direct_url=reader.database_url("PILOT_DATABASE_DIRECT_URL") or url,
            database_pooler=reader.boolean("PILOT_DATABASE_POOLER", _names_pooler(url)),
            database_pool_size=reader.count("PILOT_DATABASE_POOL_SIZE", cls.database_pool_size),
            lanes=reader.count("PILOT_LANES", cls.lanes),
            lane_batch_limit=reader.count("PILOT_LANE_BATCH_LIMIT", cls.lane_batch_limit),
            lane_queue_limit=reader.count("PILOT_LANE_QUEUE_LIMIT", cls.lane_queue_limit),
            data_dir=reader.path("PILOT_DATA_DIR") or cls.data_dir,
            wrapping_key=reader.wrapping_key(),
            old_wrapping_keys=reader.old_wrapping_keys(),
            sign_up_enabled=reader.boolean("PILOT_SIGN_UP_ENABLED", cls.sign_up_enabled),
            session_lifetime=reader.seconds("PILOT_SESSION_LIFETIME_SECONDS", cls.session_lifetime),
            open_holds_limit=reader.count("PILOT_OPEN_HOLDS_LIMIT", cls.open_holds_limit),
            declines_per_minute=reader.count("PILOT_DECLINES_PER_MINUTE", cls.declines_per_minute),
            changes_kept_age=reader.days("PILOT_CHANGES_KEPT_DAYS", cls.changes_kept_age),
            changes_kept_count=reader.count("PILOT_CHANGES_KEPT_COUNT", cls.changes_kept_count),
            solana_cluster=cluster,
            allow_credits=reader.boolean(
                "PILOT_ALLOW_CREDITS", cluster is not SolanaCluster.MAINNET
            ),
            solana_rpc_urls=reader.rpc_urls("PILOT_SOLANA_RPC_URLS"),
            solana_rpc_requests_per_second=reader.count(
                "PILOT_SOLANA_RPC_REQUESTS_PER_SECOND", chain.requests_per_second
            ),
            solana_usdc_mint=reader.solana_address("PILOT_SOLANA_USDC_MINT"),
            solana_commitment=reader.choice("PILOT_SOLANA_COMMITMENT", cls.solana_commitment),
            solana_poll=reader.milliseconds(
                "PILOT_SOLANA_POLL_MILLISECONDS", chain.poll, POLL_MILLISECONDS_MAX
            ),
            recipient_accounts_per_day=reader.whole(
                "PILOT_RECIPIENT_ACCOUNTS_PER_DAY",
                chain.recipient_accounts_per_day,
                RECIPIENT_ACCOUNTS_MAX,
            ),
            fee_payer_low_lamports=reader.count(
                "PILOT_FEE_PAYER_LOW_LAMPORTS", cls.fee_payer_low_lamports
            ),
            priority_fee_max=reader.whole(
                "PILOT_PRIORITY_FEE_MAX_MICROLAMPORTS", cls.priority_fee_max, NUMBER_MAX
            ),
            reconcile=reader.seconds("PILOT_RECONCILE_SECONDS", cls.reconcile),
            settlement_enabled=reader.boolean("PILOT_SETTLEMENT_ENABLED", cls.settlement_enabled),
            fee_payer_keychain_file=reader.path("PILOT_FEE_PAYER_KEYCHAIN_FILE"),
            webhooks_enabled=reader.boolean("PILOT_WEBHOOKS_ENABLED", cls.webhooks_enabled),
            webhooks_allow_private=reader.boolean(
                "PILOT_WEBHOOKS_ALLOW_PRIVATE", cls.webhooks_allow_private
            ),
            tls_certificate_file=reader.path("PILOT_TLS_CERTIFICATE_FILE"),
            tls_key_file=reader.path("PILOT_TLS_KEY_FILE"),
            tls_client_ca_file=reader.path("PILOT_TLS_CLIENT_CA_FILE"),
            reflection=reader.boolean("PILOT_REFLECTION", cls.reflection),
            deadline=reader.seconds("PILOT_DEADLINE_SECONDS", cls.deadline),
            streams_limit=reader.count("PILOT_STREAMS_LIMIT", cls.streams_limit),
            streams_per_user_limit=reader.count(
                "PILOT_STREAMS_PER_USER_LIMIT", cls.streams_per_user_limit
            ),
            stream_age=reader.seconds("PILOT_STREAM_AGE_SECONDS", cls.stream_age),
            keepalive=reader.seconds("PILOT_KEEPALIVE_SECONDS", cls.keepalive),
            drain_grace=reader.seconds("PILOT_DRAIN_SECONDS", cls.drain_grace),
            log_level=reader.choice("PILOT_LOG_LEVEL", cls.log_level),
            log_format=reader.choice("PILOT_LOG_FORMAT", cls.log_format),
        )
        problems = reader.problems + _contradictions(settings)
        if problems:
            raise SettingsError("\n".join(problems))
        return settings

    @property
    def uses_embedded_database(self) -> bool:
        """True when no DATABASE_URL is set, so that Pilot brings its own PostgreSQL."""
        return self.database_url is None

    @property
    def uses_embedded_chain(self) -> bool:
        """True when Pilot brings its own chain, beside its own PostgreSQL: never on mainnet."""
        return (
            self.solana_cluster is SolanaCluster.EMBEDDED
            and not self.solana_rpc_urls
            and self.uses_embedded_database
        )

    def direct_url(self) -> str:
        """The URL for what needs a session of its own: migrations and their lock.

        Raises SettingsError when only the pooler is known, or no database at all.
        """
        if self.database_direct_url is None:
            raise SettingsError("DATABASE_URL is not set")
        if self.database_pooler and self.database_direct_url == self.database_url:
            raise SettingsError(
                "DATABASE_URL leads to a pooler, and migrations need a session of their own; set "
                "PILOT_DATABASE_DIRECT_URL to the database itself (at Neon: without -pooler)"
            )
        return self.database_direct_url

    def sealing_key(self) -> WrappingKey:
        """The wrapping key, which a database of your own needs one of your own for.

        Raises SettingsError. Not checked by from_environ, because migrations seal nothing.
        """
        if self.wrapping_key is None:
            raise SettingsError(
                "PILOT_WRAPPING_KEY and PILOT_WRAPPING_KEY_ID must be set together with "
                "DATABASE_URL; `openssl rand -base64 32` makes a key. Keep it: without it the "
                "vaults of this database cannot be opened."
            )
        return self.wrapping_key


@dataclass(frozen=True, slots=True)
class _ChainDefaults:
    """What depends on whose chain it is."""

    requests_per_second: int = 20
    poll: timedelta = timedelta(seconds=1)
    recipient_accounts_per_day: int = 0

    @classmethod
    def of(cls, cluster: SolanaCluster) -> _ChainDefaults:
        if cluster is SolanaCluster.EMBEDDED:
            return cls(EMBEDDED_REQUESTS_PER_SECOND, EMBEDDED_POLL, DEVELOPMENT_RECIPIENT_ACCOUNTS)
        if cluster is SolanaCluster.LOCALNET:
            return cls(recipient_accounts_per_day=DEVELOPMENT_RECIPIENT_ACCOUNTS)
        return cls()


def _names_pooler(url: str | None) -> bool:
    return url is not None and database_url.parse(url).names_pooler


def _contradictions(settings: Settings) -> list[str]:
    """What is wrong with values that are fine one by one."""
    problems = []
    if (settings.tls_certificate_file is None) != (settings.tls_key_file is None):
        problems.append("PILOT_TLS_CERTIFICATE_FILE and PILOT_TLS_KEY_FILE must be set together")
    if settings.tls_client_ca_file and not settings.tls_certificate_file:
        problems.append("PILOT_TLS_CLIENT_CA_FILE needs PILOT_TLS_CERTIFICATE_FILE")
    if settings.lane_queue_limit < LANE_QUEUE_MIN:
        problems.append(f"PILOT_LANE_QUEUE_LIMIT must be at least {LANE_QUEUE_MIN}")
    current = settings.wrapping_key
    if current is not None and any(key.id == current.id for key in settings.old_wrapping_keys):
        problems.append("PILOT_OLD_WRAPPING_KEYS must not have the id of PILOT_WRAPPING_KEY")
    if settings.uses_embedded_database and settings.solana_cluster is SolanaCluster.MAINNET:
        problems.append("PILOT_SOLANA_CLUSTER=mainnet needs DATABASE_URL and PILOT_WRAPPING_KEY")
    if settings.webhooks_allow_private and settings.solana_cluster is SolanaCluster.MAINNET:
        problems.append("PILOT_WEBHOOKS_ALLOW_PRIVATE is for development, not for mainnet")
    return problems + _contradictions_of_the_chain(settings)


def _contradictions_of_the_chain(settings: Settings) -> list[str]:
    problems = []
    cluster = settings.solana_cluster
    is_localnet = cluster is SolanaCluster.LOCALNET
    if cluster is not SolanaCluster.EMBEDDED and not settings.solana_rpc_urls:
        problems.append(f"PILOT_SOLANA_CLUSTER={cluster} needs PILOT_SOLANA_RPC_URLS")
    if is_localnet and settings.solana_usdc_mint is None:
        problems.append("PILOT_SOLANA_CLUSTER=localnet needs PILOT_SOLANA_USDC_MINT")
    if not is_localnet and settings.solana_usdc_mint is not None:
        problems.append("PILOT_SOLANA_USDC_MINT is for PILOT_SOLANA_CLUSTER=localnet only")
    return problems


class _Reader:
    """Turns variables into values. What it cannot read it notes, and goes on with the default."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def boolean(self, name: str, default: bool) -> bool:
        return self._read(
            name, default, lambda text: BOOLEANS[text.lower()], "must be true or false"
        )

    def count(self, name: str, default: D) -> int | D:
        return self._read(name, default, _positive, "must be a whole number above zero")

    def whole(self, name: str, default: int, maximum: int) -> int:
        rule = f"must be a whole number from 0 to {maximum}"
        return self._read(name, default, lambda text: _within(text, 0, maximum), rule)

    def days(self, name: str, default: D) -> timedelta | D:
        rule = f"must be a whole number of days from 1 to {DAYS_MAX}"
        return self._read(name, default, _days, rule)

    def seconds(self, name: str, default: timedelta) -> timedelta:
        return self._read(
            name,
            default,
            lambda text: timedelta(seconds=_positive(text)),
            "must be a whole number of seconds above zero",
        )

    def milliseconds(self, name: str, default: timedelta, maximum: int) -> timedelta:
        return self._read(
            name,
            default,
            lambda text: timedelta(milliseconds=_within(text, 1, maximum)),
            f"must be a whole number of milliseconds from 1 to {maximum}",
        )

    def choice(self, name: str, default: E) -> E:
        kind = type(default)
        return self._read(
            name, default, lambda text: kind(text.lower()), f"must be one of {', '.join(kind)}"
        )

    def path(self, name: str) -> Path | None:
        return self._read(name, None, Path, "must be a path")

    def address(self, name: str, default: str) -> str:
        return self._read(name, default, _address, "must be host:port, such as 127.0.0.1:50051")

    def database_url(self, name: str) -> str | None:
        return self._read(name, None, _database_url, "")

    def rpc_urls(self, name: str) -> tuple[str, ...]:
        rule = f"must be up to {RPC_URLS_MAX} different http(s) URLs, separated by commas"
        return self._read(name, (), _rpc_urls, rule)

    def solana_address(self, name: str) -> str | None:
        return self._read(name, None, _solana_address, "must be the address of a Solana account")

    def wrapping_key(self) -> WrappingKey | None:
        secret = self._read(
            "PILOT_WRAPPING_KEY",
            None,
            _secret,
            f"must be the base64 of {WRAPPING_KEY_BYTES} bytes (`openssl rand -base64 32`)",
        )
        key_id = self._read(
            "PILOT_WRAPPING_KEY_ID",
            "",
            _key_id,
            f"must be letters, digits and any of . _ : / -, and not {DEVELOPMENT_KEY_ID}",
        )
        names = ("PILOT_WRAPPING_KEY", "PILOT_WRAPPING_KEY_ID")
        if len({bool(self._environ.get(name, "").strip()) for name in names}) > 1:
            self.problems.append(
                "PILOT_WRAPPING_KEY and PILOT_WRAPPING_KEY_ID must be set together"
            )
        return WrappingKey(id=key_id, secret=secret) if secret else None

    def old_wrapping_keys(self) -> tuple[WrappingKey, ...]:
        rule = f"must be up to {OLD_WRAPPING_KEYS_MAX} different id=base64, separated by commas"
        return self._read("PILOT_OLD_WRAPPING_KEYS", (), _wrapping_keys, rule)

    def _read(self, name: str, default: D, parse: Callable[[str], V], rule: str) -> D | V:
        """An empty variable is an absent one. The value is never shown: it may be secret."""
        text = self._environ.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except database_url.DatabaseUrlError as error:
            self.problems.append(f"{name}: {error}")
        except (ValueError, KeyError, OverflowError):
            self.problems.append(f"{name} {rule}")
        return default


def _positive(text: str) -> int:
    return _within(text, 1, NUMBER_MAX)


def _within(text: str, least: int, most: int) -> int:
    number = int(text)
    if not least <= number <= most:
        raise ValueError
    return number


def _days(text: str) -> timedelta:
    return timedelta(days=_within(text, 1, DAYS_MAX))


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not 0 <= int(port) <= MAX_PORT:
        raise ValueError
    return text


def _secret(text: str) -> bytes:
    secret = base64.b64decode(text, validate=True)
    if len(secret) != WRAPPING_KEY_BYTES:
        raise ValueError
    return secret


def _key_id(text: str) -> str:
    if text == DEVELOPMENT_KEY_ID or not KEY_ID.fullmatch(text):
        raise ValueError
    return text


def _wrapping_keys(text: str) -> tuple[WrappingKey, ...]:
    keys = []
    for item in text.split(","):
        key_id, _, secret = item.strip().partition("=")
        keys.append(WrappingKey(id=_key_id(key_id), secret=_secret(secret)))
    if len(keys) > OLD_WRAPPING_KEYS_MAX or len({key.id for key in keys}) < len(keys):
        raise ValueError
    return tuple(keys)


def _database_url(text: str) -> str:
    database_url.parse(text)
    return text


def _rpc_urls(text: str) -> tuple[str, ...]:
    """Read what nodes are asked at. One that is named twice would agree with itself."""
    urls = tuple(item.strip() for item in text.split(","))
    nodes = {_node(url) for url in urls}
    if len(urls) > RPC_URLS_MAX or len(nodes) < len(urls):
        raise ValueError
    return urls


def _node(url: str) -> tuple[str, int | None, str, str]:
    """What of a URL says which node it is."""
    parts = urlsplit(url)
    if not url.isprintable() or " " in url or parts.scheme not in {"http", "https"}:
        raise ValueError
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port, parts.path.rstrip("/"), parts.query


def _solana_address(text: str) -> str:
    """Read an address: the base58 of 32 bytes, in which a 1 stands for a zero byte before all."""
    if len(text) > ADDRESS_CHARACTERS_MAX:
        raise ValueError
    number = 0
    for character in text:
        number = number * len(BASE58) + BASE58.index(character)
    zeros = len(text) - len(text.lstrip(BASE58[0]))
    if zeros + (number.bit_length() + 7) // 8 != ADDRESS_BYTES:
        raise ValueError
    return text
