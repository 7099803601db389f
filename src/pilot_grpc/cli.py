"""The command line: `pilot serve`, `health`, `demo`, `localnet`, `db ...` and `keys ...`.

What only one command needs is imported by that command, so that the others start at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from pilot_grpc import (
    cli_db,
    cli_demo,
    cli_keys,
    cli_localnet,
    database_url,
    development,
    embedded,
    logs,
    migrations,
)
from pilot_grpc.settings import Settings, SettingsError

EXPECTED_ERRORS = (
    SettingsError,
    database_url.DatabaseUrlError,
    embedded.EmbeddedPostgresError,
    development.EmbeddedChainError,
    migrations.MigrationError,
    cli_keys.KeysError,
)

NEXT_STEPS = """
Pilot serves on {address}, with an embedded PostgreSQL in {data_dir}.
{chain}
In another terminal, sign in as the demo user (grpcurl: https://github.com/fullstorydev/grpcurl):

  grpcurl -plaintext -d '{{"email": "demo@pilot.app", "password": "password123"}}' \\
    {address} pilot.v1.AccountService/SignIn

README.md begins with the same command and goes on until a spend is declined. Ctrl-C stops.
"""
CHAIN = """\
Its own Solana chain answers at {url}; the USDC on it is worth nothing.
`pilot demo`, in another terminal, shows what is done with it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and answer its exit code: 0 is success, 1 a problem that was printed."""
    parsed = _parser().parse_args(arguments)
    try:
        settings = Settings.from_environ()
        logs.configure(settings.log_level, settings.log_format)
        code: int = parsed.command(settings, parsed)
    except EXPECTED_ERRORS as error:
        print(f"pilot: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pilot", description="Spend control for AI agents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve gRPC until SIGTERM or Ctrl-C")
    serve.set_defaults(command=_serve)
    health = commands.add_parser("health", help="exit with 0 when the server is SERVING")
    health.add_argument("--address", help="host:port (default: PILOT_LISTEN_ADDRESS)")
    health.set_defaults(command=_health)
    db = commands.add_parser("db", help="migrate, load, seed and reset the database")
    cli_db.add_commands(db.add_subparsers(required=True, metavar="COMMAND"))
    keys = commands.add_parser("keys", help="see the wrapping keys in use, and change the key")
    cli_keys.add_commands(keys.add_subparsers(required=True, metavar="COMMAND"))
    cli_demo.add_command(commands)
    cli_localnet.add_command(commands)
    return parser


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    import uvloop

    _leave_in_order_on_signals()
    with development.provided(settings, chain=True) as provided:
        provided.sealing_key()
        uvloop.run(_prepare_and_serve(provided, given=settings))
    return 0


def _leave_in_order_on_signals() -> None:
    """Turn signals into SystemExit, so that the embedded database and the chain stop with us.

    The server has handlers of its own, which drain, from when it serves.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


async def _prepare_and_serve(settings: Settings, *, given: Settings) -> None:
    """Serve on a schema that is up to date.

    The embedded database is migrated, and seeded when it is empty; nobody else's is touched. What
    was `given` says which it is.
    """
    from pilot_grpc.bootstrap import serve

    if given.uses_embedded_database:
        await migrations.migrate(settings.direct_url())
        await cli_db.seed_database(settings, only_if_empty=True)
    else:
        await cli_db.refuse_pending_migrations(settings)
    await serve(settings, ready=lambda address: _announce(settings, address, given=given))


def _announce(settings: Settings, address: str, *, given: Settings) -> None:
    """Say what to do next, to whom runs Pilot for the first time. Only our own URLs are shown."""
    if not given.uses_embedded_database:
        return
    chain = CHAIN.format(url=settings.solana_rpc_urls[0]) if given.uses_embedded_chain else ""
    steps = NEXT_STEPS.format(address=address, data_dir=settings.data_dir, chain=chain)
    print(steps, flush=True)


def _health(settings: Settings, parsed: argparse.Namespace) -> int:
    from pilot_grpc import probe

    status = probe.health(settings, parsed.address)
    print(status)
    return 0 if status == "SERVING" else 1
