"""`pilot demo`: money on the embedded chain, walked through a server that runs already."""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING

from pilot_grpc import development
from pilot_grpc.settings import Settings, SolanaCluster

if TYPE_CHECKING:
    from pilot_grpc.probe import Target


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo` to the parser of `pilot`."""
    parser = commands.add_parser(
        "demo",
        help="fund a vault on the embedded chain, pay from it, and check everything; "
        "1 if anything is wrong",
    )
    parser.add_argument("--address", help="host:port of the server (PILOT_LISTEN_ADDRESS)")
    parser.set_defaults(command=_demo)


def _demo(settings: Settings, parsed: argparse.Namespace) -> int:
    from pilot_grpc import demo

    say = partial(print, flush=True)
    try:
        target = _target(settings, parsed.address)
        holds = asyncio.run(demo.walk(target, _chain_url(settings), say))
    except demo.DemoError as error:
        print(f"pilot: {error}", file=sys.stderr)
        return 1
    return 0 if holds else 1


def _target(settings: Settings, address: str | None) -> Target:
    """Find the server. Raises DemoError where none serves."""
    from pilot_grpc import demo, probe

    target = probe.target(settings, address)
    status = probe.health(settings, address)
    if status != "SERVING":
        code = status.partition(":")[0]
        raise demo.DemoError(
            f"no server serves at {target.address} ({code}): `make run` starts one, in another"
            " terminal"
        )
    return target


def _chain_url(settings: Settings) -> str:
    """Find the embedded chain. Raises DemoError where there is none."""
    from pilot_grpc import demo
    from pilot_grpc.solana import localnet

    if settings.solana_cluster is not SolanaCluster.EMBEDDED:
        raise demo.DemoError(
            f"PILOT_SOLANA_CLUSTER is {settings.solana_cluster}: the demo is for the embedded chain"
        )
    if settings.solana_rpc_urls:
        return settings.solana_rpc_urls[0]
    home = development.chain_home(settings)
    found = localnet.address(home)
    if found is None:
        raise demo.DemoError(
            f"no chain runs in {home}: PILOT_DATA_DIR, or PILOT_SOLANA_RPC_URLS, must be what the"
            " server has"
        )
    return found
