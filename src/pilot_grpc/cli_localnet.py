"""`pilot localnet`: the embedded Solana chain in a process of its own, for development."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pilot_grpc import development
from pilot_grpc.settings import MAX_PORT, Settings, SettingsError, SolanaCluster

if TYPE_CHECKING:
    from pilot_grpc.solana.localnet import Localnet

NEXT_STEPS = """
A Solana chain of your own answers at {url}, and keeps itself in {home}.
Its USDC is worth nothing. Anybody on this machine can have some (amounts are minor units):

  curl {url} -H 'Content-Type: application/json' -d \\
    '{{"jsonrpc": "2.0", "id": 1, "method": "pilot_faucet",
      "params": {{"address": "WALLET", "amount": 1000000}}}}'

Ctrl-C stops.
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `localnet` to the parser of `pilot`."""
    parser = commands.add_parser(
        "localnet", help="run a Solana chain for development until SIGTERM or Ctrl-C"
    )
    parser.add_argument("--port", type=_port, default=8899, help="0 stands for any (8899)")
    parser.add_argument(
        "--data-dir", type=Path, help="where the chain is kept (PILOT_DATA_DIR/localnet)"
    )
    parser.add_argument(
        "--slot-ms", type=_positive, default=400, help="how long a slot lasts (400)"
    )
    parser.add_argument(
        "--endpoints", type=_positive, default=1, help="how many nodes serve the chain (1)"
    )
    parser.add_argument(
        "--manual", action="store_true", help="make a slot only when pilot_tick asks for one"
    )
    parser.set_defaults(command=_localnet)


def _localnet(settings: Settings, parsed: argparse.Namespace) -> int:
    import uvloop

    from pilot_grpc.solana.localnet import LocalnetError

    if settings.solana_cluster is SolanaCluster.MAINNET:
        raise SettingsError("`pilot localnet` is for development: not with mainnet")
    home = parsed.data_dir or development.chain_home(settings)
    try:
        uvloop.run(_serve(home, parsed))
    except LocalnetError as error:
        print(f"pilot: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(home: Path, parsed: argparse.Namespace) -> None:
    from pilot_grpc.solana import localnet

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    running = localnet.running(
        home,
        port=parsed.port,
        endpoints=parsed.endpoints,
        slot_ms=parsed.slot_ms,
        manual=parsed.manual,
    )
    async with running as net:
        _announce(net, home)
        await stopping.wait()


def _announce(net: Localnet, home: Path) -> None:
    print(NEXT_STEPS.format(url=net.url, home=home))
    for url in net.urls[1:]:
        print(f"Another node of it answers at {url}")
    sys.stdout.flush()


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"must be 0 to {MAX_PORT}")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be above zero")
    return number
