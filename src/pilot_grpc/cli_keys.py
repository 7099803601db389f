"""`pilot keys ...`: status, rewrap, fee-payer."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pilot_grpc import cli_db, development, errors
from pilot_grpc.settings import Settings

if TYPE_CHECKING:
    from pilot_grpc.db.connection import Database
    from pilot_grpc.db.keys import Count
    from pilot_grpc.services.keys import Keys, Tally


class KeysError(RuntimeError):
    """The database did not answer; what was re-wrapped until then is."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `status`, `rewrap` and `fee-payer` to the parser of `pilot keys`."""
    status = commands.add_parser(
        "status", help="count the seals of each wrapping key; 1 if one of the keys is not here"
    )
    status.set_defaults(command=_status)
    rewrap = commands.add_parser(
        "rewrap", help="wrap every data key with the current wrapping key; 1 if one does not open"
    )
    rewrap.set_defaults(command=_rewrap)
    fee_payer = commands.add_parser(
        "fee-payer", help="tell who pays the fees on Solana, and how many lamports it has"
    )
    fee_payer.set_defaults(command=_fee_payer)


def _status(settings: Settings, _: argparse.Namespace) -> int:
    with development.provided(settings) as provided:
        current = provided.sealing_key().id
        counts = {count.wrapping_key_id: count for count in asyncio.run(_counted(provided))}
    known = [current, *(key.id for key in provided.old_wrapping_keys)]
    unknown = sorted(counts.keys() - known)
    for key_id in known:
        print(_line(key_id, "current" if key_id == current else "old", counts.get(key_id)))
    for key_id in unknown:
        print(_line(key_id, "not configured", counts[key_id]))
    return 1 if unknown else 0


def _line(key_id: str, role: str, count: Count | None) -> str:
    vaults, webhooks = (count.vaults, count.webhooks) if count else (0, 0)
    return f"{key_id} ({role}): vault keys {vaults}, webhook secrets {webhooks}"


def _rewrap(settings: Settings, _: argparse.Namespace) -> int:
    with development.provided(settings) as provided:
        current = provided.sealing_key().id
        tallies = asyncio.run(_rewrapped(provided))
    for tally in tallies:
        _report(tally, current)
    return 1 if any(tally.broken or not tally.is_whole for tally in tallies) else 0


def _report(tally: Tally, current: str) -> None:
    print(
        f"{tally.kind}s: {tally.rewrapped} re-wrapped, {tally.current} already under {current},"
        f" {tally.broken} cannot be opened"
    )
    if not tally.is_whole:
        print("  a server still seals with another key: restart it, and run this again")
    for each in tally.broken_named:
        print(f"  {each}", file=sys.stderr)
    if tally.broken > len(tally.broken_named):
        print(f"  and {tally.broken - len(tally.broken_named)} more", file=sys.stderr)


async def _counted(settings: Settings) -> list[Count]:
    async with _keys(settings) as keys:
        return await keys.count()


async def _rewrapped(settings: Settings) -> list[Tally]:
    async with _keys(settings) as keys:
        return await keys.rewrap()


def _fee_payer(settings: Settings, _: argparse.Namespace) -> int:
    """Print its address on a line of its own, and then what it has, if the chain says so."""
    with development.provided(settings) as provided:
        if provided.fee_payer_keychain_file is None:
            provided.sealing_key()
        urls = provided.solana_rpc_urls
        if settings.uses_embedded_chain:
            urls = _running_chain(settings)
        asyncio.run(_tell_fee_payer(replace(provided, solana_rpc_urls=urls)))
    return 0


def _running_chain(settings: Settings) -> tuple[str, ...]:
    """Find the embedded chain if somebody runs it: nobody else would, once this has ended."""
    from pilot_grpc.solana import localnet

    found = localnet.address(development.chain_home(settings))
    return () if found is None else (found,)


async def _tell_fee_payer(settings: Settings) -> None:
    from pilot_grpc import bootstrap
    from pilot_grpc.solana.answers import Commitment
    from pilot_grpc.solana.faults import RpcError

    async with _database(settings) as database:
        address = (await bootstrap.fee_payer_of(settings, database)).address
    print(address)
    rpc = bootstrap.rpc_of(settings)
    if rpc is None:
        print("no chain answers, so nobody knows what it has", file=sys.stderr)
        return
    try:
        lamports = (await rpc.balance(address, Commitment.CONFIRMED)).value
    except RpcError as fault:
        print(f"what it has is not known: {fault}", file=sys.stderr)
    else:
        print(f"{lamports} lamports")
    finally:
        await rpc.close()


@asynccontextmanager
async def _keys(settings: Settings) -> AsyncIterator[Keys]:
    from pilot_grpc.sealing import Sealer
    from pilot_grpc.services.keys import Keys

    async with _database(settings) as database:
        yield Keys(database, Sealer(settings.sealing_key(), settings.old_wrapping_keys))


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database, if it is up to date. Raises KeysError when it goes away."""
    from pilot_grpc.db.connection import open_database

    await cli_db.refuse_pending_migrations(settings)
    database = await open_database(
        settings.database_url or settings.direct_url(), pooler=settings.database_pooler, size=1
    )
    try:
        yield database
    except errors.PilotError as error:
        raise KeysError(
            "the database went away, or has too much to do; nothing is lost: run this again"
        ) from error
    finally:
        await database.close()
