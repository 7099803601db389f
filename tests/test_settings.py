"""Settings: the defaults, every refusal, and nothing secret in what is printed."""

from __future__ import annotations

import base64
from datetime import timedelta
from pathlib import Path

import pytest

from pilot_grpc.settings import (
    LogFormat,
    Settings,
    SettingsError,
    SolanaCluster,
    SolanaCommitment,
    WrappingKey,
)

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(32)).decode()
REMOTE = "postgresql://pilot:hunter2@db.example.com/pilot"
NODE = "https://user:hunter3@rpc.example.com/v2/hunter4?api-key=hunter5"
MINT = "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU"
MAINNET = {
    "DATABASE_URL": REMOTE,
    "PILOT_SOLANA_CLUSTER": "mainnet",
    "PILOT_SOLANA_RPC_URLS": NODE,
}
LOCALNET = {
    "PILOT_SOLANA_CLUSTER": "localnet",
    "PILOT_SOLANA_RPC_URLS": "http://127.0.0.1:8899",
    "PILOT_SOLANA_USDC_MINT": MINT,
}
DEVNET = {"PILOT_SOLANA_CLUSTER": "devnet", "PILOT_SOLANA_RPC_URLS": NODE}


def test_an_empty_environment_is_a_first_run() -> None:
    """Nothing needs to be set: all is embedded, in plain text, and on this machine only."""
    settings = Settings.from_environ({})

    assert settings == Settings()
    assert settings.listen_address == "127.0.0.1:50051"
    assert settings.uses_embedded_database
    assert settings.uses_embedded_chain
    assert settings.data_dir == Path(".pilot")
    assert (settings.changes_kept_age, settings.changes_kept_count) == (None, None)


def test_every_variable_is_read() -> None:
    settings = Settings.from_environ(
        {
            "DATABASE_URL": REMOTE,
            "PILOT_ALLOW_CREDITS": "off",
            "PILOT_CHANGES_KEPT_COUNT": "100000",
            "PILOT_CHANGES_KEPT_DAYS": "30",
            "PILOT_DATABASE_DIRECT_URL": "postgresql://direct.example.com/pilot",
            "PILOT_DATABASE_POOLER": "true",
            "PILOT_DATABASE_POOL_SIZE": "11",
            "PILOT_DATA_DIR": "/var/lib/pilot",
            "PILOT_DEADLINE_SECONDS": "5",
            "PILOT_DECLINES_PER_MINUTE": "7",
            "PILOT_DRAIN_SECONDS": "3",
            "PILOT_FEE_PAYER_KEYCHAIN_FILE": "/etc/pilot/fee-payer.json",
            "PILOT_FEE_PAYER_LOW_LAMPORTS": "1",
            "PILOT_KEEPALIVE_SECONDS": "9",
            "PILOT_LANES": "4",
            "PILOT_LANE_BATCH_LIMIT": "50",
            "PILOT_LANE_QUEUE_LIMIT": "6000",
            "PILOT_LISTEN_ADDRESS": "[::]:443",
            "PILOT_LOG_FORMAT": "JSON",
            "PILOT_LOG_LEVEL": "warning",
            "PILOT_OLD_WRAPPING_KEYS": f"2026-10={KEY}, 2026/09={OTHER_KEY}",
            "PILOT_OPEN_HOLDS_LIMIT": "8",
            "PILOT_PRIORITY_FEE_MAX_MICROLAMPORTS": "0",
            "PILOT_RECIPIENT_ACCOUNTS_PER_DAY": "0",
            "PILOT_RECONCILE_SECONDS": "60",
            "PILOT_REFLECTION": "0",
            "PILOT_SESSION_LIFETIME_SECONDS": "3600",
            "PILOT_SETTLEMENT_ENABLED": "false",
            "PILOT_SIGN_UP_ENABLED": "FALSE",
            "PILOT_SOLANA_CLUSTER": "localnet",
            "PILOT_SOLANA_COMMITMENT": "Confirmed",
            "PILOT_SOLANA_POLL_MILLISECONDS": "60000",
            "PILOT_SOLANA_RPC_REQUESTS_PER_SECOND": "5",
            "PILOT_SOLANA_RPC_URLS": f"{NODE}, http://[::1]:8899/",
            "PILOT_SOLANA_USDC_MINT": MINT,
            "PILOT_STREAMS_LIMIT": "70",
            "PILOT_STREAMS_PER_USER_LIMIT": "60",
            "PILOT_STREAM_AGE_SECONDS": "50",
            "PILOT_TLS_CERTIFICATE_FILE": "/tls/cert.pem",
            "PILOT_TLS_CLIENT_CA_FILE": "/tls/ca.pem",
            "PILOT_TLS_KEY_FILE": "/tls/key.pem",
            "PILOT_WEBHOOKS_ALLOW_PRIVATE": "true",
            "PILOT_WEBHOOKS_ENABLED": "false",
            "PILOT_WRAPPING_KEY": KEY,
            "PILOT_WRAPPING_KEY_ID": "2026-11",
        }
    )

    unchanged = {name for name, value in vars(settings).items() if value == vars(Settings())[name]}
    assert unchanged == set()
    assert settings.wrapping_key is not None
    assert settings.wrapping_key.secret == bytes(range(32))
    assert settings.old_wrapping_keys == (
        WrappingKey(id="2026-10", secret=bytes(range(32))),
        WrappingKey(id="2026/09", secret=bytes(32)),
    )
    assert settings.session_lifetime == timedelta(hours=1)
    assert settings.changes_kept_age == timedelta(days=30)
    assert settings.log_format is LogFormat.JSON
    assert settings.solana_rpc_urls == (NODE, "http://[::1]:8899/")
    assert settings.solana_commitment is SolanaCommitment.CONFIRMED
    assert settings.solana_poll == timedelta(minutes=1)
    assert settings.reconcile == timedelta(minutes=1)
    assert settings.direct_url() == "postgresql://direct.example.com/pilot"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PILOT_LANES", "0"),
        ("PILOT_LANES", "two"),
        ("PILOT_REFLECTION", "maybe"),
        ("PILOT_CHANGES_KEPT_COUNT", "0"),
        ("PILOT_CHANGES_KEPT_COUNT", "9223372036854775808"),
        ("PILOT_CHANGES_KEPT_DAYS", "0"),
        ("PILOT_CHANGES_KEPT_DAYS", "36501"),
        ("PILOT_DRAIN_SECONDS", "-1"),
        ("PILOT_LISTEN_ADDRESS", "50051"),
        ("PILOT_LISTEN_ADDRESS", "localhost:70000"),
        ("PILOT_SOLANA_CLUSTER", "testnet"),
        ("PILOT_SOLANA_RPC_URLS", "ws://rpc.example.com"),
        ("PILOT_SOLANA_RPC_URLS", "rpc.example.com"),
        ("PILOT_SOLANA_RPC_URLS", "https://"),
        ("PILOT_SOLANA_RPC_URLS", "https://rpc.example.com:http/"),
        ("PILOT_SOLANA_RPC_URLS", "https://rpc.example.com/a b"),
        ("PILOT_SOLANA_RPC_URLS", "https://one.example.com,"),
        ("PILOT_SOLANA_RPC_URLS", "https://one.example.com,https://ONE.example.com/"),
        ("PILOT_SOLANA_RPC_URLS", ",".join(f"https://{n}.example.com" for n in range(9))),
        ("PILOT_SOLANA_RPC_REQUESTS_PER_SECOND", "0"),
        ("PILOT_SOLANA_USDC_MINT", MINT[:-2]),
        ("PILOT_SOLANA_USDC_MINT", f"{MINT}1"),
        ("PILOT_SOLANA_USDC_MINT", f"{MINT[:-1]}0"),
        ("PILOT_SOLANA_USDC_MINT", "1" * 33),
        ("PILOT_SOLANA_COMMITMENT", "processed"),
        ("PILOT_SOLANA_POLL_MILLISECONDS", "0"),
        ("PILOT_SOLANA_POLL_MILLISECONDS", "60001"),
        ("PILOT_RECIPIENT_ACCOUNTS_PER_DAY", "-1"),
        ("PILOT_RECIPIENT_ACCOUNTS_PER_DAY", "1000001"),
        ("PILOT_FEE_PAYER_LOW_LAMPORTS", "0"),
        ("PILOT_PRIORITY_FEE_MAX_MICROLAMPORTS", "-1"),
        ("PILOT_PRIORITY_FEE_MAX_MICROLAMPORTS", "9223372036854775808"),
        ("PILOT_RECONCILE_SECONDS", "0"),
        ("PILOT_SETTLEMENT_ENABLED", "sometimes"),
        ("PILOT_LOG_LEVEL", "loud"),
        ("DATABASE_URL", "mysql://localhost/pilot"),
        ("PILOT_WRAPPING_KEY", "c2hvcnQ="),
        ("PILOT_WRAPPING_KEY_ID", "a,b"),
        ("PILOT_WRAPPING_KEY_ID", "a=b"),
        ("PILOT_OLD_WRAPPING_KEYS", KEY),
        ("PILOT_OLD_WRAPPING_KEYS", "2026-10=c2hvcnQ="),
        ("PILOT_OLD_WRAPPING_KEYS", f"development={KEY}"),
        ("PILOT_OLD_WRAPPING_KEYS", f"2026-10={KEY},"),
        ("PILOT_OLD_WRAPPING_KEYS", f"2026-10={KEY},2026-10={OTHER_KEY}"),
        ("PILOT_OLD_WRAPPING_KEYS", ",".join(f"{n}={KEY}" for n in range(17))),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}(:| must be) "):
        Settings.from_environ({name: value})


@pytest.mark.parametrize(
    "environ",
    [
        {"PILOT_TLS_CERTIFICATE_FILE": "cert.pem"},
        {"PILOT_TLS_KEY_FILE": "key.pem"},
        {"PILOT_TLS_CLIENT_CA_FILE": "ca.pem"},
        {"PILOT_WRAPPING_KEY": KEY},
        {"PILOT_WRAPPING_KEY_ID": "2026-11"},
        {"PILOT_WRAPPING_KEY": KEY, "PILOT_WRAPPING_KEY_ID": "development"},
        {
            "PILOT_WRAPPING_KEY": KEY,
            "PILOT_WRAPPING_KEY_ID": "2026-11",
            "PILOT_OLD_WRAPPING_KEYS": f"2026-11={OTHER_KEY}",
        },
        {"PILOT_LANE_QUEUE_LIMIT": "1999"},
        MAINNET | {"DATABASE_URL": ""},
        MAINNET | {"PILOT_SOLANA_RPC_URLS": ""},
        MAINNET | {"PILOT_SOLANA_RPC_URLS": "", "PILOT_SETTLEMENT_ENABLED": "false"},
        MAINNET | {"PILOT_SOLANA_USDC_MINT": MINT},
        MAINNET | {"PILOT_WEBHOOKS_ALLOW_PRIVATE": "true"},
        LOCALNET | {"PILOT_SOLANA_RPC_URLS": ""},
        LOCALNET | {"PILOT_SOLANA_USDC_MINT": ""},
        DEVNET | {"PILOT_SOLANA_RPC_URLS": ""},
        DEVNET | {"PILOT_SOLANA_USDC_MINT": MINT},
        {"PILOT_SOLANA_USDC_MINT": MINT},
    ],
)
def test_values_that_contradict_each_other_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environ(environ)

    assert len(str(refusal.value).splitlines()) == 1


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environ({"PILOT_LANES": "x", "PILOT_REFLECTION": "x", "DATABASE_URL": "x"})

    assert len(str(refusal.value).splitlines()) == 3


def test_nothing_secret_is_printed() -> None:
    """Neither what is printed of settings nor a refusal shows a password or a key."""
    environ = {
        "DATABASE_URL": REMOTE,
        "PILOT_WRAPPING_KEY": KEY,
        "PILOT_WRAPPING_KEY_ID": "2026-11",
        "PILOT_OLD_WRAPPING_KEYS": f"2026-10={OTHER_KEY}",
        "PILOT_SOLANA_RPC_URLS": NODE,
    }
    printed = repr(Settings.from_environ(environ))
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environ(
            environ
            | {
                "DATABASE_URL": f"{REMOTE}?sslmode=disable",
                "PILOT_SOLANA_RPC_URLS": f"{NODE},{NODE}",
            }
        )

    assert len(str(refusal.value).splitlines()) == 2
    for text in (printed, str(refusal.value)):
        assert "hunter" not in text
        assert KEY not in text
        assert OTHER_KEY not in text
        assert str(bytes(range(32))) not in text
        assert str(bytes(32)) not in text


def test_credits_are_off_on_mainnet_unless_allowed() -> None:
    assert Settings.from_environ({}).allow_credits
    assert not Settings.from_environ(MAINNET).allow_credits
    assert Settings.from_environ(MAINNET | {"PILOT_ALLOW_CREDITS": "true"}).allow_credits
    assert Settings.from_environ(MAINNET).solana_cluster is SolanaCluster.MAINNET


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": REMOTE},
        {"PILOT_SOLANA_RPC_URLS": "http://127.0.0.1:8899"},
        LOCALNET,
        DEVNET,
        MAINNET,
    ],
    ids=["database", "another chain", "localnet", "devnet", "mainnet"],
)
def test_the_embedded_chain_is_for_those_who_configured_nothing(environ: dict[str, str]) -> None:
    assert not Settings.from_environ(environ).uses_embedded_chain


def test_a_database_without_a_node_is_an_installation_without_a_chain() -> None:
    settings = Settings.from_environ({"DATABASE_URL": REMOTE})

    assert settings.solana_cluster is SolanaCluster.EMBEDDED
    assert settings.solana_rpc_urls == ()


@pytest.mark.parametrize(
    ("environ", "poll_milliseconds", "requests", "accounts"),
    [
        ({}, 50, 1_000, 1_000),
        (LOCALNET, 1_000, 20, 1_000),
        (DEVNET, 1_000, 20, 0),
        (MAINNET, 1_000, 20, 0),
    ],
    ids=["embedded", "localnet", "devnet", "mainnet"],
)
def test_what_costs_somebody_something_is_frugal_where_others_pay_or_wait(
    environ: dict[str, str], poll_milliseconds: int, requests: int, accounts: int
) -> None:
    settings = Settings.from_environ(environ)

    assert settings.solana_poll == timedelta(milliseconds=poll_milliseconds)
    assert settings.solana_rpc_requests_per_second == requests
    assert settings.recipient_accounts_per_day == accounts


def test_a_database_of_ones_own_needs_a_key_of_ones_own() -> None:
    with pytest.raises(SettingsError, match="PILOT_WRAPPING_KEY"):
        Settings.from_environ({"DATABASE_URL": REMOTE}).sealing_key()


def test_a_pooler_is_recognised_and_never_migrated_through() -> None:
    """Neon's pooled address says what it is; the direct one has to be given beside it."""
    pooled = "postgresql://u:p@ep-cool-pooler.eu-central-1.aws.neon.tech/pilot"
    direct = pooled.replace("-pooler", "")

    settings = Settings.from_environ({"DATABASE_URL": pooled})
    both = Settings.from_environ({"DATABASE_URL": pooled, "PILOT_DATABASE_DIRECT_URL": direct})

    assert settings.database_pooler
    with pytest.raises(SettingsError, match="PILOT_DATABASE_DIRECT_URL"):
        settings.direct_url()
    assert both.direct_url() == direct
    assert not Settings.from_environ({"DATABASE_URL": direct}).database_pooler
